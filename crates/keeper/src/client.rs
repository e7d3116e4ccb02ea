//! The agent's side: one connection to its keeper, which is started when the first program needs it.
//!
//! Programs flow out, events of each flow in to its own [`Run`]. A keeper that is lost ends all runs; the next program gets a
//! new one. Nothing is ever started twice: what was sent to a keeper that is lost is given up.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::frame;
use crate::place::Place;
use crate::secrets;
use crate::wire::{Finished, Id, MAJOR, Program, Report, Request, Start};

/// How long a keeper may take to be there, from its start to its first word.
const READY_MAX: Duration = Duration::from_secs(10);
/// Between two tries to reach it.
const TRY_FIRST: Duration = Duration::from_millis(1);
const TRY_MAX: Duration = Duration::from_millis(50);
/// A keeper that has had nothing to do for this long is let go.
const IDLE_MAX: Duration = Duration::from_secs(180);
/// How long it may take to be gone once it was told to.
const GONE_MAX: Duration = Duration::from_secs(2);

/// The variable by which the programs of a keeper that was killed are found: whoever starts a program sets it to its id.
pub const ORDER_VARIABLE: &str = "STEWARD_ORDER";
/// Between TERM and KILL for what is left of them.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

/// Ends what is left of programs whose keeper was killed, as far as it can be found. Returns how many processes that were.
pub async fn end_orphans(ids: Vec<Id>) -> usize {
    #[cfg(feature = "simulate")]
    if crate::simulate::is_on() {
        return 0;
    }
    let values: Vec<String> = ids.iter().map(Id::to_string).collect();
    let ending = tokio::task::spawn_blocking(move || {
        let ended = exec::end_orphans(ORDER_VARIABLE, &values, ORPHAN_GRACE);
        secrets::sweep();
        ended
    });
    ending.await.unwrap_or_default()
}

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
#[error("the keeper of this agent's programs {what}: {reason}; what it says itself stands in {}", log.display())]
pub struct KeeperError {
    what: &'static str,
    reason: String,
    log: PathBuf,
}

/// How a keeper is started: this program with these arguments.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// What happens to a program.
#[derive(Debug)]
pub enum Event {
    /// It printed something.
    Output {
        /// The number of the piece, over both streams, from 0 without gaps.
        number: u32,
        /// Whether it was printed to stderr.
        is_stderr: bool,
        /// What was printed.
        bytes: Bytes,
    },
    /// It is over.
    Ended(Finished),
}

/// An agent's way to its keeper; cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    state_dir: PathBuf,
    launch: Launch,
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
    /// From now on a run that is dropped goes on.
    leaving: AtomicBool,
    #[cfg(feature = "simulate")]
    simulated: Option<crate::simulate::Keeper>,
}

/// One connection.
pub(crate) struct Link {
    requests: UnboundedSender<Vec<u8>>,
    held: Vec<Id>,
    /// Whether the keeper knows what to do with secrets.
    lays_out_secrets: bool,
    /// `None` once the connection is lost or about to be given up: nothing more can be begun on it.
    runs: Mutex<Option<BTreeMap<Id, UnboundedSender<Event>>>>,
    lost: CancellationToken,
}

impl Link {
    fn runs(&self) -> MutexGuard<'_, Option<BTreeMap<Id, UnboundedSender<Event>>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request that cannot be sent is as one that the keeper did not live to read.
    fn say(&self, request: &Request, beside: &[u8]) -> io::Result<()> {
        let frame = frame::encode(request, beside)?;
        self.requests.send(frame).map_err(|_| io::Error::other("the keeper is gone"))
    }

    /// Takes note of a run; `None` if the connection is lost.
    fn enter(self: &Arc<Self>, client: &Client, id: Id) -> Option<Run> {
        let (events, received) = mpsc::unbounded_channel();
        self.runs().as_mut()?.insert(id, events);
        Some(Run { id, link: Arc::clone(self), events: received, client: client.clone(), taken: 0, over: false })
    }

    /// Has the keeper end, if it holds nothing, and waits for that.
    async fn let_go(&self) {
        let _ = self.say(&Request::Quit { all: false }, &[]);
        let _ = timeout(GONE_MAX, self.lost.cancelled()).await; // at the latest it ends by itself
    }

