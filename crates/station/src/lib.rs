//! The management station: a read model of the fleet, shown over HTTP.
//!
//! In flow the broker's streams (nodes, life signs, jobs, replies, events); out flow a page, JSON and metrics. The
//! station is never in the path of an order or an answer: stop it, and everything else works. It believes only what
//! its writer has signed, and must never sign or decide; on disk it keeps the events that it was told to receive
//! (`receive`), no more. The one thing that it sends are orders as an operator has signed and stored them, when their client
//! ended before it had sent them all (`finish`).
//!
//! Start reading at `run`; `watch` keeps the `view` (a pure fold), `status` tells how fresh it is, `hub` what changes, `http`
//! shows it: `page` to people, `api` and `metrics` to programs. `access` knows who may look.

pub mod access;
mod alert;
mod api;
mod believe;
mod complain;
mod config;
mod discovery;
mod finish;
mod freshness;
mod http;
mod hub;
mod lookup;
#[cfg(test)]
mod made_up;
mod metrics;
mod page;
mod process;
mod receiving;
mod status;
mod view;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fleet::{Context, Fleet, FleetError};
use message::Complaint;
use tokio::net::TcpListener;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use http::HttpTls;
use status::{About, Shared};

/// What a station needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The fleet, with the station's own credentials (`<home>/creds/station.creds`).
    pub context: Context,
    /// Where to serve HTTP: on loopback, or elsewhere with TLS. Port 0 takes a free one.
    pub http_listen: SocketAddr,
    /// The certificate with which to serve it, and the names by which the station is reached, besides the local ones.
    pub http_tls: Option<HttpTls>,
    /// See `http_tls`.
    pub http_names: Vec<String>,
    /// Who may look.
    pub tokens: access::Tokens,
    /// Where to write the address that is really listened at; removed at the end.
    pub http_addr_file: Option<PathBuf>,
    /// What it takes from the stream of events, and where that goes; and of what it tells whom.
    pub config: Config,
    /// Where the receivers of events keep their places, and the alerts what they remember.
    pub state_dir: PathBuf,
}

/// Why a station does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StationError {
    /// It would be open to the network without encryption.
    #[error(
        "HTTP is not served at {listen} without TLS: give a certificate (--http-cert FILE --http-key FILE, and --http-name \
         for the name in it), listen at 127.0.0.1:{port} or [::1]:{port} and use `ssh -L {port}:127.0.0.1:{port}`, or put a \
         proxy on this host that encrypts",
        port = listen.port()
    )]
    NotLoopback {
        /// Where it should have listened.
        listen: SocketAddr,
    },
    /// The certificate or its key is of no use.
    #[error("TLS cannot be served: {reason}")]
    Tls {
        /// What is wrong.
        reason: String,
    },
    /// The address is taken, or not of this host.
    #[error(
        "HTTP cannot be served at {listen}: {source}. Choose another address, or stop who listens there (`ss -ltnp`)"
    )]
    Listen {
        /// Where it should have listened.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The address file cannot be written.
    #[error("the address cannot be written to {}: {source}", path.display())]
    AddressFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The fleet cannot be reached with what is given.
    #[error(transparent)]
    Fleet(Box<FleetError>),
    /// A part of the station ended though nobody asked it to.
    #[error("the station broke down: {reason}; this is a mistake in the program, please report it")]
    Broken {
        /// What is known of it.
        reason: String,
    },
}

impl From<FleetError> for StationError {
    fn from(error: FleetError) -> Self {
        Self::Fleet(Box::new(error))
    }
}

