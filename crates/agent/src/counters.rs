//! What happened so far, in numbers: for life signs, for `hello`, and for the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bus::{Message, clock};
use message::audit::Sample;
use message::sign;

use crate::rest::Work;

/// Counters of one agent.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Orders that run now.
    pub(crate) running: AtomicU32,
    /// Orders that wait now.
    pub(crate) waiting: AtomicU32,
    /// Orders that were delivered again, and not run again.
    pub(crate) repeated: AtomicU64,
    /// Orders whose reply the broker has not confirmed, and event batches likewise.
    pub(crate) outbox: AtomicU32,
    /// Orders that have begun.
    pub(crate) begun: Work,
    discarded: Mutex<BTreeMap<&'static str, Discarded>>,
}

/// What was discarded for one reason.
#[derive(Debug, Clone, Default)]
pub(crate) struct Discarded {
    /// How many.
    pub(crate) count: u64,
    /// The last one.
    pub(crate) last: Option<Sample>,
}

/// What a message says of itself, for [`Counters::discard`].
pub(crate) fn sample(message: &Message) -> Sample {
    let header = |name: &str| message.header(name);
    Sample::new(&message.subject, header(sign::KEY_HEADER), header("Nats-Msg-Id"), clock::now())
}

impl Counters {
    /// Counts a message that is discarded under `word`, and keeps `last` of it. Returns how many there were so far.
    pub(crate) fn discard(&self, word: &'static str, last: Option<Sample>) -> u64 {
        let mut discarded = self.discarded.lock().unwrap_or_else(PoisonError::into_inner);
        let one = discarded.entry(word).or_default();
        one.count += 1;
        one.last = last;
        one.count
    }

    pub(crate) fn discarded(&self) -> BTreeMap<&'static str, Discarded> {
        self.discarded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many messages were discarded, by reason.
    pub(crate) fn discards(&self) -> BTreeMap<&'static str, u64> {
        self.discarded().into_iter().map(|(word, one)| (word, one.count)).collect()
    }

    pub(crate) fn add(gauge: &AtomicU32) {
        gauge.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove(gauge: &AtomicU32) {
        // A gauge that is let go more often than taken would be a bug; it must not wrap around.
        let _ = gauge.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| value.checked_sub(1));
    }
}
