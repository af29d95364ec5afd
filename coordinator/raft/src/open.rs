//! Opening the replicas of a node: recover, listen, take part; and keep the membership true while it runs.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::{Duration, Instant},
};

use openraft::{Raft, SnapshotPolicy, async_runtime::WatchReceiver as _};
use tokio::sync::{Mutex, watch};

use crate::{
    Config, Leadership, Log, OpenError, StateMachine,
    consensus::{Consensus, LogId},
    enroll,
    heartbeat::{Group, Heard, beat},
    leadership::{Directory, follow},
    log::{Home, Inner, room, turns},
    machine::Replica,
    network::{
        client::Peers,
        server::{Door, Seat},
        wire::TcpListener,
    },
    store::{LogStore, Options, snapshot::SnapshotStore, writer::RealDisk},
};

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
        // The compactor alone says what goes: openraft must not be told of less than was asked for before, and does not look itself.
        max_in_snapshot_log_to_keep: u64::MAX,
        // A node that was cut off asks before it raises the term, so that its return unseats nobody.
        enable_pre_vote: Some(true),
        // A leader that restarts must be elected again, for `leads_here` rests on that.
        enable_leader_restore: Some(false),
        // One timer sends those of all groups.
        enable_heartbeat: false,
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
    if !recorded.is_empty() && recorded != configured && !config.join {
        tracing::warn!(
            ?recorded,
            ?configured,
            "the log records other members than the configuration lists; the log counts. Correct the list"
        );
    }
}

impl<S: StateMachine> Log<S> {
    /// Opens the replica of a node that has one group; see [`open_groups`](Self::open_groups).
    /// # Errors
    /// See [`OpenError`]. Nothing listens and nothing is locked afterwards.
    pub async fn open(config: Config, state: S) -> Result<Self, OpenError> {
        let mut logs = Self::open_groups(config, vec![state]).await?;
        Ok(logs.remove(0))
    }

    /// Recovers what `config.dir` holds, listens for peers, and takes part in the cluster with one replica a group, in the order
    /// of `states`, of which there must be `config.groups`. They share the directory, its writer and its syncs, and the
    /// address.
    ///
    /// On the very first start, the member with the lowest number founds the cluster as soon as a majority of the configured
    /// members is there; the others wait to be told, and so does a node that joins.
    /// # Errors
    /// See [`OpenError`]. Nothing listens and nothing is locked afterwards.
    pub async fn open_groups(config: Config, states: Vec<S>) -> Result<Vec<Self>, OpenError> {
        let mut mistakes = config.mistakes();
        if states.len() != config.groups as usize {
            mistakes.push(format!("groups = {}, and {} states", config.groups, states.len()));
        }
        if !mistakes.is_empty() {
            return Err(OpenError::Config(mistakes));
        }
        let raft_config = openraft_config(&config)
            .validate()
            .map_err(|error| OpenError::Config(vec![error.to_string()]))?;
        let bind = config.bind;
        let listener =
            TcpListener::bind(bind).await.map_err(|source| OpenError::Bind { bind, source })?;
        let (stores, snapshots) = open_files(&config).await?;
        let shared = Peers::new(&config, stores[0].founding().clone());
        let peers: Vec<Peers> = (0..config.groups).map(|group| shared.of_group(group)).collect();
        let rafts = match start(&config, Arc::new(raft_config), &peers, &stores, &snapshots, states)
            .await
        {
            Ok(rafts) => rafts,
            Err(cause) => {
                stores[0].close().await;
                return Err(OpenError::recover(&config, &cause));
            }
        };
        warn_of_other_members(&config, &rafts[0]);
        let logs = assemble(&config, rafts, &peers, stores, snapshots, listener);
        if let Err(cause) = enroll::begin(&config, &logs).await {
            for log in &logs {
                log.shutdown().await;
            }
            return Err(OpenError::recover(&config, &cause));
        }
        Ok(logs)
    }
}

/// Recovers what is on disk, for every group.
async fn open_files(config: &Config) -> Result<(Vec<LogStore>, Vec<SnapshotStore>), OpenError> {
    let options = Options::from(config);
    let opened = tokio::task::spawn_blocking(move || {
        let stores = LogStore::open_all(RealDisk, &options)?;
        let snapshots = (0..options.groups)
            .map(|group| SnapshotStore::open(&options.dir, &options.cluster, group))
            .collect::<Result<Vec<_>, _>>();
        Ok::<_, OpenError>((stores, snapshots))
    })
    .await;
    let (stores, snapshots) = opened.map_err(|panic| OpenError::recover(config, &panic))??;
    match snapshots {
        Ok(snapshots) => Ok((stores, snapshots)),
        Err(error) => {
            stores[0].close().await;
            Err(error.into())
        }
    }
}

