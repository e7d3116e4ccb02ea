//! Children of this very program, kept running: `up` holds its station and its agent this way.
//!
//! Each child has a process group of its own, so that Ctrl-C on the terminal reaches `up` only, which then ends them
//! in the right order. A child that loses its parent ends by itself: see [`tie_to_parent`]. What must never happen
//! is that a killed `up` leaves somebody behind who holds a port, a journal or a name.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Tells a child which process must be its parent.
pub(crate) const PARENT_VARIABLE: &str = "STEWARD_PARENT";

const RESTART_FIRST: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// One that ran this long was well; its next failure is a first one.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// How long a child may take to end before it is killed.
const STOP_MAX: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// What it is called in messages.
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Variables to set (`Some`) or to take away.
    pub(crate) env: Vec<(&'static str, Option<OsString>)>,
}

/// How a child fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) pid: Option<u32>,
    /// How often it ended by itself.
    pub(crate) failures: u32,
    /// How it did so the last time.
    pub(crate) last_end: Option<String>,
}

/// A child that is kept running.
pub(crate) struct Kept {
    name: &'static str,
    stop: CancellationToken,
    fate: watch::Receiver<Fate>,
    keeper: JoinHandle<()>,
}

impl Kept {
    /// Starts it.
    pub(crate) fn start(program: Program) -> Self {
        let stop = CancellationToken::new();
        let (tell, fate) = watch::channel(Fate::default());
        let name = program.name;
        let keeper = tokio::spawn(keep(program, stop.clone(), tell));
        Self { name, stop, fate, keeper }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn fate(&self) -> Fate {
        self.fate.borrow().clone()
    }

    /// Ends it and waits for its end.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.keeper.await {
            tracing::error!(%error, "the keeper of the {} broke down", self.name);
        }
    }
}

async fn keep(program: Program, stop: CancellationToken, tell: watch::Sender<Fate>) {
    let mut pause = RESTART_FIRST;
    loop {
        let begun = Instant::now();
        let end = match Running::spawn(&program).await {
            Ok(running) => {
                tell.send_modify(|fate| fate.pid = Some(running.id()));
                tokio::select! {
                    () = stop.cancelled() => return running.stop(program.name).await,
                    end = running.ended() => end.map_or_else(|| "nobody knows how".to_owned(), describe),
                }
            }
            Err(error) => format!("it cannot be started: {error:#}"),
        };
        if begun.elapsed() >= WELL_AFTER {
            pause = RESTART_FIRST;
        }
        tracing::warn!("the {} ended by itself ({end}); it is started again in {} s", program.name, pause.as_secs());
        tell.send_modify(|fate| {
            fate.pid = None;
            fate.failures += 1;
            fate.last_end = Some(end);
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(RESTART_MAX);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// A child that runs.
struct Running {
    pid: Pid,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Running {
    async fn spawn(program: &Program) -> anyhow::Result<Self> {
        let mut command = Command::new(&program.path);
        command.args(&program.args).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        command.env(PARENT_VARIABLE, std::process::id().to_string());
        for (variable, value) in &program.env {
            match value {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        // The kernel sends the parent-death signal when the *thread* that started the child ends, so this one waits
        // for the child.
        let (started, starting) = oneshot::channel();
        let (end, ended) = watch::channel(None);
        let keeper = std::thread::Builder::new().name(format!("{}-keeper", program.name));
        keeper
            .spawn(move || match command.spawn() {
                Err(error) => drop(started.send(Err(error))),
                Ok(mut child) => {
                    drop(started.send(Ok(child.id())));
                    end.send_replace(child.wait().ok());
                }
            })
            .context("no thread for it")?;
        let id = starting.await.context("the thread that starts it ended")??;
        Ok(Self { pid: Pid::from_raw(i32::try_from(id)?), ended })
    }

    fn id(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    async fn ended(&self) -> Option<ExitStatus> {
        let mut ended = self.ended.clone();
        ended.wait_for(Option::is_some).await.ok().and_then(|status| *status)
    }

    async fn stop(self, name: &str) {
        self.signal(Signal::SIGTERM);
        if timeout(STOP_MAX, self.ended()).await.is_err() {
            tracing::warn!("the {name} did not stop within {} s and is killed", STOP_MAX.as_secs());
            // With the group go those whom it started and could not end itself.
            if self.ended.borrow().is_none() {
                let _ = killpg(self.pid, Signal::SIGKILL);
            }
            self.ended().await;
        }
    }

    /// The pid is still the child's: the thread that waits for it says when it is not.
    fn signal(&self, signal: Signal) {
        if self.ended.borrow().is_none() {
            let _ = kill(self.pid, signal);
        }
    }
}

/// Called by a child at its beginning: from now on it gets SIGTERM when its parent dies. Does nothing for a process
/// that no `up` has started.
pub(crate) fn tie_to_parent() -> anyhow::Result<()> {
    let Some(parent) = std::env::var(PARENT_VARIABLE).ok().and_then(|pid| pid.parse::<i32>().ok()) else {
        return Ok(());
    };
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).context("cannot be tied to the steward that started this one")?;
    // The parent may have died before the line above.
    anyhow::ensure!(nix::unistd::getppid().as_raw() == parent, "the steward that started this one is gone");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Program {
        Program { name: "child", path: "/bin/sh".into(), args: vec!["-c".into(), line.into()], env: Vec::new() }
    }

    #[tokio::test]
    async fn a_child_is_stopped_and_gone() {
        let kept = Kept::start(shell("exec sleep 100"));
        let mut fate = kept.fate.clone();
        let pid = fate.wait_for(|fate| fate.pid.is_some()).await.unwrap().pid.unwrap();
        kept.stop().await;
        assert!(kill(Pid::from_raw(i32::try_from(pid).unwrap()), None).is_err());
    }

    #[tokio::test]
    async fn a_child_that_ends_is_started_again() {
        let kept = Kept::start(shell("exit 7"));
        let mut fate = kept.fate.clone();
        let seen = fate.wait_for(|fate| fate.failures >= 2).await.unwrap().clone();
        assert_eq!(seen.last_end.as_deref(), Some("exit code 7"));
        kept.stop().await;
    }

    #[tokio::test]
    async fn a_child_that_cannot_be_started_is_told() {
        let mut program = shell("");
        program.path = "/nonexistent".into();
        let kept = Kept::start(program);
        let mut fate = kept.fate.clone();
        let seen = fate.wait_for(|fate| fate.failures >= 1).await.unwrap().clone();
        assert!(seen.last_end.unwrap().contains("No such file"));
        kept.stop().await;
    }
}
