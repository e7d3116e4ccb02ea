//! The broker's directory `<home>/broker`: its lock, its address, its files, the room on its disk.
//!
//! In flows a home; out flow a lock that ends with this process, and the address that this home's clients know.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::error::{BrokerError, io_error};
use super::port;

/// Of the space that is free, the store leaves this share (one in …) to others.
const SPARED_SHARE: u64 = 5;

/// `<home>/broker` as an absolute path, made if missing.
pub(super) fn make_dir(home: &Path) -> Result<PathBuf, BrokerError> {
    let dir = home.join("broker");
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_error("create", &dir))?;
    dir.canonicalize().map_err(io_error("resolve", &dir))
}

/// Takes the home's lock, which the system gives back when this process ends, however it ends.
pub(super) fn lock(dir: &Path, home: &Path) -> Result<File, BrokerError> {
    let path = dir.join("lock");
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = open.map_err(io_error("write", &path))?;
    match file.try_lock() {
        Ok(()) => {
            let note = |mut file: &File| {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())
            };
            note(&file).map_err(io_error("write", &path))?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut keeper = String::new();
            let _ = file.read_to_string(&mut keeper); // only for the message
            Err(BrokerError::AlreadyRunning { home: home.to_owned(), keeper: keeper.trim().to_owned() })
        }
        Err(TryLockError::Error(source)) => Err(BrokerError::Io { action: "lock", path, source }),
    }
}

/// The address to listen on: for port 0 the one that was picked before, if it is free, else a new one.
pub(super) async fn choose_listen(dir: &Path, wanted: SocketAddr) -> Result<SocketAddr, BrokerError> {
    if wanted.port() != 0 {
        return match port::try_listen(wanted) {
            Ok(address) => Ok(address),
            Err(error) => Err(listen_error(wanted, error).await),
        };
    }
    let path = dir.join("port");
    let kept = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    if let Some(kept) = kept {
        let kept = SocketAddr::new(wanted.ip(), kept);
        match port::try_listen(kept) {
            Ok(address) => return Ok(address),
            Err(error) => tracing::warn!("the broker gets a new port: {}", listen_error(kept, error).await),
        }
    }
    let picked = port::try_listen(wanted).map_err(|source| BrokerError::Address { address: wanted, source })?;
    replace(&path, &format!("{}\n", picked.port()))?;
    Ok(picked)
}

pub(super) async fn listen_error(address: SocketAddr, source: io::Error) -> BrokerError {
    if source.kind() == io::ErrorKind::AddrInUse {
        BrokerError::PortTaken { address, holder: port::holder(address).await }
    } else {
        BrokerError::Address { address, source }
    }
}

/// What is free on the disk.
pub(super) fn free_bytes(dir: &Path) -> Result<u64, BrokerError> {
    let disk = statvfs(dir).map_err(|error| io_error("measure the disk of", dir)(error.into()))?;
    // The width of these numbers differs between systems.
    #[allow(clippy::useless_conversion)]
    Ok(u64::from(disk.blocks_available()).saturating_mul(u64::from(disk.fragment_size())))
}

/// What the store fills now, and four fifths of what is free.
pub(super) fn store_bytes_max(dir: &Path) -> Result<u64, BrokerError> {
    let free = free_bytes(dir)?;
    Ok(size_of_files(&dir.join("store")) + (free - free / SPARED_SHARE))
}

fn size_of_files(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of_files(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Writes a file so that a reader finds it whole, old or new.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), BrokerError> {
    let staging = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staging)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staging, path)
    };
    write().map_err(io_error("write", path))
}
