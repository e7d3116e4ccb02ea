//! What time it is, for the purpose of expiry, when clocks lie. The rule; pure.
//!
//! A unit's own clock may be wrong by days: by it, valid orders would be dropped and expired ones run. So expiry goes
//! by the broker's clock: read at each connect and carried on by a clock that nobody sets; never earlier than the
//! moment at which the broker stored the order; and never earlier than the latest time that an operator signed
//! (the watermark), which no broker can turn back.

use std::sync::{Mutex, PoisonError};

use message::Timestamp;
use tokio::time::Instant;

/// The broker's clock, as this node last read it.
#[derive(Debug, Default)]
pub(crate) struct FleetTime {
    read: Mutex<Option<Reading>>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    broker: Timestamp,
    /// This node's own clock at the same moment.
    own: Timestamp,
    at: Instant,
}

impl FleetTime {
    /// The broker has just said what time it is.
    pub(crate) fn read(&self, broker: Timestamp, own: Timestamp) {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some(Reading { broker, own, at: Instant::now() });
    }

    /// The broker's time now; `None` before it was read.
    pub(crate) fn now(&self) -> Option<Timestamp> {
        let reading = (*self.read.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(reading.broker.plus(reading.at.elapsed()))
    }

    /// By how many milliseconds this node's clock was ahead of the broker's when it was last read.
    pub(crate) fn error_ms(&self) -> Option<i64> {
        let reading = (*self.read.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(reading.own.as_ms().saturating_sub(reading.broker.as_ms()))
    }
}

/// The time by which an order counts as expired.
pub(crate) fn now_for_expiry(broker: Option<Timestamp>, stored_at: Timestamp, watermark: Timestamp) -> Timestamp {
    broker.unwrap_or_default().max(stored_at).max(watermark)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::from_ms(1_000_000_000);

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_ms(NOON.as_ms() + ms)
    }

    #[test]
    fn the_nodes_own_clock_plays_no_part() {
        let time = FleetTime::default();
        assert_eq!(time.now(), None);
        let day = 24 * 3600 * 1000;
        for own in [at(-day), at(0), at(day)] {
            time.read(NOON, own);
            let now = time.now().unwrap();
            assert!(now >= NOON && now < at(60_000));
            assert_eq!(time.error_ms(), Some(own.as_ms() - NOON.as_ms()));
        }
    }

    #[test]
    fn time_is_never_earlier_than_what_was_stored_or_signed() {
        assert_eq!(now_for_expiry(None, at(5), at(3)), at(5));
        assert_eq!(now_for_expiry(Some(at(1)), at(5), at(9)), at(9), "a broker that turns its clock back");
        assert_eq!(now_for_expiry(Some(at(7)), at(5), at(3)), at(7));
    }
}
