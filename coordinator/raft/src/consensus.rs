//! openraft's types, filled in with ours: node numbers, opaque entries, one leader a term.

use std::{any::Any, fmt, sync::Mutex};

use bytes::Bytes;
use openraft::{alias, impls::leader_id_std};

use crate::{Member, Position};

openraft::declare_raft_types!(
    /// One type for every state machine: what an entry does is known only to the caller of this crate.
    pub(crate) Consensus:
        D = Opaque,
        R = Reply,
        NodeId = u64,
        Node = Addresses,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
);

pub(crate) type Ballot = alias::VoteOf<Consensus>;
pub(crate) type Entry = alias::EntryOf<Consensus>;
pub(crate) type LogId = alias::LogIdOf<Consensus>;
pub(crate) type Membership = openraft::Membership<u64, Addresses>;
pub(crate) type Payload = alias::EntryPayloadOf<Consensus>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<Consensus>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<Consensus>;

/// What the membership records of a node beside its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) raft: String,
    pub(crate) grpc: String,
    pub(crate) http: String,
    /// Of its directory; 0: not known yet.
    pub(crate) incarnation: u64,
    /// The highest format of entries that it reads; 0 stands for 1.
    pub(crate) reads_format: u32,
}

impl Addresses {
    /// Of a node of which no more is known than where it should be.
    pub(crate) fn of(member: &Member) -> Self {
        let Member { node: _, raft, grpc, http } = member.clone();
        Self { raft, grpc, http, incarnation: 0, reads_format: 0 }
    }

    pub(crate) fn member(&self, node: u64) -> Member {
        let Self { raft, grpc, http, .. } = self.clone();
        Member { node, raft, grpc, http }
    }
}

/// The content of an entry, never looked into and never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Opaque(pub(crate) Bytes);

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What applying an entry answered, on its way to the one who proposed it. It never leaves the process, so it needs no
/// encoding; it is taken once.
#[derive(Default)]
pub(crate) struct Reply(Mutex<Option<Box<dyn Any + Send>>>);

impl Reply {
    pub(crate) fn new<T: Send + 'static>(response: T) -> Self {
        Self(Mutex::new(Some(Box::new(response))))
    }

    /// The response, if there is one and it is a `T`.
    pub(crate) fn take<T: 'static>(self) -> Option<T> {
        let boxed = self.0.into_inner().ok()??;
        boxed.downcast().ok().map(|response| *response)
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}

pub(crate) fn position(log_id: &LogId) -> Position {
    Position { index: log_id.index, term: **log_id.committed_leader_id() }
}
