//! A transaction as `holdfast tx submit` reads it: the body of `POST /v1/transactions`, strict, unknown fields refused.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
};

use holdfast_client::{BranchSpec, Order, Recovery, Submission, Terms, Wait};
use serde::Deserialize;
use serde_json::value::RawValue;

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
    wait_timeout_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenMode {
    Tcc,
    Saga,
    Xa,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenOptions {
    timeout_ms: Option<u64>,
    call_timeout_ms: Option<u64>,
    retry: Option<WrittenRetry>,
    order: Option<WrittenOrder>,
    recovery: Option<WrittenRecovery>,
    second_phase_grace_ms: Option<u64>,
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
    payload: Option<Box<RawValue>>,
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
        WrittenMode::Xa => Terms::xa(),
    };
    if let Some(gid) = written.gid {
        terms = terms.gid(gid);
    }
    let mut submission = Submission::new(with_options(terms, written.options));
    for branch in written.branches {
        // The bytes as they were written, as the HTTP door takes them: the same file is the same content by either way.
        let payload = branch.payload.map(Box::<str>::from).unwrap_or_default().into_string();
        let mut spec = BranchSpec::new(branch.participant, payload);
        if !branch.after.is_empty() {
            spec = spec.after(branch.after);
        }
        if branch.pivot {
            spec = spec.pivot();
        }
        submission = submission.branch_spec(spec);
    }
    if let Some(ms) = written.wait_timeout_ms {
        submission = submission.patience_ms(ms);
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
    if let Some(ms) = options.second_phase_grace_ms {
        terms = terms.second_phase_grace_ms(ms);
    }
    for (name, value) in options.headers {
        terms = terms.header(name, value);
    }
    for (name, value) in options.tags {
        terms = terms.tag(name, value);
    }
    terms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_at_its_limit_and_refused_one_byte_past_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("large.json");
        let path = file.to_str().expect("UTF-8");
        let whole = r#"{"mode":"tcc","branches":[{"participant":"a"}]}"#;
        let most = usize::try_from(BYTES_MAX).expect("it fits");
        let padded = |bytes: usize| format!("{whole}{}", " ".repeat(bytes - whole.len()));
        std::fs::write(&file, padded(most)).expect("room");
        assert_eq!(read(path).expect("at the limit"), Submission::tcc().branch("a", ""));
        std::fs::write(&file, padded(most + 1)).expect("room");
        let told = read(path).expect_err("one byte past it").to_string();
        assert!(told.contains("HF1023") && told.contains("larger than 2097152 bytes"), "{told}");
    }

    #[test]
    fn a_payload_is_the_bytes_that_were_written() {
        let written =
            br#"{"mode":"tcc","branches":[{"participant":"a","payload":{ "x" : 1e400 }}]}"#;
        let expected = Submission::tcc().branch("a", r#"{ "x" : 1e400 }"#);
        assert_eq!(parse(written).expect("well formed"), expected);
        let without = parse(br#"{"mode":"tcc","branches":[{"participant":"a"}]}"#);
        assert_eq!(without.expect("well formed"), Submission::tcc().branch("a", ""));
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
