//! The wall clock and the dice: the two things that the pure crates must be handed.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use message::{InstanceId, JobId, MessageId, OrderId, Timestamp};
use tokio::time::Instant;

/// Now, by this machine's clock.
pub fn now() -> Timestamp {
    #[cfg(feature = "simulate")]
    if let Some(now) = crate::simulate::now() {
        return now;
    }
    let ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    Timestamp::from_ms(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// The broker's clock as it was last read, carried on by a clock that nobody sets. Empty until it is read.
#[derive(Debug, Default)]
pub struct BrokerTime(Mutex<Option<(Timestamp, Instant)>>);

impl BrokerTime {
    /// The broker has just said what time it is.
    pub fn read(&self, broker: Timestamp) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((broker, Instant::now()));
    }

    /// The broker's time now; `None` before it was read.
    pub fn now(&self) -> Option<Timestamp> {
        let (broker, read) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(broker.plus(read.elapsed()))
    }

    /// By how many milliseconds `own`, the time by this machine's clock, is ahead of the broker's.
    pub fn error_ms(&self, own: Timestamp) -> Option<i64> {
        Some(own.as_ms().saturating_sub(self.now()?.as_ms()))
    }
}

/// 128 bits from the operating system's generator.
///
/// # Panics
/// Never in practice: Linux's `getrandom` cannot fail once the machine has booted. Going on with bits that
/// somebody could guess would be worse than ending.
fn random_bits() -> [u8; 16] {
    #[cfg(feature = "simulate")]
    if let Some(bits) = crate::simulate::random_bits() {
        return bits;
    }
    let mut bits = [0; 16];
    #[allow(clippy::expect_used)]
    getrandom::fill(&mut bits).expect("the operating system gives random bits after boot");
    bits
}

/// A fresh order id.
pub fn order_id() -> OrderId {
    OrderId::from_bytes(random_bits())
}

/// A fresh message id.
pub fn message_id() -> MessageId {
    MessageId::from_bytes(random_bits())
}

/// A fresh id for a journal or a run.
pub fn instance_id() -> InstanceId {
    InstanceId::from_bytes(random_bits())
}

/// A fresh job id for a job created at `created`.
pub fn job_id(created: Timestamp) -> JobId {
    JobId::new(u64::try_from(created.as_ms()).unwrap_or(0), u128::from_le_bytes(random_bits()))
}

/// A number below `bound` for jitter; 0 when `bound` is 0.
pub fn jitter(bound: u64) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = random_bits();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) % bound.max(1)
}
