//! The log as its user sees it: open, propose, watch the leadership, read, look, close.

use std::{
    any::type_name,
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    Instant as _, Raft, RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError},
};
use tokio::{
    sync::{Mutex, Semaphore, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    Config, ControlError, Leadership, LogStatus, MemberStatus, OpenError, Position, ProposeError,
    Role, StateMachine,
    consensus::{Addresses, Consensus, Opaque, Reply, position},
    leadership::{Directory, follow},
    machine::Replica,
    network::{client::Peers, server::Door, wire::TcpListener},
    store::{LogStore, Options, snapshot::SnapshotStore},
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
    inner: Arc<Inner<S>>,
}

struct Inner<S: StateMachine> {
    raft: Raft<Consensus, Replica<S>>,
    store: LogStore,
    directory: Directory,
    leadership: watch::Receiver<Leadership>,
    proposals: Semaphore,
    proposed_bytes: Semaphore,
    entry_bytes_max: usize,
    /// The longest election timeout: how long a fresh leader may wait to hear of its followers.
    lease_patience: Duration,
    stopped: AtomicBool,
    closing: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
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

fn openraft_config(config: &Config) -> openraft::Config {
    openraft::Config {
        cluster_name: config.cluster.clone(),
        heartbeat_interval: config.heartbeat_ms,
        election_timeout_min: config.election_min_ms,
        election_timeout_max: config.election_max_ms,
        max_payload_entries: 1024,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every),
        // A follower within reach of the log that is kept is served from it.
        replication_lag_threshold: config.snapshot_every.saturating_mul(2),
        max_in_snapshot_log_to_keep: config.snapshot_every / 2,
        purge_batch_size: (config.snapshot_every / 16).clamp(1, 1024),
        // A node that was cut off asks before it raises the term, so that its return unseats nobody.
        enable_pre_vote: Some(true),
        // A leader that restarts must be elected again, for `leads_here` rests on that.
        enable_leader_restore: Some(false),
        ..Default::default()
    }
}

/// The log decides who is a member; a list that says otherwise is somebody's mistake, or about to be true.
fn warn_of_other_members<S: StateMachine>(config: &Config, raft: &Raft<Consensus, Replica<S>>) {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let recorded: BTreeSet<u64> =
        metrics.membership_config.membership().nodes().map(|(&node, _)| node).collect();
    let configured: BTreeSet<u64> = config.members.iter().map(|member| member.node).collect();
    if !recorded.is_empty() && recorded != configured {
        tracing::warn!(
            ?recorded,
            ?configured,
            "the log records other members than the configuration lists; the log counts. Correct the list"
        );
    }
}

impl<S: StateMachine> Log<S> {
    /// Recovers what `config.dir` holds, listens for peers, and takes part in the cluster. On the very first start, the
    /// member with the lowest number founds the cluster; the others wait to be told.
    /// # Errors
    /// See [`OpenError`]. Nothing listens and nothing is locked afterwards.
    pub async fn open(config: Config, state: S) -> Result<Self, OpenError> {
        let mistakes = config.mistakes();
        if !mistakes.is_empty() {
            return Err(OpenError::Config(mistakes));
        }
        let raft_config = openraft_config(&config)
            .validate()
            .map_err(|error| OpenError::Config(vec![error.to_string()]))?;
        let bind = config.bind;
        let listener =
            TcpListener::bind(bind).await.map_err(|source| OpenError::Bind { bind, source })?;

        let options = Options::from(&config);
        let opened = tokio::task::spawn_blocking(move || {
            let store = LogStore::open(&options)?;
            let snapshots = SnapshotStore::open(&options.dir, &options.cluster);
            Ok::<_, OpenError>((store, snapshots))
        })
        .await;
        let (store, snapshots) = opened.map_err(|panic| OpenError::recover(&config, &panic))??;
        let snapshots = match snapshots {
            Ok(snapshots) => snapshots,
            Err(error) => {
                store.close().await;
                return Err(error.into());
            }
        };
        let replica = Replica::new(state, snapshots.clone());
        let started = Raft::new(
            config.node,
            Arc::new(raft_config),
            Peers::new(&config, store.founding().clone()),
            store.clone(),
            replica,
        )
        .await;
        let raft = match started {
            Ok(raft) => raft,
            Err(fatal) => {
                store.close().await;
                return Err(OpenError::recover(&config, &fatal));
            }
        };
        warn_of_other_members(&config, &raft);
        let log = Self::assemble(&config, raft, store, snapshots, listener);
        if let Err(cause) = log.found_cluster(&config).await {
            log.shutdown().await;
            return Err(OpenError::recover(&config, &cause));
        }
        Ok(log)
    }

    fn assemble(
        config: &Config,
        raft: Raft<Consensus, Replica<S>>,
        store: LogStore,
        snapshots: SnapshotStore,
        listener: TcpListener,
    ) -> Self {
        let (closing, closed) = watch::channel(false);
        let election_max = Duration::from_millis(config.election_max_ms);
        let door = Door::new(config, raft.clone(), snapshots, store.founding().clone(), closed);
        let patience = election_max.max(Duration::from_millis(500));
        let serve = tokio::spawn(async move {
            if let Err(error) = door.serve(listener, patience).await {
                tracing::error!(%error, "stopped listening for peers");
            }
        });
        let directory = Directory::new(config.members.clone());
        let (sender, leadership) = watch::channel(Leadership::default());
        let watch = follow(raft.metrics(), directory.clone(), 2 * election_max, sender);
        Self {
            inner: Arc::new(Inner {
                raft,
                store,
                directory,
                leadership,
                proposals: Semaphore::new(PROPOSALS_MAX),
                proposed_bytes: Semaphore::new(PROPOSED_BYTES_MAX),
                entry_bytes_max: config.entry_bytes_max(),
                lease_patience: election_max,
                stopped: AtomicBool::new(false),
                closing,
                tasks: Mutex::new(vec![serve, tokio::spawn(watch)]),
            }),
        }
    }

    /// One node founds the cluster, so that nodes with different lists of members cannot found different ones.
    async fn found_cluster(&self, config: &Config) -> Result<(), String> {
        let founder = config.members.iter().map(|member| member.node).min();
        if founder != Some(config.node) {
            return Ok(());
        }
        if self.inner.raft.is_initialized().await.map_err(|fatal| fatal.to_string())? {
            return Ok(());
        }
        tracing::info!(cluster = config.cluster, node = config.node, "founding the cluster");
        // Drawn before the first entry is written, so that no log is ever without it.
        let drawn = RandomState::new().hash_one(std::process::id()).max(1);
        let founding = self.inner.store.founding().clone();
        tokio::task::spawn_blocking(move || founding.keep(drawn))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        let members: BTreeMap<u64, Addresses> =
            config.members.iter().map(|member| (member.node, Addresses::of(member))).collect();
        match self.inner.raft.initialize(members).await {
            Ok(()) => Ok(()),
            // Another founder's entries came first.
            Err(RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

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
            members: membership
                .nodes()
                .map(|(node, _)| MemberStatus {
                    member: inner.directory.member(*node, &metrics),
                    voter: voters.contains(node),
                    matched_index: matched(node),
                })
                .collect(),
            fsyncs: shared.fsyncs.load(Ordering::Relaxed),
            bytes_written: shared.bytes_written.load(Ordering::Relaxed),
        }
    }

    /// Takes a snapshot of this node now, and waits until it is on disk.
    /// # Errors
    /// [`ControlError::Stopped`], or [`ControlError::TimedOut`] after 30 s.
    pub async fn snapshot_now(&self) -> Result<(), ControlError> {
        let inner = &*self.inner;
        let wanted = inner.raft.metrics().borrow_watched().last_applied.map(|log_id| log_id.index);
        inner.raft.trigger().snapshot().await.map_err(|_| ControlError::Stopped)?;
        inner
            .wait_for("the snapshot", Duration::from_millis(CONTROL_TIMEOUT_MS), |metrics| {
                metrics.snapshot.map(|log_id| log_id.index) >= wanted
            })
            .await
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

    /// Stops taking part, writes what is queued, closes the files and lets go of the directory and the address.
    /// Proposals under way end as unknown. May be called more than once.
    pub async fn shutdown(&self) {
        let inner = &*self.inner;
        inner.stopped.store(true, Ordering::Release);
        if let Err(error) = inner.raft.shutdown().await {
            tracing::error!(%error, "the replica had stopped before it was told to");
        }
        inner.closing.send_replace(true);
        for task in inner.tasks.lock().await.drain(..) {
            let abort = task.abort_handle();
            if timeout(Duration::from_secs(2), task).await.is_err() {
                // A peer that does not let go of its connection.
                abort.abort();
            }
        }
        inner.store.close().await;
    }
}

impl<S: StateMachine> Inner<S> {
    fn not_leader(&self, forward: &ForwardToLeader<Consensus>) -> ProposeError {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = forward.leader_id.filter(|&node| node != metrics.id);
        ProposeError::NotLeader { leader: leader.map(|node| self.directory.member(node, &metrics)) }
    }

    async fn wait_for(
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
