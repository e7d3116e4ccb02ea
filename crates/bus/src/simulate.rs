//! For simulations alone (feature `simulate`): a broker, a clock and dice that belong to a test. Never in a shipped
//! program: nothing but development depends on the feature.
//!
//! A broker is seen here as a client sees it: packets go out, packets come in on subscriptions. What it stores and
//! answers, when, and what it loses on the way is the test's business.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use message::Timestamp;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use crate::connect::{Link, REQUEST_TIMEOUT};

/// What passes between a client and its broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packet {
    /// Where it goes, or came from.
    pub subject: String,
    /// Where an answer is awaited.
    pub reply: Option<String>,
    /// Name and value, sorted.
    pub headers: Vec<(String, String)>,
    /// The payload.
    pub payload: Bytes,
    /// The broker's own word in place of a message, such as 404.
    pub status: Option<u16>,
}

impl Packet {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn into_message(self) -> async_nats::Message {
        let mut headers = async_nats::HeaderMap::new();
        for (name, value) in &self.headers {
            headers.insert(name.as_str(), value.as_str());
        }
        async_nats::Message {
            subject: self.subject.into(),
            reply: self.reply.map(Into::into),
            length: self.payload.len(),
            payload: self.payload,
            headers: (!self.headers.is_empty()).then_some(headers),
            status: self.status.and_then(|code| async_nats::StatusCode::from_u16(code).ok()),
            description: None,
        }
    }
}

pub(crate) fn headers_of(headers: &async_nats::HeaderMap) -> Vec<(String, String)> {
    let last = |values: &Vec<async_nats::HeaderValue>| values.last().map(|value| value.as_str().to_owned());
    let mut found: Vec<_> =
        headers.iter().filter_map(|(name, values)| Some((name.to_string(), last(values)?))).collect();
    // They lie in no order.
    found.sort();
    found
}

/// A broker, as one connection sees it.
pub trait Broker: Send + Sync {
    /// Whether the link is up now.
    fn is_up(&self) -> bool;
    /// The state of the link. A channel of its own each time: those who watch one are woken in no certain order.
    fn link(&self) -> watch::Receiver<Link>;
    /// A subject of its own for answers.
    fn new_inbox(&self) -> String;
    /// What comes on a subject from now on.
    fn subscribe(&self, subject: String) -> UnboundedReceiver<Packet>;
    /// Takes a packet; while the link is down it waits, as in async-nats.
    fn send(&self, packet: Packet);
}

/// A request and its answer. An answer that is lost is waited for until the time is up.
pub(crate) async fn request(
    broker: &dyn Broker,
    subject: String,
    request: async_nats::Request,
) -> Result<async_nats::Message, async_nats::RequestError> {
    let inbox = broker.new_inbox();
    let mut answers = broker.subscribe(inbox.clone());
    let headers = request.headers.as_ref().map(headers_of).unwrap_or_default();
    let payload = request.payload.unwrap_or_default();
    broker.send(Packet { subject, reply: Some(inbox), headers, payload, status: None });
    let timed_out = || async_nats::RequestError::new(async_nats::RequestErrorKind::TimedOut);
    match tokio::time::timeout(request.timeout.flatten().unwrap_or(REQUEST_TIMEOUT), answers.recv()).await {
        Ok(Some(packet)) => Ok(packet.into_message()),
        Ok(None) | Err(_) => Err(timed_out()),
    }
}

type Now = Box<dyn Fn() -> Timestamp>;

thread_local! {
    static NOW: RefCell<Option<Now>> = const { RefCell::new(None) };
    static DICE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What this thread takes for the time from now on; `None`: the machine's clock.
pub fn set_now(now: Option<Now>) {
    NOW.set(now);
}

/// What this thread's dice fall by from now on; `None`: the operating system's.
pub fn set_dice(seed: Option<u64>) {
    DICE.set(seed);
}

pub(crate) fn now() -> Option<Timestamp> {
    NOW.with_borrow(|now| now.as_ref().map(|now| now()))
}

pub(crate) fn random_bits() -> Option<[u8; 16]> {
    let mut dice = Dice(DICE.get()?);
    let (low, high) = (dice.bits(), dice.bits());
    DICE.set(Some(dice.0));
    Some((u128::from(low) | u128::from(high) << 64).to_le_bytes())
}

/// Dice that fall the same way for the same seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Those of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 when that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.bits() % (limit.max(1) as u64)).unwrap_or(0)
    }

    /// Whether something happens that does so in `percent` of all cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        percent > 0 && self.below(100) < percent
    }
}
