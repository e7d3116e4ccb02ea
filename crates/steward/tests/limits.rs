//! A node that is given more than it may hold: it stays small, keeps the rest at the broker, and everybody can see why.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

mod world;

use bus::{Credentials, Headers};
use bytes::Bytes;
use message::{Order, Seal, job::OrderChunk};
use serde_json::Value;
use world::{World, eventually, get, pids};

/// More than a node may have waiting.
const FLOOD: usize = 10_100;
/// What an agent may take then, as it is built for tests.
const RESIDENT_KIB_MAX: u64 = 128 * 1024;

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Gives ship1 the same command again and again. What is sent is what `run` sends, without a job for each.
async fn flood(world: &World, argv: &[&str], times: usize) {
    let job = world.json(4, &[&["run", "ship1", "--detach", "--"], argv].concat());
    let bus = world.operator_bus().await;
    let record = bus.kv_get("JOBS", job["job"].as_str().unwrap()).await.unwrap().unwrap();
    let body: Value = serde_json::from_slice(&record.payload).unwrap();
    let chunk: OrderChunk = serde_json::from_str(body["inline"].as_str().unwrap()).unwrap();
    let order = Order::parse(chunk.orders[0].order.as_bytes()).unwrap();
    let context = world.json(0, &["context", "show"]);
    let operator = Credentials::load(std::path::Path::new(context["creds"].as_str().unwrap())).unwrap();
    let subject = order.subject().to_string();
    for number in 0..times {
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
    bus.publish(&subject, Headers::from(bus::clock::message_id()), Bytes::from_static(b"-")).await.unwrap();
}

/// The last words of ship1 that the broker holds, by job.
async fn ends(bus: &bus::Bus) -> (usize, std::collections::BTreeMap<String, usize>) {
    let mut scan = bus::Scan::open(bus, "REPLIES", &[], bus::Start::First).await.unwrap();
    let (mut held, mut ends) = (0, std::collections::BTreeMap::new());
    while let Some(message) = scan.next().await.unwrap() {
        held += 1;
        if let Ok(reply) = message::Reply::parse(&message.payload)
            && message.subject.ends_with(".ship1")
            && reply.history.state().is_terminal()
        {
            *ends.entry(reply.job.to_string()).or_default() += 1;
        }
    }
    (held, ends)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_answers_nobody_takes_keeps_them_says_so_and_tells_each_once() {
    /// More than may be on their way to the broker.
    const ORDERS: usize = 99;
    let mut world = World::up();
    let config = world.path("quick.toml");
    std::fs::write(&config, "life_sign = \"1s\"\n").unwrap();
    world.agent("ship1", &["--config", config.to_str().unwrap()]);
    world.json(0, &["run", "ship1", "--", "true"]);
    let bus = world.operator_bus().await;
    let (held, before) = ends(&bus).await;
    world::limit(&world, "REPLIES", held.try_into().unwrap()).await;

    let witness = world.path("witness");
    let line = format!("echo ran >> {}", witness.display());
    flood(&world, &["sh", "-c", &line], ORDERS).await;
    let station = world.ready["http"].as_str().unwrap().to_owned();
    let metric = |count: u64| format!("steward_nodes_limited{{limit=\"outbox\"}} {count}\n");
    // Nothing is refused for it: what was ordered is done.
    eventually("all have run", || world::lines(&witness).len() == ORDERS + 1);
    eventually("the station counts it", || get(&station, "/metrics").contains(&metric(1)));
    let page = world.steward(&["node", "show", "ship1"]);
    assert!(String::from_utf8_lossy(&page.stdout).contains("outbox: the broker confirms less"), "{page:?}");
    assert_eq!(ends(&bus).await, (held, before.clone()), "nothing more is stored than there is room for");

    // Neither a crash nor the wait loses an answer, and none is told of twice.
    world.end_agent("ship1", 9);
    world.agent("ship1", &["--config", config.to_str().unwrap()]);
    world::limit(&world, "REPLIES", -1).await;
    let all = ORDERS + 1 + before.len();
    let deadline = std::time::Instant::now() + world::PATIENCE;
    let told = loop {
        let (_, told) = ends(&bus).await;
        if told.len() >= all {
            break told;
        }
        assert!(std::time::Instant::now() < deadline, "{} of {all} are told", told.len());
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    assert_eq!(told.len(), all);
    eventually("it holds nothing back any more", || get(&station, "/metrics").contains(&metric(0)));
    assert_eq!(world::lines(&witness).len(), ORDERS + 1, "each has run once");
    world.json(0, &["run", "ship1", "--", "true"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_flooded_holds_back_and_says_why() {
    let mut world = World::up();
    let config = world.path("quick.toml");
    std::fs::write(&config, "life_sign = \"1s\"\n").unwrap();
    world.agent("ship1", &["--config", config.to_str().unwrap()]);
    let well = world.json(0, &["ps", "ship1"]);
    assert!(well.as_array().unwrap().iter().all(|process| process.get("limits").is_none()), "{well}");

    // Everything waits behind one command.
    flood(&world, &["sleep", "600"], FLOOD).await;
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
