//! The policy: who may have what done on which nodes. Written by people as TOML, carried as a sealed document, decided about
//! at the edge.
//!
//! What is not allowed is denied, and a `deny` wins over every `allow`. Every rule is a list of conditions that all have to
//! hold, so that it can be told of any two policies who gains and who loses what ([`reach`]). Nothing in a document is
//! parsed before its signature holds, and everything in it is bounded.

pub mod decide;
pub mod parts;
pub mod reach;

use serde::{Deserialize, Deserializer, Serialize};

use crate::WIRE_VERSION;
use crate::selector::Selector;
use crate::sign::{PublicKey, SealedDocument, SignatureError};
use crate::succession::Lineage;
use crate::time::Timestamp;
use crate::trust::{ADMIN, Trust};

pub use decide::{Asked, Command, Decision, Request, decide};
pub use parts::{Arguments, Glob, Times};

/// The key of the policy in bucket `POLICY`.
pub const POLICY_KEY: &str = "policy";
/// The most bytes of a policy's document.
pub const DOCUMENT_BYTES_MAX: usize = 64 * 1024;
/// The most rules, `allow` and `deny` together.
pub const RULES_MAX: usize = 256;
/// The most entries in any list of a rule.
const ENTRIES_MAX: usize = 64;
/// The longest name of a rule or a local user.
const NAME_MAX: usize = 100;
/// The most approvals that a rule can ask for.
pub const APPROVALS_MAX: u32 = 16;

/// One rule: all its conditions have to hold. A condition that is left out always holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What decisions call it; no other rule is called so.
    pub name: String,
    /// Who has one of these roles, …
    #[serde(default, deserialize_with = "entries", skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Glob>,
    /// … or is called so. At least one of both is there.
    #[serde(default, deserialize_with = "entries", skip_serializing_if = "Vec::is_empty")]
    pub operators: Vec<Glob>,
    /// On nodes with these labels,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Selector>,
    /// and with such a name.
    #[serde(default, deserialize_with = "entries", skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<Glob>,
    /// These methods,
    #[serde(default, deserialize_with = "entries", skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Glob>,
    /// on these domains,
    #[serde(default, deserialize_with = "entries", skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<Glob>,
    /// with one of these command lines,
    #[serde(default, deserialize_with = "entries", skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<Arguments>,
    /// as one of these local users, of whom the first is the one where an order names none,
    #[serde(default, deserialize_with = "entries", skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// at these hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<Times>,
    /// How many operators must have signed, the one who orders counted.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub approvals: u32,
}

const fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_one(approvals: &u32) -> bool {
    *approvals == 1
}

/// A list that is there has entries: whoever writes `argv = []` may mean none or any, so it means nothing.
fn entries<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    let entries = Vec::deserialize(from)?;
    match entries.len() {
        0 => Err(serde::de::Error::custom("an empty list: leave the condition out if it shall always hold")),
        1..=ENTRIES_MAX => Ok(entries),
        more => Err(serde::de::Error::custom(format!("{more} entries: a list has at most {ENTRIES_MAX}"))),
    }
}

impl Rule {
    /// What is wrong with it as a whole.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self, denies: bool) -> Result<(), String> {
        let printable = |text: &str| {
            (1..=NAME_MAX).contains(&text.len()) && text.trim() == text && !text.contains(char::is_control)
        };
        if !printable(&self.name) {
            return Err(format!(
                "name = {:?}: a rule needs a name of 1 to {NAME_MAX} bytes that can be read",
                self.name
            ));
        }
        if self.roles.is_empty() && self.operators.is_empty() {
            return Err(
                "it says nothing about who: it needs roles, or operators; operators = [\"*\"] is everybody".into()
            );
        }
        if let Some(user) = self.users.iter().find(|user| !printable(user) || user.contains([' ', ':', '/'])) {
            return Err(format!("users: {user:?} cannot be the name of a local user"));
        }
        if denies && self.approvals != 1 {
            return Err("approvals make no sense in a deny: nothing that it denies can be approved".into());
        }
        if !(1..=APPROVALS_MAX).contains(&self.approvals) {
            return Err(format!("approvals = {}: 1 to {APPROVALS_MAX} operators can be asked for", self.approvals));
        }
        Ok(())
    }
}

/// What is allowed, and what of that is denied.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// What may be done.
    #[serde(default)]
    pub allow: Vec<Rule>,
    /// What may not be done all the same.
    #[serde(default)]
    pub deny: Vec<Rule>,
}

impl Rules {
    /// Those of a new fleet: the role `admin` may everything.
    pub fn first() -> Self {
        let admins = Rule {
            name: "admins may everything".into(),
            roles: Glob::parse(ADMIN).into_iter().collect(),
            operators: vec![],
            nodes: None,
            names: vec![],
            methods: vec![],
            domains: vec![],
            argv: vec![],
            users: vec![],
            times: None,
            approvals: 1,
        };
        Self { allow: vec![admins], deny: vec![] }
    }

