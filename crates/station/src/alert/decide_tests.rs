use std::collections::HashMap as Map;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::Config;

const S: i64 = 1_000;

fn rules(text: &str) -> Vec<Rule> {
    Config::parse(text).unwrap_or_else(|error| panic!("{error}")).alert
}

fn rule(name: &str, text: &str) -> String {
    format!("[[alert]]\nname = \"{name}\"\ncommand = [\"cat\"]\n{text}\n")
}

fn at(s: i64) -> Timestamp {
    Timestamp::from_ms(s * S)
}

/// A fleet as the view shows it.
#[derive(Clone, Default)]
struct World {
    nodes: Vec<(NodeName, Labels, NodeState, Timestamp)>,
    jobs: Vec<JobStanding>,
}

impl World {
    fn set(&mut self, name: &str, state: NodeState, heard: Timestamp) {
        let name = NodeName::new(name).unwrap();
        self.nodes.retain(|(known, ..)| *known != name);
        let labels = [("site".to_owned(), "oslo".to_owned())].into();
        self.nodes.push((name, labels, state, heard));
    }

    fn look(&self, alerts: &mut Alerts, now: Timestamp, all_heard: bool) -> Vec<Notice> {
        let nodes = self.nodes.iter().map(|(name, labels, state, heard)| Standing {
            name,
            labels,
            state: *state,
            reason: (*state == NodeState::Degraded).then_some("journal: the disk is full"),
            heard: *heard,
        });
        let labels_of =
            |wanted: &NodeName| self.nodes.iter().find(|(name, ..)| name == wanted).map(|(_, labels, ..)| labels);
        alerts.look(now, nodes, &self.jobs, &labels_of, all_heard);
        alerts.memory.waiting.drain(..).collect()
    }
}

fn restarted(alerts: Alerts) -> Alerts {
    let stored = serde_json::to_vec(&alerts.memory).unwrap();
    let rules = alerts.rules;
    Alerts::new(rules, serde_json::from_slice(&stored).unwrap())
}

fn told(notices: &[Notice]) -> Vec<(Turn, &str)> {
    notices.iter().map(|n| (n.state, n.node.as_deref().or(n.job.as_deref()).unwrap())).collect()
}

#[test]
fn a_silent_node_is_told_once_after_its_time_and_its_return_once() {
    let mut alerts = Alerts::new(rules(&rule("silent", "when=\"offline\"\nfor=\"60s\"")), Memory::default());
    let mut world = World::default();
    world.set("ship1", NodeState::Offline, at(100));
    assert_eq!(world.look(&mut alerts, at(159), true), []);
    let begun = world.look(&mut alerts, at(160), true);
    assert_eq!(told(&begun), [(Turn::Firing, "ship1")]);
    assert!(begun[0].message.contains("nothing was heard of it for 1m"), "{}", begun[0].message);
    assert_eq!(world.look(&mut alerts, at(500), true), []);
    let mut alerts = restarted(alerts);
    // A broker that has just begun knows nobody: that is no end.
    world.set("ship1", NodeState::Unknown, at(100));
    assert_eq!(world.look(&mut alerts, at(501), true), []);
    world.set("ship1", NodeState::Online, at(502));
    let ended = world.look(&mut alerts, at(502), true);
    assert_eq!(told(&ended), [(Turn::Recovered, "ship1")]);
    assert_eq!((ended[0].episode.as_str(), ended[0].since), (begun[0].episode.as_str(), at(100)));
    assert_ne!(ended[0].id, begun[0].id);
    assert_eq!(world.look(&mut alerts, at(503), true), []);
}

#[test]
fn a_node_that_came_and_went_while_nobody_looked_begins_another_episode() {
    let mut alerts = Alerts::new(rules(&rule("silent", "when=\"offline\"\nfor=\"60s\"")), Memory::default());
    let mut world = World::default();
    world.set("ship1", NodeState::Offline, at(100));
    assert_eq!(world.look(&mut alerts, at(200), true).len(), 1);
    let mut alerts = restarted(alerts);
    world.set("ship1", NodeState::Offline, at(300));
    assert_eq!(told(&world.look(&mut alerts, at(310), true)), [(Turn::Recovered, "ship1")]);
    assert_eq!(told(&world.look(&mut alerts, at(360), true)), [(Turn::Firing, "ship1")]);
}

