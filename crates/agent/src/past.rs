//! What this node did before, where its journal may not know it: a unit that was enrolled anew, a snapshot that was
//! restored, a clone that went on alone for a while.
//!
//! The witness is the node itself: its own signed replies, which the broker keeps. An order that it has answered is
//! never run again. What the broker heard it had taken (the floor of its last life sign), and it has not answered
//! either, may have been run: that is told as `interrupted`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bus::{Bus, BusError, clock, kv};
use journal::Entry;
use message::{History, Order, Reply, ReplySubject, State};
use tokio::task::JoinSet;

use crate::run::Identity;

/// How many answers are looked up at once.
const LOOK_UPS_MAX: usize = 32;
/// The stream of answers.
const REPLIES: &str = "REPLIES";

/// Whether the journal may be older than what this node did.
#[derive(Debug)]
pub(crate) struct Past {
    doubtful: bool,
    /// The revision of the last life sign that this run has made.
    revision: Arc<AtomicU64>,
    /// The highest floor that the broker has heard of before this run.
    heard_floor: Arc<AtomicU64>,
}

impl Past {
    /// At the start of a run nothing is certain.
    pub(crate) fn new(revision: Arc<AtomicU64>, heard_floor: Arc<AtomicU64>) -> Self {
        Self { doubtful: true, revision, heard_floor }
    }

    /// From now on nothing is certain.
    pub(crate) fn doubt(&mut self) {
        self.doubtful = true;
    }

    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// A catch-up has gone through: the journal knows everything.
    pub(crate) fn is_settled(&mut self) {
        self.doubtful = false;
    }

    /// At a new link: whether somebody has spoken in this node's name whom this run does not remember, such as the
    /// future of a machine that was set back while it ran.
    pub(crate) async fn look(&mut self, bus: &Bus, identity: &Identity) -> Result<(), BusError> {
        let known = self.revision.load(Ordering::Relaxed);
        let found = bus.kv_get(kv::PRESENCE, identity.me.name.as_str()).await?;
        self.doubtful |= found.is_some_and(|sign| sign.sequence != known);
        Ok(())
    }

    /// The entries of those of these orders, none of which the journal knows, that this node has taken before.
    pub(crate) async fn remember(
        &self,
        bus: &Bus,
        identity: &Arc<Identity>,
        orders: Vec<(Order, u64)>,
    ) -> Result<Vec<Entry>, BusError> {
        let heard_floor = self.heard_floor.load(Ordering::Relaxed);
        let mut left = orders.into_iter();
        let mut look_ups = JoinSet::new();
        let mut entries = Vec::new();
        loop {
            while look_ups.len() < LOOK_UPS_MAX
                && let Some((order, sequence)) = left.next()
            {
                let (bus, identity) = (bus.clone(), Arc::clone(identity));
                look_ups.spawn(async move {
                    let answer = own_answer(&bus, &identity, &order).await?;
                    Ok::<_, BusError>(recalled(&order, sequence, answer, heard_floor))
                });
            }
            match look_ups.join_next().await {
                None => return Ok(entries),
                Some(Ok(found)) => entries.extend(found?),
                Some(Err(error)) => {
                    return Err(BusError::Other { what: "looking up an answer".into(), reason: error.to_string() });
                }
            }
        }
    }
}

/// What this node last said about an order, if the broker still has it.
async fn own_answer(bus: &Bus, identity: &Identity, order: &Order) -> Result<Option<Reply>, BusError> {
    let subject = ReplySubject { sender: order.from.clone(), job: order.job.clone(), node: identity.me.name.clone() };
    let Some(message) = bus.last(REPLIES, &subject.to_string()).await? else { return Ok(None) };
    // Of another key: said by an earlier node of this name, to which the order was not addressed either.
    if message.signer().ok().as_ref() != Some(&identity.me.key) {
        return Ok(None);
    }
    Ok(Reply::parse(&message.payload).ok().filter(|reply| reply.order == order.id))
}

/// The journal entry of an order that this node has taken before; `None` when it has not. Pure but for the time.
fn recalled(order: &Order, sequence: u64, answer: Option<Reply>, heard_floor: u64) -> Option<Entry> {
    let (mut history, mut reason, outcome) = match answer {
        Some(reply) => (reply.history, reply.reason, reply.outcome),
        None if sequence <= heard_floor => (History::new(), None, None),
        None => return None,
    };
    let told = history.step();
    if !history.state().is_terminal() {
        reason = Some(
            "this node had taken it before its journal was lost or set back; whether it was run is not known, and it \
             was not run again"
                .into(),
        );
        // It may follow every state that is not the last.
        history.push(State::Interrupted, clock::now()).ok()?;
    }
    Some(Entry {
        id: order.id,
        sequence,
        job: order.job.clone(),
        from: order.from.clone(),
        method: order.method.clone(),
        domain: order.domain.clone(),
        expires: order.expires,
        supersede: order.supersede.clone(),
        signer: None,
        history,
        reason,
        outcome,
        body: None,
        reply_id: clock::message_id(),
        reported: told,
    })
}

#[cfg(test)]
mod tests {
    use message::{Addressee, JobId, NodeName, OrderId, PublicKey, Timestamp, Token, subject::Kind};
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
