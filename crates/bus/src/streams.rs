//! The streams and buckets that a fleet lives in, and how they are set up.
//!
//! In flows a JetStream connection with the rights of a provisioner; out flows a store in which every stream exists
//! and is as this version wants it, and the store's epoch. Setting up again changes nothing that is in them. It must
//! never delete or purge: what a stream holds are orders, answers and records that exist nowhere else.
//!
//! A stream cannot listen on `*.command.*.*`, as its first wildcard meets `$JS`. The account maps the four tokens to
//! five, `in.…`; the stream listens there, stores under the four tokens again, and republishes on them what it has
//! stored. So publishers and subscribers see the plain subject, and live receivers get only what will be kept.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::Context;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Compression, Config, DirectGetErrorKind, DiscardPolicy, Republish, StorageType, SubjectTransform,
};
use async_nats::{HeaderMap, header};
use data_encoding::HEXLOWER;

use message::change::CHANGES_KEPT;

use crate::keys::KNOCK_MESSAGE_MAX;

/// Stream of orders, `<node>.command.<method>.<domain>`.
pub const COMMANDS: &str = "COMMANDS";
/// Stream of events, `<receiver>.event.<method>.<domain>`.
pub const EVENTS: &str = "EVENTS";
/// Stream of answers and output, `<sender>.reply.<job>.<node>` and `<sender>.output.<job>.<node>`.
pub const REPLIES: &str = "REPLIES";
/// Stream of the audit log, `<writer>.audit.<key>.<chain>`.
pub const AUDIT: &str = "AUDIT";
/// Bucket of registrations, by node.
pub const NODES: &str = "NODES";
/// Bucket of life signs, by node.
pub const PRESENCE: &str = "PRESENCE";
/// Bucket of how each node stood when that changed, by node; the last ones of each.
pub const HISTORY: &str = "HISTORY";
/// Bucket of facts, by node.
pub const FACTS: &str = "FACTS";
/// Bucket of jobs: what was ordered.
pub const JOBS: &str = "JOBS";
/// Bucket of signed policies.
pub const POLICY: &str = "POLICY";
/// Bucket of facts about the store itself: the key `epoch`, leases.
pub const META: &str = "META";
/// Bucket of enrolment tokens, and of the answers to those who knocked.
pub const ADMISSIONS: &str = "ADMISSIONS";
/// Stream of units that ask to be let in: one message for each token and key, as long as nobody has answered.
pub const KNOCKS: &str = "KNOCKS";
/// New tokens for users whose role has a new key, and their receipts.
pub const USERS: &str = "USERS";
/// Stream in memory that tells by its age when the broker last lost its memory.
pub const BOOT: &str = "BOOT";

/// What has been stored in a bucket is sent to `core.KV.<bucket>.<key>`. Nobody may subscribe to the bucket's own
/// subjects: see the rights of CORE in `keys/grants.rs`.
pub const STORED_KV: &str = "core.KV";
/// The one subject of [`BOOT`].
pub(crate) const BOOT_SUBJECT: &str = "steward.boot";
/// The key of [`META`] that is new whenever the store is.
const EPOCH: &str = "$KV.META.epoch";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How far ahead an order may expire at most.
pub const ORDER_EXPIRY_MAX: Duration = DAY.saturating_mul(30);
/// Orders stay for 30 days after the last moment at which they could run, so that a node which comes back late can
/// itself report `expired`.
pub const COMMANDS_AGE_MAX: Duration = ORDER_EXPIRY_MAX.saturating_add(DAY.saturating_mul(30));
/// Answers stay as long as what was asked, and then some: the last ones come when the last orders go.
pub const REPLIES_AGE_MAX: Duration = JOBS_AGE_MAX;
/// Events are kept for their receivers to fetch after an absence; for longer, receivers store them themselves.
pub const EVENTS_AGE_MAX: Duration = DAY.saturating_mul(7);
/// Jobs can be looked up for a quarter; longer than orders and answers can arrive.
pub const JOBS_AGE_MAX: Duration = DAY.saturating_mul(90);
/// The audit log is kept for a year and a month, so that a year can be looked back at after its end.
pub const AUDIT_AGE_MAX: Duration = DAY.saturating_mul(400);
/// Within this time a message id counts once. It covers a publisher's retries over a broker's restart; each id costs
/// the broker 100 to 300 bytes of memory meanwhile. Nodes know ids for longer by themselves.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Events may fill this much, then the oldest go, so that they can never leave orders without room. The broker sets
/// the space aside: it must be less than its `max_file_store`.
pub const EVENTS_BYTES_MAX: i64 = 4 << 30;
/// So many may wait at the door.
pub const KNOCKS_MAX: i64 = 20_000;
/// What they may fill of the store.
const KNOCKS_BYTES_MAX: i64 = 64 << 20;
/// Who has not been answered for so long asks again.
const KNOCKS_AGE_MAX: Duration = DAY.saturating_mul(31);
/// Answers are kept longer than any token is good, so that a unit which was away finds its own.
const ADMISSIONS_AGE_MAX: Duration = DAY.saturating_mul(365);
/// A record in a bucket: names, labels, keys, facts; a chunk of a job's orders.
const RECORD_BYTES_MAX: i32 = 1 << 20;
/// A change of how a node stands, with its signature.
const CHANGE_BYTES_MAX: i32 = 4 << 10;
/// How a node stood is kept as long as its jobs.
const HISTORY_AGE_MAX: Duration = JOBS_AGE_MAX;
/// A catch-up after a restart gives every node a consumer for a moment; there may be 100 000. Without a number, or
/// with `-1`, the broker would allow 1000.
const CONSUMERS_MAX: i32 = 1_000_000;

