//! What the watcher and the HTTP side share: the view, how fresh it is, and what was counted.
//!
//! One lock, held for short pure work only. The watcher writes; HTTP reads.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use message::{NodeName, Timestamp};
use serde_json::json;

use crate::freshness::Freshness;
use crate::hub::{Hub, Topic};
use crate::view::{BrokerClock, View};

/// A view that the broker has not confirmed for this long is not what one should decide by.
pub(crate) const FRESH_MAX: Duration = Duration::from_secs(15);

/// Counted since the station was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) jobs: u64,
    pub(crate) replies: u64,
    pub(crate) events: u64,
    pub(crate) rejected_replies: u64,
    pub(crate) rejected_jobs: u64,
    pub(crate) rejected_nodes: u64,
    pub(crate) rejected_life_signs: u64,
    pub(crate) rejected_facts: u64,
    /// How often everything was read anew.
    pub(crate) readings: u64,
}

/// How it stands.
pub(crate) struct Status {
    /// Whether the link to the broker is up.
    pub(crate) connected: bool,
    /// What is being done when the view cannot be relied on: a sentence.
    pub(crate) doing: String,
    /// Whether the view follows the streams.
    pub(crate) following: bool,
    /// What is known; none before the first reading is through.
    pub(crate) view: Option<View>,
    /// The broker's clock when the view was last confirmed, and when that was.
    confirmed: Option<(BrokerClock, Instant)>,
    /// How many units knock and wait to be let in, as many as the broker holds; `None` where it does not say.
    pub(crate) knocking: Option<u64>,
    pub(crate) counters: Counters,
    /// Up to which sequence the messages of each source are counted.
    pub(crate) counted: [u64; 6],
}

impl Status {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        Self {
            connected: false,
            doing: "the broker has not answered yet".into(),
            following: false,
            view: None,
            confirmed: None,
            knocking: None,
            counters: Counters::default(),
            counted: [0; 6],
        }
    }

    /// The broker has just answered: what is known holds at this time of its clock.
    pub(crate) fn confirm(&mut self, clock: BrokerClock, at: Instant) {
        self.confirmed = Some((clock, at));
    }

    /// How long ago the view was confirmed.
    pub(crate) fn age(&self, at: Instant) -> Option<Duration> {
        self.confirmed.map(|(_, confirmed)| at.saturating_duration_since(confirmed))
    }

    /// Whether the view can be relied on.
    pub(crate) fn freshness(&self, at: Instant) -> Freshness {
        let Some(age) = self.age(at).filter(|_| self.view.is_some()) else {
            return Freshness::Empty { reason: self.doing.clone() };
        };
        if self.connected && self.following && age <= FRESH_MAX {
            return Freshness::Live;
        }
        let reason =
            if self.connected && self.following { "the broker does not answer".into() } else { self.doing.clone() };
        Freshness::Stale { reason, age }
    }

    /// The broker's time at `at`, and the time for which states may be told: silence proves nothing while nobody
    /// listens.
    pub(crate) fn clocks(&self, at: Instant) -> Option<(Timestamp, BrokerClock)> {
        let (clock, confirmed) = self.confirmed?;
        let now = clock.now.plus(at.saturating_duration_since(confirmed));
        let told = if self.freshness(at) == Freshness::Live { now } else { clock.now };
        Some((now, BrokerClock { now: told, ..clock }))
    }
}

/// What does not change.
#[derive(Debug, Clone)]
pub(crate) struct About {
    /// The station's name.
    pub(crate) station: NodeName,
    /// Where the broker is, without passwords.
    pub(crate) server: String,
    /// When the station was started, by this machine's clock.
    pub(crate) started: Timestamp,
}

/// The status, shared.
pub(crate) struct Shared {
    status: RwLock<Status>,
    pub(crate) about: About,
    /// How the receivers of events stand.
    pub(crate) received: Arc<crate::receiving::Counts>,
    /// What is told to those who follow.
    pub(crate) hub: Hub,
    /// How the alerts stand.
    pub(crate) alerts: crate::alert::Counts,
}

impl Shared {
    pub(crate) fn new(about: About) -> Self {
        Self {
            status: RwLock::new(Status::new()),
            about,
            received: Arc::default(),
            hub: Hub::new(),
            alerts: crate::alert::Counts::default(),
        }
    }

    // A reader or writer that panicked has left whole values behind: each write is one step of a fold.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Status> {
        self.status.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who follow whether the view can be relied on, if that has changed.
    pub(crate) fn tell_standing(&self) {
        let told = match self.read().freshness(Instant::now()) {
            Freshness::Live => json!({"live": true}),
            Freshness::Stale { reason, .. } | Freshness::Empty { reason } => json!({"live": false, "reason": reason}),
        };
        self.hub.tell_if_new(Topic::Status, told.to_string());
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Status> {
        self.status.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(ms: i64) -> BrokerClock {
        BrokerClock { now: Timestamp::from_ms(ms), booted: Timestamp::from_ms(0) }
    }

    #[test]
    fn it_is_ready_only_while_connected_loaded_and_confirmed() {
        let (mut status, begun) = (Status::new(), Instant::now());
        assert_eq!(status.freshness(begun), Freshness::Empty { reason: "the broker has not answered yet".into() });
        status.connected = true;
        status.doing = "the nodes are being read".into();
        status.confirm(clock(1_000), begun);
        assert_eq!(status.freshness(begun), Freshness::Empty { reason: "the nodes are being read".into() });
        (status.view, status.following) = (Some(View::default()), true);
        assert_eq!(status.freshness(begun), Freshness::Live);
        let later = begun + FRESH_MAX + Duration::from_secs(1);
        assert!(
            matches!(status.freshness(later), Freshness::Stale { reason, .. } if reason.contains("does not answer"))
        );
        status.connected = false;
        status.doing = "the link is down".into();
        assert!(matches!(status.freshness(begun), Freshness::Stale { reason, .. } if reason == "the link is down"));
    }

    #[test]
    fn states_stand_still_while_nobody_listens_and_ages_go_on() {
        let (mut status, begun) = (Status::new(), Instant::now());
        (status.connected, status.following, status.view) = (true, true, Some(View::default()));
        status.confirm(clock(1_000), begun);
        let later = begun + Duration::from_secs(5);
        assert_eq!(status.clocks(later), Some((Timestamp::from_ms(6_000), clock(6_000))));
        status.connected = false;
        assert_eq!(status.clocks(later), Some((Timestamp::from_ms(6_000), clock(1_000))));
    }
}
