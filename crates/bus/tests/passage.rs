//! What the claims let pass, and in which shape it arrives, tried against the real nats-server.
#![allow(clippy::unwrap_used)] // in the functions that tests share, too

mod world;

use async_nats::{HeaderMap, StatusCode};
use serde_json::json;
use world::{SOON, World, catch_up, header, next, silent};

#[tokio::test]
async fn an_order_is_stored_and_arrives_live_on_the_four_tokens() {
    let world = World::start().await;
    let (alice, ship1) = (world.operator("alice").await, world.node("ship1").await);
    let mut in_core = alice.listen("ship1.command.>").await;
    let mut in_edge = ship1.listen("ship1.command.*.*").await;
    let mut seen = Vec::new();
    for order in ["one", "two"] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", order);
        let ack = alice.store_with("ship1.command.shell.os", headers, order).await;
        assert_eq!(ack.stream, "COMMANDS");
        seen.push(ack.sequence);
        alice.store("ship2.command.shell.os", "x").await;
    }
    for live in [&mut in_core, &mut in_edge] {
        let mut before = 0;
        for (order, sequence) in ["one", "two"].iter().zip(&seen) {
            let message = next(live).await.unwrap();
            assert_eq!(
                (message.subject.as_str(), message.payload.as_ref()),
                ("ship1.command.shell.os", order.as_bytes())
            );
            assert_eq!(message.reply, None);
            assert_eq!(header(&message, "Nats-Stream"), "COMMANDS");
            assert_eq!(header(&message, "Nats-Sequence"), sequence.to_string());
            assert_eq!(header(&message, "Nats-Last-Sequence"), before.to_string());
            before = *sequence;
        }
        assert!(silent(live).await, "an order for ship2 reached ship1");
    }
    assert_eq!(alice.last("COMMANDS", "ship1.command.shell.os").await.as_deref(), Some("two"));
}

#[tokio::test]
async fn an_order_sent_twice_is_stored_and_arrives_once() {
    let world = World::start().await;
    let (alice, ship1) = (world.operator("alice").await, world.node("ship1").await);
    let mut live = ship1.listen("ship1.command.*.*").await;
    for duplicate in [false, true] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", "the-same");
        assert_eq!(alice.store_with("ship1.command.shell.os", headers, "once").await.duplicate, duplicate);
    }
    assert!(next(&mut live).await.is_some() && silent(&mut live).await);
}

#[tokio::test]
async fn a_node_reports_and_answers_on_the_four_tokens() {
    let world = World::start().await;
    let (alice, ship1) = (world.operator("alice").await, world.node("ship1").await);
    for (subject, stream) in [
        ("central.event.backup.nightly", "EVENTS"),
        ("alice.reply.JOB1.ship1", "REPLIES"),
        ("alice.output.JOB1.ship1", "REPLIES"),
    ] {
        let mut live = alice.listen(subject).await;
        let ack = ship1.ask_json(subject, "said").await;
        assert_eq!(ack["stream"], stream, "{ack}");
        let message = next(&mut live).await.unwrap();
        assert_eq!((message.subject.as_str(), message.payload.as_ref()), (subject, b"said".as_slice()));
        assert_eq!(header(&message, "Nats-Sequence"), ack["seq"].to_string());
        assert_eq!(alice.last(stream, subject).await.as_deref(), Some("said"));
    }
    assert!(ship1.is_content().await && alice.is_content().await);
}

#[tokio::test]
async fn a_node_catches_up_on_its_own_orders() {
    let world = World::start().await;
    let (alice, ship1) = (world.operator("alice").await, world.node("ship1").await);
    for order in ["1", "2", "3"] {
        alice.store("ship2.command.shell.os", "x").await;
        alice.store("ship1.command.shell.os", order).await;
    }
    let create = "core.API.CONSUMER.CREATE.COMMANDS.ship1.ship1.command.>";
    let created = ship1.ask_json(create, catch_up("ship1", "ship1.command.>", 3).to_string()).await;
    assert_eq!((created["name"].as_str(), created["num_pending"].as_u64()), (Some("ship1"), Some(2)), "{created}");

    let inbox = ship1.client.new_inbox();
    let mut fetched = ship1.listen(&inbox).await;
    let ask = json!({"batch": 10, "no_wait": true}).to_string();
    ship1.client.publish_with_reply("core.API.CONSUMER.MSG.NEXT.COMMANDS.ship1", inbox, ask.into()).await.unwrap();
    // The subject is that of the order; sequence and number still pending stand in the reply subject:
    // $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<nanoseconds>.<pending>
    for (order, sequence, pending) in [("2", "4", "1"), ("3", "6", "0")] {
        let message = next(&mut fetched).await.unwrap();
        assert_eq!((message.subject.as_str(), message.payload.as_ref()), ("ship1.command.shell.os", order.as_bytes()));
        let reply = message.reply.unwrap();
        let tokens: Vec<&str> = reply.split('.').collect();
        assert_eq!(tokens.len(), 9, "{reply}");
        assert_eq!(tokens[..4], ["$JS", "ACK", "COMMANDS", "ship1"]);
        assert_eq!((tokens[5], tokens[8]), (sequence, pending));
    }
    let end = next(&mut fetched).await.unwrap();
    assert_eq!(end.status, Some(StatusCode::NOT_FOUND));
    let deleted = ship1.ask_json("core.API.CONSUMER.DELETE.COMMANDS.ship1", "").await;
    assert_eq!(deleted["success"], true, "{deleted}");
    assert!(ship1.is_content().await);
}

