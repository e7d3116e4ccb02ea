//! The test vectors of `docs/protocol.md`: what this code writes and how it judges what it reads, for whoever writes a
//! node in another language.
//!
//! `docs/vectors.json` is made by this test (`STEWARD_BLESS=1 cargo test -p steward-message --test vectors`) and is
//! compared with what the code makes of the same input, word for word: whoever changes the wire sees it here. The
//! other tests read the file as a stranger would, and judge it by the public doors of this crate alone.
#![allow(clippy::unwrap_used)] // what cannot be made or read here is a failure

use std::collections::BTreeMap;
use std::path::PathBuf;

use crypto_box::aead::rand_core::{self, CryptoRng, RngCore};
use data_encoding::{BASE64, HEXLOWER};
use message::admission::{AdmissionKind, Decision as Answer, KnockKind, TokenKind, TokenRecordKind, fingerprint};
use message::audit::{self, Act, Entry, OPERATOR_CHAIN, Sample, Tip};
use message::event::{EventHead, EventRecord};
use message::method::{CANCEL, Cancel, STEWARD_DOMAIN, ShellCommand};
use message::policy::{Asked, Decision, Request, Rules, decide};
use message::registry::{Condition, LifeSignKind, NodeKind};
use message::reply::{OUTPUT_ORDER_HEADER, OUTPUT_SEQUENCE_HEADER, OUTPUT_STREAM_HEADER, ReplyKind};
use message::sign::{KEY_HEADER, SIGNATURE_HEADER};
use message::state::Merge;
use message::trust::TrustKind;
use message::{
    Addressee, Admission, EnrolToken, EventBatch, Facts, History, InstanceId, JobId, Kind, Knock, Labels, LifeSign,
    Lineage, MessageId, NodeName, NodeRecord, Operator, Order, OrderError, OrderId, Outcome, OutputSubject,
    OutputTally, Policy, PublicKey, Renewal, Reply, ReplySubject, Seal, SealedDocument, SealedSecrets, SealedTrust,
    Secrets, Selector, SignatureError, State, Step, Subject, Succession, Taken, Timestamp, Token, TokenId, TokenRecord,
    Trust, Vitality, WIRE_VERSION, secret,
};
use nkeys::{KeyPair, KeyPairType};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The cursor of a node lives in `bus`, which nothing here may depend on; but it is a pure rule of the wire, and its
/// file stands on its own.
#[path = "../../bus/src/chain.rs"]
#[allow(dead_code, unreachable_pub)]
mod chain;
use chain::{Arrival, Chain};

/// 2026-11-22T12:00:00.000Z.
const NOON_MS: i64 = 1_795_348_800_000;
const MINUTE_MS: i64 = 60_000;

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/vectors.json")
}

fn read() -> Value {
    serde_json::from_str(&std::fs::read_to_string(file()).unwrap()).unwrap()
}

// --- the cast -------------------------------------------------------------------------------------------------------

fn root() -> KeyPair {
    KeyPair::new_from_raw(KeyPairType::Operator, [1; 32]).unwrap()
}
fn operator() -> KeyPair {
    KeyPair::new_from_raw(KeyPairType::User, [2; 32]).unwrap()
}
fn node() -> KeyPair {
    KeyPair::new_from_raw(KeyPairType::User, [3; 32]).unwrap()
}
fn stranger() -> KeyPair {
    KeyPair::new_from_raw(KeyPairType::User, [4; 32]).unwrap()
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}
fn noon_and(ms: i64) -> Timestamp {
    Timestamp::from_ms(NOON_MS + ms)
}
fn job() -> JobId {
    JobId::new(NOON_MS.unsigned_abs(), 0x0123_4567_89ab_cdef_0123)
}

fn order() -> Order {
    let args = ShellCommand { argv: Some(vec!["uname".into(), "-a".into()]), ..ShellCommand::default() };
    Order {
        v: WIRE_VERSION,
        kind: Kind::Command,
        id: OrderId::from_bytes([0x11; 16]),
        job: job(),
        to: Addressee { name: name("ship1"), key: PublicKey::of(&node()) },
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain("operatingsystem").unwrap(),
        from: name("central"),
        created: noon_and(0),
        expires: noon_and(60 * MINUTE_MS),
        timeout_ms: 60_000,
        max_output_bytes: 1 << 20,
        args: serde_json::to_value(args).unwrap(),
        supersede: None,
        secrets: None,
    }
}

// --- what is published ----------------------------------------------------------------------------------------------

fn vectors() -> Value {
    let key =
        |pair: KeyPair, what: &str| json!({"what": what, "seed": pair.seed().unwrap(), "public": pair.public_key()});
    json!({
        "about": "Test vectors of docs/protocol.md. Made and checked by crates/message/tests/vectors.rs. All keys are \
                  published here and worth nothing.",
        "wire_version": WIRE_VERSION,
        "keys": {
            "root": key(root(), "the fleet's root: signs the list of operators"),
            "operator": key(operator(), "an operator: signs orders, jobs and registrations"),
            "node": key(node(), "the node ship1: signs replies, life signs and events"),
            "stranger": key(stranger(), "somebody whom nobody trusts"),
        },
        "signatures": signatures(),
        "times": times(),
        "names": names(),
        "subjects": subjects(),
        "ids": ids(),
        "trust": trust_documents(),
        "succession": successions(),
        "policy": policies(),
        "orders": orders(),
        "secrets": secrets(),
        "replies": replies(),
        "output": output(),
        "life_sign": sealed_message("$KV.PRESENCE.ship1", None, &json_bytes(&life_sign(Condition::Up)), &node()),
        "change": sealed_message("$KV.HISTORY.ship1", None, &json_bytes(&change()), &node()),
        "facts": sealed_message("$KV.FACTS.ship1", None, &json_bytes(&facts()), &node()),
        "node_record": sealed_message("$KV.NODES.ship1", None, &json_bytes(&node_record()), &operator()),
        "admission": admission(),
        "renewal": sealed_message(&format!("$KV.USERS.{}", node().public_key()), None, &json_bytes(&renewal()), &operator()),
        "taken": sealed_message(&format!("$KV.USERS.taken.{}", node().public_key()), None, &json_bytes(&taken()), &node()),
        "event_batch": event_batch(),
        "audit": audit_chain(),
        "histories": histories(),
        "merges": merges(),
        "vitality": vitality(),
        "chain": chains(),
    })
}

/// The token in it is none: making one is NATS' affair.
fn renewal() -> Renewal {
    Renewal::new("ship1".into(), PublicKey::of(&node()), "header.claims.signature".into(), noon_and(0))
}

fn taken() -> Taken {
    let issuer = KeyPair::new_from_raw(KeyPairType::Account, [13; 32]).unwrap();
    Taken::new(PublicKey::of(&node()), PublicKey::of(&issuer))
}

