//! One run: a system, clients that order, faults that break things, a wait until all is settled, and the verdict.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bus::kv;
use fleet::Fleet;
use message::{JobId, JobRecord, Order};
use serde::Serialize;
use tokio::time::sleep;

use crate::check::{Breach, Counts, Evidence, Seen, check};
use crate::clients::{Client, Ledger, ProgramClient};
use crate::faults::Faults;
use crate::memory::{Memory, Samples};
use crate::plan::{Plan, Settings, clock_jumps};
use crate::random::Random;
use crate::system::{KitError, LOOK_EVERY, Layout, System};
use crate::watch::{self, Watched};
use crate::witness;

/// Between two signs of life of an agent.
const LIFE_SIGN_INTERVAL: Duration = Duration::from_secs(15);
/// Within how many of them all must be settled after the last fault, beyond the orders' own time.
const INTERVALS_MAX: u32 = 2;
/// How much longer a run waits, to tell what is late from what is lost.
const LATE_MAX: Duration = Duration::from_secs(90);
/// Between two looks at the streams.
const READ_EVERY: Duration = Duration::from_millis(200);
/// Between two looks at the memory.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// Between two words on how far it is.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How many breaches are told in full; all are counted.
const BREACHES_TOLD_MAX: usize = 50;

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The run's settings.
    #[serde(flatten)]
    pub settings: Settings,
    /// What was counted; beyond the states, all of it should be 0.
    #[serde(flatten)]
    pub counts: Counts,
    /// How many faults of each kind there were.
    pub faults_by_kind: BTreeMap<String, u64>,
    /// How many jobs were stored but not wholly sent, since their client was killed or cut off.
    pub left_by_clients: usize,
    /// How many of these still lacked orders when all was mended, and were sent again by an operator.
    pub resumed: usize,
    /// How long it took to place all orders and break and mend all that was planned.
    pub placed_s: f64,
    /// Ended orders a second meanwhile.
    pub orders_per_s: f64,
    /// From the last mending to the last order's end.
    pub settled_s: f64,
    /// What it may take: two intervals of life signs, and the time of the orders that were open then.
    pub settled_limit_s: f64,
    /// Whether it took longer.
    pub late: bool,
    /// The mean of all agents over time.
    pub agent_memory: Memory,
    /// The station over time.
    pub station_memory: Memory,
    /// What could not be had here.
    pub left_out: Vec<String>,
    /// Why it is no good; empty when it is.
    pub breaches: Vec<Breach>,
    /// Where everything was kept, if it was.
    pub artefacts: Option<PathBuf>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.breaches.is_empty() && !self.late
    }
}

/// Runs.
///
/// # Errors
/// [`KitError`] when the run itself could not be finished; what is wrong with Steward stands in the report.
pub async fn run(
    program: &Path,
    settings: &Settings,
    keep: bool,
    say: &mut dyn FnMut(String),
) -> Result<Report, KitError> {
    let plan = Plan::draw(settings);
    let layout = Layout {
        nodes: settings.nodes,
        brokers: settings.brokers,
        clocks: plan.clocks.clone(),
        station_clock: plan.station_clock,
        client_clock: plan.client_clock,
    };
    let mut system = System::laid_out(program, &layout).await?;
    say(format!("{} nodes are online in {}", settings.nodes, system.home().display()));
    let ran = Box::pin(judged(&mut system, settings, &plan, say)).await;
    if keep || !ran.as_ref().is_ok_and(Report::is_good) {
        system.keep_files();
    }
    let home = system.home().to_owned();
    let mut ran = ran.map_err(|error| KitError::Wrong(format!("{error}; all files are in {}", home.display())))?;
    if keep || !ran.is_good() {
        let text = serde_json::to_string_pretty(&ran).unwrap_or_default();
        std::fs::write(home.join("report.json"), text).map_err(KitError::io("write the report"))?;
        ran.artefacts = Some(home);
    }
    Ok(ran)
}

