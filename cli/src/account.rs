//! `holdfast account`: account numbers that carry the slot of their customer, and whether a number is one.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use holdfast_route::{
    AccountNumbers, Algorithm, GroupName, KeyColumn, KeyPart, Placement, Slot, Topology,
};
use rand::Rng as _;
use serde_json::json;

use crate::{
    exit::{self, Usage},
    output::{self, Output},
    rules,
};

/// Numbers of one call; more are more calls.
const COUNT_MAX: u32 = 10_000;

/// Makes and checks account numbers whose digits say where their rows lie.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast account new --rules examples/genes.toml --key C-17
  holdfast account check --rules examples/genes.toml 0002580000000176")]
pub(crate) struct AccountArgs {
    #[command(subcommand)]
    command: AccountCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AccountCommand {
    /// Make numbers that reach the slot of a key, such as a customer's number
    #[command(after_help = "\
Examples:
  holdfast account new --rules examples/genes.toml --key C-17
  holdfast account new --rules examples/genes.toml --key C-17 --serial 42
  holdfast account new --rules examples/genes.toml --slot 643 --length 12 --count 5 --output json

Without --serial, serial numbers are drawn by chance: keep the column unique, and ask again for one that is taken.")]
    New {
        #[command(flatten)]
        shape: Shape,
        /// The key of the group to which the account belongs
        #[arg(long, required_unless_present = "slot", conflicts_with = "slot")]
        key: Option<String>,
        /// The slot itself
        #[arg(long)]
        slot: Option<u16>,
        /// The first serial number; further ones count up
        #[arg(long)]
        serial: Option<u64>,
        /// How many
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(COUNT_MAX)))]
        count: u32,
    },
    /// Say whether numbers are right, and where their rows lie
    #[command(
        after_help = "Examples:\n  holdfast account check --rules examples/genes.toml 0002580000000176"
    )]
    Check {
        #[command(flatten)]
        shape: Shape,
        /// One or more numbers
        #[arg(required = true, value_name = "NUMBER")]
        numbers: Vec<String>,
    },
}

/// What the numbers of a column look like.
#[derive(Debug, clap::Args)]
struct Shape {
    /// The shard rules
    #[arg(long, value_name = "FILE", env = "HOLDFAST_RULES")]
    rules: PathBuf,
    /// The column with the numbers, as table.column; the only gene of the rules if left out
    #[arg(long, value_name = "TABLE.COLUMN")]
    column: Option<String>,
    /// Digits of a number, the check digit included
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(6..=i64::from(holdfast_route::ACCOUNT_NUMBER_LENGTH_MAX)))]
    length: u8,
    /// Digits with which every number begins
    #[arg(long, default_value = "")]
    prefix: String,
}

/// Numbers by the rules.
struct Made {
    topology: Topology,
    group: GroupName,
    numbers: AccountNumbers,
}

/// Runs the chosen subcommand.
/// # Errors
/// The rules are mistaken or have no such column; standard output cannot be written.
pub(crate) fn run(args: &AccountArgs, output: Output) -> anyhow::Result<ExitCode> {
    match &args.command {
        AccountCommand::New { shape, key, slot, serial, count } => {
            new(&shape.read()?, (key.as_deref(), *slot), *serial, *count, output)
        }
        AccountCommand::Check { shape, numbers } => check(&shape.read()?, numbers, output),
    }
}

impl Shape {
    fn read(&self) -> anyhow::Result<Made> {
        let topology = rules::load(&self.rules)?.map_err(|mistakes| Usage(mistakes.to_string()))?;
        let (group, gene) = gene(&topology, self.column.as_deref())?;
        let numbers = AccountNumbers::new(self.length, gene, &self.prefix);
        let numbers = numbers.map_err(|bad| Usage(bad.to_string()))?;
        Ok(Made { topology, group, numbers })
    }
}

