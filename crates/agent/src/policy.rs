//! The policy at this node: what of all that operators order may be done here. The last word, also while cut off.
//!
//! What flows in are policies from the bus and this node's own record with its labels, both believed by their signatures
//! alone; what flows out are decisions. A policy is on disk before it is in force, and a lower version never takes its place,
//! whoever offers it. What `agent.toml` says can only narrow what the policy allows. Nothing here runs anything.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bus::live::LiveStored;
use bus::{Bus, BusError, Message, clock, kv};
use journal::Entry;
use message::method::{APPROVE, CANCEL, STEWARD_DOMAIN};
use message::policy::{Asked, Command, DOCUMENT_BYTES_MAX, Decision, Glob, POLICY_KEY, Request, decide};
use message::{
    Addressee, Lineage, NodeRecord, Operator, Order, Policy, PublicKey, Seal, SealedDocument, Timestamp, WIRE_VERSION,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::counters::{self, Counters};
use crate::trust::Trusted;

/// The files below the state directory.
const POLICY_FILE: &str = "policy.json";
const RECORD_FILE: &str = "record.json";
/// Neither is a secret; who may see them, the directory says.
const FILE_MODE: u32 = 0o644;
/// The most bytes of a sealed policy: its document as a JSON text, in which each byte may take two, and the seal.
const SEALED_BYTES_MAX: usize = 2 * DOCUMENT_BYTES_MAX + 1024;
/// A whole fleet hears of a new policy at one moment, and must not ask for it at one moment.
const HINT_JITTER_MS: u64 = 200;
/// After a look that failed while the link stayed up.
const RETRY: Duration = Duration::from_secs(5);
/// Programs that `deny_shell` takes for a shell.
const SHELLS: [&str; 10] = ["sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "csh", "tcsh"];

/// What `agent.toml` takes away from what the policy allows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Narrowing {
    methods: Vec<Glob>,
    domains: Vec<Glob>,
    run_as: Option<String>,
    deny_shell: bool,
}

impl Narrowing {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            methods: config.allow_methods.clone(),
            domains: config.allow_domains.clone(),
            run_as: config.run_as.clone(),
            deny_shell: config.deny_shell,
        }
    }

    /// Why this node's own configuration refuses it, if it does. Taking back and approving are never refused.
    fn refuses(&self, order: &Order, asked: &Asked) -> Option<String> {
        if order.domain.as_str() == STEWARD_DOMAIN && [CANCEL, APPROVE].contains(&order.method.as_str()) {
            return None;
        }
        let meant = |globs: &[Glob], text: &str| globs.is_empty() || globs.iter().any(|glob| glob.matches(text));
        let list = |globs: &[Glob]| globs.iter().map(Glob::as_str).collect::<Vec<_>>().join(", ");
        if !meant(&self.methods, order.method.as_str()) {
            return Some(format!(
                "this node's agent.toml allows the methods {} only (allow_methods)",
                list(&self.methods)
            ));
        }
        if !meant(&self.domains, order.domain.as_str()) {
            return Some(format!(
                "this node's agent.toml allows the domains {} only (allow_domains)",
                list(&self.domains)
            ));
        }
        if self.deny_shell && is_shell(&asked.command) {
            return Some("this node's agent.toml denies shell lines, scripts and shells (deny_shell)".into());
        }
        if let (Some(only), Some(user)) = (&self.run_as, &asked.user)
            && only != user
        {
            return Some(format!("this node's agent.toml lets commands run as {only} only (run_as), not as {user}"));
        }
        None
    }
}

fn is_shell(command: &Command) -> bool {
    match command {
        Command::Line => true,
        Command::Argv { argv, .. } => argv.first().is_some_and(|program| {
            let name = program.rsplit('/').next().unwrap_or_default();
            SHELLS.contains(&name)
        }),
        Command::Nothing | Command::Method => false,
    }
}

/// What is in force.
#[derive(Debug, Default)]
struct InForce {
    policy: Option<Policy>,
    record: Option<NodeRecord>,
    /// That record as an operator has sealed it.
    sealed: Option<Arc<str>>,
}

