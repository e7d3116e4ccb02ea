//! Setting up the store, against the real nats-server.
#![allow(clippy::unwrap_used)] // in the functions that tests share, too

mod world;

use bus::broker::Broker;
use bus::streams::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;
use world::{World, provision, silent};

#[tokio::test]
async fn setting_up_again_changes_nothing() {
    let world = World::start().await;
    let alice = world.operator("alice").await;
    alice.store("ship1.command.shell.os", "order").await;
    let before = alice.contents().await;
    let mut changes = alice.listen("$JS.EVENT.ADVISORY.STREAM.>").await;
    let again = provision(&world.broker.client_url(), &world.keys).await;
    assert_eq!(again, world.provisioned);
    assert_eq!(alice.contents().await, before);
    assert!(silent(&mut changes).await, "a stream was updated without need");
    let names: Vec<_> = before.iter().map(|(name, ..)| name.as_str()).collect();
    let expected = [
        "AUDIT",
        "BOOT",
        "COMMANDS",
        "EVENTS",
        "KNOCKS",
        "KV_ADMISSIONS",
        "KV_FACTS",
        "KV_HISTORY",
        "KV_JOBS",
        "KV_META",
        "KV_NODES",
        "KV_POLICY",
        "KV_PRESENCE",
        "KV_USERS",
        "REPLIES",
    ];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn many_who_set_up_at_once_agree() {
    let home = tempfile::tempdir().unwrap();
    let keys = bus::keys::FleetKeys::create(home.path()).unwrap();
    let broker = Broker::start(bus::broker::BrokerConfig::new(home.path(), keys.trust())).await.unwrap();
    let url = broker.client_url();
    let all = futures::future::join_all((0..4).map(|_| provision(&url, &keys))).await;
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
    broker.stop().await;
}

#[tokio::test]
async fn after_a_kill_the_store_is_the_same_and_the_memory_another() {
    let world = World::start().await;
    let alice = world.operator("alice").await;
    let jobs = alice.jetstream().get_key_value("JOBS").await.unwrap();
    jobs.put("J1", "job".into()).await.unwrap();
    let order = alice.store("ship1.command.shell.os", "order").await;

    let (handle, cancel) = (world.broker.handle(), CancellationToken::new());
    let mut status = handle.status();
    let pid = i32::try_from(world.broker.pid()).unwrap();
    let supervised = tokio::spawn(world.broker.supervise(cancel.clone()));
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    status.wait_for(|status| status.restarts == 1).await.unwrap();

    let provisioner = world::Party::connect(&handle.client_url(), &world.keys.provisioner_user().unwrap()).await;
    assert_eq!(streams::booted(&provisioner.jetstream()).await.unwrap(), None);
    let after = streams::provision(&provisioner.jetstream(), Options::default()).await.unwrap();
    assert_eq!(after.epoch, world.provisioned.epoch);
    assert!(after.booted > world.provisioned.booted);
    let alice = world::Party::connect(
        &handle.client_url(),
        &world.keys.operator_user("alice", &nkeys::KeyPair::new_user()).unwrap(),
    )
    .await;
    assert_eq!(streams::mark_boot(&alice.jetstream(), 1).await.unwrap(), after.booted);
    assert_eq!(alice.last("COMMANDS", "ship1.command.shell.os").await.as_deref(), Some("order"));
    assert_eq!(alice.last("KV_JOBS", "$KV.JOBS.J1").await.as_deref(), Some("job"));
    assert_eq!(alice.store("ship1.command.shell.os", "next").await.sequence, order.sequence + 1);
    cancel.cancel();
    supervised.await.unwrap();
}

#[tokio::test]
async fn anyone_in_core_puts_the_boot_mark_back() {
    let world = World::start().await;
    let config = world.config();
    world.broker.stop().await;
    let broker = Broker::start(config).await.unwrap();
    let central = world::Party::connect(
        &broker.client_url(),
        &world.keys.station_user("central", &nkeys::KeyPair::new_user()).unwrap(),
    )
    .await;
    assert_eq!(streams::booted(&central.jetstream()).await.unwrap(), None);
    let marked = streams::mark_boot(&central.jetstream(), 1).await.unwrap();
    assert_eq!(streams::booted(&central.jetstream()).await.unwrap(), Some(marked));
    assert!(marked > world.provisioned.booted && central.is_content().await);
    broker.stop().await;
}

#[tokio::test]
async fn a_wiped_store_has_another_epoch() {
    let world = World::start().await;
    let config = world.config();
    world.broker.stop().await;
    std::fs::remove_dir_all(world.home.path().join("broker/store")).unwrap();
    let broker = Broker::start(config).await.unwrap();
    let after = provision(&broker.client_url(), &world.keys).await;
    assert_ne!(after.epoch, world.provisioned.epoch);
    broker.stop().await;
}

#[tokio::test]
async fn a_store_without_room_can_still_be_set_up_and_read() {
    let world = World::start().await;
    let alice = world.operator("alice").await;
    alice.store("ship1.command.shell.os", "x".repeat(100_000)).await;
    let mut config = world.config();
    config.store_bytes_max = Some(50_000);
    world.broker.stop().await;
    let broker = Broker::start(config).await.unwrap();
    provision(&broker.client_url(), &world.keys).await;
    let options = Options::fitting(broker.handle().store_bytes_max());
    let provisioner = world::Party::connect(&broker.client_url(), &world.keys.provisioner_user().unwrap()).await;
    streams::provision(&provisioner.jetstream(), options).await.unwrap();
    assert!(provisioner.last("COMMANDS", "ship1.command.shell.os").await.is_some());
    broker.stop().await;
}
