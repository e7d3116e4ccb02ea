//! Tokens: made, listed, counted and ended.

use std::collections::BTreeMap;
use std::time::Duration;

use bus::keys::FleetKeys;
use bus::kv::{ADMISSIONS, key_of};
use bus::{BusError, Message, clock};
use bytes::Bytes;
use message::admission::{TokenKind, TokenRecordKind, USES_MAX, short};
use message::audit::Act;
use message::{EnrolToken, PublicKey, TokenId, TokenRecord, WIRE_VERSION, units};
use nkeys::KeyPair;

use crate::connection::{CONFLICTS_MAX, Fleet};
use crate::context::Home;
use crate::error::FleetError;
use crate::files::{self, Access};
use crate::nodes::check_label;
use crate::revoke::system_bus;

/// The longest time that a token is good. Answers are kept longer than that.
pub const LIFETIME_MAX: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// How many tokens may be open at once: each has an account at the broker.
const OPEN_MAX: usize = 1000;
/// Tokens stand at `token.<id>`.
const TOKEN: &str = "token";

/// What a new token shall be good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// How many units may be accepted by it.
    pub uses: u32,
    /// For how long.
    pub lifetime: Duration,
    /// What these units are labelled with.
    pub labels: BTreeMap<String, String>,
}

impl Fleet {
    /// Makes a token: its record, its account at the broker, and what is carried to the units. Nothing of it is kept here but
    /// how often it was used.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when the limits make no sense; [`FleetError::Keys`] when the fleet's keys are not in `home`.
    pub async fn make_token(&self, home: &Home, new: &NewToken) -> Result<EnrolToken, FleetError> {
        if new.uses == 0 || new.uses > USES_MAX {
            return Err(FleetError::usage(format!("a token is good for 1 to {USES_MAX} units, not for {}", new.uses)));
        }
        if new.lifetime < Duration::from_secs(1) || new.lifetime > LIFETIME_MAX {
            return Err(FleetError::usage(format!(
                "a token is good for 1s to {}, not for {}",
                units::human_duration(LIFETIME_MAX),
                units::human_duration(new.lifetime)
            )));
        }
        new.labels.iter().try_for_each(|(key, value)| check_label(key, value))?;
        let by = self.signing_operator()?;
        let keys = FleetKeys::open(home.dir())?;
        let now = self.broker_now().await?;
        let open = self.tokens(home).await?.0.iter().filter(|token| token.left(now).is_ok()).count();
        if open >= OPEN_MAX {
            return Err(FleetError::usage(format!(
                "{open} tokens are open, and there may be no more: end some with `steward node token revoke ID`, or give one \
                 more --uses"
            )));
        }
        let (signer, account) = (KeyPair::new_account(), PublicKey::of(&KeyPair::new_account()));
        let id = TokenId::from_bytes(*clock::message_id().as_bytes());
        let expires = now.plus(new.lifetime);
        let record = TokenRecord {
            v: WIRE_VERSION,
            kind: TokenRecordKind::TokenRecord,
            id,
            account: account.clone(),
            uses: new.uses,
            used: 0,
            expires,
            labels: new.labels.clone(),
            created: now,
            by,
            revoked: None,
        };
        let seed = signer.seed().map_err(|error| FleetError::signing(&error))?;
        let token = EnrolToken {
            v: WIRE_VERSION,
            kind: TokenKind::Token,
            id,
            server: self.context().server.clone(),
            ca: self.context().ca_pem()?,
            client: self.context().door_pem(&short(&id), expires)?,
            root: self.context().root.clone(),
            serial: self.trust().serial,
            account: account.clone(),
            seed,
            expires,
        };
        // What units would refuse to read must not be made.
        let text = token.to_text().map_err(|error| FleetError::usage(error.to_string()))?;
        EnrolToken::parse(&text).map_err(|error| FleetError::usage(format!("no token can be made: {error}")))?;
        let told = format!("{} uses until {expires}", new.uses);
        self.record(Act::change("token create", id.to_string()).of_key(&account).noting(told)).await?;
        self.write_token(home, &record, 0).await?;
        // Whole seconds, and rather later than the record says: whoever accepts is exact.
        let until = expires.as_ms().div_euclid(1000).saturating_add(1);
        let jwt = keys.open_door(account.as_str(), &id.to_string(), &signer.public_key(), new.uses, until)?;
        self.push_account(&keys, &jwt).await?;
        Ok(token)
    }

    /// All tokens that are believed, newest first, and what was not believed.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked.
    pub async fn tokens(&self, home: &Home) -> Result<(Vec<TokenRecord>, Vec<String>), FleetError> {
        let (mut tokens, mut notes) = (Vec::new(), Vec::new());
        for written in self.admissions(&format!("{TOKEN}.*")).await? {
            match self.believe_token(home, &written) {
                Ok(token) => tokens.push(token),
                Err(reason) => notes.push(reason),
            }
        }
        tokens.sort_by(|one, other| other.created.cmp(&one.created).then(one.id.cmp(&other.id)));
        Ok((tokens, notes))
    }

