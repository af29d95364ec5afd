//! Headers and tags as they lie on the wire: entries of a map of texts, each read when somebody asks for it.
//!
//! Every call of a transaction carries the same headers, and most who carry a call look at none.

use std::fmt;

use crate::fields::{Fields, Value};
use bytes::{Buf as _, Bytes};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint,
    encoded_len_varint, key_len, skip_field,
};

/// Numbers of the fields of an entry, as in every map.
const NAME: u32 = 1;
const VALUE: u32 = 2;
/// What a name that is written first begins with: its number, and that its length follows.
const NAME_KEY: u8 = (NAME << 3) as u8 | WireType::LengthDelimited as u8;

/// Entries that lie in one piece of memory, and the bytes that it has at first.
const FEW: usize = 4;
const FEW_BYTES: usize = 128;

/// Names and values, each written once. Read from the wire, a name may come twice, and then the last one counts.
#[derive(Clone)]
pub struct Pairs(Entries);

#[derive(Clone)]
enum Entries {
    /// Each in its own place.
    Each(Vec<Bytes>),
    /// As fields one after the other in a message, each behind its key and its length; so many. Nothing is read that somebody does not
    /// ask for.
    Fields { count: usize, fields: Bytes },
}

impl Pairs {
    /// The entries that are all there is in `fields`, each a field of a message.
    pub(crate) fn of_fields(count: usize, fields: Bytes) -> Self {
        Self(Entries::Fields { count, fields })
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Entries::Each(entries) => entries.len(),
            Entries::Fields { count, .. } => *count,
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether each of them is an entry of a map of texts.
    #[must_use]
    pub fn are_well_formed(&self) -> bool {
        self.entries().all(|entry| read(entry).is_some())
    }

    /// Names and values. What is not well-formed is left out.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries().filter_map(read)
    }

    fn entries(&self) -> impl Iterator<Item = &[u8]> {
        let (each, fields) = match &self.0 {
            Entries::Each(entries) => (&entries[..], &[][..]),
            Entries::Fields { fields, .. } => (&[][..], &fields[..]),
        };
        let fields = Fields(fields).map_while(|field| match field? {
            (_, Value::Bytes(entry)) => Some(entry),
            (_, Value::Number(_)) => None,
        });
        each.iter().map(|entry| &**entry).chain(fields)
    }

    /// Each in its own place, to be changed.
    fn each(&mut self) -> &mut Vec<Bytes> {
        if let Entries::Fields { fields, .. } = &self.0 {
            let each = self.entries().map(|entry| fields.slice_ref(entry)).collect();
            self.0 = Entries::Each(each);
        }
        match &mut self.0 {
            Entries::Each(entries) => entries,
            Entries::Fields { .. } => unreachable!("they were put each in its own place"),
        }
    }

    /// The value under that name among entries as they lie in a message.
    #[must_use]
    pub fn find<'e>(entries: &'e [Bytes], name: &str) -> Option<&'e str> {
        Self::among(entries).rev().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Copies of all, for a map of another kind.
    pub fn owned(&self) -> impl Iterator<Item = (String, String)> {
        self.iter().map(|(name, value)| (name.to_owned(), value.to_owned()))
    }

    /// The value under that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().filter_map(|(known, value)| (known == name).then_some(value)).last()
    }

    /// The first value under that name in whatever case. Most have a name of another length, and are not read; nobody writes a name twice
    /// into one entry.
    #[must_use]
    pub fn get_in_any_case(&self, name: &str) -> Option<&str> {
        let length = name.len();
        let may_be = |entry: &&[u8]| match **entry {
            [NAME_KEY, said, ..] => said >= 0x80 || usize::from(said) == length,
            _ => true,
        };
        let mut named = self.entries().filter(may_be).filter_map(read);
        named.find_map(|(known, value)| known.eq_ignore_ascii_case(name).then_some(value))
    }

    /// Gives the header `name` that value, in place of any with that name in whatever case.
    pub fn set(&mut self, name: &str, value: &str) {
        self.replace(name, value, |known| known.eq_ignore_ascii_case(name));
    }

    /// Adds it, in place of any whose name `is_other` holds for. What is not well-formed stays as it is.
    pub fn replace(&mut self, name: &str, value: &str, is_other: impl Fn(&str) -> bool) {
        self.retain(|known| !is_other(known));
        self.each().push(write(name, value));
    }

    /// Keeps those whose names it holds for, and what is not well-formed.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.each().retain(|entry| read(entry).is_none_or(|(name, _)| keep(name)));
    }

    /// The name and the value of an entry, if it is one.
    #[must_use]
    pub fn read(entry: &[u8]) -> Option<(&str, &str)> {
        read(entry)
    }

    /// Names and values of entries as they lie in a message. What is not well-formed is left out.
    pub fn among(entries: &[Bytes]) -> impl DoubleEndedIterator<Item = (&str, &str)> + Clone {
        entries.iter().filter_map(|entry| read(entry))
    }

    /// Bytes that `entries` take in a message, or a few more.
    #[must_use]
    pub fn bytes(entries: &[Bytes]) -> usize {
        entries.iter().map(|entry| entry.len() + 4).sum()
    }
}

