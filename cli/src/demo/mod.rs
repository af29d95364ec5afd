//! `holdfast demo`: the whole product on this machine, under load, broken in the middle, and audited.
//!
//! [`acts`] plays it: [`cluster`] brings up [`processes`] and [`postgres`] in a [`scratch`] folder; [`workload`] (or
//! [`replay`]) says who pays whom; [`driver`] submits and writes down what it was told, with [`kill`] in between and
//! [`saga`]s beside; [`audit`] then compares that with the books, by plain SQL; [`dba`] counts the money once more, through a router;
//! [`report`] is the result.

pub(crate) mod acts;
pub(crate) mod args;
pub(crate) mod audit;
pub(crate) mod cluster;
mod dba;
pub(crate) mod driver;
pub(crate) mod guard;
pub(crate) mod kill;
pub(crate) mod latency;
pub(crate) mod layout;
pub(crate) mod payment;
pub(crate) mod postgres;
pub(crate) mod processes;
pub(crate) mod progress;
mod replay;
mod report;
pub(crate) mod saga;
pub(crate) mod scratch;
mod ticker;
pub(crate) mod workload;

use std::io::Write;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

pub(crate) use args::DemoArgs;
pub(crate) use holdfast_chaos_tests::ports;
use progress::Progress;
use report::{Report, Verdict};
use scratch::Scratch;

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Plays the demo and removes all of it again.
/// # Errors
/// What kept it from being played to its end. A bad verdict is no error but an exit code of 1.
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let progress = Progress::new();
    let replay = args.replay.as_deref().map(replay::read).transpose()?;
    let keep = args.keep;
    let scratch = tokio::task::spawn_blocking(move || Scratch::create(keep)).await??;

    let played = tokio::select! {
        played = Box::pin(acts::play(&args, replay, scratch.path(), &progress, started)) => Some(played),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        _ = hangup.recv() => None,
    };
    // Whatever came between: processes are stopped, the folder is removed.
    let folder = scratch.path().to_path_buf();
    let cleaned = tokio::task::spawn_blocking(|| scratch.clean_up()).await?;
    progress.finish();
    let Some(played) = played else {
        progress.say("Interrupted. Every process was stopped.");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let (report, directions) = played.map_err(|error| {
        let advice =
            if keep { "its logs are kept" } else { "run again with --keep to keep its logs" };
        error.context(format!("the demo in {} came to an end; {advice}", folder.display()))
    })?;
    cleaned?;
    show(&args, &report, &directions)?;
    Ok(match report.verdict {
        Verdict::Good => ExitCode::SUCCESS,
        Verdict::Bad => ExitCode::FAILURE,
    })
}

fn show(args: &DemoArgs, report: &Report, directions: &str) -> anyhow::Result<()> {
    if let Some(path) = &args.report {
        report.write(path)?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", report.to_json())?;
        if !directions.is_empty() {
            writeln!(std::io::stderr().lock(), "{directions}")?;
        }
        return Ok(());
    }
    writeln!(out, "\n{}", report.to_text())?;
    if let Some(path) = &args.report {
        writeln!(out, "Report: {}", path.display())?;
    }
    if !directions.is_empty() {
        writeln!(out, "{directions}")?;
    }
    writeln!(
        out,
        "What to try next:\n  \
         holdfast demo --kill postgres --kill agent --kill all-coordinators --duration 40s\n  \
         holdfast demo --keep            (then look into the databases yourself)\n  \
         holdfast demo --tls             (certificates on both sides of every connection between roles)\n  \
         holdfast demo --replay DIR --serial   (an AMLSim folder, one transfer after the other)"
    )?;
    Ok(())
}
