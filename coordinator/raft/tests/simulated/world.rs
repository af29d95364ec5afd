//! One run: a cluster in a simulated network, proposals, faults drawn from the seed; then everything heals, must converge and serve.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use holdfast_raft::{Capture, Config, Log, Member, Position, StateMachine, seed_disks};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::oracle::{Found, Oracle};

const PORT: u16 = 17_402;
/// Simulated time with faults.
const FAULTS: Duration = Duration::from_secs(12);
/// Simulated time in which everything must converge and serve.
const HEALED: Duration = Duration::from_secs(60);
/// Between two proposals of a node.
const PROPOSE_EVERY: Duration = Duration::from_millis(25);
/// A proposal without an answer for so long is given up: its outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(2);

/// What came of a seed.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) found: Vec<Found>,
    pub(crate) acknowledged: u64,
    pub(crate) term: u64,
    pub(crate) happened: Vec<&'static str>,
    /// What was done to the cluster, which the seed alone decides.
    pub(crate) plan: Vec<(u64, Blow)>,
    pub(crate) trace: Vec<(u64, Vec<u8>)>,
}

/// Something that is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    Crash(usize),
    CrashAll,
    Bounce(usize),
    Partition(usize, usize),
    OneWay(usize, usize),
    Repair(usize, usize),
}

/// What all nodes tell, and what they are told.
#[derive(Debug, Default)]
struct Shared {
    oracle: Oracle,
    /// What each node's state machine holds.
    states: Vec<Vec<Vec<u8>>>,
    healed: bool,
    served: bool,
    restored: u64,
    next: u64,
}

type Seen = Arc<Mutex<Shared>>;

/// A list of all entries.
#[derive(Debug)]
struct Journal {
    node: usize,
    seen: Seen,
}

impl StateMachine for Journal {
    type Response = ();

    fn apply(&mut self, position: Position, entry: &Bytes) {
        let mut seen = self.seen.lock().expect("no holder panics");
        seen.oracle.applied(self.node, position.index, position.term, entry);
        seen.states[self.node].push(entry.to_vec());
    }

    fn snapshot(&self) -> Capture {
        let seen = self.seen.lock().expect("no holder panics");
        let mut snapshot = Vec::new();
        for entry in &seen.states[self.node] {
            snapshot.extend_from_slice(&(entry.len() as u32).to_le_bytes());
            snapshot.extend_from_slice(entry);
        }
        Box::new(move || snapshot)
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
        let mut seen = self.seen.lock().expect("no holder panics");
        seen.states[self.node] = entries;
        seen.restored += 1;
        Ok(())
    }
}

fn name(node: usize) -> String {
    format!("node-{}", node + 1)
}

fn config(node: usize, nodes: usize, dir: PathBuf, snapshot_every: u64) -> Config {
    let members = (0..nodes).map(|node| Member {
        node: node as u64 + 1,
        raft: format!("{}:{PORT}", name(node)),
        grpc: format!("{}:1", name(node)),
        http: format!("{}:2", name(node)),
    });
    Config {
        node: node as u64 + 1,
        cluster: "simulated".to_owned(),
        dir,
        bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT),
        members: members.collect(),
        credentials: None,
        heartbeat_ms: 60,
        election_min_ms: 300,
        election_max_ms: 600,
        segment_bytes: 256 * 1024,
        join: false,
        groups: 1,
        reads_format: 1,
        snapshot_every,
    }
}

/// The life of a node: open, propose, watch, until the host is crashed.
async fn live(config: Config, node: usize, seen: Seen) -> turmoil::Result {
    {
        let mut seen = seen.lock().expect("no holder panics");
        seen.oracle.starts(node);
        seen.states[node].clear();
    }
    let log = loop {
        let journal = Journal { node, seen: Arc::clone(&seen) };
        match Log::open(config.clone(), journal).await {
            Ok(log) => break log,
            // The directory of a life before may still be locked by a thread that ends.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    loop {
        tokio::time::sleep(PROPOSE_EVERY).await;
        let status = log.status();
        let leadership = log.leadership().borrow().clone();
        if !leadership.leads_here {
            continue;
        }
        let entry = {
            let mut seen = seen.lock().expect("no holder panics");
            seen.oracle.leads(status.node, leadership.term);
            seen.next += 1;
            Bytes::from(format!("{}-{}", status.node, seen.next))
        };
        let (log, seen) = (log.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            if let Ok(Ok((position, ()))) =
                tokio::time::timeout(PATIENCE, log.propose(entry.clone())).await
            {
                let mut seen = seen.lock().expect("no holder panics");
                seen.oracle.acknowledged(position.index, &entry);
                seen.served |= seen.healed;
            }
        });
    }
}

