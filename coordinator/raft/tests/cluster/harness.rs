//! Clusters on loopback, and a state machine that remembers all it was told.

use std::{
    future::Future,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_raft::{
    Capture, ChangeError, Config, Log, LogStatus, Member, OpenError, Position, ProposeError,
    StateMachine,
};
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What a state machine was told, to be looked at from outside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    entries: Arc<Mutex<Vec<Vec<u8>>>>,
    positions: Arc<Mutex<Vec<Position>>>,
    restored: Arc<AtomicU64>,
    builds: Arc<(Mutex<Builds>, Condvar)>,
}

/// Snapshots that are being written down.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Builds {
    /// Whether they stand still.
    held: bool,
    pub(crate) begun: u32,
    pub(crate) running: u32,
    /// At once, at most.
    pub(crate) most: u32,
}

impl Seen {
    pub(crate) fn entries(&self) -> Vec<Vec<u8>> {
        self.entries.lock().unwrap().clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.lock().unwrap().len()
    }

    pub(crate) fn positions(&self) -> Vec<Position> {
        self.positions.lock().unwrap().clone()
    }

    /// From now on snapshots stand still while they are written down, or go on.
    pub(crate) fn hold_builds(&self, held: bool) {
        self.builds.0.lock().unwrap().held = held;
        self.builds.1.notify_all();
    }

    pub(crate) fn builds(&self) -> Builds {
        *self.builds.0.lock().unwrap()
    }

    /// Writes down, for as long as it is held up.
    fn build(&self, snapshot: Vec<u8>) -> Vec<u8> {
        let (builds, changed) = &*self.builds;
        let mut now = builds.lock().unwrap();
        now.begun += 1;
        now.running += 1;
        now.most = now.most.max(now.running);
        let mut now = changed.wait_while(now, |now| now.held).unwrap();
        now.running -= 1;
        snapshot
    }

    /// How often the state was restored from a snapshot.
    pub(crate) fn restored(&self) -> u64 {
        self.restored.load(Ordering::SeqCst)
    }
}

/// A list of all entries. Applying one answers how many there are now.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) seen: Seen,
    pub(crate) apply_takes: Duration,
}

impl StateMachine for Journal {
    type Response = usize;

    fn apply(&mut self, position: Position, entry: &Bytes) -> usize {
        if !self.apply_takes.is_zero() {
            std::thread::sleep(self.apply_takes);
        }
        let mut positions = self.seen.positions.lock().unwrap();
        assert!(positions.last().is_none_or(|last| last.index < position.index));
        positions.push(position);
        let mut entries = self.seen.entries.lock().unwrap();
        entries.push(entry.to_vec());
        entries.len()
    }

    fn snapshot(&self) -> Capture {
        let mut snapshot = Vec::new();
        for entry in self.seen.entries.lock().unwrap().iter() {
            snapshot.extend_from_slice(&u32::try_from(entry.len()).unwrap().to_le_bytes());
            snapshot.extend_from_slice(entry);
        }
        let seen = self.seen.clone();
        Box::new(move |_| seen.build(snapshot))
    }

    fn restore(&mut self, mut snapshot: &[u8]) -> Result<(), String> {
        let mut entries = Vec::new();
        while let Some((length, rest)) = snapshot.split_first_chunk::<4>() {
            let (entry, rest) = rest
                .split_at_checked(u32::from_le_bytes(*length) as usize)
                .ok_or("the snapshot ends within an entry")?;
            entries.push(entry.to_vec());
            snapshot = rest;
        }
        *self.seen.entries.lock().unwrap() = entries;
        self.seen.restored.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// One node, running or not.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) log: Option<Log<Journal>>,
    pub(crate) seen: Seen,
    apply_takes: Duration,
    _dir: Option<TempDir>,
}

impl Node {
    pub(crate) async fn start(&mut self) {
        assert!(self.log.is_none(), "node {} runs", self.config.node);
        self.seen = Seen::default();
        self.log = Some(open(&self.config, &self.seen, self.apply_takes).await.unwrap());
    }

    pub(crate) async fn stop(&mut self) {
        self.log.take().expect("it runs").shutdown().await;
    }

    pub(crate) fn log(&self) -> &Log<Journal> {
        self.log.as_ref().expect("it runs")
    }

    pub(crate) fn status(&self) -> LogStatus {
        self.log().status()
    }

    pub(crate) fn leads(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.leadership().borrow().leads_here)
    }
}

pub(crate) async fn open(
    config: &Config,
    seen: &Seen,
    apply_takes: Duration,
) -> Result<Log<Journal>, OpenError> {
    Log::open(config.clone(), Journal { seen: seen.clone(), apply_takes }).await
}

/// A change of the members.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Add(u64, String),
    Promote(u64),
    Remove(u64),
}

/// Three nodes, or another number.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    network: [u8; 2],
}

/// Loopback has sixteen million addresses, so that no test needs to guess a free port.
fn address(network: [u8; 2], node: u64) -> SocketAddr {
    SocketAddr::from(([127, network[0], network[1], u8::try_from(node).unwrap()], 17_402))
}

fn network() -> [u8; 2] {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    static PROCESS: OnceLock<u8> = OnceLock::new();
    let process = *PROCESS.get_or_init(|| u8::try_from(std::process::id() % 250).unwrap() + 2);
    [process, NEXT.fetch_add(1, Ordering::Relaxed)]
}

