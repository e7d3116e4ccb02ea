//! The server's process: started so that it cannot outlive us, watched, and stopped.
//!
//! In flows the path of a configuration; out flows how the process ended. A process that this module did not start is
//! only ever ended if it runs with exactly the configuration of this home, and its parent is gone.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

/// How long a server may take to close its files before it is killed.
pub(super) const STOP_MAX: Duration = Duration::from_secs(10);
/// How often a process that is not our child is looked at while it ends.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running server. Dropping it asks the server to stop, without waiting.
pub(super) struct Process {
    pid: Pid,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts `server -c conf` in a process group of its own, so that Ctrl-C in a terminal does not take it down
    /// before those who still have to say goodbye through it.
    pub(super) async fn spawn(server: &Path, conf: &Path, stderr: &Path) -> io::Result<Self> {
        let mut command = Command::new(server);
        command.arg("-c").arg(conf);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(stderr)?);
        command.process_group(0);
        die_with_parent(&mut command);

        // The kernel sends the parent-death signal when the *thread* that spawned ends, so this thread does not end
        // before the server.
        let (started, starting) = oneshot::channel();
        let (end, ended) = watch::channel(None);
        thread::Builder::new().name("broker-keeper".to_owned()).spawn(move || match command.spawn() {
            Err(error) => drop(started.send(Err(error))),
            Ok(mut child) => {
                if started.send(Ok(child.id())).is_err() {
                    drop(child.kill()); // whoever wanted it has gone
                }
                let status = child.wait().ok();
                end.send_replace(status);
            }
        })?;
        let id = starting.await.map_err(|_| io::Error::other("the thread that starts the server ended"))??;
        Ok(Self { pid: to_pid(id)?, ended })
    }

    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Waits for its end, and tells how that was if known. Can be called again.
    pub(super) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let how = ended.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        how.map_or_else(|| "nobody knows how".to_owned(), |status| status.to_string())
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some() || self.ended.has_changed().is_err()
    }

    /// Asks it to end; kills it if it does not.
    pub(super) async fn stop(&self) {
        self.signal(Signal::SIGTERM);
        if timeout(STOP_MAX, self.ended()).await.is_err() {
            tracing::warn!(pid = self.id(), "the broker did not stop within {} s and is killed", STOP_MAX.as_secs());
            self.signal(Signal::SIGKILL);
            self.ended().await;
        }
    }

    /// Asks it to read its configuration anew, and the certificates that it names.
    pub(super) fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// The pid is still the server's, or nobody's: the thread that waits for it says so first.
    fn signal(&self, signal: Signal) {
        if !self.has_ended() {
            let _ = kill(self.pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
    }
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let set = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
        // The parent may have died before the line above.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. `set` makes two plain system calls,
    // prctl and getppid; it neither allocates (both error values are bare errno numbers) nor takes a lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(set);
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}

/// Ends servers that a killed steward left behind on this home. The caller holds the home's lock, so their parent
/// is gone.
pub(super) async fn end_orphans(conf: &Path) {
    for pid in servers_of(conf) {
        tracing::warn!(%pid, "a broker was left behind by a steward that died; it is stopped first");
        for (signal, patience) in [(Signal::SIGTERM, STOP_MAX), (Signal::SIGKILL, STOP_MAX)] {
            let _ = kill(pid, signal);
            let deadline = Instant::now() + patience;
            while runs_with(pid, conf) && Instant::now() < deadline {
                sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// Processes whose command line is that of [`Process::spawn`] with this configuration.
fn servers_of(conf: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.map(Pid::from_raw).filter(|pid| runs_with(*pid, conf)).collect()
}

fn runs_with(pid: Pid, conf: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    // A zombie's command line is empty, so one that nobody waits for counts as ended.
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    arguments.windows(2).any(|pair| pair == [b"-c".as_slice(), conf.as_os_str().as_bytes()])
}

fn to_pid(id: u32) -> io::Result<Pid> {
    i32::try_from(id).map(Pid::from_raw).map_err(io::Error::other)
}
