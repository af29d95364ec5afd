//! Agents: calls that wait for a database go together in one local transaction, which commits as a whole or leaves nothing.

use std::collections::VecDeque;

use holdfast_txn::{Gid, Op};

use super::{
    End, Event, World,
    database::{Call, Carried, Database, Mood, Said},
    network::{Message, Ticket},
};
use crate::{
    happening::Happening, invariant::bounds, mutant::Mutant, settings::Settings, workload::Places,
};

/// Calls in one local transaction.
const BATCH_MAX: usize = 16;

/// A shard's agent and its database. The database outlives the agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) up: bool,
    life: u64,
    waiting: VecDeque<(Ticket, Call)>,
    busy: bool,
    pub(crate) database: Database,
}

impl Agent {
    pub(crate) fn all(settings: &Settings, places: &Places) -> Vec<Self> {
        (0..settings.shards)
            .map(|shard| {
                let here = places.accounts.iter().filter(|(_, place)| *place == shard);
                let ids: Vec<_> = here.map(|(id, _)| id.clone()).collect();
                let closed = if shard == 0 { settings.closed } else { 0 };
                let database = Database::open(&ids, settings.balance_minor, closed);
                Self { up: true, life: 0, waiting: VecDeque::new(), busy: false, database }
            })
            .collect()
    }

    pub(crate) fn is_idle(&self) -> bool {
        !self.busy && self.waiting.is_empty()
    }
}

impl World {
    pub(super) fn called(&mut self, shard: usize, ticket: Ticket, call: Call) {
        let agent = &mut self.agents[shard];
        if !agent.up {
            return;
        }
        if agent.waiting.len() >= bounds::CALLS_MAX {
            self.answer(shard, ticket, &call, Said::Unknown);
            return;
        }
        agent.waiting.push_back((ticket, call));
        self.start(shard);
    }

    fn start(&mut self, shard: usize) {
        let agent = &mut self.agents[shard];
        if !agent.busy && !agent.waiting.is_empty() {
            agent.busy = true;
            let life = agent.life;
            let at_ms = self.now_ms + self.pace.between(1, 8);
            self.queue.at(at_ms, Event::Batch { shard, life });
        }
    }

    fn answer(&mut self, shard: usize, ticket: Ticket, call: &Call, said: Said) {
        self.note(|| format!("shard {shard} answers {} {}: {said:?}", call.key, call.op));
        let answer = Message::Answer { ticket, key: call.key.clone(), op: call.op, said };
        self.send(End::Agent(shard), ticket.from, answer);
    }

    /// The local transaction of what waits ends, one way or another.
    pub(super) fn local_transaction(&mut self, shard: usize, life: u64) {
        if self.agents[shard].life != life {
            return;
        }
        self.agents[shard].busy = false;
        let count = self.agents[shard].waiting.len().min(BATCH_MAX);
        let batch: Vec<(Ticket, Call)> = self.agents[shard].waiting.drain(..count).collect();
        if self.faults.permille(self.settings.local_fails) {
            self.count(Happening::LocalTransactionFailed);
            self.undone_half_way(shard, &batch);
            for (ticket, call) in batch {
                self.answer(shard, ticket, &call, Said::Unknown);
            }
        } else if self.faults.permille(self.settings.agent_dies_before) {
            self.count(Happening::AgentCrashedBeforeCommit);
            self.undone_half_way(shard, &batch);
            self.agent_dies(shard);
        } else {
            let carried = self.carry(shard, &batch);
            if self.faults.permille(self.settings.agent_dies_after) {
                self.count(Happening::AgentCrashedAfterCommit);
                self.agent_dies(shard);
            } else {
                for ((ticket, call), carried) in batch.into_iter().zip(carried) {
                    let said = if self.faults.permille(self.settings.lies_timeout) {
                        self.count(Happening::ExecutedSaidTimeout);
                        Said::Unknown
                    } else {
                        carried.said
                    };
                    self.answer(shard, ticket, &call, said);
                }
            }
        }
        self.start(shard);
    }

