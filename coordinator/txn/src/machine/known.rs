//! The transactions that a machine knows: open ones, and the recently finished ones in the order in which they finished.
//!
//! Kept apart, because nearly every look-up is for an open one: of those there are a few hundred under full load, beside
//! hundreds of thousands that are over.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use crate::{Gid, GlobalTransaction};

type ByGid = BTreeMap<Gid, Arc<GlobalTransaction>>;

/// Each gid is in one of the two maps, never in both.
#[derive(Default)]
pub(super) struct Known {
    open: ByGid,
    finished: ByGid,
    /// What is in `finished`, the first to finish first. It never changes again, so both see the same.
    order: VecDeque<Arc<GlobalTransaction>>,
}

impl Known {
    /// All of these, the finished ones in the order in which they finished. A million at once are sorted and put in place together, which
    /// takes a part of the time of a million inserts.
    pub(super) fn of(all: Vec<Arc<GlobalTransaction>>) -> Self {
        let (finished, open): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|transaction| transaction.status.is_final());
        let by_gid = |some: Vec<Arc<GlobalTransaction>>| -> ByGid {
            some.into_iter().map(|transaction| (transaction.gid.clone(), transaction)).collect()
        };
        let order = finished.iter().cloned().collect();
        Self { open: by_gid(open), finished: by_gid(finished), order }
    }

    pub(super) fn get(&self, gid: &Gid) -> Option<&Arc<GlobalTransaction>> {
        self.open.get(gid).or_else(|| self.finished.get(gid))
    }

    /// An open one, for a change in its place. One that ends by it goes to [`Self::finish`].
    pub(super) fn open_mut(&mut self, gid: &Gid) -> Option<&mut Arc<GlobalTransaction>> {
        self.open.get_mut(gid)
    }

    /// A new one, in whatever status it is. Its gid must not be known.
    pub(super) fn insert(&mut self, gid: Gid, transaction: Arc<GlobalTransaction>) {
        let before = if transaction.status.is_final() {
            self.order.push_back(Arc::clone(&transaction));
            self.finished.insert(gid, transaction)
        } else {
            self.open.insert(gid, transaction)
        };
        debug_assert!(before.is_none(), "a gid is never taken twice");
    }

    /// An open one is over.
    pub(super) fn finish(&mut self, gid: &Gid) {
        let (gid, ended) = self.open.remove_entry(gid).expect("only an open one ends");
        self.order.push_back(Arc::clone(&ended));
        self.finished.insert(gid, ended);
    }

    /// Takes away the one that finished first, if more than `most` are finished.
    pub(super) fn forget_oldest(&mut self, most: usize) -> Option<Arc<GlobalTransaction>> {
        if self.order.len() <= most {
            return None;
        }
        let oldest = self.order.pop_front().expect("it is longer than a bound");
        self.finished.remove(&oldest.gid);
        Some(oldest)
    }

    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    pub(super) fn finished_count(&self) -> usize {
        self.order.len()
    }

    /// Open ones in gid order.
    pub(super) fn open(&self) -> impl Iterator<Item = &Arc<GlobalTransaction>> {
        self.open.values()
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
        let mut open = self.open.range((start, Bound::Unbounded)).peekable();
        let mut finished = self.finished.range((start, Bound::Unbounded)).peekable();
        std::iter::from_fn(move || {
            let open_is_next = match (open.peek(), finished.peek()) {
                (Some((one, _)), Some((other, _))) => one < other,
                (one, _) => one.is_some(),
            };
            let next = if open_is_next { open.next() } else { finished.next() };
            next.map(|(_, transaction)| transaction)
        })
    }
}
