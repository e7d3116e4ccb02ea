//! Events: what happened, record by record, and reporting something oneself.

mod lines;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bus::{Headers, Message, Scan, Start, clock};
use bytes::Bytes;
use message::event::{BATCH_BYTES_MAX, ENCODING_HEADER, EventHead, pack};
use message::{
    EventBatch, EventRecord, Expression, Kind, Labels, MessageId, NodeName, Pattern, PublicKey, Received,
    ReceivedBatch, Timestamp, Token, WIRE_VERSION, errorlog,
};
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

/// What a node speaks with.
struct Voice {
    /// The key that its word is signed with.
    key: PublicKey,
    /// Since when that counts no more, if so.
    until: Option<Timestamp>,
    labels: Labels,
}

/// A time that is said in one way or the other: from then on, or until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// This time of the broker.
    At(Timestamp),
}

/// Which events; everything that is left out does not matter. Times are those of the broker, when it stored an event: the clocks of nodes
/// may be wrong, and what a node reports after days without a link has come now.
#[derive(Debug, Clone, Default)]
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
    /// What the broker had stored by then; for what is stored, not for what is followed.
    pub until: Option<Since>,
    /// What holds of the record, and of the name and labels of who reports it: see [`Expression::over_records`].
    pub condition: Option<Expression>,
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

/// The newest records of a message, and how many there are in it.
#[derive(Debug, Clone, Default)]
pub struct Newest {
    /// How many records there are.
    pub count: u64,
    /// The last of them, in their order.
    pub lines: Vec<EventLine>,
}

/// The last records of a batch, as those of a proven reporter.
fn newest(batch: &ReceivedBatch, subject: &str, most: usize) -> Newest {
    let head = &batch.head;
    let count = batch.lines().count();
    let first = count.saturating_sub(most);
    let last: Vec<&[u8]> = batch.lines().skip(first).collect();
    let read = |(index, line): (usize, &&[u8])| {
        let record: EventRecord = serde_json::from_slice(line).ok()?;
        Some(EventLine {
            subject: subject.to_owned(),
            from: Some(head.from.clone()),
            to: head.to.clone(),
            method: head.method.clone(),
            domain: head.domain.clone(),
            at: record.at,
            id: format!("{}-{}", head.id, first + index),
            record: record.record,
        })
    };
    Newest { count: count as u64, lines: last.iter().enumerate().filter_map(read).collect() }
}

/// Events, one record after the other.
pub struct Events {
    fleet: Fleet,
    filter: EventFilter,
    source: Source,
    /// What was stored later is not read.
    until: Option<Timestamp>,
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
    /// The next message, which stays at hand until it has been judged: judging may be cancelled.
    async fn hold(&mut self) -> Result<Option<Message>, FleetError> {
        if self.held.is_none() {
            self.held = self.source.next().await?;
        }
        Ok(self.held.clone().filter(|message| self.until.is_none_or(|until| message.stored_at <= until)))
    }

