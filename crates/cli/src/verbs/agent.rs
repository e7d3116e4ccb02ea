//! `steward agent`: the edge unit.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use agent::knock::{Enrolled, KnockOptions};
use anyhow::Context as _;
use bus::keys::FleetKeys;
use fleet::{Bundle, Fleet, Home};
use message::admission::TOKEN_PREFIX;
use message::{EnrolToken, NodeName};

use super::station::serve;
use crate::args::host_node_name;
use crate::exit::{Exit, Usage};
use crate::session::Session;
use crate::supervise::tie_to_parent;

/// Where an agent keeps its journal on a host that is a node and nothing else.
const STATE_DIR: &str = "/var/lib/steward";

/// Run the edge unit: it takes orders, runs them, and reports.
///
/// On a host that holds the fleet's keys (a try-out) it enrols itself; everywhere else it needs the bundle that
/// `steward node enroll` made, or a token of `steward node token`: with that, it makes its own key, shows its fingerprint, and
/// waits until `steward node accept` lets it in; from then on it needs the token no more. Two agents on one state directory: the second refuses. Runs until Ctrl-C or SIGTERM.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    steward agent --name ship1                                     on a host with the fleet's keys\n  \
    steward node enroll ship2 --out ship2.bundle && steward agent --bundle ship2.bundle --state ./ship2\n  \
    steward node token --out ship7.token && steward agent --token ship7.token --name ship7 --state ./ship7")]
pub(crate) struct Args {
    /// The node's name [default: the bundle's or the configuration's, else this host's up to its first dot]
    #[arg(long, value_name = "NODE")]
    name: Option<NodeName>,

    /// What `steward node enroll` made
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,

    /// What `steward node token` made: a file, or the text itself (which others on this host can then see)
    #[arg(long, value_name = "FILE|TEXT", conflicts_with = "bundle")]
    token: Option<String>,

    /// Where its journal lies [default: /var/lib/steward, or nodes/NAME below --home]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    /// What it reports: an agent.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// End running commands when it is stopped, instead of leaving them to its keeper
    #[arg(long)]
    end_commands: bool,
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    tie_to_parent()?;
    let named = match (&args.name, &args.config) {
        (Some(name), _) => Some(name.clone()),
        (None, Some(path)) => agent::config::Config::load(path)?.name,
        (None, None) => None,
    };
    let keeper = keeper_launch(session)?;
    let complaints = session.complaints.take();
    let (config_file, end_commands) = (args.config.clone(), args.end_commands);
    let options = move |enrolled: Enrolled, state_dir: PathBuf| -> anyhow::Result<agent::Options> {
        Ok(agent::Options {
            name: enrolled.name,
            server: enrolled.server,
            ca: enrolled.ca.map(|pem| keep_ca(&state_dir, &pem, enrolled.client.as_deref())).transpose()?,
            credentials: enrolled.credentials,
            root: enrolled.root,
            trust: enrolled.trust,
            policy: enrolled.policy,
            state_dir,
            config_file,
            life_sign_interval: agent::LIFE_SIGN_INTERVAL,
            keeper,
            at_stop: if end_commands { agent::AtStop::EndCommands } else { agent::AtStop::LeaveCommands },
        })
    };
    if let Some(token) = &args.token {
        let (knock, state_dir) = with_token(session, token, named, args.state)?;
        return serve(|cancel| async move {
            let Some(enrolled) = agent::knock::knock(knock, cancel.clone()).await? else { return Ok(()) };
            anyhow::Ok(agent::run(options(enrolled, state_dir)?, complaints, cancel).await?)
        })
        .await;
    }
    let (enrolled, state_dir) = match &args.bundle {
        Some(path) => with_bundle(session, path, named.as_ref()).map(|(bundle, dir)| (enrolled(bundle), dir))?,
        None => match came_by_token(session, args.state.as_deref(), named.as_ref())? {
            Some(found) => found,
            None => enrolled_here(session, named).await.map(|(bundle, dir)| (enrolled(bundle), dir))?,
        },
    };
    let options = options(enrolled, args.state.unwrap_or(state_dir))?;
    serve(|cancel| agent::run(options, complaints, cancel)).await
}

fn enrolled(bundle: Bundle) -> Enrolled {
    Enrolled {
        name: bundle.name,
        server: bundle.server,
        ca: bundle.ca,
        client: bundle.client,
        credentials: bundle.creds,
        root: bundle.root,
        trust: bundle.trust,
        policy: bundle.policy,
    }
}

/// What is needed to knock with a token, which is the text of one or the name of a file.
fn with_token(
    session: &Session,
    token: &str,
    named: Option<NodeName>,
    state_dir: Option<PathBuf>,
) -> anyhow::Result<(KnockOptions, PathBuf)> {
    let text = if token.starts_with(TOKEN_PREFIX) {
        token.to_owned()
    } else {
        std::fs::read_to_string(token).map_err(|error| {
            Usage::new(format!(
                "{token} is neither a token nor a file of one ({error}); `steward node token --out FILE` makes one where the \
                 fleet's keys are"
            ))
        })?
    };
    let token = EnrolToken::parse(&text).map_err(|error| Usage::new(format!("the token cannot be used: {error}")))?;
    let state_dir = state_of(session, state_dir.as_deref(), named.as_ref())?;
    // A unit that came in under a name goes on under it.
    let held = agent::knock::enrolled(&state_dir)?.map(|enrolled| enrolled.name);
    let name = named.or(held).map_or_else(host_node_name, Ok)?;
    let ca = match &session.global.ca {
        Some(path) => Some(path.clone()),
        None => token.ca.as_ref().map(|pem| keep_ca(&state_dir, pem, token.client.as_deref())).transpose()?,
    };
    let server = session.global.server.clone();
    Ok((KnockOptions { token, name, server, ca, state_dir: state_dir.clone() }, state_dir))
}

