//! Event sources: what happens on this node becomes batches in the journal, and from there on the bus.
//!
//! How far a source has been read and what was read from it are one write, so that nothing is lost or reported
//! twice across a crash. What cannot leave waits in the journal; when too much waits, sources are not read on:
//! the file itself is the buffer.

mod follow;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus::{Bus, Headers, clock};
use bytes::Bytes;
use data_encoding::BASE64;
use journal::{EventRow, Journal, Write};
use message::event::EventHead;
use message::method::ProcessStatus;
use message::subject::Kind;
use message::{EventBatch, EventRecord, NodeName, Seal, Subject, WIRE_VERSION};
use serde_json::{Map, Value};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config::EventSource;
use crate::run::Identity;
use follow::Follower;

/// Between two looks at a file that had nothing new.
const POLL: Duration = Duration::from_millis(200);
/// The most batches that wait in the journal; beyond it sources are not read on.
const BATCHES_MAX: u64 = 1024;
/// The most bytes of encoded records in one batch: well below the broker's payload limit.
const ENCODED_BYTES_MAX: usize = 256 * 1024;
/// The first and the longest wait after a batch that the broker did not take.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Reads one source into the journal until cancelled.
pub(crate) struct FileSource {
    source: EventSource,
    journal: Journal,
    node: NodeName,
    ready: Arc<Notify>,
    status: Arc<Mutex<ProcessStatus>>,
}

impl FileSource {
    pub(crate) fn new(source: EventSource, journal: Journal, node: NodeName, ready: Arc<Notify>) -> Self {
        let subject = Subject::event(source.to.clone(), source.method.clone(), source.domain.clone());
        let status = ProcessStatus {
            subject: subject.to_string(),
            reply: String::new(),
            state: "starting".into(),
            handled: 0,
            failed: 0,
            restarts: 0,
            last_error: None,
            since: clock::now(),
        };
        Self { source, journal, node, ready, status: Arc::new(Mutex::new(status)) }
    }

    pub(crate) fn status(&self) -> Arc<Mutex<ProcessStatus>> {
        Arc::clone(&self.status)
    }

    pub(crate) async fn run(self, cancel: CancellationToken) {
        let path = self.source.file.clone();
        let name = format!("{}/{}:{}", self.source.method, self.source.domain, path.display());
        let mut follower = match self.journal.source(&name) {
            Ok(position) => Some(Follower::new(path.clone(), position)),
            Err(error) => {
                self.note("failed", Some(error.to_string()));
                return;
            }
        };
        loop {
            if self.journal.event_count().is_ok_and(|count| count >= BATCHES_MAX) {
                self.note("waiting: the outbox is full", None);
                if wait(&cancel, POLL * 5).await {
                    return;
                }
                continue;
            }
            let Some(mut reading) = follower.take() else { return };
            // A file may lie on a disk that hangs: that must not stop anybody else.
            let read = tokio::task::spawn_blocking(move || {
                let lines = reading.poll();
                (reading, lines)
            });
            let Ok((reading, lines)) = read.await else {
                self.note("failed", Some("reading broke down".into()));
                return;
            };
            let position = reading.position();
            follower = Some(reading);
            match lines {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    self.note("waiting for the file", None);
                }
                Err(error) => self.note("waiting", Some(format!("{}: {error}", path.display()))),
                Ok(lines) if lines.is_empty() => self.note("following", None),
                Ok(lines) => {
                    let count = lines.len() as u64;
                    let write = Write::Events { source: name.clone(), position, rows: self.batches(lines) };
                    while let Err(error) = self.journal.commit(vec![write.clone()]).await {
                        self.note("waiting: the journal fails", Some(error.to_string()));
                        if wait(&cancel, POLL * 5).await {
                            return;
                        }
                    }
                    self.ready.notify_one();
                    self.note("following", None);
                    self.status.lock().unwrap_or_else(PoisonError::into_inner).handled += count;
                    if cancel.is_cancelled() {
                        return;
                    }
                    continue;
                }
            }
            if wait(&cancel, POLL).await {
                return;
            }
        }
    }

    fn note(&self, state: &str, error: Option<String>) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if status.state != state {
            status.state = state.into();
            status.since = clock::now();
        }
        if let Some(error) = error {
            if status.last_error.as_ref() != Some(&error) {
                tracing::warn!(%error, "an event source has trouble");
            }
            status.last_error = Some(error);
        }
    }

    fn batches(&self, lines: Vec<Vec<u8>>) -> Vec<EventRow> {
        let now = clock::now();
        let mut rows = Vec::new();
        let mut records: Vec<EventRecord> = Vec::new();
        let mut bytes = 0;
        for line in lines {
            let record = EventRecord { at: now, record: line_record(line) };
            let encoded = serde_json::to_vec(&record).map_or(0, |encoded| encoded.len());
            if bytes + encoded > ENCODED_BYTES_MAX && !records.is_empty() {
                rows.push(self.batch(std::mem::take(&mut records)));
                bytes = 0;
            }
            bytes += encoded;
            records.push(record);
        }
        if !records.is_empty() {
            rows.push(self.batch(records));
        }
        rows
    }

    fn batch(&self, records: Vec<EventRecord>) -> EventRow {
        let id = clock::message_id();
        let head = EventHead {
            v: WIRE_VERSION,
            kind: Kind::Event,
            id,
            from: self.node.clone(),
            to: self.source.to.clone(),
            method: self.source.method.clone(),
            domain: self.source.domain.clone(),
            created: clock::now(),
            count: u32::try_from(records.len()).unwrap_or(u32::MAX),
        };
        let batch = EventBatch { head, records };
        let payload = String::from_utf8_lossy(&batch.to_bytes()).into_owned();
        EventRow { row: 0, subject: batch.subject().to_string(), id, payload }
    }
}

