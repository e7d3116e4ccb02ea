//! The streams that the view is made of, each opened when it is its turn, and heard all together.

use bus::kv::{FACTS, JOBS, NODES, PRESENCE};
use bus::{Bus, BusError, Message, Scan, Start, Tail};
use fleet::{EventFilter, Events, Fleet, FleetError, Newest, Since};
use message::Timestamp;

use crate::view::EVENTS_MAX;

/// The streams of answers and events.
const REPLIES: &str = "REPLIES";
const EVENTS: &str = "EVENTS";

/// How far back is looked for the newest entries, step by step; then everything is read.
const WINDOWS_S: [i64; 7] = [10, 60, 600, 3_600, 6 * 3_600, 24 * 3_600, 7 * 24 * 3_600];

/// One of the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Nodes,
    Presence,
    Facts,
    Jobs,
    Replies,
    Events,
}

impl Source {
    /// In the order of reading: what comes later is judged by what came before.
    pub(super) const ALL: [Self; 6] =
        [Self::Nodes, Self::Presence, Self::Facts, Self::Jobs, Self::Replies, Self::Events];

    pub(super) const fn noun(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Presence => "life signs",
            Self::Facts => "facts",
            Self::Jobs => "jobs",
            Self::Replies => "replies",
            Self::Events => "events",
        }
    }
}

/// Something that came.
pub(super) enum Heard {
    Message(Source, Message),
    Events(Newest),
}

/// The sources that are open.
#[derive(Default)]
pub(super) struct Feeds {
    nodes: Option<Tail>,
    presence: Option<Tail>,
    facts: Option<Tail>,
    jobs: Option<Tail>,
    replies: Option<Tail>,
    events: Option<Events>,
    /// From when on jobs, and with them replies, are read.
    jobs_from: Option<Start>,
}

impl Feeds {
    /// Opens a source; tells how many stored messages come first.
    pub(super) async fn open(&mut self, fleet: &Fleet, source: Source, most: usize) -> Result<u64, FleetError> {
        let bus = fleet.bus();
        let slot = match source {
            Source::Nodes => &mut self.nodes,
            Source::Presence => &mut self.presence,
            Source::Facts => &mut self.facts,
            Source::Jobs => &mut self.jobs,
            Source::Replies => &mut self.replies,
            Source::Events => {
                let start = latest(bus, EVENTS, "*.event.*.*", most).await?;
                let since = match start {
                    Start::Time(time) => time,
                    _ => Timestamp::from_ms(0),
                };
                let filter = EventFilter { since: Some(Since::At(since)), ..EventFilter::default() };
                self.events = Some(fleet.events(&filter, true).await?);
                return Ok(0);
            }
        };
        let (stream, filter, start) = match source {
            Source::Nodes => (bucket(NODES), format!("$KV.{NODES}.*"), Start::LastPerSubject),
            Source::Presence => (bucket(PRESENCE), format!("$KV.{PRESENCE}.*"), Start::LastPerSubject),
            Source::Facts => (bucket(FACTS), format!("$KV.{FACTS}.*"), Start::LastPerSubject),
            Source::Replies => (REPLIES.to_owned(), "*.reply.*.*".to_owned(), self.jobs_from.unwrap_or(Start::New)),
            Source::Jobs | Source::Events => {
                let filter = format!("$KV.{JOBS}.*");
                let start = latest(bus, &bucket(JOBS), &filter, most).await?;
                self.jobs_from = Some(start);
                (bucket(JOBS), filter, start)
            }
        };
        let tail = Tail::open(bus, &stream, &[filter], start).await?;
        Ok(slot.insert(tail).backlog())
    }

    /// The next thing that comes from any open source. May be cancelled at any time.
    pub(super) async fn next(&mut self) -> Result<Heard, FleetError> {
        tokio::select! {
            message = tail(self.nodes.as_mut()) => Ok(Heard::Message(Source::Nodes, message?)),
            message = tail(self.presence.as_mut()) => Ok(Heard::Message(Source::Presence, message?)),
            message = tail(self.facts.as_mut()) => Ok(Heard::Message(Source::Facts, message?)),
            message = tail(self.jobs.as_mut()) => Ok(Heard::Message(Source::Jobs, message?)),
            message = tail(self.replies.as_mut()) => Ok(Heard::Message(Source::Replies, message?)),
            newest = event(self.events.as_mut()) => Ok(Heard::Events(newest?)),
        }
    }
}

async fn tail(tail: Option<&mut Tail>) -> Result<Message, BusError> {
    match tail {
        Some(tail) => tail.next().await,
        None => std::future::pending().await,
    }
}

async fn event(events: Option<&mut Events>) -> Result<Newest, FleetError> {
    match events {
        // Of a flood only so many are shown: the others need not be read.
        Some(events) => match events.next_newest(EVENTS_MAX).await? {
            Some(newest) => Ok(newest),
            None => Err(BusError::Disconnected.into()),
        },
        None => std::future::pending().await,
    }
}

fn bucket(name: &str) -> String {
    format!("KV_{name}")
}

/// From when on about the `most` newest messages of a stream are read: the smallest window that holds as many.
pub(crate) async fn latest(bus: &Bus, stream: &str, filter: &str, most: usize) -> Result<Start, BusError> {
    let enough = u64::try_from(most).unwrap_or(u64::MAX);
    let filters = [filter.to_owned()];
    // The broker's time, not this machine's, is what it stores by.
    let mut newest = Scan::open(bus, stream, &filters, Start::New).await?;
    let now = newest.opened_at();
    newest.next().await?; // nothing is pending: ends the scan
    for window_s in WINDOWS_S {
        let start = Start::Time(Timestamp::from_ms(now.as_ms().saturating_sub(window_s * 1_000)));
        let mut scan = Scan::open(bus, stream, &filters, start).await?;
        match scan.pending() {
            0 => drop(scan.next().await?),
            pending if pending >= enough => return Ok(start),
            _ => {} // the broker forgets it by itself
        }
    }
    Ok(Start::First)
}
