//! What operators decided about services and callers: plain data, checked where it enters, the greater version wins.

use std::collections::BTreeMap;

use holdfast_proto::v1;
use holdfast_txn::Participant;

use crate::rpc::fault::{Fault, Findings};

/// Bounds of the document. Each is tested at the limit and one past it.
pub mod limit {
    /// Services, and callers, with a policy.
    pub const NAMES_MAX: usize = 1_000;
    /// Instances of one service with a policy.
    pub const INSTANCES_MAX: usize = 256;
    /// Zones, and colors, of one service.
    pub const WORDS_MAX: usize = 16;
    /// Characters of an instance, a zone or a color.
    pub const WORD_MAX: usize = 64;
    /// Characters of a caller's name: a kind and two words.
    pub const CALLER_MAX: usize = 160;
    /// The greatest weight or share.
    pub const WEIGHT_MAX: u32 = 1_000;
    /// Calls or requests in a second.
    pub const RATE_MAX: u32 = 1_000_000;
    /// Calls or requests at once.
    pub const CONCURRENCY_MAX: u32 = 1_000_000;
    /// Transactions in a row without an answer that open a breaker.
    pub const FAILURES_MAX: u32 = 1_000;
    /// Pauses and warm-up, ms.
    pub const PAUSE_MS_MAX: u64 = 3_600_000;
    /// Bytes of an endpoint's address.
    pub const ADDRESS_BYTES_MAX: usize = 256;
    /// Bytes of the whole document.
    pub const DOCUMENT_BYTES_MAX: usize = 2 * 1024 * 1024;
}

/// Which of two documents is newer: first the leader's term, then its count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) term: u64,
    pub(crate) revision: u64,
}

/// Everything that operators decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Policies {
    pub(crate) version: Version,
    pub(crate) services: BTreeMap<Participant, v1::ServicePolicy>,
    pub(crate) callers: BTreeMap<String, v1::CallerPolicy>,
}

/// When a breaker opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BreakerPolicy {
    /// Transactions in a row without an answer; 0 = never.
    pub(crate) failures: u32,
    pub(crate) open_ms: u64,
    pub(crate) open_ms_max: u64,
}

impl BreakerPolicy {
    /// Of a service that nobody decided about.
    pub(crate) const DEFAULT: Self = Self { failures: 20, open_ms: 1_000, open_ms_max: 30_000 };

    pub(crate) fn of(wire: Option<&v1::BreakerPolicy>) -> Self {
        wire.map_or(Self::DEFAULT, |wire| Self {
            failures: wire.failures,
            open_ms: wire.open_ms,
            open_ms_max: wire.open_ms_max,
        })
    }
}

impl Policies {
    /// The document as it travels and lies on disk.
    pub(crate) fn to_wire(&self) -> v1::PolicyDocument {
        v1::PolicyDocument {
            term: self.version.term,
            revision: self.version.revision,
            services: self.services.values().cloned().collect(),
            callers: self.callers.values().cloned().collect(),
        }
    }

    /// Checks a document that came from a peer or from the disk.
    /// # Errors
    /// HF2301 with every finding.
    pub(crate) fn from_wire(wire: v1::PolicyDocument) -> Result<Self, Fault> {
        let mut findings = Findings::default();
        let (services, callers) = (wire.services.len(), wire.callers.len());
        for (field, count) in [("services", services), ("callers", callers)] {
            if count > limit::NAMES_MAX {
                let most = limit::NAMES_MAX;
                findings.add(field, format_args!("{count} of them, allowed are {most}"));
            }
        }
        findings.verdict()?;
        let mut policies = Self {
            version: Version { term: wire.term, revision: wire.revision },
            ..Self::default()
        };
        for policy in wire.services {
            let service = check_service(&policy)?;
            policies.services.insert(service, policy);
        }
        for policy in wire.callers {
            check_caller(&policy)?;
            policies.callers.insert(policy.caller.clone(), policy);
        }
        Ok(policies)
    }

