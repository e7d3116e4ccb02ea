use std::time::Duration;

use ::fleet::{EventLine, JobSummary, Node};
use message::{NodeState, Spell, State, Vitality};
use serde_json::json;

use super::*;
use crate::api::query::{EVENT_PARAMS, JOB_PARAMS, NODE_PARAMS, Params};
use crate::lookup::NodeJob;
use crate::made_up;
use crate::view::{Group, NODE_STATES, NodePage as Found};

const HOSTILE: &str = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>";

fn at(ms: i64) -> Timestamp {
    Timestamp::from_ms(1_795_348_800_000 + ms)
}

fn made_node(name: &str, state: NodeState) -> Node {
    let facts = [("os".to_owned(), json!({"id": "debian"}))].into_iter().collect();
    Node {
        record: made_up::record(name, &made_up::key(1)),
        sign: Some(made_up::sign(name)),
        facts: Some(message::Facts::new(NodeName::new(name).unwrap(), at(0), facts)),
        last_seen: Some(at(0)),
        vitality: Vitality { state, reason: None },
        age: Some(Duration::from_secs(4)),
    }
}

fn head() -> Head {
    Head {
        station: NodeName::new("central").unwrap(),
        server: "nats://127.0.0.1:4222".into(),
        freshness: Freshness::Live,
        now: at(4_000),
        as_of: Some(at(4_000)),
        who: Some("anna".into()),
    }
}

/// Everything that pages show, with `text` wherever somebody else may have written it.
struct Made {
    nodes: Vec<Node>,
    jobs: Vec<JobSummary>,
    events: Vec<EventLine>,
    groups: Vec<Group>,
    order: serde_json::Value,
    query: Params,
}

impl Made {
    fn new(text: &str) -> Self {
        let mut nodes = vec![made_node("ship1", NodeState::Online), made_node("ship2", NodeState::Offline)];
        let node = &mut nodes[0];
        node.record.labels.insert(text.into(), text.into());
        node.record.by = text.into();
        node.vitality.reason = Some(text.into());
        if let Some(sign) = &mut node.sign {
            sign.version = text.into();
        }
        if let Some(facts) = &mut node.facts {
            facts.facts[text] = json!(text);
        }
        let mut job = made_up::job(&[(State::Succeeded, 2), (State::TimedOut, 1)]);
        job.by = text.into();
        job.method = message::Token::method("<b&").unwrap();
        let mut event = made_up::event("1", text);
        event.record.insert(text.into(), text.into());
        let groups = vec![
            Group { value: Some(text.into()), counts: vec![(NodeState::Online, 3), (NodeState::Offline, 1)] },
            Group { value: None, counts: vec![(NodeState::Offline, 1)] },
        ];
        let order = json!({"name": "ship1", "state": "failed", "reason": text, "exit_code": 3, "stdout": text,
            "stderr": format!("{text}\n{text}"), "data": {"x": text}, "output_broken": text});
        let pair = form_urlencoded::Serializer::new(String::new()).append_pair("selector", text).finish();
        Self {
            nodes,
            jobs: vec![job],
            events: vec![event],
            groups,
            order,
            query: Params::read(Some(&pair), &NODE_PARAMS).unwrap(),
        }
    }

    fn pages(&self) -> Vec<Page> {
        let counts: Vec<_> = NODE_STATES.map(|state| (state, usize::from(state == NodeState::Online))).to_vec();
        let found = Found { nodes: self.nodes.clone(), next: "0.ship2".parse().ok(), counts: Some(counts.clone()) };
        let now = at(4_000);
        let done = NodeJob {
            job: self.jobs[0].job.clone(),
            method: self.jobs[0].method.clone(),
            domain: self.jobs[0].domain.clone(),
            state: State::Failed,
            at: at(0),
            reason: Some(self.jobs[0].by.clone()),
            exit_code: Some(3),
        };
        let spell = |state, since| Spell { state, reason: Some(self.jobs[0].by.clone()), since };
        let spells = [spell(NodeState::Offline, at(0)), spell(NodeState::Online, at(1_000))];
        let job_head = json!({"job": "01k", "by": self.jobs[0].by, "method": self.jobs[0].method, "domain": "d",
            "created_at": at(0), "counts": {"failed": 1, "running": 2}});
        let none = Params::default();
        let shown =
            FleetPage { all: &counts, params: &self.query, page: &found, groups: Some((&self.groups, true)), now };
        let job_page = JobPage {
            head: job_head.as_object().unwrap(),
            nodes: std::slice::from_ref(&self.order),
            next: None,
            params: &none,
            now,
        };
        vec![
            fleet(&shown, &[self.jobs[0].by.clone()]),
            node(&NodePage {
                node: &self.nodes[0],
                history: Ok(&spells),
                jobs: Ok(&[done]),
                events: Some(&self.events),
                facts: true,
                now,
            }),
            jobs(&self.jobs, 7, &Params::read(Some("by=x"), &JOB_PARAMS).unwrap(), now),
            job(&job_page),
            job_node("01k", &self.order, now),
            events(&EventsPage {
                events: &self.events,
                params: &Params::read(Some("grep=x"), &EVENT_PARAMS).unwrap(),
                more: true,
                now,
            }),
            problem(Tab::Fleet, "Bad Request", &self.jobs[0].by),
        ]
    }

