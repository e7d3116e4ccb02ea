//! What is believed of a node: a record that an operator signed, a sign of life that the node signed. Pure.

use std::collections::HashMap;

use bus::Message;
use bus::kv::key_of;
use message::{Facts, LifeSign, NodeName, NodeRecord, PublicKey, Timestamp, Trust, Vitality, WIRE_VERSION};

use super::{FleetView, Node};

/// The broker's clock, and when it last began with an empty memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BrokerClock {
    pub(super) now: Timestamp,
    pub(super) booted: Timestamp,
}

/// Something that was written under a key, as far as its signature is concerned.
pub(super) struct Written<'a> {
    /// The key of the bucket.
    pub(super) key: &'a str,
    /// Who signed, if the signature holds; else what is wrong.
    pub(super) signer: Result<PublicKey, String>,
    pub(super) payload: &'a [u8],
}

impl<'a> Written<'a> {
    pub(super) fn of(message: &'a Message) -> Self {
        let signer = message.signer().map_err(|error| error.to_string());
        Self { key: key_of(&message.subject), signer, payload: &message.payload }
    }
}

/// The record of a node, if an operator signed it and it stands at its own key.
pub(super) fn record(written: &Written<'_>, trust: &Trust) -> Result<NodeRecord, String> {
    let wrong = |reason: String| format!("the registration at {:?} is not believed: {reason}", written.key);
    let signer = written.signer.as_ref().map_err(|reason| wrong(reason.clone()))?;
    if trust.operator(signer).is_none() {
        return Err(wrong(format!("its signer {signer} is no operator of this fleet")));
    }
    let record: NodeRecord = serde_json::from_slice(written.payload).map_err(|error| wrong(error.to_string()))?;
    if record.v != WIRE_VERSION {
        return Err(wrong(format!("it is of version {}; this steward is older or newer than its writer", record.v)));
    }
    if record.name.as_str() != written.key {
        return Err(wrong(format!("it is that of {}", record.name)));
    }
    Ok(record)
}

/// The life sign of a node, if the node signed it.
pub(super) fn life_sign(written: &Written<'_>, record: &NodeRecord) -> Result<LifeSign, String> {
    let wrong = |reason: String| format!("the life sign of {} is not believed: {reason}", record.name);
    let signer = written.signer.as_ref().map_err(|reason| wrong(reason.clone()))?;
    if *signer != record.key {
        return Err(wrong(format!("it is signed by {signer}, the node's key is {}", record.key)));
    }
    let sign: LifeSign = serde_json::from_slice(written.payload).map_err(|error| wrong(error.to_string()))?;
    if sign.v != WIRE_VERSION || sign.node != record.name {
        return Err(wrong(format!("it is that of {} in version {}", sign.node, sign.v)));
    }
    Ok(sign)
}

/// What a node says of its system, if the node signed it.
pub(super) fn facts(written: &Written<'_>, record: &NodeRecord) -> Result<Facts, String> {
    let wrong = |reason: String| format!("the facts of {} are not believed: {reason}", record.name);
    let signer = written.signer.as_ref().map_err(|reason| wrong(reason.clone()))?;
    if *signer != record.key {
        return Err(wrong(format!("they are signed by {signer}, the node's key is {}", record.key)));
    }
    let facts = Facts::parse(written.payload).map_err(wrong)?;
    if facts.node == record.name { Ok(facts) } else { Err(wrong(format!("they are those of {}", facts.node))) }
}

/// A node as it stands.
pub(super) fn node(record: NodeRecord, sign: Option<(LifeSign, Timestamp)>, clock: BrokerClock) -> Node {
    let vitality = Vitality::of(&record, sign.as_ref().map(|(sign, seen)| (sign, *seen)), clock.now, clock.booted);
    let (sign, last_seen) = sign.unzip();
    Node { record, sign, facts: None, last_seen, vitality, age: last_seen.map(|seen| clock.now.since(seen)) }
}