    /// Gives the connection up if nothing runs on it.
    fn retire(&self) -> bool {
        let mut runs = self.runs();
        let idle = runs.as_ref().is_none_or(BTreeMap::is_empty);
        if idle {
            *runs = None;
        }
        idle
    }
}

impl Client {
    /// For the keeper of this state directory, which must be an absolute path. Starts nothing yet.
    pub fn new(state_dir: PathBuf, launch: Launch) -> Self {
        Self(Arc::new(Inner {
            state_dir,
            launch,
            link: tokio::sync::Mutex::default(),
            leaving: AtomicBool::new(false),
            #[cfg(feature = "simulate")]
            simulated: None,
        }))
    }

    /// For a keeper that is simulated.
    #[cfg(feature = "simulate")]
    pub fn simulated(keeper: crate::simulate::Keeper) -> Self {
        Self(Arc::new(Inner {
            state_dir: PathBuf::from("simulated"),
            launch: Launch { program: PathBuf::new(), args: Vec::new() },
            link: tokio::sync::Mutex::default(),
            leaving: AtomicBool::new(false),
            simulated: Some(keeper),
        }))
    }

    /// What a living keeper holds; nothing if there is none. One that holds nothing is let go.
    ///
    /// # Errors
    /// [`KeeperError`] when there is one that cannot be spoken to.
    pub async fn held(&self) -> Result<Vec<Id>, KeeperError> {
        let mut slot = self.0.link.lock().await;
        #[cfg(feature = "simulate")]
        if let Some(keeper) = &self.0.simulated {
            let Some(link) = keeper.connect(false) else { return Ok(Vec::new()) };
            let held = link.held.clone();
            self.use_link(&mut slot, link);
            return Ok(held);
        }
        let place = self.place()?;
        let deadline = Instant::now() + READY_MAX;
        loop {
            // Who can have the lock is alone.
            let lock = place.lock().map_err(|error| self.wrong("cannot be looked for", error))?;
            if lock.is_some() {
                return Ok(Vec::new());
            }
            match self.connect(&place).await {
                Ok(link) if link.held.is_empty() => {
                    // It is of an earlier agent, with that one's version and environment: a new one serves better.
                    link.let_go().await;
                    return Ok(Vec::new());
                }
                Ok(link) => {
                    let held = link.held.clone();
                    self.use_link(&mut slot, link);
                    return Ok(held);
                }
                Err(error) if Instant::now() >= deadline => return Err(self.wrong("does not answer", error)),
                Err(_) => sleep(TRY_MAX).await,
            }
        }
    }

    /// Runs a program. Its id must never have been used before.
    ///
    /// # Errors
    /// [`KeeperError`]: it was not begun.
    pub async fn start(&self, id: Id, program: &Program) -> Result<Run, KeeperError> {
        let request = Request::Start(Box::new(Start::new(id, program)));
        let beside = program.stdin.clone().unwrap_or_default();
        let frame = frame::encode(&request, &beside).map_err(|error| self.wrong("cannot be told", error))?;
        loop {
            let link = self.link().await?;
            if !program.secrets.is_empty() && !link.lays_out_secrets {
                let old = "it was started by an older version, which knows nothing of secrets; it ends when its programs have ended";
                return Err(self.wrong("cannot be told", io::Error::other(old)));
            }
            // On a link that was lost before nothing was begun: another one will do.
            if let Some(run) = link.enter(self, id) {
                let _ = link.requests.send(frame); // if that fails now, the run tells
                return Ok(run);
            }
        }
    }

    /// Goes on with a program that the keeper held when this agent came; `None` if there is no keeper any more. Once for each: what is
    /// still on its way to an earlier [`Run`] of the same connection would be taken for this one's.
    pub async fn attach(&self, id: Id) -> Option<Run> {
        let link = self.0.link.lock().await.clone()?;
        let run = link.enter(self, id)?;
        let _ = link.say(&Request::Attach { id }, &[]); // if that fails, the run tells
        Some(run)
    }

    /// How a program ended is on disk, or nobody wants to know: lets the keeper forget it, now or when it has ended.
    pub async fn forget(&self, id: Id) {
        if let Some(link) = self.0.link.lock().await.clone() {
            let _ = link.say(&Request::Forget { id }, &[]);
        }
    }

    /// From now on runs that are dropped go on.
    pub fn leave_running(&self) {
        self.0.leaving.store(true, Ordering::Release);
    }

