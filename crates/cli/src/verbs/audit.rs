//! `steward audit`: who ordered what, how each node decided, who changed whom is trusted; and whether that log is whole.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use fleet::{AuditLog, Since};
use message::Timestamp;
use message::audit::{Act, ChainReport, Fault, OPERATOR_CHAIN, Opened, Report, Stored};
use serde_json::{Value, json};

use crate::args::duration;
use crate::exit::Exit;
use crate::render::paint::{Paint, tame};
use crate::render::time;
use crate::session::Session;

/// See who ordered what and how nodes decided, and whether that log is whole.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    steward audit ls --since 1h\n  \
    steward audit verify\n  \
    steward audit ls --raw -o ndjson > audit.ndjson && steward audit verify --file audit.ndjson")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List who did what, oldest first
    ///
    /// What nobody of this fleet has signed is left out, and said to be. With --raw, all is printed as it is stored, with the
    /// signatures, for others to verify.
    #[command(
        after_help = "Examples:\n  steward audit ls --since 1h\n  steward audit ls --by admin --action order -o ndjson"
    )]
    Ls(Ls),
    /// Say whether the log is whole, and where a chain was cut or altered
    ///
    /// Exits with 0 if it is whole, 3 if not.
    #[command(after_help = "Examples:\n  steward audit verify\n  \
        steward audit ls --raw -o ndjson > audit.ndjson && steward audit verify --file audit.ndjson")]
    Verify {
        /// What was exported with `audit ls --raw -o ndjson`, instead of what the broker has
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Ls {
    /// Of this operator or node: what it did, and how nodes decided about its orders
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// That this node did, or that was about it
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// From this long ago (`1h`) or this time (`2026-11-22T12:00:00Z`) on
    #[arg(long, value_name = "DUR|TIME", value_parser = since)]
    since: Option<Since>,
    /// Until this long ago, or this time
    #[arg(long, value_name = "DUR|TIME", value_parser = since)]
    until: Option<Since>,
    /// Only this: `order`, `change`, `decision`, `discarded`, `heard`, `begun`; or a word like `rejected`, `node revoke`
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Everything as it is stored, with signatures
    #[arg(long, conflicts_with_all = ["by", "node", "since", "until", "action"])]
    raw: bool,
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration(text) {
        return Ok(Since::Ago(ago));
    }
    text.parse::<Timestamp>()
        .map(Since::At)
        .map_err(|_| format!("{text:?} is neither a duration, like 1h, nor a time, like 2026-11-22T12:00:00Z"))
}

fn moment(since: Since) -> Timestamp {
    match since {
        Since::At(at) => at,
        Since::Ago(ago) => {
            let ago_ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
            Timestamp::from_ms(bus::clock::now().as_ms().saturating_sub(ago_ms))
        }
    }
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Ls(wanted) => ls(wanted, session).await,
        Verb::Verify { file } => verify(file, session).await,
    }
}

async fn read(session: &Session) -> anyhow::Result<AuditLog> {
    Ok(session.connect().await?.audit_log(bus::Start::First).await?)
}

async fn ls(wanted: Ls, session: &mut Session) -> anyhow::Result<Exit> {
    let log = read(session).await?;
    if wanted.raw {
        session.out.json_list(&log.stored)?;
        return Ok(Exit::Success);
    }
    let (believed, strange) = log.believed();
    let (from, until) = (wanted.since.map(moment), wanted.until.map(moment));
    let mut lines = Vec::new();
    for (stored, opened, by_operator) in &believed {
        for act in &opened.entry.acts {
            let at = when(opened, act);
            let in_time = from.is_none_or(|from| at >= from) && until.is_none_or(|until| at <= until);
            if in_time && wanted.means(&log, opened, act) {
                lines.push((at, line(stored, opened, *by_operator, act), human(&log, opened, act)));
            }
        }
    }
    lines.sort_by_key(|(at, _, _)| *at);
    if session.out.is_json() {
        session.out.json_list(&lines.into_iter().map(|(_, line, _)| line).collect::<Vec<_>>())?;
    } else {
        let colors = session.out.colors();
        for (at, _, [who, what, more]) in lines {
            let (at, who) = (time::local_ms(at), tame(&who));
            let (at, who) = (Paint::Dim.on(&at, colors), Paint::Cyan.on(&who, colors));
            session.out.line(format!("{at} {who} {} {}", Paint::Bold.on(&tame(&what), colors), tame(&more)))?;
        }
    }
    if strange > 0 {
        session.out.note(format!(
            "{strange} messages in the log are of nobody who belongs to this fleet: `steward audit verify` tells which"
        ));
    }
    Ok(Exit::Success)
}

