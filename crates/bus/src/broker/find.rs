//! Finds a nats-server that is new enough.
//!
//! In flows the environment; out flows the path and version of the first candidate that will do, or the list of what
//! was found and why it will not. It runs candidates with `--version` and nothing else.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Subject transforms, per-message rights and what else Steward builds on are there since this version.
pub const OLDEST: Version = Version { major: 2, minor: 11, patch: 0 };
/// Names the server to use before all others.
pub const VARIABLE: &str = "STEWARD_NATS_SERVER";
const NAME: &str = "nats-server";
/// It answers within milliseconds; what takes longer is no nats-server.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A version of nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// Reads what `nats-server --version` prints, e.g. `nats-server: v2.11.0-RC.1`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let numbers = text.trim().strip_prefix("nats-server:")?.trim().trim_start_matches('v');
        let mut numbers = numbers.splitn(3, '.').map(|part| {
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse().ok()
        });
        Some(Self { major: numbers.next()??, minor: numbers.next()??, patch: numbers.next()?? })
    }
}

/// A nats-server that will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its program file.
    pub path: PathBuf,
    /// What it says it is.
    pub version: Version,
}

/// No nats-server will do.
#[derive(Debug, thiserror::Error)]
#[error("no nats-server of version {OLDEST} or later: {}; run `scripts/setup`, which installs one, or set {VARIABLE} to its path", list(.0))]
pub struct NoServer(pub Vec<Finding>);

/// What was found at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub path: PathBuf,
    /// Why it will not do.
    pub verdict: String,
}

fn list(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return format!(
            "there is none on the PATH, beside this program, or in ~/.cache/steward, and {VARIABLE} is not set"
        );
    }
    findings.iter().map(|found| format!("{} {}", found.path.display(), found.verdict)).collect::<Vec<_>>().join(", ")
}

/// Looks at `STEWARD_NATS_SERVER`, the `PATH`, beside this program, and in the user's cache, in this order.
///
/// # Errors
/// When none will do: what was found where.
pub async fn find_server() -> Result<Server, NoServer> {
    first_of(candidates()).await
}

/// The first of `candidates` that is a nats-server and new enough.
///
/// # Errors
/// When none is.
pub async fn first_of(candidates: Vec<PathBuf>) -> Result<Server, NoServer> {
    let mut findings = Vec::new();
    for path in candidates {
        let verdict = match version_of(&path).await {
            Ok(version) if version >= OLDEST => return Ok(Server { path, version }),
            Ok(version) => format!("is version {version}"),
            Err(verdict) => verdict,
        };
        findings.push(Finding { path, verdict });
    }
    Err(NoServer(findings))
}

async fn version_of(path: &Path) -> Result<Version, String> {
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = match timeout(ANSWER_MAX, command.output()).await {
        Ok(output) => output.map_err(|error| format!("does not run ({error})"))?,
        Err(_) => return Err(format!("does not answer to --version within {} s", ANSWER_MAX.as_secs())),
    };
    Version::parse(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| "is something else".to_owned())
}

/// Where a server may be. What somebody named is looked at even if missing, so that the error speaks of it.
fn candidates() -> Vec<PathBuf> {
    let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cached = [cache, home].into_iter().flatten().map(|cache| cache.join("steward"));

    let named = env::var_os(VARIABLE).filter(|named| !named.is_empty()).map(PathBuf::from);
    let searched = on_path.into_iter().chain(beside).chain(cached).map(|dir| dir.join(NAME));
    named.into_iter().chain(searched.filter(|path| path.is_file())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let read = |text| Version::parse(text);
        assert_eq!(read("nats-server: v2.15.1\n"), Some(Version { major: 2, minor: 15, patch: 1 }));
        assert_eq!(read("nats-server: v2.11.0-RC.1"), Some(OLDEST));
        assert_eq!(read("nginx version: nginx/1.2.3"), None);
        assert_eq!(read("nats-server: v2"), None);
        assert!(read("nats-server: v2.9.25").unwrap() < OLDEST && read("nats-server: v3.0.0").unwrap() > OLDEST);
    }
}
