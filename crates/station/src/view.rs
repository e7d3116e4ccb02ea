//! The read model: what the fleet's streams say, folded. Pure: no clock, no network; bounded in memory.
//!
//! In flow messages in whatever order two streams happen to deliver them; out flow nodes, jobs and events as they
//! stand. Nothing is taken over that its writer did not sign.

mod events;
mod jobs;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use fleet::Node;
use message::{LifeSign, NodeName, NodeRecord, NodeState, ReplySubject, Timestamp, Trust, Vitality};

use crate::believe::{self, Written};
pub(crate) use events::{EVENTS_MAX, RecentEvents};
pub(crate) use jobs::{Answer, JOBS_MAX, Jobs, Told};

/// Every state of a node, those that need somebody first.
pub(crate) const NODE_STATES: [NodeState; 6] = [
    NodeState::Degraded,
    NodeState::Offline,
    NodeState::Unknown,
    NodeState::Pending,
    NodeState::Revoked,
    NodeState::Online,
];

/// The broker's time, and when it last began with an empty memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BrokerClock {
    pub(crate) now: Timestamp,
    pub(crate) booted: Timestamp,
}

/// Everything that the station knows of the fleet.
#[derive(Default)]
pub(crate) struct View {
    nodes: HashMap<NodeName, Member>,
    pub(crate) jobs: Jobs,
    pub(crate) events: RecentEvents,
}

struct Member {
    record: NodeRecord,
    sign: Option<(LifeSign, Timestamp)>,
}

impl View {
    /// Takes over what was written about a node. Tells whether a life sign may have been missed: it is a new one.
    pub(crate) fn register(&mut self, written: &Written<'_>, trust: &Trust) -> Result<bool, String> {
        let record = believe::node_record(written, trust)?;
        match self.nodes.get_mut(&record.name) {
            Some(member) if member.record.key == record.key => {
                member.record = record;
                Ok(false)
            }
            _ => {
                self.nodes.insert(record.name.clone(), Member { record, sign: None });
                Ok(true)
            }
        }
    }

    /// Forgets a node that was taken off the list.
    pub(crate) fn remove(&mut self, key: &str) {
        if let Ok(name) = NodeName::new(key) {
            self.nodes.remove(&name);
        }
    }

    /// Takes over a life sign that the broker stored at `seen`. Signs of nodes that are not on the list are passed over.
    pub(crate) fn hear(&mut self, written: &Written<'_>, seen: Timestamp) -> Result<(), String> {
        let Some(member) = NodeName::new(written.key).ok().and_then(|name| self.nodes.get_mut(&name)) else {
            return Ok(());
        };
        let sign = believe::life_sign(written, &member.record)?;
        if member.record.revoked.is_some_and(|at| seen >= at) {
            return Err("it came after the node was revoked".into());
        }
        if member.sign.as_ref().is_none_or(|(_, known)| *known <= seen) {
            member.sign = Some((sign, seen));
        }
        Ok(())
    }

    /// Folds in a reply. What a node said after it was revoked does not count.
    pub(crate) fn answer(&mut self, answer: Answer) -> Told {
        let revoked = self.nodes.get(&answer.subject.node).and_then(|member| member.record.revoked);
        if revoked.is_some_and(|at| answer.stored >= at) {
            let ReplySubject { job, node, .. } = &answer.subject;
            return Told::Rejected(format!(
                "a reply to {job} in the name of {node}: it came after the node was revoked"
            ));
        }
        self.jobs.answer(answer)
    }

