//! Where a keeper is found: its lock and its socket, below the state directory.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

const SOCKET: &str = "keeper.sock";

/// The directory `run` of a state directory, held open.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    dir: File,
}

impl Place {
    /// Opens it, making it if it is not there. It is nobody else's: whoever can connect to the socket can run programs.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join("run");
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let dir = File::open(&path)?;
        dir.set_permissions(Permissions::from_mode(0o700))?;
        Ok(Self { path, dir })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The right to be the keeper here, for as long as the file lives; `None` if another has it.
    pub(crate) fn lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.path.join("keeper.lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Listens. Only for who holds the lock: whatever lies in the way is left over from one that was killed.
    pub(crate) fn listen(&self) -> io::Result<UnixListener> {
        self.clear();
        let listener = UnixListener::bind(self.socket())?;
        std::fs::set_permissions(self.path.join(SOCKET), Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// Takes the socket away.
    pub(crate) fn clear(&self) {
        let _ = std::fs::remove_file(self.path.join(SOCKET)); // it need not be there
    }

    pub(crate) async fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.socket()).await
    }

    /// The log of the keeper; each one begins it anew, so that it does not grow for ever.
    pub(crate) fn log(&self) -> io::Result<File> {
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(self.path.join("keeper.log"))
    }

    /// By way of the open directory: the address of a socket has room for 107 bytes, a state directory may have a longer path.
    fn socket(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{SOCKET}", self.dir.as_raw_fd()).into()
    }
}

/// To be called once at the beginning of the keeper's process: lets go of all that ties it to who started it, but for the
/// environment and the working directory, which the programs inherit.
///
/// # Errors
/// When there is no session to be had.
pub fn set_apart() -> io::Result<()> {
    nix::unistd::setsid()?;
    // What our own side opened is closed on exec anyway. What the agent itself had inherited could keep somebody waiting for
    // its end for as long as we live.
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in open.into_iter().filter(|number| is_inherited(*number)) {
        let _ = nix::unistd::close(number); // it may have been the directory that was just read
    }
    Ok(())
}

/// Whether a descriptor came to us through exec: ours all have the flag that forbids that.
fn is_inherited(number: i32) -> bool {
    const CLOEXEC: u32 = 0o200_0000;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).is_some_and(|flags| flags & CLOEXEC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_of_any_length_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("x".repeat(120));
        let place = Place::open(&state).unwrap();
        let lock = place.lock().unwrap();
        assert!(lock.is_some() && place.lock().unwrap().is_none());
        let listener = place.listen().unwrap();
        let (one, other) = tokio::join!(place.connect(), listener.accept());
        assert!(one.is_ok() && other.is_ok());
        let mode = std::fs::metadata(state.join("run/keeper.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
