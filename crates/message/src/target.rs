//! Targets as people write them: names and globs, separated by commas.

use std::fmt;

use crate::name::{LENGTH_MAX, NodeName};

/// One part of a `TARGET`: a node name, or a glob in which `*` stands for any characters and `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// Exactly this node.
    Name(NodeName),
    /// Every node whose name matches.
    Glob(String),
}

/// A target that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n  {text}\n  {:>width$}", "^", width = .position + 1)]
pub struct TargetError {
    message: String,
    text: String,
    position: usize,
}

impl TargetError {
    pub(crate) fn at(message: String, text: &str, position: usize) -> Self {
        Self { message, text: text.to_owned(), position }
    }
}

impl Pattern {
    /// Reads a comma-separated list of names and globs.
    ///
    /// # Errors
    /// [`TargetError`] echoes the text with a `^` under the character that is wrong.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, TargetError> {
        let mut start = 0;
        let mut patterns = Vec::new();
        for part in text.split(',') {
            let wrong = |(offset, message)| TargetError::at(message, text, start + offset);
            patterns.push(Self::parse(part).map_err(wrong)?);
            start += part.chars().count() + 1;
        }
        Ok(patterns)
    }

    fn parse(part: &str) -> Result<Self, (usize, String)> {
        if part.is_empty() {
            return Err((0, "a node name or a glob is missing here".into()));
        }
        if part.contains(['*', '?']) {
            let wrong = part
                .chars()
                .enumerate()
                .find(|(_, c)| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '*' | '?')));
            if let Some((index, character)) = wrong {
                return Err((
                    index,
                    format!("the glob {part:?} has the character {character:?}, which no node name has"),
                ));
            }
            if part.len() > 4 * LENGTH_MAX {
                return Err((0, format!("a glob has at most {} characters", 4 * LENGTH_MAX)));
            }
            return Ok(Self::Glob(part.to_owned()));
        }
        NodeName::new(part).map(Self::Name).map_err(|error| {
            let offset = match &error {
                crate::name::NameError::Character { position, .. } => position - 1,
                _ => 0,
            };
            (offset, error.to_string())
        })
    }

    /// Whether `name` is meant.
    pub fn matches(&self, name: &NodeName) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Glob(glob) => glob_matches(glob, name.as_str()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Glob(glob) => f.write_str(glob),
        }
    }
}

/// Whether `text` matches `glob`, in which `*` stands for any characters and `?` for one, both of ASCII.
///
/// On a mismatch only the last `*` takes one character more, so the time is bounded by the product of the lengths.
pub fn glob_matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                retry = Some((g, t));
                g += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match retry {
                Some((star, from)) => {
                    retry = Some((star, from + 1));
                    g = star + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ship*", "ship1", true)]
    #[case("ship*", "Ship1", false)]
    #[case("*1", "ship1", true)]
    #[case("s?ip1", "ship1", true)]
    #[case("*a*b", "xaxbxb", true)]
    #[case("*a*b", "xaxbx", false)]
    #[case("ship1", "ship1", true)]
    #[case("ship1", "ship10", false)]
    fn a_glob_matches_as_in_a_shell(#[case] glob: &str, #[case] name: &str, #[case] expected: bool) {
        let patterns = Pattern::parse_list(glob).unwrap();
        assert_eq!(patterns[0].matches(&NodeName::new(name).unwrap()), expected);
    }

    #[test]
    fn a_wrong_target_is_echoed_with_a_mark_under_the_character() {
        let error = Pattern::parse_list("ship1,sh ip2").unwrap_err().to_string();
        assert!(error.ends_with("\n  ship1,sh ip2\n          ^"), "{error}");
        assert!(Pattern::parse_list("ship1,,ship2").is_err());
        assert!(Pattern::parse_list("").is_err());
    }

    proptest! {
        #[test]
        fn a_glob_of_stars_and_parts_matches_what_it_was_made_from(parts in proptest::collection::vec("[a-z]{1,5}", 1..5)) {
            // "in", "core" and the like are not names of nodes.
            if let Ok(name) = NodeName::new(parts.concat()) {
                let glob = parts.iter().map(|part| format!("*{}", &part[1..])).collect::<String>();
                prop_assert!(Pattern::parse_list(&glob).unwrap()[0].matches(&name));
            }
        }

        #[test]
        fn parsing_never_panics(text in ".{0,60}") {
            if let Err(error) = Pattern::parse_list(&text) {
                let _ = error.to_string();
            }
        }
    }
}
