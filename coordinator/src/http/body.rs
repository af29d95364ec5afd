//! What a request may say in JSON: strict, bounded, and translated into the messages that gRPC carries.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use bytes::Bytes;
use holdfast_proto::{Pairs, v1};
use holdfast_txn::limit;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{
    payload::{Capture, written},
    problem::Problem,
    whole::Whole,
};
use crate::rpc::{check::WAIT_MS_MAX, fault::Findings};

/// For the whole body to arrive.
const READ_MAX: Duration = Duration::from_secs(10);
/// Objects and lists within each other.
const DEPTH_MAX: usize = 64;

/// `POST /v1/transactions`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["mode"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Submit {
    #[schemars(regex(pattern = r"^[A-Za-z0-9-]{0,35}$"))]
    gid: Option<String>,
    #[schemars(with = "Mode")]
    mode: Option<Mode>,
    enlisted: bool,
    options: Options,
    #[schemars(length(min = 1, max = limit::BRANCHES_MAX))]
    branches: Option<Vec<Branch>>,
    wait: Option<Wait>,
    #[schemars(range(max = WAIT_MS_MAX))]
    wait_timeout_ms: Option<Whole<u64>>,
}

/// `POST /v1/transactions/{gid}/branches`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["branch", "participant"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct AddBranch {
    #[schemars(range(min = 1, max = limit::BRANCHES_MAX))]
    branch: Whole<u32>,
    #[schemars(range(max = limit::BRANCHES_MAX))]
    parent: Whole<u32>,
    #[schemars(regex(pattern = r"^[a-z0-9.@-]{1,64}$"))]
    participant: String,
    #[schemars(with = "Option<serde_json::Value>")]
    payload: Option<Box<RawValue>>,
    #[schemars(regex(pattern = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?$"))]
    payload_base64: Option<String>,
    #[schemars(length(max = limit::BRANCHES_MAX), inner(range(min = 1, max = limit::BRANCHES_MAX)))]
    after: Vec<Whole<u32>>,
    pivot: bool,
}

/// `POST /v1/transactions/{gid}/submit`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Close {
    wait: Option<Wait>,
    #[schemars(range(max = WAIT_MS_MAX))]
    wait_timeout_ms: Whole<u64>,
    #[schemars(length(max = limit::BRANCHES_MAX))]
    captures: Vec<Capture>,
}

/// `POST /v1/transactions/{gid}/rollback`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RollBack {
    reason: String,
    wait: Option<Wait>,
    #[schemars(range(max = WAIT_MS_MAX))]
    wait_timeout_ms: Whole<u64>,
    abort_if_unknown: bool,
}

/// `POST /v1/transactions/{gid}/finish`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["outcome"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Finish {
    #[schemars(length(max = limit::BRANCHES_MAX), inner(range(min = 1, max = limit::BRANCHES_MAX)))]
    branches: Vec<Whole<u32>>,
    #[schemars(with = "Decided")]
    outcome: Option<Decided>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Decided {
    Committed,
    RolledBack,
}

/// `POST /v1/transactions/{gid}/retry`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["reason"]))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Retry {
    #[schemars(length(min = 1, max = limit::REASON_BYTES_MAX), regex(pattern = r"^[ -~]*[!-~][ -~]*$"))]
    reason: String,
    wait: Option<Wait>,
    #[schemars(range(max = WAIT_MS_MAX))]
    wait_timeout_ms: Whole<u64>,
}

