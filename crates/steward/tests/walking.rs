//! The whole path: an order goes out, is executed and answered; an event comes in.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;
use world::{HUB, World, program};

#[test]
fn an_order_to_three_units_is_answered_by_each() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.agent("ship2", &[]);

    let plain = world.steward(&["run", HUB, "--", "uname", "-a"]);
    assert_eq!(plain.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&plain.stdout).starts_with("Linux "), "{plain:?}");

    let job = world.json(0, &["run", "--all", "--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(job["targets"], 3);
    assert_eq!(job["counts"], json!({"succeeded": 3}));
    for node in [HUB, "ship1", "ship2"] {
        let node = &job["nodes"][node];
        assert_eq!(node["state"], "succeeded");
        assert_eq!((&node["stdout"], &node["stderr"]), (&json!("out\n"), &json!("err\n")));
        assert_eq!((&node["exit_code"], &node["truncated"]), (&json!(0), &json!(false)));
        assert!(node["delivered_at"].as_str() <= node["started_at"].as_str());
        assert!(node["started_at"].as_str() <= node["finished_at"].as_str());
    }
    let shown = world.json(0, &["job", "show", job["job"].as_str().unwrap()]);
    assert_eq!(shown["nodes"], job["nodes"]);
    let listed = world.json(0, &["job", "ls"]);
    assert_eq!(listed[0]["job"], job["job"], "newest first");

    let failed = world.steward(&["run", "ship*", "--sh", "echo out; echo err >&2; exit 3"]);
    assert_eq!(failed.status.code(), Some(3));
    let stdout = String::from_utf8_lossy(&failed.stdout);
    assert!(stdout.contains("ship1 | out") && stdout.contains("ship2 | out"), "{failed:?}");
    let stderr = String::from_utf8_lossy(&failed.stderr);
    assert!(stderr.contains("ship1 | err") && stderr.contains("exit code 3"), "{failed:?}");

    let processes = world.json(0, &["ps", "ship1"]);
    let shell =
        processes.as_array().unwrap().iter().find(|p| p["subject"] == "ship1.command.shellcommand.operatingsystem");
    let shell = shell.unwrap();
    assert_eq!((&shell["handled"], &shell["failed"], &shell["restarts"]), (&json!(2), &json!(1), &json!(0)));
}

#[test]
fn ndjson_tells_what_happens_as_it_happens_and_ends_with_a_summary() {
    let world = World::up();
    let output = world.steward(&["-o", "ndjson", "run", HUB, "--", "printf", "a\\377b"]);
    assert_eq!(output.status.code(), Some(0));
    let lines: Vec<serde_json::Value> = output
        .stdout
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    let states: Vec<_> = lines.iter().filter(|l| l["type"] == "state").map(|l| l["state"].as_str().unwrap()).collect();
    assert_eq!(states.last(), Some(&"succeeded"));
    let out = lines.iter().find(|l| l["type"] == "output").unwrap();
    assert_eq!((&out["node"], &out["stream"], &out["data_base64"]), (&json!(HUB), &json!("stdout"), &json!("Yf9i")));
    let last = lines.last().unwrap();
    assert_eq!((&last["type"], &last["counts"]), (&json!("summary"), &json!({"succeeded": 1})));
}

#[test]
fn exit_codes_say_what_became_of_it() {
    let world = World::up();
    let code = |arguments: &[&str]| world.steward(arguments).status.code();
    assert_eq!(code(&["run", HUB, "--", "true"]), Some(0));
    assert_eq!(code(&["run", HUB, "--", "false"]), Some(3));
    assert_eq!(code(&["run", HUB, "--", "no-such-program"]), Some(3));
    assert_eq!(code(&["run", HUB, "--timeout", "300ms", "--", "sleep", "60"]), Some(3));
    assert_eq!(code(&["call", HUB, "no-such-method"]), Some(3));
    assert_eq!(code(&["run", HUB, "--wait", "300ms", "--", "sleep", "5"]), Some(4));
    assert_eq!(code(&["run", "nobody", "--", "true"]), Some(5));
    assert_eq!(code(&["run", "nobody*", "--", "true"]), Some(5));
    assert_eq!(code(&["run", "no body", "--", "true"]), Some(2));
    assert_eq!(code(&["run", "--", "true"]), Some(2));
    assert_eq!(code(&["run", HUB]), Some(2));
    assert_eq!(code(&["--server", "nats://127.0.0.1:1", "run", HUB, "--", "true"]), Some(1));
}

#[test]
fn a_script_travels_with_its_order_and_a_method_can_be_any_executable() {
    use std::os::unix::fs::PermissionsExt;
    let mut world = World::up();
    world.agent("ship1", &[]);
    let script = world.path("script.sh");
    std::fs::write(&script, "#!/bin/sh\nread line\necho \"$line $GREETING $(pwd) $STEWARD_NODE\"\n").unwrap();
    let input = world.path("input");
    std::fs::write(&input, "hello\n").unwrap();
    let (script, input) = (script.to_str().unwrap(), input.to_str().unwrap());
    let arguments = ["run", "ship1", "--script", script, "--stdin", input, "--env", "GREETING=world", "--cwd", "/"];
    assert_eq!(world.json(0, &arguments)["nodes"]["ship1"]["stdout"], "hello world / ship1\n");

    let methods = world.path("nodes/ship1/methods.d");
    std::fs::create_dir_all(&methods).unwrap();
    let method = methods.join("greet");
    std::fs::write(&method, "#!/bin/sh\nprintf '{\"order\": %s}' \"$(cat)\"\n").unwrap();
    std::fs::set_permissions(&method, std::fs::Permissions::from_mode(0o755)).unwrap();
    let called = world.json(0, &["call", "ship1", "greet/people", "name=Ada", "count=2"]);
    let order = &called["nodes"]["ship1"]["data"]["order"];
    assert_eq!(order["args"], json!({"name": "Ada", "count": 2}));
    assert_eq!((&order["method"], &order["domain"]), (&json!("greet"), &json!("people")));

    let http = world.ready["http"].as_str().unwrap().to_owned();
    let fetched = world.json(0, &["call", "ship1", "httpget", &format!("url={http}/healthz")]);
    assert_eq!(fetched["nodes"]["ship1"]["data"]["status"], 200);
}

#[test]
fn the_end_of_a_file_is_shown_and_what_is_added_to_it() {
    let world = World::up();
    let path = world.path("app.log");
    std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
    let path_is = format!("path={}", path.display());
    let last = world.json(0, &["call", HUB, "tailfile", &path_is, "lines=2", "follow=false"]);
    assert_eq!(last["nodes"][HUB]["stdout"], "two\nthree\n");
    // Until the time-out, also through a rotation; whoever looks on has not failed then.
    let rotating = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1200));
        std::fs::rename(&path, path.with_extension("1")).unwrap();
        std::fs::write(&path, "four\n").unwrap();
    });
    let followed = world.json(0, &["call", HUB, "tailfile", &path_is, "lines=1", "--timeout", "4s"]);
    rotating.join().unwrap();
    let node = &followed["nodes"][HUB];
    assert_eq!((&node["state"], &node["stdout"]), (&json!("succeeded"), &json!("three\nfour\n")), "{followed}");
    for wrong in ["path=app.log", "path=/var/log/../../etc/shadow", "path=/x line=3"] {
        let arguments: Vec<&str> = ["call", HUB, "tailfile"].into_iter().chain(wrong.split(' ')).collect();
        assert_eq!(world.json(3, &arguments)["nodes"][HUB]["state"], "failed", "{wrong}");
    }
}

