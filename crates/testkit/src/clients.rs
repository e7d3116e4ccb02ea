//! The clients of a run: some order over the library, one starts a `steward run` for each job.
//!
//! Each takes the jobs that were planned for it, in their order, several at once. What it was told is written into
//! the [`Ledger`], where a job counts as unknown from the moment that it is begun until its client is told more: one
//! that is killed in between needs to do nothing for that.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fleet::{Fleet, FleetError, Node, OrderRequest, PlacedJob, Terms};
use futures::StreamExt;
use message::method::SHELLCOMMAND;
use message::{JobId, State, Token};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::check::{ClientJob, Seen};
use crate::plan::{PlannedJob, Settings, Then, Under};
use crate::process::Process;
use crate::system::{KitError, LOOK_EVERY, System};
use crate::witness;

/// The states in which an order is retried.
const RETRIED: [State; 6] =
    [State::Failed, State::TimedOut, State::Interrupted, State::Expired, State::Cancelled, State::Superseded];
/// How many jobs a client has under way at once.
const UNDER_WAY_MAX: usize = 8;

/// What clients share.
pub(crate) struct Ledger {
    jobs: RefCell<Vec<ClientJob>>,
    begun: Cell<usize>,
    orders: usize,
    /// Clients do not begin further orders than this: faults are to hit a system at work.
    pub(crate) horizon: Cell<usize>,
    /// How many orders are stored and have not ended, as last seen.
    pub(crate) open: Cell<usize>,
    open_max: usize,
    paced: Option<(Instant, Duration)>,
}

impl Ledger {
    pub(crate) fn new(settings: &Settings, orders: usize) -> Self {
        Self {
            jobs: RefCell::default(),
            begun: Cell::new(0),
            orders,
            horizon: Cell::new(orders),
            open: Cell::new(0),
            open_max: (settings.nodes * 60).max(300),
            paced: settings.lasts.map(|lasts| (Instant::now(), lasts)),
        }
    }

    /// How many orders have been begun.
    pub(crate) fn begun(&self) -> usize {
        self.begun.get()
    }

    /// What clients saw.
    pub(crate) fn jobs(&self) -> Vec<ClientJob> {
        self.jobs.borrow().clone()
    }

    fn may_begin(&self) -> bool {
        let by_now = self.paced.map_or(self.orders, |(since, lasts)| {
            let share = since.elapsed().as_secs_f64() / lasts.as_secs_f64().max(1.0);
            // A share of a count that fits into memory.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let orders = (self.orders as f64 * share) as usize;
            orders
        });
        self.begun() <= by_now.min(self.horizon.get()) && self.open.get() < self.open_max
    }

    fn begin(&self, job: &PlannedJob, system: &System) -> usize {
        if !job.again {
            self.begun.set(self.begun() + job.nodes.len());
        }
        let nodes = job.nodes.iter().map(|index| system.agents[*index].name.clone()).collect();
        self.note(nodes, key(job))
    }

    /// One more job, which nobody has answered for yet.
    fn note(&self, nodes: Vec<String>, key: Option<String>) -> usize {
        let mut jobs = self.jobs.borrow_mut();
        jobs.push(ClientJob { job: None, nodes, seen: Seen::Unknown, key });
        jobs.len() - 1
    }

    fn told(&self, index: usize, job: Option<JobId>, seen: Seen) {
        if let Some(entry) = self.jobs.borrow_mut().get_mut(index) {
            (entry.job, entry.seen) = (job, seen);
        }
    }
}

/// A client over the library.
pub(crate) struct Client {
    waiting: RefCell<VecDeque<PlannedJob>>,
    /// Kills it; it lives on as another one.
    pub(crate) kill: Notify,
}

impl Client {
    pub(crate) fn new(jobs: impl Iterator<Item = PlannedJob>) -> Self {
        Self { waiting: RefCell::new(jobs.collect()), kill: Notify::new() }
    }

