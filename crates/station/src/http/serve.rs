//! Taking connections: a bounded number, each bounded in time and in the size of what it asks.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Site, router};

/// So many connections at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 128;
/// How long a request line and its headers may take, also the first ones of a connection.
const HEADERS_TIME_MAX: Duration = Duration::from_secs(10);
/// What a request line and its headers may take of memory.
const HEADERS_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// How long a connection may be used before its next answer closes it.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(60);
/// How long it may then take to end.
const CLOSING_MAX: Duration = Duration::from_secs(5);

/// Serves until it is stopped, then lets the answers that have begun end.
pub(crate) async fn serve(listener: TcpListener, site: Arc<Site>, stop: CancellationToken) {
    let (slots, connections) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), TaskTracker::new());
    let router = router(Arc::clone(&site));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                // Never closed, so a slot always comes.
                let slot = Arc::clone(&slots).acquire_owned().await.ok();
                (slot, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (slot, Ok((stream, _))) => {
                let (router, stop, site) = (router.clone(), stop.clone(), Arc::clone(&site));
                connections.spawn(async move {
                    site.counts.connections.fetch_add(1, Ordering::Relaxed);
                    converse(stream, router, stop).await;
                    site.counts.connections.fetch_sub(1, Ordering::Relaxed);
                    drop(slot);
                });
            }
            // Mostly too many open files: they will not be fewer at once.
            (_, Err(error)) => {
                tracing::warn!(%error, "a connection cannot be taken");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    let _ = timeout(CLOSING_MAX, connections.wait()).await; // what does not end by then is cut off
}

async fn converse(stream: TcpStream, router: Router, stop: CancellationToken) {
    let _ = stream.set_nodelay(true); // only costs time
    let mut settings = http1::Builder::new();
    settings
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIME_MAX)
        .max_buf_size(HEADERS_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let mut connection = pin!(settings.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { tokio::select! { () = stop.cancelled() => {}, () = sleep(CONNECTION_TIME_MAX) => {} } } => {
            connection.as_mut().graceful_shutdown();
            timeout(CLOSING_MAX, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
