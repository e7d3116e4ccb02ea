//! Feeds a program's stdin.
//!
//! Bytes flow in at the start and leave as fast as the child reads; then its stdin is closed. Never blocks, and never
//! minds a child that does not read.

use std::future;
use std::io;
use std::os::fd::OwnedFd;

use bytes::{Buf, Bytes};
use tokio::io::unix::AsyncFd;

/// The writing end of a child's stdin and what is still to be written.
pub(crate) struct Input {
    pipe: Option<AsyncFd<OwnedFd>>,
    rest: Bytes,
}

impl Input {
    /// Nothing is fed without a pipe.
    pub(crate) fn new(pipe: Option<AsyncFd<OwnedFd>>, bytes: Option<Bytes>) -> Self {
        Self { pipe, rest: bytes.unwrap_or_default() }
    }

    /// Writes all there is, closes the pipe, and never returns. May be dropped and called again.
    pub(crate) async fn feed(&mut self) {
        while let Some(pipe) = &self.pipe
            && !self.rest.is_empty()
        {
            let Ok(mut ready) = pipe.writable().await else { break };
            match ready.try_io(|pipe| Ok(rustix::io::write(pipe, &self.rest)?)) {
                Ok(Ok(written)) => self.rest.advance(written),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => break, // the child closed its stdin: it has read what it wanted
                Err(_would_block) => {}
            }
        }
        self.pipe = None;
        future::pending().await
    }
}
