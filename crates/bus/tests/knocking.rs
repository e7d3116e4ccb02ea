//! What somebody can do with an enrolment token at the broker, tried against the real nats-server: knock, and no more.
#![allow(clippy::unwrap_used)] // in the functions that tests share, too

mod world;

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use bus::claims::Creds;
use bus::keys::{knocker, knocker_inbox};
use nkeys::KeyPair;
use serde_json::json;
use world::{Party, SOON, World};

const ID: &str = "07070707070707070707070707070707";
const OTHER_ID: &str = "08080808080808080808080808080808";
const READ: &str = "knock.API.DIRECT.GET.KV_ADMISSIONS.$KV.ADMISSIONS";

/// A token's account, and the key that lets units in.
struct Token {
    account: String,
    signer: KeyPair,
    opened: i64,
}

fn unix_now() -> i64 {
    i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
}

async fn push(world: &World, jwt: String) {
    let system = world.connect(&world.keys.system_user().unwrap()).await;
    let answer = system.ask_json("$SYS.REQ.CLAIMS.UPDATE", jwt).await;
    assert_eq!(answer["data"]["code"], 200, "{answer}");
}

async fn token(world: &World, id: &str, uses: u32, seconds: i64) -> Token {
    let (account, signer, opened) = (KeyPair::new_account().public_key(), KeyPair::new_account(), unix_now());
    let jwt = world.keys.open_door(&account, id, &signer.public_key(), uses, opened + seconds).unwrap();
    push(world, jwt).await;
    Token { account, signer, opened }
}

impl Token {
    fn creds(&self, node: &KeyPair) -> Creds {
        knocker(&self.signer, &self.account, node).unwrap()
    }

    async fn try_unit(&self, world: &World, node: &KeyPair) -> Result<Party, async_nats::ConnectError> {
        let inbox = knocker_inbox(&node.public_key());
        Party::try_connect(&world.broker.client_url(), &self.creds(node), &inbox).await
    }

    async fn unit(&self, world: &World) -> (Party, String) {
        let node = KeyPair::new_user();
        (self.try_unit(world, &node).await.unwrap(), node.public_key())
    }
}

#[tokio::test]
async fn a_knock_is_stored_once_and_its_answer_read_by_nobody_else() {
    let world = World::start().await;
    let alice = world.operator("alice").await;
    let token = token(&world, ID, 5, 600).await;
    let ((one, one_key), (two, two_key)) = (token.unit(&world).await, token.unit(&world).await);
    let place = format!("knock.{ID}.{one_key}");
    assert_eq!(one.ask_json(&place, "mine").await["stream"], "KNOCKS");
    // Once is enough, also for itself: nothing is overwritten.
    let again = one.ask_json(&place, "other").await;
    assert!(again["error"]["description"].as_str().unwrap().contains("per subject"), "{again}");
    assert_eq!(alice.last("KNOCKS", &place).await.as_deref(), Some("mine"));
    assert!(two.may_not_publish(&place).await);

    // An operator answers: the one to whom it is addressed hears and reads it, and nobody else.
    let mut heard = one.client.subscribe(format!("core.KV.ADMISSIONS.accepted.{one_key}")).await.unwrap();
    one.ask(&format!("{READ}.accepted.{one_key}"), "").await.unwrap();
    let ack = alice.ask_json(&format!("$KV.ADMISSIONS.accepted.{one_key}"), "welcome").await;
    assert_eq!(ack["stream"], "KV_ADMISSIONS", "{ack}");
    assert_eq!(world::next(&mut heard).await.unwrap().payload.as_ref(), b"welcome");
    let read = one.ask(&format!("{READ}.accepted.{one_key}"), "").await.unwrap();
    assert_eq!(read.payload.as_ref(), b"welcome");
    for subject in [
        format!("{READ}.accepted.{one_key}"),
        format!("{READ}.accepted.*"),
        format!("{READ}.*.{two_key}"),
        format!("{READ}.>"),
        format!("{READ}.token.{ID}"),
        "knock.API.DIRECT.GET.KV_ADMISSIONS".to_owned(),
        "knock.API.DIRECT.GET.KV_NODES.$KV.NODES.ship1".to_owned(),
    ] {
        assert!(two.may_not_publish(&subject).await, "{subject}");
    }
    for subject in [
        format!("core.KV.ADMISSIONS.accepted.{one_key}"),
        "core.KV.ADMISSIONS.accepted.*".to_owned(),
        "core.KV.ADMISSIONS.>".to_owned(),
        "core.KV.POLICY.*".to_owned(),
        format!("_INBOX.{one_key}.>"),
        "_INBOX.>".to_owned(),
        format!("knock.{ID}.*"),
        "knock.>".to_owned(),
        ">".to_owned(),
    ] {
        assert!(two.may_not_subscribe(&subject).await, "{subject}");
    }
    // The call is for one key; what stands in its body must not widen it.
    for body in [
        json!({"last_by_subj": format!("$KV.ADMISSIONS.accepted.{one_key}")}),
        json!({"multi_last": ["$KV.ADMISSIONS.>"]}),
        json!({"next_by_subj": "$KV.ADMISSIONS.>", "batch": 10}),
        json!({"seq": 1}),
    ] {
        if let Some(answer) = two.ask(&format!("{READ}.accepted.{two_key}"), body.to_string()).await {
            assert_ne!(answer.payload.as_ref(), b"welcome", "{body}");
        }
    }
    // What was answered is taken away, and the place is free again.
    assert_eq!(alice.ask_json("$JS.API.STREAM.PURGE.KNOCKS", json!({"filter": place}).to_string()).await["purged"], 1);
    assert_eq!(one.ask_json(&place, "again").await["stream"], "KNOCKS");
}

