//! That the checker passes what is right, and catches one planted breach of each kind.

use std::collections::BTreeMap;

use message::{History, JobId, NodeName, Order, OrderId, Outcome, PublicKey, Reply, State, Timestamp, WIRE_VERSION};
use nkeys::{KeyPair, KeyPairType};
use proptest::prelude::*;

use super::*;

fn key() -> PublicKey {
    PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [7; 32]).unwrap())
}

/// Written as it travels, so that fields which may be left out need not be named here.
fn order(id: u8, node: &str) -> Order {
    let body = serde_json::json!({
        "v": WIRE_VERSION, "kind": "command", "id": OrderId::from_bytes([id; 16]),
        "job": JobId::new(1_795_348_800_000, u128::from(id)), "to": {"name": node, "key": key()},
        "method": "shellcommand", "domain": "d0", "from": "central",
        "created": "2026-11-22T12:00:00.000Z", "expires": "2026-11-22T13:00:00.000Z",
        "timeout_ms": 60_000, "max_output_bytes": 1024, "args": {},
    });
    Order::parse(&serde_json::to_vec(&body).unwrap()).unwrap()
}

fn history(states: &[State]) -> History {
    let mut history = History::new();
    for (index, state) in states.iter().enumerate() {
        history.push(*state, Timestamp::from_ms(i64::try_from(index).unwrap())).unwrap();
    }
    history
}

/// A run with so many orders to `n1` that all went well; single facts are then changed.
struct Made {
    orders: Vec<Order>,
    evidence: Evidence,
}

const GOOD: [State; 3] = [State::Delivered, State::Running, State::Succeeded];

impl Made {
    fn good(count: u8) -> Self {
        let mut made = Self { orders: Vec::new(), evidence: Evidence::default() };
        for id in 1..=count {
            let order = order(id, "n1");
            made.store(&order);
            made.answer(&order, &GOOD, Some(0));
            made.witness("n1", &format!("begin {}", order.id));
            made.witness("n1", &format!("end {} 0", order.id));
            made.orders.push(order);
        }
        made
    }

    fn store(&mut self, order: &Order) {
        let evidence = &mut self.evidence;
        let nodes = vec![order.to.name.to_string()];
        evidence.clients.push(ClientJob { job: Some(order.job.clone()), nodes, seen: Seen::Accepted, key: None });
        evidence.records.insert(order.job.clone(), 1);
        let sequence = u64::try_from(evidence.orders.len()).unwrap() + 1;
        let body = order.to_bytes().unwrap().into();
        evidence.orders.push(StoredOrder { sequence, subject: order.subject().to_string(), body });
    }

    fn answer(&mut self, order: &Order, states: &[State], exit_code: Option<i32>) {
        let history = history(states);
        let reply = Reply {
            clock_error_ms: None,
            v: WIRE_VERSION,
            kind: message::reply::ReplyKind::Reply,
            order: order.id,
            job: order.job.clone(),
            node: order.to.name.clone(),
            method: order.method.clone(),
            domain: order.domain.clone(),
            step: history.step(),
            history,
            reason: None,
            outcome: exit_code.map(|code| Outcome { exit_code: Some(code), ..Outcome::default() }),
        };
        self.evidence.replies.push(StoredReply {
            sequence: u64::try_from(self.evidence.replies.len()).unwrap() + 1,
            // When what expires has just expired.
            stored_at: order.expires,
            subject: order.reply_subject().to_string(),
            signer: Some(key().as_str().to_owned()),
            body: serde_json::to_vec(&reply).unwrap().into(),
        });
    }

    fn witness(&mut self, node: &str, line: &str) {
        self.evidence.witness.entry(node.to_owned()).or_default().push(line.to_owned());
    }

    fn lines(&mut self) -> &mut Vec<String> {
        self.evidence.witness.get_mut("n1").unwrap()
    }

