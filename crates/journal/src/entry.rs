//! What the journal holds: orders with all that is known of them, output and events not yet confirmed.

use std::time::Duration;

use message::{History, JobId, MessageId, NodeName, Order, OrderId, Outcome, PublicKey, Timestamp, Token};
use serde::{Deserialize, Serialize};

/// How long after its expiry an order's id is remembered: as long as the broker could still replay it.
pub const RETENTION_AFTER_EXPIRY: Duration = Duration::from_secs(31 * 24 * 3600);

/// An order and everything known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The order.
    pub id: OrderId,
    /// Its sequence in the broker's stream; orders of one subject run in this order.
    pub sequence: u64,
    /// Its job.
    pub job: JobId,
    /// The node that receives the replies.
    pub from: NodeName,
    /// Its method.
    pub method: Token,
    /// Its domain.
    pub domain: Token,
    /// Until when it could be replayed, as far as its own words go.
    pub expires: Timestamp,
    /// The key under which it supersedes, and is superseded while it waits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub supersede: Option<Token>,
    /// What happened to it.
    pub history: History,
    /// Why, where the state needs a reason.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub outcome: Option<Outcome>,
    /// The exact body, as long as it may still be needed to run it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub body: Option<String>,
    /// The random part of the message ids of its replies and output, drawn before the first is sent.
    pub reply_id: MessageId,
    /// The key that signed it: what the policy goes by when it begins, and who may cancel it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<PublicKey>,
    /// The keys of those who have approved it since.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub approvals: Vec<PublicKey>,
    /// The last step that the broker has confirmed.
    #[serde(default)]
    pub reported: u32,
}

impl Entry {
    /// What is known of an order when it comes, with this to be told of it; nothing of it is confirmed, and nothing is left to run.
    pub fn new(order: &Order, sequence: u64, history: History, reply_id: MessageId) -> Self {
        Self {
            id: order.id,
            sequence,
            job: order.job.clone(),
            from: order.from.clone(),
            method: order.method.clone(),
            domain: order.domain.clone(),
            expires: order.expires,
            supersede: order.supersede.clone(),
            history,
            reason: None,
            outcome: None,
            body: None,
            reply_id,
            by: None,
            approvals: vec![],
            reported: 0,
        }
    }

    /// Whether nothing is left to do for it but to remember its id.
    pub fn is_settled(&self) -> bool {
        self.history.state().is_terminal() && self.reported >= self.history.step()
    }

    /// Whether its id may be forgotten, seen from a time that never falls.
    pub fn is_forgettable(&self, watermark: Timestamp) -> bool {
        self.is_settled() && self.expires.plus(RETENTION_AFTER_EXPIRY) < watermark
    }
}

/// A job that was cancelled before its order arrived: when it does, it ends `cancelled`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The job.
    pub job: JobId,
    /// Until when its order may still be picked up at the latest.
    pub until: Timestamp,
    /// Who cancelled it, in words.
    pub reason: String,
    /// Where the policy lets those who cancelled take back their own orders alone: their keys. Empty: anybody's.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub only_of: Vec<PublicKey>,
}

/// The newest order that was taken under a key: an older one that arrives later is superseded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newest {
    /// The key.
    pub key: Token,
    /// The order's sequence in the broker's stream.
    pub sequence: u64,
    /// Its job.
    pub job: JobId,
    /// Until when older ones may still be picked up at the latest.
    pub until: Timestamp,
}

/// A piece of output that the broker has not confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputRow {
    /// The order.
    pub order: OrderId,
    /// Its number among the order's output messages.
    pub number: u32,
    /// `true` for stderr.
    pub is_stderr: bool,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// How soon events leave: those of a lane leave in their order, and what is in one that comes earlier here goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Before all others: alarms.
    Urgent,
    /// What is said of nothing else.
    Normal,
    /// After all others: debugging.
    Low,
}

/// The lane of a row is in its uppermost bits; those of [`Lane::Normal`] are none, as rows had before there were lanes.
const LANE_SHIFT: u32 = 62;

impl Lane {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Urgent, Self::Normal, Self::Low];

    const fn bits(self) -> u64 {
        (match self {
            Self::Normal => 0,
            Self::Urgent => 1,
            Self::Low => 2,
        }) << LANE_SHIFT
    }

    /// The row of this number.
    pub const fn row(self, number: u64) -> u64 {
        self.bits() | number_of(number)
    }

    /// All rows behind one of this lane; behind 0, all.
    pub(crate) const fn behind(self, row: u64) -> std::ops::RangeInclusive<u64> {
        self.row(number_of(row).saturating_add(1))..=self.row(u64::MAX)
    }
}

/// The number of a row, without its lane.
pub const fn number_of(row: u64) -> u64 {
    row & !(0b11 << LANE_SHIFT)
}

/// A batch of events that the broker has not confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Its lane and number ([`Lane::row`]); the number is larger than that of every row that was kept before it.
    pub row: u64,
    /// The subject to publish it on.
    pub subject: String,
    /// The id of the message, drawn before the first try.
    pub id: MessageId,
    /// How the payload is compressed, if it is.
    pub encoding: Option<String>,
    /// The exact payload.
    pub payload: Vec<u8>,
}

/// What is kept of it before its payload: a line of JSON.
#[derive(Serialize, Deserialize)]
struct EventLine {
    subject: String,
    id: MessageId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoding: Option<String>,
    /// Of a journal of an earlier version, which had the payload here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

impl EventRow {
    /// As it lies in the store: its line, and the payload as it is.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let line =
            EventLine { subject: self.subject.clone(), id: self.id, encoding: self.encoding.clone(), payload: None };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.payload);
        Ok(bytes)
    }

    pub(crate) fn parse(row: u64, bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        let EventLine { subject, id, encoding, payload } = serde_json::from_slice(line)?;
        let payload = payload.map_or_else(|| rest.get(1..).unwrap_or_default().to_vec(), String::into_bytes);
        Ok(Self { row, subject, id, encoding, payload })
    }
}
