//! Saga over one node: actions in order, and compensation of what was done, last first.

use holdfast_proto::v1::Op;
use holdfast_txn::Status;

use crate::{
    agent::{Agent, Asked, Say},
    cluster::{Begin, Cluster},
};

#[tokio::test]
async fn actions_run_one_after_the_other() {
    let cluster = Cluster::start(1).await;
    let agent = Agent::start("deposit", &cluster.grpc(), |_: &Asked| Say::Done);
    let three = Begin::of("g1", holdfast_txn::Mode::Saga, &["deposit"; 3]);
    cluster.begin(&three).await;
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    let order: Vec<_> = agent.asked().iter().map(|asked| (asked.branch, asked.op)).collect();
    assert_eq!(order, [(1, Op::Action), (2, Op::Action), (3, Op::Action)]);
}

#[tokio::test]
async fn a_refused_step_has_what_was_done_compensated_last_first() {
    let cluster = Cluster::start(1).await;
    let agent = Agent::start("deposit", &cluster.grpc(), |asked: &Asked| {
        match (asked.branch, asked.op, asked.before) {
            (3, Op::Action, _) => Say::Refused,
            (1, Op::Compensate, 0) => Say::Unknown,
            _ => Say::Done,
        }
    });
    let three = Begin::of("g1", holdfast_txn::Mode::Saga, &["deposit"; 3]);
    cluster.begin(&three).await;
    assert_eq!(cluster.end("g1").await.status, Status::RolledBack);
    let asked = agent.asked();
    let undone: Vec<_> = asked
        .iter()
        .filter(|asked| asked.op == Op::Compensate && asked.branch < 3)
        .map(|asked| asked.branch)
        .collect();
    assert_eq!(undone, [2, 1, 1]);
}
