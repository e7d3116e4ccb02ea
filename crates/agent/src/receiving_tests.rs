use bus::Headers;
use bytes::Bytes;
use message::event::EventHead;
use message::registry::NodeKind;
use message::sign::SealedDocument;
use message::trust::TrustKind;
use message::{Kind, MessageId, NodeName, Operator, Seal, Timestamp, Token, WIRE_VERSION};
use nkeys::{KeyPair, KeyPairType};
use proptest::prelude::*;

use super::*;

fn pair(byte: u8) -> KeyPair {
    KeyPair::new_from_raw(KeyPairType::User, [byte; 32]).unwrap()
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

const OPERATOR: u8 = 1;
const ME: u8 = 2;
const SENDER: u8 = 3;

fn me() -> Addressee {
    Addressee { name: name("ship2"), key: PublicKey::of(&pair(ME)) }
}

fn trust() -> Trust {
    let operators = vec![Operator::admin("anna", PublicKey::of(&pair(OPERATOR)))];
    Trust {
        v: 1,
        kind: TrustKind::Trust,
        serial: 1,
        issued: Timestamp::from_ms(0),
        operators,
        policy_keys: vec![],
        revoked: vec![],
    }
}

fn record(of: &str, key: u8) -> NodeRecord {
    NodeRecord {
        v: WIRE_VERSION,
        kind: NodeKind::Node,
        name: name(of),
        key: PublicKey::of(&pair(key)),
        labels: Default::default(),
        enrolled: Timestamp::from_ms(0),
        by: "anna".into(),
        changed: None,
        revoked: None,
    }
}

fn introduction(record: &NodeRecord, signer: u8) -> String {
    let document = serde_json::to_string(record).unwrap();
    serde_json::to_string(&SealedDocument::new(document, &pair(signer)).unwrap()).unwrap()
}

/// What comes from `from`, signed by `signer`, stored by the broker at 1000 ms.
fn sent(from: &str, signer: u8, introduction: Option<&str>) -> Message {
    let head = EventHead {
        v: WIRE_VERSION,
        kind: Kind::Event,
        id: MessageId::from_bytes([9; 16]),
        from: name(from),
        to: name("ship2"),
        method: Token::method("m").unwrap(),
        domain: Token::domain("d").unwrap(),
        created: Timestamp::from_ms(0),
        count: 1,
        journal: None,
        row: None,
    };
    let head = serde_json::to_string(&head).unwrap();
    let payload = Bytes::from(format!("{head}\n{{\"at\":\"2026-11-24T00:00:00.000Z\",\"record\":{{\"n\":1}}}}\n"));
    let mut headers = Headers::new().sealed(&Seal::over(&payload, &pair(signer)).unwrap());
    if let Some(introduction) = introduction {
        headers = headers.with(INTRODUCTION_HEADER, introduction);
    }
    Message::new("ship2.event.m.d", 7, Timestamp::from_ms(1000), payload, headers)
}

fn refusal(message: Message) -> String {
    received(message, &me(), &trust()).batch.expect_err("it is believed")
}

#[test]
fn who_is_introduced_by_an_operator_is_believed_and_so_are_this_node_and_who_reports_for_the_station() {
    let shown = introduction(&record("ship1", SENDER), OPERATOR);
    for message in [sent("ship1", SENDER, Some(&shown)), sent("ship2", ME, None), sent("central", OPERATOR, None)] {
        let received = received(message, &me(), &trust());
        assert_eq!((received.sequence, received.batch.unwrap().lines().count()), (7, 1));
    }
}

#[test]
fn everybody_else_is_not() {
    let good = introduction(&record("ship1", SENDER), OPERATOR);
    assert!(refusal(sent("ship1", SENDER, None)).contains("no introduction"));
    // In another's name: with one's own introduction, with the other's, with one that one made oneself.
    assert!(refusal(sent("ship3", SENDER, Some(&good))).contains("does not speak for ship3"));
    let others = introduction(&record("ship3", 4), OPERATOR);
    assert!(refusal(sent("ship3", SENDER, Some(&others))).contains("does not speak for ship3"));
    let own = introduction(&record("ship3", SENDER), SENDER);
    assert!(refusal(sent("ship3", SENDER, Some(&own))).contains("no operator"));
    assert!(refusal(sent("ship2", SENDER, Some(&good))).contains("does not speak for ship2"));
    assert!(refusal(sent("central", SENDER, Some(&good))).contains("does not speak for central"));
    assert!(refusal(sent("ship1", OPERATOR, None)).contains("no introduction"));
    // Altered, endless, none.
    let altered = good.replace("ship1", "ship3");
    assert!(refusal(sent("ship3", SENDER, Some(&altered))).contains("not believed"));
    assert!(refusal(sent("ship1", SENDER, Some(&"x".repeat(70_000)))).contains("70000 bytes"));
    assert!(refusal(sent("ship1", SENDER, Some("{}"))).contains("not believed"));
    // Of one who was revoked before it was stored; what he said before counts.
    let revoked = |at: i64| {
        let record = NodeRecord { revoked: Some(Timestamp::from_ms(at)), ..record("ship1", SENDER) };
        sent("ship1", SENDER, Some(&introduction(&record, OPERATOR)))
    };
    assert!(refusal(revoked(1000)).contains("does not speak"));
    assert!(received(revoked(1001), &me(), &trust()).batch.is_ok());
    let unsigned = Message::new("ship2.event.m.d", 7, Timestamp::from_ms(0), Bytes::from_static(b"x"), Headers::new());
    assert!(received(unsigned, &me(), &trust()).batch.is_err());
}

#[test]
fn only_what_somebody_wants_is_asked_for() {
    for (names, expected) in [
        (vec!["log"], "log"),
        (vec!["log", "log"], "log"),
        (vec!["log", "report"], "*"),
        (vec!["l*"], "*"),
        (vec!["log", "*"], "*"),
    ] {
        assert_eq!(common(names.iter().copied()), expected, "{names:?}");
    }
}

proptest! {
    /// Several receivers, each at a place of its own, and a reader that begins anew behind any place: whoever asks gets all that is
    /// behind his place and has been read, in order, or nothing.
    #[test]
    fn the_window_gives_all_or_nothing(
        low in 0_u64..50, gaps in proptest::collection::vec((1_u64..4, 0_usize..400_000), 0..150), after in 0_u64..400,
    ) {
        let mut window = Window::new(low);
        let mut read = Vec::new();
        let mut sequence = low;
        for (gap, bytes) in gaps {
            sequence += gap;
            read.push(sequence);
            let payload = Bytes::from(vec![0; bytes]);
            window.push(Message::new("s", sequence, Timestamp::from_ms(0), payload, Headers::new()));
            prop_assert!(window.messages.len() <= WINDOW_MESSAGES_MAX);
            prop_assert!(window.bytes <= WINDOW_BYTES_MAX || window.messages.len() == 1);
        }
        prop_assert_eq!(window.high(), sequence);
        if let Some(given) = window.behind(after) {
            let given: Vec<u64> = given.iter().map(|message| message.sequence).collect();
            let all: Vec<u64> = read.iter().copied().filter(|sequence| *sequence > after).collect();
            prop_assert!(!given.is_empty() && after >= low);
            prop_assert_eq!(given, all);
        } else {
            prop_assert!(after >= sequence || after < window.low);
        }
    }
}
