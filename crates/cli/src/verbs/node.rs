//! `steward node`: the fleet, and who belongs to it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bus::keys::FleetKeys;
use clap::Subcommand;
use message::NodeName;
use serde_json::{Value, json};

use crate::args::{Format, Target, Traits};
use crate::exit::{Exit, Usage};
use crate::render::node as text;
use crate::render::paint::tame;
use crate::session::Session;
use crate::signals::StopSignals;
use crate::verbs::admission;

/// See and change who belongs to the fleet.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    steward node ls\n  \
    steward node label \"$(hostname -s)\" site=oslo\n  \
    steward node enroll ship2 --out ship2.bundle\n  \
    steward node token --uses 50 --expires 7d --out fleet.token")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the nodes of the fleet, and how each stands
    ///
    /// With --watch: again every two seconds, until Ctrl-C; with -o ndjson a line for each node that has changed.
    #[command(
        after_help = "Examples:\n  steward node ls\n  steward node ls -l 'site in (oslo,bergen)' -w '!online'\n  steward node ls -o wide\n  steward node ls -o json"
    )]
    Ls {
        /// Which nodes: a name, a glob ('ship*'), or several of them with commas between [default: all]
        #[arg(value_name = "TARGET")]
        target: Option<String>,
        #[command(flatten)]
        traits: Traits,
        /// Go on, and show what changes
        #[arg(long)]
        watch: bool,
    },
    /// Show all that is known of a node
    ///
    /// Also how long its last question to the broker took, how far its clock is off, and how it last stood.
    #[command(after_help = "Example:\n  steward node show \"$(hostname -s)\"")]
    Show {
        /// The node
        #[arg(value_name = "NODE")]
        name: NodeName,
    },
    /// Show how a node has stood: online, offline, degraded, and since when, the newest first
    ///
    /// By the broker's clock. What nobody observed is `unknown`. The last 64 changes of 90 days are kept. With -o json: the
    /// oldest first.
    #[command(after_help = "Example:\n  steward node history \"$(hostname -s)\" -o json")]
    History {
        /// The node
        #[arg(value_name = "NODE")]
        name: NodeName,
    },
    /// Set labels of nodes (`site=oslo`), and remove them (`site-`)
    ///
    /// A group is a label: `group-web=` puts nodes into it, `-l group-web` chooses them.
    #[command(
        override_usage = "steward node label TARGET K=V|K-…\n       steward node label -l LABELS K=V|K-…\n       steward node label --all K=V|K-…",
        after_help = "Examples:\n  steward node label \"$(hostname -s)\" site=oslo role=test\n  steward node label '*' role-\n  steward node label -l site=oslo -w 'online' group-web="
    )]
    Label {
        /// Which nodes (left out with -l, -w or --all), and what to set or remove
        #[arg(value_name = "TARGET K=V|K-", required = true)]
        words: Vec<String>,
        #[command(flatten)]
        traits: Traits,
        /// Every node of the fleet
        #[arg(long)]
        all: bool,
    },
    /// Admit a new node: make its bundle of keys, credentials and trust
    ///
    /// Needs the fleet's keys in --home. The bundle is a secret: whoever has it is that node. Bring it to the node and
    /// start it there with `steward agent --bundle FILE --state DIR`.
    #[command(
        after_help = "Examples:\n  steward node enroll ship2 --out ship2.bundle\n  steward node enroll ship3 --creds-out ship3.creds"
    )]
    Enroll {
        /// The new node
        #[arg(value_name = "NODE")]
        name: NodeName,
        /// Where to write the bundle
        #[arg(long, value_name = "FILE", required_unless_present = "creds_out")]
        out: Option<PathBuf>,
        /// Where to write its NATS credentials alone
        #[arg(long, value_name = "FILE")]
        creds_out: Option<PathBuf>,
    },
    /// Make a token with which units enrol themselves; list and end tokens
    ///
    /// Needs the fleet's keys in --home. Carry the token to the units and start them with `steward agent --token FILE`: each
    /// makes its own key, knocks, and waits until `steward node accept` lets it in. A token is a secret: whoever has it can
    /// knock, and nothing else. How many may be accepted by it, and until when, you sign; it is counted at each acceptance.
    Token(admission::TokenArgs),
    /// Let in units that have knocked with a token
    ///
    /// Needs the fleet's keys in --home. Compare the fingerprints with what the agents show. A name that a node has, or had
    /// until it was revoked, is not given away; of two units with one name neither comes in, unless --fingerprint says which.
    Accept(admission::AcceptArgs),
    /// Send away units that have knocked with a token: their keys do not come back
    ///
    /// The units are told, and end. One that was sent away by mistake knocks anew, with a new key, once `enrolment.json` is
    /// removed from its state directory.
    Reject(admission::RejectArgs),
    /// Throw a node out: the broker cuts it off at once, and nothing that it says counts any more
    ///
    /// Needs the fleet's keys in --home. Its name stays taken, and `node ls` shows it as revoked, until `steward node rm`.
    #[command(
        after_help = "Example:\n  steward node enroll ship9 --out ship9.bundle && steward node revoke ship9 --yes"
    )]
    Revoke {
        /// The node
        #[arg(value_name = "NODE")]
        name: NodeName,
        /// Yes, it shall be cut off
        #[arg(long)]
        yes: bool,
    },
    /// Give a node a new key under its old name, and cut the old one off
    ///
    /// Also brings a revoked unit back. Bring the new bundle to the unit and start its agent with it; until then it is away. For
    /// a node that runs in this home, the bundle is replaced: start its agent again. Orders that wait for the old key stay
    /// queued and are not run: order again.
    #[command(
        after_help = "Example:\n  steward node enroll ship8 --out ship8.bundle && steward node rotate ship8 --out ship8-new.bundle"
    )]
    Rotate {
        /// The node
        #[arg(value_name = "NODE")]
        name: NodeName,
        /// Where to write the new bundle
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Take a node off the list
    ///
    /// Its credentials go on to be valid at the broker: `steward node revoke` first, if they are not to be.
    #[command(after_help = "Example:\n  steward node rm ship9 --yes")]
    Rm {
        /// The node
        #[arg(value_name = "NODE")]
        name: NodeName,
        /// Yes, it shall be gone
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Token(args) => return admission::token(args, session).await,
        Verb::Accept(args) => return admission::accept(args, session).await,
        Verb::Reject(args) => return admission::reject(args, session).await,
        Verb::Ls { target, traits, watch } => {
            let selection = traits.and_named(target.as_deref())?;
            if watch { watch_list(session, &selection).await } else { Box::pin(ls(session, &selection)).await }
        }
        Verb::Show { name } => show(session, &name).await,
        Verb::History { name } => history(session, &name).await,
        Verb::Label { words, traits, all } => label(session, words, traits, all).await,
        Verb::Enroll { name, out, creds_out } => enroll(session, &name, out.as_deref(), creds_out.as_deref()).await,
        Verb::Revoke { name, yes } => revoke(session, &name, yes).await,
        Verb::Rotate { name, out } => rotate(session, &name, out.as_deref()).await,
        Verb::Rm { name, yes } => rm(session, &name, yes).await,
    }?;
    Ok(Exit::Success)
}

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Clears a terminal, and begins at its top.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

