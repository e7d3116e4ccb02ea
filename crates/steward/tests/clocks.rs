//! Wrong clocks, at the unit, at the client and at the station: nothing that has expired runs, nothing valid is dropped.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

mod world;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use testkit::wrong_clock::WrongClock;
use world::{HUB, World, eventually, lines, program};

const TERM: i32 = 15;
const DAY_MS: i64 = 24 * 3600 * 1000;
/// What two looks at a clock may be apart on a machine that is busy.
const LEEWAY_MS: i64 = 30_000;

fn about(found: i64, expected: i64) -> bool {
    (found - expected).abs() < LEEWAY_MS
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// Milliseconds since 1970, by the system's own program.
fn ms(time: &Value) -> i64 {
    let text = time.as_str().unwrap_or_else(|| panic!("no time: {time}"));
    let said = std::process::Command::new("date").args(["-d", text, "+%s%3N"]).output().unwrap();
    String::from_utf8(said.stdout).unwrap().trim().parse().unwrap()
}

/// Runs the program by a wrong clock.
fn by(clock: &WrongClock, world: &World, arguments: &[&str]) -> Output {
    program()
        .arg("--home")
        .arg(world.home())
        .args(["-o", "json"])
        .args(arguments)
        .envs(clock.environment())
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn node<'a>(job: &'a Value, name: &str) -> &'a Value {
    &job["nodes"][name]
}

fn line(file: &Path, word: &str) -> String {
    format!("echo {word} >> {}", file.display())
}

fn start(world: &mut World, clock: &WrongClock) {
    let config = world.path("quick.toml");
    std::fs::write(&config, "life_sign = \"1s\"\n").unwrap();
    world.start_agent_in("ship1", &["--config", config.to_str().unwrap()], clock.environment());
    world.wait_for_state("ship1", "online");
}

fn a_unit_whose_clock_is_off_by(error_ms: i64) {
    let mut world = World::up();
    let clock = WrongClock::new(world.home(), "ship1").unwrap();
    clock.set(error_ms).unwrap();
    start(&mut world, &clock);
    let file = world.path("witness");

    // What is valid runs, and its times tell by how much they are off.
    let job = world.json(0, &["run", "ship1", "--wait", "30s", "--expires", "10m", "--sh", &line(&file, "valid")]);
    let shown = world.json(0, &["job", "show", job["job"].as_str().unwrap()]);
    for time in ["delivered_at", "started_at", "finished_at"] {
        assert!(about(ms(&node(&shown, "ship1")[time]), now_ms() + error_ms), "{time}: {shown}");
    }
    let told = node(&shown, "ship1")["clock_error_ms"].as_i64().unwrap_or_default();
    assert!(about(told, error_ms), "{shown}");
    // The whole unit lives by that clock, its commands too.
    let date = world.json(0, &["run", "ship1", "--wait", "30s", "--", "date", "+%s%3N"]);
    let date = node(&date, "ship1")["stdout"].as_str().unwrap().trim().parse().unwrap();
    assert!(about(date, now_ms() + error_ms), "the commands of a unit see its clock");

    // What expired while the unit was off is reported and not run; what has not, runs.
    world.end_agent("ship1", TERM);
    let short = world.json(4, &["run", "ship1", "--detach", "--expires", "1s", "--sh", &line(&file, "expired")]);
    let long = world.json(4, &["run", "ship1", "--detach", "--expires", "10m", "--sh", &line(&file, "waited")]);
    // Longer than it may wait: nothing but time is waited for here.
    std::thread::sleep(Duration::from_millis(1500));
    start(&mut world, &clock);
    for (job, state) in [(&short, "expired"), (&long, "succeeded")] {
        eventually(state, || {
            let shown = world.json(0, &["job", "show", job["job"].as_str().unwrap()]);
            node(&shown, "ship1")["state"] == state
        });
    }
    assert_eq!(lines(&file), ["valid", "waited"]);

    // The clock jumps back to what is right, and over to the other side, while the unit is at work.
    for jumped_ms in [0, -error_ms] {
        clock.set(jumped_ms).unwrap();
        let job = world.json(0, &["run", "ship1", "--wait", "30s", "--expires", "10m", "--sh", &line(&file, "jumped")]);
        let shown = world.json(0, &["job", "show", job["job"].as_str().unwrap()]);
        let told = node(&shown, "ship1")["clock_error_ms"].as_i64().unwrap_or_default();
        assert!(about(told, jumped_ms), "as the clock stands now: {shown}");
        // It speaks on, and is heard: by its own clock nobody goes.
        let seen = last_seen(&world);
        eventually("it says again that it lives", || last_seen(&world) > seen);
        assert_eq!(world.state("ship1"), "online");
    }
    assert_eq!(lines(&file), ["valid", "waited", "jumped", "jumped"]);
}

