//! The agent's table of contents: open, recover, connect, claim, take in, report, and see all of it end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bus::following::Pace;
use bus::{Bus, Credentials, clock};
use journal::{Entry, Journal, JournalError, Opened, Write};
use message::{Addressee, Complaint, InstanceId, PublicKey, State, Trust};
use receive::Receive;
use tokio::sync::mpsc::Receiver;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::audit::{self, Audit};
use crate::begin::Beginner;
use crate::changes::Changes;
use crate::config::{Config, EventSource, Link};
use crate::counters::Counters;
use crate::facts;
use crate::fleettime::FleetTime;
use crate::halt::Teller;
use crate::intake::{Held, Intake, PLACES, left_waiting};
use crate::method::keeper_id;
use crate::options::{AgentError, AtStop, Options};
use crate::outbox::Outbox;
use crate::past::{HeardFloor, Past};
use crate::policy::{Gate, Narrowing};
use crate::presence::Presence;
use crate::process::{Processes, Task};
use crate::receiving::{self, Told};
use crate::renewal::Tokens;
use crate::rest::{self, GiveBack, Rest};
use crate::source::{self, Keep, Source};
use crate::trust::Trusted;
use crate::twin;

/// How long commands may take to end when the agent is stopped.
const STOP_LIMIT: Duration = Duration::from_secs(8);
/// How long what is on its way may take when the agent is stopped.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
/// Between two prunings of the journal.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Which task has ended, and how.
type Ended = (&'static str, Result<(), AgentError>);

/// Who this agent is.
pub(crate) struct Identity {
    /// Name and key: what orders are addressed to.
    pub(crate) me: Addressee,
    /// The key that replies are signed with.
    pub(crate) pair: nkeys::KeyPair,
    /// The journal.
    pub(crate) instance: InstanceId,
    /// The present run.
    pub(crate) boot: InstanceId,
    pub(crate) started: Instant,
    /// The broker's clock, beside this machine's.
    pub(crate) time: FleetTime,
}

/// Runs an agent until it is cancelled or cannot go on. `complaints` is what this program warns of, for the fleet's error log.
///
/// # Errors
/// [`AgentError`] when it cannot start, when its name is taken, or when one of its tasks breaks down.
pub async fn run(
    options: Options,
    complaints: Option<Receiver<Complaint>>,
    cancel: CancellationToken,
) -> Result<(), AgentError> {
    let config = load_config(&options)?;
    let complaints = complaints.filter(|_| config.error_log.unwrap_or(true));
    let credentials = Credentials::parse(&options.credentials, "the enrolment")?;
    let pair = credentials.pair().clone();
    let me = Addressee { name: options.name.clone(), key: PublicKey::of(&pair) };
    let boot = clock::instance_id();
    let interval = config.life_sign.or(config.link.map(Link::life_sign)).unwrap_or(options.life_sign_interval);
    let link = config.link.unwrap_or(Link::Normal);
    let has_journal = options.state_dir.join(journal::FILE).exists();
    let seat = has_journal.then(|| twin::seat(&options.state_dir));
    let beginner = Beginner { me: &me, pair: &pair, boot, interval, seat, dir: &options.state_dir };
    let reach = async || connect(&options, credentials.clone(), link).await.ok();
    let full = |error: &JournalError| *error == JournalError::Full;
    let open = beginner.until(async || Journal::open(&options.state_dir), full, reach, &cancel).await?;
    let Some((journal, opened)) = open else { return Ok(()) };
    let enrolment = |reason: String| AgentError::Enrolment { name: options.name.clone(), reason };
    let trusted = Trusted::open(options.root.clone(), &options.trust, opened.trust.as_deref()).map_err(enrolment)?;
    let trusted = Arc::new(trusted);
    let tokens = Tokens::open(&options.state_dir, me.clone(), credentials.clone(), Arc::clone(&trusted));
    let counters = Arc::new(Counters::default());
    let gate = Gate::open(
        (options.root.clone(), me.clone()),
        &options.state_dir,
        options.policy.as_ref(),
        Arc::clone(&trusted),
        Arc::clone(&counters),
        Narrowing::of(&config),
    );
    let gate = Arc::new(gate.map_err(enrolment)?);
    let keeper = keeper_of(&options)?;
    // A keeper may be stopped, or its machine too busy: what it holds must be known before anything is judged.
    let passes = |error: &AgentError| matches!(error, AgentError::Keeper(_) | AgentError::Journal(JournalError::Full));
    let left = beginner
        .until(async || Left::find(&journal, &opened, &keeper, &trusted.current()).await, passes, reach, &cancel)
        .await?;
    let Some(left) = left else { return Ok(()) };
    let identity = Arc::new(Identity {
        me: me.clone(),
        pair: pair.clone(),
        instance: opened.instance,
        boot,
        started: Instant::now(),
        time: FleetTime::default(),
    });
    let ground = Ground {
        identity,
        trusted,
        gate,
        counters,
        journal,
        opened,
        left,
        keeper,
        at_stop: options.at_stop,
        seat: twin::seat(&options.state_dir),
        state_dir: options.state_dir.clone(),
        interval,
        events: config.event,
        budget: config.budget.or(link.budget()),
        receive: config.receive,
        pace: link.pace(),
        complaints: complaints.map(|complaints| (complaints, link.complaints())),
        give_back: rest::give_back,
        tokens: Some(tokens),
        facts: Some((link.facts(), config.run_as)),
    };
    Box::pin(live(ground, connect(&options, credentials, link), cancel)).await
}

/// What an agent stands on: all that it finds when it starts.
pub(crate) struct Ground {
    pub(crate) identity: Arc<Identity>,
    pub(crate) trusted: Arc<Trusted>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) journal: Journal,
    pub(crate) opened: Opened,
    pub(crate) left: Left,
    pub(crate) keeper: keeper::Client,
    pub(crate) at_stop: AtStop,
    pub(crate) seat: String,
    pub(crate) state_dir: PathBuf,
    /// Between two life signs.
    pub(crate) interval: Duration,
    pub(crate) events: Vec<EventSource>,
    /// So many bytes of them may leave in an hour.
    pub(crate) budget: Option<u64>,
    /// What it takes of what it is told, and how often it asks for that.
    pub(crate) receive: Vec<Receive>,
    pub(crate) pace: Pace,
    /// What this program complains of itself, and how far apart such are told when there are too many.
    pub(crate) complaints: Option<(Receiver<Complaint>, Duration)>,
    /// What an agent does with its memory when it has nothing to do.
    pub(crate) give_back: GiveBack,
    /// What renews its token; `None` where nobody asks for one.
    pub(crate) tokens: Option<Tokens>,
    /// How often the unit looks at its system, and as whom it asks `facts.d`; if facts are told at all.
    pub(crate) facts: Option<(Duration, Option<String>)>,
}

