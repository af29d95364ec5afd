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

/// Bits of a length that one byte holds, and the bit that says that more follow: all bytes of it are characters.
const BITS: u32 = 6;
const MORE: u8 = 1 << BITS;

/// Bytes in front of a text, at most, which tell its length. Below 64, as that of most is, one does.
const LENGTH_BYTES_MAX: usize = usize::BITS.div_ceil(BITS) as usize;
/// Labels that are put in order, and bytes that are laid out, without memory of their own.
const FEW: usize = 4;
const FEW_BYTES: usize = 256;

/// Lays out a text behind its length at `at`; says where it ends.
fn lay_out(text: &str, all: &mut [u8], mut at: usize) -> usize {
    let bits = usize::BITS - text.len().leading_zeros();
    for left in (0..bits.div_ceil(BITS).max(1)).rev() {
        let part = (text.len() >> (left * BITS)) as u8 & (MORE - 1);
        all[at] = part | if left > 0 { MORE } else { 0 };
        at += 1;
    }
    all[at..at + text.len()].copy_from_slice(text.as_bytes());
    at + text.len()
}

/// The first text, and what follows it.
fn first_of(all: &str) -> Option<(&str, &str)> {
    let (mut length, mut at) = (0, 0);
    loop {
        let part = *all.as_bytes().get(at)?;
        length = length << BITS | usize::from(part & (MORE - 1));
        at += 1;
        if part & MORE == 0 {
            return all.split_at_checked(at)?.1.split_at_checked(length);
        }
    }
}

impl Labels {
    /// Of names in order; of those with the same name the last one counts.
    fn of_sorted<'l>(sorted: impl Iterator<Item = (&'l str, &'l str)> + Clone) -> Self {
        let bytes = |(name, value): (&str, &str)| name.len() + value.len() + 2 * LENGTH_BYTES_MAX;
        let most: usize = sorted.clone().map(bytes).sum();
        let (mut few, mut many) = ([0; FEW_BYTES], Vec::new());
        let all = if most <= FEW_BYTES {
            &mut few[..]
        } else {
            many.resize(most, 0);
            &mut many[..]
        };
        let mut end = 0;
        let mut sorted = sorted.peekable();
        while let Some((name, value)) = sorted.next() {
            if sorted.peek().is_none_or(|next| next.0 != name) {
                end = lay_out(name, all, end);
                end = lay_out(value, all, end);
            }
        }
        let all = str::from_utf8(&all[..end]).expect("texts and characters are a text");
        Self((!all.is_empty()).then(|| all.into()))
    }
}

/// Of those with the same name the last one counts.
impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Self {
        let mut labels = labels.into_iter();
        let mut few: [Option<(N, V)>; FEW] = std::array::from_fn(|_| labels.next());
        if few[FEW - 1].is_none() {
            // Stable, so that the last of a name is the last of its neighbors. Places that are left come first.
            few.sort_by(|one, other| {
                let [one, other] = [one, other].map(|one| one.as_ref().map(texts));
                one.map(|(name, _)| name).cmp(&other.map(|(name, _)| name))
            });
            return Self::of_sorted(few.iter().flatten().map(texts));
        }
        let mut many: Vec<(N, V)> = few.into_iter().flatten().chain(labels).collect();
        many.sort_by(|one, other| one.0.as_ref().cmp(other.0.as_ref()));
        Self::of_sorted(many.iter().map(texts))
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
            prop_assert_eq!(more, many.into_iter().collect::<Labels>());
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
