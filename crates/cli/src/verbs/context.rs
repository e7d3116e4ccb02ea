//! `steward context`: which fleet is meant, and as whom.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use fleet::{Context, OperatorBundle};
use serde_json::json;

use crate::exit::Exit;
use crate::render::paint::Paint;
use crate::render::table::{Cell, Table};
use crate::session::{Session, shell_word};

/// See and choose which fleet is meant, and as whom.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steward context ls\n  steward context show -o json\n  steward context use default"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the contexts of --home
    #[command(after_help = "Example:\n  steward context ls")]
    Ls,
    /// Make a context the current one
    #[command(after_help = "Example:\n  steward context use default")]
    Use {
        /// Its name
        name: String,
    },
    /// Make a context of what `steward operator add NAME --out FILE` wrote
    ///
    /// Keys and list of operators go below --home. The file is a secret: delete it afterwards.
    #[command(
        after_help = "Example:\n  steward operator add anna --out anna.operator && steward context import anna.operator --home ./anna"
    )]
    Import {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The name of the context [default: the operator's]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Take the private key out of the credentials of the context in use: a command prints it from now on
    ///
    /// For secret stores and hardware tokens. The command prints the seed (SU…) on one line, within 30 s; it may ask at the
    /// terminal. Once it has given the right key, the seed is taken out of the file, where the token stays.
    #[command(
        after_help = "Examples:\n  steward context key -- pass show steward/admin\n  steward context key --print-command"
    )]
    Key {
        /// Show which command prints the key now
        #[arg(long, conflicts_with = "command")]
        print_command: bool,
        /// The command
        #[arg(last = true, value_name = "CMD", required_unless_present = "print_command")]
        command: Vec<String>,
    },
    /// Show the context in use, with what the flags override
    ///
    /// `creds` is a file that the `nats` CLI and any NATS client take.
    #[command(after_help = "Examples:\n  steward context show\n  steward context show -o json")]
    Show,
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Ls => ls(session)?,
        Verb::Use { name } => {
            Context::select(&session.home()?, &name)?;
            if session.out.is_json() {
                session.out.json(&json!({"name": name}))?;
            } else {
                session.out.note(format!("{name} is the current context"));
            }
        }
        Verb::Import { file, name } => import(session, &file, name.as_deref())?,
        Verb::Key { print_command, command } => key(session, print_command, &command).await?,
        Verb::Show => show(session)?,
    }
    Ok(Exit::Success)
}

fn ls(session: &mut Session) -> anyhow::Result<()> {
    let home = session.home()?;
    let current = Context::current_name(&home)?;
    let mut table = Table::new(&["", "NAME", "SERVER", "OPERATOR"]);
    let mut rows = Vec::new();
    for name in Context::list(&home)? {
        let mark = if name == current { "*" } else { "" };
        // One that cannot be read is still listed: `context show` tells what is wrong with it.
        let loaded = Context::load(&home, Some(&name));
        let (server, operator) = match &loaded {
            Ok(context) => (context.server.as_str(), context.operator.as_str()),
            Err(_) => ("(cannot be read)", ""),
        };
        rows.push(
            json!({"name": name, "current": name == current, "server": loaded.as_ref().ok().map(|c| c.server.clone())}),
        );
        table.row([
            Cell::painted(mark, Paint::Green),
            Cell::from(name.clone()),
            Cell::from(server),
            Cell::from(operator),
        ]);
    }
    if session.out.is_json() {
        return session.out.json_list(&rows);
    }
    if rows.is_empty() {
        session.out.note(format!(
            "no contexts in {}; `steward up` makes a fleet and its context",
            home.contexts_dir().display()
        ));
        return Ok(());
    }
    let colors = session.out.colors();
    table.lines(colors).into_iter().try_for_each(|line| session.out.line(line))
}

fn import(session: &mut Session, file: &Path, name: Option<&str>) -> anyhow::Result<()> {
    let home = session.home()?;
    let first = Context::list(&home)?.is_empty();
    let context = OperatorBundle::load(file)?.install(&home, name)?;
    if first {
        Context::select(&home, &context.name)?;
    }
    if session.out.is_json() {
        return session.out.json(&context.to_json());
    }
    session.out.note(format!(
        "the context {} orders as {}; {} can be deleted",
        context.name,
        context.operator,
        file.display()
    ));
    Ok(())
}

async fn key(session: &mut Session, print_command: bool, command: &[String]) -> anyhow::Result<()> {
    let mut context = Context::load(&session.home()?, session.global.context.as_deref())?;
    if print_command {
        if session.out.is_json() {
            return session.out.json(&json!({"name": context.name, "key_command": context.key_command}));
        }
        return match &context.key_command {
            Some(command) => {
                session.out.line(command.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" "))
            }
            None => {
                session.out.note(format!("the key of {} is in {}", context.name, context.creds.display()));
                Ok(())
            }
        };
    }
    context.take_key_from(command).await?;
    if session.out.is_json() {
        return session.out.json(&context.to_json());
    }
    session.out.note(format!(
        "`{}` prints the key of {} from now on; {} holds none any more",
        command[0],
        context.name,
        context.creds.display()
    ));
    Ok(())
}

fn show(session: &mut Session) -> anyhow::Result<()> {
    let context = session.context()?;
    if session.out.is_json() {
        return session.out.json(&context.to_json());
    }
    let fields = [
        ("name", context.name.clone()),
        ("server", context.server.clone()),
        ("creds", context.creds.display().to_string()),
        ("home", context.home.display().to_string()),
        ("node", context.node.to_string()),
        ("operator", context.operator.clone()),
    ];
    let colors = session.out.colors();
    fields.into_iter().try_for_each(|(name, value)| {
        session.out.line(format!("{} {value}", Paint::Bold.on(&format!("{name:<9}"), colors)))
    })
}
