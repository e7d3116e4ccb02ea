//! Points in time as they stand on the wire: UTC, to the millisecond, RFC 3339.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01 UTC; written as RFC 3339, for example `2026-11-22T12:00:00.000Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(i64);

/// A text that is not an RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a time: write it like 2026-11-22T12:00:00.000Z")]
pub struct TimestampError {
    text: String,
}

impl Timestamp {
    /// The time `ms` milliseconds after 1970-01-01 UTC.
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds after 1970-01-01 UTC.
    pub const fn as_ms(self) -> i64 {
        self.0
    }

    /// This time and `duration` more; stops at the end of time instead of overflowing.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{}", time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")),
            // Beyond the year 9999 RFC 3339 has no words; such a time can only come from a broken clock.
            Err(_) => f.write_str(if self.0 < 0 { "0000-01-01T00:00:00.000Z" } else { "9999-12-30T00:00:00.000Z" }),
        }
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

impl TryFrom<String> for Timestamp {
    type Error = TimestampError;
    fn try_from(text: String) -> Result<Self, TimestampError> {
        text.parse()
    }
}

impl std::str::FromStr for Timestamp {
    type Err = TimestampError;
    fn from_str(text: &str) -> Result<Self, TimestampError> {
        text.parse::<jiff::Timestamp>()
            .map(|time| Self(time.as_millisecond()))
            .map_err(|_| TimestampError { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_is_written_as_rfc_3339_with_milliseconds() {
        assert_eq!(Timestamp::from_ms(1_795_348_800_007).to_string(), "2026-11-22T12:00:00.007Z");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ms in -62_000_000_000_000_i64..253_000_000_000_000) {
            let time = Timestamp::from_ms(ms);
            prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        }
        #[test]
        fn no_millisecond_count_panics(ms in any::<i64>()) {
            let _ = Timestamp::from_ms(ms).to_string();
        }
    }
}
