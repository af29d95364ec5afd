//! Why a local transaction was not committed, as far as PostgreSQL or the connection says.

use tokio_postgres::error::SqlState;

/// Why a local transaction was not committed, or is not known to be.
pub(super) enum Failure {
    /// Rolled back because of another local transaction: the same again may go well.
    Conflict(String),
    /// Rolled back because of what one of the calls asked for.
    Spoiled(String),
    /// The connection is gone or silent; the commit may have happened.
    Lost(String),
    /// No call is to blame: there is no connection, or no barrier.
    Down(String),
    /// Rolled back because a call that was taken for new was not, or the barrier does not admit it.
    Known(String),
}

impl Failure {
    pub(super) fn into_message(self) -> String {
        let (Self::Conflict(message)
        | Self::Spoiled(message)
        | Self::Lost(message)
        | Self::Down(message)
        | Self::Known(message)) = self;
        message
    }
}

/// What an error within a local transaction says about it.
pub(super) fn judge(error: &tokio_postgres::Error, connection_closed: bool) -> Failure {
    let message = describe(error);
    let Some(code) = error.code() else {
        // Not PostgreSQL's word: the connection's, or that a value could not be sent or read.
        return if connection_closed || error.is_closed() || is_io(error) {
            Failure::Lost(message)
        } else {
            Failure::Spoiled(message)
        };
    };
    // 57P..: the server stops or throws us out. 08...: the connection's own errors.
    if code.code().starts_with("57P") || code.code().starts_with("08") {
        return Failure::Lost(message);
    }
    if [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code) {
        return Failure::Conflict(message);
    }
    Failure::Spoiled(message)
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.is::<std::io::Error>())
}

/// The error for people, without what it quotes of the data.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let place = db.constraint().or(db.table()).map(|name| format!(" at {name}"));
            format!("PostgreSQL says {}{}", db.code().code(), place.unwrap_or_default())
        }
        None if is_io(error) => words(error),
        None => error.to_string(),
    }
}

/// What the server says, or the way to it: with the cause, which the library's own words leave out. Never a detail, which
/// may quote a row.
#[must_use]
pub fn words(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(refusal), _) => refusal.message().to_owned(),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

pub(super) fn describe_pool(error: &deadpool_postgres::PoolError) -> String {
    match error {
        deadpool_postgres::PoolError::Backend(error) => describe(error),
        other => other.to_string(),
    }
}
