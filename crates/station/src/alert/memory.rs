//! What alerts remember, on disk: one file of JSON, written whole beside the old one and put in its place.

use std::io;
use std::path::Path;

use super::decide::Memory;
use receive::files;

/// Reads it; nothing is remembered if there is none.
pub(super) fn load(path: &Path) -> Result<Memory, String> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            format!("{} is damaged ({error}): remove it, and what is wrong just now is told again", path.display())
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Memory::default()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Writes it; when this returns, it is on the disk.
pub(super) fn save(path: &Path, memory: &Memory) -> Result<(), String> {
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new(".")))?;
        files::replace(path, &serde_json::to_vec(memory)?)
    };
    write().map_err(|error| format!("{} cannot be written: {error}", path.display()))
}
