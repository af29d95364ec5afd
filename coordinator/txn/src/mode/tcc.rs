//! TCC: holds are placed by tries; when all are placed they are captured, otherwise all are released.

use crate::Op;

use super::two_phase::TwoPhase;

/// Try, confirm, cancel.
pub(super) static RULES: TwoPhase =
    TwoPhase { first: Op::Try, commit: Op::Confirm, undo: Op::Cancel };