#[test]
fn a_node_that_is_revoked_or_taken_off_the_list_is_told_to_be_over() {
    let mut alerts = Alerts::new(rules(&rule("silent", "when=\"offline\"\nselector=\"site=oslo\"")), Memory::default());
    let mut world = World::default();
    world.set("ship1", NodeState::Offline, at(1));
    world.set("ship2", NodeState::Offline, at(1));
    assert_eq!(world.look(&mut alerts, at(100), true).len(), 2);
    world.set("ship1", NodeState::Revoked, at(1));
    world.nodes.retain(|(name, ..)| name.as_str() != "ship2");
    let over = world.look(&mut alerts, at(101), true);
    assert_eq!(told(&over), [(Turn::Recovered, "ship1"), (Turn::Recovered, "ship2")]);
    assert!(over[0].message.contains("revoked") && over[1].message.contains("no longer among"));
}

#[test]
fn a_complaint_counts_once_it_has_lasted_and_only_for_its_reason() {
    let text = rule("ill", "when=\"degraded\"\nfor=\"30s\"\nreason=\"*disk*\"")
        + &rule("x", "when=\"degraded\"\nreason=\"cloned\"");
    let mut alerts = Alerts::new(rules(&text), Memory::default());
    let mut world = World::default();
    world.set("ship1", NodeState::Degraded, at(100));
    assert_eq!(world.look(&mut alerts, at(100), true), []);
    // A short recovery begins the time anew, a restart of the station does not.
    world.set("ship1", NodeState::Online, at(110));
    assert_eq!(world.look(&mut alerts, at(110), true), []);
    world.set("ship1", NodeState::Degraded, at(120));
    assert_eq!(world.look(&mut alerts, at(120), true), []);
    let mut alerts = restarted(alerts);
    assert_eq!(world.look(&mut alerts, at(149), true), []);
    let begun = world.look(&mut alerts, at(150), true);
    assert_eq!(told(&begun), [(Turn::Firing, "ship1")]);
    assert_eq!((begun[0].since, begun[0].alert.as_str()), (at(120), "ill"));
    world.set("ship1", NodeState::Offline, at(150));
    assert_eq!(world.look(&mut alerts, at(300), true), []);
    world.set("ship1", NodeState::Online, at(301));
    assert_eq!(told(&world.look(&mut alerts, at(301), true)), [(Turn::Recovered, "ship1")]);
}

fn job(id: &str, created: i64, retry_of: Option<&str>, bad: u32, is_well: bool) -> JobStanding {
    JobStanding {
        job: id.into(),
        created: at(created),
        by: "admin".into(),
        method: "shellcommand".into(),
        domain: "operatingsystem".into(),
        retry_of: retry_of.map(ToOwned::to_owned),
        targets: 2,
        bad,
        failed: (0..bad).map(|number| NodeName::new(format!("ship{number}")).unwrap()).collect(),
        is_well,
    }
}

#[test]
fn a_failed_job_is_told_once_and_is_made_good_by_a_retry_of_a_retry() {
    let mut alerts = Alerts::new(rules(&rule("job", "when=\"job-failed\"\nmethod=\"shell*\"")), Memory::default());
    let mut world = World { jobs: vec![job("past", 1, None, 1, false)], ..World::default() };
    assert_eq!(world.look(&mut alerts, at(10), true), []);
    world.jobs.push(job("a", 11, None, 0, false));
    assert_eq!(world.look(&mut alerts, at(11), true), []);
    world.jobs[1].bad = 1;
    world.jobs[1].failed = vec![NodeName::new("ship0").unwrap()];
    let begun = world.look(&mut alerts, at(12), true);
    assert_eq!(told(&begun), [(Turn::Firing, "a")]);
    assert!(begun[0].message.contains("at 1 of 2 nodes: ship0"), "{}", begun[0].message);
    world.jobs[1].bad = 2;
    let mut alerts = restarted(alerts);
    assert_eq!(world.look(&mut alerts, at(13), true), []);
    world.jobs.push(job("b", 14, Some("a"), 1, false));
    assert_eq!(told(&world.look(&mut alerts, at(14), true)), [(Turn::Firing, "b")]);
    world.jobs.push(job("c", 15, Some("b"), 0, true));
    assert_eq!(told(&world.look(&mut alerts, at(16), true)).len(), 2);
    // What was told is not told again, also when the job is forgotten and comes back with a restart.
    let kept = std::mem::take(&mut world.jobs);
    assert_eq!(world.look(&mut alerts, at(17), true), []);
    world.jobs = kept;
    assert_eq!(world.look(&mut restarted(alerts), at(18), true), []);
}

