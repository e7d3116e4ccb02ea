//! A connection to the broker: endless, jittered, capped reconnects, and a link state that can be watched.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use message::PublicKey;
use nkeys::KeyPair;
use tokio::sync::watch;

use crate::claims;
use crate::client::Client;
use crate::clock;
use crate::error::BusError;
use crate::tls;

/// The longest wait between two attempts to reconnect.
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(20);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two complaints about a link that does not come about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(15);
/// How long the broker may take to answer a request.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// An identity on the bus: a NATS user JWT and the key that proves it.
///
/// Clones share the token: once it is renewed, all connections use the new one when they come about next.
#[derive(Clone)]
pub struct Credentials {
    tokens: Arc<RwLock<Tokens>>,
    pair: Arc<KeyPair>,
}

/// The token, and the one before it, for a broker that does not take the new one (yet, or any more).
#[derive(Clone)]
struct Tokens {
    newest: String,
    before: Option<String>,
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
        Ok(Self::with(creds.jwt(), pair))
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
        Ok(Self::with(creds.jwt(), creds.key().map_err(wrong)?))
    }

    fn with(jwt: &str, pair: KeyPair) -> Self {
        let tokens = Tokens { newest: jwt.to_owned(), before: None };
        Self { tokens: Arc::new(RwLock::new(tokens)), pair: Arc::new(pair) }
    }

    /// The token, as it will be shown to the broker next.
    pub fn jwt(&self) -> String {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).newest.clone()
    }

    /// Takes a newer token of the same user over. Tells whether it is another one than before.
    ///
    /// # Errors
    /// [`BusError::Credentials`] when it is for another key, name or account, or older.
    pub fn renew(&self, jwt: &str) -> Result<bool, BusError> {
        let wrong = |reason: String| BusError::Credentials { path: "a new token".into(), reason };
        let read = |jwt: &str| claims::read::<claims::User>(jwt).map_err(|error| wrong(error.to_string()));
        let (held, offered) = (read(&self.jwt())?, read(jwt)?);
        if held.jti == offered.jti {
            return Ok(false);
        }
        if offered.sub != self.pair.public_key() {
            return Err(wrong(format!("it is for the key {}", offered.sub)));
        }
        if (&offered.name, &offered.nats.issuer_account, &offered.nats.tags)
            != (&held.name, &held.nats.issuer_account, &held.nats.tags)
        {
            return Err(wrong("it is for another name, role or account".into()));
        }
        if offered.iat < held.iat {
            return Err(wrong("it is older than the one in use".into()));
        }
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut tokens.newest, jwt.to_owned());
        tokens.before = Some(before);
        Ok(true)
    }

    /// The key that signed the token.
    ///
    /// # Errors
    /// [`BusError::Credentials`] when the token is none.
    pub fn issuer(&self) -> Result<PublicKey, BusError> {
        let wrong = |reason: String| BusError::Credentials { path: "the token".into(), reason };
        let token = claims::read::<claims::User>(&self.jwt()).map_err(|error| wrong(error.to_string()))?;
        PublicKey::parse(token.iss).map_err(|error| wrong(error.to_string()))
    }

    /// What the broker is shown at the `tries`th attempt in a row: the newest, and in turn the one before it.
    fn auth(&self, tries: usize, nonce: &[u8]) -> Result<async_nats::Auth, async_nats::AuthError> {
        let Tokens { newest, before } = self.tokens.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut auth = async_nats::Auth::new();
        auth.jwt = Some(before.filter(|_| tries % 2 == 1).unwrap_or(newest));
        auth.signature = Some(self.pair.sign(nonce).map_err(async_nats::AuthError::new)?);
        Ok(auth)
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
    /// The authority that the broker's certificate must come from, as a PEM file; `None`: those that this machine trusts.
    pub ca: Option<std::path::PathBuf>,
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
pub use crate::keys::KNOCK_API;

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
    pub(crate) client: Client,
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
        let credentials = options.credentials.clone();
        let begun = AtomicBool::new(false);
        // Attempts since the link was up.
        let tries = Arc::new(AtomicUsize::new(0));
        let up = Arc::clone(&tries);
        let mut connect = async_nats::ConnectOptions::with_auth_callback(move |nonce| {
            let auth = credentials.auth(tries.fetch_add(1, Ordering::Relaxed), &nonce);
            async move { auth }
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
            if matches!(event, async_nats::Event::Connected) {
                up.store(0, Ordering::Relaxed);
            }
            async move { note(&sender, &event) }
        });
        if let Some(prefix) = &options.inbox_prefix {
            connect = connect.custom_inbox_prefix(prefix);
        }
        if let Some(ca) = &options.ca {
            connect = connect.add_root_certificates(ca.clone()).require_tls(true);
            let own = tls::client_file(ca);
            if own.is_file() {
                connect = connect.add_client_certificate(own.clone(), own);
            }
        }
        if options.patient {
            connect = connect.retry_on_initial_connect();
        }
        let servers: Vec<String> = options.server.split(',').map(|url| url.trim().to_owned()).collect();
        let client = connect.connect(servers).await.map_err(|error| explain_connect_error(&options, &error))?;
        if options.patient {
            tokio::spawn(complain_until_up(options.clone(), link.clone()));
        }
        Ok(Self { client: Client::Nats(client), api_prefix: options.api_prefix, link, server: options.server })
    }

    /// A connection to a broker that is simulated.
    #[cfg(feature = "simulate")]
    pub fn simulated(broker: Arc<dyn crate::simulate::Broker>, api_prefix: &'static str) -> Self {
        let link = broker.link();
        Self { client: Client::Simulated(broker), api_prefix, link, server: "simulated".into() }
    }

    /// The state of the link, to be watched.
    pub fn link(&self) -> watch::Receiver<Link> {
        #[cfg(feature = "simulate")]
        if let Client::Simulated(broker) = &self.client {
            return broker.link();
        }
        self.link.clone()
    }

    /// Whether the link is up now.
    pub fn is_up(&self) -> bool {
        self.client.is_up()
    }

    /// The address that this connection was made for.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The version of the broker that it is connected to.
    pub fn server_version(&self) -> Option<String> {
        self.client.server_version()
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

/// A patient connection says nothing of why it does not come about: until it first has, somebody else asks now and then.
fn complain_until_up(
    options: ConnectOptions,
    mut link: watch::Receiver<Link>,
) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    let options = ConnectOptions { patient: false, ..options };
    Box::pin(async move {
        loop {
            tokio::select! {
                // Up, or closed for good.
                _ = link.wait_for(|link| link.ups > 0) => return,
                () = tokio::time::sleep(COMPLAIN_EVERY) => {}
            }
            if let Err(error) = Bus::connect(options.clone()).await {
                tracing::warn!(%error, "there is no link to the broker yet");
            }
        }
    })
}

