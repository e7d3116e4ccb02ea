//! Durations (`500ms`, `30s`, `5m`, `2h`, `7d`) and sizes (`64KiB`, `1MiB`) as people write and read them.

use std::time::Duration;

/// A duration or size that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a number and a unit of time.
    #[error("{text:?} is not a duration: write a whole number and a unit, like 500ms, 30s, 5m, 2h or 7d")]
    Duration {
        /// What was given.
        text: String,
    },
    /// Not a number and a unit of size.
    #[error("{text:?} is not a size: write a whole number and a unit, like 512B, 64KiB, 1MiB or 2GiB")]
    Size {
        /// What was given.
        text: String,
    },
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text.get(..digits)?.parse().ok()?, text.get(digits..)?))
}

/// Reads a duration such as `30s`.
///
/// # Errors
/// [`UnitError::Duration`] when it is not a whole number followed by `ms`, `s`, `m`, `h` or `d`, or too large.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError::Duration { text: text.to_owned() };
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(wrong)
}

/// Reads a size such as `64KiB` in bytes.
///
/// # Errors
/// [`UnitError::Size`] when it is not a whole number followed by `B`, `KiB`, `MiB`, `GiB` or nothing, or too large.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Size { text: text.to_owned() };
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

/// A duration for people, in its one or two largest units: `12ms`, `4.2s`, `3m 5s`, `2d 4h`.
pub fn human_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let s = duration.as_secs();
    match s {
        0 => format!("{ms}ms"),
        1..10 => format!("{}.{}s", s, duration.subsec_millis() / 100),
        10..60 => format!("{s}s"),
        60..3_600 => two(s / 60, "m", s % 60, "s"),
        3_600..86_400 => two(s / 3_600, "h", s % 3_600 / 60, "m"),
        _ => two(s / 86_400, "d", s % 86_400 / 3_600, "h"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit} {small}{small_unit}") }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("500ms", 500)]
    #[case("30s", 30_000)]
    #[case("5m", 300_000)]
    #[case("2h", 7_200_000)]
    #[case("7d", 604_800_000)]
    #[case("0s", 0)]
    fn a_duration_is_a_number_and_a_unit(#[case] text: &str, #[case] ms: u64) {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)));
    }

    #[rstest]
    #[case("")]
    #[case("5")]
    #[case("s")]
    #[case("-5s")]
    #[case("1.5s")]
    #[case("5 s")]
    #[case("99999999999999999999s")]
    #[case("18446744073709551615d")]
    fn anything_else_is_no_duration(#[case] text: &str) {
        assert!(parse_duration(text).is_err());
    }

    #[rstest]
    #[case("64KiB", 65_536)]
    #[case("1MiB", 1_048_576)]
    #[case("17", 17)]
    fn a_size_is_a_number_and_a_unit(#[case] text: &str, #[case] bytes: u64) {
        assert_eq!(parse_size(text), Ok(bytes));
    }

    #[rstest]
    #[case(12, "12ms")]
    #[case(4_250, "4.2s")]
    #[case(185_000, "3m 5s")]
    #[case(187_200_000, "2d 4h")]
    fn a_duration_reads_in_its_largest_units(#[case] ms: u64, #[case] text: &str) {
        assert_eq!(human_duration(Duration::from_millis(ms)), text);
    }
}
