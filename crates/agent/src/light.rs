//! A unit for load generators: a thousand of them fit where one real agent runs.
//!
//! It connects, catches up, gives life signs, and takes, judges and answers orders by the agent's own code. It keeps nothing on
//! disk and executes nothing, so whatever it is told to do has succeeded. Never for real work: after a restart it has forgotten
//! what it did.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::chain::{Arrival, Chain};
use bus::live::{self, LiveOrders};
use bus::{Bus, BusError, Headers, Message, clock, kv};
use bytes::Bytes;
use journal::Entry;
use message::registry::{Condition, LifeSignKind};
use message::{
    Addressee, History, InstanceId, LifeSign, OrderId, Outcome, Seal, State, Timestamp, Trust, WIRE_VERSION,
};
use tokio_util::sync::CancellationToken;

use crate::judge::{Grounds, Verdict, judge};
use crate::{presence, report};

/// What it leaves out of what an agent does, in words.
pub const LEFT_OUT: [&str; 5] = [
    "no journal: nothing is written to disk at the unit",
    "nothing is executed: an order succeeds when it was verified",
    "no policy is asked, and no list of operators is fetched",
    "no twin is looked for when a unit starts",
    "no events, no output",
];
/// Between two tries to read what was missed.
const RETRY: Duration = Duration::from_secs(2);

/// A unit without a memory.
pub struct Light {
    me: Addressee,
    pair: nkeys::KeyPair,
    trust: Arc<Trust>,
    interval: Duration,
    chain: Chain,
    done: BTreeSet<OrderId>,
    instance: InstanceId,
    boot: InstanceId,
    begun: Instant,
    revision: u64,
}

impl Light {
    /// A unit that believes `trust` and gives a life sign each `interval`.
    pub fn new(me: Addressee, pair: nkeys::KeyPair, trust: Arc<Trust>, interval: Duration) -> Self {
        Self {
            me,
            pair,
            trust,
            interval,
            chain: Chain::default(),
            done: BTreeSet::new(),
            instance: clock::instance_id(),
            boot: clock::instance_id(),
            begun: Instant::now(),
            revision: 0,
        }
    }

