//! `POST /v1/config/reload`: has this node read its configuration again.

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::post,
};
use holdfast_proto::v1;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    problem::Problem,
    routes::{Door, json},
};

/// The route.
pub(super) fn routes() -> Router<Door> {
    Router::new().route("/v1/config/reload", post(reload))
}

/// What is asked.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["reason"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct ReloadConfig {
    #[schemars(length(min = 1, max = holdfast_txn::limit::REASON_BYTES_MAX), regex(pattern = r"^[ -~]*[!-~][ -~]*$"))]
    reason: String,
    dry_run: bool,
}

/// What became of each difference.
#[derive(Serialize, JsonSchema)]
pub(super) struct Reloaded {
    node: u64,
    dry_run: bool,
    differences: Vec<Difference>,
}

#[derive(Serialize, JsonSchema)]
struct Difference {
    key: String,
    from: String,
    to: String,
    /// taken_over, after_restart or refused.
    verdict: String,
    cause: String,
}

async fn reload(door: Door, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let ReloadConfig { reason, dry_run } = door.read(&headers, body, false).await?;
    let reply = door.desk.reload_config(v1::ReloadConfigRequest { dry_run, reason }).await?;
    let differences = reply.differences.into_iter().map(|one| {
        let v1::ConfigDifference { key, from, to, verdict, cause } = one;
        Difference { key, from, to, verdict, cause }
    });
    let reloaded =
        Reloaded { node: reply.node, dry_run: reply.dry_run, differences: differences.collect() };
    Ok(json(StatusCode::OK, &reloaded))
}
