//! How long one order takes from the operator's call to its stored and verified answer, one at a time.

use std::time::{Duration, Instant};

use fleet::job::Gather;
use fleet::{Node, OrderRequest, Terms};
use message::{State, Token, order::DEFAULT_DOMAIN};
use serde::Serialize;
use serde_json::json;

use crate::limits::{self, ms, quantile};
use crate::system::{BenchError, System};

/// Rounds before the clock counts.
const WARM_UP: usize = 20;
/// How many disk syncs an order needs at its node: one before it begins, one when it has ended.
const FSYNCS: u32 = 2;

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct RoundtripFigures {
    /// How many orders were measured.
    pub orders: usize,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// All but one in a hundred took no longer.
    pub p99_ms: f64,
    /// Of `p50_ms`, what passed until the order was stored, p50: the client's and the broker's share.
    pub placed_p50_ms: f64,
    /// Twice the sum of a bare start, two acknowledged publishes and the syncs.
    pub limit_ms: f64,
    /// `p50_ms / limit_ms`: at most 1 is the goal.
    pub ratio_to_limit: f64,
    /// A bare start of `true`, p50.
    pub spawn_ms: f64,
    /// A bare acknowledged publish, p50.
    pub publish_ack_ms: f64,
    /// A bare sync of 4 KiB, p50.
    pub fsync_ms: f64,
    /// How many syncs the limit counts.
    pub fsyncs: u32,
}

/// What is ordered: `true`, on a domain of its choice.
pub(crate) fn order_true(domain: &str) -> Result<OrderRequest, BenchError> {
    let token = |token: Result<Token, message::NameError>| token.map_err(|error| BenchError::System(error.to_string()));
    Ok(OrderRequest {
        method: token(Token::method(message::method::SHELLCOMMAND))?,
        domain: token(Token::domain(domain))?,
        args: json!({"argv": ["true"]}),
        timeout: Duration::from_secs(60),
        expires: Duration::from_secs(600),
        max_output: 1 << 20,
    })
}

/// Measures `orders` round trips.
///
/// # Errors
/// [`BenchError`] when the system does not start or an order does not succeed.
pub async fn roundtrip(orders: usize) -> Result<RoundtripFigures, BenchError> {
    let (system, node) = System::start().await?;
    let measured = measure(&system, &node, orders).await;
    system.stop().await;
    measured
}

async fn measure(system: &System, node: &Node, orders: usize) -> Result<RoundtripFigures, BenchError> {
    let request = order_true(DEFAULT_DOMAIN)?;
    for _ in 0..WARM_UP {
        once(system, &request, node).await?;
    }
    // Limits before and after, so that a machine that changes its pace in between does not favour either side.
    let mut spawns = limits::spawn()?;
    let mut publishes = limits::publish(system.fleet.bus()).await?;
    let mut fsyncs = limits::fsync(system.dir())?;
    let (mut rounds, mut placed) = (Vec::with_capacity(orders), Vec::new());
    for _ in 0..orders.max(1) {
        let round = once(system, &request, node).await?;
        placed.push(round.placed);
        rounds.push(round.answered);
    }
    spawns.extend(limits::spawn()?);
    publishes.extend(limits::publish(system.fleet.bus()).await?);
    fsyncs.extend(limits::fsync(system.dir())?);
    let (spawn, publish, fsync) =
        (quantile(&mut spawns, 0.5), quantile(&mut publishes, 0.5), quantile(&mut fsyncs, 0.5));
    let limit = (spawn + publish * 2 + fsync * FSYNCS) * 2;
    let p50 = quantile(&mut rounds, 0.5);
    Ok(RoundtripFigures {
        orders: rounds.len(),
        p50_ms: ms(p50),
        p99_ms: ms(quantile(&mut rounds, 0.99)),
        placed_p50_ms: ms(quantile(&mut placed, 0.5)),
        limit_ms: ms(limit),
        ratio_to_limit: (p50.as_secs_f64() / limit.as_secs_f64() * 100.0).round() / 100.0,
        spawn_ms: ms(spawn),
        publish_ack_ms: ms(publish),
        fsync_ms: ms(fsync),
        fsyncs: FSYNCS,
    })
}

/// When the stages of one round trip were reached, from its beginning.
struct Round {
    placed: Duration,
    answered: Duration,
}

async fn once(system: &System, request: &OrderRequest, node: &Node) -> Result<Round, BenchError> {
    let begun = Instant::now();
    let nodes = std::slice::from_ref(node);
    let (_, mut follow) = system.fleet.order_and_follow(request, nodes, &Terms::default(), Gather::Keep).await?;
    let placed = begun.elapsed();
    while !follow.view().settled() {
        if follow.next().await?.is_none() {
            break;
        }
    }
    let answered = begun.elapsed();
    match follow.view().counts().into_keys().next() {
        Some(State::Succeeded) => Ok(Round { placed, answered }),
        other => Err(BenchError::Order(other.map_or("unknown", State::as_str).to_owned())),
    }
}
