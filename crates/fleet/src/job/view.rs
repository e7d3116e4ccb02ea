//! How a job stands: a pure fold of what its nodes said and signed.
//!
//! Replies may come repeated, overtaken or forged; the view is the same whatever the order. Only a reply signed with
//! the key that the frozen list names for its node counts, and only a history that continues what is known.

use std::collections::BTreeMap;

use bus::Message;
use bytes::Bytes;
use message::reply::{OUTPUT_ORDER_HEADER, OUTPUT_SEQUENCE_HEADER, OUTPUT_STREAM_HEADER};
use message::state::Merge;
use message::{JobRecord, NodeName, NodeRecord, PublicKey, Reply, Seal, SignatureError, State, Timestamp};

use super::progress::NodeProgress;
use super::{Gather, OutputStream, Update};
use crate::order::Expected;

/// How a job stands: a pure fold of its verified replies.
#[derive(Debug, Clone)]
pub struct JobView {
    /// The job's record.
    pub record: JobRecord,
    /// The frozen list of its nodes, and how each stands.
    pub nodes: BTreeMap<NodeName, NodeProgress>,
    /// How many messages were not believed: forged, of strangers, or contradicting what a node had said before.
    pub doubtful: u64,
    /// What each stream may have.
    max_output: u64,
    unsettled: usize,
    stranger_told: bool,
}

/// A message about a job, as far as folding is concerned.
pub(super) struct Arrival<'a> {
    pub(super) subject: &'a str,
    pub(super) payload: &'a Bytes,
    pub(super) seal: Result<Seal, SignatureError>,
    /// When the broker stored it.
    pub(super) stored: Timestamp,
    /// Of an output message: its order, stream and number.
    pub(super) output: [Option<&'a str>; 3],
}

impl<'a> From<&'a Message> for Arrival<'a> {
    fn from(message: &'a Message) -> Self {
        let output = [OUTPUT_ORDER_HEADER, OUTPUT_STREAM_HEADER, OUTPUT_SEQUENCE_HEADER];
        Self {
            subject: &message.subject,
            payload: &message.payload,
            seal: message.seal(),
            stored: message.stored_at,
            output: output.map(|name| message.header(name)),
        }
    }
}

impl JobView {
    /// A job of which nothing is known yet but the frozen list.
    pub(crate) fn new(record: JobRecord, expected: &[Expected], max_output: u64, gather: Gather) -> Self {
        let nodes: BTreeMap<_, _> =
            expected.iter().map(|expected| (expected.node.clone(), NodeProgress::new(expected, gather))).collect();
        let unsettled = nodes.len();
        Self { record, nodes, doubtful: 0, max_output, unsettled, stranger_told: false }
    }

    /// To whom its orders are addressed.
    pub(super) fn addressees(&self) -> impl Iterator<Item = (&NodeName, &PublicKey)> {
        self.nodes.iter().map(|(name, progress)| (name, &progress.key))
    }

    /// The same of those orders that are not settled, if they are not too many to be asked about one by one.
    pub(super) fn unsettled(&self, most: usize) -> Vec<(NodeName, PublicKey)> {
        if self.unsettled > most {
            return Vec::new();
        }
        let open = self.nodes.iter().filter(|(_, progress)| !progress.settled());
        open.map(|(name, progress)| (name.clone(), progress.key.clone())).collect()
    }

    /// What these nodes said after they were revoked, or had another key, does not count. Tells whether an order of one of
    /// them has no end: once all that is stored was folded in, [`JobView::conclude`].
    pub(super) fn silence(&mut self, records: &[NodeRecord]) -> bool {
        let mut open = false;
        for record in records {
            if let Some(progress) = self.nodes.get_mut(&record.name)
                && let Some(at) = record.silenced(&progress.key)
            {
                progress.silenced = record.no_answer(&progress.key).map(|reason| (at, reason));
                open |= !progress.settled();
            }
        }
        open
    }

    /// All that was stored is folded in: an order that a node has not answered before its word counted no more is
    /// `interrupted` from then on, since nobody will ever say what became of it. Returns what became known by it.
    pub(super) fn conclude(&mut self) -> Vec<Update> {
        let mut updates = Vec::new();
        for (node, progress) in &mut self.nodes {
            if progress.settled() {
                continue;
            }
            let Some((at, reason)) = progress.silenced.clone() else { continue };
            if progress.history.push(State::Interrupted, at).is_ok() {
                progress.reason = Some(reason.clone());
                updates.push(Update::State { node: node.clone(), state: State::Interrupted, at, reason: Some(reason) });
            } else if progress.output_broken.is_none() {
                let reason = "the node was cut off before all of it had come".to_owned();
                updates.push(note(node, format!("the output of {node} cannot be relied on: {reason}")));
                progress.output_broken = Some(reason);
            }
            self.unsettled -= 1;
        }
        updates
    }

    /// How many nodes are in each state; states without nodes are left out.
    pub fn counts(&self) -> BTreeMap<State, u32> {
        let mut counts = BTreeMap::new();
        for progress in self.nodes.values() {
            *counts.entry(progress.state()).or_insert(0) += 1;
        }
        counts
    }

    /// Whether every node is settled.
    pub fn settled(&self) -> bool {
        self.unsettled == 0
    }

