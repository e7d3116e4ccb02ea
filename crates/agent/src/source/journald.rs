//! The systemd journal as a source, read by the node's own `journalctl`: it knows the format of its files, and who may read them.
//!
//! Where it was read to is a cursor, which is kept in one write with what was read. Fields are named as those of syslog.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::{Duration, Instant};

use message::Timestamp;
use message::syslog::{FACILITIES, SEVERITIES};
use serde_json::{Map, Value};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

use super::schedule::pieces;
use super::sieve::{Sieve, encoded};
use super::{Records, Source, wait};
use crate::config::Journald;

/// What reads the journal.
const PROGRAM: &str = "journalctl";
/// What is asked for of an entry. Cursor and time come with each.
const FIELDS: &str =
    "MESSAGE,PRIORITY,SYSLOG_FACILITY,SYSLOG_IDENTIFIER,SYSLOG_PID,_PID,_HOSTNAME,_SYSTEMD_UNIT,_SYSTEMD_USER_UNIT";
/// The longest entry that is read, as JSON; one that is longer is left out, and that is told.
const ENTRY_BYTES_MAX: usize = 8 << 20;
/// What came is journaled after so long, or with so many bytes.
const GATHER: Duration = Duration::from_millis(200);
const COMMIT_BYTES: usize = 1 << 20;
/// How often it is written down how far it was read, when nothing of it was wanted.
const PLACE_INTERVAL: Duration = Duration::from_secs(10);
/// The first and the longest wait after a `journalctl` that ended.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long it may take to answer a question about one entry.
const PATIENCE: Duration = Duration::from_secs(30);
/// So much of what it complains of is told.
const COMPLAINT_BYTES_MAX: u64 = 2048;

/// Begins a place that has not been read itself: the first one behind a gap. Any other is that of the entry that was read last; an
/// empty one is before the beginning.
const FROM: char = '=';

/// Reads on until cancelled.
pub(super) async fn run(source: Source, journal: Journald, cancel: CancellationToken) {
    let mut retry = RETRY.0;
    let mut reading = Reading { sieve: Sieve::new(&source.shape), name: journal.name(&source.told), source, journal };
    loop {
        let begun = Instant::now();
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            ended = reading.follow(&cancel) => ended,
        };
        if let Err(reason) = ended {
            reading.source.standing.note("waiting", Some(reason));
        }
        retry = if begun.elapsed() > RETRY.1 { RETRY.0 } else { retry };
        if wait(&cancel, retry).await {
            return;
        }
        retry = (retry * 2).min(RETRY.1);
    }
}

/// An entry of the journal.
#[derive(Debug, PartialEq)]
struct Entry {
    /// Where it is: the next one is behind that.
    cursor: String,
    at: Timestamp,
    message: Vec<u8>,
    /// All else that is known of it.
    fields: Map<String, Value>,
}

struct Reading {
    source: Source,
    journal: Journald,
    /// Under what its place is kept.
    name: String,
    sieve: Sieve,
}

impl Reading {
    /// Follows the journal until `journalctl` ends, and says why it did.
    async fn follow(&mut self, cancel: &CancellationToken) -> Result<(), String> {
        let held = self.source.keep.journal().source(&self.name).map_err(|error| error.to_string())?;
        let place = match held {
            Some(place) => self.look_for_gap(place, cancel).await?,
            // Of what was there before somebody wanted it, nothing is told.
            None => {
                let newest = self.ask(&["--lines=1"]).await?.map(|entry| entry.cursor).unwrap_or_default();
                if !self.keep(Some(newest.clone()), &self.source.keep.records(), cancel).await {
                    return Ok(());
                }
                newest
            }
        };
        let mut arguments: Vec<OsString> = vec!["--follow".into(), "--no-tail".into()];
        match place.strip_prefix(FROM) {
            Some(first) => arguments.push(format!("--cursor={first}").into()),
            None if place.is_empty() => {}
            None => arguments.push(format!("--after-cursor={place}").into()),
        }
        arguments.extend(self.journal.matches().into_iter().map(OsString::from));
        let mut child = self.start(&arguments)?;
        let Some(stdout) = child.stdout.take() else { return Err(format!("{PROGRAM} has no output")) };
        self.source.standing.note("listening", None);
        self.take_all(stdout, cancel).await?;
        Err(why(child).await)
    }

