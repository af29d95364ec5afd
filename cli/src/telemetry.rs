//! What a role lets be seen: log lines on standard error, and a Prometheus recorder whose page the role's HTTP door serves.

use std::{io::IsTerminal, time::Duration};

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::{
    config::{Telemetry, TelemetryFormat},
    exit::Usage,
    metrics_help,
};

/// Over the configured level: directives such as `info,holdfast_coordinator=debug`.
const LOG_VARIABLE: &str = "HOLDFAST_LOG";

/// Upper bounds in seconds of every histogram whose name ends in `_seconds`: fine where fsyncs and calls live, coarse up to a minute.
const SECONDS: [f64; 20] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.007_5, 0.01, 0.015, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

/// Upper bounds of every other histogram: commands in an entry, branches in a local transaction.
const COUNTS: [f64; 13] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0, 4_096.0, 65_536.0];

/// Histograms keep what was observed until this runs.
const UPKEEP: Duration = Duration::from_secs(5);

/// Starts logging as `telemetry` and the environment say.
/// # Errors
/// HF1022: the directives in the environment make no sense.
pub(crate) fn start_logging(telemetry: &Telemetry) -> anyhow::Result<LogLevel> {
    let mut by_environment = true;
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(directives) if !directives.trim().is_empty() => {
            EnvFilter::try_new(&directives).map_err(|error| {
                Usage(format!(
                    "HF1022 environment {LOG_VARIABLE}: {directives:?} is no list of directives: {error}. Write for example \"info,holdfast_coordinator=debug\"."
                ))
            })?
        }
        _ => {
            by_environment = false;
            EnvFilter::new(directives(&telemetry.level))
        }
    };
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let started = match telemetry.format {
        TelemetryFormat::Text => {
            registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init()
        }
        TelemetryFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    started.context("logging was started twice")?;
    Ok(LogLevel { handle, by_environment })
}

/// The level of our own lines, which may change while the process runs.
#[derive(Clone, Debug)]
pub(crate) struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
    by_environment: bool,
}

impl LogLevel {
    /// From now on, this level.
    /// # Errors
    /// In words: the environment says otherwise, and counts.
    pub(crate) fn set(&self, level: &str) -> Result<(), &'static str> {
        if self.by_environment {
            return Err("HOLDFAST_LOG is set, and counts");
        }
        let reloaded = self.handle.reload(EnvFilter::new(directives(level)));
        reloaded.map_err(|_| "logging is over")
    }
}

/// Our own words at `level`; those of the libraries below us only when something is wrong.
fn directives(level: &str) -> String {
    if level == "error" {
        return level.to_owned();
    }
    format!("warn,{},holdfast={level}", holdfast_raft::LOG_DIRECTIVE)
}

/// Installs the recorder and keeps it tidy until the runtime ends. Called once, inside the runtime.
/// # Errors
/// A recorder is installed already.
pub(crate) fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets(&COUNTS)?
        .install_recorder()
        .context("metrics were started twice")?;
    // Before anything is counted by other words: the first ones stay.
    metrics_help::describe();
    metrics::gauge!("holdfast_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let tidied = handle.clone();
    tokio::spawn(async move {
        let mut pause = tokio::time::interval(UPKEEP);
        loop {
            pause.tick().await;
            tidied.run_upkeep();
        }
    });
    Ok(handle)
}
