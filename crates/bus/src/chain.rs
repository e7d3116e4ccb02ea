//! The cursor at the edge: which live messages may pass, and when a catch-up is needed. Pure.
//!
//! The agent keeps a head (last sequence) for each subject and one floor. Every live message carries its own
//! sequence and the one before it on the same subject. It passes only if the one before it has been seen;
//! otherwise something is missing, and nothing after it may pass until a catch-up has read the stream itself.
//! **Only a completed catch-up raises the floor**: with a single cursor a message lost on one subject would be
//! overtaken by the next on another subject, and be lost for ever.

use std::collections::BTreeMap;

/// What to do with a live message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is the next one of its subject.
    Next,
    /// It has been seen before.
    Seen,
    /// Something before it is missing: catch up.
    Gap,
}

/// Heads and floor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    floor: u64,
    heads: BTreeMap<String, u64>,
}

impl Chain {
    /// A chain that has seen everything up to `floor`, and on some subjects more.
    pub fn new(floor: u64, heads: impl IntoIterator<Item = (String, u64)>) -> Self {
        Self { floor, heads: heads.into_iter().filter(|(_, head)| *head > floor).collect() }
    }

    /// Everything up to here has been seen, on all subjects.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// The last sequence seen on `subject`.
    pub fn head(&self, subject: &str) -> u64 {
        self.heads.get(subject).copied().unwrap_or(0).max(self.floor)
    }

    /// Judges a live message by its sequence and the one before it on its subject (0: none before).
    pub fn judge(&self, subject: &str, sequence: u64, previous: u64) -> Arrival {
        let head = self.head(subject);
        if sequence <= head {
            Arrival::Seen
        } else if previous <= head {
            Arrival::Next
        } else {
            Arrival::Gap
        }
    }

    /// Notes that the message with `sequence` on `subject` was taken.
    pub fn take(&mut self, subject: &str, sequence: u64) {
        if sequence > self.head(subject) {
            self.heads.insert(subject.to_owned(), sequence);
        }
    }

    /// Notes that a catch-up has read everything up to `floor`. Never lowers it.
    pub fn raise_floor(&mut self, floor: u64) {
        if floor > self.floor {
            self.floor = floor;
            self.heads.retain(|_, head| *head > floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_passes_only_behind_its_predecessor() {
        let mut chain = Chain::new(10, []);
        assert_eq!(chain.judge("a", 11, 0), Arrival::Next);
        chain.take("a", 11);
        assert_eq!(chain.judge("a", 11, 0), Arrival::Seen);
        assert_eq!(chain.judge("a", 15, 13), Arrival::Gap);
        assert_eq!(chain.judge("b", 14, 9), Arrival::Next);
        assert_eq!(chain.judge("b", 14, 12), Arrival::Gap);
        chain.raise_floor(15);
        assert_eq!(chain.judge("a", 16, 15), Arrival::Next);
        assert_eq!(chain.judge("a", 14, 11), Arrival::Seen);
    }

    /// A stream with several subjects; live delivery loses, repeats and reorders at will; catch-ups read the
    /// stream. Whatever happens, each message is taken exactly once, in order within its subject.
    #[derive(Debug, Clone)]
    enum Step {
        Publish(u8),
        Deliver(usize),
        CatchUp,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0_u8..3).prop_map(Step::Publish),
            4 => (0_usize..20).prop_map(Step::Deliver),
            1 => Just(Step::CatchUp),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_lost_repeated_or_overtaken(steps in proptest::collection::vec(step(), 0..200)) {
            let mut stream: Vec<(String, u64)> = Vec::new(); // subject, previous; sequence = index + 1
            let mut chain = Chain::default();
            let mut taken: Vec<u64> = Vec::new();
            let catch_up = |chain: &mut Chain, taken: &mut Vec<u64>, stream: &[(String, u64)]| {
                for (index, (subject, _)) in stream.iter().enumerate().skip(chain.floor() as usize) {
                    let sequence = index as u64 + 1;
                    if sequence > chain.head(subject) {
                        taken.push(sequence);
                        chain.take(subject, sequence);
                    }
                }
                chain.raise_floor(stream.len() as u64);
            };
            for step in steps {
                match step {
                    Step::Publish(subject) => {
                        let subject = subject.to_string();
                        let previous = stream.iter().rposition(|(own, _)| *own == subject).map_or(0, |i| i as u64 + 1);
                        stream.push((subject, previous));
                    }
                    Step::Deliver(index) if !stream.is_empty() => {
                        let index = index % stream.len();
                        let (subject, previous) = &stream[index];
                        let sequence = index as u64 + 1;
                        match chain.judge(subject, sequence, *previous) {
                            Arrival::Next => { taken.push(sequence); chain.take(subject, sequence); }
                            Arrival::Seen => prop_assert!(taken.contains(&sequence)),
                            Arrival::Gap => prop_assert!(!taken.contains(&sequence)),
                        }
                    }
                    Step::Deliver(_) => {}
                    Step::CatchUp => catch_up(&mut chain, &mut taken, &stream),
                }
            }
            catch_up(&mut chain, &mut taken, &stream);
            let mut sorted = taken.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (1..=stream.len() as u64).collect::<Vec<_>>());
            for subject in ["0", "1", "2"] {
                let own: Vec<u64> = taken.iter().copied().filter(|s| stream[*s as usize - 1].0 == subject).collect();
                prop_assert!(own.is_sorted());
            }
        }
    }
}
