//! Moves what a program prints from its two pipes into chunks.
//!
//! Bytes flow in from two pipes and out to one channel. One reader serves both pipes in turn, so that the order of appearance
//! stays. The first bytes after a silence leave at once; what follows within [`GATHER`] is gathered. Never holds more
//! than a few chunks: while the channel is full nothing is read, and the child waits. What is beyond the cap is read, counted
//! and forgotten. The tally counts a byte as kept when the channel has taken it, not before.

use std::collections::VecDeque;
use std::future::{self, poll_fn};
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use sha2::{Digest, Sha256};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{Sender, error::TrySendError};
use tokio::time::{Instant, sleep_until, timeout};

use crate::descriptor;
use crate::program::{Chunk, Stream, Tally};

/// The most bytes in one chunk, and in one read.
const CHUNK: usize = 32 * 1024;

/// The most bytes in the very first read.
const FIRST_READ: usize = 4 * 1024;

/// How long bytes may wait for more to come, once a chunk has been sent.
const GATHER: Duration = Duration::from_millis(20);

/// One of the two streams.
struct Source {
    stream: Stream,
    /// `None` once it is at its end, or abandoned.
    pipe: Option<AsyncFd<OwnedFd>>,
    /// What lay in the pipe when the program exited and has not been read yet.
    owed: u64,
    /// Bytes of the cap that are still free.
    room: u64,
    total: u64,
    kept: u64,
    hash: Sha256,
}

impl Source {
    fn new(stream: Stream, pipe: AsyncFd<OwnedFd>, room: u64) -> Self {
        Self { stream, pipe: Some(pipe), owed: 0, room, total: 0, kept: 0, hash: Sha256::new() }
    }

    /// Reads once into `scratch`, which it overwrites. Zero bytes are the end of the stream.
    fn poll_read(&self, cx: &mut Context<'_>, scratch: &mut Vec<u8>) -> Poll<usize> {
        let Some(pipe) = &self.pipe else { return Poll::Pending };
        // Most programs print little: room grows when a read has filled it.
        let room = if scratch.len() == scratch.capacity() { (scratch.len() * 8).clamp(FIRST_READ, CHUNK) } else { 0 };
        scratch.clear();
        scratch.reserve_exact(room);
        loop {
            let Poll::Ready(ready) = pipe.poll_read_ready(cx) else { return Poll::Pending };
            let Ok(mut ready) = ready else { return Poll::Ready(0) }; // the runtime is shutting down
            match ready.try_io(|pipe| Ok(rustix::io::read(pipe, spare_capacity(scratch))?)) {
                Ok(Ok(length)) => return Poll::Ready(length),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return Poll::Ready(0), // a pipe has no other errors that a second try would mend
                Err(_would_block) => {}
            }
        }
    }

    fn tally(self) -> Tally {
        Tally { total: self.total, kept: self.kept, sha256: self.hash.finalize().into() }
    }
}

/// Both streams of one program on their way to the receiver.
pub(crate) struct Output {
    sources: [Source; 2],
    /// Which source is asked first next time.
    turn: usize,
    scratch: Vec<u8>,
    /// Still growing, until `due`.
    open: Vec<u8>,
    /// The source that `open` came from.
    open_from: usize,
    due: Instant,
    /// Ready to leave.
    closed: VecDeque<(usize, Bytes)>,
    /// `None` once the receiver is gone.
    to: Option<Sender<Chunk>>,
    seq: u32,
    /// Sources end when nothing is owed any more, rather than when the last holder closes them.
    only_owed: bool,
}

impl Output {
    /// Keeps at most `max_output` bytes of each stream.
    pub(crate) fn new(stdout: AsyncFd<OwnedFd>, stderr: AsyncFd<OwnedFd>, max_output: u64, to: Sender<Chunk>) -> Self {
        Self {
            sources: [Source::new(Stream::Stdout, stdout, max_output), Source::new(Stream::Stderr, stderr, max_output)],
            turn: 0,
            scratch: Vec::new(),
            open: Vec::new(),
            open_from: 0,
            due: Instant::now(),
            closed: VecDeque::new(),
            to: Some(to),
            seq: 0,
            only_owed: false,
        }
    }

    /// Reads and hands over until both streams are at their end, then waits forever. May be dropped and called again.
    pub(crate) async fn pump_forever(&mut self) {
        self.pump().await;
        future::pending().await
    }

    /// After the program is over: reads what it has left in the pipes, however long the receiver takes, and whatever else comes
    /// within `moment`. Says whether anybody still holds a pipe. May be dropped and called again.
    pub(crate) async fn drain(&mut self, moment: Duration) -> bool {
        for source in &mut self.sources {
            if let Some(pipe) = &source.pipe {
                source.owed = rustix::io::ioctl_fionread(pipe.get_ref()).unwrap_or(0);
            }
        }
        if timeout(moment, self.pump()).await.is_ok() {
            return false;
        }
        let held = self.sources.iter().any(|source| source.pipe.is_some());
        self.only_owed = true;
        self.pump().await;
        held
    }

