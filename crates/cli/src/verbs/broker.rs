//! `steward broker`: the home's nats-server, kept running.

use std::net::SocketAddr;

use bus::broker::Cluster;
use message::NodeName;
use serde_json::json;

use crate::args::host_node_name;
use crate::exit::{Exit, Usage};
use crate::home_broker::{self, LISTEN, TlsArgs};
use crate::session::Session;
use crate::signals::StopSignals;

/// Run the fleet's broker: the real nats-server, configured, set up and started again when it breaks down.
///
/// Needs a fleet in --home (`steward init`). Runs until Ctrl-C or SIGTERM.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steward broker\n  steward broker --broker-listen 0.0.0.0:4222 --advertise broker.example\n  steward broker --broker-listen 127.0.0.1:0 -o json\n  \
    steward broker --broker-listen 10.0.0.1:4222 --cluster-listen 10.0.0.1:6222 --cluster-route 10.0.0.2:6222 \
    --cluster-route 10.0.0.3:6222    on each of three machines, each with a copy of the home that `init` made"
)]
pub(crate) struct Args {
    /// Where it listens; port 0 picks a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = LISTEN, visible_alias = "listen")]
    broker_listen: SocketAddr,

    /// Be one of three or more servers of a cluster, which keep three copies of everything: where the others reach this one
    #[arg(long, value_name = "ADDR:PORT", requires = "cluster_route")]
    cluster_listen: Option<SocketAddr>,

    /// Where this server reaches one of the others (repeatable)
    #[arg(long, value_name = "HOST:PORT", requires = "cluster_listen")]
    cluster_route: Vec<String>,

    /// Its name in the cluster, different for each [default: this host's name and its cluster port]
    #[arg(long, value_name = "NAME", requires = "cluster_listen")]
    server_name: Option<NodeName>,

    #[command(flatten)]
    tls: TlsArgs,
}

impl Args {
    fn cluster(&self) -> anyhow::Result<Option<(String, Cluster)>> {
        let Some(listen) = self.cluster_listen else { return Ok(None) };
        if let Some(wrong) = self.cluster_route.iter().find(|route| !is_host_and_port(route)) {
            let text =
                format!("{wrong:?} is not a host and a port: write --cluster-route HOST:PORT, like 10.0.0.2:6222");
            return Err(Usage::new(text).into());
        }
        let name = match &self.server_name {
            Some(name) => name.to_string(),
            None => format!("{}-{}", host_node_name()?, listen.port()),
        };
        Ok(Some((name, Cluster { listen, routes: self.cluster_route.clone() })))
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    session.refuse_server_flags("broker")?;
    let home = session.home()?;
    let cancel = StopSignals::new()?.cancel();
    let (broker, fleet) = tokio::select! {
        started = home_broker::start_one_of(&home, args.broker_listen, args.cluster()?, &args.tls) => started?,
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
