//! `holdfast bench history`: fills a history with finished transactions, asks for first pages of it, and tells what it costs the work.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use holdfast_client::wire::{Attempt, Branch, HistoryRecord, Transaction};
use holdfast_history::{Amount, AmountRange, Archive, Query, Retention, SledShelf};
use holdfast_proto::Pairs;
use serde_json::{Value, json};

use super::{
    goal::{self, Bound, Goal},
    history_beside::{self, Beside},
    load::Shape,
    machine::Machine,
    meters,
    show::note,
};
use crate::{demo::scratch::Scratch, output};

/// Measures searches in a history of millions of finished transactions, and what keeping one costs
#[derive(Debug, clap::Args)]
pub(crate) struct HistoryArgs {
    /// Finished transactions to fill it with
    #[arg(long, visible_alias = "transactions", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    count: u64,
    /// Searches of each kind
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    searches: u32,
    /// Rounds in which a cluster with a history and one without are loaded in turns; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(0..=99))]
    rounds: u32,
    /// Seconds that count in one turn of one round
    #[arg(long, value_name = "N", default_value_t = 0.7)]
    seconds: f64,
    /// Clients in a turn
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=2_048))]
    clients: u32,
    /// One JSON document instead of a table
    #[arg(long)]
    pub(super) json: bool,
    /// Where to put it; removed afterwards
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// Records handed over at once, as the node's writer does.
const TOGETHER: u64 = 4_096;
/// Transactions in a second, by their own time.
const PER_SECOND: u64 = 2_000;
/// When the first one finished.
const FROM_MS: u64 = 1_790_000_000_000;
/// The first page.
const PAGE: usize = 100;
/// The longest that a first page may take, ms.
const PAGE_MS_MAX: f64 = 50.0;
/// Bytes in memory a transaction, filters and caches together, of a large history.
const MEMORY_BYTES_MAX: f64 = 64.0;

/// The `n`-th transaction: a transfer over two shards in one of 5,000 runs, one in 100 rolled back.
fn record(n: u64) -> HistoryRecord {
    let at_ms = FROM_MS + n * 1_000 / PER_SECOND;
    let branch = |number: u32, shard: u64| Branch {
        branch: number,
        participant: format!("deposit@shard-{}", shard % 16),
        state: "confirmed".to_owned(),
        ..Default::default()
    };
    let attempt = |branch, op| Attempt {
        branch,
        op,
        attempt: 1,
        at_ms: at_ms - 9,
        took_ms: 3,
        outcome: "done".to_owned(),
        instance: format!("deposit-{branch}"),
    };
    let tags = [
        ("run", format!("payroll-{}", n / 2_000 % 5_000)),
        ("order", format!("o-{n}")),
        ("amount", format!("{}.{:02} EUR", n.wrapping_mul(7_919) % 100_000, n % 100)),
    ];
    let transaction = Transaction {
        gid: format!("01K{n:023}"),
        mode: 1,
        status: if n.is_multiple_of(100) { 8 } else { 7 },
        branches: vec![branch(1, n), branch(2, n / 16 + 5)],
        begun_at_ms: at_ms - 10,
        deadline_ms: at_ms + 30_000,
        decided_at_ms: at_ms - 5,
        finished_at_ms: at_ms,
        tags: Pairs::from_iter(tags).into(),
        ..Default::default()
    };
    HistoryRecord {
        transaction: Some(transaction),
        attempts: vec![attempt(1, 1), attempt(2, 1), attempt(1, 2), attempt(2, 2)],
        attempts_left_out: 0,
        attempts_node: 1,
    }
}

