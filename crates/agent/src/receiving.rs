//! Receivers on a node: what others report to it, as `[[receive]]` says.
//!
//! A node may have one consumer of the stream of events. So one task reads for all receivers: each asks it for what comes behind
//! its own place, and it reads on only as long as somebody waits. Who lags behind has the consumer set back; the others pass over
//! what they have had.
//!
//! A node may not look others up. Who reports to one shows with each batch what it goes by: its record, signed by an operator.

use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus::following::{Following, Pace};
use bus::{Bus, BusError, Message, Start, clock};
use message::event::{ENCODING_HEADER, INTRODUCTION_HEADER};
use message::method::ProcessStatus;
use message::{Addressee, NodeRecord, PublicKey, Received, ReceivedBatch, Trust};
use receive::{Messages, Origin, Receive, Receiver, Witness};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::trust::Trusted;

/// The stream of events.
const EVENTS: &str = "EVENTS";
/// So much of what was read last is kept for receivers that ask for it a moment later.
const WINDOW_MESSAGES_MAX: usize = 64;
const WINDOW_BYTES_MAX: usize = 1 << 20;
/// Between two attempts to read what the broker does not give.
const RETRY: Duration = Duration::from_secs(1);

/// What this node is told.
#[derive(Clone)]
pub(crate) struct Told {
    me: Addressee,
    filter: String,
    pace: Pace,
}

impl Told {
    pub(crate) fn new(me: &Addressee, receive: &[Receive], pace: Pace) -> Self {
        let method = common(receive.iter().map(|receive| receive.method.as_str()));
        let domain = common(receive.iter().map(|receive| receive.domain.as_str()));
        Self { me: me.clone(), filter: format!("{}.event.{method}.{domain}", me.name), pace }
    }
}

/// The name that all have in common; else a wildcard for all.
fn common<'a>(mut names: impl Iterator<Item = &'a str>) -> &'a str {
    match names.next() {
        Some(first) if !first.contains(['*', '?']) && names.all(|name| name == first) => first,
        _ => "*",
    }
}

/// How a receiver stands, as `ps` shows it.
struct Standing(Arc<Mutex<ProcessStatus>>);