/// Names are different ones. All entries lie in one piece of memory: whoever encodes a message takes a count of each, and for the first count
/// of a piece there is more to be made.
impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut pairs = pairs.into_iter().peekable();
        if pairs.peek().is_none() {
            return Self::default();
        }
        let mut all = Vec::with_capacity(FEW_BYTES);
        let mut ends = [0; FEW];
        let mut count = 0;
        while count < FEW
            && let Some((name, value)) = pairs.next()
        {
            append(name.as_ref(), value.as_ref(), &mut all);
            ends[count] = all.len();
            count += 1;
        }
        let mut entries = Vec::with_capacity(count + pairs.size_hint().0);
        let mut all = Bytes::from(all);
        let mut begin = 0;
        for end in &ends[..count - 1] {
            entries.push(all.split_to(end - begin));
            begin = *end;
        }
        entries.push(all);
        entries.extend(pairs.map(|(name, value)| write(name.as_ref(), value.as_ref())));
        entries.into()
    }
}

/// As in [`crate::v1::Call::headers`].
impl From<Vec<Bytes>> for Pairs {
    fn from(entries: Vec<Bytes>) -> Self {
        Self(Entries::Each(entries))
    }
}

/// As in [`crate::v1::Call::headers`].
impl From<Pairs> for Vec<Bytes> {
    fn from(mut pairs: Pairs) -> Self {
        std::mem::take(pairs.each())
    }
}

impl Default for Pairs {
    fn default() -> Self {
        Vec::new().into()
    }
}

/// The same entries, wherever they lie.
impl PartialEq for Pairs {
    fn eq(&self, other: &Self) -> bool {
        self.entries().eq(other.entries())
    }
}

impl Eq for Pairs {}

/// Leaves them out: they may hold what must not stand in a log.
impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pairs", self.len())
    }
}

fn write(name: &str, value: &str) -> Bytes {
    let len = |(number, text): (u32, &str)| {
        key_len(number) + encoded_len_varint(text.len() as u64) + text.len()
    };
    let mut entry = Vec::with_capacity(len((NAME, name)) + len((VALUE, value)));
    append(name, value, &mut entry);
    entry.into()
}

fn append(name: &str, value: &str, to: &mut Vec<u8>) {
    for (number, text) in [(NAME, name), (VALUE, value)] {
        encode_key(number, WireType::LengthDelimited, to);
        encode_varint(text.len() as u64, to);
        to.extend_from_slice(text.as_bytes());
    }
}

/// The name and the value; a field that is missing is an empty text.
fn read(entry: &[u8]) -> Option<(&str, &str)> {
    read_short(entry).or_else(|| read_any(entry))
}

/// As [`write`] lays out what is short, and so does everybody else: nearly all of them.
fn read_short(entry: &[u8]) -> Option<(&str, &str)> {
    const KEYS: [u8; 2] = [0x0a, 0x12];
    let (&[key, length], rest) = entry.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(length.into())?;
    let (&[other_key, other_length], value) = rest.split_first_chunk()?;
    let is_short = [key, other_key] == KEYS
        && (length | other_length).is_ascii()
        && value.len() == usize::from(other_length);
    let text = |bytes| std::str::from_utf8(bytes).ok();
    if is_short { Some((text(name)?, text(value)?)) } else { None }
}

