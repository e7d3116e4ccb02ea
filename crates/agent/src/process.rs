//! Processes: one supervised message handler per subject, sequential inside, concurrent between.
//!
//! A handler that panics or does not end takes down nobody else: its order fails, the process goes on with the
//! next one and counts a restart.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus::clock;
use journal::{Entry, Journal, Write};
use message::method::{Cancelled, ProcessStatus};
use message::policy::Decision;
use message::{JobId, Order, OrderId, Outcome, PublicKey, Secrets, State, Subject, Timestamp, Token, secret};
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::Audit;
use crate::counters::Counters;
use crate::halt::Halt;
use crate::in_hand::InHand;
use crate::method::{self, Ended, Execution, Method, keeper_id};
use crate::options::AtStop;
use crate::outbox::Outbox;
use crate::policy::Gate;
use crate::run::Identity;

/// The most subjects that one node handles.
const PROCESSES_MAX: usize = 1024;
/// What a handler gets beyond the order's time-out before it is taken for hanging.
const HANGING_AFTER: Duration = Duration::from_secs(30);
/// Between two tries to journal an outcome.
const JOURNAL_RETRY: Duration = Duration::from_secs(1);
/// Between two looks at what waits for approvals, at least and at most.
const PARKED_PAUSE: Duration = Duration::from_millis(100);
const PARKED_LOOK: Duration = Duration::from_secs(60);

