//! `steward keys`: the keys that sign who is let in by the broker.

use bus::keys::Role;
use clap::Subcommand;
use fleet::KeyStanding;
use serde_json::json;

use crate::exit::{Exit, Usage};
use crate::render::paint::{Paint, tame};
use crate::render::table::{Cell, Table};
use crate::session::Session;

/// See and change the keys that sign who is let in by the broker.
///
/// Each role (node, operator, station, provisioner, system) has one, in --home. Whoever steals it can let himself in as anybody of
/// that role. `keys rotate` makes new ones, while users of both are let in, and gives everybody a new token over the wire;
/// `keys retire` takes the old ones out when all have it. Needs the fleet's keys in --home; nothing is stopped for it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steward keys ls\n  steward keys rotate && steward keys ls\n  steward keys retire --yes"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the keys, and who has not taken a token of the new one yet
    #[command(after_help = "Examples:\n  steward keys ls\n  steward keys ls -o json")]
    Ls,
    /// Make new keys, and give everybody a token of theirs
    ///
    /// Whoever is online has it within seconds, all others when they are back. The old keys go on to count until `steward keys
    /// retire`; until then, another rotation of the same role goes on with this one.
    #[command(after_help = "Examples:\n  steward keys rotate\n  steward keys rotate node")]
    Rotate {
        /// Of which roles [default: all]
        #[arg(value_name = "ROLE", value_parser = role)]
        roles: Vec<Role>,
    },
    /// Take the old keys out: nobody is let in any more whom they signed
    ///
    /// Asks if that would cut somebody off who has not taken his new token yet.
    #[command(
        after_help = "Examples:\n  steward keys rotate && steward keys retire --yes\n  steward keys retire node --yes"
    )]
    Retire {
        /// Of which roles [default: all]
        #[arg(value_name = "ROLE", value_parser = role)]
        roles: Vec<Role>,
        /// Yes, cut off those who have not taken their new token
        #[arg(long)]
        yes: bool,
    },
}

fn role(text: &str) -> Result<Role, String> {
    Role::named(text).ok_or_else(|| {
        let names: Vec<&str> = Role::ALL.into_iter().map(Role::as_str).collect();
        format!("{text:?} is no role: there are {}", names.join(", "))
    })
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let home = session.home()?;
    let fleet = session.connect().await?;
    let all = |roles: Vec<Role>| if roles.is_empty() { Role::ALL.to_vec() } else { roles };
    match args.verb {
        Verb::Ls => show(session, &fleet.key_standings(&home, &Role::ALL).await?)?,
        Verb::Rotate { roles } => {
            let standings = fleet.rotate_keys(&home, &all(roles)).await?;
            show(session, &standings)?;
            if !session.out.is_json() {
                let flags = session.flags_again();
                session.out.note(format!(
                    "Old keys count until `steward{flags} keys retire`; `steward{flags} keys ls` tells who has no new token yet. \
                     Back the keys up anew"
                ));
            }
        }
        Verb::Retire { roles, yes } => {
            let standings = fleet.retire_keys(&home, &all(roles), yes).await.map_err(|error| match error {
                fleet::FleetError::Usage { .. } => Usage::new(error.to_string()).into(),
                error => anyhow::Error::from(error),
            })?;
            if session.out.is_json() {
                session.out.json(&json!(standings.iter().map(object).collect::<Vec<_>>()))?;
            } else {
                let gone: usize = standings.iter().map(|standing| standing.old.len()).sum();
                session.out.note(format!("{gone} old keys count no more"));
            }
        }
    }
    Ok(Exit::Success)
}

fn object(standing: &KeyStanding) -> serde_json::Value {
    let without = standing.without.iter().map(|one| json!({"name": one.name, "key": one.key})).collect::<Vec<_>>();
    json!({
        "role": standing.role.as_str(), "key": standing.key, "old_keys": standing.old, "holders": standing.holders,
        "without_new_token": without,
    })
}

fn show(session: &mut Session, standings: &[KeyStanding]) -> anyhow::Result<()> {
    if session.out.is_json() {
        return session.out.json_list(&standings.iter().map(object).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["ROLE", "KEY", "STATE", "WITHOUT A NEW TOKEN"]);
    for standing in standings {
        let role = standing.role.as_str();
        let signs = Cell::painted("signs", Paint::Green);
        table.row([Cell::from(role), Cell::from(standing.key.clone()), signs, Cell::from("")]);
        for old in &standing.old {
            let names: Vec<String> = standing.without.iter().take(5).map(|one| tame(&one.name)).collect();
            let more = if standing.without.len() > names.len() { ", …" } else { "" };
            let without = match names.is_empty() {
                true => format!("nobody of {}", standing.holders),
                false => format!("{} of {}: {}{more}", standing.without.len(), standing.holders, names.join(", ")),
            };
            let state = Cell::painted("old, counts", Paint::Yellow);
            table.row([Cell::from(role), Cell::from(old.clone()), state, Cell::from(without)]);
        }
    }
    let colors = session.out.colors();
    table.lines(colors).into_iter().try_for_each(|line| session.out.line(line))
}