/// The gate that every order has to pass.
pub(crate) struct Gate {
    me: Addressee,
    dir: PathBuf,
    trusted: Arc<Trusted>,
    counters: Arc<Counters>,
    narrowing: Narrowing,
    own_user: Option<String>,
    current: RwLock<Arc<InForce>>,
    /// What is wrong with what the bus offers.
    complaint: watch::Sender<Option<String>>,
    /// The version in force; moves when it changes.
    version: watch::Sender<u64>,
}

impl Gate {
    /// Begins with what is on disk, or came with the enrolment.
    ///
    /// # Errors
    /// A sentence, when there is something on disk that cannot be believed: without it, all would be allowed that it
    /// denies.
    pub(crate) fn open(
        (fleet, me): (PublicKey, Addressee),
        dir: &Path,
        enrolment: Option<&SealedDocument>,
        trusted: Arc<Trusted>,
        counters: Arc<Counters>,
        narrowing: Narrowing,
    ) -> Result<Self, String> {
        let path = dir.join(POLICY_FILE);
        let kept = read(&path)?
            .map(|text| {
                let sealed: SealedDocument = serde_json::from_str(&text).map_err(|error| error.to_string())?;
                Policy::open_kept(&sealed, &fleet).map_err(|error| error.to_string())
            })
            .transpose()
            .map_err(|reason| format!("the policy that is kept in {} cannot be used: {reason}", path.display()))?;
        // Who signed it was looked at when the node was enrolled, and may have been taken off the list since.
        let brought =
            enrolment.map(|sealed| Policy::open_kept(sealed, &fleet)).transpose().map_err(|error| error.to_string())?;
        let policy = match (kept, brought) {
            (Some(kept), Some(brought)) if brought.version > kept.version => Some(brought),
            (Some(kept), _) => Some(kept),
            (None, brought) => brought,
        };
        let record = read(&dir.join(RECORD_FILE))?.and_then(|text| {
            let sealed: SealedDocument = serde_json::from_str(&text).ok()?;
            let record = believe(sealed.open(&sealed.seal.key).ok()?.as_bytes(), &me).ok()?;
            Some((record, Arc::from(serde_json::to_string(&sealed).ok()?)))
        });
        let (record, sealed) = record.unzip();
        let own_user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten().map(|user| user.name);
        let version = policy.as_ref().map_or(0, |policy| policy.version);
        Ok(Self {
            me,
            dir: dir.to_owned(),
            trusted,
            counters,
            narrowing,
            own_user,
            current: RwLock::new(Arc::new(InForce { policy, record, sealed })),
            complaint: watch::channel(None).0,
            version: watch::channel(version).0,
        })
    }

    fn current(&self) -> Arc<InForce> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What this node shows to receivers that cannot look it up: its record as an operator has sealed it.
    pub(crate) fn introduction(&self) -> Option<Arc<str>> {
        self.current().sealed.clone()
    }

    /// The version in force; 0 for none. Moves when it changes.
    pub(crate) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// What is wrong with what the bus offers.
    pub(crate) fn complaint(&self) -> watch::Receiver<Option<String>> {
        self.complaint.subscribe()
    }

    /// Decides about an order that `key` has signed.
    pub(crate) fn decide(&self, order: &Order, key: Option<&PublicKey>, now: Timestamp) -> Decision {
        let trust = self.trusted.current();
        match key.map(|key| trust.operator(key)) {
            Some(Some(operator)) => self.decide_for(order, operator, now),
            Some(None) => denied("the one who signed it is not an operator of this fleet any more"),
            None => {
                denied("it was taken before this node knew of policies, and who signed it is not known: order it again")
            }
        }
    }

    /// How many operators have signed an order: the one who ordered, and those who approved it and may have it done themselves.
    pub(crate) fn signers(&self, order: &Order, entry: &Entry, now: Timestamp) -> usize {
        let approvers = entry.approvals.iter().filter(|key| Some(*key) != entry.by.as_ref());
        let distinct: BTreeSet<&PublicKey> =
            approvers.filter(|key| !self.decide(order, Some(key), now).is_denied()).collect();
        distinct.len() + 1
    }

