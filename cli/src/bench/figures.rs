//! Figures by name, their medians over rounds, and the table of cells.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::load::Sample;

/// What one round measured of one cell.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

/// Who was measured with how many clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    /// For tables and JSON.
    pub(crate) side: &'static str,
    /// Requests under way at once.
    pub(crate) clients: u32,
}

/// All cells in the order of their first round.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    order: Vec<Cell>,
    rounds: BTreeMap<Cell, Vec<Figures>>,
}

/// The figures that every cell has.
pub(crate) fn of(sample: &Sample) -> Figures {
    Figures::from([
        ("per_s", sample.per_s),
        ("p50_us", sample.p50_us),
        ("p99_us", sample.p99_us),
        ("p999_us", sample.p999_us),
        ("p99_to_p50", sample.p99_us / sample.p50_us.max(1.0)),
        ("failed", sample.failed as f64),
    ])
}

impl Cells {
    /// Keeps what a round measured.
    pub(crate) fn add(&mut self, side: &'static str, clients: u32, figures: Figures) {
        let cell = Cell { side, clients };
        if !self.rounds.contains_key(&cell) {
            self.order.push(cell);
        }
        self.rounds.entry(cell).or_default().push(figures);
    }

    /// The median of a figure over the rounds; `None` where it was not measured.
    pub(crate) fn median(&self, side: &'static str, clients: u32, name: &str) -> Option<f64> {
        median(self.rounds.get(&Cell { side, clients })?, name)
    }

    /// The median over rounds of one figure divided by another of the same round, so that what slowed a whole round
    /// down cancels out.
    pub(crate) fn ratio(
        &self,
        (side, name): (&'static str, &str),
        (to_side, to_name): (&'static str, &str),
        clients: u32,
    ) -> Option<f64> {
        let ours = self.rounds.get(&Cell { side, clients })?;
        let theirs = self.rounds.get(&Cell { side: to_side, clients })?;
        let ratios = ours.iter().zip(theirs).filter_map(|(ours, theirs)| {
            Some(ours.get(name)? / theirs.get(to_name).filter(|value| **value > 0.0)?)
        });
        middle(ratios.collect())
    }

    /// A figure of all rounds together divided by that of another side: what comes once in many rounds counts for as much as it takes.
    pub(crate) fn together(
        &self,
        name: &str,
        (side, to_side): (&'static str, &'static str),
        clients: u32,
    ) -> Option<f64> {
        let sum = |side| {
            let rounds = self.rounds.get(&Cell { side, clients })?;
            rounds.iter().map(|round| round.get(name).copied()).sum::<Option<f64>>()
        };
        Some(sum(side)? / sum(to_side).filter(|sum| *sum > 0.0)?)
    }

    /// Every cell with the medians of its figures.
    pub(crate) fn to_json(&self) -> Value {
        let cells = self.order.iter().map(|cell| {
            let rounds = &self.rounds[cell];
            let mut object = Map::new();
            object.insert("side".to_owned(), json!(cell.side));
            object.insert("clients".to_owned(), json!(cell.clients));
            object.insert("rounds".to_owned(), json!(rounds.len()));
            let names = rounds.iter().flat_map(BTreeMap::keys);
            for name in names.collect::<std::collections::BTreeSet<_>>() {
                object.insert(
                    (*name).to_owned(),
                    json!(rounded(median(rounds, name).unwrap_or(0.0))),
                );
            }
            let per_s = rounds.iter().filter_map(|round| round.get("per_s"));
            let per_s: Vec<f64> = per_s.map(|value| rounded(*value)).collect();
            object.insert("per_s_by_round".to_owned(), json!(per_s));
            Value::Object(object)
        });
        cells.collect()
    }

    /// Rows for a table: side, clients, then these figures.
    pub(crate) fn rows(&self, names: &[&str]) -> Vec<Vec<String>> {
        let row = |cell: &Cell| {
            let figures = names
                .iter()
                .map(|name| median(&self.rounds[cell], name).map_or_else(|| "-".to_owned(), shown));
            [cell.side.to_owned(), cell.clients.to_string()].into_iter().chain(figures).collect()
        };
        self.order.iter().map(row).collect()
    }
}

/// As many digits as a person reads.
pub(crate) fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value == 0.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// To four digits behind the point.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// The place of the value below which this share of so many sorted ones lies. At least one.
pub(crate) fn place(count: usize, share: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index below the length"
    )]
    let place = (count.saturating_sub(1) as f64 * share).round() as usize;
    place
}

/// The value below which this share of them lies; 0 if there are none.
pub(crate) fn share(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(place(values.len(), share)).copied().unwrap_or_default()
}

fn median(rounds: &[Figures], name: &str) -> Option<f64> {
    middle(rounds.iter().filter_map(|round| round.get(name).copied()).collect())
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) =
        (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_rounds_and_ratios_of_the_same_round() {
        let mut cells = Cells::default();
        for (ours, theirs) in [(10.0, 5.0), (100.0, 25.0), (30.0, 10.0)] {
            cells.add("ours", 64, Figures::from([("per_s", ours)]));
            cells.add("theirs", 64, Figures::from([("per_s", theirs)]));
        }
        assert_eq!(cells.median("ours", 64, "per_s"), Some(30.0));
        assert_eq!(cells.ratio(("ours", "per_s"), ("theirs", "per_s"), 64), Some(3.0));
        assert_eq!(cells.together("per_s", ("ours", "theirs"), 64), Some(3.5));
        assert_eq!(cells.together("p50_us", ("ours", "theirs"), 64), None);
        assert_eq!(cells.median("ours", 1, "per_s"), None);
        assert_eq!(cells.ratio(("ours", "p50_us"), ("theirs", "per_s"), 64), None);
        assert_eq!(cells.to_json()[0]["per_s"], 30.0);
        assert_eq!(cells.rows(&["per_s"])[1], ["theirs", "64", "10.00"]);
    }
}
