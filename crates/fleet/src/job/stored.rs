//! Jobs as they are stored: read back, and believed only if an operator signed them.

use bus::Message;
use bus::kv::{JOBS, key_of};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use message::job::chunk_key;
use message::{JobId, JobRecord, NodeName, Order, OrderChunk, PublicKey, SealedOrder, Trust, WIRE_VERSION};

use super::{Gather, JobView};
use crate::connection::Fleet;
use crate::error::FleetError;
use crate::order::{Expected, sha256};

/// How many chunks are read at once.
const CHUNKS_IN_FLIGHT_MAX: usize = 8;

/// A job that is stored, verified from end to end.
pub(crate) struct StoredJob {
    pub(crate) record: JobRecord,
    /// The operator's key that signed the record and the orders.
    pub(crate) signer: PublicKey,
    pub(crate) orders: Vec<SealedOrder>,
}

impl StoredJob {
    pub(super) fn view(&self, gather: Gather) -> JobView {
        self.view_where(|_| true, gather)
    }

    /// A view with this node alone.
    pub(super) fn view_of(&self, node: &NodeName, gather: Gather) -> JobView {
        self.view_where(|order| order.node == *node, gather)
    }

    fn view_where(&self, wanted: impl Fn(&SealedOrder) -> bool, gather: Gather) -> JobView {
        let expected: Vec<Expected> = self.orders.iter().filter(|order| wanted(order)).map(Expected::from).collect();
        // All orders of a job allow the same.
        let max_output = self
            .orders
            .first()
            .and_then(|order| Order::parse(order.order.as_bytes()).ok())
            .map_or(0, |order| order.max_output_bytes);
        JobView::new(self.record.clone(), &expected, max_output, gather)
    }
}

/// The record of a job and who signed it, if that was an operator.
pub(crate) fn open_record(message: &Message, trust: &Trust) -> Result<(JobRecord, PublicKey), FleetError> {
    let key = key_of(&message.subject);
    let doubt = |reason: String| FleetError::Job { job: key.to_owned(), reason };
    let signer = message.signer().map_err(|error| doubt(error.to_string()))?;
    // What was ordered by one who may order no more is still what was ordered then; nodes judge for themselves.
    if !trust.was_operator(&signer, message.stored_at) {
        return Err(doubt(format!("its signer {signer} is no operator of this fleet, or is none any more")));
    }
    let record: JobRecord = serde_json::from_slice(&message.payload).map_err(|error| doubt(error.to_string()))?;
    if record.v != WIRE_VERSION || record.job.as_str() != key {
        return Err(doubt(format!("its record is that of job {} in version {}", record.job, record.v)));
    }
    Ok((record, signer))
}

/// The orders in a chunk, if it is the one that the record names.
fn open_chunk(record: &JobRecord, index: usize, text: &[u8]) -> Result<Vec<SealedOrder>, FleetError> {
    let doubt = |reason: String| FleetError::Job { job: record.job.to_string(), reason };
    if record.chunks.get(index) != Some(&sha256(text)) {
        return Err(doubt(format!("part {index} of its orders is not what the operator signed")));
    }
    let chunk: OrderChunk = serde_json::from_slice(text).map_err(|error| doubt(error.to_string()))?;
    Ok(chunk.orders)
}

impl Fleet {
    /// A stored job with its orders.
    pub(crate) async fn stored_job(&self, job: &JobId) -> Result<StoredJob, FleetError> {
        let Some(message) = self.bus().kv_get(JOBS, job.as_str()).await? else {
            let message = format!("there is no job {job}; `steward job ls` lists the newest ones");
            return Err(FleetError::NoJob { message });
        };
        self.open_job(&message).await
    }

    /// The job whose record `message` is.
    pub(crate) async fn open_job(&self, message: &Message) -> Result<StoredJob, FleetError> {
        let (record, signer) = open_record(message, &self.trust())?;
        let orders = match &record.inline {
            Some(inline) if record.chunks.len() == 1 => open_chunk(&record, 0, inline.as_bytes())?,
            _ => {
                let parts: Vec<Vec<SealedOrder>> = stream::iter(0..record.chunks.len())
                    .map(|index| self.chunk(&record, index))
                    .buffered(CHUNKS_IN_FLIGHT_MAX)
                    .try_collect()
                    .await?;
                parts.concat()
            }
        };
        if u32::try_from(orders.len()).ok() != Some(record.targets) {
            let reason = format!("it is for {} nodes, but {} orders are stored", record.targets, orders.len());
            return Err(FleetError::Job { job: record.job.to_string(), reason });
        }
        Ok(StoredJob { record, signer, orders })
    }

    async fn chunk(&self, record: &JobRecord, index: usize) -> Result<Vec<SealedOrder>, FleetError> {
        let key = chunk_key(&record.job, record.chunks.get(index).map_or("", String::as_str));
        let text = self.bus().kv_get(JOBS, &key).await?.map_or_else(Bytes::new, |message| message.payload);
        open_chunk(record, index, &text)
    }
}
