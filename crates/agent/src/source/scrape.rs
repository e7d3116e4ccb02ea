//! An address that is asked on a schedule, as a source: each line of what it answers is a record, or each value of its JSON.

use serde_json::{Value, json};

use super::follow::Line;
use super::schedule::{LOAD_BYTES_MAX, pieces};
use crate::config::Scrape;
use crate::http::{self, chain};

/// The lines of one answer. `whole`: it is JSON, however many lines that has.
///
/// # Errors
/// A sentence that says why there is none.
pub(super) async fn once(scrape: &Scrape, whole: bool) -> Result<Vec<Line>, String> {
    let why = |error: reqwest::Error| chain(&error.without_url());
    let mut answer = http::get(&scrape.url, scrape.headers.iter())?.send().await.map_err(why)?;
    let (status, mut body) = (answer.status(), Vec::new());
    while let Some(piece) = answer.chunk().await.map_err(why)? {
        body.extend_from_slice(&piece);
        if body.len() as u64 > LOAD_BYTES_MAX {
            return Err(format!("it answers with more than {} MiB", LOAD_BYTES_MAX >> 20));
        }
    }
    if status.is_success() { Ok(lines(&body, whole)) } else { Err(format!("it answers {status}")) }
}

/// That it does not answer is worth as much as what it would have answered.
pub(super) fn silence(what: &str, reason: &str) -> Line {
    let record = json!({"message": format!("{what} cannot be read: {reason}"), "url": what});
    Line { bytes: record.to_string().into_bytes(), goes_on: false }
}

/// The lines of a body; with `whole`, each element of an array of JSON, or one object, however many lines it has.
fn lines(body: &[u8], whole: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    let values = match serde_json::from_slice(body) {
        Ok(Value::Array(values)) if whole => values,
        Ok(value @ Value::Object(_)) if whole => vec![value],
        _ => {
            for line in body.split(|byte| *byte == b'\n') {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                if !line.is_empty() {
                    pieces(line.to_vec(), &mut lines);
                }
            }
            return lines;
        }
    };
    // A value that is too long for a record is told in pieces of its text.
    values.iter().for_each(|value| pieces(value.to_string().into_bytes(), &mut lines));
    lines
}

/// What may be shown of an address.
pub(super) fn without_password(url: &str) -> String {
    let Ok(mut parsed) = reqwest::Url::parse(url) else { return url.to_owned() };
    // It has a host, or would not have been taken.
    let _ = (parsed.set_password(None), parsed.set_username(""));
    parsed.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(body: &str, whole: bool) -> Vec<String> {
        lines(body.as_bytes(), whole).into_iter().map(|line| String::from_utf8(line.bytes).unwrap()).collect()
    }

    #[test]
    fn a_body_is_lines_or_the_values_of_its_json() {
        assert_eq!(told("a 1\r\n\n# c\nb 2", false), ["a 1", "# c", "b 2"]);
        assert_eq!(told("[{\"a\": 1},\n {\"a\": 2}]", true), ["{\"a\":1}", "{\"a\":2}"]);
        assert_eq!(told("{\"a\":\n1}", true), ["{\"a\":1}"]);
        assert_eq!(told("{\"a\":1}\n{\"a\":2}\n", true), ["{\"a\":1}", "{\"a\":2}"]);
        assert_eq!(lines(&vec![b'x'; 100_000], false).len(), 2);
    }

    #[test]
    fn an_address_is_shown_without_what_it_hides() {
        assert_eq!(without_password("http://u:p@host:1/x?y"), "http://host:1/x?y");
    }
}
