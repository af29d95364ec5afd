//! Nodes in one process, each with its own sockets, its own log and its own directory.

use std::{future::Future, net::SocketAddr, time::Duration};

use bytes::Bytes;
use holdfast_coordinator::{
    Applied, Config, Coordinator, Freshness, ProposeError, ServeError, WaitUntil,
    config::{
        Bind, Cluster as Members, Limits, LogFiles, Node as NodeConfig, Retention, Security,
        Timeouts,
    },
};
use holdfast_raft::Member;
use holdfast_txn::{
    BranchSpec, Command, Gid, GlobalTransaction, Mode, Options, Participant, Status,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// For anything that must happen; far above what it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    nodes: Vec<Option<Node>>,
    configs: Vec<Config>,
    _dir: TempDir,
}

struct Node {
    coordinator: Coordinator,
    shutdown: CancellationToken,
    served: JoinHandle<Result<(), ServeError>>,
}

/// Twice the default waits before an election: several tests share a few cores, and a follower that is not scheduled for a quarter of a
/// second must not depose a leader that a test watches.
fn patient() -> Timeouts {
    Timeouts { election_min_ms: 500, election_max_ms: 640, ..Timeouts::default() }
}

/// Waits for `future`, but not for ever.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

impl Cluster {
    /// `count` nodes that have found each other and a leader.
    pub(crate) async fn start(count: u64) -> Self {
        Self::with_groups(count, 1).await
    }

    /// As [`Self::start`], with so many Raft groups.
    pub(crate) async fn with_groups(count: u64, groups: u32) -> Self {
        Self::start_some(count, count, groups).await
    }

