use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program};
use std::time::{Duration, Instant};

use bytes::Bytes;
use message::event::EventHead;
use message::{Kind, MessageId, NodeName, ReceivedBatch, Token, WIRE_VERSION};
use proptest::prelude::*;

use super::*;

fn batch(id: u8, records: &[&str]) -> Usable {
    let head = EventHead {
        v: WIRE_VERSION,
        kind: Kind::Event,
        id: MessageId::from_bytes([id; 16]),
        from: NodeName::new("ship1").unwrap(),
        to: NodeName::new("central").unwrap(),
        method: Token::method("m").unwrap(),
        domain: Token::domain("d").unwrap(),
        created: message::Timestamp::from_ms(0),
        count: records.len().try_into().unwrap(),
        journal: None,
        row: None,
    };
    let line = |record: &&str| format!("{{\"at\":\"2026-11-24T23:59:59.999Z\",\"record\":{record}}}\n");
    let records: String = records.iter().map(line).collect();
    Usable::of(&ReceivedBatch { head, records: Bytes::from(records) }).unwrap()
}

fn load(batches: Vec<Usable>) -> Load {
    Load { batches, sequence: 1 }
}

#[test]
fn what_jsonb_refuses_is_replaced_and_nothing_else() {
    for (json, expected) in [
        (r#"{"a":"b"}"#, r#"{"a":"b"}"#),
        (r#"{"a":"\u0000x"}"#, r#"{"a":"\ufffdx"}"#),
        (r#"{"a":"\\u0000"}"#, r#"{"a":"\\u0000"}"#),
        (r#"{"a":"\\\u0000"}"#, r#"{"a":"\\\ufffd"}"#),
        (r#"{"a":"\ud83d\ude00\u00fc"}"#, r#"{"a":"\ud83d\ude00\u00fc"}"#),
        (r#"{"a":"\ud83d\u0000"}"#, r#"{"a":"\ufffd\ufffd"}"#),
        (r#"{"a":"\ude00\ud83d"}"#, r#"{"a":"\ufffd\ufffd"}"#),
    ] {
        assert_eq!(storable(json), expected, "{json}");
    }
}

proptest! {
    #[test]
    fn what_is_storable_reads_as_it_did_but_for_nul(text in "\\PC{0,20}[\u{0}\t\n\\\\\"]{0,5}\\PC{0,20}") {
        let json = serde_json::to_string(&text).unwrap();
        let read: String = serde_json::from_str(&storable(&json)).unwrap();
        prop_assert_eq!(read, text.replace('\0', "\u{fffd}"));
        let mut field = String::new();
        escaped(&text, &mut field);
        prop_assert!(!field.contains(['\t', '\n', '\r', '\0']));
    }
}

/// A real server, in a directory of its own, that ends with its test.
struct Server {
    dir: tempfile::TempDir,
    child: Child,
}

/// PostgreSQL does not run as root.
fn as_nobody(program: &Path) -> Program {
    if !is_root() {
        return Program::new(program);
    }
    let mut command = Program::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
    command
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").unwrap().lines().any(|line| line.starts_with("Uid:\t0\t"))
}

/// Where the server's programs are.
fn programs() -> Option<PathBuf> {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let dirs = installed.map(|version| version.path().join("bin"));
    let on_path =
        std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    dirs.chain(on_path).find(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file())
}

impl Server {
    fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(std::env::var_os("STEWARD_POSTGRES").is_none(), "there is no PostgreSQL");
            println!("left out: there is no PostgreSQL (apt-get install postgresql)");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        if is_root() {
            std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
        }
        let data = dir.path().join("data");
        let mut initdb = as_nobody(&programs.join("initdb"));
        let made = initdb.arg("-D").arg(&data).args(["-U", "steward", "-A", "trust", "-N"]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let child = as_nobody(&programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { dir, child };
        let deadline = Instant::now() + Duration::from_secs(60);
        while server.ask("SELECT 1").is_empty() {
            assert!(Instant::now() < deadline, "PostgreSQL does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    fn url(&self) -> String {
        format!("postgres:///postgres?host={}&user=steward", self.dir.path().display())
    }

    fn ask(&self, question: &str) -> String {
        let output = Program::new("psql").args(["-XAtq", "-c", question, &self.url()]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn sink(&self) -> Postgres {
        Postgres::new(PostgresSink { url: self.url(), table: "logs".into(), password_file: None })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_record_is_a_row_once_however_often_it_comes() {
    let Some(server) = Server::start() else { return };
    let mut sink = server.sink();
    let text = r#"{"message":"tab\tline\nback\\slash \u0000 \u00fc"}"#;
    let records = [text, r#"{"message_base64":"/wA="}"#, r#"{"status":502,"path":"/a"}"#];
    assert_eq!(sink.deliver(&load(vec![batch(1, &records)])).await.unwrap(), 3);
    // As after a crash: the same again, with more.
    let again = load(vec![batch(1, &records), batch(2, &[r#"{"message":"two"}"#])]);
    assert_eq!(server.sink().deliver(&again).await.unwrap(), 4);
    assert_eq!(server.ask("SELECT count(*) FROM logs"), "4");
    let first = server
        .ask("SELECT message, node, method, domain, at AT TIME ZONE 'UTC' FROM logs ORDER BY batch, number LIMIT 1");
    assert_eq!(first, "tab\tline\nback\\slash \u{fffd} \u{fc}|ship1|m|d|2026-11-24 23:59:59.999");
    assert_eq!(server.ask("SELECT record->>'status' FROM logs WHERE record ? 'status' AND message IS NULL"), "502");
    assert_eq!(server.ask("SELECT count(*) FROM logs WHERE message = E'\\uFFFD\\uFFFD'"), "1");
}

#[tokio::test]
async fn what_it_will_never_take_is_told_from_what_it_may_take_later() {
    let Some(server) = Server::start() else { return };
    let mut sink = server.sink();
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let refused = sink.deliver(&load(vec![batch(1, &[&deep])])).await;
    assert!(matches!(&refused, Err(Refusal::Never(reason)) if reason.contains("54001")), "{refused:?}");
    let huge = sink.deliver(&load(vec![batch(1, &[r#"{"n":1e999999}"#])])).await;
    assert!(matches!(&huge, Err(Refusal::Never(reason)) if reason.contains("22")), "{huge:?}");
    assert_eq!(sink.deliver(&load(vec![batch(1, &[r#"{"n":1}"#])])).await.unwrap(), 1);
    server.ask("ALTER TABLE logs RENAME COLUMN record TO other");
    let changed = sink.deliver(&load(vec![batch(2, &[r#"{"n":1}"#])])).await;
    assert!(matches!(&changed, Err(Refusal::Later(_))), "somebody may put that right: {changed:?}");
    let url = server.url();
    drop(server);
    let gone = sink.deliver(&load(vec![batch(3, &[r#"{"n":1}"#])])).await;
    assert!(matches!(&gone, Err(Refusal::Later(reason)) if reason.contains(&url)), "{gone:?}");
}
