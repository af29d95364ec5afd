//! Why an instruction is refused: always final, always with the numbers.

use crate::{AccountId, BranchKey, Currency, Damaged, Money, money::decimal};

/// A refused instruction. The book is as it was before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More was asked for than is available.
    #[error("account {account}: available {}, needed {needed}", money(*.available, needed.currency))]
    InsufficientFunds {
        /// The account that was to pay.
        account: AccountId,
        /// What it could still spend, minor units.
        available: i64,
        /// What was asked for.
        needed: Money,
    },
    /// There is no such account here.
    #[error("account {0} is not kept here; check the id and the shard")]
    AccountUnknown(AccountId),
    /// The account takes no new business.
    #[error("account {0} is closed")]
    AccountClosed(AccountId),
    /// The account is kept in another currency.
    #[error("account {account} is kept in {kept}, the instruction is in {given}")]
    CurrencyMismatch {
        /// The account.
        account: AccountId,
        /// Its currency.
        kept: Currency,
        /// The instruction's.
        given: Currency,
    },
    /// A capture of more than was held.
    #[error("hold {hold}: capture of {asked} exceeds the {held} that are held")]
    AmountOutOfRange {
        /// The hold.
        hold: BranchKey,
        /// What was to be captured.
        asked: Money,
        /// What is held.
        held: Money,
    },
    /// There is no such hold.
    #[error("hold {0} was never placed here")]
    HoldUnknown(BranchKey),
    /// The branch has placed its hold already.
    #[error("hold {0} is already placed; a branch places one hold")]
    HoldExists(BranchKey),
    /// The hold has ended already.
    #[error("hold {0} is already resolved; a hold is resolved once")]
    HoldResolved(BranchKey),
    /// The account could not count so much.
    #[error("account {account}: {given} more would be beyond what an account can count; room for {}", money(*.room, given.currency))]
    Overflow {
        /// The account that was to receive.
        account: AccountId,
        /// What was to arrive.
        given: Money,
        /// What could still arrive, minor units.
        room: i64,
    },
    /// Both ends of a transfer are one account.
    #[error("a transfer needs two accounts, both are {0}")]
    SameAccount(AccountId),
    /// The stored counters contradict a hold, or the laws of an account. Nothing is written on top of that.
    #[error(
        "account {account}: its counters contradict its holds ({detail}); audit the data source before going on"
    )]
    Inconsistent {
        /// The account.
        account: AccountId,
        /// What contradicts what.
        detail: String,
    },
}

impl Refusal {
    /// The refusal's code, for statistics and programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InsufficientFunds { .. } => "insufficient_funds",
            Self::AccountUnknown(_) => "account_unknown",
            Self::AccountClosed(_) => "account_closed",
            Self::CurrencyMismatch { .. } => "currency_mismatch",
            Self::AmountOutOfRange { .. } => "amount_out_of_range",
            Self::HoldUnknown(_) => "hold_unknown",
            Self::HoldExists(_) => "hold_exists",
            Self::HoldResolved(_) => "hold_resolved",
            Self::Overflow { .. } => "overflow",
            Self::SameAccount(_) => "same_account",
            Self::Inconsistent { .. } => "ledger_inconsistent",
        }
    }

    /// What to answer for an account whose stored counters break a law.
    #[must_use]
    pub fn damaged(account: AccountId, damage: &Damaged) -> Self {
        Self::Inconsistent { account, detail: damage.to_string() }
    }
}

fn money(minor: i64, currency: Currency) -> String {
    format!("{} {currency}", decimal(minor, currency))
}
