//! Events: records that happened together, sent as one signed batch.
//!
//! A batch is NDJSON: the first line is the head, each further line one record. Plain NATS subscribers read it
//! line by line; the signature covers the exact bytes of all lines.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::WIRE_VERSION;
use crate::id::MessageId;
use crate::name::{NodeName, Token};
use crate::subject::{Kind, Subject};
use crate::time::Timestamp;

/// The most bytes of records in one batch.
pub const BATCH_BYTES_MAX: usize = 64 * 1024;

/// The first line of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventHead {
    /// The wire's version.
    pub v: u8,
    /// Always [`Kind::Event`].
    pub kind: Kind,
    /// The batch's id, also the message's id; a record's id is this, `-` and its number counted from 0.
    pub id: MessageId,
    /// The node that reports.
    pub from: NodeName,
    /// The node that is told.
    pub to: NodeName,
    /// What kind of thing happened.
    pub method: Token,
    /// What it is about.
    pub domain: Token,
    /// When the batch was made, by the reporting node's clock.
    pub created: Timestamp,
    /// How many records follow.
    pub count: u32,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// When it was noticed, by the reporting node's clock.
    pub at: Timestamp,
    /// What happened. For a line of text: `{"message": "the line"}`.
    pub record: Map<String, Value>,
}

/// A batch of events.
#[derive(Debug, Clone, PartialEq)]
pub struct EventBatch {
    /// Who reports what to whom.
    pub head: EventHead,
    /// What happened.
    pub records: Vec<EventRecord>,
}

/// Why bytes are no batch of events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the event batch cannot be read: line {line}: {reason}")]
pub struct EventError {
    line: usize,
    reason: String,
}

impl EventBatch {
    /// The bytes that are signed and sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Writing these values to memory cannot fail: they have text keys and no foreign serializers.
        for line in std::iter::once(serde_json::to_vec(&self.head)).chain(self.records.iter().map(serde_json::to_vec)) {
            bytes.extend(line.unwrap_or_default());
            bytes.push(b'\n');
        }
        bytes
    }

    /// Reads a batch.
    ///
    /// # Errors
    /// [`EventError`] with the number of the line that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, EventError> {
        let wrong = |line: usize, reason: String| EventError { line, reason };
        let mut lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let first = lines.next().ok_or_else(|| wrong(1, "there is none".into()))?;
        let head: EventHead = serde_json::from_slice(first).map_err(|error| wrong(1, error.to_string()))?;
        if head.v != WIRE_VERSION || head.kind != Kind::Event {
            return Err(wrong(1, "not the head of an event batch of this version".into()));
        }
        let records = lines
            .enumerate()
            .map(|(index, line)| serde_json::from_slice(line).map_err(|error| wrong(index + 2, error.to_string())))
            .collect::<Result<Vec<EventRecord>, _>>()?;
        if records.len() != usize::try_from(head.count).unwrap_or(usize::MAX) {
            return Err(wrong(1, format!("it announces {} records, {} follow", head.count, records.len())));
        }
        Ok(Self { head, records })
    }

    /// The subject that it travels on.
    pub fn subject(&self) -> Subject {
        Subject::event(self.head.to.clone(), self.head.method.clone(), self.head.domain.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(lines: &[String]) -> EventBatch {
        EventBatch {
            head: EventHead {
                v: WIRE_VERSION,
                kind: Kind::Event,
                id: MessageId::from_bytes([9; 16]),
                from: NodeName::new("ship1").unwrap(),
                to: NodeName::new("central").unwrap(),
                method: Token::method("syslogforwarding").unwrap(),
                domain: Token::domain("nginx").unwrap(),
                created: Timestamp::from_ms(0),
                count: u32::try_from(lines.len()).unwrap(),
            },
            records: lines
                .iter()
                .map(|line| EventRecord {
                    at: Timestamp::from_ms(1),
                    record: [("message".to_owned(), Value::from(line.as_str()))].into_iter().collect(),
                })
                .collect(),
        }
    }

    #[test]
    fn a_batch_says_how_many_records_follow() {
        let bytes = batch(&["a".into(), "b".into()]).to_bytes();
        let cut = &bytes[..bytes.len() - 60];
        assert!(EventBatch::parse(cut).is_err());
        assert_eq!(EventBatch::parse(&bytes).unwrap().subject().to_string(), "central.event.syslogforwarding.nginx");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(lines in proptest::collection::vec(".{0,60}", 0..20)) {
            let batch = batch(&lines);
            prop_assert_eq!(EventBatch::parse(&batch.to_bytes()), Ok(batch));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(EventBatch::parse(&bytes).is_err());
        }
    }
}
