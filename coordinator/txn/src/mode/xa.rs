//! XA: local transactions are prepared; when all are prepared they are committed, otherwise all are rolled back.
//!
//! The caller mostly prepares them itself, as a router does over the connections that it holds: then the begin of a declared
//! transaction is its word that all are prepared, and decides ([`crate::TriedBy::Caller`], the default of this mode). It may
//! also carry the second phase out itself and say so with [`crate::Command::Finish`]; with
//! [`crate::Options::second_phase_grace_ms`] the coordinator gives it the time to. So the usual transaction is one entry that
//! somebody waits for, one that nobody waits for, and no call.
//!
//! Whoever finds a prepared transaction that no coordinator knows may roll it back only behind a [`crate::Command::Fence`]: from
//! then on its gid can never be begun.

use crate::Op;

use super::two_phase::TwoPhase;

/// Prepare, commit, roll back.
pub(super) static RULES: TwoPhase =
    TwoPhase { first: Op::Prepare, commit: Op::Commit, undo: Op::RollBack };
