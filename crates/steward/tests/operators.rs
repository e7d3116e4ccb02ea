//! As whom one orders: credentials in files that nobody else can read, keys that a command prints, contexts of `nats`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use world::{HUB, World, program};

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn credentials_that_others_can_read_are_refused_with_what_to_do() {
    let world = World::up();
    let creds = world.path("creds/admin.creds");
    for mode in [0o640, 0o604, 0o620] {
        chmod(&creds, mode);
        let refused = world.steward(&["node", "ls"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("chmod 600") && said.contains("admin.creds"), "{said}");
    }
    chmod(&creds, 0o400);
    assert!(world.steward(&["node", "ls"]).status.success());
}

#[test]
fn a_key_may_be_kept_where_a_command_finds_it() {
    let world = World::up();
    let creds = world.path("creds/admin.creds");
    let text = std::fs::read_to_string(&creds).unwrap();
    let seed = text.lines().find(|line| line.starts_with("SU")).unwrap().to_owned();
    let store = world.path("store");
    std::fs::write(&store, &seed).unwrap();
    let wrong = world.path("wrong");
    std::fs::write(&wrong, nkeys::KeyPair::new_user().seed().unwrap()).unwrap();

    // A command that gives another key changes nothing.
    let refused = world.steward(&["context", "key", "--", "cat", wrong.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&creds).unwrap(), text);

    world.json(0, &["context", "key", "--", "cat", store.to_str().unwrap()]);
    assert!(!std::fs::read_to_string(&creds).unwrap().contains(&seed), "the file holds no secret any more");
    world.json(0, &["run", HUB, "--", "true"]);
    let shown = world.json(0, &["context", "show"]);
    assert_eq!(shown["key_command"][0], "cat");

    // Without the store, nothing goes; and whatever happens, the key is nowhere to be read.
    std::fs::rename(&store, world.path("store.away")).unwrap();
    let without = world.steward(&["-vv", "node", "ls"]);
    assert_eq!(without.status.code(), Some(2), "{without:?}");
    std::fs::rename(world.path("store.away"), &store).unwrap();
    let loud = world.steward(&["-vv", "run", HUB, "--", "true"]);
    assert!(loud.status.success());
    for said in [&without.stdout, &without.stderr, &loud.stdout, &loud.stderr] {
        assert!(!String::from_utf8_lossy(said).contains(&seed));
    }
}

#[test]
fn a_context_of_the_nats_command_line_is_an_identity_here() {
    let world = World::up();
    let bob = world.json(0, &["operator", "add", "bob"]);
    let config = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(config.path().join("nats/context")).unwrap();
    let context = serde_json::json!({"description": "", "url": world.ready["server"], "creds": bob["creds"]});
    std::fs::write(config.path().join("nats/context/fleet.json"), context.to_string()).unwrap();
    let with = |arguments: &[&str]| {
        let mut steward = program();
        steward
            .env("XDG_CONFIG_HOME", config.path())
            .env("NATS_URL", "nats://127.0.0.1:9")
            .arg("--home")
            .arg(world.home());
        steward.args(arguments).output().unwrap()
    };
    let ran = with(&["--nats-context", "fleet", "-o", "json", "run", HUB, "--", "true"]);
    assert!(ran.status.success(), "{ran:?}");
    let ran: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    let jobs = world.json(0, &["job", "ls"]);
    let job = jobs.as_array().unwrap().iter().find(|job| job["job"] == ran["job"]).unwrap();
    assert_eq!(job["by"], "bob");
    assert_eq!(with(&["--nats-context", "nowhere", "node", "ls"]).status.code(), Some(2));
    // By file and by variable.
    let creds = bob["creds"].as_str().unwrap();
    world.json(0, &["--creds", creds, "run", HUB, "--", "true"]);
    let ran = program().env("NATS_CREDS", creds).arg("--home").arg(world.home()).args(["node", "ls"]).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    chmod(Path::new(creds), 0o644);
    assert_eq!(with(&["--nats-context", "fleet", "node", "ls"]).status.code(), Some(1));
}
