//! `holdfast rules apply|revert|show|history|routers`: the shard rules in the coordinator's log, and who goes by them.

use std::{fmt::Write as _, path::Path, process::ExitCode, sync::Arc};

use holdfast_client::{
    Client, ClientError,
    wire::{ApplyRulesReply, ApplyRulesRequest, ListRoutersReply, RevertRulesRequest, ShardRules},
};
use holdfast_route::{RuleMistakes, Topology};
use serde_json::json;

use crate::{
    config,
    exit::{self, Usage},
    output::{self, Output},
    rules_plan,
};

/// Why, by whom, against which rules, and whether it is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Say {
    /// Why, for the people who read it later; 1 to 1,024 bytes
    #[arg(long)]
    pub(crate) reason: String,
    /// The epoch of the rules that these follow (0: there are none); otherwise nothing is done. Without it: those in force now
    #[arg(long, value_name = "EPOCH")]
    pub(crate) expected_epoch: Option<u64>,
    /// Only check, and show what would change
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Rows lie already where these rules look for them, though a slot's source, a key, a slot function or a table's place differs; it is recorded with the reason
    #[arg(long)]
    pub(crate) rows_are_moved: bool,
    /// Who acts, in mode dev-plaintext alone; it proves nothing and is recorded as dev:NAME
    #[arg(long = "as", value_name = "NAME", default_value = "")]
    pub(crate) dev_name: String,
}

