//! What a node knows of itself: its system, its memory, its disks, and what the executables in its `facts.d` say. Told only
//! when it has changed. What flows in are bytes that anybody may have written; nothing here may trust them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
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

/// What a document of facts says under these names: an object. The rest is passed over, which takes a fraction of the time.
/// That it is such a document has to be known ([`Facts::parse`]); `None` when it is none.
pub fn pick(document: &[u8], names: &BTreeSet<&str>) -> Option<Value> {
    let mut reader = serde_json::Deserializer::from_slice(document);
    let picked = Members { names, of: Some("facts") }.deserialize(&mut reader).ok()?;
    Some(Value::Object(picked))
}

/// Reads of an object the members of these names; with `of`, of the object that its member of that name is.
struct Members<'a> {
    names: &'a BTreeSet<&'a str>,
    of: Option<&'static str>,
}

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = Map<String, Value>;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = Map<String, Value>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { names, of } = self;
        let mut found = Map::new();
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match of {
                Some(of) if name == of => found = map.next_value_seed(Members { names, of: None })?,
                None if names.contains(&*name) => {
                    found.insert(name.into_owned(), map.next_value()?);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
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

    #[test]
    fn what_is_picked_is_what_is_read() {
        let facts = json!({"os": {"id": "debian"}, "me\nmory": {"total": 8e9, "list": [1, {"a": "\"}"}]}, "n": null, "disks": []});
        let facts = Facts::new("ship1".parse().unwrap(), Timestamp::from_ms(5), facts.as_object().cloned().unwrap());
        let document = serde_json::to_vec(&facts).unwrap();
        for names in [vec![], vec!["os"], vec!["me\nmory", "n"], vec!["disks", "os", "none"]] {
            let names: BTreeSet<&str> = names.into_iter().collect();
            let picked = pick(&document, &names).unwrap();
            let mut whole = Facts::parse(&document).unwrap().facts;
            whole.as_object_mut().unwrap().retain(|name, _| names.contains(&**name));
            assert_eq!(picked, whole);
        }
        assert_eq!(pick(b"[]", &BTreeSet::new()), None);
        assert_eq!(pick(b"{\"facts\": {\"a\"", &BTreeSet::new()), None);
    }

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
