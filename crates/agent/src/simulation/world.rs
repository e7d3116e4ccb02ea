//! One simulated world: a broker, an operator, one machine or two, programs that end by chance; and the course of a run.
//!
//! Time passes in steps: each living agent runs, on a runtime of its own whose clock stands still, until it sends
//! something or the step is over; then the network, the disks and the keepers get their turn. What is chosen is chosen
//! by dice, so that a seed tells all that happens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bus::simulate::{Dice, Packet};
use bus::{Bus, EDGE_API, clock};
use bytes::Bytes;
use journal::Journal;
use journal::simulate::{SimDisk, Writer};
use keeper::simulate::{Keeper, Wish};
use keeper::{End, Id};
use message::subject::Kind;
use message::trust::TrustKind;
use message::{
    Addressee, JobId, NodeName, Operator, Order, OrderId, PublicKey, Seal, SealedDocument, Timestamp, Token, Trust,
    WIRE_VERSION, sign,
};
use nkeys::{KeyPair, KeyPairType};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::net::{Shared, Weather};
use super::trace::Trace;
use crate::counters::Counters;
use crate::fleettime::FleetTime;
use crate::options::{AgentError, AtStop};
use crate::policy::{Gate, Narrowing};
use crate::run::{Ground, Identity, Left, live};
use crate::trust::Trusted;

/// The longest step in which nothing happens.
const STEP_MAX_MS: i64 = 250;
/// More steps than any run needs: who needs more is going round in circles.
const STEPS_MAX: u64 = 400_000;
/// How long after its end an agent is started again, as a supervisor does.
const RESTART_MS: i64 = 2_000;
/// How long an agent may take to be told to end.
const STOP_MS: i64 = 30_000;
/// After this time with their links up, two clones have heard of each other.
const TOGETHER_MS: i64 = 35_000;
/// After the last fault, everything is to be settled within this time.
const SETTLE_MS: i64 = 600_000;

/// What may befall a run beside what befalls all: not both, since whoever loses its journal and its broker has no
/// witness left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calamity {
    None,
    /// The broker's store is lost.
    Wipe,
    /// The machine is set back to an older snapshot.
    SetBack,
    /// The disk is cloned, and both live.
    Clone,
}

/// An order that an operator has made.
pub(super) struct Issued {
    pub(super) order: Order,
    pub(super) packet: Packet,
    /// Where it was first stored: epoch and sequence. Anew after a wipe.
    pub(super) stored: Vec<(u64, u64)>,
    /// The job that it is to take back.
    pub(super) cancels: Option<JobId>,
}

/// How a program's life went.
#[derive(Debug, Clone)]
pub(super) struct Life {
    pub(super) machine: usize,
    pub(super) begun: i64,
    pub(super) ended: Option<(i64, Option<End>)>,
    /// The keeper went down while it held it.
    pub(super) lost: bool,
    due: i64,
    how: End,
    prints: usize,
}

struct Running {
    runtime: Runtime,
    task: JoinHandle<Result<(), AgentError>>,
    cancel: CancellationToken,
    number: usize,
    writer: Writer,
    journal: Journal,
    base: Instant,
    born: i64,
}

struct Machine {
    disk: SimDisk,
    keeper: Keeper,
    seat: u64,
    /// By how much its clock is wrong.
    clock_error: Arc<AtomicI64>,
    run: Option<Running>,
    start_at: Option<i64>,
    up: bool,
    /// Since when its agent lives and has its link.
    reachable: Option<i64>,
    /// When there will be room on its disk again.
    free_at: Option<i64>,
}

struct Keys {
    node: KeyPair,
    operator: KeyPair,
    stranger: KeyPair,
    root: PublicKey,
    trust: SealedDocument,
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let pair = |byte: u8| KeyPair::new_from_raw(KeyPairType::User, [byte; 32]).unwrap();
        let (operator, root) = (pair(1), KeyPair::new_from_raw(KeyPairType::Operator, [2; 32]).unwrap());
        let admin = Operator::admin("admin", PublicKey::of(&operator));
        let issued = Timestamp::from_ms(0);
        let trust = Trust {
            v: 1,
            kind: TrustKind::Trust,
            serial: 1,
            issued,
            operators: vec![admin],
            policy_keys: Vec::new(),
            revoked: Vec::new(),
        };
        let trust = SealedDocument::new(serde_json::to_string(&trust).unwrap(), &root).unwrap();
        Keys { node: pair(7), operator, stranger: pair(9), root: PublicKey::of(&root), trust }
    })
}

