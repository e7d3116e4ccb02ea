//! An agent at rest gives back the memory that its work has mapped.
//!
//! Most of what the kernel counts for an idle agent is the program's own text: each page that was ever touched, and fifteen
//! around it. Nobody needs them while nothing happens; what is needed again comes back from the page cache, or from the file.

use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MmapAdvise, madvise};

/// Counts what an agent does, and gives memory back when it has done nothing for a while.
#[derive(Debug)]
pub(crate) struct Rest {
    give_back: GiveBack,
    /// What was done at the last look.
    seen: u64,
    /// What was done when memory was given back for the last time.
    given_back: Option<u64>,
}

/// Gives memory back; returns how many bytes.
pub(crate) type GiveBack = fn() -> std::io::Result<usize>;

/// How much an agent has done.
pub(crate) type Work = AtomicU64;

impl Rest {
    pub(crate) const fn new(give_back: GiveBack) -> Self {
        Self { give_back, seen: 0, given_back: None }
    }

    /// Looks whether anything was done since the last look; if not, and if there was something since memory was last given back,
    /// gives it back.
    pub(crate) fn look(&mut self, work: &Work) {
        if self.is_due(work.load(Ordering::Relaxed)) {
            match (self.give_back)() {
                Ok(bytes) => tracing::debug!(bytes, "the agent is at rest, and the program's text is given back"),
                Err(error) => tracing::debug!(%error, "the program's text could not be given back"),
            }
        }
    }

    fn is_due(&mut self, done: u64) -> bool {
        let idle = std::mem::replace(&mut self.seen, done) == done;
        idle && self.given_back.replace(done) != Some(done)
    }
}

/// Takes the text of the program and its libraries out of this process's page tables. Returns how many bytes they span.
pub(crate) fn give_back() -> std::io::Result<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut bytes = 0;
    for (start, end) in maps.lines().filter_map(text) {
        let Some(address) = std::ptr::NonNull::new(std::ptr::without_provenance_mut(start)) else { continue };
        // SAFETY: the range is a mapping of this process that can be read and executed but not written, so its pages are as they
        // stand in the file: dropped, they come back word for word at the next access.
        #[allow(unsafe_code)]
        unsafe { madvise(address, end - start, MmapAdvise::MADV_DONTNEED) }?;
        bytes += end - start;
    }
    Ok(bytes)
}

/// Where a line of `/proc/self/maps` tells of text from a file (proc(5)).
fn text(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, rights, path) = (words.next()?, words.next()?, words.nth(3)?);
    let (start, end) = range.split_once('-')?;
    let range = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (rights == "r-xp" && path.starts_with('/') && range.0 < range.1).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_from_files_is_given_back() {
        let found = |line: &str| text(line);
        let file = "55d0-55e0 r-xp 00279000 08:01 1234   /usr/bin/steward";
        assert_eq!(found(file), Some((0x55d0, 0x55e0)));
        assert_eq!(found(&file.replace("r-xp", "r--p")), None, "relocated data would be lost");
        assert_eq!(found(&file.replace("r-xp", "rw-p")), None);
        assert_eq!(found("7ffd-7fff r-xp 00000000 00:00 0   [vdso]"), None);
        assert_eq!(found("7ffd-7fff r-xp 00000000 00:00 0"), None);
        assert_eq!(found("nonsense"), None);
    }

    #[test]
    fn memory_is_given_back_once_for_each_rest() {
        let mut rest = Rest::new(|| Ok(0));
        let due: Vec<bool> = [0, 0, 0, 3, 3, 3, 4, 5, 5].into_iter().map(|done| rest.is_due(done)).collect();
        assert_eq!(due, [true, false, false, false, true, false, false, false, true]);
    }

    #[test]
    fn what_was_given_back_is_there_again() {
        assert!(give_back().unwrap() > 0);
        assert_eq!(text("0-1 r-xp 0 0:0 0 /x"), Some((0, 1)));
    }
}
