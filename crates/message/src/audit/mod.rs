//! The audit log: who ordered what, how each node decided, and who changed whom is trusted.
//!
//! Every writer (an operator's key, a node's journal) has a chain of its own: each entry holds the SHA-256 of the exact
//! bytes of the one before, and is signed by the writer. What flows in are acts; what flows out are entries, and
//! ([`verify`]) where a chain was cut or altered. Pure.

mod verify;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::WIRE_VERSION;
use crate::id::{InstanceId, JobId, OrderId};
use crate::name::{NodeName, Token};
use crate::sign::{PublicKey, Seal};
use crate::state::State;
use crate::time::Timestamp;

pub use verify::{
    Believed, ChainReport, Fault, Grounds, Head, Opened, Report, Strange, Unaccounted, believe, open, verify,
};

/// The chain of an operator's key.
pub const OPERATOR_CHAIN: &str = "operator";
/// The largest entry.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024;
/// How many acts an entry of a node holds at most.
pub const ACTS_MAX: usize = 64;
/// Arguments of an order up to this size are written out.
const ARGS_BYTES_MAX: usize = 4 * 1024;
/// How much of a sentence is kept.
const TEXT_CHARS_MAX: usize = 400;
/// How much is kept of the subject of a message that was discarded.
const SAMPLE_SUBJECT_CHARS_MAX: usize = 200;
/// How much is kept of the key, and of the id, that it says to have.
const SAMPLE_WORD_CHARS_MAX: usize = 64;
/// How many nodes of an order are named.
const NODES_NAMED_MAX: usize = 16;

/// The `kind` of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// The only one.
    Audit,
}

/// One link of a chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The wire's version.
    pub v: u8,
    /// Always `audit`.
    pub kind: EntryKind,
    /// Who writes it: an operator or a node, by name. The key is that of the signature.
    pub writer: String,
    /// Which chain of this writer: [`OPERATOR_CHAIN`], or the instance of a node's journal.
    pub chain: String,
    /// Its number in the chain, from 1.
    pub seq: u64,
    /// The one before; left out in the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prev: Option<Link>,
    /// When it was written, by the writer's clock.
    pub at: Timestamp,
    /// What it tells.
    pub acts: Vec<Act>,
}

/// The entry before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The SHA-256 of its exact bytes, in hexadecimal.
    pub sha256: String,
    /// When it was written: so that a reader can tell what has aged away from what was taken away.
    pub at: Timestamp,
}

/// Where a chain ends, as far as somebody knows: what the next entry links to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// The number of the last entry.
    pub seq: u64,
    /// The SHA-256 of its exact bytes.
    pub sha256: String,
    /// When it was written.
    pub at: Timestamp,
}

impl Tip {
    /// The end of a chain whose last entry is `entry`, which has these bytes.
    pub fn of(entry: &Entry, bytes: &[u8]) -> Self {
        Self { seq: entry.seq, sha256: sha256(bytes), at: entry.at }
    }
}

/// What somebody did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub enum Act {
    /// An operator ordered something: also a cancel, an approval, a retry.
    Order {
        /// The job.
        job: JobId,
        /// What is to be done.
        method: Token,
        /// What it is about.
        domain: Token,
        /// With what: readable but for environment and input, which stand as digests.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        args: Option<Value>,
        /// For how many nodes.
        targets: u32,
        /// The first of them.
        nodes: Vec<NodeName>,
        /// The SHA-256 of the job's record, which holds the digests of all that was ordered of each node.
        record: String,
        /// The job that it repeats.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        retry_of: Option<JobId>,
    },
    /// An operator changed who is trusted, or what they may.
    Change {
        /// What was done: `node revoke`, `operator add`, `policy apply`, …
        what: String,
        /// To whom or what.
        on: String,
        /// The key that counts from now on, or no more.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        key: Option<PublicKey>,
        /// More about it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        note: Option<String>,
    },
    /// A node decided about an order.
    Decision {
        /// The order.
        order: OrderId,
        /// Its job.
        job: JobId,
        /// Who signed it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        by: Option<PublicKey>,
        /// What was to be done.
        method: Token,
        /// What it is about.
        domain: Token,
        /// What became of it then: `delivered` for what was accepted, `rejected`, `expired`, …
        state: State,
        /// The policy's rule that decided.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        rule: Option<String>,
        /// The version of that policy.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        policy: Option<u64>,
        /// Why.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        reason: Option<String>,
        /// When, by the node's clock.
        at: Timestamp,
    },
    /// A node discarded messages since its last entry, none of which it answered.
    Discarded {
        /// Why: the word that it is counted under.
        reason: String,
        /// How many.
        count: u64,
        /// The last one of them, as an example.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        sample: Option<Sample>,
    },
    /// A node goes by something newer: the list of operators, the policy.
    Heard {
        /// `operators` or `policy`.
        what: String,
        /// Its serial or version.
        version: u64,
    },
    /// A node's journal is new, and its chain begins.
    Begun {
        /// The journal.
        instance: InstanceId,
    },
    /// Of a later version.
    #[serde(other)]
    Unknown,
}

