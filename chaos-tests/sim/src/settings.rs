//! What a seed draws before the run: the size of the world, its faults and their rates. Every seed has its own mix.

use crate::chance::Chance;

/// Something that is done to the cluster at random times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strike {
    /// A coordinator node dies and comes back.
    CrashNode,
    /// A node stands still, and goes on with stale beliefs.
    PauseNode,
    /// Two ends no longer hear each other.
    PartitionTwoWay,
    /// One end no longer hears the other.
    PartitionOneWay,
    /// Nobody hears the leader, nor it them.
    IsolateLeader,
    /// Another node leads, while the old leader does not know yet.
    MoveLeadership,
    /// A node's clock jumps.
    JumpClock,
    /// A node takes a snapshot.
    TakeSnapshot,
    /// People retry what needs attention.
    OperatorLooks,
    /// People put other shard rules into force, or write down what they did elsewhere.
    WriteBooks,
    /// A router reads the rules, and whoever exports audit records those, of any node.
    ReadBooks,
}

impl Strike {
    /// Every strike.
    pub const ALL: [Self; 11] = [
        Self::CrashNode,
        Self::PauseNode,
        Self::PartitionTwoWay,
        Self::PartitionOneWay,
        Self::IsolateLeader,
        Self::MoveLeadership,
        Self::JumpClock,
        Self::TakeSnapshot,
        Self::OperatorLooks,
        Self::WriteBooks,
        Self::ReadBooks,
    ];
}

/// The configuration of one run. Rates are in a thousand, times in ms of simulated time.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Coordinator nodes.
    pub nodes: usize,
    /// Shards, each with one database and one agent.
    pub shards: usize,
    /// Accounts in all.
    pub accounts: usize,
    /// What each account opens with, minor units.
    pub balance_minor: u64,
    /// How many of the accounts are closed.
    pub closed: usize,
    /// Transactions of the workload.
    pub transactions: usize,
    /// They begin within this time.
    pub arrivals_ms: u64,
    /// Faults end here, and the world heals.
    pub faults_ms: u64,
    /// Of one message, shortest and longest.
    pub delay_ms: (u64, u64),
    /// Of one entry to a quorum, shortest and longest.
    pub commit_ms: (u64, u64),
    /// Messages lost.
    pub lost: u64,
    /// Messages that arrive twice.
    pub duplicated: u64,
    /// Messages that arrive so late that everybody has forgotten them.
    pub stale: u64,
    /// How late that is at most.
    pub stale_ms: u64,
    /// Local transactions that fail and leave nothing.
    pub local_fails: u64,
    /// Agents that die with a local transaction not yet committed.
    pub agent_dies_before: u64,
    /// Agents that die with a local transaction committed and nobody answered.
    pub agent_dies_after: u64,
    /// Calls that are carried out and answered unknown.
    pub lies_timeout: u64,
    /// First calls that are answered *working*.
    pub working: u64,
    /// Second-phase calls refused, for example for maintenance.
    pub refuses_second: u64,
    /// Routers that die, at any of their steps.
    pub router_dies: u64,
    /// Routers that stand still, at any of their steps.
    pub router_stalls: u64,
    /// Relays that die, at any of their steps.
    pub relay_dies: u64,
    /// What is done to the cluster, and how often on average.
    pub strikes: Vec<(Strike, u64)>,
    /// Entries behind which a node is caught up by snapshot.
    pub log_kept: usize,
}

impl Settings {
    /// What `seed` draws.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut chance = Chance::of(seed, 1);
        let chance = &mut chance;
        let mut of_routers = Chance::of(seed, 8);
        let rate = |chance: &mut Chance, most: u64| {
            if chance.permille(500) { chance.between(1, most) } else { 0 }
        };
        let shards = chance.index(3) + 2;
        let shortest = chance.between(1, 5);
        let calm = chance.permille(50);
        let faults_ms = chance.between(4_000, 10_000);
        let mut settings = Self {
            nodes: chance.pick(&[1, 3, 3, 3, 3, 5]),
            shards,
            accounts: shards * chance.pick(&[2, 3, 4]),
            balance_minor: chance.pick(&[120, 500, 2_000]),
            closed: chance.index(2),
            transactions: chance.index(14) + 8,
            arrivals_ms: faults_ms * 3 / 4,
            faults_ms,
            delay_ms: (shortest, shortest + chance.pick(&[2, 20, 80])),
            commit_ms: (1, chance.pick(&[3, 15, 60])),
            lost: rate(chance, 150),
            duplicated: rate(chance, 150),
            stale: rate(chance, 30),
            stale_ms: chance.pick(&[3_000, 15_000, 40_000]),
            local_fails: rate(chance, 100),
            agent_dies_before: rate(chance, 40),
            agent_dies_after: rate(chance, 40),
            lies_timeout: rate(chance, 100),
            working: rate(chance, 150),
            refuses_second: rate(chance, 60),
            router_dies: rate(&mut of_routers, 80),
            router_stalls: rate(&mut of_routers, 80),
            relay_dies: rate(&mut of_routers, 60),
            strikes: Vec::new(),
            log_kept: chance.pick(&[5, 20, 1_000]),
        };
        if calm {
            settings.be_calm();
            return settings;
        }
        for strike in Strike::ALL {
            if chance.permille(450) {
                settings.strikes.push((strike, chance.pick(&[400, 900, 2_500])));
            }
        }
        settings
    }

    /// Without faults: so everything must succeed at its first attempt, and so the heal phase runs.
    pub(crate) fn be_calm(&mut self) {
        self.lost = 0;
        self.duplicated = 0;
        self.stale = 0;
        self.local_fails = 0;
        self.agent_dies_before = 0;
        self.agent_dies_after = 0;
        self.lies_timeout = 0;
        self.working = 0;
        self.refuses_second = 0;
        self.router_dies = 0;
        self.router_stalls = 0;
        self.relay_dies = 0;
        self.strikes.clear();
    }
}
