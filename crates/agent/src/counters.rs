//! What happened so far, in numbers: for life signs, for `hello`, and for the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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
    discarded: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    pub(crate) fn discard(&self, word: &'static str) -> u64 {
        let mut discarded = self.discarded.lock().unwrap_or_else(PoisonError::into_inner);
        let count = discarded.entry(word).or_default();
        *count += 1;
        *count
    }

    pub(crate) fn discarded(&self) -> BTreeMap<&'static str, u64> {
        self.discarded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn add(gauge: &AtomicU32) {
        gauge.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove(gauge: &AtomicU32) {
        // A gauge that is let go more often than taken would be a bug; it must not wrap around.
        let _ = gauge.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| value.checked_sub(1));
    }
}
