//! What is asked for and what is answered: plain data, no I/O.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};

/// What to run, as whom, where, and within which bounds.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program and its arguments. A name without `/` is looked up in the `PATH` that the child gets; a relative path with `/`
    /// counts from `cwd`. No shell is involved.
    pub argv: Vec<OsString>,
    /// Added to the environment that is inherited from this process; these win, also over what `user` sets. Where `user` makes it
    /// somebody else, nothing but the language and the time zone is inherited.
    pub env: Vec<(OsString, OsString)>,
    /// Where it runs; `None` is where this process runs.
    pub cwd: Option<PathBuf>,
    /// The local user to run as: uid, gid and supplementary groups, and `HOME`, `USER`, `LOGNAME` and `SHELL` with them. Whoever
    /// is not this process's own user gains no rights again by what it starts (`no_new_privs`). Needs root,
    /// unless it is the user that this process runs as anyway. `None` changes nothing.
    pub user: Option<String>,
    /// What it reads; `None` is `/dev/null`. A program that does not read it all is not disturbed.
    pub stdin: Option<Bytes>,
    /// How long it may run before its whole tree is ended. `Duration::MAX` is no limit. Default 60 s.
    pub timeout: Duration,
    /// Between TERM and KILL, when the tree has to be ended. Default 2 s.
    pub grace: Duration,
    /// Bytes kept of each stream; the rest is read and counted only. Default 1 MiB.
    pub max_output: u64,
}

impl Default for Program {
    fn default() -> Self {
        Self {
            argv: Vec::new(),
            env: Vec::new(),
            cwd: None,
            user: None,
            stdin: None,
            timeout: Duration::from_secs(60),
            grace: Duration::from_secs(2),
            max_output: 1024 * 1024,
        }
    }
}

impl Program {
    /// This program with these arguments, everything else by default.
    pub fn new<A: Into<OsString>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// Where a program printed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

/// A piece of what a program printed: at most 32 KiB, never empty, cut anywhere (also inside a character).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Counts over both streams from 0, without gaps, in order of appearance. Two writes to different streams that both lie in
    /// their pipes before we get to read count as stdout first.
    pub seq: u32,
    /// Where it was printed.
    pub stream: Stream,
    /// The bytes, as they were printed.
    pub bytes: Bytes,
}

/// What became of one stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Bytes that were printed. After a time-out or cancel, those that were read until then.
    pub total: u64,
    /// Bytes that were handed to the receiver in chunks.
    pub kept: u64,
    /// SHA-256 over the kept bytes.
    pub sha256: [u8; 32],
}

impl Tally {
    /// Whether anything was printed that was not handed on.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.total > self.kept
    }
}

impl Default for Tally {
    /// Of a stream that nothing was printed to.
    fn default() -> Self {
        Self { total: 0, kept: 0, sha256: Sha256::digest([]).into() }
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tally {{ total: {}, kept: {}, sha256: ", self.total, self.kept)?;
        self.sha256.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(" }")
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code, 0 to 255. (-1 if somebody else took the exit status away, as happens only in a process
    /// that ignores SIGCHLD.)
    Exited(i32),
    /// By this signal, and not one of ours.
    Signalled(i32),
    /// Its time was up, and its tree was ended.
    TimedOut,
    /// The token was cancelled, and its tree was ended (or not even started).
    Cancelled,
    /// It never ran. A sentence that names what was tried, what was found and what to do about it.
    NotStarted(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Signalled(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "ended by signal {number} ({})", signal.as_str()),
                Err(_) => write!(f, "ended by signal {number}"),
            },
            Self::TimedOut => f.write_str("timed out"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::NotStarted(reason) => write!(f, "not started: {reason}"),
        }
    }
}

/// Everything about a program that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// What became of its stdout.
    pub stdout: Tally,
    /// What became of its stderr.
    pub stderr: Tally,
    /// How many chunks were handed to the receiver.
    pub chunks: u32,
    /// After an exit: background processes that still held its output and were ended. After a time-out or cancel: processes, the
    /// program itself included, that outlived TERM and the grace and got KILL.
    pub leftovers: u32,
    /// Processes of the tree that could not be ended at all: stuck in the kernel, or belonging to somebody we may not signal.
    pub survivors: u32,
    /// From the start of the program to its exit, or to the end of its tree. Zero if it never ran.
    pub took: Duration,
}

impl Finished {
    /// Of a program that never ran.
    pub(crate) fn without_running(end: End) -> Self {
        Self {
            end,
            stdout: Tally::default(),
            stderr: Tally::default(),
            chunks: 0,
            leftovers: 0,
            survivors: 0,
            took: Duration::ZERO,
        }
    }
}
