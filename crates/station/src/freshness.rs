//! How far what is shown can be relied on.

use std::time::Duration;

/// Whether what is shown can be relied on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// It follows the broker's streams.
    Live,
    /// It does not any more.
    Stale {
        /// Why: a sentence.
        reason: String,
        /// How long ago it was last confirmed.
        age: Duration,
    },
    /// There is nothing to show yet.
    Empty {
        /// Why: a sentence.
        reason: String,
    },
}
