//! `steward bench`: figures beside their limits.

use std::path::PathBuf;
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
    /// Agents that connect with TLS and tokens a second, beside bare clients of NATS
    #[command(after_help = "Example:\n  steward bench connect --agents 2000 -o json")]
    Connect {
        /// How many of either kind
        #[arg(long, value_name = "N", default_value_t = 2000)]
        agents: usize,
    },
    /// Finding who is meant in a large fleet, by label and by expression
    #[command(after_help = "Example:\n  steward bench select --nodes 100000 -o json")]
    Select {
        /// Over how many nodes
        #[arg(long, value_name = "N", default_value_t = 100_000)]
        nodes: usize,
    },
    /// The station of a large made-up fleet: having it in sight, memory, the API under 100 questions a second
    #[command(after_help = "Example:\n  steward bench station --nodes 100000 -o json")]
    Station {
        /// Of how many nodes
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
    /// What an idle unit costs on its link: bytes a month with each link profile
    ///
    /// Agents run behind a proxy that counts; what is counted and what is reckoned stands with the figures.
    #[command(after_help = "Example:\n  steward bench link --for 10m -o json")]
    Link {
        /// How long the agents are left alone
        #[arg(long = "for", value_name = "DUR", default_value = "10m", value_parser = parse_duration)]
        rest: Duration,
    },
    /// Many simulated units: an order to all, their memory at the centre, a restart of the broker
    ///
    /// Each has a connection of its own with TLS, catches up, gives life signs and answers by the agent's own code; what it
    /// leaves out is told with the figures. For each unit some 100 KiB are needed here, and as much at the broker.
    #[command(after_help = "Example:\n  steward bench fleet --nodes 1000 -o json")]
    Fleet {
        /// How many units, at most 10000
        #[arg(long, value_name = "N", default_value_t = 1000)]
        nodes: usize,
    },
    /// Lines of a file at the edge, until they are in a file at the centre
    #[command(after_help = "Example:\n  steward bench events --lines 1000000 -o json")]
    Events {
        /// How many lines of some 200 bytes
        #[arg(long, value_name = "N", default_value_t = 1_000_000)]
        lines: u64,
        /// Only write the lines, to this file
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
    /// What `bench fleet` starts
    #[command(hide = true, after_help = "Example:\n  steward bench units units.json")]
    Units {
        /// Who is to be simulated
        file: PathBuf,
    },
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    match args.what {
        What::Roundtrip { orders } => show(session, &bench::roundtrip(orders).await?),
        What::Node { orders, domains } => show(session, &bench::node(orders, domains).await?),
        What::Policy { orders } => show(session, &bench::policy(orders)?),
        What::Connect { agents } => show(session, &bench::connect(agents).await?),
        What::Select { nodes } => show(session, &bench::select(nodes)?),
        What::Station { nodes } => show(session, &bench::station(nodes).await?),
        What::Rest { rest } => show(session, &bench::rest(rest).await?),
        What::Link { rest } => show(session, &bench::link(rest).await?),
        What::Fleet { nodes } => show(session, &bench::fleet(nodes).await?),
        What::Events { lines, write: None } => show(session, &bench::events(lines).await?),
        What::Events { lines, write: Some(file) } => Ok(bench::write_log(&file, lines).map(|_| Exit::Success)?),
        What::Units { file } => Ok(bench::units(&file).await.map(|()| Exit::Success)?),
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
