//! `holdfast cluster status`: what every node says of itself, side by side.

use std::{collections::BTreeMap, process::ExitCode};

use futures::future::join_all;
use holdfast_client::{Client, ClientError, wire::NodeStatusReply};

use crate::{
    exit,
    output::{self, Output},
    tx::ClusterAddresses,
};

/// Looks at the cluster.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast cluster status
  holdfast cluster status --coordinator 127.0.0.1:7411 --output json")]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ClusterCommand {
    /// Ask every node for its role, term, log, load and state hash
    #[command(
        after_help = "Examples:\n  holdfast cluster status\n\nExit codes: 0 well; 1 no leader, a node without answer, or states that differ."
    )]
    Status,
}

/// One node of the cluster, and what it said.
struct Row {
    node: u64,
    grpc: String,
    said: Result<NodeStatusReply, ClientError>,
}

/// Asks one node for the members, then every member for itself.
/// # Errors
/// No node answers.
pub(crate) async fn run(args: ClusterArgs, output: Output) -> anyhow::Result<ExitCode> {
    let ClusterCommand::Status = args.command;
    let client = args.cluster.client()?;
    let first = client.node_status().await?;
    let members: BTreeMap<u64, String> =
        first.members.iter().map(|member| (member.node, member.grpc.clone())).collect();
    let rows = join_all(members.into_iter().map(|(node, grpc)| ask(&client, node, grpc))).await;
    let troubles = troubles(&rows);
    match output {
        Output::Table => {
            output::print(&output::table(
                &["node", "role", "term", "applied", "last", "open", "attention", "state", "grpc"],
                rows.iter().map(cells),
            ))?;
            for trouble in &troubles {
                exit::tell(trouble);
            }
        }
        Output::Json => {
            output::print_json(&serde_json::json!({
                "nodes": rows.iter().map(json_of).collect::<Vec<_>>(),
                "troubles": troubles,
            }))?;
        }
    }
    Ok(if troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILED) })
}

async fn ask(client: &Client, node: u64, grpc: String) -> Row {
    let said = client.node_status_of(&grpc).await;
    Row { node, grpc, said }
}

/// What people should look at.
fn troubles(rows: &[Row]) -> Vec<String> {
    let mut troubles = Vec::new();
    let said = || rows.iter().filter_map(|row| row.said.as_ref().ok());
    for row in rows {
        if let Err(error) = &row.said {
            troubles.push(format!("node {} at {} does not answer: {error}", row.node, row.grpc));
        }
    }
    if !said().any(|node| node.role == "leader") {
        troubles.push(
            "no node leads: nothing is accepted until a majority can reach each other".to_owned(),
        );
    }
    let mut hashes: BTreeMap<u64, (u64, &str)> = BTreeMap::new();
    for node in said().filter(|node| !node.state_hash.is_empty()) {
        let (first, hash) =
            *hashes.entry(node.applied_index).or_insert((node.node, &node.state_hash));
        if hash != node.state_hash {
            troubles.push(format!(
                "nodes {first} and {} applied the same log up to {} and have different states: stop both, keep their files, and report it",
                node.node, node.applied_index
            ));
        }
    }
    let attention = said().map(|node| node.needs_attention).max().unwrap_or_default();
    if attention > 0 {
        troubles.push(format!(
            "{attention} transactions need attention: holdfast tx list --status needs_attention"
        ));
    }
    troubles
}

fn cells(row: &Row) -> Vec<String> {
    match &row.said {
        Ok(said) => vec![
            row.node.to_string(),
            said.role.clone(),
            said.term.to_string(),
            said.applied_index.to_string(),
            said.last_index.to_string(),
            said.open_transactions.to_string(),
            said.needs_attention.to_string(),
            said.state_hash.chars().take(12).collect(),
            row.grpc.clone(),
        ],
        Err(_) => {
            let mut cells = vec![row.node.to_string(), "no answer".to_owned()];
            cells.resize(8, "-".to_owned());
            cells.push(row.grpc.clone());
            cells
        }
    }
}

fn json_of(row: &Row) -> serde_json::Value {
    match &row.said {
        Ok(said) => serde_json::json!({
            "node": row.node,
            "grpc": row.grpc,
            "role": said.role,
            "term": said.term,
            "leader": said.leader,
            "applied_index": said.applied_index,
            "last_index": said.last_index,
            "state_hash": said.state_hash,
            "open_transactions": said.open_transactions,
            "needs_attention": said.needs_attention,
            "by_status": said.by_status.iter().collect::<BTreeMap<_, _>>(),
        }),
        Err(error) => serde_json::json!({
            "node": row.node,
            "grpc": row.grpc,
            "role": null,
            "error": error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(node: u64, role: &str, applied_index: u64, state_hash: &str) -> Row {
        let said = NodeStatusReply {
            node,
            role: role.into(),
            applied_index,
            state_hash: state_hash.into(),
            ..Default::default()
        };
        Row { node, grpc: "127.0.0.1:1".into(), said: Ok(said) }
    }

    #[test]
    fn a_cluster_that_is_well_has_no_troubles() {
        let rows =
            [row(1, "leader", 7, "aa"), row(2, "follower", 6, "bb"), row(3, "follower", 7, "aa")];
        assert!(troubles(&rows).is_empty());
    }

    #[test]
    fn equal_logs_with_different_states_are_told() {
        let rows = [row(1, "leader", 7, "aa"), row(2, "follower", 7, "bb")];
        let troubles = troubles(&rows);
        assert!(troubles.len() == 1 && troubles[0].contains("different states"), "{troubles:?}");
    }

    #[test]
    fn a_silent_node_and_a_missing_leader_are_told() {
        let silent = ClientError::Unreachable { patience_ms: 1, last: "refused".into() };
        let rows = [
            Row { node: 1, grpc: "127.0.0.1:1".into(), said: Err(silent) },
            row(2, "follower", 7, "bb"),
        ];
        let troubles = troubles(&rows);
        assert_eq!(troubles.len(), 2, "{troubles:?}");
    }
}
