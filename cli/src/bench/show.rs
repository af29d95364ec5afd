//! The result of a bench: a table for people or one JSON document, and notes while it runs.

use std::io::Write;

use serde_json::{Value, json};

use super::{
    figures::Cells,
    goal::{self, Goal},
};
use crate::output;

/// All that is told at the end.
pub(crate) struct Told<'a> {
    /// Where and how.
    pub(crate) setup: Value,
    /// What was measured, bars included.
    pub(crate) cells: &'a Cells,
    /// Sides that are bars.
    pub(crate) bars: &'a [&'a str],
    /// Figures that people are shown.
    pub(crate) columns: &'a [&'a str],
    /// In the order to be told.
    pub(crate) goals: &'a [Goal],
}

impl Told<'_> {
    /// On standard output.
    pub(crate) fn show(self, json: bool) -> anyhow::Result<()> {
        if !json {
            let head: Vec<&str> = ["side", "clients"].iter().chain(self.columns).copied().collect();
            let cells = output::table(&head, self.cells.rows(self.columns));
            return output::print(&format!("\n{cells}\n\n{}", goal::to_text(self.goals)));
        }
        let Value::Array(cells) = self.cells.to_json() else { unreachable!("cells are a list") };
        let is_bar =
            |cell: &Value| cell["side"].as_str().is_some_and(|side| self.bars.contains(&side));
        let (bars, cells): (Vec<Value>, Vec<Value>) = cells.into_iter().partition(is_bar);
        let bars: serde_json::Map<String, Value> = self
            .bars
            .iter()
            .map(|side| {
                let own = bars.iter().filter(|cell| cell["side"] == **side).cloned().collect();
                ((*side).to_owned(), Value::Array(own))
            })
            .collect();
        output::print_json(&json!({
            "setup": self.setup,
            "cells": cells,
            "bars": bars,
            "goals": goal::to_json(self.goals),
        }))
    }
}

/// A word on the way, on standard error, so that the result stands alone on standard output.
pub(crate) fn note(words: &str) {
    // Without a reader there is nobody to tell.
    let _ = std::io::stderr().lock().write_all(words.as_bytes());
}
