//! How values and lists of them are written in reports.

use std::net::SocketAddr;

/// What `config show` prints of a default.
pub(crate) trait Showable {
    /// As TOML would write it.
    fn shown(&self) -> String;
}

impl Showable for u64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Showable for bool {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Showable for String {
    fn shown(&self) -> String {
        quoted(self)
    }
}

impl Showable for SocketAddr {
    fn shown(&self) -> String {
        quoted(&self.to_string())
    }
}

impl<T> Showable for Vec<T> {
    fn shown(&self) -> String {
        "[]".to_owned()
    }
}

/// `cluster.member[0].id` as `cluster.member.id`.
pub(super) fn unindexed(label: &str) -> String {
    match (label.find('['), label.find(']')) {
        (Some(from), Some(to)) if from < to => format!("{}{}", &label[..from], &label[to + 1..]),
        _ => label.to_owned(),
    }
}

/// As TOML writes it.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// In quotes, with commas.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

/// What to do about a text that is no address.
pub(super) fn address_remedy(text: &str) -> String {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let is_port = port.parse::<u16>().is_ok();
    if host == "localhost" && is_port {
        format!("Names are not looked up: write \"127.0.0.1:{port}\".")
    } else if text.parse::<std::net::IpAddr>().is_ok() {
        "The port is missing: write \"127.0.0.1:7401\", or \"[::1]:7401\".".to_owned()
    } else if host.parse::<std::net::IpAddr>().is_ok() && !is_port {
        "A port is 0 to 65535.".to_owned()
    } else {
        "Write it as \"127.0.0.1:7401\", or \"[::1]:7401\".".to_owned()
    }
}
