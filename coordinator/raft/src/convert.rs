//! Between openraft's values and the messages of raft.proto, for the wire and for the disk.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_proto::v1;

use crate::consensus::{
    Addresses, Ballot, Entry, LogId, Membership, Opaque, Payload, StoredMembership, log_id,
};

/// Why a message is not what its sender should have sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("the membership contradicts itself: {0}")]
    Membership(String),
    #[error("{what} has {bytes} bytes, more than the limit of {limit}")]
    TooLong { what: &'static str, bytes: usize, limit: usize },
}

pub(crate) fn ballot_to_proto(ballot: &Ballot) -> v1::RaftBallot {
    v1::RaftBallot {
        term: ballot.leader_id.term,
        node: ballot.leader_id.voted_for,
        granted_by_quorum: ballot.committed,
    }
}

pub(crate) fn ballot_from_proto(ballot: Option<v1::RaftBallot>) -> Result<Ballot, Malformed> {
    let ballot = ballot.ok_or(Malformed::Missing("the ballot"))?;
    Ok(if ballot.granted_by_quorum {
        Ballot::new_committed(ballot.term, ballot.node)
    } else {
        Ballot::new(ballot.term, ballot.node)
    })
}

pub(crate) fn position_to_proto(log_id: &LogId) -> v1::RaftPosition {
    v1::RaftPosition { index: log_id.index, term: **log_id.committed_leader_id() }
}

pub(crate) fn position_from_proto(position: &v1::RaftPosition) -> LogId {
    log_id(position.term, position.index)
}

pub(crate) fn membership_to_proto(membership: &Membership) -> v1::RaftMembership {
    let voters = membership.get_joint_config().iter();
    v1::RaftMembership {
        voters: voters.map(|set| v1::RaftVoters { nodes: set.iter().copied().collect() }).collect(),
        members: membership
            .nodes()
            .map(|(&node, addresses)| member_to_proto(node, addresses))
            .collect(),
    }
}

pub(crate) fn member_to_proto(node: u64, addresses: &Addresses) -> v1::RaftMember {
    let Addresses { raft, grpc, http, incarnation, reads_format } = addresses.clone();
    v1::RaftMember { node, raft, grpc, http, incarnation, reads_format }
}

pub(crate) fn member_from_proto(member: v1::RaftMember) -> (u64, Addresses) {
    let v1::RaftMember { node, raft, grpc, http, incarnation, reads_format } = member;
    (node, Addresses { raft, grpc, http, incarnation, reads_format })
}

pub(crate) fn membership_from_proto(
    membership: v1::RaftMembership,
) -> Result<Membership, Malformed> {
    let voters: Vec<BTreeSet<u64>> =
        membership.voters.into_iter().map(|set| set.nodes.into_iter().collect()).collect();
    let members: BTreeMap<u64, Addresses> =
        membership.members.into_iter().map(member_from_proto).collect();
    if voters.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(voters, members).map_err(|error| Malformed::Membership(error.to_string()))
}

pub(crate) fn stored_membership_to_proto(stored: &StoredMembership) -> v1::RaftStoredMembership {
    v1::RaftStoredMembership {
        position: stored.log_id().as_ref().map(position_to_proto),
        membership: Some(membership_to_proto(stored.membership())),
    }
}

pub(crate) fn stored_membership_from_proto(
    stored: v1::RaftStoredMembership,
) -> Result<StoredMembership, Malformed> {
    let membership = stored.membership.ok_or(Malformed::Missing("the membership"))?;
    Ok(StoredMembership::new(
        stored.position.as_ref().map(position_from_proto),
        membership_from_proto(membership)?,
    ))
}

pub(crate) fn entry_to_proto(entry: &Entry) -> v1::RaftEntry {
    use v1::raft_entry::Payload as Wire;
    v1::RaftEntry {
        position: Some(position_to_proto(&entry.log_id)),
        payload: Some(match &entry.payload {
            Payload::Blank => Wire::Blank(v1::RaftNothing {}),
            Payload::Normal(Opaque(bytes)) => Wire::Normal(bytes.clone()),
            Payload::Membership(membership) => Wire::Membership(membership_to_proto(membership)),
        }),
    }
}

/// `bytes_max`: of the payload of a normal entry.
pub(crate) fn entry_from_proto(entry: v1::RaftEntry, bytes_max: usize) -> Result<Entry, Malformed> {
    use v1::raft_entry::Payload as Wire;
    let position = entry.position.ok_or(Malformed::Missing("the position of an entry"))?;
    let payload = match entry.payload.ok_or(Malformed::Missing("the payload of an entry"))? {
        Wire::Blank(_) => Payload::Blank,
        Wire::Normal(bytes) if bytes.len() > bytes_max => {
            let bytes = bytes.len();
            return Err(Malformed::TooLong { what: "an entry", bytes, limit: bytes_max });
        }
        // Copied, for a slice of the receive buffer would keep all of that buffer alive as long as the entry.
        Wire::Normal(bytes) => Payload::Normal(Opaque(Bytes::copy_from_slice(&bytes))),
        Wire::Membership(membership) => Payload::Membership(membership_from_proto(membership)?),
    };
    Ok(Entry { log_id: position_from_proto(&position), payload })
}
