//! Three nodes: a leader goes between a call and its report, and the next one just asks what is due.

use holdfast_coordinator::{Freshness, ProposeError, WaitEnd, WaitUntil};
use holdfast_proto::v1::Op;
use holdfast_txn::{Gid, Status};

use crate::{
    agent::{Agent, Asked, Say},
    cluster::{Begin, Cluster, PATIENCE, until, within},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_goes_between_call_and_report_is_followed_by_one_that_asks_again() {
    let mut cluster = Cluster::start(3).await;
    let first = cluster.leader().await.config().node.id;
    let deposit = Agent::start("deposit", &cluster.grpc(), |_: &Asked| Say::Done);
    // What savings has to say never reaches the first leader, so that deposit's answer is heard and not reported.
    let savings = Agent::start("savings", &cluster.grpc(), move |asked: &Asked| {
        if asked.node == first { Say::Nothing } else { Say::Done }
    });
    cluster.begin(&Begin::tcc("g1")).await;
    until("both are asked", || deposit.count(Op::Try) == 1 && savings.count(Op::Try) == 1).await;
    let waits = {
        let (leader, gid) = (cluster.leader().await, Gid::parse("g1").unwrap());
        tokio::spawn(async move { leader.wait(&gid, WaitUntil::End, PATIENCE).await })
    };
    cluster.stop(first).await;
    let waited = within("the wait", waits).await.unwrap();
    assert_eq!(waited.end, WaitEnd::NotLeading, "an open outcome is told as unknown");
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    assert_eq!(cluster.get("g1").await.status, Status::Committed);
    let second = cluster.leader().await.config().node.id;
    assert_ne!(first, second);
    let tries: Vec<_> =
        deposit.asked().iter().filter(|one| one.op == Op::Try).map(|one| one.node).collect();
    assert_eq!(tries, [first, second]);
    assert_eq!(deposit.count(Op::Confirm), 1);
    assert_eq!(deposit.count(Op::Cancel) + savings.count(Op::Cancel), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_agree_and_a_follower_says_who_leads() {
    let mut cluster = Cluster::start(3).await;
    let _deposit = Agent::start("deposit", &cluster.grpc(), |_: &Asked| Say::Done);
    let _savings = Agent::start("savings", &cluster.grpc(), |_: &Asked| Say::Done);
    cluster.begin(&Begin::tcc("g1")).await;
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    let leader = cluster.leader().await.config().node.id;
    let follower = (1..=3).find(|node| *node != leader).unwrap();
    let told = cluster.node(follower).propose(Begin::tcc("g2").command()).await;
    match told {
        Err(ProposeError::NotLeader { leader: Some(member) }) => {
            assert_eq!(member.grpc, cluster.grpc_address(leader).to_string());
        }
        other => panic!("the leader's address, not {other:?}"),
    }
    let gid = Gid::parse("g1").unwrap();
    cluster.equal_states(0).await;
    let status = |node: u64| cluster.node(node).status();
    let stale = cluster.node(follower).get(&gid, Freshness::Stale).await.unwrap();
    assert_eq!(stale.unwrap().status, Status::Committed);
    // A node that comes back has it all from its own directory.
    let applied_index = status(follower).applied_index;
    cluster.stop(follower).await;
    cluster.restart(follower).await;
    let node = cluster.node(follower);
    until("it has applied its log", || node.status().applied_index >= applied_index).await;
    let found = node.get(&gid, Freshness::Stale).await.unwrap();
    assert_eq!(found.unwrap().status, Status::Committed);
}
