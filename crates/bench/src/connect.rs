//! How fast a broker takes agents, beside bare clients of NATS: both with TLS and a token of their own, as many at once, in the
//! same run on the same machine.
//!
//! An agent's start is its connection and what it says and asks on the bus until it waits for orders: whether its name is free,
//! its life sign, its subscriptions, the epoch, the list of operators, the policy, its record, one catch-up. These are the
//! calls of `bus` that the agent makes, in its order.

use std::time::{Duration, Instant};

use bus::claims::Creds;
use bus::keys::FleetKeys;
use bus::live::{LiveOrders, LiveStored};
use bus::node::{self, Bare};
use bus::{Bus, BusError, ConnectOptions, Credentials, kv, live};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use message::{NodeName, Seal};
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

use crate::limits::{ms, quantile};
use crate::made_up;
use crate::system::{BenchError, NODE, System};

/// How many connect at once, of either kind.
const AT_ONCE: usize = 64;
/// Agents shall connect at this share of the rate of bare clients.
const SHARE_LIMIT: f64 = 0.5;
/// Open files beside the connections.
const FILES_BESIDE: u64 = 200;

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct ConnectFigures {
    /// How many of either kind.
    pub agents: usize,
    /// How many connected at once.
    pub at_once: usize,
    /// Bare clients of NATS a second, with TLS, a token and one subscription.
    pub bare_per_s: f64,
    /// Agents a second, until they wait for orders.
    pub agents_per_s: f64,
    /// `agents_per_s / bare_per_s`.
    pub share_of_bare: f64,
    /// What that share shall be at least.
    pub share_limit: f64,
    /// One bare client, p50.
    pub bare_p50_ms: f64,
    /// One agent, p50.
    pub agent_p50_ms: f64,
    /// Of that, until its link is up, p50.
    pub agent_link_p50_ms: f64,
    /// One agent, p99.
    pub agent_p99_ms: f64,
    /// Resident memory of the broker with all agents connected.
    pub broker_rss_bytes: u64,
    /// The open files that this process may have.
    pub files_max: u64,
    /// What an agent does besides, and what is not as in a fleet.
    pub left_out: Vec<&'static str>,
}

fn other(error: impl std::fmt::Display) -> BenchError {
    BenchError::System(error.to_string())
}

/// One agent that is connected: dropping it disconnects.
struct Started {
    bus: Bus,
    _orders: LiveOrders,
    _hints: LiveStored,
    link: Duration,
    all: Duration,
}

/// What an agent does until it waits for orders.
async fn start(name: &NodeName, options: ConnectOptions) -> Result<Started, BusError> {
    let begun = Instant::now();
    let pair = options.credentials.pair().clone();
    let bus = Bus::connect(options).await?;
    let mut link = bus.link();
    let up = link.wait_for(|link| link.up).await.map(|_| ());
    up.map_err(|_| BusError::Disconnected)?;
    let linked = begun.elapsed();
    // Its claim of the name.
    bus.epoch().await?;
    let found = bus.kv_get(kv::PRESENCE, name.as_str()).await?;
    let sign = made_up::life_sign(name, 15_000);
    let unwritten = |reason: String| BusError::Other { what: "writing a life sign".into(), reason };
    let bytes = serde_json::to_vec(&sign).map(Bytes::from).map_err(|error| unwritten(error.to_string()))?;
    let seal = Seal::over(&bytes, &pair).map_err(|error| unwritten(error.to_string()))?;
    let revision = found.map_or(0, |found| found.sequence);
    bus.kv_put_if(kv::PRESENCE, name.as_str(), bytes, Some(&seal), revision).await?;
    // Intake.
    let orders = LiveOrders::open(&bus, name).await?;
    let key = pair.public_key();
    let hints = [
        format!("core.KV.{}.*", kv::POLICY),
        format!("core.KV.{}.policy", kv::POLICY),
        format!("core.KV.{}.{name}", kv::NODES),
        format!("core.KV.{}.{key}", kv::USERS),
    ];
    let hints = LiveStored::open(&bus, &hints).await?;
    bus.epoch().await?;
    bus.standing(name).await?;
    let mut scan = live::catch_up(&bus, name, 0).await?;
    // Whether somebody has spoken in its name meanwhile.
    bus.kv_get(kv::PRESENCE, name.as_str()).await?;
    while scan.next().await?.is_some() {}
    // Whether there is a new token for it.
    bus.kv_get(kv::USERS, &key).await?;
    Ok(Started { bus, _orders: orders, _hints: hints, link: linked, all: begun.elapsed() })
}

