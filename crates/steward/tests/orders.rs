//! What becomes of orders that somebody takes back, replaces, repeats, or asks for twice.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::path::Path;

use bus::{Headers, clock};
use bytes::Bytes;
use message::{Order, Seal};
use serde_json::{Value, json};
use world::{HUB, World, eventually, lines};

fn append(word: &str, witness: &Path) -> String {
    format!("echo {word} >> {}", witness.display())
}

/// Orders without waiting; returns the job's id.
fn detached(world: &World, arguments: &[&str]) -> String {
    let job = world.json(4, &[&["run", "ship1", "--detach"], arguments].concat());
    job["job"].as_str().unwrap().to_owned()
}

fn node(world: &World, job: &str) -> Value {
    world.json(0, &["job", "show", job])["nodes"]["ship1"].clone()
}

fn state(world: &World, job: &str) -> String {
    node(world, job)["state"].as_str().unwrap().to_owned()
}

/// What a cancel answers for ship1.
fn cancel(world: &World, job: &str) -> Value {
    let cancelled = world.json(0, &["job", "cancel", job]);
    cancelled["nodes"]["ship1"]["data"].clone()
}

#[test]
fn a_cancel_ends_what_runs_takes_back_what_waits_and_leaves_what_has_ended() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let done = world.json(0, &["run", "ship1", "--sh", &append("done", &witness)]);
    let long = format!("{}; sleep 86399.75 & sleep 86399.75", append("begun", &witness));
    let running = detached(&world, &["--timeout", "300s", "--sh", &long]);
    let waiting = detached(&world, &["--sh", &append("never", &witness)]);
    eventually("the first has begun and the second waits", || {
        lines(&witness) == ["done", "begun"] && state(&world, &waiting) == "delivered"
    });

    // Not behind what runs.
    let told = cancel(&world, &waiting);
    assert_eq!(told, json!({"job": waiting, "found": "delivered", "now": "cancelled"}));
    let taken_back = node(&world, &waiting);
    assert_eq!(taken_back["state"], "cancelled");
    assert!(taken_back["reason"].as_str().unwrap().contains("cancelled by admin"), "{taken_back}");
    assert!(taken_back.get("started_at").is_none(), "{taken_back}");

    let told = cancel(&world, &running);
    assert_eq!(told, json!({"job": running, "found": "running", "now": "cancelled"}));
    assert_eq!(state(&world, &running), "cancelled");
    let left = world::pids(|line| line.contains("sleep 86399.75"));
    assert!(left.is_empty(), "the whole tree is ended: {left:?}");

    // Everything has ended: nobody is told, and nothing changes. A node that is told all the same says how it was.
    let id = done["job"].as_str().unwrap();
    let nothing = world.json(0, &["job", "cancel", id]);
    assert_eq!((&nothing["cancels"], &nothing["targets"]), (&json!(id), &json!(0)));
    let called = world.json(0, &["call", "ship1", "cancel/steward", &format!("job={id}")]);
    assert_eq!(called["nodes"]["ship1"]["data"]["found"], "succeeded");
    assert_eq!(state(&world, id), "succeeded");

    // The process goes on with what comes next.
    world.json(0, &["run", "ship1", "--sh", &append("next", &witness)]);
    assert_eq!(lines(&witness), ["done", "begun", "next"]);
}

#[test]
fn a_cancel_that_makes_no_sense_fails_with_the_reason() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    for (call, argument, says) in [
        ("cancel/steward", "job=last", "not a job id"),
        ("cancel/steward", "jobs=1", "unknown field"),
        ("cancel", "job=01JD3V8ZK4Q1W9X7M2N5B6C8D0", "on the domain steward only"),
    ] {
        let failed = world.json(3, &["call", "ship1", call, argument]);
        let reason = failed["nodes"]["ship1"]["reason"].as_str().unwrap();
        assert!(reason.contains(says), "{reason}");
    }
    world.json(0, &["run", "ship1", "--", "true"]);
    let unknown = world.steward(&["job", "cancel", "last", "ship9"]);
    assert_eq!(unknown.status.code(), Some(5), "{unknown:?}");
}

#[test]
fn a_cancel_waits_for_an_absent_unit_and_its_order_never_begins() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.end_agent("ship1", 15);
    let witness = world.path("witness");
    let first = detached(&world, &["--sh", &append("first", &witness)]);
    let second = detached(&world, &["--sh", &append("second", &witness)]);
    let pending = world.json(4, &["job", "cancel", &first, "ship1", "--detach"]);
    assert_eq!(pending["method"], "cancel");
    world.agent("ship1", &[]);
    eventually("both are decided", || state(&world, &first) == "cancelled" && state(&world, &second) == "succeeded");
    assert_eq!(lines(&witness), ["second"]);
    assert_eq!(node(&world, pending["job"].as_str().unwrap())["state"], "succeeded");
}

