//! `steward event`: what happened in the fleet, and telling of it.

use clap::Subcommand;
use fleet::{EventFilter, EventLine, Events, Since};
use message::order::DEFAULT_DOMAIN;
use message::{Expression, NodeName, Pattern, Timestamp, Token};
use serde_json::{Value, json};

use crate::args::{Format, duration, json_arguments, method_domain};
use crate::exit::{Exit, Usage};
use crate::out::Out;
use crate::render::paint::{Paint, tame};
use crate::render::time;
use crate::session::Session;
use crate::signals::StopSignals;

/// See what happened, as nodes report it; or report something.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    steward event ls --since 1h\n  \
    steward event follow --method syslogforwarding -o ndjson\n  \
    steward event emit note/demo --message 'the demo begins'")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List what was reported
    #[command(after_help = "Examples:\n  \
            steward event ls --since 1h\n  \
            steward event ls --from 'ship*' --grep error -o ndjson\n  \
            steward event ls --since 2d --until 1d --where 'record.status >= 500 && labels.site == \"oslo\"'\n\
            \n\
            Times are those at which the broker stored an event: a node may report what happened days ago.")]
    Ls {
        #[command(flatten)]
        filter: Filter,
        /// Until this long ago (`10m`) or this time
        #[arg(long, value_name = "DUR|TIME", value_parser = since)]
        until: Option<Since>,
    },
    /// Show what is reported from now on (with --since: from then on), until Ctrl-C
    #[command(after_help = "Examples:\n  steward event follow\n  steward event follow --since 10m -o ndjson")]
    Follow {
        #[command(flatten)]
        filter: Filter,
    },
    /// Report something
    #[command(
        after_help = "Examples:\n  steward event emit note/demo --message 'the demo begins'\n  steward event emit backup/nightly files=312 ok=true"
    )]
    Emit {
        /// What kind of thing happened, and what it is about
        #[arg(value_name = "METHOD[/DOMAIN]")]
        what: String,
        /// The record, field by field
        #[arg(value_name = "KEY=VALUE")]
        fields: Vec<String>,
        /// The record's message
        #[arg(long, value_name = "TEXT")]
        message: Option<String>,
        /// Who is told
        #[arg(long, value_name = "NODE", default_value = "central")]
        to: NodeName,
    },
}

/// Which events.
#[derive(Debug, clap::Args)]
struct Filter {
    /// Reported by this node, or nodes ('ship*'); proven by signature
    #[arg(long, value_name = "NODE")]
    from: Option<String>,
    /// Told to this node
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// Of this method ('syslog*')
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// About this domain
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// From this long ago (`1h`) or this time (`2026-11-22T12:00:00Z`) on
    #[arg(long, value_name = "DUR|TIME", value_parser = since)]
    since: Option<Since>,
    /// That hold this text
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// Of which this expression holds: over `record`, and `name` and `labels` of who reports it
    #[arg(long = "where", value_name = "EXPRESSION")]
    condition: Option<String>,
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration(text) {
        return Ok(Since::Ago(ago));
    }
    text.parse::<Timestamp>()
        .map(Since::At)
        .map_err(|_| format!("{text:?} is neither a duration, like 1h, nor a time, like 2026-11-22T12:00:00Z"))
}

impl Filter {
    fn told(self) -> anyhow::Result<EventFilter> {
        Ok(EventFilter {
            from: self.from.as_deref().map(|text| one("--from", text)).transpose()?,
            to: self.to.as_deref().map(|text| one("--to", text)).transpose()?,
            method: self.method,
            domain: self.domain,
            since: self.since,
            grep: self.grep,
            until: None,
            condition: self.condition.as_deref().map(Expression::over_records).transpose()?,
        })
    }
}

fn one(flag: &str, text: &str) -> anyhow::Result<Pattern> {
    let mut patterns = Pattern::parse_list(text)?;
    match (patterns.pop(), patterns.is_empty()) {
        (Some(pattern), true) => Ok(pattern),
        _ => Err(Usage::new(format!("{flag} takes one node name or one glob, not a list")).into()),
    }
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Ls { filter, until } => read(session, EventFilter { until, ..filter.told()? }, false).await?,
        Verb::Follow { filter } => read(session, filter.told()?, true).await?,
        Verb::Emit { what, fields, message, to } => {
            super::bounded(session.global.timeout, emit(session, &what, &fields, message, &to)).await?;
        }
    }
    Ok(Exit::Success)
}

