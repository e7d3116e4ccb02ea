//! `steward ps`: the processes (message handlers) of a node.

use std::time::Duration;

use anyhow::Context as _;
use fleet::{Gather, Node, OrderRequest, Terms};
use message::method::{PROCESSES, ProcessStatus};
use message::{Limit, NodeName, State, Token};
use serde_json::json;
use tokio::time::timeout;

use crate::exit::Exit;
use crate::render::job::standings;
use crate::render::node::standing;
use crate::render::paint::{Paint, tame};
use crate::render::table::{Cell, Table};
use crate::render::time;
use crate::session::Session;

/// The domain that a node's view of itself belongs to.
const DOMAIN: &str = "steward";
/// How long the answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Show the processes of a node: what it receives, where it replies, and how that goes.
///
/// The node itself is asked. If it is not there, the exit code is 4.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steward ps \"$(hostname -s)\"\n  steward ps \"$(hostname -s)\" -o json")]
pub(crate) struct Args {
    /// The node
    #[arg(value_name = "NODE")]
    node: NodeName,
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let fleet = session.connect().await?;
    let node = fleet.node(&args.node).await?;
    if !node.vitality.state.is_reachable() {
        session.out.error(&format!("{} cannot be asked: it is {}", args.node, standing(&node)));
        return Ok(Exit::Unfinished);
    }
    let limit = session.global.timeout.unwrap_or(ANSWER_MAX);
    let request = OrderRequest {
        method: Token::method(PROCESSES)?,
        domain: Token::domain(DOMAIN)?,
        args: json!({}),
        timeout: limit,
        expires: limit,
        max_output: 0,
    };
    let nodes = std::slice::from_ref(&node);
    let (_, mut follow) = fleet.order_and_follow(&request, nodes, &Terms::default(), Gather::Ignore).await?;
    let answered = timeout(limit, async {
        while follow.next().await?.is_some() {}
        anyhow::Ok(())
    });
    match answered.await {
        Ok(read) => read?,
        Err(_) => {
            let limit = message::units::human_duration(limit);
            session.out.error(&format!(
                "{} has not answered within {limit}; it was last {}",
                args.node,
                standing(&node)
            ));
            // It may be full of what came before, and this very question waits at the broker: its life sign tells.
            if let Ok(now) = fleet.node(&args.node).await {
                limits_of(&now).iter().for_each(|limit| session.out.error(&held_back(&args.node, *limit)));
            }
            return Ok(Exit::Unfinished);
        }
    }
    let view = follow.view();
    let told = standings(view).into_iter().next().context("the job has no node")?;
    if told.state() != State::Succeeded {
        session.out.error(&format!("{} does not tell: its order is {} {}", args.node, told.state(), told.details()));
        return Ok(Exit::of_counts(&view.counts()));
    }
    let data = told.outcome.and_then(|outcome| outcome.data.clone()).unwrap_or_default();
    let processes: Vec<ProcessStatus> =
        serde_json::from_value(data).with_context(|| format!("the answer of {} cannot be read", args.node))?;
    show(session, &fleet.node(&args.node).await?, &processes)?;
    Ok(Exit::Success)
}

fn limits_of(node: &Node) -> &[Limit] {
    node.sign.as_ref().map_or(&[], |sign| &sign.limits)
}

fn held_back(node: &NodeName, limit: Limit) -> String {
    format!("{node} holds back ({}): {}", limit.as_str(), limit.sentence())
}

fn show(session: &mut Session, node: &Node, processes: &[ProcessStatus]) -> anyhow::Result<()> {
    let limits = limits_of(node);
    if session.out.is_json() {
        let with_limits = |process: &ProcessStatus| {
            let mut value = json!(process);
            // What is full holds back all of a node's processes.
            if !limits.is_empty() {
                value["limits"] = json!(limits);
            }
            value
        };
        return session.out.json_list(&processes.iter().map(with_limits).collect::<Vec<_>>());
    }
    limits.iter().for_each(|limit| session.out.note(held_back(node.name(), *limit)));
    for line in table(processes).lines(session.out.colors()) {
        session.out.line(line)?;
    }
    Ok(())
}

fn table(processes: &[ProcessStatus]) -> Table {
    let mut table = Table::new(&["SUBJECT", "STATE", "HANDLED", "FAILED", "RESTARTS", "SINCE", "LAST ERROR"]);
    for process in processes {
        let paint = if process.restarts > 0 || process.failed > 0 { Paint::Yellow } else { Paint::Green };
        table.row([
            Cell::from(tame(&process.subject)),
            Cell::painted(tame(&process.state), paint),
            Cell::from(process.handled.to_string()),
            Cell::from(process.failed.to_string()),
            Cell::from(process.restarts.to_string()),
            Cell::from(time::local(process.since)),
            Cell::from(process.last_error.as_deref().map(tame).unwrap_or_default()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_each_process_did() {
        let process = ProcessStatus {
            subject: "ship1.command.shellcommand.*".into(),
            reply: "central.reply.*.ship1".into(),
            state: "idle".into(),
            handled: 12,
            failed: 1,
            restarts: 0,
            last_error: Some("exit code 3".into()),
            since: message::Timestamp::from_ms(0),
        };
        let lines = table(&[process]).lines(false);
        assert!(
            lines[1].starts_with("ship1.command.shellcommand.*  idle   12       1       0         "),
            "{}",
            lines[1]
        );
        assert!(lines[1].ends_with("exit code 3"));
    }
}
