//! `steward init`: a new fleet.

use crate::exit::Exit;
use crate::home_broker::SERVER;
use crate::session::Session;

/// Make a new fleet: its keys, its first operator's credentials, and the context `default`.
///
/// Nothing is started; `steward up` does both at once. With --server, the context names a broker elsewhere.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steward init --home ./fleet\n  steward init --home ./far-fleet --server nats://broker.example:4222"
)]
pub(crate) struct Args {}

pub(crate) fn run(_: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let home = session.home()?;
    let context = fleet::init(&home, session.global.server.as_deref().unwrap_or(SERVER))?;
    // At the first start beyond loopback it is there; further names are added then.
    bus::tls::ensure(home.dir(), &[])?;
    if session.out.is_json() {
        session.out.json(&context.to_json())?;
    } else {
        let flags = session.flags_again();
        session.out.note(format!(
            "A new fleet lives in {dir}. Its keys in {keys} are secret, and cannot be replaced: back them up.\n\
             Its broker, {server}, is started with `steward{flags} broker`; or all at once with `steward{flags} up`.",
            dir = home.dir().display(),
            keys = home.keys_dir().display(),
            server = context.server,
        ));
    }
    Ok(Exit::Success)
}
