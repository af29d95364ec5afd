//! Names and values that travel with a transaction: its headers and its tags.

use std::{fmt, sync::Arc};

/// Names, each once and in order, with a value each. Never changes: a copy is a count, since each open transaction holds two of these,
/// every call reads one, and most are empty or hold a `traceparent` and a tenant.
///
/// All in one piece of memory, each name and each value behind its length: a million transactions are open at a time, and what is
/// scattered is paid for at each look.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Labels(Option<Arc<str>>);

impl Labels {
    /// None at all.
    pub const EMPTY: Self = Self(None);

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The value under that name. Reads one after the other: there are at most [`crate::limit::LABELS_MAX`].
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Names and values in the order of the names, by bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        let mut left = self.0.as_deref().unwrap_or_default();
        std::iter::from_fn(move || {
            let (name, rest) = first_of(left)?;
            let (value, rest) = first_of(rest)?;
            left = rest;
            Some((name, value))
        })
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

/// Bits of a length that one character holds: all below the surrogates.
const BITS: u32 = 15;

/// A text behind its length, which two characters tell.
fn append(all: &mut String, text: &str) {
    let length = u32::try_from(text.len()).ok().filter(|length| length >> (2 * BITS) == 0);
    let length = length.expect("a label is below 1 GiB, as every message is");
    for part in [length >> BITS, length & ((1 << BITS) - 1)] {
        all.push(char::from_u32(part).expect("15 bits are no surrogate"));
    }
    all.push_str(text);
}

/// The first text, and what follows it.
fn first_of(all: &str) -> Option<(&str, &str)> {
    let mut characters = all.chars();
    let (high, low) = (characters.next()?, characters.next()?);
    let length = (high as usize) << BITS | low as usize;
    characters.as_str().split_at_checked(length)
}

/// Of those with the same name the last one counts.
impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Self {
        let mut pairs: Vec<(N, V)> = labels.into_iter().collect();
        // Stable, so that the last of a name is the last of its neighbors.
        pairs.sort_by(|one, other| one.0.as_ref().cmp(other.0.as_ref()));
        let bytes = |(name, value): &(N, V)| name.as_ref().len() + value.as_ref().len();
        // A length takes two bytes where it is below 128, as most are, and six at most.
        let mut all = String::with_capacity(pairs.iter().map(|pair| bytes(pair) + 8).sum());
        for (at, (name, value)) in pairs.iter().enumerate() {
            let is_last = pairs.get(at + 1).is_none_or(|next| next.0.as_ref() != name.as_ref());
            if is_last {
                append(&mut all, name.as_ref());
                append(&mut all, value.as_ref());
            }
        }
        Self((!all.is_empty()).then(|| all.into()))
    }
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
            prop_assert_eq!(more, many.into_iter().collect::<Labels>());
        }
    }

    #[test]
    fn lengths_on_either_side_of_the_bits_of_a_character_are_told() {
        for length in [0, 1, 127, 128, 32_767, 32_768, 70_000] {
            let long = "ü".repeat(length / 2) + &"x".repeat(length % 2);
            let labels: Labels = [("a", long.as_str()), ("b", "2")].into_iter().collect();
            assert_eq!(labels.get("a"), Some(long.as_str()), "{length}");
            assert_eq!(labels.get("b"), Some("2"), "{length}");
        }
    }
}