/// What the seed does, at which simulated ms.
fn plan(chance: &mut StdRng, nodes: usize) -> Vec<(u64, Blow)> {
    let end = FAULTS.as_millis() as u64;
    let mut plan = Vec::new();
    for _ in 0..chance.random_range(3..9) {
        let at = chance.random_range(1_500..end - 2_500);
        let until = at + chance.random_range(200..2_400);
        let (one, other) = (chance.random_range(0..nodes), chance.random_range(1..nodes));
        let other = (one + other) % nodes;
        match chance.random_range(0..10) {
            0..5 => plan.extend([(at, Blow::Crash(one)), (until, Blow::Bounce(one))]),
            5..7 => {
                plan.extend([(at, Blow::Partition(one, other)), (until, Blow::Repair(one, other))])
            }
            7..9 => {
                plan.extend([(at, Blow::OneWay(one, other)), (until, Blow::Repair(one, other))])
            }
            _ => {
                plan.push((at, Blow::CrashAll));
                plan.extend((0..nodes).map(|node| (until, Blow::Bounce(node))));
            }
        }
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

/// In memory where there is a place for it: what a crash loses is decided here, so the syncs of a real disk would only cost time.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().expect("a folder"))
}

/// Runs a seed.
pub(crate) fn run(seed: u64) -> Run {
    let mut chance = StdRng::seed_from_u64(seed);
    let nodes = if seed % 4 == 3 { 5 } else { 3 };
    let snapshot_every = if seed % 2 == 0 { 60 } else { 100_000 };
    let plan = plan(&mut chance, nodes);
    seed_disks(chance.random());
    let folder = folder();
    let seen: Seen =
        Arc::new(Mutex::new(Shared { states: vec![Vec::new(); nodes], ..Shared::default() }));
    let mut sim = turmoil::Builder::new()
        .rng_seed(chance.random())
        .simulation_duration(FAULTS + HEALED + Duration::from_secs(1))
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(chance.random_range(2..25)))
        .tcp_capacity(4_096)
        .build();
    let configs: Vec<Config> = (0..nodes)
        .map(|node| config(node, nodes, folder.path().join(name(node)), snapshot_every))
        .collect();
    for (node, config) in configs.into_iter().enumerate() {
        let seen = Arc::clone(&seen);
        sim.host(name(node), move || live(config.clone(), node, Arc::clone(&seen)));
    }
    let happened = Rc::new(RefCell::new(Vec::new()));
    play(&mut sim, &plan, nodes, &happened);
    let converged = heal(&mut sim, nodes, &seen);
    drop(sim);
    let mut seen = std::mem::take(&mut *seen.lock().expect("no holder panics"));
    if seen.restored > 0 {
        happened.borrow_mut().push("snapshot");
    }
    if nodes == 5 {
        happened.borrow_mut().push("five nodes");
    }
    let (acknowledged, term, trace) =
        (seen.oracle.count(), seen.oracle.term(), seen.oracle.trace());
    let states = if converged { std::mem::take(&mut seen.states) } else { Vec::new() };
    let mut found = seen.oracle.judge(&states);
    if !converged {
        let lengths: Vec<usize> = seen.states.iter().map(Vec::len).collect();
        let detail = format!("served {}, {lengths:?} entries", seen.served);
        found.push(Found { promise: "I17 converges and serves", detail });
    }
    Run { found, acknowledged, term, happened: happened.take(), plan, trace }
}

fn play(
    sim: &mut turmoil::Sim<'_>,
    plan: &[(u64, Blow)],
    nodes: usize,
    happened: &RefCell<Vec<&'static str>>,
) {
    let mut blows = plan.iter().peekable();
    let mut down = vec![false; nodes];
    while sim.elapsed() < FAULTS {
        let now = sim.elapsed().as_millis() as u64;
        while let Some((_, blow)) = blows.next_if(|(at, _)| *at <= now) {
            let happens = match *blow {
                Blow::Crash(node) => {
                    sim.crash(name(node));
                    down[node] = true;
                    "crash"
                }
                Blow::CrashAll => {
                    for node in 0..nodes {
                        sim.crash(name(node));
                        down[node] = true;
                    }
                    "all crash"
                }
                Blow::Bounce(node) => {
                    if std::mem::take(&mut down[node]) {
                        sim.bounce(name(node));
                    }
                    "bounce"
                }
                Blow::Partition(one, other) => {
                    sim.partition(name(one), name(other));
                    "partition"
                }
                Blow::OneWay(one, other) => {
                    sim.partition_oneway(name(one), name(other));
                    "one-way"
                }
                Blow::Repair(one, other) => {
                    sim.repair(name(one), name(other));
                    "repair"
                }
            };
            happened.borrow_mut().push(happens);
        }
        sim.step().expect("a host does not fail");
    }
    for node in 0..nodes {
        if down[node] {
            sim.bounce(name(node));
        }
        for other in node + 1..nodes {
            sim.repair(name(node), name(other));
        }
    }
}

/// Steps until all nodes hold the same and something new was acknowledged; false when time is over.
fn heal(sim: &mut turmoil::Sim<'_>, nodes: usize, seen: &Seen) -> bool {
    seen.lock().expect("no holder panics").healed = true;
    while sim.elapsed() < FAULTS + HEALED {
        for _ in 0..20 {
            sim.step().expect("a host does not fail");
        }
        let seen = seen.lock().expect("no holder panics");
        let same = (1..nodes).all(|node| seen.states[node] == seen.states[0]);
        if seen.served && same && !seen.states[0].is_empty() {
            return true;
        }
    }
    false
}
