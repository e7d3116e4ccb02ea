//! The root hands over: what is signed with the key of the one before is worth nothing wherever that was heard.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::path::Path;

use bus::{Bus, Headers};
use bytes::Bytes;
use message::{
    Lineage, Operator, Order, OrderChunk, Policy, PublicKey, Seal, SealedDocument, SealedTrust, Succession, Timestamp,
    Trust,
};
use nkeys::KeyPair;
use serde_json::Value;
use world::{World, eventually, lines};

const SUBJECT: &str = "ship1.command.shellcommand.other";

fn root_key(world: &World) -> KeyPair {
    KeyPair::from_seed(std::fs::read_to_string(world.path("keys/fleet-root.nk")).unwrap().trim()).unwrap()
}

fn at_home(home: &Path) -> SealedTrust {
    serde_json::from_slice(&std::fs::read(home.join("trust.json")).unwrap()).unwrap()
}

/// What the thief of a root's key signs: a list with himself on it, far ahead of all others.
fn with_eve(world: &World, root: &KeyPair, eve: &KeyPair, roots: Vec<Succession>) -> Bytes {
    let mut trust: Trust = serde_json::from_str(&at_home(world.home()).sealed.document).unwrap();
    trust.serial += 1_000_000;
    trust.operators.push(Operator::admin("eve", PublicKey::of(eve)));
    let sealed = SealedDocument::new(serde_json::to_string(&trust).unwrap(), root).unwrap();
    Bytes::from(serde_json::to_vec(&SealedTrust { sealed, roots }).unwrap())
}

/// An order of `job` once more, under an id of its own, on another domain, and signed by `eve`.
async fn forged(bus: &Bus, job: &str, eve: &KeyPair) {
    let record = bus.kv_get("JOBS", job).await.unwrap().unwrap();
    let body: Value = serde_json::from_slice(&record.payload).unwrap();
    let chunk: OrderChunk = serde_json::from_str(body["inline"].as_str().unwrap()).unwrap();
    let mut order: Order = serde_json::from_str(&chunk.orders[0].order).unwrap();
    order.id = bus::clock::order_id();
    order.domain = message::Token::domain("other").unwrap();
    let bytes = Bytes::from(order.to_bytes().unwrap());
    let seal = Seal::over(&bytes, eve).unwrap();
    bus.publish(SUBJECT, Headers::from(bus::clock::message_id()).sealed(&seal), bytes).await.unwrap();
}

