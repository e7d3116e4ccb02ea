//! How a fleet of many units behaves: simulated units with a connection each, at a system over TLS.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use agent::light::LEFT_OUT;
use bus::keys::FleetKeys;
use fleet::{Gather, Selection, Terms};
use futures::{StreamExt, TryStreamExt, stream};
use message::order::DEFAULT_DOMAIN;
use message::{NodeName, PublicKey, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nkeys::KeyPair;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::limits::round;
use crate::roundtrip::order_true;
use crate::system::{BenchError, System, rss_bytes};
use crate::units::{Cast, Unit};

/// More need more file descriptors than a process has on many machines.
const NODES_MAX: usize = 10_000;
/// So many units are enrolled at once.
const ENROLLING: usize = 128;
/// Between two life signs of a unit: that of an agent.
const INTERVAL: Duration = Duration::from_secs(15);
/// How long units may take to come up, at first and after a restart, each.
const PATIENCE_PER_UNIT: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(120);
/// Memory is looked at after so long without anything new.
const REST: Duration = Duration::from_secs(3);
/// Between two looks at how many are in sight.
const LOOK: Duration = Duration::from_millis(500);

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct FleetFigures {
    /// How many units.
    pub nodes: usize,
    /// From the start of the units to the last one in sight of the station.
    pub connect_s: f64,
    /// From the order to the last answer that was stored, received and verified.
    pub order_all_answered_s: f64,
    /// The goal for it: 3 s for 10 000 nodes, in proportion.
    pub order_limit_s: f64,
    /// The part of it until all orders were stored.
    pub order_placed_s: f64,
    /// From a kill -9 of the broker to all units online in sight of the station.
    pub presence_after_restart_s: f64,
    /// The goal for it: two intervals between life signs.
    pub presence_limit_s: f64,
    /// Seconds after the kill, and how many were online in sight then. Without a number: nothing was in sight.
    pub presence_curve: Vec<(f64, Option<u64>)>,
    /// The broker's resident memory with all units.
    pub broker_rss_bytes: u64,
    /// What it grew by for each.
    pub broker_bytes_per_node: u64,
    /// What another broker grew by for each of as many bare clients with TLS, a JWT and one subscription.
    pub broker_bytes_per_bare_client: u64,
    /// How these compare: at most 1.2 is the goal.
    pub broker_ratio_to_bare: f64,
    /// The station's resident memory with all units.
    pub station_rss_bytes: u64,
    /// What it grew by for each.
    pub station_bytes_per_node: u64,
    /// The goal for it.
    pub station_limit_bytes_per_node: u64,
    /// What the simulated units took.
    pub bench_rss_bytes: u64,
    /// What the simulated units do not do.
    pub left_out: Vec<String>,
}

/// Measures a fleet of `nodes` units.
///
/// # Errors
/// [`BenchError`] when the system does not start, the units do not come up, or an order does not succeed.
pub async fn fleet(nodes: usize) -> Result<FleetFigures, BenchError> {
    if !(1..=NODES_MAX).contains(&nodes) {
        return Err(BenchError::System(format!("{nodes} units cannot be simulated here: give 1 to {NODES_MAX}")));
    }
    let bare = alone(nodes).await?;
    let system = System::up(&["--no-agent", "--tls"]).await?;
    let measured = measure(&system, nodes, bare).await;
    system.stop().await;
    measured
}

/// What a broker grows by for each of so many bare clients.
async fn alone(clients: usize) -> Result<u64, BenchError> {
    let system = System::up(&["--no-agent", "--tls"]).await?;
    let grown = async {
        let units = (0..clients).map(|number| unit(&system, number)).collect::<Result<Vec<_>, _>>()?;
        let broker = broker(&system)?;
        let before = rss_bytes(broker)?;
        let units = Units::start(&system, units, None).await?;
        tokio::time::sleep(REST).await;
        let grown = rss_bytes(broker)?.saturating_sub(before);
        units.stop().await;
        Ok(grown / clients as u64)
    }
    .await;
    system.stop().await;
    grown
}

async fn measure(system: &System, nodes: usize, bare: u64) -> Result<FleetFigures, BenchError> {
    let units = enrol(system, nodes).await?;
    let (broker_pid, station_pid) = (broker(system)?, station(system)?);
    tokio::time::sleep(REST).await;
    let (broker_before, station_before) = (rss_bytes(broker_pid)?, rss_bytes(station_pid)?);

    let begun = Instant::now();
    let units = Units::start(system, units, Some(INTERVAL)).await?;
    until_online(system, nodes, begun, &mut Vec::new()).await?;
    let connect_s = begun.elapsed().as_secs_f64();
    tokio::time::sleep(REST).await;
    let (broker_rss, station_rss) = (rss_bytes(broker_pid)?, rss_bytes(station_pid)?);

    let (placed_s, answered_s) = order(system, nodes).await?;

    let begun = Instant::now();
    // As a crash would.
    kill(Pid::from_raw(i32::try_from(broker_pid).unwrap_or(i32::MAX)), Signal::SIGKILL)
        .map_err(std::io::Error::from)?;
    let mut curve = Vec::new();
    until_missed(system).await?;
    until_online(system, nodes, begun, &mut curve).await?;
    let presence_s = begun.elapsed().as_secs_f64();
    let bench_rss_bytes = units.rss_bytes()?;
    units.stop().await;

    let count = nodes as u64;
    let per_node = broker_rss.saturating_sub(broker_before) / count;
    // Some kibibytes and some thousand units are exact.
    #[allow(clippy::cast_precision_loss)]
    let (ratio, order_limit_s) = (per_node as f64 / bare.max(1) as f64, 3.0 * nodes as f64 / 10_000.0);
    Ok(FleetFigures {
        nodes,
        connect_s: round(connect_s, 2),
        order_all_answered_s: round(answered_s, 3),
        order_limit_s: round(order_limit_s, 3),
        order_placed_s: round(placed_s, 3),
        presence_after_restart_s: round(presence_s, 1),
        presence_limit_s: INTERVAL.as_secs_f64() * 2.0,
        presence_curve: curve,
        broker_rss_bytes: broker_rss,
        broker_bytes_per_node: per_node,
        broker_bytes_per_bare_client: bare,
        broker_ratio_to_bare: round(ratio, 2),
        station_rss_bytes: station_rss,
        station_bytes_per_node: station_rss.saturating_sub(station_before) / count,
        station_limit_bytes_per_node: 4096,
        bench_rss_bytes,
        left_out: LEFT_OUT.map(str::to_owned).to_vec(),
    })
}

fn broker(system: &System) -> Result<u32, BenchError> {
    system.broker_pid().ok_or_else(|| BenchError::System("its broker is not found".into()))
}

fn station(system: &System) -> Result<u32, BenchError> {
    system.station_pid().ok_or_else(|| BenchError::System("its station is not found".into()))
}

/// A unit with a key of its own, of which nobody has heard.
fn unit(system: &System, number: usize) -> Result<Unit, BenchError> {
    let wrong = |error: &dyn std::fmt::Display| BenchError::System(error.to_string());
    let keys = FleetKeys::open(system.dir()).map_err(|error| wrong(&error))?;
    made(&keys, number).map(|(unit, _)| unit)
}

fn made(keys: &FleetKeys, number: usize) -> Result<(Unit, PublicKey), BenchError> {
    let wrong = |error: &dyn std::fmt::Display| BenchError::System(error.to_string());
    let name = NodeName::new(format!("unit{number}")).map_err(|error| wrong(&error))?;
    let pair = KeyPair::new_user();
    let creds = keys.node_user(name.as_str(), &pair).map_err(|error| wrong(&error))?;
    Ok((Unit { name, creds: creds.render() }, PublicKey::of(&pair)))
}

async fn enrol(system: &System, nodes: usize) -> Result<Vec<Unit>, BenchError> {
    let wrong = |error: &dyn std::fmt::Display| BenchError::System(error.to_string());
    let keys = FleetKeys::open(system.dir()).map_err(|error| wrong(&error))?;
    stream::iter(0..nodes)
        .map(|number| {
            let made = made(&keys, number);
            async move {
                let (unit, key) = made?;
                system.fleet.register(&unit.name, &key).await?;
                Ok(unit)
            }
        })
        .buffer_unordered(ENROLLING)
        .try_collect()
        .await
}

/// One order to all. When all orders were stored, and when all answers were there, in seconds.
async fn order(system: &System, nodes: usize) -> Result<(f64, f64), BenchError> {
    let request = order_true(DEFAULT_DOMAIN)?;
    let begun = Instant::now();
    let targets = system.fleet.resolve(&Selection { all: true, ..Selection::default() }).await?;
    let (_, mut follow) =
        system.fleet.order_and_follow(&request, &targets.nodes, &Terms::default(), Gather::Ignore).await?;
    let placed = begun.elapsed().as_secs_f64();
    while follow.next().await?.is_some() {}
    let answered = begun.elapsed().as_secs_f64();
    let counts = follow.view().counts();
    match counts.get(&State::Succeeded) {
        Some(succeeded) if *succeeded as usize == nodes => Ok((placed, answered)),
        _ => Err(BenchError::Order(format!("{counts:?}"))),
    }
}

/// Waits until the station knows that the broker is gone: what it shows until then is of before.
async fn until_missed(system: &System) -> Result<(), BenchError> {
    let deadline = Instant::now() + PATIENCE;
    while get(&system.http, "/readyz").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
        if Instant::now() > deadline {
            return Err(BenchError::System("the station did not notice that its broker was gone".into()));
        }
        tokio::time::sleep(LOOK / 25).await;
    }
    Ok(())
}

