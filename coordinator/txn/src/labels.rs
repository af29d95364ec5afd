//! Names and values that travel with a transaction: its headers and its tags.

use std::{fmt, sync::Arc};

/// A name and its value.
type Label = (Box<str>, Box<str>);

/// Names, each once and in order, with a value each. Never changes: a copy is a count, since each open transaction holds two of these,
/// every call reads one, and most are empty or hold a single `traceparent`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Labels(Option<Arc<[Label]>>);

impl Labels {
    /// None at all.
    pub const EMPTY: Self = Self(None);

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The value under that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.pairs().binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(&self.pairs()[at].1)
    }

    /// Names and values in the order of the names, by bytes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone {
        self.pairs().iter().map(|(name, value)| (&**name, &**value))
    }

    /// Copies of all, for a map of another kind.
    pub fn owned(&self) -> impl ExactSizeIterator<Item = (String, String)> {
        self.iter().map(|(name, value)| (name.to_owned(), value.to_owned()))
    }

    /// Adds one, or gives it another value. Copies the others: many are collected.
    pub fn insert(&mut self, name: impl Into<Box<str>>, value: impl Into<Box<str>>) {
        let more = [(name.into(), value.into())];
        *self = self.pairs().iter().cloned().chain(more).collect();
    }

    fn pairs(&self) -> &[Label] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Of those with the same name the last one counts.
impl<N: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(N, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Self {
        let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
        let mut pairs: Vec<Label> = labels.collect();
        // Stable, so that the last of a name is the last of its neighbors.
        pairs.sort_by(|one, other| one.0.cmp(&other.0));
        pairs.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        Self((!pairs.is_empty()).then(|| pairs.into()))
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
}
