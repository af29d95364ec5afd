//! People: look at what needs attention, remove its cause where they can, have it retried or rolled back, or do by hand what is owed
//! and have a second person mark it done, or abandon it, two of them, and settle what it owes elsewhere.

use holdfast_ledger::{AccountId, BranchKey};
use holdfast_txn::{
    Act, BranchId, BranchState, Command, Gid, GlobalTransaction, Mode, Op, Remedy, Status,
};

use super::{
    End, World,
    database::{self, Call},
    network::{Message, Ticket},
};
use crate::{
    happening::Happening,
    invariant::outbox::is_message,
    mutant::Mutant,
    workload::{Plan, shard_of_participant},
};

/// Where answers to people would go; they look again instead of hearing.
const OPERATOR: usize = usize::MAX;
/// What an account that lacks money is given, minor units.
const TOP_UP_MINOR: u64 = 5_000;
/// Who they are.
const PEOPLE: [&str; 2] = ["user/alice", "user/bob"];
/// Transactions looked at in one round.
const LOOKED_AT_MAX: usize = 16;

/// Whoever of them is not this one.
pub(super) fn another(by: &str) -> String {
    let other = PEOPLE.into_iter().find(|person| *person != by);
    other.expect("they are two").to_owned()
}

impl World {
    pub(super) fn operator_looks(&mut self) {
        self.settle_abandoned();
        let waiting: Vec<GlobalTransaction> = self
            .witness
            .log
            .list(None)
            .filter(|known| self.needs_people(known))
            .take(LOOKED_AT_MAX)
            .cloned()
            .collect();
        let Some(leader) = self.cluster.leader else { return };
        for known in waiting {
            let gid = known.gid.clone();
            let reason = "people looked".to_owned();
            let command = if known.status == Status::Active {
                if known.branches.is_empty() {
                    Command::RollBack { gid, reason }
                } else {
                    Command::Submit { gid, captures: holdfast_txn::Captures::default() }
                }
            } else if let Some(command) = self.by_hand(&known) {
                command
            } else {
                let act = if known.decision.is_none()
                    && !is_message(known.gid.as_str())
                    && self.asking.permille(300)
                {
                    Act::RollBack
                } else {
                    if !self.is_faulty() {
                        self.mend(&known);
                    }
                    self.count(Happening::OperatorRetry);
                    Act::Retry
                };
                if self.asking.permille(500) {
                    self.act(gid, act)
                } else if act == Act::Retry {
                    Command::Retry { gid, reason }
                } else {
                    Command::RollBack { gid, reason }
                }
            };
            let rolls_back = matches!(
                command,
                Command::RollBack { .. } | Command::Operate { act: Act::RollBack, .. }
            );
            if rolls_back {
                self.witness.deadlines.asked(&known.gid);
            }
            self.people_ask(leader, command);
        }
    }

    /// People ask the leader; they look again instead of waiting for an answer.
    pub(super) fn people_ask(&mut self, leader: usize, command: Command) {
        let operator = OPERATOR;
        let ask = Message::Ask { client: operator, turn: 0, command, wait: false };
        self.send(End::Client(operator), End::Node(leader), ask);
    }

    /// An act of one of them, with a reason that no other act has.
    pub(super) fn act(&mut self, gid: Gid, act: Act) -> Command {
        let (by, reason) = (self.somebody(), self.reason());
        self.witness.people.acts(&reason, &by);
        Command::Operate { gid, act, by, reason }
    }

    pub(super) fn somebody(&mut self) -> String {
        self.asking.pick(&PEOPLE).to_owned()
    }

    pub(super) fn reason(&mut self) -> String {
        self.reasons += 1;
        format!("reason {}", self.reasons)
    }

