//! Jobs and events: lists of them, one job with its nodes, and what one node made of it.

use ::fleet::{EventLine, JobSummary};
use maud::{Markup, html};
use message::{NodeName, State, Timestamp};
use serde_json::{Map, Value};

use super::parts::{
    age, bar, cell, choice, cut, event_table, field, nothing, order_state, table, tame_lines, wide, words,
};
use super::{Page, Tab};
use crate::api::query::Params;

/// The page of the latest jobs.
pub(crate) fn jobs(jobs: &[JobSummary], total: usize, params: &Params, now: Timestamp) -> Page {
    let states = [("", "any state"), ("open", "not ended")]
        .into_iter()
        .chain(State::ALL.iter().map(|state| (state.as_str(), state.as_str())));
    let stays = html! {
        form.filter role="search" method="get" action="/jobs" {
            div.line {
                (choice("state", "With orders", params.get("state"), states))
                (field("by", "By", params.get("by"), "e.g. admin"))
                (field("method", "Method", params.get("method"), "e.g. shellcommand"))
                button.main type="submit" { "Show" }
                @if *params != Params::default() { a.clear href="/jobs" { "Show all" } }
            }
        }
    };
    let changes = html! {
        section aria-labelledby="jobs" {
            h1 #jobs { "Latest jobs" @if jobs.len() < total { span.quiet { " · " (jobs.len()) " of " (total) } } }
            @if total == 0 {
                p.none { "Nothing was ordered yet. " code { "steward run --all -- uname -a" } " runs a program on every node." }
            } @else if jobs.is_empty() {
                p.none { "None of the latest jobs is like this. " a href="/jobs" { "Show all" } }
            } @else {
                (table("jobs", &["Job", "What", "Created", "How it stands"], html! {
                    @for job in jobs { (summary(job, now)) }
                }))
            }
        }
    };
    Page { tab: Tab::Jobs, title: "Jobs".into(), stays, changes, every_s: Some(2) }
}

