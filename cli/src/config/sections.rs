//! Sections that several roles have: security, telemetry, the coordinators to dial, and what a door may be bound to.

use std::{net::SocketAddr, path::PathBuf};

use holdfast_security::{Credentials, Files, Name, Subject};

use crate::drill::door::DrillConfig;

use super::{
    mistake::Mistake,
    origin::Origin,
    reader::{Field, Need, Reader},
};

/// Nothing is encrypted, on loopback addresses alone.
const DEV_PLAINTEXT: &str = "dev-plaintext";
/// TLS with certificates on both sides.
const MUTUAL_TLS: &str = "mutual-tls";

/// Coordinator addresses that one agent or bank is told.
const COORDINATORS_MAX: usize = 16;

/// `[telemetry]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Telemetry {
    pub(crate) format: TelemetryFormat,
    /// error, warn, info, debug or trace.
    pub(crate) level: String,
    /// The collector that takes spans: `http://127.0.0.1:4317`; empty if none does.
    pub(crate) endpoint: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TelemetryFormat {
    /// For people.
    Text,
    /// For log collectors: one object a line.
    Json,
}

/// `[telemetry]`: every key has a default.
pub(crate) fn telemetry(reader: &mut Reader) -> Option<Telemetry> {
    let logs = logs(reader);
    let endpoint = reader.text("telemetry.endpoint", Need::Or(""), check_collector);
    Some(Telemetry { endpoint: endpoint?.value, ..logs? })
}

/// `[telemetry]` of a role that has no spans.
pub(crate) fn logs(reader: &mut Reader) -> Option<Telemetry> {
    let format = reader.choice("telemetry.format", &["text", "json"], "text");
    let levels = ["error", "warn", "info", "debug", "trace"];
    let level = reader.choice("telemetry.level", &levels, "info");
    let format = match format?.value.as_str() {
        "json" => TelemetryFormat::Json,
        _ => TelemetryFormat::Text,
    };
    Some(Telemetry { format, level: level?.value, endpoint: String::new() })
}

/// A collector's address. Spans name gids and services, and nothing on their way is encrypted: it is on this machine, and forwards from here.
fn check_collector(text: &str) -> Result<(), String> {
    let Some(address) = text.strip_prefix("http://") else {
        return match text {
            "" => Ok(()),
            _ => {
                Err("is no http:// address. Write for example \"http://127.0.0.1:4317\"."
                    .to_owned())
            }
        };
    };
    match address.trim_end_matches('/').parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() && address.port() > 0 => Ok(()),
        Ok(_) => Err("is not on this machine, and nothing is encrypted on the way. Run a collector here that forwards, and name its \
                      loopback address."
            .to_owned()),
        Err(_) => Err("has no IP address with port. Write for example \"http://127.0.0.1:4317\".".to_owned()),
    }
}

/// `[drill]`: nobody is drilled who did not say so. The door is on loopback, whatever the security mode.
pub(crate) fn drill(reader: &mut Reader, port: u16) -> Option<DrillConfig> {
    let allowed = reader.truth("drill.allowed", false);
    let usual = SocketAddr::from(([127, 0, 0, 1], port));
    let bind = reader.address("drill.bind", Need::Or(usual));
    let bind = bind.filter(|bind| loopback(reader, bind));
    Some(DrillConfig { allowed: allowed?.value, bind: bind?.value })
}

/// What a role has for mutual TLS: its credentials and where each word about them was said.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    pub(crate) credentials: Credentials,
    /// Where the certificate was named.
    pub(crate) cert: Field<String>,
}

