//! What can go wrong with the journal.

use std::path::PathBuf;

/// An error of the journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Another agent holds the same state directory.
    #[error("another agent is using {}: stop it first, or give this one a directory of its own with --state", path.display())]
    InUse {
        /// The journal's file.
        path: PathBuf,
    },
    /// The directory or file cannot be made or opened.
    #[error("the journal {} cannot be opened: {reason}", path.display())]
    Open {
        /// The journal's file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// There is no room left.
    #[error("the disk that holds the journal is full: nothing more is accepted until there is room")]
    Full,
    /// A read or write failed.
    #[error("the journal cannot be {what}: {reason}")]
    Storage {
        /// `read` or `written`.
        what: &'static str,
        /// What the system said.
        reason: String,
    },
    /// What was read back makes no sense.
    #[error("the journal holds an entry that cannot be read: {reason}")]
    Corrupt {
        /// What the parser said.
        reason: String,
    },
    /// The writer has ended.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    pub(crate) fn storage(what: &'static str, error: impl Into<redb::Error>) -> Self {
        let error = error.into();
        if let redb::Error::Io(io) = &error
            && matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        {
            return Self::Full;
        }
        Self::Storage { what, reason: error.to_string() }
    }
}
