//! The simulated broker and the links to it: streams with sequences, the republishing of what is stored, catch-ups by
//! pull, keys with revisions; and on the way whatever a network does: loss, repetition, overtaking, delay.
//!
//! It answers as `nats-server` does in all that an agent asks of it (docs/protocol.md, sections 5, 8, 12).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::Link;
use bus::simulate::{Broker, Dice, Packet};
use bytes::Bytes;
use message::Reply;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};

use super::trace::Trace;

/// For how long the broker recognizes a message id.
const DUPLICATE_WINDOW_MS: i64 = 120_000;

/// A stored message.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) subject: String,
    pub(super) sequence: u64,
    /// The one before it on the same subject.
    previous: u64,
    at: i64,
    headers: Vec<(String, String)>,
    pub(super) payload: Bytes,
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) messages: Vec<Stored>,
    last: u64,
    ids: BTreeMap<String, (u64, i64)>,
    /// New messages are refused, as when it has reached its limit.
    pub(super) full: bool,
}

impl Stream {
    pub(super) fn last_on(&self, subject: &str) -> Option<&Stored> {
        self.messages.iter().rev().find(|stored| stored.subject == subject)
    }

    /// Stores a message, or finds it among those of late. The flag: it was there before.
    fn store(&mut self, packet: &Packet, at: i64) -> (u64, bool) {
        let id = packet.header("Nats-Msg-Id").map(ToOwned::to_owned);
        if let Some((sequence, since)) = id.as_ref().and_then(|id| self.ids.get(id))
            && at - since < DUPLICATE_WINDOW_MS
        {
            return (*sequence, true);
        }
        let previous = self.last_on(&packet.subject).map_or(0, |stored| stored.sequence);
        self.last += 1;
        let (subject, headers, payload) = (packet.subject.clone(), packet.headers.clone(), packet.payload.clone());
        self.messages.push(Stored { subject, sequence: self.last, previous, at, headers, payload });
        if let Some(id) = id {
            self.ids.insert(id, (self.last, at));
        }
        (self.last, false)
    }
}

struct Consumer {
    next: u64,
    delivered: u64,
}

/// How bad the links are, in percent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weather {
    pub(super) lost_live: usize,
    pub(super) repeated_live: usize,
    pub(super) late_live: usize,
    pub(super) lost_answer: usize,
    /// A catch-up whose consumer vanishes in the middle.
    pub(super) broken_read: usize,
}

/// One client's connection.
struct Connection {
    link: Link,
    links: Vec<watch::Sender<Link>>,
    subscriptions: Vec<(String, UnboundedSender<Packet>)>,
    sent: VecDeque<Packet>,
    /// On its way to the client: when it arrives, and what.
    arriving: Vec<(i64, u64, Packet)>,
    /// When the last answer arrives: answers do not overtake each other.
    last_answer: i64,
    inboxes: u64,
    open: bool,
}

pub(super) struct Net {
    pub(super) now: i64,
    pub(super) epoch: u64,
    pub(super) commands: Stream,
    pub(super) replies: Stream,
    keys: BTreeMap<String, (u64, i64, Packet)>,
    revision: u64,
    consumers: BTreeMap<String, Consumer>,
    connections: Vec<Connection>,
    pub(super) weather: Weather,
    /// Every reply that was ever stored, also in a store that is gone.
    pub(super) heard: Vec<(u64, Reply)>,
    pub(super) complaints: Vec<String>,
    dice: Dice,
    packets: u64,
    wake: Arc<Notify>,
}

#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Net>>);

impl Shared {
    pub(super) fn new(seed: u64, wake: Arc<Notify>) -> Self {
        let mut net = Net {
            now: 0,
            epoch: 0,
            commands: Stream::default(),
            replies: Stream::default(),
            keys: BTreeMap::new(),
            revision: 0,
            consumers: BTreeMap::new(),
            connections: Vec::new(),
            weather: Weather::default(),
            heard: Vec::new(),
            complaints: Vec::new(),
            dice: Dice::new(seed),
            packets: 0,
            wake,
        };
        net.set_up();
        Self(Arc::new(Mutex::new(net)))
    }

