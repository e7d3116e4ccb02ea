//! PostgreSQL as a sink, by the station's or node's own `psql`: it knows the protocol, its encryption and where passwords are.
//!
//! A load is one transaction: its rows are copied into a table of their own, and from there those that are not in the table yet are
//! inserted. A row is known by its batch and its number in it, so that what comes again is there once.

use std::fmt::Write;
use std::process::{Output, Stdio};

use data_encoding::BASE64;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::config::PostgresSink;
use crate::hand_over::{PATIENCE, Refusal};
use crate::sink::Load;
use crate::usable::{Line, Usable};

const PROGRAM: &str = "psql";
/// What stands where PostgreSQL has no place for a character.
const REPLACEMENT: &str = "\\ufffd";
/// How much of what is complained of is told.
const COMPLAINT_CHARS_MAX: usize = 300;

/// A table of a database.
pub(super) struct Postgres {
    sink: PostgresSink,
    /// Whether the table was seen to be there.
    is_ready: bool,
}

/// The part of a record that is a text for people.
#[derive(Deserialize)]
struct Text<'a> {
    #[serde(borrow)]
    message: Option<std::borrow::Cow<'a, str>>,
    message_base64: Option<String>,
}

impl Postgres {
    pub(super) const fn new(sink: PostgresSink) -> Self {
        Self { sink, is_ready: false }
    }

    /// Inserts all of a load, and returns how many records that were.
    pub(super) async fn deliver(&mut self, load: &Load) -> Result<u64, Refusal> {
        let (mut rows, mut count) = (String::new(), 0);
        for batch in &load.batches {
            for (number, line) in batch.lines().enumerate() {
                row(batch, number, line, &mut rows);
                count += 1;
            }
        }
        if count == 0 {
            return Ok(0);
        }
        let table = &self.sink.table;
        let mut script = String::from("\\set VERBOSITY verbose\nSET client_min_messages = warning;\n");
        if !self.is_ready {
            script.push_str(&made(table));
        }
        let _ = write!(
            script, // to memory
            "BEGIN;\nCREATE TEMPORARY TABLE steward_load (LIKE {table}) ON COMMIT DROP;\n\
             COPY steward_load ({COLUMNS}) FROM STDIN;\n{rows}\\.\n\
             INSERT INTO {table} ({COLUMNS}) SELECT {COLUMNS} FROM steward_load ON CONFLICT DO NOTHING;\nCOMMIT;\n"
        );
        self.run(script).await?;
        self.is_ready = true;
        Ok(count)
    }

    async fn run(&self, script: String) -> Result<(), Refusal> {
        let later = |reason: String| Refusal::Later(format!("{}: {reason}", self.sink.url));
        let mut command = Command::new(PROGRAM);
        command.args(["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--file=-"]);
        command.arg(format!("--dbname={}", self.sink.url));
        command.env("PGCONNECT_TIMEOUT", "10").env("PGAPPNAME", "steward").env("PGCLIENTENCODING", "UTF8");
        command.env("LC_ALL", "C");
        if let Some(path) = &self.sink.password_file {
            let password = std::fs::read_to_string(path)
                .map_err(|error| later(format!("{} cannot be read: {error}", path.display())))?;
            command.env("PGPASSWORD", password.trim_end_matches(['\r', '\n']));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            later(format!("{PROGRAM} cannot be started: {error}; it comes with the clients of PostgreSQL"))
        })?;
        let mut stdin = child.stdin.take();
        let written = async move {
            if let Some(stdin) = &mut stdin {
                // One that ends early says why.
                let _ = stdin.write_all(script.as_bytes()).await;
            }
        };
        let ended = timeout(PATIENCE, async { tokio::join!(written, child.wait_with_output()).1 });
        let output = match ended.await {
            Ok(output) => output.map_err(|error| later(error.to_string()))?,
            Err(_) => return Err(later(format!("it has not answered for {} s", PATIENCE.as_secs()))),
        };
        if output.status.success() {
            return Ok(());
        }
        let (reason, is_final) = complaint(&output);
        Err(if is_final { Refusal::Never(format!("{}: {reason}", self.sink.url)) } else { later(reason) })
    }
}

/// The columns that are written.
const COLUMNS: &str = "batch, number, at, node, method, domain, message, record";

