//! Enrolment by token: a unit makes its own key, knocks, and waits until an operator has answered.
//!
//! In flows a token; out flows what an agent needs to start. The private key is made here, lies in `enrolment.json` of the
//! state directory (mode 0600), and never leaves it. The broker, and whoever else has the token, are not believed: an answer
//! counts if an operator signed it who is on the list that the root has sealed, for this very name and key; and before it is
//! kept, the unit looks once more as the node that it is to be: by the newest list at the broker, an operator must have
//! signed its record. So neither a revoked operator's old answer nor a stranger's new one makes anybody believe anything.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bus::claims::Creds;
use bus::keys::{knocker, knocker_inbox};
use bus::tls::ClientKey;
use bus::{Bus, BusError, ConnectOptions, Credentials, EDGE_API, KNOCK_API, Knocked, LiveStored, clock, kv};
use bytes::Bytes;
use data_encoding::BASE64;
use message::admission::{KnockKind, fingerprint};
use message::succession::is_newer;
use message::{
    Admission, Decision, EnrolToken, Knock, Lineage, NodeName, NodeRecord, PublicKey, Seal, SealedDocument,
    SealedTrust, Trust, WIRE_VERSION,
};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::options::AgentError;
use crate::policy::keep;
use crate::trust::TRUST_KEY;

/// Below the state directory.
const FILE: &str = "enrolment.json";
/// Its owner's only: it holds the private key.
const FILE_MODE: u32 = 0o600;
/// Between two pings of an idle link.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// How long one attempt to connect may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The first and the longest time after which a broker that is not there is tried again. Thousands may wait.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The first and the longest time after which one who waits looks for an answer that it may have missed, and knocks again.
const LOOK: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// How often in a row an answer that is not believed is looked at again soon.
const DOUBTS_MAX: u32 = 5;
/// How often in a row the broker has to refuse the token to be believed.
const REFUSALS_MAX: u32 = 4;

/// What is needed to knock.
pub struct KnockOptions {
    /// The token.
    pub token: EnrolToken,
    /// What this unit wants to be called.
    pub name: NodeName,
    /// Where the broker is, if not where the token says.
    pub server: Option<String>,
    /// The authority that the broker's certificate must come from, as a PEM file.
    pub ca: Option<PathBuf>,
    /// Where the key is kept, and what came of it.
    pub state_dir: PathBuf,
}

/// What an agent that was accepted needs to start.
#[derive(Clone)]
pub struct Enrolled {
    /// Its name.
    pub name: NodeName,
    /// Where the broker is.
    pub server: String,
    /// The authority that the broker's certificate must come from, as PEM.
    pub ca: Option<String>,
    /// The certificate and key that a broker may ask for, as PEM: for one with a bundle.
    pub client: Option<String>,
    /// The text of its `.creds` file.
    pub credentials: String,
    /// The public key of the fleet's root.
    pub root: PublicKey,
    /// The list of operators, sealed by the root.
    pub trust: SealedTrust,
    /// The policy, if there was one.
    pub policy: Option<SealedDocument>,
}

/// What lies in the state directory.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    v: u8,
    name: NodeName,
    root: PublicKey,
    /// The private key.
    seed: String,
    server: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
    /// The private key of the certificate that a broker may ask for, as PEM: where the token has such a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls_key: Option<String>,
    /// What an operator has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Admission>,
}

