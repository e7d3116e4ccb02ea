//! Being found: the discovery of NATS services (ADR-32), as `nats micro ls` asks. Whoever answers here offers nothing else by it.
//!
//! In flow questions on `$SRV.PING`, `$SRV.INFO`, `$SRV.STATS` (also with `.<name>` and `.<name>.<id>`), out flow answers to plain inboxes
//! and nowhere else: whoever asks chooses the subject of the answer, and must not have the broker store it somewhere by another's right.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use message::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::connect::Bus;
use crate::error::BusError;

/// Below this are the inboxes of plain clients.
const PLAIN_INBOX: &str = "_INBOX.";
/// So many answers are gathered.
const ANSWERS_MAX: usize = 1_000;

/// What is told of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its kind: letters, digits, `-` and `_`.
    pub name: String,
    /// Which one of its kind this is: another one after each start.
    pub id: String,
    /// Its version (SemVer).
    pub version: String,
    /// What it does: a sentence.
    pub description: String,
    /// More that is told: names and values.
    pub metadata: Vec<(String, String)>,
    /// Since when it runs.
    pub started: Timestamp,
}

impl Service {
    /// The answer to a question on `subject`, if it is one for this service. Pure.
    pub fn answer(&self, subject: &str) -> Option<Value> {
        let mut tokens = subject.strip_prefix("$SRV.")?.split('.');
        let verb = tokens.next()?;
        let is_meant = tokens.next().is_none_or(|name| name == self.name)
            && tokens.next().is_none_or(|id| id == self.id)
            && tokens.next().is_none();
        if !is_meant {
            return None;
        }
        let metadata: serde_json::Map<String, Value> =
            self.metadata.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        let kind = format!("io.nats.micro.v1.{}_response", verb.to_ascii_lowercase());
        let mut answer = json!({
            "type": kind, "name": self.name, "id": self.id, "version": self.version, "metadata": metadata,
        });
        match verb {
            "PING" => {}
            // Nothing is called over NATS: there are no endpoints.
            "INFO" => {
                answer["description"] = self.description.as_str().into();
                answer["endpoints"] = json!([]);
            }
            "STATS" => {
                answer["started"] = self.started.to_string().into();
                answer["endpoints"] = json!([]);
            }
            _ => return None,
        }
        Some(answer)
    }
}

fn failed(subject: &str, error: &dyn std::fmt::Display) -> BusError {
    BusError::Other { what: subject.to_owned(), reason: error.to_string() }
}

impl Bus {
    /// Answers who looks for services, until the connection is closed. To be dropped when that is enough.
    ///
    /// # Errors
    /// [`BusError`] when the questions cannot be subscribed to.
    pub async fn be_found(&self, service: &Service) -> Result<(), BusError> {
        const QUESTIONS: &str = "$SRV.>";
        let subscribed = self.client.subscribe(QUESTIONS.to_owned()).await;
        let mut questions = subscribed.map_err(|error| failed(QUESTIONS, &error))?;
        while let Some(question) = questions.next().await {
            let Some(inbox) = question.reply.as_deref().filter(|inbox| inbox.starts_with(PLAIN_INBOX)) else {
                continue;
            };
            if let Some(answer) = service.answer(&question.subject) {
                // Who asked will ask again.
                let _ = self.client.publish(inbox.to_owned(), Bytes::from(answer.to_string())).await;
            }
        }
        Ok(())
    }

    /// Asks who is there, as `nats micro ls` does, and gathers what is answered within `limit`. `verb` is `PING`, `INFO` or `STATS`.
    ///
    /// # Errors
    /// [`BusError`] when it cannot be asked.
    pub async fn services(&self, verb: &str, limit: Duration) -> Result<Vec<Value>, BusError> {
        let subject = format!("$SRV.{verb}");
        let inbox = format!("{PLAIN_INBOX}{}", crate::clock::message_id());
        let mut answers = self.client.subscribe(inbox.clone()).await.map_err(|error| failed(&subject, &error))?;
        let asked = self.client.publish_with_reply(subject.clone(), inbox, Bytes::new()).await;
        asked.map_err(|error| failed(&subject, &error))?;
        let (deadline, mut found) = (Instant::now() + limit, Vec::new());
        while let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await
            && found.len() < ANSWERS_MAX
        {
            // With nobody there the broker itself answers, without a body.
            if let Ok(answer) = serde_json::from_slice::<Value>(&answer.payload) {
                found.push(answer);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_answers_what_it_is_asked_and_nothing_for_others() {
        let service = Service {
            name: "steward-station".into(),
            id: "X1".into(),
            version: "0.1.0".into(),
            description: "the station".into(),
            metadata: vec![("station".into(), "central".into())],
            started: Timestamp::from_ms(0),
        };
        let ping = service.answer("$SRV.PING").unwrap();
        assert_eq!(ping["type"], "io.nats.micro.v1.ping_response");
        assert_eq!(
            (ping["name"].as_str(), ping["metadata"]["station"].as_str()),
            (Some("steward-station"), Some("central"))
        );
        assert_eq!(service.answer("$SRV.INFO.steward-station").unwrap()["endpoints"], json!([]));
        assert_eq!(service.answer("$SRV.STATS.steward-station.X1").unwrap()["started"], "1970-01-01T00:00:00.000Z");
        for other in
            ["$SRV.PING.other", "$SRV.PING.steward-station.X2", "$SRV.PING.steward-station.X1.x", "$SRV.RUN", "PING"]
        {
            assert_eq!(service.answer(other), None, "{other}");
        }
    }
}
