//! What goes wrong, sorted by what the caller must do.

use std::io;

pub use crate::store::error::StoreError;
use crate::{Config, Member};

/// Why a replica does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration contradicts itself; every mistake is listed.
    #[error("the configuration of the replica is wrong: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address for peers cannot be used.
    #[error(
        "cannot listen for peers at {bind}: {source}. Is another process there? See [bind] raft"
    )]
    Bind {
        /// The address.
        bind: std::net::SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The log, the snapshot and the state machine do not fit together.
    #[error("the replica cannot recover from {}: {cause}", .dir.display())]
    Recover {
        /// The directory.
        dir: std::path::PathBuf,
        /// What does not fit.
        cause: String,
    },
}

impl OpenError {
    pub(crate) fn recover(config: &Config, cause: &impl ToString) -> Self {
        Self::Recover { dir: config.dir.clone(), cause: cause.to_string() }
    }
}

/// Why the membership was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node does not lead. Nothing happened; ask the leader.
    #[error("this node does not lead{}; nothing happened", at(leader.as_ref()))]
    NotLeader {
        /// Who leads, where it is known.
        leader: Option<Member>,
    },
    /// What was asked is not done, whoever asks. Nothing happened.
    #[error("{code} {cause}")]
    Refused {
        /// With a page in docs/reference/errors.
        code: &'static str,
        /// Why, with numbers and a remedy.
        cause: String,
    },
    /// The change may have been made. Look at the members, then ask again.
    #[error("the outcome is unknown: {cause}")]
    Unknown {
        /// For people.
        cause: String,
    },
    /// This replica is stopping or has stopped. Nothing happened here.
    #[error("this node is stopping; nothing happened")]
    Stopped,
}

impl ChangeError {
    pub(crate) fn refused(code: &'static str, cause: String) -> Self {
        Self::Refused { code, cause }
    }
}

/// Why an entry, or a linearizable read, has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead, or cannot be sure that it still does. Nothing happened: the entry is in no log, and
    /// never will be. Ask the leader.
    #[error("this node does not lead{}; nothing happened", at(leader.as_ref()))]
    NotLeader {
        /// Who leads, where it is known.
        leader: Option<Member>,
    },
    /// The entry was appended here, or may have been, and then the answer was lost. It may be applied now, later or
    /// never; it is applied at most once.
    #[error("the outcome is unknown: {cause}")]
    Unknown {
        /// For people.
        cause: String,
    },
    /// Too much is under way. Nothing happened; try again soon.
    #[error("too many entries are under way; nothing happened")]
    Overloaded,
    /// The entry is above [`Config::entry_bytes_max`]. Nothing happened, and trying again is of no use.
    #[error("an entry of {bytes} bytes is above the limit of {bytes_max}; nothing happened")]
    TooLarge {
        /// Of the entry.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// This replica is stopping or has stopped. Nothing happened here.
    #[error("this node is stopping; nothing happened")]
    Stopped,
}

fn at(leader: Option<&Member>) -> String {
    leader
        .map(|member| format!(", node {} at {} does", member.node, member.raft))
        .unwrap_or_default()
}

/// Why an operator's request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Only the leader can do this.
    #[error("this node does not lead{}", at(leader.as_ref()))]
    NotLeader {
        /// Who leads, where it is known.
        leader: Option<Member>,
    },
    /// Only a voter can lead.
    #[error("node {node} is not a voter of this cluster")]
    NotVoter {
        /// The node.
        node: u64,
    },
    /// It was asked for, and did not happen in time. It may still happen.
    #[error("{what} did not happen within {after_ms} ms")]
    TimedOut {
        /// What was asked for.
        what: &'static str,
        /// How long it was waited for.
        after_ms: u64,
    },
    /// There is nothing in the log yet.
    #[error("nothing was applied here yet")]
    Empty,
    /// This replica is stopping or has stopped.
    #[error("this node is stopping")]
    Stopped,
}
