//! The orders in hand: those that wait or run, and who may still change what becomes of each.
//!
//! An order has one writer at a time. While it waits, its process may begin it, and intake may withdraw it because it
//! was cancelled or superseded; whichever comes first *here* may journal what follows. While it runs, its process
//! alone writes: others can only ask it to end. Nothing here is on disk and nothing here decides: after a restart
//! the journal tells what is in hand.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use journal::Entry;
use message::{JobId, OrderId, PublicKey, State, Token};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Orders that wait or run. As many as there are places, at most.
pub(crate) struct InHand {
    table: Mutex<BTreeMap<OrderId, Held>>,
    /// Something has left the table or become free again.
    changed: Notify,
    stop: CancellationToken,
}

struct Held {
    job: JobId,
    key: Option<Token>,
    sequence: u64,
    signer: Option<PublicKey>,
    stage: Stage,
}

enum Stage {
    Waiting,
    /// Intake journals that it will never run; until that is on disk its process has to wait.
    Withdrawing,
    Running {
        cancel: CancellationToken,
        /// Who wanted its end, in words.
        cancelled_by: Option<String>,
    },
}

/// How far an order in hand is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It has not begun; it may be withdrawn.
    Waiting,
    /// It has begun; its process can be asked to end it.
    Running,
}

impl InHand {
    /// Nothing is in hand. What runs is asked to end when `stop` is cancelled.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { table: Mutex::default(), changed: Notify::new(), stop }
    }

    // Each change is whole in itself: what a panic left behind is a table like any other.
    fn table(&self) -> MutexGuard<'_, BTreeMap<OrderId, Held>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> Stage {
        Stage::Running { cancel: self.stop.child_token(), cancelled_by: None }
    }

    /// Takes an order in hand that is journaled as `delivered` or `running`.
    pub(crate) fn add(&self, entry: &Entry) {
        let stage = if entry.history.state() == State::Running { self.running() } else { Stage::Waiting };
        let (job, key, signer) = (entry.job.clone(), entry.supersede.clone(), entry.by.clone());
        self.table().insert(entry.id, Held { job, key, sequence: entry.sequence, signer, stage });
    }

    /// For the order's process: whether it may begin now. Waits while intake is about to withdraw the order.
    pub(crate) async fn begin(&self, id: &OrderId) -> bool {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Listening begins before looking, so that no change falls in between.
            changed.as_mut().enable();
            match self.table().get_mut(id) {
                None => return false,
                Some(Held { stage: Stage::Withdrawing, .. }) => {}
                Some(held) => {
                    if matches!(held.stage, Stage::Waiting) {
                        held.stage = self.running();
                    }
                    return true;
                }
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                () = changed => {}
            }
        }
    }

    /// The order of a job, if it is in hand.
    pub(crate) fn find(&self, job: &JobId) -> Option<(OrderId, Found)> {
        let table = self.table();
        let (id, held) = table.iter().find(|(_, held)| held.job == *job)?;
        let found = if matches!(held.stage, Stage::Running { .. }) { Found::Running } else { Found::Waiting };
        Some((*id, found))
    }

    /// The waiting orders under a key that are older than `sequence`.
    pub(crate) fn waiting_under(&self, key: &Token, sequence: u64) -> Vec<OrderId> {
        let table = self.table();
        let older = |held: &Held| held.key.as_ref() == Some(key) && held.sequence < sequence;
        let found = table.iter().filter(|(_, held)| matches!(held.stage, Stage::Waiting) && older(held));
        found.map(|(id, _)| *id).collect()
    }

    /// The waiting orders, and who has signed each.
    pub(crate) fn waiting_by(&self) -> Vec<(OrderId, PublicKey)> {
        let table = self.table();
        let waiting = table.iter().filter(|(_, held)| matches!(held.stage, Stage::Waiting));
        waiting.filter_map(|(id, held)| Some((*id, held.signer.clone()?))).collect()
    }

    /// Keeps a waiting order from beginning; `false` when it is too late. [`InHand::withdrawn`] must follow.
    pub(crate) fn withdraw(&self, id: &OrderId) -> bool {
        match self.table().get_mut(id) {
            Some(held) if matches!(held.stage, Stage::Waiting) => {
                held.stage = Stage::Withdrawing;
                true
            }
            _ => false,
        }
    }

    /// What became of a withdrawal: on disk, or not, and then the order waits as before.
    pub(crate) fn withdrawn(&self, id: &OrderId, on_disk: bool) {
        let mut table = self.table();
        if on_disk {
            table.remove(id);
        } else if let Some(held) = table.get_mut(id) {
            held.stage = Stage::Waiting;
        }
        drop(table);
        self.changed.notify_waiters();
    }

    /// Asks a running order to end. The first who asks is named.
    pub(crate) fn cancel(&self, id: &OrderId, by: &str) {
        if let Some(Held { stage: Stage::Running { cancel, cancelled_by }, .. }) = self.table().get_mut(id) {
            cancelled_by.get_or_insert_with(|| by.to_owned());
            cancel.cancel();
        }
    }

    /// What a running order ends by when it is cancelled, or the agent is stopped.
    pub(crate) fn token(&self, id: &OrderId) -> CancellationToken {
        match self.table().get(id) {
            Some(Held { stage: Stage::Running { cancel, .. }, .. }) => cancel.clone(),
            _ => self.stop.child_token(),
        }
    }

    /// Who wanted the end of a running order, if anybody did.
    pub(crate) fn cancelled_by(&self, id: &OrderId) -> Option<String> {
        match self.table().get(id) {
            Some(Held { stage: Stage::Running { cancelled_by, .. }, .. }) => cancelled_by.clone(),
            _ => None,
        }
    }

    /// An order has ended, and that is on disk.
    pub(crate) fn end(&self, id: &OrderId) {
        self.table().remove(id);
        self.changed.notify_waiters();
    }

    /// Returns when an order is not in hand any more.
    pub(crate) async fn gone(&self, id: &OrderId) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if !self.table().contains_key(id) {
                return;
            }
            changed.await;
        }
    }

    /// The broker's store is a new one: whatever comes from it is newer than all that is in hand.
    pub(crate) fn forget_sequences(&self) {
        self.table().values_mut().for_each(|held| held.sequence = 0);
    }
}