    /// Orders all that it has to.
    pub(crate) async fn run(&self, system: &System, ledger: &Ledger) -> Result<(), KitError> {
        loop {
            tokio::select! {
                ended = Box::pin(self.live(system, ledger)) => return ended,
                () = self.kill.notified() => {}
            }
        }
    }

    async fn live(&self, system: &System, ledger: &Ledger) -> Result<(), KitError> {
        let fleet = system.client().await?;
        let nodes = nodes(&fleet).await;
        let next = futures::stream::unfold((), |()| async {
            while !ledger.may_begin() {
                sleep(LOOK_EVERY).await;
            }
            self.waiting.borrow_mut().pop_front().map(|job| (job, ()))
        });
        let placed = next.map(|job| {
            let (fleet, nodes) = (&fleet, &nodes);
            async move { place(&job, system, ledger, fleet, nodes).await }
        });
        let mut placed = Box::pin(placed.buffer_unordered(UNDER_WAY_MAX));
        while let Some(result) = placed.next().await {
            result?;
        }
        fleet.close().await;
        Ok(())
    }
}

/// The nodes, as soon as the broker tells.
async fn nodes(fleet: &Fleet) -> Vec<Node> {
    loop {
        if let Ok(view) = fleet.nodes().await {
            return view.nodes;
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn place(
    job: &PlannedJob,
    system: &System,
    ledger: &Ledger,
    fleet: &Fleet,
    nodes: &[Node],
) -> Result<(), KitError> {
    let entry = ledger.begin(job, system);
    let wrong = |error: message::NameError| KitError::Wrong(error.to_string());
    let request = OrderRequest {
        method: Token::method(SHELLCOMMAND).map_err(wrong)?,
        domain: Token::domain(domain(job)).map_err(wrong)?,
        args: witness::arguments(&system.witness_dir(), job.work),
        timeout: job.work.timeout(),
        expires: job.expires,
        max_output: 1 << 20,
    };
    let wanted = |node: &&Node| job.nodes.iter().any(|index| system.agents[*index].name == node.name().as_str());
    let targets: Vec<Node> = nodes.iter().filter(wanted).cloned().collect();
    let supersede = supersede(job).map(Token::method).transpose().map_err(wrong)?;
    let terms = Terms { supersede, idempotency_key: key(job), ..Terms::default() };
    let ordering = fleet.order_under(&request, &targets, &terms);
    let ordered = match job.abandoned {
        None => ordering.await,
        Some(after) => match timeout(after, ordering).await {
            Ok(ordered) => ordered,
            Err(_) => return Ok(()),
        },
    };
    if let Some(placed) = tell(ledger, entry, ordered) {
        follow(job.then, &placed.job, ledger, fleet).await;
    }
    Ok(())
}

/// Writes down what a client was told.
fn tell(ledger: &Ledger, entry: usize, ordered: Result<PlacedJob, FleetError>) -> Option<PlacedJob> {
    match ordered {
        Ok(placed) => {
            ledger.told(entry, Some(placed.job.clone()), Seen::Accepted);
            return Some(placed);
        }
        Err(FleetError::NotAllSent { job, .. }) => ledger.told(entry, Some(job), Seen::Unknown),
        Err(FleetError::Usage { .. } | FleetError::NoMatch { .. }) => ledger.told(entry, None, Seen::Refused),
        Err(_) => {}
    }
    None
}

/// What a client does next about a job. Where the broker cannot be asked just then, nothing comes of it.
async fn follow(then: Then, job: &JobId, ledger: &Ledger, fleet: &Fleet) {
    let planned = match then {
        Then::Nothing => return,
        Then::Cancel(after) => {
            sleep(after).await;
            fleet.plan_cancel(job, &[]).await.map(|plan| (plan.request, plan.nodes, Terms::default()))
        }
        Then::Retry(after) => {
            sleep(after).await;
            fleet.plan_retry(job, &[], &RETRIED.into()).await.map(|plan| (plan.request, plan.nodes, plan.terms))
        }
    };
    let Ok((request, nodes, terms)) = planned else { return };
    if !nodes.is_empty() {
        let entry = ledger.note(nodes.iter().map(|node| node.name().to_string()).collect(), None);
        let ordered = fleet.order_under(&request, &nodes, &terms).await;
        tell(ledger, entry, ordered);
    }
}

fn key(job: &PlannedJob) -> Option<String> {
    if let Under::Once(number) = job.under { Some(format!("once-{number}")) } else { None }
}

fn supersede(job: &PlannedJob) -> Option<String> {
    if let Under::Supersede(number) = job.under { Some(format!("k{number}")) } else { None }
}

fn domain(job: &PlannedJob) -> String {
    format!("d{}", job.domain)
}

/// The client that is a program.
pub(crate) struct ProgramClient {
    waiting: RefCell<VecDeque<PlannedJob>>,
    /// The program that runs now.
    pub(crate) running: RefCell<Option<Process>>,
}

impl ProgramClient {
    pub(crate) fn new(jobs: impl Iterator<Item = PlannedJob>) -> Self {
        Self { waiting: RefCell::new(jobs.collect()), running: RefCell::new(None) }
    }

    /// Orders all that it has to, one process a job.
    pub(crate) async fn run(&self, system: &System, ledger: &Ledger) -> Result<(), KitError> {
        loop {
            while !ledger.may_begin() {
                sleep(LOOK_EVERY).await;
            }
            let Some(job) = self.waiting.borrow_mut().pop_front() else { return Ok(()) };
            let entry = ledger.begin(&job, system);
            let targets: Vec<&str> = job.nodes.iter().map(|index| system.agents[*index].name.as_str()).collect();
            let (name, value) = witness::takes_variable(job.work);
            let arguments = [
                "-o".to_owned(),
                "json".to_owned(),
                "run".to_owned(),
                targets.join(","),
                "--detach".to_owned(),
                "--domain".to_owned(),
                domain(&job),
                "--timeout".to_owned(),
                format!("{}ms", job.work.timeout().as_millis()),
                "--expires".to_owned(),
                format!("{}ms", job.expires.as_millis()),
                "--env".to_owned(),
                format!("{name}={value}"),
                "--sh".to_owned(),
                witness::line(&system.witness_dir(), job.work),
            ];
            let under = supersede(&job).map(|key| ["--supersede".to_owned(), key]);
            let (verb, rest) = arguments.split_at(3);
            let arguments = verb.iter().chain(under.iter().flatten()).chain(rest);
            let arguments: Vec<&str> = arguments.map(String::as_str).collect();
            let mut process = Process::new(system.steward("program", &arguments));
            process.start().map_err(KitError::io("start a client"))?;
            let output = process.recipe().output();
            *self.running.borrow_mut() = Some(process);
            let code = loop {
                sleep(LOOK_EVERY / 2).await;
                match self.running.borrow_mut().as_mut() {
                    // Killed, and taken away.
                    None => break None,
                    Some(process) => {
                        if let Some(status) = process.ended() {
                            break status.code();
                        }
                    }
                }
            };
            *self.running.borrow_mut() = None;
            match code {
                // Detached: the job is stored and sent, and nobody has answered yet.
                Some(0 | 4) => {
                    let said = std::fs::read(&output).map_err(KitError::io("read what a client said"))?;
                    let said: serde_json::Value = serde_json::from_slice(&said).unwrap_or_default();
                    let id = said.get("job").and_then(|job| job.as_str()).and_then(|job| job.parse().ok());
                    let seen = if id.is_some() { Seen::Accepted } else { Seen::Unknown };
                    ledger.told(entry, id, seen);
                }
                Some(2 | 5) => ledger.told(entry, None, Seen::Refused),
                _ => {}
            }
        }
    }
}
