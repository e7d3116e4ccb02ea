//! A whole system for a test: the real broker, a station and agents, in a temporary home, by the program itself.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bus::{Bus, CORE_API, ConnectOptions, Credentials};
use serde_json::Value;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The name of the agent that `up` starts.
pub(crate) const HUB: &str = "hub";

/// The program under test.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steward"));
    for variable in ["NATS_URL", "NATS_CREDS", "STEWARD_HOME", "STEWARD_LOG"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// A running system.
pub(crate) struct World {
    home: tempfile::TempDir,
    up: Option<Child>,
    /// What `up` said when it was ready.
    pub(crate) ready: Value,
    agents: Vec<Agent>,
}

/// An agent beside the one that `up` runs.
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) child: Child,
}

impl World {
    /// Starts broker, station and the agent [`HUB`].
    pub(crate) fn up() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut world = Self { home, up: None, ready: Value::Null, agents: Vec::new() };
        world.start_up();
        world
    }

    /// Starts `up` on this home, for the first time or again.
    pub(crate) fn start_up(&mut self) {
        let mut child = program()
            .args(["up", "--broker-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--name", HUB, "-o", "json"])
            .arg("--home")
            .arg(self.home.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.up = Some(child);
        self.ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("up said {line:?}"));
    }

    /// Stops `up` as Ctrl-C does, and waits for its end.
    pub(crate) fn stop_up(&mut self) {
        let mut up = self.up.take().unwrap();
        send(up.id().try_into().unwrap(), 2);
        up.wait().unwrap();
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// A file of this world.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The process id of `up`.
    pub(crate) fn up_pid(&self) -> u32 {
        self.up.as_ref().unwrap().id()
    }

    /// The process id of the broker.
    pub(crate) fn broker_pid(&self) -> i32 {
        let home = self.home.path().to_str().unwrap();
        let found = pids(|line| line.contains("nats-server") && line.contains(home));
        assert_eq!(found.len(), 1, "one broker");
        found[0]
    }

    /// Runs the program to its end.
    pub(crate) fn steward(&self, arguments: &[&str]) -> Output {
        program().arg("--home").arg(self.home.path()).args(arguments).output().unwrap()
    }

    /// Runs the program, checks its exit code, and reads its output as JSON.
    pub(crate) fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let output = self.steward(&[&["-o", "json"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// Runs the program and reads its output as JSON, whatever its exit code.
    pub(crate) fn json_any(&self, arguments: &[&str]) -> Value {
        let output = self.steward(&[&["-o", "json"], arguments].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
    }

    /// Starts an agent and waits until it is online.
    pub(crate) fn agent(&mut self, name: &str, arguments: &[&str]) {
        self.start_agent(name, arguments);
        self.wait_for_state(name, "online");
    }

    /// Starts an agent.
    pub(crate) fn start_agent(&mut self, name: &str, arguments: &[&str]) {
        self.start_agent_in(name, arguments, []);
    }

    /// Starts an agent with more in its environment.
    pub(crate) fn start_agent_in(
        &mut self,
        name: &str,
        arguments: &[&str],
        environment: impl IntoIterator<Item = (&'static str, std::ffi::OsString)>,
    ) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("{name}.log"))).unwrap();
        let child = program()
            .arg("--home")
            .arg(self.home.path())
            .args(["agent", "--name", name])
            .args(arguments)
            .envs(environment)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agents.push(Agent { name: name.to_owned(), child });
    }

    /// Ends an agent by a signal and waits for its end.
    pub(crate) fn end_agent(&mut self, name: &str, signal: i32) {
        let index = self.agents.iter().position(|agent| agent.name == name).unwrap();
        let mut agent = self.agents.remove(index);
        send(agent.child.id().try_into().unwrap(), signal);
        agent.child.wait().unwrap();
    }

    /// The state of a node.
    pub(crate) fn state(&self, name: &str) -> String {
        let nodes = self.json(0, &["node", "ls"]);
        let node = nodes.as_array().unwrap().iter().find(|node| node["name"] == name);
        node.map_or_else(|| "missing".into(), |node| node["state"].as_str().unwrap().to_owned())
    }

    pub(crate) fn wait_for_state(&self, name: &str, state: &str) {
        eventually(&format!("{name} is {state}"), || self.state(name) == state);
    }

    /// A connection with the operator's own credentials, as any NATS client may have.
    pub(crate) async fn operator_bus(&self) -> Bus {
        let context = self.json(0, &["context", "show"]);
        let credentials = Credentials::load(Path::new(context["creds"].as_str().unwrap())).unwrap();
        Bus::connect(ConnectOptions {
            server: context["server"].as_str().unwrap().to_owned(),
            ca: None,
            credentials,
            name: "test".into(),
            inbox_prefix: Some("_INBOX_admin".into()),
            patient: false,
            ping_interval: Duration::from_secs(10),
            api_prefix: CORE_API,
        })
        .await
        .unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            let _ = agent.child.kill();
            let _ = agent.child.wait();
        }
        // What outlives its agent would outlive the test as well.
        let home = self.home.path().to_str().unwrap_or_default().to_owned();
        for keeper in keepers(&home) {
            send(keeper, 15);
        }
        if let Some(mut up) = self.up.take() {
            send(up.id().try_into().unwrap(), 15);
            let _ = up.wait();
        }
    }
}

/// The keepers whose command line holds this text.
pub(crate) fn keepers(place: &str) -> Vec<i32> {
    pids(|line| line.contains("keeper --state") && line.contains(place))
}

/// Sends a signal by the system's own program: the tests need no unsafe code for it.
pub(crate) fn send(pid: i32, signal: i32) {
    let _ = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
}

/// The processes whose command line is what is wanted.
pub(crate) fn pids(wanted: impl Fn(&str) -> bool) -> Vec<i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            wanted(&line).then_some(pid)
        })
        .collect()
}

