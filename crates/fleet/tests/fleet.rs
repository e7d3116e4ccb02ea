//! A fleet with a real broker: enrolled, ordered, answered, listed.
//!
//! Nodes are played by a few lines that verify an order and answer as an agent would.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use async_nats::jetstream;
use bus::broker::{Broker, BrokerConfig};
use bus::keys::FleetKeys;
use bus::{Bus, ConnectOptions, Credentials, Headers, LiveOrders, clock, streams};
use bytes::Bytes;
use fleet::{
    Bundle, EventFilter, Fleet, FleetError, Gather, Home, Node, OrderRequest, Selection, Since, Update, enroll,
    enroll_here, init,
};
use message::registry::{Condition, LifeSignKind, NodeKind};
use message::reply::{OUTPUT_ORDER_HEADER, OUTPUT_SEQUENCE_HEADER, OUTPUT_STREAM_HEADER, ReplyKind};
use message::{
    History, InstanceId, LifeSign, NodeName, NodeRecord, NodeState, Order, Outcome, OutputTally, Pattern, PublicKey,
    Reply, Seal, State, Timestamp, Token, Vitality, WIRE_VERSION,
};
use nkeys::KeyPair;
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

struct World {
    dir: TempDir,
    home: Home,
    keys: FleetKeys,
    broker: Broker,
    fleet: Fleet,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let mut context = init(&home, "nats://127.0.0.1:1").unwrap();
        let keys = FleetKeys::open(home.dir()).unwrap();
        let broker = Broker::start(BrokerConfig::new(home.dir(), keys.trust())).await.unwrap();
        provision(&broker.client_url(), &keys).await;
        context.server = broker.client_url();
        context.save(&home).unwrap();
        let fleet = Fleet::connect(&context).await.unwrap();
        assert!(fleet.publish_trust().await.unwrap());
        assert!(!fleet.publish_trust().await.unwrap(), "the broker has it already");
        Self { dir, home, keys, broker, fleet }
    }

    async fn node(&self, text: &str) -> PlayedNode {
        PlayedNode::connect(enroll(&self.keys, &self.fleet, &name(text)).await.unwrap()).await
    }

    /// Stops the broker; the home stays until what is returned is dropped.
    async fn stop(self) -> TempDir {
        self.fleet.close().await;
        self.broker.stop().await;
        self.dir
    }
}

async fn provision(url: &str, keys: &FleetKeys) {
    streams::provision(&provisioner(url, keys).await, streams::Options::fitting(1 << 30)).await.unwrap();
}

async fn provisioner(url: &str, keys: &FleetKeys) -> jetstream::Context {
    let creds = keys.provisioner_user().unwrap();
    let client = async_nats::ConnectOptions::with_credentials(&creds.render())
        .unwrap()
        .custom_inbox_prefix(creds.inbox_prefix().unwrap())
        .connect(url)
        .await
        .unwrap();
    jetstream::new(client)
}

/// An edge unit, as far as its broker can tell.
struct PlayedNode {
    name: NodeName,
    pair: KeyPair,
    bus: Bus,
    orders: LiveOrders,
}

impl PlayedNode {
    async fn connect(bundle: Bundle) -> Self {
        let creds = bus::claims::Creds::parse(&bundle.creds).unwrap();
        let bus = Bus::connect(ConnectOptions {
            server: bundle.server.clone(),
            ca: None,
            credentials: Credentials::parse(&bundle.creds, "bundle").unwrap(),
            name: bundle.name.to_string(),
            inbox_prefix: Some(creds.inbox_prefix().unwrap()),
            patient: false,
            ping_interval: Duration::from_secs(10),
            api_prefix: bus::EDGE_API,
        })
        .await
        .unwrap();
        let orders = LiveOrders::open(&bus, &bundle.name).await.unwrap();
        bus.round_trip(Duration::from_secs(5)).await.unwrap();
        Self { name: bundle.name, pair: creds.key().unwrap(), bus, orders }
    }

