//! `holdfast services`: who serves what and how it goes, and what operators decide about it while transfers run.

use std::process::ExitCode;

use holdfast_client::{
    Client, ClientError,
    wire::{
        Balance, BreakerPolicy, ColorShare, Endpoint, InstancePolicy, ServicePolicy, SessionState,
        SetPolicyReply, SetServicePolicyRequest,
    },
};

use crate::{
    exit,
    output::{self, Output},
    service_json::policy_json,
    services_callers::{self, Bounds},
    services_text::{list, policy_text, show},
    tx::ClusterAddresses,
};

/// Shows services, and weighs, drains, throttles and colors their instances.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast services
  holdfast services show deposit@shard-1
  holdfast services drain deposit@shard-1 --instance host-7-4711 --reason \"kernel update\"
  holdfast services throttle loyalty --calls-per-s 200 --reason \"their database is slow\"
  holdfast services limit-caller user/alice --requests-per-s 50 --reason \"runaway script\"

A change counts from the next call on every node, survives restarts and failovers, and ends no transaction.")]
pub(crate) struct ServicesArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    #[command(subcommand)]
    command: Option<ServicesCommand>,
}

/// Why, and whether it is meant.
#[derive(Debug, clap::Args)]
struct Say {
    /// Why, for the people who read it later; 1 to 1,024 bytes
    #[arg(long)]
    reason: String,
    /// Only check, and show the policy as it would be
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Subcommand)]
enum ServicesCommand {
    /// List services: instances, calls under way, breakers; the default
    #[command(
        after_help = "Examples:\n  holdfast services list\n  holdfast services list --output json"
    )]
    List,
    /// Show one service with its instances and its policy
    #[command(after_help = "Examples:\n  holdfast services show deposit@shard-1")]
    Show {
        /// The service
        service: String,
    },
    /// Set the weight of an instance: its share of calls
    #[command(
        visible_alias = "weight",
        after_help = "Examples:\n  holdfast services set-weight loyalty --instance app-2 --weight 10 --reason canary"
    )]
    SetWeight {
        /// The service
        service: String,
        /// The instance, as it announced itself
        #[arg(long)]
        instance: String,
        /// 1 to 1,000; 0: as it announced itself
        #[arg(long, value_parser = clap::value_parser!(u32).range(0..=1_000))]
        weight: u32,
        #[command(flatten)]
        say: Say,
    },
    /// Give an instance no further calls; those under way are still answered
    #[command(
        after_help = "Examples:\n  holdfast services drain loyalty --instance app-2 --reason \"kernel update\""
    )]
    Drain {
        /// The service
        service: String,
        /// The instance
        #[arg(long)]
        instance: String,
        #[command(flatten)]
        say: Say,
    },
    /// Give a drained instance calls again
    #[command(
        after_help = "Examples:\n  holdfast services undrain loyalty --instance app-2 --reason done"
    )]
    Undrain {
        /// The service
        service: String,
        /// The instance
        #[arg(long)]
        instance: String,
        #[command(flatten)]
        say: Say,
    },
    /// Bound the calls to a service: in a second, at once, and of recovery
    #[command(
        after_help = "Examples:\n  holdfast services throttle loyalty --calls-per-s 200 --burst 20 --reason slow\n  holdfast services throttle loyalty --concurrency 64 --reason bulkhead\n  holdfast services throttle loyalty --calls-per-s 0 --reason healthy"
    )]
    Throttle {
        /// The service
        service: String,
        /// Calls in a second; 0: no limit
        #[arg(long)]
        calls_per_s: Option<u32>,
        /// Calls at once after a pause; 0: a tenth of a second's
        #[arg(long)]
        burst: Option<u32>,
        /// Calls under way at once; 0: as many as the instances take
        #[arg(long)]
        concurrency: Option<u32>,
        /// Calls under way at once of transactions taken up after a failover; 0: 1,024
        #[arg(long)]
        recovery: Option<u32>,
        #[command(flatten)]
        say: Say,
    },
    /// Say when a breaker opens and for how long
    #[command(
        after_help = "Examples:\n  holdfast services breaker loyalty --failures 5 --open-ms 500 --open-ms-max 10000 --reason flaky\n  holdfast services breaker loyalty --failures 0 --open-ms 0 --open-ms-max 0 --reason off"
    )]
    Breaker {
        /// The service
        service: String,
        /// Transactions in a row without an answer; 0: never
        #[arg(long)]
        failures: u32,
        /// Until the first probe, ms
        #[arg(long)]
        open_ms: u64,
        /// The longest pause, ms
        #[arg(long)]
        open_ms_max: u64,
        #[command(flatten)]
        say: Say,
    },
    /// Say how calls are shared: by weight or by load, near zones first, new instances gently
    #[command(
        visible_alias = "zone",
        after_help = "Examples:\n  holdfast services balance loyalty --zone a --zone b --reason \"leave zone c\"\n  holdfast services balance loyalty --warm-up-ms 30000 --least-load true --reason \"cold caches\""
    )]
    Balance {
        /// The service
        service: String,
        /// Preferred zones in this order; `-` alone: none
        #[arg(long = "zone", value_name = "ZONE")]
        zones: Vec<String>,
        /// A new instance's weight grows over this time, ms
        #[arg(long)]
        warm_up_ms: Option<u64>,
        /// To whom has the least under way, instead of by weight
        #[arg(long)]
        least_load: Option<bool>,
        #[command(flatten)]
        say: Say,
    },
    /// Share calls among colors; without any, colors do not matter
    #[command(
        visible_alias = "color",
        after_help = "Examples:\n  holdfast services colors loyalty blue=95 green=5 --reason canary\n  holdfast services colors loyalty --reason \"all green\""
    )]
    Colors {
        /// The service
        service: String,
        /// COLOR=SHARE, 0 to 1,000; a color that is not named gets no calls
        #[arg(value_parser = share_of)]
        shares: Vec<ColorShare>,
        #[command(flatten)]
        say: Say,
    },
    /// Call a service at an address, since it does not dial in
    #[command(
        after_help = "Examples:\n  holdfast services register loyalty --address http://10.0.0.7:8080/holdfast --reason \"no agent\"\n  holdfast services register loyalty --address - --reason \"has an agent now\""
    )]
    Register {
        /// The service
        service: String,
        /// http://host:port[/path] or grpc://host:port; `-`: none any more
        #[arg(long)]
        address: String,
        /// Calls under way at once; 0: 256
        #[arg(long, default_value_t = 0)]
        credit: u32,
        #[command(flatten)]
        say: Say,
    },
    /// Make no calls to a service: what is owed waits
    #[command(
        after_help = "Examples:\n  holdfast services pause loyalty --reason \"migration, 10 minutes\""
    )]
    Pause {
        /// The service
        service: String,
        #[command(flatten)]
        say: Say,
    },
    /// Make calls to a paused service again, at once
    #[command(after_help = "Examples:\n  holdfast services resume loyalty --reason done")]
    Resume {
        /// The service
        service: String,
        #[command(flatten)]
        say: Say,
    },
    /// List callers with a limit, and how many of their requests were turned away
    #[command(
        after_help = "Examples:\n  holdfast services callers\n  holdfast services callers --output json"
    )]
    Callers,
    /// Bound what a caller may ask: in a second, at once, and after mistakes in a row
    #[command(
        after_help = "Examples:\n  holdfast services limit-caller user/alice --requests-per-s 50 --burst 100 --reason \"runaway script\"\n  holdfast services limit-caller service/loyalty --concurrency 64 --reason bulkhead\n  holdfast services limit-caller user/alice --failures 20 --open-ms 1000 --reason \"a loop of bad requests\"\n  holdfast services limit-caller user/alice --requests-per-s 0 --burst 0 --reason repaired"
    )]
    LimitCaller {
        #[command(flatten)]
        bounds: Bounds,
        #[command(flatten)]
        say: Say,
    },
    /// Forget everything that was decided about a service
    #[command(
        after_help = "Examples:\n  holdfast services reset loyalty --reason \"as it announces itself\""
    )]
    Reset {
        /// The service
        service: String,
        #[command(flatten)]
        say: Say,
    },
}

