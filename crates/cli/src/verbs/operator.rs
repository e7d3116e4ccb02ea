//! `steward operator`: who may order.

use std::path::{Path, PathBuf};

use bus::keys::FleetKeys;
use clap::Subcommand;
use fleet::RootKey;
use message::{NameError, NodeName, PublicKey, SignatureError, Token};
use serde_json::json;

use crate::exit::{Exit, Usage};
use crate::render::paint::{Paint, tame};
use crate::render::table::{Cell, Table};
use crate::render::time;
use crate::session::Session;

/// See and change who may order.
///
/// Each operator signs with a key of his own. Nodes obey those on a list that the fleet's root has signed, and hear of a new
/// list at once. Changes need the fleet's keys in --home, and the root's.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steward operator ls\n  steward operator add anna --out anna.operator\n  \
    steward operator add bob && steward operator revoke bob --yes")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

/// Where the root's key is.
#[derive(Debug, clap::Args)]
pub(crate) struct Root {
    /// The root's private key, when it is kept elsewhere than in --home
    #[arg(long, value_name = "FILE", env = "STEWARD_ROOT", hide_env_values = true)]
    pub(crate) root: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List those who may order, and those who may no more
    #[command(after_help = "Examples:\n  steward operator ls\n  steward operator ls -o json")]
    Ls,
    /// Let somebody order: make a key, and put it on the list
    ///
    /// Without --out, the credentials and a context of that name come below --home. With it, all that he needs is written to
    /// one file, which is a secret; he makes a context of it with `steward context import FILE`.
    #[command(after_help = "Examples:\n  steward operator add anna --role ops --out anna.operator\n  \
        steward operator add bob && steward --context bob node ls")]
    Add {
        /// What he is called
        #[arg(value_name = "NAME")]
        name: NodeName,
        /// What he is in this fleet, for the policy to go by (repeatable) [default: admin]
        #[arg(long = "role", value_name = "ROLE", value_parser = role)]
        roles: Vec<Token>,
        /// Where to write what he needs
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// He may put policies in force, without the root's key
        #[arg(long)]
        signs_policies: bool,
        #[command(flatten)]
        root: Root,
    },
    /// Throw an operator out: the broker cuts him off at once, and nodes refuse what he has signed
    ///
    /// What he has ordered and has not begun anywhere is not begun. What he has signed about nodes is signed anew in your
    /// name: look at `steward node ls` afterwards.
    #[command(after_help = "Example:\n  steward operator add bob && steward operator revoke bob --yes")]
    Revoke {
        /// What he is called
        #[arg(value_name = "NAME")]
        name: String,
        /// Of several keys that go by his name, only this one
        #[arg(long, value_name = "KEY", value_parser = public_key)]
        key: Option<PublicKey>,
        /// Yes, he shall be cut off
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        root: Root,
    },
    /// Give an operator a new key, and throw out the old one
    ///
    /// Without --out, the credentials of his context below --home are replaced. What the old key has ordered and nobody has begun
    /// is not begun; with --keep-old it goes on to count until `steward operator revoke NAME --key KEY --yes`.
    #[command(after_help = "Examples:\n  steward operator rotate admin\n  \
        steward operator add bob && steward operator rotate bob --out bob.operator")]
    Rotate {
        /// What he is called
        #[arg(value_name = "NAME")]
        name: NodeName,
        /// Where to write what he needs
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Let the old key count until it is revoked
        #[arg(long)]
        keep_old: bool,
        #[command(flatten)]
        root: Root,
    },
}

pub(crate) fn public_key(text: &str) -> Result<PublicKey, SignatureError> {
    PublicKey::parse(text)
}

fn role(text: &str) -> Result<Token, NameError> {
    Token::role(text)
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Ls => ls(session).await,
        Verb::Add { name, roles, out, signs_policies, root } => {
            add(session, &name, (roles, signs_policies), out.as_deref(), &root).await
        }
        Verb::Revoke { name, key, yes, root } => revoke(session, &name, key.as_ref(), yes, &root).await,
        Verb::Rotate { name, out, keep_old, root } => rotate(session, &name, out.as_deref(), keep_old, &root).await,
    }?;
    Ok(Exit::Success)
}