    /// What is wrong with them: which rule (whether it denies, and its place), and a sentence.
    ///
    /// # Errors
    /// The first rule that is wrong.
    pub fn check(&self) -> Result<(), (bool, usize, String)> {
        let allow = self.allow.iter().enumerate().map(|(index, rule)| (false, index, rule));
        let deny = self.deny.iter().enumerate().map(|(index, rule)| (true, index, rule));
        let mut names = std::collections::BTreeSet::new();
        for (count, (denies, index, rule)) in allow.chain(deny).enumerate() {
            let wrong = |reason: String| (denies, index, reason);
            if count == RULES_MAX {
                return Err(wrong(format!("there are more than {RULES_MAX} rules")));
            }
            rule.check(denies).map_err(wrong)?;
            if !names.insert(rule.name.as_str()) {
                return Err(wrong(format!("another rule is called {:?} as well: names tell who decided", rule.name)));
            }
        }
        Ok(())
    }
}

/// The `kind` of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyKind {
    /// The only one.
    Policy,
}

/// A policy as it is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The wire's version.
    pub v: u8,
    /// Always `policy`.
    pub kind: PolicyKind,
    /// Grows with every change; a node never goes back.
    pub version: u64,
    /// The root of the fleet that it is for.
    pub fleet: PublicKey,
    /// When it was made.
    pub issued: Timestamp,
    /// What it says.
    pub rules: Rules,
}

/// Why a policy is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Too long to be looked at.
    #[error("the policy has {bytes} bytes: at most {DOCUMENT_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Signed by somebody who may not.
    #[error(
        "the policy is signed by {key}, which is neither this fleet's root nor a key that its list of operators names for it"
    )]
    Signer {
        /// The key.
        key: PublicKey,
    },
    /// The signature does not hold.
    #[error("the policy is not believed: {0}")]
    Signature(#[from] SignatureError),
    /// Signed, but not readable.
    #[error("the policy cannot be read: {reason}")]
    Unreadable {
        /// What is wrong.
        reason: String,
    },
}

impl Policy {
    /// A policy of the fleet with this root.
    pub const fn new(version: u64, fleet: PublicKey, issued: Timestamp, rules: Rules) -> Self {
        Self { v: WIRE_VERSION, kind: PolicyKind::Policy, version, fleet, issued, rules }
    }

    /// Opens a policy that somebody offers: it has to be signed by the last of `roots`, or by a key that `trust` names for it.
    ///
    /// # Errors
    /// [`PolicyError`] when it is too large, signed by anybody else, altered, or not what it should be.
    pub fn open(sealed: &SealedDocument, roots: &Lineage, trust: &Trust) -> Result<Self, PolicyError> {
        let key = &sealed.seal.key;
        if key != roots.root() && (!trust.policy_keys.contains(key) || trust.revoked(key).is_some()) {
            return Err(PolicyError::Signer { key: key.clone() });
        }
        Self::open_kept(sealed, roots.fleet())
    }

    /// Opens a policy that was taken before: who signed it was allowed to then, and it stays in force when that key is not any
    /// more.
    ///
    /// # Errors
    /// [`PolicyError`] when it is altered, or not what it should be.
    pub fn open_kept(sealed: &SealedDocument, fleet: &PublicKey) -> Result<Self, PolicyError> {
        let bytes = sealed.document.len();
        if bytes > DOCUMENT_BYTES_MAX {
            return Err(PolicyError::TooLarge { bytes });
        }
        let text = sealed.open(&sealed.seal.key)?;
        let policy = Self::parse(text)?;
        if policy.fleet != *fleet {
            return Err(PolicyError::Unreadable { reason: format!("it is that of the fleet {}", policy.fleet) });
        }
        Ok(policy)
    }

