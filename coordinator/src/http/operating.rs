//! Routes beside transactions: the history, the timeline of one transaction, services and their policies.

use axum::{
    Router,
    body::Body,
    extract::{Query, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
    routing::{get, post, put},
};
use holdfast_proto::v1;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    body::{self, Wait},
    instant,
    policy::SetPolicy,
    problem::Problem,
    routes::{Door, Name, asked, bad_query, json, named},
    service_view, view,
    whole::Whole,
};
use crate::rpc::{Hop, show};

/// The routes.
pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/v1/history", get(history))
        .route("/v1/transactions/{gid}/timeline", get(timeline))
        .route("/v1/transactions/{gid}/operate", post(operate))
        .route("/v1/services", get(services))
        .route("/v1/services/{service}", get(service))
        .route("/v1/services/{service}/policy", put(set_policy))
}

/// Parameters of one request; more are not meant.
const PAIRS_MAX: usize = 32;

/// Reads a search of the history from a query.
pub(super) fn search(pairs: Vec<(String, String)>) -> Result<v1::SearchHistoryRequest, Problem> {
    filter(pairs, "cursor")
}

/// Reads from a query which open and recent transactions to list.
pub(super) fn list(pairs: Vec<(String, String)>) -> Result<v1::ListRequest, Problem> {
    let filter = filter(pairs, "after")?;
    Ok(v1::ListRequest {
        statuses: filter.statuses,
        after_gid: filter.cursor,
        limit: filter.limit,
        modes: filter.modes,
        participant: filter.participant,
        tags: filter.tags,
        amount_min: filter.amount_min,
        amount_max: filter.amount_max,
        from_ms: filter.from_ms,
        until_ms: filter.until_ms,
    })
}

/// Reads a filter whose page goes on behind what `place` says.
fn filter(pairs: Vec<(String, String)>, place: &str) -> Result<v1::SearchHistoryRequest, Problem> {
    let mut request = v1::SearchHistoryRequest::default();
    if pairs.len() > PAIRS_MAX {
        return Err(bad_query(&format!("more than {PAIRS_MAX} parameters")));
    }
    for (name, value) in pairs {
        let shown: String = value.chars().take(64).collect();
        let time = |value: &str| {
            instant::parse(value).ok_or_else(|| {
                bad_query(&format!("{name} = {shown:?} is no time; write 2026-11-28T09:00:00Z, or milliseconds since 1970"))
            })
        };
        match name.as_str() {
            "status" => {
                for word in value.split(',').filter(|word| !word.is_empty()).take(16) {
                    request.statuses.push(status(word)?);
                }
            }
            "mode" => {
                for word in value.split(',').filter(|word| !word.is_empty()).take(16) {
                    request.modes.push(mode(word)?);
                }
            }
            "participant" => request.participant = value,
            "tag" => {
                let Some((name, value)) = value.split_once('=') else {
                    return Err(bad_query(&format!(
                        "tag = {shown:?} is none; write tag=NAME=VALUE"
                    )));
                };
                request.tags.push(v1::Tag { name: name.to_owned(), value: value.to_owned() });
            }
            "amount_min" => request.amount_min = value,
            "amount_max" => request.amount_max = value,
            "from" => request.from_ms = time(&value)?,
            "until" => request.until_ms = time(&value)?,
            name if name == place => request.cursor = value,
            "limit" => {
                request.limit = value
                    .parse()
                    .map_err(|_| bad_query(&format!("limit = {shown:?} is no number")))?;
            }
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(bad_query(&format!(
                    "unknown parameter {other:?}; known are status, mode, participant, tag, amount_min, amount_max, from, until, {place}, limit"
                )));
            }
        }
    }
    Ok(request)
}

/// The number of a status's word.
pub(super) fn status(word: &str) -> Result<i32, Problem> {
    let known = holdfast_txn::Status::ALL.into_iter().find(|s| show::status_word(*s) == word);
    known.map(|known| show::status_to_wire(known).into()).ok_or_else(|| {
        let shown: String = word.chars().take(64).collect();
        let all = holdfast_txn::Status::ALL.map(show::status_word).join(", ");
        bad_query(&format!("status {shown:?} is none of {all}"))
    })
}

fn mode(word: &str) -> Result<i32, Problem> {
    let wanted = format!("MODE_{}", word.to_ascii_uppercase());
    let mode = v1::Mode::from_str_name(&wanted).filter(|mode| *mode != v1::Mode::Unspecified);
    mode.map(Into::into).ok_or_else(|| {
        let shown: String = word.chars().take(64).collect();
        bad_query(&format!("mode {shown:?} is none; tcc, saga and xa are"))
    })
}

/// A page of the history.
#[derive(Serialize, JsonSchema)]
pub(super) struct HistoryPage {
    transactions: Vec<view::Transaction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    node: u64,
    records: u64,
    oldest: Option<String>,
    newest: Option<String>,
    gaps: u64,
}

