//! Judges a node by an expression. Total: whatever a node says of itself, there is an answer and no error, but that steps
//! can run out.

use serde_json::Value;

use super::parts::{Part, Root, Sign, TextCall, What};
use super::{Known, TooCostly};
use crate::selector::Labels;

/// So many values are told for one part of an expression.
const TOLD_MAX: usize = 3;
/// So many characters of a value are told.
const VALUE_TOLD_MAX: usize = 60;
/// So many steps it may take to tell why one node is meant.
const WHY_STEPS: u64 = 100_000;
/// So many bytes of text are compared in one step.
const BYTES_A_STEP: usize = 64;

/// What a part comes to.
#[derive(Debug, Clone, Copy)]
enum Found<'a> {
    Missing,
    Null,
    Bool(bool),
    Number(f64),
    Text(&'a str),
    /// A list or an object of what the node said.
    Many(&'a Value),
    Labels(&'a Labels),
    List(&'a [Part]),
}

impl<'a> Found<'a> {
    fn of(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => number.as_f64().map_or(Self::Missing, Self::Number),
            Value::String(text) => Self::Text(text),
            Value::Array(_) | Value::Object(_) => Self::Many(value),
        }
    }

    fn number(value: f64) -> Self {
        if value.is_finite() { Self::Number(value) } else { Self::Missing }
    }

    fn is_true(self) -> bool {
        matches!(self, Self::Bool(true))
    }
}

pub(super) fn holds(part: &Part, known: &Known<'_>, steps: &mut u64) -> Result<bool, TooCostly> {
    Ok(Judge { known, steps, hands: Vec::new() }.find(part)?.is_true())
}

struct Judge<'a, 'b> {
    known: &'a Known<'a>,
    steps: &'b mut u64,
    /// What `exists` and `all` have in hand, the outermost first.
    hands: Vec<Found<'a>>,
}

impl<'a> Judge<'a, '_> {
    fn step(&mut self, steps: usize) -> Result<(), TooCostly> {
        let steps = u64::try_from(steps).unwrap_or(u64::MAX);
        *self.steps = self.steps.checked_sub(steps).ok_or(TooCostly)?;
        Ok(())
    }

    fn find(&mut self, part: &'a Part) -> Result<Found<'a>, TooCostly> {
        self.step(1)?;
        Ok(match &part.what {
            What::Null => Found::Null,
            What::Bool(value) => Found::Bool(*value),
            What::Number(value) => Found::Number(*value),
            What::Text(text) => Found::Text(text),
            What::List(parts) => Found::List(parts),
            What::Root(root) => self.root(*root),
            What::Each(index) => self.hands.get(*index).copied().unwrap_or(Found::Missing),
            What::Field(of, name) => {
                let of = self.find(of)?;
                self.field(of, name)
            }
            What::Index(of, index) => {
                let (of, index) = (self.find(of)?, self.find(index)?);
                self.at(of, index)?
            }
            What::Not(of) => Found::Bool(!self.find(of)?.is_true()),
            What::Minus(of) => match self.find(of)? {
                Found::Number(value) => Found::Number(-value),
                _ => Found::Missing,
            },
            What::All(parts) => {
                for part in parts {
                    if !self.find(part)?.is_true() {
                        return Ok(Found::Bool(false));
                    }
                }
                Found::Bool(true)
            }
            What::Any(parts) => {
                for part in parts {
                    if self.find(part)?.is_true() {
                        return Ok(Found::Bool(true));
                    }
                }
                Found::Bool(false)
            }
            What::Two(sign, one, other) => {
                let (one, other) = (self.find(one)?, self.find(other)?);
                self.two(*sign, one, other)?
            }
            What::If(condition, yes, no) => {
                let chosen = if self.find(condition)?.is_true() { yes } else { no };
                self.find(chosen)?
            }
            What::Has(of) => Found::Bool(!matches!(self.find(of)?, Found::Missing)),
            What::Size(of) => match self.find(of)? {
                Found::Text(text) => {
                    self.step(text.len() / BYTES_A_STEP)?;
                    size(text.chars().count())
                }
                Found::Many(Value::Array(list)) => size(list.len()),
                Found::Many(Value::Object(map)) => size(map.len()),
                Found::Labels(labels) => size(labels.len()),
                Found::List(list) => size(list.len()),
                _ => Found::Missing,
            },
            What::OfText(call, of, with) => match (self.find(of)?, self.find(with)?) {
                (Found::Text(text), Found::Text(part)) => {
                    self.step((text.len() + part.len()) / BYTES_A_STEP)?;
                    Found::Bool(match call {
                        TextCall::Contains => text.contains(part),
                        TextCall::StartsWith => text.starts_with(part),
                        TextCall::EndsWith => text.ends_with(part),
                    })
                }
                _ => Found::Bool(false),
            },
            What::Over { all, list, body } => {
                let list = self.find(list)?;
                Found::Bool(self.over(*all, list, body)?)
            }
        })
    }

    fn root(&self, root: Root) -> Found<'a> {
        let text = |text: Option<&'a str>| text.map_or(Found::Missing, Found::Text);
        let number = |value: Option<f64>| value.map_or(Found::Missing, Found::number);
        let known = self.known;
        match root {
            Root::Name => Found::Text(known.name),
            Root::State => Found::Text(known.state.as_str()),
            Root::Reason => text(known.reason),
            Root::Online => Found::Bool(known.state.is_reachable()),
            Root::Labels => Found::Labels(known.labels),
            Root::Facts | Root::Record => Found::of(known.facts),
            Root::Version => text(known.version),
            Root::Age => number(known.age_s),
            Root::Uptime => number(known.uptime_s),
            Root::Processes => number(known.counts.map(|counts| counts.processes.into())),
            Root::Running => number(known.counts.map(|counts| counts.running.into())),
            Root::Waiting => number(known.counts.map(|counts| counts.waiting.into())),
            Root::Outbox => number(known.counts.map(|counts| counts.outbox.into())),
        }
    }

    fn field(&self, of: Found<'a>, name: &str) -> Found<'a> {
        match of {
            Found::Labels(labels) => labels.get(name).map_or(Found::Missing, |value| Found::Text(value)),
            Found::Many(value) => value.get(name).map_or(Found::Missing, Found::of),
            _ => Found::Missing,
        }
    }

    fn at(&mut self, of: Found<'a>, index: Found<'a>) -> Result<Found<'a>, TooCostly> {
        Ok(match (of, index) {
            (_, Found::Text(name)) => self.field(of, name),
            (Found::Many(value), Found::Number(number)) => {
                whole(number).and_then(|index| value.get(index)).map_or(Found::Missing, Found::of)
            }
            (Found::List(list), Found::Number(number)) => match whole(number).and_then(|index| list.get(index)) {
                Some(part) => self.find(part)?,
                None => Found::Missing,
            },
            _ => Found::Missing,
        })
    }

    fn two(&mut self, sign: Sign, one: Found<'a>, other: Found<'a>) -> Result<Found<'a>, TooCostly> {
        if sign == Sign::In {
            return Ok(Found::Bool(self.is_in(one, other)?));
        }
        if sign.is_arithmetic() {
            let (Found::Number(one), Found::Number(other)) = (one, other) else { return Ok(Found::Missing) };
            return Ok(Found::number(match sign {
                Sign::Plus => one + other,
                Sign::Minus => one - other,
                Sign::Times => one * other,
                Sign::Over => one / other,
                _ => one % other,
            }));
        }
        self.compared(one, other)?;
        Ok(Found::Bool(compare(sign, one, other)))
    }

    fn compared(&mut self, one: Found<'a>, other: Found<'a>) -> Result<(), TooCostly> {
        match (one, other) {
            (Found::Text(one), Found::Text(other)) => self.step(one.len().min(other.len()) / BYTES_A_STEP),
            _ => Ok(()),
        }
    }

    fn is_in(&mut self, one: Found<'a>, many: Found<'a>) -> Result<bool, TooCostly> {
        match (many, one) {
            (Found::Labels(labels), Found::Text(name)) => Ok(labels.contains_key(name)),
            (Found::Many(Value::Object(map)), Found::Text(name)) => Ok(map.contains_key(name)),
            (Found::Many(Value::Array(list)), _) => {
                for item in list {
                    self.step(1)?;
                    let item = Found::of(item);
                    self.compared(one, item)?;
                    if compare(Sign::Equal, one, item) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            (Found::List(list), _) => {
                for part in list {
                    let item = self.find(part)?;
                    self.compared(one, item)?;
                    if compare(Sign::Equal, one, item) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// A list that is not there has nothing in it that exists, and says nothing of all.
    fn over(&mut self, all: bool, list: Found<'a>, body: &'a Part) -> Result<bool, TooCostly> {
        let items: Vec<Found<'a>> = match list {
            Found::Many(Value::Array(list)) => {
                self.step(list.len())?;
                list.iter().map(Found::of).collect()
            }
            Found::List(parts) => parts.iter().map(|part| self.find(part)).collect::<Result<_, _>>()?,
            _ => return Ok(false),
        };
        for item in items {
            self.hands.push(item);
            let found = self.find(body)?.is_true();
            self.hands.pop();
            if found != all {
                return Ok(!all);
            }
        }
        Ok(all)
    }
}

fn size(length: usize) -> Found<'static> {
    Found::Number(u32::try_from(length).unwrap_or(u32::MAX).into())
}

/// The place in a list that a number names.
fn whole(number: f64) -> Option<usize> {
    // Between 0 and u32::MAX and without a fraction: nothing is cut off.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let place = number as usize;
    (number >= 0.0 && number <= f64::from(u32::MAX) && number.fract() == 0.0).then_some(place)
}

fn compare(sign: Sign, one: Found<'_>, other: Found<'_>) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match (one, other) {
        (Found::Missing, _) | (_, Found::Missing) => return false,
        (Found::Number(one), Found::Number(other)) => one.partial_cmp(&other),
        (Found::Text(one), Found::Text(other)) => Some(one.cmp(other)),
        (Found::Bool(one), Found::Bool(other)) if !sign.is_order() => Some(one.cmp(&other)),
        (Found::Null, Found::Null) if !sign.is_order() => Some(Equal),
        _ => None,
    };
    match sign {
        Sign::Equal => order == Some(Equal),
        Sign::Unequal => order != Some(Equal),
        Sign::Less => order == Some(Less),
        Sign::LessOrEqual => matches!(order, Some(Less | Equal)),
        Sign::Greater => order == Some(Greater),
        Sign::GreaterOrEqual => matches!(order, Some(Greater | Equal)),
        _ => false,
    }
}

/// The parts that made it hold, each with what was found.
pub(super) fn why(part: &Part, known: &Known<'_>, text: &[char]) -> Vec<String> {
    let mut steps = WHY_STEPS;
    let mut judge = Judge { known, steps: &mut steps, hands: Vec::new() };
    let mut told = Vec::new();
    judge.tell(part, text, &mut told);
    told
}

impl<'a> Judge<'a, '_> {
    fn tell(&mut self, part: &'a Part, text: &[char], told: &mut Vec<String>) {
        match &part.what {
            What::All(parts) => parts.iter().for_each(|part| self.tell(part, text, told)),
            What::Any(parts) => {
                let true_one = parts.iter().find(|part| self.find(part).is_ok_and(Found::is_true));
                if let Some(part) = true_one {
                    self.tell(part, text, told);
                }
            }
            _ => {
                let mut values = Vec::new();
                self.values(part, text, &mut values);
                values.truncate(TOLD_MAX);
                let words = words(part, text);
                told.push(if values.is_empty() { words } else { format!("{words} ({})", values.join(", ")) });
            }
        }
    }

    /// What the node has where the part asks.
    fn values(&mut self, part: &'a Part, text: &[char], values: &mut Vec<String>) {
        let is_path = matches!(part.what, What::Field(..) | What::Index(..) | What::Root(_));
        let depends = part.any(&|part| matches!(part.what, What::Each(_)));
        if is_path && !depends {
            let found = match self.find(part) {
                Ok(Found::Missing) | Err(TooCostly) => "not there".to_owned(),
                Ok(Found::Null) => "null".into(),
                Ok(Found::Bool(value)) => value.to_string(),
                Ok(Found::Number(value)) => value.to_string(),
                Ok(Found::Text(text)) => text.chars().take(VALUE_TOLD_MAX).collect(),
                Ok(Found::Many(_) | Found::Labels(_) | Found::List(_)) => return,
            };
            let told = format!("{}={found}", words(part, text));
            if found != "true" && !values.contains(&told) {
                values.push(told);
            }
            return;
        }
        part.inner().into_iter().for_each(|part| self.values(part, text, values));
    }
}

fn words(part: &Part, text: &[char]) -> String {
    text.get(part.from..part.to).unwrap_or_default().iter().collect()
}
