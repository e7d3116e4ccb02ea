//! One reading of everything, and what follows it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::kv::{FACTS, JOBS, META, PRESENCE, is_deletion, key_of};
use bus::{BusError, Message};
use fleet::{Fleet, FleetError};
use futures::FutureExt;
use message::job::chunk_key;
use message::{JobId, JobRecord, SealedOrder};
use tokio::task::unconstrained;
use tokio::time::timeout;

use super::checked::{AT_ONCE, Checked, Checking};
use super::feeds::{Feeds, Heard, Source};
use crate::believe::{self, Written};
use crate::hub::Topic;
use crate::status::{Counters, Shared};
use crate::view::{Answer, BrokerClock, EVENTS_MAX, JOBS_MAX, Told, View};

/// Between two looks at the broker's clock and boot mark; each confirms the view.
const PULSE: Duration = Duration::from_secs(4);
/// After so long without a message a source counts as read: entries may vanish after they were counted.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// How jobs stand is told so often at most: a large one changes with every answer.
const JOBS_TOLD_EVERY: Duration = Duration::from_millis(500);
/// So many nodes whose state has changed are told one by one; when there are more, that much has changed.
const TOLD_MAX: usize = 500;
/// Events are not counted beforehand: they are read until it is quiet, or for so long.
const EVENTS_QUIET: Duration = Duration::from_millis(200);
const EVENTS_READING_MAX: Duration = Duration::from_secs(2);

/// How a session ended.
pub(super) struct Followed {
    /// Why: a sentence.
    pub(super) reason: String,
    /// Whether the view had become whole.
    pub(super) whole: bool,
}

/// One reading of everything, and what follows it.
pub(super) struct Session {
    fleet: Fleet,
    shared: Arc<Shared>,
    feeds: Feeds,
    /// The view while it is not whole; then it is in sight of everyone.
    growing: Option<View>,
    /// The last sequence seen of each source.
    seen: [u64; 6],
    /// Jobs that stand otherwise than was told last.
    stirred: BTreeSet<JobId>,
    /// What was not believed since it was last told: how many, and the last reason.
    doubts: (u64, String),
}

/// The broker answered.
struct Pulse {
    clock: BrokerClock,
    at: Instant,
    knocking: Option<u64>,
}

impl Session {
    pub(super) fn new(fleet: Fleet, shared: Arc<Shared>) -> Self {
        let growing = Some(View::default());
        Self {
            fleet,
            shared,
            feeds: Feeds::default(),
            growing,
            seen: [0; 6],
            stirred: BTreeSet::new(),
            doubts: (0, String::new()),
        }
    }

    /// Reads everything, then follows, until something makes it necessary to begin anew.
    pub(super) async fn run(mut self) -> Followed {
        let link = self.fleet.bus().link();
        let begun = *link.borrow();
        let reason = tokio::select! {
            reason = lost(link, begun.ups) => reason,
            ended = self.read_and_follow() => match ended {
                Ok(reason) => reason.to_owned(),
                Err(error) => error.to_string(),
            },
        };
        Followed { reason, whole: self.growing.is_none() }
    }

