//! Days and dates of the proleptic Gregorian calendar, as PostgreSQL counts them.

/// Years that a date may have as a key: those that are written with four digits.
const YEARS: std::ops::RangeInclusive<i64> = 1..=9999;

/// A day with its year and month, from 0001-01-01 to 9999-12-31.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Date {
    pub(crate) year: i64,
    pub(crate) month: i64,
    pub(crate) day: i64,
}

impl Date {
    /// Reads `YYYY-MM-DD`, which means the same under every DateStyle; nothing else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let shaped = bytes.len() == 10
            && bytes.iter().enumerate().all(|(at, byte)| match at {
                4 | 7 => *byte == b'-',
                _ => byte.is_ascii_digit(),
            });
        if !shaped {
            return None;
        }
        let number = |from: usize, to: usize| text[from..to].parse::<i64>().ok();
        let date = Self { year: number(0, 4)?, month: number(5, 7)?, day: number(8, 10)? };
        // A day that is not there, such as 2026-02-30, would be another one when it is counted and told again.
        (YEARS.contains(&date.year) && Self::of_days(date.days()) == Some(date)).then_some(date)
    }

    /// The date so many days after 1970-01-01, if its year has four digits.
    pub(crate) fn of_days(days: i64) -> Option<Self> {
        let shifted = days.checked_add(719_468)?;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let day = day_of_year - (153 * from_march + 2) / 5 + 1;
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        YEARS.contains(&year).then_some(Self { year, month, day })
    }

    /// Days since 1970-01-01.
    pub(crate) fn days(self) -> i64 {
        days_since_1970(self.year, self.month, self.day)
    }
}

impl std::fmt::Display for Date {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// Days from 1970-01-01 to the day of this year, month and day.
pub(crate) fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_is_counted_and_told_again() {
        let (first, last) = (Date::parse("0001-01-01"), Date::parse("9999-12-31"));
        let (first, last) = (first.unwrap().days(), last.unwrap().days());
        assert_eq!((first, last), (-719_162, 2_932_896));
        for days in first..=last {
            let date = Date::of_days(days).unwrap();
            assert_eq!(date.days(), days);
        }
        assert_eq!((Date::of_days(first - 1), Date::of_days(last + 1)), (None, None));
        assert_eq!(Date::parse("1970-01-01").unwrap().days(), 0);
    }

    #[test]
    fn a_day_that_is_not_there_is_no_date() {
        for text in ["2026-02-29", "2026-13-01", "2026-00-01", "2026-01-00", "0000-01-01"] {
            assert_eq!(Date::parse(text), None, "{text}");
        }
        for text in ["2026-1-01", "28.11.2026", "2026-11-28 ", "infinity", "2026/11/28", ""] {
            assert_eq!(Date::parse(text), None, "{text}");
        }
        assert!(Date::parse("2028-02-29").is_some());
    }
}
