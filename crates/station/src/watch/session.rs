//! One reading of everything, and what follows it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::kv::{JOBS, META, PRESENCE, is_deletion, key_of};
use bus::{BusError, Message};
use fleet::{Fleet, FleetError};
use message::job::chunk_key;
use message::{JobId, JobRecord, SealedOrder};
use tokio::time::timeout;

use super::feeds::{Feeds, Heard, Source};
use crate::believe::{self, Written};
use crate::status::{Counters, Shared};
use crate::view::{Answer, BrokerClock, EVENTS_MAX, JOBS_MAX, Told, View};

/// Between two looks at the broker's clock and boot mark; each confirms the view.
const PULSE: Duration = Duration::from_secs(4);
/// After so long without a message a source counts as read: entries may vanish after they were counted.
const SILENCE_MAX: Duration = Duration::from_secs(1);
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
    seen: [u64; 5],
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
        Self { fleet, shared, feeds: Feeds::default(), growing, seen: [0; 5], doubts: (0, String::new()) }
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
        loop {
            tokio::select! {
                heard = self.feeds.next() => {
                    let heard = heard?;
                    self.take(heard).await?;
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
                self.take(heard?).await?;
            }
            return Ok(());
        }
        while left > 0
            && let Ok(heard) = timeout(SILENCE_MAX, self.feeds.next()).await
        {
            let heard = heard?;
            if matches!(&heard, Heard::Message(from, _) if *from == source) {
                left -= 1;
            }
            self.take(heard).await?;
        }
        Ok(())
    }

    fn confirm(&self, pulse: &Pulse) {
        let mut status = self.shared.write();
        status.confirm(pulse.clock, pulse.at);
        status.knocking = pulse.knocking;
    }

    /// Puts the whole view in sight.
    fn install(&mut self, pulse: Pulse) {
        let mut status = self.shared.write();
        if let Some(view) = self.growing.take() {
            tracing::info!(nodes = view.node_count(), jobs = view.jobs.len(), "the fleet is in sight");
            status.view = Some(view);
        }
        status.confirm(pulse.clock, pulse.at);
        status.knocking = pulse.knocking;
        status.following = true;
        status.counters.readings += 1;
        status.counted = self.seen;
    }

    /// Changes the view, be it growing or in sight.
    fn fold<T>(&mut self, change: impl FnOnce(&mut View) -> T) -> Option<T> {
        match &mut self.growing {
            Some(view) => Some(change(view)),
            None => self.shared.write().view.as_mut().map(change),
        }
    }

    async fn take(&mut self, heard: Heard) -> Result<(), FleetError> {
        match heard {
            Heard::Message(source, message) => {
                let news = self.is_news(source, message.sequence);
                match source {
                    Source::Nodes => self.take_node(&message, news).await,
                    Source::Presence => self.take_life_sign(&message, news),
                    Source::Jobs => self.take_job(&message, news).await,
                    Source::Replies | Source::Events => self.take_reply(&message, news),
                }
            }
            Heard::Event(line) => {
                let known = self.growing.is_some()
                    && self.shared.read().view.as_ref().is_none_or(|old| old.events.knows(&line.id));
                let new = self.fold(|view| view.events.push(line)).unwrap_or(false);
                self.count(new && !known, |counters| counters.events += 1);
                Ok(())
            }
        }
    }

    async fn take_node(&mut self, message: &Message, news: bool) -> Result<(), FleetError> {
        let key = key_of(&message.subject);
        if is_deletion(message) {
            self.fold(|view| view.remove(key));
            return Ok(());
        }
        let trust = self.fleet.trust();
        match self.fold(|view| view.register(&Written::from(message), &trust)) {
            // Its life sign may have come before it, and was passed over then.
            Some(Ok(true)) if self.growing.is_none() => {
                if let Some(sign) = self.fleet.bus().kv_get(PRESENCE, key).await? {
                    self.take_life_sign(&sign, false)?;
                }
                Ok(())
            }
            Some(Err(reason)) => {
                self.count(news, |counters| counters.rejected_nodes += 1);
                self.doubt(format!("the registration of {key:?}: {reason}"));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn take_life_sign(&mut self, message: &Message, news: bool) -> Result<(), FleetError> {
        if !is_deletion(message)
            && let Some(Err(reason)) = self.fold(|view| view.hear(&Written::from(message), message.stored_at))
        {
            self.count(news, |counters| counters.rejected_life_signs += 1);
            self.doubt(format!("a life sign of {:?}: {reason}", key_of(&message.subject)));
        }
        Ok(())
    }

    async fn take_job(&mut self, message: &Message, news: bool) -> Result<(), FleetError> {
        let key = key_of(&message.subject);
        let job = JobId::parse(key);
        let wanted = |view: &mut View| job.as_ref().is_ok_and(|job| view.jobs.wants(job));
        if is_deletion(message) || self.fold(wanted) != Some(true) {
            return Ok(());
        }
        let read = match believe::job_record(&Written::from(message), &self.fleet.trust()) {
            Ok(record) => orders(&self.fleet, &record).await?.map(|orders| (record, orders)),
            Err(reason) => Err(reason),
        };
        match read {
            Ok((record, orders)) => {
                self.count(news, |counters| counters.jobs += 1);
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
        if let Some(Told::Rejected(reason)) = self.fold(|view| view.answer(answer)) {
            self.count(news, |counters| counters.rejected_replies += 1);
            self.doubt(reason);
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
