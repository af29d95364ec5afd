//! `holdfast outbox`: messages that a service writes in its own local transaction, and the relay that publishes them.

use std::{net::SocketAddr, process::ExitCode, sync::Arc};

use anyhow::Context;
use holdfast_tcc_agent::outbox::{
    Blocked, OUTBOX_SQL, Relay, RelayState, Routes, Standing, install_outbox, standing,
};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    config::{Telemetry, TelemetryFormat},
    database::DatabaseArgs,
    exit::Usage,
    health_door::{self, Readiness},
    output::{self, Output},
    shutdown, telemetry,
    tx::ClusterAddresses,
};

/// Installs an outbox, publishes it, and shows how it stands.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  HOLDFAST_DATABASE='host=127.0.0.1 user=shop dbname=shop' holdfast outbox install
  holdfast outbox relay --database 'host=127.0.0.1 user=shop dbname=shop' --route points=loyalty
  holdfast outbox status --output json

A service publishes in its own local transaction:
  SELECT holdfast.publish('points', 'customer-7', 'points.earned.v1', '{\"points\": 12}')")]
pub(crate) struct OutboxArgs {
    #[command(subcommand)]
    command: OutboxCommand,
}

#[derive(Debug, clap::Subcommand)]
enum OutboxCommand {
    /// Install table holdfast.outbox and function holdfast.publish; does nothing where they are up to date
    #[command(after_help = "\
Examples:
  HOLDFAST_DATABASE='host=127.0.0.1 user=shop dbname=shop' holdfast outbox install")]
    Install(DatabaseArgs),
    /// Print the SQL, for psql and for migration tools
    #[command(after_help = "Examples:\n  holdfast outbox sql > 0008_outbox.sql")]
    Sql,
    /// Publish the messages of one database; a second relay of the same database stands by
    #[command(after_help = "\
Examples:
  holdfast outbox relay --database 'host=127.0.0.1 user=shop dbname=shop' --route points=loyalty,mail=postman
  curl http://127.0.0.1:7411/readyz")]
    Relay(RelayArgs),
    /// Show what waits, how long, and which keys are held up by what
    #[command(after_help = "\
Examples:
  holdfast outbox status --database 'host=127.0.0.1 user=shop dbname=shop'
  holdfast outbox status --output json")]
    Status(DatabaseArgs),
}

#[derive(Debug, clap::Args)]
struct RelayArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Which participant takes the messages of a topic; may be repeated
    #[arg(
        long = "route",
        value_name = "TOPIC=PARTICIPANT",
        value_delimiter = ',',
        required = true
    )]
    routes: Vec<String>,
    /// Health and metrics
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7411")]
    http: SocketAddr,
    #[command(flatten)]
    cluster: ClusterAddresses,
}

/// Carries out one subcommand.
/// # Errors
/// The command line is mistaken, the database cannot be reached or has no outbox, or the health door cannot be opened.
pub(crate) async fn run(args: OutboxArgs, output: Output) -> anyhow::Result<ExitCode> {
    match args.command {
        OutboxCommand::Sql => output::print(OUTBOX_SQL)?,
        OutboxCommand::Install(database) => install(&database).await?,
        OutboxCommand::Relay(args) => relay(args).await?,
        OutboxCommand::Status(database) => {
            let (client, shown) = database.connect().await?;
            let standing = standing(&client)
                .await
                .with_context(|| format!("HF4124 {shown}: there is no outbox that this user may read. Install it with `holdfast outbox install`"))?;
            show(&standing, output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn install(database: &DatabaseArgs) -> anyhow::Result<()> {
    let (client, shown) = database.connect().await?;
    install_outbox(&client).await.with_context(|| {
        format!("HF1024 {shown}: nothing was installed. The user must own schema holdfast, or may create it in this database")
    })?;
    output::print(&format!("The outbox is installed: {shown}"))
}

async fn relay(args: RelayArgs) -> anyhow::Result<()> {
    let (database, shown) = args.database.read()?;
    let routes = Routes::parse(args.routes.iter().map(String::as_str))
        .map_err(|bad| Usage(bad.to_string()))?;
    let logs = Telemetry {
        format: TelemetryFormat::Text,
        level: "info".to_owned(),
        endpoint: String::new(),
    };
    telemetry::start_logging(&logs)?;
    let metrics = telemetry::start_metrics()?;
    let client = args.cluster.client()?;
    let topics: Vec<String> = routes.topics().map(str::to_owned).collect();
    let relay = Relay::new(database, client, routes);
    shutdown::until_signal(|token| async move {
        let readiness = ready_when_leading(relay.state());
        let (http, door) = health_door::open(args.http, metrics, readiness, token.clone()).await?;
        tracing::info!(database = shown, ?topics, %http, "relay starts");
        let ended = relay.run(token.clone()).await;
        token.cancel();
        door.await?;
        ended.map_err(anyhow::Error::from)
    })
    .await?;
    tracing::info!("relay stopped");
    Ok(())
}

fn ready_when_leading(state: watch::Receiver<RelayState>) -> Readiness {
    Arc::new(move || match *state.borrow() {
        RelayState::Leading => Ok(()),
        RelayState::StandingBy => {
            Err("standing by; another relay publishes this outbox".to_owned())
        }
        RelayState::Connecting => Err("no session to the database".to_owned()),
    })
}

fn show(standing: &Standing, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        let blocked = |blocked: &Blocked| {
            json!({
                "topic": blocked.lane.topic,
                "key": blocked.lane.key,
                "id": blocked.id,
                "gid": blocked.gid,
                "why": blocked.why,
            })
        };
        return output::print_json(&json!({
            "pending": standing.pending,
            "oldest_age_ms": standing.oldest_age_ms,
            "relayed": standing.relayed,
            "blocked": standing.blocked.iter().map(blocked).collect::<Vec<_>>(),
        }));
    }
    let age = standing.oldest_age_ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
    let relayed = if standing.relayed { "yes" } else { "no: start `holdfast outbox relay`" };
    let blocked = standing.blocked.len();
    let mut text = format!(
        "pending  {}\noldest   {age}\nrelayed  {relayed}\nblocked  {blocked}",
        standing.pending
    );
    if blocked > 0 {
        let rows = standing.blocked.iter().map(|blocked| {
            let lane = &blocked.lane;
            vec![lane.topic.clone(), lane.key.clone(), blocked.gid.clone(), blocked.why.clone()]
        });
        text.push_str(&format!("\n\n{}", output::table(&["topic", "key", "gid", "why"], rows)));
    }
    output::print(&text)
}
