//! The checker: reads what was ordered, what was answered and what really happened, and says where they disagree.
//!
//! In flow the clients' own view of their jobs, the stored orders and replies as raw bytes, and the witness files
//! that the commands themselves wrote; out flow counts and breaches. A pure function: it must never ask anybody, so
//! that a test can plant every kind of breach, and a run that failed can be judged again from its artefacts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use message::method::{CANCEL, Cancel, Cancelled};
use message::state::Merge;
use message::{History, JobId, Order, OrderId, Reply, State, Subject, Timestamp};
use serde::Serialize;

/// What two times that one clock tells may be apart where they are to be the same: a machine may be busy in between.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(2);

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
    /// The idempotency key that it gave.
    pub key: Option<String>,
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
    /// When the broker stored it.
    pub stored_at: Timestamp,
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
    /// The nodes whose clocks were set meanwhile: their times cannot be compared with each other.
    pub jumping: BTreeSet<String>,
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
    /// What was to be ordered once was ordered twice: two jobs under one idempotency key, two orders of one job to one
    /// node, one order in two jobs.
    OrderedTwice,
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
    /// See [`Kind::OrderedTwice`].
    pub ordered_twice: u64,
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
            Kind::OrderedTwice => &mut counts.ordered_twice,
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
    /// By how much the node's clock was ahead, by its own word.
    clock_error_ms: Option<i64>,
    /// When the broker first stored its last state.
    told_at: Option<Timestamp>,
    /// What a cancel says that it found and did.
    answer: Option<Cancelled>,
}

impl Case {
    fn is_cancel(&self) -> bool {
        self.order.method.as_str() == CANCEL
    }

