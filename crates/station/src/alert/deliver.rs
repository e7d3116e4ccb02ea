//! How notices reach somebody: HTTP, or a program's input.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::config::{Format, Rule, Way};
use super::decide::Notice;
use receive::hand_over::{Refusal, send};

/// How long somebody may take to answer, and a program to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Delivers notices of a rule together.
pub(super) async fn deliver(rule: &Rule, notices: &[Notice], client: &reqwest::Client) -> Result<(), Refusal> {
    match &rule.way {
        Way::Webhook { url, headers } => post(url, headers, rule.format, notices, client).await,
        Way::Command(argv) => give(argv, lines(rule.format, notices)).await,
    }
}

/// One line for each.
fn lines(format: Format, notices: &[Notice]) -> String {
    let mut text = String::new();
    for notice in notices {
        match format {
            Format::Json => text.push_str(&json!(notice).to_string()),
            Format::Text => {
                let state = if notice.state == super::decide::Turn::Firing { "firing" } else { "recovered" };
                text.push_str(&format!("[{state}] {}: {}", notice.alert, notice.message.replace(['\n', '\r'], " ")));
            }
        }
        text.push('\n');
    }
    text
}

async fn post(
    url: &str,
    headers: &[(String, String)],
    format: Format,
    notices: &[Notice],
    client: &reqwest::Client,
) -> Result<(), Refusal> {
    let (kind, body) = match format {
        Format::Json => ("application/json", json!({ "v": 1, "notices": notices }).to_string()),
        Format::Text => ("text/plain; charset=utf-8", lines(format, notices)),
    };
    send(client.post(url).timeout(PATIENCE).header("content-type", kind).body(body), url, headers).await
}

/// Runs a program, which has taken what it is given when it ends well.
async fn give(argv: &[String], text: String) -> Result<(), Refusal> {
    let [name, arguments @ ..] = argv else { return Err(Refusal::Never("there is no program".into())) };
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| Refusal::Later(format!("{name} cannot be started: {error}")))?;
    let stdin = child.stdin.take();
    let told = async {
        if let Some(mut stdin) = stdin {
            // One that has all it wants need not read to the end: what counts is how it ends.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        child.wait().await
    };
    match tokio::time::timeout(PATIENCE, told).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(Refusal::Later(format!("{name} has ended with {status}"))),
        Ok(Err(error)) => Err(Refusal::Later(format!("{name}: {error}"))),
        Err(_) => Err(Refusal::Later(format!("{name} has not ended within {} s", PATIENCE.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(line: &str) -> Vec<String> {
        ["sh", "-c", line].map(ToOwned::to_owned).to_vec()
    }

    #[tokio::test]
    async fn a_program_has_taken_what_it_is_given_when_it_ends_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("told");
        give(&argv(&format!("cat > {}", path.display())), "one\ntwo\n".into()).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        // One that does not read has taken it as well, if it says so; more than a pipe holds must not hang.
        give(&argv("exit 0"), "x".repeat(1 << 20)).await.unwrap();
        let Err(Refusal::Later(reason)) = give(&argv("cat > /dev/null; exit 3"), "x".into()).await else { panic!() };
        assert!(reason.contains("sh has ended with exit status: 3"), "{reason}");
        let Err(Refusal::Later(reason)) = give(&["/no/such/program".into()], "x".into()).await else { panic!() };
        assert!(reason.contains("cannot be started"), "{reason}");
    }
}
