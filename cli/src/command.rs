//! The tree of subcommands.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    account, agent, audit, bank, barrier, bench, certs, chaos, check, cluster, config_cmd,
    coordinator, demo, dev, drill, explain, locate, manual, outbox,
    output::{Form, Output},
    router, rules, services, top, tx,
};

/// Distributed transactions for banks: freeze, confirm, recover.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version = env!("HOLDFAST_BUILD"), propagate_version = false)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  holdfast demo
  holdfast coordinator --config config/coordinator.toml
  holdfast tx submit --file transfer.json
  holdfast explain HF2001

Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 refused, 4 unknown (ask again with the same gid).
Configuration: file < environment (HOLDFAST_SECTION_KEY) < flag (--set section.key=value).")]
pub(crate) struct Holdfast {
    /// How answers look: table, for people; json, one document; jsonl, a line for each of a list
    #[arg(long, global = true, value_enum, default_value_t = Form::Table, value_name = "FORM", hide_possible_values = true, display_order = 900)]
    output: Form,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one coordinator node
    Coordinator(coordinator::CoordinatorArgs),
    /// Run a sidecar agent beside one banking service
    Agent(agent::AgentArgs),
    /// Run the bank's deposit module for one data source
    Bank(bank::BankArgs),
    /// Run a router: PostgreSQL clients in, each statement to its shards
    Router(router::RouterArgs),
    /// Run one node and three built-in participants, to write a service against
    Dev(dev::DevArgs),
    /// Run the whole product on this machine, break it, and audit it
    #[command(after_help = "\
Examples:
  holdfast demo
  holdfast demo --duration 60s --kill leader --kill postgres
  holdfast demo --transfers 10000 --kill none --report report.json")]
    Demo(demo::DemoArgs),
    /// Measure the product beside bars of the same run
    #[command(after_help = "\
Examples:
  holdfast bench coordinator --quick
  holdfast bench coordinator --clients 1,64,512 --json > coordinator.json
  holdfast bench transfer")]
    Bench(bench::BenchArgs),
    /// Break things on purpose: the protocol simulator
    #[command(after_help = "\
Examples:
  holdfast chaos sim --seeds 500
  holdfast chaos sim --seed 4711 -v")]
    Chaos(chaos::ChaosArgs),
    /// Rehearse failures: break a cluster within bounds, measure, and judge
    #[command(after_help = "\
Examples:
  holdfast drill list
  holdfast drill run leader-kill --repeat 20 --json
  holdfast drill status")]
    Drill(drill::DrillArgs),
    /// Submit, read, wait for, list, roll back, retry and resolve global transactions
    Tx(tx::TxArgs),
    /// Show services, and weigh, drain, throttle and color their instances
    Services(services::ServicesArgs),
    /// Look at the cluster, change its members, back it up and restore it
    Cluster(cluster::ClusterArgs),
    /// Check machine, cluster and data sources: each failure with cause and remedy
    Check(check::CheckArgs),
    /// Watch the cluster live; read-only
    Top(top::TopArgs),
    /// Check shard rules, put them into force, and show which are
    Rules(rules::RulesArgs),
    /// Say where a key lives
    Locate(locate::LocateArgs),
    /// Show, verify and export who did what
    Audit(audit::AuditArgs),
    /// Make account numbers that carry their slot, and check them
    Account(account::AccountArgs),
    /// Install the barrier in a service's database
    Barrier(barrier::BarrierArgs),
    /// Publish messages that services write in their own local transactions
    Outbox(outbox::OutboxArgs),
    /// Make certificates for development, and tokens
    Certs(certs::CertsArgs),
    /// Check and show configuration, and have running processes read it again
    Config(config_cmd::ConfigCmdArgs),
    /// Explain an error code
    Explain(explain::ExplainArgs),
    /// Print completions for a shell
    Completions(manual::CompletionsArgs),
    /// Print or write manual pages
    Man(manual::ManArgs),
}

impl Holdfast {
    /// Does what must be done while the process has one thread.
    pub(crate) fn prepare(&self) {
        if let Command::Bench(args) = &self.command {
            args.prepare();
        }
    }

    /// Runs the chosen subcommand.
    /// # Errors
    /// What went wrong, for people; it becomes a non-zero exit code.
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let output = self.output.taken();
        match self.command {
            Command::Coordinator(args) => Box::pin(coordinator::run(args)).await,
            Command::Agent(args) => Box::pin(agent::run(args)).await,
            Command::Bank(args) => Box::pin(bank::run(args)).await,
            Command::Router(args) => Box::pin(router::run(args)).await,
            Command::Demo(mut args) => {
                args.json |= output == Output::Json;
                Box::pin(demo::run(args)).await
            }
            Command::Dev(args) => Box::pin(dev::run(args, output)).await,
            Command::Bench(args) => Box::pin(bench::run(args, output)).await,
            Command::Chaos(args) => Box::pin(chaos::run_chaos(&args, output)).await,
            Command::Drill(args) => Box::pin(drill::run_drill(args, output)).await,
            Command::Tx(args) => Box::pin(tx::run(args, output)).await,
            Command::Services(args) => Box::pin(services::run(args, output)).await,
            Command::Cluster(args) => Box::pin(cluster::run(args, output)).await,
            Command::Check(args) => Box::pin(check::run(args, output)).await,
            Command::Top(args) => Box::pin(top::run(args, output)).await,
            Command::Rules(args) => Box::pin(rules::run(args, output)).await,
            Command::Locate(args) => Box::pin(locate::run(args, output)).await,
            Command::Audit(args) => Box::pin(audit::run(args, output)).await,
            Command::Account(args) => account::run(&args, output),
            Command::Barrier(args) => Box::pin(barrier::run(args, output)).await,
            Command::Outbox(args) => Box::pin(outbox::run(args, output)).await,
            Command::Certs(args) => certs::run(&args, output),
            Command::Config(args) => config_cmd::run(&args, output).await,
            Command::Explain(args) => explain::run(&args, output),
            Command::Completions(args) => manual::completions(&args),
            Command::Man(args) => manual::man(&args),
        }
    }
}
