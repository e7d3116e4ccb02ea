//! `steward run`: a program, a shell line or a script on nodes. Also what `call` shares with it: placing a job,
//! waiting for it, and reporting on it.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use data_encoding::BASE64;
use fleet::{Fleet, Follow, Gather, JobView, Node, OrderRequest, PlacedJob, Terms};
use message::method::{CANCEL, Cancelled, SHELLCOMMAND, ShellCommand};
use message::order::DEFAULT_DOMAIN;
use message::{NodeName, Secrets, State, Token};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::{Format, Target, duration, key_value, size};
use crate::exit::{Exit, Usage};
use crate::out::Closed;
use crate::render::live::Live;
use crate::render::paint::{Paint, tame};
use crate::render::table::{Cell, Table};
use crate::render::{job as job_text, node as node_text, time};
use crate::secrets::SecretArgs;
use crate::session::Session;
use crate::signals::StopSignals;
use crate::watching::{Ended, Patience, presence, watch};

/// A script or an input that is longer fits no order; whoever is given more stops reading there.
const FILE_BYTES_MAX: u64 = 768 * 1024;

/// Run a program on nodes.
///
/// The command stands behind `--` and is run as it is, without a shell; --sh runs a shell line, --script sends a
/// script. A node that cannot be reached gets it as soon as it is back, within --expires. Each node runs it once.
///
/// Exit codes: 0 every node succeeded; 1 this command failed; 2 wrong usage; 3 at least one node failed, refused,
/// timed out or was interrupted; 4 none failed, but at least one has not answered yet; 5 the target matches no node.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "steward run TARGET [FLAGS] -- CMD ARG…\n       steward run TARGET [FLAGS] --sh 'LINE'\n       steward run TARGET [FLAGS] --script FILE [-- ARG…]",
    after_help = "Examples:\n  \
        steward run --all -- uname -a\n  \
        steward run '*' --sh 'df -h / | tail -1'\n  \
        steward run \"$(hostname -s)\" --timeout 5s -o json -- uptime\n  \
        steward run -l 'site in (oslo,bergen)' -w 'facts.memory.total > 4e9 && online' -- free\n  \
        steward run --all --dry-run -- reboot\n  \
        steward run --all --secret TOKEN=@/etc/hostname --sh 'wc -c < \"$STEWARD_SECRETS/TOKEN\"'\n  \
        steward run --all --supersede greeting -- echo 'only the newest of those that wait'\n  \
        steward run --all --idempotency-key greeting-1 -- echo 'once, however often I am called'"
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) target: Target,

    /// The program and its arguments (with --script: the script's arguments)
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,

    /// Run this line with /bin/sh instead
    #[arg(long, value_name = "LINE", conflicts_with = "script")]
    sh: Option<String>,

    /// Send this script and run it by its `#!` line, without one by /bin/sh
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,

    /// Set a variable in its environment
    #[arg(long, value_name = "K=V", value_parser = key_value)]
    env: Vec<(String, String)>,

    /// Its working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,

    /// The local user that it runs as
    #[arg(long, value_name = "NAME")]
    user: Option<String>,

    /// Give it this file as standard input; `-` for this command's own
    #[arg(long, value_name = "FILE|-")]
    stdin: Option<PathBuf>,

    /// What it is about
    #[arg(long, value_name = "NAME", default_value = DEFAULT_DOMAIN)]
    domain: String,

    #[command(flatten)]
    ordering: Ordering,
}

/// How a job is made and waited for.
#[derive(Debug, clap::Args)]
pub(crate) struct Ordering {
    /// How long a node that cannot be reached may take to pick it up
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = duration)]
    expires: Duration,

    #[command(flatten)]
    waiting: Waiting,

    /// How much of each output stream is kept
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size)]
    max_output: u64,

    /// Of the orders that wait at a node under this key, only the newest is run; the others end as superseded
    #[arg(long, value_name = "KEY", value_parser = supersede_key)]
    supersede: Option<Token>,

    /// Order once: with the same key again, the job that was made is followed
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,

    /// Show who would get it and why, and end
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    secrets: SecretArgs,
}

