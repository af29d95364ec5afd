//! Instants as RFC 3339 text, UTC.

/// `ms` since the epoch as `2026-11-23T02:05:16.123Z`; nothing for 0, which means never.
pub(super) fn rfc3339(ms: u64) -> Option<String> {
    if ms == 0 {
        return None;
    }
    let (seconds, millis) = (ms / 1000, ms % 1000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"))
}

/// The date `days` after 1970-01-01. Whole cycles of 400 years, then of 100, 4 and 1, counted from 1 March of the year 0, so that
/// the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    const FROM_YEAR_0: u64 = 719_468;
    let (cycles, rest) = ((days + FROM_YEAR_0) / 146_097, (days + FROM_YEAR_0) % 146_097);
    let centuries = (rest / 36_524).min(3);
    let rest = rest - centuries * 36_524;
    let fours = rest / 1_461;
    let rest = rest - fours * 1_461;
    let years = (rest / 365).min(3);
    let mut day = rest - years * 365;
    let mut year = cycles * 400 + centuries * 100 + fours * 4 + years;
    const FROM_MARCH: [u64; 12] = [31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 29];
    let mut month = 3;
    for length in FROM_MARCH {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    if month > 12 {
        month -= 12;
        year += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_told_as_the_calendar_has_them() {
        for (seconds, text) in [
            (1, "1970-01-01T00:00:01.000Z"),
            (68_169_600, "1972-02-29T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (978_307_199, "2000-12-31T23:59:59.000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (1_795_399_516, "2026-11-23T02:05:16.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(seconds * 1000).as_deref(), Some(text));
        }
        assert_eq!(rfc3339(0), None);
        assert_eq!(rfc3339(1_795_399_516_007).as_deref(), Some("2026-11-23T02:05:16.007Z"));
        // The end of time is far away, and still a text.
        assert!(rfc3339(u64::MAX).is_some());
    }
}
