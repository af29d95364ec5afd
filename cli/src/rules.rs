//! `holdfast rules`: whether shard rules are right, what they say, and which are in force.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use holdfast_route::{Placement, RuleMistakes, Topology};

use crate::{
    config,
    exit::{self, Usage},
    output::{self, Output},
    rules_cluster::{self, Say},
    rules_move::{self, MoveArgs},
    rules_plan,
    rules_sources::{self, SourcesArgs},
    tx::ClusterAddresses,
};

/// Checks shard rules, shows what they say, and puts them into force.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast rules check config/shards.toml
  holdfast rules apply config/shards.toml --reason \"the first rules\" --dry-run
  holdfast rules show")]
pub(crate) struct RulesArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    #[command(subcommand)]
    command: RulesCommand,
}

#[derive(Debug, clap::Subcommand)]
enum RulesCommand {
    /// Tell every mistake of a rules file, or what it says if there is none
    #[command(
        after_help = "Examples:\n  holdfast rules check config/shards.toml\n  holdfast rules check config/shards.toml --sources config/router.toml"
    )]
    Check {
        /// The rules, TOML
        file: PathBuf,
        #[command(flatten)]
        sources: SourcesArgs,
    },
    /// Tell what other rules would change: slots and rows that move, statements that go elsewhere, keys by source
    #[command(
        after_help = "Examples:\n  holdfast rules plan old.toml new.toml --statements day.sql --group customer --keys sample.txt\n  holdfast rules plan old.toml new.toml --sources config/router.toml --rows-max 1000000"
    )]
    Plan {
        /// The rules in force, TOML
        old: PathBuf,
        /// The rules to come, TOML
        new: PathBuf,
        /// Captured statements, each ended by a semicolon
        #[arg(long, value_name = "FILE")]
        statements: Option<PathBuf>,
        /// The group of the keys
        #[arg(long, requires = "keys")]
        group: Option<String>,
        /// Keys, a line each, to see how evenly they lie
        #[arg(long, value_name = "FILE", requires = "group")]
        keys: Option<PathBuf>,
        #[command(flatten)]
        sources: SourcesArgs,
    },
    /// Put rules into force: kept in the coordinator's log, followed by routers
    #[command(
        after_help = "Examples:\n  holdfast rules apply config/shards.toml --reason \"shard-2 is full\" --dry-run\n  holdfast rules apply config/shards.toml --reason \"shard-2 is full\" --expected-epoch 6"
    )]
    Apply {
        /// The rules, TOML
        file: PathBuf,
        #[command(flatten)]
        say: Say,
    },
    /// Put the rules of a former epoch into force again, as a new epoch
    #[command(
        after_help = "Examples:\n  holdfast rules revert --reason \"more scatter than planned\" --dry-run\n  holdfast rules revert --to 6 --reason \"more scatter than planned\""
    )]
    Revert {
        /// The epoch; without it, the one before
        #[arg(long, value_name = "EPOCH")]
        to: Option<u64>,
        #[command(flatten)]
        say: Say,
    },
    /// Show the rules in force, or those of a former epoch
    #[command(
        after_help = "Examples:\n  holdfast rules show > shards.toml\n  holdfast rules show --epoch 6"
    )]
    Show {
        /// The epoch; 0: in force
        #[arg(long, default_value_t = 0)]
        epoch: u64,
    },
    /// Move slots to other sources, step by step, while everybody reads and writes
    #[command(
        after_help = "Examples:\n  holdfast rules move new.toml --sources config/router.toml --reason \"shard-2 is full\" --dry-run\n  holdfast rules move new.toml --sources config/router.toml --reason \"shard-2 is full\"\n  holdfast rules move old.toml --sources config/router.toml --reason \"back again\""
    )]
    Move(MoveArgs),
    /// List the versions that are kept: epoch, when, by whom, why
    #[command(after_help = "Examples:\n  holdfast rules history")]
    History,
    /// List the routers whose leases have not ended, and the rules that each goes by
    #[command(
        after_help = "Examples:\n  holdfast rules routers\n  holdfast rules routers --output json"
    )]
    Routers,
    /// Print what a DBA runs once at each source, so that lookups are kept: tables and triggers
    #[command(
        after_help = "Examples:\n  holdfast rules lookups config/shards.toml | psql 'host=127.0.0.1 port=5431 dbname=bank'"
    )]
    Lookups {
        /// The rules, TOML
        file: PathBuf,
    },
    /// Tell where statements would go
    #[command(
        after_help = "Examples:\n  holdfast rules simulate config/shards.toml --statements day.sql"
    )]
    Simulate {
        /// The rules, TOML
        file: PathBuf,
        /// Statements, each ended by a semicolon
        #[arg(long, value_name = "FILE")]
        statements: PathBuf,
    },
}

