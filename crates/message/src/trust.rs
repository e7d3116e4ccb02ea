//! Trust: which operators may order, as the fleet's root has signed it.
//!
//! The document is sealed by the root key, whose public half every node got with its enrolment. A newer
//! serial replaces an older one, never the other way round.

use serde::{Deserialize, Serialize};

use crate::WIRE_VERSION;
use crate::name::Token;
use crate::sign::{PublicKey, SealedDocument, SignatureError};
use crate::time::Timestamp;

/// The role of those who are on the list without a word about roles: what lists said before there were any.
pub const ADMIN: &str = "admin";

/// One person or program that may sign orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// What it is called in lists and logs.
    pub name: String,
    /// The key that its orders are signed with.
    pub key: PublicKey,
    /// What it is in this fleet, for the policy to go by. Left out, and read as left out, where it is [`ADMIN`] alone, so that
    /// lists that were signed before there were roles mean what they meant.
    #[serde(default = "admin_alone", skip_serializing_if = "is_admin_alone")]
    pub roles: Vec<Token>,
}

fn admin_alone() -> Vec<Token> {
    Token::role(ADMIN).into_iter().collect()
}

fn is_admin_alone(roles: &[Token]) -> bool {
    matches!(roles, [role] if role.as_str() == ADMIN)
}

impl Operator {
    /// An operator whose only role is [`ADMIN`].
    pub fn admin(name: impl Into<String>, key: PublicKey) -> Self {
        Self { name: name.into(), key, roles: admin_alone() }
    }
}

/// One who was an operator and is none any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// What it was called.
    pub name: String,
    /// The key that counts no more.
    pub key: PublicKey,
    /// Since when.
    pub revoked: Timestamp,
}

/// The `kind` of a trust document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrustKind {
    /// The only one.
    Trust,
}

/// Who may order in this fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// The wire's version.
    pub v: u8,
    /// Always `trust`.
    pub kind: TrustKind,
    /// Grows with every change; an older one is never taken.
    pub serial: u64,
    /// When it was made.
    pub issued: Timestamp,
    /// Who may sign orders and registrations.
    pub operators: Vec<Operator>,
    /// Who may sign the policy beside the root. Left out when it is nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy_keys: Vec<PublicKey>,
    /// Whose signatures counted once and count no more. A key never comes back from here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<Revoked>,
}

/// Why a trust document is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Not signed by the root.
    #[error("the list of operators is not signed by this fleet's root: {0}")]
    Signature(#[from] SignatureError),
    /// Signed, but not readable.
    #[error("the list of operators cannot be read: {reason}")]
    Unreadable {
        /// What the parser said.
        reason: String,
    },
    /// Signed by one who is not the fleet's root now.
    #[error(transparent)]
    Succession(#[from] crate::succession::SuccessionError),
}

impl Trust {
    /// Opens a sealed trust document: it has to be signed by `root`.
    ///
    /// # Errors
    /// [`TrustError`] when it is signed by another key, altered, or of another version.
    pub fn open(sealed: &SealedDocument, root: &PublicKey) -> Result<Self, TrustError> {
        let text = sealed.open(root)?;
        let trust: Self =
            serde_json::from_str(text).map_err(|error| TrustError::Unreadable { reason: error.to_string() })?;
        if trust.v != WIRE_VERSION {
            return Err(TrustError::Unreadable { reason: format!("it is of version {}", trust.v) });
        }
        Ok(trust)
    }

    /// The operator that holds `key`, if it may order. A key that was revoked may not, whatever else the list says.
    pub fn operator(&self, key: &PublicKey) -> Option<&Operator> {
        self.operators.iter().find(|operator| operator.key == *key).filter(|_| self.revoked(key).is_none())
    }

    /// Who held `key` until it was revoked.
    pub fn revoked(&self, key: &PublicKey) -> Option<&Revoked> {
        self.revoked.iter().find(|revoked| revoked.key == *key)
    }

    /// Whether what `key` signed, and the broker stored at `stored`, was signed by one who was an operator then. For looking
    /// back only: what is still to happen asks for [`Trust::operator`].
    pub fn was_operator(&self, key: &PublicKey, stored: Timestamp) -> bool {
        self.operator(key).is_some() || self.revoked(key).is_some_and(|revoked| stored < revoked.revoked)
    }
}

#[cfg(test)]
mod tests {
    use nkeys::{KeyPair, KeyPairType};

    use super::*;

    #[test]
    fn only_what_the_root_signed_is_trusted() {
        let root = KeyPair::new_from_raw(KeyPairType::Operator, [1; 32]).unwrap();
        let other = KeyPair::new_from_raw(KeyPairType::Operator, [2; 32]).unwrap();
        let operator = PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [3; 32]).unwrap());
        let trust = Trust {
            v: WIRE_VERSION,
            kind: TrustKind::Trust,
            serial: 1,
            issued: Timestamp::from_ms(0),
            operators: vec![Operator::admin("admin", operator.clone())],
            policy_keys: vec![],
            revoked: vec![],
        };
        let text = serde_json::to_string(&trust).unwrap();
        let sealed = SealedDocument::new(text.clone(), &root).unwrap();
        let opened = Trust::open(&sealed, &PublicKey::of(&root)).unwrap();
        assert_eq!(opened.operator(&operator).unwrap().name, "admin");
        assert!(opened.operator(&PublicKey::of(&other)).is_none());
        let forged = SealedDocument::new(text, &other).unwrap();
        assert!(matches!(Trust::open(&forged, &PublicKey::of(&root)), Err(TrustError::Signature(_))));
    }

    #[test]
    fn a_revoked_key_orders_no_more_and_what_was_stored_before_is_still_its_own() {
        let key = PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [3; 32]).unwrap());
        let revoked = Revoked { name: "bob".into(), key: key.clone(), revoked: Timestamp::from_ms(1_000) };
        let trust = Trust {
            v: WIRE_VERSION,
            kind: TrustKind::Trust,
            serial: 2,
            issued: Timestamp::from_ms(0),
            // A list that says both means the stricter.
            operators: vec![Operator::admin("bob", key.clone())],
            policy_keys: vec![],
            revoked: vec![revoked],
        };
        assert!(trust.operator(&key).is_none());
        assert!(trust.was_operator(&key, Timestamp::from_ms(999)));
        assert!(!trust.was_operator(&key, Timestamp::from_ms(1_000)));
    }

    #[test]
    fn without_a_word_about_roles_an_operator_is_an_admin_and_an_admin_needs_no_word() {
        let key = PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [3; 32]).unwrap());
        let before = format!(r#"{{"name":"anna","key":"{key}"}}"#);
        let read: Operator = serde_json::from_str(&before).unwrap();
        assert_eq!(read, Operator::admin("anna", key));
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            before,
            "readers of before refuse fields that they do not know"
        );
        let nobody = Operator { roles: vec![], ..read.clone() };
        let text = serde_json::to_string(&nobody).unwrap();
        assert_eq!(serde_json::from_str::<Operator>(&text).unwrap(), nobody, "no role at all is not the role admin");
        let ops = Operator { roles: vec![Token::role("ops").unwrap()], ..read };
        assert_eq!(serde_json::from_str::<Operator>(&serde_json::to_string(&ops).unwrap()).unwrap(), ops);
        assert!(serde_json::from_str::<Operator>(&text.replace("[]", r#"["two words"]"#)).is_err());
    }
}
