//! Processes whose wall clock is wrong, and jumps when it is told to.
//!
//! A small library that is compiled on the spot is loaded into the process (`LD_PRELOAD`): it shifts what the wall clock
//! says by what stands in a file, and leaves the monotonic clocks alone. Whatever inherits the environment has the same
//! wrong clock: the keeper, and the commands that it runs, as it is on a unit whose clock is wrong.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = include_str!("wrong_clock.c");
/// The library's file.
const LIBRARY: &str = "wrong_clock.so";

/// A clock that can be set to any error while processes live by it.
#[derive(Debug, Clone)]
pub struct WrongClock {
    library: PathBuf,
    file: PathBuf,
}

impl WrongClock {
    /// One called `name`, right at first, with its files in `dir`.
    ///
    /// # Errors
    /// When there is no C compiler (`cc`), or nothing can be written there.
    pub fn new(dir: &Path, name: &str) -> io::Result<Self> {
        let library = dir.join(LIBRARY);
        if !library.exists() {
            let source = dir.join("wrong_clock.c");
            std::fs::write(&source, SOURCE)?;
            let made =
                Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output()?;
            if !made.status.success() {
                return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()));
            }
        }
        let clock = Self { library, file: dir.join(format!("{name}.clock")) };
        std::fs::write(&clock.file, 0_i64.to_ne_bytes())?;
        Ok(clock)
    }

    /// From now on it is ahead by so much; behind, if it is negative.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set(&self, ahead_ms: i64) -> io::Result<()> {
        // In one write in place: the processes look at this very file.
        std::fs::OpenOptions::new().write(true).open(&self.file)?.write_all_at(&ahead_ms.to_ne_bytes(), 0)
    }

    /// By how much it is ahead.
    pub fn ahead_ms(&self) -> i64 {
        let bytes = std::fs::read(&self.file).unwrap_or_default();
        i64::from_ne_bytes(bytes.try_into().unwrap_or_default())
    }

    /// What a process needs in its environment to live by it.
    pub fn environment(&self) -> [(&'static str, OsString); 2] {
        [("LD_PRELOAD", self.library.clone().into()), ("STEWARD_TEST_CLOCK", self.file.clone().into())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_lives_by_the_clock_that_it_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let clock = WrongClock::new(dir.path(), "one").unwrap();
        let said = || {
            let output = Command::new("date").arg("+%s").envs(clock.environment()).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse::<i64>().unwrap()
        };
        let off = |ahead_s: i64| {
            clock.set(ahead_s * 1000).unwrap();
            let right = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            said() - i64::try_from(right).unwrap() - ahead_s
        };
        for ahead_s in [0, 86_400, -86_400] {
            assert!((0..30).contains(&off(ahead_s)), "{ahead_s}");
            assert_eq!(clock.ahead_ms(), ahead_s * 1000);
        }
    }
}
