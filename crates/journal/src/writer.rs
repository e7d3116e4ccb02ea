//! The handle and the one thread that writes: it gathers what waits and commits it together.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use message::{InstanceId, JobId, OrderId, Timestamp, Token};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::disk::{Directory, FILE};
use crate::entry::{Entry, EventRow, Lane, Newest, OutputRow, Tombstone};
use crate::error::JournalError;
use crate::ledger::{Ledger, Reader};

/// The most requests committed together.
pub(crate) const GROUP_MAX: usize = 256;
/// The most requests that wait; beyond it callers wait.
const QUEUE_MAX: usize = 1024;
/// How long a mark that may be lost (a confirmation) waits for a commit to travel with.
const LAZY_WAIT: Duration = Duration::from_secs(2);

/// One change to the journal.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// An order and everything known of it, in place of what was known before.
    Entry(Box<Entry>),
    /// The last sequence taken on a subject.
    Head {
        /// The subject.
        subject: String,
        /// The sequence.
        sequence: u64,
    },
    /// Everything up to here has been taken, on all subjects.
    Floor(u64),
    /// The broker's store is another one: its sequences begin anew.
    Epoch(String),
    /// The latest signed time of creation seen.
    Watermark(Timestamp),
    /// The sealed list of operators.
    Trust(String),
    /// The broker has confirmed the reply with this step.
    Reported {
        /// The order.
        id: OrderId,
        /// The step.
        step: u32,
    },
    /// A job was cancelled whose order has not arrived.
    Tombstone(Tombstone),
    /// The newest order of a key.
    Newest(Newest),
    /// A piece of output to be sent later.
    Output(OutputRow),
    /// The broker has confirmed a piece of output.
    OutputSent {
        /// The order.
        id: OrderId,
        /// The piece.
        number: u32,
    },
    /// Events to be sent, and how far their source has been read.
    Events {
        /// The source's name.
        source: String,
        /// How far it has been read with these events, in its own words.
        position: Option<String>,
        /// The batches.
        rows: Vec<EventRow>,
    },
    /// The broker has confirmed a batch of events.
    EventSent {
        /// Its row.
        row: u64,
    },
    /// Something for the audit log, in the same write as what it tells of.
    Audit {
        /// Its number, larger than all before.
        row: u64,
        /// The act.
        act: String,
    },
    /// The broker has confirmed an entry of the audit log that holds all acts up to this row.
    Audited {
        /// The last of its rows.
        row: u64,
        /// Where the chain ends now.
        tip: String,
    },
}

/// Where the reading of orders goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Everything up to here has been taken, on all subjects.
    pub floor: u64,
    /// The last sequence taken on each subject, where above the floor.
    pub heads: Vec<(String, u64)>,
    /// The store that these sequences belong to.
    pub epoch: Option<String>,
    /// The latest signed time of creation seen; never falls.
    pub watermark: Timestamp,
}

/// What was found at start.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// This journal's own id.
    pub instance: InstanceId,
    /// Where reading goes on.
    pub cursor: Cursor,
    /// Orders that still need something done, in the order of the broker's stream.
    pub unsettled: Vec<Entry>,
    /// The sealed list of operators, if one was kept.
    pub trust: Option<String>,
    /// Where this journal's chain in the audit log ends, as it was written.
    pub audit_tip: Option<String>,
    /// The last row of the audit log that was given out.
    pub audit_row: u64,
    /// The last number of a row of events that was given out.
    pub event_row: u64,
}

pub(crate) enum Request {
    Commit { writes: Vec<Write>, done: oneshot::Sender<Result<(), JournalError>> },
    Lazy(Write),
    Prune { watermark: Timestamp, done: oneshot::Sender<Result<usize, JournalError>> },
}

/// The journal of one agent; cheap to clone. The writer ends when the last handle is dropped.
#[derive(Clone)]
pub struct Journal {
    /// Unbounded by itself; `room` bounds it.
    requests: mpsc::Sender<(Request, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    reader: Arc<Reader>,
    #[cfg(feature = "simulate")]
    simulated: bool,
}

impl Journal {
    /// Opens the journal in `dir`, making both if they are not there.
    ///
    /// # Errors
    /// [`JournalError::InUse`] when another process holds it, [`JournalError::Open`], [`JournalError::Full`] or
    /// [`JournalError::Corrupt`].
    pub fn open(dir: &Path) -> Result<(Self, Opened), JournalError> {
        let wrong = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => JournalError::Full,
            _ => JournalError::Open { path: dir.join(FILE), reason: error.to_string() },
        };
        let disk = Directory::new(dir).map_err(wrong)?;
        let (ledger, opened) = Ledger::open(Box::new(disk))?;
        let reader = ledger.reader();
        let (requests, queue) = mpsc::channel();
        std::thread::Builder::new().name("journal".into()).spawn(move || write_loop(ledger, &queue)).map_err(wrong)?;
        Ok((Self::new(requests, reader), opened))
    }

