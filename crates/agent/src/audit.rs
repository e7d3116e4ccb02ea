//! This node's chain in the audit log: what it decided, discarded and heard.
//!
//! What flows in are acts, journaled in the same commit as what they tell of; what flows out are signed entries, each of many
//! acts, after everything else. An act leaves the journal only when the broker has confirmed the entry that holds it. A broker
//! that does not take entries holds nothing up: orders go on, and the acts stay on the disk, like the orders themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus::streams::AUDIT;
use bus::{Bus, BusError, Headers, Message, clock};
use bytes::Bytes;
use journal::{Journal, JournalError, Opened, Write};
use message::audit::{self, ACTS_MAX, Act, Stored, Tip};
use message::{PublicKey, Seal, State};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::counters::Counters;
use crate::halt::Halt;
use crate::policy::Gate;
use crate::run::Identity;
use crate::trust::Trusted;

/// How long the first act waits for others to share an entry with.
const TOGETHER: Duration = Duration::from_secs(5);
/// Without any reason, it is looked this often whether something is to be told: what is counted elsewhere than in the intake.
const LOOK: Duration = Duration::from_secs(3600);
/// How long the last entry may take when the agent ends.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// The longest wait after an entry that was not taken.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// The acts of an entry together; the rest of an entry fits beside.
const ACTS_BYTES_MAX: usize = 48 * 1024;

/// The chain of one agent.
pub(crate) struct Audit {
    journal: Journal,
    identity: Arc<Identity>,
    /// The last row that was given out.
    row: AtomicU64,
    wake: Notify,
    /// Where the chain ends, as the journal knows it.
    tip: Mutex<Option<Tip>>,
}

/// What else is told of, besides decisions.
pub(crate) struct Heard {
    pub(crate) counters: Arc<Counters>,
    pub(crate) trusted: Arc<Trusted>,
    pub(crate) gate: Arc<Gate>,
}

impl Audit {
    pub(crate) fn new(journal: Journal, identity: Arc<Identity>, opened: &Opened) -> Arc<Self> {
        let tip = opened.audit_tip.as_deref().and_then(|text| serde_json::from_str(text).ok());
        Arc::new(Self {
            journal,
            identity,
            row: AtomicU64::new(opened.audit_row),
            wake: Notify::new(),
            tip: Mutex::new(tip),
        })
    }

    /// What goes into the journal together with what `act` tells of.
    pub(crate) fn write(&self, act: &Act) -> Option<Write> {
        // These are all fields that make JSON.
        let act = serde_json::to_string(act).ok()?;
        Some(Write::Audit { row: self.row.fetch_add(1, Ordering::Relaxed) + 1, act })
    }

    /// The same for what was decided about an order: its first state, and its last if it will not begin.
    pub(crate) fn decided(
        &self,
        entry: &journal::Entry,
        by: Option<&PublicKey>,
        (rule, policy): (Option<&str>, u64),
        writes: &mut Vec<Write>,
    ) {
        let ran = entry.history.at(State::Running).is_some();
        let steps = entry.history.steps();
        let ended = steps.last().filter(|last| steps.len() > 1 && !ran && last.state.is_terminal());
        for step in steps.first().into_iter().chain(ended) {
            let reason = if step.state == State::Delivered && steps.len() > 1 { None } else { entry.reason.as_deref() };
            let (order, job, method, domain) =
                (entry.id, entry.job.clone(), entry.method.clone(), entry.domain.clone());
            let act = Act::Decision {
                order,
                job,
                by: by.or(entry.by.as_ref()).cloned(),
                method,
                domain,
                state: step.state,
                rule: rule.map(audit::bounded),
                policy: Some(policy).filter(|version| *version > 0),
                reason: reason.map(audit::bounded),
                at: step.at,
            };
            writes.extend(self.write(&act));
        }
    }

    /// The same for an order that waited, and will not begin.
    pub(crate) fn withdrawn(&self, entry: &journal::Entry, policy: u64, writes: &mut Vec<Write>) {
        let mut last = Vec::new();
        self.decided(entry, None, (None, policy), &mut last);
        writes.extend(last.pop());
    }

    /// Something was journaled, discarded or heard.
    pub(crate) fn nudge(&self) {
        self.wake.notify_one();
    }

    /// Where the chain ends, for life signs.
    pub(crate) fn end(&self) -> Option<(u64, String)> {
        self.tip().map(|tip| (tip.seq, tip.sha256))
    }

