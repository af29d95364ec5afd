//! The router's configuration: `config/router.toml` is its example. Passwords and verifiers are never shown.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use holdfast_security::ServerTls;
use holdfast_shard_router::{
    RouterConfig, Tls, Verifier,
    config::{Authentication, CoordinatorConfig, Endpoint, Limits, SourceConfig, UserConfig},
};

use super::{
    Mistake, Role, Telemetry,
    encryption::{check_mode, encryption, says_no_mode},
    masked,
    reader::{Item, Need, Reader},
    sections::{self, loopback},
};

/// Sources of one router.
const SOURCES_MAX: usize = 256;
/// Users that may log in.
const USERS_MAX: usize = 1024;

/// A router, and what is around it.
#[derive(Debug)]
pub(crate) struct RouterRole {
    pub(crate) router: RouterConfig,
    /// Health and metrics.
    pub(crate) http: SocketAddr,
    pub(crate) telemetry: Telemetry,
}

impl Role for RouterRole {
    fn read(reader: &mut Reader) -> Option<Self> {
        let rules = reader.text("router.rules", Need::Or(""), |_| Ok(()));
        let workers = reader.integer("router.workers", 1..=64, Need::Or(1));
        let database = reader.text("router.database", Need::Or(""), |_| Ok(()));
        let sources = sources(reader);
        let authentication = authentication(reader);
        let (tls, require_tls) = tls(reader)?;
        let limits = limits(reader);
        let postgres = SocketAddr::from(([127, 0, 0, 1], 6543));
        let listen = reader.address("bind.postgres", Need::Or(postgres));
        let listen = listen.filter(|listen| require_tls || loopback(reader, listen));
        let http = reader.address("bind.http", Need::Or(SocketAddr::from(([127, 0, 0, 1], 7430))));
        let http = http.filter(|http| loopback(reader, http));
        let coordinator = coordinator(reader);
        let security = sections::security(reader);
        let telemetry = sections::logs(reader);
        let mut coordinator = coordinator?;
        if let Some(tls) = security? {
            let Some(coordinator) = &mut coordinator else {
                let text = "security.mode = \"mutual-tls\" is for the way to coordinators, and there are none; towards clients a router has its own keys. Set \"dev-plaintext\", or name coordinators.addresses.";
                reader.mistake("HF1016", tls.cert.origin, text);
                return None;
            };
            coordinator.credentials = Some(tls.credentials);
        }
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        Some(Self {
            router: RouterConfig {
                listen: listen?.value,
                workers: usize::try_from(workers?.value).expect("at most 64"),
                rules: some(rules?.value).map(PathBuf::from),
                sources: sources?,
                database: some(database?.value),
                authentication: authentication?,
                tls,
                require_tls,
                coordinator,
                secret: rand::random::<[u8; 32]>().to_vec(),
                limits: limits?,
            },
            http: http?.value,
            telemetry: telemetry?,
        })
    }

    fn warnings(&self) -> Vec<Mistake> {
        let known = self.router.coordinator.as_ref();
        let mut warnings = sections::expiry(known.and_then(|known| known.credentials.as_ref()));
        let shown = self.router.tls.as_ref().and_then(Tls::expiry_warning);
        warnings.extend(shown.as_deref().map(sections::ends_soon));
        warnings
    }

    fn doors(&self) -> Vec<(&'static str, SocketAddr)> {
        vec![("bind.postgres", self.router.listen), ("bind.http", self.http)]
    }
}