    async fn read_and_follow(&mut self) -> Result<&'static str, FleetError> {
        self.tell("the list of operators is being read");
        refresh_trust(&self.fleet).await?;
        let first = pulse(&self.fleet).await?;
        for source in Source::ALL {
            self.tell(&format!("the {} are being read", source.noun()));
            self.read(source).await?;
        }
        let serial = self.fleet.trust().serial;
        let booted = first.clock.booted;
        self.install(first);
        let mut next_pulse = Box::pin(later(self.fleet.clone()));
        let mut tell_jobs = tokio::time::interval(JOBS_TOLD_EVERY);
        tell_jobs.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tell_jobs.tick(), if !self.stirred.is_empty() => self.tell_jobs(),
                heard = self.feeds.next() => {
                    self.take(heard?.into()).await?;
                }
                pulse = &mut next_pulse => {
                    let pulse = pulse?;
                    if pulse.clock.booted != booted {
                        return Ok("the broker began with an empty memory");
                    }
                    if self.fleet.trust().serial != serial {
                        return Ok("the list of operators changed");
                    }
                    self.confirm(&pulse);
                    self.tell_doubts();
                    next_pulse = Box::pin(later(self.fleet.clone()));
                }
            }
        }
    }

    async fn read(&mut self, source: Source) -> Result<(), FleetError> {
        let most = if source == Source::Jobs { JOBS_MAX } else { EVENTS_MAX };
        let mut left = self.feeds.open(&self.fleet, source, most).await?;
        if source == Source::Events {
            let deadline = Instant::now() + EVENTS_READING_MAX;
            while Instant::now() < deadline
                && let Ok(heard) = timeout(EVENTS_QUIET, self.feeds.next()).await
            {
                self.take(heard?.into()).await?;
            }
            return Ok(());
        }
        // While one part is being checked, the next is read, and the one before is folded in.
        let mut checking: Option<Checking> = None;
        while left > 0
            && let Ok(heard) = timeout(SILENCE_MAX, self.feeds.next()).await
        {
            let mut part = vec![heard?];
            // Not within a task's budget: it would make small parts of what is here, and many are verified faster together.
            while part.len() < AT_ONCE
                && let Some(heard) = unconstrained(self.feeds.next()).now_or_never()
            {
                part.push(heard?);
            }
            let own = part.iter().filter(|heard| matches!(heard, Heard::Message(from, _) if *from == source)).count();
            left = left.saturating_sub(u64::try_from(own).unwrap_or(u64::MAX));
            if let Some(before) = checking.replace(Checking::begin(part)) {
                self.take_all(before).await?;
            }
        }
        match checking {
            Some(last) => self.take_all(last).await,
            None => Ok(()),
        }
    }

    async fn take_all(&mut self, checking: Checking) -> Result<(), FleetError> {
        // Nothing there panics; if it did, everything is read anew.
        let checked = checking
            .end()
            .await
            .map_err(|error| BusError::Other { what: "verifying signatures".into(), reason: error.to_string() })?;
        for checked in checked {
            self.take(checked).await?;
        }
        Ok(())
    }

    fn confirm(&self, pulse: &Pulse) {
        let mut status = self.shared.write();
        status.confirm(pulse.clock, pulse.at);
        status.knocking = pulse.knocking;
        let mut changed = Some(Vec::new());
        if let Some(view) = &mut status.view {
            view.conclude(pulse.clock);
            changed = view.changes(pulse.clock, pulse.clock.now, TOLD_MAX);
        }
        drop(status);
        let hub = &self.shared.hub;
        match changed {
            Some(nodes) => nodes.iter().for_each(|node| hub.tell(Topic::Node, node.to_json().to_string())),
            None => hub.reset("the state of many nodes has changed"),
        }
        self.shared.tell_standing();
    }

    /// Tells those who follow how a node stands, if it stands otherwise than before.
    fn tell_node(&self, key: &str) {
        if self.growing.is_some() {
            return;
        }
        let mut status = self.shared.write();
        let clocks = status.clocks(Instant::now());
        if let Some((now, clock)) = clocks
            && let Some(node) = status.view.as_mut().and_then(|view| view.change(key, clock, now))
        {
            drop(status);
            self.shared.hub.tell(Topic::Node, node.to_json().to_string());
        }
    }

    fn tell_jobs(&mut self) {
        let stirred = std::mem::take(&mut self.stirred);
        let status = self.shared.read();
        let jobs: Vec<_> =
            status.view.iter().flat_map(|view| stirred.iter().filter_map(|job| view.jobs.summary(job))).collect();
        drop(status);
        for job in jobs {
            // It consists of texts and numbers, which can always be written.
            self.shared.hub.tell(Topic::Job, serde_json::to_string(&job).unwrap_or_default());
        }
    }

    /// Puts the whole view in sight.
    fn install(&mut self, pulse: Pulse) {
        let mut status = self.shared.write();
        if let Some(mut view) = self.growing.take() {
            view.conclude(pulse.clock);
            view.changes(pulse.clock, pulse.clock.now, 0);
            tracing::info!(nodes = view.node_count(), jobs = view.jobs.len(), "the fleet is in sight");
            status.view = Some(view);
        }
        status.confirm(pulse.clock, pulse.at);
        status.knocking = pulse.knocking;
        status.following = true;
        status.counters.readings += 1;
        status.counted = self.seen;
        drop(status);
        self.stirred.clear();
        self.shared.hub.reset("everything was read anew");
        self.shared.tell_standing();
    }

    /// Changes the view, be it growing or in sight.
    fn fold<T>(&mut self, change: impl FnOnce(&mut View) -> T) -> Option<T> {
        match &mut self.growing {
            Some(view) => Some(change(view)),
            None => self.shared.write().view.as_mut().map(change),
        }
    }

    async fn take(&mut self, checked: Checked) -> Result<(), FleetError> {
        match checked.heard {
            Heard::Message(source, message) => {
                let news = self.is_news(source, message.sequence);
                let Some(signer) = checked.signer else {
                    return match source {
                        Source::Nodes => self.take_end(key_of(&message.subject)),
                        Source::Presence | Source::Facts | Source::Jobs => Ok(()),
                        Source::Replies | Source::Events => self.take_reply(&message, news),
                    };
                };
                let written = Written::of(&message, signer);
                match source {
                    Source::Nodes => self.take_node(&written, news).await,
                    Source::Presence => self.take_life_sign(&written, news),
                    Source::Facts => self.take_facts(&written, news),
                    Source::Jobs => self.take_job(&written, news).await,
                    Source::Replies | Source::Events => Ok(()),
                }
            }
            Heard::Events(newest) => {
                let unread = newest.count.saturating_sub(u64::try_from(newest.lines.len()).unwrap_or(u64::MAX));
                self.count(unread > 0 && self.growing.is_none(), |counters| counters.events += unread);
                for line in newest.lines {
                    let known = self.growing.is_some()
                        && self.shared.read().view.as_ref().is_none_or(|old| old.events.knows(&line.id));
                    let told = self.growing.is_none().then(|| serde_json::to_string(&line).unwrap_or_default());
                    let new = self.fold(|view| view.events.push(line)).unwrap_or(false);
                    if let Some(told) = told.filter(|_| new) {
                        self.shared.hub.tell(Topic::Event, told);
                    }
                    self.count(new && !known, |counters| counters.events += 1);
                }
                Ok(())
            }
        }
    }

    /// A node was taken off the list.
    fn take_end(&mut self, key: &str) -> Result<(), FleetError> {
        if self.fold(|view| view.remove(key)) == Some(true) && self.growing.is_none() {
            self.shared.hub.tell(Topic::Node, serde_json::json!({"name": key, "state": "gone"}).to_string());
        }
        Ok(())
    }

    async fn take_node(&mut self, written: &Written<'_>, news: bool) -> Result<(), FleetError> {
        let key = written.key;
        let trust = self.fleet.trust();
        match self.fold(|view| view.register(written, &trust)) {
            // Its life sign may have come before it, and was passed over then.
            Some(Ok(true)) if self.growing.is_none() => {
                let bus = self.fleet.bus().clone();
                if let Some(sign) = bus.kv_get(PRESENCE, key).await?.filter(|sign| !is_deletion(sign)) {
                    self.take_life_sign(&Written::of(&sign, sign.signer()), false)?;
                }
                if let Some(facts) = bus.kv_get(FACTS, key).await?.filter(|facts| !is_deletion(facts)) {
                    self.take_facts(&Written::of(&facts, facts.signer()), false)?;
                }
                self.tell_node(key);
                Ok(())
            }
            Some(Err(reason)) => {
                self.count(news, |counters| counters.rejected_nodes += 1);
                self.doubt(format!("the registration of {key:?}: {reason}"));
                Ok(())
            }
            _ => {
                self.tell_node(key);
                Ok(())
            }
        }
    }

    fn take_facts(&mut self, written: &Written<'_>, news: bool) -> Result<(), FleetError> {
        if let Some(Err(reason)) = self.fold(|view| view.learn(written)) {
            self.count(news, |counters| counters.rejected_facts += 1);
            self.doubt(format!("the facts of {:?}: {reason}", written.key));
        }
        Ok(())
    }

    fn take_life_sign(&mut self, written: &Written<'_>, news: bool) -> Result<(), FleetError> {
        if let Some(Err(reason)) = self.fold(|view| view.hear(written)) {
            self.count(news, |counters| counters.rejected_life_signs += 1);
            self.doubt(format!("a life sign of {:?}: {reason}", written.key));
        }
        self.tell_node(written.key);
        Ok(())
    }

    async fn take_job(&mut self, written: &Written<'_>, news: bool) -> Result<(), FleetError> {
        let key = written.key;
        let job = JobId::parse(key);
        let wanted = |view: &mut View| job.as_ref().is_ok_and(|job| view.jobs.wants(job));
        if self.fold(wanted) != Some(true) {
            return Ok(());
        }
        let read = match believe::job_record(written, &self.fleet.trust()) {
            Ok(record) => orders(&self.fleet, &record).await?.map(|orders| (record, orders)),
            Err(reason) => Err(reason),
        };
        match read {
            Ok((record, orders)) => {
                self.count(news, |counters| counters.jobs += 1);
                self.stirred.insert(record.job.clone());
                for reason in self.fold(|view| view.jobs.add(&record, orders)).unwrap_or_default() {
                    self.count(news, |counters| counters.rejected_replies += 1);
                    self.doubt(reason);
                }
            }
            Err(reason) => {
                self.count(news, |counters| counters.rejected_jobs += 1);
                self.doubt(format!("job {key}: {reason}"));
            }
        }
        Ok(())
    }

    fn take_reply(&mut self, message: &Message, news: bool) -> Result<(), FleetError> {
        self.count(news, |counters| counters.replies += 1);
        let Ok(subject) = message.subject.parse() else { return Ok(()) };
        let answer =
            Answer { subject, seal: message.seal(), payload: message.payload.clone(), stored: message.stored_at };
        let job = answer.subject.job.clone();
        match self.fold(|view| view.answer(answer)) {
            Some(Told::Rejected(reason)) => {
                self.count(news, |counters| counters.rejected_replies += 1);
                self.doubt(reason);
            }
            Some(Told::Newer) => drop(self.stirred.insert(job)),
            _ => {}
        }
        Ok(())
    }

    /// Whether a message was not seen before, in this session or an earlier one.
    fn is_news(&mut self, source: Source, sequence: u64) -> bool {
        let last = &mut self.seen[source as usize];
        let newer = sequence > *last;
        *last = sequence.max(*last);
        if self.growing.is_some() {
            return newer && sequence > self.shared.read().counted[source as usize];
        }
        self.shared.write().counted[source as usize] = *last;
        newer
    }

    /// What is stored before the first reading is through is no news.
    fn count(&self, news: bool, add: impl FnOnce(&mut Counters)) {
        if news {
            let mut status = self.shared.write();
            if status.counters.readings > 0 {
                add(&mut status.counters);
            }
        }
    }

    fn doubt(&mut self, reason: String) {
        tracing::debug!(reason, "not believed");
        self.doubts = (self.doubts.0 + 1, reason);
    }

    /// Whoever forges can do so by the thousand: the log gets one line for each pulse.
    fn tell_doubts(&mut self) {
        let (count, last) = std::mem::take(&mut self.doubts);
        if count > 0 {
            tracing::warn!(count, last, "something that was written is not believed");
        }
    }

    fn tell(&self, doing: &str) {
        doing.clone_into(&mut self.shared.write().doing);
    }
}

