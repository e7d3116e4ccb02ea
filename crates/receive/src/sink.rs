//! Where records go: files, a program's input, HTTP.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use message::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::runtime::RuntimeFlavor;

use super::config::{FileSink, Format, HttpSink, SinkKind, Speech};
use super::place::Place;
use super::postgres::Postgres;
use super::syslog::Syslog;
use super::usable::{Line, Usable};
use crate::hand_over::{PATIENCE, Refusal, client, send};

/// What of a record is a line that was read.
#[derive(Deserialize)]
struct Text<'a> {
    #[serde(borrow)]
    message: Option<std::borrow::Cow<'a, str>>,
    message_base64: Option<String>,
    #[serde(default)]
    goes_on: bool,
}

/// Writes a record to `into`.
pub(super) fn write(batch: &Usable, number: usize, line: Line<'_>, format: Format, into: &mut Vec<u8>) {
    let Line { at, record } = line;
    if format == Format::Json {
        let head = &batch.head;
        let record = serde_json::from_str::<&RawValue>(record).unwrap_or(RawValue::NULL);
        let line = json!({
            "from": head.from, "to": head.to, "method": head.method, "domain": head.domain, "at": at,
            "id": format!("{}-{number}", head.id), "record": record,
        });
        let _ = serde_json::to_writer(&mut *into, &line); // to memory
        into.push(b'\n');
        return;
    }
    if append_message(record, into) {
        into.push(b'\n');
        return;
    }
    let goes_on = match serde_json::from_str::<Text<'_>>(record) {
        Ok(Text { message: Some(text), goes_on, .. }) => {
            into.extend_from_slice(text.as_bytes());
            goes_on
        }
        Ok(Text { message_base64: Some(bytes), goes_on, .. }) => {
            into.extend_from_slice(&data_encoding::BASE64.decode(bytes.as_bytes()).unwrap_or_default());
            goes_on
        }
        _ => {
            into.extend_from_slice(record.as_bytes());
            false
        }
    };
    if !goes_on {
        into.push(b'\n');
    }
}

/// Appends the message of a record that has nothing else, as nearly all have; `false` for any other. The record is valid JSON.
fn append_message(record: &str, into: &mut Vec<u8>) -> bool {
    let Some(text) = record.strip_prefix("{\"message\":\"").and_then(|rest| rest.strip_suffix("\"}")) else {
        return false;
    };
    let (begin, mut rest) = (into.len(), text.as_bytes());
    while let Some(at) = memchr::memchr2(b'"', b'\\', rest) {
        let (plain, behind) = rest.split_at(at);
        let meant = match behind {
            [b'\\', escaped @ (b'"' | b'\\' | b'/'), ..] => *escaped,
            [b'\\', b'n', ..] => b'\n',
            [b'\\', b't', ..] => b'\t',
            [b'\\', b'r', ..] => b'\r',
            // The end of the message, and another member behind it; or a character by its number.
            _ => {
                into.truncate(begin);
                return false;
            }
        };
        into.extend_from_slice(plain);
        into.push(meant);
        rest = behind.get(2..).unwrap_or_default();
    }
    into.extend_from_slice(rest);
    true
}

/// What has come, and is to be delivered together.
pub(super) struct Load {
    /// Of nodes that are proven, and not had before.
    pub(super) batches: Vec<Usable>,
    /// The last sequence in it.
    pub(super) sequence: u64,
}

impl Load {
    /// All records one after the other, and how many.
    fn text(&self, format: Format) -> (Vec<u8>, u64) {
        let (mut text, mut count) = (Vec::new(), 0);
        for batch in &self.batches {
            for (number, line) in batch.lines().enumerate() {
                write(batch, number, line, format, &mut text);
                count += 1;
            }
        }
        (text, count)
    }
}

/// A place where records go.
pub(super) enum Sink {
    File(FileSink),
    Command { argv: Vec<String>, child: Option<Child> },
    Http { sink: HttpSink, client: reqwest::Client },
    Syslog(Syslog),
    Postgres(Postgres),
}

impl Sink {
    pub(super) fn new(kind: &SinkKind) -> Result<Self, String> {
        Ok(match kind {
            SinkKind::File(sink) => Self::File(sink.clone()),
            SinkKind::Command(argv) => Self::Command { argv: argv.clone(), child: None },
            SinkKind::Http(sink) => Self::Http { sink: sink.clone(), client: client()? },
            SinkKind::Syslog(sink) => Self::Syslog(Syslog::new(sink.clone())),
            SinkKind::Postgres(sink) => Self::Postgres(Postgres::new(sink.clone())),
        })
    }

