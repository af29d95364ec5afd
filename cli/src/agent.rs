//! `holdfast agent`: the sidecar beside one banking service.

use std::{process::ExitCode, sync::Arc};

use holdfast_tcc_agent::{ServeConfig, Sidecar, SidecarConfig, Status, serve};

use holdfast_security::{Access, keep_fresh};

use crate::{
    config::{self, AgentConfig, ConfigArgs},
    health_door,
    otlp::{Traces, Who},
    reload::{self, Configured},
    shutdown, telemetry,
};

/// Runs a sidecar agent: it dials the coordinators and posts their calls to the service beside it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast agent --config config/agent.toml
  holdfast agent --service loyalty --app http://127.0.0.1:8080 --coordinator 127.0.0.1:7401 --dev-plaintext
  curl http://127.0.0.1:7410/readyz

The service answers POST /try, /confirm, /cancel, /action, /compensate: 2xx done, 409 refused, 425 working, all else unknown.
With --inquire also POST /inquire, for an action or a compensation that may have come before: 412 if it never came, else as above.")]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The service, as transactions name it (service.name)
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Where the service listens (service.app)
    #[arg(long, value_name = "URL")]
    app: Option<String>,
    /// The service answers POST /inquire as well: what became of an action or a compensation that may have come before (service.inquire)
    #[arg(long)]
    inquire: bool,
    /// gRPC address of a coordinator node; may be repeated (coordinators.addresses)
    #[arg(long = "coordinator", value_name = "ADDRESS")]
    coordinators: Vec<String>,
    /// Health and metrics (bind.http)
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
}

/// Runs until a signal.
/// # Errors
/// The configuration is mistaken, or the health door cannot be opened.
pub(crate) async fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let coordinators = Some(args.coordinators.join(",")).filter(|list| !list.is_empty());
    let inputs = args.config.inputs(vec![
        ("service.name", args.service, "--service"),
        ("service.app", args.app, "--app"),
        ("service.inquire", args.inquire.then(|| "true".to_owned()), "--inquire"),
        ("coordinators.addresses", coordinators, "--coordinator"),
        ("bind.http", args.http, "--http"),
    ]);
    let loaded = config::load::<AgentConfig>(&inputs)?;
    loaded.check_here()?;
    let config = loaded.config;
    let (warnings, shown) = (loaded.warnings, loaded.shown);
    let level = telemetry::start_logging(&config.telemetry)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let metrics = telemetry::start_metrics()?;
    let who = Who { role: "agent", instance: config.instance.clone() };
    let traces = Traces::start(&config.telemetry.endpoint, &who)?;
    let sidecar = Sidecar::new(&SidecarConfig {
        app: config.app.clone(),
        call_timeout_ms: config.call_timeout_ms,
        concurrency: config.credit as usize,
        inquires: config.inquires,
    })?;
    let status = Status::default();
    let serving = ServeConfig {
        instance: config.instance.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        zone: config.zone,
        color: config.color,
        weight: config.weight,
        credit: config.credit,
        status: status.clone(),
        credentials: config.credentials.clone(),
        ..ServeConfig::new(
            config.service.clone(),
            config.coordinators.iter().map(ToString::to_string).collect(),
        )
    };
    shutdown::until_signal(|token| async move {
        let configured = Configured::<AgentConfig>::new(inputs, shown, level, reload::of_agent);
        let set_call_timeout = sidecar.call_timeout_setter();
        configured.adjusted_by(move |said: &AgentConfig| {
            set_call_timeout(said.call_timeout_ms);
            Ok(())
        });
        configured.listen("agent", &token);
        keep_fresh(config.credentials.as_ref(), Access::empty(), &token);
        let readiness = health_door::of_agent(status);
        let (http, door) =
            health_door::open(config.http, metrics, Arc::clone(&readiness), token.clone()).await?;
        tracing::info!(
            service = config.service,
            instance = config.instance,
            app = config.app,
            %http,
            coordinators = ?config.coordinators,
            "agent starts"
        );
        let ready = tokio::spawn(health_door::log_ready(readiness, "agent"));
        let served = serve(serving, sidecar, token.clone()).await;
        ready.abort();
        token.cancel();
        door.await?;
        served.map_err(anyhow::Error::from)
    })
    .await?;
    traces.end().await;
    tracing::info!("agent stopped");
    Ok(ExitCode::SUCCESS)
}
