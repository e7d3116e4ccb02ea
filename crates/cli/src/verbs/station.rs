//! `steward station`: the management station.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use fleet::Context;
use message::units::parse_duration;
use serde_json::json;
use station::access::{AccessError, Role, Tokens};
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Usage};
use crate::render::table::{Cell, Table};
use crate::render::time;
use crate::session::Session;
use crate::signals::StopSignals;
use crate::supervise::tie_to_parent;

/// Where the station listens when nobody said otherwise.
pub(crate) const HTTP_LISTEN: &str = "127.0.0.1:8420";
/// How long a service may take to end after it was asked to.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Run the management station: the fleet as a web page and an API, health and metrics.
///
/// Orders and answers do not pass through it: without it, `steward run` still works. Runs until Ctrl-C or SIGTERM.
///
/// On loopback anyone on this host may look, until the first token is made (`steward station token add`); from then on,
/// and everywhere else, only who has one.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  steward station\n  steward station --http-listen 127.0.0.1:0 --http-addr-file station.addr\n  \
        steward station --http-listen 0.0.0.0:8420 --http-cert hub.pem --http-key hub.key --http-name hub.example.org\n  \
        steward station token add anna"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,

    /// Where its web page is; port 0 picks a free one. Beyond loopback it needs a certificate
    #[arg(long, value_name = "ADDR:PORT", default_value = HTTP_LISTEN)]
    http_listen: SocketAddr,

    /// Serve HTTPS with this certificate (PEM, with its chain)
    #[arg(long, value_name = "FILE", requires = "http_key")]
    http_cert: Option<PathBuf>,

    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "http_cert")]
    http_key: Option<PathBuf>,

    /// A name by which browsers reach it; may be given several times
    #[arg(long, value_name = "HOST")]
    http_name: Vec<String>,

    /// Write the address where it listens to this file
    #[arg(long, value_name = "FILE")]
    http_addr_file: Option<PathBuf>,

    /// What it takes from the stream of events, and where that goes [default: station.toml in the home, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Args {
    /// Whether a station is to be run, and not something said about it.
    pub(crate) const fn runs(&self) -> bool {
        self.verb.is_none()
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say who may look at the page and the API
    #[command(subcommand, after_help = "Examples:\n  steward station token add anna\n  steward station token ls")]
    Token(TokenVerb),
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Make a token; it is shown here once, and never again
    ///
    /// With the first one, the station of this home asks everybody for a token, also on loopback. A token shows; it cannot
    /// order anything.
    #[command(after_help = "Examples:\n  steward station token add anna\n  \
        steward station token add grafana --role watch --expires 365d\n  \
        curl -H \"Authorization: Bearer $TOKEN\" http://127.0.0.1:8420/api/v1/nodes")]
    Add {
        /// Whose it is
        name: String,

        /// watch: how nodes and jobs stand; read: also facts, events and the output of commands
        #[arg(long, default_value = "read")]
        role: Role,

        /// When it ends, from now on; without it, never
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        expires: Option<Duration>,
    },

    /// List the tokens: whose, what for and until when, never the secrets
    #[command(after_help = "Example:\n  steward station token ls")]
    Ls,

    /// Take a token away: within a second it shows nothing more
    #[command(after_help = "Example:\n  steward station token rm anna")]
    Rm {
        /// Whose it is
        name: String,
    },
}

