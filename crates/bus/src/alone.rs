//! Events that stand alone, unsigned: what cannot be used, and what programs complain of.

use bytes::Bytes;
use message::order::DEFAULT_DOMAIN;
use message::received::DEAD_LETTER;
use message::{NodeName, Received, Token};
use serde_json::Value;

use crate::clock;
use crate::connect::Bus;
use crate::error::BusError;
use crate::wire::Headers;

impl Bus {
    /// Publishes a record that stands alone on `<node>.event.<method>.<domain>`: as a
    /// [CloudEvent](https://github.com/cloudevents/spec) in binary mode, so that others can take it without knowing of batches.
    /// It is not signed: nobody vouches for it.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn tell_alone(
        &self,
        node: &NodeName,
        method: &str,
        domain: &str,
        id: &str,
        record: &Value,
    ) -> Result<(), BusError> {
        let headers = Headers::new()
            .with_id(id)
            .with("ce-specversion", "1.0")
            .with("ce-id", id)
            .with("ce-source", &format!("/steward/nodes/{node}"))
            .with("ce-type", &format!("steward.event.{method}"))
            .with("ce-subject", domain)
            .with("ce-time", &clock::now().to_string())
            .with("ce-datacontenttype", "application/json");
        self.publish(&format!("{node}.event.{method}.{domain}"), headers, Bytes::from(record.to_string())).await?;
        Ok(())
    }

    /// Puts aside what a receiver on `node` cannot use: on `<node>.event.deadletter.<domain>`, with the reason.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn put_aside(&self, node: &NodeName, received: &Received, reason: &str) -> Result<(), BusError> {
        let domain = received.subject.rsplit('.').next().and_then(|domain| Token::domain(domain).ok());
        let domain = domain.map_or_else(|| DEFAULT_DOMAIN.to_owned(), |domain| domain.to_string());
        // The same for the same message: told again after a crash, it counts once.
        let id = format!("dead-{}-{}", received.sequence, received.stored.as_ms());
        self.tell_alone(node, DEAD_LETTER, &domain, &id, &received.letter(reason)).await
    }
}
