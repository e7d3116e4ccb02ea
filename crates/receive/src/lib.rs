//! Receivers: what a node or a station takes from the stream of events, and hands on.
//!
//! Each keeps its own place on disk, and holds it while where its records go does not take them: the others go on. A batch that
//! its sender has numbered arrives in a file exactly once, elsewhere at least once; what cannot be used is put aside as a dead
//! letter, with the reason. Who receives says by [`Messages`] where messages come from and what of them is proven, and by
//! [`Witness`] who wants to know how that goes.

mod config;
pub mod files;
pub mod hand_over;
mod place;
mod postgres;
mod sink;
mod syslog;
mod usable;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bus::Bus;
use message::errorlog;
use message::received::DEAD_LETTER;
use message::target::glob_matches;
use message::{NodeName, Received};
use tokio_util::sync::CancellationToken;

pub use config::{KEYS, RETRY, Receive, check_glob, check_url, tables};
use hand_over::Refusal;
use place::Place;
use sink::{Load, Sink};
use usable::Usable;

/// What came is delivered together after so long, or with so many bytes or batches.
const GATHER: Duration = Duration::from_millis(50);
const LOAD_BYTES_MAX: usize = 4 << 20;
const LOAD_BATCHES_MAX: usize = 256;

/// Messages of the stream of events, one after the other.
pub trait Messages: Send {
    /// The next one. Waits for it, and may be cancelled at any time without losing one. `None`: they have to be opened anew, though
    /// nothing is wrong.
    ///
    /// An error is a sentence; then they are opened anew after a while.
    fn next(&mut self) -> impl Future<Output = Result<Option<Received>, String>> + Send;
}

/// Where messages come from.
pub trait Origin: Send + Sync + 'static {
    /// What it opens.
    type Messages: Messages;

    /// Opens what this node is told under a method and a domain (names or globs; more may come), behind a sequence of the stream.
    ///
    /// An error is a sentence; it is tried again.
    fn open(
        &self,
        method: &str,
        domain: &str,
        after: u64,
    ) -> impl Future<Output = Result<Self::Messages, String>> + Send;
}

/// Who is told how a receiver stands.
pub trait Witness: Send + Sync + 'static {
    /// So many records have arrived where they shall.
    fn delivered(&self, records: u64);
    /// A batch came that was had before.
    fn repeated(&self);
    /// A message was put aside.
    fn dead(&self);
    /// An attempt failed: a sentence. `begins` where the one before had not.
    fn fails(&self, reason: &str, begins: bool);
    /// It goes on after attempts that failed.
    fn works(&self);
}

/// One receiver: takes what a `[[receive]]` table says to where that says.
pub struct Receiver<O, W> {
    bus: Bus,
    node: NodeName,
    origin: O,
    receive: Receive,
    place: PathBuf,
    witness: Arc<W>,
    /// Why it holds its place, while it does.
    failing: Option<String>,
    /// Whether something has arrived since messages were last opened.
    is_fruitful: bool,
}

impl<O: Origin, W: Witness> Receiver<O, W> {
    /// One of `node`, which keeps its place in `dir`.
    pub fn new(bus: Bus, node: NodeName, origin: O, receive: Receive, dir: &Path, witness: Arc<W>) -> Self {
        let place = dir.join(format!("{}.place", receive.id));
        Self { bus, node, origin, receive, place, witness, failing: None, is_fruitful: false }
    }

