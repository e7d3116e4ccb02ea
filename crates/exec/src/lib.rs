//! Run a program to its true end: its process tree, its output, its exit.
//!
//! In goes a [`Program`]; out come [`Chunk`]s of what it prints, while it prints it, and one [`Finished`] that says how it
//! ended. [`run()`] is the door; [`end_orphans`] cleans up after a
//! process that used it and was killed. This crate knows nothing of orders, journals or the network, never interprets what a
//! program prints, and never starts a shell of its own accord.
//!
//! # What belongs to a program
//!
//! A program and everything it starts is one *tree*. Its processes are found again by five marks: parent links in `/proc`; the
//! process group that the program leads; sessions that members opened; the variable `STEWARD_EXEC` with a random value
//! in the environment, which survives double forks and `setsid`; and the pipes that the program prints to. A process that
//! drops all of them at once (a double fork, a new session, a wiped environment, output elsewhere, and its parents gone
//! before anybody looks) escapes; only a cgroup of its own could hold that one.
//! We are deliberately no child subreaper: that is a property of the whole embedding process and would hand it the
//! orphans of everybody else's children.
//!
//! # When a program is over
//!
//! - It exits: over at that moment. What it has written by then is still delivered. Background processes that have let go of its
//!   stdout and stderr are daemons left on purpose and live on. Those that still hold them belong to the program: they get
//!   [`DRAIN`] to let go, then they are ended, and [`Finished::leftovers`] counts them.
//! - It is timed out or cancelled: the whole tree gets TERM, after [`Program::grace`] KILL, until none is left; daemons too.
//! - The future of [`run()`] is dropped: the whole tree gets KILL at once, on a thread of its own.
//!
//! # Where to start reading
//!
//! `run` is the table of contents. `start` makes the process, `user` changes who it is, `refusal` explains why it could not be;
//! `output` and `input` move the bytes, through `descriptor`; `tree` finds processes, `ending` ends them.

mod descriptor;
mod ending;
mod input;
mod orphans;
mod output;
mod program;
mod refusal;
mod run;
mod start;
mod tree;
mod user;

pub use orphans::end_orphans;
pub use program::{Chunk, End, Finished, Program, Stream, Tally};
pub use run::{DRAIN, run};