/// One order for a process.
pub(crate) struct Task {
    pub(crate) id: OrderId,
    /// The entry, when it is journaled as running already.
    pub(crate) begun: Option<Box<Entry>>,
    /// Its place among those that may wait; free again when it has ended.
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

struct Process {
    status: Mutex<ProcessStatus>,
    /// Unbounded by itself: intake bounds how many orders may wait in all. What is withdrawn leaves it at once.
    queue: Mutex<VecDeque<Task>>,
    wake: Notify,
    /// Orders that were claimed for it and have not ended.
    pending: AtomicUsize,
}

/// Whether a waiting order may begin.
enum Admission {
    Now,
    /// When more operators have signed it.
    Later,
    /// Never: how it ends, and why.
    Never(State, String),
}

/// What became of an order whose turn it was.
enum Begun {
    Runs(Box<Entry>),
    /// It waits for approvals.
    Parked(Box<Entry>),
    Over,
}

/// An order that waits for approvals: not in its process's queue, so that nothing waits behind it.
struct Parked {
    method: Token,
    domain: Token,
    expires: Timestamp,
    task: Task,
}

/// All processes of an agent.
pub(crate) struct Processes {
    journal: Journal,
    outbox: Arc<Outbox>,
    identity: Arc<Identity>,
    counters: Arc<Counters>,
    methods_dir: PathBuf,
    keeper: keeper::Client,
    at_stop: AtStop,
    gate: Arc<Gate>,
    audit: Arc<Audit>,
    parked: Mutex<HashMap<OrderId, Parked>>,
    /// Something was parked.
    parking: Notify,
    table: Mutex<BTreeMap<(Token, Token), Arc<Process>>>,
    /// Event sources, which are processes too.
    sources: Mutex<Vec<Arc<Mutex<ProcessStatus>>>>,
    degraded: watch::Sender<Option<String>>,
    /// Why nothing begins, as long as another agent lives under this name.
    cloned: Halt,
    /// Nor as long as the journal may be older than what this node did.
    doubt: Halt,
    in_hand: InHand,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Cancelled before `stop` when programs are to go on.
    leave: CancellationToken,
    /// How many programs go on.
    left: AtomicUsize,
    /// Orders that an earlier run of the agent began, and whose programs the keeper holds.
    adopted: Mutex<BTreeSet<OrderId>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Processes {
    pub(crate) fn new(
        journal: Journal,
        outbox: Arc<Outbox>,
        identity: Arc<Identity>,
        counters: Arc<Counters>,
        methods_dir: PathBuf,
        (gate, audit, keeper, at_stop): (Arc<Gate>, Arc<Audit>, keeper::Client, AtStop),
        (degraded, cloned, doubt): (watch::Sender<Option<String>>, Halt, Halt),
    ) -> Arc<Self> {
        let stop = CancellationToken::new();
        Arc::new(Self {
            journal,
            outbox,
            identity,
            counters,
            methods_dir,
            keeper,
            at_stop,
            gate,
            audit,
            parked: Mutex::default(),
            parking: Notify::new(),
            table: Mutex::default(),
            sources: Mutex::default(),
            degraded,
            cloned,
            doubt,
            in_hand: InHand::new(stop.clone()),
            tasks: TaskTracker::new(),
            stop,
            leave: CancellationToken::new(),
            left: AtomicUsize::new(0),
            adopted: Mutex::default(),
        })
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The version of the policy in force; 0 for none.
    pub(crate) fn policy_version(&self) -> u64 {
        *self.gate.version().borrow()
    }

    /// The orders that wait or run.
    pub(crate) fn in_hand(&self) -> &InHand {
        &self.in_hand
    }

    /// The way to whoever holds the programs.
    pub(crate) fn keeper(&self) -> &keeper::Client {
        &self.keeper
    }

    /// The program of this order runs already, or has ended: it is to be followed, not to be started.
    pub(crate) fn adopt(&self, id: OrderId) {
        lock(&self.adopted).insert(id);
    }

    /// The method of this name.
    pub(crate) fn method(&self, name: &Token) -> Result<Method, String> {
        Method::find(name.as_str(), &self.methods_dir)
    }

    /// Why the secrets of an order cannot be given to what it asks for, if they cannot.
    pub(crate) fn unreadable(&self, order: &Order, by: &PublicKey) -> Option<String> {
        order.secrets.as_ref()?;
        if self.method(&order.method).is_ok_and(|method| !method.takes_secrets()) {
            return Some(format!(
                "{} runs no program, so there is nothing that secrets could be given to",
                order.method
            ));
        }
        // Opened once more when it begins: until then they are kept as they came.
        secret::open(order, by, &self.identity.pair).err().map(|error| error.to_string())
    }

    /// The processes as they are now.
    pub(crate) fn list(&self) -> Vec<ProcessStatus> {
        let table = lock(&self.table);
        let handlers = table.values().map(|process| lock(&process.status).clone());
        let sources = lock(&self.sources).iter().map(|status| lock(status).clone()).collect::<Vec<_>>();
        handlers.chain(sources).collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        lock(&self.table).len() + lock(&self.sources).len()
    }

    /// Adds an event source to the list.
    pub(crate) fn add_source(&self, status: Arc<Mutex<ProcessStatus>>) {
        lock(&self.sources).push(status);
    }

    /// Makes room for one more order of a process, starting the process if need be. Tells whether the order would
    /// be the only one: then it may be journaled as running at once.
    ///
    /// # Errors
    /// A sentence, when there are too many processes.
    pub(crate) fn claim(self: &Arc<Self>, method: &Token, domain: &Token) -> Result<bool, String> {
        let mut table = lock(&self.table);
        let key = (method.clone(), domain.clone());
        if !table.contains_key(&key) {
            if table.len() >= PROCESSES_MAX {
                return Err(format!("this node already handles {PROCESSES_MAX} subjects, which is its limit"));
            }
            table.insert(key.clone(), self.start(method, domain));
        }
        Ok(table.get(&key).is_some_and(|process| process.pending.fetch_add(1, Ordering::AcqRel) == 0))
    }

    /// Gives back what [`Processes::claim`] made room for.
    pub(crate) fn unclaim(&self, method: &Token, domain: &Token) {
        if let Some(process) = lock(&self.table).get(&(method.clone(), domain.clone())) {
            process.pending.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Hands an order that is in hand to its process, which must have been claimed for it.
    pub(crate) fn dispatch(&self, method: &Token, domain: &Token, task: Task) {
        if let Some(process) = lock(&self.table).get(&(method.clone(), domain.clone())) {
            if task.begun.is_none() {
                Counters::add(&self.counters.waiting);
            }
            lock(&process.queue).push_back(task);
            process.wake.notify_one();
        }
    }

    /// Takes an order out of its process's queue that was withdrawn. `false` when it is not there: then whoever has it
    /// finds out by [`InHand::begin`].
    pub(crate) fn take_back(&self, method: &Token, domain: &Token, id: &OrderId) -> bool {
        let Some(process) = lock(&self.table).get(&(method.clone(), domain.clone())).cloned() else { return false };
        let task = {
            let mut queue = lock(&process.queue);
            queue.iter().position(|task| task.id == *id).and_then(|at| queue.remove(at))
        };
        let taken = task.is_some() || lock(&self.parked).remove(id).is_some();
        if taken {
            Counters::remove(&self.counters.waiting);
            process.pending.fetch_sub(1, Ordering::AcqRel);
        }
        taken
    }

    /// Asks the running order of a job to end, and answers the cancel `entry` once it has, or after `limit`.
    pub(crate) fn end_running(self: &Arc<Self>, entry: Entry, job: JobId, order: OrderId, by: &str, limit: Duration) {
        self.in_hand.cancel(&order, by);
        let processes = Arc::clone(self);
        self.tasks.spawn(async move {
            let in_time = tokio::select! {
                biased;
                // The next start sees to it.
                () = processes.stop.cancelled() => return,
                () = processes.in_hand.gone(&order) => true,
                () = tokio::time::sleep(limit) => false,
            };
            processes.answer_cancel(entry, job, &order, in_time).await;
        });
    }

    async fn answer_cancel(&self, mut entry: Entry, job: JobId, order: &OrderId, in_time: bool) {
        let now = match self.journal.find(order) {
            Ok(Some(target)) => target.history.state(),
            _ => State::Running,
        };
        let ended = if in_time { State::Succeeded } else { State::Failed };
        if !in_time {
            entry.reason = Some(format!("the order of job {job} was told to end, and has not ended yet"));
        }
        entry.outcome = Some(cancel_outcome(job, State::Running, now));
        entry.body = None;
        if entry.history.push(ended, clock::now()).is_err() {
            return;
        }
        while let Err(error) = self.journal.commit(vec![Write::Entry(Box::new(entry.clone()))]).await {
            if self.complain(&error).await.is_none() {
                return;
            }
        }
        self.recover();
        self.outbox.report(&entry).await;
    }

    /// Ends all processes. Programs go on in the keeper, or are ended, as the agent was told; what runs in the agent itself is
    /// ended and becomes `interrupted`; what waits stays in the journal.
    pub(crate) async fn stop(&self, limit: Duration) {
        if self.at_stop == AtStop::LeaveCommands {
            self.keeper.leave_running();
            self.leave.cancel();
        }
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_err() {
            tracing::warn!("some commands did not end in time; the next start reports them as interrupted");
        }
        let left = self.left.load(Ordering::Relaxed);
        if left > 0 {
            tracing::info!("{left} commands go on without the agent; the next one reports them");
        }
        self.keeper.close(self.at_stop == AtStop::EndCommands).await;
    }

    fn start(self: &Arc<Self>, method: &Token, domain: &Token) -> Arc<Process> {
        let subject = Subject::command(self.identity.me.name.clone(), method.clone(), domain.clone());
        let status = ProcessStatus {
            subject: subject.to_string(),
            reply: format!("*.reply.*.{}", self.identity.me.name),
            state: "idle".into(),
            handled: 0,
            failed: 0,
            restarts: 0,
            last_error: None,
            since: clock::now(),
        };
        let process = Arc::new(Process {
            status: Mutex::new(status),
            queue: Mutex::default(),
            wake: Notify::new(),
            pending: AtomicUsize::new(0),
        });
        let (processes, own) = (Arc::clone(self), Arc::clone(&process));
        self.tasks.spawn(async move { processes.handle(&own).await });
        process
    }

    async fn handle(self: &Arc<Self>, process: &Process) {
        loop {
            if self.stop.is_cancelled() {
                return;
            }
            let Some(mut task) = lock(&process.queue).pop_front() else {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return,
                    () = process.wake.notified() => continue,
                }
            };
            let entry = match task.begun.take() {
                Some(entry) => Some(*entry),
                None => {
                    Counters::remove(&self.counters.waiting);
                    match self.begin(&task.id).await {
                        Begun::Runs(entry) => Some(*entry),
                        Begun::Over => None,
                        Begun::Parked(entry) => {
                            self.park(&entry, task);
                            continue;
                        }
                    }
                }
            };
            if let Some(entry) = entry {
                self.run_one(process, entry).await;
            }
            self.in_hand.end(&task.id);
            process.pending.fetch_sub(1, Ordering::AcqRel);
            drop(task.place);
        }
    }

    /// Journals that a waiting order runs now, unless the policy says by now that it may not, or not yet.
    async fn begin(&self, id: &OrderId) -> Begun {
        let (mut cloned, mut doubt) = (self.cloned.clone(), self.doubt.clone());
        let certain = async {
            while cloned.is_on() || doubt.is_on() {
                cloned.over().await;
                doubt.over().await;
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return Begun::Over,
            () = certain => {}
        }
        let mut admission = None;
        loop {
            let begun = match self.journal.find(id) {
                Ok(Some(entry)) if entry.history.state() != State::Delivered => return Begun::Over,
                Ok(None) => return Begun::Over,
                Ok(Some(mut entry)) => {
                    if admission.is_none() {
                        let admitted = self.admission(&entry);
                        if matches!(admitted, Admission::Later) {
                            return Begun::Parked(Box::new(entry));
                        }
                        // Cancelled or superseded while it waited.
                        if !self.in_hand.begin(id).await {
                            return Begun::Over;
                        }
                        admission = Some(admitted);
                        // Until now, intake may have written an approval: from here on, nobody else writes.
                        continue;
                    }
                    let next = match &admission {
                        Some(Admission::Never(state, reason)) => {
                            entry.reason = Some(reason.clone());
                            entry.body = None;
                            *state
                        }
                        _ => {
                            entry.reason = None;
                            State::Running
                        }
                    };
                    match entry.history.push(next, clock::now()) {
                        Err(_) => return Begun::Over,
                        Ok(()) => {
                            let mut writes = vec![Write::Entry(Box::new(entry.clone()))];
                            if next != State::Running {
                                self.audit.withdrawn(&entry, *self.gate.version().borrow(), &mut writes);
                                self.audit.nudge();
                            }
                            self.journal.commit(writes).await.map(|()| entry)
                        }
                    }
                }
                Err(error) => Err(error),
            };
            match begun {
                Ok(entry) => {
                    self.recover();
                    self.outbox.report(&entry).await;
                    let runs = entry.history.state() == State::Running;
                    return if runs { Begun::Runs(Box::new(entry)) } else { Begun::Over };
                }
                Err(error) => {
                    if self.complain(&error).await.is_none() {
                        return Begun::Over;
                    }
                }
            }
        }
    }

    /// This node's chain in the audit log.
    pub(crate) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// What the policy in force says about an order that waits: it may have changed since the order was taken.
    fn admission(&self, entry: &Entry) -> Admission {
        // What cannot be read is told where it is executed.
        let Some(order) = entry.body.as_ref().and_then(|body| Order::parse(body.as_bytes()).ok()) else {
            return Admission::Now;
        };
        let now = self.now(&order);
        match self.gate.decide(&order, entry.by.as_ref(), now) {
            Decision::Allowed { .. } => Admission::Now,
            Decision::Denied { reason, .. } => Admission::Never(State::Rejected, reason),
            Decision::NeedsApprovals { approvals, .. } => {
                if self.gate.signers(&order, entry, now) >= approvals as usize {
                    Admission::Now
                } else if order.expires <= now {
                    Admission::Never(
                        State::Expired,
                        format!("it expired at {}, before enough operators had approved it", order.expires),
                    )
                } else {
                    Admission::Later
                }
            }
        }
    }

    /// The fleet's time, as far as it is known.
    fn now(&self, order: &Order) -> Timestamp {
        self.identity.time.now().unwrap_or_default().max(order.created)
    }

    /// Lays an order aside until more operators have approved it, the policy changes, or it expires.
    fn park(&self, entry: &Entry, task: Task) {
        Counters::add(&self.counters.waiting);
        let id = task.id;
        let (method, domain, expires) = (entry.method.clone(), entry.domain.clone(), entry.expires);
        lock(&self.parked).insert(id, Parked { method, domain, expires, task });
        self.parking.notify_one();
        // What came between the decision and this moment found nothing to wake.
        if let Ok(Some(entry)) = self.journal.find(&id)
            && (entry.history.state() != State::Delivered || !matches!(self.admission(&entry), Admission::Later))
        {
            self.unpark(&id);
        }
    }

    /// Puts an order that was laid aside back into its process's queue, where it is decided about again.
    pub(crate) fn unpark(&self, id: &OrderId) {
        let parked = lock(&self.parked).remove(id);
        if let Some(Parked { method, domain, task, .. }) = parked {
            Counters::remove(&self.counters.waiting);
            self.dispatch(&method, &domain, task);
        }
    }

    /// Wakes what is laid aside when the policy changes, and what expires.
    pub(crate) async fn watch_parked(&self, stop: CancellationToken) {
        let mut version = self.gate.version();
        loop {
            let now = self.identity.time.now().unwrap_or_default();
            let next = lock(&self.parked).values().map(|parked| parked.expires).min();
            // The fleet's clock may be read anew meanwhile: look again at least every minute.
            let wait = next.map_or(PARKED_LOOK, |next| next.since(now).clamp(PARKED_PAUSE, PARKED_LOOK));
            let changed = tokio::select! {
                () = stop.cancelled() => return,
                changed = version.changed() => changed.is_ok(),
                () = self.parking.notified() => continue,
                () = tokio::time::sleep(wait) => false,
            };
            let now = self.identity.time.now().unwrap_or_default();
            let due: Vec<OrderId> = lock(&self.parked)
                .iter()
                .filter(|(_, parked)| changed || parked.expires <= now)
                .map(|(id, _)| *id)
                .collect();
            due.iter().for_each(|id| self.unpark(id));
        }
    }

    /// Says that the journal fails, and waits before the next try; `None` when the agent ends.
    async fn complain(&self, error: &journal::JournalError) -> Option<()> {
        self.degraded.send_replace(Some(error.to_string()));
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            () = tokio::time::sleep(JOURNAL_RETRY) => Some(()),
        }
    }

    /// The journal works: whatever was said before is over.
    fn recover(&self) {
        self.degraded.send_if_modified(|reason| reason.take().is_some());
    }

    async fn run_one(self: &Arc<Self>, process: &Process, mut entry: Entry) {
        Counters::add(&self.counters.running);
        self.counters.begun.fetch_add(1, Ordering::Relaxed);
        set_state(process, "running");
        let output = self.outbox.output(&entry);
        let body = entry.body.take().unwrap_or_default();
        let (ended, broke_down) = match Order::parse(body.as_bytes()) {
            Err(error) => (Ended::failed(error.to_string()), false),
            Ok(order) => match self.execute(order, entry.by.as_ref(), body, output.clone()).await {
                (Some(ended), broke_down) => (ended, broke_down),
                // To the journal it is running still, and that is true.
                (None, _) => {
                    self.left.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            },
        };
        let ended = match self.in_hand.cancelled_by(&entry.id) {
            by @ Some(_) if ended.state == State::Cancelled => Ended { reason: by, ..ended },
            None if ended.state == State::Cancelled && self.stop.is_cancelled() => {
                Ended { state: State::Interrupted, reason: Some("the agent was stopped while it ran".into()), ..ended }
            }
            _ => ended,
        };
        // The states that `Ended` can hold all follow `running`.
        if entry.history.push(ended.state, clock::now()).is_err() {
            tracing::error!(order = %entry.id, state = %ended.state, "an execution ended in a state that cannot be");
        }
        entry.reason = ended.reason.clone();
        entry.outcome = Some(ended.outcome);
        let kept = self.keep(&entry, &output).await;
        if kept {
            self.keeper.forget(keeper_id(&entry.id)).await;
        }
        // What was interrupted by the stop alone, and could not be journaled, the next start finds out and tells by itself: told
        // now, it would be told twice, at two times.
        if kept || ended.state != State::Interrupted {
            self.outbox.report(&entry).await;
        }
        Counters::remove(&self.counters.running);
        let mut status = lock(&process.status);
        status.state = "idle".into();
        status.since = clock::now();
        status.handled += 1;
        status.restarts += u64::from(broke_down);
        if ended.state != State::Succeeded {
            status.failed += 1;
            let code = entry.outcome.as_ref().and_then(|outcome| outcome.exit_code);
            status.last_error = ended.reason.or_else(|| code.map(|code| format!("exit code {code}")));
        }
    }

    /// Journals how an order ended, with the output that is not confirmed yet, in one commit. `false`: the agent ends before that
    /// could be done.
    async fn keep(&self, entry: &Entry, output: &crate::outbox::Output) -> bool {
        let rows = output.take_unconfirmed();
        let sends = !rows.is_empty();
        let mut writes: Vec<Write> = rows.into_iter().map(Write::Output).collect();
        writes.push(Write::Entry(Box::new(entry.clone())));
        while let Err(error) = self.journal.commit(writes.clone()).await {
            // What happened is true whether or not it could be written: try until it is, or the agent ends.
            if self.complain(&error).await.is_none() {
                return false;
            }
        }
        self.recover();
        if sends && self.outbox.is_stuck() {
            self.outbox.nudge();
        }
        true
    }

    /// Executes in a task of its own, so that a panic or a hang ends with it. No end: the agent goes, its program stays.
    async fn execute(
        self: &Arc<Self>,
        order: Order,
        by: Option<&PublicKey>,
        body: String,
        output: crate::outbox::Output,
    ) -> (Option<Ended>, bool) {
        let adopted = lock(&self.adopted).remove(&order.id);
        let method = match self.method(&order.method) {
            Ok(method) => Some(method),
            // Its file may be gone by now; the program runs all the same.
            Err(_) if adopted => None,
            Err(reason) => return (Some(Ended::failed(reason)), false),
        };
        // What runs already does so as whoever it was begun as.
        let user = match self.gate.decide(&order, by, self.now(&order)) {
            _ if adopted => None,
            Decision::Denied { reason, .. } => return (Some(Ended::failed(reason)), false),
            decision => decision.user().map(ToOwned::to_owned),
        };
        // Opened as late as can be, for its program alone.
        let secrets = match by {
            // What runs already has them.
            _ if adopted || order.secrets.is_none() => Secrets::default(),
            Some(by) => match secret::open(&order, by, &self.identity.pair) {
                Ok(secrets) => secrets,
                Err(error) => return (Some(Ended::failed(error.to_string())), false),
            },
            None => return (Some(Ended::failed("nobody knows who has sealed its secrets")), false),
        };
        let limit = order.timeout().saturating_add(HANGING_AFTER);
        let (processes, cancel) = (Arc::clone(self), self.in_hand.token(&order.id));
        let mut output = output;
        let mut handler = tokio::spawn(async move {
            let identity = Arc::clone(&processes.identity);
            let execution = Execution {
                order: &order,
                body: &body,
                secrets,
                user,
                output: &mut output,
                cancel,
                identity: &identity,
                processes: &processes,
                leave: processes.leave.clone(),
            };
            match method.filter(|_| !adopted) {
                Some(method) => method.execute(execution).await,
                None => method::adopt(execution).await,
            }
        });
        match tokio::time::timeout(limit, &mut handler).await {
            Ok(Ok(ended)) => (ended, false),
            Ok(Err(error)) => (Some(Ended::failed(format!("the handler broke down: {}", panic_text(error)))), true),
            Err(_) => {
                handler.abort();
                let reason = "the handler did not end at the time-out and was abandoned";
                (Some(Ended { state: State::TimedOut, ..Ended::failed(reason) }), true)
            }
        }
    }
}

/// What a cancel answers.
pub(crate) fn cancel_outcome(job: JobId, found: State, now: State) -> Outcome {
    // Three words always make JSON.
    Outcome { data: serde_json::to_value(Cancelled { job, found, now }).ok(), ..Outcome::default() }
}

fn set_state(process: &Process, state: &str) {
    let mut status = lock(&process.status);
    status.state = state.into();
    status.since = clock::now();
}

fn panic_text(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Err(error) => error.to_string(),
        Ok(panic) => panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "it panicked".to_owned()),
    }
}
