//! What an agent tells of how it stood, when that has changed: each change with the life sign that stood before it, so that
//! readers can tell afterwards how long it was away (`message::change`).
//!
//! Nothing waits for it. A change that gets lost is covered by the next one, which tells what stood there before it.

use std::collections::VecDeque;
use std::time::Duration;

use bus::{Bus, BusError, clock, kv};
use bytes::Bytes;
use message::change::{Before, Change, ChangeKind, cut};
use message::registry::Condition;
use message::{Seal, Timestamp, WIRE_VERSION};
use tokio::time::Instant;

use crate::presence::own_sign;
use crate::run::Identity;

/// So many changes wait for the broker; the oldest goes first.
const WAITING_MAX: usize = 8;
/// Between two tries.
const RETRY: Duration = Duration::from_secs(2);
/// So often a change is offered to a broker that does not take it.
const TRIES_MAX: u32 = 3;
/// Reasons that differ in a number only, as room on a disk does, are another one after this time.
const REASON_PAUSE: Duration = Duration::from_secs(10 * 60);

/// A life sign that was given and confirmed.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) condition: Condition,
    pub(crate) reason: Option<String>,
    pub(crate) interval: Duration,
    /// The revision that it has at the broker.
    pub(crate) revision: u64,
}

/// How this node has stood.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// What was said last that counted as a change, and when.
    told: Option<(Said, Instant)>,
    /// When the last life sign was confirmed: by a clock that nobody sets, and by one that goes on while a machine sleeps.
    heard: Option<(Instant, Timestamp)>,
    waiting: VecDeque<Waiting>,
    tries: u32,
}

/// A change that is not told yet.
#[derive(Debug, Clone)]
struct Waiting {
    said: Said,
    at: Instant,
    before: Option<Before>,
    /// Whether it says the same as before, and is a change only if readers have missed this node meanwhile.
    same: bool,
}

impl Changes {
    /// Whether the life sign that is about to be given may be a change: readers may have missed this node, or it says
    /// something else.
    pub(crate) fn is_due(&self, condition: Condition, reason: Option<&str>, interval: Duration) -> bool {
        let late = interval.saturating_mul(2);
        let silent = self.heard.is_none_or(|(heard, at)| heard.elapsed() > late || clock::now().since(at) > late);
        silent || !self.says_the_same(condition, reason)
    }

    fn says_the_same(&self, condition: Condition, reason: Option<&str>) -> bool {
        let Some((told, at)) = &self.told else { return false };
        let why = told.reason.as_deref();
        let same_words = why.map(without_numbers) == reason.map(without_numbers);
        told.condition == condition && same_words && (why == reason || at.elapsed() <= REASON_PAUSE)
    }

    /// A life sign was given that is no change.
    pub(crate) fn spoken(&mut self) {
        self.heard = Some((Instant::now(), clock::now()));
    }

    /// A life sign that may be a change was given after `before`.
    pub(crate) fn spoken_after(&mut self, before: Option<Before>, said: Said) {
        let now = Instant::now();
        self.heard = Some((now, clock::now()));
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
        }
        let same = self.says_the_same(said.condition, said.reason.as_deref());
        self.waiting.push_back(Waiting { said: said.clone(), at: now, before, same });
        if !same {
            self.told = Some((said, now));
        }
    }

    /// Tells the next one that waits; never ends if there is none. Gives up on a broker that keeps no history. May be broken
    /// off at any time: then it is told again, and readers pass over what repeats.
    pub(crate) async fn tell(&mut self, bus: &Bus, identity: &Identity) {
        let Some(next) = self.waiting.front() else { return std::future::pending().await };
        if let Err(error) = next.tell(bus, identity, self.heard.map(|(heard, _)| heard)).await {
            tracing::debug!(%error, "how this node stood could not be told");
            self.tries += 1;
            if self.tries < TRIES_MAX {
                tokio::time::sleep(RETRY).await;
                return;
            }
        }
        self.tries = 0;
        self.waiting.pop_front();
    }
}

impl Waiting {
    async fn tell(&self, bus: &Bus, identity: &Identity, heard: Option<Instant>) -> Result<(), BusError> {
        let name = identity.me.name.as_str();
        let Some(found) = bus.kv_get(kv::PRESENCE, name).await? else { return Ok(()) };
        if own_sign(&found, &identity.me.key).is_none_or(|sign| sign.boot != identity.boot) {
            return Ok(()); // somebody else's now, who tells what stood there before
        }
        // A later sign of this run, if it took long: then this one came so much earlier.
        let earlier = heard.filter(|_| found.sequence != self.said.revision);
        let earlier = earlier.map_or(Duration::ZERO, |heard| heard.saturating_duration_since(self.at));
        let since = minus(found.stored_at, earlier);
        if self.same && self.before.as_ref().is_some_and(|before| since <= before.due()) {
            return Ok(()); // nobody can have missed it
        }
        // Who does not know whether the broker listened says so by leaving it out.
        let booted = bus.listening_since().await.ok().flatten();
        let change = Change {
            v: WIRE_VERSION,
            kind: ChangeKind::Change,
            node: identity.me.name.clone(),
            boot: identity.boot,
            since,
            condition: self.said.condition,
            reason: self.said.reason.as_deref().map(cut),
            interval_ms: u64::try_from(self.said.interval.as_millis()).unwrap_or(u64::MAX),
            before: self.before.clone(),
            booted,
        };
        let wrong = |what: &str, reason: String| BusError::Other { what: what.into(), reason };
        let bytes = serde_json::to_vec(&change).map_err(|error| wrong("writing a change", error.to_string()))?;
        let seal = Seal::over(&bytes, &identity.pair).map_err(|error| wrong("signing a change", error.to_string()))?;
        bus.kv_put(kv::HISTORY, name, Bytes::from(bytes), Some(&seal)).await.map(drop)
    }
}

fn minus(at: Timestamp, earlier: Duration) -> Timestamp {
    Timestamp::from_ms(at.as_ms().saturating_sub(i64::try_from(earlier.as_millis()).unwrap_or(i64::MAX)))
}

/// The words of a reason.
fn without_numbers(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn said(condition: Condition, reason: Option<&str>) -> Said {
        Said { condition, reason: reason.map(str::to_owned), interval: INTERVAL, revision: 1 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_another_word_or_a_silence() {
        use Condition::{Degraded, Up};
        let mut changes = Changes::default();
        assert!(changes.is_due(Up, None, INTERVAL), "the first sign of a run");
        changes.spoken_after(None, said(Up, None));
        assert!(!changes.is_due(Up, None, INTERVAL));
        assert!(changes.is_due(Degraded, Some("15 MiB left"), INTERVAL));
        changes.spoken_after(None, said(Degraded, Some("15 MiB left")));
        assert!(!changes.is_due(Degraded, Some("14 MiB left"), INTERVAL));
        assert!(changes.is_due(Degraded, Some("cloned"), INTERVAL));
        tokio::time::advance(INTERVAL * 2 + Duration::from_secs(1)).await;
        assert!(changes.is_due(Degraded, Some("15 MiB left"), INTERVAL), "it may have been missed");
        changes.spoken();
        assert!(!changes.is_due(Degraded, Some("15 MiB left"), INTERVAL));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded() {
        let mut changes = Changes::default();
        for _ in 0..WAITING_MAX * 2 {
            changes.spoken_after(None, said(Condition::Up, None));
        }
        assert_eq!(changes.waiting.len(), WAITING_MAX);
    }
}
