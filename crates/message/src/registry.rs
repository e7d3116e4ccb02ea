//! The registry: who belongs to the fleet, what it last said, and what follows from that and its age.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::WIRE_VERSION;
use crate::id::InstanceId;
use crate::name::NodeName;
use crate::sign::{PublicKey, SealedDocument};
use crate::time::Timestamp;
use crate::trust::Trust;

/// After how many of its own intervals without a sign of life a node counts as offline.
pub const INTERVALS_UNTIL_OFFLINE: u32 = 3;

/// What an operator signed about a node, at key `<node>` of bucket `NODES`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The wire's version.
    pub v: u8,
    /// Always `node`.
    pub kind: NodeKind,
    /// The node's name.
    pub name: NodeName,
    /// The node's key: its NATS identity, and what its replies are signed with.
    pub key: PublicKey,
    /// What operators say about it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was enrolled.
    pub enrolled: Timestamp,
    /// By which operator.
    pub by: String,
    /// When it was last changed. Grows with every change, so that a node never goes back to older labels.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub changed: Option<Timestamp>,
    /// Since when it belongs to the fleet no more. Its name stays taken, and what it says from then on counts for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
}

impl NodeRecord {
    /// Since when the word of `key` under this name counts no more: since the node was revoked, or, of an earlier key of the
    /// name, at the latest since the record names another one.
    pub fn silenced(&self, key: &PublicKey) -> Option<Timestamp> {
        if self.key == *key { self.revoked } else { Some(self.enrolled) }
    }

    /// Why an order that was for the node with `key` will have no answer: a sentence. `None` when it may have one.
    pub fn no_answer(&self, key: &PublicKey) -> Option<String> {
        let at = self.silenced(key)?;
        let what = if self.key == *key { "revoked" } else { "given another key" };
        Some(format!("{} was {what} at {at}, before its answer was known: whether it was run is not known", self.name))
    }
}

/// The longest introduction that is read.
const INTRODUCTION_BYTES_MAX: usize = 64 * 1024;

impl NodeRecord {
    /// The record in an introduction, if an operator of `trust` has signed it.
    ///
    /// # Errors
    /// A sentence that says why it is not believed.
    pub fn introduced(text: &str, trust: &Trust) -> Result<Self, String> {
        let wrong = |reason: String| format!("the introduction of its sender is not believed: {reason}");
        if text.len() > INTRODUCTION_BYTES_MAX {
            return Err(wrong(format!("it has {} bytes", text.len())));
        }
        let sealed: SealedDocument = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let signer = &sealed.seal.key;
        if trust.operator(signer).is_none() {
            return Err(wrong(format!("its signer {signer} is no operator of this fleet")));
        }
        let document = sealed.open(signer).map_err(|error| wrong(error.to_string()))?;
        let record: Self = serde_json::from_str(document).map_err(|error| wrong(error.to_string()))?;
        if record.v != WIRE_VERSION {
            return Err(wrong(format!("it is of version {}", record.v)));
        }
        Ok(record)
    }
}

/// The `kind` of a node's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// The only one.
    Node,
}

/// What a node says of itself in a life sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// All is well.
    Up,
    /// It lives, but cannot do all it should; the reason says why.
    Degraded,
    /// It goes, and says so.
    Bye,
}

/// The signed life sign of a node, at key `<node>` of bucket `PRESENCE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifeSign {
    /// The wire's version.
    pub v: u8,
    /// Always `presence`.
    pub kind: LifeSignKind,
    /// The node.
    pub node: NodeName,
    /// Its journal.
    pub instance: InstanceId,
    /// Its present run: drawn anew at each start.
    pub boot: InstanceId,
    /// Which file on which running machine its journal is. A run that ended there without a goodbye cannot be alive
    /// any more when another has the file's lock; a run with another seat can: of a cloned disk.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seat: Option<String>,
    /// How it feels.
    pub condition: Condition,
    /// Why it is degraded: a sentence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// After how long it will say so again, in milliseconds.
    pub interval_ms: u64,
    /// When it said so, by its own clock.
    pub at: Timestamp,
    /// The agent's version.
    pub version: String,
    /// How long this run has lasted, in seconds.
    pub uptime_s: u64,
    /// The stream sequence up to which it has seen all of its orders.
    pub floor: u64,
    /// Its processes (message handlers).
    pub processes: u32,
    /// Orders that run.
    pub running: u32,
    /// Orders that wait.
    pub waiting: u32,
    /// Replies and events that the broker has not confirmed yet.
    pub outbox: u32,
    /// What is full, and holds back what would come behind.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub limits: Vec<Limit>,
    /// Where its chain in the audit log ends: number and SHA-256 of its last entry.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub audit: Option<(u64, String)>,
    /// How long its last question to the broker took, there and back, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rtt_ms: Option<u32>,
}

/// Something bounded that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The disk: nothing more is accepted.
    Disk,
    /// As many orders wait as may; what comes stays at the broker.
    Orders,
    /// The journal's queue: the disk is slower than what is to be written.
    Journal,
    /// What is on its way to the broker: the link is slow or down, and outcomes and output wait on the disk.
    Outbox,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

impl Limit {
    /// All that this version knows.
    pub const ALL: [Self; 4] = [Self::Disk, Self::Orders, Self::Journal, Self::Outbox];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Orders => "orders",
            Self::Journal => "journal",
            Self::Outbox => "outbox",
            Self::Unknown => "unknown",
        }
    }

    /// What it means, for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Disk => "its disk is full or nearly so: when no room is left, orders stay at the broker",
            Self::Orders => "as many orders wait there as may: what comes now stays at the broker until one has ended",
            Self::Journal => "its disk is slower than what is to be written: what comes waits for it",
            Self::Outbox => {
                "the broker confirms less than it has to tell: outcomes and output wait on its disk for the link"
            }
            Self::Unknown => "something is full that this version does not know of",
        }
    }
}

