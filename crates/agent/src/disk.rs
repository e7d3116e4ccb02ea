//! How much room is left where the journal lies.

use std::path::Path;

/// With less than this the node complains: the journal keeps what it has, and soon accepts nothing more.
const SHORT_BYTES: u64 = 16 * 1024 * 1024;

/// A sentence, when room is getting short.
pub(crate) fn shortage(dir: &Path) -> Option<String> {
    let found = nix::sys::statvfs::statvfs(dir).ok()?;
    // What is kept back for root is room for root only.
    let left = if nix::unistd::geteuid().is_root() { found.blocks_free() } else { found.blocks_available() };
    shortage_of(left.saturating_mul(found.fragment_size()), dir)
}

fn shortage_of(left: u64, dir: &Path) -> Option<String> {
    (left < SHORT_BYTES).then(|| {
        format!(
            "the disk that holds the journal ({}) is full or nearly so: {} MiB left; when none is, orders stay at the broker",
            dir.display(),
            left / (1024 * 1024)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_little_room_is_a_complaint() {
        let dir = Path::new("/var/lib/steward");
        assert_eq!(shortage_of(SHORT_BYTES, dir), None);
        let told = shortage_of(SHORT_BYTES - 1, dir).unwrap();
        assert!(told.contains("/var/lib/steward") && told.contains("15 MiB left"), "{told}");
    }
}
