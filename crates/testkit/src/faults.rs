//! Breaks things as planned, and mends them again.
//!
//! Each fault holds what it breaks for as long as it lasts: two faults never meet on the same thing, but up to
//! [`AT_ONCE_MAX`] on different ones.

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use bus::{Headers, clock};
use fleet::Fleet;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use crate::clients::{Client, Ledger, ProgramClient};
use crate::frames::Meddling;
use crate::link::Condition;
use crate::plan::{Fault, PlannedFault};
use crate::process::Process;
use crate::random::Random;
use crate::system::{KitError, LOOK_EVERY, System};
use crate::watch::Watched;

/// How many things are broken at once.
const AT_ONCE_MAX: usize = 3;
/// How long the broker may take to be started again by who looks after it.
const BROKER_BACK_MAX: Duration = Duration::from_secs(30);
/// How long to wait for a program to be killed.
const PROGRAM_MAX: Duration = Duration::from_secs(2);
/// How long storing a repeated order may take: the broker may be down meanwhile.
const REPUBLISH_MAX: Duration = Duration::from_secs(5);

/// What a fault breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Agent(usize),
    Broker,
    Station,
    Client(usize),
    Program,
    Clients,
    Orders,
    Clock(usize),
}

/// All that faults work on.
pub(crate) struct Faults<'a> {
    pub(crate) system: &'a System,
    pub(crate) ledger: &'a Ledger,
    pub(crate) clients: &'a [Client],
    pub(crate) program: &'a ProgramClient,
    pub(crate) watched: &'a RefCell<Watched>,
    pub(crate) operator: &'a Fleet,
    pub(crate) random: RefCell<Random>,
    /// What is broken now.
    pub(crate) broken: RefCell<HashSet<Part>>,
    /// How many of each kind there were.
    pub(crate) counts: RefCell<BTreeMap<String, u64>>,
    /// What happened when, for whoever looks into a failure.
    pub(crate) story: RefCell<Vec<String>>,
    pub(crate) since: Instant,
}

