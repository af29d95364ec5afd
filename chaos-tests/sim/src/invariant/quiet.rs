//! I3: after the world has healed and is quiet, nothing is open and nothing is held.

use holdfast_txn::Machine;

use super::{Checked, hold};
use crate::world::database::Database;

pub(crate) fn at_quiet<'a>(
    log: &Machine,
    databases: impl Iterator<Item = &'a Database>,
) -> Checked {
    hold(log.open() == 0, "I3", || format!("{} transactions are open", log.open()))?;
    for database in databases {
        for account in database.book.accounts() {
            let counters = account.counters();
            hold(counters.held_out == 0 && counters.held_in == 0, "I3", || {
                format!("something is held: {account}")
            })?;
        }
        for key in database.rows.keys() {
            let stands = database.book.hold(key).is_some_and(|hold| hold.resolution.is_none());
            hold(!stands, "I3", || format!("the hold of {key} stands"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use holdfast_ledger::{AccountId, BranchKey};
    use holdfast_txn::Op;

    use super::*;
    use crate::world::database::{Call, Mood};

    #[test]
    fn a_hold_that_stands_is_found() {
        let mut database = Database::open(&[AccountId::parse("a").unwrap()], 100, 0);
        at_quiet(&Machine::new(), [&database].into_iter()).unwrap();
        let key = BranchKey::new("g", 1);
        let call = Call { key, op: Op::Try, payload: "debit a 5".into(), refusal_waits: false };
        database.carry(&call, Mood::default(), None);
        assert_eq!(at_quiet(&Machine::new(), [&database].into_iter()).unwrap_err().promise, "I3");
    }
}
