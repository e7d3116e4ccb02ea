//! Event sources: what happens on this node becomes batches in the journal, and from there on the bus.
//!
//! How far a source has been read and what was read from it are one write, so that nothing is lost or reported
//! twice across a crash. What cannot leave waits in the journal; when too much waits, sources are not read on:
//! a file itself is the buffer, and who sends over a stream waits. Only what comes in datagrams is lost then, and counted.

mod budget;
pub(crate) mod complain;
mod file;
mod follow;
mod journald;
mod keep;
mod listen;
mod program;
mod schedule;
mod scrape;
mod sieve;
mod syslog;
mod tls;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bus::{Bus, Headers, clock};
use bytes::Bytes;
use journal::{EventRow, Lane, Write};
use message::event::{ENCODING_HEADER, INTRODUCTION_HEADER};
use message::method::ProcessStatus;
use message::{NameError, Seal, Subject, Token, errorlog};
use regex_lite::Regex;
use tokio_util::sync::CancellationToken;

use crate::config::{self, EventSource, Shape, SourceKind};
use crate::policy::Gate;
use crate::run::Identity;
use budget::{Budget, Choice};
use keep::Records;
pub(crate) use keep::{Keep, Told};
pub(crate) use listen::Address;
use schedule::Asked;
pub(crate) use tls::Certificates;

/// The first and the longest wait after a batch that the broker did not take, or a journal that did not.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// How many batches are read from the journal at once.
const ROWS_AT_ONCE: usize = 4;

/// How a source stands, as `ps` shows it.
#[derive(Clone)]
pub(crate) struct Standing(Arc<Mutex<ProcessStatus>>);

impl Standing {
    fn new(told: &Told) -> Self {
        let subject = Subject::event(told.to.clone(), told.method.clone(), told.domain.clone());
        Self(Arc::new(Mutex::new(ProcessStatus {
            subject: subject.to_string(),
            reply: String::new(),
            state: "starting".into(),
            handled: 0,
            failed: 0,
            restarts: 0,
            last_error: None,
            since: clock::now(),
        })))
    }

    fn note(&self, state: &str, error: Option<String>) {
        let mut status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if status.state != state {
            status.state = state.into();
            status.since = clock::now();
        }
        if let Some(error) = error {
            if status.last_error.as_ref() != Some(&error) {
                tracing::warn!(%error, "an event source has trouble");
            }
            status.last_error = Some(error);
        }
    }

    /// So many records were kept, and so many dropped.
    fn count(&self, kept: u64, dropped: u64) {
        let mut status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        status.handled += kept;
        status.failed += dropped;
    }
}

/// Where events come from, but for how they are read.
pub(crate) struct Source {
    shape: Shape,
    multiline: Option<Regex>,
    told: Told,
    keep: Arc<Keep>,
    standing: Standing,
}

impl Source {
    /// One that was configured; it is read by [`Source::run`].
    pub(crate) fn new(source: &EventSource, keep: Arc<Keep>) -> Self {
        let EventSource { to, method, domain, lane, .. } = source.clone();
        let told = Told { to, method, domain, lane };
        let (shape, multiline) = (source.shape.clone(), source.multiline.clone());
        Self { shape, multiline, ..Self::of(told, keep) }
    }

    fn of(told: Told, keep: Arc<Keep>) -> Self {
        let standing = Standing::new(&told);
        Self { shape: Shape::default(), multiline: None, told, keep, standing }
    }

    /// What this program complains about itself; it is read by [`complain::run`].
    pub(crate) fn of_complaints(keep: Arc<Keep>) -> Result<Self, NameError> {
        let method = Token::method(errorlog::METHOD)?;
        let told = Told { to: config::central(), method, domain: Token::domain("agent")?, lane: Lane::Normal };
        Ok(Self::of(told, keep))
    }

    pub(crate) fn status(&self) -> Arc<Mutex<ProcessStatus>> {
        Arc::clone(&self.standing.0)
    }

    /// Reads into the journal until cancelled.
    pub(crate) async fn run(self, kind: SourceKind, cancel: CancellationToken) {
        match kind {
            SourceKind::Files(files) => file::run(self, files, cancel).await,
            SourceKind::Syslog(address) => listen::run(self, address, listen::Speech::Syslog, cancel).await,
            SourceKind::Socket(path) => {
                listen::run(self, listen::Address::UnixStream(path), listen::Speech::Lines, cancel).await;
            }
            SourceKind::Journald(journal) => journald::run(self, journal, cancel).await,
            SourceKind::Command(program) => schedule::run(self, Asked::Program(program), cancel).await,
            SourceKind::Http(scrape) => schedule::run(self, Asked::Http(scrape), cancel).await,
        }
    }

