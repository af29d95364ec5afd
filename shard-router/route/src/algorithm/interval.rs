//! The slots of all keys between two: what BETWEEN and inequalities leave, where a slot function keeps something of the keys' order.

use std::borrow::Cow;

use super::{Algorithm, Bounds, narrow};
use crate::{Key, KeyType, SLOTS, Slot, calendar::Date, limit::INTERVAL_KEYS_MAX, plan::SlotSet};

/// An interval of keys of one type. An end that is not there is open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interval {
    /// For integers, and dates as days since 1970-01-01: the first and the last key.
    numbers: (Option<i64>, Option<i64>),
    /// For texts: the least and the greatest, by their bytes.
    texts: (Option<Box<str>>, Option<Box<str>>),
    /// No key can be within.
    is_empty: bool,
}

/// What a bound leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// `key >= bound` or, without the bound itself, `key > bound`.
    From { inclusive: bool },
    /// `key <= bound` or `key < bound`.
    To { inclusive: bool },
}

impl Interval {
    /// Keys of `key_type` must also be on this side of `key`. What is not understood says nothing.
    pub(crate) fn narrow(&mut self, side: Side, key: &str, key_type: KeyType) {
        match key_type {
            KeyType::Integer => {
                if let Ok(number) = key.parse() {
                    self.narrow_number(side, number);
                }
            }
            KeyType::Date => {
                if let Some(date) = Date::parse(key) {
                    self.narrow_number(side, date.days());
                }
            }
            KeyType::Text | KeyType::Varchar => self.narrow_text(side, key),
            // Blanks at the end of a char(n) mean nothing, and a uuid has no neighbors of interest.
            KeyType::Char | KeyType::Uuid => {}
        }
    }

    fn narrow_number(&mut self, side: Side, number: i64) {
        let (low, high) = &mut self.numbers;
        let bound = match side {
            Side::From { inclusive: true } | Side::To { inclusive: true } => Some(number),
            Side::From { inclusive: false } => number.checked_add(1),
            Side::To { inclusive: false } => number.checked_sub(1),
        };
        match (bound, side) {
            (None, _) => self.is_empty = true,
            (Some(bound), Side::From { .. }) => {
                *low = Some(low.map_or(bound, |low| low.max(bound)));
            }
            (Some(bound), Side::To { .. }) => {
                *high = Some(high.map_or(bound, |high| high.min(bound)));
            }
        }
        self.is_empty |= matches!((*low, *high), (Some(low), Some(high)) if low > high);
    }

    /// The text next to a bound is not looked for: the bound itself stays within.
    fn narrow_text(&mut self, side: Side, key: &str) {
        let (low, high) = &mut self.texts;
        let (end, replaces): (_, fn(&str, &str) -> bool) = match side {
            Side::From { .. } => (&mut *low, |key, known| key > known),
            Side::To { .. } => (&mut *high, |key, known| key < known),
        };
        if end.as_deref().is_none_or(|known| replaces(key, known)) {
            *end = Some(key.into());
        }
        self.is_empty |=
            matches!((low.as_deref(), high.as_deref()), (Some(low), Some(high)) if low > high);
    }

    /// No key is within.
    pub(crate) fn none() -> Self {
        Self { is_empty: true, ..Self::default() }
    }
}

impl Algorithm {
    /// The slots of all keys of `key_type` in `interval`. All of them, where the function keeps no order and the interval is long or open.
    /// Texts count only if they sort by their bytes.
    pub(crate) fn slots_within(
        &self,
        interval: &Interval,
        key_type: KeyType,
        texts_sort_by_bytes: bool,
    ) -> SlotSet {
        if interval.is_empty {
            return SlotSet::EMPTY;
        }
        let (low, high) = interval.numbers;
        match (self, key_type) {
            (Self::Range(bounds), KeyType::Integer | KeyType::Date) => {
                let slot = |end: Option<i64>| end.and_then(|end| bounds.slot_of_number(end));
                between(slot(low), slot(high), bounds)
            }
            (Self::Range(bounds), KeyType::Text | KeyType::Varchar) if texts_sort_by_bytes => {
                let (low, high) = (interval.texts.0.as_deref(), interval.texts.1.as_deref());
                let slot = |end: Option<&str>| end.and_then(|end| bounds.slot_of_text(end));
                between(slot(low), slot(high), bounds)
            }
            (Self::Date(period), KeyType::Date) => match (low, high) {
                (Some(low), Some(high)) => period
                    .numbers_between(low, high)
                    .map_or(SlotSet::ALL, |(first, last)| of_numbers(first, last)),
                _ => SlotSet::ALL,
            },
            (_, KeyType::Integer | KeyType::Date) => match (low, high) {
                (Some(low), Some(high)) => self.one_by_one(low, high, key_type),
                _ => SlotSet::ALL,
            },
            (_, KeyType::Text | KeyType::Varchar | KeyType::Char | KeyType::Uuid) => SlotSet::ALL,
        }
    }