    fn decide_for(&self, order: &Order, operator: &Operator, now: Timestamp) -> Decision {
        let asked = Asked::of(order.method.as_str(), &order.args);
        if let Some(reason) = self.narrowing.refuses(order, &asked) {
            return denied(&reason);
        }
        let current = self.current();
        let only_user = self.narrowing.run_as.as_deref();
        let Some(policy) = &current.policy else {
            let user = if asked.command == Command::Nothing { None } else { asked.user.or(only_user.map(Into::into)) };
            return Decision::Allowed { rule: "no policy is in force".into(), user };
        };
        let request = Request {
            operator: Some(&operator.name),
            roles: &operator.roles,
            node: &self.me.name,
            labels: current.record.as_ref().map(|record| &record.labels),
            method: order.method.as_str(),
            domain: order.domain.as_str(),
            asked: &asked,
            only_user,
            own_user: self.own_user.as_deref(),
            now,
        };
        decide(policy, &request)
    }

    /// Looks at what the bus has: the policy, and this node's record. Fails only where the bus cannot be asked.
    pub(crate) async fn refresh(&self, bus: &Bus) -> Result<(), BusError> {
        let (policy, record) =
            tokio::try_join!(bus.kv_get(kv::POLICY, POLICY_KEY), bus.kv_get(kv::NODES, self.me.name.as_str()))?;
        self.read(policy.as_ref(), record.as_ref()).await;
        Ok(())
    }

    /// Looks at what was read from the bus.
    pub(crate) async fn read(&self, policy: Option<&Message>, record: Option<&Message>) {
        let complaint = self.offer(policy).await.err();
        if let Some(complaint) = &complaint {
            tracing::warn!("{complaint}");
        }
        self.complaint.send_if_modified(|known| {
            let news = *known != complaint;
            *known = complaint;
            news
        });
        if let Some(record) = record {
            self.take_record(record).await;
        }
    }

    /// Takes a policy over if it is newer; an error says why what is offered is not what it should be.
    async fn offer(&self, offered: Option<&Message>) -> Result<(), String> {
        let current = self.current();
        let in_force = current.policy.as_ref().map_or(0, |policy| policy.version);
        let count = |word| self.counters.discard(word, offered.map(counters::sample));
        let Some(offered) = offered else {
            if in_force > 0 {
                count("policy_rollback");
                return Err(format!("the broker has no policy; version {in_force} stays in force here"));
            }
            return Ok(());
        };
        let refused = |reason: String| format!("the policy at the broker is refused: {reason}");
        let opened = open(&offered.payload, &self.trusted.roots(), &self.trusted.current());
        let (text, policy) = match opened {
            Ok(opened) => opened,
            Err(reason) => {
                count("policy_refused");
                return Err(refused(reason));
            }
        };
        if policy.version < in_force {
            count("policy_rollback");
            return Err(format!(
                "the broker offers version {} of the policy; version {in_force} stays in force here",
                policy.version
            ));
        }
        if policy.version == in_force {
            if current.policy.as_ref() != Some(&policy) {
                count("policy_refused");
                return Err(refused(format!("it is another one of the same version {in_force}")));
            }
            return Ok(());
        }
        let version = policy.version;
        keep(self.dir.join(POLICY_FILE), text, FILE_MODE).await.map_err(|error| {
            format!("version {version} of the policy cannot be kept: {error}; version {in_force} stays in force here")
        })?;
        self.change(|current| InForce {
            policy: Some(policy),
            record: current.record.clone(),
            sealed: current.sealed.clone(),
        });
        self.version.send_replace(version);
        tracing::info!(version, "a policy is in force");
        Ok(())
    }

