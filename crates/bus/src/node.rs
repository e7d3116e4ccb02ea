//! How a node comes to the bus: its connection, what it listens to, and what it reads at each new link. Used by the agent, and
//! by what measures how many of them a broker takes.

use std::path::PathBuf;
use std::time::Duration;

use message::NodeName;

use crate::connect::{Bus, ConnectOptions, Credentials, EDGE_API};
use crate::error::BusError;
use crate::kv;
use crate::wire::Message;

/// Between two pings of an idle link.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// The keys of bucket `POLICY`.
const TRUST_KEY: &str = "trust";
const POLICY_KEY: &str = "policy";

/// How a node connects.
#[must_use]
pub fn options(name: &NodeName, server: String, ca: Option<PathBuf>, credentials: Credentials) -> ConnectOptions {
    ConnectOptions {
        server,
        ca,
        credentials,
        name: format!("steward agent {name}"),
        inbox_prefix: Some(format!("_INBOX.{name}")),
        patient: true,
        ping_interval: PING_INTERVAL,
        api_prefix: EDGE_API,
    }
}

/// What a node goes by, as the broker has it; nothing of it is believed yet.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// The list of operators.
    pub trust: Option<Message>,
    /// The policy.
    pub policy: Option<Message>,
    /// The node's own record.
    pub record: Option<Message>,
}

impl Bus {
    /// Reads all that a node goes by, at once: on a slow link each question on its own would take its time.
    ///
    /// # Errors
    /// [`BusError`] when the broker cannot be asked.
    pub async fn standing(&self, node: &NodeName) -> Result<Standing, BusError> {
        let (trust, policy, record) = futures::future::try_join3(
            self.kv_get(kv::POLICY, TRUST_KEY),
            self.kv_get(kv::POLICY, POLICY_KEY),
            self.kv_get(kv::NODES, node.as_str()),
        )
        .await?;
        Ok(Standing { trust, policy, record })
    }
}

/// A client of NATS that is nothing but connected and subscribed: what everything else is measured by.
pub struct Bare {
    client: async_nats::Client,
    _subscriber: async_nats::Subscriber,
}

impl Bare {
    /// Connects with the same credentials and encryption, and subscribes once. Both are done when this returns.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not take it.
    pub async fn connect(options: &ConnectOptions, subject: String) -> Result<Self, BusError> {
        let failed = |reason: String| BusError::Unreachable { server: options.server.clone(), reason };
        let pair = std::sync::Arc::new(options.credentials.pair().clone());
        let mut connect = async_nats::ConnectOptions::with_jwt(options.credentials.jwt(), move |nonce| {
            let signature = pair.sign(&nonce).map_err(async_nats::AuthError::new);
            async move { signature }
        });
        if let Some(ca) = &options.ca {
            connect = connect.add_root_certificates(ca.clone()).require_tls(true);
        }
        let client = connect.connect(options.server.as_str()).await.map_err(|error| failed(error.to_string()))?;
        let subscriber = client.subscribe(subject).await.map_err(|error| failed(error.to_string()))?;
        client.flush().await.map_err(|error| failed(error.to_string()))?;
        Ok(Self { client, _subscriber: subscriber })
    }

    /// Closes it.
    pub async fn close(self) {
        let _ = self.client.drain().await; // best effort, as closing is
    }
}
