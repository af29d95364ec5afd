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
    let builder = bounded(HEAD_MAX);
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

/// How a connection is read: heads up to their bounds, each within `head_max`.
fn bounded(head_max: Duration) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(head_max)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    builder
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::Instant,
    };

    use super::*;

    /// Longer than any machine takes, however much it has to do.
    const LONG: Duration = Duration::from_secs(60);

    /// What is heard until the connection ends, when these words come and no more.
    async fn heard(head_max: Duration, words: &[u8]) -> String {
        let (mut caller, door) = duplex(64 * 1024);
        let serving = tokio::spawn(async move {
            let router = Router::new().fallback(|| async { "here" });
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                router.clone().oneshot(request.map(Body::new))
            });
            drop(bounded(head_max).serve_connection(TokioIo::new(door), service).await);
        });
        caller.write_all(words).await.expect("the door is open");
        let mut heard = Vec::new();
        let ended = timeout(LONG, caller.read_to_end(&mut heard)).await;
        ended.expect("it ends in time").expect("it ends well");
        timeout(LONG, serving).await.expect("it is let go").expect("no panic");
        String::from_utf8(heard).expect("text")
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_ends_its_connection_in_time_and_no_sooner() {
        let (head_max, begun) = (Duration::from_millis(300), Instant::now());
        let heard = heard(head_max, b"GET / HTTP/1.1\r\nhost: door\r\n").await;
        assert!(!heard.contains("here"), "{heard}");
        assert!(begun.elapsed() >= head_max, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_head_that_ends_in_time_is_answered() {
        let whole = b"GET / HTTP/1.1\r\nhost: door\r\nconnection: close\r\n\r\n";
        let heard = heard(HEAD_MAX, whole).await;
        assert!(heard.starts_with("HTTP/1.1 200") && heard.ends_with("here"), "{heard}");
    }
}
