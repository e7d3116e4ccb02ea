//! What the claims refuse, tried against the real nats-server.
#![allow(clippy::unwrap_used)] // in the functions that tests share, too

mod world;

use std::time::Duration;

use async_nats::HeaderMap;
use bus::claims::Creds;
use serde_json::json;
use world::{World, catch_up, header, next};

#[tokio::test]
async fn a_node_may_not_catch_up_on_what_is_not_its_own() {
    let world = World::start().await;
    let (alice, ship1) = (world.operator("alice").await, world.node("ship1").await);
    alice.store("ship2.command.shell.os", "secret").await;
    let own = "core.API.CONSUMER.CREATE.COMMANDS.ship1.ship1.command.>";
    for filter in ["ship2.command.>", ">", ""] {
        let refused = ship1.ask_json(own, catch_up("ship1", filter, 1).to_string()).await;
        assert!(refused["error"].is_object(), "{filter}: {refused}");
    }
    // Of a name in the subject and another in the body, the subject's counts, or neither.
    for key in ["name", "durable_name"] {
        let mut renamed = catch_up("ship1", "ship1.command.>", 1);
        renamed["config"][key] = json!("ship2");
        let answer = ship1.ask_json(own, renamed.to_string()).await;
        assert!(answer["error"].is_object() || answer["name"] == "ship1", "{answer}");
    }
    let mut several = catch_up("ship1", "ship1.command.>", 1);
    several["config"]["filter_subjects"] = json!(["ship1.command.>", "ship2.command.>"]);
    let refused = ship1.ask_json(own, several.to_string()).await;
    assert!(refused["error"].is_object(), "{refused}");
    for stream in ["REPLIES", "KV_NODES"] {
        let mut other = catch_up("ship1", "ship1.command.>", 1);
        other["stream_name"] = json!(stream);
        let refused = ship1.ask_json(own, other.to_string()).await;
        assert!(refused["error"].is_object(), "{stream}: {refused}");
    }
    for subject in [
        "core.API.CONSUMER.CREATE.COMMANDS.ship2.ship1.command.>",
        "core.API.CONSUMER.CREATE.COMMANDS.ship1.ship2.command.>",
        "core.API.CONSUMER.CREATE.COMMANDS.ship1",
        "core.API.CONSUMER.CREATE.REPLIES.ship1.ship1.command.>",
        "core.API.CONSUMER.MSG.NEXT.COMMANDS.ship2",
        "core.API.CONSUMER.DELETE.COMMANDS.ship2",
        "core.API.CONSUMER.DELETE.COMMANDS.archive",
    ] {
        assert!(ship1.may_not_publish(subject).await, "{subject}");
    }
}

#[tokio::test]
async fn a_node_keeps_its_life_sign_and_no_other() {
    let world = World::start().await;
    let (alice, ship1) = (world.operator("alice").await, world.node("ship1").await);
    let put = async |expected: &str, value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected);
        let answer = ship1.ask_with("$KV.PRESENCE.ship1", headers, value).await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&answer.payload).unwrap()
    };
    let first = put("0", "here").await;
    assert_eq!((first["stream"].as_str(), first["seq"].as_u64()), (Some("KV_PRESENCE"), Some(1)), "{first}");
    let stale = put("0", "a clone").await;
    assert_eq!(stale["error"]["err_code"], 10071, "{stale}"); // wrong last sequence
    assert_eq!(put("1", "still here").await["seq"], 2);
    let read = ship1.ask("core.API.DIRECT.GET.KV_PRESENCE.$KV.PRESENCE.ship1", "").await.unwrap();
    assert_eq!((read.payload.as_ref(), header(&read, "Nats-Sequence")), (b"still here".as_slice(), "2"));
    assert_eq!(alice.last("KV_PRESENCE", "$KV.PRESENCE.ship1").await.as_deref(), Some("still here"));
    assert!(ship1.may_not_publish("$KV.PRESENCE.ship2").await);
}

