//! What can be said on the command line: the global flags, the verbs, and how single values are read.
//!
//! The doc comments here and in `verbs/` are the help. Every verb's help ends with examples that work as pasted on a
//! host where `steward up` runs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use message::{Expression, NodeName, Pattern, Selector, Token, units};

use crate::exit::Usage;
use crate::verbs;

/// Async management of edge-cloud units over NATS.
///
/// Orders are signed, stored and delivered when a node can be reached; every node says what became of them.
#[derive(Debug, Parser)]
#[command(
    name = "steward",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        steward up                          a whole system on this host, until Ctrl-C\n  \
        steward node ls                     who is there\n  \
        steward run --all -- uname -a       run a program on every node\n  \
        steward job show last               how the last job stands\n\n\
        `steward VERB --help` explains each verb."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Flags of every verb, before or after it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global flags")]
pub(crate) struct Global {
    /// Which context to use instead of the current one (`steward context ls`)
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,

    /// Where keys, contexts and local state live [default: ~/.steward]
    #[arg(long, global = true, value_name = "DIR", env = "STEWARD_HOME", hide_env_values = true)]
    pub(crate) home: Option<PathBuf>,

    /// The broker, instead of the context's
    #[arg(long, global = true, value_name = "URL", env = "NATS_URL", hide_env_values = true)]
    pub(crate) server: Option<String>,

    /// The authority that the broker's certificate must come from, a PEM file, instead of the context's. Beside FILE.pem,
    /// FILE.client.pem holds certificate and key of this client, for a broker that asks for them
    #[arg(long, global = true, value_name = "FILE", env = "NATS_CA", hide_env_values = true)]
    pub(crate) ca: Option<PathBuf>,

    /// A file of NATS credentials, instead of the context's
    #[arg(long, global = true, value_name = "FILE", env = "NATS_CREDS", hide_env_values = true)]
    pub(crate) creds: Option<PathBuf>,

    /// Server and credentials of a context of the `nats` command line, instead of the context's
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) nats_context: Option<String>,

    /// How to print: for people, as one JSON value, as one JSON value a line as things happen, as a plain table, or (`node ls`) as a wide one
    #[arg(
        short,
        long,
        global = true,
        value_name = "human|json|ndjson|table|wide",
        default_value = "human",
        hide_possible_values = true,
        hide_default_value = true
    )]
    pub(crate) output: Format,

    /// Print results and errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// Tell on stderr what happens; twice for more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,

    /// When to colour: by default on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        global = true,
        value_name = "auto|always|never",
        default_value = "auto",
        hide_possible_values = true,
        hide_default_value = true
    )]
    pub(crate) color: Color,

    /// How long one execution may take (`run`, `call`; default 60s); elsewhere how long the verb may take
    #[arg(long, global = true, value_name = "DUR", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Human,
    /// One JSON value
    Json,
    /// One JSON value a line, as things happen
    Ndjson,
    /// A plain table
    Table,
    /// A table with more columns, where there are more
    Wide,
}

impl Format {
    /// Whether stdout is for programs.
    pub(crate) const fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Ndjson)
    }
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Up(verbs::up::Args),
    Init(verbs::init::Args),
    Broker(verbs::broker::Args),
    Station(verbs::station::Args),
    Agent(verbs::agent::Args),
    #[command(hide = true)]
    Keeper(verbs::keeper::Args),
    Run(verbs::run::Args),
    Call(verbs::call::Args),
    Ping(verbs::ping::Args),
    Job(verbs::job::Args),
    Node(verbs::node::Args),
    Policy(verbs::policy::Args),
    Operator(verbs::operator::Args),
    Root(verbs::root::Args),
    Keys(verbs::keys::Args),
    Event(verbs::event::Args),
    Audit(verbs::audit::Args),
    Ps(verbs::ps::Args),
    Top(verbs::top::Args),
    Bench(verbs::bench::Args),
    Context(verbs::context::Args),
    Doctor(verbs::doctor::Args),
    Completions(verbs::completions::Args),
    Man(verbs::man::Args),
    Version(verbs::version::Args),
}

impl Verb {
    /// Whether it runs until it is stopped, so that its log is what a person sees of it.
    pub(crate) fn is_service(&self) -> bool {
        match self {
            Self::Station(args) => args.runs(),
            other => matches!(other, Self::Broker(_) | Self::Agent(_) | Self::Keeper(_)),
        }
    }
}

