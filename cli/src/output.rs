//! Answers on standard output: tables for people, JSON for scripts.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use comfy_table::{ContentArrangement, Table, presets};

/// How answers look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For scripts: one document a command, or a line for each of a list.
    Json,
}

/// How answers are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// For people
    Table,
    /// For scripts: one document a command
    Json,
    /// For scripts: a line of JSON for each of a list; one line for everything else
    Jsonl,
}

/// Whether JSON is written in lines; set once, when the command is read.
static IN_LINES: AtomicBool = AtomicBool::new(false);
/// The lists that answers are about, by their names in the JSON.
const LISTS: [&str; 10] = [
    "transactions",
    "retried",
    "records",
    "services",
    "nodes",
    "checks",
    "versions",
    "groups",
    "statements",
    "callers",
];

impl Form {
    /// What commands do about it. From now on JSON is written as it says.
    pub(crate) fn taken(self) -> Output {
        IN_LINES.store(self == Self::Jsonl, Ordering::Relaxed);
        match self {
            Self::Table => Output::Table,
            Self::Json | Self::Jsonl => Output::Json,
        }
    }
}

/// Prints `text` and ends the line. A reader that went away (`| head`) is no fault of ours.
/// # Errors
/// Standard output cannot be written.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.trim_end().as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints a JSON document.
/// # Errors
/// Standard output cannot be written.
pub(crate) fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    if IN_LINES.load(Ordering::Relaxed) {
        let lines = lines(value);
        // An empty list has no lines, not an empty one.
        return if lines.is_empty() { Ok(()) } else { print(&lines.join("\n")) };
    }
    print(&serde_json::to_string_pretty(value)?)
}

/// A line for each of the list that `value` is about, or one for the whole.
fn lines(value: &serde_json::Value) -> Vec<String> {
    let named = LISTS.iter().find_map(|name| value.get(name)?.as_array());
    match value.as_array().or(named) {
        Some(list) => list.iter().map(ToString::to_string).collect(),
        None => vec![value.to_string()],
    }
}

/// A table without frame, so that it can be cut and pasted.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().map(|title| title.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    let last = head.len().saturating_sub(1);
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if n == last { 0 } else { 2 }));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// An instant, ms since the epoch, as RFC 3339 in UTC.
pub(crate) fn rfc3339(ms: u64) -> String {
    let (seconds, millis) = (ms / 1_000, ms % 1_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// ms since the epoch of an instant as [`rfc3339`] writes it, with or without the fraction, or of digits alone, which are ms already.
pub(crate) fn instant(text: &str) -> Option<u64> {
    if !text.is_empty() && text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok();
    }
    let bare = text.strip_suffix('Z')?;
    let (whole, fraction) = bare.split_once('.').unwrap_or((bare, "000"));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !(1..=9).contains(&fraction.len()) || !digits(fraction) {
        return None;
    }
    // The instant of a day is found by halving: what is written back must be what was given.
    let days = whole.get(..10)?;
    let (mut low, mut high) = (0_u64, 3_000_000_u64);
    while low < high {
        let middle = (low + high) / 2;
        if rfc3339(middle * 86_400_000).get(..10)? < days {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let part = |range: std::ops::Range<usize>| {
        whole.get(range).filter(|text| digits(text)).and_then(|text| text.parse::<u64>().ok())
    };
    let seconds = (part(11..13)? * 60 + part(14..16)?) * 60 + part(17..19)?;
    let millis: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let ms = low * 86_400_000 + seconds * 1_000 + millis;
    (rfc3339(ms).get(..19)? == whole).then_some(ms)
}

/// Year, month and day of the day `days` after 1970-01-01, in the Gregorian calendar.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    // Whole cycles of 400 years first, so that even the last instant takes few steps.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= if leap(year) { 366 } else { 365 } {
        days -= if leap(year) { 366 } else { 365 };
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_a_line_each_and_everything_else_one_line() {
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let listed =
            lines(&json(r#"{"node": 1, "services": [{"a": 1}, {"a": 2}], "callers": []}"#));
        assert_eq!(listed, [r#"{"a":1}"#, r#"{"a":2}"#]);
        assert_eq!(lines(&json("[1, 2]")), ["1", "2"]);
        assert!(lines(&json(r#"{"transactions": []}"#)).is_empty());
        let many = r#"{"went_on": 1, "failed": 1, "retried": [{"gid": "a"}, {"gid": "b"}]}"#;
        assert_eq!(lines(&json(many)), [r#"{"gid":"a"}"#, r#"{"gid":"b"}"#]);
        assert_eq!(
            lines(&json(r#"{"records": 7, "whole": true}"#)),
            [r#"{"records":7,"whole":true}"#]
        );
    }

    #[test]
    fn instants_are_told_in_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(rfc3339(1_795_392_000_000), "2026-11-23T00:00:00.000Z");
        assert_eq!(rfc3339(4_102_444_799_999), "2099-12-31T23:59:59.999Z");
        for text in
            ["1970-01-01T00:00:00.000Z", "2000-02-29T00:00:00.123Z", "2099-12-31T23:59:59.999Z"]
        {
            assert_eq!(instant(text).map(rfc3339).as_deref(), Some(text));
        }
        assert_eq!(instant("2000-02-29T00:00:00Z"), Some(951_782_400_000));
        for bad in ["", "2001-02-29T00:00:00Z", "2000-02-29", "2000-02-29T24:00:00Z", "x"] {
            assert_eq!(instant(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_table_has_no_trailing_blanks() {
        let shown = table(&["gid", "status"], [vec!["g-1".to_owned(), "committed".to_owned()]]);
        assert_eq!(shown, "GID  STATUS\ng-1  committed");
    }
}