/// When the answer is due.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Wait {
    None,
    Decision,
    End,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Tcc,
    Saga,
    Xa,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Order {
    Sequential,
    Concurrent,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Recovery {
    Backward,
    Forward,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Tries {
    Coordinator,
    Caller,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Options {
    #[schemars(range(max = limit::TIMEOUT_MS_MAX))]
    timeout_ms: Whole<u64>,
    #[schemars(range(max = limit::TIMEOUT_MS_MAX))]
    call_timeout_ms: Whole<u64>,
    retry: Option<RetryPolicy>,
    order: Option<Order>,
    recovery: Option<Recovery>,
    tries: Option<Tries>,
    headers: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    #[schemars(range(max = limit::SECOND_PHASE_GRACE_MS_MAX))]
    second_phase_grace_ms: Whole<u64>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct RetryPolicy {
    #[schemars(range(max = limit::TIMEOUT_MS_MAX))]
    first_ms: Whole<u64>,
    #[schemars(range(max = limit::TIMEOUT_MS_MAX))]
    ceiling_ms: Whole<u64>,
    #[schemars(range(max = u32::MAX))]
    attempts_max: Whole<u32>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "BranchSpec")]
#[schemars(extend("required" = ["participant"]))]
#[serde(default, deny_unknown_fields)]
struct Branch {
    #[schemars(regex(pattern = r"^[a-z0-9.@-]{1,64}$"))]
    participant: String,
    #[schemars(with = "Option<serde_json::Value>")]
    payload: Option<Box<RawValue>>,
    #[schemars(regex(pattern = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?$"))]
    payload_base64: Option<String>,
    #[schemars(length(max = limit::BRANCHES_MAX), inner(range(min = 1, max = limit::BRANCHES_MAX)))]
    after: Vec<Whole<u32>>,
    pivot: bool,
}

impl Submit {
    /// The message, with the gid that the body or the `Idempotency-Key` names.
    pub(super) fn into_wire(
        self,
        headers: &HeaderMap,
    ) -> Result<v1::exchange_request::Request, Problem> {
        let gid = gid(self.gid, headers)?;
        let mode = match self.mode {
            Some(Mode::Tcc) => v1::Mode::Tcc,
            Some(Mode::Saga) => v1::Mode::Saga,
            Some(Mode::Xa) => v1::Mode::Xa,
            None => v1::Mode::Unspecified,
        };
        let options = Some(self.options.into_wire());
        let mut findings = Findings::default();
        if self.enlisted {
            if self.branches.is_some() {
                findings.add(
                    "branches",
                    "an enlisted transaction begins without branches; add them one by one",
                );
            }
            if self.wait.is_some() || self.wait_timeout_ms.is_some() {
                findings.add(
                    "wait",
                    "an enlisted transaction is not decided before it is submitted; wait there",
                );
            }
            findings.verdict()?;
            let begin = v1::BeginRequest { gid, mode: mode.into(), options };
            return Ok(v1::exchange_request::Request::Begin(begin));
        }
        let given = self.branches.unwrap_or_default().into_iter().enumerate();
        let branches = given
            .map(|(n, branch)| branch.into_wire(&mut findings, &format!("branches[{n}]")))
            .collect();
        findings.verdict()?;
        Ok(v1::exchange_request::Request::Submit(v1::SubmitRequest {
            gid,
            mode: mode.into(),
            options,
            branches,
            wait: wait(self.wait),
            wait_timeout_ms: self.wait_timeout_ms.unwrap_or_default().0,
            rules_epoch: None,
        }))
    }
}

impl AddBranch {
    pub(super) fn into_wire(self, gid: String) -> Result<v1::exchange_request::Request, Problem> {
        let Self { branch, parent, participant, payload, payload_base64, after, pivot } = self;
        let mut findings = Findings::default();
        let spec = Branch { participant, payload, payload_base64, after, pivot };
        let spec = Some(spec.into_wire(&mut findings, "body"));
        findings.verdict()?;
        Ok(v1::exchange_request::Request::AddBranch(v1::AddBranchRequest {
            gid,
            branch: branch.0,
            spec,
            parent: parent.0,
        }))
    }
}

impl Close {
    pub(super) fn into_wire(self, gid: String) -> Result<v1::exchange_request::Request, Problem> {
        let (wait, wait_timeout_ms) = (wait(self.wait), self.wait_timeout_ms.0);
        let mut findings = Findings::default();
        let given = self.captures.into_iter().enumerate();
        let captures = given
            .map(|(n, capture)| capture.into_wire(&mut findings, &format!("captures[{n}]")))
            .collect();
        findings.verdict()?;
        Ok(v1::exchange_request::Request::SubmitBegun(v1::SubmitBegunRequest {
            gid,
            wait,
            wait_timeout_ms,
            captures,
        }))
    }
}

impl RollBack {
    pub(super) fn into_wire(self, gid: String) -> v1::exchange_request::Request {
        let Self { reason, wait: until, wait_timeout_ms, abort_if_unknown } = self;
        let wait = wait(until);
        v1::exchange_request::Request::RollBack(v1::RollBackRequest {
            gid,
            reason,
            wait,
            wait_timeout_ms: wait_timeout_ms.0,
            abort_if_unknown,
        })
    }
}

impl Finish {
    pub(super) fn into_wire(self, gid: String) -> v1::exchange_request::Request {
        let outcome = match self.outcome {
            None => v1::Outcome::Unspecified,
            Some(Decided::Committed) => v1::Outcome::Committed,
            Some(Decided::RolledBack) => v1::Outcome::RolledBack,
        };
        v1::exchange_request::Request::Finish(v1::FinishRequest {
            gid,
            branches: numbers(self.branches),
            outcome: outcome.into(),
        })
    }
}

impl Retry {
    pub(super) fn into_wire(self, gid: String) -> v1::exchange_request::Request {
        let Self { reason, wait: until, wait_timeout_ms } = self;
        let wait = wait(until);
        v1::exchange_request::Request::Retry(v1::RetryRequest {
            gid,
            reason,
            wait,
            wait_timeout_ms: wait_timeout_ms.0,
        })
    }
}

impl Options {
    fn into_wire(self) -> v1::Options {
        let order = match self.order {
            Some(Order::Sequential) => v1::Order::Sequential,
            Some(Order::Concurrent) => v1::Order::Concurrent,
            None => v1::Order::Unspecified,
        };
        let recovery = match self.recovery {
            Some(Recovery::Backward) => v1::Recovery::Backward,
            Some(Recovery::Forward) => v1::Recovery::Forward,
            None => v1::Recovery::Unspecified,
        };
        let tries = match self.tries {
            Some(Tries::Coordinator) => v1::CalledBy::Coordinator,
            Some(Tries::Caller) => v1::CalledBy::Caller,
            None => v1::CalledBy::Unspecified,
        };
        v1::Options {
            timeout_ms: self.timeout_ms.0,
            call_timeout_ms: self.call_timeout_ms.0,
            retry: self.retry.map(|policy| v1::RetryPolicy {
                first_ms: policy.first_ms.0,
                ceiling_ms: policy.ceiling_ms.0,
                attempts_max: policy.attempts_max.0,
            }),
            order: order.into(),
            recovery: recovery.into(),
            tries: tries.into(),
            headers: self.headers.iter().collect::<Pairs>().into(),
            tags: self.tags.iter().collect::<Pairs>().into(),
            second_phase_grace_ms: self.second_phase_grace_ms.0,
        }
    }
}

impl Branch {
    fn into_wire(self, findings: &mut Findings, field: &str) -> v1::BranchSpec {
        let Self { participant, payload, payload_base64, after, pivot } = self;
        let payload = written(payload, payload_base64, findings, field);
        v1::BranchSpec { participant, payload, after: numbers(after), pivot }
    }
}

fn numbers(given: Vec<Whole<u32>>) -> Vec<u32> {
    given.into_iter().map(|Whole(number)| number).collect()
}

/// The wait on the wire.
pub(super) fn wait(wait: Option<Wait>) -> i32 {
    match wait {
        None => v1::Wait::Unspecified,
        Some(Wait::None) => v1::Wait::None,
        Some(Wait::Decision) => v1::Wait::Decision,
        Some(Wait::End) => v1::Wait::End,
    }
    .into()
}

/// The gid of the body, or that of the `Idempotency-Key`, quoted or not; both may be there if they agree.
fn gid(body: Option<String>, headers: &HeaderMap) -> Result<String, Problem> {
    let refused = |detail| Problem::refused(StatusCode::BAD_REQUEST, "HF2307", detail);
    let Some(key) = headers.get("idempotency-key") else {
        return Ok(body.unwrap_or_default());
    };
    let text = key.to_str().unwrap_or_default().trim();
    let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    holdfast_txn::Gid::parse(bare).map_err(|error| {
        refused(format!(
            "nothing was done: the Idempotency-Key is to be the gid, and it is none: {error}"
        ))
    })?;
    match body {
        Some(gid) if !gid.is_empty() && gid != bare => {
            let shown: String = gid.chars().take(64).collect();
            Err(refused(format!(
                "nothing was done: the Idempotency-Key {bare:?} and the gid {shown:?} of the body differ. Send one of them, or the same twice"
            )))
        }
        _ => Ok(bare.to_owned()),
    }
}

/// The whole body, if it is no larger than allowed and arrives in time.
async fn collect(body: Body, bytes_max: usize, within: Duration) -> Result<Bytes, Problem> {
    let collected = tokio::time::timeout(within, Limited::new(body, bytes_max).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            "HF2304",
            format!(
                "nothing was done: the body has more than {bytes_max} bytes. Send less, or raise request_bytes_max"
            ),
        )),
        Ok(Err(error)) => Err(Problem::bad_json(format!(
            "nothing was done: the body did not arrive whole ({error})"
        ))),
        Err(_) => {
            let seconds = within.as_secs();
            Err(Problem::refused(
                StatusCode::REQUEST_TIMEOUT,
                "HF2308",
                format!("nothing was done: the body did not arrive within {seconds} s"),
            ))
        }
    }
}

/// Reads a body of at most `bytes_max` bytes as JSON. An empty one is all defaults where `may_be_empty`.
pub(super) async fn read<T: DeserializeOwned + Default>(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    may_be_empty: bool,
) -> Result<T, Problem> {
    let bytes = collect(body, bytes_max, READ_MAX).await?;
    if may_be_empty && bytes.is_empty() {
        return Ok(T::default());
    }
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let bare = media.and_then(|media| media.split(';').next()).unwrap_or_default().trim();
    if !bare.eq_ignore_ascii_case("application/json") {
        let shown: String = bare.chars().take(64).collect();
        return Err(Problem::refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "HF2303",
            format!(
                "nothing was done: the content type is {shown:?}, expected is application/json"
            ),
        ));
    }
    parse(&bytes)
}

pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let deep = depth(bytes);
    if deep > DEPTH_MAX {
        return Err(Problem::bad_json(format!(
            "nothing was done: objects and lists lie within each other more than {DEPTH_MAX} deep. Flatten the payload, or send it as payload_base64"
        )));
    }
    // A list of values in the order of the fields would be read as well; nobody means that.
    if bytes.trim_ascii_start().first().is_some_and(|byte| *byte == b'[') {
        return Err(Problem::bad_json(
            "nothing was done: the body is a list; expected is an object with named fields"
                .to_owned(),
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        let hint = suggestion(&text).map(|word| format!(". Did you mean `{word}`?"));
        let shown: String = text.chars().take(600).collect();
        Problem::bad_json(format!("nothing was done: {shown}{}", hint.unwrap_or_default()))
    })
}

/// How deep objects and lists lie within each other, up to one past the limit.
fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let (mut in_text, mut escaped) = (false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
                if deepest > DEPTH_MAX {
                    break;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Of the words that a parser expected, the one nearest to the word that it found, if it is near.
fn suggestion(text: &str) -> Option<&str> {
    let mut words = text.split('`').skip(1).step_by(2);
    let found = words.next()?;
    if !text.starts_with("unknown ") || found.len() > 64 {
        return None;
    }
    let near = words.map(|word| (strsim::damerau_levenshtein(found, word), word)).min()?;
    (near.0 <= 3 && near.0 < found.len()).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_does_not_end_is_turned_away_in_time() {
        let second = Duration::from_secs(1);
        let whole = collect(Body::from("{}"), 2, 60 * second).await;
        assert_eq!(whole.ok().as_deref(), Some(&b"{}"[..]));
        let endless =
            Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let problem = collect(endless, 2, second).await.expect_err("it never ends");
        assert_eq!((problem.status.as_u16(), problem.fault.code.as_str()), (408, "HF2308"));
        assert!(problem.fault.message.contains("within 1 s"), "{}", problem.fault.message);
    }

    fn fails(json: &str) -> String {
        parse::<Submit>(json.as_bytes()).expect_err(json).fault.message
    }

    #[test]
    fn a_field_that_is_not_known_is_refused_with_the_one_that_was_meant() {
        assert!(fails(r#"{"brnaches":[]}"#).contains("Did you mean `branches`?"));
        assert!(fails(r#"{"mode":"tc"}"#).contains("Did you mean `tcc`?"));
        assert!(fails(r#"{"options":{"timeout":5}}"#).contains("unknown field `timeout`"));
        assert!(!fails(r#"{"entirely_different":1}"#).contains("Did you mean"));
        assert!(fails(r#"{"gid":"a","gid":"b"}"#).contains("duplicate field"));
        assert!(fails("{").contains("EOF"));
        assert!(fails(r#" ["g-1", "tcc"]"#).contains("the body is a list"));
        assert!(fails(r#"{"gid":7}"#).contains("invalid type"));
        assert!(fails(r#"{"options":{"timeout_ms":-1}}"#).contains("whole number"));
    }

    #[test]
    fn depth_is_bounded_at_the_limit_and_brackets_in_texts_do_not_count() {
        let nested = |levels: usize| {
            let payload = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
            format!(r#"{{"branches":[{{"participant":"a","payload":{payload}}}]}}"#)
        };
        assert!(parse::<Submit>(nested(DEPTH_MAX - 3).as_bytes()).is_ok());
        assert!(fails(&nested(DEPTH_MAX - 2)).contains("deep"));
        assert!(fails(&nested(100_000)).contains("deep"));
        let text = format!(r#"{{"gid":"{}\"{}"}}"#, "[".repeat(100), "{".repeat(100));
        assert_eq!(depth(text.as_bytes()), 1);
    }

    #[test]
    fn a_payload_arrives_as_it_was_written() {
        let json = r#"{"mode":"tcc","branches":[{"participant":"a","payload":{"b": 12345678901234567890123, "a":1.10}}]}"#;
        let submit: Submit = parse(json.as_bytes()).expect("it is valid");
        let wire = submit.into_wire(&HeaderMap::new()).expect("it fits");
        let v1::exchange_request::Request::Submit(wire) = wire else { panic!("it is declared") };
        assert_eq!(wire.branches[0].payload, &br#"{"b": 12345678901234567890123, "a":1.10}"#[..]);
    }

    #[test]
    fn the_idempotency_key_is_the_gid_and_must_agree_with_the_body() {
        let with = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("idempotency-key", key.parse().expect("a header value"));
            headers
        };
        assert_eq!(gid(None, &with("pay-1")).unwrap(), "pay-1");
        assert_eq!(gid(None, &with("\"pay-1\"")).unwrap(), "pay-1");
        assert_eq!(gid(Some("pay-1".into()), &with("pay-1")).unwrap(), "pay-1");
        assert_eq!(gid(Some("pay-2".into()), &with("pay-1")).unwrap_err().fault.code, "HF2307");
        assert_eq!(gid(None, &with("pay 1")).unwrap_err().fault.code, "HF2307");
        assert_eq!(gid(Some("pay-2".into()), &HeaderMap::new()).unwrap(), "pay-2");
        assert_eq!(gid(None, &HeaderMap::new()).unwrap(), "");
    }
}
