//! XA over one node: what the caller has prepared is committed by it or by the coordinator, and an orphan is rolled back with proof.

use std::time::Duration;

use holdfast_client::{Client, ClientError, ClientOptions, Finished, Submission, Terms};
use holdfast_proto::v1::Op;
use holdfast_txn::{BranchState, Decision, Status};

use crate::{
    agent::{Agent, Asked, Say},
    cluster::{Begin, Cluster, PATIENCE},
};

fn done(_: &Asked) -> Say {
    Say::Done
}

fn client(cluster: &Cluster) -> Client {
    Client::lazy(cluster.grpc(), ClientOptions::default()).unwrap()
}

fn prepared(gid: &str) -> Submission {
    Submission::xa().gid(gid).branch("deposit", "for deposit").branch("savings", "for savings")
}

#[tokio::test]
async fn what_the_caller_has_prepared_is_committed_without_a_first_phase() {
    let cluster = Cluster::start(1).await;
    let deposit = Agent::start("deposit", &cluster.grpc(), done);
    // The commit of one is lost once: it is asked again.
    let lost = |asked: &Asked| if asked.before == 0 { Say::Unknown } else { Say::Done };
    let savings = Agent::start("savings", &cluster.grpc(), lost);
    let answer = client(&cluster).submit(prepared("g1")).await.unwrap();
    assert!(answer.is_committed(), "the submit decides");
    let end = cluster.end("g1").await;
    assert_eq!((end.status, end.decision), (Status::Committed, Some(Decision::Commit)));
    assert_eq!(deposit.ops(), [Op::Commit]);
    assert_eq!(deposit.asked()[0].payload, b"for deposit");
    assert_eq!(savings.ops(), [Op::Commit; 2]);
}

#[tokio::test]
async fn a_caller_that_commits_in_time_spares_every_call() {
    let cluster = Cluster::start(1).await;
    let deposit = Agent::start("deposit", &cluster.grpc(), done);
    let savings = Agent::start("savings", &cluster.grpc(), done);
    let client = client(&cluster);
    let terms = Terms::xa().gid("g1").second_phase_grace_ms(10_000);
    let submission = Submission::new(terms).branch("deposit", "1").branch("savings", "2");
    assert!(client.submit(submission).await.unwrap().is_committed());
    let wrong = client.finish("g1", [], Finished::RolledBack).await;
    assert!(matches!(wrong, Err(ClientError::Refused { code, .. }) if code == "HF2004"));
    client.finish("g1", [2], Finished::Committed).await.unwrap();
    client.finish("g1", [], Finished::Committed).await.unwrap();
    assert!(client.finish("g1", [], Finished::Committed).await.unwrap().repeated);
    let end = cluster.end("g1").await;
    assert!(end.branches.iter().all(|branch| branch.state == BranchState::Confirmed));
    assert_eq!((deposit.ops(), savings.ops()), (vec![], vec![]));
}

#[tokio::test]
async fn a_caller_that_dies_after_its_submit_is_replaced_when_its_time_is_over() {
    let cluster = Cluster::start(1).await;
    let deposit = Agent::start("deposit", &cluster.grpc(), done);
    let savings = Agent::start("savings", &cluster.grpc(), done);
    let begin = Begin::xa("g1").options(|options| options.second_phase_grace_ms = 300);
    cluster.begin(&begin).await;
    let end = cluster.end("g1").await;
    assert_eq!(end.status, Status::Committed);
    let waited_ms = end.finished_at.unwrap().0 - end.decided_at.unwrap().0;
    assert!(waited_ms >= 295, "the calls came after {waited_ms} ms");
    assert_eq!((deposit.ops(), savings.ops()), (vec![Op::Commit], vec![Op::Commit]));
}

#[tokio::test]
async fn an_orphan_is_fenced_and_its_late_submit_refused() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let fenced = client.fence("g1", "prepared at pg-1 for 60 s", PATIENCE).await.unwrap();
    assert_eq!(fenced.status(), Some(holdfast_client::Status::RolledBack));
    let late = client.submit(prepared("g1")).await;
    assert!(matches!(late, Err(ClientError::Refused { code, .. }) if code == "HF2008"));

    // And the other way round: what is decided is to be committed.
    let _agents = ["deposit", "savings"].map(|name| Agent::start(name, &cluster.grpc(), done));
    client.submit(prepared("g2")).await.unwrap();
    let refused = client.fence("g2", "prepared at pg-1 for 60 s", Duration::from_secs(30)).await;
    assert!(matches!(refused, Err(ClientError::Refused { code, .. }) if code == "HF2004"));
    assert_eq!(cluster.end("g2").await.status, Status::Committed);
}
