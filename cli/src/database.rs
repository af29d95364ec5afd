//! The flags by which a command is told a PostgreSQL database.

use anyhow::Context as _;
use holdfast_tcc_agent::Database;
use tokio_postgres::Client;

use crate::{
    config::{encryption, masked, parse_database},
    exit::Usage,
};

/// How connections are encrypted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SslArgs {
    /// How connections are encrypted: disable (within this machine only), require, verify-full
    #[arg(long, value_name = "MODE", env = "HOLDFAST_SSLMODE", value_parser = ["disable", "require", "verify-full"])]
    pub(crate) sslmode: Option<String>,
    /// With verify-full: who signed the server's certificate, which names the host (PEM)
    #[arg(long, value_name = "FILE", env = "HOLDFAST_SSLROOTCERT")]
    pub(crate) sslrootcert: Option<String>,
}

/// A database.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DatabaseArgs {
    /// A PostgreSQL connection string; better given by environment if it holds a password
    #[arg(long, value_name = "STRING", env = "HOLDFAST_DATABASE", hide_env_values = true)]
    database: String,
    #[command(flatten)]
    ssl: SslArgs,
}

impl DatabaseArgs {
    /// The database, and how it is shown: without its password.
    /// # Errors
    /// [`Usage`]: the string or the flags are mistaken.
    pub(crate) fn read(&self) -> Result<(Database, String), Usage> {
        let config = parse_database(&self.database)
            .map_err(|(code, wrong)| Usage(format!("{code} --database {wrong}")))?;
        let shown = masked(&config);
        let tls = self.ssl.of(&config)?;
        Ok((Database::new(config, tls), shown))
    }

    /// A session, which ends with its client, and the database as it may be shown.
    /// # Errors
    /// [`Usage`], or the database cannot be reached.
    pub(crate) async fn connect(&self) -> anyhow::Result<(Client, String)> {
        let (database, shown) = self.read()?;
        let (client, _ends_by_itself) = database.connect().await.with_context(|| {
            format!("HF1024 {shown}: cannot connect. Check that PostgreSQL runs there and lets this user in")
        })?;
        Ok((client, shown))
    }
}

impl SslArgs {
    /// # Errors
    /// [`Usage`].
    pub(crate) fn of(
        &self,
        database: &tokio_postgres::Config,
    ) -> Result<Option<holdfast_security::ServerTls>, Usage> {
        let word = |given: &Option<String>| given.clone().unwrap_or_default();
        encryption(&word(&self.sslmode), &word(&self.sslrootcert), database)
            .map_err(|(code, wrong)| Usage(format!("{code} --{wrong}")))
    }
}
