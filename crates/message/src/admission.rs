//! Enrolment by token: what a unit is given, how it knocks, and what it is answered.
//!
//! A token opens the way to the door and no further: with it, somebody may leave one knock for each key that he has, and
//! read what an operator answered to that key. Whoever reads a knock believes the key that signed it and nothing else;
//! the unit believes what an operator signed who is on the list that the fleet's root has sealed.

use std::collections::BTreeMap;
use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::WIRE_VERSION;
use crate::id::TokenId;
use crate::name::NodeName;
use crate::sign::{PublicKey, SealedDocument};
use crate::succession::{Lineage, SealedTrust};
use crate::time::Timestamp;
use crate::trust::Trust;

/// What the text of a token begins with.
pub const TOKEN_PREFIX: &str = "steward1_";
/// The longest text of a token: it holds a certificate, at most.
pub const TOKEN_TEXT_MAX: usize = 32 * 1024;
/// The longest knock.
pub const KNOCK_BYTES_MAX: usize = 1024;
/// How often a token may be used at most.
pub const USES_MAX: u32 = 100_000;

/// Why something about an enrolment is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AdmissionError(String);

fn wrong(reason: impl fmt::Display) -> AdmissionError {
    AdmissionError(reason.to_string())
}

macro_rules! kind {
    ($(#[$doc:meta])* $name:ident, $only:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            /// The only one.
            $only,
        }
    };
}
kind!(
    /// The `kind` of a token.
    TokenKind, Token
);
kind!(
    /// The `kind` of what operators keep about a token.
    TokenRecordKind, TokenRecord
);
kind!(
    /// The `kind` of a knock.
    KnockKind, Knock
);
kind!(
    /// The `kind` of an answer to a knock.
    AdmissionKind, Admission
);

/// What is carried to the units that shall enrol themselves. It is a secret, though a small one: it lets its holder knock.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolToken {
    /// The wire's version.
    pub v: u8,
    /// Always `token`.
    pub kind: TokenKind,
    /// Which token it is.
    pub id: TokenId,
    /// Where the broker is: one URL, or several with commas between.
    pub server: String,
    /// The authority that the broker's certificate must come from, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The certificate that opens a door where the broker asks for one, and its key, as PEM: for all units that come by this
    /// token, and no longer good than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The fleet's root key: what is not signed by it or by whom it names is not believed.
    pub root: PublicKey,
    /// The serial of the list of operators when the token was made: an older list is not believed.
    pub serial: u64,
    /// The account at the broker that this token opens, and that is for nothing but knocking.
    pub account: PublicKey,
    /// The seed of the key (`SA…`) that signs users of this account: each unit makes one for itself.
    pub seed: String,
    /// Until when it is good.
    pub expires: Timestamp,
}

impl fmt::Debug for EnrolToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolToken").field("id", &self.id).field("server", &self.server).finish_non_exhaustive()
    }
}

impl EnrolToken {
    /// The one line that is carried.
    ///
    /// # Errors
    /// [`AdmissionError`] when it cannot be written.
    pub fn to_text(&self) -> Result<String, AdmissionError> {
        let json = serde_json::to_vec(self).map_err(wrong)?;
        Ok(format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&json)))
    }

    /// Reads the line.
    ///
    /// # Errors
    /// [`AdmissionError`] says what is wrong with it, without repeating any of it.
    pub fn parse(text: &str) -> Result<Self, AdmissionError> {
        let text = text.trim();
        let Some(encoded) = text.strip_prefix(TOKEN_PREFIX) else {
            return Err(wrong(format!(
                "it does not begin with {TOKEN_PREFIX}, as what `steward node token` makes does"
            )));
        };
        if text.len() > TOKEN_TEXT_MAX {
            return Err(wrong(format!("it has more than {TOKEN_TEXT_MAX} characters")));
        }
        let damaged = |_| wrong("it is damaged: copy it again in full, as one line");
        let json = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(damaged)?;
        let token: Self = serde_json::from_slice(&json).map_err(|error| {
            // The parser's words may repeat what was read; where it stumbled is enough.
            wrong(format!("it is damaged at byte {}: copy it again in full, as one line", error.column()))
        })?;
        if token.v != WIRE_VERSION {
            return Err(wrong(format!("it is of version {}, this steward speaks version {WIRE_VERSION}", token.v)));
        }
        token.key()?;
        if !token.root.as_str().starts_with('O') || !token.account.as_str().starts_with('A') {
            return Err(wrong("it names no fleet: its root has to be a key O…, its account a key A…"));
        }
        if token.server.is_empty() || token.server.chars().any(|c| c.is_control() || c == ' ') {
            return Err(wrong("the address of the broker in it is none"));
        }
        Ok(token)
    }

    /// The key that signs users of the account.
    ///
    /// # Errors
    /// [`AdmissionError`] when the seed is none.
    pub fn key(&self) -> Result<KeyPair, AdmissionError> {
        match KeyPair::from_seed(&self.seed) {
            Ok(pair) if matches!(pair.key_pair_type(), KeyPairType::Account) => Ok(pair),
            _ => Err(wrong("the seed in it is not that of an account's key (SA…)")),
        }
    }
}

