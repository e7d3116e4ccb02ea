//! `steward broker`: the home's nats-server, kept running.

use std::net::SocketAddr;

use serde_json::json;

use crate::exit::Exit;
use crate::home_broker::{self, LISTEN};
use crate::session::Session;
use crate::signals::StopSignals;

/// Run the fleet's broker: the real nats-server, configured, set up and started again when it breaks down.
///
/// Needs a fleet in --home (`steward init`). Runs until Ctrl-C or SIGTERM.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steward broker\n  steward broker --broker-listen 127.0.0.1:0 -o json")]
pub(crate) struct Args {
    /// Where it listens; port 0 picks a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = LISTEN, visible_alias = "listen")]
    broker_listen: SocketAddr,
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    session.refuse_server_flags("broker")?;
    let home = session.home()?;
    let cancel = StopSignals::new()?.cancel();
    let (broker, fleet) = tokio::select! {
        started = home_broker::start(&home, args.broker_listen) => started?,
        () = cancel.cancelled() => return Ok(Exit::Success),
    };
    fleet.close().await;
    let server = broker.client_url();
    if session.out.is_json() {
        session.out.json_line(&json!({"server": server, "home": home.dir()}))?;
        session.out.flush()?;
    } else {
        session.out.note(format!("the broker serves on {server}; Ctrl-C stops it"));
    }
    broker.supervise(cancel).await;
    Ok(Exit::Success)
}
