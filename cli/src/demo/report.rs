//! What a run comes to: figures for a program, and the same as a table for people.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use holdfast_ledger::{Currency, decimal};
use serde::Serialize;

use super::dba::{Routed, Step};

/// The whole result of a run. Field names and order are a format that programs read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Report {
    pub(crate) coordinators: usize,
    pub(crate) shards: usize,
    pub(crate) transfers: Transfers,
    pub(crate) kills: Vec<Kill>,
    pub(crate) saga: Sagas,
    pub(crate) latency_ms: LatencyMs,
    /// Transfers answered, committed or refused, per second of load.
    pub(crate) tps: f64,
    pub(crate) money: Money,
    /// `null` where it could not be learnt, as in the two below.
    pub(crate) holds_left: Option<u64>,
    pub(crate) open_transactions_left: Option<u64>,
    pub(crate) prepared_left: Option<u64>,
    /// Counters are the fold of the journals, debits equal credits, and the journals say what the clients were told.
    pub(crate) journal_ok: bool,
    /// The same money by one statement through a router, and how a DBA came to it.
    pub(crate) router: Routed,
    pub(crate) verdict: Verdict,
    /// What is off, a sentence each; empty when the verdict is good.
    pub(crate) problems: Vec<String>,
    pub(crate) setup: Setup,
}

/// Transfers by how they ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Transfers {
    pub(crate) submitted: u64,
    pub(crate) committed: u64,
    /// Rolled back, nearly always since the payer had too little.
    pub(crate) refused: u64,
    /// Answered *unknown* at least once, and known in the end.
    pub(crate) unknown_resolved: u64,
    /// Committed, between two shards, by TCC.
    pub(crate) cross_shard: u64,
    /// Committed, within one shard, by a Saga of one action.
    pub(crate) one_shard: u64,
}

/// One loss in the middle of the run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Kill {
    pub(crate) what: &'static str,
    /// Seconds from the start of the load.
    pub(crate) at_s: f64,
    /// To the first commit of a transfer that was submitted after the kill; where one shard's bank process or
    /// PostgreSQL was killed, of a transfer that touches this shard. `null` if there was none.
    pub(crate) recovered_ms: Option<u64>,
    /// Which process it was.
    pub(crate) victim: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Sagas {
    pub(crate) committed: u64,
    pub(crate) compensated: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct LatencyMs {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// Sums over all accounts of all shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Money {
    pub(crate) opening_minor: i64,
    pub(crate) closing_minor: i64,
    pub(crate) conserved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Good,
    Bad,
}

/// How the run was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Setup {
    pub(crate) accounts: usize,
    pub(crate) clients: u32,
    /// Raft groups of the coordinators.
    pub(crate) groups: u32,
    pub(crate) seed: u64,
    /// The folder replayed, if any.
    pub(crate) replay: Option<String>,
    pub(crate) serial: bool,
    /// Seconds in which transfers ran.
    pub(crate) load_s: f64,
    /// Seconds from the start of the program to the report.
    pub(crate) whole_s: f64,
    #[serde(serialize_with = "code")]
    pub(crate) currency: Currency,
    pub(crate) version: &'static str,
}

impl Report {
    /// As JSON, for people to read too.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain figures and texts")
    }

    /// Writes the JSON to `path`, whose folder is made if missing.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("making {}", folder.display()))?;
        }
        std::fs::write(path, self.to_json() + "\n")
            .with_context(|| format!("writing {}", path.display()))
    }

    /// A table, the verdict, and what is off.
    pub(crate) fn to_text(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(["", "found", "expected"]);
        let mut row = |what: &str, found: String, expected: &str| {
            table.add_row([what, &found, expected]);
        };
        let transfers = &self.transfers;
        let known = transfers.committed + transfers.refused;
        row("transfers answered", grouped(known), &grouped(transfers.submitted));
        row("  committed across shards", grouped(transfers.cross_shard), "");
        row("  committed within a shard", grouped(transfers.one_shard), "");
        row("  refused, nothing moved", grouped(transfers.refused), "");
        row("  unknown for a while", grouped(transfers.unknown_resolved), "all known in the end");
        row("transfers a second", format!("{:.0}", self.tps), "");
        let LatencyMs { p50, p99, max } = self.latency_ms;
        row("answer after, ms", format!("{p50} / {p99} / {max}"), "p50 / p99 / slowest");
        for kill in &self.kills {
            let found = kill
                .recovered_ms
                .map_or("never".to_owned(), |ms| format!("after {} ms", grouped(ms)));
            row(&format!("killed {} at {:.1} s", kill.victim, kill.at_s), found, "next commit");
        }
        if self.setup.replay.is_none() {
            row("Sagas committed", self.saga.committed.to_string(), "");
            row("Sagas compensated", self.saga.compensated.to_string(), "");
        }
        let money = |minor| amount(minor, self.setup.currency);
        row(
            "money on all shards",
            money(self.money.closing_minor),
            &money(self.money.opening_minor),
        );
        row(
            "  in one statement, by the router",
            money(self.router.money_minor),
            &money(self.money.opening_minor),
        );
        let left = |count: Option<u64>| count.map_or("not known".to_owned(), grouped);
        row("holds left", left(self.holds_left), "0");
        row("open transactions left", left(self.open_transactions_left), "0");
        row("prepared transactions left", left(self.prepared_left), "0");
        row("journals agree", if self.journal_ok { "yes" } else { "no" }.to_owned(), "yes");
        for column in [1, 2] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }

        let mut text = format!("{table}\n\n");
        text.push_str("What a DBA typed meanwhile:\n");
        for Step { typed, said } in &self.router.steps {
            let _ = writeln!(text, "  {typed}");
            for line in said.lines() {
                let _ = writeln!(text, "{}", format!("    {line}").trim_end());
            }
        }
        text.push('\n');
        match self.verdict {
            Verdict::Good => {
                text.push_str("Verdict: good. Every acknowledged outcome is in the books, once.\n")
            }
            Verdict::Bad => {
                text.push_str("Verdict: BAD.\n");
                for problem in &self.problems {
                    let _ = writeln!(text, "  - {problem}");
                }
            }
        }
        text
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `-1234567` minor units of EUR as `-12,345.67 EUR`.
pub(crate) fn amount(minor: i64, currency: Currency) -> String {
    let text = decimal(minor, currency);
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
    let (whole, point, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, ".", fraction),
        None => (digits, "", ""),
    };
    let whole = grouped(whole.parse().expect("decimal digits of a 64-bit number"));
    format!("{sign}{whole}{point}{fraction} {currency}")
}

