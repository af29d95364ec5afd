//! `holdfast chaos`: the product against faults. `sim` runs the protocol simulator, one seed one run; `router-diff` is in `chaos_router.rs`.

use std::{process::ExitCode, time::Instant};

use anyhow::Context;
use holdfast_sim::{Campaign, Happening, Mutant, Run, Violation, Words, campaign, run};
use serde_json::{Value, json};

use crate::{
    chaos_router::{self, RouterDiffArgs},
    exit::{self, Usage},
    output::{self, Output},
};

/// Breaks things on purpose, and says what came of it.
#[derive(Debug, clap::Args)]
pub(crate) struct ChaosArgs {
    #[command(subcommand)]
    command: ChaosCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ChaosCommand {
    /// Run the protocol simulator: the real minds in a modelled world, one seed one run
    #[command(after_help = "\
Examples:
  holdfast chaos sim --seeds 500
  holdfast chaos sim --seeds 100000 --first-seed 1000000 --json
  holdfast chaos sim --seed 4711 -v
  holdfast chaos sim --mutant pivot-unrecorded --seeds 500

A seed decides everything, so a failure is repeated by its seed. Exit code 1 when a promise was broken.")]
    Sim(SimArgs),
    /// Send random statements through a router over four databases, and compare with one PostgreSQL
    #[command(after_help = "\
Examples:
  holdfast chaos router-diff --statements 20000 --seed 7
  holdfast chaos router-diff --statements 1000 --json
  holdfast chaos router-diff --seed 7 --world 12 --statements 400

It starts a PostgreSQL, coordinators and routers of its own, and leaves nothing behind. Each statement has the same rows and the same effect as on one database, or is refused. Exit code 1 when one differed.")]
    RouterDiff(RouterDiffArgs),
}

#[derive(Debug, clap::Args)]
struct SimArgs {
    /// How many seeds
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// Run this seed alone, and print the hash of its trace
    #[arg(long, conflicts_with_all = ["seeds", "first_seed"])]
    seed: Option<u64>,
    /// With --seed: print every event
    #[arg(short, long, requires = "seed")]
    verbose: bool,
    /// Plant a bug, which must be found; docs/reference/mutants.md lists them
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
    /// The same as --output json
    #[arg(long)]
    json: bool,
}

/// Runs the chosen kind of chaos.
/// # Errors
/// An unknown mutant, or standard output cannot be written.
pub(crate) async fn run_chaos(args: &ChaosArgs, output: Output) -> anyhow::Result<ExitCode> {
    let args = match &args.command {
        ChaosCommand::Sim(args) => args,
        ChaosCommand::RouterDiff(args) => return chaos_router::run(args, output).await,
    };
    let mutant = args.mutant.as_deref().map(mutant_named).transpose()?;
    let output = if args.json { Output::Json } else { output };
    match args.seed {
        Some(seed) => one_seed(seed, mutant, args.verbose, output),
        None => many_seeds(args, mutant, output),
    }
}

fn mutant_named(name: &str) -> anyhow::Result<Mutant> {
    let named = Mutant::named(name);
    let known = || Mutant::ALL.iter().map(|mutant| mutant.name()).collect::<Vec<_>>().join(", ");
    Ok(named
        .ok_or_else(|| Usage(format!("no mutant is called {name:?}; there are {}", known())))?)
}

fn one_seed(
    seed: u64,
    mutant: Option<Mutant>,
    verbose: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let done = run(seed, mutant, if verbose { Words::All } else { Words::Last });
    match output {
        Output::Json => output::print_json(&json!({
            "seed": seed,
            "trace_hash": format!("{:016x}", done.trace_hash),
            "events": done.events,
            "settings": format!("{:?}", done.settings),
            "violation": done.broken.as_ref().map(|broken| json!({
                "promise": broken.promise,
                "detail": broken.detail,
            })),
            "trace": if verbose { json!(done.lines) } else { Value::Null },
        }))?,
        Output::Table => {
            if verbose || done.broken.is_some() {
                output::print(&done.lines.join("\n"))?;
            }
            output::print(&format!("{:#?}", done.settings))?;
            let verdict = done.broken.as_ref().map_or_else(
                || "every promise held".to_owned(),
                |broken| format!("BROKEN {}: {}", broken.promise, broken.detail),
            );
            output::print(&format!(
                "seed {seed}: {} events, trace {:016x}: {verdict}",
                done.events, done.trace_hash
            ))?;
        }
    }
    Ok(code_of(done.broken.is_none()))
}

fn many_seeds(args: &SimArgs, mutant: Option<Mutant>, output: Output) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    // One find is enough of a planted bug.
    let go_on = |done: &Campaign| mutant.is_none() || done.violations.is_empty();
    let done = campaign(args.first_seed, args.seeds, mutant, go_on);
    let seconds = started.elapsed().as_secs_f64().max(0.001);
    let replay = |seed| {
        let planted = mutant.map(|mutant| format!(" --mutant {}", mutant.name()));
        format!("holdfast chaos sim --seed {seed} -v{}", planted.unwrap_or_default())
    };
    let report = json!({
        "seeds": done.seeds,
        "repeated": done.repeated,
        "seeds_per_second": (seeds_per_second(&done, seconds) * 10.0).round() / 10.0,
        "events": done.events,
        "faults": counted(&done),
        "never_happened": done.never_happened().iter().map(|h| h.name()).collect::<Vec<_>>(),
        "violations": done.violations.len(),
        "violated": done.violations.iter().map(|v| violation(v, &replay(v.run.seed)))
            .collect::<Vec<_>>(),
    });
    match output {
        Output::Json => output::print_json(&report)?,
        Output::Table => {
            for violation in &done.violations {
                show(&violation.run, &replay(violation.run.seed))?;
            }
            let rows = Happening::ALL.iter().map(|&happening| {
                vec![happening.name().to_owned(), done.counts.of(happening).to_string()]
            });
            output::print(&output::table(&["what", "times"], rows))?;
            output::print(&format!(
                "{} seeds ({} run twice), {} events, {:.0} seeds a second, {} violations",
                done.seeds,
                done.repeated,
                done.events,
                seeds_per_second(&done, seconds),
                done.violations.len()
            ))?;
        }
    }
    Ok(code_of(done.violations.is_empty()))
}

