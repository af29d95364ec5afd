//! A transaction as `holdfast tx submit` reads it: strict JSON, unknown fields refused.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
};

use holdfast_client::{BranchSpec, Order, Recovery, Submission, Terms, Wait};
use serde::Deserialize;

use crate::exit::Usage;

/// Bytes of one file; the coordinator takes no larger request by default.
const BYTES_MAX: u64 = 2 * 1024 * 1024;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    gid: Option<String>,
    mode: WrittenMode,
    #[serde(default)]
    options: WrittenOptions,
    branches: Vec<WrittenBranch>,
    wait: Option<WrittenWait>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenMode {
    Tcc,
    Saga,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenOptions {
    timeout_ms: Option<u64>,
    call_timeout_ms: Option<u64>,
    retry: Option<WrittenRetry>,
    order: Option<WrittenOrder>,
    recovery: Option<WrittenRecovery>,
    headers: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenRetry {
    first_ms: u64,
    ceiling_ms: u64,
    attempts_max: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenOrder {
    Sequential,
    Concurrent,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenRecovery {
    Backward,
    Forward,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenWait {
    None,
    Decision,
    End,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenBranch {
    participant: String,
    #[serde(default)]
    payload: serde_json::Value,
    #[serde(default)]
    after: Vec<u32>,
    #[serde(default)]
    pivot: bool,
}

/// Reads the transaction in `file`; `-` is standard input.
/// # Errors
/// HF1023: it cannot be read, is too large, or is not the JSON that is asked for, with line and column.
pub(crate) fn read(file: &str) -> anyhow::Result<Submission> {
    let bytes = read_bytes(file).map_err(|error| {
        Usage(format!("HF1023 {file}: cannot be read: {error}. Check the path."))
    })?;
    if bytes.len() as u64 > BYTES_MAX {
        let text =
            format!("HF1023 {file}: larger than {BYTES_MAX} bytes, the limit of one request.");
        return Err(Usage(text).into());
    }
    parse(&bytes).map_err(|cause| Usage(format!("HF1023 {file}: {cause}")).into())
}

fn read_bytes(file: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match file {
        "-" => io::stdin().take(BYTES_MAX + 1).read_to_end(&mut bytes)?,
        path => File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut bytes)?,
    };
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Submission, String> {
    let written: Written = serde_json::from_slice(bytes)
        .map_err(|error| format!("{error}. See `holdfast tx submit --help` for the form."))?;
    if written.branches.is_empty() {
        return Err("has no branches. Name at least one participant.".to_owned());
    }
    let mut terms = match written.mode {
        WrittenMode::Tcc => Terms::tcc(),
        WrittenMode::Saga => Terms::saga(),
    };
    if let Some(gid) = written.gid {
        terms = terms.gid(gid);
    }
    let mut submission = Submission::new(with_options(terms, written.options));
    for branch in written.branches {
        let mut spec = BranchSpec::new(branch.participant, payload(&branch.payload));
        if !branch.after.is_empty() {
            spec = spec.after(branch.after);
        }
        if branch.pivot {
            spec = spec.pivot();
        }
        submission = submission.branch_spec(spec);
    }
    Ok(submission.wait(match written.wait {
        Some(WrittenWait::None) => Wait::None,
        Some(WrittenWait::End) => Wait::End,
        Some(WrittenWait::Decision) | None => Wait::Decision,
    }))
}

fn with_options(mut terms: Terms, options: WrittenOptions) -> Terms {
    if let Some(ms) = options.timeout_ms {
        terms = terms.timeout_ms(ms);
    }
    if let Some(ms) = options.call_timeout_ms {
        terms = terms.call_timeout_ms(ms);
    }
    if let Some(retry) = options.retry {
        terms = terms.retry(retry.first_ms, retry.ceiling_ms, retry.attempts_max);
    }
    terms = match options.order {
        Some(WrittenOrder::Sequential) => terms.order(Order::Sequential),
        Some(WrittenOrder::Concurrent) => terms.order(Order::Concurrent),
        None => terms,
    };
    terms = match options.recovery {
        Some(WrittenRecovery::Backward) => terms.recovery(Recovery::Backward),
        Some(WrittenRecovery::Forward) => terms.recovery(Recovery::Forward),
        None => terms,
    };
    for (name, value) in options.headers {
        terms = terms.header(name, value);
    }
    for (name, value) in options.tags {
        terms = terms.tag(name, value);
    }
    terms
}

/// Compact JSON with sorted keys, so that a re-indented file is still the same content under the same gid.
fn payload(value: &serde_json::Value) -> Vec<u8> {
    match value {
        serde_json::Value::Null => Vec::new(),
        other => other.to_string().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indentation_and_order_of_keys_are_no_content() {
        let one = parse(br#"{"mode":"tcc","gid":"g","branches":[{"participant":"a","payload":{"x":1,"y":"2"}}]}"#);
        let other = parse(
            br#"{ "branches": [ { "payload": { "y": "2",
                "x": 1 }, "participant": "a" } ], "gid": "g", "mode": "tcc" }"#,
        );
        assert_eq!(one.expect("well formed"), other.expect("well formed"));
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_place() {
        let wrong = parse(b"{\"mode\":\"tcc\",\n\"timeout\":1,\"branches\":[]}")
            .expect_err("unknown field");
        assert!(wrong.contains("unknown field `timeout`") && wrong.contains("line 2"), "{wrong}");
    }

    #[test]
    fn a_transaction_without_branches_is_refused() {
        let wrong = parse(br#"{"mode":"saga","branches":[]}"#).expect_err("no branches");
        assert!(wrong.contains("no branches"), "{wrong}");
    }
}
