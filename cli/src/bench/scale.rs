//! `holdfast bench scale`: a cluster that holds a million open transactions beside one that holds none.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
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

/// Clients of the compared load.
const CLIENTS: u32 = 64;
/// Clients while a cluster is filled.
const FILLING: u32 = 512;
/// Load between two words on the way.
const STRETCH: Duration = Duration::from_secs(10);
/// Bytes of the payload of each of two branches.
pub(crate) const PAYLOAD_BYTES: usize = 100;

/// Measures what many open and finished transactions cost: memory, throughput beside an empty cluster, and a restart
#[derive(Debug, clap::Args)]
pub(crate) struct ScaleArgs {
    /// The result on standard output as JSON, progress on standard error
    #[arg(long)]
    pub(super) json: bool,
    /// Transactions that stay open, of two branches each
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=2_000_000))]
    open: u32,
    /// Transactions that finish before anything is compared
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u32).range(0..=100_000_000))]
    finished: u32,
    /// Seconds that count in one cell of one round
    #[arg(long, value_name = "N", default_value_t = 3.0)]
    seconds: f64,
    /// Rounds, of whose figures the median is told; long enough together for snapshots of either cluster to fall into some
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Leave the folders with data and logs
    #[arg(long)]
    keep: bool,
}

impl ScaleArgs {
    fn shape(&self) -> Shape {
        let measured = Duration::from_secs_f64(self.seconds);
        Shape { clients: CLIENTS, warm_up: measured / 5, measured }
    }
}

/// Measures, whatever comes out.
/// # Errors
/// Something could not be started, or broke down.
pub(crate) async fn run(args: ScaleArgs) -> anyhow::Result<ExitCode> {
    ensure!((0.05..=60.0).contains(&args.seconds), "--seconds is from 0.05 to 60");
    let (setup, cells) =
        Scratch::during(args.keep, async |folder| measure(&args, folder).await).await?;
    let goals = goals(&cells);
    let columns =
        ["per_s", "p50_us", "p99_us", "bytes_per_open", "elections", "restart_s", "first_commit_s"];
    let told = show::Told { setup, cells: &cells, bars: &[], columns: &columns, goals: &goals };
    told.show(args.json)?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &ScaleArgs, folder: &Path) -> anyhow::Result<(Value, Cells)> {
    let begun = Instant::now();
    let machine = Machine::look(folder);
    note(&format!("{}\n", machine.to_text()));
    let at = |name: &str| -> anyhow::Result<_> {
        let own = folder.join(name);
        std::fs::create_dir(&own)?;
        Ok(own)
    };
    let (empty_folder, full_folder) = (at("empty")?, at("full")?);
    let mut empty = Nodes::start(&empty_folder, 1).await.context("starting the empty cluster")?;
    let mut full = Nodes::start(&full_folder, 1).await.context("starting the other cluster")?;

    let mut cells = Cells::default();
    let finished = finish(&mut full, args.finished).await?;
    // Allocators take more than they need at first: what finished is there before memory is read.
    let before = full.memory_bytes().await?;
    let term = full.term().await?;
    full.open(args.open, FILLING, PAYLOAD_BYTES).await.context("opening transactions")?;
    let grown = full.memory_bytes().await? - before;
    let per_open = grown / f64::from(args.open) - 2.0 * PAYLOAD_BYTES as f64;
    cells.add("memory", 0, Figures::from([("bytes_per_open", per_open)]));
    note(&format!("{} are open; each takes {per_open:.0} bytes beside its payloads\n", args.open));

    for round in 1..=args.rounds {
        note(&format!("Round {round} of {}\n", args.rounds));
        // They take turns in going first, so that neither always finds the machine warmer.
        let mut sides = [("full", &mut full), ("empty", &mut empty)];
        if round % 2 == 0 {
            sides.reverse();
        }
        for (side, nodes) in sides {
            cells.add(side, CLIENTS, nodes.run_stream(Mode::Tcc, args.shape()).await?);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of elections")]
    let elections = (full.term().await? - term) as f64;
    cells.add("elections", 0, Figures::from([("elections", elections)]));
    let (restarted, committed) = full.restart().await.context("a restart of all three nodes")?;
    let restart = Figures::from([
        ("restart_s", restarted.as_secs_f64()),
        ("first_commit_s", committed.as_secs_f64()),
    ]);
    cells.add("restart", 0, restart);
    let setup = json!({
        "machine": machine,
        "seconds": args.seconds,
        "rounds": args.rounds,
        "clients": CLIENTS,
        "open": args.open,
        "finished": finished,
        "payload_bytes": 2 * PAYLOAD_BYTES,
        "fsync": true,
        "coordinators": 3,
        "whole_seconds": figures::rounded(begun.elapsed().as_secs_f64()),
    });
    Ok((setup, cells))
}

/// Lets so many transactions commit; says how many did.
async fn finish(nodes: &mut Nodes, wanted: u32) -> anyhow::Result<u64> {
    let mut finished = 0.0;
    while finished < f64::from(wanted) {
        let shape = Shape { clients: FILLING, warm_up: Duration::ZERO, measured: STRETCH };
        let stretch = nodes.run_stream(Mode::Tcc, shape).await.context("filling the history")?;
        finished += stretch["per_s"] * STRETCH.as_secs_f64();
        note(&format!("{finished:.0} of {wanted} have finished\n"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    Ok(finished as u64)
}

fn goals(cells: &Cells) -> Vec<Goal> {
    use Bound::{AtLeast, AtMost};
    let alone = |side, name| cells.median(side, 0, name);
    vec![
        Goal::new(
            "memory of an open transaction beside its payloads, bytes",
            alone("memory", "bytes_per_open"),
            AtMost(1024.0),
        ),
        Goal::new(
            format!("TCC beside many open and finished ones / TCC beside none, {CLIENTS} clients"),
            cells.ratio(("full", "per_s"), ("empty", "per_s"), CLIENTS),
            AtLeast(0.9),
        ),
        Goal::new(
            "the same of all rounds together, snapshots among them",
            cells.together("per_s", ("full", "empty"), CLIENTS),
            AtLeast(0.9),
        ),
        Goal::new(
            "elections while many were opened, were open and others went on beside them",
            alone("elections", "elections"),
            AtMost(0.0),
        ),
        Goal::new(
            "killed and started: until every node has its state again, s",
            alone("restart", "restart_s"),
            AtMost(10.0),
        ),
    ]
}
