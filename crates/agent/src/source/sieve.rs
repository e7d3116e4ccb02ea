//! What becomes of a line before it leaves: kept or dropped, hidden in parts, read as fields. Pure but for the clock of the rate.

use std::time::Instant;

use data_encoding::BASE64;
use regex_lite::Regex;
use serde_json::{Map, Value};

use super::follow::Line;
use crate::config::{Parse, Shape};

/// What stands in the place of what is hidden.
const HIDDEN: &str = "***";

/// How often things may happen: a bucket of tokens.
struct Rate {
    per_s: f64,
    left: f64,
    at: Option<Instant>,
}

/// What one source does with its lines.
pub(crate) struct Sieve {
    keep: Vec<Regex>,
    drop: Vec<Regex>,
    redact: Vec<Regex>,
    parse: Option<Parse>,
    rate: Option<Rate>,
    /// The piece before this one was dropped, and this one goes with it.
    dropping: bool,
    /// Lines that were not wanted, and those that were too many.
    pub(crate) unwanted: u64,
    pub(crate) too_many: u64,
}

impl Sieve {
    pub(crate) fn new(shape: &Shape) -> Self {
        let rate = shape.rate.map(|per_s| Rate { per_s, left: per_s.max(1.0), at: None });
        Self {
            keep: shape.keep.clone(),
            drop: shape.drop.clone(),
            redact: shape.redact.clone(),
            parse: shape.parse,
            rate,
            dropping: false,
            unwanted: 0,
            too_many: 0,
        }
    }

    /// The record that a line becomes; `None` when it does not leave. `more` are fields that its source knows.
    pub(crate) fn record(&mut self, line: Line, more: &Map<String, Value>, now: Instant) -> Option<Map<String, Value>> {
        let Line { mut bytes, goes_on } = line;
        if self.parse == Some(Parse::Prometheus) && !goes_on && is_remark(&bytes) {
            self.unwanted += 1;
            return None;
        }
        let dropped = std::mem::replace(&mut self.dropping, false) || !self.is_wanted(&bytes, now);
        if dropped {
            self.dropping = goes_on;
            return None;
        }
        for pattern in &self.redact {
            let text = String::from_utf8_lossy(&bytes);
            if pattern.is_match(&text) {
                bytes = pattern.replace_all(&text, HIDDEN).into_owned().into_bytes();
            }
        }
        let mut record = match self.parse.filter(|_| !goes_on).and_then(|how| fields(how, &bytes)) {
            Some(fields) => fields,
            None => text(bytes),
        };
        if goes_on {
            record.insert("goes_on".into(), Value::Bool(true));
        }
        for (key, value) in more {
            record.entry(key.as_str()).or_insert_with(|| value.clone());
        }
        Some(record)
    }

    fn is_wanted(&mut self, bytes: &[u8], now: Instant) -> bool {
        if !(self.keep.is_empty() && self.drop.is_empty()) {
            let text = String::from_utf8_lossy(bytes);
            let is_kept = self.keep.is_empty() || self.keep.iter().any(|pattern| pattern.is_match(&text));
            if !is_kept || self.drop.iter().any(|pattern| pattern.is_match(&text)) {
                self.unwanted += 1;
                return false;
            }
        }
        let Some(rate) = &mut self.rate else { return true };
        let passed = rate.at.replace(now).map_or(0.0, |at| now.duration_since(at).as_secs_f64());
        rate.left = (rate.left + passed * rate.per_s).min(rate.per_s.max(1.0));
        if rate.left < 1.0 {
            self.too_many += 1;
            return false;
        }
        rate.left -= 1.0;
        true
    }
}

/// `# HELP …`, `# TYPE …`, and nothing at all.
fn is_remark(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().first().is_none_or(|first| *first == b'#')
}

/// A record of a line: text where it is text, base64 where it is not.
fn text(bytes: Vec<u8>) -> Map<String, Value> {
    let (key, value) = match String::from_utf8(bytes) {
        Ok(text) => ("message", text),
        Err(error) => ("message_base64", BASE64.encode(error.as_bytes())),
    };
    [(key.to_owned(), Value::from(value))].into_iter().collect()
}

/// The fields of a line; `None` when it has none of this kind.
fn fields(how: Parse, bytes: &[u8]) -> Option<Map<String, Value>> {
    match how {
        Parse::Json => serde_json::from_slice(bytes).ok(),
        Parse::Logfmt => logfmt(std::str::from_utf8(bytes).ok()?),
        Parse::Prometheus => prometheus(std::str::from_utf8(bytes).ok()?),
    }
}