#[tokio::test]
async fn more_than_a_thousand_nodes_catch_up_at_once() {
    let world = World::start().await;
    let provisioner = world.provisioner().await;
    for number in 0..1100 {
        let (name, filter) = (format!("ship{number}"), format!("ship{number}.command.>"));
        let create = format!("$JS.API.CONSUMER.CREATE.COMMANDS.{name}.{filter}");
        let created = provisioner.ask_json(&create, catch_up(&name, &filter, 1).to_string()).await;
        assert_eq!(created["name"], name, "{created}");
    }
}

#[tokio::test]
async fn a_node_reads_its_records_the_policy_and_the_epoch() {
    let world = World::start().await;
    let (alice, ship1) = (world.operator("alice").await, world.node("ship1").await);
    let mut registered = ship1.listen("core.KV.NODES.ship1").await;
    let mut ruled = ship1.listen("core.KV.POLICY.*").await;
    for key in ["$KV.NODES.ship1", "$KV.NODES.ship2", "$KV.POLICY.current"] {
        alice.store(key, format!("value of {key}")).await;
    }
    for (bucket, key) in [("KV_NODES", "$KV.NODES.ship1"), ("KV_POLICY", "$KV.POLICY.current")] {
        let read = ship1.ask(&format!("core.API.DIRECT.GET.{bucket}.{key}"), "").await.unwrap();
        assert_eq!((header(&read, "Nats-Subject"), read.payload.as_ref()), (key, format!("value of {key}").as_bytes()));
    }
    let epoch = ship1.ask("core.API.DIRECT.GET.KV_META.$KV.META.epoch", "").await.unwrap();
    assert_eq!(epoch.payload, world.provisioned.epoch.as_bytes());
    assert_eq!(next(&mut registered).await.unwrap().subject.as_str(), "core.KV.NODES.ship1");
    assert_eq!(next(&mut ruled).await.unwrap().subject.as_str(), "core.KV.POLICY.current");
    assert!(silent(&mut registered).await);
    // A body that asks for something else than the subject says is no way around it.
    for body in [r#"{"last_by_subj":"$KV.NODES.ship2"}"#, r#"{"multi_last":["$KV.>"]}"#, r#"{"seq":1,"batch":9}"#] {
        let refused = ship1.ask("core.API.DIRECT.GET.KV_NODES.$KV.NODES.ship1", body).await.unwrap();
        assert!(refused.status.is_some_and(|status| status.as_u16() >= 400), "{body}");
    }
}

#[tokio::test]
async fn an_operator_works_with_plain_nats_clients() {
    let world = World::start().await;
    let creds = world.keys.operator_user("alice", &nkeys::KeyPair::new_user()).unwrap();
    let plain = world::Party::try_connect(&world.broker.client_url(), &creds, "_INBOX").await.unwrap();
    let mut events = plain.listen("central.event.syslogforwarding.nginx").await;
    let mut orders = plain.listen("ship2.command.>").await;
    plain.client.publish("central.event.syslogforwarding.nginx", "line".into()).await.unwrap();
    plain.client.publish("ship2.command.shell.os", "order".into()).await.unwrap();
    assert!(next(&mut events).await.is_some() && next(&mut orders).await.is_some());
    let kv = plain.jetstream().get_key_value("JOBS").await.unwrap();
    let revision = kv.create("J1", "job".into()).await.unwrap();
    kv.update("J1", "job done".into(), revision).await.unwrap();
    assert_eq!(kv.get("J1").await.unwrap().unwrap(), "job done");
    let mut watch = kv.watch_with_history(">").await.unwrap();
    assert!(tokio::time::timeout(SOON, futures::StreamExt::next(&mut watch)).await.unwrap().is_some());
    let stream = plain.jetstream().get_stream("COMMANDS").await.unwrap();
    let consumer = stream.create_consumer(async_nats::jetstream::consumer::pull::Config::default()).await.unwrap();
    let mut batch = consumer.fetch().max_messages(1).messages().await.unwrap();
    let message = futures::StreamExt::next(&mut batch).await.unwrap().unwrap();
    message.ack().await.unwrap();
    assert!(plain.is_content().await);
}

#[tokio::test]
async fn a_catch_up_begins_at_the_floor_again_after_one_that_broke_off() {
    let world = World::start().await;
    let operator = world.operator("alice").await;
    for number in 0..7 {
        operator.store("ship1.command.shellcommand.os", number.to_string()).await;
    }
    let ship1 = message::NodeName::new("ship1").unwrap();
    let creds = world.keys.node_user("ship1", &nkeys::KeyPair::new_user()).unwrap();
    let bus = bus::Bus::connect(bus::ConnectOptions {
        server: world.broker.client_url(),
        ca: None,
        credentials: bus::Credentials::parse(&creds.render(), "test").unwrap(),
        name: "ship1".into(),
        inbox_prefix: Some(creds.inbox_prefix().unwrap()),
        patient: false,
        ping_interval: std::time::Duration::from_secs(10),
        api_prefix: bus::EDGE_API,
    })
    .await
    .unwrap();
    let mut broken_off = bus::live::catch_up(&bus, &ship1, 0).await.unwrap();
    assert_eq!(broken_off.next().await.unwrap().unwrap().payload, "0");
    drop(broken_off);
    let mut again = bus::live::catch_up(&bus, &ship1, 0).await.unwrap();
    let mut seen = Vec::new();
    while let Some(order) = again.next().await.unwrap() {
        seen.push(String::from_utf8(order.payload.to_vec()).unwrap());
    }
    assert_eq!(seen, ["0", "1", "2", "3", "4", "5", "6"]);
    // From another floor as well, at once.
    let mut later = bus::live::catch_up(&bus, &ship1, 5).await.unwrap();
    assert_eq!(later.next().await.unwrap().unwrap().payload, "5");
}
