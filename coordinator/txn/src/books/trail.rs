//! The audit trail: who did what, each record bearing the hash of the one before, so that none can be changed, taken out or
//! put in unseen.
//!
//! The machine keeps the newest records. An older one lives in whatever was exported, and the chain goes through: the oldest
//! record that is kept bears the hash of the last one that is not.

use std::{collections::VecDeque, sync::Arc};

use crate::{Digest, Timestamp, digest, limit, machine::cut};

/// What somebody did, or was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deed {
    /// Who, for example `user/alice`.
    pub by: String,
    /// What, for programs, for example `rules.apply`.
    pub act: String,
    /// To what, for example a gid.
    pub about: String,
    /// Why, and what came of it, for people.
    pub words: String,
}

/// A deed in its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// From 1 without a gap.
    pub number: u64,
    /// The time of its entry.
    pub at: Timestamp,
    /// What was done.
    pub deed: Deed,
    /// The hash of the record before; zeros for the first.
    pub before: Digest,
}

impl AuditRecord {
    /// The hash of this record, which the next one bears.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest::of_record(self)
    }
}

/// The newest records, and where the chain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trail {
    /// How many records were ever written.
    pub count: u64,
    /// The hash of the newest record; zeros: there is none.
    pub head: Digest,
    /// The newest ones, at most [`limit::AUDIT_KEPT_MAX`], oldest first.
    pub kept: VecDeque<Arc<AuditRecord>>,
}

impl Default for Trail {
    fn default() -> Self {
        Self { count: 0, head: Digest([0; 32]), kept: VecDeque::new() }
    }
}

impl Trail {
    /// Writes `deed` down; its words are cut to what is kept.
    pub(crate) fn write(&mut self, at: Timestamp, mut deed: Deed) {
        for words in [&mut deed.by, &mut deed.act, &mut deed.about, &mut deed.words] {
            cut(words);
        }
        self.count += 1;
        let record = AuditRecord { number: self.count, at, deed, before: self.head };
        self.head = record.digest();
        self.kept.push_back(record.into());
        while self.kept.len() > limit::AUDIT_KEPT_MAX {
            self.kept.pop_front();
        }
    }

    /// Records that are kept with a number above `after`, oldest first.
    pub fn after(&self, after: u64) -> impl Iterator<Item = &Arc<AuditRecord>> {
        let start = self.kept.partition_point(|record| record.number <= after);
        self.kept.range(start..)
    }

    /// Checks the records that are kept, and that the newest is the one that the head says.
    /// # Errors
    /// Where the chain breaks first.
    pub fn check(&self) -> Result<(), Broken> {
        let (last, head) =
            check_chain(self.kept.iter().map(AsRef::as_ref))?.unwrap_or((0, Digest([0; 32])));
        if (last, head) == (self.count, self.head) {
            Ok(())
        } else {
            Err(Broken { number: self.count, what: "the end of the chain is missing" })
        }
    }
}

/// Where a chain of records breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chain breaks at record {number}: {what}")]
pub struct Broken {
    /// The record at which it shows.
    pub number: u64,
    /// What is wrong.
    pub what: &'static str,
}

/// Checks `records`, oldest first; answers the number and the hash of the last one, nothing if there are none. A chain that
/// begins with record 1 bears zeros before it.
/// # Errors
/// The first record that does not follow from the one before it: it, or the one before, was changed, or one is missing.
pub fn check_chain<'a>(
    records: impl Iterator<Item = &'a AuditRecord>,
) -> Result<Option<(u64, Digest)>, Broken> {
    let mut last = None;
    for record in records {
        let number = record.number;
        let expected = match last {
            Some((before, hash)) if number == before + 1 => Some(hash),
            Some(_) => return Err(Broken { number, what: "a record before it is missing" }),
            None if number == 0 => return Err(Broken { number, what: "records count from 1" }),
            None if number == 1 => Some(Digest([0; 32])),
            None => None,
        };
        if expected.is_some_and(|hash| hash != record.before) {
            let what = "it does not bear the hash of the record before; one of the two was changed";
            return Err(Broken { number, what });
        }
        last = Some((number, record.digest()));
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail(count: usize) -> Trail {
        let mut trail = Trail::default();
        for n in 0..count {
            let deed = Deed { by: "user/alice".into(), about: n.to_string(), ..Deed::default() };
            trail.write(Timestamp(n as u64), deed);
        }
        trail
    }

    /// Changes record `at` of a chain of 9 and says where that shows.
    fn broken(at: usize, change: impl FnOnce(&mut AuditRecord)) -> u64 {
        let mut trail = trail(9);
        change(Arc::make_mut(&mut trail.kept[at]));
        trail.check().unwrap_err().number
    }

    #[test]
    fn a_changed_record_shows_at_the_next_one_and_the_newest_at_the_head() {
        assert_eq!(broken(3, |record| record.deed.by = "user/bob".into()), 5);
        assert_eq!(broken(3, |record| record.at.0 += 1), 5);
        assert_eq!(broken(8, |record| record.deed.words = "nothing".into()), 9);
        assert_eq!(broken(3, |record| record.before.0[7] ^= 1), 4);
    }

    #[test]
    fn a_record_taken_out_put_in_or_cut_off_is_found() {
        let mut gone = trail(9);
        gone.kept.remove(4);
        assert_eq!(gone.check().unwrap_err().number, 6);
        let mut twice = trail(9);
        twice.kept.insert(4, Arc::clone(&twice.kept[4]));
        assert_eq!(twice.check().unwrap_err().number, 5);
        let mut cut_off = trail(9);
        cut_off.kept.pop_back();
        assert_eq!(cut_off.check().unwrap_err().number, 9);
        assert_eq!(trail(9).check(), Ok(()));
        assert_eq!(trail(0).check(), Ok(()));
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_chain_goes_through_what_is_not() {
        let full = trail(limit::AUDIT_KEPT_MAX);
        assert_eq!((full.kept.len(), full.kept[0].number), (limit::AUDIT_KEPT_MAX, 1));
        let mut more = full.clone();
        more.write(Timestamp(1), Deed::default());
        assert_eq!((more.kept.len(), more.kept[0].number), (limit::AUDIT_KEPT_MAX, 2));
        assert_eq!(more.check(), Ok(()));
        // What was exported before goes together with what is kept.
        let whole = full.kept.iter().take(1).chain(&more.kept);
        let last = check_chain(whole.map(AsRef::as_ref)).unwrap();
        assert_eq!(last, Some((more.count, more.head)));
        assert_eq!(more.after(limit::AUDIT_KEPT_MAX as u64).count(), 1);
        assert_eq!(more.after(0).count(), limit::AUDIT_KEPT_MAX);
    }
}
