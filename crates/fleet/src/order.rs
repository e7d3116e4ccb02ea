//! Ordering: one signed order for each target, stored as a job before the first one leaves.
//!
//! Chunks first, then the record by `create`, as the mark that the job is complete; then the orders, each on its own
//! subject under its own id. Whatever breaks off in between is made good by sending again: no node runs an order
//! twice. When all orders of a job with several targets are with the broker, key `<job>.sent` says so; a job for one
//! node does without, to save the write.

mod again;
mod finish;
mod once;
mod pack;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bus::kv::JOBS;
use bus::{BusError, Headers, clock};
use bytes::Bytes;
use futures::{StreamExt, stream};
use message::audit::Act;
use message::job::chunk_key;
use message::{JobId, JobRecord, NodeName, OrderId, PublicKey, Seal, SealedOrder, Secrets, Subject, Token};
use serde_json::Value;
use tokio::time::Instant;

use crate::connection::Fleet;
use crate::error::FleetError;
use crate::nodes::Node;
pub use again::{ApprovePlan, CancelPlan, RETRIED, RetryPlan};
pub use finish::Finished;
pub(crate) use pack::sha256;
use pack::{Packed, Plan};

/// How many orders are on their way to the broker at once.
const IN_FLIGHT_MAX: usize = 256;
/// Up to how many orders are signed without a thread of their own: that takes less than starting one.
const SIGNED_HERE_MAX: usize = 16;
/// How many chunks are.
const CHUNKS_IN_FLIGHT_MAX: usize = 8;
/// How long the broker may be away while a job is stored, and again while its orders are sent.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The longest wait between two attempts.
const RETRY_DELAY_MAX_MS: u64 = 2_000;
/// How far ahead an order may expire: the broker keeps orders for 30 days more, for the node to report `expired`.
const EXPIRES_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What is to be done, on whichever nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct OrderRequest {
    /// What is to be done.
    pub method: Token,
    /// What it is about.
    pub domain: Token,
    /// What the method needs.
    pub args: Value,
    /// How long one execution may take.
    pub timeout: Duration,
    /// How long an unreachable node may take to pick it up.
    pub expires: Duration,
    /// How many bytes of each output stream are kept.
    pub max_output: u64,
}

/// Under which terms something is ordered. None, usually.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// Of the orders that wait at a node under this key, only the newest is to run.
    pub supersede: Option<Token>,
    /// The job that this one repeats for some of its nodes.
    pub retry_of: Option<JobId>,
    /// Ordered once, however often it is asked for under this key.
    pub idempotency_key: Option<String>,
    /// The arguments of single nodes, where they are not those of all.
    pub own_args: BTreeMap<NodeName, Value>,
    /// What is sealed to each node, for the program that is run there.
    pub secrets: Secrets,
}

/// One entry of a job's frozen list: who must answer, signing with which key, to which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) node: NodeName,
    pub(crate) key: PublicKey,
    pub(crate) order: OrderId,
}

impl From<&SealedOrder> for Expected {
    fn from(order: &SealedOrder) -> Self {
        Self { node: order.node.clone(), key: order.key.clone(), order: order.id }
    }
}

/// A job that is stored and sent.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedJob {
    /// Its id.
    pub job: JobId,
    /// Its record.
    pub record: JobRecord,
    /// For whom it is.
    pub targets: Vec<NodeName>,
    /// Whether it had been ordered before, under the same idempotency key.
    pub known: bool,
    pub(crate) expected: Vec<Expected>,
    pub(crate) max_output: u64,
}

impl Fleet {
    /// Orders: stores the job, then sends its orders. A job is ordered wholly or not at all.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when it is too large or its times make no sense: nothing is stored then;
    /// [`FleetError::NotAllSent`] when it is stored but the broker went away meanwhile.
    pub async fn order(&self, request: &OrderRequest, targets: &[Node]) -> Result<PlacedJob, FleetError> {
        self.order_under(request, targets, &Terms::default()).await
    }

    /// The same under terms.
    ///
    /// # Errors
    /// As [`Fleet::order`]; [`FleetError::Usage`] also when something else was ordered under the idempotency key.
    pub async fn order_under(
        &self,
        request: &OrderRequest,
        targets: &[Node],
        terms: &Terms,
    ) -> Result<PlacedJob, FleetError> {
        self.order_as(&self.job_under(terms)?, request, targets, terms).await
    }

