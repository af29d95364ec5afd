//! `holdfast config reload`: has running coordinators read their configuration again, and shows the difference.

use std::process::ExitCode;

use holdfast_client::wire::{ConfigDifference, ReloadConfigReply, ReloadConfigRequest};

use crate::{
    exit,
    output::{self, Output},
    tx::ClusterAddresses,
};

/// Which nodes, and whether it is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct ReloadArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    /// Why, for the people who read it later; 1 to 1,024 bytes
    #[arg(long)]
    reason: String,
    /// Change nothing: only show the difference, and what would become of it
    #[arg(long)]
    dry_run: bool,
}

/// Asks each node that was named, one after the other; the first that refuses ends it.
/// # Errors
/// A node cannot be reached, or its configuration has mistakes.
pub(crate) async fn run(args: &ReloadArgs, output: Output) -> anyhow::Result<ExitCode> {
    let client = args.cluster.client()?;
    let mut replies = Vec::new();
    for address in &args.cluster.addresses {
        let request = ReloadConfigRequest { dry_run: args.dry_run, reason: args.reason.clone() };
        replies.push(client.reload_config(address, request).await?);
    }
    match output {
        Output::Json => output::print_json(&replies.iter().map(reply_json).collect())?,
        Output::Table => output::print(&text(&replies, args.dry_run))?,
    }
    let refused = |one: &ConfigDifference| one.verdict == "refused";
    let any = replies.iter().flat_map(|reply| &reply.differences).any(refused);
    Ok(if any { ExitCode::from(exit::REFUSED) } else { ExitCode::SUCCESS })
}

fn text(replies: &[ReloadConfigReply], dry_run: bool) -> String {
    let rows: Vec<Vec<String>> = replies
        .iter()
        .flat_map(|reply| reply.differences.iter().map(move |one| row(reply.node, one)))
        .collect();
    let nodes: Vec<String> = replies.iter().map(|reply| reply.node.to_string()).collect();
    let nodes = nodes.join(", ");
    if rows.is_empty() {
        return format!("No difference: what is said is what node {nodes} runs with.");
    }
    let said = if dry_run { "Nothing was done. It would be so:\n\n" } else { "" };
    let head = ["node", "key", "from", "to", "what becomes of it", "cause"];
    format!("{said}{}", output::table(&head, rows))
}

fn row(node: u64, one: &ConfigDifference) -> Vec<String> {
    let ConfigDifference { key, from, to, verdict, cause } = one;
    let verdict = match verdict.as_str() {
        "taken_over" => "taken over",
        "after_restart" => "counts after a restart",
        other => other,
    };
    let shown = |value: &String| if value.is_empty() { "-".to_owned() } else { value.clone() };
    vec![node.to_string(), key.clone(), shown(from), shown(to), verdict.to_owned(), cause.clone()]
}

fn reply_json(reply: &ReloadConfigReply) -> serde_json::Value {
    let differences = reply.differences.iter().map(|one| {
        serde_json::json!({
            "key": one.key, "from": one.from, "to": one.to, "verdict": one.verdict, "cause": one.cause,
        })
    });
    serde_json::json!({
        "node": reply.node,
        "dry_run": reply.dry_run,
        "differences": differences.collect::<Vec<_>>(),
    })
}
