//! `steward node token`, `accept`, `reject`: units that enrol themselves.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use fleet::{Answered, Door, Knockers, NewToken, Node, Pending};
use message::admission::{fingerprint, short};
use message::{Knock, NodeState, Pattern, Timestamp, TokenRecord};
use serde_json::{Value, json};

use crate::args::{duration, key_value};
use crate::exit::Exit;
use crate::render::node::labels;
use crate::render::paint::{Paint, tame};
use crate::render::table::{Cell, Table};
use crate::render::time;
use crate::session::Session;
use crate::verbs::node::write_secret;
use crate::verbs::policy::agree;

/// More than so many who wait are not listed one by one as complaints.
const COMPLAINTS_MAX: usize = 20;

/// What a new token is to be good for, or what is to be done with those that there are. Its help stands at `node`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        steward node token --uses 50 --expires 7d --label site=oslo --out fleet.token\n  \
        steward node token > one.token\n  \
        steward node token ls"
)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    verb: Option<TokenVerb>,

    /// How many units may be accepted by it
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,

    /// For how long it is good, at most 90d
    #[arg(long, value_name = "DUR", default_value = "1d", value_parser = duration)]
    expires: Duration,

    /// Label the units that come by it
    #[arg(long, value_name = "K=V", value_parser = key_value)]
    label: Vec<(String, String)>,

    /// Where to write it [default: stdout]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// List the tokens, and what each is still good for
    #[command(after_help = "Example:\n  steward node token ls")]
    Ls,
    /// End a token: nobody knocks with it or comes in by it any more
    ///
    /// Needs the fleet's keys in --home. Units that were accepted by it stay what they are.
    #[command(
        after_help = "Example:\n  steward node token revoke \"$(steward -o json node token ls | grep -om1 '[0-9a-f]\\{32\\}')\""
    )]
    Revoke {
        /// Its id, or how that begins
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// Who is meant of those who wait.
#[derive(Debug, clap::Args)]
struct Who {
    /// Which units: a name, a glob ('ship*'), or several of them with commas between
    #[arg(value_name = "TARGET")]
    target: Option<String>,

    /// All that wait
    #[arg(long)]
    all: bool,

    /// The one with this key, of several with one name
    #[arg(long, value_name = "FINGERPRINT")]
    fingerprint: Option<String>,

    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Who {
    fn meant(&self) -> anyhow::Result<Knockers> {
        let patterns = self.target.as_deref().map(Pattern::parse_list).transpose()?.unwrap_or_default();
        Ok(Knockers { patterns, all: self.all, fingerprint: self.fingerprint.clone() })
    }
}

/// Whom to let in.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    steward node token --out ship7.token && (steward agent --token ship7.token --name ship7 --state ./ship7 & sleep 3; \
    steward node accept ship7 --yes)\n  \
    steward node accept 'ship*' --yes                              all of that name that wait\n  \
    steward node accept ship7 --fingerprint ABCD-EFGH-IJKL-MNOP    the one with that key")]
pub(crate) struct AcceptArgs {
    #[command(flatten)]
    who: Who,
}

/// Whom to send away.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  steward node reject ship7 --yes")]
pub(crate) struct RejectArgs {
    #[command(flatten)]
    who: Who,
}

pub(crate) async fn token(args: TokenArgs, session: &mut Session) -> anyhow::Result<Exit> {
    match &args.verb {
        Some(TokenVerb::Ls) => list(session).await,
        Some(TokenVerb::Revoke { id }) => revoke(session, id).await,
        None => make(session, args).await,
    }
}

async fn make(session: &mut Session, args: TokenArgs) -> anyhow::Result<Exit> {
    if let Some(path) = &args.out {
        anyhow::ensure!(!path.exists(), "{} is there already: choose another file, or remove it", path.display());
    }
    let new = NewToken { uses: args.uses, lifetime: args.expires, labels: args.label.into_iter().collect() };
    let token = session.connect().await?.make_token(&session.home()?, &new).await?;
    let text = token.to_text()?;
    if let Some(path) = &args.out {
        write_secret(path, &format!("{text}\n"))?;
    }
    if session.out.is_json() {
        let shown = args.out.is_none().then_some(&text);
        session.out.json(&json!({
            "id": token.id, "uses": new.uses, "expires": token.expires, "labels": new.labels, "token": shown, "out": args.out,
        }))?;
        return Ok(Exit::Success);
    }
    if args.out.is_none() {
        session.out.line(&text)?;
        session.out.flush()?;
    }
    let units = if new.uses == 1 { "one unit".to_owned() } else { format!("{} units", new.uses) };
    session.out.note(format!(
        "The token {} lets {units} in until {}, once you accept them. It is a secret: whoever has it can knock.",
        short(&token.id),
        time::local(token.expires)
    ));
    let file = args.out.as_deref().and_then(std::path::Path::file_name).map(|name| name.to_string_lossy().into_owned());
    session.out.note(format!(
        "Bring it to each unit and run there: steward agent --token {} --state /var/lib/steward",
        file.as_deref().unwrap_or("FILE")
    ));
    Ok(Exit::Success)
}

async fn list(session: &mut Session) -> anyhow::Result<Exit> {
    let fleet = session.connect().await?;
    let (tokens, notes) = fleet.tokens(&session.home()?).await?;
    let now = fleet.broker_now().await?;
    notes.iter().for_each(|note| session.out.note(tame(note)));
    if session.out.is_json() {
        let tokens: Vec<Value> = tokens.iter().map(|token| token_json(token, now)).collect();
        session.out.json_list(&tokens)?;
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&["TOKEN", "STATE", "USED", "EXPIRES", "BY", "LABELS"]);
    for token in &tokens {
        table.row([
            Cell::from(short(&token.id)),
            Cell::from(token_state(token, now).to_owned()),
            Cell::from(format!("{} of {}", token.used, token.uses)),
            Cell::from(time::local(token.expires)),
            Cell::from(tame(&token.by)),
            Cell::from(labels(&token.labels)),
        ]);
    }
    for line in table.lines(session.out.colors()) {
        session.out.line(line)?;
    }
    Ok(Exit::Success)
}

fn token_state(token: &TokenRecord, now: Timestamp) -> &'static str {
    if token.revoked.is_some() {
        "revoked"
    } else if now >= token.expires {
        "expired"
    } else if token.left(now).is_err() {
        "used up"
    } else {
        "open"
    }
}

