//! The modes: pure rules that say what a transaction needs next. One file a mode.

use crate::{BranchId, Decision, GlobalTransaction, Op, Status};

pub mod frontier;
mod saga;
mod tcc;
mod two_phase;
mod view;
mod xa;

pub(crate) use view::{Heard, position};
pub use view::{Trouble, View};

/// The rules a transaction lives by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Try, confirm, cancel: holds are placed, then all captured or all released.
    Tcc,
    /// Actions in order; what was done is compensated in reverse when a step is refused.
    Saga,
    /// Prepare, commit, roll back: local transactions that wait for nothing but their end.
    Xa,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Tcc, Self::Saga, Self::Xa];

    /// Its rules.
    #[must_use]
    pub fn rules(self) -> &'static dyn Rules {
        match self {
            Self::Tcc => &tcc::RULES,
            Self::Saga => &saga::Saga,
            Self::Xa => &xa::RULES,
        }
    }

    /// The word on the wire and in scripts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcc => "tcc",
            Self::Saga => "saga",
            Self::Xa => "xa",
        }
    }
}

/// What a transaction needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// These calls may be made at once; none of them waits for another.
    Call(Vec<(BranchId, Op)>),
    /// The status that its branches have earned, and the decision if this move makes one.
    Become(Status, Option<Decision>),
    /// The status stays, but what was heard must be in the log before anything else is called: the pivot comes next.
    Record,
    /// Nothing, until somebody says something.
    Wait,
}

/// The rules of a mode.
pub trait Rules: Sync {
    /// What the transaction needs next, from what the view shows alone. A view of what needs attention: [`Next::Wait`].
    fn next(&self, view: &View<'_>) -> Next;

    /// The status of a transaction that has all its branches and no decision.
    fn submitted(&self) -> Status;

    /// What the coordinator asks the branches for in `phase`, if anything.
    fn op(&self, transaction: &GlobalTransaction, phase: Status) -> Option<Op>;

    /// Whether the branch's operation of this phase has no answer yet.
    fn awaits(&self, view: &View<'_>, index: usize, op: Op) -> bool;

    /// Whether a refusal of the branch's first-phase operation is final and turns the whole transaction back. Otherwise
    /// people must look, and the branch can be asked again.
    fn refusal_turns_back(&self, view: &View<'_>, index: usize) -> bool;

    /// Where an undecided transaction goes that is told to roll back. `None`: there is no way back any more.
    fn way_back(&self, view: &View<'_>) -> Option<Status>;

    /// Whether the deadline ends the transaction while it is undecided.
    fn heeds_deadline(&self, transaction: &GlobalTransaction) -> bool;
}