/// Waits until the station sees all of them online, and notes how many it saw on the way.
async fn until_online(
    system: &System,
    nodes: usize,
    begun: Instant,
    curve: &mut Vec<(f64, Option<u64>)>,
) -> Result<(), BenchError> {
    let patience = PATIENCE + PATIENCE_PER_UNIT * u32::try_from(nodes).unwrap_or(u32::MAX);
    let deadline = Instant::now() + patience;
    loop {
        let online = online(&system.http).await;
        let at = round(begun.elapsed().as_secs_f64(), 1);
        // A point where the number changes is a point of the curve.
        if curve.last().is_none_or(|(_, last)| *last != online) {
            curve.push((at, online));
        }
        if online == Some(nodes as u64) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let seen = online.unwrap_or(0);
            return Err(BenchError::System(format!(
                "after {} s only {seen} of {nodes} units are online in sight of the station",
                patience.as_secs()
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How many nodes are online in sight of the station; `None` while it does not follow the broker.
async fn online(http: &str) -> Option<u64> {
    if !get(http, "/readyz").await?.starts_with("HTTP/1.1 200") {
        return None;
    }
    let metrics = get(http, "/metrics").await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("steward_nodes{state=\"online\"} "))?;
    line.trim().parse().ok()
}

async fn get(http: &str, path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(http).await.ok()?;
    let question = format!("GET {path} HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// A process with simulated units.
struct Units {
    child: Child,
    pid: u32,
}

impl Units {
    /// Starts them, and waits until all are up.
    async fn start(system: &System, units: Vec<Unit>, interval: Option<Duration>) -> Result<Self, BenchError> {
        let patience = PATIENCE + PATIENCE_PER_UNIT * u32::try_from(units.len()).unwrap_or(u32::MAX);
        let context = system.fleet.context();
        let cast = Cast {
            server: context.server.clone(),
            ca: context.ca.clone(),
            trust: system.fleet.trust().as_ref().clone(),
            interval,
            units,
        };
        let file: PathBuf = system.dir().join("units.json");
        let text = serde_json::to_vec(&cast).map_err(|error| BenchError::System(error.to_string()))?;
        tokio::fs::write(&file, text).await?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", "units"])
            .arg(&file)
            .env_remove("NATS_URL")
            .env_remove("NATS_CREDS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let failed = |what: &str| BenchError::System(format!("the simulated units {what}"));
        let (Some(stdout), Some(pid)) = (child.stdout.take(), child.id()) else { return Err(failed("did not start")) };
        let mut lines = BufReader::new(stdout).lines();
        match tokio::time::timeout(patience, lines.next_line()).await {
            Ok(Ok(Some(_))) => Ok(Self { child, pid }),
            Ok(_) => Err(failed("ended before all were up; what they say stands above")),
            Err(_) => Err(failed(&format!("were not up within {} s", patience.as_secs()))),
        }
    }

    fn rss_bytes(&self) -> Result<u64, BenchError> {
        rss_bytes(self.pid)
    }

    async fn stop(mut self) {
        drop(self.child.stdin.take());
        if tokio::time::timeout(Duration::from_secs(10), self.child.wait()).await.is_err() {
            // What hangs is ended when it is dropped.
            let _ = self.child.start_kill();
        }
    }
}