    /// Ends a token, of which `id` is the id or its beginning: nobody knocks with it or comes in by it any more, and those who
    /// wait by it are gone from the door.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] when there is no such token; [`FleetError::Keys`] when the fleet's keys are not in `home`.
    pub async fn revoke_token(&self, home: &Home, id: &str) -> Result<TokenRecord, FleetError> {
        let keys = FleetKeys::open(home.dir())?;
        let (tokens, _) = self.tokens(home).await?;
        let meant: Vec<&TokenRecord> =
            tokens.iter().filter(|token| id.len() >= 4 && token.id.to_string().starts_with(id)).collect();
        let [token] = meant.as_slice() else {
            let message = match meant.len() {
                0 => format!("there is no token {id:?} (at least four digits); `steward node token ls` lists them"),
                many => format!("{many} tokens begin with {id}: write more digits"),
            };
            return Err(FleetError::NoMatch { message });
        };
        self.record(Act::change("token revoke", token.id.to_string()).of_key(&token.account)).await?;
        // First the record, by which whoever accepts goes; then the broker, also if an earlier attempt broke off in between.
        let now = self.broker_now().await?;
        let (token, ()) = self
            .change_token(home, &token.id, |token| {
                token.revoked.get_or_insert(now);
                Ok(())
            })
            .await?;
        let since = token.created.as_ms().div_euclid(1000);
        let jwt = keys.shut_door(token.account.as_str(), &token.id.to_string(), since)?;
        self.push_account(&keys, &jwt).await?;
        self.bus().clear_knocks(&format!("knock.{}.*", token.id)).await?;
        Ok(token)
    }

    /// The record of a token, if an operator signed it and it stands at its own key; never less used than is known here.
    pub(super) fn believe_token(&self, home: &Home, written: &Message) -> Result<TokenRecord, String> {
        let at = key_of(&written.subject);
        let wrong = |reason: String| format!("what stands at {at:?} is not believed: {reason}");
        let signer = written.signer().map_err(|error| wrong(error.to_string()))?;
        if self.trust().operator(&signer).is_none() {
            return Err(wrong(format!("its signer {signer} is no operator of this fleet")));
        }
        let mut token: TokenRecord =
            serde_json::from_slice(&written.payload).map_err(|error| wrong(error.to_string()))?;
        if token.v != WIRE_VERSION || format!("{TOKEN}.{}", token.id) != at {
            return Err(wrong(format!("it is that of the token {} in version {}", token.id, token.v)));
        }
        if let Some(kept) = kept_token(home, &token.id) {
            token.used = token.used.max(kept.used);
            token.revoked = token.revoked.or(kept.revoked);
        }
        Ok(token)
    }

    /// Changes the record of a token by compare-and-set.
    pub(super) async fn change_token<T>(
        &self,
        home: &Home,
        id: &TokenId,
        change: impl Fn(&mut TokenRecord) -> Result<T, FleetError>,
    ) -> Result<(TokenRecord, T), FleetError> {
        let by = self.signing_operator()?;
        for _ in 0..CONFLICTS_MAX {
            let Some(written) = self.bus().kv_get(ADMISSIONS, &format!("{TOKEN}.{id}")).await? else {
                return Err(FleetError::NoMatch { message: format!("the token {} is gone", short(id)) });
            };
            let mut token = self.believe_token(home, &written).map_err(|message| FleetError::NoMatch { message })?;
            let came = change(&mut token)?;
            token.by.clone_from(&by);
            match self.write_token(home, &token, written.sequence).await {
                Ok(()) => return Ok((token, came)),
                Err(FleetError::Bus(BusError::Conflict { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Err(BusError::Conflict { what: format!("the record of the token {}", short(id)) }.into())
    }

    /// Writes the record of a token if `revision` is its last one, and keeps it at home.
    async fn write_token(&self, home: &Home, token: &TokenRecord, revision: u64) -> Result<(), FleetError> {
        let bytes = serde_json::to_vec(token).map_err(|error| FleetError::signing(&error))?;
        let seal = self.seal(&bytes)?;
        let key = format!("{TOKEN}.{}", token.id);
        self.bus().kv_put_if(ADMISSIONS, &key, Bytes::from(bytes), Some(&seal), revision).await?;
        let text = serde_json::to_string_pretty(token).map_err(|error| FleetError::signing(&error))?;
        files::write(&token_file(home, &token.id), &format!("{text}\n"), Access::Plain)
    }

    async fn push_account(&self, keys: &FleetKeys, jwt: &str) -> Result<(), FleetError> {
        let bus = system_bus(keys, self.context()).await?;
        let told = bus.push_claims(jwt).await;
        bus.close().await;
        Ok(told?)
    }
}

fn token_file(home: &Home, id: &TokenId) -> std::path::PathBuf {
    home.tokens_dir().join(format!("{id}.json"))
}

/// What this home knows of a token. A file that cannot be read says nothing: it can only make the limits tighter.
fn kept_token(home: &Home, id: &TokenId) -> Option<TokenRecord> {
    let text = files::read(&token_file(home, id)).ok()??;
    serde_json::from_str(&text).ok()
}
