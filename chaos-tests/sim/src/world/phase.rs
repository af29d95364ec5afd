//! From faults to the end: everything heals, must become quiet, must serve one more transaction, and stays right to the last message.

use super::{End, Event, World, cluster::TICK_MS};
use crate::{
    invariant::{bounds, live, quiet},
    workload::Plan,
};

/// Between two looks of the operator, ms.
const LOOK_MS: u64 = 700;

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Faults,
    /// Since this time.
    Healing(u64),
    /// One more transaction, since this time.
    Serving(u64),
    /// Messages that nobody waits for any more still arrive.
    /// Until then the latest of them is there, and what it began has ended.
    Draining(u64),
    Over,
}

/// The gid of the transaction that must be served at the end.
const LAST: &str = "last";

impl World {
    pub(super) fn heal(&mut self) {
        self.note(|| "all faults end".to_owned());
        self.phase = Phase::Healing(self.now_ms);
        self.settings.be_calm();
        self.blocked.clear();
        for node in 0..self.nodes.len() {
            self.nodes[node].skew_ms = 0;
            self.resume(node);
            self.restart(node);
        }
        for agent in &mut self.agents {
            agent.up = true;
        }
        self.queue.at(self.now_ms + 1, Event::OperatorLooks);
    }

    /// Looks whether the next phase has come.
    pub(super) fn after_tick(&mut self) {
        match self.phase {
            Phase::Faults | Phase::Over => {}
            Phase::Healing(since_ms) => {
                let waiting = live::waiting(since_ms, self.now_ms, || self.what_is_open());
                self.check(waiting);
                if self.is_quiet() {
                    self.ask_for_the_last();
                } else if self.now_ms % LOOK_MS < TICK_MS {
                    self.operator_looks();
                }
            }
            Phase::Serving(since_ms) => {
                self.check(live::serving(since_ms, self.now_ms));
                if self.is_quiet() {
                    let ended = self.witness.last_committed(LAST);
                    self.check(ended);
                    self.phase = Phase::Draining(self.now_ms + self.settings.stale_ms);
                }
            }
            Phase::Draining(arrived_ms) => {
                // Also a begin may come so late, and is then a transaction like others.
                let waiting = live::waiting(arrived_ms, self.now_ms, || self.what_is_open());
                self.check(waiting);
                let idle = self.agents.iter().all(super::Agent::is_idle);
                if self.in_air == 0 && idle && self.is_quiet() {
                    self.judge();
                    self.phase = Phase::Over;
                } else if self.now_ms % LOOK_MS < TICK_MS {
                    self.operator_looks();
                }
            }
        }
    }

    fn is_quiet(&self) -> bool {
        self.witness.log.open() == 0
            && self.witness.abandoned.is_empty()
            && self.post.is_quiet()
            && self.sessions.iter().all(super::router::Session::is_over)
            && self.sources.iter().all(|source| source.in_doubt().next().is_none())
            && self.clients.iter().all(|client| client.done)
            && self.cluster.in_flight.is_empty()
            && self.nodes.iter().all(|node| {
                node.applied == self.cluster.log.len() && node.waiting.is_empty() && node.up
            })
    }

    fn what_is_open(&self) -> String {
        let open = self.witness.log.list(None).filter(|known| !known.status.is_final());
        let open: Vec<_> =
            open.map(|known| format!("{} is {}", known.gid, known.status)).take(5).collect();
        let clients = self.clients.iter().filter(|client| !client.done).count();
        format!("{} open ({}), {clients} clients ask", self.witness.log.open(), open.join(", "))
    }

    /// A transfer between the two richest accounts of different shards that are open.
    fn ask_for_the_last(&mut self) {
        let mut rich: Vec<_> = self
            .agents
            .iter()
            .enumerate()
            .flat_map(|(shard, agent)| agent.database.book.accounts().map(move |a| (shard, a)))
            .filter(|(_, account)| account.state() == holdfast_ledger::AccountState::Open)
            .map(|(shard, account)| {
                (account.counters().available(), shard, account.id().as_str().to_owned())
            })
            .collect();
        rich.sort_by(|one, other| other.cmp(one));
        let from = rich.first().expect("an account is open").clone();
        let to = rich.iter().find(|(_, shard, _)| *shard != from.1).cloned();
        let to = to.expect("only one shard has closed accounts");
        let plan = Plan::plain(LAST, &self.places, &from.2, &to.2, 1);
        let steps = plan.steps();
        self.arrive(plan, steps, self.now_ms, None);
        self.phase = Phase::Serving(self.now_ms);
    }

    /// The final judgment, when nothing moves any more.
    fn judge(&mut self) {
        let databases = self.agents.iter().map(|agent| &agent.database);
        let held = quiet::at_quiet(&self.witness.log, databases);
        self.check(held);
        let kept = self.witness.at_quiet(&self.cluster.log);
        self.check(kept);
        let published = self.witness.messages.at_quiet();
        self.check(published);
        let alike = self.witness.local_ends.at_quiet(&self.witness.log, self.sources.iter());
        self.check(alike);
        for node in 0..self.nodes.len() {
            self.compare(node);
        }
        self.judge_books();
        let left = self.nodes.iter().map(|node| node.opens.len() + node.waiters.len()).sum();
        let forgotten = bounds::within("what leaders remember of finished transactions", left, 0);
        self.check(forgotten);
        let stray = self.blocked.iter().filter(|(from, _)| matches!(from, End::Node(_))).count();
        self.check(bounds::within("partitions after the heal", stray, 0));
    }
}