fn read_any(mut entry: &[u8]) -> Option<(&str, &str)> {
    let (mut name, mut value) = ("", "");
    while !entry.is_empty() {
        let (number, kind) = decode_key(&mut entry).ok()?;
        if kind == WireType::LengthDelimited && [NAME, VALUE].contains(&number) {
            let length = usize::try_from(decode_varint(&mut entry).ok()?).ok()?;
            let text = std::str::from_utf8(entry.get(..length)?).ok()?;
            entry.advance(length);
            *(if number == NAME { &mut name } else { &mut value }) = text;
        } else {
            skip_field(kind, number, &mut entry, DecodeContext::default()).ok()?;
        }
    }
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::v1;

    /// A map under the number of a call's headers, as every other peer reads and writes it.
    #[derive(Clone, PartialEq, Message)]
    struct Mapped {
        #[prost(btree_map = "string, string", tag = "7")]
        headers: BTreeMap<String, String>,
    }

    fn owned((name, value): (&str, &str)) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    proptest! {
        #[test]
        fn pairs_are_a_map_on_the_wire(map in prop::collection::btree_map(".{0,3}|[Tt]race", ".{0,200}", 0..5)) {
            let pairs: Pairs = map.iter().collect();
            prop_assert_eq!(pairs.len(), map.len());
            let bytes = Pairs::bytes(&Vec::from(pairs.clone()));
            let call = v1::Call { headers: pairs.into(), ..Default::default() }.encode_to_vec();
            prop_assert!(call.len() <= bytes);
            prop_assert_eq!(&Mapped::decode(&*call).unwrap().headers, &map);

            let mapped = Mapped { headers: map.clone() }.encode_to_vec();
            let heard = Pairs::from(v1::Call::decode(&*mapped).unwrap().headers);
            prop_assert!(heard.are_well_formed());
            prop_assert_eq!(heard.iter().map(owned).collect::<BTreeMap<_, _>>(), map.clone());
            for name in ["", "a", "Trace"].into_iter().chain(map.keys().map(String::as_str)) {
                let mut named = heard.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
                prop_assert_eq!(heard.get_in_any_case(name), named.next().map(|(_, value)| value));
            }
        }

        #[test]
        fn whatever_bytes_come_are_read_or_left_out(entry in prop::collection::vec(any::<u8>(), 0..40)) {
            let pairs = Pairs::from(vec![Bytes::from(entry)]);
            prop_assert_eq!(pairs.iter().count(), usize::from(pairs.are_well_formed()));
        }
    }

    proptest! {
        #[test]
        fn a_short_entry_reads_as_any_does(name in "\\PC{0,50}", value in "\\PC{0,50}", cut in 0_usize..8, at in 0_usize..8, byte: u8) {
            let mut entry = write(&name, &value).to_vec();
            prop_assert_eq!(read(&entry), Some((name.as_str(), value.as_str())));
            entry.truncate(entry.len().saturating_sub(cut));
            if let Some(one) = entry.get_mut(at) {
                *one = byte;
            }
            prop_assert_eq!(read(&entry), read_any(&entry));
        }
    }

    #[test]
    fn of_two_with_the_same_name_the_last_one_counts_and_setting_leaves_one() {
        let mut pairs: Pairs =
            [("a", "1"), ("A", "2"), ("b", "3"), ("a", "4")].into_iter().collect();
        assert_eq!((pairs.get("a"), pairs.get("c")), (Some("4"), None));
        pairs.set("a", "5");
        assert_eq!(pairs.iter().collect::<Vec<_>>(), [("b", "3"), ("a", "5")]);
        assert_eq!(format!("{pairs:?}"), "2 pairs");
    }

    #[test]
    fn an_entry_that_is_cut_is_none_and_one_that_lacks_a_field_has_an_empty_text() {
        let whole = write("tenant", "retail");
        let pairs = |entry: &[u8]| Pairs::from(vec![Bytes::copy_from_slice(entry)]);
        assert!(!pairs(&whole[..whole.len() - 1]).are_well_formed());
        assert_eq!(pairs(&whole[..8]).get("tenant"), Some(""));
        // Field 3, a number, which this version does not know.
        let more = [&[0x18, 0x07], &*whole].concat();
        assert_eq!(pairs(&more).get("tenant"), Some("retail"));
    }
}
