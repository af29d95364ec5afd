//! `holdfast bank`: the bank's deposit module for one data source.

use std::{process::ExitCode, sync::Arc};

use holdfast_tcc_agent::Status;
use tokio::sync::watch;

use holdfast_security::{Access, keep_fresh};

use crate::{
    config::{self, BankConfig, ConfigArgs},
    drill::door,
    health_door,
    otlp::{Traces, Who},
    reload::{self, Configured},
    shutdown, telemetry,
};

/// Runs the bank's deposit module for one data source: it joins as participant deposit@SHARD.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast bank --config config/bank.toml
  HOLDFAST_BANK_DATABASE='host=127.0.0.1 user=holdfast password=... dbname=bank' holdfast bank --config config/bank.toml
  holdfast bank --config config/bank.toml --shard shard-2 --http 127.0.0.1:7421
  curl http://127.0.0.1:7420/readyz")]
pub(crate) struct BankArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The shard to serve (bank.shard)
    #[arg(long, value_name = "SHARD")]
    shard: Option<String>,
    /// gRPC address of a coordinator node; may be repeated (coordinators.addresses)
    #[arg(long = "coordinator", value_name = "ADDRESS")]
    coordinators: Vec<String>,
    /// Health and metrics (bind.http)
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
}

/// Runs until a signal.
/// # Errors
/// The configuration is mistaken, the health door cannot be opened, or the data source is not fit for use.
pub(crate) async fn run(args: BankArgs) -> anyhow::Result<ExitCode> {
    let coordinators = Some(args.coordinators.join(",")).filter(|list| !list.is_empty());
    let inputs = args.config.inputs(vec![
        ("bank.shard", args.shard, "--shard"),
        ("coordinators.addresses", coordinators, "--coordinator"),
        ("bind.http", args.http, "--http"),
    ]);
    let loaded = config::load::<BankConfig>(&inputs)?;
    loaded.check_here()?;
    let config = loaded.config;
    let (warnings, shown) = (loaded.warnings, loaded.shown);
    let level = telemetry::start_logging(&config.telemetry)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let metrics = telemetry::start_metrics()?;
    let who = Who { role: "bank", instance: config.instance.clone() };
    let traces = Traces::start(&config.telemetry.endpoint, &who)?;
    let status = Status::default();
    let http_wanted = config.http;
    let drill = config.drill;
    let about = door::About {
        role: "bank",
        name: format!("bank-{}", config.shard),
        grpc: None,
        database: Some(config.database.clone()),
        disk: None,
    };
    let database = config::masked(config.database.config());
    let (say_limits, limits) = watch::channel(config.limits);
    let role = holdfast_banking::BankConfig {
        shard: config.shard,
        database: config.database,
        instance: config.instance,
        coordinators: config.coordinators.iter().map(ToString::to_string).collect(),
        limits,
        credit: config.credit,
        status: status.clone(),
        credentials: config.credentials.clone(),
    };
    shutdown::until_signal(|token| async move {
        let configured = Configured::<BankConfig>::new(inputs, shown, level, reload::of_bank);
        configured.adjusted_by(move |said: &BankConfig| {
            say_limits.send_replace(said.limits);
            Ok(())
        });
        configured.listen("bank", &token);
        door::open(drill, about, metrics.clone(), token.clone()).await?;
        keep_fresh(config.credentials.as_ref(), Access::empty(), &token);
        let readiness = health_door::of_agent(status);
        let (http, door) =
            health_door::open(http_wanted, metrics, Arc::clone(&readiness), token.clone()).await?;
        tracing::info!(
            participant = format!("deposit@{}", role.shard),
            instance = role.instance,
            database,
            %http,
            coordinators = ?role.coordinators,
            "bank starts"
        );
        let ready = tokio::spawn(health_door::log_ready(readiness, "bank"));
        let served = holdfast_banking::run(role, token.clone()).await;
        ready.abort();
        token.cancel();
        door.await?;
        served.map_err(anyhow::Error::from)
    })
    .await?;
    traces.end().await;
    tracing::info!("bank stopped");
    Ok(ExitCode::SUCCESS)
}