/// The place of the slot in the numbers of a column, and the column's group.
fn gene(topology: &Topology, wanted: Option<&str>) -> anyhow::Result<(GroupName, KeyPart)> {
    let mut found: Vec<(String, GroupName, KeyPart)> = Vec::new();
    for (table, placement) in topology.tables() {
        let Placement::Sharded(sharded) = placement else { continue };
        for KeyColumn { name, function, .. } in &sharded.columns {
            if let Algorithm::Digits(part) = function {
                found.push((format!("{table}.{name}"), sharded.group.clone(), *part));
            }
        }
    }
    if let Some(wanted) = wanted {
        found.retain(|(name, _, _)| name == wanted);
    }
    found.dedup_by(|one, other| (&one.1, one.2) == (&other.1, other.2));
    match found.as_slice() {
        [(_, group, part)] => Ok((group.clone(), *part)),
        [] => Err(Usage(format!(
            "HF3023 the rules have no column {} with digits(a..b). Declare one in genes = {{ ... }}",
            wanted.unwrap_or("at all")
        ))
        .into()),
        several => {
            let names: Vec<&str> = several.iter().map(|(name, _, _)| name.as_str()).collect();
            let names = names.join(", ");
            Err(Usage(format!("HF3023 several columns carry slots. Choose by --column: {names}")).into())
        }
    }
}

fn new(
    made: &Made,
    (key, slot): (Option<&str>, Option<u16>),
    serial: Option<u64>,
    count: u32,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let slot = match (key, slot.map(Slot::new)) {
        (_, Some(Some(slot))) => slot,
        (_, Some(None)) => return Err(Usage("--slot is 0 to 1023".to_owned()).into()),
        (key, None) => {
            let key = key.context("clap asks for a key or a slot")?;
            match made.topology.locate(made.group.as_str(), key) {
                Ok(located) => located.slot,
                Err(refused) => return refuse(&refused),
            }
        }
    };
    let mut list = Vec::with_capacity(usize::try_from(count)?);
    for n in 0..u64::from(count) {
        let serial = match serial {
            Some(first) => first.saturating_add(n),
            None => rand::rng().random_range(0..=made.numbers.serial_max()),
        };
        match made.numbers.number(slot, serial) {
            Ok(number) => list.push((number, slot)),
            Err(bad) => return refuse(&bad),
        }
    }
    show(made, &list, output)
}

fn check(made: &Made, numbers: &[String], output: Output) -> anyhow::Result<ExitCode> {
    let mut right = Vec::with_capacity(numbers.len());
    for number in numbers {
        match made.numbers.check(number) {
            Ok(slot) => right.push((number.clone(), slot)),
            Err(bad) => exit::tell(&format!("{number}: {bad}")),
        }
    }
    if !right.is_empty() || matches!(output, Output::Json) {
        show(made, &right, output)?;
    }
    Ok(ExitCode::from(if right.len() == numbers.len() { 0 } else { exit::REFUSED }))
}

fn refuse(refused: &dyn std::fmt::Display) -> anyhow::Result<ExitCode> {
    exit::tell(refused);
    Ok(ExitCode::from(exit::REFUSED))
}

fn show(made: &Made, list: &[(String, Slot)], output: Output) -> anyhow::Result<ExitCode> {
    let group = made.topology.groups().get(&made.group).context("the group is in the rules")?;
    let place = |slot: Slot| {
        let shard = group.shard_of(slot);
        (shard.to_string(), made.topology.shards()[shard].source().to_string())
    };
    match output {
        Output::Table => {
            let rows = list.iter().map(|(number, slot)| {
                let (shard, source) = place(*slot);
                vec![number.clone(), slot.to_string(), shard, source]
            });
            output::print(&output::table(&["number", "slot", "shard", "source"], rows))?;
        }
        Output::Json => {
            let rows = list.iter().map(|(number, slot)| {
                let (shard, source) = place(*slot);
                json!({ "number": number, "slot": slot.number(), "shard": shard, "source": source })
            });
            output::print_json(&serde_json::Value::from(rows.collect::<Vec<_>>()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
