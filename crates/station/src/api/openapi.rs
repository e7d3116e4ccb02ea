//! The description of the API: OpenAPI 3.1, served and committed as `docs/openapi.json`.

use serde_json::{Value, json};

use super::{EVENTS_MAX, NODE_JOBS_MAX};
use crate::view::{JOBS_MAX, NODE_STATES, PAGE_MAX};

/// The document.
pub(super) fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Steward station",
            "version": "1",
            "summary": "How the units of a fleet and the orders to them stand, with their age.",
            "description": "Read-only: an order needs an operator's signature, and is placed with `steward run`. Every answer \
                that comes from the station's view tells for which time of the broker it holds (`as_of`) and whether the view \
                follows the broker (`live`); the header `Steward-View-Age-Seconds` tells how long ago the broker confirmed it.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }, {}],
        "paths": paths(),
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`steward station token add NAME` makes one. Role `watch` sees how nodes and jobs stand, role \
                        `read` also facts, events and output. On loopback none is needed until the first one is made.",
                },
            },
            "schemas": schemas(),
            "responses": {
                "Problem": {
                    "description": "What is wrong: 400 the request, 401 no token, 403 the token's role, 404 nothing of that name, \
                        503 it cannot be told now.",
                    "content": { "application/problem+json": { "schema": reference("Problem") } },
                },
            },
        },
    })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn answer(description: &str, schema: Value) -> Value {
    json!({
        "200": { "description": description, "content": { "application/json": { "schema": schema } } },
        "default": { "$ref": "#/components/responses/Problem" },
    })
}

fn query(name: &str, description: &str, schema: Value) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": schema })
}

fn in_path(name: &str, description: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "description": description, "schema": { "type": "string" } })
}

fn limit(most: usize) -> Value {
    let schema = json!({ "type": "integer", "minimum": 1, "maximum": most, "default": most.min(super::query::PAGE) });
    query("limit", "How many at most.", schema)
}

fn cursor() -> Value {
    query("cursor", "The `next` of the page before.", json!({ "type": "string" }))
}

fn text() -> Value {
    json!({ "type": "string" })
}

/// What says which nodes are meant.
fn which_nodes() -> Vec<Value> {
    let states = NODE_STATES.map(|state| state.as_str());
    vec![
        query("target", "Names and globs, separated by commas: `ship*,hub`.", text()),
        query("selector", "What the labels have to be, as in Kubernetes: `site in (oslo, kiel), role!=spare`.", text()),
        query("where", "What has to hold, in CEL: `facts.memory.total > 4e9 && online`.", text()),
        query(
            "state",
            "In one of these states; separated by commas, or given several times.",
            json!({ "type": "array", "items": { "type": "string", "enum": states } }),
        ),
        query("text", "What the name or a label holds, capitals not counting.", text()),
    ]
}

fn with(mut parameters: Vec<Value>, more: impl IntoIterator<Item = Value>) -> Vec<Value> {
    parameters.extend(more);
    parameters
}

fn flag() -> Value {
    json!({ "type": "boolean", "default": false })
}

fn order_states() -> Value {
    let words: Vec<&str> = ["open"].into_iter().chain(message::State::ALL.iter().map(|state| state.as_str())).collect();
    query(
        "state",
        "With orders in one of these states; `open`: not ended. Separated by commas, or given several times.",
        json!({ "type": "array", "items": { "type": "string", "enum": words } }),
    )
}