impl Faults<'_> {
    /// Goes through all of them.
    pub(crate) async fn run(&self, planned: &[PlannedFault]) -> Result<(), KitError> {
        let mut going = FuturesUnordered::new();
        for (index, fault) in planned.iter().enumerate() {
            self.ledger.horizon.set(fault.after_orders.max(self.ledger.begun()));
            let part = self.part(fault.fault);
            while self.ledger.begun() < fault.after_orders
                || going.len() >= AT_ONCE_MAX
                || self.broken.borrow().contains(&part)
            {
                tokio::select! {
                    Some(ended) = going.next(), if !going.is_empty() => ended?,
                    () = sleep(LOOK_EVERY) => {}
                }
            }
            self.broken.borrow_mut().insert(part);
            self.tell(format!("fault {}: {:?} for {} ms", index + 1, fault.fault, fault.lasts.as_millis()));
            going.push(async move {
                let ended = Box::pin(self.apply(fault.fault, fault.lasts)).await;
                self.tell(format!("mended {}: {:?}", index + 1, fault.fault));
                self.broken.borrow_mut().remove(&part);
                ended
            });
        }
        self.ledger.horizon.set(usize::MAX);
        while let Some(ended) = going.next().await {
            ended?;
        }
        Ok(())
    }

    fn part(&self, fault: Fault) -> Part {
        match fault {
            Fault::KillAgent(node)
            | Fault::FreezeAgent(node)
            | Fault::CutLink(node)
            | Fault::StallLink(node)
            | Fault::HalfCutUp(node)
            | Fault::HalfCutDown(node)
            | Fault::SlowLink(node)
            | Fault::ReorderOrders(node)
            | Fault::DoubleOrders(node)
            | Fault::DropOrders(node) => Part::Agent(node),
            Fault::FillDisk => Part::Agent(self.system.agents.len() - 1),
            Fault::KillBroker(_) | Fault::KillBrokerKeeper(_) | Fault::FreezeBroker(_) => Part::Broker,
            Fault::KillStation | Fault::FreezeStation => Part::Station,
            Fault::KillClient(client) => Part::Client(client),
            Fault::KillProgram | Fault::FreezeProgram => Part::Program,
            Fault::CutClients => Part::Clients,
            Fault::Republish(_) => Part::Orders,
            Fault::SetClock(node, _) => Part::Clock(node),
        }
    }

    pub(crate) fn tell(&self, what: String) {
        self.story.borrow_mut().push(format!("{:8.3} {what}", self.since.elapsed().as_secs_f64()));
    }

    fn count(&self, name: &str) {
        *self.counts.borrow_mut().entry(name.to_owned()).or_default() += 1;
    }

    async fn apply(&self, fault: Fault, lasts: Duration) -> Result<(), KitError> {
        let system = self.system;
        let started = |part: &'static str| KitError::io(format!("start the {part} again"));
        match fault {
            Fault::KillAgent(node) => {
                self.count("kill_agent");
                system.agent(node).kill();
                sleep(lasts).await;
                system.agent(node).start().map_err(started("agent"))?;
            }
            Fault::FreezeAgent(node) => {
                self.count("freeze_agent");
                system.agent(node).freeze();
                sleep(lasts).await;
                system.agent(node).thaw();
            }
            Fault::KillBroker(index) => {
                self.count("kill_broker");
                let before = system.nats_server(index);
                system.signal_nats_server(index, Signal::SIGKILL);
                let back = async {
                    while system.nats_server(index).is_none_or(|now| Some(now) == before) {
                        sleep(LOOK_EVERY).await;
                    }
                };
                timeout(BROKER_BACK_MAX, back).await.map_err(|_| KitError::NotReady {
                    what: "the broker's return after a kill".into(),
                    within: BROKER_BACK_MAX,
                    logs: system.home().join("logs"),
                })?;
            }
            Fault::KillBrokerKeeper(index) => {
                self.count("kill_broker_keeper");
                system.broker(index).kill();
                sleep(lasts).await;
                system.broker(index).start().map_err(started("broker"))?;
            }
            Fault::FreezeBroker(index) => {
                self.count("freeze_broker");
                system.signal_nats_server(index, Signal::SIGSTOP);
                sleep(lasts).await;
                system.signal_nats_server(index, Signal::SIGCONT);
            }
            Fault::KillStation => {
                self.count("kill_station");
                system.station().kill();
                sleep(lasts).await;
                system.station().start().map_err(started("station"))?;
            }
            Fault::FreezeStation => {
                self.count("freeze_station");
                system.station().freeze();
                sleep(lasts).await;
                system.station().thaw();
            }
            Fault::KillClient(client) => {
                self.count("kill_client");
                self.clients[client % self.clients.len()].kill.notify_one();
                sleep(lasts).await;
            }
            Fault::KillProgram | Fault::FreezeProgram => self.hit_program(fault == Fault::KillProgram, lasts).await,
            Fault::Republish(orders) => self.republish(orders).await,
            Fault::FillDisk => self.fill_disk(lasts).await,
            Fault::SetClock(node, ahead_ms) => {
                if let Some(clock) = &system.agents[node].clock {
                    self.count("set_clock");
                    clock.set(ahead_ms).map_err(KitError::io("set a clock"))?;
                }
            }
            link => self.bend(link, lasts).await,
        }
        Ok(())
    }

    async fn bend(&self, fault: Fault, lasts: Duration) {
        let (name, node, condition) = match fault {
            Fault::CutLink(node) => ("cut_link", Some(node), Condition::Cut),
            Fault::StallLink(node) => ("stall_link", Some(node), Condition::Stalled),
            Fault::HalfCutUp(node) => ("half_cut_up", Some(node), Condition::UpStalled),
            Fault::HalfCutDown(node) => ("half_cut_down", Some(node), Condition::DownStalled),
            Fault::SlowLink(node) => {
                let slow = Condition::Slow { latency: Duration::from_millis(150), bytes_per_s: 64 * 1024 };
                ("slow_link", Some(node), slow)
            }
            Fault::ReorderOrders(node) => ("reorder_orders", Some(node), Condition::Meddled(Meddling::Reorder)),
            Fault::DoubleOrders(node) => ("double_orders", Some(node), Condition::Meddled(Meddling::Double)),
            Fault::DropOrders(node) => ("drop_orders", Some(node), Condition::Meddled(Meddling::Drop)),
            _ => ("cut_clients", None, Condition::Cut),
        };
        self.count(name);
        let link = node.map_or(&self.system.client_link, |node| &self.system.agents[node].link);
        link.set(condition);
        sleep(lasts).await;
        link.set(Condition::Open);
        if matches!(fault, Fault::DropOrders(_)) {
            link.bounce().await;
        }
    }

    async fn hit_program(&self, kill: bool, lasts: Duration) {
        let running = async {
            while self.program.running.borrow().is_none() {
                sleep(LOOK_EVERY / 5).await;
            }
        };
        if timeout(PROGRAM_MAX, running).await.is_err() {
            return self.count("no_program_to_hit");
        }
        if kill {
            self.count("kill_program");
            self.program.running.borrow_mut().take();
            return;
        }
        self.count("freeze_program");
        let each = |act: &dyn Fn(&Process)| self.program.running.borrow().iter().for_each(act);
        each(&|process| process.freeze());
        sleep(lasts).await;
        each(&|process| process.thaw());
    }

    async fn republish(&self, orders: u64) {
        for _ in 0..orders {
            let index = self.random.borrow_mut().below(usize::MAX);
            let Some(message) = self.watched.borrow().order(index) else { return };
            let Ok(seal) = message.seal() else { continue };
            let headers = Headers::from(clock::message_id()).sealed(&seal);
            let publish = self.operator.bus().publish(&message.subject, headers, message.payload);
            // Whether it is stored is not known when the broker is down just then: either way it is a legal fault.
            if let Ok(Ok(_)) = timeout(REPUBLISH_MAX, publish).await {
                self.count("republished_orders");
            }
        }
        self.count("republish");
    }

    async fn fill_disk(&self, lasts: Duration) {
        if self.system.fill_small_disk() {
            self.count("fill_disk");
            sleep(lasts).await;
            self.system.empty_small_disk();
        }
    }

    /// Looks after those that end by themselves, as a service manager would, and tells of it.
    pub(crate) async fn look_after(&self) -> Result<(), KitError> {
        loop {
            for (index, agent) in self.system.agents.iter().enumerate() {
                self.raise(Part::Agent(index), &agent.name, || self.system.agent(index))?;
            }
            self.raise(Part::Station, "the station", || self.system.station())?;
            for index in 0..self.system.brokers() {
                self.raise(Part::Broker, "the broker's keeper", || self.system.broker(index))?;
            }
            sleep(LOOK_EVERY * 4).await;
        }
    }

    /// Starts a process again that has ended by itself.
    fn raise<'a>(&self, part: Part, name: &str, process: impl Fn() -> RefMut<'a, Process>) -> Result<(), KitError> {
        // An end is told once: who asks while a fault has the part in hand would miss it.
        if self.broken.borrow().contains(&part) {
            return Ok(());
        }
        // Its process must not be held while it is started again.
        let ended = process().ended();
        if let Some(status) = ended {
            self.count("ended_by_itself");
            self.tell(format!("{name} ended by itself: {status}"));
            process().start().map_err(KitError::io(format!("start {name} again")))?;
        }
        Ok(())
    }
}