/// The command line of this process; what clap has to say about it instead is printed, with its exit code.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    parse_from(std::env::args_os()).map_err(|said| {
        // When even this cannot be printed, the code alone must do.
        let _ = said.print();
        ExitCode::from(u8::try_from(said.exit_code()).unwrap_or(2))
    })
}

fn parse_from(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut cli = Cli::try_parse_from(args)?;
    // An empty variable means what an unset one means.
    let global = &mut cli.global;
    global.home = global.home.take().filter(|path| !path.as_os_str().is_empty());
    global.ca = global.ca.take().filter(|path| !path.as_os_str().is_empty());
    global.creds = global.creds.take().filter(|path| !path.as_os_str().is_empty());
    global.server = global.server.take().filter(|url| !url.is_empty());
    Ok(cli)
}

/// The definition of the whole command line.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Which nodes, by what is known of them.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Traits {
    /// Only nodes with these labels, as in Kubernetes: 'site=oslo,tier in (a,b),!old'
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,

    /// Only nodes of which this holds: 'facts.memory.total > 4e9 && online' (`docs/targets.md` tells more)
    #[arg(short = 'w', long = "where", value_name = "EXPR", allow_hyphen_values = true)]
    pub(crate) condition: Option<String>,
}

impl Traits {
    /// Whether anything is said.
    pub(crate) const fn are_said(&self) -> bool {
        self.selector.is_some() || self.condition.is_some()
    }

    /// Who is meant, by this and by name.
    pub(crate) fn and_named(&self, target: Option<&str>) -> anyhow::Result<fleet::Selection> {
        Ok(fleet::Selection {
            patterns: target.map(Pattern::parse_list).transpose()?.unwrap_or_default(),
            labels: self.selector.as_deref().map(Selector::parse).transpose()?,
            condition: self.condition.as_deref().map(Expression::parse).transpose()?,
            all: false,
        })
    }
}

/// Which nodes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Target {
    /// Which nodes: a name, a glob ('ship*'), or several of them with commas between
    #[arg(value_name = "TARGET")]
    pub(crate) target: Option<String>,

    #[command(flatten)]
    pub(crate) traits: Traits,

    /// Every node of the fleet
    #[arg(long)]
    pub(crate) all: bool,
}

impl Target {
    /// Who is meant, or how to say it.
    pub(crate) fn selection(&self, verb: &str, rest: &str) -> anyhow::Result<fleet::Selection> {
        if self.target.is_none() && !self.all && !self.traits.are_said() {
            return Err(Usage::new(format!(
                "which nodes? Name them (`steward {verb} ship1{rest}`, `steward {verb} 'ship*'{rest}`), choose them by \
                 label (`steward {verb} -l site=oslo{rest}`), or say --all for every node of the fleet; `steward node \
                 ls` lists them"
            ))
            .into());
        }
        Ok(fleet::Selection { all: self.all, ..self.traits.and_named(self.target.as_deref())? })
    }
}

/// Nobody waits longer, and clocks can still add it up.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// `30s`, `5m`, `2h` …
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text) {
        Ok(duration) if duration > DURATION_MAX => Err(format!("{text} is longer than ten years (3650d)")),
        other => other.map_err(|error| error.to_string()),
    }
}

/// `64KiB`, `1MiB` …
pub(crate) fn size(text: &str) -> Result<u64, units::UnitError> {
    units::parse_size(text)
}

/// `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// `METHOD` or `METHOD/DOMAIN`.
pub(crate) fn method_domain(text: &str) -> anyhow::Result<(Token, Option<Token>)> {
    Ok(match text.split_once('/') {
        Some((method, domain)) => (Token::method(method)?, Some(Token::domain(domain)?)),
        None => (Token::method(text)?, None),
    })
}

/// `key=value…` as one JSON object: a value that is JSON is taken as such, anything else as text.
pub(crate) fn json_arguments(pairs: &[String]) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    let mut object = serde_json::Map::new();
    for pair in pairs {
        let (key, text) = key_value(pair).map_err(|said| {
            Usage::new(format!("{said}: arguments are written key=value, like url=http://localhost:8080/"))
        })?;
        let value = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
        if object.insert(key.clone(), value).is_some() {
            return Err(Usage::new(format!("{key:?} is given twice")).into());
        }
    }
    Ok(object)
}

/// The name of this host up to its first dot, as a node's name.
pub(crate) fn host_node_name() -> anyhow::Result<NodeName> {
    let host = nix::unistd::gethostname()
        .map_err(|error| Usage::new(format!("this host's name cannot be read ({error}): give one with --name")))?;
    node_name_of(&host.to_string_lossy())
}