/// A new stream answers after some milliseconds, in a cluster after some hundred.
const READY_TRIES: u32 = 100;
const READY_PAUSE: Duration = Duration::from_millis(50);

/// Why the store could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProvisionError {
    /// The broker refused a stream.
    #[error(
        "the broker does not set up the stream {stream}: {source}; see that JetStream is on, has room (max_file_store), and that no other stream holds these subjects (`nats stream ls`)"
    )]
    Stream {
        /// Which.
        stream: &'static str,
        /// What it said.
        source: CreateStreamError,
    },
    /// The epoch or the boot mark could not be read or written.
    #[error(
        "the broker does not {action}: {reason}; see that it runs and that these credentials are those of a provisioner"
    )]
    Mark {
        /// What was attempted.
        action: &'static str,
        /// What came back.
        reason: String,
    },
}

/// How the store is to be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Copies of each stream: 1 on a single broker, 3 in a cluster.
    pub replicas: usize,
    /// See [`EVENTS_BYTES_MAX`].
    pub events_bytes_max: i64,
}

impl Default for Options {
    fn default() -> Self {
        Self { replicas: 1, events_bytes_max: EVENTS_BYTES_MAX }
    }
}

impl Options {
    /// For a single broker whose store may fill this much: events get half of it at most.
    #[must_use]
    pub fn fitting(store_bytes_max: u64) -> Self {
        let half = i64::try_from(store_bytes_max / 2).unwrap_or(i64::MAX);
        Self { replicas: 1, events_bytes_max: EVENTS_BYTES_MAX.min(half) }
    }
}

/// What is known of a store that has been set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    /// Random, made with the store: another one than last time means that the store was wiped.
    pub epoch: String,
    /// When the broker last lost its memory. Life signs older than this prove nothing.
    pub booted: SystemTime,
}

/// Sets up every stream and bucket, or brings those that exist up to date.
///
/// # Errors
/// When the broker refuses, with the stream and its reason.
pub async fn provision(jetstream: &Context, options: Options) -> Result<Provisioned, ProvisionError> {
    for (name, config) in configs(options) {
        let mut tries_left = READY_TRIES;
        loop {
            match set_up(jetstream, config.clone()).await {
                Ok(()) => break,
                // An account's JetStream comes up with its first connection, beside which others may be there already.
                Err(error) if error.kind() == CreateStreamErrorKind::JetStreamUnavailable && tries_left > 0 => {
                    tries_left -= 1;
                    tokio::time::sleep(READY_PAUSE).await;
                }
                Err(source) => return Err(ProvisionError::Stream { stream: name, source }),
            }
        }
    }
    Ok(Provisioned { epoch: epoch(jetstream).await?, booted: mark_boot(jetstream, options.replicas).await? })
}

/// Makes a stream, or brings it up to date if it differs. On a full disk one that exists is left as it is: whoever
/// starts a system there must be able to look at what it holds.
async fn set_up(jetstream: &Context, wanted: Config) -> Result<(), CreateStreamError> {
    if let Ok(stream) = jetstream.get_stream(&wanted.name).await {
        let mut found = stream.cached_info().config.clone();
        found.metadata.clear(); // the broker's own notes
        if found == wanted {
            return Ok(());
        }
        tracing::info!(stream = wanted.name, "the stream is brought up to date");
    }
    match jetstream.create_or_update_stream(wanted.clone()).await {
        Err(error) if is_full(&error) && jetstream.get_stream(&wanted.name).await.is_ok() => {
            tracing::warn!(stream = wanted.name, %error, "the stream stays as it was, for want of room");
            Ok(())
        }
        other => other.map(drop),
    }
}

fn is_full(error: &CreateStreamError) -> bool {
    matches!(error.kind(), CreateStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STORAGE_RESOURCES_EXCEEDED)
}