fn seeds_per_second(done: &Campaign, seconds: f64) -> f64 {
    done.seeds as f64 / seconds
}

fn counted(done: &Campaign) -> Value {
    let counts = Happening::ALL.iter().map(|&h| (h.name().to_owned(), json!(done.counts.of(h))));
    Value::Object(counts.collect())
}

fn violation(violation: &Violation, replay: &str) -> Value {
    json!({
        "seed": violation.run.seed,
        "commit": env!("HOLDFAST_BUILD"),
        "promise": violation.broken.promise,
        "detail": violation.broken.detail,
        "trace_hash": format!("{:016x}", violation.run.trace_hash),
        "settings": format!("{:?}", violation.run.settings),
        "last_events": violation.run.lines,
        "replay": replay,
    })
}

/// The seed, what it drew, its last events and how to see it again.
fn show(run: &Run, replay: &str) -> anyhow::Result<()> {
    let broken = run.broken.as_ref();
    let words = broken.map_or_else(
        || "two runs of it differ".to_owned(),
        |broken| format!("{}: {}", broken.promise, broken.detail),
    );
    let lines = run.lines.join("\n");
    output::print(&format!(
        "seed {} of {}: {words}\n{:#?}\n{lines}\n",
        run.seed,
        env!("HOLDFAST_BUILD"),
        run.settings
    ))?;
    output::print(&format!("again: {replay}\n")).context("telling of a violation")
}

fn code_of(clean: bool) -> ExitCode {
    if clean { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutant_that_is_not_there_is_told_with_those_that_are() {
        let told = mutant_named("none").unwrap_err().to_string();
        assert!(told.contains("confirm-before-decision"), "{told}");
        assert_eq!(mutant_named("late-try-accepted").unwrap(), Mutant::LateTryAccepted);
    }

    #[test]
    fn every_happening_is_counted_by_name() {
        let counts = counted(&campaign(0, 1, None, |_| true));
        assert!(counts["election"].as_u64().is_some_and(|times| times > 0), "{counts}");
        assert_eq!(counts.as_object().unwrap().len(), Happening::ALL.len());
    }
}
