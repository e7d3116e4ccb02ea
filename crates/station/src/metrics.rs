//! `/metrics`: the text format 0.0.4 of Prometheus. Labels have few and fixed values; no node and no job is one.

use std::fmt::Write as _;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use message::{Limit, State};

use crate::freshness::Freshness;
use crate::process::Usage;
use crate::receiving as received;
use crate::status::{About, Status};

/// What the answer says it is.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the HTTP side counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HttpCounts {
    pub(crate) connections: u64,
    pub(crate) requests: u64,
    pub(crate) refused: u64,
}

/// The whole page.
pub(crate) fn text(
    status: &Status,
    about: &About,
    received: &received::Counts,
    alerts: &crate::alert::Counts,
    http: HttpCounts,
    usage: Usage,
    at: Instant,
) -> String {
    let mut text = Text::default();
    text.family("steward_build_info", "gauge", "The version of this station; always 1.");
    text.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.one("steward_broker_connected", "gauge", "Whether the link to the broker is up.", u64::from(status.connected));
    let ready = status.freshness(at) == Freshness::Live;
    text.one("steward_ready", "gauge", "Whether the view follows the broker's streams.", u64::from(ready));
    if let Some(age) = status.age(at) {
        let help = "How long ago the broker last confirmed what this station shows.";
        text.one("steward_view_age_seconds", "gauge", help, age.as_secs_f64());
    }
    of_the_view(&mut text, status, at);
    of_the_counters(&mut text, status);
    text.one("steward_http_connections", "gauge", "HTTP connections that are open.", http.connections);
    text.one("steward_http_requests_total", "counter", "HTTP requests that were answered.", http.requests);
    let help = "HTTP requests that were refused for their method or their Host header.";
    text.one("steward_http_requests_refused_total", "counter", help, http.refused);
    of_the_receivers(&mut text, received);
    of_the_alerts(&mut text, alerts);
    of_the_process(&mut text, about, usage);
    text.0
}

fn of_the_view(text: &mut Text, status: &Status, at: Instant) {
    let (Some(view), Some((_, clock))) = (&status.view, status.clocks(at)) else { return };
    text.family("steward_nodes", "gauge", "Nodes of the fleet by state.");
    for (state, count) in view.node_counts(clock) {
        text.sample(&[("state", state.as_str())], count);
    }
    if let Some(knocking) = status.knocking {
        let help = "Units that knock with a token and wait for `steward node accept`, as many as the broker holds.";
        text.one("steward_nodes_pending", "gauge", help, knocking);
    }
    let help = "Nodes that hold something back since a limit of theirs is reached, by what is full.";
    text.family("steward_nodes_limited", "gauge", help);
    let limited = view.limit_counts(clock);
    for limit in Limit::ALL {
        text.sample(&[("limit", limit.as_str())], limited.get(&limit).copied().unwrap_or(0));
    }
    text.one("steward_recent_jobs", "gauge", "The newest jobs, as many as this station keeps.", view.jobs.len());
    text.family("steward_orders", "gauge", "Orders of the newest jobs by state.");
    let counts = view.order_counts();
    for state in State::ALL {
        text.sample(&[("state", state.as_str())], counts.get(&state).copied().unwrap_or(0));
    }
}

fn of_the_receivers(text: &mut Text, received: &received::Counts) {
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let help = "Records of events that have arrived where station.toml says that they shall.";
    text.one("steward_received_records_total", "counter", help, read(&received.delivered));
    let help = "Batches of events that came again, and were not delivered again.";
    text.one("steward_received_repeated_total", "counter", help, read(&received.repeated));
    let help = "Events that could not be used, and were put aside as dead letters.";
    text.one("steward_received_dead_letters_total", "counter", help, read(&received.dead));
    let help = "Attempts to deliver events that failed.";
    text.one("steward_receive_failures_total", "counter", help, read(&received.failures));
    let help = "Receivers that hold their place since where their records go does not take them.";
    text.one("steward_receivers_failing", "gauge", help, read(&received.failing));
}

fn of_the_alerts(text: &mut Text, alerts: &crate::alert::Counts) {
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let active = alerts.active.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if !active.is_empty() {
        text.family("steward_alerts_active", "gauge", "What is wrong just now and was told, by rule of station.toml.");
        for (rule, count) in &active {
            text.sample(&[("rule", rule)], count);
        }
    }
    let help = "Notices of alerts that have arrived.";
    text.one("steward_alert_notices_total", "counter", help, read(&alerts.delivered));
    let help = "Attempts to deliver notices of alerts, or to write down that they shall be, that failed.";
    text.one("steward_alert_failures_total", "counter", help, read(&alerts.failures));
    let help = "Notices of alerts that were given up: refused, too old, or too many.";
    text.one("steward_alert_notices_lost_total", "counter", help, read(&alerts.lost));
    let help = "Notices of alerts that wait to be delivered.";
    text.one("steward_alert_notices_waiting", "gauge", help, read(&alerts.waiting));
}

