//! The way out: replies, output and events are published until the broker confirms that it has stored them.
//!
//! Each first try goes out at once, from memory. What fails, and what was left by an earlier run, is read back
//! from the journal and tried again when the link is up. Confirmations are journaled lazily: losing one costs a
//! repetition with the same message id.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus::{Bus, BusError, Headers, clock};
use bytes::Bytes;
use journal::{Entry, Journal, JournalError, OutputRow, Write};
use message::{OrderId, Seal, reply};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::counters::Counters;
use crate::halt::Halt;
use crate::report;
use crate::run::Identity;

/// The most messages on their way at once.
const IN_FLIGHT_MAX: usize = 64;
/// The most bytes of one order's output that wait in memory for a confirmation; beyond it they go to the journal.
const UNCONFIRMED_BYTES_MAX: usize = 256 * 1024;
/// The first and the longest wait before what failed is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// How long a state that is not the last waits for the next one, to be told in one message with it: most commands are
/// over by then, and a message is what costs on a thin link.
const TELL_WAIT: Duration = Duration::from_millis(10);

/// The way out of one agent.
pub(crate) struct Outbox {
    bus: Bus,
    journal: Journal,
    identity: Arc<Identity>,
    counters: Arc<Counters>,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
    /// What will be told in a moment, each with a task of its own.
    soon: Mutex<HashMap<OrderId, Entry>>,
    /// Something is in the journal that should go out.
    behind: AtomicBool,
    wake: Notify,
}

