//! Messages as the rest of Steward sees them, and publishing that returns when the broker has stored.

use std::time::Duration;

use bytes::Bytes;
use message::{MessageId, PublicKey, Seal, SignatureError, Timestamp, sign};
use serde::Deserialize;

use crate::connect::Bus;
use crate::error::BusError;

/// A message that came from the broker.
#[derive(Debug, Clone)]
pub struct Message {
    /// The subject that it was stored under.
    pub subject: String,
    /// Its sequence in its stream; 0 when it does not come from one.
    pub sequence: u64,
    /// When the broker stored it, by the broker's clock.
    pub stored_at: Timestamp,
    /// Its payload.
    pub payload: Bytes,
    pub(crate) headers: async_nats::HeaderMap,
}

impl Message {
    /// One that is put together here, as tests do it.
    #[must_use]
    pub fn new(subject: &str, sequence: u64, stored_at: Timestamp, payload: Bytes, headers: Headers) -> Self {
        Self { subject: subject.to_owned(), sequence, stored_at, payload, headers: headers.0 }
    }

    /// The last value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get_last(name).map(async_nats::HeaderValue::as_str)
    }

    /// Who says to have signed it. Proves nothing before it is verified.
    ///
    /// # Errors
    /// [`SignatureError`] when the headers are missing or malformed.
    pub fn seal(&self) -> Result<Seal, SignatureError> {
        Seal::from_headers(self.header(sign::KEY_HEADER), self.header(sign::SIGNATURE_HEADER))
    }

    /// The key that signed the payload, when the signature holds.
    ///
    /// # Errors
    /// [`SignatureError`] when it does not.
    pub fn signer(&self) -> Result<PublicKey, SignatureError> {
        let seal = self.seal()?;
        seal.verify(&self.payload)?;
        Ok(seal.key)
    }
}

/// Headers to send.
#[derive(Debug, Clone, Default)]
pub struct Headers(pub(crate) async_nats::HeaderMap);

impl Headers {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.0.insert(name, value);
        self
    }

    /// Adds the proof of who signed.
    #[must_use]
    pub fn sealed(self, seal: &Seal) -> Self {
        self.with(sign::KEY_HEADER, seal.key.as_str()).with(sign::SIGNATURE_HEADER, &seal.signature)
    }

    /// Adds the id by which the broker recognizes a repetition.
    #[must_use]
    pub fn with_id(self, id: &str) -> Self {
        self.with("Nats-Msg-Id", id)
    }

    /// Lets the broker refuse unless `sequence` is the last of this subject (0: there is none).
    #[must_use]
    pub fn expecting_last(self, sequence: u64) -> Self {
        self.with("Nats-Expected-Last-Subject-Sequence", &sequence.to_string())
    }
}

impl From<MessageId> for Headers {
    fn from(id: MessageId) -> Self {
        Self::new().with_id(&id.to_string())
    }
}

/// The broker's word that a message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Whether it had been stored before under the same message id.
    pub duplicate: bool,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct PubAck {
    error: Option<ApiError>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
}

/// JetStream's code for "wrong last sequence".
const WRONG_LAST_SEQUENCE: [u64; 2] = [10071, 10164];

impl Bus {
    /// Publishes and returns when the broker has stored the message (JetStream's PubAck).
    ///
    /// # Errors
    /// [`BusError`]; nothing is known about whether it was stored after [`BusError::Timeout`]: publish again
    /// with the same id.
    pub async fn publish(&self, subject: &str, headers: Headers, payload: Bytes) -> Result<Stored, BusError> {
        // async-nats would keep it in memory and forget it with the process: better the caller knows.
        if !self.is_up() {
            return Err(BusError::Disconnected);
        }
        let what = || subject.to_owned();
        let answer = self.request(subject, headers, payload, None).await?;
        let ack: PubAck = serde_json::from_slice(&answer.payload)
            .map_err(|error| BusError::Unreadable { what: what(), reason: error.to_string() })?;
        match ack.error {
            None => Ok(Stored { sequence: ack.seq, duplicate: ack.duplicate }),
            Some(error) if WRONG_LAST_SEQUENCE.contains(&error.err_code) => Err(BusError::Conflict { what: what() }),
            Some(error) => Err(BusError::Broker { what: what(), code: error.err_code, description: error.description }),
        }
    }

    /// Sends without waiting for anything: for what the next one makes good.
    ///
    /// # Errors
    /// [`BusError::Disconnected`] when the link is down.
    pub async fn send(&self, subject: &str, headers: Headers, payload: Bytes) -> Result<(), BusError> {
        if !self.is_up() {
            return Err(BusError::Disconnected);
        }
        self.client
            .publish_with_headers(subject.to_owned(), headers.0, payload)
            .await
            .map_err(|error| BusError::Other { what: format!("sending to {subject}"), reason: error.to_string() })
    }

    /// A request to the JetStream API, `$JS.API.<call>` or what stands for it here.
    pub(crate) async fn api<T: for<'de> Deserialize<'de>>(
        &self,
        call: &str,
        body: &serde_json::Value,
    ) -> Result<T, BusError> {
        let subject = format!("{}.{call}", self.api_prefix);
        let what = || call.split('.').take(3).collect::<Vec<_>>().join(".");
        let payload = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let answer = self.request(&subject, Headers::new(), payload, None).await?;
        let unreadable = |error: serde_json::Error| BusError::Unreadable { what: what(), reason: error.to_string() };
        let value: serde_json::Value = serde_json::from_slice(&answer.payload).map_err(unreadable)?;
        if let Some(error) = value.get("error") {
            let error: ApiError = serde_json::from_value(error.clone()).map_err(unreadable)?;
            let code = if error.err_code == 0 { error.code } else { error.err_code };
            return Err(BusError::Broker { what: what(), code, description: error.description });
        }
        serde_json::from_value(value).map_err(unreadable)
    }

    pub(crate) async fn request(
        &self,
        subject: &str,
        headers: Headers,
        payload: Bytes,
        timeout: Option<Duration>,
    ) -> Result<async_nats::Message, BusError> {
        use async_nats::RequestErrorKind as Kind;
        let bytes = payload.len();
        let mut request = async_nats::Request::new().payload(payload);
        if !headers.0.is_empty() {
            request = request.headers(headers.0);
        }
        if let Some(timeout) = timeout {
            request = request.timeout(Some(timeout));
        }
        self.client.send_request(subject.to_owned(), request).await.map_err(|error| {
            let what = subject.to_owned();
            match error.kind() {
                Kind::TimedOut => BusError::Timeout { what },
                Kind::NoResponders => BusError::NoStream { what },
                Kind::MaxPayloadExceeded => BusError::TooLarge { what, bytes },
                _ => BusError::Other { what, reason: error.to_string() },
            }
        })
    }
}

/// A broker's time as it stands in headers and answers (RFC 3339 with nanoseconds).
pub(crate) fn broker_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}