    pub(super) fn net(&self) -> MutexGuard<'_, Net> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client comes; the link is up if `up`.
    pub(super) fn connect(&self, up: bool) -> Wire {
        let mut net = self.net();
        let link = Link { up, ups: u64::from(up), overruns: 0 };
        net.connections.push(Connection {
            link,
            links: Vec::new(),
            subscriptions: Vec::new(),
            sent: VecDeque::new(),
            arriving: Vec::new(),
            last_answer: 0,
            inboxes: 0,
            open: true,
        });
        Wire { shared: self.clone(), number: net.connections.len() - 1 }
    }
}

/// One connection as its client has it.
#[derive(Clone)]
pub(super) struct Wire {
    shared: Shared,
    pub(super) number: usize,
}

impl Broker for Wire {
    fn is_up(&self) -> bool {
        let net = self.shared.net();
        net.connections[self.number].link.up
    }

    fn link(&self) -> watch::Receiver<Link> {
        let mut net = self.shared.net();
        let connection = &mut net.connections[self.number];
        let (sender, receiver) = watch::channel(connection.link);
        connection.links.retain(|sender| !sender.is_closed());
        connection.links.push(sender);
        receiver
    }

    fn new_inbox(&self) -> String {
        let mut net = self.shared.net();
        let connection = &mut net.connections[self.number];
        connection.inboxes += 1;
        format!("_INBOX.ship1.{}.{}", self.number, connection.inboxes)
    }

    fn subscribe(&self, subject: String) -> UnboundedReceiver<Packet> {
        let (sender, receiver) = unbounded_channel();
        let mut net = self.shared.net();
        let subscriptions = &mut net.connections[self.number].subscriptions;
        subscriptions.retain(|(_, sender)| !sender.is_closed());
        subscriptions.push((subject, sender));
        receiver
    }

    fn send(&self, packet: Packet) {
        let mut net = self.shared.net();
        net.connections[self.number].sent.push_back(packet);
        net.wake.notify_one();
    }
}

fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

fn time(at: i64) -> String {
    super::at(at).to_string()
}

impl Net {
    fn set_up(&mut self) {
        let epoch = format!("{:032x}", self.epoch + 1);
        let packet = Packet { payload: Bytes::from(epoch), ..Packet::default() };
        self.revision += 1;
        self.keys.insert("$KV.META.epoch".into(), (self.revision, self.now, packet));
    }

    /// The store is lost, and set up anew.
    pub(super) fn wipe(&mut self) {
        self.epoch += 1;
        (self.commands, self.replies) = (Stream::default(), Stream::default());
        self.keys.clear();
        self.revision = 0;
        self.consumers.clear();
        self.set_up();
    }

    /// The broker is started again: what it held in memory is gone, and so are all links.
    pub(super) fn restart(&mut self) {
        self.consumers.clear();
        for number in 0..self.connections.len() {
            self.set_link(number, false);
        }
    }

    pub(super) fn set_link(&mut self, number: usize, up: bool) {
        let connection = &mut self.connections[number];
        if connection.link.up == up || !connection.open {
            return;
        }
        connection.link.up = up;
        connection.link.ups += u64::from(up);
        if !up {
            // What was on its way is gone; what the client sends from now on waits in it.
            connection.arriving.clear();
            connection.sent.clear();
        }
        self.tell_link(number);
    }

    /// The client did not take what came: some of it was dropped, and it is told.
    pub(super) fn overrun(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        connection.link.overruns += 1;
        connection.arriving.retain(|(_, _, packet)| packet.subject.starts_with("_INBOX"));
        self.tell_link(number);
    }

    fn tell_link(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        for sender in &connection.links {
            sender.send_replace(connection.link);
        }
    }

