//! The conditions of a rule: globs, argument lists, hours of the week. Each is read strictly and written in one way only.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::NodeName;
use crate::target::glob_matches;
use crate::time::Timestamp;

/// The longest glob.
const GLOB_MAX: usize = 256;
/// The most elements in one pattern of arguments.
const ELEMENTS_MAX: usize = 64;
const MINUTES_A_DAY: u16 = 24 * 60;
const MS_A_MINUTE: i64 = 60_000;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

macro_rules! as_text {
    ($name:ident) => {
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                Self::parse(&text)
            }
        }
    };
}

/// A pattern in which `*` stands for any characters and `?` for one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob(String);

impl Glob {
    /// Reads a glob.
    ///
    /// # Errors
    /// A sentence, when it is too long or has characters that cannot be seen.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > GLOB_MAX {
            return Err(format!("a pattern has at most {GLOB_MAX} bytes, this one has {}", text.len()));
        }
        if let Some(found) = text.chars().find(|c| c.is_control()) {
            return Err(format!("a pattern cannot have the character {found:?}"));
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether `text` is meant.
    pub fn matches(&self, text: &str) -> bool {
        glob_matches(&self.0, text)
    }

    /// Whether a node is meant.
    pub fn matches_node(&self, name: &NodeName) -> bool {
        self.matches(name.as_str())
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a plain name.
    pub fn is_literal(&self) -> bool {
        !self.0.contains(['*', '?'])
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
as_text!(Glob);

/// A program and its arguments, element by element; a last `**` takes any rest, also none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Glob>", into = "Vec<Glob>")]
pub struct Arguments(Vec<Glob>);

impl Arguments {
    /// Whether exactly these arguments are meant.
    pub fn matches(&self, argv: &[String]) -> bool {
        let (globs, rest) = match self.0.split_last() {
            Some((last, globs)) if last.as_str() == "**" => (globs, true),
            _ => (self.0.as_slice(), false),
        };
        let length_fits = if rest { argv.len() >= globs.len() } else { argv.len() == globs.len() };
        length_fits && globs.iter().zip(argv).all(|(glob, argument)| glob.matches(argument))
    }

    /// Whether they may be those of this program.
    pub fn may_start(&self, program: &str) -> bool {
        self.0.first().is_some_and(|glob| glob.as_str() == "**" || glob.matches(program))
    }
}

impl TryFrom<Vec<Glob>> for Arguments {
    type Error = String;
    fn try_from(globs: Vec<Glob>) -> Result<Self, String> {
        if globs.is_empty() || globs.len() > ELEMENTS_MAX {
            return Err(format!(
                "a pattern of arguments has 1 to {ELEMENTS_MAX} elements, this one has {}",
                globs.len()
            ));
        }
        if globs.iter().rev().skip(1).any(|glob| glob.as_str() == "**") {
            return Err("`**` takes any rest and must be the last element".into());
        }
        Ok(Self(globs))
    }
}
impl From<Arguments> for Vec<Glob> {
    fn from(arguments: Arguments) -> Self {
        arguments.0
    }
}
impl fmt::Display for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self
            .0
            .iter()
            .map(|glob| {
                if glob.0.is_empty() || glob.0.contains(char::is_whitespace) {
                    format!("{:?}", glob.0)
                } else {
                    glob.0.clone()
                }
            })
            .collect();
        f.write_str(&words.join(" "))
    }
}

/// When a rule holds: hours on days of the week, by the fleet's time. Hours that go over midnight belong to the day on
/// which they begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Hours", into = "Hours")]
pub struct Times(Hours);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hours {
    #[serde(default)]
    days: Days,
    #[serde(default = "Clock::midnight")]
    from: Clock,
    #[serde(default = "Clock::end")]
    to: Clock,
    #[serde(default)]
    offset: Offset,
}

impl TryFrom<Hours> for Times {
    type Error = String;
    fn try_from(hours: Hours) -> Result<Self, String> {
        if hours.from == hours.to {
            return Err(format!("from and to are both {}: leave both out for the whole day", hours.from));
        }
        Ok(Self(hours))
    }
}
impl From<Times> for Hours {
    fn from(times: Times) -> Self {
        times.0
    }
}

impl Times {
    /// Whether `now` is among them.
    pub fn contains(&self, now: Timestamp) -> bool {
        let Hours { days, from, to, offset } = &self.0;
        let minutes = now.as_ms().div_euclid(MS_A_MINUTE).saturating_add(i64::from(offset.0));
        let day = minutes.div_euclid(i64::from(MINUTES_A_DAY));
        let minute = u16::try_from(minutes.rem_euclid(i64::from(MINUTES_A_DAY))).unwrap_or(0);
        // 1970-01-01 was a Thursday.
        let weekday = |day: i64| usize::try_from((day + 3).rem_euclid(7)).unwrap_or(0);
        if from.0 < to.0 {
            days.0[weekday(day)] && (from.0..to.0).contains(&minute)
        } else {
            (days.0[weekday(day)] && minute >= from.0) || (days.0[weekday(day - 1)] && minute < to.0)
        }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hours { days, from, to, offset } = &self.0;
        write!(f, "{days} {from}-{to} {offset}")
    }
}

/// Days of the week, from Monday.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Days([bool; 7]);

impl Default for Days {
    fn default() -> Self {
        Self([true; 7])
    }
}

impl Days {
    fn parse(text: &str) -> Result<Self, String> {
        let day = |word: &str| {
            DAYS.iter().position(|day| *day == word.trim()).ok_or_else(|| {
                format!("{word:?} is not a day in days = {text:?}: write mon, tue, wed, thu, fri, sat, sun, ranges like mon-fri, with commas between")
            })
        };
        let mut days = [false; 7];
        if text.len() > GLOB_MAX {
            return Err("days are named too often".into());
        }
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (day(first)?, day(last)?);
            // `sat-mon` goes over the end of the week.
            let length = (last + 7 - first) % 7;
            (0..=length).for_each(|step| days[(first + step) % 7] = true);
        }
        Ok(Self(days))
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let mut day = 0;
        while day < 7 {
            let length = self.0[day..].iter().take_while(|on| **on).count();
            match length {
                0 => {}
                1 => parts.push(DAYS[day].to_owned()),
                _ => parts.push(format!("{}-{}", DAYS[day], DAYS[day + length - 1])),
            }
            day += length.max(1);
        }
        f.write_str(&parts.join(","))
    }
}
as_text!(Days);

