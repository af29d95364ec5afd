//! `holdfast config`: every mistake of a configuration at once, and every value with who said it.

use std::{path::PathBuf, process::ExitCode};

use crate::{
    config::{
        self, AgentConfig, BankConfig, ConfigArgs, CoordinatorConfig, Inputs, Loaded, Mistake,
        Report, RouterRole, Shown,
    },
    config_reload::{self, ReloadArgs},
    exit,
    output::{self, Output},
    rules,
};

/// Checks and shows configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast config check config/coordinator.toml --role coordinator
  holdfast config check config/shards.toml --role shards
  holdfast config show config/agent.toml --role agent --origin
  holdfast config schema --role coordinator
  holdfast config reload --dry-run --reason \"longer timeouts\"")]
pub(crate) struct ConfigCmdArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Tell every mistake of a configuration file
    #[command(after_help = "\
Examples:
  holdfast config check config/coordinator.toml --role coordinator
  holdfast config check config/bank.toml --role bank --set bank.shard=shard-2 --here")]
    Check {
        #[command(flatten)]
        which: Which,
        /// Also ask this machine: is the data directory writable, are the addresses free
        #[arg(long)]
        here: bool,
    },
    /// Show every value as it counts after file, environment and flags
    #[command(after_help = "\
Examples:
  holdfast config show config/coordinator.toml --role coordinator
  holdfast config show config/agent.toml --role agent --origin --output json")]
    Show {
        #[command(flatten)]
        which: Which,
        /// Say who set each value: file and line, environment variable, flag, or default
        #[arg(long)]
        origin: bool,
    },
    /// Have running processes read their configuration again, and show the difference
    #[command(after_help = "\
Examples:
  holdfast config reload --dry-run --reason \"longer timeouts\"
  holdfast config reload --coordinator 10.0.0.1:7401,10.0.0.2:7401,10.0.0.3:7401 --reason \"longer timeouts\"
  holdfast config reload --role router --dry-run --reason \"Anna has left\"
  holdfast config reload --role bank --pid 4711 --reason \"smaller batches\"

Each coordinator that is named reads the file that it was started with, over its environment and flags. Routers, banks and agents are asked on
their own machine, with --role: as the user that they run as, or as root. SIGHUP does the same; then their logs tell the difference.")]
    Reload(ReloadArgs),
    /// Print the JSON Schema of a role's file, for editors
    #[command(after_help = "\
Examples:
  holdfast config schema --role coordinator
  holdfast config schema --role bank > bank.schema.json

The same documents lie in docs/reference/schema. Rules go by more than their shape: holdfast config check --role shards.")]
    Schema {
        /// Whose configuration it is
        #[arg(long, value_enum)]
        role: FileRole,
    },
}

/// The roles whose files have a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum FileRole {
    Coordinator,
    Agent,
    Bank,
    Router,
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The configuration file
    file: PathBuf,
    /// Whose configuration it is
    #[arg(long, value_enum)]
    role: RoleName,
    /// Set one key, over file and environment; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = config::parse_set)]
    set: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum RoleName {
    Coordinator,
    Agent,
    Bank,
    Router,
    Shards,
}

/// Checks or shows.
/// # Errors
/// The report of every mistake.
pub(crate) async fn run(args: &ConfigCmdArgs, output: Output) -> anyhow::Result<ExitCode> {
    let (which, here) = match &args.command {
        ConfigCommand::Check { which, here } => (which, *here),
        ConfigCommand::Show { which, .. } => (which, false),
        ConfigCommand::Schema { role } => return schema(*role),
        ConfigCommand::Reload(args) => return config_reload::run(args, output).await,
    };
    if which.role == RoleName::Shards {
        return rules::check(&which.file, output);
    }
    let (shown, warnings) = match read(which, here) {
        Ok(read) => read,
        Err(report) if output == Output::Json => {
            output::print_json(&report.to_json())?;
            return Ok(exit::of(&report.into()));
        }
        Err(report) => return Err(report.into()),
    };
    for warning in &warnings {
        exit::tell(&format!("warning: {warning}"));
    }
    match &args.command {
        ConfigCommand::Check { .. } => checked(which, &shown, &warnings, output)?,
        ConfigCommand::Show { origin, .. } => show(&shown, *origin, output)?,
        ConfigCommand::Schema { .. } | ConfigCommand::Reload(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn schema(role: FileRole) -> anyhow::Result<ExitCode> {
    let name = match role {
        FileRole::Coordinator => "coordinator",
        FileRole::Agent => "agent",
        FileRole::Bank => "bank",
        FileRole::Router => "router",
    };
    output::print_json(&config::schema::of(name).expect("every role has one"))?;
    Ok(ExitCode::SUCCESS)
}

fn read(which: &Which, here: bool) -> Result<(Vec<Shown>, Vec<Mistake>), Report> {
    let flags = ConfigArgs {
        config: Some(which.file.clone()),
        set: which.set.clone(),
        dev_plaintext: false,
    };
    let inputs = flags.inputs(Vec::new());
    match which.role {
        RoleName::Coordinator => role::<CoordinatorConfig>(&inputs, here),
        RoleName::Agent => role::<AgentConfig>(&inputs, here),
        RoleName::Router => role::<RouterRole>(&inputs, here),
        RoleName::Bank | RoleName::Shards => role::<BankConfig>(&inputs, here),
    }
}

fn role<T: config::Role>(
    inputs: &Inputs,
    here: bool,
) -> Result<(Vec<Shown>, Vec<Mistake>), Report> {
    let loaded: Loaded<T> = config::load(inputs)?;
    if here {
        loaded.check_here()?;
    }
    Ok((loaded.shown, loaded.warnings))
}

fn checked(
    which: &Which,
    shown: &[Shown],
    warnings: &[Mistake],
    output: Output,
) -> anyhow::Result<()> {
    let file = which.file.display();
    match output {
        Output::Table => output::print(&format!("{file}: no mistake in {} values.", shown.len())),
        Output::Json => {
            let warnings =
                warnings.iter().map(|w| serde_json::json!({ "code": w.code, "text": w.text }));
            output::print_json(&serde_json::json!({
                "subject": file.to_string(),
                "mistakes": [],
                "warnings": warnings.collect::<Vec<_>>(),
            }))
        }
    }
}

fn show(shown: &[Shown], origin: bool, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Table if origin => {
            let rows = shown.iter().map(|value| {
                vec![value.key.clone(), value.value.clone(), value.origin.to_string()]
            });
            output::print(&output::table(&["key", "value", "origin"], rows))
        }
        Output::Table => {
            let rows = shown.iter().map(|value| vec![value.key.clone(), value.value.clone()]);
            output::print(&output::table(&["key", "value"], rows))
        }
        Output::Json => {
            let list = shown.iter().map(|value| {
                serde_json::json!({ "key": value.key, "value": value.value, "origin": value.origin.to_string() })
            });
            output::print_json(&list.collect())
        }
    }
}
