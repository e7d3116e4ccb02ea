//! Secrets in an order: sealed to the node's key, bound to that one order.
//!
//! What flows in are names and values and the order that they go with; what flows out is one sealed box, as libsodium
//! makes them (`crypto_box_seal`), which only the holder of the node's private key opens. Inside stands for which order it was
//! made, and by whom: a box that was moved to another order, method, node or operator is refused. Values must never
//! get into an error, a log or what `Debug` prints.
//!
//! The node's key is ed25519 and signs; for the box it is taken in its Montgomery form, as
//! `crypto_sign_ed25519_pk_to_curve25519` does. That both uses of one key do not weaken each other is shown in
//! <https://eprint.iacr.org/2021/509>. So there is no second key to make, to publish, to rotate and to confuse.

use std::collections::BTreeMap;
use std::fmt;

use crypto_box::aead::rand_core::CryptoRngCore;
use data_encoding::BASE64;
use ed25519_dalek::{SigningKey, VerifyingKey};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::WIRE_VERSION;
use crate::id::{JobId, OrderId};
use crate::name::Token;
use crate::order::{Addressee, Order};
use crate::sign::PublicKey;

/// The most secrets that go with one order.
pub const SECRETS_MAX: usize = 16;
/// The most bytes that all values together may have.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;
/// The most characters of a name.
pub const SECRET_NAME_CHARS_MAX: usize = 64;

/// What is sealed is filled up to a multiple of this, so that its length tells little of what is inside.
const FILL: usize = 256;
/// Above all that a box of the largest secrets can have: names, values in base64, and the order's own words.
const SEALED_BYTES_MAX: usize = SECRET_BYTES_MAX * 3 / 2 + 8 * 1024;

/// Why secrets cannot be sealed or opened. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// A name that is none.
    #[error(
        "{name:?} is no name for a secret: a letter or `_`, then letters, digits and `_`, at most \
         {SECRET_NAME_CHARS_MAX} of them, since it becomes the name of a file"
    )]
    Name {
        /// What was given, cut to a bearable length.
        name: String,
    },
    /// One name twice.
    #[error("the secret {name} is given twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// More than an order may carry.
    #[error("an order carries at most {SECRETS_MAX} secrets of {} KiB together", SECRET_BYTES_MAX / 1024)]
    TooMuch,
    /// A key that is not on the curve, or one that everybody could read for.
    #[error("nothing can be sealed to the key {key}: it is no usable ed25519 key")]
    Key {
        /// The key.
        key: PublicKey,
    },
    /// The box could not be made.
    #[error("the secrets cannot be sealed")]
    Sealing,
    /// The box does not open.
    #[error(
        "its secrets cannot be opened with this node's key: they were sealed to another key, or altered on the way"
    )]
    Closed,
    /// The box opens, but was made for something else.
    #[error("its secrets were sealed for another {what}, and are not to be used here")]
    Elsewhere {
        /// What is not the same.
        what: &'static str,
    },
    /// The box opens, but holds something else than secrets as they are described here.
    #[error("its secrets are not written as they should be")]
    Malformed,
}

/// Names and values. `Debug` shows names alone, and values are overwritten in memory when they are dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(BTreeMap<String, Zeroizing<Vec<u8>>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Secrets {
    /// Adds one.
    ///
    /// # Errors
    /// [`SecretError`] when its name is none or taken, or when it is too much.
    pub fn add(&mut self, name: &str, value: Zeroizing<Vec<u8>>) -> Result<(), SecretError> {
        if !is_name(name) {
            return Err(SecretError::Name { name: name.chars().take(SECRET_NAME_CHARS_MAX).collect() });
        }
        if self.0.contains_key(name) {
            return Err(SecretError::Twice { name: name.to_owned() });
        }
        let bytes: usize = self.0.values().map(|value| value.len()).sum();
        if self.0.len() >= SECRETS_MAX || bytes.saturating_add(value.len()) > SECRET_BYTES_MAX {
            return Err(SecretError::TooMuch);
        }
        self.0.insert(name.to_owned(), value);
        Ok(())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Names and values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }
}

