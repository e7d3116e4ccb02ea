//! Following a file: whole lines as they are appended, across rotation, truncation and restarts.
//!
//! A file is known by device, inode and a fingerprint of its first bytes: an inode alone is used again. A file
//! that was renamed away is read to its end before the new one of that name is opened.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use data_encoding::HEXLOWER;
use journal::SourcePosition;
use sha2::{Digest, Sha256};

/// The most bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// The longest line; longer ones are cut into pieces of this length.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// How many of the first bytes make the fingerprint.
const HEAD_BYTES_MAX: u64 = 256;

/// A file that is followed.
pub(super) struct Follower {
    path: PathBuf,
    /// Where reading ended last time, until the file has been found again.
    resume: Option<SourcePosition>,
    open: Option<Open>,
}

struct Open {
    file: File,
    inode: u64,
    device: u64,
    /// Behind the last byte read.
    offset: u64,
    /// Read, but no whole line yet.
    partial: Vec<u8>,
}

impl Follower {
    pub(super) fn new(path: PathBuf, resume: Option<SourcePosition>) -> Self {
        Self { path, resume, open: None }
    }

    /// The lines that are new since the last call; none when there is nothing new.
    pub(super) fn poll(&mut self) -> io::Result<Vec<Vec<u8>>> {
        if self.open.is_none() {
            self.open = Some(self.find()?);
        }
        let Some(open) = &mut self.open else { return Ok(Vec::new()) };
        let mut buffer = vec![0; READ_BYTES];
        let read = open.file.read(&mut buffer)?;
        if read > 0 {
            open.offset += read as u64;
            return Ok(open.split(&buffer[..read]));
        }
        // At its end: is it still the file of this name?
        let last = match std::fs::metadata(&self.path) {
            Ok(now) if (now.ino(), now.dev()) == (open.inode, open.device) => {
                if now.len() >= open.offset {
                    return Ok(Vec::new());
                }
                // Truncated in place: what was read of a line without an end will not be continued.
                open.file.seek(SeekFrom::Start(0))?;
                open.offset = 0;
                std::mem::take(&mut open.partial)
            }
            Ok(_) => {
                let last = std::mem::take(&mut open.partial);
                self.open = None;
                last
            }
            // Renamed away, and nothing new yet: what is still written to it is read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        self.resume = None;
        Ok(if last.is_empty() { Vec::new() } else { vec![last] })
    }

    /// Behind the last whole line returned, to go on from after a restart.
    pub(super) fn position(&self) -> Option<SourcePosition> {
        let open = self.open.as_ref()?;
        let offset = open.offset - open.partial.len() as u64;
        let head_bytes = offset.min(HEAD_BYTES_MAX);
        let head_sha256 = fingerprint(&open.file, head_bytes).ok()?;
        Some(SourcePosition { inode: open.inode, device: open.device, offset, head_sha256, head_bytes })
    }

    fn find(&mut self) -> io::Result<Open> {
        let mut file = File::open(&self.path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is not a regular file"));
        }
        let (inode, device) = (metadata.ino(), metadata.dev());
        let offset = match self.resume.take() {
            Some(known)
                if (known.inode, known.device) == (inode, device)
                    && metadata.len() >= known.offset
                    && fingerprint(&file, known.head_bytes).is_ok_and(|head| head == known.head_sha256) =>
            {
                known.offset
            }
            _ => 0,
        };
        file.seek(SeekFrom::Start(offset))?;
        Ok(Open { file, inode, device, offset, partial: Vec::new() })
    }
}

impl Open {
    /// Adds bytes to the line under way; returns the lines that are whole now, without their ends.
    fn split(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(part);
            if self.partial.ends_with(b"\n") {
                self.partial.pop();
                if self.partial.ends_with(b"\r") {
                    self.partial.pop();
                }
                self.cut(&mut lines);
                lines.push(std::mem::take(&mut self.partial));
            } else {
                self.cut(&mut lines);
            }
        }
        lines
    }

    /// Takes whole pieces off a line that is too long.
    fn cut(&mut self, lines: &mut Vec<Vec<u8>>) {
        while self.partial.len() > LINE_BYTES_MAX {
            let rest = self.partial.split_off(LINE_BYTES_MAX);
            lines.push(std::mem::replace(&mut self.partial, rest));
        }
    }
}

fn fingerprint(file: &File, bytes: u64) -> io::Result<String> {
    use std::os::unix::fs::FileExt;
    let mut head = vec![0; usize::try_from(bytes.min(HEAD_BYTES_MAX)).unwrap_or(0)];
    file.read_exact_at(&mut head, 0)?;
    Ok(HEXLOWER.encode(&Sha256::digest(&head)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn append(path: &std::path::Path, text: &str) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn drain(follower: &mut Follower) -> Vec<String> {
        let mut lines = Vec::new();
        let mut idle = 0;
        while idle < 3 {
            let more = follower.poll().unwrap_or_default();
            idle = if more.is_empty() { idle + 1 } else { 0 };
            lines.extend(more.into_iter().map(|line| String::from_utf8(line).unwrap()));
        }
        lines
    }

    #[test]
    fn only_whole_lines_are_reported_and_each_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut follower = Follower::new(path.clone(), None);
        assert_eq!(follower.poll().unwrap_err().kind(), io::ErrorKind::NotFound);
        append(&path, "one\ntwo\r\nthr");
        assert_eq!(drain(&mut follower), ["one", "two"]);
        append(&path, "ee\n");
        assert_eq!(drain(&mut follower), ["three"]);
    }

    #[test]
    fn a_rotated_file_is_read_to_its_end_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        append(&path, "one\n");
        let mut follower = Follower::new(path.clone(), None);
        assert_eq!(drain(&mut follower), ["one"]);
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        append(&dir.path().join("log.1"), "two\n");
        assert_eq!(drain(&mut follower), ["two"]);
        append(&path, "three\n");
        assert_eq!(drain(&mut follower), ["three"]);
    }

    #[test]
    fn a_truncated_file_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        append(&path, "one\ntwo\n");
        let mut follower = Follower::new(path.clone(), None);
        assert_eq!(drain(&mut follower), ["one", "two"]);
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(drain(&mut follower), ["new"]);
    }

    #[test]
    fn a_restart_goes_on_behind_the_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        append(&path, "one\ntw");
        let mut follower = Follower::new(path.clone(), None);
        assert_eq!(drain(&mut follower), ["one"]);
        let position = follower.position();
        append(&path, "o\n");
        let mut again = Follower::new(path.clone(), position.clone());
        assert_eq!(drain(&mut again), ["two"]);
        // Another file that got the same inode is another file.
        std::fs::write(&path, "ONE\ntwo\nthree\n").unwrap();
        let mut other = Follower::new(path, position);
        assert_eq!(drain(&mut other), ["ONE", "two", "three"]);
    }

    #[test]
    fn an_endless_line_is_cut_into_bearable_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        append(&path, &"x".repeat(3 * LINE_BYTES_MAX + 5));
        append(&path, "\n");
        let mut follower = Follower::new(path, None);
        let lengths: Vec<usize> = drain(&mut follower).iter().map(String::len).collect();
        assert_eq!(lengths.iter().sum::<usize>(), 3 * LINE_BYTES_MAX + 5);
        assert!(lengths.iter().all(|length| *length <= LINE_BYTES_MAX));
    }
}
