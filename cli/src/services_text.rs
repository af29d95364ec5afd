//! How services and their policies look to people.

use std::process::ExitCode;

use holdfast_client::{
    Client,
    wire::{Balance, BreakerPolicy, ListServicesReply, ServicePolicy, ServiceState},
};

use crate::{
    exit,
    output::{self, Output},
    service_json::service_json,
    services_callers::caller_json,
};

/// Prints every service.
pub(crate) fn list(reply: &ListServicesReply, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return output::print_json(&serde_json::json!({
            "node": reply.node,
            "services": reply.services.iter().map(service_json).collect::<Vec<_>>(),
            "callers": reply.callers.iter().map(caller_json).collect::<Vec<_>>(),
        }));
    }
    let rows = reply.services.iter().map(|one| {
        let draining = one.sessions.iter().filter(|session| session.draining).count();
        vec![
            one.service.clone(),
            one.sessions.len().to_string(),
            draining.to_string(),
            one.in_flight.to_string(),
            waiting(one),
            one.breaker.clone(),
            one.asked.to_string(),
            one.silent.to_string(),
            one.policy.as_ref().map(summary).unwrap_or_default(),
        ]
    });
    let head = [
        "service",
        "instances",
        "draining",
        "under way",
        "waiting",
        "breaker",
        "calls",
        "no answer",
        "policy",
    ];
    output::print(&output::table(&head, rows))
}

/// How many calls wait, and for what.
fn waiting(one: &ServiceState) -> String {
    match one.waits_for.as_str() {
        "" => one.parked.to_string(),
        what => format!("{} ({what})", one.parked),
    }
}

/// Prints one service; refused where there is nothing to tell.
pub(crate) async fn show(
    client: &Client,
    service: &str,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let reply = client.services(service).await?;
    let Some(one) = reply.services.first() else {
        exit::tell(&format!(
            "no instance of {service} is here, nothing was decided about it, and no call waits for it. Who is here: holdfast services list"
        ));
        return Ok(ExitCode::from(exit::REFUSED));
    };
    if output == Output::Json {
        output::print_json(&service_json(one))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = one.sessions.iter().map(|session| {
        vec![
            session.instance.clone(),
            session.kind.clone(),
            session.version.clone(),
            session.zone.clone(),
            session.color.clone(),
            session.weight.to_string(),
            format!("{}/{}", session.in_flight, session.credit),
            if session.draining { "yes" } else { "no" }.to_owned(),
            session.breaker.clone(),
            session.asked.to_string(),
            session.silent.to_string(),
            format!("{} s", session.age_ms / 1_000),
        ]
    });
    let head = [
        "instance",
        "kind",
        "version",
        "zone",
        "color",
        "weight",
        "under way",
        "draining",
        "breaker",
        "calls",
        "no answer",
        "since",
    ];
    let policy = one.policy.as_ref().map(policy_text).unwrap_or_default();
    let absent = match one.sessions.is_empty() && one.waits_for == "session" {
        true => format!(
            "\n\nNobody serves it, so its calls wait: holdfast agent --service {service}, or holdfast services register {service}."
        ),
        false => String::new(),
    };
    output::print(&format!(
        "{}: {} calls under way, {} waiting, breaker {}{absent}\n\n{}\n\n{policy}",
        one.service,
        one.in_flight,
        waiting(one),
        one.breaker,
        output::table(&head, rows)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// What was decided, a line each.
fn lines(policy: &ServicePolicy) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if policy.paused {
        lines.push(("paused", "yes".to_owned()));
    }
    for one in &policy.instances {
        let weight = if one.weight > 0 { format!(" weight {}", one.weight) } else { String::new() };
        let drained = if one.drained { " drained" } else { "" };
        lines.push(("instance", format!("{}{weight}{drained}", one.instance)));
    }
    for (name, value) in [
        ("calls_per_s", policy.calls_per_s),
        ("burst", policy.burst),
        ("concurrency_max", policy.concurrency_max),
        ("recovery_max", policy.recovery_max),
    ] {
        if value > 0 {
            lines.push((name, value.to_string()));
        }
    }
    if let Some(BreakerPolicy { failures, open_ms, open_ms_max }) = policy.breaker {
        let text = format!("after {failures} transactions, {open_ms} to {open_ms_max} ms");
        lines.push(("breaker", text));
    }
    if policy.warm_up_ms > 0 {
        lines.push(("warm_up_ms", policy.warm_up_ms.to_string()));
    }
    if policy.balance() == Balance::LeastLoad {
        lines.push(("balance", "least load".to_owned()));
    }
    if !policy.zones.is_empty() {
        lines.push(("zones", policy.zones.join(", ")));
    }
    for one in &policy.colors {
        lines.push(("color", format!("{}={}", one.color, one.share)));
    }
    if let Some(endpoint) = &policy.endpoint {
        lines.push(("address", endpoint.address.clone()));
    }
    lines
}

pub(crate) fn policy_text(policy: &ServicePolicy) -> String {
    let lines = lines(policy);
    if lines.is_empty() {
        return "No policy: as the instances announce themselves.".to_owned();
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let lines: Vec<String> =
        lines.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    lines.join("\n")
}

fn summary(policy: &ServicePolicy) -> String {
    let lines = lines(policy);
    let words: Vec<String> = lines.iter().map(|(name, value)| format!("{name} {value}")).collect();
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use holdfast_client::wire::InstancePolicy;

    use super::*;

    #[test]
    fn a_policy_is_told_line_by_line_and_none_is_told_as_none() {
        let mut policy = ServicePolicy { service: "deposit".into(), ..Default::default() };
        assert!(policy_text(&policy).starts_with("No policy"));
        policy.instances.push(InstancePolicy { instance: "a".into(), weight: 7, drained: true });
        policy.calls_per_s = 5;
        assert_eq!(policy_text(&policy), "instance     a weight 7 drained\ncalls_per_s  5");
    }
}
