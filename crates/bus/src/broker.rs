//! The local broker: the real nats-server as a child that is configured, started, watched and stopped.
//!
//! In flow a home, an address and what the fleet trusts; out flow the server's URL and how it fares. All of its files
//! lie below `<home>/broker`. It must never run two servers on one home, leave one behind when this process dies, or
//! touch a server that is not this home's.

mod certificates;
mod conf;
mod error;
mod find;
mod home;
mod launch;
mod log;
mod port;
mod process;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::keys::Trust;
use crate::tls::ServerTls;
use certificates::Certificates;
pub use conf::{Cluster, SyncInterval};
pub use error::BrokerError;
pub use find::{Finding, NoServer, OLDEST, Server, VARIABLE, Version, find_server, first_of};
use launch::{Plan, Running};

/// The first restart comes at once, the next after this long, then twice as long each time.
const RESTART_FIRST: Duration = Duration::from_millis(100);
/// A server that keeps failing is tried again this often, for ever: the disk may have room again.
const RESTART_MAX: Duration = Duration::from_secs(10);
/// One that ran this long was well; its next failure is a first one.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// How often the log is looked through for a store that no longer takes anything.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What the server says when a write failed, most often for want of space. It then refuses all further messages of
/// that stream, also when there is space again, until it is started anew (measured).
const STUCK: &str = "Critical write error";
/// With less free space, a new start would end in the same way.
const ROOM_BYTES_MIN: u64 = 64 << 20;
/// Streams in memory hold marks, nothing that grows.
const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// What broker to run.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// The fleet's home; all files lie in `broker` below it.
    pub home: PathBuf,
    /// Where to listen. Port 0 picks a free one at the first start and keeps it.
    pub listen: SocketAddr,
    /// Whom the broker lets in.
    pub trust: Trust,
    /// The server to run; `None`: see [`find_server`].
    pub server: Option<PathBuf>,
    /// Its name in greetings, logs and clusters.
    pub server_name: String,
    /// Its place in a cluster; `None`: it is alone.
    pub cluster: Option<Cluster>,
    /// What clients see of it; `None`: plain text.
    pub tls: Option<ServerTls>,
    /// What the other servers of its cluster see; `None`: plain text.
    pub cluster_tls: Option<ServerTls>,
    /// What a power cut may take.
    pub sync: SyncInterval,
    /// The largest message.
    pub payload_bytes_max: u32,
    /// What the store may fill; `None`: what it fills now and four fifths of what is free.
    pub store_bytes_max: Option<u64>,
    /// How often it is looked whether a certificate is about to end, or is another one.
    pub certificates_every: Duration,
    /// How long to wait for a server that starts: a large store takes long to read after a power cut.
    pub ready_within: Duration,
}

impl BrokerConfig {
    /// A broker on loopback with a port of its choice.
    #[must_use]
    pub fn new(home: impl Into<PathBuf>, trust: Trust) -> Self {
        Self {
            home: home.into(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            trust,
            server: None,
            server_name: "steward".to_owned(),
            cluster: None,
            tls: None,
            cluster_tls: None,
            sync: SyncInterval::Within(Duration::from_secs(1)),
            payload_bytes_max: 1 << 20,
            store_bytes_max: None,
            certificates_every: Duration::from_secs(600),
            ready_within: Duration::from_secs(60),
        }
    }
}

/// How a broker fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its process; `None` while it is down.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// Why it is down, or was the last time.
    pub last_error: Option<String>,
}

/// A view of a broker that can be handed around.
#[derive(Debug, Clone)]
pub struct BrokerHandle {
    listen: SocketAddr,
    tls: bool,
    store_bytes_max: u64,
    status: watch::Receiver<Status>,
}

impl BrokerHandle {
    /// Where clients on this machine find it.
    #[must_use]
    pub fn client_url(&self) -> String {
        format!("{}://{}", if self.tls { "tls" } else { "nats" }, port::reachable(self.listen))
    }

    /// The address it listens on.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// What its store may fill.
    #[must_use]
    pub fn store_bytes_max(&self) -> u64 {
        self.store_bytes_max
    }

    /// Its process; `None` while it is down.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.status.borrow().pid
    }

    /// How it fares, now and on every change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

