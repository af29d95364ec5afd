//! `holdfast cluster status`: what every node says of itself, side by side.

use std::{collections::BTreeMap, process::ExitCode};

use futures::future::join_all;
use holdfast_client::{Client, ClientError, wire::NodeStatusReply};

use crate::{
    exit,
    output::{self, Output},
};

/// One node of the cluster in one Raft group, and what it said.
struct Row {
    group: u32,
    node: u64,
    grpc: String,
    said: Result<NodeStatusReply, ClientError>,
}

/// Asks one node for the members, then every member for itself.
/// # Errors
/// No node answers.
pub(super) async fn run(
    client: &Client,
    addresses: &[String],
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut first = client.node_status().await?;
    if first.members.is_empty() {
        // It waits to be let in, and another may know who is in.
        for address in addresses {
            if let Ok(said) = client.node_status_of(address, 0).await
                && !said.members.is_empty()
            {
                first = said;
                break;
            }
        }
    }
    let members: BTreeMap<u64, String> =
        first.members.iter().map(|member| (member.node, member.grpc.clone())).collect();
    let groups = first.groups.max(1);
    let mut all = Vec::new();
    let mut troubles = Vec::new();
    for group in 0..groups {
        let asked = members.iter().map(|(node, grpc)| ask(client, group, *node, grpc.clone()));
        let rows = join_all(asked).await;
        let found = self::troubles(&rows).into_iter();
        troubles.extend(found.map(|trouble| match groups {
            1 => trouble,
            _ => format!("group {group}: {trouble}"),
        }));
        all.push(rows);
    }
    let rows = || all.iter().flat_map(|rows| rows.iter().map(|row| (row, behind(rows, row.node))));
    match output {
        Output::Table => {
            let heads = [
                "group",
                "node",
                "role",
                "term",
                "applied",
                "last",
                "behind",
                "open",
                "attention",
                "state",
                "grpc",
            ];
            // Where there is one group, nobody needs to know that there could be more.
            let from = usize::from(groups == 1);
            let lines = rows().map(|(row, behind)| cells(row, behind).split_off(from));
            output::print(&output::table(&heads[from..], lines))?;
            for trouble in &troubles {
                exit::tell(trouble);
            }
        }
        Output::Json => {
            output::print_json(&serde_json::json!({
                "groups": groups,
                "nodes": rows().map(|(row, behind)| json_of(row, behind)).collect::<Vec<_>>(),
                "troubles": troubles,
            }))?;
        }
    }
    Ok(if troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILED) })
}

