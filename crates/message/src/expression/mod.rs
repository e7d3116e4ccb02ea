//! Expressions over nodes: `facts.memory.total > 4e9 && online`. What flows in is text and what is known of a node; what
//! flows out is whether the node is meant, and why.
//!
//! The language is a part of CEL (Common Expression Language): literals, lists, field access, `in`, comparison, arithmetic,
//! `&&`, `||`, `!`, `? :`, `has()`, `size()`, `contains`, `startsWith`, `endsWith`, and `exists` and `all` over lists.
//! Three things are decided here that CEL leaves open or does otherwise, so that no node can make an expression fail:
//! a comparison with something that a node does not have is false; values of different types are different, and none is
//! less than the other; numbers are those of JSON, so `3 / 2` is `1.5`.
//!
//! It must never recurse deeper than [`DEPTH_MAX`] and [`PARTS_MAX`] allow, nor work longer than [`Steps`] allow.

mod judge;
mod parts;
mod read;

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use crate::registry::NodeState;
use crate::selector::Labels;
use crate::target::TargetError;
use parts::Part;

/// The longest text of an expression, in characters.
pub const TEXT_MAX: usize = 2048;
/// So many brackets, signs and the like may stand inside each other.
pub const DEPTH_MAX: usize = 32;
/// Of so many parts (names, values, operators) an expression may consist.
pub const PARTS_MAX: usize = 512;
/// So many steps an expression may take over a whole fleet: seconds, on a slow machine.
const STEPS_MAX: u64 = 30_000_000;

/// An expression that was understood.
#[derive(Debug, Clone)]
pub struct Expression {
    text: String,
    part: Part,
}

/// What is known of a node.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Its name.
    pub name: &'a str,
    /// How it stands.
    pub state: NodeState,
    /// Why it stands so.
    pub reason: Option<&'a str>,
    /// What operators say about it.
    pub labels: &'a Labels,
    /// What it says about itself: an object, or null if it has said nothing.
    pub facts: &'a Value,
    /// Its agent's version.
    pub version: Option<&'a str>,
    /// How long ago it last spoke, in seconds.
    pub age_s: Option<f64>,
    /// How long its agent has been running, in seconds.
    pub uptime_s: Option<f64>,
    /// Its processes, what runs and waits there, and what it has to tell.
    pub counts: Option<Counts>,
}

impl<'a> Known<'a> {
    /// What is known of a record (an object) that a node has reported, for [`Expression::over_records`].
    pub fn of_record(name: &'a str, labels: &'a Labels, record: &'a Value) -> Self {
        let (state, facts) = (NodeState::Unknown, record);
        Self { name, state, reason: None, labels, facts, version: None, age_s: None, uptime_s: None, counts: None }
    }
}

/// Numbers from a life sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Its processes (message handlers).
    pub processes: u32,
    /// Orders that run.
    pub running: u32,
    /// Orders that wait.
    pub waiting: u32,
    /// Replies and events that the broker has not confirmed yet.
    pub outbox: u32,
}

/// How many steps are left for a whole fleet.
#[derive(Debug, Clone, Copy)]
pub struct Steps(u64);

impl Default for Steps {
    fn default() -> Self {
        Self(STEPS_MAX)
    }
}

/// The expression takes too many steps for this fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the expression takes more than {STEPS_MAX} steps over these nodes: make it shorter, or name fewer nodes beside it \
     (a TARGET or --selector is looked at first)"
)]
pub struct TooCostly;

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`TargetError`] echoes the text with a `^` under the character that is wrong.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let part = read::read(text, &parts::Root::ALL)?;
        Ok(Self { text: text.to_owned(), part })
    }

    /// Reads an expression over a record of an event: `record.message.contains("panic")`. Beside `record` it knows `name` and
    /// `labels`, those of the node that reports; see [`Known::of_record`].
    ///
    /// # Errors
    /// As [`Expression::parse`].
    pub fn over_records(text: &str) -> Result<Self, TargetError> {
        let part = read::read(text, &parts::Root::OF_RECORDS)?;
        Ok(Self { text: text.to_owned(), part })
    }

    /// Whether a node is meant.
    ///
    /// # Errors
    /// [`TooCostly`] when no steps are left.
    pub fn holds(&self, known: &Known<'_>, steps: &mut Steps) -> Result<bool, TooCostly> {
        judge::holds(&self.part, known, &mut steps.0)
    }

    /// Which parts make it hold for a node, each with the values that it found there.
    pub fn why(&self, known: &Known<'_>) -> Vec<String> {
        let characters: Vec<char> = self.text.chars().collect();
        judge::why(&self.part, known, &characters)
    }

    /// Whether it asks for facts: they must be read only then.
    pub fn needs_facts(&self) -> bool {
        self.part.any(&|part| matches!(part.what, parts::What::Root(parts::Root::Facts)))
    }

    /// The names of the facts that it asks for (`memory` in `facts.memory.total`): of what a node says no more has to be read.
    /// `None` when it may ask for any.
    pub fn facts_named(&self) -> Option<BTreeSet<&str>> {
        let mut names = BTreeSet::new();
        self.part.facts_named(&mut names).then_some(names)
    }

    /// The same expression with every bracket written.
    pub fn explicit(&self) -> String {
        self.part.to_string()
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Expression {
    type Err = TargetError;
    fn from_str(text: &str) -> Result<Self, TargetError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests;
