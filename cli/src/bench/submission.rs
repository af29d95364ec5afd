//! The one transaction that is submitted again and again: two branches with a small payload, by every way in.

use holdfast_client::{Submission, Terms, wire};

/// The services that the idle participant announces, one a branch.
pub(crate) const SERVICES: [&str; 2] = ["idle@1", "idle@2"];
/// As large as an instruction of the deposit module.
const PAYLOAD: &str = r#"{"account":"00000042","debit_minor":"500"}"#;

/// A declared transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Try both, then confirm both.
    Tcc,
    /// One action after the other.
    Saga,
}

impl Mode {
    /// For tables and JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Tcc => "tcc",
            Self::Saga => "saga",
        }
    }
}

/// For the client library.
pub(crate) fn of(mode: Mode) -> Submission {
    traced(mode, None)
}

/// The same, as part of a caller's trace.
pub(crate) fn traced(mode: Mode, traceparent: Option<String>) -> Submission {
    let mut terms = match mode {
        Mode::Tcc => Terms::tcc(),
        Mode::Saga => Terms::saga(),
    };
    if let Some(context) = traceparent {
        terms = terms.header(holdfast_trace::HEADER, context);
    }
    let empty = Submission::new(terms);
    SERVICES.iter().fold(empty, |all, service| all.branch(*service, PAYLOAD))
}

/// Of tagged ones, so many have the same run.
pub(crate) const A_RUN: u64 = 2_000;

/// The `number`-th TCC with the tags that a bank's would have: a run, an order and an amount.
pub(crate) fn tagged(number: u64) -> Submission {
    let terms = Terms::tcc()
        .tag("run", format!("payroll-{}", number / A_RUN))
        .tag("order", format!("o-{number}"))
        .tag("amount", format!("{}.{:02} EUR", number % 10_000, number % 100));
    let empty = Submission::new(terms);
    SERVICES.iter().fold(empty, |all, service| all.branch(*service, PAYLOAD))
}

/// A TCC for a unary call.
pub(crate) fn to_wire() -> wire::SubmitRequest {
    let branch = |service: &str| wire::BranchSpec {
        participant: service.to_owned(),
        payload: PAYLOAD.into(),
        ..Default::default()
    };
    wire::SubmitRequest {
        mode: wire::Mode::Tcc.into(),
        branches: SERVICES.iter().copied().map(branch).collect(),
        wait: wire::Wait::Decision.into(),
        ..Default::default()
    }
}

/// A TCC for `POST /v1/transactions`.
pub(crate) fn to_json() -> String {
    let branches: Vec<String> = SERVICES
        .iter()
        .map(|service| format!(r#"{{"participant":"{service}","payload":{PAYLOAD}}}"#))
        .collect();
    format!(r#"{{"mode":"tcc","branches":[{}],"wait":"decision"}}"#, branches.join(","))
}
