//! The drill door of a role that consented: what strikes this process is asked for here, and held here.
//!
//! It listens on a loopback address, whatever the security mode, and only where `drill.allowed = true`. Every fault has a time limit
//! that this side keeps: a held fault is a deadline in this process ([`holdfast_fault::held`]); a process that stops or dies leaves a small
//! shell behind that lets it go on, or starts it again with the same words, when its time has come. Nothing depends on the one who asked.

use std::{
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{delete, get, post},
};
use holdfast_fault::{Held, held};
use holdfast_tcc_agent::Database;
use metrics_exporter_prometheus::PrometheusHandle;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::lost_disk;

/// What every script has: waits until the process of that number has ended. It loses its program first, and its sockets last.
const AWAIT_END: &str = r#"await_end() {
  while readlink "/proc/$1/exe" || ls -d "/proc/$1/task/"*/fd/*; do sleep 0.02; done >/dev/null 2>&1
}
"#;
/// Lets a process that was stopped go on: `$1` is its number, `$2` how long, seconds.
const RESUME: &str = r#"sleep "$2"; kill -CONT "$1""#;
/// Starts a process again that has ended: `$1` is its number, `$2` how long it stays dead, seconds; then the words it was started with.
const RESTART: &str = r#"pid=$1; dead=$2; shift 2
await_end "$pid"
sleep "$dead"; exec "$@""#;
/// Between the answer and the blow, so that the answer leaves this process.
const LAST_WORDS: Duration = Duration::from_millis(20);
/// Connections that one drill may take.
const CONNECTIONS_MAX: usize = 1_000;

/// `[drill]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DrillConfig {
    /// Whether this process may be drilled.
    pub(crate) allowed: bool,
    /// Where the door listens, if it may; a loopback address.
    pub(crate) bind: SocketAddr,
}

/// Who stands behind the door.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// `coordinator` or `bank`.
    pub(crate) role: &'static str,
    /// For people.
    pub(crate) name: String,
    /// Where clients reach a coordinator.
    pub(crate) grpc: Option<String>,
    /// Of a bank; holds its password and is never shown.
    pub(crate) database: Option<Database>,
    /// Of a coordinator: its number, and where its log is.
    pub(crate) disk: Option<(u64, PathBuf)>,
}

/// What is asked for.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    /// `kill`, `restart`, `pause`, `lose-disk`, `connections`, or a fault that is held.
    pub(crate) fault: String,
    /// How much of it.
    #[serde(default)]
    pub(crate) measure: i64,
    /// It ends by itself after so long; a process that dies is started again after so long.
    pub(crate) limit_ms: u64,
}

struct Behind {
    about: About,
    metrics: PrometheusHandle,
    /// Ends what holds connections.
    connections: Mutex<CancellationToken>,
}

/// Opens the door, if the configuration consents, until `shutdown`.
/// # Errors
/// HF1015: the address cannot be bound.
pub(crate) async fn open(
    config: DrillConfig,
    about: About,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    if !config.allowed {
        return Ok(());
    }
    held::consent();
    let bind = config.bind;
    let listener = TcpListener::bind(bind).await.with_context(|| {
        format!("HF1015 drill.bind = \"{bind}\" cannot be listened on. Choose another address")
    })?;
    tracing::warn!(%bind, "this process consented to drills: faults may be asked for at its drill door");
    let behind = Arc::new(Behind { about, metrics, connections: Mutex::default() });
    let router = Router::new()
        .route("/v1/drill", get(look))
        .route("/v1/drill", post(strike))
        .route("/v1/drill", delete(end))
        .route("/v1/drill/metrics", get(metrics_now))
        .layer(axum::extract::DefaultBodyLimit::max(4_096))
        .with_state(behind);
    tokio::spawn(async move {
        let served =
            axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the drill door broke");
        }
        held::end_all();
    });
    Ok(())
}

async fn look(State(behind): State<Arc<Behind>>) -> Json<Value> {
    let standing: Vec<Value> = held::standing()
        .iter()
        .map(|standing| {
            json!({
                "fault": standing.fault.name(),
                "measure": standing.measure,
                "left_ms": standing.left_ms,
            })
        })
        .collect();
    let about = &behind.about;
    Json(json!({
        "role": about.role,
        "name": about.name,
        "grpc": about.grpc,
        "node": about.disk.as_ref().map(|(node, _)| node),
        "pid": std::process::id(),
        "held": standing,
    }))
}

/// The metrics of this process, so that a runner sees what its alert rules would see, also where the door for metrics speaks TLS.
async fn metrics_now(State(behind): State<Arc<Behind>>) -> String {
    behind.metrics.render()
}

async fn end(State(behind): State<Arc<Behind>>) -> Json<Value> {
    held::end_all();
    behind.connections.lock().expect("no holder panics").cancel();
    tracing::warn!("every drill fault of this process was ended");
    look(State(behind)).await
}

async fn strike(
    State(behind): State<Arc<Behind>>,
    Json(order): Json<Order>,
) -> (StatusCode, Json<Value>) {
    match carry_out(&behind, &order) {
        Ok(()) => {
            tracing::warn!(
                fault = order.fault,
                measure = order.measure,
                limit_ms = order.limit_ms,
                "a drill strikes this process"
            );
            (StatusCode::OK, Json(json!({ "fault": order.fault, "limit_ms": order.limit_ms })))
        }
        Err(why) => (
            StatusCode::CONFLICT,
            Json(json!({ "code": "HF6101", "message": format!("HF6101 {why}") })),
        ),
    }
}

fn carry_out(behind: &Arc<Behind>, order: &Order) -> anyhow::Result<()> {
    let limit = Duration::from_millis(order.limit_ms);
    anyhow::ensure!(
        limit <= held::LIMIT_MAX,
        "a limit of {} ms is above {} ms",
        order.limit_ms,
        held::LIMIT_MAX.as_millis()
    );
    match order.fault.as_str() {
        "kill" => {
            restart_later(limit)?;
            blow(Signal::SIGKILL);
        }
        "restart" => {
            restart_later(limit)?;
            blow(Signal::SIGTERM);
        }
        "pause" => {
            anyhow::ensure!(!limit.is_zero(), "a pause needs a limit");
            resume_later(limit)?;
            blow(Signal::SIGSTOP);
        }
        "lose-disk" => {
            let (_, data) =
                behind.about.disk.as_ref().context("this role has no disk of its own")?;
            let dead = u64::try_from(order.measure).ok().map(Duration::from_millis);
            let dead = dead.filter(|dead| *dead < limit);
            let dead = dead.context("it is dead for a part of the limit (measure, ms)")?;
            lost_disk::lose_later(data, dead, limit)?;
            blow(Signal::SIGKILL);
        }
        "connections" => {
            let database = behind.about.database.clone();
            let database = database.context("this role has no data source of its own")?;
            anyhow::ensure!(!limit.is_zero(), "a limit of 0 ms holds nothing");
            let until = CancellationToken::new();
            *behind.connections.lock().expect("no holder panics") = until.clone();
            tokio::spawn(take_connections(database, order.measure, limit, until));
        }
        name => {
            let fault = Held::named(name).with_context(|| {
                let known = Held::ALL.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(", ");
                format!("no fault is called {name:?}; there are kill, restart, pause, lose-disk, connections, {known}")
            })?;
            fault.hold(order.measure, limit)?;
        }
    }
    Ok(())
}

/// A moment from now, so that the answer leaves first.
fn blow(signal: Signal) {
    tokio::spawn(async move {
        tokio::time::sleep(LAST_WORDS).await;
        // It is this very process, which is there.
        let _ = kill(Pid::this(), signal);
    });
}

/// A shell with that script behind [`AWAIT_END`], in a process group of its own: `$1` is our number, `$2` so many seconds.
pub(super) fn guard(script: &str, seconds: Duration) -> Command {
    let mut guard = Command::new("/bin/sh");
    guard.args(["-c", &format!("{AWAIT_END}{script}"), "holdfast-drill-guard"]);
    guard.arg(std::process::id().to_string());
    guard.arg(format!("{:.3}", seconds.as_secs_f64())).process_group(0);
    guard
}

fn resume_later(limit: Duration) -> anyhow::Result<()> {
    let mut guard = guard(RESUME, limit);
    guard.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    guard.spawn().context("starting /bin/sh, which would let this process go on")?;
    Ok(())
}

/// With the same standard input: where that is a pipe from a program that is gone by then, the new process ends at once.
fn restart_later(dead: Duration) -> anyhow::Result<()> {
    let mut guard = guard(RESTART, dead);
    guard.arg(std::env::current_exe().context("finding our own program")?);
    guard.args(std::env::args_os().skip(1));
    guard.spawn().context("starting /bin/sh, which would start this process again")?;
    Ok(())
}

/// Takes connections until there are no more, takes those that others let go, and lets all go at the end.
async fn take_connections(
    database: Database,
    count: i64,
    limit: Duration,
    until: CancellationToken,
) {
    let wanted = usize::try_from(count).unwrap_or(0).clamp(1, CONNECTIONS_MAX);
    let mut taken = Vec::new();
    let taking = async {
        loop {
            let connected = match taken.len() < wanted {
                true => database.connect().await.ok().map(|(connection, _)| connection),
                false => None,
            };
            match connected {
                Some(connection) => taken.push(connection),
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::select! {
        () = taking => {}
        () = tokio::time::sleep(limit) => {}
        () = until.cancelled() => {}
    }
}
