//! Sources that are asked on a schedule: a program, an address.

use std::time::{Duration, Instant};

use bus::clock;
use serde_json::Map;
use tokio_util::sync::CancellationToken;

use super::follow::{LINE_BYTES_MAX, Line};
use super::sieve::{Sieve, encoded};
use super::{Source, program, scrape, wait};
use crate::config::{Parse, Program, Scrape};

/// What is taken at once; the rest is left unread.
pub(super) const LOAD_BYTES_MAX: u64 = 4 << 20;

/// What is asked.
pub(super) enum Asked {
    Program(Program),
    Http(Scrape),
}

impl Asked {
    const fn every(&self) -> Duration {
        match self {
            Self::Program(program) => program.every,
            Self::Http(scrape) => scrape.every,
        }
    }

    /// For people.
    fn name(&self) -> String {
        match self {
            Self::Program(program) => format!("{:?}", program.argv),
            Self::Http(scrape) => scrape::without_password(&scrape.url),
        }
    }

    /// The lines of one time.
    async fn once(&self, source: &Source) -> Result<Vec<Line>, String> {
        match self {
            Self::Program(program) => program::once(program).await.map_err(|error| error.to_string()),
            Self::Http(scrape) => scrape::once(scrape, source.shape.parse == Some(Parse::Json)).await,
        }
    }

    /// What is told when there are none, if anything.
    fn silence(&self, reason: &str) -> Vec<Line> {
        match self {
            Self::Program(_) => Vec::new(),
            Self::Http(_) => vec![scrape::silence(&self.name(), reason)],
        }
    }
}

/// Asks again and again, until cancelled. Each time has until the next.
pub(super) async fn run(source: Source, asked: Asked, cancel: CancellationToken) {
    let every = asked.every();
    let mut sieve = Sieve::new(&source.shape);
    // Not all of a fleet at once.
    let jitter = Duration::from_millis(clock::jitter(u64::try_from(every.as_millis() / 10).unwrap_or(0) + 1));
    if wait(&cancel, jitter).await {
        return;
    }
    loop {
        let begun = tokio::time::Instant::now();
        while source.keep.is_full(source.told.lane) {
            source.standing.note("waiting: the outbox is full", None);
            if wait(&cancel, every).await {
                return;
            }
        }
        source.standing.note("running", None);
        let told = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            told = tokio::time::timeout(every, asked.once(&source)) => told,
        };
        let told = match told {
            Ok(lines) => lines,
            Err(_) => Err("it took longer than the time between two of them, and was ended".into()),
        };
        let lines = told.unwrap_or_else(|reason| {
            source.standing.note("waiting", Some(format!("{}: {reason}", asked.name())));
            asked.silence(&reason)
        });
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
            () = tokio::time::sleep_until(begun + every) => {}
        }
    }
}

/// Adds a line, in pieces if it is too long.
pub(super) fn pieces(mut rest: Vec<u8>, lines: &mut Vec<Line>) {
    while rest.len() > LINE_BYTES_MAX {
        let behind = rest.split_off(LINE_BYTES_MAX);
        lines.push(Line { bytes: std::mem::replace(&mut rest, behind), goes_on: true });
    }
    lines.push(Line { bytes: rest, goes_on: false });
}
