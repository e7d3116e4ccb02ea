//! A node that is given more than it may hold: it stays small, keeps the rest at the broker, and everybody can see why.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

mod world;

use std::io::{Read, Write};

use bus::{Credentials, Headers};
use bytes::Bytes;
use message::{Order, Seal, job::OrderChunk};
use serde_json::Value;
use world::{World, eventually, pids};

/// More than a node may have waiting.
const FLOOD: usize = 10_100;
/// What an agent may take then, as it is built for tests.
const RESIDENT_KIB_MAX: u64 = 128 * 1024;

fn get(address: &str, path: &str) -> String {
    let Ok(mut stream) = std::net::TcpStream::connect(address.trim_start_matches("http://")) else {
        return String::new();
    };
    let asked = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", stream.peer_addr().unwrap());
    let mut answer = String::new();
    let _ = stream.write_all(asked.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
    answer
}

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_flooded_holds_back_and_says_why() {
    let mut world = World::up();
    let config = world.path("quick.toml");
    std::fs::write(&config, "life_sign = \"1s\"\n").unwrap();
    world.agent("ship1", &["--config", config.to_str().unwrap()]);
    let well = world.json(0, &["ps", "ship1"]);
    assert!(well.as_array().unwrap().iter().all(|process| process.get("limits").is_none()), "{well}");

    // Everything waits behind one command. What is sent is what `run` sends, without a job for each.
    let job = world.json(4, &["run", "ship1", "--detach", "--", "sleep", "600"]);
    let bus = world.operator_bus().await;
    let record = bus.kv_get("JOBS", job["job"].as_str().unwrap()).await.unwrap().unwrap();
    let body: Value = serde_json::from_slice(&record.payload).unwrap();
    let chunk: OrderChunk = serde_json::from_str(body["inline"].as_str().unwrap()).unwrap();
    let order = Order::parse(chunk.orders[0].order.as_bytes()).unwrap();
    let context = world.json(0, &["context", "show"]);
    let operator = Credentials::load(std::path::Path::new(context["creds"].as_str().unwrap())).unwrap();
    let subject = order.subject().to_string();
    for number in 0..FLOOD {
        let mut order = order.clone();
        order.id = bus::clock::order_id();
        order.job = bus::clock::job_id(order.created);
        let bytes = Bytes::from(order.to_bytes().unwrap());
        let headers = Headers::from(bus::clock::message_id()).sealed(&Seal::over(&bytes, operator.pair()).unwrap());
        bus.send(&subject, headers, bytes.clone()).await.unwrap();
        if number % 500 == 0 {
            // Stored, and all before it: faster than the broker takes them, they would be lost.
            bus.publish(&subject, Headers::from(bus::clock::message_id()), Bytes::from_static(b"-")).await.unwrap();
        }
    }
    let station = world.ready["http"].as_str().unwrap().to_owned();
    eventually("the station counts it", || {
        get(&station, "/metrics").contains("steward_nodes_limited{limit=\"orders\"} 1")
    });
    let asked = world.steward(&["--timeout", "500ms", "ps", "ship1"]);
    let told = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert_eq!(asked.status.code(), Some(4), "the question itself waits at the broker: {asked:?}");
    assert!(told.contains("holds back (orders): as many orders wait there as may"), "{told}");
    let page = world.steward(&["node", "show", "ship1"]);
    assert!(String::from_utf8_lossy(&page.stdout).contains("holds back"), "{page:?}");
    assert_eq!(world.state("ship1"), "online", "it is well, and full");
    let home = world.home().to_str().unwrap().to_owned();
    let agents = pids(|line| line.contains(&home) && line.contains("agent --name ship1"));
    assert_eq!(agents.len(), 1);
    assert!(resident_kib(agents[0]) < RESIDENT_KIB_MAX, "{} KiB", resident_kib(agents[0]));
}
