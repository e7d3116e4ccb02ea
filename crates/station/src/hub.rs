//! What has changed, told to whoever follows: a bounded past from which each reader takes at its own pace.
//!
//! Nobody waits for a reader. One that is too slow, or comes back after too long, is told that it has missed something
//! and reads everything again. Pure, but for the wake-up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;
use tokio::sync::watch;

/// So many changes are kept, and so many bytes of them.
const KEPT_MAX: usize = 4096;
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// So many are handed to a reader at once.
const BATCH_MAX: usize = 256;

/// What a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topic {
    /// How a node stands.
    Node,
    /// How a job stands.
    Job,
    /// Something that a node reported.
    Event,
    /// Whether the view can be relied on. Everyone is told.
    Status,
    /// What was known is to be read again. Everyone is told.
    Reset,
}

impl Topic {
    /// Those that can be chosen.
    pub(crate) const CHOICE: [Self; 3] = [Self::Node, Self::Job, Self::Event];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Job => "job",
            Self::Event => "event",
            Self::Status => "status",
            Self::Reset => "reset",
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) number: u64,
    pub(crate) topic: Topic,
    /// JSON in one line.
    pub(crate) text: Arc<str>,
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Whether some before these are gone.
    pub(crate) missed: bool,
    pub(crate) changes: Vec<Change>,
    /// Up to which number this reader has been served.
    pub(crate) upto: u64,
}

/// The changes.
pub(crate) struct Hub {
    past: Mutex<Past>,
    news: watch::Sender<u64>,
}

#[derive(Default)]
struct Past {
    /// The number of the newest one; the first has number 1.
    last: u64,
    kept: VecDeque<Change>,
    bytes: usize,
    /// What was told last of the topic that is told only when it changes.
    standing: Arc<str>,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self { past: Mutex::default(), news: watch::Sender::new(0) }
    }

    /// Tells a change.
    pub(crate) fn tell(&self, topic: Topic, text: String) {
        let number = self.past().add(topic, text.into());
        self.news.send_replace(number);
    }

    /// Tells it unless it was the last thing told by this way.
    pub(crate) fn tell_if_new(&self, topic: Topic, text: String) {
        let number = {
            let mut past = self.past();
            if *past.standing == *text {
                return;
            }
            let text: Arc<str> = text.into();
            past.standing = Arc::clone(&text);
            past.add(topic, text)
        };
        self.news.send_replace(number);
    }

    /// Everything is to be read again.
    pub(crate) fn reset(&self, reason: &str) {
        self.tell(Topic::Reset, json!({ "reason": reason }).to_string());
    }

    /// The number of the newest change.
    pub(crate) fn last(&self) -> u64 {
        self.past().last
    }

    /// What came after number `after`, as far as it is of these topics.
    pub(crate) fn since(&self, after: u64, topics: &[Topic]) -> Batch {
        let past = self.past();
        let first = past.kept.front().map_or(past.last + 1, |change| change.number);
        // A number of the future is from before the station was started.
        let missed = after > past.last || after + 1 < first;
        let begin = if missed { first } else { after + 1 };
        let skipped = usize::try_from(begin - first).unwrap_or(usize::MAX);
        let mut upto = begin - 1;
        let mut changes = Vec::new();
        for change in past.kept.iter().skip(skipped) {
            if changes.len() >= BATCH_MAX {
                break;
            }
            upto = change.number;
            if topics.contains(&change.topic) || matches!(change.topic, Topic::Status | Topic::Reset) {
                changes.push(change.clone());
            }
        }
        Batch { missed, changes, upto }
    }

    /// Wakes when something is told.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        // A change is added in one step, also when somebody else has panicked.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Past {
    fn add(&mut self, topic: Topic, text: Arc<str>) -> u64 {
        self.last += 1;
        self.bytes += text.len();
        self.kept.push_back(Change { number: self.last, topic, text });
        while (self.kept.len() > KEPT_MAX || self.bytes > KEPT_BYTES_MAX)
            && let Some(oldest) = self.kept.pop_front()
        {
            self.bytes = self.bytes.saturating_sub(oldest.text.len());
        }
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(batch: &Batch) -> Vec<u64> {
        batch.changes.iter().map(|change| change.number).collect()
    }

    #[test]
    fn a_reader_gets_what_came_after_and_of_its_topics() {
        let hub = Hub::new();
        hub.tell(Topic::Node, "1".into());
        hub.tell(Topic::Job, "2".into());
        hub.reset("3");
        let batch = hub.since(0, &[Topic::Node]);
        assert_eq!((numbers(&batch), batch.upto, batch.missed), (vec![1, 3], 3, false));
        let batch = hub.since(3, &[Topic::Node]);
        assert_eq!((numbers(&batch), batch.upto, batch.missed), (vec![], 3, false));
        // Of another station, or of this one before it was started anew.
        let batch = hub.since(9, &[Topic::Job]);
        assert_eq!((numbers(&batch), batch.missed), (vec![2, 3], true));
    }

    #[test]
    fn what_is_told_only_when_it_changes_is_told_once() {
        let hub = Hub::new();
        for text in ["a", "a", "b", "a"] {
            hub.tell_if_new(Topic::Status, text.into());
        }
        assert_eq!(hub.last(), 3);
    }

    #[test]
    fn the_past_is_bounded_and_who_comes_too_late_is_told() {
        let hub = Hub::new();
        for number in 0..=KEPT_MAX {
            hub.tell(Topic::Event, number.to_string());
        }
        let batch = hub.since(0, &[Topic::Event]);
        assert_eq!((batch.missed, batch.changes.len(), batch.changes[0].number), (true, BATCH_MAX, 2));
        assert!(!hub.since(1, &[Topic::Event]).missed);
        hub.tell(Topic::Event, "x".repeat(KEPT_BYTES_MAX));
        let last = hub.last();
        assert_eq!(numbers(&hub.since(last - 1, &[Topic::Event])), [last]);
        assert!(hub.since(5, &[Topic::Event]).missed);
    }

    #[test]
    fn a_reader_comes_through_all_of_it_in_batches() {
        let hub = Hub::new();
        for number in 0..BATCH_MAX * 3 {
            hub.tell(if number % 2 == 0 { Topic::Event } else { Topic::Job }, String::new());
        }
        let (mut after, mut seen) = (0, 0);
        loop {
            let batch = hub.since(after, &[Topic::Job]);
            seen += batch.changes.len();
            if batch.upto == after {
                break;
            }
            after = batch.upto;
        }
        assert_eq!((seen, after), (BATCH_MAX * 3 / 2, u64::try_from(BATCH_MAX * 3).unwrap()));
    }
}