async fn judged(
    system: &mut System,
    settings: &Settings,
    plan: &Plan,
    say: &mut dyn FnMut(String),
) -> Result<Report, KitError> {
    let write = |home: &Path, name: &str, text: String| {
        std::fs::write(home.join(name), text).map_err(KitError::io(format!("write {name}")))
    };
    write(system.home(), "plan.json", serde_json::to_string_pretty(plan).unwrap_or_default())?;
    let operator = system.operator().await?;
    let watched = RefCell::new(Watched::default());
    let samples = RefCell::new(Samples::default());
    let ledger = Ledger::new(settings, plan.orders());
    let of = |client: usize| plan.jobs.iter().filter(move |job| job.client == client).cloned();
    let clients: Vec<Client> = (0..settings.clients).map(|client| Client::new(of(client))).collect();
    let program = ProgramClient::new(of(settings.clients));
    let begun = Instant::now();
    let faults = Faults {
        system,
        ledger: &ledger,
        clients: &clients,
        program: &program,
        watched: &watched,
        operator: &operator,
        random: RefCell::new(Random::new(!settings.seed)),
        broken: RefCell::default(),
        counts: RefCell::default(),
        story: RefCell::default(),
        since: begun,
    };
    let all_clients = async {
        let each = clients.iter().map(|client| client.run(system, &ledger));
        futures::try_join!(futures::future::try_join_all(each), program.run(system, &ledger)).map(|_| ())
    };
    let work = async { futures::try_join!(all_clients, faults.run(&plan.faults)).map(|_| ()) };
    let mut told = Instant::now();
    let outcome = {
        let mut work = std::pin::pin!(work);
        let mut look_after = std::pin::pin!(faults.look_after());
        let mut watch = std::pin::pin!(watch(&watched, &operator, &ledger));
        let mut sample = std::pin::pin!(sample(&samples, system));
        let mut settling: Option<Settling> = None;
        loop {
            tokio::select! {
                done = &mut work, if settling.is_none() => {
                    done?;
                    mend(system);
                    faults.tell("all is mended".to_owned());
                    settling = Some(Settling::begin(&watched, begun, settings.resume));
                    say(format!("all is placed and mended after {:.0} s; {} orders are open",
                        begun.elapsed().as_secs_f64(), ledger.open.get()));
                }
                ended = &mut look_after => ended?,
                () = &mut watch => {}
                () = &mut sample => {}
                () = sleep(READ_EVERY) => {}
            }
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                say(format!(
                    "{:4.0} s: {} of {} orders begun, {} open",
                    begun.elapsed().as_secs_f64(),
                    ledger.begun(),
                    plan.orders(),
                    ledger.open.get()
                ));
            }
            if let Some(settling) = &mut settling
                && settling.is_over(&watched, &operator).await?
            {
                break settling.outcome(&watched);
            }
        }
    };
    write(system.home(), "story.txt", faults.story.borrow().join("\n") + "\n")?;
    let faults_by_kind = faults.counts.borrow().clone();
    drop(faults);
    let evidence = gather(system, &operator, &ledger).await?;
    write(system.home(), "clients.json", serde_json::to_string(&evidence.clients).unwrap_or_default())?;
    write(system.home(), "orders.ndjson", lines(evidence.orders.iter().map(|order| (order.sequence, &order.body))))?;
    write(system.home(), "replies.ndjson", lines(evidence.replies.iter().map(|reply| (reply.sequence, &reply.body))))?;
    let mut verdict = check(&evidence);
    write(system.home(), "breaches.json", serde_json::to_string_pretty(&verdict.breaches).unwrap_or_default())?;
    verdict.breaches.truncate(BREACHES_TOLD_MAX);
    operator.close().await;
    let samples = samples.into_inner();
    Ok(Report {
        settings: settings.clone(),
        counts: verdict.counts,
        faults_by_kind,
        left_by_clients: evidence.clients.iter().filter(|job| job.seen == Seen::Unknown).count(),
        resumed: outcome.resumed,
        placed_s: round(outcome.placed),
        orders_per_s: outcome.orders_per_s.round(),
        settled_s: round(outcome.settled),
        settled_limit_s: round(outcome.limit),
        late: outcome.settled > outcome.limit,
        agent_memory: samples.agents(),
        station_memory: samples.station(),
        left_out: system.left_out.clone(),
        breaches: verdict.breaches,
        artefacts: None,
    })
}

fn round(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

fn lines<'a>(messages: impl Iterator<Item = (u64, &'a bytes::Bytes)>) -> String {
    messages.map(|(sequence, body)| format!("{sequence}\t{}\n", String::from_utf8_lossy(body))).collect()
}

/// Reads the streams on and on.
async fn watch(watched: &RefCell<Watched>, operator: &Fleet, ledger: &Ledger) {
    loop {
        let from = watched.borrow().next();
        // A broker that is down just now is read later; what came before it went is taken.
        let (batch, _) = watch::read(operator.bus(), from).await;
        watched.borrow_mut().take(batch);
        ledger.open.set(watched.borrow().open());
        sleep(READ_EVERY).await;
    }
}

async fn sample(samples: &RefCell<Samples>, system: &System) {
    loop {
        samples.borrow_mut().take(system);
        sleep(SAMPLE_EVERY).await;
    }
}

/// Makes sure that nothing is broken any more.
fn mend(system: &System) {
    for (index, agent) in system.agents.iter().enumerate() {
        agent.link.set(crate::link::Condition::Open);
        system.agent(index).thaw();
    }
    system.client_link.set(crate::link::Condition::Open);
    for index in 0..system.brokers() {
        system.signal_nats_server(index, nix::sys::signal::Signal::SIGCONT);
    }
    system.station().thaw();
}

