//! For simulations alone (feature `simulate`): a keeper without a process, whose programs begin, print and end when a
//! test says so. Never in a shipped program: nothing but development depends on the feature.
//!
//! It keeps the promises of the real one: a second start of an id that is held starts nothing; what an agent had said
//! and nobody has read is dropped before its successor is told what is held; pieces keep their numbers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::client::Link;
use crate::wire::{End, Finished, Id, Report, Request, Tally};

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread simulates: then no process is looked for that a lost keeper might have left.
pub fn set_on(on: bool) {
    ON.set(on);
}

pub(crate) fn is_on() -> bool {
    ON.get()
}

/// What an agent wants of a keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// A program has begun, and may take this long.
    Begun(Id, Duration),
    /// A program is to end.
    End(Id),
    /// What was held of a program is gone: how it ended, only the agent may know.
    Gone(Id),
}

/// The keeper of one state directory; there or not.
#[derive(Clone, Default)]
pub struct Keeper(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    held: BTreeMap<Id, Held>,
    line: Option<(Arc<Link>, UnboundedReceiver<Vec<u8>>)>,
}

#[derive(Default)]
struct Held {
    pieces: Vec<(bool, Bytes)>,
    taken: usize,
    sent: usize,
    attached: bool,
    end: Option<Finished>,
    unwanted: bool,
}

impl Held {
    fn tell(&mut self, id: Id, link: &Link) {
        if !self.attached {
            return;
        }
        for (number, (is_stderr, bytes)) in (0_u32..).zip(&self.pieces).skip(self.sent) {
            link.hear(Report::Output { id, number, is_stderr: *is_stderr }, bytes.clone());
        }
        self.sent = self.pieces.len();
        if let Some(finished) = &self.end {
            link.hear(Report::Ended { id, answers: false, finished: finished.clone() }, Bytes::new());
            self.attached = false;
        }
    }

    fn tally(&self, is_stderr: bool) -> Tally {
        let printed: Vec<u8> =
            self.pieces.iter().filter(|(own, _)| *own == is_stderr).flat_map(|(_, bytes)| bytes.to_vec()).collect();
        let bytes = printed.len() as u64;
        Tally { bytes, total_bytes: bytes, sha256: HEXLOWER.encode(&Sha256::digest(&printed)) }
    }
}

impl Keeper {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent comes: to one that holds something, or to a new one (`begin`).
    pub(crate) fn connect(&self, begin: bool) -> Option<Arc<Link>> {
        let mut state = self.state();
        if state.held.is_empty() && !begin {
            return None;
        }
        let held = state.held.iter().filter(|(_, held)| !held.unwanted).map(|(id, _)| *id).collect();
        let (link, requests) = Link::new(held, true);
        for held in state.held.values_mut() {
            held.attached = false;
        }
        state.line = Some((Arc::clone(&link), requests));
        Some(link)
    }

    /// Reads at most `limit` of what the agent has said, and acts on it.
    pub fn turn(&self, limit: usize) -> Vec<Wish> {
        let mut state = self.state();
        let State { held, line } = &mut *state;
        let Some((link, requests)) = line else { return Vec::new() };
        let mut wishes = Vec::new();
        for _ in 0..limit {
            let Ok(frame) = requests.try_recv() else { break };
            match request(&frame) {
                Some(Request::Start(start)) => {
                    let id = start.id;
                    if !held.contains_key(&id) {
                        wishes.push(Wish::Begun(id, start.program(Bytes::new()).timeout));
                    }
                    attach(held, id, link);
                }
                Some(Request::Attach { id }) if held.contains_key(&id) => attach(held, id, link),
                Some(Request::Attach { id }) => link.hear(Report::NotHeld { id }, Bytes::new()),
                Some(Request::Taken { id, below }) => {
                    if let Some(held) = held.get_mut(&id) {
                        held.taken = held.taken.max((below as usize).min(held.sent));
                    }
                }
                Some(Request::End { id }) => wishes.extend(held.contains_key(&id).then_some(Wish::End(id))),
                Some(Request::Forget { id }) => {
                    if let Some(own) = held.get_mut(&id) {
                        own.unwanted = true;
                        if own.end.is_some() {
                            held.remove(&id);
                        }
                    }
                }
                Some(Request::Quit { all }) => {
                    if all {
                        wishes.extend(std::mem::take(held).into_keys().map(Wish::Gone));
                    }
                    if held.is_empty() {
                        link.lose();
                    }
                }
                Some(Request::Hello { .. } | Request::Unknown) | None => {}
            }
        }
        wishes
    }

    /// The agent is gone, and what it had said last is not read any more.
    pub fn cut(&self) {
        self.state().line = None;
    }

    /// The programs that have not ended.
    pub fn running(&self) -> Vec<Id> {
        self.state().held.iter().filter(|(_, held)| held.end.is_none()).map(|(id, _)| *id).collect()
    }

    /// A program prints something.
    pub fn print(&self, id: Id, is_stderr: bool, bytes: Bytes) {
        let mut state = self.state();
        let State { held, line } = &mut *state;
        let Some(own) = held.get_mut(&id).filter(|own| own.end.is_none()) else { return };
        own.pieces.push((is_stderr, bytes));
        if let Some((link, _)) = line {
            own.tell(id, link);
        }
    }

    /// A program ends.
    pub fn end(&self, id: Id, end: End) {
        let mut state = self.state();
        let State { held, line } = &mut *state;
        let Some(own) = held.get_mut(&id).filter(|own| own.end.is_none()) else { return };
        let pieces = u32::try_from(own.pieces.len()).unwrap_or(u32::MAX);
        let (stdout, stderr) = (own.tally(false), own.tally(true));
        own.end = Some(Finished { end, stdout, stderr, pieces, trouble: None, answer: None });
        if own.unwanted {
            held.remove(&id);
        } else if let Some((link, _)) = line {
            own.tell(id, link);
        }
    }

    /// The keeper is killed, and all its programs with it. Returns what it held: how these ended, nobody knows any more.
    pub fn die(&self) -> Vec<Id> {
        let mut state = self.state();
        let held = std::mem::take(&mut state.held).into_keys().collect();
        if let Some((link, _)) = state.line.take() {
            link.lose();
        }
        held
    }
}

/// Tells of one from the first piece that was not taken; begins it if it is new.
fn attach(held: &mut BTreeMap<Id, Held>, id: Id, link: &Link) {
    let own = held.entry(id).or_default();
    own.attached = true;
    own.sent = own.taken;
    own.tell(id, link);
}

fn request(frame: &[u8]) -> Option<Request> {
    let length = u32::from_be_bytes(frame.get(..4)?.try_into().ok()?) as usize;
    serde_json::from_slice(frame.get(8..8 + length)?).ok()
}
