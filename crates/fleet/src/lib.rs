//! What an operator can do: resolve targets, order, gather, enrol. Shared by the command line and the station.
//!
//! What flows in are an operator's wishes and the broker's streams; what flows out are signed orders and views of
//! how things stand. Nothing is believed that its writer did not sign. This crate must never print, read the
//! environment or know a terminal.
//!
//! Start reading at [`Fleet`], then [`order`] (what is asked), [`job`] (how it stands) and [`nodes`] (who is there).

pub mod admission;
pub mod audit;
pub mod context;
pub mod enroll;
pub mod events;
pub mod job;
pub mod nodes;
pub mod operators;
pub mod order;
pub mod policy;

mod connection;
mod error;
mod files;
mod glob;
mod identity;
mod renewals;
mod revoke;
mod root;
mod steady;
mod succession;

pub use admission::{Answered, Door, Knockers, NewToken, Pending};
pub use audit::AuditLog;
pub use connection::{Fleet, TRUST_KEY};
pub use context::{Context, Home};
pub use enroll::{Bundle, enroll, enroll_here, init, is_initialized, rotate};
pub use error::FleetError;
pub use events::{EventFilter, EventLine, Events, Newest, Since};
pub use identity::{NatsContext, key_from_command};
pub use job::{Follow, Gather, JobSummary, JobView, NodeProgress, OutputStream, Update};
pub use nodes::{FleetView, Node, NodeHistory, Selection, known};
pub use operators::{OperatorBundle, OperatorRevoked};
pub use order::{ApprovePlan, CancelPlan, Finished, OrderRequest, PlacedJob, RETRIED, RetryPlan, Terms};
pub use renewals::{Holder, KeyStanding};
pub use revoke::cut_off;
pub use root::{NewRoot, RootKey};
pub use succession::make_heir;
