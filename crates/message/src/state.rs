//! The states of an order and the one state machine that agent, station and command line share.
//!
//! A node tells its whole [`History`] with every reply, so a reader folds histories by [`History::merge`] and
//! never believes that the last message wins.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// How an order stands. The same words on the wire, in JSON, in tables and on the web.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Stored by the broker; the node has not said anything yet.
    Queued,
    /// The node has it in its journal.
    Delivered,
    /// It has begun.
    Running,
    /// It ended well.
    Succeeded,
    /// It ended badly, or could not be executed.
    Failed,
    /// It was ended because it took longer than its time-out.
    TimedOut,
    /// It was cancelled, before or while it ran.
    Cancelled,
    /// It was not picked up in time, and not run.
    Expired,
    /// The node refused it, and did not run it.
    Rejected,
    /// It had begun when the agent or the machine went down, and it was not run again.
    Interrupted,
    /// A newer order of the same key took its place before it began.
    Superseded,
}

impl State {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 11] = [
        Self::Queued,
        Self::Delivered,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::TimedOut,
        Self::Cancelled,
        Self::Expired,
        Self::Rejected,
        Self::Interrupted,
        Self::Superseded,
    ];

    /// Whether nothing can follow.
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Delivered | Self::Running)
    }

    /// Whether `next` may follow this state.
    pub const fn may_become(self, next: Self) -> bool {
        use State::{
            Cancelled, Delivered, Expired, Failed, Interrupted, Queued, Rejected, Running, Succeeded, Superseded,
            TimedOut,
        };
        match self {
            Queued => matches!(next, Delivered | Cancelled | Expired | Rejected | Interrupted | Superseded),
            Delivered => matches!(next, Running | Cancelled | Expired | Rejected | Interrupted | Superseded),
            Running => matches!(next, Succeeded | Failed | TimedOut | Cancelled | Interrupted),
            _ => false,
        }
    }

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delivered => "delivered",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
            Self::Interrupted => "interrupted",
            Self::Superseded => "superseded",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One change of state, with the time at which the node saw it by its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The state entered.
    pub state: State,
    /// When, by the node's clock.
    pub at: Timestamp,
}

/// A change that the state machine does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an order that is {from} cannot become {to}")]
pub struct IllegalStep {
    /// The state it was in.
    pub from: State,
    /// The state it should have entered.
    pub to: State,
}

/// What happened to an order so far, as its node told it. Begins after `queued`, which only the broker knows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Step>", into = "Vec<Step>")]
pub struct History {
    steps: Vec<Step>,
}

/// What folding in another history told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// It told something new, and was taken over.
    Newer,
    /// It told nothing new: a repeated or overtaken message.
    Stale,
    /// It contradicts what was already told: two different pasts. Nothing was changed.
    Contradiction,
}

impl History {
    /// A history in which nothing has happened yet: `queued`.
    pub const fn new() -> Self {
        Self { steps: Vec::new() }
    }

    /// The state after the last step.
    pub fn state(&self) -> State {
        self.steps.last().map_or(State::Queued, |step| step.state)
    }

    /// The steps, oldest first.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The number of the last step, counted from 1; 0 when nothing has happened.
    pub fn step(&self) -> u32 {
        u32::try_from(self.steps.len()).unwrap_or(u32::MAX)
    }

    /// When `state` was entered, if it was.
    pub fn at(&self, state: State) -> Option<Timestamp> {
        self.steps.iter().find(|step| step.state == state).map(|step| step.at)
    }

    /// When it ended, if it did.
    pub fn finished_at(&self) -> Option<Timestamp> {
        self.steps.last().filter(|step| step.state.is_terminal()).map(|step| step.at)
    }

    /// Adds a step.
    ///
    /// # Errors
    /// [`IllegalStep`] when the state machine does not allow it; the history is unchanged then.
    pub fn push(&mut self, state: State, at: Timestamp) -> Result<(), IllegalStep> {
        let from = self.state();
        if !from.may_become(state) {
            return Err(IllegalStep { from, to: state });
        }
        self.steps.push(Step { state, at });
        Ok(())
    }