impl Kept {
    fn load(dir: &Path) -> Result<Option<Self>, AgentError> {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join(FILE);
        let wrong =
            |reason: String| AgentError::Knock { reason: format!("{} cannot be used: {reason}", path.display()) };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let mode = std::fs::metadata(&path).map_err(|error| wrong(error.to_string()))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(wrong(format!(
                "others than its owner can read it (mode {mode:o}); run `chmod 600 {}`, and if anyone may have seen it, \
                 remove it and knock again",
                path.display()
            )));
        }
        // The parser's words could repeat the key.
        let damaged = || wrong("it is damaged: remove it, and start with --token again".into());
        let kept: Self = serde_json::from_str(&text).map_err(|_| damaged())?;
        if kept.v != WIRE_VERSION || kept.pair().is_none() {
            return Err(damaged());
        }
        Ok(Some(kept))
    }

    async fn save(&self, dir: &Path) -> Result<(), AgentError> {
        let path = dir.join(FILE);
        let wrong =
            |reason: String| AgentError::Knock { reason: format!("{} cannot be written: {reason}", path.display()) };
        let text = serde_json::to_string_pretty(self).map_err(|error| wrong(error.to_string()))?;
        std::fs::create_dir_all(dir).map_err(|error| wrong(error.to_string()))?;
        keep(path.clone(), format!("{text}\n"), FILE_MODE).await.map_err(|error| wrong(error.to_string()))
    }

    fn pair(&self) -> Option<KeyPair> {
        let pair = KeyPair::from_seed(&self.seed).ok()?;
        matches!(pair.key_pair_type(), nkeys::KeyPairType::User).then_some(pair)
    }

    /// What an agent starts with, if this unit was accepted; an error if it was rejected.
    fn outcome(&self, dir: &Path) -> Result<Option<Enrolled>, AgentError> {
        let Some(answer) = &self.answer else { return Ok(None) };
        let path = dir.join(FILE);
        if answer.decision == Decision::Rejected {
            return Err(AgentError::Knock {
                reason: format!(
                    "{} rejected {} (key {}) at {}; if that was a mistake, remove {} and start with a token again: it \
                     then knocks with a new key",
                    answer.by,
                    self.name,
                    fingerprint(&answer.key),
                    answer.at,
                    path.display()
                ),
            });
        }
        let creds = answer.jwt.as_ref().zip(self.pair()).and_then(|(jwt, pair)| Creds::new(jwt.clone(), &pair).ok());
        let Some(creds) = creds else {
            return Err(AgentError::Knock {
                reason: format!("{} is damaged: remove it, and enrol the unit anew", path.display()),
            });
        };
        Ok(Some(Enrolled {
            name: self.name.clone(),
            server: self.server.clone(),
            ca: self.ca.clone(),
            client: answer.client.as_ref().zip(self.tls_key.as_ref()).map(|(cert, key)| format!("{cert}{key}")),
            credentials: creds.render(),
            root: self.root.clone(),
            trust: answer.trust.clone(),
            policy: answer.policy.clone(),
        }))
    }
}

/// What the unit of this state directory was accepted as; `None` if it never was.
///
/// # Errors
/// [`AgentError::Knock`] when it was rejected, or what lies there cannot be used.
pub fn enrolled(state_dir: &Path) -> Result<Option<Enrolled>, AgentError> {
    Kept::load(state_dir)?.map_or(Ok(None), |kept| kept.outcome(state_dir))
}

/// Knocks, and waits for the answer as long as it takes; `None` when it is cancelled.
///
/// # Errors
/// [`AgentError::Knock`] when this unit is rejected, the broker refuses the token, or nothing can be kept on disk.
pub async fn knock(options: KnockOptions, cancel: CancellationToken) -> Result<Option<Enrolled>, AgentError> {
    // Until this ends: two that make a key each would be two units, and one of them is lost.
    let _alone = alone(&options.state_dir)?;
    let kept = identity(&options).await?;
    if let Some(enrolled) = kept.outcome(&options.state_dir)? {
        return Ok(Some(enrolled));
    }
    let Some(pair) = kept.pair() else {
        return Err(AgentError::Knock { reason: "its private key is damaged".into() });
    };
    let key = PublicKey::of(&pair);
    tracing::info!(
        name = %kept.name, fingerprint = fingerprint(&key), key = %key, server = kept.server,
        "this unit knocks, and waits until an operator answers: compare the fingerprint, then `steward node accept {}` \
         where the fleet's keys are", kept.name
    );
    let knocking = Knocking { options, kept, pair, key };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Ok(None),
        answered = knocking.until_answered() => answered.map(Some),
    }
}

/// Keeps every other agent from knocking with this state directory until the returned file is dropped.
fn alone(dir: &Path) -> Result<File, AgentError> {
    let path = dir.join("enrolment.lock");
    let wrong = |reason: String| AgentError::Knock { reason };
    let cannot = |error: std::io::Error| wrong(format!("{} cannot be locked: {error}", path.display()));
    std::fs::create_dir_all(dir).map_err(cannot)?;
    let file = File::options().write(true).create(true).truncate(false).mode(FILE_MODE).open(&path).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(wrong(format!(
            "another agent knocks from {} already: stop that one, or name another directory with --state",
            dir.display()
        ))),
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}