    /// The client is gone for good.
    pub(super) fn close(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        connection.open = false;
        connection.link.up = false;
        connection.sent.clear();
        connection.arriving.clear();
        connection.links.clear();
        connection.subscriptions.clear();
    }

    /// What is on its way, both ways.
    pub(super) fn is_busy(&self) -> bool {
        self.connections.iter().any(|own| own.open && own.link.up && (!own.sent.is_empty() || !own.arriving.is_empty()))
    }

    /// When the next packet arrives.
    pub(super) fn next_arrival(&self) -> Option<i64> {
        self.connections.iter().flat_map(|own| own.arriving.iter().map(|(due, _, _)| *due)).min()
    }

    /// A message for `COMMANDS`, from whoever may publish there. Its sequence, and whether it was there before.
    pub(super) fn publish_command(&mut self, packet: &Packet) -> (u64, bool) {
        let (sequence, duplicate) = self.commands.store(packet, self.now);
        if !duplicate {
            let stored = self.commands.messages[self.commands.messages.len() - 1].clone();
            self.republish(&stored);
        }
        (sequence, duplicate)
    }

    fn republish(&mut self, stored: &Stored) {
        let mut headers = stored.headers.clone();
        headers.extend([
            ("Nats-Stream".into(), "COMMANDS".into()),
            ("Nats-Subject".into(), stored.subject.clone()),
            ("Nats-Sequence".into(), stored.sequence.to_string()),
            ("Nats-Time-Stamp".into(), time(stored.at)),
            ("Nats-Last-Sequence".into(), stored.previous.to_string()),
        ]);
        let (subject, payload) = (stored.subject.clone(), stored.payload.clone());
        self.live(Packet { subject, reply: None, headers, payload, status: None });
    }

    /// A live message to whoever listens: it may be lost, come late, twice, and be overtaken.
    pub(super) fn live(&mut self, packet: Packet) {
        let Weather { lost_live, repeated_live, late_live, .. } = self.weather;
        for number in 0..self.connections.len() {
            let connection = &self.connections[number];
            if !connection.link.up || !connection.subscriptions.iter().any(|(own, _)| matches(own, &packet.subject)) {
                continue;
            }
            let copies = if self.dice.chance(lost_live) { 0 } else { 1 + usize::from(self.dice.chance(repeated_live)) };
            for _ in 0..copies {
                let late = if self.dice.chance(late_live) { self.dice.below(4000) } else { self.dice.below(3) };
                let due = self.now + late as i64;
                self.packets += 1;
                self.connections[number].arriving.push((due, self.packets, packet.clone()));
            }
        }
    }

    fn answer(&mut self, number: usize, packet: Packet) {
        let due = (self.now + self.dice.below(3) as i64).max(self.connections[number].last_answer);
        self.packets += 1;
        let connection = &mut self.connections[number];
        connection.last_answer = due;
        connection.arriving.push((due, self.packets, packet));
    }

    /// Takes what the clients have sent, and hands them what has arrived. Returns whether anything happened.
    pub(super) fn turn(&mut self, trace: &mut Trace) -> bool {
        let mut happened = false;
        for number in 0..self.connections.len() {
            while self.connections[number].link.up
                && let Some(packet) = self.connections[number].sent.pop_front()
            {
                happened = true;
                self.take(number, &packet, trace);
            }
        }
        for number in 0..self.connections.len() {
            let now = self.now;
            let connection = &mut self.connections[number];
            let mut due: Vec<_> = connection.arriving.extract_if(.., |(due, _, _)| *due <= now).collect();
            due.sort_by_key(|(due, count, _)| (*due, *count));
            happened |= !due.is_empty();
            for (_, _, packet) in due {
                connection.subscriptions.retain(|(_, sender)| !sender.is_closed());
                trace.note(now, || {
                    let sequence = packet.header("Nats-Sequence").unwrap_or_default();
                    format!("{number} hears {} {sequence} {:?}", packet.subject, packet.status)
                });
                // The inbox of a read gets messages under their own subjects.
                let to = packet.header("To").unwrap_or(&packet.subject).to_owned();
                let mut packet = packet;
                packet.headers.retain(|(name, _)| name != "To");
                for (pattern, sender) in &connection.subscriptions {
                    if matches(pattern, &to) {
                        let _ = sender.send(packet.clone());
                    }
                }
            }
        }
        happened
    }

