//! A client that is killed half-way through a thousand targets leaves a job that is ordered wholly, or not at all.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may end where it stands, and says what it saw")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use bus::kv::JOBS;
use bus::{Scan, Start};
use fleet::{Context, Fleet, Home};
use futures::StreamExt;
use message::{JobId, JobRecord, NodeName, Order, PublicKey};
use nkeys::KeyPair;
use testkit::process::Process;
use testkit::system::System;

/// Beside the one that lives.
const ABSENT: usize = 1000;
/// At which parts of the time that the whole takes, in hundredths, the client is killed.
const KILLED_AT: [u32; 8] = [30, 50, 60, 70, 80, 85, 90, 95];

async fn read(fleet: &Fleet, stream: &str, filter: &str) -> Vec<bus::Message> {
    let mut scan = Scan::open(fleet.bus(), stream, &[filter.to_owned()], Start::First).await.unwrap();
    let mut found = Vec::new();
    while let Some(message) = scan.next().await.unwrap() {
        found.push(message);
    }
    found
}

/// How many orders of each job are stored.
async fn orders(fleet: &Fleet) -> BTreeMap<JobId, usize> {
    let mut counts = BTreeMap::new();
    for message in read(fleet, "COMMANDS", "*.command.*.*").await {
        *counts.entry(Order::parse(&message.payload).unwrap().job).or_default() += 1;
    }
    counts
}

async fn records(fleet: &Fleet) -> Vec<JobRecord> {
    let records = read(fleet, &format!("KV_{JOBS}"), &format!("$KV.{JOBS}.*")).await;
    records.iter().map(|message| serde_json::from_slice(&message.payload).unwrap()).collect()
}

#[tokio::test]
async fn a_client_that_is_killed_half_way_through_a_thousand_targets_orders_all_or_none() {
    let system = System::start(Path::new(env!("CARGO_BIN_EXE_steward")), 1).await.unwrap();
    let operator = system.operator().await.unwrap();
    let register = |number: usize| {
        let operator = &operator;
        async move {
            let (name, key) = (NodeName::new(format!("away{number}")).unwrap(), PublicKey::of(&KeyPair::new_user()));
            operator.register(&name, &key).await.unwrap();
        }
    };
    futures::stream::iter((0..ABSENT).map(register)).buffer_unordered(64).collect::<Vec<()>>().await;
    let order = |killed_after: Option<Duration>| {
        let mut client = Process::new(system.steward("client", &["run", "--all", "--detach", "--", "true"]));
        client.start().unwrap();
        async move {
            let begun = Instant::now();
            while client.ended().is_none() {
                if killed_after.is_some_and(|after| begun.elapsed() >= after) {
                    client.kill();
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            begun.elapsed()
        }
    };
    let whole = order(None).await;
    assert_eq!(orders(&operator).await.into_values().collect::<Vec<_>>(), [ABSENT + 1]);
    for hundredths in KILLED_AT {
        order(Some(whole * hundredths / 100)).await;
    }
    // What a station does once the client has had its time. It runs beside us, and would do so after 70 s.
    let mut context = Context::load(&Home::new(system.home()), None).unwrap();
    context.creds = context.home().station_creds();
    let station = Fleet::connect(&context).await.unwrap();
    let half = orders(&operator).await.into_values().filter(|count| *count <= ABSENT).count();
    let finished = station.finish_jobs(Duration::ZERO).await.unwrap();
    let (orders, records) = (orders(&operator).await, records(&operator).await);
    println!("{} of {} clients had stored their job, {half} had sent it by half", records.len() - 1, KILLED_AT.len());
    assert!(finished.sent.len() >= half, "{finished:?}");
    for record in &records {
        assert_eq!(orders.get(&record.job), Some(&(ABSENT + 1)), "wholly: {}", record.job);
    }
    assert_eq!(orders.len(), records.len(), "no order without its job");
}
