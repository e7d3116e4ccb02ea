//! Life signs: the node says that it lives, how it is, and when it will say so again.
//!
//! The key in bucket `PRESENCE` is written by compare-and-set: each writer expects its own last revision. So two
//! living agents of one name find out about each other at the next sign ([`crate::twin`] says what follows).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus::{Bus, BusError, Message, clock, kv, live};
use bytes::Bytes;
use journal::Journal;
use message::change::Before;
use message::registry::{Condition, LifeSignKind};
use message::{LifeSign, Limit, PublicKey, Seal, WIRE_VERSION, units};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::changes::{Changes, Said};
use crate::counters::Counters;
use crate::disk;
use crate::halt::Teller;
use crate::options::AgentError;
use crate::outbox::Outbox;
use crate::past::HeardFloor;
use crate::process::Processes;
use crate::rest::Rest;
use crate::run::Identity;
use crate::twin::{self, Claim};

/// Between two tries to speak when the broker does not confirm.
const RETRY: Duration = Duration::from_secs(2);

/// Two who speak over each other get out of step by this much.
const TWIN_JITTER_MS: u64 = 50;

/// Everything that a life sign tells about.
pub(crate) struct Presence {
    pub(crate) bus: Bus,
    pub(crate) identity: Arc<Identity>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) degraded: watch::Receiver<Option<String>>,
    /// What can be full.
    pub(crate) places: Arc<Semaphore>,
    pub(crate) journal: Journal,
    pub(crate) outbox: Arc<Outbox>,
    /// What is wrong with the policy that the bus offers.
    pub(crate) policy: watch::Receiver<Option<String>>,
    pub(crate) floor: Arc<AtomicU64>,
    pub(crate) interval: Duration,
    /// The seat of the journal.
    pub(crate) seat: String,
    /// Where the journal lies: how much room is left there is told.
    pub(crate) dir: PathBuf,
    /// Why this run may do nothing, as long as another lives under its name.
    pub(crate) cloned: Teller,
    /// When the other was last heard.
    pub(crate) twin_heard: Option<Instant>,
    /// The revision of our own last sign; 0 before the first.
    pub(crate) revision: Arc<AtomicU64>,
    /// How many signs of other runs were found where our own should stand.
    pub(crate) others: Arc<AtomicU64>,
    pub(crate) heard: Arc<HeardFloor>,
    pub(crate) rest: Rest,
    /// What is told of how this node has stood.
    pub(crate) changes: Changes,
    /// What stood where our own sign should have, when that was last looked at.
    pub(crate) found: Option<Before>,
    /// How long the last question to the broker took.
    pub(crate) rtt_ms: Option<u32>,
}

