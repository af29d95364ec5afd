//! `date(day)`, `date(week)`, `date(month)`, `date(year)`: the number of the period that holds the day, counted from that of 1970-01-01,
//! modulo 1,024.

use super::narrow;
use crate::{Key, Slot, calendar::Date};

/// How long one bucket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// A day.
    Day,
    /// A week; it begins on a Monday.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

pub(super) const DOMAIN: &str = "a date written YYYY-MM-DD, of the years 0001 to 9999";

/// Of `date(month)`.
pub(super) const TEST_VECTORS: &[(&str, u16)] = &[
    ("1970-01-01", 0),
    ("1970-02-28", 1),
    ("1969-12-31", 1023),
    ("2026-11-28", 682),
    ("2055-05-01", 0),
    ("0001-01-01", 948),
    ("9999-12-31", 103),
];

impl Period {
    pub(super) const ALL: [Self; 4] = [Self::Day, Self::Week, Self::Month, Self::Year];

    /// Its name in the rules.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|period| period.name() == name)
    }

    /// The number of the period that holds a day; that of 1970-01-01 is 0.
    fn number(self, date: Date) -> i64 {
        match self {
            Self::Day => date.days(),
            // 1970-01-01 was a Thursday.
            Self::Week => (date.days() + 3).div_euclid(7),
            Self::Month => (date.year - 1970) * 12 + date.month - 1,
            Self::Year => date.year - 1970,
        }
    }

    pub(super) fn slot(self, key: Key<'_>) -> Option<Slot> {
        Some(narrow(self.number(Date::parse(key.as_str())?)))
    }

    /// The periods from the one of `low` to the one of `high`, days since 1970-01-01.
    pub(super) fn numbers_between(self, low: i64, high: i64) -> Option<(i64, i64)> {
        Some((self.number(Date::of_days(low)?), self.number(Date::of_days(high)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_week_begins_on_a_monday() {
        let slot = |text| Period::Week.slot(Key::parse(text).unwrap()).unwrap().number();
        assert_eq!((slot("1970-01-01"), slot("1970-01-04"), slot("1970-01-05")), (0, 0, 1));
        assert_eq!((slot("1969-12-29"), slot("1969-12-28")), (0, 1023));
    }
}
