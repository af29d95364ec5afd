//! Policies of services in JSON, both ways.

use holdfast_proto::v1;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::whole::Whole;
use crate::registry::policy::limit;

/// `PUT /v1/services/{service}/policy`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["reason"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct SetPolicy {
    #[schemars(length(min = 1, max = holdfast_txn::limit::REASON_BYTES_MAX), regex(pattern = r"^[ -~]*[!-~][ -~]*$"))]
    pub(super) reason: String,
    pub(super) dry_run: bool,
    pub(super) policy: Policy,
}

/// Everything that is decided about one service; what is left out is as if nobody had decided.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Policy {
    paused: bool,
    #[schemars(length(max = limit::INSTANCES_MAX))]
    instances: Vec<Instance>,
    #[schemars(range(max = limit::RATE_MAX))]
    calls_per_s: Whole<u32>,
    #[schemars(range(max = limit::RATE_MAX))]
    burst: Whole<u32>,
    #[schemars(range(max = limit::CONCURRENCY_MAX))]
    concurrency_max: Whole<u32>,
    #[schemars(range(max = limit::CONCURRENCY_MAX))]
    recovery_max: Whole<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    breaker: Option<Breaker>,
    #[schemars(range(max = limit::PAUSE_MS_MAX))]
    warm_up_ms: Whole<u64>,
    least_load: bool,
    #[schemars(length(max = limit::WORDS_MAX), inner(regex(pattern = r"^[!-~]{1,64}$")))]
    zones: Vec<String>,
    #[schemars(length(max = limit::WORDS_MAX))]
    colors: Vec<Color>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<Endpoint>,
}

#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("required" = ["instance"]))]
#[serde(default, deny_unknown_fields)]
struct Instance {
    #[schemars(regex(pattern = r"^[!-~]{1,64}$"))]
    instance: String,
    #[schemars(range(max = limit::WEIGHT_MAX))]
    weight: Whole<u32>,
    drained: bool,
}

#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Breaker {
    #[schemars(range(max = limit::FAILURES_MAX))]
    failures: Whole<u32>,
    #[schemars(range(max = limit::PAUSE_MS_MAX))]
    open_ms: Whole<u64>,
    #[schemars(range(max = limit::PAUSE_MS_MAX))]
    open_ms_max: Whole<u64>,
}

#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("required" = ["color"]))]
#[serde(default, deny_unknown_fields)]
struct Color {
    #[schemars(regex(pattern = r"^[!-~]{1,64}$"))]
    color: String,
    #[schemars(range(max = limit::WEIGHT_MAX))]
    share: Whole<u32>,
}

#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("required" = ["address"]))]
#[serde(default, deny_unknown_fields)]
struct Endpoint {
    #[schemars(length(max = limit::ADDRESS_BYTES_MAX), regex(pattern = r"^(http://[a-z0-9.-]+:[0-9]{1,4}(/[a-z0-9]+)*|grpc://[a-z0-9.-]+:[0-9]{1,4})$"))]
    address: String,
    #[schemars(range(max = 65_536))]
    credit: Whole<u32>,
}

impl Breaker {
    pub(super) fn into_wire(self) -> v1::BreakerPolicy {
        let Self { failures, open_ms, open_ms_max } = self;
        v1::BreakerPolicy { failures: failures.0, open_ms: open_ms.0, open_ms_max: open_ms_max.0 }
    }
}

impl From<v1::BreakerPolicy> for Breaker {
    fn from(wire: v1::BreakerPolicy) -> Self {
        let v1::BreakerPolicy { failures, open_ms, open_ms_max } = wire;
        Self { failures: Whole(failures), open_ms: Whole(open_ms), open_ms_max: Whole(open_ms_max) }
    }
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
                    weight: weight.0,
                    drained,
                })
                .collect(),
            calls_per_s: self.calls_per_s.0,
            burst: self.burst.0,
            concurrency_max: self.concurrency_max.0,
            breaker: self.breaker.map(Breaker::into_wire),
            recovery_max: self.recovery_max.0,
            warm_up_ms: self.warm_up_ms.0,
            balance: balance.into(),
            zones: self.zones,
            colors: self
                .colors
                .into_iter()
                .map(|Color { color, share }| v1::ColorShare { color, share: share.0 })
                .collect(),
            endpoint: self
                .endpoint
                .map(|Endpoint { address, credit }| v1::Endpoint { address, credit: credit.0 }),
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
                    weight: Whole(weight),
                    drained,
                })
                .collect(),
            calls_per_s: Whole(wire.calls_per_s),
            burst: Whole(wire.burst),
            concurrency_max: Whole(wire.concurrency_max),
            recovery_max: Whole(wire.recovery_max),
            breaker: wire.breaker.map(Breaker::from),
            warm_up_ms: Whole(wire.warm_up_ms),
            zones: wire.zones,
            colors: wire
                .colors
                .into_iter()
                .map(|v1::ColorShare { color, share }| Color { color, share: Whole(share) })
                .collect(),
            endpoint: wire.endpoint.map(|v1::Endpoint { address, credit }| Endpoint {
                address,
                credit: Whole(credit),
            }),
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
