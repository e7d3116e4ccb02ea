//! Reads the text of an expression, by the strength with which each sign binds. What can never be true as it is written
//! is refused here, with the character: `labels.gpu > 4` compares text with a number.

use super::parts::{Part, Root, Sign, Sort, TextCall, What};
use super::{DEPTH_MAX, PARTS_MAX, TEXT_MAX};
use crate::target::TargetError;

/// Where, and what.
type Wrong = (usize, String);

#[derive(Debug, Clone, PartialEq)]
enum Lexeme {
    Number(f64),
    Text(String),
    Word(String),
    Sign(&'static str),
    End,
}

struct Token {
    from: usize,
    to: usize,
    lexeme: Lexeme,
}

/// The words that an expression can begin with, and what they mean.
type Roots = &'static [(Root, &'static str)];

pub(super) fn read(text: &str, roots: Roots) -> Result<Part, TargetError> {
    let characters: Vec<char> = text.chars().take(TEXT_MAX + 1).collect();
    if characters.len() > TEXT_MAX {
        let start: String = characters.iter().take(60).collect();
        return Err(TargetError::at(format!("an expression has at most {TEXT_MAX} characters"), &start, 0));
    }
    whole(&characters, roots).map_err(|(at, message)| TargetError::at(message, text, at))
}

fn whole(characters: &[char], roots: Roots) -> Result<Part, Wrong> {
    let mut reader = Reader { tokens: tokens(characters)?, at: 0, depth: 0, parts: 0, names: Vec::new(), roots };
    if reader.tokens.len() == 1 {
        return Err((0, "an expression is missing here, like `online` or `facts.memory.total > 4e9`".into()));
    }
    let part = reader.expression(0)?;
    let end = reader.next();
    if end.lexeme != Lexeme::End {
        return Err((end.from, "an operator (`&&`, `||`, `==`, …) or the end is expected here".into()));
    }
    wants(&part, Sort::Bool, "the whole expression")?;
    Ok(part)
}

/// The longer ones first.
const SIGNS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "+", "-", "*", "/", "%", "(", ")", "[", "]", "?", ":", ",", ".",
    "=", "&",
];

fn tokens(characters: &[char]) -> Result<Vec<Token>, Wrong> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&character) = characters.get(at) {
        let from = at;
        let lexeme = if character.is_whitespace() {
            at += 1;
            continue;
        } else if character.is_ascii_digit() {
            number(characters, &mut at)?
        } else if character.is_ascii_alphabetic() || character == '_' {
            let is_word = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
            while characters.get(at).is_some_and(is_word) {
                at += 1;
            }
            Lexeme::Word(characters[from..at].iter().collect())
        } else if character == '"' || character == '\'' {
            string(characters, &mut at, character)?
        } else {
            let starts = |sign: &&str| sign.chars().enumerate().all(|(i, c)| characters.get(at + i) == Some(&c));
            match SIGNS.into_iter().find(starts) {
                Some("=") => return Err((from, "`=` compares nothing here: write `==`".into())),
                Some("&") => return Err((from, "write `&&` for \"and\"".into())),
                Some(sign) => {
                    at += sign.len();
                    Lexeme::Sign(sign)
                }
                None => return Err((from, format!("{character:?} is not expected in an expression"))),
            }
        };
        tokens.push(Token { from, to: at, lexeme });
    }
    tokens.push(Token { from: at, to: at, lexeme: Lexeme::End });
    Ok(tokens)
}

fn number(characters: &[char], at: &mut usize) -> Result<Lexeme, Wrong> {
    let from = *at;
    let digits = |at: &mut usize| {
        while characters.get(*at).is_some_and(char::is_ascii_digit) {
            *at += 1;
        }
    };
    digits(at);
    if characters.get(*at) == Some(&'.') && characters.get(*at + 1).is_some_and(char::is_ascii_digit) {
        *at += 1;
        digits(at);
    }
    if matches!(characters.get(*at), Some('e' | 'E')) {
        *at += 1;
        if matches!(characters.get(*at), Some('+' | '-')) {
            *at += 1;
        }
        digits(at);
    }
    let text: String = characters[from..*at].iter().collect();
    if characters.get(*at).is_some_and(|c| c.is_ascii_alphanumeric() || *c == '_') {
        return Err((*at, "a number ends here: write large ones like 4e9, without a unit".into()));
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Lexeme::Number(value)),
        _ => Err((from, format!("{text:?} is no number"))),
    }
}

