//! What an agent does while it cannot begin yet, for a reason that passes: no room for its journal, a keeper that does not
//! answer. It tries again, and says so: in its log, and by life signs if nobody else can be meant by them.
//!
//! It must take nothing and run nothing: nobody else could know of that.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use bus::{Bus, BusError, clock, kv, live};
use message::registry::{Condition, LifeSignKind};
use message::{Addressee, InstanceId, LifeSign, Limit, WIRE_VERSION};
use tokio_util::sync::CancellationToken;

use crate::disk;
use crate::presence;
use crate::twin::{self, Claim};

/// Between two tries.
const RETRY: Duration = Duration::from_secs(2);

/// An agent that has not begun yet.
pub(crate) struct Beginner<'a> {
    pub(crate) me: &'a Addressee,
    pub(crate) pair: &'a nkeys::KeyPair,
    /// This run.
    pub(crate) boot: InstanceId,
    pub(crate) interval: Duration,
    /// The seat of its journal; `None` if it has none yet, so that nobody has heard of it.
    pub(crate) seat: Option<String>,
    /// Where its journal is to lie.
    pub(crate) dir: &'a Path,
}

impl Beginner<'_> {
    /// Tries until it succeeds, or fails for a reason that does not pass. `None` when the agent is to end.
    ///
    /// # Errors
    /// What `attempt` failed with.
    pub(crate) async fn until<T, E: Display>(
        &self,
        mut attempt: impl AsyncFnMut() -> Result<T, E>,
        passes: impl Fn(&E) -> bool,
        connect: impl AsyncFnOnce() -> Option<Bus>,
        cancel: &CancellationToken,
    ) -> Result<Option<T>, E> {
        let reason = match attempt().await {
            Err(error) if passes(&error) => error.to_string(),
            done => return done.map(Some),
        };
        tracing::error!("the agent cannot begin yet, and tries again until it can: {reason}");
        let bus = if self.seat.is_some() { connect().await } else { None };
        let attempts = async {
            loop {
                tokio::time::sleep(RETRY).await;
                match attempt().await {
                    Err(error) if passes(&error) => {}
                    done => return done,
                }
            }
        };
        let done = tokio::select! {
            () = cancel.cancelled() => Ok(None),
            done = attempts => done.map(Some),
            () = self.tell(bus.as_ref(), &reason) => Ok(None),
        };
        if let Some(bus) = bus {
            bus.close().await;
        }
        done
    }

    /// Says why it cannot begin, for as long as it is asked to.
    async fn tell(&self, bus: Option<&Bus>, reason: &str) {
        let Some(bus) = bus else { return std::future::pending().await };
        loop {
            let wait = match self.speak(bus, reason).await {
                Ok(()) => self.interval.mul_f32(0.9),
                Err(error) => {
                    tracing::debug!(%error, "why the agent cannot begin could not be told");
                    RETRY
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// A life sign in the place of the last one, if that was surely of an earlier run.
    async fn speak(&self, bus: &Bus, reason: &str) -> Result<(), BusError> {
        let name = &self.me.name;
        let Some(found) = bus.kv_get(kv::PRESENCE, name.as_str()).await? else { return Ok(()) };
        let Some(last) = presence::own_sign(&found, &self.me.key) else { return Ok(()) };
        if last.boot != self.boot && (last.seat.is_none() || last.seat != self.seat) {
            let now = live::catch_up(bus, name, last.floor).await?.opened_at();
            // What stands in the journal is not known, so any other run counts as another installation.
            let seat = self.seat.as_deref().unwrap_or_default();
            if twin::claim(&last, now.since(found.stored_at), self.boot, seat) != Claim::Free {
                return Ok(());
            }
        }
        let sign = LifeSign {
            v: WIRE_VERSION,
            kind: LifeSignKind::Presence,
            node: name.clone(),
            instance: last.instance,
            boot: self.boot,
            seat: self.seat.clone(),
            condition: Condition::Degraded,
            reason: Some(format!("it cannot begin yet: {reason}")),
            interval_ms: u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX),
            at: clock::now(),
            version: crate::VERSION.into(),
            uptime_s: 0,
            floor: last.floor,
            processes: 0,
            running: last.running,
            waiting: last.waiting,
            outbox: last.outbox,
            limits: disk::shortage(self.dir).map(|_| Limit::Disk).into_iter().collect(),
            audit: None,
            rtt_ms: None,
        };
        presence::put(bus, &sign, self.pair, found.sequence).await.map(|_| ())
    }
}
