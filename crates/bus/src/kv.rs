//! Keys and values: the registry buckets, read by direct get and written with or without expectations.
//!
//! A bucket is a stream `KV_<bucket>` on `$KV.<bucket>.>` (NATS ADR-8). Nodes reach single keys only.

use bytes::Bytes;
use message::{Seal, Timestamp};

use crate::connect::Bus;
use crate::error::BusError;
use crate::read::{Scan, Start};
use crate::streams::{BOOT, BOOT_SUBJECT};
use crate::wire::{Headers, Message, Stored, broker_time};

/// Who belongs to the fleet; written by operators.
pub const NODES: &str = "NODES";
/// The last life sign of each node; written by the nodes themselves.
pub const PRESENCE: &str = "PRESENCE";
/// How each node stood when that changed; written by the nodes themselves.
pub const HISTORY: &str = "HISTORY";
/// What each node says of its system; written by the nodes themselves.
pub const FACTS: &str = "FACTS";
/// What was ordered; written by operators.
pub const JOBS: &str = "JOBS";
/// Who may order, and what; signed by the root or its delegate.
pub const POLICY: &str = "POLICY";
/// The stream epoch and the like; written at set-up.
pub const META: &str = "META";
/// New tokens for users whose role has a new key, written by operators; and the receipts of those that they are for.
pub const USERS: &str = "USERS";
/// Enrolment tokens, and the answers to those who knocked; written by operators.
pub const ADMISSIONS: &str = "ADMISSIONS";

/// How often a bucket is read anew when the server went down that it was being read from.
const READS_MAX: u32 = 3;

impl Bus {
    /// The epoch of the broker's store; another one, when it was made anew. `None` when it has none.
    ///
    /// # Errors
    /// [`BusError`] when the broker cannot be asked.
    pub async fn epoch(&self) -> Result<Option<String>, BusError> {
        let found = self.kv_get(META, "epoch").await?;
        Ok(found.and_then(|value| String::from_utf8(value.payload.to_vec()).ok()))
    }

    /// When the broker last began with an empty memory; `None` when nobody has marked it since.
    ///
    /// # Errors
    /// [`BusError`] when the broker cannot be asked.
    pub async fn listening_since(&self) -> Result<Option<Timestamp>, BusError> {
        Ok(self.last(BOOT, BOOT_SUBJECT).await?.map(|mark| mark.stored_at))
    }

    /// The value of a key, with the headers it was written with; `None` when there is none or it was deleted.
    ///
    /// # Errors
    /// [`BusError`] when the broker cannot be asked.
    pub async fn kv_get(&self, bucket: &str, key: &str) -> Result<Option<Message>, BusError> {
        let found = self.last(&format!("KV_{bucket}"), &format!("$KV.{bucket}.{key}")).await?;
        Ok(found.filter(|message| !is_deletion(message)))
    }

    /// The last message that a stream holds on a subject.
    ///
    /// # Errors
    /// [`BusError`] when the broker cannot be asked.
    pub async fn last(&self, stream: &str, subject: &str) -> Result<Option<Message>, BusError> {
        let call = format!("{}.DIRECT.GET.{stream}.{subject}", self.api_prefix);
        let answer = self.request(&call, Headers::new(), Bytes::new(), None).await?;
        match answer.status.map(|status| status.as_u16()) {
            Some(404) => return Ok(None),
            Some(status) if status >= 300 => {
                return Err(BusError::Broker {
                    what: format!("reading {subject}"),
                    code: u64::from(status),
                    description: answer.description.unwrap_or_default(),
                });
            }
            _ => {}
        }
        let headers = answer.headers.unwrap_or_default();
        let text = |name: &str| headers.get_last(name).map(|value| value.as_str().to_owned());
        Ok(Some(Message {
            subject: text("Nats-Subject").unwrap_or_default(),
            sequence: text("Nats-Sequence").and_then(|text| text.parse().ok()).unwrap_or(0),
            stored_at: text("Nats-Time-Stamp").and_then(|text| broker_time(&text)).unwrap_or_default(),
            payload: answer.payload,
            headers,
        }))
    }

    /// Writes a key, whatever was there.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not confirm it.
    pub async fn kv_put(&self, bucket: &str, key: &str, value: Bytes, seal: Option<&Seal>) -> Result<Stored, BusError> {
        self.publish(&format!("$KV.{bucket}.{key}"), sealed(seal), value).await
    }

    /// Writes a key if `revision` is its last one; 0 means that it must not exist.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when it is not; [`BusError`] when the broker does not confirm it.
    pub async fn kv_put_if(
        &self,
        bucket: &str,
        key: &str,
        value: Bytes,
        seal: Option<&Seal>,
        revision: u64,
    ) -> Result<Stored, BusError> {
        self.publish(&format!("$KV.{bucket}.{key}"), sealed(seal).expecting_last(revision), value).await
    }

    /// Marks a key as deleted.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not confirm it.
    pub async fn kv_delete(&self, bucket: &str, key: &str) -> Result<Stored, BusError> {
        self.publish(&format!("$KV.{bucket}.{key}"), Headers::new().with("KV-Operation", "DEL"), Bytes::new()).await
    }

    /// The last values of all keys that match `filter` (a subject below the bucket, such as `*`), deletions
    /// left out, with the broker's time of reading. Read anew if the server goes down that it was being read from.
    ///
    /// # Errors
    /// [`BusError`] when the broker cannot be asked.
    pub async fn kv_all(&self, bucket: &str, filter: &str) -> Result<(Vec<Message>, Timestamp), BusError> {
        let mut tries_left = READS_MAX;
        loop {
            tries_left -= 1;
            match self.kv_read(bucket, filter).await {
                Err(BusError::Broker { code: 503, .. }) if tries_left > 0 => {}
                read => return read,
            }
        }
    }

    async fn kv_read(&self, bucket: &str, filter: &str) -> Result<(Vec<Message>, Timestamp), BusError> {
        let stream = format!("KV_{bucket}");
        let filter = format!("$KV.{bucket}.{filter}");
        let mut scan = Scan::open(self, &stream, &[filter], Start::LastPerSubject).await?;
        let now = scan.opened_at();
        let mut values = Vec::new();
        while let Some(message) = scan.next().await? {
            if !is_deletion(&message) {
                values.push(message);
            }
        }
        Ok((values, now))
    }
}

fn sealed(seal: Option<&Seal>) -> Headers {
    seal.map_or_else(Headers::new, |seal| Headers::new().sealed(seal))
}

/// The key that a KV subject stands for.
pub fn key_of(subject: &str) -> &str {
    subject.splitn(3, '.').nth(2).unwrap_or_default()
}

/// Whether a message of a bucket says that its key is gone.
pub fn is_deletion(message: &Message) -> bool {
    matches!(message.header("KV-Operation"), Some("DEL" | "PURGE"))
}
