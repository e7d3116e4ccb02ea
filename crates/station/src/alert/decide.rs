//! Who is to be told of what: rules and what is seen of the fleet become notices. Pure: no clock, no disk, no network.
//!
//! What a rule finds wrong with a node, or with a job, is an episode: told once when it begins and once when it is over. What is
//! remembered of it (`Memory`) is all that a restart needs; whoever keeps it on disk before he tells anybody tells nothing twice
//! and forgets nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use message::expression::{Known, Steps};
use message::selector::Labels;
use message::target::glob_matches;
use message::units::human_duration;
use message::{NodeName, NodeState, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{Rule, When};

/// So many episodes of a rule are remembered; what begins beyond that is not told.
const EPISODES_MAX: usize = 100_000;
/// So many notices wait to be delivered; what is more is lost, and counted.
pub(crate) const WAITING_MAX: usize = 20_000;
/// A job that is no more at hand is remembered for so long: it may come back with a restart.
const JOB_AGE_MAX: Duration = Duration::from_secs(8 * 86_400);
/// A record that is larger as JSON is not repeated in a notice.
const RECORD_BYTES_MAX: usize = 8 * 1024;
/// So many names stand in a sentence.
const NAMES_MAX: usize = 5;

/// How a node stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'a> {
    pub(crate) name: &'a NodeName,
    pub(crate) labels: &'a Labels,
    pub(crate) state: NodeState,
    pub(crate) reason: Option<&'a str>,
    /// When it was last heard of, or enrolled.
    pub(crate) heard: Timestamp,
}

/// How a job stands.
#[derive(Debug, Clone)]
pub(crate) struct JobStanding {
    pub(crate) job: String,
    pub(crate) created: Timestamp,
    pub(crate) by: String,
    pub(crate) method: String,
    pub(crate) domain: String,
    pub(crate) retry_of: Option<String>,
    pub(crate) targets: u32,
    /// How many orders have come to a bad end, and at which nodes (not more than are kept).
    pub(crate) bad: u32,
    pub(crate) failed: Vec<NodeName>,
    /// Every order has succeeded.
    pub(crate) is_well: bool,
}

/// A record that was reported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reported<'a> {
    /// When the broker stored it.
    pub(crate) stored: Timestamp,
    pub(crate) from: &'a NodeName,
    pub(crate) labels: &'a Labels,
    pub(crate) method: &'a str,
    pub(crate) domain: &'a str,
    pub(crate) record: &'a Value,
}

/// Whether something has begun or is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Turn {
    Firing,
    Recovered,
}

/// What somebody is told; serialized as it is delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    /// The same when it is delivered again.
    pub(crate) id: String,
    /// The same for the beginning and the end.
    pub(crate) episode: String,
    pub(crate) alert: String,
    pub(crate) when: String,
    pub(crate) state: Turn,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<String>,
    /// Since when it is so.
    pub(crate) since: Timestamp,
    /// When this was noticed. Both by the broker's clock.
    pub(crate) at: Timestamp,
    pub(crate) message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) record: Option<Value>,
}

/// What is remembered of one thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Episode {
    since: Timestamp,
    /// By which it is known to those who were told; nobody was yet, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// It is over, and remembered so that it does not begin again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    over: bool,
    /// When it was last seen, and how often. For events.
    last: Timestamp,
    count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OfRule {
    /// What happened before this is not told: jobs and events of the past.
    known_since: Timestamp,
    #[serde(default)]
    episodes: BTreeMap<String, Episode>,
}

/// How far the stream of events was read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The broker's store that the sequence is of.
    pub(crate) epoch: Option<String>,
    pub(crate) sequence: u64,
    /// When the broker had stored that.
    pub(crate) stored: Timestamp,
}

/// What must not be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    #[serde(default)]
    rules: BTreeMap<String, OfRule>,
    /// Numbers the episodes.
    #[serde(default)]
    number: u64,
    #[serde(default)]
    pub(crate) place: Place,
    /// What was not delivered yet, oldest first.
    #[serde(default)]
    pub(crate) waiting: VecDeque<Notice>,
}