/// What this unit was accepted as, if it came by a token.
fn came_by_token(
    session: &Session,
    state_dir: Option<&Path>,
    named: Option<&NodeName>,
) -> anyhow::Result<Option<(Enrolled, PathBuf)>> {
    let state_dir = state_of(session, state_dir, named)?;
    let Some(mut enrolled) = agent::knock::enrolled(&state_dir)? else { return Ok(None) };
    if let Some(name) = named.filter(|name| **name != enrolled.name) {
        return Err(Usage::new(format!(
            "{} is the state directory of {}, not of {name}: leave --name out, or name another one with --state",
            state_dir.display(),
            enrolled.name
        ))
        .into());
    }
    if let Some(server) = &session.global.server {
        enrolled.server.clone_from(server);
    }
    Ok(Some((enrolled, state_dir)))
}

fn state_of(session: &Session, state_dir: Option<&Path>, named: Option<&NodeName>) -> anyhow::Result<PathBuf> {
    Ok(match (state_dir, &session.global.home) {
        (Some(dir), _) => dir.to_owned(),
        (None, Some(_)) => session.home()?.node_dir(&named.cloned().map_or_else(host_node_name, Ok)?),
        (None, None) => PathBuf::from(STATE_DIR),
    })
}

/// Puts the authority's certificate where the connection finds it, and beside it the one that the broker may ask for.
fn keep_ca(state_dir: &Path, pem: &str, client: Option<&str>) -> anyhow::Result<PathBuf> {
    let ca = state_dir.join("ca.pem");
    keep(&ca, pem)?;
    if let Some(client) = client {
        keep(&bus::tls::client_file(&ca), client)?;
    }
    Ok(ca)
}

/// Puts a certificate of the bundle where the connection finds it: for its owner alone, since there may be a key beside it.
fn keep(path: &Path, pem: &str) -> anyhow::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|held| held == pem) {
        return Ok(());
    }
    let write = || {
        std::fs::create_dir_all(path.parent().unwrap_or(path))?;
        let staging = path.with_extension("new");
        let _ = std::fs::remove_file(&staging); // of a run that died
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staging)?;
        file.write_all(pem.as_bytes())?;
        std::fs::rename(&staging, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The keeper is this very program.
fn keeper_launch(session: &Session) -> anyhow::Result<keeper::Launch> {
    let program = std::env::current_exe().context("this program cannot find itself")?;
    let verbosity = std::iter::repeat_n("-v".into(), session.global.verbose.into());
    Ok(keeper::Launch { program, args: verbosity.chain(["keeper".into()]).collect() })
}

fn with_bundle(session: &Session, path: &Path, named: Option<&NodeName>) -> anyhow::Result<(Bundle, PathBuf)> {
    let mut bundle = Bundle::load(path)?;
    if let Some(name) = named.filter(|name| **name != bundle.name) {
        return Err(Usage::new(format!(
            "the bundle {} is that of {}, not of {name}: leave --name out, or take the other's bundle",
            path.display(),
            bundle.name
        ))
        .into());
    }
    if let Some(server) = &session.global.server {
        bundle.server.clone_from(server);
    }
    let state_dir = match &session.global.home {
        Some(_) => session.home()?.node_dir(&bundle.name),
        None => PathBuf::from(STATE_DIR),
    };
    Ok((bundle, state_dir))
}

/// The bundle that this home made for `name` before, or makes now.
async fn enrolled_here(session: &Session, named: Option<NodeName>) -> anyhow::Result<(Bundle, PathBuf)> {
    let name = match named {
        Some(name) => name,
        None => host_node_name()?,
    };
    let home = session.home()?;
    if !FleetKeys::exist(home.dir()) {
        return Err(Usage::new(format!(
            "{} holds no fleet's keys, so this agent cannot enrol itself: give it a bundle (`steward node enroll {name} \
             --out {name}.bundle` where the keys are, then `steward agent --bundle {name}.bundle` here), a token (`steward \
             node token` there, then `steward agent --token FILE` here), or point --home to the fleet",
            home.dir().display()
        ))
        .into());
    }
    let context = session.context()?;
    let mut bundle = match Fleet::connect(&context).await {
        Ok(fleet) => {
            let keys = FleetKeys::open(home.dir())?;
            let bundle = fleet::enroll_here(&home, &keys, &fleet, &name).await?;
            fleet.close().await;
            bundle
        }
        // It was here before: then it can start while the broker is away.
        Err(error) => kept_bundle(&home, &name).ok_or(error).with_context(|| format!("{name} cannot be enrolled"))?,
    };
    // Where the broker listens may have changed since.
    bundle.server.clone_from(&context.server);
    if let Some(ca) = &context.ca {
        bundle.ca = std::fs::read_to_string(ca).ok().or(bundle.ca);
    }
    Ok((bundle, home.node_dir(&name)))
}

fn kept_bundle(home: &Home, name: &NodeName) -> Option<Bundle> {
    let path = home.node_dir(name).join("bundle.json");
    let bundle = path.exists().then(|| Bundle::load(&path))?.ok()?;
    tracing::warn!("the broker is not there: {name} starts with what it was given before");
    Some(bundle)
}
