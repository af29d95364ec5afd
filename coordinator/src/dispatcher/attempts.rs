//! What the leader saw of a transaction's calls: a bounded list, for people and for the history.

use std::sync::Arc;

use holdfast_proto::v1;
use holdfast_txn::{BranchId, Op, Timestamp};

use crate::branch_call::op_on_the_wire;

/// One call, and what came of it.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) branch: BranchId,
    pub(super) op: Op,
    /// From 1.
    pub(super) number: u32,
    pub(super) at: Timestamp,
    pub(super) took_ms: u32,
    pub(super) outcome: &'static str,
    pub(super) instance: Arc<str>,
}

/// The first half and the last half of them; what lies between is counted.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    kept: Vec<Attempt>,
    left_out: u32,
}

impl Attempts {
    const MAX: usize = holdfast_history::limit::ATTEMPTS_MAX;

    pub(super) fn add(&mut self, attempt: Attempt) {
        if self.kept.len() == Self::MAX {
            self.kept.remove(Self::MAX / 2);
            self.left_out = self.left_out.saturating_add(1);
        }
        self.kept.push(attempt);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// As they are told, and how many are left out.
    pub(crate) fn told(&self) -> (Vec<v1::Attempt>, u32) {
        let told = self.kept.iter().map(|one| v1::Attempt {
            branch: one.branch.0,
            op: op_on_the_wire(one.op).into(),
            attempt: one.number,
            at_ms: one.at.0,
            took_ms: one.took_ms.into(),
            outcome: one.outcome.to_owned(),
            instance: (*one.instance).to_owned(),
        });
        (told.collect(), self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_limit_all_are_kept_and_one_more_takes_the_middle_away() {
        let attempt = |number| Attempt {
            branch: BranchId(1),
            op: Op::Try,
            number,
            at: Timestamp(7),
            took_ms: 1,
            outcome: "unknown",
            instance: "a".into(),
        };
        let mut attempts = Attempts::default();
        let most = Attempts::MAX as u32;
        (1..=most).for_each(|number| attempts.add(attempt(number)));
        assert_eq!((attempts.told().0.len() as u32, attempts.told().1), (most, 0));
        attempts.add(attempt(most + 1));
        let (told, left_out) = attempts.told();
        assert_eq!((told.len() as u32, left_out), (most, 1));
        assert_eq!((told[0].attempt, told.last().map(|one| one.attempt)), (1, Some(most + 1)));
        assert!(told.iter().all(|one| one.attempt != most / 2 + 1));
    }
}