/// The rules and what is remembered.
pub(crate) struct Alerts {
    rules: Vec<Rule>,
    pub(crate) memory: Memory,
    /// Whether the memory is not what it was when this was last unset.
    pub(crate) changed: bool,
    /// How many notices were lost, since too many waited.
    pub(crate) lost: u64,
}

/// What a rule finds.
enum Verdict {
    Wrong {
        since: Timestamp,
        message: String,
    },
    Right(String),
    /// Nothing can be said: what was goes on.
    Unsure,
}

impl Alerts {
    /// What is remembered of rules that are no more is dropped, and so are notices of theirs.
    pub(crate) fn new(rules: Vec<Rule>, mut memory: Memory) -> Self {
        let is_known = |name: &str| rules.iter().any(|rule| rule.name == name);
        memory.rules.retain(|name, _| is_known(name));
        memory.waiting.retain(|notice| is_known(&notice.alert));
        Self { rules, memory, changed: true, lost: 0 }
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// How many episodes of each rule are told and not over.
    pub(crate) fn active(&self) -> Vec<(String, u64)> {
        let is_active = |episode: &&Episode| episode.id.is_some() && !episode.over;
        let count = |of: &OfRule| of.episodes.values().filter(is_active).count() as u64;
        // A rule that has not looked yet says nothing.
        self.memory.rules.iter().map(|(name, of)| (name.clone(), count(of))).collect()
    }

    /// Since when events matter: before that there was no rule.
    pub(crate) fn known_since(&self) -> Option<Timestamp> {
        let of_events = self.rules.iter().filter(|rule| matches!(rule.when, When::Event { .. }));
        of_events.filter_map(|rule| Some(self.memory.rules.get(&rule.name)?.known_since)).min()
    }

    /// Looks at the whole fleet as it stands `now`. `all_heard` tells that all events up to now were heard.
    pub(crate) fn look<'a>(
        &mut self,
        now: Timestamp,
        nodes: impl Iterator<Item = Standing<'a>>,
        jobs: &[JobStanding],
        labels_of: &dyn Fn(&NodeName) -> Option<&'a Labels>,
        all_heard: bool,
    ) {
        let rules = std::mem::take(&mut self.rules);
        for rule in &rules {
            if !self.memory.rules.contains_key(&rule.name) {
                let fresh = OfRule { known_since: now, episodes: BTreeMap::new() };
                self.memory.rules.insert(rule.name.clone(), fresh);
                self.changed = true;
            }
        }
        self.look_at_nodes(&rules, now, nodes);
        for rule in &rules {
            match &rule.when {
                When::JobFailed { .. } => self.look_at_jobs(rule, now, jobs, labels_of),
                When::Event { quiet, .. } if all_heard => self.end_quiet(rule, *quiet, now),
                _ => {}
            }
        }
        self.rules = rules;
    }