    /// Entries that were removed before they were read are missed, and that is told, once. Returns the place to go on from.
    async fn look_for_gap(&self, place: String, cancel: &CancellationToken) -> Result<String, String> {
        if place.is_empty() || place.starts_with(FROM) {
            return Ok(place);
        }
        let nearest = self.ask(&[&format!("--cursor={place}"), "--lines=1"]).await?;
        if nearest.as_ref().is_some_and(|entry| entry.cursor == place) {
            return Ok(place);
        }
        let text = "the journal no longer has the entry that was read last: some after it may have been removed unread";
        let record = Map::from_iter([("message".to_owned(), Value::from(text)), ("gap".to_owned(), Value::Bool(true))]);
        let mut records = self.source.keep.records();
        records.push(|into| encoded(&bus::clock::now().to_string(), &record, into));
        let place = nearest.map(|entry| format!("{FROM}{}", entry.cursor)).unwrap_or_default();
        self.source.standing.note("listening", Some(text.to_owned()));
        let _ = self.keep(Some(place.clone()), &records, cancel).await; // kept, or cancelled and found again
        Ok(place)
    }

    /// One entry, whatever the source wants; `None` when there is none.
    async fn ask(&self, arguments: &[&str]) -> Result<Option<Entry>, String> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let mut child = self.start(&arguments)?;
        let Some(stdout) = child.stdout.take() else { return Err(format!("{PROGRAM} has no output")) };
        let mut lines = Lines::new(BufReader::new(stdout));
        let read = tokio::time::timeout(PATIENCE, lines.next()).await;
        let line = read.map_err(|_| format!("{PROGRAM} has not answered for {} s", PATIENCE.as_secs()))?;
        match line.map_err(|error| format!("{PROGRAM} cannot be read: {error}"))? {
            Some(Some(line)) => entry(&line).map(Some),
            Some(None) => Err(format!("an entry of more than {} MiB is in the way", ENTRY_BYTES_MAX >> 20)),
            None => match child.wait().await {
                Ok(status) if status.success() => Ok(None),
                _ => Err(why(child).await),
            },
        }
    }

    fn start(&self, arguments: &[OsString]) -> Result<Child, String> {
        let mut command = Command::new(PROGRAM);
        command.args(["--output=json", "--all", "--quiet", "--no-pager"]).arg(format!("--output-fields={FIELDS}"));
        if let Some(directory) = &self.journal.directory {
            command.arg("--directory").arg(directory);
        }
        command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        command.spawn().map_err(|error| format!("{PROGRAM} cannot be started: {error}; it comes with systemd"))
    }

    /// Takes entries until there are no more.
    async fn take_all(&mut self, stdout: ChildStdout, cancel: &CancellationToken) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{PROGRAM} cannot be read: {error}");
        let mut lines = Lines::new(BufReader::new(stdout));
        let mut placed = Instant::now();
        let mut place = None;
        loop {
            while self.source.keep.is_full(self.source.told.lane) {
                self.source.standing.note("waiting: the outbox is full", None);
                if wait(cancel, GATHER).await {
                    return Ok(());
                }
            }
            let Some(first) = lines.next().await.map_err(failed)? else { return Ok(()) };
            let deadline = tokio::time::Instant::now() + GATHER;
            let (mut records, mut next) = (self.source.keep.records(), Some(first));
            let (mut read, before) = (0, self.sieve.unwanted + self.sieve.too_many);
            while let Some(line) = next.take() {
                read += 1;
                match line.as_deref().map(entry) {
                    Some(Ok(entry)) => {
                        place = Some(entry.cursor.clone());
                        self.add(entry, &mut records);
                    }
                    Some(Err(reason)) => self.source.standing.note("listening", Some(reason)),
                    None => {
                        let text = format!("an entry of more than {} MiB was left out", ENTRY_BYTES_MAX >> 20);
                        let record = Map::from_iter([("message".to_owned(), Value::from(text))]);
                        records.push(|into| encoded(&bus::clock::now().to_string(), &record, into));
                    }
                }
                if records.bytes() < COMMIT_BYTES {
                    next = match tokio::time::timeout_at(deadline, lines.next()).await {
                        Ok(line) => line.map_err(failed)?,
                        Err(_) => None,
                    };
                }
            }
            let dropped = self.sieve.unwanted + self.sieve.too_many - before;
            if !records.is_empty() || placed.elapsed() >= PLACE_INTERVAL {
                if !self.keep(place.clone(), &records, cancel).await {
                    return Ok(());
                }
                placed = Instant::now();
            }
            self.source.standing.count(read - dropped.min(read), dropped);
            self.source.standing.note("listening", None);
        }
    }

    async fn keep(&self, place: Option<String>, records: &Records, cancel: &CancellationToken) -> bool {
        self.source.keep(&self.name, place, records, cancel).await
    }

    fn add(&mut self, entry: Entry, records: &mut Records) {
        let at = entry.at.to_string();
        let mut lines = Vec::new();
        pieces(entry.message, &mut lines);
        for line in lines {
            if let Some(record) = self.sieve.record(line, &entry.fields, Instant::now()) {
                records.push(|into| encoded(&at, &record, into));
            }
        }
    }
}

