//! Simulated units, many in one process: the child that `bench fleet` starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent::light::Light;
use bus::{Bus, ConnectOptions, Credentials, EDGE_API, LiveOrders};
use message::{Addressee, NodeName, PublicKey, Trust};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::system::BenchError;

/// So many connect at once: each costs the broker a millisecond, so more would only wait there.
const CONNECTING: usize = 128;
/// Between two tries of a unit that did not get through.
const RETRY_MS: u64 = 2000;
/// As of an agent.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// What a child is to play.
#[derive(Serialize, Deserialize)]
pub(crate) struct Cast {
    pub(crate) server: String,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) trust: Trust,
    /// Between two life signs; `None`: bare clients, of which each has one subscription and says nothing.
    pub(crate) interval: Option<Duration>,
    pub(crate) units: Vec<Unit>,
}

/// One of them.
#[derive(Serialize, Deserialize)]
pub(crate) struct Unit {
    pub(crate) name: NodeName,
    /// The text of its `.creds` file.
    pub(crate) creds: String,
}

/// Plays the units that stand in `file` until its standard input ends. Prints a line when all are up.
///
/// # Errors
/// [`BenchError`] when the file cannot be read.
pub async fn units(file: &Path) -> Result<(), BenchError> {
    let damaged = |error: serde_json::Error| BenchError::System(format!("{}: {error}", file.display()));
    let cast: Cast = serde_json::from_slice(&tokio::fs::read(file).await?).map_err(damaged)?;
    let Cast { server, ca, trust, interval, units } = cast;
    let (trust, places) = (Arc::new(trust), Arc::new(Semaphore::new(CONNECTING)));
    let up = Arc::new(AtomicUsize::new(0));
    let all = units.len();
    let cancel = CancellationToken::new();
    let mut playing = JoinSet::new();
    for unit in units {
        let credentials = Credentials::parse(&unit.creds, unit.name.as_str())?;
        let options = ConnectOptions {
            server: server.clone(),
            ca: ca.clone(),
            credentials: credentials.clone(),
            name: unit.name.to_string(),
            inbox_prefix: Some(format!("_INBOX.{}", unit.name)),
            patient: false,
            ping_interval: PING_INTERVAL,
            api_prefix: EDGE_API,
        };
        let me = Addressee { name: unit.name, key: PublicKey::of(credentials.pair()) };
        let light =
            interval.map(|interval| Light::new(me.clone(), credentials.pair().clone(), Arc::clone(&trust), interval));
        let (places, up, cancel) = (Arc::clone(&places), Arc::clone(&up), cancel.clone());
        playing.spawn(async move {
            let bus = loop {
                let Ok(_place) = places.acquire().await else { return };
                match Bus::connect(options.clone()).await {
                    Ok(bus) => break bus,
                    Err(error) => tracing::debug!(%error, "connecting is tried again"),
                }
                tokio::time::sleep(Duration::from_millis(bus::clock::jitter(RETRY_MS))).await;
            };
            let Some(light) = light else {
                let _orders = LiveOrders::open(&bus, &me.name).await;
                // Asked and answered, so that the subscription is there.
                let _ = bus.epoch().await;
                up.fetch_add(1, Ordering::Relaxed);
                return cancel.cancelled().await;
            };
            let is_up = || {
                up.fetch_add(1, Ordering::Relaxed);
            };
            if let Err(error) = light.run(bus, is_up, cancel).await {
                tracing::warn!(node = %me.name, %error, "a unit has ended");
            }
        });
    }
    while up.load(Ordering::Relaxed) < all {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut out = tokio::io::stdout();
    out.write_all(b"up\n").await?;
    out.flush().await?;
    // The end of the parent is the end of this: then its pipe is closed.
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
    cancel.cancel();
    Ok(())
}
