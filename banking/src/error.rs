//! What can go wrong at a data source, with what to do about it.

use holdfast_ledger::AccountId;
use holdfast_tcc_agent::BadConfig;

/// Why a data source could not be used. Nothing is half done: what failed was rolled back.
#[derive(Debug, thiserror::Error)]
pub enum BankError {
    /// PostgreSQL could not be asked, or said no.
    #[error("PostgreSQL: {}", full(.0))]
    Database(#[from] tokio_postgres::Error),
    /// The schema was made by a later version.
    #[error(
        "HF5001 schema \"bank\" is at version {found}, this program knows {known}. Start the version that made it, or a later one"
    )]
    SchemaNewer {
        /// What the data source has.
        found: i32,
        /// The latest this program knows.
        known: i32,
    },
    /// A migration that was applied is not the one this program has under that number.
    #[error(
        "HF5002 migration {version} of schema \"bank\" was applied in another wording. This data source was made by another build; start that one"
    )]
    SchemaChanged {
        /// The migration's number.
        version: i32,
    },
    /// An account exists already, in another currency or opened with another balance.
    #[error(
        "HF5003 account {account} exists already with another currency or opening balance. Opening is repeatable only with the same values"
    )]
    AccountDiffers {
        /// The first such account.
        account: AccountId,
    },
    /// The agent cannot serve with these settings.
    #[error(transparent)]
    Agent(#[from] BadConfig),
}

/// PostgreSQL's own words; its error type shows only "db error".
pub(crate) fn full(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        // Not the detail: it may quote a row.
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
