//! One seed of the chaos run, in the size that every build can afford. `bench/chaos` runs the large ones.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

use std::path::Path;
use std::time::{Duration, Instant};

use fleet::OrderRequest;
use message::Token;
use testkit::link::Condition;
use testkit::plan::{Settings, Work};
use testkit::run::run;
use testkit::system::System;

#[tokio::test]
async fn under_faults_nothing_is_lost_done_twice_or_unaccounted_for() {
    let settings = Settings { seed: 1, orders: 2000, nodes: 5, faults: 20, ..Settings::default() };
    let mut said = Vec::new();
    let report =
        run(Path::new(env!("CARGO_BIN_EXE_steward")), &settings, false, &mut |word| said.push(word)).await.unwrap();
    let text = serde_json::to_string_pretty(&report).unwrap();
    assert!(report.is_good(), "{}\n{text}", said.join("\n"));
    assert_eq!(report.counts.states.keys().filter(|state| !state.is_terminal()).count(), 0, "{text}");
    assert!(report.counts.orders > 1900, "clients that are killed take a few orders with them: {text}");
    assert!(report.faults_by_kind.values().sum::<u64>() >= 20, "{text}");
}

/// Found by `bench/chaos --seed 11 --orders 3000 --nodes 8 --faults 60 --drops`: what a catch-up had read when it
/// broke off was taken for seen, though it was never journaled, and the next catch-up passed it over.
#[tokio::test]
async fn a_catch_up_that_breaks_off_half_way_hides_no_orders() {
    let system = System::start(Path::new(env!("CARGO_BIN_EXE_steward")), 1).await.unwrap();
    let link = &system.agents[0].link;
    let operator = system.operator().await.unwrap();
    let node = operator.nodes().await.unwrap().nodes;
    let request = OrderRequest {
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain("d0").unwrap(),
        args: testkit::witness::arguments(&system.witness_dir(), Work::Quick),
        timeout: Duration::from_secs(60),
        expires: Duration::from_secs(3600),
        max_output: 1024,
    };
    link.set(Condition::Cut);
    let mut jobs = Vec::new();
    for _ in 0..40 {
        jobs.push(operator.order(&request, &node).await.unwrap());
    }
    // Slow enough for the catch-up to be cut off in the middle of some 60 KiB.
    link.set(Condition::Slow { latency: Duration::ZERO, bytes_per_s: 16 * 1024 });
    let before = link.passed_down_bytes();
    wait_until("half of the orders have passed", || link.passed_down_bytes() > before + 30 * 1024).await;
    link.set(Condition::Cut);
    tokio::time::sleep(Duration::from_millis(200)).await;
    link.set(Condition::Open);
    let witness = system.witness_dir().join("n1");
    wait_until("every order has run", || {
        std::fs::read_to_string(&witness).unwrap_or_default().matches("end ").count() >= jobs.len()
    })
    .await;
    let lines = std::fs::read_to_string(&witness).unwrap();
    assert_eq!(lines.matches("begin ").count(), jobs.len(), "each once");
}

async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
