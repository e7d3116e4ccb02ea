//! Alerts: somebody is told what is wrong with the fleet, once, and once more when it is over.
//!
//! In flow the view as it stands each second, while it can be relied on, and the records of events; out flow notices to webhooks
//! and programs. `decide` says who is to be told of what; here that is done: what is decided is on disk (`memory`) before anybody
//! is told, so that after a crash nothing is told that was not remembered. A notice that was on its way may arrive twice, with the
//! same id. It must never order anything, and a place that does not answer must never hold up another.

mod config;
mod decide;
mod deliver;
mod memory;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleet::{EventFilter, Fleet, Since};
use message::{Received, Timestamp};
use receive::RETRY;
use receive::hand_over::Refusal;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use config::{KEYS, Rule, rules};
pub(crate) use decide::JobStanding;
use decide::{Alerts, Memory, Notice, Place, Reported, Standing};
use deliver::deliver;

use crate::freshness::Freshness;
use crate::status::Shared;

/// How often the fleet is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// When no event has come for so long while the stream was read, all were heard.
const IDLE: Duration = Duration::from_secs(5);
/// How often it is written down how far the events were read, when none of them mattered.
const PLACE_INTERVAL: Duration = Duration::from_secs(30);
/// So many notices of a rule go out together.
const TOGETHER_MAX: usize = 100;

/// How alerts stand, for the metrics.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Notices that have arrived.
    pub(crate) delivered: AtomicU64,
    /// Attempts that failed.
    pub(crate) failures: AtomicU64,
    /// Notices that were given up.
    pub(crate) lost: AtomicU64,
    /// Notices that wait to be delivered.
    pub(crate) waiting: AtomicU64,
    /// What is wrong just now, by rule.
    pub(crate) active: Mutex<Vec<(String, u64)>>,
}

/// What the reader of events tells.
enum Heard {
    /// It reads, from this store of the broker.
    Begun(Option<String>),
    /// It does not any more.
    Ended,
    Message(Box<Received>),
}

/// Watches over the fleet by these rules until cancelled.
pub(crate) async fn keep(
    fleet: Fleet,
    shared: Arc<Shared>,
    rules: Vec<Rule>,
    path: PathBuf,
    cancel: CancellationToken,
) {
    if rules.is_empty() {
        return cancel.cancelled().await;
    }
    let mut wait = RETRY.0;
    let memory = loop {
        match memory::load(&path) {
            Ok(memory) => break memory,
            Err(reason) => tracing::error!(reason, "alerts cannot begin: what they remember cannot be read"),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY.1),
        }
    };
    let mut watch = match Watch::new(fleet, shared, rules, memory, path) {
        Ok(watch) => watch,
        Err(reason) => {
            tracing::error!(reason, "alerts cannot begin");
            return cancel.cancelled().await;
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = watch.run() => {}
    }
    watch.parts.shutdown().await;
    watch.save().await;
}

/// How it goes with the deliveries of a rule.
struct Turn {
    rule: Arc<Rule>,
    is_under_way: bool,
    /// It failed last; after this time it is tried again.
    failing: Option<Instant>,
    wait: Duration,
    /// So many notices go out together; one by one, after several were refused for good.
    together: usize,
}

/// What a part of it has done.
enum Done {
    Delivered {
        rule: usize,
        ids: HashSet<String>,
        result: Result<(), Refusal>,
    },
    /// The reader of events has ended, which it never does.
    Reader,
}

struct Watch {
    fleet: Fleet,
    shared: Arc<Shared>,
    alerts: Alerts,
    path: PathBuf,
    turns: Vec<Turn>,
    parts: JoinSet<Done>,
    client: reqwest::Client,
    /// The broker's time of the last look.
    now: Timestamp,
    /// Since when the view can be relied on.
    live_since: Option<Instant>,
    /// Since when the stream of events is read and nothing has come.
    idle_since: Option<Instant>,
    saved_place: (Place, Instant),
}

impl Watch {
    fn new(fleet: Fleet, shared: Arc<Shared>, rules: Vec<Rule>, memory: Memory, path: PathBuf) -> Result<Self, String> {
        let turn = |rule: &Rule| Turn {
            rule: Arc::new(rule.clone()),
            is_under_way: false,
            failing: None,
            wait: RETRY.0,
            together: TOGETHER_MAX,
        };
        let turns = rules.iter().map(turn).collect();
        let saved_place = (memory.place.clone(), Instant::now());
        Ok(Self {
            fleet,
            shared,
            alerts: Alerts::new(rules, memory),
            path,
            turns,
            parts: JoinSet::new(),
            client: receive::hand_over::client()?,
            now: Timestamp::default(),
            live_since: None,
            idle_since: None,
            saved_place,
        })
    }

