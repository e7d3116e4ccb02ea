//! Taking connections: a bounded number, each bounded in time and in the size of what it asks.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Site, router};

/// So many connections at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 128;
/// How long a request line and its headers may take, also the first ones of a connection.
const HEADERS_TIME_MAX: Duration = Duration::from_secs(10);
/// How long TLS may take to begin.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// What a request line and its headers may take of memory.
const HEADERS_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// How long a connection may be used before its next answer closes it.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(60);
/// How long it may then take to end.
const CLOSING_MAX: Duration = Duration::from_secs(5);
/// How long it may go on if what it carries is a stream of changes.
const STREAM_TIME_MAX: Duration = Duration::from_secs(3600);

/// Set by a handler whose answer goes on and on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streaming(Arc<AtomicBool>);

impl Streaming {
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Serves until it is stopped, then lets the answers that have begun end.
pub(crate) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, site: Arc<Site>, stop: CancellationToken) {
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
                let _ = stream.set_nodelay(true); // only costs time
                let (router, tls, stop, site) = (router.clone(), tls.clone(), stop.clone(), Arc::clone(&site));
                connections.spawn(async move {
                    site.counts.connections.fetch_add(1, Ordering::Relaxed);
                    match tls {
                        None => converse(stream, router, stop).await,
                        Some(tls) => match timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
                            Ok(Ok(stream)) => converse(stream, router, stop).await,
                            Ok(Err(error)) => tracing::debug!(%error, "a connection did not come to TLS"),
                            Err(_) => tracing::debug!("a connection took too long to come to TLS"),
                        },
                    }
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

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router, stop: CancellationToken) {
    let mut settings = http1::Builder::new();
    settings
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIME_MAX)
        .max_buf_size(HEADERS_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let streaming = Streaming::default();
    let router = router.layer(Extension(streaming.clone()));
    let mut connection = pin!(settings.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { tokio::select! { () = stop.cancelled() => {}, () = sleep(CONNECTION_TIME_MAX) => {} } } => {
            connection.as_mut().graceful_shutdown();
            let most = if streaming.has_begun() && !stop.is_cancelled() { STREAM_TIME_MAX } else { CLOSING_MAX };
            tokio::select! {
                ended = timeout(most, connection.as_mut()) => ended.unwrap_or(Ok(())),
                // Streams end by themselves then.
                () = async { stop.cancelled().await; sleep(CLOSING_MAX).await } => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
