//! Messages that must not be obeyed: sent with the operator's own NATS credentials, without a right to order.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use bus::{Bus, Headers};
use bytes::Bytes;
use message::{Order, Seal, SealedOrder, job::OrderChunk};
use serde_json::Value;
use world::{World, eventually, lines};

const SUBJECT: &str = "ship1.command.shellcommand.operatingsystem";

/// The signed order of a job for one node, as anyone who reads the bus can have it.
async fn stored_order(bus: &Bus, job: &str) -> (SealedOrder, Seal) {
    let record = bus.kv_get("JOBS", job).await.unwrap().unwrap();
    let body: Value = serde_json::from_slice(&record.payload).unwrap();
    let chunk: OrderChunk = serde_json::from_str(body["inline"].as_str().unwrap()).unwrap();
    let order = chunk.orders.into_iter().next().unwrap();
    let seal = Seal { key: record.seal().unwrap().key, signature: order.signature.clone() };
    (order, seal)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_a_genuine_order_for_this_node_is_executed() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    world.agent("ship2", &[]);
    let witness = world.path("witness");
    let line = format!("echo ran >> {}", witness.display());
    let job = world.json(0, &["run", "ship1", "--sh", &line]);
    assert_eq!(lines(&witness).len(), 1);
    let bus = world.operator_bus().await;
    let (order, seal) = stored_order(&bus, job["job"].as_str().unwrap()).await;
    let bytes = Bytes::from(order.order.clone().into_bytes());
    let fresh = || Headers::from(bus::clock::message_id());
    let send = async |subject: &str, headers: Headers, payload: Bytes| {
        bus.publish(subject, headers, payload).await.unwrap();
    };

    // Replayed: under a new message id, so that the broker does not recognize it.
    send(SUBJECT, fresh().sealed(&seal), bytes.clone()).await;
    // On another method, another domain, another node.
    send("ship1.command.hello.operatingsystem", fresh().sealed(&seal), bytes.clone()).await;
    send("ship1.command.shellcommand.other", fresh().sealed(&seal), bytes.clone()).await;
    send("ship2.command.shellcommand.operatingsystem", fresh().sealed(&seal), bytes.clone()).await;
    // Unsigned; garbage; oversized garbage; signed by a stranger.
    send(SUBJECT, fresh(), bytes.clone()).await;
    send(SUBJECT, fresh(), Bytes::from_static(b"\x00\xff{[")).await;
    send(SUBJECT, fresh().sealed(&seal), Bytes::from(vec![b'{'; 900_000])).await;
    let stranger = nkeys::KeyPair::new_user();
    let mut forged: Order = serde_json::from_slice(&bytes).unwrap();
    forged.id = bus::clock::order_id();
    let forged = Bytes::from(forged.to_bytes().unwrap());
    send(SUBJECT, fresh().sealed(&Seal::over(&forged, &stranger).unwrap()), forged).await;
    // Every thirtieth byte altered, one at a time.
    let mut altered = 0;
    for at in (0..bytes.len()).step_by(30) {
        let mut copy = bytes.to_vec();
        copy[at] ^= 1;
        send(SUBJECT, fresh().sealed(&seal), Bytes::from(copy)).await;
        altered += 1;
    }

    // An order behind all of them gets through, so they have all been judged.
    let after = world.json(0, &["run", "ship1,ship2", "--wait", "30s", "--", "true"]);
    assert_eq!(after["counts"]["succeeded"], 2);
    assert_eq!(lines(&witness).len(), 1, "nothing was executed but the genuine order, once");
    let hello = world.json(0, &["call", "ship1", "hello"]);
    let counts = &hello["nodes"]["ship1"]["data"];
    assert_eq!(counts["repeated"], 1, "{counts}");
    assert_eq!(counts["discarded"]["misaddressed"], 2, "{counts}");
    assert_eq!(counts["discarded"]["unsigned"], 2, "{counts}");
    assert_eq!(counts["discarded"]["oversized"], 1, "{counts}");
    assert_eq!(counts["discarded"]["stranger"], 1, "{counts}");
    assert_eq!(counts["discarded"]["wrongly_signed"], altered, "{counts}");
    let shown = world.json(0, &["job", "show", job["job"].as_str().unwrap()]);
    assert_eq!(shown["nodes"], job["nodes"], "the genuine order's fate is unchanged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_garbage_does_not_keep_orders_from_getting_through() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let bus = world.operator_bus().await;
    let flood = tokio::spawn(async move {
        for _ in 0..20_000 {
            if bus.send(SUBJECT, Headers::new(), Bytes::from_static(b"garbage")).await.is_err() {
                break;
            }
        }
    });
    let job = tokio::task::block_in_place(|| world.json(0, &["run", "ship1", "--wait", "30s", "--", "true"]));
    assert_eq!(job["counts"]["succeeded"], 1);
    flood.await.unwrap();
    eventually("the agent is well", || world.state("ship1") == "online");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_answers_are_not_believed() {
    let mut world = World::up();
    world.agent("ship1", &[]);
    let job = world.json(0, &["run", "ship1", "--", "echo", "true"]);
    let id = job["job"].as_str().unwrap();
    let bus = world.operator_bus().await;
    // An operator's NATS rights do not even reach the subject; a node's reply is believed by its signature alone.
    let refused = bus.publish(&format!("central.reply.{id}.ship1"), Headers::new(), Bytes::from_static(b"{}")).await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(world.json(0, &["job", "show", id])["nodes"], job["nodes"]);
}
