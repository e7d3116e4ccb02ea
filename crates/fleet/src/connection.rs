//! A connection to a fleet, with an identity and with the list of those who are believed.
//!
//! The list of operators ([`Trust`]) is sealed by the fleet's root: the key in the context, or the last one of the chain that
//! leads from it ([`Lineage`]) and comes with the list. It is
//! taken from the home and from the broker, whichever is newer; an older one never replaces a newer one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bus::clock::{self, BrokerTime};
use bus::kv::POLICY;
use bus::{Bus, BusError, ConnectOptions, Credentials};
use bytes::Bytes;
use message::succession::is_newer;
use message::{Lineage, PublicKey, Seal, SealedTrust, Timestamp, Trust, units};

use crate::context::Context;
use crate::error::FleetError;
use crate::files;
use crate::identity;
use crate::operators::save_list;

/// The key of bucket `POLICY` at which the list of operators stands.
pub const TRUST_KEY: &str = "trust";
/// How long the one attempt to connect may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Between two pings of an idle link.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// By how much this machine's clock may be off and still count. An answer of the broker takes its time, too.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(10);
/// How often a write is tried again when somebody else was faster.
pub(crate) const CONFLICTS_MAX: u32 = 5;

/// A connection to a fleet with the identity of its context; cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    bus: Bus,
    shared: Arc<Shared>,
}

struct Shared {
    context: Context,
    credentials: Credentials,
    trust: RwLock<(Arc<Trust>, Arc<Lineage>)>,
    time: BrokerTime,
    /// What this identity writes in the audit log.
    chain: crate::audit::Chain,
    /// Whether it was told that this machine's clock is wrong.
    clock_told: AtomicBool,
}

impl Fleet {
    /// Connects: one attempt within 5 s, then an error that says what to do. Reads the list of operators.
    ///
    /// # Errors
    /// [`FleetError`] when the credentials cannot be read, the broker cannot be reached, or no list of operators
    /// is signed by the context's root.
    pub async fn connect(context: &Context) -> Result<Self, FleetError> {
        let (credentials, options) = options(context, false).await?;
        let bus = tokio::time::timeout(CONNECT_MAX, Bus::connect(options)).await.map_err(|_| {
            let reason = format!("no answer within {} s", CONNECT_MAX.as_secs());
            BusError::Unreachable { server: context.server.clone(), reason }
        })??;
        let ours = trust_at_home(context);
        let known = ours.as_ref().map_or_else(|_| Lineage::new(context.root.clone()), |(_, roots)| roots.clone());
        let theirs = trust_at_broker(&bus, &known).await;
        let trust = match (ours, theirs) {
            (Ok(ours), Ok(Some((_, theirs)))) if !is_newer((&theirs.0, &theirs.1), (&ours.0, &ours.1)) => ours,
            (ours, Ok(Some((sealed, theirs)))) => {
                // Kept where there is a home: a broker that later tells an older one is not believed.
                let sealed = SealedTrust { roots: theirs.1.links(), ..sealed };
                if ours.is_ok()
                    && let Err(error) = save_list(&context.home(), &sealed)
                {
                    tracing::debug!(%error, "the newer list of operators is not kept");
                }
                theirs
            }
            (Ok(ours), _) => ours,
            (Err(reason), _) => return Err(reason),
        };
        let fleet = Self::assemble(bus, context, credentials, trust);
        if let Err(error) = fleet.renew_token().await {
            tracing::debug!(%error, "a new token could not be taken");
        }
        Ok(fleet)
    }

    /// The same with a connection that goes on trying for ever when the broker is not there yet: for services.
    ///
    /// # Errors
    /// [`FleetError`] when the credentials or `<home>/trust.json` cannot be used.
    pub async fn connect_patiently(context: &Context) -> Result<Self, FleetError> {
        let (credentials, options) = options(context, true).await?;
        let trust = trust_at_home(context)?;
        Ok(Self::assemble(Bus::connect(options).await?, context, credentials, trust))
    }

    fn assemble(bus: Bus, context: &Context, credentials: Credentials, trust: (Trust, Lineage)) -> Self {
        let trust = RwLock::new((Arc::new(trust.0), Arc::new(trust.1)));
        let (time, chain, clock_told) = (BrokerTime::default(), crate::audit::Chain::default(), AtomicBool::new(false));
        Self { bus, shared: Arc::new(Shared { context: context.clone(), credentials, trust, time, chain, clock_told }) }
    }

