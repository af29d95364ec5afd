//! One run: a cluster in a simulated network, proposals, faults and changes of the membership drawn from the seed; then everything
//! heals, must converge and serve.

use std::{
    cell::RefCell,
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use holdfast_raft::{
    Capture, Config, Log, Member, Planted, Position, StateMachine, plant, seed_disks,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    members::{Wish, pursue, wishes},
    oracle::{Found, Oracle},
};

pub(crate) const PORT: u16 = 17_402;
/// Simulated time with faults.
const FAULTS: Duration = Duration::from_secs(12);
/// No disk is lost before the cluster is founded.
const LOST_FROM: Duration = Duration::from_secs(3);
/// Simulated time in which everything must converge and serve.
const HEALED: Duration = Duration::from_secs(60);
/// Between two proposals of a node.
const PROPOSE_EVERY: Duration = Duration::from_millis(25);
/// A proposal without an answer for so long is given up: its outcome is unknown.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// What came of a seed.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) found: Vec<Found>,
    pub(crate) acknowledged: u64,
    pub(crate) term: u64,
    pub(crate) happened: Vec<&'static str>,
    /// What was done to the cluster, which the seed alone decides.
    pub(crate) plan: Vec<(u64, Blow)>,
    pub(crate) wishes: VecDeque<Wish>,
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
pub(crate) struct Shared {
    oracle: Oracle,
    /// What each node's state machine holds.
    states: Vec<Vec<Vec<u8>>>,
    healed: bool,
    served: bool,
    restored: u64,
    next: u64,
    /// What the membership shall become, in order, and what it has become.
    pub(crate) wishes: VecDeque<Wish>,
    pub(crate) met: Vec<Wish>,
    /// The members, by the word of the last leader that had something acknowledged.
    members: BTreeSet<usize>,
    /// Nodes that begin with an empty directory, to be let in.
    joins: BTreeSet<usize>,
}

pub(crate) type Seen = Arc<Mutex<Shared>>;

/// A list of all entries.
#[derive(Debug)]
pub(crate) struct Journal {
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
        Box::new(move |_| snapshot)
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

pub(crate) fn name(node: usize) -> String {
    format!("node-{}", node + 1)
}

fn config(node: usize, nodes: usize, dir: PathBuf, snapshot_every: u64) -> Config {
    let own = (node >= nodes).then_some(node);
    let members = (0..nodes).chain(own).map(|node| Member {
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
        snapshot_bytes: 1024 * 1024,
    }
}

/// The life of a node: open, propose, watch, until the host is crashed.
async fn live(mut config: Config, node: usize, seen: Seen) -> turmoil::Result {
    {
        let mut seen = seen.lock().expect("no holder panics");
        seen.oracle.starts(node);
        seen.states[node].clear();
        config.join = seen.joins.contains(&node);
    }
    let log = loop {
        let journal = Journal { node, seen: Arc::clone(&seen) };
        match Log::open(config.clone(), journal).await {
            Ok(log) => break log,
            // The directory of a life before may still be locked by a thread that ends.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    tokio::spawn(pursue(log.clone(), Arc::clone(&seen)));
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
                let members = log.status().members;
                let mut seen = seen.lock().expect("no holder panics");
                seen.oracle.acknowledged(position.index, &entry);
                seen.served |= seen.healed;
                seen.members = members.iter().map(|one| one.member.node as usize - 1).collect();
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

/// Runs a seed, with a planted bug or without.
pub(crate) fn run(seed: u64, bug: Option<Planted>) -> Run {
    plant(bug);
    let mut chance = StdRng::seed_from_u64(seed);
    let nodes = if seed % 4 == 3 { 5 } else { 3 };
    let snapshot_every = if seed % 2 == 0 { 60 } else { 100_000 };
    let plan = plan(&mut chance, nodes);
    let wishes = wishes(&mut chance, nodes);
    seed_disks(chance.random());
    let folder = folder();
    let seen: Seen = Arc::new(Mutex::new(Shared {
        states: vec![Vec::new(); nodes + 1],
        wishes: wishes.clone(),
        members: (0..nodes).collect(),
        joins: BTreeSet::from([nodes]),
        ..Shared::default()
    }));
    let mut sim = turmoil::Builder::new()
        .rng_seed(chance.random())
        .simulation_duration(FAULTS + HEALED + Duration::from_secs(1))
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(chance.random_range(2..25)))
        .tcp_capacity(4_096)
        .build();
    let dirs = (0..=nodes).map(|node| folder.path().join(name(node))).collect::<Vec<_>>();
    let configs: Vec<Config> =
        (0..=nodes).map(|node| config(node, nodes, dirs[node].clone(), snapshot_every)).collect();
    for (node, config) in configs.into_iter().enumerate() {
        let seen = Arc::clone(&seen);
        sim.host(name(node), move || live(config.clone(), node, Arc::clone(&seen)));
    }
    let happened = Rc::new(RefCell::new(Vec::new()));
    play(&mut sim, &plan, &dirs, &seen, &happened);
    let converged = heal(&mut sim, &dirs, &seen);
    drop(sim);
    let seen = std::mem::take(&mut *seen.lock().expect("no holder panics"));
    if seen.restored > 0 {
        happened.borrow_mut().push("snapshot");
    }
    for wish in &seen.met {
        happened.borrow_mut().push(match wish {
            Wish::Joins(_) => "joined",
            Wish::Leaves(_) => "left",
            Wish::Renewed(_) => "disk lost",
        });
    }
    if nodes == 5 {
        happened.borrow_mut().push("five nodes");
    }
    let (acknowledged, term, trace) =
        (seen.oracle.count(), seen.oracle.term(), seen.oracle.trace());
    let members = seen.members.iter().map(|&node| seen.states[node].clone());
    let states: Vec<_> = if converged { members.collect() } else { Vec::new() };
    let Shared { oracle, states: all, served, members, wishes: unmet, .. } = seen;
    let mut found = oracle.judge(&states);
    if !converged {
        let lengths: Vec<usize> = all.iter().map(Vec::len).collect();
        let detail =
            format!("served {served}, {lengths:?} entries, members {members:?}, not met {unmet:?}");
        found.push(Found { promise: "I17 converges and serves", detail });
    }
    Run { found, acknowledged, term, happened: happened.take(), plan, wishes, trace }
}

fn play(
    sim: &mut turmoil::Sim<'_>,
    plan: &[(u64, Blow)],
    dirs: &[PathBuf],
    seen: &Seen,
    happened: &RefCell<Vec<&'static str>>,
) {
    let nodes = dirs.len() - 1;
    let mut blows = plan.iter().peekable();
    let mut down = vec![false; nodes + 1];
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
        renew(sim, dirs, seen, &mut down);
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

/// If that is wished next, a node loses its disk now and comes back empty, to be let in.
fn renew(sim: &mut turmoil::Sim<'_>, dirs: &[PathBuf], seen: &Seen, down: &mut [bool]) {
    if sim.elapsed() < LOST_FROM {
        return;
    }
    let mut shared = seen.lock().expect("no holder panics");
    let Some(&wish @ Wish::Renewed(node)) = shared.wishes.front() else { return };
    shared.wishes.pop_front();
    shared.met.push(wish);
    shared.joins.insert(node);
    // A host that stops lets go of its log, which tells nobody here.
    drop(shared);
    if !std::mem::replace(&mut down[node], true) {
        sim.crash(name(node));
    }
    // A thread of the life before may still be writing.
    while dirs[node].exists() {
        drop(std::fs::remove_dir_all(&dirs[node]));
    }
    sim.bounce(name(node));
    down[node] = false;
}

/// Steps until everything that was wished is so, all members hold the same and something new was acknowledged; false when time is
/// over.
fn heal(sim: &mut turmoil::Sim<'_>, dirs: &[PathBuf], seen: &Seen) -> bool {
    seen.lock().expect("no holder panics").healed = true;
    let mut down = vec![false; dirs.len()];
    while sim.elapsed() < FAULTS + HEALED {
        for _ in 0..20 {
            sim.step().expect("a host does not fail");
        }
        renew(sim, dirs, seen, &mut down);
        let seen = seen.lock().expect("no holder panics");
        let mut states = seen.members.iter().map(|&node| &seen.states[node]);
        let first = states.next().expect("a cluster has members");
        let same = !first.is_empty() && states.all(|state| state == first);
        if seen.served && same && seen.wishes.is_empty() {
            return true;
        }
    }
    false
}