/// Asks for the broker's clock and who knocks, and puts its boot mark back if that is gone.
async fn pulse(fleet: &Fleet) -> Result<Pulse, BusError> {
    let booted = fleet.bus().booted().await?;
    // No such key: only the time of reading matters.
    let (_, now) = fleet.bus().kv_all(META, "time").await?;
    // A store that was set up by an earlier version has no door; and what is not known there is no reason to see nothing else.
    let knocking = fleet.bus().knocks_waiting().await.ok();
    Ok(Pulse { clock: BrokerClock { now, booted }, at: Instant::now(), knocking })
}

async fn later(fleet: Fleet) -> Result<Pulse, FleetError> {
    tokio::time::sleep(PULSE).await;
    refresh_trust(&fleet).await?;
    Ok(pulse(&fleet).await?)
}

/// A list of operators that the root did not sign is no reason to stop: the one that is known goes on to count.
async fn refresh_trust(fleet: &Fleet) -> Result<(), FleetError> {
    if let Err(error) = fleet.renew_token().await {
        tracing::debug!(%error, "a new token could not be taken");
    }
    match fleet.refresh_trust().await {
        Err(FleetError::Trust { reason }) => {
            tracing::warn!(reason, "the broker's list of operators is not taken");
            Ok(())
        }
        other => other,
    }
}

