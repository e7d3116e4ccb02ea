//! The station of a large fleet: how long it takes to have it in sight, what it takes of memory, and how fast it answers.
//!
//! The fleet is made up: as many records, life signs and facts as there are nodes, each signed with a key of its own, as they
//! would stand in the broker. Nobody is behind them: what is measured is the station.

use std::path::Path;
use std::time::{Duration, Instant};

use bus::claims::{self, Creds, User};
use bus::keys::FleetKeys;
use bus::kv::{FACTS, NODES, PRESENCE};
use bus::{Bus, ConnectOptions, Credentials, EDGE_API};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use message::registry::NodeKind;
use message::{Facts, LifeSign, NodeName, NodeRecord, PublicKey, Seal, Timestamp, WIRE_VERSION};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nkeys::KeyPair;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::limits::{ms, quantile, round};
use crate::made_up;
use crate::system::{BenchError, System, rss_bytes};

/// The goals are those of so many nodes.
const LIMIT_NODES: f64 = 100_000.0;
const READING_LIMIT_S: f64 = 10.0;
const ANSWER_LIMIT_MS: f64 = 50.0;
const MEMORY_LIMIT_BYTES: u64 = 4096;
/// So many are written at once.
const WRITING: usize = 128;
/// How often the API is asked, and for how long.
const EVERY: Duration = Duration::from_millis(10);
const ASKING: Duration = Duration::from_secs(20);
/// How long the station may take to have everything in sight.
const PATIENCE: Duration = Duration::from_secs(600);
/// Of many nodes so long ago is not yet silent.
const INTERVAL_MS: u64 = 3_600_000;
/// What is asked, one after the other; `N` becomes a number.
const QUESTIONS: [&str; 10] = [
    "/api/v1/nodes",
    "/api/v1/nodes?cursor=0.shipN",
    "/api/v1/nodes/shipN",
    "/api/v1/nodes?selector=site%3Doslo,tier!%3Dprod",
    "/api/v1/nodes?target=shipN",
    "/api/v1/nodes?state=offline",
    "/api/v1/nodes?where=facts.memory.total+%3E+4e9+%26%26+online",
    "/api/v1/jobs",
    "/api/v1/events",
    "/api/v1",
];

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct StationFigures {
    /// How many nodes.
    pub nodes: usize,
    /// From the start of a station to `ready`: everything read from the broker, and every signature verified.
    pub reading_s: f64,
    /// The goal for it: 10 s for 100 000 nodes, in proportion.
    pub reading_limit_s: f64,
    /// The station's memory with all of it, less that of one without nodes.
    pub station_bytes_per_node: u64,
    /// The goal for it.
    pub station_limit_bytes_per_node: u64,
    /// How many questions were put to the API, 100 a second.
    pub asked: usize,
    /// How many of them were not answered with 200.
    pub failed: usize,
    /// How long an answer took, connection included.
    pub answer_p50_ms: f64,
    /// The same for the slowest of 100.
    pub answer_p99_ms: f64,
    /// The goal for it.
    pub answer_limit_ms: f64,
    /// `answer_p99_ms / answer_limit_ms`: at most 1 is the goal.
    pub answer_ratio_to_limit: f64,
    /// How long the fleet's page took with everything counted, the slowest of ten.
    pub page_ms: f64,
    /// A label over all nodes, counted, the slowest of ten.
    pub selector_ms: f64,
    /// An expression over the facts of all nodes, counted, the slowest of ten.
    pub expression_ms: f64,
}

/// Measures the station of a fleet of `nodes`.
///
/// # Errors
/// [`BenchError`] when the system does not start, or the station does not get ready.
pub async fn station(nodes: usize) -> Result<StationFigures, BenchError> {
    let system = System::up(&["--no-agent"]).await?;
    let measured = measure(&system, nodes).await;
    system.stop().await;
    measured
}

fn other(error: &dyn std::fmt::Display) -> BenchError {
    BenchError::System(error.to_string())
}