/// Runs an agent that has all it needs but the link.
pub(crate) async fn live(
    ground: Ground,
    connect: impl Future<Output = Result<Bus, AgentError>>,
    cancel: CancellationToken,
) -> Result<(), AgentError> {
    let Ground {
        identity,
        trusted,
        gate,
        counters,
        journal,
        opened,
        left,
        keeper,
        at_stop,
        seat,
        state_dir,
        interval,
        events,
        budget,
        receive,
        pace,
        complaints,
        give_back,
        tokens,
        facts,
    } = ground;
    let Left { held, interrupted } = left;
    let bus = connect.await?;
    let outbox = Outbox::new(bus.clone(), journal.clone(), Arc::clone(&identity), Arc::clone(&counters));
    let (degraded, degraded_seen) = watch::channel(None);
    let cloned = Teller::default();
    let cloned_seen = cloned.hear();
    let doubt = Teller::default();
    let audit = Audit::new(journal.clone(), Arc::clone(&identity), &opened);
    let processes = Processes::new(
        journal.clone(),
        Arc::clone(&outbox),
        Arc::clone(&identity),
        Arc::clone(&counters),
        state_dir.join("methods.d"),
        (Arc::clone(&gate), Arc::clone(&audit), keeper, at_stop),
        (degraded.clone(), cloned_seen.clone(), doubt.hear()),
    );
    tracing::info!(
        node = %identity.me.name, key = %identity.me.key, instance = %identity.instance,
        waiting = opened.unsettled.len(), interrupted, held = held.len(), "the agent starts"
    );

    let stop = CancellationToken::new();
    let mut tasks: JoinSet<Ended> = JoinSet::new();
    // Which store the journal's own floor belongs to is not known yet: until then, what that store has heard is told.
    let floor = Arc::new(AtomicU64::new(0));
    let [revision, others] = [0; 2].map(|zero| Arc::new(AtomicU64::new(zero)));
    let heard = Arc::new(HeardFloor::default());
    let places = Arc::new(Semaphore::new(PLACES));
    let mut presence = Presence {
        bus: bus.clone(),
        identity: Arc::clone(&identity),
        counters: Arc::clone(&counters),
        processes: Arc::clone(&processes),
        degraded: degraded_seen,
        places: Arc::clone(&places),
        journal: journal.clone(),
        outbox: Arc::clone(&outbox),
        policy: gate.complaint(),
        floor: Arc::clone(&floor),
        interval,
        seat,
        dir: state_dir.clone(),
        cloned,
        twin_heard: None,
        revision: Arc::clone(&revision),
        others: Arc::clone(&others),
        heard: Arc::clone(&heard),
        rest: Rest::new(give_back),
        changes: Changes::default(),
        found: None,
        rtt_ms: None,
    };
    start_default_processes(&processes);
    presence.claim(&cancel).await?;
    if cancel.is_cancelled() {
        return Ok(());
    }
    // Shared, since the last word is spoken when the task that speaks has ended.
    let presence = Arc::new(tokio::sync::Mutex::new(presence));
    let adopted = take_on(&processes, &places, &opened.unsettled, held).await;
    // Before any of them can be found to have ended: by whom it was cancelled belongs to how it ended.
    cancel_on(&processes, &journal, &opened.unsettled, &trusted.current()).await?;
    for Held { method, domain, task } in adopted {
        processes.dispatch(&method, &domain, task);
    }
    let resumed = resume(&processes, &places, &opened.unsettled);

    let (watermark_saved, watermark_seen) = watch::channel(opened.cursor.watermark);
    let keep = Keep::new(journal.clone(), identity.me.name.clone(), opened.event_row, budget);
    for event in events {
        let source = Source::new(&event, Arc::clone(&keep));
        processes.add_source(source.status());
        let stop = stop.clone();
        tasks.spawn(async move {
            source.run(event.kind, stop.clone()).await;
            // A source that fails says so in `ps`; the others go on.
            stop.cancelled().await;
            ("events", Ok(()))
        });
    }
    if let Some((complaints, interval)) = complaints
        && let Ok(source) = Source::of_complaints(Arc::clone(&keep))
    {
        processes.add_source(source.status());
        let stop = stop.clone();
        tasks.spawn(async move {
            source::complain::run(source, complaints, interval, stop.clone()).await;
            stop.cancelled().await;
            ("error log", Ok(()))
        });
    }
    {
        let (bus, stop) = (bus.clone(), stop.clone());
        let who = (Arc::clone(&identity), Arc::clone(&gate));
        tasks.spawn(async move {
            source::publish(bus, keep, who, budget, stop).await;
            ("publish events", Ok(()))
        });
    }
    if !receive.is_empty() {
        let told = Told::new(&identity.me, &receive, pace);
        let receiving = receiving::start(bus.clone(), told, receive, Arc::clone(&trusted), &state_dir, &stop);
        for status in receiving.statuses {
            processes.add_source(status);
        }
        for task in receiving.tasks {
            let stop = stop.clone();
            tasks.spawn(async move {
                task.await;
                stop.cancelled().await;
                ("receive events", Ok(()))
            });
        }
    }
    {
        let (outbox, stop, halts) = (Arc::clone(&outbox), stop.clone(), (cloned_seen.clone(), doubt.hear()));
        tasks.spawn(async move {
            outbox.run(stop, halts).await;
            ("outbox", Ok(()))
        });
    }
    {
        let (journal, stop) = (journal.clone(), stop.clone());
        tasks.spawn(async move {
            prune(&journal, &watermark_seen, stop).await;
            ("prune", Ok(()))
        });
    }
    {
        let heard =
            audit::Heard { counters: Arc::clone(&counters), trusted: Arc::clone(&trusted), gate: Arc::clone(&gate) };
        let (audit, bus, stop, cloned) = (Arc::clone(&audit), bus.clone(), stop.clone(), cloned_seen.clone());
        tasks.spawn(async move {
            audit.run(bus, heard, stop, cloned).await;
            ("audit", Ok(()))
        });
    }
    let intake = Intake {
        bus: bus.clone(),
        journal: journal.clone(),
        identity: Arc::clone(&identity),
        trusted,
        gate: Arc::clone(&gate),
        outbox: Arc::clone(&outbox),
        processes: Arc::clone(&processes),
        counters: Arc::clone(&counters),
        degraded,
        places,
        floor: Arc::clone(&floor),
        chain: Intake::chain_of(&opened.cursor),
        heads: std::collections::BTreeMap::new(),
        saved: tokio::time::Instant::now(),
        watermark_saved,
        noted: std::collections::BTreeSet::new(),
        epoch: opened.cursor.epoch.clone(),
        watermark: opened.cursor.watermark,
        cloned: cloned_seen,
        past: Past::new(doubt, revision, others, heard),
        held: Some(resumed),
    };
    {
        let stop = stop.clone();
        tasks.spawn(async move { ("intake", intake.run(stop).await.map_err(AgentError::Bus)) });
    }
    {
        let (gate, bus, stop) = (Arc::clone(&gate), bus.clone(), stop.clone());
        tasks.spawn(async move { ("policy", gate.watch(&bus, stop).await.map_err(AgentError::Bus)) });
    }
    if let Some(tokens) = tokens {
        let (bus, stop) = (bus.clone(), stop.clone());
        tasks.spawn(async move { ("tokens", tokens.watch(&bus, stop).await.map_err(AgentError::Bus)) });
    }
    {
        let (processes, stop) = (Arc::clone(&processes), stop.clone());
        tasks.spawn(async move {
            processes.watch_parked(stop).await;
            ("approvals", Ok(()))
        });
    }
    if let Some((interval, run_as)) = facts {
        let teller = facts::Teller { bus: bus.clone(), identity: Arc::clone(&identity), state_dir, interval, run_as };
        let stop = stop.clone();
        tasks.spawn(async move {
            teller.run(stop.clone()).await;
            ("facts", Ok(()))
        });
    }
    {
        let (stop, presence) = (stop.clone(), Arc::clone(&presence));
        tasks.spawn(async move {
            presence.lock().await.run(stop).await;
            ("life signs", Ok(()))
        });
    }

    let ended = tokio::select! {
        biased;
        () = cancel.cancelled() => Ok(()),
        ended = tasks.join_next() => why(ended),
    };
    stop.cancel();
    processes.stop(STOP_LIMIT).await;
    outbox.drain(DRAIN_LIMIT).await;
    while tasks.join_next().await.is_some() {}
    presence.lock().await.goodbye().await;
    bus.close().await;
    ended
}

