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
    Facts, History, InstanceId, LifeSign, NodeName, Order, Outcome, Reply, Seal, State, Timestamp, Token, WIRE_VERSION,
};
use nkeys::KeyPair;
use serde_json::{Value, json};
use station::access::{Role, Tokens};
use station::{Options, StationError};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
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

    fn tokens(&self) -> Tokens {
        Tokens::at(self.home.station_dir().join("tokens.json"))
    }

    fn station(&self) -> Station {
        let mut context = self.context.clone();
        context.creds = self.home.station_creds();
        let address_file = self.home.dir().join("station.addr");
        let options = Options {
            context,
            http_listen: "127.0.0.1:0".parse().unwrap(),
            http_tls: None,
            http_names: Vec::new(),
            tokens: self.tokens(),
            http_addr_file: Some(address_file.clone()),
            config: station::Config::default(),
            state_dir: std::path::PathBuf::from("/nonexistent"),
        };
        let cancel = CancellationToken::new();
        Station { running: tokio::spawn(station::run(options, None, cancel.clone())), cancel, address_file }
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
        self.ask_with(method, path, &format!("Host: {host}\r\n"), "").await
    }

    async fn ask_with(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address().await).await.unwrap();
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { code, head: head.to_owned(), body: body.to_owned() }
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
            rtt_ms: None,
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
    assert_eq!(
        (nodes.json()["nodes"][0]["name"].as_str(), nodes.json()["nodes"][0]["state"].as_str()),
        (Some("ship1"), Some("online"))
    );
    assert!(nodes.head.contains("steward-view-age-seconds: "));
    let jobs = station.get("/api/v1/jobs").await.json()["jobs"].clone();
    assert_eq!((jobs.as_array().unwrap().len(), &jobs[0]["counts"]), (1, &json!({"succeeded": 1})));
    let listed = operator.jobs(5).await.unwrap();
    assert_eq!(jobs, serde_json::to_value(listed).unwrap(), "as `job ls -o json` prints it");
    let text = station.get("/metrics").await.body;
    assert_eq!(metric(&text, "steward_jobs_total"), Some(0.0));

    // What comes later follows: a node, a job, a forged reply and a true one, an event, labels.
    let ship2 = PlayedNode::enroll(&world, &operator, "ship2").await;
    ship2.live(&ship2.pair).await;
    station.until("/api/v1/nodes", "ship2 online", |answer| answer.json()["nodes"][1]["state"] == "online").await;
    ship2.live(&KeyPair::new_user()).await;
    let node = operator.node(&ship1.name).await.unwrap();
    operator.order(&request(), &[node]).await.unwrap();
    let second = ship1.order().await;
    ship1.reply(&second, &run, &KeyPair::new_user()).await;
    ship1.reply(&second, &run[..2], &ship1.pair).await;
    station
        .until("/api/v1/jobs", "the second job runs", |answer| {
            let jobs = &answer.json()["jobs"];
            jobs.as_array().is_some_and(|jobs| jobs.len() == 2) && jobs[0]["counts"] == json!({"running": 1})
        })
        .await;
    operator.label(&ship1.name, &[("site".into(), "oslo".into())], &[]).await.unwrap();
    let record = [("message".to_owned(), json!("<script>alert(1)</script>"))].into_iter().collect();
    let (method, domain) = (Token::method("note").unwrap(), Token::domain("test").unwrap());
    operator.emit(&world.context.node, &method, &domain, vec![record]).await.unwrap();
    let events = station.until("/api/v1/events", "an event", |answer| answer.json()["events"][0].is_object()).await;
    assert_eq!(
        (&events.json()["events"][0]["from"], &events.json()["events"][0]["method"]),
        (&json!("central"), &json!("note"))
    );
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
    let job = second.job.to_string();
    let (one_job, one_node) = (format!("/jobs/{job}"), format!("/jobs/{job}/nodes/ship1"));
    for (path, shown) in [
        ("/", ["ship1", "ship2", "site=oslo", "Live, as of"]),
        ("/?selector=site%3Doslo&by=site", ["ship1", "By site", "1 of 2", "href=\"/?state=online\""]),
        ("/nodes/ship1", ["ship1", "running", "succeeded", job.as_str()]),
        ("/jobs", ["shellcommand", "1 running", "1 succeeded", "by admin"]),
        (&one_job, ["ship1", "running", "operatingsystem", "1 running"]),
        (&one_node, ["ship1", "running", "delivered", "started"]),
        ("/events", ["central", "&lt;script&gt;alert(1)", "note", "newest first"]),
        ("/events?since=1h&method=note", ["central", "&lt;script&gt;alert(1)", "note", "oldest first"]),
    ] {
        let page = station.get(path).await;
        assert_eq!(page.code, 200, "{path}: {}", page.body);
        for shown in shown {
            assert!(page.body.contains(shown), "{path}: {shown}: {}", page.body);
        }
    }
    for (path, code, shown) in [
        ("/?selector=site%3D%3D%3Doslo", 400, "^"),
        ("/nodes/nobody", 404, "there is no node nobody"),
        ("/jobs/zzzz", 404, "no job"),
        (format!("/jobs/{job}/nodes/ship2").as_str(), 404, "is not for ship2"),
    ] {
        let page = station.get(path).await;
        assert!(page.code == code && page.body.contains(shown), "{path}: {} {}", page.code, page.body);
    }
    let part = station.ask_with("GET", "/", "Host: localhost\r\nSteward-Part: live\r\n", "").await;
    assert!(
        part.body.contains("ship1") && !part.body.contains("<html") && !part.body.contains("<form"),
        "{}",
        part.body
    );
    let page = station.get("/").await;
    for header in
        ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff", "x-frame-options: DENY"]
    {
        assert!(page.head.contains(header), "{}", page.head);
    }
    for (path, kind) in
        [("/assets/style.css", "text/css"), ("/assets/live.js", "text/javascript"), ("/jobs", "text/html")]
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
    assert_eq!(station.get("/api/v1/nodes").await.json()["nodes"][0]["state"], "online");
    let broker = world.broker_again(at).await;
    station.until("/readyz", "ready again", |answer| answer.code == 200).await;
    let text = station.get("/metrics").await.body;
    assert_eq!(metric(&text, "steward_view_readings_total"), Some(2.0));
    assert_eq!(metric(&text, "steward_jobs_total"), Some(1.0));
    assert_eq!(metric(&text, "steward_rejected_replies_total"), Some(1.0));
    assert_eq!(metric(&text, "steward_events_total"), Some(1.0));
    assert_eq!(station.get("/api/v1/events").await.json()["events"].as_array().unwrap().len(), 1);
    let again = Fleet::connect(&world.context).await.unwrap();
    again.remove(&ship2.name).await.unwrap();
    station.until("/api/v1/nodes", "ship2 gone", |answer| answer.json()["nodes"].as_array().unwrap().len() == 1).await;

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
async fn beyond_loopback_nothing_is_served_without_tls() {
    let home = tempfile::tempdir().unwrap();
    let context = init(&Home::new(home.path()), "nats://127.0.0.1:1").unwrap();
    let options = Options {
        context,
        http_listen: "0.0.0.0:8080".parse().unwrap(),
        http_tls: None,
        http_names: Vec::new(),
        tokens: Tokens::at("/nonexistent"),
        http_addr_file: None,
        config: station::Config::default(),
        state_dir: std::path::PathBuf::from("/nonexistent"),
    };
    let error = station::run(options, None, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, StationError::NotLoopback { .. }));
    assert!(error.to_string().contains("--http-cert") && error.to_string().contains("127.0.0.1:8080"), "{error}");
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

