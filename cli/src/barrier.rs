//! `holdfast barrier`: the table and the function that make each operation of a branch take effect once, in a service's database.

use std::process::ExitCode;

use anyhow::Context;
use holdfast_tcc_agent::{BARRIER_SQL, install};

use crate::{
    database::DatabaseArgs,
    output::{self, Output},
};

/// Installs the barrier in a service's database, or prints its SQL.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast barrier sql | psql -d loyalty
  HOLDFAST_DATABASE='host=127.0.0.1 user=loyalty dbname=loyalty' holdfast barrier install")]
pub(crate) struct BarrierArgs {
    #[command(subcommand)]
    command: BarrierCommand,
}

#[derive(Debug, clap::Subcommand)]
enum BarrierCommand {
    /// Install schema holdfast, its table and its functions; does nothing where they are up to date
    #[command(after_help = "\
Examples:
  HOLDFAST_DATABASE='host=127.0.0.1 user=loyalty dbname=loyalty' holdfast barrier install
  holdfast barrier install --database 'host=/var/run/postgresql user=loyalty dbname=loyalty'")]
    Install {
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Print the SQL, for psql and for migration tools
    #[command(after_help = "Examples:\n  holdfast barrier sql > 0007_barrier.sql")]
    Sql,
}

/// Installs or prints.
/// # Errors
/// The connection string is mistaken, the database cannot be reached, or it refuses.
pub(crate) async fn run(args: BarrierArgs, output: Output) -> anyhow::Result<ExitCode> {
    match args.command {
        BarrierCommand::Sql => output::print(BARRIER_SQL)?,
        BarrierCommand::Install { database } => {
            let (client, shown) = database.connect().await?;
            install(&client).await.with_context(|| {
                format!("HF1024 {shown}: nothing was installed. The user must own schema holdfast, or may create it in this database")
            })?;
            match output {
                Output::Table => output::print(&format!("The barrier is installed: {shown}"))?,
                Output::Json => output::print_json(&serde_json::json!({ "installed": shown }))?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
