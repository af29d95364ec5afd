//! One call to a participant: what it carries outward, and what its answer means.

use bytes::Bytes;
use holdfast_proto::{Pairs, v1};
use holdfast_txn::{BranchId, GlobalTransaction, Op, Refusal, Timestamp, limit::REASON_BYTES_MAX};

/// What a participant said, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    Refused(Refusal),
    Working,
    /// It cannot tell, or spoke words that this version does not know: ask again.
    Unknown(String),
}

/// How often an operation was asked for, as far as the leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asking {
    /// From 1, by this leader, since the transaction was last retried.
    pub(crate) attempt: u32,
    /// Others may have asked before: a leader before this one, or this one before a retry.
    pub(crate) taken_up: bool,
}

/// The headers of a transaction's calls, each of which carries them: a clone is a count of each.
pub(crate) fn headers(transaction: &GlobalTransaction) -> Vec<Bytes> {
    transaction.options.headers.iter().collect::<Pairs>().into()
}

/// The call for an operation that the transaction owes, with these headers; `None` if it has no such branch.
pub(crate) fn build(
    transaction: &GlobalTransaction,
    branch: BranchId,
    op: Op,
    asking: Asking,
    headers: &[Bytes],
    now: Timestamp,
) -> Option<v1::Call> {
    let payload = transaction.payload(branch, op)?.clone();
    let options = &transaction.options;
    // The first phase counts until the deadline. What must happen in any case counts for as long as we wait for it.
    let deadline = if op.is_forward_phase() && transaction.deadline > now {
        transaction.deadline
    } else {
        now.plus_ms(options.call_timeout_ms)
    };
    Some(v1::Call {
        // Numbered by the session.
        call_id: 0,
        gid: transaction.gid.as_str().to_owned(),
        branch: branch.0,
        op: op_on_the_wire(op).into(),
        payload,
        deadline_ms: deadline.0,
        headers: headers.to_vec(),
        attempt: asking.attempt,
        repeat: asking.attempt > 1 || asking.taken_up,
        // A refusal that nobody was told of is told by the participant's row. Only people who were told can have removed the
        // cause, and that is after a retry; so no late duplicate of a call before it can undo what they settled by hand.
        refusal_waits: op == Op::Action && asking.taken_up && transaction.refusal_waits(branch),
    })
}

pub(crate) fn op_on_the_wire(op: Op) -> v1::Op {
    match op {
        Op::Try => v1::Op::Try,
        Op::Confirm => v1::Op::Confirm,
        Op::Cancel => v1::Op::Cancel,
        Op::Action => v1::Op::Action,
        Op::Compensate => v1::Op::Compensate,
        Op::Prepare => v1::Op::Prepare,
        Op::Commit => v1::Op::Commit,
        Op::RollBack => v1::Op::RollBack,
    }
}

/// Bytes that a call takes in a message, roughly and rather too much than too little.
pub(crate) fn bytes_of(call: &v1::Call) -> usize {
    128 + call.payload.len() + Pairs::bytes(&call.headers)
}

/// What an answer means.
pub(crate) fn verdict_of(answer: v1::Answer) -> Verdict {
    match v1::Verdict::try_from(answer.verdict) {
        Ok(v1::Verdict::Done) => Verdict::Done,
        Ok(v1::Verdict::Refused) => Verdict::Refused(Refusal {
            code: shortened(answer.code),
            message: shortened(answer.message),
        }),
        Ok(v1::Verdict::Working) => Verdict::Working,
        Ok(v1::Verdict::Unspecified) => {
            Verdict::Unknown(shortened(format!("{}: {}", answer.code, answer.message)))
        }
        Err(_) => Verdict::Unknown(format!("verdict {}, which is unknown here", answer.verdict)),
    }
}

/// At most [`REASON_BYTES_MAX`] bytes of `text`, cut between characters.
fn shortened(mut text: String) -> String {
    if text.len() > REASON_BYTES_MAX {
        let end = (0..=REASON_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(verdict: i32, message: &str) -> v1::Answer {
        v1::Answer { call_id: 1, verdict, code: "c".into(), message: message.into() }
    }

    #[test]
    fn a_verdict_that_is_not_known_is_unknown_and_never_a_refusal() {
        assert!(matches!(verdict_of(answer(0, "m")), Verdict::Unknown(why) if why == "c: m"));
        assert!(matches!(verdict_of(answer(77, "m")), Verdict::Unknown(_)));
        assert_eq!(verdict_of(answer(1, "m")), Verdict::Done);
        assert_eq!(verdict_of(answer(3, "m")), Verdict::Working);
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        let Verdict::Refused(refusal) = verdict_of(answer(2, &"ü".repeat(REASON_BYTES_MAX)))
        else {
            panic!("a refusal")
        };
        assert_eq!(refusal.message, "ü".repeat(REASON_BYTES_MAX / 2));
        assert_eq!(shortened("x".repeat(REASON_BYTES_MAX)).len(), REASON_BYTES_MAX);
        assert_eq!(shortened("x".repeat(REASON_BYTES_MAX + 1)).len(), REASON_BYTES_MAX);
    }
}
