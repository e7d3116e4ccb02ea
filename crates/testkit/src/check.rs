//! The checker: reads what was ordered, what was answered and what really happened, and says where they disagree.
//!
//! In flow the clients' own view of their jobs, the stored orders and replies as raw bytes, and the witness files
//! that the commands themselves wrote; out flow counts and breaches. A pure function: it must never ask anybody, so
//! that a test can plant every kind of breach, and a run that failed can be judged again from its artefacts.

use std::collections::{BTreeMap, BTreeSet};

use message::state::Merge;
use message::{History, JobId, Order, OrderId, Reply, State, Subject};
use serde::Serialize;

/// How a client saw the end of its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// It was told that the job is stored and sent.
    Accepted,
    /// It was killed, or told that nobody knows: the job may be there wholly or not at all.
    Unknown,
    /// It was told that nothing was ordered.
    Refused,
}

/// A job as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientJob {
    /// Its id, if the client ever learned it.
    pub job: Option<JobId>,
    /// For which nodes it was.
    pub nodes: Vec<String>,
    /// What the client was told.
    pub seen: Seen,
}

/// A message of stream `COMMANDS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOrder {
    /// Its place in the stream.
    pub sequence: u64,
    /// What it was stored under.
    pub subject: String,
    /// The signed bytes.
    pub body: bytes::Bytes,
}

/// A reply of stream `REPLIES`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReply {
    /// Its place in the stream.
    pub sequence: u64,
    /// What it was stored under.
    pub subject: String,
    /// The key whose signature over the body holds, if one does.
    pub signer: Option<String>,
    /// The signed bytes.
    pub body: bytes::Bytes,
}

/// All that is known at the end of a run.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// What clients saw.
    pub clients: Vec<ClientJob>,
    /// The stored job records: how many targets each has.
    pub records: BTreeMap<JobId, u32>,
    /// What stream `COMMANDS` holds, in sequence.
    pub orders: Vec<StoredOrder>,
    /// What stream `REPLIES` holds of replies, in sequence.
    pub replies: Vec<StoredReply>,
    /// The lines of each node's witness file.
    pub witness: BTreeMap<String, Vec<String>>,
}

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An accepted order that neither began nor ended.
    Lost,
    /// An order that began more than once.
    Twice,
    /// An accepted order without a final state.
    Unaccounted,
    /// A state that the witness, or another reply, contradicts.
    Contradiction,
    /// Orders of one subject that began in another order than they were stored in.
    OrderBreach,
    /// A history that the state machine does not allow, or a reply that cannot be read or is not its node's.
    IllegalHistory,
    /// A reply to an order that nobody gave.
    StrayReply,
    /// A witness of an order that nobody gave, or that was not for its node.
    StrayWitness,
    /// A job of which some orders are stored and others not, or one that was refused and stored all the same.
    HalfOrdered,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Breach {
    /// What it is.
    pub kind: Kind,
    /// The order that it is about, where it is about one.
    pub order: Option<OrderId>,
    /// A sentence.
    pub text: String,
}

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Jobs whose record is stored.
    pub jobs: u64,
    /// Stored orders, each counted once: a (job, node) pair each.
    pub orders: u64,
    /// Pairs that a client was told are ordered.
    pub pairs_accepted: u64,
    /// Messages that repeat an order which was stored before.
    pub duplicates: u64,
    /// Stored replies.
    pub replies: u64,
    /// Commands that began, by their witness.
    pub begun: u64,
    /// How many orders are in each state.
    pub states: BTreeMap<State, u64>,
    /// See [`Kind::Lost`].
    pub lost: u64,
    /// See [`Kind::Twice`].
    pub twice: u64,
    /// See [`Kind::Unaccounted`].
    pub unaccounted: u64,
    /// See [`Kind::Contradiction`].
    pub contradictions: u64,
    /// See [`Kind::OrderBreach`].
    pub order_breaches: u64,
    /// See [`Kind::IllegalHistory`].
    pub illegal_histories: u64,
    /// See [`Kind::StrayReply`].
    pub stray_replies: u64,
    /// See [`Kind::StrayWitness`].
    pub stray_witnesses: u64,
    /// See [`Kind::HalfOrdered`].
    pub half_ordered: u64,
}

/// What the checker says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The counts.
    pub counts: Counts,
    /// All that is wrong; empty when nothing is.
    pub breaches: Vec<Breach>,
}

