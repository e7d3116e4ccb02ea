//! The broker of a home: started, furnished with streams and the list of operators, and known to the home's context.
//!
//! Used by `up` and `broker`; both need the fleet's keys, which lie in the home.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bus::broker::{Broker, BrokerConfig};
use bus::keys::FleetKeys;
use bus::streams;
use bus::{Bus, ConnectOptions, Credentials};
use fleet::{Context, Fleet, Home};

/// Where clients look when nobody said otherwise; NATS' own port.
pub(crate) const LISTEN: &str = "127.0.0.1:4222";
/// The server that a new fleet's context names.
pub(crate) const SERVER: &str = "nats://127.0.0.1:4222";
/// The context that `init` makes.
const OWN_CONTEXT: &str = "default";

/// Starts the broker of `home`, which must hold a fleet, and makes it fit to be used.
pub(crate) async fn start(home: &Home, listen: SocketAddr) -> anyhow::Result<(Broker, Fleet)> {
    let keys = FleetKeys::open(home.dir())?;
    let broker = Broker::start(BrokerConfig { listen, ..BrokerConfig::new(home.dir(), keys.trust()) }).await?;
    match furnish(home, &keys, &broker).await {
        Ok(fleet) => Ok((broker, fleet)),
        Err(error) => {
            broker.stop().await;
            Err(error)
        }
    }
}

async fn furnish(home: &Home, keys: &FleetKeys, broker: &Broker) -> anyhow::Result<Fleet> {
    let context = own_context(home, &broker.client_url())?;
    provision(keys, broker).await?;
    let fleet = Fleet::connect(&context).await?;
    fleet.publish_trust().await.context("the list of operators cannot be handed to the broker")?;
    Ok(fleet)
}

/// The context of the home's own broker, with the address where that listens now.
fn own_context(home: &Home, server: &str) -> anyhow::Result<Context> {
    let mut context = Context::load(home, Some(OWN_CONTEXT))?;
    if context.server != server {
        server.clone_into(&mut context.server);
        context.save(home)?;
    }
    Ok(context)
}

async fn provision(keys: &FleetKeys, broker: &Broker) -> anyhow::Result<()> {
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
    let provisioned = bus.provision(streams::Options::fitting(broker.handle().store_bytes_max())).await;
    bus.close().await;
    provisioned?;
    Ok(())
}
