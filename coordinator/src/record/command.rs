//! Commands read from records.

use bytes::Bytes;
use holdfast_proto::v1::{recorded_command::Command as Kind, recorded_report::Answer as Said};
use holdfast_proto::{Pairs, v1};
use holdfast_txn::{
    Act, Answer, BranchId, BranchSpec, Captures, Command, Decision, Headers, Labels, Mode, Op,
    Options, Order, Recovery, Refusal, Report, RetryPolicy, Traceparent, TriedBy,
};

use super::{
    HASHED_BEGINS, RecordError, books, closed_sets::Numbered, gid, participant, snapshot::digest,
};

/// The oldest format that can say `command`.
pub(super) fn format_of(command: &Command) -> u32 {
    match command {
        Command::Begin { content: Some(_), .. } => HASHED_BEGINS,
        Command::Begin { mode, options, .. } => {
            let is_old = match mode {
                Mode::Tcc | Mode::Saga => options.second_phase_grace_ms == 0,
                Mode::Xa => false,
            };
            if is_old { 1 } else { 2 }
        }
        Command::AddBranch { .. }
        | Command::RollBack { .. }
        | Command::Expire { .. }
        | Command::Retry { .. } => 1,
        Command::Submit { captures, .. } => {
            if captures.is_empty() {
                1
            } else {
                4
            }
        }
        // A report of an XA transaction names verbs of format 2, but follows a begin of that format.
        Command::Report { .. } => 1,
        Command::Fence { .. } | Command::Finish { .. } | Command::Nest { .. } => 2,
        Command::Operate { act: Act::Propose(remedy), .. } => books::format_of(*remedy),
        Command::Operate { .. } | Command::SetRules { .. } | Command::Note { .. } => 3,
    }
}

pub(super) fn of_record(record: v1::RecordedCommand) -> Result<Command, RecordError> {
    let kind = match record.command.ok_or(RecordError::Missing("command"))? {
        Kind::SetRules(rules) if record.gid.is_empty() => return Ok(books::rules_of_record(rules)),
        Kind::Note(deed) if record.gid.is_empty() => {
            return Ok(Command::Note { deed: books::deed_of_record(deed) });
        }
        kind => kind,
    };
    let gid = gid(&record.gid)?;
    Ok(match kind {
        Kind::SetRules(_) | Kind::Note(_) => return Err(RecordError::value("gid", gid)),
        Kind::Operate(act) => books::act_of_record(gid, act)?,
        Kind::Begin(begin) => Command::Begin {
            gid,
            mode: Mode::read(begin.mode)?,
            options: options_of_record(begin.options.ok_or(RecordError::Missing("options"))?)?,
            branches: begin.branches.into_iter().map(spec_of_record).collect::<Result<_, _>>()?,
            enlisted: begin.enlisted,
            content: match &*begin.content {
                [] => None,
                content => Some(digest("content", content)?),
            },
        },
        Kind::AddBranch(add) => Command::AddBranch {
            gid,
            branch: BranchId(add.branch),
            spec: spec_of_record(add.spec.ok_or(RecordError::Missing("spec"))?)?,
        },
        Kind::Nest(nest) => Command::Nest {
            gid,
            parent: BranchId(nest.parent),
            branch: BranchId(nest.branch),
            spec: spec_of_record(nest.spec.ok_or(RecordError::Missing("spec"))?)?,
        },
        Kind::Submit(submit) => {
            Command::Submit { gid, captures: captures_of_record(submit.captures)? }
        }
        Kind::RollBack(why) => Command::RollBack { gid, reason: why.reason },
        Kind::Report(heard) => Command::Report {
            gid,
            reports: heard.reports.into_iter().map(report_of_record).collect::<Result<_, _>>()?,
        },
        Kind::Expire(_) => Command::Expire { gid },
        Kind::Retry(why) => Command::Retry { gid, reason: why.reason },
        Kind::Fence(why) => Command::Fence { gid, reason: why.reason },
        Kind::Finish(finished) => Command::Finish {
            gid,
            branches: finished.branches.into_iter().map(BranchId).collect(),
            decision: Decision::read(finished.decision)?,
        },
    })
}

fn report_of_record(record: v1::RecordedReport) -> Result<Report, RecordError> {
    let answer = match record.answer.ok_or(RecordError::Missing("answer"))? {
        Said::Done(_) => Answer::Done,
        Said::Refused(refusal) => Answer::Refused(refusal_of_record(refusal)),
        Said::GivenUp(given_up) => {
            Answer::GivenUp { attempts: given_up.attempts, last: given_up.last }
        }
    };
    Ok(Report { branch: BranchId(record.branch), op: Op::read(record.op)?, answer })
}

pub(super) fn refusal_of_record(record: v1::RecordedRefusal) -> Refusal {
    Refusal { code: record.code, message: record.message }
}

pub(super) fn spec_of_record(record: v1::RecordedBranchSpec) -> Result<BranchSpec, RecordError> {
    Ok(BranchSpec {
        participant: participant(&record.participant)?,
        // A copy: a slice would keep the whole entry in memory for as long as the transaction is open.
        payload: Bytes::copy_from_slice(&record.payload),
        after: record.after.map(|after| after.branches.into_iter().map(BranchId).collect()),
        pivot: record.pivot,
    })
}

pub(super) fn captures_of_record(
    records: Vec<v1::RecordedCapture>,
) -> Result<Captures, RecordError> {
    let count = records.len();
    // Copies, as the payload of a branch is.
    let captures: std::collections::BTreeMap<_, _> = records
        .into_iter()
        .map(|one| (BranchId(one.branch), Bytes::copy_from_slice(&one.payload)))
        .collect();
    if captures.len() == count {
        Ok(captures.into())
    } else {
        Err(RecordError::value("captures", format!("{count} captures, some of the same branch")))
    }
}

pub(super) fn options_of_record(record: v1::RecordedOptions) -> Result<Options, RecordError> {
    let mut headers: Headers = of_pairs("headers", record.headers, Headers::len)?;
    if !record.traceparent.is_empty() {
        let context = Traceparent::of_bytes(&record.traceparent);
        let context = context.filter(|_| !headers.has(Traceparent::HEADER));
        let context = context.ok_or_else(|| {
            let words = format!("{} bytes, or one among the headers too", record.traceparent.len());
            RecordError::value("traceparent", words)
        })?;
        headers = Headers::new(headers.others().clone(), Some(context));
    }
    Ok(Options {
        timeout_ms: record.timeout_ms,
        call_timeout_ms: record.call_timeout_ms,
        retry: RetryPolicy {
            first_ms: record.retry_first_ms,
            ceiling_ms: record.retry_ceiling_ms,
            attempts_max: record.retry_attempts_max,
        },
        order: Order::read(record.order)?,
        recovery: Recovery::read(record.recovery)?,
        tried_by: TriedBy::read(record.tries)?,
        headers,
        tags: of_pairs("tags", record.tags, Labels::len)?,
        second_phase_grace_ms: record.second_phase_grace_ms,
    })
}

/// All of them together, each with a name of its own.
fn of_pairs<T>(
    field: &'static str,
    record: Vec<Bytes>,
    len: fn(&T) -> usize,
) -> Result<T, RecordError>
where
    T: for<'p> FromIterator<(&'p str, &'p str)>,
{
    let pairs = Pairs::from(record);
    let all: T = pairs.iter().collect();
    if len(&all) == pairs.len() {
        Ok(all)
    } else {
        let count = pairs.len();
        let words = format!("{count} labels, some with the same name or without a text");
        Err(RecordError::value(field, words))
    }
}
