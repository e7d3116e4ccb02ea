use message::{Pattern, PublicKey};

use super::*;
use crate::believe::Written;
use crate::made_up::{self, key};

fn written<'a>(name: &'a str, payload: &'a [u8], by: &nkeys::KeyPair) -> Written<'a> {
    Written { key: name, signer: Ok(PublicKey::of(by)), payload, stored: Timestamp::default() }
}

fn view() -> View {
    let mut view = View::default();
    let operator = key(1);
    for number in 1..=30 {
        let name = format!("ship{number}");
        let mut record = made_up::record(&name, &key(7));
        record.labels = [("site".to_owned(), if number % 3 == 0 { "oslo" } else { "kiel" }.to_owned())].into();
        if number == 30 {
            record.labels.clear();
        }
        let payload = serde_json::to_vec(&record).unwrap();
        view.register(&written(&name, &payload, &operator), &made_up::trust(&operator)).unwrap();
        if number <= 20 {
            let payload = serde_json::to_vec(&made_up::sign(&name)).unwrap();
            let stored = Timestamp::from_ms(100_000 + number);
            view.hear(&Written { stored, ..written(&name, &payload, &key(7)) }).unwrap();
            let facts = message::Facts::new(
                NodeName::new(&name).unwrap(),
                Timestamp::default(),
                [("cpus".to_owned(), number.into())].into_iter().collect(),
            );
            let payload = serde_json::to_vec(&facts).unwrap();
            view.learn(&written(&name, &payload, &key(7))).unwrap();
        }
    }
    view
}

fn clock() -> BrokerClock {
    BrokerClock { now: Timestamp::from_ms(101_000), booted: Timestamp::from_ms(0) }
}

fn ask(query: &NodeQuery) -> NodePage {
    view().page(query, clock(), Timestamp::from_ms(101_000)).unwrap()
}

fn names(page: &NodePage) -> Vec<String> {
    page.nodes.iter().map(|node| node.name().to_string()).collect()
}

fn query(limit: usize) -> NodeQuery {
    NodeQuery { limit, ..NodeQuery::default() }
}

#[test]
fn pages_follow_each_other_without_a_gap_in_every_order() {
    for sort in Sort::ALL {
        for counted in [false, true] {
            let mut query = NodeQuery { sort, counted, ..query(7) };
            let mut all = Vec::new();
            loop {
                let page = ask(&query);
                assert!(page.nodes.len() == 7 || page.next.is_none());
                all.extend(names(&page));
                match page.next {
                    // As it is handed out and comes back.
                    Some(next) => query.after = Some(next.to_string().parse().unwrap()),
                    None => break,
                }
            }
            let mut sorted = all.clone();
            sorted.sort();
            sorted.dedup();
            assert_eq!((all.len(), sorted.len()), (30, 30), "{sort:?}");
            match sort {
                Sort::Name => assert_eq!(all[..3], ["ship1", "ship2", "ship3"]),
                Sort::State | Sort::Seen => assert_eq!(all[..2], ["ship21", "ship22"]),
            }
        }
    }
    assert!("7".parse::<Place>().is_err() && "x.ship1".parse::<Place>().is_err() && "1.a b".parse::<Place>().is_err());
}

#[test]
fn all_that_is_said_has_to_hold_and_facts_are_read_where_they_are_asked_for() {
    let mut by = NodeQuery { counted: true, ..query(100) };
    by.selection.labels = Some("site=oslo".parse().unwrap());
    assert_eq!(ask(&by).nodes.len(), 9);
    by.selection.condition = Some("facts.cpus > 9".parse().unwrap());
    let page = ask(&by);
    assert_eq!(names(&page), ["ship12", "ship15", "ship18"]);
    assert_eq!(page.counts.unwrap().iter().map(|(_, count)| count).sum::<usize>(), 3);
    assert!(page.nodes[0].facts.is_none(), "nobody wanted to see them");
    by.selection.patterns = Pattern::parse_list("ship1*").unwrap();
    by.text = "IP15".into();
    by.facts = true;
    let page = ask(&by);
    assert_eq!(
        (names(&page), page.nodes[0].facts.as_ref().unwrap().facts["cpus"].as_i64()),
        (vec!["ship15".into()], Some(15))
    );
    let offline = NodeQuery { states: vec![NodeState::Offline], ..query(100) };
    assert_eq!(ask(&offline).nodes.len(), 10);
    assert!(ask(&offline).counts.is_none());
}

#[test]
fn an_expression_that_takes_too_long_is_an_error() {
    let list = vec!["1"; 150].join(",");
    let mut by = query(100);
    let body = format!("[{list}].exists(a, [{list}].exists(b, [{list}].exists(c, a + b + c < 0)))");
    by.selection.condition = Some(body.parse().unwrap());
    assert!(view().page(&by, clock(), clock().now).is_err());
}

#[test]
fn groups_tell_how_the_nodes_of_each_value_stand() {
    let (groups, more) = view().groups("site", &query(1), clock(), clock().now).unwrap();
    let told: Vec<_> = groups.iter().map(|group| (group.value.as_deref(), group.counts.clone())).collect();
    assert!(!more);
    assert_eq!(
        told,
        [
            (Some("kiel"), vec![(NodeState::Offline, 6), (NodeState::Online, 14)]),
            (Some("oslo"), vec![(NodeState::Offline, 3), (NodeState::Online, 6)]),
            (None, vec![(NodeState::Offline, 1)]),
        ]
    );
    assert_eq!(view().label_keys(3), ["site"]);
}
