//! `steward ping`: ask nodes for an answer now, and measure how long it takes.

use std::collections::BTreeMap;
use std::time::Duration;

use fleet::{Gather, OrderRequest, Terms, Update};
use message::method::HELLO;
use message::order::DEFAULT_DOMAIN;
use message::{State, Token};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::args::{Format, Target};
use crate::exit::Exit;
use crate::render::job::{Standing, counts_painted, standings};
use crate::render::paint::Paint;
use crate::render::table::{Cell, Table};
use crate::session::Session;

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Ask nodes for an answer now, and measure how long it takes.
///
/// The answer is a signed one, to an order like any other: it proves that the node takes orders. --timeout says how
/// long to wait for it (default 3s). Exit codes are those of `steward run`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steward ping --all\n  steward ping '*' -o json\n  steward ping \"$(hostname -s)\" --timeout 1s"
)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let selection = args.target.selection("ping", "")?;
    let limit = session.global.timeout.unwrap_or(ANSWER_MAX);
    let fleet = session.connect().await?;
    let nodes = fleet.resolve(&selection).await?.nodes;
    let request = OrderRequest {
        method: Token::method(HELLO)?,
        domain: Token::domain(DEFAULT_DOMAIN)?,
        args: json!({}),
        timeout: limit,
        expires: limit,
        max_output: 0,
    };
    let begun = Instant::now();
    let (placed, mut follow) = fleet.order_and_follow(&request, &nodes, &Terms::default(), Gather::Ignore).await?;
    let mut trips: BTreeMap<String, Duration> = BTreeMap::new();
    // Whoever does not answer in time is not waited for; what is known by then is shown.
    while let Ok(update) = timeout_at(begun + limit, follow.next()).await {
        match update? {
            Some(Update::State { node, state, .. }) => {
                if state.is_terminal() {
                    trips.entry(node.into()).or_insert_with(|| begun.elapsed());
                }
            }
            Some(_) => {}
            None => break,
        }
    }
    let view = follow.view();
    let milliseconds = |trip: &Duration| (trip.as_secs_f64() * 1e5).round() / 1e2;
    let nodes = standings(view);
    let trip =
        |node: &Standing<'_>| trips.get(node.name).filter(|_| node.state() == State::Succeeded).map(milliseconds);
    let counts = view.counts();
    if session.out.is_json() {
        let rows = nodes.iter().map(|node| {
            let row = json!({"state": node.state(), "round_trip_ms": trip(node), "reason": node.reason});
            (node.name.to_owned(), row)
        });
        if session.out.format() == Format::Ndjson {
            for (name, mut row) in rows {
                row["node"] = json!(name);
                session.out.json_line(&row)?;
            }
        } else {
            let rows: serde_json::Map<_, _> = rows.collect();
            session.out.json(&json!({"job": placed.job, "targets": nodes.len(), "counts": counts, "nodes": rows}))?;
        }
        return Ok(Exit::of_counts(&counts));
    }
    let mut table = Table::new(&["NODE", "STATE", "ROUND TRIP", "REASON"]);
    for node in &nodes {
        let state = node.state();
        let trip = trip(node).map_or_else(|| "-".to_owned(), |trip| format!("{trip} ms"));
        let reason = if state.is_terminal() { node.details() } else { "no answer in time".to_owned() };
        table.row([
            Cell::from(node.name),
            Cell::painted(state.as_str(), Paint::of_state(state)),
            Cell::from(trip),
            Cell::from(reason),
        ]);
    }
    for line in table.lines(session.out.colors()) {
        session.out.line(line)?;
    }
    let summary = counts_painted(&counts, session.out.note_colors());
    session.out.note(summary);
    Ok(Exit::of_counts(&counts))
}