struct Settled {
    placed: Duration,
    settled: Duration,
    limit: Duration,
    orders_per_s: f64,
    resumed: usize,
}

/// The wait for the end of all orders.
struct Settling {
    mended: Instant,
    placed: Duration,
    limit: Duration,
    orders_per_s: f64,
    resumes: bool,
    resumed: Option<usize>,
}

impl Settling {
    fn begin(watched: &RefCell<Watched>, begun: Instant, resumes: bool) -> Self {
        let placed = begun.elapsed();
        let watched = watched.borrow();
        // Counts far below 2^52 are exact.
        #[allow(clippy::cast_precision_loss)]
        let (ended, open) = (watched.ended() as f64, watched.open() as f64);
        let orders_per_s = ended / placed.as_secs_f64().max(0.1);
        let machine = Duration::from_secs_f64((open / orders_per_s.max(1.0)).min(3600.0));
        let limit = LIFE_SIGN_INTERVAL * INTERVALS_MAX + watched.own_time() + machine;
        Self { mended: Instant::now(), placed, limit, orders_per_s, resumes, resumed: None }
    }

    /// Whether all orders have ended, or there is no hope any more.
    async fn is_over(&mut self, watched: &RefCell<Watched>, operator: &Fleet) -> Result<bool, KitError> {
        if self.mended.elapsed() > self.limit + LATE_MAX {
            return Ok(true);
        }
        let open = watched.borrow().open();
        let known = watched.borrow().known();
        if known == 0 || open > 0 {
            return Ok(false);
        }
        // What killed clients have left is sent by an operator now, and has to be settled as well.
        let unsent = unsent(watched, operator).await?;
        if self.resumed.is_some() {
            // What was sent is not yet read: nothing is known of it, and so nothing seems to be open.
            return Ok(unsent.is_empty() && watched.borrow().open() == 0);
        }
        if !self.resumes && !unsent.is_empty() {
            // Somebody else has to, in time.
            return Ok(self.mended.elapsed() > self.limit);
        }
        for job in &unsent {
            operator.send_again(job).await?;
        }
        self.resumed = Some(unsent.len());
        sleep(LOOK_EVERY).await;
        Ok(false)
    }

    fn outcome(&self, watched: &RefCell<Watched>) -> Settled {
        let open = watched.borrow().open();
        let last = watched.borrow().last_end();
        let settled = match last {
            Some(last) if open == 0 => last.saturating_duration_since(self.mended),
            _ => self.mended.elapsed(),
        };
        Settled {
            placed: self.placed,
            settled,
            limit: self.limit,
            orders_per_s: self.orders_per_s,
            resumed: self.resumed.unwrap_or(0),
        }
    }
}

/// The stored job records, and for how many nodes each is.
async fn records(operator: &Fleet) -> Result<BTreeMap<JobId, u32>, KitError> {
    let (values, _) = operator.bus().kv_all(kv::JOBS, "*").await?;
    let read = |value: &bus::Message| serde_json::from_slice::<JobRecord>(&value.payload).ok();
    Ok(values.iter().filter_map(read).map(|record| (record.job, record.targets)).collect())
}

/// The jobs that are stored, and of which orders are missing.
async fn unsent(watched: &RefCell<Watched>, operator: &Fleet) -> Result<Vec<JobId>, KitError> {
    let mut stored = BTreeMap::<JobId, std::collections::BTreeSet<String>>::new();
    let (orders, _) = watched.borrow().evidence();
    for order in orders.iter().filter_map(|order| Order::parse(&order.body).ok()) {
        stored.entry(order.job).or_default().insert(order.to.name.to_string());
    }
    let wanting = |(job, targets): (JobId, u32)| {
        let found = stored.get(&job).map_or(0, std::collections::BTreeSet::len);
        (u32::try_from(found).unwrap_or(u32::MAX) < targets).then_some(job)
    };
    Ok(records(operator).await?.into_iter().filter_map(wanting).collect())
}

async fn gather(system: &System, operator: &Fleet, ledger: &Ledger) -> Result<Evidence, KitError> {
    // Everything once more from the beginning, so that nothing depends on what was read amid faults.
    let mut all = Watched::default();
    let (batch, ended) = watch::read(operator.bus(), all.next()).await;
    ended?;
    all.take(batch);
    let (orders, replies) = all.evidence();
    let jumping =
        system.agents.iter().enumerate().filter(|(index, agent)| clock_jumps(*index) && agent.clock.is_some());
    let jumping = jumping.map(|(_, agent)| agent.name.clone());
    Ok(Evidence {
        clients: ledger.jobs(),
        records: records(operator).await?,
        orders,
        replies,
        jumping: jumping.collect(),
        witness: witness::read(&system.witness_dir()).map_err(KitError::io("read the witnesses"))?,
    })
}
