//! `POST /v1/needs-attention/retry`: lets many transactions that need attention go on.

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
    whole::Whole,
};
use crate::rpc::{Hop, fault::kind_word, show};

/// The route.
pub(super) fn routes() -> Router<Door> {
    Router::new().route("/v1/needs-attention/retry", post(retry_many))
}

/// What is asked.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["reason"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct RetryMany {
    #[schemars(length(min = 1, max = holdfast_txn::limit::REASON_BYTES_MAX), regex(pattern = r"^[ -~]*[!-~][ -~]*$"))]
    reason: String,
    #[schemars(regex(pattern = r"^([a-z0-9.@-]{1,64})?$"))]
    participant: String,
    #[schemars(regex(pattern = r"^[A-Za-z0-9-]{0,35}$"))]
    after: String,
    #[schemars(range(max = 1_000))]
    limit: Whole<u32>,
    dry_run: bool,
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{0,32}$"))]
    dev_name: String,
}

/// What came of each.
#[derive(Serialize, JsonSchema)]
pub(super) struct Retried {
    dry_run: bool,
    went_on: usize,
    failed: usize,
    retried: Vec<One>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_after: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct One {
    gid: String,
    waited_because: String,
    /// Where it is now, or would be; absent if the act failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    /// Why the act failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Why>,
}

#[derive(Serialize, JsonSchema)]
struct Why {
    code: String,
    /// refused, retry or unknown.
    kind: &'static str,
    message: String,
}

async fn retry_many(door: Door, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let asked: RetryMany = door.read(&headers, body, false).await?;
    let request = v1::RetryManyRequest {
        participant: asked.participant,
        after_gid: asked.after,
        limit: asked.limit.0,
        reason: asked.reason,
        dry_run: asked.dry_run,
        dev_name: asked.dev_name,
    };
    let reply = door.desk.retry_many(&request, Hop::May).await?;
    let retried: Vec<One> = reply.retried.into_iter().map(One::from).collect();
    let failed = retried.iter().filter(|one| one.error.is_some()).count();
    let answer = Retried {
        dry_run: asked.dry_run,
        went_on: retried.len() - failed,
        failed,
        retried,
        next_after: Some(reply.next_after_gid).filter(|gid| !gid.is_empty()),
    };
    Ok(json(StatusCode::OK, &answer))
}

impl From<v1::RetriedTransaction> for One {
    fn from(one: v1::RetriedTransaction) -> Self {
        let kind = kind_word(one.kind());
        let status = show::status_from_wire(one.status()).map(show::status_word);
        let v1::RetriedTransaction { gid, waited_because, code, message, .. } = one;
        let error = (!code.is_empty()).then_some(Why { code, kind, message });
        Self { gid, waited_because, status, error }
    }
}