/// A kind of search, made for the `n`-th time.
type Kind = (&'static str, fn(u64, u64) -> Query);

/// A place in the history, drawn evenly and alike in each run.
fn drawn(n: u64, count: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % count
}

fn page() -> Query {
    Query { limit: PAGE, ..Query::default() }
}

const KINDS: [Kind; 7] = [
    ("tag, 2,000 of them", |n, count| {
        let run = drawn(n, count) / 2_000 % 5_000;
        Query { tags: vec![("run".into(), format!("payroll-{run}"))], ..page() }
    }),
    ("tag, one of them", |n, count| Query {
        tags: vec![("order".into(), format!("o-{}", drawn(n, count)))],
        ..page()
    }),
    ("tag, none of them", |n, _| Query {
        tags: vec![("order".into(), format!("none-{n}"))],
        ..page()
    }),
    ("time", |n, count| {
        let from_ms = FROM_MS + drawn(n, count) * 1_000 / PER_SECOND;
        Query { from_ms, until_ms: from_ms + 60_000, ..page() }
    }),
    ("tag and time", |n, count| {
        let at = drawn(n, count);
        let from_ms = FROM_MS + at * 1_000 / PER_SECOND;
        let tags = vec![("run".into(), format!("payroll-{}", at / 2_000 % 5_000))];
        Query { from_ms, until_ms: from_ms + 600_000, tags, ..page() }
    }),
    ("participant and status", |n, _| Query {
        participant: Some(format!("deposit@shard-{}", n % 16)),
        statuses: vec![8],
        ..page()
    }),
    ("amount", |n, _| {
        let amount = |units| Amount::parse(&format!("{units} EUR")).expect("a number and a code");
        let least = drawn(n, 90_000);
        Query { amount: AmountRange::new(amount(least), amount(least + 5)), ..page() }
    }),
];

/// Fills, searches and tells.
/// # Errors
/// The disk failed.
pub(crate) async fn run(args: HistoryArgs) -> anyhow::Result<()> {
    ensure!((0.05..=60.0).contains(&args.seconds), "--seconds is from 0.05 to 60");
    let measured = Duration::from_secs_f64(args.seconds);
    let shape = Shape { clients: args.clients, warm_up: measured / 5, measured };
    let beside = match args.rounds {
        0 => Beside::default(),
        // First, while the machine's memory is not full of files yet.
        rounds => {
            Scratch::during(false, async |folder| {
                history_beside::measure(folder, shape, rounds).await
            })
            .await?
        }
    };
    tokio::task::spawn_blocking(move || measure(&args, &beside)).await?
}

fn measure(args: &HistoryArgs, beside: &Beside) -> anyhow::Result<()> {
    let scratch = Scratch::create(false)?;
    let root = args.dir.clone().unwrap_or_else(|| scratch.path().to_owned());
    let folder = root.join("bench-history");
    let machine = Machine::look(&root);
    let measured = fill_and_search(args, &folder);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("the folder of the bench is left behind")?;
    }
    scratch.clean_up()?;
    let (filled, searched, mut goals) = measured?;
    goals.extend(beside.goals());
    if args.json {
        return output::print_json(&json!({
            "setup": {
                "machine": machine,
                "count": args.count,
                "searches": args.searches,
                "rounds": args.rounds,
                "seconds": args.seconds,
                "clients": args.clients,
                "searches_per_s_beside": history_beside::SEARCHES_PER_S,
            },
            "filled": filled,
            "first_page_ms": searched,
            "cells": beside.cells.to_json(),
            "goals": goal::to_json(&goals),
        }));
    }
    output::print(&format!(
        "{}\n\n{}\n\n{filled:#}\n\n{searched:#}\n\n{}",
        machine.to_text(),
        beside.to_text(),
        goal::to_text(&goals)
    ))
}

fn open(folder: &std::path::Path) -> anyhow::Result<Archive> {
    let (shelf, _) = SledShelf::open(folder)?;
    let all = Retention { records_max: u64::MAX, bytes_max: u64::MAX, age_ms_max: u64::MAX };
    Ok(Archive::open(Arc::new(shelf), all)?)
}

