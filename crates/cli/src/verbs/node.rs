//! `steward node`: the fleet, and who belongs to it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bus::keys::FleetKeys;
use clap::Subcommand;
use message::NodeName;
use serde_json::{Value, json};

use crate::exit::{Exit, Usage};
use crate::render::node as text;
use crate::render::paint::tame;
use crate::session::Session;
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
    #[command(after_help = "Examples:\n  steward node ls\n  steward node ls -o json")]
    Ls,
    /// Show all that is known of a node
    #[command(after_help = "Example:\n  steward node show \"$(hostname -s)\"")]
    Show {
        /// The node
        #[arg(value_name = "NODE")]
        name: NodeName,
    },
    /// Set labels of a node (`site=oslo`), and remove them (`site-`)
    #[command(
        after_help = "Examples:\n  steward node label \"$(hostname -s)\" site=oslo role=test\n  steward node label \"$(hostname -s)\" role-"
    )]
    Label {
        /// The node
        #[arg(value_name = "NODE")]
        name: NodeName,
        /// What to set or remove
        #[arg(value_name = "K=V|K-", required = true)]
        changes: Vec<String>,
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
        Verb::Ls => ls(session).await,
        Verb::Show { name } => show(session, &name).await,
        Verb::Label { name, changes } => label(session, &name, &changes).await,
        Verb::Enroll { name, out, creds_out } => enroll(session, &name, out.as_deref(), creds_out.as_deref()).await,
        Verb::Revoke { name, yes } => revoke(session, &name, yes).await,
        Verb::Rotate { name, out } => rotate(session, &name, out.as_deref()).await,
        Verb::Rm { name, yes } => rm(session, &name, yes).await,
    }?;
    Ok(Exit::Success)
}

async fn ls(session: &mut Session) -> anyhow::Result<()> {
    let (fleet, home) = (session.connect().await?, session.home()?);
    let (view, door) = tokio::try_join!(fleet.nodes(), fleet.door(&home))?;
    let pending = admission::outside(door.pending, &view.nodes);
    view.notes.iter().chain(&door.notes).for_each(|note| session.out.note(tame(note)));
    if session.out.is_json() {
        let nodes = view.nodes.iter().map(fleet::Node::to_json);
        let nodes: Vec<Value> = nodes.chain(pending.iter().map(fleet::Pending::to_json)).collect();
        return session.out.json_list(&nodes);
    }
    let mut table = text::table(&view.nodes);
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
    let node = session.connect().await?.node(name).await?;
    if session.out.is_json() {
        return session.out.json(&node.to_json());
    }
    let colors = session.out.colors();
    text::page(&node, colors).into_iter().try_for_each(|line| session.out.line(line))
}

async fn label(session: &mut Session, name: &NodeName, changes: &[String]) -> anyhow::Result<()> {
    let (set, remove) = label_changes(changes)?;
    let record = session.connect().await?.label(name, &set, &remove).await?;
    if session.out.is_json() {
        return session.out.json(&json!({"name": record.name, "labels": record.labels}));
    }
    session.out.note(format!(
        "{name} is labelled {}",
        match text::labels(&record.labels) {
            none if none.is_empty() => "not at all".to_owned(),
            labels => labels,
        }
    ));
    Ok(())
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
