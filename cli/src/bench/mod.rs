//! `holdfast bench`: measures the product beside bars of the same run, so that ratios mean something on any machine.
//!
//! A bench starts processes in a scratch folder as the demo does, loads one side after the other in rounds, and tells
//! medians. [`nodes`] is what is measured; each bar has its own `bar_` file; [`load`] is the closed loop of clients that all
//! share, [`meters`] reads what processes used, and [`goal`] holds ratios against what they should be.

mod addresses;
mod bar_echo;
mod bar_local;
mod bar_log;
mod bar_postgres;
mod bar_prepared;
mod bar_raft;
mod coordinator;
mod figures;
mod goal;
mod history;
mod history_beside;
mod load;
mod machine;
pub(crate) mod meters;
mod moves;
mod nodes;
mod participant;
mod router;
mod router_idle;
mod router_miss;
mod router_pgbench;
mod router_sides;
mod router_transfer;
mod scale;
mod secure;
mod show;
mod steady;
mod submission;
mod transfer;
mod worker;

use std::process::ExitCode;

use crate::output::Output;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Leave to chance where programs lie in memory, as it is outside a bench; nodes that share processors then cost more
    #[arg(long, global = true)]
    random_addresses: bool,
    #[command(subcommand)]
    bench: Bench,
}

impl BenchArgs {
    /// To be called while the process has one thread.
    pub(crate) fn prepare(&self) {
        if !self.random_addresses {
            addresses::fix();
        }
    }
}

#[derive(Debug, clap::Subcommand)]
enum Bench {
    #[command(after_help = "\
Examples:
  holdfast bench coordinator --quick
  holdfast bench coordinator --clients 1,64,512 --json > coordinator.json
  holdfast bench coordinator --secure --clients 64,512

Exit code 0 whatever was measured; a gate reads goals[].met of the JSON.")]
    Coordinator(coordinator::CoordinatorArgs),
    #[command(after_help = "\
Examples:
  holdfast bench transfer
  holdfast bench transfer --json > transfer.json

Exit code 0 whatever was measured; a gate reads goals[].met of the JSON.")]
    Transfer(transfer::TransferArgs),
    #[command(after_help = "\
Examples:
  holdfast bench router --quick
  holdfast bench router --json > router.json
  holdfast bench router --only simple --clients 16 --rounds 5

Exit code 0 whatever was measured; a gate reads goals[].met of the JSON.")]
    Router(router::RouterArgs),
    #[command(after_help = "\
Examples:
  holdfast bench history
  holdfast bench history --count 1000000 --json > history.json
  holdfast bench history --count 1000 --rounds 9

First a cluster with a history and one without are loaded in turns, then a history alone is filled and searched.
Exit code 0 whatever was measured; a gate reads goals[].met of the JSON.")]
    History(history::HistoryArgs),
    #[command(after_help = "\
Examples:
  holdfast bench scale --open 100000 --finished 0
  holdfast bench scale --json > scale.json

Takes some 20 minutes and 8 GiB of memory with its defaults.
Exit code 0 whatever was measured; a gate reads goals[].met of the JSON.")]
    Scale(scale::ScaleArgs),
    #[command(after_help = "\
Examples:
  holdfast bench steady
  holdfast bench steady --minutes 60 --json > steady.json

Exit code 0 whatever was measured; a gate reads goals[].met of the JSON.")]
    Steady(steady::SteadyArgs),
    #[command(after_help = "\
Examples:
  holdfast bench move
  holdfast bench move --rows 4000000 --clients 64 --json > move.json

Exit code 0 whatever was measured; a gate reads goals[].met of the JSON.")]
    Move(moves::MoveArgs),
    /// One log store, for a bench
    #[command(hide = true)]
    Log(bar_log::LogArgs),
    /// One node of a bare replicated log, for a bench
    #[command(hide = true)]
    RaftNode(bar_raft::NodeArgs),
    /// A server that answers at once, for a bench
    #[command(hide = true)]
    Echo(bar_echo::EchoArgs),
    /// Participants that do nothing, for a bench
    #[command(hide = true)]
    Participant(participant::ParticipantArgs),
}

impl Bench {
    /// `--output json` is `--json`.
    fn say_json(&mut self) {
        let json = match self {
            Self::Coordinator(args) => &mut args.json,
            Self::Transfer(args) => &mut args.json,
            Self::Router(args) => &mut args.json,
            Self::History(args) => &mut args.json,
            Self::Scale(args) => &mut args.json,
            Self::Steady(args) => &mut args.json,
            Self::Move(args) => &mut args.json,
            Self::Log(_) | Self::RaftNode(_) | Self::Echo(_) | Self::Participant(_) => return,
        };
        *json = true;
    }
}

/// Measures. What it measured does not change the exit code.
/// # Errors
/// Something could not be started, or broke down.
pub(crate) async fn run(mut args: BenchArgs, output: Output) -> anyhow::Result<ExitCode> {
    if output == Output::Json {
        args.bench.say_json();
    }
    match args.bench {
        Bench::Coordinator(args) => Box::pin(coordinator::run(args)).await,
        Bench::Transfer(args) => Box::pin(transfer::run(args)).await,
        Bench::Router(args) => Box::pin(router::run(args)).await,
        Bench::History(args) => {
            Box::pin(history::run(args)).await?;
            Ok(ExitCode::SUCCESS)
        }
        Bench::Scale(args) => Box::pin(scale::run(args)).await,
        Bench::Steady(args) => Box::pin(steady::run(args)).await,
        Bench::Move(args) => Box::pin(moves::run(args)).await,
        Bench::Log(args) => Box::pin(bar_log::serve(args)).await,
        Bench::RaftNode(args) => Box::pin(bar_raft::serve(args)).await,
        Bench::Echo(args) => Box::pin(bar_echo::serve(args)).await,
        Bench::Participant(args) => Box::pin(participant::serve(args)).await,
    }
}
