//! A goal: what was measured, what it should be, and whether it is.

use serde_json::{Value, json};

use super::figures::{rounded, shown};
use crate::output;

/// The bound of a goal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// So much or more.
    AtLeast(f64),
    /// So much or less.
    AtMost(f64),
    /// So much, but for a transaction that was under way when the meters were read.
    About(f64),
}

/// One goal and its measure; `None` where a cell was left out.
#[derive(Clone, Debug)]
pub(crate) struct Goal {
    name: String,
    measured: Option<f64>,
    bound: Bound,
}

/// Of a goal that asks for a number, by which the measured one may differ.
const ABOUT: f64 = 0.05;

impl Goal {
    /// What is measured, and the bound.
    pub(crate) fn new(name: impl Into<String>, measured: Option<f64>, bound: Bound) -> Self {
        Self { name: name.into(), measured, bound }
    }

    fn met(&self) -> Option<bool> {
        let measured = self.measured?;
        Some(match self.bound {
            Bound::AtLeast(least) => measured >= least,
            Bound::AtMost(most) => measured <= most,
            Bound::About(wanted) => (measured - wanted).abs() <= ABOUT,
        })
    }

    fn wanted(&self) -> String {
        match self.bound {
            Bound::AtLeast(least) => format!(">= {least}"),
            Bound::AtMost(most) => format!("<= {most}"),
            Bound::About(wanted) => format!("= {wanted}"),
        }
    }
}

/// For scripts.
pub(crate) fn to_json(goals: &[Goal]) -> Value {
    let goal = |goal: &Goal| {
        json!({
            "name": goal.name,
            "measured": goal.measured.map(rounded),
            "goal": goal.wanted(),
            "met": goal.met(),
        })
    };
    goals.iter().map(goal).collect()
}

/// For people.
pub(crate) fn to_text(goals: &[Goal]) -> String {
    let row = |goal: &Goal| {
        let met = match goal.met() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "not measured",
        };
        let measured = goal.measured.map_or_else(|| "-".to_owned(), shown);
        vec![goal.name.clone(), measured, goal.wanted(), met.to_owned()]
    };
    output::table(&["goal", "measured", "wanted", "met"], goals.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_without_a_measure_is_neither_met_nor_missed() {
        assert_eq!(Goal::new("a", None, Bound::AtLeast(1.0)).met(), None);
        assert_eq!(Goal::new("a", Some(1.0), Bound::AtLeast(1.0)).met(), Some(true));
        assert_eq!(Goal::new("a", Some(1.1), Bound::AtMost(1.0)).met(), Some(false));
        assert_eq!(Goal::new("a", Some(1.96), Bound::About(2.0)).met(), Some(true));
        assert_eq!(Goal::new("a", Some(2.2), Bound::About(2.0)).met(), Some(false));
    }
}