fn explain_connect_error(options: &ConnectOptions, error: &async_nats::ConnectError) -> BusError {
    use async_nats::ConnectErrorKind as Kind;
    let server = options.server.clone();
    let mut reason = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(below) = cause {
        let text = below.to_string();
        if !reason.contains(&text) {
            reason = format!("{reason}: {text}");
        }
        cause = below.source();
    }
    match (error.kind(), untrusted(&reason, options.ca.as_deref())) {
        (_, Some(reason)) => BusError::Untrusted { server, reason },
        (Kind::AuthorizationViolation | Kind::Authentication, None) => BusError::Refused { server, reason },
        (_, None) => BusError::Unreachable { server, reason },
    }
}

/// What a client has to show that has nothing, or the wrong thing, to show.
fn no_certificate(ca: Option<&Path>) -> String {
    let own = ca
        .map_or_else(|| "FILE.client.pem beside --ca FILE.pem".into(), |ca| tls::client_file(ca).display().to_string());
    format!(
        "it lets in only clients that show a certificate of the fleet's authority. Get a new bundle, where the fleet's keys are \
         (`steward node rotate NAME --out FILE`, `steward operator rotate NAME --out FILE`), or put certificate and key into {own}"
    )
}

/// What to do about a broker that shows the wrong certificate, or none.
fn untrusted(reason: &str, ca: Option<&Path>) -> Option<String> {
    let has = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if has(&["UnknownIssuer", "BadSignature", "CaUsedAsEndEntity"]) {
        let authority = ca.map_or_else(
            || "none of the authorities that this machine trusts has signed its certificate".to_owned(),
            |ca| format!("its certificate is not signed by the authority in {}", ca.display()),
        );
        return Some(format!(
            "{authority}. It is another fleet's, or its authority is new: get a new bundle, or the fleet's tls/ca.pem and \
             name it with --ca FILE"
        ));
    }
    if has(&["certificate expired", "Expired"]) {
        return Some(
            "its certificate has expired, or this machine's clock is wrong: the broker renews its own while it runs, one that was \
             given to it has to be replaced in its file"
                .into(),
        );
    }
    if has(&["UnknownCA", "BadCertificate", "DecryptError", "unknown certificate authority"]) {
        return Some(format!("it does not take the certificate that this client shows. {}", no_certificate(ca)));
    }
    if has(&["not valid for name", "NotValidForName"]) {
        return Some(
            "its certificate is for other names than the one in this address: start it with `steward broker --advertise \
             NAME`, or use a name that it has"
                .into(),
        );
    }
    if has(&["CertificateRequired", "certificate required"]) {
        return Some(no_certificate(ca));
    }
    has(&["tls error", "TLS error", "TLS connection"]).then(|| {
        format!("no TLS comes about ({reason}). If it speaks plain text, start it with TLS, or leave `ca` out of the context")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_for_its_own_user_alone_and_tried_in_turn() {
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let token = |by: &KeyPair, key: &KeyPair, name: &str, account: &str, iat: i64| {
            claims::sign_at(by, &key.public_key(), name, claims::User::scoped(account.into(), vec![]), iat).unwrap()
        };
        let first = token(&account, &user, "ship1", "A1", 5);
        let creds = claims::Creds::new(first.clone(), &user).unwrap();
        let credentials = Credentials::of(&creds).unwrap();
        let next = KeyPair::new_account();
        for wrong in [
            token(&next, &KeyPair::new_user(), "ship1", "A1", 6),
            token(&next, &user, "ship2", "A1", 6),
            token(&next, &user, "ship1", "A2", 6),
            token(&next, &user, "ship1", "A1", 4),
            "nonsense".to_owned(),
        ] {
            assert!(credentials.renew(&wrong).is_err(), "{wrong}");
        }
        let second = token(&next, &user, "ship1", "A1", 5);
        let shared = credentials.clone();
        assert_eq!(shared.renew(&second), Ok(true));
        assert_eq!(credentials.renew(&second), Ok(false));
        assert_eq!(credentials.issuer().unwrap(), PublicKey::of(&next));
        let shown = |tries| credentials.auth(tries, b"x").unwrap().jwt.unwrap();
        assert_eq!([shown(0), shown(1), shown(2)], [second.clone(), first, second]);
    }

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
