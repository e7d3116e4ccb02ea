//! Events: what happened, record by record, and reporting something oneself.

mod lines;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bus::{Headers, Message, Scan, Start, clock};
use bytes::Bytes;
use message::event::{BATCH_BYTES_MAX, EventHead};
use message::{EventBatch, EventRecord, Kind, MessageId, NodeName, Pattern, PublicKey, Timestamp, Token, WIRE_VERSION};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::connection::Fleet;
use crate::error::FleetError;
use crate::order::{PATIENCE, retrying};
use crate::steady::Steady;
use lines::Arrived;

/// The stream of events.
const EVENTS: &str = "EVENTS";
/// After how long a node's key is looked up again: it may have been enrolled anew, or thrown out.
const KEY_AGE_MAX: Duration = Duration::from_secs(30);
/// So many nodes' keys are remembered.
const KEYS_MAX: usize = 200_000;

/// The key that a node's word is signed with, and since when that counts no more, if so.
type Voice = (PublicKey, Option<Timestamp>);

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// From this long ago.
    Ago(Duration),
    /// From this time of the broker on.
    At(Timestamp),
}

/// Which events; everything that is left out does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// Who reported it: proven by signature. Events of nobody proven never match.
    pub from: Option<Pattern>,
    /// Who was told.
    pub to: Option<Pattern>,
    /// The method: a token, or a glob with `*` and `?`.
    pub method: Option<String>,
    /// The domain: a token, or a glob with `*` and `?`.
    pub domain: Option<String>,
    /// What the broker stored from then on.
    pub since: Option<Since>,
    /// A text that the record holds somewhere, capitals counting.
    pub grep: Option<String>,
}

/// One record, serialized as `event ls -o ndjson` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventLine {
    /// The subject that it came on.
    pub subject: String,
    /// Who reported it; `None` when no signature proves it.
    pub from: Option<NodeName>,
    /// Who was told.
    pub to: NodeName,
    /// What kind of thing happened.
    pub method: Token,
    /// What it is about.
    pub domain: Token,
    /// When: by the reporter's clock if it is proven, else when the broker stored it.
    pub at: Timestamp,
    /// The record's id.
    pub id: String,
    /// What happened.
    pub record: Map<String, Value>,
}

/// Events, one record after the other.
pub struct Events {
    fleet: Fleet,
    filter: EventFilter,
    source: Source,
    /// A message that was received and not yet judged.
    held: Option<Message>,
    lines: VecDeque<EventLine>,
    voices: HashMap<NodeName, (Option<Voice>, Instant)>,
}

enum Source {
    Stored(Box<Scan>),
    Growing(Box<Steady>),
}

impl Source {
    async fn next(&mut self) -> Result<Option<Message>, FleetError> {
        match self {
            Self::Stored(scan) => Ok(scan.next().await?),
            Self::Growing(messages) => Ok(Some(messages.next().await?)),
        }
    }
}

impl Events {
    /// The next record; `None` when all are read and it does not follow. May be cancelled at any time.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be read any more.
    pub async fn next(&mut self) -> Result<Option<EventLine>, FleetError> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            let message = match &self.held {
                Some(message) => message.clone(),
                None => match self.source.next().await? {
                    Some(message) => self.held.insert(message).clone(),
                    None => return Ok(None),
                },
            };
            let lines = self.read(&message).await?;
            self.held = None;
            self.lines.extend(lines.into_iter().filter(|line| self.filter.wants(line)));
        }
    }

    async fn read(&mut self, message: &Message) -> Result<Vec<EventLine>, FleetError> {
        let arrived = Arrived {
            subject: &message.subject,
            payload: &message.payload,
            sequence: message.sequence,
            stored_at: message.stored_at,
            id: message.header("Nats-Msg-Id"),
        };
        let batch = arrived.batch();
        let proven = match (&batch, message.signer()) {
            (Some(batch), Ok(signer)) => self.speaks_for(&signer, &batch.head.from, message.stored_at).await?,
            _ => false,
        };
        Ok(arrived.lines(batch, proven))
    }

    /// Whether `signer` could report as `from` when the broker stored it: it is that node's key, or an operator who reports
    /// for this context's node.
    async fn speaks_for(&mut self, signer: &PublicKey, from: &NodeName, at: Timestamp) -> Result<bool, FleetError> {
        if *from == self.fleet.context().node && self.fleet.trust().was_operator(signer, at) {
            return Ok(true);
        }
        let fits = |voice: &Option<Voice>| {
            voice.as_ref().is_some_and(|(key, until)| key == signer && until.is_none_or(|until| at < until))
        };
        if let Some((voice, known_since)) = self.voices.get(from)
            && known_since.elapsed() < KEY_AGE_MAX
        {
            return Ok(fits(voice));
        }
        let voice = self.fleet.voice(from).await?;
        if self.voices.len() >= KEYS_MAX {
            self.voices.clear();
        }
        let fits = fits(&voice);
        self.voices.insert(from.clone(), (voice, Instant::now()));
        Ok(fits)
    }
}