    /// The document with one service's policy set, and what would be one too many.
    /// # Errors
    /// HF2301.
    pub(crate) fn with_service(&self, policy: v1::ServicePolicy) -> Result<Self, Fault> {
        let service = check_service(&policy)?;
        let mut next = self.clone();
        // A policy that says nothing is none.
        if policy == (v1::ServicePolicy { service: policy.service.clone(), ..Default::default() }) {
            next.services.remove(&service);
        } else {
            next.services.insert(service, policy);
        }
        next.checked_count(next.services.len(), "service")?;
        Ok(next)
    }

    /// As [`Self::with_service`], for a caller.
    /// # Errors
    /// HF2301.
    pub(crate) fn with_caller(&self, policy: v1::CallerPolicy) -> Result<Self, Fault> {
        check_caller(&policy)?;
        let mut next = self.clone();
        if policy == (v1::CallerPolicy { caller: policy.caller.clone(), ..Default::default() }) {
            next.callers.remove(&policy.caller);
        } else {
            next.callers.insert(policy.caller.clone(), policy);
        }
        next.checked_count(next.callers.len(), "caller")?;
        Ok(next)
    }

    fn checked_count(&self, count: usize, field: &str) -> Result<(), Fault> {
        let mut findings = Findings::default();
        let most = limit::NAMES_MAX;
        if count > most {
            findings
                .add(field, format_args!("{most} have a policy, which is the limit; reset one"));
        }
        let bytes = prost::Message::encoded_len(&self.to_wire());
        if bytes > limit::DOCUMENT_BYTES_MAX {
            let most = limit::DOCUMENT_BYTES_MAX;
            findings.add(field, format_args!("all policies together have {bytes} bytes, allowed are {most}; reset what is not needed"));
        }
        findings.verdict()
    }
}

impl From<Version> for v1::PolicyVersion {
    fn from(version: Version) -> Self {
        Self { term: version.term, revision: version.revision }
    }
}

impl From<v1::PolicyVersion> for Version {
    fn from(wire: v1::PolicyVersion) -> Self {
        Self { term: wire.term, revision: wire.revision }
    }
}

fn check_service(policy: &v1::ServicePolicy) -> Result<Participant, Fault> {
    let mut findings = Findings::default();
    let service = findings.take("service", Participant::parse(&policy.service));
    check_instances(&mut findings, &policy.instances);
    for (field, value, most) in [
        ("calls_per_s", policy.calls_per_s, limit::RATE_MAX),
        ("burst", policy.burst, limit::RATE_MAX),
        ("concurrency_max", policy.concurrency_max, limit::CONCURRENCY_MAX),
        ("recovery_max", policy.recovery_max, limit::CONCURRENCY_MAX),
    ] {
        at_most(&mut findings, field, u64::from(value), u64::from(most));
    }
    at_most(&mut findings, "warm_up_ms", policy.warm_up_ms, limit::PAUSE_MS_MAX);
    check_breaker(&mut findings, policy.breaker.as_ref());
    if v1::Balance::try_from(policy.balance).is_err() {
        findings.add("balance", format_args!("{} is no balance", policy.balance));
    }
    at_most(&mut findings, "zones", policy.zones.len() as u64, limit::WORDS_MAX as u64);
    for zone in policy.zones.iter().take(limit::WORDS_MAX) {
        word(&mut findings, "zones", zone);
    }
    check_colors(&mut findings, &policy.colors);
    if let Some(endpoint) = &policy.endpoint {
        check_endpoint(&mut findings, endpoint);
    }
    findings.verdict()?;
    Ok(service.expect("what is missing was found"))
}

fn check_breaker(findings: &mut Findings, breaker: Option<&v1::BreakerPolicy>) {
    let Some(breaker) = breaker else { return };
    at_most(findings, "breaker.open_ms", breaker.open_ms, limit::PAUSE_MS_MAX);
    at_most(findings, "breaker.open_ms_max", breaker.open_ms_max, limit::PAUSE_MS_MAX);
    let (failures, most) = (breaker.failures.into(), limit::FAILURES_MAX.into());
    at_most(findings, "breaker.failures", failures, most);
    if breaker.failures > 0 && breaker.open_ms == 0 {
        findings.add("breaker.open_ms", "0; a breaker that opens needs a pause, 1 or more");
    }
    if breaker.open_ms_max < breaker.open_ms {
        findings.add("breaker.open_ms_max", "is below open_ms; raise it");
    }
}

