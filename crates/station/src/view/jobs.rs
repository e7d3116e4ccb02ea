//! The newest jobs and how their orders stand: a fold of verified replies. Pure.
//!
//! Records and replies come by two streams, so a reply may be here before its job: a bounded number of such replies
//! waits. Once all orders of a job are settled only the counts are kept; what bounds the memory is the number of jobs
//! and of orders that are still open.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use fleet::JobSummary;
use message::state::Merge;
use message::{
    History, JobId, JobRecord, NodeName, OrderId, PublicKey, Reply, ReplySubject, Seal, SealedOrder, SignatureError,
    State, Timestamp,
};

use crate::alert::JobStanding;

/// So many jobs are kept, the newest ones.
pub(crate) const JOBS_MAX: usize = 200;
/// So many open orders are kept in all; when there are more, the oldest jobs go first.
const ORDERS_MAX: usize = 500_000;
/// So many replies may wait for their job, and so many bytes of them.
const EARLY_MAX: usize = 4096;
/// So many nodes at which a job has failed are kept by name.
const FAILED_MAX: usize = 1000;
const EARLY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A reply as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) subject: ReplySubject,
    pub(crate) seal: Result<Seal, SignatureError>,
    pub(crate) payload: Bytes,
    /// When the broker stored it.
    pub(crate) stored: Timestamp,
}

/// What a reply told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// Something new.
    Newer,
    /// Nothing new: repeated, overtaken, or of a job that is not at hand.
    Nothing,
    /// Its job is not here yet; it waits.
    Early,
    /// It is not believed.
    Rejected(String),
}

/// The newest jobs.
#[derive(Default)]
pub(crate) struct Jobs {
    jobs: HashMap<JobId, Job>,
    /// The same by age, oldest first: an id that follows from an idempotency key says nothing of it.
    by_age: BTreeSet<(Timestamp, JobId)>,
    /// Orders that are not settled, in all jobs together.
    open: usize,
    early: VecDeque<Answer>,
    early_bytes: usize,
    /// Whether there may be orders whose node will never answer them.
    pub(super) to_conclude: bool,
}

struct Job {
    summary: JobSummary,
    /// Where it has come to a bad end, in the order in which that was heard; not more than [`FAILED_MAX`].
    failed: Vec<NodeName>,
    /// The frozen list; empty once every order is settled.
    orders: HashMap<NodeName, Order>,
}

struct Order {
    key: PublicKey,
    id: OrderId,
    history: History,
}

impl Jobs {
    /// Whether a job would be kept: it is not known yet, and not older than all of a full house.
    pub(crate) fn wants(&self, job: &JobId) -> bool {
        !self.jobs.contains_key(job) && !self.is_too_old(job)
    }

    /// As far as its id tells: one that was derived from an idempotency key looks like one of a far future.
    fn is_too_old(&self, job: &JobId) -> bool {
        let ms = i64::try_from(job.ms()).unwrap_or(i64::MAX);
        self.jobs.len() >= JOBS_MAX && self.by_age.first().is_some_and(|(oldest, _)| ms < oldest.as_ms())
    }

    /// Adds a job whose record and orders are verified, and folds in the replies that waited for it. Returns what is
    /// not believed of these.
    pub(crate) fn add(&mut self, record: &JobRecord, orders: Vec<SealedOrder>) -> Vec<String> {
        if !self.wants(&record.job) {
            return Vec::new();
        }
        let orders: HashMap<_, _> = orders
            .into_iter()
            .map(|order| (order.node, Order { key: order.key, id: order.id, history: History::new() }))
            .collect();
        let targets = u32::try_from(orders.len()).unwrap_or(u32::MAX);
        let summary = JobSummary {
            job: record.job.clone(),
            created_at: record.created,
            by: record.by.clone(),
            method: record.method.clone(),
            domain: record.domain.clone(),
            targets,
            counts: BTreeMap::from([(State::Queued, targets)]),
            retry_of: record.retry_of.clone(),
        };
        self.open += orders.len();
        self.to_conclude = true;
        self.by_age.insert((record.created, record.job.clone()));
        self.jobs.insert(record.job.clone(), Job { summary, failed: Vec::new(), orders });
        self.evict();
        self.admit(&record.job)
    }

    /// Folds in a reply.
    pub(crate) fn answer(&mut self, answer: Answer) -> Told {
        let Some(job) = self.jobs.get_mut(&answer.subject.job) else {
            if self.is_too_old(&answer.subject.job) {
                return Told::Nothing;
            }
            self.wait(answer);
            return Told::Early;
        };
        let settled_before = job.is_settled();
        let held = job.orders.len();
        let told = job.fold(&answer);
        if !settled_before && job.is_settled() {
            job.orders = HashMap::new();
            self.open = self.open.saturating_sub(held);
        }
        told
    }

    /// Ends the orders to those whose word counts no more since the time that `silenced` tells: nobody will ever say what
    /// became of them. To be called when all that is stored was folded in.
    pub(super) fn conclude(&mut self, mut silenced: impl FnMut(&NodeName, &PublicKey) -> Option<Timestamp>) {
        for job in self.jobs.values_mut().filter(|job| !job.orders.is_empty()) {
            for (node, order) in &mut job.orders {
                let before = order.history.state();
                if let Some(at) = silenced(node, &order.key)
                    && order.history.push(State::Interrupted, at).is_ok()
                {
                    job.summary.count(before, State::Interrupted);
                    note_failure(&mut job.failed, node, State::Interrupted);
                }
            }
            if job.is_settled() {
                self.open = self.open.saturating_sub(std::mem::take(&mut job.orders).len());
            }
        }
    }

