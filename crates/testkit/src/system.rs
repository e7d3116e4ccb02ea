//! A whole system of real processes in a directory of its own: broker, station, agents behind links that can break.
//!
//! In flows how many nodes; out flow handles on each part. What flows out of it to the machine is nothing: everything
//! that it started is gone when it is dropped.

use std::cell::{Ref, RefCell, RefMut};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fleet::{Context, Fleet, Home};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::link::Link;
use crate::process::{Process, Recipe, Watchdog, children, of_system, signal};

/// How long a part may take to get ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that is to become true.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The room of the small disk.
const SMALL_DISK_BYTES: u64 = 32 << 20;

/// Why a system does not run, or a run could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// The program under test is not there.
    #[error(
        "there is no program {}: build it (`cargo build -p steward`), or say where it is with STEWARD_PROGRAM",
        .0.display()
    )]
    NoProgram(PathBuf),
    /// A part did not get ready.
    #[error("{what} did not happen within {} s; see the logs in {}", within.as_secs(), logs.display())]
    NotReady {
        /// What was waited for.
        what: String,
        /// For how long.
        within: Duration,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// The program said no.
    #[error("`steward {arguments}` failed: {said}")]
    Program {
        /// What it was given.
        arguments: String,
        /// What it said.
        said: String,
    },
    /// The system refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was attempted.
        action: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Fleet or broker refused.
    #[error(transparent)]
    Fleet(#[from] fleet::FleetError),
    /// The broker refused.
    #[error(transparent)]
    Bus(#[from] bus::BusError),
    /// Something was not understood.
    #[error("{0}")]
    Wrong(String),
}

impl KitError {
    /// For `map_err` of what the file system refuses.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

/// An edge unit: its process and its link.
#[derive(Debug)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// Its link to the broker.
    pub link: Link,
    process: RefCell<Process>,
    /// Where its journal lies.
    pub state: PathBuf,
}

/// A running system. Dropping it ends and removes everything, unless it was told to keep its files. When this program is
/// killed, its processes are ended all the same, and the files stay.
#[derive(Debug)]
pub struct System {
    home: PathBuf,
    program: PathBuf,
    broker: RefCell<Process>,
    station: RefCell<Process>,
    /// The edge units.
    pub agents: Vec<Agent>,
    /// The clients' link to the broker.
    pub client_link: Link,
    server: String,
    small_disk: Option<PathBuf>,
    /// What could not be had here, as sentences.
    pub left_out: Vec<String>,
    keep: bool,
    /// Dropped last, when there is nothing left to end.
    _watchdog: Watchdog,
}

/// The program under test: `STEWARD_PROGRAM`, or what was built beside this one.
///
/// # Errors
/// [`KitError::NoProgram`] when it is not there.
pub fn program() -> Result<PathBuf, KitError> {
    let path = match std::env::var_os("STEWARD_PROGRAM") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe().map_err(KitError::io("find this program"))?.with_file_name("steward"),
    };
    if path.is_file() { Ok(path) } else { Err(KitError::NoProgram(path)) }
}

impl System {
    /// Starts one with `nodes` agents, `n1`, `n2` …, and waits until all are online. The last one has a small disk,
    /// if this process may mount one.
    ///
    /// # Errors
    /// [`KitError`] when a part does not start.
    pub async fn start(program: &Path, nodes: usize) -> Result<Self, KitError> {
        let home = tempfile::Builder::new()
            .prefix("steward-testkit-")
            .tempdir()
            .map_err(KitError::io("make a directory for the system"))?
            .keep();
        for part in ["logs", "witness", "bundles", "nodes"] {
            std::fs::create_dir(home.join(part)).map_err(KitError::io(format!("make the directory {part}")))?;
        }
        let small_disk = home.join("nodes").join(format!("n{nodes}"));
        let watchdog = Watchdog::start(&home, Some(&small_disk)).map_err(KitError::io("start a watchdog"))?;
        // From here on the parts are in a value that ends them when something goes wrong.
        let mut starting = Starting { home: home.clone(), armed: true };
        run_program(program, &home, &["init"])?;
        let recipe = |name: &str, arguments: &[&str]| recipe(program, &home, name, arguments);
        let mut broker = Process::new(recipe("broker", &["-o", "json", "broker", "--broker-listen", "127.0.0.1:0"]));
        broker.start().map_err(KitError::io("start the broker"))?;
        let server = wait(&home, "the broker's start", || said_server(&broker.recipe().output())).await?;
        let address: SocketAddr = server
            .trim_start_matches("nats://")
            .parse()
            .map_err(|_| KitError::Wrong(format!("the broker is said to be at {server:?}, which is no address")))?;
        let addr_file = home.join("station.addr");
        let addr_text = addr_file.display().to_string();
        let mut station = Process::new(recipe(
            "station",
            &["station", "--http-listen", "127.0.0.1:0", "--http-addr-file", addr_text.as_str()],
        ));
        station.start().map_err(KitError::io("start the station"))?;
        let mut agents = Vec::new();
        for number in 1..=nodes {
            let name = format!("n{number}");
            let bundle = home.join("bundles").join(&name).display().to_string();
            run_program(program, &home, &["node", "enroll", &name, "--out", &bundle])?;
            let link = Link::open(address).await.map_err(KitError::io("open a link"))?;
            let state = home.join("nodes").join(&name);
            std::fs::create_dir_all(&state).map_err(KitError::io("make an agent's directory"))?;
            let (url, state_text) = (link.url(), state.display().to_string());
            let arguments = ["--server", &url, "agent", "--bundle", &bundle, "--state", &state_text];
            let process = RefCell::new(Process::new(recipe(&name, &arguments)));
            agents.push(Agent { name, link, process, state });
        }
        let client_link = Link::open(address).await.map_err(KitError::io("open a link"))?;
        starting.armed = false;
        let mut system = Self {
            home: home.clone(),
            program: program.to_owned(),
            broker: RefCell::new(broker),
            station: RefCell::new(station),
            agents,
            client_link,
            server,
            small_disk: None,
            left_out: Vec::new(),
            keep: false,
            _watchdog: watchdog,
        };
        system.mount_small_disk();
        for agent in &system.agents {
            agent.process.borrow_mut().start().map_err(KitError::io("start an agent"))?;
        }
        wait(&home, "the station's start", || addr_file.exists().then_some(())).await?;
        system.wait_online().await?;
        Ok(system)
    }

    /// Its directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Where commands witness what really happens, a file for each node.
    pub fn witness_dir(&self) -> PathBuf {
        self.home.join("witness")
    }

    /// The process of an agent.
    pub fn agent(&self, index: usize) -> RefMut<'_, Process> {
        self.agents[index % self.agents.len()].process.borrow_mut()
    }

    /// The process of the station.
    pub fn station(&self) -> RefMut<'_, Process> {
        self.station.borrow_mut()
    }

    /// The process of `steward broker`.
    pub fn broker(&self) -> RefMut<'_, Process> {
        self.broker.borrow_mut()
    }

    /// The process ids of agents and station, as they are now.
    pub fn pids(&self) -> (Vec<i32>, Option<i32>) {
        let pid = |process: Ref<'_, Process>| process.pid();
        (self.agents.iter().filter_map(|agent| pid(agent.process.borrow())).collect(), pid(self.station.borrow()))
    }

    /// The `nats-server` at the moment.
    pub fn nats_server(&self) -> Option<i32> {
        children(self.broker.borrow().pid()?).first().copied()
    }

    /// Sends a signal to the `nats-server`.
    pub fn signal_nats_server(&self, which: Signal) {
        if let Some(pid) = self.nats_server() {
            signal(pid, which);
        }
    }

    /// Where the last node's journal lies on a disk that is small enough to be filled.
    pub fn small_disk(&self) -> Option<&Path> {
        self.small_disk.as_deref()
    }

    /// The files stay when it is dropped.
    pub fn keep_files(&mut self) {
        self.keep = true;
    }

    /// An operator's connection, straight to the broker.
    ///
    /// # Errors
    /// [`KitError::Fleet`] when the home is damaged.
    pub async fn operator(&self) -> Result<Fleet, KitError> {
        self.connect(&self.server).await
    }

    /// An operator's connection over the clients' link.
    ///
    /// # Errors
    /// As [`System::operator`].
    pub async fn client(&self) -> Result<Fleet, KitError> {
        self.connect(&self.client_link.url()).await
    }

    async fn connect(&self, server: &str) -> Result<Fleet, KitError> {
        let mut context = Context::load(&Home::new(&self.home), None)?;
        server.clone_into(&mut context.server);
        Ok(Fleet::connect_patiently(&context).await?)
    }

    /// A program that does not run yet, with the clients' link as its way to the broker.
    pub fn steward(&self, name: &str, arguments: &[&str]) -> Recipe {
        let url = self.client_link.url();
        recipe(&self.program, &self.home, name, &[&["--server", &url], arguments].concat())
    }

    /// Waits until every node is online.
    ///
    /// # Errors
    /// [`KitError::NotReady`] when that takes too long.
    pub async fn wait_online(&self) -> Result<(), KitError> {
        let fleet = self.operator().await?;
        let deadline = Instant::now() + PATIENCE;
        let waited = loop {
            let online = fleet.nodes().await.map_or(0, |view| {
                view.nodes.iter().filter(|node| node.vitality.state == message::NodeState::Online).count()
            });
            if online == self.agents.len() {
                break Ok(());
            }
            if Instant::now() > deadline {
                let what = format!("{online} of {} nodes came online; the rest", self.agents.len());
                break Err(KitError::NotReady { what, within: PATIENCE, logs: self.home.join("logs") });
            }
            tokio::time::sleep(LOOK_EVERY * 4).await;
        };
        fleet.close().await;
        waited
    }

    fn mount_small_disk(&mut self) {
        let Some(state) = self.agents.last().map(|agent| agent.state.clone()) else { return };
        let size = format!("size={SMALL_DISK_BYTES},mode=700");
        match mount(Some("none"), &state, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())) {
            Ok(()) => self.small_disk = Some(state),
            Err(error) => {
                self.left_out.push(format!("full disk: this process may not mount a small one ({error})"));
            }
        }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        end_all(&self.home);
        // The direct children are waited for, so that none of them stays as a zombie.
        self.agents.iter().for_each(|agent| agent.process.borrow_mut().kill());
        self.station.borrow_mut().kill();
        self.broker.borrow_mut().kill();
        if let Some(disk) = &self.small_disk {
            if self.keep {
                copy_journal(disk, &self.home.join("small-disk"));
            }
            let _ = umount2(disk, MntFlags::MNT_DETACH);
        }
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.home);
        }
    }
}

