//! What this node did before, where its journal may not know it: a unit that was enrolled anew, a snapshot that was
//! restored, a clone that went on alone for a while.
//!
//! The witness is the node itself: its own signed replies, which the broker keeps. An order that it has answered is
//! never run again. What the broker heard it had taken (the floor of its last life sign), and it has not answered
//! either, may have been run: that is told as `interrupted`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Bus, BusError, clock, kv};
use journal::Entry;
use message::state::Merge;
use message::{History, JobId, LifeSign, NodeName, Order, OrderId, Reply, ReplySubject, State};
use tokio::task::JoinSet;

use crate::halt::Teller;
use crate::run::Identity;
use crate::twin;

/// How many answers are looked up at once.
const LOOK_UPS_MAX: usize = 32;
/// The stream of answers.
const REPLIES: &str = "REPLIES";

/// Whether the journal may be older than what this node did.
pub(crate) struct Past {
    /// While it is so, nothing that was taken before begins, and nothing of it is told.
    doubt: Teller,
    /// The revision of the last life sign that this run has made.
    revision: Arc<AtomicU64>,
    /// How many signs of other runs were found, and of how many of them the past is settled.
    others: Arc<AtomicU64>,
    others_seen: u64,
    heard: Arc<HeardFloor>,
}

/// The highest floor that the broker has heard of before this run, and in which of its stores: what one had heard is no
/// measure for the sequences of another.
#[derive(Debug, Default)]
pub(crate) struct HeardFloor(Mutex<(u64, Option<String>)>);

impl HeardFloor {
    fn lock(&self) -> MutexGuard<'_, (u64, Option<String>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The broker has told its epoch. `None`: it has none, as brokers had before there were any.
    pub(crate) fn at(&self, epoch: Option<String>) {
        let mut heard = self.lock();
        if heard.1.is_some() && heard.1 != epoch {
            heard.0 = 0;
        }
        heard.1 = epoch;
    }

    pub(crate) fn raise(&self, floor: u64) {
        let mut heard = self.lock();
        heard.0 = heard.0.max(floor);
    }

    /// The store in which it was heard is gone.
    pub(crate) fn forget(&self) {
        self.lock().0 = 0;
    }

    fn get(&self) -> u64 {
        self.lock().0
    }
}

impl Past {
    /// At the start of a run nothing is certain.
    pub(crate) fn new(doubt: Teller, revision: Arc<AtomicU64>, others: Arc<AtomicU64>, heard: Arc<HeardFloor>) -> Self {
        let mut past = Self { doubt, revision, others, others_seen: 0, heard };
        past.doubt();
        past
    }

    /// From now on nothing is certain.
    pub(crate) fn doubt(&mut self) {
        self.doubt.tell(Some("the journal may be older than what this node did".into()));
    }

    /// Whether another run has spoken in this node's name since it was last asked.
    pub(crate) fn notice_others(&mut self) {
        let others = self.others.load(Ordering::Acquire);
        if others != self.others_seen {
            self.others_seen = others;
            self.doubt();
        }
    }

    /// The epoch of the broker's store was read.
    pub(crate) fn at_epoch(&self, epoch: &str) {
        self.heard.at(Some(epoch.to_owned()));
    }

    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubt.reason().is_some()
    }

    /// A catch-up has gone through: the journal knows everything.
    pub(crate) fn is_settled(&mut self) {
        if self.is_doubtful() {
            self.doubt.tell(None);
        }
    }

    /// At a new link: whether somebody has spoken in this node's name whom this run does not remember, such as the
    /// future of a machine that was set back while it ran.
    ///
    /// # Errors
    /// Also when that one may be alive; whoever gives the life signs finds out.
    pub(crate) async fn look(&mut self, bus: &Bus, identity: &Identity) -> Result<(), BusError> {
        let known = self.revision.load(Ordering::Relaxed);
        let found = bus.kv_get(kv::PRESENCE, identity.me.name.as_str()).await?;
        let Some(found) = found.filter(|found| found.sequence != known) else { return Ok(()) };
        self.doubt();
        let is_own = found.signer().is_ok_and(|signer| signer == identity.me.key);
        match serde_json::from_slice::<LifeSign>(&found.payload) {
            // It may be at it right now: what becomes of that, only it can tell.
            Ok(sign) if is_own && twin::is_twin(&sign, identity.boot) => {
                Err(BusError::Conflict { what: "this node's life sign".into() })
            }
            _ => Ok(()),
        }
    }

    /// The entries of those of these orders, none of which the journal knows, that this node has taken before.
    pub(crate) async fn remember(
        &self,
        bus: &Bus,
        identity: &Arc<Identity>,
        orders: Vec<(Order, u64)>,
    ) -> Result<Vec<Entry>, BusError> {
        let heard_floor = self.heard.get();
        let whose = |(order, _): &(Order, u64)| (order.id, order.from.clone(), order.job.clone());
        let recall = move |(order, sequence): (Order, u64), answer| recalled(&order, sequence, answer, heard_floor);
        look_up(bus, identity, orders, whose, recall).await
    }

    /// Those of these entries of the journal of which this node has told more, or something else, as it told them.
    pub(crate) async fn correct(
        &self,
        bus: &Bus,
        identity: &Arc<Identity>,
        entries: Vec<Entry>,
    ) -> Result<Vec<Entry>, BusError> {
        let whose = |entry: &Entry| (entry.id, entry.from.clone(), entry.job.clone());
        look_up(bus, identity, entries, whose, corrected).await
    }
}