    /// The slot of each key from `low` to `high`, if these are not too many and all have one.
    fn one_by_one(&self, low: i64, high: i64, key_type: KeyType) -> SlotSet {
        let few = high
            .checked_sub(low)
            .is_some_and(|more| usize::try_from(more).is_ok_and(|more| more < INTERVAL_KEYS_MAX));
        if !few {
            return SlotSet::ALL;
        }
        let mut slots = SlotSet::EMPTY;
        for number in low..=high {
            let text: Option<Cow<'_, str>> = if key_type == KeyType::Date {
                Date::of_days(number).map(|date| date.to_string().into())
            } else {
                Some(number.to_string().into())
            };
            let slot = text.and_then(|text| self.slot(Key::parse(&text).ok()?).ok());
            match slot {
                Some(slot) => slots.insert(slot),
                // Where a row with such a key would lie, if there is one, nobody knows.
                None => return SlotSet::ALL,
            }
        }
        slots
    }
}

/// Neighboring slots of a range; where an end is not known, to the first or the last.
fn between(low: Option<Slot>, high: Option<Slot>, bounds: &Bounds) -> SlotSet {
    let first = low.map_or(0, Slot::number);
    let last = high.unwrap_or(bounds.last_slot()).number();
    of_numbers(i64::from(first), i64::from(last))
}

