//! The command line of Steward: one file per verb, no logic of the fleet.
//!
//! In flow arguments, the environment and what `fleet` knows; out flow lines for people on a terminal, JSON for
//! scripts, and an exit code that says how it went. What scripts may rely on (README, `--help`) is kept here and nowhere else. This
//! crate must never decide what an order means, and must never print but through `out::Out`.
//!
//! Start reading at `args` (what can be said), then `verbs/` (one file each), `watching` (how long a verb waits)
//! and `render/` (what is shown).

mod args;
mod exit;
mod home_broker;
mod logging;
mod out;
mod probe;
mod progress;
mod render;
mod secrets;
mod session;
mod signals;
mod supervise;
mod verbs;
mod watching;

use std::process::ExitCode;

/// The whole program: parse, configure, run, and report how it went.
pub fn main_entry() -> ExitCode {
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(said) => return said,
    };
    let complaints = logging::init(&cli);
    let mut session = session::Session::new(cli.global);
    session.complaints = complaints;
    let ended = verbs::run(cli.verb, &mut session);
    exit::conclude(ended, session.out)
}