impl Outbox {
    /// Whether more is to be told than the broker confirms just now.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.room.available_permits() == 0 || self.counters.outbox.load(Ordering::Relaxed) as usize > IN_FLIGHT_MAX
    }

    pub(crate) fn new(bus: Bus, journal: Journal, identity: Arc<Identity>, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            bus,
            journal,
            identity,
            counters,
            room: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            tasks: TaskTracker::new(),
            soon: Mutex::default(),
            behind: AtomicBool::new(true),
            wake: Notify::new(),
        })
    }

    /// Publishes what is known of `entry`: its end at once, what comes before within [`TELL_WAIT`]. Waits while too
    /// much is on its way.
    pub(crate) async fn report(self: &Arc<Self>, entry: &Entry) {
        if !entry.history.state().is_terminal() {
            self.report_soon(entry);
            return;
        }
        self.lock_soon().remove(&entry.id);
        let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else { return };
        let outbox = Arc::clone(self);
        let entry = entry.clone();
        self.tasks.spawn(async move {
            let _permit = permit;
            if let Err(error) = outbox.publish_reply(&entry).await {
                outbox.fall_behind(&error);
            }
        });
    }

    /// As many at once as may wait at this node.
    fn report_soon(self: &Arc<Self>, entry: &Entry) {
        let mut told = entry.clone();
        told.body = None;
        if self.lock_soon().insert(entry.id, told).is_some() {
            return;
        }
        let (outbox, id) = (Arc::clone(self), entry.id);
        self.tasks.spawn(async move {
            tokio::time::sleep(TELL_WAIT).await;
            let Ok(_permit) = outbox.room.acquire().await else { return };
            let Some(entry) = outbox.lock_soon().remove(&id) else { return };
            if let Err(error) = outbox.publish_reply(&entry).await {
                outbox.fall_behind(&error);
            }
        });
    }

    fn lock_soon(&self) -> MutexGuard<'_, HashMap<OrderId, Entry>> {
        self.soon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something in the journal should go out: sees to it soon.
    pub(crate) fn nudge(&self) {
        self.behind.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Whether what is not confirmed has to wait for another try.
    pub(crate) fn is_stuck(&self) -> bool {
        !self.bus.is_up() || self.behind.load(Ordering::Relaxed)
    }

    fn fall_behind(&self, error: &BusError) {
        if !error.is_passing() {
            tracing::warn!(%error, "the broker did not take a reply; it stays in the journal and is tried again");
        }
        self.nudge();
    }

    async fn publish_reply(&self, entry: &Entry) -> Result<(), BusError> {
        let node = &self.identity.me.name;
        let reply = report::reply(entry, node, self.identity.time.error_ms(clock::now()));
        let bytes = serde_json::to_vec(&reply)
            .map_err(|error| BusError::Other { what: "writing a reply".into(), reason: error.to_string() })?;
        let seal = Seal::over(&bytes, &self.identity.pair)
            .map_err(|error| BusError::Other { what: "signing a reply".into(), reason: error.to_string() })?;
        let headers = Headers::new().sealed(&seal).with_id(&report::reply_message_id(entry));
        self.bus.publish(&report::reply_subject(entry, node).to_string(), headers, Bytes::from(bytes)).await?;
        // A confirmed intermediate step would only spare its repetition after a crash: not worth a write.
        if entry.history.state().is_terminal() {
            self.journal.commit_lazily(Write::Reported { id: entry.id, step: entry.history.step() }).await;
        }
        Ok(())
    }

    async fn publish_output(&self, entry: &Entry, number: u32, is_stderr: bool, bytes: Bytes) -> Result<(), BusError> {
        let subject = report::output_subject(entry, &self.identity.me.name).to_string();
        let headers = Headers::new()
            .with_id(&report::output_message_id(entry, number))
            .with(reply::OUTPUT_ORDER_HEADER, &entry.id.to_string())
            .with(reply::OUTPUT_STREAM_HEADER, if is_stderr { "stderr" } else { "stdout" })
            .with(reply::OUTPUT_SEQUENCE_HEADER, &number.to_string());
        self.bus.publish(&subject, headers, bytes).await.map(|_| ())
    }

    /// Tries again what is in the journal, whenever the link comes up and as long as something fails. Not while another
    /// agent lives under this name: what this journal holds may be the other's past, and the other knows better. Nor as long as the journal may be older
    /// than what was told already.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken, (mut cloned, mut doubt): (Halt, Halt)) {
        let mut link = self.bus.link();
        let mut wait = RETRY_FIRST;
        loop {
            let alone = !cloned.is_on() && !doubt.is_on();
            if alone && self.bus.is_up() && self.behind.swap(false, Ordering::Relaxed) {
                match self.send_again().await {
                    Ok(()) => wait = RETRY_FIRST,
                    Err(problem) => {
                        tracing::debug!(%problem, "not everything could be sent; it stays in the journal");
                        self.behind.store(true, Ordering::Relaxed);
                        wait = (wait * 2).min(RETRY_MAX);
                    }
                }
            }
            let behind = alone && self.behind.load(Ordering::Relaxed);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = cloned.changed() => {}
                () = doubt.changed() => {}
                () = self.wake.notified() => tokio::time::sleep(RETRY_FIRST).await,
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.behind.store(true, Ordering::Relaxed);
                }
                () = tokio::time::sleep(wait), if behind => {}
            }
        }
    }

    async fn send_again(&self) -> Result<(), String> {
        let mut failed = None;
        let entries = self.journal.unsettled().map_err(|error| error.to_string())?;
        let left = entries.iter().filter(|entry| entry.history.state().is_terminal()).count();
        self.counters.outbox.store(u32::try_from(left).unwrap_or(u32::MAX), Ordering::Relaxed);
        for Entry { id, .. } in entries {
            // As it stands now: told after its end, what was true a moment ago would be the last word that a reader finds.
            let Some(entry) = self.journal.find(&id).map_err(|error| error.to_string())? else { continue };
            if entry.reported < entry.history.step()
                && let Err(error) = self.publish_reply(&entry).await
            {
                failed = Some(error.to_string());
            }
            for row in self.journal.output(&entry.id).map_err(|error| error.to_string())? {
                match self.publish_output(&entry, row.number, row.is_stderr, Bytes::from(row.bytes)).await {
                    Ok(()) => {
                        self.journal.commit_lazily(Write::OutputSent { id: entry.id, number: row.number }).await;
                    }
                    Err(error) => failed = Some(error.to_string()),
                }
            }
            // A link that is down fails at once for each of possibly many: no use in trying them all.
            if failed.is_some() && !self.bus.is_up() {
                break;
            }
        }
        match failed {
            None => {
                self.counters.outbox.store(0, Ordering::Relaxed);
                Ok(())
            }
            Some(problem) => Err(problem),
        }
    }

    /// Waits for what is on its way, at most `limit`.
    pub(crate) async fn drain(&self, limit: Duration) {
        self.tasks.close();
        // What does not make it in time stays in the journal.
        let _ = tokio::time::timeout(limit, self.tasks.wait()).await;
    }

    /// The output of one order.
    pub(crate) fn output(self: &Arc<Self>, entry: &Entry) -> Output {
        Output {
            outbox: Arc::clone(self),
            entry: Arc::new(entry.clone()),
            next: Arc::default(),
            unconfirmed: Arc::default(),
        }
    }
}

