//! `station.toml`: what the station takes from the stream of events, and of what it tells somebody. Pure.

use std::path::Path;

use receive::Receive;
use serde::Deserialize;

/// A configuration of the station.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What it takes, and where that goes.
    #[serde(default, deserialize_with = "receive::tables")]
    pub(crate) receive: Vec<Receive>,
    /// Of what somebody is told.
    #[serde(default, deserialize_with = "crate::alert::rules")]
    pub(crate) alert: Vec<crate::alert::Rule>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// A sentence that says what is wrong, and where.
    pub fn load(path: &Path) -> Result<Self, String> {
        let wrong = |reason: String| format!("{}: {reason}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        Self::parse(&text).map_err(wrong)
    }

    /// Reads the text of a configuration.
    ///
    /// # Errors
    /// A sentence that says what is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| explain(&error.to_string()))
    }
}

/// Adds the nearest known key to the parser's complaint about an unknown one.
fn explain(error: &str) -> String {
    let unknown = error.split("unknown field `").nth(1).and_then(|rest| rest.split('`').next());
    let nearest = unknown.and_then(|unknown| {
        let near = |key: &&str| strsim::damerau_levenshtein(key, unknown);
        receive::KEYS
            .iter()
            .chain(["receive"].iter())
            .chain(&crate::alert::KEYS)
            .min_by_key(|key| near(key))
            .filter(|key| near(key) <= 3)
    });
    match nearest {
        Some(key) => format!("{}\nDid you mean `{key}`?", error.trim_end()),
        None => error.trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_told_with_the_nearest_known_one() {
        for (text, near) in [("[[receive]]\nfil = \"/x\"", "file"), ("[[receve]]\nfile = \"/x\"", "receive")] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(&format!("Did you mean `{near}`?")), "{error}");
        }
    }
}