/// Live, subjects are not ordered with each other: an order can come after its cancel.
#[test]
fn a_cancel_that_overtakes_its_order_takes_it_back_when_it_comes() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let sample = detached(&world, &["--sh", "true"]);
    let late = "01JD3V8ZK4Q1W9X7M2N5B6C8D0";
    let told = world.json(0, &["call", "ship1", "cancel/steward", &format!("job={late}")]);
    assert_eq!(told["nodes"]["ship1"]["data"], json!({"job": late, "found": "queued", "now": "cancelled"}));
    // A restart forgets nothing of it.
    world.end_agent("ship1", 9);
    world.agent("ship1", &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let bus = world.operator_bus().await;
        let context = world.json(0, &["context", "show"]);
        let creds = std::fs::read_to_string(context["creds"].as_str().unwrap()).unwrap();
        let pair = bus::claims::Creds::parse(&creds).unwrap().key().unwrap();
        let record = bus.kv_get("JOBS", &sample).await.unwrap().unwrap();
        let record: Value = serde_json::from_slice(&record.payload).unwrap();
        let chunk: Value = serde_json::from_str(record["inline"].as_str().unwrap()).unwrap();
        let order = Order::parse(chunk["orders"][0]["order"].as_str().unwrap().as_bytes()).unwrap();
        let order = Order {
            id: clock::order_id(),
            job: late.parse().unwrap(),
            args: json!({"line": append("never", &witness)}),
            ..order
        };
        let bytes = order.to_bytes().unwrap();
        let headers = Headers::new().with_id(&order.id.to_string()).sealed(&Seal::over(&bytes, &pair).unwrap());
        bus.publish(&order.subject().to_string(), headers, Bytes::from(bytes)).await.unwrap();
        let subject = order.reply_subject().to_string();
        let deadline = std::time::Instant::now() + world::PATIENCE;
        let reply = loop {
            if let Some(reply) = bus.last("REPLIES", &subject).await.unwrap() {
                break reply;
            }
            assert!(std::time::Instant::now() < deadline, "no reply");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        let reply: Value = serde_json::from_slice(&reply.payload).unwrap();
        assert_eq!(reply["history"][0]["state"], "cancelled", "{reply}");
        assert!(reply["reason"].as_str().unwrap().contains("cancelled by admin"), "{reply}");
    });
    world.json(0, &["run", "ship1", "--sh", &append("next", &witness)]);
    assert_eq!(lines(&witness), ["next"]);
}

#[test]
fn of_the_orders_that_wait_under_a_key_only_the_newest_runs() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let gate = world.path("gate");
    let hold = format!("{}; while [ ! -e {} ]; do sleep 0.05; done", append("held", &witness), gate.display());
    let held = detached(&world, &["--supersede", "k", "--sh", &hold]);
    eventually("it has begun", || lines(&witness) == ["held"]);
    let keyed: Vec<String> =
        (0..4).map(|n| detached(&world, &["--supersede", "k", "--sh", &append(&format!("k{n}"), &witness)])).collect();
    let other = detached(&world, &["--supersede", "other", "--sh", &append("other", &witness)]);
    // The newest counts wherever it stands: on another domain nothing is in front of it.
    let elsewhere =
        detached(&world, &["--supersede", "k", "--domain", "elsewhere", "--sh", &append("newest", &witness)]);
    eventually("the newest has run", || state(&world, &elsewhere) == "succeeded");
    for job in &keyed {
        let superseded = node(&world, job);
        assert_eq!(superseded["state"], "superseded", "{superseded}");
    }
    let reason = node(&world, &keyed[3])["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains(&elsewhere), "{reason}");
    assert_eq!(state(&world, &held), "running", "what runs is not touched");
    std::fs::write(&gate, "").unwrap();
    eventually("all is done", || state(&world, &held) == "succeeded" && state(&world, &other) == "succeeded");
    assert_eq!(lines(&witness), ["held", "newest", "other"]);
}

#[test]
fn an_absent_unit_runs_only_the_newest_of_a_key_when_it_returns() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.end_agent("ship1", 15);
    let witness = world.path("witness");
    let jobs: Vec<String> =
        (0..3).map(|n| detached(&world, &["--supersede", "k", "--sh", &append(&format!("k{n}"), &witness)])).collect();
    let plain = detached(&world, &["--sh", &append("plain", &witness)]);
    world.agent("ship1", &[]);
    eventually("all is decided", || state(&world, &plain) == "succeeded" && state(&world, &jobs[2]) == "succeeded");
    assert_eq!((state(&world, &jobs[0]), state(&world, &jobs[1])), ("superseded".into(), "superseded".into()));
    assert_eq!(lines(&witness), ["k2", "plain"]);
    // The same after a restart: what was superseded stays so.
    world.end_agent("ship1", 9);
    world.agent("ship1", &[]);
    world.json(0, &["run", "ship1", "--sh", "true"]);
    assert_eq!(lines(&witness), ["k2", "plain"]);
}