#[cfg(test)]
mod tests {
    use message::{History, MessageId, NodeName, Timestamp};
    use proptest::prelude::*;

    use super::*;

    fn entry(number: u8, key: Option<&str>, states: &[State]) -> Entry {
        let mut history = History::new();
        for state in states {
            history.push(*state, Timestamp::from_ms(1)).unwrap();
        }
        Entry {
            id: OrderId::from_bytes([number; 16]),
            sequence: u64::from(number),
            job: JobId::new(1, u128::from(number)),
            from: NodeName::new("central").unwrap(),
            method: Token::method("shellcommand").unwrap(),
            domain: Token::domain("operatingsystem").unwrap(),
            expires: Timestamp::from_ms(1_000),
            supersede: key.map(|key| Token::key(key).unwrap()),
            history,
            reason: None,
            outcome: None,
            body: None,
            reply_id: MessageId::from_bytes([number; 16]),
            by: None,
            approvals: vec![],
            reported: 0,
        }
    }

    #[tokio::test]
    async fn what_is_withdrawn_never_begins_and_what_has_begun_is_not_withdrawn() {
        let hand = InHand::new(CancellationToken::new());
        let (one, two) = (entry(1, None, &[State::Delivered]), entry(2, None, &[State::Delivered]));
        hand.add(&one);
        hand.add(&two);
        assert!(hand.withdraw(&one.id));
        assert!(!hand.withdraw(&one.id), "once");
        assert!(hand.begin(&two.id).await);
        assert!(!hand.withdraw(&two.id), "it runs");
        hand.withdrawn(&one.id, true);
        assert!(!hand.begin(&one.id).await);
        assert_eq!(hand.find(&one.job), None);
        assert_eq!(hand.find(&two.job), Some((two.id, Found::Running)));
    }

    #[tokio::test]
    async fn a_process_waits_for_what_becomes_of_a_withdrawal() {
        let hand = InHand::new(CancellationToken::new());
        let one = entry(1, None, &[State::Delivered]);
        for on_disk in [false, true] {
            hand.add(&one);
            assert!(hand.withdraw(&one.id));
            let (begins, ()) = tokio::join!(hand.begin(&one.id), async {
                tokio::task::yield_now().await;
                hand.withdrawn(&one.id, on_disk);
            });
            assert_eq!(begins, !on_disk);
        }
    }

    #[tokio::test]
    async fn a_running_order_is_asked_to_end_and_the_first_who_asked_is_named() {
        let hand = InHand::new(CancellationToken::new());
        let one = entry(1, None, &[State::Delivered, State::Running]);
        hand.add(&one);
        let token = hand.token(&one.id);
        hand.cancel(&one.id, "alice");
        hand.cancel(&one.id, "bob");
        assert!(token.is_cancelled());
        assert_eq!(hand.cancelled_by(&one.id).as_deref(), Some("alice"));
        tokio::join!(hand.gone(&one.id), async { hand.end(&one.id) });
    }

    proptest! {
        /// Whatever comes and begins in whichever order: each newcomer withdraws all that wait under its key and are
        /// older, so that at most one waits under a key, and nothing newer than it is withdrawn.
        #[test]
        fn at_most_one_order_waits_under_a_key(steps in proptest::collection::vec((0_u8..3, any::<bool>()), 1..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let hand = InHand::new(CancellationToken::new());
            let mut waiting: BTreeMap<u8, OrderId> = BTreeMap::new();
            for (number, (key, begins)) in (1_u8..).zip(steps) {
                let text = format!("k{key}");
                let new = entry(number, Some(&text), &[State::Delivered]);
                let token = Token::key(text).unwrap();
                let older = hand.waiting_under(&token, new.sequence);
                prop_assert_eq!(older.first(), waiting.get(&key));
                prop_assert!(older.len() <= 1);
                for id in older {
                    prop_assert!(hand.withdraw(&id));
                    hand.withdrawn(&id, true);
                }
                hand.add(&new);
                waiting.insert(key, new.id);
                if begins {
                    prop_assert!(runtime.block_on(hand.begin(&new.id)));
                    waiting.remove(&key);
                }
            }
        }
    }
}
