//! The ground truth outside Steward: commands that write down themselves that they began and how they ended.
//!
//! In flows what a command is to do, out flows the shell line that does it, and what the files say afterwards. Each
//! line of a witness is one write to a file opened for appending, so that a kill leaves whole lines.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use message::Order;
use message::method::ShellCommand;
use serde_json::Value;

use crate::plan::Work;

/// The variable in which an order tells how long it takes.
const TAKES: &str = "CHAOS_TAKES_MS";

/// The shell line for `work`, with witnesses in `dir`.
pub fn line(dir: &Path, work: Work) -> String {
    let (middle, code) = match work {
        Work::Quick => (String::new(), 0),
        Work::Print(lines) => {
            (format!("i=0; while [ $i -lt {lines} ]; do echo \"line $i of $STEWARD_ORDER\"; i=$((i+1)); done; "), 0)
        }
        Work::Fail(code) => ("echo 'it is meant to fail' >&2; ".to_owned(), code),
        Work::Sleep(ms) => (format!("sleep {}.{:03}; ", ms / 1000, ms % 1000), 0),
        Work::TooLong => ("sleep 600; ".to_owned(), 0),
    };
    let file = format!("'{}'/\"$STEWARD_NODE\"", dir.display());
    format!(
        "printf 'begin %s\\n' \"$STEWARD_ORDER\" >> {file}; {middle}printf 'end %s {code}\\n' \"$STEWARD_ORDER\" >> \
         {file}; exit {code}"
    )
}

/// The variable that tells how long it takes, as `NAME=VALUE`.
pub fn takes_variable(work: Work) -> (String, String) {
    (TAKES.to_owned(), work.takes().as_millis().to_string())
}

/// The arguments of the order for `work`.
pub fn arguments(dir: &Path, work: Work) -> Value {
    let env = BTreeMap::from([takes_variable(work)]);
    let command = ShellCommand { line: Some(line(dir, work)), env, ..ShellCommand::default() };
    serde_json::to_value(command).unwrap_or_default()
}

/// How long an order takes, beyond starting it.
pub fn takes(order: &Order) -> Duration {
    let told = order.args.get("env").and_then(|env| env.get(TAKES)).and_then(Value::as_str);
    Duration::from_millis(told.and_then(|ms| ms.parse().ok()).unwrap_or(0))
}

/// What the witnesses in `dir` say, by node.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn read(dir: &Path) -> std::io::Result<BTreeMap<String, Vec<String>>> {
    let mut witness = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let text = std::fs::read_to_string(entry.path())?;
        let node = entry.file_name().to_string_lossy().into_owned();
        witness.insert(node, text.lines().map(ToOwned::to_owned).collect());
    }
    Ok(witness)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_writes_down_its_begin_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        for (work, code) in [(Work::Quick, 0), (Work::Print(3), 0), (Work::Fail(7), 7), (Work::Sleep(20), 0)] {
            let status = std::process::Command::new("/bin/sh")
                .args(["-c", &line(dir.path(), work)])
                .envs([("STEWARD_NODE", "n1"), ("STEWARD_ORDER", "aa")])
                .output()
                .unwrap();
            assert_eq!(status.status.code(), Some(code));
            let lines = read(dir.path()).unwrap().remove("n1").unwrap();
            assert_eq!(lines, ["begin aa".to_owned(), format!("end aa {code}")]);
            std::fs::remove_file(dir.path().join("n1")).unwrap();
        }
    }
}