#[tokio::test]
async fn a_token_is_good_for_nothing_but_knocking() {
    let world = World::start().await;
    let (alice, ship1) = (world.operator("alice").await, world.node("ship1").await);
    ship1.ask("$KV.PRESENCE.ship1", "here").await.unwrap();
    let (mine, foreign) = (token(&world, ID, 5, 600).await, token(&world, OTHER_ID, 5, 600).await);
    let ((thief, key), (victim, victim_key)) = (mine.unit(&world).await, foreign.unit(&world).await);
    let before = alice.contents().await;
    for subject in [
        format!("knock.{OTHER_ID}.{key}"),
        format!("knock.{OTHER_ID}.{victim_key}"),
        format!("knock.{ID}.*"),
        format!("knock.{ID}.{key}.more"),
        "ship1.command.shell.os".to_owned(),
        "in.ship1.command.shell.os".to_owned(),
        "central.event.m.d".to_owned(),
        "in.central.event.m.d".to_owned(),
        "in.alice.reply.JOB.ship1".to_owned(),
        "$KV.PRESENCE.ship1".to_owned(),
        "$KV.NODES.ship7".to_owned(),
        format!("$KV.ADMISSIONS.accepted.{key}"),
        format!("$KV.ADMISSIONS.token.{ID}"),
        "core.API.DIRECT.GET.KV_META.$KV.META.epoch".to_owned(),
        "core.API.DIRECT.GET.KV_POLICY.$KV.POLICY.trust".to_owned(),
        "$JS.API.INFO".to_owned(),
        "$JS.API.STREAM.PURGE.KNOCKS".to_owned(),
        "$SYS.REQ.USER.INFO".to_owned(),
        "$SYS.REQ.SERVER.PING".to_owned(),
        format!("_INBOX.{victim_key}.x"),
    ] {
        assert!(thief.may_not_publish(&subject).await, "{subject}");
    }
    for subject in ["*.command.*.*", "*.reply.*.*", "core.KV.NODES.*", "$SYS.>", "in.>"] {
        assert!(thief.may_not_subscribe(subject).await, "{subject}");
    }
    // NATS checks no rights on reply subjects: the broker's answers go where the asker says, and must be stored nowhere.
    let place = format!("knock.{ID}.{key}");
    for aim in [
        format!("knock.{ID}.{victim_key}"),
        format!("knock.{OTHER_ID}.{victim_key}"),
        format!("$KV.ADMISSIONS.accepted.{key}"),
        "$KV.NODES.ship1".to_owned(),
        "$KV.PRESENCE.ship1".to_owned(),
        "in.ship1.command.shell.os".to_owned(),
        "ship1.command.shell.os".to_owned(),
        "in.alice.reply.JOB.ship1".to_owned(),
        "$JS.API.STREAM.PURGE.KNOCKS".to_owned(),
    ] {
        for subject in [place.clone(), format!("{READ}.accepted.{key}")] {
            thief.client.publish_with_reply(subject, aim.clone(), "x".into()).await.unwrap();
        }
    }
    thief.ask(&format!("{READ}.accepted.{key}"), "").await.unwrap();
    let change = |after: Vec<(String, u64, u64)>| {
        after.into_iter().zip(&before).filter(|(now, then)| now != *then).map(|(now, _)| now).collect::<Vec<_>>()
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(change(alice.contents().await), [("KNOCKS".to_owned(), 1, 1)], "its own knock, and nothing else");
    // Neither roll-ups nor other headers, nor size, nor another's message id.
    for (name, value) in [("Nats-Rollup", "all"), ("Nats-Rollup", "sub"), ("Nats-TTL", "1s")] {
        let mut headers = HeaderMap::new();
        headers.insert(name, value);
        let answer = thief.ask_with(&place, headers, "purge").await.unwrap();
        assert!(String::from_utf8_lossy(&answer.payload).contains("\"error\""), "{name}: {answer:?}");
    }
    assert_eq!(victim.ask_json(&format!("knock.{OTHER_ID}.{victim_key}"), "x".repeat(3000)).await["stream"], "KNOCKS");
    thief.client.publish(place.clone(), "x".repeat(5000).into()).await.ok();
    thief.client.flush().await.ok();
    let deadline = Instant::now() + SOON;
    while thief.client.connection_state() == async_nats::connection::State::Connected && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(alice.last("KNOCKS", &place).await.as_deref(), Some("x"), "a longer one is not taken");
}

#[tokio::test]
async fn a_token_that_expired_or_was_revoked_lets_nobody_in() {
    let world = World::start().await;
    let gone = |party: Party| async move {
        let deadline = Instant::now() + Duration::from_secs(20);
        while party.client.connection_state() == async_nats::connection::State::Connected {
            assert!(Instant::now() < deadline, "the connection still stands");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // The broker's own clock ends it.
    let brief = token(&world, ID, 5, 3).await;
    let (party, _) = brief.unit(&world).await;
    gone(party).await;
    assert!(brief.try_unit(&world, &KeyPair::new_user()).await.is_err(), "expired");
    // Shut, it is shut for those who are in, and for users that say they are of tomorrow.
    let long = token(&world, OTHER_ID, 5, 600).await;
    let (party, _) = long.unit(&world).await;
    push(&world, world.keys.shut_door(&long.account, OTHER_ID, long.opened).unwrap()).await;
    gone(party).await;
    assert!(long.try_unit(&world, &KeyPair::new_user()).await.is_err(), "revoked");
    let node = KeyPair::new_user();
    let user = bus::claims::User::scoped(long.account.clone(), vec![]);
    let jwt = bus::claims::sign_at(&long.signer, &node.public_key(), "knock", user, unix_now() + 86_400).unwrap();
    let creds = Creds::new(jwt, &node).unwrap();
    assert!(Party::try_connect(&world.broker.client_url(), &creds, "_INBOX.x").await.is_err(), "of tomorrow");
    // Also after a restart of the broker.
    let config = world.config();
    world.broker.stop().await;
    let broker = bus::broker::Broker::start(config).await.unwrap();
    for token in [&brief, &long] {
        let node = KeyPair::new_user();
        let inbox = knocker_inbox(&node.public_key());
        assert!(Party::try_connect(&broker.client_url(), &token.creds(&node), &inbox).await.is_err());
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_token_that_is_good_outlives_the_broker_and_bounds_its_connections() {
    let world = World::start().await;
    let token = token(&world, ID, 1, 600).await;
    let mut inside = Vec::new();
    // Twice its uses, and 32.
    for _ in 0..34 {
        inside.push(token.try_unit(&world, &KeyPair::new_user()).await.unwrap());
    }
    assert!(token.try_unit(&world, &KeyPair::new_user()).await.is_err(), "one too many");
    drop(inside);
    // A user that gives itself rights is none.
    let node = KeyPair::new_user();
    let user = json!({
        "issuer_account": token.account, "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
        "pub": {"allow": [">"]}, "sub": {"allow": [">"]},
    });
    let jwt = bus::claims::sign(&token.signer, &node.public_key(), "x", user).unwrap();
    let creds = Creds::new(jwt, &node).unwrap();
    assert!(Party::try_connect(&world.broker.client_url(), &creds, "_INBOX.x").await.is_err());
    // The token's key signs no users of other accounts.
    for role in [bus::keys::Role::Operator, bus::keys::Role::Node, bus::keys::Role::System] {
        let node = KeyPair::new_user();
        let creds = knocker(&token.signer, world.keys.account_of(role), &node).unwrap();
        assert!(Party::try_connect(&world.broker.client_url(), &creds, "_INBOX.x").await.is_err(), "{role:?}");
    }
    let config = world.config();
    world.broker.stop().await;
    let broker = bus::broker::Broker::start(config).await.unwrap();
    let node = KeyPair::new_user();
    let inbox = knocker_inbox(&node.public_key());
    let party = Party::try_connect(&broker.client_url(), &token.creds(&node), &inbox).await.unwrap();
    let ack = party.ask_json(&format!("knock.{ID}.{}", node.public_key()), "x").await;
    assert_eq!(ack["stream"], "KNOCKS", "{ack}");
    broker.stop().await;
}