pub(super) fn me() -> Addressee {
    Addressee { name: NodeName::new("ship1").unwrap(), key: PublicKey::of(&keys().node) }
}

/// A simulated world.
pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) now: i64,
    pub(super) shared: Shared,
    wake: Arc<Notify>,
    machines: Vec<Machine>,
    pub(super) orders: Vec<Issued>,
    /// Every beginning of a program, and what became of it.
    pub(super) lives: Vec<(OrderId, Life)>,
    /// Orders of which nobody can know that they had begun: the journal was set back, and the broker had heard nothing.
    pub(super) excused: BTreeSet<OrderId>,
    pub(super) trace: Trace,
    pub(super) breaches: Vec<String>,
    pub(super) calamity: Calamity,
    /// Each with the orders that its journal may know.
    snapshots: Vec<(SimDisk, BTreeSet<OrderId>)>,
    seats: u64,
    steps: u64,
    at_stop: AtStop,
    interval: Duration,
    slow_disk: usize,
    next_id: u64,
}

impl World {
    /// Of this seed; it writes down what happens if `traced`, which costs more than all else.
    pub(super) fn new(seed: u64, traced: bool) -> Self {
        let mut dice = Dice::new(seed);
        let wake = Arc::new(Notify::new());
        let shared = Shared::new(dice.bits(), Arc::clone(&wake));
        bus::simulate::set_dice(Some(dice.bits()));
        keeper::simulate::set_on(true);
        let calamity = match dice.below(8) {
            0..3 => Calamity::None,
            3..5 => Calamity::Wipe,
            5..7 => Calamity::SetBack,
            _ => Calamity::Clone,
        };
        let at_stop = if dice.chance(70) { AtStop::LeaveCommands } else { AtStop::EndCommands };
        let slow_disk = if dice.chance(30) { 20 } else { 85 };
        let weather = [
            Weather::default(),
            Weather { lost_live: 5, repeated_live: 5, late_live: 5, lost_answer: 3, broken_read: 10 },
            Weather { lost_live: 30, repeated_live: 20, late_live: 30, lost_answer: 10, broken_read: 30 },
        ];
        shared.net().weather = weather[dice.below(weather.len())];
        let mut world = Self {
            dice,
            now: 0,
            shared,
            wake,
            machines: Vec::new(),
            orders: Vec::new(),
            lives: Vec::new(),
            excused: BTreeSet::new(),
            trace: Trace::new(traced),
            breaches: Vec::new(),
            calamity,
            snapshots: Vec::new(),
            seats: 0,
            steps: 0,
            at_stop,
            interval: Duration::from_secs(15),
            slow_disk,
            next_id: 0,
        };
        let disk = SimDisk::default();
        world.add_machine(disk);
        world
    }

    fn add_machine(&mut self, disk: SimDisk) {
        self.seats += 1;
        let clock_error = match self.dice.below(4) {
            0 => 86_400_000 * 2,
            1 => -86_400_000,
            _ => 0,
        };
        self.machines.push(Machine {
            disk,
            keeper: Keeper::default(),
            seat: self.seats,
            clock_error: Arc::new(AtomicI64::new(clock_error)),
            run: None,
            start_at: Some(self.now),
            up: true,
            reachable: None,
            free_at: None,
        });
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        self.trace.note(self.now, line);
    }

    fn breach(&mut self, what: String) {
        self.note(|| format!("BREACH {what}"));
        self.breaches.push(what);
    }

    /// The whole course: orders and faults, then peace until everything is settled.
    pub(super) fn live(&mut self) {
        let deeds = 10 + self.dice.below(25);
        for _ in 0..deeds {
            let pause = match self.dice.below(10) {
                0..4 => self.dice.below(10),
                4..8 => self.dice.below(1500),
                _ => self.dice.below(20_000),
            };
            self.run_until(self.now + pause as i64);
            self.deed();
        }
        self.settle();
        for machine in 0..self.machines.len() {
            self.kill(machine, false);
        }
        bus::simulate::set_now(None);
        bus::simulate::set_dice(None);
    }

