//! For tests alone: a disk in memory that loses and tears what was not synced, and is full when a test says so; and, for
//! simulations (feature `simulate`), a journal on it whose writer is driven by hand instead of a thread. Never in a
//! shipped program: nothing but development depends on the feature.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Database, DatabaseError, StorageBackend};

use crate::disk::{Disk, LogFile};

/// What was written and not synced.
#[derive(Debug, Clone)]
enum Pending {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Default, Clone)]
pub(crate) struct SimFile {
    exists: bool,
    synced: Vec<u8>,
    pub(crate) now: Vec<u8>,
    pending: Vec<Pending>,
}

fn apply(bytes: &mut Vec<u8>, change: &Pending) {
    match change {
        Pending::Length(length) => bytes.resize(*length, 0),
        Pending::Write(at, data) => {
            bytes.resize(bytes.len().max(at + data.len()), 0);
            bytes[*at..at + data.len()].copy_from_slice(data);
        }
    }
}

impl SimFile {
    fn change(&mut self, change: Pending) {
        apply(&mut self.now, &change);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            apply(&mut self.synced, &change);
        }
    }

    /// The same with nothing on its way.
    fn settled(&self) -> Self {
        Self { exists: self.exists, now: self.now.clone(), synced: self.now.clone(), pending: Vec::new() }
    }

    /// What is there after the power came back.
    fn crashed(&self, dice: &mut dyn FnMut(usize) -> usize) -> Self {
        let mut bytes = self.synced.clone();
        for change in &self.pending {
            match change {
                _ if dice(3) == 0 => {}
                Pending::Write(at, data) if dice(2) == 0 => {
                    // Sectors reach the disk in any order, or not.
                    for start in (0..data.len()).step_by(512) {
                        let end = data.len().min(start + 512);
                        if dice(2) == 0 {
                            apply(&mut bytes, &Pending::Write(at + start, data[start..end].to_vec()));
                        }
                    }
                }
                change => apply(&mut bytes, change),
            }
        }
        Self { exists: self.exists, now: bytes.clone(), synced: bytes, pending: Vec::new() }
    }
}

#[derive(Debug, Default)]
pub(crate) struct SimState {
    store: SimFile,
    pub(crate) log: SimFile,
    /// Writes and syncs that still work; then the power is gone.
    pub(crate) left: Option<u64>,
    /// The write that fails, as on a full disk, by its number.
    pub(crate) refuse_at: Option<u64>,
    /// Every write fails, as on a disk that stays full.
    full: bool,
    pub(crate) done: u64,
}

impl SimState {
    fn step(&mut self) -> io::Result<()> {
        self.done += 1;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the power is gone"))?;
        }
        if self.full || self.refuse_at == Some(self.done) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

/// A disk in memory; cheap to clone, and every clone is the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<SimState>>);

impl SimDisk {
    pub(crate) fn state(&self) -> MutexGuard<'_, SimState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another disk, as this one is found after its machine lost power now: what was not synced is lost in part, and torn.
    #[must_use]
    pub fn after_power_cut(&self, dice: &mut dyn FnMut(usize) -> usize) -> Self {
        let state = self.state();
        let (store, log) = (state.store.crashed(dice), state.log.crashed(dice));
        Self(Arc::new(Mutex::new(SimState { store, log, full: state.full, ..SimState::default() })))
    }

    /// Another disk with just what this one holds now: after a process was killed, or a snapshot of a machine.
    #[must_use]
    pub fn copied(&self) -> Self {
        let state = self.state();
        let (store, log) = (state.store.settled(), state.log.settled());
        Self(Arc::new(Mutex::new(SimState { store, log, full: state.full, ..SimState::default() })))
    }

    /// Whether every write is refused from now on, as on a full disk.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }
}

impl Disk for SimDisk {
    fn path(&self) -> &Path {
        Path::new("simulated")
    }

    fn store(&self) -> Result<Database, DatabaseError> {
        if !self.state().store.exists {
            // Made under another name and renamed: all or nothing.
            self.state().step().map_err(|error| DatabaseError::Storage(redb::StorageError::Io(error)))?;
            let apart = Self::default();
            drop(Database::builder().create_with_backend(SimStore(apart.clone()))?);
            let now = apart.state().store.now.clone();
            self.state().store = SimFile { exists: true, synced: now.clone(), now, pending: Vec::new() };
        }
        Database::builder().set_cache_size(1024 * 1024).create_with_backend(SimStore(self.clone()))
    }

    fn log(&self) -> io::Result<Option<Box<dyn LogFile>>> {
        let exists = self.state().log.exists;
        Ok(exists.then(|| Box::new(SimLog(self.clone())) as Box<dyn LogFile>))
    }

    fn create_log(&self, length: usize) -> io::Result<Box<dyn LogFile>> {
        let mut state = self.state();
        state.step()?;
        // A rename is all or nothing.
        let zeros = vec![0; length];
        state.log = SimFile { exists: true, now: zeros.clone(), synced: zeros, pending: Vec::new() };
        drop(state);
        Ok(Box::new(SimLog(self.clone())))
    }
}

#[derive(Debug)]
struct SimLog(SimDisk);

impl LogFile for SimLog {
    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.state().log.now.clone())
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.state();
        // The write that the power cut hits may have reached the disk in part.
        state.log.change(Pending::Write(offset, bytes.to_vec()));
        state.step()
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.state();
        state.step()?;
        state.log.sync();
        Ok(())
    }
}

#[derive(Debug)]
struct SimStore(SimDisk);

impl StorageBackend for SimStore {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.state().store.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let state = self.0.state();
        let at = offset as usize;
        let Some(bytes) = state.store.now.get(at..at + out.len()) else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        };
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut state = self.0.state();
        state.store.change(Pending::Length(len as usize));
        state.step()
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut state = self.0.state();
        state.step()?;
        state.store.sync();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut state = self.0.state();
        state.store.change(Pending::Write(offset as usize, data.to_vec()));
        state.step()
    }
}

#[cfg(feature = "simulate")]
pub use driven::Writer;

#[cfg(feature = "simulate")]
mod driven {
    use std::sync::mpsc::Receiver;

    use tokio::sync::OwnedSemaphorePermit;

    use crate::ledger::Ledger;
    use crate::writer::{GROUP_MAX, Request, Write, round};

    /// The writer of a simulated journal: what its thread does otherwise, one round at a time.
    pub struct Writer {
        ledger: Ledger,
        queue: Receiver<(Request, OwnedSemaphorePermit)>,
        lazy: Vec<Write>,
    }

    impl Writer {
        pub(crate) fn new(ledger: Ledger, queue: Receiver<(Request, OwnedSemaphorePermit)>) -> Self {
            Self { ledger, queue, lazy: Vec::new() }
        }

        /// Commits what waits, at most `limit` requests together, and, if `lazy`, the marks that may be lost. Returns how
        /// many requests there were.
        pub fn turn(&mut self, limit: usize, lazy: bool) -> usize {
            let gathered: Vec<_> = self.queue.try_iter().take(limit.min(GROUP_MAX)).collect();
            let count = gathered.len();
            round(&mut self.ledger, gathered.into_iter(), &mut self.lazy, || lazy);
            count
        }
    }
}
