use std::time::Duration;

use fleet::Node;
use message::{State, Timestamp, Vitality};

use super::*;
use crate::made_up;

const HOSTILE: &str = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>";

fn node(name: &str, state: NodeState) -> Node {
    Node {
        record: made_up::record(name, &made_up::key(1)),
        sign: Some(made_up::sign(name)),
        facts: None,
        last_seen: Some(Timestamp::from_ms(1_795_348_800_000)),
        vitality: Vitality { state, reason: None },
        age: Some(Duration::from_secs(4)),
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        station: message::NodeName::new("central").unwrap(),
        server: "nats://127.0.0.1:4222".into(),
        freshness: Freshness::Live,
        now: Timestamp::from_ms(1_795_348_804_000),
        as_of: Some(Timestamp::from_ms(1_795_348_804_000)),
        node_counts: vec![(NodeState::Online, 1), (NodeState::Offline, 1)],
        nodes: vec![node("ship1", NodeState::Online), node("ship2", NodeState::Offline)],
        job_total: 1,
        jobs: vec![made_up::job(&[(State::Succeeded, 2), (State::TimedOut, 1)])],
        events: vec![made_up::event("1", "it began")],
    }
}

/// The text is well-formed as far as tags go: each that is opened is closed, in order.
fn check_nesting(text: &str) {
    let mut open = Vec::new();
    for tag in text.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
        let name = tag.split([' ', '\n']).next().unwrap();
        if tag.starts_with('!') || ["meta", "link", "img", "input", "br"].contains(&name) {
            continue;
        }
        match name.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed), "{tag}"),
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn what_others_wrote_is_shown_and_never_obeyed() {
    let mut hostile = snapshot();
    hostile.server = HOSTILE.into();
    hostile.nodes[0].record.labels.insert(HOSTILE.into(), HOSTILE.into());
    hostile.nodes[0].vitality.reason = Some(HOSTILE.into());
    if let Some(sign) = &mut hostile.nodes[0].sign {
        sign.version = HOSTILE.into();
    }
    hostile.jobs[0].by = HOSTILE.into();
    hostile.jobs[0].method = message::Token::method("<b&").unwrap();
    hostile.events = vec![made_up::event("1", HOSTILE)];
    hostile.events[0].record.insert(HOSTILE.into(), HOSTILE.into());
    hostile.freshness = Freshness::Stale { reason: HOSTILE.into(), age: Duration::from_secs(70) };
    let text = document(&hostile).into_string();
    assert!(!text.contains("<img src=x") && !text.contains("alert(1)</script>") && !text.contains("<b&"));
    assert!(text.contains("&lt;script&gt;alert(1)"));
    assert_eq!(text.matches("<script").count(), 1);
    check_nesting(&text);
}

#[test]
fn nothing_in_the_page_needs_inline_style_or_script() {
    let text = document(&snapshot()).into_string();
    assert!(!text.contains("style=") && !text.contains("<style") && !text.contains("javascript:"));
    let attributes =
        text.split('<').skip(1).filter_map(|rest| rest.split('>').next()).flat_map(|tag| tag.split(' ').skip(1));
    assert_eq!(attributes.filter(|attribute| attribute.starts_with("on") && attribute.contains('=')).count(), 0);
    assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("\"//"));
    check_nesting(&text);
}

#[test]
fn states_are_words_and_everything_has_its_age() {
    let text = fragment(&snapshot()).into_string();
    for shown in
        ["online", "offline", "4s ago", "2 succeeded, 1 timed out", "3 in all", "site=oslo", "it began", "1 / 2"]
    {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    assert!(text.contains(r#"<rect class="succeeded" x="0" y="0" width="666""#), "{text}");
}

#[test]
fn a_view_that_is_not_up_to_date_says_so_and_an_empty_one_shows_no_tables() {
    let stale = Freshness::Stale { reason: "no broker answers".into(), age: Duration::from_millis(75_900) };
    let text = fragment(&Snapshot { freshness: stale, ..snapshot() }).into_string();
    assert!(text.contains("no broker answers") && text.contains("1m 15s ago") && text.contains("<table"));
    let empty = Freshness::Empty { reason: "the nodes are being read".into() };
    let text = fragment(&Snapshot { freshness: empty, ..snapshot() }).into_string();
    assert!(text.contains("the nodes are being read") && !text.contains("<table"));
}

#[test]
fn long_and_invisible_text_is_tamed() {
    let mut long = snapshot();
    long.events = vec![made_up::event("1", &format!("a\u{1b}[31m\u{202e}{}", "x".repeat(5_000)))];
    let text = fragment(&long).into_string();
    assert!(text.contains('…') && !text.contains('\u{1b}') && !text.contains('\u{202e}'));
    assert!(text.len() < 20_000);
}