/// Measures `agents` of either kind.
///
/// # Errors
/// [`BenchError`] when the system does not start, this process may not open as many files, or somebody is not let in.
pub async fn connect(agents: usize) -> Result<ConnectFigures, BenchError> {
    let (files_max, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(std::io::Error::from)?;
    if files_max < agents as u64 + FILES_BESIDE {
        return Err(other(format!(
            "{agents} connections need {} open files, and this process may have {files_max}: raise it (`ulimit -n`) or ask for \
             fewer agents",
            agents as u64 + FILES_BESIDE
        )));
    }
    let system = System::up(&["--name", NODE, "--tls"]).await?;
    let measured = measure(&system, agents.max(1), files_max).await;
    system.stop().await;
    measured
}

async fn measure(system: &System, agents: usize, files_max: u64) -> Result<ConnectFigures, BenchError> {
    let context = system.fleet.context().clone();
    let keys = FleetKeys::open(system.dir()).map_err(other)?;
    let names: Vec<NodeName> =
        (0..agents).map(|number| NodeName::new(format!("sim-{number}"))).collect::<Result<_, _>>().map_err(other)?;
    // With records of their own, as every agent has.
    let bundles: Vec<(NodeName, String)> = stream::iter(names)
        .map(|name| {
            let (keys, fleet) = (&keys, &system.fleet);
            async move { fleet::enroll(keys, fleet, &name).await.map(|bundle| (name, bundle.creds)) }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let as_node = |name: &NodeName, creds: &str| -> Result<ConnectOptions, BenchError> {
        let credentials = Credentials::of(&Creds::parse(creds).map_err(other)?)?;
        Ok(node::options(name, context.server.clone(), context.ca.clone(), credentials))
    };
    let prepared: Vec<(NodeName, ConnectOptions)> = bundles
        .iter()
        .map(|(name, creds)| Ok((name.clone(), as_node(name, creds)?)))
        .collect::<Result<_, BenchError>>()?;

    let begun = Instant::now();
    let bare: Vec<(Bare, Duration)> = stream::iter(prepared.clone())
        .map(|(name, options)| async move {
            let begun = Instant::now();
            let bare = Bare::connect(&options, format!("{name}.command.*.*")).await?;
            Ok::<_, BusError>((bare, begun.elapsed()))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let bare_took = begun.elapsed();
    let mut bare_each: Vec<Duration> = bare.iter().map(|(_, took)| *took).collect();
    stream::iter(bare).for_each_concurrent(AT_ONCE, |(bare, _)| bare.close()).await;

    let begun = Instant::now();
    let started: Vec<Started> = stream::iter(prepared)
        .map(|(name, options)| async move { start(&name, options).await })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let agents_took = begun.elapsed();
    let broker_rss_bytes = system.broker_rss_bytes()?;
    let (mut all, mut link): (Vec<Duration>, Vec<Duration>) =
        started.iter().map(|started| (started.all, started.link)).unzip();
    stream::iter(started).for_each_concurrent(AT_ONCE, |started| async move { started.bus.close().await }).await;

    // A count is exact as a number with a fraction.
    #[allow(clippy::cast_precision_loss)]
    let rate = |took: Duration| agents as f64 / took.as_secs_f64();
    let (bare_per_s, agents_per_s) = (rate(bare_took), rate(agents_took));
    let rounded = |figure: f64, digits: f64| (figure * digits).round() / digits;
    Ok(ConnectFigures {
        agents,
        at_once: AT_ONCE,
        bare_per_s: rounded(bare_per_s, 10.0),
        agents_per_s: rounded(agents_per_s, 10.0),
        share_of_bare: rounded(agents_per_s / bare_per_s, 1000.0),
        share_limit: SHARE_LIMIT,
        bare_p50_ms: ms(quantile(&mut bare_each, 0.5)),
        agent_p50_ms: ms(quantile(&mut all, 0.5)),
        agent_link_p50_ms: ms(quantile(&mut link, 0.5)),
        agent_p99_ms: ms(quantile(&mut all, 0.99)),
        broker_rss_bytes,
        files_max,
        left_out: vec![
            "the agents live in one process, without a journal, a keeper and a policy of their own",
            "what the broker answers is not verified by them, and none of it is written to a disk of theirs",
            "clients and broker share this machine's processors, and no network is in between",
            "an agent spreads its look for a new token over a second; these ask at once",
        ],
    })
}
