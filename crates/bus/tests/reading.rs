//! Reading a stream to its end, when what it is read by goes away in between.
#![allow(clippy::unwrap_used)] // in the functions that tests share, too

mod world;

use std::time::Duration;

use bus::following::{Following, Pace};
use bus::{Bus, CORE_API, ConnectOptions, Credentials, Headers, Scan, Start};
use bytes::Bytes;
use nkeys::KeyPair;
use world::World;

async fn connect(world: &World) -> Bus {
    let creds = world.keys.operator_user("alice", &KeyPair::new_user()).unwrap();
    Bus::connect(ConnectOptions {
        server: world.broker.client_url(),
        ca: None,
        credentials: Credentials::parse(&creds.render(), "a test").unwrap(),
        name: "test".into(),
        inbox_prefix: Some(creds.inbox_prefix().unwrap()),
        patient: false,
        ping_interval: Duration::from_secs(10),
        api_prefix: CORE_API,
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_scan_whose_consumer_is_gone_fails_and_does_not_end_as_if_all_had_been_read() {
    let world = World::start().await;
    let bus = connect(&world).await;
    let subject = "ship1.event.a.b";
    for number in 0..300 {
        bus.publish(subject, Headers::new(), Bytes::from(format!("{number}"))).await.unwrap();
    }
    let mut scan = Scan::open_named(&bus, "EVENTS", "half", &[subject.to_owned()], Start::First).await.unwrap();
    // A whole batch; the rest has to be asked for.
    for number in 0..256 {
        assert_eq!(scan.next().await.unwrap().unwrap().payload, Bytes::from(format!("{number}")));
    }
    // As a restart of the broker, or a reader that paused for too long.
    let deleted = world.operator("bob").await.ask_json("$JS.API.CONSUMER.DELETE.EVENTS.half", "").await;
    assert_eq!(deleted["success"], true, "{deleted}");
    let end = scan.next().await;
    assert!(end.is_err(), "44 messages are missing, and the scan says {end:?}");
}

#[tokio::test]
async fn whole_batches_are_followed_one_after_the_other_without_a_break() {
    let world = World::start().await;
    let bus = connect(&world).await;
    let subject = "ship1.event.a.b";
    let publish = async |numbers: std::ops::Range<usize>| {
        for number in numbers {
            bus.publish(subject, Headers::new(), Bytes::from(format!("{number}"))).await.unwrap();
        }
    };
    for wait in [Duration::ZERO, Duration::from_secs(2)] {
        let pace = Pace { wait, rest: Duration::from_millis(50) };
        let start = bus.publish(subject, Headers::new(), Bytes::from_static(b"begin")).await.unwrap().sequence + 1;
        let mut following =
            Following::open(&bus, "EVENTS", "half", subject.to_owned(), Start::Sequence(start), pace).await.unwrap();
        // Several times as many as are asked for at once, exactly so many, and one more.
        let mut next = 0;
        for more in [300, 20, 64, 65, 1, 3] {
            publish(next..next + more).await;
            for number in next..next + more {
                let message = tokio::time::timeout(Duration::from_secs(20), following.next()).await.unwrap().unwrap();
                assert_eq!(message.payload, Bytes::from(format!("{number}")));
            }
            next += more;
        }
        // A consumer that is gone is told.
        let deleted = world.operator("bob").await.ask_json("$JS.API.CONSUMER.DELETE.EVENTS.half", "").await;
        assert_eq!(deleted["success"], true, "{deleted}");
        let end = tokio::time::timeout(Duration::from_secs(20), following.next()).await.unwrap();
        assert!(end.is_err(), "its consumer is gone, and it says {end:?}");
    }
}
