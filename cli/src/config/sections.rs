//! Sections that several roles have: security, telemetry, the coordinators to dial, and what a door may be bound to.

use std::net::SocketAddr;

use crate::drill::door::DrillConfig;

use super::{
    origin::Origin,
    reader::{Field, Need, Reader},
};

/// The only security mode so far.
const DEV_PLAINTEXT: &str = "dev-plaintext";

/// Coordinator addresses that one agent or bank is told.
const COORDINATORS_MAX: usize = 16;

/// `[telemetry]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Telemetry {
    pub(crate) format: TelemetryFormat,
    /// error, warn, info, debug or trace.
    pub(crate) level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TelemetryFormat {
    /// For people.
    Text,
    /// For log collectors: one object a line.
    Json,
}

/// `[telemetry]`: both keys have defaults.
pub(crate) fn telemetry(reader: &mut Reader) -> Option<Telemetry> {
    let format = reader.choice("telemetry.format", &["text", "json"], "text");
    let levels = ["error", "warn", "info", "debug", "trace"];
    let level = reader.choice("telemetry.level", &levels, "info");
    let format = match format?.value.as_str() {
        "json" => TelemetryFormat::Json,
        _ => TelemetryFormat::Text,
    };
    Some(Telemetry { format, level: level?.value })
}

/// `[drill]`: nobody is drilled who did not say so. The door is on loopback, whatever the security mode.
pub(crate) fn drill(reader: &mut Reader, port: u16) -> Option<DrillConfig> {
    let allowed = reader.truth("drill.allowed", false);
    let usual = SocketAddr::from(([127, 0, 0, 1], port));
    let bind = reader.address("drill.bind", Need::Or(usual));
    let bind = bind.filter(|bind| loopback(reader, bind));
    Some(DrillConfig { allowed: allowed?.value, bind: bind?.value })
}

/// `[security]`: the one mode must be said aloud.
pub(crate) fn security(reader: &mut Reader) -> Option<()> {
    // The default is what nobody may choose by silence, so it is checked like a choice.
    let mode = reader.text("security.mode", Need::Or(""), |_| Ok(()))?;
    let remedy = "Set security.mode = \"dev-plaintext\" (or pass --dev-plaintext) to run without \
                  encryption, on loopback addresses only.";
    let wrong = match mode.value.as_str() {
        DEV_PLAINTEXT => return Some(()),
        "" => "security.mode is not set, and nothing is assumed.".to_owned(),
        other if ["tls", "mtls", "mutual-tls"].contains(&other.to_lowercase().as_str()) => {
            format!("security.mode = {other:?}: TLS is not available in this version.")
        }
        other => format!("security.mode = {other:?} is no mode of this version."),
    };
    let origin = match mode.origin {
        Origin::Default => reader.whole(),
        said => said,
    };
    reader.mistake("HF1016", origin, format!("{wrong} {remedy}"));
    None
}

/// `[coordinators]`: the gRPC addresses to dial.
pub(crate) fn coordinators(reader: &mut Reader) -> Option<Vec<SocketAddr>> {
    let addresses = reader.addresses("coordinators.addresses", COORDINATORS_MAX)?.value;
    let readable: Vec<_> = addresses.iter().flatten().collect();
    let mut all_fine = distinct(reader, &readable, "Name each node once.");
    for address in readable {
        all_fine &= reachable_port(reader, address) & loopback(reader, address);
    }
    let addresses: Option<Vec<_>> = addresses.into_iter().map(|one| Some(one?.value)).collect();
    addresses.filter(|_| all_fine)
}

/// Whether the address is a loopback one, as dev-plaintext demands.
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
