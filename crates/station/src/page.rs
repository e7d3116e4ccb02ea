//! The page: the fleet to watch, made on the server. Everything that came from outside is escaped by maud.
//!
//! `/` is the whole document; `/fragment` is the part in it that is swapped every two seconds. No style and no script
//! stands in the page itself, since the content policy forbids it: a bar's widths are attributes of an SVG.

mod parts;

use maud::{DOCTYPE, Markup, html};
use message::NodeState;
use message::units::human_duration;

use crate::snapshot::{Freshness, Snapshot};
use parts::{clock_time, plural};

/// The style sheet.
pub const STYLE: &str = include_str!("../assets/style.css");
/// The script that refreshes the page.
pub const SCRIPT: &str = include_str!("../assets/live.js");
/// The icon.
pub const ICON: &str = include_str!("../assets/icon.svg");

/// How often a browser without scripts reads the page again.
const REFRESH_S: u32 = 5;

/// The whole page.
pub fn document(snapshot: &Snapshot) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Steward · " (snapshot.station) }
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/style.css";
                script src="/assets/live.js" defer {}
                noscript { meta http-equiv="refresh" content=(REFRESH_S); }
            }
            body {
                a.skip href="#nodes" { "Skip to the nodes" }
                header.top {
                    p.brand { img src="/assets/icon.svg" alt="" width="24" height="24"; "Steward" }
                    p.where { strong { (snapshot.station) } span.server { (snapshot.server) } }
                }
                // What the script has to say; it stays when the rest is swapped.
                p.banner #lost role="status" hidden {}
                main #live { (fragment(snapshot)) }
                footer {
                    p { "Steward " (env!("CARGO_PKG_VERSION")) ". This page is for watching; orders are given with " code { "steward run" } "." }
                    nav aria-label="For programs" {
                        a href="/api/v1/nodes" { "nodes" } a href="/api/v1/jobs" { "jobs" } a href="/api/v1/events" { "events" }
                        a href="/metrics" { "metrics" } a href="/readyz" { "readiness" }
                    }
                }
            }
        }
    }
}

/// The part that is swapped.
pub fn fragment(snapshot: &Snapshot) -> Markup {
    html! {
        (standing(snapshot))
        @if !matches!(snapshot.freshness, Freshness::Empty { .. }) {
            (overview(snapshot))
            (parts::nodes(snapshot))
            (parts::jobs(snapshot))
            (parts::events(snapshot))
        }
    }
}

/// Whether what follows can be relied on.
fn standing(snapshot: &Snapshot) -> Markup {
    match &snapshot.freshness {
        Freshness::Live => html! {
            p.standing { span.dot aria-hidden="true" {} span { "Live, as of " (clock_time(snapshot.now)) } }
        },
        Freshness::Stale { reason, age } => html! {
            p.banner {
                strong { "Not up to date: " } (reason) ". What follows was last confirmed "
                @if let Some(as_of) = snapshot.as_of { "at " (clock_time(as_of)) ", " }
                (human_duration(std::time::Duration::from_secs(age.as_secs()))) " ago."
            }
        },
        Freshness::Empty { reason } => html! {
            section.empty {
                h1 { "Nothing to show yet" }
                p { "This station has not seen the fleet so far: " (reason) ". It goes on trying by itself." }
            }
        },
    }
}

fn overview(snapshot: &Snapshot) -> Markup {
    // Those that nobody is ever in would only take room.
    let always = [NodeState::Online, NodeState::Degraded, NodeState::Offline, NodeState::Unknown];
    let count_of =
        |state| snapshot.node_counts.iter().find(|(known, _)| *known == state).map_or(0, |(_, count)| *count);
    let others = [NodeState::Pending, NodeState::Revoked].into_iter().filter(|state| count_of(*state) > 0);
    html! {
        section.overview aria-labelledby="fleet" {
            h1 #fleet { (plural(snapshot.node_total(), "node", "nodes")) }
            dl.tiles {
                @for state in always.into_iter().chain(others) {
                    div.tile.(state.as_str()).zero[count_of(state) == 0] {
                        dt { (parts::mark(state)) (state) }
                        dd { (count_of(state)) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
