//! `steward doctor`: is this host set up as it should be, and what is to be mended?

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bus::broker::find_server;
use bus::keys::FleetKeys;
use bus::{clock, streams};
use fleet::{Fleet, Home};
use message::units::human_duration;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use serde::Serialize;

use super::station::HTTP_LISTEN;
use crate::exit::Exit;
use crate::probe::http_status;
use crate::render::paint::Paint;
use crate::session::Session;

/// Clocks that differ by more make expiry and "not yet valid" a matter of luck.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(5);
/// Below this, stores and journals will soon stop.
const FREE_BYTES_MIN: u64 = 256 << 20;
const FREE_BYTES_LOW: u64 = 2 << 30;
/// A connection takes a file.
const OPEN_FILES_LOW: u64 = 4096;

/// Check this host's set-up and say what to mend.
///
/// The exit code is 1 when something is wrong; what is only worth knowing does not count.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steward doctor\n  steward doctor -o json")]
pub(crate) struct Args {
    /// Where to look for the station
    #[arg(long, value_name = "ADDR:PORT", default_value = HTTP_LISTEN)]
    http: std::net::SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Warning,
    Wrong,
}

/// What was looked at, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, found: found.into(), mend: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, found: found.into(), mend: Some(mend.into()) }
    }

    fn wrong(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Wrong, found: found.into(), mend: Some(mend.into()) }
    }

    fn line(&self, colors: bool) -> String {
        let (mark, paint) = match self.verdict {
            Verdict::Good => ("✓", Paint::Green),
            Verdict::Warning => ("!", Paint::Yellow),
            Verdict::Wrong => ("✗", Paint::Red),
        };
        let mend = self.mend.as_ref().map(|mend| format!("\n    → {mend}")).unwrap_or_default();
        format!("{} {}: {}{mend}", paint.on(mark, colors), self.check, self.found)
    }
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let home = session.home()?;
    let mut findings = vec![server().await, home_mode(home.dir()), keys(&home), disk(home.dir()), open_files()];
    findings.extend(fleet(session).await);
    findings.push(station(args.http, http_noted(&home)).await);
    let wrong = findings.iter().any(|finding| finding.verdict == Verdict::Wrong);
    if session.out.is_json() {
        session.out.json_list(&findings)?;
    } else {
        let colors = session.out.colors();
        findings.iter().try_for_each(|finding| session.out.line(finding.line(colors)))?;
    }
    Ok(if wrong { Exit::Error } else { Exit::Success })
}

async fn server() -> Finding {
    const CHECK: &str = "nats-server";
    match find_server().await {
        Ok(server) => Finding::good(CHECK, format!("{} at {}", server.version, server.path.display())),
        Err(error) => Finding::wrong(
            CHECK,
            error.to_string(),
            "install nats-server 2.11 or later, or point STEWARD_NATS_SERVER to one; a host that only runs an agent needs none",
        ),
    }
}

fn home_mode(dir: &Path) -> Finding {
    const CHECK: &str = "home";
    match std::fs::metadata(dir) {
        Err(error) => Finding::wrong(
            CHECK,
            format!("{}: {error}", dir.display()),
            "`steward up` makes one, --home points to another",
        ),
        Ok(meta) if meta.permissions().mode() & 0o022 != 0 => Finding::wrong(
            CHECK,
            format!("others may change {} (mode {:o})", dir.display(), meta.permissions().mode() & 0o777),
            format!("chmod go-w {}", dir.display()),
        ),
        Ok(_) => Finding::good(CHECK, dir.display().to_string()),
    }
}

/// A host that only orders, or only obeys, has none: no fault.
fn keys(home: &Home) -> Finding {
    const CHECK: &str = "fleet keys";
    if !FleetKeys::exist(home.dir()) {
        return Finding::warning(
            CHECK,
            format!("none in {}", home.keys_dir().display()),
            "only the host where nodes are enrolled needs them; `steward up` or `steward init` makes a new fleet",
        );
    }
    match FleetKeys::open(home.dir()) {
        Ok(_) => Finding::good(CHECK, format!("{}, for its owner only", home.keys_dir().display())),
        Err(error) => Finding::wrong(
            CHECK,
            error.to_string(),
            "do as it says: without keys no node can be enrolled and no broker started",
        ),
    }
}

