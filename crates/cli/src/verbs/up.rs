//! `steward up`: broker, station and one agent, in one process tree, until Ctrl-C.
//!
//! This process keeps the broker; station and agent are children of its own kind. They end in the order in which
//! they depend on each other: agent, station, broker.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use fleet::{Fleet, FleetError, Home};
use message::{InstanceId, NodeName};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::station::HTTP_LISTEN;
use crate::args::host_node_name;
use crate::exit::{Exit, Usage};
use crate::home_broker::{self, LISTEN, SERVER, TlsArgs};
use crate::logging;
use crate::probe::http_status;
use crate::render::paint::Paint;
use crate::session::Session;
use crate::signals::StopSignals;
use crate::supervise::{Kept, Program};

/// How long all of it may take to get ready, unless --timeout says otherwise.
const READY_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether all is ready.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A child that has ended this often before all was ready will not get ready.
const FAILURES_MAX: u32 = 3;
/// How long one that was killed may take to be gone.
const DYING_MAX: Duration = Duration::from_millis(300);
/// Below the home: how to reach what runs there.
const NOTE_FILE: &str = "up.json";

/// Run a whole system on this host: broker, station and one agent.
///
/// Makes a fleet in --home if there is none. Ctrl-C stops all of it; what was ordered and reported stays in --home.
/// With -o json, one line tells how to reach it as soon as all is ready. --timeout bounds how long that may take.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    steward up\n  \
    steward up --home ./try --broker-listen 127.0.0.1:0 --http-listen 127.0.0.1:0 --name ship1 -o json")]
pub(crate) struct Args {
    /// Where the broker listens; port 0 picks a free one and keeps it
    #[arg(long, value_name = "ADDR:PORT", default_value = LISTEN)]
    broker_listen: SocketAddr,

    /// Where the station's web page is; port 0 picks a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = HTTP_LISTEN)]
    http_listen: SocketAddr,

    /// The agent's name [default: this host's up to its first dot]
    #[arg(long, value_name = "NODE", conflicts_with = "no_agent")]
    name: Option<NodeName>,

    /// Broker and station only
    #[arg(long)]
    no_agent: bool,

    #[command(flatten)]
    tls: TlsArgs,
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    session.refuse_server_flags("up")?;
    if session.global.context.is_some() {
        return Err(Usage::new("`steward up` has no use for --context: it works on its home's own fleet").into());
    }
    let home = session.home()?;
    let agent = match (args.no_agent, args.name) {
        (true, _) => None,
        (false, Some(name)) => Some(name),
        (false, None) => Some(host_node_name()?),
    };
    refuse_second(&home).await?;
    let cancel = StopSignals::new()?.cancel();
    if !fleet::is_initialized(&home) {
        fleet::init(&home, SERVER)?;
        session.out.note(format!("a new fleet is made in {}", home.dir().display()));
    }
    let (broker, fleet) = tokio::select! {
        started = home_broker::start(&home, args.broker_listen, &args.tls) => started?,
        () = cancel.cancelled() => return Ok(Exit::Success),
    };
    let server = broker.client_url();
    let stop_broker = CancellationToken::new();
    let keeping = tokio::spawn(broker.supervise(stop_broker.clone()));

    let mut children = Vec::new();
    let ended =
        run_with_broker(session, &home, &server, args.http_listen, agent.as_ref(), &fleet, &mut children, &cancel)
            .await;

    let _ = std::fs::remove_file(home.dir().join(NOTE_FILE));
    // The last one started depends on those before it.
    while let Some(child) = children.pop() {
        tracing::info!("stopping the {}", child.name());
        child.stop().await;
    }
    fleet.close().await;
    stop_broker.cancel();
    keeping.await.context("the keeper of the broker broke down")?;
    ended.map(|()| Exit::Success)
}

/// Everything above the broker, until `cancel`.
#[allow(clippy::too_many_arguments)] // one caller, and all of it belongs together
async fn run_with_broker(
    session: &mut Session,
    home: &Home,
    server: &str,
    http_listen: SocketAddr,
    agent: Option<&NodeName>,
    fleet: &Fleet,
    children: &mut Vec<Kept>,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    let http = free_address(http_listen)?;
    let boot_before = match agent {
        Some(name) => boot_of(fleet, name).await?,
        None => None,
    };
    let exe = std::env::current_exe().context("this program cannot find itself")?;
    let child = |name, args: &[&str]| program(&exe, name, home.dir(), session.global.verbose, args);
    children.push(Kept::start(child("station", &["--http-listen", &http.to_string()])));
    if let Some(name) = agent {
        children.push(Kept::start(child("agent", &["--name", name.as_str(), "--end-commands"])));
    }
    let limit = session.global.timeout.unwrap_or(READY_MAX);
    tokio::select! {
        ready = wait_until_ready(fleet, http, agent, boot_before, children, limit) => ready?,
        () = cancel.cancelled() => return Ok(()),
    }
    let note = Note { pid: std::process::id(), server: server.to_owned(), http: format!("http://{http}") };
    note.write(home)?;
    announce(session, home, &note, agent)?;
    cancel.cancelled().await;
    session.out.note("stopping");
    Ok(())
}

