//! Who is meant: by name, by label, by what holds of a node; and what a node says of itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bus::kv;
use message::{Facts, NodeName, Seal, Timestamp};
use serde_json::{Value, json};
use world::{HUB, World, eventually};

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn names(world: &World, arguments: &[&str]) -> Vec<String> {
    let listed = world.json(0, &[&["node", "ls"], arguments].concat());
    listed.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn nodes_are_chosen_by_label_by_expression_and_by_name_together() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.agent("ship2", &[]);
    world.json(0, &["node", "enroll", "ship3", "--out", world.path("ship3.bundle").to_str().unwrap()]);
    world.json(0, &["node", "label", "ship*", "site=oslo"]);
    let labelled = world.json(0, &["node", "label", "ship2", "site=bergen", "gpu="]);
    assert_eq!((&labelled["name"], &labelled["labels"]["site"]), (&"ship2".into(), &"bergen".into()));

    assert_eq!(names(&world, &["-l", "site in (oslo,bergen)"]), ["ship1", "ship2", "ship3"]);
    assert_eq!(names(&world, &["-l", "site!=oslo"]), [HUB, "ship2"]);
    assert_eq!(names(&world, &["-w", "labels.site != 'oslo'"]), ["ship2"]);
    assert_eq!(names(&world, &["ship*", "-l", "!gpu", "-w", "!online"]), ["ship3"]);
    assert_eq!(names(&world, &["-l", "site=nowhere"]), [""; 0]);

    let dry = world.json(0, &["run", "-l", "site", "-w", "online", "--dry-run", "--", "true"]);
    assert_eq!(dry["targets"], 2);
    assert_eq!(dry["nodes"]["ship2"]["why"], serde_json::json!(["site (site=bergen)", "online"]));
    let ran = world.json(0, &["run", "-l", "gpu", "--", "hostname"]);
    assert_eq!(ran["nodes"].as_object().unwrap().keys().collect::<Vec<_>>(), ["ship2"]);
    let called = world.json(0, &["call", "-w", "name.endsWith('1')", "hello"]);
    assert_eq!(called["nodes"].as_object().unwrap().keys().collect::<Vec<_>>(), ["ship1"]);
    assert_eq!(world.json(0, &["ping", "ship*", "-w", "online"])["targets"], 2);
    // By expression, several nodes are labelled at once.
    world.json(0, &["node", "label", "-l", "site", "-w", "online", "group-web=", "site-"]);
    assert_eq!(names(&world, &["-l", "group-web,!site"]), ["ship1", "ship2"]);
    // Of a job, again only where it is meant.
    let failed = world.json(3, &["run", "ship1,ship2", "--", "false"]);
    let again = world.json(3, &["job", "retry", failed["job"].as_str().unwrap(), "-l", "gpu"]);
    assert_eq!(again["targets"], 1);
    assert!(again["nodes"]["ship2"].is_object(), "{again}");
    // Who was thrown out is shown, and is no target.
    world.json(0, &["node", "revoke", "ship3", "--yes"]);
    assert_eq!(names(&world, &["-w", "state == 'revoked'"]), ["ship3"]);
    assert_eq!(world.steward(&["run", "-w", "name == 'ship3'", "--", "true"]).status.code(), Some(5));
}

#[test]
fn a_wrong_selector_or_expression_ends_every_verb_with_2_and_a_mark() {
    let world = World::up();
    for verb in [
        &["node", "ls"][..],
        &["run"],
        &["ping"],
        &["call", "hello"],
        &["node", "label", "a=b"],
        &["job", "cancel", "last"],
        &["job", "approve", "last"],
        &["job", "retry", "last"],
    ] {
        for (flag, text, mark) in [("-l", "site=oslo tier", "            ^"), ("-w", "onlin && true", "  ^")] {
            let tail: &[&str] = if verb == ["run"] { &["--", "true"] } else { &[] };
            let ended = world.steward(&[verb, &[flag, text], tail].concat());
            assert_eq!(ended.status.code(), Some(2), "{verb:?} {flag}: {ended:?}");
            assert!(said(&ended).contains(&format!("\n  {text}\n{mark}")), "{verb:?}: {}", said(&ended));
            assert!(ended.stdout.is_empty());
        }
    }
    let nobody = world.steward(&["run", "--", "true"]);
    assert_eq!(nobody.status.code(), Some(2), "nothing runs on a whole fleet by accident");
    // Nothing that a person writes makes it fall over.
    for text in ["(".repeat(2000), "!".repeat(2000), "[".repeat(1999), "x".repeat(100_000), "facts.".repeat(300)] {
        assert_eq!(world.steward(&["node", "ls", "-w", &text]).status.code(), Some(2));
        assert_eq!(world.steward(&["node", "ls", "-l", &text]).status.code(), Some(2));
    }
}