impl Verdict {
    fn breach(&mut self, kind: Kind, order: Option<OrderId>, text: String) {
        let counts = &mut self.counts;
        *match kind {
            Kind::Lost => &mut counts.lost,
            Kind::Twice => &mut counts.twice,
            Kind::Unaccounted => &mut counts.unaccounted,
            Kind::Contradiction => &mut counts.contradictions,
            Kind::OrderBreach => &mut counts.order_breaches,
            Kind::IllegalHistory => &mut counts.illegal_histories,
            Kind::StrayReply => &mut counts.stray_replies,
            Kind::StrayWitness => &mut counts.stray_witnesses,
            Kind::HalfOrdered => &mut counts.half_ordered,
        } += 1;
        self.breaches.push(Breach { kind, order, text });
    }
}

/// What is known of one order.
struct Case {
    order: Order,
    /// Where it stands in the stream, by its first message.
    sequence: u64,
    history: History,
    exit_code: Option<i32>,
    begins: u32,
    /// The exit code that the command itself wrote down at its end.
    end: Option<i32>,
}

/// Judges a run.
pub fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let mut cases = read_orders(evidence, &mut verdict);
    read_replies(evidence, &mut cases, &mut verdict);
    read_witness(evidence, &mut cases, &mut verdict);
    check_jobs(evidence, &cases, &mut verdict);
    for (id, case) in &cases {
        check_case(*id, case, &mut verdict);
    }
    verdict
}

fn read_orders(evidence: &Evidence, verdict: &mut Verdict) -> BTreeMap<OrderId, Case> {
    let mut cases = BTreeMap::<OrderId, Case>::new();
    for stored in &evidence.orders {
        let order = match Order::parse(&stored.body) {
            Ok(order) if order.subject().to_string() == stored.subject => order,
            // What is no order of ours proves nothing: anybody with an operator's rights may publish there.
            _ => continue,
        };
        match cases.entry(order.id) {
            std::collections::btree_map::Entry::Occupied(_) => verdict.counts.duplicates += 1,
            std::collections::btree_map::Entry::Vacant(free) => {
                verdict.counts.orders += 1;
                let sequence = stored.sequence;
                free.insert(Case { order, sequence, history: History::new(), exit_code: None, begins: 0, end: None });
            }
        }
    }
    cases
}

fn read_replies(evidence: &Evidence, cases: &mut BTreeMap<OrderId, Case>, verdict: &mut Verdict) {
    for stored in &evidence.replies {
        verdict.counts.replies += 1;
        let what = format!("reply {} on {}", stored.sequence, stored.subject);
        let reply = match Reply::parse(&stored.body) {
            Ok(reply) => reply,
            Err(error) => {
                verdict.breach(Kind::IllegalHistory, None, format!("{what}: {error}"));
                continue;
            }
        };
        let Some(case) = cases.get_mut(&reply.order) else {
            verdict.breach(Kind::StrayReply, Some(reply.order), format!("{what} answers an order that nobody gave"));
            continue;
        };
        if case.order.reply_subject().to_string() != stored.subject || case.order.job != reply.job {
            verdict.breach(
                Kind::StrayReply,
                Some(reply.order),
                format!("{what} answers an order of {}", case.order.reply_subject()),
            );
            continue;
        }
        if stored.signer.as_deref() != Some(case.order.to.key.as_str()) {
            let text = format!("{what} is not signed by the node that the order is for");
            verdict.breach(Kind::IllegalHistory, Some(reply.order), text);
            continue;
        }
        match case.history.merge(&reply.history) {
            Merge::Newer => case.exit_code = reply.outcome.and_then(|outcome| outcome.exit_code),
            Merge::Stale => {}
            Merge::Contradiction => {
                let text = format!("{what} tells {}, before it was {}", words(&reply.history), words(&case.history));
                verdict.breach(Kind::Contradiction, Some(reply.order), text);
            }
        }
    }
}

