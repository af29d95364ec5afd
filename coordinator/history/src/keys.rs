//! The terms of a sheet with their places, gathered record by record and told term by term.
//!
//! Nearly every record has one of a few statuses, modes and participants. Those are put by as they come, each with its own: only what is left, mostly
//! the gids, is sorted.

use crate::pages::{self, key, term_of};

/// Terms that are put by, at most.
const COMMON: usize = 256;

/// Keys as [`pages::key`] makes them, each there once.
#[derive(Debug)]
pub(crate) struct Keys {
    /// Of the terms that have no list of their own.
    others: Vec<u64>,
    /// As many, while those are put in order.
    spare: Vec<u64>,
    /// Each of one term, in order, where its last bits say; that of the term that came first.
    common: Vec<Vec<u64>>,
    /// Those that are not empty, by their terms.
    order: Vec<u8>,
}

impl Default for Keys {
    fn default() -> Self {
        let common = vec![Vec::new(); COMMON];
        Self { others: Vec::new(), spare: Vec::new(), common, order: Vec::new() }
    }
}

impl Keys {
    pub(crate) fn clear(&mut self) {
        self.others.clear();
        self.common.iter_mut().for_each(Vec::clear);
    }

    /// Takes in what the record at `place` has, its gid first; records come in the order of their places.
    #[inline]
    pub(crate) fn push(&mut self, terms: &[u32], place: u32) {
        let Some((gid, terms)) = terms.split_first() else { return };
        self.others.push(key(*gid, place));
        for term in terms {
            let key = key(*term, place);
            let list = &mut self.common[*term as usize % COMMON];
            match list.last() {
                // Two branches of one record may be served by the same participant.
                Some(last) if *last == key => {}
                Some(last) if term_of(*last) != u64::from(*term) => self.others.push(key),
                _ => list.push(key),
            }
        }
    }

    /// Puts them in order.
    pub(crate) fn sort(&mut self) {
        let Self { others, spare, common, order } = self;
        pages::sort(others, spare);
        others.dedup();
        order.clear();
        for (number, list) in (0..=u8::MAX).zip(common) {
            let Some(first) = list.first() else { continue };
            order.push(number);
            // A gid may have the hash of a status.
            let term = term_of(*first);
            let alike = others.partition_point(|key| term_of(*key) < term)
                ..others.partition_point(|key| term_of(*key) <= term);
            if !alike.is_empty() {
                list.extend(others.drain(alike));
                list.sort_unstable();
                list.dedup();
            }
        }
        order.sort_unstable_by_key(|number| self.common[usize::from(*number)][0]);
    }

    /// Those of each term, by their terms, once they are in order.
    pub(crate) fn by_term(&self) -> impl Iterator<Item = &[u64]> {
        let alike = |one: &u64, other: &u64| term_of(*one) == term_of(*other);
        let mut others = self.others.chunk_by(alike).peekable();
        let common = self.order.iter().map(|number| &*self.common[usize::from(*number)]);
        let mut common = common.peekable();
        std::iter::from_fn(move || match (others.peek(), common.peek()) {
            (Some(one), Some(other)) if one[0] > other[0] => common.next(),
            (None, _) => common.next(),
            _ => others.next(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn they_are_told_by_their_terms_each_once_whatever_terms_are_alike(
            sheets in collection::vec(collection::vec(
                collection::vec(prop_oneof![0..3_u32, (0..4_u32).prop_map(|n| n << 8 | 1), any::<u32>()], 0..5),
                0..100,
            ), 1..3),
        ) {
            let mut keys = Keys::default();
            for records in sheets {
                keys.clear();
                let mut expected = BTreeSet::new();
                for (place, terms) in (0..).zip(&records) {
                    keys.push(terms, place);
                    expected.extend(terms.iter().map(|term| key(*term, place)));
                }
                keys.sort();
                let told: Vec<u64> = keys.by_term().flatten().copied().collect();
                prop_assert_eq!(told, expected.into_iter().collect::<Vec<_>>());
                let terms: Vec<u64> = keys.by_term().map(|same| term_of(same[0])).collect();
                prop_assert!(terms.is_sorted_by(|one, other| one < other));
            }
        }
    }
}