fn string(characters: &[char], at: &mut usize, quote: char) -> Result<Lexeme, Wrong> {
    let from = *at;
    let mut text = String::new();
    *at += 1;
    loop {
        match characters.get(*at) {
            None => return Err((from, format!("the text that begins here has no {quote} at its end"))),
            Some(&end) if end == quote => {
                *at += 1;
                return Ok(Lexeme::Text(text));
            }
            Some('\\') => {
                *at += 1;
                text.push(match characters.get(*at) {
                    Some(&same @ ('\\' | '"' | '\'')) => same,
                    Some('n') => '\n',
                    Some('t') => '\t',
                    _ => return Err((*at, r#"behind `\` stands one of `\`, `"`, `'`, `n` and `t`"#.into())),
                });
                *at += 1;
            }
            Some(&other) => {
                text.push(other);
                *at += 1;
            }
        }
    }
}

/// Refuses a part that can never be of the sort that is wanted.
fn wants(part: &Part, wanted: Sort, what: &str) -> Result<(), Wrong> {
    match part.sort() {
        Sort::Unsure => Ok(()),
        sort if sort == wanted => Ok(()),
        sort => Err((part.from, format!("{what} has to be {}, and this is {}", wanted.as_str(), sort.as_str()))),
    }
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    parts: usize,
    /// What `exists` and `all` call what they have in hand, the outermost first.
    names: Vec<String>,
    roots: Roots,
}

impl Reader {
    fn peek(&self) -> &Token {
        // The last one is the end, and nobody goes beyond it.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> &Token {
        let at = self.at.min(self.tokens.len() - 1);
        self.at += 1;
        &self.tokens[at]
    }

    fn is(&self, sign: &'static str) -> bool {
        self.peek().lexeme == Lexeme::Sign(sign)
    }

    fn take(&mut self, sign: &'static str) -> bool {
        let found = self.is(sign);
        if found {
            self.at += 1;
        }
        found
    }

    /// The end of `sign`, which has to stand here.
    fn expect(&mut self, sign: &'static str) -> Result<usize, Wrong> {
        let token = self.next();
        if token.lexeme == Lexeme::Sign(sign) {
            Ok(token.to)
        } else {
            Err((token.from, format!("`{sign}` is expected here")))
        }
    }

    fn part(&mut self, from: usize, to: usize, what: What) -> Result<Part, Wrong> {
        self.parts += 1;
        if self.parts > PARTS_MAX {
            return Err((from, format!("an expression has at most {PARTS_MAX} parts")));
        }
        Ok(Part { from, to, what })
    }

    /// An expression whose signs bind at least as closely as `least`.
    fn expression(&mut self, least: u8) -> Result<Part, Wrong> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err((
                self.peek().from,
                format!("at most {DEPTH_MAX} brackets and signs may stand inside each other"),
            ));
        }
        let mut left = self.operand()?;
        loop {
            let strength = self.strength();
            if strength == 0 || strength < least {
                break;
            }
            left = match strength {
                1 => self.choice(left)?,
                2 | 3 => self.chain(left, strength)?,
                _ => self.pair(left, strength)?,
            };
        }
        self.depth -= 1;
        Ok(left)
    }

    /// How closely the sign binds that stands here; 0: none stands here.
    fn strength(&self) -> u8 {
        match &self.peek().lexeme {
            Lexeme::Sign("?") => 1,
            Lexeme::Sign("||") => 2,
            Lexeme::Sign("&&") => 3,
            _ => self.sign().map_or(0, Sign::strength),
        }
    }

    fn sign(&self) -> Option<Sign> {
        Some(match &self.peek().lexeme {
            Lexeme::Sign("==") => Sign::Equal,
            Lexeme::Sign("!=") => Sign::Unequal,
            Lexeme::Sign("<") => Sign::Less,
            Lexeme::Sign("<=") => Sign::LessOrEqual,
            Lexeme::Sign(">") => Sign::Greater,
            Lexeme::Sign(">=") => Sign::GreaterOrEqual,
            Lexeme::Sign("+") => Sign::Plus,
            Lexeme::Sign("-") => Sign::Minus,
            Lexeme::Sign("*") => Sign::Times,
            Lexeme::Sign("/") => Sign::Over,
            Lexeme::Sign("%") => Sign::Rest,
            Lexeme::Word(word) if word == "in" => Sign::In,
            _ => return None,
        })
    }

    fn choice(&mut self, condition: Part) -> Result<Part, Wrong> {
        wants(&condition, Sort::Bool, "what stands before `?`")?;
        self.next();
        let yes = self.expression(2)?;
        self.expect(":")?;
        let no = self.expression(1)?;
        let (from, to) = (condition.from, no.to);
        self.part(from, to, What::If(Box::new(condition), Box::new(yes), Box::new(no)))
    }

    /// `a && b && c`: one part, so that a long one is not a deep one.
    fn chain(&mut self, left: Part, strength: u8) -> Result<Part, Wrong> {
        let sign = if strength == 3 { "&&" } else { "||" };
        let mut parts = vec![left];
        while self.take(sign) {
            parts.push(self.expression(strength + 1)?);
        }
        for part in &parts {
            wants(part, Sort::Bool, &format!("each side of `{sign}`"))?;
        }
        let (from, to) = (parts.first().map_or(0, |part| part.from), parts.last().map_or(0, |part| part.to));
        self.part(from, to, if strength == 3 { What::All(parts) } else { What::Any(parts) })
    }

    fn pair(&mut self, left: Part, strength: u8) -> Result<Part, Wrong> {
        let Some(sign) = self.sign() else { return Ok(left) };
        let at = self.next().from;
        let right = self.expression(strength + 1)?;
        check_pair(sign, at, &left, &right)?;
        let (from, to) = (left.from, right.to);
        self.part(from, to, What::Two(sign, Box::new(left), Box::new(right)))
    }

    /// `!a`, `-a`, or a value with all that hangs on it.
    fn operand(&mut self) -> Result<Part, Wrong> {
        let from = self.peek().from;
        for sign in ["!", "-"] {
            if self.take(sign) {
                let of = self.expression(7)?;
                wants(
                    &of,
                    if sign == "!" { Sort::Bool } else { Sort::Number },
                    &format!("what stands behind `{sign}`"),
                )?;
                let (to, of) = (of.to, Box::new(of));
                return self.part(from, to, if sign == "!" { What::Not(of) } else { What::Minus(of) });
            }
        }
        let mut part = self.value()?;
        loop {
            if self.take(".") {
                part = self.member(part)?;
            } else if self.take("[") {
                if !matches!(part.sort(), Sort::Unsure | Sort::List | Sort::Map) {
                    return Err((part.from, format!("this is {}, and has nothing in it", part.sort().as_str())));
                }
                let index = self.expression(0)?;
                let (from, to) = (part.from, self.expect("]")?);
                part = self.part(from, to, What::Index(Box::new(part), Box::new(index)))?;
            } else {
                return Ok(part);
            }
        }
    }

    /// What stands behind a point: a field, or a call.
    fn member(&mut self, of: Part) -> Result<Part, Wrong> {
        let token = self.next();
        let (at, end) = (token.from, token.to);
        let Lexeme::Word(word) = &token.lexeme else {
            return Err((
                at,
                "a name is expected behind the point; others than words stand in brackets: labels[\"a/b\"]".into(),
            ));
        };
        let (word, from) = (word.clone(), of.from);
        if !self.take("(") {
            if !matches!(of.sort(), Sort::Unsure | Sort::Map) {
                return Err((at, format!("what stands before the point is {}, and has no fields", of.sort().as_str())));
            }
            return self.part(from, end, What::Field(Box::new(of), word));
        }
        match word.as_str() {
            "contains" => self.of_text(of, TextCall::Contains),
            "startsWith" => self.of_text(of, TextCall::StartsWith),
            "endsWith" => self.of_text(of, TextCall::EndsWith),
            "size" => {
                let to = self.expect(")")?;
                self.part(from, to, What::Size(Box::new(of)))
            }
            "exists" | "all" => self.over(of, word == "all"),
            _ => Err((
                at,
                format!("there is no {word}(): there are contains, startsWith, endsWith, size, exists and all"),
            )),
        }
    }

    fn of_text(&mut self, of: Part, call: TextCall) -> Result<Part, Wrong> {
        let with = self.expression(0)?;
        for part in [&of, &with] {
            wants(part, Sort::Text, &format!("what {}() works on", call.as_str()))?;
        }
        let (from, to) = (of.from, self.expect(")")?);
        self.part(from, to, What::OfText(call, Box::new(of), Box::new(with)))
    }

    fn over(&mut self, list: Part, all: bool) -> Result<Part, Wrong> {
        wants(&list, Sort::List, "what exists() and all() go through")?;
        let roots = self.roots;
        let token = self.next();
        let name = match &token.lexeme {
            Lexeme::Word(word) if !is_reserved(word) && named(roots, word).is_none() => word.clone(),
            _ => {
                return Err((
                    token.from,
                    "a new name for what is looked at is expected here, like exists(d, d.size > 1)".into(),
                ));
            }
        };
        self.expect(",")?;
        self.names.push(name);
        let body = self.expression(0)?;
        self.names.pop();
        wants(&body, Sort::Bool, "what is asked of each")?;
        let (from, to) = (list.from, self.expect(")")?);
        self.part(from, to, What::Over { all, list: Box::new(list), body: Box::new(body) })
    }

    fn value(&mut self) -> Result<Part, Wrong> {
        let token = self.next();
        let (from, to, lexeme) = (token.from, token.to, token.lexeme.clone());
        match lexeme {
            Lexeme::Number(value) => self.part(from, to, What::Number(value)),
            Lexeme::Text(text) => self.part(from, to, What::Text(text)),
            Lexeme::Word(word) => self.word(from, to, &word),
            Lexeme::Sign("(") => {
                let inner = self.expression(0)?;
                let to = self.expect(")")?;
                Ok(Part { from, to, ..inner })
            }
            Lexeme::Sign("[") => {
                let mut parts = Vec::new();
                while !self.is("]") {
                    parts.push(self.expression(0)?);
                    if !self.take(",") {
                        break;
                    }
                }
                let to = self.expect("]")?;
                self.part(from, to, What::List(parts))
            }
            Lexeme::End => Err((from, "a value is missing here".into())),
            Lexeme::Sign(sign) => Err((from, format!("`{sign}` is not expected here: a value is missing"))),
        }
    }

    fn word(&mut self, from: usize, to: usize, word: &str) -> Result<Part, Wrong> {
        if let Some(index) = self.names.iter().rposition(|name| name == word) {
            return self.part(from, to, What::Each(index));
        }
        match word {
            "true" | "false" => self.part(from, to, What::Bool(word == "true")),
            "null" => self.part(from, to, What::Null),
            "has" | "size" if self.take("(") => {
                let of = self.expression(0)?;
                let to = self.expect(")")?;
                if word == "size" {
                    return self.part(from, to, What::Size(Box::new(of)));
                }
                if !matches!(of.what, What::Field(..) | What::Index(..)) {
                    return Err((of.from, "has() asks for a field: has(facts.gpu), has(labels.site)".into()));
                }
                self.part(from, to, What::Has(Box::new(of)))
            }
            _ => match named(self.roots, word) {
                Some(root) => self.part(from, to, What::Root(root)),
                None => {
                    let known: Vec<&str> = self.roots.iter().map(|(_, name)| *name).collect();
                    Err((
                        from,
                        format!("{word:?} is not known; there are {} (text stands in quotes)", known.join(", ")),
                    ))
                }
            },
        }
    }
}

