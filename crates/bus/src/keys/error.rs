//! Why keys could not be made, read or used, in sentences that say what to do.

use std::path::PathBuf;

use crate::claims::ClaimsError;

/// Why keys could not be made, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// There is a fleet already.
    #[error(
        "{0} already holds a fleet's keys, and new ones would lock out every node; use it as it is, or choose another --home"
    )]
    Exists(PathBuf),
    /// There is none yet.
    #[error("no fleet's keys at {0}; make a fleet with `steward init`, or point --home to one")]
    Missing(PathBuf),
    /// Another process changes them.
    #[error("another steward has been changing the keys in {0} for 10 s; try again when it is done")]
    Busy(PathBuf),
    /// Others could read a secret.
    #[error(
        "{path} can be read by others than its owner (mode {mode:o}); run `chmod {wanted:o} {path}`, and if anyone may have seen it, make new keys"
    )]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it should have.
        wanted: u32,
    },
    /// A file holds something else than it should.
    #[error("{path} is damaged: {what}; restore the directory {} from a backup", path.parent().unwrap_or(path).display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The file system refused.
    #[error("cannot {action} {path}: {source}; check its owner, mode and the space on its disk")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The name would become part of subjects that mean something else.
    #[error(
        "{name:?} cannot be a name: use 1 to 64 of A-Z, a-z, 0-9, `_`, `-`, beginning with a letter or digit; `all`, `in` and `core` are reserved"
    )]
    Name {
        /// The refused name.
        name: String,
    },
    /// Not the public key of a user or node.
    #[error("{0:?} is not the public key of a user or node (U…, 56 characters); copy it again in full")]
    PublicKey(String),
    /// These files are older than the last rotation.
    #[error(
        "the {role} key in {} was retired: these files are an old copy; copy the directory anew from where `steward keys rotate` was run",
        dir.display()
    )]
    Retired {
        /// The role.
        role: &'static str,
        /// The directory.
        dir: PathBuf,
    },
    /// A token could not be made or read.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
}
