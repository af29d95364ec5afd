//! I4 and I1 for mode XA: the local transactions of one global SQL transaction end alike, as was decided, and rows together keep their sum.

use std::collections::BTreeMap;

use holdfast_txn::{Decision, Gid, Machine};

use super::{Checked, hold};
use crate::world::source::Source;

/// How the local transactions of each global one ended, by branch.
#[derive(Debug, Default)]
pub(crate) struct LocalEnds(BTreeMap<Gid, BTreeMap<u32, bool>>);

impl LocalEnds {
    /// A local transaction ended, committed or not. What is committed on more than one source was decided before.
    pub(crate) fn ended(
        &mut self,
        log: &Machine,
        (gid, branch): (&Gid, u32),
        sources: usize,
        committed: bool,
    ) -> Checked {
        let ends = self.0.entry(gid.clone()).or_default();
        let before = ends.insert(branch, committed);
        hold(before.is_none(), "I4", || format!("{gid} b{branch} ended twice"))?;
        hold(ends.values().all(|end| *end == committed), "I4", || {
            format!("the local transactions of {gid} end otherwise: {ends:?}")
        })?;
        let decision = log.get(gid).and_then(|known| known.decision);
        hold(!committed || sources < 2 || decision == Some(Decision::Commit), "I6", || {
            format!("{gid} b{branch} is committed, and the log has decided {decision:?}")
        })
    }

    /// Nothing moves any more.
    pub(crate) fn at_quiet<'a>(
        &self,
        log: &Machine,
        sources: impl Iterator<Item = &'a Source>,
    ) -> Checked {
        let (mut total, mut opening) = (0, 0);
        for source in sources {
            total += source.total();
            opening += Source::opening();
            let left = source.in_doubt().next();
            hold(left.is_none(), "I3", || format!("{left:?} is prepared"))?;
        }
        hold(total == opening, "I1", || {
            format!("all rows are {total}, and they began with {opening}")
        })?;
        for (gid, ends) in &self.0 {
            let Some(decision) = log.get(gid).and_then(|known| known.decision) else { continue };
            let committed = decision == Decision::Commit;
            hold(ends.values().all(|end| *end == committed), "I4", || {
                format!("the log decided {decision:?} about {gid}, and it ended {ends:?}")
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_that_differ_and_commits_that_nobody_decided_are_found() {
        let (log, gid) = (Machine::new(), Gid::parse("g").unwrap());
        let mut ends = LocalEnds::default();
        ends.ended(&log, (&gid, 1), 2, false).unwrap();
        assert_eq!(ends.ended(&log, (&gid, 2), 2, true).unwrap_err().promise, "I4");
        let other = Gid::parse("h").unwrap();
        assert_eq!(ends.ended(&log, (&other, 1), 2, true).unwrap_err().promise, "I6");
        let alone = Gid::parse("i").unwrap();
        ends.ended(&log, (&alone, 1), 1, true).unwrap();
        assert!(ends.ended(&log, (&alone, 1), 1, true).is_err(), "it ended before");
    }

    #[test]
    fn what_stays_prepared_and_a_sum_that_is_off_are_found() {
        let (log, gid) = (Machine::new(), Gid::parse("g").unwrap());
        let mut source = Source::new();
        let ends = LocalEnds::default();
        ends.at_quiet(&log, [&source].into_iter()).unwrap();
        let xact = source.write(&gid, 1, &[(0, -5)]).unwrap();
        source.prepare(xact, 1);
        assert_eq!(ends.at_quiet(&log, [&source].into_iter()).unwrap_err().promise, "I3");
        source.end_prepared(&gid, 1, true).unwrap();
        assert_eq!(ends.at_quiet(&log, [&source].into_iter()).unwrap_err().promise, "I1");
    }
}
