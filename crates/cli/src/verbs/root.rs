//! `steward root`: the key above all others, and who comes after it.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use fleet::{NewRoot, RootKey};
use message::PublicKey;
use serde_json::json;

use super::operator::{Root, public_key, root_key};
use crate::exit::{Exit, Usage};
use crate::render::time;
use crate::session::Session;

/// See who the fleet's root is, name its heir, and hand over.
///
/// The root signs who may order, and the policy. It hands over by its own word (`root rotate`), or, if its key is lost or
/// stolen, to the heir that it named while it was well (`root heir`): nodes that have heard who the heir is follow nobody
/// else. Whoever has heard of a new root believes nothing that the one before it signs. Nothing is stopped for it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steward root show\n  steward root heir --out heir.nk    and then take heir.nk to a safe place\n  \
    steward root rotate --yes"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Who is the root, who was, and who will be
    #[command(after_help = "Examples:\n  steward root show\n  steward root show -o json")]
    Show,
    /// Name the only key that can be the root after this one
    ///
    /// Do it while the root's key is well, and keep the heir's in another place: it alone takes over when the root's is lost or
    /// stolen. It cannot be taken back, and without the heir's key no other one can ever follow: keep it in two places.
    #[command(after_help = "Examples:\n  steward root heir --out heir.nk\n  \
        steward root heir --key OAFF…    one whose private half was made elsewhere")]
    Heir {
        /// Make a key, and write its private half here
        #[arg(long, value_name = "FILE", conflicts_with = "key", required_unless_present = "key")]
        out: Option<PathBuf>,
        /// A public key whose private half is kept elsewhere
        #[arg(long, value_name = "KEY", value_parser = public_key)]
        key: Option<PublicKey>,
        #[command(flatten)]
        root: Root,
    },
    /// Hand over to the heir, or to a new key
    ///
    /// With an heir, its key is all that is needed (--heir FILE). Without one, the root's own is: the new key takes its place in
    /// --home, or is written to --out. Nodes, operators and stations hear of it at once, or when they are back.
    #[command(after_help = "Examples:\n  steward root rotate --yes\n  steward root rotate --heir heir.nk --yes\n  \
        steward root rotate --root old.nk --out new.nk --yes")]
    Rotate {
        /// The private key of the heir
        #[arg(long, value_name = "FILE", conflicts_with = "out")]
        heir: Option<PathBuf>,
        /// Write the new key here instead of into --home
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Yes, what the present root signs shall count no more
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        root: Root,
    },
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Show => show(session).await,
        Verb::Heir { out, key, root } => heir(session, out.as_deref(), key, &root).await,
        Verb::Rotate { heir, out, yes, root } => rotate(session, heir.as_deref(), out.as_deref(), yes, &root).await,
    }?;
    Ok(Exit::Success)
}

async fn show(session: &mut Session) -> anyhow::Result<()> {
    let fleet = session.connect().await?;
    let (roots, serial) = (fleet.roots(), fleet.trust().serial);
    if session.out.is_json() {
        let links: Vec<_> = roots
            .accepted()
            .map(|link| json!({"number": link.number, "from": link.from, "to": link.to, "issued_at": link.issued}))
            .collect();
        return session.out.json(&json!({
            "fleet": roots.fleet(), "root": roots.root(), "heir": roots.heir(), "handovers": links, "serial": serial,
        }));
    }
    let heir = roots.heir().map_or_else(|| "nobody yet (`steward root heir`)".to_owned(), ToString::to_string);
    session.out.line(format!("root   {}", roots.root()))?;
    session.out.line(format!("heir   {heir}"))?;
    session.out.line(format!("fleet  {}", roots.fleet()))?;
    for link in roots.accepted() {
        session.out.line(format!(
            "       {} handed over to {} (signed {})",
            link.from,
            link.to,
            time::local(link.issued)
        ))?;
    }
    Ok(())
}

async fn heir(session: &mut Session, out: Option<&Path>, key: Option<PublicKey>, root: &Root) -> anyhow::Result<()> {
    let fleet = session.connect().await?;
    let root = root_key(&fleet, root)?;
    if let Some(named) = fleet.roots().heir().filter(|named| Some(*named) != key.as_ref()) {
        return Err(Usage::new(format!("{named} was named as the heir before, and that cannot be taken back")).into());
    }
    let heir = match (key, out) {
        (Some(key), _) => key,
        (None, Some(path)) => fleet::make_heir(path)?,
        (None, None) => return Err(Usage::new("whose key? Say --out FILE, or --key KEY").into()),
    };
    let serial = fleet.name_heir(&root, &heir).await?;
    if session.out.is_json() {
        return session.out.json(&json!({"heir": heir, "root": fleet.root(), "serial": serial, "key_file": out}));
    }
    session.out.note(format!("{heir} alone can be the root after {} (list {serial})", fleet.root()));
    if let Some(path) = out {
        session.out.note(format!(
            "Take {} away from here, to two safe places: without it, the root can never change",
            path.display()
        ));
    }
    Ok(())
}

async fn rotate(
    session: &mut Session,
    heir: Option<&Path>,
    out: Option<&Path>,
    yes: bool,
    root: &Root,
) -> anyhow::Result<()> {
    if !yes {
        return Err(Usage::new(
            "the root would be another key, and what the present one signs would count no more, for good: say so with \
             `steward root rotate --yes`",
        )
        .into());
    }
    let fleet = session.connect().await?;
    let before = fleet.root();
    let own = RootKey::find(&fleet.context().home(), root.root.as_deref(), &before);
    let (own, missing) = match own {
        Ok(own) => (Some(own), None),
        // The heir does without it.
        Err(error) if heir.is_some() => (None, Some(error)),
        Err(error) => return Err(error.into()),
    };
    if heir.is_none()
        && let Some(named) = fleet.roots().heir()
    {
        return Err(Usage::new(format!(
            "{named} was named as the heir, so that it alone can be the next root: bring its key, and name it with --heir FILE"
        ))
        .into());
    }
    let next = match (heir, out) {
        (Some(path), _) => NewRoot::from_file(path)?,
        (None, Some(path)) if path.exists() => NewRoot::from_file(path)?,
        (None, Some(path)) => {
            fleet::make_heir(path)?;
            NewRoot::from_file(path)?
        }
        (None, None) => NewRoot::at_home(&session.home()?)?,
    };
    let serial = match fleet.hand_over(own.as_ref(), &next).await {
        // It was the root's own key that was wanted.
        Err(fleet::FleetError::Usage { .. }) if missing.is_some() && fleet.roots().heir().is_none() => {
            return Err(missing.map_or_else(|| anyhow::anyhow!("no root"), Into::into));
        }
        other => other?,
    };
    let after = fleet.root();
    if session.out.is_json() {
        return session.out.json(&json!({"root": after, "before": before, "serial": serial}));
    }
    session.out.note(format!("{after} is the root; {before} counts no more wherever this was heard (list {serial})"));
    session.out.note("Name its heir with `steward root heir`, and back its key up");
    Ok(())
}
