//! Who is meant by a target. Pure.

use message::{NodeName, NodeState, Pattern};

use super::belief::near;
use super::{FleetView, Selection};
use crate::error::FleetError;

/// The names in a selection that consists of nothing but names.
pub(super) fn exact(selection: &Selection) -> Option<Vec<&NodeName>> {
    if selection.all {
        return None;
    }
    selection.patterns.iter().map(|pattern| if let Pattern::Name(name) = pattern { Some(name) } else { None }).collect()
}

/// Leaves of `view` what is meant.
pub(super) fn select(mut view: FleetView, selection: &Selection) -> Result<FleetView, FleetError> {
    let known: Vec<&str> = view.nodes.iter().map(|node| node.record.name.as_str()).collect();
    let mut missing = Vec::new();
    for pattern in &selection.patterns {
        match pattern {
            Pattern::Name(name) if !known.contains(&name.as_str()) => missing.push(name),
            Pattern::Glob(glob) if !view.nodes.iter().any(|node| pattern.matches(node.name())) => {
                view.notes.push(format!("no node's name matches {glob:?}"));
            }
            _ => {}
        }
    }
    if !missing.is_empty() {
        return Err(no_match(&missing, &known));
    }
    let meant = |name: &NodeName| selection.all || selection.patterns.iter().any(|pattern| pattern.matches(name));
    view.nodes.retain(|node| meant(node.name()));
    let notes = &mut view.notes;
    view.nodes.retain(|node| match node.vitality.state {
        NodeState::Revoked | NodeState::Pending => {
            notes.push(format!("{} is {} and therefore no target", node.name(), node.vitality.state));
            false
        }
        _ => true,
    });
    if view.nodes.is_empty() {
        let patterns: Vec<String> = selection.patterns.iter().map(ToString::to_string).collect();
        let what = if selection.all {
            "the fleet has no nodes yet".to_owned()
        } else {
            format!("no node matches {}", patterns.join(","))
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
    use message::{NodeRecord, PublicKey, Timestamp, Vitality};
    use nkeys::{KeyPair, KeyPairType};

    use super::*;
    use crate::nodes::Node;

    fn view() -> FleetView {
        let key = PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [1; 32]).unwrap());
        let node = |(name, state): (&str, NodeState)| Node {
            record: NodeRecord {
                v: 1,
                kind: NodeKind::Node,
                name: NodeName::new(name).unwrap(),
                key: key.clone(),
                labels: [].into(),
                enrolled: Timestamp::default(),
                by: "admin".into(),
                changed: None,
                revoked: None,
            },
            sign: None,
            last_seen: None,
            vitality: Vitality { state, reason: None },
            age: None,
        };
        let nodes = [("ship1", NodeState::Online), ("ship2", NodeState::Offline), ("ship3", NodeState::Revoked)];
        FleetView { nodes: nodes.map(node).into(), ..FleetView::default() }
    }

    fn names(target: &str) -> Result<Vec<String>, FleetError> {
        let selection = Selection { patterns: Pattern::parse_list(target).unwrap(), all: false };
        Ok(select(view(), &selection)?.nodes.iter().map(|node| node.name().to_string()).collect())
    }

    #[test]
    fn names_and_globs_mean_each_node_once() {
        assert_eq!(names("ship1,ship*").unwrap(), ["ship1", "ship2"]);
        assert_eq!(names("ship2").unwrap(), ["ship2"]);
        let all = select(view(), &Selection { patterns: vec![], all: true }).unwrap();
        assert_eq!(all.nodes.len(), 2);
        assert!(all.notes[0].contains("ship3 is revoked"), "{:?}", all.notes);
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
