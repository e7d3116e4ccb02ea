//! The HTTP API, version 1: what the station knows, as JSON, and what changes, as server-sent events.
//!
//! What is at hand is answered from the view in memory; one job, one node's jobs and older events are read from the broker,
//! by a bounded number of requests at a time. Nothing can be ordered here: an order needs an operator's signature and an
//! entry in the audit log that only he can write.

mod openapi;
pub(crate) mod problem;
pub(crate) mod query;
pub(crate) mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use fleet::{EventFilter, EventLine, Fleet, Gather, JobView, Node};
use message::{JobId, NodeName, NodeState, State as OrderState, Timestamp};
use serde_json::{Map, Value, json};

use crate::access::Role;
use crate::freshness::Freshness;
use crate::http::{Site, Who};
use crate::lookup;
use crate::view::{BrokerClock, Group, JOBS_MAX, View};
use problem::Problem;
use query::{EVENT_PARAMS, JOB_PARAMS, NODE_PARAMS, Params};

/// How long ago the broker last confirmed what an answer says, in seconds.
const VIEW_AGE: HeaderName = HeaderName::from_static("steward-view-age-seconds");
/// So long a request may wait for the broker.
const BROKER_MAX: Duration = Duration::from_secs(20);
/// So many events an answer has at most.
pub(crate) const EVENTS_MAX: usize = 1000;
/// So many of a node's jobs are told at most.
pub(crate) const NODE_JOBS_MAX: usize = 100;

type Answer = Result<Response, Problem>;

/// All routes below `/api`.
pub(crate) fn router() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1", get(about))
        .route("/api/v1/openapi.json", get(|| async { written(openapi::document().to_string()) }))
        .route("/api/v1/nodes", get(nodes))
        .route("/api/v1/nodes/{node}", get(node))
        .route("/api/v1/nodes/{node}/jobs", get(node_jobs))
        .route("/api/v1/nodes/{node}/history", get(node_history))
        .route("/api/v1/groups", get(groups))
        .route("/api/v1/jobs", get(jobs))
        .route("/api/v1/jobs/{job}", get(job))
        .route("/api/v1/jobs/{job}/nodes/{node}", get(job_node))
        .route("/api/v1/events", get(events))
        .route("/api/v1/stream", get(stream::stream))
        .route(
            "/api/{*rest}",
            get(|| async { Problem::absent("there is nothing here; /api/v1/openapi.json tells what there is") }),
        )
}

/// Whether nobody has to be known for this.
pub(crate) fn is_open(path: &str) -> bool {
    path == "/api/v1/openapi.json"
}

/// JSON.
fn written(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Lets through who may see what was said.
pub(crate) fn reader(who: &Who) -> Result<(), Problem> {
    if who.role() >= Some(Role::Read) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "this token shows how nodes and jobs stand; for this, one with --role read is needed",
    ))
}

/// The view at one moment.
pub(crate) struct Moment<'a> {
    pub(crate) view: &'a View,
    /// The broker's time.
    pub(crate) now: Timestamp,
    /// That for which states are told.
    pub(crate) clock: BrokerClock,
}

/// Answers from the view, off the threads that serve: a look at a large fleet takes a while.
pub(crate) async fn from_view<T: Send + 'static>(
    site: &Arc<Site>,
    pick: impl FnOnce(&Moment<'_>) -> Result<T, Problem> + Send + 'static,
) -> Result<(T, Standing), Problem> {
    let site = Arc::clone(site);
    let picked = tokio::task::spawn_blocking(move || {
        let (status, at) = (site.shared.read(), Instant::now());
        let (Some(view), Some((now, clock))) = (&status.view, status.clocks(at)) else {
            return Err(Problem::later(format!("there is no view of the fleet yet: {}", status.doing)));
        };
        let standing = Standing {
            as_of: clock.now,
            age: status.age(at).unwrap_or_default(),
            live: status.freshness(at) == Freshness::Live,
        };
        Ok((pick(&Moment { view, now, clock })?, standing))
    });
    picked.await.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
}

/// How far an answer can be relied on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    as_of: Timestamp,
    age: Duration,
    live: bool,
}

impl Standing {
    /// An answer with it.
    fn told(self, mut body: Map<String, Value>) -> Response {
        body.insert("as_of".into(), json!(self.as_of));
        body.insert("live".into(), json!(self.live));
        let mut response = written(Value::Object(body).to_string());
        response.headers_mut().insert(VIEW_AGE, HeaderValue::from(self.age.as_secs()));
        response
    }
}