/// The `kind` of a life sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LifeSignKind {
    /// The only one.
    Presence,
}

/// How a node stands, as everyone computes it from the same facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It spoke within three of its intervals.
    Online,
    /// It has been silent for longer, has said goodbye, or has never spoken.
    Offline,
    /// The broker was restarted since it last spoke.
    Unknown,
    /// It lives, with a complaint.
    Degraded,
    /// It knocked, and was not accepted yet.
    Pending,
    /// It was thrown out.
    Revoked,
}

impl NodeState {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Unknown => "unknown",
            Self::Degraded => "degraded",
            Self::Pending => "pending",
            Self::Revoked => "revoked",
        }
    }

    /// Whether an answer can be expected now.
    pub const fn is_reachable(self) -> bool {
        matches!(self, Self::Online | Self::Degraded)
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a node stands, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vitality {
    /// The state.
    pub state: NodeState,
    /// A sentence, where the state alone does not say it.
    pub reason: Option<String>,
}

impl Vitality {
    /// How a node stands by its record and its last life sign.
    ///
    /// Of a node that was thrown out no sign matters any more.
    pub fn of(record: &NodeRecord, sign: Option<(&LifeSign, Timestamp)>, now: Timestamp, booted: Timestamp) -> Self {
        match record.revoked {
            Some(at) => Self { state: NodeState::Revoked, reason: Some(format!("{} revoked it at {at}", record.by)) },
            None => Self::judge(sign, now, booted),
        }
    }

    /// Judges a node by its last life sign alone.
    ///
    /// All times are the broker's: `seen` is when it stored the sign, `now` its time of reading, `booted` when
    /// it last began with an empty memory. A reader's own clock plays no part, so all readers see the same.
    pub fn judge(sign: Option<(&LifeSign, Timestamp)>, now: Timestamp, booted: Timestamp) -> Self {
        let is = |state, reason: Option<&str>| Self { state, reason: reason.map(ToOwned::to_owned) };
        let Some((sign, seen)) = sign else {
            return is(NodeState::Offline, Some("it has never reported"));
        };
        if sign.condition == Condition::Bye {
            return is(NodeState::Offline, Some("it said goodbye"));
        }
        let allowed = Duration::from_millis(sign.interval_ms).saturating_mul(INTERVALS_UNTIL_OFFLINE);
        if now.since(seen) > allowed {
            // Its silence proves nothing while the broker was not there to hear it.
            return if now.since(booted) <= allowed || seen < booted {
                is(NodeState::Unknown, Some("the broker was restarted since it last reported"))
            } else {
                is(NodeState::Offline, Some("it has been silent for three intervals"))
            };
        }
        match sign.condition {
            Condition::Degraded => is(NodeState::Degraded, sign.reason.as_deref()),
            Condition::Up | Condition::Bye => is(NodeState::Online, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sign(condition: Condition) -> LifeSign {
        LifeSign {
            v: 1,
            kind: LifeSignKind::Presence,
            node: NodeName::new("ship1").unwrap(),
            instance: InstanceId::from_bytes([1; 16]),
            boot: InstanceId::from_bytes([2; 16]),
            seat: None,
            condition,
            reason: (condition == Condition::Degraded).then(|| "the disk is full".to_owned()),
            interval_ms: 10_000,
            at: Timestamp::from_ms(0),
            version: "0.1.0".into(),
            uptime_s: 1,
            floor: 0,
            processes: 1,
            running: 0,
            waiting: 0,
            outbox: 0,
            limits: Vec::new(),
            audit: None,
            rtt_ms: None,
        }
    }

    fn state(condition: Condition, seen_ms: i64, now_ms: i64, booted_ms: i64) -> NodeState {
        let at = Timestamp::from_ms;
        Vitality::judge(Some((&sign(condition), at(seen_ms))), at(now_ms), at(booted_ms)).state
    }

    #[test]
    fn three_intervals_of_silence_make_offline() {
        assert_eq!(state(Condition::Up, 100_000, 130_000, 0), NodeState::Online);
        assert_eq!(state(Condition::Up, 100_000, 130_001, 0), NodeState::Offline);
        assert_eq!(state(Condition::Degraded, 100_000, 110_000, 0), NodeState::Degraded);
    }

    #[test]
    fn a_goodbye_makes_offline_at_once() {
        assert_eq!(state(Condition::Bye, 100_000, 100_001, 0), NodeState::Offline);
    }

    #[test]
    fn silence_across_a_broker_restart_is_unknown_not_offline() {
        assert_eq!(state(Condition::Up, 100_000, 900_000, 890_000), NodeState::Unknown);
        assert_eq!(state(Condition::Up, 100_000, 2_000_000, 890_000), NodeState::Unknown);
    }

    #[test]
    fn a_node_that_never_spoke_is_offline() {
        let at = Timestamp::from_ms;
        assert_eq!(Vitality::judge(None, at(5), at(1)).state, NodeState::Offline);
    }

    proptest! {
        #[test]
        fn never_offline_by_silence_that_the_broker_could_not_hear(seen in 0_i64..1_000_000, gap in 0_i64..1_000_000, after in 0_i64..30_000) {
            let booted = seen + gap;
            prop_assert_ne!(state(Condition::Up, seen, booted + after, booted), NodeState::Offline);
        }
    }
}