/// What operators keep about a token, at key `token.<id>` of bucket `ADMISSIONS`, signed by an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// The wire's version.
    pub v: u8,
    /// Always `token_record`.
    pub kind: TokenRecordKind,
    /// Which token it is about.
    pub id: TokenId,
    /// Its account at the broker.
    pub account: PublicKey,
    /// How many units may be accepted by it.
    pub uses: u32,
    /// How many were, or were about to be: counted before each acceptance, and never back.
    pub used: u32,
    /// Until when it is good.
    pub expires: Timestamp,
    /// What units that come by it are labelled with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created: Timestamp,
    /// By which operator it was last written.
    pub by: String,
    /// Since when it is good for nothing, if somebody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
}

impl TokenRecord {
    /// How many units it may still let in at `now`; or the reason why it lets in none.
    ///
    /// # Errors
    /// A sentence: revoked, expired, or used up.
    pub fn left(&self, now: Timestamp) -> Result<u32, String> {
        let id = short(&self.id);
        if let Some(at) = self.revoked {
            return Err(format!("the token {id} was revoked at {at}"));
        }
        if now >= self.expires {
            return Err(format!("the token {id} has expired at {}", self.expires));
        }
        match self.uses.checked_sub(self.used) {
            Some(left @ 1..) => Ok(left),
            _ => Err(format!("the token {id} is used up: it was good for {} units", self.uses)),
        }
    }
}

/// The first digits of a token's id: enough for people.
pub fn short(id: &TokenId) -> String {
    id.to_string().chars().take(8).collect()
}

/// What a unit leaves at the door, on `knock.<token>.<key>`, signed by its own key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knock {
    /// The wire's version.
    pub v: u8,
    /// Always `knock`.
    pub kind: KnockKind,
    /// By which token it came.
    pub token: TokenId,
    /// What it wants to be called.
    pub name: NodeName,
    /// Its public key, whose private half never leaves it.
    pub key: PublicKey,
    /// The public key of the certificate that it would show to a broker which asks for one, in base64: a point of P-256,
    /// uncompressed. Its private half never leaves the unit either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<String>,
    /// The agent's version.
    pub version: String,
    /// When it knocked, by its own clock.
    pub at: Timestamp,
}

impl Knock {
    /// The subject that it is left on.
    pub fn subject(&self) -> String {
        subject(&self.token, &self.key)
    }

    /// Reads a knock that came on `subject`, of which `signer` is who signed it.
    ///
    /// # Errors
    /// [`AdmissionError`] when it is not the signer's own, or not for this subject.
    pub fn open(bytes: &[u8], subject: &str, signer: &PublicKey) -> Result<Self, AdmissionError> {
        if bytes.len() > KNOCK_BYTES_MAX {
            return Err(wrong(format!("it has {} bytes, more than {KNOCK_BYTES_MAX}", bytes.len())));
        }
        let knock: Self = serde_json::from_slice(bytes).map_err(wrong)?;
        if knock.v != WIRE_VERSION {
            return Err(wrong(format!("it is of version {}", knock.v)));
        }
        if knock.key != *signer || !knock.key.as_str().starts_with('U') {
            return Err(wrong("it is not signed by the key that it is about"));
        }
        if knock.subject() != subject {
            return Err(wrong("it does not stand where it belongs"));
        }
        Ok(knock)
    }
}