    /// Ends the connection. A keeper that holds nothing ends; `all`: it ends whatever it holds, and is waited for.
    pub async fn close(&self, all: bool) {
        let Some(link) = self.0.link.lock().await.take() else { return };
        if all || link.retire() {
            let _ = link.say(&Request::Quit { all }, &[]);
            let _ = timeout(GONE_MAX, link.lost.cancelled()).await; // at the latest it ends by itself
        }
    }

    /// The connection; a keeper is started if there is none.
    async fn link(&self) -> Result<Arc<Link>, KeeperError> {
        let mut slot = self.0.link.lock().await;
        if let Some(link) = slot.as_ref().filter(|link| link.runs().is_some()) {
            return Ok(Arc::clone(link));
        }
        let link = self.launch().await?;
        self.use_link(&mut slot, Arc::clone(&link));
        Ok(link)
    }

    fn use_link(&self, slot: &mut Option<Arc<Link>>, link: Arc<Link>) {
        *slot = Some(Arc::clone(&link));
        tokio::spawn(let_go_when_idle(Arc::downgrade(&self.0), link));
    }

    async fn launch(&self) -> Result<Arc<Link>, KeeperError> {
        #[cfg(feature = "simulate")]
        if let Some(keeper) = &self.0.simulated {
            let none = || self.wrong("cannot be started", io::Error::other("the simulation forbids it"));
            return keeper.connect(true).ok_or_else(none);
        }
        let place = self.place()?;
        let not_started = |error| self.wrong("cannot be started", error);
        let log = place.log().map_err(not_started)?;
        // Where it was taken away since, our own image is still there.
        let found = Some(&self.0.launch.program).filter(|path| path.is_file());
        let mut command = Command::new(found.map_or(std::path::Path::new("/proc/self/exe"), |path| path));
        command.arg0("steward").args(&self.0.launch.args);
        // An agent that was started by an order itself must not pass that order's marks on: they are no longer true.
        command.env_remove(ORDER_VARIABLE).env_remove("STEWARD_EXEC");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().map_err(not_started)?;
        let deadline = Instant::now() + READY_MAX;
        let mut pause = TRY_FIRST;
        let link = loop {
            let error = match self.connect(&place).await {
                Ok(link) => break link,
                Err(error) => error,
            };
            match child.try_wait() {
                // Another one lives, or so it said.
                Ok(Some(status)) if status.success() => {}
                Ok(Some(status)) => return Err(self.wrong("ended at once", io::Error::other(status.to_string()))),
                Ok(None) | Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(self.wrong("does not answer", error));
            }
            sleep(pause).await;
            pause = (pause * 2).min(TRY_MAX);
        };
        // So that it is no zombie when it has ended before us.
        tokio::spawn(async move {
            let _ = child.wait().await;
        });
        Ok(link)
    }

    fn place(&self) -> Result<Place, KeeperError> {
        Place::open(&self.0.state_dir).map_err(|error| self.wrong("cannot be reached", error))
    }

    async fn connect(&self, place: &Place) -> io::Result<Arc<Link>> {
        let (read, mut write) = place.connect().await?.into_split();
        let mut read = BufReader::with_capacity(16 * 1024, read);
        write.write_all(&frame::encode(&Request::Hello { major: MAJOR }, &[])?).await?;
        let welcome = timeout(READY_MAX, frame::read::<Report>(&mut read)).await??;
        let Some((Report::Welcome { held, secrets, .. }, _)) = welcome else {
            return Err(io::Error::other("it does not speak with an agent of this version"));
        };
        let (link, to_write) = Link::new(held, secrets);
        tokio::spawn(carry(Arc::clone(&link), read, write, to_write));
        Ok(link)
    }

    fn wrong(&self, what: &'static str, error: io::Error) -> KeeperError {
        KeeperError { what, reason: error.to_string(), log: self.0.state_dir.join("run/keeper.log") }
    }
}

