//! New role keys, and new tokens for all whom the old ones let in.
//!
//! The broker first learns of a role's next key beside the present one; then everybody of the role is given a token that the
//! next one signed, over bucket `USERS`, and says when he has it on disk; at last the old key is taken out. Nobody is
//! disconnected before that, and whoever has taken his token comes back by himself.

use std::collections::{BTreeMap, BTreeSet};

use bus::claims::{self, Creds};
use bus::keys::{FleetKeys, Role};
use bus::kv::USERS;
use bus::{Bus, BusError, Headers, clock};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use message::audit::Act;
use message::{PublicKey, Renewal, Seal, Taken};

use crate::connection::Fleet;
use crate::context::Home;
use crate::error::FleetError;
use crate::files::{self, Access};
use crate::revoke::system_bus;

/// How many tokens are handed out at once.
const IN_FLIGHT_MAX: usize = 64;

/// Somebody whom a role's key lets in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// In which role.
    pub role: &'static str,
    /// What he is called.
    pub name: String,
    /// His own key.
    pub key: PublicKey,
}

/// How a role stands with its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStanding {
    /// The role.
    pub role: Role,
    /// The key that signs.
    pub key: String,
    /// Those before it that still let in whom they signed.
    pub old: Vec<String>,
    /// How many there are of the role that are known by name.
    pub holders: usize,
    /// While there are old keys: those who have not said that they have a token of the new one.
    pub without: Vec<Holder>,
}

/// What stands in bucket `USERS`.
#[derive(Default)]
struct Tokens {
    /// Whose token is signed by whom.
    offered: BTreeMap<PublicKey, String>,
    taken: BTreeMap<PublicKey, String>,
}

impl Fleet {
    /// Makes new keys for these roles, and gives everybody a token of theirs. Where a role has an old key still, it goes on with
    /// that rotation.
    ///
    /// # Errors
    /// [`FleetError`] when the keys are not in the home, or the broker cannot be told.
    pub async fn rotate_keys(&self, home: &Home, roles: &[Role]) -> Result<Vec<KeyStanding>, FleetError> {
        self.signing_operator()?;
        {
            let _lock = FleetKeys::lock(home.dir())?;
            let mut keys = FleetKeys::open(home.dir())?;
            let bus = system_bus(&keys, self.context()).await?;
            let told = async {
                for role in roles.iter().filter(|role| keys.old_keys(**role).is_empty()).copied().collect::<Vec<_>>() {
                    self.record(Act::change("keys rotate", role.as_str())).await?;
                    learn(&bus, &mut keys, role).await?;
                    bus.push_claims(&keys.begin_rotation(role)?).await?;
                    keys.finish_rotation(role)?;
                }
                Ok::<_, FleetError>(())
            };
            let told = told.await;
            bus.close().await;
            told?;
        }
        self.hand_out(home, roles).await?;
        self.key_standings(home, roles).await
    }

