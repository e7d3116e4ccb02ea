//! `steward station`: the management station.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use fleet::Context;
use tokio_util::sync::CancellationToken;

use crate::exit::Exit;
use crate::session::Session;
use crate::signals::StopSignals;
use crate::supervise::tie_to_parent;

/// Where the station listens when nobody said otherwise.
pub(crate) const HTTP_LISTEN: &str = "127.0.0.1:8420";
/// How long a service may take to end after it was asked to.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Run the management station: the fleet as a web page, health and metrics.
///
/// Orders and answers do not pass through it: without it, `steward run` still works. Runs until Ctrl-C or SIGTERM.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steward station\n  steward station --http-listen 127.0.0.1:0 --http-addr-file station.addr"
)]
pub(crate) struct Args {
    /// Where its web page is; port 0 picks a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = HTTP_LISTEN)]
    http_listen: SocketAddr,

    /// Write the address where it listens to this file
    #[arg(long, value_name = "FILE")]
    http_addr_file: Option<PathBuf>,
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    tie_to_parent()?;
    let options = station::Options {
        context: station_context(session)?,
        http_listen: args.http_listen,
        http_addr_file: args.http_addr_file,
    };
    serve(|cancel| station::run(options, cancel)).await
}

/// The context in use, as the station: with its own credentials where the home has them.
fn station_context(session: &Session) -> anyhow::Result<Context> {
    let mut context = session.context()?;
    let own = context.home().station_creds();
    if session.global.creds.is_none() && own.exists() {
        context.creds = own;
    }
    Ok(context)
}

/// Runs a service until it ends or is asked to stop; one that does not stop then is left to its fate.
pub(crate) async fn serve<E: Into<anyhow::Error>, F: Future<Output = Result<(), E>>>(
    service: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<Exit> {
    let cancel = StopSignals::new()?.cancel();
    let mut running = std::pin::pin!(service(cancel.clone()));
    let ended = tokio::select! {
        ended = &mut running => ended,
        () = cancel.cancelled() => match tokio::time::timeout(STOP_MAX, running).await {
            Ok(ended) => ended,
            Err(_) => anyhow::bail!("it did not stop within {} s after it was asked to", STOP_MAX.as_secs()),
        },
    };
    ended.map_err(Into::into)?;
    Ok(Exit::Success)
}
