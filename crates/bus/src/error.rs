//! What can go wrong between this program and the broker.

/// An error of the bus; each says what was attempted and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Nobody listens there.
    #[error(
        "no broker answers at {server}: {reason}. Is it running? `steward up` starts one, `steward context show` tells where this context looks"
    )]
    Unreachable {
        /// The address tried.
        server: String,
        /// What the network said.
        reason: String,
    },
    /// The broker answered, and does not let this identity in.
    #[error(
        "the broker at {server} refuses these credentials: {reason}. They belong to another fleet, or were revoked; `steward context show` tells which file is used"
    )]
    Refused {
        /// The address tried.
        server: String,
        /// What the broker said.
        reason: String,
    },
    /// Somebody answered, and it is not proven who.
    #[error("the broker at {server} is not trusted: {reason}")]
    Untrusted {
        /// The address tried.
        server: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The link is down; it is being re-established.
    #[error("the link to the broker is down; it is being re-established")]
    Disconnected,
    /// No answer within the time allowed.
    #[error("the broker did not answer {what} in time")]
    Timeout {
        /// What was asked.
        what: String,
    },
    /// The stream that should take the message is not there.
    #[error("nothing takes {what}: the fleet's streams are missing; `steward doctor` checks them")]
    NoStream {
        /// What was sent.
        what: String,
    },
    /// The broker refused, with its own words.
    #[error("the broker refused {what}: {description} (code {code})")]
    Broker {
        /// What was attempted.
        what: String,
        /// The JetStream error code.
        code: u64,
        /// The broker's words.
        description: String,
    },
    /// The expected last revision was not the last one: somebody else wrote in between.
    #[error("{what} was changed by somebody else in the meantime")]
    Conflict {
        /// What was written.
        what: String,
    },
    /// Larger than the broker takes.
    #[error("{what} has {bytes} bytes, more than the broker takes")]
    TooLarge {
        /// What was sent.
        what: String,
        /// Its size.
        bytes: usize,
    },
    /// The broker's answer makes no sense.
    #[error("the broker's answer to {what} cannot be read: {reason}")]
    Unreadable {
        /// What was asked.
        what: String,
        /// What the parser said.
        reason: String,
    },
    /// A credentials file is wrong.
    #[error("the credentials in {path} cannot be used: {reason}")]
    Credentials {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Anything else, with its cause.
    #[error("{what}: {reason}")]
    Other {
        /// What was attempted.
        what: String,
        /// The cause.
        reason: String,
    },
}

impl BusError {
    /// Whether the same call may succeed later without anybody doing anything.
    pub const fn is_passing(&self) -> bool {
        match self {
            Self::Disconnected | Self::Timeout { .. } | Self::NoStream { .. } | Self::Unreachable { .. } => true,
            // Nobody is there to answer: a consumer that went down with its server, a stream without a leader.
            Self::Broker { code, .. } => *code == 503,
            _ => false,
        }
    }
}
