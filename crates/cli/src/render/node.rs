//! Nodes for people: the table of `node ls`, the page of `node show`.

use std::collections::BTreeMap;

use fleet::Node;
use message::NodeState;

use super::paint::{Paint, tame};
use super::table::{Cell, Table};
use super::time;

/// The table of all nodes.
pub(crate) fn table(nodes: &[Node], wide: bool) -> Table {
    let narrow = ["NAME", "STATE", "LAST SEEN", "VERSION", "PROCESSES", "LABELS"];
    let more = ["RUNNING", "WAITING", "UPTIME", "ROUND TRIP", "CLOCK", "SYSTEM", "MEMORY", "ADDRESSES"];
    let headings: Vec<&str> = narrow.into_iter().chain(more.into_iter().filter(|_| wide)).collect();
    let mut table = Table::new(&headings);
    for node in nodes {
        let mut cells = vec![
            Cell::from(node.name().to_string()),
            Cell::painted(node.vitality.state.as_str(), Paint::of_node(node.vitality.state)),
            Cell::from(node.age.map_or_else(|| "never".to_owned(), time::ago)),
            Cell::from(node.sign.as_ref().map_or_else(|| "-".to_owned(), |sign| tame(&sign.version))),
            Cell::from(node.sign.as_ref().map_or_else(|| "-".to_owned(), |sign| sign.processes.to_string())),
            Cell::from(labels(&node.record.labels)),
        ];
        if wide {
            cells.extend(more_of(node).map(Cell::from));
        }
        table.row(cells);
    }
    table
}

/// What `-o wide` adds.
fn more_of(node: &Node) -> [String; 8] {
    let none = || "-".to_owned();
    let of_sign = |tell: fn(&message::LifeSign) -> String| node.sign.as_ref().map_or_else(none, tell);
    let fact = |path: &str| node.facts.as_ref().and_then(|told| told.facts.pointer(path));
    let text = |path: &str| fact(path).and_then(|value| value.as_str()).map(tame);
    let addresses: Vec<String> = fact("/addresses")
        .and_then(|list| list.as_array())
        .into_iter()
        .flatten()
        .filter_map(|one| one.get("address")?.as_str().map(tame))
        .take(ADDRESSES_TOLD)
        .collect();
    [
        of_sign(|sign| sign.running.to_string()),
        of_sign(|sign| sign.waiting.to_string()),
        of_sign(|sign| message::units::human_duration(std::time::Duration::from_secs(sign.uptime_s))),
        node.rtt_ms().map_or_else(none, |ms| format!("{ms} ms")),
        node.clock_offset_ms().map_or_else(none, clock),
        text("/os/name").unwrap_or_else(none),
        fact("/memory/total").and_then(serde_json::Value::as_u64).map_or_else(none, gibibytes),
        if addresses.is_empty() { none() } else { addresses.join(",") },
    ]
}

/// So many addresses of a node stand in a table.
const ADDRESSES_TOLD: usize = 3;
/// So many changes of a node stand on its page; `steward node history` has them all.
const CHANGES_TOLD: usize = 5;
/// So many characters of one fact are shown to people; `-o json` has it all.
const FACT_TOLD_MAX: usize = 200;

fn gibibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

/// `+12 ms`, `-3.2 s`: by how much a clock is ahead of the broker's.
fn clock(ms: i64) -> String {
    let (sign, size) = (if ms < 0 { "-" } else { "+" }, ms.unsigned_abs());
    match size {
        0..1_000 => format!("{sign}{size} ms"),
        1_000..60_000 => format!("{sign}{}.{} s", size / 1_000, size % 1_000 / 100),
        _ => format!("{sign}{}", message::units::human_duration(std::time::Duration::from_secs(size / 1_000))),
    }
}

/// How a node has stood, the newest first.
pub(crate) fn history(spells: &[message::Spell]) -> Table {
    let mut table = Table::new(&["SINCE", "FOR", "STATE", "REASON"]);
    let ends = spells.iter().skip(1).map(|next| Some(next.since)).chain([None]);
    for (spell, end) in spells.iter().zip(ends).collect::<Vec<_>>().into_iter().rev() {
        table.row(vec![
            Cell::from(time::local(spell.since)),
            Cell::from(end.map_or_else(|| "until now".to_owned(), |end| time::between(spell.since, end))),
            Cell::painted(spell.state.as_str(), Paint::of_node(spell.state)),
            Cell::from(spell.reason.as_deref().map_or_else(|| "-".to_owned(), tame)),
        ]);
    }
    table
}

/// `site=oslo,gpu=`.
pub(crate) fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// One line for each node of which the state alone does not say enough.
pub(crate) fn complaints(nodes: &[Node]) -> Vec<String> {
    let worth_telling = |node: &&Node| !matches!(node.vitality.state, NodeState::Online | NodeState::Offline);
    nodes
        .iter()
        .filter(worth_telling)
        .filter_map(|node| {
            Some(format!("{} is {}: {}", node.name(), node.vitality.state, tame(node.vitality.reason.as_ref()?)))
        })
        .collect()
}

/// `3 nodes: 2 online, 1 offline`.
pub(crate) fn summary(nodes: &[Node]) -> String {
    let mut counts: Vec<(NodeState, usize)> = Vec::new();
    for node in nodes {
        match counts.iter_mut().find(|(state, _)| *state == node.vitality.state) {
            Some((_, count)) => *count += 1,
            None => counts.push((node.vitality.state, 1)),
        }
    }
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.as_str().cmp(b.0.as_str())));
    let counts: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let noun = if nodes.len() == 1 { "node" } else { "nodes" };
    if nodes.is_empty() { format!("0 {noun}") } else { format!("{} {noun}: {}", nodes.len(), counts.join(", ")) }
}