/// Resolves when the link goes down, or was down for a moment.
async fn lost(mut link: tokio::sync::watch::Receiver<bus::connect::Link>, ups: u64) -> String {
    match link.wait_for(|link| !link.up || link.ups != ups).await {
        Ok(_) => "the link to the broker broke".into(),
        Err(_) => "the link to the broker was closed".into(),
    }
}

/// The frozen list of a job: from the record, or from the parts stored beside it.
async fn orders(fleet: &Fleet, record: &JobRecord) -> Result<Result<Vec<SealedOrder>, String>, FleetError> {
    let mut orders = Vec::new();
    for index in 0..record.chunks.len() {
        let part = match &record.inline {
            Some(inline) if record.chunks.len() == 1 => believe::chunk(record, index, inline.as_bytes()),
            _ => match fleet.bus().kv_get(JOBS, &chunk_key(&record.job, &record.chunks[index])).await? {
                Some(stored) => believe::chunk(record, index, &stored.payload),
                None => Err(format!("part {index} of its orders is gone")),
            },
        };
        match part {
            Ok(part) => orders.extend(part),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    if u32::try_from(orders.len()).ok() != Some(record.targets) {
        return Ok(Err(format!("it is for {} nodes, but {} orders are stored", record.targets, orders.len())));
    }
    Ok(Ok(orders))
}
