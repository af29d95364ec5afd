//! Calls as they lie in a message of a coordinator: written one by one, and read together.

use std::borrow::Cow;

use bytes::Bytes;
use prost::{DecodeError, Message as _};

use crate::{
    Pairs,
    fields::{Fields, Value, once},
    v1::{Call, Calls, Op},
};

/// Number of the field of the calls in [`Calls`], and of the headers in [`Call`].
const CALLS: u32 = 1;
const HEADERS: u32 = 7;
/// Bytes of a [`Call::trace_context`].
pub const TRACE_CONTEXT_BYTES: usize = 25;

/// A [`Call`] as whoever carries it out reads it: it lies where the message lies.
#[derive(Clone, Debug, PartialEq)]
pub struct HeardCall<'m> {
    /// As [`Call::call_id`].
    pub call_id: u64,
    /// As [`Call::gid`].
    pub gid: Cow<'m, str>,
    /// As [`Call::branch`].
    pub branch: u32,
    /// As [`Call::op`].
    pub op: i32,
    /// As [`Call::payload`].
    pub payload: Bytes,
    /// As [`Call::deadline_ms`].
    pub deadline_ms: u64,
    /// As [`Call::headers`], those of the call before it where it says so.
    pub headers: Pairs,
    /// As [`Call::trace_context`]; of another length it is none.
    pub trace_context: Option<[u8; TRACE_CONTEXT_BYTES]>,
    /// As [`Call::headers_as_before`].
    pub headers_as_before: bool,
    /// As [`Call::attempt`].
    pub attempt: u32,
    /// As [`Call::repeat`].
    pub repeat: bool,
    /// As [`Call::refusal_waits`].
    pub refusal_waits: bool,
}

impl Calls {
    /// As in [`crate::v1::coordinator_message::Message::Calls`].
    #[must_use]
    pub fn write(calls: Vec<Call>) -> Bytes {
        Self { calls }.encode_to_vec().into()
    }

    /// The calls in [`crate::v1::coordinator_message::Message::Calls`].
    /// # Errors
    /// The bytes are no calls.
    pub fn read(bytes: Bytes) -> Result<Vec<Call>, DecodeError> {
        Self::decode(bytes).map(|message| message.calls)
    }

    /// The same, for whoever carries them out.
    /// # Errors
    /// As [`Self::read`].
    pub fn hear(bytes: &Bytes) -> Result<Vec<HeardCall<'_>>, DecodeError> {
        let heard: Option<Vec<_>> = Fields(bytes)
            .map(|field| match field? {
                (CALLS, Value::Bytes(call)) => HeardCall::read(bytes, call),
                _ => None,
            })
            .collect();
        let mut heard = match heard {
            Some(heard) => heard,
            // Something in it is unusual, which the message knows how to read.
            None => Self::read(bytes.clone())?.into_iter().map(HeardCall::from).collect(),
        };
        for at in 1..heard.len() {
            if heard[at].headers_as_before {
                heard[at].headers = heard[at - 1].headers.clone();
            }
        }
        Ok(heard)
    }
}

impl<'m> HeardCall<'m> {
    /// Reads `call`, a part of `message`, as coordinators write it: each field once, the headers one after the other. What is another call, or
    /// none, is `None`.
    fn read(message: &'m Bytes, call: &'m [u8]) -> Option<Self> {
        /// By the number of the field; the first is no field.
        const NUMBERS: usize = 13;
        let mut numbers = [None; NUMBERS];
        let (mut gid, mut payload, mut trace_context) = (None, None, None);
        // How many headers there are, and how much was left of the call before the first and behind the last.
        let (mut count, mut before, mut behind) = (0, call.len(), call.len());
        let mut fields = Fields(call);
        loop {
            let left = fields.0.len();
            let Some(field) = fields.next() else { break };
            match field? {
                (2, Value::Bytes(text)) => once(&mut gid, std::str::from_utf8(text).ok()?)?,
                (5, Value::Bytes(bytes)) => once(&mut payload, message.slice_ref(bytes))?,
                (HEADERS, Value::Bytes(_)) => {
                    if count == 0 {
                        before = left;
                    } else if left != behind {
                        return None;
                    }
                    (count, behind) = (count + 1, fields.0.len());
                }
                (11, Value::Bytes(bytes)) => once(&mut trace_context, bytes)?,
                (field @ (1 | 3 | 4 | 6 | 8..=10 | 12), Value::Number(number)) => {
                    once(&mut numbers[field as usize], number)?;
                }
                _ => return None,
            }
        }
        let number = |field: usize| numbers[field].unwrap_or_default();
        let headers = &call[call.len() - before..call.len() - behind];
        Some(Self {
            call_id: number(1),
            gid: Cow::Borrowed(gid.unwrap_or_default()),
            branch: number(3).try_into().ok()?,
            op: number(4).try_into().ok()?,
            payload: payload.unwrap_or_default(),
            deadline_ms: number(6),
            headers: Pairs::of_fields(count, message.slice_ref(headers)),
            trace_context: trace_context.and_then(|bytes| bytes.try_into().ok()),
            headers_as_before: number(12) != 0,
            attempt: number(8).try_into().ok()?,
            repeat: number(9) != 0,
            refusal_waits: number(10) != 0,
        })
    }

