//! What agent and keeper say to each other. Plain data.
//!
//! An agent of one version may find the keeper of another that holds its programs: within one [`MAJOR`], what is not known is passed over,
//! and what is new has a default. Raise it only when both sides would misunderstand each other.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use exec::Stream;

/// The version of what they say.
pub(crate) const MAJOR: u32 = 1;

/// Under what a program is held: 128 bits that are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(pub [u8; 16]);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for Id {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| "an id is hexadecimal")?;
        bytes.try_into().map(Self).map_err(|_| "an id has 32 digits")
    }
}

/// What to run: see [`exec::Program`], of which this is the part that travels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// A text that is stored in a file for as long as the program runs.
    pub script: Option<Script>,
    /// Added to the environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it runs; `None` is where the keeper was started.
    pub cwd: Option<PathBuf>,
    /// The local user to run as.
    pub user: Option<String>,
    /// What it reads.
    pub stdin: Option<Bytes>,
    /// How long it may run.
    pub timeout: Duration,
    /// Bytes kept of each stream.
    pub max_output: u64,
    /// Up to how many bytes of stdout are told again at the end, in one piece; longer ones are not.
    pub answer_max: usize,
    /// What it finds in files that are in memory only, and that nobody else may read.
    pub secrets: Vec<Secret>,
}

/// A secret: the name of its file, and what stands in it. Told to nobody but the keeper, not by `Debug` either.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// The name of its file.
    pub name: String,
    /// What stands in it.
    #[serde(with = "base64")]
    pub value: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).finish_non_exhaustive()
    }
}

mod base64 {
    use serde::de::{Deserialize as _, Deserializer, Error as _};
    use serde::ser::{Serialize as _, Serializer};

    use super::{BASE64, Zeroizing};

    pub(super) fn serialize<S: Serializer>(value: &Zeroizing<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        Zeroizing::new(BASE64.encode(value)).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Zeroizing<Vec<u8>>, D::Error> {
        let text = Zeroizing::new(String::deserialize(from)?);
        BASE64.decode(text.as_bytes()).map(Zeroizing::new).map_err(|_| D::Error::custom("a secret is not base64"))
    }
}

/// A script: the path of its file is added to the arguments, then these are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// What stands in it.
    pub text: String,
    /// What comes behind it.
    pub args: Vec<String>,
}

/// What became of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Bytes that were kept and handed on.
    pub bytes: u64,
    /// Bytes that were printed.
    pub total_bytes: u64,
    /// SHA-256 over the kept bytes, in hexadecimal.
    pub sha256: String,
}

impl From<&exec::Tally> for Tally {
    fn from(tally: &exec::Tally) -> Self {
        Self { bytes: tally.kept, total_bytes: tally.total, sha256: HEXLOWER.encode(&tally.sha256) }
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum End {
    /// By itself.
    Exited {
        /// With this code.
        code: i32,
    },
    /// By a signal that was not the keeper's.
    Signalled {
        /// Its number.
        signal: i32,
    },
    /// Its time was up, and its tree was ended.
    TimedOut,
    /// The agent had it ended.
    Cancelled,
    /// The keeper was told to end itself, and ended its programs.
    Stopped,
    /// It never ran.
    NotStarted {
        /// A sentence.
        reason: String,
    },
    /// In a way that this version has no word for.
    #[serde(other)]
    Unknown,
}

/// Everything about a program that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// How it ended.
    #[serde(flatten)]
    pub end: End,
    /// What became of its stdout.
    pub stdout: Tally,
    /// What became of its stderr.
    pub stderr: Tally,
    /// How many pieces of output there are.
    pub pieces: u32,
    /// What went wrong with its output, if anything did: a sentence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trouble: Option<String>,
    /// All of its stdout, if that was asked for and it is not too long.
    #[serde(skip)]
    pub answer: Option<Bytes>,
}

/// What an agent says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum Request {
    /// The first word.
    Hello { major: u32 },
    /// Run this, unless that id is held already; its stdin stands beside.
    Start(Box<Start>),
    /// Tell what is left of that one, from the first piece that was not taken.
    Attach { id: Id },
    /// The pieces below this number are safe: forget them.
    Taken { id: Id, below: u32 },
    /// End its tree.
    End { id: Id },
    /// It is dealt with: forget it, now or when it has ended.
    Forget { id: Id },
    /// End yourself if you hold nothing; `all`: end all that you hold first.
    Quit {
        #[serde(default)]
        all: bool,
    },
    #[serde(other)]
    Unknown,
}