impl Fleet {
    /// Reads events: those that are stored, or with `follow` what comes from now on (and before that, with
    /// `since`, what is stored from then).
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be read, [`FleetError::Usage`] when a filter makes no sense.
    pub async fn events(&self, filter: &EventFilter, follow: bool) -> Result<Events, FleetError> {
        check(filter)?;
        let start = match filter.since {
            Some(Since::At(time)) => Start::Time(time),
            // By the broker's clock, as the times of what it has stored are its own.
            Some(Since::Ago(ago)) => Start::Time(before(self.broker_now().await?, ago)),
            None if follow => Start::New,
            None => Start::First,
        };
        let filters = vec![filter.subject()];
        let source = if follow {
            Source::Growing(Box::new(Steady::open(self.bus(), EVENTS, filters, start).await?))
        } else {
            Source::Stored(Box::new(Scan::open(self.bus(), EVENTS, &filters, start).await?))
        };
        let (lines, voices) = (VecDeque::new(), HashMap::new());
        Ok(Events { fleet: self.clone(), filter: filter.clone(), source, held: None, lines, voices })
    }

    /// Reports records to `to`, signed with this identity in the name of the context's node. Returns the ids of
    /// the batches.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when there is no record or one is too large.
    pub async fn emit(
        &self,
        to: &NodeName,
        method: &Token,
        domain: &Token,
        records: Vec<Map<String, Value>>,
    ) -> Result<Vec<MessageId>, FleetError> {
        if records.is_empty() {
            return Err(FleetError::usage("there is nothing to report: give a message"));
        }
        let created = clock::now();
        let mut batches = Vec::new();
        for records in split(records, created)? {
            let head = EventHead {
                v: WIRE_VERSION,
                kind: Kind::Event,
                id: clock::message_id(),
                from: self.context().node.clone(),
                to: to.clone(),
                method: method.clone(),
                domain: domain.clone(),
                created,
                count: u32::try_from(records.len()).unwrap_or(u32::MAX),
            };
            batches.push(EventBatch { head, records });
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut ids = Vec::new();
        for batch in batches {
            let (subject, bytes) = (batch.subject().to_string(), Bytes::from(batch.to_bytes()));
            let headers = Headers::from(batch.head.id).sealed(&self.seal(&bytes)?);
            retrying(deadline, || self.bus().publish(&subject, headers.clone(), bytes.clone())).await?;
            ids.push(batch.head.id);
        }
        Ok(ids)
    }
}

fn check(filter: &EventFilter) -> Result<(), FleetError> {
    for (what, wanted) in [("method", &filter.method), ("domain", &filter.domain)] {
        // What a glob stands for is left out; the rest must be able to stand in a name.
        let literal = wanted.as_deref().unwrap_or_default().replace(['*', '?'], "");
        if !literal.is_empty()
            && let Err(error) = if what == "method" { Token::method(literal) } else { Token::domain(literal) }
        {
            return Err(FleetError::usage(error.to_string()));
        }
        if wanted.as_ref().is_some_and(String::is_empty) {
            return Err(FleetError::usage(format!("the {what} is empty: leave the option out, or give a name")));
        }
    }
    Ok(())
}

fn before(now: Timestamp, ago: Duration) -> Timestamp {
    let ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_ms(now.as_ms().saturating_sub(ms).max(0))
}

/// Splits records into batches that the wire takes.
fn split(records: Vec<Map<String, Value>>, at: Timestamp) -> Result<Vec<Vec<EventRecord>>, FleetError> {
    let mut batches = vec![Vec::new()];
    let mut bytes = 0;
    for record in records {
        let record = EventRecord { at, record };
        let length = serde_json::to_string(&record).map_err(|error| FleetError::signing(&error))?.len() + 1;
        if length > BATCH_BYTES_MAX {
            return Err(FleetError::usage(format!(
                "a record has {} KiB: at most {} KiB are possible",
                length.div_ceil(1024),
                BATCH_BYTES_MAX / 1024
            )));
        }
        if bytes + length > BATCH_BYTES_MAX {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += length;
        if let Some(batch) = batches.last_mut() {
            batch.push(record);
        }
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(length: usize) -> Map<String, Value> {
        [("message".to_owned(), Value::from("x".repeat(length)))].into_iter().collect()
    }

    #[test]
    fn many_records_become_several_batches_and_a_huge_one_is_refused() {
        let batches = split(vec![record(20_000); 7], Timestamp::default()).unwrap();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
        let error = split(vec![record(70_000)], Timestamp::default()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_filter_that_can_match_nothing_is_refused_with_the_character() {
        let filter = EventFilter { method: Some("a.b".into()), ..EventFilter::default() };
        let error = check(&filter).unwrap_err();
        assert!(error.to_string().contains("'.'") && error.exit_code() == 2, "{error}");
        assert!(check(&EventFilter { domain: Some("ng*".into()), ..EventFilter::default() }).is_ok());
    }
}
