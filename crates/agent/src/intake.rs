//! Intake: takes orders from the bus, live and by catch-up, and journals each before anything is said about it.
//!
//! The one task that moves the cursor. What comes live passes only in an unbroken chain; only verified, new orders
//! move a head, and only a completed catch-up raises the floor. What a cancel or a newer order of a key does to others
//! is decided here too (`withdraw`).

mod approve;
mod withdraw;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus::chain::{Arrival, Chain};
use bus::{Bus, BusError, LiveOrders, LiveStored, Message, clock, kv, live};
use journal::{Cursor, Entry, Journal, JournalError, Newest, Tombstone, Write};
use message::method::{APPROVE, CANCEL};
use message::policy::Decision;
use message::{History, Operator, Order, PublicKey, State, Timestamp, Token};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::counters::{self, Counters};
use crate::fleettime;
use crate::halt::Halt;
use crate::in_hand::Found;
use crate::judge::{Grounds, Verdict, judge};
use crate::outbox::Outbox;
use crate::past::Past;
use crate::policy::Gate;
use crate::process::{Processes, Task};
use crate::run::Identity;
use crate::trust::Trusted;
use withdraw::Ending;
pub(crate) use withdraw::left_waiting;

/// The most orders that may wait or run at once; beyond it, what comes stays at the broker.
pub(crate) const PLACES: usize = 10_000;
/// The most orders journaled in one commit.
const BATCH_MAX: usize = 64;
/// Between two catch-ups that broken chains ask for, at least.
const CATCH_UP_INTERVAL: Duration = Duration::from_secs(1);
/// Without any reason, a catch-up is made this often: it finds what was dropped between brokers while the link
/// stayed up, and raises the floor, so that a restart has less to read.
const ROUTINE_MIN: Duration = Duration::from_secs(3600);
const ROUTINE_JITTER_MS: u64 = 1_800_000;
/// The longest wait after catch-ups that failed.
const CATCH_UP_RETRY_MAX: Duration = Duration::from_secs(20);
/// Between two times that heads and watermark are journaled, at least.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// The most sequences remembered as counted.
const NOTED_MAX: usize = 4096;

/// Everything intake works with.
pub(crate) struct Intake {
    pub(crate) bus: Bus,
    pub(crate) journal: Journal,
    pub(crate) identity: Arc<Identity>,
    pub(crate) trusted: Arc<Trusted>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) degraded: watch::Sender<Option<String>>,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) floor: Arc<AtomicU64>,
    pub(crate) chain: Chain,
    /// What was discarded or repeated live and will be met again by a catch-up: judged again, since what comes
    /// live may lie about its sequence, but not counted again.
    pub(crate) noted: BTreeSet<u64>,
    /// Heads that are not journaled yet, and when they last were.
    pub(crate) heads: BTreeMap<String, u64>,
    pub(crate) saved: Instant,
    /// The watermark as it was journaled, for those who prune by it.
    pub(crate) watermark_saved: watch::Sender<Timestamp>,
    pub(crate) epoch: Option<String>,
    pub(crate) watermark: Timestamp,
    /// Why nothing is taken, as long as another agent lives under this name.
    pub(crate) cloned: Halt,
    /// What this node is known to have done before.
    pub(crate) past: Past,
    /// Orders that are journaled and not yet handed to their processes: during a catch-up, until it has told what was
    /// cancelled or superseded behind them. `None` when none is under way.
    pub(crate) held: Option<Vec<Held>>,
}

/// An order that waits for the end of a catch-up.
pub(crate) struct Held {
    pub(crate) method: Token,
    pub(crate) domain: Token,
    pub(crate) task: Task,
}

/// An order that was decided about, on its way into the journal.
struct Decided {
    entry: Entry,
    place: Option<OwnedSemaphorePermit>,
    /// Whether it was claimed for its process.
    runs: bool,
    subject: String,
    /// The policy's rule that decided, and who signed: for the audit log.
    rule: Option<String>,
    signer: Option<PublicKey>,
}

