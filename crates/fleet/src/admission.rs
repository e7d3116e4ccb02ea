//! Enrolment by token: tokens are made, listed and revoked; those who knocked are shown, let in, or sent away.
//!
//! The limits of a token are kept at two places. The broker ends its account with it, bounds its connections, and shuts
//! it when it is revoked. Whoever accepts counts: the uses stand in the token's record, which an operator signs, and are
//! counted up by compare-and-set before anybody comes in; the count is kept at home as well, so that a broker which tells
//! an older record stretches nothing. A name is given once: the record of a node is made by `create`.

mod judge;
mod token;

use std::collections::{BTreeMap, HashMap, HashSet};

use bus::keys::FleetKeys;
use bus::kv::{ADMISSIONS, NODES, is_deletion, key_of};
use bus::{BusError, Message, Scan, Start};
use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};
use message::admission::{AdmissionKind, fingerprint, is_fingerprint, short, subject};
use message::audit::Act;
use message::registry::NodeKind;
use message::{
    Admission, Decision, Knock, NodeName, NodeRecord, NodeState, Pattern, PublicKey, SealedDocument, SealedTrust,
    Timestamp, TokenId, TokenRecord, WIRE_VERSION,
};
use serde_json::{Value, json};

use self::judge::{Standing, Verdict, judge};
pub use self::token::{LIFETIME_MAX, NewToken};
use crate::connection::Fleet;
use crate::context::Home;
use crate::error::FleetError;
use crate::nodes::natural;

/// How many who knocked are answered at once.
const IN_FLIGHT_MAX: usize = 64;
/// How many knocks are verified on one thread before the next one is asked to help.
const VERIFY_BATCH: usize = 256;
/// JetStream's code for a stream that does not exist.
const NO_SUCH_STREAM: u64 = 10059;

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
        let (mut pending, mut refuse, mut first) = (Vec::new(), 0_usize, None);
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
                Err(note) => {
                    refuse += 1;
                    first.get_or_insert(note);
                }
            }
        }
        // Whoever has a token can leave thousands of them: one line must do.
        if let Some(first) = first {
            notes.push(if refuse == 1 {
                first
            } else {
                format!("{refuse} knocks are not believed; the first: {first}")
            });
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
                let knock = &pending.knock;
                self.record(Act::change("knock reject", knock.name.as_str()).of_key(&knock.key)).await?;
                self.answer(answers, knock, Decision::Rejected).await?;
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
        self.record(Act::change("node accept", knock.name.as_str()).of_key(&knock.key)).await?;
        let written = self.write_record(&record, revision).await?;
        Ok((!written).then(|| format!("somebody else wrote about {} in the meantime: try again", knock.name)))
    }

    /// Tells a unit what was decided, and frees its place at the door.
    async fn answer(&self, answers: &Answers<'_>, knock: &Knock, decision: Decision) -> Result<(), FleetError> {
        let jwt = match (decision, answers.keys) {
            (Decision::Accepted, Some(keys)) => Some(keys.node_jwt(knock.name.as_str(), knock.key.as_str())?),
            _ => None,
        };
        let client = match (&jwt, &knock.tls_key) {
            // A key that is none is the unit's affair: it gets in where no certificate is asked for.
            (Some(_), Some(key)) => self.context().client_cert(&knock.name, key).unwrap_or_else(|error| {
                tracing::warn!(%error, node = %knock.name, "it gets no certificate");
                None
            }),
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
            client,
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
}

/// What all answers of one verb have in common.
struct Answers<'a> {
    /// For those who are let in.
    keys: Option<&'a FleetKeys>,
    by: String,
    trust: SealedTrust,
    policy: Option<SealedDocument>,
}

/// A knock and when it was stored; or why it is not believed.
fn opened(message: &Message) -> Result<(Knock, Timestamp), String> {
    let wrong = |reason: String| format!("a knock at {:?} is not believed: {reason}", message.subject);
    let signer = message.signer().map_err(|error| wrong(error.to_string()))?;
    let knock = Knock::open(&message.payload, &message.subject, &signer).map_err(|error| wrong(error.to_string()))?;
    Ok((knock, message.stored_at))
}
