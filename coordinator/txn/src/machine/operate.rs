//! What people do: operators' acts on one transaction, shard rules, and what else the audit trail is told.

use std::sync::Arc;

use crate::{
    Act, BranchId, BranchState, Decision, Deed, Gid, GlobalTransaction, Outcome, Proposal,
    Rejection, Remedy, RulesVersion, Status, Timestamp, limit,
    mode::{View, position},
};

use super::{Machine, cut};

const DID_SOMETHING: Outcome = Outcome { moved: None, repeated: false };

impl Machine {
    /// An operator's act. What changes something is written down; what is refused or repeated is not.
    pub(super) fn operate(
        &mut self,
        gid: &Gid,
        act: Act,
        by: String,
        reason: String,
    ) -> Result<Outcome, Rejection> {
        let (act_word, outcome, words) = match act {
            // The transaction says why; who it was, the trail says.
            Act::Retry => ("tx.retry", self.retry(gid, &reason)?, reason),
            Act::RollBack => ("tx.roll_back", self.roll_back(gid, reason.clone())?, reason),
            Act::Propose(remedy) => {
                let words = format!("{remedy}: {reason}");
                ("tx.propose", self.propose(gid, remedy, &by, reason)?, words)
            }
            Act::Approve => {
                let (outcome, words) = self.approve(gid, &by, &reason)?;
                ("tx.approve", outcome, words)
            }
        };
        if !outcome.repeated {
            let about = gid.to_string();
            self.write(Deed { by, act: act_word.to_owned(), about, words });
        }
        Ok(outcome)
    }

    pub(super) fn set_rules(
        &mut self,
        text: String,
        expected: u64,
        by: String,
        mut reason: String,
    ) -> Result<Outcome, Rejection> {
        if !self.books.may_set_rules(&text, expected, &by)? {
            return Ok(Outcome::UNCHANGED);
        }
        cut(&mut reason);
        let (at, epoch) = (self.clock, expected + 1);
        let version = RulesVersion { epoch, text, at, by: by.clone(), reason: reason.clone() };
        Arc::make_mut(&mut self.books).set_rules(version);
        let about = format!("epoch {epoch}");
        self.write(Deed { by, act: "rules.apply".to_owned(), about, words: reason });
        Ok(DID_SOMETHING)
    }

    pub(super) fn note(&mut self, deed: Deed) -> Outcome {
        self.write(deed);
        DID_SOMETHING
    }

    fn write(&mut self, deed: Deed) {
        Arc::make_mut(&mut self.books).trail.write(self.clock, deed);
    }

    /// A transaction that went on is another case: whoever wants to end it by hand proposes it anew.
    pub(super) fn withdraw(&mut self, gid: &Gid) {
        if self.books.proposals.contains_key(gid) {
            Arc::make_mut(&mut self.books).proposals.remove(gid);
        }
    }

    fn propose(
        &mut self,
        gid: &Gid,
        remedy: Remedy,
        by: &str,
        mut reason: String,
    ) -> Result<Outcome, Rejection> {
        let now = self.clock;
        judge(self.known(gid)?, remedy)?;
        cut(&mut reason);
        if let Some(open) = self.books.proposals.get(gid).filter(|open| !open.is_over(now)) {
            if (open.remedy, open.by.as_str(), &open.reason) == (remedy, by, &reason) {
                return Ok(Outcome::UNCHANGED);
            }
            if open.by != by {
                let what = format!(
                    "{} already proposed to {} and waits for a second person",
                    open.by, open.remedy
                );
                return Err(Rejection::Proposal { gid: gid.clone(), what });
            }
        }
        let books = Arc::make_mut(&mut self.books);
        books.proposals.retain(|_, open| !open.is_over(now));
        if books.proposals.len() >= limit::PROPOSALS_MAX && !books.proposals.contains_key(gid) {
            let what =
                format!("{} proposals wait already, which is the limit", books.proposals.len());
            return Err(Rejection::Proposal { gid: gid.clone(), what });
        }
        let until = now.plus_ms(limit::PROPOSAL_MS);
        let proposal = Proposal { remedy, by: by.to_owned(), reason, at: now, until };
        books.proposals.insert(gid.clone(), proposal);
        Ok(DID_SOMETHING)
    }