/// What was written under each key.
fn by_key(messages: &[Message]) -> HashMap<&str, &Message> {
    messages.iter().map(|message| (key_of(&message.subject), message)).collect()
}

/// All that is believed of `records`, `signs` and `told` (facts).
pub(super) fn view(
    records: &[Message],
    signs: &[Message],
    told: &[Message],
    trust: &Trust,
    clock: BrokerClock,
) -> FleetView {
    let (signs, told) = (by_key(signs), by_key(told));
    let mut view = FleetView { at: clock.now, ..FleetView::default() };
    for written in records {
        let record = match record(&Written::of(written), trust) {
            Ok(record) => record,
            Err(note) => {
                view.notes.push(note);
                continue;
            }
        };
        let sign = signs.get(record.name.as_str()).and_then(|message| {
            life_sign(&Written::of(message), &record)
                .and_then(|sign| match record.revoked {
                    Some(at) if message.stored_at >= at => {
                        Err(format!("a life sign of {} came after it was revoked", record.name))
                    }
                    _ => Ok(sign),
                })
                .map(|sign| (sign, message.stored_at))
                .map_err(|note| view.notes.push(note))
                .ok()
        });
        let from_then_on = record.revoked;
        let told =
            told.get(record.name.as_str()).filter(|message| from_then_on.is_none_or(|at| message.stored_at < at));
        let facts =
            told.and_then(|message| facts(&Written::of(message), &record).map_err(|note| view.notes.push(note)).ok());
        view.nodes.push(Node { facts, ..node(record, sign, clock) });
    }
    view
}

/// Compares names as people do: `ship2` comes before `ship10`.
pub(crate) fn natural(one: &NodeName, other: &NodeName) -> std::cmp::Ordering {
    let key = |name: &NodeName| -> Vec<(String, u128, usize)> {
        let mut parts = Vec::new();
        let mut rest = name.as_str();
        while !rest.is_empty() {
            let text_ends = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let (text, after) = rest.split_at(text_ends);
            let digits_end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let (digits, after) = after.split_at(digits_end);
            // More than 38 digits count as the largest number; the names themselves then decide.
            parts.push((
                text.to_owned(),
                digits.parse().unwrap_or(u128::from(!digits.is_empty()) * u128::MAX),
                digits.len(),
            ));
            rest = after;
        }
        parts
    };
    key(one).cmp(&key(other)).then_with(|| one.cmp(other))
}

