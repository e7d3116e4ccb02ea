use message::reply::ReplyKind;
use message::{Timestamp, Token, WIRE_VERSION};
use nkeys::KeyPair;

use super::*;
use crate::made_up::{job_record, key, order};

fn name(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn id(number: u64) -> JobId {
    JobId::new(number, 0)
}

fn answer(job: &JobId, node: &str, states: &[State], key: &KeyPair) -> Answer {
    let mut history = History::new();
    for (at, state) in (1..).zip(states) {
        history.push(*state, Timestamp::from_ms(at)).unwrap();
    }
    let reply = Reply {
        v: WIRE_VERSION,
        kind: ReplyKind::Reply,
        order: OrderId::from_bytes([5; 16]),
        job: job.clone(),
        node: name(node),
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain("operatingsystem").unwrap(),
        step: history.step(),
        history,
        reason: None,
        outcome: None,
        clock_error_ms: None,
    };
    let payload = Bytes::from(serde_json::to_vec(&reply).unwrap());
    let seal = Ok(Seal::over(&payload, key).unwrap());
    let subject = ReplySubject { sender: name("central"), job: job.clone(), node: name(node) };
    Answer { subject, seal, payload, stored: Timestamp::from_ms(1) }
}

fn counts(jobs: &Jobs, job: &JobId) -> Vec<(State, u32)> {
    jobs.jobs[job].summary.counts.iter().map(|(state, count)| (*state, *count)).collect()
}

const RUN: [State; 3] = [State::Delivered, State::Running, State::Succeeded];

#[test]
fn replies_move_orders_from_state_to_state_in_whatever_order_they_come() {
    let (job, mut jobs) = (id(1), Jobs::default());
    jobs.add(&job_record(&job), vec![order("ship1", &key(1)), order("ship2", &key(2))]);
    assert_eq!(counts(&jobs, &job), [(State::Queued, 2)]);
    assert_eq!(jobs.answer(answer(&job, "ship1", &RUN[..2], &key(1))), Told::Newer);
    assert_eq!(jobs.answer(answer(&job, "ship1", &RUN[..1], &key(1))), Told::Nothing);
    assert_eq!(counts(&jobs, &job), [(State::Queued, 1), (State::Running, 1)]);
    assert_eq!(jobs.answer(answer(&job, "ship1", &RUN, &key(1))), Told::Newer);
    assert_eq!(jobs.answer(answer(&job, "ship2", &[State::Expired], &key(2))), Told::Newer);
    assert_eq!(counts(&jobs, &job), [(State::Succeeded, 1), (State::Expired, 1)]);
    // Settled: only the counts are left, and they stay.
    assert_eq!(jobs.open, 0);
    assert_eq!(jobs.answer(answer(&job, "ship1", &[State::Rejected], &key(1))), Told::Nothing);
    assert_eq!(jobs.order_counts(), BTreeMap::from([(State::Succeeded, 1), (State::Expired, 1)]));
}

#[test]
fn a_forged_a_foreign_and_a_contradicting_reply_are_rejected() {
    let (job, mut jobs) = (id(1), Jobs::default());
    jobs.add(&job_record(&job), vec![order("ship1", &key(1)), order("ship2", &key(2))]);
    let rejected =
        |told: Told, says: &str| assert!(matches!(&told, Told::Rejected(reason) if reason.contains(says)), "{told:?}");
    rejected(jobs.answer(answer(&job, "ship1", &RUN, &key(2))), "the node's key is");
    rejected(jobs.answer(answer(&job, "ship3", &RUN, &key(3))), "not for it");
    let mut altered = answer(&job, "ship1", &RUN, &key(1));
    altered.payload = [&altered.payload[..], b" "].concat().into();
    rejected(jobs.answer(altered), "does not fit");
    let mut unsigned = answer(&job, "ship1", &RUN, &key(1));
    unsigned.seal = Err(SignatureError::Missing);
    rejected(jobs.answer(unsigned), "not signed");
    jobs.answer(answer(&job, "ship1", &RUN, &key(1)));
    rejected(jobs.answer(answer(&job, "ship1", &[State::Rejected], &key(1))), "had said succeeded");
    assert_eq!(counts(&jobs, &job), [(State::Queued, 1), (State::Succeeded, 1)]);
}

#[test]
fn a_reply_that_overtakes_its_job_waits_for_it() {
    let (job, mut jobs) = (id(1), Jobs::default());
    assert_eq!(jobs.answer(answer(&job, "ship1", &RUN, &key(1))), Told::Early);
    assert_eq!(jobs.answer(answer(&job, "ship1", &RUN, &key(2))), Told::Early);
    assert_eq!(jobs.answer(answer(&id(2), "ship1", &RUN, &key(1))), Told::Early);
    // Of the two that waited one is forged; whether it is told depends on which comes first.
    jobs.add(&job_record(&job), vec![order("ship1", &key(1))]);
    assert_eq!(counts(&jobs, &job), [(State::Succeeded, 1)]);
    assert_eq!((jobs.early.len(), jobs.early_bytes), (1, jobs.early[0].payload.len()));
}

#[test]
fn what_waits_is_bounded() {
    let mut jobs = Jobs::default();
    let mut early = answer(&id(1), "ship1", &RUN, &key(1));
    for _ in 0..EARLY_MAX + 10 {
        jobs.answer(early.clone());
    }
    assert_eq!(jobs.early.len(), EARLY_MAX);
    early.payload = vec![0; EARLY_BYTES_MAX / 2].into();
    for _ in 0..5 {
        jobs.answer(early.clone());
    }
    assert!(jobs.early_bytes <= EARLY_BYTES_MAX && jobs.early.len() <= 2);
}

#[test]
fn only_the_newest_jobs_are_kept() {
    let mut jobs = Jobs::default();
    for number in 10..10 + JOBS_MAX as u64 + 3 {
        jobs.add(&job_record(&id(number)), vec![order("ship1", &key(1))]);
    }
    assert_eq!((jobs.len(), jobs.open), (JOBS_MAX, JOBS_MAX));
    assert!(!jobs.wants(&id(5)) && jobs.wants(&id(1_000)));
    assert_eq!(jobs.answer(answer(&id(5), "ship1", &RUN, &key(1))), Told::Nothing);
    assert_eq!(jobs.newest(1)[0].job, id(10 + JOBS_MAX as u64 + 2));
}