/// `[security]` and `[tls]`: the mode must be said aloud. `Some(None)` is dev-plaintext.
pub(crate) fn security(reader: &mut Reader) -> Option<Option<Tls>> {
    // The default is what nobody may choose by silence, so it is checked like a choice.
    let mode = reader.text("security.mode", Need::Or(""), |_| Ok(()))?;
    let remedy = "Set security.mode = \"mutual-tls\" with [tls] ca, cert and key, or \"dev-plaintext\" (--dev-plaintext) to \
                  run without encryption, on loopback addresses only.";
    let wrong = match mode.value.as_str() {
        DEV_PLAINTEXT => {
            ["tls.ca", "tls.cert", "tls.key"].into_iter().for_each(|key| reader.know(key));
            return Some(None);
        }
        MUTUAL_TLS => return tls(reader).map(Some),
        "" => "security.mode is not set, and nothing is assumed.".to_owned(),
        other if ["tls", "mtls"].contains(&other.to_lowercase().as_str()) => {
            format!("security.mode = {other:?}: did you mean \"mutual-tls\"?")
        }
        other => format!("security.mode = {other:?} is no mode."),
    };
    let origin = match mode.origin {
        Origin::Default => reader.whole(),
        said => said,
    };
    reader.mistake("HF1016", origin, format!("{wrong} {remedy}"));
    None
}

/// `[tls]`: PEM files, read and checked here, so that mistakes are told with all others.
fn tls(reader: &mut Reader) -> Option<Tls> {
    let mut file = |key| {
        reader.text(key, Need::Required, |text| match text {
            "" => Err("is empty. Name a PEM file.".to_owned()),
            _ => Ok(()),
        })
    };
    let (ca, cert, key) = (file("tls.ca"), file("tls.cert"), file("tls.key"));
    let (ca, cert, key) = (ca?, cert?, key?);
    let files = Files {
        ca: PathBuf::from(&ca.value),
        identity: Some((PathBuf::from(&cert.value), PathBuf::from(&key.value))),
    };
    match Credentials::open(files) {
        Ok(credentials) => Some(Tls { credentials, cert }),
        Err(bad) => {
            let named = [&ca, &cert, &key]
                .into_iter()
                .find(|field| bad.file.as_os_str() == field.value.as_str());
            let origin = named.unwrap_or(&cert).origin.clone();
            reader.mistake("HF1401", origin, format!("{bad}."));
            None
        }
    }
}

/// Whether the certificate of a role that serves `service` says so.
pub(crate) fn names_service(reader: &mut Reader, tls: Option<&Tls>, service: &str) -> Option<()> {
    let Some(tls) = tls else { return Some(()) };
    let name = tls.credentials.name();
    if let Some(Subject::Service(own)) = name.as_ref().map(|name| &name.subject)
        && holdfast_security::covers(own, service)
    {
        return Some(());
    }
    names_another(reader, tls, &format!("an agent of {service:?} needs .../service/{service}"));
    None
}

/// Whether the certificate of a coordinator names this very node.
pub(crate) fn names_node(
    reader: &mut Reader,
    tls: Option<&Tls>,
    cluster: &str,
    node: u64,
) -> Option<()> {
    let Some(tls) = tls else { return Some(()) };
    let own = Name { cluster: cluster.to_owned(), subject: Subject::Node(node) };
    if tls.credentials.name().as_ref() == Some(&own) {
        return Some(());
    }
    names_another(reader, tls, &format!("this is {own}"));
    None
}

fn names_another(reader: &mut Reader, tls: &Tls, wanted: &str) {
    let named = tls.credentials.name().map(|name| name.to_string()).unwrap_or_default();
    let text = format!(
        "{} = {:?} is the certificate of {named}, and {wanted}. Name the right file; holdfast certs dev makes one.",
        tls.cert.key, tls.cert.value
    );
    reader.mistake("HF1402", tls.cert.origin.clone(), text);
}

/// A certificate that ends soon is allowed, yet probably not meant.
pub(crate) fn expiry(credentials: Option<&Credentials>) -> Vec<Mistake> {
    let warning = credentials.and_then(Credentials::expiry_warning);
    warning.as_deref().map(ends_soon).into_iter().collect()
}

/// The same, in these words.
pub(crate) fn ends_soon(words: &str) -> Mistake {
    Mistake::new("HF1403", Origin::Machine, format!("{words}."))
}

