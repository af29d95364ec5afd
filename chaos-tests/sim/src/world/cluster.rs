//! The log as its interface shows it: one committed sequence, leaders by term, and proposals that commit, commit late or never.
//!
//! Not modelled: votes, entries on single nodes, disks. An election lets a prefix of what the old leader had under way
//! survive and drops the rest, which is all that a proposer can see of it. Stricter than the real log in one thing: a
//! leader is chosen by the model within a few ticks, so there is never a long time without one while a quorum is well.

use std::{collections::VecDeque, rc::Rc};

use holdfast_txn::{Command, Timestamp};

use super::{End, Event, World, node::Lead};
use crate::{happening::Happening, mutant::Mutant};

/// Between two looks at the leader, ms.
pub(crate) const TICK_MS: u64 = 50;
/// Ticks without a working leader before another one is elected.
const ELECTION_TICKS: u64 = 4;

/// One entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) at: Timestamp,
    pub(crate) proposal: u64,
    pub(crate) commands: Vec<Command>,
}

/// The log, and who may write it.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) term: u64,
    pub(crate) leader: Option<usize>,
    pub(crate) log: Vec<Rc<Entry>>,
    /// Proposed in this term and not on a quorum yet.
    pub(crate) in_flight: VecDeque<Rc<Entry>>,
    next_proposal: u64,
    sick_ticks: u64,
}

impl World {
    /// Hands an entry of `node` to the log. Answers its number, under which its results will be known.
    pub(super) fn propose(&mut self, node: usize, commands: Vec<Command>) -> u64 {
        let at = self.clock(node);
        self.cluster.next_proposal += 1;
        let proposal = self.cluster.next_proposal;
        let entry = Rc::new(Entry { at, proposal, commands });
        if self.is_true_leader(node) {
            self.cluster.in_flight.push_back(entry);
            let (shortest, longest) = self.settings.commit_ms;
            let commit_ms = self.now_ms + self.pace.between(shortest, longest);
            self.queue.at(commit_ms, Event::Commit { term: self.cluster.term });
        } else {
            // Nobody will ever take it; the proposer learns no result until it learns that it leads no more.
            self.count(Happening::ProposalByDeposed);
            self.note(|| format!("node {node} proposes in a term that is over"));
            if self.mutates(Mutant::OldTermApplied) {
                for command in &entry.commands {
                    let _result = self.nodes[node].machine.apply(entry.at, command.clone());
                }
            }
        }
        proposal
    }

    /// Whether the log takes what `node` proposes.
    pub(super) fn is_true_leader(&self, node: usize) -> bool {
        self.cluster.leader == Some(node)
            && matches!(self.nodes[node].lead, Lead::Catching { term, .. } | Lead::Leads(term) if term == self.cluster.term)
    }

    pub(super) fn hears_quorum(&self, node: usize) -> bool {
        let well = |n: usize| self.nodes[n].up && !self.nodes[n].paused;
        let linked = |n: usize| {
            n == node
                || !(self.blocked.contains(&(End::Node(n), End::Node(node)))
                    || self.blocked.contains(&(End::Node(node), End::Node(n))))
        };
        let heard = (0..self.nodes.len()).filter(|&n| well(n) && linked(n)).count();
        well(node) && heard > self.nodes.len() / 2
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        from == to || !self.blocked.contains(&(End::Node(from), End::Node(to)))
    }

    pub(super) fn commit(&mut self, term: u64) {
        let Some(leader) = self.cluster.leader else { return };
        if self.cluster.term != term || !self.hears_quorum(leader) || !self.is_true_leader(leader) {
            // What is left is carried by a later commit of this term, or judged by an election.
            return;
        }
        if let Some(entry) = self.cluster.in_flight.pop_front() {
            self.append(entry);
            self.spread(leader);
        }
    }

    fn append(&mut self, entry: Rc<Entry>) {
        let index = self.cluster.log.len() + 1;
        self.note(|| format!("entry {index} is committed: {}", shown(&entry.commands)));
        self.trace.fold(entry.proposal);
        self.trace.fold(entry.at.0);
        let committed = self.witness.committed(&entry, &mut self.counts);
        self.check(committed);
        self.cluster.log.push(entry);
    }

    /// Nodes that the leader reaches learn how far the log is.
    fn spread(&mut self, leader: usize) {
        let to = self.cluster.log.len();
        for node in 0..self.nodes.len() {
            let behind = self.nodes[node].up && self.nodes[node].applied < to;
            if behind && self.reaches(leader, node) {
                let longest = if node == leader { 1 } else { self.settings.delay_ms.1 };
                let at_ms = self.now_ms + self.pace.between(0, longest);
                let life = self.nodes[node].life;
                self.queue.at(at_ms, Event::Apply { node, life, to });
            }
        }
    }

