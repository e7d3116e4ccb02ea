//! The journal: what an agent must not forget, on disk before it speaks or acts.
//!
//! What flows in are orders, steps, outcomes, events and the cursor; what flows out is what must still be done
//! after a crash. The only crate that names the embedded store (redb). It must never decide anything: it keeps
//! what it is told, all of one write or nothing of it, and says so only once it is on disk.
//!
//! * [`Entry`]: an order and everything known of it.
//! * [`Journal`]: the handle; writes are gathered and committed together (group commit, one fsync for many).
//! * [`Opened`]: what was found at start.

mod entry;
mod error;
mod store;
mod writer;

pub use entry::{Entry, EventRow, Newest, OutputRow, RETENTION_AFTER_EXPIRY, SourcePosition, Tombstone};
pub use error::JournalError;
pub use writer::{Cursor, Journal, Opened, Write};
