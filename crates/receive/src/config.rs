//! `[[receive]]` of `station.toml` and `agent.toml`: what is taken from the stream of events, and where that goes. Pure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use message::{NodeName, Pattern, Token, units};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// What can be wrong with a table: a sentence.
type Wrong = String;

/// One `[[receive]]` table.
#[derive(Debug, Clone)]
pub struct Receive {
    /// Under what its place is kept: of what it takes and where that goes.
    pub(crate) id: String,
    /// The method that it takes: a name or a glob.
    pub method: String,
    /// The domain, likewise.
    pub domain: String,
    pub(crate) from: Option<Pattern>,
    pub(crate) format: Format,
    pub(crate) sink: SinkKind,
}

/// How a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// The line as it was read; a record without one as JSON.
    #[default]
    Raw,
    /// One JSON object a line, as `event ls -o ndjson` prints it.
    Json,
}

/// Where records go.
#[derive(Debug, Clone)]
pub(crate) enum SinkKind {
    File(FileSink),
    Command(Vec<String>),
    Http(HttpSink),
    Syslog(SyslogSink),
    Postgres(PostgresSink),
}

/// A table of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PostgresSink {
    /// As `psql` takes it, without a password.
    pub(crate) url: String,
    /// Perhaps with its schema.
    pub(crate) table: String,
    /// Where the password is; without one `psql` looks into `~/.pgpass`.
    pub(crate) password_file: Option<PathBuf>,
}

/// Somebody who takes syslog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyslogSink {
    pub(crate) is_tcp: bool,
    /// `host:port`
    pub(crate) address: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileSink {
    /// With `{from}`, `{method}`, `{domain}` and `{date}` (UTC, of the record) in it.
    pub(crate) path: String,
    /// Above this it is renamed, and another one begun; so many are left.
    pub(crate) rotate: Option<u64>,
    pub(crate) keep: u32,
    /// Whether records are on the disk before their place is.
    pub(crate) fsync: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpSink {
    pub(crate) url: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) speech: Speech,
}

/// What is said over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    /// Lines.
    Lines,
    /// [Loki's push](https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs).
    Loki,
    /// [Logs of OpenTelemetry](https://opentelemetry.io/docs/specs/otlp/#otlphttp), as JSON.
    Otlp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default = "any")]
    method: String,
    #[serde(default = "any")]
    domain: String,
    from: Option<String>,
    #[serde(default)]
    format: Format,
    file: Option<String>,
    rotate: Option<String>,
    keep: Option<u32>,
    fsync: Option<bool>,
    command: Option<Vec<String>>,
    webhook: Option<String>,
    loki: Option<String>,
    otlp: Option<String>,
    syslog: Option<String>,
    postgres: Option<String>,
    table: Option<String>,
    password_file: Option<PathBuf>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
}

fn any() -> String {
    "*".into()
}

/// The keys of which a receiver has exactly one.
const SINKS: &str = "file, command, webhook, loki, otlp, syslog or postgres";

/// What a path of a file sink may have in braces.
const FIELDS: [&str; 4] = ["from", "method", "domain", "date"];
/// What may stand in a table.
pub const KEYS: [&str; 18] = [
    "receive",
    "method",
    "domain",
    "from",
    "format",
    "file",
    "rotate",
    "keep",
    "fsync",
    "command",
    "webhook",
    "loki",
    "otlp",
    "syslog",
    "headers",
    "postgres",
    "table",
    "password_file",
];

impl Written {
    fn understood(self) -> Result<Receive, Wrong> {
        check_glob("method", &self.method)?;
        check_glob("domain", &self.domain)?;
        let from = self.from.as_deref().map(|text| {
            let patterns = Pattern::parse_list(text).map_err(|error| format!("from = {text:?}: {error}"))?;
            match <[Pattern; 1]>::try_from(patterns) {
                Ok([pattern]) => Ok(pattern),
                Err(_) => Err(format!("from = {text:?}: one name or one glob, not a list")),
            }
        });
        let is_file = self.file.is_some();
        let sinks = [
            self.file.is_some(),
            self.command.is_some(),
            self.webhook.is_some(),
            self.loki.is_some(),
            self.otlp.is_some(),
            self.syslog.is_some(),
            self.postgres.is_some(),
        ];
        match sinks.into_iter().filter(|is_there| *is_there).count() {
            0 => return Err(format!("it says not where records go: {SINKS}")),
            1 => {}
            _ => return Err(format!("records go to one place: leave one of {SINKS}")),
        }
        if self.postgres.is_none() && (self.table.is_some() || self.password_file.is_some()) {
            return Err("table and password_file are for postgres alone".into());
        }
        let (sink, told) = if let Some(path) = self.file {
            check_path(&path)?;
            let rotate =
                self.rotate.as_deref().map(|text| units::parse_size(text).map_err(|error| format!("rotate: {error}")));
            let rotate = rotate.transpose()?;
            let told = format!("file {path}");
            let sink =
                FileSink { path, rotate, keep: self.keep.unwrap_or(10).max(1), fsync: self.fsync.unwrap_or(true) };
            (SinkKind::File(sink), told)
        } else if let Some(argv) = self.command {
            if argv.is_empty() {
                return Err("command is empty: name a program".into());
            }
            let told = format!("command {argv:?}");
            (SinkKind::Command(argv), told)
        } else if let Some(url) = self.postgres {
            let sink = postgres(url, self.table, self.password_file)?;
            let told = format!("postgres {} {}", sink.url, sink.table);
            (SinkKind::Postgres(sink), told)
        } else if let Some(address) = self.syslog {
            let told = format!("syslog {address}");
            (SinkKind::Syslog(syslog(&address)?), told)
        } else {
            let (url, speech) = match (self.webhook, self.loki, self.otlp) {
                (Some(url), ..) => (url, Speech::Lines),
                (None, Some(url), _) => (url, Speech::Loki),
                (None, None, url) => (url.unwrap_or_default(), Speech::Otlp),
            };
            http(url, self.headers, speech)?
        };
        if !is_file && (self.rotate.is_some() || self.keep.is_some() || self.fsync.is_some()) {
            return Err("rotate, keep and fsync are for files alone".into());
        }
        let what = format!("{} {} {:?} {told}", self.method, self.domain, self.from);
        let id = HEXLOWER.encode(Sha256::digest(what).get(..8).unwrap_or_default());
        Ok(Receive { id, method: self.method, domain: self.domain, from: from.transpose()?, format: self.format, sink })
    }
}

