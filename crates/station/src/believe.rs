//! What is believed of what stands in the buckets: only what the right key has signed. Pure.
//!
//! The same rules as in `fleet`, which keeps its own to itself for now.

use std::cmp::Ordering;

use data_encoding::HEXLOWER;
use message::{
    Facts, JobRecord, LifeSign, NodeName, NodeRecord, OrderChunk, PublicKey, SealedOrder, SignatureError, Timestamp,
    Trust, WIRE_VERSION,
};
use sha2::{Digest, Sha256};

/// Something that was written under a key of a bucket.
pub(crate) struct Written<'a> {
    pub(crate) key: &'a str,
    /// Who signed, if the signature holds.
    pub(crate) signer: Result<PublicKey, SignatureError>,
    pub(crate) payload: &'a [u8],
    /// When the broker stored it.
    pub(crate) stored: Timestamp,
}

impl<'a> Written<'a> {
    /// What a message of a bucket holds, and who was found to have signed it.
    pub(crate) fn of(message: &'a bus::Message, signer: Result<PublicKey, SignatureError>) -> Self {
        let key = bus::kv::key_of(&message.subject);
        Self { key, signer, payload: &message.payload, stored: message.stored_at }
    }
}

impl Written<'_> {
    fn by_operator(&self, trust: &Trust) -> Result<(), String> {
        let signer = self.signer.as_ref().map_err(ToString::to_string)?;
        match trust.operator(signer) {
            Some(_) => Ok(()),
            None => Err(format!("its signer {signer} is no operator of this fleet")),
        }
    }
}

/// The record of a node, if an operator signed it and it stands at its own key.
pub(crate) fn node_record(written: &Written<'_>, trust: &Trust) -> Result<NodeRecord, String> {
    written.by_operator(trust)?;
    let record: NodeRecord = serde_json::from_slice(written.payload).map_err(|error| error.to_string())?;
    if record.v != WIRE_VERSION || record.name.as_str() != written.key {
        return Err(format!("it is that of {} in version {}", record.name, record.v));
    }
    Ok(record)
}

/// The life sign of a node, if that node signed it.
pub(crate) fn life_sign(written: &Written<'_>, record: &NodeRecord) -> Result<LifeSign, String> {
    let signer = written.signer.as_ref().map_err(ToString::to_string)?;
    if *signer != record.key {
        return Err(format!("it is signed by {signer}, the node's key is {}", record.key));
    }
    let sign: LifeSign = serde_json::from_slice(written.payload).map_err(|error| error.to_string())?;
    if sign.v != WIRE_VERSION || sign.node != record.name {
        return Err(format!("it is that of {} in version {}", sign.node, sign.v));
    }
    Ok(sign)
}

/// What a node says of its system, if that node signed it.
pub(crate) fn facts(written: &Written<'_>, record: &NodeRecord) -> Result<Facts, String> {
    let signer = written.signer.as_ref().map_err(ToString::to_string)?;
    if *signer != record.key {
        return Err(format!("they are signed by {signer}, the node's key is {}", record.key));
    }
    let facts = Facts::parse(written.payload)?;
    if facts.node != record.name {
        return Err(format!("they are those of {}", facts.node));
    }
    Ok(facts)
}

/// The record of a job, if an operator signed it and it stands at its own key.
pub(crate) fn job_record(written: &Written<'_>, trust: &Trust) -> Result<JobRecord, String> {
    let signer = written.signer.as_ref().map_err(ToString::to_string)?;
    // Also of one who was an operator then.
    if !trust.was_operator(signer, written.stored) {
        written.by_operator(trust)?;
    }
    let record: JobRecord = serde_json::from_slice(written.payload).map_err(|error| error.to_string())?;
    if record.v != WIRE_VERSION || record.job.as_str() != written.key {
        return Err(format!("it is that of job {} in version {}", record.job, record.v));
    }
    Ok(record)
}

/// The orders in part `index` of a job, if it is the part that the operator signed.
pub(crate) fn chunk(record: &JobRecord, index: usize, text: &[u8]) -> Result<Vec<SealedOrder>, String> {
    if record.chunks.get(index) != Some(&HEXLOWER.encode(&Sha256::digest(text))) {
        return Err(format!("part {index} of its orders is not what the operator signed"));
    }
    let chunk: OrderChunk = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    Ok(chunk.orders)
}

/// Compares names as people do: `ship2` comes before `ship10`.
pub(crate) fn natural(one: &NodeName, other: &NodeName) -> Ordering {
    let (mut left, mut right) = (one.as_str(), other.as_str());
    while !left.is_empty() && !right.is_empty() {
        let (digits, others) = (leading(left, true), leading(right, true));
        let (part, against) = if digits > 0 && others > 0 {
            let (a, b) = (left[..digits].trim_start_matches('0'), right[..others].trim_start_matches('0'));
            // Without leading zeros the longer number is the greater one.
            match a.len().cmp(&b.len()).then_with(|| a.cmp(b)) {
                Ordering::Equal => (digits, others),
                unequal => return unequal,
            }
        } else {
            let (a, b) = (leading(left, false).max(1), leading(right, false).max(1));
            match left[..a].cmp(&right[..b]) {
                Ordering::Equal => (a, b),
                unequal => return unequal,
            }
        };
        (left, right) = (&left[part..], &right[against..]);
    }
    left.len().cmp(&right.len()).then_with(|| one.cmp(other))
}

/// How many bytes at the beginning are digits, or are not. Names are ASCII.
fn leading(text: &str, digits: bool) -> usize {
    text.bytes().take_while(|byte| byte.is_ascii_digit() == digits).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;

    #[test]
    fn numbers_in_names_are_ordered_as_numbers() {
        let mut names =
            ["ship10", "ship2", "ship1", "b", "a10x", "a9x", "ship02", "ship"].map(|name| NodeName::new(name).unwrap());
        names.sort_by(natural);
        assert_eq!(
            names.map(|name| name.to_string()),
            ["a9x", "a10x", "b", "ship", "ship1", "ship02", "ship2", "ship10"]
        );
    }

    #[test]
    fn only_an_operator_registers_and_only_the_node_gives_its_life_signs() {
        let record = made_up::record("ship1", &made_up::key(7));
        let payload = serde_json::to_vec(&record).unwrap();
        let trust = made_up::trust(&made_up::key(1));
        let at = |key: &'static str, signer: &nkeys::KeyPair| Written {
            key,
            signer: Ok(PublicKey::of(signer)),
            payload: &payload,
            stored: Timestamp::default(),
        };
        assert_eq!(node_record(&at("ship1", &made_up::key(1)), &trust).unwrap(), record);
        assert!(node_record(&at("ship1", &made_up::key(2)), &trust).unwrap_err().contains("no operator"));
        assert!(node_record(&at("ship2", &made_up::key(1)), &trust).unwrap_err().contains("that of ship1"));
        let unsigned = Written {
            key: "ship1",
            signer: Err(SignatureError::Missing),
            payload: &payload,
            stored: Timestamp::default(),
        };
        assert!(node_record(&unsigned, &trust).is_err());

        let payload = serde_json::to_vec(&made_up::sign("ship1")).unwrap();
        let by = |signer: &nkeys::KeyPair| Written {
            key: "ship1",
            signer: Ok(PublicKey::of(signer)),
            payload: &payload,
            stored: Timestamp::default(),
        };
        assert!(life_sign(&by(&made_up::key(7)), &record).is_ok());
        assert!(life_sign(&by(&made_up::key(1)), &record).is_err());
    }
}
