//! What an idle unit costs on its link: agents of each link profile behind a proxy that counts.
//!
//! Counted is what the proxy reads from either side: the bytes of TLS, as they would pass over the link. What carries them is
//! reckoned: each read is a segment (as many as 1448 bytes need) with 52 bytes of headers (IPv4, TCP with time stamps), and a
//! segment that is not answered within 40 ms costs an acknowledgement of 52 bytes more. Loss and repetition are left out.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bus::keys::FleetKeys;
use message::NodeName;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::system::{BenchError, System};

/// Headers of a segment: 20 bytes of IPv4, 20 of TCP, 12 of time stamps.
const HEADER_BYTES: u64 = 52;
/// What a segment carries at most on an ordinary link.
const SEGMENT_BYTES: u64 = 1448;
/// An answer that comes sooner carries the acknowledgement with it.
const DELAYED_ACK: Duration = Duration::from_millis(40);
/// The setting up and taking down of a connection: seven segments, and options in the first two.
const CONNECTION_BYTES: u64 = 7 * HEADER_BYTES + 16;
/// What an agent has to tell after its start is told by then.
const SETTLED: Duration = Duration::from_secs(30);
const MONTH_S: f64 = 30.0 * 24.0 * 3600.0;
/// An idle unit with `link = "metered"` may use this much a month.
const METERED_LIMIT_BYTES: u64 = 2_000_000;
/// Life signs with `link = "metered"`: every 30 minutes less a jitter of a tenth, 28.5 on average.
const METERED_SIGNS_A_MONTH: f64 = MONTH_S / (28.5 * 60.0);
/// The broker measures its own round trip to each client once an hour by a ping, whatever else is said.
const PINGS_A_MONTH: f64 = MONTH_S / 3600.0;
/// PING and PONG as one record of TLS each, with one acknowledgement: 3 segments, and 6 bytes with 22 of TLS each way.
const PING_BYTES: f64 = (3 * HEADER_BYTES + 2 * 28) as f64;

/// The profiles that are measured, and one that speaks so often that the cost of a single life sign shows.
const PROFILES: [(&str, &str); 4] = [
    ("normal", "link = \"normal\"\n"),
    ("slow", "link = \"slow\"\n"),
    ("metered", "link = \"metered\"\n"),
    ("chatty", "link = \"metered\"\nlife_sign = \"1s\"\n"),
];

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct LinkFigures {
    /// For how long idle agents were metered.
    pub seconds: u64,
    /// What connecting and starting costs once: of `metered`.
    pub start_bytes: u64,
    /// One life sign with its confirmation.
    pub sign_bytes: u64,
    /// Measured with `normal`, a month of it.
    pub normal_month_bytes: u64,
    /// Measured with `slow`, a month of it.
    pub slow_month_bytes: u64,
    /// Measured with `metered`, a month of it. Tells something only if it was metered for hours.
    pub metered_seen_month_bytes: u64,
    /// With `metered`, reckoned from the life signs of a month and the pings of the broker.
    pub metered_month_bytes: u64,
    /// The goal for it.
    pub metered_month_limit_bytes: u64,
    /// What is counted, and what is not.
    pub counts: &'static str,
}

/// What has passed.
#[derive(Debug, Default)]
struct Count {
    payload: u64,
    segments: u64,
    acks: u64,
    connections: u64,
    /// How often the unit began to speak after the broker had spoken, which is once for each life sign, when it is idle.
    words: u64,
    /// Which way the last segment went, and when.
    last: Option<(Way, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Count {
    /// Bytes were read that go this way.
    fn pass(&mut self, way: Way, bytes: u64, now: Instant) {
        self.payload += bytes;
        self.segments += bytes.div_ceil(SEGMENT_BYTES);
        self.acks += 1;
        let last = self.last.replace((way, now));
        if last.is_some_and(|(last, at)| last != way && now.saturating_duration_since(at) < DELAYED_ACK) {
            self.acks -= 1;
        }
        self.words += u64::from(way == Way::Up && last.is_none_or(|(last, _)| last == Way::Down));
    }

    fn ip_bytes(&self) -> u64 {
        self.payload + (self.segments + self.acks) * HEADER_BYTES + self.connections * CONNECTION_BYTES
    }
}

/// A way to the broker that counts what passes.
struct Meter {
    address: SocketAddr,
    count: Arc<Mutex<Count>>,
    _tasks: JoinSet<()>,
}

impl Meter {
    async fn start(broker: String) -> Result<Self, BenchError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, count) = (listener.local_addr()?, Arc::new(Mutex::new(Count::default())));
        let counted = Arc::clone(&count);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut passing = JoinSet::new();
            while let Ok((unit, _)) = listener.accept().await {
                let Ok(broker) = TcpStream::connect(&broker).await else { continue };
                lock(&counted).connections += 1;
                let ((unit_in, unit_out), (broker_in, broker_out)) = (unit.into_split(), broker.into_split());
                passing.spawn(pass(unit_in, broker_out, Way::Up, Arc::clone(&counted)));
                passing.spawn(pass(broker_in, unit_out, Way::Down, Arc::clone(&counted)));
            }
        });
        Ok(Self { address, count, _tasks: tasks })
    }

    fn ip_bytes(&self) -> u64 {
        lock(&self.count).ip_bytes()
    }

    fn words(&self) -> u64 {
        lock(&self.count).words
    }
}

