//! One call to a participant: what it carries outward, and what its answer means.

use bytes::Bytes;
use holdfast_proto::v1;
use holdfast_trace::HEADER;
use holdfast_txn::{
    BranchId, Gid, GlobalTransaction, Headers, Labels, Op, Refusal, Timestamp, Traceparent,
    limit::REASON_BYTES_MAX,
};

use crate::fields;

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

/// A call as it goes out, once a session gave it a number.
#[derive(Clone, Debug)]
pub(crate) struct Call<'t> {
    gid: &'t Gid,
    pub(crate) branch: BranchId,
    pub(crate) op: v1::Op,
    payload: &'t Bytes,
    deadline: Timestamp,
    headers: &'t Headers,
    /// Says which span it is part of, in place of what the caller said.
    pub(crate) traceparent: Option<Traceparent>,
    pub(crate) asking: Asking,
    refusal_waits: bool,
}

/// The call for an operation that the transaction owes; `None` if it has no such branch.
pub(crate) fn build(
    transaction: &GlobalTransaction,
    branch: BranchId,
    op: Op,
    asking: Asking,
    now: Timestamp,
) -> Option<Call<'_>> {
    let payload = transaction.payload(branch, op)?;
    let options = &transaction.options;
    // The first phase counts until the deadline. What must happen in any case counts for as long as we wait for it.
    let deadline = if op.is_forward_phase() && transaction.deadline > now {
        transaction.deadline
    } else {
        now.plus_ms(options.call_timeout_ms)
    };
    Some(Call {
        gid: &transaction.gid,
        branch,
        op: op_on_the_wire(op),
        payload,
        deadline,
        headers: &options.headers,
        traceparent: None,
        asking,
        // A refusal that nobody was told of is told by the participant's row. Only people who were told can have removed the
        // cause, and that is after a retry; so no late duplicate of a call before it can undo what they settled by hand.
        refusal_waits: op == Op::Action && asking.taken_up && transaction.refusal_waits(branch),
    })
}

#[cfg(test)]
impl<'t> Call<'t> {
    /// A first try of the first branch.
    pub(crate) fn try_of(gid: &'t Gid, payload: &'t Bytes) -> Self {
        Self {
            gid,
            branch: BranchId(1),
            op: v1::Op::Try,
            payload,
            deadline: Timestamp(0),
            headers: &Headers::EMPTY,
            traceparent: None,
            asking: Asking { attempt: 1, taken_up: false },
            refusal_waits: false,
        }
    }

    /// The same, of a transaction with these.
    pub(crate) fn with_headers(gid: &'t Gid, payload: &'t Bytes, headers: &'t Headers) -> Self {
        Self { headers, ..Self::try_of(gid, payload) }
    }
}

impl Call<'_> {
    /// Writes it into a [`v1::Calls`], under that number. Straight into its bytes: there are four calls a transaction, and a message in between
    /// takes its headers apart for each.
    pub(crate) fn write(&self, call_id: u64, form: Form<'_>, to: &mut Vec<u8>) {
        let (mut context, mut as_before) = (None, false);
        fields::message(1, to, |to| {
            fields::number(1, call_id, to);
            fields::text(2, self.gid.as_str(), to);
            fields::number(3, self.branch.0.into(), to);
            fields::number(4, i64::from(i32::from(self.op)).cast_unsigned(), to);
            fields::bytes(5, self.payload, to);
            fields::number(6, self.deadline.0, to);
            match form {
                Form::Short { before } if !self.overrules() => {
                    context = self.traceparent.as_ref().or(self.headers.traceparent());
                    let others = self.headers.others();
                    as_before = !others.is_empty() && before.as_ref() == Some(others);
                    if !as_before {
                        others.iter().for_each(|header| fields::entry(7, header, to));
                        *before = Some(others.clone());
                    }
                }
                Form::Short { before } => {
                    self.each_header(|name, value| fields::entry(7, (name, value), to));
                    *before = None;
                }
                Form::Whole => self.each_header(|name, value| fields::entry(7, (name, value), to)),
            }
            fields::number(8, self.asking.attempt.into(), to);
            fields::number(9, (self.asking.attempt > 1 || self.asking.taken_up).into(), to);
            fields::number(10, self.refusal_waits.into(), to);
            if let Some(context) = context {
                fields::bytes(11, &context.bytes(), to);
            }
            fields::number(12, as_before.into(), to);
        });
    }

    /// Bytes that [`Self::write`] appends, roughly and rather too many than too few.
    pub(crate) fn bytes(&self) -> usize {
        256 + self.payload.len() + self.headers.bytes() + 16 * self.headers.len()
    }

    fn each_header(&self, mut header: impl FnMut(&str, &str)) {
        let Some(own) = &self.traceparent else { return self.headers.for_each(header) };
        self.headers.for_each(|name, value| {
            if !name.eq_ignore_ascii_case(HEADER) {
                header(name, value);
            }
        });
        header(HEADER, own.text().as_ref());
    }

    /// Whether its own span takes the place of a header among the others: of a form of its own, or under a name in capitals.
    fn overrules(&self) -> bool {
        let is_other = |(name, _): (&str, &str)| name.eq_ignore_ascii_case(HEADER);
        self.traceparent.is_some() && self.headers.others().iter().any(is_other)
    }
}