/// What a keeper says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum Report {
    /// The answer to the first word.
    Welcome {
        major: u32,
        held: Vec<Id>,
        /// Whether it lays out secrets: an older one would pass them over, and run the program without.
        #[serde(default)]
        secrets: bool,
    },
    /// A piece of output, which stands beside.
    Output { id: Id, number: u32, is_stderr: bool },
    /// It is over. What it answered stands beside, if `answers`.
    Ended {
        id: Id,
        #[serde(default)]
        answers: bool,
        finished: Finished,
    },
    /// The answer to [`Request::Attach`] of what is not held.
    NotHeld { id: Id },
    #[serde(other)]
    Unknown,
}

/// A [`Program`] as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) id: Id,
    argv: Vec<Text>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    script: Option<Script>,
    #[serde(default)]
    env: Vec<(Text, Text)>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    cwd: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    user: Option<String>,
    #[serde(default)]
    reads: bool,
    timeout_ms: u64,
    max_output: u64,
    #[serde(default)]
    answer_max: usize,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    secrets: Vec<Secret>,
}

impl Start {
    pub(crate) fn new(id: Id, program: &Program) -> Self {
        Self {
            id,
            argv: program.argv.iter().cloned().map(Text::from).collect(),
            script: program.script.clone(),
            env: program.env.iter().cloned().map(|(name, value)| (name.into(), value.into())).collect(),
            cwd: program.cwd.clone().map(|path| path.into_os_string().into()),
            user: program.user.clone(),
            reads: program.stdin.is_some(),
            timeout_ms: u64::try_from(program.timeout.as_millis()).unwrap_or(u64::MAX),
            max_output: program.max_output,
            answer_max: program.answer_max,
            secrets: program.secrets.clone(),
        }
    }

    pub(crate) fn program(self, stdin: Bytes) -> Program {
        Program {
            argv: self.argv.into_iter().map(OsString::from).collect(),
            script: self.script,
            env: self.env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            cwd: self.cwd.map(|path| OsString::from(path).into()),
            user: self.user,
            stdin: self.reads.then_some(stdin),
            timeout: Duration::from_millis(self.timeout_ms),
            max_output: self.max_output,
            answer_max: self.answer_max,
            secrets: self.secrets,
        }
    }
}

/// Text of the operating system: nearly always UTF-8, and then written as such.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Bytes(Vec<u8>),
}

impl From<OsString> for Text {
    fn from(text: OsString) -> Self {
        text.into_string().map_or_else(|text| Self::Bytes(text.as_bytes().to_vec()), Self::Plain)
    }
}

impl From<Text> for OsString {
    fn from(text: Text) -> Self {
        match text {
            Text::Plain(text) => text.into(),
            Text::Bytes(bytes) => Self::from_vec(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_arrives_as_it_was_sent() {
        let program = Program {
            argv: vec!["a".into(), OsString::from_vec(vec![0xff, b'b'])],
            script: Some(Script { text: "echo".into(), args: vec!["x".into()] }),
            env: vec![("N".into(), "V".into())],
            cwd: Some("/tmp".into()),
            user: Some("root".into()),
            stdin: Some(Bytes::from("in")),
            timeout: Duration::from_secs(5),
            max_output: 7,
            answer_max: 9,
            secrets: vec![Secret { name: "A".into(), value: vec![0, 255].into() }],
        };
        assert!(!format!("{program:?}").contains("255"), "a value is told to nobody");
        let json = serde_json::to_string(&Request::Start(Box::new(Start::new(Id([7; 16]), &program)))).unwrap();
        let Request::Start(start) = serde_json::from_str(&json).unwrap() else { panic!("{json}") };
        assert_eq!((start.id, start.program(Bytes::from("in"))), (Id([7; 16]), program));
    }

    #[test]
    fn words_and_fields_of_later_versions_are_passed_over() {
        let later: Request = serde_json::from_str(r#"{"say":"dance","id":1}"#).unwrap();
        assert!(matches!(later, Request::Unknown));
        let end: End = serde_json::from_str(r#"{"how":"evaporated","where":"x"}"#).unwrap();
        assert_eq!(end, End::Unknown);
        let known: Request = serde_json::from_str(r#"{"say":"hello","major":1,"colour":"red"}"#).unwrap();
        assert!(matches!(known, Request::Hello { major: 1 }));
    }
}