fn of_the_counters(text: &mut Text, status: &Status) {
    let counters = status.counters;
    text.one("steward_jobs_total", "counter", "Jobs that were ordered since this station began.", counters.jobs);
    text.one("steward_replies_total", "counter", "Replies that came since this station began.", counters.replies);
    text.one(
        "steward_events_total",
        "counter",
        "Records of events that came since this station began.",
        counters.events,
    );
    let help = "Replies that are not believed: forged, of strangers, or contradicting what was said before.";
    text.one("steward_rejected_replies_total", "counter", help, counters.rejected_replies);
    text.family(
        "steward_rejected_records_total",
        "counter",
        "Records that are not believed, by what they claim to be.",
    );
    text.sample(&[("kind", "node")], counters.rejected_nodes);
    text.sample(&[("kind", "life_sign")], counters.rejected_life_signs);
    text.sample(&[("kind", "facts")], counters.rejected_facts);
    text.sample(&[("kind", "job")], counters.rejected_jobs);
    text.one("steward_view_readings_total", "counter", "How often everything was read anew.", counters.readings);
}

fn of_the_process(text: &mut Text, about: &About, usage: Usage) {
    if let Some(bytes) = usage.resident_bytes {
        text.one("process_resident_memory_bytes", "gauge", "Resident memory of this process.", bytes);
    }
    if let Some(seconds) = usage.cpu_s {
        text.one("process_cpu_seconds_total", "counter", "Processor time that this process took.", seconds);
    }
    if let Some(files) = usage.open_files {
        text.one("process_open_fds", "gauge", "Files and sockets that this process holds open.", files);
    }
    let started_s = about.started.as_ms().div_euclid(1_000);
    text.one("process_start_time_seconds", "gauge", "When this process began, in seconds after 1970.", started_s);
}

/// The text, family by family.
#[derive(Default)]
struct Text(String, &'static str);

impl Text {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.1 = name;
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample of the family begun last. Labels are our own words: nothing in them needs to be escaped.
    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(self.1);
        if !labels.is_empty() {
            let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
            let _ = write!(self.0, "{{{}}}", labels.join(","));
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn one(&mut self, name: &'static str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use message::{NodeName, Timestamp};

    use super::*;
    use crate::view::{BrokerClock, NODE_STATES, View};

    fn page(with_view: bool) -> String {
        let (mut status, at) = (Status::new(), Instant::now());
        if with_view {
            (status.view, status.connected, status.following) = (Some(View::default()), true, true);
            status.knocking = Some(1);
            status.confirm(BrokerClock { now: Timestamp::from_ms(1), booted: Timestamp::from_ms(0) }, at);
        }
        let about = About {
            station: NodeName::new("central").unwrap(),
            server: "nats://x".into(),
            started: Timestamp::from_ms(5_000),
        };
        let alerts = crate::alert::Counts::default();
        *alerts.active.lock().unwrap() = vec![("ship-silent".into(), 2)];
        text(&status, &about, &received::Counts::default(), &alerts, HttpCounts::default(), Usage::now(), at)
    }

    /// Reads the format as strictly as Prometheus does, and returns the samples by family.
    fn parse(text: &str) -> BTreeMap<String, Vec<String>> {
        let mut families: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let (mut helped, mut typed) = (String::new(), String::new());
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                helped = rest.split_once(' ').expect("a help text").0.to_owned();
                assert!(!families.contains_key(&helped), "{helped} is told twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
                assert!(["counter", "gauge"].contains(&kind));
                typed = name.to_owned();
                families.insert(typed.clone(), Vec::new());
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                let (name, labels) = series.split_once('{').map_or((series, ""), |(name, labels)| (name, labels));
                assert!(labels.is_empty() || labels.ends_with("\"}"), "{line}");
                assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
                assert!(name.starts_with("steward_") || name.starts_with("process_"), "{line}");
                assert_eq!((name, name), (helped.as_str(), typed.as_str()), "{line}");
                let samples = families.get_mut(name).expect("its family");
                assert!(!samples.contains(&series.to_owned()), "{series} is told twice");
                samples.push(series.to_owned());
            }
        }
        assert!(families.values().all(|samples| !samples.is_empty()));
        families
    }

    #[test]
    fn every_metric_has_a_help_a_type_and_a_number() {
        let families = parse(&page(true));
        assert_eq!(families["steward_nodes"].len(), NODE_STATES.len());
        assert_eq!(families["steward_orders"].len(), State::ALL.len());
        for name in ["steward_build_info", "steward_view_age_seconds", "process_resident_memory_bytes"] {
            assert!(families.contains_key(name), "{name}");
        }
    }

    #[test]
    fn each_metric_that_dashboard_and_alert_rules_name_is_exported() {
        let families = parse(&page(true));
        for (path, metrics_min) in
            [("../../packaging/grafana/steward.json", 20), ("../../packaging/prometheus/steward.rules.yml", 12)]
        {
            let text = std::fs::read_to_string(path).unwrap();
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let named: std::collections::BTreeSet<&str> =
                words.filter(|word| word.starts_with("steward_") || word.starts_with("process_")).collect();
            assert!(named.len() >= metrics_min, "{path} names {} metrics", named.len());
            for name in named {
                assert!(families.contains_key(name), "{path} names {name}, which is not exported");
            }
        }
        let dashboard = std::fs::read_to_string("../../packaging/grafana/steward.json").unwrap();
        let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
        assert!(dashboard["panels"].as_array().unwrap().iter().all(|panel| panel["targets"][0]["expr"].is_string()));
    }

    #[test]
    fn without_a_view_nothing_is_made_up() {
        let families = parse(&page(false));
        assert!(!families.contains_key("steward_nodes_pending"));
        assert!(!families.contains_key("steward_nodes") && !families.contains_key("steward_view_age_seconds"));
        assert!(families.contains_key("steward_broker_connected"));
    }
}
