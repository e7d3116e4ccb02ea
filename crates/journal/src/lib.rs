//! The journal: what an agent must not forget, on disk before it speaks or acts.
//!
//! What flows in are orders, steps, outcomes, events and the cursor; what flows out is what must still be done
//! after a crash. The only crate that names the embedded store (redb). It must never decide anything: it keeps
//! what it is told, all of one write or nothing of it, and says so only once it is on disk.
//!
//! A commit is appended to a log of fixed length and synced; when the log is full, what it holds goes into the
//! store in one transaction. A write that was refused counts for nothing; only if the machine goes down right then
//! may it be found after all, as if it had been made and nobody had been told.
//!
//! * [`Entry`]: an order and everything known of it.
//! * [`Journal`]: the handle; writes are gathered and committed together (group commit, one fsync for many).
//! * [`Opened`]: what was found at start.

mod disk;
mod entry;
mod error;
mod ledger;
mod log;
#[cfg(test)]
mod model_tests;
mod overlay;
#[cfg(any(test, feature = "simulate"))]
pub mod simulate;
mod store;
mod writer;

pub use disk::FILE;
pub use entry::{Entry, EventRow, Lane, Newest, OutputRow, RETENTION_AFTER_EXPIRY, Tombstone, number_of};
pub use error::JournalError;
pub use writer::{Cursor, Journal, Opened, Write};
