//! Which nodes are asked for, page by page, and how they are spread over the values of a label. Pure.
//!
//! The language is that of the command line: the same globs, selectors and expressions, by the same code. What is cheap is
//! looked at first; facts are kept as they were written, and read only for who fulfils all the rest.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::str::FromStr;

use fleet::{Node, Selection};
use message::expression::{Steps, TooCostly};
use message::facts::pick;
use message::{NodeName, NodeState, Timestamp, Vitality};

use super::{BrokerClock, Member, NODE_STATES, Natural, View};

/// So many nodes a page has at most.
pub(crate) const PAGE_MAX: usize = 1000;
/// So many values of a label are told apart.
pub(crate) const GROUPS_MAX: usize = 500;

/// In what order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Sort {
    /// By name, numbers in it as numbers.
    #[default]
    Name,
    /// Those that need somebody first.
    State,
    /// Those that have been silent for longest first.
    Seen,
}

impl Sort {
    pub(crate) const ALL: [Self; 3] = [Self::Name, Self::State, Self::Seen];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::State => "state",
            Self::Seen => "last_seen",
        }
    }
}

/// Where a page ends. Text form: `<rank>.<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    rank: i64,
    name: NodeName,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.rank, self.name)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (rank, name) = text.split_once('.').ok_or(())?;
        Ok(Self { rank: rank.parse().map_err(|_| ())?, name: NodeName::new(name).map_err(|_| ())? })
    }
}

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeQuery {
    /// Who is meant; everybody, if nothing is said.
    pub(crate) selection: Selection,
    /// In one of these states; in any, if there are none.
    pub(crate) states: Vec<NodeState>,
    /// What the name or a label holds, capitals not counting.
    pub(crate) text: String,
    pub(crate) sort: Sort,
    /// Where the page before ended.
    pub(crate) after: Option<Place>,
    pub(crate) limit: usize,
    /// Whether all that are meant are to be counted, which means looking at all.
    pub(crate) counted: bool,
    /// Whether facts are wanted.
    pub(crate) facts: bool,
}

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodePage {
    pub(crate) nodes: Vec<Node>,
    /// Where the next page begins, if there is one.
    pub(crate) next: Option<Place>,
    /// How many are meant, by state, if that was asked for.
    pub(crate) counts: Option<Vec<(NodeState, usize)>>,
}

/// Nodes that share a value of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    /// The value; `None`: without that label.
    pub(crate) value: Option<String>,
    /// How many are in each state that somebody is in.
    pub(crate) counts: Vec<(NodeState, usize)>,
}

/// What of a node's facts a question is about.
enum Asked<'a> {
    Nothing,
    Of(BTreeSet<&'a str>),
    Everything,
}

impl<'a> Asked<'a> {
    fn by(query: &'a NodeQuery) -> Self {
        match &query.selection.condition {
            Some(condition) if condition.needs_facts() => condition.facts_named().map_or(Self::Everything, Self::Of),
            _ => Self::Nothing,
        }
    }
}

/// Who is found, to be compared: the last one of a full page is the first to be left out.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Found<'a>(i64, &'a Natural);

impl View {
    /// A page of nodes. States are those at `clock`, ages those at `now`.
    pub(crate) fn page(&self, query: &NodeQuery, clock: BrokerClock, now: Timestamp) -> Result<NodePage, TooCostly> {
        let (mut steps, asked) = (Steps::default(), Asked::by(query));
        let limit = query.limit.min(PAGE_MAX);
        let mut heap: BinaryHeap<Found<'_>> = BinaryHeap::new();
        let (mut counts, mut more) = (BTreeMap::new(), false);
        let after = query.after.as_ref().map(|place| (place.rank, Natural(place.name.clone())));
        // Whoever comes before is not even looked at, where the order is that of the map and nobody counts.
        let in_order = query.sort == Sort::Name && !query.counted;
        let members = match after.as_ref().filter(|_| in_order) {
            Some((_, name)) => self.nodes.range((std::ops::Bound::Excluded(name), std::ops::Bound::Unbounded)),
            None => self.nodes.range(..),
        };
        for (name, member) in members {
            let Some(vitality) = member.meant(query, &asked, clock, now, &mut steps)? else { continue };
            if query.counted {
                *counts.entry(vitality.state.as_str()).or_insert(0_usize) += 1;
            }
            let rank = member.rank(query.sort, vitality.state);
            if after.as_ref().is_some_and(|(before, last)| Found(rank, name) <= Found(*before, last)) {
                continue;
            }
            heap.push(Found(rank, name));
            if heap.len() > limit {
                heap.pop();
                more = true;
                if in_order {
                    break;
                }
            }
        }
        let found = heap.into_sorted_vec();
        let next = found.last().filter(|_| more).map(|last| Place { rank: last.0, name: last.1.0.clone() });
        let nodes = found.into_iter().filter_map(|Found(_, name)| {
            let member = self.nodes.get(name)?;
            Some(member.node(member.vitality(clock), now, query.facts))
        });
        let count = |state: NodeState| (state, counts.get(state.as_str()).copied().unwrap_or(0));
        Ok(NodePage { nodes: nodes.collect(), next, counts: query.counted.then(|| NODE_STATES.map(count).to_vec()) })
    }

