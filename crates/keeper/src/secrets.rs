//! Secrets of a program: files in memory, for as long as it runs.
//!
//! A directory of its own on a file system without a disk (tmpfs), which only the program's user may enter; it is gone when
//! the program has ended. One that a killed keeper left behind is recognized by nobody holding its lock, and removed by the
//! next who looks. Never written to a disk: where there is no file system in memory, the program is not run.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::{User, chown, geteuid};
use tempfile::TempDir;

use crate::wire::Secret;

/// The variable by which a program finds the directory of its secrets.
pub const SECRETS_VARIABLE: &str = "STEWARD_SECRETS";

/// Where there usually is a file system in memory. The first is root's; what lies in the second may be taken away from a
/// person who logs out.
const PLACES: [&str; 2] = ["/run", "/dev/shm"];
const PREFIX: &str = "steward-secrets-";
/// Somebody who looks for leftovers may take a fresh directory for one, until it is locked.
const TRIES: u32 = 8;

/// The secrets of one program; dropped, they are gone.
#[derive(Debug)]
pub(crate) struct Stored {
    dir: TempDir,
    _lock: File,
}

impl Stored {
    /// Stores them for `user`, by default ours. An error is a sentence.
    pub(crate) fn new(secrets: &[Secret], user: Option<&str>) -> Result<Self, String> {
        let places = PLACES.map(PathBuf::from);
        let told = |error: io::Error| format!("its secrets could not be laid out for it: {error}");
        let stored = make(&places).map_err(told)?.ok_or_else(|| {
            format!(
                "its secrets are not laid out on a disk, and this machine has no file system in memory that may be written to: \
                 mount a tmpfs on {}",
                PLACES.join(" or ")
            )
        })?;
        stored.fill(secrets, user).map_err(told)?;
        Ok(stored)
    }

    fn fill(&self, secrets: &[Secret], user: Option<&str>) -> io::Result<()> {
        let user = match user {
            Some(name) => User::from_name(name)?,
            None => None,
        };
        let ours = user.as_ref().is_none_or(|user| user.uid == geteuid());
        for Secret { name, value } in secrets {
            let path = self.dir.path().join(name);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path)?;
            file.write_all(value)?;
            if let Some(user) = user.as_ref().filter(|_| !ours) {
                chown(&path, Some(user.uid), None)?;
            }
        }
        // The directory stays ours, or nobody could tell whose it was.
        if let Some(user) = user.filter(|_| !ours) {
            chown(self.dir.path(), None, Some(user.gid))?;
            std::fs::set_permissions(self.dir.path(), Permissions::from_mode(0o750))?;
        }
        Ok(())
    }

    /// What is added to the program's environment.
    pub(crate) fn variable(&self) -> (OsString, OsString) {
        (SECRETS_VARIABLE.into(), self.dir.path().into())
    }
}

/// An empty directory of its own in the first of `places` that is in memory and may be written to.
fn make(places: &[PathBuf]) -> io::Result<Option<Stored>> {
    for place in places.iter().filter(|place| is_in_memory(place)) {
        for _ in 0..TRIES {
            // For its owner alone, under a name that nobody can foresee.
            let dir = match tempfile::Builder::new()
                .prefix(PREFIX)
                .permissions(Permissions::from_mode(0o700))
                .tempdir_in(place)
            {
                Ok(dir) => dir,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(error),
                Err(_) => break,
            };
            if let Ok(lock) = File::open(dir.path())
                && lock.try_lock().is_ok()
                && dir.path().is_dir()
            {
                return Ok(Some(Stored { dir, _lock: lock }));
            }
        }
    }
    Ok(None)
}

fn is_in_memory(place: &Path) -> bool {
    statfs(place).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

/// Removes what killed keepers of this user left behind.
pub(crate) fn sweep() {
    PLACES.iter().for_each(|place| sweep_in(Path::new(place)));
}

fn sweep_in(place: &Path) {
    let us = geteuid().as_raw();
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX))
            // Of the entry itself: never behind a link that somebody laid there.
            && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == us);
        // Whoever uses it holds its lock, and a dead process holds none.
        if ours
            && let Ok(dir) = File::open(entry.path())
            && dir.try_lock().is_ok()
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, "what a killed keeper left of secrets cannot be removed: {}", entry.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, value: &[u8]) -> Secret {
        Secret { name: name.to_owned(), value: value.to_vec().into() }
    }

    #[test]
    fn secrets_lie_in_memory_for_their_owner_alone_and_are_gone_with_the_program() {
        let stored = Stored::new(&[secret("A", b"one"), secret("B", &[0, 255])], None).unwrap();
        let (name, dir) = stored.variable();
        let dir = PathBuf::from(dir);
        assert_eq!(name, "STEWARD_SECRETS");
        assert!(is_in_memory(&dir));
        assert_eq!(std::fs::read(dir.join("A")).unwrap(), b"one");
        assert_eq!(std::fs::read(dir.join("B")).unwrap(), [0, 255]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join("A"))), (0o700, 0o400));
        sweep();
        assert!(dir.is_dir(), "who uses it holds its lock");
        drop(stored);
        assert!(!dir.exists());
    }

    #[test]
    fn what_a_killed_keeper_left_is_swept_away() {
        let stored = make(&[PathBuf::from("/dev/shm")]).unwrap().unwrap();
        stored.fill(&[secret("A", b"one")], None).unwrap();
        let Stored { dir, _lock: lock } = stored;
        let path = dir.keep();
        drop(lock);
        sweep();
        assert!(!path.exists());
    }

    #[test]
    fn without_a_file_system_in_memory_nothing_is_laid_out() {
        assert!(make(&[PathBuf::from("/proc"), PathBuf::from("/no/such/place")]).unwrap().is_none());
    }
}
