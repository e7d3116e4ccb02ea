//! What a run will do: every job and every fault, drawn from the seed before anything is started.
//!
//! In flow the settings, out flow two lists. Pure: the same settings give the same plan everywhere. What cannot be
//! the same is where exactly a fault hits, since real processes run beside each other.

use std::time::Duration;

use serde::Serialize;

use crate::random::Random;

/// How many domains, hence subjects, each node is ordered on.
pub const DOMAINS: u64 = 4;

/// How many supersede keys are in use.
const SUPERSEDE_KEYS: u64 = 3;

/// How large a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// What everything is drawn from.
    pub seed: u64,
    /// How many orders: (job, node) pairs.
    pub orders: usize,
    /// How many nodes.
    pub nodes: usize,
    /// How many brokers: one, or three that keep three copies of everything.
    pub brokers: usize,
    /// How many faults.
    pub faults: usize,
    /// How many clients order at once, besides the one that starts a `steward run` for each job.
    pub clients: usize,
    /// Whether live orders are dropped on their way too. See [`Fault::DropOrders`].
    pub drops: bool,
    /// Whether an operator sends at the end what killed clients have left unsent. Without it, Steward has to do so by
    /// itself.
    pub resume: bool,
    /// Over what time to spread it all; `None`: as fast as it goes.
    pub lasts: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            orders: 2000,
            nodes: 5,
            brokers: 1,
            faults: 20,
            clients: 3,
            drops: false,
            resume: true,
            lasts: None,
        }
    }
}

/// What a command does between the two lines of its witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Nothing.
    Quick,
    /// Prints this many lines.
    Print(u64),
    /// Ends with this exit code.
    Fail(u8),
    /// Sleeps for so many milliseconds.
    Sleep(u64),
    /// Sleeps for much longer than it may.
    TooLong,
}

impl Work {
    /// How long the node's subject is taken by it, beyond starting it.
    pub const fn takes(self) -> Duration {
        match self {
            Self::Sleep(ms) => Duration::from_millis(ms),
            // It is ended by its time-out; ending a tree of programs takes a moment of grace.
            Self::TooLong => Duration::from_secs(4),
            Self::Quick | Self::Print(_) | Self::Fail(_) => Duration::ZERO,
        }
    }

    /// How long one execution may take.
    pub const fn timeout(self) -> Duration {
        if matches!(self, Self::TooLong) { Duration::from_secs(1) } else { Duration::from_secs(60) }
    }
}

/// Under which terms a job is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Under {
    /// None.
    Nothing,
    /// Only the newest that waits under the supersede key of this number is to run.
    Supersede(u64),
    /// Under an idempotency key of this number. Two jobs of the plan have each.
    Once(usize),
}

/// What its client does next about a job that it has ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// Nothing.
    Nothing,
    /// Cancels it after so long: before it begins, while it runs, or after its end, as it comes.
    Cancel(Duration),
    /// Retries it after so long, where it has ended otherwise than well.
    Retry(Duration),
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedJob {
    /// Which client orders it; the one past the last is the program `steward run`.
    pub client: usize,
    /// The number of its domain.
    pub domain: u64,
    /// For which nodes, by number.
    pub nodes: Vec<usize>,
    /// What is to be done.
    pub work: Work,
    /// How long a node may take to pick it up.
    pub expires: Duration,
    /// Under which terms.
    pub under: Under,
    /// What follows.
    pub then: Then,
    /// Its client gives up and is gone, as far as this job goes, after so long.
    pub abandoned: Option<Duration>,
    /// It is ordered a second time, by another client under the same idempotency key.
    pub again: bool,
}

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// kill -9 of an agent; it is started again.
    KillAgent(usize),
    /// SIGSTOP of an agent, then SIGCONT.
    FreezeAgent(usize),
    /// kill -9 of the `nats-server`; `steward broker` starts it again.
    KillBroker(usize),
    /// kill -9 of `steward broker`; it is started again.
    KillBrokerKeeper(usize),
    /// SIGSTOP of the `nats-server`, then SIGCONT.
    FreezeBroker(usize),
    /// kill -9 of the station; it is started again.
    KillStation,
    /// SIGSTOP of the station, then SIGCONT.
    FreezeStation,
    /// A client ends in the middle of what it does: its connection and all that it had under way are gone.
    KillClient(usize),
    /// kill -9 of a `steward run`.
    KillProgram,
    /// SIGSTOP of a `steward run`, then SIGCONT.
    FreezeProgram,
    /// All connections of an agent are reset, and new ones refused.
    CutLink(usize),
    /// Nothing passes between an agent and the broker, and nobody is told.
    StallLink(usize),
    /// Nothing passes from the agent to the broker; the other way goes on.
    HalfCutUp(usize),
    /// Nothing passes from the broker to the agent; the other way goes on.
    HalfCutDown(usize),
    /// The link has a long way and little room.
    SlowLink(usize),
    /// The clients' link to the broker is cut.
    CutClients,
    /// Live orders arrive at an agent in another order than they were sent.
    ReorderOrders(usize),
    /// Live orders arrive at an agent twice.
    DoubleOrders(usize),
    /// Every second live order to an agent is lost on its way, while its link stays up; then the link is cut once,
    /// since until then nobody need notice that the last one is missing.
    DropOrders(usize),
    /// Stored orders are published once more, word for word, under message ids of their own.
    Republish(u64),
    /// The disk of an agent's journal is full. Always the last node, which has a small one.
    FillDisk,
    /// The clock of a unit is set, and is so many milliseconds ahead from now on.
    SetClock(usize, i64),
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PlannedFault {
    /// It begins when so many orders have been placed.
    pub after_orders: usize,
    /// What breaks.
    pub fault: Fault,
    /// For how long.
    pub lasts: Duration,
}

