//! What can be asked over HTTP. Read-only; each answer is made from the view in memory, never by asking the broker.

mod guard;
mod serve;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;

use crate::metrics::{self, HttpCounts};
use crate::page;
use crate::process::Usage;
use crate::snapshot::Freshness;
use crate::status::{Limits, Shared};
pub(crate) use serve::serve;

/// What the page shows. The API and the command line show the rest.
const ON_THE_PAGE: Limits = Limits { nodes: 250, jobs: 25, events: 60 };
/// How long ago the broker last confirmed what an answer says, in seconds.
const VIEW_AGE: HeaderName = HeaderName::from_static("steward-view-age-seconds");

/// What the handlers share.
pub(crate) struct Site {
    pub(crate) shared: Arc<Shared>,
    pub(crate) counts: Counts,
}

/// What is counted here.
#[derive(Default)]
pub(crate) struct Counts {
    connections: AtomicU64,
    requests: AtomicU64,
    refused: AtomicU64,
}

impl Site {
    /// A site that shows `shared`.
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared, counts: Counts::default() })
    }

    fn http_counts(&self) -> HttpCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        HttpCounts {
            connections: read(&self.counts.connections),
            requests: read(&self.counts.requests),
            refused: read(&self.counts.refused),
        }
    }
}

/// All routes, behind the guard.
pub(crate) fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/", get(document))
        .route("/fragment", get(fragment))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/v1/nodes", get(nodes))
        .route("/api/v1/jobs", get(jobs))
        .route("/api/v1/events", get(events))
        .route("/assets/style.css", get(|| async { asset("text/css; charset=utf-8", page::STYLE) }))
        .route("/assets/live.js", get(|| async { asset("text/javascript; charset=utf-8", page::SCRIPT) }))
        .route("/assets/icon.svg", get(|| async { asset("image/svg+xml", page::ICON) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is nothing here; the page is at /\n") })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&site), guard::guard))
        .with_state(site)
}

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind)], text)
}

fn html(markup: maud::Markup) -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], markup.into_string()).into_response()
}

async fn document(State(site): State<Arc<Site>>) -> Response {
    let snapshot = site.shared.read().snapshot(&site.shared.about, Instant::now(), ON_THE_PAGE);
    html(page::document(&snapshot))
}

async fn fragment(State(site): State<Arc<Site>>) -> Response {
    let snapshot = site.shared.read().snapshot(&site.shared.about, Instant::now(), ON_THE_PAGE);
    html(page::fragment(&snapshot))
}

async fn ready(State(site): State<Arc<Site>>) -> (StatusCode, String) {
    readiness(&site.shared.read().freshness(Instant::now()))
}

/// Ready means: what is shown follows the broker's streams.
fn readiness(freshness: &Freshness) -> (StatusCode, String) {
    match freshness {
        Freshness::Live => (StatusCode::OK, "ready\n".into()),
        Freshness::Empty { reason } => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
        Freshness::Stale { reason, age } => {
            let age = message::units::human_duration(*age);
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}; last confirmed {age} ago\n"))
        }
    }
}

async fn metrics(State(site): State<Arc<Site>>) -> impl IntoResponse {
    let (http, usage) = (site.http_counts(), Usage::now());
    let text = metrics::text(&site.shared.read(), &site.shared.about, http, usage, Instant::now());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

async fn nodes(State(site): State<Arc<Site>>) -> Response {
    let limits = Limits { nodes: usize::MAX, jobs: 0, events: 0 };
    answer(&site, limits, |snapshot| snapshot.nodes.iter().map(fleet::Node::to_json).collect::<Vec<_>>())
}

async fn jobs(State(site): State<Arc<Site>>) -> Response {
    answer(&site, Limits { nodes: 0, jobs: usize::MAX, events: 0 }, |snapshot| snapshot.jobs)
}

async fn events(State(site): State<Arc<Site>>) -> Response {
    answer(&site, Limits { nodes: 0, jobs: 0, events: usize::MAX }, |snapshot| snapshot.events)
}

/// JSON with its age; an error as long as there is nothing to tell.
fn answer<T: Serialize>(site: &Site, limits: Limits, pick: impl FnOnce(crate::snapshot::Snapshot) -> T) -> Response {
    let (snapshot, age) = {
        let (status, at) = (site.shared.read(), Instant::now());
        (status.snapshot(&site.shared.about, at, limits), status.age(at))
    };
    if let Freshness::Empty { reason } = &snapshot.freshness {
        let error = serde_json::json!({ "error": format!("there is no view of the fleet yet: {reason}") });
        return (StatusCode::SERVICE_UNAVAILABLE, axum_json(error.to_string())).into_response();
    }
    let age = HeaderValue::from(age.unwrap_or_default().as_secs());
    match serde_json::to_string(&pick(snapshot)) {
        Ok(text) => ([(VIEW_AGE, age)], axum_json(text)).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn axum_json(text: String) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ready_is_only_what_is_live_and_the_rest_says_why() {
        assert_eq!(readiness(&Freshness::Live).0, StatusCode::OK);
        let (code, text) = readiness(&Freshness::Empty { reason: "the nodes are being read".into() });
        assert_eq!((code, text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "not ready: the nodes are being read\n"));
        let stale = Freshness::Stale { reason: "the link is down".into(), age: Duration::from_secs(75) };
        let (code, text) = readiness(&stale);
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "not ready: the link is down; last confirmed 1m 15s ago\n");
    }
}
