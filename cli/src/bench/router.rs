//! `holdfast bench router`: pgbench through the router, beside pgbouncer and PostgreSQL itself, cell by cell in one run.

use std::{path::Path, process::ExitCode};

use anyhow::ensure;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    figures::{self, Cells},
    goal::{Bound, Goal},
    machine::Machine,
    router_idle,
    router_miss::{self, Taken},
    router_pgbench::{Protocol, Run, Work},
    router_sides::Sides,
    router_transfer::{self, Deciding},
    show::{self, note},
};
use crate::demo::scratch::Scratch;

const PROTOCOLS: [Protocol; 3] = [Protocol::Simple, Protocol::Extended, Protocol::Prepared];
/// Clients that stay silent, for the memory that each takes.
const SILENT: usize = 5_000;

/// Measures the router beside pgbouncer and PostgreSQL alone, with pgbench as the client
#[derive(Debug, clap::Args)]
pub(crate) struct RouterArgs {
    /// The result on standard output as JSON, progress on standard error
    #[arg(long)]
    pub(super) json: bool,
    /// Seconds of one cell of one round
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Clients at once, a cell each; goals are at 1, 16 and 64
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,16,64",
          value_parser = clap::value_parser!(u32).range(1..=200))]
    clients: Vec<u32>,
    /// Rounds, of whose figures the median is told
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Server connections of each pool, pgbouncer's and ours
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=64))]
    pool_size: u32,
    /// Only selects, by this protocol alone: simple, extended or prepared
    #[arg(long, value_name = "PROTOCOL")]
    only: Option<String>,
    /// Only the two-shard transfer, beside a client that prepares and commits by hand
    #[arg(long, conflicts_with = "only")]
    transfer: bool,
    /// Below a minute and a half: 16 clients, one second, one round, selects
    #[arg(long, conflicts_with_all = ["seconds", "clients", "rounds"])]
    quick: bool,
    /// Leave the folder with data and logs
    #[arg(long)]
    keep: bool,
}

impl RouterArgs {
    fn clients(&self) -> Vec<u32> {
        if self.quick { vec![16] } else { self.clients.clone() }
    }

    fn seconds(&self) -> u32 {
        if self.quick { 1 } else { self.seconds }
    }

    fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }
}