/// Makes the table where there is none. Who has made one may do without the right to.
fn made(table: &str) -> String {
    format!(
        "SELECT to_regclass('{table}') IS NULL AS is_missing \\gset\n\\if :is_missing\n\
         CREATE TABLE IF NOT EXISTS {table} (batch uuid NOT NULL, number integer NOT NULL, at timestamptz NOT NULL, \
         node text NOT NULL, method text NOT NULL, domain text NOT NULL, message text, record jsonb NOT NULL, \
         PRIMARY KEY (batch, number));\n\\endif\n"
    )
}

/// What it complains of, and whether it will for ever: data that it cannot have (class 22 of
/// [SQLSTATE](https://www.postgresql.org/docs/current/errcodes-appendix.html)), that break a rule of the table (23), or are beyond
/// a limit (54).
fn complaint(output: &Output) -> (String, bool) {
    let said = String::from_utf8_lossy(&output.stderr);
    let error = said.lines().find_map(|line| Some(line.split_once("ERROR:")?.1.trim()));
    let is_final = error.is_some_and(|error| ["22", "23", "54"].iter().any(|class| error.starts_with(class)));
    let told = error.or_else(|| said.lines().find(|line| !line.trim().is_empty())).unwrap_or("it says not why");
    (told.chars().take(COMPLAINT_CHARS_MAX).collect(), is_final)
}

/// Writes a record as a row of COPY's [text format](https://www.postgresql.org/docs/current/sql-copy.html).
fn row(batch: &Usable, number: usize, line: Line<'_>, into: &mut String) {
    let head = &batch.head;
    let record = storable(line.record);
    let message = match serde_json::from_str::<Text<'_>>(line.record) {
        Ok(Text { message: Some(text), .. }) => Some(text.into_owned()),
        Ok(Text { message_base64: Some(bytes), .. }) => {
            let bytes = BASE64.decode(bytes.as_bytes()).unwrap_or_default();
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        _ => None,
    };
    let _ = write!(into, "{}\t{number}\t{}\t", head.id, line.at); // to memory
    for text in [head.from.as_str(), head.method.as_str(), head.domain.as_str()] {
        escaped(text, into);
        into.push('\t');
    }
    match message {
        Some(text) => escaped(&text, into),
        None => into.push_str("\\N"),
    }
    into.push('\t');
    escaped(&record, into);
    into.push('\n');
}

/// Text as a field of COPY; a NUL, which PostgreSQL does not store, becomes U+FFFD.
fn escaped(text: &str, into: &mut String) {
    for sign in text.chars() {
        match sign {
            '\\' => into.push_str("\\\\"),
            '\t' => into.push_str("\\t"),
            '\n' => into.push_str("\\n"),
            '\r' => into.push_str("\\r"),
            '\0' => into.push('\u{fffd}'),
            sign => into.push(sign),
        }
    }
}

/// JSON without what `jsonb` refuses: an escaped NUL, and halves of a surrogate pair, become U+FFFD.
fn storable(json: &str) -> std::borrow::Cow<'_, str> {
    if !json.contains("\\u") {
        return json.into();
    }
    let (mut text, mut rest) = (String::with_capacity(json.len()), json);
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        text.push_str(before);
        let unit = |escape: &str| {
            let digits = escape.strip_prefix("\\u")?.get(..4)?;
            u16::from_str_radix(digits, 16).ok()
        };
        let length = match unit(escape) {
            // Any other escape has one sign.
            None => 2,
            Some(0 | 0xdc00..=0xdfff) => {
                text.push_str(REPLACEMENT);
                rest = escape.get(6..).unwrap_or_default();
                continue;
            }
            Some(0xd800..=0xdbff) => match escape.get(6..).and_then(unit) {
                Some(0xdc00..=0xdfff) => 12,
                _ => {
                    text.push_str(REPLACEMENT);
                    rest = escape.get(6..).unwrap_or_default();
                    continue;
                }
            },
            Some(_) => 6,
        };
        // A record is valid JSON: behind a backslash there is a sign of ASCII.
        let (kept, behind) = escape.split_at_checked(length).unwrap_or((escape, ""));
        text.push_str(kept);
        rest = behind;
    }
    text.push_str(rest);
    text.into()
}

#[cfg(test)]
#[path = "postgres_tests.rs"]
mod tests;
