//! `holdfast services callers|limit-caller`: what each caller may ask of a node, and how often one was turned away.

use holdfast_client::{
    Client, ClientError,
    wire::{
        BreakerPolicy, CallerPolicy, CallerState, ListServicesReply, SetCallerPolicyRequest,
        SetPolicyReply,
    },
};

use crate::output::{self, Output};

/// The bounds of a caller; what is not given stays as it is.
#[derive(Debug, clap::Args)]
pub(crate) struct Bounds {
    /// The caller, as audit records name it: user/alice, service/loyalty
    caller: String,
    /// Requests in a second, at each node; 0: no limit
    #[arg(long)]
    requests_per_s: Option<u32>,
    /// Requests at once after a pause; 0: a tenth of a second's
    #[arg(long)]
    burst: Option<u32>,
    /// Requests under way at once, at each node; 0: no limit
    #[arg(long)]
    concurrency: Option<u32>,
    /// Mistaken requests in a row after which none is taken for a while; 0: never
    #[arg(long)]
    failures: Option<u32>,
    /// How long none is taken, until a first probe, ms
    #[arg(long, default_value_t = 1_000)]
    open_ms: u64,
    /// The longest pause: it doubles with each probe that is mistaken, ms
    #[arg(long, default_value_t = 30_000)]
    open_ms_max: u64,
}

/// Shows every caller with a policy.
/// # Errors
/// Nobody answers, or the output breaks.
pub(crate) async fn list(client: &Client, output: Output) -> anyhow::Result<()> {
    let ListServicesReply { node, callers, .. } = client.services("-").await?;
    if output == Output::Json {
        let callers: Vec<_> = callers.iter().map(caller_json).collect();
        return output::print_json(&serde_json::json!({ "node": node, "callers": callers }));
    }
    if callers.is_empty() {
        return output::print("No caller has a limit.");
    }
    let rows = callers.iter().map(|one| {
        vec![
            one.caller.clone(),
            one.in_flight.to_string(),
            one.taken.to_string(),
            one.by_rate.to_string(),
            one.by_concurrency.to_string(),
            one.by_breaker.to_string(),
            one.breaker.clone(),
            one.policy.as_ref().map(summary).unwrap_or_default(),
        ]
    });
    let head =
        ["caller", "under way", "taken", "by rate", "at once", "by breaker", "breaker", "policy"];
    output::print(&format!(
        "As node {node} sees them; each node counts what comes in at its own doors.\n\n{}",
        output::table(&head, rows)
    ))
}

/// Attempts when others change policies at the same time.
const ATTEMPTS_MAX: u32 = 5;

/// Sets the bounds of one caller.
/// # Errors
/// It was refused, or nothing was done.
pub(crate) async fn limit(
    client: &Client,
    bounds: &Bounds,
    reason: &str,
    dry_run: bool,
    output: Output,
) -> anyhow::Result<()> {
    let mut attempt = 1;
    loop {
        let known = client.services("-").await?;
        let of_caller = |one: CallerState| (one.caller == bounds.caller).then_some(one.policy);
        let policy = known.callers.into_iter().find_map(of_caller).flatten();
        let policy = bounds.over(policy.unwrap_or_default());
        let request = SetCallerPolicyRequest {
            policy: Some(policy.clone()),
            expected: known.version,
            reason: reason.to_owned(),
            dry_run,
        };
        match client.set_caller_policy(request).await {
            Ok(reply) => return changed(&policy, reply, dry_run, output),
            Err(ClientError::Refused { code, .. })
                if code == "HF2404" && attempt < ATTEMPTS_MAX =>
            {
                attempt += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl Bounds {
    fn over(&self, mut policy: CallerPolicy) -> CallerPolicy {
        self.caller.clone_into(&mut policy.caller);
        policy.requests_per_s = self.requests_per_s.unwrap_or(policy.requests_per_s);
        policy.burst = self.burst.unwrap_or(policy.burst);
        policy.concurrency_max = self.concurrency.unwrap_or(policy.concurrency_max);
        if let Some(failures) = self.failures {
            let (open_ms, open_ms_max) = (self.open_ms, self.open_ms_max);
            policy.breaker =
                (failures > 0).then_some(BreakerPolicy { failures, open_ms, open_ms_max });
        }
        policy
    }
}

fn changed(
    policy: &CallerPolicy,
    reply: SetPolicyReply,
    dry_run: bool,
    output: Output,
) -> anyhow::Result<()> {
    let SetPolicyReply { version, nodes, nodes_all } = reply;
    let version = version.unwrap_or_default();
    if output == Output::Json {
        return output::print_json(&serde_json::json!({
            "caller": policy.caller,
            "policy": policy_json(policy),
            "version": format!("{}.{}", version.term, version.revision),
            "dry_run": dry_run,
            "nodes": nodes,
            "nodes_all": nodes_all,
        }));
    }
    let caller = &policy.caller;
    if dry_run {
        return output::print(&format!(
            "Nothing was done. {caller} would have: {}",
            summary(policy)
        ));
    }
    output::print(&format!(
        "Done: version {}.{}, on {nodes} of {nodes_all} nodes. {caller} has: {}",
        version.term,
        version.revision,
        summary(policy)
    ))
}

fn summary(policy: &CallerPolicy) -> String {
    let numbers = [
        ("requests_per_s", policy.requests_per_s),
        ("burst", policy.burst),
        ("concurrency_max", policy.concurrency_max),
    ];
    let mut words: Vec<String> = numbers
        .iter()
        .filter(|(_, value)| *value > 0)
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    if let Some(BreakerPolicy { failures, open_ms, open_ms_max }) = policy.breaker {
        words.push(format!("breaker after {failures} mistakes, {open_ms} to {open_ms_max} ms"));
    }
    if words.is_empty() { "no limit".to_owned() } else { words.join("; ") }
}

fn policy_json(policy: &CallerPolicy) -> serde_json::Value {
    serde_json::json!({
        "requests_per_s": policy.requests_per_s,
        "burst": policy.burst,
        "concurrency_max": policy.concurrency_max,
        "breaker": policy.breaker.map(|one| serde_json::json!({
            "failures": one.failures, "open_ms": one.open_ms, "open_ms_max": one.open_ms_max,
        })),
    })
}

/// A caller as a node sees it.
pub(crate) fn caller_json(one: &CallerState) -> serde_json::Value {
    serde_json::json!({
        "caller": one.caller,
        "in_flight": one.in_flight,
        "taken": one.taken,
        "turned_away": one.turned_away,
        "by_rate": one.by_rate,
        "by_concurrency": one.by_concurrency,
        "by_breaker": one.by_breaker,
        "breaker": one.breaker,
        "policy": one.policy.as_ref().map(policy_json),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays_and_nothing_is_no_limit() {
        let known = CallerPolicy { caller: "x".into(), burst: 7, ..Default::default() };
        let bounds = Bounds {
            caller: "user/alice".into(),
            requests_per_s: Some(50),
            burst: None,
            concurrency: None,
            failures: Some(3),
            open_ms: 1_000,
            open_ms_max: 2_000,
        };
        let policy = bounds.over(known);
        let said = "requests_per_s 50; burst 7; breaker after 3 mistakes, 1000 to 2000 ms";
        assert_eq!((policy.caller.as_str(), summary(&policy).as_str()), ("user/alice", said));
        let off = Bounds { requests_per_s: Some(0), burst: Some(0), failures: Some(0), ..bounds };
        assert_eq!(summary(&off.over(policy)), "no limit");
    }
}
