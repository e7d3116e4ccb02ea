//! Events from where they happen to where they are kept: every one, once and in order, whatever is killed on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use world::{HUB, World, eventually, lines, send};

/// What a random generator of a test draws.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Writes numbered lines, and has them rotated in every way that there is.
struct Writer {
    path: PathBuf,
    file: std::fs::File,
    next: u64,
    rotations: u64,
    random: Random,
}

impl Writer {
    fn new(path: PathBuf, seed: u64) -> Self {
        let file = Self::open(&path);
        Self { path, file, next: 0, rotations: 0, random: Random(seed) }
    }

    fn open(path: &Path) -> std::fs::File {
        std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap()
    }

    fn write(&mut self, count: u64) {
        let mut text = String::new();
        for _ in 0..count {
            text.push_str(&format!("{} GET /a/page.html?id={} HTTP/1.1\n", self.next, self.next * 7919 % 1000));
            self.next += 1;
        }
        self.file.write_all(text.as_bytes()).unwrap();
    }

    fn rotate(&mut self) {
        // The clock of a file system ticks every few milliseconds: what is rotated twice within one has no order.
        std::thread::sleep(Duration::from_millis(10));
        self.rotations += 1;
        let old = self.path.with_file_name(format!("log.{}", self.rotations));
        match self.random.below(4) {
            // Copied and emptied.
            0 => {
                std::fs::copy(&self.path, &old).unwrap();
                self.file.set_len(0).unwrap();
            }
            // Renamed, and the writer takes notice late.
            1 => {
                std::fs::rename(&self.path, &old).unwrap();
                drop(Self::open(&self.path));
                self.write(3);
                self.file = Self::open(&self.path);
            }
            // Renamed, and compressed a while later.
            2 => {
                std::fs::rename(&self.path, &old).unwrap();
                self.file = Self::open(&self.path);
                std::process::Command::new("gzip").arg(&old).status().unwrap();
            }
            _ => {
                std::fs::rename(&self.path, &old).unwrap();
                self.file = Self::open(&self.path);
            }
        }
    }
}

fn station_pid(world: &World) -> i32 {
    let home = world.home().to_str().unwrap().to_owned();
    let mut found = Vec::new();
    // It may be about to be started again.
    eventually("there is a station", || {
        found = world::pids(|line| line.contains(" station ") && line.contains(&home));
        !found.is_empty()
    });
    found[0]
}

fn with_station(config: &str) -> World {
    let mut world = World::up();
    world.stop_up();
    let out = world.path("out").display().to_string();
    std::fs::write(world.path("station.toml"), config.replace("OUT", &out)).unwrap();
    world.start_up();
    world
}

