//! Life signs: the node says that it lives, how it is, and when it will say so again.
//!
//! The key in bucket `PRESENCE` is written by compare-and-set: each writer expects its own last revision. So two
//! living agents of one name find out about each other at the next sign.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus::{Bus, BusError, Message, clock, kv, live};
use bytes::Bytes;
use message::registry::{Condition, INTERVALS_UNTIL_OFFLINE, LifeSignKind};
use message::{LifeSign, Seal, WIRE_VERSION, units};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::counters::Counters;
use crate::options::AgentError;
use crate::process::Processes;
use crate::run::Identity;

/// Between two tries to speak when the broker does not confirm.
const RETRY: Duration = Duration::from_secs(2);

/// Everything that a life sign tells about.
pub(crate) struct Presence {
    pub(crate) bus: Bus,
    pub(crate) identity: Arc<Identity>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) degraded: watch::Receiver<Option<String>>,
    pub(crate) floor: Arc<AtomicU64>,
    pub(crate) interval: Duration,
    /// The revision of our own last sign; 0 before the first.
    pub(crate) revision: u64,
}

impl Presence {
    /// Claims the name: waits for the link, looks who else may live under it, and gives the first sign.
    ///
    /// # Errors
    /// [`AgentError::NameInUse`] when another journal lives under it.
    pub(crate) async fn claim(&mut self, cancel: &CancellationToken) -> Result<(), AgentError> {
        loop {
            match self.try_claim().await {
                Ok(()) => return Ok(()),
                Err(AgentError::Bus(error)) => {
                    tracing::debug!(%error, "the name could not be claimed yet");
                    let mut link = self.bus.link();
                    tokio::select! {
                        () = cancel.cancelled() => return Ok(()),
                        _ = link.changed() => {}
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
                Err(refused) => return Err(refused),
            }
        }
    }

    async fn try_claim(&mut self) -> Result<(), AgentError> {
        let name = &self.identity.me.name;
        if let Some(found) = self.bus.kv_get(kv::PRESENCE, name.as_str()).await? {
            self.revision = found.sequence;
            if let Some(other) = self.own_sign(&found)
                && other.instance != self.identity.instance
                && other.condition != Condition::Bye
            {
                // Age by the broker's clock alone: this machine's may be wrong.
                let now = live::catch_up(&self.bus, name, self.floor.load(Ordering::Relaxed)).await?.opened_at();
                let age = now.since(found.stored_at);
                if age <= Duration::from_millis(other.interval_ms).saturating_mul(INTERVALS_UNTIL_OFFLINE) {
                    let age = format!("{} ago", units::human_duration(age));
                    return Err(AgentError::NameInUse { name: name.clone(), instance: other.instance, age });
                }
            }
        }
        self.speak(Condition::Up).await.map_err(AgentError::Bus)
    }

    /// A life sign under our name that was really signed with our key.
    fn own_sign(&self, found: &Message) -> Option<LifeSign> {
        let signer = found.signer().ok()?;
        (signer == self.identity.me.key).then(|| serde_json::from_slice(&found.payload).ok())?
    }

    /// Speaks at each interval, and at once when the link or the condition changes.
    ///
    /// # Errors
    /// [`AgentError::Displaced`] when another agent has started under this name.
    pub(crate) async fn run(&mut self, cancel: CancellationToken) -> Result<(), AgentError> {
        let mut link = self.bus.link();
        link.mark_unchanged();
        let mut ups = link.borrow().ups;
        let mut wait = self.jittered();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                changed = link.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let now = *link.borrow_and_update();
                    if !now.up || now.ups == ups {
                        continue;
                    }
                    ups = now.ups;
                }
                changed = self.degraded.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep(wait) => {}
            }
            let condition = if self.degraded.borrow().is_some() { Condition::Degraded } else { Condition::Up };
            wait = match self.speak(condition).await {
                Ok(()) => self.jittered(),
                Err(BusError::Conflict { .. }) => {
                    self.look_who_wrote().await?;
                    Duration::ZERO
                }
                Err(error) => {
                    tracing::debug!(%error, "a life sign was not confirmed");
                    RETRY
                }
            };
        }
    }

    /// Says goodbye.
    pub(crate) async fn goodbye(&mut self) {
        // Best effort: without it the others notice after three intervals.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.speak(Condition::Bye)).await;
    }

    /// After a conflict: our own earlier sign whose confirmation was lost, or somebody else?
    async fn look_who_wrote(&mut self) -> Result<(), AgentError> {
        let name = &self.identity.me.name;
        let found = match self.bus.kv_get(kv::PRESENCE, name.as_str()).await {
            Ok(found) => found,
            // Not known now; the next sign will meet the same conflict.
            Err(_) => {
                tokio::time::sleep(RETRY).await;
                return Ok(());
            }
        };
        self.revision = found.as_ref().map_or(0, |found| found.sequence);
        match found.and_then(|found| self.own_sign(&found)) {
            Some(other) if other.boot != self.identity.boot && other.condition != Condition::Bye => {
                Err(AgentError::Displaced { name: name.clone(), boot: other.boot })
            }
            _ => Ok(()),
        }
    }

    async fn speak(&mut self, condition: Condition) -> Result<(), BusError> {
        let sign = LifeSign {
            v: WIRE_VERSION,
            kind: LifeSignKind::Presence,
            node: self.identity.me.name.clone(),
            instance: self.identity.instance,
            boot: self.identity.boot,
            condition,
            reason: self.degraded.borrow().clone(),
            interval_ms: u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX),
            at: clock::now(),
            version: crate::VERSION.into(),
            uptime_s: self.identity.started.elapsed().as_secs(),
            floor: self.floor.load(Ordering::Relaxed),
            processes: u32::try_from(self.processes.count()).unwrap_or(u32::MAX),
            running: self.counters.running.load(Ordering::Relaxed),
            waiting: self.counters.waiting.load(Ordering::Relaxed),
            outbox: self.counters.outbox.load(Ordering::Relaxed),
        };
        let bytes = serde_json::to_vec(&sign)
            .map_err(|error| BusError::Other { what: "writing a life sign".into(), reason: error.to_string() })?;
        let seal = Seal::over(&bytes, &self.identity.pair)
            .map_err(|error| BusError::Other { what: "signing a life sign".into(), reason: error.to_string() })?;
        let key = self.identity.me.name.as_str();
        let stored = self.bus.kv_put_if(kv::PRESENCE, key, Bytes::from(bytes), Some(&seal), self.revision).await?;
        self.revision = stored.sequence;
        Ok(())
    }

    /// A tenth of jitter, so that a fleet that started together does not speak together.
    fn jittered(&self) -> Duration {
        let tenth_ms = u64::try_from(self.interval.as_millis() / 10).unwrap_or(0);
        self.interval.saturating_sub(Duration::from_millis(clock::jitter(tenth_ms.max(1))))
    }
}