/// The name of a file and of nothing above it: no dot, no slash.
fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    name.len() <= SECRET_NAME_CHARS_MAX
        && chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The secrets of an order as they travel in it: everybody may know their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedSecrets {
    /// Their names, in order.
    pub names: Vec<String>,
    /// The box, in base64.
    pub sealed: String,
}

/// What is inside the box: the order that it is for, and the values.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inside {
    v: u8,
    by: PublicKey,
    id: OrderId,
    job: JobId,
    to: Addressee,
    method: Token,
    domain: Token,
    /// Values in base64.
    secrets: BTreeMap<String, Zeroizing<String>>,
}

/// Seals `secrets` for the node that `order` is for; `by` is who signs the order.
///
/// # Errors
/// [`SecretError::Key`] when the node's key cannot be sealed to.
pub fn seal(
    order: &Order,
    by: &PublicKey,
    secrets: &Secrets,
    random: &mut impl CryptoRngCore,
) -> Result<SealedSecrets, SecretError> {
    let inside = Inside {
        v: WIRE_VERSION,
        by: by.clone(),
        id: order.id,
        job: order.job.clone(),
        to: order.to.clone(),
        method: order.method.clone(),
        domain: order.domain.clone(),
        secrets: secrets.iter().map(|(name, value)| (name.to_owned(), Zeroizing::new(BASE64.encode(value)))).collect(),
    };
    // With all its room at once: a vector that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(SEALED_BYTES_MAX));
    serde_json::to_writer(&mut *text, &inside).map_err(|_| SecretError::Sealing)?;
    let filled = text.len().next_multiple_of(FILL);
    text.resize(filled, b' ');
    let sealed = box_key(&order.to.key)?.seal(random, &text).map_err(|_| SecretError::Sealing)?;
    Ok(SealedSecrets { names: secrets.names().map(ToOwned::to_owned).collect(), sealed: BASE64.encode(&sealed) })
}

/// Opens the secrets of `order`, which `by` has signed, with the node's key pair; none if it has none.
///
/// # Errors
/// [`SecretError`] when they are not for this key, this order or from this operator, or not written as they should be.
pub fn open(order: &Order, by: &PublicKey, pair: &KeyPair) -> Result<Secrets, SecretError> {
    let Some(secrets) = &order.secrets else { return Ok(Secrets::default()) };
    if secrets.sealed.len() / 4 * 3 > SEALED_BYTES_MAX {
        return Err(SecretError::TooMuch);
    }
    let sealed = BASE64.decode(secrets.sealed.as_bytes()).map_err(|_| SecretError::Malformed)?;
    let text = Zeroizing::new(private_key(pair)?.unseal(&sealed).map_err(|_| SecretError::Closed)?);
    let inside: Inside = serde_json::from_slice(&text).map_err(|_| SecretError::Malformed)?;
    let elsewhere = |what| Err(SecretError::Elsewhere { what });
    if inside.v != WIRE_VERSION {
        return elsewhere("version of the wire");
    }
    if inside.by != *by {
        return elsewhere("operator's order");
    }
    if inside.to != order.to {
        return elsewhere("node");
    }
    if inside.id != order.id || inside.job != order.job {
        return elsewhere("order");
    }
    if (&inside.method, &inside.domain) != (&order.method, &order.domain) {
        return elsewhere("method");
    }
    let mut opened = Secrets::default();
    for (name, value) in &inside.secrets {
        let value = BASE64.decode(value.as_bytes()).map_err(|_| SecretError::Malformed)?;
        opened.add(name, Zeroizing::new(value))?;
    }
    // What approvers and logs were shown is what there is.
    if opened.is_empty() || !opened.names().eq(secrets.names.iter().map(String::as_str)) {
        return Err(SecretError::Malformed);
    }
    Ok(opened)
}

/// The key that boxes for the holder of `key` are sealed to.
fn box_key(key: &PublicKey) -> Result<crypto_box::PublicKey, SecretError> {
    let wrong = || SecretError::Key { key: key.clone() };
    let (_, bytes) = nkeys::from_public_key(key.as_str()).map_err(|_| wrong())?;
    let key = VerifyingKey::from_bytes(&bytes).map_err(|_| wrong())?;
    // A box to a key of small order could be opened by anybody.
    if key.is_weak() {
        return Err(wrong());
    }
    Ok(crypto_box::PublicKey::from(key.to_montgomery()))
}

