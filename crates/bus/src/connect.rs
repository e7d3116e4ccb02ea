//! A connection to the broker: endless, jittered, capped reconnects, and a link state that can be watched.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nkeys::KeyPair;
use tokio::sync::watch;

use crate::clock;
use crate::error::BusError;

/// The longest wait between two attempts to reconnect.
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(20);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the broker may take to answer a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// An identity on the bus: a NATS user JWT and the key that proves it.
#[derive(Clone)]
pub struct Credentials {
    jwt: String,
    pair: Arc<KeyPair>,
}

impl Credentials {
    /// Reads the text of a `.creds` file.
    ///
    /// # Errors
    /// [`BusError::Credentials`] when it holds no JWT or no seed; `origin` is named in it.
    pub fn parse(text: &str, origin: &str) -> Result<Self, BusError> {
        let wrong = |reason: &str| BusError::Credentials { path: origin.to_owned(), reason: reason.to_owned() };
        let creds = crate::claims::Creds::parse(text).map_err(|error| wrong(&error.to_string()))?;
        let pair = creds.key().map_err(|error| wrong(&error.to_string()))?;
        Ok(Self { jwt: creds.jwt().to_owned(), pair: Arc::new(pair) })
    }

    /// An identity from its two halves.
    ///
    /// # Errors
    /// [`BusError::Credentials`] when the seed is none.
    pub fn of(creds: &crate::claims::Creds) -> Result<Self, BusError> {
        let wrong = |error: crate::claims::ClaimsError| BusError::Credentials {
            path: "memory".into(),
            reason: error.to_string(),
        };
        Ok(Self { jwt: creds.jwt().to_owned(), pair: Arc::new(creds.key().map_err(wrong)?) })
    }

    /// Reads a `.creds` file.
    ///
    /// # Errors
    /// [`BusError::Credentials`] when it cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self, BusError> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| BusError::Credentials { path: origin.clone(), reason: error.to_string() })?;
        Self::parse(&text, &origin)
    }

    /// The key pair: the identity, and what this party signs with.
    pub fn pair(&self) -> &KeyPair {
        &self.pair
    }
}

/// How a connection is made.
#[derive(Clone)]
pub struct ConnectOptions {
    /// Where the broker is: one URL, or several separated by commas.
    pub server: String,
    /// Who connects.
    pub credentials: Credentials,
    /// What the broker's monitoring shows.
    pub name: String,
    /// The inbox prefix that the identity's permissions demand; `_INBOX` without.
    pub inbox_prefix: Option<String>,
    /// Whether to go on trying for ever when the first attempt fails.
    pub patient: bool,
    /// Between two pings of an idle link.
    pub ping_interval: Duration,
    /// The prefix of JetStream requests: `$JS.API` inside the account of the streams, `core.API` for nodes.
    pub api_prefix: &'static str,
}

/// The prefix of JetStream requests inside account CORE.
pub const CORE_API: &str = "$JS.API";
/// The same requests as nodes see them from account EDGE.
pub const EDGE_API: &str = "core.API";

/// The state of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// Whether it is up now.
    pub up: bool,
    /// How often it came up.
    pub ups: u64,
    /// How often the broker sent more than was taken from a subscription: messages were dropped each time.
    pub overruns: u64,
}

/// A connection to the broker; cheap to clone.
#[derive(Clone)]
pub struct Bus {
    pub(crate) client: async_nats::Client,
    pub(crate) api_prefix: &'static str,
    link: watch::Receiver<Link>,
    server: String,
}

