//! The agent's own troubles as a source of events: what it warns of is told to the fleet's error log.

use std::time::{Duration, Instant};

use message::{Complaint, Restraint};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use super::sieve::encoded;
use super::{RETRY_MAX, Source, wait};

/// So many complaints at most go into one batch.
const AT_ONCE: usize = 64;

/// Tells complaints, in restraint, until cancelled.
pub(crate) async fn run(
    source: Source,
    mut complaints: Receiver<Complaint>,
    interval: Duration,
    cancel: CancellationToken,
) {
    let mut restraint = Restraint::new(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX));
    let began = Instant::now();
    source.standing.note("listening", None);
    loop {
        let first = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            first = complaints.recv() => first,
        };
        let Some(first) = first else { return };
        // What comes meanwhile waits in its queue, which has an end; what finds no place there is counted.
        while source.keep.is_full(source.told.lane) {
            if wait(&cancel, RETRY_MAX).await {
                return;
            }
        }
        let more = std::iter::from_fn(|| complaints.try_recv().ok()).take(AT_ONCE - 1);
        let (mut records, mut dropped) = (source.keep.records(), 0);
        for complaint in std::iter::once(first).chain(more) {
            let at = complaint.at.to_string();
            let now_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            match restraint.admit(complaint, now_ms) {
                Some(record) => records.push(|into| encoded(&at, &record, into)),
                None => dropped += 1,
            }
        }
        let count = records.count();
        if !records.is_empty() && !source.keep("", None, &records, &cancel).await {
            return;
        }
        source.standing.count(count, dropped);
    }
}
