//! Serves the HTTP door on a listener: bounded in connections, in the time a head may take, and in the time to drain.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::patient::Patient;

/// Connections at once; one more waits in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 10_000;
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
/// After a failed accept, which is usually a want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `router` on `listener` until `shutdown`, then lets requests under way be answered, for 5 s at most.
/// Whatever bytes arrive harm at most their own connection.
/// # Errors
/// Those of the listener's address, before anything is served.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "the HTTP door is open");
    let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    loop {
        let accepted = async {
            let turn = Arc::clone(&turns).acquire_owned().await.expect("never closed");
            (listener.accept().await, turn)
        };
        let (accepted, turn) = tokio::select! {
            accepted = accepted => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let served = converse(stream, router.clone(), shutdown.clone());
                connections.spawn(async move {
                    served.await;
                    drop(turn);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if timeout(DRAIN_MAX, connections.wait()).await.is_err() {
        let left = connections.len();
        tracing::warn!(left, "connections were cut while their requests were under way");
    }
    Ok(())
}

async fn converse(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection ended before it began");
        return;
    }
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let service = TowerToHyperService::new(router);
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