/// The key of this unit and what it is called: as kept, or made now.
async fn identity(options: &KnockOptions) -> Result<Kept, AgentError> {
    let (token, dir) = (&options.token, &options.state_dir);
    let wrong = |reason: String| Err(AgentError::Knock { reason });
    let found = Kept::load(dir)?;
    if let Some(kept) = &found
        && kept.answer.as_ref().is_some_and(|answer| answer.decision == Decision::Accepted)
    {
        return if kept.name != options.name {
            wrong(format!(
                "{} is the state directory of {}, not of {}: leave --name out, or name another one with --state",
                dir.display(),
                kept.name,
                options.name
            ))
        } else if kept.root != token.root {
            wrong(format!(
                "{} is the state directory of a unit of another fleet: name another one with --state",
                dir.display()
            ))
        } else {
            let server = options.server.clone().unwrap_or_else(|| kept.server.clone());
            Ok(Kept { server, ..kept.clone() })
        };
    }
    let server = options.server.clone().unwrap_or_else(|| token.server.clone());
    let own_key = || {
        let made = token.client.as_ref().map(|_| ClientKey::generate().map(|key| key.pem())).transpose();
        made.map_err(|error| AgentError::Knock { reason: error.to_string() })
    };
    let kept = match found {
        // A knock is under its key for good: under another name or at another fleet, it takes another key.
        Some(kept) if kept.name == options.name && kept.root == token.root => {
            let tls_key = if kept.tls_key.is_some() { kept.tls_key.clone() } else { own_key()? };
            Kept { server, ca: token.ca.clone(), tls_key, ..kept }
        }
        _ => {
            let seed = KeyPair::new_user().seed().map_err(|error| AgentError::Knock { reason: error.to_string() })?;
            Kept {
                v: WIRE_VERSION,
                name: options.name.clone(),
                root: token.root.clone(),
                seed,
                server,
                ca: token.ca.clone(),
                tls_key: own_key()?,
                answer: None,
            }
        }
    };
    // On disk before anybody hears of it: a key that was lost could not come in.
    kept.save(dir).await?;
    Ok(kept)
}

struct Knocking {
    options: KnockOptions,
    kept: Kept,
    pair: KeyPair,
    key: PublicKey,
}

/// How one visit at the door has ended.
enum Visit {
    /// An operator has answered.
    Answered(Box<Admission>),
    /// The link went down.
    Cut,
}

/// What a look for an answer has found.
enum Look {
    /// Nothing yet.
    Nothing,
    /// One that is not believed, or not yet.
    Doubtful,
    /// One that is believed.
    Answered(Box<Admission>),
}

impl Knocking {
    async fn until_answered(mut self) -> Result<Enrolled, AgentError> {
        let (mut failures, mut refusals) = (0_u32, 0_u32);
        loop {
            match self.visit().await {
                Ok(Visit::Answered(answer)) => {
                    self.kept.answer = Some(*answer);
                    self.kept.save(&self.options.state_dir).await?;
                    if let Some(enrolled) = self.kept.outcome(&self.options.state_dir)? {
                        tracing::info!(name = %enrolled.name, "this unit was accepted: the token is not needed any more");
                        return Ok(enrolled);
                    }
                }
                Ok(Visit::Cut) => {
                    (failures, refusals) = (0, 0);
                    tracing::warn!("the link to the broker is down: trying again");
                }
                Err(BusError::Refused { .. }) => {
                    refusals += 1;
                    if refusals >= REFUSALS_MAX {
                        return Err(self.refused());
                    }
                }
                Err(error) => {
                    refusals = 0;
                    tracing::warn!(%error, "this unit cannot knock yet: trying again");
                }
            }
            failures = failures.saturating_add(1);
            tokio::time::sleep(jittered(RETRY, failures)).await;
        }
    }

    fn refused(&self) -> AgentError {
        let token = &self.options.token;
        let how = if clock::now() >= token.expires {
            format!("it has expired at {}", token.expires)
        } else {
            format!(
                "it was revoked, or as many units knock with it at once as may, or it belongs to another fleet (it would \
                 expire at {})",
                token.expires
            )
        };
        let short = message::admission::short(&token.id);
        AgentError::Knock {
            reason: format!(
                "the broker refuses the token {short}: {how}; get a new one (`steward node token` where the fleet's keys are), \
                 and start with it on the same state directory"
            ),
        }
    }