fn supersede_key(text: &str) -> Result<Token, message::NameError> {
    Token::key(text)
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let selection = args.target.selection("run", " -- uptime")?;
    if args.stdin.as_deref() == Some(Path::new("-")) && args.ordering.secrets.uses_stdin() {
        return Err(Usage::new("a secret and the program's input cannot both come from standard input").into());
    }
    let command = shell_command(&args)?;
    let what = What {
        method: Token::method(SHELLCOMMAND)?,
        domain: Token::domain(args.domain)?,
        args: serde_json::to_value(command)?,
    };
    order_and_wait(session, &selection, what, &args.ordering).await
}

/// What the node is given; exactly one of a program, a line and a script.
fn shell_command(args: &Args) -> anyhow::Result<ShellCommand> {
    let base = ShellCommand {
        env: args.env.iter().cloned().collect(),
        cwd: args.cwd.clone(),
        user: args.user.clone(),
        stdin_base64: args.stdin.as_deref().map(read_input).transpose()?.map(|bytes| BASE64.encode(&bytes)),
        ..ShellCommand::default()
    };
    match (&args.sh, &args.script, args.command.is_empty()) {
        (None, None, true) => {
            let target = args.target.target.as_deref().unwrap_or("--all");
            Err(Usage::new(format!(
                "what is to be run? The command stands behind `--`: `steward run {target} -- uname -a`; a shell line \
                 comes with --sh 'LINE', a script with --script FILE"
            ))
            .into())
        }
        (None, None, false) => Ok(ShellCommand { argv: Some(args.command.clone()), ..base }),
        (Some(line), None, true) => Ok(ShellCommand { line: Some(line.clone()), ..base }),
        (Some(_), ..) => Err(Usage::new("--sh holds the whole line: nothing can stand behind `--` as well").into()),
        (None, Some(path), _) => {
            let bytes = read_file(path)?;
            let script = String::from_utf8(bytes)
                .map_err(|_| Usage::new(format!("the script {} is not text (UTF-8)", path.display())))?;
            Ok(ShellCommand { script: Some(script), script_args: args.command.clone(), ..base })
        }
    }
}

fn read_input(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path == Path::new("-") { read_bounded(std::io::stdin().lock(), "standard input") } else { read_file(path) }
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    read_bounded(file, &path.display().to_string())
}

fn read_bounded(from: impl Read, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    anyhow::ensure!(
        bytes.len() as u64 <= FILE_BYTES_MAX,
        "{name} has more than {} KiB, which no order can carry",
        FILE_BYTES_MAX / 1024
    );
    Ok(bytes)
}

/// What is ordered.
pub(crate) struct What {
    pub(crate) method: Token,
    pub(crate) domain: Token,
    pub(crate) args: Value,
}

/// Makes a job, waits for it as its flags say, shows what comes, and reports.
pub(crate) async fn order_and_wait(
    session: &mut Session,
    selection: &fleet::Selection,
    what: What,
    ordering: &Ordering,
) -> anyhow::Result<Exit> {
    let secrets = ordering.secrets.read()?;
    let fleet = session.connect().await?;
    let found = fleet.resolve(selection).await?;
    found.notes.iter().for_each(|note| session.out.note(tame(note)));
    if ordering.dry_run {
        return dry_run(session, &what, &secrets, selection, &found.nodes);
    }
    let request = OrderRequest {
        method: what.method,
        domain: what.domain,
        args: what.args,
        timeout: session.execution_timeout(),
        expires: ordering.expires,
        max_output: ordering.max_output,
    };
    let terms = Terms {
        supersede: ordering.supersede.clone(),
        idempotency_key: ordering.idempotency_key.clone(),
        secrets,
        ..Terms::default()
    };
    place_and_wait(session, &fleet, &request, &found.nodes, &terms, ordering.waiting).await
}