fn code<S: serde::Serializer>(currency: &Currency, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(currency.code())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A good run, with made-up figures.
    pub(crate) fn sample() -> Report {
        Report {
            coordinators: 3,
            shards: 4,
            transfers: Transfers {
                submitted: 10,
                committed: 8,
                refused: 2,
                unknown_resolved: 1,
                cross_shard: 6,
                one_shard: 2,
            },
            kills: vec![Kill {
                what: "leader",
                at_s: 10.0,
                recovered_ms: Some(640),
                victim: "coordinator 2".to_owned(),
            }],
            saga: Sagas { committed: 3, compensated: 2 },
            latency_ms: LatencyMs { p50: 12.5, p99: 40.0, max: 900.0 },
            tps: 4321.5,
            money: Money {
                opening_minor: 200_000_000,
                closing_minor: 200_000_000,
                conserved: true,
            },
            holds_left: Some(0),
            open_transactions_left: Some(0),
            prepared_left: Some(0),
            journal_ok: true,
            router: Routed {
                money_minor: 200_000_000,
                epoch: 3,
                steps: vec![Step {
                    typed: "holdfast rules show".to_owned(),
                    said: "a\nb".to_owned(),
                }],
            },
            verdict: Verdict::Good,
            problems: Vec::new(),
            setup: Setup {
                accounts: 2_000,
                clients: 64,
                groups: 1,
                seed: 7,
                replay: None,
                serial: false,
                load_s: 20.0,
                whole_s: 30.0,
                currency: Currency::parse("EUR").unwrap(),
                version: "0.1.0",
            },
        }
    }

    fn keys(value: &serde_json::Value) -> Vec<&str> {
        let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn the_report_has_the_fields_that_programs_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/on/the/way.json");
        sample().write(&path).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(
            keys(&json),
            [
                "coordinators",
                "holds_left",
                "journal_ok",
                "kills",
                "latency_ms",
                "money",
                "open_transactions_left",
                "prepared_left",
                "problems",
                "router",
                "saga",
                "setup",
                "shards",
                "tps",
                "transfers",
                "verdict"
            ]
        );
        assert_eq!(
            keys(&json["transfers"]),
            ["committed", "cross_shard", "one_shard", "refused", "submitted", "unknown_resolved"]
        );
        assert_eq!(keys(&json["kills"][0]), ["at_s", "recovered_ms", "victim", "what"]);
        assert_eq!(keys(&json["money"]), ["closing_minor", "conserved", "opening_minor"]);
        assert_eq!(keys(&json["latency_ms"]), ["max", "p50", "p99"]);
        assert_eq!(keys(&json["saga"]), ["committed", "compensated"]);
        assert_eq!(keys(&json["router"]), ["epoch", "money_minor", "steps"]);
        assert_eq!(keys(&json["router"]["steps"][0]), ["said", "typed"]);
        assert_eq!(json["verdict"], "good");
        assert_eq!(json["holds_left"], 0);
    }

    #[test]
    fn a_bad_run_says_what_is_off() {
        let mut report = sample();
        report.verdict = Verdict::Bad;
        report.problems = vec!["money is missing: 0.01 EUR".to_owned()];
        report.holds_left = None;
        let text = report.to_text();
        assert!(text.contains("Verdict: BAD"), "{text}");
        assert!(text.contains("money is missing: 0.01 EUR"), "{text}");
        assert!(text.contains("not known"), "{text}");
        assert!(sample().to_text().contains("Verdict: good"));
    }

    #[test]
    fn numbers_are_grouped_and_amounts_exact() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
        let eur = Currency::parse("EUR").unwrap();
        assert_eq!(amount(0, eur), "0.00 EUR");
        assert_eq!(amount(-1_234_567, eur), "-12,345.67 EUR");
        assert_eq!(amount(i64::MIN, eur), "-92,233,720,368,547,758.08 EUR");
        assert_eq!(amount(-1_234, Currency::parse("JPY").unwrap()), "-1,234 JPY");
    }
}