impl Intake {
    /// Where the cursor stood.
    pub(crate) fn chain_of(cursor: &Cursor) -> Chain {
        Chain::new(cursor.floor, cursor.heads.iter().cloned())
    }

    pub(crate) async fn run(mut self, cancel: CancellationToken) -> Result<(), BusError> {
        let mut live = LiveOrders::open(&self.bus, &self.identity.me.name).await?;
        let hints = [format!("core.KV.{}.*", kv::POLICY)];
        let mut hints = LiveStored::open(&self.bus, &hints).await?;
        let mut link = self.bus.link();
        let mut seen_link = *link.borrow_and_update();
        // The first thing to do, as soon as the link is up.
        let mut due: Option<Instant> = Some(Instant::now());
        let mut last_catch_up = Instant::now();
        let mut greeted = false;
        let mut retry = CATCH_UP_INTERVAL;
        loop {
            let wake = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let halted = self.cloned.is_on();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = self.cloned.changed() => {
                    // What the other did meanwhile must not be done again.
                    self.past.doubt();
                    greeted = false;
                    due = Some(Instant::now());
                }
                changed = link.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let now = *link.borrow_and_update();
                    if now.ups != seen_link.ups || now.overruns != seen_link.overruns {
                        greeted &= now.ups == seen_link.ups;
                        due = Some(Instant::now());
                    }
                    seen_link = now;
                }
                hint = hints.next() => {
                    let Some(hint) = hint else { return Ok(()) };
                    if self.trusted.hear(&hint.message, &self.journal).await {
                        self.processes.audit().nudge();
                        if let Err(error) = self.withdraw_revoked().await {
                            self.fall_back(&error).await;
                            due = Some(Instant::now());
                        }
                    }
                }
                () = tokio::time::sleep_until(wake), if due.is_some() && self.bus.is_up() && !halted => {
                    last_catch_up = Instant::now();
                    let caught_up = tokio::select! {
                        biased;
                        () = cancel.cancelled() => return Ok(()),
                        caught_up = self.catch_up(greeted, &mut live, &cancel) => caught_up,
                    };
                    // Also when it failed: what was accepted does not wait for a broker.
                    self.release();
                    match caught_up {
                        Ok(()) => {
                            greeted = true;
                            retry = CATCH_UP_INTERVAL;
                            due = Some(Instant::now() + ROUTINE_MIN + Duration::from_millis(clock::jitter(ROUTINE_JITTER_MS)));
                        }
                        Err(problem) => {
                            tracing::debug!(%problem, "a catch-up failed; it is tried again");
                            let wait = retry / 2 + Duration::from_millis(clock::jitter(retry.as_millis() as u64 / 2));
                            due = Some(Instant::now() + wait);
                            retry = (retry * 2).min(CATCH_UP_RETRY_MAX);
                        }
                    }
                }
                message = live.next() => {
                    let Some(first) = message else { return Ok(()) };
                    if halted {
                        // It stays at the broker; the catch-up that follows the halt finds it.
                        continue;
                    }
                    let mut batch = Batch::default();
                    let mut gap = false;
                    let mut next = Some(first);
                    while let Some(live_message) = next.take() {
                        let message = &live_message.message;
                        match self.chain.judge(&message.subject, message.sequence, live_message.previous) {
                            Arrival::Seen => {}
                            Arrival::Gap => gap = true,
                            Arrival::Next => {
                                if !self.consider(message, &mut batch, &cancel).await {
                                    return Ok(());
                                }
                            }
                        }
                        if batch.decided.len() < BATCH_MAX && !gap {
                            next = live.ready();
                        }
                    }
                    if let Err(error) = self.journal_batch(batch).await {
                        self.fall_back(&error).await;
                        gap = true;
                    }
                    if gap {
                        let soon = Instant::now().max(last_catch_up + CATCH_UP_INTERVAL);
                        due = Some(due.map_or(soon, |due| due.min(soon)));
                    }
                }
            }
        }
    }

    /// Judges a message and adds what follows from it to `batch`. `false` when the agent ends.
    async fn consider(&mut self, message: &Message, batch: &mut Batch, cancel: &CancellationToken) -> bool {
        let trust = self.trusted.current();
        let now = fleettime::now_for_expiry(self.identity.time.now(), message.stored_at, self.watermark);
        let grounds = Grounds { me: &self.identity.me, trust: &trust, now };
        let (order, operator, refused) = match judge(&message.subject, &message.payload, message.seal(), grounds) {
            Verdict::Discard(_) if self.was_noted(message.sequence) => return true,
            Verdict::Discard(discard) => {
                let count = self.counters.discard(discard.counter(), Some(counters::sample(message)));
                self.processes.audit().nudge();
                // The first few and then every thousandth: a flood must not fill the log as well.
                if count <= 10 || count.is_multiple_of(1000) {
                    tracing::warn!(subject = %message.subject, reason = %discard, count, "a message was discarded");
                }
                return true;
            }
            Verdict::Refuse { order, state, reason } => (order, None, Some((state, reason))),
            Verdict::Take { order, operator } => (order, Some(operator), None),
        };
        let known = match self.journal.find(&order.id) {
            Ok(found) => found.is_some() || batch.ids.contains(&order.id),
            Err(error) => {
                // Whoever cannot read knows nothing: passed over as known, it would soon lie below the floor.
                batch.broken = Some(error);
                return true;
            }
        };
        if known && self.was_noted(message.sequence) {
            return true;
        }
        if known {
            self.counters.repeated.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(order = %order.id, "an order was delivered again; it is not run again");
            return true;
        }
        match self.decide(&order, operator.as_ref().zip(Some(now)), refused, message, batch, cancel).await {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                // Not taken: the catch-up that follows meets it again.
                batch.broken = Some(error);
                return true;
            }
        }
        if fleettime::may_move_watermark(
            order.created,
            self.watermark,
            self.identity.time.now(),
            message.stored_at,
            clock::now(),
        ) {
            self.watermark = order.created;
        }
        self.chain.take(&message.subject, message.sequence);
        batch.ids.insert(order.id);
        true
    }

    /// Decides about a verified, new order, and adds it to `batch`. `false` when the agent ends.
    async fn decide(
        &mut self,
        order: &Order,
        signed: Option<(&Operator, Timestamp)>,
        refused: Option<(State, String)>,
        message: &Message,
        batch: &mut Batch,
        cancel: &CancellationToken,
    ) -> Result<bool, JournalError> {
        let refused = match refused {
            Some(refused) => Some(refused),
            None => self.foregone(order, signed.map(|(operator, _)| &operator.key), message.sequence, batch)?,
        };
        let decision = signed.map(|(operator, now)| self.gate.decide(order, Some(&operator.key), now));
        if refused.is_none()
            && order.method.as_str() == CANCEL
            && let (Some((operator, _)), Some(decision)) = (signed, &decision)
        {
            self.cancel(order, operator, decision, message, batch).await?;
            return Ok(true);
        }
        if refused.is_none()
            && order.method.as_str() == APPROVE
            && let Some((operator, now)) = signed
        {
            self.approve(order, operator, now, message, batch)?;
            return Ok(true);
        }
        let rule = decision.as_ref().and_then(|decision| match decision {
            Decision::Allowed { rule, .. } | Decision::NeedsApprovals { rule, .. } => Some(rule.clone()),
            Decision::Denied { rule, .. } => rule.clone(),
        });
        let (denied, held) = match decision {
            Some(Decision::Denied { reason, .. }) => (Some((State::Rejected, reason)), None),
            Some(Decision::NeedsApprovals { rule, approvals, .. }) => (None, Some(held_by(&rule, approvals))),
            _ => (None, None),
        };
        let refused = refused.or(denied);
        let refused =
            refused.or_else(|| self.processes.method(&order.method).err().map(|reason| (State::Rejected, reason)));
        let refused = refused.or_else(|| {
            let (operator, _) = signed?;
            self.processes.unreadable(order, &operator.key).map(|reason| (State::Rejected, reason))
        });
        let mut idle = false;
        let mut place = None;
        let refused = match refused {
            Some(refused) => Some(refused),
            None => {
                // Where nothing more may wait, the broker keeps it; and nothing is held back that would make room.
                place = Arc::clone(&self.places).try_acquire_owned().ok();
                if place.is_none() {
                    self.release_and_hold();
                    place = tokio::select! {
                        biased;
                        () = cancel.cancelled() => return Ok(false),
                        permit = Arc::clone(&self.places).acquire_owned() => permit.ok(),
                    };
                }
                match self.processes.claim(&order.method, &order.domain) {
                    Ok(alone) => {
                        idle = alone;
                        None
                    }
                    Err(reason) => {
                        place = None;
                        Some((State::Rejected, reason))
                    }
                }
            }
        };
        let runs = refused.is_none();
        if runs
            && let Some(key) = &order.supersede
            && let Err(error) = self.supersede(key, order, message.sequence, batch)
        {
            self.processes.unclaim(&order.method, &order.domain);
            return Err(error);
        }
        // While a catch-up goes on, nothing begins at once: what it brings next may take it back.
        let mut entry = entry(order, message, refused, idle && held.is_none() && self.held.is_none());
        entry.by = signed.map(|(operator, _)| operator.key.clone());
        entry.reason = entry.reason.or(held);
        let signer = message.signer().ok();
        batch.decided.push(Decided { entry, place, runs, subject: message.subject.clone(), rule, signer });
        Ok(true)
    }

    /// Whether a message that does not move the chain was counted before; notes it if not.
    fn was_noted(&mut self, sequence: u64) -> bool {
        if sequence <= self.chain.floor() || !self.noted.insert(sequence) {
            return true;
        }
        if self.noted.len() > NOTED_MAX {
            self.noted.pop_first();
        }
        false
    }

    /// Journals a batch in one commit; then, and only then, tells and runs.
    async fn journal_batch(&mut self, mut batch: Batch) -> Result<(), JournalError> {
        if let Some(error) = batch.broken.take() {
            self.give_back(&batch);
            return Err(error);
        }
        if batch.decided.is_empty() && batch.withdrawn.is_empty() {
            return Ok(());
        }
        let mut writes = Vec::with_capacity(batch.decided.len() + 1);
        for decided in &batch.decided {
            writes.push(Write::Entry(Box::new(decided.entry.clone())));
            self.heads.insert(decided.subject.clone(), decided.entry.sequence);
        }
        batch.add_to(&mut writes);
        self.account_for(&batch, &mut writes);
        self.save_progress(&mut writes);
        if let Err(error) = self.journal.commit(writes).await {
            self.give_back(&batch);
            return Err(error);
        }
        self.processes.audit().nudge();
        // Before anything is told: what was withdrawn must not keep its place while the broker is slow.
        for entry in &batch.withdrawn {
            self.let_go(entry);
        }
        for entry in &batch.withdrawn {
            self.outbox.report(entry).await;
        }
        for entry in &batch.approved {
            self.processes.in_hand().withdrawn(&entry.id, false);
            self.processes.unpark(&entry.id);
        }
        for Decided { entry, place, runs, .. } in batch.decided {
            self.outbox.report(&entry).await;
            if runs {
                self.processes.in_hand().add(&entry);
                let (method, domain, id) = (entry.method.clone(), entry.domain.clone(), entry.id);
                let begun = (entry.history.state() == State::Running).then(|| Box::new(entry));
                self.hand_over(Held { method, domain, task: Task { id, begun, place } });
            } else if let Some(Ending { order, job, by, limit, .. }) =
                batch.endings.iter().find(|ending| ending.cancel == entry.id)
            {
                self.processes.end_running(entry, job.clone(), *order, by, *limit);
            }
        }
        Ok(())
    }

    /// What was decided goes into the audit log, in the same commit.
    fn account_for(&self, batch: &Batch, writes: &mut Vec<Write>) {
        let (audit, policy) = (self.processes.audit(), *self.gate.version().borrow());
        for decided in &batch.decided {
            audit.decided(&decided.entry, decided.signer.as_ref(), (decided.rule.as_deref(), policy), writes);
        }
        for entry in &batch.withdrawn {
            audit.withdrawn(entry, policy, writes);
        }
    }

    /// Hands an order to its process, or holds it back while a catch-up goes on.
    fn hand_over(&mut self, order: Held) {
        match &mut self.held {
            Some(held) => held.push(order),
            None => self.processes.dispatch(&order.method, &order.domain, order.task),
        }
    }

    /// Hands over all that was held back, and holds back no longer.
    fn release(&mut self) {
        for order in self.held.take().into_iter().flatten() {
            self.processes.dispatch(&order.method, &order.domain, order.task);
        }
    }

    /// Hands over all that was held back until now.
    fn release_and_hold(&mut self) {
        if self.held.is_some() {
            self.release();
            self.held = Some(Vec::new());
        }
    }

    /// Adds heads and watermark to a commit, at most once a second: they spare work after a restart, no more.
    /// Without them the next catch-up meets orders again whose ids it knows.
    fn save_progress(&mut self, writes: &mut Vec<Write>) {
        if self.saved.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        self.saved = Instant::now();
        self.watermark_saved.send_replace(self.watermark);
        let heads = std::mem::take(&mut self.heads);
        writes.extend(heads.into_iter().map(|(subject, sequence)| Write::Head { subject, sequence }));
        writes.push(Write::Watermark(self.watermark));
    }

    /// After a failed write: what was taken in memory only counts as not taken.
    async fn fall_back(&mut self, error: &JournalError) {
        tracing::error!(%error, "orders could not be journaled; they stay at the broker");
        self.degraded.send_replace(Some(error.to_string()));
        tokio::time::sleep(CATCH_UP_INTERVAL).await;
        self.chain = Chain::new(self.chain.floor(), []);
        self.heads.clear();
    }

    /// Reads everything behind the floor from the stream; at a new link first what else may have changed.
    async fn catch_up(
        &mut self,
        greeted: bool,
        live: &mut LiveOrders,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        self.held.get_or_insert_default();
        if !greeted {
            self.check_epoch(live).await?;
        }
        let node = self.identity.me.name.clone();
        // Each time: a hint that the list is another may have been lost.
        if greeted {
            self.trusted.refresh(&self.bus, &self.journal).await.map_err(|error| error.to_string())?;
        } else {
            let found = self.bus.standing(&node).await.map_err(|error| error.to_string())?;
            // The list first: it says whose word counts for the rest.
            self.trusted.read(found.trust.as_ref(), &self.journal).await;
            self.gate.read(found.policy.as_ref(), found.record.as_ref()).await;
        }
        self.processes.audit().nudge();
        let mut scan = live::catch_up(&self.bus, &node, self.chain.floor()).await.map_err(|error| error.to_string())?;
        self.identity.time.read(scan.opened_at());
        if !greeted {
            self.past.look(&self.bus, &self.identity).await.map_err(|error| error.to_string())?;
        }
        self.past.notice_others();
        self.look_back().await?;
        let mut floor = self.chain.floor();
        loop {
            let mut messages = Vec::new();
            let mut done = false;
            let mut broken = None;
            while messages.len() < BATCH_MAX {
                let message = match scan.next().await {
                    Ok(Some(message)) => message,
                    Ok(None) => {
                        done = true;
                        break;
                    }
                    Err(error) => {
                        broken = Some(error.to_string());
                        break;
                    }
                };
                floor = floor.max(message.sequence);
                if message.sequence > self.chain.head(&message.subject) {
                    messages.push(message);
                }
            }
            if self.cloned.is_on_now() {
                return Err("another agent lives under this name".into());
            }
            self.remember(&messages).await?;
            let mut batch = Batch::default();
            for message in &messages {
                if !self.consider(message, &mut batch, cancel).await {
                    return Ok(());
                }
            }
            if let Err(error) = self.journal_batch(batch).await {
                self.fall_back(&error).await;
                return Err(error.to_string());
            }
            // Only now: what was decided about has moved its heads, and must be journaled whatever follows. Dropped,
            // it would count as seen in the next catch-up, and be lost for ever.
            if let Some(broken) = broken {
                return Err(broken);
            }
            if done {
                break;
            }
        }
        if floor > self.chain.floor() {
            self.journal.commit(vec![Write::Floor(floor)]).await.map_err(|error| error.to_string())?;
            self.chain.raise_floor(floor);
            self.noted = self.noted.split_off(&(floor + 1));
            self.floor.store(floor, Ordering::Relaxed);
        }
        self.past.is_settled();
        self.withdraw_revoked().await.map_err(|error| error.to_string())?;
        self.degraded.send_if_modified(|reason| reason.take().is_some());
        Ok(())
    }

    /// Where the journal may be older than what this node did: looks up what it had answered to these orders, and
    /// journals that, so that they are known and not run again.
    async fn remember(&mut self, messages: &[Message]) -> Result<(), String> {
        if !self.past.is_doubtful() {
            return Ok(());
        }
        let trust = self.trusted.current();
        let (mut unknown, mut signers) = (Vec::new(), BTreeMap::new());
        for message in messages {
            let grounds = Grounds { me: &self.identity.me, trust: &trust, now: Timestamp::from_ms(i64::MIN) };
            let verdict = judge(&message.subject, &message.payload, message.seal(), grounds);
            let (order, operator) = match verdict {
                Verdict::Take { order, operator } => (order, Some(operator)),
                Verdict::Refuse { order, state: State::Rejected, .. } => (order, None),
                _ => continue,
            };
            if self.journal.find(&order.id).map_err(|error| error.to_string())?.is_none()
                // Once, though it may have been stored several times: a second account would be of another time.
                && unknown.iter().all(|(earlier, _): &(Order, u64)| earlier.id != order.id)
            {
                if let Some(operator) = operator {
                    signers.insert(order.id, (order.clone(), operator));
                }
                unknown.push((*order, message.sequence));
            }
        }
        let entries =
            self.past.remember(&self.bus, &self.identity, unknown).await.map_err(|error| error.to_string())?;
        if entries.is_empty() {
            return Ok(());
        }
        tracing::warn!(orders = entries.len(), "the journal did not know what this node had done; it was looked up");
        let mut batch = Batch::default();
        let mut done = Ok(());
        for entry in &entries {
            if let Some((order, operator)) = signers.get(&entry.id)
                && done.is_ok()
            {
                done = self.do_again(order, operator, entry, &mut batch).await;
            }
        }
        let mut writes: Vec<_> = entries.iter().map(|entry| Write::Entry(Box::new(entry.clone()))).collect();
        batch.add_to(&mut writes);
        if done.is_ok() {
            done = self.journal.commit(writes).await;
        }
        if let Err(error) = done {
            self.give_back(&batch);
            return Err(error.to_string());
        }
        for entry in &batch.withdrawn {
            self.let_go(entry);
        }
        for entry in entries.iter().filter(|entry| !entry.is_settled()).chain(&batch.withdrawn) {
            self.outbox.report(entry).await;
        }
        Ok(())
    }

    /// Where the journal may be older than what this node did: looks up whether it had told more of the orders that it
    /// has not done with, and lets that count.
    async fn look_back(&mut self) -> Result<(), String> {
        if !self.past.is_doubtful() {
            return Ok(());
        }
        let in_hand = self.processes.in_hand();
        let unsettled = self.journal.unsettled().map_err(|error| error.to_string())?;
        let open = unsettled.into_iter().filter(|entry| in_hand.find(&entry.job) != Some((entry.id, Found::Running)));
        let corrected = self.past.correct(&self.bus, &self.identity, open.collect()).await;
        for entry in corrected.map_err(|error| error.to_string())? {
            tracing::warn!(order = %entry.id, state = %entry.history.state(), "this node had told more of an order than its journal knew");
            let waited = self.processes.in_hand().withdraw(&entry.id);
            if let Err(error) = self.journal.commit(vec![Write::Entry(Box::new(entry.clone()))]).await {
                if waited {
                    self.processes.in_hand().withdrawn(&entry.id, false);
                }
                return Err(error.to_string());
            }
            if waited {
                self.let_go(&entry);
            }
            if !entry.is_settled() {
                self.outbox.report(&entry).await;
            }
        }
        Ok(())
    }

    /// Notices a broker whose store was made anew: its sequences mean something else.
    async fn check_epoch(&mut self, live: &mut LiveOrders) -> Result<(), String> {
        let Some(epoch) = self.bus.epoch().await.map_err(|error| error.to_string())? else { return Ok(()) };
        self.past.at_epoch(&epoch);
        if self.epoch.as_ref() != Some(&epoch) {
            if self.epoch.is_some() {
                tracing::warn!("the broker's store is a new one; reading starts from its beginning");
            }
            self.journal.commit(vec![Write::Epoch(epoch.clone())]).await.map_err(|error| error.to_string())?;
            self.chain = Chain::default();
            // What is not saved yet belongs to the old store: under the new epoch it would hide orders.
            self.heads.clear();
            // Nor does what came live and nobody has looked at: taken now, the old store's sequences would become heads
            // in the new one, and hide its orders. What is dropped of the new store, the catch-up reads.
            let dropped = live.clear();
            if dropped > 0 {
                tracing::info!(dropped, "what came live before the broker's store was known is passed over");
            }
            self.noted.clear();
            self.processes.in_hand().forget_sequences();
            self.floor.store(0, Ordering::Relaxed);
            if self.epoch.is_some() {
                // The journal has just made all that was told untold again.
                self.outbox.nudge();
            }
            self.epoch = Some(epoch);
        }
        self.floor.fetch_max(self.chain.floor(), Ordering::Relaxed);
        Ok(())
    }
}

