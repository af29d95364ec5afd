//! I1: money is conserved; at every local commit the balances are what the journal moved, and a transaction that ended moved what it should.

use std::{collections::BTreeMap, sync::Arc};

use holdfast_ledger::{BranchKey, Kind, Posting};
use holdfast_txn::{Decision, GlobalTransaction};

use super::{Checked, hold};
use crate::world::database::Database;

/// What each transaction moved so far, over all shards.
#[derive(Debug)]
pub(crate) struct Money {
    start_minor: i64,
    net_minor: BTreeMap<Arc<str>, i64>,
    /// What the confirms of some branches are to move, and what each confirm moved.
    asked_minor: BTreeMap<BranchKey, i64>,
    captured_minor: BTreeMap<BranchKey, i64>,
}

impl Money {
    pub(crate) fn new(start_minor: i64) -> Self {
        Self {
            start_minor,
            net_minor: BTreeMap::new(),
            asked_minor: BTreeMap::new(),
            captured_minor: BTreeMap::new(),
        }
    }

    /// The confirm of this branch is to move so much.
    pub(crate) fn asked(&mut self, branch: BranchKey, minor: i64) {
        self.asked_minor.insert(branch, minor);
    }

    pub(crate) fn at_commit<'p, 'd>(
        &mut self,
        postings: impl Iterator<Item = &'p Posting>,
        databases: impl Iterator<Item = &'d Database>,
    ) -> Checked {
        for posting in postings {
            *self.net_minor.entry(Arc::clone(&posting.branch.gid)).or_default() +=
                posting.balance_delta;
            if posting.kind == Kind::HoldCaptured {
                self.captured_minor.insert(posting.branch.clone(), posting.balance_delta);
            }
        }
        let total: i64 = databases
            .flat_map(|database| database.book.accounts())
            .map(|account| account.counters().balance)
            .sum();
        let expected = self.start_minor + self.net_minor.values().sum::<i64>();
        hold(total == expected, "I1", || {
            format!("all balances are {total}, the journals say {expected}")
        })
    }

    /// A transaction ended in the log: by now all its money has moved, or none.
    pub(crate) fn at_end(&self, transaction: &GlobalTransaction, worth_minor: i64) -> Checked {
        let expected = if transaction.decision == Some(Decision::Commit) { worth_minor } else { 0 };
        let moved = self.net_minor.get(transaction.gid.as_str()).copied().unwrap_or(0);
        hold(moved == expected, "I1", || {
            let (gid, status) = (&transaction.gid, transaction.status);
            format!("{gid} is {status} and made {moved} minor units out of {expected}")
        })?;
        if transaction.decision != Some(Decision::Commit) {
            return Ok(());
        }
        for (branch, _) in transaction.numbered() {
            let key = BranchKey::new(transaction.gid.as_str(), branch.0);
            let (asked, captured) = (self.asked_minor.get(&key), self.captured_minor.get(&key));
            hold(asked.is_none() || asked == captured, "I1", || {
                format!("{key} was to capture {asked:?} minor units and captured {captured:?}")
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use holdfast_ledger::AccountId;

    use super::*;

    #[test]
    fn money_that_no_journal_moved_is_found() {
        let id = AccountId::parse("a").unwrap();
        let database = Database::open(std::slice::from_ref(&id), 100, 0);
        let mut money = Money::new(100);
        money.at_commit([].iter(), [&database].into_iter()).unwrap();
        let posting = Posting {
            branch: BranchKey::new("g", 1),
            account: id,
            kind: Kind::Credit,
            balance_delta: 7,
            held_out_delta: 0,
            held_in_delta: 0,
        };
        let broken = money.at_commit([posting].iter(), [&database].into_iter()).unwrap_err();
        assert_eq!(broken.promise, "I1");
    }
}
