//! A full disk at the unit: it says so, keeps what it has, and goes on when there is room, also if it starts like that.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may end where it stands, and says what it saw")]

use std::path::Path;
use std::time::{Duration, Instant};

use fleet::{Gather, OrderRequest, PlacedJob};
use message::{Limit, NodeName, NodeState, State, Token};
use testkit::plan::Work;
use testkit::system::System;

const NODE: &str = "n1";

async fn system() -> Option<System> {
    let system = System::start(Path::new(env!("CARGO_BIN_EXE_steward")), 1).await.unwrap();
    if system.small_disk().is_none() {
        println!("NOT TESTED: {}", system.left_out.join("; "));
        return None;
    }
    Some(system)
}

fn request(system: &System, work: Work, domain: &str) -> OrderRequest {
    OrderRequest {
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain(domain).unwrap(),
        args: testkit::witness::arguments(&system.witness_dir(), work),
        timeout: Duration::from_secs(60),
        expires: Duration::from_secs(3600),
        max_output: 1024,
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn state(operator: &fleet::Fleet, job: &PlacedJob) -> State {
    operator.job(&job.job, Gather::Ignore).await.unwrap().nodes[&NodeName::new(NODE).unwrap()].state()
}

fn log(system: &System) -> String {
    std::fs::read_to_string(system.home().join("logs").join("n1.log")).unwrap_or_default()
}

#[tokio::test]
async fn an_agent_that_starts_on_a_full_disk_waits_for_room_and_says_so() {
    let Some(system) = system().await else { return };
    let operator = system.operator().await.unwrap();
    let node = operator.nodes().await.unwrap().nodes;
    let before = operator.order(&request(&system, Work::Quick, "d0"), &node).await.unwrap();
    eventually("an order has run", async || state(&operator, &before).await == State::Succeeded).await;

    system.agent(0).kill();
    assert!(system.fill_small_disk());
    system.agent(0).start().unwrap();
    let waiting = operator.order(&request(&system, Work::Quick, "d0"), &node).await.unwrap();
    eventually("the node says that its disk is full", async || {
        let node = operator.nodes().await.unwrap().nodes.remove(0);
        let reason = node.sign.as_ref().and_then(|sign| sign.reason.clone()).unwrap_or_default();
        let limits = node.sign.map(|sign| sign.limits).unwrap_or_default();
        node.vitality.state == NodeState::Degraded && reason.contains("full") && limits.contains(&Limit::Disk)
    })
    .await;
    assert!(system.agent(0).ended().is_none(), "{}", log(&system));
    system.empty_small_disk();
    eventually("what waited has run", async || state(&operator, &waiting).await == State::Succeeded).await;
    eventually("the node is well again", async || {
        operator.nodes().await.unwrap().nodes.remove(0).vitality.state == NodeState::Online
    })
    .await;
    let lines = std::fs::read_to_string(system.witness_dir().join(NODE)).unwrap();
    assert_eq!(lines.matches("begin ").count(), 2, "each once: {lines}");
    assert!(system.agent(0).ended().is_none(), "{}", log(&system));
}

/// There is not even room for a journal: a unit that was set up anew, on a disk that something else has filled.
#[tokio::test]
async fn an_agent_without_room_for_a_journal_waits_for_it() {
    let Some(system) = system().await else { return };
    let operator = system.operator().await.unwrap();
    let node = operator.nodes().await.unwrap().nodes;
    system.end_agent(0).await;
    for name in ["journal.redb", "journal.log"] {
        std::fs::remove_file(system.agents[0].state.join(name)).unwrap();
    }
    assert!(system.fill_small_disk());
    system.agent(0).start().unwrap();
    let waiting = operator.order(&request(&system, Work::Quick, "d0"), &node).await.unwrap();
    eventually("it says in its log what it waits for", async || log(&system).contains("room")).await;
    assert!(system.agent(0).ended().is_none(), "{}", log(&system));
    system.empty_small_disk();
    // The old journal is gone, so it waits until the run that had it would have spoken.
    eventually("what waited has run", async || state(&operator, &waiting).await == State::Succeeded).await;
    assert!(system.agent(0).ended().is_none(), "{}", log(&system));
}
