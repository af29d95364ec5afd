//! `digits(a..b)` and `substr(a..b)`: a part of the key, characters `a` to `b` counted from 1.
//!
//! `digits` takes the number that stands there, so that a number which carries its slot as a gene reaches it; `substr` takes the checksum
//! of the characters, so that all keys with the same part lie together.

use crate::{Key, SLOTS, Slot};

/// First and last character, counted from 1, inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    /// The first character.
    pub first: u8,
    /// The last character, not before the first.
    pub last: u8,
}

pub(super) const DIGITS_DOMAIN: &str = "a key with decimal digits at its place";
pub(super) const SUBSTR_DOMAIN: &str = "a key that reaches to the end of its part";

/// Of `digits(3..6)`.
pub(super) const DIGITS_TEST_VECTORS: &[(&str, u16)] =
    &[("A-0000", 0), ("A-0643-77", 643), ("991023", 1023), ("991024", 0), ("999999", 783)];
/// Of `substr(3..6)`: the checksum of what stands there, as `crc32c` gives it.
pub(super) const SUBSTR_TEST_VECTORS: &[(&str, u16)] =
    &[("xxA-1x", 795), ("xxA-1xyz", 795), ("zürich", 851), ("000123", 697), ("999999", 571)];

impl Part {
    /// Reads `a..b`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once("..")?;
        let number = |text: &str| text.parse::<u8>().ok().filter(|number| *number > 0);
        let part = Self { first: number(first)?, last: number(last)? };
        (part.first <= part.last).then_some(part)
    }

    /// What stands at its place, if the key reaches so far.
    fn of(self, key: Key<'_>) -> Option<&str> {
        let text = key.as_str();
        let mut starts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
        let first = starts.nth(usize::from(self.first) - 1)?;
        let last = starts.nth(usize::from(self.last - self.first))?;
        text.get(first..last)
    }

    pub(super) fn digits_slot(self, key: Key<'_>) -> Option<Slot> {
        let digits = self.of(key)?;
        let remainder = digits.chars().try_fold(0, |remainder: u32, digit| {
            Some((remainder * 10 + digit.to_digit(10)?) % u32::from(SLOTS))
        })?;
        Some(Slot::of_hash(remainder))
    }

    pub(super) fn substr_slot(self, key: Key<'_>) -> Option<Slot> {
        Some(Slot::of_hash(crc32c::crc32c(self.of(key)?.as_bytes())))
    }
}
