//! One file per verb: its arguments, whose doc comments are its help, and what it does with them.

pub(crate) mod admission;
pub(crate) mod agent;
pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod broker;
pub(crate) mod call;
pub(crate) mod completions;
pub(crate) mod context;
pub(crate) mod doctor;
pub(crate) mod event;
pub(crate) mod init;
pub(crate) mod job;
pub(crate) mod keeper;
pub(crate) mod keys;
pub(crate) mod man;
pub(crate) mod node;
pub(crate) mod operator;
pub(crate) mod ping;
pub(crate) mod policy;
pub(crate) mod ps;
pub(crate) mod root;
pub(crate) mod run;
pub(crate) mod station;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod version;

use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;

use crate::args::Verb;
use crate::exit::{Exit, Usage};
use crate::session::Session;

/// How long tasks may go on that a verb left behind.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

/// Runs a verb to its end.
pub(crate) fn run(verb: Verb, session: &mut Session) -> anyhow::Result<Exit> {
    let s = session;
    match verb {
        Verb::Up(args) => serving(up::run(args, s)),
        Verb::Broker(args) => serving(broker::run(args, unlimited("broker", s)?)),
        Verb::Station(args) => serving(station::run(args, unlimited("station", s)?)),
        Verb::Agent(args) => light(agent::run(args, unlimited("agent", s)?)),
        Verb::Keeper(args) => keeper::run(args),
        Verb::Run(args) => quick(run::run(args, s)),
        Verb::Call(args) => quick(call::run(args, s)),
        Verb::Ping(args) => quick(ping::run(args, s)),
        Verb::Job(args) => quick(job::run(args, s)),
        Verb::Node(args) => quick(bounded(s.global.timeout, node::run(args, s))),
        Verb::Policy(args) => quick(policy::run(args, s)),
        Verb::Keys(args) => quick(bounded(s.global.timeout, keys::run(args, s))),
        Verb::Root(args) => quick(bounded(s.global.timeout, root::run(args, s))),
        Verb::Operator(args) => quick(bounded(s.global.timeout, operator::run(args, s))),
        Verb::Event(args) => quick(event::run(args, s)),
        Verb::Audit(args) => quick(bounded(s.global.timeout, audit::run(args, s))),
        // One thread, like `run` itself, whose times are wanted.
        Verb::Bench(args) => light(bench::run(args, unlimited("bench", s)?)),
        Verb::Ps(args) => quick(ps::run(args, s)),
        Verb::Top(args) => quick(top::run(args, unlimited("top", s)?)),
        Verb::Doctor(args) => quick(bounded(s.global.timeout, doctor::run(args, s))),
        Verb::Init(args) => init::run(args, s),
        Verb::Context(args) => quick(context::run(args, s)),
        Verb::Completions(args) => completions::run(args, s),
        Verb::Man(args) => man::run(args, s),
        Verb::Version(args) => version::run(args, s),
    }
}

/// For verbs that are done in a moment: no threads are started.
fn quick(verb: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let ended = runtime.block_on(verb);
    runtime.shutdown_timeout(Duration::ZERO);
    ended
}

/// Bounds a verb, or what of it can be bounded, by `--timeout`.
pub(crate) async fn bounded<T>(
    limit: Option<Duration>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let Some(limit) = limit else { return work.await };
    let over = || anyhow::anyhow!("not done within {} (--timeout)", message::units::human_duration(limit));
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(over()))
}

/// For verbs that run until they are stopped.
fn serving(verb: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("no runtime")?;
    let ended = runtime.block_on(verb);
    runtime.shutdown_timeout(SHUTDOWN_MAX);
    ended
}

/// For the edge unit, which runs until it is stopped: one thread, so that it stays small and an order does not wander
/// between processors. What may block (the journal, files) has threads of its own.
fn light(verb: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let ended = runtime.block_on(verb);
    runtime.shutdown_timeout(SHUTDOWN_MAX);
    ended
}

/// For verbs that a time-out says nothing about.
fn unlimited<'a>(verb: &str, session: &'a mut Session) -> anyhow::Result<&'a mut Session> {
    if session.global.timeout.is_some() {
        return Err(
            Usage::new(format!("`steward {verb}` runs until it is stopped: it has no use for --timeout")).into()
        );
    }
    Ok(session)
}
