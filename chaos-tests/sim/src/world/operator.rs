//! People: look at what needs attention, remove its cause where they can, and have it retried or rolled back.

use holdfast_ledger::{AccountId, BranchKey};
use holdfast_txn::{BranchState, Command, GlobalTransaction, Status};

use super::{End, World, database, network::Message};
use crate::{
    happening::Happening,
    workload::{Plan, shard_of_participant},
};

/// Where answers to people would go; they look again instead of hearing.
const OPERATOR: usize = usize::MAX;
/// What an account that lacks money is given, minor units.
const TOP_UP_MINOR: u64 = 5_000;
/// Transactions looked at in one round.
const LOOKED_AT_MAX: usize = 16;

impl World {
    pub(super) fn operator_looks(&mut self) {
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
                    Command::Submit { gid }
                }
            } else if known.decision.is_none() && self.asking.permille(300) {
                Command::RollBack { gid, reason }
            } else {
                if !self.is_faulty() {
                    self.mend(&known);
                }
                self.count(Happening::OperatorRetry);
                Command::Retry { gid, reason }
            };
            if let Command::RollBack { gid, .. } = &command {
                self.witness.deadlines.asked(gid);
            }
            // They look again instead of waiting for an answer.
            let operator = OPERATOR;
            let ask = Message::Ask { client: operator, turn: 0, command, wait: false };
            self.send(End::Client(operator), End::Node(leader), ask);
        }
    }

    /// It says so itself; or it has lost its caller and no deadline ends it.
    fn needs_people(&self, known: &GlobalTransaction) -> bool {
        known.status == Status::NeedsAttention
            || (!self.is_faulty()
                && known.status == Status::Active
                && !known.mode.rules().heeds_deadline(known)
                && self.clients.iter().all(|client| client.done))
    }

    /// Opens a closed account again, gives it what it lacks, and takes back the refusal that the barrier keeps.
    ///
    /// Laxer than the product: there, an action that was refused is refused for ever, since the barrier repeats its row, so
    /// a retry of a Saga that has no way back cannot help. Here people remove that row by hand.
    fn mend(&mut self, known: &GlobalTransaction) {
        for (id, branch) in known.numbered() {
            let Some(refusal) = &branch.refusal else { continue };
            let shard = shard_of_participant(&branch.spec.participant);
            let key = BranchKey::new(known.gid.as_str(), id.0);
            if branch.state == BranchState::Pending {
                self.agents[shard].database.forget_refusal(&key);
            }
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
