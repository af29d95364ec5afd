//! Saga over one node: actions in order, and compensation of what was done, last first.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use holdfast_proto::v1::Op;
use holdfast_txn::{Act, BranchId, Command, Gid, Mode, Recovery, Remedy, Status};

use crate::{
    agent::{Agent, Asked, Say},
    cluster::{Begin, Cluster, until},
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

/// A participant can tell a first call, which needs no inquiry, from one before which another may have come.
#[tokio::test]
async fn a_call_that_may_have_come_before_says_so_also_after_a_failover() {
    let mut cluster = Cluster::start(3).await;
    // The node that first asks for the second action gets no answer to it, and is stopped.
    let stopped = Arc::new(AtomicU64::new(0));
    let silent_to = Arc::clone(&stopped);
    let agent = Agent::start("deposit", &cluster.grpc(), move |asked: &Asked| {
        if asked.branch != 2 {
            return if asked.before == 0 { Say::Unknown } else { Say::Done };
        }
        let first = silent_to.compare_exchange(0, asked.node, Ordering::SeqCst, Ordering::SeqCst);
        if first.unwrap_or_else(|first| first) == asked.node || first.is_ok() {
            Say::Nothing
        } else {
            Say::Done
        }
    });
    cluster.begin(&Begin::of("g1", Mode::Saga, &["deposit"; 3])).await;
    until("the second is asked", || stopped.load(Ordering::SeqCst) != 0).await;
    let stopped = stopped.load(Ordering::SeqCst);
    cluster.stop(stopped).await;
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    let asked = agent.asked();
    assert!(asked.iter().all(|one| one.repeat || one.before == 0), "{asked:?}");
    assert!(asked.iter().all(|one| !one.refusal_waits), "{asked:?}");
    let taken_up = |one: &Asked| one.branch == 2 && one.node != stopped && one.attempt == 1;
    let taken_up = asked.iter().find(|one| taken_up(one)).expect("another node asked");
    assert!(taken_up.repeat, "{taken_up:?}");
}

#[tokio::test]
async fn a_refused_step_that_cannot_turn_back_is_asked_anew_when_people_say_so() {
    let cluster = Cluster::start(1).await;
    let agent = Agent::start("deposit", &cluster.grpc(), |asked: &Asked| {
        match (asked.branch, asked.before) {
            (2, 0) => Say::Unknown,
            (2, 1) => Say::Refused,
            _ => Say::Done,
        }
    });
    let begin = Begin::of("g1", Mode::Saga, &["deposit"; 2])
        .options(|options| options.recovery = Recovery::Forward);
    cluster.begin(&begin).await;
    cluster.status("g1", Status::NeedsAttention).await;
    let (gid, reason) = (Gid::parse("g1").unwrap(), "the account is open again".to_owned());
    cluster.propose(Command::Retry { gid, reason }).await;
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    let told: Vec<_> =
        agent.asked().iter().map(|one| (one.branch, one.repeat, one.refusal_waits)).collect();
    // What was called before anybody could be told of the refusal never overturns it, however late a duplicate of it comes.
    let expected = [(1, false, false), (2, false, false), (2, true, false), (2, true, true)];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_step_that_people_mark_refused_is_compensated_before_those_it_waited_for() {
    let cluster = Cluster::start(1).await;
    let agent = Agent::start("deposit", &cluster.grpc(), |asked: &Asked| {
        if (asked.branch, asked.op) == (2, Op::Action) { Say::Refused } else { Say::Done }
    });
    let begin = Begin::of("g1", Mode::Saga, &["deposit"; 2])
        .options(|options| options.recovery = Recovery::Forward);
    cluster.begin(&begin).await;
    cluster.status("g1", Status::NeedsAttention).await;
    let refused = Act::Propose(Remedy::MarkRefused(BranchId(2)));
    for (act, by) in [(refused, "user/alice"), (Act::Approve, "user/bob")] {
        let (gid, reason) = (Gid::parse("g1").unwrap(), "it will never be done".to_owned());
        let act = Command::Operate { gid, act, by: by.to_owned(), reason };
        cluster.propose(act).await.result.unwrap();
    }
    assert_eq!(cluster.end("g1").await.status, Status::RolledBack);
    let asked = agent.asked();
    let undone = asked.iter().filter(|one| one.op == Op::Compensate).map(|one| one.branch);
    assert_eq!(undone.collect::<Vec<_>>(), [2, 1]);
}