type Unconfirmed = Mutex<BTreeMap<u32, (bool, Bytes)>>;

/// The output of one running order: published as it appears.
#[derive(Clone)]
pub(crate) struct Output {
    outbox: Arc<Outbox>,
    entry: Arc<Entry>,
    /// Shared, so that the count survives a handler that breaks down.
    next: Arc<AtomicU32>,
    unconfirmed: Arc<Unconfirmed>,
}

fn lock(unconfirmed: &Unconfirmed) -> std::sync::MutexGuard<'_, BTreeMap<u32, (bool, Bytes)>> {
    unconfirmed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    /// Sends a piece. Waits while too much is on its way; keeps it if the link is down.
    ///
    /// # Errors
    /// [`JournalError`] when it could be neither sent nor kept.
    pub(crate) async fn send(&self, is_stderr: bool, bytes: Bytes) -> Result<(), JournalError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let waiting: usize = {
            let mut unconfirmed = lock(&self.unconfirmed);
            unconfirmed.insert(number, (is_stderr, bytes.clone()));
            unconfirmed.values().map(|(_, bytes)| bytes.len()).sum()
        };
        if waiting > UNCONFIRMED_BYTES_MAX {
            let rows = self.take_unconfirmed();
            self.outbox.journal.commit(rows.into_iter().map(Write::Output).collect()).await?;
        }
        if !self.outbox.bus.is_up() {
            self.outbox.nudge();
            return Ok(());
        }
        let Ok(permit) = Arc::clone(&self.outbox.room).acquire_owned().await else { return Ok(()) };
        let (outbox, entry, unconfirmed) =
            (Arc::clone(&self.outbox), Arc::clone(&self.entry), Arc::clone(&self.unconfirmed));
        self.outbox.tasks.spawn(async move {
            let _permit = permit;
            match outbox.publish_output(&entry, number, is_stderr, bytes).await {
                Err(error) => outbox.fall_behind(&error),
                Ok(()) => {
                    let was_in_memory = lock(&unconfirmed).remove(&number).is_some();
                    if !was_in_memory {
                        outbox.journal.commit_lazily(Write::OutputSent { id: entry.id, number }).await;
                    }
                }
            }
        });
        Ok(())
    }

    /// How many pieces there were.
    pub(crate) fn count(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    /// The next piece gets this number: an earlier run of the agent may have sent those before it.
    pub(crate) fn resume_at(&self, number: u32) {
        self.next.store(number, Ordering::Relaxed);
    }

    /// The pieces below this number are confirmed or in the journal. Not while one is being sent.
    pub(crate) fn safe(&self) -> u32 {
        lock(&self.unconfirmed).keys().next().copied().unwrap_or_else(|| self.count())
    }

    /// The pieces that are not confirmed yet: from now on the journal answers for them.
    pub(crate) fn take_unconfirmed(&self) -> Vec<OutputRow> {
        let order: OrderId = self.entry.id;
        std::mem::take(&mut *lock(&self.unconfirmed))
            .into_iter()
            .map(|(number, (is_stderr, bytes))| OutputRow { order, number, is_stderr, bytes: bytes.to_vec() })
            .collect()
    }
}