fn token_json(token: &TokenRecord, now: Timestamp) -> Value {
    json!({
        "id": token.id, "state": token_state(token, now), "uses": token.uses, "used": token.used, "expires": token.expires,
        "created": token.created, "by": token.by, "labels": token.labels, "revoked": token.revoked,
    })
}

async fn revoke(session: &mut Session, id: &str) -> anyhow::Result<Exit> {
    let token = session.connect().await?.revoke_token(&session.home()?, id).await?;
    if session.out.is_json() {
        session.out.json(&json!({"id": token.id, "revoked": token.revoked}))?;
    } else {
        session.out.note(format!("The token {} lets nobody in any more.", short(&token.id)));
    }
    Ok(Exit::Success)
}

pub(crate) async fn accept(args: AcceptArgs, session: &mut Session) -> anyhow::Result<Exit> {
    let home = session.home()?;
    // What will be missing at the end is said at the beginning.
    drop(bus::keys::FleetKeys::open(home.dir())?);
    let fleet = session.connect().await?;
    let door = show(session, fleet.door(&home).await?, &args.who)?;
    if !args.who.yes {
        agree("Let them in?", "nobody was let in")?;
    }
    let answered = fleet.accept(&home, &door).await?;
    tell(session, &answered, "accepted")
}

pub(crate) async fn reject(args: RejectArgs, session: &mut Session) -> anyhow::Result<Exit> {
    let home = session.home()?;
    let fleet = session.connect().await?;
    let door = show(session, fleet.door(&home).await?, &args.who)?;
    if !args.who.yes {
        agree("Send them away?", "nobody was sent away")?;
    }
    let answered = fleet.reject(&home, &door).await?;
    tell(session, &answered, "rejected")
}