    /// One connection: knock, then listen and look until there is an answer.
    async fn visit(&self) -> Result<Visit, BusError> {
        let token = &self.options.token;
        let unusable = |reason: String| BusError::Credentials { path: "the token".into(), reason };
        let signer = token.key().map_err(|error| unusable(error.to_string()))?;
        let creds =
            knocker(&signer, token.account.as_str(), &self.pair).map_err(|error| unusable(error.to_string()))?;
        let bus = self.connect(&creds, knocker_inbox(self.key.as_str()), KNOCK_API).await?;
        let visited = self.wait(&bus).await;
        bus.close().await;
        visited
    }

    async fn connect(&self, creds: &Creds, inbox: String, api_prefix: &'static str) -> Result<Bus, BusError> {
        let options = ConnectOptions {
            server: self.kept.server.clone(),
            ca: self.options.ca.clone(),
            credentials: Credentials::of(creds)?,
            name: format!("steward agent {}, knocking", self.kept.name),
            inbox_prefix: Some(inbox),
            patient: false,
            ping_interval: PING_INTERVAL,
            api_prefix,
        };
        let late = |_| BusError::Timeout { what: "a connection".into() };
        tokio::time::timeout(CONNECT_MAX, Bus::connect(options)).await.map_err(late)?
    }

    async fn wait(&self, bus: &Bus) -> Result<Visit, BusError> {
        let subjects = Decision::ALL.map(|decision| format!("core.KV.{}.{}", kv::ADMISSIONS, decision.at(&self.key)));
        let mut hints = LiveStored::open(bus, &subjects).await?;
        let mut link = bus.link();
        let (mut looks, mut doubts, mut told) = (0_u32, 0_u32, None);
        loop {
            // First an answer that is there: whoever was answered need not knock.
            match self.look(bus).await? {
                Look::Answered(answer) => return Ok(Visit::Answered(answer)),
                Look::Nothing => doubts = 0,
                Look::Doubtful => doubts = doubts.saturating_add(1),
            }
            if (1..=DOUBTS_MAX).contains(&doubts) {
                // The broker may have been too busy for a second connection: no reason to wait long, or to knock again.
                tokio::time::sleep(jittered(RETRY, doubts)).await;
                continue;
            }
            let knocked = self.leave_knock(bus).await?;
            if told.as_ref() != Some(&knocked) {
                match &knocked {
                    Knocked::Waits | Knocked::WaitsAlready => tracing::info!(
                        name = %self.kept.name, fingerprint = fingerprint(&self.key), "waiting for an operator's answer"
                    ),
                    Knocked::Full(reason) => tracing::warn!(
                        reason,
                        "too many units wait at the door: this one tries again, until some have been answered"
                    ),
                }
                told = Some(knocked);
            }
            looks = looks.saturating_add(1);
            // What is doubtful may come true by a record that is still on its way, of which no hint tells.
            let pause = if doubts > 0 { jittered(RETRY, doubts) } else { jittered(LOOK, looks) };
            tokio::select! {
                hint = hints.next() => {
                    if hint.is_none() {
                        return Ok(Visit::Cut);
                    }
                }
                _ = link.wait_for(|link| !link.up) => return Ok(Visit::Cut),
                () = tokio::time::sleep(pause) => tracing::info!(
                    name = %self.kept.name, fingerprint = fingerprint(&self.key), "still waiting for an operator's answer"
                ),
            }
        }
    }

    async fn leave_knock(&self, bus: &Bus) -> Result<Knocked, BusError> {
        let knock = Knock {
            v: WIRE_VERSION,
            kind: KnockKind::Knock,
            token: self.options.token.id,
            name: self.kept.name.clone(),
            key: self.key.clone(),
            tls_key: self.kept.tls_key.as_deref().and_then(ClientKey::from_pem).map(|key| BASE64.encode(key.public())),
            version: crate::VERSION.to_owned(),
            at: clock::now(),
        };
        let wrong = |reason: String| BusError::Other { what: "signing a knock".into(), reason };
        let bytes = serde_json::to_vec(&knock).map_err(|error| wrong(error.to_string()))?;
        let seal = Seal::over(&bytes, &self.pair).map_err(|error| wrong(error.to_string()))?;
        bus.knock(&knock.subject(), Bytes::from(bytes), &seal).await
    }

