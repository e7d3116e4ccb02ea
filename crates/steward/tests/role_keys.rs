//! The keys that sign who is let in are changed while the fleet goes on; a stolen old one makes no more users.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::time::Duration;

use bus::claims::{self, Creds};
use bus::{Bus, BusError, CORE_API, ConnectOptions, Credentials, EDGE_API};
use nkeys::KeyPair;
use serde_json::Value;
use world::{World, eventually};

/// Somebody whom the thief of a role's key has made up, in the place of a user of that role.
fn made_up(world: &World, stolen: &KeyPair, like: &str, name: &str) -> Credentials {
    let _ = world;
    let like = Creds::parse(like).unwrap().token().unwrap();
    let pair = KeyPair::new_user();
    let user = claims::User::scoped(like.nats.issuer_account, like.nats.tags);
    let jwt = claims::sign(stolen, &pair.public_key(), name, user).unwrap();
    Credentials::parse(&Creds::new(jwt, &pair).unwrap().render(), "made up").unwrap()
}

async fn connect(
    world: &World,
    credentials: &Credentials,
    inbox: &str,
    api_prefix: &'static str,
) -> Result<Bus, BusError> {
    Bus::connect(ConnectOptions {
        server: world.ready["server"].as_str().unwrap().to_owned(),
        ca: None,
        credentials: credentials.clone(),
        name: "thief".into(),
        inbox_prefix: Some(inbox.into()),
        patient: false,
        ping_interval: Duration::from_secs(10),
        api_prefix,
    })
    .await
}

fn key(world: &World, role: &str) -> KeyPair {
    KeyPair::from_seed(std::fs::read_to_string(world.path(&format!("keys/{role}.nk"))).unwrap().trim()).unwrap()
}

fn standing(world: &World, role: &str) -> Value {
    let all = world.json(0, &["keys", "ls"]);
    all.as_array().unwrap().iter().find(|one| one["role"] == role).unwrap().clone()
}

fn without(world: &World, role: &str) -> Vec<String> {
    let names = standing(world, role)["without_new_token"].as_array().unwrap().clone();
    names.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

async fn cut_off(bus: &Bus) {
    let mut link = bus.link();
    let down = tokio::time::timeout(Duration::from_secs(5), link.wait_for(|link| !link.up));
    assert!(down.await.is_ok(), "the connection still stands 5 s after the key was retired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role_keys_change_while_the_fleet_goes_on_and_a_stolen_old_one_makes_nobody() {
    let mut world = World::up();
    let bundle = world.path("ship1.bundle");
    world.json(0, &["node", "enroll", "ship1", "--out", bundle.to_str().unwrap()]);
    let with_bundle = ["--bundle", bundle.to_str().unwrap()];
    world.agent("ship1", &with_bundle);
    world.agent("ship2", &[]);
    let (node_key, operator_key) = (key(&world, "node"), key(&world, "operator"));
    let text: Value = serde_json::from_slice(&std::fs::read(&bundle).unwrap()).unwrap();
    let like_a_node = text["creds"].as_str().unwrap().to_owned();
    let like_an_operator = std::fs::read_to_string(world.path("creds/admin.creds")).unwrap();
    let spy = made_up(&world, &node_key, &like_a_node, "ship9");
    let clerk = made_up(&world, &operator_key, &like_an_operator, "clerk");
    // Another operator, with a home of his own; and a node that is away.
    let his_bundle = world.path("bob.operator");
    world.json(0, &["operator", "add", "bob", "--out", his_bundle.to_str().unwrap()]);
    let his = tempfile::tempdir().unwrap();
    let at_his = |arguments: &[&str]| {
        world::program().arg("--home").arg(his.path()).args(["-o", "json"]).args(arguments).output().unwrap()
    };
    assert!(at_his(&["context", "import", his_bundle.to_str().unwrap()]).status.success());
    world.end_agent("ship2", 15);

    let rotated = world.json(0, &["keys", "rotate"]);
    assert_eq!(rotated.as_array().unwrap().len(), 5);
    assert_ne!(key(&world, "node").public_key(), node_key.public_key());
    // Users of both are let in: nobody was cut off, the thief neither.
    let his_node = connect(&world, &spy, "_INBOX.ship9", EDGE_API).await.unwrap();
    let his_operator = connect(&world, &clerk, "_INBOX_clerk", CORE_API).await.unwrap();
    world.json(0, &["run", "ship1,hub", "--", "true"]);
    eventually("who is online has his token", || without(&world, "node") == ["ship2"]);
    eventually("the station has its token", || without(&world, "station").is_empty());
    assert_eq!(without(&world, "operator"), ["bob"]);
    // A second time goes on with the first.
    let new = key(&world, "node").public_key();
    world.json(0, &["keys", "rotate", "node"]);
    assert_eq!(key(&world, "node").public_key(), new);

    let asked = world.steward(&["keys", "retire"]);
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(asked.status.code() == Some(2) && said.contains("ship2") && said.contains("bob"), "{asked:?}");
    // Whoever was away takes his token when he is back.
    world.agent("ship2", &[]);
    assert!(at_his(&["node", "ls"]).status.success());
    eventually("all have their token", || without(&world, "node").is_empty() && without(&world, "operator").is_empty());
    let running = world.json(4, &["run", "ship1", "--wait", "0s", "--sh", "sleep 2; echo through"]);
    world.json(0, &["keys", "retire"]);

    // The thief is out, at once and for good; everybody else comes back by himself, and what ran goes on.
    cut_off(&his_node).await;
    cut_off(&his_operator).await;
    let refused = async |world: &World| {
        let node = connect(world, &spy, "_INBOX.ship9", EDGE_API).await;
        assert!(matches!(node, Err(BusError::Refused { .. })), "{:?}", node.err());
        let operator = connect(world, &clerk, "_INBOX_clerk", CORE_API).await;
        assert!(matches!(operator, Err(BusError::Refused { .. })), "{:?}", operator.err());
    };
    refused(&world).await;
    world.json(0, &["run", "ship1,ship2,hub", "--wait", "30s", "--", "true"]);
    let done = world.json(0, &["job", "watch", running["job"].as_str().unwrap()]);
    assert_eq!(done["counts"]["succeeded"], 1, "{done}");
    assert!(at_his(&["run", "ship1", "--", "true"]).status.success());
    // Across restarts: of agents, one of them with the bundle of before, and of the whole system.
    world.end_agent("ship1", 9);
    world.agent("ship1", &with_bundle);
    world.stop_up();
    world.start_up();
    for node in ["ship1", "ship2", "hub"] {
        world.wait_for_state(node, "online");
    }
    refused(&world).await;
    world.json(0, &["run", "ship1,ship2,hub", "--wait", "30s", "--", "true"]);
    assert_eq!(standing(&world, "node")["old_keys"], serde_json::json!([]));
    // And once more, with those who come new in between.
    world.json(0, &["keys", "rotate", "node"]);
    let bundle = world.path("ship3.bundle");
    world.json(0, &["node", "enroll", "ship3", "--out", bundle.to_str().unwrap()]);
    world.agent("ship3", &["--bundle", bundle.to_str().unwrap()]);
    eventually("all have the second token, too", || {
        world.steward(&["keys", "retire", "node"]).status.code() == Some(0)
    });
    world.json(0, &["run", "ship1,ship2,ship3,hub", "--wait", "30s", "--", "true"]);
}
