//! What an agent needs to start, and why it may end.

use std::path::PathBuf;
use std::time::Duration;

use message::{NodeName, PublicKey, SealedDocument, SealedTrust};

/// How often a node says that it lives.
pub const LIFE_SIGN_INTERVAL: Duration = Duration::from_secs(15);

/// What becomes of running commands when the agent is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStop {
    /// They go on, and the next agent on the same state directory reports them.
    LeaveCommands,
    /// They are ended, and reported as interrupted.
    EndCommands,
}

/// What an agent needs to start.
#[derive(Clone)]
pub struct Options {
    /// Its name.
    pub name: NodeName,
    /// Where the broker is: one URL, or several separated by commas.
    pub server: String,
    /// The authority that the broker's certificate must come from, as a PEM file; `None`: those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// The text of its `.creds` file.
    pub credentials: String,
    /// The public key of the fleet's first root, which names the fleet.
    pub root: PublicKey,
    /// The list of operators as it was at enrolment, sealed by the root of then, with the chain that leads to it.
    pub trust: SealedTrust,
    /// The policy as it was at enrolment, if there was one.
    pub policy: Option<SealedDocument>,
    /// Where the journal lies, and `methods.d`.
    pub state_dir: PathBuf,
    /// `agent.toml`; `<state_dir>/agent.toml` is read when it is there and no other is named.
    pub config_file: Option<PathBuf>,
    /// How often it says that it lives.
    pub life_sign_interval: Duration,
    /// How its keeper is started, but for the state directory, which is added as `--state DIR`.
    pub keeper: keeper::Launch,
    /// What becomes of running commands when it is stopped.
    pub at_stop: AtStop,
}

/// Why an agent does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its own papers do not hold.
    #[error("the enrolment of {name} cannot be used: {reason}; enrol it again with `steward node enroll {name}`")]
    Enrolment {
        /// The node.
        name: NodeName,
        /// What is wrong.
        reason: String,
    },
    /// It has not come in by its token.
    #[error("this unit cannot be enrolled by its token: {reason}")]
    Knock {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] journal::JournalError),
    /// Nobody can say what still runs.
    #[error(transparent)]
    Keeper(#[from] keeper::KeeperError),
    /// The bus cannot be used.
    #[error(transparent)]
    Bus(#[from] bus::BusError),
    /// Somebody else lives under this name.
    #[error(
        "the name {name} is in use by another living installation (journal {instance}, last heard {age}): stop that one, or choose another name"
    )]
    NameInUse {
        /// The name.
        name: NodeName,
        /// The other's journal.
        instance: message::InstanceId,
        /// How long ago it spoke.
        age: String,
    },
    /// One of its tasks broke down.
    #[error("the agent's task `{task}` broke down: {reason}")]
    Task {
        /// Which.
        task: &'static str,
        /// How.
        reason: String,
    },
}
