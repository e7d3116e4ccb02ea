//! `steward keeper`: holds the commands of an agent, so that they outlive it. Started by the agent, never by a person.

use std::path::PathBuf;

use anyhow::Context as _;

use super::light;
use crate::exit::Exit;

/// Hold the commands of the agent on a state directory; agents start it by themselves.
///
/// Ends when nothing is left to hold. SIGTERM ends the commands first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  steward keeper --state /var/lib/steward")]
pub(crate) struct Args {
    /// The agent's state directory
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

pub(crate) fn run(args: Args) -> anyhow::Result<Exit> {
    // Before there is a runtime, whose descriptors are none of those that were inherited.
    keeper::set_apart().context("the keeper cannot have a session of its own")?;
    light(async {
        let held = keeper::serve(&args.state).await;
        held.with_context(|| format!("the commands of {} cannot be held", args.state.display()))?;
        Ok(Exit::Success)
    })
}
