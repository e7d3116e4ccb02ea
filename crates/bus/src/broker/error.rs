//! Why there is no broker, in sentences that say what to do.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::find::NoServer;

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// No program to run.
    #[error(transparent)]
    NoServer(#[from] NoServer),
    /// Another steward runs one on this home.
    #[error(
        "a broker already runs on {home}, kept by process {keeper}; use that one, stop it, or choose another --home"
    )]
    AlreadyRunning {
        /// The home.
        home: PathBuf,
        /// Pid of the other steward.
        keeper: String,
    },
    /// Somebody else listens there.
    #[error(
        "cannot listen on {address}: {holder} does already; stop it, or choose another address with --broker-listen (port 0 picks a free one)"
    )]
    PortTaken {
        /// The address.
        address: SocketAddr,
        /// Who, as far as the system tells.
        holder: String,
    },
    /// The address is not ours to listen on.
    #[error("cannot listen on {address}: {source}; choose an address of this machine with --broker-listen")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// nats-server's configuration is UTF-8.
    #[error("the path {0:?} is not UTF-8, which nats-server cannot be configured with; choose another --home")]
    Path(PathBuf),
    /// The file system refused.
    #[error("cannot {action} {path}: {source}; check its owner, mode and the space on its disk")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ended before it could serve.
    #[error("nats-server ended at once, saying: {said}; its log is {log}")]
    Died {
        /// The last that its log says.
        said: String,
        /// Its log.
        log: PathBuf,
    },
    /// It runs and does not serve.
    #[error("nats-server did not get ready within {} s, saying: {said}; its log is {log}", waited.as_secs())]
    NotReady {
        /// For how long it was waited for.
        waited: Duration,
        /// The last that its log says.
        said: String,
        /// Its log.
        log: PathBuf,
    },
}

pub(super) fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> BrokerError + use<'a> {
    move |source| BrokerError::Io { action, path: path.to_owned(), source }
}
