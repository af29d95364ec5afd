//! Services in JSON.

use holdfast_proto::v1;
use schemars::JsonSchema;
use serde::Serialize;

use super::policy::Policy;

/// Every service.
#[derive(Serialize, JsonSchema)]
pub(super) struct Services {
    node: u64,
    leads: bool,
    services: Vec<ServiceState>,
}

/// One service.
#[derive(Serialize, JsonSchema)]
pub(super) struct ServiceState {
    service: String,
    in_flight: u64,
    parked: u64,
    /// What calls that wait wait for: session, paused, breaker, concurrency, rate, recovery, credit. Empty: none waits.
    waits_for: String,
    recovering: u64,
    breaker: String,
    asked: u64,
    answered: u64,
    silent: u64,
    sessions: Vec<Session>,
    policy: Option<Policy>,
}

#[derive(Serialize, JsonSchema)]
struct Session {
    session: u64,
    instance: String,
    kind: String,
    version: String,
    zone: String,
    color: String,
    weight: u32,
    credit: u32,
    in_flight: u32,
    draining: bool,
    breaker: String,
    asked: u64,
    answered: u64,
    silent: u64,
    age_ms: u64,
    lease_ms: u64,
}

/// What a change came to.
#[derive(Serialize, JsonSchema)]
pub(super) struct Set {
    version: String,
    nodes: u32,
    nodes_all: u32,
}

impl From<v1::ListServicesReply> for Services {
    fn from(reply: v1::ListServicesReply) -> Self {
        Self {
            node: reply.node,
            leads: reply.leads,
            services: reply.services.into_iter().map(ServiceState::from).collect(),
        }
    }
}

impl From<v1::ServiceState> for ServiceState {
    fn from(state: v1::ServiceState) -> Self {
        Self {
            service: state.service,
            in_flight: state.in_flight,
            parked: state.parked,
            waits_for: state.waits_for,
            recovering: state.recovering,
            breaker: state.breaker,
            asked: state.asked,
            answered: state.answered,
            silent: state.silent,
            sessions: state.sessions.into_iter().map(Session::from).collect(),
            policy: state.policy.map(Policy::from),
        }
    }
}

impl From<v1::SessionState> for Session {
    fn from(state: v1::SessionState) -> Self {
        Self {
            session: state.session,
            instance: state.instance,
            kind: state.kind,
            version: state.version,
            zone: state.zone,
            color: state.color,
            weight: state.weight,
            credit: state.credit,
            in_flight: state.in_flight,
            draining: state.draining,
            breaker: state.breaker,
            asked: state.asked,
            answered: state.answered,
            silent: state.silent,
            age_ms: state.age_ms,
            lease_ms: state.lease_ms,
        }
    }
}

impl From<v1::SetPolicyReply> for Set {
    fn from(reply: v1::SetPolicyReply) -> Self {
        let version = reply.version.unwrap_or_default();
        Self {
            version: format!("{}.{}", version.term, version.revision),
            nodes: reply.nodes,
            nodes_all: reply.nodes_all,
        }
    }
}
