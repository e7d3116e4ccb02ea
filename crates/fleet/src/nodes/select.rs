//! Who is meant by a target, and why. Pure.

use std::time::Duration;

use message::expression::{Counts, Known, Steps};
use message::{LifeSign, NodeName, NodeRecord, NodeState, Pattern, Vitality};
use serde_json::Value;

use super::belief::near;
use super::{FleetView, Node, Selection};
use crate::error::FleetError;

/// What is known of a node that has told nothing of its system.
static NOTHING: Value = Value::Null;

impl Node {
    /// What expressions ask.
    pub fn known(&self) -> Known<'_> {
        let facts = self.facts.as_ref().map(|told| &told.facts);
        known(&self.record, self.sign.as_ref(), facts, &self.vitality, self.age)
    }
}

/// What expressions ask of a node of which this is known.
pub fn known<'a>(
    record: &'a NodeRecord,
    sign: Option<&'a LifeSign>,
    facts: Option<&'a Value>,
    vitality: &'a Vitality,
    age: Option<Duration>,
) -> Known<'a> {
    Known {
        name: record.name.as_str(),
        state: vitality.state,
        reason: vitality.reason.as_deref(),
        labels: &record.labels,
        facts: facts.unwrap_or(&NOTHING),
        version: sign.map(|sign| sign.version.as_str()),
        age_s: age.map(|age| age.as_secs_f64()),
        // Precise to the second for 285 million years.
        #[allow(clippy::cast_precision_loss)]
        uptime_s: sign.map(|sign| sign.uptime_s as f64),
        counts: sign.map(|sign| Counts {
            processes: sign.processes,
            running: sign.running,
            waiting: sign.waiting,
            outbox: sign.outbox,
        }),
    }
}

impl Selection {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty() && self.labels.is_none() && self.condition.is_none() && !self.all
    }

    /// Whether facts have to be read.
    pub fn needs_facts(&self) -> bool {
        self.condition.as_ref().is_some_and(message::Expression::needs_facts)
    }

    /// Whether a node fulfils all but the condition.
    fn is_meant(&self, node: &Node) -> bool {
        let named = self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.matches(node.name()));
        named && self.labels.as_ref().is_none_or(|labels| labels.matches(&node.record.labels))
    }

    /// Why a node is meant: the name or glob, each requirement of the selector, each part of the condition that holds.
    pub fn why(&self, node: &Node) -> Vec<String> {
        let pattern = self.patterns.iter().find(|pattern| pattern.matches(node.name())).map(ToString::to_string);
        let labels = self.labels.iter().flat_map(|labels| labels.why(&node.record.labels));
        let condition = self.condition.iter().flat_map(|condition| condition.why(&node.known()));
        let mut why: Vec<String> = pattern.into_iter().chain(labels).chain(condition).collect();
        if why.is_empty() {
            why.push("--all".into());
        }
        why
    }

    /// As people write it.
    fn words(&self) -> String {
        let patterns: Vec<String> = self.patterns.iter().map(ToString::to_string).collect();
        let mut words = Vec::new();
        if !patterns.is_empty() {
            words.push(patterns.join(","));
        }
        words.extend(self.labels.iter().map(|labels| format!("-l '{labels}'")));
        words.extend(self.condition.iter().map(|condition| format!("-w '{condition}'")));
        words.join(" ")
    }
}

/// The names in a selection that names nodes and nothing else.
pub(super) fn exact(selection: &Selection) -> Option<Vec<&NodeName>> {
    if selection.patterns.is_empty() {
        return None;
    }
    selection.patterns.iter().map(|pattern| if let Pattern::Name(name) = pattern { Some(name) } else { None }).collect()
}

/// Leaves of `view` the nodes that are asked for.
pub(super) fn narrow(mut view: FleetView, selection: &Selection) -> Result<FleetView, FleetError> {
    let known: std::collections::BTreeSet<&str> = view.nodes.iter().map(|node| node.record.name.as_str()).collect();
    let mut missing = Vec::new();
    for pattern in &selection.patterns {
        match pattern {
            Pattern::Name(name) if !known.contains(name.as_str()) => missing.push(name),
            Pattern::Glob(glob) if !view.nodes.iter().any(|node| pattern.matches(node.name())) => {
                view.notes.push(format!("no node's name matches {glob:?}"));
            }
            _ => {}
        }
    }
    if !missing.is_empty() {
        let known: Vec<&str> = known.into_iter().collect();
        return Err(no_match(&missing, &known));
    }
    view.nodes.retain(|node| selection.is_meant(node));
    if let Some(condition) = &selection.condition {
        let (mut steps, mut costly) = (Steps::default(), None);
        view.nodes.retain(|node| {
            costly.is_none()
                && condition.holds(&node.known(), &mut steps).unwrap_or_else(|error| {
                    costly = Some(error);
                    false
                })
        });
        if let Some(error) = costly {
            return Err(FleetError::usage(format!("{error}\n  {condition}\n  ^")));
        }
    }
    Ok(view)
}

/// Leaves of `view` who is meant by an order.
pub(super) fn select(view: FleetView, selection: &Selection) -> Result<FleetView, FleetError> {
    let mut view = narrow(view, selection)?;
    let notes = &mut view.notes;
    view.nodes.retain(|node| match node.vitality.state {
        NodeState::Revoked | NodeState::Pending => {
            notes.push(format!("{} is {} and therefore no target", node.name(), node.vitality.state));
            false
        }
        _ => true,
    });
    if view.nodes.is_empty() {
        let what = match selection.words() {
            nothing if nothing.is_empty() => "the fleet has no nodes yet".to_owned(),
            words => format!("no node matches {words}"),
        };
        let message = format!("{what}; `steward node ls` lists all nodes{}", believed_not(&view.notes));
        return Err(FleetError::NoMatch { message });
    }
    Ok(view)
}

