//! Times for people: in their own zone, or as an age.

use std::time::Duration;

use message::Timestamp;
use message::units::human_duration;

/// `2026-11-22 13:00:00` in this host's zone.
pub(crate) fn local(time: Timestamp) -> String {
    in_zone(time, "%Y-%m-%d %H:%M:%S")
}

/// The same with milliseconds.
pub(crate) fn local_ms(time: Timestamp) -> String {
    in_zone(time, "%Y-%m-%d %H:%M:%S%.3f")
}

fn in_zone(time: Timestamp, format: &str) -> String {
    match jiff::Timestamp::from_millisecond(time.as_ms()) {
        Ok(at) => at.to_zoned(jiff::tz::TimeZone::system()).strftime(format).to_string(),
        Err(_) => time.to_string(),
    }
}

/// `3m 5s ago`.
pub(crate) fn ago(age: Duration) -> String {
    // Nobody counts the milliseconds of a sign of life.
    if age < Duration::from_secs(1) { "now".to_owned() } else { format!("{} ago", human_duration(whole_seconds(age))) }
}

/// From `earlier` to `later`, for people.
pub(crate) fn between(earlier: Timestamp, later: Timestamp) -> String {
    human_duration(later.since(earlier))
}

fn whole_seconds(age: Duration) -> Duration {
    if age < Duration::from_secs(10) { age } else { Duration::from_secs(age.as_secs()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_rough() {
        assert_eq!(ago(Duration::from_millis(400)), "now");
        assert_eq!(ago(Duration::from_millis(4_250)), "4.2s ago");
        assert_eq!(ago(Duration::from_secs(185)), "3m 5s ago");
    }
}
