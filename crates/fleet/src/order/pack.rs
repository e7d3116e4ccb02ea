//! From one wish to signed orders, and from those to a job as it is stored. Pure.
//!
//! A job is its orders in chunks, and a record that holds the SHA-256 of each chunk and is signed itself: so the
//! frozen list is under the operator's signature. A small job's only chunk travels inside its record.

use bytes::Bytes;
use crypto_box::aead::OsRng;
use data_encoding::HEXLOWER;
use message::job::{CHUNK_BYTES_MAX, JobKind};
use message::order::ORDER_BYTES_MAX;
use message::{
    Addressee, JobId, JobRecord, Kind, NodeName, Order, OrderError, OrderId, PublicKey, Seal, SealedOrder, Timestamp,
    WIRE_VERSION, secret,
};
use nkeys::KeyPair;
use sha2::{Digest, Sha256};

use super::{OrderRequest, Terms};
use crate::error::FleetError;

/// A chunk up to this size travels inside the record.
pub(super) const INLINE_BYTES_MAX: usize = 256 * 1024;
/// Arguments up to this size are listed in the record.
const LISTED_ARGS_BYTES_MAX: usize = 16 * 1024;
/// What a bucket takes as one value, with room for headers: an order that is larger when it is packed cannot be stored.
const VALUE_BYTES_MAX: usize = 1024 * 1024 - 32 * 1024;
/// What all orders of a job together may take: each node's order is signed by itself and holds the arguments.
const JOB_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Everything that the orders of one job have in common.
pub(super) struct Plan {
    pub(super) request: OrderRequest,
    pub(super) terms: Terms,
    pub(super) job: JobId,
    /// The node that receives the replies.
    pub(super) from: NodeName,
    /// The operator who orders.
    pub(super) by: String,
    pub(super) created: Timestamp,
}

/// A job, ready to be stored and sent.
pub(super) struct Packed {
    pub(super) record: JobRecord,
    /// The record as it is signed and stored.
    pub(super) bytes: Bytes,
    pub(super) seal: Seal,
    /// The chunks that are stored beside it; none when the only one is inside the record.
    pub(super) chunks: Vec<Bytes>,
    pub(super) orders: Vec<SealedOrder>,
}

impl Plan {
    fn expires(&self) -> Timestamp {
        self.created.plus(self.request.expires)
    }

    fn timeout_ms(&self) -> u64 {
        u64::try_from(self.request.timeout.as_millis()).unwrap_or(u64::MAX)
    }

    fn order(&self, node: NodeName, key: PublicKey, id: OrderId) -> Order {
        Order {
            v: WIRE_VERSION,
            kind: Kind::Command,
            id,
            job: self.job.clone(),
            args: self.terms.own_args.get(&node).unwrap_or(&self.request.args).clone(),
            to: Addressee { name: node, key },
            method: self.request.method.clone(),
            domain: self.request.domain.clone(),
            from: self.from.clone(),
            created: self.created,
            expires: self.expires(),
            timeout_ms: self.timeout_ms(),
            max_output_bytes: self.request.max_output,
            supersede: self.terms.supersede.clone(),
            secrets: None,
        }
    }

    /// Signs and packs the orders for `targets`.
    pub(super) fn pack(
        &self,
        targets: Vec<(NodeName, PublicKey, OrderId)>,
        pair: &KeyPair,
    ) -> Result<Packed, FleetError> {
        let orders = self.seal_orders(targets, pair)?;
        let mut chunks = chunks(&orders)?;
        let digests = chunks.iter().map(|chunk| sha256(chunk.as_bytes())).collect();
        let args_bytes = self.request.args.to_string().len();
        let mut record = JobRecord {
            v: WIRE_VERSION,
            kind: JobKind::Job,
            job: self.job.clone(),
            from: self.from.clone(),
            by: self.by.clone(),
            method: self.request.method.clone(),
            domain: self.request.domain.clone(),
            args: (args_bytes <= LISTED_ARGS_BYTES_MAX).then(|| self.request.args.clone()),
            secrets: self.terms.secrets.names().map(ToOwned::to_owned).collect(),
            created: self.created,
            expires: self.expires(),
            timeout_ms: self.timeout_ms(),
            targets: u32::try_from(orders.len()).unwrap_or(u32::MAX),
            chunks: digests,
            inline: None,
            retry_of: self.terms.retry_of.clone(),
        };
        if let [only] = chunks.as_mut_slice()
            && only.len() <= INLINE_BYTES_MAX
        {
            record.inline = Some(std::mem::take(only));
        }
        let mut bytes = to_vec(&record)?;
        // Text within text within text: in the worst case every quote has become four characters.
        if bytes.len() > VALUE_BYTES_MAX {
            chunks = record.inline.take().into_iter().collect();
            bytes = to_vec(&record)?;
        }
        chunks.retain(|chunk| !chunk.is_empty());
        let seal = Seal::over(&bytes, pair).map_err(|error| FleetError::signing(&error))?;
        Ok(Packed { record, bytes: bytes.into(), seal, chunks: chunks.into_iter().map(Bytes::from).collect(), orders })
    }

