//! A whole system of real processes in a directory of its own: broker, station, agents behind links that can break.
//!
//! In flows how many nodes; out flow handles on each part. What flows out of it to the machine is nothing: everything
//! that it started is gone when it is dropped.

use std::cell::{Ref, RefCell, RefMut};
use std::ffi::OsString;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fleet::{Context, Fleet, Home};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::link::Link;
use crate::process::{Process, Recipe, Watchdog, children, of_system, signal};
use crate::wrong_clock::WrongClock;

/// How long a part may take to get ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that is to become true.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The room of the small disk.
const SMALL_DISK_BYTES: u64 = 32 << 20;

/// What fills the small disk.
const BALLAST: &str = "ballast";

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
    /// Its clock, if that can be wrong.
    pub clock: Option<WrongClock>,
}

/// What a system is made of.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// How many nodes.
    pub nodes: usize,
    /// How many brokers: one alone, or three that keep three copies of everything.
    pub brokers: usize,
    /// By how many milliseconds the clock of each node is ahead at first; nodes beyond the last have the machine's clock.
    pub clocks: Vec<i64>,
    /// The same for the station.
    pub station_clock: i64,
    /// The same for clients that are programs.
    pub client_clock: i64,
}

/// A running system. Dropping it ends and removes everything, unless it was told to keep its files. When this program is
/// killed, its processes are ended all the same, and the files stay.
#[derive(Debug)]
pub struct System {
    home: PathBuf,
    program: PathBuf,
    brokers: Vec<RefCell<Process>>,
    station: RefCell<Process>,
    /// The edge units.
    pub agents: Vec<Agent>,
    /// The clients' link to the broker.
    pub client_link: Link,
    server: String,
    client_clock: Option<WrongClock>,
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
        Self::laid_out(program, &Layout { nodes, ..Layout::default() }).await
    }

    /// The same, laid out as it is said.
    ///
    /// # Errors
    /// As [`System::start`].
    pub async fn laid_out(program: &Path, layout: &Layout) -> Result<Self, KitError> {
        let nodes = layout.nodes;
        let home = tempfile::Builder::new()
            .prefix("steward-testkit-")
            .tempdir()
            .map_err(KitError::io("make a directory for the system"))?
            .keep();
        let small_disk = home.join("nodes").join(format!("n{nodes}"));
        let watchdog = Watchdog::start(&home, Some(&small_disk)).map_err(KitError::io("start a watchdog"))?;
        // From here on the parts are in a value that ends them when something goes wrong.
        let mut starting = Starting { home: home.clone(), armed: true };
        run_program(program, &home, &["init"])?;
        let homes = broker_homes(&home, layout.brokers.max(1))?;
        for part in ["logs", "witness", "bundles", "nodes"] {
            std::fs::create_dir(home.join(part)).map_err(KitError::io(format!("make the directory {part}")))?;
        }
        let mut left_out = Vec::new();
        let mut clock = |name: &str, ahead_ms: i64| match WrongClock::new(&home, name) {
            Ok(clock) => clock.set(ahead_ms).is_ok().then_some(clock),
            Err(error) => {
                let said = format!("wrong clocks: no library to load could be made ({error})");
                if !left_out.contains(&said) {
                    left_out.push(said);
                }
                None
            }
        };
        let mut clock_of = |name: &str, ahead_ms: Option<&i64>| ahead_ms.and_then(|ahead_ms| clock(name, *ahead_ms));
        let (station_clock, client_clock) = (layout.station_clock, layout.client_clock);
        let station_clock = clock_of("station", Some(&station_clock).filter(|ahead| **ahead != 0));
        let client_clock = clock_of("clients", Some(&client_clock).filter(|ahead| **ahead != 0));
        let recipe = |name: &str, arguments: &[&str]| recipe(program, &home, name, arguments);
        let mut brokers = Vec::new();
        let arguments = broker_arguments(homes.len()).map_err(KitError::io("find free ports"))?;
        for (index, (own, arguments)) in homes.iter().zip(arguments).enumerate() {
            let own = own.display().to_string();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let name = if index == 0 { "broker".to_owned() } else { format!("broker{}", index + 1) };
            let mut broker = Process::new(recipe(&name, &[&["--home", &own], &arguments[..]].concat()));
            broker.start().map_err(KitError::io("start the broker"))?;
            brokers.push(RefCell::new(broker));
        }
        let (mut servers, mut addresses) = (Vec::new(), Vec::new());
        for broker in &brokers {
            let output = broker.borrow().recipe().output();
            let server = wait(&home, "the broker's start", || said_server(&output)).await?;
            let address: SocketAddr = server
                .trim_start_matches("nats://")
                .parse()
                .map_err(|_| KitError::Wrong(format!("the broker is said to be at {server:?}, which is no address")))?;
            servers.push(server);
            addresses.push(address);
        }
        let server = servers.join(",");
        let addr_file = home.join("station.addr");
        let addr_text = addr_file.display().to_string();
        let mut station = Process::new(recipe(
            "station",
            &["--server", &server, "station", "--http-listen", "127.0.0.1:0", "--http-addr-file", addr_text.as_str()],
        ));
        station.set_clock(station_clock);
        station.start().map_err(KitError::io("start the station"))?;
        let mut agents = Vec::new();
        for number in 1..=nodes {
            let name = format!("n{number}");
            let bundle = home.join("bundles").join(&name).display().to_string();
            run_program(program, &home, &["node", "enroll", &name, "--out", &bundle])?;
            let link = Link::open(&addresses).await.map_err(KitError::io("open a link"))?;
            let state = home.join("nodes").join(&name);
            std::fs::create_dir_all(&state).map_err(KitError::io("make an agent's directory"))?;
            let (url, state_text) = (link.url(), state.display().to_string());
            let arguments = ["--server", &url, "agent", "--bundle", &bundle, "--state", &state_text];
            let clock = clock_of(&name, layout.clocks.get(number - 1));
            let mut process = Process::new(recipe(&name, &arguments));
            process.set_clock(clock.clone());
            agents.push(Agent { name, link, process: RefCell::new(process), state, clock });
        }
        let client_link = Link::open(&addresses).await.map_err(KitError::io("open a link"))?;
        starting.armed = false;
        let mut system = Self {
            home: home.clone(),
            program: program.to_owned(),
            brokers,
            station: RefCell::new(station),
            agents,
            client_link,
            server,
            client_clock,
            small_disk: None,
            left_out,
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

    /// Stops an agent as a service manager does, and waits for its end.
    pub async fn end_agent(&self, index: usize) {
        if let Some(pid) = self.agent(index).pid() {
            signal(pid, Signal::SIGTERM);
        }
        while self.agent(index).pid().is_some() && self.agent(index).ended().is_none() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The process of the station.
    pub fn station(&self) -> RefMut<'_, Process> {
        self.station.borrow_mut()
    }

    /// The process of a `steward broker`.
    pub fn broker(&self, index: usize) -> RefMut<'_, Process> {
        self.brokers[index % self.brokers.len()].borrow_mut()
    }

    /// How many brokers there are.
    pub fn brokers(&self) -> usize {
        self.brokers.len()
    }

    /// The process ids of agents and station, as they are now.
    pub fn pids(&self) -> (Vec<i32>, Option<i32>) {
        let pid = |process: Ref<'_, Process>| process.pid();
        (self.agents.iter().filter_map(|agent| pid(agent.process.borrow())).collect(), pid(self.station.borrow()))
    }

    /// The `nats-server` of a broker at the moment.
    pub fn nats_server(&self, index: usize) -> Option<i32> {
        let broker = self.brokers[index % self.brokers.len()].borrow().pid()?;
        children(broker).first().copied()
    }

    /// Sends a signal to a `nats-server`.
    pub fn signal_nats_server(&self, index: usize, which: Signal) {
        if let Some(pid) = self.nats_server(index) {
            signal(pid, which);
        }
    }

    /// Where the last node's journal lies on a disk that is small enough to be filled.
    pub fn small_disk(&self) -> Option<&Path> {
        self.small_disk.as_deref()
    }

    /// Writes on the small disk until not a byte more fits; `false` if there is none.
    pub fn fill_small_disk(&self) -> bool {
        let Some(disk) = self.small_disk() else { return false };
        let Ok(mut file) = std::fs::File::create(disk.join(BALLAST)) else { return true };
        for size in [1 << 20, 4096, 1] {
            let piece = vec![0; size];
            while file.write_all(&piece).is_ok() {}
        }
        true
    }

    /// Makes room on the small disk again.
    pub fn empty_small_disk(&self) {
        if let Some(disk) = self.small_disk() {
            // It may not be there when not a byte fitted.
            let _ = std::fs::remove_file(disk.join(BALLAST));
        }
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
        let recipe = recipe(&self.program, &self.home, name, &[&["--server", &url], arguments].concat());
        Recipe { clock: self.client_clock.clone(), ..recipe }
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
        self.brokers.iter().for_each(|broker| broker.borrow_mut().kill());
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
        if entry.path().is_file() && entry.file_name() != BALLAST {
            let _ = std::fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
}

fn recipe(program: &Path, home: &Path, name: &str, arguments: &[&str]) -> Recipe {
    // A part that has a home of its own says so itself.
    let own = arguments.first() == Some(&"--home");
    let before = [OsString::from("--home"), home.as_os_str().to_owned()].into_iter().filter(|_| !own);
    Recipe {
        name: name.to_owned(),
        program: program.to_owned(),
        arguments: before.chain(arguments.iter().map(OsString::from)).collect(),
        logs: home.join("logs"),
        home: home.to_owned(),
        clock: None,
    }
}

/// The homes of so many brokers: the system's own, and copies of it as `init` has made it.
fn broker_homes(home: &Path, count: usize) -> Result<Vec<PathBuf>, KitError> {
    let mut homes = vec![home.to_owned()];
    let made: Vec<PathBuf> =
        std::fs::read_dir(home).map_err(KitError::io("read the home"))?.flatten().map(|entry| entry.path()).collect();
    for number in 2..=count {
        let copy = home.join("brokers").join(number.to_string());
        std::fs::create_dir_all(&copy).map_err(KitError::io("make a broker's home"))?;
        std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(KitError::io("make a broker's home"))?;
        let copied = Command::new("cp").arg("-a").args(&made).arg(&copy).status();
        if !copied.map_err(KitError::io("copy the home"))?.success() {
            return Err(KitError::Wrong(format!("the home could not be copied to {}", copy.display())));
        }
        homes.push(copy);
    }
    Ok(homes)
}

/// What each of so many brokers is started with. Those of a cluster have to be told of each other: at ports that were
/// free a moment ago.
fn broker_arguments(count: usize) -> std::io::Result<Vec<Vec<String>>> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    if count == 1 {
        return Ok(vec![words(&["-o", "json", "broker", "--broker-listen", "127.0.0.1:0"])]);
    }
    let held: Vec<TcpListener> =
        (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
    let addresses: Vec<String> =
        held.iter().map(|held| held.local_addr().map(|address| address.to_string())).collect::<std::io::Result<_>>()?;
    let (clients, routes) = addresses.split_at(count);
    let one = |index: usize| {
        let mut all = words(&["-o", "json", "broker", "--broker-listen", &clients[index]]);
        all.extend(words(&["--cluster-listen", &routes[index], "--server-name", &format!("s{index}")]));
        for (_, route) in routes.iter().enumerate().filter(|(other, _)| *other != index) {
            all.extend(words(&["--cluster-route", route]));
        }
        all
    };
    Ok((0..count).map(one).collect())
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
