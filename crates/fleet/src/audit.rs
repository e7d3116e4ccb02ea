//! The audit log: writing what this identity orders and changes, and reading what everybody did.
//!
//! An operator's key has one chain, though several of his clients may write at once: each reads the end, links to it, and
//! the broker takes the entry only if the end is still there (compare-and-set). What could not be written down is not done.

pub(crate) mod beginning;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bus::streams::{AUDIT, AUDIT_AGE_MAX};
use bus::{BusError, Headers, Message, Scan, Start, clock};
use bytes::Bytes;
use message::audit::{self, Act, Entry, Grounds, Head, OPERATOR_CHAIN, Opened, Report, Stored, Tip};
use message::{NodeName, PublicKey, Seal, Trust};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::connection::{Fleet, sealed_trust};
use crate::context::{Context, Home};
use crate::error::FleetError;
use crate::files::{self, Access};
use crate::order::{PATIENCE, retrying};

/// How often an entry is written anew when another client of this operator was faster.
const CONFLICTS_MAX: u32 = 32;
/// Acts of this process that wait go into one entry, up to this size together.
const TOGETHER_BYTES_MAX: usize = 48 * 1024;

/// Whether an act was written down: a sentence, if not.
type Written = Result<(), String>;

/// The own chain, as far as this process knows it.
#[derive(Default)]
pub(crate) struct Chain {
    /// The end, and its sequence in the stream; `None` before it was read.
    end: tokio::sync::Mutex<Option<(Option<Tip>, u64)>>,
    waiting: Mutex<Vec<(Act, oneshot::Sender<Written>)>>,
}

impl Chain {
    fn next(&self) -> Vec<(Act, oneshot::Sender<Written>)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut bytes, mut count) = (0, 0);
        for (act, _) in waiting.iter() {
            bytes += serde_json::to_string(act).map_or(0, |text| text.len());
            if count > 0 && (bytes > TOGETHER_BYTES_MAX || count >= audit::ACTS_MAX) {
                break;
            }
            count += 1;
        }
        waiting.drain(..count).collect()
    }
}

/// What the log holds, with what is needed to judge it.
#[derive(Debug, Clone)]
pub struct AuditLog {
    /// All of it, in the order of the stream.
    pub stored: Vec<Stored>,
    trust: Trust,
    nodes: Vec<(NodeName, PublicKey)>,
    heads: Vec<Head>,
    seen: std::path::PathBuf,
}

impl AuditLog {
    /// What was exported, judged by the list of operators in the home of `context`: without a broker.
    ///
    /// # Errors
    /// [`FleetError::File`] when a line is none of an export; when there is no list.
    pub fn of_export(context: &Context, path: &std::path::Path, text: &str) -> Result<Self, FleetError> {
        let (_, (trust, _)) = sealed_trust(context)?;
        let line = |(number, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| FleetError::File {
                path: path.to_owned(),
                reason: format!("line {} is none of `steward audit ls --raw -o ndjson`: {error}", number + 1),
            })
        };
        let stored =
            text.lines().enumerate().filter(|(_, line)| !line.is_empty()).map(line).collect::<Result<_, _>>()?;
        let (heads, seen) = seen(&context.home())?;
        Ok(Self { stored, trust, nodes: vec![], heads, seen })
    }

    /// What is believed of it, with whether an operator wrote it, and how many messages are not.
    pub fn believed(&self) -> (Vec<(&Stored, Opened, bool)>, usize) {
        let mut strange = 0;
        let mut believed = Vec::new();
        for (stored, entry) in audit::believe(self.stored.iter(), &self.trust, &self.nodes) {
            match entry {
                Ok((opened, by_operator)) => believed.push((stored, opened, by_operator)),
                Err(_) => strange += 1,
            }
        }
        (believed, strange)
    }

    /// What the operator of this key is or was called.
    pub fn name_of(&self, key: &PublicKey) -> Option<String> {
        let was = || self.trust.revoked(key).map(|one| one.name.clone());
        self.trust.operator(key).map(|one| one.name.clone()).or_else(was)
    }

    /// Tells where a chain was cut or altered. Where the chains end is kept in the home: a later look misses what is gone then.
    ///
    /// # Errors
    /// [`FleetError::Io`] when that cannot be kept.
    pub fn verify(&self) -> Result<Report, FleetError> {
        let kept = (AUDIT_AGE_MAX, clock::now());
        let grounds = Grounds { trust: &self.trust, nodes: &self.nodes, heads: &self.heads, kept };
        let report = audit::verify(self.stored.iter(), grounds);
        let mut ends: BTreeMap<&str, (u64, &str)> =
            self.heads.iter().map(|head| (head.subject.as_str(), (head.seq, head.sha256.as_str()))).collect();
        // An older look is never overwritten by less than it saw.
        for chain in report.chains.iter().filter(|chain| chain.faults.is_empty()) {
            let end = ends.entry(&chain.subject).or_insert((0, ""));
            if chain.last >= end.0 {
                *end = (chain.last, &chain.sha256);
            }
        }
        let text = serde_json::to_string(&ends).map_err(|error| FleetError::signing(&error))?;
        files::write(&self.seen, &text, Access::Plain)?;
        Ok(report)
    }
}

