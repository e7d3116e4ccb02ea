//! Signatures: ed25519 by NATS nkeys, over the exact bytes that travel.
//!
//! A signature is checked before anything in the signed bytes is parsed. Keys are written as nkeys public
//! keys (`U…`, `O…`; <https://github.com/nats-io/nkeys>), signatures as base64url without padding (RFC 4648 §5).

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

/// The header that names the key that signed the payload.
pub const KEY_HEADER: &str = "Steward-Key";
/// The header that holds the signature over the exact payload.
pub const SIGNATURE_HEADER: &str = "Steward-Signature";

/// Why a signature does not prove anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No key or no signature came along.
    #[error("the message is not signed: it needs the headers {KEY_HEADER} and {SIGNATURE_HEADER}")]
    Missing,
    /// The key is no public nkey.
    #[error("the key {key:?} is not a public nkey")]
    Key {
        /// What was given, cut to a bearable length.
        key: String,
    },
    /// The signature is not 64 bytes in base64url.
    #[error("the signature is not 64 bytes in base64url without padding")]
    Encoding,
    /// The signature does not belong to these bytes and this key.
    #[error("the signature does not fit: the message was altered, or signed with another key than {key}")]
    Mismatch {
        /// The key that was said to have signed.
        key: PublicKey,
    },
}

/// A public nkey of any kind (node and operator keys begin with `U`, the root key with `O`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(String);

impl PublicKey {
    /// Accepts a public nkey.
    ///
    /// # Errors
    /// [`SignatureError::Key`] when it is none, or a private one.
    pub fn parse(key: impl Into<String>) -> Result<Self, SignatureError> {
        let key = key.into();
        let wrong = || SignatureError::Key { key: key.chars().take(64).collect() };
        // 56 characters is the only length of a public nkey; a seed has 58 and begins with S. Whether it is a point of the
        // curve is found out when it is to verify something: most of the time of reading a key would go there.
        if key.len() != 56 || key.starts_with('S') || key.starts_with('P') || nkeys::from_public_key(&key).is_err() {
            return Err(wrong());
        }
        Ok(Self(key))
    }

    /// The public half of `pair`.
    pub fn of(pair: &KeyPair) -> Self {
        Self(pair.public_key())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks that `signature` was made over exactly `bytes` by the private half of this key.
    ///
    /// # Errors
    /// [`SignatureError::Encoding`] or [`SignatureError::Mismatch`].
    pub fn verify(&self, bytes: &[u8], signature: &str) -> Result<(), SignatureError> {
        let signature = decoded(signature)?;
        self.point()?.verify(bytes, &signature).map_err(|_| SignatureError::Mismatch { key: self.clone() })
    }

    fn point(&self) -> Result<VerifyingKey, SignatureError> {
        let wrong = || SignatureError::Key { key: self.0.clone() };
        let (_, raw) = nkeys::from_public_key(&self.0).map_err(|_| wrong())?;
        VerifyingKey::from_bytes(&raw).map_err(|_| wrong())
    }
}

fn decoded(signature: &str) -> Result<Signature, SignatureError> {
    let mut raw = [0_u8; Signature::BYTE_SIZE];
    // The length is checked first: decode_mut would panic on a wrong one.
    if BASE64URL_NOPAD.decode_len(signature.len()) != Ok(raw.len())
        || BASE64URL_NOPAD.decode_mut(signature.as_bytes(), &mut raw).is_err()
    {
        return Err(SignatureError::Encoding);
    }
    Ok(Signature::from_bytes(&raw))
}

/// Checks many signatures, each over its own bytes, together: that takes about half the time. What comes out is what
/// [`Seal::verify`] says of each; only on signatures that the holder of a key has made so on purpose may the two differ
/// (<https://hdevalence.ca/blog/2020-10-04-its-25519am>). That is enough where somebody speaks of himself, and not where
/// something is to begin.
pub fn verify_all(signed: &[(&Seal, &[u8])]) -> Vec<Result<(), SignatureError>> {
    let read = signed.iter().map(|(seal, _)| Ok((seal.key.point()?, decoded(&seal.signature)?)));
    let read: Vec<Result<_, SignatureError>> = read.collect();
    let (mut points, mut signatures, mut payloads) = (Vec::new(), Vec::new(), Vec::new());
    for (read, (_, payload)) in read.iter().zip(signed) {
        if let Ok((point, signature)) = read {
            points.push(*point);
            signatures.push(*signature);
            payloads.push(*payload);
        }
    }
    if ed25519_dalek::verify_batch(&payloads, &signatures, &points).is_ok() {
        return read.into_iter().map(|read| read.map(drop)).collect();
    }
    // Some do not hold; which ones, is found out one by one.
    let verified = read.into_iter().zip(signed).map(|(read, (seal, payload))| {
        let (point, signature) = read?;
        point.verify(payload, &signature).map_err(|_| SignatureError::Mismatch { key: seal.key.clone() })
    });
    verified.collect()
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.0
    }
}
impl TryFrom<String> for PublicKey {
    type Error = SignatureError;
    fn try_from(text: String) -> Result<Self, SignatureError> {
        Self::parse(text)
    }
}

/// Who signed, and the proof: what travels in the two headers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The key that signed.
    pub key: PublicKey,
    /// The signature, base64url without padding.
    pub signature: String,
}

/// A key pair that has no private half cannot sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key {key} cannot sign: its private half (the seed) is not here")]
pub struct NoPrivateKey {
    /// The public half.
    pub key: String,
}