async fn ls(session: &mut Session) -> anyhow::Result<()> {
    let trust = session.connect().await?.trust();
    let roles = |roles: &[Token]| roles.iter().map(ToString::to_string).collect::<Vec<_>>();
    let active = trust.operators.iter().filter(|operator| trust.operator(&operator.key).is_some());
    if session.out.is_json() {
        let active = active.map(
            |one| json!({"name": one.name, "key": one.key, "roles": roles(&one.roles), "state": "active", "revoked_at": null}),
        );
        let gone = trust.revoked.iter().map(
            |one| json!({"name": one.name, "key": one.key, "roles": [], "state": "revoked", "revoked_at": one.revoked}),
        );
        return session.out.json_list(&active.chain(gone).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["NAME", "STATE", "ROLES", "KEY"]);
    for one in active {
        let state = Cell::painted("active", Paint::Green);
        table.row([
            Cell::from(tame(&one.name)),
            state,
            Cell::from(roles(&one.roles).join(",")),
            Cell::from(one.key.to_string()),
        ]);
    }
    for one in &trust.revoked {
        let state = Cell::from(format!("revoked {}", time::local(one.revoked)));
        table.row([Cell::from(tame(&one.name)), state, Cell::from(""), Cell::from(one.key.to_string())]);
    }
    let colors = session.out.colors();
    table.lines(colors).into_iter().try_for_each(|line| session.out.line(line))
}

/// The key of who is the root as far as this fleet knows now.
pub(crate) fn root_key(fleet: &fleet::Fleet, root: &Root) -> anyhow::Result<RootKey> {
    Ok(RootKey::find(&fleet.context().home(), root.root.as_deref(), &fleet.root())?)
}

async fn add(
    session: &mut Session,
    name: &NodeName,
    (mut roles, signs_policies): (Vec<Token>, bool),
    out: Option<&Path>,
    root: &Root,
) -> anyhow::Result<()> {
    if roles.is_empty() {
        roles.push(Token::role(message::trust::ADMIN)?);
    }
    let home = session.home()?;
    match out {
        // A key that could not be written is lost, and its name is taken: look before.
        Some(path) => {
            anyhow::ensure!(!path.exists(), "{} is there already: choose another file, or remove it", path.display());
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            anyhow::ensure!(dir.is_dir(), "there is no directory {} to write into", dir.display());
        }
        None => anyhow::ensure!(
            !fleet::Context::list(&home)?.contains(&name.to_string()),
            "there is a context {name} already: choose another name, or write to a file with --out"
        ),
    }
    let fleet = session.connect().await?;
    let (root, keys) = (root_key(&fleet, root)?, FleetKeys::open(home.dir())?);
    let bundle = fleet.add_operator(&keys, &root, name, (&roles, signs_policies)).await?;
    let context = match out {
        Some(path) => bundle.save(path).map(|()| None)?,
        None => Some(bundle.install(&home, None)?),
    };
    if session.out.is_json() {
        let key = bus::claims::Creds::parse(&bundle.creds)?.token()?.sub;
        let creds = context.map(|context| context.creds);
        return session.out.json(&json!({"name": name, "key": key, "roles": roles, "bundle": out, "creds": creds}));
    }
    match out {
        Some(path) => session.out.note(format!(
            "{name} may order. What was written is a secret: whoever has it is {name}. He runs: steward context import {}",
            path.file_name().unwrap_or_default().to_string_lossy()
        )),
        None => {
            let flags = session.flags_again();
            session.out.note(format!("{name} may order: steward{flags} --context {name} …"));
        }
    }
    Ok(())
}

async fn revoke(
    session: &mut Session,
    name: &str,
    key: Option<&PublicKey>,
    yes: bool,
    root: &Root,
) -> anyhow::Result<()> {
    if !yes {
        return Err(Usage::new(format!(
            "{name} would be cut off, and what he has ordered and nobody has begun would not be done: say so with \
             `steward operator revoke {name} --yes`"
        ))
        .into());
    }
    let fleet = session.connect().await?;
    let root = root_key(&fleet, root)?;
    let gone = fleet.revoke_operator(&session.home()?, &root, name, key).await?;
    if session.out.is_json() {
        let told = json!({"name": name, "keys": gone.keys, "serial": gone.serial, "records_signed_anew": gone.records});
        return session.out.json(&told);
    }
    let keys: Vec<&str> = gone.keys.iter().map(PublicKey::as_str).collect();
    session.out.note(format!("{name} is cut off: {} counts no more (list {})", keys.join(", "), gone.serial));
    if gone.records > 0 {
        session.out.note(format!(
            "{} records of nodes that he had signed are signed by you now: see with `steward node ls` that they are right",
            gone.records
        ));
    }
    Ok(())
}

async fn rotate(
    session: &mut Session,
    name: &NodeName,
    out: Option<&Path>,
    keep_old: bool,
    root: &Root,
) -> anyhow::Result<()> {
    let home = session.home()?;
    let context = match out {
        Some(path) => {
            anyhow::ensure!(!path.exists(), "{} is there already: choose another file, or remove it", path.display());
            None
        }
        None => {
            let mut of_his = Vec::new();
            for context in fleet::Context::list(&home)? {
                let context = fleet::Context::load(&home, Some(&context))?;
                if context.operator == name.as_str() {
                    of_his.push(context);
                }
            }
            anyhow::ensure!(
                of_his.len() == 1,
                "{} has {} contexts of {name}, so that it is not clear where the new key goes: say --out FILE",
                home.dir().display(),
                of_his.len()
            );
            let context = of_his.pop();
            anyhow::ensure!(
                context.as_ref().is_none_or(|context| context.key_command.is_none()),
                "the key of {name} is kept where a command finds it: say --out FILE, and bring the new one there"
            );
            context
        }
    };
    let fleet = session.connect().await?;
    let (root, keys) = (root_key(&fleet, root)?, FleetKeys::open(home.dir())?);
    let (bundle, old) = fleet.renew_operator(&keys, &root, name).await?;
    match (out, &context) {
        (Some(path), _) => bundle.save(path)?,
        (None, Some(context)) => bundle.replace_creds(&context.creds)?,
        (None, None) => {}
    }
    if !keep_old {
        // Nobody throws himself out: with the new key, if the old one is that of this context.
        let by = match &context {
            Some(context) if fleet.key() == old => {
                let server = session.context()?.server;
                fleet::Fleet::connect(&fleet::Context { server, ..context.clone() }).await?
            }
            _ => fleet,
        };
        by.revoke_operator(&home, &root, name.as_str(), Some(&old)).await?;
    }
    let key = bus::claims::Creds::parse(&bundle.creds)?.token()?.sub;
    if session.out.is_json() {
        return session
            .out
            .json(&json!({"name": name, "key": key, "old_key": old, "old_key_counts": keep_old, "bundle": out}));
    }
    session.out.note(format!(
        "{name} signs with {key} from now on; {old} {}",
        if keep_old { "counts until it is revoked" } else { "counts no more" }
    ));
    Ok(())
}
