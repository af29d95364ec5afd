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

use holdfast_proto::write_varint;
use prost::encoding::decode_varint;

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

/// The term of a key.
pub(crate) fn term_of(key: u64) -> u64 {
    key >> PLACE_BITS
}

/// Bits by which keys are put in order at once, and how often that is done for all of a term.
const DIGIT_BITS: u32 = 11;
const DIGITS: usize = u32::BITS.div_ceil(DIGIT_BITS) as usize;

fn digit(key: u64, number: usize) -> usize {
    (key >> (PLACE_BITS + number as u32 * DIGIT_BITS)) as usize & ((1 << DIGIT_BITS) - 1)
}

/// Sorts `keys`, which came in the order of their places: by terms alone, digit by digit. Comparing
/// them was a tenth of what a history costs.
pub(crate) fn sort(keys: &mut Vec<u64>, spare: &mut Vec<u64>) {
    debug_assert!(keys.is_sorted_by_key(|key| key & PLACE_MASK), "they come by their places");
    let mut counts = [[0_u32; 1 << DIGIT_BITS]; DIGITS];
    for key in keys.iter() {
        counts.iter_mut().enumerate().for_each(|(at, counts)| counts[digit(*key, at)] += 1);
    }
    spare.resize(keys.len(), 0);
    for (at, counts) in counts.iter_mut().enumerate() {
        let mut begin = 0;
        for count in counts.iter_mut() {
            begin += std::mem::replace(count, begin);
        }
        for key in keys.iter() {
            let place = &mut counts[digit(*key, at)];
            spare[*place as usize] = *key;
            *place += 1;
        }
        std::mem::swap(keys, spare);
    }
}

/// Writes the keys of each term, sorted and each there once, to pages; `tell` is told the first term of each, and its bytes.
pub(crate) fn write<'k>(
    by_term: impl Iterator<Item = &'k [u64]>,
    page: &mut Vec<u8>,
    mut tell: impl FnMut(u64, &[u8]),
) {
    page.clear();
    let (mut first, mut before) = (0, 0);
    for same in by_term {
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
        write_varint(distance << 1, to);
        write_varint(only & PLACE_MASK, to);
        return;
    }
    write_varint(distance << 1 | 1, to);
    let runs = || same.chunk_by(|one, other| one + 1 == *other);
    write_varint(runs().count() as u64, to);
    let mut before = 0;
    for run in runs() {
        let place = run[0] & PLACE_MASK;
        write_varint((place - before) << 1 | u64::from(run.len() > 1), to);
        if run.len() > 1 {
            write_varint(run.len() as u64 - 2, to);
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
        let by_term = keys.chunk_by(|one, other| term_of(*one) == term_of(*other));
        write(by_term, &mut Vec::new(), |first, page| pages.push((first, page.to_vec())));
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
            let pages = written(&keys);
            for term in expected.keys().copied().chain([other]) {
                let at = pages.partition_point(|(first, _)| *first <= term.into()).checked_sub(1);
                let found = at.and_then(|at| places(&pages[at].1, term.into())).unwrap_or_default();
                prop_assert_eq!(found, expected.get(&term).cloned().unwrap_or_default());
            }
        }

        #[test]
        fn keys_that_came_by_their_places_are_sorted_as_numbers(
            terms in collection::vec((prop_oneof![0..4_u32, any::<u32>()], 0..3_u32), 0..400),
        ) {
            let mut place = 0;
            let keys = terms.iter().map(|(term, step)| {
                place += step;
                key(*term, place)
            });
            let mut keys: Vec<u64> = keys.collect();
            let mut expected = keys.clone();
            expected.sort_unstable();
            // What a sheet before this one left behind.
            sort(&mut keys, &mut vec![7; 500]);
            prop_assert_eq!(keys, expected);
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
