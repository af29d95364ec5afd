//! What goes wrong at a node, sorted by what the caller must do. Each code has a page in docs/reference/errors.

use std::{io, net::SocketAddr};

use holdfast_raft::Member;

/// Why a command, or a linearizable read, has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// HF2101, retry: nothing happened here. Ask the leader.
    #[error("this node does not lead{}. Nothing happened; ask the leader", at(leader.as_ref()))]
    NotLeader {
        /// The leader, where it is known.
        leader: Option<Member>,
    },
    /// HF2102, unknown: the command may be applied, now or later. Ask by gid, or repeat it.
    #[error("the outcome is unknown: {cause}. Ask with the same gid, or send the same again")]
    Unknown {
        /// For people.
        cause: String,
    },
    /// HF2103, retry: nothing happened.
    #[error("the log takes no more for now; {waiting} commands wait. Nothing happened; try again")]
    Overloaded {
        /// How many wait.
        waiting: usize,
    },
    /// HF2105, retry: nothing happened. Once every member runs this version, it can be done.
    #[error(
        "this needs entries of format {needs}, and not every member of the cluster reads more than {reads} yet. Nothing happened; run this version on every node, then try again"
    )]
    TooNew {
        /// The format that it needs.
        needs: u32,
        /// The format that every member reads.
        reads: u32,
    },
    /// HF2104, retry: this node is stopping, and nothing happened here.
    #[error("this node is stopping. Nothing happened; ask another node")]
    Stopped,
}

fn at(leader: Option<&Member>) -> String {
    leader.map(|m| format!("; node {} does, at {}", m.node, m.grpc)).unwrap_or_default()
}

impl ProposeError {
    /// The code, with a page in docs/reference/errors.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotLeader { .. } => "HF2101",
            Self::Unknown { .. } => "HF2102",
            Self::Overloaded { .. } => "HF2103",
            Self::Stopped => "HF2104",
            Self::TooNew { .. } => "HF2105",
        }
    }

    /// Whether the command may have happened. Otherwise nothing did, and the same may be sent again.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// HF1101: the configuration contradicts itself.
    #[error("HF1101 configuration: {0}")]
    Config(String),
    /// HF1102: the log cannot be opened.
    #[error("HF1102 cannot open the log in {dir}: {cause}")]
    Log {
        /// Where it is.
        dir: String,
        /// What the log says, with its remedy.
        cause: String,
    },
}

/// Why a node cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// HF1103: an address cannot be bound.
    #[error(
        "HF1103 cannot listen on {address} ({door}): {cause}. Free the address, or bind another"
    )]
    Bind {
        /// Which door.
        door: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// HF1104: a door broke.
    #[error("HF1104 the {door} door stopped: {cause}")]
    Door {
        /// Which door.
        door: &'static str,
        /// Why.
        cause: String,
    },
}

impl From<holdfast_raft::ProposeError> for ProposeError {
    fn from(fault: holdfast_raft::ProposeError) -> Self {
        match fault {
            holdfast_raft::ProposeError::NotLeader { leader } => Self::NotLeader { leader },
            holdfast_raft::ProposeError::Unknown { cause } => Self::Unknown { cause },
            // Too large cannot be: commands and entries are bounded below the log's bound.
            holdfast_raft::ProposeError::Overloaded
            | holdfast_raft::ProposeError::TooLarge { .. } => Self::Overloaded { waiting: 0 },
            holdfast_raft::ProposeError::Stopped => Self::Stopped,
        }
    }
}
