//! One program under test: started, killed, frozen, thawed, started again.
//!
//! Each has a process group of its own. What flows in is what to run; what it says goes to files. It must never leave
//! a process behind: dropping it kills the group.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::wrong_clock::WrongClock;

/// Variables that would lead a program of the system under test elsewhere.
const MISLEADING: [&str; 6] =
    ["NATS_URL", "NATS_CREDS", "STEWARD_HOME", "STEWARD_LOG", "STEWARD_PARENT", "STEWARD_TESTKIT"];
/// Every process of a system carries this variable with the system's directory, and so do those that it starts.
pub(crate) const MARK: &str = "STEWARD_TESTKIT";

/// What to run.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What it is called in reports, and its files.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where `<name>.out` and `<name>.log` go.
    pub logs: PathBuf,
    /// The directory of the system that it belongs to.
    pub home: PathBuf,
    /// The clock that it lives by, where that is not the machine's.
    pub clock: Option<WrongClock>,
}

impl Recipe {
    /// Where its standard output goes.
    pub fn output(&self) -> PathBuf {
        self.logs.join(format!("{}.out", self.name))
    }

    /// Where its standard error goes.
    pub fn log(&self) -> PathBuf {
        self.logs.join(format!("{}.log", self.name))
    }

    /// The command, without anywhere to write to.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for variable in MISLEADING {
            command.env_remove(variable);
        }
        command.envs(self.clock.iter().flat_map(WrongClock::environment));
        command.args(&self.arguments).env(MARK, &self.home).stdin(Stdio::null()).process_group(0);
        command
    }
}

/// A program that may be running.
#[derive(Debug)]
pub struct Process {
    recipe: Recipe,
    child: Option<Child>,
}

impl Process {
    /// One that is not running yet.
    pub const fn new(recipe: Recipe) -> Self {
        Self { recipe, child: None }
    }

    /// What it runs.
    pub const fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// From its next start on it lives by this clock.
    pub fn set_clock(&mut self, clock: Option<WrongClock>) {
        self.recipe.clock = clock;
    }

    /// Starts it; one that runs is ended first.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> io::Result<()> {
        self.kill();
        let log = append(&self.recipe.log())?;
        let out = File::create(self.recipe.output())?;
        self.child = Some(self.recipe.command().stdout(out).stderr(log).spawn()?);
        Ok(())
    }

    /// Its process id, as long as it was not ended from here.
    pub fn pid(&self) -> Option<i32> {
        self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok())
    }

    /// How it ended, if it did so by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let ended = self.child.as_mut()?.try_wait().ok().flatten();
        if ended.is_some() {
            self.child = None;
        }
        ended
    }

    /// kill -9, of this process alone: what it has started is left as a crash would leave it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; then there is nobody to kill, and only its end to be noted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, which: Signal) {
        if let Some(pid) = self.pid() {
            // The child has not been waited for, so its id is still its own.
            let _ = kill(Pid::from_raw(pid), which);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.kill();
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// The processes that belong to the system in `home`, by the mark in their environment.
pub(crate) fn of_system(home: &Path) -> Vec<i32> {
    let mark = format!("{MARK}={}", home.display()).into_bytes();
    let environment = |pid: i32| std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    pids().filter(|pid| environment(*pid).split(|byte| *byte == 0).any(|variable| variable == mark)).collect()
}

/// Ends what is left of a system when this program is killed and can do so no more.
///
/// It holds the reading end of a pipe of which only this program has the other: its end tells of ours.
#[derive(Debug)]
pub(crate) struct Watchdog(Child);

/// `$1` is the mark, `$2` a disk that may be mounted. Twice, since one may just be starting another.
const WATCH: &str = r#"
read -r _
for _ in 1 2; do
  for pid in $(grep -alzxF "$1" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3); do kill -9 "$pid"; done
  sleep 0.2
done
umount -l "$2"
"#;

impl Watchdog {
    pub(crate) fn start(home: &Path, disk: Option<&Path>) -> io::Result<Self> {
        let mark = format!("{MARK}={}", home.display());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", WATCH, "watchdog", &mark]).arg(disk.unwrap_or(Path::new("/nonexistent")));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        command.spawn().map(Self)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // All has been ended by then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The children of a process.
pub(crate) fn children(parent: i32) -> Vec<i32> {
    pids()
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Field 4 of proc(5); the name before it may hold anything but ends with the last parenthesis.
            let parent_of = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
            parent_of == Some(parent)
        })
        .collect()
}

/// The resident memory of a process.
pub(crate) fn rss_bytes(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn pids() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

/// A signal to any process of a system; one that is gone is no error.
pub(crate) fn signal(pid: i32, which: Signal) {
    let _ = kill(Pid::from_raw(pid), which);
}
