//! Enrolment by token: units knock, operators answer, and nobody gains anything by a token but to be heard.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bus::keys::{knocker, knocker_inbox};
use bus::{Bus, BusError, ConnectOptions, Credentials, KNOCK_API, Knocked};
use bytes::Bytes;
use futures::{StreamExt, stream};
use message::admission::{AdmissionKind, KnockKind, fingerprint};
use message::{Admission, Decision, EnrolToken, Knock, NodeName, PublicKey, Seal, SealedDocument, Timestamp, Trust};
use nkeys::KeyPair;
use serde_json::Value;
use world::{World, eventually, lines};

/// Makes a token, and tells where it is.
fn token(world: &World, name: &str, more: &[&str]) -> String {
    let path = world.path(name).to_str().unwrap().to_owned();
    world.json(0, &[&["node", "token", "--out", &path], more].concat());
    path
}

fn read(token: &str) -> EnrolToken {
    EnrolToken::parse(&std::fs::read_to_string(token).unwrap()).unwrap()
}

/// Starts an agent that knocks, with a state directory of its own.
fn start(world: &mut World, name: &str, token: &str) -> String {
    let state = world.path(&format!("state-{name}")).to_str().unwrap().to_owned();
    world.start_agent(name, &["--token", token, "--state", &state]);
    state
}

/// The entry of `node ls`.
fn entry(world: &World, name: &str) -> Value {
    let nodes = world.json(0, &["node", "ls"]);
    nodes.as_array().unwrap().iter().find(|node| node["name"] == name).cloned().unwrap_or_default()
}

fn log(world: &World, name: &str) -> String {
    lines(&world.path(&format!("{name}.log"))).join("\n")
}

fn kept(state: &str) -> Value {
    serde_json::from_slice(&std::fs::read(Path::new(state).join("enrolment.json")).unwrap()).unwrap()
}

/// A unit that is nothing but a key.
struct Unit {
    pair: KeyPair,
    bus: Bus,
}

async fn try_unit(token: &EnrolToken) -> Result<Unit, BusError> {
    let pair = KeyPair::new_user();
    let creds = knocker(&token.key().unwrap(), token.account.as_str(), &pair).unwrap();
    let bus = Bus::connect(ConnectOptions {
        server: token.server.clone(),
        ca: None,
        credentials: Credentials::of(&creds).unwrap(),
        name: "unit".into(),
        inbox_prefix: Some(knocker_inbox(&pair.public_key())),
        patient: false,
        ping_interval: Duration::from_secs(10),
        api_prefix: KNOCK_API,
    })
    .await?;
    Ok(Unit { pair, bus })
}

impl Unit {
    fn key(&self) -> PublicKey {
        PublicKey::of(&self.pair)
    }

    fn says(&self, token: &EnrolToken, name: &str) -> Knock {
        Knock {
            v: 1,
            kind: KnockKind::Knock,
            token: token.id,
            name: NodeName::new(name).unwrap(),
            key: self.key(),
            tls_key: None,
            version: "0".into(),
            at: Timestamp::from_ms(0),
        }
    }

    async fn knock(&self, token: &EnrolToken, name: &str) -> Result<Knocked, BusError> {
        let knock = self.says(token, name);
        let bytes = serde_json::to_vec(&knock).unwrap();
        let seal = Seal::over(&bytes, &self.pair).unwrap();
        self.bus.knock(&knock.subject(), Bytes::from(bytes), &seal).await
    }
}

/// A unit that has knocked. It tries again what the broker was too busy for, as an agent does.
async fn knocked(token: &EnrolToken, name: &str) -> Unit {
    let until = Instant::now() + Duration::from_secs(60);
    let busy = |error: &BusError| {
        Instant::now() < until
            && matches!(error, BusError::Unreachable { .. } | BusError::Disconnected | BusError::Timeout { .. })
    };
    let unit = loop {
        match try_unit(token).await {
            Ok(unit) => break unit,
            Err(error) if busy(&error) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{name} is not let in: {error}"),
        }
    };
    loop {
        match unit.knock(token, name).await {
            // The second time, if the first was kept and the broker's answer to it was lost.
            Ok(Knocked::Waits | Knocked::WaitsAlready) => return unit,
            Err(error) if busy(&error) => tokio::time::sleep(Duration::from_millis(100)).await,
            other => panic!("{name} cannot knock: {other:?}"),
        }
    }
}