fn check_instances(findings: &mut Findings, instances: &[v1::InstancePolicy]) {
    at_most(findings, "instances", instances.len() as u64, limit::INSTANCES_MAX as u64);
    let mut before = std::collections::BTreeSet::new();
    for one in instances.iter().take(limit::INSTANCES_MAX) {
        word(findings, "instance", &one.instance);
        at_most(findings, "weight", u64::from(one.weight), u64::from(limit::WEIGHT_MAX));
        if !before.insert(&one.instance) {
            findings.add("instances", "the same instance twice; name it once");
        }
    }
}

fn check_colors(findings: &mut Findings, colors: &[v1::ColorShare]) {
    at_most(findings, "colors", colors.len() as u64, limit::WORDS_MAX as u64);
    let mut before = std::collections::BTreeSet::new();
    for one in colors.iter().take(limit::WORDS_MAX) {
        word(findings, "color", &one.color);
        at_most(findings, "share", u64::from(one.share), u64::from(limit::WEIGHT_MAX));
        if !before.insert(&one.color) {
            findings.add("colors", "the same color twice; name it once");
        }
    }
    if !colors.is_empty() && colors.iter().all(|one| one.share == 0) {
        findings.add("colors", "every share is 0; give one of them a share, or pause the service");
    }
}

fn check_endpoint(findings: &mut Findings, endpoint: &v1::Endpoint) {
    at_most(findings, "endpoint.credit", u64::from(endpoint.credit), 65_536);
    let address = &endpoint.address;
    if address.len() > limit::ADDRESS_BYTES_MAX {
        let (bytes, most) = (address.len(), limit::ADDRESS_BYTES_MAX);
        findings.add("endpoint.address", format_args!("{bytes} bytes, allowed are {most}"));
        return;
    }
    let usable = address.parse::<axum::http::Uri>().ok().is_some_and(|uri| {
        let bare = uri.query().is_none()
            && uri
                .authority()
                .is_some_and(|one| !one.as_str().contains('@') && one.port_u16().is_some());
        match uri.scheme_str() {
            Some("http") => bare,
            Some("grpc") => bare && matches!(uri.path(), "" | "/"),
            _ => false,
        }
    });
    if !usable {
        findings.add(
            "endpoint.address",
            "write http://host:port[/path] or grpc://host:port, without user, query or fragment",
        );
    }
}

fn check_caller(policy: &v1::CallerPolicy) -> Result<(), Fault> {
    let mut findings = Findings::default();
    word_of(&mut findings, "caller", &policy.caller, limit::CALLER_MAX);
    for (field, value, most) in [
        ("requests_per_s", policy.requests_per_s, limit::RATE_MAX),
        ("burst", policy.burst, limit::RATE_MAX),
        ("concurrency_max", policy.concurrency_max, limit::CONCURRENCY_MAX),
    ] {
        at_most(&mut findings, field, u64::from(value), u64::from(most));
    }
    check_breaker(&mut findings, policy.breaker.as_ref());
    findings.verdict()
}

fn at_most(findings: &mut Findings, field: &str, value: u64, most: u64) {
    if value > most {
        findings.add(field, format_args!("{value}, allowed is 0 to {most}"));
    }
}

fn word(findings: &mut Findings, field: &str, text: &str) {
    word_of(findings, field, text, limit::WORD_MAX);
}

fn word_of(findings: &mut Findings, field: &str, text: &str, most: usize) {
    let printable = text.chars().all(|c| c.is_ascii_graphic());
    if text.is_empty() || text.len() > most || !printable {
        findings
            .add(field, format_args!("give 1 to {most} printable ASCII characters without spaces"));
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
