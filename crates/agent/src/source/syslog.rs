//! Messages of syslog as records: RFC 5424, and what RFC 3164 found in use. Pure.
//!
//! Nothing is thrown away: what does not look like either is a message as it is.

use data_encoding::BASE64;
use message::syslog::{FACILITIES, SEVERITIES};
use serde_json::{Map, Value};

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The fields of a message: `message`, and as far as it tells them `facility`, `severity`, `time` (as it was written), `host`,
/// `app`, `pid`, `msgid` and `structured`.
pub(crate) fn record(bytes: &[u8]) -> Map<String, Value> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return [("message_base64".to_owned(), Value::from(BASE64.encode(bytes)))].into_iter().collect();
    };
    let mut fields = Map::new();
    let rest = match priority(text) {
        Some((number, rest)) => {
            let word = |words: &[&str], index: usize| {
                words.get(index).map_or_else(|| Value::from(index), |word| Value::from(*word))
            };
            fields.insert("facility".into(), word(&FACILITIES, number / 8));
            fields.insert("severity".into(), word(&SEVERITIES, number % 8));
            rest
        }
        None => text,
    };
    let message = match rest.strip_prefix("1 ") {
        Some(rest) if !fields.is_empty() => new(rest, &mut fields),
        _ => old(rest, &mut fields),
    };
    fields.insert("message".into(), Value::from(message));
    fields
}

/// `<34>` and what follows.
fn priority(text: &str) -> Option<(usize, &str)> {
    let (number, rest) = text.strip_prefix('<')?.split_once('>')?;
    let fits = (1..=3).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|number| fits && *number < 192).map(|number| (number, rest))
}

/// RFC 5424 behind the version: `TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA [MSG]`.
fn new<'a>(text: &'a str, fields: &mut Map<String, Value>) -> &'a str {
    let mut rest = text;
    for name in ["time", "host", "app", "pid", "msgid"] {
        let Some((word, behind)) = rest.split_once(' ') else { return rest };
        if word != "-" {
            fields.insert(name.into(), Value::from(word));
        }
        rest = behind;
    }
    let end = match rest.strip_prefix('-') {
        Some(behind) => return behind.strip_prefix(' ').unwrap_or(behind).trim_start_matches('\u{feff}'),
        None => structured_end(rest),
    };
    let Some((structured, behind)) = end.and_then(|end| rest.split_at_checked(end)) else { return rest };
    fields.insert("structured".into(), Value::from(structured));
    behind.strip_prefix(' ').unwrap_or(behind).trim_start_matches('\u{feff}')
}

/// Behind the last `]` of `[id name="value"][…]`; quotes may hide brackets.
fn structured_end(text: &str) -> Option<usize> {
    let (mut is_inside, mut is_quoted, mut is_escaped) = (false, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' if is_inside => is_quoted = !is_quoted,
            '[' if !is_inside => is_inside = true,
            ']' if is_inside && !is_quoted => is_inside = false,
            _ if !is_inside => return (at > 0).then_some(at),
            _ => {}
        }
    }
    (!is_inside && !text.is_empty()).then_some(text.len())
}

/// RFC 3164: `Mmm dd hh:mm:ss HOSTNAME TAG[PID]: MSG`; many leave parts of it out.
fn old<'a>(text: &'a str, fields: &mut Map<String, Value>) -> &'a str {
    let mut rest = text;
    if let Some((time, behind)) = old_time(rest) {
        fields.insert("time".into(), Value::from(time));
        rest = behind;
        // Without a host, as local programs write it, the tag comes at once, and ends with a colon.
        if let Some((word, behind)) = rest.split_once(' ')
            && !word.ends_with(':')
        {
            fields.insert("host".into(), Value::from(word));
            rest = behind;
        }
    } else if fields.is_empty() {
        return text;
    }
    let end =
        rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))).unwrap_or(rest.len());
    let (app, behind) = rest.split_at(end);
    let (pid, behind) = match behind.strip_prefix('[').and_then(|behind| behind.split_once(']')) {
        Some((pid, behind)) => (Some(pid), behind),
        None => (None, behind),
    };
    let Some(message) = behind.strip_prefix(':').filter(|_| !app.is_empty()) else { return rest };
    fields.insert("app".into(), Value::from(app));
    if let Some(pid) = pid {
        fields.insert("pid".into(), Value::from(pid));
    }
    message.strip_prefix(' ').unwrap_or(message)
}

/// `Oct 11 22:14:15 ` or an RFC 3339 time, and what follows.
fn old_time(text: &str) -> Option<(&str, &str)> {
    if let Some((time, behind)) = text.split_at_checked(15)
        && MONTHS.iter().any(|month| time.starts_with(month))
        && time.as_bytes().get(9) == Some(&b':')
    {
        return Some((time, behind.strip_prefix(' ')?));
    }
    let (word, behind) = text.split_once(' ')?;
    let looks =
        word.len() >= 19 && word.as_bytes().get(10) == Some(&b'T') && word.starts_with(|c: char| c.is_ascii_digit());
    looks.then_some((word, behind))
}