/// Whether facts are shown as well.
fn shows_facts(session: &Session) -> bool {
    session.out.is_json() || session.out.format() == Format::Wide
}

async fn watch_list(session: &mut Session, selection: &fleet::Selection) -> anyhow::Result<()> {
    let (json, facts) = (session.out.format() == Format::Ndjson, shows_facts(session));
    if !json && (session.out.is_json() || !session.out.is_terminal()) {
        return Err(Usage::new("--watch draws on a terminal; elsewhere it needs -o ndjson").into());
    }
    let fleet = session.connect().await?;
    let mut signals = StopSignals::new()?;
    let mut shown: BTreeMap<NodeName, Value> = BTreeMap::new();
    loop {
        let view = fleet.list(selection, facts).await?;
        if json {
            let mut now = BTreeMap::new();
            for node in &view.nodes {
                // That it was heard again is no change.
                let mut told = node.to_json();
                let seen = told["last_seen"].take();
                if shown.get(node.name()) != Some(&told) {
                    let mut line = told.clone();
                    line["last_seen"] = seen;
                    session.out.json_line(&line)?;
                }
                now.insert(node.name().clone(), told);
            }
            for gone in shown.keys().filter(|name| !now.contains_key(*name)) {
                session.out.json_line(&json!({"name": gone, "state": "gone"}))?;
            }
            shown = now;
        } else {
            session.out.bytes_later(CLEAR)?;
            for line in text::table(&view.nodes, session.out.format() == Format::Wide).lines(session.out.colors()) {
                session.out.line(line)?;
            }
            session.out.line(text::summary(&view.nodes))?;
        }
        session.out.flush()?;
        tokio::select! {
            () = signals.next() => return Ok(()),
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
    }
}

async fn ls(session: &mut Session, selection: &fleet::Selection) -> anyhow::Result<()> {
    let facts = shows_facts(session);
    let (fleet, home) = (session.connect().await?, session.home()?);
    let (view, door) = tokio::try_join!(fleet.list(selection, facts), fleet.door(&home))?;
    let mut pending = admission::outside(door.pending, &view.nodes);
    // Who is not in has neither labels nor facts.
    let by_name = selection.labels.is_none() && selection.condition.is_none();
    pending.retain(|one| {
        by_name
            && (selection.patterns.is_empty()
                || selection.patterns.iter().any(|pattern| pattern.matches(&one.knock.name)))
    });
    view.notes.iter().chain(&door.notes).for_each(|note| session.out.note(tame(note)));
    if session.out.is_json() {
        let nodes = view.nodes.iter().map(fleet::Node::to_json);
        let nodes: Vec<Value> = nodes.chain(pending.iter().map(fleet::Pending::to_json)).collect();
        return session.out.json_list(&nodes);
    }
    let mut table = text::table(&view.nodes, session.out.format() == Format::Wide);
    admission::add_pending(&mut table, &pending, view.at);
    for line in table.lines(session.out.colors()) {
        session.out.line(line)?;
    }
    session.out.flush()?;
    admission::complaints(&pending).into_iter().for_each(|line| session.out.note(line));
    text::complaints(&view.nodes).into_iter().for_each(|line| session.out.note(line));
    session.out.note(text::summary(&view.nodes));
    Ok(())
}

async fn show(session: &mut Session, name: &NodeName) -> anyhow::Result<()> {
    let fleet = session.connect().await?;
    let node = fleet.node(name).await?;
    let past = fleet.history(&node).await?;
    if session.out.is_json() {
        let mut told = node.to_json();
        told["history"] = past.to_json().into();
        return session.out.json(&told);
    }
    let colors = session.out.colors();
    text::page(&node, &past.spells, colors).into_iter().try_for_each(|line| session.out.line(line))
}

async fn history(session: &mut Session, name: &NodeName) -> anyhow::Result<()> {
    let fleet = session.connect().await?;
    let past = fleet.history(&fleet.node(name).await?).await?;
    past.notes.iter().for_each(|note| session.out.note(tame(note)));
    if session.out.is_json() {
        return session.out.json_list(&past.to_json());
    }
    text::history(&past.spells).lines(session.out.colors()).into_iter().try_for_each(|line| session.out.line(line))
}

async fn label(session: &mut Session, mut words: Vec<String>, traits: Traits, all: bool) -> anyhow::Result<()> {
    let is_change = |word: &String| word.contains('=') || word.ends_with('-');
    // Who is named first: a name may end with `-` as well, and without anything else that says who, it has to be one.
    let named =
        if (all || traits.are_said()) && words.first().is_some_and(is_change) { None } else { Some(words.remove(0)) };
    let target = Target { target: named, traits, all };
    let selection = target.selection("node label", " site=oslo")?;
    if words.is_empty() {
        return Err(Usage::new("which labels? `site=oslo` sets one, `site-` removes it").into());
    }
    let (set, remove) = label_changes(&words)?;
    let fleet = session.connect().await?;
    // A single name needs no look at the fleet, and may be that of a node that is no target.
    let one_name = match selection.patterns.as_slice() {
        [message::Pattern::Name(name)] if !target.traits.are_said() => Some(name.clone()),
        _ => None,
    };
    let names: Vec<NodeName> = match &one_name {
        Some(name) => vec![name.clone()],
        None => fleet.resolve(&selection).await?.nodes.into_iter().map(|node| node.record.name).collect(),
    };
    let mut labelled = Vec::new();
    for name in &names {
        // Chosen by labels and facts as they were a moment ago; each record is changed by compare-and-set for itself.
        let record = fleet.label(name, &set, &remove).await?;
        let told = match text::labels(&record.labels) {
            none if none.is_empty() => "not at all".to_owned(),
            labels => labels,
        };
        session.out.note(format!("{} is labelled {told}", record.name));
        labelled.push(json!({"name": record.name, "labels": record.labels}));
    }
    match labelled.as_slice() {
        [one] if session.out.is_json() && one_name.is_some() => session.out.json(one),
        all if session.out.is_json() => session.out.json_list(all),
        _ => Ok(()),
    }
}

pub(crate) type LabelChanges = (Vec<(String, String)>, Vec<String>);

pub(crate) fn label_changes(changes: &[String]) -> Result<LabelChanges, Usage> {
    let (mut set, mut remove): LabelChanges = Default::default();
    for change in changes {
        match (change.split_once('='), change.strip_suffix('-')) {
            (Some((key, value)), _) => set.push((key.to_owned(), value.to_owned())),
            (None, Some(key)) if !key.is_empty() => remove.push(key.to_owned()),
            _ => {
                return Err(Usage::new(format!(
                    "{change:?} is no change of a label: write site=oslo to set one, site- to remove it"
                )));
            }
        }
    }
    match set.iter().find(|(key, _)| remove.contains(key)) {
        Some((key, _)) => Err(Usage::new(format!("the label {key:?} cannot be set and removed at once"))),
        None => Ok((set, remove)),
    }
}

async fn enroll(
    session: &mut Session,
    name: &NodeName,
    out: Option<&Path>,
    creds_out: Option<&Path>,
) -> anyhow::Result<()> {
    // A key that could not be written is lost, and its name is taken: look before.
    for path in [out, creds_out].into_iter().flatten() {
        anyhow::ensure!(!path.exists(), "{} is there already: choose another file, or remove it", path.display());
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        anyhow::ensure!(dir.is_dir(), "there is no directory {} to write into", dir.display());
    }
    let keys = FleetKeys::open(session.home()?.dir())?;
    let fleet = session.connect().await?;
    let bundle = fleet::enroll(&keys, &fleet, name).await?;
    if let Some(path) = out {
        bundle.save(path)?;
    }
    if let Some(path) = creds_out {
        write_secret(path, &bundle.creds)?;
    }
    if session.out.is_json() {
        return session.out.json(&json!({"name": name, "server": bundle.server, "bundle": out, "creds": creds_out}));
    }
    session.out.note(format!("{name} is enrolled. What was written is a secret: whoever has it is {name}."));
    if let Some(path) = out {
        session.out.note(format!(
            "Bring it to that host and run there: steward agent --bundle {} --state /var/lib/steward",
            path.file_name().unwrap_or_default().to_string_lossy()
        ));
    }
    Ok(())
}

pub(crate) fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

async fn revoke(session: &mut Session, name: &NodeName, yes: bool) -> anyhow::Result<()> {
    if !yes {
        return Err(Usage::new(format!(
            "{name} would be cut off for good: only a new key brings the unit back. Say so with `steward node revoke {name} --yes`"
        ))
        .into());
    }
    let record = session.connect().await?.revoke(&session.home()?, name).await?;
    if session.out.is_json() {
        return session.out.json(&json!({"name": name, "key": record.key, "revoked": record.revoked}));
    }
    session.out.note(format!("{name} is cut off: its key {} counts no more", record.key));
    Ok(())
}

async fn rotate(session: &mut Session, name: &NodeName, out: Option<&Path>) -> anyhow::Result<()> {
    if let Some(path) = out {
        anyhow::ensure!(!path.exists(), "{} is there already: choose another file, or remove it", path.display());
    }
    let home = session.home()?;
    let keys = FleetKeys::open(home.dir())?;
    let fleet = session.connect().await?;
    let bundle = fleet::rotate(&home, &keys, &fleet, name, out).await?;
    if session.out.is_json() {
        return session.out.json(&json!({"name": name, "key": bundle.key()?, "bundle": out}));
    }
    session.out.note(format!("{name} has the new key {}; the old one counts no more", bundle.key()?));
    session.out.note(match out {
        Some(path) => format!(
            "Bring {} to that host, and start its agent with it on the state directory that it has. It is a secret.",
            path.display()
        ),
        None => format!("Start the agent of {name} again."),
    });
    Ok(())
}

async fn rm(session: &mut Session, name: &NodeName, yes: bool) -> anyhow::Result<()> {
    if !yes {
        return Err(Usage::new(format!(
            "{name} would be off the list, and get no more orders: say so with `steward node rm {name} --yes`"
        ))
        .into());
    }
    session.connect().await?.remove(name).await?;
    if session.out.is_json() {
        return session.out.json(&json!({"name": name, "removed": true}));
    }
    session.out.note(format!("{name} is off the list"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        let changes = ["site=oslo", "role-", "note=a=b", "empty="].map(str::to_owned);
        let (set, remove) = label_changes(&changes).unwrap();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(set, [pair("site", "oslo"), pair("note", "a=b"), pair("empty", "")]);
        assert_eq!(remove, ["role"]);
        assert!(label_changes(&["site".to_owned()]).is_err());
        assert!(label_changes(&["-".to_owned()]).is_err());
        assert!(label_changes(&["a=1".to_owned(), "a-".to_owned()]).is_err());
    }

    #[test]
    fn a_secret_is_for_its_owner_and_never_written_over() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.creds");
        write_secret(&path, "secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_secret(&path, "other").is_err());
    }
}