fn last_seen(world: &World) -> i64 {
    let nodes = world.json(0, &["node", "ls"]);
    let found = nodes.as_array().unwrap().iter().find(|node| node["name"] == "ship1").unwrap().clone();
    let seen = ms(&found["last_seen"]);
    assert!(about(seen, now_ms()), "by the broker's clock: {found}");
    seen
}

#[test]
fn a_unit_whose_clock_is_a_day_ahead() {
    a_unit_whose_clock_is_off_by(DAY_MS);
}

#[test]
fn a_unit_whose_clock_is_a_day_behind() {
    a_unit_whose_clock_is_off_by(-DAY_MS);
}

#[test]
fn a_client_with_a_wrong_clock_orders_by_the_brokers_and_harms_nobody() {
    let world = World::up();
    let clock = WrongClock::new(world.home(), "client").unwrap();
    let file = world.path("witness");
    for error_ms in [-DAY_MS, DAY_MS] {
        clock.set(error_ms).unwrap();
        let order = ["run", HUB, "--wait", "30s", "--expires", "1m", "--sh"];
        let output = by(&clock, &world, &[&order[..], &[&line(&file, "wrong")]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("clock") && told.contains("the broker's"), "{told:?}");
        let shown = world.json(0, &["job", "show", json(&output)["job"].as_str().unwrap()]);
        assert!(about(ms(&shown["created_at"]), now_ms()), "{shown}");
        // Nor do its orders make those of others expire.
        let right = world.steward(&[&order[..], &[&line(&file, "right")]].concat());
        assert_eq!(right.status.code(), Some(0), "{right:?}");
        assert!(!String::from_utf8_lossy(&right.stderr).contains("clock"), "{right:?}");
        // A cancel finds what waits, too.
        let slept = json(&by(&clock, &world, &["run", HUB, "--detach", "--sh", "sleep 600"]));
        let cancelled = by(&clock, &world, &["job", "cancel", slept["job"].as_str().unwrap(), "--wait", "30s"]);
        assert_eq!(cancelled.status.code(), Some(0), "{cancelled:?}");
    }
    assert_eq!(lines(&file), ["wrong", "right", "wrong", "right"]);
}

#[test]
fn a_station_with_a_wrong_clock_sees_the_fleet_as_it_is() {
    let world = World::up();
    let clock = WrongClock::new(world.home(), "station").unwrap();
    for error_ms in [-DAY_MS, DAY_MS] {
        clock.set(error_ms).unwrap();
        let file = world.path("station.addr");
        let _ = std::fs::remove_file(&file);
        let mut station = program()
            .arg("--home")
            .arg(world.home())
            .args(["station", "--http-listen", "127.0.0.1:0", "--http-addr-file"])
            .arg(&file)
            .envs(clock.environment())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the station sees the node", || {
            let address = std::fs::read_to_string(&file).unwrap_or_default();
            get(address.trim(), "/metrics").contains("steward_nodes{state=\"online\"} 1")
        });
        let address = std::fs::read_to_string(&file).unwrap();
        assert!(get(address.trim(), "/readyz").starts_with("HTTP/1.1 200"));
        station.kill().unwrap();
        station.wait().unwrap();
    }
}

fn get(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return String::new() };
    let asked = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.write_all(asked.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
    answer
}