fn paths() -> Value {
    let get = |id: &str, summary: &str, parameters: Vec<Value>, responses: Value| json!({ "get": { "operationId": id, "summary": summary, "parameters": parameters, "responses": responses } });
    let sort = query(
        "sort",
        "In what order.",
        json!({ "type": "string", "enum": ["name", "state", "last_seen"], "default": "name" }),
    );
    let count = query("count", "Whether all that are meant are counted, by state.", flag());
    let facts = query("facts", "Whether facts are told.", flag());
    json!({
        "/api/v1": get("about", "What this station is, and whether its view can be relied on.", vec![], answer("This station.", reference("About"))),
        "/api/v1/openapi.json": get("openapi", "This document. Needs no token.", vec![], answer("This document.", json!({ "type": "object" }))),
        "/api/v1/nodes": get(
            "nodes",
            "Nodes, page by page.",
            with(which_nodes(), [sort, limit(PAGE_MAX), cursor(), count, facts]),
            answer("A page of nodes.", reference("Nodes")),
        ),
        "/api/v1/nodes/{node}": get(
            "node",
            "One node, with its facts if the token's role allows it.",
            vec![in_path("node", "Its name.")],
            answer("The node.", reference("NodeDetail")),
        ),
        "/api/v1/nodes/{node}/jobs": get(
            "nodeJobs",
            "The newest jobs that a node has answered, newest first.",
            vec![in_path("node", "Its name."), limit(NODE_JOBS_MAX)],
            answer("Its jobs.", reference("NodeJobs")),
        ),
        "/api/v1/nodes/{node}/history": get(
            "nodeHistory",
            "How a node has stood, the oldest first. What nobody observed is `unknown`.",
            vec![in_path("node", "Its name.")],
            answer("Its history.", reference("NodeHistory")),
        ),
        "/api/v1/groups": get(
            "groups",
            "How the nodes stand, by the values of a label.",
            with(which_nodes(), [json!({ "name": "by", "in": "query", "required": true, "description": "The label.", "schema": { "type": "string" } })]),
            answer("The groups, in the order of the values; those without the label last.", reference("Groups")),
        ),
        "/api/v1/jobs": get(
            "jobs",
            "The newest jobs, newest first.",
            vec![
                query("by", "Ordered by this operator.", text()),
                query("method", "Of this method.", text()),
                query("domain", "Of this domain.", text()),
                order_states(),
                limit(JOBS_MAX),
            ],
            answer("Jobs.", reference("Jobs")),
        ),
        "/api/v1/jobs/{job}": get(
            "job",
            "One job and how it stands at its nodes, page by page.",
            vec![in_path("job", "Its id, or a beginning of it that no other job has."), order_states(), limit(PAGE_MAX), cursor()],
            answer("The job.", reference("Job")),
        ),
        "/api/v1/jobs/{job}/nodes/{node}": get(
            "jobNode",
            "What one node made of a job, with its output. Role `read`.",
            vec![in_path("job", "The job's id."), in_path("node", "The node's name.")],
            answer("The node's part.", reference("JobNode")),
        ),
        "/api/v1/events": get(
            "events",
            "What nodes reported. Without `since` and `until`: the latest ones, newest first; with one of them: what the broker stored then, oldest first. Role `read`.",
            vec![
                query("from", "Who reported it: a name or glob.", text()),
                query("to", "Who was told: a name or glob.", text()),
                query("method", "The method: a word or glob.", text()),
                query("domain", "The domain: a word or glob.", text()),
                query("since", "From this time on (RFC 3339), or how long ago (`2h`).", text()),
                query("until", "Until this time, or how long ago.", text()),
                query("grep", "A text that the record holds, capitals counting.", text()),
                query("where", "An expression over `record`, and `name` and `labels` of who reports it: `record.status >= 500`.", text()),
                limit(EVENTS_MAX),
            ],
            answer("Events.", reference("Events")),
        ),
        "/api/v1/stream": {
            "get": {
                "operationId": "stream",
                "summary": "What changes, as it changes: server-sent events.",
                "description": "Events: `node` (a node, as in /api/v1/nodes; `{\"name\", \"state\": \"gone\"}` when it was taken off the \
                    list), `job` (a job, as in /api/v1/jobs), `event` (an event, as in /api/v1/events), `status` (`{\"live\", \
                    \"reason\"}`), `reset` (`{\"reason\"}`: changes were missed, read everything again). Who comes back with \
                    `Last-Event-ID` gets what he missed, or `reset`. A node is told when its state or its record changes, not with \
                    each sign of life.",
                "parameters": [
                    query("topic", "What is followed; everything that the role allows, if it is left out. `event` needs role `read`.",
                        json!({ "type": "array", "items": { "type": "string", "enum": ["node", "job", "event"] } })),
                    { "name": "Last-Event-ID", "in": "header", "description": "The id of the last event that was seen.", "schema": { "type": "string" } },
                ],
                "responses": {
                    "200": { "description": "A stream that does not end.", "content": { "text/event-stream": { "schema": { "type": "string" } } } },
                    "default": { "$ref": "#/components/responses/Problem" },
                },
            },
        },
    })
}

/// An object of which these members are always there, and these now and then; nothing else.
fn object(always: Value, sometimes: Value) -> Value {
    let mut properties = always.as_object().cloned().unwrap_or_default();
    let required: Vec<String> = properties.keys().cloned().collect();
    properties.extend(sometimes.as_object().cloned().unwrap_or_default());
    json!({ "type": "object", "required": required, "properties": properties, "additionalProperties": false })
}

fn list(item: Value) -> Value {
    json!({ "type": "array", "items": item })
}