#[test]
fn too_much_output_is_cut_and_told() {
    let world = World::up();
    let job = world.json(0, &["run", HUB, "--max-output", "64KiB", "--sh", "head -c 300000 /dev/zero | tr '\\0' x"]);
    let node = &job["nodes"][HUB];
    assert_eq!(node["truncated"], true);
    assert_eq!(node["stdout"].as_str().unwrap().len(), 65_536);
}

#[test]
fn appended_lines_are_seen_within_a_second_and_survive_a_kill_of_the_agent() {
    let mut world = World::up();
    let log = world.path("access.log");
    let config = world.path("ship1.toml");
    std::fs::write(
        &config,
        format!("[[event]]\nmethod = \"syslogforwarding\"\ndomain = \"nginx\"\nfile = {:?}\n", log.to_str().unwrap()),
    )
    .unwrap();
    world.agent("ship1", &["--config", config.to_str().unwrap()]);
    let mut follow = program()
        .arg("--home")
        .arg(world.home())
        .args(["event", "follow", "--domain", "nginx", "-o", "ndjson"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(follow.stdout.take().unwrap()).lines();
    let append = |text: &str| {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Instant::now()
    };
    // Until the follower is there, nobody knows when a line should have been seen: the first one is not timed.
    append("zero\n");
    let mut next = || -> serde_json::Value { serde_json::from_str(&events.next().unwrap().unwrap()).unwrap() };
    world::eventually("the first event is stored", || {
        !world.steward(&["event", "ls", "--domain", "nginx", "-o", "ndjson"]).stdout.is_empty()
    });
    append("one\n");
    let mut event = next();
    if event["record"]["message"] == "zero" {
        event = next();
    }
    let written = append("two\n");
    let second = next();
    assert!(written.elapsed() < Duration::from_secs(1), "{:?}", written.elapsed());
    assert_eq!(event["record"]["message"], "one");
    assert_eq!(second["subject"], "central.event.syslogforwarding.nginx");
    assert_eq!((&second["from"], &second["to"]), (&json!("ship1"), &json!("central")));
    assert_eq!(second["record"], json!({"message": "two"}));

    world.end_agent("ship1", 9);
    append("three\nfour\n");
    world.agent("ship1", &["--config", config.to_str().unwrap()]);
    append("five\n");
    let messages: Vec<_> = (0..3).map(|_| next()["record"]["message"].as_str().unwrap().to_owned()).collect();
    assert_eq!(messages, ["three", "four", "five"], "none lost, none twice, in order");
    let _ = follow.kill();
    let _ = follow.wait();
}
