//! What has come on the stream of events, for those who keep what they receive.

use bytes::Bytes;
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::WIRE_VERSION;
use crate::event::{EventHead, unpack};
use crate::subject::{Kind, Subject};
use crate::time::Timestamp;

/// The method of events that could not be used as what they were.
pub const DEAD_LETTER: &str = "deadletter";
/// So much of what could not be used is kept.
const DEAD_LETTER_BYTES_MAX: usize = 16 * 1024;

/// A message of the stream of events, for one who keeps what he receives.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When the broker stored it.
    pub stored: Timestamp,
    /// The subject that it came on.
    pub subject: String,
    /// The exact payload.
    pub payload: Bytes,
    /// What is in it, if a node of the fleet, or an operator for the station, has signed it; else the reason why not.
    pub batch: Result<ReceivedBatch, String>,
}

/// A batch of which it is proven who reports it.
#[derive(Debug, Clone)]
pub struct ReceivedBatch {
    /// Who reports what to whom.
    pub head: EventHead,
    /// The records, each a line of JSON: `{"at": …, "record": {…}}`.
    pub records: Bytes,
}

impl ReceivedBatch {
    /// Opens what came on `subject`, packed as `encoding` says (the value of [`ENCODING_HEADER`](crate::event::ENCODING_HEADER)).
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn open(payload: &[u8], encoding: Option<&str>, subject: &str) -> Result<Self, String> {
        let bytes = unpack(payload, encoding).map_err(|error| error.to_string())?;
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it is no batch of events")?;
        let (head, rest) = bytes.split_at(end);
        let head: EventHead =
            serde_json::from_slice(head).map_err(|error| format!("it is no batch of events: {error}"))?;
        if head.v != WIRE_VERSION || head.kind != Kind::Event {
            return Err("it is no batch of events of this version".into());
        }
        if Subject::event(head.to.clone(), head.method.clone(), head.domain.clone()).to_string() != subject {
            return Err("it was made for another subject".into());
        }
        Ok(Self { head, records: Bytes::copy_from_slice(rest.get(1..).unwrap_or_default()) })
    }

    /// The records, one by one.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let (mut begin, ends) = (0, memchr::memchr_iter(b'\n', &self.records).chain([self.records.len()]));
        let lines =
            ends.map(move |end| self.records.get(std::mem::replace(&mut begin, end + 1)..end).unwrap_or_default());
        lines.filter(|line| !line.is_empty())
    }
}

impl Received {
    /// What is told of one that cannot be used: the record of a dead letter.
    pub fn letter(&self, reason: &str) -> Value {
        let payload = self.payload.get(..self.payload.len().min(DEAD_LETTER_BYTES_MAX)).unwrap_or_default();
        json!({
            "message": reason,
            "subject": self.subject,
            "sequence": self.sequence,
            "stored": self.stored,
            "payload_base64": BASE64.encode(payload),
            "payload_bytes": self.payload.len(),
        })
    }
}
