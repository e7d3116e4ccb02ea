//! The edge unit: verify, authorize, run, record, report.
//!
//! What flows in are orders from the bus and lines from event sources; what flows out are replies, output, events
//! and life signs. Everything that must survive goes through the journal first. The agent must never trust the
//! broker or the station: only signatures count, and only the keys that the fleet's root has signed.
//!
//! The way of an order: `intake` takes it from the bus, `judge` decides (pure), the journal keeps it,
//! `process` runs it by a `method`, `report` tells how it stands; `in_hand` says who may still withdraw or end it. Beside it run `presence` (life signs),
//! `facts` (what the system is like) and `source` (events). `run` starts all of it and sees all of it end.

mod audit;
mod begin;
mod changes;
pub mod config;
mod counters;
mod disk;
mod facts;
mod fleettime;
mod halt;
mod http;
mod in_hand;
mod intake;
pub mod judge;
pub mod knock;
pub mod light;
mod method;
mod options;
mod outbox;
mod past;
mod policy;
mod presence;
mod process;
mod receiving;
mod renewal;
mod report;
mod rest;
mod run;
#[cfg(test)]
mod simulation;
mod source;
mod trust;
mod twin;

pub use options::{AgentError, AtStop, LIFE_SIGN_INTERVAL, Options};
pub use run::run;

/// The version that this agent reports.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