/// Carries out one command.
/// # Errors
/// A file cannot be read, or the cluster refuses or cannot be reached.
pub(crate) async fn run(args: RulesArgs, output: Output) -> anyhow::Result<ExitCode> {
    match args.command {
        RulesCommand::Apply { file, say } => {
            rules_cluster::apply(&args.cluster.client()?, &file, say, output).await
        }
        RulesCommand::Revert { to, say } => {
            rules_cluster::revert(&args.cluster.client()?, to, say, output).await
        }
        RulesCommand::Show { epoch } => {
            rules_cluster::show(&args.cluster.client()?, epoch, output).await
        }
        RulesCommand::Move(how) => rules_move::run(args.cluster.client()?, how, output).await,
        RulesCommand::History => rules_cluster::history(&args.cluster.client()?, output).await,
        RulesCommand::Routers => rules_cluster::routers(&args.cluster.client()?, output).await,
        RulesCommand::Check { file, sources } => match (load(&file)?, &sources.sources) {
            (Ok(rules), Some(router)) => {
                rules_sources::check(&file, &rules, &sources, router, output).await
            }
            (read, _) => tell(&file, read, output),
        },
        RulesCommand::Lookups { file } => {
            let topology = load(&file)?.map_err(|mistakes| Usage(mistakes.to_string()))?;
            output::print(topology.lookup_sql().trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
        RulesCommand::Plan { old, new, statements, group, keys, sources } => {
            let keys = group.as_deref().zip(keys.as_deref());
            rules_plan::plan(&old, &new, statements.as_deref(), keys, &sources, output).await
        }
        RulesCommand::Simulate { file, statements } => {
            rules_plan::simulate(&file, &statements, output)
        }
    }
}

/// Checks the rules in `file` and prints what they say, or what is wrong.
/// # Errors
/// It cannot be read.
pub(crate) fn check(file: &Path, output: Output) -> anyhow::Result<ExitCode> {
    tell(file, load(file)?, output)
}

/// Prints what the rules that were read from `file` say, or what is wrong.
fn tell(
    file: &Path,
    read: Result<Topology, RuleMistakes>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    match (read, output) {
        (Ok(topology), Output::Table) => {
            output::print(&summary(file, &topology))?;
            Ok(ExitCode::SUCCESS)
        }
        (Ok(topology), Output::Json) => {
            let groups = topology.groups().iter().map(|(name, group)| {
                serde_json::json!({
                    "group": name.to_string(),
                    "key": group.key(),
                    "type": group.key_type().name(),
                    "function": group.function().written(),
                    "scatter": group.scatter().name(),
                })
            });
            let shards = topology.shards().keys().map(ToString::to_string);
            output::print_json(&serde_json::json!({
                "file": file.display().to_string(),
                "epoch": topology.epoch(),
                "groups": groups.collect::<Vec<_>>(),
                "tables": topology.tables().len(),
                "lookups": topology.lookups().keys().map(ToString::to_string).collect::<Vec<_>>(),
                "shards": shards.collect::<Vec<_>>(),
                "sources": topology.sources().len(),
                "mistakes": [],
            }))?;
            Ok(ExitCode::SUCCESS)
        }
        (Err(mistakes), Output::Table) => {
            exit::tell(&mistakes);
            Ok(ExitCode::from(exit::USAGE))
        }
        (Err(mistakes), Output::Json) => {
            let list = mistakes.mistakes.iter().map(|mistake| {
                serde_json::json!({
                    "code": mistake.code,
                    "where": format!("{}:{}:{}", mistakes.file, mistake.line, mistake.column),
                    "line": mistake.line,
                    "column": mistake.column,
                    "text": format!("{}. {}", mistake.cause, mistake.remedy),
                })
            });
            output::print_json(&serde_json::json!({
                "file": mistakes.file,
                "mistakes": list.collect::<Vec<_>>(),
            }))?;
            Ok(ExitCode::from(exit::USAGE))
        }
    }
}

/// Reads the rules in `file`.
/// # Errors
/// Outer: the file cannot be read. Inner: all mistakes in it.
pub(crate) fn load(file: &Path) -> anyhow::Result<Result<Topology, RuleMistakes>> {
    let text = config::read_text(file).map_err(|mistake| Usage(mistake.to_string()))?;
    let file = file.display().to_string();
    Ok(Topology::parse(&text).map_err(|mistakes| RuleMistakes { file, mistakes }))
}

fn summary(file: &Path, topology: &Topology) -> String {
    let mut text = format!("{}: no mistake; epoch {}.\n\n", file.display(), topology.epoch());
    let mut rows = Vec::new();
    for (name, group) in topology.groups() {
        for (shard, kept) in topology.shards() {
            let ranges: Vec<String> =
                group.slots_of(shard).iter().map(ToString::to_string).collect();
            if ranges.is_empty() {
                continue;
            }
            let source = kept.source();
            let address = topology.sources()[source].address().to_owned();
            rows.push(vec![
                name.to_string(),
                ranges.join(" "),
                shard.to_string(),
                source.to_string(),
                address,
            ]);
        }
    }
    text.push_str(&output::table(&["group", "slots", "shard", "source", "address"], rows));
    text.push_str("\n\n");
    let tables =
        topology.tables().iter().map(|(table, place)| vec![table.to_string(), told(place)]);
    text.push_str(&output::table(&["table", "lies"], tables));
    text.push_str("\n\n");
    if !topology.lookups().is_empty() {
        let lookups = topology.lookups().iter();
        let lookups = lookups.map(|(name, lookup)| {
            let owner = format!("{} of group {}", lookup.key(), lookup.group());
            vec![name.to_string(), lookup.to_string(), owner]
        });
        text.push_str(&output::table(&["lookup", "from", "to"], lookups));
        text.push_str("\n\n");
    }
    let groups = topology.groups().iter().map(|(name, group)| {
        let (key, key_type) = (group.key().to_owned(), group.key_type().name().to_owned());
        let scatter = group.scatter().name().to_owned();
        vec![name.to_string(), key, key_type, group.function().shown(), scatter]
    });
    let head = ["group", "key", "type", "slot function", "scatter"];
    text.push_str(&output::table(&head, groups));
    text
}

/// Where a table lies, in a few words.
pub(crate) fn told(placement: &Placement) -> String {
    match placement {
        Placement::Reference => "on every source".to_owned(),
        Placement::Single(source) => format!("on {source}"),
        Placement::Sharded(sharded) => {
            let columns: Vec<String> = sharded
                .columns
                .iter()
                .map(|column| format!("{} by {}", column.name, column.function.shown()))
                .collect();
            format!("in group {}: {}", sharded.group, columns.join(", "))
        }
    }
}
