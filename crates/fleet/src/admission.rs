//! Enrolment by token: tokens are made, listed and revoked; those who knocked are shown, let in, or sent away.
//!
//! The limits of a token are kept at two places. The broker ends its account with it, bounds its connections, and shuts
//! it when it is revoked. Whoever accepts counts: the uses stand in the token's record, which an operator signs, and are
//! counted up by compare-and-set before anybody comes in; the count is kept at home as well, so that a broker which tells
//! an older record stretches nothing. A name is given once: the record of a node is made by `create`.

mod judge;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bus::keys::FleetKeys;
use bus::kv::{ADMISSIONS, NODES, is_deletion, key_of};
use bus::{BusError, Message, Scan, Start, clock};
use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};
use message::admission::{
    AdmissionKind, TokenKind, TokenRecordKind, USES_MAX, fingerprint, is_fingerprint, short, subject,
};
use message::registry::NodeKind;
use message::{
    Admission, Decision, EnrolToken, Knock, NodeName, NodeRecord, NodeState, Pattern, PublicKey, SealedDocument,
    Timestamp, TokenId, TokenRecord, WIRE_VERSION, units,
};
use nkeys::KeyPair;
use serde_json::{Value, json};

use self::judge::{Standing, Verdict, judge};
use crate::connection::{CONFLICTS_MAX, Fleet};
use crate::context::Home;
use crate::error::FleetError;
use crate::files::{self, Access};
use crate::nodes::{check_label, natural};
use crate::revoke::system_bus;

/// The longest time that a token is good. Answers are kept longer than that.
pub const LIFETIME_MAX: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// How many tokens may be open at once: each has an account at the broker.
const OPEN_MAX: usize = 1000;
/// How many who knocked are answered at once.
const IN_FLIGHT_MAX: usize = 64;
/// How many knocks are verified on one thread before the next one is asked to help.
const VERIFY_BATCH: usize = 256;
/// JetStream's code for a stream that does not exist.
const NO_SUCH_STREAM: u64 = 10059;
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

/// A unit that waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// What it has signed.
    pub knock: Knock,
    /// When the broker stored that.
    pub since: Timestamp,
    /// Why it cannot be accepted as things stand, if so.
    pub obstacle: Option<String>,
}

impl Pending {
    /// How people compare its key.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.knock.key)
    }

    /// As `node ls -o json` lists it, beside the nodes of the fleet.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.knock.name,
            "state": NodeState::Pending,
            "reason": self.reason(),
            "last_seen": self.since,
            "labels": {},
            "facts": {},
            "version": self.knock.version,
            "processes": 0,
            "fingerprint": self.fingerprint(),
            "key": self.knock.key,
            "token": self.knock.token,
        })
    }

    /// What it waits for, as a sentence.
    pub fn reason(&self) -> String {
        match &self.obstacle {
            Some(obstacle) => format!("it knocked with the key {}, but {obstacle}", self.fingerprint()),
            None => format!("it knocked with the key {}", self.fingerprint()),
        }
    }
}

/// Those who wait.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Door {
    /// In the order in which they came.
    pub pending: Vec<Pending>,
    /// What was not believed, as sentences for people.
    pub notes: Vec<String>,
}

/// Who of those who wait is meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Knockers {
    /// Names and globs; nobody, unless there is one, or `all`, or a fingerprint.
    pub patterns: Vec<Pattern>,
    /// All of them.
    pub all: bool,
    /// Of those, the one with this key.
    pub fingerprint: Option<String>,
}