    /// The id of the next job under these terms.
    pub(crate) fn job_under(&self, terms: &Terms) -> Result<JobId, FleetError> {
        match &terms.idempotency_key {
            None => Ok(clock::job_id(self.now())),
            Some(key) => once::job_of_key(key, &self.key()),
        }
    }

    pub(crate) async fn order_as(
        &self,
        job: &JobId,
        request: &OrderRequest,
        targets: &[Node],
        terms: &Terms,
    ) -> Result<PlacedJob, FleetError> {
        check(request, targets)?;
        let by = self.signing_operator()?;
        let created = self.now();
        let from = self.context().node.clone();
        if let Some(key) = &terms.idempotency_key
            && let Some(placed) = self.ordered_before(job, key, request, targets, terms).await?
        {
            return Ok(placed);
        }
        let plan = Plan { request: request.clone(), terms: terms.clone(), job: job.clone(), from, by, created };
        let all = targets;
        let mut known = std::collections::HashSet::new();
        let targets: Vec<_> = targets
            .iter()
            .filter(|node| known.insert(&node.record.name))
            .map(|node| (node.record.name.clone(), node.record.key.clone(), clock::order_id()))
            .collect();
        let credentials = self.credentials().clone();
        let packed = if targets.len() <= SIGNED_HERE_MAX {
            plan.pack(targets, credentials.pair())?
        } else {
            // Ten thousand signatures take a while: not on a thread that serves others.
            tokio::task::spawn_blocking(move || plan.pack(targets, credentials.pair()))
                .await
                .map_err(|error| FleetError::signing(&error))??
        };
        // Both leave at once, and first what is written down: no order leaves before both are stored.
        let names = packed.orders.iter().map(|order| &order.node);
        let written = self.record(Act::order(&packed.record, &packed.bytes, names));
        let (written, stored) = tokio::join!(written, self.store(&packed));
        if let (Err(error), Ok(())) = (written.as_ref(), stored.as_ref()) {
            // Else a station would send it: what is not written down is not ordered.
            self.bus().kv_delete(JOBS, job.as_str()).await?;
            tracing::debug!(%error, %job, "the job is taken back");
        }
        written?;
        match (stored, &terms.idempotency_key) {
            // Somebody else with the same key was faster.
            (Err(FleetError::Bus(BusError::Conflict { what })), Some(key)) => {
                let placed = self.ordered_before(job, key, request, all, terms).await?;
                return placed.ok_or(FleetError::Bus(BusError::Conflict { what }));
            }
            (stored, _) => stored?,
        }
        let expected: Vec<Expected> = packed.orders.iter().map(Expected::from).collect();
        self.fan_out(&packed.record, &packed.seal.key, packed.orders).await?;
        Ok(PlacedJob {
            job: packed.record.job.clone(),
            targets: expected.iter().map(|expected| expected.node.clone()).collect(),
            record: packed.record,
            known: false,
            expected,
            max_output: request.max_output,
        })
    }

    /// The job that was ordered before under an idempotency key, if there is one; sees to it that its orders are sent.
    async fn ordered_before(
        &self,
        job: &JobId,
        key: &str,
        request: &OrderRequest,
        targets: &[Node],
        terms: &Terms,
    ) -> Result<Option<PlacedJob>, FleetError> {
        let Some(message) = self.bus().kv_get(JOBS, job.as_str()).await? else { return Ok(None) };
        let stored = self.open_job(&message).await?;
        let targets: BTreeSet<NodeName> = targets.iter().map(|node| node.name().clone()).collect();
        if let Some(difference) = once::difference(&stored, &self.key(), request, terms, &targets)? {
            return Err(FleetError::usage(format!(
                "under the idempotency key {key:?} job {job} was ordered before, with {difference}: give another key to \
                 order something else, or the same command to go on with that job"
            )));
        }
        let expected: Vec<Expected> = stored.orders.iter().map(Expected::from).collect();
        let record = stored.record.clone();
        if record.targets == 1 || !self.is_marked_sent(job).await? {
            self.fan_out(&stored.record, &stored.signer, stored.orders).await?;
        }
        Ok(Some(PlacedJob {
            job: record.job.clone(),
            targets: expected.iter().map(|expected| expected.node.clone()).collect(),
            record,
            known: true,
            expected,
            max_output: request.max_output,
        }))
    }

