//! I11: every row of the journal belongs to a branch that the log knows, on the account that the branch names.

use holdfast_ledger::Posting;
use holdfast_txn::{BranchId, Gid, Machine};

use super::{Checked, hold};

pub(crate) fn at_commit<'a>(postings: impl Iterator<Item = &'a Posting>, log: &Machine) -> Checked {
    for posting in postings {
        let branch = BranchId(posting.branch.branch);
        let known = Gid::parse(&posting.branch.gid)
            .ok()
            .and_then(|gid| log.get(&gid).and_then(|known| known.branch(branch).cloned()));
        let Some(known) = known else {
            return hold(false, "I11", || format!("nobody knows the branch {}", posting.branch));
        };
        // A finished transaction has given up its payloads.
        let payload = String::from_utf8_lossy(&known.spec.payload).into_owned();
        let names = payload.is_empty() || payload.split(' ').any(|w| w == posting.account.as_str());
        hold(names, "I11", || {
            format!("{} posts on {}, which it does not name", posting.branch, posting.account)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use holdfast_ledger::{AccountId, BranchKey, Kind};

    use super::*;

    #[test]
    fn a_posting_of_nobody_is_found() {
        let posting = Posting {
            branch: BranchKey::new("g", 1),
            account: AccountId::parse("a").unwrap(),
            kind: Kind::Credit,
            balance_delta: 5,
            held_out_delta: 0,
            held_in_delta: 0,
        };
        let broken = at_commit([&posting].into_iter(), &Machine::new()).unwrap_err();
        assert_eq!(broken.promise, "I11");
    }
}
