//! Saga: actions take effect one by one; when one cannot be done, those before it are compensated, last first.

use crate::{BranchState, Decision, GlobalTransaction, Next, Op, Recovery, Status};

use super::{Rules, Trouble, View, frontier};

/// Actions and compensations.
#[derive(Debug)]
pub(super) struct Saga;

impl Rules for Saga {
    fn next(&self, view: &View<'_>) -> Next {
        let transaction = view.transaction();
        match transaction.status {
            Status::Active | Status::Running => {
                // A refusal that cannot turn the transaction back never becomes a refused branch.
                if view.any(BranchState::Refused) {
                    return Next::Become(Status::Compensating, Some(Decision::RollBack));
                }
                if let Some(trouble) = view.trouble() {
                    let recovery = transaction.options.recovery;
                    if trouble.is_unknown() && recovery == Recovery::Backward && can_go_back(view) {
                        return Next::Become(Status::Compensating, Some(Decision::RollBack));
                    }
                    return Trouble::needs_attention();
                }
                if let Some(pivot) = pivot(transaction)
                    && !transaction.pivot_reached
                    && (view.is_done(pivot) || frontier::is_ready(view, pivot))
                {
                    return Next::Record;
                }
                if transaction.status == Status::Running && view.all(BranchState::Done) {
                    return Next::Become(Status::Committed, Some(Decision::Commit));
                }
                view.call(Op::Action, |index| {
                    self.awaits(view, index, Op::Action) && frontier::is_ready(view, index)
                })
            }
            Status::Compensating => {
                if view.trouble().is_some() {
                    return Trouble::needs_attention();
                }
                let remaining = undoable(view);
                if !remaining.contains(&true) {
                    return Next::Become(Status::RolledBack, None);
                }
                let callable = frontier::backward(view, &remaining);
                view.call(Op::Compensate, |index| callable[index])
            }
            Status::Trying
            | Status::Committing
            | Status::RollingBack
            | Status::Committed
            | Status::RolledBack
            | Status::NeedsAttention => Next::Wait,
        }
    }

    fn submitted(&self) -> Status {
        Status::Running
    }

    fn op(&self, _: &GlobalTransaction, phase: Status) -> Option<Op> {
        match phase {
            Status::Active | Status::Running => Some(Op::Action),
            Status::Compensating => Some(Op::Compensate),
            Status::Trying
            | Status::Committing
            | Status::RollingBack
            | Status::Committed
            | Status::RolledBack
            | Status::NeedsAttention => None,
        }
    }

    fn awaits(&self, view: &View<'_>, index: usize, op: Op) -> bool {
        match op {
            Op::Action => view.state(index) == BranchState::Pending,
            Op::Compensate => undoable(view)[index],
            Op::Try | Op::Confirm | Op::Cancel | Op::Prepare | Op::Commit | Op::RollBack => false,
        }
    }

    fn refusal_turns_back(&self, view: &View<'_>, index: usize) -> bool {
        let transaction = view.transaction();
        let pivot = pivot(transaction);
        // Beside or behind a pivot that is reached, a refusal may be one that people have mended since, so that it is no
        // proof that the branch did nothing: it stays pending and, if the pivot itself refuses, is compensated.
        let is_reached =
            transaction.pivot_reached || pivot.is_some_and(|pivot| view.is_done(pivot));
        transaction.options.recovery == Recovery::Backward && (!is_reached || pivot == Some(index))
    }

    fn way_back(&self, view: &View<'_>) -> Option<Status> {
        can_go_back(view).then_some(Status::Compensating)
    }

    fn heeds_deadline(&self, transaction: &GlobalTransaction) -> bool {
        transaction.options.recovery == Recovery::Backward && !transaction.pivot_reached
    }
}

fn pivot(transaction: &GlobalTransaction) -> Option<usize> {
    transaction.branches.iter().position(|branch| branch.spec.pivot)
}

/// Not once the pivot is done, nor while it may have been: only its refusal opens the way back again.
fn can_go_back(view: &View<'_>) -> bool {
    pivot(view.transaction()).is_none_or(|pivot| match view.state(pivot) {
        BranchState::Refused => true,
        BranchState::Pending => !view.transaction().pivot_reached,
        BranchState::Done | BranchState::Confirmed | BranchState::Undone => false,
    })
}

/// Marks what is still to be undone: what is done, and what may have been done by a leader whose word is lost. A refused
/// branch did nothing, those behind it can never have been called, nor can a pivot that no record says is reached, nor
/// those behind that.
fn undoable(view: &View<'_>) -> Vec<bool> {
    let transaction = view.transaction();
    let unreached = if transaction.pivot_reached { None } else { pivot(transaction) };
    let barred = |index| view.state(index) == BranchState::Refused || unreached == Some(index);
    let never_called = (0..view.count()).any(barred).then(|| frontier::behind(view, barred));
    (0..view.count())
        .map(|index| match view.state(index) {
            BranchState::Done => true,
            BranchState::Pending => {
                unreached != Some(index) && !never_called.as_ref().is_some_and(|never| never[index])
            }
            BranchState::Refused | BranchState::Confirmed | BranchState::Undone => false,
        })
        .collect()
}
