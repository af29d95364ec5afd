//! `holdfast drill`: breaks a cluster on purpose, under load, within bounds, and says what came of it in words that can be signed.
//!
//! [`catalog`] has the drills. A fault is asked for at the [`door`] of the process that it strikes and held there, with a time limit of
//! that side; the runner ([`run`]) asks, watches and judges, and may die at any time. [`fleet`] is what is drilled, [`load`] the work beside it,
//! [`alarms`] what a pager would have said, [`report`] and [`page`] the result.

mod alarms;
pub(crate) mod catalog;
pub(crate) mod door;
mod fleet;
mod load;
pub(crate) mod lost_disk;
mod mend;
mod page;
mod place;
mod report;
mod run;
mod target;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    catalog::{DRILLS, Drill},
    fleet::Fleet,
    place::{Notice, Running},
    report::{Report, Verdict},
    run::Terms,
    target::{Target, is_running},
};
use crate::{
    demo::progress::Progress,
    exit::{self, Usage},
    identity::Identity,
    output::{self, Output},
};

/// Accounts of a cluster that is started for a drill.
const ACCOUNTS: u32 = 2_000;
/// Blows of one drill.
const REPEAT_MAX: i64 = 1_000;

/// Breaks a cluster on purpose, and says what came of it.
#[derive(Debug, clap::Args)]
pub(crate) struct DrillArgs {
    #[command(subcommand)]
    command: DrillCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DrillCommand {
    /// The drills, what each does, how far it reaches, and its goals
    #[command(after_help = "Examples:\n  holdfast drill list\n  holdfast drill list --json")]
    List {
        /// The same as --output json
        #[arg(long)]
        json: bool,
    },
    /// Run one: against a demo cluster of its own, or processes that consented
    #[command(after_help = "\
Examples:
  holdfast drill run leader-kill --dry-run
  holdfast drill run leader-kill --repeat 20 --json
  holdfast drill run partition-leader --html partition.html
  holdfast drill run follower-kill --doors 127.0.0.1:7403,127.0.0.1:7503,127.0.0.1:7603
  holdfast drill run pause-leader --doors ... --tls-ca certs/ca.pem --tls-cert certs/user-dora.pem --tls-key certs/user-dora.key

A cluster with mutual TLS is drilled by somebody who is app (to begin the probes) and sre (to watch, and to replace a node).
Exit code 1 when the verdict is fail. Every fault ends by itself at the process that it strikes, also when this command dies.")]
    Run(Box<RunArgs>),
    /// Whether a drill runs, and what is held where
    #[command(
        after_help = "Examples:\n  holdfast drill status\n  holdfast drill status --doors 127.0.0.1:7403,127.0.0.1:7503"
    )]
    Status {
        /// The doors to ask, if no drill of yours runs
        #[arg(long, value_delimiter = ',', value_name = "ADDRESSES")]
        doors: Vec<String>,
        /// The same as --output json
        #[arg(long)]
        json: bool,
    },
    /// End every fault now, and the drill
    #[command(
        after_help = "Examples:\n  holdfast drill stop\n  holdfast drill stop --doors 127.0.0.1:7403"
    )]
    Stop {
        /// The doors to tell, if no drill of yours runs
        #[arg(long, value_delimiter = ',', value_name = "ADDRESSES")]
        doors: Vec<String>,
    },
    /// Show the report of the last drill
    #[command(
        after_help = "Examples:\n  holdfast drill report\n  holdfast drill report leader-kill.json --output json"
    )]
    Report {
        /// A report as JSON; the last one of this user unless named
        file: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Which; `holdfast drill list` says
    name: String,
    /// How often
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=REPEAT_MAX))]
    repeat: u32,
    /// Drill doors of the running cluster, of all its coordinators at least; without them a demo cluster is started
    #[arg(long, value_delimiter = ',', value_name = "ADDRESSES")]
    doors: Vec<String>,
    #[command(flatten)]
    identity: Identity,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// How long each fault is held, or a killed process stays dead, ms; the struck process keeps this limit by itself
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=600_000))]
    limit_ms: Option<u64>,
    /// The error budget: a longer time without any commit aborts the drill, ms
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=600_000))]
    budget_ms: Option<u64>,
    /// Transactions under way at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    clients: u32,
    /// Makes accounts and amounts the same as in another run with this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Write the report to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the report to FILE, as one HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The same as --output json
    #[arg(long)]
    json: bool,
}

