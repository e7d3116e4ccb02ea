//! The programs that are held: each runs in a task of its own, and what becomes of it waits here to be told.
//!
//! Requests flow in, messages for the agent flow out; who carries them is not known here. One lock guards all of it, and is never held
//! across an await.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use exec::{Chunk, Stream};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::frame;
use crate::script;
use crate::secrets::Stored;
use crate::store::Store;
use crate::wire::{End, Finished, Id, Program, Report, Tally};

/// The most bytes of one program that are on their way to the agent and have not been taken. More than the agent gathers before it
/// writes them to its journal, so that it always has a reason to take some.
const WINDOW: usize = 512 * 1024;
/// About how much is handed over at once.
const BATCH: usize = 256 * 1024;

/// One program.
struct Held {
    store: Store,
    /// Whether the present agent wants to hear of it.
    attached: bool,
    /// The first piece that the present agent has not been sent.
    sent: u32,
    /// Bytes that it has been sent and has not taken.
    in_window: usize,
    end: Option<Finished>,
    end_sent: bool,
    cancel: CancellationToken,
    /// Nobody wants to know how it ends.
    unwanted: bool,
}

#[derive(Default)]
struct State {
    held: BTreeMap<Id, Held>,
    /// Those that may have something to be sent.
    fresh: BTreeSet<Id>,
    /// Answers that are due, encoded.
    answers: Vec<Vec<u8>>,
    /// All programs are being ended, since the keeper is.
    stopping: bool,
}

/// All programs of a keeper.
pub(crate) struct Holding {
    state: Mutex<State>,
    /// Something may have to be sent, or has ended.
    pub(crate) news: Notify,
    /// Something has ended or was forgotten.
    pub(crate) fewer: Notify,
    memory: Arc<AtomicUsize>,
    dir: PathBuf,
}

