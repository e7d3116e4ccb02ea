//! Label selectors: which nodes are meant by what operators signed about them. Syntax and meaning are those of Kubernetes.
//!
//! `site=oslo,tier!=prod,role in (a, b),zone notin (x),gpu,!old`: all of them must hold. A node without the label fulfils
//! `!=`, `notin` and `!label`, and none of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::target::TargetError;

/// The labels of a node.
pub type Labels = BTreeMap<String, String>;

/// The longest text of a selector, the most requirements in it, and the most values of one.
const TEXT_MAX: usize = 2048;
const REQUIREMENTS_MAX: usize = 32;
const VALUES_MAX: usize = 64;
/// The longest prefix of a label, and the longest name or value.
const PREFIX_MAX: usize = 253;
const PART_MAX: usize = 63;

/// A selector that was understood. Two that say the same in other words are equal, and are written alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    label: String,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Exists,
    Absent,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
}

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    /// [`TargetError`] echoes the text with a `^` under the character that is wrong.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let characters: Vec<char> = text.chars().take(TEXT_MAX + 1).collect();
        let mut reader = Reader { characters: &characters, at: 0 };
        let wrong = |(at, message): Wrong| TargetError::at(message, text, at);
        if characters.len() > TEXT_MAX {
            let start: String = characters.iter().take(PART_MAX).collect();
            return Err(TargetError::at(format!("a selector has at most {TEXT_MAX} characters"), &start, 0));
        }
        let mut requirements = Vec::new();
        loop {
            requirements.push(reader.requirement().map_err(wrong)?);
            reader.skip_space();
            match reader.peek() {
                None => return Ok(Self { requirements }),
                Some(',') if requirements.len() < REQUIREMENTS_MAX => reader.at += 1,
                Some(',') => {
                    return Err(wrong((reader.at, format!("a selector has at most {REQUIREMENTS_MAX} requirements"))));
                }
                Some(other) => {
                    return Err(wrong((
                        reader.at,
                        format!("{other:?} is not expected here: requirements are separated by commas"),
                    )));
                }
            }
        }
    }

    /// Whether a node with these labels is meant.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.label);
            match &requirement.what {
                What::Exists => value.is_some(),
                What::Absent => value.is_none(),
                What::In(values) => value.is_some_and(|value| values.contains(value)),
                What::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            }
        })
    }
}

impl Selector {
    /// Why a node with these labels is meant: each requirement, with the label's value where the requirement leaves it open.
    pub fn why(&self, labels: &Labels) -> Vec<String> {
        let told = |requirement: &Requirement| {
            let words = Self { requirements: vec![requirement.clone()] }.to_string();
            let value = labels.get(&requirement.label);
            match (&requirement.what, value) {
                (What::In(values), _) if values.len() == 1 => words,
                (What::Absent, _) => words,
                (_, Some(value)) => format!("{words} ({}={value})", requirement.label),
                (_, None) => format!("{words} (no label {})", requirement.label),
            }
        };
        self.requirements.iter().map(told).collect()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { label, what }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match what {
                What::Exists => write!(f, "{label}")?,
                What::Absent => write!(f, "!{label}")?,
                What::In(values) => write_values(f, label, "=", "in", values)?,
                What::NotIn(values) => write_values(f, label, "!=", "notin", values)?,
            }
        }
        Ok(())
    }
}

