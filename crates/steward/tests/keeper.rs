//! Commands outlive the agent.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::path::Path;

use serde_json::{Value, json};
use world::{HUB, World, eventually, keepers, lines, pids, send};

/// A shell line that waits for a file.
fn wait_for(path: &Path) -> String {
    format!("while [ ! -e {} ]; do sleep 0.02; done", path.display())
}

fn note(witness: &Path, word: &str) -> String {
    format!("echo {word} >> {}", witness.display())
}

fn touch(path: &Path) {
    std::fs::write(path, "").unwrap();
}

/// What is known of a job's only node.
fn node(world: &World, job: &Value, name: &str) -> Value {
    world.json(0, &["job", "show", job["job"].as_str().unwrap()])["nodes"][name].clone()
}

fn wait_for_end(world: &World, job: &Value, name: &str, state: &str) -> Value {
    eventually(&format!("the order is {state}"), || node(world, job, name)["state"] == state);
    node(world, job, name)
}

fn start(world: &World, name: &str, line: &str) -> Value {
    world.json(4, &["run", name, "--wait", "50ms", "--sh", line])
}

fn command_goes_on(signal: i32) {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let (witness, during, after) = (world.path("witness"), world.path("during"), world.path("after"));
    let parts = [
        "seq 1 30000; echo one >&2".to_owned(),
        note(&witness, "before"),
        wait_for(&during),
        "seq 30001 60000".to_owned(),
        note(&witness, "during"),
        wait_for(&after),
        "seq 60001 90000; echo two >&2; exit 7".to_owned(),
    ];
    let job = start(&world, "ship1", &parts.join("; "));
    eventually("it has begun", || lines(&witness) == ["before"]);
    world.end_agent("ship1", signal);
    touch(&during);
    eventually("it goes on", || lines(&witness).len() == 2);
    assert_eq!(node(&world, &job, "ship1")["state"], "running");
    world.agent("ship1", &[]);
    touch(&after);
    let node = wait_for_end(&world, &job, "ship1", "failed");
    assert_eq!(lines(&witness), ["before", "during"], "it ran once");
    assert_eq!(
        (&node["exit_code"], &node["truncated"], &node["stderr"]),
        (&json!(7), &json!(false), &json!("one\ntwo\n"))
    );
    let expected: String = (1..=90_000).map(|number| format!("{number}\n")).collect();
    assert!(node["stdout"].as_str().unwrap() == expected, "all output, in order, once");
    // The process of the subject is free for the next one.
    world.json(0, &["run", "ship1", "--", "true"]);
}

#[test]
fn a_command_goes_on_when_its_agent_is_killed_and_is_reported_by_the_next_one() {
    command_goes_on(9);
}

#[test]
fn a_command_goes_on_when_its_agent_is_stopped_and_is_reported_by_the_next_one() {
    command_goes_on(15);
}

#[test]
fn a_command_that_ended_while_the_agent_was_away_is_reported() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let (witness, go) = (world.path("witness"), world.path("go"));
    let parts = [note(&witness, "begun"), wait_for(&go), "echo done; ".to_owned() + &note(&witness, "ended")];
    let job = start(&world, "ship1", &parts.join("; "));
    eventually("it has begun", || lines(&witness) == ["begun"]);
    world.end_agent("ship1", 9);
    touch(&go);
    eventually("it has ended", || lines(&witness) == ["begun", "ended"]);
    world.agent("ship1", &[]);
    let node = wait_for_end(&world, &job, "ship1", "succeeded");
    assert_eq!((&node["stdout"], &node["exit_code"]), (&json!("done\n"), &json!(0)));
    // Told again after one more restart, it would be known.
    world.end_agent("ship1", 9);
    world.agent("ship1", &[]);
    assert_eq!(lines(&witness), ["begun", "ended"]);
}

#[test]
fn a_time_out_holds_while_the_agent_is_away() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let line = format!("{}; exec sleep 611", note(&witness, "begun"));
    let job = world.json(4, &["run", "ship1", "--timeout", "2s", "--wait", "50ms", "--sh", &line]);
    eventually("it has begun", || lines(&witness) == ["begun"]);
    world.end_agent("ship1", 9);
    eventually("it was ended", || pids(|line| line == "sleep 611 ").is_empty());
    world.agent("ship1", &[]);
    wait_for_end(&world, &job, "ship1", "timed_out");
}

