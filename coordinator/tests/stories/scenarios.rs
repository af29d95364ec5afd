//! What other coordinators test of themselves and no other story tells: see docs/reference/scenarios.md.

use holdfast_client::{BranchSpec, Client, ClientError, ClientOptions, Terms, Wait};
use holdfast_proto::v1::Op;
use holdfast_txn::{Gid, Status};

use crate::{
    agent::{Agent, Asked, Say},
    cluster::{Begin, Cluster, until},
};

fn done(_: &Asked) -> Say {
    Say::Done
}

#[tokio::test]
async fn a_call_timeout_longer_than_the_default_is_honored() {
    let cluster = Cluster::start(1).await;
    let silent = |asked: &Asked| if asked.before == 0 { Say::Nothing } else { Say::Done };
    let deposit = Agent::start("deposit", &cluster.grpc(), silent);
    let _savings = Agent::start("savings", &cluster.grpc(), done);
    cluster.begin(&Begin::saga("g1").options(|options| options.call_timeout_ms = 4_000)).await;
    let end = cluster.end("g1").await;
    assert_eq!((end.status, deposit.count(Op::Action)), (Status::Committed, 2));
    let took_ms = end.finished_at.unwrap().0 - end.begun_at.0;
    assert!(took_ms >= 3_900, "asked again after {took_ms} ms, before its time was over");
}

#[tokio::test]
async fn a_compensation_without_an_answer_is_asked_again_until_it_is_done() {
    let cluster = Cluster::start(1).await;
    let reluctant = |asked: &Asked| match (asked.op, asked.before) {
        (Op::Compensate, 0) => Say::Unknown,
        (Op::Compensate, 1) => Say::Working,
        (Op::Compensate, 2) => Say::Vanish,
        _ => Say::Done,
    };
    let refuses = |asked: &Asked| if asked.op == Op::Action { Say::Refused } else { Say::Done };
    let deposit = Agent::start("deposit", &cluster.grpc(), reluctant);
    let savings = Agent::start("savings", &cluster.grpc(), refuses);
    cluster.begin(&Begin::saga("g1")).await;
    assert_eq!(cluster.end("g1").await.status, Status::RolledBack);
    assert_eq!(deposit.count(Op::Compensate), 4);
    assert_eq!(savings.count(Op::Compensate), 0, "what refused did nothing");
}

#[tokio::test]
async fn a_cancel_that_is_working_delays_the_end_and_not_the_decision() {
    let cluster = Cluster::start(1).await;
    let works = |asked: &Asked| match (asked.op, asked.before) {
        (Op::Cancel, 0..3) => Say::Working,
        _ => Say::Done,
    };
    let refuses = |asked: &Asked| if asked.op == Op::Try { Say::Refused } else { Say::Done };
    let deposit = Agent::start("deposit", &cluster.grpc(), works);
    let savings = Agent::start("savings", &cluster.grpc(), refuses);
    cluster.begin(&Begin::tcc("g1")).await;
    let end = cluster.end("g1").await;
    assert_eq!(end.status, Status::RolledBack);
    assert!(end.decided_at < end.finished_at);
    assert_eq!((deposit.count(Op::Cancel), savings.count(Op::Cancel)), (4, 1));
}

#[tokio::test]
async fn headers_travel_with_every_call_also_after_a_failover() {
    let mut cluster = Cluster::start(3).await;
    let first = cluster.leader().await.config().node.id;
    let deposit = Agent::start("deposit", &cluster.grpc(), done);
    let savings = Agent::start("savings", &cluster.grpc(), move |asked: &Asked| {
        if asked.node == first { Say::Nothing } else { Say::Done }
    });
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let begin = Begin::tcc("g1").options(|options| {
        options.headers.insert("traceparent", trace);
    });
    cluster.begin(&begin).await;
    until("both are asked", || deposit.count(Op::Try) == 1 && savings.count(Op::Try) == 1).await;
    cluster.stop(first).await;
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    let asked = [deposit.asked(), savings.asked()].concat();
    assert!(asked.iter().any(|one| one.node != first && one.op == Op::Confirm));
    assert!(asked.iter().all(|one| one.headers.get("traceparent") == Some(trace)));
}

