//! What several pages are made of.

use std::time::Duration;

use fleet::EventLine;
use maud::{Markup, html};
use message::units::human_duration;
use message::{NodeState, State, Timestamp};
use serde_json::{Map, Value};

/// What is shown of a text that somebody else wrote.
const TEXT_CHARACTERS_MAX: usize = 400;
/// The length of a bar, in units of its drawing.
const BAR: u64 = 1_000;

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

/// The state of a node, with its reason.
pub(super) fn state(state: NodeState, reason: Option<&str>) -> Markup {
    html! {
        span.state.(state.as_str()) { (mark(state)) (state) }
        @if let Some(reason) = reason { span.reason { (cut(reason)) } }
    }
}

/// The state of an order.
pub(super) fn order_state(state: State) -> Markup {
    html! { span.state.order.(state.as_str()) { (words(state)) } }
}

/// How much of a whole is what. The words beside it say the same.
pub(super) fn bar<'a>(counts: impl Iterator<Item = (&'a str, u64)> + Clone) -> Markup {
    let total = counts.clone().map(|(_, count)| count).sum::<u64>().max(1);
    let mut passed = 0_u64;
    let at = |count: u64| count.saturating_mul(BAR) / total;
    let pieces = counts.map(|(class, count)| {
        let from = at(passed);
        passed += count;
        (class, from, at(passed) - from)
    });
    html! {
        svg.bar viewBox=(format!("0 0 {BAR} 10")) preserveAspectRatio="none" aria-hidden="true" focusable="false" {
            @for (class, x, width) in pieces {
                rect.(class) x=(x) y="0" width=(width) height="10" {}
            }
        }
    }
}

/// A table of events.
pub(super) fn event_table(events: &[EventLine], now: Timestamp, from: bool) -> Markup {
    let columns: &[&str] = if from { &["When", "From", "What", "Message"] } else { &["When", "What", "Message"] };
    table(
        "events",
        columns,
        html! {
            @for event in events {
                tr role="row" {
                    (cell("When", age(event.at, now)))
                    @if from {
                        (cell("From", html! {
                            @match &event.from {
                                Some(from) => { a href=(format!("/nodes/{from}")) { (from) } }
                                None => { span.quiet title="No signature proves who sent it" { "unsigned" } }
                            }
                        }))
                    }
                    (wide("What", html! { span.what { (event.method) span.domain { "/" (event.domain) } } }))
                    td.message.wide role="cell" data-label="Message" { (message_of(&event.record)) }
                }
            }
        },
    )
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
pub(super) fn table(name: &str, columns: &[&str], rows: Markup) -> Markup {
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

pub(super) fn cell(label: &str, content: Markup) -> Markup {
    html! { td role="cell" data-label=(label) { (content) } }
}

/// A cell that takes a whole line where rows are cards, and needs no label there.
pub(super) fn wide(label: &str, content: Markup) -> Markup {
    html! { td.wide role="cell" data-label=(label) { (content) } }
}

pub(super) fn number(label: &str, content: Markup) -> Markup {
    html! { td.number role="cell" data-label=(label) { (content) } }
}

pub(super) fn nothing() -> Markup {
    html! { span.quiet aria-label="not known" { "–" } }
}

/// How long ago something was; the time itself on hovering.
pub(super) fn age(at: Timestamp, now: Timestamp) -> Markup {
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
pub(super) fn words(state: State) -> String {
    state.as_str().replace('_', " ")
}

/// The beginning of a text; control characters and those that turn the direction of writing become visible.
pub(super) fn cut(text: &str) -> String {
    let mut shown = tame(text.chars().take(TEXT_CHARACTERS_MAX));
    if text.chars().nth(TEXT_CHARACTERS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// A text of several lines, as long as it is.
pub(super) fn tame_lines(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| match line.strip_suffix('\n') {
            Some(line) => tame(line.strip_suffix('\r').unwrap_or(line).chars()) + "\n",
            None => tame(line.chars()),
        })
        .collect()
}

fn tame(text: impl Iterator<Item = char>) -> String {
    text.map(|c| match c {
        '\t' => ' ',
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    })
    .collect()
}

/// A field of a form: a label and what can be typed in.
pub(super) fn field(name: &str, label: &str, value: Option<&str>, hint: &str) -> Markup {
    html! {
        label.field { span { (label) } input name=(name) value=[value] placeholder=(hint) spellcheck="false" autocomplete="off"; }
    }
}

/// A choice of a form.
pub(super) fn choice<'a>(
    name: &str,
    label: &str,
    value: Option<&str>,
    options: impl Iterator<Item = (&'a str, &'a str)>,
) -> Markup {
    html! {
        label.field { span { (label) } select name=(name) {
            @for (option, text) in options {
                option value=(option) selected[value.unwrap_or_default() == option] { (text) }
            }
        } }
    }
}
