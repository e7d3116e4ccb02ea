//! Hands file descriptors to the runtime, so that their readiness can be awaited.
//!
//! The one place that vouches for them. Never reads or writes.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One of our ends of a pipe, from now on non-blocking (the other end is not touched by that).
pub(crate) fn pipe(end: impl Into<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    let end = end.into();
    rustix::io::ioctl_fionbio(&end, true)?;
    register(end, interest)
}

/// The number of a pipe, as `/proc/PID/fd` shows it.
pub(crate) fn number(pipe: &AsyncFd<OwnedFd>) -> Option<u64> {
    Some(rustix::fs::fstat(pipe.get_ref()).ok()?.st_ino)
}

/// Any descriptor that can be polled.
pub(crate) fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open until it is dropped and is the same descriptor all the time.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    registered.map_err(io::Error::from)
}