/// Looks up what this node last said about each of `wanted`, several at once, and makes of it what `judge` says.
async fn look_up<T: Send + 'static>(
    bus: &Bus,
    identity: &Arc<Identity>,
    wanted: Vec<T>,
    whose: impl Fn(&T) -> (OrderId, NodeName, JobId),
    judge: impl Fn(T, Option<Reply>) -> Option<Entry>,
) -> Result<Vec<Entry>, BusError> {
    let mut left = wanted.into_iter();
    let mut look_ups = JoinSet::new();
    let mut entries = Vec::new();
    loop {
        while look_ups.len() < LOOK_UPS_MAX
            && let Some(next) = left.next()
        {
            let (bus, identity, (id, from, job)) = (bus.clone(), Arc::clone(identity), whose(&next));
            look_ups.spawn(async move { own_answer(&bus, &identity, id, from, job).await.map(|found| (next, found)) });
        }
        match look_ups.join_next().await {
            None => return Ok(entries),
            Some(Ok(found)) => {
                let (next, answer) = found?;
                entries.extend(judge(next, answer));
            }
            Some(Err(error)) => {
                return Err(BusError::Other { what: "looking up an answer".into(), reason: error.to_string() });
            }
        }
    }
}

/// What this node last said about an order, if the broker still has it.
async fn own_answer(
    bus: &Bus,
    identity: &Identity,
    order: OrderId,
    from: NodeName,
    job: JobId,
) -> Result<Option<Reply>, BusError> {
    let subject = ReplySubject { sender: from, job, node: identity.me.name.clone() };
    let Some(message) = bus.last(REPLIES, &subject.to_string()).await? else { return Ok(None) };
    // Of another key: said by an earlier node of this name, to which the order was not addressed either.
    if message.signer().ok().as_ref() != Some(&identity.me.key) {
        return Ok(None);
    }
    Ok(Reply::parse(&message.payload).ok().filter(|reply| reply.order == order))
}

/// The journal entry of an order that this node has taken before; `None` when it has not. Pure but for the time.
fn recalled(order: &Order, sequence: u64, answer: Option<Reply>, heard_floor: u64) -> Option<Entry> {
    let (history, reason, outcome) = match answer {
        Some(reply) => (reply.history, reply.reason, reply.outcome),
        None if sequence <= heard_floor => (History::new(), None, None),
        None => return None,
    };
    let told = history.step();
    let (history, reason) = ended(history, reason)?;
    Some(Entry { reason, outcome, reported: told, ..Entry::new(order, sequence, history, clock::message_id()) })
}

/// The entry as it is to be, when this node has told more of its order than the journal knows, or something else: what
/// was told counts. `None` when it stands as it is. Pure but for the time.
fn corrected(entry: Entry, answer: Option<Reply>) -> Option<Entry> {
    let told = answer?;
    if entry.history.clone().merge(&told.history) == Merge::Stale {
        return None;
    }
    let reported = told.history.step();
    let (history, reason) = ended(told.history, told.reason)?;
    Some(Entry { history, reason, outcome: told.outcome, body: None, reported, ..entry })
}

/// A history that was told before the journal was lost or set back, with its end.
fn ended(mut history: History, reason: Option<String>) -> Option<(History, Option<String>)> {
    if history.state().is_terminal() {
        return Some((history, reason));
    }
    let reason = "this node had taken it before its journal was lost or set back; whether it was run is not known, and it was \
         not run again";
    // It may follow every state that is not the last.
    history.push(State::Interrupted, clock::now()).ok()?;
    Some((history, Some(reason.into())))
}

#[cfg(test)]
mod tests {
    use message::{Addressee, PublicKey, Timestamp, Token, subject::Kind};
    use nkeys::{KeyPair, KeyPairType};

    use super::*;

    fn order() -> Order {
        let pair = KeyPair::new_from_raw(KeyPairType::User, [7; 32]).unwrap();
        Order {
            v: 1,
            kind: Kind::Command,
            id: OrderId::from_bytes([1; 16]),
            job: JobId::new(1, 1),
            to: Addressee { name: NodeName::new("ship1").unwrap(), key: PublicKey::of(&pair) },
            method: Token::method("shellcommand").unwrap(),
            domain: Token::domain("operatingsystem").unwrap(),
            from: NodeName::new("central").unwrap(),
            created: Timestamp::from_ms(1),
            expires: Timestamp::from_ms(2),
            timeout_ms: 1,
            max_output_bytes: 1,
            args: serde_json::json!({}),
            supersede: None,
            secrets: None,
        }
    }

    fn answer(states: &[State]) -> Reply {
        let order = order();
        let mut history = History::new();
        for state in states {
            history.push(*state, Timestamp::from_ms(5)).unwrap();
        }
        Reply {
            v: 1,
            kind: message::reply::ReplyKind::Reply,
            order: order.id,
            job: order.job,
            node: order.to.name,
            method: order.method,
            domain: order.domain,
            step: history.step(),
            history,
            reason: None,
            outcome: None,
            clock_error_ms: None,
        }
    }

    #[test]
    fn what_was_answered_is_not_run_again_and_says_what_it_said() {
        let done =
            recalled(&order(), 9, Some(answer(&[State::Delivered, State::Running, State::Succeeded])), 0).unwrap();
        assert_eq!((done.history.state(), done.is_settled()), (State::Succeeded, true));
        for begun in [&[State::Delivered][..], &[State::Delivered, State::Running]] {
            let entry = recalled(&order(), 9, Some(answer(begun)), 0).unwrap();
            assert_eq!((entry.history.state(), entry.is_settled()), (State::Interrupted, false));
        }
    }

    #[test]
    fn what_the_broker_heard_was_taken_is_interrupted_and_what_is_new_is_taken() {
        let gap = recalled(&order(), 9, None, 9).unwrap();
        assert_eq!((gap.history.state(), gap.reported), (State::Interrupted, 0));
        assert_eq!(recalled(&order(), 10, None, 9), None);
    }
}