    /// Puts right what a crash has left half done.
    pub(super) fn mend(&self, place: &Place) -> io::Result<()> {
        for (path, length) in &place.begun {
            match OpenOptions::new().write(true).open(path) {
                Ok(file) => {
                    // Somebody may have moved it away meanwhile: what is shorter is another one.
                    if file.metadata()?.len() > *length {
                        file.set_len(*length)?;
                        file.sync_all()?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Delivers all of a load, and notes how far that is. Returns how many records that were.
    pub(super) async fn deliver(&mut self, load: &Load, format: Format, place: &mut Place) -> Result<u64, Refusal> {
        if let Self::File(sink) = self {
            let mut deliver = || deliver_to_files(sink, load, format, place);
            // A slow disk must not hold up who serves others on this thread.
            let is_shared = tokio::runtime::Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
            return if is_shared { tokio::task::block_in_place(deliver) } else { deliver() };
        }
        let count = self.hand_on(load, format).await?;
        place.done(load.sequence)?;
        Ok(count)
    }

    /// Delivers all of a load anywhere but into files. Returns how many records that were.
    pub(super) async fn hand_on(&mut self, load: &Load, format: Format) -> Result<u64, Refusal> {
        Ok(match self {
            Self::File(_) => 0,
            Self::Command { argv, child } => {
                let (text, count) = load.text(format);
                if count > 0
                    && let Err(error) = deliver_to_program(argv, child, &text).await
                {
                    if let Some(mut child) = child.take() {
                        let _ = child.start_kill();
                    }
                    return Err(error);
                }
                count
            }
            Self::Http { sink, client } => deliver_over_http(sink, client, load, format).await?,
            Self::Syslog(syslog) => syslog.deliver(load, format).await?,
            Self::Postgres(postgres) => postgres.deliver(load).await?,
        })
    }
}

/// Exactly once, also across a crash: lengths first, then records, then how far that is.
fn deliver_to_files(sink: &FileSink, load: &Load, format: Format, place: &mut Place) -> Result<u64, Refusal> {
    let mut texts: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut count = 0;
    let dated = sink.path.contains("{date}");
    for batch in &load.batches {
        let head = &batch.head;
        let path = |date: &str| sink.path_for(&head.from, &head.method, &head.domain, date);
        if !dated {
            let text = texts.entry(path("")).or_default();
            for (number, line) in batch.lines().enumerate() {
                write(batch, number, line, format, text);
                count += 1;
            }
            continue;
        }
        for (number, line) in batch.lines().enumerate() {
            let day = line.time().to_string();
            let text = texts.entry(path(day.get(..10).unwrap_or_default())).or_default();
            write(batch, number, line, format, text);
            count += 1;
        }
    }
    let mut open = Vec::new();
    for (path, text) in texts.iter().filter(|(_, text)| !text.is_empty()) {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        open.push((path, text, file, length));
    }
    if !open.is_empty() {
        place.begin(open.iter().map(|(path, _, _, length)| ((*path).clone(), *length)).collect())?;
        let written = open.iter_mut().try_for_each(|(_, text, file, _)| {
            file.write_all(text)?;
            if sink.fsync { file.sync_data() } else { Ok(()) }
        });
        if let Err(error) = written {
            // A full disk, most likely: as if nothing had been written.
            for (_, _, file, length) in &open {
                file.set_len(*length)?;
            }
            return Err(error.into());
        }
    }
    place.done(load.sequence)?;
    if let Some(most) = sink.rotate {
        for (path, text, _, length) in &open {
            if length + text.len() as u64 >= most {
                rotate(path, sink.keep)?;
            }
        }
    }
    Ok(count)
}

/// `x.log` becomes `x.log.1`, `x.log.1` becomes `x.log.2`, and so on.
fn rotate(path: &Path, keep: u32) -> io::Result<()> {
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    for number in (1..keep).rev() {
        match std::fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(path, numbered(1))?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// At least once: what was in a pipe when a program ended is given to the next one again only if it was of the same load.
async fn deliver_to_program(argv: &[String], child: &mut Option<Child>, text: &[u8]) -> Result<(), Refusal> {
    let [name, arguments @ ..] = argv else { return Err(Refusal::Later("there is no program".into())) };
    if let Some(running) = child
        && let Some(status) = running.try_wait()?
    {
        tracing::warn!(%status, name, "a program that receives events has ended; it is started again");
        *child = None;
    }
    let running = match child {
        Some(running) => running,
        None => {
            let mut command = Command::new(name);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).kill_on_drop(true);
            child.insert(command.spawn().map_err(|error| Refusal::Later(format!("{name} cannot be started: {error}")))?)
        }
    };
    let Some(stdin) = &mut running.stdin else { return Err(Refusal::Later(format!("{name} has no input"))) };
    let written = tokio::time::timeout(PATIENCE, async {
        stdin.write_all(text).await?;
        stdin.flush().await
    });
    match written.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Refusal::Later(format!("{name} does not read: {error}"))),
        Err(_) => Err(Refusal::Later(format!("{name} has read nothing for {} s", PATIENCE.as_secs()))),
    }
}

async fn deliver_over_http(
    sink: &HttpSink,
    client: &reqwest::Client,
    load: &Load,
    format: Format,
) -> Result<u64, Refusal> {
    let (body, kind, count) = match sink.speech {
        Speech::Lines => {
            let (text, count) = load.text(format);
            (text, if format == Format::Json { "application/x-ndjson" } else { "text/plain; charset=utf-8" }, count)
        }
        Speech::Loki | Speech::Otlp => {
            let streams = streams(load, format);
            let count = streams.values().map(|lines| lines.len() as u64).sum();
            let body = if sink.speech == Speech::Loki { loki(streams) } else { otlp(streams) };
            (body.to_string().into_bytes(), "application/json", count)
        }
    };
    if count == 0 {
        return Ok(0);
    }
    // Who wants each record once knows a load by its sequence.
    let request =
        client.post(&sink.url).header("content-type", kind).header("steward-sequence", load.sequence.to_string());
    send(request.body(body), &sink.url, &sink.headers).await?;
    Ok(count)
}

/// Who reports what about what.
type Of = (String, String, String);

/// The records by who reports what about what: their times and texts.
fn streams(load: &Load, format: Format) -> BTreeMap<Of, Vec<(Timestamp, String)>> {
    let mut streams: BTreeMap<Of, Vec<(Timestamp, String)>> = BTreeMap::new();
    for batch in &load.batches {
        let head = &batch.head;
        let lines =
            streams.entry((head.from.to_string(), head.method.to_string(), head.domain.to_string())).or_default();
        for (number, line) in batch.lines().enumerate() {
            let mut text = Vec::new();
            write(batch, number, line, format, &mut text);
            let text = text.strip_suffix(b"\n").unwrap_or(&text);
            lines.push((line.time(), String::from_utf8_lossy(text).into_owned()));
        }
    }
    streams
}

/// Nanoseconds since 1970, as text: JSON's numbers are too short for them.
fn nanoseconds(at: Timestamp) -> String {
    format!("{}000000", at.as_ms())
}

/// Loki's push: a stream for each node, method and domain, values by time and line.
fn loki(streams: BTreeMap<Of, Vec<(Timestamp, String)>>) -> Value {
    let stream = |((from, method, domain), lines): (Of, Vec<(Timestamp, String)>)| {
        let values: Vec<Value> = lines.into_iter().map(|(at, text)| json!([nanoseconds(at), text])).collect();
        json!({"stream": {"from": from, "method": method, "domain": domain}, "values": values})
    };
    json!({"streams": streams.into_iter().map(stream).collect::<Vec<_>>()})
}

/// Logs of OpenTelemetry: a resource for each node, method and domain. Names of attributes are those of its semantic conventions.
fn otlp(streams: BTreeMap<Of, Vec<(Timestamp, String)>>) -> Value {
    let attribute = |key: &str, value: String| json!({"key": key, "value": {"stringValue": value}});
    let resource = |((from, method, domain), lines): (Of, Vec<(Timestamp, String)>)| {
        let record =
            |(at, text): (Timestamp, String)| json!({"timeUnixNano": nanoseconds(at), "body": {"stringValue": text}});
        let attributes =
            [attribute("host.name", from), attribute("service.name", domain), attribute("steward.method", method)];
        json!({
            "resource": {"attributes": attributes},
            "scopeLogs": [{"scope": {"name": "steward"}, "logRecords": lines.into_iter().map(record).collect::<Vec<_>>()}],
        })
    };
    json!({"resourceLogs": streams.into_iter().map(resource).collect::<Vec<_>>()})
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
