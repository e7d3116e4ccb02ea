//! Account claims at run time: asking the broker which it goes by, and handing it newer ones.
//!
//! The broker resolves accounts from a directory of its own (NATS' full resolver) and lets go of users at once whose keys
//! newer claims revoke. Takes the credentials of role `system`. It must never decide what the claims say.

use bytes::Bytes;
use serde::Deserialize;

use crate::connect::Bus;
use crate::error::BusError;
use crate::wire::Headers;

#[derive(Deserialize)]
struct Answer {
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    description: String,
}

impl Bus {
    /// Hands the broker an account's newer claims. They are in force when this returns, and are kept across its restarts.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not answer, or does not take them.
    pub async fn push_claims(&self, jwt: &str) -> Result<(), BusError> {
        let what = || "an account's newer claims".to_owned();
        let payload = Bytes::from(jwt.to_owned());
        let answer = self.request("$SYS.REQ.CLAIMS.UPDATE", Headers::new(), payload, None).await?;
        let answer: Answer = serde_json::from_slice(&answer.payload)
            .map_err(|error| BusError::Unreadable { what: what(), reason: error.to_string() })?;
        match answer.error {
            None => Ok(()),
            Some(Refusal { code, description }) => Err(BusError::Broker { what: what(), code, description }),
        }
    }

    /// The claims of an account that the broker goes by; `None` when it has none.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not answer.
    pub async fn claims_of(&self, account: &str) -> Result<Option<String>, BusError> {
        let subject = format!("$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP");
        let answer = self.request(&subject, Headers::new(), Bytes::new(), None).await?;
        let jwt = String::from_utf8_lossy(&answer.payload).trim().to_owned();
        Ok(Some(jwt).filter(|jwt| !jwt.is_empty()))
    }
}