fn disk(dir: &Path) -> Finding {
    const CHECK: &str = "disk";
    // The home may not be there yet; the disk that it would lie on is.
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    match statvfs(existing) {
        Err(error) => Finding::warning(CHECK, format!("{}: {error}", existing.display()), "look at it with `df`"),
        Ok(disk) => {
            // The width of these numbers differs between systems.
            #[allow(clippy::useless_conversion)]
            let free = u64::from(disk.blocks_available()).saturating_mul(u64::from(disk.fragment_size()));
            judge_disk(free, existing)
        }
    }
}

fn judge_disk(free: u64, dir: &Path) -> Finding {
    const CHECK: &str = "disk";
    let found = format!("{} MiB free at {}", free >> 20, dir.display());
    let mend = "make room: without it the broker takes no orders and no answers";
    match free {
        0..FREE_BYTES_MIN => Finding::wrong(CHECK, found, mend),
        FREE_BYTES_MIN..FREE_BYTES_LOW => Finding::warning(CHECK, found, mend),
        _ => Finding::good(CHECK, found),
    }
}

fn open_files() -> Finding {
    const CHECK: &str = "open files";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft < OPEN_FILES_LOW => Finding::warning(
            CHECK,
            format!("at most {soft} for one process"),
            "enough for some thousand nodes' broker is 65536: `ulimit -n 65536`, or LimitNOFILE= in its unit",
        ),
        Ok((soft, _)) => Finding::good(CHECK, format!("at most {soft} for one process")),
        Err(error) => Finding::warning(CHECK, error.to_string(), "look at it with `ulimit -n`"),
    }
}

/// Broker, streams and clock: one after the other, as each needs the one before.
async fn fleet(session: &Session) -> Vec<Finding> {
    const BROKER: &str = "broker";
    let fleet = match session.connect().await {
        Ok(fleet) => fleet,
        Err(error) => {
            let said = crate::exit::sentence(&error);
            return vec![Finding::wrong(
                BROKER,
                said,
                "start it with `steward up` or `steward broker`, or correct the context",
            )];
        }
    };
    let version = fleet.bus().server_version().unwrap_or_else(|| "of unknown version".to_owned());
    let asked = Instant::now();
    let trip = match fleet.bus().kv_get(streams::META, "epoch").await {
        Ok(_) => format!(", answers within {:.1} ms", asked.elapsed().as_secs_f64() * 1e3),
        Err(error) => format!(", but: {error}"),
    };
    let mut findings =
        vec![Finding::good(BROKER, format!("nats-server {version} at {}{trip}", fleet.context().server))];
    findings.push(operator(&fleet));
    findings.extend(streams_and_clock(&fleet).await);
    fleet.close().await;
    findings
}

fn operator(fleet: &Fleet) -> Finding {
    const CHECK: &str = "operator";
    match fleet.operator() {
        Some(name) => Finding::good(CHECK, format!("{name} may order")),
        None => Finding::wrong(
            CHECK,
            format!("{} may not order", fleet.key()),
            "use the credentials of an operator of this fleet: `steward context show` tells which are used",
        ),
    }
}

