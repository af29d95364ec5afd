//! What a session is to the rest of the node: its number, what it says of itself, and what goes out on it.

use std::sync::Arc;

use holdfast_proto::v1;
use holdfast_txn::Participant;
use tokio::sync::mpsc;

use super::lanes::{Credit, Term};

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