/// How the headers of a call are written: every agent carries them outward, and most look at none.
#[derive(Debug)]
pub(crate) enum Form<'b> {
    /// All of them, each as a text.
    Whole,
    /// As an agent reads them that [`v1::Hello::reads_short_calls`].
    Short {
        /// Those of the call that was written before into the same message, but for the trace's context.
        before: &'b mut Option<Labels>,
    },
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
    use holdfast_proto::{HeardCall, Pairs, TRACE_CONTEXT_BYTES};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn headers_of(call: &Call<'_>) -> Vec<(String, String)> {
        let mut headers = Vec::new();
        call.each_header(|name, value| headers.push((name.to_owned(), value.to_owned())));
        headers
    }

    /// As a message in between would have it.
    fn as_message(call: &Call<'_>, call_id: u64) -> v1::Call {
        v1::Call {
            call_id,
            gid: call.gid.to_string(),
            branch: call.branch.0,
            op: call.op.into(),
            payload: call.payload.clone(),
            deadline_ms: call.deadline.0,
            headers: headers_of(call).into_iter().collect::<Pairs>().into(),
            attempt: call.asking.attempt,
            repeat: call.asking.attempt > 1 || call.asking.taken_up,
            refusal_waits: call.refusal_waits,
            ..v1::Call::default()
        }
    }

    /// What whoever hears a call finds among its headers.
    fn heard(call: &HeardCall<'_>) -> Vec<(String, String)> {
        let context = call.trace_context.and_then(|bytes| Traceparent::of_bytes(&bytes));
        let context = context.map(|own| (HEADER.to_owned(), own.text().as_ref().to_owned()));
        let mut all: Vec<_> = call.headers.owned().chain(context).collect();
        all.sort();
        all
    }

    const THEIRS: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    proptest! {
        #[test]
        fn calls_in_short_are_heard_as_whole_ones_are(
            calls in prop::collection::vec((
                prop::collection::btree_map(
                    prop::sample::select(vec!["tenant", "color", "TraceParent", "traceparent"]),
                    prop::sample::select(vec!["", "a", THEIRS]),
                    0..3,
                ),
                prop::option::of(any::<[u8; TRACE_CONTEXT_BYTES]>()),
            ), 0..8),
        ) {
            let (gid, payload) = (Gid::parse("g1").unwrap(), Bytes::new());
            let mut before = None;
            let (mut whole, mut short) = (Vec::new(), Vec::new());
            for (headers, own) in calls {
                let headers: Headers = headers.into_iter().collect();
                let traceparent = own.and_then(|bytes| Traceparent::of_bytes(&bytes));
                let call = Call { traceparent, ..Call::with_headers(&gid, &payload, &headers) };
                call.write(1, Form::Whole, &mut whole);
                call.write(1, Form::Short { before: &mut before }, &mut short);
                prop_assert!(short.len() <= whole.len());
            }
            let (whole, short) = (Bytes::from(whole), Bytes::from(short));
            let (whole, short) = (v1::Calls::hear(&whole).unwrap(), v1::Calls::hear(&short).unwrap());
            let all = |calls: &[HeardCall<'_>]| calls.iter().map(heard).collect::<Vec<_>>();
            prop_assert_eq!(all(&whole), all(&short));
        }

        #[test]
        fn calls_are_written_as_the_message_is(
            numbers in any::<(u32, u32, u64, u64)>(),
            flags in any::<(bool, bool)>(),
            op in 0..8_i32,
            payload in prop::collection::vec(any::<u8>(), 0..300),
            headers in prop::collection::btree_map("[a-z]{0,12}|[Tt]raceparent", ".{0,80}|00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", 0..6),
            traceparent in prop::option::of(any::<[u8; TRACE_CONTEXT_BYTES]>()),
        ) {
            let (branch, attempt, deadline, call_id) = numbers;
            let (gid, payload) = (Gid::parse("g1").unwrap(), Bytes::from(payload));
            let headers: Headers = headers.into_iter().collect();
            let call = Call {
                branch: BranchId(branch),
                op: v1::Op::try_from(op).unwrap(),
                deadline: Timestamp(deadline),
                headers: &headers,
                traceparent: traceparent.and_then(|bytes| Traceparent::of_bytes(&bytes)),
                asking: Asking { attempt, taken_up: flags.0 },
                refusal_waits: flags.1,
                ..Call::try_of(&gid, &payload)
            };
            let mut written = Vec::new();
            for id in [call_id, 7] {
                call.write(id, Form::Whole, &mut written);
            }
            let calls = vec![as_message(&call, call_id), as_message(&call, 7)];
            prop_assert_eq!(&written, &v1::Calls { calls }.encode_to_vec());
            prop_assert!(written.len() <= 2 * call.bytes());
        }
    }

    #[test]
    fn a_span_of_its_own_takes_the_place_of_what_the_caller_said_in_whatever_case() {
        let (gid, payload) = (Gid::parse("g1").unwrap(), Bytes::new());
        let headers: Headers = [("TraceParent", "theirs"), ("color", "red")].into_iter().collect();
        let call = Call::with_headers(&gid, &payload, &headers);
        let traceparent = Traceparent::parse(THEIRS.as_bytes());
        let own = Call { traceparent, ..call.clone() };
        let said = |headers: &[(&str, &str)]| -> Vec<(String, String)> {
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(headers_of(&call), said(&[("TraceParent", "theirs"), ("color", "red")]));
        assert_eq!(headers_of(&own), said(&[("color", "red"), (HEADER, THEIRS)]));
    }

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