    async fn run(&mut self) {
        let (sender, mut heard) = mpsc::channel(64);
        let mut sender = Some(sender);
        self.count();
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut is_due = false;
            tokio::select! {
                _ = ticks.tick() => {
                    is_due = true;
                    self.look();
                    // Events are read once it is known since when they matter.
                    if let Some(since) = self.alerts.known_since()
                        && let Some(sender) = sender.take()
                    {
                        let (fleet, place) = (self.fleet.clone(), self.alerts.memory.place.clone());
                        self.parts.spawn(async move {
                            read_events(&fleet, place, since, &sender).await;
                            Done::Reader
                        });
                    }
                }
                Some(heard) = heard.recv() => self.hear(heard),
                Some(done) = self.parts.join_next() => self.done(done),
            }
            // Of many records that wait one after the other each is not worth a write.
            if is_due || heard.is_empty() {
                self.save().await;
                self.deliver();
            }
        }
    }

    /// Looks at the fleet, if what is known of it can be relied on.
    fn look(&mut self) {
        let shared = Arc::clone(&self.shared);
        let (status, at) = (shared.read(), std::time::Instant::now());
        let (Freshness::Live, Some(view), Some((_, clock))) = (status.freshness(at), &status.view, status.clocks(at))
        else {
            self.live_since = None;
            return;
        };
        let live = *self.live_since.get_or_insert_with(Instant::now);
        self.now = clock.now;
        let all_heard = self.idle_since.is_some_and(|idle| idle.max(live).elapsed() >= IDLE);
        let wants_jobs = self.alerts.rules().iter().any(|rule| matches!(rule.when, config::When::JobFailed { .. }));
        let jobs = if wants_jobs { view.jobs.standings() } else { Vec::new() };
        let heard: Vec<_> = view.standings(clock).collect();
        let nodes = heard.iter().map(|(record, vitality, seen)| Standing {
            name: &record.name,
            labels: &record.labels,
            state: vitality.state,
            reason: vitality.reason.as_deref(),
            heard: seen.unwrap_or(record.enrolled),
        });
        self.alerts.look(clock.now, nodes, &jobs, &|name| view.labels(name), all_heard);
        drop(status);
        self.count();
    }

    fn count(&mut self) {
        let counts = &self.shared.alerts;
        counts.waiting.store(self.alerts.memory.waiting.len() as u64, Ordering::Relaxed);
        let lost = std::mem::take(&mut self.alerts.lost);
        if lost > 0 {
            tracing::error!(lost, "notices of alerts are lost: too many wait to be delivered");
            counts.lost.fetch_add(lost, Ordering::Relaxed);
        }
        *counts.active.lock().unwrap_or_else(PoisonError::into_inner) = self.alerts.active();
    }

    fn hear(&mut self, heard: Heard) {
        let received = match heard {
            Heard::Begun(epoch) => {
                if self.alerts.memory.place.epoch != epoch {
                    let stored = self.alerts.memory.place.stored;
                    self.alerts.memory.place = Place { epoch, sequence: 0, stored };
                    self.alerts.changed = true;
                }
                self.idle_since = Some(Instant::now());
                return;
            }
            Heard::Ended => {
                self.idle_since = None;
                return;
            }
            Heard::Message(received) => received,
        };
        self.idle_since = Some(Instant::now());
        if received.sequence <= self.alerts.memory.place.sequence {
            return;
        }
        if let Ok(batch) = &received.batch {
            let (method, domain) = (batch.head.method.as_str(), batch.head.domain.as_str());
            if self.alerts.rules().iter().any(|rule| rule.when.takes(method, domain)) {
                let shared = Arc::clone(&self.shared);
                let (status, none) = (shared.read(), BTreeMap::new());
                let labels = status.view.as_ref().and_then(|view| view.labels(&batch.head.from)).unwrap_or(&none);
                for line in batch.lines() {
                    let Ok(Line { record }) = serde_json::from_slice(line) else { continue };
                    let (stored, from) = (received.stored, &batch.head.from);
                    self.alerts.hear(&Reported { stored, from, labels, method, domain, record: &record });
                }
            }
        }
        let place = &mut self.alerts.memory.place;
        (place.sequence, place.stored) = (received.sequence, received.stored);
    }

    /// Writes down what has changed. What cannot be written is not told either, and tried again at the next look.
    async fn save(&mut self) {
        let moved = self.saved_place.0 != self.alerts.memory.place && self.saved_place.1.elapsed() >= PLACE_INTERVAL;
        if !(self.alerts.changed || moved) {
            return;
        }
        let (path, memory) = (self.path.clone(), self.alerts.memory.clone());
        let saved = tokio::task::spawn_blocking(move || memory::save(&path, &memory)).await;
        match saved.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(()) => {
                self.alerts.changed = false;
                self.saved_place = (self.alerts.memory.place.clone(), Instant::now());
            }
            Err(reason) => {
                tracing::error!(reason, "alerts are held back");
                self.shared.alerts.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sends what is written down on its way.
    fn deliver(&mut self) {
        if self.alerts.changed || self.alerts.memory.waiting.is_empty() {
            return;
        }
        for (index, turn) in self.turns.iter_mut().enumerate() {
            if turn.is_under_way || turn.failing.is_some_and(|again| Instant::now() < again) {
                continue;
            }
            let mine = self.alerts.memory.waiting.iter().filter(|notice| notice.alert == turn.rule.name);
            let notices: Vec<Notice> = mine.take(turn.together).cloned().collect();
            if notices.is_empty() {
                continue;
            }
            turn.is_under_way = true;
            let (rule, client) = (Arc::clone(&turn.rule), self.client.clone());
            self.parts.spawn(async move {
                let result = deliver(&rule, &notices, &client).await;
                Done::Delivered { rule: index, ids: notices.into_iter().map(|notice| notice.id).collect(), result }
            });
        }
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let (rule, ids, result) = match done {
            Ok(Done::Delivered { rule, ids, result }) => (rule, ids, result),
            Ok(Done::Reader) => return,
            Err(error) => {
                // Whose it was is not known: all may try again.
                tracing::error!(%error, "a delivery of alerts broke down");
                self.turns.iter_mut().for_each(|turn| turn.is_under_way = false);
                return;
            }
        };
        let counts = &self.shared.alerts;
        let Some(turn) = self.turns.get_mut(rule) else { return };
        turn.is_under_way = false;
        let name = turn.rule.name.as_str();
        let mut over = HashSet::new();
        match result {
            Ok(()) => {
                if turn.failing.take().is_some() {
                    tracing::info!(alert = name, "notices are delivered again");
                }
                turn.wait = RETRY.0;
                turn.together = (turn.together * 2).min(TOGETHER_MAX);
                counts.delivered.fetch_add(ids.len() as u64, Ordering::Relaxed);
                over = ids;
            }
            Err(Refusal::Never(_)) if ids.len() > 1 => {
                // It may be one of them that is not taken: the others shall not go with it.
                counts.failures.fetch_add(1, Ordering::Relaxed);
                turn.together = 1;
            }
            Err(Refusal::Never(reason)) => {
                tracing::error!(alert = name, reason, notices = ids.len(), "notices are given up: they are refused");
                counts.failures.fetch_add(1, Ordering::Relaxed);
                counts.lost.fetch_add(ids.len() as u64, Ordering::Relaxed);
                over = ids;
            }
            Err(Refusal::Later(reason)) => {
                counts.failures.fetch_add(1, Ordering::Relaxed);
                if turn.failing.is_none() {
                    tracing::warn!(alert = name, reason, "notices cannot be delivered; trying again");
                }
                let jitter = bus::clock::jitter(u64::try_from(turn.wait.as_millis()).unwrap_or(0) / 2 + 1);
                turn.failing = Some(Instant::now() + turn.wait / 2 + Duration::from_millis(jitter));
                turn.wait = (turn.wait * 2).min(RETRY.1);
                let (now, most) = (self.now, turn.rule.give_up);
                let old = |notice: &&Notice| ids.contains(&notice.id) && now.since(notice.at) >= most;
                over.extend(self.alerts.memory.waiting.iter().filter(old).map(|notice| notice.id.clone()));
                if !over.is_empty() {
                    tracing::error!(alert = name, notices = over.len(), "notices are given up: they are too old");
                    counts.lost.fetch_add(over.len() as u64, Ordering::Relaxed);
                }
            }
        }
        if !over.is_empty() {
            self.alerts.memory.waiting.retain(|notice| !over.contains(&notice.id));
            self.alerts.changed = true;
        }
        counts.waiting.store(self.alerts.memory.waiting.len() as u64, Ordering::Relaxed);
    }
}

/// A record as it stands in a batch.
#[derive(Deserialize)]
struct Line {
    record: Value,
}

/// Reads events for as long as somebody listens; whatever goes wrong is tried again.
async fn read_events(fleet: &Fleet, mut place: Place, known_since: Timestamp, to: &mpsc::Sender<Heard>) {
    let mut wait = RETRY.0;
    loop {
        let result = read_on(fleet, &mut place, known_since, to).await;
        match result {
            Ok(()) => return,
            Err(reason) => tracing::warn!(reason, "alerts cannot read events; trying again"),
        }
        if to.send(Heard::Ended).await.is_err() {
            return;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

async fn read_on(
    fleet: &Fleet,
    place: &mut Place,
    known_since: Timestamp,
    to: &mpsc::Sender<Heard>,
) -> Result<(), String> {
    let said = |error: fleet::FleetError| error.to_string();
    let epoch = fleet.epoch().await.map_err(said)?;
    if place.epoch != epoch {
        *place = Place { epoch: epoch.clone(), sequence: 0, stored: place.stored };
    }
    let mut filter = EventFilter::told_to(&fleet.context().node);
    let mut events = if place.sequence == 0 {
        filter.since = Some(Since::At(known_since.max(place.stored)));
        fleet.events(&filter, true).await.map_err(said)?
    } else {
        fleet.receive(&filter, place.sequence).await.map_err(said)?
    };
    if to.send(Heard::Begun(epoch)).await.is_err() {
        return Ok(());
    }
    while let Some(received) = events.next_message().await.map_err(said)? {
        (place.sequence, place.stored) = (received.sequence, received.stored);
        if to.send(Heard::Message(Box::new(received))).await.is_err() {
            return Ok(());
        }
    }
    Err("the stream of events has ended".into())
}

/// Where alerts keep what they remember.
pub(crate) fn memory_in(dir: &Path) -> PathBuf {
    dir.join("alerts.json")
}
