//! What changes, as it changes: server-sent events (WHATWG HTML, section 9.2).

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use super::problem::Problem;
use super::query::{self, Params};
use crate::access::Role;
use crate::http::{Site, Streaming, Who};
use crate::hub::{Batch, Topic};

/// So many may follow at a time: each takes a connection.
pub(crate) const FOLLOWERS_MAX: usize = 64;
/// After so long without a change something is said all the same, so that a broken link is noticed.
const QUIET_MAX: Duration = Duration::from_secs(15);
/// After how long a client comes back, in milliseconds.
const RETRY_MS: u32 = 2000;

/// How many follow.
#[derive(Default)]
pub(crate) struct Followers(AtomicUsize);

/// One that follows; counted until it is dropped.
struct Follower {
    site: Arc<Site>,
    topics: Vec<Topic>,
    news: watch::Receiver<u64>,
    after: u64,
    begun: bool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.site.followers.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) async fn stream(
    State(site): State<Arc<Site>>,
    Extension(who): Extension<Who>,
    Extension(streaming): Extension<Streaming>,
    headers: HeaderMap,
    RawQuery(text): RawQuery,
) -> Result<Response, Problem> {
    let chosen = query::topics(&Params::read(text.as_deref(), &["topic"])?)?;
    let may_read = who.role() >= Some(Role::Read);
    if chosen.contains(&Topic::Event) && !may_read {
        super::reader(&who)?;
    }
    let topics = if chosen.is_empty() { Topic::CHOICE.to_vec() } else { chosen };
    let topics = topics.into_iter().filter(|topic| may_read || *topic != Topic::Event).collect();
    if site.followers.0.fetch_add(1, Ordering::Relaxed) >= FOLLOWERS_MAX {
        site.followers.0.fetch_sub(1, Ordering::Relaxed);
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{FOLLOWERS_MAX} clients follow already, which is the most"),
        ));
    }
    let hub = &site.shared.hub;
    // What is told while it is being prepared wakes it.
    let news = hub.news();
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let after = last.and_then(|id| number(&site, id));
    let follower = Follower {
        topics,
        news,
        // One of another station, or of another life of this one, has missed something.
        after: after.unwrap_or_else(|| if last.is_some() { u64::MAX } else { hub.last() }),
        begun: false,
        site: Arc::clone(&site),
    };
    streaming.begin();
    let body = Body::from_stream(stream::unfold(follower, |mut follower| async move {
        let text = follower.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), follower))
    }));
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

/// The number in an id that this station has given.
fn number(site: &Site, id: &str) -> Option<u64> {
    let (life, number) = id.split_once('-')?;
    if life == site.shared.about.started.as_ms().to_string() { number.parse().ok() } else { None }
}

impl Follower {
    /// The next piece; `None` when the station stops.
    async fn next(&mut self) -> Option<String> {
        if !self.begun {
            self.begun = true;
            return Some(format!("retry: {RETRY_MS}\n: follows\n\n"));
        }
        loop {
            self.news.borrow_and_update();
            let batch = self.site.shared.hub.since(self.after, &self.topics);
            let text = self.written(&batch);
            self.after = batch.upto;
            if !text.is_empty() {
                return Some(text);
            }
            let heard = tokio::select! {
                () = self.site.stop.cancelled() => return None,
                heard = timeout(QUIET_MAX, self.news.changed()) => heard,
            };
            match heard {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(": nothing new\n\n".to_owned()),
            }
        }
    }

    fn written(&self, batch: &Batch) -> String {
        let life = self.site.shared.about.started.as_ms();
        let mut text = String::new();
        if batch.missed {
            let why = json!({"reason": "some changes were missed: read everything again"});
            text.push_str(&format!("event: reset\ndata: {why}\n\n"));
        }
        for change in &batch.changes {
            text.push_str(&format!(
                "event: {}\nid: {life}-{}\ndata: {}\n\n",
                change.topic.as_str(),
                change.number,
                change.text
            ));
        }
        text
    }
}