    /// The next record; `None` when all are read and it does not follow. May be cancelled at any time.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be read any more.
    pub async fn next(&mut self) -> Result<Option<EventLine>, FleetError> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            let Some(message) = self.hold().await? else { return Ok(None) };
            let lines = self.read(&message).await?;
            self.held = None;
            for line in lines {
                let voice =
                    line.from.as_ref().and_then(|from| self.voices.get(from)).and_then(|(voice, _)| voice.as_ref());
                if self.filter.wants(&line, voice.map(|voice| &voice.labels)) {
                    self.lines.push_back(line);
                }
            }
        }
    }

    /// The next message whole, whatever is in it; the filter's `from`, `grep` and `condition` do not
    /// count. `None` when all are read and it
    /// does not follow. May be cancelled at any time.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be read any more.
    pub async fn next_message(&mut self) -> Result<Option<Received>, FleetError> {
        let Some(message) = self.hold().await? else { return Ok(None) };
        let opened = ReceivedBatch::open(&message.payload, message.header(ENCODING_HEADER), &message.subject);
        let batch = match (opened, message.signer()) {
            (Err(reason), _) => Err(reason),
            (Ok(_), Err(error)) => Err(error.to_string()),
            (Ok(batch), Ok(signer)) => {
                if self.speaks_for(&signer, &batch.head.from, message.stored_at).await? {
                    Ok(batch)
                } else {
                    Err(format!("{signer} has signed it, who does not speak for {}", batch.head.from))
                }
            }
        };
        self.held = None;
        let Message { sequence, stored_at: stored, subject, payload, .. } = message;
        Ok(Some(Received { sequence, stored, subject, payload, batch }))
    }

    /// The next message, of which only the `most` last records are read: for one who shows the newest ones, however many come.
    /// Of the filter only what the subject tells counts. `None` when all are read and it does not follow. May be cancelled at
    /// any time.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be read any more.
    pub async fn next_newest(&mut self, most: usize) -> Result<Option<Newest>, FleetError> {
        let Some(message) = self.hold().await? else { return Ok(None) };
        let opened = ReceivedBatch::open(&message.payload, message.header(ENCODING_HEADER), &message.subject);
        let newest = match (opened, message.signer()) {
            (Ok(batch), Ok(signer)) if self.speaks_for(&signer, &batch.head.from, message.stored_at).await? => {
                newest(&batch, &message.subject, most)
            }
            _ => {
                let lines = self.read(&message).await?;
                let count = u64::try_from(lines.len()).unwrap_or(u64::MAX);
                let left_out = lines.len().saturating_sub(most);
                Newest { count, lines: lines.into_iter().skip(left_out).collect() }
            }
        };
        self.held = None;
        Ok(Some(newest))
    }

    async fn read(&mut self, message: &Message) -> Result<Vec<EventLine>, FleetError> {
        let arrived = Arrived {
            subject: &message.subject,
            payload: &message.payload,
            sequence: message.sequence,
            stored_at: message.stored_at,
            id: message.header("Nats-Msg-Id"),
            encoding: message.header(ENCODING_HEADER),
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
            voice.as_ref().is_some_and(|voice| voice.key == *signer && voice.until.is_none_or(|until| at < until))
        };
        if let Some((voice, known_since)) = self.voices.get(from)
            && known_since.elapsed() < KEY_AGE_MAX
        {
            return Ok(fits(voice));
        }
        let record = self.fleet.record_of(from).await?;
        let voice = record.map(|record| Voice { key: record.key, until: record.revoked, labels: record.labels });
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
        let since = self.time_of(filter.since).await?;
        let until = self.time_of(filter.until).await?;
        if follow && until.is_some() {
            return Err(FleetError::usage(
                "what is followed goes on for ever: leave out until when, or list what is stored",
            ));
        }
        if let (Some(since), Some(until)) = (since, until)
            && since > until
        {
            return Err(FleetError::usage(format!(
                "nothing lies between {since} and {until}: the end is before the beginning"
            )));
        }
        let start = match since {
            Some(time) => Start::Time(time),
            None if follow => Start::New,
            None => Start::First,
        };
        let filters = vec![filter.subject()];
        let source = if follow {
            Source::Growing(Box::new(Steady::open(self.bus(), EVENTS, filters, start).await?))
        } else {
            Source::Stored(Box::new(Scan::open(self.bus(), EVENTS, &filters, start).await?))
        };
        Ok(self.reading(filter, source, until))
    }

    /// By the broker's clock, as the times of what it has stored are its own.
    async fn time_of(&self, said: Option<Since>) -> Result<Option<Timestamp>, FleetError> {
        Ok(match said {
            Some(Since::At(time)) => Some(time),
            Some(Since::Ago(ago)) => Some(before(self.broker_now().await?, ago)),
            None => None,
        })
    }

    fn reading(&self, filter: &EventFilter, source: Source, until: Option<Timestamp>) -> Events {
        let (lines, voices) = (VecDeque::new(), HashMap::new());
        Events { fleet: self.clone(), filter: filter.clone(), source, until, held: None, lines, voices }
    }

    /// Goes on reading behind a message of the stream, for one who keeps what he receives.
    ///
    /// # Errors
    /// As [`Fleet::events`].
    pub async fn receive(&self, filter: &EventFilter, after: u64) -> Result<Events, FleetError> {
        check(filter)?;
        let start = if after == 0 { Start::First } else { Start::Sequence(after + 1) };
        let source = Source::Growing(Box::new(Steady::open(self.bus(), EVENTS, vec![filter.subject()], start).await?));
        Ok(self.reading(filter, source, None))
    }

    /// Tells the fleet's error log what `program`, at this context's node, complains of. It is not signed: nobody vouches for it.
    ///
    /// # Errors
    /// [`FleetError`] when the broker does not take it.
    pub async fn complain(&self, program: &Token, record: Map<String, Value>) -> Result<(), FleetError> {
        let id = clock::message_id().to_string();
        let (node, record) = (&self.context().node, Value::Object(record));
        Ok(self.bus().tell_alone(node, errorlog::METHOD, program.as_str(), &id, &record).await?)
    }

    /// How many bytes of events the broker has stored.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked.
    pub async fn stored_events_bytes(&self) -> Result<u64, FleetError> {
        Ok(self.bus().stream_bytes(EVENTS).await?)
    }

    /// Which store of the broker this is: sequences of another one mean something else.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked.
    pub async fn epoch(&self) -> Result<Option<String>, FleetError> {
        Ok(self.bus().epoch().await?)
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
                journal: None,
                row: None,
            };
            batches.push(EventBatch { head, records });
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut ids = Vec::new();
        for batch in batches {
            let (bytes, encoding) = pack(batch.to_bytes());
            let (subject, bytes) = (batch.subject().to_string(), Bytes::from(bytes));
            let mut headers = Headers::from(batch.head.id).sealed(&self.seal(&bytes)?);
            if let Some(encoding) = encoding {
                headers = headers.with(ENCODING_HEADER, encoding);
            }
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
