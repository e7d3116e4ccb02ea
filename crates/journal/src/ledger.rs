//! Log and store together: what is committed goes into the log, what fills the log goes into the store.
//!
//! Blocking, and without a thread of its own, so that it can be tested step by step. A commit counts once its
//! frame is synced. Readers look at the overlay, which holds what the log holds, and then at the store: whatever
//! moves, moves from the first to the second, so nothing falls between.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use message::{InstanceId, JobId, OrderId, Timestamp, Token};
use redb::{Database, Durability, WriteTransaction};

use crate::disk::{Disk, LogFile};
use crate::entry::{Entry, EventRow, Lane, Newest, OutputRow, Tombstone};
use crate::error::JournalError;
use crate::log::{self, LOG_BYTES};
use crate::overlay::Overlay;
use crate::store;
use crate::writer::{Opened, Write};

/// The side that reads; shared with the one that writes.
#[derive(Debug)]
pub(crate) struct Reader {
    disk: Box<dyn Disk>,
    /// `None` after a failed write, until it could be opened again.
    db: Mutex<Option<Arc<Database>>>,
    overlay: Mutex<Overlay>,
}

/// The one who writes.
pub(crate) struct Ledger {
    reader: Arc<Reader>,
    log: Box<dyn LogFile>,
    generation: u64,
    /// Of the next frame, and where it goes.
    number: u32,
    offset: usize,
    /// A frame may be on disk that was not confirmed: nothing more goes into this generation.
    doubtful: bool,
    /// The generation of a write to the store that failed, as long as it is not known whether it got through: until
    /// then nothing may go into the log, for it could be the wrong one.
    attempt: Option<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log_error(error: &std::io::Error) -> JournalError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => JournalError::Full,
        _ => JournalError::Storage { what: "written", reason: error.to_string() },
    }
}

