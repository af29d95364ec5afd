//! The world of one run: everything that happens is an event of one queue, and everything that is drawn comes from the seed.

pub(crate) mod agent;
pub(crate) mod books;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod database;
pub(crate) mod dispatcher;
pub(crate) mod nemesis;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod operator;
pub(crate) mod phase;
pub(crate) mod relay;
pub(crate) mod router;
pub(crate) mod source;
pub(crate) mod witness;

use std::collections::BTreeSet;

use holdfast_txn::{Gid, Timestamp};

use self::{
    agent::Agent, client::Client, cluster::Cluster, network::Message, node::Node, phase::Phase,
    relay::Post, router::Session, source::Source, witness::Witness,
};
use crate::{
    chance::Chance,
    happening::{Counts, Happening},
    invariant::{Broken, Checked, bounds},
    mutant::Mutant,
    queue::Queue,
    settings::Settings,
    trace::{Trace, Words},
    workload::{self, Places},
};

/// Simulated time 0 as nodes stamp it.
const EPOCH_MS: u64 = 1_000_000;

/// One end of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Node(usize),
    Agent(usize),
    Client(usize),
}

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The cluster looks at its leader and its laggards.
    Tick,
    /// The oldest entry under way is on a quorum.
    Commit { term: u64 },
    /// A node learns how far the log is committed.
    Apply { node: usize, life: u64, to: usize },
    /// A node learns that it leads.
    Elected { node: usize, term: u64 },
    /// A node learns that it leads no more.
    Deposed { node: usize, term: u64 },
    /// A message arrives.
    Deliver { to: End, message: Box<Message> },
    /// An alarm of the dispatcher rings.
    Alarm { node: usize, stint: u64, gid: Gid },
    /// The dispatcher looks at deadlines.
    Expiry { node: usize, stint: u64 },
    /// An agent's local transaction ends.
    Batch { shard: usize, life: u64 },
    /// An agent is there again.
    AgentUp { shard: usize },
    /// A client acts, unless it has heard something since.
    Turn { client: usize, turn: u64 },
    /// A router's session goes on, unless it has gone on since.
    Session { session: usize, turn: u64 },
    /// Somebody looks for what is prepared and left.
    Sweep,
    /// A service writes a message in its local transaction.
    Service { wish: usize },
    /// That local transaction ends.
    ServiceEnds { wish: usize },
    /// The relay with the lease looks at the outbox.
    Relay { life: u64 },
    /// People look at what needs them.
    OperatorLooks,
    /// A fault.
    Strike(usize),
    /// A node is started again.
    Restart { node: usize },
    /// A node goes on.
    Resume { node: usize },
    /// Two ends hear each other again.
    Join { from: End, to: End },
    /// All faults end.
    Heal,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    mutant: Option<Mutant>,
    now_ms: u64,
    queue: Queue<Event>,
    /// Messages that are still under way.
    in_air: usize,
    net: Chance,
    faults: Chance,
    pace: Chance,
    asking: Chance,
    routing: Chance,
    posting: Chance,
    places: Places,
    cluster: Cluster,
    nodes: Vec<Node>,
    agents: Vec<Agent>,
    clients: Vec<Client>,
    /// What routers write to: one beside each shard.
    sources: Vec<Source>,
    sessions: Vec<Session>,
    /// Messages, and whoever relays them.
    post: Post,
    blocked: BTreeSet<(End, End)>,
    /// Reasons that people gave.
    reasons: u64,
    /// What a router and whoever exports the audit trail have read.
    reader: books::Reader,
    phase: Phase,
    pub(crate) witness: Witness,
    pub(crate) counts: Counts,
    pub(crate) trace: Trace,
    pub(crate) broken: Option<Broken>,
}

impl World {
    /// The world of `seed` before anything happens.
    pub(crate) fn new(seed: u64, mutant: Option<Mutant>, words: Words) -> Self {
        let settings = Settings::of(seed);
        let places = Places::of(&settings);
        let mut world = Self {
            mutant,
            now_ms: 0,
            queue: Queue::new(),
            in_air: 0,
            net: Chance::of(seed, 2),
            faults: Chance::of(seed, 3),
            pace: Chance::of(seed, 4),
            asking: Chance::of(seed, 5),
            routing: Chance::of(seed, 7),
            posting: Chance::of(seed, 9),
            cluster: Cluster::default(),
            nodes: (0..settings.nodes).map(|_| Node::new()).collect(),
            agents: Agent::all(&settings, &places),
            clients: Vec::new(),
            sources: vec![Source::new(); settings.shards],
            sessions: Vec::new(),
            post: Post::new(),
            blocked: BTreeSet::new(),
            reasons: 0,
            reader: books::Reader::default(),
            phase: Phase::Faults,
            witness: Witness::new(&settings),
            counts: Counts::default(),
            trace: Trace::new(words),
            broken: None,
            places,
            settings,
        };
        world.prepare(&mut Chance::of(seed, 6));
        world
    }

