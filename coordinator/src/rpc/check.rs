//! What a request must be like before it becomes a command: every field's size, range and fit, told all at once.

use std::{collections::BTreeMap, fmt::Display, time::Duration};

use bytes::Bytes;
use holdfast_proto::{
    Pairs,
    v1::{
        self, AddBranchRequest, BeginRequest, FinishRequest, RetryRequest, RollBackRequest,
        SubmitRequest, exchange_request::Request,
    },
};
use holdfast_txn::{
    Act as OperatorAct, BranchId, BranchSpec, Captures, Command, Decision, Gid, Mode, Options,
    Order, Participant, Recovery, Remedy, RetryPolicy, TriedBy, limit,
};

use super::fault::{Fault, Findings};
use crate::{Freshness, WaitUntil, config};

/// The wait of a caller who does not say, ms.
const WAIT_MS_DEFAULT: u64 = 30_000;
/// The longest wait of one request, ms.
pub(crate) const WAIT_MS_MAX: u64 = 60_000;

/// A request that is well formed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checked {
    pub(crate) gid: Gid,
    pub(crate) act: Act,
}

/// What a request comes to.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are commands, and each is moved twice")]
pub(crate) enum Act {
    /// A command, and how long to wait for what it leads to.
    Propose(Command, Option<Patience>),
    /// A read.
    Get(Freshness),
    /// A wait.
    Wait(Patience),
}

/// What to wait for, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    pub(crate) until: WaitUntil,
    pub(crate) at_most: Duration,
}

/// Checks `request` and fills in what it leaves open. A gid that is made here is written into it, so that a repeat
/// by way of another node is the same transaction.
pub(crate) fn check(request: &mut Request, timeouts: &config::Timeouts) -> Result<Checked, Fault> {
    match request {
        Request::Submit(request) => {
            fill_gid(&mut request.gid);
            submit(request, timeouts)
        }
        Request::Begin(request) => {
            fill_gid(&mut request.gid);
            begin(request, timeouts)
        }
        Request::AddBranch(request) => add_branch(request),
        Request::SubmitBegun(request) => {
            let mut findings = Findings::default();
            let gid = gid(&mut findings, &request.gid);
            let patience = patience(&mut findings, request.wait, request.wait_timeout_ms);
            let captures = captures(&mut findings, &request.captures);
            let command = gid.map(|gid| Command::Submit { gid, captures });
            propose(findings, command, Some(patience))
        }
        Request::RollBack(request) => roll_back(request),
        Request::Retry(request) => retry(request),
        Request::Operate(request) => operate(request),
        Request::Finish(request) => finished(request),
        Request::Get(request) => {
            let mut findings = Findings::default();
            let gid = gid(&mut findings, &request.gid);
            let freshness = if request.stale { Freshness::Stale } else { Freshness::Linearizable };
            finish(findings, gid.map(|gid| Checked { gid, act: Act::Get(freshness) }))
        }
        Request::Wait(request) => {
            let mut findings = Findings::default();
            let gid = gid(&mut findings, &request.gid);
            let patience = patience(&mut findings, request.wait, request.wait_timeout_ms);
            let patience =
                patience.unwrap_or(Patience { until: WaitUntil::Applied, at_most: Duration::ZERO });
            finish(findings, gid.map(|gid| Checked { gid, act: Act::Wait(patience) }))
        }
    }
}

fn fill_gid(gid: &mut String) {
    if gid.is_empty() {
        *gid = crate::clock::new_gid().to_string();
    }
}

fn submit(request: &SubmitRequest, timeouts: &config::Timeouts) -> Result<Checked, Fault> {
    let mut findings = Findings::default();
    let gid = gid(&mut findings, &request.gid);
    let mode = mode(&mut findings, request.mode);
    let options = options(&mut findings, mode, request.options.as_ref(), timeouts);
    if options.tried_by == TriedBy::Caller && mode != Some(Mode::Xa) {
        findings.add("options.tries", "a caller can make the tries only of branches that it adds one by one; begin the transaction instead");
    }
    let count = request.branches.len();
    if count == 0 || count > limit::BRANCHES_MAX {
        let most = limit::BRANCHES_MAX;
        findings.add("branches", format_args!("{count} of them, allowed is 1 to {most}"));
    }
    let bytes: usize = request.branches.iter().map(|branch| branch.payload.len()).sum();
    if bytes > limit::PAYLOADS_BYTES_MAX {
        let most = limit::PAYLOADS_BYTES_MAX;
        findings.add(
            "branches",
            format_args!("{bytes} bytes of payloads together, allowed are {most}"),
        );
    }
    let specs = request.branches.iter().take(limit::BRANCHES_MAX).enumerate();
    let branches: Vec<BranchSpec> = specs
        .filter_map(|(n, spec)| {
            let number = n as u32 + 1;
            branch(&mut findings, &format_args!("branches[{n}]"), spec, mode, number, count as u32)
        })
        .collect();
    let patience = patience(&mut findings, request.wait, request.wait_timeout_ms);
    let command = gid.zip(mode).map(|(gid, mode)| Command::Begin {
        gid,
        mode,
        options,
        branches,
        enlisted: false,
        content: None,
    });
    propose(findings, command, Some(patience))
}

