//! Pages for people.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Extension, Router};
use fleet::Gather;
use message::NodeName;

use super::door::set_cookie;
use super::{Site, Who};
use crate::api::problem::Problem;
use crate::api::query::{self, EVENT_PARAMS, JOB_PARAMS, NODE_PARAMS, Params};
use crate::api::{self, EVENTS_MAX, Order, from_broker, from_view, reader};
use crate::freshness::Freshness;
use crate::lookup;
use crate::page::{self, Head, Page, Tab};
use crate::view::{JOBS_MAX, PAGE_MAX};

/// So many rows there are on a page.
const ROWS: usize = 200;
/// So many jobs and events of a node are shown.
const OF_A_NODE: usize = 20;
/// So many labels can be chosen to group by.
const KEYS: usize = 50;
/// The largest form.
const FORM_BYTES_MAX: usize = 4096;
/// How long a form may take to come.
const FORM_TIME_MAX: Duration = Duration::from_secs(10);

/// The pages for which somebody has to be known.
pub(super) fn router() -> Router<Arc<Site>> {
    Router::new()
        .route("/", get(fleet))
        .route("/nodes/{node}", get(node))
        .route("/jobs", get(jobs))
        .route("/jobs/{job}", get(job))
        .route("/jobs/{job}/nodes/{node}", get(job_node))
        .route("/events", get(events))
}

/// What every handler needs.
struct Visit {
    site: Arc<Site>,
    who: Who,
    /// Whether only the part that changes is wanted.
    part: bool,
}

impl Visit {
    fn new(site: Arc<Site>, who: Who, headers: &HeaderMap) -> Self {
        Self { site, who, part: headers.contains_key(page::PART) }
    }

    fn head(&self) -> Head {
        let (status, at, about) = (self.site.shared.read(), Instant::now(), &self.site.shared.about);
        let clocks = status.clocks(at);
        Head {
            station: about.station.clone(),
            server: about.server.clone(),
            freshness: status.freshness(at),
            now: clocks.map(|(now, _)| now).unwrap_or_default(),
            as_of: clocks.map(|(_, clock)| clock.now),
            who: match &self.who {
                Who::Holder { name, by_cookie: true, .. } => Some(name.clone()),
                _ => None,
            },
        }
    }

    /// The page, or what is wrong on a page of its own.
    fn shown(&self, tab: Tab, stays: maud::Markup, page: Result<Page, Problem>) -> Response {
        let head = self.head();
        // As long as nothing is known, that is what every page says.
        let empty = matches!(head.freshness, Freshness::Empty { .. });
        let (status, page) = match page {
            Ok(page) => (StatusCode::OK, page),
            Err(problem) => {
                let title = problem.status.canonical_reason().unwrap_or("Error");
                let status = if empty { StatusCode::OK } else { problem.status };
                (status, Page { stays, ..page::problem(tab, title, &problem.detail) })
            }
        };
        let text = if self.part { page.part(&head) } else { page.document(&head) };
        (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], text.into_string()).into_response()
    }
}

async fn fleet(
    State(site): State<Arc<Site>>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    RawQuery(text): RawQuery,
) -> Response {
    let visit = Visit::new(site, who, &headers);
    let known: Vec<&str> = NODE_PARAMS.into_iter().chain(["by"]).collect();
    let params = match Params::read(text.as_deref(), &known) {
        Ok(params) => params,
        Err(problem) => return visit.shown(Tab::Fleet, maud::html! {}, Err(problem)),
    };
    let stays = page::fleet_filter(&params, &[]);
    let page = async {
        let mut asked = query::nodes(&params)?;
        if asked.selection.needs_facts() {
            reader(&visit.who)?;
        }
        (asked.counted, asked.facts) = (true, false);
        if params.get("limit").is_none() {
            asked.limit = ROWS;
        }
        let params = params.clone();
        let (page, _) = from_view(&visit.site, move |moment| {
            let costly = |error: message::expression::TooCostly| Problem::usage(error.to_string());
            let (view, clock, now) = (moment.view, moment.clock, moment.now);
            let found = view.page(&asked, clock, now).map_err(costly)?;
            let groups = match params.get("by") {
                Some(key) => Some(view.groups(key, &asked, clock, now).map_err(costly)?),
                None => None,
            };
            let all = view.node_counts(clock);
            let groups = groups.as_ref().map(|(groups, more)| (groups.as_slice(), *more));
            let shown = page::FleetPage { all: &all, params: &params, page: &found, groups, now };
            Ok(page::fleet(&shown, &view.label_keys(KEYS)))
        })
        .await?;
        Ok(page)
    }
    .await;
    visit.shown(Tab::Fleet, stays, page)
}

