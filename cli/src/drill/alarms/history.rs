//! What the metrics of all targets were, for as long as a rule looks back.

use std::collections::{BTreeMap, VecDeque};

/// How long values are kept, ms: the longest window of a shipped rule, and a little.
const KEPT_MS: u64 = 660_000;
/// Series that are kept; what comes beyond is left out.
const SERIES_MAX: usize = 20_000;

/// The labels of a series, with `instance`, whose it is.
pub(super) type Labels = BTreeMap<String, String>;

/// Values over time.
#[derive(Debug)]
pub(super) struct History {
    families: Vec<String>,
    /// Seconds since the epoch when its time began.
    began_s: f64,
    series: BTreeMap<(String, Labels), Series>,
}

#[derive(Debug)]
pub(super) struct Series {
    /// Time, ms, and value; the newest last.
    values: VecDeque<(u64, f64)>,
    /// It was there at the last look.
    there: bool,
}

impl Series {
    /// The value of now.
    pub(super) fn latest(&self) -> Option<f64> {
        self.values.back().filter(|_| self.there).map(|(_, value)| *value)
    }

    /// How much a counter has grown in the last `within_ms`, and in how many seconds; a counter that fell began anew. `None` with
    /// fewer than two values, of which nothing can be said.
    pub(super) fn growth(&self, now_ms: u64, within_ms: u64) -> Option<(f64, f64)> {
        let from_ms = now_ms.saturating_sub(within_ms);
        let mut within = self.values.iter().filter(|(at_ms, _)| *at_ms >= from_ms);
        let &(first_ms, mut before) = within.next()?;
        let (mut grown, mut last_ms) = (0.0, first_ms);
        for &(at_ms, value) in within {
            grown += if value < before { value } else { value - before };
            (before, last_ms) = (value, at_ms);
        }
        (last_ms > first_ms).then(|| (grown, (last_ms - first_ms) as f64 / 1_000.0))
    }
}

impl History {
    /// Keeps these metrics and no others.
    pub(super) fn of(families: Vec<String>, began_s: f64) -> Self {
        Self { families, began_s, series: BTreeMap::new() }
    }

    /// Seconds since the epoch at `now_ms` of its own time.
    pub(super) fn epoch_s(&self, now_ms: u64) -> f64 {
        self.began_s + now_ms as f64 / 1_000.0
    }

    /// Takes what `instance` said at `now_ms`, in the text format of Prometheus. What it says no more is no more.
    pub(super) fn take(&mut self, instance: &str, now_ms: u64, text: &str) {
        let own = |labels: &Labels| labels.get("instance").is_some_and(|is| is == instance);
        for ((_, labels), series) in &mut self.series {
            series.there &= !own(labels);
        }
        for line in text.lines() {
            let Some((name, mut labels, value)) = sample(line) else { continue };
            if !self.families.contains(&name) {
                continue;
            }
            labels.insert("instance".to_owned(), instance.to_owned());
            let key = (name, labels);
            if self.series.len() >= SERIES_MAX && !self.series.contains_key(&key) {
                continue;
            }
            let none = || Series { values: VecDeque::new(), there: false };
            let series = self.series.entry(key).or_insert_with(none);
            series.values.push_back((now_ms, value));
            series.there = true;
            let kept_from = now_ms.saturating_sub(KEPT_MS);
            while series.values.front().is_some_and(|(at_ms, _)| *at_ms < kept_from) {
                series.values.pop_front();
            }
        }
    }

    /// Every series of that name.
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = (&Labels, &Series)> {
        let named = self.series.iter().filter(move |((known, _), _)| known == name);
        named.map(|((_, labels), series)| (labels, series))
    }
}

/// A line `name{label="value"} 1.5`; `None` for a comment, and for what is none.
fn sample(line: &str) -> Option<(String, Labels, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let (head, value) = line.trim_end().rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = head.split_once('{') else {
        return Some((head.trim().to_owned(), Labels::new(), value));
    };
    let mut rest = rest.strip_suffix('}')?;
    let mut labels = Labels::new();
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"")?;
        let (text, length) = unquoted(quoted)?;
        labels.insert(label.trim_start_matches(',').to_owned(), text);
        rest = &quoted[length..];
    }
    Some((name.to_owned(), labels, value))
}

/// The text up to its quote, and how long it is with that.
fn unquoted(text: &str) -> Option<(String, usize)> {
    let (mut said, mut escaped) = (String::new(), false);
    for (at, letter) in text.char_indices() {
        match letter {
            'n' if escaped => said.push('\n'),
            _ if escaped => said.push(letter),
            '\\' => {}
            '"' => return Some((said, at + 1)),
            _ => said.push(letter),
        }
        escaped = !escaped && letter == '\\';
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(history: &History, name: &str) -> (Option<f64>, Option<(f64, f64)>) {
        let (_, series) = history.named(name).next().unwrap();
        (series.latest(), series.growth(10_000, 5_000))
    }

    #[test]
    fn a_line_has_a_name_labels_and_a_value() {
        let (name, labels, value) = sample(r#"a_total{x="1, }\"\\",y=""} 2.5"#).unwrap();
        assert_eq!((name.as_str(), value), ("a_total", 2.5));
        assert_eq!((labels["x"].as_str(), labels["y"].as_str()), (r#"1, }"\"#, ""));
        assert_eq!(sample("up 1").unwrap().1.len(), 0);
        for line in ["# TYPE a counter", "", "a{", "a{x=1} 2", "a b", "a{x=\"1} 2"] {
            assert!(sample(line).is_none(), "{line}");
        }
    }

    #[test]
    fn a_counter_that_fell_began_anew_and_what_is_outside_the_window_does_not_count() {
        let mut history = History::of(vec!["a".to_owned()], 0.0);
        for (at, value) in [(1_000, 100), (6_000, 103), (7_000, 105), (8_000, 1), (10_000, 2)] {
            history.take("one", at, &format!("a {value}\nb 1\n"));
        }
        assert_eq!(only(&history, "a"), (Some(2.0), Some((4.0, 4.0))));
        assert_eq!(history.named("b").count(), 0);
    }

    #[test]
    fn who_does_not_answer_has_no_value_of_now_and_its_past_remains() {
        let mut history = History::of(vec!["a".to_owned()], 0.0);
        history.take("one", 8_000, "a 1\n");
        history.take("one", 9_000, "a 4\n");
        history.take("one", 10_000, "");
        assert_eq!(only(&history, "a"), (None, Some((3.0, 1.0))));
    }

    #[test]
    fn neither_time_nor_series_grow_without_end() {
        let mut history = History::of(vec!["a".to_owned()], 0.0);
        history.take("one", 0, "a 1\n");
        history.take("one", KEPT_MS, "a 1\n");
        assert_eq!(history.named("a").next().unwrap().1.values.len(), 2);
        history.take("one", KEPT_MS + 1, "a 1\n");
        assert_eq!(history.named("a").next().unwrap().1.values.len(), 2);
        let many: String = (0..SERIES_MAX + 5).map(|at| format!("a{{x=\"{at}\"}} 1\n")).collect();
        history.take("two", KEPT_MS + 2, &many);
        assert_eq!(history.named("a").count(), SERIES_MAX);
    }
}
