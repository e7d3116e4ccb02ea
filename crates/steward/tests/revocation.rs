//! Throwing out: what a stolen credential is still good for once it was revoked. Nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bus::{Bus, BusError, CORE_API, ConnectOptions, Credentials, EDGE_API, Headers};
use bytes::Bytes;
use message::{Order, PublicKey, Seal};
use serde_json::Value;
use world::{World, eventually, lines, send};

/// The credentials of an agent that enrolled itself in this home.
fn stolen_from(world: &World, node: &str) -> Credentials {
    let bundle = std::fs::read(world.path(&format!("nodes/{node}/bundle.json"))).unwrap();
    let bundle: Value = serde_json::from_slice(&bundle).unwrap();
    Credentials::parse(bundle["creds"].as_str().unwrap(), "stolen").unwrap()
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

/// Waits until the broker has ended this connection, within the seconds that were promised.
async fn cut_off(bus: &Bus) {
    let mut link = bus.link();
    let down = tokio::time::timeout(Duration::from_secs(5), link.wait_for(|link| !link.up));
    assert!(down.await.is_ok(), "the connection still stands 5 s after the revocation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_is_cut_off_for_good() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let credentials = stolen_from(&world, "ship1");
    let thief = connect(&world, &credentials, "_INBOX.ship1", EDGE_API).await.unwrap();
    thief
        .publish("central.event.m.d", Headers::from(bus::clock::message_id()), Bytes::from_static(b"x"))
        .await
        .unwrap();
    let undecided = world.steward(&["node", "revoke", "ship1"]);
    assert_eq!(undecided.status.code(), Some(2), "{undecided:?}");

    world.json(0, &["node", "revoke", "ship1", "--yes"]);
    cut_off(&thief).await;
    assert_eq!(world.state("ship1"), "revoked");
    let refused = connect(&world, &credentials, "_INBOX.ship1", EDGE_API).await;
    assert!(matches!(refused, Err(BusError::Refused { .. })), "{:?}", refused.err());
    // Nobody is ordered who was thrown out, and its name cannot be had by knowing its key.
    assert_eq!(world.steward(&["run", "ship1", "--", "true"]).status.code(), Some(5));
    world.end_agent("ship1", 9);
    let again = world.steward(&["agent", "--name", "ship1"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("was revoked"), "{again:?}");
    // A second time is no error: the first may have broken off half-way.
    world.json(0, &["node", "revoke", "ship1", "--yes"]);

    // Across a restart of the broker, be it by crash or with all of `up`.
    let before = world.broker_pid();
    send(before, 9);
    eventually("the broker is back", || {
        world::pids(|line| line.contains("nats-server") && line.contains(world.home().to_str().unwrap()))
            .iter()
            .any(|pid| *pid != before)
            && world.steward(&["node", "ls"]).status.success()
    });
    let refused = connect(&world, &credentials, "_INBOX.ship1", EDGE_API).await;
    assert!(matches!(refused, Err(BusError::Refused { .. })), "{:?}", refused.err());
    world.stop_up();
    world.start_up();
    let refused = connect(&world, &credentials, "_INBOX.ship1", EDGE_API).await;
    assert!(matches!(refused, Err(BusError::Refused { .. })), "{:?}", refused.err());
    assert_eq!(world.state("ship1"), "revoked");
}

/// What a revoked node said is not believed, also where somebody else puts it on the broker for it: its life sign, its answers,
/// its events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_revoked_node_says_is_believed() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let pair = stolen_from(&world, "ship1");
    let job = world.json(4, &["run", "ship1", "--wait", "0s", "--sh", "sleep 60"])["job"].as_str().unwrap().to_owned();
    let stands = |world: &World| {
        let shown = world.steward(&["-o", "json", "job", "show", &job]);
        serde_json::from_slice::<Value>(&shown.stdout).unwrap()["nodes"]["ship1"].clone()
    };
    eventually("the command runs", || stands(&world)["state"] == "running");
    let admin = world.operator_bus().await;
    let sealed = |bytes: &Bytes| Headers::new().sealed(&Seal::over(bytes, pair.pair()).unwrap());
    let event = |word: &str| {
        let head = serde_json::json!({"v": 1, "kind": "event", "id": bus::clock::message_id().to_string(), "from": "ship1",
            "to": "central", "method": "m", "domain": "d", "created": bus::clock::now(), "count": 1});
        let line = serde_json::json!({"at": bus::clock::now(), "record": {"message": word}});
        Bytes::from(format!("{head}\n{line}\n"))
    };
    let said = |world: &World, word: &str| {
        let listed = world.steward(&["-o", "ndjson", "event", "ls"]);
        let lines = String::from_utf8(listed.stdout).unwrap();
        let found = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        found.filter(|line| line["record"]["message"] == word).map(|line| line["from"].clone()).collect::<Vec<_>>()
    };
    let tell = async |word: &str| {
        let bytes = event(word);
        admin
            .publish("central.event.m.d", sealed(&bytes).with_id(&bus::clock::message_id().to_string()), bytes)
            .await
            .unwrap();
    };
    tell("before").await;
    assert_eq!(said(&world, "before"), ["ship1"], "as long as it belongs to the fleet, its word counts");
    let sign = admin.kv_get("PRESENCE", "ship1").await.unwrap().unwrap();

    world.json(0, &["node", "revoke", "ship1", "--yes"]);
    assert!(world.json(0, &["node", "show", "ship1"])["last_seen"].is_string(), "what it said before counts");
    // The thief has the keys of the fleet as well, and so a way to the broker under that name; what he signs with the node's
    // own key is stored.
    let keys = bus::keys::FleetKeys::open(world.home()).unwrap();
    let creds = keys.node_user("ship1", &nkeys::KeyPair::new_user()).unwrap();
    let thief = connect(&world, &Credentials::of(&creds).unwrap(), "_INBOX.ship1", EDGE_API).await.unwrap();
    let mut forged: Value = serde_json::from_slice(&sign.payload).unwrap();
    forged["at"] = serde_json::to_value(bus::clock::now()).unwrap();
    let forged = Bytes::from(serde_json::to_vec(&forged).unwrap());
    let seal = Seal::over(&forged, pair.pair()).unwrap();
    thief.kv_put("PRESENCE", "ship1", forged, Some(&seal)).await.unwrap();
    tell("after").await;
    let reply = serde_json::json!({"v": 1, "kind": "reply", "order": order_of(&admin, &job).await, "job": job, "node": "ship1",
        "method": "shellcommand", "domain": "operatingsystem", "step": 3, "history": [
            {"state": "delivered", "at": bus::clock::now()}, {"state": "running", "at": bus::clock::now()},
            {"state": "succeeded", "at": bus::clock::now()}], "outcome": {"exit_code": 0}});
    let reply = Bytes::from(serde_json::to_vec(&reply).unwrap());
    let headers = sealed(&reply).with_id(&bus::clock::message_id().to_string());
    thief.publish(&format!("central.reply.{job}.ship1"), headers, reply).await.unwrap();

    assert_eq!(world.state("ship1"), "revoked");
    // The one before it is gone: the broker keeps the last alone.
    assert_eq!(world.json(0, &["node", "show", "ship1"])["last_seen"], Value::Null, "its life sign counts no more");
    assert_eq!(said(&world, "after"), [Value::Null], "what it reports comes from nobody");
    assert_eq!(said(&world, "before"), ["ship1"], "what was stored before is what it was");
    assert_eq!(stands(&world)["state"], "interrupted", "an answer that it gave afterwards is none");
    world.end_agent("ship1", 9);
}

/// The id of the one order of a job.
async fn order_of(bus: &Bus, job: &str) -> String {
    let record = bus.kv_get("JOBS", job).await.unwrap().unwrap();
    let body: Value = serde_json::from_slice(&record.payload).unwrap();
    let chunk: message::OrderChunk = serde_json::from_str(body["inline"].as_str().unwrap()).unwrap();
    chunk.orders[0].id.to_string()
}

#[test]
fn two_revocations_with_two_copies_of_the_keys_both_hold() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.agent("ship2", &[]);
    let copy = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp").arg("-a").arg(world.path("keys")).arg(copy.path()).status().unwrap();
    assert!(copied.success());
    world.json(0, &["node", "revoke", "ship1", "--yes"]);
    // The other copy knows nothing of the first revocation.
    for part in ["keys", "keys.mine"] {
        let (from, to) = if part == "keys" { ("keys", "keys.mine") } else { ("keys.theirs", "keys") };
        if part == "keys.mine" {
            std::fs::rename(copy.path().join("keys"), world.path("keys.theirs")).unwrap();
        }
        std::fs::rename(world.path(from), world.path(to)).unwrap();
    }
    world.json(0, &["node", "revoke", "ship2", "--yes"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for ship in ["ship1", "ship2"] {
        let inbox = format!("_INBOX.{ship}");
        let refused = runtime.block_on(connect(&world, &stolen_from(&world, ship), &inbox, EDGE_API));
        assert!(matches!(refused, Err(BusError::Refused { .. })), "{ship}: {:?}", refused.err());
    }
}

/// An order of `job` once more, under an id of its own and signed by `thief`.
async fn forged(bus: &Bus, job: &str, thief: &Credentials) -> (Bytes, Headers) {
    let record = bus.kv_get("JOBS", job).await.unwrap().unwrap();
    let body: Value = serde_json::from_slice(&record.payload).unwrap();
    let chunk: message::OrderChunk = serde_json::from_str(body["inline"].as_str().unwrap()).unwrap();
    let mut order: Order = serde_json::from_str(&chunk.orders[0].order).unwrap();
    order.id = bus::clock::order_id();
    let bytes = Bytes::from(order.to_bytes().unwrap());
    let seal = Seal::over(&bytes, thief.pair()).unwrap();
    (bytes, Headers::from(bus::clock::message_id()).sealed(&seal))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_operator_orders_nothing_more_anywhere() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.agent("ship2", &[]);
    let (witness, release) = (world.path("witness"), world.path("release"));
    let list_before = std::fs::read(world.path("trust.json")).unwrap();
    let added = world.json(0, &["operator", "add", "bob"]);
    let bob = Credentials::load(Path::new(added["creds"].as_str().unwrap())).unwrap();
    assert_eq!(added["key"], PublicKey::of(bob.pair()).as_str());
    let with_bob = std::fs::read(world.path("trust.json")).unwrap();
    assert_ne!(list_before, with_bob);

    // Bob orders: something that runs, something that waits behind it, something for a node that is away.
    let line = format!("echo ran >> {}; while ! [ -e {} ]; do sleep 0.05; done", witness.display(), release.display());
    let runs = world.json(4, &["--context", "bob", "run", "ship1", "--wait", "0s", "--sh", &line]);
    eventually("bob's first order runs", || lines(&witness).len() == 1);
    let mark = |what: &str| format!("echo {what} >> {}", witness.display());
    let waits = world.json(4, &["--context", "bob", "run", "ship1", "--wait", "0s", "--sh", &mark("waited")]);
    let id = |job: &Value| job["job"].as_str().unwrap().to_owned();
    let stands = |world: &World, job: &Value, node: &str| {
        let shown = world.steward(&["-o", "json", "job", "show", &id(job)]);
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown["nodes"][node].clone()
    };
    eventually("the second one waits at the node", || stands(&world, &waits, "ship1")["state"] == "delivered");
    world.end_agent("ship2", 15);
    let away = world.json(4, &["--context", "bob", "run", "ship2", "--wait", "0s", "--sh", &mark("away")]);
    // He has signed something about a node as well.
    world.json(0, &["--context", "bob", "node", "label", "ship1", "by=bob"]);
    let his_bus = connect(&world, &bob, "_INBOX_bob", CORE_API).await.unwrap();

    let undecided = world.steward(&["operator", "revoke", "bob"]);
    assert_eq!(undecided.status.code(), Some(2), "{undecided:?}");
    let oneself = world.steward(&["operator", "revoke", "admin", "--yes"]);
    assert_eq!(oneself.status.code(), Some(2), "{oneself:?}");
    let gone = world.json(0, &["operator", "revoke", "bob", "--yes"]);
    assert_eq!(gone["records_signed_anew"], 1);

    // At the broker: at once, and for good.
    cut_off(&his_bus).await;
    let refused = connect(&world, &bob, "_INBOX_bob", CORE_API).await;
    assert!(matches!(refused, Err(BusError::Refused { .. })), "{:?}", refused.err());
    // At a node that is connected: what waited does not begin, what ran goes on.
    eventually("what waited is withdrawn", || stands(&world, &waits, "ship1")["state"] == "cancelled");
    let reason = stands(&world, &waits, "ship1")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("bob"), "{reason}");
    // With somebody else's access to NATS, the stolen key is good for nothing either.
    let admin = world.operator_bus().await;
    const SUBJECT: &str = "ship1.command.shellcommand.other";
    let replay = async |subject: &str| {
        let (bytes, headers) = forged(&admin, &id(&waits), &bob).await;
        let text = String::from_utf8(bytes.to_vec()).unwrap().replace("operatingsystem", "other");
        let text = if subject == SUBJECT { Bytes::from(text) } else { bytes };
        let headers = if subject == SUBJECT {
            Headers::from(bus::clock::message_id()).sealed(&Seal::over(&text, bob.pair()).unwrap())
        } else {
            headers
        };
        admin.publish(subject, headers, text).await.unwrap();
    };
    replay(SUBJECT).await;
    std::fs::write(&release, "").unwrap();
    eventually("what ran has ended", || stands(&world, &runs, "ship1")["state"] == "succeeded");

    // The broker's disk in foreign hands: the list of before, of which the root's signature holds.
    for old in [&list_before, &with_bob] {
        admin.kv_put("POLICY", "trust", Bytes::from(old.clone()), None).await.unwrap();
        replay(SUBJECT).await;
        // The node has judged it before anything else changes.
        world.json(0, &["run", "ship1", "--domain", "other", "--", "true"]);
        assert_eq!(lines(&witness), ["ran"]);
    }
    world.end_agent("ship1", 9);
    world.agent("ship1", &[]);
    replay(SUBJECT).await;
    // The node that was away has kept the list of its last connect; with the newest at the broker, it hears of it.
    let newest = std::fs::read(world.path("trust.json")).unwrap();
    admin.kv_put("POLICY", "trust", Bytes::from(newest), None).await.unwrap();
    world.agent("ship2", &[]);
    eventually("the order for the node that was away has an end", || {
        stands(&world, &away, "ship2")["state"] == "rejected"
    });
    let after = world.json(0, &["run", "ship1,ship2", "--wait", "30s", "--domain", "other", "--", "true"]);
    assert_eq!(after["counts"]["succeeded"], 2, "behind all of them an operator's order gets through");
    assert_eq!(lines(&witness), ["ran"], "nothing of his began after he was thrown out");

    // What he had signed about nodes stands, in the name of who threw him out.
    let shown = world.json(0, &["node", "show", "ship1"]);
    assert_eq!((shown["labels"]["by"].as_str(), shown["state"].as_str()), (Some("bob"), Some("online")));
    let listed = world.json(0, &["operator", "ls"]);
    let states: Vec<_> =
        listed.as_array().unwrap().iter().map(|one| (one["name"].as_str(), one["state"].as_str())).collect();
    assert_eq!(states, [(Some("admin"), Some("active")), (Some("bob"), Some("revoked"))]);
    assert_eq!(world.steward(&["--context", "bob", "node", "ls"]).status.code(), Some(1));
}

#[test]
fn the_list_of_operators_changes_by_the_root_key_alone() {
    let world = World::up();
    let kept = world.path("offline.nk");
    std::fs::rename(world.path("keys/fleet-root.nk"), &kept).unwrap();
    let sentence = |arguments: &[&str]| {
        let output = world.steward(arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = sentence(&["operator", "add", "anna"]);
    assert!(missing.contains("fleet-root.nk") && missing.contains("--root"), "{missing}");
    let wrong = world.path("wrong.nk");
    std::fs::copy(world.path("keys/fleet-signing.nk"), &wrong).unwrap();
    let refused = sentence(&["operator", "add", "anna", "--root", wrong.to_str().unwrap()]);
    assert!(refused.contains("this fleet's root"), "{refused}");
    std::fs::set_permissions(&kept, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let exposed = sentence(&["operator", "add", "anna", "--root", kept.to_str().unwrap()]);
    assert!(exposed.contains("chmod 600"), "{exposed}");
    std::fs::set_permissions(&kept, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();

    // One file is all that a new operator needs, in a home of his own.
    let bundle = world.path("anna.operator");
    let (kept, bundle) = (kept.to_str().unwrap(), bundle.to_str().unwrap());
    let added = world.json(0, &["operator", "add", "anna", "--role", "admin", "--out", bundle, "--root", kept]);
    assert_eq!(added["roles"], serde_json::json!(["admin"]));
    let hers = tempfile::tempdir().unwrap();
    let at_hers =
        |arguments: &[&str]| world::program().arg("--home").arg(hers.path()).args(arguments).output().unwrap();
    assert!(at_hers(&["context", "import", bundle]).status.success());
    let ran = at_hers(&["run", world::HUB, "--", "echo", "anna was here"]);
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout).lines().filter(|line| line.contains("anna was here")).count(),
        1,
        "{ran:?}"
    );
    // It is no key to the fleet: she can admit or throw out nobody.
    assert_eq!(at_hers(&["operator", "add", "eve"]).status.code(), Some(1));
    assert_eq!(at_hers(&["node", "revoke", world::HUB, "--yes"]).status.code(), Some(1));
    assert_eq!(world.state(world::HUB), "online");
    // Names are had once.
    let twice = world.steward(&["operator", "add", "anna", "--root", kept, "--out", world.path("x").to_str().unwrap()]);
    assert_eq!(twice.status.code(), Some(2), "{twice:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_a_new_key_under_its_old_name() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.json(0, &["node", "label", "ship1", "site=oslo"]);
    world.json(0, &["run", "ship1", "--", "true"]);
    let old = stolen_from(&world, "ship1");
    let thief = connect(&world, &old, "_INBOX.ship1", EDGE_API).await.unwrap();
    world.json(0, &["node", "rotate", "ship1"]);
    cut_off(&thief).await;
    let refused = connect(&world, &old, "_INBOX.ship1", EDGE_API).await;
    assert!(matches!(refused, Err(BusError::Refused { .. })), "{:?}", refused.err());
    world.end_agent("ship1", 15);
    world.agent("ship1", &[]);
    world.json(0, &["run", "ship1", "--", "true"]);
    assert_eq!(world.json(0, &["node", "show", "ship1"])["labels"]["site"], "oslo");

    // What was ordered of the old key and was not answered has an end, also for somebody who is waiting for it; the new key
    // is not asked, and nothing is run twice.
    world.end_agent("ship1", 15);
    let left = world.json(4, &["run", "ship1", "--wait", "0s", "--", "true"]);
    let left = left["job"].as_str().unwrap().to_owned();
    let mut waiting = world::program();
    waiting.arg("--home").arg(world.home()).args(["-o", "json", "job", "watch", &left]).stdout(Stdio::piped());
    let waiting = waiting.spawn().unwrap();
    world.json(0, &["node", "rotate", "ship1"]);
    world.agent("ship1", &[]);
    world.json(0, &["run", "ship1", "--", "true"]);
    let watched = waiting.wait_with_output().unwrap();
    let watched: serde_json::Value = serde_json::from_slice(&watched.stdout).unwrap();
    for told in [watched, world.json_any(&["job", "show", &left])] {
        assert_eq!(told["nodes"]["ship1"]["state"], "interrupted", "{told}");
        assert!(told["nodes"]["ship1"]["reason"].as_str().unwrap().contains("another key"), "{told}");
    }
    let again = world.json(0, &["job", "retry", &left]);
    assert_eq!(again["counts"]["succeeded"], 1, "{again}");

    // A unit that was thrown out comes back by an explicit act, and not by its old key.
    world.json(0, &["node", "revoke", "ship1", "--yes"]);
    world.end_agent("ship1", 9);
    let bundle = world.path("ship1.bundle");
    world.json(0, &["node", "rotate", "ship1", "--out", bundle.to_str().unwrap()]);
    world.agent("ship1", &["--bundle", bundle.to_str().unwrap()]);
    world.json(0, &["run", "ship1", "--wait", "30s", "--", "true"]);
    let nobody = world.steward(&["node", "rotate", "ship7", "--out", world.path("ship7").to_str().unwrap()]);
    assert_eq!(nobody.status.code(), Some(5), "{nobody:?}");
    assert!(!world.path("ship7").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_get_new_keys_while_the_fleet_goes_on() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let creds = world.path("creds/admin.creds");
    let old = Credentials::load(&creds).unwrap();
    let his_bus = connect(&world, &old, "_INBOX_admin", CORE_API).await.unwrap();
    let job = world.json(0, &["run", "ship1", "--", "true"]);
    let rotated = world.json(0, &["operator", "rotate", "admin"]);
    cut_off(&his_bus).await;
    assert_eq!(PublicKey::of(old.pair()).as_str(), rotated["old_key"].as_str().unwrap());
    let refused = connect(&world, &old, "_INBOX_admin", CORE_API).await;
    assert!(matches!(refused, Err(BusError::Refused { .. })), "{:?}", refused.err());
    // Nodes, their records and earlier jobs are what they were.
    world.json(0, &["run", "ship1", "--", "true"]);
    let shown = world.json(0, &["job", "show", job["job"].as_str().unwrap()]);
    assert_eq!(shown["nodes"], job["nodes"]);
    let (bytes, headers) = forged(&world.operator_bus().await, job["job"].as_str().unwrap(), &old).await;
    world.operator_bus().await.publish("ship1.command.shellcommand.operatingsystem", headers, bytes).await.unwrap();

    // With both for a while: what the old key has ordered still counts.
    world.json(0, &["operator", "add", "bob"]);
    world.end_agent("ship1", 15);
    let away = world.json(4, &["--context", "bob", "run", "ship1", "--wait", "0s", "--", "true"]);
    let kept = world.json(0, &["operator", "rotate", "bob", "--keep-old"]);
    assert_eq!(world.steward(&["operator", "rotate", "bob"]).status.code(), Some(2), "he has two already");
    world.agent("ship1", &[]);
    let away = away["job"].as_str().unwrap();
    eventually("the old key's order is done", || world.steward(&["job", "show", away]).status.success());
    let done = world.json(0, &["job", "watch", away]);
    assert_eq!(done["counts"]["succeeded"], 1, "{done}");
    world.json(0, &["operator", "revoke", "bob", "--key", kept["old_key"].as_str().unwrap(), "--yes"]);
    world.json(0, &["--context", "bob", "run", "ship1", "--", "true"]);
}