/// Carries what is said both ways until the connection ends.
async fn carry(
    link: Arc<Link>,
    mut read: BufReader<OwnedReadHalf>,
    mut write: OwnedWriteHalf,
    mut requests: UnboundedReceiver<Vec<u8>>,
) {
    let hear = async {
        while let Some((report, beside)) = frame::read::<Report>(&mut read).await? {
            link.hear(report, beside);
        }
        Ok(())
    };
    let say = async {
        while let Some(request) = requests.recv().await {
            // There may be secrets in it.
            let request = Zeroizing::new(request);
            write.write_all(&request).await?;
        }
        Ok::<(), io::Error>(())
    };
    let ended = tokio::select! {
        heard = hear => heard,
        said = say => said,
    };
    if let Err(error) = ended {
        tracing::warn!(%error, "the connection to the keeper broke");
    }
    link.lose();
}

impl Link {
    /// A connection to a keeper that holds these and may lay out secrets, and what is said on it.
    pub(crate) fn new(held: Vec<Id>, lays_out_secrets: bool) -> (Arc<Self>, UnboundedReceiver<Vec<u8>>) {
        let (requests, to_write) = mpsc::unbounded_channel();
        let (runs, lost) = (Mutex::new(Some(BTreeMap::new())), CancellationToken::new());
        (Arc::new(Self { requests, held, lays_out_secrets, runs, lost }), to_write)
    }

    /// Every run sees its end.
    pub(crate) fn lose(&self) {
        *self.runs() = None;
        self.lost.cancel();
    }

    pub(crate) fn hear(&self, report: Report, beside: Bytes) {
        let mut runs = self.runs();
        let Some(runs) = runs.as_mut() else { return };
        // A run that is gone wants to hear nothing more.
        match report {
            Report::Output { id, number, is_stderr } => {
                if let Some(run) = runs.get(&id) {
                    let _ = run.send(Event::Output { number, is_stderr, bytes: beside });
                }
            }
            Report::Ended { id, answers, mut finished } => {
                finished.answer = answers.then_some(beside);
                if let Some(run) = runs.get(&id) {
                    let _ = run.send(Event::Ended(finished));
                }
            }
            // Its sender is dropped: to the run that is a keeper that does not know it.
            Report::NotHeld { id } => drop(runs.remove(&id)),
            Report::Welcome { .. } | Report::Unknown => {}
        }
    }
}

/// A keeper that nobody needs costs memory for nothing.
async fn let_go_when_idle(client: std::sync::Weak<Inner>, link: Arc<Link>) {
    let mut idle_since = None;
    loop {
        tokio::select! {
            () = link.lost.cancelled() => return,
            () = sleep(IDLE_MAX / 3) => {}
        }
        let idle = link.runs().as_ref().is_none_or(BTreeMap::is_empty);
        let since = *idle_since.get_or_insert_with(Instant::now);
        if !idle {
            idle_since = None;
        } else if since.elapsed() >= IDLE_MAX && link.retire() {
            let _ = link.say(&Request::Quit { all: false }, &[]);
            if let Some(client) = client.upgrade() {
                let mut slot = client.link.lock().await;
                slot.take_if(|present| Arc::ptr_eq(present, &link));
            }
            return;
        }
    }
}

/// A program that the keeper runs. Dropping it has the program ended, unless the agent leaves.
pub struct Run {
    id: Id,
    link: Arc<Link>,
    events: UnboundedReceiver<Event>,
    client: Client,
    taken: u32,
    /// It has ended.
    over: bool,
}

impl Run {
    /// What happens next; `None` when the keeper is lost, and the program with it. May be dropped and called again. The keeper goes
    /// on holding how it ended until it is told to forget it.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.over |= matches!(event, Some(Event::Ended(_)));
        event
    }

    /// The pieces below this number are safe: the keeper may forget them.
    pub fn taken(&mut self, below: u32) {
        if below > self.taken {
            self.taken = below;
            let _ = self.link.say(&Request::Taken { id: self.id, below }, &[]);
        }
    }

    /// What has its whole tree ended when it is called; how it ended is an event as ever.
    pub fn ender(&self) -> impl Fn() + Send + Sync + use<> {
        let (link, id) = (Arc::clone(&self.link), self.id);
        move || {
            let _ = link.say(&Request::End { id }, &[]);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(runs) = self.link.runs().as_mut() {
            runs.remove(&self.id);
        }
        if !self.over && !self.client.0.leaving.load(Ordering::Acquire) {
            let _ = self.link.say(&Request::End { id: self.id }, &[]);
            let _ = self.link.say(&Request::Forget { id: self.id }, &[]);
        }
    }
}