/// A line as a record: text where it is text, base64 where it is not.
fn line_record(line: Vec<u8>) -> Map<String, Value> {
    let (key, value) = match String::from_utf8(line) {
        Ok(text) => ("message", text),
        Err(error) => ("message_base64", BASE64.encode(error.as_bytes())),
    };
    [(key.to_owned(), Value::from(value))].into_iter().collect()
}

/// Waits; `true` when cancelled meanwhile.
async fn wait(cancel: &CancellationToken, duration: Duration) -> bool {
    tokio::select! {
        biased;
        () = cancel.cancelled() => true,
        () = tokio::time::sleep(duration) => false,
    }
}

/// Publishes what the sources have journaled, in order, until the broker has confirmed each batch.
pub(crate) async fn publish(
    bus: Bus,
    journal: Journal,
    identity: Arc<Identity>,
    ready: Arc<Notify>,
    cancel: CancellationToken,
) {
    let mut after = 0;
    let mut retry = RETRY_FIRST;
    loop {
        let rows = journal.events(after, 16).unwrap_or_else(|error| {
            tracing::warn!(%error, "events cannot be read from the journal");
            Vec::new()
        });
        if rows.is_empty() {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = ready.notified() => {}
                // Rows may be left from an earlier read that failed.
                () = tokio::time::sleep(RETRY_MAX) => {}
            }
            continue;
        }
        for row in rows {
            loop {
                match publish_row(&bus, &identity, &row).await {
                    Ok(()) => {
                        retry = RETRY_FIRST;
                        break;
                    }
                    Err(problem) => {
                        tracing::debug!(%problem, "an event batch was not confirmed; it is sent again");
                        let mut link = bus.link();
                        link.mark_unchanged();
                        tokio::select! {
                            biased;
                            () = cancel.cancelled() => return,
                            _ = link.changed() => {}
                            () = tokio::time::sleep(retry) => retry = (retry * 2).min(RETRY_MAX),
                        }
                    }
                }
            }
            after = row.row;
            journal.commit_lazily(Write::EventSent { row: row.row }).await;
            if cancel.is_cancelled() {
                return;
            }
        }
    }
}

async fn publish_row(bus: &Bus, identity: &Identity, row: &EventRow) -> Result<(), String> {
    let seal = Seal::over(row.payload.as_bytes(), &identity.pair).map_err(|error| error.to_string())?;
    let headers = Headers::from(row.id).sealed(&seal);
    let payload = Bytes::copy_from_slice(row.payload.as_bytes());
    bus.publish(&row.subject, headers, payload).await.map(|_| ()).map_err(|error| error.to_string())
}