/// `offline since 2026-11-22 12:00:00 (3m 5s ago): it said goodbye`.
pub(crate) fn standing(node: &Node) -> String {
    let mut text = node.vitality.state.to_string();
    if let (Some(seen), Some(age)) = (node.last_seen, node.age) {
        let told = if node.vitality.state.is_reachable() { ", last seen" } else { " since" };
        text.push_str(&format!("{told} {} ({})", time::local(seen), time::ago(age)));
    }
    if let Some(reason) = &node.vitality.reason {
        text.push_str(&format!(": {}", tame(reason)));
    }
    text
}

/// The page of one node.
pub(crate) fn page(node: &Node, past: &[message::Spell], colors: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut field =
        |name: &str, value: String| lines.push(format!("{} {value}", Paint::Bold.on(&format!("{name:<12}"), colors)));
    field("name", node.name().to_string());
    field("state", Paint::of_node(node.vitality.state).on(&standing(node), colors));
    field("labels", labels(&node.record.labels));
    field("enrolled", format!("{} by {}", time::local(node.record.enrolled), node.record.by));
    field("key", node.record.key.to_string());
    if let Some(sign) = &node.sign {
        field("version", tame(&sign.version));
        field("uptime", message::units::human_duration(std::time::Duration::from_secs(sign.uptime_s)));
        field(
            "reports",
            format!("every {}", message::units::human_duration(std::time::Duration::from_millis(sign.interval_ms))),
        );
        if let Some(ms) = node.rtt_ms() {
            field("round trip", format!("{ms} ms to the broker's disk and back"));
        }
        if let Some(ms) = node.clock_offset_ms() {
            field("clock", format!("{} against the broker's", clock(ms)));
        }
        field("processes", sign.processes.to_string());
        field("orders", format!("{} running, {} waiting", sign.running, sign.waiting));
        field("unconfirmed", format!("{} replies and events", sign.outbox));
        for limit in &sign.limits {
            field("holds back", format!("{}: {}", limit.as_str(), limit.sentence()));
        }
    }
    for (nth, spell) in past.iter().rev().take(CHANGES_TOLD).enumerate() {
        let why = spell.reason.as_deref().map_or_else(String::new, |reason| format!(": {}", tame(reason)));
        let state = Paint::of_node(spell.state).on(spell.state.as_str(), colors);
        field(if nth == 0 { "history" } else { "" }, format!("{} {state}{why}", time::local(spell.since)));
    }
    if let Some(told) = &node.facts {
        field("facts as of", format!("{} by its own clock", time::local(told.at)));
        for (name, value) in told.facts.as_object().into_iter().flatten() {
            let text: String = value.to_string().chars().take(FACT_TOLD_MAX).collect();
            field(&format!("  {}", tame(name)), tame(&text));
        }
    }
    lines
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use message::registry::{Condition, LifeSignKind, NodeKind};
    use message::{InstanceId, LifeSign, NodeName, NodeRecord, PublicKey, Timestamp, Vitality};

    use super::*;

    pub(crate) fn node(name: &str, state: NodeState, reason: Option<&str>, seen: bool) -> Node {
        let name = NodeName::new(name).unwrap();
        let key: PublicKey =
            serde_json::from_str("\"UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4\"").unwrap();
        let sign = LifeSign {
            v: 1,
            kind: LifeSignKind::Presence,
            node: name.clone(),
            instance: InstanceId::from_bytes([1; 16]),
            boot: InstanceId::from_bytes([2; 16]),
            seat: None,
            condition: Condition::Up,
            reason: None,
            interval_ms: 10_000,
            at: Timestamp::from_ms(0),
            version: "0.1.0".into(),
            uptime_s: 75,
            floor: 0,
            processes: 4,
            running: 1,
            waiting: 0,
            outbox: 2,
            limits: Vec::new(),
            audit: None,
            rtt_ms: None,
        };
        let labels = [("site".to_owned(), "oslo".to_owned())].into();
        let record = NodeRecord {
            v: 1,
            kind: NodeKind::Node,
            name,
            key,
            labels,
            enrolled: Timestamp::from_ms(0),
            by: "admin".into(),
            changed: None,
            revoked: None,
        };
        Node {
            record,
            sign: seen.then_some(sign),
            facts: None,
            last_seen: seen.then(|| Timestamp::from_ms(1_000)),
            vitality: Vitality { state, reason: reason.map(str::to_owned) },
            age: seen.then(|| Duration::from_secs(185)),
        }
    }

    #[test]
    fn the_table_shows_state_age_and_labels() {
        let nodes = [
            node("ship1", NodeState::Online, None, true),
            node("ship10", NodeState::Offline, Some("it has never reported"), false),
            node("ship11", NodeState::Degraded, Some("the disk is full"), true),
        ];
        let expected = "\
NAME    STATE     LAST SEEN  VERSION  PROCESSES  LABELS
ship1   online    3m 5s ago  0.1.0    4          site=oslo
ship10  offline   never      -        -          site=oslo
ship11  degraded  3m 5s ago  0.1.0    4          site=oslo";
        assert_eq!(table(&nodes, false).lines(false).join("\n"), expected);
        assert_eq!(summary(&nodes), "3 nodes: 1 degraded, 1 offline, 1 online");
        assert_eq!(complaints(&nodes), ["ship11 is degraded: the disk is full"]);
        assert_eq!(summary(&[]), "0 nodes");
        assert_eq!(standing(&nodes[1]), "offline: it has never reported");
        assert!(standing(&nodes[0]).starts_with("online, last seen "), "{}", standing(&nodes[0]));
    }
}