/// Who is meant, shown on stderr with the fingerprints.
fn show(session: &mut Session, door: Door, who: &Who) -> anyhow::Result<Door> {
    door.notes.iter().for_each(|note| session.out.note(tame(note)));
    let door = door.of(&who.meant()?)?;
    let mut table = Table::new(&["NAME", "FINGERPRINT", "KNOCKED", "TOKEN", "VERSION"]);
    for pending in &door.pending {
        table.row([
            Cell::from(pending.knock.name.to_string()),
            Cell::from(pending.fingerprint()),
            Cell::from(time::local(pending.since)),
            Cell::from(short(&pending.knock.token)),
            Cell::from(tame(&pending.knock.version)),
        ]);
    }
    table.lines(false).into_iter().for_each(|line| session.out.note(line));
    Ok(door)
}

fn tell(session: &mut Session, answered: &Answered, done: &str) -> anyhow::Result<Exit> {
    let unit = |knock: &Knock| json!({"name": knock.name, "fingerprint": fingerprint(&knock.key), "key": knock.key});
    if session.out.is_json() {
        let refused = answered.refused.iter().map(|(knock, reason)| {
            let mut refused = unit(knock);
            refused["reason"] = json!(reason);
            refused
        });
        session.out.json(&json!({
            done: answered.done.iter().map(unit).collect::<Vec<_>>(), "refused": refused.collect::<Vec<_>>(),
        }))?;
    } else {
        for (knock, reason) in &answered.refused {
            session.out.note(format!("{} ({}) was not let in: {}", knock.name, fingerprint(&knock.key), tame(reason)));
        }
        match answered.done.as_slice() {
            [] => session.out.note(format!("Nobody was {done}.")),
            [one] => session.out.note(format!("{} ({}) was {done}.", one.name, fingerprint(&one.key))),
            many => session.out.note(format!("{} units were {done}.", many.len())),
        }
    }
    Ok(if answered.refused.is_empty() { Exit::Success } else { Exit::TargetFailed })
}

/// Those who wait and are not in already: an acceptance may have broken off before the knock was taken away.
pub(crate) fn outside(mut pending: Vec<Pending>, nodes: &[Node]) -> Vec<Pending> {
    if !pending.is_empty() {
        let inside: std::collections::HashSet<_> =
            nodes.iter().map(|node| (&node.record.name, &node.record.key)).collect();
        pending.retain(|pending| !inside.contains(&(&pending.knock.name, &pending.knock.key)));
    }
    pending
}

/// The rows of those who wait, below those of the nodes.
pub(crate) fn add_pending(table: &mut Table, pending: &[Pending], now: Timestamp) {
    for pending in pending {
        table.row([
            Cell::from(pending.knock.name.to_string()),
            Cell::painted(NodeState::Pending.as_str(), Paint::of_node(NodeState::Pending)),
            Cell::from(time::ago(now.since(pending.since))),
            Cell::from(tame(&pending.knock.version)),
            Cell::from("-".to_owned()),
            Cell::from(String::new()),
        ]);
    }
}

/// What there is to say of those who wait.
pub(crate) fn complaints(pending: &[Pending]) -> Vec<String> {
    let one = |pending: &Pending| format!("{} is pending: {}", pending.knock.name, tame(&pending.reason()));
    let mut lines: Vec<String> = pending.iter().take(COMPLAINTS_MAX).map(one).collect();
    if !pending.is_empty() {
        let beyond = pending.len().saturating_sub(COMPLAINTS_MAX);
        let more = if beyond > 0 { format!(" ({beyond} more are not shown here)") } else { String::new() };
        lines.push(format!(
            "{} pending{more}: compare the fingerprints, then `steward node accept NAME` or `steward node reject NAME`",
            pending.len()
        ));
    }
    lines
}