/// The rules in force; nothing if none were ever applied.
async fn in_force(client: &Client) -> anyhow::Result<Option<ShardRules>> {
    match client.rules(0).await {
        Ok(rules) => Ok(Some(rules)),
        Err(ClientError::Refused { code, .. }) if code == "HF2409" => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read(file: &str, text: &str) -> anyhow::Result<Arc<Topology>> {
    let read = Topology::parse(text);
    Ok(Arc::new(
        read.map_err(|mistakes| {
            Usage(RuleMistakes { file: file.to_owned(), mistakes }.to_string())
        })?,
    ))
}

/// Applies the rules in `file`, or shows what that would change.
/// # Errors
/// The file cannot be read or has mistakes, the cluster refuses, or cannot be reached.
pub(crate) async fn apply(
    client: &Client,
    file: &Path,
    say: Say,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let text = config::read_text(file).map_err(|mistake| Usage(mistake.to_string()))?;
    let after = read(&file.display().to_string(), &text)?;
    let now = in_force(client).await?;
    let expected_epoch = say.expected_epoch.unwrap_or_else(|| epoch_of(now.as_ref()));
    let dry_run = say.dry_run;
    let request = ApplyRulesRequest {
        text,
        expected_epoch,
        reason: say.reason,
        dry_run,
        dev_name: say.dev_name,
        rows_are_moved: say.rows_are_moved,
        on_behalf_of: None,
    };
    let reply = client.apply_rules(request).await?;
    told(now.as_ref(), &after, &reply, dry_run, output)
}

/// Puts the rules of epoch `to` into force again, or shows what that would change.
/// # Errors
/// The cluster refuses, or cannot be reached.
pub(crate) async fn revert(
    client: &Client,
    to: Option<u64>,
    say: Say,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let now = in_force(client).await?;
    let epoch = epoch_of(now.as_ref());
    let to = to.unwrap_or_else(|| epoch.saturating_sub(1));
    if to == 0 {
        let words = "there is no epoch before this one to revert to. See: holdfast rules history";
        return Err(Usage(words.to_owned()).into());
    }
    let after = read(&format!("epoch {to}"), &client.rules(to).await?.text)?;
    let expected_epoch = say.expected_epoch.unwrap_or(epoch);
    let dry_run = say.dry_run;
    let request = RevertRulesRequest {
        to_epoch: to,
        expected_epoch,
        reason: say.reason,
        dry_run,
        dev_name: say.dev_name,
        rows_are_moved: say.rows_are_moved,
        on_behalf_of: None,
    };
    let reply = client.revert_rules(request).await?;
    told(now.as_ref(), &after, &reply, dry_run, output)
}

fn epoch_of(now: Option<&ShardRules>) -> u64 {
    now.map_or(0, |rules| rules.epoch)
}

fn told(
    now: Option<&ShardRules>,
    after: &Arc<Topology>,
    reply: &ApplyRulesReply,
    dry_run: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let before = now.and_then(|rules| Topology::parse(&rules.text).ok());
    let changes = before.map(|before| rules_plan::Changes::between(&before, after));
    if output == Output::Json {
        let mut answer = json!({
            "epoch": reply.epoch,
            "before": epoch_of(now),
            "repeated": reply.repeated,
            "dry_run": dry_run,
        });
        changes.unwrap_or_default().put_json(&mut answer);
        output::print_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = match (dry_run, reply.repeated) {
        (true, _) => {
            format!("Nothing was done. The rules would be in force as epoch {}.", reply.epoch)
        }
        (false, true) => format!("They were applied already, as epoch {}.", reply.epoch),
        (false, false) => format!("The rules are in force as epoch {}.", reply.epoch),
    };
    let changes = changes.map(|changes| format!("\n\n{}", changes.text())).unwrap_or_default();
    output::print(&format!("{what}{changes}"))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the rules in force, or those of `epoch`.
/// # Errors
/// There are none, or the cluster cannot be reached.
pub(crate) async fn show(client: &Client, epoch: u64, output: Output) -> anyhow::Result<ExitCode> {
    let rules = client.rules(epoch).await?;
    match output {
        Output::Json => output::print_json(&json!({
            "epoch": rules.epoch,
            "at": output::rfc3339(rules.at_ms),
            "by": rules.by,
            "reason": rules.reason,
            "text": rules.text,
        }))?,
        Output::Table => {
            exit::tell(&format!(
                "# epoch {}, applied {} by {}: {}",
                rules.epoch,
                output::rfc3339(rules.at_ms),
                rules.by,
                rules.reason
            ));
            output::print(rules.text.trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the versions that are kept.
/// # Errors
/// The cluster cannot be reached.
pub(crate) async fn history(client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    let versions = client.rules_versions().await?;
    match output {
        Output::Json => {
            let versions = versions.iter().map(|one| {
                json!({
                    "epoch": one.epoch,
                    "at": output::rfc3339(one.at_ms),
                    "by": one.by,
                    "reason": one.reason,
                })
            });
            output::print_json(&json!({ "versions": versions.collect::<Vec<_>>() }))?;
        }
        Output::Table => {
            let rows = versions.into_iter().map(|one| {
                vec![one.epoch.to_string(), output::rfc3339(one.at_ms), one.by, one.reason]
            });
            output::print(&output::table(&["epoch", "applied", "by", "reason"], rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the routers whose leases have not ended, as the leader knows them.
/// # Errors
/// The cluster cannot be reached.
pub(crate) async fn routers(client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    let ListRoutersReply { routers, unknown_ms, epoch } = client.routers().await?;
    match output {
        Output::Json => {
            let routers = routers.iter().map(|one| {
                json!({
                    "router": one.router,
                    "address": one.address,
                    "epoch": one.epoch,
                    "oldest_epoch": one.oldest_epoch,
                    "lease_left_ms": one.lease_left_ms,
                    "heard_ms": one.heard_ms,
                })
            });
            output::print_json(&json!({
                "routers": routers.collect::<Vec<_>>(),
                "unknown_ms": unknown_ms,
                "epoch": epoch,
            }))?;
        }
        Output::Table => {
            let rows = routers.into_iter().map(|one| {
                vec![
                    one.router,
                    one.address,
                    one.epoch.to_string(),
                    one.oldest_epoch.to_string(),
                    format!("{} ms", one.lease_left_ms),
                    format!("{} ms ago", one.heard_ms),
                ]
            });
            let head = ["router", "address", "epoch", "oldest epoch", "lease left", "heard"];
            let mut told = output::table(&head, rows);
            if unknown_ms > 0 {
                write!(
                    told,
                    "\nThere may be others for {unknown_ms} ms: this leader is new, and has not heard of every router that has a lease from the one before."
                )?;
            }
            output::print(&told)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
