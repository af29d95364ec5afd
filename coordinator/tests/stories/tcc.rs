//! TCC over one node: holds are placed, then all captured or all released, whatever the participants say and when.

use holdfast_coordinator::{WaitEnd, WaitUntil};
use holdfast_proto::v1::Op;
use holdfast_txn::{BranchId, BranchState, Command, Decision, Gid, Status};

use crate::{
    agent::{Agent, Asked, Say, Script},
    cluster::{Begin, Cluster, PATIENCE},
};

fn done(_: &Asked) -> Say {
    Say::Done
}

async fn with(deposit: impl Script, savings: impl Script) -> (Cluster, Agent, Agent) {
    let cluster = Cluster::start(1).await;
    let deposit = Agent::start("deposit", &cluster.grpc(), deposit);
    let savings = Agent::start("savings", &cluster.grpc(), savings);
    (cluster, deposit, savings)
}

#[tokio::test]
async fn a_declared_transaction_commits_with_one_call_for_each_operation() {
    let (cluster, deposit, savings) = with(done, done).await;
    let begin = Begin::tcc("g1").options(|options| {
        options.headers.insert("traceparent", "00-ab");
    });
    cluster.begin(&begin).await;
    let end = cluster.end("g1").await;
    assert_eq!((end.status, end.decision), (Status::Committed, Some(Decision::Commit)));
    for (agent, branch, payload) in [(&deposit, 1, "for deposit"), (&savings, 2, "for savings")] {
        assert_eq!(agent.ops(), [Op::Try, Op::Confirm]);
        for asked in agent.asked() {
            assert_eq!((asked.branch, asked.attempt), (branch, 1));
            assert_eq!(asked.payload, payload.as_bytes());
            assert_eq!(asked.headers.get("traceparent"), Some("00-ab"));
        }
    }
}

#[tokio::test]
async fn a_caller_that_waits_is_told_at_the_decision_and_at_the_end() {
    let (cluster, _deposit, _savings) = with(done, done).await;
    cluster.begin(&Begin::tcc("g1")).await;
    let (leader, gid) = (cluster.leader().await, Gid::parse("g1").unwrap());
    let decided = leader.wait(&gid, WaitUntil::Decision, PATIENCE).await;
    assert_eq!(decided.end, WaitEnd::Reached);
    assert_eq!(decided.transaction.unwrap().decision, Some(Decision::Commit));
    let ended = leader.wait(&gid, WaitUntil::End, PATIENCE).await;
    assert_eq!(ended.end, WaitEnd::Reached);
    assert_eq!(ended.transaction.unwrap().status, Status::Committed);
    let unknown = leader.wait(&Gid::parse("g2").unwrap(), WaitUntil::End, PATIENCE).await;
    assert_eq!(unknown.end, WaitEnd::NotFound);
}

#[tokio::test]
async fn a_refusal_releases_every_hold_and_keeps_the_words() {
    let refuses = |asked: &Asked| if asked.op == Op::Try { Say::Refused } else { Say::Done };
    let (cluster, deposit, savings) = with(done, refuses).await;
    cluster.begin(&Begin::tcc("g1")).await;
    let end = cluster.end("g1").await;
    assert_eq!((end.status, end.decision), (Status::RolledBack, Some(Decision::RollBack)));
    let refusal = end.branch(BranchId(2)).unwrap().refusal.as_ref().unwrap();
    assert_eq!(refusal.code, "insufficient_funds");
    assert_eq!(end.branch(BranchId(1)).unwrap().state, BranchState::Undone);
    assert_eq!(deposit.count(Op::Cancel), 1);
    assert_eq!(deposit.count(Op::Confirm) + savings.count(Op::Confirm), 0);
}

#[tokio::test]
async fn a_participant_that_is_working_is_asked_again_until_it_is_done() {
    let works = |asked: &Asked| if asked.before < 3 { Say::Working } else { Say::Done };
    let (cluster, deposit, savings) = with(works, done).await;
    // Working is an answer: it is no attempt without one.
    let begin = Begin::tcc("g1").options(|options| options.retry.attempts_max = 2);
    cluster.begin(&begin).await;
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    assert_eq!(deposit.ops(), [[Op::Try; 4], [Op::Confirm; 4]].concat());
    assert_eq!(deposit.asked()[3].attempt, 4);
    assert_eq!(savings.ops(), [Op::Try, Op::Confirm]);
}

#[tokio::test]
async fn an_unknown_answer_and_silence_are_asked_again_and_never_a_failure() {
    let unknown = |asked: &Asked| if asked.before < 2 { Say::Unknown } else { Say::Done };
    let silent = |asked: &Asked| if asked.before == 0 { Say::Nothing } else { Say::Done };
    let (cluster, deposit, savings) = with(unknown, silent).await;
    cluster.begin(&Begin::tcc("g1").options(|options| options.call_timeout_ms = 200)).await;
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    assert_eq!((deposit.count(Op::Try), deposit.count(Op::Confirm)), (3, 3));
    assert_eq!((savings.count(Op::Try), savings.count(Op::Confirm)), (2, 2));
}

#[tokio::test]
async fn the_deadline_releases_what_was_placed() {
    let silent = |asked: &Asked| if asked.op == Op::Try { Say::Nothing } else { Say::Done };
    let (cluster, deposit, savings) = with(done, silent).await;
    let begin = Begin::tcc("g1").options(|options| {
        (options.timeout_ms, options.call_timeout_ms) = (400, 400);
    });
    cluster.begin(&begin).await;
    let end = cluster.end("g1").await;
    assert_eq!(end.status, Status::RolledBack);
    assert!(end.decided_at.unwrap() >= end.deadline, "nothing expires early");
    assert_eq!((deposit.count(Op::Cancel), savings.count(Op::Cancel)), (1, 1));
    assert_eq!(deposit.count(Op::Confirm), 0);
}

#[tokio::test]
async fn what_is_given_up_needs_attention_and_goes_on_when_an_operator_says_so() {
    let down = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let confirms = std::sync::Arc::clone(&down);
    let script = move |asked: &Asked| {
        let away = confirms.load(std::sync::atomic::Ordering::SeqCst);
        if asked.op == Op::Confirm && away { Say::Unknown } else { Say::Done }
    };
    let (cluster, deposit, savings) = with(script, done).await;
    cluster.begin(&Begin::tcc("g1").options(|options| options.retry.attempts_max = 2)).await;
    let stuck = cluster.status("g1", Status::NeedsAttention).await;
    assert_eq!(stuck.decision, Some(Decision::Commit), "a decision never changes");
    assert_eq!(deposit.count(Op::Confirm), 2);
    let gid = Gid::parse("g1").unwrap();
    let waited = cluster.leader().await.wait(&gid, WaitUntil::End, PATIENCE).await;
    assert_eq!(waited.end, WaitEnd::NeedsAttention);
    down.store(false, std::sync::atomic::Ordering::SeqCst);
    let retry = Command::Retry { gid, reason: "the database is back".to_owned() };
    cluster.propose(retry).await.result.unwrap();
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    assert_eq!(savings.count(Op::Cancel) + deposit.count(Op::Cancel), 0);
}