fn limits(reader: &mut Reader) -> Option<Limits> {
    let usual = Limits::default();
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).expect("seconds");
    let mut count = |key: &'static str, max: u64, usual: usize| {
        let usual = u64::try_from(usual).expect("a limit is small");
        let field = reader.integer(key, 1..=max, Need::Or(usual));
        field.map(|field| usize::try_from(field.value).expect("a limit is small"))
    };
    let clients_max = count("limits.clients_max", 1_000_000, usual.clients_max);
    let pool_size = count("limits.pool_size", 10_000, usual.pool_size);
    let message_bytes_max = count("limits.message_bytes_max", 1 << 30, usual.message_bytes_max);
    let statements_max = count("limits.statements_max", 1_000_000, usual.statements_max);
    let server_statements_max =
        count("limits.server_statements_max", 100_000, usual.server_statements_max);
    let plan_bytes_max = count("limits.plan_bytes_max", 1 << 32, usual.plan_bytes_max);
    let merge_bytes_max = count("limits.merge_bytes_max", 1 << 32, usual.merge_bytes_max);
    let mut span = |key: &'static str, usual: Duration| {
        let field = reader.integer(key, 1..=3_600_000, Need::Or(ms(usual)));
        field.map(|field| Duration::from_millis(field.value))
    };
    let login_timeout = span("limits.login_timeout_ms", usual.login_timeout);
    let wait_timeout = span("limits.wait_timeout_ms", usual.wait_timeout);
    let frozen_wait = span("limits.frozen_wait_ms", usual.frozen_wait);
    let connect_timeout = span("limits.connect_timeout_ms", usual.connect_timeout);
    let commit_timeout = span("limits.commit_timeout_ms", usual.commit_timeout);
    let drain_timeout = span("limits.drain_timeout_ms", usual.drain_timeout);
    Some(Limits {
        clients_max: clients_max?,
        pool_size: pool_size?,
        login_timeout: login_timeout?,
        wait_timeout: wait_timeout?,
        frozen_wait: frozen_wait?,
        connect_timeout: connect_timeout?,
        message_bytes_max: message_bytes_max?,
        statements_max: statements_max?,
        server_statements_max: server_statements_max?,
        plan_bytes_max: plan_bytes_max?,
        merge_bytes_max: merge_bytes_max?,
        commit_timeout: commit_timeout?,
        drain_timeout: drain_timeout?,
    })
}

/// `[coordinators]`: who decides about transactions that write to several sources. `Some(None)`: nobody, and they are refused.
fn coordinator(reader: &mut Reader) -> Option<Option<CoordinatorConfig>> {
    let mut span = |key: &'static str, max: u64, usual: u64| {
        let field = reader.integer(key, 100..=max, Need::Or(usual))?;
        Some(Duration::from_millis(field.value))
    };
    let decision_timeout = span("limits.decision_timeout_ms", 600_000, 10_000);
    let orphan_age = span("limits.orphan_age_ms", 3_600_000, 3_000);
    // Above the time between two questions, and below what a person who moves rows would wait.
    let rules_age_max = span("limits.rules_age_max_ms", 3_600_000, 300_000);
    if !reader.is_given("coordinators.addresses") {
        reader.know("coordinators.addresses");
        return Some(None);
    }
    let addresses = sections::coordinators(reader);
    Some(Some(CoordinatorConfig {
        addresses: addresses?.iter().map(ToString::to_string).collect(),
        credentials: None,
        decision_timeout: decision_timeout?,
        orphan_age: orphan_age?,
        rules_age_max: rules_age_max?,
    }))
}

/// `[[sources.source]]`: a name that the rules know, and how to reach it.
fn sources(reader: &mut Reader) -> Option<Vec<SourceConfig>> {
    let items = reader.items("sources.source", SOURCES_MAX)?.value;
    let read: Vec<_> = items.iter().map(|item| source(reader, item)).collect();
    let mut sources: Vec<SourceConfig> = Vec::new();
    for source in read {
        let (source, origin) = source?;
        if sources.iter().any(|known| known.name == source.name) {
            let text = format!("source {:?} stands twice. Name each once.", source.name);
            reader.mistake("HF1012", origin, text);
            return None;
        }
        sources.push(source);
    }
    Some(sources)
}

fn source(reader: &mut Reader, item: &Item) -> Option<(SourceConfig, super::Origin)> {
    reader.item_only(item, &["name", "database", "weak_authentication", "sslmode", "sslrootcert"]);
    let name =
        reader.item_text(item, "name", true, |text| match holdfast_route::SourceId::parse(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(wrong) => Err(("HF1017", format!("= {text:?}: {wrong}."))),
        });
    let database = reader
        .item_text(item, "database", true, |text| parse_source(text).map(|config| masked(&config)));
    let weak = reader.item_text(item, "weak_authentication", false, |text| match text {
        "no" | "permitted" => Ok(text.to_owned()),
        _ => Err(("HF1017", format!("= {text:?} is neither \"no\" nor \"permitted\"."))),
    });
    let (name, database, weak) = (name?, database?, weak?);
    let config = parse_source(&database.value).ok()?;
    let tls = server_tls(reader, item, &config)?;
    let password = config.get_password().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let source = SourceConfig {
        name: name.value.as_str().into(),
        addresses: endpoints(&config),
        database: config.get_dbname().map(str::to_owned),
        user: config.get_user().map(str::to_owned),
        password,
        weak_authentication: weak.value == "permitted",
        tls,
    };
    Some((source, name.origin))
}