/// Why it has ended: its last word, if it has spoken.
async fn why(mut child: Child) -> String {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr.take(COMPLAINT_BYTES_MAX);
        let _ = tokio::time::timeout(RETRY.0, stderr.read_to_end(&mut said)).await; // what was said until then
    }
    let status = child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says not why");
    format!("{PROGRAM} has ended ({status}): {last}")
}

/// Lines of a bounded length.
struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    is_too_long: bool,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    const fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), is_too_long: false }
    }

    /// The next line; `Some(None)` for one that is too long; `None` at the end. May be cancelled at any time.
    async fn next(&mut self) -> std::io::Result<Option<Option<Vec<u8>>>> {
        loop {
            let here = self.reader.fill_buf().await?;
            if here.is_empty() {
                // What was cut off at the end is read again.
                return Ok(None);
            }
            let end = here.iter().position(|byte| *byte == b'\n');
            let part = here.get(..end.unwrap_or(here.len())).unwrap_or_default();
            self.is_too_long |= self.line.len() + part.len() > ENTRY_BYTES_MAX;
            if !self.is_too_long {
                self.line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                return Ok(Some((!std::mem::take(&mut self.is_too_long)).then_some(line)));
            }
        }
    }
}

/// Reads an entry of the [journal's JSON format](https://systemd.io/JOURNAL_EXPORT_FORMATS/#journal-json-format). Pure.
fn entry(line: &[u8]) -> Result<Entry, String> {
    let wrong = |reason: String| format!("what {PROGRAM} writes cannot be read: {reason}");
    let said: Map<String, Value> = serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
    let cursor = said.get("__CURSOR").and_then(Value::as_str).ok_or_else(|| wrong("an entry has no cursor".into()))?;
    let text = |name: &str| said.get(name).and_then(bytes).and_then(|bytes| String::from_utf8(bytes).ok());
    let number = |name: &str| text(name).and_then(|text| text.parse::<usize>().ok());
    let micros = text("__REALTIME_TIMESTAMP").and_then(|text| text.parse::<i64>().ok());
    let at =
        micros.map(|micros| Timestamp::from_ms(micros / 1000)).ok_or_else(|| wrong("an entry has no time".into()))?;
    let mut fields = Map::new();
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    let word =
        |words: &[&str], number: Option<usize>| number.and_then(|at| words.get(at)).map(|word| Value::from(*word));
    add("severity", word(&SEVERITIES, number("PRIORITY")));
    add("facility", word(&FACILITIES, number("SYSLOG_FACILITY")));
    add("app", text("SYSLOG_IDENTIFIER").map(Value::from));
    add("pid", text("SYSLOG_PID").or_else(|| text("_PID")).map(Value::from));
    add("host", text("_HOSTNAME").map(Value::from));
    add("unit", text("_SYSTEMD_UNIT").map(Value::from));
    add("user_unit", text("_SYSTEMD_USER_UNIT").map(Value::from));
    let message = said.get("MESSAGE").and_then(bytes).unwrap_or_default();
    Ok(Entry { cursor: cursor.to_owned(), at, message, fields })
}