    async fn live(&self, condition: Condition) {
        let sign = LifeSign {
            seat: None,
            v: WIRE_VERSION,
            kind: LifeSignKind::Presence,
            node: self.name.clone(),
            instance: InstanceId::from_bytes([1; 16]),
            boot: InstanceId::from_bytes([2; 16]),
            condition,
            reason: None,
            interval_ms: 10_000,
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
        let seal = Seal::over(&bytes, &self.pair).unwrap();
        self.bus.kv_put("PRESENCE", self.name.as_str(), bytes, Some(&seal)).await.unwrap();
    }

    async fn order(&mut self) -> Order {
        let live = tokio::time::timeout(Duration::from_secs(10), self.orders.next()).await.unwrap().unwrap();
        live.message.signer().expect("an order is signed");
        Order::parse(&live.message.payload).unwrap()
    }

    async fn reply(&self, order: &Order, states: &[State], outcome: Option<Outcome>, signer: &KeyPair) {
        let mut history = History::new();
        for (at, state) in (1..).zip(states) {
            history.push(*state, Timestamp::from_ms(at)).unwrap();
        }
        let reply = Reply {
            clock_error_ms: None,
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
            outcome,
        };
        let bytes = Bytes::from(serde_json::to_vec(&reply).unwrap());
        let headers = Headers::from(clock::message_id()).sealed(&Seal::over(&bytes, signer).unwrap());
        self.bus.publish(&order.reply_subject().to_string(), headers, bytes).await.unwrap();
    }

    /// Takes one order and answers it with `stdout`, in two pieces.
    async fn execute(&mut self, stdout: &[u8]) -> Order {
        let order = self.order().await;
        self.reply(&order, &[State::Delivered, State::Running], None, &self.pair).await;
        let (one, two) = stdout.split_at(stdout.len() / 2);
        for (number, piece) in [one, two].into_iter().enumerate() {
            let headers = Headers::from(clock::message_id())
                .with(OUTPUT_ORDER_HEADER, &order.id.to_string())
                .with(OUTPUT_STREAM_HEADER, "stdout")
                .with(OUTPUT_SEQUENCE_HEADER, &number.to_string());
            let subject = format!("{}.output.{}.{}", order.from, order.job, self.name);
            self.bus.publish(&subject, headers, Bytes::copy_from_slice(piece)).await.unwrap();
        }
        let sha256 = Sha256::digest(stdout).iter().map(|byte| format!("{byte:02x}")).collect();
        let bytes = stdout.len() as u64;
        let outcome = Outcome {
            exit_code: Some(0),
            stdout: Some(OutputTally { bytes, total_bytes: bytes, sha256 }),
            output_messages: 2,
            ..Outcome::default()
        };
        self.reply(&order, &[State::Delivered, State::Running, State::Succeeded], Some(outcome), &self.pair).await;
        order
    }
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn target(text: &str) -> Selection {
    Selection { patterns: Pattern::parse_list(text).unwrap(), ..Selection::default() }
}

fn request(args: serde_json::Value) -> OrderRequest {
    OrderRequest {
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain("operatingsystem").unwrap(),
        args,
        timeout: Duration::from_secs(60),
        expires: Duration::from_secs(3600),
        max_output: 1 << 20,
    }
}

fn names(nodes: &[Node]) -> Vec<String> {
    nodes.iter().map(|node| node.name().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_shows_who_belongs_to_it_and_how_each_stands() {
    let world = World::start().await;
    let fleet = &world.fleet;
    let error = fleet.resolve(&Selection { all: true, ..Selection::default() }).await.unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");

    let (one, ten) = (world.node("ship1").await, world.node("ship10").await);
    let _two = world.node("ship2").await;
    one.live(Condition::Up).await;
    ten.live(Condition::Bye).await;
    let view = fleet.nodes().await.unwrap();
    assert_eq!(names(&view.nodes), ["ship1", "ship2", "ship10"]);
    let states: Vec<NodeState> = view.nodes.iter().map(|node| node.vitality.state).collect();
    assert_eq!(states, [NodeState::Online, NodeState::Offline, NodeState::Offline]);
    assert!(view.notes.is_empty(), "{:?}", view.notes);
    assert!(view.nodes[0].age.unwrap() < Duration::from_secs(5));

    // By name and by pattern, the same is seen.
    assert_eq!(fleet.resolve(&target("ship1")).await.unwrap().nodes[0].vitality.state, NodeState::Online);
    assert_eq!(names(&fleet.resolve(&target("ship10,ship1,ship1")).await.unwrap().nodes), ["ship1", "ship10"]);
    assert_eq!(names(&fleet.resolve(&target("ship1*,plane*")).await.unwrap().nodes), ["ship1", "ship10"]);
    let error = fleet.resolve(&target("shp1")).await.unwrap_err();
    assert!(error.to_string().contains("did you mean ship1"), "{error}");
    assert_eq!(error.exit_code(), 5);

    // A record that no operator signed is not believed, whoever could write it.
    let forged = Bytes::from(serde_json::to_vec(&view.nodes[0].record).unwrap());
    fleet.bus().kv_put("NODES", "ship4", forged, None).await.unwrap();
    let view = fleet.nodes().await.unwrap();
    assert_eq!((view.nodes.len(), view.notes.len()), (3, 1));
    assert!(fleet.node(&name("ship4")).await.unwrap_err().to_string().contains("not believed"));

    let record = fleet
        .label(&name("ship1"), &[("site".into(), "oslo".into()), ("gpu".into(), String::new())], &[])
        .await
        .unwrap();
    assert_eq!(record.labels["site"], "oslo");
    fleet.label(&name("ship1"), &[], &["gpu".into()]).await.unwrap();
    assert_eq!(fleet.node(&name("ship1")).await.unwrap().record.labels.len(), 1);
    assert!(matches!(fleet.label(&name("ship9"), &[], &[]).await, Err(FleetError::NoMatch { .. })));

    let error = enroll(&world.keys, fleet, &name("ship1")).await.unwrap_err();
    assert!(matches!(error, FleetError::NodeExists { .. }), "{error}");
    fleet.remove(&name("ship1")).await.unwrap();
    assert!(fleet.node(&name("ship1")).await.is_err());
    enroll(&world.keys, fleet, &name("ship1")).await.unwrap();

    let here = enroll_here(&world.home, &world.keys, fleet, &name("local")).await.unwrap();
    assert_eq!(enroll_here(&world.home, &world.keys, fleet, &name("local")).await.unwrap(), here);
    assert!(enroll_here(&world.home, &world.keys, fleet, &name("ship2")).await.is_err());
    assert!(!world.home.node_dir(&name("ship2")).join("bundle.json").exists());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_executed_followed_and_found_again() {
    let world = World::start().await;
    let fleet = &world.fleet;
    let mut ship = world.node("ship1").await;
    let forger = world.node("ship2").await;
    let begun = Instant::now();
    let another = Fleet::connect(fleet.context()).await.unwrap();
    let nodes = another.resolve(&target("ship1")).await.unwrap().nodes;
    let working = tokio::spawn(async move { (ship.execute(b"hello, world\n").await, ship) });
    let placed = another.order(&request(json!({"argv": ["echo", "hello, world"]})), &nodes).await.unwrap();
    let mut follow = another.follow_placed(&placed, Gather::Keep).await.unwrap();
    let mut updates = Vec::new();
    while let Some(update) = follow.next().await.unwrap() {
        updates.push(update);
    }
    println!("connect, resolve, order, answer: {:?}", begun.elapsed());
    let (order, mut ship) = working.await.unwrap();
    assert_eq!(order.to.name, name("ship1"));
    let view = follow.into_view();
    assert!(view.settled());
    assert_eq!(view.doubtful, 0);
    let json = view.to_json();
    assert_eq!(json["nodes"]["ship1"]["stdout"], "hello, world\n");
    assert_eq!(json["counts"], json!({"succeeded": 1}));
    assert!(updates.iter().any(|update| matches!(update, Update::State { state: State::Succeeded, .. })));

    // Looked up later, by anybody who believes the same root, it is the same.
    let later = fleet.job(&placed.job, Gather::Keep).await.unwrap();
    assert_eq!(later.to_json(), json);
    assert_eq!(fleet.find_job("last").await.unwrap(), placed.job);
    assert_eq!(fleet.find_job(&placed.job.as_str()[..12].to_lowercase()).await.unwrap(), placed.job);
    assert!(matches!(fleet.find_job("01ZZ").await, Err(FleetError::NoJob { .. })));

    // Another node tells of a second job what is not true: nobody believes it.
    let placed = fleet.order(&request(json!({"line": "true"})), &nodes).await.unwrap();
    let order = ship.order().await;
    let as_another = Order { to: message::Addressee { name: name("ship2"), ..order.to.clone() }, ..order.clone() };
    forger.reply(&as_another, &[State::Rejected], None, &forger.pair).await;
    ship.reply(&order, &[State::Rejected], None, &forger.pair).await;
    ship.reply(&order, &[State::Delivered], None, &ship.pair).await;
    let mut follow = fleet.follow(&placed.job, Gather::Keep).await.unwrap();
    let mut notes = 0;
    while let Some(update) = follow.next().await.unwrap() {
        match update {
            Update::Note { .. } => notes += 1,
            Update::State { state, .. } => {
                assert_eq!(state, State::Delivered);
                break;
            }
            Update::Output { .. } => {}
        }
    }
    assert_eq!(notes, 2);
    let jobs = fleet.jobs(10).await.unwrap();
    assert_eq!(jobs.iter().map(|job| job.job.clone()).collect::<Vec<_>>()[0], placed.job);
    assert_eq!(serde_json::to_value(&jobs[0]).unwrap()["counts"], json!({"delivered": 1}));
    assert_eq!(serde_json::to_value(&jobs[1]).unwrap()["counts"], json!({"succeeded": 1}));
    assert_eq!(fleet.jobs(1).await.unwrap().len(), 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_thousands_is_stored_whole_and_sent_once() {
    let world = World::start().await;
    let fleet = &world.fleet;
    let key = PublicKey::of(&KeyPair::new_user());
    let nodes: Vec<Node> = (0..2_000)
        .map(|number| Node {
            record: NodeRecord {
                v: WIRE_VERSION,
                kind: NodeKind::Node,
                name: name(&format!("ship{number}")),
                key: key.clone(),
                labels: [].into(),
                enrolled: Timestamp::from_ms(0),
                by: "admin".into(),
                changed: None,
                revoked: None,
            },
            facts: None,
            sign: None,
            last_seen: None,
            vitality: Vitality { state: NodeState::Offline, reason: None },
            age: None,
        })
        .collect();
    let begun = Instant::now();
    let placed = fleet.order(&request(json!({"line": "x".repeat(200)})), &nodes).await.unwrap();
    println!("2000 orders stored and sent: {:?}", begun.elapsed());
    assert!(placed.record.inline.is_none() && placed.record.chunks.len() > 1);
    assert!(fleet.bus().kv_get("JOBS", &format!("{}.sent", placed.job)).await.unwrap().is_some());
    let view = fleet.job(&placed.job, Gather::Ignore).await.unwrap();
    assert_eq!(view.counts()[&State::Queued], 2_000);
    assert_eq!(fleet.send_again(&placed.job).await.unwrap(), 2_000);
    let filter = vec!["*.command.*.*".to_owned()];
    let scan = bus::Scan::open(fleet.bus(), "COMMANDS", &filter, bus::Start::First).await.unwrap();
    assert_eq!(scan.pending(), 2_000, "sending again stores nothing twice");
    assert_eq!(fleet.find_job("last").await.unwrap(), placed.job);

    // One chunk is exchanged for another: the job is not believed any more.
    let key = |index: usize| message::job::chunk_key(&placed.job, &placed.record.chunks[index]);
    let chunk = fleet.bus().kv_get("JOBS", &key(1)).await.unwrap().unwrap();
    fleet.bus().kv_put("JOBS", &key(0), chunk.payload, None).await.unwrap();
    let error = fleet.job(&placed.job, Gather::Ignore).await.unwrap_err();
    assert!(error.to_string().contains("not what the operator signed"), "{error}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_who_is_proven_to_have_reported_them() {
    let world = World::start().await;
    let fleet = &world.fleet;
    let ship = world.node("ship1").await;
    let mut live = fleet.events(&EventFilter::default(), true).await.unwrap();
    let record = |text: &str| [("message".to_owned(), json!(text))].into_iter().collect();
    let (method, domain) = (Token::method("backup").unwrap(), Token::domain("nightly").unwrap());
    let ids = fleet.emit(&name("central"), &method, &domain, vec![record("done"), record("and well")]).await.unwrap();
    assert_eq!(ids.len(), 1);

    // The same batch twice from a node: signed by itself, and with another's key.
    let head = message::event::EventHead {
        v: WIRE_VERSION,
        kind: message::Kind::Event,
        id: clock::message_id(),
        from: name("ship1"),
        to: name("central"),
        method,
        domain,
        created: Timestamp::from_ms(0),
        count: 1,
        journal: None,
        row: None,
    };
    let records = vec![message::EventRecord { at: Timestamp::from_ms(1), record: record("from the ship") }];
    let batch = message::EventBatch { head, records };
    for pair in [&ship.pair, &KeyPair::new_user()] {
        let bytes = Bytes::from(batch.to_bytes());
        let headers = Headers::from(clock::message_id()).sealed(&Seal::over(&bytes, pair).unwrap());
        ship.bus.publish(&batch.subject().to_string(), headers, bytes).await.unwrap();
    }
    ship.bus.publish("central.event.backup.weekly", Headers::new(), Bytes::from("plain")).await.unwrap();

    let mut told = Vec::new();
    for _ in 0..5 {
        let line = tokio::time::timeout(Duration::from_secs(5), live.next()).await.unwrap().unwrap().unwrap();
        told.push((line.from.map(|from| from.to_string()), line.record["message"].as_str().unwrap().to_owned()));
    }
    let by = |from: Option<&str>, text: &str| (from.map(ToOwned::to_owned), text.to_owned());
    assert_eq!(
        told,
        [
            by(Some("central"), "done"),
            by(Some("central"), "and well"),
            by(Some("ship1"), "from the ship"),
            by(None, "from the ship"),
            by(None, "plain"),
        ]
    );

    let count = async |filter: EventFilter| {
        let mut events = fleet.events(&filter, false).await.unwrap();
        let mut count = 0;
        while events.next().await.unwrap().is_some() {
            count += 1;
        }
        count
    };
    assert_eq!(count(EventFilter::default()).await, 5);
    let from = Pattern::parse_list("ship*").unwrap().pop();
    assert_eq!(count(EventFilter { from, ..EventFilter::default() }).await, 1);
    assert_eq!(count(EventFilter { domain: Some("week*".into()), ..EventFilter::default() }).await, 1);
    assert_eq!(count(EventFilter { grep: Some("well".into()), ..EventFilter::default() }).await, 1);
    let since = Some(Since::Ago(Duration::from_secs(600)));
    assert_eq!(count(EventFilter { since, ..EventFilter::default() }).await, 5);
    world.stop().await;
}

/// A broker that takes only the first of several orders stands for a client that died behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_its_client_left_half_sent_is_finished_by_a_station() {
    let world = World::start().await;
    let store = provisioner(&world.broker.client_url(), &world.keys).await;
    let most = async |orders: i64| {
        let mut config = store.get_stream("COMMANDS").await.unwrap().cached_info().config.clone();
        config.max_messages = orders;
        store.update_stream(config).await.unwrap();
    };
    let stored = async || store.get_stream("COMMANDS").await.unwrap().cached_info().state.messages;
    let mut ships = Vec::new();
    for name in ["ship1", "ship2", "ship3"] {
        ships.push(world.node(name).await);
    }
    let mut context = world.fleet.context().clone();
    context.creds = world.home.station_creds();
    let station = Fleet::connect(&context).await.unwrap();
    let nodes = world.fleet.resolve(&target("ship1,ship2,ship3")).await.unwrap().nodes;
    let order = async |nodes: &[Node]| world.fleet.order(&request(json!({"argv": ["true"]})), nodes).await;

    most(1).await;
    let error = order(&nodes).await.unwrap_err();
    assert!(matches!(error, FleetError::NotAllSent { unsent: 2, targets: 3, .. }), "{error}");
    let error = order(&nodes[..1]).await.unwrap_err();
    assert!(matches!(error, FleetError::NotAllSent { unsent: 1, targets: 1, .. }), "{error}");
    most(-1).await;
    let sent = order(&nodes).await.unwrap();
    let alone = order(&nodes[1..2]).await.unwrap();

    let early = station.finish_jobs(Duration::from_secs(3600)).await.unwrap();
    assert_eq!((early.looked_at, early.sent.len()), (0, 0), "they still belong to their clients");
    let finished = station.finish_jobs(Duration::ZERO).await.unwrap();
    assert_eq!((finished.looked_at, finished.more), (4, false));
    let jobs = world.fleet.jobs(10).await.unwrap();
    let mut left: Vec<_> =
        jobs.iter().map(|job| &job.job).filter(|job| **job != sent.job && **job != alone.job).collect();
    left.reverse();
    assert_eq!(finished.sent.iter().collect::<Vec<_>>(), left, "the two that were left, in their order");
    assert!(world.fleet.bus().kv_get("JOBS", &format!("{}.sent", left[0])).await.unwrap().is_some());
    // Each node has each of its orders, by its id, and none is stored twice within the broker's memory of ids.
    assert_eq!(stored().await, 3 + 1 + 3 + 1);
    for (ship, orders) in ships.iter_mut().zip([3, 3, 2]) {
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..orders {
            ids.insert(ship.order().await.id);
        }
        assert_eq!(ids.len(), orders, "{}", ship.name);
    }
    assert_eq!(station.finish_jobs(Duration::ZERO).await.unwrap().looked_at, 0, "once");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_order_is_told_so_and_who_finds_no_broker_too() {
    let world = World::start().await;
    let mut context = world.fleet.context().clone();
    context.creds = world.home.station_creds();
    let station = Fleet::connect(&context).await.unwrap();
    assert_eq!(station.operator(), None);
    let ship = world.node("ship1").await;
    ship.live(Condition::Up).await;
    let nodes = station.resolve(&target("ship1")).await.unwrap().nodes;
    let error = station.order(&request(json!({})), &nodes).await.err().unwrap();
    assert!(matches!(error, FleetError::NotAnOperator { .. }), "{error}");

    // Without the file in the home, the broker's copy serves: it is sealed by the same root.
    std::fs::remove_file(world.home.trust_file()).unwrap();
    let fleet = Fleet::connect(world.fleet.context()).await.unwrap();
    assert_eq!(fleet.operator().as_deref(), Some("admin"));

    let mut context = world.fleet.context().clone();
    let _dir = world.stop().await;
    context.server = "nats://127.0.0.1:9".into();
    let error = Fleet::connect(&context).await.err().unwrap();
    assert!(error.to_string().contains("steward up"), "{error}");
}
