//! A new token for this node's key, when the key that signs nodes' tokens is another one: taken from the bus, kept on disk,
//! shown to the broker from the next connect on, and acknowledged.
//!
//! Believed only if an operator signed it, and only for this node's own key and name. The one before it is kept as well: a
//! broker that does not take the new one is shown that. It must never touch the private key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bus::live::LiveStored;
use bus::{Bus, BusError, Credentials, Headers, clock, kv};
use bytes::Bytes;
use message::{Addressee, PublicKey, Renewal, Seal, Taken};
use tokio_util::sync::CancellationToken;

use crate::trust::Trusted;

/// The file below the state directory.
const TOKEN_FILE: &str = "user.jwt";
/// A whole fleet gets new tokens at one moment, and must not ask for them at one moment.
const JITTER_MS: u64 = 1000;
/// Without any reason, it is looked this often: a hint may have been lost.
const ROUTINE: Duration = Duration::from_secs(3600);
/// After a look that failed.
const RETRY: Duration = Duration::from_secs(30);

/// What a node does about its token.
pub(crate) struct Tokens {
    path: PathBuf,
    me: Addressee,
    credentials: Credentials,
    trusted: Arc<Trusted>,
}

impl Tokens {
    /// Begins with the token of the enrolment, or the newer one that was kept.
    pub(crate) fn open(dir: &Path, me: Addressee, credentials: Credentials, trusted: Arc<Trusted>) -> Self {
        let path = dir.join(TOKEN_FILE);
        if let Ok(kept) = fs::read_to_string(&path) {
            match credentials.renew(kept.trim()) {
                Ok(_) => {}
                // An enrolment anew has made it worthless.
                Err(error) => tracing::info!(%error, "the token that was kept is not used"),
            }
        }
        Self { path, me, credentials, trusted }
    }

    /// Looks at each new link, and when it is told that there is a new one.
    ///
    /// # Errors
    /// [`BusError`] when the connection is closed.
    pub(crate) async fn watch(&self, bus: &Bus, cancel: CancellationToken) -> Result<(), BusError> {
        let mut hints = LiveStored::open(bus, &[format!("core.KV.{}.{}", kv::USERS, self.me.key)]).await?;
        let (mut link, mut taken) = (bus.link(), None);
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                changed = link.changed() => if changed.is_err() { return Ok(()) },
                hint = hints.next() => if hint.is_none() { return Ok(()) },
                () = tokio::time::sleep(wait) => {}
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(Duration::from_millis(clock::jitter(JITTER_MS))) => {}
            }
            link.mark_unchanged();
            if !bus.is_up() {
                wait = ROUTINE;
                continue;
            }
            wait = match self.look(bus, &mut taken).await {
                Ok(()) => ROUTINE,
                Err(reason) => {
                    tracing::debug!(reason, "no new token is taken");
                    RETRY
                }
            };
        }
    }

    /// Takes what there is, and says so once in this run.
    async fn look(&self, bus: &Bus, taken: &mut Option<PublicKey>) -> Result<(), String> {
        let found = match bus.kv_get(kv::USERS, self.me.key.as_str()).await {
            // A broker that was set up by an earlier version has none.
            Ok(None) | Err(BusError::NoStream { .. }) => return Ok(()),
            Ok(Some(found)) => found,
            Err(error) => return Err(error.to_string()),
        };
        let signer = found.signer().map_err(|error| error.to_string())?;
        if self.trusted.current().operator(&signer).is_none() {
            return Err("its signer is no operator".into());
        }
        let renewal = Renewal::parse(&found.payload, &self.me.key).map_err(|error| error.to_string())?;
        if self.credentials.renew(&renewal.jwt).map_err(|error| error.to_string())? {
            tracing::info!("a new token is in place; it is shown to the broker at the next connect");
        }
        let issuer = self.credentials.issuer().map_err(|error| error.to_string())?;
        if taken.as_ref() == Some(&issuer) {
            return Ok(());
        }
        // Kept before it is acknowledged: on the word of this node, the old one is made worthless.
        let (path, text) = (self.path.clone(), renewal.jwt);
        let kept = tokio::task::spawn_blocking(move || keep(&path, &text)).await.map_err(|error| error.to_string())?;
        kept.map_err(|error| format!("it cannot be kept: {error}"))?;
        let receipt = Taken::new(self.me.key.clone(), issuer.clone());
        let bytes = serde_json::to_vec(&receipt).map(Bytes::from).map_err(|error| error.to_string())?;
        let seal = Seal::over(&bytes, self.credentials.pair()).map_err(|error| error.to_string())?;
        let subject = format!("$KV.{}.taken.{}", kv::USERS, self.me.key);
        bus.publish(&subject, Headers::new().sealed(&seal), bytes).await.map_err(|error| error.to_string())?;
        *taken = Some(issuer);
        Ok(())
    }
}

/// Puts the token at `path`, whole or not at all, and on disk when this returns.
fn keep(path: &Path, text: &str) -> io::Result<()> {
    let staging = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staging)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&staging, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}