impl Bus {
    /// Connects.
    ///
    /// # Errors
    /// [`BusError::Unreachable`] or [`BusError::Refused`] when the first attempt fails, unless the options are
    /// patient: then it goes on in the background.
    pub async fn connect(options: ConnectOptions) -> Result<Self, BusError> {
        let (link_sender, link) = watch::channel(Link::default());
        let pair = Arc::clone(&options.credentials.pair);
        let begun = AtomicBool::new(false);
        let mut connect = async_nats::ConnectOptions::with_jwt(options.credentials.jwt.clone(), move |nonce| {
            let signature = pair.sign(&nonce).map_err(async_nats::AuthError::new);
            async move { signature }
        })
        .name(&options.name)
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .ping_interval(options.ping_interval)
        .max_reconnects(None)
        .reconnect_delay_callback(move |attempt| {
            // async-nats asks before the very first attempt too, which nothing speaks against making at once.
            if begun.swap(true, Ordering::Relaxed) { reconnect_delay(attempt) } else { Duration::ZERO }
        })
        .event_callback(move |event| {
            let sender = link_sender.clone();
            async move { note(&sender, &event) }
        });
        if let Some(prefix) = &options.inbox_prefix {
            connect = connect.custom_inbox_prefix(prefix);
        }
        if options.patient {
            connect = connect.retry_on_initial_connect();
        }
        let servers: Vec<String> = options.server.split(',').map(|url| url.trim().to_owned()).collect();
        let client = connect.connect(servers).await.map_err(|error| explain_connect_error(&options.server, &error))?;
        Ok(Self { client, api_prefix: options.api_prefix, link, server: options.server })
    }

    /// The state of the link, to be watched.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Whether the link is up now.
    pub fn is_up(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// The address that this connection was made for.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The version of the broker that it is connected to.
    pub fn server_version(&self) -> Option<String> {
        self.client.try_server_info().map(|info| info.version)
    }

    /// The time that a question takes to the broker and back: the store's epoch, which everybody may ask for.
    /// Everything sent before has arrived then.
    ///
    /// # Errors
    /// [`BusError::Timeout`] when the broker does not answer within `limit`.
    pub async fn round_trip(&self, limit: Duration) -> Result<Duration, BusError> {
        let begun = std::time::Instant::now();
        let asked = tokio::time::timeout(limit, self.kv_get(crate::kv::META, "epoch")).await;
        asked.map_err(|_| BusError::Timeout { what: "a ping".into() })?.map(|_| begun.elapsed())
    }

    /// Sends what is buffered and closes.
    pub async fn close(&self) {
        // Closing is best effort: a broker that is gone cannot be told.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.client.flush()).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), self.client.drain()).await;
    }
}

/// Full jitter over an exponential that is capped: a fleet whose broker restarts must not come back at one instant.
fn reconnect_delay(attempt: usize) -> Duration {
    let exponent = u32::try_from(attempt.min(8)).unwrap_or(8);
    let cap_ms = (100_u64 << exponent).min(u64::try_from(RECONNECT_DELAY_MAX.as_millis()).unwrap_or(u64::MAX));
    Duration::from_millis(cap_ms / 4 + clock::jitter(cap_ms * 3 / 4))
}

fn note(sender: &watch::Sender<Link>, event: &async_nats::Event) {
    use async_nats::Event;
    match event {
        Event::Connected => sender.send_modify(|link| {
            link.up = true;
            link.ups += 1;
        }),
        Event::Disconnected | Event::Closed => sender.send_modify(|link| link.up = false),
        Event::SlowConsumer(_) => sender.send_modify(|link| link.overruns += 1),
        Event::ServerError(error) => tracing::warn!(%error, "the broker complains"),
        Event::ClientError(error) => tracing::debug!(%error, "the connection complains"),
        Event::LameDuckMode | Event::Draining => {}
    }
}

fn explain_connect_error(server: &str, error: &async_nats::ConnectError) -> BusError {
    use async_nats::ConnectErrorKind as Kind;
    let server = server.to_owned();
    let reason = error.to_string();
    match error.kind() {
        Kind::AuthorizationViolation | Kind::Authentication => BusError::Refused { server, reason },
        _ => BusError::Unreachable { server, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnect_delays_are_jittered_grow_and_are_capped() {
        for attempt in 0..200 {
            let delay = reconnect_delay(attempt);
            assert!(delay <= RECONNECT_DELAY_MAX, "{attempt}: {delay:?}");
            assert!(delay >= Duration::from_millis(25), "{attempt}: {delay:?}");
        }
        let distinct: std::collections::BTreeSet<_> = (0..50).map(|_| reconnect_delay(8)).collect();
        assert!(distinct.len() > 10, "delays must differ from client to client");
    }
}