async fn ask(client: &Client, group: u32, node: u64, grpc: String) -> Row {
    let said = client.hashed_status_of(&grpc, group).await;
    Row { group, node, grpc, said }
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
    if rows.is_empty() {
        troubles.push(
            "whoever was asked is in no cluster yet: it waits for a majority to found one, or to be let in. Ask a member with --coordinator"
                .to_owned(),
        );
    } else if !said().any(|node| node.role == "leader") {
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
    for node in said().filter(|node| node.role == "leader") {
        for member in &node.members {
            let Some(own) = said().find(|said| said.node == member.node) else { continue };
            if member.incarnation != 0
                && own.incarnation != 0
                && member.incarnation != own.incarnation
            {
                troubles.push(format!(
                    "node {} came back with another directory than the member had, and is not let in: holdfast cluster replace {}",
                    member.node, member.node
                ));
            }
        }
        for member in node.members.iter().filter(|member| !member.voter) {
            troubles.push(format!(
                "node {} is a learner, without a vote: holdfast cluster add {} goes on with it, holdfast cluster remove {} ends it",
                member.node, member.node, member.node
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

/// How many entries the leader has that the node is not known to hold.
fn behind(rows: &[Row], node: u64) -> Option<u64> {
    let said = rows.iter().filter_map(|row| row.said.as_ref().ok());
    let leader = said.filter(|said| said.role == "leader").max_by_key(|said| said.term)?;
    let member = leader.members.iter().find(|member| member.node == node)?;
    Some(leader.last_index.saturating_sub(member.matched_index.unwrap_or(0)))
}

fn cells(row: &Row, behind: Option<u64>) -> Vec<String> {
    let behind = behind.map_or_else(|| "-".to_owned(), |entries| entries.to_string());
    match &row.said {
        Ok(said) => vec![
            row.group.to_string(),
            row.node.to_string(),
            said.role.clone(),
            said.term.to_string(),
            said.applied_index.to_string(),
            said.last_index.to_string(),
            behind,
            said.open_transactions.to_string(),
            said.needs_attention.to_string(),
            said.state_hash.chars().take(12).collect(),
            row.grpc.clone(),
        ],
        Err(_) => {
            let mut cells =
                vec![row.group.to_string(), row.node.to_string(), "no answer".to_owned()];
            cells.resize(6, "-".to_owned());
            cells.push(behind);
            cells.resize(10, "-".to_owned());
            cells.push(row.grpc.clone());
            cells
        }
    }
}

fn json_of(row: &Row, behind: Option<u64>) -> serde_json::Value {
    match &row.said {
        Ok(said) => serde_json::json!({
            "group": row.group,
            "node": row.node,
            "grpc": row.grpc,
            "role": said.role,
            "term": said.term,
            "leader": said.leader,
            "applied_index": said.applied_index,
            "last_index": said.last_index,
            "behind": behind,
            "snapshot_index": said.snapshot_index,
            "founding": format!("{:016x}", said.founding),
            "cluster_format": said.cluster_format,
            "voters": said.members.iter().filter(|member| member.voter).map(|member| member.node).collect::<Vec<_>>(),
            "learners": said.members.iter().filter(|member| !member.voter).map(|member| member.node).collect::<Vec<_>>(),
            "state_hash": said.state_hash,
            "open_transactions": said.open_transactions,
            "needs_attention": said.needs_attention,
            "by_status": said.by_status.iter().collect::<BTreeMap<_, _>>(),
        }),
        Err(error) => serde_json::json!({
            "group": row.group,
            "node": row.node,
            "grpc": row.grpc,
            "role": null,
            "error": error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_client::wire;

    use super::*;

    fn row(node: u64, role: &str, applied_index: u64, state_hash: &str) -> Row {
        let said = NodeStatusReply {
            node,
            role: role.into(),
            applied_index,
            state_hash: state_hash.into(),
            ..Default::default()
        };
        Row { group: 0, node, grpc: "127.0.0.1:1".into(), said: Ok(said) }
    }

    #[test]
    fn a_cluster_that_is_well_has_no_troubles() {
        let rows =
            [row(1, "leader", 7, "aa"), row(2, "follower", 6, "bb"), row(3, "follower", 7, "aa")];
        assert!(troubles(&rows).is_empty());
    }

    #[test]
    fn a_member_that_came_back_with_another_directory_is_told_and_one_from_an_older_version_is_not()
    {
        let mut rows = [row(1, "leader", 7, "aa"), row(2, "learner", 0, "bb")];
        let leader = rows[0].said.as_mut().unwrap();
        leader.members =
            vec![wire::Member { node: 2, voter: true, incarnation: 5, ..Default::default() }];
        for (own, told) in [(5, false), (0, false), (6, true)] {
            rows[1].said.as_mut().unwrap().incarnation = own;
            let troubles = troubles(&rows);
            assert_eq!(troubles.iter().any(|one| one.contains("cluster replace 2")), told);
        }
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
            Row { group: 0, node: 1, grpc: "127.0.0.1:1".into(), said: Err(silent) },
            row(2, "follower", 7, "bb"),
        ];
        let troubles = troubles(&rows);
        assert_eq!(troubles.len(), 2, "{troubles:?}");
    }
}
