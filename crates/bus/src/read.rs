//! Reading streams: a [`Scan`] reads what is there and ends, a [`Tail`] goes on with what comes.
//!
//! A scan is a short-lived pull consumer held in the broker's memory and deleted afterwards. It is what a node
//! catches up with, and what answers every question such as `node ls`. A tail is async-nats' ordered consumer,
//! which notices gaps and starts again behind the last message seen. `following` is the same for nodes, which may only have a
//! consumer of their own name.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use message::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::Subscriber;
use crate::clock;
use crate::connect::Bus;
use crate::error::BusError;
use crate::wire::{Message, broker_time};

/// How many messages are asked for at once; also bounds what waits in memory.
const BATCH: u64 = 256;
/// How long the broker keeps an abandoned consumer.
const INACTIVE: Duration = Duration::from_secs(30);
/// How long a batch may stay silent before the scan gives up.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// In a cluster, a consumer may be there before the servers have told each other of it, and nobody answers for a moment:
/// so often it is asked again, and so long it is waited in between.
pub(crate) const ABSENCES_MAX: u32 = 10;
pub(crate) const ABSENCE: Duration = Duration::from_millis(100);
/// The broker's code for a consumer that is there already, with another configuration.
const CONSUMER_EXISTS: u64 = 10148;
/// The status of an answer that says that there is nobody to answer.
pub(crate) const NO_RESPONDERS: u16 = 503;

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the oldest message.
    First,
    /// With the first message at or after this sequence.
    Sequence(u64),
    /// With the first message at or after this time of the broker.
    Time(Timestamp),
    /// With the last message of each subject.
    LastPerSubject,
    /// With what comes from now on.
    New,
}

impl Start {
    fn config(self) -> Value {
        match self {
            Self::First => json!({"deliver_policy": "all"}),
            Self::Sequence(sequence) => {
                json!({"deliver_policy": "by_start_sequence", "opt_start_seq": sequence.max(1)})
            }
            Self::Time(time) => json!({"deliver_policy": "by_start_time", "opt_start_time": time.to_string()}),
            Self::LastPerSubject => json!({"deliver_policy": "last_per_subject"}),
            Self::New => json!({"deliver_policy": "new"}),
        }
    }
}

#[derive(Deserialize)]
struct ConsumerInfo {
    #[serde(default)]
    num_pending: u64,
    #[serde(default)]
    ts: String,
}

/// A pull consumer that is to be: in the broker's memory, and forgotten when nobody uses it.
#[derive(Clone, Copy)]
pub(crate) struct Consumer<'a> {
    pub(crate) bus: &'a Bus,
    pub(crate) stream: &'a str,
    pub(crate) name: &'a str,
    pub(crate) filters: &'a [String],
    pub(crate) start: Start,
    /// How long the broker keeps it when nobody uses it.
    pub(crate) inactive: Duration,
}

/// A pull consumer, and where its messages arrive.
pub(crate) struct Created {
    pub(crate) inbox: String,
    pub(crate) subscriber: Subscriber,
    info: ConsumerInfo,
}

impl Consumer<'_> {
    /// Makes it, in the place of one of that name if there is one: that one would go on where it stopped, and what it had delivered
    /// without anybody taking it would be lost.
    pub(crate) async fn create_anew(self) -> Result<Created, BusError> {
        match self.create().await {
            Err(BusError::Broker { code: CONSUMER_EXISTS, .. }) => {
                match self
                    .bus
                    .api::<Value>(&format!("CONSUMER.DELETE.{}.{}", self.stream, self.name), &Value::Null)
                    .await
                {
                    // That there is none any more is no error.
                    Ok(_) | Err(BusError::Broker { .. }) => self.create().await,
                    Err(error) => Err(error),
                }
            }
            created => created,
        }
    }

    async fn create(self) -> Result<Created, BusError> {
        let Self { bus, stream, name, filters, start, inactive } = self;
        let inbox = bus.client.new_inbox();
        let subscriber = bus
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| BusError::Other { what: "subscribing".into(), reason: error.to_string() })?;
        let mut config = json!({
            "name": name,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": true,
            "num_replicas": 1,
            "inactive_threshold": u64::try_from(inactive.as_nanos()).unwrap_or(u64::MAX),
            // With `action`: one of that name whose configuration is another is an error, and this makes each another.
            "metadata": {"scan": clock::message_id().to_string()},
        });
        // One filter goes into the API subject, where a permission can pin it.
        let call = if let [filter] = filters {
            config["filter_subject"] = json!(filter);
            format!("CONSUMER.CREATE.{stream}.{name}.{filter}")
        } else {
            config["filter_subjects"] = json!(filters);
            format!("CONSUMER.CREATE.{stream}.{name}")
        };
        if let (Some(config), Value::Object(start)) = (config.as_object_mut(), start.config()) {
            config.extend(start);
        }
        let info: ConsumerInfo =
            bus.api(&call, &json!({"stream_name": stream, "config": config, "action": "create"})).await?;
        Ok(Created { inbox, subscriber, info })
    }
}

