//! Names: of nodes, methods and domains, with the rules that let them be subject tokens, keys and file names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The most characters a node name, method or domain may have.
pub const LENGTH_MAX: usize = 64;

/// Node names that mean something else on the wire or on the command line.
pub const RESERVED_NODE_NAMES: [&str; 3] = ["all", "in", "core"];

/// Why a name was refused; each says which name, and which character or rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing between two dots, or an empty argument.
    #[error("a {what} is empty: give it 1 to {LENGTH_MAX} characters")]
    Empty {
        /// What was being named: "node name", "method" or "domain".
        what: &'static str,
    },
    /// Longer than [`LENGTH_MAX`].
    #[error(
        "the {what} \"{}…\" has {length} characters: at most {LENGTH_MAX} are allowed",
        .name.chars().take(16).collect::<String>()
    )]
    TooLong {
        /// What was being named.
        what: &'static str,
        /// The name as given.
        name: String,
        /// Its length in characters.
        length: usize,
    },
    /// A character that the rules do not allow.
    #[error("the {what} {name:?} has the character {character:?} at position {position}: {allowed}")]
    Character {
        /// What was being named.
        what: &'static str,
        /// The name as given.
        name: String,
        /// The first character that is not allowed.
        character: char,
        /// Its position, counted from 1.
        position: usize,
        /// What is allowed instead.
        allowed: &'static str,
    },
    /// One of [`RESERVED_NODE_NAMES`].
    #[error("the node name {name:?} is reserved (all, in and core are): choose another")]
    Reserved {
        /// The name as given.
        name: String,
    },
}

const NODE_CHARACTERS: &str = "use letters, digits, `_` and `-`, and begin with a letter or a digit";
const TOKEN_CHARACTERS: &str = "use printable ASCII without space, tab, `.`, `*` and `>`, and do not begin with `$`";

fn check_length(what: &'static str, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    let length = name.chars().count();
    if length > LENGTH_MAX {
        return Err(NameError::TooLong { what, name: name.to_owned(), length });
    }
    Ok(())
}

fn refuse(
    what: &'static str,
    name: &str,
    allowed: &'static str,
    permitted: impl Fn(usize, char) -> bool,
) -> Result<(), NameError> {
    match name.chars().enumerate().find(|&(index, character)| !permitted(index, character)) {
        None => Ok(()),
        Some((index, character)) => {
            Err(NameError::Character { what, name: name.to_owned(), character, position: index + 1, allowed })
        }
    }
}

/// The unique name of an installation: `[A-Za-z0-9][A-Za-z0-9_-]{0,63}`, case-sensitive, not reserved.
///
/// It becomes a subject token, a KV key, a consumer name and a file name, which is why its alphabet is narrow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// Accepts `name` if it follows the rules.
    ///
    /// # Errors
    /// [`NameError`] names the rule or the character that was broken.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let what = "node name";
        check_length(what, &name)?;
        refuse(what, &name, NODE_CHARACTERS, |index, character| {
            character.is_ascii_alphanumeric() || (index > 0 && matches!(character, '_' | '-'))
        })?;
        if RESERVED_NODE_NAMES.contains(&name.as_str()) {
            return Err(NameError::Reserved { name });
        }
        Ok(Self(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A method, a domain or a key: 1 to 64 characters of printable ASCII without space, tab, `.`, `*`, `>`, not starting with `$`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token(String);

impl Token {
    /// Accepts `token` as a method name.
    ///
    /// # Errors
    /// [`NameError`] names the rule or the character that was broken.
    pub fn method(token: impl Into<String>) -> Result<Self, NameError> {
        Self::named("method", token.into())
    }

    /// Accepts `token` as a domain.
    ///
    /// # Errors
    /// [`NameError`] names the rule or the character that was broken.
    pub fn domain(token: impl Into<String>) -> Result<Self, NameError> {
        Self::named("domain", token.into())
    }

    /// Accepts `token` as a key, such as the one that orders supersede each other under.
    ///
    /// # Errors
    /// [`NameError`] names the rule or the character that was broken.
    pub fn key(token: impl Into<String>) -> Result<Self, NameError> {
        Self::named("key", token.into())
    }

    /// Accepts `token` as the name of a role that operators may have.
    ///
    /// # Errors
    /// [`NameError`] names the rule or the character that was broken.
    pub fn role(token: impl Into<String>) -> Result<Self, NameError> {
        Self::named("role", token.into())
    }

    fn named(what: &'static str, token: String) -> Result<Self, NameError> {
        check_length(what, &token)?;
        refuse(what, &token, TOKEN_CHARACTERS, |index, character| {
            character.is_ascii_graphic() && !matches!(character, '.' | '*' | '>') && !(index == 0 && character == '$')
        })?;
        Ok(Self(token))
    }

    /// The token as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_like {
    ($name:ident, $parse:path) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                $parse(text)
            }
        }
        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                $parse(text)
            }
        }
    };
}
text_like!(NodeName, NodeName::new);
text_like!(Token, token);

fn token(text: impl Into<String>) -> Result<Token, NameError> {
    Token::named("name", text.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ship1")]
    #[case("0")]
    #[case("A-b_C")]
    #[case("Central")]
    fn a_plain_node_name_is_accepted(#[case] name: &str) {
        assert_eq!(NodeName::new(name).unwrap().as_str(), name);
    }

    #[rstest]
    #[case("", "is empty")]
    #[case("sh ip", "' ' at position 3")]
    #[case("ship.1", "'.' at position 5")]
    #[case("-ship", "'-' at position 1")]
    #[case("ship\t", "'\\t' at position 5")]
    #[case("schön", "'ö' at position 4")]
    #[case("all", "reserved")]
    #[case("../x", "'.' at position 1")]
    fn a_bad_node_name_is_refused_with_the_character(#[case] name: &str, #[case] says: &str) {
        let error = NodeName::new(name).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    #[rstest]
    #[case("a.b", "'.'")]
    #[case("*", "'*'")]
    #[case("a>", "'>'")]
    #[case("$JS", "'$'")]
    #[case("a b", "' '")]
    fn a_bad_method_is_refused_with_the_character(#[case] token: &str, #[case] says: &str) {
        let error = Token::method(token).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("method"), "{error}");
    }

    #[test]
    fn sixty_four_characters_fit_and_sixty_five_do_not() {
        assert!(NodeName::new("n".repeat(64)).is_ok());
        assert!(NodeName::new("n".repeat(65)).is_err());
        assert!(Token::domain("d".repeat(64)).is_ok());
        assert!(Token::domain("d".repeat(65)).is_err());
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_always_one_subject_token(text in ".{0,80}") {
            if let Ok(token) = Token::method(text.clone()) {
                prop_assert!(!token.as_str().contains(['.', ' ', '\t', '*', '>', '\r', '\n']));
                prop_assert_eq!(token.as_str(), text.as_str());
            }
            if let Ok(name) = NodeName::new(text) {
                prop_assert!(name.as_str().chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'));
            }
        }
    }
}
