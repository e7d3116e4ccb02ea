//! The tables of the page.

use std::time::Duration;

use fleet::{EventLine, JobSummary, Node};
use maud::{Markup, html};
use message::units::human_duration;
use message::{NodeState, State, Timestamp};
use serde_json::{Map, Value};

use crate::snapshot::Snapshot;

/// What is shown of a text that somebody else wrote.
const TEXT_CHARACTERS_MAX: usize = 400;
/// The length of a bar, in units of its drawing.
const BAR: u32 = 1_000;

/// A shape for a state, so that colour is not all that tells it.
pub(super) fn mark(state: NodeState) -> Markup {
    html! {
        svg.mark viewBox="0 0 16 16" width="12" height="12" aria-hidden="true" focusable="false" {
            @match state {
                NodeState::Online => { circle cx="8" cy="8" r="6" {} }
                NodeState::Degraded => { path d="M8 1.5 15 14.5H1z" {} }
                NodeState::Offline => { circle.hollow cx="8" cy="8" r="5.5" {} }
                NodeState::Unknown => { circle.hollow.dashed cx="8" cy="8" r="5.5" {} circle cx="8" cy="8" r="1.8" {} }
                NodeState::Pending => { path d="M2 2h12v2.5L9.5 8 14 11.5V14H2v-2.5L6.5 8 2 4.5z" {} }
                NodeState::Revoked => { path.hollow d="M3 3l10 10M13 3 3 13" {} }
            }
        }
    }
}

pub(super) fn nodes(snapshot: &Snapshot) -> Markup {
    let total = snapshot.node_total();
    html! {
        section aria-labelledby="nodes" {
            h2 #nodes tabindex="-1" { "Nodes" }
            @if snapshot.nodes.len() < total {
                p.note { (snapshot.nodes.len()) " of " (total) " are shown, those that need attention first. " code { "steward node ls" } " lists all." }
            }
            @if snapshot.nodes.is_empty() {
                p.none { "No node is enrolled yet. " code { "steward node enroll NAME --out FILE" } " enrols one." }
            } @else {
                (table("nodes", &["Name", "State", "Last seen", "Version", "Processes", "Running / waiting", "Labels"], html! {
                    @for node in &snapshot.nodes { (self::node(node, snapshot.now)) }
                }))
            }
        }
    }
}

fn node(node: &Node, now: Timestamp) -> Markup {
    let sign = node.sign.as_ref();
    let state = node.vitality.state;
    html! {
        tr role="row" {
            th.name scope="row" role="rowheader" { (node.name()) }
            (wide("State", html! {
                span.state.(state.as_str()) { (mark(state)) (state) }
                @if let Some(reason) = &node.vitality.reason { span.reason { (cut(reason)) } }
            }))
            (cell("Last seen", match node.last_seen { Some(seen) => age(seen, now), None => html! { span.quiet { "never" } } }))
            (cell("Version", html! { @if let Some(sign) = sign { (cut(&sign.version)) } @else { (nothing()) } }))
            (number("Processes", html! { @if let Some(sign) = sign { (sign.processes) } @else { (nothing()) } }))
            (number("Running / waiting", html! { @if let Some(sign) = sign { (sign.running) " / " (sign.waiting) } @else { (nothing()) } }))
            (wide("Labels", html! {
                @if node.record.labels.is_empty() { (nothing()) }
                @for (key, value) in &node.record.labels {
                    span.label { (cut(key)) @if !value.is_empty() { "=" (cut(value)) } } " "
                }
            }))
        }
    }
}

pub(super) fn jobs(snapshot: &Snapshot) -> Markup {
    html! {
        section aria-labelledby="jobs" {
            h2 #jobs tabindex="-1" { "Latest jobs" }
            @if snapshot.jobs.len() < snapshot.job_total {
                p.note { "The " (snapshot.jobs.len()) " newest are shown. " code { "steward job ls" } " lists more." }
            }
            @if snapshot.jobs.is_empty() {
                p.none { "Nothing was ordered yet. " code { "steward run --all -- uname -a" } " runs a program on every node." }
            } @else {
                (table("jobs", &["Job", "What", "Created", "How it stands"], html! {
                    @for job in &snapshot.jobs { (self::job(job, snapshot.now)) }
                }))
            }
        }
    }
}

fn job(job: &JobSummary, now: Timestamp) -> Markup {
    html! {
        tr role="row" {
            th.id scope="row" role="rowheader" { (job.job) }
            (wide("What", html! { span.what { (job.method) span.domain { "/" (job.domain) } } span.reason { "by " (cut(&job.by)) } }))
            (cell("Created", age(job.created_at, now)))
            (wide("How it stands", html! {
                (bar(job))
                span.counts {
                    @for (index, (state, count)) in job.counts.iter().enumerate() {
                        @if index > 0 { ", " }
                        (count) " " (words(*state))
                    }
                    @if job.counts.len() > 1 { " · " (job.targets) " in all" }
                }
            }))
        }
    }
}