/// When the broker last lost its memory; `None` if that was since anybody called [`mark_boot`] or [`provision`].
///
/// # Errors
/// When the broker does not answer.
pub async fn booted(jetstream: &Context) -> Result<Option<SystemTime>, ProvisionError> {
    let failed = |reason: String| ProvisionError::Mark { action: "tell when it started", reason };
    let stream = jetstream.get_stream_no_info(BOOT).await.map_err(|error| failed(error.to_string()))?;
    let mut tries_left = READY_TRIES;
    loop {
        match stream.direct_get_last_for_subject(BOOT_SUBJECT).await {
            Ok(mark) => return Ok(Some(mark.time.into())),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
            Err(error) => match jetstream.get_stream(BOOT).await {
                Err(missing) if is_missing(&missing.kind()) => return Ok(None),
                // It was made this moment and does not answer yet.
                Ok(_) if tries_left > 0 => tokio::time::sleep(READY_PAUSE).await,
                _ => return Err(failed(error.to_string())),
            },
        }
        tries_left -= 1;
    }
}

fn is_missing(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.code() == 404)
}

/// Leaves a mark in the broker's memory unless there is one, and tells its age. Operators and stations may do so too.
///
/// # Errors
/// When the broker refuses.
pub async fn mark_boot(jetstream: &Context, replicas: usize) -> Result<SystemTime, ProvisionError> {
    if let Some(time) = booted(jetstream).await? {
        return Ok(time);
    }
    let config = Config {
        name: BOOT.to_owned(),
        subjects: vec![BOOT_SUBJECT.to_owned()],
        storage: StorageType::Memory,
        max_messages: 1,
        max_messages_per_subject: 1,
        max_message_size: 1024,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        allow_direct: true,
        deny_delete: true,
        deny_purge: true,
        num_replicas: replicas,
        description: Some("its one message is as old as the broker's memory".to_owned()),
        ..Config::default()
    };
    let failed = |reason: String| ProvisionError::Mark { action: "keep the boot mark", reason };
    jetstream.create_stream(config).await.map_err(|error| failed(error.to_string()))?;
    // If another was faster, the stream refuses this second message, and the first one counts.
    let sent = jetstream.publish(BOOT_SUBJECT, "".into()).await.map_err(|error| failed(error.to_string()))?;
    let stored = sent.await;
    match booted(jetstream).await? {
        Some(time) => Ok(time),
        None => Err(failed(stored.err().map_or_else(|| "it is gone again".to_owned(), |error| error.to_string()))),
    }
}

/// The store's epoch; made if there is none, by whoever comes first.
async fn epoch(jetstream: &Context) -> Result<String, ProvisionError> {
    let failed = |reason: String| ProvisionError::Mark { action: "keep the store's epoch", reason };
    let fresh = || -> Result<String, ProvisionError> {
        let mut random = [0u8; 16];
        getrandom::fill(&mut random).map_err(|error| failed(error.to_string()))?;
        Ok(HEXLOWER.encode(&random))
    };
    let stream = jetstream.get_stream_no_info(bucket_stream(META)).await.map_err(|error| failed(error.to_string()))?;
    for _ in 0..2 {
        match stream.direct_get_last_for_subject(EPOCH).await {
            Ok(stored) => return Ok(String::from_utf8_lossy(&stored.payload).into_owned()),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => {}
            Err(error) => return Err(failed(error.to_string())),
        }
        let mut create = HeaderMap::new();
        create.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
        let sent = jetstream
            .publish_with_headers(EPOCH, create, fresh()?.into())
            .await
            .map_err(|error| failed(error.to_string()))?;
        if let Err(error) = sent.await {
            tracing::debug!(%error, "another process made the store's epoch");
        }
    }
    Err(failed("it is gone as soon as it is written".to_owned()))
}

/// The stream behind a bucket.
#[must_use]
pub fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