impl Ls {
    fn means(&self, log: &AuditLog, opened: &Opened, act: &Act) -> bool {
        let writer = &opened.entry.writer;
        let by = self.by.as_ref().is_none_or(|by| {
            let ordered = match act {
                Act::Decision { by: Some(key), .. } => log.name_of(key),
                _ => None,
            };
            by == writer || ordered.as_ref() == Some(by)
        });
        let node = self.node.as_ref().is_none_or(|node| {
            writer == node
                || match act {
                    Act::Order { nodes, .. } => nodes.iter().any(|one| one.as_str() == node),
                    Act::Change { on, .. } => on == node,
                    _ => false,
                }
        });
        let action = self.action.as_deref().is_none_or(|action| action == act.word() || action == kind(act));
        by && node && action
    }
}

fn kind(act: &Act) -> &'static str {
    match act {
        Act::Order { .. } => "order",
        Act::Change { .. } => "change",
        Act::Decision { .. } => "decision",
        Act::Discarded { .. } => "discarded",
        Act::Heard { .. } => "heard",
        Act::Begun { .. } => "begun",
        Act::Unknown => "unknown",
    }
}

fn when(opened: &Opened, act: &Act) -> Timestamp {
    match act {
        Act::Decision { at, .. } => *at,
        _ => opened.entry.at,
    }
}

/// One act, with who says so and where it stands.
fn line(stored: &Stored, opened: &Opened, by_operator: bool, act: &Act) -> Value {
    let mut line = json!({
        "at": when(opened, act), "writer": opened.entry.writer, "role": if by_operator { "operator" } else { "node" },
        "writer_key": opened.key, "chain": opened.entry.chain, "seq": opened.entry.seq, "sequence": stored.sequence,
        "stored_at": stored.stored_at,
    });
    if let (Some(line), Ok(Value::Object(act))) = (line.as_object_mut(), serde_json::to_value(act)) {
        line.extend(act);
    }
    line
}

