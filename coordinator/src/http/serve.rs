//! Serves the HTTP door on a listener: bounded in the time a head may take, and in the time to drain.

use std::time::Duration;

use axum::{Router, body::Body, http::Request};
use holdfast_security::{Incoming, Secured};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::patient::Patient;

/// For the head of a request to arrive, and for a quiet connection to be kept.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// For a caller to take in the next bytes of an answer.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header lines of a request.
const HEADERS_MAX: usize = 64;
/// For requests under way to be answered after a shutdown began.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Serves `router` on what comes through the gate until `shutdown`, then lets requests under way be answered, for 5 s at most.
/// Whatever bytes arrive harm at most their own connection. Each request is marked with who is at the other end.
pub async fn serve(mut incoming: Incoming, router: Router, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let connection = tokio::select! {
            next = incoming.next() => next,
            () = shutdown.cancelled() => break,
        };
        let Some(connection) = connection else { break };
        connections.spawn(converse(connection, router.clone(), shutdown.clone()));
    }
    drop(incoming);
    connections.close();
    if timeout(DRAIN_MAX, connections.wait()).await.is_err() {
        let left = connections.len();
        tracing::warn!(left, "connections were cut while their requests were under way");
    }
}

async fn converse(stream: Secured, router: Router, shutdown: CancellationToken) {
    let peer = stream.peer().clone();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let stream = TokioIo::new(Patient::new(stream, WRITE_MAX));
    let mut connection = std::pin::pin!(builder.serve_connection(stream, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // The drain has its own bound; a connection that outlives it is cut here.
            match timeout(DRAIN_MAX, connection.as_mut()).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        // Garbage, slowness and vanished callers are everyday life at a door.
        tracing::debug!(%error, "a connection ended early");
    }
}