/// Runs the chosen subcommand.
/// # Errors
/// HF6102 no door, HF6104 no such drill, HF6105 nothing to show; what kept a drill from being run.
pub(crate) async fn run_drill(args: DrillArgs, output: Output) -> anyhow::Result<ExitCode> {
    let as_json = |json: bool| if json { Output::Json } else { output };
    match args.command {
        DrillCommand::List { json } => list(as_json(json)),
        DrillCommand::Run(args) => {
            let output = as_json(args.json);
            drill(*args, output).await
        }
        DrillCommand::Status { doors, json } => status(doors, as_json(json)).await,
        DrillCommand::Stop { doors } => stop(doors).await,
        DrillCommand::Report { file } => show_report(file, output),
    }
}

fn list(output: Output) -> anyhow::Result<ExitCode> {
    match output {
        Output::Json => output::print_json(&json!({ "drills": DRILLS }))?,
        Output::Table => {
            let rows = DRILLS.iter().map(|drill| {
                vec![drill.name.to_owned(), drill.what.to_owned(), drill.blast_radius.to_owned()]
            });
            output::print(&output::table(&["drill", "what", "who feels it"], rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn named(name: &str) -> anyhow::Result<&'static Drill> {
    let known = || DRILLS.iter().map(|drill| drill.name).collect::<Vec<_>>().join(", ");
    catalog::named(name).ok_or_else(|| {
        Usage(format!("HF6104 no drill is called {name:?}; there are {}", known())).into()
    })
}

async fn drill(args: RunArgs, output: Output) -> anyhow::Result<ExitCode> {
    let drill = named(&args.name)?;
    let terms = Terms {
        repeat: args.repeat,
        clients: args.clients,
        seed: args.seed.unwrap_or_else(|| rand::rng().random()),
        gap_max_ms: args.budget_ms.unwrap_or(drill.goals.gap_max_ms),
        held: args.limit_ms.map_or(drill.held(), Duration::from_millis),
        cluster: if args.doors.is_empty() { "demo".to_owned() } else { args.doors.join(",") },
    };
    if args.dry_run {
        return dry_run(drill, &terms, &args, output).await;
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let progress = Progress::new();
    progress.now("Looking for the cluster");
    let mut fleet = match args.doors.is_empty() {
        true => Fleet::start(ACCOUNTS, args.clients, terms.seed).await?,
        false => Fleet::join(&args.doors, args.clients, args.identity.clone()).await?,
    };
    let notice = Notice::put(&Running {
        drill: drill.name.to_owned(),
        pid: Pid::this().as_raw(),
        doors: fleet.targets.iter().map(|target| target.door.clone()).collect(),
        held_ms: load::ms(terms.held),
    })?;
    let ran = tokio::select! {
        ran = Box::pin(run::run(drill, &terms, &mut fleet, &progress)) => Some(ran),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    if ran.is_none() {
        fleet.end_all().await;
    }
    progress.now("Stopping");
    let stopped = fleet.stop().await;
    drop(notice);
    progress.finish();
    let Some(ran) = ran else {
        progress.say("Interrupted. Every fault was ended.");
        return Ok(ExitCode::from(exit::FAILED));
    };
    let report = ran?;
    stopped?;
    tell(&report, &args, output)?;
    Ok(match report.verdict {
        Verdict::Pass => ExitCode::SUCCESS,
        Verdict::Fail => ExitCode::from(exit::FAILED),
    })
}

fn tell(report: &Report, args: &RunArgs, output: Output) -> anyhow::Result<()> {
    report.write(&place::last_report())?;
    if let Some(path) = &args.report {
        report.write(path)?;
    }
    if let Some(path) = &args.html {
        std::fs::write(path, page::of(report))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    match output {
        Output::Json => output::print_json(&report.to_json()),
        Output::Table => output::print(&report.to_text()),
    }
}

/// What would be done to whom; asks the doors who they are, and no more.
async fn dry_run(
    drill: &Drill,
    terms: &Terms,
    args: &RunArgs,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut targets = Vec::new();
    for door in &args.doors {
        targets.push(Target::find(door).await?.name);
    }
    let targets = if targets.is_empty() {
        "3 coordinators and 4 banks of a demo cluster that is started for it".to_owned()
    } else {
        targets.join(", ")
    };
    let plan = json!({
        "dry_run": true,
        "drill": drill,
        "targets": targets,
        "repeat": terms.repeat,
        "limit_ms": load::ms(terms.held),
        "error_budget_ms": terms.gap_max_ms,
        "clients": terms.clients,
    });
    match output {
        Output::Json => output::print_json(&plan)?,
        Output::Table => output::print(&format!(
            "drill             {} ({})\nwhom              {:?} of {targets}\nblast radius      {}\nhow often         {}\n\
             time limit        {} ms, kept by the struck process itself\nerror budget      {} ms without a commit, then it is aborted\n\
             goals             recover in {} ms (p50), {} ms (max); lost 0, doubled 0, in doubt 0\n\nNothing was done.",
            drill.name,
            drill.what,
            drill.whom,
            drill.blast_radius,
            terms.repeat,
            load::ms(terms.held),
            terms.gap_max_ms,
            drill.goals.recover_p50_ms,
            drill.goals.recover_max_ms,
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn doors_of(doors: Vec<String>) -> (Vec<String>, Option<Running>) {
    let running = place::running().filter(|running| is_running(running.pid));
    let known = running.as_ref().map(|running| running.doors.clone()).unwrap_or_default();
    (if doors.is_empty() { known } else { doors }, running)
}

async fn status(doors: Vec<String>, output: Output) -> anyhow::Result<ExitCode> {
    let (doors, running) = doors_of(doors);
    let mut said: Vec<(String, Option<Value>)> = Vec::new();
    for door in doors {
        let look = match Target::find(&door).await {
            Ok(target) => target.look().await,
            Err(_) => None,
        };
        said.push((door, look));
    }
    match output {
        Output::Json => output::print_json(&json!({
            "running": running,
            "targets": said.iter().map(|(door, said)| json!({ "door": door, "said": said })).collect::<Vec<_>>(),
        }))?,
        Output::Table => {
            output::print(&running.map_or("no drill of yours runs".to_owned(), |running| {
                format!(
                    "{} runs (process {}); each fault ends by itself within {} ms",
                    running.drill, running.pid, running.held_ms
                )
            }))?;
            let rows = said.iter().map(|(door, said)| {
                let text = |name: &str| {
                    said.as_ref().and_then(|said| said[name].as_str()).unwrap_or("-").to_owned()
                };
                let held = said.as_ref().and_then(|said| said["held"].as_array()).map_or(
                    "does not answer".to_owned(),
                    |held| {
                        let one = |held: &Value| {
                            format!(
                                "{} ({} ms left)",
                                held["fault"].as_str().unwrap_or("?"),
                                held["left_ms"]
                            )
                        };
                        held.iter().map(one).collect::<Vec<_>>().join(", ")
                    },
                );
                vec![door.clone(), text("name"), held]
            });
            output::print(&output::table(&["door", "process", "held"], rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn stop(doors: Vec<String>) -> anyhow::Result<ExitCode> {
    let (doors, running) = doors_of(doors);
    if doors.is_empty() {
        return Err(anyhow::anyhow!(
            "HF6105 no drill of yours runs here. Name the doors to tell with --doors"
        ));
    }
    let mut deaf = Vec::new();
    for door in &doors {
        let ended = match Target::find(door).await {
            Ok(target) => target.end().await,
            Err(error) => Err(error),
        };
        if ended.is_err() {
            deaf.push(door.as_str());
        }
    }
    if let Some(running) = running {
        // Its runner ends what it still holds, and stops a cluster that it started.
        kill(Pid::from_raw(running.pid), Signal::SIGTERM).context("telling the runner")?;
    }
    if !deaf.is_empty() {
        output::print(&format!(
            "did not answer, and ends by itself within its limit: {}",
            deaf.join(", ")
        ))?;
    }
    output::print("every fault was ended")?;
    Ok(ExitCode::SUCCESS)
}

fn show_report(file: Option<PathBuf>, output: Output) -> anyhow::Result<ExitCode> {
    let path = file.unwrap_or_else(place::last_report);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("HF6105 there is no report at {}. Run a drill first", path.display())
    })?;
    let report: Value = serde_json::from_str(&text).context("the report is no JSON")?;
    if output == Output::Json {
        output::print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = [
        "drill",
        "verdict",
        "recover_ms",
        "resolved_ms",
        "lost",
        "doubled",
        "in_doubt",
        "conserved",
        "aborted",
        "problems",
    ];
    let rows = rows.iter().map(|name| vec![(*name).to_owned(), report[*name].to_string()]);
    output::print(&output::table(&["", &path.display().to_string()], rows))?;
    Ok(ExitCode::SUCCESS)
}