/// Something was found and left out: the person should know why.
fn believed_not(notes: &[String]) -> String {
    notes.first().map(|note| format!(" ({note})")).unwrap_or_default()
}

/// The sentence for names that nobody has.
pub(super) fn no_match(missing: &[&NodeName], known: &[&str]) -> FleetError {
    let sentences: Vec<String> = missing
        .iter()
        .map(|name| match near(name.as_str(), known.iter().copied()).as_slice() {
            [] => format!("there is no node {name}"),
            near => format!("there is no node {name}; did you mean {}?", near.join(" or ")),
        })
        .collect();
    FleetError::NoMatch { message: format!("{} (`steward node ls` lists all nodes)", sentences.join("; ")) }
}

#[cfg(test)]
mod tests {
    use message::registry::NodeKind;
    use message::{PublicKey, Timestamp};
    use nkeys::{KeyPair, KeyPairType};

    use super::*;

    fn view() -> FleetView {
        let key = PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [1; 32]).unwrap());
        let node = |(name, state): (&str, NodeState)| Node {
            record: NodeRecord {
                v: 1,
                kind: NodeKind::Node,
                name: NodeName::new(name).unwrap(),
                key: key.clone(),
                labels: [("number".to_owned(), name[4..].to_owned())].into(),
                enrolled: Timestamp::default(),
                by: "admin".into(),
                changed: None,
                revoked: None,
            },
            sign: None,
            facts: None,
            last_seen: None,
            vitality: Vitality { state, reason: None },
            age: None,
        };
        let nodes = [("ship1", NodeState::Online), ("ship2", NodeState::Offline), ("ship3", NodeState::Revoked)];
        FleetView { nodes: nodes.map(node).into(), ..FleetView::default() }
    }

    fn names(target: &str) -> Result<Vec<String>, FleetError> {
        meant(&Selection { patterns: Pattern::parse_list(target).unwrap(), ..Selection::default() })
    }

    fn by(target: &str, labels: &str, condition: &str) -> Selection {
        Selection {
            patterns: if target.is_empty() { vec![] } else { Pattern::parse_list(target).unwrap() },
            labels: (!labels.is_empty()).then(|| labels.parse().unwrap()),
            condition: (!condition.is_empty()).then(|| condition.parse().unwrap()),
            all: false,
        }
    }

    fn meant(selection: &Selection) -> Result<Vec<String>, FleetError> {
        Ok(select(view(), selection)?.nodes.iter().map(|node| node.name().to_string()).collect())
    }

    #[test]
    fn names_and_globs_mean_each_node_once() {
        assert_eq!(names("ship1,ship*").unwrap(), ["ship1", "ship2"]);
        assert_eq!(names("ship2").unwrap(), ["ship2"]);
        let all = select(view(), &Selection { all: true, ..Selection::default() }).unwrap();
        assert_eq!(all.nodes.len(), 2);
        assert!(all.notes[0].contains("ship3 is revoked"), "{:?}", all.notes);
    }

    #[test]
    fn all_that_is_said_has_to_hold() {
        assert_eq!(meant(&by("", "number!=2", "")).unwrap(), ["ship1"]);
        assert_eq!(meant(&by("ship*", "number in (1,2,3)", "!online")).unwrap(), ["ship2"]);
        assert_eq!(meant(&by("ship1", "", "labels.number == '1'")).unwrap(), ["ship1"]);
        let error = meant(&by("ship1", "number=2", "")).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains("no node matches ship1 -l 'number=2'"), "{error}");
        // Nobody by name is meant by accident: an unknown one is an error, whatever else is said.
        assert_eq!(meant(&by("shop1", "number=1", "")).unwrap_err().exit_code(), 5);
    }

    #[test]
    fn it_is_told_why_a_node_is_meant() {
        let view = view();
        let why = by("ship*", "number=1", "name == 'ship1' && state == 'online'").why(&view.nodes[0]);
        let expected = ["ship*", "number=1", "name == 'ship1' (name=ship1)", "state == 'online' (state=online)"];
        assert_eq!(why, expected);
        assert_eq!(Selection { all: true, ..Selection::default() }.why(&view.nodes[0]), ["--all"]);
    }

    #[test]
    fn an_expression_that_takes_too_long_is_wrong_usage() {
        let list = vec!["1"; 200].join(",");
        let body = format!("[{list}].exists(a, [{list}].exists(b, a + b < 0))");
        let mut view = view();
        let one = view.nodes[0].clone();
        view.nodes = (0..500).map(|_| one.clone()).collect();
        let error = narrow(view, &by("", "", &body)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("too") || error.to_string().contains("steps"), "{error}");
    }

    #[test]
    fn an_unknown_name_fails_with_near_names_and_exit_code_5() {
        let error = names("ship1,shop2").unwrap_err();
        assert!(error.to_string().contains("did you mean ship2"), "{error}");
        assert_eq!(error.exit_code(), 5);
        assert_eq!(names("plane*").unwrap_err().exit_code(), 5);
        let error = names("ship3").unwrap_err();
        assert!(error.to_string().contains("revoked"), "{error}");
    }
}
