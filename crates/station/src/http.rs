//! What can be asked over HTTP: pages, the API, health and metrics. Read-only.

mod door;
mod guard;
mod pages;
mod serve;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use fleet::Fleet;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::access::Tokens;
use crate::api;
use crate::api::problem::Problem;
use crate::api::stream::Followers;
use crate::freshness::Freshness;
use crate::metrics::{self, HttpCounts};
use crate::page;
use crate::process::Usage;
use crate::status::Shared;
use door::Door;
pub(crate) use door::Who;
pub(crate) use serve::{Streaming, serve};
pub use tls::HttpTls;

/// So many requests ask the broker at a time.
const TURNS: usize = 4;

/// What the handlers share.
pub(crate) struct Site {
    pub(crate) shared: Arc<Shared>,
    /// Where what is not in the view is read.
    pub(crate) fleet: Option<Fleet>,
    pub(crate) turns: Semaphore,
    pub(crate) followers: Followers,
    pub(crate) counts: Counts,
    pub(crate) door: Door,
    /// The names by which it may be reached, besides the local ones.
    pub(crate) names: Vec<String>,
    /// Whether it speaks TLS.
    pub(crate) secure: bool,
    pub(crate) stop: CancellationToken,
}

/// How a site is served.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    pub(crate) tokens: Tokens,
    /// Whether nobody is let in without a token, also when there are none.
    pub(crate) strict: bool,
    pub(crate) names: Vec<String>,
    pub(crate) secure: bool,
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
    pub(crate) fn new(shared: Arc<Shared>, fleet: Option<Fleet>, manner: Manner, stop: CancellationToken) -> Arc<Self> {
        let Manner { tokens, strict, names, secure } = manner;
        Arc::new(Self {
            shared,
            fleet,
            turns: Semaphore::new(TURNS),
            followers: Followers::default(),
            counts: Counts::default(),
            door: Door::new(tokens, strict),
            names,
            secure,
            stop,
        })
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
        .merge(pages::router())
        .merge(api::router())
        .route_layer(from_fn_with_state(Arc::clone(&site), known))
        // For these nobody has to be known.
        .route("/login", get(pages::log_in).post(pages::logged_in))
        .route("/logout", post(pages::log_out))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/assets/style.css", get(|| async { asset("text/css; charset=utf-8", page::STYLE) }))
        .route("/assets/live.js", get(|| async { asset("text/javascript; charset=utf-8", page::SCRIPT) }))
        .route("/assets/icon.svg", get(|| async { asset("image/svg+xml", page::ICON) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is nothing here; the page is at /\n") })
        .layer(from_fn_with_state(Arc::clone(&site), guard::guard))
        .with_state(site)
}

/// Lets nobody through who is unknown, and tells the handlers who asks.
async fn known(State(site): State<Arc<Site>>, mut request: Request, next: Next) -> Response {
    let who = site.door.who(request.headers(), Instant::now(), bus::clock::now());
    let path = request.uri().path();
    if let Who::Nobody(reason) = &who
        && !api::is_open(path)
    {
        site.counts.refused.fetch_add(1, Ordering::Relaxed);
        let part = request.headers().contains_key(page::PART);
        return if path.starts_with("/api/") || part {
            Problem::new(StatusCode::UNAUTHORIZED, *reason).into_response()
        } else {
            Redirect::to("/login").into_response()
        };
    }
    request.extensions_mut().insert(who);
    next.run(request).await
}

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind)], text)
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
    let shared = &site.shared;
    let (received, alerts) = (&shared.received, &shared.alerts);
    let text = metrics::text(&shared.read(), &shared.about, received, alerts, http, usage, Instant::now());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
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
