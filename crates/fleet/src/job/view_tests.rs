use message::job::JobKind;
use message::reply::ReplyKind;
use message::{History, JobId, OrderId, Outcome, OutputTally, PublicKey, Timestamp, Token, WIRE_VERSION};
use nkeys::{KeyPair, KeyPairType};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::order::sha256;

fn pair(seed: u8) -> KeyPair {
    KeyPair::new_from_raw(KeyPairType::User, [seed; 32]).unwrap()
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn job() -> JobId {
    JobId::new(1_795_348_800_000, 42)
}

fn order_of(seed: u8) -> OrderId {
    OrderId::from_bytes([seed; 16])
}

/// A job for ship1 (key and order 1) and ship2 (key and order 2).
fn view(gather: Gather) -> JobView {
    let record = JobRecord {
        v: WIRE_VERSION,
        kind: JobKind::Job,
        job: job(),
        from: name("central"),
        by: "admin".into(),
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain("operatingsystem").unwrap(),
        args: None,
        secrets: Vec::new(),
        created: Timestamp::from_ms(1_795_348_800_000),
        expires: Timestamp::from_ms(1_795_352_400_000),
        timeout_ms: 60_000,
        targets: 2,
        chunks: vec![],
        inline: None,
        retry_of: None,
    };
    let expected = [1, 2].map(|seed| Expected {
        node: name(&format!("ship{seed}")),
        key: PublicKey::of(&pair(seed)),
        order: order_of(seed),
    });
    JobView::new(record, &expected, 1 << 20, gather)
}

/// A message as the broker would deliver it.
#[derive(Debug, Clone)]
struct Sent {
    subject: String,
    payload: Bytes,
    seal: Result<Seal, SignatureError>,
    output: [Option<String>; 3],
}

fn apply(view: &mut JobView, sent: &Sent) -> Vec<Update> {
    view.apply(&Arrival {
        subject: &sent.subject,
        payload: &sent.payload,
        seal: sent.seal.clone(),
        stored: message::Timestamp::default(),
        output: [sent.output[0].as_deref(), sent.output[1].as_deref(), sent.output[2].as_deref()],
    })
}

fn reply_with(seed: u8, states: &[State], reason: Option<&str>, outcome: Option<Outcome>) -> Reply {
    let mut history = History::new();
    for (at, state) in (1_795_348_801_000..).zip(states) {
        history.push(*state, Timestamp::from_ms(at)).unwrap();
    }
    Reply {
        clock_error_ms: None,
        v: WIRE_VERSION,
        kind: ReplyKind::Reply,
        order: order_of(seed),
        job: job(),
        node: name(&format!("ship{seed}")),
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain("operatingsystem").unwrap(),
        step: history.step(),
        history,
        reason: reason.map(ToOwned::to_owned),
        outcome,
    }
}

fn sent(reply: &Reply, signer: u8) -> Sent {
    let payload = Bytes::from(serde_json::to_vec(reply).unwrap());
    let seal = Ok(Seal::over(&payload, &pair(signer)).unwrap());
    Sent { subject: format!("central.reply.{}.{}", reply.job, reply.node), payload, seal, output: [None, None, None] }
}

fn piece(seed: u8, number: u32, stream: &str, bytes: &'static [u8]) -> Sent {
    Sent {
        subject: format!("central.output.{}.ship{seed}", job()),
        payload: Bytes::from_static(bytes),
        seal: Err(SignatureError::Missing),
        output: [Some(order_of(seed).to_string()), Some(stream.into()), Some(number.to_string())],
    }
}

fn tally(bytes: &[u8], total: usize) -> OutputTally {
    OutputTally { bytes: bytes.len() as u64, total_bytes: total as u64, sha256: sha256(bytes) }
}

fn outcome(stdout: &[u8], stderr: &[u8], output_messages: u32) -> Outcome {
    Outcome {
        exit_code: Some(0),
        stdout: Some(tally(stdout, stdout.len())),
        stderr: Some(tally(stderr, stderr.len())),
        output_messages,
        ..Outcome::default()
    }
}

const RAN: [State; 3] = [State::Delivered, State::Running, State::Succeeded];

/// All that ship1 says when it runs a program that writes `hello, world\n` and a warning.
fn whole_story() -> Vec<Sent> {
    vec![
        sent(&reply_with(1, &RAN[..1], None, None), 1),
        sent(&reply_with(1, &RAN[..2], None, None), 1),
        piece(1, 0, "stdout", b"hello, "),
        piece(1, 1, "stderr", b"warning\n"),
        piece(1, 2, "stdout", b"world\n"),
        sent(&reply_with(1, &RAN, None, Some(outcome(b"hello, world\n", b"warning\n", 3))), 1),
    ]
}

fn told(updates: &[Update]) -> Vec<u8> {
    updates
        .iter()
        .filter_map(|update| match update {
            Update::Output { bytes, stream: OutputStream::Stdout, .. } => Some(bytes.to_vec()),
            _ => None,
        })
        .collect::<Vec<_>>()
        .concat()
}

fn notes(updates: &[Update]) -> Vec<String> {
    updates.iter().filter_map(|u| if let Update::Note { text, .. } = u { Some(text.clone()) } else { None }).collect()
}

#[test]
fn a_job_is_told_as_cli_md_says() {
    let mut view = view(Gather::Keep);
    for message in whole_story() {
        assert!(!view.nodes[&name("ship1")].settled());
        apply(&mut view, &message);
    }
    assert!(view.nodes[&name("ship1")].settled() && !view.settled());
    assert_eq!(
        view.to_json(),
        json!({
            "job": job(), "by": "admin", "method": "shellcommand", "domain": "operatingsystem",
            "created_at": "2026-11-22T12:00:00.000Z", "expires_at": "2026-11-22T13:00:00.000Z",
            "targets": 2, "counts": {"succeeded": 1, "queued": 1},
            "nodes": {
                "ship1": {"state": "succeeded", "exit_code": 0, "stdout": "hello, world\n", "stderr": "warning\n",
                          "truncated": false, "delivered_at": "2026-11-22T12:00:01.000Z",
                          "started_at": "2026-11-22T12:00:01.001Z", "finished_at": "2026-11-22T12:00:01.002Z"},
                "ship2": {"state": "queued"},
            },
        })
    );
    let summary = view.summary_json();
    assert_eq!((&summary["type"], &summary["counts"]["succeeded"]), (&json!("summary"), &json!(1)));
    assert!(summary.get("nodes").is_none());
}

#[test]
fn updates_are_lines_as_cli_md_says() {
    let mut view = view(Gather::Pass);
    let lines: Vec<_> =
        whole_story().iter().flat_map(|message| apply(&mut view, message)).map(|update| update.to_json()).collect();
    assert_eq!(
        lines[0],
        json!({"type": "state", "node": "ship1", "state": "delivered", "at": "2026-11-22T12:00:01.000Z"})
    );
    assert_eq!(lines[2], json!({"type": "output", "node": "ship1", "stream": "stdout", "data": "hello, "}));
    assert!(view.nodes[&name("ship1")].stdout.is_empty(), "what is passed on is not kept");
    let binary =
        Update::Output { node: name("ship1"), stream: OutputStream::Stdout, bytes: Bytes::from_static(b"\xff") };
    assert_eq!(binary.to_json(), json!({"type": "output", "node": "ship1", "stream": "stdout", "data_base64": "/w=="}));
}

#[test]
fn bytes_that_are_no_text_and_cut_output_are_told_as_such() {
    let mut view = view(Gather::Keep);
    let cut = Outcome { stdout: Some(tally(b"\xff\xfe", 5_000)), data: Some(json!({"a": 1})), ..outcome(b"", b"", 1) };
    apply(&mut view, &piece(1, 0, "stdout", b"\xff\xfe"));
    apply(&mut view, &sent(&reply_with(1, &RAN, None, Some(cut)), 1));
    let node = &view.to_json()["nodes"]["ship1"];
    assert_eq!(node["stdout_base64"], "//4=");
    assert!(node.get("stdout").is_none());
    assert_eq!((&node["truncated"], &node["stdout_total_bytes"]), (&json!(true), &json!(5_000)));
    assert!(node.get("stderr_total_bytes").is_none());
    assert_eq!(node["data"], json!({"a": 1}));
}

#[test]
fn what_did_not_run_is_settled_with_its_reason() {
    let mut view = view(Gather::Keep);
    apply(&mut view, &sent(&reply_with(1, &[State::Rejected], Some("the policy forbids it"), None), 1));
    apply(&mut view, &sent(&reply_with(2, &[State::Expired], None, None), 2));
    assert!(view.settled());
    let json = view.to_json();
    assert_eq!(json["nodes"]["ship1"]["reason"], "the policy forbids it");
    assert_eq!(json["nodes"]["ship2"]["state"], "expired");
}

#[test]
fn a_state_that_was_overtaken_is_still_told_in_its_turn() {
    let mut view = view(Gather::Ignore);
    let updates = apply(&mut view, &sent(&reply_with(1, &RAN, Some("why"), Some(outcome(b"", b"", 9))), 1));
    let told: Vec<_> = updates
        .iter()
        .filter_map(|u| if let Update::State { state, reason, .. } = u { Some((*state, reason.clone())) } else { None })
        .collect();
    assert_eq!(told, [(State::Delivered, None), (State::Running, None), (State::Succeeded, Some("why".into()))]);
    assert!(view.nodes[&name("ship1")].settled(), "who ignores output does not wait for it");
}

#[test]
fn a_final_reply_waits_for_the_output_that_it_announces() {
    let mut view = view(Gather::Keep);
    apply(&mut view, &sent(&reply_with(1, &RAN, None, Some(outcome(b"ab", b"", 2))), 1));
    assert!(!view.nodes[&name("ship1")].settled());
    assert!(apply(&mut view, &piece(1, 1, "stdout", b"b")).is_empty(), "nothing is told before its turn");
    assert_eq!(told(&apply(&mut view, &piece(1, 0, "stdout", b"a"))), b"ab");
    assert!(view.nodes[&name("ship1")].settled());
}

#[test]
fn a_forged_reply_is_told_once_and_never_believed() {
    let mut view = view(Gather::Keep);
    let forged = sent(&reply_with(1, &RAN, None, Some(outcome(b"", b"", 0))), 9);
    let updates = apply(&mut view, &forged);
    assert!(notes(&updates)[0].contains("ship1") && notes(&updates)[0].contains("signed by"), "{updates:?}");
    assert!(apply(&mut view, &forged).is_empty());
    let unsigned = Sent { seal: Err(SignatureError::Missing), ..forged };
    assert!(apply(&mut view, &unsigned).is_empty());
    assert_eq!((view.doubtful, view.nodes[&name("ship1")].state()), (3, State::Queued));
    // The node's own word still counts.
    apply(&mut view, &sent(&reply_with(1, &RAN[..1], None, None), 1));
    assert_eq!(view.nodes[&name("ship1")].state(), State::Delivered);
}

#[test]
fn a_reply_counts_for_its_own_order_node_and_job_only() {
    let mut view = view(Gather::Keep);
    // ship2 speaks for ship1, with its own good signature.
    let foreign = sent(&reply_with(1, &RAN[..1], None, None), 2);
    apply(&mut view, &foreign);
    // ship1 repeats the reply to another order, and what it said as another node.
    apply(&mut view, &sent(&Reply { order: order_of(7), ..reply_with(1, &RAN[..1], None, None) }, 1));
    let elsewhere =
        Sent { subject: format!("central.reply.{}.ship1", job()), ..sent(&reply_with(2, &RAN[..1], None, None), 1) };
    apply(&mut view, &elsewhere);
    let altered = Sent { payload: Bytes::from_static(b"{}"), ..sent(&reply_with(1, &RAN[..1], None, None), 1) };
    apply(&mut view, &altered);
    assert_eq!(view.doubtful, 4);
    assert!(view.nodes.values().all(|progress| progress.state() == State::Queued));
    let stranger = sent(&Reply { node: name("ship3"), ..reply_with(1, &RAN[..1], None, None) }, 1);
    assert_eq!(notes(&apply(&mut view, &stranger)).len(), 1);
    assert!(apply(&mut view, &stranger).is_empty(), "told once");
    assert_eq!(view.nodes.len(), 2);
}

#[test]
fn two_ends_of_one_order_are_a_contradiction() {
    let mut view = view(Gather::Keep);
    apply(&mut view, &sent(&reply_with(1, &RAN, None, None), 1));
    let other = [State::Delivered, State::Running, State::Failed];
    let updates = apply(&mut view, &sent(&reply_with(1, &other, None, None), 1));
    assert!(notes(&updates)[0].contains("failed") && notes(&updates)[0].contains("succeeded"), "{updates:?}");
    assert_eq!(view.nodes[&name("ship1")].state(), State::Succeeded);
}

#[test]
fn output_that_does_not_fit_what_was_signed_is_told() {
    let mut view = view(Gather::Keep);
    apply(&mut view, &piece(1, 0, "stdout", b"forged"));
    let updates = apply(&mut view, &sent(&reply_with(1, &RAN, None, Some(outcome(b"true\n", b"", 1))), 1));
    assert!(notes(&updates)[0].contains("standard output is not what the node signed"), "{updates:?}");
    assert!(view.nodes[&name("ship1")].settled());
    assert!(view.to_json()["nodes"]["ship1"]["output_broken"].is_string());
}

#[test]
fn output_beyond_what_was_ordered_is_not_taken() {
    static MUCH: [u8; 800_000] = [b'x'; 800_000];
    let mut view = view(Gather::Keep);
    for number in 0..5 {
        apply(&mut view, &piece(1, number, "stdout", &MUCH));
    }
    let progress = &view.nodes[&name("ship1")];
    assert!(progress.output_broken.is_some() && progress.stdout.len() <= 1_600_000);
    apply(&mut view, &sent(&reply_with(1, &RAN, None, Some(outcome(b"x", b"", 5))), 1));
    assert!(view.nodes[&name("ship1")].settled(), "nobody waits for what is not taken");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is lost for a while, repeated, overtaken or forged in between: the view is the same in the end.
    #[test]
    fn the_view_does_not_depend_on_how_messages_arrive(
        picks in proptest::collection::vec(0_usize..9, 0..40),
        order in Just((0..6_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut all = whole_story();
        // Three that must not matter: a forgery, a stranger, and another node's output.
        all.push(sent(&reply_with(1, &[State::Rejected], None, None), 9));
        all.push(sent(&Reply { node: name("ship3"), ..reply_with(1, &RAN[..1], None, None) }, 3));
        all.push(Sent { output: piece(2, 0, "stdout", b"").output, ..piece(1, 0, "stdout", b"other") });
        let mut straight = view(Gather::Keep);
        for message in whole_story() {
            apply(&mut straight, &message);
        }
        let mut shuffled = view(Gather::Keep);
        let mut updates = Vec::new();
        for index in picks.into_iter().chain(order) {
            updates.extend(apply(&mut shuffled, &all[index]));
        }
        prop_assert_eq!(shuffled.to_json(), straight.to_json());
        prop_assert_eq!(shuffled.settled(), straight.settled());
        prop_assert_eq!(told(&updates), b"hello, world\n");
        let states: Vec<State> =
            updates.iter().filter_map(|u| if let Update::State { state, .. } = u { Some(*state) } else { None }).collect();
        prop_assert_eq!(states, RAN);
    }

    #[test]
    fn garbage_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..200), kind in "reply|output", number in "[0-9]{0,12}") {
        let mut view = view(Gather::Keep);
        let payload = Bytes::from(payload);
        let seal = Ok(Seal::over(&payload, &pair(1)).unwrap());
        let output = [Some(order_of(1).to_string()), Some("stdout".into()), Some(number)];
        apply(&mut view, &Sent { subject: format!("central.{kind}.{}.ship1", job()), payload, seal, output });
        prop_assert_eq!(view.nodes[&name("ship1")].state(), State::Queued);
    }
}

fn record_of(seed: u8, key: u8, revoked: Option<i64>) -> NodeRecord {
    NodeRecord {
        v: WIRE_VERSION,
        kind: message::registry::NodeKind::Node,
        name: name(&format!("ship{seed}")),
        key: PublicKey::of(&pair(key)),
        labels: [].into(),
        enrolled: Timestamp::from_ms(5_000),
        by: "admin".into(),
        changed: None,
        revoked: revoked.map(Timestamp::from_ms),
    }
}

#[test]
fn what_a_node_has_not_answered_before_its_word_counted_no_more_is_interrupted() {
    let mut view = view(Gather::Keep);
    apply(&mut view, &sent(&reply_with(2, &[State::Delivered, State::Running], None, None), 2));
    // As long as the keys are those that the orders are for, nothing changes.
    assert!(!view.silence(&[record_of(1, 1, None), record_of(2, 2, None)]));
    assert_eq!(view.conclude(), []);
    assert!(view.silence(&[record_of(1, 9, None), record_of(2, 2, Some(7_000))]));
    let ends: Vec<_> = view
        .conclude()
        .into_iter()
        .map(|update| match update {
            Update::State { node, state, at, reason } => (node.to_string(), state, at.as_ms(), reason.unwrap()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ends.len(), 2);
    assert_eq!((&*ends[0].0, ends[0].1, ends[0].2), ("ship1", State::Interrupted, 5_000));
    assert!(ends[0].3.contains("given another key") && ends[0].3.contains("not known"), "{}", ends[0].3);
    assert_eq!((&*ends[1].0, ends[1].1, ends[1].2), ("ship2", State::Interrupted, 7_000));
    assert!(ends[1].3.contains("revoked"), "{}", ends[1].3);
    assert!(view.settled());
    assert_eq!(view.conclude(), [], "once");
}

#[test]
fn what_was_answered_in_time_stays_what_it_was() {
    let mut view = view(Gather::Ignore);
    let done = [State::Delivered, State::Running, State::Succeeded];
    assert!(view.silence(&[record_of(1, 9, None), record_of(2, 9, None)]));
    // Stored in time, though it is read after it is known that its node has another key.
    apply(&mut view, &sent(&reply_with(1, &done, None, None), 1));
    view.conclude();
    assert_eq!(view.nodes[&name("ship1")].state(), State::Succeeded);
    assert_eq!(view.nodes[&name("ship2")].state(), State::Interrupted);
    assert!(view.settled());
}