/// `[coordinators]`: the gRPC addresses to dial.
pub(crate) fn coordinators(reader: &mut Reader) -> Option<Vec<SocketAddr>> {
    let addresses = reader.addresses("coordinators.addresses", COORDINATORS_MAX)?.value;
    let readable: Vec<_> = addresses.iter().flatten().collect();
    let mut all_fine = distinct(reader, &readable, "Name each node once.");
    for address in readable {
        all_fine &= reachable_port(reader, address) & guarded(reader, address);
    }
    let addresses: Option<Vec<_>> = addresses.into_iter().map(|one| Some(one?.value)).collect();
    addresses.filter(|_| all_fine)
}

/// Whether the address may be used: any with mutual TLS, a loopback one without.
pub(crate) fn guarded(reader: &mut Reader, address: &Field<SocketAddr>) -> bool {
    reader.peek("security.mode").as_deref() == Some(MUTUAL_TLS) || loopback(reader, address)
}

/// Whether the address is a loopback one, as everything demands that is not encrypted.
pub(crate) fn loopback(reader: &mut Reader, address: &Field<SocketAddr>) -> bool {
    if address.value.ip().is_loopback() {
        return true;
    }
    let text = format!(
        "{} = \"{}\" is no loopback address, and nothing is encrypted in mode \"dev-plaintext\". Use 127.0.0.1 or [::1].",
        address.key, address.value
    );
    reader.mistake("HF1010", address.origin.clone(), text);
    false
}

/// Whether others can dial the address: port 0 means any free port, which nobody can know beforehand.
pub(crate) fn reachable_port(reader: &mut Reader, address: &Field<SocketAddr>) -> bool {
    if address.value.port() != 0 {
        return true;
    }
    let text = format!(
        "{} = \"{}\": others must know the port. Choose one from 1 to 65535.",
        address.key, address.value
    );
    reader.mistake("HF1009", address.origin.clone(), text);
    false
}

/// Whether no address stands twice; `remedy` is said if one does.
pub(crate) fn distinct(
    reader: &mut Reader,
    addresses: &[&Field<SocketAddr>],
    remedy: &str,
) -> bool {
    let mut all_fine = true;
    for (n, address) in addresses.iter().enumerate() {
        let port_counts = address.value.port() != 0;
        if let Some(first) = addresses[..n].iter().find(|a| a.value == address.value && port_counts)
        {
            let text = format!(
                "{} = \"{}\" is taken by {} already. {remedy}",
                address.key, address.value, first.key
            );
            reader.mistake("HF1012", address.origin.clone(), text);
            all_fine = false;
        }
    }
    all_fine
}

/// A name that shows up in logs, metrics and addresses: 1 to 64 characters of `a-z`, `0-9`, `.`, `-`, and `@` if `at_sign`.
pub(crate) fn check_name(text: &str, at_sign: bool) -> Result<(), String> {
    let allowed = |c: char| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c) || (at_sign && c == '@')
    };
    let letters = if at_sign { "a-z, 0-9, '.', '@' and '-'" } else { "a-z, 0-9, '.' and '-'" };
    if text.is_empty() {
        return Err(format!("is empty. Give it 1 to 64 characters of {letters}."));
    }
    if text.len() > 64 {
        return Err(format!("has {} characters. Shorten it to 64.", text.chars().count()));
    }
    match text.chars().find(|c| !allowed(*c)) {
        Some(stranger) => Err(format!("holds {stranger:?}. Allowed are {letters}.")),
        None => Ok(()),
    }
}

/// Free words of at most 64 characters, possibly none: an instance, a zone.
pub(crate) fn check_label(text: &str) -> Result<(), String> {
    let count = text.chars().count();
    if count > 64 {
        return Err(format!("has {count} characters. Shorten it to 64."));
    }
    match text.chars().find(|c| c.is_control() || !c.is_ascii()) {
        Some(stranger) => Err(format!("holds {stranger:?}. Use printable ASCII.")),
        None => Ok(()),
    }
}

/// Host name and process id: what an instance is called that was given no name.
pub(crate) fn default_instance() -> String {
    let host = nix::sys::utsname::uname()
        .ok()
        .and_then(|names| names.nodename().to_str().map(str::to_owned))
        .unwrap_or_else(|| "host".to_owned());
    let host: String = host.chars().filter(|c| c.is_ascii_graphic()).take(48).collect();
    format!("{host}-{}", std::process::id())
}
