//! The latest events, each once.

use std::collections::{HashSet, VecDeque};

use fleet::EventLine;

/// So many are kept.
pub(crate) const EVENTS_MAX: usize = 200;

/// The latest events.
#[derive(Default)]
pub(crate) struct RecentEvents {
    /// Newest last.
    lines: VecDeque<EventLine>,
    ids: HashSet<String>,
}

impl RecentEvents {
    /// Adds one; tells whether it is new. The oldest one goes when there are too many.
    pub(crate) fn push(&mut self, line: EventLine) -> bool {
        if !self.ids.insert(line.id.clone()) {
            return false;
        }
        self.lines.push_back(line);
        if self.lines.len() > EVENTS_MAX
            && let Some(oldest) = self.lines.pop_front()
        {
            self.ids.remove(&oldest.id);
        }
        true
    }

    /// Up to `limit` of them, newest first.
    pub(crate) fn newest(&self, limit: usize) -> Vec<EventLine> {
        self.lines.iter().rev().take(limit).cloned().collect()
    }

    /// Whether one of this id is here.
    pub(crate) fn knows(&self, id: &str) -> bool {
        self.ids.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;

    #[test]
    fn events_are_kept_once_newest_first_and_bounded() {
        let mut events = RecentEvents::default();
        for number in 0..EVENTS_MAX + 5 {
            assert!(events.push(made_up::event(&number.to_string(), "x")));
        }
        assert!(!events.push(made_up::event("204", "again")));
        let ids: Vec<String> = events.newest(2).into_iter().map(|line| line.id).collect();
        assert_eq!(ids, ["204", "203"]);
        assert_eq!(events.newest(usize::MAX).len(), EVENTS_MAX);
        assert!(events.knows("5") && !events.knows("4"));
    }
}
