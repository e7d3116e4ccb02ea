//! Writes the page of a made-up fleet to a directory, to be looked at: `cargo run --example page -- DIR`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use fleet::{EventLine, JobSummary, Node};
use message::registry::{Condition, LifeSignKind, NodeKind};
use message::{
    InstanceId, JobId, LifeSign, NodeName, NodeRecord, NodeState, PublicKey, State, Timestamp, Token, Vitality,
};
use station::page;
use station::snapshot::{Freshness, Snapshot};

const NOW_MS: i64 = 1_795_348_800_000;

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_ms(NOW_MS - seconds * 1_000)
}

fn node(name: &str, state: NodeState, reason: Option<&str>, seen_s: Option<i64>, labels: &[(&str, &str)]) -> Node {
    let name = NodeName::new(name).unwrap();
    let key = PublicKey::parse("UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4").unwrap();
    let labels: BTreeMap<_, _> = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let record = NodeRecord {
        v: 1,
        kind: NodeKind::Node,
        name: name.clone(),
        key,
        labels,
        enrolled: ago(9_999),
        by: "admin".into(),
        changed: None,
        revoked: None,
    };
    let sign = seen_s.map(|_| LifeSign {
        v: 1,
        kind: LifeSignKind::Presence,
        node: name,
        instance: InstanceId::from_bytes([1; 16]),
        seat: None,
        boot: InstanceId::from_bytes([2; 16]),
        condition: Condition::Up,
        reason: None,
        interval_ms: 10_000,
        at: ago(0),
        version: "0.1.0".into(),
        uptime_s: 4_000,
        floor: 17,
        processes: 4,
        running: 1,
        waiting: 12,
        outbox: 0,
        limits: Vec::new(),
        audit: None,
    });
    let last_seen = seen_s.map(ago);
    let age = seen_s.map(|seconds| Duration::from_secs(seconds.unsigned_abs()));
    Node { record, sign, facts: None, last_seen, vitality: Vitality { state, reason: reason.map(str::to_owned) }, age }
}

fn job(number: u64, method: &str, domain: &str, created_s: i64, counts: &[(State, u32)]) -> JobSummary {
    JobSummary {
        job: JobId::new(
            u64::try_from(NOW_MS).unwrap() - number * 77_000,
            0x0123_4567_89ab_cdef_0123 + u128::from(number),
        ),
        created_at: ago(created_s),
        by: "admin".into(),
        method: Token::method(method).unwrap(),
        domain: Token::domain(domain).unwrap(),
        targets: counts.iter().map(|(_, count)| count).sum(),
        counts: counts.iter().copied().collect(),
        retry_of: None,
    }
}

fn event(number: u32, from: Option<&str>, method: &str, domain: &str, seconds: i64, message: &str) -> EventLine {
    let record = match message.strip_prefix("json:") {
        Some(text) => serde_json::from_str(text).unwrap(),
        None => [("message".to_owned(), message.into())].into_iter().collect(),
    };
    EventLine {
        subject: format!("central.event.{method}.{domain}"),
        from: from.map(|from| NodeName::new(from).unwrap()),
        to: NodeName::new("central").unwrap(),
        method: Token::method(method).unwrap(),
        domain: Token::domain(domain).unwrap(),
        at: ago(seconds),
        id: number.to_string(),
        record,
    }
}

fn nodes() -> Vec<Node> {
    let oslo = [("site", "oslo"), ("role", "gateway")];
    vec![
        node("central-gate", NodeState::Online, None, Some(2), &oslo),
        node(
            "ship1",
            NodeState::Online,
            None,
            Some(6),
            &[("site", "bergen"), ("gpu", ""), ("example.com/very-long-label-name", "a-long-value-in-it")],
        ),
        node("ship2", NodeState::Degraded, Some("the disk is full: events are dropped, oldest first"), Some(4), &oslo),
        node("ship3", NodeState::Offline, Some("it has been silent for three intervals"), Some(4_321), &oslo),
        node("ship4", NodeState::Offline, Some("it said goodbye"), Some(187_200), &[]),
        node("ship10", NodeState::Unknown, Some("the broker was restarted since it last reported"), Some(75), &oslo),
        node(
            "weather-station-at-the-very-northern-end-of-the-island-number-07",
            NodeState::Online,
            None,
            Some(9),
            &oslo,
        ),
        node("fresh", NodeState::Offline, Some("it has never reported"), None, &[]),
        node("thrown-out", NodeState::Revoked, None, Some(900_000), &[]),
    ]
}