/// Whether `value` is what `schema` says, as far as our document goes: types, members, lists, choices, references.
fn check(value: &Value, schema: &Value, document: &Value, place: &str) {
    if let Some(target) = schema["$ref"].as_str() {
        return check(value, document.pointer(&target[1..]).unwrap(), document, place);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    match &schema["type"] {
        Value::String(allowed) => assert_eq!(kind, allowed, "{place}: {value}"),
        Value::Array(allowed) => assert!(allowed.contains(&json!(kind)), "{place}: {value}"),
        _ => {}
    }
    if let Some(choice) = schema["enum"].as_array() {
        assert!(choice.contains(value), "{place}: {value} is none of {choice:?}");
    }
    for member in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(member.as_str().unwrap()).is_some(), "{place}: {member} is missing in {value}");
    }
    for (name, member) in value.as_object().into_iter().flatten() {
        let place = format!("{place}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => panic!("{place} is not in the document"),
            (Value::Null, Value::Null) => {}
            (Value::Null, others) => check(member, others, document, &place),
            (known, _) => check(member, known, document, &place),
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(item, &schema["items"], document, &format!("{place}[{index}]"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_answers_as_its_document_says() {
    let (world, broker) = World::new().await;
    let operator = Fleet::connect(&world.context).await.unwrap();
    operator.publish_trust().await.unwrap();
    let mut ship1 = PlayedNode::enroll(&world, &operator, "ship1").await;
    ship1.live(&ship1.pair).await;
    let ship2 = PlayedNode::enroll(&world, &operator, "ship2").await;
    operator.label(&ship1.name, &[("site".into(), "oslo".into())], &[]).await.unwrap();
    let facts = [("cpus".to_owned(), json!(4))].into_iter().collect();
    let facts = Bytes::from(serde_json::to_vec(&Facts::new(ship1.name.clone(), clock::now(), facts)).unwrap());
    let seal = Seal::over(&facts, &ship1.pair).unwrap();
    ship1.bus.kv_put("FACTS", "ship1", facts, Some(&seal)).await.unwrap();
    let node = operator.node(&ship1.name).await.unwrap();
    operator.order(&request(), &[node]).await.unwrap();
    let order = ship1.order().await;
    ship1.reply(&order, &[State::Delivered, State::Running, State::Succeeded], &ship1.pair).await;
    let record = [("message".to_owned(), json!("hello"))].into_iter().collect();
    let (method, domain) = (Token::method("note").unwrap(), Token::domain("test").unwrap());
    operator.emit(&world.context.node, &method, &domain, vec![record]).await.unwrap();

    let station = world.station();
    station
        .until("/api/v1/events", "the event", |answer| answer.code == 200 && answer.json()["events"][0].is_object())
        .await;
    let document = station.get("/api/v1/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let job = order.job.to_string();
    let asked = [
        ("/api/v1", ""),
        ("/api/v1/nodes", "?count=true&facts=true&sort=state"),
        (
            "/api/v1/nodes",
            "?selector=site%3Doslo&where=facts.cpus+%3D%3D+4+%26%26+online&target=ship*&text=SHIP&limit=1",
        ),
        ("/api/v1/nodes/{node}", ""),
        ("/api/v1/nodes/{node}/jobs", "?limit=3"),
        ("/api/v1/nodes/{node}/history", ""),
        ("/api/v1/groups", "?by=site&state=online,offline"),
        ("/api/v1/jobs", "?state=succeeded&by=admin&limit=5"),
        ("/api/v1/jobs/{job}", "?state=succeeded"),
        ("/api/v1/jobs/{job}/nodes/{node}", ""),
        ("/api/v1/events", "?method=note&from=central&grep=hell"),
        ("/api/v1/events", "?since=1h&domain=te*"),
        ("/api/v1/openapi.json", ""),
    ];
    for (path, query) in asked {
        let address = path.replace("{node}", "ship1").replace("{job}", &job) + query;
        let answer = station.get(&address).await;
        assert_eq!(answer.code, 200, "{address}: {}", answer.body);
        let schema = &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{path} is not in the document");
        check(&answer.json(), schema, &document, path);
        let known: Vec<&str> = document["paths"][path]["get"]["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|p| p["name"].as_str())
            .collect();
        for pair in query.trim_start_matches('?').split('&').filter(|pair| !pair.is_empty()) {
            assert!(known.contains(&pair.split('=').next().unwrap()), "{path}: {pair} is not in the document");
        }
    }
    let all: Vec<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    for path in all {
        assert!(asked.iter().any(|(asked, _)| *asked == path) || path == "/api/v1/stream", "{path} was not asked");
    }
    let nodes = station.get("/api/v1/nodes?limit=1").await.json();
    let next = station.get(&format!("/api/v1/nodes?limit=1&cursor={}", nodes["next"].as_str().unwrap())).await.json();
    assert_eq!(
        (&nodes["nodes"][0]["name"], &next["nodes"][0]["name"], &next["next"]),
        (&json!("ship1"), &json!("ship2"), &Value::Null)
    );
    let detail = station.get("/api/v1/nodes/ship1").await.json();
    assert_eq!((&detail["facts"]["cpus"], &detail["labels"]["site"]), (&json!(4), &json!("oslo")));
    for (path, code, says) in [
        ("/api/v1/nodes?where=facts.", 400, "^"),
        ("/api/v1/nodes?limit=0", 400, "1 to 1000"),
        ("/api/v1/nodes/nobody", 404, "no node"),
        ("/api/v1/jobs/nothing", 404, "no job"),
        ("/api/v1/groups", 400, "by=site"),
        ("/api/v2", 404, "openapi"),
        ("/api/v1/stream?topic=all", 400, "topics"),
    ] {
        let answer = station.get(path).await;
        assert!(
            answer.code == code && answer.json()["detail"].as_str().unwrap().contains(says),
            "{path}: {}",
            answer.body
        );
        assert!(answer.head.contains("application/problem+json"), "{}", answer.head);
        check(&answer.json(), &document["components"]["schemas"]["Problem"], &document, path);
    }
    drop(ship2);
    station.stop().await;
    broker.stop().await;
}

/// Reads a stream of changes.
struct Follower {
    stream: tokio::io::BufReader<TcpStream>,
    last: String,
}

impl Follower {
    async fn open(station: &Station, query: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(station.address().await).await.unwrap();
        let request = format!("GET /api/v1/stream{query} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { stream: tokio::io::BufReader::new(stream), last: String::new() }
    }

    /// The next event of this kind that fits.
    async fn until(&mut self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let (mut event, begun) = (String::new(), Instant::now());
        loop {
            let mut line = String::new();
            let read = tokio::time::timeout(SOON, self.stream.read_line(&mut line)).await;
            assert!(read.unwrap().unwrap() > 0 && begun.elapsed() < SOON, "the stream ended");
            if let Some(name) = line.trim_end().strip_prefix("event: ") {
                name.clone_into(&mut event);
            } else if let Some(id) = line.trim_end().strip_prefix("id: ") {
                id.clone_into(&mut self.last);
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data = serde_json::from_str(data).unwrap();
                if event == kind && fits(&data) {
                    return data;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_as_they_come_and_nothing_is_missed_over_a_new_connection() {
    let (world, broker) = World::new().await;
    let operator = Fleet::connect(&world.context).await.unwrap();
    operator.publish_trust().await.unwrap();
    let mut ship1 = PlayedNode::enroll(&world, &operator, "ship1").await;
    let station = world.station();
    station.until("/readyz", "ready", |answer| answer.code == 200).await;
    let mut all = Follower::open(&station, "", "").await;
    let mut jobs = Follower::open(&station, "?topic=job", "").await;
    ship1.live(&ship1.pair).await;
    all.until("node", |node| node["name"] == "ship1" && node["state"] == "online").await;
    let node = operator.node(&ship1.name).await.unwrap();
    operator.order(&request(), &[node]).await.unwrap();
    let order = ship1.order().await;
    ship1.reply(&order, &[State::Delivered, State::Running, State::Succeeded], &ship1.pair).await;
    jobs.until("job", |job| job["counts"] == json!({"succeeded": 1})).await;
    all.until("job", |job| job["counts"] == json!({"succeeded": 1})).await;
    // While it is away, something happens; it comes back with the id of what it saw last.
    let last = all.last.clone();
    drop(all);
    let record = [("message".to_owned(), json!("while you were out"))].into_iter().collect();
    let (method, domain) = (Token::method("note").unwrap(), Token::domain("test").unwrap());
    operator.emit(&world.context.node, &method, &domain, vec![record]).await.unwrap();
    station.until("/api/v1/events", "the event", |answer| answer.json()["events"][0].is_object()).await;
    let mut all = Follower::open(&station, "", &format!("Last-Event-ID: {last}\r\n")).await;
    all.until("event", |event| event["record"]["message"] == "while you were out").await;
    // With one of another life it is told to read everything again.
    let mut stranger = Follower::open(&station, "", "Last-Event-ID: 17-4\r\n").await;
    stranger.until("reset", |_| true).await;
    // When the broker goes, everyone is told that what is known is not up to date, and when it is back, to read again.
    let at = broker.handle().listen();
    broker.stop().await;
    jobs.until("status", |status| status["live"] == false).await;
    let broker = world.broker_again(at).await;
    jobs.until("reset", |_| true).await;
    jobs.until("status", |status| status["live"] == true).await;
    station.stop().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_token_sees_nothing_once_there_is_one() {
    let (world, broker) = World::new().await;
    let operator = Fleet::connect(&world.context).await.unwrap();
    operator.publish_trust().await.unwrap();
    let ship1 = PlayedNode::enroll(&world, &operator, "ship1").await;
    ship1.live(&ship1.pair).await;
    let station = world.station();
    station.until("/readyz", "ready", |answer| answer.code == 200).await;
    assert_eq!(station.get("/api/v1/nodes").await.code, 200, "on loopback, as long as there is none");
    let (now, tokens) = (clock::now(), world.tokens());
    let read = tokens.add("anna", Role::Read, now, None).unwrap();
    let watch = tokens.add("grafana", Role::Watch, now, None).unwrap();
    let answer = station.until("/api/v1/nodes", "closed", |answer| answer.code == 401).await;
    assert!(answer.head.to_ascii_lowercase().contains("www-authenticate: bearer"), "{}", answer.head);
    for path in ["/api/v1", "/api/v1/jobs", "/api/v1/events", "/api/v1/stream", "/api/v1/nodes/ship1", "/api/nothing"] {
        let answer = station.get(path).await;
        assert!(answer.code == 401 && !answer.body.contains("ship1"), "{path}: {} {}", answer.code, answer.body);
    }
    for path in ["/", "/jobs", "/events", "/nodes/ship1"] {
        let answer = station.get(path).await;
        assert!(answer.code == 303 && answer.head.contains("location: /login"), "{path}: {}", answer.head);
    }
    for path in ["/healthz", "/readyz", "/metrics", "/login", "/assets/style.css", "/api/v1/openapi.json"] {
        assert_eq!(station.get(path).await.code, 200, "{path}");
    }
    let with = |token: &str| format!("Host: localhost\r\nAuthorization: Bearer {token}\r\n");
    let get = async |path: &str, token: &str| station.ask_with("GET", path, &with(token), "").await;
    assert_eq!(get("/api/v1/nodes", &read[1..]).await.code, 401);
    assert_eq!(get("/api/v1/nodes", "").await.code, 401);
    assert_eq!(get("/api/v1/nodes?facts=true", &read).await.code, 200);
    // Who watches does not read.
    assert_eq!(get("/api/v1/nodes", &watch).await.code, 200);
    for path in [
        "/api/v1/nodes?facts=true",
        "/api/v1/nodes?where=facts.a+%3D%3D+1",
        "/api/v1/groups?by=a&where=has(facts.a)",
        "/api/v1/events",
        "/api/v1/stream?topic=event",
        "/api/v1/jobs/x/nodes/ship1",
    ] {
        let answer = get(path, &watch).await;
        assert!(
            answer.code == 403 && answer.json()["detail"].as_str().unwrap().contains("read"),
            "{path}: {}",
            answer.body
        );
    }
    assert!(get("/api/v1/nodes/ship1", &watch).await.json().get("facts").is_none());
    // A browser logs in by a form of this site alone, and out again.
    let form = format!("token={read}");
    let kind = "Content-Type: application/x-www-form-urlencoded\r\n";
    let foreign = format!("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n{kind}");
    assert_eq!(station.ask_with("POST", "/login", &foreign, &form).await.code, 403);
    let own = format!("Host: localhost\r\nSec-Fetch-Site: same-origin\r\n{kind}");
    assert_eq!(station.ask_with("POST", "/login", &own, "token=wrong").await.code, 401);
    assert_eq!(station.ask_with("POST", "/login", &own, &"x".repeat(10_000)).await.code, 400);
    let answer = station.ask_with("POST", "/login", &own, &form).await;
    let cookie = answer.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(
        answer.code == 303
            && cookie.contains("HttpOnly")
            && cookie.contains("SameSite=Strict")
            && !cookie.contains(&read)
    );
    let with_cookie = format!("Host: localhost\r\nCookie: {}\r\n", cookie.split(';').next().unwrap());
    let page = station.ask_with("GET", "/", &with_cookie, "").await;
    assert!(
        page.code == 200 && page.body.contains("ship1") && page.body.contains("anna") && page.body.contains("/logout")
    );
    station.ask_with("POST", "/logout", &with_cookie, "").await;
    assert_eq!(station.ask_with("GET", "/", &with_cookie, "").await.code, 303);
    tokens.remove("anna").unwrap();
    let deadline = Instant::now() + SOON;
    while get("/api/v1/nodes", &read).await.code != 401 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    station.stop().await;
    broker.stop().await;
}