    fn new(requests: mpsc::Sender<(Request, OwnedSemaphorePermit)>, reader: Arc<Reader>) -> Self {
        Self {
            requests,
            room: Arc::new(Semaphore::new(QUEUE_MAX)),
            reader,
            #[cfg(feature = "simulate")]
            simulated: false,
        }
    }

    /// Opens the journal on a disk in memory; nothing is written but in the rounds of the writer that is returned.
    ///
    /// # Errors
    /// As [`Journal::open`].
    #[cfg(feature = "simulate")]
    pub fn simulated(disk: &crate::simulate::SimDisk) -> Result<(Self, Opened, crate::simulate::Writer), JournalError> {
        let (ledger, opened) = Ledger::open(Box::new(disk.clone()))?;
        let reader = ledger.reader();
        let (requests, queue) = mpsc::channel();
        let journal = Self { simulated: true, ..Self::new(requests, reader) };
        Ok((journal, opened, crate::simulate::Writer::new(ledger, queue)))
    }

    /// Whether as much waits to be written as may.
    pub fn is_at_limit(&self) -> bool {
        self.room.available_permits() == 0
    }

    /// Writes all of `writes` or none; returns when they are on disk.
    ///
    /// # Errors
    /// [`JournalError`]; nothing was written then.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<(), JournalError> {
        let (done, result) = oneshot::channel();
        self.send(Request::Commit { writes, done }).await?;
        result.await.map_err(|_| JournalError::Closed)?
    }

    /// Writes `write` with one of the next commits. For what may be lost: a confirmation that is lost costs a
    /// repetition, which readers recognize.
    pub async fn commit_lazily(&self, write: Write) {
        // A closed journal means that the agent ends.
        let _ = self.send(Request::Lazy(write)).await;
    }

    async fn send(&self, request: Request) -> Result<(), JournalError> {
        let permit = Arc::clone(&self.room).acquire_owned().await.map_err(|_| JournalError::Closed)?;
        self.requests.send((request, permit)).map_err(|_| JournalError::Closed)
    }

    /// Forgets orders that can no longer be replayed; returns how many.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn prune(&self, watermark: Timestamp) -> Result<usize, JournalError> {
        let (done, result) = oneshot::channel();
        self.send(Request::Prune { watermark, done }).await?;
        result.await.map_err(|_| JournalError::Closed)?
    }

    /// What is known of an order.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read.
    pub fn find(&self, id: &OrderId) -> Result<Option<Entry>, JournalError> {
        self.reader.find(id)
    }

    /// The order of a job, if it has arrived. Reads all that is remembered: not for what happens often, and not on the
    /// thread that serves everything else.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read.
    pub async fn find_job(&self, job: &JobId) -> Result<Option<Entry>, JournalError> {
        #[cfg(feature = "simulate")]
        if self.simulated {
            return self.reader.find_job(job);
        }
        let (reader, wanted) = (Arc::clone(&self.reader), job.clone());
        tokio::task::spawn_blocking(move || reader.find_job(&wanted)).await.map_err(|_| JournalError::Closed)?
    }

    /// Whether a job was cancelled before its order arrived.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read.
    pub fn tombstone(&self, job: &JobId) -> Result<Option<Tombstone>, JournalError> {
        self.reader.tombstone(job)
    }

    /// The newest order that was taken under a key.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read.
    pub fn newest(&self, key: &Token) -> Result<Option<Newest>, JournalError> {
        self.reader.newest(key)
    }

    /// Orders that still need something done, in the order of the broker's stream.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read.
    pub fn unsettled(&self) -> Result<Vec<Entry>, JournalError> {
        self.reader.unsettled()
    }

    /// The output of an order that the broker has not confirmed.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read.
    pub fn output(&self, id: &OrderId) -> Result<Vec<OutputRow>, JournalError> {
        self.reader.output(id)
    }

    /// At most `limit` event batches of a lane behind row `after` that the broker has not confirmed.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read.
    pub fn events(&self, lane: Lane, after: u64, limit: usize) -> Result<Vec<EventRow>, JournalError> {
        self.reader.events(lane, after, limit)
    }

    /// How many event batches of a lane the broker has not confirmed.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read.
    pub fn event_count(&self, lane: Lane) -> Result<u64, JournalError> {
        self.reader.event_count(lane)
    }

    /// At most `limit` acts for the audit log that the broker has not confirmed, with their rows.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read.
    pub fn audit(&self, limit: usize) -> Result<Vec<(u64, String)>, JournalError> {
        self.reader.audit(limit)
    }

    /// How far a source of events has been read.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read.
    pub fn source(&self, name: &str) -> Result<Option<String>, JournalError> {
        self.reader.source(name)
    }
}