    /// Lives over `bus` until it is cancelled; calls `up` once it takes orders and has said so.
    ///
    /// # Errors
    /// [`BusError`] when the connection is closed for good.
    pub async fn run(mut self, bus: Bus, up: impl FnOnce(), cancel: CancellationToken) -> Result<(), BusError> {
        let mut orders = LiveOrders::open(&bus, &self.me.name).await?;
        let mut link = bus.link();
        let mut up = Some(up);
        let mut speak = tokio::time::Instant::now();
        let mut caught_up = false;
        let mut ups = link.borrow_and_update().ups;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                changed = link.changed() => {
                    changed.map_err(|_| BusError::Disconnected)?;
                    let now = *link.borrow_and_update();
                    if now.up && now.ups != ups {
                        (ups, caught_up, speak) = (now.ups, false, tokio::time::Instant::now());
                    }
                }
                () = tokio::time::sleep_until(speak), if bus.is_up() => {
                    let spoken = async {
                        if !caught_up {
                            self.catch_up(&bus).await?;
                            caught_up = true;
                        }
                        self.speak(&bus).await
                    };
                    let pause = match spoken.await {
                        Ok(()) => {
                            if let Some(up) = up.take() {
                                up();
                            }
                            self.interval.mul_f32(0.9) + jitter(self.interval / 10)
                        }
                        Err(error) => {
                            tracing::debug!(node = %self.me.name, %error, "it is tried again");
                            RETRY / 2 + jitter(RETRY)
                        }
                    };
                    speak = tokio::time::Instant::now() + pause;
                }
                order = orders.next() => {
                    let order = order.ok_or(BusError::Disconnected)?;
                    let message = order.message;
                    match self.chain.judge(&message.subject, message.sequence, order.previous) {
                        Arrival::Next => self.take(&bus, &message).await,
                        Arrival::Gap => (caught_up, speak) = (false, tokio::time::Instant::now()),
                        Arrival::Seen => {}
                    }
                }
            }
        }
    }

    async fn catch_up(&mut self, bus: &Bus) -> Result<(), BusError> {
        let mut scan = live::catch_up(bus, &self.me.name, self.chain.floor()).await?;
        let mut floor = self.chain.floor();
        while let Some(message) = scan.next().await? {
            floor = floor.max(message.sequence);
            if message.sequence > self.chain.head(&message.subject) {
                self.take(bus, &message).await;
            }
        }
        self.chain.raise_floor(floor);
        Ok(())
    }

    /// Judges a message, and answers it if it is an order.
    async fn take(&mut self, bus: &Bus, message: &Message) {
        let grounds = Grounds { me: &self.me, trust: &self.trust, now: message.stored_at };
        let (order, steps, reason) = match judge(&message.subject, &message.payload, message.seal(), grounds) {
            Verdict::Discard(reason) => {
                tracing::warn!(node = %self.me.name, %reason, "a message was discarded");
                return;
            }
            Verdict::Refuse { order, state, reason } => (order, vec![state], Some(reason)),
            Verdict::Take { order, .. } => (order, vec![State::Delivered, State::Running, State::Succeeded], None),
        };
        self.chain.take(&message.subject, message.sequence);
        if !self.done.insert(order.id) {
            return;
        }
        let mut entry = Entry::new(&order, message.sequence, history(&steps), clock::message_id());
        entry.reason = reason;
        entry.outcome = (entry.history.state() == State::Succeeded).then(Outcome::default);
        if let Err(error) = self.answer(bus, &entry).await {
            tracing::warn!(node = %self.me.name, %error, "an answer was lost, as this unit forgets it");
        }
    }

    async fn answer(&self, bus: &Bus, entry: &Entry) -> Result<(), BusError> {
        let wrong = |reason: String| BusError::Other { what: "answering".into(), reason };
        let reply = report::reply(entry, &self.me.name, None);
        let bytes = Bytes::from(serde_json::to_vec(&reply).map_err(|error| wrong(error.to_string()))?);
        let seal = Seal::over(&bytes, &self.pair).map_err(|error| wrong(error.to_string()))?;
        let subject = report::reply_subject(entry, &self.me.name).to_string();
        let headers = || Headers::new().sealed(&seal).with_id(&report::reply_message_id(entry));
        let mut tries_left = 10;
        loop {
            tries_left -= 1;
            match bus.publish(&subject, headers(), bytes.clone()).await {
                Err(error) if error.is_passing() && tries_left > 0 => {
                    tokio::time::sleep(RETRY / 2 + jitter(RETRY)).await
                }
                published => return published.map(|_| ()),
            }
        }
    }

    async fn speak(&mut self, bus: &Bus) -> Result<(), BusError> {
        let sign = LifeSign {
            v: WIRE_VERSION,
            kind: LifeSignKind::Presence,
            node: self.me.name.clone(),
            instance: self.instance,
            boot: self.boot,
            seat: None,
            condition: Condition::Up,
            reason: None,
            interval_ms: u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX),
            at: clock::now(),
            version: crate::VERSION.into(),
            uptime_s: self.begun.elapsed().as_secs(),
            floor: self.chain.floor(),
            processes: 1,
            running: 0,
            waiting: 0,
            outbox: 0,
            limits: Vec::new(),
            audit: None,
            rtt_ms: None,
        };
        match presence::put(bus, &sign, &self.pair, self.revision).await {
            Ok(revision) => self.revision = revision,
            Err(BusError::Conflict { .. }) => {
                // Its own, of which the confirmation was lost.
                let last = bus.kv_get(kv::PRESENCE, self.me.name.as_str()).await?;
                self.revision = last.map_or(0, |last| last.sequence);
                self.revision = presence::put(bus, &sign, &self.pair, self.revision).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn history(steps: &[State]) -> History {
    let (now, mut history): (Timestamp, _) = (clock::now(), History::new());
    for step in steps {
        // Legal first steps; the state machine's own test enumerates them.
        let _ = history.push(*step, now);
    }
    history
}

fn jitter(most: Duration) -> Duration {
    Duration::from_millis(clock::jitter(u64::try_from(most.as_millis()).unwrap_or(0).max(1)))
}