    /// Now and then they end by hand what is decided: do at the database what a branch of TCC still owes, and have it marked done; or
    /// abandon it, and settle afterwards what it owes; or say of a Saga's step that it was refused, without looking. One proposes,
    /// another one approves; each tries both.
    fn by_hand(&mut self, known: &GlobalTransaction) -> Option<Command> {
        if known.status != Status::NeedsAttention || is_message(known.gid.as_str()) {
            return None;
        }
        let gid = known.gid.clone();
        if self.witness.log.books().proposals.contains_key(&gid) {
            return self.asking.permille(700).then(|| self.act(gid, Act::Approve));
        }
        let (op, ended) = match (known.mode, known.interrupted) {
            (Mode::Tcc, Some(Status::Committing)) => (Op::Confirm, BranchState::Confirmed),
            (Mode::Tcc, Some(Status::RollingBack)) => (Op::Cancel, BranchState::Undone),
            (Mode::Saga, Some(Status::Running)) => return self.marks_refused(known),
            _ => return None,
        };
        if self.asking.permille(300) {
            return Some(self.act(gid, Act::Propose(Remedy::Abandon)));
        }
        let owing = known.numbered().find(|(_, branch)| branch.state != ended)?.0;
        if !self.asking.permille(400) || !self.does_by_hand(known, owing, op) {
            return None;
        }
        Some(self.act(gid, Act::Propose(Remedy::MarkDone(owing))))
    }

    fn marks_refused(&mut self, known: &GlobalTransaction) -> Option<Command> {
        let waits = known.numbered().find(|(_, branch)| branch.state == BranchState::Pending);
        let branch = waits.filter(|_| self.asking.permille(300))?.0;
        let remedy = if self.mutates(Mutant::RefusedBelieved) {
            Remedy::BelieveRefused(branch)
        } else {
            Remedy::MarkRefused(branch)
        };
        Some(self.act(known.gid.clone(), Act::Propose(remedy)))
    }

    /// Carries out one call at the database, as the agent would. True: it is done.
    fn does_by_hand(&mut self, known: &GlobalTransaction, branch: BranchId, op: Op) -> bool {
        let spec = &known.branch(branch).expect("it owes").spec;
        let shard = shard_of_participant(&spec.participant);
        let key = BranchKey::new(known.gid.as_str(), branch.0);
        let captured = known.captures.of(branch).filter(|_| op == Op::Confirm);
        let payload = captured.unwrap_or(&spec.payload).clone();
        let call = Call { key, op, payload, refusal_waits: false };
        self.calls_by_hand(shard, call)
    }

    /// What was abandoned is settled by people, at each database, now or when they look again.
    fn settle_abandoned(&mut self) {
        for (gid, calls) in self.witness.abandoned.clone() {
            let left: Vec<_> = calls
                .into_iter()
                .filter(|(shard, call)| !self.calls_by_hand(*shard, call.clone()))
                .collect();
            if left.is_empty() {
                self.count(Happening::AbandonedSettled);
                self.witness.abandoned.remove(&gid);
            } else {
                self.witness.abandoned.insert(gid, left);
            }
        }
    }

    /// One call at the database. True: it is done.
    fn calls_by_hand(&mut self, shard: usize, call: Call) -> bool {
        let nobody = Ticket { from: End::Client(OPERATOR), stint: 0, number: 0 };
        if self.mutates(Mutant::MarkedDoneUndone) {
            return true;
        }
        let carried = self.carry(shard, &[(nobody, call)]);
        matches!(carried[0].said, database::Said::Done)
    }

    /// It says so itself; or it has lost its caller and no deadline ends it.
    fn needs_people(&self, known: &GlobalTransaction) -> bool {
        known.status == Status::NeedsAttention
            || (!self.is_faulty()
                && known.status == Status::Active
                && !known.mode.rules().heeds_deadline(known)
                && self.clients.iter().all(|client| client.done))
    }

    /// Opens a closed account again, and gives it what it lacks.
    fn mend(&mut self, known: &GlobalTransaction) {
        for branch in &known.branches {
            let Some(refusal) = &branch.refusal else { continue };
            let shard = shard_of_participant(&branch.spec.participant);
            let words = database::words(&branch.spec.payload);
            for word in words.iter().filter(|word| word.starts_with("acct-")) {
                let account = AccountId::parse(word).expect("it is an account's name");
                match refusal.code.as_str() {
                    "account_closed" if self.places.shard_of(word) == shard => {
                        self.agents[shard].database.reopen(&account);
                    }
                    "insufficient_funds" => {
                        let gid = format!("mend-{}", self.clients.len());
                        let plan = Plan::top_up(&gid, &self.places, word, TOP_UP_MINOR);
                        let steps = plan.steps();
                        self.arrive(plan, steps, self.now_ms + 1, None);
                    }
                    _ => continue,
                }
                self.count(Happening::OperatorMended);
            }
        }
    }
}