fn configs(options: Options) -> Vec<(&'static str, Config)> {
    let message_stream = |name: &str, kinds: &[&str]| Config {
        name: name.to_owned(),
        subjects: kinds.iter().map(|kind| format!("in.*.{kind}.*.*")).collect(),
        duplicate_window: DUPLICATE_WINDOW,
        discard: DiscardPolicy::New,
        max_consumers: CONSUMERS_MAX,
        allow_direct: true,
        deny_delete: true,
        num_replicas: options.replicas,
        ..stored()
    };
    let commands = Config {
        max_age: COMMANDS_AGE_MAX,
        subject_transform: Some(four_tokens("command")),
        republish: Some(on_arrival("*.command.*.*")),
        description: Some("orders".to_owned()),
        ..message_stream(COMMANDS, &["command"])
    };
    let events = Config {
        max_age: EVENTS_AGE_MAX,
        max_bytes: options.events_bytes_max,
        discard: DiscardPolicy::Old,
        subject_transform: Some(four_tokens("event")),
        republish: Some(on_arrival("*.event.*.*")),
        description: Some("what happened".to_owned()),
        ..message_stream(EVENTS, &["event"])
    };
    let replies = Config {
        max_age: REPLIES_AGE_MAX,
        subject_transform: Some(SubjectTransform {
            source: "in.*.*.*.*".to_owned(),
            destination: "{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}.{{wildcard(4)}}".to_owned(),
        }),
        republish: Some(on_arrival("*.*.*.*")),
        description: Some("answers to orders, and their output".to_owned()),
        ..message_stream(REPLIES, &["reply", "output"])
    };
    let audit = Config {
        max_age: AUDIT_AGE_MAX,
        // Refused when full, never forgotten: whoever writes then waits (a node) or does not order (an operator).
        deny_purge: true,
        subject_transform: Some(four_tokens("audit")),
        republish: Some(on_arrival("*.audit.*.*")),
        description: Some("who ordered, decided and changed what".to_owned()),
        ..message_stream(AUDIT, &["audit"])
    };
    let mut all = vec![
        (COMMANDS, commands),
        (EVENTS, events),
        (REPLIES, replies),
        (KNOCKS, knocks(options.replicas)),
        (AUDIT, audit),
    ];
    all.extend(
        [NODES, PRESENCE, FACTS, JOBS, POLICY, META, ADMISSIONS, USERS, HISTORY]
            .map(|name| (name, bucket(name, options.replicas))),
    );
    all
}

/// The place at the door. Nobody takes another's place, or his own a second time, and nothing is pushed out by what comes:
/// what is answered is purged by operators.
fn knocks(replicas: usize) -> Config {
    Config {
        name: KNOCKS.to_owned(),
        subjects: vec!["knock.*.*".to_owned()],
        max_messages: KNOCKS_MAX,
        max_bytes: KNOCKS_BYTES_MAX,
        max_messages_per_subject: 1,
        max_message_size: KNOCK_MESSAGE_MAX,
        max_age: KNOCKS_AGE_MAX,
        duplicate_window: DUPLICATE_WINDOW,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        max_consumers: 1000,
        deny_delete: true,
        num_replicas: replicas,
        description: Some("units that ask to be let in".to_owned()),
        ..stored()
    }
}

/// A bucket as NATS KV clients know it, but for roll-ups: with their header, one writer could purge it all.
fn bucket(name: &str, replicas: usize) -> Config {
    Config {
        name: bucket_stream(name),
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: if name == HISTORY { CHANGES_KEPT } else { 1 },
        max_message_size: if name == HISTORY { CHANGE_BYTES_MAX } else { RECORD_BYTES_MAX },
        max_age: match name {
            HISTORY => HISTORY_AGE_MAX,
            JOBS => JOBS_AGE_MAX,
            ADMISSIONS => ADMISSIONS_AGE_MAX,
            _ => Duration::ZERO,
        },
        duplicate_window: DUPLICATE_WINDOW,
        discard: DiscardPolicy::New,
        max_consumers: CONSUMERS_MAX,
        allow_direct: true,
        allow_rollup: false,
        deny_delete: true,
        republish: Some(Republish {
            source: format!("$KV.{name}.>"),
            destination: format!("{STORED_KV}.{name}.>"),
            headers_only: false,
        }),
        num_replicas: replicas,
        ..stored()
    }
}

/// On disk and without limits. What is set here the broker would fill in by itself: said, it compares equal.
fn stored() -> Config {
    Config {
        storage: StorageType::File,
        compression: Some(Compression::None),
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        ..Config::default()
    }
}

fn four_tokens(kind: &str) -> SubjectTransform {
    SubjectTransform {
        source: format!("in.*.{kind}.*.*"),
        destination: format!("{{{{wildcard(1)}}}}.{kind}.{{{{wildcard(2)}}}}.{{{{wildcard(3)}}}}"),
    }
}

/// What has been stored under `subject` is sent to whoever listens there.
fn on_arrival(subject: &str) -> Republish {
    Republish { source: subject.to_owned(), destination: unwildcard(subject), headers_only: false }
}

/// `*.command.*.*` → `{{wildcard(1)}}.command.{{wildcard(2)}}.{{wildcard(3)}}`.
fn unwildcard(subject: &str) -> String {
    let mut count = 0;
    let token = |token: &str| match token {
        "*" => {
            count += 1;
            format!("{{{{wildcard({count})}}}}")
        }
        other => other.to_owned(),
    };
    subject.split('.').map(token).collect::<Vec<_>>().join(".")
}