/// Why a task has ended before it was told to.
fn why(ended: Option<Result<Ended, tokio::task::JoinError>>) -> Result<(), AgentError> {
    match ended {
        Some(Ok((_, Err(error)))) => Err(error),
        Some(Ok((task, Ok(())))) => Err(AgentError::Task { task, reason: "it ended by itself".into() }),
        Some(Err(error)) => Err(AgentError::Task { task: "unknown", reason: error.to_string() }),
        None => Ok(()),
    }
}

fn load_config(options: &Options) -> Result<Config, AgentError> {
    let default = options.state_dir.join("agent.toml");
    let config = match &options.config_file {
        Some(path) => Config::load(path)?,
        None if default.exists() => Config::load(&default)?,
        None => Config::default(),
    };
    match &config.name {
        Some(name) if *name != options.name => Err(AgentError::Enrolment {
            name: options.name.clone(),
            reason: format!("the configuration is for a node called {name}"),
        }),
        _ => Ok(config),
    }
}

async fn connect(options: &Options, credentials: Credentials, link: Link) -> Result<Bus, AgentError> {
    let mut connect = bus::node::options(&options.name, options.server.clone(), options.ca.clone(), credentials);
    connect.ping_interval = link.ping();
    Ok(Bus::connect(connect).await?)
}