    /// The kinds of breaches found, each once.
    fn found(&self) -> Vec<Kind> {
        check(&self.evidence).breaches.iter().map(|breach| breach.kind).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

#[test]
fn a_run_in_which_all_went_well_has_no_breach() {
    let verdict = check(&Made::good(5).evidence);
    assert_eq!(verdict.breaches, []);
    let counts = verdict.counts;
    assert_eq!((counts.jobs, counts.orders, counts.pairs_accepted, counts.begun), (5, 5, 5, 5));
    assert_eq!(counts.states, BTreeMap::from([(State::Succeeded, 5)]));
}

#[test]
fn repeated_and_overtaken_messages_are_no_breach() {
    let mut made = Made::good(2);
    let first = made.orders[0].clone();
    made.answer(&first, &GOOD[..1], None);
    made.answer(&first, &GOOD, Some(0));
    let again = StoredOrder { sequence: 99, ..made.evidence.orders[0].clone() };
    made.evidence.orders.push(again);
    let verdict = check(&made.evidence);
    assert_eq!(verdict.breaches, []);
    assert_eq!((verdict.counts.duplicates, verdict.counts.orders), (1, 2));
}

#[test]
fn an_accepted_order_that_vanished_is_lost() {
    let mut made = Made::good(2);
    made.evidence.replies.pop();
    made.lines().truncate(2);
    assert_eq!(made.found(), [Kind::Lost, Kind::Unaccounted]);
    made.evidence.orders.pop();
    let job = made.orders[1].job.clone();
    made.evidence.records.remove(&job);
    assert_eq!(made.found(), [Kind::Lost, Kind::Unaccounted], "not even stored");
}

#[test]
fn an_order_that_began_and_never_ended_is_unaccounted() {
    let mut made = Made::good(2);
    made.evidence.replies.pop();
    let last = made.orders[1].clone();
    made.answer(&last, &GOOD[..2], None);
    assert_eq!(made.found(), [Kind::Unaccounted]);
}

#[test]
fn an_order_that_began_twice_is_caught() {
    let mut made = Made::good(2);
    let line = made.lines()[0].clone();
    made.lines().push(line);
    assert_eq!(made.found(), [Kind::Twice]);
}

#[test]
fn states_that_the_witness_contradicts_are_caught() {
    let mut none = Made::good(1);
    none.lines().clear();
    assert_eq!(none.found(), [Kind::Contradiction], "succeeded without having begun");
    let mut no_end = Made::good(1);
    no_end.lines().pop();
    assert_eq!(no_end.found(), [Kind::Contradiction], "succeeded without having ended");
    for states in [
        &[State::Expired][..],
        &[State::Rejected],
        &[State::Superseded],
        &[State::Delivered, State::Superseded],
        &[State::Delivered, State::Cancelled],
        &[State::Cancelled],
    ] {
        let mut made = Made::good(1);
        made.evidence.replies.clear();
        let order = made.orders[0].clone();
        made.answer(&order, states, None);
        assert_eq!(made.found(), [Kind::Contradiction], "{states:?}, and it began");
    }
    let mut code = Made::good(1);
    code.evidence.replies.clear();
    let order = code.orders[0].clone();
    code.answer(&order, &[State::Delivered, State::Running, State::Failed], Some(3));
    assert_eq!(code.found(), [Kind::Contradiction], "another exit code");
}

#[test]
fn two_histories_of_one_order_are_a_contradiction() {
    let mut made = Made::good(1);
    let order = made.orders[0].clone();
    made.answer(&order, &[State::Delivered, State::Running, State::Interrupted], None);
    assert_eq!(made.found(), [Kind::Contradiction]);
}

#[test]
fn orders_that_begin_in_another_order_than_they_were_stored_in_are_caught() {
    let mut made = Made::good(3);
    made.lines().rotate_left(2);
    assert_eq!(made.found(), [Kind::OrderBreach]);
}

#[test]
fn an_illegal_history_and_a_reply_that_another_key_signed_are_caught() {
    let mut made = Made::good(1);
    let mut reply = made.evidence.replies[0].clone();
    reply.body = String::from_utf8(reply.body.to_vec()).unwrap().replace("\"delivered\"", "\"rejected\"").into();
    made.evidence.replies.push(reply);
    assert_eq!(made.found(), [Kind::IllegalHistory]);
    let mut made = Made::good(1);
    let forged = StoredReply { signer: None, ..made.evidence.replies[0].clone() };
    made.evidence.replies.push(forged);
    assert_eq!(made.found(), [Kind::IllegalHistory]);
}

#[test]
fn a_reply_without_an_order_is_caught() {
    let mut made = Made::good(1);
    let stranger = order(99, "n1");
    made.answer(&stranger, &GOOD, Some(0));
    assert_eq!(made.found(), [Kind::StrayReply]);
    let mut made = Made::good(1);
    let mut elsewhere = made.orders[0].clone();
    elsewhere.to.name = NodeName::new("n2").unwrap();
    made.answer(&elsewhere, &GOOD, Some(0));
    assert_eq!(made.found(), [Kind::StrayReply], "another node answers");
}

#[test]
fn a_witness_without_an_order_is_caught() {
    let mut made = Made::good(1);
    made.witness("n1", &format!("begin {}", OrderId::from_bytes([99; 16])));
    assert_eq!(made.found(), [Kind::StrayWitness]);
    let mut made = Made::good(1);
    let line = made.lines()[0].clone();
    made.witness("n2", &line);
    assert_eq!(made.found(), [Kind::StrayWitness], "another node ran it");
    let mut made = Made::good(1);
    made.witness("n1", "nonsense");
    assert_eq!(made.found(), [Kind::StrayWitness]);
}

#[test]
fn half_ordered_and_refused_jobs_that_are_stored_are_caught() {
    let mut half = Made::good(2);
    let job = half.orders[0].job.clone();
    half.evidence.records.insert(job.clone(), 2);
    assert_eq!(half.found(), [Kind::HalfOrdered]);
    half.evidence.records.remove(&job);
    assert_eq!(half.found(), [Kind::HalfOrdered], "orders without their job");
    let mut refused = Made::good(1);
    refused.evidence.clients[0].seen = Seen::Refused;
    assert_eq!(refused.found(), [Kind::HalfOrdered]);
    let mut unknown = Made::good(1);
    unknown.evidence.clients[0].seen = Seen::Unknown;
    assert_eq!(unknown.found(), [], "what nobody was told of may be there wholly");
}

fn cancel(id: u8, of: &Order) -> Order {
    let mut cancel = order(id, "n1");
    cancel.method = message::Token::method(CANCEL).unwrap();
    cancel.args = serde_json::to_value(Cancel { job: of.job.clone() }).unwrap();
    cancel
}

impl Made {
    /// Adds a cancel of an order, and what it answers.
    fn cancel(&mut self, id: u8, of: &Order, found: State, now: State) {
        let cancel = cancel(id, of);
        self.store(&cancel);
        self.answer(&cancel, &GOOD, None);
        let last = self.evidence.replies.last_mut().unwrap();
        let mut reply = Reply::parse(&last.body).unwrap();
        let data = serde_json::to_value(Cancelled { job: of.job.clone(), found, now }).unwrap();
        reply.outcome = Some(Outcome { data: Some(data), ..Outcome::default() });
        last.body = serde_json::to_vec(&reply).unwrap().into();
    }

    /// Changes how an order ended, and whether it began.
    fn ended(&mut self, index: usize, states: &[State], lines: &[&str]) {
        let order = self.orders[index].clone();
        let of = |line: &String| line.contains(&order.id.to_string());
        self.evidence.replies.retain(|reply| Reply::parse(&reply.body).unwrap().order != order.id);
        self.lines().retain(|line| !of(line));
        self.answer(&order, states, None);
        for line in lines {
            self.witness("n1", &format!("{line} {}", order.id));
        }
    }

    /// Puts an order under a supersede key.
    fn under(&mut self, index: usize) {
        let order = &mut self.orders[index];
        order.supersede = Some(message::Token::method("k1").unwrap());
        self.evidence.orders[index].body = order.to_bytes().unwrap().into();
    }

    /// Moves all times that a node tells of an order.
    fn at(&mut self, index: usize, ms: i64, error_ms: i64) {
        let id = self.orders[index].id;
        for stored in &mut self.evidence.replies {
            let mut reply = Reply::parse(&stored.body).unwrap();
            if reply.order == id {
                let mut moved = History::new();
                for (nth, step) in reply.history.steps().iter().enumerate() {
                    moved.push(step.state, Timestamp::from_ms(ms + i64::try_from(nth).unwrap())).unwrap();
                }
                (reply.history, reply.clock_error_ms) = (moved, Some(error_ms));
                stored.body = serde_json::to_vec(&reply).unwrap().into();
            }
        }
    }
}

#[test]
fn cancels_before_while_and_after_are_no_breach() {
    let mut made = Made::good(4);
    let orders = made.orders.clone();
    made.cancel(91, &orders[0], State::Succeeded, State::Succeeded);
    made.ended(1, &[State::Cancelled], &[]);
    made.cancel(92, &orders[1], State::Queued, State::Cancelled);
    made.ended(2, &[State::Delivered, State::Cancelled], &[]);
    made.cancel(93, &orders[2], State::Delivered, State::Cancelled);
    made.ended(3, &[State::Delivered, State::Running, State::Cancelled], &["begin"]);
    made.cancel(94, &orders[3], State::Running, State::Cancelled);
    assert_eq!(made.found(), []);
    // What had not arrived may have expired before it does.
    made.ended(1, &[State::Expired], &[]);
    assert_eq!(made.found(), []);
}

#[test]
fn a_cancel_that_did_not_do_what_it_says_is_caught() {
    for (found, states) in [
        (State::Delivered, &[State::Delivered, State::Running, State::Cancelled][..]),
        (State::Queued, &[State::Delivered, State::Running, State::Cancelled]),
    ] {
        let mut made = Made::good(1);
        let order = made.orders[0].clone();
        made.ended(0, states, &["begin"]);
        made.cancel(91, &order, found, State::Cancelled);
        assert_eq!(made.found(), [Kind::Contradiction], "taken back before it began, and it began: {found}");
    }
    let mut other = Made::good(1);
    let order = other.orders[0].clone();
    other.cancel(91, &order, State::Running, State::Cancelled);
    assert_eq!(other.found(), [Kind::Contradiction], "ended, it says, and it succeeded");
    let mut began = Made::good(1);
    let order = began.orders[0].clone();
    began.cancel(91, &order, State::Succeeded, State::Succeeded);
    began.witness("n1", &format!("begin {}", OrderId::from_bytes([91; 16])));
    assert!(began.found().contains(&Kind::Contradiction), "a cancel is no command");
}

#[test]
fn what_nobody_took_back_and_is_taken_back_is_caught() {
    let mut made = Made::good(1);
    made.ended(0, &[State::Delivered, State::Cancelled], &[]);
    assert_eq!(made.found(), [Kind::Contradiction]);
    let mut made = Made::good(2);
    made.under(0);
    made.ended(0, &[State::Delivered, State::Superseded], &[]);
    assert_eq!(made.found(), [Kind::Contradiction], "there is no newer one of its key");
    made.under(1);
    assert_eq!(made.found(), []);
    made.ended(1, &[State::Expired], &[]);
    assert_eq!(made.found(), [Kind::Contradiction], "what was not taken supersedes nothing");
}

#[test]
fn what_begins_though_a_newer_one_of_its_key_was_taken_is_caught() {
    let mut made = Made::good(2);
    made.under(0);
    made.under(1);
    assert_eq!(made.found(), [], "it ran when the newer one came");
    made.at(1, 1_000, 0);
    made.at(0, 60_000, 0);
    assert_eq!(made.found(), [Kind::Contradiction]);
    made.evidence.jumping.insert("n1".into());
    assert_eq!(made.found(), [], "its clock may have jumped in between");
}

#[test]
fn what_is_told_to_have_expired_and_had_not_is_caught_and_the_other_way_round() {
    let mut made = Made::good(1);
    made.ended(0, &[State::Expired], &[]);
    assert_eq!(made.found(), []);
    let before = Timestamp::from_ms(made.orders[0].expires.as_ms() - 1);
    made.evidence.replies.last_mut().unwrap().stored_at = before;
    assert_eq!(made.found(), [Kind::Contradiction], "it was valid");
    let mut made = Made::good(1);
    let late = made.orders[0].expires.as_ms() + 5_000;
    made.at(0, late, 5_000);
    assert_eq!(made.found(), [], "by a clock that is ahead");
    made.at(0, late, 0);
    assert_eq!(made.found(), [Kind::Contradiction], "it had expired");
}

#[test]
fn what_is_ordered_twice_where_once_was_meant_is_caught() {
    let mut keyed = Made::good(2);
    keyed.evidence.clients[0].key = Some("deploy".into());
    keyed.evidence.clients[1].key = Some("deploy".into());
    assert_eq!(keyed.found(), [Kind::OrderedTwice], "two jobs under one key");
    keyed.evidence.clients[1].key = Some("another".into());
    assert_eq!(keyed.found(), []);
    // Two clients raced for one job, and the orders of both got through.
    let mut raced = Made::good(1);
    let mut second = order(2, "n1");
    second.job = raced.orders[0].job.clone();
    raced.store(&second);
    raced.answer(&second, &[State::Delivered, State::Running, State::Interrupted], None);
    assert_eq!(raced.found(), [Kind::OrderedTwice]);
    // A job that was retried with the very order of the first.
    let mut retried = Made::good(1);
    let mut again = retried.orders[0].clone();
    again.job = JobId::new(1_795_348_800_000, 99);
    retried.store(&again);
    assert!(retried.found().contains(&Kind::OrderedTwice));
}

/// The ways in which an order may truly end, and what its witness may then hold: whether it may and must have begun,
/// and whether it may and must have ended by itself.
fn ends() -> impl Strategy<Value = (Vec<State>, Vec<&'static str>, Option<i32>)> {
    let run = |last| vec![State::Delivered, State::Running, last];
    prop_oneof![
        Just((run(State::Succeeded), vec!["begin", "end 0"], Some(0))),
        Just((run(State::Failed), vec!["begin", "end 9"], Some(9))),
        Just((run(State::Failed), vec![], None)),
        prop::sample::select(vec![vec![], vec!["begin"], vec!["begin", "end 0"]]).prop_map(move |lines| (
            run(State::Interrupted),
            lines,
            None
        )),
        prop::sample::select(vec![vec![], vec!["begin"]]).prop_map(move |lines| (run(State::TimedOut), lines, None)),
        prop::sample::select(vec![vec![], vec!["begin"]]).prop_map(move |lines| (run(State::Cancelled), lines, None)),
        prop::sample::select(vec![
            vec![State::Expired],
            vec![State::Rejected],
            vec![State::Cancelled],
            vec![State::Superseded],
            vec![State::Delivered, State::Expired],
            vec![State::Delivered, State::Cancelled],
            vec![State::Delivered, State::Superseded],
            vec![State::Delivered, State::Interrupted],
        ])
        .prop_map(|states| (states, vec![], None)),
    ]
}

proptest! {
    /// Whatever truly happened, however often and in which order it is told: it passes.
    #[test]
    fn a_legal_run_at_random_passes(
        lives in prop::collection::vec(ends(), 1..20),
        telling in prop::collection::vec((0_usize..20, 1_usize..4), 0..40),
    ) {
        let mut made = Made::good(0);
        let told = |states: &[State], length: usize, code| (states.len() <= length).then_some(code).flatten();
        for (index, (_, lines, _)) in lives.iter().enumerate() {
            let order = order(u8::try_from(index + 1).unwrap(), "n1");
            made.store(&order);
            for line in lines {
                let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
                made.witness("n1", format!("{word} {} {rest}", order.id).trim_end());
            }
            made.orders.push(order);
        }
        for (index, length) in telling {
            let index = index % lives.len();
            let (states, _, code) = &lives[index];
            let order = made.orders[index].clone();
            let length = length.min(states.len());
            made.answer(&order, &states[..length], told(states, length, *code));
        }
        for (index, (states, _, code)) in lives.iter().enumerate() {
            let order = made.orders[index].clone();
            made.answer(&order, states, *code);
            match states.last() {
                Some(State::Cancelled) => {
                    made.store(&cancel(u8::try_from(index + 100).unwrap(), &order));
                    let cancel = cancel(u8::try_from(index + 100).unwrap(), &order);
                    made.answer(&cancel, &GOOD, None);
                }
                Some(State::Superseded) => made.under(index),
                _ => {}
            }
        }
        // What came last under the key.
        let last = order(99, "n1");
        made.store(&last);
        made.orders.resize(made.evidence.orders.len() - 1, last.clone());
        made.orders.push(last.clone());
        made.under(made.orders.len() - 1);
        made.answer(&last, &[State::Delivered, State::Running, State::Interrupted], None);
        let verdict = check(&made.evidence);
        prop_assert_eq!(verdict.breaches, vec![]);
    }
}