#[test]
fn a_rule_for_some_nodes_is_about_jobs_that_failed_there() {
    let mut alerts = Alerts::new(rules(&rule("job", "when=\"job-failed\"\ntarget=\"ship1\"")), Memory::default());
    let mut world = World::default();
    world.set("ship0", NodeState::Online, at(1));
    world.set("ship1", NodeState::Online, at(1));
    world.look(&mut alerts, at(1), true);
    world.jobs = vec![job("a", 2, None, 1, false)];
    assert_eq!(world.look(&mut alerts, at(3), true), []);
    world.jobs = vec![job("a", 2, None, 2, false)];
    assert_eq!(told(&world.look(&mut alerts, at(4), true)), [(Turn::Firing, "a")]);
}

fn hear(alerts: &mut Alerts, from: &str, s: i64, message: &str) -> Vec<Notice> {
    let (from, labels, record) = (NodeName::new(from).unwrap(), Labels::new(), json!({"message": message}));
    alerts.hear(&Reported {
        stored: at(s),
        from: &from,
        labels: &labels,
        method: "syslogforwarding",
        domain: "nginx",
        record: &record,
    });
    alerts.memory.waiting.drain(..).collect()
}

#[test]
fn an_event_is_told_once_until_it_was_quiet() {
    let text = rule("oom", "when=\"event\"\ndomain=\"ng*\"\nwhere=\"record.message.contains('oom')\"\nquiet=\"60s\"");
    let mut alerts = Alerts::new(rules(&text), Memory::default());
    let world = World::default();
    world.look(&mut alerts, at(100), true);
    assert_eq!(hear(&mut alerts, "ship1", 99, "oom of the past"), []);
    assert_eq!(hear(&mut alerts, "ship1", 101, "all is well"), []);
    let begun = hear(&mut alerts, "ship1", 102, "oom");
    assert_eq!(told(&begun), [(Turn::Firing, "ship1")]);
    assert_eq!(begun[0].record, Some(json!({"message": "oom"})));
    assert_eq!(told(&hear(&mut alerts, "ship2", 103, "oom")), [(Turn::Firing, "ship2")]);
    assert_eq!(hear(&mut alerts, "ship1", 150, "oom"), []);
    let mut alerts = restarted(alerts);
    // As long as not all is heard, silence proves nothing.
    assert_eq!(world.look(&mut alerts, at(400), false), []);
    // A pause in what is stored is one, whenever it is read.
    assert_eq!(told(&hear(&mut alerts, "ship1", 210, "oom")), [(Turn::Recovered, "ship1"), (Turn::Firing, "ship1")]);
    let over = world.look(&mut alerts, at(400), true);
    assert_eq!(told(&over), [(Turn::Recovered, "ship1"), (Turn::Recovered, "ship2")]);
    assert_eq!(world.look(&mut alerts, at(500), true), []);
}