fn begin(request: &BeginRequest, timeouts: &config::Timeouts) -> Result<Checked, Fault> {
    let mut findings = Findings::default();
    let gid = gid(&mut findings, &request.gid);
    let mode = mode(&mut findings, request.mode);
    let options = options(&mut findings, mode, request.options.as_ref(), timeouts);
    let command = gid.zip(mode).map(|(gid, mode)| Command::Begin {
        gid,
        mode,
        options,
        branches: Vec::new(),
        enlisted: true,
        content: None,
    });
    propose(findings, command, None)
}

fn add_branch(request: &AddBranchRequest) -> Result<Checked, Fault> {
    let mut findings = Findings::default();
    let gid = gid(&mut findings, &request.gid);
    let number = request.branch;
    if number == 0 || number as usize > limit::BRANCHES_MAX {
        let most = limit::BRANCHES_MAX;
        findings.add("branch", format_args!("{number}, allowed is 1 to {most}"));
    }
    let spec = match &request.spec {
        // The mode is the machine's to compare: it knows the transaction.
        Some(spec) => branch(&mut findings, &"spec", spec, None, number, number.saturating_sub(1)),
        None => {
            findings.add("spec", "missing");
            None
        }
    };
    let parent = request.parent;
    if parent > 0 && parent >= number {
        findings
            .add("parent", format_args!("{parent}; a branch is nested in one with a lower number"));
    }
    let command = gid.zip(spec).map(|(gid, spec)| match parent {
        0 => Command::AddBranch { gid, branch: BranchId(number), spec },
        _ => Command::Nest { gid, parent: BranchId(parent), branch: BranchId(number), spec },
    });
    propose(findings, command, None)
}

fn roll_back(request: &RollBackRequest) -> Result<Checked, Fault> {
    let mut findings = Findings::default();
    let gid = gid(&mut findings, &request.gid);
    let patience = patience(&mut findings, request.wait, request.wait_timeout_ms);
    let reason = &request.reason;
    let reason = reason[..reason.floor_char_boundary(limit::REASON_BYTES_MAX)].to_owned();
    let fence = request.abort_if_unknown;
    let command = gid.map(|gid| {
        if fence { Command::Fence { gid, reason } } else { Command::RollBack { gid, reason } }
    });
    propose(findings, command, Some(patience))
}

/// An operator's retry. Its reason is evidence for an audit, so it is checked and never cut.
fn retry(request: &RetryRequest) -> Result<Checked, Fault> {
    let mut findings = Findings::default();
    let gid = gid(&mut findings, &request.gid);
    // The decision is there already as a rule; an operator wants to hear whether the end is reached.
    let wait = match v1::Wait::try_from(request.wait) {
        Ok(v1::Wait::Unspecified) => v1::Wait::End.into(),
        Ok(v1::Wait::None | v1::Wait::Decision | v1::Wait::End) | Err(_) => request.wait,
    };
    let patience = patience(&mut findings, wait, request.wait_timeout_ms);
    reason(&mut findings, &request.reason);
    let command = gid.map(|gid| Command::Retry { gid, reason: request.reason.clone() });
    propose(findings, command, Some(patience))
}

