//! The error log of the fleet: what programs of Steward say about their own troubles, as events of method [`METHOD`]. Pure.

use serde_json::{Map, Value};

use crate::time::Timestamp;

/// The method of such events; their domain is the program that complains (`agent`, `station`).
pub const METHOD: &str = "errorlog";
/// So many complaints may come at once; beyond that, one in each of the program's intervals.
const BURST: u32 = 20;
/// So many bytes of a text are told.
const TEXT_BYTES_MAX: usize = 2048;
/// So many fields are told.
const FIELDS_MAX: usize = 16;

/// What a program says about a trouble of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// When, by its own clock.
    pub at: Timestamp,
    /// How bad it is.
    pub level: Level,
    /// Where in the program.
    pub place: &'static str,
    /// What is wrong.
    pub message: String,
    /// What belongs to it.
    pub fields: Vec<(&'static str, String)>,
    /// So many before it found no place on their way.
    pub left_out: u64,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// It goes on, and somebody may want to know.
    Warn,
    /// Something does not work.
    Error,
}

impl Complaint {
    /// The record of an event. `left_out` complaints before it were too many.
    pub fn record(self, left_out: u64) -> Map<String, Value> {
        let level = match self.level {
            Level::Warn => "warn",
            Level::Error => "error",
        };
        let mut record = Map::new();
        record.insert("message".into(), cut(self.message).into());
        record.insert("level".into(), level.into());
        record.insert("place".into(), self.place.into());
        if left_out > 0 {
            record.insert("left_out".into(), left_out.into());
        }
        for (key, value) in self.fields.into_iter().take(FIELDS_MAX) {
            record.entry(key).or_insert_with(|| cut(value).into());
        }
        record
    }
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Keeps a program from complaining too often: a bucket of tokens.
#[derive(Debug, Clone)]
pub struct Restraint {
    /// Milliseconds from one complaint to the next, when there are too many.
    interval_ms: u64,
    /// How many milliseconds are saved for complaints.
    saved_ms: u64,
    last_ms: u64,
    left_out: u64,
}

impl Restraint {
    /// One complaint in each interval, and some at once now and then.
    pub fn new(interval_ms: u64) -> Self {
        let interval_ms = interval_ms.max(1);
        Self { interval_ms, saved_ms: interval_ms.saturating_mul(BURST.into()), last_ms: 0, left_out: 0 }
    }

    /// The record of a complaint, if it may be told; `now_ms` are milliseconds of a clock that does not go back.
    pub fn admit(&mut self, complaint: Complaint, now_ms: u64) -> Option<Map<String, Value>> {
        let passed = now_ms.saturating_sub(std::mem::replace(&mut self.last_ms, now_ms));
        self.saved_ms = self.saved_ms.saturating_add(passed).min(self.interval_ms.saturating_mul(BURST.into()));
        self.left_out = self.left_out.saturating_add(complaint.left_out);
        if self.saved_ms < self.interval_ms {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.saved_ms -= self.interval_ms;
        Some(complaint.record(std::mem::take(&mut self.left_out)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn complaint(message: &str) -> Complaint {
        let fields = vec![("error", "no route".to_owned()), ("message", "not this one".to_owned())];
        Complaint {
            at: Timestamp::from_ms(0),
            level: Level::Warn,
            place: "agent::outbox",
            message: message.into(),
            fields,
            left_out: 0,
        }
    }

    #[test]
    fn a_complaint_is_a_record_of_bounded_length() {
        let record = complaint("the link is down").record(3);
        let wanted = json!({"message": "the link is down", "level": "warn", "place": "agent::outbox", "left_out": 3, "error": "no route"});
        assert_eq!(Value::Object(record), wanted);
        let record = complaint(&"ä".repeat(5000)).record(0);
        assert!(record["message"].as_str().unwrap().len() <= TEXT_BYTES_MAX + 3 && !record.contains_key("left_out"));
    }

    #[test]
    fn what_is_too_much_is_counted_and_told_with_the_next() {
        let mut restraint = Restraint::new(1000);
        let told = (0..50).filter_map(|_| restraint.admit(complaint("x"), 5)).count();
        assert_eq!(told, 20);
        assert!(restraint.admit(complaint("x"), 900).is_none());
        let record = restraint.admit(Complaint { left_out: 7, ..complaint("x") }, 1010).unwrap();
        assert_eq!(record["left_out"], 30 + 1 + 7);
        assert!(restraint.admit(complaint("x"), 1020).is_none());
    }

    proptest! {
        #[test]
        fn no_more_are_told_than_are_due_and_each_is_accounted_for(steps in prop::collection::vec(0_u64..5000, 1..200)) {
            let (mut restraint, mut now, mut told, mut left_out) = (Restraint::new(1000), 0, 0_u64, 0_u64);
            for step in &steps {
                now += step;
                if let Some(record) = restraint.admit(complaint("x"), now) {
                    told += 1;
                    left_out += record.get("left_out").map_or(0, |n| n.as_u64().unwrap());
                }
            }
            prop_assert!(told <= u64::from(BURST) + now / 1000);
            prop_assert_eq!(told + left_out + restraint.left_out, steps.len() as u64);
        }
    }
}
