//! The station's receivers of events: where their messages come from, and how they stand.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fleet::{EventFilter, Events, Fleet};
use message::Received;
use receive::{Messages, Origin, Receive, Receiver, Witness};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

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

impl Witness for Counts {
    fn delivered(&self, records: u64) {
        self.delivered.fetch_add(records, Ordering::Relaxed);
    }

    fn repeated(&self) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    fn dead(&self) {
        self.dead.fetch_add(1, Ordering::Relaxed);
    }

    fn fails(&self, reason: &str, begins: bool) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        self.failures.fetch_add(1, Ordering::Relaxed);
        if begins {
            self.failing.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn works(&self) {
        self.failing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the station's node is told.
struct Told(Fleet);

impl Origin for Told {
    type Messages = Coming;

    async fn open(&self, method: &str, domain: &str, after: u64) -> Result<Coming, String> {
        let filter = EventFilter {
            method: Some(method.to_owned()),
            domain: Some(domain.to_owned()),
            ..EventFilter::told_to(&self.0.context().node)
        };
        self.0.receive(&filter, after).await.map(Coming).map_err(|error| error.to_string())
    }
}

struct Coming(Events);

impl Messages for Coming {
    async fn next(&mut self) -> Result<Option<Received>, String> {
        self.0.next_message().await.map_err(|error| error.to_string())
    }
}

/// Runs all receivers of a configuration until cancelled.
pub(crate) async fn keep(
    fleet: Fleet,
    tables: Vec<Receive>,
    dir: PathBuf,
    counts: Arc<Counts>,
    cancel: CancellationToken,
) {
    let mut receivers = JoinSet::new();
    for table in tables {
        let (bus, node) = (fleet.bus().clone(), fleet.context().node.clone());
        let receiver = Receiver::new(bus, node, Told(fleet.clone()), table, &dir, Arc::clone(&counts));
        receivers.spawn(receiver.run(cancel.clone()));
    }
    cancel.cancelled().await;
    receivers.shutdown().await;
}