    /// Sends the orders of a stored job again; those that arrived before do no harm. Returns how many were sent.
    ///
    /// # Errors
    /// [`FleetError::NotAllSent`] when the broker does not take them all.
    pub async fn send_again(&self, job: &JobId) -> Result<usize, FleetError> {
        let stored = self.stored_job(job).await?;
        let count = stored.orders.len();
        self.fan_out(&stored.record, &stored.signer, stored.orders).await?;
        Ok(count)
    }

    async fn store(&self, packed: &Packed) -> Result<(), FleetError> {
        let deadline = Instant::now() + PATIENCE;
        let job = &packed.record.job;
        let mut chunks = stream::iter(&packed.chunks)
            .map(|chunk| async move {
                let key = chunk_key(job, &sha256(chunk));
                retrying(deadline, || self.bus().kv_put(JOBS, &key, chunk.clone(), None)).await
            })
            .buffer_unordered(CHUNKS_IN_FLIGHT_MAX);
        while let Some(stored) = chunks.next().await {
            stored?;
        }
        let create = || self.bus().kv_put_if(JOBS, job.as_str(), packed.bytes.clone(), Some(&packed.seal), 0);
        match retrying(deadline, create).await {
            Ok(_) => Ok(()),
            // The answer to an earlier attempt was lost: what stands there must be ours, word for word.
            Err(BusError::Conflict { what }) => match self.bus().kv_get(JOBS, job.as_str()).await? {
                Some(stored) if stored.payload == packed.bytes => Ok(()),
                _ => Err(BusError::Conflict { what }.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Sends orders, and notes when all are with the broker.
    async fn fan_out(
        &self,
        record: &JobRecord,
        signer: &PublicKey,
        orders: Vec<SealedOrder>,
    ) -> Result<(), FleetError> {
        let deadline = Instant::now() + PATIENCE;
        let targets = orders.len();
        let mut sent = stream::iter(orders)
            .map(|order| self.send(record, signer, order, deadline))
            .buffer_unordered(IN_FLIGHT_MAX);
        let (mut unsent, mut reason) = (0, None);
        while let Some(result) = sent.next().await {
            if let Err(error) = result {
                unsent += 1;
                reason.get_or_insert(error);
            }
        }
        if let Some(error) = reason {
            let reason = error.to_string();
            return Err(FleetError::NotAllSent { job: record.job.clone(), unsent, targets, reason });
        }
        if targets > 1
            && let Err(error) =
                self.bus().kv_put(JOBS, &format!("{}.sent", record.job), Bytes::from_static(b"{}"), None).await
        {
            // Without the mark somebody may send them once more, which does no harm.
            tracing::warn!(job = %record.job, %error, "all orders are sent, but that could not be noted");
        }
        Ok(())
    }

    async fn send(
        &self,
        record: &JobRecord,
        signer: &PublicKey,
        order: SealedOrder,
        deadline: Instant,
    ) -> Result<(), BusError> {
        let subject = Subject::command(order.node, record.method.clone(), record.domain.clone()).to_string();
        let seal = Seal { key: signer.clone(), signature: order.signature };
        let headers = Headers::new().with_id(&order.id.to_string()).sealed(&seal);
        let payload = Bytes::from(order.order);
        retrying(deadline, || self.bus().publish(&subject, headers.clone(), payload.clone())).await?;
        Ok(())
    }
}

fn check(request: &OrderRequest, targets: &[Node]) -> Result<(), FleetError> {
    if targets.is_empty() {
        return Err(FleetError::NoMatch { message: "there is no node to order: the target is empty".into() });
    }
    if request.timeout.is_zero() {
        return Err(FleetError::usage("a time-out of zero would end every execution at once: give one like 60s"));
    }
    if request.expires > EXPIRES_MAX {
        return Err(FleetError::usage("an order may expire at most 30d ahead: give a shorter time, like 7d"));
    }
    Ok(())
}

/// Repeats what fails in passing, until `deadline`.
pub(crate) async fn retrying<T, F>(deadline: Instant, attempt: impl Fn() -> F) -> Result<T, BusError>
where
    F: Future<Output = Result<T, BusError>>,
{
    let mut delay_ms = 100;
    loop {
        match attempt().await {
            Err(error) if error.is_passing() && Instant::now() < deadline => {
                tracing::debug!(%error, "trying again");
                tokio::time::sleep(Duration::from_millis(delay_ms / 2 + clock::jitter(delay_ms / 2))).await;
                delay_ms = (delay_ms * 2).min(RETRY_DELAY_MAX_MS);
            }
            result => return result,
        }
    }
}
