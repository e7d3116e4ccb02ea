//! How a node has stood: told by the node, kept by the broker, the same for every reader; and how far away it is.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use serde_json::Value;
use world::{World, eventually};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

fn history(world: &World, name: &str) -> Vec<Value> {
    world.json(0, &["node", "history", name]).as_array().unwrap().clone()
}

/// Starts ship1, which says each `interval` that it lives.
fn agent(world: &mut World, interval: &str) {
    let config = world.path("quick.toml");
    std::fs::write(&config, format!("life_sign = \"{interval}\"\n")).unwrap();
    world.agent("ship1", &["--config", config.to_str().unwrap()]);
}

fn states(history: &[Value]) -> Vec<&str> {
    history.iter().map(|spell| spell["state"].as_str().unwrap()).collect()
}

/// Waits until a node has stood so; each reading is a whole one.
fn wait_for(world: &World, name: &str, wanted: &[&str]) {
    eventually(&format!("{name} has stood {wanted:?}"), || states(&history(world, name)) == wanted);
}

#[test]
fn a_node_that_was_away_is_seen_to_have_been_away() {
    let mut world = World::up();
    agent(&mut world, "1s");
    wait_for(&world, "ship1", &["online"]);
    // Dead without a word: nobody is there to say so, and yet everybody sees it.
    world.end_agent("ship1", SIGKILL);
    wait_for(&world, "ship1", &["online", "offline"]);
    let seen_then = history(&world, "ship1")[1].clone();
    agent(&mut world, "1s");
    wait_for(&world, "ship1", &["online", "offline", "online"]);
    let past = history(&world, "ship1");
    assert_eq!(past[1]["since"], seen_then["since"], "what was seen then, and what is told now, is the same");
    assert_eq!(past[1]["until"], past[2]["since"]);
    assert_eq!(past[2]["until"], Value::Null);
    // A goodbye is one at once.
    world.end_agent("ship1", SIGTERM);
    wait_for(&world, "ship1", &["online", "offline", "online", "offline"]);
    let past = history(&world, "ship1");
    assert_eq!(past[3]["reason"], "it said goodbye");
    agent(&mut world, "1s");
    wait_for(&world, "ship1", &["online", "offline", "online", "offline", "online"]);

    let shown = world.json(0, &["node", "show", "ship1"]);
    assert_eq!(shown["history"].as_array().unwrap().len(), 5);
    let page = world.steward(&["node", "show", "ship1"]);
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(page.contains("history") && page.contains("it said goodbye"), "{page}");
    let wrong = world.steward(&["node", "history", "ship"]);
    assert_eq!(wrong.status.code(), Some(5), "{wrong:?}");
}

#[test]
fn silence_that_the_broker_could_not_hear_is_unknown_afterwards_too() {
    let mut world = World::up();
    agent(&mut world, "1s");
    wait_for(&world, "ship1", &["online"]);
    world.end_agent("ship1", SIGKILL);
    world.stop_up();
    world.start_up();
    wait_for(&world, "ship1", &["online", "unknown"]);
    agent(&mut world, "1s");
    wait_for(&world, "ship1", &["online", "unknown", "online"]);
}

#[test]
fn a_link_that_breaks_shortly_is_no_change() {
    let mut world = World::up();
    agent(&mut world, "5s");
    wait_for(&world, "ship1", &["online"]);
    world.stop_up();
    world.start_up();
    eventually("ship1 is back", || world.json(0, &["node", "show", "ship1"])["state"] == "online");
    assert_eq!(states(&history(&world, "ship1")), ["online"]);
}

#[test]
fn round_trip_and_clock_are_measured() {
    let mut world = World::up();
    agent(&mut world, "1s");
    eventually("its second life sign tells how long the first took", || {
        world.json(0, &["node", "show", "ship1"])["rtt_ms"].is_u64()
    });
    let shown = world.json(0, &["node", "show", "ship1"]);
    assert!(shown["rtt_ms"].as_u64().unwrap() < 10_000, "{shown}");
    assert!(shown["clock_offset_ms"].as_i64().unwrap().abs() < 10_000, "{shown}");
    let wide = world.steward(&["node", "ls", "-o", "wide"]);
    let wide = String::from_utf8_lossy(&wide.stdout).into_owned();
    assert!(wide.contains("ROUND TRIP") && wide.contains(" ms"), "{wide}");
}
