//! Jobs in JSON, as `cli.md` fixes it.

use data_encoding::BASE64;
use message::{OutputTally, State};
use serde_json::{Map, Value, json};

use super::{JobView, NodeProgress, Update};

impl JobView {
    /// As `run -o json` and `job show -o json` print it.
    pub fn to_json(&self) -> Value {
        let mut job = self.head();
        let nodes: Map<_, _> = self.nodes.iter().map(|(name, progress)| (name.to_string(), node(progress))).collect();
        job.insert("nodes".into(), Value::Object(nodes));
        Value::Object(job)
    }

    /// As the last line of `run -o ndjson`: `{"type": "summary", …}`, without the nodes.
    pub fn summary_json(&self) -> Value {
        let mut job = self.head();
        job.insert("type".into(), json!("summary"));
        Value::Object(job)
    }

    fn head(&self) -> Map<String, Value> {
        let counts: Map<_, _> =
            self.counts().into_iter().map(|(state, count)| (state.to_string(), count.into())).collect();
        let record = &self.record;
        let retry_of = record.retry_of.iter().map(|job| ("retry_of".to_owned(), json!(job)));
        let secrets = (!record.secrets.is_empty()).then(|| ("secrets".to_owned(), json!(record.secrets)));
        let head: [(String, Value); 8] = [
            ("job".into(), json!(record.job)),
            ("by".into(), json!(record.by)),
            ("method".into(), json!(record.method)),
            ("domain".into(), json!(record.domain)),
            ("created_at".into(), json!(record.created)),
            ("expires_at".into(), json!(record.expires)),
            ("targets".into(), json!(self.nodes.len())),
            ("counts".into(), Value::Object(counts)),
        ];
        head.into_iter().chain(retry_of).chain(secrets).collect()
    }
}

fn node(progress: &NodeProgress) -> Value {
    let mut object = Map::new();
    object.insert("state".into(), json!(progress.state()));
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            object.insert(name.to_owned(), value);
        }
    };
    put("reason", progress.reason.as_ref().map(|reason| json!(reason)));
    let at = |state| progress.history.at(state).map(|at| json!(at));
    put("delivered_at", at(State::Delivered));
    put("started_at", at(State::Running));
    // A second is no error: reading a clock over a slow link takes as long.
    put(
        "clock_error_ms",
        progress.clock_error_ms.filter(|error| error.unsigned_abs() >= 1000).map(|error| json!(error)),
    );
    put("finished_at", progress.history.finished_at().map(|at| json!(at)));

    let outcome = progress.outcome.as_ref();
    put("exit_code", outcome.and_then(|outcome| outcome.exit_code).map(Value::from));
    put("signal", outcome.and_then(|outcome| outcome.signal).map(Value::from));
    put("data", outcome.and_then(|outcome| outcome.data.clone()));
    let tallies = [outcome.and_then(|outcome| outcome.stdout.as_ref()), outcome.and_then(|o| o.stderr.as_ref())];
    for ((name, kept), tally) in [("stdout", &progress.stdout), ("stderr", &progress.stderr)].into_iter().zip(tallies) {
        if progress.keeps_output() && (tally.is_some() || !kept.is_empty()) {
            let (name, value) = bytes(name, kept);
            put(&name, Some(value));
        }
        let cut = tally.filter(|tally| tally.truncated());
        put(&format!("{name}_total_bytes"), cut.map(|tally| json!(tally.total_bytes)));
    }
    if tallies.iter().any(Option::is_some) {
        put("truncated", Some(json!(tallies.into_iter().flatten().any(OutputTally::truncated))));
    }
    put("output_broken", progress.output_broken.as_ref().map(|reason| json!(reason)));
    Value::Object(object)
}

/// Bytes as text where they are text; else in base64, under a name that says so.
fn bytes(name: &str, bytes: &[u8]) -> (String, Value) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), json!(text)),
        Err(_) => (format!("{name}_base64"), json!(BASE64.encode(bytes))),
    }
}

impl Update {
    /// As a line of `run -o ndjson`.
    pub fn to_json(&self) -> Value {
        match self {
            Self::State { node, state, at, reason } => {
                let mut line = json!({"type": "state", "node": node, "state": state, "at": at});
                if let Some(reason) = reason {
                    line["reason"] = json!(reason);
                }
                line
            }
            Self::Output { node, stream, bytes: raw } => {
                let mut line = json!({"type": "output", "node": node, "stream": stream});
                let (name, value) = bytes("data", raw);
                line[name] = value;
                line
            }
            Self::Note { node, text } => {
                let mut line = json!({"type": "note", "text": text});
                if let Some(node) = node {
                    line["node"] = json!(node);
                }
                line
            }
        }
    }
}