async fn read(session: &mut Session, filter: EventFilter, follow: bool) -> anyhow::Result<()> {
    let fleet = session.connect().await?;
    let mut signals = StopSignals::new()?;
    let limit = session.global.timeout;
    let mut events = fleet.events(&filter, follow).await?;
    let shown = show_all(&mut session.out, &mut events, follow);
    tokio::select! {
        shown = shown => shown,
        () = signals.next() => Ok(()),
        () = async { tokio::time::sleep(limit.unwrap_or_default()).await }, if limit.is_some() => Ok(()),
    }?;
    session.out.flush()
}

async fn show_all(out: &mut Out, events: &mut Events, follow: bool) -> anyhow::Result<()> {
    // What goes on for ever is no array: then each line is a value of its own.
    let array = out.format() == Format::Json && !follow;
    let mut first = true;
    while let Some(line) = events.next().await? {
        if array {
            out.bytes_later(if first { b"[" } else { b",\n" })?;
            out.bytes_later(&serde_json::to_vec(&line)?)?;
        } else if out.is_json() {
            out.json_line(&line)?;
        } else {
            let text = human(&line, out.colors());
            out.line(text)?;
        }
        first = false;
        if follow {
            out.flush()?;
        }
    }
    if array {
        out.line(if first { "[]" } else { "]" })?;
    }
    Ok(())
}

/// `2026-11-22 13:00:00.007 ship1 syslogforwarding/nginx the line`.
fn human(line: &EventLine, colors: bool) -> String {
    let from = line.from.as_ref().map_or("(unsigned)", NodeName::as_str);
    let what = format!("{}/{}", line.method, line.domain);
    let time = time::local_ms(line.at);
    format!(
        "{} {} {} {}",
        Paint::Dim.on(&time, colors),
        Paint::Cyan.on(from, colors),
        Paint::Bold.on(&what, colors),
        message(line)
    )
}

/// The record's message, and what else it holds.
fn message(line: &EventLine) -> String {
    let mut told = Vec::new();
    if let Some(message) = line.record.get("message").and_then(Value::as_str) {
        told.push(tame(message));
    }
    for (key, value) in line.record.iter().filter(|(key, value)| key.as_str() != "message" || !value.is_string()) {
        told.push(format!("{}={}", tame(key), tame(&value.to_string())));
    }
    told.join(" ")
}

async fn emit(
    session: &mut Session,
    what: &str,
    fields: &[String],
    message: Option<String>,
    to: &NodeName,
) -> anyhow::Result<()> {
    let (method, domain) = method_domain(what)?;
    let domain = match domain {
        Some(domain) => domain,
        None => Token::domain(DEFAULT_DOMAIN)?,
    };
    let mut record = json_arguments(fields)?;
    if let Some(message) = message
        && record.insert("message".to_owned(), Value::String(message)).is_some()
    {
        return Err(Usage::new("the record's message is given twice: with --message and as a field").into());
    }
    if record.is_empty() {
        return Err(Usage::new(format!(
            "what happened? Say it with `steward event emit {what} --message TEXT`, or in fields: files=312 ok=true"
        ))
        .into());
    }
    let fleet = session.connect().await?;
    let ids = fleet.emit(to, &method, &domain, vec![record]).await?;
    if session.out.is_json() {
        return session.out.json(&json!({"to": to, "method": method, "domain": domain, "ids": ids}));
    }
    session.out.note(format!("{to} is told: {method}/{domain}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(record: Value) -> EventLine {
        EventLine {
            subject: "central.event.syslogforwarding.nginx".into(),
            from: Some(NodeName::new("ship1").unwrap()),
            to: NodeName::new("central").unwrap(),
            method: Token::method("syslogforwarding").unwrap(),
            domain: Token::domain("nginx").unwrap(),
            at: Timestamp::from_ms(0),
            id: "x-0".into(),
            record: record.as_object().unwrap().clone(),
        }
    }

    #[test]
    fn a_line_for_people_tells_who_what_and_the_message() {
        let text = human(&line(json!({"message": "GET /\u{1b}[2J"})), false);
        assert!(text.ends_with(" ship1 syslogforwarding/nginx GET /\\u{1b}[2J"), "{text}");
        assert_eq!(message(&line(json!({"message": "done", "files": 3}))), "done files=3");
        assert_eq!(message(&line(json!({"message": 5}))), "message=5");
    }

    #[test]
    fn since_is_an_age_or_a_time() {
        assert_eq!(since("1h"), Ok(Since::Ago(std::time::Duration::from_secs(3600))));
        assert_eq!(since("1970-01-01T00:00:01Z"), Ok(Since::At(Timestamp::from_ms(1000))));
        assert!(since("yesterday").is_err());
    }

    #[test]
    fn a_filter_takes_one_pattern() {
        assert!(one("--from", "ship*").is_ok());
        assert!(one("--from", "ship1,ship2").is_err());
    }
}
