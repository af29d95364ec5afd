//! What an operator may do to a transaction that can lose money, and therefore needs a second person.

use std::fmt;

use crate::{BranchId, Timestamp};

/// An end by hand to what a transaction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// People saw to it that the branch did what it was asked.
    MarkDone(BranchId),
    /// People know that the branch did nothing: the transaction turns back. Only while there is a way back. The branch is undone with
    /// the others, so that a call to it which is still on its way finds that it is too late.
    MarkRefused(BranchId),
    /// As [`Self::MarkRefused`], without asking the branch for anything: proposed before format 5, and still carried out as it was meant.
    BelieveRefused(BranchId),
    /// Every branch counts as if it had done what is still asked of it; people settle the rest elsewhere.
    Abandon,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MarkDone(branch) => write!(f, "mark {branch} done"),
            Self::MarkRefused(branch) => write!(f, "mark {branch} refused and undo it"),
            Self::BelieveRefused(branch) => write!(f, "mark {branch} refused"),
            Self::Abandon => f.write_str("abandon"),
        }
    }
}

/// A remedy that waits for a second person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// What is to be done.
    pub remedy: Remedy,
    /// Who proposed it, and so cannot approve it.
    pub by: String,
    /// Why, for people.
    pub reason: String,
    /// When it was proposed.
    pub at: Timestamp,
    /// From then on nobody can approve it; at the end of time, where the clock stands still, somebody can.
    pub until: Timestamp,
}

impl Proposal {
    /// Whether nobody can approve it any more.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        now >= self.until && self.at < self.until
    }
}
