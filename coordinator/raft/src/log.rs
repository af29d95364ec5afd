//! The log as its user sees it: open, propose, watch the leadership, read, look, close.

use std::{
    any::type_name,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    Instant as _, Raft, RaftMetrics, ReadPolicy, ServerState,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError},
};
use tokio::{
    sync::{Mutex, Semaphore, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    ControlError, Leadership, LogStatus, Member, MemberStatus, Position, ProposeError, Role,
    StateMachine,
    consensus::{Consensus, Membership, Opaque, Reply, position},
    leadership::Directory,
    machine::Replica,
    network::client::Peers,
    store::{LogStore, snapshot::SnapshotStore},
};

/// Proposals under way at once, and their bytes.
const PROPOSALS_MAX: usize = 16_384;
const PROPOSED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a snapshot that an operator asks for is waited for.
const CONTROL_TIMEOUT_MS: u64 = 30_000;

/// A replica of the log. A handle: clones are the same replica.
///
/// Dropping the last handle does not stop it; [`shutdown`](Self::shutdown) does.
pub struct Log<S: StateMachine> {
    pub(crate) inner: Arc<Inner<S>>,
}

pub(crate) struct Inner<S: StateMachine> {
    pub(crate) raft: Raft<Consensus, Replica<S>>,
    pub(crate) store: LogStore,
    pub(crate) snapshots: SnapshotStore,
    pub(crate) peers: Peers,
    pub(crate) directory: Directory,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) proposals: Semaphore,
    pub(crate) proposed_bytes: Semaphore,
    pub(crate) entry_bytes_max: usize,
    /// The longest election timeout: how long a fresh leader may wait to hear of its followers.
    pub(crate) lease_patience: Duration,
    pub(crate) groups: u32,
    /// Held by whoever changes the membership, from what it looks at to the last step.
    pub(crate) changing: Mutex<()>,
    pub(crate) stopped: AtomicBool,
    pub(crate) home: Arc<Home>,
}

/// What the groups of a node share and close together.
pub(crate) struct Home {
    /// Groups that have not been shut down.
    pub(crate) running: AtomicUsize,
    pub(crate) closing: watch::Sender<bool>,
    pub(crate) tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// Proposals under way at once.
pub(crate) fn turns() -> Semaphore {
    Semaphore::new(PROPOSALS_MAX)
}

/// Bytes of proposals under way at once.
pub(crate) fn room() -> Semaphore {
    Semaphore::new(PROPOSED_BYTES_MAX)
}

impl<S: StateMachine> Clone for Log<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S: StateMachine> fmt::Debug for Log<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("machine", &type_name::<S>()).finish_non_exhaustive()
    }
}

