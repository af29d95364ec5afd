//! I2: no negative balance or hold, and an account's counters are the fold of its journal.

use std::collections::BTreeMap;

use holdfast_ledger::{AccountId, Counters, Posting};

use super::{Checked, hold};
use crate::world::database::Database;

/// The fold of every account's journal so far.
#[derive(Debug, Default)]
pub(crate) struct Folds(BTreeMap<AccountId, Counters>);

impl Folds {
    pub(crate) fn at_commit<'a>(
        &mut self,
        postings: impl Iterator<Item = &'a Posting>,
        database: &Database,
    ) -> Checked {
        for posting in postings {
            let id = &posting.account;
            let fold = self.0.entry(id.clone()).or_default();
            fold.balance += posting.balance_delta;
            fold.held_out += posting.held_out_delta;
            fold.held_in += posting.held_in_delta;
            if let Err(damaged) = fold.check() {
                return hold(false, "I2", || format!("account {id}: {damaged}"));
            }
        }
        for account in database.book.accounts() {
            let fold = self.0.get(account.id()).copied().unwrap_or_default();
            hold(fold == account.counters(), "I2", || {
                format!("{account}, but its journal folds to {fold:?}")
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_without_their_journal_are_found() {
        let database = Database::open(&[AccountId::parse("a").unwrap()], 100, 0);
        assert_eq!(Folds::default().at_commit([].iter(), &database).unwrap_err().promise, "I2");
        Folds::default().at_commit(database.journal.iter(), &database).unwrap();
    }
}