    /// Keeps records until the journal has them; `false` when cancelled meanwhile.
    async fn keep(&self, name: &str, position: Option<String>, records: &Records, cancel: &CancellationToken) -> bool {
        while let Err(error) = self.keep.keep(&self.told, name, position.clone(), records).await {
            self.standing.note("waiting: the journal fails", Some(error.to_string()));
            if wait(cancel, RETRY_FIRST).await {
                return false;
            }
        }
        true
    }
}

/// Waits; `true` when cancelled meanwhile.
async fn wait(cancel: &CancellationToken, duration: Duration) -> bool {
    tokio::select! {
        biased;
        () = cancel.cancelled() => true,
        () = tokio::time::sleep(duration) => false,
    }
}

/// Publishes what the sources have journaled until the broker has confirmed it: urgent lanes first, and in each lane one batch after
/// the other, since receivers know by its number what they have had. No more leaves than the budget allows.
pub(crate) async fn publish(
    bus: Bus,
    keep: Arc<Keep>,
    (identity, gate): (Arc<Identity>, Arc<Gate>),
    budget: Option<u64>,
    cancel: CancellationToken,
) {
    let mut queues = Lane::ALL.map(Queue::new);
    let (mut budget, began, mut retry) = (Budget::new(budget), Instant::now(), RETRY_FIRST);
    while !cancel.is_cancelled() {
        let now_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let introduction = gate.introduction();
        let bytes = |row: &EventRow| row.payload.len() + shown(introduction.as_deref(), row).map_or(0, str::len);
        let waiting = queues.iter_mut().filter_map(|queue| Some((queue.lane, bytes(queue.first(&keep)?))));
        let (lane, pause) = match budget.choose(waiting, now_ms) {
            Choice::Go(lane) => (Some(lane), RETRY_MAX),
            Choice::Wait { ms } => (None, RETRY_MAX.min(Duration::from_millis(ms))),
            // Rows may be left from an earlier read that failed.
            Choice::Nothing => (None, RETRY_MAX),
        };
        let chosen = queues.iter_mut().find(|queue| Some(queue.lane) == lane);
        let Some((queue, row)) = chosen.and_then(|queue| queue.rows.pop_front().map(|row| (queue, row))) else {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = keep.ready().notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            continue;
        };
        match publish_row(&bus, &identity, shown(introduction.as_deref(), &row), &row).await {
            Ok(()) => {
                retry = RETRY_FIRST;
                budget.spend(bytes(&row));
                keep.journal().commit_lazily(Write::EventSent { row: row.row }).await;
                keep.sent(queue.lane);
            }
            Err(problem) => {
                tracing::debug!(%problem, "an event batch was not confirmed; it is sent again");
                queue.rows.push_front(row);
                let mut link = bus.link();
                link.mark_unchanged();
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {}
                    _ = link.changed() => {}
                    () = tokio::time::sleep(retry) => retry = (retry * 2).min(RETRY_MAX),
                }
            }
        }
    }
}

/// The next batches of a lane.
struct Queue {
    lane: Lane,
    rows: VecDeque<EventRow>,
    /// The last one that was read.
    after: u64,
}

impl Queue {
    const fn new(lane: Lane) -> Self {
        Self { lane, rows: VecDeque::new(), after: 0 }
    }

    fn first(&mut self, keep: &Keep) -> Option<&EventRow> {
        if self.rows.is_empty() {
            match keep.journal().events(self.lane, self.after, ROWS_AT_ONCE) {
                Ok(rows) => self.rows.extend(rows),
                Err(error) => tracing::warn!(%error, "events cannot be read from the journal"),
            }
            self.after = self.rows.back().map_or(self.after, |row| row.row);
        }
        self.rows.front()
    }
}

/// What goes with a batch so that its receiver knows this node. A station looks it up; any other receiver may not.
fn shown<'a>(introduction: Option<&'a str>, row: &EventRow) -> Option<&'a str> {
    let to = row.subject.split('.').next();
    introduction.filter(|_| to != Some(config::central().as_str()))
}

async fn publish_row(bus: &Bus, identity: &Identity, shown: Option<&str>, row: &EventRow) -> Result<(), String> {
    let seal = Seal::over(&row.payload, &identity.pair).map_err(|error| error.to_string())?;
    let mut headers = Headers::from(row.id).sealed(&seal);
    if let Some(encoding) = &row.encoding {
        headers = headers.with(ENCODING_HEADER, encoding);
    }
    if let Some(introduction) = shown {
        headers = headers.with(INTRODUCTION_HEADER, introduction);
    }
    let payload = Bytes::copy_from_slice(&row.payload);
    bus.publish(&row.subject, headers, payload).await.map(|_| ()).map_err(|error| error.to_string())
}
