//! The audit log and the door at their limits: a stream that is full or gone is told, and nothing is done behind its back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::time::{Duration, Instant};

use bus::keys::{knocker, knocker_inbox};
use bus::{Bus, ConnectOptions, Credentials, Headers, KNOCK_API, Knocked};
use bytes::Bytes;
use futures::{StreamExt, stream};
use message::admission::KnockKind;
use message::{EnrolToken, Knock, NodeName, PublicKey, Seal, Timestamp};
use nkeys::KeyPair;
use serde_json::Value;
use world::{HUB, World, eventually, get, limit, lines, provisioner};

/// How many entries the log holds.
fn entries(world: &World) -> i64 {
    let output = world.steward(&["-o", "ndjson", "audit", "ls", "--raw"]);
    String::from_utf8(output.stdout).unwrap().lines().count().try_into().unwrap()
}

fn decided(world: &World, job: &Value) -> bool {
    let told = world.json(0, &["audit", "ls", "--node", "ship1", "--action", "delivered"]);
    told.as_array().unwrap().iter().any(|act| act["job"] == *job)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_log_is_full_nobody_orders_or_changes_anything_and_nodes_keep_what_they_have_to_tell() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.end_agent("ship1", 15);
    let waiting = world.json(4, &["run", "ship1", "--detach", "--", "true"])["job"].clone();
    let held = entries(&world);
    limit(&world, "AUDIT", held).await;

    // What cannot be written down is not done, and its operator is told why.
    let witness = world.path("witness");
    let refused = world.steward(&["run", HUB, "--", "touch", witness.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("cannot be written in the audit log") && said.contains("maximum messages"), "{said}");
    let refused = world.steward(&["node", "label", HUB, "site=oslo"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("audit log"), "{refused:?}");
    let refused = world.steward(&["operator", "add", "bob", "--role", "admin"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("audit log"), "{refused:?}");
    let operators = world.json(0, &["operator", "ls"]);
    assert!(!operators.to_string().contains("bob"), "{operators}");
    assert!(world.json(0, &["node", "show", HUB])["labels"].get("site").is_none());

    // What was ordered before runs; what the node decided about it stays on its disk, and it says so.
    world.agent("ship1", &[]);
    let job = waiting.as_str().unwrap();
    eventually("the order has run", || world.json_any(&["job", "show", job]).to_string().contains("succeeded"));
    eventually("the node tells that the log takes nothing", || {
        lines(&world.path("ship1.log")).iter().any(|line| line.contains("the audit log does not take"))
    });
    assert!(!decided(&world, &waiting));
    assert_eq!(entries(&world), held);
    assert!(!witness.exists(), "an order that nobody wrote down was sent");

    // Also over a restart; and it is told once, when there is room.
    world.end_agent("ship1", 9);
    world.agent("ship1", &[]);
    limit(&world, "AUDIT", -1).await;
    eventually("what was decided is told", || decided(&world, &waiting));
    world.json(0, &["run", HUB, "--", "touch", witness.to_str().unwrap()]);
    assert!(witness.exists());
    let told = world.json(0, &["audit", "ls", "--node", "ship1", "--action", "delivered"]);
    assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
    assert_eq!(world.json(0, &["audit", "verify"])["whole"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_the_owner_of_the_broker_did_away_with_is_missed() {
    let mut world = World::up();
    world.json(0, &["call", HUB, "hello"]);
    eventually("the node has told what it decided", || {
        let report = world.json(0, &["audit", "verify"]);
        report["chains"].as_array().unwrap().iter().any(|chain| chain["writer"] == HUB)
    });
    let owner = provisioner(&world).await;
    // A purge is refused by the stream itself.
    let purged = owner.publish("$JS.API.STREAM.PURGE.AUDIT", Headers::new(), Bytes::new()).await;
    assert!(purged.is_err(), "{purged:?}");
    assert_eq!(world.json(0, &["audit", "verify"])["whole"], true);
    owner.publish("$JS.API.STREAM.DELETE.AUDIT", Headers::new(), Bytes::new()).await.unwrap();
    // There is no log: nothing is ordered.
    let refused = world.steward(&["call", HUB, "hello"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("audit log"), "{refused:?}");
    // The next start makes an empty one, in which everything up to now is missed.
    world.stop_up();
    world.start_up();
    let report = world.json(3, &["audit", "verify"]);
    let faults = |report: &Value, name: &str| -> Vec<String> {
        let own = report["chains"].as_array().unwrap().iter().filter(|chain| chain["writer"] == name);
        own.flat_map(|chain| chain["faults"].as_array().unwrap().clone())
            .map(|fault| fault["fault"].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(faults(&report, HUB).contains(&"end".to_owned()), "the node's life sign tells of more: {report}");
    // Whoever writes goes on where he was, and what is gone stays missing.
    world.json(0, &["call", HUB, "hello"]);
    let report = world.json(3, &["audit", "verify"]);
    assert!(faults(&report, "admin").contains(&"beginning".to_owned()), "{report}");
}

/// What the door holds in this test; without it, [`bus::streams::KNOCKS_MAX`].
const PLACES: usize = 1000;

fn token(world: &World, name: &str, uses: &str) -> (String, EnrolToken) {
    let path = world.path(name).to_str().unwrap().to_owned();
    world.json(0, &["node", "token", "--out", &path, "--uses", uses]);
    let token = EnrolToken::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
    (path, token)
}

/// Comes as a unit with a new key, knocks, and leaves.
async fn knock(token: &EnrolToken, name: String) -> Knocked {
    let pair = KeyPair::new_user();
    let creds = knocker(&token.key().unwrap(), token.account.as_str(), &pair).unwrap();
    let bus = Bus::connect(ConnectOptions {
        server: token.server.clone(),
        ca: None,
        credentials: Credentials::of(&creds).unwrap(),
        name: "unit".into(),
        inbox_prefix: Some(knocker_inbox(&pair.public_key())),
        patient: true,
        ping_interval: Duration::from_secs(10),
        api_prefix: KNOCK_API,
    })
    .await
    .unwrap();
    let knock = Knock {
        v: 1,
        kind: KnockKind::Knock,
        token: token.id,
        name: NodeName::new(&name).unwrap(),
        key: PublicKey::of(&pair),
        tls_key: None,
        version: "0".into(),
        at: Timestamp::from_ms(0),
    };
    let bytes = serde_json::to_vec(&knock).unwrap();
    let seal = Seal::over(&bytes, &pair).unwrap();
    // As an agent does: a broker that is busy with a thousand others may take its time, and a place is taken once.
    let deadline = Instant::now() + Duration::from_secs(100);
    let knocked = loop {
        match bus.knock(&knock.subject(), Bytes::from(bytes.clone()), &seal).await {
            Ok(knocked) => break knocked,
            Err(error) => assert!(Instant::now() < deadline, "nobody answers at the door: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    bus.close().await;
    knocked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_fills_the_door_with_one_token_keeps_nobody_out_for_ever() {
    let mut world = World::up();
    let (_, stolen) = token(&world, "stolen.token", "2");
    let (honest, _) = token(&world, "honest.token", "2");
    limit(&world, "KNOCKS", PLACES.try_into().unwrap()).await;
    let stolen = &stolen;
    let knocked: Vec<Knocked> = stream::iter(0..PLACES + 50)
        .map(|number| knock(stolen, format!("x{number}")))
        .buffer_unordered(16)
        .collect()
        .await;
    let full = knocked.iter().filter(|one| matches!(one, Knocked::Full(_))).count();
    let taken = world.operator_bus().await.knocks().await.unwrap().len();
    assert_eq!(taken, PLACES, "the list of those who wait is bounded");
    assert!(full >= 50, "{full} were told that it is full");

    let station = world.ready["http"].as_str().unwrap().to_owned();
    let waiting = format!("steward_nodes_pending {PLACES}");
    eventually("the station counts them", || get(&station, "/metrics").lines().any(|line| line == waiting));

    // The honest one is told that it has to wait. Those who are in already notice nothing.
    let state = world.path("state-ship1").to_str().unwrap().to_owned();
    world.start_agent("ship1", &["--token", &honest, "--state", &state]);
    eventually("it says that the door is full", || {
        lines(&world.path("ship1.log")).iter().any(|line| line.contains("too many units wait at the door"))
    });
    world.json(0, &["run", HUB, "--", "true"]);
    // Two may come in by the stolen token, as it says, and no more.
    let answer = world.json_any(&["node", "accept", "x*", "--yes"]);
    assert_eq!(answer["accepted"].as_array().unwrap().len(), 2, "{answer}");
    assert_eq!(world.operator_bus().await.knocks().await.unwrap().len(), PLACES - 2);

    // Revoked, it takes all its knocks along; the honest one comes by itself.
    world.json(0, &["node", "token", "revoke", &stolen.id.to_string()]);
    assert!(world.operator_bus().await.knocks().await.unwrap().len() <= 1);
    let deadline = Instant::now() + Duration::from_secs(150);
    while world.state("ship1") != "pending" {
        assert!(Instant::now() < deadline, "it does not knock again");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    world.json(0, &["node", "accept", "ship1", "--yes"]);
    world.wait_for_state("ship1", "online");
}
