//! The `holdfast` command: one file a subcommand; configuration, telemetry and shutdown for every role.

mod account;
mod agent;
mod audit;
mod bank;
mod barrier;
mod bench;
mod certs;
mod chaos;
mod chaos_router;
mod check;
mod cluster;
mod command;
mod config;
mod config_cmd;
mod config_reload;
mod coordinator;
mod database;
mod demo;
mod dev;
mod drill;
mod exit;
mod explain;
mod health_door;
mod identity;
mod locate;
mod manual;
mod metrics_help;
mod otlp;
mod outbox;
mod output;
mod reload;
mod router;
mod rules;
mod rules_cluster;
mod rules_evenness;
mod rules_plan;
mod service_json;
mod services;
mod services_callers;
mod shutdown;
mod submission;
mod telemetry;
mod timeline;
mod top;
mod tx;
mod tx_many;
mod tx_operate;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = command::Holdfast::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return exit::failed(&anyhow::Error::new(error).context("no threads to run on"));
        }
    };
    let ended = runtime.block_on(command.run());
    // What still blocks a thread was told to stop and given its time; it does not keep the process.
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| exit::failed(&error))
}
