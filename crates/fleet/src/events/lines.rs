//! From a stored message to the records in it. Pure.

use bytes::Bytes;
use message::event::unpack;
use message::expression::{Known, Steps};
use message::{EventBatch, Kind, Labels, NodeName, Pattern, Subject, Timestamp};
use serde_json::{Map, Value};

use super::{EventFilter, EventLine};
use crate::glob;

/// A message of the stream of events.
pub(super) struct Arrived<'a> {
    pub(super) subject: &'a str,
    pub(super) payload: &'a Bytes,
    pub(super) sequence: u64,
    pub(super) stored_at: Timestamp,
    /// The id that its sender gave it.
    pub(super) id: Option<&'a str>,
    /// How it is compressed, if it is.
    pub(super) encoding: Option<&'a str>,
}

impl Arrived<'_> {
    /// The batch, if it is one that was made for the subject that it came on.
    pub(super) fn batch(&self) -> Option<EventBatch> {
        let bytes = unpack(self.payload, self.encoding).ok()?;
        EventBatch::parse(&bytes).ok().filter(|batch| batch.subject().to_string() == self.subject)
    }

    /// The records. With `proven` the batch's word counts for who, when and which; without it nothing does.
    pub(super) fn lines(&self, batch: Option<EventBatch>, proven: bool) -> Vec<EventLine> {
        let Ok(subject) = self.subject.parse::<Subject>() else { return Vec::new() };
        if subject.kind != Kind::Event {
            return Vec::new();
        }
        let line = |from: Option<NodeName>, at: Timestamp, id: String, record: Map<String, Value>| EventLine {
            subject: self.subject.to_owned(),
            from,
            to: subject.node.clone(),
            method: subject.method.clone(),
            domain: subject.domain.clone(),
            at,
            id,
            record,
        };
        match batch {
            Some(batch) if proven => {
                let head = batch.head;
                let numbered = batch.records.into_iter().enumerate();
                numbered
                    .map(|(n, record)| {
                        line(Some(head.from.clone()), record.at, format!("{}-{n}", head.id), record.record)
                    })
                    .collect()
            }
            Some(batch) => {
                let numbered = batch.records.into_iter().enumerate();
                numbered
                    .map(|(n, record)| line(None, self.stored_at, format!("{}-{n}", self.sequence), record.record))
                    .collect()
            }
            None => {
                let id = self.id.map_or_else(|| self.sequence.to_string(), ToOwned::to_owned);
                vec![line(None, self.stored_at, id, plain(self.payload))]
            }
        }
    }
}

/// What a plain NATS client sent: a JSON object as it is, anything else as a text.
fn plain(payload: &[u8]) -> Map<String, Value> {
    match serde_json::from_slice(payload) {
        Ok(Value::Object(record)) => record,
        _ => [("message".to_owned(), Value::from(String::from_utf8_lossy(payload)))].into_iter().collect(),
    }
}

impl EventFilter {
    /// The subject that comes nearest to what is wanted; [`Self::wants`] does the rest.
    pub(super) fn subject(&self) -> String {
        let token = |wanted: Option<&str>| match wanted {
            Some(text) if !glob::is_glob(text) => text.to_owned(),
            _ => "*".to_owned(),
        };
        let to = self.to.as_ref().map(ToString::to_string);
        format!("{}.event.{}.{}", token(to.as_deref()), token(self.method.as_deref()), token(self.domain.as_deref()))
    }

    /// What a node is told, whoever reports it.
    pub fn told_to(node: &NodeName) -> Self {
        Self { to: Pattern::parse_list(node.as_str()).ok().and_then(|mut patterns| patterns.pop()), ..Self::default() }
    }

    /// Whether a record is wanted; with the labels of who reports it, where they are known.
    pub fn wants(&self, line: &EventLine, labels: Option<&Labels>) -> bool {
        let globbed =
            |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|glob| glob::matches(glob, text));
        self.from.as_ref().is_none_or(|wanted| line.from.as_ref().is_some_and(|from| wanted.matches(from)))
            && self.to.as_ref().is_none_or(|wanted| wanted.matches(&line.to))
            && globbed(&self.method, line.method.as_str())
            && globbed(&self.domain, line.domain.as_str())
            && self.grep.as_ref().is_none_or(|text| holds(&line.record, text))
            && self.condition.as_ref().is_none_or(|condition| {
                let (none, record) = (Labels::new(), Value::Object(line.record.clone()));
                let name = line.from.as_ref().map_or("", NodeName::as_str);
                let known = Known::of_record(name, labels.unwrap_or(&none), &record);
                // Too costly a question has no answer; a single record cannot take that many steps.
                condition.holds(&known, &mut Steps::default()).unwrap_or(false)
            })
    }
}

/// Whether a text of the record, or the record as it is printed, holds `text`.
fn holds(record: &Map<String, Value>, text: &str) -> bool {
    fn value(own: &Value, text: &str) -> bool {
        match own {
            Value::String(own) => own.contains(text),
            Value::Array(values) => values.iter().any(|own| value(own, text)),
            Value::Object(values) => values.values().any(|own| value(own, text)),
            _ => false,
        }
    }
    record.values().any(|own| value(own, text)) || serde_json::to_string(record).is_ok_and(|own| own.contains(text))
}