fn read_witness(evidence: &Evidence, cases: &mut BTreeMap<OrderId, Case>, verdict: &mut Verdict) {
    for (node, lines) in &evidence.witness {
        // By subject: the sequence of the last order that began there.
        let mut last = BTreeMap::<Subject, (u64, OrderId)>::new();
        for line in lines {
            let mut words = line.split(' ');
            let (word, id) = (words.next().unwrap_or_default(), words.next().and_then(|id| id.parse().ok()));
            let Some(id) = id else {
                verdict.breach(Kind::StrayWitness, None, format!("{node}'s witness holds the line {line:?}"));
                continue;
            };
            let Some(case) = cases.get_mut(&id).filter(|case| case.order.to.name.as_str() == node) else {
                let text = format!("{node}'s witness tells of order {id}, which was not given to {node}");
                verdict.breach(Kind::StrayWitness, Some(id), text);
                continue;
            };
            if word == "end" {
                case.end = words.next().and_then(|code| code.parse().ok());
                continue;
            }
            case.begins += 1;
            if case.begins > 1 {
                verdict.breach(Kind::Twice, Some(id), format!("order {id} began {} times on {node}", case.begins));
                continue;
            }
            verdict.counts.begun += 1;
            match last.insert(case.order.subject(), (case.sequence, id)) {
                Some((before, other)) if before > case.sequence => {
                    let text = format!(
                        "order {id} (sequence {}) of {} began after order {other} (sequence {before})",
                        case.sequence,
                        case.order.subject()
                    );
                    verdict.breach(Kind::OrderBreach, Some(id), text);
                    last.insert(case.order.subject(), (before, other));
                }
                _ => {}
            }
        }
    }
}

fn check_jobs(evidence: &Evidence, cases: &BTreeMap<OrderId, Case>, verdict: &mut Verdict) {
    let mut stored = BTreeMap::<&JobId, BTreeSet<&str>>::new();
    for case in cases.values() {
        stored.entry(&case.order.job).or_default().insert(case.order.to.name.as_str());
    }
    verdict.counts.jobs = u64::try_from(evidence.records.len()).unwrap_or(u64::MAX);
    for (job, targets) in &evidence.records {
        let found = stored.get(job).map_or(0, BTreeSet::len);
        if u32::try_from(found) != Ok(*targets) {
            verdict.breach(
                Kind::HalfOrdered,
                None,
                format!("job {job} is for {targets} nodes, and orders for {found} of them are stored"),
            );
        }
    }
    for job in stored.keys().filter(|job| !evidence.records.contains_key(**job)) {
        verdict.breach(Kind::HalfOrdered, None, format!("orders of job {job} are stored, but not the job"));
    }
    for seen in &evidence.clients {
        let Some(job) = &seen.job else { continue };
        let known = stored.get(job);
        match seen.seen {
            Seen::Accepted => {
                for node in &seen.nodes {
                    verdict.counts.pairs_accepted += 1;
                    if !known.is_some_and(|nodes| nodes.contains(node.as_str())) {
                        let text = format!("job {job} was accepted, and its order to {node} is not stored");
                        verdict.breach(Kind::Lost, None, text);
                        verdict.breach(
                            Kind::Unaccounted,
                            None,
                            format!("job {job} was accepted, and {node} never answers"),
                        );
                    }
                }
            }
            Seen::Refused if known.is_some() => {
                verdict.breach(Kind::HalfOrdered, None, format!("job {job} was refused, and stored all the same"));
            }
            Seen::Refused | Seen::Unknown => {}
        }
    }
}

fn check_case(id: OrderId, case: &Case, verdict: &mut Verdict) {
    let state = case.history.state();
    *verdict.counts.states.entry(state).or_default() += 1;
    let to = &case.order.to.name;
    let began = case.begins > 0;
    let ran = case.history.at(State::Running).is_some();
    if !state.is_terminal() {
        let text = format!("order {id} to {to} (sequence {}) has not ended: it is {state}", case.sequence);
        verdict.breach(Kind::Unaccounted, Some(id), text);
        if !began {
            let text =
                format!("order {id} to {to} (sequence {}) neither began nor ended: it is {state}", case.sequence);
            verdict.breach(Kind::Lost, Some(id), text);
        }
        return;
    }
    let wrong = match state {
        State::Succeeded if !began => Some("has no witness"),
        State::Succeeded if case.end != Some(0) => Some("its witness does not tell of a good end"),
        State::Failed if case.exit_code.is_some() && !began => Some("has an exit code and no witness"),
        State::Failed if case.exit_code.is_some() && case.end != case.exit_code => {
            Some("its witness tells of another end")
        }
        State::Expired | State::Rejected | State::Superseded if began => Some("began all the same"),
        State::Cancelled if began && !ran => Some("was cancelled before it began, and began all the same"),
        _ => None,
    };
    if let Some(wrong) = wrong {
        let text = format!(
            "order {id} to {to} is {state} (exit code {:?}, witness of its end {:?}), but {wrong}",
            case.exit_code, case.end
        );
        verdict.breach(Kind::Contradiction, Some(id), text);
    }
}

fn words(history: &History) -> String {
    history.steps().iter().map(|step| step.state.as_str()).collect::<Vec<_>>().join(" → ")
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
