//! `steward job`: what was ordered, and how it stands.

use std::collections::BTreeSet;
use std::time::Duration;

use bus::clock;
use clap::Subcommand;
use fleet::{ApprovePlan, CancelPlan, Fleet, Gather, JobView, PlacedJob, RETRIED, Terms};
use message::method::Cancelled;
use message::{NodeName, Pattern, Secrets, State};
use serde_json::json;
use tokio::time::Instant;

use super::bounded;
use super::run::{Waiting, place_and_wait, watch_stored};
use crate::args::{Format, Traits, duration};
use crate::exit::Exit;
use crate::render::job as text;
use crate::render::live::Live;
use crate::render::paint::tame;
use crate::secrets::SecretArgs;
use crate::session::Session;

/// See what was ordered, and how it stands.
///
/// A JOB is a job's id, the beginning of one that is unique, or `last`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steward job ls\n  steward job show last\n  steward job watch last\n  \
        steward job cancel last\n  steward job retry last")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List jobs, newest first
    #[command(after_help = "Examples:\n  steward job ls\n  steward job ls --limit 5 -o json")]
    Ls {
        /// How many at most
        #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Show how a job stands on each of its nodes, with their output
    #[command(after_help = "Examples:\n  steward job show last\n  steward job show last -o json")]
    Show {
        /// Its id, the beginning of it, or `last`
        job: String,
    },
    /// Show a job's output from its beginning, and go on until every node has answered
    ///
    /// Exit codes are those of `steward run`.
    #[command(after_help = "Examples:\n  steward job watch last\n  steward job watch last --wait 30s -o ndjson")]
    Watch {
        /// Its id, the beginning of it, or `last`
        job: String,
        /// How long to wait here [default: until every node has answered]
        #[arg(long, value_name = "DUR", value_parser = duration)]
        wait: Option<Duration>,
    },
    /// Take back what has not ended: what waits never begins, what runs is ended
    ///
    /// A node that is away is told as soon as it is back, before it runs what it missed. What had ended stays as it
    /// is. The cancel is a job of its own. Exit codes: 0 every node has answered; 4 at least one has not yet; 3 at
    /// least one could not end what runs; 5 the job is for no such node.
    #[command(after_help = "Examples:\n  steward job cancel last\n  steward job cancel last '*' --detach")]
    Cancel {
        /// Its id, the beginning of it, or `last`
        job: String,
        /// Which of its nodes: a name, a glob ('ship*'), or several of them with commas between [default: all]
        target: Option<String>,
        #[command(flatten)]
        traits: Traits,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Approve what the policy holds until several operators have signed it
    ///
    /// Shows what is approved. What is signed is each node's order, byte for byte; the node counts. Exit codes are those of
    /// `steward run`: 3 if a node does not count it, since the policy lets the one who approves not have it done, or it is the
    /// one who has ordered it.
    #[command(after_help = "Example:\n  steward job approve last")]
    Approve {
        /// Its id, the beginning of it, or `last`
        job: String,
        /// Which of its nodes: a name, a glob ('ship*'), or several of them with commas between [default: all]
        target: Option<String>,
        #[command(flatten)]
        traits: Traits,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Order it again for the nodes where it did not succeed
    ///
    /// As it was: the same method, arguments and limits, for the nodes that failed, timed out, were interrupted, let it
    /// expire, rejected it, or have not answered. Where they have not answered, the old order is cancelled first, so
    /// that nothing runs twice. Secrets have to be given again. Exit codes are those of `steward run`.
    #[command(
        after_help = "Examples:\n  steward job retry last\n  steward job retry last '*' --state failed,timed_out"
    )]
    Retry {
        /// Its id, the beginning of it, or `last`
        job: String,
        /// Which of its nodes: a name, a glob ('ship*'), or several of them with commas between [default: all]
        target: Option<String>,
        #[command(flatten)]
        traits: Traits,
        /// Only where it stands at one of these states
        #[arg(long, value_name = "STATE,…", value_delimiter = ',', value_parser = state)]
        state: Vec<State>,
        #[command(flatten)]
        waiting: Waiting,
        #[command(flatten)]
        secrets: SecretArgs,
    },
}

