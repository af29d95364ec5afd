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

/// ms since the epoch of `2026-11-23T02:05:16.123Z`, with or without the fraction, or of digits alone, which are ms already.
/// `None`: it is neither, or before the epoch.
pub(super) fn parse(text: &str) -> Option<u64> {
    if !text.is_empty() && text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok();
    }
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let numbers = |text: &str, separator, lengths: [usize; 3]| {
        let parts: Vec<&str> = text.split(separator).collect();
        let sound = parts.len() == 3
            && parts.iter().zip(lengths).all(|(part, length)| part.len() == length)
            && parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        let read = |at: usize| parts[at].parse::<u64>().ok();
        if sound { Some((read(0)?, read(1)?, read(2)?)) } else { None }
    };
    let (year, month, day) = numbers(date, '-', [4, 2, 2])?;
    let (hour, minute, second) = numbers(time, ':', [2, 2, 2])?;
    if !(1970..=9999).contains(&year) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    if fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let millis: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let days = days(year, month, day)?;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000 + millis)
}

/// Days from 1970-01-01 to a date. `None`: there is no such date.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    // The first guess is never above it, and at most a few days below.
    let guess = (year - 1970) * 365 + month.saturating_sub(1) * 28;
    let leap_days = (year - 1969) / 4 + 40;
    (guess..=guess + leap_days + 31).find(|days| civil(*days) == (year, month, day))
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
        for text in [
            "1970-01-01T00:00:00.000Z",
            "2000-02-29T23:59:59.999Z",
            "2026-11-23T02:05:16.123Z",
            "9999-12-31T23:59:59.000Z",
        ] {
            let ms = parse(text).expect(text);
            assert_eq!(rfc3339(ms.max(1)).map(|_| ms), Some(ms));
            assert!(ms == 0 || rfc3339(ms).as_deref() == Some(text), "{text}");
        }
        assert_eq!(parse("2026-11-23T02:05:16Z"), Some(1_795_399_516_000));
        assert_eq!(parse("1795399516007"), Some(1_795_399_516_007));
        for bad in [
            "",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-23",
            "2026-11-23T24:00:00Z",
            "1969-12-31T00:00:00Z",
            "2026-11-23T02:05:16+01:00",
            "2026-11-23T02:05:16.Z",
            "1234567890123456",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        // The end of time is far away, and still a text.
        assert!(rfc3339(u64::MAX).is_some());
    }
}
