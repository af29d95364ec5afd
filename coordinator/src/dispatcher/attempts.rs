//! What the leader saw of a transaction's calls: a bounded list, for people and for the history.

use std::sync::Arc;

use holdfast_proto::v1;
use holdfast_txn::{BranchId, Op, Timestamp};

use crate::{branch_call::op_on_the_wire, fields};

/// Numbers of the fields of a [`v1::HistoryRecord`].
const ATTEMPTS: u32 = 2;
const LEFT_OUT: u32 = 3;
const NODE: u32 = 4;

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

    /// Appends them as the fields of a [`v1::HistoryRecord`] that say what `node` saw.
    pub(crate) fn write(&self, node: u64, to: &mut Vec<u8>) {
        for one in &self.kept {
            fields::message(ATTEMPTS, to, |to| {
                fields::number(1, one.branch.0.into(), to);
                fields::number(2, op_on_the_wire(one.op) as u64, to);
                fields::number(3, one.number.into(), to);
                fields::number(4, one.at.0, to);
                fields::number(5, one.took_ms.into(), to);
                fields::text(6, one.outcome, to);
                fields::text(7, &one.instance, to);
            });
        }
        fields::number(LEFT_OUT, self.left_out.into(), to);
        fields::number(NODE, node, to);
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// They are written as they are told.
    fn assert_written(attempts: &Attempts) {
        let (told, left_out) = attempts.told();
        let record = v1::HistoryRecord {
            attempts: told,
            attempts_left_out: left_out,
            attempts_node: 300,
            ..Default::default()
        };
        let mut written = Vec::new();
        attempts.write(300, &mut written);
        assert_eq!(written, record.encode_to_vec());
    }

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
        assert_written(&attempts);
        attempts.add(attempt(most + 1));
        let (told, left_out) = attempts.told();
        assert_eq!((told.len() as u32, left_out), (most, 1));
        assert_eq!((told[0].attempt, told.last().map(|one| one.attempt)), (1, Some(most + 1)));
        assert!(told.iter().all(|one| one.attempt != most / 2 + 1));
        assert_written(&attempts);
    }
}
