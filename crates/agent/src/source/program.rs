//! A program on a schedule as a source: each line that it writes is a record.

use std::process::Stdio;
use std::time::Instant;

use bus::clock;
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::follow::{LINE_BYTES_MAX, Line};
use super::sieve::{Sieve, encoded};
use super::{Source, wait};
use crate::config::Program;

/// What one run may write; the rest is left unread.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;

pub(super) async fn run(source: Source, program: Program, cancel: CancellationToken) {
    let mut sieve = Sieve::new(&source.shape);
    // Not all of a fleet at once.
    let jitter =
        std::time::Duration::from_millis(clock::jitter(u64::try_from(program.every.as_millis() / 10).unwrap_or(0) + 1));
    if wait(&cancel, jitter).await {
        return;
    }
    loop {
        let begun = tokio::time::Instant::now();
        while source.keep.is_full(source.told.lane) {
            source.standing.note("waiting: the outbox is full", None);
            if wait(&cancel, program.every).await {
                return;
            }
        }
        source.standing.note("running", None);
        let told = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            told = tokio::time::timeout(program.every, once(&program)) => told,
        };
        let lines = match told {
            Ok(Ok(lines)) => lines,
            Ok(Err(error)) => {
                source.standing.note("waiting", Some(format!("{:?}: {error}", program.argv)));
                Vec::new()
            }
            Err(_) => {
                let text = format!("{:?} took longer than the time between two runs, and was ended", program.argv);
                source.standing.note("waiting", Some(text));
                Vec::new()
            }
        };
        let (mut records, before, count) = (source.keep.records(), sieve.unwanted + sieve.too_many, lines.len() as u64);
        for line in lines {
            if let Some(record) = sieve.record(line, &Map::new(), Instant::now()) {
                records.push(|into| encoded(&clock::now().to_string(), &record, into));
            }
        }
        let dropped = sieve.unwanted + sieve.too_many - before;
        if !records.is_empty() && !source.keep("", None, &records, &cancel).await {
            return;
        }
        source.standing.count(count.saturating_sub(dropped), dropped);
        source.standing.note("waiting", None);
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep_until(begun + program.every) => {}
        }
    }
}

/// The lines of one run. How it failed is one more.
async fn once(program: &Program) -> std::io::Result<Vec<Line>> {
    let [name, arguments @ ..] = program.argv.as_slice() else { return Ok(Vec::new()) };
    let mut child = Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout.take(OUTPUT_BYTES_MAX));
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).await? > 0 {
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            let mut rest = std::mem::take(&mut line);
            while rest.len() > LINE_BYTES_MAX {
                let behind = rest.split_off(LINE_BYTES_MAX);
                lines.push(Line { bytes: std::mem::replace(&mut rest, behind), goes_on: true });
            }
            lines.push(Line { bytes: rest, goes_on: false });
        }
    }
    let status = child.wait().await?;
    if !status.success() {
        let told = Map::from_iter([("message".to_owned(), Value::from(format!("{name} ended with {status}")))]);
        lines.push(Line { bytes: Value::from(told).to_string().into_bytes(), goes_on: false });
    }
    Ok(lines)
}
