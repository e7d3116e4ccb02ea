//! The `[[alert]]` tables of `station.toml`: what somebody is to be told of, and how. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use message::target::glob_matches;
use message::{Expression, NodeName, Pattern, Selector, units};
use serde::Deserialize;

use receive::{check_glob, check_url};

type Wrong = String;

/// So many rules there may be.
const RULES_MAX: usize = 100;
/// The longest name of a rule.
const NAME_MAX: usize = 64;

/// One `[[alert]]` table.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// What it is called in notices and metrics; what is remembered of it is kept under it.
    pub(crate) name: String,
    pub(crate) when: When,
    /// About which nodes; all, if there is none.
    pub(crate) target: Vec<Pattern>,
    pub(crate) selector: Option<Selector>,
    pub(crate) way: Way,
    pub(crate) format: Format,
    /// What could not be delivered for this long is given up.
    pub(crate) give_up: Duration,
}

/// What it is about.
#[derive(Debug, Clone)]
pub(crate) enum When {
    /// A node was not heard of for this long.
    Offline { during: Duration },
    /// A node has complained for this long; the reason is a glob.
    Degraded { during: Duration, reason: Option<String> },
    /// An order of a job has not come to a good end.
    JobFailed { method: String, domain: String },
    /// A record was reported; that is over when none came for `quiet`.
    Event { method: String, domain: String, condition: Option<Expression>, quiet: Duration },
}

/// How somebody is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    Webhook { url: String, headers: Vec<(String, String)> },
    Command(Vec<String>),
}

/// How a notice is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// One JSON object on one line.
    #[default]
    Json,
    /// One sentence.
    Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    when: String,
    #[serde(rename = "for")]
    during: Option<String>,
    reason: Option<String>,
    method: Option<String>,
    domain: Option<String>,
    #[serde(alias = "from")]
    target: Option<String>,
    selector: Option<String>,
    #[serde(rename = "where")]
    condition: Option<String>,
    quiet: Option<String>,
    webhook: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    command: Option<Vec<String>>,
    #[serde(default)]
    format: Format,
    give_up: Option<String>,
}

/// The keys of a table.
pub(crate) const KEYS: [&str; 17] = [
    "alert", "name", "when", "for", "reason", "method", "domain", "target", "from", "selector", "where", "quiet",
    "webhook", "headers", "command", "format", "give_up",
];

impl Rule {
    /// Whether it is about this node.
    pub(crate) fn is_about(&self, name: &NodeName, labels: &BTreeMap<String, String>) -> bool {
        (self.target.is_empty() || self.target.iter().any(|pattern| pattern.matches(name)))
            && self.selector.as_ref().is_none_or(|selector| selector.matches(labels))
    }

    /// Whether it is about all nodes.
    pub(crate) fn is_about_all(&self) -> bool {
        self.target.is_empty() && self.selector.is_none()
    }
}

fn duration(key: &str, text: Option<&str>, default: Duration) -> Result<Duration, Wrong> {
    text.map_or(Ok(default), |text| units::parse_duration(text).map_err(|error| format!("{key}: {error}")))
}

fn glob(key: &str, text: Option<String>) -> Result<String, Wrong> {
    let text = text.unwrap_or_else(|| "*".into());
    check_glob(key, &text)?;
    Ok(text)
}

impl Written {
    fn understood(mut self) -> Result<Rule, Wrong> {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > NAME_MAX || !self.name.chars().all(is_word) {
            return Err(format!("a name is 1 to {NAME_MAX} small letters, digits and hyphens"));
        }
        let allowed: &[&str] = match self.when.as_str() {
            "offline" => &["for"],
            "degraded" => &["for", "reason"],
            "job-failed" => &["method", "domain"],
            "event" => &["method", "domain", "where", "quiet"],
            other => {
                return Err(format!(
                    "when = {other:?} is none of \"offline\", \"degraded\", \"job-failed\", \"event\""
                ));
            }
        };
        let given = [
            ("for", self.during.is_some()),
            ("reason", self.reason.is_some()),
            ("method", self.method.is_some()),
            ("domain", self.domain.is_some()),
            ("where", self.condition.is_some()),
            ("quiet", self.quiet.is_some()),
        ];
        if let Some((key, _)) = given.into_iter().find(|(key, is_given)| *is_given && !allowed.contains(key)) {
            return Err(format!("`{key}` means nothing with when = {:?}", self.when));
        }
        let during = duration("for", self.during.as_deref(), Duration::ZERO)?;
        let when = match self.when.as_str() {
            "offline" => When::Offline { during },
            "degraded" => When::Degraded { during, reason: self.reason.take() },
            "job-failed" => When::JobFailed {
                method: glob("method", self.method.take())?,
                domain: glob("domain", self.domain.take())?,
            },
            _ => {
                let condition = self.condition.as_deref().map(Expression::over_records).transpose();
                When::Event {
                    method: glob("method", self.method.take())?,
                    domain: glob("domain", self.domain.take())?,
                    condition: condition.map_err(|error| format!("where: {error}"))?,
                    quiet: duration("quiet", self.quiet.as_deref(), Duration::from_secs(600))?
                        .max(Duration::from_secs(1)),
                }
            }
        };
        let target = self.target.as_deref().map(Pattern::parse_list).transpose();
        let selector = self.selector.as_deref().map(Selector::parse).transpose();
        let way = match (self.webhook, self.command) {
            (Some(url), None) => {
                check_url(&url)?;
                Way::Webhook { url, headers: self.headers.into_iter().collect() }
            }
            (None, Some(argv)) if argv.is_empty() => return Err("command is empty: name a program".into()),
            (None, Some(_)) if !self.headers.is_empty() => return Err("headers are for a webhook alone".into()),
            (None, Some(argv)) => Way::Command(argv),
            (None, None) => return Err("it says not who is told: webhook or command".into()),
            (Some(_), Some(_)) => return Err("one way a rule: leave one of webhook and command".into()),
        };
        Ok(Rule {
            name: self.name,
            when,
            target: target.map_err(|error| format!("target: {error}"))?.unwrap_or_default(),
            selector: selector.map_err(|error| format!("selector: {error}"))?,
            way,
            format: self.format,
            give_up: duration("give_up", self.give_up.as_deref(), Duration::from_secs(86_400))?,
        })
    }
}