async fn node(
    State(site): State<Arc<Site>>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Response {
    let visit = Visit::new(site, who, &headers);
    let page = async {
        let (node, _) = api::one_node(&visit.site, &name).await?;
        let jobs =
            from_broker(&visit.site, async |fleet| Ok(lookup::jobs_of(fleet, &node.record, OF_A_NODE).await?)).await;
        let history = from_broker(&visit.site, async |fleet| Ok(fleet.history(&node).await?)).await;
        let facts = reader(&visit.who).is_ok();
        let (page, _) = from_view(&visit.site, move |moment| {
            let mut events = moment.view.events.newest(usize::MAX);
            events.retain(|event| event.from.as_ref() == Some(node.name()));
            events.truncate(OF_A_NODE);
            Ok(page::node(&page::NodePage {
                node: &node,
                history: history.as_ref().map(|history| &history.spells[..]).map_err(|problem| problem.detail.clone()),
                jobs: jobs.as_deref().map_err(|problem| problem.detail.clone()),
                events: facts.then_some(events.as_slice()),
                facts,
                now: moment.now,
            }))
        })
        .await?;
        Ok(page)
    }
    .await;
    visit.shown(Tab::Fleet, maud::html! {}, page)
}

async fn jobs(
    State(site): State<Arc<Site>>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    RawQuery(text): RawQuery,
) -> Response {
    let visit = Visit::new(site, who, &headers);
    let page = async {
        let params = Params::read(text.as_deref(), &JOB_PARAMS)?;
        let asked = query::jobs(&params, JOBS_MAX)?;
        let (page, _) = from_view(&visit.site, move |moment| {
            let all = moment.view.jobs.newest(usize::MAX);
            let total = all.len();
            let jobs: Vec<_> = all.into_iter().filter(|job| asked.wants(job)).take(asked.limit).collect();
            Ok(page::jobs(&jobs, total, &params, moment.now))
        })
        .await?;
        Ok(page)
    }
    .await;
    visit.shown(Tab::Jobs, maud::html! {}, page)
}

async fn job(
    State(site): State<Arc<Site>>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    Path(job): Path<String>,
    RawQuery(text): RawQuery,
) -> Response {
    let visit = Visit::new(site, who, &headers);
    let page = async {
        let params = Params::read(text.as_deref(), &["state", "limit", "cursor"])?;
        let states = query::order_states(&params)?;
        let limit = if params.get("limit").is_some() { params.limit(PAGE_MAX)? } else { ROWS };
        let after = params.get("cursor").map(NodeName::new).transpose();
        let after = after.map_err(|_| Problem::usage("this page is reached from the one before"))?;
        let view = from_broker(&visit.site, async |fleet| {
            let job = api::job_id(fleet, &job).await?;
            Ok(fleet.job(&job, Gather::Ignore).await?)
        })
        .await?;
        let order = if states.is_empty() && after.is_none() { Order::WorstFirst } else { Order::Name };
        let (page_head, nodes, next) = api::job_page(view, &states, after.as_ref(), limit, order);
        let now = visit.head().now;
        Ok(page::job(&page::JobPage { head: &page_head, nodes: &nodes, next: next.as_ref(), params: &params, now }))
    }
    .await;
    visit.shown(Tab::Jobs, maud::html! {}, page)
}

async fn job_node(
    State(site): State<Arc<Site>>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    Path((job, node)): Path<(String, String)>,
) -> Response {
    let visit = Visit::new(site, who, &headers);
    let page = async {
        reader(&visit.who)?;
        let node = NodeName::new(node).map_err(|error| Problem::absent(error.to_string()))?;
        let view = from_broker(&visit.site, async |fleet| {
            let job = api::job_id(fleet, &job).await?;
            Ok(fleet.job_at(&job, &node, Gather::Keep).await?)
        })
        .await?;
        let told = api::named(&view).pop();
        let told = told.ok_or_else(|| Problem::absent(format!("the job is not for {node}")))?;
        Ok(page::job_node(view.record.job.as_str(), &told, visit.head().now))
    }
    .await;
    visit.shown(Tab::Jobs, maud::html! {}, page)
}

async fn events(
    State(site): State<Arc<Site>>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    RawQuery(text): RawQuery,
) -> Response {
    let visit = Visit::new(site, who, &headers);
    let params = match Params::read(text.as_deref(), &EVENT_PARAMS) {
        Ok(params) => params,
        Err(problem) => return visit.shown(Tab::Events, maud::html! {}, Err(problem)),
    };
    let page = async {
        reader(&visit.who)?;
        let filter = query::events(&params)?;
        let limit = if params.get("limit").is_some() { params.limit(EVENTS_MAX)? } else { ROWS };
        let (events, more) = api::wanted_events(&visit.site, filter, limit).await?;
        let now = visit.head().now;
        Ok(page::events(&page::EventsPage { events: &events, params: &params, more, now }))
    }
    .await;
    visit.shown(Tab::Events, page::events_filter(&params), page)
}

pub(super) async fn log_in(State(site): State<Arc<Site>>) -> Response {
    form(&site, StatusCode::OK, None)
}

fn form(site: &Site, status: StatusCode, problem: Option<&str>) -> Response {
    let text = page::log_in(&site.shared.about.station, problem).into_string();
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
}

pub(super) async fn logged_in(State(site): State<Arc<Site>>, body: Body) -> Response {
    let body = tokio::time::timeout(FORM_TIME_MAX, to_bytes(body, FORM_BYTES_MAX)).await;
    let Ok(Ok(body)) = body else { return form(&site, StatusCode::BAD_REQUEST, Some("The form did not come whole.")) };
    let token = form_urlencoded::parse(&body).find(|(name, _)| name == "token").map(|(_, token)| token.into_owned());
    let session = token.and_then(|token| site.door.log_in(&token, Instant::now(), bus::clock::now()));
    let Some(session) = session else {
        site.counts.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return form(&site, StatusCode::UNAUTHORIZED, Some("This token is not known, or has ended."));
    };
    with_cookie(&site, &session, "/")
}

pub(super) async fn log_out(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    site.door.log_out(&headers);
    with_cookie(&site, "", "/login")
}

fn with_cookie(site: &Site, session: &str, to: &str) -> Response {
    let mut response = Redirect::to(to).into_response();
    if let Ok(cookie) = HeaderValue::from_str(&set_cookie(session, site.secure)) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}
