//! The transactions that a machine knows: open ones, and the recently finished ones in the order in which they finished.
//!
//! Kept apart, because nearly every look-up is for one that was begun lately: of those there are a few hundred under full load, beside
//! hundreds of thousands that are over, and perhaps a million that stay open for a day.

use std::{
    array,
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use crate::{Gid, GlobalTransaction};

type ByGid = BTreeMap<Gid, Arc<GlobalTransaction>>;

/// Each gid is in one of the maps.
#[derive(Default)]
pub(super) struct Known {
    /// Open ones that were begun since the last time that there were [`RECENT_MAX`] of them.
    recent: ByGid,
    /// All other open ones.
    lasting: Aged,
    finished: Aged,
    /// What is in `finished`, the first to finish first. It never changes again, so both see the same.
    order: VecDeque<Arc<GlobalTransaction>>,
}

/// More than are under way between callers and participants that answer; moving so many takes some milliseconds.
const RECENT_MAX: usize = 4_096;

/// Those that were begun a while ago. A new gid mostly sorts behind all of them, as ULIDs do, so that none of a million is looked at for it.
#[derive(Default)]
struct Aged {
    by_gid: ByGid,
    /// Nothing in it comes behind this; nothing ever was in it, if there is none.
    bound: Option<Gid>,
}

impl Aged {
    fn of(all: Vec<Arc<GlobalTransaction>>) -> Self {
        let by_gid: ByGid =
            all.into_iter().map(|transaction| (transaction.gid.clone(), transaction)).collect();
        let bound = by_gid.last_key_value().map(|(gid, _)| gid.clone());
        Self { by_gid, bound }
    }

    fn may_have(&self, gid: &Gid) -> bool {
        self.bound.as_ref().is_some_and(|bound| gid <= bound)
    }

    fn get(&self, gid: &Gid) -> Option<&Arc<GlobalTransaction>> {
        if self.may_have(gid) { self.by_gid.get(gid) } else { None }
    }

    fn get_mut(&mut self, gid: &Gid) -> Option<&mut Arc<GlobalTransaction>> {
        if self.may_have(gid) { self.by_gid.get_mut(gid) } else { None }
    }

    fn insert(
        &mut self,
        gid: Gid,
        transaction: Arc<GlobalTransaction>,
    ) -> Option<Arc<GlobalTransaction>> {
        if !self.may_have(&gid) {
            self.bound = Some(gid.clone());
        }
        self.by_gid.insert(gid, transaction)
    }

    /// Takes all of them.
    fn extend(&mut self, more: ByGid) {
        if let Some((last, _)) = more.last_key_value()
            && !self.may_have(last)
        {
            self.bound = Some(last.clone());
        }
        self.by_gid.extend(more);
    }
}

impl Known {
    /// All of these, the finished ones in the order in which they finished. A million at once are sorted and put in place together, which
    /// takes a part of the time of a million inserts.
    pub(super) fn of(all: Vec<Arc<GlobalTransaction>>) -> Self {
        let (finished, open): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|transaction| transaction.status.is_final());
        let order = finished.iter().cloned().collect();
        Self { recent: ByGid::new(), lasting: Aged::of(open), finished: Aged::of(finished), order }
    }

    pub(super) fn get(&self, gid: &Gid) -> Option<&Arc<GlobalTransaction>> {
        let open = self.recent.get(gid).or_else(|| self.lasting.get(gid));
        open.or_else(|| self.finished.get(gid))
    }

    /// An open one, for a change in its place. One that ends by it goes to [`Self::finish`].
    pub(super) fn open_mut(&mut self, gid: &Gid) -> Option<&mut Arc<GlobalTransaction>> {
        self.recent.get_mut(gid).or_else(|| self.lasting.get_mut(gid))
    }

    /// A new one, in whatever status it is. Its gid must not be known.
    pub(super) fn insert(&mut self, gid: Gid, transaction: Arc<GlobalTransaction>) {
        let before = if transaction.status.is_final() {
            self.order.push_back(Arc::clone(&transaction));
            self.finished.insert(gid, transaction)
        } else {
            if self.recent.len() >= RECENT_MAX {
                self.lasting.extend(std::mem::take(&mut self.recent));
            }
            self.recent.insert(gid, transaction)
        };
        debug_assert!(before.is_none(), "a gid is never taken twice");
    }

    /// An open one is over.
    pub(super) fn finish(&mut self, gid: &Gid) {
        let open = self.recent.remove_entry(gid).or_else(|| self.lasting.by_gid.remove_entry(gid));
        let (gid, ended) = open.expect("only an open one ends");
        self.order.push_back(Arc::clone(&ended));
        self.finished.insert(gid, ended);
    }

    /// Takes away the one that finished first, if more than `most` are finished.
    pub(super) fn forget_oldest(&mut self, most: usize) -> Option<Arc<GlobalTransaction>> {
        if self.order.len() <= most {
            return None;
        }
        let oldest = self.order.pop_front().expect("it is longer than a bound");
        self.finished.by_gid.remove(&oldest.gid);
        Some(oldest)
    }

    pub(super) fn open_count(&self) -> usize {
        self.recent.len() + self.lasting.by_gid.len()
    }

    pub(super) fn finished_count(&self) -> usize {
        self.order.len()
    }

    /// Open ones in gid order.
    pub(super) fn open(&self) -> impl Iterator<Item = &Arc<GlobalTransaction>> {
        in_gid_order([&self.recent, &self.lasting.by_gid], Bound::Unbounded)
    }

    /// Finished ones in the order in which they finished, from the first on for which `skipped` says no. Halves its way there:
    /// whom it skips come before all others.
    pub(super) fn finished(
        &self,
        skipped: impl Fn(&GlobalTransaction) -> bool,
    ) -> impl Iterator<Item = &Arc<GlobalTransaction>> {
        let first = self.order.partition_point(|transaction| skipped(transaction));
        self.order.range(first..)
    }

    /// All of them in gid order, behind `after`.
    pub(super) fn behind<'a>(
        &'a self,
        after: Option<&Gid>,
    ) -> impl Iterator<Item = &'a Arc<GlobalTransaction>> + use<'a> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        in_gid_order([&self.recent, &self.lasting.by_gid, &self.finished.by_gid], start)
    }
}

