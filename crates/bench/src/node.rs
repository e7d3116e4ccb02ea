//! How many orders one node executes a second: `true`, on several domains.

use std::time::Instant;

use bus::{Start, Tail};
use fleet::Node;
use futures::{StreamExt, stream};
use message::{Reply, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
    /// From the node waking up, with all orders waiting for it at the broker, to the last answer stored.
    pub elapsed_s: f64,
    /// Orders a second: taken, verified, journaled, executed, answered.
    pub orders_per_s: f64,
    /// How many orders a second were placed while the node slept: one client's share of the work.
    pub placed_per_s: f64,
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
    let (system, node) = System::start().await?;
    let measured = measure(&system, &node, orders.max(1), domains.max(1)).await;
    system.stop().await;
    measured
}

/// A node that was stopped (SIGSTOP), until this is dropped.
struct Asleep(Pid);

impl Asleep {
    fn new(system: &System) -> Result<Self, BenchError> {
        let gone = || BenchError::System("its agent cannot be found".into());
        let pid = system.agent_pid().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw).ok_or_else(gone)?;
        kill(pid, Signal::SIGSTOP).map_err(std::io::Error::from)?;
        Ok(Self(pid))
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        // If it is gone, the orders will tell.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

async fn measure(system: &System, target: &Node, orders: usize, domains: usize) -> Result<NodeFigures, BenchError> {
    let spawn_before = limits::spawn()?;
    let requests = (0..domains).map(|domain| order_true(&format!("bench{domain}"))).collect::<Result<Vec<_>, _>>()?;
    let filter = format!("*.reply.*.{NODE}");
    let mut answers = Tail::open(system.fleet.bus(), "REPLIES", &[filter], Start::New).await?;
    // The node sleeps while its orders are placed: what is measured is the node, not the client beside it.
    let node = Asleep::new(system)?;
    let begun = Instant::now();
    let placed = stream::iter(0..orders)
        .map(|index| {
            let request = &requests[index % domains];
            async move { system.fleet.order(request, std::slice::from_ref(target)).await }
        })
        .buffer_unordered(PLACING)
        .collect::<Vec<_>>()
        .await;
    for result in placed {
        result?;
    }
    let placing = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    drop(node);
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
    let elapsed = begun.elapsed().as_secs_f64();
    let spawns: Vec<_> = spawn_before.into_iter().chain(limits::spawn()?).collect();
    let spawn_s: f64 = spawns.iter().map(std::time::Duration::as_secs_f64).sum();
    // Counts far below 2^52 are exact.
    #[allow(clippy::cast_precision_loss)]
    let (orders_per_s, spawn_limit_per_s) = (orders as f64 / elapsed, spawns.len() as f64 / spawn_s);
    #[allow(clippy::cast_precision_loss)]
    let placed_per_s = (orders as f64 / placing).round();
    Ok(NodeFigures {
        orders,
        domains,
        elapsed_s: (elapsed * 1e3).round() / 1e3,
        orders_per_s: orders_per_s.round(),
        placed_per_s,
        spawn_limit_per_s: spawn_limit_per_s.round(),
        ratio_to_limit: (orders_per_s / spawn_limit_per_s * 100.0).round() / 100.0,
    })
}