/// Takes whole messages off a stream: `LENGTH SP MSG` (RFC 6587, octet counting), or lines. What is longer than `most` is cut.
pub(crate) fn frames(buffer: &mut Vec<u8>, most: usize, mut take: impl FnMut(&[u8])) {
    let mut at = 0;
    while let Some(rest) = buffer.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.first().is_some_and(u8::is_ascii_digit) {
            let space = rest.iter().take(8).position(|byte| *byte == b' ');
            let length = space.and_then(|end| std::str::from_utf8(rest.get(..end)?).ok()?.parse::<usize>().ok());
            if let (Some(space), Some(length)) = (space, length) {
                // One that is too long comes in pieces, as a line does.
                let Some(message) = rest.get(space + 1..space + 1 + length.min(most)) else { break };
                take(message);
                at += space + 1 + message.len();
                if length > most {
                    let left = format!("{} ", length - most).into_bytes();
                    buffer.splice(..at, left);
                    at = 0;
                }
                continue;
            }
            if space.is_none() && rest.len() < 8 && !rest.contains(&b'\n') {
                break;
            }
        }
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) if end <= most => {
                // Nothing is no message: many end counted ones with a line end, too.
                if end > 0 {
                    take(rest.get(..end).unwrap_or_default());
                }
                at += end + 1;
            }
            _ if rest.len() > most => {
                take(rest.get(..most).unwrap_or_default());
                at += most;
            }
            _ => break,
        }
    }
    buffer.drain(..at.min(buffer.len()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Value {
        Value::from(record(text.as_bytes()))
    }

    #[test]
    fn both_formats_and_what_is_found_in_use() {
        assert_eq!(
            read("<34>Oct 11 22:14:15 mymachine su[231]: 'su root' failed for lonvick on /dev/pts/8"),
            json!({"facility": "auth", "severity": "crit", "time": "Oct 11 22:14:15", "host": "mymachine", "app": "su", "pid": "231",
                   "message": "'su root' failed for lonvick on /dev/pts/8"})
        );
        assert_eq!(
            read(
                "<165>1 2003-10-11T22:14:15.003Z host.example evntslog - ID47 [a@1 x=\"]\\\"\"][b] \u{feff}An application"
            ),
            json!({"facility": "local4", "severity": "notice", "time": "2003-10-11T22:14:15.003Z", "host": "host.example",
                   "app": "evntslog", "msgid": "ID47", "structured": "[a@1 x=\"]\\\"\"][b]", "message": "An application"})
        );
        assert_eq!(
            read("<13>Feb  5 17:32:18 sshd: hello\n"),
            json!({"facility": "user", "severity": "notice", "time": "Feb  5 17:32:18", "app": "sshd", "message": "hello"})
        );
        assert_eq!(read("<13>app: x"), json!({"facility": "user", "severity": "notice", "app": "app", "message": "x"}));
        assert_eq!(
            read("<13>no tag at all"),
            json!({"facility": "user", "severity": "notice", "message": "no tag at all"})
        );
        assert_eq!(read("<999>x"), json!({"message": "<999>x"}));
        assert_eq!(read("nothing: of the kind"), json!({"message": "nothing: of the kind"}));
        assert_eq!(Value::from(record(&[0xff])), json!({"message_base64": "/w=="}));
    }

    fn all(mut buffer: Vec<u8>) -> (Vec<String>, usize) {
        let mut taken = Vec::new();
        frames(&mut buffer, 10, |message| taken.push(String::from_utf8_lossy(message).into_owned()));
        (taken, buffer.len())
    }

    #[test]
    fn a_stream_is_cut_by_counts_or_by_lines() {
        assert_eq!(all(b"<1>a\n<2>b\n<3".to_vec()), (vec!["<1>a".into(), "<2>b".into()], 2));
        assert_eq!(all(b"4 <1>a5 <2>\nb6 <3>".to_vec()), (vec!["<1>a".into(), "<2>\nb".into()], 5));
        assert_eq!(all(b"12 0123456789AB<1>x\n".to_vec()), (vec!["0123456789".into(), "AB".into(), "<1>x".into()], 0));
        assert_eq!(all(b"an endless line".to_vec()), (vec!["an endless".into()], 5));
        assert_eq!(all(b"7 days\n".to_vec()).1, 7, "that may be a count");
        assert_eq!(all(b"2026-11-23 x\n".to_vec()).0, ["2026-11-23", " x"].map(String::from));
    }

    proptest! {
        #[test]
        fn no_message_breaks_it(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "<[0-9]{1,3}>1? ?.{0,80}") {
            record(&bytes);
            prop_assert!(record(text.as_bytes()).contains_key("message"));
            let mut buffer = [bytes, text.into_bytes()].concat();
            let before = buffer.len();
            frames(&mut buffer, 16, |message| assert!(message.len() <= 16));
            prop_assert!(buffer.len() <= before + 8);
        }
    }
}
