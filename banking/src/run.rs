//! The whole role: from a connection string to a clean stop.

use std::time::Duration;

use holdfast_tcc_agent::{
    Credentials, Database, Limits, PostgresResource, ServeConfig, Status, install, serve,
};
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::{BankError, Deposit, error::full, migrate};

/// The first pause before PostgreSQL is tried again; pauses double up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_LAST: Duration = Duration::from_secs(2);
/// For one connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a deposit module is told.
#[derive(Debug, Clone)]
pub struct BankConfig {
    /// The shard it serves; it joins as `deposit@<shard>`.
    pub shard: String,
    /// The shard's PostgreSQL.
    pub database: Database,
    /// This process; empty: host name and process id.
    pub instance: String,
    /// gRPC addresses of coordinator nodes, `host:port`; one is enough.
    pub coordinators: Vec<String>,
    /// How much at once; the last one said counts.
    pub limits: watch::Receiver<BankLimits>,
    /// Calls under way at once, on each coordinator session.
    pub credit: u32,
    /// Where to read how it is going: connected to no coordinator until the data source is ready.
    pub status: Status,
    /// Mutual TLS with the coordinators. `None`: nothing is encrypted, on loopback alone.
    pub credentials: Option<Credentials>,
}

/// How much a deposit module asks of its data source at once. Each at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankLimits {
    /// Connections, each carrying out one batch at a time.
    pub connections: usize,
    /// Branch operations in one local transaction.
    pub batch_max: usize,
}

/// Brings the data source up to this version and serves the deposit module until `shutdown`; answers what is under way, then returns.
///
/// PostgreSQL may come later, or go and come back: until it is there, calls are answered unknown and are asked again.
/// # Errors
/// What waiting cannot mend: a wrong configuration, a schema of another build, a role or database that is not there or not allowed.
pub async fn run(mut config: BankConfig, shutdown: CancellationToken) -> Result<(), BankError> {
    let Some(durable) = prepare(&config.database, &shutdown).await? else { return Ok(()) };
    let database = tuned(config.database, durable);
    let BankLimits { connections, batch_max } = *config.limits.borrow_and_update();
    let limits = Limits { connections, batch_max, ..Limits::default() };
    let resource = PostgresResource::new(database, Deposit, &limits);
    let mut agent = ServeConfig::new(format!("deposit@{}", config.shard), config.coordinators);
    agent.instance = config.instance;
    agent.version = env!("CARGO_PKG_VERSION").to_owned();
    agent.credit = config.credit;
    agent.status = config.status;
    agent.credentials = config.credentials;
    let set_batch_max = resource.batch_max_setter();
    let set_connections = resource.connections_setter();
    let follow = async {
        while config.limits.changed().await.is_ok() {
            let BankLimits { connections, batch_max } = *config.limits.borrow_and_update();
            set_batch_max(batch_max);
            set_connections(connections);
        }
        // Nobody is left who could say another.
        std::future::pending().await
    };
    tokio::select! {
        served = serve(agent, resource, shutdown) => Ok(served?),
        () = follow => unreachable!("it never ends"),
    }
}

/// The connection string with what every connection of this role needs, behind the options that were given.
fn tuned(mut database: Database, durable: bool) -> Database {
    let mut options = database.config().get_options().unwrap_or_default().to_owned();
    // Every statement here looks rows up by their keys. A plan made while a table was empty, and kept, would read the whole table
    // for each key once it has grown.
    for method in ["seqscan", "hashjoin", "mergejoin"] {
        options.push_str(&format!(" -c enable_{method}=off"));
    }
    if !durable {
        // An answer of ours promises that what was done survives.
        options.push_str(" -c synchronous_commit=on");
    }
    database.config_mut().options(options.trim_start());
    database
}

/// Waits for PostgreSQL, then installs what is missing. Says whether its commits are durable by themselves; `None` if `shutdown`
/// came first.
async fn prepare(
    database: &Database,
    shutdown: &CancellationToken,
) -> Result<Option<bool>, BankError> {
    let mut pause = PAUSE_FIRST;
    loop {
        let prepared = tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            prepared = prepare_once(database) => prepared,
        };
        match prepared {
            Ok(durable) => return Ok(Some(durable)),
            Err(BankError::Database(error)) if may_pass(&error) => {
                let error = full(&error);
                tracing::warn!(error, "PostgreSQL is not ready; trying again");
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE_LAST);
    }
}

async fn prepare_once(database: &Database) -> Result<bool, BankError> {
    let mut database = database.clone();
    database.config_mut().connect_timeout(CONNECT_TIMEOUT);
    // What goes wrong on the connection is told to the client.
    let (mut client, connection) = database.connect().await?;
    migrate(&mut client).await?;
    install(&client).await?;
    let durable = is_durable(&client).await?;
    drop(client);
    let _ended = connection.await;
    Ok(durable)
}

async fn is_durable(client: &Client) -> Result<bool, BankError> {
    let row = client
        .query_one(
            "SELECT current_setting('fsync'), current_setting('full_page_writes'),
                    current_setting('synchronous_commit')",
            &[],
        )
        .await?;
    for (column, setting) in ["fsync", "full_page_writes"].into_iter().enumerate() {
        if row.get::<_, &str>(column) != "on" {
            tracing::error!(
                setting,
                "is off in this PostgreSQL: a crash can lose or spoil money. Turn it on"
            );
        }
    }
    Ok(row.get::<_, &str>(2) != "off")
}

/// Whether waiting can mend it: no connection, or a server that is starting, stopping or full. What PostgreSQL says about the role, the
/// database or the schema stays true.
fn may_pass(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        None => true,
        Some(state) => {
            !["28", "3D", "3F", "42"].iter().any(|class| state.code().starts_with(class))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_were_given_are_kept() {
        let given: tokio_postgres::Config = "host=h options='-c work_mem=8MB'".parse().unwrap();
        let options = tuned(given.into(), false).config().get_options().unwrap().to_owned();
        assert!(options.starts_with("-c work_mem=8MB -c enable_seqscan=off"), "{options}");
        assert!(options.ends_with("-c synchronous_commit=on"), "{options}");
        let tuned = tuned(tokio_postgres::Config::new().into(), true);
        let options = tuned.config().get_options().unwrap().to_owned();
        assert_eq!(options, "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off");
    }
}