type Rafts<S> = Vec<Raft<Consensus, Replica<S>>>;

async fn start<S: StateMachine>(
    config: &Config,
    raft_config: Arc<openraft::Config>,
    peers: &[Peers],
    stores: &[LogStore],
    snapshots: &[SnapshotStore],
    states: Vec<S>,
) -> Result<Rafts<S>, String> {
    let mut rafts = Vec::new();
    for (((store, snapshots), state), peers) in stores.iter().zip(snapshots).zip(states).zip(peers)
    {
        let replica = Replica::new(state, snapshots.clone());
        let peers = peers.clone();
        let raft_config = Arc::clone(&raft_config);
        let begun = Instant::now();
        match Raft::new(config.node, raft_config, peers, store.clone(), replica).await {
            Ok(raft) => {
                tell_state(rafts.len(), &raft, begun.elapsed()).await;
                rafts.push(raft);
            }
            Err(fatal) => {
                for raft in rafts {
                    // How those ended does not matter any more.
                    drop(raft.shutdown().await);
                }
                return Err(fatal.to_string());
            }
        }
    }
    Ok(rafts)
}

/// How a group came to its state: the snapshot, and what was carried out again behind it.
async fn tell_state<S: StateMachine>(
    group: usize,
    raft: &Raft<Consensus, Replica<S>>,
    took: Duration,
) {
    let read = raft.with_raft_state(|state| {
        let index = |position: Option<&LogId>| position.map_or(0, |position| position.index);
        // What is known to be committed is carried out before the group takes part.
        (index(state.snapshot_meta.last_log_id.as_ref()), index(state.local_committed()))
    });
    // One that is gone already says so elsewhere.
    if let Ok((snapshot, applied)) = read.await {
        let (entries, took_ms) = (applied.saturating_sub(snapshot), took.as_millis());
        tracing::info!(group, snapshot, applied, entries, took_ms, "the state is there");
    }
}

fn assemble<S: StateMachine>(
    config: &Config,
    rafts: Rafts<S>,
    peers: &[Peers],
    stores: Vec<LogStore>,
    snapshots: Vec<SnapshotStore>,
    listener: TcpListener,
) -> Vec<Log<S>> {
    let (closing, closed) = watch::channel(false);
    let election_max = Duration::from_millis(config.election_max_ms);
    let mut seats = Vec::new();
    let mut groups = Vec::new();
    for (raft, snapshots) in rafts.iter().zip(&snapshots) {
        let (heard, sent) = (Heard::default(), Arc::default());
        groups.push(Group { raft: raft.clone(), heard: heard.clone(), sent });
        seats.push(Seat { raft: raft.clone(), snapshots: snapshots.clone(), heard });
    }
    let founding = stores[0].founding().clone();
    let door = Door::new(config, seats, peers[0].clone(), founding, closed.clone());
    let patience = election_max.max(Duration::from_millis(500));
    let serve = tokio::spawn(async move {
        if let Err(error) = door.serve(listener, patience).await {
            tracing::error!(%error, "stopped listening for peers");
        }
    });
    let directory = Directory::new(config.members.clone());
    let mut tasks = vec![serve];
    let mut followed = Vec::new();
    for (group, peers) in groups.iter().zip(peers) {
        let (sender, leadership) = watch::channel(Leadership::default());
        let watch = follow(
            group.raft.metrics(),
            group.raft.server_metrics(),
            directory.clone(),
            peers.clone(),
            2 * election_max,
            Arc::clone(&group.sent),
            sender,
        );
        tasks.push(tokio::spawn(watch));
        followed.push((leadership, peers.clone()));
    }
    let every = Duration::from_millis(config.heartbeat_ms);
    tasks.push(tokio::spawn(beat(groups, every, closed.clone())));
    let home = Arc::new(Home {
        running: AtomicUsize::new(rafts.len()),
        closing,
        tasks: Mutex::new(tasks),
    });
    let mut logs = Vec::new();
    for (((raft, store), snapshots), (leadership, peers)) in
        rafts.into_iter().zip(stores).zip(snapshots).zip(followed)
    {
        let inner = Inner {
            raft,
            store,
            snapshots,
            peers,
            directory: directory.clone(),
            leadership,
            proposals: turns(),
            proposed_bytes: room(),
            entry_bytes_max: config.entry_bytes_max(),
            lease_patience: election_max,
            groups: config.groups,
            changing: Mutex::new(()),
            stopped: AtomicBool::new(false),
            home: Arc::clone(&home),
        };
        logs.push(Log { inner: Arc::new(inner) });
    }
    logs
}
