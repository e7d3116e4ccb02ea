//! The files below `<home>/keys`: secrets of mode 0600 in a directory of mode 0700, and tokens.
//!
//! Nothing is ever read that others than its owner could have read or changed, and nothing is half written.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nkeys::KeyPair;

use super::KeysError;

const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// How long another process may take to change keys.
const LOCK_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(10);
/// The bits that let group or world in.
const OTHERS: u32 = 0o077;

/// Where a fleet keeps its keys.
pub(super) fn dir(home: &Path) -> PathBuf {
    home.join("keys")
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> KeysError + use<'a> {
    move |source| KeysError::Io { action, path: path.to_owned(), source }
}

/// New files that appear together, by the renaming of the directory that holds them.
pub(super) struct Batch {
    staging: PathBuf,
    dir: PathBuf,
}

impl Batch {
    pub(super) fn new(home: &Path) -> Result<Self, KeysError> {
        let dir = dir(home);
        if dir.exists() {
            return Err(KeysError::Exists(dir));
        }
        let staging = home.join(format!("keys.new-{}", std::process::id()));
        let builder = |recursive| {
            let mut builder = DirBuilder::new();
            builder.mode(DIR_MODE).recursive(recursive);
            builder
        };
        builder(true).create(home).map_err(io_error("create", home))?;
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(io_error("remove", &staging))?;
        }
        builder(false).create(&staging).map_err(io_error("create", &staging))?;
        Ok(Self { staging, dir })
    }

    pub(super) fn secret(&mut self, name: &str, key: &KeyPair) -> Result<(), KeysError> {
        let seed = key.seed().map_err(|reason| crate::claims::ClaimsError::Sign { key: key.public_key(), reason })?;
        write_new(&self.staging.join(format!("{name}.nk")), &seed)
    }

    pub(super) fn token(&mut self, name: &str, jwt: &str) -> Result<(), KeysError> {
        write_new(&self.staging.join(format!("{name}.jwt")), jwt)
    }

    /// Renaming refuses if another process was faster: a directory with files is not replaced.
    pub(super) fn commit(self) -> Result<(), KeysError> {
        sync_dir(&self.staging)?;
        let renamed = fs::rename(&self.staging, &self.dir);
        match renamed {
            Ok(()) => sync_dir(self.dir.parent().unwrap_or(&self.dir)),
            Err(_) if self.dir.exists() => Err(KeysError::Exists(self.dir.clone())),
            Err(source) => Err(KeysError::Io { action: "create", path: self.dir.clone(), source }),
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.staging); // gone already if committed
    }
}

/// Refuses a directory that is missing or open to others.
pub(super) fn check_dir(dir: &Path) -> Result<(), KeysError> {
    if !dir.is_dir() {
        return Err(KeysError::Missing(dir.to_owned()));
    }
    check_mode(dir, DIR_MODE)
}

/// Waits until nobody else holds the directory, and holds it until the returned file is dropped.
pub(super) fn lock(dir: &Path) -> Result<fs::File, KeysError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(&path)
        .map_err(io_error("open", &path))?;
    let deadline = std::time::Instant::now() + LOCK_WAIT_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if std::time::Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(fs::TryLockError::WouldBlock) => return Err(KeysError::Busy(dir.to_owned())),
            Err(fs::TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
        }
    }
}

/// Reads a private key.
pub(super) fn secret(dir: &Path, name: &str) -> Result<KeyPair, KeysError> {
    let path = dir.join(format!("{name}.nk"));
    let seed = read(&path)?;
    KeyPair::from_seed(seed.trim())
        .map_err(|_| KeysError::Damaged { path, what: "it does not hold an nkey seed".to_owned() })
}

/// Keeps a new private key.
pub(super) fn new_secret(dir: &Path, name: &str, key: &KeyPair) -> Result<(), KeysError> {
    let seed = key.seed().map_err(|reason| crate::claims::ClaimsError::Sign { key: key.public_key(), reason })?;
    let (path, staging) = (dir.join(format!("{name}.nk")), dir.join(format!("{name}.nk.new-{}", std::process::id())));
    let _ = fs::remove_file(&staging); // of a process that died
    write_new(&staging, &seed)?;
    fs::rename(&staging, &path).map_err(io_error("replace", &path))?;
    sync_dir(dir)
}

/// Puts a private key in another's place.
pub(super) fn rename_secret(dir: &Path, from: &str, to: &str) -> Result<(), KeysError> {
    let to = dir.join(format!("{to}.nk"));
    fs::rename(dir.join(format!("{from}.nk")), &to).map_err(io_error("replace", &to))?;
    sync_dir(dir)
}

/// Reads a token.
pub(super) fn token(dir: &Path, name: &str) -> Result<String, KeysError> {
    Ok(read(&dir.join(format!("{name}.jwt")))?.trim().to_owned())
}

/// Puts a token in another's place, so that a reader finds the one or the other.
pub(super) fn replace_token(dir: &Path, name: &str, jwt: &str) -> Result<(), KeysError> {
    let path = dir.join(format!("{name}.jwt"));
    let staging = dir.join(format!("{name}.jwt.new-{}", std::process::id()));
    let _ = fs::remove_file(&staging); // of a process that died
    write_new(&staging, jwt)?;
    fs::rename(&staging, &path).map_err(io_error("replace", &path))?;
    sync_dir(dir)
}

fn read(path: &Path) -> Result<String, KeysError> {
    let text = fs::read_to_string(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => KeysError::Damaged { path: path.to_owned(), what: "it is missing".to_owned() },
        io::ErrorKind::InvalidData => KeysError::Damaged { path: path.to_owned(), what: "it is not text".to_owned() },
        _ => KeysError::Io { action: "read", path: path.to_owned(), source },
    })?;
    check_mode(path, FILE_MODE)?;
    Ok(text)
}

fn check_mode(path: &Path, wanted: u32) -> Result<(), KeysError> {
    let mode = fs::metadata(path).map_err(io_error("look at", path))?.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(KeysError::Exposed { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

fn write_new(path: &Path, text: &str) -> Result<(), KeysError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().map_err(io_error("write", path))
}

fn sync_dir(dir: &Path) -> Result<(), KeysError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("flush", dir))
}