    fn seal_orders(
        &self,
        targets: Vec<(NodeName, PublicKey, OrderId)>,
        pair: &KeyPair,
    ) -> Result<Vec<SealedOrder>, FleetError> {
        let by = PublicKey::of(pair);
        let mut total = 0;
        let count = targets.len();
        let mut orders = Vec::with_capacity(count);
        for (node, key, id) in targets {
            let mut order = self.order(node.clone(), key.clone(), id);
            if !self.terms.secrets.is_empty() {
                let sealed = secret::seal(&order, &by, &self.terms.secrets, &mut OsRng);
                order.secrets = Some(sealed.map_err(|error| FleetError::usage(format!("order for {node}: {error}")))?);
            }
            let bytes = order.to_bytes().map_err(|error| match error {
                OrderError::TooLarge { bytes } => too_large(bytes, ORDER_BYTES_MAX),
                other => FleetError::usage(other.to_string()),
            })?;
            total += bytes.len();
            if total > JOB_BYTES_MAX {
                return Err(FleetError::usage(format!(
                    "the job is too large: its {count} orders would take more than {} MiB together, since each node's \
                     order holds the arguments. Order fewer nodes at once, or make the arguments smaller",
                    JOB_BYTES_MAX >> 20
                )));
            }
            let signature = Seal::over(&bytes, pair).map_err(|error| FleetError::signing(&error))?.signature;
            let order = String::from_utf8(bytes).map_err(|error| FleetError::signing(&error))?;
            orders.push(SealedOrder { node, key, id, order, signature });
        }
        Ok(orders)
    }
}

/// Packs orders into as few chunks as their sizes allow, in order. A chunk is an `OrderChunk` as JSON.
fn chunks(orders: &[SealedOrder]) -> Result<Vec<String>, FleetError> {
    const FRAME: usize = r#"{"orders":[]}"#.len();
    let mut chunks = Vec::new();
    let mut open = String::new();
    let close = |open: &mut String| format!("{{\"orders\":[{}]}}", std::mem::take(open));
    for order in orders {
        let text = serde_json::to_string(order).map_err(|error| FleetError::signing(&error))?;
        if text.len() + FRAME > VALUE_BYTES_MAX {
            return Err(too_large(text.len(), VALUE_BYTES_MAX));
        }
        if !open.is_empty() && open.len() + 1 + text.len() + FRAME > CHUNK_BYTES_MAX {
            chunks.push(close(&mut open));
        }
        if !open.is_empty() {
            open.push(',');
        }
        open.push_str(&text);
    }
    chunks.push(close(&mut open));
    Ok(chunks)
}

fn to_vec(record: &JobRecord) -> Result<Vec<u8>, FleetError> {
    serde_json::to_vec(record).map_err(|error| FleetError::signing(&error))
}

fn too_large(bytes: usize, limit: usize) -> FleetError {
    FleetError::usage(format!(
        "the arguments are too large: one order would have {} KiB, at most {} KiB are possible. Make the script or the \
         input smaller, or let the node fetch it",
        bytes.div_ceil(1024),
        limit / 1024
    ))
}