/// A message that was discarded, by what it said of itself: nothing of it is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// On which subject it came.
    pub subject: String,
    /// The key that it says has signed it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
    /// The id that it says to have (`Nats-Msg-Id`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<String>,
    /// When it was discarded, by the node's clock.
    pub at: Timestamp,
}

impl Sample {
    /// Takes a message's word for it, but no more of it than has room: whoever floods a node must not fill the log.
    pub fn new(subject: &str, key: Option<&str>, id: Option<&str>, at: Timestamp) -> Self {
        // A sign that JSON spells with six would make an entry larger than it may be.
        let plain = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
        let cut = |text: &str, chars: usize| text.chars().take(chars).map(plain).collect();
        Self {
            subject: cut(subject, SAMPLE_SUBJECT_CHARS_MAX),
            key: key.map(|key| cut(key, SAMPLE_WORD_CHARS_MAX)),
            id: id.map(|id| cut(id, SAMPLE_WORD_CHARS_MAX)),
            at,
        }
    }
}

impl Act {
    /// An order, with what of its arguments may be read by everybody who reads the log.
    pub fn order<'a>(
        record: &crate::job::JobRecord,
        record_bytes: &[u8],
        nodes: impl Iterator<Item = &'a NodeName>,
    ) -> Self {
        Self::Order {
            job: record.job.clone(),
            method: record.method.clone(),
            domain: record.domain.clone(),
            args: record.args.as_ref().map(readable),
            targets: record.targets,
            nodes: nodes.take(NODES_NAMED_MAX).cloned().collect(),
            record: sha256(record_bytes),
            retry_of: record.retry_of.clone(),
        }
    }

    /// A change of trust.
    pub fn change(what: &str, on: impl Into<String>) -> Self {
        Self::Change { what: what.to_owned(), on: bounded(&on.into()), key: None, note: None }
    }

    /// The same with the key that it is about.
    #[must_use]
    pub fn of_key(mut self, new: &PublicKey) -> Self {
        if let Self::Change { key, .. } = &mut self {
            *key = Some(new.clone());
        }
        self
    }

    /// The same with more about it.
    #[must_use]
    pub fn noting(mut self, text: impl Into<String>) -> Self {
        if let Self::Change { note, .. } = &mut self {
            *note = Some(bounded(&text.into()));
        }
        self
    }

    /// The word for it in lists and filters.
    pub fn word(&self) -> &str {
        match self {
            Self::Order { .. } => "order",
            Self::Change { what, .. } => what,
            Self::Decision { state, .. } => state.as_str(),
            Self::Discarded { .. } => "discarded",
            Self::Heard { .. } => "heard",
            Self::Begun { .. } => "begun",
            Self::Unknown => "unknown",
        }
    }
}