    /// Takes the old keys of these roles out: the broker ends the connections of those whom they signed and lets them in no
    /// more. Without `all`, only if everybody has taken a new token.
    ///
    /// # Errors
    /// [`FleetError::Usage`] with those whom it would cut off; otherwise when the broker cannot be told.
    pub async fn retire_keys(&self, home: &Home, roles: &[Role], all: bool) -> Result<Vec<KeyStanding>, FleetError> {
        self.hand_out(home, roles).await?;
        let standings = self.key_standings(home, roles).await?;
        let without: Vec<&Holder> = standings.iter().flat_map(|standing| &standing.without).collect();
        if !all && !without.is_empty() {
            let names: Vec<String> = without.iter().take(20).map(|one| format!("{} {}", one.role, one.name)).collect();
            let more = without.len().saturating_sub(names.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Err(FleetError::usage(format!(
                "{}{more} would be cut off: they have not taken a token of the new key yet, and would need a new bundle \
                 (`steward node rotate`, `steward operator rotate`). Wait until they were online, or say that you want it with \
                 --yes",
                names.join(", ")
            )));
        }
        let _lock = FleetKeys::lock(home.dir())?;
        let mut keys = FleetKeys::open(home.dir())?;
        let bus = system_bus(&keys, self.context()).await?;
        let told = async {
            for role in roles.iter().filter(|role| !keys.old_keys(**role).is_empty()).copied().collect::<Vec<_>>() {
                self.record(Act::change("keys retire", role.as_str())).await?;
                learn(&bus, &mut keys, role).await?;
                bus.push_claims(&keys.retire(role)?).await?;
            }
            Ok::<_, FleetError>(())
        };
        let told = told.await;
        bus.close().await;
        told?;
        Ok(standings)
    }

    /// How these roles stand with their keys.
    ///
    /// # Errors
    /// [`FleetError`] when the keys are not in the home, or the broker cannot be asked.
    pub async fn key_standings(&self, home: &Home, roles: &[Role]) -> Result<Vec<KeyStanding>, FleetError> {
        let keys = FleetKeys::open(home.dir())?;
        let (tokens, mut standings) = (self.user_tokens().await?, Vec::new());
        for role in roles {
            let holders = self.holders(home, *role).await?;
            let (key, old) = (keys.role_key(*role).unwrap_or_default(), keys.old_keys(*role));
            let count = holders.len();
            let has = |one: &Holder| tokens.taken.get(&one.key).is_some_and(|issuer| *issuer == key);
            let without = if old.is_empty() { vec![] } else { holders.into_iter().filter(|one| !has(one)).collect() };
            standings.push(KeyStanding { role: *role, key, old, holders: count, without });
        }
        Ok(standings)
    }

    /// Gives a token of the present key to everybody of these roles who has not been offered one.
    async fn hand_out(&self, home: &Home, roles: &[Role]) -> Result<(), FleetError> {
        let keys = FleetKeys::open(home.dir())?;
        let tokens = self.user_tokens().await?;
        for role in roles.iter().filter(|role| !keys.old_keys(**role).is_empty()) {
            let issuer = keys.role_key(*role).unwrap_or_default();
            let missing: Vec<Holder> = self
                .holders(home, *role)
                .await?
                .into_iter()
                .filter(|one| tokens.offered.get(&one.key) != Some(&issuer))
                .collect();
            stream::iter(missing)
                .map(|one| self.offer(&keys, *role, one))
                .buffer_unordered(IN_FLIGHT_MAX)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }

    async fn offer(&self, keys: &FleetKeys, role: Role, to: Holder) -> Result<(), FleetError> {
        let jwt = keys.renewed_jwt(role, &to.name, to.key.as_str())?;
        let renewal = Renewal::new(to.name, to.key.clone(), jwt, clock::now());
        let bytes = serde_json::to_vec(&renewal).map(Bytes::from).map_err(|error| FleetError::signing(&error))?;
        let seal = self.seal(&bytes)?;
        self.bus().kv_put(USERS, to.key.as_str(), bytes, Some(&seal)).await?;
        Ok(())
    }

    /// Who is let in by a role's key, as far as it is known by name.
    async fn holders(&self, home: &Home, role: Role) -> Result<BTreeSet<Holder>, FleetError> {
        let holder = |name: &str, key: PublicKey| Holder { role: role.as_str(), name: name.to_owned(), key };
        Ok(match role {
            Role::Node => {
                let nodes = self.nodes().await?.nodes;
                let nodes = nodes.into_iter().filter(|node| node.record.revoked.is_none());
                nodes.map(|node| holder(node.record.name.as_str(), node.record.key)).collect()
            }
            Role::Operator => {
                let trust = self.trust();
                let active = trust.operators.iter().filter(|one| trust.operator(&one.key).is_some());
                active.map(|one| holder(&one.name, one.key.clone())).collect()
            }
            Role::Station => {
                let Some(text) = files::read(&home.station_creds())? else { return Ok(BTreeSet::new()) };
                let token = Creds::parse(&text)?.token()?;
                let key = PublicKey::parse(token.sub).map_err(|error| FleetError::signing(&error))?;
                BTreeSet::from([holder(&token.name, key)])
            }
            // Made for the occasion.
            Role::Provisioner | Role::System => BTreeSet::new(),
        })
    }

    async fn user_tokens(&self) -> Result<Tokens, FleetError> {
        let ((offered, _), (taken, _)) =
            tokio::try_join!(self.bus().kv_all(USERS, "*"), self.bus().kv_all(USERS, "taken.*"))?;
        let (trust, mut tokens) = (self.trust(), Tokens::default());
        for found in offered {
            let Ok(key) = PublicKey::parse(bus::kv::key_of(&found.subject)) else { continue };
            // What another operator has offered, this one need not.
            if found.signer().is_ok_and(|signer| trust.operator(&signer).is_some())
                && let Ok(renewal) = Renewal::parse(&found.payload, &key)
                && let Ok(token) = claims::read::<claims::User>(&renewal.jwt)
            {
                tokens.offered.insert(key, token.iss);
            }
        }
        for found in taken {
            let key = bus::kv::key_of(&found.subject).strip_prefix("taken.").unwrap_or_default();
            let Ok(key) = PublicKey::parse(key) else { continue };
            if found.signer().is_ok_and(|signer| signer == key)
                && let Ok(taken) = Taken::parse(&found.payload, &key)
            {
                tokens.taken.insert(key, taken.issuer.to_string());
            }
        }
        Ok(tokens)
    }

    /// Takes a new token for this identity, if there is one: it is in the place of the old one in the file of credentials when
    /// this returns, and used from the next connect on. Tells whether there was one.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked, or the file cannot be written.
    pub async fn renew_token(&self) -> Result<bool, FleetError> {
        let key = self.key();
        let found = match self.bus().kv_get(USERS, key.as_str()).await {
            // A broker that was set up by an earlier version has none.
            Ok(None) | Err(BusError::NoStream { .. }) => return Ok(false),
            found => found?,
        };
        let Some(found) = found else { return Ok(false) };
        let believed = found.signer().is_ok_and(|signer| self.trust().operator(&signer).is_some());
        let Some(renewal) = Renewal::parse(&found.payload, &key).ok().filter(|_| believed) else { return Ok(false) };
        // In memory first: the connections that there are use it whatever becomes of the file.
        match self.credentials().renew(&renewal.jwt) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => {
                tracing::debug!(%error, "a new token is not taken");
                return Ok(false);
            }
        }
        let path = &self.context().creds;
        let before = files::read(path)?.unwrap_or_default();
        let creds = Creds::new(renewal.jwt, self.credentials().pair())?;
        // The private key stays where it was: in this file, or with a command.
        let text = if Creds::parse(&before).is_ok() { creds.render() } else { creds.render_public() };
        files::write(path, &text, Access::Secret)?;
        let taken = Taken::new(key.clone(), self.credentials().issuer()?);
        let bytes = serde_json::to_vec(&taken).map(Bytes::from).map_err(|error| FleetError::signing(&error))?;
        let seal: Seal = self.seal(&bytes)?;
        self.bus().publish(&format!("$KV.{USERS}.taken.{key}"), Headers::new().sealed(&seal), bytes).await?;
        Ok(true)
    }
}

/// Takes over what the broker knows of the account that a role lives in.
async fn learn(bus: &Bus, keys: &mut FleetKeys, role: Role) -> Result<(), FleetError> {
    if let Some(known) = bus.claims_of(keys.account_of(role)).await? {
        keys.learn(role, &known)?;
    }
    Ok(())
}
