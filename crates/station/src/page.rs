//! The pages: made on the server, readable without a script. Everything that came from outside is escaped by maud.
//!
//! Each page has a part that changes, which the script swaps every few seconds (asked for by a header, see [`PART`]); what
//! a person types in stands outside of it. No style and no script stands in a page itself, since the content policy
//! forbids it: a bar's widths are attributes of an SVG.

mod fleet;
mod jobs;
mod node;
mod parts;

use std::time::Duration;

use maud::{DOCTYPE, Markup, html};
use message::units::human_duration;
use message::{NodeName, Timestamp};

use crate::freshness::Freshness;
pub(crate) use fleet::{FleetPage, fleet, fleet_filter};
pub(crate) use jobs::{EventsPage, JobPage, events, events_filter, job, job_node, jobs};
pub(crate) use node::{NodePage, node};
use parts::clock_time;

/// The style sheet.
pub(crate) const STYLE: &str = include_str!("../assets/style.css");
/// The script that refreshes the page.
pub(crate) const SCRIPT: &str = include_str!("../assets/live.js");
/// The icon.
pub(crate) const ICON: &str = include_str!("../assets/icon.svg");

/// The header by which the script asks for the part that changes.
pub(crate) const PART: &str = "steward-part";

/// How often a browser without scripts reads the page again.
const REFRESH_S: u32 = 10;

/// What every page tells.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// The station's name.
    pub(crate) station: NodeName,
    /// Where the broker is, without passwords.
    pub(crate) server: String,
    /// Whether it can be relied on.
    pub(crate) freshness: Freshness,
    /// The broker's time.
    pub(crate) now: Timestamp,
    /// The broker's time for which the states are told, if there are any.
    pub(crate) as_of: Option<Timestamp>,
    /// Whose browser it is, if he had to say.
    pub(crate) who: Option<String>,
}

/// One of the pages that the navigation leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tab {
    Fleet,
    Jobs,
    Events,
}

/// A page: its title, what stays, and the part that changes, with after how many seconds that is read again.
pub(crate) struct Page {
    pub(crate) tab: Tab,
    pub(crate) title: String,
    pub(crate) stays: Markup,
    pub(crate) changes: Markup,
    pub(crate) every_s: Option<u32>,
}

impl Page {
    /// The part that changes, with how far it can be relied on.
    pub(crate) fn part(&self, head: &Head) -> Markup {
        html! {
            (standing(head))
            @if !matches!(head.freshness, Freshness::Empty { .. }) { (self.changes) }
        }
    }

    /// All of it.
    pub(crate) fn document(&self, head: &Head) -> Markup {
        let tabs = [(Tab::Fleet, "/", "Fleet"), (Tab::Jobs, "/jobs", "Jobs"), (Tab::Events, "/events", "Events")];
        frame(
            &format!("{} · {}", self.title, head.station),
            self.every_s.is_some(),
            html! {
                a.skip href="#live" { "Skip to the content" }
                header.top {
                    p.brand { img src="/assets/icon.svg" alt="" width="24" height="24"; "Steward" }
                    nav.tabs aria-label="Pages" {
                        @for (tab, address, name) in tabs {
                            a href=(address) aria-current=[(tab == self.tab).then_some("page")] { (name) }
                        }
                    }
                    p.where { strong { (head.station) } span.server { (head.server) } }
                    @if let Some(who) = &head.who {
                        form.out method="post" action="/logout" { span.quiet { (who) } button type="submit" { "Log out" } }
                    }
                }
                // What the script has to say; it stays when the rest is swapped.
                p.banner #lost role="status" hidden {}
                main {
                    (self.stays)
                    div #live tabindex="-1" data-every=[self.every_s] { (self.part(head)) }
                }
                footer {
                    p { "Steward " (env!("CARGO_PKG_VERSION")) ". This page is for watching; orders are given with " code { "steward run" } "." }
                    nav aria-label="For programs" {
                        a href="/api/v1/openapi.json" { "API" } a href="/metrics" { "metrics" } a href="/readyz" { "readiness" }
                    }
                }
            },
        )
    }
}

fn frame(title: &str, refreshed: bool, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Steward · " (title) }
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/style.css";
                script src="/assets/live.js" defer {}
                @if refreshed { noscript { meta http-equiv="refresh" content=(REFRESH_S); } }
            }
            body { (body) }
        }
    }
}

/// Where a person shows his token.
pub(crate) fn log_in(station: &NodeName, problem: Option<&str>) -> Markup {
    frame(
        "Log in",
        false,
        html! {
            main.log-in {
                p.brand { img src="/assets/icon.svg" alt="" width="24" height="24"; "Steward" }
                h1 { "Log in to " (station) }
                @if let Some(problem) = problem { p.banner role="alert" { (problem) } }
                form method="post" action="/login" {
                    label for="token" { "Token" }
                    input #token name="token" type="password" autocomplete="current-password" required autofocus;
                    button.main type="submit" { "Log in" }
                }
                p.quiet { "On the station's host, " code { "steward station token add NAME" } " makes one." }
            }
        },
    )
}

/// Something that cannot be shown, and why.
pub(crate) fn problem(tab: Tab, title: &str, text: &str) -> Page {
    let changes = html! { section.empty { h1 { (title) } p.why { (text) } } };
    Page { tab, title: title.to_owned(), stays: html! {}, changes, every_s: None }
}

/// Whether what follows can be relied on.
fn standing(head: &Head) -> Markup {
    match &head.freshness {
        Freshness::Live => html! {
            p.standing { span.dot aria-hidden="true" {} span { "Live, as of " (clock_time(head.now)) } }
        },
        Freshness::Stale { reason, age } => html! {
            p.banner {
                strong { "Not up to date: " } (reason) ". What follows was last confirmed "
                @if let Some(as_of) = head.as_of { "at " (clock_time(as_of)) ", " }
                (human_duration(Duration::from_secs(age.as_secs()))) " ago."
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

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