/// Where the unit with `key` leaves its knock.
pub fn subject(token: &TokenId, key: &PublicKey) -> String {
    format!("knock.{token}.{key}")
}

/// What was decided about a knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// The unit belongs to the fleet.
    Accepted,
    /// It does not, and need not ask again with this key.
    Rejected,
}

impl Decision {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Accepted, Self::Rejected];

    /// The word for it, which is also how the key of its answer begins.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
        }
    }

    /// The key of bucket `ADMISSIONS` at which the unit with `key` finds its answer.
    pub fn at(self, key: &PublicKey) -> String {
        format!("{}.{key}", self.as_str())
    }
}

/// The answer to a knock, signed by an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admission {
    /// The wire's version.
    pub v: u8,
    /// Always `admission`.
    pub kind: AdmissionKind,
    /// What was decided.
    pub decision: Decision,
    /// By which token the unit came.
    pub token: TokenId,
    /// Its name.
    pub name: NodeName,
    /// Its key.
    pub key: PublicKey,
    /// The NATS user token of the node, which says nothing secret: for one who was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<String>,
    /// The certificate for the `tls_key` that it knocked with, as PEM: for one who was accepted where the authority's key is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Who may order, sealed by the root, with the chain of roots up to that one.
    pub trust: SealedTrust,
    /// What may be done, sealed by the root or its delegate: for one who was accepted, if there is a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<SealedDocument>,
    /// By which operator.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

impl Admission {
    /// Reads the answer to the knock of `name` with `key`, of which `signer` is who signed it: he has to be an operator by
    /// the list in it, sealed by the root that the token's leads to, and at least as new as the token. Returns the list and the
    /// roots as well.
    ///
    /// # Errors
    /// [`AdmissionError`] says what is not as it should be.
    pub fn open(
        bytes: &[u8],
        signer: &PublicKey,
        decision: Decision,
        token: &EnrolToken,
        (name, key): (&NodeName, &PublicKey),
    ) -> Result<(Self, Trust, Lineage), AdmissionError> {
        let admission: Self = strictly(bytes)?;
        let (trust, roots) = Lineage::new(token.root.clone()).open(&admission.trust).map_err(wrong)?;
        if trust.serial < token.serial {
            return Err(wrong(format!(
                "its list of operators has serial {}, which is older than the token (serial {})",
                trust.serial, token.serial
            )));
        }
        if trust.operator(signer).is_none() {
            return Err(wrong(format!("its signer {signer} is no operator of this fleet")));
        }
        if admission.v != WIRE_VERSION {
            return Err(wrong(format!("it is of version {}", admission.v)));
        }
        if admission.key != *key || admission.name != *name || admission.token != token.id {
            return Err(wrong(format!("it is for {} with the key {}", admission.name, admission.key)));
        }
        if admission.decision != decision {
            return Err(wrong("it does not stand where it belongs"));
        }
        if decision == Decision::Accepted && admission.jwt.is_none() {
            return Err(wrong("it holds no NATS user token"));
        }
        Ok((admission, trust, roots))
    }
}

/// Reads what is obeyed: an unknown field could be a condition.
fn strictly<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, AdmissionError> {
    serde_json::from_slice(bytes).map_err(wrong)
}

/// How a public key is compared by people: 80 bits of it in four groups, as `steward agent` and `steward node ls` show it.
pub fn fingerprint(key: &PublicKey) -> String {
    // The first two characters say what kind of key it is, and the last ones are a checksum.
    let digits: Vec<char> = key.as_str().chars().skip(2).take(16).collect();
    digits.chunks(4).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join("-")
}