    fn deed(&mut self) {
        match self.dice.below(100) {
            0..38 => self.issue(),
            38..46 => self.cancel(),
            46..51 => self.repeat(),
            51..56 => self.garbage(),
            56..66 => self.flip_link(),
            66..72 => {
                let machine = self.dice.below(self.machines.len());
                let power = self.dice.chance(30);
                self.kill(machine, power);
            }
            72..74 => {
                let machine = self.dice.below(self.machines.len());
                self.keeper_dies(machine);
            }
            74..77 => self.stop_kindly(),
            77..81 => {
                let machine = self.dice.below(self.machines.len());
                let free_at = self.now + self.dice.below(15_000) as i64;
                self.note(|| format!("disk of {machine} full until {free_at} ms"));
                self.machines[machine].disk.set_full(true);
                self.machines[machine].free_at = Some(free_at);
            }
            81..84 => {
                let machine = self.dice.below(self.machines.len());
                let error = (self.dice.below(7) as i64 - 3) * 43_200_000;
                self.note(|| format!("clock of {machine} wrong by {error} ms"));
                self.machines[machine].clock_error.store(error, Ordering::Relaxed);
            }
            84..86 => {
                self.note(|| "broker restarts".into());
                for own in &mut self.machines {
                    own.up = false;
                }
                self.shared.net().restart();
            }
            86..88 => {
                let full = self.dice.chance(40);
                self.note(|| format!("REPLIES full: {full}"));
                self.shared.net().replies.full = full;
            }
            88..90 => {
                let numbers: Vec<usize> =
                    self.machines.iter().filter_map(|machine| machine.run.as_ref().map(|run| run.number)).collect();
                for number in numbers {
                    self.shared.net().overrun(number);
                }
            }
            _ => self.befall(),
        }
    }

    fn befall(&mut self) {
        match self.calamity {
            Calamity::None => self.issue(),
            Calamity::Wipe if self.dice.chance(30) => {
                self.note(|| "broker wiped".into());
                for own in &mut self.machines {
                    own.up = false;
                }
                let mut net = self.shared.net();
                net.restart();
                net.wipe();
            }
            // Whoever finds a record may send the orders again.
            Calamity::Wipe => self.send_again(),
            Calamity::SetBack => {
                if self.snapshots.is_empty() || self.dice.chance(50) {
                    self.note(|| "snapshot".into());
                    let run = self.machines[0].run.as_ref();
                    let knows = |id: &OrderId| run.is_none_or(|run| !matches!(run.journal.find(id), Ok(None)));
                    let known = self.orders.iter().map(|issued| issued.order.id).filter(knows).collect();
                    self.snapshots.push((self.machines[0].disk.copied(), known));
                } else {
                    let at = self.dice.below(self.snapshots.len());
                    let (older, known) = (self.snapshots[at].0.copied(), self.snapshots[at].1.clone());
                    self.kill(0, true);
                    self.note(|| format!("set back to snapshot {at}"));
                    self.machines[0].disk = older;
                    self.excuse(Some(&known));
                }
            }
            Calamity::Clone if self.machines.len() < 2 => {
                self.note(|| "cloned".into());
                let copy = self.machines[0].disk.copied();
                self.add_machine(copy);
            }
            Calamity::Clone => self.issue(),
        }
    }

    /// What has begun and nobody has heard of is known to nobody from here on. `known`: what the journal knows that is
    /// left, as far as that is certain.
    fn excuse(&mut self, known: Option<&BTreeSet<OrderId>>) {
        let net = self.shared.net();
        let told: BTreeSet<OrderId> = net.heard.iter().map(|(_, reply)| reply.order).collect();
        let begun = net.heard.iter().filter(|(_, reply)| reply.history.at(message::State::Running).is_some());
        let told_begun: BTreeSet<OrderId> = begun.map(|(_, reply)| reply.order).collect();
        let (floor, epoch) = (net.heard_floor(), net.epoch);
        drop(net);
        for (id, _) in &self.lives {
            let issued = self.orders.iter().find(|issued| issued.order.id == *id);
            let sequence = issued.and_then(|issued| issued.stored.iter().find(|stored| stored.0 == epoch));
            let heard = told.contains(id) || sequence.is_some_and(|(_, sequence)| *sequence <= floor);
            // That it had been taken says nothing to a journal in which it waits.
            if !told_begun.contains(id) && (!heard || known.is_none_or(|known| known.contains(id))) {
                self.excused.insert(*id);
            }
        }
    }