fn write_loop(mut ledger: Ledger, queue: &mpsc::Receiver<(Request, OwnedSemaphorePermit)>) {
    let mut lazy: Vec<Write> = Vec::new();
    let mut lazy_since = Instant::now();
    loop {
        let first = if lazy.is_empty() {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(LAZY_WAIT.saturating_sub(lazy_since.elapsed()))
        };
        let closed = matches!(first, Err(RecvTimeoutError::Disconnected));
        let was_empty = lazy.is_empty();
        let gathered = first.into_iter().chain(queue.try_iter()).take(GROUP_MAX);
        round(&mut ledger, gathered, &mut lazy, || {
            if was_empty {
                lazy_since = Instant::now();
            }
            closed || lazy_since.elapsed() >= LAZY_WAIT
        });
        if closed {
            return;
        }
    }
}

/// One round of the writer: commits together what was gathered, with the marks in `lazy`, which are reason enough for a
/// commit of their own when they are due.
pub(crate) fn round(
    ledger: &mut Ledger,
    gathered: impl Iterator<Item = (Request, OwnedSemaphorePermit)>,
    lazy: &mut Vec<Write>,
    lazy_is_due: impl FnOnce() -> bool,
) {
    let mut commits = Vec::new();
    let mut prunes = Vec::new();
    for (request, _permit) in gathered {
        match request {
            Request::Commit { writes, done } => commits.push((writes, done)),
            Request::Prune { watermark, done } => prunes.push((watermark, done)),
            Request::Lazy(write) => lazy.push(write),
        }
    }
    let due = lazy_is_due() || lazy.len() >= GROUP_MAX;
    if !commits.is_empty() || (due && !lazy.is_empty()) {
        let (writes, waiting): (Vec<_>, Vec<_>) = commits.into_iter().unzip();
        let marks = std::mem::take(lazy);
        let result = ledger.commit(marks.into_iter().chain(writes.into_iter().flatten()).collect());
        for done in waiting {
            // Whoever stopped waiting does not need the answer.
            let _ = done.send(result.clone());
        }
    }
    for (watermark, done) in prunes {
        let _ = done.send(ledger.prune(watermark));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn act(row: u64) -> Vec<Write> {
        vec![Write::Audit { row, act: "{}".into() }]
    }

    #[tokio::test]
    async fn a_queue_that_is_full_says_so_and_what_waits_is_written_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(Box::new(Directory::new(dir.path()).unwrap())).unwrap();
        let reader = ledger.reader();
        let (requests, queue) = mpsc::channel();
        // A disk that stands still: nobody writes what is asked for.
        let journal = Journal::new(requests, reader);
        let all = u64::try_from(QUEUE_MAX).unwrap() + 10;
        assert!(!journal.is_at_limit());
        let mut commits = tokio::task::JoinSet::new();
        for row in 1..=all {
            let journal = journal.clone();
            commits.spawn(async move { journal.commit(act(row)).await });
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while !journal.is_at_limit() {
            assert!(Instant::now() < deadline, "it does not say that it is full");
            tokio::task::yield_now().await;
        }
        // Who comes now waits: memory is bounded, and nothing is refused or lost.
        let late = tokio::time::timeout(Duration::from_millis(50), journal.commit(act(all + 1))).await;
        assert!(late.is_err(), "{late:?}");
        assert_eq!(journal.audit(10).unwrap(), []);

        let writer = std::thread::spawn(move || write_loop(ledger, &queue));
        while let Some(written) = commits.join_next().await {
            written.unwrap().unwrap();
        }
        assert!(!journal.is_at_limit(), "there is room again");
        let mut rows: Vec<u64> = journal.audit(QUEUE_MAX * 2).unwrap().into_iter().map(|(row, _)| row).collect();
        rows.sort_unstable();
        assert_eq!(rows, (1..=all).collect::<Vec<_>>(), "each once; who stopped waiting has written nothing");
        drop(journal);
        writer.join().unwrap();
    }
}