    /// Whether the node took it: what was refused at once was never delivered.
    fn was_taken(&self) -> bool {
        self.history.at(State::Delivered).is_some()
    }
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
        check_time(*id, case, evidence, &mut verdict);
    }
    check_taken_back(&cases, evidence, &mut verdict);
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
            std::collections::btree_map::Entry::Occupied(known) if known.get().order != order => {
                let text = format!("order {} is in job {} and in job {}", order.id, known.get().order.job, order.job);
                verdict.breach(Kind::OrderedTwice, Some(order.id), text);
            }
            std::collections::btree_map::Entry::Occupied(_) => verdict.counts.duplicates += 1,
            std::collections::btree_map::Entry::Vacant(free) => {
                verdict.counts.orders += 1;
                let sequence = stored.sequence;
                free.insert(Case {
                    order,
                    sequence,
                    history: History::new(),
                    exit_code: None,
                    begins: 0,
                    end: None,
                    clock_error_ms: None,
                    told_at: None,
                    answer: None,
                });
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
            Merge::Newer => {
                case.clock_error_ms = reply.clock_error_ms;
                case.told_at = case.history.state().is_terminal().then_some(stored.stored_at);
                if let Some(outcome) = reply.outcome {
                    case.exit_code = outcome.exit_code;
                    case.answer = outcome.data.and_then(|data| serde_json::from_value(data).ok());
                }
            }
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
    for (id, case) in cases {
        let (job, to) = (&case.order.job, case.order.to.name.as_str());
        if !stored.entry(job).or_default().insert(to) {
            verdict.breach(Kind::OrderedTwice, Some(*id), format!("job {job} has more than one order to {to}"));
        }
    }
    let mut keys = BTreeMap::<&str, &JobId>::new();
    for (key, job) in evidence.clients.iter().filter_map(|seen| seen.key.as_deref().zip(seen.job.as_ref())) {
        let first = keys.entry(key).or_insert(job);
        if *first != job {
            let text = format!("jobs {first} and {job} were both ordered under the idempotency key {key}");
            verdict.breach(Kind::OrderedTwice, None, text);
        }
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
        _ if case.is_cancel() && began => Some("is a cancel, and began as a command"),
        // What a cancel has done is seen in what it was to cancel.
        _ if case.is_cancel() => None,
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

/// Whether the time of it is right: nothing that was still valid is told to have expired, and nothing that had expired
/// was taken.
fn check_time(id: OrderId, case: &Case, evidence: &Evidence, verdict: &mut Verdict) {
    let (to, expires) = (&case.order.to.name, case.order.expires);
    if case.history.state() == State::Expired
        && let Some(told) = case.told_at.filter(|told| *told < expires)
    {
        let text = format!("order {id} to {to} was told to have expired at {told}, and was valid until {expires}");
        verdict.breach(Kind::Contradiction, Some(id), text);
    }
    if let (Some(taken), Some(error)) = (case.history.at(State::Delivered), case.clock_error_ms)
        && !evidence.jumping.contains(to.as_str())
    {
        let taken = Timestamp::from_ms(taken.as_ms().saturating_sub(error));
        if taken > expires.plus(CLOCKS_APART_MAX) {
            let text = format!("order {id} to {to} was taken at {taken}, and had expired at {expires}");
            verdict.breach(Kind::Contradiction, Some(id), text);
        }
    }
}

/// Whether cancels and newer orders of a key did what they say, and nothing was taken back by nobody.
fn check_taken_back(cases: &BTreeMap<OrderId, Case>, evidence: &Evidence, verdict: &mut Verdict) {
    let mut by_target = BTreeMap::<(&JobId, &str), (&OrderId, &Case)>::new();
    // Of each node and key, in the order of the stream.
    let mut under = BTreeMap::<(&str, &str), BTreeMap<u64, (&OrderId, &Case)>>::new();
    let mut cancelled = BTreeSet::<(JobId, &str)>::new();
    for (id, case) in cases {
        let to = case.order.to.name.as_str();
        by_target.insert((&case.order.job, to), (id, case));
        if let Some(key) = &case.order.supersede {
            under.entry((to, key.as_str())).or_default().insert(case.sequence, (id, case));
        }
        if case.is_cancel()
            && let Ok(cancel) = serde_json::from_value::<Cancel>(case.order.args.clone())
        {
            cancelled.insert((cancel.job, to));
        }
    }
    for (id, case) in cases {
        let (to, state) = (case.order.to.name.as_str(), case.history.state());
        if state == State::Cancelled && !cancelled.contains(&(case.order.job.clone(), to)) {
            let text = format!("order {id} to {to} is cancelled, and nobody has cancelled it");
            verdict.breach(Kind::Contradiction, Some(*id), text);
        }
        if let Some(answer) = &case.answer
            && case.is_cancel()
            && let Some((target, meant)) = by_target.get(&(&answer.job, to))
            && let Some(wrong) = unlike(answer, meant)
        {
            let text = format!(
                "cancel {id} found order {target} to {to} {} and left it {}, but {wrong}",
                answer.found, answer.now
            );
            verdict.breach(Kind::Contradiction, Some(*id), text);
        }
    }
    for ((to, key), orders) in under {
        for (sequence, (id, case)) in &orders {
            let newer: Vec<&Case> =
                orders.range(sequence + 1..).map(|(_, (_, case))| *case).filter(|case| case.was_taken()).collect();
            if case.history.state() == State::Superseded && newer.is_empty() {
                let text = format!("order {id} to {to} is superseded, and {to} took no newer one of {key}");
                verdict.breach(Kind::Contradiction, Some(**id), text);
            }
            // It had not begun when a newer one was taken, so it must not have begun at all.
            let taken = newer.iter().filter_map(|case| case.history.at(State::Delivered)).min();
            if let (Some(taken), Some(begun)) = (taken, case.history.at(State::Running))
                && begun > taken.plus(CLOCKS_APART_MAX)
                && !evidence.jumping.contains(to)
            {
                let text =
                    format!("order {id} to {to} began at {begun}, and a newer one of {key} was taken at {taken}");
                verdict.breach(Kind::Contradiction, Some(**id), text);
            }
        }
    }
}

/// What is wrong with the answer of a cancel, by how the order that it means has ended.
fn unlike(answer: &Cancelled, meant: &Case) -> Option<&'static str> {
    let state = meant.history.state();
    let before = matches!(answer.found, State::Queued | State::Delivered) && answer.now == State::Cancelled;
    // What has not arrived may have expired before it does.
    let expired = answer.found == State::Queued && state == State::Expired;
    if before && meant.begins > 0 {
        Some("it began all the same")
    } else if state.is_terminal() && answer.now.is_terminal() && state != answer.now && !expired {
        Some("it has ended otherwise")
    } else {
        None
    }
}

fn words(history: &History) -> String {
    history.steps().iter().map(|step| step.state.as_str()).collect::<Vec<_>>().join(" → ")
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
