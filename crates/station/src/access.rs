//! Who may look: tokens with a name, a role and an end. What is stored of a token is its digest.
//!
//! The file belongs to the station's host; whoever may write it decides who may look. A token gives no say in what is
//! ordered: that needs an operator's signature.

use std::fmt;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use message::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use receive::files;

/// What a token begins with, so that people and scanners of sources know it.
const PREFIX: &str = "steward-station-";
/// So many tokens there are at most.
const TOKENS_MAX: usize = 1000;
/// The longest name.
const NAME_MAX: usize = 64;

/// What a token lets its holder see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// How nodes and jobs stand: names, labels, states, ages, counts.
    Watch,
    /// All of that, and what was said: facts, events, the output of commands.
    Read,
}

impl Role {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Read => "read",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "watch" => Ok(Self::Watch),
            "read" => Ok(Self::Read),
            _ => Err("a role is `watch` (how nodes and jobs stand) or `read` (also facts, events and output)".into()),
        }
    }
}

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEntry {
    /// Who holds it: unique.
    pub name: String,
    /// What it lets its holder see.
    pub role: Role,
    /// The SHA-256 of the token, in hexadecimal.
    pub sha256: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    v: u8,
    tokens: Vec<TokenEntry>,
}

/// Why tokens cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The file cannot be read or written.
    #[error("the tokens of the station at {} cannot be {action}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// What stands in the file is no list of tokens.
    #[error("{} is no list of tokens: {reason}. Move it away, and make new ones with `steward station token add`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// What is asked for makes no sense.
    #[error("{0}")]
    Usage(String),
}

/// The file of tokens. One that is not there holds none.
#[derive(Debug, Clone)]
pub struct Tokens(PathBuf);

impl Tokens {
    /// The tokens in `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// All of them, in the order in which they were made.
    ///
    /// # Errors
    /// [`AccessError`] when the file cannot be read or understood.
    pub fn list(&self) -> Result<Vec<TokenEntry>, AccessError> {
        let text = match std::fs::read(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(AccessError::File { path: self.0.clone(), action: "read", source }),
        };
        let damaged = |reason: String| AccessError::Damaged { path: self.0.clone(), reason };
        let stored: Stored = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if stored.v == 1 { Ok(stored.tokens) } else { Err(damaged(format!("it is of version {}", stored.v))) }
    }

    /// Makes a token; it is told here and nowhere again.
    ///
    /// # Errors
    /// [`AccessError::Usage`] when the name is taken or unfit, otherwise when the file cannot be changed.
    pub fn add(
        &self,
        name: &str,
        role: Role,
        now: Timestamp,
        expires: Option<Timestamp>,
    ) -> Result<String, AccessError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@');
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(fits) {
            return Err(AccessError::Usage(format!(
                "the name of a token has 1 to {NAME_MAX} letters, digits, and `_ - . @`"
            )));
        }
        let mut bits = [0; 32];
        getrandom::fill(&mut bits).map_err(|error| AccessError::File {
            path: "/dev/urandom".into(),
            action: "read",
            source: io::Error::other(error.to_string()),
        })?;
        let secret = format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bits));
        self.change(|tokens| {
            if tokens.iter().any(|token| token.name == name) {
                return Err(AccessError::Usage(format!(
                    "there is a token {name:?} already; take it away first (`steward station token rm {name}`)"
                )));
            }
            if tokens.len() >= TOKENS_MAX {
                return Err(AccessError::Usage(format!("there are {TOKENS_MAX} tokens already, which is the most")));
            }
            let sha256 = digest(&secret);
            tokens.push(TokenEntry { name: name.to_owned(), role, sha256, created: now, expires });
            Ok(())
        })?;
        Ok(secret)
    }

    /// Takes a token away: whoever shows it from then on is nobody.
    ///
    /// # Errors
    /// [`AccessError::Usage`] when there is none of that name, otherwise when the file cannot be changed.
    pub fn remove(&self, name: &str) -> Result<(), AccessError> {
        self.change(|tokens| {
            let before = tokens.len();
            tokens.retain(|token| token.name != name);
            if tokens.len() == before {
                let message = format!("there is no token {name:?}; `steward station token ls` lists them");
                return Err(AccessError::Usage(message));
            }
            Ok(())
        })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<TokenEntry>) -> Result<(), AccessError>) -> Result<(), AccessError> {
        let failed = |source| AccessError::File { path: self.0.clone(), action: "written", source };
        if let Some(dir) = self.0.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        // Two that change it at once do so one after the other.
        let lock_path = files::beside(&self.0, "lock");
        let lock = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(lock_path);
        let lock = lock.map_err(failed)?;
        lock.lock().map_err(failed)?;
        let mut tokens = self.list()?;
        change(&mut tokens)?;
        let mut text = serde_json::to_vec_pretty(&Stored { v: 1, tokens }).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        files::replace(&self.0, &text).map_err(failed)
    }
}

/// What is stored of a token. Nobody guesses 256 random bits, so that nothing slower is needed.
pub(crate) fn digest(secret: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(secret))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_told_once_and_only_its_digest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::at(dir.path().join("station/tokens.json"));
        assert_eq!(tokens.list().unwrap(), []);
        let now = Timestamp::from_ms(5);
        let secret = tokens.add("grafana", Role::Watch, now, None).unwrap();
        let other = tokens.add("anna@example", Role::Read, now, Some(Timestamp::from_ms(9))).unwrap();
        assert!(secret.starts_with(PREFIX) && secret.len() > 50 && secret != other);
        let text = std::fs::read_to_string(tokens.path()).unwrap();
        assert!(!text.contains(&secret[PREFIX.len()..]));
        assert_eq!(std::fs::metadata(tokens.path()).unwrap().permissions().mode() & 0o777, 0o600);
        let listed = tokens.list().unwrap();
        assert_eq!((listed.len(), listed[0].sha256 == digest(&secret), listed[1].role), (2, true, Role::Read));
        assert!(tokens.add("grafana", Role::Read, now, None).unwrap_err().to_string().contains("already"));
        assert!(tokens.add("a b", Role::Read, now, None).is_err());
        tokens.remove("grafana").unwrap();
        assert!(tokens.remove("grafana").unwrap_err().to_string().contains("token ls"));
        assert_eq!(tokens.list().unwrap().len(), 1);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_list() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::at(dir.path().join("tokens.json"));
        for text in ["", "{}", "[]", r#"{"v":2,"tokens":[]}"#, r#"{"v":1,"tokens":[{"name":"x"}]}"#] {
            std::fs::write(tokens.path(), text).unwrap();
            assert!(tokens.list().is_err() && tokens.add("x", Role::Watch, Timestamp::default(), None).is_err());
        }
    }

    #[test]
    fn tokens_that_are_made_at_once_are_all_there() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::at(dir.path().join("tokens.json"));
        std::thread::scope(|scope| {
            for number in 0..8 {
                let tokens = tokens.clone();
                scope
                    .spawn(move || tokens.add(&format!("t{number}"), Role::Watch, Timestamp::default(), None).unwrap());
            }
        });
        assert_eq!(tokens.list().unwrap().len(), 8);
    }
}