    /// How many nodes there are.
    pub(crate) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// How many nodes are in each state; states that nobody is in count 0.
    pub(crate) fn node_counts(&self, clock: BrokerClock) -> Vec<(NodeState, usize)> {
        let mut counts = NODE_STATES.map(|state| (state, 0));
        for member in self.nodes.values() {
            let state = member.vitality(clock).state;
            if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == state) {
                *count += 1;
            }
        }
        counts.to_vec()
    }

    /// How many of the nodes that can be reached say that each of their limits is reached.
    pub(crate) fn limit_counts(&self, clock: BrokerClock) -> BTreeMap<message::Limit, u64> {
        let mut counts = BTreeMap::new();
        for member in self.nodes.values().filter(|member| member.vitality(clock).state.is_reachable()) {
            for limit in member.sign.iter().flat_map(|(sign, _)| &sign.limits) {
                *counts.entry(*limit).or_default() += 1;
            }
        }
        counts
    }

    /// Up to `limit` nodes in natural order of their names. If there are more, those that need somebody come first.
    /// Their states are those at `clock`, their ages those at `now`.
    pub(crate) fn nodes(&self, clock: BrokerClock, now: Timestamp, limit: usize) -> Vec<Node> {
        let mut chosen: Vec<(&Member, Vitality)> =
            self.nodes.values().map(|member| (member, member.vitality(clock))).collect();
        let by_name = |one: &(&Member, Vitality), other: &(&Member, Vitality)| {
            believe::natural(&one.0.record.name, &other.0.record.name)
        };
        if chosen.len() > limit {
            let rank = |state: NodeState| NODE_STATES.iter().position(|known| *known == state);
            let urgent = |one: &(&Member, Vitality), other: &(&Member, Vitality)| {
                rank(one.1.state).cmp(&rank(other.1.state)).then_with(|| by_name(one, other))
            };
            // Only those that are shown need to be sorted.
            chosen.select_nth_unstable_by(limit, urgent);
            chosen.truncate(limit);
            chosen.sort_unstable_by(urgent);
        } else {
            chosen.sort_unstable_by(by_name);
        }
        chosen.into_iter().map(|(member, vitality)| member.node(vitality, now)).collect()
    }

    /// How many orders of the jobs at hand are in each state.
    pub(crate) fn order_counts(&self) -> BTreeMap<message::State, u64> {
        self.jobs.order_counts()
    }
}

impl Member {
    fn vitality(&self, clock: BrokerClock) -> Vitality {
        Vitality::of(&self.record, self.sign.as_ref().map(|(sign, seen)| (sign, *seen)), clock.now, clock.booted)
    }

    fn node(&self, vitality: Vitality, now: Timestamp) -> Node {
        let last_seen = self.sign.as_ref().map(|(_, seen)| *seen);
        let age: Option<Duration> = last_seen.map(|seen| now.since(seen));
        Node {
            record: self.record.clone(),
            sign: self.sign.as_ref().map(|(sign, _)| sign.clone()),
            facts: None,
            last_seen,
            vitality,
            age,
        }
    }
}

#[cfg(test)]
mod tests {
    use nkeys::KeyPair;

    use super::*;
    use crate::made_up::{self, key};

    fn written<'a>(at: &'a str, payload: &'a [u8], signer: &KeyPair) -> Written<'a> {
        Written { key: at, signer: Ok(message::PublicKey::of(signer)), payload, stored: Timestamp::default() }
    }

    fn register(view: &mut View, name: &str, node_key: &KeyPair) -> Result<bool, String> {
        let payload = serde_json::to_vec(&made_up::record(name, node_key)).unwrap();
        view.register(&written(name, &payload, &key(1)), &made_up::trust(&key(1)))
    }

    fn hear(view: &mut View, name: &str, signer: &KeyPair, seen_ms: i64) -> Result<(), String> {
        let payload = serde_json::to_vec(&made_up::sign(name)).unwrap();
        view.hear(&written(name, &payload, signer), Timestamp::from_ms(seen_ms))
    }

    fn clock(now_ms: i64) -> BrokerClock {
        BrokerClock { now: Timestamp::from_ms(now_ms), booted: Timestamp::from_ms(0) }
    }

    fn count(view: &View, state: NodeState, now_ms: i64) -> usize {
        view.node_counts(clock(now_ms)).into_iter().find(|(known, _)| *known == state).unwrap().1
    }