#[test]
fn a_cancel_goes_on_when_its_agent_is_killed_before_what_it_ends_has_ended() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let (witness, go) = (world.path("witness"), world.path("go"));
    // Hears that it is to end, and takes its time.
    let line =
        format!("trap '{}' TERM; {}; {}; exit 4", note(&witness, "asked"), note(&witness, "begun"), wait_for(&go));
    let job = start(&world, "ship1", &line);
    eventually("it has begun", || lines(&witness) == ["begun"]);
    let cancel = world.json(4, &["job", "cancel", job["job"].as_str().unwrap(), "ship1", "--detach"]);
    eventually("it was told to end", || lines(&witness) == ["begun", "asked"]);
    world.end_agent("ship1", 9);
    world.agent("ship1", &[]);
    touch(&go);
    check_cancelled(&world, &job, &cancel);
}

#[test]
fn a_cancel_counts_though_what_it_ends_has_ended_when_the_next_agent_comes() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let go = world.path("go");
    let line = format!(
        "trap '{}' TERM; {}; {}; {}; exit 4",
        note(&witness, "asked"),
        note(&witness, "begun"),
        wait_for(&go),
        note(&witness, "ends")
    );
    let job = start(&world, "ship1", &line);
    eventually("it has begun", || lines(&witness) == ["begun"]);
    let cancel = world.json(4, &["job", "cancel", job["job"].as_str().unwrap(), "ship1", "--detach"]);
    eventually("it was told to end", || lines(&witness) == ["begun", "asked"]);
    world.end_agent("ship1", 9);
    touch(&go);
    eventually("it ends meanwhile", || lines(&witness) == ["begun", "asked", "ends"]);
    world.agent("ship1", &[]);
    check_cancelled(&world, &job, &cancel);
}

/// The job has ended by the cancel, and says by whom; the cancel has its answer.
fn check_cancelled(world: &World, job: &Value, cancel: &Value) {
    let ended = wait_for_end(world, job, "ship1", "cancelled");
    assert!(ended["reason"].as_str().is_some_and(|reason| reason.contains("cancelled by admin")), "{ended}");
    let answer = wait_for_end(world, cancel, "ship1", "succeeded");
    assert_eq!(answer["data"], json!({"job": job["job"], "found": "running", "now": "cancelled"}));
}

#[test]
fn what_waits_behind_a_command_that_goes_on_goes_on_waiting() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let (witness, go) = (world.path("witness"), world.path("go"));
    let first = [note(&witness, "first"), wait_for(&go), note(&witness, "first-ends")].join("; ");
    let first = start(&world, "ship1", &first);
    let second = start(&world, "ship1", &note(&witness, "second"));
    let third = start(&world, "ship1", &note(&witness, "third"));
    eventually("the first has begun", || lines(&witness) == ["first"]);
    world.end_agent("ship1", 9);
    world.agent("ship1", &[]);
    // Another subject does not wait, and by its answer the agent has had time to do wrong.
    world.json(0, &["run", "ship1", "--domain", "other", "--", "true"]);
    assert_eq!(lines(&witness), ["first"]);
    touch(&go);
    for job in [&first, &second, &third] {
        wait_for_end(&world, job, "ship1", "succeeded");
    }
    assert_eq!(lines(&witness), ["first", "first-ends", "second", "third"]);
}

#[test]
fn an_external_method_answers_although_its_agent_was_killed() {
    use std::os::unix::fs::PermissionsExt;
    let mut world = World::up();
    world.agent("ship1", &[]);
    let (witness, go) = (world.path("witness"), world.path("go"));
    let methods = world.path("nodes/ship1/methods.d");
    std::fs::create_dir_all(&methods).unwrap();
    let method = methods.join("slow");
    let parts =
        ["#!/bin/sh\nprintf '{\"a\"'".to_owned(), note(&witness, "begun"), wait_for(&go), "printf ': 5}'".into()];
    std::fs::write(&method, parts.join("\n")).unwrap();
    std::fs::set_permissions(&method, std::fs::Permissions::from_mode(0o755)).unwrap();
    let job = world.json(4, &["call", "ship1", "slow", "--wait", "50ms"]);
    eventually("it has begun", || lines(&witness) == ["begun"]);
    world.end_agent("ship1", 9);
    std::fs::remove_file(&method).unwrap();
    world.agent("ship1", &[]);
    touch(&go);
    assert_eq!(wait_for_end(&world, &job, "ship1", "succeeded")["data"], json!({"a": 5}));
}

