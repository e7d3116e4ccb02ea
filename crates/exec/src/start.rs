//! Makes the process, watches for its exit, and is responsible for it until it is reaped.
//!
//! A [`Program`] goes in; a [`Running`] with its pipe ends comes out. Keeps to what `posix_spawn` can do (a fork of a
//! large process is dear) unless another user is asked for. Dropping a [`Running`] kills its tree.

use std::fmt::Write;
use std::future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::descriptor;
use crate::ending::{self, Ended, Whom};
use crate::program::{End, Program};
use crate::refusal;
use crate::tree::{MARK, Tree};
use crate::user::Identity;

/// How often and how long to wait for a program file that somebody has open for writing: another thread that forks just
/// while we write a script passes our descriptor on for an instant.
const BUSY_TRIES: u32 = 8;
const BUSY_PAUSE: Duration = Duration::from_millis(2);

/// The longest pause between two questions whether a program has exited, where the kernel cannot tell by itself.
const ASK_PAUSE: Duration = Duration::from_millis(16);

/// A program that runs, and our ends of its pipes.
pub(crate) struct Started {
    pub(crate) running: Running,
    pub(crate) input: Option<AsyncFd<OwnedFd>>,
    pub(crate) stdout: AsyncFd<OwnedFd>,
    pub(crate) stderr: AsyncFd<OwnedFd>,
}

/// Starts a program; an error is a sentence.
pub(crate) async fn start(program: &Program) -> Result<Started, String> {
    let name = refusal::check(program)?;
    let identity = match program.user.clone() {
        Some(user) => {
            let found = tokio::task::spawn_blocking(move || Identity::look_up(&user)).await;
            Some(found.map_err(|error| format!("the user cannot be looked up: {error}"))??)
        }
        None => None,
    };
    let somebody_else = identity.as_ref().is_some_and(Identity::is_somebody_else);
    let path = refusal::find(program, name, somebody_else)?;
    let mark = fresh_mark();

    let mut command = Command::new(&path);
    command.arg0(name).args(&program.argv[1..]).process_group(0);
    match (identity, program.cwd.as_deref()) {
        (Some(identity), cwd) => identity.apply(&mut command, cwd)?,
        (None, Some(cwd)) => {
            command.current_dir(cwd);
        }
        (None, None) => {}
    }
    command.envs(program.env.iter().map(|(name, value)| (name, value)));
    command.env(MARK, &mark);
    let no_pipes = |error: io::Error| refusal::no_descriptors(&error);
    let (input, stdout, stderr) = connect(&mut command, program.stdin.is_some()).map_err(no_pipes)?;
    let child = spawn(&mut command).await.map_err(|error| refusal::explain(program, &path, &error))?;
    drop(command); // and with it the child's ends of the pipes
    let numbers = [&stdout, &stderr].into_iter().filter_map(descriptor::number);
    Ok(Started { running: Running::new(child, &mark, numbers.collect()), input, stdout, stderr })
}

/// Gives the child its three descriptors; gives back our ends.
#[allow(clippy::type_complexity)]
fn connect(
    command: &mut Command,
    feed: bool,
) -> io::Result<(Option<AsyncFd<OwnedFd>>, AsyncFd<OwnedFd>, AsyncFd<OwnedFd>)> {
    let input = if feed {
        let (theirs, ours) = io::pipe()?;
        command.stdin(theirs);
        Some(descriptor::pipe(ours, Interest::WRITABLE)?)
    } else {
        command.stdin(Stdio::null());
        None
    };
    let (ours_out, theirs) = io::pipe()?;
    command.stdout(theirs);
    let (ours_err, theirs) = io::pipe()?;
    command.stderr(theirs);
    Ok((input, descriptor::pipe(ours_out, Interest::READABLE)?, descriptor::pipe(ours_err, Interest::READABLE)?))
}

async fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut tries = 0;
    loop {
        match command.spawn() {
            Err(error) if error.raw_os_error() == Some(Errno::ETXTBSY as i32) && tries < BUSY_TRIES => {
                tries += 1;
                sleep(BUSY_PAUSE * tries).await;
            }
            done => return done,
        }
    }
}