    /// An answer that is believed, if there is one.
    async fn look(&self, bus: &Bus) -> Result<Look, BusError> {
        let mut found_nothing = Look::Nothing;
        for decision in Decision::ALL {
            let Some(found) = bus.kv_get(kv::ADMISSIONS, &decision.at(&self.key)).await? else { continue };
            let opened = found.signer().map_err(|error| error.to_string()).and_then(|signer| {
                let me = (&self.kept.name, &self.key);
                Admission::open(&found.payload, &signer, decision, &self.options.token, me)
                    .map_err(|error| error.to_string())
            });
            let believed = match opened {
                Ok((answer, ..)) if decision == Decision::Rejected => Ok(answer),
                Ok((answer, trust, roots)) => self.confirm(answer, trust, roots).await,
                Err(reason) => Err(reason),
            };
            match believed {
                Ok(answer) => return Ok(Look::Answered(Box::new(answer))),
                Err(reason) => {
                    tracing::warn!(reason, "an answer to this unit's knock is not believed");
                    found_nothing = Look::Doubtful;
                }
            }
        }
        Ok(found_nothing)
    }

    /// Looks at the fleet as the node that this unit is to be: with its new rights, by the newest list of operators.
    ///
    /// # Errors
    /// A sentence that says why the answer does not count, or not yet.
    async fn confirm(&self, answer: Admission, trust: Trust, roots: Lineage) -> Result<Admission, String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let jwt = answer.jwt.clone().unwrap_or_default();
        let creds = Creds::new(jwt, &self.pair).map_err(|error| said(&error))?;
        let token = creds.token().map_err(|error| said(&error))?;
        if token.sub != self.key.as_str() || token.name != self.kept.name.as_str() {
            return Err(format!("the NATS user token in it is that of {} with the key {}", token.name, token.sub));
        }
        let inbox = format!("_INBOX.{}", self.kept.name);
        let bus = self.connect(&creds, inbox, EDGE_API).await.map_err(|error| said(&error))?;
        let read = tokio::try_join!(bus.kv_get(kv::POLICY, TRUST_KEY), bus.kv_get(kv::NODES, self.kept.name.as_str()));
        bus.close().await;
        let (list, record) = read.map_err(|error| said(&error))?;
        let mut answer = answer;
        let mut newest = trust;
        if let Some(sealed) = list.and_then(|list| serde_json::from_slice::<SealedTrust>(&list.payload).ok())
            && let Ok((theirs, lineage)) = roots.open(&sealed)
            && is_newer((&theirs, &lineage), (&newest, &roots))
        {
            (answer.trust, newest) = (SealedTrust { roots: lineage.links(), ..sealed }, theirs);
        }
        let record = record.ok_or("no operator has made a record of this unit")?;
        let signer = record.signer().map_err(|error| said(&error))?;
        if newest.operator(&signer).is_none() {
            return Err(format!("the record of this unit is signed by {signer}, who is no operator of this fleet now"));
        }
        let record: NodeRecord = serde_json::from_slice(&record.payload).map_err(|error| said(&error))?;
        if record.key != self.key || record.name != self.kept.name || record.revoked.is_some() {
            return Err(format!("the record of {} is that of another key, or says that it was revoked", record.name));
        }
        Ok(answer)
    }
}

