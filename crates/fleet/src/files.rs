//! Files of a home: written in one piece, secrets for their owner only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::FleetError;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Its owner only.
    Secret,
    /// Everyone whom the directory lets in.
    Plain,
}

pub(crate) fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FleetError + use<'a> {
    move |source| FleetError::Io { action, path: path.to_owned(), source }
}

/// The text of a file; `None` when there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, FleetError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// Refuses a secret that others than its owner could have read.
pub(crate) fn check_secret(path: &Path) -> Result<(), FleetError> {
    let mode = fs::metadata(path).map_err(io_error("look at", path))?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let reason = format!(
        "others than its owner can read it (mode {mode:o}); run `chmod 600 {}`, and if anyone may have seen it, it is \
         no secret any more",
        path.display()
    );
    Err(FleetError::File { path: path.to_owned(), reason })
}

/// Puts `text` at `path`: a reader finds the old file or the new one, never half of it. Directories that are
/// missing are made for their owner only.
pub(crate) fn write(path: &Path, text: &str, access: Access) -> Result<(), FleetError> {
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create", dir))?;
    let staging = staging(path);
    let written = fill(&staging, text, access).and_then(|()| fs::rename(&staging, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&staging); // what could not be written is of no use
        return Err(io_error("write", path)(error));
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("flush", dir))
}

/// Writes what may be lost with the machine's power, but not be half there: in one piece, without waiting for the disk. The
/// directory must exist, or is made.
pub(crate) fn note(path: &Path, text: &str) -> io::Result<()> {
    let staging = staging(path);
    if fs::write(&staging, text).is_err() {
        let dir = path.parent().unwrap_or(path);
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::write(&staging, text)?;
    }
    fs::rename(&staging, path)
}

fn staging(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.new-{}", std::process::id()))
}

fn fill(staging: &Path, text: &str, access: Access) -> io::Result<()> {
    let mode = match access {
        Access::Secret => 0o600,
        Access::Plain => 0o644,
    };
    let _ = fs::remove_file(staging); // of a process that died
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(staging)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_for_its_owner_only_and_replaced_in_one_piece() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("creds/admin.creds");
        write(&path, "one", Access::Secret).unwrap();
        write(&path, "two", Access::Secret).unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&dir.path().join("x")).unwrap().is_none());
    }
}