/// What is in all of these, from `start` on.
fn in_gid_order<'a, const COUNT: usize>(
    maps: [&'a ByGid; COUNT],
    start: Bound<&Gid>,
) -> impl Iterator<Item = &'a Arc<GlobalTransaction>> + use<'a, COUNT> {
    let mut each = maps.map(|map| map.range((start, Bound::Unbounded)));
    let mut next: [_; COUNT] = array::from_fn(|at| each[at].next());
    std::iter::from_fn(move || {
        let first = (0..COUNT).filter(|&at| next[at].is_some());
        let first = first.min_by_key(|&at| next[at].map(|(gid, _)| gid))?;
        std::mem::replace(&mut next[first], each[first].next()).map(|(_, transaction)| transaction)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        Answer, BranchId, BranchSpec, Command, Machine, Mode, Op, Options, Participant, Report,
        Timestamp,
    };

    fn gid(number: usize) -> Gid {
        // Those begun first do not come first.
        Gid::parse(&format!("g{:04}-{number}", number * 7_919 % 10_000)).unwrap()
    }

    fn begun(count: usize) -> Machine {
        let mut machine = Machine::new();
        for number in 0..count {
            let participant = Participant::parse("bank@shard-1").unwrap();
            let payload = bytes::Bytes::from_static(b"1");
            let spec = BranchSpec { participant, payload, after: None, pivot: false };
            let begin = Command::Begin {
                gid: gid(number),
                mode: Mode::Saga,
                options: Options::of(Mode::Saga),
                branches: vec![spec],
                enlisted: false,
                content: None,
            };
            machine.apply(Timestamp(1), begin).unwrap();
        }
        machine
    }

    proptest! {
        #[test]
        fn what_was_begun_a_while_ago_is_found_in_whatever_order_it_came(
            at_first in prop::collection::vec(0_usize..40, 0..10),
            later in prop::collection::vec((0_usize..40, any::<bool>()), 0..10),
        ) {
            let all = begun(40);
            let one = |number: usize| Arc::clone(all.transactions.get(&gid(number)).unwrap());
            let mut there: BTreeSet<usize> = at_first.iter().copied().collect();
            let mut aged = Aged::of(there.iter().map(|number| one(*number)).collect());
            for (number, together) in later {
                let (key, transaction) = (gid(number), one(number));
                if together {
                    aged.extend(ByGid::from([(key, transaction)]));
                } else {
                    aged.insert(key, transaction);
                }
                there.insert(number);
            }
            for number in 0..40 {
                prop_assert_eq!(aged.get(&gid(number)).is_some(), there.contains(&number));
                prop_assert_eq!(aged.get_mut(&gid(number)).is_some(), there.contains(&number));
            }
        }
    }

    fn sizes(machine: &Machine) -> [usize; 3] {
        let Known { recent, lasting, finished, .. } = &machine.transactions;
        [recent.len(), lasting.by_gid.len(), finished.by_gid.len()]
    }

    #[test]
    fn what_is_open_long_makes_room_and_is_found_changed_and_listed_as_before() {
        assert_eq!(sizes(&begun(RECENT_MAX)), [RECENT_MAX, 0, 0]);
        let mut machine = begun(RECENT_MAX + 2);
        assert_eq!(sizes(&machine), [2, RECENT_MAX, 0]);
        for number in [0, RECENT_MAX] {
            let done = Report { branch: BranchId(1), op: Op::Action, answer: Answer::Done };
            let report = Command::Report { gid: gid(number), reports: vec![done] };
            machine.apply(Timestamp(2), report).unwrap();
            assert!(machine.get(&gid(number)).unwrap().status.is_final());
        }
        assert_eq!(sizes(&machine), [1, RECENT_MAX - 1, 2]);
        assert_eq!(machine.open(), RECENT_MAX);
        let mut all: Vec<Gid> = (0..RECENT_MAX + 2).map(gid).collect();
        all.sort();
        let listed = |after: Option<&Gid>| -> Vec<Gid> {
            machine.list(after).map(|transaction| transaction.gid.clone()).collect()
        };
        assert_eq!(listed(None), all);
        assert_eq!(listed(Some(&all[2_000])), all[2_001..]);
        // A node that has it by snapshot holds it otherwise and tells the same.
        let restored = Machine::restore(machine.snapshot());
        assert_eq!(sizes(&restored), [0, RECENT_MAX, 2]);
        assert_eq!(restored.state_hash(), machine.state_hash());
    }
}