impl<S: StateMachine> Log<S> {
    /// Proposes an entry. Resolves when it is durable on a quorum and applied here, with its place and the response of
    /// the state machine. Without a quorum it does not resolve until there is one, or another leads: set your own
    /// deadline, and take what you drop for unknown.
    ///
    /// Entries that are proposed at the same time share writes and syncs; nothing is promised about their order.
    /// # Errors
    /// Only [`ProposeError::Unknown`] leaves open whether the entry is applied. Every other error means that nothing
    /// happened.
    pub async fn propose(&self, entry: Bytes) -> Result<(Position, S::Response), ProposeError> {
        let inner = &*self.inner;
        let (bytes, bytes_max) = (entry.len(), inner.entry_bytes_max);
        if bytes > bytes_max {
            return Err(ProposeError::TooLarge { bytes, bytes_max });
        }
        let permits = u32::try_from(bytes).expect("below the limit of an entry");
        let overloaded = |_| ProposeError::Overloaded;
        let _turn = inner.proposals.try_acquire().map_err(overloaded)?;
        let _room = inner.proposed_bytes.try_acquire_many(permits).map_err(overloaded)?;
        let mut lease_deadline = None;
        loop {
            if inner.stopped.load(Ordering::Acquire) {
                return Err(ProposeError::Stopped);
            }
            match inner.raft.client_write(Opaque(entry.clone())).await {
                Ok(written) => {
                    let at = position(&written.log_id);
                    return match written.data.take_response::<S>() {
                        Some(response) => Ok((at, response)),
                        None => Err(ProposeError::Unknown {
                            cause: format!("the entry {at} was applied, but its response was lost"),
                        }),
                    };
                }
                // The one error that is given before the entry is appended.
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                    if forward.reason == ForwardReason::LeaseExpired {
                        // A fresh leader has not heard of its followers yet; nothing happened, so it may ask again.
                        let patience = inner.lease_patience;
                        let deadline =
                            *lease_deadline.get_or_insert_with(|| Instant::now() + patience);
                        if Instant::now() < deadline && inner.raft.is_leader() {
                            tokio::time::sleep(patience / 32).await;
                            continue;
                        }
                    }
                    return Err(inner.not_leader(&forward));
                }
                Err(error) => return Err(ProposeError::Unknown { cause: error.to_string() }),
            }
        }
    }

    /// Who leads, from now on. The receiver always holds the latest; it is never behind by more than a moment, and
    /// after [`shutdown`](Self::shutdown) nobody leads here.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// A fence for a linearizable read: confirms with a quorum that this node leads, then waits until everything that
    /// was acknowledged before this call is applied here. Returns the place up to which that is.
    /// # Errors
    /// [`ProposeError::NotLeader`], also when no quorum answers in time, or [`ProposeError::Stopped`].
    pub async fn read_barrier(&self) -> Result<Position, ProposeError> {
        let inner = &*self.inner;
        if inner.stopped.load(Ordering::Acquire) {
            return Err(ProposeError::Stopped);
        }
        match inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(read) => Ok(position(read.log_id())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(inner.not_leader(&forward))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ProposeError::NotLeader { leader: None })
            }
            Err(RaftError::Fatal(_)) => Err(ProposeError::Stopped),
        }
    }

    /// This replica at this moment.
    #[must_use]
    pub fn status(&self) -> LogStatus {
        let inner = &*self.inner;
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let matched = |node: &u64| {
            let matched = metrics.replication.as_ref()?.get(node)?;
            matched.as_ref().map(|log_id| log_id.index)
        };
        let shared = inner.store.shared();
        let running = metrics.running_state.is_ok();
        let answered = |node: u64| {
            if node == metrics.id {
                return metrics.heartbeat.as_ref().map(|_| 0);
            }
            let at = metrics.heartbeat.as_ref()?.get(&node)?.as_ref()?;
            u64::try_from(at.elapsed().as_millis()).ok()
        };
        LogStatus {
            node: metrics.id,
            role: match metrics.state {
                ServerState::Leader if running => Role::Leader,
                ServerState::Follower if running => Role::Follower,
                ServerState::Candidate if running => Role::Candidate,
                ServerState::Learner if running => Role::Learner,
                ServerState::Leader
                | ServerState::Follower
                | ServerState::Candidate
                | ServerState::Learner
                | ServerState::Shutdown => Role::Stopped,
            },
            term: metrics.current_term,
            leader: metrics
                .current_leader
                .filter(|_| running)
                .map(|node| inner.directory.member(node, &metrics)),
            last_index: metrics.last_log_index.unwrap_or(0),
            applied: metrics.last_applied.as_ref().map(position).unwrap_or_default(),
            snapshot_index: metrics.snapshot.map_or(0, |log_id| log_id.index),
            joint: membership.get_joint_config().len() > 1,
            cluster_format: format_of(membership),
            founding: inner.store.founding().number(),
            incarnation: inner.store.founding().incarnation(),
            members: membership
                .nodes()
                .map(|(node, addresses)| MemberStatus {
                    member: addresses.member(*node),
                    voter: voters.contains(node),
                    matched_index: matched(node),
                    answered_ms_ago: answered(*node),
                    incarnation: addresses.incarnation,
                    reads_format: addresses.reads_format.max(1),
                })
                .collect(),
            fsyncs: shared.fsyncs.load(Ordering::Relaxed),
            bytes_written: shared.bytes_written.load(Ordering::Relaxed),
        }
    }

    /// The members, learners too, by the membership as this node knows it. Empty before the cluster is founded, and on a node that
    /// waits to be added.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let nodes = metrics.membership_config.membership().nodes();
        nodes.map(|(node, addresses)| addresses.member(*node)).collect()
    }

    /// The highest format of entries that every member reads, by the membership as this node knows it. A leader must write none
    /// above it: a member that cannot read an entry stops.
    #[must_use]
    pub fn cluster_format(&self) -> u32 {
        format_of(self.inner.raft.metrics().borrow_watched().membership_config.membership())
    }

    /// Takes a snapshot of this node now, and waits until it is on disk.
    /// # Errors
    /// [`ControlError::Stopped`], or [`ControlError::TimedOut`] after 30 s.
    pub async fn snapshot_now(&self) -> Result<(), ControlError> {
        let inner = &*self.inner;
        let wanted = inner.raft.metrics().borrow_watched().last_applied;
        let until = Instant::now() + Duration::from_millis(CONTROL_TIMEOUT_MS);
        loop {
            let held = inner.raft.metrics().borrow_watched().snapshot;
            inner.raft.trigger().snapshot().await.map_err(|_| ControlError::Stopped)?;
            let left = until.saturating_duration_since(Instant::now());
            inner
                .wait_for("the snapshot", left, |now| now.snapshot > held || now.snapshot >= wanted)
                .await?;
            // One that was being made already left this one out, and may hold less.
            if inner.raft.metrics().borrow_watched().snapshot >= wanted {
                return Ok(());
            }
        }
    }

    /// Who would lead best after this node: of the other voters that answered within the last election timeout, the one that
    /// holds most of the log. `None` where nobody did, on a node without others, and on one that does not lead.
    #[must_use]
    pub fn successor(&self) -> Option<u64> {
        let inner = &*self.inner;
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (answered, matched) = (metrics.heartbeat.as_ref()?, metrics.replication.as_ref()?);
        let lately = |node: &u64| {
            let last = answered.get(node).and_then(Option::as_ref);
            last.is_some_and(|last| last.elapsed() <= inner.lease_patience)
        };
        let others = metrics.membership_config.voter_ids().filter(|node| *node != metrics.id);
        let index = |node: &u64| {
            let matched = matched.get(node).and_then(Option::as_ref);
            matched.map(|log_id| log_id.index)
        };
        others.filter(lately).max_by_key(index)
    }

    /// Hands the leadership over to another voter, and waits until somebody else leads, for two election timeouts at most: a
    /// voter that takes it does so at once, and without it the others elect. Proposals meanwhile are told
    /// [`ProposeError::NotLeader`].
    /// # Errors
    /// See [`ControlError`].
    pub async fn hand_over(&self, to: u64) -> Result<(), ControlError> {
        let inner = &*self.inner;
        {
            let metrics = inner.raft.metrics();
            let metrics = metrics.borrow_watched();
            if metrics.current_leader != Some(metrics.id) {
                let leader = metrics.current_leader;
                let leader = leader.map(|node| inner.directory.member(node, &metrics));
                return Err(ControlError::NotLeader { leader });
            }
            if !metrics.membership_config.voter_ids().any(|voter| voter == to) {
                return Err(ControlError::NotVoter { node: to });
            }
            if to == metrics.id {
                return Ok(());
            }
        }
        inner.raft.trigger().transfer_leader(to).await.map_err(|_| ControlError::Stopped)?;
        inner
            .wait_for("the hand-over", 2 * inner.lease_patience, |metrics| {
                metrics.current_leader.is_some_and(|leader| leader != metrics.id)
            })
            .await
    }

    /// Stops taking part, and with the last group of the node: writes what is queued, closes the files and lets go of the
    /// directory and the address. Proposals under way end as unknown. May be called more than once.
    pub async fn shutdown(&self) {
        let inner = &*self.inner;
        let was_stopped = inner.stopped.swap(true, Ordering::AcqRel);
        if let Err(error) = inner.raft.shutdown().await {
            tracing::error!(%error, "the replica had stopped before it was told to");
        }
        let home = &*inner.home;
        if !was_stopped && home.running.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        if home.running.load(Ordering::Acquire) > 0 {
            return;
        }
        home.closing.send_replace(true);
        for mut task in home.tasks.lock().await.drain(..) {
            if timeout(Duration::from_secs(2), &mut task).await.is_err() {
                // A peer that does not let go of its connection. What the task holds, it has let go of once it has ended.
                task.abort();
                let _aborted = task.await;
            }
        }
        inner.store.close().await;
    }
}