/// Measures, whatever comes out.
/// # Errors
/// Something could not be started, or broke down.
pub(crate) async fn run(args: RouterArgs) -> anyhow::Result<ExitCode> {
    let keep = args.keep;
    let scratch = tokio::task::spawn_blocking(move || Scratch::create(keep)).await??;
    let measured = Box::pin(measure(&args, scratch.path())).await;
    let cleaned = tokio::task::spawn_blocking(|| scratch.clean_up()).await?;
    let (setup, cells, idle, taken) = measured?;
    cleaned?;
    let goals = goals(&cells, idle, taken);
    let columns: &[&str] = if args.transfer { &TRANSFER_COLUMNS } else { &COLUMNS };
    let told = show::Told { setup, cells: &cells, bars: &[], columns, goals: &goals };
    told.show(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Shown to people; JSON has all.
const COLUMNS: [&str; 4] = ["per_s", "mean_us", "p50_us", "cpu_us"];
/// With `--transfer`; `cpu_us` is the router's.
const TRANSFER_COLUMNS: [&str; 9] = [
    "per_s",
    "p50_us",
    "cpu_us",
    "leader_cpu_us",
    "followers_cpu_us",
    "postgres_cpu_us",
    "client_cpu_us",
    "log_syncs",
    "log_commands",
];

async fn measure(
    args: &RouterArgs,
    folder: &Path,
) -> anyhow::Result<(Value, Cells, Option<f64>, Taken)> {
    let begun = Instant::now();
    let machine = Machine::look(folder);
    note(&format!("{}\n", machine.to_text()));
    let files = router_idle::allow_many_files()?;
    let mut sides = Sides::start(folder, args.pool_size).await?;
    if sides.pgbouncer.is_none() {
        note(
            "pgbouncer is not installed (Debian: apt-get install pgbouncer): goals beside it are not measured\n",
        );
    }
    let mut deciding = Deciding::start(folder, &sides).await?;
    // Before anything else runs: it is a matter of microseconds.
    let taken = router_miss::measure(&sides.rules)?;
    let mut cells = Cells::default();
    for round in 1..=args.rounds() {
        note(&format!("Round {round} of {}\n", args.rounds()));
        if round > 1 && !args.transfer {
            sides.renew().await?;
        }
        deciding.measure(&sides, &mut cells, args.seconds(), round % 2 == 0).await?;
        if args.transfer {
            continue;
        }
        for clients in args.clients() {
            for protocol in PROTOCOLS {
                if args.only.as_ref().is_some_and(|only| only != protocol.word()) {
                    continue;
                }
                // Every other round backwards, so that whoever comes second does not always.
                let backwards = round % 2 == 0;
                select_cells(args, &sides, folder, &mut cells, (clients, protocol, backwards))
                    .await?;
            }
        }
    }
    let idle = match sides.router.pid() {
        Some(pid) if !args.transfer && files > 2 * u64::try_from(SILENT)? => {
            let port = sides.router.port;
            let bytes = move || router_idle::bytes_a_client(port, pid, SILENT);
            Some(tokio::task::spawn_blocking(bytes).await??)
        }
        _ if args.transfer => None,
        _ => {
            note("too few files may be open for the silent clients: not measured\n");
            None
        }
    };
    ensure!(sides.servers.len() == 3, "three servers were started");
    let setup = json!({
        "machine": machine,
        "seconds": args.seconds(),
        "rounds": args.rounds(),
        "clients": args.clients(),
        "pool_size": args.pool_size,
        "pgbouncer": sides.pgbouncer.is_some(),
        "pgbouncer_prepared": "session pooling with 64 connections: this version keeps no statements in transaction pooling",
        "silent_clients": SILENT,
        "bytes_a_silent_client": idle.map(figures::rounded),
        "plan_cache_miss_us": figures::rounded(taken.miss_us),
        "plan_cache_hit_us": figures::rounded(taken.hit_us),
        "whole_seconds": figures::rounded(begun.elapsed().as_secs_f64()),
    });
    Ok((setup, cells, idle, taken))
}

/// The sides of one cell, one behind the other.
async fn select_cells(
    args: &RouterArgs,
    sides: &Sides,
    folder: &Path,
    cells: &mut Cells,
    (clients, protocol, backwards): (u32, Protocol, bool),
) -> anyhow::Result<()> {
    let works: &[(&str, Work<'_>, Work<'_>)] = &[
        ("select", Work::Select, Work::Script(&sides.select)),
        ("tpcb", Work::TpcB, Work::Script(&sides.tpc_b)),
    ];
    let works = if args.quick || args.only.is_some() { &works[..1] } else { works };
    for (word, whole, keyed) in works {
        let pgbouncer = match protocol {
            Protocol::Prepared => sides.pgbouncer_session.as_ref(),
            Protocol::Simple | Protocol::Extended => sides.pgbouncer.as_ref(),
        };
        let mut runs = vec![("direct", sides.servers[0].port(), None, *whole)];
        runs.extend(pgbouncer.map(|pooler| ("pgbouncer", pooler.port, pooler.pid(), *whole)));
        runs.push(("router", sides.router.port, sides.router.pid(), *whole));
        if *word == "select" {
            // The bar of the router that divides: who cannot divide gets the same statements.
            let bar =
                pgbouncer.map(|pooler| ("pgbouncer-keyed", pooler.port, pooler.pid(), *keyed));
            runs.extend(bar);
        }
        runs.push(("router-keyed", sides.sharded.port, sides.sharded.pid(), *keyed));
        if backwards {
            runs.reverse();
        }
        for (side, port, between, work) in runs {
            let seconds = args.seconds();
            let run = Run { port, work, protocol, clients, seconds, folder, between };
            let figures = run.measure(&sides.password).await?;
            cells.add(name(side, word, protocol), clients, figures);
        }
    }
    Ok(())
}

/// The name of a side's cells.
fn name(side: &str, work: &str, protocol: Protocol) -> &'static str {
    const NAMES: [&str; 27] = [
        "direct select simple",
        "direct select extended",
        "direct select prepared",
        "direct tpcb simple",
        "direct tpcb extended",
        "direct tpcb prepared",
        "pgbouncer select simple",
        "pgbouncer select extended",
        "pgbouncer select prepared",
        "pgbouncer tpcb simple",
        "pgbouncer tpcb extended",
        "pgbouncer tpcb prepared",
        "pgbouncer-keyed select simple",
        "pgbouncer-keyed select extended",
        "pgbouncer-keyed select prepared",
        "router select simple",
        "router select extended",
        "router select prepared",
        "router tpcb simple",
        "router tpcb extended",
        "router tpcb prepared",
        "router-keyed select simple",
        "router-keyed select extended",
        "router-keyed select prepared",
        "router-keyed tpcb simple",
        "router-keyed tpcb extended",
        "router-keyed tpcb prepared",
    ];
    let wanted = format!("{side} {work} {}", protocol.word());
    NAMES.into_iter().find(|name| *name == wanted).expect("every side is in the list")
}

fn goals(cells: &Cells, idle: Option<f64>, taken: Taken) -> Vec<Goal> {
    use Bound::{AtLeast, AtMost};
    let mut goals = Vec::new();
    for protocol in PROTOCOLS {
        let word = protocol.word();
        let of = |side: &str, work: &str| name(side, work, protocol);
        for (side, bar, rate, cpu) in
            [("router", "pgbouncer", 1.0, 1.2), ("router-keyed", "pgbouncer-keyed", 0.9, 1.5)]
        {
            let (ours, theirs) = (of(side, "select"), of(bar, "select"));
            for clients in [16, 64] {
                let what = format!("{side} select {word}, {clients} clients, of {bar}'s");
                let ratio = |figure| cells.ratio((ours, figure), (theirs, figure), clients);
                goals.push(Goal::new(format!("{what} rate"), ratio("per_s"), AtLeast(rate)));
                goals.push(Goal::new(format!("{what} CPU"), ratio("cpu_us"), AtMost(cpu)));
            }
        }
        let p50 = |side: &str| cells.median(of(side, "select"), 1, "p50_us");
        let added = p50("router").zip(p50("pgbouncer")).map(|(ours, theirs)| ours - theirs);
        let what = format!("router select {word}, 1 client, p50 above pgbouncer's, us");
        goals.push(Goal::new(what, added, AtMost(20.0)));
        for clients in [16, 64] {
            let ratio = cells.ratio(
                (of("router", "tpcb"), "per_s"),
                (of("pgbouncer", "tpcb"), "per_s"),
                clients,
            );
            let what = format!("router tpcb {word}, {clients} clients, of pgbouncer's rate");
            goals.push(Goal::new(what, ratio, AtLeast(0.97)));
        }
    }
    let kib = idle.map(|bytes| bytes / 1024.0);
    goals.extend(router_transfer::goals(cells));
    goals.push(Goal::new("plan-cache miss, us", Some(taken.miss_us), AtMost(60.0)));
    goals.push(Goal::new(format!("KiB of each of {SILENT} silent clients"), kib, AtMost(16.0)));
    goals
}