/// An operator's act. Who acts, the desk fills in.
fn operate(request: &v1::OperateRequest) -> Result<Checked, Fault> {
    let mut findings = Findings::default();
    let gid = gid(&mut findings, &request.gid);
    let branch = BranchId(request.branch);
    let (act, names_branch) = match request.act() {
        v1::OperatorAct::Retry => (OperatorAct::Retry, false),
        v1::OperatorAct::RollBack => (OperatorAct::RollBack, false),
        v1::OperatorAct::MarkDone => (OperatorAct::Propose(Remedy::MarkDone(branch)), true),
        v1::OperatorAct::MarkRefused => (OperatorAct::Propose(Remedy::MarkRefused(branch)), true),
        v1::OperatorAct::Abandon => (OperatorAct::Propose(Remedy::Abandon), false),
        v1::OperatorAct::Approve => (OperatorAct::Approve, false),
        v1::OperatorAct::Unspecified => {
            findings.add(
                "act",
                "missing; say retry, roll_back, mark_done, mark_refused, abandon or approve",
            );
            (OperatorAct::Approve, request.branch > 0)
        }
    };
    if names_branch != (request.branch > 0) {
        findings.add("branch", "name one for mark_done and mark_refused, and none otherwise");
    }
    let wait = match (v1::Wait::try_from(request.wait), act) {
        (Ok(v1::Wait::Unspecified), OperatorAct::Propose(_)) => v1::Wait::None.into(),
        (Ok(v1::Wait::Unspecified), _) => v1::Wait::End.into(),
        _ => request.wait,
    };
    let patience = patience(&mut findings, wait, request.wait_timeout_ms);
    reason(&mut findings, &request.reason);
    let command = gid.map(|gid| Command::Operate {
        gid,
        act,
        by: String::new(),
        reason: request.reason.clone(),
    });
    propose(findings, command, Some(patience))
}

/// Why somebody acts: evidence for an audit, so it is checked and never cut.
pub(super) fn reason(findings: &mut Findings, reason: &str) {
    let most = limit::REASON_BYTES_MAX;
    if reason.trim().is_empty() {
        findings.add("reason", "missing; say why, for the people who read it later");
    } else if reason.len() > most {
        let bytes = reason.len();
        findings.add("reason", format_args!("{bytes} bytes, allowed is 1 to {most}"));
    }
    if reason.chars().any(char::is_control) {
        findings.add("reason", "holds control characters; write it in one line of plain text");
    }
}

/// A caller's word that it has carried out the second phase.
fn finished(request: &FinishRequest) -> Result<Checked, Fault> {
    let mut findings = Findings::default();
    let gid = gid(&mut findings, &request.gid);
    let (count, most) = (request.branches.len(), limit::BRANCHES_MAX);
    if count > most {
        findings.add("branches", format_args!("{count} of them, allowed are {most}"));
    }
    let decision = match v1::Outcome::try_from(request.outcome) {
        Ok(v1::Outcome::Committed) => Some(Decision::Commit),
        Ok(v1::Outcome::RolledBack) => Some(Decision::RollBack),
        Ok(v1::Outcome::Unspecified | v1::Outcome::Unknown) | Err(_) => {
            findings.add("outcome", "say committed (1) or rolled_back (2), as it was decided");
            None
        }
    };
    let branches = request.branches.iter().take(most).copied().map(BranchId).collect();
    let command =
        gid.zip(decision).map(|(gid, decision)| Command::Finish { gid, branches, decision });
    propose(findings, command, None)
}

/// The command with its wait, if nothing was found.
fn propose(
    findings: Findings,
    command: Option<Command>,
    patience: Option<Option<Patience>>,
) -> Result<Checked, Fault> {
    let checked = command.map(|command| {
        let gid = command.gid().expect("it is about a transaction").clone();
        Checked { gid, act: Act::Propose(command, patience.flatten()) }
    });
    finish(findings, checked)
}

fn finish(findings: Findings, checked: Option<Checked>) -> Result<Checked, Fault> {
    findings.verdict()?;
    Ok(checked.expect("what is missing was found"))
}

fn gid(findings: &mut Findings, text: &str) -> Option<Gid> {
    findings.take("gid", Gid::parse(text))
}

fn mode(findings: &mut Findings, number: i32) -> Option<Mode> {
    match v1::Mode::try_from(number) {
        Ok(v1::Mode::Tcc) => Some(Mode::Tcc),
        Ok(v1::Mode::Saga) => Some(Mode::Saga),
        Ok(v1::Mode::Xa) => Some(Mode::Xa),
        Ok(v1::Mode::Unspecified) => {
            findings.add("mode", "missing; say tcc, saga or xa");
            None
        }
        Err(_) => {
            findings
                .add("mode", format_args!("{number} is no mode; say tcc (1), saga (2) or xa (3)"));
            None
        }
    }
}

/// What to wait for; `None` for nothing.
fn patience(findings: &mut Findings, wait: i32, timeout_ms: u64) -> Option<Patience> {
    if timeout_ms > WAIT_MS_MAX {
        findings.add(
            "wait_timeout_ms",
            format_args!("{timeout_ms}, allowed is 0 to {WAIT_MS_MAX}; for longer, ask again"),
        );
    }
    let ms = if timeout_ms == 0 { WAIT_MS_DEFAULT } else { timeout_ms };
    let until = match v1::Wait::try_from(wait) {
        Ok(v1::Wait::Unspecified | v1::Wait::Decision) => WaitUntil::Decision,
        Ok(v1::Wait::End) => WaitUntil::End,
        Ok(v1::Wait::None) => return None,
        Err(_) => {
            findings.add("wait", format_args!("{wait} is none of none (1), decision (2), end (3)"));
            return None;
        }
    };
    Some(Patience { until, at_most: Duration::from_millis(ms) })
}

