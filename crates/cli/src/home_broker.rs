//! The broker of a home: started, furnished with streams and the list of operators, and known to the home's context.
//!
//! Used by `up` and `broker`; both need the fleet's keys, which lie in the home.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bus::broker::{Broker, BrokerConfig, Cluster};
use bus::keys::FleetKeys;
use bus::streams;
use bus::tls::ServerTls;
use bus::{Bus, ConnectOptions, Credentials};
use fleet::{Context, Fleet, Home};
use tokio::time::Instant;

use crate::exit::Usage;

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

/// How the broker shows who it is.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Encryption")]
pub(crate) struct TlsArgs {
    /// Speak TLS on loopback, too; everywhere else it does
    #[arg(long)]
    tls: bool,

    /// The name under which others reach it: for its certificate, and for what nodes and operators are given
    #[arg(long, value_name = "NAME")]
    advertise: Option<String>,

    /// An own certificate, with its chain, instead of the one that is made here
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// The authority that signed it, and signs the certificates of clients
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,

    /// Let in only clients that show a certificate of the fleet's authority; bundles and contexts carry one
    #[arg(long)]
    tls_verify: bool,

    /// Speak plain text beyond loopback: whoever sits on the way reads along
    #[arg(long, conflicts_with_all = ["tls", "tls_cert", "tls_verify"])]
    insecure_plain_text: bool,
}

impl TlsArgs {
    fn clients(&self, home: &Home, listen: SocketAddr, cluster: Option<&Cluster>) -> anyhow::Result<Option<ServerTls>> {
        let wanted = self.tls || self.tls_verify || self.tls_cert.is_some() || !listen.ip().is_loopback();
        if !wanted || self.insecure_plain_text {
            return Ok(None);
        }
        let files = self.files(home, listen, cluster)?;
        Ok(Some(ServerTls { verify_clients: self.tls_verify, ..files }))
    }

    fn servers(&self, home: &Home, listen: SocketAddr, cluster: &Cluster) -> anyhow::Result<Option<ServerTls>> {
        if cluster.listen.ip().is_loopback() || self.insecure_plain_text {
            return Ok(None);
        }
        let files = self.files(home, listen, Some(cluster))?;
        if files.ca.is_none() {
            return Err(
                Usage::new("the servers of a cluster verify each other: name the authority with --tls-ca").into()
            );
        }
        Ok(Some(files))
    }

    fn files(&self, home: &Home, listen: SocketAddr, cluster: Option<&Cluster>) -> anyhow::Result<ServerTls> {
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            let absolute = |path: &PathBuf| {
                let path = std::path::absolute(path)?;
                anyhow::ensure!(path.is_file(), "there is no file {}", path.display());
                Ok(path)
            };
            let ca = self.tls_ca.as_ref().map(absolute).transpose()?;
            if self.tls_verify {
                let Some(ca) = &ca else {
                    return Err(Usage::new(
                        "name the authority that has signed the certificates of clients with --tls-ca",
                    )
                    .into());
                };
                let own = bus::tls::client_file(ca);
                if !own.is_file() {
                    let text = "the clients of this home need a certificate of that authority themselves: put one, and its key, into";
                    return Err(Usage::new(format!("{text} {}", own.display())).into());
                }
            }
            return Ok(ServerTls { cert: absolute(cert)?, key: absolute(key)?, ca, verify_clients: false });
        }
        let addresses = [Some(listen.ip()), cluster.map(|cluster| cluster.listen.ip())].into_iter().flatten();
        let mut names: Vec<String> =
            addresses.filter(|address| !address.is_unspecified()).map(|address| address.to_string()).collect();
        names.extend(self.advertise.clone());
        Ok(bus::tls::ensure(home.dir(), &names)?)
    }

    /// The address by which it is reached from here: a certificate from elsewhere need not be for the loopback.
    fn local(&self, broker: &Broker) -> String {
        if self.tls_cert.is_some() { self.advertised(broker) } else { broker.client_url() }
    }

    /// The address that others are told.
    fn advertised(&self, broker: &Broker) -> String {
        let url = broker.client_url();
        match (&self.advertise, url.split_once("://"), broker.handle().listen().port()) {
            (Some(name), Some((scheme, _)), port) => format!("{scheme}://{name}:{port}"),
            _ => url,
        }
    }
}

/// Starts the broker of `home`, which must hold a fleet, and makes it fit to be used.
pub(crate) async fn start(home: &Home, listen: SocketAddr, tls: &TlsArgs) -> anyhow::Result<(Broker, Fleet)> {
    start_one_of(home, listen, None, tls).await
}

/// The same for one server of a cluster, with its name in it.
pub(crate) async fn start_one_of(
    home: &Home,
    listen: SocketAddr,
    cluster: Option<(String, Cluster)>,
    tls: &TlsArgs,
) -> anyhow::Result<(Broker, Fleet)> {
    let keys = FleetKeys::open(home.dir())?;
    let mut config = BrokerConfig { listen, ..BrokerConfig::new(home.dir(), keys.trust()) };
    let deadline = cluster.is_some().then(|| Instant::now() + CLUSTER_PATIENCE);
    config.tls = tls.clients(home, listen, cluster.as_ref().map(|(_, cluster)| cluster))?;
    if let Some((name, cluster)) = cluster {
        config.cluster_tls = tls.servers(home, listen, &cluster)?;
        config.server_name = name;
        config.cluster = Some(cluster);
    }
    let ca = config.tls.as_ref().and_then(|tls| tls.ca.clone());
    let broker = Broker::start(config).await?;
    let reach = Reach { advertised: tls.advertised(&broker), local: tls.local(&broker), ca };
    let furnished = loop {
        match (furnish(home, &keys, &broker, deadline.is_some(), &reach).await, deadline) {
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

/// How others reach a broker.
struct Reach {
    advertised: String,
    local: String,
    ca: Option<PathBuf>,
}

async fn furnish(
    home: &Home,
    keys: &FleetKeys,
    broker: &Broker,
    clustered: bool,
    reach: &Reach,
) -> anyhow::Result<Fleet> {
    let context = own_context(home, &reach.advertised, reach.ca.as_deref())?;
    // From here it is reached by its own address, whatever others call it.
    let context = Context { server: reach.local.clone(), ..context };
    provision(keys, broker, clustered, &context).await?;
    let fleet = Fleet::connect(&context).await?;
    fleet.publish_trust().await.context("the list of operators cannot be handed to the broker")?;
    fleet.publish_policy().await.context("the policy cannot be handed to the broker")?;
    Ok(fleet)
}

/// The context of the home's own broker, with the address where that listens now.
fn own_context(home: &Home, server: &str, ca: Option<&Path>) -> anyhow::Result<Context> {
    let mut context = Context::load(home, Some(OWN_CONTEXT))?;
    // Somebody may have listed the other servers of a cluster beside it.
    let known = context.server.split(',').any(|known| known.trim() == server);
    if !known || context.ca.as_deref() != ca {
        if !known {
            server.clone_into(&mut context.server);
        }
        context.ca = ca.map(Path::to_owned);
        context.save(home)?;
    }
    Ok(context)
}

async fn provision(keys: &FleetKeys, broker: &Broker, clustered: bool, context: &Context) -> anyhow::Result<()> {
    let creds = keys.provisioner_user()?;
    let bus = Bus::connect(ConnectOptions {
        server: context.server.clone(),
        ca: context.ca.clone(),
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
