//! What the station warns of is told to the fleet's error log. Unsigned: the station can sign nothing that counts.

use std::time::{Duration, Instant};

use fleet::Fleet;
use message::{Complaint, Restraint, Token};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

/// Between two complaints, when there are too many.
const INTERVAL_MS: u64 = 60_000;
/// The first and the longest wait after one that the broker did not take.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Tells complaints, in restraint, until cancelled. What the broker does not take waits; what has not been told when the
/// station ends is in its own log alone.
pub(crate) async fn keep(fleet: Fleet, complaints: Option<Receiver<Complaint>>, cancel: CancellationToken) {
    let told = async {
        let Ok(program) = Token::domain("station") else { return };
        let Some(mut complaints) = complaints else { return };
        let (mut restraint, began) = (Restraint::new(INTERVAL_MS), Instant::now());
        while let Some(complaint) = complaints.recv().await {
            let now_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let Some(record) = restraint.admit(complaint, now_ms) else { continue };
            let mut retry = RETRY_FIRST;
            // What is said about it must not be complained of again.
            while let Err(error) = fleet.complain(&program, record.clone()).await {
                tracing::debug!(%error, "a complaint was not taken; it is sent again");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => return,
        () = told => {}
    }
    cancel.cancelled().await;
}
