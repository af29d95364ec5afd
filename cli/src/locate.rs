//! `holdfast locate`: where a key lives, by the rules in force or by those in a file.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use holdfast_route::Topology;

use crate::{
    exit::{self, Usage},
    output::{self, Output},
    rules,
    tx::ClusterAddresses,
};

/// Says in which slot, on which shard and at which data source a key lives.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast locate account A-17
  holdfast locate --rules config/shards.toml account A-17
  holdfast locate --rules config/shards.toml account A-17 B-42 --output json
  holdfast locate --router 127.0.0.1:6543 --user app --dbname bank phone +49-30-1234")]
pub(crate) struct LocateArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    /// Rules of a file, instead of those in force in the cluster
    #[arg(long, value_name = "FILE", env = "HOLDFAST_RULES")]
    rules: Option<PathBuf>,
    /// Ask this router, which finds owners by lookups too; HOST:PORT
    #[arg(long, value_name = "ADDRESS", conflicts_with = "rules")]
    router: Option<String>,
    /// Who asks the router; its password is taken from PGPASSWORD
    #[arg(long, requires = "router", default_value = "holdfast")]
    user: String,
    /// The database that the router is asked for
    #[arg(long, requires = "router", default_value = "bank")]
    dbname: String,
    /// The data group, or a lookup of the router's rules
    group: String,
    /// One or more keys
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
}

/// Has a router say where keys, or the owners of values, live.
async fn by_router(args: &LocateArgs, router: &str, output: Output) -> anyhow::Result<ExitCode> {
    let (host, port) = router
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .ok_or_else(|| Usage(format!("--router {router:?} is not HOST:PORT")))?;
    let mut config = tokio_postgres::Config::new();
    config.host(host).port(port).user(&args.user).dbname(&args.dbname);
    if let Some(password) = std::env::var_os("PGPASSWORD") {
        config.password(password.to_string_lossy().as_bytes());
    }
    let connected = crate::demo::postgres::connect(&config).await;
    let client = connected.with_context(|| format!("connecting to the router at {router}"))?;
    let quoted = |text: &str| text.replace('\'', "''");
    let mut located = Vec::with_capacity(args.keys.len());
    for key in &args.keys {
        let sql = format!("SELECT holdfast.locate('{}', '{}')", quoted(&args.group), quoted(key));
        let row = match client.query(&sql, &[]).await {
            Ok(rows) => rows.into_iter().next(),
            Err(error) => {
                let told = error.as_db_error().map(tokio_postgres::error::DbError::message);
                exit::tell(&told.map_or_else(|| error.to_string(), str::to_owned));
                return Ok(ExitCode::from(exit::REFUSED));
            }
        };
        let Some(row) = row else {
            exit::tell(&format!("{} {key:?} is nobody's", args.group));
            return Ok(ExitCode::from(exit::REFUSED));
        };
        let columns = ["key", "group", "slot", "shard", "source", "epoch"];
        let values = columns.map(|column| row.get::<_, String>(column));
        located.push((key, columns, values));
    }
    match output {
        Output::Table => {
            let rows = located
                .into_iter()
                .map(|(asked, _, values)| std::iter::once(asked.clone()).chain(values).collect());
            let head = ["asked", "key", "group", "slot", "shard", "source", "epoch"];
            output::print(&output::table(&head, rows))?;
        }
        Output::Json => {
            let list = located.into_iter().map(|(asked, columns, values)| {
                let mut row = serde_json::Map::new();
                row.insert("asked".to_owned(), asked.as_str().into());
                for (column, value) in columns.into_iter().zip(values) {
                    let number =
                        value.parse::<u64>().ok().filter(|_| matches!(column, "slot" | "epoch"));
                    let value = number.map_or_else(|| value.into(), serde_json::Value::from);
                    row.insert(column.to_owned(), value);
                }
                serde_json::Value::Object(row)
            });
            output::print_json(&serde_json::Value::from(list.collect::<Vec<_>>()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a row for each key.
/// # Errors
/// The rules are mistaken, or a key has no place: refused, for it would have none the next time either.
pub(crate) async fn run(args: LocateArgs, output: Output) -> anyhow::Result<ExitCode> {
    if let Some(router) = &args.router {
        return by_router(&args, router, output).await;
    }
    let topology = match &args.rules {
        Some(file) => rules::load(file)?.map_err(|mistakes| Usage(mistakes.to_string()))?,
        None => {
            let known = args.cluster.client()?.rules(0).await?;
            let read = Topology::parse(&known.text);
            let read = read
                .map_err(|_| Usage("the rules in force are newer than this program".to_owned()))?;
            read.at_epoch(known.epoch)
        }
    };
    let mut located = Vec::with_capacity(args.keys.len());
    for key in &args.keys {
        match topology.locate(&args.group, key) {
            Ok(place) => located.push((key, place)),
            Err(refused) => {
                exit::tell(&refused);
                return Ok(ExitCode::from(exit::REFUSED));
            }
        }
    }
    match output {
        Output::Table => {
            let rows = located.iter().map(|(key, place)| {
                vec![
                    (*key).clone(),
                    place.slot.number().to_string(),
                    place.shard.to_string(),
                    place.source.to_string(),
                    place.address.to_string(),
                    place.epoch.to_string(),
                ]
            });
            let head = ["key", "slot", "shard", "source", "address", "epoch"];
            output::print(&output::table(&head, rows))?;
        }
        Output::Json => {
            let mut list = Vec::with_capacity(located.len());
            for (key, place) in &located {
                let mut row = serde_json::to_value(place).context("a place is plain data")?;
                row["key"] = serde_json::Value::from(key.as_str());
                list.push(row);
            }
            output::print_json(&serde_json::Value::from(list))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