#[tokio::test]
async fn a_roll_up_is_refused() {
    let world = World::start().await;
    let (ship1, ship2) = (world.node("ship1").await, world.node("ship2").await);
    ship2.ask("$KV.PRESENCE.ship2", "here").await.unwrap();
    for (subject, range) in [
        ("$KV.PRESENCE.ship1", "all"),
        ("$KV.PRESENCE.ship1", "sub"),
        ("central.event.m.d", "all"),
        ("alice.reply.JOB.ship1", "all"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", range);
        let answer = ship1.ask_with(subject, headers, "purge").await.unwrap();
        assert!(String::from_utf8_lossy(&answer.payload).contains("\"error\""), "{subject} {range}");
    }
    assert_eq!(world.operator("alice").await.last("KV_PRESENCE", "$KV.PRESENCE.ship2").await.as_deref(), Some("here"));
}

#[tokio::test]
async fn a_node_may_not_speak_for_others_or_read_theirs() {
    let world = World::start().await;
    let (alice, ship1) = (world.operator("alice").await, world.node("ship1").await);
    let before = alice.contents().await;
    for subject in [
        "ship2.command.shell.os",
        "ship1.command.shell.os",
        "in.ship2.command.shell.os",
        "in.alice.reply.JOB.ship2",
        "in.alice.output.JOB.ship2",
        "$KV.NODES.ship1",
        "$KV.POLICY.current",
        "$KV.META.epoch",
        "$KV.FACTS.ship2",
        "core.API.DIRECT.GET.KV_FACTS.$KV.FACTS.ship2",
        "$KV.HISTORY.ship2",
        "core.API.DIRECT.GET.KV_HISTORY.$KV.HISTORY.ship1",
        "core.API.DIRECT.GET.KV_NODES.$KV.NODES.ship2",
        "core.API.DIRECT.GET.KV_PRESENCE.$KV.PRESENCE.ship2",
        "core.API.DIRECT.GET.KV_NODES",
        "core.API.DIRECT.GET.KV_META.$KV.META.lease.x",
        "core.API.DIRECT.GET.COMMANDS.ship1.command.shell.os",
        "core.API.STREAM.DELETE.COMMANDS",
        "$JS.API.INFO",
        "$JS.API.STREAM.LIST",
        "$SYS.REQ.SERVER.PING",
        "_INBOX.ship2.x",
        "_INBOX_alice.x",
        "steward.boot",
    ] {
        assert!(ship1.may_not_publish(subject).await, "{subject}");
    }
    for subject in [
        ">",
        "*.command.*.*",
        "ship2.command.*.*",
        "ship1.command.>",
        "*.reply.*.*",
        "*.event.*.*",
        "in.>",
        "_INBOX.>",
        "_INBOX.ship2.>",
        "_INBOX.*",
        "$KV.NODES.ship2",
        "$KV.NODES.*",
        "$KV.PRESENCE.>",
        "$JS.EVENT.>",
        "$SYS.>",
    ] {
        assert!(ship1.may_not_subscribe(subject).await, "{subject}");
    }
    // What is mapped is refused under the mapped name.
    ship1.client.publish("alice.reply.JOB.ship2", "forged".into()).await.unwrap();
    assert!(ship1.may_not_publish("in.alice.reply.JOB.ship2").await);
    assert_eq!(alice.contents().await, before);
}

/// NATS checks no permission on reply subjects: what the broker answers goes wherever the asker says.
#[tokio::test]
async fn answers_aimed_at_foreign_subjects_change_no_stream() {
    let world = World::start().await;
    let (alice, ship1, ship2) = (world.operator("alice").await, world.node("ship1").await, world.node("ship2").await);
    ship2.ask("$KV.PRESENCE.ship2", "here").await.unwrap();
    ship1.ask("$KV.PRESENCE.ship1", "from ship1").await.unwrap();
    alice.store("ship1.command.shell.os", "order").await;
    say_to_itself(&ship1).await;
    let aims = [
        "$KV.PRESENCE.ship2",
        "$KV.FACTS.ship2",
        "$KV.NODES.ship2",
        "$KV.POLICY.current",
        "in.ship2.command.shell.os",
        "ship2.command.shell.os",
        "in.alice.reply.JOB.ship2",
        "alice.reply.JOB.ship2",
        "in.central.event.m.d",
        "core.API.CONSUMER.DELETE.COMMANDS.ship2",
    ];
    // The life sign is stored at each try, and that is all that may change.
    let relevant = async || {
        let all = alice.contents().await;
        all.into_iter().filter(|(name, ..)| name != "KV_PRESENCE").collect::<Vec<_>>()
    };
    let before = relevant().await;
    for aim in aims {
        let read = |stream: &str, kind: &str| {
            let mut consumer = catch_up("ship1", &format!("ship1.{kind}.>"), 1);
            consumer["stream_name"] = json!(stream);
            [
                (format!("core.API.CONSUMER.CREATE.{stream}.ship1.ship1.{kind}.>"), consumer.to_string()),
                (
                    format!("core.API.CONSUMER.MSG.NEXT.{stream}.ship1"),
                    json!({"batch": 5, "no_wait": true}).to_string(),
                ),
                (format!("core.API.CONSUMER.DELETE.{stream}.ship1"), String::new()),
            ]
        };
        let more = [
            ("$KV.PRESENCE.ship1".to_owned(), "from ship1".to_owned()),
            ("core.API.DIRECT.GET.KV_PRESENCE.$KV.PRESENCE.ship1".to_owned(), String::new()),
        ];
        for (subject, body) in read("COMMANDS", "command").into_iter().chain(read("EVENTS", "event")).chain(more) {
            ship1.client.publish_with_reply(subject, aim, body.into()).await.unwrap();
        }
        ship1.client.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(relevant().await, before, "an answer aimed at {aim} was stored");
        assert_eq!(alice.last("KV_PRESENCE", "$KV.PRESENCE.ship2").await.as_deref(), Some("here"), "{aim}");
    }
}

/// A consumer that delivers by itself does so in CORE, where the streams are, but only where somebody listens to
/// exactly the subject it aims at. So nobody may listen to what is stored.
#[tokio::test]
async fn a_pushing_consumer_of_a_node_changes_no_stream() {
    let world = World::start().await;
    let (alice, ship1, ship2) = (world.operator("alice").await, world.node("ship1").await, world.node("ship2").await);
    let central = world.station("central").await;
    alice.store("ship1.command.shell.os", "order").await;
    say_to_itself(&ship1).await;
    let _own = ship2.listen("core.KV.NODES.ship2").await;
    let mut heard = alice.listen("ship2.command.shell.os").await;
    let _reply = alice.listen("alice.reply.JOB.ship2").await;
    let before = alice.contents().await;
    for aim in [
        "$KV.NODES.ship2",
        "$KV.PRESENCE.ship2",
        "$KV.POLICY.current",
        "$KV.META.epoch",
        "$JS.API.STREAM.PURGE.KV_META",
        "$JS.API.STREAM.DELETE.KV_META",
        "in.ship2.command.shell.os",
        "in.alice.reply.JOB.ship2",
        "in.central.event.m.d",
        "core.KV.NODES.ship2",
        "ship2.command.shell.os",
        "alice.reply.JOB.ship2",
        "steward.boot",
    ] {
        let stored = aim.starts_with('$') || aim.starts_with("in.") || aim == "steward.boot";
        for reader in [&alice, &central] {
            assert!(!stored || reader.may_not_subscribe(aim).await, "{aim}");
        }
        for (stream, kind) in [("COMMANDS", "command"), ("EVENTS", "event")] {
            let mut push = catch_up("ship1", &format!("ship1.{kind}.>"), 1);
            push["config"]["deliver_subject"] = json!(aim);
            push["stream_name"] = json!(stream);
            let create = format!("core.API.CONSUMER.CREATE.{stream}.ship1.ship1.{kind}.>");
            let answer = ship1.ask_json(&create, push.to_string()).await;
            let is_refused = answer["error"]["err_code"] == 10081; // it would form a cycle
            assert!(is_refused || answer["config"]["deliver_subject"] == aim, "{answer}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(alice.contents().await, before, "a consumer delivering to {aim} filled a stream: {answer}");
            ship1.ask(&format!("core.API.CONSUMER.DELETE.{stream}.ship1"), "").await;
        }
    }
    // What a node can do is to show its own order to those who listen live. It is not as one that was stored there.
    assert_eq!(header(&next(&mut heard).await.unwrap(), "Nats-Sequence"), "");
    // An event that it made up may look so, but for the signature: who listens live believes no header.
    assert_eq!(header(&next(&mut heard).await.unwrap(), "Nats-Sequence"), "1000000");
}

/// Stores an event for itself, with all headers of one who would like to be taken for the broker.
async fn say_to_itself(node: &world::Party) {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("Nats-Stream", "COMMANDS"),
        ("Nats-Subject", "ship2.command.shell.os"),
        ("Nats-Sequence", "1000000"),
        ("Nats-Last-Sequence", "0"),
        ("KV-Operation", "PURGE"),
    ] {
        headers.insert(name, value);
    }
    let answer = node.ask_with("ship1.event.m.d", headers, "made up").await.unwrap();
    assert!(String::from_utf8_lossy(&answer.payload).contains("EVENTS"));
}

#[tokio::test]
async fn a_node_reads_what_it_is_told_and_nothing_else() {
    let world = World::start().await;
    let (ship1, ship2) = (world.node("ship1").await, world.node("ship2").await);
    ship2.ask("ship1.event.m.d", "for ship1").await.unwrap();
    ship2.ask("central.event.m.d", "for the station").await.unwrap();
    let consumer = |name: &str, filter: &str| {
        let mut consumer = catch_up(name, filter, 1);
        consumer["stream_name"] = json!("EVENTS");
        consumer.to_string()
    };
    let create = "core.API.CONSUMER.CREATE.EVENTS.ship1.ship1.event.>";
    let answer = ship1.ask_json(create, consumer("ship1", "ship1.event.>")).await;
    assert_eq!(answer["num_pending"], 1, "{answer}");
    // The filter in the subject is the one that counts, whatever the body says.
    let answer = ship1.ask_json(create, consumer("ship1", "central.event.>")).await;
    assert!(answer["error"].is_object(), "{answer}");
    for subject in [
        "core.API.CONSUMER.CREATE.EVENTS.ship1.central.event.>",
        "core.API.CONSUMER.CREATE.EVENTS.ship2.ship1.event.>",
        "core.API.CONSUMER.CREATE.EVENTS.ship1",
        "core.API.CONSUMER.CREATE.EVENTS",
        "core.API.CONSUMER.DURABLE.CREATE.EVENTS.ship1",
        "core.API.CONSUMER.MSG.NEXT.EVENTS.ship2",
        "core.API.CONSUMER.DELETE.EVENTS.ship2",
        "core.API.DIRECT.GET.EVENTS.central.event.m.d",
        "core.API.STREAM.MSG.GET.EVENTS",
    ] {
        assert!(ship1.may_not_publish(subject).await, "{subject}");
    }
}

#[tokio::test]
async fn an_operator_may_not_destroy_streams_or_listen_to_others_answers() {
    let world = World::start().await;
    let alice = world.operator("alice").await;
    for subject in [
        "$JS.API.STREAM.DELETE.COMMANDS",
        "$JS.API.STREAM.PURGE.KV_JOBS",
        "$JS.API.STREAM.UPDATE.COMMANDS",
        "$JS.API.STREAM.MSG.DELETE.COMMANDS",
        "$JS.API.STREAM.CREATE.MINE",
        "$KV.PRESENCE.ship1",
        "$KV.META.epoch",
        "in.alice.reply.JOB.ship1",
    ] {
        assert!(alice.may_not_publish(subject).await, "{subject}");
    }
    assert!(alice.may_not_subscribe("_INBOX_bob.>").await);
    assert!(alice.may_not_subscribe("_INBOX_central.>").await);
}

#[tokio::test]
async fn a_station_neither_admits_nor_makes_policy_and_sends_on_what_others_signed() {
    let world = World::start().await;
    let central = world.station("central").await;
    for subject in [
        "$KV.NODES.ship1",
        "$KV.POLICY.current",
        "$KV.PRESENCE.ship1",
        "$KV.META.epoch",
        "in.alice.reply.JOB.ship1",
        "$JS.API.STREAM.DELETE.COMMANDS",
    ] {
        assert!(central.may_not_publish(subject).await, "{subject}");
    }
    assert!(central.may_not_subscribe("_INBOX.>").await);
    assert!(central.may_not_publish("$SRV.PING").await);
    assert!(central.may_not_publish("_INBOX_alice.x").await);
    assert!(central.may_not_subscribe("_INBOX_alice.>").await);
    assert_eq!(central.last("COMMANDS", ">").await, None);
    // That it may publish an order proves nothing to a node, which asks who has signed it.
    let ack = central.ask_json("ship1.command.shell.os", "an order that an operator signed").await;
    assert_eq!(ack["stream"], "COMMANDS", "{ack}");
    for subject in ["$KV.PRESENCE.central", "$KV.JOBS.J1", "$KV.META.lease.rollouts", "alice.reply.JOB.central"] {
        let ack = central.ask_json(subject, "x").await;
        assert!(ack["seq"].is_u64(), "{subject}: {ack}");
    }
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_at_once_and_stays_out() {
    let mut world = World::start().await;
    let key = nkeys::KeyPair::new_user();
    let creds: Creds = world.keys.node_user("ship1", &key).unwrap();
    let ship1 = world.connect(&creds).await;
    ship1.ask("$KV.PRESENCE.ship1", "here").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await; // revocation counts in seconds
    let claims = world.keys.revoke_node(&key.public_key()).unwrap();
    let system = world.connect(&world.keys.system_user().unwrap()).await;
    let answer = system.ask_json("$SYS.REQ.CLAIMS.UPDATE", claims).await;
    assert_eq!(answer["data"]["code"], 200, "{answer}");
    let out = async |url: String| world::Party::try_connect(&url, &creds, "_INBOX.ship1").await.is_err();
    assert!(out(world.broker.client_url()).await);
    // Neither the stored claims nor those of the keys' files let it in after a restart.
    let config = world.config();
    world.broker.stop().await;
    let broker = bus::broker::Broker::start(config).await.unwrap();
    assert!(out(broker.client_url()).await);
    broker.stop().await;
}