fn write_values(
    f: &mut fmt::Formatter<'_>,
    label: &str,
    sign: &str,
    word: &str,
    values: &BTreeSet<String>,
) -> fmt::Result {
    if let (1, Some(value)) = (values.len(), values.first()) {
        return write!(f, "{label}{sign}{value}");
    }
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    write!(f, "{label} {word} ({})", values.join(","))
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

impl TryFrom<String> for Selector {
    type Error = TargetError;
    fn try_from(text: String) -> Result<Self, TargetError> {
        Self::parse(&text)
    }
}

impl std::str::FromStr for Selector {
    type Err = TargetError;
    fn from_str(text: &str) -> Result<Self, TargetError> {
        Self::parse(text)
    }
}

/// Whether `key` can be the name of a label: `site`, `example.com/site`.
pub fn is_label(key: &str) -> bool {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let prefix_ok = prefix.is_none_or(|prefix| (1..=PREFIX_MAX).contains(&prefix.len()) && is_plain(prefix));
    prefix_ok && (1..=PART_MAX).contains(&name.len()) && is_plain(name)
}

/// Whether `value` can be the value of a label; it may be empty.
pub fn is_label_value(value: &str) -> bool {
    value.is_empty() || (value.len() <= PART_MAX && is_plain(value))
}

/// Letters, digits, `_`, `-` and `.`, with a letter or digit at both ends.
fn is_plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// Where, and what.
type Wrong = (usize, String);

struct Reader<'a> {
    characters: &'a [char],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.characters.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    /// Characters that a label or a value may have.
    fn word(&mut self) -> (usize, String) {
        self.skip_space();
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/')) {
            self.at += 1;
        }
        (start, self.characters[start..self.at].iter().collect())
    }

    fn label(&mut self) -> Result<String, Wrong> {
        let (start, word) = self.word();
        if word.is_empty() {
            return Err(match self.peek() {
                Some(found) => (self.at, format!("{found:?} cannot begin a label: a label is missing here")),
                None => (self.at, "a label is missing here".into()),
            });
        }
        if !is_label(&word) {
            return Err((
                start,
                format!(
                    "{word:?} cannot be a label: use up to 63 letters, digits, `_`, `-` and `.`, with a letter or digit at both ends"
                ),
            ));
        }
        Ok(word)
    }

    fn value(&mut self) -> Result<String, Wrong> {
        let (start, word) = self.word();
        if is_label_value(&word) {
            Ok(word)
        } else {
            Err((
                start,
                format!(
                    "{word:?} cannot be the value of a label: use up to 63 letters, digits, `_`, `-` and `.`, with a letter or digit at both ends"
                ),
            ))
        }
    }

    fn requirement(&mut self) -> Result<Requirement, Wrong> {
        self.skip_space();
        if self.peek() == Some('!') {
            self.at += 1;
            return Ok(Requirement { label: self.label()?, what: What::Absent });
        }
        let label = self.label()?;
        self.skip_space();
        let what = match (self.peek(), self.characters.get(self.at + 1)) {
            (None | Some(','), _) => What::Exists,
            (Some('='), Some('=')) => {
                self.at += 2;
                What::In([self.value()?].into())
            }
            (Some('='), _) => {
                self.at += 1;
                What::In([self.value()?].into())
            }
            (Some('!'), Some('=')) => {
                self.at += 2;
                What::NotIn([self.value()?].into())
            }
            _ => {
                let (start, word) = self.word();
                match word.as_str() {
                    "in" => What::In(self.values()?),
                    "notin" => What::NotIn(self.values()?),
                    _ => {
                        return Err((
                            start,
                            "here `=`, `==`, `!=`, `in (…)`, `notin (…)`, a comma or the end is expected".into(),
                        ));
                    }
                }
            }
        };
        Ok(Requirement { label, what })
    }

    fn values(&mut self) -> Result<BTreeSet<String>, Wrong> {
        self.skip_space();
        if self.peek() != Some('(') {
            return Err((self.at, "a list of values in brackets is expected here, like (a, b)".into()));
        }
        self.at += 1;
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            self.skip_space();
            match self.peek() {
                Some(',') if values.len() < VALUES_MAX => self.at += 1,
                Some(',') => return Err((self.at, format!("a label is compared with at most {VALUES_MAX} values"))),
                Some(')') => {
                    self.at += 1;
                    return Ok(values);
                }
                _ => return Err((self.at, "a comma or `)` is expected here".into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn labels(text: &str) -> Labels {
        text.split_whitespace().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[rstest]
    #[case("site=oslo", "site=oslo", true)]
    #[case("site==oslo", "site=oslo", true)]
    #[case("site=oslo", "site=bergen", false)]
    #[case("site=oslo", "", false)]
    #[case("site!=oslo", "site=bergen", true)]
    #[case("site!=oslo", "", true)]
    #[case("site!=oslo", "site=oslo", false)]
    #[case("tier in (a, b)", "tier=b", true)]
    #[case("tier in (a,b)", "tier=c", false)]
    #[case("tier notin (a,b)", "tier=c", true)]
    #[case("tier notin (a,b)", "", true)]
    #[case("tier notin (a,b)", "tier=a", false)]
    #[case("gpu", "gpu=", true)]
    #[case("gpu", "", false)]
    #[case("!gpu", "", true)]
    #[case("! gpu", "gpu=1", false)]
    #[case("in=in,in in (in)", "in=in", true)]
    #[case(" site = oslo , tier != prod ", "site=oslo tier=test", true)]
    #[case("site=oslo,tier!=prod", "site=oslo tier=prod", false)]
    #[case("site=", "site=", true)]
    #[case("example.com/site=a.b-c_d", "example.com/site=a.b-c_d", true)]
    fn a_selector_means_what_it_means_in_kubernetes(#[case] text: &str, #[case] of: &str, #[case] meant: bool) {
        let selector = Selector::parse(text).unwrap();
        assert_eq!(selector.matches(&labels(of)), meant);
        assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
    }

    #[test]
    fn a_selector_says_why_a_node_is_meant() {
        let why = |text: &str| Selector::parse(text).unwrap().why(&labels("site=oslo tier=a"));
        assert_eq!(why("site=oslo,tier in (a,b)"), ["site=oslo", "tier in (a,b) (tier=a)"]);
        assert_eq!(why("role!=test,!gpu"), ["role!=test (no label role)", "!gpu"]);
    }

    #[rstest]
    #[case("", 0)]
    #[case("site=oslo,", 10)]
    #[case("site=oslo tier=a", 10)]
    #[case("site in a", 8)]
    #[case("site in (a", 10)]
    #[case("site is a", 5)]
    #[case("a,-b", 2)]
    #[case("schön", 3)]
    #[case("a=b,c=d)", 7)]
    #[case("!", 1)]
    fn a_wrong_selector_is_echoed_with_a_mark_under_the_character(#[case] text: &str, #[case] at: usize) {
        let error = Selector::parse(text).unwrap_err().to_string();
        let (echo, mark) = error.split_once('\n').unwrap().1.split_once('\n').unwrap();
        assert_eq!(echo, format!("  {text}"), "{error}");
        assert_eq!(mark.len(), at + 3, "{error}");
    }

    #[test]
    fn a_selector_is_bounded() {
        assert!(Selector::parse(&"a,".repeat(2000)).is_err());
        assert!(Selector::parse(&vec!["a"; 33].join(",")).is_err());
        let many: Vec<String> = (0..65).map(|n| format!("v{n}")).collect();
        assert!(Selector::parse(&format!("a in ({})", many.join(","))).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_is_read_is_written_alike(text in "[a-c!=(), /.-]{0,30}|.{0,40}") {
            match Selector::parse(&text) {
                Ok(selector) => prop_assert_eq!(Selector::parse(&selector.to_string()), Ok(selector)),
                Err(error) => drop(error.to_string()),
            }
        }
    }
}