/// The digest by which a record names a chunk.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use message::{OrderChunk, Token};
    use nkeys::KeyPairType;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pair(seed: u8) -> KeyPair {
        KeyPair::new_from_raw(KeyPairType::User, [seed; 32]).unwrap()
    }

    fn plan(args: serde_json::Value) -> Plan {
        Plan {
            request: OrderRequest {
                method: Token::method("shellcommand").unwrap(),
                domain: Token::domain("operatingsystem").unwrap(),
                args,
                timeout: Duration::from_secs(60),
                expires: Duration::from_secs(3600),
                max_output: 1 << 20,
            },
            terms: Terms::default(),
            job: JobId::new(1_795_348_800_000, 42),
            from: NodeName::new("central").unwrap(),
            by: "admin".into(),
            created: Timestamp::from_ms(1_795_348_800_000),
        }
    }

    fn targets(count: usize) -> Vec<(NodeName, PublicKey, OrderId)> {
        let id = |index: usize| OrderId::from_bytes((index as u128).to_be_bytes());
        (0..count).map(|i| (NodeName::new(format!("ship{i}")).unwrap(), PublicKey::of(&pair(7)), id(i))).collect()
    }

    /// What a reader gets out of what was packed.
    fn unpacked(packed: &Packed) -> Vec<SealedOrder> {
        let texts: Vec<&[u8]> = match &packed.record.inline {
            Some(inline) => vec![inline.as_bytes()],
            None => packed.chunks.iter().map(AsRef::as_ref).collect(),
        };
        assert_eq!(texts.len(), packed.record.chunks.len());
        let mut orders = Vec::new();
        for (text, digest) in texts.into_iter().zip(&packed.record.chunks) {
            assert_eq!(sha256(text), *digest);
            orders.extend(serde_json::from_slice::<OrderChunk>(text).unwrap().orders);
        }
        orders
    }

    #[test]
    fn a_small_job_is_one_value() {
        let packed = plan(json!({"argv": ["uname", "-a"]})).pack(targets(1), &pair(1)).unwrap();
        assert!(packed.chunks.is_empty());
        assert_eq!(unpacked(&packed), packed.orders);
        packed.seal.verify(&packed.bytes).unwrap();
        let order = &packed.orders[0];
        PublicKey::of(&pair(1)).verify(order.order.as_bytes(), &order.signature).unwrap();
        let read = Order::parse(order.order.as_bytes()).unwrap();
        assert_eq!((read.id, read.job), (order.id, packed.record.job));
        assert_eq!(read.expires, Timestamp::from_ms(1_795_352_400_000));
    }

    #[test]
    fn a_large_job_is_chunks_that_the_broker_takes() {
        let packed = plan(json!({"line": "x".repeat(500)})).pack(targets(3_000), &pair(1)).unwrap();
        assert!(packed.record.inline.is_none() && packed.chunks.len() > 2);
        assert!(packed.chunks.iter().all(|chunk| chunk.len() <= CHUNK_BYTES_MAX));
        assert_eq!(unpacked(&packed).len(), 3_000);
        assert_eq!(packed.record.targets, 3_000);
    }

    #[test]
    fn quotes_within_quotes_do_not_make_a_value_too_large() {
        // Each `"` becomes `\"` in the order, `\\\"` in the chunk, and twice that in the record.
        let packed = plan(json!({"line": "\"".repeat(60_000)})).pack(targets(1), &pair(1)).unwrap();
        assert!(packed.bytes.len() <= VALUE_BYTES_MAX);
        assert_eq!(unpacked(&packed), packed.orders);
        assert!(packed.record.args.is_none());
    }

    #[test]
    fn what_cannot_be_stored_is_refused_before_anything_is() {
        for args in [json!({"script": "x".repeat(900_000)}), json!({"script": "\"".repeat(350_000)})] {
            let error = plan(args).pack(targets(1), &pair(1)).err().unwrap();
            assert!(error.to_string().contains("too large") && error.exit_code() == 2, "{error}");
        }
        let error = plan(json!({"script": "x".repeat(600_000)})).pack(targets(300), &pair(1)).err().unwrap();
        assert!(error.to_string().contains("300 orders"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_is_packed_is_unpacked(count in 1_usize..40, line in ".{0,200}", repeat in 0_usize..200) {
            let packed = plan(json!({"line": line.repeat(repeat)})).pack(targets(count), &pair(1)).unwrap();
            prop_assert_eq!(&unpacked(&packed), &packed.orders);
            prop_assert!(packed.bytes.len() <= VALUE_BYTES_MAX);
        }
    }
}