fn options(
    findings: &mut Findings,
    mode: Option<Mode>,
    given: Option<&v1::Options>,
    timeouts: &config::Timeouts,
) -> Options {
    let mode = mode.unwrap_or(Mode::Tcc);
    let mut options = Options::of(mode);
    let default = v1::Options::default();
    let given = given.unwrap_or(&default);
    options.timeout_ms =
        if given.timeout_ms == 0 { timeouts.global_timeout_ms } else { given.timeout_ms };
    if options.timeout_ms > limit::TIMEOUT_MS_MAX {
        let (ms, most) = (options.timeout_ms, limit::TIMEOUT_MS_MAX);
        findings.add("options.timeout_ms", format_args!("{ms}, allowed is 1 to {most}"));
    }
    options.call_timeout_ms = if given.call_timeout_ms == 0 {
        timeouts.call_timeout_ms.min(options.timeout_ms)
    } else {
        given.call_timeout_ms
    };
    if options.call_timeout_ms > options.timeout_ms {
        let (call, all) = (options.call_timeout_ms, options.timeout_ms);
        findings.add(
            "options.call_timeout_ms",
            format_args!(
                "{call}, which is above timeout_ms = {all}; lower the first or raise the second"
            ),
        );
    }
    retry_policy(findings, &mut options.retry, given.retry.as_ref());
    match v1::Order::try_from(given.order) {
        Ok(v1::Order::Unspecified) => {}
        Ok(v1::Order::Sequential) => options.order = Order::Sequential,
        Ok(v1::Order::Concurrent) => options.order = Order::Concurrent,
        Err(_) => findings.add("options.order", format_args!("{} is no order", given.order)),
    }
    match v1::Recovery::try_from(given.recovery) {
        Ok(v1::Recovery::Unspecified | v1::Recovery::Backward) => {}
        Ok(v1::Recovery::Forward) if mode == Mode::Saga => options.recovery = Recovery::Forward,
        Ok(v1::Recovery::Forward) => findings.add("options.recovery", "only a saga can go forward"),
        Err(_) => {
            findings.add("options.recovery", format_args!("{} is no recovery", given.recovery))
        }
    }
    match v1::CalledBy::try_from(given.tries) {
        Ok(v1::CalledBy::Unspecified) => {}
        Ok(v1::CalledBy::Coordinator) => options.tried_by = TriedBy::Coordinator,
        Ok(v1::CalledBy::Caller) if mode == Mode::Saga => {
            findings.add("options.tries", "only tcc and xa have tries that a caller can make")
        }
        Ok(v1::CalledBy::Caller) => options.tried_by = TriedBy::Caller,
        Err(_) => findings.add("options.tries", format_args!("{} is nobody", given.tries)),
    }
    grace(findings, mode, given.second_phase_grace_ms, &mut options);
    let headers = labels(findings, "options.headers", &given.headers);
    for &(name, value) in &headers {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_!#$%&'*+.^`|~".contains(&byte);
        if !name.bytes().all(token) {
            findings.add("options.headers", format_args!("{name:?} is no header name"));
        }
        if value.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
            findings.add(
                "options.headers",
                format_args!("the value of {name:?} holds more than printable ASCII"),
            );
        }
    }
    options.headers = headers.into_iter().collect();
    options.tags = labels(findings, "options.tags", &given.tags).into_iter().collect();
    options
}

fn grace(findings: &mut Findings, mode: Mode, ms: u64, options: &mut Options) {
    let most = limit::SECOND_PHASE_GRACE_MS_MAX;
    if ms > most {
        findings.add("options.second_phase_grace_ms", format_args!("{ms}, allowed is 0 to {most}"));
    } else if ms > 0 && mode != Mode::Xa {
        findings
            .add("options.second_phase_grace_ms", "only xa leaves the second phase to its caller");
    }
    options.second_phase_grace_ms = ms;
}