#[test]
fn a_killed_keeper_interrupts_what_it_held_and_the_next_command_gets_another() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let job = start(&world, "ship1", &format!("echo so far; {}; exec sleep 612", note(&witness, "begun")));
    eventually("it has begun", || lines(&witness) == ["begun"]);
    let place = world.path("nodes/ship1");
    let held = keepers(place.to_str().unwrap());
    assert_eq!(held.len(), 1, "one keeper");
    send(held[0], 9);
    let node = wait_for_end(&world, &job, "ship1", "interrupted");
    assert_eq!(node["stdout"], "so far\n");
    assert_eq!(world.json(0, &["run", "ship1", "--", "echo", "on"])["nodes"]["ship1"]["stdout"], "on\n");
    eventually("what it held is ended", || pids(|line| line == "sleep 612 ").is_empty());
    assert_eq!(lines(&witness), ["begun"]);
}

#[test]
fn an_agent_that_stops_with_nothing_running_leaves_no_keeper() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.json(0, &["run", "ship1", "--", "true"]);
    let place = world.path("nodes/ship1").to_str().unwrap().to_owned();
    assert_eq!(keepers(&place).len(), 1);
    world.end_agent("ship1", 15);
    eventually("its keeper is gone", || keepers(&place).is_empty());
}

#[test]
fn a_system_that_is_stopped_leaves_nothing_behind() {
    let mut world = World::up();
    let witness = world.path("witness");
    let job = start(&world, HUB, &format!("{}; exec sleep 613", note(&witness, "begun")));
    eventually("it has begun", || lines(&witness) == ["begun"]);
    let home = world.home().to_str().unwrap().to_owned();
    world.stop_up();
    assert_eq!(pids(|line| line == "sleep 613 "), [0; 0]);
    eventually("the keeper is gone", || keepers(&home).is_empty());
    assert!(pids(|line| line.contains(&home)).is_empty());
    world.start_up();
    let node = node(&world, &job, HUB);
    assert_eq!(node["state"], "interrupted");
    assert!(node["reason"].as_str().unwrap().contains("the agent was stopped"), "{node}");
}

#[test]
fn a_system_that_is_killed_can_be_started_again() {
    let mut world = World::up();
    let (witness, go) = (world.path("witness"), world.path("go"));
    let job = start(&world, HUB, &[note(&witness, "begun"), wait_for(&go)].join("; "));
    eventually("it has begun", || lines(&witness) == ["begun"]);
    let home = world.home().to_str().unwrap().to_owned();
    for pid in pids(|line| line.contains(&home) && line.contains(" agent ")) {
        send(pid, 9);
    }
    send(world.up_pid().try_into().unwrap(), 9);
    world.start_up();
    touch(&go);
    wait_for_end(&world, &job, HUB, "succeeded");
    assert_eq!(lines(&witness), ["begun"]);
}

#[test]
fn a_keeper_that_does_not_answer_is_waited_for_and_the_node_says_so() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let line = format!("echo begun >> {0}; sleep 3; echo done >> {0}", witness.display());
    let job = world.json(4, &["run", "ship1", "--detach", "--sh", &line]);
    eventually("it has begun", || lines(&witness) == ["begun"]);
    world.end_agent("ship1", 9);
    let keepers = world::keepers(world.path("nodes/ship1").to_str().unwrap());
    assert_eq!(keepers.len(), 1);
    send(keepers[0], 19);
    world.start_agent("ship1", &[]);
    eventually("the node says why it cannot begin", || {
        let nodes = world.json(0, &["node", "ls"]);
        let node = nodes.as_array().unwrap().iter().find(|node| node["name"] == "ship1").unwrap().clone();
        node["state"] == "degraded" && node["reason"].as_str().unwrap_or_default().contains("keeper")
    });
    send(keepers[0], 18);
    eventually("what went on meanwhile is reported", || {
        world.json(0, &["job", "show", job["job"].as_str().unwrap()])["nodes"]["ship1"]["state"] == "succeeded"
    });
    assert_eq!(lines(&witness), ["begun", "done"]);
    world.wait_for_state("ship1", "online");
}