/// `level=info msg="it is done" took=3`: values are texts; a key alone is true.
fn logfmt(line: &str) -> Option<Map<String, Value>> {
    let mut fields = Map::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let end = rest.find(['=', ' ']).unwrap_or(rest.len());
        let (key, behind) = rest.split_at(end);
        if key.is_empty() || key.contains('"') {
            return None;
        }
        let (value, after) = match behind.strip_prefix('=') {
            None => (Value::Bool(true), behind),
            Some(value) if value.starts_with('"') => {
                let mut texts = serde_json::Deserializer::from_str(value).into_iter::<String>();
                let text = texts.next()?.ok()?;
                let read = texts.byte_offset();
                (Value::String(text), value.get(read..)?)
            }
            Some(value) => {
                let (word, after) = value.split_at(value.find(' ').unwrap_or(value.len()));
                (Value::from(word), after)
            }
        };
        fields.insert(key.to_owned(), value);
        rest = after.trim_start();
    }
    // A sentence is no list of fields.
    fields.values().any(Value::is_string).then_some(fields)
}

/// A sample of the [text format of Prometheus](https://prometheus.io/docs/instrumenting/exposition_formats/):
/// `http_requests_total{code="200"} 1027 1395066363000` becomes its `name`, `labels`, `value` and `timestamp_ms`. What JSON has no number
/// for (`NaN`, `+Inf`) is a text.
fn prometheus(line: &str) -> Option<Map<String, Value>> {
    let line = line.trim();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(line.len());
    let (name, rest) = line.split_at_checked(end)?;
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut labels = Map::new();
    let mut rest = rest.trim_start();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside.trim_start();
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once('=')?;
            let (value, behind) = label_value(quoted.trim_start())?;
            labels.insert(label.trim().to_owned(), Value::String(value));
            rest = behind.trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        rest = rest.strip_prefix('}')?;
    }
    let mut words = rest.split_whitespace();
    let value = words.next()?;
    let number: f64 = value.parse().ok()?;
    let value = serde_json::Number::from_f64(number).map_or_else(|| Value::from(value), Value::Number);
    let mut record = Map::from_iter([("name".to_owned(), Value::from(name)), ("value".to_owned(), value)]);
    if !labels.is_empty() {
        record.insert("labels".into(), Value::Object(labels));
    }
    if let Some(timestamp) = words.next() {
        record.insert("timestamp_ms".into(), timestamp.parse::<i64>().ok()?.into());
    }
    words.next().is_none().then_some(record)
}

/// A quoted value, in which `\\`, `\"` and `\n` stand for what they cannot be, and what is behind it.
fn label_value(text: &str) -> Option<(String, &str)> {
    let inside = text.strip_prefix('"')?;
    let (mut value, mut chars) = (String::new(), inside.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, inside.get(at + 1..)?)),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

