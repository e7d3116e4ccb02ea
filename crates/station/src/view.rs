//! The read model: what the fleet's streams say, folded. Pure: no clock, no network; bounded in memory.
//!
//! In flow messages in whatever order two streams happen to deliver them; out flow nodes, jobs and events as they
//! stand. Nothing is taken over that its writer did not sign.

mod events;
mod jobs;
mod pages;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use fleet::Node;
use message::selector::Labels;
use message::{Facts, LifeSign, NodeName, NodeRecord, NodeState, ReplySubject, Timestamp, Trust, Vitality};

use crate::believe::{self, Written};
pub(crate) use events::{EVENTS_MAX, RecentEvents};
pub(crate) use jobs::{Answer, JOBS_MAX, Jobs, Told};
pub(crate) use pages::{Group, NodePage, NodeQuery, PAGE_MAX, Sort};

/// Every state of a node, those that need somebody first.
pub(crate) const NODE_STATES: [NodeState; 6] = [
    NodeState::Degraded,
    NodeState::Offline,
    NodeState::Unknown,
    NodeState::Pending,
    NodeState::Revoked,
    NodeState::Online,
];

/// So long after a node was cut off, nothing that it said before is on its way any more.
const ON_ITS_WAY_MAX: Duration = Duration::from_secs(5);

/// The broker's time, and when it last began with an empty memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BrokerClock {
    pub(crate) now: Timestamp,
    pub(crate) booted: Timestamp,
}

/// Everything that the station knows of the fleet.
#[derive(Default)]
pub(crate) struct View {
    /// In the order in which they are shown.
    nodes: BTreeMap<Natural, Member>,
    pub(crate) jobs: Jobs,
    pub(crate) events: RecentEvents,
}

/// A name, compared as people do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Natural(NodeName);

impl Ord for Natural {
    fn cmp(&self, other: &Self) -> Ordering {
        believe::natural(&self.0, &other.0)
    }
}

impl PartialOrd for Natural {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

struct Member {
    record: NodeRecord,
    sign: Option<(LifeSign, Timestamp)>,
    /// What it says of its system, as it was written: read, it takes several times the room.
    facts: Option<Box<[u8]>>,
    /// The state that was told last to those who follow.
    told: Option<NodeState>,
}

impl View {
    /// Takes over what was written about a node. Tells whether a life sign may have been missed: it is a new one.
    pub(crate) fn register(&mut self, written: &Written<'_>, trust: &Trust) -> Result<bool, String> {
        let record = believe::node_record(written, trust)?;
        self.jobs.to_conclude |= record.revoked.is_some();
        let name = Natural(record.name.clone());
        match self.nodes.get_mut(&name) {
            Some(member) if member.record.key == record.key => {
                member.record = record;
                member.told = None;
                Ok(false)
            }
            _ => {
                self.jobs.to_conclude = true;
                self.nodes.insert(name, Member { record, sign: None, facts: None, told: None });
                Ok(true)
            }
        }
    }

    /// Forgets a node that was taken off the list; tells whether it was on it.
    pub(crate) fn remove(&mut self, key: &str) -> bool {
        NodeName::new(key).is_ok_and(|name| self.nodes.remove(&Natural(name)).is_some())
    }

    fn member(&self, name: &NodeName) -> Option<&Member> {
        self.nodes.get(&Natural(name.clone()))
    }

    fn member_at(&mut self, key: &str) -> Option<&mut Member> {
        NodeName::new(key).ok().and_then(|name| self.nodes.get_mut(&Natural(name)))
    }

    /// Takes over what a node says of its system. Facts of nodes that are not on the list are passed over.
    pub(crate) fn learn(&mut self, written: &Written<'_>) -> Result<(), String> {
        let Some(member) = self.member_at(written.key) else { return Ok(()) };
        believe::facts(written, &member.record)?;
        member.facts = Some(written.payload.into());
        Ok(())
    }