/// Cleans up after a start that broke off.
struct Starting {
    home: PathBuf,
    armed: bool,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.armed {
            end_all(&self.home);
        }
    }
}

/// Kills until none is left: one that was just being started may slip through a single look.
fn end_all(home: &Path) {
    for _ in 0..50 {
        let left = of_system(home);
        if left.is_empty() {
            return;
        }
        left.into_iter().for_each(|pid| signal(pid, Signal::SIGKILL));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn copy_journal(from: &Path, to: &Path) {
    // For whoever looks into a failure; without it there is less to look at.
    let _ = std::fs::create_dir_all(to);
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        if entry.path().is_file() && entry.file_name() != "ballast" {
            let _ = std::fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
}

fn recipe(program: &Path, home: &Path, name: &str, arguments: &[&str]) -> Recipe {
    let before = [OsString::from("--home"), home.as_os_str().to_owned()];
    Recipe {
        name: name.to_owned(),
        program: program.to_owned(),
        arguments: before.into_iter().chain(arguments.iter().map(OsString::from)).collect(),
        logs: home.join("logs"),
        home: home.to_owned(),
    }
}

fn run_program(program: &Path, home: &Path, arguments: &[&str]) -> Result<(), KitError> {
    let output = recipe(program, home, "once", arguments)
        .command()
        .output()
        .map_err(KitError::io(format!("run {}", program.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(KitError::Program { arguments: arguments.join(" "), said })
}

fn said_server(output: &Path) -> Option<String> {
    let text = std::fs::read_to_string(output).ok()?;
    let line = text.lines().next()?;
    serde_json::from_str::<serde_json::Value>(line).ok()?.get("server")?.as_str().map(ToOwned::to_owned)
}

async fn wait<T>(home: &Path, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, KitError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(KitError::NotReady { what: what.to_owned(), within: PATIENCE, logs: home.join("logs") });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
