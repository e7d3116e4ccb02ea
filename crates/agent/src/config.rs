//! `agent.toml`: what a node reports, and what it lets be done here at most. Unknown keys are errors that name the nearest known one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use message::policy::Glob;
use message::{NodeName, Token, units};
use serde::Deserialize;

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
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
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
    /// What it reports.
    #[serde(default)]
    pub event: Vec<EventSource>,
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventSource {
    /// What kind of thing is reported.
    pub method: Token,
    /// What it is about.
    pub domain: Token,
    /// Who is told.
    #[serde(default = "central")]
    pub to: NodeName,
    /// The file that is followed.
    pub file: PathBuf,
}

fn central() -> NodeName {
    // A literal that follows the rules for names; the tests read it.
    #[allow(clippy::expect_used)]
    NodeName::new("central").expect("\"central\" is a valid node name")
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

const KEYS: [&str; 12] = [
    "name",
    "life_sign",
    "link",
    "allow_methods",
    "allow_domains",
    "run_as",
    "deny_shell",
    "event",
    "method",
    "domain",
    "to",
    "file",
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
        for (index, source) in config.event.iter().enumerate() {
            if !source.file.is_absolute() {
                return Err(format!(
                    "event {} ({}/{}): file = {:?} is not an absolute path",
                    index + 1,
                    source.method,
                    source.domain,
                    source.file.display().to_string()
                ));
            }
        }
        Ok(config)
    }
}

/// Adds the nearest known key to the parser's complaint about an unknown one.
fn explain(error: &str) -> String {
    let Some(unknown) = error.split("unknown field `").nth(1).and_then(|rest| rest.split('`').next()) else {
        return error.trim_end().to_owned();
    };
    let nearest = KEYS.into_iter().min_by_key(|key| strsim::damerau_levenshtein(key, unknown));
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
        assert_eq!(config.event[0].file, Path::new("/var/log/nginx/access.log"));
    }

    #[test]
    fn a_link_says_how_often_a_unit_speaks() {
        let link = Config::parse("link = \"metered\"").unwrap().link.unwrap();
        assert_eq!((link, link.life_sign()), (Link::Metered, Duration::from_secs(1800)));
        assert!(LIFE_SIGNS.contains(&link.life_sign()));
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
