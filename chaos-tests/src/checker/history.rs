//! What a client saw of one global transaction.

use std::time::Duration;

/// The final word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It moves.
    Committed,
    /// It does not.
    RolledBack,
}

/// From the first request to the final word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// When it was first asked for, since the load began.
    pub asked_at: Duration,
    /// When the outcome was told.
    pub told_at: Duration,
    /// The outcome.
    pub told: Told,
    /// How often the client had to ask again.
    pub repeats: u32,
}