impl Door {
    /// Leaves those who are meant.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] when nobody is, [`FleetError::Usage`] when it is not said who is.
    pub fn of(mut self, meant: &Knockers) -> Result<Self, FleetError> {
        if meant.patterns.is_empty() && !meant.all && meant.fingerprint.is_none() {
            return Err(FleetError::usage(
                "who? Name units (`ship1,ship2`), a glob (`'ship*'`), a key (--fingerprint), or say --all; `steward node \
                 ls` shows who is pending",
            ));
        }
        let named = |name: &NodeName| {
            meant.all || meant.patterns.is_empty() || meant.patterns.iter().any(|pattern| pattern.matches(name))
        };
        let has_key = |key: &PublicKey| meant.fingerprint.as_ref().is_none_or(|text| is_fingerprint(text, key));
        let waiting = self.pending.len();
        self.pending.retain(|pending| named(&pending.knock.name) && has_key(&pending.knock.key));
        if self.pending.is_empty() {
            let who: Vec<String> = meant.patterns.iter().map(ToString::to_string).collect();
            let who = if who.is_empty() { String::new() } else { format!(" is called {}", who.join(",")) };
            let key = meant.fingerprint.as_ref().map(|text| format!(" has the key {text}")).unwrap_or_default();
            let and = if who.is_empty() || key.is_empty() { "" } else { " and" };
            let message = if waiting == 0 {
                "nobody has knocked: units do so with `steward agent --token FILE`, of a token that `steward node token` \
                 makes"
                    .to_owned()
            } else {
                format!("of {waiting} that have knocked, none{who}{and}{key}; `steward node ls` shows who is pending")
            };
            return Err(FleetError::NoMatch { message });
        }
        Ok(self)
    }
}

