//! What an expression consists of, what kind of value each part has, and how it is written with every bracket.

use std::collections::BTreeSet;
use std::fmt;

/// A part of an expression, with the characters where it begins and ends.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Part>),
    Root(Root),
    /// What `exists` or `all` has in hand: 0 is that of the outermost.
    Each(usize),
    Field(Box<Part>, String),
    Index(Box<Part>, Box<Part>),
    Not(Box<Part>),
    Minus(Box<Part>),
    All(Vec<Part>),
    Any(Vec<Part>),
    Two(Sign, Box<Part>, Box<Part>),
    If(Box<Part>, Box<Part>, Box<Part>),
    Has(Box<Part>),
    Size(Box<Part>),
    OfText(TextCall, Box<Part>, Box<Part>),
    /// `list.exists(x, body)`, or `all`.
    Over {
        all: bool,
        list: Box<Part>,
        body: Box<Part>,
    },
}

/// What an expression can begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    Name,
    State,
    Reason,
    Online,
    Labels,
    Facts,
    Version,
    Age,
    Uptime,
    Processes,
    Running,
    Waiting,
    Outbox,
    /// What happened, in an expression over events.
    Record,
}

impl Root {
    pub(super) const ALL: [(Self, &'static str); 13] = [
        (Self::Name, "name"),
        (Self::State, "state"),
        (Self::Reason, "reason"),
        (Self::Online, "online"),
        (Self::Labels, "labels"),
        (Self::Facts, "facts"),
        (Self::Version, "version"),
        (Self::Age, "age"),
        (Self::Uptime, "uptime"),
        (Self::Processes, "processes"),
        (Self::Running, "running"),
        (Self::Waiting, "waiting"),
        (Self::Outbox, "outbox"),
    ];

    /// What an expression over a record of an event can begin with; the name and the labels are those of the reporting node.
    pub(super) const OF_RECORDS: [(Self, &'static str); 3] =
        [(Self::Name, "name"), (Self::Labels, "labels"), (Self::Record, "record")];

    fn as_str(self) -> &'static str {
        let all = Self::ALL.into_iter().chain(Self::OF_RECORDS);
        all.into_iter().find(|(root, _)| *root == self).map_or("", |(_, name)| name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Plus,
    Minus,
    Times,
    Over,
    Rest,
}

impl Sign {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::Unequal => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::In => "in",
            Self::Plus => "+",
            Self::Minus => "-",
            Self::Times => "*",
            Self::Over => "/",
            Self::Rest => "%",
        }
    }

    /// The larger, the closer it binds.
    pub(super) const fn strength(self) -> u8 {
        match self {
            Self::Plus | Self::Minus => 5,
            Self::Times | Self::Over | Self::Rest => 6,
            _ => 4,
        }
    }

    pub(super) const fn is_arithmetic(self) -> bool {
        self.strength() > 4
    }

    pub(super) const fn is_order(self) -> bool {
        matches!(self, Self::Less | Self::LessOrEqual | Self::Greater | Self::GreaterOrEqual)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextCall {
    Contains,
    StartsWith,
    EndsWith,
}

impl TextCall {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Contains => "contains",
            Self::StartsWith => "startsWith",
            Self::EndsWith => "endsWith",
        }
    }
}

/// What kind of value a part has, as far as the text alone tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Unsure,
    Bool,
    Number,
    Text,
    List,
    Map,
}

impl Sort {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Unsure => "anything",
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::Text => "text",
            Self::List => "a list",
            Self::Map => "a set of names and values",
        }
    }
}

impl Part {
    pub(super) fn sort(&self) -> Sort {
        match &self.what {
            What::Null | What::Each(_) | What::Index(..) | What::If(..) => match &self.what {
                What::Index(of, _) if matches!(of.what, What::Root(Root::Labels)) => Sort::Text,
                _ => Sort::Unsure,
            },
            What::Field(of, _) if matches!(of.what, What::Root(Root::Labels)) => Sort::Text,
            What::Field(..) => Sort::Unsure,
            What::Number(_) | What::Minus(_) | What::Size(_) => Sort::Number,
            What::Text(_) => Sort::Text,
            What::List(_) => Sort::List,
            What::Two(sign, ..) if sign.is_arithmetic() => Sort::Number,
            What::Bool(_)
            | What::Not(_)
            | What::All(_)
            | What::Any(_)
            | What::Two(..)
            | What::Has(_)
            | What::OfText(..)
            | What::Over { .. } => Sort::Bool,
            What::Root(root) => match root {
                Root::Name | Root::State | Root::Reason | Root::Version => Sort::Text,
                Root::Online => Sort::Bool,
                Root::Labels | Root::Facts | Root::Record => Sort::Map,
                _ => Sort::Number,
            },
        }
    }