impl Standing {
    fn change(&self, change: impl FnOnce(&mut ProcessStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn is(&self, state: &str) {
        self.change(|status| {
            if status.state != state {
                status.state = state.into();
                status.since = clock::now();
            }
        });
    }
}

impl Witness for Standing {
    fn delivered(&self, records: u64) {
        self.change(|status| status.handled += records);
    }

    fn repeated(&self) {}

    fn dead(&self) {
        self.change(|status| status.failed += 1);
    }

    fn fails(&self, reason: &str, _: bool) {
        self.change(|status| status.last_error = Some(reason.to_owned()));
        self.is("waiting: what it hands on is not taken");
    }

    fn works(&self) {
        self.is("receiving");
    }
}

/// Receivers that are to run.
pub(crate) struct Receiving {
    /// How they stand.
    pub(crate) statuses: Vec<Arc<Mutex<ProcessStatus>>>,
    /// What has to run for them. Each ends when cancelled.
    pub(crate) tasks: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Makes a receiver of each table, and what reads for them.
pub(crate) fn start(
    bus: Bus,
    told: Told,
    tables: Vec<Receive>,
    trusted: Arc<Trusted>,
    state_dir: &Path,
    cancel: &CancellationToken,
) -> Receiving {
    let (wants, wanted) = mpsc::channel(tables.len().max(1));
    let mut receiving = Receiving { statuses: Vec::new(), tasks: Vec::new() };
    for table in tables {
        let me = told.me.clone();
        let status = Arc::new(Mutex::new(ProcessStatus {
            subject: format!("{}.event.{}.{}", me.name, table.method, table.domain),
            reply: String::new(),
            state: "receiving".into(),
            handled: 0,
            failed: 0,
            restarts: 0,
            last_error: None,
            since: clock::now(),
        }));
        receiving.statuses.push(Arc::clone(&status));
        let origin = Coming { me: me.clone(), trusted: Arc::clone(&trusted), wants: wants.clone() };
        let witness = Arc::new(Standing(status));
        let receiver = Receiver::new(bus.clone(), me.name, origin, table, &state_dir.join("receive"), witness);
        receiving.tasks.push(Box::pin(receiver.run(cancel.clone())));
    }
    let cancel = cancel.clone();
    receiving.tasks.push(Box::pin(async move {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = Reader::new(bus, told, wanted).run() => {}
        }
    }));
    receiving
}

/// What comes behind a sequence, or why nothing does. `None`: the link was another one meanwhile, and with it perhaps the store.
type Answer = Result<Option<Vec<Message>>, String>;

/// Somebody wants what comes behind a sequence.
struct Want {
    after: u64,
    answer: oneshot::Sender<Answer>,
}

/// What was read last: everything behind `low`, up to the last one.
#[derive(Default)]
struct Window {
    low: u64,
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Window {
    fn new(low: u64) -> Self {
        Self { low, ..Self::default() }
    }

    /// How far it was read.
    fn high(&self) -> u64 {
        self.messages.back().map_or(self.low, |message| message.sequence)
    }

    fn push(&mut self, message: Message) {
        self.bytes += message.payload.len();
        self.messages.push_back(message);
        while self.messages.len() > WINDOW_MESSAGES_MAX || (self.bytes > WINDOW_BYTES_MAX && self.messages.len() > 1) {
            let Some(oldest) = self.messages.pop_front() else { break };
            self.bytes -= oldest.payload.len();
            self.low = oldest.sequence;
        }
    }

    /// What there is behind a sequence; `None` when something behind it is not in here, or nothing has come yet.
    fn behind(&self, after: u64) -> Option<Vec<Message>> {
        let is_here = self.low <= after && after < self.high();
        is_here.then(|| self.messages.iter().filter(|message| message.sequence > after).cloned().collect())
    }
}

/// Reads for all receivers.
struct Reader {
    bus: Bus,
    told: Told,
    wanted: mpsc::Receiver<Want>,
    wants: Vec<Want>,
    window: Window,
}

impl Reader {
    fn new(bus: Bus, told: Told, wanted: mpsc::Receiver<Want>) -> Self {
        Self { bus, told, wanted, wants: Vec::new(), window: Window::default() }
    }

    /// Until nobody can want anything any more.
    async fn run(mut self) {
        let mut following: Option<Following> = None;
        loop {
            self.serve();
            let lagging = self.wants.iter().map(|want| want.after).min();
            let Some(lagging) = lagging else {
                match self.wanted.recv().await {
                    Some(want) => self.wants.push(want),
                    None => return,
                }
                continue;
            };
            // Behind what is at hand, or before it: read there.
            if lagging < self.window.low || (following.is_none() && self.window.messages.is_empty()) {
                self.window = Window::new(lagging);
                following = None;
            }
            let source = match &mut following {
                Some(source) => source,
                None => match self.open().await {
                    Ok(source) => following.insert(source),
                    Err(error) => {
                        self.fail(error).await;
                        continue;
                    }
                },
            };
            tokio::select! {
                biased;
                want = self.wanted.recv() => match want {
                    Some(want) => self.wants.push(want),
                    None => return,
                },
                next = source.next() => match next {
                    Ok(message) if message.sequence > self.window.high() => self.window.push(message),
                    Ok(_) => {}
                    Err(error) => {
                        following = None;
                        self.fail(error).await;
                    }
                },
            }
        }
    }

    /// Gives what is at hand, and forgets who has gone.
    fn serve(&mut self) {
        self.wants.retain(|want| !want.answer.is_closed());
        for want in std::mem::take(&mut self.wants) {
            match self.window.behind(want.after) {
                // Who has gone in this moment has taken nothing.
                Some(messages) => drop(want.answer.send(Ok(Some(messages)))),
                None => self.wants.push(want),
            }
        }
    }

    async fn open(&self) -> Result<Following, BusError> {
        let (bus, told) = (&self.bus, &self.told);
        if !bus.is_up() {
            return Err(BusError::Disconnected);
        }
        let start = Start::Sequence(self.window.high() + 1);
        Following::open(bus, EVENTS, told.me.name.as_str(), told.filter.clone(), start, told.pace).await
    }

    /// After a broken link everybody begins anew, when there is one again: its broker may have another store. What else goes wrong is
    /// told.
    async fn fail(&mut self, error: BusError) {
        let answer = match error {
            BusError::Disconnected => {
                let mut link = self.bus.link();
                while !self.bus.is_up() && link.changed().await.is_ok() {}
                Ok(None)
            }
            error => {
                tokio::time::sleep(RETRY).await;
                Err(format!("what this node is told cannot be read: {error}"))
            }
        };
        self.window = Window::default();
        for want in std::mem::take(&mut self.wants) {
            let _ = want.answer.send(answer.clone()); // who has gone asks no more
        }
    }
}

/// Where a receiver's messages come from.
struct Coming {
    me: Addressee,
    trusted: Arc<Trusted>,
    wants: mpsc::Sender<Want>,
}

impl Origin for Coming {
    type Messages = Arrived;

    async fn open(&self, _: &str, _: &str, after: u64) -> Result<Arrived, String> {
        let Self { me, trusted, wants } = self;
        let (me, trusted, wants) = (me.clone(), Arc::clone(trusted), wants.clone());
        Ok(Arrived { me, trusted, wants, after, here: VecDeque::new(), asked: None })
    }
}

/// Messages of a receiver.
struct Arrived {
    me: Addressee,
    trusted: Arc<Trusted>,
    wants: mpsc::Sender<Want>,
    after: u64,
    here: VecDeque<Message>,
    asked: Option<oneshot::Receiver<Answer>>,
}

impl Messages for Arrived {
    async fn next(&mut self) -> Result<Option<Received>, String> {
        loop {
            if let Some(message) = self.here.pop_front() {
                self.after = message.sequence;
                return Ok(Some(received(message, &self.me, &self.trusted.current())));
            }
            let gone = || "nobody reads what this node is told any more".to_owned();
            let asked = match &mut self.asked {
                Some(asked) => asked,
                None => {
                    let place = self.wants.reserve().await.map_err(|_| gone())?;
                    let (answer, asked) = oneshot::channel();
                    place.send(Want { after: self.after, answer });
                    self.asked.insert(asked)
                }
            };
            let answer = asked.await;
            self.asked = None;
            match answer.map_err(|_| gone())?? {
                Some(messages) => self.here = messages.into(),
                None => return Ok(None),
            }
        }
    }
}

/// A message, and whether what is in it is proven.
fn received(message: Message, me: &Addressee, trust: &Trust) -> Received {
    let opened = ReceivedBatch::open(&message.payload, message.header(ENCODING_HEADER), &message.subject);
    let batch = opened.and_then(|batch| {
        let signer = message.signer().map_err(|error| error.to_string())?;
        speaks_for(&message, &signer, &batch, me, trust)?;
        Ok(batch)
    });
    let Message { sequence, stored_at: stored, subject, payload, .. } = message;
    Received { sequence, stored, subject, payload, batch }
}

/// Whether `signer` may report in that name: it is this node itself, an operator who reports for the station, or the node that an
/// operator's word introduces.
fn speaks_for(
    message: &Message,
    signer: &PublicKey,
    batch: &ReceivedBatch,
    me: &Addressee,
    trust: &Trust,
) -> Result<(), String> {
    let (from, stored) = (&batch.head.from, message.stored_at);
    if (*from == me.name && *signer == me.key) || (*from == config::central() && trust.was_operator(signer, stored)) {
        return Ok(());
    }
    let introduction = message.header(INTRODUCTION_HEADER).ok_or_else(|| {
        format!(
            "{signer} has signed it, and no introduction shows who that is: the sender needs a steward of this version"
        )
    })?;
    let record = NodeRecord::introduced(introduction, trust)?;
    let speaks = record.name == *from && record.key == *signer && record.revoked.is_none_or(|at| stored < at);
    if speaks { Ok(()) } else { Err(format!("{signer} has signed it, who does not speak for {from}")) }
}

#[cfg(test)]
#[path = "receiving_tests.rs"]
mod tests;