    fn tip(&self) -> Option<Tip> {
        self.tip.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn subject(&self) -> (String, String) {
        let (me, chain) = (&self.identity.me, self.identity.instance.to_string());
        (audit::subject(me.name.as_str(), &me.key, &chain), chain)
    }

    /// Publishes what is journaled, until it is told to stop; then once more. Not while another agent lives under this name: it
    /// would write the same chain.
    pub(crate) async fn run(self: Arc<Self>, bus: Bus, heard: Heard, cancel: CancellationToken, mut cloned: Halt) {
        let mut teller = Teller::new(&heard);
        let mut policy = heard.gate.version();
        let mut link = bus.link();
        let mut revision = None;
        // What an earlier run left goes first.
        let mut wait = Some(TOGETHER);
        let mut retry = TOGETHER;
        loop {
            let ended = tokio::select! {
                biased;
                () = cancel.cancelled() => true,
                () = tokio::time::sleep(wait.unwrap_or(LOOK)) => false,
                () = self.wake.notified(), if wait.is_none() => {
                    wait = Some(TOGETHER);
                    continue;
                }
                changed = policy.changed(), if wait.is_none() => {
                    if changed.is_err() {
                        return;
                    }
                    wait = Some(TOGETHER);
                    continue;
                }
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // What the broker holds may be another store's by now.
                    revision = None;
                    wait = Some(TOGETHER);
                    continue;
                }
            };
            if cloned.is_on() || !bus.is_up() {
                if ended {
                    return;
                }
                wait = Some(RETRY_MAX);
                continue;
            }
            teller.hear(&self, &heard).await;
            let published = self.publish_all(&bus, &mut revision, &mut teller, &heard);
            if ended {
                // Best effort, and short: what is not told now stays in the journal, and the next run tells it.
                let _ = tokio::time::timeout(LAST_WORDS, published).await;
                return;
            }
            wait = match published.await {
                Ok(()) => {
                    retry = TOGETHER;
                    None
                }
                Err(problem) => {
                    tracing::warn!(%problem, "the audit log does not take what this node tells; it stays in the journal");
                    retry = (retry * 2).min(RETRY_MAX);
                    Some(retry)
                }
            };
        }
    }