/// What came of answering.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answered {
    /// Those who were let in, or sent away, as was asked.
    pub done: Vec<Knock>,
    /// Those who were not let in, and why.
    pub refused: Vec<(Knock, String)>,
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
            root: self.context().root.clone(),
            serial: self.trust().serial,
            account: account.clone(),
            seed,
            expires,
        };
        // What units would refuse to read must not be made.
        let text = token.to_text().map_err(|error| FleetError::usage(error.to_string()))?;
        EnrolToken::parse(&text).map_err(|error| FleetError::usage(format!("no token can be made: {error}")))?;
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

    /// Those who wait.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked.
    pub async fn door(&self, home: &Home) -> Result<Door, FleetError> {
        let knocks = match self.bus().knocks().await {
            Ok(knocks) => knocks,
            // A store that an older version has set up has no such place.
            Err(BusError::Broker { code: NO_SUCH_STREAM, .. }) => return Ok(Door::default()),
            Err(error) => return Err(error.into()),
        };
        if knocks.is_empty() {
            return Ok(Door::default());
        }
        let rejected = format!("{}.*", Decision::Rejected.as_str());
        let ((tokens, mut notes), rejected, now) =
            tokio::try_join!(self.tokens(home), self.admissions(&rejected), self.broker_now())?;
        let rejected: HashSet<String> = rejected
            .iter()
            .filter_map(|message| key_of(&message.subject).split_once('.').map(|(_, key)| key.to_owned()))
            .collect();
        let tokens: HashMap<TokenId, TokenRecord> = tokens.into_iter().map(|token| (token.id, token)).collect();
        let mut parts = Vec::new();
        for part in knocks.chunks(VERIFY_BATCH) {
            let part = part.to_vec();
            parts.push(tokio::task::spawn_blocking(move || part.iter().map(opened).collect::<Vec<_>>()));
        }
        let mut pending = Vec::new();
        for found in try_join_all(parts).await.map_err(|error| FleetError::signing(&error))?.into_iter().flatten() {
            match found {
                Ok((knock, since)) if !rejected.contains(knock.key.as_str()) => {
                    let obstacle = match tokens.get(&knock.token) {
                        Some(token) => token.left(now).err(),
                        None => Some(format!(
                            "its token {} is not one that an operator of this fleet has signed",
                            short(&knock.token)
                        )),
                    };
                    pending.push(Pending { knock, since, obstacle });
                }
                Ok(_) => {}
                Err(note) => notes.push(note),
            }
        }
        Ok(Door { pending, notes })
    }

    /// Lets in who is meant, in the order in which they came. Whoever cannot come in is told apart, with the reason.
    ///
    /// # Errors
    /// [`FleetError::Keys`] when the fleet's keys are not in `home`; otherwise when the broker does not take what is signed.
    pub async fn accept(&self, home: &Home, door: &Door) -> Result<Answered, FleetError> {
        let by = self.signing_operator()?;
        let keys = FleetKeys::open(home.dir())?;
        let (tokens, _) = self.tokens(home).await?;
        let tokens: HashMap<TokenId, TokenRecord> = tokens.into_iter().map(|token| (token.id, token)).collect();
        let now = self.broker_now().await?;
        let standing = self.standing(&door.pending).await?;
        let verdicts = judge(&door.pending, &standing, &tokens, now);

        let mut answered = Answered::default();
        let (mut admit, mut tell) = (Vec::new(), Vec::new());
        let mut wanted: BTreeMap<TokenId, u32> = BTreeMap::new();
        for (pending, verdict) in door.pending.iter().zip(verdicts) {
            match verdict {
                Verdict::Admit(revision) => {
                    *wanted.entry(pending.knock.token).or_default() += 1;
                    admit.push((&pending.knock, revision));
                }
                Verdict::Tell => tell.push(&pending.knock),
                Verdict::Refuse(reason) => answered.refused.push((pending.knock.clone(), reason)),
            }
        }
        // Counted before anybody comes in: what breaks off here costs a use, and never gives one.
        let mut granted: BTreeMap<TokenId, u32> = BTreeMap::new();
        for (id, wanted) in wanted {
            let taken = self
                .change_token(home, &id, |token| {
                    let take = token.left(now).map_or(0, |left| left.min(wanted));
                    token.used = token.used.saturating_add(take);
                    Ok(take)
                })
                .await?;
            granted.insert(id, taken.1);
        }
        let mut coming = Vec::new();
        for (knock, revision) in admit {
            match granted.get_mut(&knock.token) {
                Some(left @ 1..) => {
                    *left -= 1;
                    coming.push((knock, Some(revision)));
                }
                _ => answered.refused.push((
                    knock.clone(),
                    format!("the token {} is used up: those who came before it were accepted", short(&knock.token)),
                )),
            }
        }
        coming.extend(tell.into_iter().map(|knock| (knock, None)));

        let answers = Answers {
            keys: Some(&keys),
            by,
            trust: self.sealed_trust().await?,
            policy: self.policy().await?.map(|policy| policy.sealed),
        };
        let (answers, tokens) = (&answers, &tokens);
        let told: Vec<(&Knock, Option<String>)> = stream::iter(coming)
            .map(|(knock, revision)| async move {
                let refused = match revision {
                    Some(revision) => {
                        let labels = tokens.get(&knock.token).map(|token| token.labels.clone()).unwrap_or_default();
                        self.admit(answers, knock, revision, labels).await?
                    }
                    None => None,
                };
                if refused.is_none() {
                    self.answer(answers, knock, Decision::Accepted).await?;
                }
                Ok::<_, FleetError>((knock, refused))
            })
            .buffer_unordered(IN_FLIGHT_MAX)
            .try_collect()
            .await?;
        for (knock, refused) in told {
            match refused {
                None => answered.done.push(knock.clone()),
                Some(reason) => answered.refused.push((knock.clone(), reason)),
            }
        }
        answered.done.sort_by(|one, other| natural(&one.name, &other.name));
        Ok(answered)
    }

    /// Sends away who is meant: they are told, and their keys are not shown any more.
    ///
    /// # Errors
    /// [`FleetError`] when this identity may not, or the broker does not take what is signed.
    pub async fn reject(&self, home: &Home, door: &Door) -> Result<Answered, FleetError> {
        let by = self.signing_operator()?;
        // Its JWT says nothing to one who is sent away: no keys are needed.
        let keys = FleetKeys::open(home.dir()).ok();
        let answers = Answers { keys: keys.as_ref(), by, trust: self.sealed_trust().await?, policy: None };
        let answers = &answers;
        let done: Vec<Knock> = stream::iter(&door.pending)
            .map(|pending| async move {
                self.answer(answers, &pending.knock, Decision::Rejected).await?;
                Ok::<_, FleetError>(pending.knock.clone())
            })
            .buffer_unordered(IN_FLIGHT_MAX)
            .try_collect()
            .await?;
        Ok(Answered { done, refused: Vec::new() })
    }

    /// Makes the record of a node; or the reason why not.
    async fn admit(
        &self,
        answers: &Answers<'_>,
        knock: &Knock,
        revision: u64,
        labels: BTreeMap<String, String>,
    ) -> Result<Option<String>, FleetError> {
        let record = NodeRecord {
            v: WIRE_VERSION,
            kind: NodeKind::Node,
            name: knock.name.clone(),
            key: knock.key.clone(),
            labels,
            enrolled: self.now(),
            by: answers.by.clone(),
            changed: Some(self.now()),
            revoked: None,
        };
        let written = self.write_record(&record, revision).await?;
        Ok((!written).then(|| format!("somebody else wrote about {} in the meantime: try again", knock.name)))
    }

    /// Tells a unit what was decided, and frees its place at the door.
    async fn answer(&self, answers: &Answers<'_>, knock: &Knock, decision: Decision) -> Result<(), FleetError> {
        let jwt = match (decision, answers.keys) {
            (Decision::Accepted, Some(keys)) => Some(keys.node_jwt(knock.name.as_str(), knock.key.as_str())?),
            _ => None,
        };
        let admission = Admission {
            v: WIRE_VERSION,
            kind: AdmissionKind::Admission,
            decision,
            token: knock.token,
            name: knock.name.clone(),
            key: knock.key.clone(),
            jwt,
            trust: answers.trust.clone(),
            policy: answers.policy.clone(),
            by: answers.by.clone(),
            at: self.now(),
        };
        let bytes = serde_json::to_vec(&admission).map_err(|error| FleetError::signing(&error))?;
        let seal = self.seal(&bytes)?;
        self.bus().kv_put(ADMISSIONS, &decision.at(&knock.key), Bytes::from(bytes), Some(&seal)).await?;
        self.bus().clear_knocks(&subject(&knock.token, &knock.key)).await?;
        Ok(())
    }

    /// What stands at the names of those who knock. One of them is asked for alone; for more, the whole bucket is read once.
    async fn standing(&self, pending: &[Pending]) -> Result<HashMap<NodeName, Standing>, FleetError> {
        let names: HashSet<&str> = pending.iter().map(|pending| pending.knock.name.as_str()).collect();
        let filter = match names.iter().next() {
            Some(one) if names.len() == 1 => format!("$KV.{NODES}.{one}"),
            _ => format!("$KV.{NODES}.*"),
        };
        let mut scan = Scan::open(self.bus(), &format!("KV_{NODES}"), &[filter], Start::LastPerSubject).await?;
        let mut found = HashMap::new();
        while let Some(written) = scan.next().await? {
            let key = key_of(&written.subject);
            if !names.contains(key) {
                continue;
            }
            let Ok(name) = NodeName::new(key) else { continue };
            let standing = if is_deletion(&written) {
                Standing::Removed(written.sequence)
            } else {
                match self.believe(&written) {
                    Ok(record) => Standing::Node(Box::new(record)),
                    Err(error) => Standing::NotBelieved(error.to_string()),
                }
            };
            found.insert(name, standing);
        }
        Ok(found)
    }

    async fn admissions(&self, filter: &str) -> Result<Vec<Message>, FleetError> {
        match self.bus().kv_all(ADMISSIONS, filter).await {
            Ok((all, _)) => Ok(all),
            Err(BusError::Broker { code: NO_SUCH_STREAM, .. }) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// The record of a token, if an operator signed it and it stands at its own key; never less used than is known here.
    fn believe_token(&self, home: &Home, written: &Message) -> Result<TokenRecord, String> {
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
    async fn change_token<T>(
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

/// What all answers of one verb have in common.
struct Answers<'a> {
    /// For those who are let in.
    keys: Option<&'a FleetKeys>,
    by: String,
    trust: SealedDocument,
    policy: Option<SealedDocument>,
}

/// A knock and when it was stored; or why it is not believed.
fn opened(message: &Message) -> Result<(Knock, Timestamp), String> {
    let wrong = |reason: String| format!("a knock at {:?} is not believed: {reason}", message.subject);
    let signer = message.signer().map_err(|error| wrong(error.to_string()))?;
    let knock = Knock::open(&message.payload, &message.subject, &signer).map_err(|error| wrong(error.to_string()))?;
    Ok((knock, message.stored_at))
}

fn token_file(home: &Home, id: &TokenId) -> std::path::PathBuf {
    home.tokens_dir().join(format!("{id}.json"))
}

/// What this home knows of a token. A file that cannot be read says nothing: it can only make the limits tighter.
fn kept_token(home: &Home, id: &TokenId) -> Option<TokenRecord> {
    let text = files::read(&token_file(home, id)).ok()??;
    serde_json::from_str(&text).ok()
}