    pub(super) fn tick(&mut self) {
        self.queue.at(self.now_ms + TICK_MS, Event::Tick);
        let leader = self.cluster.leader;
        // A leader that died and is back leads no more.
        let works = |&leader: &usize| self.hears_quorum(leader) && self.is_true_leader(leader);
        if let Some(leader) = leader.filter(works) {
            self.cluster.sick_ticks = 0;
            let (term, waiting) = (self.cluster.term, self.cluster.in_flight.len());
            // Commits that found no quorum are carried now.
            for _ in 0..waiting {
                self.queue.at(self.now_ms + 1, Event::Commit { term });
            }
            self.spread(leader);
            for node in 0..self.nodes.len() {
                let stale = self.nodes[node].lead.term().is_some_and(|believed| believed < term);
                if stale && self.reaches(leader, node) {
                    let at_ms = self.now_ms + self.pace.between(1, self.settings.delay_ms.1);
                    self.queue.at(at_ms, Event::Deposed { node, term });
                }
            }
        } else {
            self.cluster.sick_ticks += 1;
            if self.cluster.sick_ticks >= ELECTION_TICKS || self.cluster.term == 0 {
                self.elect(None);
            }
        }
        self.after_tick();
    }

    /// Another node leads, of those that hear a quorum; not `except`.
    pub(super) fn elect(&mut self, except: Option<usize>) {
        let fit: Vec<usize> = (0..self.nodes.len())
            .filter(|&node| Some(node) != except && self.hears_quorum(node))
            .collect();
        if fit.is_empty() {
            return;
        }
        let node = self.pace.pick(&fit);
        self.count(Happening::Election);
        self.cluster.sick_ticks = 0;
        self.cluster.term += 1;
        self.cluster.leader = Some(node);
        let term = self.cluster.term;
        self.note(|| format!("node {node} is elected in term {term}"));
        let under_way = std::mem::take(&mut self.cluster.in_flight);
        let surviving = self.pace.between(0, under_way.len() as u64);
        for (position, entry) in (0_u64..).zip(under_way) {
            if position < surviving {
                self.count(Happening::ProposalCommittedLate);
                self.append(entry);
            } else {
                self.count(Happening::ProposalLost);
                self.note(|| format!("lost: {}", shown(&entry.commands)));
            }
        }
        self.queue.at(self.now_ms + 1, Event::Elected { node, term });
        self.spread(node);
    }
}

/// Commands in words.
fn shown(commands: &[Command]) -> String {
    let one = |command: &Command| match command {
        Command::Begin { gid, mode, branches, enlisted, .. } => {
            let style = if *enlisted { "enlisted" } else { "declared" };
            format!("begin {gid} ({style} {}, {} branches)", mode.as_str(), branches.len())
        }
        Command::AddBranch { gid, branch, .. } => format!("add {gid} {branch}"),
        Command::Nest { gid, parent, branch, .. } => format!("nest {gid} {branch} in {parent}"),
        Command::Submit { gid, .. } => format!("submit {gid}"),
        Command::RollBack { gid, reason } => format!("roll back {gid} ({reason})"),
        Command::Expire { gid } => format!("expire {gid}"),
        Command::Retry { gid, .. } => format!("retry {gid}"),
        Command::Fence { gid, .. } => format!("fence {gid}"),
        Command::Finish { gid, branches, .. } => format!("finish {gid} {branches:?}"),
        Command::Operate { gid, act, by, .. } => format!("operate {gid} {act:?} by {by}"),
        Command::SetRules { expected, .. } => format!("set rules after epoch {expected}"),
        Command::Note { deed } => format!("note {}", deed.act),
        Command::Report { gid, reports } => {
            let heard: Vec<_> = reports
                .iter()
                .map(|report| {
                    let answer = match &report.answer {
                        holdfast_txn::Answer::Done => "done".to_owned(),
                        holdfast_txn::Answer::Refused(words) => format!("refused {}", words.code),
                        holdfast_txn::Answer::GivenUp { .. } => "given up".to_owned(),
                    };
                    format!("{} {} {answer}", report.branch, report.op)
                })
                .collect();
            format!("report {gid}: {}", heard.join(", "))
        }
    };
    commands.iter().map(one).collect::<Vec<_>>().join("; ")
}
