//! What happened in a run, line by line, and its digest: the same seed gives the same.

use std::hash::{DefaultHasher, Hash, Hasher};

/// The lines of one run.
pub(super) struct Trace {
    is_on: bool,
    digest: DefaultHasher,
    lines: Vec<String>,
}

impl Trace {
    pub(super) fn new(is_on: bool) -> Self {
        Self { is_on, digest: DefaultHasher::new(), lines: Vec::new() }
    }

    pub(super) fn note(&mut self, now: i64, line: impl FnOnce() -> String) {
        if !self.is_on {
            return;
        }
        let line = format!("{:>8}.{:03} {}", now / 1000, now % 1000, line());
        line.hash(&mut self.digest);
        self.lines.push(line);
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// All lines, or those that say something of one of these words.
    pub(super) fn lines(&self, about: &[String]) -> String {
        let told = |line: &&String| about.is_empty() || about.iter().any(|word| line.contains(word.as_str()));
        self.lines.iter().filter(told).cloned().collect::<Vec<_>>().join("\n")
    }
}
