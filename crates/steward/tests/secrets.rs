//! Secrets in orders: the program that they are for reads them, and nobody else anywhere.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::path::Path;

use bus::{Bus, Headers};
use bytes::Bytes;
use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, HEXLOWER};
use message::{Order, Seal, Token};
use nkeys::KeyPair;
use serde_json::{Value, json};
use world::{HUB, PATIENCE, World, eventually};

/// Long enough that no part of it is anywhere by chance.
const VALUE: &str = "correct-horse-battery-staple-4711";

/// All ways in which the value could be written down; of base64, what does not depend on where it begins.
fn ways() -> Vec<Vec<u8>> {
    let mut ways = vec![VALUE.as_bytes().to_vec(), HEXLOWER.encode(VALUE.as_bytes()).into_bytes()];
    for skipped in 0..3 {
        let part = &VALUE.as_bytes()[skipped..];
        let part = &part[..part.len() / 3 * 3];
        ways.push(BASE64_NOPAD.encode(part).into_bytes());
        ways.push(BASE64URL.encode(part).into_bytes());
    }
    // Base64 of the base64 in the box.
    ways.push(BASE64_NOPAD.encode(BASE64.encode(VALUE.as_bytes()).as_bytes()).into_bytes());
    ways
}

/// The files below `dir` in which the value can be found.
fn found_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    let mut read = 0_usize;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path()).unwrap_or_default();
                read += bytes.len();
                if holds(&bytes) {
                    found.push(entry.path().display().to_string());
                }
            }
        }
    }
    assert!(read > 0, "nothing was looked at");
    found
}

fn holds(bytes: &[u8]) -> bool {
    ways().iter().any(|way| bytes.windows(way.len()).any(|window| window == way))
}

