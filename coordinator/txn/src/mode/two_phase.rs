//! Two phases: what all branches set aside is taken by all, otherwise given back by all. The rules of TCC and of XA, which differ
//! in their verbs alone.

use crate::{BranchState, Decision, GlobalTransaction, Next, Op, Status, TriedBy};

use super::{Rules, Trouble, View, frontier};

/// The verbs.
#[derive(Debug)]
pub(super) struct TwoPhase {
    /// Sets aside; may be refused.
    pub(super) first: Op,
    /// Takes what is set aside.
    pub(super) commit: Op,
    /// Gives back what is set aside.
    pub(super) undo: Op,
}

impl Rules for TwoPhase {
    fn next(&self, view: &View<'_>) -> Next {
        let transaction = view.transaction();
        match transaction.status {
            Status::Active | Status::Trying => {
                if view.any(BranchState::Refused) || view.trouble().is_some() {
                    return Next::Become(Status::RollingBack, Some(Decision::RollBack));
                }
                if transaction.status == Status::Trying && view.all(BranchState::Done) {
                    return Next::Become(Status::Committing, Some(Decision::Commit));
                }
                match self.op(transaction, transaction.status) {
                    Some(op) => view.call(op, |index| {
                        self.awaits(view, index, op) && frontier::is_ready(view, index)
                    }),
                    None => Next::Wait,
                }
            }
            Status::Committing => {
                if view.trouble().is_some() {
                    Trouble::needs_attention()
                } else if view.all(BranchState::Confirmed) {
                    Next::Become(Status::Committed, None)
                } else {
                    view.call(self.commit, |index| self.awaits(view, index, self.commit))
                }
            }
            Status::RollingBack => {
                if view.trouble().is_some() {
                    Trouble::needs_attention()
                } else if view.all(BranchState::Undone) {
                    Next::Become(Status::RolledBack, None)
                } else {
                    view.call(self.undo, |index| self.awaits(view, index, self.undo))
                }
            }
            Status::Running
            | Status::Compensating
            | Status::Committed
            | Status::RolledBack
            | Status::NeedsAttention => Next::Wait,
        }
    }

    fn submitted(&self) -> Status {
        Status::Trying
    }

    fn op(&self, transaction: &GlobalTransaction, phase: Status) -> Option<Op> {
        match phase {
            Status::Active | Status::Trying => match transaction.options.tried_by {
                TriedBy::Coordinator => Some(self.first),
                TriedBy::Caller => None,
            },
            Status::Committing => Some(self.commit),
            Status::RollingBack => Some(self.undo),
            Status::Running
            | Status::Compensating
            | Status::Committed
            | Status::RolledBack
            | Status::NeedsAttention => None,
        }
    }

    fn awaits(&self, view: &View<'_>, index: usize, op: Op) -> bool {
        let state = view.state(index);
        if op == self.first {
            state == BranchState::Pending
        } else if op == self.commit {
            state == BranchState::Done
        } else {
            // Every branch is undone, also one that refused or was never called: a duplicate of its first call may still
            // be on its way, and must find that it is too late.
            op == self.undo && state != BranchState::Undone
        }
    }

    fn refusal_turns_back(&self, _: &View<'_>, _: usize) -> bool {
        true
    }

    fn way_back(&self, _: &View<'_>) -> Option<Status> {
        Some(Status::RollingBack)
    }

    fn heeds_deadline(&self, _: &GlobalTransaction) -> bool {
        true
    }
}
