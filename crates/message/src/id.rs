//! Identifiers: of jobs (sortable by time), and of orders, messages and installations (128 random bits).

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

/// A text that is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a ULID in capital letters.
    #[error(
        "{text:?} is not a job id: a job id has 26 characters, like 01JD3V8ZK4Q1W9X7M2N5B6C8D0; `steward job ls` lists them"
    )]
    Job {
        /// What was given.
        text: String,
    },
    /// Not 32 lower-case hexadecimal digits.
    #[error("{text:?} is not an id: expected 32 lower-case hexadecimal digits")]
    Hex {
        /// What was given.
        text: String,
    },
}

/// The id of a job: a ULID (<https://github.com/ulid/spec>), 26 characters. It sorts by the time of creation, unless
/// it was derived from an idempotency key: whoever lists jobs by age goes by their records.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// The id for a job created at `ms` milliseconds after 1970, made unique by 80 of the bits of `random`.
    pub fn new(ms: u64, random: u128) -> Self {
        Self(ulid::Ulid::from_parts(ms, random).to_string())
    }

    /// The id that these 128 bits stand for: for jobs whose id follows from something else than the time.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(ulid::Ulid::from_bytes(bytes).to_string())
    }

    /// When the job was made, in milliseconds after 1970, as far as its id tells; anything, where it was derived from
    /// an idempotency key.
    pub fn ms(&self) -> u64 {
        ulid::Ulid::from_string(&self.0).map_or(0, |id| id.timestamp_ms())
    }

    /// Accepts a job id in its canonical form: capital letters, no other alphabet.
    ///
    /// # Errors
    /// [`IdError::Job`] when it is anything else.
    pub fn parse(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        match ulid::Ulid::from_string(&text) {
            Ok(id) if id.to_string() == text => Ok(Self(text)),
            _ => Err(IdError::Job { text }),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}
impl TryFrom<String> for JobId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::parse(text)
    }
}
impl std::str::FromStr for JobId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            /// The id made of these 128 bits, which the caller has drawn at random.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The 128 bits.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&HEXLOWER.encode(&self.0))
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; 16];
                if text.len() == 32 && HEXLOWER.decode_mut(text.as_bytes(), &mut bytes).is_ok() {
                    Ok(Self(bytes))
                } else {
                    Err(IdError::Hex { text: text.chars().take(64).collect() })
                }
            }
        }
    };
}

random_id! {
    /// The id of one order: one command of one job to one node. It is what a node never runs twice.
    OrderId
}
random_id! {
    /// The id of one message for the broker's deduplication (`Nats-Msg-Id`); random, since a guessable id
    /// can be used up by somebody else beforehand.
    MessageId
}
random_id! {
    /// The id of one journal: made with it, gone with it. It tells a restarted node from a second one of the same name.
    InstanceId
}
random_id! {
    /// The id of one enrolment token.
    TokenId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_ids_sort_by_time() {
        assert!(JobId::new(1, u128::MAX) < JobId::new(2, 0));
        assert_eq!(JobId::new(1_795_348_800_000, u128::MAX).ms(), 1_795_348_800_000);
        assert_eq!(JobId::new(1_795_348_800_000, 7).as_str().len(), 26);
    }

    #[test]
    fn any_bits_make_a_job_id() {
        for bytes in [[0; 16], [0xff; 16], [0x5a; 16]] {
            let id = JobId::from_bytes(bytes);
            assert_eq!(JobId::parse(id.to_string()), Ok(id));
        }
    }

    #[test]
    fn only_the_canonical_form_of_an_id_is_accepted() {
        let id = JobId::new(1_795_348_800_000, 0xabcdef);
        assert_eq!(JobId::parse(id.to_string()), Ok(id.clone()));
        assert!(JobId::parse(id.to_string().to_lowercase()).is_err());
        assert!(JobId::parse("../../etc/passwd").is_err());
        assert!("ABCDEF00000000000000000000000000".parse::<OrderId>().is_err());
        let order = OrderId::from_bytes([0xab; 16]);
        assert_eq!(order.to_string().parse(), Ok(order));
    }
}