/// Asks the broker, as one of few at a time.
pub(crate) async fn from_broker<T>(
    site: &Site,
    ask: impl AsyncFnOnce(&Fleet) -> Result<T, Problem>,
) -> Result<T, Problem> {
    let Some(fleet) = &site.fleet else { return Err(Problem::later("the broker cannot be asked")) };
    let asked = async {
        // Never closed, so a turn always comes.
        let _turn = site.turns.acquire().await;
        ask(fleet).await
    };
    match tokio::time::timeout(BROKER_MAX, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(Problem::later(format!("the broker did not answer within {} s", BROKER_MAX.as_secs()))),
    }
}

fn object(pairs: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

async fn about(State(site): State<Arc<Site>>) -> Response {
    let status = site.shared.read();
    let about = &site.shared.about;
    let (live, reason) = match status.freshness(Instant::now()) {
        Freshness::Live => (true, Value::Null),
        Freshness::Stale { reason, .. } | Freshness::Empty { reason } => (false, json!(reason)),
    };
    let body = json!({
        "station": about.station,
        "version": env!("CARGO_PKG_VERSION"),
        "started": about.started,
        "live": live,
        "reason": reason,
    });
    written(body.to_string())
}

async fn nodes(State(site): State<Arc<Site>>, Extension(who): Extension<Who>, RawQuery(text): RawQuery) -> Answer {
    let query = query::nodes(&Params::read(text.as_deref(), &NODE_PARAMS)?)?;
    if query.facts || query.selection.needs_facts() {
        reader(&who)?;
    }
    let facts = query.facts;
    let (body, standing) = from_view(&site, move |moment| {
        let page = moment.view.page(&query, moment.clock, moment.now);
        let page = page.map_err(|error| Problem::usage(error.to_string()))?;
        let mut body = object([
            ("nodes", page.nodes.iter().map(|node| listed(node, facts)).collect()),
            ("next", json!(page.next.map(|next| next.to_string()))),
        ]);
        if let Some(counts) = page.counts {
            body.insert("counts".into(), counted(&counts));
        }
        Ok(body)
    })
    .await?;
    Ok(standing.told(body))
}

fn counted(counts: &[(NodeState, usize)]) -> Value {
    Value::Object(counts.iter().map(|(state, count)| (state.to_string(), json!(count))).collect())
}

/// As `node ls -o json` lists it, with its age; without facts that nobody asked for.
pub(crate) fn listed(node: &Node, facts: bool) -> Value {
    let mut value = node.to_json();
    if let Some(object) = value.as_object_mut() {
        if !facts {
            object.remove("facts");
        }
        object.insert("age_s".into(), json!(node.age.map(|age| age.as_secs())));
    }
    value
}

async fn node(State(site): State<Arc<Site>>, Extension(who): Extension<Who>, Path(name): Path<String>) -> Answer {
    let facts = reader(&who).is_ok();
    let (node, standing) = one_node(&site, &name).await?;
    let mut body = match listed(&node, facts) {
        Value::Object(body) => body,
        _ => Map::new(),
    };
    let record = &node.record;
    body.extend(object([
        ("key", json!(record.key)),
        ("enrolled", json!(record.enrolled)),
        ("by", json!(record.by)),
        ("revoked", json!(record.revoked)),
    ]));
    if let Some(sign) = &node.sign {
        body.extend(object([
            ("interval_s", json!(sign.interval_ms / 1000)),
            ("uptime_s", json!(sign.uptime_s)),
            ("running", json!(sign.running)),
            ("waiting", json!(sign.waiting)),
            ("outbox", json!(sign.outbox)),
            ("limits", json!(sign.limits)),
        ]));
    }
    Ok(standing.told(body))
}

/// A node by its name.
pub(crate) async fn one_node(site: &Arc<Site>, name: &str) -> Result<(Node, Standing), Problem> {
    let name = NodeName::new(name).map_err(|error| Problem::absent(error.to_string()))?;
    from_view(site, move |moment| {
        let node = moment.view.node(&name, moment.clock, moment.now);
        node.ok_or_else(|| Problem::absent(format!("there is no node {name}")))
    })
    .await
}

async fn node_history(State(site): State<Arc<Site>>, Path(name): Path<String>) -> Answer {
    let (node, _) = one_node(&site, &name).await?;
    let history = from_broker(&site, async |fleet| Ok(fleet.history(&node).await?)).await?;
    Ok(written(json!({ "history": history.to_json(), "notes": history.notes }).to_string()))
}

async fn node_jobs(State(site): State<Arc<Site>>, Path(name): Path<String>, RawQuery(text): RawQuery) -> Answer {
    let limit = Params::read(text.as_deref(), &["limit"])?.limit(NODE_JOBS_MAX)?;
    let (node, _) = one_node(&site, &name).await?;
    let jobs = from_broker(&site, async |fleet| Ok(lookup::jobs_of(fleet, &node.record, limit).await?)).await?;
    Ok(written(json!({ "jobs": jobs }).to_string()))
}

async fn groups(State(site): State<Arc<Site>>, Extension(who): Extension<Who>, RawQuery(text): RawQuery) -> Answer {
    let known: Vec<&str> = NODE_PARAMS.into_iter().chain(["by"]).collect();
    let params = Params::read(text.as_deref(), &known)?;
    let key = params.get("by").ok_or_else(|| Problem::usage("by which label? `by=site`"))?.to_owned();
    let query = query::nodes(&params)?;
    if query.selection.needs_facts() {
        reader(&who)?;
    }
    let (body, standing) = from_view(&site, move |moment| {
        let groups = moment.view.groups(&key, &query, moment.clock, moment.now);
        let (groups, more) = groups.map_err(|error| Problem::usage(error.to_string()))?;
        let group = |group: &Group| json!({ "value": group.value, "counts": counted(&group.counts) });
        Ok(object([("groups", groups.iter().map(group).collect()), ("more", json!(more))]))
    })
    .await?;
    Ok(standing.told(body))
}

async fn jobs(State(site): State<Arc<Site>>, RawQuery(text): RawQuery) -> Answer {
    let query = query::jobs(&Params::read(text.as_deref(), &JOB_PARAMS)?, JOBS_MAX)?;
    let (body, standing) = from_view(&site, move |moment| {
        let jobs = moment.view.jobs.newest(usize::MAX).into_iter().filter(|job| query.wants(job)).take(query.limit);
        Ok(object([("jobs", json!(jobs.collect::<Vec<_>>()))]))
    })
    .await?;
    Ok(standing.told(body))
}

/// The job that `text` names: a whole id, or the beginning of one that no other begins with.
pub(crate) async fn job_id(fleet: &Fleet, text: &str) -> Result<JobId, Problem> {
    match JobId::parse(text) {
        Ok(job) => Ok(job),
        // The newest of the station's own jobs: it has none.
        Err(_) if text == "last" => Err(Problem::absent("there is no job `last` here: that is an operator's word")),
        Err(_) => Ok(fleet.find_job(text).await?),
    }
}

async fn job(State(site): State<Arc<Site>>, Path(job): Path<String>, RawQuery(text): RawQuery) -> Answer {
    let params = Params::read(text.as_deref(), &["state", "limit", "cursor"])?;
    let (states, limit) = (query::order_states(&params)?, params.limit(crate::view::PAGE_MAX)?);
    let after = params.get("cursor").map(NodeName::new).transpose();
    let after = after.map_err(|_| Problem::usage("cursor: it is the `next` of an answer before"))?;
    let view = from_broker(&site, async |fleet| {
        let job = job_id(fleet, &job).await?;
        Ok(fleet.job(&job, Gather::Ignore).await?)
    })
    .await?;
    let (head, nodes, next) = job_page(view, &states, after.as_ref(), limit, Order::Name);
    let mut body = head;
    body.insert("nodes".into(), Value::Array(nodes));
    body.insert("next".into(), json!(next));
    Ok(written(Value::Object(body).to_string()))
}

/// In which order the nodes of a job are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// By name, page by page.
    Name,
    /// Those that did not succeed first; one page.
    WorstFirst,
}

