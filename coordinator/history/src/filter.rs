//! A Bloom filter: says for certain that a sheet has no such term, or that it may have one.

use crate::{
    limit,
    term::{Scheme, mixed},
};

/// Bits a term; with six places each, one question in a hundred is answered *maybe* in vain.
const BITS_PER_TERM: usize = 10;
/// Bits that a term sets.
const PLACES: u64 = 6;

/// Of the terms of one sheet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    bits: Vec<u8>,
    /// How its terms are told, and with it, which places they have.
    scheme: Scheme,
}

impl Filter {
    /// Of so many terms, which are hashes already, as sheets are written today.
    pub(crate) fn of(count: usize, terms: impl Iterator<Item = u64>) -> Self {
        let bytes = (count * BITS_PER_TERM).div_ceil(8).clamp(8, limit::FILTER_BYTES_MAX);
        let mut filter = Self { bits: vec![0; bytes], scheme: Scheme::Words };
        for term in terms {
            for place in filter.places(term) {
                filter.bits[place / 8] |= 1 << (place % 8);
            }
        }
        filter
    }

    /// As it lay on disk. `None`: it is none.
    pub(crate) fn from_bytes(bits: Vec<u8>, scheme: Scheme) -> Option<Self> {
        (8..=limit::FILTER_BYTES_MAX).contains(&bits.len()).then_some(Self { bits, scheme })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// False: the term is not among them.
    pub(crate) fn may_have(&self, term: u64) -> bool {
        self.places(term).all(|place| self.bits[place / 8] & (1 << (place % 8)) != 0)
    }

    fn places(&self, term: u64) -> impl Iterator<Item = usize> + use<> {
        let (count, scheme) = (self.bits.len() as u64 * 8, self.scheme);
        let first = match scheme {
            Scheme::Bytes => term,
            Scheme::Words => mixed(term),
        };
        let step = first.rotate_left(32) | 1;
        (0..PLACES).map(move |n| {
            let number = first.wrapping_add(step.wrapping_mul(n));
            let place = match scheme {
                Scheme::Bytes => number % count,
                // As many shares of all numbers as there are places. It takes no division.
                Scheme::Words => ((u128::from(number) * u128::from(count)) >> 64) as u64,
            };
            usize::try_from(place).expect("a place in memory")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_it_is_always_found_and_what_is_not_seldom() {
        let terms: Vec<u64> =
            (0..10_000).map(|n| Scheme::Words.gid(format!("g{n}").as_bytes())).collect();
        let filter = Filter::of(terms.len(), terms.iter().copied());
        assert!(terms.iter().all(|term| filter.may_have(*term)));
        let wrong = (10_000..20_000)
            .filter(|n| filter.may_have(Scheme::Words.gid(format!("g{n}").as_bytes())));
        assert!(wrong.count() < 200, "two in a hundred");
    }

    #[test]
    fn it_never_grows_past_its_bound_and_none_at_all_is_fine() {
        assert_eq!(
            Filter::of(1_000_000, (0..1_000_000).map(|n| n * 7)).bits.len(),
            limit::FILTER_BYTES_MAX
        );
        assert!(!Filter::of(0, std::iter::empty()).may_have(1));
        let from_bytes = |count| Filter::from_bytes(vec![0; count], Scheme::Words);
        assert!(from_bytes(limit::FILTER_BYTES_MAX).is_some());
        assert!(from_bytes(limit::FILTER_BYTES_MAX + 1).is_none());
    }
}