/// The way to the keeper of this agent's programs.
fn keeper_of(options: &Options) -> Result<keeper::Client, AgentError> {
    let task = |error: std::io::Error| AgentError::Task { task: "keeper", reason: error.to_string() };
    let state_dir = std::path::absolute(&options.state_dir).map_err(task)?;
    let mut launch = options.keeper.clone();
    launch.args.extend(["--state".into(), state_dir.clone().into_os_string()]);
    Ok(keeper::Client::new(state_dir, launch))
}

/// What an earlier run of the agent left running.
pub(crate) struct Left {
    /// What the keeper holds.
    pub(crate) held: BTreeSet<keeper::Id>,
    /// How many commands nobody holds.
    pub(crate) interrupted: usize,
}

impl Left {
    /// Finds out. What ran when the last run ended and is not held by the keeper was interrupted: it is not run again, and that
    /// is journaled. A cancel is: to want the end of something twice does no harm. May be tried again when it fails.
    ///
    /// # Errors
    /// [`AgentError::Keeper`], [`AgentError::Journal`].
    pub(crate) async fn find(
        journal: &Journal,
        opened: &Opened,
        keeper: &keeper::Client,
        trust: &Trust,
    ) -> Result<Self, AgentError> {
        let held: BTreeSet<keeper::Id> = keeper.held().await?.into_iter().collect();
        let (mut orphans, mut writes) = (Vec::new(), Vec::new());
        for entry in &opened.unsettled {
            if entry.history.state() == State::Running && !held.contains(&keeper_id(&entry.id)) {
                if let Some((job, ..)) = left_waiting(entry, trust)
                    && journal.find_job(&job).await?.is_some()
                {
                    continue;
                }
                let mut entry = entry.clone();
                if entry.history.push(State::Interrupted, clock::now()).is_ok() {
                    entry.reason = Some(
                        "the agent and the keeper of its programs went down while it ran; it was not run again".into(),
                    );
                    entry.body = None;
                    orphans.push(keeper_id(&entry.id));
                    writes.push(Write::Entry(Box::new(entry)));
                }
            }
        }
        let interrupted = writes.len();
        if interrupted > 0 {
            let ended = keeper::end_orphans(orphans).await;
            tracing::warn!(interrupted, ended, "commands were interrupted: what was left of them is ended");
            journal.commit(writes).await?;
        }
        Ok(Self { held, interrupted })
    }
}

