//! What a page shows: the fleet at one moment, taken out of the read model.

use std::time::Duration;

use fleet::{EventLine, JobSummary, Node};
use message::{NodeName, NodeState, Timestamp};

/// Whether what is shown can be relied on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// It follows the broker's streams.
    Live,
    /// It does not any more.
    Stale {
        /// Why: a sentence.
        reason: String,
        /// How long ago it was last confirmed.
        age: Duration,
    },
    /// There is nothing to show yet.
    Empty {
        /// Why: a sentence.
        reason: String,
    },
}

/// The fleet at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The station's name.
    pub station: NodeName,
    /// Where the broker is, without passwords.
    pub server: String,
    /// Whether it can be relied on.
    pub freshness: Freshness,
    /// The broker's time.
    pub now: Timestamp,
    /// The broker's time for which the states are told, if there are any.
    pub as_of: Option<Timestamp>,
    /// How many nodes are in each state, of all nodes.
    pub node_counts: Vec<(NodeState, usize)>,
    /// Nodes; not necessarily all.
    pub nodes: Vec<Node>,
    /// How many jobs are at hand.
    pub job_total: usize,
    /// The newest jobs, newest first.
    pub jobs: Vec<JobSummary>,
    /// The newest events, newest first.
    pub events: Vec<EventLine>,
}

impl Snapshot {
    /// How many nodes there are.
    pub fn node_total(&self) -> usize {
        self.node_counts.iter().map(|(_, count)| count).sum()
    }
}
