//! Sets of slots and of sources: what AND intersects and OR unites.

use super::SourceIndex;
use crate::{SLOTS, Slot};

const WORDS: usize = SLOTS as usize / 64;

/// A set of slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotSet([u64; WORDS]);

impl SlotSet {
    pub(crate) const EMPTY: Self = Self([0; WORDS]);
    pub(crate) const ALL: Self = Self([u64::MAX; WORDS]);

    pub(crate) fn insert(&mut self, slot: Slot) {
        let number = usize::from(slot.number());
        self.0[number / 64] |= 1 << (number % 64);
    }

    pub(crate) fn contains(&self, slot: Slot) -> bool {
        let number = usize::from(slot.number());
        (self.0[number / 64] >> (number % 64)) & 1 == 1
    }

    /// Whether a slot is in both.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(word, other)| word & other != 0)
    }

    pub(crate) fn intersect(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word &= other;
        }
    }

    pub(crate) fn unite(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word |= other;
        }
    }

    pub(crate) fn is_all(&self) -> bool {
        *self == Self::ALL
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        // Nearly every statement has one slot: fifteen of sixteen words are passed over whole.
        let words = self.0.iter().zip(0_u16..).filter(|(word, _)| **word != 0);
        words.flat_map(|(word, at)| {
            let mut left = *word;
            let bits = std::iter::from_fn(move || {
                let lowest = (left != 0).then(|| left.trailing_zeros() as u16);
                left &= left.wrapping_sub(1);
                lowest
            });
            bits.map(move |bit| Slot::new(at * 64 + bit).expect("there are 16 words"))
        })
    }

    /// Where these slots lie.
    pub(crate) fn sources(&self, homes: &[SourceIndex]) -> SourceSet {
        let mut sources = SourceSet::default();
        for slot in self.slots() {
            sources.insert(homes[usize::from(slot.number())]);
        }
        sources
    }
}

/// A set of sources, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SourceSet(Vec<SourceIndex>);

impl SourceSet {
    pub(crate) fn insert(&mut self, source: SourceIndex) {
        if let Err(at) = self.0.binary_search(&source) {
            self.0.insert(at, source);
        }
    }

    pub(crate) fn unite(&mut self, other: &Self) {
        for source in &other.0 {
            self.insert(*source);
        }
    }

    pub(crate) fn as_slice(&self) -> &[SourceIndex] {
        &self.0
    }
}
