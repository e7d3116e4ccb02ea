//! What is stored, as it comes: live by subscription; a node's missed orders by catch-up.
//!
//! The broker republishes each order on its four-token subject once it is stored, with its sequence and the one
//! before it. Live messages may be lost (a full buffer, a broken link): `chain` tells when, and a catch-up reads
//! the stream itself. What comes live may be forged by anyone who can publish on the subject; only what verifies
//! may move the chain.

use futures::stream::SelectAll;
use futures::{FutureExt, StreamExt};
use message::{NodeName, Timestamp};

use crate::client::Subscriber;
use crate::connect::Bus;
use crate::error::BusError;
use crate::read::{Scan, Start};
use crate::wire::{Message, broker_time};

/// The stream that orders are kept in.
pub const COMMANDS: &str = "COMMANDS";

/// A live message with its place in the chain of its subject.
#[derive(Debug, Clone)]
pub struct LiveMessage {
    /// The message.
    pub message: Message,
    /// The sequence before it on the same subject; 0 when there is none.
    pub previous: u64,
}

/// The live orders of one node.
pub struct LiveOrders {
    subscriber: Subscriber,
}

impl LiveOrders {
    /// Subscribes. Reconnects keep the subscription.
    ///
    /// # Errors
    /// [`BusError`] when the connection is closed.
    pub async fn open(bus: &Bus, node: &NodeName) -> Result<Self, BusError> {
        let subject = format!("{node}.command.*.*");
        let subscriber = bus.client.subscribe(subject.clone()).await.map_err(|error| BusError::Other {
            what: format!("subscribing to {subject}"),
            reason: error.to_string(),
        })?;
        Ok(Self { subscriber })
    }

    /// The next live message; `None` when the connection is closed for good.
    pub async fn next(&mut self) -> Option<LiveMessage> {
        self.subscriber.next().await.map(live)
    }

    /// The next live message if one is already here.
    pub fn ready(&mut self) -> Option<LiveMessage> {
        self.subscriber.next().now_or_never().flatten().map(live)
    }

    /// Drops all that is here already, and returns how much that was.
    ///
    /// Messages and answers of one connection come in their order: after an answer of a new connection nothing of the one
    /// before can follow.
    pub fn clear(&mut self) -> usize {
        let mut dropped = 0;
        // Not within a task's budget: once that is used up, what is here would seem not to be.
        while tokio::task::unconstrained(self.subscriber.next()).now_or_never().flatten().is_some() {
            dropped += 1;
        }
        dropped
    }
}

/// What is stored from now on under some subjects, without a consumer at the broker. Messages of one subject come in
/// their order; some may be lost, which [`LiveMessage::previous`] tells.
pub struct LiveStored {
    subscribers: SelectAll<Subscriber>,
}

impl LiveStored {
    /// Subscribes. What is published over the same connection afterwards finds the subscription in place: there is
    /// nothing to wait for.
    ///
    /// # Errors
    /// [`BusError`] when the connection is closed.
    pub async fn open(bus: &Bus, subjects: &[String]) -> Result<Self, BusError> {
        let mut subscribers = SelectAll::new();
        for subject in subjects {
            let subscriber = bus.client.subscribe(subject.clone()).await.map_err(|error| BusError::Other {
                what: format!("subscribing to {subject}"),
                reason: error.to_string(),
            })?;
            subscribers.push(subscriber);
        }
        Ok(Self { subscribers })
    }

    /// The next message; `None` when the connection is closed for good. May be cancelled at any time.
    pub async fn next(&mut self) -> Option<LiveMessage> {
        self.subscribers.next().await.map(live)
    }
}

/// Opens a catch-up: every order of `node` behind `floor`.
///
/// # Errors
/// [`BusError`] when the broker does not answer or refuses; try again later, with a back-off.
pub async fn catch_up(bus: &Bus, node: &NodeName, floor: u64) -> Result<Scan, BusError> {
    let filter = format!("{node}.command.>");
    Scan::open_named(bus, COMMANDS, node.as_str(), &[filter], Start::Sequence(floor.saturating_add(1))).await
}

fn live(message: async_nats::Message) -> LiveMessage {
    let headers = message.headers.unwrap_or_default();
    let number = |name: &str| headers.get_last(name).and_then(|value| value.as_str().parse::<u64>().ok());
    let sequence = number("Nats-Sequence").unwrap_or(0);
    let previous = number("Nats-Last-Sequence").unwrap_or(0);
    let stored_at = headers
        .get_last("Nats-Time-Stamp")
        .and_then(|value| broker_time(value.as_str()))
        .unwrap_or(Timestamp::from_ms(0));
    let subject = message.subject.to_string();
    LiveMessage { message: Message { subject, sequence, stored_at, payload: message.payload, headers }, previous }
}