fn schemas() -> Value {
    let time = json!({ "type": "string", "format": "date-time" });
    let maybe_time = json!({ "type": ["string", "null"], "format": "date-time" });
    let maybe_text = json!({ "type": ["string", "null"] });
    let count = json!({ "type": "integer", "minimum": 0 });
    let node_counts =
        json!({ "type": "object", "additionalProperties": count, "description": "How many are in each state." });
    let node_state = json!({ "type": "string", "enum": NODE_STATES.map(|state| state.as_str()) });
    let order_state = json!({ "type": "string", "enum": message::State::ALL.map(|state| state.as_str()) });
    let node = json!({
        "name": text(), "state": node_state, "reason": maybe_text, "last_seen": maybe_time,
        "labels": { "type": "object", "additionalProperties": { "type": "string" } },
        "version": maybe_text, "processes": count,
        "age_s": { "type": ["integer", "null"], "description": "How long ago it was last heard, in seconds." },
        "rtt_ms": {
            "type": ["integer", "null"], "minimum": 0,
            "description": "How long its life sign before the last took until the broker had confirmed it.",
        },
        "clock_offset_ms": {
            "type": ["integer", "null"], "description": "By how much its clock was ahead of the broker's at its last life sign.",
        },
    });
    let standing = json!({ "as_of": time, "live": { "type": "boolean" } });
    let job = json!({
        "job": text(), "created_at": time, "by": text(), "method": text(), "domain": text(), "targets": count,
        "counts": { "type": "object", "additionalProperties": count, "description": "How many orders are in each state." },
    });
    let job_node = (
        json!({ "name": text(), "state": order_state }),
        json!({
            "reason": text(), "delivered_at": time, "started_at": time, "finished_at": time,
            "clock_error_ms": { "type": "integer" }, "exit_code": { "type": "integer" }, "signal": { "type": "integer" },
            "data": {}, "truncated": { "type": "boolean" }, "output_broken": text(),
            "stdout": text(), "stdout_base64": text(), "stdout_total_bytes": count,
            "stderr": text(), "stderr_base64": text(), "stderr_total_bytes": count,
        }),
    );
    let merged = |one: &Value, other: &Value| {
        let members = one.as_object().into_iter().chain(other.as_object()).flatten();
        Value::Object(members.map(|(name, value)| (name.clone(), value.clone())).collect())
    };
    let facts = json!({ "facts": { "type": "object" } });
    let spoken = json!({
        "interval_s": count, "uptime_s": count, "running": count, "waiting": count, "outbox": count, "limits": list(text()),
    });
    json!({
        "About": object(json!({ "station": text(), "version": text(), "started": time, "live": { "type": "boolean" }, "reason": maybe_text }), json!({})),
        "Node": object(node.clone(), facts.clone()),
        "Nodes": object(
            merged(&json!({ "nodes": list(reference("Node")), "next": maybe_text }), &standing),
            json!({ "counts": node_counts }),
        ),
        "NodeDetail": object(
            merged(&merged(&node, &standing), &json!({ "key": text(), "enrolled": time, "by": text(), "revoked": maybe_time })),
            merged(&facts, &spoken),
        ),
        "NodeJobs": object(json!({ "jobs": list(object(
            json!({ "job": text(), "method": text(), "domain": text(), "state": order_state, "at": time }),
            json!({ "reason": text(), "exit_code": { "type": "integer" } }),
        )) }), json!({})),
        "NodeHistory": object(json!({
            "history": list(object(json!({ "state": node_state, "reason": maybe_text, "since": time, "until": maybe_time }), json!({}))),
            "notes": list(text()),
        }), json!({})),
        "Groups": object(
            merged(&json!({
                "groups": list(object(json!({ "value": maybe_text, "counts": node_counts }), json!({}))),
                "more": { "type": "boolean", "description": "Whether there are more values than are told." },
            }), &standing),
            json!({}),
        ),
        "JobSummary": object(job.clone(), json!({ "retry_of": text() })),
        "Jobs": object(merged(&json!({ "jobs": list(reference("JobSummary")) }), &standing), json!({})),
        "Job": object(
            merged(&job, &json!({ "expires_at": time, "nodes": list(reference("JobNode")), "next": maybe_text })),
            json!({ "retry_of": text(), "secrets": list(text()) }),
        ),
        "JobNode": object(job_node.0, job_node.1),
        "Event": object(
            json!({
                "subject": text(), "from": { "type": ["string", "null"], "description": "Who reported it; null when no signature proves it." },
                "to": text(), "method": text(), "domain": text(), "at": time, "id": text(), "record": { "type": "object" },
            }),
            json!({}),
        ),
        "Events": object(json!({ "events": list(reference("Event")), "more": { "type": "boolean" } }), json!({})),
        "Problem": object(json!({ "type": text(), "title": text(), "status": count, "detail": text() }), json!({})),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_that_is_committed_is_the_one_that_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let text = format!("{:#}\n", document());
        if std::env::var_os("STEWARD_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(path).unwrap() == text,
            "docs/openapi.json is old: STEWARD_BLESS=1 writes it anew"
        );
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn visit(value: &Value, document: &Value) {
            match value {
                Value::Object(members) => {
                    if let Some(target) = members.get("$ref").and_then(Value::as_str) {
                        assert!(document.pointer(&target[1..]).is_some(), "{target}");
                    }
                    members.values().for_each(|member| visit(member, document));
                }
                Value::Array(members) => members.iter().for_each(|member| visit(member, document)),
                _ => {}
            }
        }
        visit(&document(), &document());
    }
}
