//! From records to batches in the journal: numbered, compressed, and on disk together with how far their source was read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bus::clock;
use journal::{EventRow, Journal, JournalError, Lane, Write};
use message::event::{EventHead, pack};
use message::subject::Kind;
use message::{InstanceId, NodeName, Subject, Timestamp, Token, WIRE_VERSION};
use tokio::sync::{Mutex, Notify};

/// The most bytes of encoded records in one batch. Also what does not compress has to fit the broker's largest message.
pub(super) const BATCH_BYTES_MAX: usize = 512 * 1024;
/// The most batches of a lane that wait in the journal; beyond it its sources are not read on.
const BATCHES_MAX: u64 = 1024;

/// To whom events of a source are told, as what, and how soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) to: NodeName,
    pub(crate) method: Token,
    pub(crate) domain: Token,
    pub(crate) lane: Lane,
}

/// Encoded records, each ended by a line end, in pieces that make a batch each.
#[derive(Debug)]
pub(crate) struct Records {
    batches: Vec<(Vec<u8>, u32)>,
    /// With so many bytes a piece takes no further record.
    enough: usize,
}

impl Records {
    /// Adds one, which `write` appends to what it is given.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.batches.last().is_none_or(|(bytes, _)| bytes.len() >= self.enough) {
            self.batches.push((Vec::new(), 0));
        }
        if let Some((bytes, count)) = self.batches.last_mut() {
            write(bytes);
            *count += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.batches.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// How many bytes there are.
    pub(crate) fn bytes(&self) -> usize {
        self.batches.iter().map(|(bytes, _)| bytes.len()).sum()
    }
}

/// Of what there is one for each lane, in the order of [`Lane::ALL`], that of this one.
const fn of_lane<T>([urgent, normal, low]: &[T; 3], lane: Lane) -> &T {
    match lane {
        Lane::Urgent => urgent,
        Lane::Normal => normal,
        Lane::Low => low,
    }
}

/// The way of all sources into the journal.
pub(crate) struct Keep {
    journal: Journal,
    node: NodeName,
    /// Numbers are those of this run, and of one lane: a journal that was set back would give some of them again, and one lane
    /// overtakes the other.
    runs: [InstanceId; 3],
    /// Of the last row. Held while it is written: whoever publishes must never find a number before a smaller one.
    last: Mutex<u64>,
    ready: Arc<Notify>,
    waiting: [AtomicU64; 3],
    /// With so many bytes of records a batch takes no further one.
    enough: usize,
}

impl Keep {
    /// `budget` is how many bytes may leave in an hour: where they are few, batches are small, so that an urgent one never has to
    /// wait for long behind a large one.
    pub(crate) fn new(journal: Journal, node: NodeName, last: u64, budget: Option<u64>) -> Arc<Self> {
        let enough = budget.map_or(usize::MAX, |budget| usize::try_from(budget / 16).unwrap_or(usize::MAX));
        let enough = enough.min(BATCH_BYTES_MAX / 2);
        let waiting = Lane::ALL.map(|lane| AtomicU64::new(journal.event_count(lane).unwrap_or_default()));
        let runs = Lane::ALL.map(|_| clock::instance_id());
        Arc::new(Self { journal, node, runs, last: Mutex::new(last), ready: Arc::default(), waiting, enough })
    }

    /// None yet.
    pub(crate) const fn records(&self) -> Records {
        Records { batches: Vec::new(), enough: self.enough }
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Something was added.
    pub(super) fn ready(&self) -> &Notify {
        &self.ready
    }

    fn waiting(&self, lane: Lane) -> &AtomicU64 {
        of_lane(&self.waiting, lane)
    }

    /// Whether as much of a lane waits for the broker as may.
    pub(crate) fn is_full(&self, lane: Lane) -> bool {
        self.waiting(lane).load(Ordering::Relaxed) >= BATCHES_MAX
    }

    /// A batch has left.
    pub(super) fn sent(&self, lane: Lane) {
        let less = |waiting: u64| Some(waiting.saturating_sub(1));
        let _ = self.waiting(lane).fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Keeps records, and with them how far `source` was read; on disk when it returns.
    ///
    /// # Errors
    /// [`JournalError`]; nothing was kept then.
    pub(crate) async fn keep(
        &self,
        told: &Told,
        source: &str,
        position: Option<String>,
        records: &Records,
    ) -> Result<(), JournalError> {
        let mut last = self.last.lock().await;
        let (created, mut next, mut rows) = (clock::now(), *last, Vec::new());
        for (bytes, count) in &records.batches {
            next += 1;
            rows.push(self.row(told, created, next, bytes, *count));
        }
        let batches = rows.len() as u64;
        self.journal.commit(vec![Write::Events { source: source.to_owned(), position, rows }]).await?;
        *last = next;
        drop(last);
        self.waiting(told.lane).fetch_add(batches, Ordering::Relaxed);
        self.ready.notify_one();
        Ok(())
    }

    fn row(&self, told: &Told, created: Timestamp, number: u64, records: &[u8], count: u32) -> EventRow {
        let id = clock::message_id();
        let Told { to, method, domain, lane } = told.clone();
        let subject = Subject::event(to.clone(), method.clone(), domain.clone()).to_string();
        let head = EventHead {
            v: WIRE_VERSION,
            kind: Kind::Event,
            id,
            from: self.node.clone(),
            to,
            method,
            domain,
            created,
            count,
            journal: Some(*of_lane(&self.runs, lane)),
            row: Some(number),
        };
        // Writing it to memory cannot fail: it has text keys and no foreign serializers.
        let mut bytes = serde_json::to_vec(&head).unwrap_or_default();
        bytes.push(b'\n');
        bytes.extend_from_slice(records);
        let (payload, encoding) = pack(bytes);
        EventRow { row: lane.row(number), subject, id, encoding: encoding.map(str::to_owned), payload }
    }
}