fn followed(world: &World, name: &str, source: &str) -> String {
    let config = format!("[[event]]\nmethod = \"syslogforwarding\"\ndomain = \"nginx\"\n{source}\n");
    let path = world.path(&format!("{name}.toml"));
    std::fs::write(&path, config).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn every_line_arrives_once_and_in_order_whatever_is_killed() {
    let mut world = with_station("[[receive]]\nmethod = \"syslogforwarding\"\nfile = \"OUT/{domain}/{from}.log\"\n");
    // The place where they shall go is not there yet: the receiver holds its own.
    std::fs::write(world.path("out"), "in the way").unwrap();
    let logs = tempfile::tempdir().unwrap();
    let seed = std::env::var("STEWARD_SEED").map_or(7, |seed| seed.parse().unwrap());
    let mut writer = Writer::new(logs.path().join("log"), seed);
    let config = followed(&world, "ship1", &format!("file = {:?}", writer.path));
    world.agent("ship1", &["--config", &config]);
    for round in 0..12_u64 {
        writer.write(1500);
        if round % 2 == 1 {
            writer.rotate();
            writer.write(200);
        }
        match round {
            2 => std::fs::remove_file(world.path("out")).unwrap(),
            3 | 8 => {
                world.end_agent("ship1", 9);
                writer.write(500);
                writer.rotate();
                writer.write(50);
                world.start_agent("ship1", &["--config", &config]);
            }
            5 => send(world.broker_pid(), 9),
            6 | 10 => send(station_pid(&world), 9),
            _ => {}
        }
        // Neither always before nor always after they were read.
        std::thread::sleep(Duration::from_millis(100 * writer.random.below(6)));
    }
    let arrived = world.path("out/nginx/ship1.log");
    let count = usize::try_from(writer.next).unwrap();
    eventually("all lines arrive", || lines(&arrived).len() >= count);
    // What would come twice may come a moment later.
    std::thread::sleep(Duration::from_millis(500));
    let numbers: Vec<u64> =
        lines(&arrived).iter().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    let wrong = numbers.iter().enumerate().find(|(index, number)| **number != *index as u64);
    if wrong.is_some() {
        println!("{}", std::fs::read_to_string(world.path("ship1.log")).unwrap());
        let files = std::process::Command::new("ls").args(["-la", "--time-style=full-iso"]).arg(logs.path()).output();
        println!("{}", String::from_utf8_lossy(&files.unwrap().stdout));
    }
    assert_eq!(
        (numbers.len(), wrong),
        (count, None),
        "{:?}",
        &numbers[wrong.map_or(0, |(at, _)| at)..].iter().take(5).collect::<Vec<_>>()
    );
    let metrics = world::get(world.ready["http"].as_str().unwrap(), "/metrics");
    assert!(metrics.contains("\nsteward_receivers_failing 0\n"), "{metrics}");
}

#[test]
fn a_node_receives_what_others_report_to_it_whatever_is_killed() {
    let mut world = World::up();
    let out = tempfile::tempdir().unwrap();
    let logs = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    // The place where the second receiver's shall go is not there yet: it holds its place, and the first goes on.
    std::fs::write(at("late"), "in the way").unwrap();
    let config = format!(
        "[[receive]]\nmethod = \"syslogforwarding\"\nfrom = \"ship1\"\nfile = \"{0}/{{from}}.log\"\n\
         [[receive]]\nfile = \"{0}/late/{{from}}-{{domain}}.log\"\n",
        out.path().display()
    );
    std::fs::write(world.path("ship2.toml"), config).unwrap();
    let receiver = world.path("ship2.toml").to_str().unwrap().to_owned();
    let mut writer = Writer::new(logs.path().join("log"), 11);
    let sender = followed(&world, "ship1", &format!("to = \"ship2\"\nfile = {:?}", writer.path));
    world.agent("ship1", &["--config", &sender]);
    world.agent("ship2", &["--config", &receiver]);
    for round in 0..9_u64 {
        writer.write(700);
        match round {
            1 | 6 => {
                world.end_agent("ship2", 9);
                writer.write(300);
                world.start_agent("ship2", &["--config", &receiver]);
            }
            2 => send(world.broker_pid(), 9),
            4 => {
                world.end_agent("ship1", 9);
                writer.rotate();
                world.start_agent("ship1", &["--config", &sender]);
            }
            // More than is kept at hand for who lags behind.
            3 => (0..80).for_each(|n| {
                world.json(0, &["event", "emit", "log/many", "--to", "ship2", "--message", &n.to_string()]);
            }),
            5 => std::fs::remove_file(at("late")).unwrap(),
            7 => {
                world.json(0, &["event", "emit", "log/word", "--to", "ship2", "--message", "of an operator"]);
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(100 * writer.random.below(5)));
    }
    let count = usize::try_from(writer.next).unwrap();
    for arrived in [at("ship1.log"), at("late/ship1-nginx.log")] {
        eventually("all lines arrive", || lines(&arrived).len() >= count);
    }
    eventually("the operator's word arrives", || lines(&at("late/central-word.log")) == ["of an operator"]);
    assert_eq!(lines(&at("late/central-many.log")), (0..80).map(|n| n.to_string()).collect::<Vec<_>>());
    std::thread::sleep(Duration::from_millis(500)); // what would come twice
    for arrived in [at("ship1.log"), at("late/ship1-nginx.log")] {
        let numbers: Vec<u64> =
            lines(&arrived).iter().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (0..writer.next).collect::<Vec<_>>(), "{}", arrived.display());
    }
    assert!(!at("central.log").exists(), "the first receiver takes what ship1 reports and nothing else");
    // A node tells how its processes stand every now and then.
    eventually("both receivers stand as if nothing had been", || {
        let shown = world.json(0, &["ps", "ship2"]);
        let receivers: Vec<&Value> = shown
            .as_array()
            .unwrap()
            .iter()
            .filter(|process| process["subject"].as_str().unwrap().starts_with("ship2.event."))
            .collect();
        assert_eq!(receivers.len(), 2, "{shown}");
        assert!(receivers.iter().all(|receiver| receiver["failed"] == 0), "{shown}");
        // What has ever been in the way: the broker that was killed, and the place that was not there.
        assert!(!shown.to_string().contains("the broker refused"), "{shown}");
        receivers.iter().all(|receiver| receiver["state"] == "receiving")
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_cannot_use_of_what_it_is_told_is_put_aside() {
    let mut world = World::up();
    let out = tempfile::tempdir().unwrap();
    let config = format!("[[receive]]\nfile = \"{}/{{from}}.log\"\n", out.path().display());
    std::fs::write(world.path("ship2.toml"), config).unwrap();
    world.agent("ship2", &["--config", world.path("ship2.toml").to_str().unwrap()]);
    let bus = world.operator_bus().await;
    bus.publish("ship2.event.log.x", bus::Headers::new(), "not signed".into()).await.unwrap();
    eventually("it is put aside", || {
        let letters = world.steward(&["event", "ls", "--to", "ship2", "--method", "deadletter", "-o", "ndjson"]);
        String::from_utf8(letters.stdout).unwrap().contains("bm90IHNpZ25lZA==")
    });
    eventually("the node says so", || {
        let shown = world.json(0, &["ps", "ship2"]);
        shown.as_array().unwrap().iter().any(|process| process["failed"] == 1)
    });
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

/// Adds numbered entries to a file of the systemd journal, as another journald would send them.
fn add_to_journal(file: &Path, numbers: std::ops::Range<u64>, unit: &str) {
    let mut adder = std::process::Command::new(JOURNAL_WRITER)
        .args(["--output", file.to_str().unwrap(), "-"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut input = adder.stdin.take().unwrap();
    for number in numbers {
        let (at, since) = (1_795_492_819_000_000 + number, 1000 + number);
        write!(
            input,
            "__REALTIME_TIMESTAMP={at}\n__MONOTONIC_TIMESTAMP={since}\n_BOOT_ID=4f3d1f0e6a5b4c7d8e9fa0b1c2d3e4f5\n\
             MESSAGE={number}\nPRIORITY=4\n_SYSTEMD_UNIT={unit}\n\n"
        )
        .unwrap();
    }
    drop(input);
    assert!(adder.wait().unwrap().success());
}

/// Part of Debian's package systemd-journal-remote.
const JOURNAL_WRITER: &str = "/lib/systemd/systemd-journal-remote";

#[test]
fn the_systemd_journal_is_read_on_where_it_was_left_whatever_is_killed() {
    if !Path::new(JOURNAL_WRITER).exists() {
        assert!(std::env::var_os("STEWARD_JOURNAL").is_none(), "there is no {JOURNAL_WRITER}");
        println!("left out: there is no {JOURNAL_WRITER} (apt-get install systemd-journal-remote)");
        return;
    }
    let mut world = World::up();
    let journal = tempfile::tempdir().unwrap();
    let file = journal.path().join("a.journal");
    add_to_journal(&file, 0..5, "nginx.service");
    let source = format!("journald = {{ units = [\"nginx.service\"], directory = {:?} }}", journal.path());
    let config = followed(&world, "ship1", &source);
    world.agent("ship1", &["--config", &config]);
    let state = |world: &World| {
        let shown = world.json(0, &["ps", "ship1"]);
        let all = shown.as_array().unwrap();
        all.iter().find(|one| one["subject"] == "central.event.syslogforwarding.nginx").unwrap()["state"].clone()
    };
    eventually("it is read", || state(&world) == "listening");
    add_to_journal(&file, 5..300, "nginx.service");
    add_to_journal(&file, 300..310, "other.service");
    world.end_agent("ship1", 9);
    add_to_journal(&file, 310..320, "nginx.service");
    world.start_agent("ship1", &["--config", &config]);
    add_to_journal(&file, 320..325, "nginx.service");
    let expected: Vec<u64> = (5..300).chain(310..325).collect();
    let arrived = |world: &World| {
        let records = told(world, "nginx");
        records
            .iter()
            .map(|event| event["record"]["message"].as_str().unwrap().parse().unwrap_or(0))
            .collect::<Vec<u64>>()
    };
    eventually("all entries arrive", || arrived(&world).len() >= expected.len());
    assert_eq!(arrived(&world), expected, "what was there before is not told, all else once and in order");
    let first = told(&world, "nginx").swap_remove(0);
    assert_eq!(first["at"], "2026-11-24T04:00:19.000Z", "the entry's own time");
    assert_eq!(first["record"], json!({"message": "5", "severity": "warning", "unit": "nginx.service"}));
    // The journal is emptied while nobody looks.
    world.end_agent("ship1", 9);
    std::fs::remove_file(&file).unwrap();
    add_to_journal(&file, 400..402, "nginx.service");
    world.start_agent("ship1", &["--config", &config]);
    eventually("the rest arrives", || arrived(&world).len() == expected.len() + 3);
    let rest = told(&world, "nginx").split_off(expected.len());
    assert_eq!((&rest[0]["record"]["gap"], &rest[1]["record"]["message"]), (&json!(true), &json!("400")));
}

/// A site that takes events, but for what has this word in it; what it has taken.
fn site(port: u16, refused: &'static str) -> std::sync::Arc<std::sync::Mutex<Vec<String>>> {
    use std::io::{BufRead, BufReader, Read};
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let taken = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let all = std::sync::Arc::clone(&taken);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            for line in reader.by_ref().lines() {
                let line = line.unwrap_or_default().to_lowercase();
                if let Some(bytes) = line.strip_prefix("content-length: ") {
                    length = bytes.parse().unwrap();
                }
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            let _ = reader.read_exact(&mut body);
            let body = String::from_utf8(body).unwrap();
            let status = if body.contains(refused) { "400 Bad Request" } else { "200 OK" };
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            if status == "200 OK" {
                all.lock().unwrap().push(body);
            }
        }
    });
    taken
}

#[test]
fn of_what_is_refused_for_good_only_what_is_in_the_way_is_put_aside() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let world = with_station(&format!("[[receive]]\nwebhook = \"http://127.0.0.1:{port}/\"\n"));
    // Nobody listens yet: the first is held, and the others wait behind it, together.
    for text in ["first", "second", "poison", "third"] {
        world.json(0, &["event", "emit", "log/x", "--message", text]);
    }
    let metric = |world: &World| world::get(world.ready["http"].as_str().unwrap(), "/metrics");
    eventually("it is held", || metric(&world).contains("\nsteward_receivers_failing 1\n"));
    let taken = site(port, "poison");
    eventually("the rest arrives", || taken.lock().unwrap().concat() == "first\nsecond\nthird\n");
    eventually("the poison is put aside", || {
        let letters = world.steward(&["event", "ls", "--method", "deadletter", "-o", "ndjson"]);
        let letters = String::from_utf8(letters.stdout).unwrap();
        letters.lines().count() == 1 && letters.contains("400 Bad Request")
    });
    eventually("nothing is held any more", || metric(&world).contains("\nsteward_receivers_failing 0\n"));
    world.json(0, &["event", "emit", "log/x", "--message", "fourth"]);
    eventually("it goes on", || taken.lock().unwrap().concat().ends_with("third\nfourth\n"));
}

/// Records that `event ls` shows about a domain.
fn told(world: &World, domain: &str) -> Vec<Value> {
    let output = world.steward(&["event", "ls", "--domain", domain, "-o", "ndjson"]);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect()
}

#[test]
fn syslog_sockets_programs_and_globs_are_sources() {
    let mut world = World::up();
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let config = format!(
        "[[event]]\nmethod=\"log\"\ndomain=\"udp\"\nsyslog=\"udp://127.0.0.1:{port}\"\n\
         [[event]]\nmethod=\"log\"\ndomain=\"tcp\"\nsyslog=\"tcp://127.0.0.1:{port}\"\nredact=[\"[0-9]{{16}}\"]\n\
         [[event]]\nmethod=\"log\"\ndomain=\"socket\"\nsocket={:?}\n\
         [[event]]\nmethod=\"log\"\ndomain=\"program\"\ncommand={{argv=[\"echo\", \"hello there\"], every=\"1s\"}}\n\
         [[event]]\nmethod=\"log\"\ndomain=\"scrape\"\nhttp={{url={:?}, every=\"1s\"}}\nparse=\"prometheus\"\nkeep=[\"^steward_\"]\n\
         [[event]]\nmethod=\"log\"\ndomain=\"gone\"\nhttp={{url=\"http://u:secret@127.0.0.1:1/\", every=\"1s\"}}\n\
         [[event]]\nmethod=\"log\"\ndomain=\"files\"\nfiles=[{:?}]\ndrop=[\"debug\"]\nparse=\"json\"\n",
        at("sock"),
        format!("{}/metrics", world.ready["http"].as_str().unwrap()),
        at("*.log").display().to_string()
    );
    std::fs::write(world.path("ship1.toml"), config).unwrap();
    std::fs::write(at("a.log"), "{\"n\":1}\n{\"level\":\"debug\"}\n").unwrap();
    world.agent("ship1", &["--config", world.path("ship1.toml").to_str().unwrap()]);
    std::fs::write(at("b.log"), "plain\n").unwrap();
    eventually("the socket is there", || at("sock").exists());
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    eventually("a datagram arrives", || {
        udp.send_to(b"<34>Oct 11 22:14:15 host su[1]: by datagram", ("127.0.0.1", port)).unwrap();
        !told(&world, "udp").is_empty()
    });
    let record = told(&world, "udp")[0]["record"].clone();
    assert_eq!(
        (&record["severity"], &record["app"], &record["message"]),
        (&json!("crit"), &json!("su"), &json!("by datagram"))
    );
    let mut tcp = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    tcp.write_all(b"<13>card 1234567812345678 here\n24 <13>counted and\nin lines\n").unwrap();
    eventually("a stream arrives", || told(&world, "tcp").len() == 2);
    let messages: Vec<Value> = told(&world, "tcp").iter().map(|event| event["record"]["message"].clone()).collect();
    assert_eq!(messages, [json!("card *** here"), json!("counted and\nin lines")]);
    UnixStream::connect(at("sock")).unwrap().write_all(b"{\"message\":\"by hand\",\"ok\":true}\nand plain\n").unwrap();
    eventually("a local program is heard", || told(&world, "socket").len() == 2);
    assert_eq!(told(&world, "socket")[0]["record"], json!({"message": "by hand", "ok": true}));
    eventually("a program has run twice", || told(&world, "program").len() >= 2);
    assert_eq!(told(&world, "program")[0]["record"]["message"], "hello there");
    eventually("samples arrive", || !told(&world, "scrape").is_empty());
    let samples = told(&world, "scrape");
    assert!(samples.iter().all(|event| event["record"]["value"].is_number()), "{samples:?}");
    assert!(samples.iter().any(|event| event["record"]["labels"]["state"] == "online"), "{samples:?}");
    eventually("who does not answer is told of", || !told(&world, "gone").is_empty());
    let silence = told(&world, "gone")[0]["record"].to_string();
    assert!(silence.contains("http://127.0.0.1:1/ cannot be read") && !silence.contains("secret"), "{silence}");
    eventually("both files are followed", || told(&world, "files").len() == 2);
    let files: Vec<Value> = told(&world, "files").iter().map(|event| event["record"].clone()).collect();
    assert!(
        files.contains(&json!({"n": 1, "file": at("a.log")}))
            && files.contains(&json!({"message": "plain", "file": at("b.log")}))
    );
    let shown = world.json(0, &["ps", "ship1"]);
    let files = shown
        .as_array()
        .unwrap()
        .iter()
        .find(|process| process["subject"].as_str().unwrap().ends_with(".files"))
        .unwrap();
    assert_eq!((&files["handled"], &files["failed"]), (&json!(2), &json!(1)), "one was not wanted");
}

#[test]
fn what_is_urgent_leaves_though_the_budget_of_the_link_is_used_up() {
    let mut world = World::up();
    let at = |name: &str| world.path(name).display().to_string();
    let config = format!(
        "link=\"metered\"\nbudget=\"16KiB\"\nlife_sign=\"1s\"\n\
         [[event]]\nmethod=\"log\"\ndomain=\"debug\"\npriority=\"low\"\nfile={:?}\n\
         [[event]]\nmethod=\"log\"\ndomain=\"alarm\"\npriority=\"urgent\"\nfile={:?}\n",
        at("debug.log"),
        at("alarm.log")
    );
    std::fs::write(world.path("ship1.toml"), config).unwrap();
    // Digests, which no compression makes small.
    let line = |number: u32| {
        format!(
            "{number} {}\n",
            (0..16).fold(u64::from(number), |text, n| text.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n))
        )
    };
    std::fs::write(world.path("debug.log"), (0..1000).map(line).collect::<String>()).unwrap();
    let config = world.path("ship1.toml").display().to_string();
    world.agent("ship1", &["--config", &config]);
    eventually("some of it arrives", || !told(&world, "debug").is_empty());
    std::fs::write(world.path("alarm.log"), "fire\n").unwrap();
    eventually("the alarm arrives", || told(&world, "alarm").len() == 1);
    let came = told(&world, "debug").len();
    assert!(came < 500, "{came} of 1000 lines are more than the budget allows");
    // It has all of it, and tells it in time.
    let shown = world.json(0, &["ps", "ship1"]);
    assert!(shown.as_array().unwrap().iter().any(|process| process["handled"] == 1000), "{shown}");
}

#[test]
fn what_an_agent_warns_of_is_in_the_fleets_error_log_unless_it_is_told_not_to() {
    let mut world = World::up();
    let config = "[[event]]\nmethod=\"log\"\ndomain=\"x\"\ncommand={argv=[\"/nowhere\"], every=\"1s\"}\n";
    for (name, more) in [("ship1", ""), ("ship2", "error_log=false\n")] {
        let path = world.path(&format!("{name}.toml"));
        std::fs::write(&path, format!("{more}{config}")).unwrap();
        world.agent(name, &["--config", path.to_str().unwrap()]);
    }
    let list = |condition: &str, more: &[&str]| {
        let arguments = ["event", "ls", "--method", "errorlog", "--where", condition, "-o", "ndjson"];
        let output = world.steward(&[&arguments, more].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    eventually("it is told", || !list("name == 'ship1'", &[]).is_empty());
    let told = &list("record.level == 'warn' && record.error.contains('/nowhere')", &[])[0];
    assert_eq!((&told["from"], &told["domain"]), (&json!("ship1"), &json!("agent")));
    assert_eq!(told["record"]["message"], "an event source has trouble");
    // The other one has the same trouble, and has had the time.
    eventually("the other one has it, too", || {
        let shown = world.json(0, &["ps", "ship2"]);
        shown
            .as_array()
            .unwrap()
            .iter()
            .any(|process| process["last_error"].as_str().is_some_and(|text| text.contains("/nowhere")))
    });
    assert_eq!(list("name == 'ship2'", &[]), [] as [Value; 0]);
    // What was stored before an hour ago, or within it.
    assert_eq!(list("true", &["--until", "1h"]), [] as [Value; 0]);
    assert!(!list("true", &["--since", "1h", "--until", "0s"]).is_empty());
    for (wrong, says) in [
        (["--since", "1h", "--until", "2h"], "before the beginning"),
        (["--since", "1h", "--where", "facts.cpus > 2"], "^"),
    ] {
        let output = world.steward(&[&["event", "ls"][..], &wrong].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(says), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_is_put_aside_with_the_reason() {
    let world = with_station("[[receive]]\nmethod = \"*\"\nfile = \"OUT/{from}.log\"\n");
    let bus = world.operator_bus().await;
    bus.publish("central.event.log.x", bus::Headers::new(), "not signed".into()).await.unwrap();
    world.json(0, &["event", "emit", "log/x", "--message", "signed"]);
    eventually("what is signed arrives", || lines(&world.path("out/central.log")) == ["signed"]);
    eventually("the other one is put aside", || {
        let letters = world.steward(&["event", "ls", "--method", "deadletter", "-o", "ndjson"]);
        let letters = String::from_utf8(letters.stdout).unwrap();
        letters.contains("\"subject\":\"central.event.log.x\"") && letters.contains("bm90IHNpZ25lZA==")
    });
    assert_eq!(lines(&world.path("out/central.log")), ["signed"], "letters go nowhere by a glob");
    let complaints = || told(&world, "station").into_iter().filter(|event| event["method"] == "errorlog");
    eventually("the station complains of it", || complaints().count() > 0);
    let complaint = complaints().next().unwrap();
    assert_eq!((&complaint["from"], &complaint["record"]["level"]), (&Value::Null, &json!("warn")));
    assert_eq!(complaint["record"]["subject"], "central.event.log.x");
    let letter = bus.last("EVENTS", "central.event.deadletter.x").await.unwrap().unwrap();
    let attribute = |name: &str| letter.header(name).unwrap();
    assert_eq!(
        ["ce-specversion", "ce-type", "ce-source", "ce-subject", "ce-datacontenttype"].map(attribute),
        ["1.0", "steward.event.deadletter", "/steward/nodes/central", "x", "application/json"]
    );
    assert!(attribute("ce-id").starts_with("dead-") && attribute("ce-time").parse::<message::Timestamp>().is_ok());
    assert_eq!(world.state(HUB), "online");
}