    fn look_at_nodes<'a>(&mut self, rules: &[Rule], now: Timestamp, nodes: impl Iterator<Item = Standing<'a>>) {
        let of_nodes = |rule: &&Rule| matches!(rule.when, When::Offline { .. } | When::Degraded { .. });
        let rules: Vec<&Rule> = rules.iter().filter(of_nodes).collect();
        if rules.is_empty() {
            return;
        }
        let mut unseen: Vec<BTreeSet<String>> = rules.iter().map(|rule| self.names(rule)).collect();
        for node in nodes {
            for (rule, unseen) in rules.iter().zip(&mut unseen) {
                if !rule.is_about(node.name, node.labels) {
                    continue;
                }
                unseen.remove(node.name.as_str());
                match judge(rule, &node, now) {
                    Verdict::Wrong { since, message } => self.wrong(rule, node.name, since, message, now),
                    Verdict::Right(message) => self.end(rule, node.name.as_str(), message, now),
                    Verdict::Unsure => {}
                }
            }
        }
        for (rule, unseen) in rules.iter().zip(unseen) {
            for name in unseen {
                let message = format!("{name} is no longer among the nodes that this rule is about");
                self.end(rule, &name, message, now);
            }
        }
    }

    fn names(&self, rule: &Rule) -> BTreeSet<String> {
        self.memory.rules.get(&rule.name).map(|of| of.episodes.keys().cloned().collect()).unwrap_or_default()
    }

    /// Something is wrong with a node; told once it has been so for long enough.
    fn wrong(&mut self, rule: &Rule, node: &NodeName, since: Timestamp, message: String, now: Timestamp) {
        let (during, is_heard) = match rule.when {
            When::Offline { during } => (during, true),
            When::Degraded { during, .. } => (during, false),
            _ => return,
        };
        // It spoke since that episode began, and nobody saw it: that one is over, and this is another.
        if is_heard && self.episode(rule, node.as_str()).is_some_and(|episode| since > episode.since) {
            self.end(rule, node.as_str(), format!("{node} was heard again"), now);
        }
        let known = self.episode(rule, node.as_str()).cloned();
        if known.as_ref().is_some_and(|episode| episode.id.is_some()) {
            return;
        }
        let began = known.as_ref().map_or(since, |episode| episode.since);
        if now.since(began) >= during {
            let id = self.begin(rule, node.as_str(), began, began);
            if let Some(episode) = id {
                let (node, job) = (Some(node.to_string()), None);
                self.tell(rule, Turn::Firing, episode, node, job, began, now, message, None);
            }
        } else if known.is_none() && !is_heard {
            self.insert(rule, node.as_str(), Episode { since: began, id: None, over: false, last: began, count: 0 });
        }
    }

    fn look_at_jobs<'a>(
        &mut self,
        rule: &Rule,
        now: Timestamp,
        jobs: &[JobStanding],
        labels_of: &dyn Fn(&NodeName) -> Option<&'a Labels>,
    ) {
        let healers = healers(jobs);
        let Some(known_since) = self.memory.rules.get(&rule.name).map(|of| of.known_since) else { return };
        for job in jobs.iter().filter(|job| job.bad > 0 && job.created >= known_since) {
            let is_meant = |name: &NodeName| labels_of(name).is_some_and(|labels| rule.is_about(name, labels));
            if !rule.when.takes(&job.method, &job.domain) || !(rule.is_about_all() || job.failed.iter().any(is_meant)) {
                continue;
            }
            match self.episode(rule, &job.job).map(|episode| episode.over) {
                None => {
                    if let Some(episode) = self.begin(rule, &job.job, job.created, job.created) {
                        let id = Some(job.job.clone());
                        let told = told_of(job);
                        self.tell(rule, Turn::Firing, episode, None, id, job.created, now, told, None);
                    }
                }
                Some(false) => {
                    if let Some(healer) = healers.get(job.job.as_str()) {
                        let message = format!("job {} was made good by its retry {healer}", job.job);
                        self.settle(rule, &job.job, message, now);
                    }
                }
                Some(true) => {}
            }
        }
        let at_hand: BTreeSet<&str> = jobs.iter().map(|job| job.job.as_str()).collect();
        if let Some(of) = self.memory.rules.get_mut(&rule.name) {
            let before = of.episodes.len();
            for (job, episode) in &mut of.episodes {
                if !at_hand.contains(job.as_str()) && !std::mem::replace(&mut episode.over, true) {
                    self.changed = true;
                }
            }
            of.episodes.retain(|job, episode| at_hand.contains(job.as_str()) || now.since(episode.since) < JOB_AGE_MAX);
            self.changed |= of.episodes.len() != before;
        }
    }

    /// Takes in a record. Those of one store have to come in their order.
    pub(crate) fn hear(&mut self, reported: &Reported<'_>) {
        let rules = std::mem::take(&mut self.rules);
        for rule in &rules {
            if let When::Event { condition, quiet, .. } = &rule.when
                && rule.when.takes(reported.method, reported.domain)
                && rule.is_about(reported.from, reported.labels)
                && self.memory.rules.get(&rule.name).is_some_and(|of| reported.stored >= of.known_since)
            {
                let known = Known::of_record(reported.from.as_str(), reported.labels, reported.record);
                // Too costly a question has no answer; a single record cannot take that many steps.
                let holds = |of: &message::Expression| of.holds(&known, &mut Steps::default()).unwrap_or(false);
                if condition.as_ref().is_none_or(holds) {
                    self.matched(rule, reported, *quiet);
                }
            }
        }
        self.rules = rules;
    }

    fn matched(&mut self, rule: &Rule, reported: &Reported<'_>, quiet: Duration) {
        let from = reported.from.as_str();
        if let Some(episode) = self.episode(rule, from)
            && reported.stored.since(episode.last) >= quiet
        {
            let (over, message) = (episode.last.plus(quiet), quiet_again(from, episode.count, quiet));
            self.end(rule, from, message, over);
        }
        self.changed = true;
        if let Some(of) = self.memory.rules.get_mut(&rule.name)
            && let Some(episode) = of.episodes.get_mut(from)
        {
            episode.last = episode.last.max(reported.stored);
            episode.count += 1;
            return;
        }
        if let Some(episode) = self.begin(rule, from, reported.stored, reported.stored) {
            let record = Some(reported.record).filter(|record| record.to_string().len() <= RECORD_BYTES_MAX).cloned();
            let said = reported.record.get("message").and_then(Value::as_str).unwrap_or("a record without a text");
            let said: String = said.chars().take(200).collect();
            let message = format!("{from} reports {}/{}: {said}", reported.method, reported.domain);
            let (node, at) = (Some(from.to_owned()), reported.stored);
            self.tell(rule, Turn::Firing, episode, node, None, at, at, message, record);
        }
    }

    fn end_quiet(&mut self, rule: &Rule, quiet: Duration, now: Timestamp) {
        let Some(of) = self.memory.rules.get(&rule.name) else { return };
        let over: Vec<(String, u64)> = of
            .episodes
            .iter()
            .filter(|(_, episode)| now.since(episode.last) >= quiet)
            .map(|(from, episode)| (from.clone(), episode.count))
            .collect();
        for (from, count) in over {
            let message = quiet_again(&from, count, quiet);
            self.end(rule, &from, message, now);
        }
    }

    fn episode(&self, rule: &Rule, about: &str) -> Option<&Episode> {
        self.memory.rules.get(&rule.name)?.episodes.get(about)
    }

    fn insert(&mut self, rule: &Rule, about: &str, episode: Episode) -> bool {
        let Some(of) = self.memory.rules.get_mut(&rule.name) else { return false };
        if of.episodes.len() >= EPISODES_MAX && !of.episodes.contains_key(about) {
            self.lost += 1;
            return false;
        }
        of.episodes.insert(about.to_owned(), episode);
        self.changed = true;
        true
    }

    /// An episode that is told; its id.
    fn begin(&mut self, rule: &Rule, about: &str, since: Timestamp, last: Timestamp) -> Option<String> {
        self.memory.number += 1;
        // With the time, so that it is another one also after the memory was lost.
        let id = format!("{}-{}", since.as_ms(), self.memory.number);
        let episode = Episode { since, id: Some(id.clone()), over: false, last, count: 1 };
        self.insert(rule, about, episode).then_some(id)
    }

    /// Forgets an episode, and tells its end if somebody was told of its beginning.
    fn end(&mut self, rule: &Rule, about: &str, message: String, at: Timestamp) {
        self.settle(rule, about, message, at);
        if let Some(of) = self.memory.rules.get_mut(&rule.name) {
            self.changed |= of.episodes.remove(about).is_some();
        }
    }

    /// Tells the end of an episode, and remembers it.
    fn settle(&mut self, rule: &Rule, about: &str, message: String, at: Timestamp) {
        let Some(of) = self.memory.rules.get_mut(&rule.name) else { return };
        let Some(episode) = of.episodes.get_mut(about).filter(|episode| !episode.over) else { return };
        episode.over = true;
        self.changed = true;
        if let Some(id) = episode.id.clone() {
            let since = episode.since;
            let about = Some(about.to_owned());
            let is_job = matches!(rule.when, When::JobFailed { .. });
            let (node, job) = if is_job { (None, about) } else { (about, None) };
            self.tell(rule, Turn::Recovered, id, node, job, since, at, message, None);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "these are the fields of a notice")]
    fn tell(
        &mut self,
        rule: &Rule,
        state: Turn,
        episode: String,
        node: Option<String>,
        job: Option<String>,
        since: Timestamp,
        at: Timestamp,
        message: String,
        record: Option<Value>,
    ) {
        self.changed = true;
        if self.memory.waiting.len() >= WAITING_MAX {
            self.lost += 1;
            return;
        }
        let id = format!("{episode}-{}", if state == Turn::Firing { "firing" } else { "recovered" });
        let (alert, when) = (rule.name.clone(), rule.when.as_str().to_owned());
        self.memory.waiting.push_back(Notice {
            id,
            episode,
            alert,
            when,
            state,
            node,
            job,
            since,
            at,
            message,
            record,
        });
    }
}