/// Where chains ended when somebody looked from this home.
fn seen(home: &Home) -> Result<(Vec<Head>, std::path::PathBuf), FleetError> {
    let path = home.dir().join("audit-seen.json");
    let Some(text) = files::read(&path)? else { return Ok((vec![], path)) };
    let ends: BTreeMap<String, (u64, String)> = serde_json::from_str(&text).map_err(|error| FleetError::File {
        path: path.clone(),
        reason: format!(
            "{error}; it tells where the chains of the audit log ended: look why it is broken, then remove it"
        ),
    })?;
    let head =
        |(subject, (seq, sha256))| Head { subject, seq, sha256, told_by: "an earlier look from this home".into() };
    Ok((ends.into_iter().map(head).collect(), path))
}

fn stored(message: &Message) -> Stored {
    Stored {
        sequence: message.sequence,
        stored_at: message.stored_at,
        subject: message.subject.clone(),
        seal: message.seal().ok(),
        entry: String::from_utf8_lossy(&message.payload).into_owned(),
    }
}

impl Fleet {
    /// Writes down what this identity is about to do; it must not be done if this fails. Acts of one process that wait at
    /// the same time share an entry.
    ///
    /// # Errors
    /// [`FleetError::Audit`].
    pub async fn record(&self, act: Act) -> Result<(), FleetError> {
        let failed = |reason: String| FleetError::Audit { reason };
        let (tell, mut told) = oneshot::channel();
        self.chain().waiting.lock().unwrap_or_else(PoisonError::into_inner).push((act, tell));
        let mut end = self.chain().end.lock().await;
        loop {
            match told.try_recv() {
                Ok(written) => return written.map_err(failed),
                Err(oneshot::error::TryRecvError::Closed) => return Err(failed("its writer was stopped".into())),
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            let (acts, waiting): (Vec<Act>, Vec<_>) = self.chain().next().into_iter().unzip();
            let written = self.append(&mut end, acts).await.map_err(|error| error.to_string());
            for tell in waiting {
                // Whoever stopped waiting does nothing any more.
                let _ = tell.send(written.clone());
            }
        }
    }

    /// Reads where the own chain ends, so that the next entry need not wait for that.
    pub(crate) async fn find_chain(&self) {
        if let (Ok(mut end), Some(name)) = (self.chain().end.try_lock(), self.operator())
            && end.is_none()
        {
            // Whoever writes tries again, and tells what is wrong.
            *end = self.end(&audit::subject(&name, &self.key(), OPERATOR_CHAIN)).await.ok();
        }
    }

    /// Where the own chain ends: at the broker, or where this home remembers, if the broker has lost the end.
    async fn end(&self, subject: &str) -> Result<(Option<Tip>, u64), FleetError> {
        let remembered: Option<Tip> = files::read(&self.tip_file())?.and_then(|text| serde_json::from_str(&text).ok());
        let Some(last) = self.bus().last(AUDIT, subject).await? else { return Ok((remembered, 0)) };
        let opened = audit::open(&stored(&last)).map_err(|reason| FleetError::Audit {
            reason: format!(
                "the last entry of the own chain is not to be believed: {reason}; see `steward audit verify`"
            ),
        })?;
        let tip = Tip::of(&opened.entry, &last.payload);
        Ok((Some(remembered.filter(|ours| ours.seq > tip.seq).unwrap_or(tip)), last.sequence))
    }

    fn tip_file(&self) -> std::path::PathBuf {
        self.context().home().dir().join("audit").join(format!("{}.json", self.key()))
    }

    async fn append(&self, end: &mut Option<(Option<Tip>, u64)>, acts: Vec<Act>) -> Result<(), FleetError> {
        let name = self.signing_operator()?;
        let subject = audit::subject(&name, &self.key(), OPERATOR_CHAIN);
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..CONFLICTS_MAX {
            let (tip, revision) = match end.take() {
                Some(end) => end,
                None => self.end(&subject).await?,
            };
            let home = self.context().home();
            let begins = if tip.is_none() { beginning::of(&home, &self.key())? } else { vec![] };
            let begun = !begins.is_empty();
            let acts = begins.into_iter().chain(acts.iter().cloned()).collect();
            let entry = Entry::after(tip.as_ref(), (&name, OPERATOR_CHAIN), self.now(), acts);
            let bytes = entry.to_bytes().map_err(|error| FleetError::Audit { reason: error.to_string() })?;
            let seal: Seal = self.seal(&bytes)?;
            let tip = Tip::of(&entry, &bytes);
            let headers =
                Headers::new().sealed(&seal).with_id(&clock::message_id().to_string()).expecting_last(revision);
            let bytes = Bytes::from(bytes);
            match retrying(deadline, || self.bus().publish(&subject, headers.clone(), bytes.clone())).await {
                Ok(stored) => {
                    let text = serde_json::to_string(&tip).map_err(|error| FleetError::signing(&error))?;
                    // Where there is no home, the broker alone remembers. Each order waits for this: not for the disk, too.
                    if let Err(error) = files::note(&self.tip_file(), &text) {
                        tracing::debug!(%error, "the end of the own chain in the audit log is not kept");
                    }
                    if begun {
                        beginning::told(&home);
                    }
                    *end = Some((Some(tip), stored.sequence));
                    return Ok(());
                }
                Err(BusError::Conflict { .. }) => {
                    tokio::time::sleep(std::time::Duration::from_millis(clock::jitter(10))).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(BusError::Conflict { what: "the audit log".into() }.into())
    }

    /// Reads the log from `start` on.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked.
    pub async fn audit_log(&self, start: Start) -> Result<AuditLog, FleetError> {
        let mut scan = Scan::open(self.bus(), AUDIT, &[], start).await?;
        let mut all = Vec::new();
        while let Some(message) = scan.next().await? {
            all.push(stored(&message));
        }
        let (records, _) = self.bus().kv_all(bus::kv::NODES, "*").await?;
        let nodes = records.iter().filter_map(|written| self.believe(written).ok());
        let nodes = nodes.map(|record| (record.name, record.key)).collect();
        let (mut heads, seen) = seen(&self.context().home())?;
        let own = files::read(&self.tip_file())?.and_then(|text| serde_json::from_str::<Tip>(&text).ok());
        if let (Some(tip), Some(name)) = (own, self.operator()) {
            let subject = audit::subject(&name, &self.key(), OPERATOR_CHAIN);
            heads.push(Head { subject, seq: tip.seq, sha256: tip.sha256, told_by: "its writer's own home".into() });
        }
        heads.extend(self.ends_by_life_signs().await?);
        Ok(AuditLog { stored: all, trust: Trust::clone(&self.trust()), nodes, heads, seen })
    }

    /// Where nodes say that their chains end.
    async fn ends_by_life_signs(&self) -> Result<Vec<Head>, FleetError> {
        let (signs, _) = self.bus().kv_all(bus::kv::PRESENCE, "*").await?;
        let head = |written: &Message| {
            let seal = written.seal().ok()?;
            seal.verify(&written.payload).ok()?;
            let sign: message::LifeSign = serde_json::from_slice(&written.payload).ok()?;
            let (seq, sha256) = sign.audit?;
            let subject = audit::subject(sign.node.as_str(), &seal.key, &sign.instance.to_string());
            Some(Head { subject, seq, sha256, told_by: format!("the life sign of {}", sign.node) })
        };
        Ok(signs.iter().filter_map(head).collect())
    }
}
