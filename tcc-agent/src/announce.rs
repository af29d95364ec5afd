//! What an agent says of itself when a session opens, and the check that it may be said.

use std::{fs, process};

use holdfast_proto::v1;
use holdfast_security::Credentials;
use tonic::transport::Endpoint;

use crate::status::Status;

/// The longest name of a service or an instance, in characters.
const NAME_MAX: usize = 64;
/// The largest weight.
const WEIGHT_MAX: u32 = 1_000;
/// The largest credit.
const CREDIT_MAX: u32 = 65_536;
/// Addresses given at the start; more are refused.
const COORDINATORS_MAX: usize = 16;

/// Who serves, and whom.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// The service as branches name it: 1 to 64 characters of `[a-z0-9.@-]`.
    pub service: String,
    /// This process, 1 to 64 characters; empty: host name and process id.
    pub instance: String,
    /// The service's version, for people; at most 64 characters.
    pub version: String,
    /// Where it stands, for people and for nearness; at most 64 characters.
    pub zone: String,
    /// For shifting calls between versions (blue and green); at most 64 characters.
    pub color: String,
    /// Share of calls among the instances, 1 to 1,000; 0 = 100.
    pub weight: u32,
    /// Calls under way at once on each session, 1 to 65,536.
    pub credit: u32,
    /// gRPC addresses of coordinator nodes, `host:port`; one is enough, the others are learnt from it.
    pub coordinators: Vec<String>,
    /// The largest message that is taken, bytes.
    pub message_bytes_max: usize,
    /// For calls under way to be answered after shutdown was asked for, ms.
    pub drain_timeout_ms: u64,
    /// Where to read how it is going.
    pub status: Status,
    /// Mutual TLS: this agent's certificate, which must name its service. `None`: nothing is encrypted, on loopback alone.
    pub credentials: Option<Credentials>,
}

impl ServeConfig {
    /// The usual settings: weight 100, credit 256, messages to 16 MiB, 10 s to drain.
    #[must_use]
    pub fn new(service: impl Into<String>, coordinators: Vec<String>) -> Self {
        Self {
            service: service.into(),
            instance: String::new(),
            version: String::new(),
            zone: String::new(),
            color: String::new(),
            weight: 100,
            credit: 256,
            coordinators,
            message_bytes_max: 16 << 20,
            drain_timeout_ms: 10_000,
            status: Status::default(),
            credentials: None,
        }
    }

    /// Checks every setting.
    /// # Errors
    /// All mistakes at once.
    pub(crate) fn check(&self) -> Result<(), BadConfig> {
        let mut mistakes = Vec::new();
        let service_ok =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".@-".contains(c);
        if self.service.is_empty()
            || self.service.len() > NAME_MAX
            || !self.service.chars().all(service_ok)
        {
            mistakes.push(format!(
                "service = {:?}: give 1 to {NAME_MAX} characters of a-z, 0-9, '.', '@' and '-'",
                self.service.chars().take(NAME_MAX).collect::<String>()
            ));
        }
        let words = [
            ("instance", &self.instance),
            ("version", &self.version),
            ("zone", &self.zone),
            ("color", &self.color),
        ];
        for (name, value) in words {
            if value.chars().count() > NAME_MAX || value.chars().any(char::is_control) {
                mistakes.push(format!(
                    "{name}: give at most {NAME_MAX} characters, no control characters"
                ));
            }
        }
        if self.weight > WEIGHT_MAX {
            mistakes
                .push(format!("weight = {}: give 1 to {WEIGHT_MAX}, or 0 for 100", self.weight));
        }
        if self.credit == 0 || self.credit > CREDIT_MAX {
            mistakes.push(format!("credit = {}: give 1 to {CREDIT_MAX}", self.credit));
        }
        if self.coordinators.is_empty() || self.coordinators.len() > COORDINATORS_MAX {
            let given = self.coordinators.len();
            mistakes.push(format!("coordinators: {given} addresses; give 1 to {COORDINATORS_MAX}"));
        }
        for address in &self.coordinators {
            if endpoint(address).is_none() {
                let shown: String = address.chars().take(NAME_MAX).collect();
                mistakes.push(format!("coordinators: {shown:?} is no address; write host:port"));
            }
        }
        if self.message_bytes_max < 64 << 10 {
            mistakes.push(format!(
                "message_bytes_max = {}: give at least 65,536",
                self.message_bytes_max
            ));
        }
        if mistakes.is_empty() { Ok(()) } else { Err(BadConfig { mistakes }) }
    }

    pub(crate) fn hello(&self) -> v1::Hello {
        v1::Hello {
            service: self.service.clone(),
            instance: if self.instance.is_empty() { instance() } else { self.instance.clone() },
            version: self.version.clone(),
            zone: self.zone.clone(),
            color: self.color.clone(),
            weight: if self.weight == 0 { 100 } else { self.weight },
            credit: self.credit,
            reads_short_calls: true,
        }
    }
}

/// Settings that cannot be served with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("HF4110 agent configuration: {}", mistakes.join("; "))]
pub struct BadConfig {
    pub(crate) mistakes: Vec<String>,
}

/// The address as an endpoint, if it is one: `host:port`, nothing before or behind.
pub(crate) fn endpoint(address: &str) -> Option<Endpoint> {
    let (host, port) = address.rsplit_once(':')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_[]:".contains(c);
    if host.is_empty() || address.len() > 255 || !host.chars().all(plain) {
        return None;
    }
    port.parse::<u16>().ok().filter(|&port| port != 0)?;
    Endpoint::from_shared(format!("http://{address}")).ok()
}

/// Host name and process id.
fn instance() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|c| !c.is_control()).take(48).collect();
    format!("{}-{}", if host.is_empty() { "host" } else { &host }, process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_told_at_once() {
        let mut config = ServeConfig::new("Deposit", vec!["localhost".into(), "a b:1".into()]);
        config.credit = 0;
        config.weight = 1_001;
        let mistakes = config.check().unwrap_err().mistakes;
        assert_eq!(mistakes.len(), 5, "{mistakes:?}");
        ServeConfig::new("deposit@eu-1", vec!["127.0.0.1:7401".into(), "[::1]:7401".into()])
            .check()
            .unwrap();
    }

    #[test]
    fn only_plain_addresses_are_dialled() {
        for bad in ["", ":1", "h:0", "h:65536", "http://h:1", "h:1/x", "u@h:1", "h\r\n:1", "h"] {
            assert!(endpoint(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn an_instance_without_a_name_gets_one_that_fits() {
        let hello = ServeConfig::new("deposit", vec![]).hello();
        assert!(!hello.instance.is_empty() && hello.instance.len() <= 64, "{}", hello.instance);
    }
}
