//! A slot: one of 1,024 hash buckets, never re-numbered.

use std::fmt;

/// How many slots there are. Part of the format: changing it would move every key.
pub const SLOTS: u16 = 1024;

/// A slot's number, 0 to 1,023.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Slot(u16);

impl Slot {
    /// The slot with this number, if there is one.
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        (number < SLOTS).then_some(Self(number))
    }

    /// The slot that `hash` falls into: the remainder of a division by 1,024.
    #[must_use]
    pub fn of_hash(hash: u32) -> Self {
        let number = hash % u32::from(SLOTS);
        Self(u16::try_from(number).expect("a remainder of 1,024 fits 16 bits"))
    }

    /// The number, 0 to 1,023.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }

    /// All slots, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS).map(Self)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Neighboring slots, first and last inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct SlotRange {
    /// The first slot of the range.
    pub first: Slot,
    /// The last slot of the range, not before the first.
    pub last: Slot,
}

impl SlotRange {
    /// Gathers slots in ascending order into as few ranges as possible.
    #[must_use]
    pub fn gather(slots: impl IntoIterator<Item = Slot>) -> Vec<Self> {
        let mut ranges: Vec<Self> = Vec::new();
        for slot in slots {
            match ranges.last_mut() {
                Some(range) if range.last.0 + 1 == slot.0 => range.last = slot,
                _ => ranges.push(Self { first: slot, last: slot }),
            }
        }
        ranges
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            self.first.fmt(f)
        } else {
            write!(f, "{} to {}", self.first, self.last)
        }
    }
}