    /// What it was connected with.
    pub fn context(&self) -> &Context {
        &self.shared.context
    }

    /// The bus below.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The public key of this identity.
    pub fn key(&self) -> PublicKey {
        PublicKey::of(self.shared.credentials.pair())
    }

    /// The name under which this identity may order, if it may.
    pub fn operator(&self) -> Option<String> {
        self.trust().operator(&self.key()).map(|operator| operator.name.clone())
    }

    /// Who is believed.
    pub fn trust(&self) -> Arc<Trust> {
        // Nothing panics while it holds the lock; if something did, the list in it would still be whole.
        self.shared.trust.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Who was the fleet's root, who is, and who will be.
    pub fn roots(&self) -> Arc<Lineage> {
        self.shared.trust.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// The key of the fleet's root now.
    pub fn root(&self) -> PublicKey {
        self.roots().root().clone()
    }

    /// Now, for the times of what is ordered and looked for: by this machine's clock, unless it is far from the
    /// broker's, by which units tell what has expired. Then it is the broker's time, and that is told once.
    pub(crate) fn now(&self) -> Timestamp {
        let own = clock::now();
        let (now, off) = agreed_time(own, self.shared.time.now());
        if let Some(off) = off
            && !self.shared.clock_told.swap(true, Ordering::Relaxed)
        {
            let word = if own > now { "ahead of" } else { "behind" };
            tracing::warn!(
                "this machine's clock is {} {word} the broker's, by which it is told what has expired: the broker's time \
                 is used for orders; set the clocks by NTP (`steward doctor` shows how they stand)",
                units::human_duration(off)
            );
        }
        now
    }

    /// The broker has just said what time it is.
    pub(crate) fn read_time(&self, broker: Timestamp) {
        self.shared.time.read(broker);
    }

    /// Takes the list of operators from the broker if it is newer than the one known.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked.
    pub async fn refresh_trust(&self) -> Result<(), FleetError> {
        if let Some((_, theirs)) = trust_at_broker(&self.bus, &self.roots()).await? {
            self.adopt(theirs);
        }
        Ok(())
    }

    /// Hands the broker the list of operators that stands in `<home>/trust.json`, unless it has one as new.
    /// Tells whether it was handed over.
    ///
    /// # Errors
    /// [`FleetError`] when the file cannot be used or the broker does not take it.
    pub async fn publish_trust(&self) -> Result<bool, FleetError> {
        let (sealed, ours) = sealed_trust(self.context())?;
        let text = serde_json::to_string(&sealed).map_err(|error| FleetError::signing(&error))?;
        self.adopt(ours.clone());
        let known = self.roots();
        for _ in 0..CONFLICTS_MAX {
            // What the root did not sign is no reason to keep from writing what it did sign.
            let revision = match self.bus.kv_get(POLICY, TRUST_KEY).await? {
                None => 0,
                Some(message) => match open_trust(&message.payload, &known) {
                    Ok(theirs) if !is_newer((&ours.0, &ours.1), (&theirs.0, &theirs.1)) => return Ok(false),
                    _ => message.sequence,
                },
            };
            match self.bus.kv_put_if(POLICY, TRUST_KEY, Bytes::from(text.clone()), None, revision).await {
                Ok(_) => return Ok(true),
                Err(BusError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(BusError::Conflict { what: "the list of operators".into() }.into())
    }

    /// Sends what is buffered and closes.
    pub async fn close(&self) {
        self.bus.close().await;
    }

    pub(crate) fn adopt(&self, (trust, roots): (Trust, Lineage)) {
        let mut held = self.shared.trust.write().unwrap_or_else(PoisonError::into_inner);
        if is_newer((&trust, &roots), (&held.0, &held.1)) {
            *held = (Arc::new(trust), Arc::new(roots));
        }
    }

    /// The sealed list of operators, for others to verify: from the home, else from the broker.
    pub(crate) async fn sealed_trust(&self) -> Result<SealedTrust, FleetError> {
        let missing = match sealed_trust(self.context()) {
            Ok((sealed, _)) => return Ok(sealed),
            Err(error) => error,
        };
        let stored = self.bus.kv_get(POLICY, TRUST_KEY).await?;
        let sealed = stored.and_then(|message| serde_json::from_slice::<SealedTrust>(&message.payload).ok());
        sealed.filter(|sealed| self.roots().open(sealed).is_ok()).ok_or(missing)
    }

    pub(crate) fn chain(&self) -> &crate::audit::Chain {
        &self.shared.chain
    }

    pub(crate) fn credentials(&self) -> &Credentials {
        &self.shared.credentials
    }

    /// The name under which this identity signs; an error when it may not.
    pub(crate) fn signing_operator(&self) -> Result<String, FleetError> {
        self.operator().ok_or_else(|| FleetError::NotAnOperator { key: self.key().to_string() })
    }

    pub(crate) fn seal(&self, bytes: &[u8]) -> Result<Seal, FleetError> {
        Seal::over(bytes, self.shared.credentials.pair()).map_err(|error| FleetError::signing(&error))
    }
}

/// The time to go by, and by how much this machine's clock is off where it does not count.
fn agreed_time(own: Timestamp, broker: Option<Timestamp>) -> (Timestamp, Option<Duration>) {
    match broker {
        Some(broker) if own.since(broker).max(broker.since(own)) > CLOCK_OFF_MAX => {
            (broker, Some(own.since(broker).max(broker.since(own))))
        }
        _ => (own, None),
    }
}

async fn options(context: &Context, patient: bool) -> Result<(Credentials, ConnectOptions), FleetError> {
    let creds = identity::creds(context).await?;
    let credentials = Credentials::of(&creds)?;
    let (name, _) = creds.identity()?;
    let options = ConnectOptions {
        server: context.server.clone(),
        ca: context.ca.clone(),
        credentials: credentials.clone(),
        name: format!("steward {name}"),
        inbox_prefix: Some(creds.inbox_prefix()?),
        patient,
        ping_interval: PING_INTERVAL,
        api_prefix: bus::CORE_API,
    };
    Ok((credentials, options))
}

/// A list with the roots up to the one that sealed it.
pub(crate) type Believed = (Trust, Lineage);

/// The sealed list in the home, with what it says.
pub(crate) fn sealed_trust(context: &Context) -> Result<(SealedTrust, Believed), FleetError> {
    let path = context.home().trust_file();
    let text = files::read(&path)?.ok_or_else(|| FleetError::Trust {
        reason: format!(
            "there is no {}, and the broker has none that this fleet's root signed; copy the file from the home \
             where the fleet was made, or run `steward up` there once",
            path.display()
        ),
    })?;
    let wrong = |reason: String| FleetError::File { path: path.clone(), reason };
    let sealed: SealedTrust = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let believed = Lineage::new(context.root.clone()).open(&sealed).map_err(|error| wrong(error.to_string()))?;
    Ok((sealed, believed))
}

fn trust_at_home(context: &Context) -> Result<Believed, FleetError> {
    sealed_trust(context).map(|(_, believed)| believed)
}

async fn trust_at_broker(bus: &Bus, known: &Lineage) -> Result<Option<(SealedTrust, Believed)>, FleetError> {
    let Some(message) = bus.kv_get(POLICY, TRUST_KEY).await? else { return Ok(None) };
    let wrong = |reason: String| FleetError::Trust { reason };
    let sealed: SealedTrust = serde_json::from_slice(&message.payload).map_err(|error| wrong(error.to_string()))?;
    let believed = known.open(&sealed).map_err(|error| wrong(error.to_string()))?;
    Ok(Some((sealed, believed)))
}

pub(crate) fn open_trust(payload: &[u8], known: &Lineage) -> Result<Believed, String> {
    let sealed: SealedTrust = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    known.open(&sealed).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_far_off_does_not_count() {
        let at = Timestamp::from_ms;
        assert_eq!(agreed_time(at(5), None), (at(5), None));
        assert_eq!(agreed_time(at(5), Some(at(10_005))), (at(5), None));
        assert_eq!(agreed_time(at(5), Some(at(10_006))), (at(10_006), Some(Duration::from_millis(10_001))));
        assert_eq!(agreed_time(at(10_006), Some(at(5))), (at(5), Some(Duration::from_millis(10_001))));
    }
}