/// Who, what, and more about it.
fn human(log: &AuditLog, opened: &Opened, act: &Act) -> [String; 3] {
    let who = opened.entry.writer.clone();
    let (what, more) = match act {
        Act::Order { job, method, domain, args, targets, nodes, .. } => {
            let mut whom: Vec<&str> = nodes.iter().take(3).map(message::NodeName::as_str).collect();
            let more = format!("… ({targets})");
            if *targets as usize > whom.len() {
                whom.push(&more);
            }
            let argv = args.as_ref().and_then(|args| args.get("argv")).and_then(Value::as_array);
            let args = match (argv, args) {
                (Some(argv), _) => argv.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
                (None, Some(args)) => args.to_string(),
                (None, None) => String::new(),
            };
            (format!("orders {method}/{domain}"), format!("on {}: {args} (job {job})", whom.join(",")))
        }
        Act::Change { what, on, key, note } => {
            let key = key.as_ref().map(|key| format!(" key {key}")).unwrap_or_default();
            (what.clone(), format!("{on}{key}{}", note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default()))
        }
        Act::Decision { job, by, method, domain, state, rule, policy, reason, .. } => {
            let by = by.as_ref().map(|key| log.name_of(key).unwrap_or_else(|| key.to_string())).unwrap_or_default();
            let rule = rule.as_ref().map(|rule| format!(" by {rule:?}")).unwrap_or_default();
            let policy = policy.map(|version| format!(" (policy {version})")).unwrap_or_default();
            let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            (state.to_string(), format!("{method}/{domain} of {by}, job {job}{rule}{policy}{reason}"))
        }
        Act::Discarded { reason, count, sample } => {
            let last = sample.as_ref().map(|last| {
                let key = last.key.as_ref().map(|key| format!(", said to be signed by {key}")).unwrap_or_default();
                let id = last.id.as_ref().map(|id| format!(", with id {id}")).unwrap_or_default();
                format!("; the last one on {}{key}{id}", last.subject)
            });
            ("discarded".into(), format!("{count} messages: {reason}{}", last.unwrap_or_default()))
        }
        Act::Heard { what, version } => ("goes by".into(), format!("{what} {version}")),
        Act::Begun { instance } => ("begins".into(), format!("a chain, with the journal {instance}")),
        Act::Unknown => ("did".into(), "something that this version does not know".into()),
    };
    [who, what, more]
}

async fn verify(file: Option<PathBuf>, session: &mut Session) -> anyhow::Result<Exit> {
    let log = match &file {
        None => read(session).await?,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
            AuditLog::of_export(&session.context()?, path, &text)?
        }
    };
    let report = log.verify()?;
    if session.out.is_json() {
        session.out.json(&report)?;
    } else {
        told(&report).into_iter().try_for_each(|line| session.out.line(line))?;
    }
    Ok(if report.whole { Exit::Success } else { Exit::TargetFailed })
}

/// The result for people.
fn told(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for chain in &report.chains {
        let name = name_of(chain);
        if chain.faults.is_empty() {
            lines.push(format!("{name}: whole, entries {} to {}", chain.first, chain.last));
        }
        lines.extend(chain.faults.iter().map(|fault| format!("{name}: {}", sentence(fault))));
    }
    for one in &report.strange {
        lines.push(tame(&format!("message {} on {}: counts for nothing: {}", one.sequence, one.subject, one.reason)));
    }
    for one in &report.unaccounted {
        lines.push(format!(
            "{} decided about an order of job {} that {} signed, and nobody wrote down that it was ordered",
            one.node, one.job, one.by
        ));
    }
    lines.push(if report.whole { "the audit log is whole".into() } else { "THE AUDIT LOG IS NOT WHOLE".into() });
    lines
}

fn name_of(chain: &ChainReport) -> String {
    if chain.chain == OPERATOR_CHAIN {
        let key = chain.subject.split('.').nth(2).unwrap_or_default();
        return tame(&format!("operator {} ({key})", chain.writer));
    }
    tame(&format!("node {} (journal {})", chain.writer, chain.chain))
}

fn sentence(fault: &Fault) -> String {
    match fault {
        Fault::Gap { from, to } if from == to => format!("CUT: entry {from} is missing"),
        Fault::Gap { from, to } => format!("CUT: entries {from} to {to} are missing"),
        Fault::Beginning { first } => format!("CUT: it begins with entry {first}; what was before is missing"),
        Fault::Altered { seq } => format!("ALTERED: entry {seq} does not follow from the one before it"),
        Fault::Fork { seq } => format!("FORKED: there are two entries {seq}"),
        Fault::Repeated { seq } => format!("REPEATED: entry {seq} is there again"),
        Fault::Reordered { seq } => format!("REORDERED: entry {seq} stands behind a later one"),
        Fault::End { last, told, told_by } => {
            format!("CUT AT THE END: the last entry is {last}, and {told_by} tells of entry {told}")
        }
        Fault::Rewritten { seq, told_by } => format!("REWRITTEN: {told_by} tells of another entry {seq}"),
    }
}