/// Full jitter over a time that doubles up to a cap: what waits in thousands must not ask in step.
fn jittered((first, most): (Duration, Duration), tries: u32) -> Duration {
    let doubled = first.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(most);
    let ms = u64::try_from(doubled.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(ms / 2 + clock::jitter(ms / 2 + 1))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use message::Timestamp;
    use message::TokenId;
    use message::admission::{AdmissionKind, TokenKind};

    use super::*;

    fn options(dir: &Path, name: &str, root: &KeyPair) -> KnockOptions {
        let token = EnrolToken {
            v: WIRE_VERSION,
            kind: TokenKind::Token,
            id: TokenId::from_bytes([7; 16]),
            server: "nats://127.0.0.1:1".into(),
            ca: None,
            client: None,
            root: PublicKey::of(root),
            serial: 1,
            account: PublicKey::of(&KeyPair::new_account()),
            seed: KeyPair::new_account().seed().unwrap(),
            expires: Timestamp::from_ms(0),
        };
        KnockOptions { token, name: NodeName::new(name).unwrap(), server: None, ca: None, state_dir: dir.to_owned() }
    }

    async fn answered(dir: &Path, decision: Decision) {
        let mut kept = Kept::load(dir).unwrap().unwrap();
        let pair = kept.pair().unwrap();
        let user = bus::claims::User::scoped("A".into(), vec![]);
        let jwt = bus::claims::sign(&KeyPair::new_account(), &pair.public_key(), "ship7", user).unwrap();
        kept.answer = Some(Admission {
            v: WIRE_VERSION,
            kind: AdmissionKind::Admission,
            decision,
            token: TokenId::from_bytes([7; 16]),
            name: kept.name.clone(),
            key: PublicKey::of(&pair),
            jwt: Some(jwt),
            client: None,
            trust: SealedDocument::new("{}".into(), &pair).unwrap().into(),
            policy: None,
            by: "admin".into(),
            at: Timestamp::from_ms(0),
        });
        kept.save(dir).await.unwrap();
    }

    #[tokio::test]
    async fn the_key_is_kept_for_its_owner_only_and_belongs_to_one_name_in_one_fleet() {
        let (dir, root, other) = (tempfile::tempdir().unwrap(), KeyPair::new_operator(), KeyPair::new_operator());
        let dir = dir.path().join("state");
        let first = identity(&options(&dir, "ship7", &root)).await.unwrap();
        let mode = std::fs::metadata(dir.join(FILE)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(identity(&options(&dir, "ship7", &root)).await.unwrap().seed, first.seed);
        assert_ne!(identity(&options(&dir, "ship8", &root)).await.unwrap().seed, first.seed);
        assert_ne!(identity(&options(&dir, "ship8", &other)).await.unwrap().seed, first.seed);
        std::fs::set_permissions(dir.join(FILE), std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = identity(&options(&dir, "ship8", &other)).await.err().unwrap().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[tokio::test]
    async fn who_was_accepted_needs_no_token_and_keeps_its_name() {
        let (dir, root) = (tempfile::tempdir().unwrap(), KeyPair::new_operator());
        let kept = identity(&options(dir.path(), "ship7", &root)).await.unwrap();
        assert!(enrolled(dir.path()).unwrap().is_none());
        answered(dir.path(), Decision::Accepted).await;
        let found = enrolled(dir.path()).unwrap().unwrap();
        assert!(found.credentials.contains(&kept.seed));
        let again = knock(options(dir.path(), "ship7", &root), CancellationToken::new()).await.unwrap().unwrap();
        assert_eq!(again.credentials, found.credentials);
        let error = identity(&options(dir.path(), "ship8", &root)).await.err().unwrap().to_string();
        assert!(error.contains("--state"), "{error}");
        let other = KeyPair::new_operator();
        let error = identity(&options(dir.path(), "ship7", &other)).await.err().unwrap().to_string();
        assert!(error.contains("another fleet"), "{error}");
    }

    #[tokio::test]
    async fn who_was_rejected_is_told_so_again_and_a_damaged_file_shows_nothing() {
        let (dir, root) = (tempfile::tempdir().unwrap(), KeyPair::new_operator());
        let kept = identity(&options(dir.path(), "ship7", &root)).await.unwrap();
        answered(dir.path(), Decision::Rejected).await;
        let error = enrolled(dir.path()).err().unwrap().to_string();
        assert!(error.contains("admin rejected ship7") && error.contains(FILE), "{error}");
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"v\"", "\"w\"")).unwrap();
        let error = enrolled(dir.path()).err().unwrap().to_string();
        assert!(error.contains("damaged") && !error.contains(&kept.seed), "{error}");
    }

    #[test]
    fn one_agent_knocks_from_a_directory_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = alone(dir.path()).unwrap();
        let error = alone(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another agent knocks"), "{error}");
        drop(first);
        alone(dir.path()).unwrap();
    }

    #[test]
    fn waiting_grows_is_jittered_and_capped() {
        for tries in 1..40 {
            let wait = jittered(LOOK, tries);
            assert!(wait >= LOOK.0 / 2 && wait <= LOOK.1, "{tries}: {wait:?}");
        }
        let distinct: std::collections::BTreeSet<_> = (0..50).map(|_| jittered(LOOK, 9)).collect();
        assert!(distinct.len() > 10);
    }
}
