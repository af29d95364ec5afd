//! `holdfast dev`: one coordinator node and three built-in participants in one process, to write a service against.
//!
//! The node is the ordinary role with the shipped configuration: same log, same doors, same errors. Only what a laptop
//! lacks is left out: other nodes, certificates, and a folder that stays.

mod participants;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    coordinator,
    demo::{cluster, ports, scratch::Scratch},
    exit,
    output::{self, Output},
    shutdown,
};

/// Runs one node and three participants for the development of a service.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast dev
  holdfast dev --port 9400 --data-dir ./holdfast-data
  holdfast dev --any-port --output json

Built-in participants: accept (does everything), refuse (refuses every try and action), slow (works on it twice, then does it).
With --output json, a line on standard output says where it listens as soon as it can be used.")]
pub(crate) struct DevArgs {
    /// HTTP listens here, gRPC and the log's door on the next two
    #[arg(long, value_name = "PORT", default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1024..=65_533))]
    port: u16,
    /// Take any free ports instead
    #[arg(long, conflicts_with = "port")]
    any_port: bool,
    /// Keep transactions here, over restarts; otherwise nothing stays
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
}

/// From start to a node that serves, before it is called late.
const READY_MAX: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// For the participants to let go, once the node has stopped.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Where the node listens.
#[derive(Clone, Copy, Debug)]
struct Doors {
    http: u16,
    grpc: u16,
    raft: u16,
}

/// Runs until a signal, and removes what it made.
/// # Errors
/// A port is taken, or the folder cannot be made; and what the coordinator's role says.
pub(crate) async fn run(args: DevArgs, output: Output) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let doors = doors(&args)?;
    let scratch = tokio::task::spawn_blocking(|| Scratch::create(false)).await??;
    let data = args.data_dir.unwrap_or_else(|| scratch.path().join("coordinator-1"));
    let file = configuration(scratch.path(), &data, doors)?;

    let stop = CancellationToken::new();
    let mut participants = JoinSet::new();
    for participant in participants::all() {
        let address = format!("127.0.0.1:{}", doors.grpc);
        let stop = stop.clone();
        participants.spawn(async move {
            // Not before: what they would say about a door that only opens alarms for nothing.
            if stop.run_until_cancelled(listening(&address)).await.is_some() {
                participant.serve(address, stop).await;
            }
        });
    }
    // With the node and not behind it, or each would warn that its coordinator is gone.
    let asked = tokio::spawn({
        let stop = stop.clone();
        async move {
            if shutdown::asked().await.is_ok() {
                stop.cancel();
            }
        }
    });
    let greeting = tokio::spawn(greet(doors, started, output));
    let served = Box::pin(coordinator::run(coordinator::CoordinatorArgs::of_file(file))).await;
    greeting.abort();
    asked.abort();
    stop.cancel();
    // They have nothing to lose: the coordinator that would hear them is gone.
    let _ = tokio::time::timeout(DRAIN_MAX, participants.join_all()).await;
    tokio::task::spawn_blocking(|| scratch.clean_up()).await??;
    served
}

fn doors(args: &DevArgs) -> anyhow::Result<Doors> {
    if args.any_port {
        let free = ports::free(3)?;
        return Ok(Doors { http: free[0], grpc: free[1], raft: free[2] });
    }
    Ok(Doors { http: args.port, grpc: args.port + 1, raft: args.port + 2 })
}

/// The shipped configuration with one member, written below `folder`.
fn configuration(folder: &Path, data: &Path, doors: Doors) -> anyhow::Result<PathBuf> {
    let address = |port: u16| format!("127.0.0.1:{port}");
    let members = [(1, [address(doors.http), address(doors.grpc), address(doors.raft)])];
    let mut config = cluster::coordinator_config(1, data, &members)?;
    let telemetry = config.get_mut("telemetry").and_then(toml::Value::as_table_mut);
    let telemetry = telemetry.context("the shipped configuration has no [telemetry]")?;
    // What a developer wants to see are the calls; the node itself speaks up when something is wrong.
    telemetry.insert("level".to_owned(), "warn".into());
    let file = folder.join("coordinator.toml");
    std::fs::write(&file, config.to_string())
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// Waits until somebody listens at `address`.
async fn listening(address: &str) {
    while TcpStream::connect(address).await.is_err() {
        sleep(LOOK_AGAIN).await;
    }
}

/// Says where everything is, as soon as it can be used.
async fn greet(doors: Doors, started: Instant, output: Output) {
    let http = format!("127.0.0.1:{}", doors.http);
    while !cluster::is_ready(&http).await.unwrap_or(false) {
        if started.elapsed() > READY_MAX {
            exit::tell(&format!("holdfast dev: not ready after {} s", READY_MAX.as_secs()));
            return;
        }
        sleep(LOOK_AGAIN).await;
    }
    exit::tell(&welcome(doors, started.elapsed()));
    if output == Output::Json {
        let address = |port: u16| format!("127.0.0.1:{port}");
        let names: Vec<&str> = participants::all().iter().map(|one| one.name()).collect();
        let line = serde_json::json!({
            "http": address(doors.http), "grpc": address(doors.grpc), "participants": names,
        });
        // Whoever reads no more has what there is to read.
        let _gone = output::print(&line.to_string());
    }
}

fn welcome(doors: Doors, after: Duration) -> String {
    let Doors { http, grpc, .. } = doors;
    let services: Vec<String> = participants::all()
        .iter()
        .map(|participant| format!("  {:<8} {}", participant.name(), participant.what()))
        .collect();
    format!(
        "Ready after {:.1} s. Ctrl-C ends it and leaves nothing.\n\n  \
         HTTP   http://127.0.0.1:{http}   (/v1/transactions, /metrics, /readyz)\n  \
         gRPC   127.0.0.1:{grpc}          (callers, agents)\n\n\
         Participants:\n{}\n\n\
         Try:\n  \
         curl -s http://127.0.0.1:{http}/v1/transactions -H 'content-type: application/json' \\\n    \
         -d '{{\"mode\":\"tcc\",\"branches\":[{{\"participant\":\"accept\",\"payload\":{{}}}},{{\"participant\":\"slow\",\"payload\":{{}}}}]}}'\n  \
         holdfast agent --service loyalty --app http://127.0.0.1:8080 --coordinator 127.0.0.1:{grpc} --dev-plaintext\n\n\
         Every call to the three participants is shown below.",
        after.as_secs_f64(),
        services.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_configuration_is_one_that_a_node_takes() {
        let folder = tempfile::tempdir().unwrap();
        let doors = Doors { http: 19_400, grpc: 19_401, raft: 19_402 };
        let file = configuration(folder.path(), &folder.path().join("data"), doors).unwrap();
        let inputs = crate::config::Inputs { file: Some(file), ..Default::default() };
        let loaded = crate::config::load::<crate::config::CoordinatorConfig>(&inputs).unwrap();
        assert_eq!(loaded.config.node.bind.grpc.port(), 19_401);
        assert_eq!(loaded.config.node.cluster.members.len(), 1);
    }
}