/// Characters that no node name has become `-`; what is left must be a name.
fn node_name_of(host: &str) -> anyhow::Result<NodeName> {
    let short = host.split('.').next().unwrap_or_default();
    let fit: String = short.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    let fit: String = fit.trim_start_matches(['-', '_']).chars().take(message::name::LENGTH_MAX).collect();
    Ok(NodeName::new(fit).map_err(|error| {
        Usage::new(format!("no node can be named after this host, {host:?} ({error}): give a name with --name"))
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        parse_from(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_work_before_and_after_the_verb() {
        for line in ["steward -o json --home /x -vv node ls", "steward node ls -o json --home /x -vv"] {
            let global = parsed(line).unwrap().global;
            assert_eq!((global.output, global.verbose), (Format::Json, 2), "{line}");
            assert_eq!(global.home.unwrap(), PathBuf::from("/x"));
        }
    }

    #[test]
    fn what_stands_behind_two_dashes_is_the_command_untouched() {
        let Verb::Run(run) = parsed("steward run ship1 -o json -- ls -o --all -- x").unwrap().verb else { panic!() };
        assert_eq!(run.command, ["ls", "-o", "--all", "--", "x"]);
        assert_eq!(run.target.target.as_deref(), Some("ship1"));
        let Verb::Run(run) = parsed("steward run --all -- uptime").unwrap().verb else { panic!() };
        assert_eq!((run.target.target, run.command), (None, vec!["uptime".to_owned()]));
    }

    #[test]
    fn a_command_without_two_dashes_is_wrong_usage() {
        assert_eq!(parsed("steward run ship1 uptime").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn flags_of_later_issues_are_refused_rather_than_ignored() {
        for flag in ["--max-concurrency 2", "--batch 2", "--max-errors 2"] {
            let line = format!("steward run ship1 {flag} -- uptime");
            assert_eq!(parsed(&line).unwrap_err().exit_code(), 2, "{flag}");
        }
    }

    #[test]
    fn the_help_of_every_verb_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                let path = format!("{path} {}", sub.get_name());
                let help = sub.clone().render_long_help().to_string();
                assert!(help.contains("Example"), "{path} has no example:\n{help}");
                assert!(help.contains(&path), "{path}: its example does not show it");
                check(sub, &path);
            }
        }
        let mut command = command();
        command.build();
        check(&command, "steward");
    }

    #[test]
    fn arguments_are_json_if_they_are_and_text_if_not() {
        let pairs = ["n=5", "url=http://x/?a=b", "flag=true", "list=[1,2]", "text=\"5\"", "empty="].map(str::to_owned);
        let expected =
            serde_json::json!({"n": 5, "url": "http://x/?a=b", "flag": true, "list": [1, 2], "text": "5", "empty": ""});
        assert_eq!(serde_json::Value::Object(json_arguments(&pairs).unwrap()), expected);
        assert!(json_arguments(&["novalue".to_owned()]).is_err());
        assert!(json_arguments(&["a=1".to_owned(), "a=2".to_owned()]).is_err());
    }

    #[test]
    fn a_duration_that_no_clock_can_add_up_is_refused() {
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 24 * 60 * 60)));
        assert!(duration("18446744073709551615ms").is_err());
        assert_eq!(parsed("steward run ship1 --wait 9999999d -- x").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_method_may_name_its_domain() {
        let (method, domain) = method_domain("httpget/web").unwrap();
        assert_eq!((method.as_str(), domain.unwrap().as_str()), ("httpget", "web"));
        assert_eq!(method_domain("httpget").unwrap().1, None);
        assert!(method_domain("http.get").is_err());
    }

    #[test]
    fn a_host_gives_its_name_up_to_the_first_dot() {
        assert_eq!(node_name_of("ship1.fleet.example").unwrap().as_str(), "ship1");
        assert_eq!(node_name_of("schön").unwrap().as_str(), "sch-n");
        assert_eq!(node_name_of("_x").unwrap().as_str(), "x");
        for bad in ["", ".x", "all", "---"] {
            assert!(node_name_of(bad).unwrap_err().to_string().contains("--name"), "{bad}");
        }
    }

    #[test]
    fn nobody_is_meant_by_accident() {
        let error = Target::default().selection("run", " -- uptime").unwrap_err();
        assert_eq!(crate::exit::code_of(&error), crate::exit::Exit::Usage);
        assert!(error.to_string().contains("--all"));
    }
}
