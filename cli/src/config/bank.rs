//! The bank's configuration: `config/bank.toml` is its example. Its database string is the one secret, and is never shown whole.

use std::net::SocketAddr;

use holdfast_banking::BankLimits;
use holdfast_security::{Credentials, ServerTls};
use holdfast_tcc_agent::Database;

use crate::drill::door::DrillConfig;

use super::{
    Mistake, Role, Telemetry,
    encryption::{check_mode, encryption, says_no_mode},
    reader::{Field, Need, Reader},
    sections::{self, check_label, check_name, loopback},
};

/// The deposit module for one data source.
#[derive(Clone, Debug)]
pub(crate) struct BankConfig {
    /// The shard it serves; it joins as `deposit@<shard>`.
    pub(crate) shard: String,
    /// Holds the password, and leaves it out of its `Debug`.
    pub(crate) database: Database,
    /// This process; host name and process id unless it was named.
    pub(crate) instance: String,
    /// gRPC addresses.
    pub(crate) coordinators: Vec<SocketAddr>,
    pub(crate) limits: BankLimits,
    /// Calls under way at once.
    pub(crate) credit: u32,
    /// Health and metrics.
    pub(crate) http: SocketAddr,
    pub(crate) drill: DrillConfig,
    pub(crate) telemetry: Telemetry,
    /// Mutual TLS with the coordinators.
    pub(crate) credentials: Option<Credentials>,
}

impl Role for BankConfig {
    fn read(reader: &mut Reader) -> Option<Self> {
        let shard = reader.text("bank.shard", Need::Required, |text| {
            // "deposit@" stands before it in the participant's name, which has 64 characters at most.
            match text.len() {
                57.. => Err(format!("has {} characters. Shorten it to 56.", text.chars().count())),
                _ => check_name(text, false),
            }
        });
        let database = reader
            .guarded("bank.database", |text| parse_database(text).map(|config| masked(&config)));
        let tls = database_tls(reader, database.as_ref());
        let weak = reader.choice("bank.weak_authentication", &["no", "permitted"], "no");
        let instance = reader.text("bank.instance", Need::Or(""), check_label);
        let coordinators = sections::coordinators(reader);
        let connections = reader.integer("limits.connections", 1..=64, Need::Or(2));
        let batch = reader.integer("limits.batch_max", 1..=4_096, Need::Or(256));
        let credit = reader.integer("limits.credit", 1..=65_536, Need::Or(4_096));
        let http = reader.address("bind.http", Need::Or(SocketAddr::from(([127, 0, 0, 1], 7420))));
        let http = http.filter(|http| loopback(reader, http));
        let security = sections::security(reader);
        let drill = sections::drill(reader, 7430);
        let telemetry = sections::telemetry(reader);
        let (security, shard) = (security?, shard?);
        sections::names_service(reader, security.as_ref(), &format!("deposit@{}", shard.value))?;
        Some(Self {
            shard: shard.value,
            database: Database::new(parse_database(&database?.value).ok()?, tls?)
                .permit_weak_login(weak?.value == "permitted"),
            instance: Some(instance?.value)
                .filter(|name| !name.is_empty())
                .unwrap_or_else(sections::default_instance),
            coordinators: coordinators?,
            limits: BankLimits {
                connections: usize::try_from(connections?.value).expect("at most 64"),
                batch_max: usize::try_from(batch?.value).expect("at most 4,096"),
            },
            credit: u32::try_from(credit?.value).expect("at most 65,536"),
            http: http?.value,
            drill: drill?,
            telemetry: telemetry?,
            credentials: security.map(|tls| tls.credentials),
        })
    }

    fn warnings(&self) -> Vec<Mistake> {
        sections::expiry(self.credentials.as_ref())
    }

    fn doors(&self) -> Vec<(&'static str, SocketAddr)> {
        let mut doors = vec![("bind.http", self.http)];
        doors.extend(self.drill.allowed.then_some(("drill.bind", self.drill.bind)));
        doors
    }
}

/// How connections to the data source are encrypted.
fn database_tls(
    reader: &mut Reader,
    database: Option<&Field<String>>,
) -> Option<Option<ServerTls>> {
    let mode = reader.text("bank.sslmode", Need::Or("disable"), check_mode);
    let roots = reader.text("bank.sslrootcert", Need::Or(""), |_| Ok(()));
    let (mode, roots, database) = (mode?, roots?, database?);
    let config = parse_database(&database.value).ok()?;
    let origin = match (mode.value.as_str(), roots.value.as_str()) {
        ("disable", "") => &database.origin,
        (_, "") => &mode.origin,
        (_, _) => &roots.origin,
    };
    let read = encryption(&mode.value, &roots.value, &config);
    read.map_err(|(code, text)| reader.mistake(code, origin.clone(), format!("bank.{text}"))).ok()
}

/// Parses a PostgreSQL connection string and asks for what cannot be guessed.
/// # Errors
/// A code and words that repeat nothing of the text: a slip of the hand can put the password anywhere.
pub(crate) fn parse_database(text: &str) -> Result<tokio_postgres::Config, (&'static str, String)> {
    let shape = "Write it as \"host=127.0.0.1 port=5432 user=holdfast dbname=bank\".";
    let config: tokio_postgres::Config = text.parse().map_err(|_| {
        let why = "is no PostgreSQL connection string (not shown: it may hold a password).";
        ("HF1020", format!("{why} {shape}"))
    })?;
    let lacks = [
        ("host", config.get_hosts().is_empty() && config.get_hostaddrs().is_empty()),
        ("user", config.get_user().is_none()),
        ("dbname", config.get_dbname().is_none()),
    ];
    let lacks: Vec<&str> =
        lacks.iter().filter(|(_, lacks)| *lacks).map(|(name, _)| *name).collect();
    if !lacks.is_empty() {
        return Err(("HF1020", format!("does not say {}. {shape}", lacks.join(", "))));
    }
    says_no_mode(&config)?;
    Ok(config)
}

/// The connection string without its password.
pub(crate) fn masked(config: &tokio_postgres::Config) -> String {
    let mut words = Vec::new();
    for host in config.get_hosts() {
        words.push(match host {
            tokio_postgres::config::Host::Tcp(name) => format!("host={name}"),
            tokio_postgres::config::Host::Unix(path) => format!("host={}", path.display()),
        });
    }
    words.extend(config.get_hostaddrs().iter().map(|address| format!("hostaddr={address}")));
    words.extend(config.get_ports().iter().map(|port| format!("port={port}")));
    words.extend(config.get_user().map(|user| format!("user={user}")));
    words.extend(config.get_password().map(|_| "password=***".to_owned()));
    words.extend(config.get_dbname().map(|name| format!("dbname={name}")));
    words.join(" ")
}
