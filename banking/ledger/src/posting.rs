//! A posting: one row of the append-only journal, whose fold is the account's counters.

use crate::{
    account::{AccountId, Counters},
    hold::BranchKey,
};

/// What a posting records. Each happens at most once for a branch and an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The balance an account was opened with.
    Opening,
    /// Money was set aside.
    HoldPlaced,
    /// Money that was set aside has moved.
    HoldCaptured,
    /// Money that was set aside was let go.
    HoldReleased,
    /// Money left without a hold.
    Debit,
    /// Money arrived without a hold.
    Credit,
    /// A debit was undone: the money came back.
    DebitReversed,
    /// A credit was undone: the money was taken back.
    CreditReversed,
}

impl Kind {
    /// Every kind there is.
    pub const ALL: [Self; 8] = [
        Self::Opening,
        Self::HoldPlaced,
        Self::HoldCaptured,
        Self::HoldReleased,
        Self::Debit,
        Self::Credit,
        Self::DebitReversed,
        Self::CreditReversed,
    ];

    /// The kind's name, as it is stored.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::HoldPlaced => "hold_placed",
            Self::HoldCaptured => "hold_captured",
            Self::HoldReleased => "hold_released",
            Self::Debit => "debit",
            Self::Credit => "credit",
            Self::DebitReversed => "debit_reversed",
            Self::CreditReversed => "credit_reversed",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The branch operation that makes postings of this kind.
    #[must_use]
    pub const fn op(self) -> &'static str {
        match self {
            Self::Opening => "open",
            Self::HoldPlaced => "try",
            Self::HoldCaptured => "confirm",
            Self::HoldReleased => "cancel",
            Self::Debit | Self::Credit => "action",
            Self::DebitReversed | Self::CreditReversed => "compensate",
        }
    }
}

/// One row of the journal. Never changed, never removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posting {
    /// The branch it belongs to; [`Posting::OPENING`] and 0 for an opening.
    pub branch: BranchKey,
    /// The account it changes.
    pub account: AccountId,
    /// What it records.
    pub kind: Kind,
    /// Added to the balance, minor units.
    pub balance_delta: i64,
    /// Added to what is held to leave, minor units.
    pub held_out_delta: i64,
    /// Added to what is held to arrive, minor units.
    pub held_in_delta: i64,
}

impl Posting {
    /// What stands in place of a gid in the posting that opens an account. No gid can be this: a gid has no '*'.
    pub const OPENING: &'static str = "*opening*";

    /// The counters that postings of one account add up to. `None` if a sum overflows; laws of an account are not judged.
    #[must_use]
    pub fn fold<'p>(postings: impl IntoIterator<Item = &'p Self>) -> Option<Counters> {
        postings.into_iter().try_fold(Counters::default(), |counters, posting| {
            Some(Counters {
                balance: counters.balance.checked_add(posting.balance_delta)?,
                held_out: counters.held_out.checked_add(posting.held_out_delta)?,
                held_in: counters.held_in.checked_add(posting.held_in_delta)?,
            })
        })
    }
}