fn token(verb: &TokenVerb, session: &mut Session) -> anyhow::Result<Exit> {
    let tokens = tokens(&session.home()?);
    let now = bus::clock::now();
    let wrong = |error: AccessError| match error {
        AccessError::Usage(message) => anyhow::Error::from(Usage::new(message)),
        other => other.into(),
    };
    match verb {
        TokenVerb::Add { name, role, expires } => {
            let first = tokens.list()?.is_empty();
            let expires = expires.map(|lifetime| now.plus(lifetime));
            let secret = tokens.add(name, *role, now, expires).map_err(wrong)?;
            if session.out.is_json() {
                session.out.json(&json!({"name": name, "role": role, "expires": expires, "token": secret}))?;
                return Ok(Exit::Success);
            }
            session.out.line(&secret)?;
            session.out.flush()?;
            let until =
                expires.map_or_else(|| "until it is taken away".to_owned(), |at| format!("until {}", time::local(at)));
            session.out.note(format!("The token of {name} is good for `{role}` {until}. It is not shown again."));
            if first {
                session.out.note("It is the first: from now on the station shows nothing to those without one.");
            }
        }
        TokenVerb::Ls => {
            let list = tokens.list()?;
            if session.out.is_json() {
                let list = list.iter().map(|token| {
                    json!({"name": token.name, "role": token.role, "created": token.created, "expires": token.expires,
                        "ended": token.expires.is_some_and(|end| end <= now)})
                });
                session.out.json_list(&list.collect::<Vec<_>>())?;
                return Ok(Exit::Success);
            }
            if list.is_empty() {
                session.out.note("There is none: on loopback anyone on this host may look. `steward station token add NAME` makes one.");
                return Ok(Exit::Success);
            }
            let mut table = Table::new(&["NAME", "ROLE", "CREATED", "EXPIRES"]);
            for token in &list {
                let expires = match token.expires {
                    None => "never".to_owned(),
                    Some(end) if end <= now => "ended".to_owned(),
                    Some(end) => time::local(end),
                };
                table.row([
                    Cell::from(token.name.clone()),
                    Cell::from(token.role.to_string()),
                    Cell::from(time::local(token.created)),
                    Cell::from(expires),
                ]);
            }
            for line in table.lines(session.out.colors()) {
                session.out.line(line)?;
            }
        }
        TokenVerb::Rm { name } => {
            tokens.remove(name).map_err(wrong)?;
            if session.out.is_json() {
                session.out.json(&json!({"name": name, "removed": true}))?;
                return Ok(Exit::Success);
            }
            session.out.note(format!("The token of {name} shows nothing any more."));
            if tokens.list()?.is_empty() {
                session.out.note("It was the last: on loopback anyone on this host may look again.");
            }
        }
    }
    Ok(Exit::Success)
}

fn tokens(home: &fleet::Home) -> Tokens {
    Tokens::at(home.station_dir().join("tokens.json"))
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    if let Some(Verb::Token(verb)) = &args.verb {
        return token(verb, session);
    }
    tie_to_parent()?;
    let context = station_context(session)?;
    let home = context.home();
    let default = home.dir().join("station.toml");
    let config = match &args.config {
        Some(path) => station::Config::load(path).map_err(Usage::new)?,
        None if default.is_file() => station::Config::load(&default).map_err(Usage::new)?,
        None => station::Config::default(),
    };
    let options = station::Options {
        config,
        state_dir: home.dir().join("receive"),
        context,
        http_listen: args.http_listen,
        http_tls: args.http_cert.zip(args.http_key).map(|(certificate, key)| station::HttpTls { certificate, key }),
        http_names: args.http_name,
        tokens: tokens(&home),
        http_addr_file: args.http_addr_file,
    };
    let complaints = session.complaints.take();
    serve(|cancel| station::run(options, complaints, cancel)).await
}

/// The context in use, as the station: with its own credentials where the home has them.
fn station_context(session: &Session) -> anyhow::Result<Context> {
    let mut context = session.context()?;
    let own = context.home().station_creds();
    if session.global.creds.is_none() && own.exists() {
        context.creds = own;
    }
    Ok(context)
}

/// Runs a service until it ends or is asked to stop; one that does not stop then is left to its fate.
pub(crate) async fn serve<E: Into<anyhow::Error>, F: Future<Output = Result<(), E>>>(
    service: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<Exit> {
    let cancel = StopSignals::new()?.cancel();
    let mut running = std::pin::pin!(service(cancel.clone()));
    let ended = tokio::select! {
        ended = &mut running => ended,
        () = cancel.cancelled() => match tokio::time::timeout(STOP_MAX, running).await {
            Ok(ended) => ended,
            Err(_) => anyhow::bail!("it did not stop within {} s after it was asked to", STOP_MAX.as_secs()),
        },
    };
    ended.map_err(Into::into)?;
    Ok(Exit::Success)
}