fn private_key(pair: &KeyPair) -> Result<crypto_box::SecretKey, SecretError> {
    let seed = Zeroizing::new(pair.seed().map_err(|_| SecretError::Closed)?);
    let (_, seed) = nkeys::decode_seed(&seed).map_err(|_| SecretError::Closed)?;
    let seed = Zeroizing::new(seed);
    let scalar = Zeroizing::new(SigningKey::from_bytes(&seed).to_scalar_bytes());
    Ok(crypto_box::SecretKey::from_bytes(*scalar))
}

#[cfg(test)]
mod tests {
    use crypto_box::aead::rand_core::{CryptoRng, Error, RngCore};
    use nkeys::KeyPairType;
    use proptest::prelude::*;

    use super::*;
    use crate::name::NodeName;
    use crate::order::tests::order;

    /// Random enough for a test, and the same each time.
    struct Counting(u64);

    impl RngCore for Counting {
        fn next_u32(&mut self) -> u32 {
            u32::try_from(self.next_u64() >> 32).unwrap()
        }
        fn next_u64(&mut self) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.0
        }
        fn fill_bytes(&mut self, dest: &mut [u8]) {
            dest.chunks_mut(8).for_each(|part| part.copy_from_slice(&self.next_u64().to_le_bytes()[..part.len()]));
        }
        fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
            self.fill_bytes(dest);
            Ok(())
        }
    }
    impl CryptoRng for Counting {}

    fn pair(byte: u8) -> KeyPair {
        KeyPair::new_from_raw(KeyPairType::User, [byte; 32]).unwrap()
    }

    fn secrets(all: &[(&str, &[u8])]) -> Secrets {
        let mut secrets = Secrets::default();
        all.iter().for_each(|(name, value)| secrets.add(name, Zeroizing::new(value.to_vec())).unwrap());
        secrets
    }

    fn operator() -> PublicKey {
        PublicKey::of(&pair(1))
    }

    /// An order to the node of key 7, with secrets.
    fn sealed(all: &[(&str, &[u8])]) -> Order {
        let order = order();
        let sealed = seal(&order, &operator(), &secrets(all), &mut Counting(1)).unwrap();
        Order { secrets: Some(sealed), ..order }
    }

    #[test]
    fn who_holds_the_nodes_key_reads_what_was_sealed() {
        let all: [(&str, &[u8]); 2] = [("DB_PASSWORD", b"hunter2\n"), ("_key", &[0, 255, 10])];
        let order = Order::parse(&sealed(&all).to_bytes().unwrap()).unwrap();
        assert_eq!(open(&order, &operator(), &pair(7)), Ok(secrets(&all)));
        assert_eq!(order.secrets.unwrap().names, ["DB_PASSWORD", "_key"]);
    }

    #[test]
    fn an_order_without_secrets_has_none() {
        assert!(open(&order(), &operator(), &pair(7)).unwrap().is_empty());
        assert!(!String::from_utf8(order().to_bytes().unwrap()).unwrap().contains("secrets"));
    }

    #[test]
    fn another_key_opens_nothing() {
        assert_eq!(open(&sealed(&[("A", b"x")]), &operator(), &pair(8)), Err(SecretError::Closed));
    }

    #[test]
    fn a_box_that_was_moved_is_refused() {
        let genuine = sealed(&[("A", b"x")]);
        let elsewhere = |order: Order, by: PublicKey, what: &'static str| {
            assert_eq!(open(&order, &by, &pair(7)), Err(SecretError::Elsewhere { what }));
        };
        let other = |to: &str| Addressee { name: NodeName::new(to).unwrap(), ..genuine.to.clone() };
        elsewhere(genuine.clone(), PublicKey::of(&pair(2)), "operator's order");
        elsewhere(Order { to: other("ship2"), ..genuine.clone() }, operator(), "node");
        elsewhere(Order { id: OrderId::from_bytes([0x22; 16]), ..genuine.clone() }, operator(), "order");
        elsewhere(Order { job: JobId::new(1, 1), ..genuine.clone() }, operator(), "order");
        elsewhere(Order { method: Token::method("printer").unwrap(), ..genuine.clone() }, operator(), "method");
        elsewhere(Order { domain: Token::domain("other").unwrap(), ..genuine }, operator(), "method");
    }

    #[test]
    fn names_are_those_that_were_shown() {
        let mut order = sealed(&[("A", b"x"), ("B", b"y")]);
        if let Some(secrets) = &mut order.secrets {
            secrets.names.pop();
        }
        assert_eq!(open(&order, &operator(), &pair(7)), Err(SecretError::Malformed));
    }

    #[test]
    fn any_byte_that_is_another_closes_the_box() {
        let genuine = sealed(&[("A", b"x")]);
        let bytes = BASE64.decode(genuine.secrets.as_ref().unwrap().sealed.as_bytes()).unwrap();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x40;
            let altered = SealedSecrets { sealed: BASE64.encode(&bytes), ..genuine.secrets.clone().unwrap() };
            let altered = Order { secrets: Some(altered), ..genuine.clone() };
            assert_eq!(open(&altered, &operator(), &pair(7)), Err(SecretError::Closed), "byte {at}");
        }
    }

    #[test]
    fn bounds_hold_and_the_largest_fits() {
        let mut full = Secrets::default();
        for number in 0..SECRETS_MAX {
            let name = format!("{}{number:02}", "N".repeat(SECRET_NAME_CHARS_MAX - 2));
            full.add(&name, Zeroizing::new(vec![7; SECRET_BYTES_MAX / SECRETS_MAX])).unwrap();
        }
        assert_eq!(full.add("ONE_MORE", Zeroizing::new(vec![])), Err(SecretError::TooMuch));
        let order = order();
        let sealed = seal(&order, &operator(), &full, &mut Counting(1)).unwrap();
        assert!(sealed.sealed.len() / 4 * 3 <= SEALED_BYTES_MAX);
        let order = Order { secrets: Some(sealed), ..order };
        assert_eq!(open(&Order::parse(&order.to_bytes().unwrap()).unwrap(), &operator(), &pair(7)), Ok(full));
        let mut large = Secrets::default();
        assert_eq!(large.add("A", Zeroizing::new(vec![0; SECRET_BYTES_MAX + 1])), Err(SecretError::TooMuch));
        for name in ["", "1A", "A-B", "A/B", "..", "A.B", "Ä", &"N".repeat(65)] {
            assert!(matches!(large.add(name, Zeroizing::new(vec![])), Err(SecretError::Name { .. })), "{name}");
        }
        large.add("A", Zeroizing::new(vec![])).unwrap();
        assert!(matches!(large.add("A", Zeroizing::new(vec![])), Err(SecretError::Twice { .. })));
    }

    #[test]
    fn lengths_tell_little_and_debug_tells_names_alone() {
        let length = |value: &[u8]| sealed(&[("A", value)]).secrets.unwrap().sealed.len();
        assert_eq!(length(b"x"), length(b"twenty-five characters..."));
        let secrets = secrets(&[("A", b"hunter2")]);
        assert_eq!(format!("{secrets:?}"), r#"{"A"}"#);
        assert!(!format!("{:?}", sealed(&[("A", b"hunter2")])).contains("hunter2"));
    }

    #[test]
    fn nothing_is_sealed_to_a_key_that_everybody_could_read_for() {
        let weak = nkeys::KeyPair::from_public_key(&nkey_of([0; 32])).map(|pair| PublicKey::of(&pair));
        let Ok(weak) = weak else { return };
        assert_eq!(box_key(&weak), Err(SecretError::Key { key: weak.clone() }));
    }

    /// A public nkey of these bytes, whatever they are.
    fn nkey_of(key: [u8; 32]) -> String {
        let mut raw = vec![20 << 3];
        raw.extend(key);
        let mut crc: u16 = 0;
        for byte in &raw {
            crc ^= u16::from(*byte) << 8;
            for _ in 0..8 {
                crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            }
        }
        raw.extend(crc.to_le_bytes());
        data_encoding::BASE32_NOPAD.encode(&raw)
    }

    proptest! {
        #[test]
        fn garbage_never_panics(sealed in ".{0,200}", names in proptest::collection::vec(".{0,9}", 0..3)) {
            let order = Order { secrets: Some(SealedSecrets { names, sealed }), ..order() };
            prop_assert!(open(&order, &operator(), &pair(7)).is_err());
        }
    }
}