/// A connection string whose user and database may be missing: then they are the client's.
fn parse_source(text: &str) -> Result<tokio_postgres::Config, (&'static str, String)> {
    let shape = "Write it as \"host=127.0.0.1 port=5432 user=holdfast dbname=bank\"; without user or dbname, the client's count.";
    let config: tokio_postgres::Config = text.parse().map_err(|_| {
        let why = "is no PostgreSQL connection string (not shown: it may hold a password).";
        ("HF1020", format!("{why} {shape}"))
    })?;
    if config.get_hosts().is_empty() {
        return Err(("HF1020", format!("does not say host. {shape}")));
    }
    says_no_mode(&config)?;
    Ok(config)
}

/// How connections to the servers of a source are encrypted.
fn server_tls(
    reader: &mut Reader,
    item: &Item,
    config: &tokio_postgres::Config,
) -> Option<Option<ServerTls>> {
    let mode = reader.item_text(item, "sslmode", false, |text| {
        check_mode(text).map(|()| text.to_owned()).map_err(|wrong| ("HF1017", wrong))
    })?;
    let roots = reader.item_text(item, "sslrootcert", false, |text| Ok(text.to_owned()))?;
    let origin = if roots.value.is_empty() { &mode.origin } else { &roots.origin };
    let read = encryption(&mode.value, &roots.value, config);
    read.map_err(|(code, text)| reader.mistake(code, origin.clone(), text)).ok()
}

/// Each host with its port: one port serves all, or each has its own.
fn endpoints(config: &tokio_postgres::Config) -> Vec<Endpoint> {
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate();
    hosts
        .map(|(n, host)| {
            let port = ports.get(n).or(ports.first()).copied().unwrap_or(5432);
            match host {
                tokio_postgres::config::Host::Tcp(name) => {
                    Endpoint::Tcp(format!("{name}:{port}").into())
                }
                tokio_postgres::config::Host::Unix(folder) => {
                    Endpoint::Unix(folder.join(format!(".s.PGSQL.{port}")))
                }
            }
        })
        .collect()
}

/// `[auth]`: who may log in, and how.
fn authentication(reader: &mut Reader) -> Option<Authentication> {
    let mode = reader.choice("auth.mode", &["scram", "trust-loopback"], "scram")?.value;
    if mode == "trust-loopback" {
        return Some(Authentication::TrustLoopback);
    }
    let items = reader.items("auth.user", USERS_MAX)?.value;
    let mut users = Vec::new();
    let mut all_fine = true;
    for item in &items {
        reader.item_only(item, &["name", "verifier"]);
        let name = reader.item_text(item, "name", true, |text| match text.len() {
            1..=63 => Ok(text.to_owned()),
            length => Err(("HF1017", format!("has {length} bytes. Give it 1 to 63."))),
        });
        let verifier =
            reader.item_text(item, "verifier", true, |text| match Verifier::parse(text) {
                Ok(_) => Ok("***".to_owned()),
                Err(wrong) => Err(("HF1017", format!("{wrong}. Take rolpassword of pg_authid."))),
            });
        match (name, verifier) {
            (Some(name), Some(verifier)) => users.push(UserConfig {
                name: name.value,
                verifier: Verifier::parse(&verifier.value).ok()?,
            }),
            _ => all_fine = false,
        }
    }
    all_fine.then_some(Authentication::Scram(users.into()))
}

/// `[client_tls]`, or else `[tls]`: the certificate that clients are shown, and whether they must ask for it.
fn tls(reader: &mut Reader) -> Option<(Option<Tls>, bool)> {
    let mut pair = |cert, key| {
        let cert = reader.text(cert, Need::Or(""), |_| Ok(()));
        Some((cert?, reader.text(key, Need::Or(""), |_| Ok(()))?))
    };
    let (own, shared) = (pair("client_tls.cert", "client_tls.key"), pair("tls.cert", "tls.key"));
    let (own, shared) = (own?, shared?);
    // Coordinators want a certificate that names a service, and clients one that names their host: one is seldom both.
    let is_own = !(own.0.value.is_empty() && own.1.value.is_empty());
    let (cert, key) = if is_own { own } else { shared };
    let required = reader.choice("tls.clients", &["may", "must"], "may")?;
    let must = required.value == "must";
    if cert.value.is_empty() && key.value.is_empty() {
        if must {
            let text = "tls.clients = \"must\" without client_tls.cert and client_tls.key. Name both files.";
            reader.mistake("HF1004", required.origin, text);
            return None;
        }
        return Some((None, false));
    }
    match Tls::from_pem_files(cert.value.as_ref(), key.value.as_ref()) {
        Ok(tls) => Some((Some(tls), must)),
        Err(why) => {
            let text = format!(
                "{} and {}: {why}. Name a certificate chain and its key, both PEM.",
                cert.key, key.key
            );
            reader.mistake("HF1017", cert.origin, text);
            None
        }
    }
}