    /// Takes this node's record over, if an operator signed it and it is not older than the one that is known.
    async fn take_record(&self, offered: &Message) {
        let trust = self.trusted.current();
        let believed = offered
            .signer()
            .map_err(|error| error.to_string())
            .and_then(|signer| {
                trust.operator(&signer).map(|_| signer).ok_or_else(|| "its signer is no operator".into())
            })
            .and_then(|_| believe(&offered.payload, &self.me));
        let record = match believed {
            Ok(record) => record,
            Err(reason) => {
                tracing::warn!(%reason, "this node's record at the broker is not believed");
                self.counters.discard("record_refused", Some(counters::sample(offered)));
                return;
            }
        };
        let known = self.current();
        match &known.record {
            Some(known) if *known == record => return,
            Some(known) if record.changed < known.changed => {
                tracing::warn!("the broker offers an older record of this node; the newer one stays in force");
                self.counters.discard("record_rollback", Some(counters::sample(offered)));
                return;
            }
            _ => {}
        }
        let (Ok(document), Some(seal)) = (String::from_utf8(offered.payload.to_vec()), seal_of(offered)) else {
            return;
        };
        let sealed = match serde_json::to_string(&SealedDocument { document, seal }) {
            Ok(text) => {
                let sealed = Arc::from(text.as_str());
                if let Err(error) = keep(self.dir.join(RECORD_FILE), text, FILE_MODE).await {
                    tracing::warn!(%error, "this node's record cannot be kept; it is read again at the next start");
                }
                Some(sealed)
            }
            Err(error) => {
                tracing::error!(%error, "this node's record cannot be written");
                None
            }
        };
        self.change(|current| InForce { policy: current.policy.clone(), record: Some(record), sealed });
        // Labels decide as well.
        self.version.send_modify(|_| {});
    }

    fn change(&self, next: impl FnOnce(&InForce) -> InForce) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(next(&current));
    }

    /// Looks at once when something is said to have changed. At each new link, intake looks before it takes anything.
    pub(crate) async fn watch(&self, bus: &Bus, cancel: CancellationToken) -> Result<(), BusError> {
        let subjects =
            [format!("core.KV.{}.{POLICY_KEY}", kv::POLICY), format!("core.KV.{}.{}", kv::NODES, self.me.name)];
        let mut hints = LiveStored::open(bus, &subjects).await?;
        let mut due = false;
        loop {
            let wait = if due { RETRY } else { Duration::from_secs(24 * 3600) };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                hint = hints.next() => if hint.is_none() { return Ok(()) },
                () = tokio::time::sleep(wait) => {}
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(Duration::from_millis(clock::jitter(HINT_JITTER_MS))) => {}
            }
            due = self
                .refresh(bus)
                .await
                .inspect_err(|error| tracing::debug!(%error, "the policy could not be read"))
                .is_err();
        }
    }
}

fn denied(reason: &str) -> Decision {
    Decision::Denied { rule: None, reason: reason.to_owned() }
}

/// The text and the policy in what a broker offers.
fn open(payload: &[u8], roots: &Lineage, trust: &message::Trust) -> Result<(String, Policy), String> {
    if payload.len() > SEALED_BYTES_MAX {
        return Err(format!("it has {} bytes", payload.len()));
    }
    let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
    let sealed: SealedDocument = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let policy = Policy::open(&sealed, roots, trust).map_err(|error| error.to_string())?;
    Ok((text.to_owned(), policy))
}

fn believe(payload: &[u8], me: &Addressee) -> Result<NodeRecord, String> {
    let record: NodeRecord = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    if record.v != WIRE_VERSION || record.name != me.name || record.key != me.key {
        return Err(format!("it is that of {} with the key {} in version {}", record.name, record.key, record.v));
    }
    Ok(record)
}

fn seal_of(message: &Message) -> Option<Seal> {
    message.seal().ok()
}

fn read(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    }
}

/// Puts `text` at `path`, whole or not at all, and on disk when this returns. Not on the thread that serves everything else.
pub(crate) async fn keep(path: PathBuf, text: String, mode: u32) -> io::Result<()> {
    let write = move || {
        let staging = path.with_extension("new");
        let _ = fs::remove_file(&staging); // of a run that died: its mode would stay
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&staging)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staging, &path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
}
