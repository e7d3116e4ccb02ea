//! Subjects: where messages go. `<node>.<command|event>.<method>.<domain>`, the node being the receiver.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{IdError, JobId};
use crate::name::{NameError, NodeName, Token};

/// What kind of message a subject carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// To be executed by its receiver.
    Command,
    /// Something that happened.
    Event,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Command => "command",
            Self::Event => "event",
        })
    }
}

/// Why a text is no subject of Steward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// Not four tokens.
    #[error("the subject {subject:?} has {tokens} tokens: expected <node>.<command|event>.<method>.<domain>")]
    Tokens {
        /// The subject as given.
        subject: String,
        /// How many tokens it has.
        tokens: usize,
    },
    /// The second token is wrong.
    #[error("the subject {subject:?} has {found:?} as its second token: expected {expected}")]
    Kind {
        /// The subject as given.
        subject: String,
        /// The second token.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// A token breaks the rules for names.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The job id is none.
    #[error(transparent)]
    Job(#[from] IdError),
}

fn four(subject: &str) -> Result<[&str; 4], SubjectError> {
    let tokens: Vec<&str> = subject.split('.').collect();
    <[&str; 4]>::try_from(tokens)
        .map_err(|tokens| SubjectError::Tokens { subject: subject.chars().take(320).collect(), tokens: tokens.len() })
}

fn second(subject: &str, found: &str, expected: &'static str) -> SubjectError {
    SubjectError::Kind { subject: subject.to_owned(), found: found.to_owned(), expected }
}

/// The subject of a message: `<node>.<command|event>.<method>.<domain>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subject {
    /// The receiver.
    pub node: NodeName,
    /// Command or event.
    pub kind: Kind,
    /// What is to be done, or what kind of thing happened.
    pub method: Token,
    /// What it is about.
    pub domain: Token,
}

impl Subject {
    /// The subject of a command to `node`.
    pub fn command(node: NodeName, method: Token, domain: Token) -> Self {
        Self { node, kind: Kind::Command, method, domain }
    }

    /// The subject of an event for `node`.
    pub fn event(node: NodeName, method: Token, domain: Token) -> Self {
        Self { node, kind: Kind::Event, method, domain }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.node, self.kind, self.method, self.domain)
    }
}

impl FromStr for Subject {
    type Err = SubjectError;
    fn from_str(subject: &str) -> Result<Self, SubjectError> {
        let [node, kind, method, domain] = four(subject)?;
        let kind = match kind {
            "command" => Kind::Command,
            "event" => Kind::Event,
            other => return Err(second(subject, other, "command or event")),
        };
        Ok(Self { node: NodeName::new(node)?, kind, method: Token::method(method)?, domain: Token::domain(domain)? })
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> Self {
        subject.to_string()
    }
}

impl TryFrom<String> for Subject {
    type Error = SubjectError;
    fn try_from(text: String) -> Result<Self, SubjectError> {
        text.parse()
    }
}

macro_rules! answer_subject {
    ($(#[$doc:meta])* $name:ident, $word:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct $name {
            /// Who ordered, and receives this.
            pub sender: NodeName,
            /// The job that the order belongs to.
            pub job: JobId,
            /// The node that answers.
            pub node: NodeName,
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{}.", $word, ".{}.{}"), self.sender, self.job, self.node)
            }
        }
        impl FromStr for $name {
            type Err = SubjectError;
            fn from_str(subject: &str) -> Result<Self, SubjectError> {
                let [sender, word, job, node] = four(subject)?;
                if word != $word {
                    return Err(second(subject, word, $word));
                }
                Ok(Self { sender: NodeName::new(sender)?, job: JobId::parse(job)?, node: NodeName::new(node)? })
            }
        }
    };
}

answer_subject! {
    /// Where a node tells how an order stands: `<sender>.reply.<job>.<node>`.
    ReplySubject, "reply"
}
answer_subject! {
    /// Where the output of a running order streams: `<sender>.output.<job>.<node>`.
    OutputSubject, "output"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ship2.command.shellcommand.operatingsystem")]
    #[case("ship1.event.syslogforwarding.nginx")]
    #[case("central.event.a/b.c:d")]
    fn a_subject_reads_and_writes_the_same(#[case] text: &str) {
        assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
    }

    #[rstest]
    #[case("ship1.command.shellcommand", "3 tokens")]
    #[case("ship1.command.a.b.c", "5 tokens")]
    #[case("ship1.Command.a.b", "\"Command\"")]
    #[case("ship1.reply.a.b", "command or event")]
    #[case("*.command.a.b", "'*'")]
    #[case("ship1.command..b", "method is empty")]
    #[case("ship1.command.a.>", "'>'")]
    fn a_wrong_subject_says_where(#[case] text: &str, #[case] says: &str) {
        let error = text.parse::<Subject>().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn reply_subjects_name_sender_job_and_node() {
        let text = "central.reply.01JD3V8ZK4Q1W9X7M2N5B6C8D0.ship1";
        assert_eq!(text.parse::<ReplySubject>().unwrap().to_string(), text);
        assert!(text.parse::<OutputSubject>().is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(text in "[a-z.$*> ]{0,40}|.{0,80}") {
            if let Ok(subject) = text.parse::<Subject>() {
                prop_assert_eq!(subject.to_string(), text.clone());
            }
            if let Ok(subject) = text.parse::<ReplySubject>() {
                prop_assert_eq!(subject.to_string(), text);
            }
        }
    }
}