/// The head of a job, and a page of its nodes.
pub(crate) fn job_page(
    mut view: JobView,
    states: &[OrderState],
    after: Option<&NodeName>,
    limit: usize,
    order: Order,
) -> (Map<String, Value>, Vec<Value>, Option<NodeName>) {
    let mut head = match view.summary_json() {
        Value::Object(head) => head,
        _ => Map::new(),
    };
    head.remove("type");
    let wanted = |name: &NodeName, state: OrderState| {
        (states.is_empty() || states.contains(&state)) && after.is_none_or(|after| name > after)
    };
    let mut chosen: Vec<_> =
        std::mem::take(&mut view.nodes).into_iter().filter(|(name, progress)| wanted(name, progress.state())).collect();
    if order == Order::WorstFirst {
        chosen.sort_by_key(|(_, progress)| urgency(progress.state()));
    }
    let more = chosen.len() > limit;
    chosen.truncate(limit);
    let names: Vec<NodeName> = chosen.iter().map(|(name, _)| name.clone()).collect();
    let next = names.last().filter(|_| more && order == Order::Name).cloned();
    view.nodes = chosen.into_iter().collect();
    let mut told: BTreeMap<String, Value> =
        named(&view).into_iter().filter_map(|node| Some((node.get("name")?.as_str()?.to_owned(), node))).collect();
    let nodes = names.iter().filter_map(|name| told.remove(name.as_str())).collect();
    (head, nodes, next)
}