/// Every table, or which one is wrong.
pub(crate) fn rules<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Rule>, D::Error> {
    use serde::de::Error;
    let written: Vec<Written> = Vec::deserialize(from)?;
    if written.len() > RULES_MAX {
        return Err(D::Error::custom(format!(
            "there are {} [[alert]] tables; at most {RULES_MAX} may be",
            written.len()
        )));
    }
    let mut all: Vec<Rule> = Vec::new();
    for (index, rule) in written.into_iter().enumerate() {
        let what = format!("alert {} ({})", index + 1, rule.name);
        let rule = rule.understood().map_err(|reason| D::Error::custom(format!("{what}: {reason}")))?;
        if all.iter().any(|known| known.name == rule.name) {
            return Err(D::Error::custom(format!("{what}: another one has the same name")));
        }
        all.push(rule);
    }
    Ok(all)
}

impl When {
    /// The word for it.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Offline { .. } => "offline",
            Self::Degraded { .. } => "degraded",
            Self::JobFailed { .. } => "job-failed",
            Self::Event { .. } => "event",
        }
    }

    /// Whether something of this method and domain is meant.
    pub(crate) fn takes(&self, of_method: &str, of_domain: &str) -> bool {
        match self {
            Self::JobFailed { method, domain } | Self::Event { method, domain, .. } => {
                glob_matches(method, of_method) && glob_matches(domain, of_domain)
            }
            Self::Offline { .. } | Self::Degraded { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(&format!("[[alert]]\nname=\"a\"\n{text}"))
    }

    #[test]
    fn a_rule_says_of_what_and_to_whom() {
        for right in [
            "when=\"offline\"\nfor=\"10m\"\ntarget=\"ship*,hub\"\nselector=\"site in (oslo)\"\nwebhook=\"https://x/y\"",
            "when=\"degraded\"\nreason=\"*disk*\"\ncommand=[\"mail\", \"ops\"]\nformat=\"text\"",
            "when=\"job-failed\"\nmethod=\"shell*\"\nwebhook=\"http://x\"\ngive_up=\"1h\"",
            "when=\"event\"\nfrom=\"ship*\"\nwhere=\"record.message.contains('oom')\"\nquiet=\"1m\"\ncommand=[\"x\"]",
        ] {
            let config = parse(right).unwrap_or_else(|error| panic!("{right}: {error}"));
            assert_eq!((config.alert.len(), config.alert[0].name.as_str()), (1, "a"));
        }
    }

    #[test]
    fn mistakes_say_what_and_where() {
        for (wrong, says) in [
            ("when=\"offline\"", "who is told"),
            ("when=\"asleep\"\ncommand=[\"x\"]", "none of \"offline\""),
            ("when=\"offline\"\nquiet=\"1m\"\ncommand=[\"x\"]", "`quiet` means nothing with"),
            ("when=\"offline\"\nfor=\"long\"\ncommand=[\"x\"]", "for: \"long\" is not a duration"),
            ("when=\"offline\"\ncommand=[]", "name a program"),
            ("when=\"offline\"\ncommand=[\"x\"]\nwebhook=\"http://x\"", "one way a rule"),
            ("when=\"offline\"\nwebhook=\"mailto:x\"", "neither http"),
            ("when=\"offline\"\nselector=\"a in b\"\ncommand=[\"x\"]", "selector: "),
            ("when=\"event\"\nwhere=\"facts.x == 1\"\ncommand=[\"x\"]", "is not known; there are name"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(says) && error.contains("alert 1 (a)"), "{wrong}: {error}");
        }
        assert!(parse("when=\"offline\"\nwebhok=\"http://x\"").unwrap_err().contains("Did you mean `webhook`?"));
        let twice =
            parse("when=\"offline\"\ncommand=[\"x\"]\n[[alert]]\nname=\"a\"\nwhen=\"offline\"\ncommand=[\"x\"]");
        assert!(twice.unwrap_err().contains("the same name"));
    }
}