fn put(dir: &Path, name: &str, script: &str) {
    std::fs::create_dir_all(dir).unwrap();
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn facts(world: &World, name: &str) -> Value {
    world.json(0, &["node", "show", name])["facts"].clone()
}

#[test]
fn a_node_tells_what_it_knows_of_its_system_and_only_what_has_changed() {
    let mut world = World::up();
    let local = world.path("nodes/ship1/facts.d");
    put(&local, "gpu", "echo '{\"count\": 2}'");
    put(&local, "broken", "echo nonsense");
    world.agent("ship1", &[]);
    eventually("ship1 has told its facts", || facts(&world, "ship1")["memory"]["total"].is_u64());
    let told = facts(&world, "ship1");
    assert_eq!(told["local"], json!({"gpu": {"count": 2}}));
    assert!(told["local_failed"]["broken"].as_str().unwrap().contains("JSON"), "{told}");
    assert!(told["cpu"]["count"].as_u64().unwrap() > 0 && !told["disks"].as_array().unwrap().is_empty(), "{told}");

    assert_eq!(names(&world, &["-w", "facts.local.gpu.count == 2 && facts.memory.total > 1e6"]), ["ship1"]);
    let dry = world.json(0, &["run", "-w", "facts.local.gpu.count > 1", "--dry-run", "--", "true"]);
    assert_eq!(dry["nodes"]["ship1"]["why"], json!(["facts.local.gpu.count > 1 (facts.local.gpu.count=2)"]));
    let wide = world.steward(&["node", "ls", "-o", "wide"]);
    assert!(String::from_utf8_lossy(&wide.stdout).contains("MEMORY"), "{wide:?}");

    // Started again, nothing has changed: nothing is sent. What has changed is.
    let before = revision(&world);
    world.end_agent("ship1", 15);
    world.agent("ship1", &["-vv"]);
    eventually("it has looked again", || {
        world::lines(&world.path("ship1.log")).iter().any(|line| line.contains("the facts have not changed"))
    });
    assert_eq!(revision(&world), before, "what has not changed was sent again");
    world.end_agent("ship1", 15);
    put(&local, "gpu", "echo '{\"count\": 3}'");
    world.agent("ship1", &[]);
    eventually("the change is told", || facts(&world, "ship1")["local"]["gpu"]["count"] == 3);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// At which revision the facts of ship1 are.
fn revision(world: &World) -> u64 {
    runtime().block_on(async {
        let bus = world.operator_bus().await;
        let found = bus.kv_get(kv::FACTS, "ship1").await.unwrap().unwrap().sequence;
        bus.close().await;
        found
    })
}

#[test]
fn facts_that_somebody_else_has_signed_are_not_believed() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.agent("ship2", &[]);
    eventually("ship2 has told its facts", || facts(&world, "ship2")["arch"].is_string());
    // Whoever holds the broker's disk puts the facts of one node in the place of another's, or signs some of his own.
    let pair = nkeys::KeyPair::new_user();
    let forged = Facts::new(NodeName::new("ship1").unwrap(), Timestamp::from_ms(0), serde_json::Map::new());
    let bytes = serde_json::to_vec(&forged).unwrap();
    let seal = Seal::over(&bytes, &pair).unwrap();
    eventually("ship1 has told its facts", || facts(&world, "ship1")["arch"].is_string());
    let told = facts(&world, "ship1");
    let stored = runtime().block_on(async {
        let bus = world.operator_bus().await;
        // An operator has no right to write there at all.
        let stored = tokio::time::timeout(
            std::time::Duration::from_secs(3),
            bus.kv_put(kv::FACTS, "ship1", bytes.into(), Some(&seal)),
        );
        let stored = stored.await.is_ok_and(|stored| stored.is_ok());
        bus.close().await;
        stored
    });
    assert!(!stored, "an operator wrote the facts of a node");
    assert_eq!(facts(&world, "ship1"), told);
}