impl Holding {
    /// Output that memory should not hold goes to files in `dir`.
    pub(crate) fn new(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            news: Notify::new(),
            fewer: Notify::new(),
            memory: Arc::default(),
            dir,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held, for an agent that has just come; it is attached to none of it.
    pub(crate) fn begin(&self) -> Vec<Id> {
        let mut state = self.lock();
        state.answers.clear();
        state.fresh.clear();
        state.held.values_mut().for_each(|held| held.attached = false);
        state.held.iter().filter(|(_, held)| !held.unwanted).map(|(id, _)| *id).collect()
    }

    /// How many are held.
    pub(crate) fn count(&self) -> usize {
        self.lock().held.len()
    }

    /// How many have not ended.
    pub(crate) fn running(&self) -> usize {
        self.lock().held.values().filter(|held| held.end.is_none()).count()
    }

    /// Runs a program, unless its id is held already, and attaches the present agent to it.
    pub(crate) fn start(self: &Arc<Self>, id: Id, program: Program) {
        let cancel = CancellationToken::new();
        {
            let mut state = self.lock();
            let stopping = state.stopping;
            if state.held.contains_key(&id) {
                drop(state);
                return self.attach(id);
            }
            let store = Store::new(Arc::clone(&self.memory));
            let (attached, end, cancel) = (true, None, cancel.clone());
            let held = Held { store, attached, sent: 0, in_window: 0, end, end_sent: false, cancel, unwanted: false };
            if stopping {
                held.cancel.cancel();
            }
            state.held.insert(id, held);
        }
        let holding = Arc::clone(self);
        tokio::spawn(async move {
            let finished = holding.run(id, program, cancel).await;
            holding.ended(id, finished);
        });
    }

    async fn run(&self, id: Id, program: Program, cancel: CancellationToken) -> Finished {
        let mut argv = program.argv;
        let mut _file = None; // lives as long as the script runs
        if let Some(asked) = program.script {
            match script::store(&asked.text, program.user.as_deref()) {
                Ok((file, path)) => {
                    _file = Some(file);
                    argv.push(path);
                    argv.extend(asked.args.into_iter().map(Into::into));
                }
                Err(reason) => return not_started(reason),
            }
        }
        let mut env = program.env;
        let mut _secrets = None; // as long as the program runs, too
        if !program.secrets.is_empty() {
            match Stored::new(&program.secrets, program.user.as_deref()) {
                Ok(stored) => {
                    env.push(stored.variable());
                    _secrets = Some(stored);
                }
                Err(reason) => return not_started(reason),
            }
        }
        drop(program.secrets);
        let answer_max = program.answer_max;
        let program = exec::Program {
            argv,
            env,
            cwd: program.cwd,
            user: program.user,
            stdin: program.stdin,
            timeout: program.timeout,
            max_output: program.max_output,
            ..exec::Program::default()
        };
        let (chunks, mut printed) = mpsc::channel(1);
        let mut pieces = Pieces { number: 0, trouble: None, answer: (answer_max > 0).then(Vec::new), answer_max };
        let running = exec::run(program, chunks, cancel.clone());
        tokio::pin!(running);
        let finished = loop {
            tokio::select! {
                biased;
                Some(chunk) = printed.recv() => self.keep(id, chunk, &mut pieces, &mut printed),
                finished = &mut running => break finished,
            }
        };
        while let Some(chunk) = printed.recv().await {
            self.keep(id, chunk, &mut pieces, &mut printed);
        }
        let end = match finished.end {
            exec::End::Exited(code) => End::Exited { code },
            exec::End::Signalled(signal) => End::Signalled { signal },
            exec::End::TimedOut => End::TimedOut,
            exec::End::Cancelled if self.lock().stopping => End::Stopped,
            exec::End::Cancelled => End::Cancelled,
            exec::End::NotStarted(reason) => End::NotStarted { reason },
        };
        Finished {
            end,
            stdout: Tally::from(&finished.stdout),
            stderr: Tally::from(&finished.stderr),
            pieces: pieces.number,
            trouble: pieces.trouble,
            answer: pieces.answer.map(Bytes::from),
        }
    }

    /// Keeps a piece of output. When there is no room for it, no more is received: the program goes on, and what it prints
    /// is only counted.
    fn keep(&self, id: Id, chunk: Chunk, pieces: &mut Pieces, printed: &mut mpsc::Receiver<Chunk>) {
        if chunk.stream == Stream::Stdout {
            pieces.add_to_answer(&chunk.bytes);
        }
        let mut state = self.lock();
        let Some(held) = state.held.get_mut(&id) else { return };
        pieces.number += 1;
        if let Err(error) = held.store.push(chunk.stream, chunk.bytes, &self.dir)
            && pieces.trouble.is_none()
        {
            tracing::warn!(%id, %error, "there is no room to keep what a program prints; the rest is only counted");
            pieces.trouble = Some(format!(
                "its output is cut short, since what was not sent yet could not be kept on disk ({error}); it ran on all the same"
            ));
            printed.close();
        }
        state.fresh.insert(id);
        drop(state);
        self.news.notify_one();
    }

    fn ended(&self, id: Id, finished: Finished) {
        let mut state = self.lock();
        if let Some(held) = state.held.get_mut(&id) {
            held.end = Some(finished);
            if held.unwanted {
                state.held.remove(&id);
            } else {
                state.fresh.insert(id);
            }
        }
        drop(state);
        self.news.notify_one();
        self.fewer.notify_one();
    }

    /// Tells the present agent of one, from the first piece that was not taken.
    pub(crate) fn attach(&self, id: Id) {
        let mut state = self.lock();
        match state.held.get_mut(&id) {
            Some(held) => {
                (held.attached, held.sent, held.in_window, held.end_sent) = (true, held.store.first(), 0, false);
                state.fresh.insert(id);
            }
            None => state.answers.extend(frame::encode(&Report::NotHeld { id }, &[])),
        }
        drop(state);
        self.news.notify_one();
    }

    /// The pieces below this number are safe.
    pub(crate) fn taken(&self, id: Id, below: u32) {
        let mut state = self.lock();
        let Some(held) = state.held.get_mut(&id) else { return };
        let sent = (held.store.first()..below.min(held.sent)).filter_map(|number| held.store.length(number));
        held.in_window = held.in_window.saturating_sub(sent.sum());
        held.store.taken(below.min(held.sent));
        state.fresh.insert(id);
        drop(state);
        self.news.notify_one();
    }

    /// Has a tree ended.
    pub(crate) fn end(&self, id: Id) {
        if let Some(held) = self.lock().held.get(&id) {
            held.cancel.cancel();
        }
    }

    /// Nobody wants to know of it any more.
    pub(crate) fn forget(&self, id: Id) {
        let mut state = self.lock();
        if let Some(held) = state.held.get_mut(&id) {
            (held.unwanted, held.attached) = (true, false);
            held.store.taken(u32::MAX);
            if held.end.is_some() {
                state.held.remove(&id);
            }
        }
        drop(state);
        self.fewer.notify_one();
    }

    /// Has all of them ended, those that are still to come too.
    pub(crate) fn end_all(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.held.values().for_each(|held| held.cancel.cancel());
    }

    /// Whether all of them are being ended.
    pub(crate) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Whether all has been told that the present agent wants to hear.
    pub(crate) fn all_told(&self) -> bool {
        let state = self.lock();
        state.held.values().all(|held| held.end.is_some() && (!held.attached || held.end_sent))
    }

    /// What is to be sent now; empty if nothing is.
    pub(crate) fn to_send(&self) -> Vec<u8> {
        let mut state = self.lock();
        let mut batch = std::mem::take(&mut state.answers).concat();
        while batch.len() < BATCH
            && let Some(id) = state.fresh.pop_first()
        {
            if let Some(held) = state.held.get_mut(&id).filter(|held| held.attached)
                && !held.write(id, &mut batch)
            {
                state.fresh.insert(id);
            }
        }
        batch
    }
}

impl Held {
    /// Adds what is to be sent; `false` if there is more than the batch should take.
    fn write(&mut self, id: Id, batch: &mut Vec<u8>) -> bool {
        while let Some(length) = self.store.length(self.sent) {
            if batch.len() >= BATCH {
                return false;
            }
            if self.in_window > 0 && self.in_window + length > WINDOW {
                return true; // what is taken makes it fresh again
            }
            let number = self.sent;
            let (stream, bytes) = match self.store.get(number) {
                Ok(Some(piece)) => piece,
                Ok(None) => return true,
                Err(error) => {
                    self.lost(&error);
                    (Stream::Stdout, Bytes::new())
                }
            };
            let piece = Report::Output { id, number, is_stderr: stream == Stream::Stderr };
            append(batch, frame::encode(&piece, &bytes));
            self.in_window += length;
            self.sent += 1;
        }
        if let Some(finished) = self.end.as_ref().filter(|_| !self.end_sent) {
            let answer = finished.answer.clone();
            let ended = Report::Ended { id, answers: answer.is_some(), finished: finished.clone() };
            append(batch, frame::encode(&ended, &answer.unwrap_or_default()));
            self.end_sent = true;
        }
        true
    }

