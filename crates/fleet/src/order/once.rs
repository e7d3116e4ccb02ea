//! One job for one idempotency key: the key and the operator's public key determine the job's id.
//!
//! So two clients that are given the same key write to the same place, and `create` lets one of them win. The other
//! finds what is stored there and compares: the same request for the same nodes is followed, anything else refused.

use std::collections::BTreeSet;
use std::time::Duration;

use message::{JobId, NodeName, Order, PublicKey, Timestamp};
use sha2::{Digest, Sha256};

use super::{OrderRequest, Terms};
use crate::error::FleetError;
use crate::job::StoredJob;

/// The most characters a key may have.
const KEY_CHARS_MAX: usize = 256;

/// The id of the job that `operator` makes under `key`.
pub(super) fn job_of_key(key: &str, operator: &PublicKey) -> Result<JobId, FleetError> {
    if key.is_empty() || key.chars().count() > KEY_CHARS_MAX {
        return Err(FleetError::usage(format!("an idempotency key has 1 to {KEY_CHARS_MAX} characters")));
    }
    // A public key has no line end, so that no two pairs read the same.
    let digest = Sha256::digest(format!("steward idempotency key\n{operator}\n{key}"));
    let mut bits = [0; 16];
    bits.copy_from_slice(&digest[..16]);
    Ok(JobId::from_bytes(bits))
}

/// What differs between a stored job and what is asked for now under its key; `None` when nothing does.
pub(super) fn difference(
    stored: &StoredJob,
    signer: &PublicKey,
    request: &OrderRequest,
    terms: &Terms,
    targets: &BTreeSet<NodeName>,
) -> Result<Option<&'static str>, FleetError> {
    let record = &stored.record;
    let doubt = |reason: String| FleetError::Job { job: record.job.to_string(), reason };
    if stored.signer != *signer {
        return Err(doubt("it has the id that belongs to your key, but another operator signed it".into()));
    }
    let first = stored.orders.first().ok_or_else(|| doubt("it holds no order".into()))?;
    let order = Order::parse(first.order.as_bytes()).map_err(|error| doubt(error.to_string()))?;
    let nodes: BTreeSet<NodeName> = stored.orders.iter().map(|order| order.node.clone()).collect();
    let expires = lifetime(order.created, order.expires);
    Ok(if (&order.method, &order.domain) != (&request.method, &request.domain) {
        Some("another method")
    } else if order.args != request.args {
        Some("other arguments")
    } else if !sealed_names(&order).eq(terms.secrets.names()) {
        // Their values nobody can compare: what was sealed, only the nodes can read.
        Some("other secrets")
    } else if nodes != *targets {
        Some("other nodes")
    } else if order.timeout() != request.timeout
        || order.max_output_bytes != request.max_output
        || expires != whole_ms(request.expires)
        || order.supersede != terms.supersede
        || record.retry_of != terms.retry_of
    {
        Some("other limits or flags")
    } else {
        None
    })
}

/// The names of what was sealed to an order's node.
pub(super) fn sealed_names(order: &Order) -> impl Iterator<Item = &str> {
    order.secrets.iter().flat_map(|secrets| secrets.names.iter().map(String::as_str))
}

/// How long an order that was made at `created` may wait.
pub(super) fn lifetime(created: Timestamp, expires: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(expires.as_ms().saturating_sub(created.as_ms())).unwrap_or(0))
}

fn whole_ms(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use nkeys::{KeyPair, KeyPairType};

    use super::*;

    #[test]
    fn a_key_and_its_operator_make_one_job() {
        let operator = |seed| PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [seed; 32]).unwrap());
        let job = job_of_key("deploy-42", &operator(1)).unwrap();
        assert_eq!(job_of_key("deploy-42", &operator(1)).unwrap(), job);
        assert_ne!(job_of_key("deploy-43", &operator(1)).unwrap(), job);
        assert_ne!(job_of_key("deploy-42", &operator(2)).unwrap(), job);
        assert_eq!(JobId::parse(job.to_string()), Ok(job));
        assert_eq!(job_of_key("", &operator(1)).unwrap_err().exit_code(), 2);
        assert_eq!(job_of_key(&"k".repeat(257), &operator(1)).unwrap_err().exit_code(), 2);
    }
}
