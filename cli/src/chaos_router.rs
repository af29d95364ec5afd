//! `holdfast chaos router-diff`: random statements through the router over four databases, compared with one PostgreSQL.

use std::process::ExitCode;

use holdfast_chaos_tests::router_diff::{self, Difference};
use serde_json::json;

use crate::{
    exit,
    output::{self, Output},
};

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct RouterDiffArgs {
    /// How many statements
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    statements: u64,
    /// Draws worlds and statements
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Begin with this world of the seed: a difference names its own
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=10_000_000))]
    world: u64,
    /// The same as --output json
    #[arg(long)]
    json: bool,
}

/// Runs it and says what came of it; exit code 1 when an answer or an effect differed.
/// # Errors
/// PostgreSQL's server programs are not installed, or standard output cannot be written.
pub(crate) async fn run(args: &RouterDiffArgs, output: Output) -> anyhow::Result<ExitCode> {
    let found = router_diff::run(args.statements, args.seed, args.world).await?;
    match if args.json { Output::Json } else { output } {
        Output::Json => output::print_json(&json!({
            "statements": found.statements,
            "seed": args.seed,
            "differences": found.differences,
            "refused": found.refused,
            "refused_by_class": found.refused_by_class,
            "refused_by_kind": found.by_kind.iter()
                .map(|(kind, (drawn, refused))| json!({ "kind": kind, "drawn": drawn, "refused": refused }))
                .collect::<Vec<_>>(),
            "scattered": found.scattered,
            "both_failed": found.errors,
            "in_transactions": found.in_transactions,
            "repeated": found.repeated,
            "told": found.told,
            "reproduce": found.reproduce,
        }))?,
        Output::Table => show(&found, args.seed)?,
    }
    let clean = found.differences == 0;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILED) })
}

fn show(found: &Difference, seed: u64) -> anyhow::Result<()> {
    for told in &found.told {
        output::print(told)?;
    }
    if !found.reproduce.is_empty() {
        output::print(&format!(
            "\nThe first of them again, from empty databases:\n{}\n",
            found.reproduce.join("\n")
        ))?;
    }
    let share =
        |part: u64| format!("{:.1} %", 100.0 * part as f64 / found.statements.max(1) as f64);
    let classes = found
        .refused_by_class
        .iter()
        .map(|(class, count)| vec![(*class).to_owned(), count.to_string(), share(*count)]);
    output::print(&output::table(&["refused", "statements", "share"], classes))?;
    let kinds = found.by_kind.iter().map(|(kind, (drawn, refused))| {
        vec![(*kind).to_owned(), drawn.to_string(), refused.to_string()]
    });
    output::print(&output::table(&["kind", "drawn", "refused"], kinds))?;
    output::print(&format!(
        "{} statements of seed {seed}: {} differences, {} refused, {} over several databases, {} in transactions, {} that both answered with the same error",
        found.statements,
        found.differences,
        found.refused,
        found.scattered,
        found.in_transactions,
        found.errors
    ))
}
