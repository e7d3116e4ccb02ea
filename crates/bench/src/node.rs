//! How many orders one node executes a second: `true`, on several domains.

use std::time::Instant;

use bus::{Start, Tail};
use futures::{StreamExt, stream};
use message::{Reply, State};
use serde::Serialize;

use crate::limits;
use crate::roundtrip::order_true;
use crate::system::{BenchError, NODE, System};

/// How many orders are being placed at once.
const PLACING: usize = 32;

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct NodeFigures {
    /// How many orders there were.
    pub orders: usize,
    /// On how many domains.
    pub domains: usize,
    /// From the first order placed to the last answer stored.
    pub elapsed_s: f64,
    /// Orders a second, placing and answering included.
    pub orders_per_s: f64,
    /// Bare starts of `true` a second, one at a time.
    pub spawn_limit_per_s: f64,
    /// `orders_per_s / spawn_limit_per_s`: at least 0.5 is the goal.
    pub ratio_to_limit: f64,
}

/// Measures `orders` orders over `domains` domains.
///
/// # Errors
/// [`BenchError`] when the system does not start or an order does not succeed.
pub async fn node(orders: usize, domains: usize) -> Result<NodeFigures, BenchError> {
    let system = System::start().await?;
    let measured = measure(&system, orders.max(1), domains.max(1)).await;
    system.stop().await;
    measured
}

async fn measure(system: &System, orders: usize, domains: usize) -> Result<NodeFigures, BenchError> {
    let spawn_before = limits::spawn()?;
    let requests = (0..domains).map(|domain| order_true(&format!("bench{domain}"))).collect::<Result<Vec<_>, _>>()?;
    let filter = format!("*.reply.*.{NODE}");
    let mut answers = Tail::open(system.fleet.bus(), "REPLIES", &[filter], Start::New).await?;
    let begun = Instant::now();
    let place = stream::iter(0..orders)
        .map(|index| {
            let request = &requests[index % domains];
            async move { system.fleet.order(request, std::slice::from_ref(&system.node)).await }
        })
        .buffer_unordered(PLACING)
        .collect::<Vec<_>>();
    let count = async {
        let mut ended = 0;
        while ended < orders {
            let message = answers.next().await?;
            let Ok(reply) = Reply::parse(&message.payload) else { continue };
            match reply.state() {
                State::Succeeded => ended += 1,
                state if state.is_terminal() => return Err(BenchError::Order(state.as_str().to_owned())),
                _ => {}
            }
        }
        Ok(begun.elapsed())
    };
    let (placed, elapsed) = futures::join!(place, count);
    for result in placed {
        result?;
    }
    let elapsed = elapsed?.as_secs_f64();
    let spawns: Vec<_> = spawn_before.into_iter().chain(limits::spawn()?).collect();
    let spawn_s: f64 = spawns.iter().map(std::time::Duration::as_secs_f64).sum();
    // Counts far below 2^52 are exact.
    #[allow(clippy::cast_precision_loss)]
    let (orders_per_s, spawn_limit_per_s) = (orders as f64 / elapsed, spawns.len() as f64 / spawn_s);
    Ok(NodeFigures {
        orders,
        domains,
        elapsed_s: (elapsed * 1e3).round() / 1e3,
        orders_per_s: orders_per_s.round(),
        spawn_limit_per_s: spawn_limit_per_s.round(),
        ratio_to_limit: (orders_per_s / spawn_limit_per_s * 100.0).round() / 100.0,
    })
}