fn state(text: &str) -> Result<State, String> {
    State::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
        let known: Vec<&str> = State::ALL.iter().map(|state| state.as_str()).collect();
        format!("there is no state {text:?}; there are {}", known.join(", "))
    })
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let limit = session.global.timeout;
    match args.verb {
        Verb::Ls { limit: count } => bounded(limit, ls(session, count)).await,
        Verb::Show { job } => bounded(limit, show(session, &job)).await,
        Verb::Watch { job, wait } => Box::pin(watch(session, &job, wait.into_iter().chain(limit).min())).await,
        Verb::Cancel { job, target, traits, waiting } => {
            let waiting = bounded_by(limit, waiting);
            Box::pin(cancel(session, &job, (target.as_deref(), &traits), waiting)).await
        }
        Verb::Approve { job, target, traits, waiting } => {
            let waiting = bounded_by(limit, waiting);
            Box::pin(approve(session, &job, (target.as_deref(), &traits), waiting)).await
        }
        Verb::Retry { job, target, traits, state, waiting, secrets } => {
            let waiting = bounded_by(limit, waiting);
            let secrets = secrets.read()?;
            Box::pin(retry(session, &job, (target.as_deref(), &traits), state, waiting, secrets)).await
        }
    }
}

/// `--timeout` is how long the verb may take.
fn bounded_by(limit: Option<Duration>, waiting: Waiting) -> Waiting {
    let wait = if waiting.detach { None } else { waiting.wait.into_iter().chain(limit).min() };
    Waiting { wait, ..waiting }
}

/// Names and globs, and what the nodes have to be like.
type Which<'a> = (Option<&'a str>, &'a Traits);

/// The names and globs in a selection; what else it says is looked up, and becomes names.
async fn patterns(fleet: &Fleet, selection: fleet::Selection) -> anyhow::Result<Vec<Pattern>> {
    if selection.labels.is_none() && selection.condition.is_none() {
        return Ok(selection.patterns);
    }
    let found = fleet.list(&selection, false).await?.nodes;
    if found.is_empty() {
        let message = "no node has these labels, or fulfils this expression; `steward node ls` lists all nodes".into();
        return Err(fleet::FleetError::NoMatch { message }.into());
    }
    Ok(found.into_iter().map(|node| Pattern::Name(node.record.name)).collect())
}

async fn cancel(session: &mut Session, job: &str, target: Which<'_>, waiting: Waiting) -> anyhow::Result<Exit> {
    let selection = target.1.and_named(target.0)?;
    let fleet = session.connect().await?;
    let of = patterns(&fleet, selection).await?;
    let job = fleet.find_job(job).await?;
    let CancelPlan { request, nodes, notes, meant } = fleet.plan_cancel(&job, &of).await?;
    notes.iter().for_each(|note| session.out.note(note));
    if nodes.is_empty() {
        if session.out.is_json() {
            session.out.json(&json!({"cancels": job, "targets": 0, "counts": {}, "nodes": {}}))?;
        }
        session.out.note(format!(
            "nothing is left to cancel of job {job}: it is not open on any of the nodes meant ({meant})"
        ));
        return Ok(Exit::Success);
    }
    place_and_wait(session, &fleet, &request, &nodes, &Terms::default(), waiting).await
}

async fn approve(session: &mut Session, job: &str, target: Which<'_>, waiting: Waiting) -> anyhow::Result<Exit> {
    let selection = target.1.and_named(target.0)?;
    let fleet = session.connect().await?;
    let of = patterns(&fleet, selection).await?;
    let job = fleet.find_job(job).await?;
    let ApprovePlan { request, terms, nodes, notes, meant } = fleet.plan_approve(&job, &of).await?;
    notes.iter().for_each(|note| session.out.note(tame(note)));
    if nodes.is_empty() {
        if session.out.is_json() {
            session.out.json(&json!({"approves": job, "targets": 0, "counts": {}, "nodes": {}}))?;
        }
        session.out.note(format!("nothing of job {job} waits to be approved on any of the nodes meant ({meant})"));
        return Ok(Exit::Success);
    }
    place_and_wait(session, &fleet, &request, &nodes, &terms, waiting).await
}

async fn retry(
    session: &mut Session,
    job: &str,
    target: Which<'_>,
    states: Vec<State>,
    waiting: Waiting,
    secrets: Secrets,
) -> anyhow::Result<Exit> {
    let selection = target.1.and_named(target.0)?;
    let states: BTreeSet<State> = if states.is_empty() { RETRIED.into() } else { states.into_iter().collect() };
    let fleet = session.connect().await?;
    let of = patterns(&fleet, selection).await?;
    let job = fleet.find_job(job).await?;
    // Before anything is cancelled for it.
    let mut plan = fleet.plan_retry(&job, &of, &states).await?.with_secrets(secrets)?;
    plan.notes.iter().for_each(|note| session.out.note(note));
    if !plan.open.is_empty() {
        let done = cancel_first(session, &fleet, &job, &plan.open).await?;
        plan.nodes.retain(|node| !done.contains(node.name()));
    }
    if plan.nodes.is_empty() {
        if session.out.is_json() {
            session.out.json(&json!({"retry_of": job, "targets": 0, "counts": {}, "nodes": {}}))?;
        }
        session.out.note(format!("nothing is left to do again of job {job}"));
        return Ok(Exit::Success);
    }
    place_and_wait(session, &fleet, &plan.request, &plan.nodes, &plan.terms, waiting).await
}