/// Arguments as everybody may read them: the values of `env`, what is fed to a program and what is sealed stand as digests,
/// and what is too long as one digest.
fn readable(args: &Value) -> Value {
    let digest = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        Value::String(format!("sha256:{}", sha256(text.as_bytes())))
    };
    let mut told = args.clone();
    if let Some(fields) = told.as_object_mut() {
        for (name, value) in fields.iter_mut() {
            match (name.as_str(), value) {
                ("env" | "headers" | "secrets", Value::Object(values)) => {
                    values.values_mut().for_each(|value| *value = digest(value));
                }
                ("env" | "headers" | "secrets" | "stdin_base64", value) if !value.is_null() => *value = digest(value),
                _ => {}
            }
        }
    }
    if told.to_string().len() > ARGS_BYTES_MAX {
        return json!({"sha256": sha256(args.to_string().as_bytes())});
    }
    told
}

/// A sentence as it goes into an entry: cut, if it is long.
pub fn bounded(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

/// Why a text is no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Too long.
    #[error("it has {bytes} bytes, of {ENTRY_BYTES_MAX} that are possible")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// Something else than an entry.
    #[error("it is no entry of the audit log: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
}

impl Entry {
    /// The entry behind `tip`, or the first one of its chain.
    pub fn after(tip: Option<&Tip>, (writer, chain): (&str, &str), at: Timestamp, acts: Vec<Act>) -> Self {
        Self {
            v: WIRE_VERSION,
            kind: EntryKind::Audit,
            writer: writer.to_owned(),
            chain: chain.to_owned(),
            seq: tip.map_or(0, |tip| tip.seq) + 1,
            prev: tip.map(|tip| Link { sha256: tip.sha256.clone(), at: tip.at }),
            at,
            acts,
        }
    }

    /// Reads one. Its signature holds already.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, EntryError> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(EntryError::TooLarge { bytes: bytes.len() });
        }
        let wrong = |reason: String| EntryError::Malformed { reason };
        let entry: Self = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if entry.v != WIRE_VERSION {
            return Err(wrong(format!("it is of version {}", entry.v)));
        }
        if entry.seq == 0 || (entry.seq == 1) != entry.prev.is_none() {
            return Err(wrong(
                "the first entry of a chain has number 1 and none before it, all others have one".into(),
            ));
        }
        Ok(entry)
    }

    /// The exact bytes to sign and store.
    ///
    /// # Errors
    /// [`EntryError`] when it is too large.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EntryError> {
        let bytes = serde_json::to_vec(self).map_err(|error| EntryError::Malformed { reason: error.to_string() })?;
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(EntryError::TooLarge { bytes: bytes.len() });
        }
        Ok(bytes)
    }
}

/// Where the entries of a chain are stored.
pub fn subject(writer: &str, key: &PublicKey, chain: &str) -> String {
    format!("{writer}.audit.{key}.{chain}")
}

/// An entry as it is stored, with all that a third party needs to verify it: a line of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When the broker stored it.
    pub stored_at: Timestamp,
    /// On which subject.
    pub subject: String,
    /// Who signed it, and the proof; left out where there was none.
    #[serde(flatten)]
    pub seal: Option<Seal>,
    /// The exact text of the entry.
    pub entry: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_discarded_messages_always_has_room_in_an_entry() {
        let nasty: String = "\u{1}\"\\é".repeat(10_000);
        let sample = Sample::new(&nasty, Some(&nasty), Some(&nasty), Timestamp::from_ms(0));
        let discarded =
            |_| Act::Discarded { reason: "wrongly_signed".into(), count: u64::MAX, sample: Some(sample.clone()) };
        // More reasons than there are, beside what an agent fills an entry with (48 KiB).
        let acts: Vec<Act> = (0..12).map(discarded).collect();
        let entry = Entry::after(None, ("ship1", "3333"), Timestamp::from_ms(0), acts);
        assert!(entry.to_bytes().unwrap().len() < ENTRY_BYTES_MAX - 50 * 1024);
    }

    #[test]
    fn an_entry_without_samples_is_still_read() {
        let act: Act = serde_json::from_str(r#"{"act":"discarded","reason":"unsigned","count":2}"#).unwrap();
        assert_eq!(act, Act::Discarded { reason: "unsigned".into(), count: 2, sample: None });
    }
}
