//! One node: how it stands, what it is, what it was told to do, what it reported.

use ::fleet::{EventLine, Node};
use maud::{Markup, html};
use message::units::human_duration;
use message::{Spell, Timestamp};
use serde_json::Value;
use std::time::Duration;

use super::fleet::labels;
use super::parts::{age, cell, cut, event_table, order_state, state, table, wide};
use super::{Page, Tab};
use crate::lookup::NodeJob;

/// So many facts are shown.
const FACTS_MAX: usize = 200;
/// So many times of standing in one way are shown, the newest first.
const SPELLS_MAX: usize = 8;

/// What the page of a node shows.
pub(crate) struct NodePage<'a> {
    pub(crate) node: &'a Node,
    /// How it has stood, the oldest first, or why that is not known.
    pub(crate) history: Result<&'a [Spell], String>,
    /// Its newest jobs, or why they are not known.
    pub(crate) jobs: Result<&'a [NodeJob], String>,
    /// What it reported of late; `None`: it may not be shown.
    pub(crate) events: Option<&'a [EventLine]>,
    /// Whether its facts may be shown.
    pub(crate) facts: bool,
    pub(crate) now: Timestamp,
}

/// The page.
pub(crate) fn node(shown: &NodePage<'_>) -> Page {
    let NodePage { node, now, .. } = *shown;
    let changes = html! {
        section.overview.one aria-labelledby="node" {
            h1 #node { (node.name()) }
            div { (state(node.vitality.state, node.vitality.reason.as_deref())) }
            p.quiet { "last seen " @match node.last_seen { Some(seen) => { (age(seen, now)) } None => { "never" } } }
        }
        section aria-labelledby="about" {
            h2 #about { "How it stands" }
            dl.pairs { (about(node, now)) }
        }
        section aria-labelledby="history" {
            h2 #history { "How it has stood" }
            @match &shown.history {
                Err(reason) => { p.none { "That cannot be read: " (reason) } }
                Ok([]) => { p.none { "It has told nothing yet." } }
                Ok(spells) => { (history(spells, node, now)) }
            }
        }
        section aria-labelledby="jobs" {
            h2 #jobs { "Latest jobs" }
            @match &shown.jobs {
                Err(reason) => { p.none { "They cannot be read: " (reason) } }
                Ok([]) => { p.none { "It has answered no order yet." } }
                Ok(jobs) => { (table("jobs", &["Job", "What", "How it went", "When"], html! {
                    @for job in *jobs { (self::job(job, node, now)) }
                })) }
            }
        }
        section aria-labelledby="events" {
            h2 #events { "Latest events" }
            @match shown.events {
                None => { p.none { "This token does not show events." } }
                Some([]) => { p.none { "Nothing of late. " a href=(format!("/events?from={}&since=1d", node.name())) { "Look at the last day" } } }
                Some(events) => { (event_table(events, now, false)) }
            }
        }
        @if shown.facts { (facts(node, now)) }
    };
    Page { tab: Tab::Fleet, title: node.name().to_string(), stays: html! {}, changes, every_s: Some(4) }
}

fn about(node: &Node, now: Timestamp) -> Markup {
    let sign = node.sign.as_ref();
    let pair = |name: &str, value: Markup| html! { div { dt { (name) } dd { (value) } } };
    html! {
        (pair("Labels", labels(node)))
        @if let Some(sign) = sign {
            (pair("Version", html! { (cut(&sign.version)) }))
            (pair("Agent up for", html! { (human_duration(Duration::from_secs(sign.uptime_s))) }))
            (pair("Reports every", html! { (human_duration(Duration::from_millis(sign.interval_ms))) }))
            (pair("Running / waiting", html! { (sign.running) " / " (sign.waiting) }))
            (pair("To be told", html! { (sign.outbox) }))
            (pair("Processes", html! { (sign.processes) }))
            @if !sign.limits.is_empty() {
                (pair("Limits reached", html! { @for limit in &sign.limits { (limit.as_str()) " " } }))
            }
        }
        (pair("Enrolled", html! { (age(node.record.enrolled, now)) " by " (cut(&node.record.by)) }))
        (pair("Key", html! { code.key { (node.record.key) } }))
    }
}

fn history(spells: &[Spell], node: &Node, now: Timestamp) -> Markup {
    // The newest first: each ends when the one before it in this order begins.
    let ends = std::iter::once(None).chain(spells.iter().rev().map(|later| Some(later.since)));
    let newest: Vec<_> = spells.iter().rev().zip(ends).take(SPELLS_MAX).collect();
    html! {
        (table("history", &["State", "Since", "For"], html! {
            @for (spell, end) in newest {
                tr role="row" {
                    (wide("State", state(spell.state, spell.reason.as_deref())))
                    (cell("Since", age(spell.since, now)))
                    (cell("For", html! { @match end {
                        Some(end) => { (human_duration(Duration::from_secs(end.since(spell.since).as_secs()))) }
                        None => { "until now" }
                    } }))
                }
            }
        }))
        @if spells.len() > SPELLS_MAX { p.note { (spells.len() - SPELLS_MAX) " earlier: " code { "steward node history " (node.name()) } } }
    }
}

fn job(job: &NodeJob, node: &Node, now: Timestamp) -> Markup {
    html! {
        tr role="row" {
            th.id scope="row" role="rowheader" { a href=(format!("/jobs/{}/nodes/{}", job.job, node.name())) { (job.job) } }
            (wide("What", html! { span.what { (job.method) span.domain { "/" (job.domain) } } }))
            (wide("How it went", html! {
                (order_state(job.state))
                @if let Some(code) = job.exit_code { span.quiet { " exit code " (code) } }
                @if let Some(reason) = &job.reason { span.reason { (cut(reason)) } }
            }))
            (cell("When", age(job.at, now)))
        }
    }
}

fn facts(node: &Node, now: Timestamp) -> Markup {
    let mut rows = Vec::new();
    if let Some(told) = &node.facts {
        flatten("", &told.facts, &mut rows);
    }
    html! {
        section aria-labelledby="facts" {
            h2 #facts { "Facts" @if let Some(told) = &node.facts { span.quiet { " · found " (age(told.at, now)) } } }
            @if rows.is_empty() {
                p.none { "It has told nothing of its system yet." }
            } @else {
                (table("facts", &["Fact", "Value"], html! {
                    @for (name, value) in rows.iter().take(FACTS_MAX) {
                        tr role="row" { th.fact scope="row" role="rowheader" { (cut(name)) } (wide("Value", html! { (cut(value)) })) }
                    }
                }))
                @if rows.len() > FACTS_MAX { p.note { (rows.len() - FACTS_MAX) " more: " code { "steward node show " (node.name()) " -o json" } } }
            }
        }
    }
}

/// `{"os": {"id": "debian"}}` → `os.id`, `debian`.
fn flatten(path: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, member, rows);
            }
        }
        Value::String(text) => rows.push((path.to_owned(), text.clone())),
        other => rows.push((path.to_owned(), other.to_string())),
    }
}