fn http(
    url: String,
    headers: std::collections::BTreeMap<String, String>,
    speech: Speech,
) -> Result<(SinkKind, String), Wrong> {
    check_url(&url)?;
    let told = format!("http {url}");
    Ok((SinkKind::Http(HttpSink { url, headers: headers.into_iter().collect(), speech }), told))
}

fn postgres(url: String, table: Option<String>, password_file: Option<PathBuf>) -> Result<PostgresSink, Wrong> {
    let behind = ["postgres://", "postgresql://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let Some(behind) = behind else {
        return Err(format!("postgres = {url:?} is no address: write \"postgres://steward@db.example/logs\""));
    };
    let user = behind.split(['/', '?']).next().and_then(|authority| authority.rsplit_once('@'));
    if user.is_some_and(|(user, _)| user.contains(':')) || behind.contains("password=") {
        return Err("postgres has a password in it, which others could read: write it into a file, and name that as \
                    password_file; or into ~/.pgpass"
            .into());
    }
    let table = table.unwrap_or_else(|| "steward_events".into());
    let is_name = |name: &str| {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let rest = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        first && rest && name.len() <= 63
    };
    if table.split('.').count() > 2 || !table.split('.').all(is_name) {
        return Err(format!("table = {table:?}: a name of a-z, 0-9 and _, perhaps with a schema and a dot before it"));
    }
    if password_file.as_ref().is_some_and(|path| !path.is_absolute()) {
        return Err("password_file is not an absolute path".into());
    }
    Ok(PostgresSink { url, table, password_file })
}

fn syslog(text: &str) -> Result<SyslogSink, Wrong> {
    let parts = text.split_once("://").filter(|(_, address)| {
        let port =
            address.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
        port.is_some_and(|port| port > 0)
    });
    match parts {
        Some(("tcp", address)) => Ok(SyslogSink { is_tcp: true, address: address.to_owned() }),
        Some(("udp", address)) => Ok(SyslogSink { is_tcp: false, address: address.to_owned() }),
        _ => Err(format!("syslog = {text:?} is no address: write \"tcp://192.0.2.1:514\" or \"udp://192.0.2.1:514\"")),
    }
}

/// Whether a text can choose methods or domains.
///
/// # Errors
/// A sentence when it cannot.
pub fn check_glob(what: &str, text: &str) -> Result<(), Wrong> {
    // What a glob stands for is left out; the rest must be able to stand in a name.
    let literal = text.replace(['*', '?'], "");
    if text.is_empty() || (!literal.is_empty() && Token::domain(literal).is_err()) {
        return Err(format!("{what} = {text:?} is neither a name nor a glob"));
    }
    Ok(())
}

/// Whether something can be sent there over HTTP.
///
/// # Errors
/// A sentence when it cannot.
pub fn check_url(url: &str) -> Result<(), Wrong> {
    if url.starts_with("http://") || url.starts_with("https://") {
        Ok(())
    } else {
        Err(format!("{url:?} is neither http:// nor https://"))
    }
}

fn check_path(path: &str) -> Result<(), Wrong> {
    if !Path::new(path).is_absolute() {
        return Err(format!("file = {path:?} is not an absolute path"));
    }
    let mut rest = path;
    while let Some((_, behind)) = rest.split_once('{') {
        let Some((field, behind)) = behind.split_once('}') else {
            return Err(format!("file = {path:?}: a {{ without }}"));
        };
        if !FIELDS.contains(&field) {
            return Err(format!(
                "file = {path:?}: {{{field}}} is none of {}",
                FIELDS.map(|field| format!("{{{field}}}")).join(", ")
            ));
        }
        rest = behind;
    }
    Ok(())
}

