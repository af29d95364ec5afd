//! A connection to a source, by the account that a router's configuration has for it, for commands that ask sources themselves.

use std::time::Duration;

use holdfast_shard_router::config::SourceConfig;
use holdfast_tcc_agent::words;
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{Client, error::SqlState};

use crate::router;

/// Has rows written and read alike at every source, whatever the account's settings are, and none of them hidden.
pub(crate) const ALIKE: &str = "SET search_path = ''; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1; \
    SET bytea_output = 'hex'; SET TimeZone = 'UTC'; SET xmloption = 'content'; SET row_security = off";

/// The hash of a row as it is written ([`ALIKE`]), by the same function at every source.
pub(crate) fn row_hash(row: &str) -> String {
    format!("pg_catalog.hashtextextended({row}::text COLLATE \"C\", 0)")
}

/// Lets itself in at a source within `limit`; the task carries the connection, and ends with the client.
/// # Errors
/// Why nobody is let in, for people.
pub(crate) async fn connect(
    config: &SourceConfig,
    limit: Duration,
) -> Result<(Client, JoinHandle<Result<(), tokio_postgres::Error>>), String> {
    let database = router::database(config).ok_or(
        "it has no account of its own there. Give it user and dbname in the router's configuration",
    )?;
    within(limit, database.connect()).await.map_err(|failed| failed.told(config))
}

/// No answer in time, or a wrong one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("no answer within {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("{}", words(.0))]
    Refused(tokio_postgres::Error),
}

impl Failed {
    /// What the server calls it, if it said anything.
    pub(crate) fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Silent(_) => None,
            Self::Refused(error) => error.code(),
        }
    }

    /// With what must be done about it.
    pub(crate) fn told(self, config: &SourceConfig) -> String {
        match self {
            Self::Silent(_) => format!("{self}. Check that PostgreSQL runs there"),
            Self::Refused(error) => refused(config, &error),
        }
    }
}

/// What is answered within `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Failed> {
    timeout(limit, asked).await.map_err(|_| Failed::Silent(limit))?.map_err(Failed::Refused)
}

/// What a source says, and who must do something about it. Never a password: neither the server nor the library names it.
fn refused(config: &SourceConfig, error: &tokio_postgres::Error) -> String {
    let user = config.user.as_deref().unwrap_or_default();
    let remedy = match error.code() {
        Some(code)
            if *code == SqlState::INVALID_PASSWORD
                || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION =>
        {
            "Check user and password of this source in the router's configuration, and pg_hba.conf there"
        }
        _ => "Check that PostgreSQL runs there and lets the router in",
    };
    format!("user {user} has no answer: {}. {remedy}", words(error))
}
