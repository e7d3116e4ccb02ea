//! `agent.toml`: what a node reports, and what it lets be done here at most. Unknown keys are errors that name the nearest known one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bus::following::Pace;
use journal::Lane;
use message::policy::Glob;
use message::{NodeName, Token, units};
use receive::Receive;
use regex_lite::Regex;
use serde::Deserialize;

use crate::http;
use crate::source::{Address, Certificates, Told};

/// What can be wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("the configuration {} cannot be read: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// It is not what it should be.
    #[error("{}: {reason}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
}

/// A configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node's name; has to be the one that it was enrolled as.
    #[serde(default)]
    pub name: Option<NodeName>,
    /// How often it says that it lives, instead of every 15 s: `"1s"` to `"1h"`. It counts as offline after three times
    /// as long without a word.
    #[serde(default, deserialize_with = "life_sign")]
    pub life_sign: Option<Duration>,
    /// What its link is like: `"normal"`, `"slow"` or `"metered"`. Says how often it speaks while nothing happens;
    /// `life_sign` wins.
    #[serde(default)]
    pub link: Option<Link>,
    /// The only methods that may be called here, as globs, whatever the policy allows.
    #[serde(default, deserialize_with = "some")]
    pub allow_methods: Vec<Glob>,
    /// The only domains, likewise.
    #[serde(default, deserialize_with = "some")]
    pub allow_domains: Vec<Glob>,
    /// The only local user that commands run as here, whatever the policy allows.
    #[serde(default)]
    pub run_as: Option<String>,
    /// No shell lines, no scripts, no shells, whatever the policy allows.
    #[serde(default)]
    pub deny_shell: bool,
    /// So many bytes of events may leave in an hour, instead of what `link` says; orders and their answers are not counted.
    #[serde(default, deserialize_with = "budget")]
    pub budget: Option<u64>,
    /// Whether it tells the fleet's error log what it warns of; it does, if nothing is said.
    #[serde(default)]
    pub error_log: Option<bool>,
    /// What it reports.
    #[serde(default, deserialize_with = "sources")]
    pub event: Vec<EventSource>,
    /// What it takes of what others report to it, and where that goes.
    #[serde(default, deserialize_with = "receive::tables")]
    pub receive: Vec<Receive>,
}

/// What a link is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// It is there, and costs nothing.
    Normal,
    /// It is thin.
    Slow,
    /// Each byte is paid for.
    Metered,
}

impl Link {
    /// Between two life signs.
    pub const fn life_sign(self) -> Duration {
        Duration::from_secs(match self {
            Self::Normal => 30,
            Self::Slow => 5 * 60,
            Self::Metered => 30 * 60,
        })
    }

    /// Between two pings of an idle link: after two without an answer it counts as down.
    pub const fn ping(self) -> Duration {
        Duration::from_secs(match self {
            Self::Normal => 60,
            Self::Slow => 5 * 60,
            Self::Metered => 30 * 60,
        })
    }

    /// So many bytes of events may leave in an hour; `None`: as many as come.
    pub const fn budget(self) -> Option<u64> {
        match self {
            Self::Normal | Self::Slow => None,
            Self::Metered => Some(256 * 1024),
        }
    }

    /// How often the broker is asked for what this node is told, while nothing comes: a question costs some 300 bytes.
    pub const fn pace(self) -> Pace {
        match self {
            Self::Normal => Pace { wait: Duration::from_secs(60), rest: Duration::ZERO },
            Self::Slow => Pace { wait: Duration::from_secs(100), rest: Duration::ZERO },
            Self::Metered => Pace { wait: Duration::ZERO, rest: Duration::from_secs(10 * 60) },
        }
    }

    /// Between two complaints to the fleet's error log, when there are too many.
    pub const fn complaints(self) -> Duration {
        Duration::from_secs(match self {
            Self::Normal => 2 * 60,
            Self::Slow => 20 * 60,
            Self::Metered => 2 * 3600,
        })
    }

    /// Between two looks at the system; what has not changed is not told.
    pub const fn facts(self) -> Duration {
        Duration::from_secs(match self {
            Self::Normal => 10 * 60,
            Self::Slow => 3600,
            Self::Metered => 6 * 3600,
        })
    }
}

