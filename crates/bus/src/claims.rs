//! The NATS tokens that say who is who: JWT claims, version 2, for operators, accounts and users.
//!
//! In flow keys (`nkeys`) and what a token shall grant; out flows the signed token, or a `.creds` file that every
//! NATS client takes. This module only spells tokens; which rights Steward grants to whom is the subject of
//! [`keys`](crate::keys). It must never write a secret anywhere but into the text it returns.

mod creds;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

pub use creds::Creds;

/// What every token begins with; the server accepts nothing else.
const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// In NATS limits, `-1` stands for "no limit" and a missing number for "none of it".
pub const UNLIMITED: i64 = -1;

/// Why a token could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimsError {
    /// The key has no private half, or nkeys refused it.
    #[error("the key {key} cannot sign a token ({reason}); use a key pair with its seed")]
    Sign {
        /// Public key that was asked to sign.
        key: String,
        /// What nkeys said.
        reason: nkeys::error::Error,
    },
    /// Not a token at all, or one that was altered.
    #[error("this is not a NATS token: {0}; make it anew, or copy it again in full")]
    Malformed(String),
    /// The text lacks the marked blocks of a `.creds` file.
    #[error(
        "this is not a .creds file: {0}; it must hold a user JWT block and a user nkey seed block, as made by steward or nsc"
    )]
    Creds(&'static str),
}

/// What all kinds of tokens carry, around the part that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token<T> {
    /// Digest of the other fields.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    /// When it was issued, in seconds of Unix time. Of two account tokens the broker keeps the later one.
    pub iat: i64,
    /// When it ends, in seconds of Unix time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    /// Public key of who signed it.
    pub iss: String,
    /// A name for people; of users under a scoped key also what `{{name()}}` becomes.
    pub name: String,
    /// Public key of whom it is about.
    pub sub: String,
    /// What is granted.
    pub nats: T,
}

/// A fleet's operator: who may sign accounts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operator {
    /// Public keys that sign accounts in daily use.
    #[serde(default)]
    pub signing_keys: Vec<String>,
    /// Public key of the account that serves the broker itself.
    pub system_account: String,
    /// Identity keys then sign nothing but the token of the operator itself.
    #[serde(default)]
    pub strict_signing_key_usage: bool,
    #[serde(flatten)]
    kind: Kind,
}

impl Operator {
    /// An operator whose accounts are signed by `signing_keys` alone.
    #[must_use]
    pub fn new(signing_keys: Vec<String>, system_account: String) -> Self {
        Self { signing_keys, system_account, strict_signing_key_usage: true, kind: Kind::new("operator") }
    }
}

/// An account: a world of subjects of its own, and what it shares with others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// What it takes over from other accounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<Import>,
    /// What it offers to other accounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<Export>,
    /// How much it may use.
    pub limits: AccountLimits,
    /// Keys that sign its users.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signing_keys: Vec<SigningKey>,
    /// User public key (or `*`) → Unix time: what was issued until then is void.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revocations: BTreeMap<String, i64>,
    /// Subjects that become others at publishing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mappings: BTreeMap<String, Vec<WeightedMapping>>,
    /// Free words; the broker ignores them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(flatten)]
    kind: Kind,
}

impl Account {
    /// An account that shares nothing yet.
    #[must_use]
    pub fn new(limits: AccountLimits) -> Self {
        Self {
            imports: Vec::new(),
            exports: Vec::new(),
            limits,
            signing_keys: Vec::new(),
            revocations: BTreeMap::new(),
            mappings: BTreeMap::new(),
            tags: Vec::new(),
            kind: Kind::new("account"),
        }
    }
}

/// A user: one key that may connect to an account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Public key of the account, as a signing key and not the account itself signs the token.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub issuer_account: String,
    /// Free words; the broker ignores them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(flatten)]
    kind: Kind,
}

