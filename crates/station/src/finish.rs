//! Sees to it that a job is ordered wholly or not at all: finishes what clients began and did not end.
//!
//! What to send, and whether, is decided in `fleet`; here is only when. The station adds nothing of its own: the
//! orders go out as their operator signed them.

use std::time::Duration;

use bus::clock;
use fleet::Fleet;
use tokio_util::sync::CancellationToken;

/// For so long a job is its client's: it may still be storing and sending.
const CLIENT_PATIENCE: Duration = Duration::from_secs(70);
/// Between two looks. With a jitter, as there may be several stations.
const PAUSE: Duration = Duration::from_secs(25);
const JITTER_MS: u64 = 10_000;

/// Looks again and again until it is cancelled. What goes wrong is told, and tried again.
pub(crate) async fn keep(fleet: Fleet, cancel: CancellationToken) {
    loop {
        let more = if fleet.bus().is_up() { round(&fleet, &cancel).await } else { false };
        let pause = if more { Duration::ZERO } else { PAUSE + Duration::from_millis(clock::jitter(JITTER_MS)) };
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn round(fleet: &Fleet, cancel: &CancellationToken) -> bool {
    let finished = tokio::select! {
        () = cancel.cancelled() => return false,
        finished = fleet.finish_jobs(CLIENT_PATIENCE) => finished,
    };
    match finished {
        Ok(finished) => {
            for job in &finished.sent {
                tracing::info!(%job, "the orders of a job were sent that its client had left");
            }
            finished.more
        }
        Err(error) => {
            tracing::warn!(%error, "jobs that clients left could not be finished; it is tried again");
            false
        }
    }
}