/// A record as it stands in a batch: its line, with the end of it. `at` is a time as text.
pub(crate) fn encoded(at: &str, record: &Map<String, Value>, into: &mut Vec<u8>) {
    into.extend_from_slice(b"{\"at\":\"");
    into.extend_from_slice(at.as_bytes());
    into.extend_from_slice(b"\",\"record\":");
    // Writing to memory cannot fail, and the keys are texts.
    let _ = serde_json::to_writer(&mut *into, record);
    into.extend_from_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(text: &str) -> Line {
        Line { bytes: text.as_bytes().to_vec(), goes_on: false }
    }

    fn shape(keep: &[&str], drop: &[&str], redact: &[&str], parse: Option<Parse>, rate: Option<f64>) -> Shape {
        let all = |texts: &[&str]| texts.iter().map(|text| Regex::new(text).unwrap()).collect();
        Shape { keep: all(keep), drop: all(drop), redact: all(redact), parse, rate }
    }

    fn message(sieve: &mut Sieve, text: &str) -> Option<String> {
        let record = sieve.record(line(text), &Map::new(), Instant::now())?;
        Some(record["message"].as_str().unwrap().to_owned())
    }

    #[test]
    fn lines_are_kept_dropped_and_hidden_in_parts() {
        let mut sieve = Sieve::new(&shape(&["error", "warn"], &["boring"], &["[0-9]{4,}", "token=\\S+"], None, None));
        assert_eq!(message(&mut sieve, "error of card 12345678 token=abc"), Some("error of card *** ***".into()));
        assert_eq!(message(&mut sieve, "all is well"), None);
        assert_eq!(message(&mut sieve, "a boring warning"), None);
        assert_eq!(sieve.unwanted, 2);
        // What is dropped is dropped whole.
        let piece = |text: &str, goes_on| Line { bytes: text.as_bytes().to_vec(), goes_on };
        assert_eq!(sieve.record(piece("good", true), &Map::new(), Instant::now()), None);
        assert_eq!(sieve.record(piece("error", false), &Map::new(), Instant::now()), None);
        assert!(message(&mut sieve, "error").is_some());
    }

    #[test]
    fn a_rate_lets_as_many_through_and_counts_the_others() {
        let mut sieve = Sieve::new(&shape(&[], &[], &[], None, Some(10.0)));
        let now = Instant::now();
        let passed =
            |sieve: &mut Sieve, at| (0..100).filter(|_| sieve.record(line("x"), &Map::new(), at).is_some()).count();
        assert_eq!(passed(&mut sieve, now), 10);
        assert_eq!(passed(&mut sieve, now + Duration::from_millis(500)), 5);
        assert_eq!(passed(&mut sieve, now + Duration::from_secs(60)), 10);
        assert_eq!(sieve.too_many, 275);
    }

    #[test]
    fn fields_are_read_where_there_are_some() {
        let more: Map<_, _> = [("file".to_owned(), Value::from("/x"))].into_iter().collect();
        let mut json = Sieve::new(&shape(&[], &[], &[], Some(Parse::Json), None));
        let mut read = |text: &str| Value::from(json.record(line(text), &more, Instant::now()).unwrap()).to_string();
        assert_eq!(read(r#"{"level":"info","n":1}"#), r#"{"file":"/x","level":"info","n":1}"#);
        assert_eq!(read("[1]"), r#"{"file":"/x","message":"[1]"}"#);
        let mut logfmt = Sieve::new(&shape(&[], &[], &[], Some(Parse::Logfmt), None));
        let mut read =
            |text: &str| Value::from(logfmt.record(line(text), &Map::new(), Instant::now()).unwrap()).to_string();
        assert_eq!(
            read(r#"level=info msg="it is \"done\"" quick n=3"#),
            r#"{"level":"info","msg":"it is \"done\"","n":"3","quick":true}"#
        );
        assert_eq!(read("it is done"), r#"{"message":"it is done"}"#);
        assert_eq!(read("a=\"torn"), r#"{"message":"a=\"torn"}"#);
    }

    #[test]
    fn samples_of_prometheus_are_records() {
        let mut sieve = Sieve::new(&shape(&[], &["^go_"], &[], Some(Parse::Prometheus), None));
        let mut read = |text: &str| {
            sieve.record(line(text), &Map::new(), Instant::now()).map(|record| Value::from(record).to_string())
        };
        for (text, record) in [
            ("up 1", r#"{"name":"up","value":1.0}"#),
            (
                r#"http_requests_total{method="post", code="a\"b\\c\n",} 1.5e3 1395066363000"#,
                r#"{"labels":{"code":"a\"b\\c\n","method":"post"},"name":"http_requests_total","timestamp_ms":1395066363000,"value":1500.0}"#,
            ),
            ("a:b{} NaN", r#"{"name":"a:b","value":"NaN"}"#),
            // What is none stays a line.
            ("no sample", r#"{"message":"no sample"}"#),
            ("x{a=b} 1", r#"{"message":"x{a=b} 1"}"#),
            ("x{a=\"b 1", r#"{"message":"x{a=\"b 1"}"#),
            ("1x 1", r#"{"message":"1x 1"}"#),
            ("x 1 2 3", r#"{"message":"x 1 2 3"}"#),
        ] {
            assert_eq!(read(text).as_deref(), Some(record), "{text}");
        }
        assert_eq!((read("# HELP up Whether it is up"), read("  "), read("go_threads 3")), (None, None, None));
        assert_eq!(sieve.unwanted, 3);
    }

    #[test]
    fn what_is_no_text_is_kept_as_it_is() {
        let mut sieve = Sieve::new(&shape(&[], &[], &[], None, None));
        let record = sieve.record(Line { bytes: vec![0xff, 0], goes_on: true }, &Map::new(), Instant::now()).unwrap();
        assert_eq!(Value::from(record).to_string(), r#"{"goes_on":true,"message_base64":"/wA="}"#);
        let record = sieve.record(line("a\0b"), &Map::new(), Instant::now()).unwrap();
        let mut bytes = Vec::new();
        encoded("1970-01-01T00:00:00.001Z", &record, &mut bytes);
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "{\"at\":\"1970-01-01T00:00:00.001Z\",\"record\":{\"message\":\"a\\u0000b\"}}\n"
        );
    }
}
