//! Three nodes and four Raft groups: each transaction lives in one, and a node that goes costs only what it led.

use std::collections::BTreeSet;

use holdfast_client::{
    Client, ClientOptions, Filter, Outcome, Submission, Wait, group_of, wire::SearchHistoryRequest,
};
use holdfast_proto::v1::Op;
use holdfast_txn::Gid;

use crate::{
    agent::{Agent, Asked, Say},
    cluster::{Cluster, PATIENCE, until, within},
};

const GROUPS: u32 = 4;

async fn client(cluster: &Cluster) -> Client {
    let options = ClientOptions {
        patience_ms: u64::try_from(PATIENCE.as_millis()).unwrap(),
        ..ClientOptions::default()
    };
    Client::connect(cluster.grpc(), options).await.unwrap()
}

/// Begins `gids` at once and waits for the end of each.
async fn commit_all(client: &Client, gids: &[String]) {
    let submissions = gids.iter().map(|gid| {
        let submission = Submission::tcc().gid(gid).branch("deposit", "1").branch("savings", "1");
        client.submit(submission.wait(Wait::End))
    });
    for (gid, answer) in gids.iter().zip(futures::future::join_all(submissions).await) {
        let answer = answer.unwrap_or_else(|error| panic!("{gid}: {error}"));
        assert_eq!(answer.outcome, Outcome::Committed, "{gid}");
    }
}

fn gids(of: &str) -> Vec<String> {
    (0..40).map(|n| format!("{of}-{n}")).collect()
}

/// Waits until no node leads two groups more than another of `nodes`, and says who leads which.
async fn spread(cluster: &Cluster, nodes: &[u64]) -> Vec<u64> {
    within("leaders are spread", async {
        loop {
            let leaders = cluster.leaders().await;
            let counts = nodes.iter().map(|node| leaders.iter().filter(|one| *one == node).count());
            let counts: Vec<usize> = counts.collect();
            if counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1 {
                return leaders;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
}

#[test]
fn a_client_and_the_machine_agree_on_the_group_of_a_gid() {
    for n in 0..1_000 {
        let gid = format!("gid-{n}");
        for groups in [1, 2, 3, 4, 16] {
            assert_eq!(Gid::parse(&gid).unwrap().group(groups), group_of(&gid, groups), "{gid}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_led_by_different_nodes_and_survive_the_loss_of_one() {
    let mut cluster = Cluster::with_groups(3, GROUPS).await;
    let deposit = Agent::start("deposit", &cluster.grpc(), |_: &Asked| Say::Done);
    let _savings = Agent::start("savings", &cluster.grpc(), |_: &Asked| Say::Done);
    let leaders = spread(&cluster, &[1, 2, 3]).await;
    let client = client(&cluster).await;
    let first = gids("first");
    commit_all(&client, &first).await;

    // Each was called by the node that leads its group, and by no other.
    let called: BTreeSet<u64> = deposit.asked().iter().map(|asked| asked.node).collect();
    assert_eq!(called, BTreeSet::from([1, 2, 3]), "led by {leaders:?}");
    assert_eq!(deposit.count(Op::Try), first.len(), "nothing is asked twice");
    // A list, and the history, are of all groups.
    let listed = client.list(Filter { limit: 1_000, ..Filter::default() }).await.unwrap();
    assert_eq!(listed.transactions.len(), first.len());
    assert!(listed.transactions.windows(2).all(|pair| pair[0].gid < pair[1].gid));
    within("the history has them", async {
        loop {
            let found = client.search_history(SearchHistoryRequest::default()).await.unwrap();
            if found.transactions.len() == first.len() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;

    // A node goes; what it led is led by the others, and nothing is lost.
    cluster.stop(3).await;
    let leaders = cluster.leaders().await;
    assert!(!leaders.contains(&3), "{leaders:?}");
    let second = gids("second");
    commit_all(&client, &second).await;
    commit_all(&client, &first).await;
    assert_eq!(
        deposit.count(Op::Confirm),
        first.len() + second.len(),
        "a repeat is no transaction"
    );

    // It comes back, has everything, and leads its part again.
    cluster.restart(3).await;
    let leaders = spread(&cluster, &[1, 2, 3]).await;
    assert!(leaders.contains(&3), "{leaders:?}");
    commit_all(&client, &gids("third")).await;
    for group in 0..GROUPS {
        let status = |node: u64| cluster.node(node).status_in(group).unwrap();
        until("all nodes have applied as much of a group", || {
            let applied = [1, 2, 3].map(|node| status(node).applied_index);
            applied[0] > 0 && applied.iter().all(|index| *index == applied[0])
        })
        .await;
        let hashes = [1, 2, 3].map(|node| status(node).state_hash);
        assert_eq!(hashes, [hashes[0]; 3], "group {group}: equal log, equal state");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_with_room_for_one_call_serves_all_groups_of_a_node() {
    let cluster = Cluster::with_groups(1, GROUPS).await;
    let deposit = Agent::with_credit("deposit", &cluster.grpc(), 1, |_: &Asked| Say::Done);
    let _savings = Agent::start("savings", &cluster.grpc(), |_: &Asked| Say::Done);
    cluster.leaders().await;
    let gids: Vec<String> = gids("narrow").into_iter().take(12).collect();
    commit_all(&client(&cluster).await, &gids).await;
    assert_eq!(deposit.count(Op::Try), gids.len());
}
