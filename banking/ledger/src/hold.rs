//! A hold: money set aside but not yet moved, and how it ended.

use std::{fmt, sync::Arc};

use crate::{AccountId, Amount, Money};

/// A branch of a global transaction; a branch places at most one hold, so this names the hold as well.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchKey {
    /// The global transaction's id, checked where it entered.
    pub gid: Arc<str>,
    /// The branch's number within it.
    pub branch: u32,
}

impl BranchKey {
    /// The branch `branch` of `gid`.
    #[must_use]
    pub fn new(gid: &str, branch: u32) -> Self {
        Self { gid: gid.into(), branch }
    }
}

impl fmt::Display for BranchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} b{}", self.gid, self.branch)
    }
}

impl fmt::Debug for BranchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Which way held money is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// It will leave the account.
    Out,
    /// It will arrive.
    In,
}

impl Direction {
    /// The direction's name, as it is stored.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }

    /// The direction of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Out, Self::In].into_iter().find(|direction| direction.name() == name)
    }
}

/// How a hold ended. Recorded once, beside the hold, which itself never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resolution {
    /// So much of it moved; the rest, if any, was let go.
    Captured(Amount),
    /// None of it moved.
    Released,
}

/// Money set aside on one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The account it lies on.
    pub account: AccountId,
    /// Which way the money is to go.
    pub direction: Direction,
    /// How much.
    pub money: Money,
    /// How it ended; `None` while it stands.
    pub resolution: Option<Resolution>,
}