/// Orders decided about together.
#[derive(Default)]
struct Batch {
    decided: Vec<Decided>,
    ids: BTreeSet<message::OrderId>,
    /// Orders that waited and never will begin, as they are to be journaled.
    withdrawn: Vec<Entry>,
    /// Orders that wait and have one approval more, as they are to be journaled. Kept from beginning until they are.
    approved: Vec<Entry>,
    tombstones: Vec<Tombstone>,
    newest: BTreeMap<Token, Newest>,
    endings: Vec<Ending>,
    /// The journal could not be read: nothing of this batch counts.
    broken: Option<JournalError>,
}

impl Batch {
    /// What becomes of other orders.
    fn add_to(&self, writes: &mut Vec<Write>) {
        let changed = self.withdrawn.iter().chain(&self.approved);
        writes.extend(changed.map(|entry| Write::Entry(Box::new(entry.clone()))));
        writes.extend(self.tombstones.iter().cloned().map(Write::Tombstone));
        writes.extend(self.newest.values().cloned().map(Write::Newest));
    }
}

/// The journal entry of a newly arrived order.
fn entry(order: &Order, message: &Message, refused: Option<(State, String)>, begins: bool) -> Entry {
    let steps: &[State] = match &refused {
        Some((state, _)) => &[*state],
        None if begins => &[State::Delivered, State::Running],
        None => &[State::Delivered],
    };
    let runs = refused.is_none();
    Entry {
        reason: refused.map(|(_, reason)| reason),
        body: runs.then(|| String::from_utf8_lossy(&message.payload).into_owned()),
        ..Entry::new(order, message.sequence, history_of(steps), clock::message_id())
    }
}

/// What an order waits for that one operator alone may not have run.
fn held_by(rule: &str, approvals: u32) -> String {
    format!("the policy's rule {rule:?} asks for {approvals} operators: it waits for `steward job approve`")
}

/// A history in which all of this happens now.
fn history_of(states: &[State]) -> History {
    let (now, mut history) = (clock::now(), History::new());
    for state in states {
        // These are all legal first steps; the state machine's own test enumerates them.
        if history.push(*state, now).is_err() {
            tracing::error!(%state, "an order cannot begin in this state");
        }
    }
    history
}