    /// The parts that it consists of.
    pub(super) fn inner(&self) -> Vec<&Self> {
        match &self.what {
            What::Null | What::Bool(_) | What::Number(_) | What::Text(_) | What::Root(_) | What::Each(_) => Vec::new(),
            What::List(parts) | What::All(parts) | What::Any(parts) => parts.iter().collect(),
            What::Field(of, _) | What::Not(of) | What::Minus(of) | What::Has(of) | What::Size(of) => vec![of],
            What::Index(one, other) | What::Two(_, one, other) | What::OfText(_, one, other) => vec![one, other],
            What::Over { list, body, .. } => vec![list, body],
            What::If(condition, yes, no) => vec![condition, yes, no],
        }
    }

    /// Notes the names of the facts in it; `false` when they are not all named.
    pub(super) fn facts_named<'a>(&'a self, names: &mut BTreeSet<&'a str>) -> bool {
        match &self.what {
            What::Root(Root::Facts) => false,
            What::Field(of, name) if matches!(of.what, What::Root(Root::Facts)) => {
                names.insert(name);
                true
            }
            _ => self.inner().into_iter().all(|part| part.facts_named(names)),
        }
    }

    /// Whether it, or anything in it, is what is wanted.
    pub(super) fn any(&self, wanted: &dyn Fn(&Self) -> bool) -> bool {
        wanted(self) || self.inner().into_iter().any(|part| part.any(wanted))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_part(self, 0, f)
    }
}

fn write_list(parts: &[Part], between: &str, depth: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            f.write_str(between)?;
        }
        write_part(part, depth, f)?;
    }
    Ok(())
}

/// `depth`: how many lists are in hand, and so how the next one's part is called.
fn write_part(part: &Part, depth: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match &part.what {
        What::Null => f.write_str("null"),
        What::Bool(value) => write!(f, "{value}"),
        What::Number(value) => write!(f, "{value}"),
        What::Text(text) => write_text(text, f),
        What::List(parts) => {
            f.write_str("[")?;
            write_list(parts, ", ", depth, f)?;
            f.write_str("]")
        }
        What::Root(root) => f.write_str(root.as_str()),
        What::Each(index) => write!(f, "x{index}"),
        What::Field(of, name) => {
            write_part(of, depth, f)?;
            write!(f, ".{name}")
        }
        What::Index(of, index) => {
            write_part(of, depth, f)?;
            f.write_str("[")?;
            write_part(index, depth, f)?;
            f.write_str("]")
        }
        What::Not(of) | What::Minus(of) => {
            f.write_str(if matches!(part.what, What::Not(_)) { "!(" } else { "-(" })?;
            write_part(of, depth, f)?;
            f.write_str(")")
        }
        What::All(parts) | What::Any(parts) => {
            f.write_str("(")?;
            write_list(parts, if matches!(part.what, What::All(_)) { " && " } else { " || " }, depth, f)?;
            f.write_str(")")
        }
        What::Two(sign, one, other) => {
            f.write_str("(")?;
            write_part(one, depth, f)?;
            write!(f, " {} ", sign.as_str())?;
            write_part(other, depth, f)?;
            f.write_str(")")
        }
        What::If(condition, yes, no) => {
            f.write_str("(")?;
            write_part(condition, depth, f)?;
            f.write_str(" ? ")?;
            write_part(yes, depth, f)?;
            f.write_str(" : ")?;
            write_part(no, depth, f)?;
            f.write_str(")")
        }
        What::Has(of) | What::Size(of) => {
            f.write_str(if matches!(part.what, What::Has(_)) { "has(" } else { "size(" })?;
            write_part(of, depth, f)?;
            f.write_str(")")
        }
        What::OfText(call, of, with) => {
            write_part(of, depth, f)?;
            write!(f, ".{}(", call.as_str())?;
            write_part(with, depth, f)?;
            f.write_str(")")
        }
        What::Over { all, list, body } => {
            write_part(list, depth, f)?;
            write!(f, ".{}(x{depth}, ", if *all { "all" } else { "exists" })?;
            write_part(body, depth + 1, f)?;
            f.write_str(")")
        }
    }
}

fn write_text(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("\"")?;
    for character in text.chars() {
        match character {
            '"' | '\\' => write!(f, "\\{character}")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            other => write!(f, "{other}")?,
        }
    }
    f.write_str("\"")
}