    /// Who is meant by `query`, by the values of the label `key`: the first [`GROUPS_MAX`] in the order of the values, and
    /// whether there are more. Those without the label come last.
    pub(crate) fn groups(
        &self,
        key: &str,
        query: &NodeQuery,
        clock: BrokerClock,
        now: Timestamp,
    ) -> Result<(Vec<Group>, bool), TooCostly> {
        let (mut steps, asked) = (Steps::default(), Asked::by(query));
        let mut groups: BTreeMap<Option<&str>, BTreeMap<usize, usize>> = BTreeMap::new();
        for member in self.nodes.values() {
            let Some(vitality) = member.meant(query, &asked, clock, now, &mut steps)? else { continue };
            let state = NODE_STATES.iter().position(|state| *state == vitality.state).unwrap_or_default();
            let value = member.record.labels.get(key).map(String::as_str);
            *groups.entry(value).or_default().entry(state).or_insert(0) += 1;
        }
        let without = groups.remove(&None);
        let more = groups.len() > GROUPS_MAX;
        let ordered = groups.into_iter().take(GROUPS_MAX).chain(without.map(|counts| (None, counts)));
        let group = |(value, counts): (Option<&str>, BTreeMap<usize, usize>)| Group {
            value: value.map(ToOwned::to_owned),
            counts: counts.into_iter().map(|(state, count)| (NODE_STATES[state], count)).collect(),
        };
        Ok((ordered.map(group).collect(), more))
    }

    /// One node with its facts.
    pub(crate) fn node(&self, name: &NodeName, clock: BrokerClock, now: Timestamp) -> Option<Node> {
        let member = self.nodes.get(&Natural(name.clone()))?;
        Some(member.node(member.vitality(clock), now, true))
    }

    /// The keys of the labels that nodes have, the most frequent first; so many at most.
    pub(crate) fn label_keys(&self, most: usize) -> Vec<String> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for key in self.nodes.values().flat_map(|member| member.record.labels.keys()) {
            *counts.entry(key).or_insert(0) += 1;
        }
        let mut keys: Vec<(&str, usize)> = counts.into_iter().collect();
        keys.sort_by_key(|(key, count)| (std::cmp::Reverse(*count), *key));
        keys.into_iter().take(most).map(|(key, _)| key.to_owned()).collect()
    }
}

impl Member {
    /// How it stands, if it is meant.
    fn meant(
        &self,
        query: &NodeQuery,
        asked: &Asked<'_>,
        clock: BrokerClock,
        now: Timestamp,
        steps: &mut Steps,
    ) -> Result<Option<Vitality>, TooCostly> {
        let (selection, record) = (&query.selection, &self.record);
        let named =
            selection.patterns.is_empty() || selection.patterns.iter().any(|pattern| pattern.matches(&record.name));
        if !named
            || !selection.labels.as_ref().is_none_or(|labels| labels.matches(&record.labels))
            || !self.holds_text(&query.text)
        {
            return Ok(None);
        }
        let vitality = self.vitality(clock);
        if !query.states.is_empty() && !query.states.contains(&vitality.state) {
            return Ok(None);
        }
        if let Some(condition) = &selection.condition {
            let facts = match (asked, self.facts.as_deref()) {
                (Asked::Nothing, _) | (_, None) => None,
                (Asked::Of(names), Some(written)) => pick(written, names),
                (Asked::Everything, Some(_)) => self.facts().map(|told| told.facts),
            };
            let sign = self.sign.as_ref().map(|(sign, _)| sign);
            let known = fleet::known(record, sign, facts.as_ref(), &vitality, self.age(now));
            if !condition.holds(&known, steps)? {
                return Ok(None);
            }
        }
        Ok(Some(vitality))
    }

    fn holds_text(&self, text: &str) -> bool {
        let holds = |part: &str| {
            part.len() >= text.len()
                && part.as_bytes().windows(text.len().max(1)).any(|piece| piece.eq_ignore_ascii_case(text.as_bytes()))
        };
        text.is_empty()
            || holds(self.record.name.as_str())
            || self.record.labels.iter().any(|(key, value)| holds(key) || holds(value))
    }

    fn rank(&self, sort: Sort, state: NodeState) -> i64 {
        match sort {
            Sort::Name => 0,
            Sort::State => NODE_STATES
                .iter()
                .position(|known| *known == state)
                .and_then(|rank| i64::try_from(rank).ok())
                .unwrap_or_default(),
            Sort::Seen => self.sign.as_ref().map_or(0, |(_, seen)| seen.as_ms()),
        }
    }
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
