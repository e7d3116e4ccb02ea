//! Facts: what this unit knows of its system, told when it has changed and never otherwise.
//!
//! What flows in is read from the kernel, from a few files, and from the executables in `facts.d`; what flows out is one
//! signed document at the node's own key of bucket `FACTS`. Nothing here may hold up an order or end the agent: what cannot
//! be read is left out, what hangs is ended, and what prints nonsense is told as that.

mod program;
mod system;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::{Bus, clock, kv};
use bytes::Bytes;
use message::facts::DOCUMENT_BYTES_MAX;
use message::{Facts, Seal};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::run::Identity;

/// How long after its start a unit looks for the first time, at most: a fleet that starts together does not speak together.
const FIRST_MS: u64 = 2_000;
/// Between two looks at what costs more: packages to update.
const COSTLY_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// The fact that costs more.
const PACKAGES: &str = "packages";
/// When the broker did not take it.
const RETRY: Duration = Duration::from_secs(30);

/// Looks at the system, and tells what has changed.
pub(crate) struct Teller {
    pub(crate) bus: Bus,
    pub(crate) identity: Arc<Identity>,
    /// Where the journal lies; `facts.d` is in it.
    pub(crate) state_dir: PathBuf,
    /// Between two looks, less a jitter of a tenth.
    pub(crate) interval: Duration,
    /// As whom the executables in `facts.d` run; as the agent, if nobody is named.
    pub(crate) run_as: Option<String>,
}

impl Teller {
    /// Until it is cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let mut wait = Duration::from_millis(clock::jitter(FIRST_MS));
        // Not with the first look: a fleet that is started, or a crash that repeats, should not pay for it.
        let (mut costly, mut first): (Option<(Instant, Option<Value>)>, bool) = (None, true);
        let mut told: Option<(u64, Value)> = None;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            // A disk that does not answer may hold up a look for ever, but not the end.
            let told_now = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                told_now = async {
                    if !first && costly.as_ref().is_none_or(|(at, _)| at.elapsed() > COSTLY_INTERVAL) {
                        costly = Some((Instant::now(), program::packages(&cancel).await));
                    }
                    let packages = costly.as_ref().and_then(|(_, packages)| packages.clone());
                    let found = Value::Object(self.look(packages, &cancel).await);
                    first = false;
                    self.tell(found, costly.is_some(), &mut told).await
                } => told_now,
            };
            wait = match told_now {
                Ok(()) => {
                    let tenth_ms = u64::try_from(self.interval.as_millis() / 10).unwrap_or(0);
                    self.interval.saturating_sub(Duration::from_millis(clock::jitter(tenth_ms.max(1))))
                }
                Err(reason) => {
                    tracing::debug!(%reason, "the facts could not be told yet");
                    RETRY
                }
            };
        }
    }

    async fn look(&self, packages: Option<Value>, cancel: &CancellationToken) -> Map<String, Value> {
        // Files of the kernel answer at once, but a disk may not.
        let mut facts = tokio::task::spawn_blocking(system::facts).await.unwrap_or_default();
        facts.extend(packages.map(|packages| (PACKAGES.to_owned(), packages)));
        if let Some(units) = program::failed_units(cancel).await {
            facts.insert("units_failed".into(), units);
        }
        let (local, failed) = program::local(&self.state_dir.join("facts.d"), self.run_as.as_deref(), cancel).await;
        for (name, map) in [("local", local), ("local_failed", failed)] {
            if !map.is_empty() {
                facts.insert(name.into(), Value::Object(map));
            }
        }
        facts
    }

    /// Sends `found`, unless that is what the broker has. What was not asked this time (`complete`) stays as it was told.
    async fn tell(&self, mut found: Value, complete: bool, told: &mut Option<(u64, Value)>) -> Result<(), String> {
        let ups = self.bus.link().borrow().ups;
        // After a new connect the broker may be another, or have lost its store.
        if told.as_ref().is_none_or(|(before, _)| *before != ups) {
            *told = self.stored().await?.map(|facts| (ups, facts));
        }
        let before = told.as_ref().and_then(|(_, facts)| facts.get(PACKAGES));
        if let (false, Some(before), Some(found)) = (complete, before, found.as_object_mut()) {
            found.insert(PACKAGES.into(), before.clone());
        }
        if told.as_ref().is_some_and(|(_, facts)| *facts == found) {
            tracing::debug!("the facts have not changed");
            return Ok(());
        }
        let bytes = self.document(found.clone())?;
        let seal = Seal::over(&bytes, &self.identity.pair).map_err(|error| error.to_string())?;
        let name = self.identity.me.name.as_str();
        self.bus.kv_put(kv::FACTS, name, Bytes::from(bytes), Some(&seal)).await.map_err(|error| error.to_string())?;
        *told = Some((ups, found));
        Ok(())
    }

    /// What the broker has of us, if it is ours.
    async fn stored(&self) -> Result<Option<Value>, String> {
        let me = &self.identity.me;
        let found = self.bus.kv_get(kv::FACTS, me.name.as_str()).await.map_err(|error| error.to_string())?;
        let own = found.filter(|message| message.signer().is_ok_and(|signer| signer == me.key));
        Ok(own.and_then(|message| Facts::parse(&message.payload).ok()).map(|told| told.facts))
    }

    /// The document; without what `facts.d` says, if it would be too long with it.
    fn document(&self, facts: Value) -> Result<Vec<u8>, String> {
        let Value::Object(mut facts) = facts else { return Err("facts are no object".into()) };
        loop {
            let told = Facts::new(self.identity.me.name.clone(), clock::now(), facts.clone());
            let bytes = serde_json::to_vec(&told).map_err(|error| error.to_string())?;
            if bytes.len() <= DOCUMENT_BYTES_MAX {
                return Ok(bytes);
            }
            if facts.remove("local").is_none() {
                return Err(format!("they have {} bytes, and may have {DOCUMENT_BYTES_MAX}", bytes.len()));
            }
            let reason = format!("all of it together has more than {} KiB", DOCUMENT_BYTES_MAX / 1024);
            facts.insert("local_failed".into(), json!({"facts.d": reason}));
        }
    }
}
