//! Every route of the HTTP door.

use axum::{
    Router,
    body::Body,
    extract::{
        FromRequestParts, Path, Query,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use holdfast_proto::v1::{self, NodeStatusRequest, exchange_request::Request};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};

use super::{
    body::{self, AddBranch, Close, Finish, Retry, RollBack, Submit, Wait},
    bulk, callers, events, openapi, operating,
    problem::Problem,
    reload, shards, view,
};
use crate::{
    rights::{Shown, guard},
    rpc::{Desk, Hop, Told, traced},
};

/// What a route has: the desk as it serves whoever asks.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub(super) desk: Desk,
    metrics: Option<PrometheusHandle>,
}

impl FromRequestParts<Self> for Door {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Self) -> Result<Self, Problem> {
        let desk = shared.desk.serving(parts.extensions.get::<Shown>())?;
        Ok(Self { desk, metrics: shared.metrics.clone() })
    }
}

/// The door of `desk`, and at `/metrics` what `metrics` has counted.
pub fn router(desk: Desk, metrics: Option<PrometheusHandle>) -> Router {
    let coordinator = desk.coordinator().clone();
    Router::new()
        .route("/v1/transactions", post(submit).get(list))
        .route("/v1/transactions/{gid}", get(one))
        .route("/v1/transactions/{gid}/branches", post(add_branch))
        .route("/v1/transactions/{gid}/submit", post(close))
        .route("/v1/transactions/{gid}/rollback", post(roll_back))
        .route("/v1/transactions/{gid}/retry", post(retry))
        .route("/v1/transactions/{gid}/finish", post(finish))
        .route("/v1/transactions/{gid}/wait", get(wait))
        .merge(operating::routes())
        .merge(callers::routes())
        .merge(bulk::routes())
        .merge(reload::routes())
        .merge(shards::routes())
        .merge(events::routes())
        .merge(openapi::routes())
        .route("/v1/status", get(status))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(exposition))
        .route_layer(from_fn_with_state(coordinator, guard))
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_this_way)
        .with_state(Door { desk, metrics })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct OneQuery {
    stale: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StatusQuery {
    state_hash: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WaitQuery {
    r#for: Option<Wait>,
    timeout_ms: u64,
}

/// A name in a path.
pub(super) type Name = Result<Path<String>, PathRejection>;
type Gid = Name;

impl Door {
    pub(super) async fn read<T: serde::de::DeserializeOwned + Default>(
        &self,
        headers: &HeaderMap,
        body: Body,
        may_be_empty: bool,
    ) -> Result<T, Problem> {
        let bytes_max = self.desk.coordinator().config().limits.request_bytes_max;
        body::read(headers, body, bytes_max, may_be_empty).await
    }

    pub(super) async fn fate(&self, request: Request) -> Result<Response, Problem> {
        let told = self.desk.answer(request, Hop::May).await?;
        let status = match told.reply.outcome() {
            v1::Outcome::Committed | v1::Outcome::RolledBack => StatusCode::OK,
            v1::Outcome::Unknown | v1::Outcome::Unspecified => StatusCode::ACCEPTED,
        };
        Ok(answered(status, told))
    }
}

async fn submit(door: Door, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let submit: Submit = door.read(&headers, body, false).await?;
    let mut request = submit.into_wire(&headers)?;
    let traceparent = headers.get(holdfast_trace::HEADER).and_then(|value| value.to_str().ok());
    traced::belongs_to(&mut request, traceparent);
    match request {
        begin @ Request::Begin(_) => {
            let told = door.desk.answer(begin, Hop::May).await?;
            let new = if told.reply.repeated { StatusCode::OK } else { StatusCode::CREATED };
            Ok(answered(new, told))
        }
        request => door.fate(request).await,
    }
}

async fn add_branch(
    door: Door,
    gid: Gid,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let add: AddBranch = door.read(&headers, body, false).await?;
    let told = door.desk.answer(add.into_wire(named(gid)?)?, Hop::May).await?;
    Ok(answered(StatusCode::OK, told))
}

async fn close(door: Door, gid: Gid, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let close: Close = door.read(&headers, body, true).await?;
    door.fate(close.into_wire(named(gid)?)?).await
}

async fn roll_back(
    door: Door,
    gid: Gid,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let roll_back: RollBack = door.read(&headers, body, true).await?;
    door.fate(roll_back.into_wire(named(gid)?)).await
}

async fn retry(door: Door, gid: Gid, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let retry: Retry = door.read(&headers, body, true).await?;
    door.fate(retry.into_wire(named(gid)?)).await
}

async fn finish(door: Door, gid: Gid, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let finish: Finish = door.read(&headers, body, false).await?;
    door.fate(finish.into_wire(named(gid)?)).await
}

async fn one(
    door: Door,
    gid: Gid,
    query: Result<Query<OneQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let stale = asked(query)?.stale;
    let request = Request::Get(v1::GetRequest { gid: named(gid)?, stale });
    let told = door.desk.answer(request, Hop::May).await?;
    Ok(answered(StatusCode::OK, told))
}

async fn wait(
    door: Door,
    gid: Gid,
    query: Result<Query<WaitQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let WaitQuery { r#for, timeout_ms } = asked(query)?;
    let wait = body::wait(r#for);
    let request = v1::WaitRequest { gid: named(gid)?, wait, wait_timeout_ms: timeout_ms };
    door.fate(Request::Wait(request)).await
}

async fn list(
    door: Door,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, Problem> {
    let request = operating::list(asked(query)?)?;
    Ok(json(StatusCode::OK, &view::Page::from(door.desk.list(&request).await?)))
}

async fn status(
    door: Door,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let StatusQuery { state_hash } = asked(query)?;
    let mut groups = Vec::new();
    for group in 0..door.desk.coordinator().groups() {
        groups.push(door.desk.node_status(NodeStatusRequest { group, state_hash }).await?);
    }
    let first = groups.remove(0);
    Ok(json(StatusCode::OK, &view::Node::of(first, groups)))
}

async fn livez(door: Door) -> Response {
    if door.desk.coordinator().is_alive() {
        return "alive\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "not alive: restart the node\n").into_response()
}

async fn readyz(door: Door) -> Response {
    match door.desk.coordinator().is_ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response()
        }
    }
}

async fn exposition(door: Door) -> Result<Response, Problem> {
    let Some(metrics) = &door.metrics else {
        let detail = "this node counts nothing: it was started without a recorder".to_owned();
        return Err(Problem::refused(StatusCode::NOT_FOUND, "HF2305", detail));
    };
    let version = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, version)], metrics.render()).into_response())
}