/// Runs a station until it is cancelled. The broker need not be there yet: until it is, `/readyz` says so. `complaints` is what
/// this program warns of, for the fleet's error log.
///
/// # Errors
/// [`StationError`] when it cannot begin; what goes wrong later is retried and shown.
pub async fn run(
    options: Options,
    complaints: Option<Receiver<Complaint>>,
    cancel: CancellationToken,
) -> Result<(), StationError> {
    let Options { context, http_listen: listen, http_tls, http_names, tokens, http_addr_file, mut config, state_dir } =
        options;
    let rules = std::mem::take(&mut config.alert);
    let local = listen.ip().is_loopback();
    if !local && http_tls.is_none() {
        return Err(StationError::NotLoopback { listen });
    }
    let tls = http_tls.as_ref().map(HttpTls::acceptor).transpose().map_err(|reason| StationError::Tls { reason })?;
    let manner = http::Manner { tokens, strict: !local, names: http_names, secure: tls.is_some() };
    let wrong = |source| StationError::Listen { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(wrong)?;
    let address = listener.local_addr().map_err(wrong)?;
    let fleet = Fleet::connect_patiently(&context).await?;

    let about =
        About { station: context.node.clone(), server: without_password(&context.server), started: bus::clock::now() };
    let shared = Arc::new(Shared::new(about));
    // Its own token, so that a part which ends while nobody asked it to is told from one that was asked.
    let stop = CancellationToken::new();
    let _at_the_latest = stop.clone().drop_guard();
    let mut watching = tokio::spawn(watch::keep(fleet.clone(), Arc::clone(&shared), stop.clone()));
    let mut finishing = tokio::spawn(finish::keep(fleet.clone(), stop.clone()));
    let memory = alert::memory_in(&state_dir);
    let mut alerting = tokio::spawn(alert::keep(fleet.clone(), Arc::clone(&shared), rules, memory, stop.clone()));
    let found = discovery::service(&shared.about);
    let mut being_found = tokio::spawn(discovery::keep(fleet.clone(), found, stop.clone()));
    let mut complaining = tokio::spawn(complain::keep(fleet.clone(), complaints, stop.clone()));
    let received = Arc::clone(&shared.received);
    let mut receiving = tokio::spawn(receiving::keep(fleet.clone(), config.receive, state_dir, received, stop.clone()));
    let site = http::Site::new(shared, Some(fleet.clone()), manner, stop.clone());
    let mut serving = tokio::spawn(http::serve(listener, tls, site, stop.clone()));
    if let Some(path) = &http_addr_file
        && let Err(source) = write_address(path, address)
    {
        return Err(StationError::AddressFile { path: path.clone(), source });
    }
    tracing::info!(%address, "the station serves HTTP");

    let broken = tokio::select! {
        // Asked to stop, the parts end as well: that must not be taken for a breakdown.
        biased;
        () = cancel.cancelled() => None,
        ended = &mut watching => Some(("the watcher", ended)),
        ended = &mut finishing => Some(("the finisher of jobs", ended)),
        ended = &mut receiving => Some(("the receivers of events", ended)),
        ended = &mut alerting => Some(("the alerts", ended)),
        ended = &mut being_found => Some(("the answers to who looks for services", ended)),
        ended = &mut complaining => Some(("the error log", ended)),
        ended = &mut serving => Some(("the HTTP server", ended)),
    };
    stop.cancel();
    if let Some(path) = &http_addr_file {
        let _ = std::fs::remove_file(path); // somebody else may have tidied up
    }
    let ended = match broken {
        Some((part, ended)) => {
            let reason = ended.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
            Err(StationError::Broken { reason: format!("{part}: {reason}") })
        }
        None => {
            // They were told to end, and have no more to say.
            let _ = tokio::join!(watching, finishing, receiving, alerting, being_found, complaining, serving);
            Ok(())
        }
    };
    fleet.close().await;
    ended
}

/// Writes the address in one piece: who waits for the file finds all of it.
fn write_address(path: &Path, address: SocketAddr) -> io::Result<()> {
    let mut staging = path.as_os_str().to_owned();
    staging.push(".new");
    std::fs::write(&staging, format!("{address}\n"))?;
    std::fs::rename(&staging, path)
}

/// `nats://user:secret@host` → `nats://host`, for each of several.
fn without_password(servers: &str) -> String {
    let one = |server: &str| match (server.split_once("://"), server.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => server.to_owned(),
    };
    servers.split(',').map(|server| one(server.trim())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("nats://127.0.0.1:4222"), "nats://127.0.0.1:4222");
        assert_eq!(without_password("nats://u:p@a:1, tls://b:2"), "nats://a:1, tls://b:2");
        assert_eq!(without_password("u:p@a:1"), "a:1");
    }

    #[test]
    fn an_address_is_written_in_one_piece() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("address");
        write_address(&path, SocketAddr::from(([127, 0, 0, 1], 8080))).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "127.0.0.1:8080\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
