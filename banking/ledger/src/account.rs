//! An account: its three counters and what must always be true of them.

use std::{fmt, sync::Arc};

use crate::{
    Currency, Money,
    hold::BranchKey,
    money::decimal,
    posting::{Kind, Posting},
};

/// An account's id: 1 to 34 characters of `[A-Za-z0-9-]`, so that an IBAN fits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Arc<str>);

/// A text that is no account's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an account's id has 1 to 34 characters of A-Z, a-z, 0-9 and '-'; this one is {0:?}")]
pub struct BadAccountId(String);

impl AccountId {
    /// The longest id, in characters.
    pub const LENGTH_MAX: usize = 34;

    /// Checks and takes `text`.
    /// # Errors
    /// [`BadAccountId`] shows the beginning of what was given.
    pub fn parse(text: &str) -> Result<Self, BadAccountId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if text.is_empty() || text.len() > Self::LENGTH_MAX || !text.bytes().all(allowed) {
            return Err(BadAccountId(text.chars().take(Self::LENGTH_MAX).collect()));
        }
        Ok(Self(text.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether an account takes new business. Holds that are placed are resolved, and postings reversed, in either state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccountState {
    /// It does.
    Open,
    /// It does not.
    Closed,
}

impl AccountState {
    /// The state's name, as it is stored.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Open, Self::Closed].into_iter().find(|state| state.name() == name)
    }
}

/// An account's counters, in minor units of its currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// What belongs to the account; at least 0.
    pub balance: i64,
    /// The part of the balance that holds set aside to leave; 0 to `balance`.
    pub held_out: i64,
    /// What holds announced to arrive; at least 0, and `balance` + `held_in` fits 63 bits, so that every capture fits.
    pub held_in: i64,
}

/// Counters that no sequence of instructions leads to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("balance {balance}, held_out {held_out}, held_in {held_in} cannot be: {reason}")]
pub struct Damaged {
    balance: i64,
    held_out: i64,
    held_in: i64,
    reason: &'static str,
}

impl Counters {
    /// What may still be spent: balance - `held_out`.
    #[must_use]
    pub const fn available(self) -> i64 {
        self.balance.saturating_sub(self.held_out)
    }

    /// The most that may still be announced or credited.
    #[must_use]
    pub const fn room(self) -> i64 {
        i64::MAX.saturating_sub(self.balance).saturating_sub(self.held_in)
    }

    /// Itself, if it can be.
    /// # Errors
    /// [`Damaged`] says which law is broken.
    pub fn check(self) -> Result<Self, Damaged> {
        let Self { balance, held_out, held_in } = self;
        let broken = |reason| Err(Damaged { balance, held_out, held_in, reason });
        if balance < 0 {
            return broken("the balance is negative");
        }
        if held_out < 0 || held_in < 0 {
            return broken("a hold counter is negative");
        }
        if held_out > balance {
            return broken("more is held than there is");
        }
        if balance.checked_add(held_in).is_none() {
            return broken("what is to arrive will not fit");
        }
        Ok(self)
    }

    /// The counters after `posting`; `None` if that cannot be.
    pub(crate) fn after(self, posting: &Posting) -> Option<Self> {
        let after = Self {
            balance: self.balance.checked_add(posting.balance_delta)?,
            held_out: self.held_out.checked_add(posting.held_out_delta)?,
            held_in: self.held_in.checked_add(posting.held_in_delta)?,
        };
        after.check().ok()
    }
}

/// An account with counters that can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub(crate) id: AccountId,
    pub(crate) currency: Currency,
    pub(crate) state: AccountState,
    pub(crate) counters: Counters,
}

impl Account {
    /// Opens an account with a first balance, and the posting that says where it comes from.
    #[must_use]
    pub fn open(id: AccountId, balance: Money) -> (Self, Posting) {
        let mut account = Self::open_empty(id.clone(), balance.currency);
        account.counters.balance = balance.amount.minor();
        let opening = Posting {
            branch: BranchKey::new(Posting::OPENING, 0),
            account: id,
            kind: Kind::Opening,
            balance_delta: balance.amount.minor(),
            held_out_delta: 0,
            held_in_delta: 0,
        };
        (account, opening)
    }

    /// Opens an account with nothing on it.
    #[must_use]
    pub fn open_empty(id: AccountId, currency: Currency) -> Self {
        Self { id, currency, state: AccountState::Open, counters: Counters::default() }
    }

    /// Takes an account back from where it was stored.
    /// # Errors
    /// [`Damaged`] when the counters break a law.
    pub fn restore(
        id: AccountId,
        currency: Currency,
        state: AccountState,
        counters: Counters,
    ) -> Result<Self, Damaged> {
        Ok(Self { id, currency, state, counters: counters.check()? })
    }

    /// The id.
    #[must_use]
    pub const fn id(&self) -> &AccountId {
        &self.id
    }

    /// The one currency of the account.
    #[must_use]
    pub const fn currency(&self) -> Currency {
        self.currency
    }

    /// Open or closed.
    #[must_use]
    pub const fn state(&self) -> AccountState {
        self.state
    }

    /// The three counters.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |minor| decimal(minor, self.currency);
        let Counters { balance, held_out, held_in } = self.counters;
        write!(
            f,
            "{} {}: balance {} {}, held out {}, held in {}, available {}",
            self.id,
            self.state.name(),
            show(balance),
            self.currency,
            show(held_out),
            show(held_in),
            show(self.counters.available())
        )
    }
}
