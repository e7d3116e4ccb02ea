//! What can go wrong for an operator; each error says what was attempted, what was found, and what to do.

use std::path::PathBuf;

use bus::BusError;
use bus::claims::ClaimsError;
use bus::keys::KeysError;
use message::JobId;

/// An error of a fleet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// The target matches no node.
    #[error("{message}")]
    NoMatch {
        /// A sentence that names what was looked for, and what comes near.
        message: String,
    },
    /// What was asked for makes no sense as it stands.
    #[error("{message}")]
    Usage {
        /// A sentence that says what is wrong and what to write instead.
        message: String,
    },
    /// There is no context of this name.
    #[error("there is no context {name:?} in {}: {known}", dir.display())]
    NoContext {
        /// The name.
        name: String,
        /// Where contexts were looked for.
        dir: PathBuf,
        /// Which there are, or how to make one.
        known: String,
    },
    /// A file does not hold what it should.
    #[error("{} cannot be used: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system refused.
    #[error("cannot {action} {}: {source}; check its owner, mode and the space on its disk", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The broker.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The fleet's keys.
    #[error(transparent)]
    Keys(Box<KeysError>),
    /// The fleet exists already.
    #[error(
        "{} already holds a fleet: use it as it is (`steward up --home …`), or choose another --home for a new one",
        home.display()
    )]
    FleetExists {
        /// Its home.
        home: PathBuf,
    },
    /// The list of operators is not to be had.
    #[error("the fleet's list of operators is not to be had: {reason}")]
    Trust {
        /// What was tried, and what to do.
        reason: String,
    },
    /// The policy at the broker is not to be believed.
    #[error("the policy at the broker is not believed: {reason}; `steward policy apply` puts another one in its place")]
    Policy {
        /// What is wrong with it.
        reason: String,
    },
    /// This identity may not sign orders or registrations.
    #[error(
        "the key {key} may not order in this fleet: its list of operators does not name it. \
         Use an operator's credentials (`steward context show` tells which are used)"
    )]
    NotAnOperator {
        /// The key that was to sign.
        key: String,
    },
    /// A signature could not be made.
    #[error("signing failed: {reason}")]
    Signing {
        /// Why.
        reason: String,
    },
    /// What was to be done could not be written down first.
    #[error(
        "it cannot be written in the audit log, so it was not done: {reason}; `steward doctor` says how the broker stands, and \
         a broker of an earlier version makes the log when it is started again"
    )]
    Audit {
        /// Why.
        reason: String,
    },
    /// The orders were stored, but not all could be sent.
    #[error(
        "job {job} is stored, but {unsent} of its {targets} orders were not taken by the broker: {reason}. \
         A running station sends the rest within two minutes; no node runs an order twice"
    )]
    NotAllSent {
        /// The job.
        job: JobId,
        /// How many orders are missing.
        unsent: usize,
        /// How many there are.
        targets: usize,
        /// The first thing that went wrong.
        reason: String,
    },
    /// No such job.
    #[error("{message}")]
    NoJob {
        /// A sentence that names what was looked for.
        message: String,
    },
    /// What is stored of a job cannot be believed.
    #[error("job {job} cannot be believed: {reason}")]
    Job {
        /// The job.
        job: String,
        /// Why.
        reason: String,
    },
    /// This very node was thrown out.
    #[error(
        "{name} was revoked, and its key with it: enrol the unit anew, under another name or after `steward node rm {name} --yes`"
    )]
    NodeRevoked {
        /// Its name.
        name: String,
    },
    /// A node of this name is there already.
    #[error(
        "a node named {name} is enrolled already, with the key {key}: choose another name, \
         or remove it first with `steward node rm {name}`"
    )]
    NodeExists {
        /// Its name.
        name: String,
        /// Its key.
        key: String,
    },
}

impl FleetError {
    /// The exit code of a verb that ends with this error: 5 when no node was meant, 2 for wrong usage, else 1.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NoMatch { .. } => 5,
            Self::Usage { .. } => 2,
            _ => 1,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into() }
    }

    pub(crate) fn signing(error: &impl std::fmt::Display) -> Self {
        Self::Signing { reason: error.to_string() }
    }
}

impl From<KeysError> for FleetError {
    fn from(error: KeysError) -> Self {
        Self::Keys(Box::new(error))
    }
}

impl From<ClaimsError> for FleetError {
    fn from(error: ClaimsError) -> Self {
        Self::Keys(Box::new(KeysError::Claims(error)))
    }
}
