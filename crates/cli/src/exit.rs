//! Exit codes, and how errors become one: the table in the README, and nothing else.

use std::collections::BTreeMap;
use std::process::ExitCode;

use message::State;

use crate::out::{Closed, Out};

/// How a verb ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what it should; every target succeeded.
    Success = 0,
    /// The verb itself failed.
    Error = 1,
    /// Wrong usage.
    Usage = 2,
    /// At least one target ended in a state other than `succeeded`.
    TargetFailed = 3,
    /// None failed, but at least one has not ended yet.
    Unfinished = 4,
    /// The target matches no node.
    NoTarget = 5,
}

impl Exit {
    /// The code of a job that stands like this.
    pub(crate) fn of_counts(counts: &BTreeMap<State, u32>) -> Self {
        let any = |wanted: fn(State) -> bool| counts.iter().any(|(state, count)| *count > 0 && wanted(*state));
        if any(|state| state.is_terminal() && state != State::Succeeded) {
            Self::TargetFailed
        } else if any(|state| !state.is_terminal()) {
            Self::Unfinished
        } else {
            Self::Success
        }
    }
}

/// The command line says something that makes no sense, or not enough.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(String);

impl Usage {
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

/// The code of a verb that ended with an error.
pub(crate) fn code_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<fleet::FleetError>() {
            return match error.exit_code() {
                2 => Exit::Usage,
                5 => Exit::NoTarget,
                _ => Exit::Error,
            };
        }
        let usage = cause.is::<Usage>()
            || cause.is::<message::TargetError>()
            || cause.is::<message::NameError>()
            || cause.is::<message::units::UnitError>();
        if usage {
            return Exit::Usage;
        }
    }
    Exit::Error
}

/// An error and its causes in one line; a cause that the sentence before already tells is not told again.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

/// Prints what is left to print, and gives the code to the system.
pub(crate) fn conclude(ended: anyhow::Result<Exit>, mut out: Out) -> ExitCode {
    let ended = ended.and_then(|exit| match out.flush() {
        Err(error) if !error.is::<Closed>() => Err(error),
        _ => Ok(exit),
    });
    let exit = match ended {
        Ok(exit) => exit,
        // Who read our output wants no more of it, like `head`: no failure of ours, and nobody is there to tell.
        Err(error) if error.is::<Closed>() => Exit::Success,
        Err(error) => {
            let _ = out.flush();
            out.error(&sentence(&error));
            code_of(&error)
        }
    };
    ExitCode::from(exit as u8)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn counts(states: &[(State, u32)]) -> BTreeMap<State, u32> {
        states.iter().copied().collect()
    }

    #[test]
    fn a_job_ends_with_the_code_that_the_table_says() {
        assert_eq!(Exit::of_counts(&counts(&[(State::Succeeded, 3)])), Exit::Success);
        assert_eq!(Exit::of_counts(&counts(&[(State::Succeeded, 2), (State::Queued, 1)])), Exit::Unfinished);
        assert_eq!(Exit::of_counts(&counts(&[(State::Delivered, 1)])), Exit::Unfinished);
        assert_eq!(Exit::of_counts(&counts(&[(State::Running, 1)])), Exit::Unfinished);
        assert_eq!(Exit::of_counts(&counts(&[(State::Succeeded, 1), (State::Failed, 0)])), Exit::Success);
        for bad in State::ALL.into_iter().filter(|state| state.is_terminal() && *state != State::Succeeded) {
            let mixed = counts(&[(State::Succeeded, 2), (State::Queued, 1), (bad, 1)]);
            assert_eq!(Exit::of_counts(&mixed), Exit::TargetFailed, "{bad}");
        }
    }

    #[test]
    fn errors_have_the_code_of_their_kind() {
        let no_match = fleet::FleetError::NoMatch { message: "no node is named ship9".into() };
        assert_eq!(code_of(&anyhow::Error::from(no_match).context("resolving")), Exit::NoTarget);
        assert_eq!(code_of(&Usage::new("no").into()), Exit::Usage);
        let target = message::Pattern::parse_list("a b").unwrap_err();
        assert_eq!(code_of(&target.into()), Exit::Usage);
        assert_eq!(code_of(&anyhow::anyhow!("the disk is full")), Exit::Error);
    }

    #[test]
    fn causes_are_told_once() {
        let io = || std::io::Error::other("disk full");
        let error = anyhow::Error::from(io()).context("cannot write x: disk full");
        assert_eq!(sentence(&error), "cannot write x: disk full");
        let error = Err::<(), _>(io()).context("cannot write x").unwrap_err();
        assert_eq!(sentence(&error), "cannot write x: disk full");
    }
}