fn json_bytes(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// A message as it is published: subject, headers, and the payload as the text that it is.
fn sealed_message(subject: &str, id: Option<String>, payload: &[u8], pair: &KeyPair) -> Value {
    let seal = Seal::over(payload, pair).unwrap();
    let mut headers = json!({KEY_HEADER: seal.key, SIGNATURE_HEADER: seal.signature});
    if let Some(id) = id {
        headers["Nats-Msg-Id"] = json!(id);
    }
    json!({"subject": subject, "headers": headers, "payload": String::from_utf8(payload.to_vec()).unwrap()})
}

fn signatures() -> Value {
    ["", "order", "{\"a\":1}\n", "schön"]
        .map(|text| {
            let seal = Seal::over(text.as_bytes(), &operator()).unwrap();
            json!({"payload": text, "key": seal.key, "signature": seal.signature})
        })
        .into()
}

fn times() -> Value {
    [0, 7, NOON_MS, NOON_MS + 7, -1].map(|ms| json!({"ms": ms, "text": Timestamp::from_ms(ms).to_string()})).into()
}

fn names() -> Value {
    let long = |length: usize| "n".repeat(length);
    json!({
        "node_accepted": ["ship1", "0", "A-b_C", "Central", "n", long(64)],
        "node_refused": [
            "", "-ship", "_ship", "sh ip", "ship.1", "ship*", "ship>", "ship\t", "schön", "a/b", "all", "in", "core",
            long(65),
        ],
        "token_accepted": ["nginx", "a/b", "c:d", "-x", "a$b", "#", "{}", "all", long(64)],
        "token_refused": ["", "a.b", "*", "a>", "$JS", "a b", "a\tb", "schön", "\u{7f}", long(65)],
    })
}

fn subjects() -> Value {
    let reply = ReplySubject { sender: name("central"), job: job(), node: name("ship1") }.to_string();
    let output = OutputSubject { sender: name("central"), job: job(), node: name("ship1") }.to_string();
    json!({
        "message_accepted": ["ship1.command.shellcommand.operatingsystem", "central.event.syslogforwarding.nginx"],
        "message_refused": [
            "ship1.command.shellcommand", "ship1.command.a.b.c", "ship1.Command.a.b", "ship1.reply.a.b",
            "*.command.a.b", "ship1.command..b", "ship1.command.a.>", "in.command.a.b",
        ],
        "reply_accepted": [reply],
        "reply_refused": [output, "central.reply.1.ship1"],
        "output_accepted": [output],
        "output_refused": [reply],
    })
}

fn ids() -> Value {
    let id = job().to_string();
    json!({
        "job_accepted": [JobId::new(0, 0), job()],
        // Small letters, too short, a letter that the alphabet leaves out, a path.
        "job_refused": ["", id.to_lowercase(), &id[1..], format!("{}U", &id[..25]), "../../etc/passwd"],
        "order_accepted": [OrderId::from_bytes([0xab; 16])],
        "order_refused": ["", "AB".repeat(16), "ab".repeat(15), "ab".repeat(17), "xy".repeat(16)],
    })
}

fn trust() -> Trust {
    Trust {
        v: WIRE_VERSION,
        kind: TrustKind::Trust,
        serial: 1,
        issued: noon_and(-MINUTE_MS),
        operators: vec![Operator::admin("admin", PublicKey::of(&operator()))],
        policy_keys: vec![],
        revoked: vec![],
    }
}

fn trust_documents() -> Value {
    let text = serde_json::to_string(&trust()).unwrap();
    json!({
        "what": "the value at key `trust` of bucket POLICY, and `trust` of an enrolment bundle",
        "root": root().public_key(),
        "sealed": SealedDocument::new(text.clone(), &root()).unwrap(),
        "forged": SealedDocument::new(text, &stranger()).unwrap(),
    })
}

/// The second root of the cast.
fn second_root() -> KeyPair {
    KeyPair::new_from_raw(KeyPairType::Operator, [11; 32]).unwrap()
}

/// The link from the root of `roots` to `to`, as its heir.
fn heir_of(roots: &Lineage, from: &KeyPair, to: &KeyPair) -> Succession {
    let text = serde_json::to_string(&roots.next(PublicKey::of(to), noon_and(0))).unwrap();
    Succession { sealed: SealedDocument::new(text, from).unwrap(), accepted: None }
}

fn successions() -> Value {
    let fleet = Lineage::new(PublicKey::of(&root()));
    let with = |link: Succession| {
        let mut roots = fleet.clone();
        roots.push(link).unwrap();
        roots
    };
    let thief = KeyPair::new_from_raw(KeyPairType::Operator, [12; 32]).unwrap();
    let named = with(heir_of(&fleet, &root(), &second_root()));
    let second = with(heir_of(&fleet, &root(), &second_root()).accept(&second_root()).unwrap());
    let stolen = with(heir_of(&fleet, &root(), &thief).accept(&thief).unwrap());
    let list = |serial: u64, by: &KeyPair, roots: &Lineage| SealedTrust {
        sealed: SealedDocument::new(serde_json::to_string(&Trust { serial, ..trust() }).unwrap(), by).unwrap(),
        roots: roots.links(),
    };
    let case = |what: &str, known: &Lineage, offered: SealedTrust, root: Option<&KeyPair>| json!({"what": what, "known": known.links(), "offered": offered, "root_then": root.map(KeyPair::public_key)});
    json!({
        "what": "what is known of a chain of roots, a list that is offered, and who is the root if it is believed (null: it is not)",
        "fleet": root().public_key(),
        "cases": [
            case("no chain at all", &fleet, list(1, &root(), &fleet), Some(&root())),
            case("the root names its heir", &fleet, list(2, &root(), &named), Some(&root())),
            case("the heir has accepted", &fleet, list(3, &second_root(), &second), Some(&second_root())),
            case("the same, where the heir is known", &named, list(3, &second_root(), &second), Some(&second_root())),
            case("the old root after that", &second, list(9, &root(), &fleet), None),
            case("the old root behind the new chain", &second, list(9, &root(), &second), None),
            case("the new root with a chain that stops before", &second, list(4, &second_root(), &named), Some(&second_root())),
            case("another one than the heir", &named, list(9, &thief, &stolen), None),
            case("another one than the new root", &second, list(9, &thief, &stolen), None),
            case("the heir before it has accepted", &named, list(3, &second_root(), &named), None),
        ],
    })
}

fn rules() -> Rules {
    serde_json::from_value(json!({
        "allow": [
            {"name": "admins may everything", "roles": ["admin"]},
            {
                "name": "ops restart services in oslo", "roles": ["ops"], "nodes": "site=oslo,tier!=prod",
                "names": ["ship*"], "methods": ["shellcommand"], "domains": ["operatingsystem"],
                "argv": [["systemctl", "restart", "*"], ["uptime", "**"]], "users": ["steward", "www"],
                "times": {"days": "sun-mon", "from": "06:00", "to": "20:00", "offset": "+01:00"},
            },
            {"name": "anna reboots with another", "operators": ["anna"], "argv": [["reboot"]], "approvals": 2},
        ],
        "deny": [{"name": "nobody reads shadow", "operators": ["*"], "argv": [["*", "/etc/shadow"]]}],
    }))
    .unwrap()
}

/// What follows from the policy for what an operator orders at `ship1`.
fn decisions() -> Value {
    let policy = Policy::new(3, PublicKey::of(&root()), noon_and(-MINUTE_MS), rules());
    let oslo = json!({"site": "oslo"});
    let cases = [
        ("admin", &oslo, json!({"line": "uptime"}), 0),
        ("admin", &oslo, json!({"argv": ["cat", "/etc/shadow"]}), 0),
        ("admin", &oslo, json!({"argv": ["cat", "/etc/hosts"]}), 0),
        ("ops", &oslo, json!({"argv": ["systemctl", "restart", "nginx"]}), 0),
        ("ops", &oslo, json!({"argv": ["systemctl", "restart", "nginx"], "user": "www"}), 0),
        ("ops", &oslo, json!({"argv": ["systemctl", "restart", "nginx"], "user": "root"}), 0),
        ("ops", &oslo, json!({"argv": ["systemctl", "restart", "nginx"], "env": {"PATH": "/tmp"}}), 0),
        ("ops", &oslo, json!({"argv": ["systemctl", "restart"]}), 0),
        ("ops", &oslo, json!({"argv": ["uptime"]}), 0),
        ("ops", &oslo, json!({"line": "uptime"}), 0),
        ("ops", &oslo, json!({"argv": ["uptime"]}), 7 * 60 * MINUTE_MS),
        ("ops", &oslo, json!({"argv": ["reboot"]}), 0),
        ("ops", &oslo, json!({"line": "cat /etc/shadow"}), 0),
        ("ops", &json!({"site": "oslo", "tier": "prod"}), json!({"argv": ["uptime"]}), 0),
        ("ops", &json!({}), json!({"argv": ["uptime"]}), 0),
        ("ops", &Value::Null, json!({"argv": ["uptime"]}), 0),
        ("admin", &oslo, json!({"line": "cat /etc/hosts"}), 0),
    ];
    let decided = cases.map(|(role, labels, args, after)| {
        let (roles, known): ([Token; 1], Option<Labels>) =
            ([Token::role(role).unwrap()], serde_json::from_value(labels.clone()).unwrap());
        let asked = Asked::of("shellcommand", &args);
        let decision = decide(
            &policy,
            &Request {
                operator: Some("anna"),
                roles: &roles,
                node: &name("ship1"),
                labels: known.as_ref(),
                method: "shellcommand",
                domain: "operatingsystem",
                asked: &asked,
                only_user: None,
                own_user: Some("root"),
                now: noon_and(after),
            },
        );
        let (word, rule) = match &decision {
            Decision::Allowed { rule, .. } => ("allowed", Some(rule.clone())),
            Decision::NeedsApprovals { rule, .. } => ("needs_approvals", Some(rule.clone())),
            Decision::Denied { rule, .. } => ("denied", rule.clone()),
        };
        json!({
            "operator": "anna", "roles": roles, "labels": labels, "args": args, "now": noon_and(after),
            "decision": word, "rule": rule, "user": decision.user(),
        })
    });
    json!(decided)
}

fn policies() -> Value {
    let text = Policy::new(3, PublicKey::of(&root()), noon_and(-MINUTE_MS), rules()).to_text().unwrap();
    let selectors = ["site=oslo", "site!=oslo", "tier in (a, b)", "tier notin (a,b)", "gpu", "!gpu", "site==oslo,!gpu"];
    let meant = |selector: &str, labels: Value| {
        let (selector, known): (Selector, Labels) =
            (selector.parse().unwrap(), serde_json::from_value(labels).unwrap());
        json!({"selector": selector, "labels": known, "meant": selector.matches(&known)})
    };
    let labels = [json!({}), json!({"site": "oslo"}), json!({"tier": "a", "gpu": ""})];
    json!({
        "what": "the value at key `policy` of bucket POLICY, and what follows from it at ship1",
        "root": root().public_key(),
        "policy_keys": [operator().public_key()],
        "sealed": SealedDocument::new(text.clone(), &root()).unwrap(),
        "by_delegate": SealedDocument::new(text.clone(), &operator()).unwrap(),
        "forged": SealedDocument::new(text, &stranger()).unwrap(),
        "decisions": decisions(),
        "selectors": selectors.iter().flat_map(|selector| labels.clone().map(|labels| meant(selector, labels))).collect::<Vec<_>>(),
        "selectors_refused": ["", "a,", "a b", "a in b", "a in (b", "-a", "a=b)"],
    })
}

/// What a node makes of what comes on its subjects. `verdict` is `take`, `expired`, or the word under which it is
/// counted as discarded.
fn orders() -> Value {
    let signed_by = |pair: &KeyPair, order: &Order| {
        let id = Some(order.id.to_string());
        sealed_message("ship1.command.shellcommand.operatingsystem", id, &json_bytes(order), pair)
    };
    let signed = |order: Order| signed_by(&operator(), &order);
    let payload = |text: &str| sealed_message(&order().subject().to_string(), None, text.as_bytes(), &operator());
    // The operator's order, but for one thing.
    let but = |change: &dyn Fn(&mut Value)| {
        let mut message = signed(order());
        change(&mut message);
        message
    };
    let bare = but(&|message| message["headers"] = json!({}));
    let unsigned = but(&|message| drop(message["headers"].as_object_mut().unwrap().remove(SIGNATURE_HEADER)));
    let altered = but(&|message| {
        message["payload"] = json!(message["payload"].as_str().unwrap().replace("uname", "unamE"));
    });
    let padded = but(&|message| {
        message["headers"][SIGNATURE_HEADER] =
            json!(format!("{}==", message["headers"][SIGNATURE_HEADER].as_str().unwrap()));
    });
    let no_key = but(&|message| message["headers"][KEY_HEADER] = json!(operator().seed().unwrap()));
    let borrowed = but(&|message| {
        message["headers"][SIGNATURE_HEADER] = signed_by(&stranger(), &order())["headers"][SIGNATURE_HEADER].clone();
    });
    let on = |subject: &str| but(&|message| message["subject"] = json!(subject));
    let conditional = format!("{{\"approvals\":2,{}", &String::from_utf8(json_bytes(&order())).unwrap()[1..]);
    let to_ship2 = Order { to: Addressee { name: name("ship2"), ..order().to }, ..order() };
    let to_other_key = Order { to: Addressee { key: PublicKey::of(&stranger()), ..order().to }, ..order() };
    let keyed = Order { supersede: Some(Token::key("nightly").unwrap()), ..order() };
    let mut ill_keyed = serde_json::to_value(&keyed).unwrap();
    ill_keyed["supersede"] = json!("two words");
    let cancel = Order {
        method: Token::method(CANCEL).unwrap(),
        domain: Token::domain(STEWARD_DOMAIN).unwrap(),
        args: serde_json::to_value(Cancel { job: job() }).unwrap(),
        job: JobId::new(NOON_MS.unsigned_abs(), 7),
        ..order()
    };
    let cancel =
        sealed_message(&cancel.subject().to_string(), Some(cancel.id.to_string()), &json_bytes(&cancel), &operator());
    let at_expiry = 60 * MINUTE_MS;
    let cases = [
        ("an operator's order", 0, signed(order()), "take"),
        ("the same, one millisecond before it expires", at_expiry - 1, signed(order()), "take"),
        ("the same, at the moment when it expires", at_expiry, signed(order()), "expired"),
        ("takes the place of orders that wait under its key", 0, signed(keyed), "take"),
        ("takes back the order of another job", 0, cancel, "take"),
        ("no headers at all", 0, bare, "unsigned"),
        ("a key, but no signature", 0, unsigned, "unsigned"),
        ("a seed in the place of the key", 0, no_key, "wrongly_signed"),
        ("signed by somebody who may not order", 0, signed_by(&stranger(), &order()), "stranger"),
        ("signed by a stranger who names the operator's key", 0, borrowed, "wrongly_signed"),
        ("one letter was altered", 0, altered, "wrongly_signed"),
        ("the signature is padded", 0, padded, "wrongly_signed"),
        ("came on another domain", 0, on("ship1.command.shellcommand.nginx"), "misaddressed"),
        ("came on another method", 0, on("ship1.command.hello.operatingsystem"), "misaddressed"),
        ("is for another node", 0, signed(to_ship2), "misaddressed"),
        ("is for a node of this name with another key", 0, signed(to_other_key), "misaddressed"),
        ("not an order", 0, payload("{}"), "malformed"),
        ("not JSON", 0, payload("uname -a"), "malformed"),
        ("has a field that this version does not know", 0, payload(&conditional), "malformed"),
        ("its key to supersede under has a space", 0, payload(&ill_keyed.to_string()), "malformed"),
        ("is of another version of the wire", 0, signed(Order { v: 2, ..order() }), "malformed"),
        ("expires before it was created", 0, signed(Order { expires: noon_and(-1), ..order() }), "malformed"),
        ("an event in the place of a command", 0, signed(Order { kind: Kind::Event, ..order() }), "malformed"),
    ];
    let cases = cases.map(|(what, now_ms, message, verdict)| {
        json!({"what": what, "now": noon_and(now_ms), "message": message, "verdict": verdict})
    });
    json!({"me": order().to, "cases": cases})
}

fn history(states: &[State]) -> History {
    let steps = (1_i64..).zip(states).map(|(number, state)| Step { state: *state, at: noon_and(number * 10) });
    History::try_from(steps.collect::<Vec<_>>()).unwrap()
}

fn tally(bytes: &[u8], cut: u64) -> Option<OutputTally> {
    let kept = bytes.len() as u64;
    Some(OutputTally { bytes: kept, total_bytes: kept + cut, sha256: HEXLOWER.encode(&Sha256::digest(bytes)) })
}

/// Drawn by the node when it journals the order.
const REPLY_ID: MessageId = MessageId::from_bytes([0x22; 16]);
const STDOUT: &[u8] = b"Linux ship1 6.1.0\n";
const STDERR: &[u8] = b"\xff not text\n";

fn reply(states: &[State], reason: Option<&str>, outcome: Option<Outcome>) -> Value {
    let (order, history) = (order(), history(states));
    let (subject, step) = (order.reply_subject().to_string(), history.step());
    let reply = Reply {
        v: WIRE_VERSION,
        kind: ReplyKind::Reply,
        order: order.id,
        job: order.job,
        node: order.to.name,
        method: order.method,
        domain: order.domain,
        step,
        history,
        reason: reason.map(ToOwned::to_owned),
        outcome,
        clock_error_ms: None,
    };
    sealed_message(&subject, Some(format!("{REPLY_ID}-{step}")), &json_bytes(&reply), &node())
}

/// Random bytes that are known: so that the box is the same each time.
struct Nines;

impl RngCore for Nines {
    fn next_u32(&mut self) -> u32 {
        u32::from_le_bytes([9; 4])
    }
    fn next_u64(&mut self) -> u64 {
        u64::from_le_bytes([9; 8])
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        dest.fill(9);
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}
impl CryptoRng for Nines {}

fn order_with_secrets() -> Order {
    let mut secrets = Secrets::default();
    secrets.add("DB_PASSWORD", b"hunter2".to_vec().into()).unwrap();
    secrets.add("token", vec![0, 255, 10].into()).unwrap();
    let sealed = secret::seal(&order(), &PublicKey::of(&operator()), &secrets, &mut Nines).unwrap();
    Order { secrets: Some(sealed), ..order() }
}

fn secrets() -> Value {
    let genuine = order_with_secrets();
    let text = |order: &Order| String::from_utf8(order.to_bytes().unwrap()).unwrap();
    let sealed = genuine.secrets.clone().unwrap();
    let mut bytes = BASE64.decode(sealed.sealed.as_bytes()).unwrap();
    bytes[40] ^= 1;
    let altered = SealedSecrets { sealed: BASE64.encode(&bytes), ..sealed.clone() };
    let fewer = SealedSecrets { names: vec!["token".into()], ..sealed };
    let (operator, stranger) = (operator().public_key(), stranger().public_key());
    let refused = |why: &str, order: Order, by: &str| json!({"why": why, "order": text(&order), "by": by});
    json!({
        "what": "`order` is signed by `by`, and its box opens with the seed of `keys.node`. Its ephemeral private key \
                 is 32 bytes of 9. Each of `refused` must not be used",
        "order": text(&genuine),
        "by": operator,
        "opened_base64": {"DB_PASSWORD": BASE64.encode(b"hunter2"), "token": BASE64.encode(&[0, 255, 10])},
        "refused": [
            refused("the box was altered", Order { secrets: Some(altered), ..genuine.clone() }, &operator),
            refused("a name is missing", Order { secrets: Some(fewer), ..genuine.clone() }, &operator),
            refused("it is of another order", Order { id: OrderId::from_bytes([0x12; 16]), ..genuine.clone() }, &operator),
            refused("it is of another method", Order { method: Token::method("other").unwrap(), ..genuine.clone() }, &operator),
            refused("it is of another operator's order", genuine, &stranger),
        ],
    })
}

#[test]
fn secrets_are_opened_and_refused_as_published() {
    let vectors = &read()["secrets"];
    let opened = |vector: &Value| {
        let order = Order::parse(vector["order"].as_str().unwrap().as_bytes()).unwrap();
        secret::open(&order, &PublicKey::parse(vector["by"].as_str().unwrap()).unwrap(), &node())
    };
    let values: BTreeMap<String, String> =
        opened(vectors).unwrap().iter().map(|(name, value)| (name.to_owned(), BASE64.encode(value))).collect();
    assert_eq!(json!(values), vectors["opened_base64"]);
    let refused = vectors["refused"].as_array().unwrap();
    assert_eq!(refused.len(), 5);
    for vector in refused {
        assert!(opened(vector).is_err(), "{}", vector["why"]);
    }
}

fn replies() -> Value {
    use State::{Delivered, Failed, Rejected, Running, Succeeded};
    let succeeded = Outcome {
        exit_code: Some(0),
        stdout: tally(STDOUT, 0),
        stderr: tally(STDERR, 1000),
        output_messages: 2,
        ..Outcome::default()
    };
    let failed = Outcome { exit_code: Some(3), stdout: tally(b"", 0), stderr: tally(b"", 0), ..Outcome::default() };
    json!([
        reply(&[Delivered], None, None),
        reply(&[Delivered, Running], None, None),
        reply(&[Delivered, Running, Succeeded], None, Some(succeeded)),
        reply(&[Delivered, Running, Failed], None, Some(failed)),
        reply(&[Rejected], Some("this node has no method \"reboot\""), None),
    ])
}

fn output() -> Value {
    let order = order();
    let subject = OutputSubject { sender: order.from, job: order.job, node: order.to.name }.to_string();
    let piece = |number: u32, stream: &str, bytes: &[u8]| {
        let headers = json!({
            "Nats-Msg-Id": format!("{REPLY_ID}-o{number}"),
            OUTPUT_ORDER_HEADER: order.id,
            OUTPUT_STREAM_HEADER: stream,
            OUTPUT_SEQUENCE_HEADER: number.to_string(),
        });
        json!({"subject": subject, "headers": headers, "payload_base64": BASE64.encode(bytes)})
    };
    json!({
        "what": "the output that the third of `replies` accounts for; of stderr another 1000 bytes were cut off",
        "messages": [piece(0, "stdout", STDOUT), piece(1, "stderr", STDERR)],
    })
}

fn facts() -> Facts {
    let told = json!({"arch": "x86_64", "memory": {"total": 8_000_000_000_u64}, "local": {"gpu": {"count": 2}}});
    Facts::new(name("ship1"), Timestamp::from_ms(NOON_MS), told.as_object().unwrap().clone())
}

fn change() -> message::Change {
    let sign = life_sign(Condition::Degraded);
    message::Change {
        v: 1,
        kind: message::change::ChangeKind::Change,
        node: sign.node.clone(),
        boot: sign.boot,
        since: Timestamp::from_ms(1_800_000_000_000),
        condition: Condition::Up,
        reason: None,
        interval_ms: sign.interval_ms,
        before: Some(message::change::Before::of(&sign, Timestamp::from_ms(1_799_999_000_000))),
        booted: Some(Timestamp::from_ms(1_799_000_000_000)),
    }
}

fn life_sign(condition: Condition) -> LifeSign {
    LifeSign {
        v: WIRE_VERSION,
        kind: LifeSignKind::Presence,
        node: name("ship1"),
        instance: InstanceId::from_bytes([0x33; 16]),
        boot: InstanceId::from_bytes([0x44; 16]),
        seat: None,
        condition,
        reason: (condition == Condition::Degraded).then(|| "the disk is full".into()),
        interval_ms: 15_000,
        at: noon_and(0),
        version: "0.1.0".into(),
        uptime_s: 60,
        floor: 17,
        processes: 4,
        running: 0,
        waiting: 0,
        outbox: 0,
        limits: Vec::new(),
        audit: None,
        rtt_ms: None,
    }
}

fn node_record() -> NodeRecord {
    NodeRecord {
        v: WIRE_VERSION,
        kind: NodeKind::Node,
        name: name("ship1"),
        key: PublicKey::of(&node()),
        labels: [("site".to_owned(), "oslo".to_owned())].into(),
        enrolled: noon_and(-MINUTE_MS),
        by: "admin".into(),
        changed: None,
        revoked: None,
    }
}

fn enrol_token() -> EnrolToken {
    let account = |byte: u8| KeyPair::new_from_raw(KeyPairType::Account, [byte; 32]).unwrap();
    EnrolToken {
        v: WIRE_VERSION,
        kind: TokenKind::Token,
        id: TokenId::from_bytes([0x77; 16]),
        server: "tls://broker.example:4222".into(),
        ca: None,
        client: None,
        root: PublicKey::of(&root()),
        serial: 1,
        account: PublicKey::of(&account(5)),
        seed: account(6).seed().unwrap(),
        expires: noon_and(60 * MINUTE_MS),
    }
}

/// What a unit that enrols itself reads and writes: the node `ship1`, before it was one.
fn admission() -> Value {
    let token = enrol_token();
    let record = TokenRecord {
        v: WIRE_VERSION,
        kind: TokenRecordKind::TokenRecord,
        id: token.id,
        account: token.account.clone(),
        uses: 50,
        used: 1,
        expires: token.expires,
        labels: [("site".to_owned(), "oslo".to_owned())].into(),
        created: noon_and(-MINUTE_MS),
        by: "admin".into(),
        revoked: None,
    };
    let knock = Knock {
        v: WIRE_VERSION,
        kind: KnockKind::Knock,
        token: token.id,
        name: name("ship1"),
        key: PublicKey::of(&node()),
        tls_key: None,
        version: "0.1.0".into(),
        at: noon_and(0),
    };
    let answer = |decision: Answer| Admission {
        v: WIRE_VERSION,
        kind: AdmissionKind::Admission,
        decision,
        token: token.id,
        name: name("ship1"),
        key: PublicKey::of(&node()),
        jwt: (decision == Answer::Accepted).then(|| "eyJ0…".to_owned()),
        client: None,
        trust: SealedDocument::new(serde_json::to_string(&trust()).unwrap(), &root()).unwrap().into(),
        policy: None,
        by: "admin".into(),
        at: noon_and(MINUTE_MS),
    };
    let answered = |decision: Answer, pair: &KeyPair| {
        let subject = format!("$KV.ADMISSIONS.{}", decision.at(&PublicKey::of(&node())));
        sealed_message(&subject, None, &json_bytes(&answer(decision)), pair)
    };
    json!({
        "token": {"text": token.to_text().unwrap(), "says": token},
        "fingerprint": {"key": PublicKey::of(&node()), "text": fingerprint(&PublicKey::of(&node()))},
        "token_record": sealed_message(&format!("$KV.ADMISSIONS.token.{}", token.id), None, &json_bytes(&record), &operator()),
        "knock": sealed_message(&knock.subject(), None, &json_bytes(&knock), &node()),
        "accepted": answered(Answer::Accepted, &operator()),
        "rejected": answered(Answer::Rejected, &operator()),
        "by_a_stranger": answered(Answer::Accepted, &stranger()),
    })
}

/// The first entries of a node's chain, and of an operator's.
fn audit_chain() -> Value {
    let order = order();
    let decision = Act::Decision {
        order: order.id,
        job: order.job,
        by: Some(PublicKey::of(&operator())),
        method: order.method,
        domain: order.domain,
        state: State::Delivered,
        rule: Some("admins may everything".into()),
        policy: Some(1),
        reason: None,
        at: noon_and(1),
    };
    let instance = InstanceId::from_bytes([0x33; 16]);
    let chain = |writer: &str, chain: &str, pair: &KeyPair, acts: Vec<Act>| {
        let mut tip = None;
        let entries = acts.into_iter().map(|act| {
            let entry = Entry::after(tip.as_ref(), (writer, chain), noon_and(2), vec![act]);
            let bytes = entry.to_bytes().unwrap();
            tip = Some(Tip::of(&entry, &bytes));
            sealed_message(&audit::subject(writer, &PublicKey::of(pair), chain), None, &bytes, pair)
        });
        entries.collect::<Vec<_>>()
    };
    let subject = "ship1.command.shellcommand.operatingsystem";
    let sample = Sample::new(subject, Some(PublicKey::of(&stranger()).as_str()), Some("1111"), noon_and(3));
    let discarded = Act::Discarded { reason: "stranger".into(), count: 3, sample: Some(sample) };
    let nodes = chain("ship1", &instance.to_string(), &node(), vec![Act::Begun { instance }, decision, discarded]);
    let enrolled = Act::change("node enroll", "ship1").of_key(&PublicKey::of(&node()));
    let labelled = Act::change("node label", "ship1").noting("site=oslo");
    let operators = chain("admin", OPERATOR_CHAIN, &operator(), vec![enrolled, labelled]);
    let entries = [operators, nodes].concat();
    json!({
        "what": "two chains: each entry but the first names the SHA-256 of the exact payload before it",
        "chain": entries,
    })
}

fn event_batch() -> Value {
    let record = |ms: i64, field: &str, text: &str| EventRecord {
        at: noon_and(ms),
        record: [(field.to_owned(), Value::from(text))].into_iter().collect(),
    };
    let records =
        vec![record(0, "message", "GET / HTTP/1.1"), record(1, "message_base64", &BASE64.encode(b"\xff\xfe"))];
    let head = EventHead {
        v: WIRE_VERSION,
        kind: Kind::Event,
        id: MessageId::from_bytes([0x55; 16]),
        from: name("ship1"),
        to: name("central"),
        method: Token::method("syslogforwarding").unwrap(),
        domain: Token::domain("nginx").unwrap(),
        created: noon_and(2),
        count: 2,
        journal: None,
        row: None,
    };
    let id = head.id.to_string();
    let batch = EventBatch { head, records };
    let mut vector = sealed_message(&batch.subject().to_string(), Some(id.clone()), &batch.to_bytes(), &node());
    vector["record_ids"] = json!([format!("{id}-0"), format!("{id}-1")]);
    vector
}

/// All legal histories, and all that are one illegal step beyond a legal one.
fn histories() -> Value {
    fn explore(from: State, path: &mut Vec<State>, legal: &mut Vec<Vec<State>>, illegal: &mut Vec<Vec<State>>) {
        legal.push(path.clone());
        for next in State::ALL {
            path.push(next);
            if from.may_become(next) {
                explore(next, path, legal, illegal);
            } else {
                illegal.push(path.clone());
            }
            path.pop();
        }
    }
    let (mut legal, mut illegal) = (Vec::new(), Vec::new());
    explore(State::Queued, &mut Vec::new(), &mut legal, &mut illegal);
    let words = |histories: Vec<Vec<State>>| -> Vec<String> {
        histories.iter().map(|path| path.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(" ")).collect()
    };
    json!({"legal": words(legal), "illegal": words(illegal)})
}

fn merges() -> Value {
    use State::{Cancelled, Delivered, Expired, Failed, Running, Succeeded};
    let case = |known: &[State], told: &[State]| {
        let mut folded = history(known);
        let result = match folded.merge(&history(told)) {
            Merge::Newer => "newer",
            Merge::Stale => "stale",
            Merge::Contradiction => "contradiction",
        };
        json!({"known": known, "told": told, "result": result, "state": folded.state()})
    };
    json!([
        case(&[], &[Delivered]),
        case(&[Delivered], &[Delivered, Running, Succeeded]),
        case(&[], &[Delivered, Running, Failed]),
        case(&[Delivered, Running], &[Delivered]),
        case(&[Delivered, Running, Succeeded], &[Delivered, Running, Succeeded]),
        case(&[Delivered, Running, Succeeded], &[Delivered, Running, Failed]),
        case(&[Delivered, Cancelled], &[Expired]),
    ])
}

/// All times are the broker's, in milliseconds.
fn vitality() -> Value {
    let case = |condition: Condition, seen_ms: i64, now_ms: i64, booted_ms: i64| {
        let sign = life_sign(condition);
        let at = Timestamp::from_ms;
        let state = Vitality::judge(Some((&sign, at(seen_ms))), at(now_ms), at(booted_ms)).state;
        json!({
            "condition": condition, "interval_ms": sign.interval_ms, "seen_ms": seen_ms, "now_ms": now_ms,
            "booted_ms": booted_ms, "state": state,
        })
    };
    json!([
        case(Condition::Up, 100_000, 145_000, 0),
        case(Condition::Up, 100_000, 145_001, 0),
        case(Condition::Degraded, 100_000, 110_000, 0),
        case(Condition::Bye, 100_000, 100_001, 0),
        case(Condition::Up, 100_000, 900_000, 890_000),
        case(Condition::Up, 100_000, 9_000_000, 890_000),
    ])
}

/// What happens at a node, in order.
enum Happening {
    /// A live message: subject, its sequence, the one before it.
    Live(&'static str, u64, u64),
    /// The same, but it does not verify.
    Forged(&'static str, u64, u64),
    /// A catch-up has read the stream up to here.
    CaughtUp(u64),
}

fn chains() -> Value {
    use Happening::{CaughtUp, Forged, Live};
    json!([
        played("the first messages of two subjects", 0, &[], &[Live("a", 1, 0), Live("b", 2, 0), Live("a", 3, 1)]),
        played(
            "a repeated and an old message",
            10,
            &[("a", 12)],
            &[Live("a", 12, 9), Live("a", 11, 9), Live("b", 10, 0)]
        ),
        played(
            "after a lost message nothing passes on its subject until a catch-up",
            10,
            &[],
            &[
                Live("a", 14, 12),
                Live("a", 15, 14),
                Live("b", 16, 8),
                CaughtUp(16),
                Live("a", 17, 15),
                Live("b", 18, 16),
            ]
        ),
        played(
            "a head above the floor does not raise the floor",
            5,
            &[],
            &[Live("a", 9, 0), Live("b", 8, 7), CaughtUp(9), Live("b", 10, 8)]
        ),
        played(
            "a message that does not verify moves nothing",
            5,
            &[],
            &[Forged("a", 9, 3), Live("a", 6, 0), Live("a", 9, 6)]
        ),
        played("the floor never falls", 5, &[], &[CaughtUp(4), Live("a", 5, 0)]),
    ])
}

fn played(what: &str, floor: u64, heads: &[(&str, u64)], happenings: &[Happening]) -> Value {
    let mut chain = Chain::new(floor, heads.iter().map(|(subject, head)| ((*subject).to_owned(), *head)));
    let mut steps = Vec::new();
    for happening in happenings {
        let (subject, sequence, previous, verifies) = match *happening {
            Happening::CaughtUp(floor) => {
                chain.raise_floor(floor);
                steps.push(json!({"caught_up": floor, "floor": chain.floor()}));
                continue;
            }
            Happening::Live(subject, sequence, previous) => (subject, sequence, previous, true),
            Happening::Forged(subject, sequence, previous) => (subject, sequence, previous, false),
        };
        let arrival = match chain.judge(subject, sequence, previous) {
            Arrival::Next => "next",
            Arrival::Seen => "seen",
            Arrival::Gap => "gap",
        };
        if arrival == "next" && verifies {
            chain.take(subject, sequence);
        }
        steps.push(json!({
            "subject": subject, "sequence": sequence, "previous": previous, "verifies": verifies, "arrival": arrival,
        }));
    }
    let heads: BTreeMap<_, _> = heads.iter().copied().collect();
    json!({"what": what, "floor": floor, "heads": heads, "steps": steps})
}

// --- the tests ------------------------------------------------------------------------------------------------------

#[test]
fn the_published_vectors_are_those_of_this_code() {
    let made = vectors();
    if std::env::var_os("STEWARD_BLESS").is_some_and(|bless| bless == "1") {
        std::fs::write(file(), format!("{made:#}\n")).unwrap();
    }
    assert!(
        read() == made,
        "docs/vectors.json is not what the code makes: the wire has changed. If that is meant, run the test with \
         STEWARD_BLESS=1 and say so in docs/protocol.md and CHANGELOG.md"
    );
}

/// The payload of a published message, if its seal holds, and who signed it.
fn opened(message: &Value) -> (String, PublicKey) {
    let header = |name: &str| message["headers"][name].as_str();
    let seal = Seal::from_headers(header(KEY_HEADER), header(SIGNATURE_HEADER)).unwrap();
    let payload = message["payload"].as_str().unwrap();
    seal.verify(payload.as_bytes()).unwrap();
    (payload.to_owned(), seal.key)
}

fn public(vectors: &Value, who: &str) -> PublicKey {
    PublicKey::parse(vectors["keys"][who]["public"].as_str().unwrap()).unwrap()
}

#[test]
fn seeds_and_public_keys_belong_together() {
    for key in read()["keys"].as_object().unwrap().values() {
        let pair = KeyPair::from_seed(key["seed"].as_str().unwrap()).unwrap();
        assert_eq!(pair.public_key(), key["public"].as_str().unwrap());
    }
}

#[test]
fn signatures_hold_for_their_bytes_only() {
    for vector in read()["signatures"].as_array().unwrap() {
        let key = PublicKey::parse(vector["key"].as_str().unwrap()).unwrap();
        let (payload, signature) = (vector["payload"].as_str().unwrap(), vector["signature"].as_str().unwrap());
        assert_eq!(key.verify(payload.as_bytes(), signature), Ok(()));
        assert!(key.verify(format!("{payload} ").as_bytes(), signature).is_err());
    }
}

#[test]
fn names_subjects_ids_and_times_are_judged_as_published() {
    let vectors = read();
    let check = |list: &str, accepts: &dyn Fn(&str) -> bool| {
        for (verdict, expected) in [("accepted", true), ("refused", false)] {
            let texts = vectors.pointer(&format!("/{list}_{verdict}")).unwrap().as_array().unwrap();
            for text in texts.iter().map(|text| text.as_str().unwrap()) {
                assert_eq!(accepts(text), expected, "{list}: {text:?}");
            }
        }
    };
    check("names/node", &|text| NodeName::new(text).is_ok());
    check("names/token", &|text| Token::method(text).is_ok() && Token::domain(text).is_ok());
    check("subjects/message", &|text| text.parse::<Subject>().is_ok_and(|subject| subject.to_string() == text));
    check("subjects/reply", &|text| text.parse::<ReplySubject>().is_ok());
    check("subjects/output", &|text| text.parse::<OutputSubject>().is_ok());
    check("ids/job", &|text| JobId::parse(text).is_ok());
    check("ids/order", &|text| text.parse::<OrderId>().is_ok());
    for time in vectors["times"].as_array().unwrap() {
        let text = time["text"].as_str().unwrap();
        assert_eq!(text.parse::<Timestamp>().unwrap().as_ms(), time["ms"].as_i64().unwrap());
    }
}

fn opened_trust(vectors: &Value, which: &str) -> Option<Trust> {
    let sealed: SealedDocument = serde_json::from_value(vectors["trust"][which].clone()).unwrap();
    Trust::open(&sealed, &public(vectors, "root")).ok()
}

#[test]
fn only_the_list_that_the_root_sealed_is_believed() {
    let vectors = read();
    let trust = opened_trust(&vectors, "sealed").unwrap();
    assert_eq!(trust.operator(&public(&vectors, "operator")).unwrap().name, "admin");
    assert_eq!(opened_trust(&vectors, "forged"), None);
}

/// The checks that docs/protocol.md prescribes, in its order, by the doors of this crate.
fn verdict(message: &Value, now: Timestamp, me: &Addressee, trust: &Trust) -> &'static str {
    let header = |name: &str| message["headers"][name].as_str();
    let payload = message["payload"].as_str().unwrap().as_bytes();
    let seal = match Seal::from_headers(header(KEY_HEADER), header(SIGNATURE_HEADER)) {
        Ok(seal) => seal,
        Err(SignatureError::Missing) => return "unsigned",
        Err(_) => return "wrongly_signed",
    };
    if trust.operator(&seal.key).is_none() {
        return "stranger";
    }
    if seal.verify(payload).is_err() {
        return "wrongly_signed";
    }
    let order = match Order::parse(payload) {
        Ok(order) => order,
        Err(OrderError::TooLarge { .. }) => return "oversized",
        Err(_) => return "malformed",
    };
    if order.check_addressee(message["subject"].as_str().unwrap(), me).is_err() {
        return "misaddressed";
    }
    if order.expires <= now { "expired" } else { "take" }
}

#[test]
fn orders_are_taken_and_discarded_as_published() {
    let vectors = read();
    let me: Addressee = serde_json::from_value(vectors["orders"]["me"].clone()).unwrap();
    let trust = opened_trust(&vectors, "sealed").unwrap();
    for case in vectors["orders"]["cases"].as_array().unwrap() {
        let now = case["now"].as_str().unwrap().parse().unwrap();
        assert_eq!(verdict(&case["message"], now, &me, &trust), case["verdict"].as_str().unwrap(), "{}", case["what"]);
    }
}

#[test]
fn replies_are_signed_by_the_node_and_account_for_the_output() {
    let vectors = read();
    let mut replies = Vec::new();
    for message in vectors["replies"].as_array().unwrap() {
        let (payload, signer) = opened(message);
        assert_eq!(signer, public(&vectors, "node"));
        let reply = Reply::parse(payload.as_bytes()).unwrap();
        let subject: ReplySubject = message["subject"].as_str().unwrap().parse().unwrap();
        assert_eq!((&subject.job, &subject.node), (&reply.job, &reply.node));
        replies.push(reply);
    }
    let outcome = replies[2].outcome.as_ref().unwrap();
    let messages = vectors["output"]["messages"].as_array().unwrap();
    assert_eq!(messages.len(), outcome.output_messages as usize);
    let mut streams: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for message in messages {
        let bytes = BASE64.decode(message["payload_base64"].as_str().unwrap().as_bytes()).unwrap();
        streams.entry(message["headers"][OUTPUT_STREAM_HEADER].as_str().unwrap()).or_default().extend(bytes);
    }
    for (stream, told) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
        let told = told.as_ref().unwrap();
        let digest = HEXLOWER.encode(&Sha256::digest(&streams[stream]));
        assert_eq!((streams[stream].len() as u64, digest), (told.bytes, told.sha256.clone()), "{stream}");
    }
    assert!(outcome.stderr.as_ref().unwrap().truncated());
}

#[test]
fn records_life_signs_and_events_are_signed_by_their_writers() {
    let vectors = read();
    let signed_by = |what: &str, who: &str| {
        let (payload, signer) = opened(&vectors[what]);
        assert_eq!(signer, public(&vectors, who), "{what}");
        payload
    };
    let sign: LifeSign = serde_json::from_str(&signed_by("life_sign", "node")).unwrap();
    assert_eq!(sign, life_sign(Condition::Up));
    assert_eq!(Facts::parse(signed_by("facts", "node").as_bytes()), Ok(facts()));
    let record: NodeRecord = serde_json::from_str(&signed_by("node_record", "operator")).unwrap();
    assert_eq!(record.key, public(&vectors, "node"));
    let part = &vectors["admission"];
    let token = EnrolToken::parse(part["token"]["text"].as_str().unwrap()).unwrap();
    assert_eq!(serde_json::to_value(&token).unwrap(), part["token"]["says"]);
    let key = public(&vectors, "node");
    assert_eq!(fingerprint(&key), part["fingerprint"]["text"].as_str().unwrap());
    let payload = |which: &str| part[which]["payload"].as_str().unwrap().as_bytes();
    let knock = Knock::open(payload("knock"), part["knock"]["subject"].as_str().unwrap(), &key).unwrap();
    let me = (&knock.name, &knock.key);
    let operator = public(&vectors, "operator");
    for decision in Answer::ALL {
        Admission::open(payload(decision.as_str()), &operator, decision, &token, me).unwrap();
    }
    let stranger = public(&vectors, "stranger");
    Admission::open(payload("by_a_stranger"), &stranger, Answer::Accepted, &token, me).unwrap_err();
    serde_json::from_slice::<TokenRecord>(payload("token_record")).unwrap().left(noon_and(0)).unwrap();
    let (me, payload) = (public(&vectors, "node"), signed_by("renewal", "operator"));
    assert_eq!(Renewal::parse(payload.as_bytes(), &me), Ok(renewal()));
    assert!(Renewal::parse(payload.as_bytes(), &public(&vectors, "operator")).is_err(), "it is for the node alone");
    assert_eq!(Taken::parse(signed_by("taken", "node").as_bytes(), &me), Ok(taken()));
    let batch = EventBatch::parse(signed_by("event_batch", "node").as_bytes()).unwrap();
    assert_eq!(batch.subject().to_string(), vectors["event_batch"]["subject"].as_str().unwrap());
    assert_eq!(batch.records.len(), vectors["event_batch"]["record_ids"].as_array().unwrap().len());
}

#[test]
fn a_root_is_followed_as_published() {
    let vectors = read();
    let part = &vectors["succession"];
    let cases = part["cases"].as_array().unwrap();
    assert!(cases.len() > 8);
    for case in cases {
        let known: Vec<Succession> = serde_json::from_value(case["known"].clone()).unwrap();
        let known = Lineage::parse(PublicKey::parse(part["fleet"].as_str().unwrap()).unwrap(), &known).unwrap();
        let offered: SealedTrust = serde_json::from_value(case["offered"].clone()).unwrap();
        let root = known.open(&offered).ok().map(|(_, roots)| roots.root().to_string());
        assert_eq!(root.as_deref(), case["root_then"].as_str(), "{}", case["what"]);
    }
}

#[test]
fn policies_are_believed_and_decide_as_published() {
    let vectors = read();
    let part = &vectors["policy"];
    let sealed = |which: &str| serde_json::from_value::<SealedDocument>(part[which].clone()).unwrap();
    let mut trust = trust();
    trust.policy_keys = serde_json::from_value(part["policy_keys"].clone()).unwrap();
    let root = Lineage::new(PublicKey::parse(part["root"].as_str().unwrap()).unwrap());
    let policy = Policy::open(&sealed("sealed"), &root, &trust).unwrap();
    assert_eq!(Policy::open(&sealed("by_delegate"), &root, &trust), Ok(policy));
    assert!(Policy::open(&sealed("forged"), &root, &trust).is_err());
    let count = |word: &str| {
        part["decisions"].as_array().unwrap().iter().filter(|decision| decision["decision"] == word).count()
    };
    assert!(count("allowed") > 3 && count("denied") > 5 && count("needs_approvals") == 1);
    for text in part["selectors_refused"].as_array().unwrap() {
        assert!(text.as_str().unwrap().parse::<Selector>().is_err(), "{text}");
    }
}

#[test]
fn histories_are_legal_and_illegal_as_published() {
    let vectors = read();
    let is_legal = |words: &Value| {
        let step = |word: &str| json!({"state": word, "at": noon_and(0)});
        let steps: Vec<Value> = words.as_str().unwrap().split_whitespace().map(step).collect();
        serde_json::from_value::<History>(steps.into()).is_ok()
    };
    let list = |which: &str| vectors["histories"][which].as_array().unwrap().clone();
    assert!(list("legal").iter().all(is_legal));
    assert!(!list("illegal").iter().any(is_legal));
}

#[test]
fn each_entry_of_a_chain_names_the_one_before() {
    let vectors = read();
    let mut before: BTreeMap<String, String> = BTreeMap::new();
    for stored in vectors["audit"]["chain"].as_array().unwrap() {
        let payload = stored["payload"].as_str().unwrap();
        let header = |name: &str| stored["headers"][name].as_str();
        let seal = Seal::from_headers(header(KEY_HEADER), header(SIGNATURE_HEADER)).unwrap();
        assert_eq!(seal.verify(payload.as_bytes()), Ok(()));
        let entry = Entry::parse(payload.as_bytes()).unwrap();
        let subject = stored["subject"].as_str().unwrap().to_owned();
        assert_eq!(subject, format!("{}.audit.{}.{}", entry.writer, seal.key, entry.chain));
        let known = before.insert(subject, HEXLOWER.encode(&Sha256::digest(payload)));
        assert_eq!(entry.prev.map(|prev| prev.sha256), known);
    }
    assert_eq!(before.len(), 2);
}
