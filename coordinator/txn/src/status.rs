//! Closed sets: what a global transaction, a branch and an operation can be, and the moves that are legal.

use std::fmt;

/// Where a global transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Begun in the enlisted style, open for branches; those it has are called already.
    Active,
    /// TCC and XA: every branch is asked to place its hold, or to prepare.
    Trying,
    /// Saga: actions run.
    Running,
    /// TCC and XA, decided: every branch is told to confirm, or to commit.
    Committing,
    /// TCC and XA, decided: every branch is told to cancel, or to roll back.
    RollingBack,
    /// Saga, decided: what was done is compensated, last first.
    Compensating,
    /// The end: every branch took effect.
    Committed,
    /// The end: no branch has an effect.
    RolledBack,
    /// A branch can never finish by itself. Nothing is dropped; people must look.
    NeedsAttention,
}

/// Which way a transaction goes, once that is known. It never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// All branches take effect.
    Commit,
    /// No branch takes effect.
    RollBack,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 9] = [
        Self::Active,
        Self::Trying,
        Self::Running,
        Self::Committing,
        Self::RollingBack,
        Self::Compensating,
        Self::Committed,
        Self::RolledBack,
        Self::NeedsAttention,
    ];

    /// The legal moves. What is not listed here never happens.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use Status::{
            Active, Committed, Committing, Compensating, NeedsAttention, RolledBack, RollingBack,
            Running, Trying,
        };
        match self {
            Active => matches!(
                next,
                Trying
                    | Running
                    | Committing
                    | RollingBack
                    | Compensating
                    | RolledBack
                    | NeedsAttention
            ),
            Trying => matches!(next, Committing | RollingBack | NeedsAttention),
            Running => matches!(next, Committed | Compensating | RolledBack | NeedsAttention),
            Committing => matches!(next, Committed | NeedsAttention),
            RollingBack | Compensating => matches!(next, RolledBack | NeedsAttention),
            NeedsAttention => {
                matches!(next, Active | Trying | Running | Committing | RollingBack | Compensating)
            }
            Committed | RolledBack => false,
        }
    }

    /// Committed or rolled back: nothing is owed any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Committed | Self::RolledBack)
    }

    /// The words for people, as in the vocabulary.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Trying => "trying",
            Self::Running => "running",
            Self::Committing => "committing",
            Self::RollingBack => "rolling back",
            Self::Compensating => "compensating",
            Self::Committed => "committed",
            Self::RolledBack => "rolled back",
            Self::NeedsAttention => "needs attention",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a participant is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// TCC: check, and place the hold.
    Try,
    /// TCC: capture the hold.
    Confirm,
    /// TCC: release the hold.
    Cancel,
    /// Saga: do it.
    Action,
    /// Saga: undo it by an opposite entry.
    Compensate,
    /// XA: bring the local transaction to where only its end is missing.
    Prepare,
    /// XA: commit what is prepared.
    Commit,
    /// XA: roll back what is prepared, or never was.
    RollBack,
}

impl Op {
    /// Every operation.
    pub const ALL: [Self; 8] = [
        Self::Try,
        Self::Confirm,
        Self::Cancel,
        Self::Action,
        Self::Compensate,
        Self::Prepare,
        Self::Commit,
        Self::RollBack,
    ];

    /// The first phase of its mode: a refusal of it decides for rollback.
    #[must_use]
    pub fn is_forward_phase(self) -> bool {
        matches!(self, Self::Try | Self::Action | Self::Prepare)
    }

    /// Where a branch is that has done it.
    #[must_use]
    pub fn when_done(self) -> BranchState {
        match self {
            Self::Try | Self::Action | Self::Prepare => BranchState::Done,
            Self::Confirm | Self::Commit => BranchState::Confirmed,
            Self::Cancel | Self::Compensate | Self::RollBack => BranchState::Undone,
        }
    }

    /// The verb on the wire, in scripts and in sidecar paths.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Try => "try",
            Self::Confirm => "confirm",
            Self::Cancel => "cancel",
            Self::Action => "action",
            Self::Compensate => "compensate",
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::RollBack => "rollback",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the machine knows of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BranchState {
    /// No answer is recorded: never called, or called without a recorded answer.
    Pending,
    /// Its try, action or prepare is done.
    Done,
    /// Its try, action or prepare was refused: final, and nothing was done.
    Refused,
    /// TCC and XA: its hold is captured, or what it prepared is committed.
    Confirmed,
    /// Its hold is released, its action compensated, or what it prepared rolled back.
    Undone,
}

impl BranchState {
    /// The legal moves of a branch.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Pending => matches!(next, Self::Done | Self::Refused | Self::Undone),
            Self::Done => matches!(next, Self::Confirmed | Self::Undone),
            Self::Refused => matches!(next, Self::Undone),
            Self::Confirmed | Self::Undone => false,
        }
    }

    /// Whether words of refusal beside this state say that the operation of the current phase waits for people. Beside
    /// the other states they are the words of a refused try or action, and stay.
    pub(crate) fn may_hold_refusal(self) -> bool {
        match self {
            Self::Pending | Self::Done => true,
            Self::Refused | Self::Confirmed | Self::Undone => false,
        }
    }

    /// The words for people and for the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Confirmed => "confirmed",
            Self::Undone => "undone",
        }
    }
}