/// A running broker. Dropping it asks the server to stop; [`Broker::stop`] and [`Broker::supervise`] see it through.
pub struct Broker {
    plan: Plan,
    running: Running,
    handle: BrokerHandle,
    status: watch::Sender<Status>,
    certificates: Option<Certificates>,
    /// Held as long as a server of ours may run.
    _lock: File,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl Broker {
    /// Starts a server and waits until it serves.
    ///
    /// # Errors
    /// When there is no server to run, it cannot run here, or another broker does; the text says what to do.
    pub async fn start(config: BrokerConfig) -> Result<Self, BrokerError> {
        let server = match config.server.clone() {
            Some(path) => first_of(vec![path]).await?.path,
            None => find_server().await?.path,
        };
        let dir = home::make_dir(&config.home)?;
        let lock = home::lock(&dir, &config.home)?;
        let conf = dir.join("nats.conf");
        process::end_orphans(&conf).await;
        let listen = home::choose_listen(&dir, config.listen).await?;
        let store_bytes_max = config.store_bytes_max.map_or_else(|| home::store_bytes_max(&dir), Ok)?;
        let text = conf::Conf {
            listen,
            server_name: &config.server_name,
            dir: dir.to_str().ok_or_else(|| BrokerError::Path(dir.clone()))?,
            cluster: config.cluster.as_ref(),
            sync: config.sync,
            payload_bytes_max: config.payload_bytes_max,
            store_bytes_max,
            memory_bytes_max: MEMORY_BYTES_MAX,
            trust: &config.trust,
            tls: config.tls.as_ref(),
            cluster_tls: config.cluster_tls.as_ref(),
        }
        .render();
        home::replace(&conf, &text)?;

        let plan = Plan {
            server,
            conf,
            log: dir.join("nats.log"),
            stderr: dir.join("nats.stderr"),
            dir,
            listen,
            server_name: config.server_name,
            ready_within: config.ready_within,
        };
        let running = plan.launch().await?;
        let (status, watched) = watch::channel(Status { pid: Some(running.id()), restarts: 0, last_error: None });
        let handle = BrokerHandle { listen, tls: config.tls.is_some(), store_bytes_max, status: watched };
        let certificates =
            config.tls.or(config.cluster_tls).map(|tls| Certificates::new(config.home, tls, config.certificates_every));
        Ok(Self { plan, running, handle, status, certificates, _lock: lock })
    }

    /// Where clients on this machine find it.
    #[must_use]
    pub fn client_url(&self) -> String {
        self.handle.client_url()
    }

    /// The server's process at the moment.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.id()
    }

    /// A view of it to hand around.
    #[must_use]
    pub fn handle(&self) -> BrokerHandle {
        self.handle.clone()
    }

    /// Stops the server and waits until it has ended.
    pub async fn stop(self) {
        self.running.stop().await;
        self.status.send_modify(|status| status.pid = None);
    }

    /// Keeps the server running, on the same port, until `cancel`; then stops it. A server whose disk was full is
    /// started anew when there is room; its certificate is renewed before it ends, without a connection being lost.
    pub async fn supervise(mut self, cancel: CancellationToken) {
        let mut pause = Duration::ZERO;
        loop {
            let since = Instant::now();
            tokio::select! {
                () = cancel.cancelled() => return self.stop().await,
                () = self.keep_certificates() => continue,
                how = self.running.ended() => {
                    let error = format!("nats-server ended by itself ({how}), saying: {}", self.plan.last_words(&self.running));
                    tracing::warn!(pid = self.running.id(), "{error}; it is started again");
                    self.down(error);
                }
                () = self.stuck() => {
                    tracing::warn!(pid = self.running.id(), "there is room again; the broker is started anew");
                    self.running.stop().await;
                    self.down("nats-server could not write, and is started anew".to_owned());
                }
            }
            if since.elapsed() >= WELL_AFTER {
                pause = Duration::ZERO;
            }
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = sleep(pause) => {}
                }
                pause = (pause * 2).clamp(RESTART_FIRST, RESTART_MAX);
                match self.restart(&cancel).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::error!(%error, retry_in_ms = pause.as_millis(), "the broker does not start");
                        self.down(error.to_string());
                    }
                }
            }
        }
    }

    /// Starts the server once more. If `cancel` comes before it serves, it is left to the caller to stop.
    async fn restart(&mut self, cancel: &CancellationToken) -> Result<(), BrokerError> {
        self.running = self.plan.spawn().await?;
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            ready = self.plan.ready(&self.running) => ready?,
        }
        tracing::info!(pid = self.running.id(), "the broker is back");
        self.status.send_modify(|status| {
            status.pid = Some(self.running.id());
            status.restarts += 1;
        });
        Ok(())
    }

    /// Returns when the store is stuck and a new start would help.
    async fn stuck(&self) {
        let mut heard = self.running.logged;
        let said = loop {
            sleep(LOOK_EVERY).await;
            let end = log::end(&self.plan.log);
            if let Some(said) = log::line_with(&self.plan.log, heard, STUCK) {
                break said;
            }
            heard = end;
        };
        tracing::error!("the broker's store takes nothing more: {said}; make room on its disk");
        self.status.send_modify(|status| status.last_error = Some(said));
        while home::free_bytes(&self.plan.dir).unwrap_or(0) < ROOM_BYTES_MIN {
            sleep(LOOK_EVERY).await;
        }
    }

    /// Has the server read its certificate anew, as soon as that is another one.
    async fn keep_certificates(&self) {
        match &self.certificates {
            Some(certificates) => certificates.renewed().await,
            None => std::future::pending().await,
        }
        // What the server makes of it stands in its log; it keeps the one before if it cannot read this one.
        self.running.reload();
        tracing::info!(pid = self.running.id(), "the broker shows a new certificate");
    }

    fn down(&self, error: String) {
        self.status.send_modify(|status| {
            status.pid = None;
            status.last_error = Some(error);
        });
    }
}
