//! I4: all branches of a transaction end alike, and each effect happens once.

use std::collections::BTreeMap;

use holdfast_ledger::{AccountId, BranchKey, Kind, Posting};
use holdfast_txn::{Decision, GlobalTransaction, Mode};

use super::{Checked, hold};

/// How often each effect happened.
#[derive(Debug, Default)]
pub(crate) struct Effects(BTreeMap<BranchKey, OfBranch>);

/// How often each kind of posting happened on each account.
type OfBranch = BTreeMap<(AccountId, Kind), u32>;

impl Effects {
    pub(crate) fn at_commit<'a>(&mut self, postings: impl Iterator<Item = &'a Posting>) -> Checked {
        for posting in postings {
            let of_branch = self.0.entry(posting.branch.clone()).or_default();
            let times = of_branch.entry((posting.account.clone(), posting.kind)).or_default();
            *times += 1;
            hold(*times == 1, "I4", || {
                format!("{} has {} {times} times", posting.branch, posting.kind.name())
            })?;
        }
        Ok(())
    }

    fn has(&self, key: &BranchKey, wanted: fn(Kind) -> bool) -> bool {
        self.0.get(key).is_some_and(|effects| effects.keys().any(|(_, kind)| wanted(*kind)))
    }

    /// A transaction ended in the log: its branches say so, too.
    pub(crate) fn at_end(&self, transaction: &GlobalTransaction) -> Checked {
        let committed = transaction.decision == Some(Decision::Commit);
        for (branch, _) in transaction.numbered() {
            let key = BranchKey::new(transaction.gid.as_str(), branch.0);
            let alike = match transaction.mode {
                // Its branches are local transactions of sources, which `prepared.rs` looks at.
                Mode::Xa => true,
                Mode::Tcc => {
                    let placed = self.has(&key, |kind| kind == Kind::HoldPlaced);
                    let captured = self.has(&key, |kind| kind == Kind::HoldCaptured);
                    let released = self.has(&key, |kind| kind == Kind::HoldReleased);
                    if committed {
                        placed && captured && !released
                    } else {
                        !captured && placed == released
                    }
                }
                Mode::Saga => {
                    let done = self.has(&key, |kind| matches!(kind, Kind::Debit | Kind::Credit));
                    let undone = self.has(&key, |kind| {
                        matches!(kind, Kind::DebitReversed | Kind::CreditReversed)
                    });
                    if committed { done && !undone } else { done == undone }
                }
            };
            hold(alike, "I4", || {
                let effects = self.0.get(&key).map(|effects| {
                    effects.keys().map(|(_, kind)| kind.name()).collect::<Vec<_>>().join(", ")
                });
                let effects = effects.unwrap_or_else(|| "nothing".to_owned());
                format!("{} is {}, but {key} has {effects}", transaction.gid, transaction.status)
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_effect_that_happens_twice_is_found() {
        let posting = Posting {
            branch: BranchKey::new("g", 1),
            account: AccountId::parse("a").unwrap(),
            kind: Kind::Debit,
            balance_delta: -5,
            held_out_delta: 0,
            held_in_delta: 0,
        };
        let mut effects = Effects::default();
        effects.at_commit([&posting].into_iter()).unwrap();
        assert_eq!(effects.at_commit([&posting].into_iter()).unwrap_err().promise, "I4");
    }
}