fn summary(job: &JobSummary, now: Timestamp) -> Markup {
    html! {
        tr role="row" {
            th.id scope="row" role="rowheader" { a href=(format!("/jobs/{}", job.job)) { (job.job) } }
            (wide("What", html! { span.what { (job.method) span.domain { "/" (job.domain) } } span.reason { "by " (cut(&job.by)) } }))
            (cell("Created", age(job.created_at, now)))
            (wide("How it stands", html! {
                (bar(job.counts.iter().map(|(state, count)| (state.as_str(), u64::from(*count)))))
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

/// What the page of a job shows.
pub(crate) struct JobPage<'a> {
    pub(crate) head: &'a Map<String, Value>,
    pub(crate) nodes: &'a [Value],
    pub(crate) next: Option<&'a NodeName>,
    pub(crate) params: &'a Params,
    pub(crate) now: Timestamp,
}

/// The page of a job.
pub(crate) fn job(shown: &JobPage<'_>) -> Page {
    let text = |name: &str| shown.head.get(name).and_then(Value::as_str).unwrap_or_default();
    let (id, params) = (text("job"), shown.params);
    let counts: Vec<(State, u64)> = State::ALL
        .into_iter()
        .filter_map(|state| Some((state, shown.head.get("counts")?.get(state.as_str())?.as_u64()?)))
        .collect();
    let open = counts.iter().any(|(state, _)| !state.is_terminal());
    let address = |query: &str| if query.is_empty() { format!("/jobs/{id}") } else { format!("/jobs/{id}?{query}") };
    let changes = html! {
        section.overview.one aria-labelledby="job" {
            h1 #job { (text("method")) span.domain { "/" (text("domain")) } }
            p { code { (id) } }
            p.quiet { "by " (cut(text("by"))) @if let Ok(created) = text("created_at").parse() { ", " (age(created, shown.now)) } }
            div.whole { (bar(counts.iter().map(|(state, count)| (state.as_str(), *count)))) }
            ul.chips {
                li { a href=(address(&params.with("state", None))) aria-current=[params.get("state").is_none().then_some("true")] { "all" } }
                @for (state, count) in &counts {
                    li { a href=(format!("/jobs/{id}?state={state}")) aria-current=[(params.get("state") == Some(state.as_str())).then_some("true")] {
                        (count) " " (words(*state))
                    } }
                }
            }
        }
        section aria-labelledby="nodes" {
            h2 #nodes { "Nodes" @if params.get("state").is_none() { span.quiet { " · those that failed first" } } }
            @if shown.nodes.is_empty() {
                p.none { "No node is in this state." }
            } @else {
                (table("nodes", &["Node", "How it went", "Reason", "Ended"], html! {
                    @for node in shown.nodes { (job_row(id, node, shown.now)) }
                }))
                @if let Some(next) = shown.next {
                    nav.pages aria-label="More nodes" { a rel="next" href=(address(&params.with("cursor", Some(next.as_str())))) { "Next page" } }
                }
            }
        }
    };
    Page { tab: Tab::Jobs, title: format!("Job {id}"), stays: html! {}, changes, every_s: open.then_some(3) }
}

fn job_row(job: &str, node: &Value, now: Timestamp) -> Markup {
    let text = |name: &str| node.get(name).and_then(Value::as_str);
    let name = text("name").unwrap_or_default();
    html! {
        tr role="row" {
            th.name scope="row" role="rowheader" { a href=(format!("/jobs/{job}/nodes/{name}")) { (name) } }
            (wide("How it went", how_it_went(node)))
            (wide("Reason", html! { @match text("reason") { Some(reason) => { (cut(reason)) } None => { (nothing()) } } }))
            (cell("Ended", html! { @match text("finished_at").and_then(|at| at.parse().ok()) { Some(at) => { (age(at, now)) } None => { (nothing()) } } }))
        }
    }
}

fn how_it_went(node: &Value) -> Markup {
    let word = node.get("state").and_then(Value::as_str).unwrap_or_default();
    let state = State::ALL.into_iter().find(|state| state.as_str() == word);
    html! {
        @if let Some(state) = state { (order_state(state)) }
        @if let Some(code) = node.get("exit_code").and_then(Value::as_i64) { span.quiet { " exit code " (code) } }
        @if let Some(signal) = node.get("signal").and_then(Value::as_i64) { span.quiet { " signal " (signal) } }
    }
}

/// What a node made of a job, with what its program wrote.
pub(crate) fn job_node(job: &str, node: &Value, now: Timestamp) -> Page {
    let text = |name: &str| node.get(name).and_then(Value::as_str);
    let name = text("name").unwrap_or_default();
    let at = |field: &str| text(field).and_then(|at| at.parse::<Timestamp>().ok());
    let state = State::ALL.into_iter().find(|state| Some(state.as_str()) == text("state"));
    let changes = html! {
        section.overview.one aria-labelledby="order" {
            h1 #order { a href=(format!("/nodes/{name}")) { (name) } }
            p { "of job " a href=(format!("/jobs/{job}")) { code { (job) } } }
            div { (how_it_went(node)) }
            @if let Some(reason) = text("reason") { p { (cut(reason)) } }
            p.quiet {
                @for (field, word) in [("delivered_at", "delivered"), ("started_at", "started"), ("finished_at", "ended")] {
                    @if let Some(at) = at(field) { span.step { (word) " " (age(at, now)) } " " }
                }
            }
            @if let Some(error) = node.get("clock_error_ms").and_then(Value::as_i64) {
                p.quiet { "by the node's own clock, which was " (error) " ms ahead of the broker's" }
            }
        }
        @for stream in ["stdout", "stderr"] { (output(node, stream)) }
        @if let Some(data) = node.get("data") {
            section aria-labelledby="data" { h2 #data { "Answer" } pre.output tabindex="0" { (tame_lines(&serde_json::to_string_pretty(data).unwrap_or_default())) } }
        }
        @if let Some(reason) = text("output_broken") { p.banner { "The output cannot be relied on: " (cut(reason)) } }
    };
    let open = state.is_some_and(|state| !state.is_terminal());
    Page { tab: Tab::Jobs, title: format!("{name} · job {job}"), stays: html! {}, changes, every_s: open.then_some(3) }
}

fn output(node: &Value, stream: &str) -> Markup {
    let text = node.get(stream).and_then(Value::as_str);
    let encoded = node.get(format!("{stream}_base64")).and_then(Value::as_str);
    let total = node.get(format!("{stream}_total_bytes")).and_then(Value::as_u64);
    html! {
        @if text.is_some_and(|text| !text.is_empty()) || encoded.is_some() {
            section aria-labelledby=(stream) {
                h2 id=(stream) { (stream) @if encoded.is_some() { span.quiet { " · no text: base64" } } }
                @if let Some(total) = total { p.note { "Cut: it wrote " (total) " bytes." } }
                pre.output tabindex="0" { (tame_lines(text.or(encoded).unwrap_or_default())) }
            }
        }
    }
}

/// What the page of events shows.
pub(crate) struct EventsPage<'a> {
    pub(crate) events: &'a [EventLine],
    pub(crate) params: &'a Params,
    /// Whether there are more than are shown.
    pub(crate) more: bool,
    pub(crate) now: Timestamp,
}

/// What can be asked of events.
pub(crate) fn events_filter(params: &Params) -> Markup {
    html! {
        form.filter role="search" method="get" action="/events" {
            div.line {
                (field("grep", "Text", params.get("grep"), "e.g. 5xx"))
                (field("from", "From", params.get("from"), "e.g. ship*"))
                (field("method", "Method", params.get("method"), "e.g. syslog*"))
                (field("domain", "Domain", params.get("domain"), "e.g. nginx"))
                (field("where", "Where", params.get("where"), "e.g. record.n > 2"))
                (field("since", "Since", params.get("since"), "e.g. 2h"))
                (field("until", "Until", params.get("until"), "e.g. 1h"))
                button.main type="submit" { "Show" }
                @if *params != Params::default() { a.clear href="/events" { "Show all" } }
            }
        }
    }
}

/// The page of events.
pub(crate) fn events(shown: &EventsPage<'_>) -> Page {
    let since = ["since", "until"].into_iter().any(|when| shown.params.get(when).is_some());
    let changes = html! {
        section aria-labelledby="events" {
            h1 #events { "Events" span.quiet { @if since { " · oldest first" } @else { " · newest first" } } }
            @if shown.more { p.note { "The first " (shown.events.len()) " are shown; there are more." } }
            @if shown.events.is_empty() {
                p.none {
                    "Nothing like this was reported" @if since { "." } @else { " of late." }
                    " " code { "steward event emit" } " reports something by hand."
                }
            } @else { (event_table(shown.events, shown.now, true)) }
        }
    };
    let every_s = Some(if since { 10 } else { 2 });
    Page { tab: Tab::Events, title: "Events".into(), stays: events_filter(shown.params), changes, every_s }
}
