//! `holdfast bench steady`: full load for minutes at the default timeouts, in which nobody calls an election.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    figures::{self, Cells, Figures},
    goal::{Bound, Goal},
    load::Shape,
    machine::Machine,
    nodes::Nodes,
    show::{self, note},
    submission::Mode,
};
use crate::demo::scratch::Scratch;

/// Load between two looks at the nodes.
const STRETCH: Duration = Duration::from_secs(10);

/// Loads a cluster fully for minutes and counts the elections that nobody needed
#[derive(Debug, clap::Args)]
pub(crate) struct SteadyArgs {
    /// The result on standard output as JSON, progress on standard error
    #[arg(long)]
    pub(super) json: bool,
    /// Minutes of load
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_440))]
    minutes: u32,
    /// Clients that submit one transaction after the other
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    clients: u32,
    /// Leave the folders with data and logs
    #[arg(long)]
    keep: bool,
}

/// Measures, whatever comes out.
/// # Errors
/// Something could not be started, or broke down.
pub(crate) async fn run(args: SteadyArgs) -> anyhow::Result<ExitCode> {
    let (setup, cells) =
        Scratch::during(args.keep, async |folder| measure(&args, folder).await).await?;
    let goals = [Goal::new(
        format!("elections in {} minutes of full load", args.minutes),
        cells.median("whole", args.clients, "elections"),
        Bound::AtMost(0.0),
    )];
    let columns = ["per_s", "p50_us", "p99_us", "elections"];
    let told = show::Told { setup, cells: &cells, bars: &[], columns: &columns, goals: &goals };
    told.show(args.json)?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &SteadyArgs, folder: &Path) -> anyhow::Result<(Value, Cells)> {
    let machine = Machine::look(folder);
    note(&format!("{}\n", machine.to_text()));
    let mut nodes = Nodes::start(folder, 1).await.context("starting the cluster")?;
    let mut cells = Cells::default();
    let begun = Instant::now();
    let first = nodes.term().await?;
    let mut term = first;
    while begun.elapsed() < Duration::from_secs(60 * u64::from(args.minutes)) {
        let warm_up = Duration::ZERO;
        let shape = Shape { clients: args.clients, warm_up, measured: STRETCH };
        let mut figures: Figures = nodes.run_stream(Mode::Tcc, shape).await?;
        let now = nodes.term().await?;
        figures.insert("elections", (now - term) as f64);
        term = now;
        let (seconds, rate) = (begun.elapsed().as_secs(), figures["per_s"]);
        note(&format!("{seconds} s: {rate:.0} transactions a second, term {term}\n"));
        cells.add("steady", args.clients, figures);
    }
    let whole = Figures::from([("elections", (term - first) as f64)]);
    cells.add("whole", args.clients, whole);
    let setup = json!({
        "machine": machine,
        "minutes": args.minutes,
        "clients": args.clients,
        "fsync": true,
        "coordinators": 3,
        "whole_seconds": figures::rounded(begun.elapsed().as_secs_f64()),
    });
    Ok((setup, cells))
}