/// How long to wait for a job.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Waiting {
    /// How long to wait here [default: until every node that is online has answered or timed out, and 2s for others]
    #[arg(long, value_name = "DUR", value_parser = duration, conflicts_with = "detach")]
    pub(crate) wait: Option<Duration>,

    /// Do not wait: print the job's id and end (with exit code 4, as nobody has answered yet)
    #[arg(long)]
    pub(crate) detach: bool,
}

/// Makes a job for nodes that are known, waits for it, shows what comes, and reports.
pub(crate) async fn place_and_wait(
    session: &mut Session,
    fleet: &Fleet,
    request: &OrderRequest,
    nodes: &[Node],
    terms: &Terms,
    waiting: Waiting,
) -> anyhow::Result<Exit> {
    // From here on Ctrl-C must not leave a person without the job's id.
    let mut signals = StopSignals::new()?;
    let begun = Instant::now();
    if waiting.detach {
        let placed = fleet.order_under(request, nodes, terms).await?;
        tell_placed(session, &placed);
        return detached(session, &placed);
    }
    let gather = if session.out.format() == Format::Json { Gather::Keep } else { Gather::Pass };
    let (placed, mut follow) = fleet.order_and_follow(request, nodes, terms, gather).await?;
    tell_placed(session, &placed);
    let mut patience = Patience::new(presence(nodes), begun, request.timeout, waiting.wait);
    let mut live = Live::new(session.out.format(), &placed.targets);
    let ended = watch(&mut session.out, fleet, &mut follow, &mut patience, &mut signals, &mut live).await?;
    let standing: HashMap<NodeName, &Node> = nodes.iter().map(|node| (node.name().clone(), node)).collect();
    report(session, follow.view(), ended, &live, |name| {
        let node = standing.get(&NodeName::new(name).ok()?)?;
        (!node.vitality.state.is_reachable()).then(|| node_text::standing(node))
    })
}

fn tell_placed(session: &mut Session, placed: &PlacedJob) {
    tracing::info!(job = %placed.job, targets = placed.targets.len(), known = placed.known, "ordered");
    if placed.known {
        let ago = time::ago(bus::clock::now().since(placed.record.created));
        let job = &placed.job;
        session.out.note(format!("job {job} was ordered under this key before ({ago}); it is followed, not made anew"));
    }
}

fn dry_run(
    session: &mut Session,
    what: &What,
    secrets: &Secrets,
    selection: &fleet::Selection,
    nodes: &[Node],
) -> anyhow::Result<Exit> {
    if session.out.is_json() {
        let state = |node: &Node| json!({"state": node.vitality.state.as_str(), "why": selection.why(node)});
        let states: BTreeMap<&str, Value> = nodes.iter().map(|node| (node.name().as_str(), state(node))).collect();
        let mut told = json!({
            "dry_run": true, "method": what.method.as_str(), "domain": what.domain.as_str(),
            "args": what.args, "targets": nodes.len(), "nodes": states,
        });
        if !secrets.is_empty() {
            told["secrets"] = secrets.names().collect();
        }
        session.out.json(&told)?;
    } else {
        let mut table = Table::new(&["NODE", "STATE", "WHY"]);
        for node in nodes {
            let state = Cell::painted(node_text::standing(node), Paint::of_node(node.vitality.state));
            table.row([Cell::from(node.name().to_string()), state, Cell::from(tame(&selection.why(node).join("; ")))]);
        }
        for line in table.lines(session.out.colors()) {
            session.out.line(line)?;
        }
        session.out.note(format!("{}; nothing was ordered (--dry-run)", node_text::summary(nodes)));
    }
    Ok(Exit::Success)
}