impl Presence {
    /// Claims the name: waits for the link, looks who else may live under it, and gives the first sign.
    ///
    /// # Errors
    /// [`AgentError::NameInUse`] when another journal lives under it.
    pub(crate) async fn claim(&mut self, cancel: &CancellationToken) -> Result<(), AgentError> {
        loop {
            match self.try_claim(cancel).await {
                Ok(()) => return Ok(()),
                Err(AgentError::Bus(error)) => {
                    tracing::debug!(%error, "the name could not be claimed yet");
                    let mut link = self.bus.link();
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => return Ok(()),
                        _ = link.changed() => {}
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
                Err(refused) => return Err(refused),
            }
        }
    }

    async fn try_claim(&mut self, cancel: &CancellationToken) -> Result<(), AgentError> {
        let name = self.identity.me.name.clone();
        let (mut waited, mut before) = (false, None);
        loop {
            // Before what it has heard: should the store be lost in between, nothing is worse than having heard nothing.
            self.heard.at(self.bus.epoch().await?);
            let Some(found) = self.bus.kv_get(kv::PRESENCE, name.as_str()).await? else {
                // What an earlier try found is gone with the store that held it.
                self.revision.store(0, Ordering::Relaxed);
                before = None;
                break;
            };
            let moved = self.revision.swap(found.sequence, Ordering::Relaxed) != found.sequence;
            let Some(other) = self.own_sign(&found) else { break };
            before = Some(Before::of(&other, found.stored_at));
            self.heard.raise(other.floor);
            self.floor.fetch_max(other.floor, Ordering::Relaxed);
            if waited {
                if moved && twin::is_twin(&other, self.identity.boot) {
                    self.meet(&other);
                }
                break;
            }
            // Age by the broker's clock alone: this machine's may be wrong.
            let now = live::catch_up(&self.bus, &name, self.floor.load(Ordering::Relaxed)).await?.opened_at();
            let age = now.since(found.stored_at);
            match twin::claim(&other, age, self.identity.instance, &self.seat) {
                Claim::Free => break,
                Claim::Taken => {
                    let age = format!("{} ago", units::human_duration(age));
                    return Err(AgentError::NameInUse { name, instance: other.instance, age });
                }
                Claim::Wait(wait) => {
                    tracing::info!(
                        seconds = wait.as_secs(), run = %other.boot,
                        "this journal was in use elsewhere a moment ago; waiting whether that run speaks again"
                    );
                    waited = true;
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => return Ok(()),
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
        let (condition, reason) = (self.condition(), self.complaint());
        self.speak(condition).await.map_err(AgentError::Bus)?;
        self.changes.spoken_after(before, self.said(condition, reason));
        Ok(())
    }

    /// Another run lives under our name: stops what could be done twice, and says so.
    fn meet(&mut self, other: &LifeSign) {
        self.twin_heard = Some(Instant::now());
        let complaint = twin::complaint(other);
        let news = self.cloned.reason().as_deref() != Some(complaint.as_str());
        if news {
            tracing::error!("{complaint}");
            self.cloned.tell(Some(complaint));
        }
    }

    /// The other has been silent for long enough.
    fn part(&mut self) {
        if self.twin_heard.is_some_and(|heard| heard.elapsed() > twin::silence(self.interval)) {
            self.twin_heard = None;
            tracing::warn!("the other agent under this name is gone; this one takes orders again");
            self.cloned.tell(None);
        }
    }

    /// What is wrong, if anything is; the gravest first.
    fn complaint(&self) -> Option<String> {
        let cloned = self.cloned.reason();
        let degraded = || self.degraded.borrow().clone();
        cloned.or_else(degraded).or_else(|| self.policy.borrow().clone()).or_else(|| disk::shortage(&self.dir))
    }

    /// What is full just now.
    fn limits(&self) -> Vec<Limit> {
        let is_full = |limit: &Limit| match limit {
            Limit::Disk => self.degraded.borrow().is_some() || disk::shortage(&self.dir).is_some(),
            Limit::Orders => self.places.available_permits() == 0,
            Limit::Journal => self.journal.is_at_limit(),
            Limit::Outbox => self.outbox.is_at_limit(),
            Limit::Unknown => false,
        };
        Limit::ALL.into_iter().filter(is_full).collect()
    }

    fn condition(&self) -> Condition {
        if self.complaint().is_some() { Condition::Degraded } else { Condition::Up }
    }

    fn own_sign(&self, found: &Message) -> Option<LifeSign> {
        own_sign(found, &self.identity.me.key)
    }

    /// Speaks at each interval, and at once when the link or the condition changes.
    pub(crate) async fn run(&mut self, cancel: CancellationToken) {
        let mut link = self.bus.link();
        link.mark_unchanged();
        let mut ups = link.borrow().ups;
        let mut due = Instant::now() + self.jittered();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = *link.borrow_and_update();
                    if !now.up || now.ups == ups {
                        continue;
                    }
                    ups = now.ups;
                }
                changed = self.degraded.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                changed = self.policy.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(due) => {}
                // The past waits for the present: what this one breaks off is told again.
                () = self.changes.tell(&self.bus, &self.identity) => continue,
            }
            self.part();
            let wait = match self.speak_after().await {
                Ok(()) => {
                    self.rest.look(&self.counters.begun);
                    self.jittered()
                }
                Err(BusError::Conflict { .. }) => self.look_who_wrote().await,
                Err(error) => {
                    tracing::debug!(%error, "a life sign was not confirmed");
                    RETRY
                }
            };
            due = Instant::now() + wait;
        }
    }

    /// Says goodbye, unless the name belongs to another run as well: that one lives on.
    pub(crate) async fn goodbye(&mut self) {
        if self.twin_heard.is_some() {
            return;
        }
        // Best effort: without it the others notice after three intervals.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.speak(Condition::Bye)).await;
    }

    /// After a conflict: our own earlier sign whose confirmation was lost, or somebody else? Returns when to speak
    /// again.
    async fn look_who_wrote(&mut self) -> Duration {
        let name = &self.identity.me.name;
        let found = match self.bus.kv_get(kv::PRESENCE, name.as_str()).await {
            Ok(found) => found,
            // Not known now; the next sign will meet the same conflict.
            Err(_) => return RETRY,
        };
        let sequence = found.as_ref().map_or(0, |found| found.sequence);
        if found.is_none() {
            // Gone with its store: floors of that one mean nothing here.
            self.floor.store(0, Ordering::Relaxed);
            self.heard.forget();
        }
        let stored_at = found.as_ref().map(|found| found.stored_at);
        let sign = found.and_then(|found| self.own_sign(&found));
        if let Some(other) = sign.as_ref().filter(|sign| sign.boot != self.identity.boot) {
            // Also if it is gone: what it did, the journal does not know. Noted before its sign counts as known.
            self.heard.raise(other.floor);
            self.others.fetch_add(1, Ordering::Release);
        }
        self.revision.store(sequence, Ordering::Relaxed);
        self.found = sign.as_ref().zip(stored_at).map(|(sign, stored_at)| Before::of(sign, stored_at));
        match sign {
            Some(other) if twin::is_twin(&other, self.identity.boot) => {
                self.meet(&other);
                // At once, each time: who waited for its turn would never be heard by the other.
                Duration::from_millis(clock::jitter(TWIN_JITTER_MS))
            }
            _ => Duration::ZERO,
        }
    }

    /// Speaks; if that may be a change for those who look, with a look at what stood there before.
    async fn speak_after(&mut self) -> Result<(), BusError> {
        let (condition, reason) = (self.condition(), self.complaint());
        let look = self.changes.is_due(condition, reason.as_deref(), self.interval);
        // What was found when another spoke stands there still, or this sign is refused as well.
        let before = match self.found.take() {
            None if look => self.last_sign().await?,
            found => found,
        };
        self.speak(condition).await?;
        if look {
            self.changes.spoken_after(before, self.said(condition, reason));
        } else {
            self.changes.spoken();
        }
        Ok(())
    }

    fn said(&self, condition: Condition, reason: Option<String>) -> Said {
        Said { condition, reason, interval: self.interval, revision: self.revision.load(Ordering::Relaxed) }
    }

    async fn last_sign(&self) -> Result<Option<Before>, BusError> {
        let found = self.bus.kv_get(kv::PRESENCE, self.identity.me.name.as_str()).await?;
        Ok(found.and_then(|found| Some(Before::of(&self.own_sign(&found)?, found.stored_at))))
    }

    async fn speak(&mut self, condition: Condition) -> Result<(), BusError> {
        let sign = LifeSign {
            v: WIRE_VERSION,
            kind: LifeSignKind::Presence,
            node: self.identity.me.name.clone(),
            instance: self.identity.instance,
            boot: self.identity.boot,
            seat: Some(self.seat.clone()),
            condition,
            reason: if condition == Condition::Bye { None } else { self.complaint() },
            interval_ms: u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX),
            at: clock::now(),
            version: crate::VERSION.into(),
            uptime_s: self.identity.started.elapsed().as_secs(),
            floor: self.floor.load(Ordering::Relaxed),
            processes: u32::try_from(self.processes.count()).unwrap_or(u32::MAX),
            running: self.counters.running.load(Ordering::Relaxed),
            waiting: self.counters.waiting.load(Ordering::Relaxed),
            outbox: self.counters.outbox.load(Ordering::Relaxed),
            limits: self.limits(),
            audit: self.processes.audit().end(),
            rtt_ms: self.rtt_ms,
        };
        let revision = self.revision.load(Ordering::Relaxed);
        let begun = Instant::now();
        let stored = put(&self.bus, &sign, &self.identity.pair, revision).await?;
        self.rtt_ms = u32::try_from(begun.elapsed().as_millis()).ok();
        self.revision.store(stored, Ordering::Relaxed);
        Ok(())
    }