pub(crate) fn config(dir: &Path, network: [u8; 2], node: u64, nodes: u64) -> Config {
    let members = (1..=nodes).map(|node| Member {
        node,
        raft: address(network, node).to_string(),
        grpc: format!("grpc-of-{node}:1"),
        http: format!("http-of-{node}:1"),
    });
    Config {
        node,
        cluster: "bank".to_owned(),
        credentials: None,
        dir: dir.to_owned(),
        bind: address(network, node),
        members: members.collect(),
        join: false,
        groups: 1,
        reads_format: 1,
        heartbeat_ms: 60,
        // Twice the default: a follower that is not scheduled for a quarter of a second must not depose a leader that a test watches.
        election_min_ms: 500,
        election_max_ms: 640,
        segment_bytes: 256 * 1024,
        snapshot_every: 100_000,
        snapshot_bytes: 1024 * 1024 * 1024,
    }
}

impl Cluster {
    pub(crate) async fn start(count: u64, adjust: impl Fn(&mut Config)) -> Self {
        Self::start_slow(count, Duration::ZERO, adjust).await
    }

    pub(crate) async fn start_slow(
        count: u64,
        apply_takes: Duration,
        adjust: impl Fn(&mut Config),
    ) -> Self {
        let network = network();
        let mut nodes = Vec::new();
        for node in 1..=count {
            let dir = tempfile::tempdir().unwrap();
            let mut config = config(dir.path(), network, node, count);
            adjust(&mut config);
            let seen = Seen::default();
            nodes.push(Node { config, log: None, seen, apply_takes, _dir: Some(dir) });
        }
        for node in &mut nodes {
            node.start().await;
        }
        Self { nodes, network }
    }

    /// A further node, with an empty directory and running, that waits to be added; returns its place.
    pub(crate) async fn newcomer(&mut self, adjust: impl Fn(&mut Config)) -> usize {
        let number = self.nodes.len() as u64 + 1;
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), self.network, number, number);
        config.members.retain(|member| member.node == number);
        config.join = true;
        adjust(&mut config);
        let seen = Seen::default();
        let mut node =
            Node { config, log: None, seen, apply_takes: Duration::ZERO, _dir: Some(dir) };
        node.start().await;
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Asks the leader, wherever it is, for a change; again while the answer is that it is not there, or busy.
    pub(crate) async fn change(&self, change: Change) -> Result<(), ChangeError> {
        let begun = Instant::now();
        loop {
            let leader = self.leader().await;
            let log = self.nodes[leader].log();
            let answer = match &change {
                Change::Add(node, raft) => log.add_learner(*node, raft).await.map(drop),
                Change::Promote(node) => log.promote(*node).await,
                Change::Remove(node) => log.remove(*node).await,
            };
            match answer {
                Err(
                    ChangeError::NotLeader { .. }
                    | ChangeError::Refused { code: "HF2503" | "HF2506" | "HF2508", .. },
                ) if begun.elapsed() < PATIENCE && !matches!(change, Change::Add(..)) => {}
                answer => return answer,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The numbers of those who vote, as the node at that place knows them.
    pub(crate) fn voters(&self, at: usize) -> Vec<u64> {
        let members = self.nodes[at].status().members;
        members.into_iter().filter(|one| one.voter).map(|one| one.member.node).collect()
    }

    /// Empties the directory of a node that does not run.
    pub(crate) fn wipe(&self, at: usize) {
        let dir = &self.nodes[at].config.dir;
        std::fs::remove_dir_all(dir).unwrap();
        std::fs::create_dir(dir).unwrap();
    }

    /// Waits until somebody leads; returns who, as an index into `nodes`.
    pub(crate) async fn leader(&self) -> usize {
        eventually("somebody leads", || self.nodes.iter().position(Node::leads)).await
    }

    /// Proposes until it is applied, wherever the leader is; nothing is proposed twice that may have been appended.
    pub(crate) async fn propose(&self, entry: impl Into<Vec<u8>>) -> (Position, usize) {
        let entry = Bytes::from(entry.into());
        let begun = Instant::now();
        loop {
            let leader = self.leader().await;
            match self.nodes[leader].log().propose(entry.clone()).await {
                Ok(applied) => return applied,
                Err(ProposeError::NotLeader { .. } | ProposeError::Stopped) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(begun.elapsed() < PATIENCE, "nobody takes an entry");
        }
    }

    /// Waits until every running node has applied so many entries; they must be the same.
    pub(crate) async fn agree_on(&self, count: usize) -> Vec<Vec<u8>> {
        let running = || self.nodes.iter().filter(|node| node.log.is_some());
        eventually("every node applies everything", || {
            running().all(|node| node.seen.len() >= count).then_some(())
        })
        .await;
        let all: Vec<_> = running().map(|node| node.seen.entries()).collect();
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "the nodes differ");
        assert_eq!(all[0].len(), count);
        all.into_iter().next().unwrap()
    }

    pub(crate) async fn stop(&mut self) {
        for node in &mut self.nodes {
            if node.log.is_some() {
                node.stop().await;
            }
        }
    }
}

/// Waits for a condition, looking often, with a bound.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a future, with a bound.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}