/// All that a run will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The jobs, in the order in which each client takes its own.
    pub jobs: Vec<PlannedJob>,
    /// The faults, in the order in which they begin.
    pub faults: Vec<PlannedFault>,
    /// By how many milliseconds each node's clock is ahead at first.
    pub clocks: Vec<i64>,
    /// The same for the station.
    pub station_clock: i64,
    /// The same for the clients that are programs.
    pub client_clock: i64,
}

/// Whether a node's clock is set in the middle of a run. Every second one is wrong, every second one of these jumps.
pub const fn clock_jumps(node: usize) -> bool {
    node % 4 == 1
}

impl Plan {
    /// Draws it.
    pub fn draw(settings: &Settings) -> Self {
        let mut random = Random::new(settings.seed);
        let (jobs, faults) = (jobs(settings, &mut random), faults(settings, &mut random));
        let mut wrong = || wrong_clock(&mut random);
        let clocks = (0..settings.nodes).map(|node| if node % 2 == 1 { wrong() } else { 0 }).collect();
        Self { jobs, faults, clocks, station_clock: wrong(), client_clock: wrong() }
    }

    /// How many orders it holds.
    pub fn orders(&self) -> usize {
        self.jobs.iter().filter(|job| !job.again).map(|job| job.nodes.len()).sum()
    }
}

/// A day ahead, a day behind, or anything in between.
fn wrong_clock(random: &mut Random) -> i64 {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let ms = if random.below(2) == 0 { DAY_MS } else { random.between(1_000, DAY_MS) };
    let ms = i64::try_from(ms).unwrap_or(0);
    if random.below(2) == 0 { ms } else { -ms }
}

fn jobs(settings: &Settings, random: &mut Random) -> Vec<PlannedJob> {
    let mut jobs = Vec::new();
    let mut left = settings.orders;
    while left > 0 {
        let most = settings.nodes.min(left).max(1);
        let wanted = match random.weighted(&[50, 40, 10]) {
            0 => 1,
            1 => 1 + random.below(6),
            _ => most,
        }
        .clamp(1, most);
        let mut all: Vec<usize> = (0..settings.nodes).collect();
        let nodes = (0..wanted).map(|_| all.swap_remove(random.below(all.len()))).collect();
        let work = match random.weighted(&[60, 15, 10, 12, 2, 1]) {
            0 => Work::Quick,
            1 => Work::Print(random.between(1, 200)),
            2 => Work::Fail(u8::try_from(random.between(1, 100)).unwrap_or(1)),
            3 => Work::Sleep(random.between(20, 300)),
            4 => Work::Sleep(random.between(800, 3000)),
            _ => Work::TooLong,
        };
        // Some are in a hurry, and expire where a node is down or busy.
        let expires = if random.below(40) == 0 { Duration::from_secs(1) } else { Duration::from_secs(3600) };
        // One job in fifteen is ordered by a process of its own.
        let client = if random.below(15) == 0 { settings.clients } else { random.below(settings.clients) };
        let domain = random.between(0, DOMAINS - 1);
        let abandoned = (random.below(40) == 0).then(|| Duration::from_millis(random.between(0, 20)));
        let under = match random.weighted(&[85, 10, 5]) {
            0 => Under::Nothing,
            1 => Under::Supersede(random.between(1, SUPERSEDE_KEYS)),
            _ => Under::Once(jobs.len()),
        };
        let then = match random.weighted(&[86, 9, 5]) {
            0 => Then::Nothing,
            1 => Then::Cancel(Duration::from_millis(random.between(0, 600))),
            _ => Then::Retry(Duration::from_millis(random.between(200, 3000))),
        };
        let job = PlannedJob { client, domain, nodes, work, expires, under, then, abandoned, again: false };
        if let Under::Once(_) = under {
            // By a client over the library, since a program says its arguments in other words. One of the two is lost.
            let (one, other) = (random.below(settings.clients), random.below(settings.clients));
            let abandoned = Some(Duration::from_millis(random.between(0, 20)));
            jobs.push(PlannedJob { client: one, abandoned, ..job.clone() });
            jobs.push(PlannedJob { client: other, abandoned: None, then: Then::Nothing, again: true, ..job });
        } else {
            jobs.push(job);
        }
        left -= wanted;
    }
    jobs
}

