//! One node's part of a job: its history, and its output put in order. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use message::{History, OrderId, Outcome, OutputTally, PublicKey, State, Timestamp};
use sha2::{Digest, Sha256};

use super::{Gather, OutputStream};
use crate::order::Expected;

/// The most output messages that may wait for an earlier one.
const EARLY_MAX: usize = 16 * 1024;
/// What a stream may have beyond what the order allows before it is no longer read.
const OUTPUT_SLACK_BYTES: u64 = 64 * 1024;

/// How one node's order stands.
#[derive(Debug, Clone)]
pub struct NodeProgress {
    /// Everything that happened.
    pub history: History,
    /// Why, where the state needs a reason.
    pub reason: Option<String>,
    /// How it ended, once it has run.
    pub outcome: Option<Outcome>,
    /// By how many milliseconds the node's clock, which the history goes by, was ahead of the broker's, as far as known.
    pub clock_error_ms: Option<i64>,
    /// Standard output so far, if it is kept.
    pub stdout: Vec<u8>,
    /// Standard error so far, if it is kept.
    pub stderr: Vec<u8>,
    /// What is wrong with the output, if it does not fit what the node signed.
    pub output_broken: Option<String>,
    pub(super) key: PublicKey,
    /// Since when its word counts no more, and what follows for an order that it has not answered: a sentence.
    pub(super) silenced: Option<(Timestamp, String)>,
    pub(super) order: OrderId,
    /// Whether something said in its name was already found to be doubtful, and told.
    pub(super) doubted: bool,
    gather: Gather,
    intake: Intake,
}

/// Output on its way to being complete.
#[derive(Debug, Clone, Default)]
struct Intake {
    /// The number of the next output message to be released.
    next: u32,
    /// Messages that came before their time.
    early: BTreeMap<u32, (OutputStream, Bytes)>,
    /// Bytes that came, released or not.
    bytes: u64,
    stdout: Digested,
    stderr: Digested,
    /// Whether all of it is here and was compared with what the node signed.
    complete: bool,
}

#[derive(Debug, Clone, Default)]
struct Digested {
    bytes: u64,
    sha256: Sha256,
}

impl NodeProgress {
    pub(super) fn new(expected: &Expected, gather: Gather) -> Self {
        Self {
            history: History::new(),
            reason: None,
            outcome: None,
            clock_error_ms: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            output_broken: None,
            key: expected.key.clone(),
            silenced: None,
            order: expected.order,
            doubted: false,
            gather,
            intake: Intake::default(),
        }
    }

    /// The state that it is in.
    pub fn state(&self) -> State {
        self.history.state()
    }

    /// Whether nothing more will come: its state is final and all of its output is here.
    pub fn settled(&self) -> bool {
        self.state().is_terminal()
            && (self.gather == Gather::Ignore || self.outcome.is_none() || self.intake.complete || self.is_broken())
    }

    /// Whether the order is addressed to the node with this key.
    pub(crate) fn is_addressed_to(&self, key: &PublicKey) -> bool {
        self.key == *key
    }

    /// Whether output is kept in this view.
    pub(super) fn keeps_output(&self) -> bool {
        self.gather == Gather::Keep
    }

    fn is_broken(&self) -> bool {
        self.output_broken.is_some()
    }

    /// Takes one output message; returns the pieces that are now in order. `limit` is what the order allows each
    /// stream.
    pub(super) fn take_output(
        &mut self,
        number: u32,
        stream: OutputStream,
        bytes: &Bytes,
        limit: u64,
    ) -> Vec<(OutputStream, Bytes)> {
        let intake = &mut self.intake;
        let seen = number < intake.next || intake.early.contains_key(&number);
        if seen || intake.complete || self.output_broken.is_some() || self.gather == Gather::Ignore {
            return Vec::new();
        }
        intake.bytes = intake.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if intake.bytes > limit.saturating_add(OUTPUT_SLACK_BYTES).saturating_mul(2) {
            self.output_broken = Some(format!("more came than the {limit} bytes a stream that were ordered"));
            return Vec::new();
        }
        if intake.early.len() >= EARLY_MAX {
            self.output_broken = Some(format!("message {} of it is missing", intake.next));
            return Vec::new();
        }
        intake.early.insert(number, (stream, bytes.clone()));
        self.release()
    }

    fn release(&mut self) -> Vec<(OutputStream, Bytes)> {
        let mut released = Vec::new();
        while let Some((stream, bytes)) = self.intake.early.remove(&self.intake.next) {
            self.intake.next += 1;
            let (digested, kept) = match stream {
                OutputStream::Stdout => (&mut self.intake.stdout, &mut self.stdout),
                OutputStream::Stderr => (&mut self.intake.stderr, &mut self.stderr),
            };
            digested.sha256.update(&bytes);
            digested.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            if self.gather == Gather::Keep {
                kept.extend_from_slice(&bytes);
            }
            released.push((stream, bytes));
        }
        released
    }

    /// Once all output is here: compares it with what the node signed. Returns what does not fit, once.
    pub(super) fn check_output(&mut self) -> Option<String> {
        let outcome = self.outcome.as_ref()?;
        if self.gather == Gather::Ignore || self.intake.complete || self.is_broken() {
            return None;
        }
        if self.intake.next < outcome.output_messages {
            return None;
        }
        let too_many = self.intake.next > outcome.output_messages || !self.intake.early.is_empty();
        let fits = |digested: &Digested, tally: &Option<OutputTally>| match tally {
            None => digested.bytes == 0,
            Some(tally) => {
                digested.bytes == tally.bytes && HEXLOWER.encode(&digested.sha256.clone().finalize()) == tally.sha256
            }
        };
        self.output_broken = if too_many {
            Some(format!("more than the {} messages came that the node sent", outcome.output_messages))
        } else if !fits(&self.intake.stdout, &outcome.stdout) {
            Some("standard output is not what the node signed".into())
        } else if !fits(&self.intake.stderr, &outcome.stderr) {
            Some("standard error is not what the node signed".into())
        } else {
            None
        };
        self.intake.complete = true;
        self.intake.early.clear();
        self.output_broken.clone()
    }
}
