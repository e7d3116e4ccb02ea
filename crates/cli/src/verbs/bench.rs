//! `steward bench`: figures beside their limits.

use std::time::Duration;

use clap::Subcommand;
use message::units::parse_duration;
use serde::Serialize;

use crate::exit::Exit;
use crate::session::Session;

/// Measure this version on this machine, each figure beside its limit.
///
/// Needs no running system: starts one of its own in a temporary home, and takes the limits (a bare start of a
/// program, a bare acknowledged publish, a bare disk sync) in the same run.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steward bench roundtrip\n  steward bench node -o json\n  steward bench rest --for 5m"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One order after the other: from the call to the stored, verified answer
    #[command(after_help = "Example:\n  steward bench roundtrip --orders 500 -o json")]
    Roundtrip {
        /// How many orders
        #[arg(long, value_name = "N", default_value_t = 300)]
        orders: usize,
    },
    /// Orders a second at one node
    #[command(after_help = "Example:\n  steward bench node --orders 2000 --domains 4 -o json")]
    Node {
        /// How many orders
        #[arg(long, value_name = "N", default_value_t = 2000)]
        orders: usize,
        /// On how many domains, which run side by side
        #[arg(long, value_name = "N", default_value_t = 4)]
        domains: usize,
    },
    /// Verifying and deciding about an order under a large policy, and the memory of that policy
    #[command(after_help = "Example:\n  steward bench policy -o json")]
    Policy {
        /// How many orders
        #[arg(long, value_name = "N", default_value_t = 2000)]
        orders: usize,
    },
    /// Finding who is meant in a large fleet, by label and by expression
    #[command(after_help = "Example:\n  steward bench select --nodes 100000 -o json")]
    Select {
        /// Over how many nodes
        #[arg(long, value_name = "N", default_value_t = 100_000)]
        nodes: usize,
    },
    /// What an agent at rest costs, the program's size, and a whole `steward run`
    #[command(after_help = "Example:\n  steward bench rest --for 5m -o json")]
    Rest {
        /// How long the agent is left alone
        #[arg(long = "for", value_name = "DUR", default_value = "5m", value_parser = parse_duration)]
        rest: Duration,
    },
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    match args.what {
        What::Roundtrip { orders } => show(session, &bench::roundtrip(orders).await?),
        What::Node { orders, domains } => show(session, &bench::node(orders, domains).await?),
        What::Policy { orders } => show(session, &bench::policy(orders)?),
        What::Select { nodes } => show(session, &bench::select(nodes)?),
        What::Rest { rest } => show(session, &bench::rest(rest).await?),
    }
}

/// One object, or a line for each figure.
fn show(session: &mut Session, figures: &impl Serialize) -> anyhow::Result<Exit> {
    let figures = serde_json::to_value(figures)?;
    if session.out.is_json() {
        session.out.json(&figures)?;
    } else if let Some(figures) = figures.as_object() {
        let width = figures.keys().map(String::len).max().unwrap_or(0);
        for (name, figure) in figures {
            session.out.line(format!("{name:width$}  {figure}"))?;
        }
    }
    Ok(Exit::Success)
}
