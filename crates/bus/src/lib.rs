//! The bus: everything between Steward and NATS.
//!
//! The only crate that names async-nats: connections, publishing, reading, keys and values, the feed of a node's
//! orders, credentials and the local broker. What flows in are the nouns of `message`; what flows out are stored
//! messages. It must never decide what an order means or whether it may run.

mod alone;
pub mod broker;
pub mod chain;
pub mod claims;
mod client;
pub mod clock;
pub mod connect;
pub mod error;
pub mod following;
pub mod keys;
mod knock;
pub mod kv;
pub mod live;
pub mod node;
pub mod read;
mod resolver;
mod service;
mod setup;
#[cfg(feature = "simulate")]
pub mod simulate;
pub mod streams;
pub mod tls;
pub mod wire;

pub use connect::{Bus, CORE_API, ConnectOptions, Credentials, EDGE_API, KNOCK_API, Link};
pub use error::BusError;
pub use knock::Knocked;
pub use live::{LiveMessage, LiveOrders, LiveStored};
pub use read::{Scan, Start, Tail};
pub use service::Service;
pub use wire::{Headers, Message, Stored};
