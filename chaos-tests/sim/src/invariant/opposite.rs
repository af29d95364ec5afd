//! I6: no branch is told, or gets, both confirm and cancel; and no call is out of order.

use std::collections::BTreeMap;

use holdfast_branch::Verdict;
use holdfast_ledger::BranchKey;
use holdfast_txn::{Decision, GlobalTransaction, Op};

use super::{Checked, hold};
use crate::world::database::Carried;

/// The second-phase operation that each branch was told.
#[derive(Debug, Default)]
pub(crate) struct SecondPhases(BTreeMap<BranchKey, Op>);

impl SecondPhases {
    /// A leader, or one that believes to be, sends a call.
    pub(crate) fn sent(
        &mut self,
        key: &BranchKey,
        op: Op,
        in_log: Option<&GlobalTransaction>,
    ) -> Checked {
        let needed = match op {
            Op::Try | Op::Action | Op::Prepare => return Ok(()),
            Op::Confirm | Op::Commit => Decision::Commit,
            Op::Cancel | Op::Compensate | Op::RollBack => Decision::RollBack,
        };
        let decided = in_log.and_then(|transaction| transaction.decision);
        hold(decided == Some(needed), "I6", || {
            format!("{key} is told {op}, and the log has decided {decided:?}")
        })?;
        let before = *self.0.entry(key.clone()).or_insert(op);
        hold(before == op, "I6", || format!("{key} is told {before} and {op}"))
    }

    /// A participant got a call that makes no sense after what it has recorded.
    pub(crate) fn carried(carried: &Carried) -> Checked {
        match &carried.verdict {
            Verdict::Disorder(disorder) => {
                hold(false, "I6", || format!("{}: {disorder}", carried.call.key))
            }
            Verdict::Proceed | Verdict::Repeat(_) | Verdict::Empty | Verdict::Late => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirm_before_the_decision_is_found() {
        let key = BranchKey::new("g", 1);
        let mut phases = SecondPhases::default();
        phases.sent(&key, Op::Try, None).unwrap();
        assert_eq!(phases.sent(&key, Op::Confirm, None).unwrap_err().promise, "I6");
    }
}
