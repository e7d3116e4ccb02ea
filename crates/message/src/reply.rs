//! A reply: what a node says about an order, with the whole history so far and, at the end, the outcome.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::WIRE_VERSION;
use crate::id::{JobId, OrderId};
use crate::name::{NodeName, Token};
use crate::state::{History, State};

/// The most bytes of `data` that an outcome may carry; what a method has beyond that belongs on its output.
pub const DATA_BYTES_MAX: usize = 256 * 1024;

/// Header of an output message: the order that it belongs to.
pub const OUTPUT_ORDER_HEADER: &str = "Steward-Order";
/// Header of an output message: `stdout` or `stderr`.
pub const OUTPUT_STREAM_HEADER: &str = "Steward-Stream";
/// Header of an output message: its number, counted from 0 over both streams, in order of appearance.
pub const OUTPUT_SEQUENCE_HEADER: &str = "Steward-Sequence";

/// How much a stream put out, and the proof of what was kept of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputTally {
    /// Bytes that were kept and sent.
    pub bytes: u64,
    /// Bytes that the program really wrote.
    pub total_bytes: u64,
    /// SHA-256 over the kept bytes, in hexadecimal.
    pub sha256: String,
}

impl OutputTally {
    /// Whether some of it was cut off.
    pub const fn truncated(&self) -> bool {
        self.bytes < self.total_bytes
    }
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The exit code of the program, where there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit_code: Option<i32>,
    /// The signal that ended it, where one did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<i32>,
    /// Standard output.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stdout: Option<OutputTally>,
    /// Standard error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stderr: Option<OutputTally>,
    /// How many output messages were sent for both streams together.
    #[serde(default)]
    pub output_messages: u32,
    /// What a method answers beyond output.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data: Option<Value>,
}

/// The signed body of a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The wire's version.
    pub v: u8,
    /// Always `reply`.
    pub kind: ReplyKind,
    /// The order that it answers.
    pub order: OrderId,
    /// The job that the order belongs to.
    pub job: JobId,
    /// The node that answers.
    pub node: NodeName,
    /// As in the order.
    pub method: Token,
    /// As in the order.
    pub domain: Token,
    /// The number of the last step of the history, counted from 1.
    pub step: u32,
    /// Everything that happened so far.
    pub history: History,
    /// Why, where the state needs a reason: a sentence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// How it ended, once it has run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub outcome: Option<Outcome>,
    /// By how many milliseconds the node's clock, which the history goes by, was ahead of the broker's when this was
    /// said; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clock_error_ms: Option<i64>,
}

/// The `kind` of a reply's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplyKind {
    /// The only one.
    Reply,
}

/// Why a body is no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the reply cannot be read: {reason}")]
pub struct ReplyError {
    reason: String,
}

impl Reply {
    /// Reads the body of a reply. The signature over `bytes` has to be checked before.
    ///
    /// # Errors
    /// [`ReplyError`] when it is not a reply of this version, or its history is not a legal one.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReplyError> {
        let reply: Self = serde_json::from_slice(bytes).map_err(|error| ReplyError { reason: error.to_string() })?;
        if reply.v != WIRE_VERSION {
            return Err(ReplyError { reason: format!("it speaks version {} of the wire", reply.v) });
        }
        if reply.step != reply.history.step() || reply.step == 0 {
            return Err(ReplyError { reason: format!("its step {} does not fit its history", reply.step) });
        }
        Ok(reply)
    }

    /// The state after the last step.
    pub fn state(&self) -> State {
        self.history.state()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::order::tests::order;
    use crate::time::Timestamp;

    fn reply() -> Reply {
        let order = order();
        let mut history = History::new();
        history.push(State::Delivered, Timestamp::from_ms(1)).unwrap();
        Reply {
            v: WIRE_VERSION,
            kind: ReplyKind::Reply,
            order: order.id,
            job: order.job,
            node: order.to.name,
            method: order.method,
            domain: order.domain,
            step: 1,
            history,
            reason: None,
            outcome: None,
            clock_error_ms: None,
        }
    }

    #[test]
    fn a_reply_reads_back_as_written() {
        assert_eq!(Reply::parse(&serde_json::to_vec(&reply()).unwrap()), Ok(reply()));
    }

    #[test]
    fn a_step_that_does_not_fit_the_history_is_refused() {
        let wrong = Reply { step: 2, ..reply() };
        assert!(Reply::parse(&serde_json::to_vec(&wrong).unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Reply::parse(&bytes).is_err());
        }
    }
}
