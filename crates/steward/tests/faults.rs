//! What breaks, and what must hold all the same.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use world::{HUB, World, eventually, lines, send};

#[test]
fn an_absent_unit_gets_its_order_when_it_returns() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.end_agent("ship1", 15);
    assert_eq!(world.state("ship1"), "offline", "a clean goodbye counts at once");
    let witness = world.path("witness");
    let line = format!("echo ran >> {}", witness.display());
    let job = world.json(4, &["run", "ship1", "--wait", "100ms", "--sh", &line]);
    assert_eq!(job["nodes"]["ship1"]["state"], "queued");
    let id = job["job"].as_str().unwrap();
    world.start_agent("ship1", &[]);
    let watched = world.steward(&["job", "watch", id]);
    assert_eq!(watched.status.code(), Some(0), "{watched:?}");
    assert_eq!(lines(&witness), ["ran"]);
}

#[test]
fn what_expired_before_the_unit_returned_is_reported_and_not_run() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.end_agent("ship1", 15);
    let witness = world.path("witness");
    let line = format!("echo ran >> {}", witness.display());
    let job = world.json(4, &["run", "ship1", "--expires", "1s", "--wait", "1500ms", "--sh", &line]);
    world.start_agent("ship1", &[]);
    let id = job["job"].as_str().unwrap();
    eventually("the order is reported as expired", || {
        world.json(0, &["job", "show", id])["nodes"]["ship1"]["state"] == "expired"
    });
    assert!(lines(&witness).is_empty());
}

#[test]
fn what_ran_when_agent_and_keeper_were_killed_is_interrupted_and_not_run_again() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let line = format!("echo begun >> {}; sleep 600", witness.display());
    let first = world.json(4, &["run", "ship1", "--wait", "100ms", "--sh", &line]);
    let after =
        world.json(4, &["run", "ship1", "--wait", "100ms", "--sh", &format!("echo next >> {}", witness.display())]);
    eventually("the first command has begun", || lines(&witness) == ["begun"]);
    world.end_agent("ship1", 9);
    for keeper in world::keepers(world.home().to_str().unwrap()) {
        send(keeper, 9);
    }
    world.agent("ship1", &[]);
    let state = |job: &serde_json::Value| {
        world.json(0, &["job", "show", job["job"].as_str().unwrap()])["nodes"]["ship1"]["state"].clone()
    };
    eventually("the first is interrupted", || state(&first) == "interrupted");
    eventually("the second, which waited, has run", || state(&after) == "succeeded");
    assert_eq!(lines(&witness), ["begun", "next"], "neither was begun twice");
    for pid in world::pids(|line| line.contains("sleep 600") && line.contains(witness.to_str().unwrap())) {
        send(pid, 9);
    }
}

#[test]
fn a_killed_broker_comes_back_and_no_order_is_lost_or_run_twice() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let before = world.json(0, &["run", "ship1", "--sh", &format!("echo before >> {}", witness.display())]);
    let slow = format!("sleep 2; echo during >> {}", witness.display());
    let during = world.json(4, &["run", "ship1", "--wait", "200ms", "--sh", &slow]);
    send(world.broker_pid(), 9);
    let line = format!("echo after >> {}", witness.display());
    eventually("the broker answers", || world.steward(&["node", "ls"]).status.success());
    let after = world.steward(&["run", "ship1", "--wait", "30s", "--sh", &line]);
    assert_eq!(after.status.code(), Some(0), "{after:?}");
    eventually("what ran meanwhile is reported", || {
        world.json(0, &["job", "show", during["job"].as_str().unwrap()])["nodes"]["ship1"]["state"] == "succeeded"
    });
    assert_eq!(lines(&witness), ["before", "during", "after"]);
    let shown = world.json(0, &["job", "show", before["job"].as_str().unwrap()]);
    assert_eq!(shown["counts"], before["counts"]);
    assert_ne!(world.state("ship1"), "offline", "never wrongly offline after a restart");
}

#[test]
fn kill_of_everything_leaves_nothing_that_blocks_the_next_start() {
    let mut world = World::up();
    world.json(0, &["run", HUB, "--", "true"]);
    let server = world.ready["server"].clone();
    send(world.up_pid().try_into().unwrap(), 9);
    world.start_up();
    assert_eq!(world.ready["server"], server, "the port is kept");
    world.json(0, &["run", HUB, "--", "true"]);
}

#[test]
fn a_name_and_a_state_directory_belong_to_one_living_agent() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let second = world.steward(&["agent", "--name", "ship1"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another agent is using"), "{second:?}");

    let state = world.path("elsewhere");
    let third = world.steward(&["agent", "--name", "ship1", "--state", state.to_str().unwrap()]);
    assert_eq!(third.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&third.stderr).contains("in use by another living installation"), "{third:?}");

    // A restart after kill -9 is not another installation.
    world.end_agent("ship1", 9);
    world.agent("ship1", &[]);
    world.json(0, &["run", "ship1", "--", "true"]);
}