impl Ledger {
    /// Opens the journal on `disk`, making it if it is not there; carries over what the log holds.
    pub(crate) fn open(disk: Box<dyn Disk>) -> Result<(Self, Opened), JournalError> {
        let wrong = |reason: String| JournalError::Open { path: disk.path().to_owned(), reason };
        let log_wrong = |error: std::io::Error| match log_error(&error) {
            JournalError::Full => JournalError::Full,
            other => wrong(other.to_string()),
        };
        let db = open_store(disk.as_ref())?;
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).map_err(|error| wrong(error.to_string()))?;
        let txn = begin(&db)?;
        let instance = store::prepare(&txn, InstanceId::from_bytes(bits))?;
        commit(txn)?;
        let generation = log::fresh_generation()?;
        let (log, left) = match (store::log_generation(&db)?, disk.log().map_err(log_wrong)?) {
            (Some(earlier), Some(log)) => {
                let bytes = log.read().map_err(log_wrong)?;
                let left = log::replay(&bytes, earlier)?.into_iter().map(log::decode).collect::<Result<Vec<_>, _>>()?;
                // Of another length: of another version, or cut short when it was made.
                let log = if bytes.len() == LOG_BYTES { log } else { disk.create_log(LOG_BYTES).map_err(log_wrong)? };
                (log, left.concat())
            }
            (Some(_), None) => {
                return Err(wrong("the file journal.log beside it is missing: put it back, or remove both".into()));
            }
            (None, _) => (disk.create_log(LOG_BYTES).map_err(log_wrong)?, Vec::new()),
        };
        let txn = begin(&db)?;
        for write in &left {
            store::apply(&txn, write)?;
        }
        store::set_log_generation(&txn, generation)?;
        commit(txn)?;
        let (audit_tip, audit_row) = store::audit_state(&db)?;
        let opened = Opened {
            instance,
            audit_tip,
            audit_row,
            event_row: store::event_row(&db)?,
            cursor: store::cursor(&db)?,
            unsettled: store::unsettled(&db)?,
            trust: store::trust(&db)?,
        };
        let reader = Arc::new(Reader { disk, db: Mutex::new(Some(Arc::new(db))), overlay: Mutex::default() });
        Ok((Self { reader, log, generation, number: 0, offset: 0, doubtful: false, attempt: None }, opened))
    }

    pub(crate) fn reader(&self) -> Arc<Reader> {
        Arc::clone(&self.reader)
    }

    /// Writes all of `writes` or none; they are on disk when this returns.
    pub(crate) fn commit(&mut self, writes: Vec<Write>) -> Result<(), JournalError> {
        let result = self.try_commit(writes);
        if let Err(error) = &result {
            tracing::error!(%error, "the journal could not be written; nothing of this write counts");
        }
        result
    }

    fn try_commit(&mut self, writes: Vec<Write>) -> Result<(), JournalError> {
        self.settle()?;
        if self.doubtful {
            self.carry_over(&[])?;
        }
        let Some(payload) = log::encode(&writes)? else { return self.carry_over(&writes) };
        let Some(frame) = log::frame(self.generation, self.number, &payload) else { return self.carry_over(&writes) };
        if frame.len() > LOG_BYTES - self.offset {
            // Together with what fills the log: one write to the store instead of two.
            return self.carry_over(&writes);
        }
        if let Err(error) = self.log.write(self.offset, &frame).and_then(|()| self.log.sync()) {
            self.doubtful = true;
            return Err(log_error(&error));
        }
        self.number += 1;
        self.offset += frame.len();
        let db = self.reader.database().ok();
        let mut overlay = lock(&self.reader.overlay);
        for write in writes {
            overlay.apply(write, |id| db.as_ref().and_then(|db| store::find(db, id).ok().flatten()));
        }
        Ok(())
    }

    /// Writes what the log holds, and `more`, into the store; the log begins anew.
    fn carry_over(&mut self, more: &[Write]) -> Result<(), JournalError> {
        let generation = log::fresh_generation()?;
        // Where it does not even open, nothing was attempted.
        self.reader.database()?;
        let result = self.reader.in_store(|db| {
            let txn = begin(db)?;
            for write in lock(&self.reader.overlay).writes() {
                store::apply(&txn, &write)?;
            }
            for write in more {
                store::apply(&txn, write)?;
            }
            store::set_log_generation(&txn, generation)?;
            commit(txn)
        });
        match result {
            Ok(()) => self.begin_anew(generation),
            Err(error) => {
                self.attempt = Some(generation);
                // It may have failed at its very last step, and be there all the same.
                if self.settle().is_err() || self.generation != generation {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// What the log held is in the store.
    fn begin_anew(&mut self, generation: u64) {
        *lock(&self.reader.overlay) = Overlay::default();
        self.generation = generation;
        (self.number, self.offset, self.doubtful, self.attempt) = (0, 0, false, None);
    }

    /// Finds out what became of a write to the store that failed.
    fn settle(&mut self) -> Result<(), JournalError> {
        let Some(attempt) = self.attempt else { return Ok(()) };
        let got_through = self.reader.in_store(|db| {
            if store::log_generation(db)? != Some(attempt) {
                return Ok(false);
            }
            // It is in the file, and perhaps not on the disk.
            let txn = begin(db)?;
            store::set_log_generation(&txn, attempt)?;
            commit(txn)?;
            Ok(true)
        })?;
        if got_through {
            self.begin_anew(attempt);
        } else {
            self.attempt = None;
        }
        Ok(())
    }

    /// Forgets orders whose ids can no longer be replayed; returns how many.
    pub(crate) fn prune(&mut self, watermark: Timestamp) -> Result<usize, JournalError> {
        self.settle()?;
        if !lock(&self.reader.overlay).is_empty() || self.doubtful {
            self.carry_over(&[])?;
        }
        self.reader.in_store(|db| {
            let txn = begin(db)?;
            let pruned = store::prune(&txn, watermark)?;
            commit(txn)?;
            Ok(pruned)
        })
    }
}

fn begin(db: &Database) -> Result<WriteTransaction, JournalError> {
    let mut txn = db.begin_write().map_err(|error| JournalError::storage("written", error))?;
    txn.set_durability(Durability::Immediate).map_err(|error| JournalError::storage("written", error))?;
    Ok(txn)
}

fn commit(txn: WriteTransaction) -> Result<(), JournalError> {
    txn.commit().map_err(|error| JournalError::storage("written", error))
}

fn open_store(disk: &dyn Disk) -> Result<Database, JournalError> {
    disk.store().map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => JournalError::InUse { path: disk.path().to_owned() },
        error => match JournalError::storage("opened", error) {
            JournalError::Full => JournalError::Full,
            other => JournalError::Open { path: disk.path().to_owned(), reason: other.to_string() },
        },
    })
}

impl Reader {
    /// The store, opened again if a failed write has closed it.
    fn database(&self) -> Result<Arc<Database>, JournalError> {
        let mut db = lock(&self.db);
        if let Some(open) = &*db {
            return Ok(Arc::clone(open));
        }
        let open = Arc::new(open_store(self.disk.as_ref())?);
        *db = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Writes to the store. After a failed write redb refuses everything until the file is opened anew.
    fn in_store<T>(&self, write: impl FnOnce(&Database) -> Result<T, JournalError>) -> Result<T, JournalError> {
        let db = self.database()?;
        let result = write(&db);
        if result.is_err() {
            drop(db);
            *lock(&self.db) = None;
        }
        result
    }

    pub(crate) fn find(&self, id: &OrderId) -> Result<Option<Entry>, JournalError> {
        if let Some(entry) = lock(&self.overlay).entries.get(id) {
            return Ok(Some(entry.clone()));
        }
        store::find(&*self.database()?, id)
    }

    pub(crate) fn find_job(&self, job: &JobId) -> Result<Option<Entry>, JournalError> {
        if let Some(entry) = lock(&self.overlay).entries.values().find(|entry| entry.job == *job) {
            return Ok(Some(entry.clone()));
        }
        store::find_job(&*self.database()?, job)
    }

    pub(crate) fn tombstone(&self, job: &JobId) -> Result<Option<Tombstone>, JournalError> {
        store::tombstone(&*self.database()?, job)
    }

    pub(crate) fn newest(&self, key: &Token) -> Result<Option<Newest>, JournalError> {
        store::newest(&*self.database()?, key)
    }

    pub(crate) fn unsettled(&self) -> Result<Vec<Entry>, JournalError> {
        // What is newer first: meanwhile something may move to the store, never back.
        let newer = lock(&self.overlay).entries.clone();
        let mut entries: Vec<Entry> = store::unsettled(&*self.database()?)?;
        entries.retain(|entry| !newer.contains_key(&entry.id));
        entries.extend(newer.into_values());
        let mut left = Vec::new();
        for entry in entries {
            if !entry.is_settled() || !self.output(&entry.id)?.is_empty() {
                left.push(entry);
            }
        }
        left.sort_by_key(|entry| entry.sequence);
        Ok(left)
    }

    pub(crate) fn output(&self, id: &OrderId) -> Result<Vec<OutputRow>, JournalError> {
        // A row that moves meanwhile is seen twice rather than not at all, and counted once.
        let newer: Vec<(u32, Option<OutputRow>)> = {
            let overlay = lock(&self.overlay);
            let range = (*id.as_bytes(), 0)..=(*id.as_bytes(), u32::MAX);
            overlay.output.range(range).map(|((_, number), row)| (*number, row.clone())).collect()
        };
        let stored = store::output(&*self.database()?, id)?;
        Ok(Overlay::newest(stored, newer))
    }

    pub(crate) fn events(&self, lane: Lane, after: u64, limit: usize) -> Result<Vec<EventRow>, JournalError> {
        store::events(&*self.database()?, lane, after, limit)
    }

    pub(crate) fn event_count(&self, lane: Lane) -> Result<u64, JournalError> {
        store::event_count(&*self.database()?, lane)
    }

    pub(crate) fn audit(&self, limit: usize) -> Result<Vec<(u64, String)>, JournalError> {
        // What is confirmed in the overlay may still be in the store; what is in both counts once.
        let (newer, confirmed) = {
            let overlay = lock(&self.overlay);
            let newer: Vec<_> = overlay.audit.iter().take(limit).map(|(row, act)| (*row, act.clone())).collect();
            (newer, overlay.audited.as_ref().map_or(0, |(row, _)| *row))
        };
        let mut rows: std::collections::BTreeMap<u64, String> =
            store::audit(&*self.database()?, confirmed, limit)?.into_iter().collect();
        rows.extend(newer);
        Ok(rows.into_iter().take(limit).collect())
    }

    pub(crate) fn source(&self, name: &str) -> Result<Option<String>, JournalError> {
        store::source(&*self.database()?, name)
    }
}
