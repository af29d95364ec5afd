//! Policies of services in JSON, both ways.

use holdfast_proto::v1;
use serde::{Deserialize, Serialize};

/// `PUT /v1/services/{service}/policy`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SetPolicy {
    pub(super) reason: String,
    pub(super) dry_run: bool,
    pub(super) policy: Policy,
}

/// Everything that is decided about one service; what is left out is as if nobody had decided.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Policy {
    paused: bool,
    instances: Vec<Instance>,
    calls_per_s: u32,
    burst: u32,
    concurrency_max: u32,
    recovery_max: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    breaker: Option<Breaker>,
    warm_up_ms: u64,
    least_load: bool,
    zones: Vec<String>,
    colors: Vec<Color>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<Endpoint>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Instance {
    instance: String,
    weight: u32,
    drained: bool,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Breaker {
    failures: u32,
    open_ms: u64,
    open_ms_max: u64,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Color {
    color: String,
    share: u32,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Endpoint {
    address: String,
    credit: u32,
}

impl Policy {
    /// The message, for `service`.
    pub(super) fn of(self, service: String) -> v1::ServicePolicy {
        let balance =
            if self.least_load { v1::Balance::LeastLoad } else { v1::Balance::Unspecified };
        v1::ServicePolicy {
            service,
            paused: self.paused,
            instances: self
                .instances
                .into_iter()
                .map(|Instance { instance, weight, drained }| v1::InstancePolicy {
                    instance,
                    weight,
                    drained,
                })
                .collect(),
            calls_per_s: self.calls_per_s,
            burst: self.burst,
            concurrency_max: self.concurrency_max,
            breaker: self.breaker.map(|Breaker { failures, open_ms, open_ms_max }| {
                v1::BreakerPolicy { failures, open_ms, open_ms_max }
            }),
            recovery_max: self.recovery_max,
            warm_up_ms: self.warm_up_ms,
            balance: balance.into(),
            zones: self.zones,
            colors: self
                .colors
                .into_iter()
                .map(|Color { color, share }| v1::ColorShare { color, share })
                .collect(),
            endpoint: self
                .endpoint
                .map(|Endpoint { address, credit }| v1::Endpoint { address, credit }),
        }
    }
}

impl From<v1::ServicePolicy> for Policy {
    fn from(wire: v1::ServicePolicy) -> Self {
        Self {
            least_load: wire.balance() == v1::Balance::LeastLoad,
            paused: wire.paused,
            instances: wire
                .instances
                .into_iter()
                .map(|v1::InstancePolicy { instance, weight, drained }| Instance {
                    instance,
                    weight,
                    drained,
                })
                .collect(),
            calls_per_s: wire.calls_per_s,
            burst: wire.burst,
            concurrency_max: wire.concurrency_max,
            recovery_max: wire.recovery_max,
            breaker: wire.breaker.map(|v1::BreakerPolicy { failures, open_ms, open_ms_max }| {
                Breaker { failures, open_ms, open_ms_max }
            }),
            warm_up_ms: wire.warm_up_ms,
            zones: wire.zones,
            colors: wire
                .colors
                .into_iter()
                .map(|v1::ColorShare { color, share }| Color { color, share })
                .collect(),
            endpoint: wire
                .endpoint
                .map(|v1::Endpoint { address, credit }| Endpoint { address, credit }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_strictly_and_comes_back_as_it_was() {
        let json = r#"{"paused":false,"instances":[{"instance":"a","weight":7,"drained":true}],
            "calls_per_s":5,"burst":1,"concurrency_max":2,"recovery_max":3,
            "breaker":{"failures":4,"open_ms":5,"open_ms_max":6},"warm_up_ms":7,"least_load":true,
            "zones":["z"],"colors":[{"color":"blue","share":9}],
            "endpoint":{"address":"http://a:1","credit":8}}"#;
        let policy: Policy = serde_json::from_str(json).unwrap();
        let back = serde_json::to_value(Policy::from(policy.of("s".into()))).unwrap();
        assert_eq!(back, serde_json::from_str::<serde_json::Value>(json).unwrap());
        assert!(serde_json::from_str::<Policy>(r#"{"calls_per_sec":5}"#).is_err());
    }
}