/// One `[[event]]` table: a source of events.
#[derive(Debug, Clone)]
pub struct EventSource {
    /// What kind of thing is reported.
    pub method: Token,
    /// What it is about.
    pub domain: Token,
    /// Who is told.
    pub to: NodeName,
    /// How soon it leaves.
    pub(crate) lane: Lane,
    /// Where it comes from.
    pub(crate) kind: SourceKind,
    /// How a record begins that may have several lines: of a file.
    pub(crate) multiline: Option<Regex>,
    /// What becomes of each line before it leaves.
    pub(crate) shape: Shape,
}

/// Where events come from.
#[derive(Debug, Clone)]
pub(crate) enum SourceKind {
    /// `file`, `files`
    Files(Files),
    /// `syslog`
    Syslog(Address),
    /// `socket`
    Socket(PathBuf),
    /// `command`
    Command(Program),
    /// `http`
    Http(Scrape),
    /// `journald`
    Journald(Journald),
}

/// `journald = { units = ["nginx.service"], priority = "warning" }`: the systemd journal, or what is wanted of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journald {
    /// Only what one of these units says.
    #[serde(default)]
    pub(crate) units: Vec<String>,
    /// Only what calls itself by one of these (`SYSLOG_IDENTIFIER`).
    #[serde(default)]
    pub(crate) identifiers: Vec<String>,
    /// Only what is at least so severe.
    pub(crate) priority: Option<String>,
    /// Where the journal is, if not where journald keeps it.
    pub(crate) directory: Option<PathBuf>,
}

impl Journald {
    fn check(&self) -> Result<(), String> {
        let is_known = |word: &String| message::syslog::SEVERITIES.contains(&word.as_str());
        if self.priority.as_ref().is_some_and(|word| !is_known(word)) {
            return Err(format!("journald.priority is one of {}", message::syslog::SEVERITIES.join(", ")));
        }
        if self.units.iter().chain(&self.identifiers).any(|word| word.is_empty() || word.contains('\0')) {
            return Err("a name in journald.units or journald.identifiers is empty".into());
        }
        if self.directory.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err("journald.directory is not an absolute path".into());
        }
        Ok(())
    }

    /// What is wanted, as arguments of `journalctl`.
    pub(crate) fn matches(&self) -> Vec<String> {
        let named = |flag: &'static str, names: &[String]| {
            names.iter().map(|name| format!("--{flag}={name}")).collect::<Vec<_>>()
        };
        let mut matches = named("unit", &self.units);
        matches.extend(named("identifier", &self.identifiers));
        matches.extend(self.priority.iter().map(|word| format!("--priority={word}")));
        matches
    }

    /// Under what its place is kept: of what is read, and of whom it is told to.
    pub(crate) fn name(&self, told: &Told) -> String {
        let Told { to, method, domain, .. } = told;
        let directory = self.directory.as_deref().unwrap_or(Path::new("")).display();
        format!("journald {to} {method} {domain} {directory} {}", self.matches().join(" "))
    }
}

/// Which files are followed.
#[derive(Debug, Clone)]
pub(crate) enum Files {
    /// One, which need not be there yet.
    One(PathBuf),
    /// All that fit.
    Globs(Vec<String>),
}

/// `command = { argv = ["df", "-P"], every = "5m" }`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Program {
    /// The program and its arguments.
    pub(crate) argv: Vec<String>,
    /// Between the beginnings of two runs.
    #[serde(deserialize_with = "every")]
    pub(crate) every: Duration,
}

/// `http = { url = "http://127.0.0.1:9100/metrics", every = "1m" }`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scrape {
    /// What is fetched.
    pub(crate) url: String,
    /// Between two of them.
    #[serde(deserialize_with = "every")]
    pub(crate) every: Duration,
    /// Headers of the request.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
}

/// What becomes of lines before they leave.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shape {
    /// Only what one of these matches, if there are any.
    pub(crate) keep: Vec<Regex>,
    /// Not what one of these matches.
    pub(crate) drop: Vec<Regex>,
    /// What these match is hidden.
    pub(crate) redact: Vec<Regex>,
    /// How fields are read.
    pub(crate) parse: Option<Parse>,
    /// So many a second.
    pub(crate) rate: Option<f64>,
}

/// How the fields of a line are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Parse {
    /// An object of JSON.
    Json,
    /// `level=info msg="it is done"`
    Logfmt,
    /// `http_requests_total{code="200"} 1027`
    Prometheus,
}