/// The read that shows the streams also brings the broker's time.
async fn streams_and_clock(fleet: &Fleet) -> Vec<Finding> {
    const STREAMS: &str = "streams";
    const MEND: &str = "`steward broker` or `steward up` on the host with the fleet's keys sets them up";
    let mut missing = Vec::new();
    for (stream, kind) in [(streams::COMMANDS, "command"), (streams::EVENTS, "event"), (streams::REPLIES, "reply")] {
        // Nothing has this subject: it is only asked whether there is somebody to ask.
        let none = [format!("doctor.{kind}.none.none")];
        if let Err(error) = bus::Scan::open(fleet.bus(), stream, &none, bus::Start::LastPerSubject).await {
            missing.push(format!("{stream} ({error})"));
        }
    }
    for bucket in [streams::NODES, streams::PRESENCE, streams::FACTS, streams::JOBS, streams::POLICY, streams::META] {
        if let Err(error) = fleet.bus().kv_get(bucket, "doctor").await {
            missing.push(format!("{bucket} ({error})"));
        }
    }
    let mut findings = vec![if missing.is_empty() {
        Finding::good(STREAMS, "all there")
    } else {
        Finding::wrong(STREAMS, format!("not to be had: {}", missing.join(", ")), MEND)
    }];
    if let Ok(view) = fleet.nodes().await {
        findings.push(judge_clock(clock::now(), view.at));
    }
    findings
}

fn judge_clock(ours: message::Timestamp, brokers: message::Timestamp) -> Finding {
    const CHECK: &str = "clock";
    let (off, word) = if ours > brokers { (ours.since(brokers), "ahead of") } else { (brokers.since(ours), "behind") };
    if off > CLOCK_OFF_MAX {
        let found = format!("{} {word} the broker's", human_duration(off));
        Finding::wrong(CHECK, found, "set the clocks by NTP: orders expire by them")
    } else {
        Finding::good(CHECK, format!("within {} of the broker's", human_duration(off.max(Duration::from_millis(1)))))
    }
}

/// Where the `up` of this home says that its station is.
fn http_noted(home: &Home) -> Option<std::net::SocketAddr> {
    let note: serde_json::Value = serde_json::from_slice(&std::fs::read(home.dir().join("up.json")).ok()?).ok()?;
    note.get("http")?.as_str()?.strip_prefix("http://")?.parse().ok()
}

/// Nothing needs a station to order, so its absence is no fault.
async fn station(named: std::net::SocketAddr, noted: Option<std::net::SocketAddr>) -> Finding {
    const CHECK: &str = "station";
    let address = noted.unwrap_or(named);
    match http_status(address, "/readyz").await {
        Ok(200) => Finding::good(CHECK, format!("ready at http://{address}")),
        Ok(status) => {
            Finding::warning(CHECK, format!("not ready at http://{address} (status {status})"), "its log says why")
        }
        Err(error) => Finding::warning(
            CHECK,
            format!("none at http://{address}: {error}"),
            "start it with `steward up` or `steward station`, if you want its web page; orders do not need it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use message::Timestamp;

    use super::*;

    #[test]
    fn each_line_says_what_was_found_and_what_to_mend() {
        assert_eq!(Finding::good("disk", "fine").line(false), "✓ disk: fine");
        assert_eq!(Finding::wrong("disk", "full", "make room").line(false), "✗ disk: full\n    → make room");
        assert_eq!(Finding::warning("disk", "low", "make room").line(false), "! disk: low\n    → make room");
    }

    #[test]
    fn clocks_and_disks_are_judged() {
        let at = Timestamp::from_ms;
        assert_eq!(judge_clock(at(10_000), at(11_000)).verdict, Verdict::Good);
        let behind = judge_clock(at(10_000), at(70_000));
        assert_eq!((behind.verdict, behind.found.as_str()), (Verdict::Wrong, "1m behind the broker's"));
        assert_eq!(judge_disk(100 << 20, Path::new("/")).verdict, Verdict::Wrong);
        assert_eq!(judge_disk(1 << 30, Path::new("/")).verdict, Verdict::Warning);
        assert_eq!(judge_disk(8 << 30, Path::new("/")).verdict, Verdict::Good);
    }

    #[test]
    fn a_home_that_others_may_change_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(home_mode(dir.path()).verdict, Verdict::Good);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(home_mode(dir.path()).verdict, Verdict::Wrong);
        assert_eq!(home_mode(Path::new("/nonexistent")).verdict, Verdict::Wrong);
    }
}
