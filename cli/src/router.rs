//! `holdfast router`: PostgreSQL clients in, each statement to its shards.

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use holdfast_security::{Access, keep_fresh};
use holdfast_shard_router::{
    Router, RouterConfig,
    config::{Endpoint, Live, SourceConfig},
    participant,
};
use holdfast_tcc_agent::{Database, ServeConfig, XaResource, serve};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, ConfigArgs, RouterRole},
    health_door,
    reload::{self, Configured},
    shutdown, telemetry,
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
    /// The rules file; with coordinators it counts only until rules are applied to them (router.rules)
    #[arg(long, value_name = "FILE")]
    rules: Option<String>,
}

/// Runs until a signal.
/// # Errors
/// The configuration or the rules are mistaken, or a door cannot be opened.
pub(crate) async fn run(args: RouterArgs) -> anyhow::Result<ExitCode> {
    let inputs = args.config.inputs(vec![
        ("bind.postgres", args.postgres, "--postgres"),
        ("bind.http", args.http, "--http"),
        ("router.rules", args.rules, "--rules"),
    ]);
    let loaded = config::load::<RouterRole>(&inputs)?;
    loaded.check_here()?;
    let shown = loaded.shown;
    let RouterRole { router, http, telemetry } = loaded.config;
    let level = telemetry::start_logging(&telemetry)?;
    let metrics = telemetry::start_metrics()?;
    shutdown::until_signal(|token| async move {
        let configured = Configured::<RouterRole>::new(inputs, shown, level, reload::of_router);
        configured.listen("router", &token);
        let credentials = router.coordinator.as_ref().and_then(|known| known.credentials.as_ref());
        keep_fresh(credentials, Access::empty(), &token);
        if let Some(tls) = &router.tls {
            tokio::spawn(tls.clone().keep_fresh(token.clone()));
        }
        let sources = router.sources.len();
        let workers = router.workers;
        let ends = second_phases(&router, &token);
        // Open before there are rules, so that one can see what is waited for.
        let started = Arc::new(Started::new());
        let readiness = readiness(&started);
        let (http, door) =
            health_door::open(http, metrics, Arc::clone(&readiness), token.clone()).await?;
        let router = tokio::select! {
            router = Router::start(router) => router?,
            () = token.cancelled() => return Ok(()),
        };
        let adjust = router.adjuster();
        configured.adjusted_by(move |said: &RouterRole| {
            adjust(Live::of(&said.router));
            Ok(())
        });
        let _first = started.set(Box::new(router.readiness()));
        tracing::info!(postgres = %router.address(), %http, sources, workers, "router starts");
        let ready = tokio::spawn(health_door::log_ready(readiness, "router"));
        let served = router.serve(token.clone()).await;
        ready.abort();
        token.cancel();
        for end in ends {
            let _ended = end.await;
        }
        door.await?;
        served.map_err(anyhow::Error::from)
    })
    .await?;
    tracing::info!("router stopped");
    Ok(ExitCode::SUCCESS)
}

/// What the router says of itself, as soon as it has its rules.
type Started = OnceLock<Box<dyn Fn() -> Result<(), String> + Send + Sync>>;

fn readiness(started: &Arc<Started>) -> health_door::Readiness {
    let started = Arc::clone(started);
    Arc::new(move || {
        match started.get() {
        Some(of_router) => of_router(),
        None => Err("waiting for the shard rules; check [coordinators] addresses, and that rules were applied".to_owned()),
    }
    })
}

/// At every source that can be logged in to, this router also ends what the coordinator asks for: what another router has prepared and did
/// not live to commit.
fn second_phases(
    router: &RouterConfig,
    token: &CancellationToken,
) -> Vec<tokio::task::JoinHandle<()>> {
    let Some(coordinator) = &router.coordinator else { return Vec::new() };
    let served = router.sources.iter().filter_map(|source| {
        let database = database(source)?;
        let resource = XaResource::new(database, &*source.name);
        let config = ServeConfig {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            credentials: coordinator.credentials.clone(),
            ..ServeConfig::new(participant(&source.name), coordinator.addresses.clone())
        };
        let (token, name) = (token.clone(), source.name.to_string());
        Some(tokio::spawn(async move {
            if let Err(error) = serve(config, resource, token).await {
                tracing::error!(source = name, %error, "no second phase is carried out for others");
            }
        }))
    });
    served.collect()
}

/// The primary of a source, as the router itself logs in there; `None` if it has no account of its own.
pub(crate) fn database(source: &SourceConfig) -> Option<Database> {
    let database = Database::new(account(source)?, source.tls.clone());
    Some(database.permit_weak_login(source.weak_authentication))
}

/// How to connect to the primary of a source; `None` if it has no account of its own. Where there are several hosts, the one that takes
/// writes is looked for.
fn account(source: &SourceConfig) -> Option<tokio_postgres::Config> {
    let mut config = tokio_postgres::Config::new();
    config.user(source.user.as_ref()?).dbname(source.database.as_ref()?);
    if let Some(password) = &source.password {
        config.password(password);
    }
    for address in &source.addresses {
        match address {
            Endpoint::Tcp(address) => {
                let (host, port) = address.rsplit_once(':')?;
                config.host(host.trim_start_matches('[').trim_end_matches(']'));
                config.port(port.parse().ok()?);
            }
            Endpoint::Unix(path) => {
                let file = path.file_name()?.to_str()?;
                config.host_path(path.parent()?);
                config.port(file.strip_prefix(".s.PGSQL.")?.parse().ok()?);
            }
        }
    }
    if source.addresses.len() > 1 {
        config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    }
    Some(config)
}

/// A source that takes connections and says nothing, as long as its listener lives.
#[cfg(test)]
pub(crate) fn silent_source() -> (std::net::TcpListener, SourceConfig) {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("it has one").to_string();
    let config = SourceConfig {
        name: "pg-1".into(),
        addresses: vec![Endpoint::parse(&address)],
        database: Some("bank".to_owned()),
        user: Some("holdfast".to_owned()),
        password: None,
        weak_authentication: false,
        tls: None,
    };
    (silent, config)
}