fn retry_policy(
    findings: &mut Findings,
    policy: &mut RetryPolicy,
    given: Option<&v1::RetryPolicy>,
) {
    let Some(given) = given else { return };
    if given.ceiling_ms > 0 {
        policy.ceiling_ms = given.ceiling_ms;
    }
    if given.first_ms > 0 {
        policy.first_ms = given.first_ms;
    } else {
        policy.first_ms = policy.first_ms.min(policy.ceiling_ms);
    }
    policy.attempts_max = given.attempts_max;
    let (first, ceiling, most) = (policy.first_ms, policy.ceiling_ms, limit::TIMEOUT_MS_MAX);
    if ceiling > most {
        findings.add("options.retry.ceiling_ms", format_args!("{ceiling}, allowed is 1 to {most}"));
    }
    if first > ceiling {
        findings.add(
            "options.retry.first_ms",
            format_args!("{first}, which is above ceiling_ms = {ceiling}; lower the first or raise the second"),
        );
    }
}

/// Those of a map whose number and sizes are allowed; none of them otherwise.
fn labels<'a>(findings: &mut Findings, field: &str, given: &'a [Bytes]) -> Vec<(&'a str, &'a str)> {
    if given.len() > limit::LABELS_MAX {
        let (count, most) = (given.len(), limit::LABELS_MAX);
        findings.add(field, format_args!("{count} of them, allowed are {most}"));
        return Vec::new();
    }
    let mut kept = Vec::with_capacity(given.len());
    for entry in given {
        let Some((name, value)) = Pairs::read(entry) else {
            findings.add(field, "one is no name and value");
            continue;
        };
        let bytes = name.len() + value.len();
        if name.is_empty() {
            findings.add(field, "a name is empty");
        } else if bytes > limit::LABEL_BYTES_MAX {
            let most = limit::LABEL_BYTES_MAX;
            let shown = &name[..name.floor_char_boundary(64)];
            findings.add(
                field,
                format_args!("{shown:?} has {bytes} bytes with its value, allowed are {most}"),
            );
        } else {
            kept.push((name, value));
        }
    }
    kept
}

/// What the confirms of some branches carry.
fn captures(findings: &mut Findings, given: &[v1::Capture]) -> Captures {
    let mut captures = BTreeMap::new();
    if given.len() > limit::BRANCHES_MAX {
        let (count, most) = (given.len(), limit::BRANCHES_MAX);
        findings.add("captures", format_args!("{count} of them, allowed are {most}"));
        return Captures::default();
    }
    for (n, capture) in given.iter().enumerate() {
        let (branch, bytes) = (capture.branch, capture.payload.len());
        if bytes > limit::PAYLOAD_BYTES_MAX {
            let most = limit::PAYLOAD_BYTES_MAX;
            findings.add(
                format_args!("captures[{n}].payload"),
                format_args!("{bytes} bytes, allowed are {most}"),
            );
        }
        if captures.insert(BranchId(branch), capture.payload.clone()).is_some() {
            findings.add(
                format_args!("captures[{n}].branch"),
                format_args!("branch {branch} is captured twice; name it once"),
            );
        }
    }
    captures.into()
}

/// The branch with this number; `known` is the highest number that it may wait for.
fn branch(
    findings: &mut Findings,
    field: &dyn Display,
    given: &v1::BranchSpec,
    mode: Option<Mode>,
    number: u32,
    known: u32,
) -> Option<BranchSpec> {
    let bytes = given.payload.len();
    if bytes > limit::PAYLOAD_BYTES_MAX {
        let most = limit::PAYLOAD_BYTES_MAX;
        findings.add(
            format_args!("{field}.payload"),
            format_args!("{bytes} bytes, allowed are {most}"),
        );
    }
    if given.pivot && mode.is_some_and(|mode| mode != Mode::Saga) {
        findings.add(format_args!("{field}.pivot"), "only a saga has a pivot");
    }
    if given.after.len() > limit::BRANCHES_MAX {
        let (count, most) = (given.after.len(), limit::BRANCHES_MAX);
        findings.add(
            format_args!("{field}.after"),
            format_args!("{count} of them, allowed are {most}"),
        );
        return None;
    }
    let mut after: Vec<BranchId> = given.after.iter().copied().map(BranchId).collect();
    after.sort_unstable();
    after.dedup();
    for other in &after {
        if other.0 == number {
            findings.add(format_args!("{field}.after"), "a branch cannot wait for itself");
        } else if other.0 == 0 || other.0 > known {
            let other = other.0;
            findings.add(
                format_args!("{field}.after"),
                format_args!(
                    "there is no branch {other} to wait for; they are numbered from 1 to {known}"
                ),
            );
        }
    }
    let participant = findings
        .take(format_args!("{field}.participant"), Participant::parse(&given.participant))?;
    let after = Some(after).filter(|after| !after.is_empty());
    Some(BranchSpec { participant, payload: given.payload.clone(), after, pivot: given.pivot })
}