fn lock(count: &Mutex<Count>) -> std::sync::MutexGuard<'_, Count> {
    count.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way, count: Arc<Mutex<Count>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        lock(&count).pass(way, u64::try_from(read).unwrap_or(u64::MAX), Instant::now());
        if to.write_all(buffer.get(..read).unwrap_or_default()).await.is_err() {
            return;
        }
    }
}

/// An agent behind a meter.
struct Metered {
    child: Child,
    meter: Meter,
}

/// Meters idle agents of each profile for `rest`.
///
/// # Errors
/// [`BenchError`] when the system or an agent does not start.
pub async fn link(rest: Duration) -> Result<LinkFigures, BenchError> {
    let system = System::up(&["--no-agent", "--tls"]).await?;
    let measured = measure(&system, rest).await;
    system.stop().await;
    measured
}

async fn measure(system: &System, rest: Duration) -> Result<LinkFigures, BenchError> {
    let mut agents = Vec::new();
    for (profile, config) in PROFILES {
        agents.push(start(system, profile, config).await?);
    }
    tokio::time::sleep(SETTLED).await;
    let before: Vec<u64> = agents.iter().map(|agent| agent.meter.ip_bytes()).collect();
    let words = |agents: &[Metered]| agents.last().map_or(0, |agent| agent.meter.words());
    let words_before = words(&agents);
    let begun = Instant::now();
    tokio::time::sleep(rest).await;
    let seconds = begun.elapsed().as_secs_f64().max(1.0);
    let signs = (words(&agents) - words_before).max(1);
    let passed: Vec<u64> = agents.iter().zip(&before).map(|(agent, before)| agent.meter.ip_bytes() - before).collect();
    for agent in &mut agents {
        let _ = agent.child.kill().await; // its journal goes with the home
    }
    let &[normal, slow, metered, chatty] = passed.as_slice() else {
        return Err(BenchError::System("there is a profile too many".into()));
    };
    // Figures of some megabytes: exact as numbers with a fraction, and rounded to whole bytes.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let month = |bytes: u64| (bytes as f64 / seconds * MONTH_S).round() as u64;
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let reckoned =
        (chatty as f64 / signs as f64).mul_add(METERED_SIGNS_A_MONTH, PING_BYTES * PINGS_A_MONTH).round() as u64;
    Ok(LinkFigures {
        seconds: rest.as_secs(),
        start_bytes: before.get(2).copied().unwrap_or_default(),
        sign_bytes: chatty / signs,
        normal_month_bytes: month(normal),
        slow_month_bytes: month(slow),
        metered_seen_month_bytes: month(metered),
        metered_month_bytes: reckoned,
        metered_month_limit_bytes: METERED_LIMIT_BYTES,
        counts: "TLS bytes as read by a proxy, 52 bytes of IPv4 and TCP a segment, acknowledgements that no answer carries; \
                 no loss. metered_month_bytes: life signs of a month at sign_bytes, and an hourly ping of the broker; no \
                 reconnects, facts or orders",
    })
}

fn node_of(profile: &str) -> String {
    format!("link-{profile}")
}

async fn start(system: &System, profile: &str, config: &str) -> Result<Metered, BenchError> {
    let failed = |reason: String| BenchError::System(reason);
    let name = NodeName::new(node_of(profile)).map_err(|error| failed(error.to_string()))?;
    let keys = FleetKeys::open(system.dir()).map_err(|error| failed(error.to_string()))?;
    let mut bundle = fleet::enroll(&keys, &system.fleet, &name).await?;
    let (scheme, address) = bundle.server.split_once("://").unwrap_or(("nats", &bundle.server));
    let meter = Meter::start(address.to_owned()).await?;
    bundle.server = format!("{scheme}://{}", meter.address);
    let dir = system.dir().join("link").join(profile);
    std::fs::create_dir_all(&dir)?;
    let (bundle_file, config_file) = (dir.join("bundle"), dir.join("link.toml"));
    bundle.save(&bundle_file)?;
    std::fs::write(&config_file, config)?;
    let child = Command::new(std::env::current_exe()?)
        .args(["agent", "--bundle"])
        .arg(&bundle_file)
        .arg("--config")
        .arg(&config_file)
        .arg("--state")
        .arg(dir.join("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok(Metered { child, meter })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_comes_at_once_carries_the_acknowledgement() {
        let (mut count, begun) = (Count::default(), Instant::now());
        count.pass(Way::Up, 900, begun);
        count.pass(Way::Down, 100, begun + Duration::from_millis(10));
        assert_eq!(count.ip_bytes(), 1000 + 3 * HEADER_BYTES);
        count.pass(Way::Up, 2000, begun + Duration::from_secs(1));
        assert_eq!(count.ip_bytes(), 3000 + 6 * HEADER_BYTES);
    }
}