impl User {
    /// A user under a scoped signing key. All rights come from the key's template: the broker refuses such a token
    /// if it names rights or limits of its own.
    #[must_use]
    pub fn scoped(issuer_account: String, tags: Vec<String>) -> Self {
        Self { issuer_account, tags, kind: Kind::new("user") }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
    version: u32,
}

impl Kind {
    fn new(kind: &str) -> Self {
        Self { kind: kind.to_owned(), version: 2 }
    }
}

/// Whether a shared subject carries one-way messages or requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// Messages flow from the exporting to the importing account.
    Stream,
    /// Requests flow from the importing to the exporting account, answers back.
    Service,
}

/// How many answers a request across accounts gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResponseType {
    /// One.
    Singleton,
    /// Any number.
    Stream,
}

/// What an account offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Export {
    /// For people.
    pub name: String,
    /// The offered subject.
    pub subject: String,
    /// Messages or requests.
    #[serde(rename = "type")]
    pub sharing: Sharing,
    /// For services only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_type: Option<ResponseType>,
}

/// What an account takes over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Import {
    /// For people.
    pub name: String,
    /// The subject as the exporting account calls it.
    pub subject: String,
    /// Public key of the exporting account.
    pub account: String,
    /// The subject as the importing account calls it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub local_subject: String,
    /// Messages or requests.
    #[serde(rename = "type")]
    pub sharing: Sharing,
}

/// Where a mapped subject goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightedMapping {
    /// The subject that takes the other's place.
    pub subject: String,
    /// Share of the messages, in percent.
    pub weight: u8,
}

/// How much an account may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are those of NATS, and say it
pub struct AccountLimits {
    pub subs: i64,
    pub data: i64,
    pub payload: i64,
    pub imports: i64,
    pub exports: i64,
    pub wildcards: bool,
    pub conn: i64,
    pub leaf: i64,
    #[serde(default)]
    pub mem_storage: i64,
    #[serde(default)]
    pub disk_storage: i64,
    #[serde(default)]
    pub streams: i64,
    #[serde(default)]
    pub consumer: i64,
}

impl AccountLimits {
    /// No limits; with JetStream, or without any of it.
    #[must_use]
    pub fn unlimited(jetstream: bool) -> Self {
        let store = if jetstream { UNLIMITED } else { 0 };
        Self {
            subs: UNLIMITED,
            data: UNLIMITED,
            payload: UNLIMITED,
            imports: UNLIMITED,
            exports: UNLIMITED,
            wildcards: true,
            conn: UNLIMITED,
            leaf: UNLIMITED,
            mem_storage: store,
            disk_storage: store,
            streams: store,
            consumer: store,
        }
    }
}

/// A key that signs users, with the rights that all of them have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SigningKey {
    kind: String,
    /// Public key (it begins with `A`, like that of an account).
    pub key: String,
    /// A name for people.
    pub role: String,
    /// The rights; `{{name()}}` in a subject becomes the user's name.
    pub template: Template,
}

impl SigningKey {
    /// A signing key whose users may do what `template` says and nothing else.
    #[must_use]
    pub fn scoped(key: String, role: &str, template: Template) -> Self {
        Self { kind: "user_scope".to_owned(), key, role: role.to_owned(), template }
    }
}

/// The rights of all users that one scoped key signs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// To what they may publish.
    #[serde(rename = "pub")]
    pub publish: Permission,
    /// To what they may subscribe.
    #[serde(rename = "sub")]
    pub subscribe: Permission,
    subs: i64,
    data: i64,
    payload: i64,
}

impl Template {
    /// Rights to exactly these subjects, without limits of number or size.
    #[must_use]
    pub fn new(publish: Permission, subscribe: Permission) -> Self {
        Self { publish, subscribe, subs: UNLIMITED, data: UNLIMITED, payload: UNLIMITED }
    }

    /// With at most so many subscriptions a connection, and so many bytes a message.
    #[must_use]
    pub fn within(self, subs: i64, payload: i64) -> Self {
        Self { subs, payload, ..self }
    }
}

/// Subjects that are allowed, and among those the ones that are not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission {
    /// An empty list would allow everything: write at least one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Stronger than `allow`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

