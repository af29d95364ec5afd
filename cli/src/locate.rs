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
  holdfast locate --rules config/shards.toml account A-17 B-42 --output json")]
pub(crate) struct LocateArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    /// Rules of a file, instead of those in force in the cluster
    #[arg(long, value_name = "FILE", env = "HOLDFAST_RULES")]
    rules: Option<PathBuf>,
    /// The data group
    group: String,
    /// One or more keys
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
}

/// Prints a row for each key.
/// # Errors
/// The rules are mistaken, or a key has no place: refused, for it would have none the next time either.
pub(crate) async fn run(args: LocateArgs, output: Output) -> anyhow::Result<ExitCode> {
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