    /// What a client has sent: a call of the API, or something to be stored.
    fn take(&mut self, number: usize, packet: &Packet, trace: &mut Trace) {
        let now = self.now;
        let json = |packet: &Packet| serde_json::from_slice::<Value>(&packet.payload).unwrap_or_default();
        let answer = if let Some(call) = packet.subject.strip_prefix("core.API.") {
            if let Some(rest) = call.strip_prefix("DIRECT.GET.") {
                Some(self.direct_get(rest))
            } else if let Some(name) = call.strip_prefix("CONSUMER.DELETE.COMMANDS.") {
                let found = self.consumers.remove(name).is_some();
                Some(if found { json!({"success": true}) } else { error(404, 10014, "consumer not found") }.into())
            } else if let Some(rest) = call.strip_prefix("CONSUMER.CREATE.COMMANDS.") {
                let name = rest.split('.').next().unwrap_or_default();
                Some(self.create(name, &json(packet)).into())
            } else if let Some(name) = call.strip_prefix("CONSUMER.MSG.NEXT.COMMANDS.") {
                self.next(number, name, json(packet)["batch"].as_u64().unwrap_or(1), packet.reply.as_deref());
                None
            } else {
                panic!("the simulated broker does not know the call {call}");
            }
        } else if packet.subject.starts_with("$KV.HISTORY.") {
            // A bucket has numbers of its own; nobody here reads this one.
            Some(json!({"stream": "KV_HISTORY", "seq": 1}).into())
        } else if packet.subject.starts_with("$KV.") || packet.subject.contains(".audit.") {
            Some(self.put(packet).into())
        } else {
            Some(self.store_reply(packet).into())
        };
        trace.note(now, || {
            let id = packet.header("Nats-Msg-Id").unwrap_or_default();
            // The journal's id is drawn by the system's dice, and ends the subject of a chain.
            let subject = packet.subject.split_once(".audit.").map_or(&*packet.subject, |(before, _)| before);
            let told = Reply::parse(&packet.payload).ok().map(|reply| {
                let steps: Vec<_> = reply.history.steps().iter().map(|step| step.state.as_str()).collect();
                format!("{} {}", reply.order, steps.join(" "))
            });
            format!("{number} says {subject} {id} {}", told.unwrap_or_default())
        });
        if let (Some(Answer(mut answer)), Some(reply)) = (answer, &packet.reply)
            && !self.dice.chance(self.weather.lost_answer)
        {
            answer.subject.clone_from(reply);
            self.answer(number, answer);
        }
    }

    fn direct_get(&self, rest: &str) -> Answer {
        let (stream, subject) = rest.split_once('.').unwrap_or_default();
        let found = if stream == "REPLIES" {
            self.replies.last_on(subject).map(|stored| {
                let headers = stored.headers.clone();
                (stored.sequence, stored.at, Packet { headers, payload: stored.payload.clone(), ..Packet::default() })
            })
        } else {
            self.keys.get(subject).cloned()
        };
        Answer(match found {
            None => Packet { status: Some(404), ..Packet::default() },
            Some((sequence, at, mut packet)) => {
                packet.headers.extend([
                    ("Nats-Subject".into(), subject.to_owned()),
                    ("Nats-Sequence".into(), sequence.to_string()),
                    ("Nats-Time-Stamp".into(), time(at)),
                ]);
                packet
            }
        })
    }