    /// A tenth of jitter, so that a fleet that started together does not speak together.
    fn jittered(&self) -> Duration {
        let tenth_ms = u64::try_from(self.interval.as_millis() / 10).unwrap_or(0);
        self.interval.saturating_sub(Duration::from_millis(clock::jitter(tenth_ms.max(1))))
    }
}

/// A life sign under our name that was really signed with our key.
pub(crate) fn own_sign(found: &Message, key: &PublicKey) -> Option<LifeSign> {
    let signer = found.signer().ok()?;
    (signer == *key).then(|| serde_json::from_slice(&found.payload).ok())?
}

/// Signs a life sign and puts it in the place of that of `revision`; returns the new one's.
pub(crate) async fn put(bus: &Bus, sign: &LifeSign, pair: &nkeys::KeyPair, revision: u64) -> Result<u64, BusError> {
    let wrong = |what: &str, reason: String| BusError::Other { what: what.into(), reason };
    let bytes = serde_json::to_vec(sign).map_err(|error| wrong("writing a life sign", error.to_string()))?;
    let seal = Seal::over(&bytes, pair).map_err(|error| wrong("signing a life sign", error.to_string()))?;
    let stored = bus.kv_put_if(kv::PRESENCE, sign.node.as_str(), Bytes::from(bytes), Some(&seal), revision).await?;
    Ok(stored.sequence)
}