#[tokio::test]
async fn a_participant_nests_a_branch_while_it_is_called_and_all_confirm() {
    let cluster = Cluster::start(1).await;
    let (seen, mut calls) = tokio::sync::mpsc::unbounded_channel();
    // The try of deposit is working until its nested branch is there.
    let nested = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_nested = std::sync::Arc::clone(&nested);
    let deposit = Agent::start("deposit", &cluster.grpc(), move |asked: &Asked| {
        let _closed = seen.send(asked.branch);
        let ready = is_nested.load(std::sync::atomic::Ordering::SeqCst);
        if asked.op == Op::Try && !ready { Say::Working } else { Say::Done }
    });
    let savings = Agent::start("savings", &cluster.grpc(), done);
    let hotel = Agent::start("hotel", &cluster.grpc(), done);
    cluster.begin(&Begin::tcc("g1")).await;
    let parent = crate::cluster::within("the try", calls.recv()).await.unwrap();
    let client = Client::lazy(cluster.grpc(), ClientOptions::default()).unwrap();
    let spec = || BranchSpec::new("hotel", "two nights");
    client.add_nested("g1", parent, 3, spec()).await.unwrap();
    assert!(client.add_nested("g1", parent, 3, spec()).await.unwrap().repeated);
    nested.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    for agent in [&deposit, &savings, &hotel] {
        assert_eq!(agent.count(Op::Confirm), 1);
    }
    let late = client.add_nested("g1", parent, 4, spec()).await;
    assert!(matches!(late, Err(ClientError::Refused { code, .. }) if code == "HF2004"));
    assert_eq!(cluster.get("g1").await.gid, Gid::parse("g1").unwrap());
}

#[tokio::test]
async fn less_is_captured_than_was_held_also_after_a_failover() {
    let mut cluster = Cluster::start(3).await;
    until("every node reads captures", || {
        (1..=3).all(|node| cluster.node(node).cluster_format() >= 4)
    })
    .await;
    // Confirms are answered only once a node has stopped: whoever leads then knows them from its log alone.
    let stopped = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_stopped = std::sync::Arc::clone(&stopped);
    let card = Agent::start("card", &cluster.grpc(), move |asked: &Asked| {
        let waits =
            asked.op == Op::Confirm && !is_stopped.load(std::sync::atomic::Ordering::SeqCst);
        if waits { Say::Unknown } else { Say::Done }
    });
    let hotel = Agent::start("hotel", &cluster.grpc(), done);
    let client = Client::lazy(cluster.grpc(), ClientOptions::default()).unwrap();
    client.begin(Terms::tcc().gid("g1")).await.unwrap();
    client.add_branch("g1", 1, BranchSpec::new("card", "200")).await.unwrap();
    client.add_branch("g1", 2, BranchSpec::new("hotel", "200")).await.unwrap();
    let less = || [(1, "130".into())];
    client.submit_capturing("g1", less(), Wait::Decision).await.unwrap();
    client.submit_capturing("g1", less(), Wait::None).await.unwrap();
    let other = client.submit_begun("g1", Wait::None).await;
    assert!(matches!(other, Err(ClientError::Refused { code, .. }) if code == "HF2006"));
    until("the card is asked to confirm", || card.count(Op::Confirm) > 0).await;
    let leader = cluster.leader().await.config().node.id;
    cluster.stop(leader).await;
    stopped.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    for (agent, tried, confirmed) in [(&card, "200", "130"), (&hotel, "200", "200")] {
        for asked in agent.asked() {
            let carries = if asked.op == Op::Confirm { confirmed } else { tried };
            assert_eq!(asked.payload, carries.as_bytes(), "{asked:?}");
        }
    }
}
