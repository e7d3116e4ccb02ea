//! The certificates of a broker that runs: renewed before they end, and shown as soon as they are others.
//!
//! In flow the files that the server reads; out flows the moment at which it has to read them again. A certificate that
//! somebody else provides (`--tls-cert`) is only watched.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use crate::tls::{self, ServerTls};

/// What a server shows, and where it comes from.
pub(super) struct Certificates {
    home: PathBuf,
    tls: ServerTls,
    every: Duration,
    /// What the files held when the server last read them.
    shown: AtomicU64,
}

impl Certificates {
    pub(super) fn new(home: PathBuf, tls: ServerTls, every: Duration) -> Self {
        let shown = AtomicU64::new(digest(&tls));
        Self { home, tls, every, shown }
    }

    /// Returns when the files hold something else than before.
    pub(super) async fn renewed(&self) {
        loop {
            sleep(self.every).await;
            if self.tls.cert.starts_with(self.home.join("tls")) {
                let home = self.home.clone();
                // Names that it was for stay in it.
                match tokio::task::spawn_blocking(move || tls::ensure(&home, &[])).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => tracing::error!(%error, "the broker's certificate could not be looked after"),
                    Err(error) => tracing::error!(%error, "looking after the broker's certificate broke down"),
                }
            }
            let found = digest(&self.tls);
            if self.shown.swap(found, Ordering::Relaxed) != found {
                return;
            }
        }
    }
}

/// A file that cannot be read counts as empty: when it is back, it is another one.
fn digest(tls: &ServerTls) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in [Some(&tls.cert), Some(&tls.key), tls.ca.as_ref()].into_iter().flatten() {
        std::fs::read(path).unwrap_or_default().hash(&mut hasher);
    }
    hasher.finish()
}
