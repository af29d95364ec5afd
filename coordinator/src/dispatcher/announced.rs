//! What a session is to the rest of the node: its number, what it says of itself, and what goes out on it.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::v1;
use holdfast_txn::{Labels, Participant};
use tokio::sync::mpsc;

use super::lanes::{Credit, Term};
use crate::{
    branch_call::{Call, Form},
    config::limit,
};

/// One session, unique on this node since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// What goes out on a session.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Calls of a leader in this term: dropped if it leads no more when they would go out.
    Calls { term: Term, calls: Calls },
    /// Welcome and beats.
    Message(v1::CoordinatorMessage),
    /// The end, and why.
    End(tonic::Status),
}

/// An agent that said hello and was found in order, or an endpoint that is called.
#[derive(Clone, Debug)]
pub(crate) struct NewSession {
    pub(crate) id: SessionId,
    pub(crate) service: Participant,
    /// Who it says it is, and what it announced.
    pub(crate) about: About,
    pub(crate) weight: u32,
    pub(crate) credit: Credit,
    pub(crate) outbox: mpsc::Sender<Outgoing>,
}

/// What a session says of itself, for people and for choosing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) instance: Arc<str>,
    pub(crate) version: String,
    pub(crate) zone: String,
    pub(crate) color: String,
    pub(crate) kind: Kind,
    /// As [`v1::Hello::reads_short_calls`].
    pub(crate) reads_short_calls: bool,
}

/// How a participant is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It dialed in.
    #[default]
    Agent,
    /// It is called over HTTP.
    Http,
    /// It is called over gRPC.
    Grpc,
}

/// Bytes of calls in one message; far below what a message may hold, so that one slow call delays few.
pub(super) const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Calls of one message, as they lie in it: a [`holdfast_proto::v1::Calls`]. Each is written once, from where it is made.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    ids: Vec<u64>,
    bytes: Vec<u8>,
}

impl Calls {
    /// The numbers of the calls, in their order.
    pub(crate) fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// The message.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.bytes.into()
    }
}

/// Calls that wait to go out, in as few messages as the limits of number and size allow.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<Calls>,
    /// Calls and bytes of the first message that was taken last: the next is about as large, and what grows while it is written is copied.
    usual: (usize, usize),
    /// Headers of the call that was written last into the last message, where they are written in short.
    before: Option<Labels>,
}

impl Batch {
    /// Adds one, under that number; in its short form where whoever hears it reads that.
    pub(super) fn push(&mut self, call_id: u64, call: &Call<'_>, short: bool) {
        let last = self.messages.last().filter(|last| {
            last.ids.len() < limit::BATCH_PER_MESSAGE_MAX
                && last.bytes.len() + call.bytes() <= BATCH_BYTES_MAX
        });
        if last.is_none() {
            let (calls, bytes) = self.usual;
            let (ids, bytes) = (Vec::with_capacity(calls), Vec::with_capacity(bytes));
            self.messages.push(Calls { ids, bytes });
            self.before = None;
        }
        let last = self.messages.last_mut().expect("one was added if there was none");
        last.ids.push(call_id);
        let form = if short { Form::Short { before: &mut self.before } } else { Form::Whole };
        call.write(call_id, form, &mut last.bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// All messages, none of which is empty.
    pub(super) fn take(&mut self) -> Vec<Calls> {
        if let Some(first) = self.messages.first() {
            self.usual = (first.ids.len(), first.bytes.len());
        }
        std::mem::take(&mut self.messages)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_txn::{Gid, Headers};

    use super::*;

    #[test]
    fn headers_stand_once_in_a_message_to_whoever_reads_short_calls_and_in_each_call_to_others() {
        let (gid, payload) = (Gid::parse("g1").unwrap(), Bytes::new());
        let headers: Headers = [("tenant", "retail")].into_iter().collect();
        let call = Call::with_headers(&gid, &payload, &headers);
        for short in [true, false] {
            let mut batch = Batch::default();
            (0..limit::BATCH_PER_MESSAGE_MAX + 2).for_each(|_| batch.push(7, &call, short));
            let messages: Vec<_> = batch.take().into_iter().map(Calls::into_bytes).collect();
            assert_eq!(messages.len(), 2);
            for message in messages {
                let heard = v1::Calls::hear(&message).unwrap();
                assert!(heard.iter().all(|call| call.headers.get("tenant") == Some("retail")));
                let repeated = heard.iter().filter(|call| call.headers_as_before).count();
                assert_eq!(repeated, if short { heard.len() - 1 } else { 0 });
            }
        }
    }
}
