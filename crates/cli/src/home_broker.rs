//! The broker of a home: started, furnished with streams and the list of operators, and known to the home's context.
//!
//! Used by `up` and `broker`; both need the fleet's keys, which lie in the home.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bus::broker::{Broker, BrokerConfig, Cluster};
use bus::keys::FleetKeys;
use bus::streams;
use bus::{Bus, ConnectOptions, Credentials};
use fleet::{Context, Fleet, Home};
use tokio::time::Instant;

/// Where clients look when nobody said otherwise; NATS' own port.
pub(crate) const LISTEN: &str = "127.0.0.1:4222";
/// The server that a new fleet's context names.
pub(crate) const SERVER: &str = "nats://127.0.0.1:4222";
/// The context that `init` makes.
const OWN_CONTEXT: &str = "default";

/// How long the servers of a cluster may take to find each other and choose a leader.
const CLUSTER_PATIENCE: Duration = Duration::from_secs(120);
/// Copies of each stream in a cluster.
const REPLICAS: usize = 3;

/// Starts the broker of `home`, which must hold a fleet, and makes it fit to be used.
pub(crate) async fn start(home: &Home, listen: SocketAddr) -> anyhow::Result<(Broker, Fleet)> {
    start_one_of(home, listen, None).await
}

/// The same for one server of a cluster, with its name in it.
pub(crate) async fn start_one_of(
    home: &Home,
    listen: SocketAddr,
    cluster: Option<(String, Cluster)>,
) -> anyhow::Result<(Broker, Fleet)> {
    let keys = FleetKeys::open(home.dir())?;
    let mut config = BrokerConfig { listen, ..BrokerConfig::new(home.dir(), keys.trust()) };
    let deadline = cluster.is_some().then(|| Instant::now() + CLUSTER_PATIENCE);
    if let Some((name, cluster)) = cluster {
        config.server_name = name;
        config.cluster = Some(cluster);
    }
    let broker = Broker::start(config).await?;
    let furnished = loop {
        match (furnish(home, &keys, &broker, deadline.is_some()).await, deadline) {
            // Alone, a server of a cluster can do nothing; the others may still be on their way.
            (Err(error), Some(deadline)) if Instant::now() < deadline => {
                tracing::info!(%error, "the cluster is not ready yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            (furnished, _) => break furnished,
        }
    };
    match furnished {
        Ok(fleet) => Ok((broker, fleet)),
        Err(error) => {
            broker.stop().await;
            Err(error)
        }
    }
}

async fn furnish(home: &Home, keys: &FleetKeys, broker: &Broker, clustered: bool) -> anyhow::Result<Fleet> {
    let context = own_context(home, &broker.client_url())?;
    provision(keys, broker, clustered).await?;
    let fleet = Fleet::connect(&context).await?;
    fleet.publish_trust().await.context("the list of operators cannot be handed to the broker")?;
    fleet.publish_policy().await.context("the policy cannot be handed to the broker")?;
    Ok(fleet)
}

/// The context of the home's own broker, with the address where that listens now.
fn own_context(home: &Home, server: &str) -> anyhow::Result<Context> {
    let mut context = Context::load(home, Some(OWN_CONTEXT))?;
    // Somebody may have listed the other servers of a cluster beside it.
    if context.server.split(',').all(|known| known.trim() != server) {
        server.clone_into(&mut context.server);
        context.save(home)?;
    }
    Ok(context)
}

async fn provision(keys: &FleetKeys, broker: &Broker, clustered: bool) -> anyhow::Result<()> {
    let creds = keys.provisioner_user()?;
    let bus = Bus::connect(ConnectOptions {
        server: broker.client_url(),
        credentials: Credentials::parse(&creds.render(), "the provisioner's credentials")?,
        name: "steward provisioner".to_owned(),
        inbox_prefix: Some(creds.inbox_prefix()?),
        patient: false,
        ping_interval: Duration::from_secs(10),
        api_prefix: bus::CORE_API,
    })
    .await?;
    let mut options = streams::Options::fitting(broker.handle().store_bytes_max());
    if clustered {
        options.replicas = REPLICAS;
    }
    let provisioned = bus.provision(options).await;
    bus.close().await;
    provisioned?;
    Ok(())
}
