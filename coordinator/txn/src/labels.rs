//! Names and values that travel with a transaction: its headers and its tags.

use std::{fmt, sync::Arc};

/// Names, each once and in order, with a value each. Never changes: a copy is a count, since each open transaction holds two of these,
/// every call reads one, and most are empty or hold a tenant.
///
/// All in one piece of memory, how many there are and then each name and each value behind its length: a million transactions are open at a
/// time, and what is scattered is paid for at each look.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Labels(Option<Arc<str>>);

impl Labels {
    /// None at all.
    pub const EMPTY: Self = Self(None);

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counted().map_or(0, |(count, _)| count)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes of all names and values, and a few more.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |labels| labels.len())
    }

    /// The value under that name. Reads one after the other: there are at most [`crate::limit::LABELS_MAX`].
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Names and values in the order of the names, by bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        let mut left = self.counted().map_or("", |(_, labels)| labels);
        std::iter::from_fn(move || {
            let (name, rest) = first_of(left)?;
            let (value, rest) = first_of(rest)?;
            left = rest;
            Some((name, value))
        })
    }

    fn counted(&self) -> Option<(usize, &str)> {
        number_of(self.0.as_deref()?)
    }

    /// Copies of all, for a map of another kind.
    pub fn owned(&self) -> impl Iterator<Item = (String, String)> {
        self.iter().map(|(name, value)| (name.to_owned(), value.to_owned()))
    }

    /// Adds one, or gives it another value. Copies the others: many are collected.
    pub fn insert(&mut self, name: &str, value: &str) {
        let more = self.iter().chain([(name, value)]).collect();
        *self = more;
    }
}

/// Bits of a number that one byte holds, and the bit that says that more follow: all bytes of it are characters.
const BITS: u32 = 6;
const MORE: u8 = 1 << BITS;

/// Bytes of a number, at most. Below 64, as most are, it has one.
const NUMBER_BYTES_MAX: usize = usize::BITS.div_ceil(BITS) as usize;
/// Labels that are put in order, and bytes that are laid out, without memory of their own.
const FEW: usize = 4;
const FEW_BYTES: usize = 256;

/// Writes a number at `at`; says where it ends.
fn put_number(number: usize, all: &mut [u8], mut at: usize) -> usize {
    let bits = usize::BITS - number.leading_zeros();
    for left in (0..bits.div_ceil(BITS).max(1)).rev() {
        let part = (number >> (left * BITS)) as u8 & (MORE - 1);
        all[at] = part | if left > 0 { MORE } else { 0 };
        at += 1;
    }
    at
}

/// Writes a text behind its length at `at`; says where it ends.
fn put_text(text: &[u8], all: &mut [u8], at: usize) -> usize {
    let from = put_number(text.len(), all, at);
    all[from..from + text.len()].copy_from_slice(text);
    from + text.len()
}

/// The first number, and what follows it.
fn number_of(all: &str) -> Option<(usize, &str)> {
    let (mut number, mut at) = (0, 0);
    loop {
        let part = *all.as_bytes().get(at)?;
        number = number << BITS | usize::from(part & (MORE - 1));
        at += 1;
        if part & MORE == 0 {
            return Some((number, all.get(at..)?));
        }
    }
}

/// The first text, and what follows it.
fn first_of(all: &str) -> Option<(&str, &str)> {
    let (length, rest) = number_of(all)?;
    rest.split_at_checked(length)
}

impl Labels {
    /// Of names that are in order, each once. `None`: they are not, or something is no text.
    pub fn in_order<'l>(
        labels: impl Iterator<Item = (&'l [u8], &'l [u8])> + Clone,
    ) -> Option<Self> {
        let rises = labels.clone().is_sorted_by(|one, next| one.0 < next.0);
        if rises { Self::laid_out(labels) } else { None }
    }

    /// Of names in order; of those with the same name the last one counts.
    fn of_sorted(sorted: &[(&str, &str)]) -> Self {
        let labels = sorted.chunk_by(|one, other| one.0 == other.0).map(|same| {
            let (name, value) = same[same.len() - 1];
            (name.as_bytes(), value.as_bytes())
        });
        Self::laid_out(labels).expect("texts and characters are a text")
    }

    /// `None`: something is no text. A number stands in front of each, so no two that are none are one together.
    fn laid_out<'l>(labels: impl Iterator<Item = (&'l [u8], &'l [u8])> + Clone) -> Option<Self> {
        let (mut count, mut most) = (0, NUMBER_BYTES_MAX);
        for (name, value) in labels.clone() {
            count += 1;
            most += name.len() + value.len() + 2 * NUMBER_BYTES_MAX;
        }
        if count == 0 {
            return Some(Self::EMPTY);
        }
        let (mut few, mut many) = ([0; FEW_BYTES], Vec::new());
        let all = if most <= FEW_BYTES {
            &mut few[..]
        } else {
            many.resize(most, 0);
            &mut many[..]
        };
        let mut end = put_number(count, all, 0);
        for (name, value) in labels {
            end = put_text(name, all, end);
            end = put_text(value, all, end);
        }
        let all = str::from_utf8(&all[..end]).ok()?;
        Some(Self(Some(all.into())))
    }
}