fn detached(session: &mut Session, placed: &fleet::PlacedJob) -> anyhow::Result<Exit> {
    let record = &placed.record;
    match session.out.format() {
        Format::Json => {
            let nodes: BTreeMap<&str, Value> =
                placed.targets.iter().map(|node| (node.as_str(), json!({"state": State::Queued}))).collect();
            session.out.json(&json!({
                "job": placed.job, "method": record.method, "domain": record.domain, "created_at": record.created,
                "targets": placed.targets.len(), "counts": {"queued": placed.targets.len()}, "nodes": nodes,
            }))?;
        }
        Format::Ndjson => session.out.json_line(&json!({
            "type": "summary", "job": placed.job, "targets": placed.targets.len(),
            "counts": {"queued": placed.targets.len()},
        }))?,
        Format::Human | Format::Table | Format::Wide => {
            session.out.line(&placed.job)?;
            let flags = session.flags_again();
            let nodes = match placed.targets.as_slice() {
                [one] => one.to_string(),
                many => format!("{} nodes", many.len()),
            };
            session.out.note(format!("ordered for {nodes}; steward{flags} job watch {}", placed.job));
        }
    }
    Ok(Exit::Unfinished)
}

/// Follows a stored job as `job watch` does.
pub(crate) async fn watch_stored(
    session: &mut Session,
    fleet: &Fleet,
    mut follow: Follow,
    wait: Option<Duration>,
) -> anyhow::Result<Exit> {
    let mut signals = StopSignals::new()?;
    let mut patience = Patience::endless(wait);
    let names: Vec<NodeName> = follow.view().nodes.keys().cloned().collect();
    let mut live = Live::new(session.out.format(), &names);
    let ended = watch(&mut session.out, fleet, &mut follow, &mut patience, &mut signals, &mut live).await?;
    report(session, follow.view(), ended, &live, |_| None)
}

/// Tells how a job stands at the end of the wait.
fn report(
    session: &mut Session,
    view: &JobView,
    ended: Ended,
    live: &Live,
    also: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Exit> {
    let counts = view.counts();
    let exit = Exit::of_counts(&counts);
    let printed = match session.out.format() {
        _ if ended == Ended::Closed => Ok(()),
        Format::Json => session.out.json(&view.to_json()),
        Format::Ndjson => session.out.json_line(&view.summary_json()),
        Format::Table | Format::Wide => job_text::table(&job_text::standings(view))
            .lines(session.out.colors())
            .iter()
            .try_for_each(|line| session.out.line(line)),
        Format::Human => say_data(session, view, live),
    };
    match printed.and_then(|()| session.out.flush()) {
        Err(error) if !error.is::<Closed>() => return Err(error),
        _ => {}
    }
    if ended == Ended::Interrupted {
        let (flags, job) = (session.flags_again(), &view.record.job);
        session.out.note(format!(
            "\njob {job} goes on by itself; steward{flags} job watch {job} looks on, steward{flags} job cancel {job} ends it"
        ));
    }
    match (session.out.format(), ended) {
        // Whoever wanted no more output wants to know at most that the job goes on.
        (_, Ended::Closed) if exit != Exit::Unfinished => {}
        (Format::Human, Ended::Closed) => say_summary(session, view),
        (Format::Human, _) => say_standing(session, view, exit, also),
        _ => {}
    }
    Ok(exit)
}

/// What methods answered beyond output. Where a method has put its answer on its output, the rest of it is a remark.
fn say_data(session: &mut Session, view: &JobView, live: &Live) -> anyhow::Result<()> {
    let mut nodes: Vec<_> = view.nodes.iter().collect();
    nodes.sort_by(|a, b| job_text::natural(a.0.as_str(), b.0.as_str()));
    for (node, progress) in nodes {
        let Some(data) = progress.outcome.as_ref().and_then(|outcome| outcome.data.as_ref()) else { continue };
        if view.record.method.as_str() == CANCEL
            && let Ok(cancelled) = serde_json::from_value::<Cancelled>(data.clone())
        {
            session.out.line(format!("{node}  {}", job_text::cancelled(&cancelled)))?;
        } else if live.has_written(node) {
            session.out.note(format!("{node}: {}", remark(data)));
        } else {
            live.say(&mut session.out, node, &serde_json::to_string_pretty(data)?)?;
        }
    }
    Ok(())
}

/// `{"status": 200, "type": "text/html", "headers": {…}}` as `status 200, type text/html`: what is large is in the JSON.
fn remark(data: &Value) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let is_small = |value: &Value| !value.is_object() && !value.is_array();
    let text = match data {
        Value::Object(fields) => {
            let small = fields.iter().filter(|(_, value)| is_small(value));
            small.map(|(name, value)| format!("{name} {}", word(value))).collect::<Vec<_>>().join(", ")
        }
        other => word(other),
    };
    tame(&text)
}

