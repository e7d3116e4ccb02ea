//! What is said about one job: live while nothing is missed, from the stream as soon as something may have been.
//!
//! A consumer costs the broker more than a whole short job; a subscription that was there before the first order
//! left costs nothing and misses nothing as long as the link stays up. Live messages are in an unbroken chain for
//! each subject; when one breaks, when the link broke, or when nothing was heard for a while, the stream is read
//! from the beginning of the job, and the fold does not mind hearing everything twice.

use std::collections::HashMap;
use std::time::Duration;

use bus::{Bus, BusError, Link, LiveStored, Message, Start};
use tokio::sync::watch;

use super::REPLIES;
use crate::steady::Steady;

/// After so long without a word the stream is read instead: the last word may have been lost.
const QUIET_MAX: Duration = Duration::from_secs(3);

/// What is said about one job.
pub(super) enum Feed {
    Live(Box<Live>),
    Steady(Box<Steady>),
}

/// The live part.
pub(super) struct Live {
    bus: Bus,
    filters: Vec<String>,
    messages: LiveStored,
    /// The last sequence heard on each subject.
    heads: HashMap<String, u64>,
    link: watch::Receiver<Link>,
    since: Link,
}

impl Live {
    /// Listens for what matches `filters`; to be opened before anything is ordered.
    pub(super) async fn open(bus: &Bus, filters: Vec<String>) -> Result<Self, BusError> {
        let link = bus.link();
        let since = *link.borrow();
        let messages = LiveStored::open(bus, &filters).await?;
        Ok(Self { bus: bus.clone(), filters, messages, heads: HashMap::new(), link, since })
    }

    /// The next message; `None` when something may have been missed.
    async fn next(&mut self) -> Option<Message> {
        let mut quiet = std::pin::pin!(tokio::time::sleep(QUIET_MAX));
        loop {
            let now = *self.link.borrow_and_update();
            if now.ups != self.since.ups || now.overruns != self.since.overruns {
                return None;
            }
            tokio::select! {
                live = self.messages.next() => {
                    let live = live?;
                    let head = self.heads.entry(live.message.subject.clone()).or_default();
                    if live.previous != *head || live.message.sequence <= *head {
                        return None;
                    }
                    *head = live.message.sequence;
                    return Some(live.message);
                }
                changed = self.link.changed() => changed.ok()?,
                () = &mut quiet => return None,
            }
        }
    }
}

impl Feed {
    /// All that is stored of a job, and what comes.
    pub(super) async fn steady(bus: &Bus, filters: Vec<String>) -> Result<Self, BusError> {
        Ok(Self::Steady(Box::new(Steady::open(bus, REPLIES, filters, Start::First).await?)))
    }

    /// The next message; some come twice. May be cancelled at any time.
    pub(super) async fn next(&mut self) -> Result<Message, BusError> {
        loop {
            match self {
                Self::Steady(steady) => return steady.next().await,
                Self::Live(live) => {
                    if let Some(message) = live.next().await {
                        return Ok(message);
                    }
                    let filters = std::mem::take(&mut live.filters);
                    *self = Self::Steady(Box::new(Steady::later(&live.bus, REPLIES, filters, Start::First)));
                }
            }
        }
    }
}