/// An `[[event]]` table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSource {
    method: Token,
    domain: Token,
    #[serde(default = "central")]
    to: NodeName,
    file: Option<PathBuf>,
    files: Option<Vec<String>>,
    syslog: Option<String>,
    socket: Option<PathBuf>,
    command: Option<Program>,
    http: Option<Scrape>,
    journald: Option<Journald>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    multiline: Option<String>,
    #[serde(default)]
    keep: Vec<String>,
    #[serde(default)]
    drop: Vec<String>,
    #[serde(default)]
    redact: Vec<String>,
    parse: Option<Parse>,
    rate: Option<f64>,
    #[serde(default)]
    priority: Priority,
}

/// How soon events leave, as it is written.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Priority {
    Urgent,
    #[default]
    Normal,
    Low,
}

/// The keys of which a source has exactly one.
const SOURCES: &str = "file, files, syslog, journald, socket, command or http";

impl WrittenSource {
    fn understood(self) -> Result<EventSource, String> {
        let absolute = |key: &str, path: &Path| {
            if path.is_absolute() {
                Ok(())
            } else {
                Err(format!("{key} = {:?} is not an absolute path", path.display().to_string()))
            }
        };
        let regex = |key: &str, text: &str| {
            Regex::new(text).map_err(|error| format!("{key} = {text:?} is no regular expression: {error}"))
        };
        let all =
            |key: &str, texts: &[String]| texts.iter().map(|text| regex(key, text)).collect::<Result<Vec<_>, _>>();
        let shape = Shape {
            keep: all("keep", &self.keep)?,
            drop: all("drop", &self.drop)?,
            redact: all("redact", &self.redact)?,
            parse: self.parse,
            rate: self.rate,
        };
        if self.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
            return Err("rate has to be a number of records a second above 0".into());
        }
        let sources = [
            self.file.is_some(),
            self.files.is_some(),
            self.syslog.is_some(),
            self.socket.is_some(),
            self.command.is_some(),
            self.http.is_some(),
            self.journald.is_some(),
        ];
        match sources.into_iter().filter(|is_there| *is_there).count() {
            0 => return Err(format!("it says not where events come from: {SOURCES}")),
            1 => {}
            _ => return Err(format!("it has several sources: leave one of {SOURCES}")),
        }
        let is_file = self.file.is_some() || self.files.is_some();
        let kind = if let Some(path) = self.file {
            absolute("file", &path)?;
            SourceKind::Files(Files::One(path))
        } else if let Some(globs) = self.files {
            if globs.is_empty() {
                return Err("files is empty: name at least one glob".into());
            }
            for text in &globs {
                absolute("files", Path::new(text))?;
                glob::Pattern::new(text).map_err(|error| format!("files = {text:?} is no glob: {error}"))?;
            }
            SourceKind::Files(Files::Globs(globs))
        } else if let Some(address) = self.syslog {
            let mut address = address.parse()?;
            if let Address::Tls(_, certificates) = &mut address {
                let (Some(cert), Some(key)) = (self.cert.clone(), self.key.clone()) else {
                    return Err("syslog over TLS needs cert and key: files in PEM".into());
                };
                let paths = [("cert", Some(&cert)), ("key", Some(&key)), ("client_ca", self.client_ca.as_ref())];
                for (name, path) in paths.into_iter().filter_map(|(name, path)| Some((name, path?))) {
                    absolute(name, path)?;
                }
                *certificates = Certificates { cert, key, client_ca: self.client_ca.clone() };
            }
            SourceKind::Syslog(address)
        } else if let Some(path) = self.socket {
            absolute("socket", &path)?;
            SourceKind::Socket(path)
        } else if let Some(program) = self.command {
            if program.argv.is_empty() {
                return Err("command.argv is empty: name a program".into());
            }
            SourceKind::Command(program)
        } else if let Some(scrape) = self.http {
            http::get(&scrape.url, scrape.headers.iter()).map(drop).map_err(|error| format!("http: {error}"))?;
            SourceKind::Http(scrape)
        } else {
            let journal = self.journald.unwrap_or_default();
            journal.check()?;
            SourceKind::Journald(journal)
        };
        let has_certificates = self.cert.is_some() || self.key.is_some() || self.client_ca.is_some();
        if has_certificates && !matches!(kind, SourceKind::Syslog(Address::Tls(..))) {
            return Err("cert, key and client_ca are for syslog = \"tls://…\" alone".into());
        }
        let multiline = self.multiline.as_deref().map(|text| regex("multiline", text)).transpose()?;
        if multiline.is_some() && !is_file {
            return Err("multiline is for files alone".into());
        }
        let lane = match self.priority {
            Priority::Urgent => Lane::Urgent,
            Priority::Normal => Lane::Normal,
            Priority::Low => Lane::Low,
        };
        Ok(EventSource { method: self.method, domain: self.domain, to: self.to, lane, kind, multiline, shape })
    }
}

