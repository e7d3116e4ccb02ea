//! A system of its own for a measurement: `steward up` as a child, in a temporary home.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fleet::{Context, Fleet, Home, Node, Selection};
use message::Pattern;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// The node that is measured.
pub(crate) const NODE: &str = "bench1";
/// How long the system may take to get ready, and again to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The system did not start.
    #[error("the system to be measured did not start: {0}")]
    System(String),
    /// Ordering failed.
    #[error(transparent)]
    Fleet(#[from] fleet::FleetError),
    /// The broker failed.
    #[error(transparent)]
    Bus(#[from] bus::BusError),
    /// A limit could not be measured.
    #[error("a limit could not be measured: {0}")]
    Limit(#[from] std::io::Error),
    /// An order did not succeed, so its time means nothing.
    #[error("an order ended as {0}, not as succeeded: there is nothing to measure")]
    Order(String),
}

/// A running system.
pub(crate) struct System {
    child: Child,
    home: tempfile::TempDir,
    pub(crate) fleet: Fleet,
    /// Where its station is, as `ADDR:PORT`.
    pub(crate) http: String,
}

/// What `up` says when it is ready.
#[derive(Deserialize)]
struct Ready {
    http: String,
}

impl System {
    /// Starts one with one node.
    pub(crate) async fn start() -> Result<(Self, Node), BenchError> {
        let system = Self::up(&["--name", NODE]).await?;
        let patterns = Pattern::parse_list(NODE).map_err(|error| BenchError::System(error.to_string()))?;
        let found = system.fleet.resolve(&Selection { patterns, ..Selection::default() }).await?;
        let gone = || BenchError::System(format!("{NODE} is not there"));
        let node = found.nodes.into_iter().next().ok_or_else(gone)?;
        Ok((system, node))
    }

    /// Starts one with the executable that is running now.
    pub(crate) async fn up(flags: &[&str]) -> Result<Self, BenchError> {
        Self::up_in(tempfile::Builder::new().prefix("steward-bench-").tempdir()?, flags).await
    }

    /// Starts one without a node, of which the station has this configuration.
    pub(crate) async fn up_with_station(config: &Path) -> Result<Self, BenchError> {
        let home = tempfile::Builder::new().prefix("steward-bench-").tempdir()?;
        std::fs::copy(config, home.path().join("station.toml"))?;
        Self::up_in(home, &["--no-agent"]).await
    }

    async fn up_in(home: tempfile::TempDir, flags: &[&str]) -> Result<Self, BenchError> {
        let failed = |what: String| BenchError::System(what);
        let exe = std::env::current_exe()?;
        let mut child = Command::new(&exe)
            .arg("--home")
            .arg(home.path())
            .args(["-o", "json", "up", "--broker-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
            .args(flags)
            .env_remove("NATS_URL")
            .env_remove("NATS_CREDS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let Some(stdout) = child.stdout.take() else { return Err(failed("it has no output".into())) };
        let mut lines = BufReader::new(stdout).lines();
        let ready = match tokio::time::timeout(PATIENCE, lines.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(_) => return Err(failed("it ended before it was ready; what it says stands above".into())),
            Err(_) => return Err(failed(format!("it was not ready within {} s", PATIENCE.as_secs()))),
        };
        let ready: Ready = serde_json::from_str(&ready).map_err(|error| failed(error.to_string()))?;
        let context = Context::load(&Home::new(home.path()), None)?;
        let fleet = Fleet::connect(&context).await?;
        let http = ready.http.trim_start_matches("http://").to_owned();
        Ok(Self { child, home, fleet, http })
    }

    /// Where its files lie: limits are measured on the same disk.
    pub(crate) fn dir(&self) -> &Path {
        self.home.path()
    }

    /// The process id of the agent.
    pub(crate) fn agent_pid(&self) -> Option<u32> {
        self.child_with(|argument| argument == b"agent")
    }

    /// The process id of the station.
    pub(crate) fn station_pid(&self) -> Option<u32> {
        self.child_with(|argument| argument == b"station")
    }

    /// The process id of the broker.
    pub(crate) fn broker_pid(&self) -> Option<u32> {
        self.child_with(|argument| argument.ends_with(b"nats-server"))
    }

    /// The child of `up` that has an argument like this.
    fn child_with(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<u32> {
        let parent = self.child.id()?;
        let children = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let of: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            (of == parent).then_some((pid, entry.path()))
        });
        children.into_iter().find_map(|(pid, path): (u32, PathBuf)| {
            let line = std::fs::read(path.join("cmdline")).ok()?;
            line.split(|byte| *byte == 0).any(&wanted).then_some(pid)
        })
    }

    /// Resident memory of its broker.
    pub(crate) fn broker_rss_bytes(&self) -> Result<u64, BenchError> {
        let pid = std::fs::read_to_string(self.dir().join("broker/nats.pid"))?;
        rss_bytes(pid.trim().parse().map_err(|_| BenchError::System("its broker is not found".into()))?)
    }

    /// Stops it, as Ctrl-C would.
    pub(crate) async fn stop(mut self) {
        self.fleet.close().await;
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(PATIENCE, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// The resident memory of a process.
pub(crate) fn rss_bytes(pid: u32) -> Result<u64, BenchError> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| BenchError::System(format!("the memory of process {pid} cannot be read")))
}