    async fn publish_all(
        &self,
        bus: &Bus,
        revision: &mut Option<u64>,
        teller: &mut Teller,
        heard: &Heard,
    ) -> Result<(), String> {
        loop {
            let mut rows = self.journal.audit(ACTS_MAX).map_err(|error| error.to_string())?;
            let full = rows.len() >= ACTS_MAX;
            let discarded = teller.discarded(&heard.counters);
            if rows.is_empty() && discarded.is_empty() {
                return Ok(());
            }
            if revision.is_none() {
                *revision = Some(self.catch_up(bus, &mut rows).await?);
                if rows.is_empty() && discarded.is_empty() {
                    continue;
                }
            }
            let mut bytes = 0;
            rows.retain(|(_, act)| {
                bytes += act.len();
                bytes <= ACTS_BYTES_MAX
            });
            let expected = revision.unwrap_or_default();
            match self.publish(bus, expected, &rows, discarded.values().cloned().collect()).await {
                Ok(sequence) => {
                    *revision = Some(sequence);
                    teller.told(&discarded);
                }
                Err(error) => {
                    // Whether it was stored is not known, or somebody was faster: the end is read again.
                    *revision = None;
                    return Err(error);
                }
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// Reads where the chain ends at the broker. What its last entry holds was told, and is dropped from `rows`: the journal
    /// may not have heard that it was confirmed. Returns the sequence that the next entry expects.
    async fn catch_up(&self, bus: &Bus, rows: &mut Vec<(u64, String)>) -> Result<u64, String> {
        let (subject, _) = self.subject();
        let last = bus.last(AUDIT, &subject).await.map_err(|error: BusError| error.to_string())?;
        let Some(last) = last else { return Ok(0) };
        // Signed by this very key, or nothing that counts: then the chain goes on from what the journal knows.
        let Some((entry, tip)) = own(&last, &self.identity.me.key) else { return Ok(last.sequence) };
        if self.tip().is_some_and(|known| known.seq >= tip.seq) {
            return Ok(last.sequence);
        }
        let told: BTreeSet<String> = entry.acts.iter().filter_map(|act| serde_json::to_string(act).ok()).collect();
        let upto = rows.iter().filter(|(_, act)| told.contains(act)).map(|(row, _)| *row).max().unwrap_or(0);
        rows.retain(|(row, _)| *row > upto);
        self.confirmed(upto, tip).await.map_err(|error| error.to_string())?;
        Ok(last.sequence)
    }

    async fn confirmed(&self, row: u64, tip: Tip) -> Result<(), JournalError> {
        // Four plain fields always make JSON.
        let text = serde_json::to_string(&tip).unwrap_or_default();
        self.journal.commit(vec![Write::Audited { row, tip: text }]).await?;
        *self.tip.lock().unwrap_or_else(PoisonError::into_inner) = Some(tip);
        Ok(())
    }

    async fn publish(&self, bus: &Bus, revision: u64, rows: &[(u64, String)], more: Vec<Act>) -> Result<u64, String> {
        let (subject, chain) = self.subject();
        let (me, tip) = (&self.identity.me, self.tip());
        let begun = tip.is_none().then_some(Act::Begun { instance: self.identity.instance });
        let acts = rows.iter().filter_map(|(_, act)| serde_json::from_str(act).ok());
        let acts = begun.into_iter().chain(acts).chain(more).collect();
        let entry = audit::Entry::after(tip.as_ref(), (me.name.as_str(), &chain), clock::now(), acts);
        let bytes = entry.to_bytes().map_err(|error| error.to_string())?;
        let seal = Seal::over(&bytes, &self.identity.pair).map_err(|error| error.to_string())?;
        let tip = Tip::of(&entry, &bytes);
        let headers = Headers::new().sealed(&seal).with_id(&clock::message_id().to_string()).expecting_last(revision);
        let stored = bus.publish(&subject, headers, Bytes::from(bytes)).await.map_err(|error| error.to_string())?;
        let row = rows.last().map_or(0, |(row, _)| *row);
        self.confirmed(row, tip).await.map_err(|error| error.to_string())?;
        Ok(stored.sequence)
    }
}

/// An entry that this key has signed.
fn own(message: &Message, key: &PublicKey) -> Option<(audit::Entry, Tip)> {
    let stored = Stored {
        sequence: message.sequence,
        stored_at: message.stored_at,
        subject: message.subject.clone(),
        seal: message.seal().ok(),
        entry: String::from_utf8(message.payload.to_vec()).ok()?,
    };
    let opened = audit::open(&stored).ok().filter(|opened| opened.key == *key)?;
    let tip = Tip::of(&opened.entry, &message.payload);
    Some((opened.entry, tip))
}

/// What was told of what is only counted.
struct Teller {
    discarded: BTreeMap<&'static str, u64>,
    operators: u64,
    policy: u64,
}

impl Teller {
    fn new(heard: &Heard) -> Self {
        Self {
            discarded: BTreeMap::new(),
            operators: heard.trusted.current().serial,
            policy: *heard.gate.version().borrow(),
        }
    }

    /// Journals that something newer is in force.
    async fn hear(&mut self, audit: &Audit, heard: &Heard) {
        let (operators, policy) = (heard.trusted.current().serial, *heard.gate.version().borrow());
        let news = [("operators", self.operators, operators), ("policy", self.policy, policy)];
        let news = news.into_iter().filter(|(_, known, now)| known != now);
        let writes: Vec<Write> =
            news.filter_map(|(what, _, version)| audit.write(&Act::Heard { what: what.into(), version })).collect();
        if !writes.is_empty() && audit.journal.commit(writes).await.is_ok() {
            (self.operators, self.policy) = (operators, policy);
        }
    }

    /// What was discarded since it was last told: reason by reason, not message by message, with the last one of each.
    fn discarded(&self, counters: &Counters) -> BTreeMap<&'static str, Act> {
        let mut news = BTreeMap::new();
        for (reason, discarded) in counters.discarded() {
            let count = discarded.count - self.discarded.get(reason).unwrap_or(&0);
            if count > 0 {
                news.insert(reason, Act::Discarded { reason: reason.into(), count, sample: discarded.last });
            }
        }
        news
    }

    fn told(&mut self, told: &BTreeMap<&'static str, Act>) {
        for (reason, act) in told {
            if let Act::Discarded { count, .. } = act {
                *self.discarded.entry(reason).or_default() += count;
            }
        }
    }
}
