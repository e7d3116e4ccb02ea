//! `steward job`: what was ordered, and how it stands.

use std::time::Duration;

use bus::clock;
use clap::Subcommand;
use fleet::{Gather, JobView};

use super::bounded;
use super::run::watch_stored;
use crate::args::{Format, duration};
use crate::exit::Exit;
use crate::render::job as text;
use crate::render::live::Live;
use crate::session::Session;

/// See what was ordered, and how it stands.
///
/// A JOB is a job's id, the beginning of one that is unique, or `last`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steward job ls\n  steward job show last\n  steward job watch last")]
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
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let limit = session.global.timeout;
    match args.verb {
        Verb::Ls { limit: count } => bounded(limit, ls(session, count)).await,
        Verb::Show { job } => bounded(limit, show(session, &job)).await,
        Verb::Watch { job, wait } => Box::pin(watch(session, &job, wait.into_iter().chain(limit).min())).await,
    }
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
