//! A look at a replica, for people and for metrics.

use crate::{Member, Position};

/// What a replica does in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes proposals and sends them to the others.
    Leader,
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Receives the log without a vote.
    Learner,
    /// Does nothing any more.
    Stopped,
}

impl Role {
    /// As people read it: `follower`, `candidate`, `leader`, `learner` or `stopped`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Stopped => "stopped",
        }
    }
}

/// A member, and whether it has a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Who and where.
    pub member: Member,
    /// Whether its vote counts.
    pub voter: bool,
    /// On the leader: the index up to which this member is known to hold the log.
    pub matched_index: Option<u64>,
    /// On the leader: how long ago it answered last, ms. The leader itself always has just now.
    pub answered_ms_ago: Option<u64>,
    /// Which directory the membership records for it; 0: none yet, and then nothing is sent to it.
    pub incarnation: u64,
    /// The highest format of entries that it reads, as the membership records it.
    pub reads_format: u32,
}

/// A replica at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogStatus {
    /// This node.
    pub node: u64,
    /// What it does.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// Who leads, where it is known.
    pub leader: Option<Member>,
    /// The last entry of the log, applied or not; 0 while there is none.
    pub last_index: u64,
    /// The last entry that was applied; 0@0 while there is none.
    pub applied: Position,
    /// The last entry in the snapshot; 0 while there is none.
    pub snapshot_index: u64,
    /// Whether one set of voters is being replaced by another just now.
    pub joint: bool,
    /// The highest format of entries that every member reads. A leader writes none above it.
    pub cluster_format: u32,
    /// Which founding of the cluster the log belongs to; 0: none yet.
    pub founding: u64,
    /// Of this node's directory. Where the membership records another one for this node, it is let in by nobody.
    pub incarnation: u64,
    /// Everyone, by number.
    pub members: Vec<MemberStatus>,
    /// Syncs of the log since it was opened.
    pub fsyncs: u64,
    /// Bytes written to the log since it was opened.
    pub bytes_written: u64,
}
