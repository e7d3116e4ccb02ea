//! What a node knows of itself: its system, its memory, its disks, and what the executables in its `facts.d` say. Told only
//! when it has changed. What flows in are bytes that anybody may have written; nothing here may trust them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::WIRE_VERSION;
use crate::name::NodeName;
use crate::time::Timestamp;

/// The longest document of facts.
pub const DOCUMENT_BYTES_MAX: usize = 64 * 1024;
/// So deep lists and objects may stand inside each other.
pub const DEPTH_MAX: usize = 8;

/// What a node says of itself, at key `<node>` of bucket `FACTS`, signed by the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The wire's version.
    pub v: u8,
    /// Always `facts`.
    pub kind: FactsKind,
    /// The node.
    pub node: NodeName,
    /// When it found out, by its own clock.
    pub at: Timestamp,
    /// What it found: an object.
    pub facts: Value,
}

/// The `kind` of a document of facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FactsKind {
    /// The only one.
    Facts,
}

impl Facts {
    /// What `node` found at `at`.
    pub fn new(node: NodeName, at: Timestamp, facts: Map<String, Value>) -> Self {
        Self { v: WIRE_VERSION, kind: FactsKind::Facts, node, at, facts: Value::Object(facts) }
    }

    /// Reads what was written under a key; that it is signed by the node has to be known.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(format!("it has more than {} KiB", DOCUMENT_BYTES_MAX / 1024));
        }
        let facts: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if facts.v != WIRE_VERSION {
            return Err(format!("it is of version {}", facts.v));
        }
        if !facts.facts.is_object() {
            return Err("its facts are no object".into());
        }
        if !is_shallow(&facts.facts, DEPTH_MAX) {
            return Err(format!("it is deeper than {DEPTH_MAX}"));
        }
        Ok(facts)
    }
}

/// Whether lists and objects stand at most `depth` deep in each other.
pub fn is_shallow(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(list) => depth > 0 && list.iter().all(|item| is_shallow(item, depth - 1)),
        Value::Object(map) => depth > 0 && map.values().all(|item| is_shallow(item, depth - 1)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(facts: &Value) -> Result<Facts, String> {
        let document =
            json!({"v": 1, "kind": "facts", "node": "ship1", "at": "2026-11-22T12:00:00.000Z", "facts": facts});
        Facts::parse(&serde_json::to_vec(&document).unwrap())
    }

    #[test]
    fn facts_are_an_object_and_bounded() {
        assert!(parse(&json!({"memory": {"total": 1}})).is_ok());
        assert!(parse(&json!([1])).is_err());
        assert!(parse(&json!({"a": "x".repeat(DOCUMENT_BYTES_MAX)})).is_err());
        let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!({"a": inner}));
        assert!(parse(&nested(DEPTH_MAX)).is_ok());
        assert!(parse(&nested(DEPTH_MAX + 1)).is_err());
        assert!(Facts::parse("[".repeat(60_000).as_bytes()).is_err());
    }
}
