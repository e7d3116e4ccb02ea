//! A node is its name and its key: clones, restored snapshots, units that were set up anew, and a broker that forgot.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

mod world;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use world::{World, eventually, lines};

const TERM: i32 = 15;
const KILL: i32 = 9;

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// A configuration with quick life signs, so that nobody has to wait for long.
fn quick(world: &World) -> PathBuf {
    let path = world.path("quick.toml");
    std::fs::write(&path, "life_sign = \"1s\"\n").unwrap();
    path
}

fn witness(world: &World, node: &str, file: &Path, exit: i32) -> Value {
    let line = format!("echo ran >> {}", file.display());
    world.json(exit, &["run", node, "--wait", "10s", "--sh", &line])
}

fn reason(world: &World, node: &str) -> String {
    let nodes = world.json(0, &["node", "ls"]);
    let node = nodes.as_array().unwrap().iter().find(|found| found["name"] == node).unwrap().clone();
    node["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn two_clones_run_nothing_until_one_is_gone() {
    let mut world = World::up();
    let config = quick(&world);
    let (state, copied) = (world.path("nodes/ship1"), world.path("clone"));
    world.agent("ship1", &["--config", config.to_str().unwrap()]);
    copy(&state, &copied);
    world.start_agent("ship1", &["--config", config.to_str().unwrap(), "--state", copied.to_str().unwrap()]);
    // Each names the run of the other.
    let mut told = std::collections::BTreeSet::new();
    eventually("both have noticed", || {
        let reason = reason(&world, "ship1");
        if reason.starts_with("cloned") {
            told.insert(reason);
        }
        told.len() == 2
    });
    let file = world.path("witness");
    let job = witness(&world, "ship1", &file, 4);
    assert_eq!(job["nodes"]["ship1"]["state"], "queued", "{job}");
    assert_eq!(lines(&file).len(), 0);
    world.end_agent("ship1", KILL);
    let id = job["job"].as_str().unwrap();
    let done = world.steward(&["job", "watch", id, "--wait", "30s"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert_eq!(lines(&file).len(), 1, "once, by the one that was left");
    world.wait_for_state("ship1", "online");
}

#[test]
fn a_restored_snapshot_and_a_unit_set_up_anew_run_nothing_again() {
    let mut world = World::up();
    let (state, snapshot) = (world.path("nodes/ship1"), world.path("snapshot"));
    world.agent("ship1", &[]);
    world.end_agent("ship1", TERM);
    copy(&state, &snapshot);
    world.agent("ship1", &[]);
    let file = world.path("witness");
    let job = witness(&world, "ship1", &file, 0);
    let id = job["job"].as_str().unwrap();
    world.end_agent("ship1", TERM);

    let after = |world: &mut World, what: &str| {
        world.agent("ship1", &[]);
        // What comes after it in the stream was taken, so it was met again.
        let next = world.path(what);
        witness(world, "ship1", &next, 0);
        assert_eq!(lines(&next).len(), 1, "{what}");
        assert_eq!(lines(&file).len(), 1, "{what}");
        let shown = world.json(0, &["job", "show", id]);
        assert_eq!(shown["nodes"]["ship1"]["state"], "succeeded", "{what}: {shown}");
        world.end_agent("ship1", TERM);
    };
    copy(&snapshot, &state);
    after(&mut world, "restored");
    // The papers of the unit are kept, its journal is not.
    for name in ["journal.redb", "journal.log"] {
        std::fs::remove_file(state.join(name)).unwrap();
    }
    after(&mut world, "anew");
}

#[test]
fn a_journal_without_its_log_is_refused_with_advice() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.end_agent("ship1", TERM);
    std::fs::remove_file(world.path("nodes/ship1").join("journal.log")).unwrap();
    let refused = world.steward(&["agent", "--name", "ship1"]);
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("journal.log") && told.contains("missing"), "{told}");
}

#[test]
fn a_broker_that_forgot_everything_is_told_again_and_takes_new_orders() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let file = world.path("witness");
    let job = witness(&world, "ship1", &file, 0);
    let id = job["job"].as_str().unwrap().to_owned();
    world.stop_up();
    std::fs::remove_dir_all(world.path("broker/store")).unwrap();
    world.start_up();
    // Its registration is gone as well; where the fleet's keys are, a start makes it anew.
    world.end_agent("ship1", TERM);
    world.agent("ship1", &[]);
    let next = world.path("next");
    witness(&world, "ship1", &next, 0);
    assert_eq!((lines(&file).len(), lines(&next).len()), (1, 1));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let told = runtime.block_on(async {
        let bus = world.operator_bus().await;
        let subject = format!("central.reply.{id}.ship1");
        for _ in 0..200 {
            if let Some(message) = bus.last("REPLIES", &subject).await.unwrap() {
                return serde_json::from_slice::<Value>(&message.payload).unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Value::Null
    });
    assert_eq!(told["history"].as_array().unwrap().last().unwrap()["state"], "succeeded", "{told}");
}
