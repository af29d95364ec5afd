//! `range(b1, b2, ...)`: how many of the ascending bounds are at or below the key. Keys below the first bound have slot 0, keys from the
//! first bound on slot 1, and so on; the last slot has no end.
//!
//! Bounds are integers, dates (`range(2025-01-01, 2026-01-01)`) or texts in quotes (`range('g', 'n')`), which are compared by their bytes.

use std::sync::Arc;

use super::narrow;
use crate::{Key, KeyType, Slot, calendar::Date, limit::BOUNDS_MAX};

/// The bounds of a `range`, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bounds {
    /// Of 64-bit integers.
    Integers(Arc<[i64]>),
    /// Of dates, as days since 1970-01-01.
    Dates(Arc<[i64]>),
    /// Of texts.
    Texts(Arc<[Box<str>]>),
}

/// Of `range(0, 1000, 50000)`.
pub(super) const TEST_VECTORS: &[(&str, u16)] = &[
    ("-9223372036854775808", 0),
    ("-1", 0),
    ("0", 1),
    ("999", 1),
    ("1000", 2),
    ("49999", 2),
    ("50000", 3),
    ("9223372036854775807", 3),
];

impl Bounds {
    /// Reads what stands between the parentheses.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let pieces = pieces(text)?;
        if pieces.len() > BOUNDS_MAX {
            return Err(format!("range has {} bounds, more than {BOUNDS_MAX}", pieces.len()));
        }
        let first = pieces.first().map_or("", |piece| piece);
        let bounds = if let Some(texts) = all(&pieces, unquoted) {
            Self::Texts(texts.into())
        } else if let Some(days) = all(&pieces, |piece| Date::parse(piece).map(Date::days)) {
            Self::Dates(days.into())
        } else if let Some(numbers) = all(&pieces, |piece| piece.parse().ok()) {
            Self::Integers(numbers.into())
        } else {
            return Err(format!(
                "range({first}, ...) has bounds that are not all integers, all dates or all texts in quotes"
            ));
        };
        let ascending = match &bounds {
            Self::Integers(list) | Self::Dates(list) => list.is_sorted_by(|one, two| one < two),
            Self::Texts(list) => list.is_sorted_by(|one, two| one < two),
        };
        if ascending { Ok(bounds) } else { Err("the bounds of a range do not ascend".to_owned()) }
    }

    pub(super) fn written(&self) -> String {
        let list: Vec<String> = match self {
            Self::Integers(list) => list.iter().map(ToString::to_string).collect(),
            Self::Dates(list) => list
                .iter()
                .map(|days| Date::of_days(*days).map(|date| date.to_string()).unwrap_or_default())
                .collect(),
            Self::Texts(list) => {
                list.iter().map(|text| format!("'{}'", text.replace('\'', "''"))).collect()
            }
        };
        list.join(", ")
    }

    pub(super) fn domain(&self) -> &'static str {
        match self {
            Self::Integers(_) => "a 64-bit integer in decimal digits",
            Self::Dates(_) => super::date::DOMAIN,
            Self::Texts(_) => "any text of 1 to 256 bytes",
        }
    }

    pub(super) fn key_type(&self) -> KeyType {
        match self {
            Self::Integers(_) => KeyType::Integer,
            Self::Dates(_) => KeyType::Date,
            Self::Texts(_) => KeyType::Text,
        }
    }

    pub(super) fn slot(&self, key: Key<'_>) -> Option<Slot> {
        let key = key.as_str();
        match self {
            Self::Integers(_) => self.slot_of_number(key.parse().ok()?),
            Self::Dates(_) => self.slot_of_number(Date::parse(key)?.days()),
            Self::Texts(_) => self.slot_of_text(key),
        }
    }

    /// Of an integer, or a date as days since 1970-01-01.
    pub(super) fn slot_of_number(&self, number: i64) -> Option<Slot> {
        match self {
            Self::Integers(list) | Self::Dates(list) => {
                Some(numbered(list.partition_point(|bound| *bound <= number)))
            }
            Self::Texts(_) => None,
        }
    }

    pub(super) fn slot_of_text(&self, text: &str) -> Option<Slot> {
        match self {
            Self::Integers(_) | Self::Dates(_) => None,
            Self::Texts(list) => Some(numbered(list.partition_point(|bound| **bound <= *text))),
        }
    }

    /// The slot of the greatest keys.
    pub(super) fn last_slot(&self) -> Slot {
        match self {
            Self::Integers(list) | Self::Dates(list) => numbered(list.len()),
            Self::Texts(list) => numbered(list.len()),
        }
    }
}

fn numbered(bounds_below: usize) -> Slot {
    narrow(i64::try_from(bounds_below).expect("bounds are bounded"))
}

fn all<T>(pieces: &[&str], read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    pieces.iter().map(|piece| read(piece)).collect()
}

/// The text of a piece in quotes, 1 to 256 bytes.
pub(super) fn unquoted(piece: &str) -> Option<Box<str>> {
    let inner = piece.strip_prefix('\'')?.strip_suffix('\'')?;
    let text = inner.replace("''", "'");
    Key::parse(&text).ok()?;
    Some(text.into())
}

/// What commas divide, outside of quotes, without the white space around it.
pub(super) fn pieces(text: &str) -> Result<Vec<&str>, String> {
    let mut pieces = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (at, character) in text.char_indices() {
        match character {
            '\'' => quoted = !quoted,
            ',' if !quoted => {
                pieces.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(text[start..].trim());
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    if pieces.iter().any(|piece| piece.is_empty()) {
        return Err("nothing stands between two commas".to_owned());
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(bounds: &str, key: &str) -> Option<u16> {
        let key = Key::parse(key).unwrap();
        Bounds::parse(bounds).unwrap().slot(key).map(Slot::number)
    }

    #[test]
    fn bounds_are_integers_dates_or_texts() {
        assert_eq!(slot("-5, 5", "4"), Some(1));
        assert_eq!(slot("2025-01-01, 2026-01-01", "2025-12-31"), Some(1));
        assert_eq!(slot("2025-01-01, 2026-01-01", "2026-01-01"), Some(2));
        assert_eq!(slot("'g', 'it''s, so'", "it's, so"), Some(2));
        assert_eq!(slot("'g', 'it''s'", "h"), Some(1));
        assert_eq!(slot("-5, 5", "x"), None);
        assert_eq!(slot("2025-01-01", "1"), None);
    }

    #[test]
    fn bounds_that_do_not_ascend_or_mix_are_none() {
        for bounds in ["5, 5", "5, 4", "'b', 'a'", "1, 'a'", "1, 2025-01-01", "", "1,", "'a", "''"]
        {
            assert!(Bounds::parse(bounds).is_err(), "{bounds}");
        }
    }

    #[test]
    fn as_many_bounds_as_there_are_slots_but_one() {
        let bounds = |count: usize| {
            let list: Vec<String> = (0..count).map(|bound| bound.to_string()).collect();
            Bounds::parse(&list.join(","))
        };
        let most = bounds(BOUNDS_MAX).unwrap();
        assert_eq!(most.last_slot().number(), crate::SLOTS - 1);
        assert!(bounds(BOUNDS_MAX + 1).unwrap_err().contains("1024"));
    }
}