fn root_of(world: &World) -> String {
    world.json(0, &["root", "show"])["root"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_root_is_worth_nothing_once_it_has_handed_over() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.agent("ship2", &[]);
    let witness = world.path("witness");
    let line = format!("echo ran >> {}", witness.display());
    let job = world.json(0, &["run", "ship1", "--sh", &line])["job"].as_str().unwrap().to_owned();
    let (old, eve) = (root_key(&world), KeyPair::new_user());
    // An operator with a home of her own, who knows nothing of what happens in this one.
    let bundle = world.path("anna.operator");
    world.json(0, &["operator", "add", "anna", "--out", bundle.to_str().unwrap()]);
    let hers = tempfile::tempdir().unwrap();
    let at_hers = |arguments: &[&str]| {
        world::program().arg("--home").arg(hers.path()).args(["-o", "json"]).args(arguments).output().unwrap()
    };
    assert!(at_hers(&["context", "import", bundle.to_str().unwrap()]).status.success());
    world.end_agent("ship2", 15);

    let undecided = world.steward(&["root", "rotate"]);
    assert_eq!(undecided.status.code(), Some(2), "{undecided:?}");
    let before = root_of(&world);
    assert_eq!(before, old.public_key());
    let changed = world.json(0, &["root", "rotate", "--yes"]);
    assert_eq!(changed["before"], before.as_str());
    assert_eq!(root_of(&world), changed["root"].as_str().unwrap());
    assert_eq!(root_key(&world).public_key(), changed["root"].as_str().unwrap(), "the new key has the old one's place");

    // The fleet goes on: those who heard, those who were away, and the new root's word about operators and policy.
    world.json(0, &["run", "ship1", "--", "true"]);
    world.agent("ship2", &[]);
    world.json(0, &["run", "ship2", "--wait", "30s", "--", "true"]);
    assert!(at_hers(&["run", "ship1,ship2", "--", "true"]).status.success());
    world.json(0, &["operator", "add", "bob"]);
    world.json(0, &["--context", "bob", "run", "ship1", "--", "true"]);
    let rules = world.path("policy.toml");
    std::fs::write(&rules, "[[allow]]\nname = \"admins\"\nroles = [\"admin\"]\n").unwrap();
    world.json(0, &["policy", "apply", rules.to_str().unwrap(), "--yes"]);
    world.json(0, &["run", "ship1,ship2", "--", "true"]);
    for ship in ["ship1", "ship2"] {
        world.wait_for_state(ship, "online");
    }

    // Whoever has the old root's key and the broker: his list, with and without a chain, and one that he hands over with.
    let admin = world.operator_bus().await;
    let fleet = Lineage::new(PublicKey::of(&old));
    let (thief, known) = (KeyPair::new_operator(), at_home(world.home()));
    let text = serde_json::to_string(&fleet.next(PublicKey::of(&thief), Timestamp::from_ms(0))).unwrap();
    let named = Succession { sealed: SealedDocument::new(text, &old).unwrap(), accepted: None };
    let his = [
        with_eve(&world, &old, &eve, vec![]),
        with_eve(&world, &old, &eve, known.roots.clone()),
        with_eve(&world, &thief, &eve, vec![named.accept(&thief).unwrap()]),
    ];
    assert!(fleet.open(&serde_json::from_slice(&his[2]).unwrap()).is_ok(), "who has heard nothing would follow him");
    for list in &his {
        admin.kv_put("POLICY", "trust", list.clone(), None).await.unwrap();
        forged(&admin, &job, &eve).await;
        // Behind it, an order of one who may: the node has judged eve's by then.
        world.json(0, &["run", "ship1", "--domain", "other", "--", "true"]);
        assert_eq!(lines(&witness), ["ran"]);
        let listed = at_hers(&["operator", "ls"]);
        assert!(!String::from_utf8_lossy(&listed.stdout).contains("eve"), "{listed:?}");
        assert!(!world.json(0, &["operator", "ls"]).to_string().contains("eve"));
    }
    // Nor is a policy of his, far ahead of all others, in which nobody may anything.
    let ours = admin.kv_get("POLICY", "policy").await.unwrap().unwrap().payload;
    let text = serde_json::from_slice::<SealedDocument>(&ours).unwrap().document;
    let mut policy: Policy = serde_json::from_str(&text.replace("[\"admin\"]", "[\"nobody\"]")).unwrap();
    policy.version += 1000;
    assert_ne!(policy.to_text().unwrap(), text);
    let his = SealedDocument::new(policy.to_text().unwrap(), &old).unwrap();
    admin.kv_put("POLICY", "policy", Bytes::from(serde_json::to_vec(&his).unwrap()), None).await.unwrap();
    world.wait_for_state("ship1", "degraded");
    world.json(0, &["run", "ship1", "--", "true"]);
    admin.kv_put("POLICY", "policy", ours, None).await.unwrap();
    world.wait_for_state("ship1", "online");
    // Also after it was killed, when all that it has is what it kept.
    world.end_agent("ship1", 9);
    world.start_agent("ship1", &[]);
    world.wait_for_state("ship1", "online");
    forged(&admin, &job, &eve).await;
    world.json(0, &["run", "ship1", "--wait", "30s", "--domain", "other", "--", "true"]);
    assert_eq!(lines(&witness), ["ran"], "nothing that eve signed was done");
    // The next change by the root puts it right at the broker, for those who are still to hear of it.
    world.json(0, &["operator", "revoke", "bob", "--yes"]);
    let healed = admin.kv_get("POLICY", "trust").await.unwrap().unwrap();
    assert!(!String::from_utf8_lossy(&healed.payload).contains("eve"));
    let kept = world.path("old.nk");
    std::fs::write(&kept, old.seed().unwrap()).unwrap();
    std::fs::set_permissions(&kept, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let refused = world.steward(&["operator", "add", "carl", "--root", kept.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("this fleet's root is"), "{refused:?}");

    // A new node, a new operator, a second handover, and the whole system once more.
    let bundle = world.path("ship3.bundle");
    world.json(0, &["node", "enroll", "ship3", "--out", bundle.to_str().unwrap()]);
    world.json(0, &["root", "rotate", "--yes"]);
    world.agent("ship3", &["--bundle", bundle.to_str().unwrap()]);
    world.stop_up();
    world.start_up();
    for ship in ["ship1", "ship2", "ship3"] {
        world.wait_for_state(ship, "online");
    }
    world.json(0, &["run", "ship1,ship2,ship3", "--wait", "30s", "--", "true"]);
    assert_eq!(world.json(0, &["root", "show"])["handovers"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_heir_takes_over_without_the_root_and_nobody_overtakes_it() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let line = format!("echo ran >> {}", witness.display());
    let job = world.json(0, &["run", "ship1", "--sh", &line])["job"].as_str().unwrap().to_owned();
    let heir = world.path("heir.nk");
    let named = world.json(0, &["root", "heir", "--out", heir.to_str().unwrap()]);
    assert_eq!(world.json(0, &["root", "show"])["heir"], named["heir"]);
    // It cannot be taken back, and nobody else can follow.
    let other = KeyPair::new_operator();
    assert_eq!(world.steward(&["root", "heir", "--key", &other.public_key()]).status.code(), Some(2));
    assert_eq!(world.steward(&["root", "rotate", "--yes"]).status.code(), Some(2));
    world.json(0, &["root", "heir", "--key", named["heir"].as_str().unwrap()]);
    // The root goes on to change the list meanwhile.
    world.json(0, &["operator", "add", "bob"]);
    world.json(0, &["--context", "bob", "run", "ship1", "--", "true"]);

    // Its key is stolen, and gone from here.
    let (old, eve) = (root_key(&world), KeyPair::new_user());
    std::fs::remove_file(world.path("keys/fleet-root.nk")).unwrap();
    let fleet = Lineage::new(PublicKey::of(&old));
    let text = serde_json::to_string(&fleet.next(PublicKey::of(&other), Timestamp::from_ms(0))).unwrap();
    let his = Succession { sealed: SealedDocument::new(text, &old).unwrap(), accepted: None }.accept(&other).unwrap();
    let list = with_eve(&world, &other, &eve, vec![his]);
    assert!(fleet.open(&serde_json::from_slice(&list).unwrap()).is_ok(), "who has heard nothing would follow him");
    let admin = world.operator_bus().await;
    admin.kv_put("POLICY", "trust", list, None).await.unwrap();
    forged(&admin, &job, &eve).await;
    world.json(0, &["run", "ship1", "--domain", "other", "--", "true"]);
    assert_eq!(lines(&witness), ["ran"]);

    assert_eq!(world.steward(&["operator", "add", "carl"]).status.code(), Some(1), "the root's key is not here");
    let changed = world.json(0, &["root", "rotate", "--heir", heir.to_str().unwrap(), "--yes"]);
    assert_eq!((&changed["root"], &changed["before"]), (&named["heir"], &Value::from(old.public_key())));
    // Even a list that the thief has signed before, far ahead of it, counts no more.
    admin.kv_put("POLICY", "trust", with_eve(&world, &old, &eve, vec![]), None).await.unwrap();
    forged(&admin, &job, &eve).await;
    world.json(0, &["run", "ship1", "--domain", "other", "--", "true"]);
    assert_eq!(lines(&witness), ["ran"]);
    world.json(0, &["operator", "add", "carl", "--root", heir.to_str().unwrap()]);
    world.json(0, &["--context", "carl", "run", "ship1", "--", "true"]);
    world.json(0, &["operator", "revoke", "carl", "--yes", "--root", heir.to_str().unwrap()]);
    eventually("the node is well", || world.state("ship1") == "online");
}
