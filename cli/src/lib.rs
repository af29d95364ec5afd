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
mod reload_door;
mod router;
mod rules;
mod rules_cluster;
mod rules_evenness;
mod rules_move;
mod rules_plan;
mod rules_sources;
mod service_json;
mod services;
mod services_callers;
mod services_text;
mod shutdown;
mod source;
mod submission;
mod telemetry;
mod timeline;
mod top;
mod tx;
mod tx_many;
mod tx_operate;

use std::{ffi::OsStr, process::ExitCode, thread::available_parallelism};

use clap::Parser;

pub use config::fuzzed::read as read_configuration;

/// Tokio's own variable for the threads that [`workers`] counts.
const WORKERS_VARIABLE: &str = "TOKIO_WORKER_THREADS";
const WORKERS_MAX: usize = 1_024;

/// Threads that serve: as `said`, or half of the processors and at least one, since the log's writer, a database beside it and the kernel
/// need theirs. A worker that wakes up only to find its neighbor's work done costs more than it brings (docs/operating/benchmarks.md).
/// # Errors
/// `said` is no count from 1 to [`WORKERS_MAX`].
fn workers(said: Option<&OsStr>) -> Result<usize, exit::Usage> {
    let Some(said) = said else {
        return Ok(available_parallelism().map_or(1, |processors| (processors.get() / 2).max(1)));
    };
    let count = said.to_str().and_then(|said| said.parse().ok());
    count.filter(|count| (1..=WORKERS_MAX).contains(count)).ok_or_else(|| {
        exit::Usage(format!(
            "{WORKERS_VARIABLE} = {said:?} is no count of threads from 1 to {WORKERS_MAX}. Set one, or unset it for half of the processors"
        ))
    })
}

/// Does what the arguments of the process ask, and says how that ended.
#[must_use]
pub fn run() -> ExitCode {
    let command = command::Holdfast::parse();
    command.prepare();
    let threads = match workers(std::env::var_os(WORKERS_VARIABLE).as_deref()) {
        Ok(threads) => threads,
        Err(error) => return exit::failed(&error.into()),
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads);
    let runtime = match builder.enable_all().build() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_counted_by_the_machine_or_by_a_word_within_bounds() {
        assert!(workers(None).is_ok_and(|threads| threads >= 1));
        for (said, threads) in [("1", 1), ("1024", 1_024)] {
            assert_eq!(workers(Some(said.as_ref())).ok(), Some(threads));
        }
        for said in ["0", "1025", "-1", "two", ""] {
            assert!(workers(Some(said.as_ref())).is_err(), "{said}");
        }
    }
}
