//! Events: records that happened together, sent as one signed batch.
//!
//! A batch is NDJSON: the first line is the head, each further line one record. Plain NATS subscribers read it
//! line by line; the signature covers the exact bytes of all lines.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::WIRE_VERSION;
use crate::id::{InstanceId, MessageId};
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
    /// The journal that it was kept in before it was sent, and its number there: numbers of one journal only grow, so that a
    /// receiver knows what it has had before. Of a sender who keeps none, neither is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<InstanceId>,
    /// See `journal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<u64>,
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

/// The header in which a node introduces itself to a receiver that cannot look it up: its record as an operator has signed it, a
/// [`SealedDocument`](crate::sign::SealedDocument) as JSON. See [`NodeRecord::introduced`](crate::NodeRecord::introduced).
pub const INTRODUCTION_HEADER: &str = "Steward-Introduction";
/// The header that tells how a batch is compressed. Without it, it is not.
pub const ENCODING_HEADER: &str = "Steward-Encoding";
/// The one compression that there is: a frame of Zstandard (RFC 8878).
pub const ZSTD: &str = "zstd";
/// What is shorter stays as it is: little is gained, and plain subscribers can read it.
pub const PACK_BYTES_MIN: usize = 1024;
/// What a batch may become when it is unpacked. A sender's own bound is far below it.
pub const UNPACKED_BYTES_MAX: usize = 4 << 20;
/// Quick rather than small: what costs most on a link is gone at the first level.
const LEVEL: i32 = 3;

/// Compresses a batch where that pays. Returns the bytes to be signed and sent, and the value of [`ENCODING_HEADER`].
pub fn pack(bytes: Vec<u8>) -> (Vec<u8>, Option<&'static str>) {
    if bytes.len() < PACK_BYTES_MIN {
        return (bytes, None);
    }
    match zstd::bulk::compress(&bytes, LEVEL) {
        Ok(packed) if packed.len() < bytes.len() => (packed, Some(ZSTD)),
        // It does not pay; or there is no memory for it.
        _ => (bytes, None),
    }
}

/// The bytes of a batch as it was before [`pack`].
///
/// # Errors
/// [`EventError`] when it is compressed in another way, damaged, or larger than [`UNPACKED_BYTES_MAX`].
pub fn unpack<'a>(bytes: &'a [u8], encoding: Option<&str>) -> Result<Cow<'a, [u8]>, EventError> {
    let wrong = |reason: String| EventError { line: 1, reason };
    match encoding {
        None => Ok(Cow::Borrowed(bytes)),
        Some(ZSTD) => zstd::bulk::decompress(bytes, UNPACKED_BYTES_MAX)
            .map(Cow::Owned)
            .map_err(|error| wrong(format!("it cannot be unpacked: {error}"))),
        Some(other) => Err(wrong(format!("it is packed with {other:?}, which this version does not know"))),
    }
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
                journal: None,
                row: None,
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

    #[test]
    fn what_pays_is_packed_and_a_bomb_is_not_unpacked() {
        let small = b"{}".to_vec();
        assert_eq!(pack(small.clone()), (small, None));
        let large = batch(&vec!["GET / HTTP/1.1".to_owned(); 200]).to_bytes();
        let (packed, encoding) = pack(large.clone());
        assert!(packed.len() * 5 < large.len() && encoding == Some(ZSTD));
        assert_eq!(unpack(&packed, encoding).unwrap(), large);
        assert_eq!(unpack(&large, None).unwrap(), large);
        let bomb = zstd::bulk::compress(&vec![0; UNPACKED_BYTES_MAX + 1], 1).unwrap();
        assert!(bomb.len() < 4096 && unpack(&bomb, Some(ZSTD)).is_err());
        assert!(unpack(&packed[..packed.len() / 2], Some(ZSTD)).is_err());
        assert!(unpack(&packed, Some("gzip")).unwrap_err().to_string().contains("gzip"));
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