#[cfg(test)]
mod tests {
    use message::event::EventHead;
    use message::{EventRecord, Expression, MessageId, Token, WIRE_VERSION};
    use serde_json::json;

    use super::*;

    fn batch() -> EventBatch {
        let record = |text: &str| [("message".to_owned(), Value::from(text))].into_iter().collect();
        EventBatch {
            head: EventHead {
                v: WIRE_VERSION,
                kind: Kind::Event,
                id: MessageId::from_bytes([9; 16]),
                from: NodeName::new("ship1").unwrap(),
                to: NodeName::new("central").unwrap(),
                method: Token::method("syslogforwarding").unwrap(),
                domain: Token::domain("nginx").unwrap(),
                created: Timestamp::from_ms(0),
                count: 2,
                journal: None,
                row: None,
            },
            records: vec![
                EventRecord { at: Timestamp::from_ms(1), record: record("GET /") },
                EventRecord { at: Timestamp::from_ms(2), record: record("a \"quoted\" word") },
            ],
        }
    }

    fn arrived<'a>(subject: &'a str, payload: &'a Bytes) -> Arrived<'a> {
        Arrived { subject, payload, sequence: 7, stored_at: Timestamp::from_ms(5), id: None, encoding: None }
    }

    const SUBJECT: &str = "central.event.syslogforwarding.nginx";

    #[test]
    fn a_proven_batch_is_a_line_for_each_record() {
        let payload = Bytes::from(batch().to_bytes());
        let arrived = arrived(SUBJECT, &payload);
        let lines = arrived.lines(arrived.batch(), true);
        let json = serde_json::to_value(&lines[1]).unwrap();
        assert_eq!(
            json,
            json!({"subject": SUBJECT, "from": "ship1", "to": "central", "method": "syslogforwarding",
                   "domain": "nginx", "at": "1970-01-01T00:00:00.002Z", "id": format!("{}-1", batch().head.id),
                   "record": {"message": "a \"quoted\" word"}})
        );
    }

    #[test]
    fn what_is_not_proven_says_nothing_about_who_and_when() {
        let payload = Bytes::from(batch().to_bytes());
        let arrived_here = arrived(SUBJECT, &payload);
        let lines = arrived_here.lines(arrived_here.batch(), false);
        assert_eq!((&lines[0].from, lines[0].at.as_ms(), lines[0].id.as_str()), (&None, 5, "7-0"));
        // A batch that was signed for another subject is no batch here.
        let elsewhere = arrived("central.event.syslogforwarding.apache", &payload);
        assert!(elsewhere.batch().is_none());
    }

    #[test]
    fn what_a_plain_client_sends_is_one_line() {
        for (payload, record) in [
            ("disk full", json!({"message": "disk full"})),
            ("{\"disk\": 99}", json!({"disk": 99})),
            ("[1]", json!({"message": "[1]"})),
        ] {
            let payload = Bytes::from(payload);
            let arrived = arrived(SUBJECT, &payload);
            let lines = arrived.lines(arrived.batch(), false);
            assert_eq!((lines.len(), lines[0].id.as_str(), &lines[0].from), (1, "7", &None));
            assert_eq!(Value::Object(lines[0].record.clone()), record);
        }
    }

    #[test]
    fn a_filter_narrows_the_subject_and_then_the_records() {
        let filter = EventFilter {
            to: Some(Pattern::parse_list("central").unwrap().remove(0)),
            method: Some("syslog*".into()),
            domain: Some("nginx".into()),
            ..EventFilter::default()
        };
        assert_eq!(filter.subject(), "central.event.*.nginx");
        assert_eq!(EventFilter::default().subject(), "*.event.*.*");
        let payload = Bytes::from(batch().to_bytes());
        let arrived = arrived(SUBJECT, &payload);
        let lines = arrived.lines(arrived.batch(), true);
        assert!(filter.wants(&lines[0], None));
        let grep = EventFilter { grep: Some("\"quoted\"".into()), ..filter.clone() };
        assert!(!grep.wants(&lines[0], None) && grep.wants(&lines[1], None));
        let condition = |text: &str| Some(Expression::over_records(text).unwrap());
        let asked = EventFilter {
            condition: condition("name == 'ship1' && record.message.startsWith('GET')"),
            ..filter.clone()
        };
        assert!(asked.wants(&lines[0], None) && !asked.wants(&lines[1], None));
        let labels = Labels::from([("site".to_owned(), "oslo".to_owned())]);
        let asked = EventFilter { condition: condition("labels.site == 'oslo'"), ..filter.clone() };
        assert!(asked.wants(&lines[0], Some(&labels)) && !asked.wants(&lines[0], None));
        let from = EventFilter { from: Some(Pattern::parse_list("ship2").unwrap().remove(0)), ..filter.clone() };
        assert!(!from.wants(&lines[0], None));
        let anyone = EventFilter { from: Some(Pattern::parse_list("*").unwrap().remove(0)), ..filter };
        assert!(!anyone.wants(&arrived.lines(arrived.batch(), false)[0], None), "nobody proven matches no name");
    }
}