    /// Two clones that cannot hear each other cannot know what the other begins, unless the broker tells.
    fn excuse_apart(&mut self, machine: usize, order: OrderId) {
        let elsewhere = self.lives.iter().any(|(id, life)| *id == order && life.machine != machine);
        let together = self.machines.len() > 1
            && self.machines.iter().all(|own| own.reachable.is_some_and(|since| since + TOGETHER_MS < self.now));
        if elsewhere && !together {
            let net = self.shared.net();
            let is_begun = |reply: &message::Reply| reply.history.at(message::State::Running).is_some();
            if !net.heard.iter().any(|(_, reply)| reply.order == order && is_begun(reply)) {
                self.excused.insert(order);
            }
        }
    }

    // What an operator does.

    fn order(&mut self, method: &str, domain: &str) -> Order {
        self.next_id += 1;
        let lasts = match self.dice.below(5) {
            0 => 1_000 + self.dice.below(20_000) as i64,
            _ => 7_200_000,
        };
        let created = super::at(self.now - self.dice.below(50) as i64);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next_id.to_be_bytes());
        bytes[8] = 0xaa;
        Order {
            v: WIRE_VERSION,
            kind: Kind::Command,
            id: OrderId::from_bytes(bytes),
            job: JobId::new(1, u128::from(self.next_id)),
            to: me(),
            method: Token::method(method).unwrap(),
            domain: Token::domain(domain).unwrap(),
            from: NodeName::new("central").unwrap(),
            created,
            expires: created.plus(Duration::from_millis(lasts as u64)),
            timeout_ms: 1_000 + self.dice.below(40_000) as u64,
            max_output_bytes: 1 << 20,
            args: serde_json::json!({"argv": ["x"]}),
            supersede: None,
            secrets: None,
        }
    }

    fn issue(&mut self) {
        let order = self.new_order();
        self.send(order, None);
    }

    fn new_order(&mut self) -> Order {
        let (method, domain) = match self.dice.below(20) {
            0 => ("nosuch", "a"),
            1 => ("hello", "a"),
            2..11 => ("shellcommand", "a"),
            11..16 => ("shellcommand", "b"),
            _ => ("shellcommand", "c"),
        };
        let mut order = self.order(method, domain);
        if self.dice.chance(25) {
            order.supersede = Some(Token::key(if self.dice.chance(70) { "k" } else { "l" }).unwrap());
        }
        order
    }

    fn cancel(&mut self) {
        let mut late = None;
        let job = if self.orders.is_empty() || self.dice.chance(20) {
            // Before its order comes.
            let order = self.new_order();
            let job = order.job.clone();
            late = Some(order);
            job
        } else {
            let back = self.dice.below(self.orders.len().min(6));
            self.orders[self.orders.len() - 1 - back].order.job.clone()
        };
        let mut order = self.order("cancel", "steward");
        order.args = serde_json::json!({ "job": job });
        order.expires = order.created.plus(Duration::from_secs(7_200));
        self.send(order, Some(job));
        if let Some(order) = late {
            let pause = self.dice.below(3_000) as i64;
            self.run_until(self.now + pause);
            self.send(order, None);
        }
    }

    fn send(&mut self, order: Order, cancels: Option<JobId>) {
        let bytes = order.to_bytes().unwrap();
        let seal = Seal::over(&bytes, &keys().operator).unwrap();
        let packet = packet(order.subject().to_string(), bytes, Some(&seal), Some(&order.id.to_string()));
        self.note(|| {
            let key = order.supersede.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("operator: {} on {} {key} {cancels:?} until {}", order.id, packet.subject, order.expires)
        });
        self.orders.push(Issued { order, packet, stored: Vec::new(), cancels });
        self.publish(self.orders.len() - 1, false);
    }

    /// Publishes an order, or replays it under another message id.
    fn publish(&mut self, index: usize, replay: bool) {
        let mut packet = self.orders[index].packet.clone();
        if replay {
            let id = format!("replay-{}", self.dice.bits());
            packet.headers.retain(|(name, _)| name != "Nats-Msg-Id");
            packet.headers.push(("Nats-Msg-Id".into(), id));
        }
        let mut net = self.shared.net();
        net.now = self.now;
        let (sequence, duplicate) = net.publish_command(&packet);
        let epoch = net.epoch;
        drop(net);
        if !duplicate {
            self.note(|| format!("stored as {epoch}/{sequence}"));
            self.orders[index].stored.push((epoch, sequence));
        }
    }

    fn repeat(&mut self) {
        if !self.orders.is_empty() {
            let index = self.dice.below(self.orders.len());
            let replay = self.dice.chance(70);
            self.note(|| format!("order {index} is published again, as another message: {replay}"));
            self.publish(index, replay);
        }
    }

    fn send_again(&mut self) {
        for index in 0..self.orders.len() {
            if self.dice.chance(40) {
                self.publish(index, false);
            }
        }
    }

    fn garbage(&mut self) {
        let mut order = self.new_order();
        let keys = keys();
        let which = self.dice.below(7);
        self.note(|| format!("garbage {which}"));
        if which == 0 {
            order.to.key = PublicKey::of(&keys.stranger);
        }
        let mut bytes = order.to_bytes().unwrap();
        let mut seal = Some(Seal::over(&bytes, &keys.operator).unwrap());
        let mut subject = order.subject().to_string();
        match which {
            1 => seal = None,
            2 => seal = Some(Seal::over(&bytes, &keys.stranger).unwrap()),
            3 => {
                let at = self.dice.below(bytes.len());
                bytes[at] ^= 1;
            }
            4 => {
                bytes = b"{}".to_vec();
                seal = Some(Seal::over(&bytes, &keys.operator).unwrap());
            }
            5 => subject = "ship1.command.shellcommand.elsewhere".into(),
            _ => {}
        }
        let mut packet = packet(subject, bytes, seal.as_ref(), Some(&format!("garbage-{}", self.dice.bits())));
        let mut net = self.shared.net();
        net.now = self.now;
        if which == 6 {
            // Live, not stored, with a sequence that somebody made up.
            packet.headers.retain(|(name, _)| name != sign::SIGNATURE_HEADER);
            packet
                .headers
                .extend([("Nats-Sequence".into(), "999999".into()), ("Nats-Last-Sequence".into(), "0".into())]);
            net.live(packet);
        } else {
            net.publish_command(&packet);
        }
    }

    // What befalls machines and links.

    fn flip_link(&mut self) {
        let machine = self.dice.below(self.machines.len());
        let up = !self.machines[machine].up;
        self.set_link(machine, up);
    }

    fn set_link(&mut self, machine: usize, up: bool) {
        self.note(|| format!("link of {machine} up: {up}"));
        self.machines[machine].up = up;
        if let Some(run) = &self.machines[machine].run {
            self.shared.net().set_link(run.number, up);
        }
    }

    fn keeper_dies(&mut self, machine: usize) {
        self.note(|| format!("keeper of {machine} dies"));
        for id in self.machines[machine].keeper.die() {
            self.lose(machine, id);
        }
    }

    /// How a program ended is not known to its keeper any more.
    fn lose(&mut self, machine: usize, id: keeper::Id) {
        let (now, order) = (self.now, OrderId::from_bytes(id.0));
        self.note(|| format!("{id} is lost"));
        for (own, life) in &mut self.lives {
            if *own == order && life.machine == machine {
                life.lost = true;
                life.ended.get_or_insert((now, None));
            }
        }
    }

    /// Kills an agent; `power`: its machine loses power, and the keeper is gone as well.
    fn kill(&mut self, machine: usize, power: bool) {
        if self.machines[machine].run.is_some() {
            self.note(|| format!("agent of {machine} is killed, with its machine: {power}"));
            // Some of what it had begun to do still happens.
            if self.dice.chance(50) {
                self.keeper_turn(machine, 1);
                self.journal_turn(machine);
                self.shared.net().turn(&mut self.trace);
            }
        }
        let own = &mut self.machines[machine];
        let dice = &mut self.dice;
        own.keeper.cut();
        // Before the old one is dropped: what it writes while it goes is written by nobody.
        own.disk = if power { own.disk.after_power_cut(&mut |limit| dice.below(limit)) } else { own.disk.copied() };
        if let Some(run) = own.run.take() {
            self.shared.net().close(run.number);
            drop(run);
        }
        own.start_at = Some(self.now + RESTART_MS);
        if power {
            self.seats += 1;
            own.seat = self.seats;
            self.keeper_dies(machine);
        }
    }

    fn stop_kindly(&mut self) {
        let machine = self.dice.below(self.machines.len());
        let Some(run) = &self.machines[machine].run else { return };
        run.cancel.cancel();
        self.note(|| format!("agent of {machine} is told to end"));
        let deadline = self.now + STOP_MS;
        while self.machines[machine].run.is_some() && self.now < deadline {
            self.run_until(self.now + 100);
        }
        if self.machines[machine].run.is_some() {
            self.breach(format!("the agent of {machine} does not end"));
        }
    }

    fn start(&mut self, machine: usize) {
        let own = &mut self.machines[machine];
        own.start_at = None;
        let (journal, opened, writer) = match Journal::simulated(&own.disk) {
            Ok(opened) => opened,
            Err(error) => {
                own.start_at = Some(self.now + RESTART_MS);
                self.note(|| format!("agent of {machine} cannot start: {error}"));
                return;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let base = runtime.block_on(async { Instant::now() });
        let wire = self.shared.connect(own.up);
        let keys = keys();
        let identity = Arc::new(Identity {
            me: me(),
            pair: KeyPair::new_from_raw(KeyPairType::User, [7; 32]).unwrap(),
            instance: opened.instance,
            boot: clock::instance_id(),
            started: std::time::Instant::now(),
            time: FleetTime::default(),
        });
        let trusted = Trusted::open(keys.root.clone(), &keys.trust.clone().into(), opened.trust.as_deref()).unwrap();
        let (trusted, counters) = (Arc::new(trusted), Arc::new(Counters::default()));
        let state_dir = PathBuf::from("/nonexistent/steward-simulation");
        let whose = (keys.root.clone(), me());
        let narrowing = Narrowing::default();
        let gate = Gate::open(whose, &state_dir, None, Arc::clone(&trusted), Arc::clone(&counters), narrowing).unwrap();
        let keeper = keeper::Client::simulated(own.keeper.clone());
        let (at_stop, seat, interval) = (self.at_stop, format!("seat {}", own.seat), self.interval);
        let (number, cancel) = (wire.number, CancellationToken::new());
        let bus = Bus::simulated(Arc::new(wire), EDGE_API);
        let (own_journal, found, stop) = (journal.clone(), opened.clone(), cancel.clone());
        let task = runtime.spawn(async move {
            let left = Left::find(&own_journal, &found, &keeper, &trusted.current()).await?;
            let ground = Ground {
                identity,
                trusted,
                gate: Arc::new(gate),
                counters,
                journal: own_journal,
                opened: found,
                left,
                keeper,
                at_stop,
                seat,
                state_dir,
                interval,
                events: Vec::new(),
                budget: None,
                receive: Vec::new(),
                pace: crate::config::Link::Normal.pace(),
                complaints: None,
                give_back: || Ok(0),
                tokens: None,
                facts: None,
            };
            live(ground, async { Ok(bus) }, stop).await
        });
        own.run = Some(Running { runtime, task, cancel, number, writer, journal, base, born: self.now });
        self.note(|| {
            format!("agent of {machine} starts, floor {}, {} unsettled", opened.cursor.floor, opened.unsettled.len())
        });
        self.check_cursor(machine, &opened.cursor);
    }

    /// Floor and heads never pass an order that was not taken.
    fn check_cursor(&mut self, machine: usize, cursor: &journal::Cursor) {
        let net = self.shared.net();
        if cursor.epoch.as_deref() != Some(format!("{:032x}", net.epoch + 1).as_str()) {
            return;
        }
        let Some(run) = &self.machines[machine].run else { return };
        let mut lost = Vec::new();
        for stored in &net.commands.messages {
            let head = cursor.heads.iter().find(|(subject, _)| *subject == stored.subject).map_or(0, |(_, head)| *head);
            if stored.sequence > cursor.floor.max(head) {
                continue;
            }
            let issued = self.orders.iter().find(|issued| issued.packet.payload == stored.payload);
            let genuine = issued.filter(|issued| issued.packet.subject == stored.subject);
            if let Some(issued) = genuine
                && matches!(run.journal.find(&issued.order.id), Ok(None))
            {
                lost.push(format!("{} ({})", issued.order.id, stored.sequence));
            }
        }
        drop(net);
        if !lost.is_empty() {
            self.breach(format!("the cursor has passed what was not taken: {}", lost.join(", ")));
        }
    }

    // The course of time.

    pub(super) fn run_until(&mut self, until: i64) {
        while self.now < until {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                self.breach("it goes round in circles".into());
                self.now = until;
                return;
            }
            self.step(until);
        }
    }

    fn step(&mut self, until: i64) {
        let busy = self.shared.net().is_busy();
        let longest = if busy { 1 } else { STEP_MAX_MS };
        let mut end = until.min(self.now + longest);
        let arrival = self.shared.net().next_arrival();
        let starts = self.machines.iter().flat_map(|machine| [machine.start_at, machine.free_at]).flatten();
        let ends = self.lives.iter().filter(|(_, life)| life.ended.is_none()).map(|(_, life)| life.due);
        for due in starts.chain(ends).chain(arrival) {
            end = end.min(due.max(self.now + 1));
        }
        for machine in 0..self.machines.len() {
            end = self.let_run(machine, end).max(self.now);
        }
        self.now = end;
        self.shared.net().now = end;
        for own in &mut self.machines {
            let is_reachable = own.up && own.run.is_some();
            own.reachable = if is_reachable { own.reachable.or(Some(end)) } else { None };
        }
        let mut happened = self.shared.net().turn(&mut self.trace);
        for machine in 0..self.machines.len() {
            happened |= self.keeper_turn(machine, 64);
            if self.dice.chance(self.slow_disk) {
                happened |= self.journal_turn(machine);
            }
            self.look_after(machine);
        }
        self.programs();
        if happened {
            // What follows from it is to follow soon.
            self.wake.notify_one();
        }
    }

    /// Lets an agent run until `end`, or until it sends something; returns when that was.
    fn let_run(&mut self, machine: usize, end: i64) -> i64 {
        let own = &mut self.machines[machine];
        let Some(run) = &mut own.run else { return end };
        let (base, born, error) = (run.base, run.born, Arc::clone(&own.clock_error));
        let passed = move || i64::try_from(Instant::now().duration_since(base).as_millis()).unwrap_or(0);
        bus::simulate::set_now(Some(Box::new(move || super::at(born + passed() + error.load(Ordering::Relaxed)))));
        let target = base + Duration::from_millis(u64::try_from(end - born).unwrap_or(0));
        let wake = Arc::clone(&self.wake);
        let reached = run.runtime.block_on(async move {
            // Everybody who can run does so first.
            tokio::task::yield_now().await;
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(target) => {}
                () = wake.notified() => tokio::task::yield_now().await,
            }
            Instant::now()
        });
        born + i64::try_from(reached.duration_since(base).as_millis()).unwrap_or(0)
    }

    fn journal_turn(&mut self, machine: usize) -> bool {
        let limit = 1 + self.dice.below(8);
        let lazy = self.dice.chance(3);
        let Some(run) = &mut self.machines[machine].run else { return false };
        let count = run.writer.turn(limit, lazy);
        if count > 0 {
            self.trace.note(self.now, || format!("journal of {machine}: {count} requests"));
        }
        count > 0
    }

    fn keeper_turn(&mut self, machine: usize, limit: usize) -> bool {
        let wishes = self.machines[machine].keeper.turn(limit);
        for wish in &wishes {
            match *wish {
                Wish::Begun(id, timeout) => self.begun(machine, id, timeout),
                Wish::End(id) => {
                    let soon = self.now + self.dice.below(2_000) as i64;
                    self.note(|| format!("{id} is to end"));
                    if let Some(life) = self.life(machine, id)
                        && life.due > soon
                    {
                        (life.due, life.how) = (soon, End::Cancelled);
                    }
                }
                Wish::Gone(id) => self.lose(machine, id),
            }
        }
        !wishes.is_empty()
    }

    fn life(&mut self, machine: usize, id: Id) -> Option<&mut Life> {
        let wanted = OrderId::from_bytes(id.0);
        self.lives
            .iter_mut()
            .find(|(id, life)| *id == wanted && life.machine == machine && life.ended.is_none())
            .map(|(_, life)| life)
    }

    fn begun(&mut self, machine: usize, id: Id, timeout: Duration) {
        self.note(|| format!("{id} BEGINS on {machine}"));
        self.excuse_apart(machine, OrderId::from_bytes(id.0));
        let lasts = match self.dice.below(4) {
            0 => self.dice.below(3),
            1 | 2 => self.dice.below(3_000),
            _ => self.dice.below(60_000),
        } as i64;
        let limit = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
        let how = match self.dice.below(4) {
            _ if lasts > limit => End::TimedOut,
            0 => End::Exited { code: 1 },
            _ => End::Exited { code: 0 },
        };
        let prints = if self.dice.chance(40) { self.dice.below(4) } else { 0 };
        let due = self.now + lasts.min(limit);
        let life = Life { machine, begun: self.now, ended: None, lost: false, due, how, prints };
        self.lives.push((OrderId::from_bytes(id.0), life));
    }

    fn over(&mut self, machine: usize, id: Id, how: Option<End>) {
        let now = self.now;
        self.note(|| format!("{id} is over: {how:?}"));
        if let Some(life) = self.life(machine, id) {
            life.ended = Some((now, how));
        }
    }

    fn programs(&mut self) {
        for index in 0..self.lives.len() {
            let (order, life) = &mut self.lives[index];
            let (id, machine) = (Id(*order.as_bytes()), life.machine);
            if life.ended.is_some() {
                continue;
            }
            let keeper = &self.machines[machine].keeper;
            if life.prints > 0 && self.dice.chance(5) {
                life.prints -= 1;
                keeper.print(id, life.prints == 1, Bytes::from(vec![b'x'; 100]));
            }
            if life.due <= self.now {
                let how = life.how.clone();
                keeper.end(id, how.clone());
                self.over(machine, id, Some(how));
                self.wake.notify_one();
            }
        }
    }

    /// Starts an agent again that has ended, or is due.
    fn look_after(&mut self, machine: usize) {
        let own = &mut self.machines[machine];
        if own.free_at.is_some_and(|at| at <= self.now) {
            own.free_at = None;
            own.disk.set_full(false);
        }
        if own.start_at.is_some_and(|at| at <= self.now) {
            return self.start(machine);
        }
        if own.run.as_ref().is_some_and(|run| run.task.is_finished())
            && let Some(run) = own.run.take()
        {
            let ended = run.runtime.block_on(run.task);
            self.shared.net().close(run.number);
            let own = &mut self.machines[machine];
            own.keeper.cut();
            own.disk = own.disk.copied();
            own.start_at = Some(self.now + RESTART_MS);
            match ended {
                Ok(ended) => self.note(|| format!("agent of {machine} has ended: {ended:?}")),
                Err(error) => self.breach(format!("the agent of {machine} broke down: {error}")),
            }
        }
    }

    /// No more faults; everything is to come to an end by itself.
    fn settle(&mut self) {
        self.note(|| "peace".into());
        while self.machines.len() > 1 {
            // One of the two is switched off for good.
            let gone = self.dice.below(2);
            self.note(|| format!("machine {gone} is switched off for good"));
            self.kill(gone, true);
            self.machines.remove(gone);
            for (_, life) in &mut self.lives {
                if life.machine == gone {
                    life.machine = usize::MAX;
                } else if life.machine == 1 && gone == 0 {
                    life.machine = 0;
                }
            }
            self.excuse(None);
        }
        {
            let mut net = self.shared.net();
            net.weather = Weather::default();
            net.replies.full = false;
        }
        self.machines[0].disk.set_full(false);
        // What was lost live without a trace is found by the catch-up of a new link.
        self.set_link(0, false);
        self.run_until(self.now + 50);
        self.set_link(0, true);
        let deadline = self.now + SETTLE_MS;
        while self.now < deadline && !super::check::is_settled(self) {
            self.run_until(self.now + 1_000);
        }
        // Whatever would still be done twice is done now.
        self.run_until(self.now + 5_000);
        if let Some(run) = &self.machines[0].run {
            let unsettled = run.journal.unsettled().map(|entries| entries.len());
            self.note(|| format!("settled; unsettled in the journal: {unsettled:?}"));
        }
    }

    /// The orders by their ids.
    pub(super) fn by_id(&self) -> BTreeMap<OrderId, &Issued> {
        self.orders.iter().map(|issued| (issued.order.id, issued)).collect()
    }
}

fn packet(subject: String, bytes: Vec<u8>, seal: Option<&Seal>, id: Option<&str>) -> Packet {
    let mut headers = Vec::new();
    if let Some(seal) = seal {
        headers.push((sign::KEY_HEADER.to_owned(), seal.key.as_str().to_owned()));
        headers.push((sign::SIGNATURE_HEADER.to_owned(), seal.signature.clone()));
    }
    headers.extend(id.map(|id| ("Nats-Msg-Id".to_owned(), id.to_owned())));
    Packet { subject, reply: None, headers, payload: Bytes::from(bytes), status: None }
}
