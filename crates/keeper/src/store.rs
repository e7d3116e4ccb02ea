//! What a program printed and nobody has taken yet.
//!
//! Numbered pieces flow in and stay until they are taken: in memory up to a bound, beyond it in a file that has no name (a killed
//! keeper leaves nothing behind). How much there can be in all is bounded by what is kept of a program's output.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use exec::Stream;

/// The most bytes of one program that stay in memory.
pub(crate) const MEMORY_MAX: usize = 64 * 1024;
/// The most bytes of all programs together that do.
const MEMORY_ALL_MAX: usize = 4 * 1024 * 1024;

struct Piece {
    stream: Stream,
    length: usize,
    place: Place,
}

enum Place {
    Memory(Bytes),
    File(u64),
}

/// The pieces of one program.
pub(crate) struct Store {
    first: u32,
    pieces: VecDeque<Piece>,
    in_memory: usize,
    /// What all programs have in memory.
    all: Arc<AtomicUsize>,
    file: Option<File>,
    /// Where the next piece goes.
    end: u64,
    in_file: usize,
}

impl Store {
    pub(crate) fn new(all: Arc<AtomicUsize>) -> Self {
        Self { first: 0, pieces: VecDeque::new(), in_memory: 0, all, file: None, end: 0, in_file: 0 }
    }

    /// The number of the first piece that has not been taken.
    pub(crate) fn first(&self) -> u32 {
        self.first
    }

    /// The number that the next piece gets.
    #[cfg(test)]
    pub(crate) fn next(&self) -> u32 {
        self.first.saturating_add(u32::try_from(self.pieces.len()).unwrap_or(u32::MAX))
    }

    /// Keeps a piece, which gets the next number.
    ///
    /// # Errors
    /// When there is no room on disk for what memory should not hold. It is kept in memory then, but nothing more should come.
    pub(crate) fn push(&mut self, stream: Stream, bytes: Bytes, dir: &Path) -> io::Result<()> {
        let length = bytes.len();
        let fits = self.in_memory + length <= MEMORY_MAX
            && self.all.load(Ordering::Relaxed).saturating_add(length) <= MEMORY_ALL_MAX;
        let written = if fits { Ok(None) } else { self.write(&bytes, dir).map(Some) };
        let (place, result) = match written {
            Ok(Some(at)) => (Place::File(at), Ok(())),
            Ok(None) => (Place::Memory(bytes), Ok(())),
            Err(error) => (Place::Memory(bytes), Err(error)),
        };
        match place {
            Place::Memory(_) => {
                self.in_memory += length;
                self.all.fetch_add(length, Ordering::Relaxed);
            }
            Place::File(_) => self.in_file += 1,
        }
        self.pieces.push_back(Piece { stream, length, place });
        result
    }

    fn write(&mut self, bytes: &[u8], dir: &Path) -> io::Result<u64> {
        let file = match self.file.take() {
            Some(file) => file,
            // Without a name: its room is free when it is closed, whoever closes it.
            None => tempfile::tempfile_in(dir)?,
        };
        let at = self.end;
        let written = file.write_all_at(bytes, at);
        self.file = Some(file);
        written?;
        self.end += bytes.len() as u64;
        Ok(at)
    }

    /// How long a piece is.
    pub(crate) fn length(&self, number: u32) -> Option<usize> {
        self.piece(number).map(|piece| piece.length)
    }

    /// A piece that has not been taken.
    ///
    /// # Errors
    /// When it cannot be read back.
    pub(crate) fn get(&self, number: u32) -> io::Result<Option<(Stream, Bytes)>> {
        let Some(piece) = self.piece(number) else { return Ok(None) };
        let bytes = match (&piece.place, &self.file) {
            (Place::Memory(bytes), _) => bytes.clone(),
            (Place::File(at), Some(file)) => {
                let mut bytes = vec![0; piece.length];
                file.read_exact_at(&mut bytes, *at)?;
                bytes.into()
            }
            (Place::File(_), None) => return Ok(None),
        };
        Ok(Some((piece.stream, bytes)))
    }

    fn piece(&self, number: u32) -> Option<&Piece> {
        self.pieces.get(number.checked_sub(self.first)? as usize)
    }

    /// Forgets the pieces below this number.
    pub(crate) fn taken(&mut self, below: u32) {
        while self.first < below
            && let Some(piece) = self.pieces.pop_front()
        {
            self.first += 1;
            match piece.place {
                Place::Memory(_) => self.release(piece.length),
                Place::File(_) => self.in_file -= 1,
            }
        }
        if self.in_file == 0 && self.end > 0 {
            // The room on disk is free again; the next piece begins a new file if need be.
            (self.file, self.end) = (None, 0);
        }
    }

    fn release(&mut self, length: usize) {
        self.in_memory -= length;
        self.all.fetch_sub(length, Ordering::Relaxed);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.release(self.in_memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_in_order_from_memory_and_file_and_free_their_room() {
        let dir = tempfile::tempdir().unwrap();
        let all = Arc::new(AtomicUsize::new(0));
        let mut store = Store::new(Arc::clone(&all));
        for number in 0..6_u8 {
            store.push(Stream::Stdout, vec![number; 30_000].into(), dir.path()).unwrap();
        }
        assert_eq!((store.first(), store.next(), all.load(Ordering::Relaxed)), (0, 6, 60_000));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file with a name");
        for number in 0..6_u8 {
            let (_, bytes) = store.get(number.into()).unwrap().unwrap();
            assert_eq!(bytes, vec![number; 30_000]);
        }
        store.taken(1);
        assert!(store.get(0).unwrap().is_none() && store.get(5).unwrap().is_some());
        store.push(Stream::Stderr, Bytes::from("later"), dir.path()).unwrap();
        assert_eq!(store.get(6).unwrap().unwrap(), (Stream::Stderr, Bytes::from("later")));
        store.taken(7);
        assert_eq!((all.load(Ordering::Relaxed), store.file.is_none(), store.next()), (0, true, 7));
    }

    #[test]
    fn without_room_on_disk_a_piece_is_kept_all_the_same() {
        let mut store = Store::new(Arc::default());
        let nowhere = Path::new("/proc/no/such/place");
        store.push(Stream::Stdout, vec![1; MEMORY_MAX].into(), nowhere).unwrap();
        store.push(Stream::Stdout, Bytes::from("one more"), nowhere).unwrap_err();
        assert_eq!(store.get(1).unwrap().unwrap().1, Bytes::from("one more"));
    }
}
