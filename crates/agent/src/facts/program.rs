//! What programs say: the service manager, the package manager, and the executables in `facts.d`. Each is ended when its time
//! is up, with all that it has started, and no more is read of it than it may say.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use exec::{Chunk, End, Program, Stream};
use message::facts::is_shallow;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// So many executables in `facts.d` are asked.
const LOCAL_MAX: usize = 16;
/// How long each of them may take.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(10);
/// So much each of them may say.
const LOCAL_BYTES_MAX: u64 = 8 * 1024;
/// So deep it may be: it stands two deep in the facts.
const LOCAL_DEPTH_MAX: usize = message::facts::DEPTH_MAX - 2;
/// So many characters of a name count.
const NAME_MAX: usize = 64;
/// How long the service manager may take.
const UNITS_TIMEOUT: Duration = Duration::from_secs(10);
/// So many failed units are told.
const UNITS_MAX: usize = 64;
/// How long the package manager may take.
const PACKAGES_TIMEOUT: Duration = Duration::from_secs(120);
/// So much of what it says is counted.
const PACKAGES_BYTES_MAX: u64 = 1 << 20;

/// What a program printed, if it ended well.
async fn ask(program: Program, cancel: &CancellationToken) -> Result<Vec<u8>, String> {
    let (sender, mut chunks) = mpsc::channel::<Chunk>(16);
    let mut printed = Vec::new();
    let (timeout, limit) = (program.timeout, program.max_output);
    let listen = async {
        while let Some(chunk) = chunks.recv().await {
            if chunk.stream == Stream::Stdout {
                printed.extend_from_slice(&chunk.bytes);
            }
        }
    };
    let (finished, ()) = tokio::join!(exec::run(program, sender, cancel.clone()), listen);
    match finished.end {
        End::Exited(0) if finished.stdout.truncated() => Err(format!("it printed more than {} KiB", limit / 1024)),
        End::Exited(0) => Ok(printed),
        End::TimedOut => Err(format!("it did not end within {} s", timeout.as_secs())),
        other => Err(format!("it {other}")),
    }
}

/// The units that have failed; nothing where there is no systemd.
pub(super) async fn failed_units(cancel: &CancellationToken) -> Option<Value> {
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let arguments = ["systemctl", "list-units", "--state=failed", "--no-legend", "--plain", "--no-pager"];
    let program = Program { timeout: UNITS_TIMEOUT, max_output: 64 * 1024, ..Program::new(arguments) };
    let printed = ask(program, cancel).await.ok()?;
    let text = String::from_utf8_lossy(&printed);
    let units: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).take(UNITS_MAX).collect();
    Some(json!(units))
}

/// How many packages could be updated, by what the package manager has heard last; it is not sent to look.
pub(super) async fn packages(cancel: &CancellationToken) -> Option<Value> {
    let apt = Path::new("/usr/bin/apt-get");
    if !apt.exists() {
        return None;
    }
    let arguments = ["nice", "-n", "19", "apt-get", "--simulate", "-qq", "upgrade"];
    let env = vec![("LC_ALL".into(), "C".into())];
    let program = Program { env, timeout: PACKAGES_TIMEOUT, max_output: PACKAGES_BYTES_MAX, ..Program::new(arguments) };
    let printed = ask(program, cancel).await.ok()?;
    let count = String::from_utf8_lossy(&printed).lines().filter(|line| line.starts_with("Inst ")).count();
    Some(json!({"manager": "apt", "updates": count}))
}

/// What the executables in `facts.d` say, by their names, and what is wrong with those that say nothing of use.
pub(super) async fn local(
    dir: &Path,
    run_as: Option<&str>,
    cancel: &CancellationToken,
) -> (Map<String, Value>, Map<String, Value>) {
    let (mut told, mut failed) = (Map::new(), Map::new());
    let all = executables(dir);
    for path in all.iter().take(LOCAL_MAX) {
        let name = name_of(path);
        let program = Program {
            argv: vec![path.into()],
            cwd: Some(dir.to_owned()),
            user: run_as.map(str::to_owned),
            timeout: LOCAL_TIMEOUT,
            max_output: LOCAL_BYTES_MAX,
            ..Program::default()
        };
        match ask(program, cancel).await.and_then(|printed| understood(&printed)) {
            Ok(value) => told.insert(name, value),
            Err(reason) => failed.insert(name, Value::String(reason.chars().take(256).collect())),
        };
    }
    if all.len() > LOCAL_MAX {
        failed.insert("facts.d".into(), format!("only the first {LOCAL_MAX} of {} are asked", all.len()).into());
    }
    (told, failed)
}

fn understood(printed: &[u8]) -> Result<Value, String> {
    let value: Value =
        serde_json::from_slice(printed).map_err(|error| format!("it did not print one JSON value: {error}"))?;
    if is_shallow(&value, LOCAL_DEPTH_MAX) { Ok(value) } else { Err(format!("it is deeper than {LOCAL_DEPTH_MAX}")) }
}

fn executables(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let is_executable =
        |path: &PathBuf| path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_executable).collect();
    found.sort();
    found
}

/// Up to the first point; what could not be written behind `facts.local.` becomes `_`.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.split('.').next().unwrap_or_default();
    stem.chars().take(NAME_MAX).map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &Path, name: &str, script: &str) {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn what_says_nothing_of_use_is_told_and_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "good.sh", "echo '{\"gpu\": 2}'");
        put(dir.path(), "garbage", "head -c 100 /dev/urandom");
        put(dir.path(), "fails", "echo 1; exit 3");
        put(dir.path(), "endless", "yes");
        put(
            dir.path(),
            "deep",
            "for i in 1 2 3 4 5 6 7 8 9; do printf '['; done; for i in 1 2 3 4 5 6 7 8 9; do printf ']'; done",
        );
        std::fs::write(dir.path().join("readme.txt"), "no executable").unwrap();
        let (told, failed) = local(dir.path(), None, &CancellationToken::new()).await;
        assert_eq!(Value::Object(told), json!({"good": {"gpu": 2}}));
        let names: Vec<&String> = failed.keys().collect();
        assert_eq!(names, ["deep", "endless", "fails", "garbage"]);
        assert!(failed["fails"].as_str().unwrap().contains("code 3"), "{failed:?}");
        assert!(failed["endless"].as_str().unwrap().contains("10 s"), "{failed:?}");
    }

    #[test]
    fn names_can_be_written_in_an_expression() {
        assert_eq!(name_of(Path::new("/x/gpu-cards.sh")), "gpu_cards");
    }
}
