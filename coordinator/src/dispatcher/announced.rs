//! What a session is to the rest of the node: its number, what it says of itself, and what goes out on it.

use std::sync::Arc;

use holdfast_proto::v1;
use holdfast_txn::Participant;
use tokio::sync::mpsc;

use super::lanes::{Credit, Term};
use crate::{branch_call, config::limit};

/// One session, unique on this node since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// What goes out on a session.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Calls of a leader in this term: dropped if it leads no more when they would go out.
    Calls { term: Term, calls: Vec<v1::Call> },
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

/// Cuts a batch into messages within the limits of number and size.
pub(super) fn messages(batch: Vec<v1::Call>) -> Vec<Vec<v1::Call>> {
    let mut messages = Vec::with_capacity(1);
    let (mut current, mut bytes) = (Vec::new(), 0);
    for call in batch {
        let size = branch_call::bytes_of(&call);
        let full = current.len() == limit::BATCH_PER_MESSAGE_MAX
            || (bytes + size > BATCH_BYTES_MAX && !current.is_empty());
        if full {
            messages.push(std::mem::take(&mut current));
            bytes = 0;
        }
        bytes += size;
        current.push(call);
    }
    if !current.is_empty() {
        messages.push(current);
    }
    messages
}