    /// The nodes that stand otherwise than was told last, and from now on count as told; up to `most` of them, or `None`
    /// when there are more.
    pub(crate) fn changes(&mut self, clock: BrokerClock, now: Timestamp, most: usize) -> Option<Vec<Node>> {
        let (mut changed, mut count) = (Vec::new(), 0);
        for member in self.nodes.values_mut() {
            let vitality = member.vitality(clock);
            if member.told != Some(vitality.state) {
                member.told = Some(vitality.state);
                count += 1;
                if count <= most {
                    changed.push(member.node(vitality, now, false));
                }
            }
        }
        (count <= most).then_some(changed)
    }

    /// The same of one node.
    pub(crate) fn change(&mut self, key: &str, clock: BrokerClock, now: Timestamp) -> Option<Node> {
        let member = self.member_at(key)?;
        let vitality = member.vitality(clock);
        if member.told == Some(vitality.state) {
            return None;
        }
        member.told = Some(vitality.state);
        Some(member.node(vitality, now, false))
    }

    /// Takes over a life sign. Signs of nodes that are not on the list are passed over.
    pub(crate) fn hear(&mut self, written: &Written<'_>) -> Result<(), String> {
        let seen = written.stored;
        let Some(member) = self.member_at(written.key) else { return Ok(()) };
        let sign = believe::life_sign(written, &member.record)?;
        if member.record.revoked.is_some_and(|at| seen >= at) {
            return Err("it came after the node was revoked".into());
        }
        if member.sign.as_ref().is_none_or(|(_, known)| *known <= seen) {
            member.sign = Some((sign, seen));
        }
        Ok(())
    }

    /// All that is stored was folded in: ends the orders of nodes whose word counts no more.
    pub(crate) fn conclude(&mut self, clock: BrokerClock) {
        if std::mem::take(&mut self.jobs.to_conclude) {
            let nodes = &self.nodes;
            let mut early = false;
            self.jobs.conclude(|name, key| {
                let at = nodes.get(&Natural(name.clone()))?.record.silenced(key)?;
                // What it said in time may be on its way by another stream.
                let late = clock.now.since(at) >= ON_ITS_WAY_MAX;
                early |= !late;
                late.then_some(at)
            });
            self.jobs.to_conclude |= early;
        }
    }