/// Every table, or which one is wrong.
fn sources<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<EventSource>, D::Error> {
    let written: Vec<WrittenSource> = Vec::deserialize(from)?;
    let understood = written.into_iter().enumerate().map(|(index, source)| {
        let what = format!("event {} ({}/{})", index + 1, source.method, source.domain);
        source.understood().map_err(|reason| serde::de::Error::custom(format!("{what}: {reason}")))
    });
    understood.collect()
}

/// The least time between two runs of a program.
const EVERY_MIN: Duration = Duration::from_secs(1);

fn every<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    let every = units::parse_duration(&text).map_err(serde::de::Error::custom)?;
    if every < EVERY_MIN {
        return Err(serde::de::Error::custom(format!("every = {text:?} is too often: write \"1s\" at least")));
    }
    Ok(every)
}

pub(crate) fn central() -> NodeName {
    // A literal that follows the rules for names; the tests read it.
    #[allow(clippy::expect_used)]
    NodeName::new("central").expect("\"central\" is a valid node name")
}

/// The least budget of an hour: a batch of events has to go now and then.
const BUDGET_MIN: u64 = 16 * 1024;

fn budget<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    let budget = units::parse_size(&text).map_err(serde::de::Error::custom)?;
    if budget < BUDGET_MIN {
        return Err(serde::de::Error::custom(format!(
            "budget = {text:?} is too little for an hour: write \"16KiB\" at least"
        )));
    }
    Ok(Some(budget))
}

/// The least and the most time between two life signs.
const LIFE_SIGNS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

fn life_sign<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    let interval = units::parse_duration(&text).map_err(serde::de::Error::custom)?;
    if LIFE_SIGNS.contains(&interval) {
        Ok(Some(interval))
    } else {
        Err(serde::de::Error::custom(format!("life_sign = {text:?} is out of bounds: write \"1s\" to \"1h\"")))
    }
}

/// An empty list may mean all or none: it means nothing.
fn some<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Glob>, D::Error> {
    let globs = Vec::deserialize(from)?;
    if globs.is_empty() {
        return Err(serde::de::Error::custom("an empty list: leave it out to narrow nothing"));
    }
    Ok(globs)
}

