//! Receivers: what the station takes from the stream of events, and hands on.
//!
//! Each keeps its own place on disk, and holds it while where its records go does not take them: the others go on. A batch that
//! its sender has numbered arrives in a file exactly once, elsewhere at least once; what cannot be used is put aside as a dead
//! letter, with the reason.

mod config;
mod place;
mod sink;
mod syslog;
mod usable;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleet::{DEAD_LETTER, EventFilter, Fleet, FleetError, Received};
use message::errorlog;
use message::target::glob_matches;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::Config;
use config::Receive;
pub(crate) use config::{RETRY, check_glob, check_url};
use place::Place;
use sink::{Load, Sink};
use usable::Usable;

use crate::hand_over::Refusal;

/// What came is delivered together after so long, or with so many bytes or batches.
const GATHER: Duration = Duration::from_millis(50);
const LOAD_BYTES_MAX: usize = 4 << 20;
const LOAD_BATCHES_MAX: usize = 256;

/// How the receivers stand, for the metrics.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Records that have arrived where they shall.
    pub(crate) delivered: AtomicU64,
    /// Batches that were had before.
    pub(crate) repeated: AtomicU64,
    /// Messages that were put aside.
    pub(crate) dead: AtomicU64,
    /// Attempts that failed.
    pub(crate) failures: AtomicU64,
    /// Receivers that hold their place just now.
    pub(crate) failing: AtomicU64,
    /// Why one of them last did: a sentence.
    pub(crate) last_error: Mutex<Option<String>>,
}

/// Runs all receivers of a configuration until cancelled.
pub(crate) async fn keep(fleet: Fleet, config: Config, dir: PathBuf, counts: Arc<Counts>, cancel: CancellationToken) {
    let mut receivers = JoinSet::new();
    for receive in config.receive {
        let place = dir.join(format!("{}.place", receive.id));
        let (fleet, counts, cancel) = (fleet.clone(), Arc::clone(&counts), cancel.clone());
        receivers.spawn(async move {
            let mut receiver = Receiver { fleet, receive, place, counts, is_failing: false };
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = receiver.run() => {}
            }
        });
    }
    cancel.cancelled().await;
    receivers.shutdown().await;
}

struct Receiver {
    fleet: Fleet,
    receive: Receive,
    place: PathBuf,
    counts: Arc<Counts>,
    is_failing: bool,
}

