//! Nodes that are made up: what operators say about them, what they say about themselves, and that they live.

use bus::clock;
use message::registry::{Condition, LifeSignKind};
use message::{Labels, LifeSign, NodeName, WIRE_VERSION};
use serde_json::{Map, Value, json};

/// The labels of the node of this number.
pub(crate) fn labels(number: usize) -> Labels {
    let site = ["oslo", "bergen", "kiel", "riga", "cork"][number % 5];
    let tier = ["test", "prod"][number / 5 % 2];
    let labels = [("site", site), ("tier", tier), ("owner", "fleet"), ("batch", "7")];
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// Its facts: an object.
pub(crate) fn facts(number: usize) -> Map<String, Value> {
    let disk = |mount: &str, used: usize| json!({"mount": mount, "type": "ext4", "total": 64e9, "used_percent": used});
    let facts = json!({
        "os": {"id": "debian", "version": "12", "name": "Debian GNU/Linux 12 (bookworm)"}, "kernel": "6.1.0-18-amd64",
        "arch": "x86_64", "cpu": {"count": 4, "model": "a model"},
        "memory": {"total": 1_000_000_000 * (1 + number % 8), "swap": 0},
        "disks": [disk("/", number % 20 * 5), disk("/srv", number % 19 * 5)], "units_failed": [],
        "addresses": [{"interface": "eth0", "address": "10.0.0.1"}], "virtualisation": "kvm",
    });
    facts.as_object().cloned().unwrap_or_default()
}

/// A sign of its life, as an agent without work gives it every `interval_ms`.
pub(crate) fn life_sign(node: &NodeName, interval_ms: u64) -> LifeSign {
    LifeSign {
        v: WIRE_VERSION,
        kind: LifeSignKind::Presence,
        node: node.clone(),
        instance: clock::instance_id(),
        boot: clock::instance_id(),
        seat: None,
        condition: Condition::Up,
        reason: None,
        interval_ms,
        at: clock::now(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_s: 60,
        floor: 0,
        processes: 4,
        running: 0,
        waiting: 0,
        outbox: 0,
        limits: Vec::new(),
        audit: None,
        rtt_ms: None,
    }
}