#[test]
fn too_many_notices_are_counted_as_lost_and_a_rule_that_is_gone_is_forgotten() {
    let text = rule("silent", "when=\"offline\"");
    let mut alerts = Alerts::new(rules(&text), Memory::default());
    let mut world = World::default();
    world.set("ship1", NodeState::Offline, at(1));
    let one = world.look(&mut alerts, at(2), true).remove(0);
    alerts.memory.waiting = (0..WAITING_MAX).map(|_| one.clone()).collect();
    world.set("ship1", NodeState::Online, at(3));
    let (labels, name) = (Labels::new(), NodeName::new("ship1").unwrap());
    let nodes = [Standing { name: &name, labels: &labels, state: NodeState::Online, reason: None, heard: at(3) }];
    alerts.look(at(3), nodes.into_iter(), &[], &|_| None, true);
    assert_eq!((alerts.lost, alerts.memory.waiting.len()), (1, WAITING_MAX));
    let other = Alerts::new(rules(&rule("other", "when=\"offline\"")), alerts.memory);
    assert!(other.memory.waiting.is_empty() && other.memory.rules.is_empty());
}

/// A step of a random life of three nodes.
#[derive(Debug, Clone)]
enum Step {
    Set(usize, NodeState),
    Wait(i64),
    Report(usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let states = prop_oneof![
        3 => Just(NodeState::Online), 3 => Just(NodeState::Offline), 2 => Just(NodeState::Degraded),
        1 => Just(NodeState::Unknown), 1 => Just(NodeState::Revoked),
    ];
    prop_oneof![
        4 => (0_usize..3, states).prop_map(|(node, state)| Step::Set(node, state)),
        4 => (1_i64..40).prop_map(Step::Wait),
        2 => (0_usize..3).prop_map(Step::Report),
        2 => Just(Step::Restart),
    ]
}

fn live(steps: &[Step], with_restarts: bool) -> Vec<Notice> {
    let text = rule("silent", "when=\"offline\"\nfor=\"30s\"")
        + &rule("ill", "when=\"degraded\"\nfor=\"10s\"")
        + &rule("said", "when=\"event\"\nquiet=\"20s\"");
    let (mut alerts, mut world, mut now) = (Alerts::new(rules(&text), Memory::default()), World::default(), 1_000);
    let names = ["ship0", "ship1", "ship2"];
    names.iter().for_each(|name| world.set(name, NodeState::Online, at(now)));
    let mut notices = world.look(&mut alerts, at(now), true);
    let mut heard: Map<usize, i64> = Map::new();
    for step in steps {
        match step {
            Step::Set(node, state) => {
                let last = heard.get(node).copied().unwrap_or(1_000);
                let spoke = if state.is_reachable() { now } else { last };
                heard.insert(*node, spoke);
                world.set(names[*node], *state, at(spoke));
            }
            Step::Wait(s) => now += s,
            Step::Report(node) => notices.extend(hear(&mut alerts, names[*node], now, "x")),
            Step::Restart if with_restarts => alerts = restarted(alerts),
            Step::Restart => {}
        }
        notices.extend(world.look(&mut alerts, at(now), true));
        // The truth, told without memory: who is online is not told to be silent, who was silent for long enough is.
        for (name, _, state, last) in &world.nodes {
            let is_open = alerts.memory.rules["silent"].episodes.get(name.as_str()).is_some_and(|e| e.id.is_some());
            match state {
                NodeState::Offline => assert_eq!(is_open, at(now).since(*last) >= Duration::from_secs(30)),
                NodeState::Unknown => {}
                _ => assert!(!is_open),
            }
        }
    }
    notices
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 500 } else { 5000 }))]
    #[test]
    fn each_episode_has_one_notice_and_one_recovery_also_across_restarts(steps in prop::collection::vec(step(), 1..60)) {
        let notices = live(&steps, true);
        prop_assert_eq!(&notices, &live(&steps, false));
        let mut open: Map<(String, String), String> = Map::new();
        let mut ids = BTreeSet::new();
        for notice in &notices {
            prop_assert!(ids.insert(notice.id.clone()), "{} is told twice", notice.id);
            let about = (notice.alert.clone(), notice.node.clone().unwrap());
            match notice.state {
                Turn::Firing => prop_assert!(open.insert(about, notice.episode.clone()).is_none()),
                Turn::Recovered => prop_assert_eq!(open.remove(&about), Some(notice.episode.clone())),
            }
        }
    }
}
