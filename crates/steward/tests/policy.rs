//! Who may have what done where: decided at the edge, whatever somebody who holds the broker, the station's credentials or
//! another operator's makes of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::path::PathBuf;

use bus::claims::Creds;
use bus::{Bus, Headers};
use bytes::Bytes;
use message::policy::Rules;
use message::{Policy, PublicKey, Seal, SealedDocument, Timestamp, Token};
use nkeys::KeyPair;
use serde_json::Value;
use world::{World, eventually, lines};

const TERM: i32 = 15;

/// An operator beside the first one, as the root would add it.
struct Person {
    pair: KeyPair,
    creds: PathBuf,
}

fn root(world: &World) -> KeyPair {
    KeyPair::from_seed(std::fs::read_to_string(world.path("keys/fleet-root.nk")).unwrap().trim()).unwrap()
}

/// Adds an operator with these roles.
fn add_operator(world: &World, name: &str, roles: &[&str], flags: &[&str]) -> Person {
    let roles = roles.iter().flat_map(|role| ["--role", role]);
    let arguments: Vec<&str> =
        ["operator", "add", name].into_iter().chain(roles).chain(flags.iter().copied()).collect();
    let creds = PathBuf::from(world.json(0, &arguments)["creds"].as_str().unwrap());
    let pair = Creds::parse(&std::fs::read_to_string(&creds).unwrap()).unwrap().key().unwrap();
    Person { pair, creds }
}

impl Person {
    fn flags<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["--creds", self.creds.to_str().unwrap()], arguments].concat()
    }

    fn json(&self, world: &World, code: i32, arguments: &[&str]) -> Value {
        world.json(code, &self.flags(arguments))
    }
}

/// The first policy, and this.
fn apply(world: &World, rules: &str) -> Value {
    let file = world.path("policy.toml");
    let admins = "[[allow]]\nname = \"admins may everything\"\nroles = [\"admin\"]\n";
    std::fs::write(&file, format!("{admins}{rules}")).unwrap();
    world.json(0, &["policy", "apply", file.to_str().unwrap(), "--yes"])
}

fn sealed(version: u64, rules: Rules, fleet: &KeyPair, by: &KeyPair) -> String {
    let policy = Policy::new(version, PublicKey::of(fleet), Timestamp::from_ms(0), rules);
    serde_json::to_string(&SealedDocument::new(policy.to_text().unwrap(), by).unwrap()).unwrap()
}

/// Everybody may everything.
fn open_to_all() -> Rules {
    let mut rules = Rules::first();
    rules.allow[0].operators = serde_json::from_str(r#"["*"]"#).unwrap();
    rules
}

fn state<'a>(job: &'a Value, node: &str) -> (&'a str, &'a str) {
    let node = &job["nodes"][node];
    (node["state"].as_str().unwrap(), node["reason"].as_str().unwrap_or_default())
}

fn shown(world: &World, job: &str) -> String {
    state(&world.json(0, &["job", "show", job]), "ship1").0.to_owned()
}

fn reason(world: &World, node: &str) -> String {
    let nodes = world.json(0, &["node", "ls"]);
    let found = nodes.as_array().unwrap().iter().find(|found| found["name"] == node);
    found.and_then(|found| found["reason"].as_str()).unwrap_or_default().to_owned()
}

fn discarded(world: &World, node: &str) -> Value {
    world.json(0, &["call", node, "hello"])["nodes"][node]["data"]["discarded"].clone()
}

fn version_kept(world: &World, node: &str) -> u64 {
    let Ok(text) = std::fs::read_to_string(world.path(&format!("nodes/{node}/policy.json"))) else { return 0 };
    let sealed: SealedDocument = serde_json::from_str(&text).unwrap();
    Policy::parse(&sealed.document).unwrap().version
}