    /// How every job stands, for the alerts.
    pub(crate) fn standings(&self) -> Vec<JobStanding> {
        let standing = |job: &Job| {
            let summary = &job.summary;
            let count = |wanted: fn(State) -> bool| {
                summary.counts.iter().filter(|(state, _)| wanted(**state)).map(|(_, count)| *count).sum::<u32>()
            };
            JobStanding {
                job: summary.job.to_string(),
                created: summary.created_at,
                by: summary.by.clone(),
                method: summary.method.to_string(),
                domain: summary.domain.to_string(),
                retry_of: summary.retry_of.as_ref().map(ToString::to_string),
                targets: summary.targets,
                bad: count(is_failure),
                failed: job.failed.clone(),
                is_well: count(|state| state == State::Succeeded) == summary.targets,
            }
        };
        self.jobs.values().map(standing).collect()
    }

    /// How many jobs there are.
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Up to `limit` jobs, newest first.
    pub(crate) fn newest(&self, limit: usize) -> Vec<JobSummary> {
        let newest = self.by_age.iter().rev().take(limit);
        newest.filter_map(|(_, job)| self.jobs.get(job)).map(|job| job.summary.clone()).collect()
    }

    /// How a job stands, if it is here.
    pub(crate) fn summary(&self, job: &JobId) -> Option<JobSummary> {
        self.jobs.get(job).map(|job| job.summary.clone())
    }

    pub(super) fn order_counts(&self) -> BTreeMap<State, u64> {
        let mut counts = BTreeMap::new();
        for (state, count) in self.jobs.values().flat_map(|job| &job.summary.counts) {
            *counts.entry(*state).or_insert(0) += u64::from(*count);
        }
        counts
    }

    fn evict(&mut self) {
        while self.jobs.len() > 1
            && (self.jobs.len() > JOBS_MAX || self.open > ORDERS_MAX)
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            let gone = self.jobs.remove(&oldest).map_or(0, |job| job.orders.len());
            self.open = self.open.saturating_sub(gone);
        }
    }

    fn wait(&mut self, mut answer: Answer) {
        // A copy: what arrived is a part of a larger buffer, and would keep all of that.
        answer.payload = Bytes::copy_from_slice(&answer.payload);
        self.early_bytes += answer.payload.len();
        self.early.push_back(answer);
        while (self.early.len() > EARLY_MAX || self.early_bytes > EARLY_BYTES_MAX)
            && let Some(oldest) = self.early.pop_front()
        {
            self.early_bytes = self.early_bytes.saturating_sub(oldest.payload.len());
        }
    }

    /// Folds in what waited for `job`.
    fn admit(&mut self, job: &JobId) -> Vec<String> {
        let (mine, others) =
            std::mem::take(&mut self.early).into_iter().partition(|early: &Answer| early.subject.job == *job);
        self.early = others;
        self.early_bytes = self.early.iter().map(|early| early.payload.len()).sum();
        let told = VecDeque::into_iter(mine).map(|answer| self.answer(answer));
        told.filter_map(|told| if let Told::Rejected(reason) = told { Some(reason) } else { None }).collect()
    }
}

/// Whether nobody wanted it to end like this.
const fn is_failure(state: State) -> bool {
    matches!(state, State::Failed | State::TimedOut | State::Expired | State::Rejected | State::Interrupted)
}

fn note_failure(failed: &mut Vec<NodeName>, node: &NodeName, state: State) {
    if is_failure(state) && failed.len() < FAILED_MAX {
        failed.push(node.clone());
    }
}

impl Job {
    fn is_settled(&self) -> bool {
        self.summary.counts.keys().all(|state| state.is_terminal())
    }

    fn fold(&mut self, answer: &Answer) -> Told {
        if self.is_settled() {
            // Nothing can follow a final state; whoever contradicts now changes nothing.
            return Told::Nothing;
        }
        let ReplySubject { job, node, .. } = &answer.subject;
        let doubt = |reason: String| Told::Rejected(format!("a reply to {job} in the name of {node}: {reason}"));
        let Some(order) = self.orders.get_mut(node) else {
            return doubt("the job is not for it".into());
        };
        let seal = match &answer.seal {
            Ok(seal) if seal.key == order.key => seal,
            Ok(seal) => return doubt(format!("it is signed by {}, the node's key is {}", seal.key, order.key)),
            Err(error) => return doubt(error.to_string()),
        };
        if let Err(error) = seal.verify(&answer.payload) {
            return doubt(error.to_string());
        }
        let reply = match Reply::parse(&answer.payload) {
            Ok(reply) => reply,
            Err(error) => return doubt(error.to_string()),
        };
        if (&reply.job, &reply.node, reply.order) != (job, node, order.id) {
            return doubt(format!("it answers order {} of job {} to {}", reply.order, reply.job, reply.node));
        }
        let before = order.history.state();
        match order.history.merge(&reply.history) {
            Merge::Stale => Told::Nothing,
            Merge::Contradiction => doubt(format!("it says {}, but it had said {before}", reply.state())),
            Merge::Newer => {
                self.summary.count(before, order.history.state());
                note_failure(&mut self.failed, node, order.history.state());
                Told::Newer
            }
        }
    }
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
