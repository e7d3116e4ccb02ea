//! Alerts by the program itself: somebody who does not answer at first, an agent that is killed, and a station that is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use world::{HUB, World, eventually, lines, send};

/// Somebody who is told over HTTP.
struct Ear {
    url: String,
    answers: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    heard: Arc<Mutex<Vec<Value>>>,
}

impl Ear {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (answers, refused) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let heard: Arc<Mutex<Vec<Value>>> = Arc::default();
        let ear = Self { url, answers: answers.clone(), refused: refused.clone(), heard: heard.clone() };
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut length) = (String::new(), 0);
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                // A station that was killed may have sent only a part.
                if reader.read_exact(&mut body).is_err() || length == 0 {
                    continue;
                }
                let code = if answers.load(Ordering::SeqCst) {
                    let body: Value = serde_json::from_slice(&body).unwrap();
                    heard.lock().unwrap().extend(body["notices"].as_array().unwrap().iter().cloned());
                    "200 OK"
                } else {
                    refused.fetch_add(1, Ordering::SeqCst);
                    "503 Not now"
                };
                let answer = format!("HTTP/1.1 {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        ear
    }

    /// The ids of what was heard of a rule: what comes twice has the same.
    fn ids(&self, alert: &str, state: &str) -> BTreeSet<String> {
        let heard = self.heard.lock().unwrap();
        let wanted = heard.iter().filter(|notice| notice["alert"] == alert && notice["state"] == state);
        wanted.map(|notice| notice["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn kill_station(world: &World) {
    let home = world.home().to_str().unwrap().to_owned();
    let mut found = Vec::new();
    eventually("there is a station", || {
        found = world::pids(|line| line.contains(" station ") && line.contains(&home));
        !found.is_empty()
    });
    send(found[0], 9);
    eventually("it is gone", || world::pids(|line| line.contains(" station ") && line.contains(&home)) != found);
}

#[test]
fn each_trouble_is_told_once_and_its_end_once_though_the_station_is_killed() {
    let ear = Ear::new();
    let mut world = World::up();
    world.stop_up();
    let (url, out) = (&ear.url, world.path("told").display().to_string());
    let config = format!(
        "[[alert]]\nname=\"silent\"\nwhen=\"offline\"\nfor=\"1s\"\ntarget=\"ship*\"\nwebhook={url:?}\n\
         [[alert]]\nname=\"job\"\nwhen=\"job-failed\"\nmethod=\"shell*\"\nwebhook={url:?}\n\
         [[alert]]\nname=\"boom\"\nwhen=\"event\"\nmethod=\"note\"\nquiet=\"2s\"\nformat=\"text\"\n\
         where=\"record.message.contains('boom')\"\ncommand=[\"sh\", \"-c\", \"cat >> {out}\"]\n"
    );
    std::fs::write(world.path("station.toml"), config).unwrap();
    world.start_up();
    world.agent("ship1", &[]);
    let metrics = |world: &World| world::get(world.ready["http"].as_str().unwrap(), "/metrics");
    eventually("the rules are at work", || metrics(&world).contains("steward_alerts_active{rule=\"boom\"} 0"));
    assert_eq!(world.steward(&["run", "ship1", "--sh", "exit 3"]).status.code(), Some(3));
    assert_eq!(world.steward(&["run", HUB, "--sh", "exit 0"]).status.code(), Some(0));
    eventually("the failed job is told", || ear.ids("job", "firing").len() == 1);
    for text in ["all is well", "boom", "boom again"] {
        assert!(world.steward(&["event", "emit", "note/demo", "--message", text]).status.success());
    }
    eventually("the event is told, and that it is over", || lines(world.path("told").as_path()).len() >= 2);

    // Whoever is to be told does not answer; the station is killed meanwhile.
    ear.answers.store(false, Ordering::SeqCst);
    world.end_agent("ship1", 9);
    eventually("it is tried to tell that ship1 is silent", || ear.refused.load(Ordering::SeqCst) > 0);
    kill_station(&world);
    ear.answers.store(true, Ordering::SeqCst);
    eventually("it is told after all", || ear.ids("silent", "firing").len() == 1);
    eventually("nothing waits", || metrics(&world).contains("\nsteward_alert_notices_waiting 0\n"));
    eventually("it is known to be wrong", || metrics(&world).contains("steward_alerts_active{rule=\"silent\"} 1"));
    kill_station(&world);
    world.agent("ship1", &[]);
    eventually("it is told that ship1 is back", || ear.ids("silent", "recovered").len() == 1);
    kill_station(&world);
    // The next failure tells that the station is at work again, and would have told what it tells twice.
    assert_eq!(world.steward(&["run", "ship1", "--sh", "exit 4"]).status.code(), Some(3));
    eventually("the next failed job is told", || ear.ids("job", "firing").len() == 2);

    assert_eq!((ear.ids("silent", "firing").len(), ear.ids("silent", "recovered").len()), (1, 1));
    let heard = ear.heard.lock().unwrap().clone();
    let silent: Vec<&Value> = heard.iter().filter(|notice| notice["alert"] == "silent").collect();
    assert!(silent.iter().all(|notice| notice["episode"] == silent[0]["episode"] && notice["node"] == "ship1"));
    let told = lines(world.path("told").as_path());
    assert_eq!(told[0], "[firing] boom: central reports note/demo: boom");
    assert_eq!(told[1], "[recovered] boom: central has reported no such event for 2.0s, after 2");
    assert_eq!(told.len(), 2);
}