fn snapshot(kind: &str) -> Snapshot {
    let mut nodes = nodes();
    if kind == "many" {
        nodes.extend(
            (100..330)
                .map(|number| node(&format!("ship{number}"), NodeState::Online, None, Some(5), &[("site", "oslo")])),
        );
    }
    let count =
        |state| nodes.iter().filter(|node| node.vitality.state == state).count() * if kind == "many" { 40 } else { 1 };
    let freshness = match kind {
        "stale" => Freshness::Stale {
            reason: "no broker answers at nats://127.0.0.1:4222".into(),
            age: Duration::from_secs(95),
        },
        "empty" => Freshness::Empty { reason: "no broker answers at nats://127.0.0.1:4222".into() },
        _ => Freshness::Live,
    };
    Snapshot {
        station: NodeName::new("central").unwrap(),
        server: "nats://127.0.0.1:4222".into(),
        freshness,
        now: ago(0),
        as_of: Some(ago(if kind == "stale" { 95 } else { 0 })),
        node_counts: [
            NodeState::Online,
            NodeState::Degraded,
            NodeState::Offline,
            NodeState::Unknown,
            NodeState::Revoked,
        ]
        .map(|state| (state, count(state)))
        .to_vec(),
        nodes,
        job_total: 41,
        jobs: vec![
            job(
                1,
                "shellcommand",
                "operatingsystem",
                3,
                &[(State::Queued, 2), (State::Running, 3), (State::Succeeded, 4)],
            ),
            job(2, "httpget", "web", 75, &[(State::Succeeded, 7)]),
            job(
                3,
                "shellcommand",
                "operatingsystem",
                4_000,
                &[
                    (State::Succeeded, 812),
                    (State::Failed, 3),
                    (State::TimedOut, 1),
                    (State::Expired, 40),
                    (State::Interrupted, 2),
                ],
            ),
            job(4, "backup.d".replace('.', "-").as_str(), "nightly", 90_000, &[(State::Rejected, 1)]),
        ],
        events: vec![
            event(
                1,
                Some("ship1"),
                "syslogforwarding",
                "nginx",
                1,
                r#"192.0.2.7 - - [22/Nov/2026:12:00:00 +0000] "GET /index.html HTTP/1.1" 200 612 "-" "curl/8.5.0""#,
            ),
            event(
                2,
                Some("ship2"),
                "syslogforwarding",
                "kernel",
                14,
                "EXT4-fs warning (device sda1): ext4_dx_add_entry: Directory index full, reached max htree level :2",
            ),
            event(
                3,
                None,
                "backup",
                "nightly",
                130,
                "json:{\"ok\":true,\"bytes\":123456789,\"path\":\"/srv/backup/2026-11-22\"}",
            ),
            event(4, Some("ship4"), "syslogforwarding", "app", 8_000, "<script>alert('not today')</script>"),
        ],
    }
}

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = std::path::PathBuf::from(args.next().unwrap_or_else(|| "/tmp/station-page".into()));
    std::fs::create_dir_all(dir.join("assets"))?;
    std::fs::write(dir.join("assets/style.css"), page::STYLE)?;
    std::fs::write(dir.join("assets/live.js"), page::SCRIPT)?;
    std::fs::write(dir.join("assets/icon.svg"), page::ICON)?;
    for kind in ["live", "stale", "empty", "many"] {
        let text = page::document(&snapshot(kind)).into_string();
        std::fs::write(dir.join(format!("{kind}.html")), text)?;
    }
    std::fs::write(dir.join("fragment"), page::fragment(&snapshot("many")).into_string())?;
    println!("{}", dir.display());
    Ok(())
}
