//! Is the cluster well: who answers, who leads, do they agree, is anything stuck.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use holdfast_client::{Client, ClientError, ErrorKind, wire::NodeStatusReply};
use holdfast_txn::limit;
use tokio::time::Instant;

use super::finding::{Finding, State, state};

/// Entries that a follower may be behind before people should look.
const BEHIND_MAX: u64 = 10_000;
/// A linearizable read is one round to a quorum.
const READ_SLOW_MS: u128 = 100;
/// No such transaction is ever begun: the question is answered, the answer is a refusal.
const NOBODYS_GID: &str = "holdfast-check-nobodys-gid";

/// One node and what it said, or what kept it from answering.
pub(super) struct Asked {
    node: u64,
    grpc: String,
    said: Result<NodeStatusReply, ClientError>,
}

/// Asks one node for the members and each member for itself.
pub(super) async fn check(client: &Client) -> Vec<Finding> {
    let first = match client.node_status().await {
        Ok(first) => first,
        Err(error) => {
            let remedy =
                "Start the nodes, or name one that runs: --coordinator HOST:PORT (its gRPC door).";
            let cause = error.to_string();
            return vec![Finding::new("cluster.answers", "", State::Failed, cause, remedy)];
        }
    };
    let groups = first.groups.max(1);
    let mut found = Vec::new();
    for group in 0..groups {
        let nodes: Vec<Asked> = join_all(first.members.iter().map(|member| async {
            let said = client.hashed_status_of(&member.grpc, group).await;
            Asked { node: member.node, grpc: member.grpc.clone(), said }
        }))
        .await;
        let judged = judge(&nodes).into_iter();
        found.extend(judged.map(|finding| finding.about_group(group, groups)));
    }
    let begun = Instant::now();
    let answered = client.get(NOBODYS_GID).await.map(drop);
    found.push(read(answered, begun.elapsed().as_millis()));
    found
}

/// What the nodes' words say together.
fn judge(nodes: &[Asked]) -> Vec<Finding> {
    let mut found: Vec<Finding> = nodes.iter().map(answers).collect();
    let said: Vec<&NodeStatusReply> =
        nodes.iter().filter_map(|node| node.said.as_ref().ok()).collect();
    found.extend([
        leader(&said),
        terms(&said),
        size(nodes),
        membership(&said),
        hashes(&said),
        attention(&said),
        open(&said),
    ]);
    found.extend(behind(&said));
    found
}

fn answers(node: &Asked) -> Finding {
    let subject = format!("node {} at {}", node.node, node.grpc);
    match &node.said {
        Ok(said) => Finding::new("cluster.answers", subject, State::Ok, said.role.clone(), ""),
        Err(error) => {
            let remedy =
                "Start it, or mend the network; if it is gone for good: holdfast cluster replace.";
            Finding::new("cluster.answers", subject, State::Failed, error.to_string(), remedy)
        }
    }
}

fn leader(said: &[&NodeStatusReply]) -> Finding {
    let leaders: BTreeSet<u64> =
        said.iter().filter(|node| node.role == "leader").map(|node| node.node).collect();
    let followed: BTreeSet<u64> =
        said.iter().map(|node| node.leader).filter(|leader| *leader != 0).collect();
    let agreed = leaders.len() == 1 && followed == leaders;
    let found = match leaders.len() {
        0 => "no node leads".to_owned(),
        _ => format!("{} leads; followed: {}", words(&leaders), words(&followed)),
    };
    let remedy = "A majority of the nodes must be up and reach each other's Raft door (7402).";
    Finding::new("cluster.leader", "", state(agreed, State::Failed), found, remedy)
}

fn words(numbers: &BTreeSet<u64>) -> String {
    let words: Vec<String> = numbers.iter().map(|number| format!("node {number}")).collect();
    if words.is_empty() { "nobody".to_owned() } else { words.join(", ") }
}

fn terms(said: &[&NodeStatusReply]) -> Finding {
    let terms: BTreeSet<u64> = said.iter().map(|node| node.term).collect();
    let found = terms.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let remedy =
        "An election may be under way; ask again. If it lasts, a node is cut off from the others.";
    let sound = terms.len() <= 1;
    Finding::new("cluster.terms", "", state(sound, State::Warning), format!("term {found}"), remedy)
}