/// What the keeper holds is to go on, each in the process of its subject, before what waits there.
async fn take_on(
    processes: &Arc<Processes>,
    places: &Arc<Semaphore>,
    unsettled: &[Entry],
    mut held: BTreeSet<keeper::Id>,
) -> Vec<Held> {
    let mut adopted = Vec::new();
    for entry in unsettled.iter().filter(|entry| entry.history.state() == State::Running) {
        if !held.remove(&keeper_id(&entry.id)) {
            continue;
        }
        let place = Arc::clone(places).try_acquire_owned().ok();
        match processes.claim(&entry.method, &entry.domain) {
            Ok(_) => {
                tracing::info!(order = %entry.id, "a command that went on meanwhile is adopted");
                processes.adopt(entry.id);
                processes.in_hand().add(entry);
                let task = Task { id: entry.id, begun: Some(Box::new(entry.clone())), place };
                adopted.push(Held { method: entry.method.clone(), domain: entry.domain.clone(), task });
            }
            Err(reason) => tracing::error!(order = %entry.id, %reason, "a running order cannot be adopted"),
        }
    }
    // How they ended is in the journal already, or the journal has never heard of them.
    for id in held {
        processes.keeper().forget(id).await;
    }
    adopted
}

/// What was to be cancelled when the last run ended goes on being cancelled.
async fn cancel_on(
    processes: &Arc<Processes>,
    journal: &Journal,
    unsettled: &[Entry],
    trust: &Trust,
) -> Result<(), AgentError> {
    for entry in unsettled.iter().filter(|entry| entry.history.state() == State::Running) {
        let Some((job, by, limit)) = left_waiting(entry, trust) else { continue };
        // Without an answer it has been found to be interrupted.
        if let Some(target) = journal.find_job(&job).await? {
            processes.end_running(entry.clone(), job, target.id, &by, limit);
        }
    }
    Ok(())
}

/// What was delivered and has not begun runs next, in the order of the broker's stream: as soon as the first catch-up
/// has told what was cancelled or superseded meanwhile.
fn resume(processes: &Arc<Processes>, places: &Arc<Semaphore>, unsettled: &[Entry]) -> Vec<Held> {
    let mut held = Vec::new();
    for entry in unsettled.iter().filter(|entry| entry.history.state() == State::Delivered) {
        // There are no more of them than there were places.
        let place = Arc::clone(places).try_acquire_owned().ok();
        match processes.claim(&entry.method, &entry.domain) {
            Ok(_) => {
                processes.in_hand().add(entry);
                let task = Task { id: entry.id, begun: None, place };
                held.push(Held { method: entry.method.clone(), domain: entry.domain.clone(), task });
            }
            Err(reason) => tracing::error!(order = %entry.id, %reason, "a delivered order cannot be run"),
        }
    }
    held
}

/// The processes that every node has, so that they are seen before their first order.
fn start_default_processes(processes: &Arc<Processes>) {
    use message::method::{HELLO, HTTPGET, PROCESSES, SHELLCOMMAND};
    for method in [SHELLCOMMAND, HELLO, HTTPGET, PROCESSES] {
        let tokens = message::Token::method(method)
            .and_then(|method| message::Token::domain(message::order::DEFAULT_DOMAIN).map(|domain| (method, domain)));
        if let Ok((method, domain)) = tokens
            && processes.claim(&method, &domain).is_ok()
        {
            processes.unclaim(&method, &domain);
        }
    }
}

async fn prune(journal: &Journal, watermark: &watch::Receiver<message::Timestamp>, stop: CancellationToken) {
    loop {
        let watermark = *watermark.borrow();
        if let Err(error) = journal.prune(watermark).await {
            tracing::warn!(%error, "the journal could not be pruned");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PRUNE_INTERVAL) => {}
        }
    }
}