fn judge(rule: &Rule, node: &Standing<'_>, now: Timestamp) -> Verdict {
    let Standing { name, state, reason, heard, .. } = node;
    match (&rule.when, state) {
        (_, NodeState::Revoked) => Verdict::Right(format!("{name} was revoked")),
        (When::Offline { .. }, NodeState::Offline) => {
            let silent = human_duration(now.since(*heard));
            Verdict::Wrong {
                since: *heard,
                message: format!("{name} is offline: nothing was heard of it for {silent}"),
            }
        }
        (When::Offline { .. }, NodeState::Online | NodeState::Degraded) => {
            Verdict::Right(format!("{name} is {state} again"))
        }
        (When::Degraded { reason: wanted, .. }, NodeState::Degraded) => {
            let reason = reason.unwrap_or("it does not say why");
            if wanted.as_ref().is_none_or(|wanted| glob_matches(wanted, reason)) {
                Verdict::Wrong { since: now, message: format!("{name} is degraded: {reason}") }
            } else {
                Verdict::Right(format!("{name} is degraded for another reason now: {reason}"))
            }
        }
        (When::Degraded { .. }, NodeState::Online) => Verdict::Right(format!("{name} is online again")),
        // A node that is silent may be as it was, and a broker that has just begun knows nobody.
        _ => Verdict::Unsure,
    }
}

fn told_of(job: &JobStanding) -> String {
    let JobStanding { job: id, by, method, domain, targets, bad, failed, .. } = job;
    let mut names: Vec<String> = failed.iter().take(NAMES_MAX).map(ToString::to_string).collect();
    if failed.len() > names.len() {
        names.push("…".into());
    }
    format!("job {id} ({method}/{domain}, by {by}) did not end well at {bad} of {targets} nodes: {}", names.join(", "))
}

fn quiet_again(from: &str, count: u64, quiet: Duration) -> String {
    format!("{from} has reported no such event for {}, after {count}", human_duration(quiet))
}

/// Which jobs were made good by which: a retry that has succeeded everywhere, or that was itself made good by one.
fn healers(jobs: &[JobStanding]) -> HashMap<&str, &str> {
    let mut healed: HashMap<&str, &str> = HashMap::new();
    loop {
        let before = healed.len();
        for job in jobs {
            if let Some(first) = &job.retry_of
                && (job.is_well || healed.contains_key(job.job.as_str()))
            {
                healed.entry(first.as_str()).or_insert(job.job.as_str());
            }
        }
        if healed.len() == before {
            return healed;
        }
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