/// Signs a token about `subject` (a public key), issued now.
///
/// # Errors
/// When `issuer` has no private half.
pub fn sign<T: Serialize>(issuer: &KeyPair, subject: &str, name: &str, grants: T) -> Result<String, ClaimsError> {
    sign_at(issuer, subject, name, grants, unix_now())
}

/// Signs a token about `subject`, issued at `iat` (seconds of Unix time).
///
/// # Errors
/// When `issuer` has no private half.
pub fn sign_at<T: Serialize>(
    issuer: &KeyPair,
    subject: &str,
    name: &str,
    grants: T,
    iat: i64,
) -> Result<String, ClaimsError> {
    sign_until(issuer, subject, name, grants, iat, None)
}

/// The same for a token that ends by itself at `exp`, in seconds of Unix time.
///
/// # Errors
/// When `issuer` has no private half.
pub fn sign_until<T: Serialize>(
    issuer: &KeyPair,
    subject: &str,
    name: &str,
    grants: T,
    iat: i64,
    exp: Option<i64>,
) -> Result<String, ClaimsError> {
    let mut token = Token {
        jti: String::new(),
        iat,
        exp,
        iss: issuer.public_key(),
        name: name.to_owned(),
        sub: subject.to_owned(),
        nats: grants,
    };
    token.jti = BASE32_NOPAD.encode(&Sha256::digest(to_json(&token)?));
    let signed = format!("{}.{}", BASE64URL_NOPAD.encode(HEADER.as_bytes()), BASE64URL_NOPAD.encode(&to_json(&token)?));
    let signature =
        issuer.sign(signed.as_bytes()).map_err(|reason| ClaimsError::Sign { key: issuer.public_key(), reason })?;
    Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
}

/// Reads a token and checks that whom it names as its issuer signed it. Whether that issuer is to be trusted, the
/// caller must judge.
///
/// # Errors
/// When it is not a token of this kind, or its signature does not fit.
pub fn read<T: DeserializeOwned>(jwt: &str) -> Result<Token<T>, ClaimsError> {
    let malformed = |what: &str| ClaimsError::Malformed(what.to_owned());
    let (signed, signature) = jwt.trim().rsplit_once('.').ok_or_else(|| malformed("it has no dots"))?;
    let (_, body) = signed.split_once('.').ok_or_else(|| malformed("it has fewer than three parts"))?;
    let body = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|error| malformed(&error.to_string()))?;
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|error| malformed(&error.to_string()))?;
    let token: Token<T> = serde_json::from_slice(&body).map_err(|error| malformed(&error.to_string()))?;
    KeyPair::from_public_key(&token.iss)
        .and_then(|issuer| issuer.verify(signed.as_bytes(), &signature))
        .map_err(|_| malformed("the signature is not its issuer's"))?;
    Ok(token)
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, ClaimsError> {
    serde_json::to_vec(value).map_err(|error| ClaimsError::Malformed(error.to_string()))
}

/// Seconds of Unix time.
pub(crate) fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> (KeyPair, String) {
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let jwt = sign(&account, &user.public_key(), "ship1", User::scoped("A1".into(), vec![])).unwrap();
        (user, jwt)
    }

    #[test]
    fn what_is_signed_is_read_back() {
        let (user, jwt) = token();
        let read: Token<User> = read(&jwt).unwrap();
        assert_eq!((read.name.as_str(), read.sub), ("ship1", user.public_key()));
    }

    #[test]
    fn an_altered_token_is_refused() {
        let (_, jwt) = token();
        let body = jwt.split('.').nth(1).unwrap();
        let forged =
            String::from_utf8(BASE64URL_NOPAD.decode(body.as_bytes()).unwrap()).unwrap().replace("ship1", "ship2");
        let jwt = jwt.replace(body, &BASE64URL_NOPAD.encode(forged.as_bytes()));
        assert!(matches!(read::<User>(&jwt), Err(ClaimsError::Malformed(_))));
    }

    #[test]
    fn a_scoped_user_names_no_rights_of_its_own() {
        let json = serde_json::to_value(User::scoped("A1".into(), vec![])).unwrap();
        assert_eq!(json, serde_json::json!({"issuer_account": "A1", "type": "user", "version": 2}));
    }
}