impl Seal {
    /// Signs exactly `bytes`.
    ///
    /// # Errors
    /// [`NoPrivateKey`] when `pair` holds a public key only.
    pub fn over(bytes: &[u8], pair: &KeyPair) -> Result<Self, NoPrivateKey> {
        let raw = pair.sign(bytes).map_err(|_| NoPrivateKey { key: pair.public_key() })?;
        Ok(Self { key: PublicKey::of(pair), signature: BASE64URL_NOPAD.encode(&raw) })
    }

    /// Reads the seal from the values of the two headers.
    ///
    /// # Errors
    /// [`SignatureError::Missing`] when one is not there, [`SignatureError::Key`] when the key is none.
    pub fn from_headers(key: Option<&str>, signature: Option<&str>) -> Result<Self, SignatureError> {
        match (key, signature) {
            (Some(key), Some(signature)) => Ok(Self { key: PublicKey::parse(key)?, signature: signature.to_owned() }),
            _ => Err(SignatureError::Missing),
        }
    }

    /// Checks the signature over exactly `bytes`. Says nothing about whether the key is trusted.
    ///
    /// # Errors
    /// [`SignatureError`] when it does not hold.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), SignatureError> {
        self.key.verify(bytes, &self.signature)
    }
}

/// A document with its seal in one JSON object, for files and for KV values: the document is kept as text so
/// that its exact bytes survive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedDocument {
    /// The exact text that was signed.
    pub document: String,
    /// Who signed it, and the proof.
    #[serde(flatten)]
    pub seal: Seal,
}

impl SealedDocument {
    /// Seals `document`.
    ///
    /// # Errors
    /// [`NoPrivateKey`] when `pair` holds a public key only.
    pub fn new(document: String, pair: &KeyPair) -> Result<Self, NoPrivateKey> {
        let seal = Seal::over(document.as_bytes(), pair)?;
        Ok(Self { document, seal })
    }

    /// The document, if `key` is the one that signed it.
    ///
    /// # Errors
    /// [`SignatureError::Mismatch`] when another key signed, or the text was altered.
    pub fn open(&self, key: &PublicKey) -> Result<&str, SignatureError> {
        if self.seal.key != *key {
            return Err(SignatureError::Mismatch { key: key.clone() });
        }
        self.seal.verify(self.document.as_bytes())?;
        Ok(&self.document)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(byte: u8) -> KeyPair {
        KeyPair::new_from_raw(nkeys::KeyPairType::User, [byte; 32]).unwrap()
    }

    #[test]
    fn an_nkey_that_is_no_point_of_the_curve_verifies_nothing() {
        // y = 2 is none.
        let key = PublicKey::parse("UABAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAHWN").unwrap();
        let seal = Seal { key, ..Seal::over(b"order", &pair(1)).unwrap() };
        assert!(matches!(seal.verify(b"order"), Err(SignatureError::Key { .. })));
        assert!(matches!(verify_all(&[(&seal, b"order")])[..], [Err(SignatureError::Key { .. })]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn many_are_verified_as_each_alone(said in prop::collection::vec((0..4_u8, any::<[u8; 3]>(), 0..12_u8), 0..20)) {
            let sealed: Vec<_> = said.iter().map(|(by, bytes, wrong)| {
                let mut seal = Seal::over(bytes, &pair(*by)).unwrap();
                match wrong {
                    0 => seal.signature = BASE64URL_NOPAD.encode(&[0xff; 64]),
                    1 => seal.signature = "short".into(),
                    2 => seal.key = PublicKey::of(&pair(9)),
                    3 => seal = Seal::over(b"other", &pair(*by)).unwrap(),
                    _ => {}
                }
                (seal, bytes)
            }).collect();
            let signed: Vec<_> = sealed.iter().map(|(seal, bytes)| (seal, &bytes[..])).collect();
            let alone: Vec<_> = signed.iter().map(|(seal, bytes)| seal.verify(bytes)).collect();
            prop_assert_eq!(verify_all(&signed), alone);
        }
    }

    #[test]
    fn a_seal_holds_for_its_bytes_and_key_only() {
        let seal = Seal::over(b"order", &pair(1)).unwrap();
        assert_eq!(seal.verify(b"order"), Ok(()));
        assert!(matches!(seal.verify(b"Order"), Err(SignatureError::Mismatch { .. })));
        let foreign = Seal { key: PublicKey::of(&pair(2)), ..seal };
        assert!(matches!(foreign.verify(b"order"), Err(SignatureError::Mismatch { .. })));
    }

    #[test]
    fn a_seed_is_never_taken_for_a_public_key() {
        let seed = pair(1).seed().unwrap();
        assert!(PublicKey::parse(seed).is_err());
    }

    #[test]
    fn a_sealed_document_opens_for_its_signer_only() {
        let sealed = SealedDocument::new("{\"a\":1}".into(), &pair(1)).unwrap();
        let text = serde_json::to_string(&sealed).unwrap();
        let read: SealedDocument = serde_json::from_str(&text).unwrap();
        assert_eq!(read.open(&PublicKey::of(&pair(1))), Ok("{\"a\":1}"));
        assert!(read.open(&PublicKey::of(&pair(2))).is_err());
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_found(bytes in proptest::collection::vec(any::<u8>(), 1..200), at in any::<usize>(), bit in 0_u8..8) {
            let seal = Seal::over(&bytes, &pair(3)).unwrap();
            let mut altered = bytes;
            let at = at % altered.len();
            altered[at] ^= 1 << bit;
            prop_assert!(seal.verify(&altered).is_err());
        }

        #[test]
        fn garbage_headers_never_panic(key in ".{0,80}", signature in ".{0,120}", bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(seal) = Seal::from_headers(Some(&key), Some(&signature)) {
                prop_assert!(seal.verify(&bytes).is_err());
            }
            prop_assert!(PublicKey::of(&pair(4)).verify(&bytes, &signature).is_err());
        }
    }
}