fn of_numbers(first: i64, last: i64) -> SlotSet {
    if last - first >= i64::from(SLOTS) - 1 {
        return SlotSet::ALL;
    }
    let mut slots = SlotSet::EMPTY;
    for number in first..=last {
        slots.insert(narrow(number));
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Side = Side::From { inclusive: true };
    const ABOVE: Side = Side::From { inclusive: false };
    const TO: Side = Side::To { inclusive: true };
    const BELOW: Side = Side::To { inclusive: false };

    fn slots(function: &str, key_type: KeyType, ends: &[(Side, &str)]) -> SlotSet {
        let mut interval = Interval::default();
        for (side, key) in ends {
            interval.narrow(*side, key, key_type);
        }
        Algorithm::named(function).unwrap().slots_within(&interval, key_type, true)
    }

    fn numbers(set: &SlotSet) -> Vec<u16> {
        set.slots().map(Slot::number).collect()
    }

    #[test]
    fn a_range_of_integers_narrows_from_one_end_too() {
        let of = |ends: &[_]| numbers(&slots("range(0, 1000, 50000)", KeyType::Integer, ends));
        assert_eq!(of(&[(FROM, "1000")]), [2, 3]);
        assert_eq!(of(&[(BELOW, "1000")]), [0, 1]);
        assert_eq!(of(&[(TO, "1000")]), [0, 1, 2]);
        assert_eq!(of(&[(ABOVE, "49999"), (BELOW, "60000")]), [3]);
        assert_eq!(of(&[(ABOVE, "7"), (BELOW, "8")]), [0_u16; 0]);
        assert_eq!(of(&[(ABOVE, "9223372036854775807")]), [0_u16; 0]);
    }

    #[test]
    fn a_range_of_texts_keeps_the_bound_itself() {
        let of = |ends: &[_]| numbers(&slots("range('g', 'n')", KeyType::Text, ends));
        assert_eq!(of(&[(BELOW, "g")]), [0, 1]);
        assert_eq!(of(&[(FROM, "h"), (TO, "k")]), [1]);
        assert_eq!(of(&[(FROM, "k"), (TO, "h")]), [0_u16; 0]);
        let mut interval = Interval::default();
        interval.narrow(FROM, "h", KeyType::Text);
        let range = Algorithm::named("range('g', 'n')").unwrap();
        assert!(range.slots_within(&interval, KeyType::Text, false).slots().count() >= 3);
        assert!(!range.slots_within(&interval, KeyType::Text, true).is_all());
    }

    #[test]
    fn date_buckets_narrow_between_two_days() {
        let of = |ends: &[_]| numbers(&slots("date(month)", KeyType::Date, ends));
        assert_eq!(of(&[(FROM, "2026-01-15"), (TO, "2026-03-01")]), [672, 673, 674]);
        // Around the end of a turn of 1,024 buckets.
        assert_eq!(of(&[(FROM, "2055-04-30"), (BELOW, "2055-05-02")]), [0, 1023]);
        assert_eq!(of(&[(FROM, "2026-01-15")]).len(), 1024);
        let of = |ends: &[_]| numbers(&slots("date(day)", KeyType::Date, ends));
        assert_eq!(of(&[(FROM, "2020-01-01"), (TO, "2022-10-19")]).len(), 1023);
        assert_eq!(of(&[(FROM, "2020-01-01"), (TO, "2022-10-20")]).len(), 1024);
    }

    #[test]
    fn functions_without_order_tell_the_slots_of_a_short_interval_one_by_one() {
        let of = |function, ends: &[_]| slots(function, KeyType::Integer, ends);
        assert_eq!(numbers(&of("mod", &[(FROM, "1022"), (TO, "1025")])), [0, 1, 1022, 1023]);
        assert_eq!(numbers(&of("pg_hash_int8", &[(FROM, "0"), (TO, "1")])), [432, 952]);
        let last = INTERVAL_KEYS_MAX.to_string();
        assert!(!of("crc32c", &[(FROM, "1"), (TO, &last)]).is_all());
        assert!(of("crc32c", &[(FROM, "0"), (TO, &last)]).is_all());
        // A key without a slot may lie anywhere.
        assert!(of("mod", &[(FROM, "-1"), (TO, "1")]).is_all());
        let whole = [(FROM, "-9223372036854775808"), (TO, "9223372036854775807")];
        assert!(of("mod", &whole).is_all());
    }

    #[test]
    fn nothing_is_known_of_texts_in_hashes() {
        let ends = [(FROM, "a"), (TO, "b")];
        assert!(slots("crc32c", KeyType::Text, &ends).is_all());
        assert!(slots("crc32c", KeyType::Uuid, &ends).is_all());
        assert!(!slots("crc32c", KeyType::Text, &[(FROM, "b"), (TO, "a")]).is_all());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None,
            ..proptest::prelude::ProptestConfig::default()
        })]

        /// The promise itself: no row that can match lies in a slot that is left out.
        #[test]
        fn the_slot_of_every_key_within_is_among_them(
            low in -3_000_i64..60_000,
            length in 0_i64..3_000,
            within in 0_i64..3_000,
            which in 0_usize..9,
        ) {
            let (high, number) = (low + length, low + within.min(length));
            let functions = [
                "mod", "crc32c", "pg_hash_int8", "range(-2000, 0, 7, 1000, 50000)",
                "date(day)", "date(week)", "date(month)", "date(year)",
                "range(1969-12-31, 2000-02-29, 2100-01-01)",
            ];
            let key_type = if which < 4 { KeyType::Integer } else { KeyType::Date };
            let text = |number: i64| {
                let date = Date::of_days(number).unwrap();
                if key_type == KeyType::Date { date.to_string() } else { number.to_string() }
            };
            let (low, high) = (text(low), text(high));
            let left = slots(functions[which], key_type, &[(FROM, &low), (TO, &high)]);
            let key = text(number);
            let function = Algorithm::named(functions[which]).unwrap();
            if let Ok(slot) = function.slot(Key::parse(&key).unwrap()) {
                proptest::prop_assert!(left.slots().any(|known| known == slot), "{key}");
            } else {
                proptest::prop_assert!(left.is_all(), "{key} has no slot");
            }
        }
    }
}