/// What the station answers; nothing, if it does not.
pub(crate) fn get(address: &str, path: &str) -> String {
    let Ok(mut stream) = std::net::TcpStream::connect(address.trim_start_matches("http://")) else {
        return String::new();
    };
    let asked = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", stream.peer_addr().unwrap());
    let mut answer = String::new();
    let _ = stream.write_all(asked.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
    answer
}

/// Waits for a condition, with a deadline.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The lines of a file; none if there is no file.
pub(crate) fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(ToOwned::to_owned).collect()
}

/// Who has the fleet's keys may change and remove streams: nobody else can.
pub(crate) async fn provisioner(world: &World) -> Bus {
    let creds = bus::keys::FleetKeys::open(world.home()).unwrap().provisioner_user().unwrap();
    Bus::connect(ConnectOptions {
        server: world.ready["server"].as_str().unwrap().to_owned(),
        ca: None,
        credentials: Credentials::of(&creds).unwrap(),
        name: "test".into(),
        inbox_prefix: Some(creds.inbox_prefix().unwrap()),
        patient: false,
        ping_interval: Duration::from_secs(10),
        api_prefix: CORE_API,
    })
    .await
    .unwrap()
}

fn find(below: &Path, end: &str) -> Option<PathBuf> {
    std::fs::read_dir(below).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.to_str()?.ends_with(end) { Some(path) } else { path.is_dir().then(|| find(&path, end)).flatten() }
    })
}

/// Sets how many messages a stream may hold.
pub(crate) async fn limit(world: &World, stream: &str, messages: i64) {
    let path = find(&world.path("broker"), &format!("streams/{stream}/meta.inf")).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("Created");
    config["max_msgs"] = messages.into();
    let body = bytes::Bytes::from(config.to_string());
    provisioner(world)
        .await
        .publish(&format!("$JS.API.STREAM.UPDATE.{stream}"), bus::Headers::new(), body)
        .await
        .unwrap();
}
