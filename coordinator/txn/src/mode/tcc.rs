//! TCC: holds are placed by tries; when all are placed they are captured, otherwise all are released.

use crate::{BranchState, Decision, GlobalTransaction, Next, Op, Status, TriedBy};

use super::{Rules, Trouble, View, frontier};

/// Try, confirm, cancel.
#[derive(Debug)]
pub(super) struct Tcc;

impl Rules for Tcc {
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
                    view.call(Op::Confirm, |index| self.awaits(view, index, Op::Confirm))
                }
            }
            Status::RollingBack => {
                if view.trouble().is_some() {
                    Trouble::needs_attention()
                } else if view.all(BranchState::Undone) {
                    Next::Become(Status::RolledBack, None)
                } else {
                    view.call(Op::Cancel, |index| self.awaits(view, index, Op::Cancel))
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
                TriedBy::Coordinator => Some(Op::Try),
                TriedBy::Caller => None,
            },
            Status::Committing => Some(Op::Confirm),
            Status::RollingBack => Some(Op::Cancel),
            Status::Running
            | Status::Compensating
            | Status::Committed
            | Status::RolledBack
            | Status::NeedsAttention => None,
        }
    }

    fn awaits(&self, view: &View<'_>, index: usize, op: Op) -> bool {
        match op {
            Op::Try => view.state(index) == BranchState::Pending,
            Op::Confirm => view.state(index) == BranchState::Done,
            // Every branch is cancelled, also one that refused or was never called: a duplicate of its try may still be
            // on its way, and must find the empty cancel.
            Op::Cancel => view.state(index) != BranchState::Undone,
            Op::Action | Op::Compensate => false,
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