    /// Folds in another account of the same order: the longer one counts if it continues the shorter one.
    pub fn merge(&mut self, other: &Self) -> Merge {
        let shared = self.steps.len().min(other.steps.len());
        if self.steps[..shared] != other.steps[..shared] {
            Merge::Contradiction
        } else if other.steps.len() > self.steps.len() {
            self.steps.clone_from(&other.steps);
            Merge::Newer
        } else {
            Merge::Stale
        }
    }
}

impl TryFrom<Vec<Step>> for History {
    type Error = IllegalStep;
    fn try_from(steps: Vec<Step>) -> Result<Self, IllegalStep> {
        let mut history = Self::new();
        for step in steps {
            history.push(step.state, step.at)?;
        }
        Ok(history)
    }
}

impl From<History> for Vec<Step> {
    fn from(history: History) -> Self {
        history.steps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all_histories(from: State, path: &mut Vec<State>, found: &mut Vec<Vec<State>>) {
        found.push(path.clone());
        for next in State::ALL {
            if from.may_become(next) {
                path.push(next);
                all_histories(next, path, found);
                path.pop();
            }
        }
    }

    #[test]
    fn all_legal_histories_are_these() {
        let mut found = Vec::new();
        all_histories(State::Queued, &mut Vec::new(), &mut found);
        let mut lines: Vec<String> =
            found.iter().map(|path| path.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(" ")).collect();
        lines.sort();
        let expected = [
            "",
            "cancelled",
            "delivered",
            "delivered cancelled",
            "delivered expired",
            "delivered interrupted",
            "delivered rejected",
            "delivered running",
            "delivered running cancelled",
            "delivered running failed",
            "delivered running interrupted",
            "delivered running succeeded",
            "delivered running timed_out",
            "delivered superseded",
            "expired",
            "interrupted",
            "rejected",
            "superseded",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn nothing_follows_a_terminal_state() {
        for from in State::ALL.into_iter().filter(|state| state.is_terminal()) {
            assert!(State::ALL.into_iter().all(|next| !from.may_become(next)), "{from}");
        }
    }

    #[test]
    fn no_history_runs_twice() {
        let mut found = Vec::new();
        all_histories(State::Queued, &mut Vec::new(), &mut found);
        assert!(found.iter().all(|path| path.iter().filter(|state| **state == State::Running).count() <= 1));
    }

    #[test]
    fn a_history_with_an_illegal_step_is_not_read() {
        let text = r#"[{"state":"running","at":"2026-11-22T12:00:00.000Z"}]"#;
        let error = serde_json::from_str::<History>(text).unwrap_err().to_string();
        assert!(error.contains("queued cannot become running"), "{error}");
    }

    fn legal() -> impl Strategy<Value = History> {
        let mut found = Vec::new();
        all_histories(State::Queued, &mut Vec::new(), &mut found);
        (proptest::sample::select(found), 0_i64..1000).prop_map(|(path, start)| {
            let mut history = History::new();
            for (index, state) in path.into_iter().enumerate() {
                history.push(state, Timestamp::from_ms(start + index as i64)).unwrap();
            }
            history
        })
    }

    proptest! {
        #[test]
        fn the_order_in_which_replies_arrive_does_not_matter(
            history in legal(),
            order in proptest::collection::vec(0_usize..5, 0..12),
        ) {
            let told: Vec<History> = (0..=history.steps().len())
                .map(|length| History { steps: history.steps()[..length].to_vec() })
                .collect();
            let mut folded = History::new();
            let mut longest = 0;
            for index in order {
                let index = index.min(told.len() - 1);
                let expected = if index > longest { Merge::Newer } else { Merge::Stale };
                prop_assert_eq!(folded.merge(&told[index]), expected);
                longest = longest.max(index);
            }
            prop_assert_eq!(folded, told[longest].clone());
        }

        #[test]
        fn two_different_ends_are_a_contradiction(one in legal(), other in legal()) {
            let mut folded = one.clone();
            let merge = folded.merge(&other);
            if one.state().is_terminal() && other.state().is_terminal() && one != other {
                prop_assert_eq!(merge, Merge::Contradiction);
                prop_assert_eq!(folded, one);
            }
        }
    }
}