    fn documents(&self, head: &Head) -> Vec<String> {
        self.pages().iter().map(|page| page.document(head).into_string()).collect()
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
    let stale = Freshness::Stale { reason: HOSTILE.into(), age: Duration::from_secs(70) };
    let head = Head { server: HOSTILE.into(), freshness: stale, who: Some(HOSTILE.into()), ..head() };
    let mut documents = Made::new(HOSTILE).documents(&head);
    documents.push(log_in(&head.station, Some(HOSTILE)).into_string());
    for text in documents {
        assert!(!text.contains("<img src=x") && !text.contains("alert(1)</script>") && !text.contains("<b&"), "{text}");
        assert!(text.contains("&lt;script&gt;alert(1)"));
        assert_eq!(text.matches("<script").count(), 1);
        check_nesting(&text);
    }
}

#[test]
fn nothing_in_a_page_needs_inline_style_or_script() {
    for text in Made::new("x").documents(&head()) {
        assert!(!text.contains("style=") && !text.contains("<style") && !text.contains("javascript:"));
        let attributes =
            text.split('<').skip(1).filter_map(|rest| rest.split('>').next()).flat_map(|tag| tag.split(' ').skip(1));
        assert_eq!(attributes.filter(|attribute| attribute.starts_with("on") && attribute.contains('=')).count(), 0);
        assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("\"//"));
        check_nesting(&text);
    }
}

#[test]
fn every_field_has_a_label_and_every_heading_its_own_name() {
    for text in Made::new("x").documents(&head()) {
        for (place, _) in text.match_indices("<input").chain(text.match_indices("<select")) {
            let (before, field) = text.split_at(place);
            let labelled =
                before.rfind("<label").is_some_and(|label| before.rfind("</label").is_none_or(|end| end < label));
            assert!(labelled, "{field}");
        }
        let mut ids: Vec<&str> = text.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all, "an id stands twice: {ids:?}");
        assert_eq!(text.matches("<h1").count(), 1);
    }
}

#[test]
fn states_are_words_and_everything_has_its_age() {
    let pages = Made::new("it began").documents(&head());
    let shows = |page: usize, shown: &[&str]| {
        for shown in shown {
            assert!(pages[page].contains(shown), "{shown}: {}", pages[page]);
        }
    };
    shows(
        0,
        &[
            "online",
            "offline",
            "4s ago",
            "site=oslo",
            "1 / 2",
            "Next page",
            "href=\"/nodes/ship1\"",
            "3 online, 1 offline",
        ],
    );
    shows(1, &["it began", "os.id", "debian", "failed", "exit code 3", "4s ago", "nginx"]);
    shows(2, &["2 succeeded, 1 timed out", "3 in all", "1 of 7", r#"<rect class="succeeded" x="0" y="0" width="666""#]);
    shows(3, &["1 failed", "2 running", "exit code 3", "href=\"/jobs/01k/nodes/ship1\"", "data-every"]);
    shows(4, &["stdout", "it began\nit began", "Answer"]);
    shows(5, &["it began", "there are more", "newest first"]);
    // What has ended is not asked for again.
    assert!(!pages[4].contains("data-every"));
}

#[test]
fn a_view_that_is_not_up_to_date_says_so_and_an_empty_one_shows_no_tables() {
    let stale = Freshness::Stale { reason: "no broker answers".into(), age: Duration::from_millis(75_900) };
    let page = Made::new("x").pages().remove(0);
    let text = page.part(&Head { freshness: stale, ..head() }).into_string();
    assert!(text.contains("no broker answers") && text.contains("1m 15s ago") && text.contains("<table"));
    let empty = Freshness::Empty { reason: "the nodes are being read".into() };
    let text = page.part(&Head { freshness: empty, ..head() }).into_string();
    assert!(text.contains("the nodes are being read") && !text.contains("<table"));
}

#[test]
fn long_and_invisible_text_is_tamed() {
    let long = format!("a\u{1b}[31m\u{202e}{}", "x".repeat(5_000));
    let text = Made::new(&long).documents(&head()).remove(5);
    assert!(text.contains('…') && !text.contains('\u{1b}') && !text.contains('\u{202e}'));
    assert!(text.len() < 20_000);
}