fn fill_and_search(
    args: &HistoryArgs,
    folder: &std::path::Path,
) -> anyhow::Result<(Value, Value, Vec<Goal>)> {
    let archive = open(folder)?;
    let pid = std::process::id();
    let making_us = making_us(pid)?;
    let (began, cpu) = (Instant::now(), meters::cpu_us(pid)?);
    let mut told = Instant::now();
    for from in (0..args.count).step_by(TOGETHER as usize) {
        let until = (from + TOGETHER).min(args.count);
        archive.add((from..until).map(record))?;
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            note(&format!("{until} of {} transactions\n", args.count));
        }
    }
    archive.flush(0)?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu_us = (meters::cpu_us(pid)? - cpu) / args.count as f64 - making_us;
    let figures = archive.figures();
    let resident = meters::resident_bytes(std::process::id())?;
    drop(archive);
    let began = Instant::now();
    let archive = open(folder)?;
    let reopened_s = began.elapsed().as_secs_f64();
    let count = args.count as f64;
    let filled = json!({
        "seconds": goal_round(seconds),
        "per_s": goal_round(count / seconds),
        "cpu_us_per_transaction": goal_round(cpu_us),
        "bytes_per_transaction": goal_round(figures.bytes as f64 / count),
        "disk_bytes_per_transaction": goal_round(figures.disk_bytes as f64 / count),
        "filter_bytes_per_transaction": goal_round(figures.memory_bytes as f64 / count),
        "resident_bytes": resident,
        "memory_is_bounded_by": "a filter of at most 64 KiB for each sheet of 4,096 transactions, and history.records_max of those; 32 MiB of cache; one sheet that is filled, at most 16,384",
        "sheets": figures.sheets,
        "reopened_s": goal_round(reopened_s),
    });
    let mut searched = serde_json::Map::new();
    let mut goals = Vec::new();
    for (name, query) in KINDS {
        let mut times = Vec::with_capacity(args.searches as usize);
        let mut found = 0;
        for n in 0..u64::from(args.searches) {
            let query = query(n, args.count);
            let began = Instant::now();
            found += archive.search(&query)?.records.len();
            times.push(began.elapsed().as_secs_f64() * 1_000.0);
        }
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        searched.insert(
            name.to_owned(),
            json!({
                "p50": goal_round(at(0.5)), "p99": goal_round(at(0.99)), "max": goal_round(at(1.0)),
                "found": goal_round(found as f64 / f64::from(args.searches)),
            }),
        );
        let bound = Bound::AtMost(PAGE_MS_MAX);
        goals.push(Goal::new(format!("first page by {name}, p99 ms"), Some(at(0.99)), bound));
    }
    let memory = Some(resident / count).filter(|_| args.count >= 5_000_000);
    goals.push(Goal::new("bytes in memory a transaction", memory, Bound::AtMost(MEMORY_BYTES_MAX)));
    Ok((filled, Value::Object(searched), goals))
}

/// CPU that making one record takes, which is the bench's and not the history's, us.
fn making_us(pid: u32) -> anyhow::Result<f64> {
    const MADE: u64 = 200_000;
    let before = meters::cpu_us(pid)?;
    let bytes: usize = (0..MADE).map(|n| std::hint::black_box(record(n)).attempts.len()).sum();
    anyhow::ensure!(bytes > 0, "nothing was made");
    Ok((meters::cpu_us(pid)? - before) / MADE as f64)
}

fn goal_round(value: f64) -> f64 {
    super::figures::rounded(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_search_finds_what_it_should_in_a_small_history() {
        let dir = tempfile::tempdir().unwrap();
        let archive = open(&dir.path().join("history")).unwrap();
        archive.add((0..20_000).map(record)).unwrap();
        for (name, query) in KINDS {
            let found = (0..20).map(|n| archive.search(&query(n, 20_000)).unwrap().records.len());
            let found: usize = found.sum();
            assert_eq!(found == 0, name == "tag, none of them", "{name}: {found}");
        }
    }
}
