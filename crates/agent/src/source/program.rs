//! A program on a schedule as a source: each line that it writes is a record.

use std::process::Stdio;

use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use super::follow::Line;
use super::schedule::{LOAD_BYTES_MAX, pieces};
use crate::config::Program;

/// The lines of one run. How it failed is one more.
pub(super) async fn once(program: &Program) -> std::io::Result<Vec<Line>> {
    let [name, arguments @ ..] = program.argv.as_slice() else { return Ok(Vec::new()) };
    let mut child = Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout.take(LOAD_BYTES_MAX));
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).await? > 0 {
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            pieces(std::mem::take(&mut line), &mut lines);
        }
    }
    let status = child.wait().await?;
    if !status.success() {
        let told = Map::from_iter([("message".to_owned(), Value::from(format!("{name} ended with {status}")))]);
        lines.push(Line { bytes: Value::from(told).to_string().into_bytes(), goes_on: false });
    }
    Ok(lines)
}
