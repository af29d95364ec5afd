//! The ledger mind: money, accounts, holds and postings.
//!
//! An account has three counters. `balance` is what belongs to it; `held_out` is the part of it that holds have set aside to
//! leave; `held_in` is what holds have announced to arrive. What may still be spent is `available` = `balance` - `held_out`.
//!
//! ```text
//!            place (try)                capture (confirm)                release (cancel)
//! out        held_out + n               held_out - n, balance - n        held_out - n
//! in         held_in  + n               held_in  - n, balance + n        held_in  - n
//! ```
//!
//! All business checks happen when a hold is placed, also whether the money will fit; so a capture or a release can fail only
//! for want of infrastructure. A hold is resolved at most once; a capture may be partial, the rest is then released with it.
//! What a saga posts directly is undone by a *reversal*, which is a new posting: nothing is ever taken out of the journal.
//!
//! [`decide`] is the whole of it: it is given the accounts and holds that matter (a [`Book`]), carries out one instruction and
//! answers the [`Posting`]s to append to the journal, or a [`Refusal`] and an untouched book. Instructions of a batch are decided
//! one after another against the same book, so each sees what those before it did.
//!
//! ```
//! use holdfast_ledger::{Account, AccountId, Book, BranchKey, Direction, Instruction, Money, decide};
//!
//! let alice = AccountId::parse("alice").unwrap();
//! let mut book = Book::default();
//! let (account, opening) = Account::open(alice.clone(), Money::parse("100.00", "EUR").unwrap());
//! assert_eq!(opening.balance_delta, 10_000);
//! book.add_account(account);
//!
//! let branch = BranchKey::new("g1", 1);
//! let hold = |text| Instruction::PlaceHold {
//!     direction: Direction::Out,
//!     account: alice.clone(),
//!     money: Money::parse(text, "EUR").unwrap(),
//! };
//! assert_eq!(decide(&mut book, &branch, &hold("80.00")).unwrap().len(), 1);
//! let refusal = decide(&mut book, &BranchKey::new("g2", 1), &hold("80.00")).unwrap_err();
//! assert_eq!(refusal.to_string(), "account alice: available 20.00 EUR, needed 80.00 EUR");
//! ```
//!
//! Deliberately absent: no floating point, no rounding, no exchange of currencies, no clock (holds do not expire by themselves:
//! the global transaction's deadline releases them), no storage.

#![warn(clippy::wildcard_enum_match_arm)]
#![warn(clippy::float_arithmetic)]
#![warn(clippy::arithmetic_side_effects)]
#![warn(clippy::cast_possible_truncation)]
#![warn(clippy::cast_sign_loss)]

mod account;
mod decide;
mod hold;
mod money;
mod posting;
mod refusal;

pub use account::{Account, AccountId, AccountState, BadAccountId, Counters, Damaged};
pub use decide::{Book, Instruction, decide};
pub use hold::{BranchKey, Direction, Hold, Resolution};
pub use money::{
    AMOUNT_MINOR_MAX, Amount, BadAmount, BadCurrency, BadMoney, Currency, Money, decimal,
};
pub use posting::{Kind, Posting};
pub use refusal::Refusal;
