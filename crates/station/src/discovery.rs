//! `nats micro ls` shows the station: its version, its name, and since when it runs. Nothing can be called by it.

use std::time::Duration;

use bus::Service;
use fleet::Fleet;
use tokio_util::sync::CancellationToken;

use crate::status::About;

/// After so long it is tried again to be found.
const AGAIN: Duration = Duration::from_secs(30);

/// What is told of this station.
pub(crate) fn service(about: &About) -> Service {
    Service {
        name: "steward-station".into(),
        id: bus::clock::message_id().to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        description: "Shows the fleet: page, JSON and metrics over HTTP. Orders do not pass through it.".into(),
        metadata: vec![("station".into(), about.station.to_string())],
        started: about.started,
    }
}

/// Answers until cancelled.
pub(crate) async fn keep(fleet: Fleet, service: Service, cancel: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            ended = fleet.bus().be_found(&service) => {
                if let Err(error) = ended {
                    tracing::warn!(%error, "the station cannot be found by `nats micro ls`");
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}