    /// As [`Call::op`]: one that is not known is [`Op::Unspecified`].
    #[must_use]
    pub fn op(&self) -> Op {
        Op::try_from(self.op).unwrap_or_default()
    }
}

impl From<Call> for HeardCall<'_> {
    fn from(call: Call) -> Self {
        Self {
            call_id: call.call_id,
            gid: Cow::Owned(call.gid),
            branch: call.branch,
            op: call.op,
            payload: call.payload,
            deadline_ms: call.deadline_ms,
            headers: call.headers.into(),
            trace_context: (*call.trace_context).try_into().ok(),
            headers_as_before: call.headers_as_before,
            attempt: call.attempt,
            repeat: call.repeat,
            refusal_waits: call.refusal_waits,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn calls() -> impl Strategy<Value = Vec<Call>> {
        let headers = prop::collection::vec((".{0,12}", ".{0,140}"), 0..4);
        let numbers = any::<(u64, u32, i32, u64, u32)>();
        let context = prop_oneof![Just(0), 24..27_usize];
        let context = context.prop_flat_map(|length| prop::collection::vec(any::<u8>(), length));
        let texts = (".{0,30}", any::<Vec<u8>>(), context);
        let call = (numbers, any::<(bool, bool, bool)>(), texts, headers);
        let call = call.prop_map(|(numbers, flags, (gid, payload, context), headers)| {
            let (call_id, branch, op, deadline_ms, attempt) = numbers;
            Call {
                call_id,
                gid,
                branch,
                op,
                payload: payload.into(),
                deadline_ms,
                headers: headers.into_iter().collect::<Pairs>().into(),
                attempt,
                repeat: flags.0,
                refusal_waits: flags.1,
                trace_context: context.into(),
                headers_as_before: flags.2,
            }
        });
        prop::collection::vec(call, 0..4)
    }

    fn as_message(bytes: &Bytes) -> Option<Vec<HeardCall<'_>>> {
        let calls = Calls::read(bytes.clone()).ok()?;
        let mut before: Option<Pairs> = None;
        let heard = calls.into_iter().map(|call| {
            let mut heard = HeardCall::from(call);
            if heard.headers_as_before {
                heard.headers = before.take().unwrap_or(heard.headers);
            }
            before = Some(heard.headers.clone());
            heard
        });
        Some(heard.collect())
    }

    proptest! {
        #[test]
        fn calls_are_heard_as_the_message_has_them(calls in calls(), at: prop::sample::Index, byte: u8) {
            let bytes = Calls::write(calls.clone());
            let heard = Calls::hear(&bytes).unwrap();
            for (heard, call) in heard.iter().zip(calls).filter(|(heard, _)| !heard.headers_as_before) {
                prop_assert_eq!(heard.headers.len(), call.headers.len());
                let mut changed = heard.headers.clone();
                changed.set("a", "b");
                let mut other = Pairs::from(call.headers);
                other.set("a", "b");
                prop_assert_eq!(changed, other);
            }
            prop_assert_eq!(Some(heard), as_message(&bytes));
            // Whatever becomes of a byte on the way.
            let mut changed = bytes.to_vec();
            if !changed.is_empty() {
                changed[at.index(bytes.len())] = byte;
            }
            let changed = Bytes::from(changed);
            prop_assert_eq!(Calls::hear(&changed).ok(), as_message(&changed));
        }
    }

    /// Headers that something lies between, a field that comes twice, and one of a later version.
    #[test]
    fn what_is_written_otherwise_is_heard_as_the_message_has_it() {
        let header = Pairs::from_iter([("tenant", "retail")]);
        let call = Call { gid: "g1".into(), headers: header.into(), ..Call::default() };
        let one = call.encode_to_vec();
        let later = [&one[..], &[0x68, 0x07]].concat();
        for call in [[&one[..], &one].concat(), later, Vec::new()] {
            let mut bytes = vec![0x0a];
            crate::write_varint(call.len() as u64, &mut bytes);
            bytes.extend(call);
            let bytes = Bytes::from(bytes);
            let heard = Calls::hear(&bytes).unwrap();
            assert_eq!(heard.len(), 1);
            assert_eq!(Some(heard), as_message(&bytes));
        }
        assert!(Calls::hear(&Bytes::from_static(&[0x0a, 0x7f])).is_err());
    }
}
