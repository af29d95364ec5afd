//! Errors as RFC 9457 problems.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::rpc::fault::{Class, Fault};

/// Seconds after which a request of kind *retry* is worth another attempt: an election takes less.
const RETRY_AFTER_S: u64 = 1;

/// A request without an answer, as HTTP says it.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(super) status: StatusCode,
    pub(super) fault: Fault,
}

#[derive(Serialize, JsonSchema)]
/// An error as RFC 9457 has it.
#[schemars(rename = "Problem")]
pub(super) struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    kind: &'static str,
    instance: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl Problem {
    /// The door's own refusals, before the desk sees anything.
    pub(super) fn refused(status: StatusCode, code: &str, detail: String) -> Self {
        Self { status, fault: Fault::new(Class::BadInput, code, detail) }
    }

    /// HF2302.
    pub(super) fn bad_json(detail: String) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, "HF2302", detail)
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        let status = StatusCode::from_u16(fault.class.http()).expect("the table holds valid ones");
        Self { status, fault }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, fault } = self;
        let retry = matches!(fault.class, Class::Unavailable | Class::Full | Class::Throttled);
        let retry_after_ms =
            fault.retry_after_ms.map_or(RETRY_AFTER_S * 1_000, |ms| ms.get().into());
        let instance = crate::clock::new_gid();
        tracing::debug!(code = %fault.code, %instance, status = status.as_u16(), "a request was answered with a problem");
        let body = Body {
            r#type: format!("urn:holdfast:error:{}", fault.code),
            title: title(&fault.code),
            status: status.as_u16(),
            detail: &fault.message,
            code: &fault.code,
            kind: fault.class.kind_str(),
            instance: format!("urn:ulid:{instance}"),
            gid: fault.gid.as_deref(),
            leader: fault.leader.as_deref(),
            retry_after_ms: retry.then_some(retry_after_ms),
        };
        let json = serde_json::to_vec(&body).expect("texts and numbers are always JSON");
        let mut response = (status, json).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let problem = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, problem);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if retry {
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(retry_after_ms.div_ceil(1_000).max(1)),
            );
        }
        response
    }
}

/// What all errors of a code have in common.
fn title(code: &str) -> &'static str {
    match code {
        "HF2001" => "No such global transaction",
        "HF2002" => "The gid has other content",
        "HF2003" => "The branch has other content",
        "HF2004" => "Not possible in this status",
        "HF2005" => "Out of range",
        "HF2006" => "The parts do not fit together",
        "HF2007" => "Too many open transactions",
        "HF2101" => "No leader here",
        "HF2102" => "The outcome is unknown",
        "HF2103" => "The queue is full",
        "HF2104" => "The node is stopping",
        "HF2301" => "Fields are missing or wrong",
        "HF2302" => "Not the JSON that is expected",
        "HF2303" => "Not a media type that is understood",
        "HF2304" => "The request is too large",
        "HF2305" => "No such resource",
        "HF2306" => "No such method here",
        "HF2307" => "The idempotency key does not fit",
        "HF2308" => "The request came too slowly",
        "HF2309" => "The leader is out of reach",
        "HF2310" => "The answer was lost on the way",
        "HF2009" => "The shard rules were changed meanwhile",
        "HF2010" => "Another person must approve",
        "HF2011" => "The proposal does not stand",
        "HF2105" => "Not every member reads this yet",
        "HF2402" => "The history failed",
        "HF2404" => "The policy was changed meanwhile",
        "HF2405" => "The policy could not be written",
        "HF2406" => "Too many searches at once",
        "HF2407" => "Too many watch",
        "HF2408" => "The shard rules have mistakes",
        "HF2409" => "There are no such shard rules",
        "HF2412" => "This node keeps no history",
        "HF2413" => "The rules would look for rows where they are not",
        "HF2415" => "The rules do not follow those in force",
        "HF2414" => "As many routers attend as there is place for",
        "HF2411" => "The configuration cannot be taken over",
        "HF2601" => "Nobody known",
        "HF2602" => "The role does not give the right",
        "HF2603" => "Not a participant for this caller",
        "HF2604" => "Somebody else's transaction",
        "HF2607" => "The caller asks more than it may",
        _ => "The request was not answered",
    }
}
