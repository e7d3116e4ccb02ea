//! Who ordered what, how each node decided, and who changed whom is trusted: written down, and missed if it is taken away.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::path::PathBuf;
use std::time::Duration;

use bus::claims::Creds;
use bus::{Bus, CORE_API, ConnectOptions, Credentials, Headers};
use bytes::Bytes;
use message::audit::{Act, Entry, OPERATOR_CHAIN, Stored, Tip, subject};
use message::{PublicKey, Seal, Timestamp};
use nkeys::KeyPair;
use serde_json::Value;
use world::{HUB, World, eventually};

const KILL: i32 = 9;

fn acts(world: &World, arguments: &[&str]) -> Vec<Value> {
    let list = world.json(0, &[&["audit", "ls"], arguments].concat());
    list.as_array().unwrap().clone()
}

/// Waits for acts of a kind that fulfil something, and returns them.
fn wait_for(world: &World, what: &str, arguments: &[&str], wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut found = Vec::new();
    eventually(what, || {
        found = acts(world, arguments).into_iter().filter(|act| wanted(act)).collect();
        !found.is_empty()
    });
    found
}

fn raw(world: &World) -> Vec<Stored> {
    let output = world.steward(&["-o", "ndjson", "audit", "ls", "--raw"]);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn pair_of(creds: &str) -> KeyPair {
    Creds::parse(&std::fs::read_to_string(creds).unwrap()).unwrap().key().unwrap()
}

fn own_pair(world: &World) -> KeyPair {
    pair_of(world.json(0, &["context", "show"])["creds"].as_str().unwrap())
}

fn faults(report: &Value) -> Vec<Value> {
    report["chains"].as_array().unwrap().iter().flat_map(|chain| chain["faults"].as_array().unwrap().clone()).collect()
}

#[test]
fn orders_decisions_and_changes_of_trust_are_written_down() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let job = world.json(0, &["run", "ship1", "--env", "PASSWORD=swordfish", "--", "echo", "hi"])["job"].clone();
    world.json(0, &["node", "label", "ship1", "site=oslo"]);
    let bob = world.json(0, &["operator", "add", "bob", "--role", "dev"]);
    let creds = bob["creds"].as_str().unwrap().to_owned();
    let refused = world.json(3, &["--creds", &creds, "run", "ship1", "--", "reboot"])["job"].clone();
    world.json(0, &["operator", "revoke", "bob", "--yes"]);

    let ordered = acts(&world, &["--action", "order"]);
    let mine = ordered.iter().find(|act| act["job"] == job).expect("the order is written down");
    assert_eq!((&mine["writer"], &mine["role"]), (&"admin".into(), &"operator".into()));
    assert_eq!(mine["args"]["argv"], serde_json::json!(["echo", "hi"]));
    assert!(!mine.to_string().contains("swordfish"), "what is in the environment is a digest: {mine}");
    assert!(ordered.iter().any(|act| act["job"] == refused && act["writer"] == "bob"));
    let changes: Vec<String> = acts(&world, &["--action", "change"])
        .iter()
        .map(|act| format!("{} {}", act["what"].as_str().unwrap(), act["on"].as_str().unwrap()))
        .collect();
    for wanted in [
        "fleet init root",
        "fleet init role node",
        "node enroll ship1",
        "node label ship1",
        "operator add bob",
        "operator revoke bob",
    ] {
        assert!(changes.iter().any(|change| change == wanted), "{wanted} is not in {changes:?}");
    }

    let taken =
        wait_for(&world, "the decision", &["--node", "ship1", "--action", "delivered"], |act| act["job"] == job);
    assert_eq!((taken.len(), &taken[0]["rule"]), (1, &"admins may everything".into()), "{taken:?}");
    let denied = wait_for(&world, "the refusal", &["--by", "bob", "--action", "rejected"], |act| act["job"] == refused);
    assert!(denied[0]["reason"].as_str().unwrap().contains("no rule of the policy"), "{denied:?}");
    wait_for(&world, "the newer list", &["--node", "ship1", "--action", "heard"], |act| act["what"] == "operators");

    let report = world.json(0, &["audit", "verify"]);
    assert_eq!(report["whole"], true, "{report}");
    // A third party needs the export, and the list of operators that the root has signed.
    let export = world.path("audit.ndjson");
    std::fs::write(&export, world.steward(&["-o", "ndjson", "audit", "ls", "--raw"]).stdout).unwrap();
    let arguments = ["audit", "verify", "--file", export.to_str().unwrap()];
    assert_eq!(world.json(0, &arguments)["whole"], true);
    // Every line of it that goes is missed, and every letter that changes.
    let text = std::fs::read_to_string(&export).unwrap();
    let altered = text.replacen("node label", "node rebel", 1);
    std::fs::write(&export, altered).unwrap();
    let report = world.json(3, &arguments);
    assert_eq!(report["strange"].as_array().unwrap().len(), 1, "{report}");
    let lines: Vec<&str> = text.lines().collect();
    let label = lines.iter().position(|line| line.contains("node label")).unwrap();
    let cut: Vec<&str> = lines.iter().enumerate().filter(|(at, _)| *at != label).map(|(_, line)| *line).collect();
    std::fs::write(&export, cut.join("\n")).unwrap();
    let report = world.json(3, &arguments);
    assert_eq!(faults(&report)[0]["fault"], "gap", "{report}");
}