    /// Reads the text of a document. Its signature has to be checked before.
    ///
    /// # Errors
    /// [`PolicyError`] when it is not a policy, or one that is written in another way than this code does.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let unreadable = |reason: String| PolicyError::Unreadable { reason };
        if text.len() > DOCUMENT_BYTES_MAX {
            return Err(PolicyError::TooLarge { bytes: text.len() });
        }
        let policy: Self = serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
        if policy.v != WIRE_VERSION {
            return Err(unreadable(format!("it is of version {}", policy.v)));
        }
        policy.rules.check().map_err(|(denies, index, reason)| {
            unreadable(format!("{} {}: {reason}", if denies { "deny" } else { "allow" }, index + 1))
        })?;
        // One meaning, one text: what two readers could read differently is not signed by anybody who means well.
        if policy.to_text()? != text {
            return Err(unreadable("it is not written in the one way that is agreed on".into()));
        }
        Ok(policy)
    }

    /// The text that is signed.
    ///
    /// # Errors
    /// [`PolicyError::TooLarge`] when nobody would take it.
    pub fn to_text(&self) -> Result<String, PolicyError> {
        let text =
            serde_json::to_string(self).map_err(|error| PolicyError::Unreadable { reason: error.to_string() })?;
        if text.len() > DOCUMENT_BYTES_MAX {
            return Err(PolicyError::TooLarge { bytes: text.len() });
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use nkeys::{KeyPair, KeyPairType};

    use super::*;
    use crate::trust::{Operator, TrustKind};

    fn pair(kind: KeyPairType, byte: u8) -> KeyPair {
        KeyPair::new_from_raw(kind, [byte; 32]).unwrap()
    }
    fn root() -> KeyPair {
        pair(KeyPairType::Operator, 1)
    }

    fn trust() -> Trust {
        Trust {
            v: 1,
            kind: TrustKind::Trust,
            serial: 1,
            issued: Timestamp::from_ms(0),
            operators: vec![Operator::admin("admin", PublicKey::of(&pair(KeyPairType::User, 2)))],
            policy_keys: vec![PublicKey::of(&pair(KeyPairType::User, 3))],
            revoked: vec![],
        }
    }

    fn policy() -> Policy {
        Policy::new(1, PublicKey::of(&root()), Timestamp::from_ms(0), Rules::first())
    }

    fn open(text: &str, by: &KeyPair) -> Result<Policy, PolicyError> {
        let sealed = SealedDocument::new(text.to_owned(), by).unwrap();
        Policy::open(&sealed, &Lineage::new(PublicKey::of(&root())), &trust())
    }

    #[test]
    fn the_root_and_its_delegates_sign_policies_and_nobody_else() {
        let text = policy().to_text().unwrap();
        assert_eq!(open(&text, &root()), Ok(policy()));
        assert_eq!(open(&text, &pair(KeyPairType::User, 3)), Ok(policy()));
        let operator = open(&text, &pair(KeyPairType::User, 2));
        assert!(matches!(operator, Err(PolicyError::Signer { .. })), "{operator:?}");
        let foreign = Policy { fleet: PublicKey::of(&pair(KeyPairType::Operator, 9)), ..policy() };
        let error = open(&foreign.to_text().unwrap(), &root()).unwrap_err().to_string();
        assert!(error.contains("fleet"), "{error}");
    }

    #[test]
    fn no_altered_byte_gets_through() {
        let mut sealed = SealedDocument::new(policy().to_text().unwrap(), &root()).unwrap();
        sealed.document = sealed.document.replace("admins may", "admins mau");
        let error = Policy::open(&sealed, &Lineage::new(PublicKey::of(&root())), &trust()).unwrap_err();
        assert!(matches!(error, PolicyError::Signature(_)), "{error}");
    }

    #[test]
    fn a_policy_is_written_in_one_way_only() {
        let text = policy().to_text().unwrap();
        let unreadable = |text: &str| match open(text, &root()) {
            Err(PolicyError::Unreadable { reason }) => reason,
            other => panic!("{other:?}"),
        };
        assert!(unreadable(&text.replace(":1,", ": 1,")).contains("one way"));
        assert!(unreadable(&text.replace("\"roles\":", "\"role\":")).contains("role"));
        assert!(unreadable(&text.replace(r#"["admin"]"#, "[]")).contains("empty list"));
        let twice = text.replace(r#""deny":[]"#, r#""deny":[{"name":"admins may everything","roles":["a"]}]"#);
        assert!(unreadable(&twice).contains("as well"), "{}", unreadable(&twice));
        assert!(unreadable(&text.replace(r#""roles":["admin"]"#, r#""methods":["a"]"#)).contains("who"));
        let approved = text.replace(r#""roles":["admin"]"#, r#""roles":["admin"],"approvals":17"#);
        assert!(unreadable(&approved).contains("1 to 16"));
        // However deep it goes, the parser goes no deeper than a policy does.
        unreadable(&format!("{}{}", "[".repeat(30_000), "]".repeat(30_000)));
    }

    #[test]
    fn a_policy_is_bounded() {
        let mut large = policy();
        let rule = large.rules.allow[0].clone();
        large.rules.allow = (0..=RULES_MAX).map(|n| Rule { name: n.to_string(), ..rule.clone() }).collect();
        assert_eq!(large.rules.check().unwrap_err().1, RULES_MAX);
        large.rules.allow[0].users = vec!["u".repeat(DOCUMENT_BYTES_MAX)];
        assert!(matches!(large.to_text(), Err(PolicyError::TooLarge { .. })));
        let sealed = SealedDocument::new("x".repeat(DOCUMENT_BYTES_MAX + 1), &root()).unwrap();
        assert!(matches!(
            Policy::open(&sealed, &Lineage::new(PublicKey::of(&root())), &trust()),
            Err(PolicyError::TooLarge { .. })
        ));
    }
}
