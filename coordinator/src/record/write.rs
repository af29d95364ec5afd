//! Commands as records, and the parts that snapshots share with them, written straight into bytes from where they lie. A message in between
//! would be made of copies of all names and lists. Their bytes are the message's nevertheless (a property).

use holdfast_txn::{Answer, BranchSpec, Captures, Command, Options, Refusal, Report};
use prost::Message;

use super::{books, closed_sets::Numbered};
use crate::fields;

/// The fields of a [`holdfast_proto::v1::RecordedCommand`].
pub(super) fn command(command: &Command, to: &mut Vec<u8>) {
    if let Some(gid) = command.gid() {
        fields::text(1, gid.as_str(), to);
    }
    match command {
        Command::Begin { gid: _, mode, options: with, branches, enlisted, content } => {
            fields::message(2, to, |to| {
                fields::number(1, number(*mode), to);
                // Who reads the hash reads the trace's context in its bytes too: both came with the same format.
                let context = if content.is_some() { Context::Bytes } else { Context::Header };
                fields::message(2, to, |to| options(with, context, to));
                for branch in branches {
                    fields::message(3, to, |to| spec(branch, to));
                }
                fields::number(4, (*enlisted).into(), to);
                if let Some(content) = content {
                    fields::bytes(5, &content.0, to);
                }
            });
        }
        Command::AddBranch { gid: _, branch, spec: of } => fields::message(3, to, |to| {
            fields::number(1, branch.0.into(), to);
            fields::message(2, to, |to| spec(of, to));
        }),
        Command::Submit { gid: _, captures: all } => {
            fields::message(4, to, |to| captures(1, all, to));
        }
        Command::RollBack { gid: _, reason: why } => fields::message(5, to, |to| reason(why, to)),
        Command::Report { gid: _, reports } => fields::message(6, to, |to| {
            for one in reports {
                fields::message(1, to, |to| report(one, to));
            }
        }),
        Command::Expire { gid: _ } => fields::message(7, to, |_| {}),
        Command::Retry { gid: _, reason: why } => fields::message(8, to, |to| reason(why, to)),
        Command::Fence { gid: _, reason: why } => fields::message(9, to, |to| reason(why, to)),
        Command::Finish { gid: _, branches, decision } => fields::message(10, to, |to| {
            fields::numbers(1, branches.iter().map(|branch| branch.0), to);
            fields::number(2, number(*decision), to);
        }),
        Command::Nest { gid: _, parent, branch, spec: of } => fields::message(11, to, |to| {
            fields::number(1, parent.0.into(), to);
            fields::number(2, branch.0.into(), to);
            fields::message(3, to, |to| spec(of, to));
        }),
        // Of people and of the books, and seldom.
        Command::Operate { gid: _, act, by, reason } => {
            whole(12, &books::act_to_record(*act, by, reason), to);
        }
        Command::SetRules { text, expected, by, reason } => fields::message(13, to, |to| {
            fields::text(1, text, to);
            fields::number(2, *expected, to);
            fields::text(3, by, to);
            fields::text(4, reason, to);
        }),
        Command::Note { deed } => whole(14, &books::deed_to_record(deed), to),
    }
}

/// Bytes of the payloads and labels of a begin, which make one command much longer than another. Memory that grows while it is written is
/// copied each time.
pub(super) fn varying(command: &Command) -> usize {
    let Command::Begin { options, branches, .. } = command else { return 0 };
    let payloads = branches.iter().map(|branch| branch.payload.len());
    payloads.sum::<usize>() + options.headers.bytes() + options.tags.bytes()
}

fn whole(field: u32, message: &impl Message, to: &mut Vec<u8>) {
    fields::message(field, to, |to| message.encode(to).expect("a list of bytes grows"));
}

fn reason(reason: &str, to: &mut Vec<u8>) {
    fields::text(1, reason, to);
}

fn report(report: &Report, to: &mut Vec<u8>) {
    let Report { branch, op, answer } = report;
    fields::number(1, branch.0.into(), to);
    fields::number(2, number(*op), to);
    match answer {
        Answer::Done => fields::message(3, to, |_| {}),
        Answer::Refused(why) => fields::message(4, to, |to| refusal(why, to)),
        Answer::GivenUp { attempts, last } => fields::message(5, to, |to| {
            fields::number(1, (*attempts).into(), to);
            fields::text(2, last, to);
        }),
    }
}

/// How the context of a trace is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    /// As the header that it is: every version reads it.
    Header,
    /// As its bytes: where format 6 is read.
    Bytes,
}

/// The fields of a [`holdfast_proto::v1::RecordedOptions`].
pub(super) fn options(options: &Options, context: Context, to: &mut Vec<u8>) {
    let Options {
        timeout_ms,
        call_timeout_ms,
        retry,
        order,
        recovery,
        tried_by,
        headers,
        tags,
        second_phase_grace_ms,
    } = options;
    fields::number(1, *timeout_ms, to);
    fields::number(2, *call_timeout_ms, to);
    fields::number(3, retry.first_ms, to);
    fields::number(4, retry.ceiling_ms, to);
    fields::number(5, retry.attempts_max.into(), to);
    fields::number(6, number(*order), to);
    fields::number(7, number(*recovery), to);
    fields::number(8, number(*tried_by), to);
    match context {
        Context::Header => headers.for_each(|name, value| fields::entry(9, (name, value), to)),
        Context::Bytes => {
            headers.others().iter().for_each(|header| fields::entry(9, header, to));
        }
    }
    tags.iter().for_each(|tag| fields::entry(10, tag, to));
    fields::number(11, *second_phase_grace_ms, to);
    if let Some(own) = headers.traceparent().filter(|_| context == Context::Bytes) {
        fields::bytes(12, &own.bytes(), to);
    }
}

/// The fields of a [`holdfast_proto::v1::RecordedBranchSpec`].
pub(super) fn spec(spec: &BranchSpec, to: &mut Vec<u8>) {
    let BranchSpec { participant, payload, after, pivot } = spec;
    fields::text(1, participant.as_str(), to);
    fields::bytes(2, payload, to);
    if let Some(after) = after {
        fields::message(3, to, |to| fields::numbers(1, after.iter().map(|one| one.0), to));
    }
    fields::number(4, (*pivot).into(), to);
}

/// The captures, each a [`holdfast_proto::v1::RecordedCapture`] in that field.
pub(super) fn captures(field: u32, captures: &Captures, to: &mut Vec<u8>) {
    for (branch, payload) in captures.iter() {
        fields::message(field, to, |to| {
            fields::number(1, branch.0.into(), to);
            fields::bytes(2, payload, to);
        });
    }
}

/// The fields of a [`holdfast_proto::v1::RecordedRefusal`].
pub(super) fn refusal(refusal: &Refusal, to: &mut Vec<u8>) {
    fields::text(1, &refusal.code, to);
    fields::text(2, &refusal.message, to);
}

/// As an enum is written, whatever its number is.
pub(super) fn number(member: impl Numbered) -> u64 {
    i64::from(member.number()).cast_unsigned()
}