fn size(nodes: &[Asked]) -> Finding {
    let count = nodes.len();
    let survived = count.saturating_sub(1) / 2;
    let found = match count {
        1 => "one member alone survives no loss".to_owned(),
        _ => format!("{count} members survive the loss of {survived}"),
    };
    let remedy = "Run three nodes, or five: an even number survives no more than one less, a single node survives nothing.";
    let sound = count >= 3 && count % 2 == 1;
    Finding::new("cluster.size", "", state(sound, State::Warning), found, remedy)
}

fn membership(said: &[&NodeStatusReply]) -> Finding {
    let seen: BTreeSet<Vec<u64>> = said
        .iter()
        .map(|node| {
            let mut members: Vec<u64> = node.members.iter().map(|member| member.node).collect();
            members.sort_unstable();
            members
        })
        .collect();
    let found = match seen.len() {
        0 | 1 => "all name the same members".to_owned(),
        several => format!("{several} different lists of members"),
    };
    let remedy = "A change of members may be under way; ask again. If it lasts, the odd one belongs to another cluster: stop it.";
    Finding::new("cluster.membership", "", state(seen.len() <= 1, State::Warning), found, remedy)
}

fn hashes(said: &[&NodeStatusReply]) -> Finding {
    let mut by_index: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for node in said.iter().filter(|node| !node.state_hash.is_empty()) {
        by_index.entry(node.applied_index).or_default().insert(&node.state_hash);
    }
    let differ = by_index.iter().find(|(_, hashes)| hashes.len() > 1);
    let remedy =
        "Stop the nodes, keep their files, and report it: equal logs must make equal states.";
    let (state, found) = match differ {
        Some((index, _)) => (State::Failed, format!("different states after entry {index}")),
        None => (State::Ok, "no two nodes disagree".to_owned()),
    };
    Finding::new("cluster.state", "", state, found, remedy)
}

fn attention(said: &[&NodeStatusReply]) -> Finding {
    let most = said.iter().map(|node| node.needs_attention).max().unwrap_or_default();
    let remedy =
        "holdfast tx list --status needs_attention; mend the cause, then holdfast tx retry.";
    let found = format!("{most} transactions need attention");
    Finding::new("cluster.attention", "", state(most == 0, State::Failed), found, remedy)
}

fn open(said: &[&NodeStatusReply]) -> Finding {
    let most = said.iter().map(|node| node.open_transactions).max().unwrap_or_default();
    let allowed = limit::OPEN_MAX as u64;
    let remedy = "Find the participant that does not answer (holdfast_calls_parked, holdfast tx list): new begins are refused at the limit.";
    let found = format!("{most} of {allowed} open transactions");
    Finding::new("cluster.open", "", state(most < allowed / 10 * 8, State::Warning), found, remedy)
}

fn behind(said: &[&NodeStatusReply]) -> Vec<Finding> {
    let Some(last) = said.iter().map(|node| node.last_index).max() else { return Vec::new() };
    let of = |node: &&NodeStatusReply| {
        let behind = last.saturating_sub(node.applied_index);
        let remedy =
            "It may have just started; if the number does not fall, look at its disk and its log.";
        Finding::new(
            "cluster.behind",
            format!("node {}", node.node),
            state(behind <= BEHIND_MAX, State::Warning),
            format!("{behind} entries behind the newest"),
            remedy,
        )
    };
    said.iter().map(of).collect()
}

