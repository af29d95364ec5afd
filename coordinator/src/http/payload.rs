//! Payloads in bodies: JSON as it is written, or bytes in base64, and the captures that carry one.

use base64::Engine as _;
use bytes::Bytes;
use holdfast_proto::v1;
use holdfast_txn::limit;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::whole::Whole;
use crate::rpc::fault::Findings;

/// What the confirm of a branch carries in place of what its try carried.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["branch"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Capture {
    #[schemars(range(min = 1, max = limit::BRANCHES_MAX))]
    branch: Whole<u32>,
    #[schemars(with = "Option<serde_json::Value>")]
    payload: Option<Box<RawValue>>,
    #[schemars(regex(pattern = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?$"))]
    payload_base64: Option<String>,
}

impl Capture {
    pub(super) fn into_wire(self, findings: &mut Findings, field: &str) -> v1::Capture {
        let Self { branch, payload, payload_base64 } = self;
        v1::Capture { branch: branch.0, payload: written(payload, payload_base64, findings, field) }
    }
}

/// The payload goes to the participant as the bytes that the caller wrote: numbers are not read, so none is rounded.
pub(super) fn written(
    json: Option<Box<RawValue>>,
    base64: Option<String>,
    findings: &mut Findings,
    field: &str,
) -> Bytes {
    match (json, base64) {
        (Some(_), Some(_)) => {
            findings.add(field, "payload and payload_base64 exclude each other");
            Bytes::new()
        }
        (Some(json), None) => Bytes::from(Box::<str>::from(json).into_string()),
        (None, Some(text)) => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(text);
            let field = format_args!("{field}.payload_base64");
            findings.take(field, decoded).map(Bytes::from).unwrap_or_default()
        }
        (None, None) => Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::exchange_request::Request;

    use crate::http::body::{Close, parse};

    fn closed(json: &str) -> Result<Vec<(u32, Vec<u8>)>, String> {
        let close = parse::<Close>(json.as_bytes()).map_err(|no| no.fault.message)?;
        let wire = close.into_wire("g1".to_owned()).map_err(|no| no.fault.message)?;
        let Request::SubmitBegun(wire) = wire else { panic!("it is a submit") };
        Ok(wire.captures.into_iter().map(|one| (one.branch, one.payload.to_vec())).collect())
    }

    #[test]
    fn a_capture_carries_what_was_written_and_nothing_twice() {
        assert_eq!(closed("{}"), Ok(Vec::new()));
        let json = r#"{"captures": [{"branch": 2, "payload": {"b": 1.10}}, {"branch": 1, "payload_base64": "AAE="}]}"#;
        assert_eq!(closed(json), Ok(vec![(2, br#"{"b": 1.10}"#.to_vec()), (1, vec![0, 1])]));
        for (json, words) in [
            (r#"{"captures": [{"branch": 1, "payload": 1, "payload_base64": "AA=="}]}"#, "exclude"),
            (
                r#"{"captures": [{"branch": 1, "payload_base64": "?"}]}"#,
                "captures[0].payload_base64",
            ),
            (r#"{"captures": [{"branch": 1, "amount": 1}]}"#, "amount"),
            (r#"{"captures": {"1": 1}}"#, "invalid type"),
        ] {
            let refused = closed(json).expect_err(json);
            assert!(refused.contains(words), "{json}: {refused}");
        }
    }
}
