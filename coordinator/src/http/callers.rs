//! Callers that operators decided about: what each may ask in a second and at once, and how that goes.

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::{get, put},
};
use holdfast_proto::v1;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    operating::{Stale, if_match, tagged},
    policy::Breaker,
    problem::Problem,
    routes::{Door, Name, asked, named},
    service_view,
    whole::Whole,
};
use crate::{registry::policy::limit, rpc::Hop};

/// The routes.
pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/v1/callers", get(callers))
        .route("/v1/callers/{caller}/policy", put(set_policy))
}

/// `PUT /v1/callers/{caller}/policy`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["reason"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct SetCallerPolicy {
    #[schemars(length(min = 1, max = holdfast_txn::limit::REASON_BYTES_MAX), regex(pattern = r"^[ -~]*[!-~][ -~]*$"))]
    reason: String,
    dry_run: bool,
    policy: CallerPolicy,
}

/// Everything that is decided about one caller; what is left out or 0 is no bound.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct CallerPolicy {
    #[schemars(range(max = limit::RATE_MAX))]
    requests_per_s: Whole<u32>,
    #[schemars(range(max = limit::RATE_MAX))]
    burst: Whole<u32>,
    #[schemars(range(max = limit::CONCURRENCY_MAX))]
    concurrency_max: Whole<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    breaker: Option<Breaker>,
}

/// Every caller with a policy, as one node sees them.
#[derive(Serialize, JsonSchema)]
pub(super) struct Callers {
    node: u64,
    callers: Vec<CallerState>,
}

#[derive(Serialize, JsonSchema)]
struct CallerState {
    caller: String,
    in_flight: u64,
    taken: u64,
    turned_away: u64,
    by_rate: u64,
    by_concurrency: u64,
    by_breaker: u64,
    breaker: String,
    policy: CallerPolicy,
}

impl CallerPolicy {
    fn of(self, caller: String) -> v1::CallerPolicy {
        v1::CallerPolicy {
            caller,
            requests_per_s: self.requests_per_s.0,
            burst: self.burst.0,
            concurrency_max: self.concurrency_max.0,
            breaker: self.breaker.map(Breaker::into_wire),
        }
    }
}

impl From<v1::CallerPolicy> for CallerPolicy {
    fn from(wire: v1::CallerPolicy) -> Self {
        Self {
            requests_per_s: Whole(wire.requests_per_s),
            burst: Whole(wire.burst),
            concurrency_max: Whole(wire.concurrency_max),
            breaker: wire.breaker.map(Breaker::from),
        }
    }
}

impl From<v1::CallerState> for CallerState {
    fn from(state: v1::CallerState) -> Self {
        Self {
            caller: state.caller,
            in_flight: state.in_flight,
            taken: state.taken,
            turned_away: state.turned_away,
            by_rate: state.by_rate,
            by_concurrency: state.by_concurrency,
            by_breaker: state.by_breaker,
            breaker: state.breaker,
            policy: state.policy.unwrap_or_default().into(),
        }
    }
}

async fn callers(door: Door, query: Stale) -> Result<Response, Problem> {
    let stale = asked(query)?.stale;
    // The name of no service: only the callers are asked for.
    let request = v1::ListServicesRequest { service: "-".to_owned(), stale };
    let reply = door.desk.services(request, Hop::May).await?;
    let callers = reply.callers.into_iter().map(CallerState::from).collect();
    Ok(tagged(reply.version, &Callers { node: reply.node, callers }))
}

async fn set_policy(
    door: Door,
    caller: Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let caller = named(caller)?;
    let expected = if_match(&headers)?;
    let SetCallerPolicy { reason, dry_run, policy } = door.read(&headers, body, false).await?;
    let policy = Some(policy.of(caller));
    let request = v1::SetCallerPolicyRequest { policy, expected, reason, dry_run };
    let conditional = request.expected.is_some();
    let reply = door.desk.set_caller_policy(request, Hop::May).await.map_err(|fault| {
        let changed = conditional && fault.code == "HF2404";
        let mut problem = Problem::from(fault);
        if changed {
            problem.status = StatusCode::PRECONDITION_FAILED;
        }
        problem
    })?;
    Ok(tagged(reply.version, &service_view::Set::from(reply)))
}
