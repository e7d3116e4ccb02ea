//! Renewal: a new token for somebody's key, when the key that signs the tokens of his role is another one.
//!
//! An operator signs it; whoever it is for takes it if the token is for his own key and name, keeps it, and says so. The token
//! itself is a NATS user JWT and opens nothing without the private key, which never leaves its owner.

use serde::{Deserialize, Serialize};

use crate::WIRE_VERSION;
use crate::sign::PublicKey;
use crate::time::Timestamp;

/// The `kind` of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RenewalKind {
    /// The only one.
    Renewal,
}

/// A new token: the value at `<key>` of bucket `USERS`, signed by an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renewal {
    /// The wire's version.
    pub v: u8,
    /// Always `renewal`.
    pub kind: RenewalKind,
    /// What he is called.
    pub name: String,
    /// Whose it is.
    pub key: PublicKey,
    /// The token.
    pub jwt: String,
    /// When it was made.
    pub issued: Timestamp,
}

/// The `kind` of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TakenKind {
    /// The only one.
    Taken,
}

/// The receipt: the value at `taken.<key>` of bucket `USERS`, signed by whom the token is for, once he has it on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The wire's version.
    pub v: u8,
    /// Always `taken`.
    pub kind: TakenKind,
    /// Whose it is.
    pub key: PublicKey,
    /// The key that signed the token.
    pub issuer: PublicKey,
}

/// Why a renewal or a receipt does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenewalError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// It is for somebody else.
    #[error("it is for {0}")]
    Another(PublicKey),
}

impl Renewal {
    /// A renewal.
    #[must_use]
    pub const fn new(name: String, key: PublicKey, jwt: String, issued: Timestamp) -> Self {
        Self { v: WIRE_VERSION, kind: RenewalKind::Renewal, name, key, jwt, issued }
    }

    /// Reads what is meant for `key`. Who signed it has to be checked before.
    ///
    /// # Errors
    /// [`RenewalError`].
    pub fn parse(payload: &[u8], key: &PublicKey) -> Result<Self, RenewalError> {
        let read: Self =
            serde_json::from_slice(payload).map_err(|error| RenewalError::Unreadable(error.to_string()))?;
        if read.v != WIRE_VERSION {
            return Err(RenewalError::Unreadable(format!("it is of version {}", read.v)));
        }
        if read.key == *key { Ok(read) } else { Err(RenewalError::Another(read.key)) }
    }
}

impl Taken {
    /// A receipt.
    #[must_use]
    pub const fn new(key: PublicKey, issuer: PublicKey) -> Self {
        Self { v: WIRE_VERSION, kind: TakenKind::Taken, key, issuer }
    }

    /// Reads the receipt of `key`, which has to have signed it.
    ///
    /// # Errors
    /// [`RenewalError`].
    pub fn parse(payload: &[u8], key: &PublicKey) -> Result<Self, RenewalError> {
        let read: Self =
            serde_json::from_slice(payload).map_err(|error| RenewalError::Unreadable(error.to_string()))?;
        if read.key == *key { Ok(read) } else { Err(RenewalError::Another(read.key)) }
    }
}