/// Up to three of `names` that `wanted` could be a slip of the pen for.
pub(crate) fn near<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let allowed = (wanted.chars().count() / 3).clamp(1, 3);
    let lower = wanted.to_lowercase();
    let mut found: Vec<(usize, &str)> = names
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= allowed)
        .collect();
    found.sort_unstable();
    found.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use message::registry::{Condition, LifeSignKind, NodeKind};
    use message::trust::{Operator, TrustKind};
    use message::{InstanceId, NodeState};
    use nkeys::{KeyPair, KeyPairType};

    use super::*;

    fn key(seed: u8) -> PublicKey {
        PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [seed; 32]).unwrap())
    }

    fn trust() -> Trust {
        Trust {
            v: WIRE_VERSION,
            kind: TrustKind::Trust,
            serial: 1,
            issued: Timestamp::default(),
            operators: vec![Operator::admin("admin", key(1))],
            policy_keys: vec![],
            revoked: vec![],
        }
    }

    fn registered(name: &str) -> NodeRecord {
        NodeRecord {
            v: WIRE_VERSION,
            kind: NodeKind::Node,
            name: NodeName::new(name).unwrap(),
            key: key(7),
            labels: [].into(),
            enrolled: Timestamp::default(),
            by: "admin".into(),
            changed: None,
            revoked: None,
        }
    }

    fn sign(name: &str) -> LifeSign {
        LifeSign {
            v: WIRE_VERSION,
            kind: LifeSignKind::Presence,
            node: NodeName::new(name).unwrap(),
            instance: InstanceId::from_bytes([1; 16]),
            boot: InstanceId::from_bytes([2; 16]),
            seat: None,
            condition: Condition::Up,
            reason: None,
            interval_ms: 10_000,
            at: Timestamp::default(),
            version: "0.1.0".into(),
            uptime_s: 1,
            floor: 0,
            processes: 3,
            running: 0,
            waiting: 0,
            outbox: 0,
            limits: Vec::new(),
            audit: None,
            rtt_ms: None,
        }
    }

    #[test]
    fn only_a_record_that_an_operator_signed_at_its_own_key_is_believed() {
        let payload = serde_json::to_vec(&registered("ship1")).unwrap();
        let at = |key: &'static str, signer| Written { key, signer, payload: &payload };
        assert_eq!(record(&at("ship1", Ok(key(1))), &trust()).unwrap(), registered("ship1"));
        let error = record(&at("ship1", Ok(key(2))), &trust()).unwrap_err();
        assert!(error.contains("no operator"), "{error}");
        let error = record(&at("ship2", Ok(key(1))), &trust()).unwrap_err();
        assert!(error.contains("that of ship1"), "{error}");
        assert!(record(&at("ship1", Err("the message is not signed".into())), &trust()).is_err());
    }

    #[test]
    fn only_a_life_sign_that_the_node_signed_is_believed() {
        let payload = serde_json::to_vec(&sign("ship1")).unwrap();
        let by = |signer| Written { key: "ship1", signer: Ok(signer), payload: &payload };
        assert!(life_sign(&by(key(7)), &registered("ship1")).is_ok());
        assert!(life_sign(&by(key(1)), &registered("ship1")).is_err());
        assert!(life_sign(&by(key(7)), &registered("ship2")).is_err());
    }

    #[test]
    fn only_facts_that_the_node_signed_are_believed() {
        let told = Facts::new(NodeName::new("ship1").unwrap(), Timestamp::default(), serde_json::Map::new());
        let payload = serde_json::to_vec(&told).unwrap();
        let by = |signer| Written { key: "ship1", signer: Ok(signer), payload: &payload };
        assert_eq!(facts(&by(key(7)), &registered("ship1")), Ok(told));
        assert!(facts(&by(key(1)), &registered("ship1")).is_err());
        assert!(facts(&by(key(7)), &registered("ship2")).is_err());
    }

    #[test]
    fn a_node_is_shown_with_the_age_of_what_it_last_said() {
        let at = Timestamp::from_ms;
        let clock = BrokerClock { now: at(105_000), booted: at(0) };
        let node = node(registered("ship1"), Some((sign("ship1"), at(100_000))), clock);
        assert_eq!(node.vitality.state, NodeState::Online);
        assert_eq!(node.age.unwrap().as_millis(), 5_000);
        let json = node.to_json();
        assert_eq!(json["state"], "online");
        assert_eq!(json["last_seen"], "1970-01-01T00:01:40.000Z");
        assert_eq!(json["processes"], 3);
        assert!(json["facts"].is_object() && json["labels"].is_object() && json["reason"].is_null());
    }

    #[test]
    fn numbers_in_names_are_ordered_as_numbers() {
        let mut names = ["ship10", "ship2", "ship1", "b", "a10x", "a9x", "ship02"].map(|n| NodeName::new(n).unwrap());
        names.sort_by(natural);
        assert_eq!(names.map(|n| n.to_string()), ["a9x", "a10x", "b", "ship1", "ship2", "ship02", "ship10"]);
    }

    #[test]
    fn a_slip_of_the_pen_finds_the_near_name() {
        let names = ["ship1", "ship2", "central", "Oslo-gate"];
        assert_eq!(near("shipp1", names.into_iter()), ["ship1", "ship2"]);
        assert_eq!(near("oslo-gate", names.into_iter()), ["Oslo-gate"]);
        assert!(near("plane", names.into_iter()).is_empty());
    }
}