/// 1 while nobody is known.
pub(crate) fn format_of(membership: &Membership) -> u32 {
    let read = membership.nodes().map(|(_, addresses)| addresses.reads_format.max(1));
    read.min().unwrap_or(1)
}

impl<S: StateMachine> Inner<S> {
    pub(crate) fn not_leader(&self, forward: &ForwardToLeader<Consensus>) -> ProposeError {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = forward.leader_id.filter(|&node| node != metrics.id);
        ProposeError::NotLeader { leader: leader.map(|node| self.directory.member(node, &metrics)) }
    }

    pub(crate) async fn wait_for(
        &self,
        what: &'static str,
        limit: Duration,
        reached: impl Fn(&RaftMetrics<Consensus>) -> bool,
    ) -> Result<(), ControlError> {
        let mut metrics = self.raft.metrics();
        let waited = timeout(limit, async {
            loop {
                {
                    let now = metrics.borrow_and_update();
                    if now.running_state.is_err() {
                        return Err(ControlError::Stopped);
                    }
                    if reached(&now) {
                        return Ok(());
                    }
                }
                metrics.changed().await.map_err(|_| ControlError::Stopped)?;
            }
        });
        let after_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let late = |_| ControlError::TimedOut { what, after_ms };
        waited.await.map_err(late)?
    }
}

impl Reply {
    fn take_response<S: StateMachine>(self) -> Option<S::Response> {
        self.take()
    }
}