    fn approve(
        &mut self,
        gid: &Gid,
        by: &str,
        reason: &str,
    ) -> Result<(Outcome, String), Rejection> {
        let transaction = self.known(gid)?;
        let refused = |what: String| Err(Rejection::Proposal { gid: gid.clone(), what });
        let Some(open) = self.books.proposals.get(gid) else {
            return refused("nothing is proposed for it".to_owned());
        };
        if open.is_over(self.clock) {
            let minutes = limit::PROPOSAL_MS / 60_000;
            return refused(format!("the proposal of {} is over {minutes} minutes old", open.by));
        }
        if open.by == by {
            return Err(Rejection::SecondPerson { gid: gid.clone(), by: by.to_owned() });
        }
        let remedy = open.remedy;
        judge(transaction, remedy)?;
        let words = format!("{remedy}, proposed by {}: {}", open.by, open.reason);
        let said = format!("{words}; approved by {by}: {reason}");
        let clock = self.clock;
        let outcome = self.change(gid, |transaction| {
            transaction.carry_out(remedy, clock, said.clone());
            (View::of(transaction).next(), None)
        });
        self.withdraw(gid);
        Ok((outcome, said))
    }
}

/// Whether `remedy` fits `transaction` as it is now.
fn judge(transaction: &GlobalTransaction, remedy: Remedy) -> Result<(), Rejection> {
    if transaction.status != Status::NeedsAttention {
        return Err(transaction.wrong_status("ending by hand what needs no attention"));
    }
    let rules = transaction.mode.rules();
    let op = rules.op(transaction, transaction.phase());
    let waits = |branch: BranchId| {
        let index = position(branch).filter(|index| *index < transaction.branches.len());
        match (index, op) {
            (Some(index), Some(op)) if rules.awaits(&View::of(transaction), index, op) => Ok(index),
            _ => Err(Rejection::Malformed {
                gid: transaction.gid.clone(),
                what: format!(
                    "{branch} is not waited for. Name a branch that is, as the transaction shows"
                ),
            }),
        }
    };
    match remedy {
        Remedy::Abandon => Ok(()),
        Remedy::MarkDone(branch) => waits(branch).map(drop),
        Remedy::MarkRefused(branch) | Remedy::BelieveRefused(branch) => {
            let index = waits(branch)?;
            if op.is_some_and(crate::Op::is_forward_phase)
                && transaction.way_back_if_refused(index).is_some()
            {
                Ok(())
            } else {
                Err(transaction.wrong_status("marking a branch refused where there is no way back"))
            }
        }
    }
}

impl GlobalTransaction {
    /// Goes on from where it was interrupted, as if `remedy` had been answered. [`judge`] let it through.
    fn carry_out(&mut self, remedy: Remedy, clock: Timestamp, reason: String) {
        let rules = self.mode.rules();
        let phase = self.interrupted.expect("what needs attention was interrupted");
        self.become_status(phase, None, clock, Some(reason));
        match remedy {
            Remedy::MarkDone(branch) => {
                let index = position(branch).expect("it was judged");
                let op = rules.op(self, self.status).expect("it was judged");
                self.branch_becomes(index, op.when_done());
            }
            Remedy::MarkRefused(branch) => {
                let index = position(branch).expect("it was judged");
                // It stays pending: as after a deadline, the barrier and not people's word says whether there is something to undo.
                let back = self.way_back_if_refused(index).expect("it was judged");
                self.become_status(back, Some(Decision::RollBack), clock, None);
            }
            Remedy::BelieveRefused(branch) => {
                let index = position(branch).expect("it was judged");
                self.branch_becomes(index, BranchState::Refused);
            }
            Remedy::Abandon => self.abandon(clock),
        }
    }

    /// Where it goes if the branch at `index` is refused.
    fn way_back_if_refused(&self, index: usize) -> Option<Status> {
        let mut then = View::of(self);
        then.set(index, BranchState::Refused);
        self.mode.rules().way_back(&then)
    }

    /// Whatever is still asked counts as done: towards the decision; without one back, if there is a way.
    fn abandon(&mut self, clock: Timestamp) {
        let rules = self.mode.rules();
        if self.decision.is_none() {
            if let Some(back) = rules.way_back(&View::of(self)) {
                self.become_status(back, Some(Decision::RollBack), clock, None);
            } else if self.status == Status::Active {
                self.become_status(rules.submitted(), None, clock, None);
            }
        }
        let Some(op) = rules.op(self, self.status) else { return };
        let view = View::of(self);
        let asked: Vec<_> =
            (0..view.count()).filter(|index| rules.awaits(&view, *index, op)).collect();
        for index in asked {
            self.branch_becomes(index, op.when_done());
        }
    }
}