impl Created {
    fn into_scan(self, of: Consumer<'_>) -> Scan {
        let Self { inbox, subscriber, info } = self;
        Scan {
            bus: of.bus.clone(),
            stream: of.stream.to_owned(),
            consumer: of.name.to_owned(),
            inbox,
            subscriber,
            pending: info.num_pending,
            outstanding: 0,
            absences: 0,
            opened_at: broker_time(&info.ts).unwrap_or_default(),
            deleted: false,
        }
    }
}

/// Reads what a stream holds, then ends.
pub struct Scan {
    bus: Bus,
    stream: String,
    consumer: String,
    inbox: String,
    subscriber: Subscriber,
    /// Messages not yet seen, as the broker last told.
    pending: u64,
    /// Messages of the current batch that may still come.
    outstanding: u64,
    /// How often nobody has answered since the last message.
    absences: u32,
    opened_at: Timestamp,
    deleted: bool,
}

impl Scan {
    /// Opens a scan of `stream` over the subjects that match `filters`.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not allow or answer it.
    pub async fn open(bus: &Bus, stream: &str, filters: &[String], start: Start) -> Result<Self, BusError> {
        let name = format!("scan-{}", clock::message_id());
        Self::create(bus, stream, &name, filters, start).await
    }

    /// Like [`Scan::open`], with a consumer of a given name: nodes may only use their own.
    ///
    /// One that an earlier scan of this name may have left behind is deleted: a new scan would go on where that one stopped,
    /// and what it had delivered without anybody taking it would be lost.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not allow or answer it.
    pub async fn open_named(
        bus: &Bus,
        stream: &str,
        name: &str,
        filters: &[String],
        start: Start,
    ) -> Result<Self, BusError> {
        let consumer = Consumer { bus, stream, name, filters, start, inactive: INACTIVE };
        consumer.create_anew().await.map(|created| created.into_scan(consumer))
    }

    async fn create(bus: &Bus, stream: &str, name: &str, filters: &[String], start: Start) -> Result<Self, BusError> {
        let consumer = Consumer { bus, stream, name, filters, start, inactive: INACTIVE };
        consumer.create().await.map(|created| created.into_scan(consumer))
    }

    /// The broker's time when the scan was opened.
    pub fn opened_at(&self) -> Timestamp {
        self.opened_at
    }

    /// How many messages are still to come.
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// The next message, or `None` when all have been read.
    ///
    /// # Errors
    /// [`BusError`] when the broker falls silent; what was read so far is right, what follows is not known.
    pub async fn next(&mut self) -> Result<Option<Message>, BusError> {
        loop {
            if self.pending == 0 {
                self.delete().await;
                return Ok(None);
            }
            if self.outstanding == 0 {
                self.ask().await?;
            }
            let silent = || BusError::Timeout { what: format!("a read of {}", self.stream) };
            let answer = tokio::time::timeout(SILENCE_MAX, self.subscriber.next())
                .await
                .map_err(|_| silent())?
                .ok_or(BusError::Disconnected)?;
            if let Some(status) = answer.status {
                match status.as_u16() {
                    // No messages: some were deleted since they were counted.
                    404 => self.pending = 0,
                    // The batch is complete; when nothing came, they are all gone.
                    408 if self.outstanding == BATCH.min(self.pending) => self.pending = 0,
                    408 => {}
                    NO_RESPONDERS if self.absences < ABSENCES_MAX => {
                        self.absences += 1;
                        tokio::time::sleep(ABSENCE).await;
                    }
                    // The consumer is gone, with the broker's memory or since it was left alone for too long: what it
                    // had not delivered yet has not been read.
                    code => {
                        let said = answer.description.unwrap_or_else(|| "nobody answers there any more".into());
                        let what = format!("a read of {}", self.stream);
                        return Err(BusError::Broker { what, code: code.into(), description: said });
                    }
                }
                self.outstanding = 0;
                continue;
            }
            (self.outstanding, self.absences) = (self.outstanding.saturating_sub(1), 0);
            let Delivered { message, pending, .. } = delivered(answer)?;
            self.pending = pending;
            return Ok(Some(message));
        }
    }

    /// Ends a scan before its end: the broker need not keep its consumer until it is forgotten.
    pub async fn close(mut self) {
        self.delete().await;
    }