const ECHO: &str = r#"
[[allow]]
name = "ops say hello in oslo"
roles = ["ops"]
nodes = "site=oslo"
methods = ["shellcommand"]
argv = [["echo", "hello", "**"]]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_rule_allows_is_rejected_at_the_edge() {
    let mut world = World::up();
    let bus = world.operator_bus().await;
    let anna = add_operator(&world, "anna", &["ops"], &[]);
    world.agent("ship1", &[]);
    // The first policy: admins may everything, and nobody else anything.
    let job = anna.json(&world, 3, &["run", "ship1", "--", "echo", "hello"]);
    let (state_now, why) = state(&job, "ship1");
    assert_eq!(state_now, "rejected", "{job}");
    assert!(why.contains("no rule") && why.contains("anna (ops)"), "{why}");
    world.json(0, &["run", "ship1", "--", "true"]);

    // Labels count, as soon as an operator has signed them.
    let applied = apply(&world, ECHO);
    assert_eq!(applied["version"], 2, "{applied}");
    eventually("the node has the policy", || version_kept(&world, "ship1") == 2);
    assert_eq!(state(&anna.json(&world, 3, &["run", "ship1", "--", "echo", "hello"]), "ship1").0, "rejected");
    world.json(0, &["node", "label", "ship1", "site=oslo"]);
    eventually("the node knows its labels", || {
        let done = world.steward(&anna.flags(&["-o", "json", "run", "ship1", "--", "echo", "hello"]));
        done.status.code() == Some(0)
    });
    // Not by a shell, not with other words, not with an environment of one's own.
    for command in [
        &["run", "ship1", "--sh", "echo hello"][..],
        &["run", "ship1", "--", "echo", "goodbye"],
        &["run", "ship1", "--env", "PATH=/tmp", "--", "echo", "hello"],
        &["call", "ship1", "hello"],
    ] {
        let job = anna.json(&world, 3, command);
        assert_eq!(state(&job, "ship1").0, "rejected", "{command:?}: {job}");
    }
    // An older record of the node, as somebody has it who holds the broker, gives no label back.
    let labelled = bus.kv_get("NODES", "ship1").await.unwrap().unwrap();
    world.json(0, &["node", "label", "ship1", "site-"]);
    eventually("the node has lost its label", || {
        let done = world.steward(&anna.flags(&["-o", "json", "run", "ship1", "--", "echo", "hello"]));
        done.status.code() == Some(3)
    });
    bus.kv_put("NODES", "ship1", labelled.payload.clone(), Some(&labelled.seal().unwrap())).await.unwrap();
    eventually("the node refuses it", || discarded(&world, "ship1")["record_rollback"].as_u64() >= Some(1));
    assert_eq!(state(&anna.json(&world, 3, &["run", "ship1", "--", "echo", "hello"]), "ship1").0, "rejected");
    // What the operator's desk says is what the edge does.
    let check = |node: &str, words: &[&str], code: i32| {
        let mut arguments =
            vec!["policy", "check", "--operator", "anna", "--node", node, "--method", "shellcommand", "--"];
        arguments.extend(words);
        world.json(code, &arguments)
    };
    assert_eq!(check("ship1", &["echo", "hello"], 0)["rule"], "ops say hello in oslo");
    assert_eq!(check("hub", &["echo", "hello"], 3)["decision"], "denied");
    assert_eq!(check("ship1", &["rm"], 3)["decision"], "denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_who_holds_the_broker_brings_another_policy_in_force() {
    let mut world = World::up();
    let bus = world.operator_bus().await;
    let anna = add_operator(&world, "anna", &["ops"], &[]);
    let delegate = add_operator(&world, "dora", &[], &["--signs-policies"]);
    let first = bus.kv_get("POLICY", "policy").await.unwrap().unwrap().payload;
    world.agent("ship1", &[]);
    apply(&world, ECHO);
    let second = bus.kv_get("POLICY", "policy").await.unwrap().unwrap().payload;
    eventually("the node has the policy", || version_kept(&world, "ship1") == 2);
    let root = root(&world);
    let offer = async |text: Bytes| bus.kv_put("POLICY", "policy", text, None).await.unwrap();
    let denied = |world: &World, what: &str| {
        let job = anna.json(world, 3, &["run", "ship1", "--", "touch", "/nonexistent"]);
        assert_eq!(state(&job, "ship1").0, "rejected", "{what}: {job}");
        assert_eq!(version_kept(world, "ship1"), 2, "{what}");
    };
    let open = |version: u64, by: &KeyPair| Bytes::from(sealed(version, open_to_all(), &root, by));

    // An older one, as a restored store has it: genuine, and yet refused.
    offer(first).await;
    eventually("the node says so", || reason(&world, "ship1").contains("version 1"));
    denied(&world, "an older one");
    // Signed by an operator who is no delegate; by a stranger; for another fleet; altered.
    offer(open(9, &anna.pair)).await;
    eventually("the node says so", || reason(&world, "ship1").contains("neither this fleet's root"));
    denied(&world, "signed by an operator");
    offer(open(9, &KeyPair::new_user())).await;
    let foreign = sealed(9, open_to_all(), &KeyPair::new_operator(), &root);
    offer(Bytes::from(foreign)).await;
    eventually("the node says so", || reason(&world, "ship1").contains("that of the fleet"));
    denied(&world, "for another fleet");
    let text = String::from_utf8(open(9, &root).to_vec()).unwrap();
    offer(Bytes::from(text.replace("may everything", "may Everything"))).await;
    eventually("the node says so", || reason(&world, "ship1").contains("does not fit"));
    denied(&world, "altered");
    // Another one of the same version, and none at all.
    offer(open(2, &root)).await;
    eventually("the node says so", || reason(&world, "ship1").contains("same version"));
    denied(&world, "another of the same version");
    bus.kv_delete("POLICY", "policy").await.unwrap();
    eventually("the node says so", || reason(&world, "ship1").contains("no policy"));
    denied(&world, "none");

    // A restart does not change that.
    world.end_agent("ship1", TERM);
    world.start_agent("ship1", &[]);
    eventually("the node says so again", || reason(&world, "ship1").contains("no policy"));
    denied(&world, "none, after a restart");
    let counts = discarded(&world, "ship1");
    assert!(counts["policy_rollback"].as_u64().unwrap() >= 1, "{counts}");

    // The genuine one ends the complaint; a delegate's newer one is taken.
    offer(second).await;
    eventually("all is well", || world.state("ship1") == "online");
    offer(open(3, &delegate.pair)).await;
    eventually("the delegate's is in force", || version_kept(&world, "ship1") == 3);
    let job = anna.json(&world, 0, &["run", "ship1", "--", "true"]);
    assert_eq!(state(&job, "ship1").0, "succeeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_was_made_anew_frees_nobody() {
    let mut world = World::up();
    let bus = world.operator_bus().await;
    let anna = add_operator(&world, "anna", &["ops"], &[]);
    world.agent("ship1", &[]);
    apply(&world, ECHO);
    bus.close().await;
    eventually("the node has the policy", || version_kept(&world, "ship1") == 2);
    let witness = world.path("witness");
    // Whoever holds the station's host and the broker's disk takes the policy away from both.
    world.stop_up();
    std::fs::remove_dir_all(world.path("broker")).unwrap();
    std::fs::remove_file(world.path("policy.json")).unwrap();
    world.start_up();
    world.end_agent("ship1", TERM);
    world.start_agent("ship1", &[]); // and is registered again
    eventually("the node is back, and says so", || reason(&world, "ship1").contains("no policy"));
    let job = anna.json(&world, 3, &["run", "ship1", "--wait", "30s", "--", "touch", witness.to_str().unwrap()]);
    assert_eq!(state(&job, "ship1").0, "rejected", "{job}");
    assert!(!witness.exists());
    // And the one who holds the root's key has a way back.
    let file = world.path("policy.toml");
    let (file, hello) = (file.to_str().unwrap(), || world.json(0, &["call", "ship1", "hello"]));
    assert_eq!(hello()["nodes"]["ship1"]["data"]["policy"], 2);
    assert_eq!(world.json(0, &["policy", "apply", file, "--yes", "--above", "2"])["version"], 3);
    eventually("the node is well", || world.state("ship1") == "online");
    assert_eq!(hello()["nodes"]["ship1"]["data"]["policy"], 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_the_broker_let_pass_is_rejected_by_role() {
    let mut world = World::up();
    let bus = world.operator_bus().await;
    let anna = add_operator(&world, "anna", &["ops"], &[]);
    world.agent("ship1", &[]);
    let witness = world.path("witness");
    let job = world.json(0, &["run", "ship1", "--sh", &format!("echo ran >> {}", witness.display())]);
    // Anna signs the admin's order anew, and sends it past her own command line.
    let record = bus.kv_get("JOBS", job["job"].as_str().unwrap()).await.unwrap().unwrap();
    let body: Value = serde_json::from_slice(&record.payload).unwrap();
    let chunk: message::job::OrderChunk = serde_json::from_str(body["inline"].as_str().unwrap()).unwrap();
    let mut order: message::Order = serde_json::from_str(&chunk.orders[0].order).unwrap();
    order.id = bus::clock::order_id();
    let bytes = Bytes::from(order.to_bytes().unwrap());
    let headers = Headers::from(bus::clock::message_id()).sealed(&Seal::over(&bytes, &anna.pair).unwrap());
    bus.publish("ship1.command.shellcommand.operatingsystem", headers, bytes).await.unwrap();
    world.json(0, &["run", "ship1", "--wait", "30s", "--", "true"]);
    assert_eq!(lines(&witness).len(), 1, "the admin's, and only that");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ones_own_orders_one_may_take_back_and_others_by_a_rule() {
    let mut world = World::up();
    let anna = add_operator(&world, "anna", &["ops"], &[]);
    let carl = add_operator(&world, "carl", &["chief"], &[]);
    world.agent("ship1", &[]);
    apply(
        &world,
        r#"
[[allow]]
name = "ops sleep"
roles = ["ops"]
argv = [["sleep", "*"]]

[[allow]]
name = "chiefs cancel"
roles = ["chief"]
methods = ["cancel"]
"#,
    );
    eventually("the node has the policy", || version_kept(&world, "ship1") == 2);
    let begin = |world: &World, flags: Vec<&str>| {
        let job = world.json(4, &[&flags[..], &["run", "ship1", "--wait", "1s", "--", "sleep", "300"]].concat());
        job["job"].as_str().unwrap().to_owned()
    };
    let admins = begin(&world, vec![]);
    let refused = anna.json(&world, 3, &["job", "cancel", &admins]);
    let (state_now, why) = state(&refused, "ship1");
    assert_eq!(state_now, "rejected", "{refused}");
    assert!(why.contains("not anna's own"), "{why}");
    assert_eq!(shown(&world, &admins), "running");
    // By a rule.
    carl.json(&world, 0, &["job", "cancel", &admins]);
    assert_eq!(shown(&world, &admins), "cancelled");
    // One's own.
    let own = begin(&world, anna.flags(&[]));
    anna.json(&world, 0, &["job", "cancel", &own]);
    assert_eq!(shown(&world, &own), "cancelled");
    // Before it arrives: a stranger's cancel waits for an order that is not the stranger's, and does nothing.
    world.end_agent("ship1", TERM);
    let later = world.json(4, &["run", "ship1", "--wait", "1s", "--", "true"]);
    let later = later["job"].as_str().unwrap();
    let _ = anna.json(&world, 4, &["job", "cancel", later, "--wait", "1s"]);
    world.agent("ship1", &[]);
    eventually("it has run all the same", || shown(&world, later) == "succeeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_decided_about_again_when_the_policy_changes() {
    let mut world = World::up();
    let anna = add_operator(&world, "anna", &["ops"], &[]);
    world.agent("ship1", &[]);
    apply(&world, "[[allow]]\nname = \"ops\"\nroles = [\"ops\"]\n");
    eventually("the node has the policy", || version_kept(&world, "ship1") == 2);
    let first = anna.json(&world, 4, &["run", "ship1", "--wait", "1s", "--", "sleep", "300"]);
    let witness = world.path("witness");
    let waiting = anna.json(&world, 4, &["run", "ship1", "--wait", "1s", "--", "touch", witness.to_str().unwrap()]);
    assert_eq!(state(&waiting, "ship1").0, "delivered");
    apply(&world, "");
    eventually("the node has the policy", || version_kept(&world, "ship1") == 3);
    world.json(0, &["job", "cancel", first["job"].as_str().unwrap()]);
    eventually("it is rejected", || {
        let job = world.json(0, &["job", "show", waiting["job"].as_str().unwrap()]);
        state(&job, "ship1").0 == "rejected"
    });
    assert!(!witness.exists());
}

const TWO: &str = r#"
[[allow]]
name = "two of ops may do it"
roles = ["ops"]
methods = ["shellcommand"]
approvals = 2
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_two_waits_for_the_second_and_counts_nobody_twice() {
    let mut world = World::up();
    let bus = world.operator_bus().await;
    let anna = add_operator(&world, "anna", &["ops"], &[]);
    let bert = add_operator(&world, "bert", &["ops"], &[]);
    let dave = add_operator(&world, "dave", &["dev"], &[]);
    world.agent("ship1", &[]);
    apply(&world, TWO);
    eventually("the node has the policy", || version_kept(&world, "ship1") == 2);
    let witness = world.path("witness");
    let touch = |world: &World, who: &Person| {
        let line = format!("echo ran >> {}", witness.display());
        let job = who.json(world, 4, &["run", "ship1", "--wait", "2s", "--sh", &line]);
        job["job"].as_str().unwrap().to_owned()
    };
    let job = touch(&world, &anna);
    let held = world.json(0, &["job", "show", &job]);
    let (state_now, why) = state(&held, "ship1");
    assert_eq!(state_now, "delivered", "{held}");
    assert!(why.contains("asks for 2 operators") && why.contains("job approve"), "{why}");
    // The one who ordered does not count twice; who may not have it done does not count at all.
    let own = anna.json(&world, 3, &["job", "approve", &job]);
    assert!(state(&own, "ship1").1.contains("another operator"), "{own}");
    let stranger = dave.json(&world, 3, &["job", "approve", &job]);
    assert!(state(&stranger, "ship1").1.contains("may not"), "{stranger}");
    // An approval of other bytes does not count, whoever signed it; the genuine one does.
    approve_other_bytes(&world, &bert, &job, &bus).await;
    assert_eq!(shown(&world, &job), "delivered");
    let approved = bert.json(&world, 0, &["job", "approve", &job]);
    let data = &approved["nodes"]["ship1"]["data"];
    assert_eq!((&data["signed"], &data["needed"]), (&2.into(), &2.into()), "{approved}");
    eventually("it has run", || shown(&world, &job) == "succeeded");
    assert_eq!(lines(&witness).len(), 1);
    // Approved again: it has ended, and nothing happens.
    let again = bert.json(&world, 0, &["job", "approve", &job]);
    assert_eq!(again["targets"], 0, "{again}");
    assert_eq!(lines(&witness).len(), 1);

    // It waits across a restart of its node; a cancel ends it.
    let job = touch(&world, &anna);
    world.end_agent("ship1", TERM);
    world.agent("ship1", &[]);
    assert_eq!(shown(&world, &job), "delivered");
    // Nothing waits behind it.
    world.json(0, &["run", "ship1", "--wait", "30s", "--", "true"]);
    bert.json(&world, 0, &["job", "approve", &job]);
    eventually("it has run", || shown(&world, &job) == "succeeded");
    assert_eq!(lines(&witness).len(), 2);
    let job = touch(&world, &anna);
    anna.json(&world, 0, &["job", "cancel", &job]);
    assert_eq!(shown(&world, &job), "cancelled");
    // And it expires.
    let line = format!("echo ran >> {}", witness.display());
    let job = anna.json(&world, 3, &["run", "ship1", "--expires", "2s", "--wait", "30s", "--sh", &line]);
    assert_eq!(state(&job, "ship1").0, "expired", "{job}");
    assert_eq!(lines(&witness).len(), 2);
}

/// Sends an approval whose digest is that of other bytes, and waits until it has been judged.
async fn approve_other_bytes(world: &World, by: &Person, job: &str, bus: &Bus) {
    let record = bus.kv_get("JOBS", job).await.unwrap().unwrap();
    let body: Value = serde_json::from_slice(&record.payload).unwrap();
    let chunk: message::job::OrderChunk = serde_json::from_str(body["inline"].as_str().unwrap()).unwrap();
    let mut order: message::Order = serde_json::from_str(&chunk.orders[0].order).unwrap();
    let wanted = message::method::Approve { job: order.job.clone(), order: order.id, sha256: "00".repeat(32) };
    order.args = serde_json::to_value(wanted).unwrap();
    order.id = bus::clock::order_id();
    order.job = message::JobId::new(1, 1);
    order.method = Token::method("approve").unwrap();
    order.domain = Token::domain("steward").unwrap();
    let bytes = Bytes::from(order.to_bytes().unwrap());
    let headers = Headers::from(bus::clock::message_id()).sealed(&Seal::over(&bytes, &by.pair).unwrap());
    bus.publish("ship1.command.approve.steward", headers, bytes).await.unwrap();
    // Behind it, so that it has been judged.
    world.json(0, &["call", "ship1", "hello"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_own_configuration_narrows_and_never_widens() {
    let mut world = World::up();
    let anna = add_operator(&world, "anna", &["ops"], &[]);
    let config = world.path("narrow.toml");
    std::fs::write(
        &config,
        "allow_methods = [\"shellcommand\", \"hel*\"]\nallow_domains = [\"operatingsystem\"]\nrun_as = \"nobody\"\ndeny_shell = true\n",
    )
    .unwrap();
    world.agent("ship1", &["--config", config.to_str().unwrap()]);
    let why = |code: i32, arguments: &[&str]| {
        let job = world.json(code, arguments);
        let (state, reason) = state(&job, "ship1");
        (state.to_owned(), reason.to_owned())
    };
    for (arguments, says) in [
        (&["run", "ship1", "--sh", "true"][..], "deny_shell"),
        (&["run", "ship1", "--", "/bin/sh", "-c", "true"], "deny_shell"),
        (&["run", "ship1", "--user", "root", "--", "true"], "run_as"),
        (&["run", "ship1", "--domain", "nginx", "--", "true"], "allow_domains"),
        (&["call", "ship1", "processes"], "allow_methods"),
    ] {
        let (state, reason) = why(3, arguments);
        assert_eq!(state, "rejected", "{arguments:?}: {reason}");
        assert!(reason.contains(says) && reason.contains("agent.toml"), "{arguments:?}: {reason}");
    }
    // What the policy denies, no configuration allows.
    let job = anna.json(&world, 3, &["run", "ship1", "--", "true"]);
    assert!(state(&job, "ship1").1.contains("no rule"), "{job}");
    // Where the agent is root, commands run as that user, with nothing of root's environment and no way back.
    let job = world.json(if is_root() { 0 } else { 3 }, &["run", "ship1", "--cwd", "/", "--", "env"]);
    let told = &job["nodes"]["ship1"];
    if is_root() {
        let env = told["stdout"].as_str().unwrap();
        assert!(env.contains("USER=nobody\n") && !env.contains("HOME=/root"), "{env}");
        let inherited =
            ["CARGO", "NEXTEST", "RUST"].iter().find(|prefix| env.lines().any(|line| line.starts_with(**prefix)));
        assert_eq!(inherited, None, "{env}");
        let status = world.json(0, &["run", "ship1", "--cwd", "/", "--", "grep", "NoNewPrivs", "/proc/self/status"]);
        assert_eq!(status["nodes"]["ship1"]["stdout"], "NoNewPrivs:\t1\n", "{status}");
    } else {
        assert!(told["reason"].as_str().unwrap().contains("only root"), "{job}");
    }
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0
}

/// The first block of a kind in docs/policy.md.
fn documented(kind: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/policy.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(&format!("```{kind}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_worked_example_does_what_it_says() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.json(0, &["node", "label", "ship1", "site=oslo"]);
    let file = world.path("policy.toml");
    std::fs::write(&file, documented("toml")).unwrap();
    world.json(0, &["policy", "apply", file.to_str().unwrap(), "--yes"]);
    let console = documented("console");
    let lines: Vec<&str> = console.lines().collect();
    assert_eq!(lines.len(), 10, "five commands, each with its answer");
    for pair in lines.chunks(2) {
        let words: Vec<&str> = pair[0].strip_prefix("$ steward ").unwrap().split(' ').collect();
        let done = world.steward(&words);
        assert_eq!(String::from_utf8_lossy(&done.stdout).trim_end(), pair[1], "{done:?}");
        assert_eq!(done.status.code(), Some(if pair[1].starts_with("denied") { 3 } else { 0 }), "{done:?}");
    }
}

#[test]
fn a_policy_is_shown_checked_and_applied() {
    let world = World::up();
    let shown = world.json(0, &["policy", "show"]);
    assert_eq!((&shown["version"], &shown["allow"][0]["roles"][0]), (&1.into(), &"admin".into()), "{shown}");
    // What is shown can be applied again, and changes nothing.
    let file = world.path("p.toml");
    let path = file.to_str().unwrap();
    let text = world.steward(&["policy", "show"]).stdout;
    std::fs::write(&file, &text).unwrap();
    assert_eq!(world.json(0, &["policy", "apply", path, "--yes"])["version"], 1);
    // A wrong file is refused with the line; nobody is asked where nobody is.
    std::fs::write(&file, "[[allow]]\nname = \"x\"\nrols = [\"a\"]\n").unwrap();
    let wrong = world.steward(&["policy", "check", path]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2), "{said}");
    assert!(said.contains("line 3") && said.contains("Did you mean `roles`?"), "{said}");
    std::fs::write(
        &file,
        [&text[..], b"\n[[deny]]\nname = \"no rm\"\noperators = [\"*\"]\nargv = [[\"rm\", \"**\"]]\n"].concat(),
    )
    .unwrap();
    assert_eq!(world.steward(&["policy", "check", path]).status.code(), Some(0));
    let asked = world.steward(&["policy", "apply", path]);
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert_eq!(asked.status.code(), Some(2), "{said}");
    assert!(
        said.contains("+ argv = [[\"rm\", \"**\"]]")
            && said.contains("admin loses shellcommand (command rm **) on hub"),
        "{said}"
    );
    assert_eq!(world.json(0, &["policy", "show"])["version"], 1);
    let checked = world.json(
        3,
        &["policy", "check", path, "--role", "admin", "--node", "hub", "--method", "shellcommand", "--", "rm", "x"],
    );
    assert_eq!(checked["rule"], "no rm", "{checked}");
    let applied = world.json(0, &["policy", "apply", path, "--yes"]);
    assert_eq!((&applied["version"], &applied["changes"][0]["change"]), (&2.into(), &"loses".into()), "{applied}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_policies_does_so_without_the_root_until_he_is_revoked() {
    let mut world = World::up();
    let bus = world.operator_bus().await;
    world.agent("ship1", &[]);
    let dora = add_operator(&world, "dora", &[], &["--signs-policies"]);
    // The root's key is kept elsewhere from now on.
    let (here, elsewhere) = (world.path("keys/fleet-root.nk"), world.path("elsewhere.nk"));
    std::fs::rename(&here, &elsewhere).unwrap();
    let file = world.path("policy.toml");
    let rules = |name: &str| format!("[[allow]]\nname = \"{name}\"\nroles = [\"admin\"]\n");
    std::fs::write(&file, rules("second")).unwrap();
    let arguments = ["policy", "apply", file.to_str().unwrap(), "--yes"];
    assert_eq!(world.steward(&arguments).status.code(), Some(1), "nobody here may sign");
    dora.json(&world, 0, &arguments);
    eventually("the delegate's policy is in force", || version_kept(&world, "ship1") == 2);

    let root_flag = ["--root", elsewhere.to_str().unwrap()];
    world.json(0, &[&["operator", "revoke", "dora", "--yes"][..], &root_flag].concat());
    // What he had signed holds as before: for the node that has it, and for one that never saw another.
    world.agent("ship2", &[]);
    let known = world.json(0, &["call", "ship2", "hello"])["nodes"]["ship2"]["data"]["policy"].clone();
    assert_eq!(known, 2, "a new node has it");
    eventually("nobody complains", || ["ship1", "ship2"].iter().all(|node| world.state(node) == "online"));
    // What he signs from now on counts for nothing, whoever brings it to the broker.
    let fleet = KeyPair::from_seed(std::fs::read_to_string(&elsewhere).unwrap().trim()).unwrap();
    let before = bus.kv_get("POLICY", "policy").await.unwrap().unwrap().payload;
    bus.kv_put("POLICY", "policy", sealed(3, open_to_all(), &fleet, &dora.pair).into(), None).await.unwrap();
    eventually("the node refuses it", || reason(&world, "ship1").contains("neither this fleet's root"));
    assert_eq!(version_kept(&world, "ship1"), 2);
    // And the root's own goes on counting, from where it is kept.
    bus.kv_put("POLICY", "policy", before, None).await.unwrap();
    std::fs::write(&file, rules("third")).unwrap();
    world.json(0, &[&arguments[..], &root_flag].concat());
    eventually("the root's policy is in force", || version_kept(&world, "ship1") == 3);
}
