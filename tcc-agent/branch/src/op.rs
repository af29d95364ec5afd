//! What a branch can be asked to do: the verbs of TCC, of Saga and of XA, and how they belong together.

use std::fmt;

/// One operation of a branch. The order is that of the names, which is the order in which barrier rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Saga: do the step, for good.
    Action,
    /// TCC: give back what the try set aside.
    Cancel,
    /// Saga: undo the step.
    Compensate,
    /// TCC: carry out what the try set aside.
    Confirm,
    /// TCC: check, and set aside.
    Try,
    /// XA: bring the local transaction to where only its end is missing. The barrier knows no verb of XA: the name under which a
    /// database prepares is what tells a repeat.
    Prepare,
    /// XA: commit what is prepared.
    Commit,
    /// XA: roll back what is prepared, or never was.
    Rollback,
}

/// A text that names no operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an operation is try, confirm, cancel, action or compensate; this one is {0:?}")]
pub struct BadOp(String);

impl Op {
    /// Every operation that the barrier knows.
    pub const ALL: [Self; 5] =
        [Self::Action, Self::Cancel, Self::Compensate, Self::Confirm, Self::Try];

    /// The verbs of XA.
    pub const XA: [Self; 3] = [Self::Prepare, Self::Commit, Self::Rollback];

    /// The name, as in barrier rows, paths and headers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Action => "action",
            Self::Cancel => "cancel",
            Self::Compensate => "compensate",
            Self::Confirm => "confirm",
            Self::Try => "try",
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
        }
    }

    /// The operation of that name, of those that the barrier knows.
    /// # Errors
    /// [`BadOp`] shows at most the first 32 characters of what was given.
    pub fn parse(text: &str) -> Result<Self, BadOp> {
        Self::ALL
            .into_iter()
            .find(|op| op.as_str() == text)
            .ok_or_else(|| BadOp(text.chars().take(32).collect()))
    }

    /// Try, action and prepare: they may be refused for a business reason, and what they did can be undone.
    #[must_use]
    pub const fn is_first_phase(self) -> bool {
        matches!(self, Self::Try | Self::Action | Self::Prepare)
    }

    /// Cancel, compensate and rollback.
    #[must_use]
    pub const fn is_undo(self) -> bool {
        matches!(self, Self::Cancel | Self::Compensate | Self::Rollback)
    }

    /// Action and compensate.
    #[must_use]
    pub const fn is_saga(self) -> bool {
        matches!(self, Self::Action | Self::Compensate)
    }

    /// Prepare, commit and rollback.
    #[must_use]
    pub const fn is_xa(self) -> bool {
        matches!(self, Self::Prepare | Self::Commit | Self::Rollback)
    }

    /// The operation of the same mode that comes first: try, action or prepare.
    #[must_use]
    pub const fn first_of_mode(self) -> Self {
        if self.is_saga() {
            Self::Action
        } else if self.is_xa() {
            Self::Prepare
        } else {
            Self::Try
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