fn say_standing(session: &mut Session, view: &JobView, exit: Exit, also: impl Fn(&str) -> Option<String>) {
    let colors = session.out.note_colors();
    let more = format!("steward{} job show {}", session.flags_again(), view.record.job);
    let lines = job_text::node_lines(&job_text::standings(view), colors, &more, also);
    // One node that succeeded is to look as if its program had run here.
    if lines.is_empty() && exit == Exit::Success && view.nodes.len() == 1 {
        return;
    }
    for line in lines {
        session.out.note(line);
    }
    say_summary(session, view);
}

fn say_summary(session: &mut Session, view: &JobView) {
    let colors = session.out.note_colors();
    let summary = job_text::summary(&view.record, &view.counts(), &session.flags_again(), colors);
    session.out.note(summary);
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Verb};

    fn args(line: &[&str]) -> Args {
        let line = ["steward", "run", "ship1"].iter().chain(line);
        let Verb::Run(args) = Cli::try_parse_from(line).unwrap().verb else { panic!("not run") };
        args
    }

    #[test]
    fn the_command_is_a_program_a_line_or_a_script() {
        let program = shell_command(&args(&["--env", "A=b=c", "--cwd", "/tmp", "--", "ls", "-l"])).unwrap();
        assert_eq!(program.argv.unwrap(), ["ls", "-l"]);
        assert_eq!((program.env["A"].as_str(), program.cwd.as_deref()), ("b=c", Some("/tmp")));
        assert_eq!(shell_command(&args(&["--sh", "a | b"])).unwrap().line.as_deref(), Some("a | b"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "#!/bin/sh\necho $1\n").unwrap();
        let path = file.path().to_str().unwrap();
        let script = shell_command(&args(&["--script", path, "--stdin", path, "--", "x"])).unwrap();
        assert_eq!(
            (script.script.as_deref(), script.script_args),
            (Some("#!/bin/sh\necho $1\n"), vec!["x".to_owned()])
        );
        assert_eq!(script.stdin_base64.unwrap(), BASE64.encode(b"#!/bin/sh\necho $1\n"));
    }

    #[test]
    fn no_command_is_answered_with_how_to_give_one() {
        let error = shell_command(&args(&[])).unwrap_err();
        assert_eq!(crate::exit::code_of(&error), Exit::Usage);
        assert!(error.to_string().contains("steward run ship1 -- uname -a"), "{error}");
        assert_eq!(crate::exit::code_of(&shell_command(&args(&["--sh", "x", "--", "y"])).unwrap_err()), Exit::Usage);
    }

    #[test]
    fn what_is_too_long_for_an_order_is_not_read_to_its_end() {
        let error = read_bounded(std::io::repeat(b'x'), "standard input").unwrap_err().to_string();
        assert!(error.contains("768 KiB"), "{error}");
    }

    #[test]
    fn data_beside_output_is_a_remark() {
        assert_eq!(
            remark(&json!({"status": 200, "type": "text/html", "headers": {"a": 1}})),
            "status 200, type text/html"
        );
        assert_eq!(remark(&json!("x\ny")), "x\\ny");
    }
}