async fn measure(system: &System, nodes: usize) -> Result<StationFigures, BenchError> {
    let gone = || BenchError::System("its station is not found".into());
    let alone = rss_bytes(system.station_pid().ok_or_else(gone)?)?;
    fill(system, nodes).await?;

    // `up` starts it again at the same address.
    let old = system.station_pid().ok_or_else(gone)?;
    kill(Pid::from_raw(i32::try_from(old).unwrap_or(i32::MAX)), Signal::SIGKILL).map_err(std::io::Error::from)?;
    let deadline = Instant::now() + PATIENCE;
    let begun = loop {
        if system.station_pid().is_some_and(|pid| pid != old) {
            break Instant::now();
        }
        in_time(deadline)?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    while get(&system.http, "/readyz").await.0 != 200 {
        in_time(deadline)?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let reading_s = begun.elapsed().as_secs_f64();
    let counted = get(&system.http, "/api/v1/nodes?limit=1&count=true").await.1;
    let counted: Value = serde_json::from_str(&counted).map_err(|error| other(&error))?;
    if counted["counts"]["online"].as_u64() != u64::try_from(nodes).ok() {
        return Err(BenchError::System(format!("not all {nodes} nodes are in sight: {}", counted["counts"])));
    }
    let rss = rss_bytes(system.station_pid().ok_or_else(gone)?)?;

    let (mut answers, failed) = ask(&system.http, nodes).await;
    let slowest = async |path: &str| {
        let mut slowest = Duration::ZERO;
        for _ in 0..10 {
            let begun = Instant::now();
            get(&system.http, path).await;
            slowest = slowest.max(begun.elapsed());
        }
        ms(slowest)
    };
    // Counts below 2^52 are exact.
    #[allow(clippy::cast_precision_loss)]
    let share = nodes.max(1) as f64 / LIMIT_NODES;
    let answer_p99_ms = ms(quantile(&mut answers, 0.99));
    Ok(StationFigures {
        nodes,
        reading_s: round(reading_s, 2),
        reading_limit_s: READING_LIMIT_S * share,
        station_bytes_per_node: rss.saturating_sub(alone) / u64::try_from(nodes.max(1)).unwrap_or(u64::MAX),
        station_limit_bytes_per_node: MEMORY_LIMIT_BYTES,
        asked: answers.len(),
        failed,
        answer_p50_ms: ms(quantile(&mut answers, 0.5)),
        answer_p99_ms,
        answer_limit_ms: ANSWER_LIMIT_MS,
        answer_ratio_to_limit: round(answer_p99_ms / ANSWER_LIMIT_MS, 3),
        page_ms: slowest("/").await,
        selector_ms: slowest("/api/v1/nodes?count=true&selector=site+in+(oslo,bergen),tier!%3Dprod,!retired").await,
        expression_ms: slowest("/api/v1/nodes?count=true&where=facts.memory.total+%3E+4e9+%26%26+online").await,
    })
}

fn in_time(deadline: Instant) -> Result<(), BenchError> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(BenchError::System(format!("the station was not ready within {} s", PATIENCE.as_secs())))
}

/// Writes what a fleet would have written.
async fn fill(system: &System, nodes: usize) -> Result<(), BenchError> {
    let operator = system.fleet.bus();
    let credentials = Credentials::load(&system.fleet.context().creds).map_err(|error| other(&error))?;
    let everybody = everybody(system).await?;
    let by = system.fleet.operator().unwrap_or_default();
    stream::iter(0..nodes)
        .map(|number| {
            let (operator, everybody, credentials, by) = (&operator, &everybody, &credentials, &by);
            async move {
                let made = Made::new(number, by)?;
                let name = made.record.name.clone();
                let write = async |bus: &Bus, bucket: &str, payload: Vec<u8>, pair: &KeyPair| {
                    let payload = Bytes::from(payload);
                    let seal = Seal::over(&payload, pair).map_err(|error| other(&error))?;
                    bus.kv_put(bucket, name.as_str(), payload, Some(&seal)).await?;
                    Ok::<_, BenchError>(())
                };
                let json = |error: serde_json::Error| other(&error);
                write(operator, NODES, serde_json::to_vec(&made.record).map_err(json)?, credentials.pair()).await?;
                write(everybody, PRESENCE, serde_json::to_vec(&made.sign).map_err(json)?, &made.pair).await?;
                write(everybody, FACTS, serde_json::to_vec(&made.facts).map_err(json)?, &made.pair).await
            }
        })
        .buffer_unordered(WRITING)
        .try_collect()
        .await
}

/// A connection that may write in every node's name, as no real one may: its token is made with the fleet's keys, which lie
/// in the temporary home.
async fn everybody(system: &System) -> Result<Bus, BenchError> {
    let keys = FleetKeys::open(system.dir()).map_err(|error| other(&error))?;
    let pair = KeyPair::new_user();
    let made = keys.node_user("model", &pair).map_err(|error| other(&error))?;
    let claims = made.token().map_err(|error| other(&error))?;
    let account = claims.nats.issuer_account.clone();
    let seed = std::fs::read_to_string(Path::new(system.dir()).join("keys/node.nk"))?;
    let signer = KeyPair::from_seed(seed.trim()).map_err(|error| other(&error))?;
    let token = claims::sign(&signer, &pair.public_key(), "*", User::scoped(account, claims.nats.tags.clone()));
    let creds = Creds::new(token.map_err(|error| other(&error))?, &pair).map_err(|error| other(&error))?;
    let options = ConnectOptions {
        server: system.fleet.context().server.clone(),
        ca: None,
        credentials: Credentials::of(&creds).map_err(|error| other(&error))?,
        name: "bench".into(),
        inbox_prefix: Some("_INBOX.model".into()),
        patient: false,
        ping_interval: Duration::from_secs(60),
        api_prefix: EDGE_API,
    };
    Ok(Bus::connect(options).await?)
}

/// What is known of a node.
struct Made {
    pair: KeyPair,
    record: NodeRecord,
    sign: LifeSign,
    facts: Facts,
}

impl Made {
    fn new(number: usize, by: &str) -> Result<Self, BenchError> {
        let name = NodeName::new(format!("ship{number}")).map_err(|error| other(&error))?;
        let pair = KeyPair::new_user();
        let record = NodeRecord {
            v: WIRE_VERSION,
            kind: NodeKind::Node,
            name: name.clone(),
            key: PublicKey::of(&pair),
            labels: made_up::labels(number),
            enrolled: Timestamp::default(),
            by: by.to_owned(),
            changed: None,
            revoked: None,
        };
        let sign = made_up::life_sign(&name, INTERVAL_MS);
        let facts = made_up::facts(number);
        Ok(Self { pair, record, sign, facts: Facts::new(name, Timestamp::default(), facts) })
    }
}

/// Asks the API so often, whether it has answered or not; how long each answer took, and how many failed.
async fn ask(http: &str, nodes: usize) -> (Vec<Duration>, usize) {
    let mut asking = tokio::task::JoinSet::new();
    let mut every = tokio::time::interval(EVERY);
    let begun = Instant::now();
    let mut number = 0_usize;
    while begun.elapsed() < ASKING {
        every.tick().await;
        // All over the fleet, and the same in every run.
        let node = number.wrapping_mul(7919) % nodes.max(1);
        let path = QUESTIONS[number % QUESTIONS.len()].replace('N', &node.to_string());
        let http = http.to_owned();
        asking.spawn(async move {
            let begun = Instant::now();
            (get(&http, &path).await.0, begun.elapsed())
        });
        number += 1;
    }
    let answers = asking.join_all().await;
    let failed = answers.iter().filter(|(code, _)| *code != 200).count();
    (answers.into_iter().map(|(_, took)| took).collect(), failed)
}

/// The code and the body of an answer; 0 when there is none.
async fn get(http: &str, path: &str) -> (u16, String) {
    let asked = async {
        let mut stream = TcpStream::connect(http).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = asked.await.unwrap_or_default();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), body.to_owned())
}