    /// `count` nodes, of which the first `running` are started: a majority.
    pub(crate) async fn start_some(count: u64, running: u64, groups: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut members = Vec::new();
        let mut binds = Vec::new();
        let mut kept = Vec::new();
        for _ in 0..3 * count {
            kept.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let mut addresses = kept.iter().map(|listener| listener.local_addr().unwrap());
        let mut free = || addresses.next().expect("three for each node");
        for node in 1..=count {
            let bind = Bind { http: free(), grpc: free(), raft: free() };
            members.push(Member {
                node,
                raft: bind.raft.to_string(),
                grpc: bind.grpc.to_string(),
                http: bind.http.to_string(),
            });
            binds.push(bind);
        }
        // All addresses are drawn before the first is given back, so that they differ.
        drop(kept);
        let config = |(index, bind): (usize, &Bind)| Config {
            node: NodeConfig {
                id: index as u64 + 1,
                data_dir: dir.path().join(format!("node-{}", index + 1)),
            },
            cluster: Members {
                name: "test".to_owned(),
                members: members.clone(),
                join: false,
                groups,
            },
            bind: *bind,
            security: Security::DevPlaintext,
            timeouts: patient(),
            limits: Limits::default(),
            log: LogFiles {
                segment_bytes: 4 * 1024 * 1024,
                snapshot_every: 1_000,
                ..LogFiles::default()
            },
            history: Retention::default(),
        };
        let configs: Vec<Config> = binds.iter().enumerate().map(config).collect();
        let mut cluster = Self { nodes: Vec::new(), configs, _dir: dir };
        for config in &cluster.configs {
            let runs = config.node.id <= running;
            let node = if runs { Some(Node::start(config.clone()).await) } else { None };
            cluster.nodes.push(node);
        }
        cluster.leader().await;
        cluster
    }

    /// How a node is configured.
    pub(crate) fn config(&self, node: u64) -> &Config {
        &self.configs[node as usize - 1]
    }

    /// The gRPC addresses, also of nodes that are stopped.
    pub(crate) fn grpc(&self) -> Vec<String> {
        self.configs.iter().map(|config| config.bind.grpc.to_string()).collect()
    }

    pub(crate) fn grpc_address(&self, node: u64) -> SocketAddr {
        self.configs[node as usize - 1].bind.grpc
    }

    fn running(&self) -> impl Iterator<Item = &Coordinator> {
        self.nodes.iter().flatten().map(|node| &node.coordinator)
    }

    pub(crate) fn node(&self, node: u64) -> &Coordinator {
        &self.nodes[node as usize - 1].as_ref().expect("it runs").coordinator
    }

    /// Waits until all running nodes have applied as much of a group, and compares their states: equal log, equal state.
    pub(crate) async fn equal_states(&self, group: u32) {
        within("all nodes have applied as much", async {
            loop {
                let mut states = Vec::new();
                for node in self.running() {
                    states.push(node.state_hash_in(group).await.expect("the group is there"));
                }
                let index = states[0].applied_index;
                if index > 0 && states.iter().all(|state| state.applied_index == index) {
                    assert_eq!(states, vec![states[0]; states.len()], "group {group}");
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// The leader, once there is one that is ready.
    pub(crate) async fn leader(&self) -> Coordinator {
        let leads =
            |node: &&Coordinator| node.leadership().borrow().leads_here && node.is_ready().is_ok();
        until("a leader", || self.running().any(|node| leads(&node))).await;
        self.running().find(leads).expect("it was there a moment ago").clone()
    }

    /// The node that leads each group, once each group has a leader that all running nodes know.
    pub(crate) async fn leaders(&self) -> Vec<u64> {
        let seen = || {
            let leaders = |node: &Coordinator| -> Option<Vec<u64>> {
                let groups = (0..node.groups()).map(|group| node.leadership_in(group));
                let leaders = groups.map(|seen| seen?.borrow().leader.as_ref().map(|one| one.node));
                leaders.collect()
            };
            let seen: Option<Vec<_>> = self.running().map(leaders).collect();
            seen.filter(|seen| seen.windows(2).all(|pair| pair[0] == pair[1]))
        };
        until("each group has a leader", || seen().is_some()).await;
        loop {
            // It may change just now.
            if let Some(mut seen) = seen() {
                return seen.remove(0);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Shuts a node down, as a signal would.
    pub(crate) async fn stop(&mut self, node: u64) {
        let node = self.nodes[node as usize - 1].take().expect("it runs");
        node.shutdown.cancel();
        within("the node stops", node.served).await.unwrap().unwrap();
    }

    /// Starts a node again from its directory.
    pub(crate) async fn restart(&mut self, node: u64) {
        let config = self.configs[node as usize - 1].clone();
        self.nodes[node as usize - 1] = Some(Node::start(config).await);
    }

    /// Has the leader carry out `command`; asks again where nothing happened or it is unknown, as any caller does.
    pub(crate) async fn propose(&self, command: Command) -> Applied {
        within("a proposal", async {
            loop {
                match self.leader().await.propose(command.clone()).await {
                    Ok(applied) => return applied,
                    Err(
                        ProposeError::NotLeader { .. }
                        | ProposeError::Unknown { .. }
                        | ProposeError::Overloaded { .. }
                        | ProposeError::TooNew { .. }
                        | ProposeError::Stopped,
                    ) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await
    }

    pub(crate) async fn begin(&self, begin: &Begin) {
        let applied = self.propose(begin.command()).await;
        applied.result.expect("the machine takes it");
    }

    /// The transaction as the leader has it.
    pub(crate) async fn get(&self, gid: &str) -> GlobalTransaction {
        let gid = Gid::parse(gid).unwrap();
        within("a read", async {
            loop {
                let read = self.leader().await.get(&gid, Freshness::Linearizable).await;
                match read {
                    Ok(found) => return found.as_deref().expect("it was begun").clone(),
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await
    }

    /// Waits, across leaders, for the end, and says what it is.
    pub(crate) async fn end(&self, gid: &str) -> GlobalTransaction {
        self.waited(gid, WaitUntil::End, |transaction| transaction.status.is_final()).await
    }

    /// Waits for a status that may be no end.
    pub(crate) async fn status(&self, gid: &str, status: Status) -> GlobalTransaction {
        self.waited(gid, WaitUntil::End, |transaction| transaction.status == status).await
    }

    async fn waited(
        &self,
        gid: &str,
        until: WaitUntil,
        enough: impl Fn(&GlobalTransaction) -> bool,
    ) -> GlobalTransaction {
        let gid = Gid::parse(gid).unwrap();
        within("the end", async {
            loop {
                let leader = self.leader().await;
                let waited = leader.wait(&gid, until, Duration::from_millis(200)).await;
                match waited.transaction {
                    Some(transaction) if enough(&transaction) => return (*transaction).clone(),
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await
    }
}

impl Node {
    async fn start(config: Config) -> Self {
        let bind = config.bind;
        let coordinator = Coordinator::start(config).await.unwrap();
        let shutdown = CancellationToken::new();
        let (grpc, http) = (listener(bind.grpc).await, listener(bind.http).await);
        let served = tokio::spawn(coordinator.clone().serve_on(grpc, http, shutdown.clone()));
        Self { coordinator, shutdown, served }
    }
}

/// An address that was in use a moment ago may take a moment to be free.
async fn listener(address: SocketAddr) -> TcpListener {
    within("an address", async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await
}

/// A declared transaction with one branch for each participant.
pub(crate) struct Begin {
    pub(crate) gid: &'static str,
    pub(crate) mode: Mode,
    pub(crate) options: Options,
    pub(crate) participants: Vec<&'static str>,
}

impl Begin {
    pub(crate) fn of(gid: &'static str, mode: Mode, participants: &[&'static str]) -> Self {
        let mut options = Options::of(mode);
        options.retry.first_ms = 20;
        options.retry.ceiling_ms = 200;
        options.call_timeout_ms = 1_000;
        Self { gid, mode, options, participants: participants.to_vec() }
    }

    /// From deposit to savings.
    pub(crate) fn tcc(gid: &'static str) -> Self {
        Self::of(gid, Mode::Tcc, &["deposit", "savings"])
    }

    pub(crate) fn saga(gid: &'static str) -> Self {
        Self::of(gid, Mode::Saga, &["deposit", "savings"])
    }

    /// Prepared by the caller at both.
    pub(crate) fn xa(gid: &'static str) -> Self {
        Self::of(gid, Mode::Xa, &["deposit", "savings"])
    }

    pub(crate) fn options(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    pub(crate) fn command(&self) -> Command {
        let branch = |participant: &&str| BranchSpec {
            participant: Participant::parse(participant).unwrap(),
            payload: Bytes::from(format!("for {participant}")),
            after: None,
            pivot: false,
        };
        Command::Begin {
            gid: Gid::parse(self.gid).unwrap(),
            mode: self.mode,
            options: self.options.clone(),
            branches: self.participants.iter().map(branch).collect(),
            enlisted: false,
            content: None,
        }
    }
}
