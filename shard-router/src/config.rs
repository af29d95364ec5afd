//! What a router is told: doors, sources, users, limits. Read and checked by the command; here it is only data.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use holdfast_security::ServerTls;

use crate::frontend::{Tls, Verifier};

/// One router.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Where PostgreSQL clients connect.
    pub listen: SocketAddr,
    /// Threads, each with its own clients and its own share of every pool.
    pub workers: usize,
    /// The rules file. With coordinators it counts only as long as their log has no rules. Without it, and with one source only, everything
    /// goes to that source, whatever the log says.
    pub rules: Option<PathBuf>,
    /// Every source that the rules name, in any order, and others that they may name later; exactly one without rules.
    pub sources: Vec<SourceConfig>,
    /// The only database name that clients may ask for; `None` takes every name.
    pub database: Option<String>,
    /// How clients prove who they are.
    pub authentication: Authentication,
    /// What encryption shows to clients; without it they are told that there is none.
    pub tls: Option<Tls>,
    /// Whether clients must encrypt.
    pub require_tls: bool,
    /// Who decides about transactions that write to several sources; without it they are refused.
    pub coordinator: Option<CoordinatorConfig>,
    /// Seeds the decoys of unknown users; different on every router, or new at each start.
    pub secret: Vec<u8>,
    /// The bounds.
    pub limits: Limits,
}

/// The coordinators.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// gRPC addresses, at least one; the others are learnt from it.
    pub addresses: Vec<String>,
    /// Mutual TLS with them; `None` without encryption, on loopback only.
    pub credentials: Option<holdfast_client::Credentials>,
    /// For a decision; then the client is told that it is unknown.
    pub decision_timeout: Duration,
    /// What is prepared for so long is an orphan: any router asks what was decided, and ends it so.
    pub orphan_age: Duration,
    /// Rules that no leader has confirmed for so long are not gone by.
    pub rules_age_max: Duration,
}

/// How clients prove who they are.
#[derive(Clone, Debug)]
pub enum Authentication {
    /// Everybody on this machine is who they say; for development.
    TrustLoopback,
    /// SCRAM-SHA-256 against these.
    Scram(Arc<[UserConfig]>),
}

/// A user who may log in.
#[derive(Clone, Debug)]
pub struct UserConfig {
    /// As the client gives it.
    pub name: String,
    /// Checks the password.
    pub verifier: Verifier,
}

/// One PostgreSQL: a primary and its replicas under one name.
#[derive(Clone)]
pub struct SourceConfig {
    /// As the rules name it.
    pub name: Arc<str>,
    /// The servers; which of them is the primary is asked, not told. At least one.
    pub addresses: Vec<Endpoint>,
    /// The database there; the client's own name for it if `None`.
    pub database: Option<String>,
    /// The user there; the client's own name if `None`.
    pub user: Option<String>,
    /// For that user.
    pub password: Option<String>,
    /// Whether the server may ask for the password itself or for its MD5, which a listener on the way could use.
    pub weak_authentication: bool,
    /// How connections over TCP are encrypted; `None`: not at all. Those by a socket of this machine never are.
    pub tls: Option<ServerTls>,
}

impl std::fmt::Debug for SourceConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceConfig")
            .field("name", &self.name)
            .field("addresses", &self.addresses)
            .field("database", &self.database)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// host:port.
    Tcp(Arc<str>),
    /// A socket of this machine, the file's whole path.
    Unix(PathBuf),
}

impl Endpoint {
    /// A path begins with a slash; everything else is host:port.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text.starts_with('/') { Self::Unix(text.into()) } else { Self::Tcp(text.into()) }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// What may change while a router runs: it counts from the next login, message, statement or wait on.
#[derive(Clone, Debug)]
pub struct Live {
    /// Sessions that are there stay, whoever may log in from now on.
    pub authentication: Authentication,
    /// Waits that have begun keep the limit that they began with.
    pub limits: Limits,
}

impl Live {
    /// What `config` says.
    #[must_use]
    pub fn of(config: &RouterConfig) -> Self {
        Self { authentication: config.authentication.clone(), limits: config.limits }
    }
}

/// The bounds of a router. Each at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Clients, logged in or not.
    pub clients_max: usize,
    /// Server connections for each source, user and database, over all workers.
    pub pool_size: usize,
    /// For a client to log in.
    pub login_timeout: Duration,
    /// For a free server connection.
    pub wait_timeout: Duration,
    /// For slots that are being moved, until their rows can be reached again.
    pub frozen_wait: Duration,
    /// For a new server connection.
    pub connect_timeout: Duration,
    /// Bytes of one message of a client, but for COPY data, which streams; and of one row of a COPY that is divided among sources.
    pub message_bytes_max: usize,
    /// Statements that one client may hold prepared.
    pub statements_max: usize,
    /// Statements kept prepared on one server connection.
    pub server_statements_max: usize,
    /// Bytes of statements and plans that each worker remembers.
    pub plan_bytes_max: usize,
    /// Bytes of rows that one scattered statement may hold at a time.
    pub merge_bytes_max: usize,
    /// For one source to prepare, commit or roll back.
    pub commit_timeout: Duration,
    /// For sessions to finish their transaction when the router stops.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients_max: 10_000,
            pool_size: 20,
            login_timeout: Duration::from_secs(30),
            wait_timeout: Duration::from_secs(30),
            frozen_wait: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            message_bytes_max: 64 << 20,
            statements_max: 4_096,
            server_statements_max: 256,
            plan_bytes_max: 32 << 20,
            merge_bytes_max: 64 << 20,
            commit_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(8),
        }
    }
}
