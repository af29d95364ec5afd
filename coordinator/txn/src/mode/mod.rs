//! The modes: pure rules that say what a transaction needs next. One file a mode.

use crate::{BranchId, Decision, GlobalTransaction, Op, Status};

/// The rules a transaction lives by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Try, confirm, cancel: holds are placed, then all captured or all released.
    Tcc,
    /// Actions in order; what was done is compensated in reverse when a step is refused.
    Saga,
}

/// What a transaction needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// These calls may be made at once; none of them waits for another.
    Call(Vec<(BranchId, Op)>),
    /// The status that its branches have earned.
    Become(Status, Option<Decision>),
    /// Nothing, until somebody says something.
    Wait,
}

/// The rules of a mode.
pub trait Rules {
    /// What `transaction` needs next, from its state alone.
    fn next(&self, transaction: &GlobalTransaction) -> Next;
}
