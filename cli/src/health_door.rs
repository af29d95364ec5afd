//! A small HTTP door for roles that have no other: `/livez`, `/readyz`, `/metrics`, `/version`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{Router, http::StatusCode, routing::get};
use holdfast_tcc_agent::Status;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// How often a role that is not ready yet is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Says why a role cannot be used now, or nothing if it can.
pub(crate) type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Opens the door at `address` and serves until `shutdown`. Returns the address it got (the port may have been 0).
/// # Errors
/// HF1015: the address cannot be bound.
pub(crate) async fn open(
    address: SocketAddr,
    metrics: PrometheusHandle,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("HF1015 bind.http = \"{address}\" cannot be listened on. Choose another address")
    })?;
    let bound = listener.local_addr()?;
    let router = router(metrics, readiness);
    let door = tokio::spawn(async move {
        let served =
            axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the health door broke");
        }
    });
    Ok((bound, door))
}

/// Whether an agent can be called: at least one coordinator has welcomed it, and it is not draining.
pub(crate) fn of_agent(status: Status) -> Readiness {
    Arc::new(move || {
        if status.is_ready() {
            return Ok(());
        }
        Err(match status.is_draining() {
            true => "draining".to_owned(),
            false => "no coordinator has welcomed this agent yet; check [coordinators] addresses"
                .to_owned(),
        })
    })
}

/// Logs one line as soon as `role` is ready.
pub(crate) async fn log_ready(readiness: Readiness, role: &'static str) {
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        if readiness().is_ok() {
            tracing::info!("{role} ready");
            return;
        }
    }
}

fn router(metrics: PrometheusHandle, readiness: Readiness) -> Router {
    let ready = move || {
        let answer = match readiness() {
            Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        };
        async { answer }
    };
    let page = move || {
        let page = metrics.render();
        async { ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], page) }
    };
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(page))
        .route("/version", get(|| async { concat!(env!("HOLDFAST_BUILD"), "\n") }))
}