#[test]
fn an_agent_that_is_killed_before_it_told_tells_it_afterwards_and_once() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(world.json(0, &["run", "ship1", "--", "true"])["job"].clone());
    }
    // Entries wait for some seconds for others.
    world.end_agent("ship1", KILL);
    let told = acts(&world, &["--node", "ship1", "--action", "delivered"]);
    assert!(told.len() < 3, "it was killed too late for this test: {told:?}");
    world.agent("ship1", &[]);
    let find = || acts(&world, &["--node", "ship1", "--action", "delivered"]);
    eventually("all three are told", || jobs.iter().all(|job| find().iter().any(|act| act["job"] == *job)));
    assert_eq!(find().len(), 3);
    let report = world.json(0, &["audit", "verify"]);
    let chains = report["chains"].as_array().unwrap();
    let own: Vec<&Value> = chains.iter().filter(|chain| chain["writer"] == "ship1").collect();
    assert_eq!((own.len(), &own[0]["first"]), (1, &1.into()), "one chain, which goes on: {report}");
}

#[test]
fn two_clients_of_one_operator_do_not_fork_his_chain() {
    let world = World::up();
    let orders = |_: usize| {
        for _ in 0..5 {
            let output = world.steward(&["call", HUB, "hello"]);
            assert!(output.status.success(), "{output:?}");
        }
    };
    std::thread::scope(|scope| {
        for client in 0..3 {
            scope.spawn(move || orders(client));
        }
    });
    assert_eq!(acts(&world, &["--action", "order"]).len(), 15);
    let report = world.json(0, &["audit", "verify"]);
    assert_eq!(report["whole"], true, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_forges_repeats_or_goes_around_the_log_is_found() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.json(0, &["call", "ship1", "hello"]);
    let bob = world.json(0, &["operator", "add", "bob", "--role", "admin"]);
    let creds = PathBuf::from(bob["creds"].as_str().unwrap());
    let bobs_key = pair_of(creds.to_str().unwrap());
    let bobs = connect(&world, &creds, "_INBOX_bob").await;
    let own = own_pair(&world);
    let entries = raw(&world);
    let admins = subject("admin", &PublicKey::of(&own), OPERATOR_CHAIN);
    let last = entries.iter().rfind(|stored| stored.subject == admins).unwrap();

    // What the broker refuses: another's subject, whoever signed; and taking anything away.
    let send = async |bus: &Bus, subject: &str, bytes: &[u8], key: &KeyPair| {
        let headers = Headers::new().sealed(&Seal::over(bytes, key).unwrap());
        bus.publish(subject, headers, Bytes::from(bytes.to_vec())).await
    };
    let refused =
        tokio::time::timeout(Duration::from_secs(2), send(&bobs, &admins, last.entry.as_bytes(), &bobs_key)).await;
    assert!(!matches!(refused, Ok(Ok(_))), "bob wrote in admin's name: {refused:?}");
    assert_eq!(world.json(0, &["audit", "verify"])["whole"], true);

    // The same entry again, by one who may write there.
    let admin = world.operator_bus().await;
    let seal = last.seal.clone().unwrap();
    admin.publish(&admins, Headers::new().sealed(&seal), Bytes::from(last.entry.clone())).await.unwrap();
    let report = world.json(3, &["audit", "verify"]);
    assert_eq!(faults(&report)[0]["fault"], "repeated", "{report}");

    // Another entry of a number that is taken.
    let entry: Entry = Entry::parse(last.entry.as_bytes()).unwrap();
    let before = entry.prev.clone().unwrap();
    let tip = Tip { seq: entry.seq - 1, sha256: before.sha256, at: before.at };
    let told = vec![Act::change("node revoke", "ship1")];
    let other = Entry::after(Some(&tip), ("admin", OPERATOR_CHAIN), Timestamp::from_ms(1), told);
    send(&admin, &admins, &other.to_bytes().unwrap(), &own).await.unwrap();
    let report = world.json(3, &["audit", "verify"]);
    assert!(faults(&report).iter().any(|fault| fault["fault"] == "fork"), "{report}");

    // An order with the right key, past the log: the node tells of it.
    let enrolled = acts(&world, &["--action", "node enroll"]);
    let node = enrolled.iter().find(|act| act["on"] == "ship1").unwrap()["key"].as_str().unwrap().to_owned();
    let order = message::Order {
        v: 1,
        kind: message::Kind::Command,
        id: message::OrderId::from_bytes([9; 16]),
        job: message::JobId::new(1, 77),
        to: message::Addressee { name: message::NodeName::new("ship1").unwrap(), key: PublicKey::parse(node).unwrap() },
        method: message::Token::method("hello").unwrap(),
        domain: message::Token::domain("operatingsystem").unwrap(),
        from: message::NodeName::new("central").unwrap(),
        created: bus::clock::now(),
        expires: bus::clock::now().plus(Duration::from_secs(600)),
        timeout_ms: 1000,
        max_output_bytes: 1000,
        args: serde_json::json!({}),
        supersede: None,
        secrets: None,
    };
    let bytes = order.to_bytes().unwrap();
    send(&admin, "ship1.command.hello.operatingsystem", &bytes, &own).await.unwrap();
    // Unsigned garbage is counted there, and so is what a stranger signs.
    for _ in 0..5 {
        admin.publish("ship1.command.hello.operatingsystem", Headers::new(), "garbage".into()).await.unwrap();
    }
    let stranger = KeyPair::new_user();
    for number in 0..3 {
        let seal = Seal::over(b"garbage", &stranger).unwrap();
        let headers = Headers::new().sealed(&seal).with_id(&format!("{number}{}", "x".repeat(500)));
        admin.publish("ship1.command.hello.strange", headers, "garbage".into()).await.unwrap();
    }
    let job = order.job.to_string();
    eventually("the node's word of an order that nobody wrote down", || {
        let output = world.steward(&["-o", "json", "audit", "verify"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["unaccounted"].as_array().unwrap().iter().any(|one| one["job"] == job.as_str())
    });
    let told = wait_for(&world, "what was discarded", &["--node", "ship1", "--action", "discarded"], |act| {
        act["reason"] == "unsigned"
    });
    let count: u64 = told.iter().map(|act| act["count"].as_u64().unwrap()).sum();
    assert!(count <= 5, "{told:?}");
    let sample = &told[0]["sample"];
    assert_eq!(sample["subject"], "ship1.command.hello.operatingsystem", "{told:?}");
    assert!(sample["key"].is_null() && sample["at"].is_string(), "{told:?}");
    let told = wait_for(&world, "the strangers", &["--node", "ship1", "--action", "discarded"], |act| {
        act["reason"] == "stranger" && act["sample"]["id"].as_str().is_some_and(|id| id.starts_with("2x"))
    });
    let sample = &told[0]["sample"];
    assert_eq!(sample["subject"], "ship1.command.hello.strange", "the last one stands for all: {told:?}");
    assert_eq!(sample["key"], stranger.public_key().as_str(), "{told:?}");
    assert_eq!(sample["id"].as_str().unwrap().len(), 64, "what a stranger writes is cut: {told:?}");
    let page = String::from_utf8(world.steward(&["audit", "ls", "--action", "discarded"]).stdout).unwrap();
    assert!(page.contains(&format!("said to be signed by {}", stranger.public_key())), "{page}");
}

#[test]
fn the_log_begins_with_how_the_fleet_was_made() {
    let mut world = World::up();
    let keys = bus::keys::FleetKeys::open(world.home()).unwrap();
    let made = acts(&world, &["--action", "fleet init"]);
    let of = |on: &str| made.iter().find(|act| act["on"] == on).map(|act| act["key"].as_str().unwrap().to_owned());
    let root: message::PublicKey =
        PublicKey::parse(world.json(0, &["context", "show"])["root"].as_str().unwrap()).unwrap();
    assert_eq!(of("root").unwrap(), root.as_str());
    assert_eq!(of("signing key").unwrap(), keys.signing_key());
    for role in keys.role_keys() {
        assert_eq!(of(&format!("role {}", role.role.as_str())).unwrap(), role.key);
    }
    for (account, (key, _)) in ["SYS", "CORE", "EDGE"].into_iter().zip(keys.account_jwts()) {
        assert_eq!(of(&format!("account {account}")).unwrap(), key);
    }
    assert_eq!(of("operator admin").unwrap(), own_pair(&world).public_key());
    assert!(of("station central").is_some());
    assert!(made.iter().all(|act| act["seq"] == 1 && act["writer"] == "admin"), "{made:?}");

    // Once: not by another operator, and not by the next start.
    let bob = world.json(0, &["operator", "add", "bob", "--role", "admin"]);
    world.json(0, &["--creds", bob["creds"].as_str().unwrap(), "call", HUB, "hello"]);
    world.stop_up();
    world.start_up();
    world.json(0, &["node", "label", HUB, "site=oslo"]);
    assert_eq!(acts(&world, &["--action", "fleet init"]).len(), made.len());
    assert_eq!(world.json(0, &["audit", "verify"])["whole"], true);
}

#[test]
fn a_broker_that_is_set_back_is_found() {
    let mut world = World::up();
    world.json(0, &["call", HUB, "hello"]);
    world.stop_up();
    let (store, older) = (world.path("broker"), world.path("older"));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy(&store, &older);
    world.start_up();
    world.json(0, &["node", "label", HUB, "site=oslo"]);
    world.json(0, &["node", "label", HUB, "site=bergen"]);
    assert_eq!(world.json(0, &["audit", "verify"])["whole"], true);
    world.stop_up();
    std::fs::remove_dir_all(&store).unwrap();
    copy(&older, &store);
    world.start_up();
    let report = world.json(3, &["audit", "verify"]);
    assert!(faults(&report).iter().any(|fault| fault["fault"] == "end"), "{report}");
    // The writer goes on where he was: what is gone stays a gap for ever.
    world.json(0, &["node", "label", HUB, "site=oslo"]);
    let report = world.json(3, &["audit", "verify"]);
    assert!(faults(&report).iter().any(|fault| fault["fault"] == "gap"), "{report}");
}

async fn connect(world: &World, creds: &std::path::Path, inbox: &str) -> Bus {
    Bus::connect(ConnectOptions {
        server: world.ready["server"].as_str().unwrap().to_owned(),
        ca: None,
        credentials: Credentials::load(creds).unwrap(),
        name: "test".into(),
        inbox_prefix: Some(inbox.into()),
        patient: false,
        ping_interval: Duration::from_secs(10),
        api_prefix: CORE_API,
    })
    .await
    .unwrap()
}