    fn create(&mut self, name: &str, body: &Value) -> Value {
        let start = body["config"]["opt_start_seq"].as_u64().unwrap_or(1);
        if self.consumers.contains_key(name) {
            return error(400, 10148, "consumer already exists");
        }
        self.consumers.insert(name.to_owned(), Consumer { next: start, delivered: 0 });
        json!({"num_pending": self.pending(name), "ts": time(self.now)})
    }

    fn pending(&self, name: &str) -> usize {
        let next = self.consumers.get(name).map_or(0, |consumer| consumer.next);
        self.commands.messages.iter().filter(|stored| stored.sequence >= next).count()
    }

    fn next(&mut self, number: usize, name: &str, batch: u64, inbox: Option<&str>) {
        let Some(inbox) = inbox else { return };
        let status = |status| Packet { subject: inbox.to_owned(), status: Some(status), ..Packet::default() };
        let breaks = self.dice.chance(self.weather.broken_read);
        let breaks_at = if breaks { self.dice.below(batch as usize) as u64 } else { batch };
        for count in 0..batch {
            if count == breaks_at {
                self.consumers.remove(name);
                return self.answer(number, status(409));
            }
            let Some(consumer) = self.consumers.get_mut(name) else { return self.answer(number, status(503)) };
            let next = self.commands.messages.iter().find(|stored| stored.sequence >= consumer.next).cloned();
            let Some(stored) = next else {
                return self.answer(number, status(if count == 0 { 404 } else { 408 }));
            };
            consumer.next = stored.sequence + 1;
            consumer.delivered += 1;
            let delivered = consumer.delivered;
            let (sequence, pending) = (stored.sequence, self.pending(name));
            let nanos = super::at(stored.at).as_ms() * 1_000_000;
            let mut headers = stored.headers;
            headers.push(("To".into(), inbox.to_owned()));
            let reply = Some(format!("$JS.ACK.COMMANDS.{name}.1.{sequence}.{delivered}.{nanos}.{pending}"));
            let packet = Packet { subject: stored.subject, reply, headers, payload: stored.payload, status: None };
            self.answer(number, packet);
        }
    }

    fn put(&mut self, packet: &Packet) -> Value {
        let last = self.keys.get(&packet.subject).map_or(0, |(revision, _, _)| *revision);
        let expected = packet.header("Nats-Expected-Last-Subject-Sequence").and_then(|text| text.parse::<u64>().ok());
        if expected.is_some_and(|expected| expected != last) {
            return error(400, 10071, "wrong last sequence");
        }
        self.revision += 1;
        self.keys.insert(packet.subject.clone(), (self.revision, self.now, packet.clone()));
        json!({"stream": "KV_PRESENCE", "seq": self.revision})
    }

    fn store_reply(&mut self, packet: &Packet) -> Value {
        if self.replies.full {
            return error(503, 10077, "maximum messages exceeded");
        }
        let (sequence, duplicate) = self.replies.store(packet, self.now);
        if !duplicate && packet.subject.contains(".reply.") {
            match Reply::parse(&packet.payload) {
                Ok(reply) => self.heard.push((self.epoch, reply)),
                Err(error) => self.complaints.push(format!("a reply that is none: {error}")),
            }
        }
        json!({"stream": "REPLIES", "seq": sequence, "duplicate": duplicate})
    }

    /// The floor that the last life sign told.
    pub(super) fn heard_floor(&self) -> u64 {
        let sign = self.keys.get("$KV.PRESENCE.ship1");
        let body = sign.and_then(|(_, _, packet)| serde_json::from_slice::<Value>(&packet.payload).ok());
        body.and_then(|body| body["floor"].as_u64()).unwrap_or(0)
    }
}

struct Answer(Packet);

impl From<Value> for Answer {
    fn from(value: Value) -> Self {
        Self(Packet { payload: Bytes::from(value.to_string()), ..Packet::default() })
    }
}

fn error(code: u64, err_code: u64, description: &str) -> Value {
    json!({"error": {"code": code, "err_code": err_code, "description": description}})
}
