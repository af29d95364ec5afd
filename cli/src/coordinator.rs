//! `holdfast coordinator`: one coordinator node.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use holdfast_coordinator::{Coordinator, live::Live};

use crate::{
    config::{self, ConfigArgs, CoordinatorConfig},
    drill::{door, lost_disk},
    health_door,
    otlp::{Traces, Who},
    reload::{self, Configured},
    shutdown, telemetry,
};

/// Runs one coordinator node.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast coordinator --config config/coordinator.toml
  holdfast coordinator --config config/coordinator.toml --data-dir /tmp/node-1
  HOLDFAST_NODE_ID=2 holdfast coordinator --config config/coordinator.toml --set bind.http=127.0.0.1:7500
  curl http://127.0.0.1:7400/readyz")]
pub(crate) struct CoordinatorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// This node's number (node.id)
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// The log, the vote and the snapshots (node.data_dir)
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
}

impl CoordinatorArgs {
    /// As `--config FILE` alone.
    pub(crate) fn of_file(file: PathBuf) -> Self {
        let config = ConfigArgs { config: Some(file), ..ConfigArgs::default() };
        Self { config, node_id: None, data_dir: None }
    }
}

/// Where others reach the callers' door of this node: as the members know it, which may be another address than it listens on.
fn advertised(node: &holdfast_coordinator::Config) -> String {
    let own = node.cluster.members.iter().find(|member| member.node == node.node.id);
    own.map_or_else(|| node.bind.grpc.to_string(), |member| member.grpc.clone())
}

/// Runs until a signal.
/// # Errors
/// The configuration is mistaken, this machine cannot run it, the log cannot be opened, or a door breaks.
pub(crate) async fn run(args: CoordinatorArgs) -> anyhow::Result<ExitCode> {
    let inputs = args.config.inputs(vec![
        ("node.id", args.node_id, "--node-id"),
        ("node.data_dir", args.data_dir, "--data-dir"),
    ]);
    let loaded = config::load::<CoordinatorConfig>(&inputs)?;
    loaded.check_here()?;
    let shown = loaded.shown;
    let CoordinatorConfig { node, telemetry, drill, .. } = loaded.config;
    let level = telemetry::start_logging(&telemetry)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let metrics = telemetry::start_metrics()?;
    let who = Who { role: "coordinator", instance: format!("node-{}", node.node.id) };
    let traces = Traces::start(&telemetry.endpoint, &who)?;
    shutdown::until_signal(|token| async move {
        let configured =
            Configured::<CoordinatorConfig>::new(inputs, shown, level, reload::of_coordinator);
        tokio::spawn(Arc::clone(&configured).on_hangup(token.clone()));
        let bind = node.bind;
        tracing::info!(
            node = node.node.id,
            cluster = node.cluster.name,
            members = node.cluster.members.len(),
            http = %bind.http,
            grpc = %bind.grpc,
            raft = %bind.raft,
            data_dir = %node.node.data_dir.display(),
            "coordinator starts"
        );
        let about = door::About {
            role: "coordinator",
            name: format!("coordinator-{}", node.node.id),
            grpc: Some(advertised(&node)),
            database: None,
            disk: Some((node.node.id, node.node.data_dir.clone())),
        };
        let drilled = drill.allowed;
        door::open(drill, about, metrics.clone(), token.clone()).await?;
        let coordinator = Coordinator::start(node).await?.with_metrics(metrics);
        let adjusted = coordinator.clone();
        configured
            .adjusted_by(move |said: &CoordinatorConfig| adjusted.adjust(Live::of(&said.node)));
        let coordinator = coordinator.with_reread(configured);
        if drilled {
            lost_disk::watch(&coordinator);
        }
        let ready = tokio::spawn(health_door::log_ready(
            Arc::new({
                let coordinator = coordinator.clone();
                move || coordinator.is_ready()
            }),
            "coordinator",
        ));
        let served = coordinator.serve(token).await;
        ready.abort();
        served.map_err(anyhow::Error::from)
    })
    .await?;
    traces.end().await;
    tracing::info!("coordinator stopped");
    Ok(ExitCode::SUCCESS)
}
