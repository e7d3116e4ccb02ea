//! A station over a real broker: what it shows, and what it says when the broker goes and comes back.
//!
//! The node is played by a few lines that answer as an agent would.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bus::broker::{Broker, BrokerConfig};
use bus::keys::FleetKeys;
use bus::{Bus, ConnectOptions, Credentials, Headers, LiveOrders, clock, streams};
use bytes::Bytes;
use fleet::{Context, Fleet, Home, OrderRequest, enroll, init};
use message::registry::{Condition, LifeSignKind};
use message::reply::ReplyKind;
use message::{
    History, InstanceId, LifeSign, NodeName, Order, Outcome, Reply, Seal, State, Timestamp, Token, WIRE_VERSION,
};
use nkeys::KeyPair;
use serde_json::{Value, json};
use station::{Options, StationError};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What takes longer does not come.
const SOON: Duration = Duration::from_secs(30);

struct World {
    _dir: TempDir,
    home: Home,
    keys: FleetKeys,
    context: Context,
}

impl World {
    /// A fleet whose broker has run once, and runs no more.
    async fn new() -> (Self, Broker) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let mut context = init(&home, "nats://127.0.0.1:1").unwrap();
        let keys = FleetKeys::open(home.dir()).unwrap();
        let broker = Broker::start(BrokerConfig::new(home.dir(), keys.trust())).await.unwrap();
        context.server = broker.client_url();
        let creds = keys.provisioner_user().unwrap();
        let bus = connect(&context.server, &creds.render(), bus::CORE_API).await;
        bus.provision(streams::Options::fitting(1 << 30)).await.unwrap();
        bus.close().await;
        (Self { _dir: dir, home, keys, context }, broker)
    }

    async fn broker_again(&self, at: SocketAddr) -> Broker {
        let mut config = BrokerConfig::new(self.home.dir(), self.keys.trust());
        config.listen = at;
        Broker::start(config).await.unwrap()
    }

    fn station(&self) -> Station {
        let mut context = self.context.clone();
        context.creds = self.home.station_creds();
        let address_file = self.home.dir().join("station.addr");
        let options = Options {
            context,
            http_listen: "127.0.0.1:0".parse().unwrap(),
            http_addr_file: Some(address_file.clone()),
        };
        let cancel = CancellationToken::new();
        Station { running: tokio::spawn(station::run(options, cancel.clone())), cancel, address_file }
    }
}

async fn connect(server: &str, creds: &str, api_prefix: &'static str) -> Bus {
    let parsed = bus::claims::Creds::parse(creds).unwrap();
    Bus::connect(ConnectOptions {
        server: server.to_owned(),
        ca: None,
        credentials: Credentials::parse(creds, "test").unwrap(),
        name: "test".into(),
        inbox_prefix: Some(parsed.inbox_prefix().unwrap()),
        patient: false,
        ping_interval: Duration::from_secs(10),
        api_prefix,
    })
    .await
    .unwrap()
}

struct Station {
    running: JoinHandle<Result<(), StationError>>,
    cancel: CancellationToken,
    address_file: std::path::PathBuf,
}

struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Station {
    async fn address(&self) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            match std::fs::read_to_string(&self.address_file) {
                Ok(text) => return text.trim().to_owned(),
                Err(_) => assert!(Instant::now() < deadline && !self.running.is_finished(), "no address"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn ask(&self, method: &str, path: &str, host: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address().await).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { code, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "localhost:1").await
    }

    async fn until(&self, path: &str, what: &str, holds: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = Instant::now() + SOON;
        loop {
            let answer = self.get(path).await;
            if holds(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "in vain: {what}: {} {}", answer.code, answer.body);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.running).await.unwrap().unwrap().unwrap();
        assert!(!self.address_file.exists());
    }
}

struct PlayedNode {
    name: NodeName,
    pair: KeyPair,
    bus: Bus,
    orders: LiveOrders,
}

impl PlayedNode {
    async fn enroll(world: &World, operator: &Fleet, text: &str) -> Self {
        let name = NodeName::new(text).unwrap();
        let bundle = enroll(&world.keys, operator, &name).await.unwrap();
        let pair = bus::claims::Creds::parse(&bundle.creds).unwrap().key().unwrap();
        let bus = connect(&world.context.server, &bundle.creds, bus::EDGE_API).await;
        let orders = LiveOrders::open(&bus, &name).await.unwrap();
        // An answer on the same connection: the subscription is in place.
        bus.kv_get("NODES", name.as_str()).await.unwrap();
        Self { name, pair, bus, orders }
    }

    async fn live(&self, signer: &KeyPair) {
        let sign = LifeSign {
            v: WIRE_VERSION,
            kind: LifeSignKind::Presence,
            node: self.name.clone(),
            instance: InstanceId::from_bytes([1; 16]),
            boot: InstanceId::from_bytes([2; 16]),
            seat: None,
            condition: Condition::Up,
            reason: None,
            interval_ms: 60_000,
            at: clock::now(),
            version: "0.1.0".into(),
            uptime_s: 1,
            floor: 0,
            processes: 2,
            running: 0,
            waiting: 0,
            outbox: 0,
            limits: Vec::new(),
            audit: None,
        };
        let bytes = Bytes::from(serde_json::to_vec(&sign).unwrap());
        let seal = Seal::over(&bytes, signer).unwrap();
        self.bus.kv_put("PRESENCE", self.name.as_str(), bytes, Some(&seal)).await.unwrap();
    }

    async fn order(&mut self) -> Order {
        let live = tokio::time::timeout(SOON, self.orders.next()).await.unwrap().unwrap();
        Order::parse(&live.message.payload).unwrap()
    }

    async fn reply(&self, order: &Order, states: &[State], signer: &KeyPair) {
        let mut history = History::new();
        for (at, state) in (1..).zip(states) {
            history.push(*state, Timestamp::from_ms(at)).unwrap();
        }
        let reply = Reply {
            v: WIRE_VERSION,
            kind: ReplyKind::Reply,
            order: order.id,
            job: order.job.clone(),
            node: self.name.clone(),
            method: order.method.clone(),
            domain: order.domain.clone(),
            step: history.step(),
            history,
            reason: None,
            outcome: Some(Outcome::default()),
            clock_error_ms: None,
        };
        let bytes = Bytes::from(serde_json::to_vec(&reply).unwrap());
        let headers = Headers::from(clock::message_id()).sealed(&Seal::over(&bytes, signer).unwrap());
        self.bus.publish(&order.reply_subject().to_string(), headers, bytes).await.unwrap();
    }
}

fn request() -> OrderRequest {
    OrderRequest {
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain("operatingsystem").unwrap(),
        args: json!({"program": "true"}),
        timeout: Duration::from_secs(60),
        expires: Duration::from_secs(3600),
        max_output: 1 << 20,
    }
}

fn metric(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_station_shows_the_fleet_and_says_when_it_cannot() {
    let (world, broker) = World::new().await;
    let operator = Fleet::connect(&world.context).await.unwrap();
    operator.publish_trust().await.unwrap();
    let mut ship1 = PlayedNode::enroll(&world, &operator, "ship1").await;
    ship1.live(&ship1.pair).await;

    // What is stored before the station begins is in sight, and counts as old.
    let selected = operator.resolve(&fleet::Selection { all: true, ..fleet::Selection::default() }).await.unwrap();
    operator.order(&request(), &selected.nodes).await.unwrap();
    let first = ship1.order().await;
    let run = [State::Delivered, State::Running, State::Succeeded];
    ship1.reply(&first, &run, &ship1.pair).await;

    let station = world.station();
    assert_eq!(station.get("/healthz").await.body, "ok\n");
    station.until("/readyz", "ready", |answer| answer.code == 200).await;
    let nodes = station.get("/api/v1/nodes").await;
    assert_eq!((nodes.json()[0]["name"].as_str(), nodes.json()[0]["state"].as_str()), (Some("ship1"), Some("online")));
    assert!(nodes.head.contains("steward-view-age-seconds: "));
    let jobs = station.get("/api/v1/jobs").await.json();
    assert_eq!((jobs.as_array().unwrap().len(), &jobs[0]["counts"]), (1, &json!({"succeeded": 1})));
    let listed = operator.jobs(5).await.unwrap();
    assert_eq!(jobs, serde_json::to_value(listed).unwrap(), "as `job ls -o json` prints it");
    let text = station.get("/metrics").await.body;
    assert_eq!(metric(&text, "steward_jobs_total"), Some(0.0));

    // What comes later follows: a node, a job, a forged reply and a true one, an event, labels.
    let ship2 = PlayedNode::enroll(&world, &operator, "ship2").await;
    ship2.live(&ship2.pair).await;
    station.until("/api/v1/nodes", "ship2 online", |answer| answer.json()[1]["state"] == "online").await;
    ship2.live(&KeyPair::new_user()).await;
    let node = operator.node(&ship1.name).await.unwrap();
    operator.order(&request(), &[node]).await.unwrap();
    let second = ship1.order().await;
    ship1.reply(&second, &run, &KeyPair::new_user()).await;
    ship1.reply(&second, &run[..2], &ship1.pair).await;
    station
        .until("/api/v1/jobs", "the second job runs", |answer| {
            let jobs = answer.json();
            jobs.as_array().is_some_and(|jobs| jobs.len() == 2) && jobs[0]["counts"] == json!({"running": 1})
        })
        .await;
    operator.label(&ship1.name, &[("site".into(), "oslo".into())], &[]).await.unwrap();
    let record = [("message".to_owned(), json!("<script>alert(1)</script>"))].into_iter().collect();
    let (method, domain) = (Token::method("note").unwrap(), Token::domain("test").unwrap());
    operator.emit(&world.context.node, &method, &domain, vec![record]).await.unwrap();
    let events =
        station.until("/api/v1/events", "an event", |answer| !answer.json().as_array().unwrap().is_empty()).await;
    assert_eq!((&events.json()[0]["from"], &events.json()[0]["method"]), (&json!("central"), &json!("note")));
    let counted = station
        .until("/metrics", "the forged ones are counted", |answer| {
            metric(&answer.body, "steward_rejected_records_total{kind=\"life_sign\"}") == Some(1.0)
                && metric(&answer.body, "steward_rejected_replies_total") == Some(1.0)
        })
        .await;
    for (series, value) in [
        ("steward_jobs_total", 1.0),
        ("steward_events_total", 1.0),
        ("steward_nodes{state=\"online\"}", 2.0),
        ("steward_orders{state=\"running\"}", 1.0),
        ("steward_broker_connected", 1.0),
    ] {
        assert_eq!(metric(&counted.body, series), Some(value), "{series}");
    }

    // The page shows all of it, and obeys none of it.
    let page = station.get("/").await;
    assert_eq!(page.code, 200);
    for shown in ["ship1", "ship2", "site=oslo", "shellcommand", "&lt;script&gt;alert(1)", "Live, as of"] {
        assert!(page.body.contains(shown), "{shown}: {}", page.body);
    }
    for header in
        ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff", "x-frame-options: deny"]
    {
        assert!(page.head.contains(header), "{}", page.head);
    }
    for (path, kind) in
        [("/assets/style.css", "text/css"), ("/assets/live.js", "text/javascript"), ("/fragment", "text/html")]
    {
        let answer = station.get(path).await;
        assert!(answer.code == 200 && answer.head.contains(kind), "{path}: {}", answer.head);
    }
    assert_eq!(station.ask("GET", "/", "evil.example").await.code, 403);
    assert_eq!(station.ask("POST", "/api/v1/jobs", "localhost").await.code, 405);
    let head = station.ask("HEAD", "/", "localhost").await;
    assert_eq!((head.code, head.body.as_str()), (200, ""));
    assert_eq!(station.get("/nowhere").await.code, 404);

    // Without its broker it says so, and shows what it knew; when the broker is back, it reads anew.
    let at = broker.handle().listen();
    broker.stop().await;
    station.until("/readyz", "no longer ready", |answer| answer.code == 503).await;
    assert_eq!(station.get("/healthz").await.code, 200);
    assert!(station.get("/").await.body.contains("Not up to date"));
    assert_eq!(station.get("/api/v1/nodes").await.json()[0]["state"], "online");
    let broker = world.broker_again(at).await;
    station.until("/readyz", "ready again", |answer| answer.code == 200).await;
    let text = station.get("/metrics").await.body;
    assert_eq!(metric(&text, "steward_view_readings_total"), Some(2.0));
    assert_eq!(metric(&text, "steward_jobs_total"), Some(1.0));
    assert_eq!(metric(&text, "steward_rejected_replies_total"), Some(1.0));
    assert_eq!(metric(&text, "steward_events_total"), Some(1.0));
    assert_eq!(station.get("/api/v1/events").await.json().as_array().unwrap().len(), 1);
    let again = Fleet::connect(&world.context).await.unwrap();
    again.remove(&ship2.name).await.unwrap();
    station.until("/api/v1/nodes", "ship2 gone", |answer| answer.json().as_array().unwrap().len() == 1).await;

    station.stop().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_station_begins_without_its_broker_and_says_why_it_is_not_ready() {
    let (world, broker) = World::new().await;
    let operator = Fleet::connect(&world.context).await.unwrap();
    operator.publish_trust().await.unwrap();
    let at = broker.handle().listen();
    broker.stop().await;
    let station = world.station();
    let answer = station.get("/readyz").await;
    assert!(answer.code == 503 && answer.body.contains("not ready: "), "{}", answer.body);
    assert_eq!(station.get("/api/v1/nodes").await.code, 503);
    assert!(station.get("/").await.body.contains("Nothing to show yet"));
    assert_eq!(metric(&station.get("/metrics").await.body, "steward_broker_connected"), Some(0.0));
    let broker = world.broker_again(at).await;
    station.until("/readyz", "ready", |answer| answer.code == 200).await;
    station.stop().await;
    broker.stop().await;
}

#[tokio::test]
async fn a_station_listens_on_loopback_only() {
    let home = tempfile::tempdir().unwrap();
    let context = init(&Home::new(home.path()), "nats://127.0.0.1:1").unwrap();
    let options = Options { context, http_listen: "0.0.0.0:8080".parse().unwrap(), http_addr_file: None };
    let error = station::run(options, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, StationError::NotLoopback { .. }));
    assert!(error.to_string().contains("loopback only") && error.to_string().contains("127.0.0.1:8080"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_nothing_or_too_much_is_let_go() {
    let (world, broker) = World::new().await;
    broker.stop().await;
    let station = world.station();
    let address = station.address().await;
    let mut much = TcpStream::connect(&address).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    let _ = much.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = much.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));

    let mut silent = TcpStream::connect(&address).await.unwrap();
    silent.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(15), silent.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "still open");
    station.stop().await;
}
