//! Names and values that travel with a transaction: its headers and its tags.

use std::fmt;

use bytes::Bytes;

/// Names, each once and in order, with a value each. Never changes: a copy is a count, since each open transaction holds two of these,
/// every call carries one, and most are empty or hold a `traceparent` and a tenant.
///
/// All in one piece of memory, each label behind its length: a million transactions are open at a time, and what is scattered is paid for at
/// each look. A label lies there as an entry of a map of texts does on the wire, so that whoever sends it copies and allocates nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Labels(Option<Bytes>);

impl Labels {
    /// None at all.
    pub const EMPTY: Self = Self(None);

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts().count()
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
        self.parts().map_while(label)
    }

    /// The same, each as an entry of a map of texts on the wire: the name is its field 1, the value its field 2. Copies nothing.
    pub fn entries(&self) -> impl Iterator<Item = Bytes> {
        self.0.iter().flat_map(|all| self.parts().map(|entry| all.slice_ref(entry)))
    }

    /// Of entries as [`Self::entries`] gives them. `None`: they are written otherwise or in another order, or are none; whoever can read them
    /// nevertheless collects them.
    #[must_use]
    pub fn of_entries(entries: &[Bytes]) -> Option<Self> {
        let mut all = Vec::with_capacity(entries.iter().map(|entry| size(entry.len())).sum());
        let mut before = None;
        for entry in entries {
            let (name, _) = label(entry)?;
            if before.replace(name).is_some_and(|before| before >= name) {
                return None;
            }
            append(&mut all, entry);
        }
        Some(Self::of_bytes(all))
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

    fn parts(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let mut left = self.0.as_deref().unwrap_or_default();
        std::iter::from_fn(move || part(&mut left))
    }

    fn of_bytes(all: Vec<u8>) -> Self {
        Self((!all.is_empty()).then(|| all.into_boxed_slice().into()))
    }
}

/// What begins the fields of an entry: their number, and that a length follows.
const NAME: u8 = 1 << 3 | 2;
const VALUE: u8 = 2 << 3 | 2;

/// Bits of a length that one byte holds; its highest says that more follow.
const BITS: u32 = 7;
const MORE: u8 = 1 << BITS;

/// Bytes that so many take behind their length.
fn size(length: usize) -> usize {
    let bits = usize::BITS - (length | 1).leading_zeros();
    bits.div_ceil(BITS) as usize + length
}

/// Appends `bytes` behind their length.
fn append(all: &mut Vec<u8>, bytes: &[u8]) {
    let mut length = bytes.len();
    while length >> BITS > 0 {
        all.push(length as u8 | MORE);
        length >>= BITS;
    }
    all.push(length as u8);
    all.extend_from_slice(bytes);
}

/// Takes the first bytes that stand behind their length. `None`: there are none, or their length is not as [`append`] writes it.
fn part<'b>(left: &mut &'b [u8]) -> Option<&'b [u8]> {
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let byte = *left.split_off_first()?;
        let bits = usize::from(byte & !MORE);
        length |= bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
        if byte & MORE == 0 {
            return (byte > 0 || shift == 0).then(|| left.split_off(..length))?;
        }
        shift += BITS;
    }
}

/// The name and the value of an entry.
fn label(mut entry: &[u8]) -> Option<(&str, &str)> {
    let mut field = |first| {
        let is_meant = *entry.split_off_first()? == first;
        let text = part(&mut entry).filter(|_| is_meant)?;
        std::str::from_utf8(text).ok()
    };
    let both = (field(NAME)?, field(VALUE)?);
    entry.is_empty().then_some(both)
}

/// Of those with the same name the last one counts.
impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Self {
        let mut pairs: Vec<(N, V)> = labels.into_iter().collect();
        // Stable, so that the last of a name is the last of its neighbors.
        pairs.sort_by(|one, other| one.0.as_ref().cmp(other.0.as_ref()));
        let length =
            |(name, value): &(N, V)| 2 + size(name.as_ref().len()) + size(value.as_ref().len());
        let mut all = Vec::with_capacity(pairs.iter().map(|pair| size(length(pair))).sum());
        let mut entry = Vec::new();
        for (at, (name, value)) in pairs.iter().enumerate() {
            let is_last = pairs.get(at + 1).is_none_or(|next| next.0.as_ref() != name.as_ref());
            if is_last {
                entry.clear();
                entry.push(NAME);
                append(&mut entry, name.as_ref().as_bytes());
                entry.push(VALUE);
                append(&mut entry, value.as_ref().as_bytes());
                append(&mut all, &entry);
            }
        }
        Self::of_bytes(all)
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
            let (mut more, mut many) = (labels.clone(), map);
            more.insert("b", "x");
            many.insert("b".to_owned(), "x".to_owned());
            prop_assert_eq!(more, many.into_iter().collect::<Labels>());
            let entries: Vec<Bytes> = labels.entries().collect();
            prop_assert_eq!(Labels::of_entries(&entries), Some(labels));
        }
    }

    #[test]
    fn lengths_on_either_side_of_the_bits_of_a_byte_are_told() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 70_000] {
            let long = "ü".repeat(length / 2) + &"x".repeat(length % 2);
            let labels: Labels = [("a", long.as_str()), ("b", "2")].into_iter().collect();
            assert_eq!(labels.get("a"), Some(long.as_str()), "{length}");
            assert_eq!(labels.get("b"), Some("2"), "{length}");
        }
    }

    #[test]
    fn entries_that_are_written_otherwise_are_not_taken_as_they_are() {
        let entry = |bytes: &'static [u8]| Bytes::from_static(bytes);
        let (a, b) = (entry(b"\x0a\x01a\x12\x00"), entry(b"\x0a\x01b\x12\x01v"));
        let both = Labels::of_entries(&[a.clone(), b.clone()]);
        assert_eq!(both, Some([("a", ""), ("b", "v")].into_iter().collect()));
        for others in [
            vec![b.clone(), a.clone()],
            vec![a.clone(), a],
            vec![entry(b"\x0a\x01a")],
            vec![entry(b"\x12\x01v\x0a\x01b")],
            vec![entry(b"\x0a\x81\x00a\x12\x00")],
            vec![entry(b"\x0a\x01\xff\x12\x00")],
            vec![entry(b"\x0a\x01a\x12\x00\x18\x07")],
            vec![entry(b"\x0a\x02a"), b],
            vec![entry(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7fa")],
        ] {
            assert_eq!(Labels::of_entries(&others), None, "{others:?}");
        }
    }
}