#[test]
fn a_retry_orders_again_where_it_failed_or_nobody_answered_and_nothing_runs_twice() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.agent("ship2", &[]);
    world.end_agent("ship2", 15);
    let (witness, flag) = (world.path("witness"), world.path("flag"));
    let line =
        format!("echo $STEWARD_NODE >> {}; [ $STEWARD_NODE = hub ] || [ -e {} ]", witness.display(), flag.display());
    let first = world.json(3, &["run", "--all", "--max-output", "4KiB", "--sh", &line]);
    assert_eq!(first["counts"], json!({"succeeded": 1, "failed": 1, "queued": 1}));
    let id = first["job"].as_str().unwrap();

    let none = world.json(0, &["job", "retry", id, "--state", "timed_out"]);
    assert_eq!(none["targets"], 0);
    std::fs::write(&flag, "").unwrap();
    let output = world.steward(&["-o", "json", "job", "retry", id]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("the old order may still run"), "{output:?}");
    let second: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&second["retry_of"], &second["targets"]), (&json!(id), &json!(2)), "{second}");
    assert_eq!(second["nodes"]["ship1"]["state"], "succeeded");

    world.agent("ship2", &[]);
    let again = second["job"].as_str().unwrap();
    let of = |job: &str, node: &str| world.json(0, &["job", "show", job])["nodes"][node]["state"].clone();
    eventually("ship2 has run the new order", || of(again, "ship2") == "succeeded");
    assert_eq!(of(id, "ship2"), "cancelled", "the old one is taken back");
    let mut ran = lines(&witness);
    ran.sort();
    assert_eq!(ran, ["hub", "ship1", "ship1", "ship2"]);
    let listed = world.json(0, &["job", "ls"]);
    let listed = listed.as_array().unwrap().iter().find(|job| job["job"] == again).unwrap();
    assert_eq!(listed["retry_of"], id);
    let nothing = world.json(0, &["job", "retry", again]);
    assert_eq!(nothing["targets"], 0, "all of it has succeeded");
}

#[test]
fn an_idempotency_key_makes_one_job_however_often_it_is_given() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let line = append("once", &witness);
    let run = ["run", "ship1", "--idempotency-key", "deploy 42", "--sh", line.as_str()];
    let first = world.json(0, &run);
    let output = world.steward(&[&["-o", "json"], &run[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("under this key before"), "{output:?}");
    let second: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&second["job"], &second["nodes"]), (&first["job"], &first["nodes"]));
    for other in [
        &["run", "ship1", "--idempotency-key", "deploy 42", "--sh", "true"][..],
        &["run", "--all", "--idempotency-key", "deploy 42", "--sh", &line],
        &["run", "ship1", "--idempotency-key", "deploy 42", "--expires", "2h", "--sh", &line],
        &["call", "ship1", "hello", "--idempotency-key", "deploy 42"],
    ] {
        let refused = world.steward(other);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("was ordered before"), "{refused:?}");
    }
    let later = world.json(0, &["run", HUB, "--", "true"]);
    let listed = world.json(0, &["job", "ls"]);
    let ids: Vec<&Value> = listed.as_array().unwrap().iter().map(|job| &job["job"]).collect();
    assert_eq!(ids, [&later["job"], &first["job"]], "newest first, whatever the ids");
    assert_eq!(lines(&witness), ["once"]);
}

#[test]
fn clients_that_race_with_one_key_end_with_one_job() {
    let world = World::up();
    let witness = world.path("witness");
    // So much that the orders do not fit the record and are stored beside it.
    let line = format!("{} # {}", append("once", &witness), "x".repeat(300_000));
    let script = world.path("script.sh");
    std::fs::write(&script, line).unwrap();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            world::program()
                .arg("--home")
                .arg(world.home())
                .args(["-o", "json", "run", HUB, "--idempotency-key", "race", "--script", script.to_str().unwrap()])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let jobs: Vec<Value> = clients
        .into_iter()
        .map(|client| {
            let output = client.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            serde_json::from_slice::<Value>(&output.stdout).unwrap()
        })
        .collect();
    assert!(jobs.iter().all(|job| job["job"] == jobs[0]["job"]));
    assert_eq!(lines(&witness), ["once"]);
    assert_eq!(world.json(0, &["job", "ls"]).as_array().unwrap().len(), 1);
}