/// Of those with the same name the last one counts.
impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Self {
        let mut labels = labels.into_iter();
        let few: [Option<(N, V)>; FEW] = std::array::from_fn(|_| labels.next());
        // Stable, so that the last of a name is the last of its neighbors.
        if few[FEW - 1].is_none() {
            let (mut sorted, mut count) = ([("", ""); FEW], 0);
            for label in few.iter().flatten() {
                sorted[count] = texts(label);
                count += 1;
            }
            sorted[..count].sort_by_key(|(name, _)| *name);
            return Self::of_sorted(&sorted[..count]);
        }
        let many: Vec<(N, V)> = few.into_iter().flatten().chain(labels).collect();
        let mut sorted: Vec<(&str, &str)> = many.iter().map(texts).collect();
        sorted.sort_by_key(|(name, _)| *name);
        Self::of_sorted(&sorted)
    }
}

fn texts<N: AsRef<str>, V: AsRef<str>>((name, value): &(N, V)) -> (&str, &str) {
    (name.as_ref(), value.as_ref())
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn labels_are_a_map_in_the_order_of_names(pairs in prop::collection::vec(("[a-c]{0,2}", ".{0,3}"), 0..12)) {
            let map: BTreeMap<String, String> = pairs.iter().cloned().collect();
            let labels: Labels = pairs.into_iter().collect();
            prop_assert_eq!(labels.len(), map.len());
            prop_assert_eq!(labels.is_empty(), map.is_empty());
            let same = labels.iter().eq(map.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            prop_assert!(same, "{labels:?} and {map:?}");
            for name in ["", "a", "ab", "c", "d"] {
                prop_assert_eq!(labels.get(name), map.get(name).map(String::as_str));
            }
            let (mut more, mut many) = (labels, map);
            more.insert("b", "x");
            many.insert("b".to_owned(), "x".to_owned());
            prop_assert_eq!(&more, &many.iter().collect::<Labels>());
            let bytes = |(name, value): (&'_ String, &'_ String)| (name.clone().into_bytes(), value.clone().into_bytes());
            let bytes: Vec<_> = many.iter().map(bytes).collect();
            let labels = |bytes: &[(Vec<u8>, Vec<u8>)]| Labels::in_order(bytes.iter().map(|(name, value)| (&name[..], &value[..])));
            prop_assert_eq!(labels(&bytes), Some(more));
            let twice: Vec<_> = bytes.iter().chain(&bytes).cloned().collect();
            prop_assert_eq!(labels(&twice), None);
        }
    }

    #[test]
    fn halves_of_a_character_are_no_text_wherever_they_meet() {
        let halves = "ü".as_bytes().split_at(1);
        for bad in [halves, (halves.0, b"x"), (b"x", halves.1)] {
            assert_eq!(Labels::in_order([bad].into_iter()), None);
        }
        let across: [(&[u8], &[u8]); 2] = [(b"a", halves.0), (halves.1, b"x")];
        assert_eq!(Labels::in_order(across.into_iter()), None);
    }

    #[test]
    fn as_many_as_a_byte_counts_and_one_more_are_counted() {
        for count in [0, 1, 3, 4, 63, 64, 65] {
            let labels: Labels = (0..count).map(|n| (format!("{n:03}"), "v")).collect();
            assert_eq!((labels.len(), labels.iter().count()), (count, count));
        }
    }

    #[test]
    fn lengths_on_either_side_of_the_bits_of_a_byte_are_told() {
        for length in [0, 1, 63, 64, 230, 231, 232, 233, 4_095, 4_096, 262_143, 262_144] {
            let long = "ü".repeat(length / 2) + &"x".repeat(length % 2);
            let labels: Labels = [("a", long.as_str()), ("b", "2")].into_iter().collect();
            assert_eq!(labels.get("a"), Some(long.as_str()), "{length}");
            assert_eq!(labels.get("b"), Some("2"), "{length}");
        }
    }
}