fn share_of(text: &str) -> Result<ColorShare, String> {
    let (color, share) = text.split_once('=').ok_or("write COLOR=SHARE")?;
    let share = share.parse().map_err(|_| format!("{share:?} is no number"))?;
    Ok(ColorShare { color: color.to_owned(), share })
}

/// Carries out one command.
/// # Errors
/// It was refused, or nothing was done.
pub(crate) async fn run(args: ServicesArgs, output: Output) -> anyhow::Result<ExitCode> {
    let client = args.cluster.client()?;
    match args.command.unwrap_or(ServicesCommand::List) {
        ServicesCommand::List => list(&client.services("").await?, output)?,
        ServicesCommand::Show { service } => return show(&client, &service, output).await,
        ServicesCommand::Callers => services_callers::list(&client, output).await?,
        ServicesCommand::LimitCaller { bounds, say: Say { reason, dry_run } } => {
            services_callers::limit(&client, &bounds, &reason, dry_run, output).await?;
        }
        ServicesCommand::SetWeight { service, instance, weight, say } => {
            let set = |policy: &mut ServicePolicy| of_instance(policy, &instance).weight = weight;
            change(&client, &service, &say, output, set).await?;
        }
        ServicesCommand::Drain { service, instance, say } => {
            let set = |policy: &mut ServicePolicy| of_instance(policy, &instance).drained = true;
            change(&client, &service, &say, output, set).await?;
        }
        ServicesCommand::Undrain { service, instance, say } => {
            let set = |policy: &mut ServicePolicy| of_instance(policy, &instance).drained = false;
            change(&client, &service, &say, output, set).await?;
        }
        ServicesCommand::Throttle { service, calls_per_s, burst, concurrency, recovery, say } => {
            let set = |policy: &mut ServicePolicy| {
                for (field, given) in [
                    (&mut policy.calls_per_s, calls_per_s),
                    (&mut policy.burst, burst),
                    (&mut policy.concurrency_max, concurrency),
                    (&mut policy.recovery_max, recovery),
                ] {
                    *field = given.unwrap_or(*field);
                }
            };
            change(&client, &service, &say, output, set).await?;
        }
        ServicesCommand::Breaker { service, failures, open_ms, open_ms_max, say } => {
            let breaker = BreakerPolicy { failures, open_ms, open_ms_max };
            change(&client, &service, &say, output, |policy| policy.breaker = Some(breaker))
                .await?;
        }
        ServicesCommand::Balance { service, zones, warm_up_ms, least_load, say } => {
            let set = |policy: &mut ServicePolicy| {
                if !zones.is_empty() {
                    policy.zones = zones.iter().filter(|zone| *zone != "-").cloned().collect();
                }
                policy.warm_up_ms = warm_up_ms.unwrap_or(policy.warm_up_ms);
                let balance = |least| if least { Balance::LeastLoad } else { Balance::Unspecified };
                policy.balance = least_load.map_or(policy.balance, |least| balance(least).into());
            };
            change(&client, &service, &say, output, set).await?;
        }
        ServicesCommand::Colors { service, shares, say } => {
            change(&client, &service, &say, output, |policy| policy.colors = shares.clone())
                .await?;
        }
        ServicesCommand::Register { service, address, credit, say } => {
            let endpoint = (address != "-").then_some(Endpoint { address, credit });
            change(&client, &service, &say, output, |policy| policy.endpoint = endpoint.clone())
                .await?;
        }
        ServicesCommand::Pause { service, say } => {
            change(&client, &service, &say, output, |policy| policy.paused = true).await?;
        }
        ServicesCommand::Resume { service, say } => {
            change(&client, &service, &say, output, |policy| policy.paused = false).await?;
        }
        ServicesCommand::Reset { service, say } => {
            let reset = |policy: &mut ServicePolicy| {
                *policy = ServicePolicy { service: policy.service.clone(), ..Default::default() };
            };
            change(&client, &service, &say, output, reset).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The policy of an instance, begun if there is none.
fn of_instance<'a>(policy: &'a mut ServicePolicy, instance: &str) -> &'a mut InstancePolicy {
    let at = policy.instances.iter().position(|one| one.instance == instance);
    let at = at.unwrap_or_else(|| {
        let new = InstancePolicy { instance: instance.to_owned(), ..Default::default() };
        policy.instances.push(new);
        policy.instances.len() - 1
    });
    &mut policy.instances[at]
}

/// Attempts when others change policies at the same time.
const ATTEMPTS_MAX: u32 = 5;

/// Reads the policy, changes it and sets it, unless somebody else did meanwhile: then all again.
async fn change(
    client: &Client,
    service: &str,
    say: &Say,
    output: Output,
    set: impl Fn(&mut ServicePolicy),
) -> anyhow::Result<()> {
    let mut attempt = 1;
    loop {
        let known = client.services(service).await?;
        let state = known.services.into_iter().next().unwrap_or_default();
        let before = state.policy.unwrap_or_default();
        let mut policy = before.clone();
        service.clone_into(&mut policy.service);
        set(&mut policy);
        // What says nothing of an instance is not kept.
        policy.instances.retain(|one| one.weight > 0 || one.drained);
        let request = SetServicePolicyRequest {
            policy: Some(policy.clone()),
            expected: known.version,
            reason: say.reason.clone(),
            dry_run: say.dry_run,
        };
        match client.set_service_policy(request).await {
            Ok(reply) => {
                let cautions = cautions(&before, &policy, &state.sessions);
                return changed(&policy, reply, say.dry_run, &cautions, output);
            }
            Err(ClientError::Refused { code, .. })
                if code == "HF2404" && attempt < ATTEMPTS_MAX =>
            {
                attempt += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What whoever changes `before` into `after` would want to hear: that an instance is not there, or that nobody is left to call.
fn cautions(
    before: &ServicePolicy,
    after: &ServicePolicy,
    sessions: &[SessionState],
) -> Vec<String> {
    let service = &after.service;
    let here = |name: &str| sessions.iter().any(|session| session.instance == name);
    let absent = after
        .instances
        .iter()
        .filter(|one| !before.instances.contains(one) && !here(&one.instance));
    let mut cautions: Vec<String> = absent
        .map(|one| {
            let name = &one.instance;
            format!("no instance {name} of {service} is here; what was said of it counts when it comes. Who is here: holdfast services show {service}")
        })
        .collect();
    let drained = |policy: &ServicePolicy, name: &str| {
        policy.instances.iter().any(|one| one.instance == name && one.drained)
    };
    let gets_calls = |session: &SessionState| {
        let leaves = session.draining && !drained(before, &session.instance);
        let color = |share: &ColorShare| share.color == session.color && share.share > 0;
        let colored = after.colors.is_empty() || after.colors.iter().any(color);
        !leaves && !drained(after, &session.instance) && colored
    };
    if !after.paused && !sessions.is_empty() && !sessions.iter().any(gets_calls) {
        cautions.push(format!(
            "no instance of {service} that is here gets calls by this policy: what is owed to it waits"
        ));
    }
    cautions
}

fn changed(
    policy: &ServicePolicy,
    reply: SetPolicyReply,
    dry_run: bool,
    cautions: &[String],
    output: Output,
) -> anyhow::Result<()> {
    let version = reply.version.unwrap_or_default();
    if output == Output::Json {
        return output::print_json(&serde_json::json!({
            "service": policy.service,
            "policy": policy_json(policy),
            "version": format!("{}.{}", version.term, version.revision),
            "dry_run": dry_run,
            "nodes": reply.nodes,
            "nodes_all": reply.nodes_all,
            "warnings": cautions,
        }));
    }
    cautions.iter().for_each(|caution| exit::tell(&format!("warning: {caution}")));
    if dry_run {
        return output::print(&format!(
            "Nothing was done. The policy of {} would be:\n\n{}",
            policy.service,
            policy_text(policy)
        ));
    }
    let SetPolicyReply { nodes, nodes_all, .. } = reply;
    let rest = if nodes < nodes_all { "; the others get it when they are in reach" } else { "" };
    output::print(&format!(
        "Done: version {}.{}, on {nodes} of {nodes_all} nodes{rest}.\n\n{}",
        version.term,
        version.revision,
        policy_text(policy)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_nobody_bears_and_a_policy_that_leaves_nobody_are_told() {
        let session = |instance: &str, color: &str, draining| SessionState {
            instance: instance.into(),
            color: color.into(),
            draining,
            ..Default::default()
        };
        let policy = |set: &dyn Fn(&mut ServicePolicy)| {
            let mut policy = ServicePolicy { service: "loyalty".into(), ..Default::default() };
            set(&mut policy);
            policy
        };
        let none = policy(&|_| {});
        let both = [session("a", "blue", false), session("b", "", false)];
        let drains = |name: &'static str| policy(&|one| of_instance(one, name).drained = true);
        let told = |after: &ServicePolicy, sessions: &[SessionState]| -> Vec<String> {
            let cautions = cautions(&none, after, sessions);
            cautions.iter().map(|told| told.split(" of").next().unwrap().to_owned()).collect()
        };
        let nothing: [String; 0] = [];
        assert_eq!(told(&drains("a"), &both), nothing);
        assert_eq!(told(&drains("c"), &both), ["no instance c"]);
        assert_eq!(told(&drains("a"), &both[..1]), ["no instance"]);
        let colored = |color: &str, share| {
            let color = color.to_owned();
            policy(&move |one| one.colors.push(ColorShare { color: color.clone(), share }))
        };
        assert_eq!(told(&colored("blue", 1), &both), nothing);
        assert_eq!(told(&colored("blue", 0), &both), ["no instance"]);
        assert_eq!(told(&colored("green", 1), &both), ["no instance"]);
        assert_eq!(told(&none, &[session("a", "", true)]), ["no instance"]);
        // It is given calls again.
        assert!(cautions(&drains("a"), &none, &[session("a", "", true)]).is_empty());
    }

    #[test]
    fn shares_are_read_strictly() {
        assert_eq!(share_of("blue=5").unwrap().share, 5);
        assert!(share_of("blue").is_err() && share_of("blue=x").is_err());
    }
}
