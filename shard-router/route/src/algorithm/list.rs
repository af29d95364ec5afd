//! `list(DE AT, FR, IT)`: the place of the item that names the key, counted from 0. A key that no item names has no slot.
//!
//! Keys of one item stand side by side and lie together. A key with a blank, a comma, a quote or a parenthesis stands in single quotes.

use std::sync::Arc;

use super::narrow;
use crate::{Key, SLOTS, Slot, limit::LISTED_KEYS_MAX};

/// The keys of a `list` with the slot of each, sorted by key; each key once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listed(Arc<[(Box<str>, u16)]>);

pub(super) const DOMAIN: &str = "a key that its list names";

/// Of `list(DE AT, FR, 'San Marino' IT)`.
pub(super) const TEST_VECTORS: &[(&str, u16)] =
    &[("DE", 0), ("AT", 0), ("FR", 1), ("San Marino", 2), ("IT", 2)];

impl Listed {
    /// Reads what stands between the parentheses.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let items = super::range::pieces(text)?;
        if items.len() > usize::from(SLOTS) {
            return Err(format!("list has {} items, more than {SLOTS} slots", items.len()));
        }
        let mut found: Vec<(Box<str>, u16)> = Vec::new();
        for (item, slot) in items.into_iter().zip(0_u16..) {
            for key in keys(item)? {
                found.push((key, slot));
            }
        }
        if found.len() > LISTED_KEYS_MAX {
            return Err(format!("list has {} keys, more than {LISTED_KEYS_MAX}", found.len()));
        }
        found.sort_unstable();
        if let Some(pair) = found.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("list names {:?} twice", pair[0].0));
        }
        Ok(Self(found.into()))
    }

    pub(super) fn written(&self) -> String {
        let mut items: Vec<Vec<String>> = Vec::new();
        for (key, slot) in self.0.iter() {
            let at = usize::from(*slot);
            if items.len() <= at {
                items.resize(at + 1, Vec::new());
            }
            let plain = !key.contains([' ', ',', '\'', '(', ')']);
            let quoted = || format!("'{}'", key.replace('\'', "''"));
            items[at].push(if plain { key.to_string() } else { quoted() });
        }
        items.iter().map(|item| item.join(" ")).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn slot(&self, key: Key<'_>) -> Option<Slot> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key.as_str())).ok()?;
        Some(narrow(i64::from(self.0[at].1)))
    }

    /// Every key that is named.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| &**key)
    }
}

/// The keys of one item.
fn keys(item: &str) -> Result<Vec<Box<str>>, String> {
    let mut found = Vec::new();
    let mut rest = item.trim_start();
    while !rest.is_empty() {
        let end = if rest.starts_with('\'') {
            closing_quote(rest).ok_or_else(|| "a quote is not closed".to_owned())?
        } else {
            rest.find(char::is_whitespace).unwrap_or(rest.len())
        };
        let (piece, behind) = rest.split_at(end);
        let key = if piece.starts_with('\'') {
            super::range::unquoted(piece)
        } else {
            let plain = !piece.contains(['\'', '(', ')']) && Key::parse(piece).is_ok();
            plain.then(|| piece.into())
        };
        found.push(key.ok_or_else(|| {
            let shown: String = piece.chars().take(40).collect();
            format!("list has {shown:?}, which is no key of 1 to 256 bytes")
        })?);
        rest = behind.trim_start();
    }
    Ok(found)
}

/// Where the text in quotes with which `rest` begins ends; a doubled quote stands for one.
fn closing_quote(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let mut at = 1;
    loop {
        match (bytes.get(at)?, bytes.get(at + 1)) {
            (b'\'', Some(b'\'')) => at += 2,
            (b'\'', _) => return Some(at + 1),
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_read_is_written_so_that_it_is_read_again() {
        for text in ["a b, c", "'it''s' x, '(', 'a, b' 'c d'", "1 2 3"] {
            let listed = Listed::parse(text).unwrap();
            assert_eq!(Listed::parse(&listed.written()), Ok(listed));
        }
    }

    #[test]
    fn a_key_twice_or_none_is_refused() {
        for text in ["a, b a", "", "a,,b", "'a", "f(x)", "a 'b"] {
            assert!(Listed::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn as_many_items_as_slots_and_as_many_keys_as_are_bounded() {
        let items = |count: usize| {
            let list: Vec<String> = (0..count).map(|item| format!("k{item}")).collect();
            Listed::parse(&list.join(", "))
        };
        assert!(items(usize::from(SLOTS)).is_ok());
        assert!(items(usize::from(SLOTS) + 1).unwrap_err().contains("1025 items"));
        let keys = |count: usize| {
            let list: Vec<String> = (0..count).map(|item| format!("k{item}")).collect();
            Listed::parse(&list.join(" "))
        };
        assert!(keys(LISTED_KEYS_MAX).is_ok());
        assert!(keys(LISTED_KEYS_MAX + 1).unwrap_err().contains("more than"));
    }
}