    #[test]
    fn a_node_is_online_while_it_speaks_and_offline_after_three_intervals() {
        let mut view = View::default();
        assert_eq!(register(&mut view, "ship1", &key(7)), Ok(true));
        assert_eq!(count(&view, NodeState::Offline, 1_000), 1);
        hear(&mut view, "ship1", &key(7), 100_000).unwrap();
        assert_eq!(count(&view, NodeState::Online, 105_000), 1);
        assert_eq!(count(&view, NodeState::Offline, 140_000), 1);
        let node = view.nodes(clock(105_000), Timestamp::from_ms(109_000), 10).remove(0);
        assert_eq!(node.age, Some(Duration::from_secs(9)));
    }

    #[test]
    fn a_forged_life_sign_changes_nothing_and_a_strangers_is_passed_over() {
        let mut view = View::default();
        register(&mut view, "ship1", &key(7)).unwrap();
        assert!(hear(&mut view, "ship1", &key(8), 100_000).is_err());
        assert_eq!(hear(&mut view, "stranger", &key(8), 100_000), Ok(()));
        assert_eq!((view.node_count(), count(&view, NodeState::Online, 100_001)), (1, 0));
    }

    #[test]
    fn what_a_node_answers_after_it_was_revoked_does_not_count() {
        let mut view = View::default();
        let mut record = made_up::record("ship1", &key(7));
        record.revoked = Some(Timestamp::from_ms(100_000));
        let payload = serde_json::to_vec(&record).unwrap();
        view.register(&written("ship1", &payload, &key(1)), &made_up::trust(&key(1))).unwrap();
        let job = message::JobId::new(1, 0);
        let answer = |at: i64| Answer {
            subject: format!("central.reply.{job}.ship1").parse().unwrap(),
            seal: Err(message::SignatureError::Missing),
            payload: bytes::Bytes::new(),
            stored: Timestamp::from_ms(at),
        };
        assert_eq!(view.answer(answer(99_999)), Told::Early);
        assert!(matches!(view.answer(answer(100_000)), Told::Rejected(_)));
    }

    #[test]
    fn an_older_life_sign_does_not_replace_a_newer_one() {
        let mut view = View::default();
        register(&mut view, "ship1", &key(7)).unwrap();
        hear(&mut view, "ship1", &key(7), 100_000).unwrap();
        hear(&mut view, "ship1", &key(7), 50_000).unwrap();
        assert_eq!(count(&view, NodeState::Online, 101_000), 1);
    }

    #[test]
    fn new_labels_keep_the_life_sign_and_a_new_key_does_not() {
        let mut view = View::default();
        register(&mut view, "ship1", &key(7)).unwrap();
        hear(&mut view, "ship1", &key(7), 100_000).unwrap();
        assert_eq!(register(&mut view, "ship1", &key(7)), Ok(false));
        assert_eq!(count(&view, NodeState::Online, 101_000), 1);
        assert_eq!(register(&mut view, "ship1", &key(9)), Ok(true));
        assert_eq!(count(&view, NodeState::Online, 101_000), 0);
        view.remove("ship1");
        assert_eq!(view.node_count(), 0);
    }

    #[test]
    fn of_too_many_nodes_those_that_need_somebody_are_shown_first() {
        let mut view = View::default();
        for number in 1..=12 {
            let name = format!("ship{number}");
            register(&mut view, &name, &key(7)).unwrap();
            if number != 11 {
                hear(&mut view, &name, &key(7), 100_000).unwrap();
            }
        }
        let names = |limit| {
            let nodes = view.nodes(clock(100_001), Timestamp::from_ms(100_001), limit);
            nodes.iter().map(|node| node.name().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(3), ["ship11", "ship1", "ship2"]);
        assert_eq!(names(12)[..3], ["ship1", "ship2", "ship3"]);
    }
}