const KEYS: [&str; 38] = [
    "name",
    "life_sign",
    "link",
    "allow_methods",
    "allow_domains",
    "run_as",
    "deny_shell",
    "budget",
    "error_log",
    "event",
    "receive",
    "method",
    "domain",
    "to",
    "file",
    "files",
    "syslog",
    "cert",
    "key",
    "client_ca",
    "journald",
    "units",
    "identifiers",
    "directory",
    "socket",
    "command",
    "argv",
    "every",
    "http",
    "url",
    "headers",
    "multiline",
    "keep",
    "drop",
    "redact",
    "parse",
    "rate",
    "priority",
];

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`] says what is wrong, and where.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: path.to_owned(), reason: error.to_string() })?;
        Self::parse(&text).map_err(|reason| ConfigError::Wrong { path: path.to_owned(), reason })
    }

    /// Reads the text of a configuration.
    ///
    /// # Errors
    /// A sentence that says what is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| explain(&error.to_string()))?;
        if config.run_as.as_ref().is_some_and(|user| user.is_empty() || user.contains([' ', ':', '/'])) {
            return Err("run_as has to be the name of a local user".into());
        }
        Ok(config)
    }
}

/// Adds the nearest known key to the parser's complaint about an unknown one.
fn explain(error: &str) -> String {
    let Some(unknown) = error.split("unknown field `").nth(1).and_then(|rest| rest.split('`').next()) else {
        return error.trim_end().to_owned();
    };
    let nearest = KEYS.into_iter().chain(receive::KEYS).min_by_key(|key| strsim::damerau_levenshtein(key, unknown));
    match nearest {
        Some(key) if strsim::damerau_levenshtein(key, unknown) <= 3 => {
            format!("{}\nDid you mean `{key}`?", error.trim_end())
        }
        _ => error.trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_followed_file_needs_four_lines() {
        let config = Config::parse(
            "name = \"ship1\"\n[[event]]\nmethod = \"syslogforwarding\"\ndomain = \"nginx\"\nfile = \"/var/log/nginx/access.log\"\n",
        )
        .unwrap();
        assert_eq!(config.event[0].to.as_str(), "central");
        let SourceKind::Files(Files::One(path)) = &config.event[0].kind else { panic!("{config:?}") };
        assert_eq!(path, Path::new("/var/log/nginx/access.log"));
    }

    #[test]
    fn a_source_is_exactly_one_and_mistakes_say_which() {
        let parse = |text: &str| Config::parse(&format!("[[event]]\nmethod=\"a\"\ndomain=\"b\"\n{text}"));
        for right in [
            "files=[\"/var/log/*.log\"]\nmultiline=\"^[0-9]\"\nkeep=[\"x\"]\nparse=\"json\"\nrate=10",
            "syslog=\"tcp://127.0.0.1:514\"",
            "socket=\"/run/x\"",
            "command={argv=[\"df\"], every=\"5m\"}\npriority=\"urgent\"",
            "http={url=\"http://127.0.0.1:9100/metrics\", every=\"1m\", headers={a=\"b\"}}\nparse=\"prometheus\"",
        ] {
            assert!(parse(right).is_ok(), "{right}: {:?}", parse(right).err());
        }
        for (wrong, says) in [
            ("", "says not where"),
            ("file=\"/x\"\nsocket=\"/y\"", "several sources"),
            ("files=[]", "empty"),
            ("files=[\"/x/[\"]", "no glob"),
            ("syslog=\"514\"", "udp://127.0.0.1:514"),
            ("command={argv=[], every=\"5m\"}", "empty"),
            ("command={argv=[\"df\"], every=\"1ms\"}", "too often"),
            ("file=\"/x\"\nkeep=[\"(\"]", "no regular expression"),
            ("http={url=\"ftp://x\", every=\"1m\"}", "neither http"),
            ("file=\"/x\"\nrate=0", "above 0"),
            ("file=\"/x\"\npriority=\"high\"", "urgent"),
            ("socket=\"/x\"\nmultiline=\"x\"", "files alone"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(
                error.contains(says) && (error.contains("event 1 (a/b)") || ["too often", "urgent"].contains(&says)),
                "{wrong}: {error}"
            );
        }
    }

    #[test]
    fn a_link_says_how_often_a_unit_speaks() {
        let link = Config::parse("link = \"metered\"").unwrap().link.unwrap();
        assert_eq!((link, link.life_sign()), (Link::Metered, Duration::from_secs(1800)));
        assert!(LIFE_SIGNS.contains(&link.life_sign()));
        assert_eq!((link.budget(), Link::Slow.budget()), (Some(262_144), None));
        assert_eq!(Config::parse("budget = \"64KiB\"").unwrap().budget, Some(65_536));
        assert!(Config::parse("budget = \"1KiB\"").unwrap_err().contains("16KiB"));
        assert!(Config::parse("link = \"satellite\"").unwrap_err().contains("metered"));
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let error = Config::parse("[[event]]\nmethd = \"a\"\n").unwrap_err();
        assert!(error.contains("methd") && error.contains("Did you mean `method`?"), "{error}");
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn what_a_node_takes_away_is_read_strictly() {
        let text = "allow_methods = [\"hel*\"]\nallow_domains = [\"operatingsystem\"]\nrun_as = \"steward\"\ndeny_shell = true\n";
        let config = Config::parse(text).unwrap();
        assert!(config.allow_methods[0].matches("hello") && config.deny_shell);
        assert_eq!(config.run_as.as_deref(), Some("steward"));
        let error = Config::parse("deny_shel = true").unwrap_err();
        assert!(error.contains("Did you mean `deny_shell`?"), "{error}");
        // Neither all nor none, and certainly not nothing at all.
        assert!(Config::parse("allow_methods = []").unwrap_err().contains("empty list"));
        assert!(Config::parse("run_as = \"\"").is_err());
    }

    #[test]
    fn a_bad_name_or_a_relative_path_is_refused() {
        assert!(Config::parse("name = \"sh ip\"").unwrap_err().contains("' '"));
        let error = Config::parse("[[event]]\nmethod=\"a\"\ndomain=\"b\"\nfile=\"x.log\"").unwrap_err();
        assert!(error.contains("absolute"), "{error}");
    }
}