    /// Receives until cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = self.go_on() => {}
        }
    }

    /// For ever: whatever goes wrong is told, and tried again.
    async fn go_on(&mut self) {
        let mut wait = RETRY.0;
        loop {
            match self.follow().await {
                Ok(()) => wait = RETRY.0,
                Err(reason) => {
                    self.fails(&reason);
                    if std::mem::take(&mut self.is_fruitful) {
                        wait = RETRY.0;
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn follow(&mut self) -> Result<(), String> {
        let mut place = Place::open(&self.place).map_err(|error| error.to_string())?;
        let mut sink = Sink::new(&self.receive.sink)?;
        sink.mend(&place).map_err(|error| error.to_string())?;
        place.move_to(self.bus.epoch().await.map_err(|error| error.to_string())?);
        let mut messages = self.origin.open(&self.receive.method, &self.receive.domain, place.sequence).await?;
        self.works();
        loop {
            let Some(first) = messages.next().await? else { return Ok(()) };
            let mut load = Load { batches: Vec::new(), sequence: place.sequence };
            let (mut bytes, mut next, mut aside) = (0, Some(first), Vec::new());
            let deadline = tokio::time::Instant::now() + GATHER;
            while let Some(received) = next.take() {
                if received.sequence > load.sequence {
                    load.sequence = received.sequence;
                    bytes += received.payload.len() * 4;
                    self.sort_in(received, &mut place, &mut load, &mut aside);
                }
                if bytes < LOAD_BYTES_MAX && load.batches.len() < LOAD_BATCHES_MAX {
                    next = tokio::time::timeout_at(deadline, messages.next()).await.ok().transpose()?.flatten();
                }
            }
            // Nothing for this one: not worth a write, and read again after a restart at worst.
            if !(load.batches.is_empty() && aside.is_empty()) {
                self.put_aside(&aside).await;
                self.deliver(&mut sink, load, &mut place).await;
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
        let mut batch = match received.batch.as_ref().map_err(Clone::clone).and_then(Usable::of) {
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
            self.witness.repeated();
            return;
        }
        batch.came = (received.sequence, received.stored);
        load.batches.push(batch);
    }

    async fn put_aside(&mut self, aside: &[(Received, String)]) {
        for (received, reason) in aside {
            tracing::warn!(subject = received.subject, sequence = received.sequence, reason, "an event is put aside");
            let mut wait = RETRY.0;
            while let Err(error) = self.bus.put_aside(&self.node, received, reason).await {
                self.fails(&error.to_string());
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
            self.witness.dead();
        }
    }

    /// Until all of it has arrived, or it is certain of what has not that it never will.
    async fn deliver(&mut self, sink: &mut Sink, load: Load, place: &mut Place) {
        let mut wait = RETRY.0;
        loop {
            match sink.deliver(&load, self.receive.format, place).await {
                Ok(records) => {
                    self.witness.delivered(records);
                    self.is_fruitful = true;
                    self.works();
                    return;
                }
                Err(Refusal::Never(reason)) => {
                    self.fails(&reason);
                    break;
                }
                Err(Refusal::Later(reason)) => self.holds(&reason, &mut wait).await,
            }
        }
        // One batch of it is in the way of the others.
        let sequence = load.sequence;
        for batch in load.batches {
            self.deliver_alone(sink, Load { batches: vec![batch], sequence }).await;
        }
        let mut wait = RETRY.0;
        while let Err(error) = place.done(sequence) {
            self.holds(&error.to_string(), &mut wait).await;
        }
        self.works();
    }

    /// The same for a load of one batch, but for the place: that moves when all of them are done.
    async fn deliver_alone(&mut self, sink: &mut Sink, load: Load) {
        let mut wait = RETRY.0;
        loop {
            match sink.hand_on(&load, self.receive.format).await {
                Ok(records) => {
                    self.witness.delivered(records);
                    return;
                }
                Err(Refusal::Never(reason)) => {
                    let letters: Vec<_> = load.batches.iter().map(|batch| letter(batch, &reason)).collect();
                    self.put_aside(&letters).await;
                    return;
                }
                Err(Refusal::Later(reason)) => self.holds(&reason, &mut wait).await,
            }
        }
    }

    /// Tells why it holds its place, and waits, longer each time.
    async fn holds(&mut self, reason: &str, wait: &mut Duration) {
        self.fails(reason);
        let ms = u64::try_from(wait.as_millis() / 2).unwrap_or(u64::MAX);
        tokio::time::sleep(*wait / 2 + Duration::from_millis(bus::clock::jitter(ms + 1))).await;
        *wait = (*wait * 2).min(RETRY.1);
    }

    fn fails(&mut self, reason: &str) {
        let begins = self.failing.is_none();
        if self.failing.as_deref() != Some(reason) {
            tracing::warn!(reason, receiver = self.receive.id, "a receiver of events holds its place");
            self.failing = Some(reason.to_owned());
        }
        self.witness.fails(reason, begins);
    }

    fn works(&mut self) {
        if self.failing.take().is_some() {
            tracing::info!(receiver = self.receive.id, "a receiver of events goes on");
            self.witness.works();
        }
    }
}

/// A batch that is never taken, as it is put aside.
fn letter(batch: &Usable, reason: &str) -> (Received, String) {
    let (head, (sequence, stored)) = (&batch.head, batch.came);
    let subject = format!("{}.event.{}.{}", head.to, head.method, head.domain);
    let payload = batch.records.clone();
    (Received { sequence, stored, subject, payload, batch: Err(reason.to_owned()) }, reason.to_owned())
}
