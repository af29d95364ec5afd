//! Services in JSON, as `holdfast services --output json` prints them.

use holdfast_client::wire::{Balance, ServicePolicy, ServiceState};

/// What was decided about a service.
pub(crate) fn policy_json(policy: &ServicePolicy) -> serde_json::Value {
    serde_json::json!({
        "paused": policy.paused,
        "instances": policy.instances.iter().map(|one| serde_json::json!({
            "instance": one.instance, "weight": one.weight, "drained": one.drained,
        })).collect::<Vec<_>>(),
        "calls_per_s": policy.calls_per_s,
        "burst": policy.burst,
        "concurrency_max": policy.concurrency_max,
        "recovery_max": policy.recovery_max,
        "breaker": policy.breaker.map(|one| serde_json::json!({
            "failures": one.failures, "open_ms": one.open_ms, "open_ms_max": one.open_ms_max,
        })),
        "warm_up_ms": policy.warm_up_ms,
        "least_load": policy.balance() == Balance::LeastLoad,
        "zones": policy.zones,
        "colors": policy.colors.iter().map(|one| serde_json::json!({
            "color": one.color, "share": one.share,
        })).collect::<Vec<_>>(),
        "endpoint": policy.endpoint.as_ref().map(|one| serde_json::json!({
            "address": one.address, "credit": one.credit,
        })),
    })
}

/// A service as the leader sees it.
pub(crate) fn service_json(one: &ServiceState) -> serde_json::Value {
    serde_json::json!({
        "service": one.service,
        "in_flight": one.in_flight,
        "parked": one.parked,
        "waits_for": one.waits_for,
        "recovering": one.recovering,
        "breaker": one.breaker,
        "asked": one.asked,
        "answered": one.answered,
        "silent": one.silent,
        "policy": one.policy.as_ref().map(policy_json),
        "sessions": one.sessions.iter().map(|session| serde_json::json!({
            "session": session.session,
            "instance": session.instance,
            "kind": session.kind,
            "version": session.version,
            "zone": session.zone,
            "color": session.color,
            "weight": session.weight,
            "credit": session.credit,
            "in_flight": session.in_flight,
            "draining": session.draining,
            "breaker": session.breaker,
            "asked": session.asked,
            "answered": session.answered,
            "silent": session.silent,
            "age_ms": session.age_ms,
            "lease_ms": session.lease_ms,
        })).collect::<Vec<_>>(),
    })
}