    /// The numbers of the pipes that are not at their end, as `/proc/PID/fd` shows them.
    pub(crate) fn pipes(&self) -> Vec<u64> {
        self.sources.iter().filter_map(|source| source.pipe.as_ref()).filter_map(descriptor::number).collect()
    }

    /// What became of both streams, and the number of chunks handed over. What the receiver will not take now is dropped.
    pub(crate) fn close(mut self) -> (Tally, Tally, u32) {
        self.close_chunk();
        self.offer();
        let [stdout, stderr] = self.sources;
        (stdout.tally(), stderr.tally(), self.seq)
    }

    /// Reads and hands over until both streams are at their end. Every `await` in it may be dropped without loss.
    async fn pump(&mut self) {
        loop {
            if self.at_end() {
                self.close_chunk();
            }
            self.offer();
            if !self.closed.is_empty() {
                self.wait_for_room().await;
                continue;
            }
            if self.at_end() {
                return;
            }
            let due = self.due;
            let read = tokio::select! {
                read = Self::read(&self.sources, self.turn, self.only_owed, &mut self.scratch) => Some(read),
                () = sleep_until(due), if !self.open.is_empty() => None,
            };
            match read {
                Some((from, length)) => self.take(from, length),
                None => self.close_chunk(),
            }
        }
    }

    /// Whether nothing more is to be read.
    fn at_end(&self) -> bool {
        let ended = |source: &Source| source.pipe.is_none() || (self.only_owed && source.owed == 0);
        self.sources.iter().all(ended)
    }

    /// Waits for the next bytes of either stream, asking that of `turn` first; says whose and how many there are in `scratch`.
    async fn read(sources: &[Source; 2], turn: usize, only_owed: bool, scratch: &mut Vec<u8>) -> (usize, usize) {
        poll_fn(|cx| {
            for from in [turn, 1 - turn] {
                let wanted = !only_owed || sources[from].owed > 0;
                if wanted && let Poll::Ready(length) = sources[from].poll_read(cx, scratch) {
                    return Poll::Ready((from, length));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Takes in what has been read into `scratch`.
    fn take(&mut self, from: usize, length: usize) {
        self.turn = 1 - from;
        let source = &mut self.sources[from];
        if length == 0 {
            source.pipe = None;
            return;
        }
        source.total += length as u64;
        source.owed = source.owed.saturating_sub(length as u64);
        let keep = source.room.min(length as u64) as usize;
        source.room -= keep as u64;
        if keep == 0 || self.to.is_none() {
            return;
        }
        if from != self.open_from {
            self.close_chunk();
        }
        let scratch = mem::take(&mut self.scratch);
        let (now, later) = scratch[..keep].split_at(keep.min(CHUNK - self.open.len()));
        self.grow(from, now);
        if !later.is_empty() {
            self.close_chunk();
            self.grow(from, later);
        }
        self.scratch = scratch;
        if self.open.len() == CHUNK || self.due <= Instant::now() {
            self.close_chunk();
        }
    }

    /// Adds to the open chunk; there is room for it.
    fn grow(&mut self, from: usize, bytes: &[u8]) {
        self.open_from = from;
        self.open.extend_from_slice(bytes);
    }

    /// The open chunk, if there is one, is ready to leave.
    fn close_chunk(&mut self) {
        if !self.open.is_empty() {
            // A boxed slice, so that no receiver pays for spare room.
            let bytes = mem::take(&mut self.open).into_boxed_slice();
            self.closed.push_back((self.open_from, Bytes::from(bytes)));
            self.due = Instant::now() + GATHER;
        }
    }

    /// Hands over as many chunks as the channel takes at once.
    fn offer(&mut self) {
        while let Some((from, bytes)) = self.closed.pop_front() {
            let Some(to) = &self.to else { continue };
            let stream = self.sources[from].stream;
            let chunk = Chunk { seq: self.seq, stream, bytes: bytes.clone() };
            match to.try_send(chunk) {
                Ok(()) => self.count(from, &bytes),
                Err(TrySendError::Full(_)) => {
                    self.closed.push_front((from, bytes));
                    return;
                }
                Err(TrySendError::Closed(_)) => self.to = None,
            }
        }
    }

    /// Waits until the channel takes a chunk, and gives it the first one; or until there is no receiver.
    async fn wait_for_room(&mut self) {
        let Some(to) = &self.to else { return };
        let Ok(permit) = to.reserve().await else {
            self.to = None;
            return;
        };
        if let Some((from, bytes)) = self.closed.pop_front() {
            permit.send(Chunk { seq: self.seq, stream: self.sources[from].stream, bytes: bytes.clone() });
            self.count(from, &bytes);
        }
    }

    /// Books a chunk that has been handed over.
    fn count(&mut self, from: usize, bytes: &Bytes) {
        let source = &mut self.sources[from];
        source.kept += bytes.len() as u64;
        source.hash.update(bytes);
        self.seq = self.seq.saturating_add(1);
    }
}
