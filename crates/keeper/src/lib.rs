//! The keeper: a process beside the agent that holds its programs, so that they outlive it.
//!
//! In goes what is to be run, under an id; out come what it prints, in numbered pieces, and how it ended. What has not been
//! taken is kept: in memory, beyond a bound in a file, until the agent has it or its successor asks for it. The keeper
//! knows nothing of orders, of the journal or of the network, and decides nothing: it runs what it is told, and at most once
//! for each id. It must never hold anything that keeps the next agent from starting.
//!
//! # One keeper a state directory
//!
//! The agent starts it with the first program ([`Client`]), in a session of its own; it listens on `run/keeper.sock` below the
//! state directory and holds `run/keeper.lock`. It serves one agent at a time: the latest to connect. It ends when it is told
//! to and holds nothing, or when it holds nothing and no agent has been there for a minute; on SIGTERM it ends its programs first.
//!
//! # At most once
//!
//! * A second `start` of an id that is held starts nothing.
//! * When an agent connects, what its predecessor had written and the keeper had not read is dropped before the new one is
//!   told what is held. So "not held" means that it will never begin.
//! * Pieces keep their numbers, whoever asks for them.
//!
//! # Where to start reading
//!
//! `wire` is what the two say to each other, `frame` how it travels. On the keeper's side `serve` is the table of contents,
//! `held` one program, `store` its output. On the agent's side there is `client`.

mod client;
mod frame;
mod held;
mod place;
mod script;
mod secrets;
mod serve;
#[cfg(feature = "simulate")]
pub mod simulate;
mod store;
mod wire;

pub use client::{Client, Event, KeeperError, Launch, ORDER_VARIABLE, Run, end_orphans};
pub use place::set_apart;
pub use secrets::SECRETS_VARIABLE;
pub use serve::serve;
pub use wire::{End, Finished, Id, Program, Script, Secret, Stream, Tally};