fn faults(settings: &Settings, random: &mut Random) -> Vec<PlannedFault> {
    let mut starts: Vec<usize> = (0..settings.faults)
        // None in the first tenth, so that there is something to break, and none after the last order.
        .map(|_| settings.orders / 10 + random.below(settings.orders * 17 / 20))
        .collect();
    starts.sort_unstable();
    starts
        .into_iter()
        .map(|after_orders| {
            let node = random.below(settings.nodes);
            let broker = random.below(settings.brokers);
            // One with a clock that may jump, if there is one.
            let jumping = random.below(settings.nodes.div_ceil(4)) * 4 + 1;
            let (fault, low, high) = match random.weighted(&[
                16,
                8,
                6,
                2,
                4,
                3,
                2,
                4,
                2,
                2,
                10,
                6,
                4,
                4,
                5,
                2,
                6,
                6,
                if settings.drops { 6 } else { 0 },
                8,
                4,
                if settings.nodes > 1 { 6 } else { 0 },
            ]) {
                0 => (Fault::KillAgent(node), 0, 2000),
                1 => (Fault::FreezeAgent(node), 200, 4000),
                2 => (Fault::KillBroker(broker), 0, 0),
                3 => (Fault::KillBrokerKeeper(broker), 0, 1000),
                4 => (Fault::FreezeBroker(broker), 200, 3000),
                5 => (Fault::KillStation, 0, 1000),
                6 => (Fault::FreezeStation, 200, 3000),
                7 => (Fault::KillClient(random.below(settings.clients)), 0, 500),
                8 => (Fault::KillProgram, 0, 0),
                9 => (Fault::FreezeProgram, 200, 2000),
                10 => (Fault::CutLink(node), 0, 3000),
                11 => (Fault::StallLink(node), 200, 4000),
                12 => (Fault::HalfCutUp(node), 200, 4000),
                13 => (Fault::HalfCutDown(node), 200, 4000),
                14 => (Fault::SlowLink(node), 500, 4000),
                15 => (Fault::CutClients, 0, 1500),
                16 => (Fault::ReorderOrders(node), 500, 4000),
                17 => (Fault::DoubleOrders(node), 500, 4000),
                18 => (Fault::DropOrders(node), 500, 3000),
                19 => (Fault::Republish(random.between(1, 20)), 0, 0),
                20 => (Fault::FillDisk, 500, 4000),
                _ => (Fault::SetClock(if jumping < settings.nodes { jumping } else { 1 }, wrong_clock(random)), 0, 0),
            };
            PlannedFault { after_orders, fault, lasts: Duration::from_millis(random.between(low, high)) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_tells_the_whole_plan_and_another_seed_another_one() {
        let settings = Settings::default();
        let plan = Plan::draw(&settings);
        assert_eq!(plan, Plan::draw(&settings));
        assert_ne!(plan, Plan::draw(&Settings { seed: 2, ..settings }));
    }

    #[test]
    fn a_plan_holds_as_much_as_was_asked_for() {
        for seed in 0..50 {
            let settings = Settings { seed, orders: 300, faults: 40, nodes: 7, ..Settings::default() };
            let plan = Plan::draw(&settings);
            assert_eq!((plan.orders(), plan.faults.len()), (300, 40));
            for job in &plan.jobs {
                let distinct: std::collections::BTreeSet<_> = job.nodes.iter().collect();
                assert_eq!(distinct.len(), job.nodes.len(), "each node once");
                assert!(job.nodes.iter().all(|node| *node < 7) && job.client <= settings.clients);
            }
            assert!(plan.faults.is_sorted_by_key(|fault| fault.after_orders));
            assert!(!plan.faults.iter().any(|fault| matches!(fault.fault, Fault::DropOrders(_))));
            let jumps = |fault: &PlannedFault| matches!(fault.fault, Fault::SetClock(node, _) if !clock_jumps(node) || node >= 7);
            assert!(!plan.faults.iter().any(jumps), "only clocks that are said to jump do");
            let twins =
                |again| plan.jobs.iter().filter(move |job| matches!(job.under, Under::Once(_)) && job.again == again);
            assert_eq!(twins(true).count(), twins(false).count());
        }
    }
}