fn named(roots: Roots, word: &str) -> Option<Root> {
    roots.iter().find(|(_, name)| *name == word).map(|(root, _)| *root)
}

fn is_reserved(word: &str) -> bool {
    matches!(word, "true" | "false" | "null" | "in" | "has" | "size")
}

fn check_pair(sign: Sign, at: usize, left: &Part, right: &Part) -> Result<(), Wrong> {
    let (one, other) = (left.sort(), right.sort());
    if sign.is_arithmetic() {
        wants(left, Sort::Number, &format!("each side of `{}`", sign.as_str()))?;
        return wants(right, Sort::Number, &format!("each side of `{}`", sign.as_str()));
    }
    if sign == Sign::In {
        return match other {
            Sort::Unsure | Sort::List | Sort::Map => Ok(()),
            _ => Err((right.from, "behind `in` stands a list, `labels` or `facts`".into())),
        };
    }
    let compared = |sort: Sort| matches!(sort, Sort::Unsure | Sort::Number | Sort::Text);
    if sign.is_order() && !(compared(one) && compared(other)) {
        return Err((at, format!("only numbers and text are compared with `{}`", sign.as_str())));
    }
    if [one, other].iter().any(|sort| matches!(sort, Sort::List | Sort::Map)) {
        return Err((at, "whole lists and sets are not compared: ask for what is in them".into()));
    }
    if one != other && one != Sort::Unsure && other != Sort::Unsure {
        return Err((
            at,
            format!("this compares {} with {}, which is never what is meant", one.as_str(), other.as_str()),
        ));
    }
    Ok(())
}