    /// Folds in a message; returns what became known by it.
    pub(super) fn apply(&mut self, arrival: &Arrival<'_>) -> Vec<Update> {
        let mut tokens = arrival.subject.split('.');
        let (_, kind, job, node) = (tokens.next(), tokens.next(), tokens.next(), tokens.next());
        if job != Some(self.record.job.as_str()) {
            return Vec::new();
        }
        let Some(node) = node.and_then(|node| NodeName::new(node).ok()) else { return Vec::new() };
        let Some(progress) = self.nodes.get_mut(&node) else {
            self.doubtful += 1;
            if std::mem::replace(&mut self.stranger_told, true) {
                return Vec::new();
            }
            return vec![note(&node, format!("{node} answers, though the job is not for it; its answers are ignored"))];
        };
        let was_settled = progress.settled();
        let folded = match kind {
            Some("reply") => reply(&self.record, &node, progress, arrival),
            Some("output") => output(&node, progress, arrival, self.max_output),
            _ => Ok(Vec::new()),
        };
        let mut updates = folded.unwrap_or_else(|reason| {
            self.doubtful += 1;
            let told = std::mem::replace(&mut progress.doubted, true);
            if told { Vec::new() } else { vec![note(&node, reason)] }
        });
        if let Some(reason) = progress.check_output() {
            updates.push(note(&node, format!("the output of {node} cannot be relied on: {reason}")));
        }
        if progress.settled() && !was_settled {
            self.unsettled -= 1;
        }
        updates
    }
}

fn note(node: &NodeName, text: String) -> Update {
    Update::Note { node: Some(node.clone()), text }
}

/// Folds in a reply, or says why it is not believed.
fn reply(
    record: &JobRecord,
    node: &NodeName,
    progress: &mut NodeProgress,
    arrival: &Arrival<'_>,
) -> Result<Vec<Update>, String> {
    let doubt = |reason: String| format!("a reply in the name of {node} is not believed: {reason}");
    verify(progress, arrival).map_err(doubt)?;
    let reply = Reply::parse(arrival.payload).map_err(|error| doubt(error.to_string()))?;
    if (&reply.job, &reply.node, reply.order) != (&record.job, node, progress.order) {
        return Err(doubt(format!("it answers order {} of job {} to {}", reply.order, reply.job, reply.node)));
    }
    let known = progress.history.steps().len();
    match progress.history.merge(&reply.history) {
        Merge::Stale => Ok(Vec::new()),
        Merge::Contradiction => Err(format!(
            "{node} says that its order is {}, but it had said {}; what it said first counts",
            reply.state(),
            progress.state()
        )),
        Merge::Newer => {
            let (last, steps) = (progress.history.step(), progress.history.steps());
            let updates = (1..)
                .zip(steps)
                .skip(known)
                .map(|(number, step)| Update::State {
                    node: node.clone(),
                    state: step.state,
                    at: step.at,
                    reason: if number == last { reply.reason.clone() } else { None },
                })
                .collect();
            progress.reason = reply.reason;
            progress.outcome = reply.outcome;
            progress.clock_error_ms = reply.clock_error_ms;
            Ok(updates)
        }
    }
}

/// Folds in a piece of output, or says why it is not believed. A piece need not be signed: the last reply holds the
/// digest of all. If it is, it must be by its node.
fn output(
    node: &NodeName,
    progress: &mut NodeProgress,
    arrival: &Arrival<'_>,
    limit: u64,
) -> Result<Vec<Update>, String> {
    let doubt = |reason: String| format!("output in the name of {node} is not believed: {reason}");
    if arrival.seal != Err(SignatureError::Missing) {
        verify(progress, arrival).map_err(doubt)?;
    }
    let [order, stream, number] = arrival.output;
    if order != Some(progress.order.to_string().as_str()) {
        return Err(doubt(format!("it belongs to order {}", order.unwrap_or("unknown"))));
    }
    let stream = match stream {
        Some("stdout") => OutputStream::Stdout,
        Some("stderr") => OutputStream::Stderr,
        other => return Err(doubt(format!("there is no stream {:?}", other.unwrap_or_default()))),
    };
    let number = number.and_then(|number| number.parse().ok()).ok_or_else(|| doubt("it has no number".into()))?;
    let was_broken = progress.output_broken.is_some();
    let released = progress.take_output(number, stream, arrival.payload, limit);
    if let Some(reason) = progress.output_broken.as_ref().filter(|_| !was_broken) {
        return Err(format!("the output of {node} cannot be relied on: {reason}"));
    }
    Ok(released.into_iter().map(|(stream, bytes)| Update::Output { node: node.clone(), stream, bytes }).collect())
}

fn verify(progress: &NodeProgress, arrival: &Arrival<'_>) -> Result<(), String> {
    let seal = arrival.seal.as_ref().map_err(ToString::to_string)?;
    if seal.key != progress.key {
        return Err(format!("it is signed by {}, the node's key is {}", seal.key, progress.key));
    }
    if progress.silenced.as_ref().is_some_and(|(at, _)| arrival.stored >= *at) {
        return Err("it came after the node was revoked or had another key".into());
    }
    seal.verify(arrival.payload).map_err(|error| error.to_string())
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