/// Reads every `[[receive]]` table.
///
/// # Errors
/// A sentence that says which one is wrong.
pub fn tables<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Receive>, D::Error> {
    let written: Vec<Written> = Vec::deserialize(from)?;
    let understood = written.into_iter().enumerate().map(|(index, receive)| {
        let what = format!("receive {} ({}/{})", index + 1, receive.method, receive.domain);
        receive.understood().map_err(|reason| serde::de::Error::custom(format!("{what}: {reason}")))
    });
    let all: Vec<Receive> = understood.collect::<Result<_, _>>()?;
    let mut ids: Vec<&str> = all.iter().map(|receive| receive.id.as_str()).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
        return Err(serde::de::Error::custom("two [[receive]] tables take the same to the same place"));
    }
    Ok(all)
}

impl FileSink {
    /// Where a record of these goes. Names and tokens hold nothing that leads out of a directory, but for `.` and `..`.
    pub(crate) fn path_for(&self, from: &NodeName, method: &Token, domain: &Token, date: &str) -> PathBuf {
        let safe =
            |text: &str| if text.chars().all(|c| c == '.') { text.replace('.', "_") } else { text.replace('/', "_") };
        let mut path = String::new();
        let mut rest = self.path.as_str();
        while let Some((before, behind)) = rest.split_once('{') {
            path.push_str(before);
            let Some((field, behind)) = behind.split_once('}') else { break };
            path.push_str(&match field {
                "from" => safe(from.as_str()),
                "method" => safe(method.as_str()),
                "domain" => safe(domain.as_str()),
                _ => date.to_owned(),
            });
            rest = behind;
        }
        path.push_str(rest);
        PathBuf::from(path)
    }
}

/// The first and the longest time after which a place that did not take records is tried again.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Config {
        #[serde(deserialize_with = "tables")]
        receive: Vec<Receive>,
    }

    fn parse(text: &str) -> Result<Config, String> {
        toml::from_str(&format!("[[receive]]\n{text}")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_receiver_says_what_it_takes_and_where_that_goes() {
        let config =
            parse("method=\"syslogforwarding\"\nfile=\"/srv/{domain}/{from}-{date}.log\"\nrotate=\"10MiB\"").unwrap();
        let SinkKind::File(file) = &config.receive[0].sink else { panic!() };
        assert_eq!(
            (file.rotate, file.keep, file.fsync, config.receive[0].format),
            (Some(10 << 20), 10, true, Format::Raw)
        );
        let path = |from: &str, domain: &str| {
            let (from, method) = (NodeName::new(from).unwrap(), Token::method("m").unwrap());
            file.path_for(&from, &method, &Token::domain(domain).unwrap(), "2026-11-23").display().to_string()
        };
        assert_eq!(path("ship1", "nginx"), "/srv/nginx/ship1-2026-11-23.log");
        for right in [
            "command=[\"cat\"]",
            "webhook=\"https://x/y\"\nheaders={a=\"b\"}",
            "loki=\"http://x\"\nfrom=\"ship*\"",
            "otlp=\"http://127.0.0.1:4318/v1/logs\"",
            "syslog=\"tcp://[::1]:514\"",
            "postgres=\"postgres://a@b:5432/c?sslmode=require\"\ntable=\"logs.all\"\npassword_file=\"/p\"",
        ] {
            assert!(parse(right).is_ok(), "{right}");
        }
    }

    #[test]
    fn mistakes_say_what_and_where() {
        for (wrong, says) in [
            ("", "not where"),
            ("file=\"/x\"\ncommand=[\"cat\"]", "one place"),
            ("file=\"x\"", "absolute"),
            ("file=\"/x/{node}\"", "{node} is none of {from}"),
            ("file=\"/x/{from\"", "without }"),
            ("webhook=\"ftp://x\"", "neither http"),
            ("webhook=\"http://x\"\nfsync=true", "files alone"),
            ("command=[]", "empty"),
            ("otlp=\"x\"", "neither http"),
            ("syslog=\"192.0.2.1\"", "tcp://192.0.2.1:514"),
            ("syslog=\"tcp://192.0.2.1\"", "tcp://192.0.2.1:514"),
            ("loki=\"http://x\"\notlp=\"http://x\"", "one place"),
            ("postgres=\"postgres://a:b@c/d\"", "password_file"),
            ("postgres=\"c/d\"", "postgres://steward@"),
            ("postgres=\"postgres://c/d\"\ntable=\"x; drop\"", "a-z"),
            ("file=\"/x\"\ntable=\"x\"", "postgres alone"),
            ("method=\"a b\"\nfile=\"/x\"", "neither a name nor a glob"),
            ("from=\"a,b\"\nfile=\"/x\"", "not a list"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(says) && error.contains("receive 1"), "{wrong}: {error}");
        }
        assert!(parse("fil=\"/x\"").unwrap_err().contains("unknown field `fil`"));
        assert!(parse("file=\"/x\"\n[[receive]]\nfile=\"/x\"").unwrap_err().contains("the same place"));
    }
}
