//! The place where units ask to be let in: leaving a knock, reading those that wait, taking away what is answered.

use bytes::Bytes;
use message::Seal;
use serde_json::{Value, json};

use crate::connect::Bus;
use crate::error::BusError;
use crate::read::{Scan, Start};
use crate::streams::KNOCKS;
use crate::wire::{Headers, Message};

/// JetStream's code for "the stream does not take it", of which the words tell why.
const NOT_STORED: u64 = 10077;

/// What became of a knock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Knocked {
    /// It waits for an operator.
    Waits,
    /// It had been left before, and waits.
    WaitsAlready,
    /// There is no room for further ones, with the broker's words.
    Full(String),
}

impl Bus {
    /// Leaves a knock. To be repeated at will: a place is taken once.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not answer, or refuses for another reason than want of room.
    pub async fn knock(&self, subject: &str, knock: Bytes, seal: &Seal) -> Result<Knocked, BusError> {
        match self.publish(subject, Headers::new().sealed(seal), knock).await {
            Ok(_) => Ok(Knocked::Waits),
            Err(BusError::Broker { code: NOT_STORED, description, .. }) => {
                Ok(if description.contains("per subject") { Knocked::WaitsAlready } else { Knocked::Full(description) })
            }
            Err(error) => Err(error),
        }
    }

    /// All knocks that wait.
    ///
    /// # Errors
    /// [`BusError`] when the broker cannot be asked.
    pub async fn knocks(&self) -> Result<Vec<Message>, BusError> {
        let mut scan = Scan::open(self, KNOCKS, &["knock.*.*".to_owned()], Start::First).await?;
        let mut all = Vec::new();
        while let Some(message) = scan.next().await? {
            all.push(message);
        }
        Ok(all)
    }

    /// How many knocks wait. Nobody has judged them: each is no more than somebody's word, and needs a token.
    ///
    /// # Errors
    /// [`BusError`] when the broker cannot be asked.
    pub async fn knocks_waiting(&self) -> Result<u64, BusError> {
        let what = || format!("STREAM.INFO.{KNOCKS}");
        let info: Value = self.api(&what(), &Value::Null).await?;
        let held = info.pointer("/state/messages").and_then(Value::as_u64);
        held.ok_or_else(|| BusError::Unreadable { what: what(), reason: "it tells no number of messages".into() })
    }

    /// How many bytes a stream holds.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not tell.
    pub async fn stream_bytes(&self, stream: &str) -> Result<u64, BusError> {
        let what = || format!("STREAM.INFO.{stream}");
        let info: Value = self.api(&what(), &Value::Null).await?;
        let held = info.pointer("/state/bytes").and_then(Value::as_u64);
        held.ok_or_else(|| BusError::Unreadable { what: what(), reason: "it tells no number of bytes".into() })
    }

    /// Takes away the knocks on `filter`: a subject, or `knock.<token>.*`.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not do it.
    pub async fn clear_knocks(&self, filter: &str) -> Result<(), BusError> {
        self.api::<Value>(&format!("STREAM.PURGE.{KNOCKS}"), &json!({"filter": filter})).await.map(drop)
    }
}
