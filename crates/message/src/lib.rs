//! The nouns and rules of Steward: names, subjects, orders, replies, states, signatures.
//!
//! Everything here is a function of its input: no clock, no network, no disk, no tokio. What flows in are
//! bytes and values; what flows out are values, bytes and sentences that say what is wrong. This crate must
//! never perform I/O, so that every rule can be tested by property and by simulation.
//!
//! Start reading at [`subject`] (where messages go), then [`order`] (what is asked), [`state`] (how it
//! stands), [`reply`] (what is answered) and [`sign`] (who said so).

pub mod admission;
pub mod audit;
pub mod change;
pub mod errorlog;
pub mod event;
pub mod expression;
pub mod facts;
pub mod id;
pub mod job;
pub mod method;
pub mod name;
pub mod order;
pub mod policy;
pub mod received;
pub mod registry;
pub mod renewal;
pub mod reply;
pub mod secret;
pub mod selector;
pub mod sign;
pub mod state;
pub mod subject;
pub mod succession;
pub mod syslog;
pub mod target;
pub mod time;
pub mod trust;
pub mod units;

pub use admission::{Admission, Decision, EnrolToken, Knock, TokenRecord};
pub use change::{Change, Spell};
pub use errorlog::{Complaint, Restraint};
pub use event::{EventBatch, EventRecord};
pub use expression::Expression;
pub use facts::Facts;
pub use id::{InstanceId, JobId, MessageId, OrderId, TokenId};
pub use job::{JobRecord, OrderChunk, SealedOrder};
pub use name::{NameError, NodeName, Token};
pub use order::{Addressee, Order, OrderError};
pub use policy::Policy;
pub use received::{Received, ReceivedBatch};
pub use registry::{LifeSign, Limit, NodeRecord, NodeState, Vitality};
pub use renewal::{Renewal, Taken};
pub use reply::{Outcome, OutputTally, Reply};
pub use secret::{SealedSecrets, SecretError, Secrets};
pub use selector::{Labels, Selector};
pub use sign::{PublicKey, Seal, SealedDocument, SignatureError};
pub use state::{History, State, Step};
pub use subject::{Kind, OutputSubject, ReplySubject, Subject};
pub use succession::{Lineage, SealedTrust, Succession, SuccessionError};
pub use target::{Pattern, TargetError};
pub use time::Timestamp;
pub use trust::{Operator, Revoked, Trust};

/// The version of the wire that this crate speaks; every signed body carries it as `v`.
pub const WIRE_VERSION: u8 = 1;
