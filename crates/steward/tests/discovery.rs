//! Plain clients of NATS find the station, as `nats micro ls` looks for services.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::time::{Duration, Instant};

use world::{PATIENCE, World};

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_finds_the_station_and_its_version() {
    let world = World::up();
    let operator = world.operator_bus().await;
    let deadline = Instant::now() + PATIENCE;
    for (verb, kind) in [("PING", "ping"), ("INFO", "info"), ("STATS", "stats"), ("PING.steward-station", "ping.")] {
        let found = loop {
            let found = operator.services(verb, Duration::from_millis(500)).await.unwrap();
            if !found.is_empty() {
                break found;
            }
            assert!(Instant::now() < deadline, "nobody answers to {verb}");
        };
        assert_eq!(found.len(), 1, "{found:?}");
        let kind = kind.trim_end_matches('.');
        assert_eq!(found[0]["type"], format!("io.nats.micro.v1.{kind}_response"));
        assert_eq!(found[0]["name"], "steward-station");
        assert_eq!(found[0]["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(found[0]["metadata"]["station"], "central");
    }
    assert_eq!(
        operator.services("PING.other", Duration::from_millis(300)).await.unwrap(),
        Vec::<serde_json::Value>::new()
    );
}
