//! Pages: which records of a sheet have which term, sorted by term, in few bytes.
//!
//! ```text
//! page  = { entry }
//! entry = distance to the term before, doubled        place                       one record has it
//!       | distance to the term before, doubled, + 1   count of runs, { run }      more than one
//! run   = distance to the run before, doubled                                     one record
//!       | distance to the run before, doubled, + 1    its length less two         more, one behind the other
//! ```
//!
//! Every number is a varint. Nearly all terms are of one record: a distance of three bytes and a place of two. A status, which nearly every
//! record has, takes two bytes a run. They are not compressed: what is left is chance.

use prost::encoding::{decode_varint, encode_varint};

use crate::limit;

/// Bits that hold a place.
const PLACE_BITS: u32 = 14;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;
const _: () = assert!(limit::SHEET_RECORDS_MAX <= 1 << PLACE_BITS, "every place has a number");

/// Bytes after which a page ends, at the next term.
const PAGE_BYTES: usize = 4_096;

/// A term in 32 bits with the place of a record that has it, as one number: they sort by term, then by place.
pub(crate) fn key(term: u32, place: u32) -> u64 {
    u64::from(term) << PLACE_BITS | u64::from(place)
}

fn term_of(key: u64) -> u64 {
    key >> PLACE_BITS
}

/// Every term of `keys`, which are sorted, once.
pub(crate) fn terms(keys: &[u64]) -> impl Iterator<Item = u64> {
    keys.chunk_by(|one, other| term_of(*one) == term_of(*other)).map(|same| term_of(same[0]))
}

/// Writes `keys`, sorted and each there once, to pages; `tell` is told the first term of each, and its bytes.
pub(crate) fn write(keys: &[u64], page: &mut Vec<u8>, mut tell: impl FnMut(u64, &[u8])) {
    page.clear();
    let (mut first, mut before) = (0, 0);
    for same in keys.chunk_by(|one, other| term_of(*one) == term_of(*other)) {
        let term = term_of(same[0]);
        if page.len() >= PAGE_BYTES {
            tell(first, page);
            page.clear();
        }
        if page.is_empty() {
            (first, before) = (term, 0);
        }
        write_entry(term - before, same, page);
        before = term;
    }
    if !page.is_empty() {
        tell(first, page);
    }
}

fn write_entry(distance: u64, same: &[u64], to: &mut Vec<u8>) {
    if let [only] = same {
        encode_varint(distance << 1, to);
        encode_varint(only & PLACE_MASK, to);
        return;
    }
    encode_varint(distance << 1 | 1, to);
    let runs = || same.chunk_by(|one, other| one + 1 == *other);
    encode_varint(runs().count() as u64, to);
    let mut before = 0;
    for run in runs() {
        let place = run[0] & PLACE_MASK;
        encode_varint((place - before) << 1 | u64::from(run.len() > 1), to);
        if run.len() > 1 {
            encode_varint(run.len() as u64 - 2, to);
        }
        before = place;
    }
}

/// Places of `term` on a page, in order. `None`: the bytes are no page.
pub(crate) fn places(mut page: &[u8], term: u64) -> Option<Vec<u32>> {
    let mut at = 0_u64;
    while !page.is_empty() && at <= term {
        let (distance, more) = halved(&mut page)?;
        at = at.checked_add(distance)?;
        let mut found = (at == term).then(Vec::new);
        if more {
            let runs = decode_varint(&mut page).ok()?;
            let mut place = 0_u64;
            for _ in 0..runs {
                let (distance, long) = halved(&mut page)?;
                let length = if long { decode_varint(&mut page).ok()?.checked_add(2)? } else { 1 };
                place = place.checked_add(distance)?;
                let end = place.checked_add(length)?;
                if end > 1 << PLACE_BITS {
                    return None;
                }
                found.iter_mut().for_each(|found| found.extend(place as u32..end as u32));
            }
        } else {
            let place = decode_varint(&mut page).ok()?;
            let place = u32::try_from(place).ok().filter(|place| *place <= PLACE_MASK as u32)?;
            found.iter_mut().for_each(|found| found.push(place));
        }
        if found.is_some() {
            return found;
        }
    }
    Some(Vec::new())
}

/// A number that was doubled, and whether one was added.
fn halved(from: &mut &[u8]) -> Option<(u64, bool)> {
    let number = decode_varint(from).ok()?;
    Some((number >> 1, number & 1 == 1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection, prelude::*};

    use super::*;

    /// Pages behind their first terms.
    fn written(keys: &[u64]) -> Vec<(u64, Vec<u8>)> {
        let mut pages = Vec::new();
        write(keys, &mut Vec::new(), |first, page| pages.push((first, page.to_vec())));
        pages
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_term_is_found_on_its_page_with_its_places_and_no_other_is(
            keys in collection::btree_set((prop_oneof![0..40_u32, any::<u32>()], 0..1_u32 << PLACE_BITS), 0..400),
            other: u32,
        ) {
            let mut expected: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            for (term, place) in &keys {
                expected.entry(*term).or_default().push(*place);
            }
            let keys: Vec<u64> = keys.iter().map(|(term, place)| key(*term, *place)).collect();
            prop_assert!(terms(&keys).eq(expected.keys().map(|term| u64::from(*term))));
            let pages = written(&keys);
            for term in expected.keys().copied().chain([other]) {
                let at = pages.partition_point(|(first, _)| *first <= term.into()).checked_sub(1);
                let found = at.and_then(|at| places(&pages[at].1, term.into())).unwrap_or_default();
                prop_assert_eq!(found, expected.get(&term).cloned().unwrap_or_default());
            }
        }

        #[test]
        fn bytes_that_are_no_page_are_told_so_and_never_take_much(bytes in collection::vec(any::<u8>(), 0..64), term: u32) {
            if let Some(places) = places(&bytes, term.into()) {
                prop_assert!(places.iter().all(|place| *place < 1 << PLACE_BITS));
            }
        }
    }

    #[test]
    fn a_run_takes_few_bytes_and_a_page_ends_at_its_bound() {
        let status: Vec<u64> = (0..4_096).map(|place| key(7, place)).collect();
        assert_eq!(written(&status), [(7, vec![7 << 1 | 1, 1, 1, 0xfe, 0x1f])]);
        let alone: Vec<u64> = (0..4_096).map(|place| key(place * 1_000_000, place)).collect();
        let pages = written(&alone);
        let most = PAGE_BYTES + 8;
        assert!(pages.len() > 3 && pages.iter().all(|(_, page)| page.len() <= most));
        assert!(pages.iter().rev().skip(1).all(|(_, page)| page.len() >= PAGE_BYTES));
        let cut = &pages[0].1[..pages[0].1.len() - 1];
        assert_eq!(places(cut, u64::MAX), None);
    }
}
