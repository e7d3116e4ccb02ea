//! Reading a stream to its end, when what it is read by goes away in between.
#![allow(clippy::unwrap_used)] // in the functions that tests share, too

mod world;

use std::time::Duration;

use bus::{Bus, CORE_API, ConnectOptions, Credentials, Headers, Scan, Start};
use bytes::Bytes;
use nkeys::KeyPair;
use world::World;

#[tokio::test]
async fn a_scan_whose_consumer_is_gone_fails_and_does_not_end_as_if_all_had_been_read() {
    let world = World::start().await;
    let creds = world.keys.operator_user("alice", &KeyPair::new_user()).unwrap();
    let bus = Bus::connect(ConnectOptions {
        server: world.broker.client_url(),
        ca: None,
        credentials: Credentials::parse(&creds.render(), "a test").unwrap(),
        name: "test".into(),
        inbox_prefix: Some(creds.inbox_prefix().unwrap()),
        patient: false,
        ping_interval: Duration::from_secs(10),
        api_prefix: CORE_API,
    })
    .await
    .unwrap();
    let subject = "ship1.event.a.b";
    for number in 0..300 {
        bus.publish(subject, Headers::new(), Bytes::from(format!("{number}"))).await.unwrap();
    }
    let mut scan = Scan::open_named(&bus, "EVENTS", "half", &[subject.to_owned()], Start::First).await.unwrap();
    // A whole batch; the rest has to be asked for.
    for number in 0..256 {
        assert_eq!(scan.next().await.unwrap().unwrap().payload, Bytes::from(format!("{number}")));
    }
    // As a restart of the broker, or a reader that paused for too long.
    let deleted = world.operator("bob").await.ask_json("$JS.API.CONSUMER.DELETE.EVENTS.half", "").await;
    assert_eq!(deleted["success"], true, "{deleted}");
    let end = scan.next().await;
    assert!(end.is_err(), "44 messages are missing, and the scan says {end:?}");
}
