//! An order: one command of one job to one node, as it stands in the signed body.
//!
//! The body holds everything that matters; the subject it came on is only compared with it. An order is read
//! strictly: a field that this version does not know could be a condition it would ignore.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::WIRE_VERSION;
use crate::id::{JobId, OrderId};
use crate::name::{NodeName, Token};
use crate::secret::SealedSecrets;
use crate::sign::PublicKey;
use crate::subject::{Kind, ReplySubject, Subject};
use crate::time::Timestamp;

/// The most bytes the body of an order may have; what is larger is refused before it is read.
pub const ORDER_BYTES_MAX: usize = 768 * 1024;

/// The domain used when a command line names none.
pub const DEFAULT_DOMAIN: &str = "operatingsystem";

/// A node is its name and its key: an order is addressed to both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addressee {
    /// The node's name.
    pub name: NodeName,
    /// The node's public key.
    pub key: PublicKey,
}

/// The signed body of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The wire's version, [`WIRE_VERSION`].
    pub v: u8,
    /// Always [`Kind::Command`].
    pub kind: Kind,
    /// What a node never runs twice.
    pub id: OrderId,
    /// The job that it belongs to.
    pub job: JobId,
    /// Who is to execute it.
    pub to: Addressee,
    /// What is to be done.
    pub method: Token,
    /// What it is about.
    pub domain: Token,
    /// The node that receives the replies.
    pub from: NodeName,
    /// When it was made, by the clock of the one who signed.
    pub created: Timestamp,
    /// Until when a node may pick it up.
    pub expires: Timestamp,
    /// How long one execution may take, in milliseconds.
    pub timeout_ms: u64,
    /// How many bytes of each output stream are kept.
    pub max_output_bytes: u64,
    /// What the method needs.
    pub args: Value,
    /// Of the orders that wait at a node under one such key, only the newest is to run. Left out when not used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub supersede: Option<Token>,
    /// What only the node may read. Left out when not used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secrets: Option<SealedSecrets>,
}

/// Why a signed body is not an order that this node may take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// More than [`ORDER_BYTES_MAX`].
    #[error("the order has {bytes} bytes: at most {ORDER_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not the JSON it should be.
    #[error("the order cannot be read: {reason}")]
    Unreadable {
        /// What the parser said.
        reason: String,
    },
    /// Another version of the wire.
    #[error("the order speaks version {found} of the wire, this node version {WIRE_VERSION}: upgrade the older side")]
    Version {
        /// The version in the body.
        found: u8,
    },
    /// Signed for another subject than the one it came on.
    #[error("the order is for {signed}, but came on {arrived}")]
    Subject {
        /// The subject that the body describes.
        signed: String,
        /// The subject that the message came on.
        arrived: String,
    },
    /// Addressed to a node of this name with another key.
    #[error("the order is addressed to {name} with the key {key}, which is not this node's key")]
    Key {
        /// The name.
        name: NodeName,
        /// The key in the body.
        key: PublicKey,
    },
    /// It expires before it was made.
    #[error("the order expires at {expires}, before it was created at {created}")]
    Times {
        /// As in the body.
        created: Timestamp,
        /// As in the body.
        expires: Timestamp,
    },
}

impl Order {
    /// Reads the body of an order. The signature over `bytes` has to be checked before.
    ///
    /// # Errors
    /// [`OrderError`] when it is too large, not an order, or of another version.
    pub fn parse(bytes: &[u8]) -> Result<Self, OrderError> {
        if bytes.len() > ORDER_BYTES_MAX {
            return Err(OrderError::TooLarge { bytes: bytes.len() });
        }
        let order: Self =
            serde_json::from_slice(bytes).map_err(|error| OrderError::Unreadable { reason: error.to_string() })?;
        if order.v != WIRE_VERSION {
            return Err(OrderError::Version { found: order.v });
        }
        if order.kind != Kind::Command {
            return Err(OrderError::Unreadable { reason: "its kind is not command".into() });
        }
        if order.expires < order.created {
            return Err(OrderError::Times { created: order.created, expires: order.expires });
        }
        Ok(order)
    }

