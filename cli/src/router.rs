//! `holdfast router`: PostgreSQL clients in, each statement to its shards.

use std::{process::ExitCode, sync::Arc};

use holdfast_shard_router::Router;

use crate::{
    config::{self, ConfigArgs, RouterRole},
    health_door, shutdown, telemetry,
};

/// Runs one router. Any number of them may run side by side; they share nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast router --config config/router.toml
  holdfast router --config config/router.toml --rules config/shards.toml --postgres 127.0.0.1:6543
  psql 'host=127.0.0.1 port=6543 dbname=bank user=app' -c 'SHOW HOLDFAST SHARDS'
  curl http://127.0.0.1:7430/readyz")]
pub(crate) struct RouterArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where PostgreSQL clients connect (bind.postgres)
    #[arg(long, value_name = "ADDRESS")]
    postgres: Option<String>,
    /// Health and metrics (bind.http)
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
    /// The rules file; none: everything goes to the only source (router.rules)
    #[arg(long, value_name = "FILE")]
    rules: Option<String>,
}

/// Runs until a signal.
/// # Errors
/// The configuration or the rules are mistaken, or a door cannot be opened.
pub(crate) async fn run(args: RouterArgs) -> anyhow::Result<ExitCode> {
    let loaded = config::load::<RouterRole>(&args.config.inputs(vec![
        ("bind.postgres", args.postgres, "--postgres"),
        ("bind.http", args.http, "--http"),
        ("router.rules", args.rules, "--rules"),
    ]))?;
    loaded.check_here()?;
    let RouterRole { router, http, telemetry } = loaded.config;
    telemetry::start_logging(&telemetry)?;
    let metrics = telemetry::start_metrics()?;
    shutdown::until_signal(|token| async move {
        let sources = router.sources.len();
        let workers = router.workers;
        let router = Router::start(router).await?;
        let readiness: health_door::Readiness = Arc::new(router.readiness());
        let (http, door) =
            health_door::open(http, metrics, Arc::clone(&readiness), token.clone()).await?;
        tracing::info!(postgres = %router.address(), %http, sources, workers, "router starts");
        let ready = tokio::spawn(health_door::log_ready(readiness, "router"));
        let served = router.serve(token.clone()).await;
        ready.abort();
        token.cancel();
        door.await?;
        served.map_err(anyhow::Error::from)
    })
    .await?;
    tracing::info!("router stopped");
    Ok(ExitCode::SUCCESS)
}