    /// A piece cannot be read back: an empty one takes its number, and the end tells.
    fn lost(&mut self, error: &io::Error) {
        tracing::error!(%error, "what a program printed cannot be read back");
        if let Some(finished) = &mut self.end {
            finished.trouble.get_or_insert_with(|| format!("a part of its output could not be read back: {error}"));
        }
    }
}

fn append(batch: &mut Vec<u8>, frame: io::Result<Vec<u8>>) {
    match frame {
        Ok(frame) => batch.extend_from_slice(&frame),
        Err(error) => tracing::error!(%error, "a message to the agent cannot be written"),
    }
}

/// What was received of one program's output.
struct Pieces {
    number: u32,
    trouble: Option<String>,
    /// All of stdout, as long as it is short enough.
    answer: Option<Vec<u8>>,
    answer_max: usize,
}

impl Pieces {
    fn add_to_answer(&mut self, bytes: &[u8]) {
        if let Some(answer) = &mut self.answer {
            answer.extend_from_slice(bytes);
        }
        if self.answer.as_ref().is_some_and(|answer| answer.len() > self.answer_max) {
            self.answer = None;
        }
    }
}

fn not_started(reason: String) -> Finished {
    let nothing = Tally::from(&exec::Tally::default());
    Finished {
        end: End::NotStarted { reason },
        stdout: nothing.clone(),
        stderr: nothing,
        pieces: 0,
        trouble: None,
        answer: None,
    }
}
