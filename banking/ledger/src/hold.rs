//! A hold: money set aside but not yet moved, and how it ended.

use std::{fmt, sync::Arc};

use crate::{AccountId, Amount, Kind, Posting};

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
    /// The direction's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

/// How a hold ended: once, by a posting of its own.
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
    /// How much, in the account's currency.
    pub amount: Amount,
    /// How it ended; `None` while it stands.
    pub resolution: Option<Resolution>,
}

impl Hold {
    /// The hold that one branch's postings tell of, in whatever order. `None`: they place none, or are none that the ledger makes, as two
    /// holds or two ends.
    #[must_use]
    pub fn of<'p>(postings: impl IntoIterator<Item = &'p Posting>) -> Option<Self> {
        let (mut placed, mut ends) = (None, Vec::new());
        for posting in postings {
            match posting.kind {
                Kind::HoldPlaced => {
                    let (direction, minor) = match (posting.held_out_delta, posting.held_in_delta) {
                        (minor, 0) => (Direction::Out, minor),
                        (0, minor) => (Direction::In, minor),
                        _ => return None,
                    };
                    let hold = (&posting.account, direction, Amount::new(minor).ok()?);
                    if placed.replace(hold).is_some() {
                        return None;
                    }
                }
                Kind::HoldCaptured => {
                    let moved = posting.balance_delta.checked_abs()?;
                    ends.push(Resolution::Captured(Amount::new(moved).ok()?));
                }
                Kind::HoldReleased => ends.push(Resolution::Released),
                Kind::Opening
                | Kind::Debit
                | Kind::Credit
                | Kind::DebitReversed
                | Kind::CreditReversed => {}
            }
        }
        let (account, direction, amount) = placed?;
        let resolution = ends.pop();
        ends.is_empty().then(|| Self { account: account.clone(), direction, amount, resolution })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_holds_or_two_ends_of_one_branch_are_no_hold() {
        let posting = |account: &str, kind, balance_delta, held_out_delta| Posting {
            branch: BranchKey::new("g", 1),
            account: AccountId::parse(account).unwrap(),
            kind,
            balance_delta,
            held_out_delta,
            held_in_delta: 0,
        };
        let placed = posting("a", Kind::HoldPlaced, 0, 7);
        let captured = posting("a", Kind::HoldCaptured, -7, -7);
        let whole = Hold::of([&captured, &placed]).unwrap();
        assert_eq!(whole.resolution, Some(Resolution::Captured(Amount::new(7).unwrap())));
        assert_eq!(Hold::of([&placed, &posting("b", Kind::HoldPlaced, 0, 7)]), None);
        assert_eq!(Hold::of([&placed, &captured, &posting("a", Kind::HoldReleased, 0, -7)]), None);
        assert_eq!(Hold::of([&captured]), None);
    }
}