    /// The bytes that are signed and sent.
    ///
    /// # Errors
    /// [`OrderError::TooLarge`] when a node would refuse them; [`OrderError::Unreadable`] if they cannot be written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, OrderError> {
        let bytes = serde_json::to_vec(self).map_err(|error| OrderError::Unreadable { reason: error.to_string() })?;
        if bytes.len() > ORDER_BYTES_MAX {
            return Err(OrderError::TooLarge { bytes: bytes.len() });
        }
        Ok(bytes)
    }

    /// Checks that this order is meant for `me` and came on its own subject.
    ///
    /// # Errors
    /// [`OrderError::Subject`] or [`OrderError::Key`] when it is not.
    pub fn check_addressee(&self, arrived_on: &str, me: &Addressee) -> Result<(), OrderError> {
        let signed = self.subject().to_string();
        if signed != arrived_on || self.to.name != me.name {
            return Err(OrderError::Subject { signed, arrived: arrived_on.to_owned() });
        }
        if self.to.key != me.key {
            return Err(OrderError::Key { name: self.to.name.clone(), key: self.to.key.clone() });
        }
        Ok(())
    }

    /// The subject that it travels on.
    pub fn subject(&self) -> Subject {
        Subject::command(self.to.name.clone(), self.method.clone(), self.domain.clone())
    }

    /// Where its node answers.
    pub fn reply_subject(&self) -> ReplySubject {
        ReplySubject { sender: self.from.clone(), job: self.job.clone(), node: self.to.name.clone() }
    }

    /// How long one execution may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use nkeys::{KeyPair, KeyPairType};
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn node_key() -> PublicKey {
        PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [7; 32]).unwrap())
    }

    pub(crate) fn order() -> Order {
        Order {
            v: WIRE_VERSION,
            kind: Kind::Command,
            id: OrderId::from_bytes([0x11; 16]),
            job: JobId::new(1_795_348_800_000, 42),
            to: Addressee { name: NodeName::new("ship1").unwrap(), key: node_key() },
            method: Token::method("shellcommand").unwrap(),
            domain: Token::domain("operatingsystem").unwrap(),
            from: NodeName::new("central").unwrap(),
            created: Timestamp::from_ms(1_795_348_800_000),
            expires: Timestamp::from_ms(1_795_352_400_000),
            timeout_ms: 60_000,
            max_output_bytes: 1_048_576,
            args: serde_json::json!({"argv": ["uname", "-a"]}),
            supersede: None,
            secrets: None,
        }
    }

    #[test]
    fn an_order_reads_back_as_written() {
        assert_eq!(Order::parse(&order().to_bytes().unwrap()), Ok(order()));
    }

    #[test]
    fn a_key_to_supersede_under_is_part_of_the_order_and_absent_without_one() {
        assert!(!String::from_utf8(order().to_bytes().unwrap()).unwrap().contains("supersede"));
        let keyed = Order { supersede: Some(Token::key("nightly/config").unwrap()), ..order() };
        assert_eq!(Order::parse(&keyed.to_bytes().unwrap()), Ok(keyed));
        let mut body = serde_json::to_value(order()).unwrap();
        body["supersede"] = serde_json::json!("two words");
        assert!(Order::parse(&serde_json::to_vec(&body).unwrap()).is_err());
    }

    #[test]
    fn an_order_is_for_one_name_one_key_and_one_subject() {
        let me = Addressee { name: NodeName::new("ship1").unwrap(), key: node_key() };
        let subject = "ship1.command.shellcommand.operatingsystem";
        assert_eq!(order().check_addressee(subject, &me), Ok(()));
        let elsewhere = order().check_addressee("ship1.command.shellcommand.other", &me);
        assert!(matches!(elsewhere, Err(OrderError::Subject { .. })));
        let other_key = PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [8; 32]).unwrap());
        let reinstalled = Addressee { key: other_key, ..me.clone() };
        assert!(matches!(order().check_addressee(subject, &reinstalled), Err(OrderError::Key { .. })));
        let other_name = Addressee { name: NodeName::new("ship2").unwrap(), ..me };
        assert!(matches!(order().check_addressee(subject, &other_name), Err(OrderError::Subject { .. })));
    }

    #[test]
    fn an_unknown_field_is_refused_since_it_could_be_a_condition() {
        let mut body = serde_json::to_value(order()).unwrap();
        body["approvals"] = serde_json::json!(2);
        let error = Order::parse(&serde_json::to_vec(&body).unwrap()).unwrap_err().to_string();
        assert!(error.contains("approvals"), "{error}");
    }

    #[test]
    fn too_large_wrong_version_and_wrong_times_are_refused() {
        assert!(matches!(Order::parse(&vec![b' '; ORDER_BYTES_MAX + 1]), Err(OrderError::TooLarge { .. })));
        let version = Order { v: 2, ..order() };
        assert_eq!(Order::parse(&serde_json::to_vec(&version).unwrap()), Err(OrderError::Version { found: 2 }));
        let times = Order { expires: Timestamp::from_ms(0), ..order() };
        assert!(matches!(Order::parse(&serde_json::to_vec(&times).unwrap()), Err(OrderError::Times { .. })));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Order::parse(&bytes).is_err());
        }

        #[test]
        fn an_altered_order_never_panics(at in any::<usize>(), byte in any::<u8>()) {
            let mut bytes = order().to_bytes().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Order::parse(&bytes);
        }
    }
}