/// How long nodes may take to say what became of what they are to run no more.
const CANCEL_WAIT: Duration = Duration::from_secs(10);
/// The same for nodes that are not there.
const ABSENT_WAIT: Duration = Duration::from_secs(1);

/// Takes back the old orders of nodes that have not answered. Returns those that turn out to have succeeded meanwhile.
async fn cancel_first(
    session: &mut Session,
    fleet: &Fleet,
    job: &message::JobId,
    open: &BTreeSet<NodeName>,
) -> anyhow::Result<BTreeSet<NodeName>> {
    let of: Vec<Pattern> = open.iter().cloned().map(Pattern::Name).collect();
    let CancelPlan { request, nodes, .. } = fleet.plan_cancel(job, &of).await?;
    if nodes.is_empty() {
        // All of them have ended since they were looked at; how, nobody has asked yet.
        anyhow::bail!("job {job} is ending at this moment: see how (`steward job show {job}`), and retry then");
    }
    let placed = fleet.order(&request, &nodes).await?;
    let count = nodes.len();
    session.out.note(format!(
        "{count} of its nodes {} not answered: the old {} may still run there, and {} cancelled first (job {})",
        if count == 1 { "has" } else { "have" },
        if count == 1 { "order" } else { "orders" },
        if count == 1 { "is" } else { "are" },
        placed.job
    ));
    let any_present = nodes.iter().any(|node| node.vitality.state.is_reachable());
    let until = Instant::now() + if any_present { CANCEL_WAIT } else { ABSENT_WAIT };
    let succeeded = told_succeeded(fleet, &placed, until).await?;
    for node in &succeeded {
        session.out.note(format!("{node} is left out: it has succeeded meanwhile"));
    }
    Ok(succeeded)
}

/// Which nodes answer a cancel until then by saying that the order had succeeded.
async fn told_succeeded(fleet: &Fleet, placed: &PlacedJob, until: Instant) -> anyhow::Result<BTreeSet<NodeName>> {
    let mut follow = fleet.follow_placed(placed, Gather::Ignore).await?;
    while let Ok(update) = tokio::time::timeout_at(until, follow.next()).await {
        if update?.is_none() {
            break;
        }
    }
    let view = follow.view();
    let answers = view.nodes.iter().filter_map(|(name, node)| {
        let data = node.outcome.as_ref()?.data.clone()?;
        let answer: Cancelled = serde_json::from_value(data).ok()?;
        (answer.now == State::Succeeded).then(|| name.clone())
    });
    Ok(answers.collect())
}

async fn ls(session: &mut Session, count: usize) -> anyhow::Result<Exit> {
    let jobs = session.connect().await?.jobs(count).await?;
    if session.out.is_json() {
        session.out.json_list(&jobs)?;
    } else {
        for line in text::list(&jobs, clock::now()).lines(session.out.colors()) {
            session.out.line(line)?;
        }
    }
    Ok(Exit::Success)
}

async fn watch(session: &mut Session, job: &str, wait: Option<Duration>) -> anyhow::Result<Exit> {
    let fleet = session.connect().await?;
    let job = fleet.find_job(job).await?;
    let gather = if session.out.format() == Format::Json { Gather::Keep } else { Gather::Pass };
    let follow = fleet.follow(&job, gather).await?;
    Box::pin(watch_stored(session, &fleet, follow, wait)).await
}

async fn show(session: &mut Session, job: &str) -> anyhow::Result<Exit> {
    let fleet = session.connect().await?;
    let job = fleet.find_job(job).await?;
    let view = fleet.job(&job, Gather::Keep).await?;
    print(session, &view)?;
    Ok(Exit::Success)
}

fn print(session: &mut Session, view: &JobView) -> anyhow::Result<()> {
    let out = &mut session.out;
    if out.is_json() {
        return out.json(&view.to_json());
    }
    let colors = out.colors();
    for line in text::head(&view.record, &view.counts(), clock::now(), colors) {
        out.line(line)?;
    }
    out.line("")?;
    for line in text::table(&text::standings(view)).lines(colors) {
        out.line(line)?;
    }
    if out.format() == Format::Table {
        return Ok(());
    }
    for (title, pick) in [("stdout", true), ("stderr", false)] {
        let told = view.nodes.iter().map(|(name, node)| (name, if pick { &node.stdout } else { &node.stderr }));
        let told: Vec<_> = told.filter(|(_, bytes)| !bytes.is_empty()).collect();
        if told.is_empty() {
            continue;
        }
        out.line(format!("\n{title}"))?;
        let live = Live::new(Format::Human, view.nodes.keys());
        for (name, bytes) in told {
            live.say_bytes(out, name, bytes)?;
        }
    }
    Ok(())
}