/// What needs somebody comes first, then what is under way, then what went well.
fn urgency(state: OrderState) -> u8 {
    match state {
        OrderState::Failed | OrderState::TimedOut | OrderState::Rejected => 0,
        OrderState::Interrupted | OrderState::Expired => 1,
        OrderState::Cancelled | OrderState::Superseded => 2,
        OrderState::Running => 3,
        OrderState::Delivered | OrderState::Queued => 4,
        OrderState::Succeeded => 5,
    }
}

/// The nodes of a job, each with its name.
pub(crate) fn named(view: &JobView) -> Vec<Value> {
    let mut nodes = match view.to_json() {
        Value::Object(mut job) => match job.remove("nodes") {
            Some(Value::Object(nodes)) => nodes,
            _ => Map::new(),
        },
        _ => Map::new(),
    };
    view.nodes
        .keys()
        .filter_map(|name| {
            let mut node = nodes.remove(name.as_str())?;
            node.as_object_mut()?.insert("name".into(), json!(name));
            Some(node)
        })
        .collect()
}

async fn job_node(
    State(site): State<Arc<Site>>,
    Extension(who): Extension<Who>,
    Path((job, node)): Path<(String, String)>,
) -> Answer {
    reader(&who)?;
    let node = NodeName::new(node).map_err(|error| Problem::absent(error.to_string()))?;
    let view = from_broker(&site, async |fleet| {
        let job = job_id(fleet, &job).await?;
        Ok(fleet.job_at(&job, &node, Gather::Keep).await?)
    })
    .await?;
    let told = named(&view).pop().ok_or_else(|| Problem::absent(format!("the job is not for {node}")))?;
    Ok(written(told.to_string()))
}

async fn events(State(site): State<Arc<Site>>, Extension(who): Extension<Who>, RawQuery(text): RawQuery) -> Answer {
    reader(&who)?;
    let params = Params::read(text.as_deref(), &EVENT_PARAMS)?;
    let (filter, limit) = (query::events(&params)?, params.limit(EVENTS_MAX)?);
    let (events, more) = wanted_events(&site, filter, limit).await?;
    Ok(written(json!({ "events": events, "more": more }).to_string()))
}

/// Events, and whether there are more: the latest ones that are at hand, newest first; or, where it is said when, those
/// of then as the broker holds them, oldest first.
pub(crate) async fn wanted_events(
    site: &Arc<Site>,
    filter: EventFilter,
    limit: usize,
) -> Result<(Vec<EventLine>, bool), Problem> {
    if filter.since.is_none() && filter.until.is_none() {
        let (events, _) = from_view(site, move |moment| {
            let labels = |line: &EventLine| line.from.as_ref().and_then(|from| moment.view.labels(from));
            let newest = moment.view.events.newest(usize::MAX).into_iter();
            let newest = newest.filter(|line| filter.wants(line, labels(line)));
            Ok(newest.take(limit).collect())
        })
        .await?;
        return Ok((events, false));
    }
    from_broker(site, async |fleet| {
        let mut stored = fleet.events(&filter, false).await?;
        let mut events = Vec::new();
        while let Some(line) = stored.next().await? {
            if events.len() == limit {
                return Ok((events, true));
            }
            events.push(line);
        }
        Ok((events, false))
    })
    .await
}