/// Somebody's address, whole; a taken one is told before anything is started for it.
fn free_address(wanted: SocketAddr) -> anyhow::Result<SocketAddr> {
    let bound = TcpListener::bind(wanted).and_then(|listener| listener.local_addr());
    bound.with_context(|| {
        format!(
            "the station cannot listen on {wanted}; choose another address with --http-listen (port 0 picks a free one)"
        )
    })
}

fn program(exe: &Path, name: &'static str, home: &Path, verbose: u8, args: &[&str]) -> Program {
    let mut all: Vec<OsString> = vec!["--home".into(), home.into(), name.into()];
    all.extend(args.iter().map(OsString::from));
    // Where the broker is stands in the home; variables meant for other programs must not lead elsewhere.
    let mut env = vec![("NATS_URL", None), ("NATS_CREDS", None), ("STEWARD_HOME", None)];
    if std::env::var_os(logging::VARIABLE).is_none() {
        let level = match verbose {
            0 => "warn,async_nats=error",
            1 => "info",
            _ => "debug,async_nats=info",
        };
        env.push((logging::VARIABLE, Some(OsString::from(level))));
    }
    Program { name, path: PathBuf::from(exe), args: all, env }
}

/// The run that the node's last sign of life is from; none if it never gave one.
async fn boot_of(fleet: &Fleet, name: &NodeName) -> anyhow::Result<Option<InstanceId>> {
    match fleet.node(name).await {
        Ok(node) => Ok(node.sign.map(|sign| sign.boot)),
        Err(FleetError::NoMatch { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Until the station says that it is ready, and the agent's present run has given a sign of life.
async fn wait_until_ready(
    fleet: &Fleet,
    http: SocketAddr,
    agent: Option<&NodeName>,
    boot_before: Option<InstanceId>,
    children: &[Kept],
    limit: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    let (mut station_ready, mut agent_ready) = (false, agent.is_none());
    loop {
        if !station_ready {
            station_ready = http_status(http, "/readyz").await.is_ok_and(|status| status == 200);
        }
        if let Some(name) = agent.filter(|_| !agent_ready) {
            agent_ready = match fleet.node(name).await {
                Ok(node) => {
                    let online = node.vitality.state.is_reachable();
                    online && node.sign.is_some_and(|sign| Some(sign.boot) != boot_before)
                }
                Err(FleetError::NoMatch { .. } | FleetError::Bus(_)) => false,
                Err(error) => return Err(error.into()),
            };
        }
        if station_ready && agent_ready {
            return Ok(());
        }
        for child in children {
            let fate = child.fate();
            if fate.failures >= FAILURES_MAX {
                let how = fate.last_end.unwrap_or_default();
                anyhow::bail!(
                    "the {} does not run: it ended {} times, at last with {how}; what it says stands above",
                    child.name(),
                    fate.failures
                );
            }
        }
        if Instant::now() >= deadline {
            let missing = if station_ready { "the agent gave no sign of life" } else { "the station was not ready" };
            anyhow::bail!("{missing} within {}; look at what it says with -v", message::units::human_duration(limit));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// How to reach what runs on a home.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    pid: u32,
    server: String,
    http: String,
}

impl Note {
    fn write(&self, home: &Home) -> anyhow::Result<()> {
        let path = home.dir().join(NOTE_FILE);
        std::fs::write(&path, serde_json::to_vec(self)?).with_context(|| format!("cannot write {}", path.display()))
    }

    fn read(home: &Home) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(home.dir().join(NOTE_FILE)).ok()?).ok()
    }
}

/// A second `up` on one home is told how to reach the first one. Only for the sake of that: what keeps it out in any
/// case is the broker's lock.
async fn refuse_second(home: &Home) -> anyhow::Result<()> {
    let Some(note) = Note::read(home) else { return Ok(()) };
    // A note may be left over from one that was killed, and its process id may be another's by now.
    let answers = match note.server.strip_prefix("nats://") {
        Some(address) => tokio::net::TcpStream::connect(address).await.is_ok(),
        None => false,
    };
    let mut alive = answers && is_alive(note.pid);
    if alive {
        // One that was killed this moment takes a moment to be gone.
        sleep(DYING_MAX).await;
        alive = is_alive(note.pid);
    }
    anyhow::ensure!(
        !alive,
        "{} is up already (process {}): its broker is {}, its web page {}; use it as it is, or stop it with `kill {}`",
        home.dir().display(),
        note.pid,
        note.server,
        note.http,
        note.pid
    );
    Ok(())
}

/// Whether a process runs; one that has ended and was not waited for does not.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state stands behind the name, which is in parentheses and may hold any character (proc(5)).
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

fn announce(session: &mut Session, home: &Home, note: &Note, agent: Option<&NodeName>) -> anyhow::Result<()> {
    if session.out.is_json() {
        session.out.json_line(&json!({"server": note.server, "http": note.http, "home": home.dir()}))?;
        return session.out.flush();
    }
    let flags = session.flags_again();
    let colors = session.out.colors();
    for line in block(home, note, agent, &flags, colors) {
        session.out.line(line)?;
    }
    session.out.flush()
}

fn block(home: &Home, note: &Note, agent: Option<&NodeName>, flags: &str, colors: bool) -> Vec<String> {
    let field = |name: &str, value: &str| format!("  {} {value}", Paint::Bold.on(&format!("{name:<9}"), colors));
    let mut lines = vec![
        Paint::Green.on("Steward is up.", colors),
        field("broker", &note.server),
        field("web page", &note.http),
        field("home", &home.dir().display().to_string()),
        field("node", &agent.map_or_else(|| "none (--no-agent)".to_owned(), |name| format!("{name}, online"))),
        String::new(),
        "Try in another terminal:".to_owned(),
    ];
    let tries = match agent {
        Some(name) => [
            format!("steward{flags} node ls"),
            format!("steward{flags} run {name} -- uname -a"),
            format!("steward{flags} job show last"),
        ],
        None => [
            format!("steward{flags} node ls"),
            format!("steward{flags} agent --name ship1"),
            format!("steward{flags} doctor"),
        ],
    };
    lines.extend(tries.into_iter().map(|line| format!("  {line}")));
    lines.push(String::new());
    lines.push("Ctrl-C stops it all.".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_tells_how_to_reach_it_and_what_to_try() {
        let home = Home::new("/tmp/h");
        let note = Note { pid: 7, server: "nats://127.0.0.1:4222".into(), http: "http://127.0.0.1:8420".into() };
        let ship = NodeName::new("ship1").unwrap();
        let expected = "\
Steward is up.
  broker    nats://127.0.0.1:4222
  web page  http://127.0.0.1:8420
  home      /tmp/h
  node      ship1, online

Try in another terminal:
  steward --home /tmp/h node ls
  steward --home /tmp/h run ship1 -- uname -a
  steward --home /tmp/h job show last

Ctrl-C stops it all.";
        assert_eq!(block(&home, &note, Some(&ship), " --home /tmp/h", false).join("\n"), expected);
    }

    #[tokio::test]
    async fn a_second_up_is_told_where_the_first_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        refuse_second(&home).await.unwrap();
        let broker = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("nats://{}", broker.local_addr().unwrap());
        let note = Note { pid: std::process::id(), server: server.clone(), http: "http://x:2".into() };
        note.write(&home).unwrap();
        let text = refuse_second(&home).await.unwrap_err().to_string();
        assert!(text.contains(&server) && text.contains("http://x:2") && text.contains("kill "), "{text}");
        drop(broker);
        refuse_second(&home).await.unwrap();
    }

    #[test]
    fn a_taken_port_is_told_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = free_address(taken.local_addr().unwrap()).unwrap_err();
        assert!(format!("{error:#}").contains("--http-listen"));
        assert_ne!(free_address(([127, 0, 0, 1], 0).into()).unwrap().port(), 0);
    }

    #[test]
    fn children_are_not_led_elsewhere_by_variables() {
        let program = program(Path::new("/x"), "agent", Path::new("/h"), 0, &["--name", "ship1"]);
        assert_eq!(program.args, ["--home", "/h", "agent", "--name", "ship1"]);
        assert!(program.env.contains(&("NATS_URL", None)) && program.env.contains(&("NATS_CREDS", None)));
    }
}
