//! Finishing what a client began: jobs that are stored, and whose orders are not all with the broker.
//!
//! A client that dies between the record and the last order leaves such a job. A station looks through the records in
//! the order in which they were stored, once their client has had its time, and sends what may be missing. It signs
//! nothing: the orders lie there as the operator signed them, and no node runs one twice.

use std::time::Duration;

use bus::kv::{JOBS, META, is_deletion};
use bus::{Message, Scan, Start};
use bytes::Bytes;
use message::{JobId, JobRecord, Order, OrderId, ReplySubject, Timestamp};

use super::{EXPIRES_MAX, PATIENCE};
use crate::connection::Fleet;
use crate::error::FleetError;
use crate::job::{REPLIES, StoredJob, open_record};

/// Where the stations keep how far the records are looked through: a sequence of the bucket's stream.
const PROGRESS_KEY: &str = "lease.finish";
/// The stream of orders.
const COMMANDS: &str = "COMMANDS";
/// At most so many records, and about so many bytes of them, are looked at in one round.
const ROUND_MAX: usize = 512;
const ROUND_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What came of a round.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Finished {
    /// The jobs whose orders were sent.
    pub sent: Vec<JobId>,
    /// How many records were looked at.
    pub looked_at: usize,
    /// Whether there is more to look at now.
    pub more: bool,
}

impl Fleet {
    /// Looks through the jobs that were stored at least `patience` ago and not looked at before, and sends the orders
    /// of those that may not have been sent. At most a bounded number in one round.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked, or does not take the orders; the next round goes on there.
    pub async fn finish_jobs(&self, patience: Duration) -> Result<Finished, FleetError> {
        let start = match self.bus().kv_get(META, PROGRESS_KEY).await? {
            Some(stored) => {
                let next = std::str::from_utf8(&stored.payload).ok().and_then(|text| text.trim().parse().ok());
                next.map_or(Start::First, Start::Sequence)
            }
            None => Start::First,
        };
        let mut scan = Scan::open(self.bus(), &format!("KV_{JOBS}"), &[format!("$KV.{JOBS}.*")], start).await?;
        let now = scan.opened_at();
        let (mut finished, mut next) = (Finished::default(), None);
        // Read first and looked at later: that may take longer than the broker keeps a reader that asks for nothing.
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(message) = scan.next().await? {
            // By the broker's clock alone, as both times are its own.
            if message.stored_at.plus(patience) > now {
                break;
            }
            if records.len() >= ROUND_MAX || bytes >= ROUND_BYTES_MAX {
                finished.more = true;
                break;
            }
            bytes += message.payload.len();
            records.push(message);
        }
        scan.close().await;
        let mut failed = None;
        for message in records {
            finished.looked_at += 1;
            match self.finish(&message, now).await {
                Ok(sent) => finished.sent.extend(sent),
                // What cannot be believed will not be more believable next time.
                Err(FleetError::Job { job, reason }) => tracing::debug!(job, reason, "a job is passed over"),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            next = Some(message.sequence + 1);
        }
        if let Some(next) = next {
            self.bus().kv_put(META, PROGRESS_KEY, Bytes::from(format!("{next}")), None).await?;
        }
        failed.map_or(Ok(finished), Err)
    }

    /// Sends the orders of the job whose record `message` is, if that may be missing.
    async fn finish(&self, message: &Message, now: Timestamp) -> Result<Option<JobId>, FleetError> {
        // Nothing that was stored so long ago can be picked up any more.
        if is_deletion(message) || message.stored_at.plus(EXPIRES_MAX) < now {
            return Ok(None);
        }
        let (record, _) = open_record(message, &self.trust())?;
        if record.expires <= now || (record.targets > 1 && self.is_marked_sent(&record.job).await?) {
            return Ok(None);
        }
        let stored = self.open_job(message).await?;
        if record.targets == 1 && self.was_sent(&stored, message.stored_at).await? {
            return Ok(None);
        }
        tracing::info!(job = %record.job, targets = record.targets, "a job is finished for its client");
        let StoredJob { record, signer, orders } = stored;
        self.fan_out(&record, &signer, orders).await?;
        Ok(Some(record.job))
    }

    /// Whether somebody noted that all orders of a job for several nodes are with the broker.
    pub(super) async fn is_marked_sent(&self, job: &JobId) -> Result<bool, FleetError> {
        Ok(self.bus().kv_get(JOBS, &format!("{job}.sent")).await?.is_some())
    }

    /// Whether the only order of a job is with the broker: its node has answered, or the order is found.
    async fn was_sent(&self, job: &StoredJob, stored_at: Timestamp) -> Result<bool, FleetError> {
        let record: &JobRecord = &job.record;
        let Some(only) = job.orders.first() else { return Ok(true) };
        let answer =
            ReplySubject { sender: record.from.clone(), job: record.job.clone(), node: only.node.clone() }.to_string();
        if self.bus().last(REPLIES, &answer).await?.is_some() {
            return Ok(true);
        }
        let order = Order::parse(only.order.as_bytes())
            .map_err(|error| FleetError::Job { job: record.job.to_string(), reason: error.to_string() })?;
        let subject = order.subject().to_string();
        match self.bus().last(COMMANDS, &subject).await? {
            None => return Ok(false),
            Some(last) if has_id(&last, only.id) => return Ok(true),
            Some(last) if last.stored_at < stored_at => return Ok(false),
            Some(_) => {}
        }
        // Its client sent it soon after it had stored the job, or never: what waits behind need not be read.
        let last = stored_at.plus(PATIENCE * 2);
        let mut scan = Scan::open(self.bus(), COMMANDS, &[subject], Start::Time(stored_at)).await?;
        let mut found = false;
        while !found && let Some(message) = scan.next().await? {
            found = has_id(&message, only.id);
            if message.stored_at > last {
                break;
            }
        }
        scan.close().await;
        Ok(found)
    }
}

fn has_id(message: &Message, id: OrderId) -> bool {
    message.header("Nats-Msg-Id") == Some(id.to_string().as_str())
}
