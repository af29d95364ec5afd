//! The sidecar agent's configuration: `config/agent.toml` is its example.

use std::net::SocketAddr;

use holdfast_security::Credentials;

use super::{
    Mistake, Role, Telemetry,
    reader::{Need, Reader},
    sections::{self, check_label, check_name, loopback},
};

/// One agent beside one service.
#[derive(Clone, Debug)]
pub(crate) struct AgentConfig {
    /// The service's name, as transactions call it.
    pub(crate) service: String,
    /// Where the service listens: `http://127.0.0.1:8080`, with or without a path.
    pub(crate) app: String,
    /// Whether it answers `/inquire`.
    pub(crate) inquires: bool,
    /// This process; host name and process id unless it was named.
    pub(crate) instance: String,
    pub(crate) zone: String,
    pub(crate) color: String,
    /// Share of calls among instances.
    pub(crate) weight: u32,
    /// gRPC addresses.
    pub(crate) coordinators: Vec<SocketAddr>,
    /// Calls under way at once.
    pub(crate) credit: u32,
    pub(crate) call_timeout_ms: u64,
    /// Health and metrics.
    pub(crate) http: SocketAddr,
    pub(crate) telemetry: Telemetry,
    /// Mutual TLS with the coordinators.
    pub(crate) credentials: Option<Credentials>,
}

impl Role for AgentConfig {
    fn read(reader: &mut Reader) -> Option<Self> {
        let service = reader.text("service.name", Need::Required, |text| check_name(text, true));
        let app = reader.guarded("service.app", check_app);
        let inquires = reader.truth("service.inquire", false);
        let instance = reader.text("service.instance", Need::Or(""), check_label);
        let zone = reader.text("service.zone", Need::Or(""), check_label);
        let color = reader.text("service.color", Need::Or(""), check_label);
        let weight = reader.integer("service.weight", 1..=1_000, Need::Or(100));
        let coordinators = sections::coordinators(reader);
        let credit = reader.integer("limits.credit", 1..=65_536, Need::Or(256));
        let call_timeout =
            reader.integer("limits.call_timeout_ms", 1..=86_400_000, Need::Or(3_000));
        let http = reader.address("bind.http", Need::Or(SocketAddr::from(([127, 0, 0, 1], 7410))));
        let http = http.filter(|http| loopback(reader, http));
        let security = sections::security(reader);
        let telemetry = sections::telemetry(reader);
        let (security, service) = (security?, service?);
        sections::names_service(reader, security.as_ref(), &service.value)?;
        Some(Self {
            service: service.value,
            app: app?.value,
            inquires: inquires?.value,
            instance: Some(instance?.value)
                .filter(|name| !name.is_empty())
                .unwrap_or_else(sections::default_instance),
            zone: zone?.value,
            color: color?.value,
            weight: u32::try_from(weight?.value).expect("at most 1,000"),
            coordinators: coordinators?,
            credit: u32::try_from(credit?.value).expect("at most 65,536"),
            call_timeout_ms: call_timeout?.value,
            http: http?.value,
            telemetry: telemetry?,
            credentials: security.map(|tls| tls.credentials),
        })
    }

    fn warnings(&self) -> Vec<Mistake> {
        sections::expiry(self.credentials.as_ref())
    }

    fn doors(&self) -> Vec<(&'static str, SocketAddr)> {
        vec![("bind.http", self.http)]
    }
}

/// `http://` + loopback address with port + an optional path.
/// # Errors
/// A code and words; nothing is repeated of a text with an `@` in it, which may stand behind a password.
fn check_app(text: &str) -> Result<String, (&'static str, String)> {
    let shape = "Write it as \"http://127.0.0.1:8080\".";
    let subject = if text.contains('@') { String::new() } else { format!("= {text:?} ") };
    let bad = |wrong: &str| Err(("HF1009", format!("{subject}{wrong} {shape}")));
    if text.starts_with("https://") {
        return bad("is https, and TLS is not available in this version.");
    }
    let Some(rest) = text.strip_prefix("http://") else {
        return bad("does not begin with http://.");
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if path.chars().any(|c| !c.is_ascii_graphic() || "?#".contains(c)) {
        return bad("has a query, a fragment or a blank in its path.");
    }
    match authority.replacen("localhost", "127.0.0.1", 1).parse::<SocketAddr>() {
        Ok(address) if !address.ip().is_loopback() => {
            let wrong = "is not on this machine, and the agent stands beside its service.";
            Err(("HF1010", format!("{subject}{wrong} Use 127.0.0.1 or [::1].")))
        }
        Ok(address) if address.port() == 0 => bad("has port 0."),
        Ok(_) => Ok(text.to_owned()),
        Err(_) if text.contains('@') => bad("holds an \"@\": there is no user to log in as."),
        Err(_) => bad("has no IP address with port in it."),
    }
}