impl Receiver {
    /// As long as the station runs: whatever goes wrong is told, and tried again.
    async fn run(&mut self) {
        let mut wait = RETRY.0;
        loop {
            match self.follow().await {
                Ok(()) => wait = RETRY.0,
                Err(reason) => {
                    self.fails(&reason);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn follow(&mut self) -> Result<(), String> {
        let said = |error: FleetError| error.to_string();
        let mut place = Place::open(&self.place).map_err(|error| error.to_string())?;
        let mut sink = Sink::new(&self.receive.sink)?;
        sink.mend(&place).map_err(|error| error.to_string())?;
        place.move_to(self.fleet.epoch().await.map_err(said)?);
        let filter = EventFilter {
            method: Some(self.receive.method.clone()),
            domain: Some(self.receive.domain.clone()),
            ..EventFilter::told_to(&self.fleet.context().node)
        };
        let mut events = self.fleet.receive(&filter, place.sequence).await.map_err(said)?;
        self.works();
        loop {
            let first = events.next_message().await.map_err(said)?;
            let mut load = Load { batches: Vec::new(), sequence: place.sequence };
            let (mut bytes, mut next, mut aside) = (0, first, Vec::new());
            let deadline = tokio::time::Instant::now() + GATHER;
            while let Some(received) = next.take() {
                if received.sequence > load.sequence {
                    load.sequence = received.sequence;
                    bytes += received.payload.len() * 4;
                    self.sort_in(received, &mut place, &mut load, &mut aside);
                }
                if bytes < LOAD_BYTES_MAX && load.batches.len() < LOAD_BATCHES_MAX {
                    next = match tokio::time::timeout_at(deadline, events.next_message()).await {
                        Ok(next) => next.map_err(said)?,
                        Err(_) => None,
                    };
                }
            }
            // Nothing for this one: not worth a write, and read again after a restart at worst.
            if !(load.batches.is_empty() && aside.is_empty()) {
                self.put_aside(&aside).await;
                self.deliver(&mut sink, &load, &mut place).await;
            }
        }
    }

    /// What is wanted goes into the load; what cannot be used aside.
    fn sort_in(&self, received: Received, place: &mut Place, load: &mut Load, aside: &mut Vec<(Received, String)>) {
        let mut tokens = received.subject.split('.').skip(2);
        let (method, domain) = (tokens.next().unwrap_or_default(), tokens.next().unwrap_or_default());
        let is_letter = method == DEAD_LETTER;
        let fits = glob_matches(&self.receive.method, method) && glob_matches(&self.receive.domain, domain);
        // Letters go nowhere by a glob: they would come back for ever.
        if !fits || (is_letter && self.receive.method != DEAD_LETTER) {
            return;
        }
        let batch = match received.batch.as_ref().map_err(Clone::clone).and_then(Usable::of) {
            Ok(batch) => batch,
            Err(reason) => {
                // Stations complain unsigned; that one of them has put a complaint aside would be the next complaint.
                if !is_letter && method != errorlog::METHOD {
                    aside.push((received, reason));
                }
                return;
            }
        };
        if self.receive.from.as_ref().is_some_and(|wanted| !wanted.matches(&batch.head.from)) {
            return;
        }
        if place.had(&batch.head.from, batch.head.journal, batch.head.row) {
            self.counts.repeated.fetch_add(1, Ordering::Relaxed);
            return;
        }
        load.batches.push(batch);
    }

    async fn put_aside(&mut self, aside: &[(Received, String)]) {
        for (received, reason) in aside {
            tracing::warn!(subject = received.subject, sequence = received.sequence, reason, "an event is put aside");
            let mut wait = RETRY.0;
            while let Err(error) = self.fleet.put_aside(received, reason).await {
                self.fails(&error.to_string());
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
            self.counts.dead.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Until it has arrived, or it is certain that it never will.
    async fn deliver(&mut self, sink: &mut Sink, load: &Load, place: &mut Place) {
        let mut wait = RETRY.0;
        loop {
            match sink.deliver(load, self.receive.format, place).await {
                Ok(records) => {
                    self.counts.delivered.fetch_add(records, Ordering::Relaxed);
                    self.works();
                    return;
                }
                Err(Refusal::Never(reason)) => {
                    self.fails(&reason);
                    if self.give_up(load, &reason, place).await {
                        return;
                    }
                }
                Err(Refusal::Later(reason)) => self.fails(&reason),
            }
            tokio::time::sleep(wait / 2 + Duration::from_millis(bus::clock::jitter(wait.as_millis() as u64 / 2 + 1)))
                .await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Puts a whole load aside that is never taken.
    async fn give_up(&mut self, load: &Load, reason: &str, place: &mut Place) -> bool {
        for batch in &load.batches {
            let head = &batch.head;
            let subject = format!("{}.event.{}.{}", head.to, head.method, head.domain);
            let letter = Received {
                sequence: load.sequence,
                stored: head.created,
                subject,
                payload: batch.records.clone(),
                batch: Err(reason.to_owned()),
            };
            if self.fleet.put_aside(&letter, reason).await.is_err() {
                return false;
            }
            self.counts.dead.fetch_add(1, Ordering::Relaxed);
        }
        place.done(load.sequence).is_ok()
    }

    fn fails(&mut self, reason: &str) {
        let mut last = self.counts.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() != Some(reason) {
            tracing::warn!(reason, receiver = self.receive.id, "a receiver of events holds its place");
            *last = Some(reason.to_owned());
        }
        drop(last);
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut self.is_failing, true) {
            self.counts.failing.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn works(&mut self) {
        if std::mem::replace(&mut self.is_failing, false) {
            tracing::info!(receiver = self.receive.id, "a receiver of events goes on");
            self.counts.failing.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