/// A field's value: text, or a list of bytes if it is not; of several values the first.
fn bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.clone().into_bytes()),
        Value::Array(values) if values.iter().all(Value::is_u64) => {
            values.iter().map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok())).collect()
        }
        Value::Array(values) => values.first().and_then(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(line: &Value) -> Result<Entry, String> {
        entry(line.to_string().as_bytes())
    }

    #[test]
    fn an_entry_becomes_a_message_with_the_fields_of_syslog() {
        let line = json!({
            "__CURSOR": "s=1;i=2", "__REALTIME_TIMESTAMP": "1795492819000001", "MESSAGE": "up", "PRIORITY": "4",
            "SYSLOG_FACILITY": "3", "SYSLOG_IDENTIFIER": ["nginx", "again"], "_PID": "42", "_SYSTEMD_UNIT": "nginx.service",
        });
        let entry = read(&line).unwrap();
        assert_eq!(
            (entry.cursor.as_str(), entry.at.as_ms(), entry.message),
            ("s=1;i=2", 1_795_492_819_000, b"up".to_vec())
        );
        let fields =
            json!({"severity": "warning", "facility": "daemon", "app": "nginx", "pid": "42", "unit": "nginx.service"});
        assert_eq!(Value::Object(entry.fields), fields);
    }

    #[test]
    fn a_message_may_be_bytes_or_missing_and_what_has_no_place_or_time_is_no_entry() {
        let with = |message: Value| json!({"__CURSOR": "c", "__REALTIME_TIMESTAMP": "1", "MESSAGE": message, "PRIORITY": "99"});
        assert_eq!(read(&with(json!([255, 0, 65]))).unwrap().message, [255, 0, 65]);
        assert_eq!(read(&with(Value::Null)).unwrap().message, b"");
        assert!(read(&with(json!([256]))).unwrap().message.is_empty());
        assert!(read(&with(json!("x"))).unwrap().fields.is_empty(), "there is no such severity");
        assert!(read(&json!({"__CURSOR": "c"})).unwrap_err().contains("no time"));
        assert!(read(&json!({"__REALTIME_TIMESTAMP": "1"})).unwrap_err().contains("no cursor"));
        assert!(entry(b"nonsense").is_err());
    }

    proptest! {
        #[test]
        fn lines_come_whole_or_not_at_all_wherever_they_are_cut(
            texts in proptest::collection::vec("[a-z]{0,30}", 0..20), size in 1_usize..40,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let all = texts.iter().map(|text| format!("{text}\n")).collect::<String>() + "cut";
            let mut lines = Lines::new(BufReader::with_capacity(size, all.as_bytes()));
            let mut read = Vec::new();
            while let Some(line) = runtime.block_on(lines.next()).unwrap() {
                read.push(String::from_utf8(line.unwrap()).unwrap());
            }
            prop_assert_eq!(read, texts);
        }
    }

    #[tokio::test]
    async fn what_is_too_long_is_passed_over() {
        let mut text = vec![b'x'; ENTRY_BYTES_MAX + 1];
        text.extend_from_slice(b"\nnext\n");
        let mut lines = Lines::new(text.as_slice());
        assert_eq!(lines.next().await.unwrap(), Some(None));
        assert_eq!(lines.next().await.unwrap(), Some(Some(b"next".to_vec())));
        assert_eq!(lines.next().await.unwrap(), None);
    }
}
