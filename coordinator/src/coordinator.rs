//! The coordinator as its doors see it: propose a command, read a transaction, wait for its fate.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holdfast_raft::{Leadership, Member};
use holdfast_txn::{Command, Digest, Gid, GlobalTransaction, Outcome, Rejection, Status};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Config;

/// One coordinator node. A handle: clones are the same node.
#[derive(Clone, Debug)]
pub struct Coordinator {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
}

/// A command that is in the log and was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What it did, or why it was refused: alike on every node, and final.
    pub result: Result<Outcome, Rejection>,
}

/// Why a command, or a linearizable read, has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// HF2101, retry: nothing happened here. Ask the leader.
    #[error("this node does not lead{}. Nothing happened; ask the leader", at(leader))]
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
    #[error("{waiting} commands wait for the log, which is the limit. Nothing happened; try again")]
    Overloaded {
        /// How many wait.
        waiting: usize,
    },
    /// HF2104, retry: this node is stopping, and nothing happened here.
    #[error("this node is stopping. Nothing happened; ask another node")]
    Stopped,
}

fn at(leader: &Option<Member>) -> String {
    leader.as_ref().map(|m| format!("; node {} does, at {}", m.node, m.grpc)).unwrap_or_default()
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
        }
    }

    /// Whether the command may have happened. Otherwise nothing did, and the same may be sent again.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Everything acknowledged before the read began is seen.
    Linearizable,
    /// This node's own state, which may lag behind.
    Stale,
}

/// What a caller waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitUntil {
    /// That this node knows the transaction.
    Applied,
    /// The decision to commit or to roll back.
    Decision,
    /// Committed or rolled back, every branch finished.
    End,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// What was waited for is there.
    Reached,
    /// The time is up; the transaction goes on.
    TimedOut,
    /// It needs people, so waiting is of no use.
    NeedsAttention,
    /// This node does not lead, or no longer: ask the leader by gid.
    NotLeading,
    /// Too many wait here already; ask again by gid.
    Overloaded,
    /// This node knows no such transaction.
    NotFound,
}

/// What a wait found.
#[derive(Clone, Debug)]
pub struct Waited {
    /// The transaction as this node knows it.
    pub transaction: Option<GlobalTransaction>,
    /// Why the wait ended. Anything but [`WaitEnd::Reached`] is told as *unknown*, never as failure.
    pub end: WaitEnd,
}

/// What a node knows of itself.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// This node.
    pub node: u64,
    /// `follower`, `candidate`, `leader` or `learner`.
    pub role: &'static str,
    /// The term.
    pub term: u64,
    /// The leader, where it is known.
    pub leader: Option<Member>,
    /// The last entry that was applied.
    pub applied_index: u64,
    /// The last entry in the log.
    pub last_index: u64,
    /// Every member, and whether it votes.
    pub members: Vec<(Member, bool)>,
    /// Hash of the machine after `applied_index`.
    pub state_hash: Digest,
    /// How many transactions are in each status.
    pub by_status: BTreeMap<Status, usize>,
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
    #[error("HF1103 cannot listen on {address} ({door}): {cause}. Free the address, or bind another")]
    Bind {
        /// Which door.
        door: &'static str,
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        cause: std::io::Error,
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

impl Coordinator {
    /// Opens the log and starts the proposer and the dispatcher. Nothing listens for callers yet: [`Self::serve`] does.
    /// # Errors
    /// [`StartError`], before anything is written if the configuration is at fault.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let _ = config;
        todo!()
    }

    /// Listens for callers and agents until `shutdown`, then drains and stops the node.
    /// # Errors
    /// [`ServeError`] if an address cannot be bound or a door breaks.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let _ = shutdown;
        todo!()
    }

    /// Has `command` carried out. Returns when it is durable on a majority and applied here.
    /// # Errors
    /// [`ProposeError`]; a refusal by the machine is no error but part of [`Applied`].
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let _ = command;
        todo!()
    }

    /// The transaction, open or recently finished.
    /// # Errors
    /// [`ProposeError`], only if it must be linearizable and this node cannot tell.
    pub async fn get(
        &self,
        gid: &Gid,
        freshness: Freshness,
    ) -> Result<Option<GlobalTransaction>, ProposeError> {
        let _ = (gid, freshness);
        todo!()
    }

    /// At most `limit` transactions (never above [`crate::config::limit::LIST_MAX`]) in gid order behind `after`, of `statuses` (none: all),
    /// and the gid to go on behind if there may be more. From this node's own state.
    /// # Errors
    /// [`ProposeError`] if the node is stopping.
    pub async fn list(
        &self,
        statuses: &[Status],
        after: Option<&Gid>,
        limit: usize,
    ) -> Result<(Vec<GlobalTransaction>, Option<Gid>), ProposeError> {
        let _ = (statuses, after, limit);
        todo!()
    }

    /// Waits at most `at_most` until the transaction is as far as `until`. Works on the leader only.
    pub async fn wait(&self, gid: &Gid, until: WaitUntil, at_most: Duration) -> Waited {
        let _ = (gid, until, at_most);
        todo!()
    }

    /// Who leads, as it changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        todo!()
    }

    /// What this node knows of itself. Hashes the whole state: not for every request.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        todo!()
    }

    /// Whether requests can be served: a leader is known and the node is not stopping.
    /// # Errors
    /// Why not, for people.
    pub fn is_ready(&self) -> Result<(), String> {
        todo!()
    }

    /// Whether the node should go on living. False only after a fault that a restart may heal.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        todo!()
    }

    /// What the node was told.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }
}
