//! What the journal lies on: two files in one directory, or in tests a disk that loses what was not synced.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError};

/// The store's cache: it holds the working set of a busy agent, and is small at rest.
const CACHE_BYTES: usize = 1024 * 1024;

/// The log's file: of fixed length, written in place.
pub(crate) trait LogFile: Debug + Send {
    /// All of it.
    fn read(&self) -> io::Result<Vec<u8>>;
    /// Writes at an offset; on disk only after [`LogFile::sync`].
    fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()>;
    /// Returns when everything written is on disk.
    fn sync(&self) -> io::Result<()>;
}

/// Where a journal lies.
pub(crate) trait Disk: Debug + Send + Sync {
    /// For messages.
    fn path(&self) -> &Path;
    /// Opens the store, making it if it is not there.
    fn store(&self) -> Result<Database, DatabaseError>;
    /// Opens the log; `None` when there is none.
    fn log(&self) -> io::Result<Option<Box<dyn LogFile>>>;
    /// Makes a log of `length` zeros in place of any other; it is on disk when this returns.
    fn create_log(&self, length: usize) -> io::Result<Box<dyn LogFile>>;
}

/// A directory of a file system.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: PathBuf,
    store: PathBuf,
}

/// The file that tells whether there is a journal in a directory.
pub const FILE: &str = "journal.redb";

impl Directory {
    /// Makes the directory if it is not there.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        // Orders and their output are nobody else's business. Not by umask: commands would inherit it.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self { dir: dir.to_owned(), store: dir.join(FILE) })
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("journal.log")
    }

    /// Makes an empty store under another name first: one that is half made when the power goes could never be
    /// opened again.
    fn create_store(&self) -> Result<(), DatabaseError> {
        let io = |error: io::Error| DatabaseError::Storage(redb::StorageError::Io(error));
        let fresh = self.dir.join("journal.redb.new");
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        drop(Database::builder().set_cache_size(CACHE_BYTES).create(&fresh)?);
        File::open(&fresh).and_then(|file| file.sync_all()).map_err(io)?;
        std::fs::rename(&fresh, &self.store).map_err(io)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io)
    }
}

impl Disk for Directory {
    fn path(&self) -> &Path {
        &self.store
    }

    fn store(&self) -> Result<Database, DatabaseError> {
        if !self.store.exists() {
            self.create_store()?;
        }
        Database::builder().set_cache_size(CACHE_BYTES).open(&self.store)
    }

    fn log(&self) -> io::Result<Option<Box<dyn LogFile>>> {
        match OpenOptions::new().read(true).write(true).open(self.log_path()) {
            Ok(file) => Ok(Some(Box::new(PlainLog(file)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create_log(&self, length: usize) -> io::Result<Box<dyn LogFile>> {
        let fresh = self.dir.join("journal.log.new");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        // Zeros, not a hole: a sync of what is written in place later need not touch the file system's own journal.
        file.write_all_at(&vec![0; length], 0)?;
        file.sync_all()?;
        std::fs::rename(&fresh, self.log_path())?;
        File::open(&self.dir)?.sync_all()?;
        Ok(Box::new(PlainLog(file)))
    }
}

#[derive(Debug)]
struct PlainLog(File);

impl LogFile for PlainLog {
    fn read(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.0.metadata()?.len()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset as u64)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
