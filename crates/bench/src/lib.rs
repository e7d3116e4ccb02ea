//! Measures Steward beside its limits: bare program starts, bare acknowledged publishes, bare disk syncs.
//!
//! Each measurement but those of the policy and of targets starts a system of its own (`steward up` in a temporary home), takes its limits in the same
//! run on the same machine, and reports both. What flows out are figures with their units in their names. It must
//! never report a figure without the limit that it is to be judged by.

mod connect;
mod events;
mod fleet;
mod limits;
mod link;
mod made_up;
mod node;
mod policy;
mod rest;
mod roundtrip;
mod select;
mod station;
mod system;
mod units;

pub use connect::{ConnectFigures, connect};
pub use events::{EventsFigures, events, write_log};
pub use fleet::{FleetFigures, fleet};
pub use link::{LinkFigures, link};
pub use node::{NodeFigures, node};
pub use policy::{PolicyFigures, policy};
pub use rest::{RestFigures, rest};
pub use roundtrip::{RoundtripFigures, roundtrip};
pub use select::{SelectFigures, select};
pub use station::{StationFigures, station};
pub use system::BenchError;
pub use units::units;