/// A question that only a leader with a quorum can answer, and how long it took.
fn read(answered: Result<(), ClientError>, ms: u128) -> Finding {
    let answered = match answered {
        Err(error) if error.kind() != ErrorKind::Refused => Err(error),
        _ => Ok(()),
    };
    let remedy =
        "Nothing can be begun or decided: see the leader and the nodes that do not answer.";
    match answered {
        Ok(()) => {
            let state = state(ms <= READ_SLOW_MS, State::Warning);
            let remedy = "The network or the leader is slow: see holdfast top.";
            let found = format!("a linearizable read takes {ms} ms");
            Finding::new("cluster.read", "", state, found, remedy)
        }
        Err(error) => Finding::new("cluster.read", "", State::Failed, error.to_string(), remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::finding::assert_told, *};

    fn node(node: u64, role: &str, leader: u64, hash: &str) -> Asked {
        let said = NodeStatusReply {
            node,
            role: role.into(),
            term: 3,
            leader,
            applied_index: 9,
            last_index: 9,
            state_hash: hash.into(),
            ..Default::default()
        };
        Asked { node, grpc: "127.0.0.1:1".into(), said: Ok(said) }
    }

    fn not_well(nodes: &[Asked]) -> Vec<&'static str> {
        let found = judge(nodes);
        found.iter().filter(|finding| finding.state != State::Ok).map(|one| one.check).collect()
    }

    #[test]
    fn three_nodes_that_agree_are_well() {
        let nodes = [
            node(1, "leader", 1, "aa"),
            node(2, "follower", 1, "aa"),
            node(3, "follower", 1, "aa"),
        ];
        assert!(not_well(&nodes).is_empty());
    }

    #[test]
    fn a_node_that_follows_another_leader_is_told() {
        let nodes = [
            node(1, "leader", 1, "aa"),
            node(2, "follower", 3, "aa"),
            node(3, "follower", 1, "aa"),
        ];
        assert_eq!(not_well(&nodes), ["cluster.leader"]);
    }

    #[test]
    fn different_states_an_even_number_and_a_backlog_are_told() {
        let mut nodes = [node(1, "leader", 1, "aa"), node(2, "follower", 1, "bb")];
        if let Ok(said) = &mut nodes[0].said {
            said.last_index = 9 + BEHIND_MAX + 1;
            said.needs_attention = 1;
        }
        let told = not_well(&nodes);
        for check in ["cluster.size", "cluster.state", "cluster.attention", "cluster.behind"] {
            assert!(told.contains(&check), "{check}: {told:?}");
        }
    }

    fn down() -> ClientError {
        ClientError::Unreachable { patience_ms: 0, last: "it is down".to_owned() }
    }

    #[test]
    fn every_check_of_a_cluster_has_a_state_that_it_tells() {
        type Change = fn(&mut Vec<Asked>);
        fn said(node: &mut Asked) -> &mut NodeStatusReply {
            node.said.as_mut().expect("it answers")
        }
        let changes: [(&str, Change); 9] = [
            ("cluster.answers", |nodes| nodes[2].said = Err(down())),
            ("cluster.leader", |nodes| said(&mut nodes[0]).role = "follower".into()),
            ("cluster.terms", |nodes| said(&mut nodes[1]).term = 4),
            ("cluster.size", |nodes| drop(nodes.pop())),
            ("cluster.membership", |nodes| said(&mut nodes[1]).members.push(Default::default())),
            ("cluster.state", |nodes| said(&mut nodes[1]).state_hash = "bb".into()),
            ("cluster.attention", |nodes| said(&mut nodes[0]).needs_attention = 1),
            ("cluster.open", |nodes| {
                said(&mut nodes[0]).open_transactions = limit::OPEN_MAX as u64
            }),
            ("cluster.behind", |nodes| said(&mut nodes[1]).last_index = 10 + BEHIND_MAX),
        ];
        let well = || {
            let follower = |number| node(number, "follower", 1, "aa");
            vec![node(1, "leader", 1, "aa"), follower(2), follower(3)]
        };
        let names: BTreeSet<&str> = judge(&well()).iter().map(|one| one.check).collect();
        assert_eq!(names, changes.iter().map(|(check, _)| *check).collect(), "each is here");
        for (check, change) in changes {
            let mut nodes = well();
            change(&mut nodes);
            let found = judge(&nodes);
            let told = found.iter().find(|one| one.check == check && one.state != State::Ok);
            assert_told(told.unwrap_or_else(|| panic!("{check}: {found:?}")));
        }
        assert_eq!(read(Ok(()), READ_SLOW_MS).state, State::Ok);
        assert_told(&read(Ok(()), READ_SLOW_MS + 1));
        assert_told(&read(Err(down()), 1));
    }
}
