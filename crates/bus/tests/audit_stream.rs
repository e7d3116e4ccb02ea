//! Who may take something away from the audit log, tried against the real nats-server: nobody who talks through the broker.
#![allow(clippy::unwrap_used)] // in the functions that tests share, too

mod world;

use nkeys::KeyPair;
use serde_json::json;
use world::{Party, World};

async fn kept(reader: &Party) -> (u64, u64) {
    let audit = reader.contents().await.into_iter().find(|(name, ..)| name == "AUDIT").unwrap();
    (audit.1, audit.2)
}

#[tokio::test]
async fn neither_operator_nor_node_nor_station_takes_anything_away_from_the_log() {
    let world = World::start().await;
    let key = KeyPair::new_user();
    let alice = world.connect(&world.keys.operator_user("alice", &key).unwrap()).await;
    let own = format!("alice.audit.{}.operator", key.public_key());
    for number in 0..3 {
        assert_eq!(alice.ask_json(&own, format!("entry {number}")).await["stream"], "AUDIT");
    }
    let before = kept(&alice).await;
    assert_eq!(before, (3, 3));
    let (ship1, central) = (world.node("ship1").await, world.station("central").await);
    for call in
        ["STREAM.PURGE", "STREAM.DELETE", "STREAM.UPDATE", "STREAM.MSG.DELETE", "STREAM.RESTORE", "STREAM.CREATE"]
    {
        for (who, party) in [("alice", &alice), ("central", &central), ("ship1", &ship1)] {
            let subjects = [format!("$JS.API.{call}.AUDIT"), format!("core.API.{call}.AUDIT")];
            for subject in subjects {
                assert!(party.may_not_publish(&subject).await, "{who}: {subject}");
            }
        }
    }
    // Nor by writing: a roll-up stands for all that is purged.
    for scope in ["all", "sub"] {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Rollup", scope);
        let answer = alice.ask_with(&own, headers, "instead of all").await.unwrap();
        assert!(String::from_utf8_lossy(&answer.payload).contains("\"error\""), "{scope}: {answer:?}");
    }
    // A station writes nothing there, a node in no other chain than its own. What is published is mapped to `in.…` first.
    let centrals = format!("central.audit.{}.operator", key.public_key());
    for subject in [&own, &centrals] {
        for (who, party) in [("central", &central), ("ship1", &ship1)] {
            party.client.publish(subject.clone(), "forged".into()).await.unwrap();
            assert!(party.may_not_publish(&format!("in.{subject}")).await, "{who}: {subject}");
        }
    }
    assert_eq!(kept(&alice).await, before);

    // Who sets up the store (whoever has the fleet's keys) cannot do it in the stream either, but can do away with it.
    let provisioner = world.provisioner().await;
    let purged = provisioner.ask_json("$JS.API.STREAM.PURGE.AUDIT", "").await;
    assert!(purged["error"]["description"].as_str().unwrap().contains("purge"), "{purged}");
    let deleted = provisioner.ask_json("$JS.API.STREAM.MSG.DELETE.AUDIT", json!({"seq": 2}).to_string()).await;
    assert!(deleted["error"]["description"].as_str().unwrap().contains("delete"), "{deleted}");
    assert_eq!(kept(&alice).await, before);
    let gone = provisioner.ask_json("$JS.API.STREAM.DELETE.AUDIT", "").await;
    assert_eq!(gone["success"], true, "what only `audit verify` can tell: {gone}");
}
