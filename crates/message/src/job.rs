//! A job: what an operator ordered at once, for one node or for many.
//!
//! A job is stored before any of its orders leaves: first the signed orders in chunks, then the record, put
//! last and with `create`, as the mark that the job is complete. Whoever finds a record can fan the orders
//! out; sending one twice does no harm, since its id is known.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::{JobId, OrderId};
use crate::name::{NodeName, Token};
use crate::sign::PublicKey;
use crate::time::Timestamp;

/// The most bytes of signed orders in one chunk: well below the broker's payload limit of 1 MiB.
pub const CHUNK_BYTES_MAX: usize = 640 * 1024;

/// The key of a chunk in the bucket of jobs. It is named by what is in it, so that two clients that make the same job at
/// the same time do not write over each other's chunks: the record that wins finds its own.
pub fn chunk_key(job: &JobId, digest: &str) -> String {
    format!("{job}.chunk.{}", digest.get(..32).unwrap_or(digest))
}

/// One signed order inside a chunk, with what is needed to send it without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedOrder {
    /// The node that it is for.
    pub node: NodeName,
    /// The node's key, which its replies must be signed with.
    pub key: PublicKey,
    /// The order's id, also the message's id for the broker's deduplication.
    pub id: OrderId,
    /// The exact signed bytes; an order is JSON, hence text.
    pub order: String,
    /// The operator's signature over them; the key stands in the record.
    pub signature: String,
}

/// A part of a job's orders.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OrderChunk {
    /// The orders.
    pub orders: Vec<SealedOrder>,
}

/// The signed record of a job. Its presence means that all of the job's chunks are stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The wire's version.
    pub v: u8,
    /// Always `job`.
    pub kind: JobKind,
    /// The job's id.
    pub job: JobId,
    /// The node that receives the replies.
    pub from: NodeName,
    /// The operator who ordered.
    pub by: String,
    /// What is to be done.
    pub method: Token,
    /// What it is about.
    pub domain: Token,
    /// What the method was given; left out when too large to list.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub args: Option<Value>,
    /// The names of what was sealed to each node beside the arguments; their values are in no record.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub secrets: Vec<String>,
    /// When it was made, by the operator's clock.
    pub created: Timestamp,
    /// Until when a node may pick it up.
    pub expires: Timestamp,
    /// How long one execution may take, in milliseconds.
    pub timeout_ms: u64,
    /// How many nodes it is for.
    pub targets: u32,
    /// SHA-256 of each chunk in hexadecimal, so that the frozen list is under the record's signature.
    pub chunks: Vec<String>,
    /// The only chunk, when it is small enough to travel with the record: one write then stores the job.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub inline: Option<String>,
    /// The job that this one repeats for some of its nodes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry_of: Option<JobId>,
}

/// The `kind` of a job's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// The only one.
    Job,
}