    /// Folds in a reply. What a node said after it was revoked, or with a key that is replaced, does not count.
    pub(crate) fn answer(&mut self, answer: Answer) -> Told {
        let record = self.member(&answer.subject.node).map(|member| &member.record);
        let silenced = record.and_then(|record| match &answer.seal {
            Ok(seal) => record.silenced(&seal.key),
            Err(_) => record.revoked,
        });
        if silenced.is_some_and(|at| answer.stored >= at) {
            let ReplySubject { job, node, .. } = &answer.subject;
            return Told::Rejected(format!(
                "a reply to {job} in the name of {node}: it came after the node was revoked or had another key"
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

    /// How every node stands at `clock`.
    pub(crate) fn standings(
        &self,
        clock: BrokerClock,
    ) -> impl Iterator<Item = (&NodeRecord, Vitality, Option<Timestamp>)> {
        let standing = move |member: &Member| member.vitality(clock);
        self.nodes
            .values()
            .map(move |member| (&member.record, standing(member), member.sign.as_ref().map(|(_, seen)| *seen)))
    }

    /// What operators say about a node.
    pub(crate) fn labels(&self, name: &NodeName) -> Option<&Labels> {
        self.member(name).map(|member| &member.record.labels)
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

    fn age(&self, now: Timestamp) -> Option<Duration> {
        self.sign.as_ref().map(|(_, seen)| now.since(*seen))
    }

    /// Believed when they were taken over, so that they can be read.
    fn facts(&self) -> Option<Facts> {
        self.facts.as_deref().and_then(|written| serde_json::from_slice(written).ok())
    }

    fn node(&self, vitality: Vitality, now: Timestamp, facts: bool) -> Node {
        Node {
            record: self.record.clone(),
            sign: self.sign.as_ref().map(|(sign, _)| sign.clone()),
            facts: if facts { self.facts() } else { None },
            last_seen: self.sign.as_ref().map(|(_, seen)| *seen),
            vitality,
            age: self.age(now),
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
        view.hear(&Written { stored: Timestamp::from_ms(seen_ms), ..written(name, &payload, signer) })
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
        let name = NodeName::new("ship1").unwrap();
        let node = view.node(&name, clock(105_000), Timestamp::from_ms(109_000)).unwrap();
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
    fn what_a_replaced_key_has_not_answered_in_time_ends_as_interrupted() {
        let mut view = View::default();
        let job = message::JobId::new(1, 0);
        view.jobs.add(&made_up::job_record(&job), vec![made_up::order("ship1", &key(7))]);
        let counts = |view: &View| view.order_counts().into_iter().collect::<Vec<_>>();
        let mut record = made_up::record("ship1", &key(7));
        let told = |view: &mut View, record: &NodeRecord| {
            let payload = serde_json::to_vec(record).unwrap();
            view.register(&written("ship1", &payload, &key(1)), &made_up::trust(&key(1))).unwrap();
        };
        told(&mut view, &record);
        view.conclude(clock(100_000));
        assert_eq!(counts(&view), [(message::State::Queued, 1)]);
        (record.key, record.enrolled) = (message::PublicKey::of(&key(9)), Timestamp::from_ms(100_000));
        told(&mut view, &record);
        // Not at once: what it said in time may be on its way.
        view.conclude(clock(101_000));
        assert_eq!(counts(&view), [(message::State::Queued, 1)]);
        view.conclude(clock(106_000));
        assert_eq!(counts(&view), [(message::State::Interrupted, 1)]);
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
    fn a_change_of_state_is_told_once() {
        let mut view = View::default();
        register(&mut view, "ship1", &key(7)).unwrap();
        register(&mut view, "ship2", &key(7)).unwrap();
        let at = Timestamp::from_ms;
        assert_eq!(view.changes(clock(1), at(1), 1), None, "too many to be told one by one");
        assert_eq!(view.changes(clock(1), at(1), 1), Some(vec![]));
        hear(&mut view, "ship1", &key(7), 100_000).unwrap();
        let node = view.change("ship1", clock(100_001), at(100_001)).unwrap();
        assert_eq!(node.vitality.state, NodeState::Online);
        assert_eq!(view.change("ship1", clock(100_002), at(100_002)), None);
        let gone = view.changes(clock(900_000), at(900_000), 10).unwrap();
        assert_eq!((gone.len(), gone[0].vitality.state), (1, NodeState::Offline));
        // Other labels are a change as well.
        register(&mut view, "ship1", &key(7)).unwrap();
        assert!(view.change("ship1", clock(900_001), at(900_001)).is_some());
        assert!(view.remove("ship1") && !view.remove("ship1") && view.change("ship1", clock(1), at(1)).is_none());
    }

    #[test]
    fn facts_that_somebody_else_has_signed_change_nothing() {
        let mut view = View::default();
        register(&mut view, "ship1", &key(7)).unwrap();
        let name = NodeName::new("ship1").unwrap();
        let facts = |cpus: i64| {
            let told = [("cpus".to_owned(), cpus.into())].into_iter().collect();
            serde_json::to_vec(&Facts::new(name.clone(), Timestamp::default(), told)).unwrap()
        };
        view.learn(&written("ship1", &facts(4), &key(7))).unwrap();
        assert!(view.learn(&written("ship1", &facts(8), &key(8))).is_err());
        assert_eq!(view.learn(&written("stranger", &facts(8), &key(8))), Ok(()));
        let node = view.node(&name, clock(1), Timestamp::from_ms(1)).unwrap();
        assert_eq!(node.facts.unwrap().facts["cpus"], 4);
    }
}