    fn prepare(&mut self, drawing: &mut Chance) {
        let openings: Checked =
            self.witness.opened(self.agents.iter().map(|agent| &agent.database));
        self.check(openings);
        for number in 0..self.settings.transactions {
            let plan = workload::draw(number, &self.places, drawing);
            self.welcome(plan, drawing);
        }
        self.open_sessions();
        self.open_post();
        for index in 0..self.settings.strikes.len() {
            self.plan_strike(index);
        }
        self.queue.at(0, Event::Tick);
        self.queue.at(self.settings.faults_ms, Event::Heal);
    }

    /// Until everything has ended, or a promise is broken.
    pub(crate) fn run(&mut self) {
        while self.broken.is_none() && self.phase != Phase::Over {
            let (at_ms, event) = self.queue.pop().expect("the cluster ticks until the end");
            self.now_ms = at_ms;
            self.trace.events += 1;
            self.trace.fold(at_ms);
            self.happen(event);
            let foreseen = bounds::within("events", self.queue.len(), bounds::EVENTS_MAX);
            self.check(foreseen);
        }
        let hash = self.witness.log.state_hash();
        self.trace.fold(u64::from_be_bytes(hash.0[..8].try_into().expect("it has 32 bytes")));
    }

    fn happen(&mut self, event: Event) {
        if let Some(node) = target(&event)
            && self.nodes[node].paused
        {
            self.nodes[node].stalled.push(event);
            return;
        }
        match event {
            Event::Tick => self.tick(),
            Event::Commit { term } => self.commit(term),
            Event::Apply { node, life, to } => {
                if self.nodes[node].life == life {
                    self.apply(node, to);
                }
            }
            Event::Elected { node, term } => self.elected(node, term),
            Event::Deposed { node, term } => self.deposed(node, term),
            Event::Deliver { to, message } => self.deliver(to, *message),
            Event::Alarm { node, stint, gid } => {
                if self.nodes[node].stint == stint {
                    self.ring(node, &gid);
                }
            }
            Event::Expiry { node, stint } => {
                if self.nodes[node].stint == stint {
                    self.expire(node);
                }
            }
            Event::Batch { shard, life } => self.local_transaction(shard, life),
            Event::AgentUp { shard } => self.agents[shard].up = true,
            Event::Turn { client, turn } => self.client_turn(client, turn),
            Event::Session { session, turn } => self.session_turn(session, turn),
            Event::Sweep => self.sweep(),
            Event::Service { wish } => self.service_writes(wish),
            Event::ServiceEnds { wish } => self.service_ends(wish),
            Event::Relay { life } => self.relay_looks(life),
            Event::OperatorLooks => self.operator_looks(),
            Event::Strike(index) => self.strike(index),
            Event::Restart { node } => self.restart(node),
            Event::Resume { node } => self.resume(node),
            Event::Join { from, to } => {
                self.blocked.remove(&(from, to));
            }
            Event::Heal => self.heal(),
        }
    }

    fn check(&mut self, checked: Checked) {
        if let Err(broken) = checked
            && self.broken.is_none()
        {
            self.trace
                .note(self.now_ms, || format!("BROKEN {}: {}", broken.promise, broken.detail));
            self.broken = Some(broken);
        }
    }

    fn count(&mut self, happening: Happening) {
        self.counts.count(happening);
        self.trace.fold(happening as u64);
    }

    fn note(&mut self, words: impl FnOnce() -> String) {
        self.trace.note(self.now_ms, words);
    }

    /// What `node` believes the time of day to be; within one life it never goes back.
    fn clock(&mut self, node: usize) -> Timestamp {
        let node = &mut self.nodes[node];
        let wall_ms = (EPOCH_MS + self.now_ms).saturating_add_signed(node.skew_ms);
        node.clock_ms = node.clock_ms.max(wall_ms);
        Timestamp(node.clock_ms)
    }

    fn is_faulty(&self) -> bool {
        self.phase == Phase::Faults
    }

    fn mutates(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

/// The node that an event happens to, if it happens within a node.
fn target(event: &Event) -> Option<usize> {
    match event {
        Event::Apply { node, .. }
        | Event::Elected { node, .. }
        | Event::Deposed { node, .. }
        | Event::Alarm { node, .. }
        | Event::Expiry { node, .. }
        | Event::Deliver { to: End::Node(node), .. } => Some(*node),
        _ => None,
    }
}
