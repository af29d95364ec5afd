//! The bank's modules, plugged in as participants, on PostgreSQL.
//!
//! The only module so far is *deposit*: accounts, holds and postings of one data source, served as `deposit@<shard>`. What may
//! happen to an account is decided by the ledger mind, in memory; this crate loads what the mind needs, writes down what it
//! decided, and does both for a whole batch of branch operations in one local transaction, in as many round trips as for one.
//! So a hot account gets faster under load: many holds on it are one row update and one fsync.
//!
//! - [`DepositInstruction`]: what a branch's payload says, for those who write it.
//! - [`Deposit`]: the participant. - [`run`]: the whole role, from the connection string to a clean stop.
//! - [`migrate`]: brings a data source's schema up to this version.
//! - [`open_accounts`], [`read_account`], [`close_account`]: accounts themselves, which no global transaction makes.
//! - [`audit`], [`audit_all`]: plain SQL that proves the books, on one data source and over all of them.

mod accounts;
mod audit;
mod error;
mod migrate;
mod participant;
mod run;
mod store;

pub use accounts::{Closing, NewAccount, Opened, close_account, open_accounts, read_account};
pub use audit::{Audit, CurrencySums, GidEffect, SourceAudit, XID_PREFIX, audit, audit_all};
pub use error::BankError;
pub use holdfast_ledger as ledger;
pub use migrate::migrate;
pub use participant::{BadPayload, Deposit, DepositInstruction};
pub use run::{BankConfig, BankLimits, run};
