//! A fleet with its broker, and the parties that talk through it.
#![allow(dead_code, unreachable_pub, missing_docs)] // every test binary uses another part

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, publish::PublishAck, stream::RawMessageErrorKind};
use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message, Subscriber};
use bus::broker::{Broker, BrokerConfig};
use bus::claims::Creds;
use bus::keys::{FleetKeys, Role};
use bus::streams::{self, Options, Provisioned};
use futures::StreamExt;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

/// What takes longer does not come.
pub const SOON: Duration = Duration::from_secs(5);
/// How long something must stay away to count as absent.
pub const A_WHILE: Duration = Duration::from_millis(300);

pub struct World {
    pub home: TempDir,
    pub keys: FleetKeys,
    pub broker: Broker,
    pub provisioned: Provisioned,
}

impl World {
    pub async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let keys = FleetKeys::create(home.path()).unwrap();
        let broker = Broker::start(BrokerConfig::new(home.path(), keys.trust())).await.unwrap();
        let provisioned = provision(&broker.client_url(), &keys).await;
        Self { home, keys, broker, provisioned }
    }

    pub fn config(&self) -> BrokerConfig {
        BrokerConfig::new(self.home.path(), self.keys.trust())
    }

    pub async fn node(&self, name: &str) -> Party {
        self.connect(&self.keys.node_user(name, &KeyPair::new_user()).unwrap()).await
    }

    pub async fn operator(&self, name: &str) -> Party {
        self.connect(&self.keys.operator_user(name, &KeyPair::new_user()).unwrap()).await
    }

    pub async fn station(&self, name: &str) -> Party {
        self.connect(&self.keys.station_user(name, &KeyPair::new_user()).unwrap()).await
    }

    pub async fn provisioner(&self) -> Party {
        self.connect(&self.keys.provisioner_user().unwrap()).await
    }

    pub async fn connect(&self, creds: &Creds) -> Party {
        Party::connect(&self.broker.client_url(), creds).await
    }
}

/// Sets up the store with a provisioner's credentials.
pub async fn provision(url: &str, keys: &FleetKeys) -> Provisioned {
    let provisioner = Party::connect(url, &keys.provisioner_user().unwrap()).await;
    streams::provision(&provisioner.jetstream(), Options::default()).await.unwrap()
}

/// Somebody connected to the broker.
pub struct Party {
    pub client: Client,
    complaints: Arc<Mutex<Vec<String>>>,
    /// A request it may make.
    harmless: &'static str,
}

impl Party {
    pub async fn connect(url: &str, creds: &Creds) -> Self {
        Self::try_connect(url, creds, &creds.inbox_prefix().unwrap()).await.unwrap()
    }

    pub async fn try_connect(url: &str, creds: &Creds, inbox: &str) -> Result<Self, async_nats::ConnectError> {
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&complaints);
        let options = ConnectOptions::with_credentials(&creds.render())
            .unwrap()
            .custom_inbox_prefix(inbox)
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    heard.lock().unwrap().push(error.to_string());
                }
                async {}
            });
        let harmless = match creds.identity().unwrap().1 {
            Some(Role::Node) => "core.API.DIRECT.GET.KV_META.$KV.META.epoch",
            _ => "$JS.API.INFO",
        };
        Ok(Self { client: options.connect(url).await?, complaints, harmless })
    }

    pub fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client.clone())
    }

    /// Publishes into a stream.
    pub async fn store(&self, subject: &str, body: impl Into<String>) -> PublishAck {
        self.store_with(subject, HeaderMap::new(), body).await
    }

    pub async fn store_with(&self, subject: &str, headers: HeaderMap, body: impl Into<String>) -> PublishAck {
        let jetstream = self.jetstream();
        let sent = jetstream.publish_with_headers(subject.to_owned(), headers, body.into().into()).await.unwrap();
        sent.await.unwrap()
    }

    /// Asks, and returns the answer if one comes.
    pub async fn ask(&self, subject: &str, body: impl Into<String>) -> Option<Message> {
        self.ask_with(subject, HeaderMap::new(), body).await
    }

    pub async fn ask_with(&self, subject: &str, headers: HeaderMap, body: impl Into<String>) -> Option<Message> {
        let asked = self.client.request_with_headers(subject.to_owned(), headers, body.into().into());
        tokio::time::timeout(SOON, asked).await.ok()?.ok()
    }

    /// Asks, and returns the JSON of the answer.
    pub async fn ask_json(&self, subject: &str, body: impl Into<String>) -> Value {
        let answer = self.ask(subject, body).await.unwrap_or_else(|| panic!("no answer on {subject}"));
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// Subscribes, and returns when the broker knows.
    pub async fn listen(&self, subject: &str) -> Subscriber {
        let subscriber = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.client.flush().await.unwrap();
        // A round trip, as a flush only writes. What the broker gets from one connection it takes in order.
        self.ask(self.harmless, "").await.unwrap();
        subscriber
    }

    /// Whether the broker refuses a publication on this subject.
    pub async fn may_not_publish(&self, subject: &str) -> bool {
        self.client.publish(subject.to_owned(), "{}".into()).await.unwrap();
        self.client.flush().await.unwrap();
        self.complained(&format!("Publish to \"{subject}\"")).await
    }

    /// Whether the broker refuses a subscription to this subject.
    pub async fn may_not_subscribe(&self, subject: &str) -> bool {
        let _subscriber = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.client.flush().await.unwrap();
        self.complained(&format!("Subscription to \"{subject}\"")).await
    }

    async fn complained(&self, what: &str) -> bool {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            // Not case-sensitive: clients spell the broker's errors as they like.
            let what = what.to_lowercase();
            if self.complaints.lock().unwrap().iter().any(|heard| heard.to_lowercase().contains(&what)) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    /// Whether the broker has refused this party nothing so far.
    pub async fn is_content(&self) -> bool {
        tokio::time::sleep(A_WHILE).await;
        self.complaints.lock().unwrap().is_empty()
    }

    /// How many messages each stream holds, and the last sequence.
    pub async fn contents(&self) -> Vec<(String, u64, u64)> {
        let mut streams: Vec<_> = self
            .jetstream()
            .streams()
            .map(|info| info.map(|info| (info.config.name, info.state.messages, info.state.last_sequence)).unwrap())
            .collect()
            .await;
        streams.sort();
        streams
    }

    /// The last message of a stream on a subject.
    pub async fn last(&self, stream: &str, subject: &str) -> Option<String> {
        let stream = self.jetstream().get_stream(stream).await.unwrap();
        match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Some(String::from_utf8_lossy(&message.payload).into_owned()),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The next message, if one comes.
pub async fn next(subscriber: &mut Subscriber) -> Option<Message> {
    tokio::time::timeout(SOON, subscriber.next()).await.ok().flatten()
}

/// Whether nothing comes for a while.
pub async fn silent(subscriber: &mut Subscriber) -> bool {
    tokio::time::timeout(A_WHILE, subscriber.next()).await.is_err()
}

pub fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    message.headers.as_ref().and_then(|headers| headers.get(name)).map_or("", |value| value.as_str())
}

/// What a node asks for to catch up from a sequence on.
pub fn catch_up(name: &str, filter: &str, from: u64) -> Value {
    json!({"stream_name": "COMMANDS", "action": "", "config": {
        "name": name, "filter_subject": filter,
        "deliver_policy": "by_start_sequence", "opt_start_seq": from,
        "ack_policy": "none", "mem_storage": true, "num_replicas": 1,
        "inactive_threshold": 30_000_000_000_u64, "replay_policy": "instant",
    }})
}