/// Whether `text`, as a person wrote it down, is the fingerprint of `key`, or the whole key.
pub fn is_fingerprint(text: &str, key: &PublicKey) -> bool {
    let plain = |text: &str| text.chars().filter(|c| *c != '-').collect::<String>().to_ascii_uppercase();
    plain(text) == plain(&fingerprint(key)) || text == key.as_str()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sign::Seal;
    use crate::trust::{Operator, TrustKind};

    fn pair(kind: KeyPairType, byte: u8) -> KeyPair {
        KeyPair::new_from_raw(kind, [byte; 32]).unwrap()
    }

    fn user(byte: u8) -> KeyPair {
        pair(KeyPairType::User, byte)
    }

    fn token() -> EnrolToken {
        EnrolToken {
            v: WIRE_VERSION,
            kind: TokenKind::Token,
            id: TokenId::from_bytes([7; 16]),
            server: "tls://broker.example:4222".into(),
            ca: None,
            client: None,
            root: PublicKey::of(&pair(KeyPairType::Operator, 1)),
            serial: 3,
            account: PublicKey::of(&pair(KeyPairType::Account, 2)),
            seed: pair(KeyPairType::Account, 3).seed().unwrap(),
            expires: Timestamp::from_ms(1_000),
        }
    }

    fn trust(serial: u64, operators: Vec<Operator>) -> SealedTrust {
        let trust = Trust {
            v: WIRE_VERSION,
            kind: TrustKind::Trust,
            serial,
            issued: Timestamp::from_ms(0),
            operators,
            policy_keys: vec![],
            revoked: vec![],
        };
        SealedDocument::new(serde_json::to_string(&trust).unwrap(), &pair(KeyPairType::Operator, 1)).unwrap().into()
    }

    fn admission() -> Admission {
        Admission {
            v: WIRE_VERSION,
            kind: AdmissionKind::Admission,
            decision: Decision::Accepted,
            token: token().id,
            name: NodeName::new("ship7").unwrap(),
            key: PublicKey::of(&user(9)),
            jwt: Some("e.y.J".into()),
            client: None,
            trust: trust(3, vec![Operator::admin("admin", PublicKey::of(&user(4)))]),
            policy: None,
            by: "admin".into(),
            at: Timestamp::from_ms(5),
        }
    }

    fn opened(admission: &Admission, signer: &KeyPair) -> Result<(), String> {
        let bytes = serde_json::to_vec(admission).unwrap();
        let (name, key) = (NodeName::new("ship7").unwrap(), PublicKey::of(&user(9)));
        Admission::open(&bytes, &PublicKey::of(signer), Decision::Accepted, &token(), (&name, &key))
            .map(drop)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_reads_back_and_shows_its_secret_to_nobody() {
        let text = token().to_text().unwrap();
        assert_eq!(EnrolToken::parse(&format!(" {text}\n")).unwrap(), token());
        assert!(!format!("{:?}", token()).contains(&token().seed));
    }

    #[test]
    fn a_damaged_token_is_refused_without_being_repeated() {
        let text = token().to_text().unwrap();
        for bad in ["", "steward1_", "nonsense", &text[..text.len() - 9], &text.replace("steward1", "steward2")] {
            let error = EnrolToken::parse(bad).unwrap_err().to_string();
            assert!(!error.contains(&token().seed) && error.len() < 200, "{error}");
        }
        for (field, value) in [
            ("seed", serde_json::json!(user(3).seed().unwrap())),
            ("seed", serde_json::json!(token().account)),
            ("root", serde_json::json!(token().account)),
            ("v", serde_json::json!(2)),
            ("server", serde_json::json!("")),
            ("server", serde_json::json!("tls://a b")),
            ("more", serde_json::json!(1)),
        ] {
            let mut json = serde_json::to_value(token()).unwrap();
            json[field] = value;
            let text = format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(json.to_string().as_bytes()));
            assert!(EnrolToken::parse(&text).is_err(), "{field}");
        }
        assert!(EnrolToken::parse(&format!("{TOKEN_PREFIX}{}", "A".repeat(TOKEN_TEXT_MAX))).is_err());
    }

    #[test]
    fn a_token_is_good_until_it_is_used_up_expired_or_revoked() {
        let record = TokenRecord {
            v: WIRE_VERSION,
            kind: TokenRecordKind::TokenRecord,
            id: token().id,
            account: token().account,
            uses: 2,
            used: 1,
            expires: Timestamp::from_ms(1_000),
            labels: [].into(),
            created: Timestamp::from_ms(0),
            by: "admin".into(),
            revoked: None,
        };
        let at = Timestamp::from_ms;
        assert_eq!(record.left(at(999)), Ok(1));
        assert!(record.left(at(1_000)).unwrap_err().contains("expired"));
        assert!(TokenRecord { used: 2, ..record.clone() }.left(at(1)).unwrap_err().contains("used up"));
        assert!(TokenRecord { used: 3, ..record.clone() }.left(at(1)).unwrap_err().contains("used up"));
        assert!(TokenRecord { revoked: Some(at(1)), ..record }.left(at(2)).unwrap_err().contains("revoked"));
    }

    #[test]
    fn a_knock_is_the_word_of_the_key_that_it_stands_under() {
        let key = PublicKey::of(&user(9));
        let knock = Knock {
            v: WIRE_VERSION,
            kind: KnockKind::Knock,
            token: token().id,
            name: NodeName::new("ship7").unwrap(),
            key: key.clone(),
            tls_key: None,
            version: "0.1.0".into(),
            at: Timestamp::from_ms(0),
        };
        let bytes = serde_json::to_vec(&knock).unwrap();
        assert_eq!(Knock::open(&bytes, &knock.subject(), &key).unwrap(), knock);
        let other = PublicKey::of(&user(8));
        assert!(Knock::open(&bytes, &knock.subject(), &other).is_err());
        assert!(Knock::open(&bytes, &subject(&knock.token, &other), &key).is_err());
        assert!(Knock::open(&bytes, &subject(&TokenId::from_bytes([8; 16]), &key), &key).is_err());
        for name in ["../x", "a.b", "", "*", "all"] {
            let text = String::from_utf8(bytes.clone()).unwrap().replace("ship7", name);
            assert!(Knock::open(text.as_bytes(), &knock.subject(), &key).is_err(), "{name}");
        }
        let long = Knock { version: "x".repeat(KNOCK_BYTES_MAX), ..knock.clone() };
        assert!(Knock::open(&serde_json::to_vec(&long).unwrap(), &knock.subject(), &key).is_err());
    }

    #[test]
    fn an_answer_counts_when_an_operator_signed_it_for_this_very_unit() {
        let (admin, stranger) = (user(4), user(5));
        opened(&admission(), &admin).unwrap();
        assert!(opened(&admission(), &stranger).unwrap_err().contains("no operator"));
        let name = NodeName::new("ship8").unwrap();
        assert!(opened(&Admission { name, ..admission() }, &admin).unwrap_err().contains("ship8"));
        assert!(opened(&Admission { key: PublicKey::of(&stranger), ..admission() }, &admin).is_err());
        assert!(opened(&Admission { token: TokenId::from_bytes([8; 16]), ..admission() }, &admin).is_err());
        assert!(opened(&Admission { decision: Decision::Rejected, ..admission() }, &admin).is_err());
        assert!(opened(&Admission { jwt: None, ..admission() }, &admin).is_err());
        let older = trust(2, vec![Operator::admin("admin", PublicKey::of(&admin))]);
        assert!(opened(&Admission { trust: older, ..admission() }, &admin).unwrap_err().contains("older"));
        let forged = SealedDocument::new(admission().trust.sealed.document, &stranger).unwrap().into();
        assert!(opened(&Admission { trust: forged, ..admission() }, &admin).unwrap_err().contains("root"));
    }

    #[test]
    fn a_fingerprint_is_compared_as_people_write_it() {
        let key = PublicKey::of(&user(9));
        let text = fingerprint(&key);
        assert_eq!(text.len(), 19);
        for same in [text.clone(), text.to_lowercase(), text.replace('-', ""), key.to_string()] {
            assert!(is_fingerprint(&same, &key), "{same}");
        }
        for other in ["", "-", &text[..18], fingerprint(&PublicKey::of(&user(8))).as_str()] {
            assert!(!is_fingerprint(other, &key), "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = EnrolToken::parse(&text);
            let _ = EnrolToken::parse(&format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&bytes)));
            let _ = Knock::open(&bytes, &text, &PublicKey::of(&user(9)));
        }

        #[test]
        fn any_flipped_bit_of_an_answer_is_found(at in any::<usize>(), bit in 0_u8..8) {
            let mut bytes = serde_json::to_vec(&admission()).unwrap();
            let seal = Seal::over(&bytes, &user(4)).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(seal.verify(&bytes).is_err());
        }
    }
}
