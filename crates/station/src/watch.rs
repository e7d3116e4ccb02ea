//! Keeps the view: reads the streams, folds what comes, and begins anew whenever the broker may have changed.
//!
//! A session reads everything into a fresh view, then follows. It ends when the link was down, the broker began with
//! an empty memory, or the list of operators changed; the old view stays in sight until the next one is whole.

mod checked;
mod feeds;
mod session;

use std::sync::Arc;
use std::time::Duration;

use bus::clock;
use fleet::Fleet;
use tokio_util::sync::CancellationToken;

use crate::status::Shared;
pub(crate) use feeds::latest;
use session::Session;

/// Between two attempts to read everything.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Keeps the view until it is cancelled.
pub(crate) async fn keep(fleet: Fleet, shared: Arc<Shared>, cancel: CancellationToken) {
    let mut pause = PAUSE_MIN;
    let mut link = fleet.bus().link();
    while !cancel.is_cancelled() {
        let up = link.borrow_and_update().up;
        if !up {
            {
                let mut status = shared.write();
                status.connected = false;
                status.following = false;
                status.doing = format!("no broker answers at {}", shared.about.server);
            }
            shared.tell_standing();
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = link.changed() => if changed.is_err() { return },
            }
            continue;
        }
        shared.write().connected = true;
        let session = Session::new(fleet.clone(), Arc::clone(&shared));
        let followed = tokio::select! {
            () = cancel.cancelled() => return,
            followed = session.run() => followed,
        };
        {
            let mut status = shared.write();
            status.following = false;
            status.doing.clone_from(&followed.reason);
        }
        shared.tell_standing();
        if followed.whole {
            pause = PAUSE_MIN;
            tracing::info!(reason = followed.reason, "everything is read anew");
        } else {
            tracing::warn!(reason = followed.reason, "the streams cannot be read; trying again");
        }
        // Every station reads anew when the broker is restarted: not all at one instant.
        let jittered = pause / 2 + Duration::from_millis(clock::jitter(u64::try_from(pause.as_millis()).unwrap_or(0)));
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(jittered) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