/// Minutes since midnight, up to 24:00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Clock(u16);

fn hours_and_minutes(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |digits: &str| {
        (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse::<u16>().ok())?
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (minutes < 60 && hours * 60 + minutes <= MINUTES_A_DAY).then_some(hours * 60 + minutes)
}

impl Clock {
    const fn midnight() -> Self {
        Self(0)
    }
    const fn end() -> Self {
        Self(MINUTES_A_DAY)
    }
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a time of day: write it like 06:00, from 00:00 to 24:00");
        hours_and_minutes(text).map(Self).ok_or_else(wrong)
    }
}
impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}
as_text!(Clock);

/// Minutes ahead of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Offset(i16);

impl Offset {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an offset from UTC: write it like +02:00, -05:30 or UTC");
        if text == "UTC" {
            return Ok(Self(0));
        }
        let (sign, rest) = text.split_at_checked(1).ok_or_else(wrong)?;
        let minutes = hours_and_minutes(rest).filter(|minutes| *minutes <= 14 * 60).ok_or_else(wrong)?;
        let minutes = i16::try_from(minutes).map_err(|_| wrong())?;
        match sign {
            "+" => Ok(Self(minutes)),
            "-" => Ok(Self(-minutes)),
            _ => Err(wrong()),
        }
    }
}
impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("UTC");
        }
        let (sign, minutes) = (if self.0 < 0 { '-' } else { '+' }, self.0.unsigned_abs());
        write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }
}
as_text!(Offset);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn arguments(pattern: &[&str]) -> Arguments {
        Arguments::try_from(pattern.iter().map(|glob| Glob::parse(glob).unwrap()).collect::<Vec<_>>()).unwrap()
    }

    #[rstest]
    #[case(&["systemctl", "restart", "*"], &["systemctl", "restart", "nginx"], true)]
    #[case(&["systemctl", "restart", "*"], &["systemctl", "restart"], false)]
    #[case(&["systemctl", "restart", "*"], &["systemctl", "restart", "a", "b"], false)]
    #[case(&["systemctl", "restart", "*"], &["systemctl", "stop", "a"], false)]
    #[case(&["ls", "**"], &["ls"], true)]
    #[case(&["ls", "**"], &["ls", "-l", "/"], true)]
    #[case(&["ls", "**"], &["rm", "-l"], false)]
    #[case(&["**"], &[], true)]
    #[case(&["a*b"], &["a b"], true)]
    fn arguments_match_element_by_element(#[case] pattern: &[&str], #[case] argv: &[&str], #[case] meant: bool) {
        let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
        assert_eq!(arguments(pattern).matches(&argv), meant);
    }

    #[test]
    fn only_a_last_element_takes_any_rest() {
        let globs = ["**", "a"].map(|glob| Glob::parse(glob).unwrap()).to_vec();
        assert!(Arguments::try_from(globs).unwrap_err().contains("last"));
    }

    fn times(json: &str) -> Times {
        serde_json::from_str(json).unwrap()
    }

    // 2026-11-22 is a Sunday.
    #[rstest]
    #[case(r#"{"days":"mon-fri","from":"06:00","to":"20:00"}"#, "2026-11-23T06:00:00Z", true)]
    #[case(r#"{"days":"mon-fri","from":"06:00","to":"20:00"}"#, "2026-11-23T05:59:59Z", false)]
    #[case(r#"{"days":"mon-fri","from":"06:00","to":"20:00"}"#, "2026-11-23T20:00:00Z", false)]
    #[case(r#"{"days":"mon-fri","from":"06:00","to":"20:00"}"#, "2026-11-22T12:00:00Z", false)]
    #[case(r#"{"days":"sun"}"#, "2026-11-22T23:59:59Z", true)]
    #[case(r#"{"days":"sat-mon"}"#, "2026-11-22T23:59:59Z", true)]
    #[case(r#"{"days":"sun","from":"22:00","to":"06:00"}"#, "2026-11-23T05:00:00Z", true)]
    #[case(r#"{"days":"sun","from":"22:00","to":"06:00"}"#, "2026-11-22T05:00:00Z", false)]
    #[case(r#"{"from":"06:00","to":"20:00","offset":"+02:00"}"#, "2026-11-23T04:00:00Z", true)]
    #[case(r#"{"from":"06:00","to":"20:00","offset":"-05:30"}"#, "2026-11-23T11:29:00Z", false)]
    fn hours_are_those_of_the_week(#[case] json: &str, #[case] at: &str, #[case] among: bool) {
        assert_eq!(times(json).contains(at.parse().unwrap()), among);
    }

    #[rstest]
    #[case(r#"{"days":"mo"}"#)]
    #[case(r#"{"from":"6:00"}"#)]
    #[case(r#"{"to":"24:01"}"#)]
    #[case(r#"{"from":"12:00","to":"12:00"}"#)]
    #[case(r#"{"offset":"+15:00"}"#)]
    #[case(r#"{"offset":"CET"}"#)]
    #[case(r#"{"until":"12:00"}"#)]
    #[case(r#"{"offset":""}"#)]
    #[case(r#"{"offset":"é1:00"}"#)]
    fn wrong_hours_are_refused(#[case] json: &str) {
        assert!(serde_json::from_str::<Times>(json).is_err());
    }

    proptest! {
        #[test]
        fn days_are_written_as_they_are_read(days in any::<[bool; 7]>()) {
            prop_assume!(days.contains(&true));
            prop_assert_eq!(Days::parse(&Days(days).to_string()), Ok(Days(days)));
        }
        #[test]
        fn offsets_are_written_as_they_are_read(minutes in -840_i16..=840) {
            prop_assert_eq!(Offset::parse(&Offset(minutes).to_string()), Ok(Offset(minutes)));
        }
        #[test]
        fn no_moment_panics(ms in any::<i64>()) {
            let _ = times(r#"{"days":"sun","from":"22:00","to":"06:00"}"#).contains(Timestamp::from_ms(ms));
        }
    }
}