    async fn ask(&mut self) -> Result<(), BusError> {
        let batch = BATCH.min(self.pending);
        let subject = format!("{}.CONSUMER.MSG.NEXT.{}.{}", self.bus.api_prefix, self.stream, self.consumer);
        let body = json!({"batch": batch, "no_wait": true}).to_string();
        self.bus
            .client
            .publish_with_reply(subject, self.inbox.clone(), Bytes::from(body))
            .await
            .map_err(|error| BusError::Other { what: "asking for messages".into(), reason: error.to_string() })?;
        self.outstanding = batch;
        Ok(())
    }

    async fn delete(&mut self) {
        if !self.deleted {
            self.deleted = true;
            let subject = format!("{}.CONSUMER.DELETE.{}.{}", self.bus.api_prefix, self.stream, self.consumer);
            // Best effort: the broker forgets it by itself after INACTIVE.
            let _ = self.bus.client.publish(subject, Bytes::new()).await;
        }
    }
}

/// Goes on reading what is published, in order and without gaps, across reconnects.
pub struct Tail {
    messages: async_nats::jetstream::consumer::push::Ordered,
    /// How many stored messages there were when it was opened.
    backlog: u64,
}

impl Tail {
    /// Opens a tail of `stream` over the subjects that match `filters`.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not allow or answer it.
    pub async fn open(bus: &Bus, stream: &str, filters: &[String], start: Start) -> Result<Self, BusError> {
        use async_nats::jetstream::consumer::{DeliverPolicy, push::OrderedConfig};
        let what = || format!("following {stream}");
        let deliver_policy = match start {
            Start::First => DeliverPolicy::All,
            Start::Sequence(sequence) => DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) },
            Start::Time(time) => match i128::from(time.as_ms()).checked_mul(1_000_000) {
                Some(nanos) => DeliverPolicy::ByStartTime {
                    start_time: async_nats::datetime::DateTime::from_unix_timestamp_nanos(nanos)
                        .map_err(|error| BusError::Other { what: what(), reason: error.to_string() })?,
                },
                None => DeliverPolicy::All,
            },
            Start::LastPerSubject => DeliverPolicy::LastPerSubject,
            Start::New => DeliverPolicy::New,
        };
        let config = OrderedConfig {
            deliver_subject: bus.client.new_inbox(),
            filter_subjects: filters.to_vec(),
            deliver_policy,
            ..Default::default()
        };
        let context = async_nats::jetstream::new(bus.client.nats());
        let consumer = context
            .create_consumer_on_stream(config, stream)
            .await
            .map_err(|error| BusError::Other { what: what(), reason: error.to_string() })?;
        let backlog = consumer.cached_info().num_pending;
        let messages =
            consumer.messages().await.map_err(|error| BusError::Other { what: what(), reason: error.to_string() })?;
        Ok(Self { messages, backlog })
    }

    /// How many stored messages there were when it was opened: the first that many are not news.
    pub fn backlog(&self) -> u64 {
        self.backlog
    }

    /// The next message; waits for it.
    ///
    /// # Errors
    /// [`BusError`] when the tail cannot go on.
    pub async fn next(&mut self) -> Result<Message, BusError> {
        match self.messages.next().await {
            Some(Ok(message)) => delivered(message.message).map(|delivered| delivered.message),
            Some(Err(error)) => Err(BusError::Other { what: "following".into(), reason: error.to_string() }),
            None => Err(BusError::Disconnected),
        }
    }
}

/// A message as a consumer delivers it.
pub(crate) struct Delivered {
    pub(crate) message: Message,
    /// Its number among all that the consumer has delivered.
    pub(crate) number: u64,
    /// How many are still to come.
    pub(crate) pending: u64,
}

/// Reads what the reply subject of a delivered message tells: its sequence, number, time and what is still pending.
/// `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer sequence>.<time>.<pending>`, or the same with
/// domain and account hash before the stream, and a random token at the end (NATS ADR-15).
pub(crate) fn delivered(message: async_nats::Message) -> Result<Delivered, BusError> {
    let reply = message.reply.as_deref().unwrap_or_default();
    let tokens: Vec<&str> = reply.split('.').collect();
    let at = match tokens.len() {
        9 => 5,
        11.. => 7,
        _ => usize::MAX,
    };
    let number = |offset: usize| tokens.get(at.saturating_add(offset)).and_then(|token| token.parse::<u64>().ok());
    let (Some(sequence), Some(counted), Some(nanos), Some(pending)) = (number(0), number(1), number(2), number(3))
    else {
        return Err(BusError::Unreadable {
            what: "a read".into(),
            reason: format!("the message's reply subject is {reply:?}"),
        });
    };
    let stored_at = Timestamp::from_ms(i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX));
    let message = Message {
        subject: message.subject.to_string(),
        sequence,
        stored_at,
        payload: message.payload,
        headers: message.headers.unwrap_or_default(),
    };
    Ok(Delivered { message, number: counted, pending })
}