/// How much of a job is in which state. The words beside it say the same.
fn bar(job: &JobSummary) -> Markup {
    let total = u64::from(job.counts.values().sum::<u32>().max(1));
    let mut passed = 0_u64;
    let at = |count: u64| u32::try_from(count * u64::from(BAR) / total).unwrap_or(BAR);
    let pieces = job.counts.iter().map(|(state, count)| {
        let from = at(passed);
        passed += u64::from(*count);
        (*state, from, at(passed) - from)
    });
    html! {
        svg.bar viewBox=(format!("0 0 {BAR} 10")) preserveAspectRatio="none" aria-hidden="true" focusable="false" {
            @for (state, x, width) in pieces {
                rect.(state.as_str()) x=(x) y="0" width=(width) height="10" {}
            }
        }
    }
}

pub(super) fn events(snapshot: &Snapshot) -> Markup {
    html! {
        section aria-labelledby="events" {
            h2 #events tabindex="-1" { "Latest events" }
            @if snapshot.events.is_empty() {
                p.none { "Nothing was reported yet. " code { "steward event emit" } " reports something by hand." }
            } @else {
                (table("events", &["When", "From", "What", "Message"], html! {
                    @for event in &snapshot.events { (self::event(event, snapshot.now)) }
                }))
            }
        }
    }
}

fn event(event: &EventLine, now: Timestamp) -> Markup {
    html! {
        tr role="row" {
            (cell("When", age(event.at, now)))
            (cell("From", html! {
                @match &event.from {
                    Some(from) => { (from) }
                    None => { span.quiet title="No signature proves who sent it" { "unsigned" } }
                }
            }))
            (wide("What", html! { span.what { (event.method) span.domain { "/" (event.domain) } } }))
            td.message.wide role="cell" data-label="Message" { (message_of(&event.record)) }
        }
    }
}

/// What a record says: its message, or all of it.
fn message_of(record: &Map<String, Value>) -> String {
    match record.get("message") {
        Some(Value::String(text)) if record.len() == 1 => cut(text),
        _ => cut(&Value::Object(record.clone()).to_string()),
    }
}

/// A table that keeps its meaning for screen readers when narrow screens show it as cards. It can be scrolled by
/// keyboard.
fn table(name: &str, columns: &[&str], rows: Markup) -> Markup {
    html! {
        div.scroll id=(format!("{name}-scroll")) tabindex="0" role="region" aria-labelledby=(name) {
            table.(name) role="table" aria-labelledby=(name) {
                thead role="rowgroup" { tr role="row" {
                    @for column in columns { th scope="col" role="columnheader" { (column) } }
                } }
                tbody role="rowgroup" { (rows) }
            }
        }
    }
}

fn cell(label: &str, content: Markup) -> Markup {
    html! { td role="cell" data-label=(label) { (content) } }
}

/// A cell that takes a whole line where rows are cards, and needs no label there.
fn wide(label: &str, content: Markup) -> Markup {
    html! { td.wide role="cell" data-label=(label) { (content) } }
}

fn number(label: &str, content: Markup) -> Markup {
    html! { td.number role="cell" data-label=(label) { (content) } }
}

fn nothing() -> Markup {
    html! { span.quiet aria-label="not known" { "–" } }
}

/// How long ago something was; the time itself on hovering.
fn age(at: Timestamp, now: Timestamp) -> Markup {
    let age = Duration::from_secs(now.since(at).as_secs());
    let text = match age.as_secs() {
        0 => "now".to_owned(),
        seconds @ 1..60 => format!("{seconds}s ago"),
        _ => format!("{} ago", human_duration(age)),
    };
    html! { time datetime=(at) title=(at) { (text) } }
}

/// `12:00:00 UTC`.
pub(super) fn clock_time(at: Timestamp) -> Markup {
    let text = at.to_string();
    html! { time datetime=(text) { (text.get(11..19).unwrap_or(&text)) " UTC" } }
}

pub(super) fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// `timed_out` → `timed out`.
fn words(state: State) -> String {
    state.as_str().replace('_', " ")
}

/// The beginning of a text; control characters and those that turn the direction of writing become visible.
fn cut(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(TEXT_CHARACTERS_MAX)
        .map(|c| match c {
            '\t' => ' ',
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => '\u{fffd}',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect();
    if text.chars().nth(TEXT_CHARACTERS_MAX).is_some() {
        shown.push('…');
    }
    shown
}
