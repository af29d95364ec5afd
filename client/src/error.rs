//! Why a request has no answer, by what the caller must do.

use crate::wire;

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Do not retry: it will be refused again.
    Refused,
    /// Nothing happened: the same request may be made again.
    Retry,
    /// It may have happened: ask by gid.
    Unknown,
}

/// A request without an answer. An open outcome of a submission is no error: see [`crate::Outcome::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The coordinator refuses it, and would again.
    #[error("{code} {message}")]
    Refused {
        /// A page in docs/reference/errors.
        code: String,
        /// The cause, with its numbers and the remedy.
        message: String,
    },
    /// The coordinator could not take it, and nothing happened.
    #[error("{code} {message}")]
    Retry {
        /// A page in docs/reference/errors.
        code: String,
        /// The cause, with its numbers and the remedy.
        message: String,
    },
    /// No coordinator could be reached in time. Nothing was sent, so nothing happened.
    #[error(
        "no coordinator answered within {patience_ms} ms, and nothing was sent; the last attempt: {last}. Check the addresses and the cluster"
    )]
    Unreachable {
        /// How long it was tried, ms.
        patience_ms: u64,
        /// The last fault.
        last: String,
    },
    /// It was sent, and no answer came: it may have happened.
    #[error(
        "whether the request for {gid} was carried out is unknown ({last}). Ask for it before you repeat it"
    )]
    Unknown {
        /// The transaction to ask for, or what else was to change.
        gid: String,
        /// The last fault.
        last: String,
    },
}

impl ClientError {
    /// What the caller must do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { .. } => ErrorKind::Refused,
            Self::Retry { .. } | Self::Unreachable { .. } => ErrorKind::Retry,
            Self::Unknown { .. } => ErrorKind::Unknown,
        }
    }

    /// The coordinator's code, where it gave one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } | Self::Retry { code, .. } => Some(code),
            Self::Unreachable { .. } | Self::Unknown { .. } => None,
        }
    }

    pub(crate) fn refused(error: wire::Error) -> Self {
        Self::Refused { code: error.code, message: error.message }
    }
}
