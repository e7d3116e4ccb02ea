//! `steward completions`: what a shell needs to complete command lines.

use clap_complete::Shell;

use crate::exit::Exit;
use crate::session::Session;

/// Print a shell's completions.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  source <(steward completions bash)\n  steward completions zsh > _steward")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut crate::args::command(), "steward", &mut text);
    session.out.bytes(&text)?;
    Ok(Exit::Success)
}