/// What `accept` says of one that it refuses.
fn refused(world: &World, arguments: &[&str]) -> String {
    let answer = world.json(3, &[&["node", "accept", "--yes"], arguments].concat());
    assert_eq!(answer["accepted"].as_array().unwrap().len(), 0, "{answer}");
    answer["refused"][0]["reason"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_knocks_waits_and_is_a_node_like_any_other_once_it_is_accepted() {
    let mut world = World::up();
    let token = token(&world, "fleet.token", &["--uses", "1", "--label", "site=oslo"]);
    assert_eq!(std::fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o600);
    let state = start(&mut world, "ship7", &token);
    world.wait_for_state("ship7", "pending");
    let print = entry(&world, "ship7")["fingerprint"].as_str().unwrap().to_owned();
    eventually("the agent shows its fingerprint", || log(&world, "ship7").contains(&print));
    let seed = kept(&state)["seed"].as_str().unwrap().to_owned();
    let mode = std::fs::metadata(Path::new(&state).join("enrolment.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Nobody orders it, and nothing happens by accident.
    assert_eq!(world.steward(&["run", "ship7", "--", "true"]).status.code(), Some(5));
    assert_eq!(world.steward(&["node", "accept"]).status.code(), Some(2));
    let unasked = world.steward(&["node", "accept", "ship7"]);
    assert_eq!(unasked.status.code(), Some(2), "{unasked:?}");
    assert!(String::from_utf8_lossy(&unasked.stderr).contains(&print), "what is asked about is shown");
    assert_eq!(world.steward(&["node", "accept", "ship7", "--yes", "--fingerprint", "AAAA"]).status.code(), Some(5));
    assert_eq!(entry(&world, "ship7")["state"], "pending");

    // A restart keeps key and place.
    world.end_agent("ship7", 9);
    start(&mut world, "ship7", &token);
    let accepted = world.json(0, &["node", "accept", "ship*", "--fingerprint", &print.to_lowercase(), "--yes"]);
    assert_eq!(accepted["accepted"][0]["fingerprint"], print.as_str());
    world.wait_for_state("ship7", "online");
    assert_eq!(entry(&world, "ship7")["labels"]["site"], "oslo");
    world.json(0, &["run", "ship7", "--", "true"]);

    // The private half is nowhere but there.
    let found = std::process::Command::new("grep").args(["-rl", &seed]).arg(world.home()).output().unwrap();
    let places = String::from_utf8(found.stdout).unwrap();
    assert_eq!(places.trim(), format!("{state}/enrolment.json"));

    // With or without the token, which is used up.
    world.end_agent("ship7", 15);
    world.agent("ship7", &["--state", &state]);
    world.end_agent("ship7", 15);
    world.agent("ship7", &["--token", &token, "--state", &state]);
    world.json(0, &["run", "ship7", "--", "true"]);
    let other = world.steward(&["agent", "--name", "ship8", "--state", &state]);
    assert_eq!(other.status.code(), Some(2), "{other:?}");
    knocked(&read(&token), "ship8").await;
    assert!(refused(&world, &["ship8"]).contains("used up"));
    assert_eq!(world.json(0, &["node", "token", "ls"])[0]["state"], "used up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_unit_is_told_so_and_does_not_come_back_by_itself() {
    let mut world = World::up();
    let token = token(&world, "fleet.token", &["--uses", "9"]);
    let state = start(&mut world, "ship7", &token);
    world.wait_for_state("ship7", "pending");
    assert_eq!(world.steward(&["node", "reject", "ship7"]).status.code(), Some(2));
    world.json(0, &["node", "reject", "ship7", "--yes"]);
    eventually("it says so", || log(&world, "ship7").contains("admin rejected ship7"));
    assert_eq!(entry(&world, "ship7"), Value::Null);
    let again = world.steward(&["agent", "--name", "ship7", "--token", &token, "--state", &state]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("admin rejected ship7"), "{again:?}");
    // By force, with the same key: it is not shown, and not let in by a glob.
    let unit = knocked(&read(&token), "ship9").await;
    world.json(0, &["node", "reject", "ship9", "--yes"]);
    assert_eq!(unit.knock(&read(&token), "ship9").await.unwrap(), Knocked::Waits);
    assert_eq!(entry(&world, "ship9"), Value::Null);
    assert_eq!(world.steward(&["node", "accept", "--all", "--yes"]).status.code(), Some(5));
    // Where its file is removed, it is another unit.
    std::fs::remove_file(Path::new(&state).join("enrolment.json")).unwrap();
    world.end_agent("ship7", 9);
    start(&mut world, "ship7", &token);
    world.wait_for_state("ship7", "pending");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_exists_is_not_taken_over() {
    let mut world = World::up();
    let path = token(&world, "fleet.token", &["--uses", "9"]);
    let token = read(&path);
    world.agent("ship1", &[]);
    let before = entry(&world, "ship1");
    let unit = knocked(&token, "ship1").await;
    let reason = refused(&world, &["ship1"]);
    assert!(reason.contains("is enrolled") && reason.contains("node rotate ship1"), "{reason}");
    assert!(unit.bus.kv_get("ADMISSIONS", &Decision::Accepted.at(&unit.key())).await.unwrap().is_none());
    let states = || {
        let nodes = world.json(0, &["node", "ls"]);
        let of: Vec<String> = nodes
            .as_array()
            .unwrap()
            .iter()
            .filter(|node| node["name"] == "ship1")
            .map(|node| node["state"].as_str().unwrap().to_owned())
            .collect();
        of
    };
    assert_eq!(states(), ["online", "pending"]);
    assert_eq!(entry(&world, "ship1")["labels"], before["labels"]);
    world.json(0, &["node", "revoke", "ship1", "--yes"]);
    let reason = refused(&world, &["ship1"]);
    assert!(reason.contains("was revoked"), "{reason}");

    // Two with one name: neither by a glob, one by its key, and then the other no more.
    let (one, two) = (knocked(&token, "ship2").await, knocked(&token, "ship2").await);
    let answer = world.json(3, &["node", "accept", "ship2*", "--yes"]);
    assert_eq!((answer["accepted"].as_array().unwrap().len(), answer["refused"].as_array().unwrap().len()), (0, 2));
    let reason = answer["refused"][0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains(&fingerprint(&one.key())) && reason.contains(&fingerprint(&two.key())), "{reason}");
    world.json(0, &["node", "accept", "--fingerprint", &fingerprint(&two.key()), "--yes"]);
    assert_eq!(world.json(0, &["node", "show", "ship2"])["name"], "ship2");
    assert!(refused(&world, &["ship2"]).contains("is enrolled"));
    // Neither refusal has cost a use.
    assert_eq!(world.json(0, &["node", "token", "ls"])[0]["used"], 1);
    // A knock that was cut off from its answer is answered again, and costs nothing.
    assert_eq!(two.knock(&token, "ship2").await.unwrap(), Knocked::Waits);
    world.json(0, &["node", "accept", "--fingerprint", &fingerprint(&two.key()), "--yes"]);
    assert_eq!(world.json(0, &["node", "token", "ls"])[0]["used"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_over_lets_nobody_knock_or_in() {
    let mut world = World::up();
    let brief = token(&world, "brief.token", &["--uses", "9", "--expires", "5s"]);
    let unit = knocked(&read(&brief), "ship1").await;
    eventually("the broker ends it", || !unit.bus.is_up());
    assert!(matches!(try_unit(&read(&brief)).await, Err(BusError::Refused { .. })));
    let reason = refused(&world, &["ship1"]);
    assert!(reason.contains("has expired"), "{reason}");
    start(&mut world, "ship2", &brief);
    eventually("the agent says so", || log(&world, "ship2").contains("it has expired"));

    let long = token(&world, "long.token", &["--uses", "9"]);
    let unit = knocked(&read(&long), "ship3").await;
    let id = read(&long).id.to_string();
    assert_eq!(world.steward(&["node", "token", "revoke", "abc"]).status.code(), Some(5));
    world.json(0, &["node", "token", "revoke", &id[..8]]);
    eventually("the broker ends it", || !unit.bus.is_up());
    assert_eq!(entry(&world, "ship3"), Value::Null, "who waited by it is gone");
    assert!(matches!(try_unit(&read(&long)).await, Err(BusError::Refused { .. })));
    start(&mut world, "ship4", &long);
    eventually("the agent says so", || log(&world, "ship4").contains("it was revoked"));
    let states: Vec<_> = world.json(0, &["node", "token", "ls"]).as_array().unwrap().clone();
    let states: Vec<_> = states.iter().map(|token| token["state"].as_str().unwrap().to_owned()).collect();
    assert_eq!(states, ["revoked", "expired"]);
}

/// With everything but an operator's key: the broker's disk, say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_tells_an_older_record_stretches_no_token() {
    let world = World::up();
    let path = token(&world, "fleet.token", &["--uses", "2"]);
    let token = read(&path);
    let bus = world.operator_bus().await;
    let at = format!("token.{}", token.id);
    let first = bus.kv_get("ADMISSIONS", &at).await.unwrap().unwrap();
    for name in ["ship1", "ship2"] {
        knocked(&token, name).await;
        world.json(0, &["node", "accept", name, "--yes"]);
    }
    // The record of when it was new, which an operator has signed.
    bus.kv_put("ADMISSIONS", &at, first.payload.clone(), Some(&first.seal().unwrap())).await.unwrap();
    knocked(&token, "ship3").await;
    assert!(refused(&world, &["ship3"]).contains("used up"));
    // One with more uses, which a stranger has signed.
    let more = String::from_utf8(first.payload.to_vec()).unwrap().replace("\"uses\":2", "\"uses\":90");
    for pair in [KeyPair::new_user(), token.key().unwrap()] {
        let seal = Seal::over(more.as_bytes(), &pair).unwrap();
        bus.kv_put("ADMISSIONS", &at, Bytes::from(more.clone()), Some(&seal)).await.unwrap();
        assert!(refused(&world, &["ship3"]).contains("not one that an operator"));
    }
    bus.kv_put("ADMISSIONS", &at, Bytes::from(more), Some(&first.seal().unwrap())).await.unwrap();
    assert!(refused(&world, &["ship3"]).contains("not one that an operator"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_no_operator_of_now_has_signed_is_not_believed() {
    let mut world = World::up();
    let added = world.json(0, &["operator", "add", "bob"]);
    let bob = Credentials::load(Path::new(added["creds"].as_str().unwrap())).unwrap();
    let with_bob: SealedDocument = serde_json::from_slice(&std::fs::read(world.path("trust.json")).unwrap()).unwrap();
    let path = token(&world, "fleet.token", &["--uses", "9"]);
    let token = read(&path);
    world.json(0, &["operator", "revoke", "bob", "--yes"]);
    let newest: SealedDocument = serde_json::from_slice(&std::fs::read(world.path("trust.json")).unwrap()).unwrap();
    let state = start(&mut world, "ship7", &path);
    world.wait_for_state("ship7", "pending");
    let key = PublicKey::of(&KeyPair::from_seed(kept(&state)["seed"].as_str().unwrap()).unwrap());
    let keys = bus::keys::FleetKeys::open(world.home()).unwrap();
    let jwt = keys.node_jwt("ship7", key.as_str()).unwrap();
    let stranger = KeyPair::new_user();
    let answer = |trust: &SealedDocument| Admission {
        v: 1,
        kind: AdmissionKind::Admission,
        decision: Decision::Accepted,
        token: token.id,
        name: NodeName::new("ship7").unwrap(),
        key: key.clone(),
        jwt: Some(jwt.clone()),
        client: None,
        trust: trust.clone().into(),
        policy: None,
        by: "admin".into(),
        at: Timestamp::from_ms(0),
    };
    // A list that the stranger has sealed himself.
    let mut list = Trust::open(&newest, &token.root).unwrap();
    list.serial += 1;
    list.operators.push(message::Operator::admin("eve", PublicKey::of(&stranger)));
    let own_list = SealedDocument::new(serde_json::to_string(&list).unwrap(), &stranger).unwrap();
    let admin = world.operator_bus().await;
    let tries = [
        (answer(&newest), &stranger, "is no operator of this fleet"),
        (Admission { decision: Decision::Rejected, ..answer(&newest) }, &stranger, "is no operator of this fleet"),
        (answer(&own_list), &stranger, "root"),
        (answer(&newest), bob.pair(), "is no operator of this fleet"),
        (Admission { decision: Decision::Rejected, ..answer(&newest) }, bob.pair(), "is no operator of this fleet"),
        // The list of when he was one is as new as the token: what counts is what the unit then finds as a node.
        (answer(&with_bob), bob.pair(), "no operator has made a record"),
    ];
    for (answer, signer, says) in tries {
        std::fs::write(world.path("ship7.log"), "").unwrap();
        let bytes = serde_json::to_vec(&answer).unwrap();
        let seal = Seal::over(&bytes, signer).unwrap();
        admin.kv_put("ADMISSIONS", &answer.decision.at(&key), Bytes::from(bytes), Some(&seal)).await.unwrap();
        eventually(says, || log(&world, "ship7").contains(says));
        if answer.decision == Decision::Rejected {
            admin.kv_delete("ADMISSIONS", &answer.decision.at(&key)).await.unwrap();
        }
        assert_eq!(kept(&state).get("answer"), None);
    }
    // With a record by him as well, which an operator on the newest list has not signed.
    let record = serde_json::json!({
        "v": 1, "kind": "node", "name": "ship7", "key": key, "labels": {}, "enrolled": Timestamp::from_ms(0), "by": "bob",
    });
    let record = serde_json::to_vec(&record).unwrap();
    let seal = Seal::over(&record, bob.pair()).unwrap();
    admin.kv_put("NODES", "ship7", Bytes::from(record), Some(&seal)).await.unwrap();
    // The unit hears of answers only: it looks again when one is written.
    let bytes = serde_json::to_vec(&answer(&with_bob)).unwrap();
    let seal = Seal::over(&bytes, bob.pair()).unwrap();
    admin.kv_put("ADMISSIONS", &Decision::Accepted.at(&key), Bytes::from(bytes), Some(&seal)).await.unwrap();
    eventually("his record is no better", || log(&world, "ship7").contains("who is no operator of this fleet now"));
    admin.kv_delete("NODES", "ship7").await.unwrap();
    // An answer of the operator's, altered at one place.
    let bytes = serde_json::to_vec(&answer(&newest)).unwrap();
    let credentials = Credentials::load(&world.path("creds/admin.creds")).unwrap();
    let seal = Seal::over(&bytes, credentials.pair()).unwrap();
    let altered = String::from_utf8(bytes).unwrap().replace("ship7", "ship8");
    std::fs::write(world.path("ship7.log"), "").unwrap();
    admin.kv_put("ADMISSIONS", &Decision::Accepted.at(&key), Bytes::from(altered), Some(&seal)).await.unwrap();
    eventually("it is altered", || log(&world, "ship7").contains("signature does not fit"));
    assert_eq!(kept(&state).get("answer"), None);
    // And behind all of them the genuine one.
    eventually("it knocks still", || entry(&world, "ship7")["state"] == "pending");
    world.json(0, &["node", "accept", "ship7", "--yes"]);
    world.wait_for_state("ship7", "online");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_at_the_door_is_believed_of_its_own_key_only() {
    let world = World::up();
    let path = token(&world, "fleet.token", &["--uses", "9"]);
    let token = read(&path);
    let (unit, victim) = (try_unit(&token).await.unwrap(), try_unit(&token).await.unwrap());
    // In the name of another's key, its own key's signature, or none.
    let forged = Knock { key: victim.key(), ..unit.says(&token, "ship1") };
    let bytes = Bytes::from(serde_json::to_vec(&forged).unwrap());
    let seal = Seal::over(&bytes, &unit.pair).unwrap();
    let place = unit.says(&token, "ship1").subject();
    unit.bus.knock(&place, bytes.clone(), &seal).await.unwrap();
    assert_eq!(entry(&world, "ship1"), Value::Null);
    assert_eq!(world.steward(&["node", "accept", "--all", "--yes"]).status.code(), Some(5));
    // Names that would be paths or wildcards.
    for name in ["../../x", "a/b", "*", ">", "a.b", "all"] {
        let unit = try_unit(&token).await.unwrap();
        let bytes = serde_json::to_string(&unit.says(&token, "ship1")).unwrap().replace("ship1", name);
        let seal = Seal::over(bytes.as_bytes(), &unit.pair).unwrap();
        let place = unit.says(&token, "ship1").subject();
        unit.bus.knock(&place, Bytes::from(bytes), &seal).await.unwrap();
    }
    assert_eq!(world.steward(&["node", "accept", "--all", "--yes"]).status.code(), Some(5));
    assert_eq!(world.json(0, &["node", "ls"]).as_array().unwrap().len(), 1, "the hub alone");
    // A genuine one gets through beside them.
    victim.knock(&token, "ship1").await.unwrap();
    world.json(0, &["node", "accept", "--all", "--yes"]);
    assert_eq!(entry(&world, "ship1")["state"], "offline");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_outlives_the_broker_and_hears_what_was_decided_while_it_was_away() {
    let mut world = World::up();
    let path = token(&world, "fleet.token", &["--uses", "9"]);
    let state = start(&mut world, "ship7", &path);
    world.wait_for_state("ship7", "pending");
    // The broker goes down, and has forgotten the knock: the unit leaves it again by itself.
    world.operator_bus().await.clear_knocks("knock.*.*").await.unwrap();
    assert_eq!(entry(&world, "ship7"), Value::Null);
    let before = world.broker_pid();
    world::send(before, 9);
    eventually("it has knocked again", || {
        let output = world.steward(&["-o", "json", "node", "ls"]);
        let nodes: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        nodes.as_array().is_some_and(|nodes| nodes.iter().any(|node| node["state"] == "pending"))
    });
    // Accepted while it is away, it finds out when it is back.
    world.end_agent("ship7", 15);
    world.json(0, &["node", "accept", "ship7", "--yes"]);
    assert_eq!(entry(&world, "ship7")["state"], "offline");
    world.agent("ship7", &["--token", &path, "--state", &state]);
    world.json(0, &["run", "ship7", "--", "true"]);
    // A unit that was accepted is one of the fleet: what ends the others ends it.
    world.json(0, &["node", "revoke", "ship7", "--yes"]);
    assert_eq!(entry(&world, "ship7")["state"], "revoked");
    assert_eq!(world.steward(&["node", "accept", "ship7", "--yes"]).status.code(), Some(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_at_once_wait_and_are_not_sent_away() {
    let world = World::up();
    let path = token(&world, "fleet.token", &["--uses", "1"]);
    let token = &read(&path);
    let mut inside = Vec::new();
    for _ in 0..34 {
        inside.push(try_unit(token).await.unwrap());
    }
    let beyond = try_unit(token).await.err().unwrap();
    assert!(!matches!(beyond, BusError::Refused { .. }), "what passes by itself is no refusal: {beyond:?}");
}

#[test]
fn without_the_keys_or_with_a_damaged_token_it_says_what_is_missing() {
    let world = World::up();
    let path = token(&world, "fleet.token", &[]);
    let says = |output: std::process::Output, code: i32| {
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    std::fs::rename(world.path("keys"), world.path("keys.away")).unwrap();
    for verb in [&["node", "token"][..], &["node", "accept", "--all", "--yes"], &["node", "token", "revoke", "aaaa"]] {
        let said = says(world.steward(verb), 1);
        assert!(said.contains("no fleet's keys") && said.contains("--home"), "{verb:?}: {said}");
    }
    std::fs::rename(world.path("keys.away"), world.path("keys")).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let state = world.path("state").to_str().unwrap().to_owned();
    let agent = |token: &str| world.steward(&["agent", "--name", "x", "--state", &state, "--token", token]);
    let said = says(agent(&text[..text.len() / 2]), 2);
    assert!(said.contains("damaged") && !said.contains(&text[20..60]), "{said}");
    assert!(says(agent("nowhere.token"), 2).contains("steward node token"));
    let bundle = world.path("x.bundle");
    std::fs::write(&bundle, "{}").unwrap();
    assert!(says(agent(bundle.to_str().unwrap()), 2).contains("does not begin"));
    assert!(!Path::new(&state).exists(), "nothing is made of it");
    for flags in [&["--uses", "0"][..], &["--expires", "91d"], &["--label", "a b=c"]] {
        says(world.steward(&[&["node", "token"], flags].concat()), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_knock_at_once_and_are_let_in_by_one_word() {
    const UNITS: usize = 2000;
    let world = World::up();
    let path = token(&world, "fleet.token", &["--uses", "2000"]);
    let token = &read(&path);
    let begun = Instant::now();
    let units: Vec<Unit> = stream::iter(0..UNITS)
        .map(|number| async move { knocked(token, &format!("ship{number}")).await })
        .buffer_unordered(100)
        .collect()
        .await;
    let knocks = begun.elapsed();
    let begun = Instant::now();
    let answer = world.json(0, &["node", "accept", "ship*", "--yes"]);
    let accepts = begun.elapsed();
    assert_eq!(answer["accepted"].as_array().unwrap().len(), UNITS);
    let begun = Instant::now();
    assert_eq!(world.json(0, &["node", "ls"]).as_array().unwrap().len(), UNITS + 1);
    println!("{UNITS} knocked in {knocks:?}, accepted in {accepts:?}, listed in {:?}", begun.elapsed());
    for unit in units.iter().step_by(100) {
        assert!(unit.bus.kv_get("ADMISSIONS", &Decision::Accepted.at(&unit.key())).await.unwrap().is_some());
    }
    // The door is empty again, and no consumer is left behind.
    assert_eq!(world.operator_bus().await.knocks().await.unwrap().len(), 0);
    assert!(accepts < Duration::from_secs(60), "{accepts:?}");
}