/// A value that no other tree carries: random for this process, counted for each program.
fn fresh_mark() -> String {
    static OURS: OnceLock<String> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let ours = OURS.get_or_init(|| {
        let mut random = [0; 16];
        if getrandom::fill(&mut random).is_err() {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            random = (now.as_nanos() ^ (u128::from(std::process::id()) << 96)).to_ne_bytes();
        }
        random.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // a String takes everything
            text
        })
    });
    format!("{ours}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A program that has not been reaped, so that its number and its group are its own.
pub(crate) struct Running {
    /// `None` once somebody else has the responsibility.
    child: Option<Child>,
    tree: Tree,
    watch: Watch,
}

/// Tells when a program has exited, without reaping it.
enum Watch {
    /// Readable when it has.
    Pidfd(AsyncFd<OwnedFd>),
    /// To be asked again and again: on a kernel before 5.3, or with no descriptor free.
    Ask(Pid),
}

impl Watch {
    fn new(child: &Child) -> Self {
        let pid = Pid::from_child(child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from);
        match pidfd.and_then(|pidfd| descriptor::register(pidfd, Interest::READABLE)) {
            Ok(pidfd) => Self::Pidfd(pidfd),
            Err(_) => Self::Ask(pid),
        }
    }
}

impl Running {
    fn new(child: Child, mark: &str, pipes: Vec<u64>) -> Self {
        Self { tree: Tree::new(child.id().cast_signed(), mark, pipes), watch: Watch::new(&child), child: Some(child) }
    }

    /// Returns when the program has exited. May be dropped and called again.
    pub(crate) async fn exited(&self) {
        match &self.watch {
            Watch::Pidfd(pidfd) => {
                if pidfd.readable().await.is_err() {
                    future::pending().await // the runtime is going down, and us with it
                }
            }
            Watch::Ask(pid) => {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
                let mut pause = Duration::from_millis(1);
                while let Ok(None) = waitid(WaitId::Pid(*pid), options) {
                    sleep(pause).await;
                    pause = (pause * 2).min(ASK_PAUSE);
                }
            }
        }
    }

    /// Of a program that has exited: ends who still holds these pipes, if there are any, and reaps it.
    pub(crate) async fn finish(mut self, pipes: Vec<u64>, grace: Duration) -> (End, Ended) {
        let (ended, status) = if pipes.is_empty() {
            (Ended::default(), self.child.take().and_then(|mut child| ending::reap(&mut child)))
        } else {
            self.end(Whom::Holders(pipes), grace).await
        };
        let end = match status {
            Some(status) => status.signal().map_or(End::Exited(status.code().unwrap_or(-1)), End::Signalled),
            None => End::Exited(-1),
        };
        (end, ended)
    }

    /// Ends these members of the tree and reaps the program. Begins at once, and goes on to the end even if the future is dropped.
    pub(crate) fn end(
        mut self,
        whom: Whom,
        grace: Duration,
    ) -> impl Future<Output = (Ended, Option<ExitStatus>)> + use<> {
        let (sender, receiver) = oneshot::channel();
        if let Some(mut child) = self.child.take() {
            let tree = self.tree.clone();
            on_a_thread(Box::new(move |hurry| {
                let ended = ending::end(&tree, &whom, if hurry { Duration::ZERO } else { grace });
                // The program itself may be one that nothing ends: do not let anybody wait for that.
                let stuck = ended.survivors > 0 && matches!(whom, Whom::Everybody);
                let status = if stuck { None } else { ending::reap(&mut child) };
                let _ = sender.send((ended, status)); // nobody may be interested any more
                if stuck {
                    ending::reap(&mut child);
                }
            }));
        }
        async move { receiver.await.unwrap_or_default() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // First what can be done at once, for this process may be going down.
        ending::kill_group(&self.tree);
        let tree = self.tree.clone();
        on_a_thread(Box::new(move |_| {
            ending::end(&tree, &Whom::Everybody, Duration::ZERO);
            ending::reap(&mut child);
        }));
    }
}

/// Something that blocks. It is told whether to hurry, because it is after all running where others wait.
type Job = Box<dyn FnOnce(bool) + Send>;

/// Runs a job on a thread of its own, or here and now if there is no thread to be had (a fork bomb sees to that).
fn on_a_thread(job: Job) {
    let (sender, receiver) = mpsc::channel::<Job>();
    let body = move || {
        if let Ok(job) = receiver.recv() {
            job(false);
        }
    };
    let unsent = match thread::Builder::new().name("exec-end".to_owned()).spawn(body) {
        Ok(_) => sender.send(job).err().map(|error| error.0),
        Err(_) => Some(job),
    };
    if let Some(job) = unsent {
        job(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_exit_is_noticed_also_where_the_kernel_has_to_be_asked() {
        let child = Command::new("sh").args(["-c", "sleep 0.05; exit 5"]).process_group(0).spawn().unwrap();
        let mut running = Running::new(child, &fresh_mark(), Vec::new());
        running.watch = Watch::Ask(Pid::from_child(running.child.as_ref().unwrap()));
        running.exited().await;
        assert_eq!(running.finish(Vec::new(), Duration::ZERO).await.0, End::Exited(5));
    }

    #[test]
    fn no_two_programs_get_the_same_mark() {
        assert_ne!(fresh_mark(), fresh_mark());
    }
}