async fn nothing_here(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(128).collect();
    let detail = format!(
        "there is nothing at {path}. GET /openapi.json lists the routes; docs/reference/api.md explains them"
    );
    Problem::refused(StatusCode::NOT_FOUND, "HF2305", detail)
}

async fn not_this_way(method: Method, uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(128).collect();
    let method: String = method.as_str().chars().take(32).collect();
    let detail = format!("{method} is not possible at {path}; the header Allow says what is");
    Problem::refused(StatusCode::METHOD_NOT_ALLOWED, "HF2306", detail)
}

pub(super) fn named(gid: Gid) -> Result<String, Problem> {
    gid.map(|Path(gid)| gid).map_err(|error| bad_query(&error))
}

pub(super) fn asked<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|error| bad_query(&error))
}

pub(super) fn bad_query(error: &dyn std::fmt::Display) -> Problem {
    let shown: String = error.to_string().chars().take(600).collect();
    Problem::refused(StatusCode::BAD_REQUEST, "HF2301", format!("nothing was done: {shown}"))
}

fn answered(status: StatusCode, told: Told) -> Response {
    let location = HeaderValue::try_from(format!("/v1/transactions/{}", told.gid));
    let mut response = json(status, &view::Reply::from(told));
    if let (StatusCode::CREATED | StatusCode::ACCEPTED, Ok(location)) = (status, location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("texts and numbers are always JSON");
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
