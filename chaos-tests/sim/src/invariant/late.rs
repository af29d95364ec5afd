//! I10: a try or action behind its undo does nothing and is refused.

use std::collections::BTreeSet;

use holdfast_ledger::BranchKey;
use holdfast_txn::Op;

use super::{Checked, hold};
use crate::world::database::{Carried, Said};

/// Branches whose cancel or compensate was done.
#[derive(Debug, Default)]
pub(crate) struct Undone(BTreeSet<BranchKey>);

impl Undone {
    pub(crate) fn carried(&mut self, carried: &Carried) -> Checked {
        let key = &carried.call.key;
        match carried.call.op {
            Op::Cancel | Op::Compensate | Op::RollBack if carried.said == Said::Done => {
                self.0.insert(key.clone());
                Ok(())
            }
            Op::Try | Op::Action | Op::Prepare if self.0.contains(key) => {
                let nothing = carried.postings.is_empty();
                let refused = matches!(carried.said, Said::Refused(_));
                hold(nothing && refused, "I10", || {
                    format!("{key}: a late {} was answered {:?}", carried.call.op, carried.said)
                })
            }
            Op::Try
            | Op::Action
            | Op::Confirm
            | Op::Cancel
            | Op::Compensate
            | Op::Prepare
            | Op::Commit
            | Op::RollBack => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_branch::Verdict;

    use super::*;
    use crate::world::database::Call;

    #[test]
    fn a_late_try_that_is_done_is_found() {
        let carried = |op, said| Carried {
            call: Call {
                key: BranchKey::new("g", 1),
                op,
                payload: "debit a 5".into(),
                refusal_waits: false,
            },
            verdict: Verdict::Proceed,
            said,
            postings: Vec::new(),
        };
        let mut undone = Undone::default();
        undone.carried(&carried(Op::Cancel, Said::Done)).unwrap();
        undone.carried(&carried(Op::Try, Said::Refused("late".to_owned()))).unwrap();
        assert_eq!(undone.carried(&carried(Op::Try, Said::Done)).unwrap_err().promise, "I10");
    }
}
