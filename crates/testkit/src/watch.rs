//! Watches the broker's streams while a run goes on: all orders, all replies, and which orders have ended.
//!
//! It reads by short scans from where it stopped, so that a broker that comes and goes costs it nothing but time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use bus::{Bus, BusError, Message, Scan, Start, streams};
use message::{Order, OrderId, Reply, Subject};

use crate::check::{StoredOrder, StoredReply};
use crate::witness;

/// What became known so far.
#[derive(Default)]
pub(crate) struct Watched {
    orders: Vec<Message>,
    replies: Vec<StoredReply>,
    /// Every order, with its subject and how long it takes by itself.
    known: HashMap<OrderId, (Subject, Duration)>,
    ended: HashSet<OrderId>,
    next_order: u64,
    next_reply: u64,
    last_end: Option<Instant>,
}

/// What one reading brought.
#[derive(Default)]
pub(crate) struct Batch {
    orders: Vec<Message>,
    replies: Vec<Message>,
}

/// Reads on from there. What was read before a failure is told as well.
pub(crate) async fn read(bus: &Bus, from: (u64, u64)) -> (Batch, Result<(), BusError>) {
    let mut batch = Batch::default();
    let read = async {
        let mut scan = open(bus, streams::COMMANDS, "*.command.*.*", from.0).await?;
        while let Some(message) = scan.next().await? {
            batch.orders.push(message);
        }
        let mut scan = open(bus, streams::REPLIES, "*.reply.*.*", from.1).await?;
        while let Some(message) = scan.next().await? {
            batch.replies.push(message);
        }
        Ok(())
    };
    let ended = read.await;
    (batch, ended)
}

impl Watched {
    /// Where to read on: the next order and the next reply.
    pub(crate) const fn next(&self) -> (u64, u64) {
        (self.next_order, self.next_reply)
    }

    /// Takes in what was read.
    pub(crate) fn take(&mut self, batch: Batch) {
        for message in batch.orders {
            self.next_order = message.sequence + 1;
            if let Ok(order) = Order::parse(&message.payload) {
                self.known.insert(order.id, (order.subject(), witness::takes(&order)));
            }
            self.orders.push(message);
        }
        for message in batch.replies {
            self.next_reply = message.sequence + 1;
            if let Ok(reply) = Reply::parse(&message.payload)
                && reply.state().is_terminal()
                && self.ended.insert(reply.order)
            {
                self.last_end = Some(Instant::now());
            }
            self.replies.push(StoredReply {
                sequence: message.sequence,
                stored_at: message.stored_at,
                subject: message.subject.clone(),
                signer: message.signer().ok().map(|key| key.as_str().to_owned()),
                body: message.payload,
            });
        }
    }

    /// How many orders are stored.
    pub(crate) fn known(&self) -> usize {
        self.known.len()
    }

    /// How many of them have ended.
    pub(crate) fn ended(&self) -> usize {
        self.ended.len()
    }

    /// How many orders are stored and have not ended.
    pub(crate) fn open(&self) -> usize {
        self.known.keys().filter(|id| !self.ended.contains(id)).count()
    }

    /// When the last order was seen to have ended.
    pub(crate) const fn last_end(&self) -> Option<Instant> {
        self.last_end
    }

    /// How long the open orders take by themselves: those of one subject one after the other.
    pub(crate) fn own_time(&self) -> Duration {
        let mut subjects = BTreeMap::<&Subject, Duration>::new();
        for (id, (subject, takes)) in &self.known {
            if !self.ended.contains(id) {
                *subjects.entry(subject).or_default() += *takes;
            }
        }
        subjects.into_values().max().unwrap_or_default()
    }

    /// The stored order at `index`, counted over and over.
    pub(crate) fn order(&self, index: usize) -> Option<Message> {
        self.orders.get(index % self.orders.len().max(1)).cloned()
    }

    /// What the checker wants of it.
    pub(crate) fn evidence(&self) -> (Vec<StoredOrder>, Vec<StoredReply>) {
        let orders = self.orders.iter().map(|message| StoredOrder {
            sequence: message.sequence,
            subject: message.subject.clone(),
            body: message.payload.clone(),
        });
        (orders.collect(), self.replies.clone())
    }
}

async fn open(bus: &Bus, stream: &str, filter: &str, next: u64) -> Result<Scan, BusError> {
    Scan::open(bus, stream, &[filter.to_owned()], Start::Sequence(next)).await
}
