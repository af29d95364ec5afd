//! The flags by which a command is told a PostgreSQL database.

use anyhow::Context as _;
use holdfast_tcc_agent::Database;
use tokio_postgres::Client;

use crate::{
    config::{encryption, masked, parse_database},
    exit::Usage,
};

/// How connections are encrypted, and what a server may ask for.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct SslArgs {
    /// How connections are encrypted: disable (within this machine only), require, verify-full
    #[arg(long, value_name = "MODE", env = "HOLDFAST_SSLMODE", value_parser = ["disable", "require", "verify-full"])]
    pub(crate) sslmode: Option<String>,
    /// With verify-full: who signed the server's certificate, which names the host (PEM)
    #[arg(long, value_name = "FILE", env = "HOLDFAST_SSLROOTCERT")]
    pub(crate) sslrootcert: Option<String>,
    /// Whether a server may ask for the password in clear or as MD5: no, permitted
    #[arg(long, value_name = "WHETHER", env = "HOLDFAST_WEAK_AUTHENTICATION", value_parser = ["no", "permitted"])]
    pub(crate) weak_authentication: Option<String>,
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
        Ok((self.ssl.reach(config)?, shown))
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
    /// The database of `config`, reached so.
    /// # Errors
    /// [`Usage`].
    pub(crate) fn reach(&self, config: tokio_postgres::Config) -> Result<Database, Usage> {
        let word = |given: &Option<String>| given.clone().unwrap_or_default();
        let tls = encryption(&word(&self.sslmode), &word(&self.sslrootcert), &config)
            .map_err(|(code, wrong)| Usage(format!("{code} --{wrong}")))?;
        let weak = self.weak_authentication.as_deref() == Some("permitted");
        Ok(Database::new(config, tls).permit_weak_login(weak))
    }
}