fn secret_dirs() -> Vec<String> {
    ["/run", "/dev/shm"]
        .iter()
        .flat_map(|place| std::fs::read_dir(place).into_iter().flatten().flatten())
        .filter(|entry| found_name(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path().display().to_string())
        .collect()
}

fn found_name(name: &str) -> bool {
    name.starts_with("steward-secrets-")
}

/// A file with the value, outside of what is searched.
fn value_file(dir: &tempfile::TempDir) -> String {
    let path = dir.path().join("value");
    std::fs::write(&path, VALUE).unwrap();
    format!("DB_PASSWORD=@{}", path.display())
}

#[test]
fn the_program_reads_its_secret_and_nobody_else_does_anywhere() {
    let mut world = World::up();
    let outside = tempfile::tempdir().unwrap();
    let given = value_file(&outside);
    let nowhere = |world: &World, when: &str| {
        assert_eq!(found_below(world.home()), Vec::<String>::new(), "{when}");
        let shown = world.json_any(&["-vv", "job", "show", "last"]);
        assert!(!holds(shown.to_string().as_bytes()), "{when}: {shown}");
        assert_eq!(shown["secrets"], json!(["DB_PASSWORD"]));
    };
    // An agent that writes down all that it does.
    world.agent("ship1", &["-vvv"]);
    // While it waits for a node that is away.
    world.end_agent("ship1", 2);
    let go = outside.path().join("go");
    let seen = outside.path().join("seen");
    let line = format!(
        "cp \"$STEWARD_SECRETS/DB_PASSWORD\" {seen}; ls -ld \"$STEWARD_SECRETS\" >&2; ls -l \"$STEWARD_SECRETS\" >&2; \
         while [ ! -e {go} ]; do sleep 0.05; done; test -s \"$STEWARD_SECRETS/DB_PASSWORD\" && echo \"$STEWARD_SECRETS\"",
        seen = seen.display(),
        go = go.display()
    );
    let output = world.steward(&["-vv", "-o", "json", "run", "ship1", "--secret", &given, "--detach", "--sh", &line]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(!holds(&output.stdout) && !holds(&output.stderr), "{output:?}");
    nowhere(&world, "while it waits at the broker");
    // While it runs.
    world.agent("ship1", &["-vvv"]);
    eventually("the program has read it", || std::fs::read(&seen).is_ok_and(|bytes| bytes == VALUE.as_bytes()));
    nowhere(&world, "while it runs");
    let http = world.ready["http"].as_str().unwrap().to_owned();
    for path in ["/metrics", "/", "/api/jobs"] {
        let answer = get(&http, path);
        assert!(!answer.is_empty() && !holds(&answer), "{path}");
    }
    // It outlives its agent, with its secret.
    world.end_agent("ship1", 9);
    world.agent("ship1", &["-vvv"]);
    std::fs::write(&go, "").unwrap();
    eventually("it has ended", || world.json_any(&["job", "show", "last"])["nodes"]["ship1"]["state"] == "succeeded");
    let shown = world.json_any(&["job", "show", "last"]);
    let dir = shown["nodes"]["ship1"]["stdout"].as_str().unwrap().trim().to_owned();
    assert!(dir.starts_with("/dev/shm/steward-secrets-") || dir.starts_with("/run/steward-secrets-"), "{shown}");
    let modes = shown["nodes"]["ship1"]["stderr"].as_str().unwrap();
    assert!(modes.contains("drwx------") && modes.contains("-r--------"), "{modes}");
    assert!(!Path::new(&dir).exists(), "gone with the program");
    nowhere(&world, "after it has ended");
    // The test can fail: what a program prints is output, and stands where output stands.
    world.json(0, &["run", "ship1", "--secret", &given, "--sh", "cat \"$STEWARD_SECRETS/DB_PASSWORD\""]);
    assert!(!found_below(world.home()).is_empty(), "what is printed is not hidden");
}

#[test]
fn a_method_of_ones_own_and_another_user_get_it_and_what_runs_no_program_refuses() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let outside = tempfile::tempdir().unwrap();
    let given = value_file(&outside);
    let methods = world.path("nodes/ship1/methods.d");
    std::fs::create_dir_all(&methods).unwrap();
    let method = methods.join("length");
    std::fs::write(&method, "#!/bin/sh\nwc -c < \"$STEWARD_SECRETS/DB_PASSWORD\"\n").unwrap();
    std::fs::set_permissions(&method, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let told = world.json(0, &["call", "ship1", "length", "--secret", &given]);
    assert_eq!(told["nodes"]["ship1"]["data"], VALUE.len());
    let told = world.json(3, &["call", "ship1", "hello", "--secret", &given]);
    assert_eq!(told["nodes"]["ship1"]["state"], "rejected");
    assert!(told["nodes"]["ship1"]["reason"].as_str().unwrap().contains("runs no program"), "{told}");
    // Without any, nothing is there.
    let told = world.json(0, &["run", "ship1", "--sh", "test -z \"$STEWARD_SECRETS\" && echo none"]);
    assert_eq!(told["nodes"]["ship1"]["stdout"], "none\n");
    if nix_is_root() {
        let line = "id -un; wc -c < \"$STEWARD_SECRETS/DB_PASSWORD\"; ls \"$STEWARD_SECRETS\"";
        let told = world.json(0, &["run", "ship1", "--user", "nobody", "--secret", &given, "--sh", line]);
        assert_eq!(told["nodes"]["ship1"]["stdout"], format!("nobody\n{}\nDB_PASSWORD\n", VALUE.len()), "{told}");
    }
    // From standard input and from a variable; and a value on the command line not at all.
    let told = world.steward(&["run", "ship1", "--secret", &format!("A={VALUE}"), "--", "true"]);
    assert_eq!(told.status.code(), Some(2), "{told:?}");
    assert!(!holds(&told.stderr) && !holds(&told.stdout), "{told:?}");
    let told =
        world.json(0, &["run", "ship1", "--secret", "HOME_DIR=env:HOME", "--sh", "cat $STEWARD_SECRETS/HOME_DIR"]);
    assert_eq!(told["nodes"]["ship1"]["stdout"], std::env::var("HOME").unwrap());
    let told = world.json(0, &["run", "ship1", "--secret", &given, "--dry-run", "--", "true"]);
    assert_eq!(told["secrets"], json!(["DB_PASSWORD"]), "{told}");
}

fn nix_is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

#[test]
fn a_killed_keeper_leaves_no_secret_behind() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let outside = tempfile::tempdir().unwrap();
    let given = value_file(&outside);
    let told_dir = outside.path().join("dir");
    let line = format!("echo \"$STEWARD_SECRETS\" > {}; sleep 60", told_dir.display());
    world.json(4, &["run", "ship1", "--secret", &given, "--detach", "--sh", &line]);
    eventually("it runs", || std::fs::read_to_string(&told_dir).is_ok_and(|dir| dir.ends_with('\n')));
    let dir = std::fs::read_to_string(&told_dir).unwrap().trim().to_owned();
    assert!(Path::new(&dir).join("DB_PASSWORD").exists());
    let home = world.home().to_str().unwrap().to_owned();
    for keeper in world::keepers(&format!("{home}/nodes/ship1")) {
        world::send(keeper, 9);
    }
    eventually("it is interrupted", || {
        world.json_any(&["job", "show", "last"])["nodes"]["ship1"]["state"] == "interrupted"
    });
    assert!(!Path::new(&dir).exists(), "{:?}", secret_dirs());
}

#[test]
fn a_retry_needs_the_secrets_again_and_an_approver_sees_names_alone() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let outside = tempfile::tempdir().unwrap();
    let given = value_file(&outside);
    let (witness, go) = (outside.path().join("witness"), outside.path().join("go"));
    let line = format!("wc -c < \"$STEWARD_SECRETS/DB_PASSWORD\" >> {}; test -e {}", witness.display(), go.display());
    world.json(3, &["run", "ship1", "--secret", &given, "--sh", &line]);
    let refused = world.steward(&["job", "retry", "last"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--secret DB_PASSWORD=@FILE"), "{refused:?}");
    std::fs::write(&go, "").unwrap();
    world.json(0, &["job", "retry", "last", "--secret", &given]);
    assert_eq!(world::lines(&witness), [VALUE.len().to_string(), VALUE.len().to_string()]);
    let approved = world.steward(&["job", "approve", "last"]);
    let shown = String::from_utf8_lossy(&approved.stderr);
    assert!(shown.contains("the secrets DB_PASSWORD") && !holds(&approved.stderr), "{approved:?}");
    // Under one idempotency key: the same names go on, others are something else.
    let once = ["run", "ship1", "--idempotency-key", "k1", "--secret", &given, "--sh", "echo once"];
    let first = world.json(0, &once);
    assert_eq!(world.json(0, &once)["job"], first["job"]);
    let without = world.steward(&["run", "ship1", "--idempotency-key", "k1", "--sh", "echo once"]);
    assert_eq!(without.status.code(), Some(2), "{without:?}");
    assert!(String::from_utf8_lossy(&without.stderr).contains("other secrets"), "{without:?}");
}

/// An operator who may order whatever he likes takes a secret that somebody else sealed: by all ways that there are, it does not
/// open for him.
#[test]
fn a_sealed_secret_that_was_moved_or_altered_is_rejected() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.agent("ship2", &[]);
    let outside = tempfile::tempdir().unwrap();
    let given = value_file(&outside);
    world.json(0, &["run", "ship1", "--secret", &given, "--", "true"]);
    let context = world.json(0, &["context", "show"]);
    let creds = std::fs::read_to_string(context["creds"].as_str().unwrap()).unwrap();
    let pair = bus::claims::Creds::parse(&creds).unwrap().key().unwrap();
    let job = world.json(0, &["job", "show", "last"])["job"].as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let bus = world.operator_bus().await;
        let record = bus.kv_get("JOBS", &job).await.unwrap().unwrap();
        let record: Value = serde_json::from_slice(&record.payload).unwrap();
        let chunk: Value = serde_json::from_str(record["inline"].as_str().unwrap()).unwrap();
        let genuine = Order::parse(chunk["orders"][0]["order"].as_str().unwrap().as_bytes()).unwrap();
        let print = json!({"line": "cat $STEWARD_SECRETS/DB_PASSWORD"});
        let fresh = || Order { id: bus::clock::order_id(), args: print.clone(), ..genuine.clone() };
        // The same box in another order.
        let told = refused(&bus, fresh(), &pair).await;
        assert!(told.contains("another order"), "{told}");
        // In another method, as if it were another domain.
        let told = refused(&bus, Order { domain: Token::domain("elsewhere").unwrap(), ..fresh() }, &pair).await;
        assert!(told.contains("another order") || told.contains("another method"), "{told}");
        // At another node.
        let ship2 = bus.kv_get("NODES", "ship2").await.unwrap().unwrap();
        let ship2: Value = serde_json::from_slice(&ship2.payload).unwrap();
        let mut elsewhere = fresh();
        elsewhere.to = serde_json::from_value(json!({"name": "ship2", "key": ship2["key"]})).unwrap();
        let told = refused(&bus, elsewhere, &pair).await;
        assert!(told.contains("another key"), "{told}");
        // Altered.
        let sealed = genuine.secrets.clone().unwrap();
        let bytes = BASE64.decode(sealed.sealed.as_bytes()).unwrap();
        for at in (0..bytes.len()).step_by(101) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let mut order = fresh();
            order.id = genuine.id;
            order.job = genuine.job.clone();
            let secrets = message::SealedSecrets { sealed: BASE64.encode(&bytes), ..sealed.clone() };
            let order = Order { secrets: Some(secrets), id: bus::clock::order_id(), ..order };
            let told = refused(&bus, order, &pair).await;
            assert!(told.contains("altered"), "byte {at}: {told}");
        }
        bus.close().await;
    });
    assert_eq!(found_below(world.home()), Vec::<String>::new());
    // The hub is as well as before.
    world.json(0, &["run", HUB, "--", "true"]);
}

/// Publishes an order under an operator's signature, sees it rejected, and returns why.
async fn refused(bus: &Bus, order: Order, pair: &KeyPair) -> String {
    // A job of its own, so that its reply is found.
    let order = Order { job: bus::clock::job_id(bus::clock::now()), ..order };
    let bytes = order.to_bytes().unwrap();
    let headers = Headers::new().with_id(&order.id.to_string()).sealed(&Seal::over(&bytes, pair).unwrap());
    bus.publish(&order.subject().to_string(), headers, Bytes::from(bytes)).await.unwrap();
    let subject = order.reply_subject().to_string();
    let deadline = std::time::Instant::now() + PATIENCE;
    let reply = loop {
        if let Some(reply) = bus.last("REPLIES", &subject).await.unwrap() {
            break reply;
        }
        assert!(std::time::Instant::now() < deadline, "no reply");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let reply: Value = serde_json::from_slice(&reply.payload).unwrap();
    assert_eq!(reply["history"][0]["state"], "rejected", "{reply}");
    reply["reason"].as_str().unwrap().to_owned()
}

fn get(http: &str, path: &str) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let address = http.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}