async fn history(
    door: Door,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, Problem> {
    let reply = door.desk.search(&search(asked(query)?)?).await?;
    let page = HistoryPage {
        transactions: reply.transactions.into_iter().map(view::Transaction::from).collect(),
        next_cursor: Some(reply.next_cursor).filter(|cursor| !cursor.is_empty()),
        node: reply.node,
        records: reply.records,
        oldest: instant::rfc3339(reply.oldest_ms),
        newest: instant::rfc3339(reply.newest_ms),
        gaps: reply.gaps,
    };
    Ok(json(StatusCode::OK, &page))
}

/// `POST /v1/transactions/{gid}/operate`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["act", "reason"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Operate {
    #[schemars(with = "Act")]
    act: Option<Act>,
    #[schemars(range(max = holdfast_txn::limit::BRANCHES_MAX))]
    branch: Whole<u32>,
    #[schemars(length(min = 1, max = holdfast_txn::limit::REASON_BYTES_MAX), regex(pattern = r"^[ -~]*[!-~][ -~]*$"))]
    reason: String,
    dry_run: bool,
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{0,32}$"))]
    dev_name: String,
    wait: Option<Wait>,
    #[schemars(range(max = 60_000))]
    wait_timeout_ms: Whole<u64>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Act {
    Retry,
    RollBack,
    MarkDone,
    MarkRefused,
    Abandon,
    Approve,
}

async fn operate(
    door: Door,
    gid: Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let operate: Operate = door.read(&headers, body, false).await?;
    let act = operate.act.map_or(v1::OperatorAct::Unspecified, |act| match act {
        Act::Retry => v1::OperatorAct::Retry,
        Act::RollBack => v1::OperatorAct::RollBack,
        Act::MarkDone => v1::OperatorAct::MarkDone,
        Act::MarkRefused => v1::OperatorAct::MarkRefused,
        Act::Abandon => v1::OperatorAct::Abandon,
        Act::Approve => v1::OperatorAct::Approve,
    });
    let request = v1::OperateRequest {
        gid: named(gid)?,
        act: act.into(),
        branch: operate.branch.0,
        reason: operate.reason,
        dry_run: operate.dry_run,
        dev_name: operate.dev_name,
        wait: body::wait(operate.wait),
        wait_timeout_ms: operate.wait_timeout_ms.0,
    };
    door.fate(v1::exchange_request::Request::Operate(request)).await
}

/// A transaction with what was seen of its calls.
#[derive(Serialize, JsonSchema)]
pub(super) struct Timeline {
    transaction: Option<view::Transaction>,
    attempts: Vec<Attempt>,
    attempts_left_out: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts_node: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
struct Attempt {
    branch: u32,
    op: String,
    attempt: u32,
    at: Option<String>,
    took_ms: u64,
    outcome: String,
    instance: String,
}

async fn timeline(door: Door, gid: Name) -> Result<Response, Problem> {
    let record = door.desk.record(&named(gid)?).await?;
    let attempts = record.attempts.into_iter().map(|one| Attempt {
        branch: one.branch,
        op: op_word(one.op()),
        attempt: one.attempt,
        at: instant::rfc3339(one.at_ms),
        took_ms: one.took_ms,
        outcome: one.outcome,
        instance: one.instance,
    });
    let timeline = Timeline {
        attempts: attempts.collect(),
        transaction: record.transaction.map(view::Transaction::from),
        attempts_left_out: record.attempts_left_out,
        attempts_node: Some(record.attempts_node).filter(|node| *node > 0),
    };
    Ok(json(StatusCode::OK, &timeline))
}

fn op_word(op: v1::Op) -> String {
    op.as_str_name().trim_start_matches("OP_").to_ascii_lowercase()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ServicesQuery {
    pub(super) stale: bool,
}

pub(super) type Stale = Result<Query<ServicesQuery>, QueryRejection>;

async fn services(door: Door, query: Stale) -> Result<Response, Problem> {
    let stale = asked(query)?.stale;
    let request = v1::ListServicesRequest { service: String::new(), stale };
    let reply = door.desk.services(request, Hop::May).await?;
    Ok(tagged(reply.version, &service_view::Services::from(reply)))
}

async fn service(door: Door, service: Name, query: Stale) -> Result<Response, Problem> {
    let (service, stale) = (named(service)?, asked(query)?.stale);
    let request = v1::ListServicesRequest { service: service.clone(), stale };
    let mut reply = door.desk.services(request, Hop::May).await?;
    let Some(state) = reply.services.pop() else {
        let shown: String = service.chars().take(64).collect();
        let detail = format!("no instance of {shown:?} is here, and nothing was decided about it");
        return Err(Problem::refused(StatusCode::NOT_FOUND, "HF2305", detail));
    };
    Ok(tagged(reply.version, &service_view::ServiceState::from(state)))
}

async fn set_policy(
    door: Door,
    service: Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let service = named(service)?;
    let expected = if_match(&headers)?;
    let SetPolicy { reason, dry_run, policy } = door.read(&headers, body, false).await?;
    let request =
        v1::SetServicePolicyRequest { policy: Some(policy.of(service)), expected, reason, dry_run };
    let conditional = request.expected.is_some();
    let reply = door.desk.set_service_policy(request, Hop::May).await.map_err(|fault| {
        let changed = conditional && fault.code == "HF2404";
        let mut problem = Problem::from(fault);
        if changed {
            problem.status = StatusCode::PRECONDITION_FAILED;
        }
        problem
    })?;
    Ok(tagged(reply.version, &service_view::Set::from(reply)))
}

/// With the version as its tag, which `If-Match` of a change may name.
pub(super) fn tagged(version: Option<v1::PolicyVersion>, body: &impl Serialize) -> Response {
    let mut response = json(StatusCode::OK, body);
    let version = version.unwrap_or_default();
    let tag = format!("\"{}.{}\"", version.term, version.revision);
    let tag = HeaderValue::try_from(tag).expect("digits and a point");
    response.headers_mut().insert(header::ETAG, tag);
    response
}

pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<v1::PolicyVersion>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let parts = bare.and_then(|bare| bare.split_once('.'));
    let version = parts.and_then(|(term, revision)| {
        Some(v1::PolicyVersion { term: term.parse().ok()?, revision: revision.parse().ok()? })
    });
    version.map(Some).ok_or_else(|| bad_query(&"If-Match is no ETag of this resource"))
}