    /// Carries the calls out and commits.
    pub(super) fn carry(&mut self, shard: usize, batch: &[(Ticket, Call)]) -> Vec<Carried> {
        let carried = self.carry_each(shard, batch);
        for one in &carried {
            let Carried { call, verdict, said, .. } = one;
            self.note(|| {
                format!("shard {shard} does {} {}: {verdict:?}, {said:?}", call.key, call.op)
            });
            self.trace.fold(u64::from(one.call.key.branch) ^ one.postings.len() as u64);
        }
        let databases = self.agents.iter().map(|agent| &agent.database);
        let committed = self.witness.local_commit(&carried, shard, databases, &mut self.counts);
        self.check(committed);
        carried
    }

    fn carry_each(&mut self, shard: usize, batch: &[(Ticket, Call)]) -> Vec<Carried> {
        let mut carried = Vec::with_capacity(batch.len());
        for (_, call) in batch {
            let mood = Mood {
                is_working: self.faults.permille(self.settings.working),
                refuses: self.faults.permille(self.settings.refuses_second),
            };
            let one = if matches!(call.op, Op::Commit | Op::RollBack) {
                self.source_called(shard, call)
            } else {
                self.agents[shard].database.carry(call, mood, self.mutant)
            };
            match &one.said {
                Said::Working => self.count(Happening::SaidWorking),
                Said::Refused(code) if code == "maintenance" => {
                    self.count(Happening::RefusedSecondPhase);
                }
                Said::Refused(_) | Said::Done | Said::Unknown => {}
            }
            carried.push(one);
        }
        carried
    }

    /// The agent of a source is asked to end what a router left.
    fn source_called(&mut self, shard: usize, call: &Call) -> Carried {
        let (carried, ended) = self.sources[shard].called(call);
        if ended.is_some() {
            self.count(Happening::EndedByAgent);
            let gid = Gid::parse(&call.key.gid).expect("a key is made of a gid");
            let sources = self.sources_of(&gid);
            self.local_ended((&gid, call.key.branch), sources, call.op == Op::Commit);
        }
        carried
    }

    /// The database of a shard restarts with its agent: local transactions that are open there are rolled back.
    fn source_restarts(&mut self, shard: usize) {
        for xact in self.sources[shard].restart() {
            self.count(Happening::OpenLost);
            let (gid, branch) = {
                let local = &self.sources[shard].locals[&xact];
                (local.gid.clone(), local.branch)
            };
            let sources = self.sources_of(&gid);
            self.local_ended((&gid, branch), sources, false);
        }
    }

    /// A local transaction that is not committed leaves nothing, unless a mutant tears it apart.
    fn undone_half_way(&mut self, shard: usize, batch: &[(Ticket, Call)]) {
        let torn = [Mutant::RowBeforeEffect, Mutant::EffectBeforeRow, Mutant::AnswerBeforeCommit];
        let Some(mutant) = self.mutant.filter(|mutant| torn.contains(mutant)) else { return };
        let before = self.agents[shard].database.clone();
        let carried = self.carry_each(shard, batch);
        let database = &mut self.agents[shard].database;
        match mutant {
            Mutant::RowBeforeEffect => {
                database.book = before.book;
                database.journal = before.journal;
            }
            Mutant::EffectBeforeRow => {
                database.rows = before.rows;
                let databases = self.agents.iter().map(|agent| &agent.database);
                let seen = self.witness.local_commit(&carried, shard, databases, &mut self.counts);
                self.check(seen);
            }
            _ => {
                *database = before;
                for ((ticket, call), carried) in batch.iter().zip(carried) {
                    self.answer(shard, *ticket, call, carried.said);
                }
            }
        }
    }

    fn agent_dies(&mut self, shard: usize) {
        let agent = &mut self.agents[shard];
        agent.up = false;
        agent.life += 1;
        agent.busy = false;
        agent.waiting.clear();
        if self.mutant == Some(Mutant::BarrierForgotten) {
            agent.database.rows.clear();
        }
        self.source_restarts(shard);
        self.note(|| format!("the agent of shard {shard} dies"));
        let at_ms = self.now_ms + self.faults.between(50, 900);
        self.queue.at(at_ms, Event::AgentUp { shard });
    }
}
