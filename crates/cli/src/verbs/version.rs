//! `steward version`.

use serde_json::json;

use crate::exit::Exit;
use crate::session::Session;

/// Print the version.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steward version\n  steward version -o json")]
pub(crate) struct Args {}

pub(crate) fn run(_: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    if session.out.is_json() {
        session.out.json(&json!({
            "name": "steward", "version": version, "wire": message::WIRE_VERSION,
            "os": std::env::consts::OS, "arch": std::env::consts::ARCH,
        }))?;
    } else {
        session.out.line(format!("steward {version}"))?;
    }
    Ok(Exit::Success)
}
