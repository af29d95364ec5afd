//! Agent sessions: they break and come back, they have credit and a protocol, and silence ends them.

use holdfast_coordinator::config::limit;
use holdfast_proto::v1::{self, Op, agent_message::Message as Inward};
use holdfast_txn::Status;
use tokio::time::Instant;
use tonic::Code;

use crate::{
    agent::{self, Agent, Asked, Say},
    cluster::{Begin, Cluster, until, within},
};

fn done(_: &Asked) -> Say {
    Say::Done
}

/// Reads the session to its end, which must be a fault.
async fn end_of(mut session: tonic::Streaming<v1::CoordinatorMessage>) -> tonic::Status {
    within("the session ends", async {
        loop {
            match session.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the session ended without a word"),
                Err(status) => return status,
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_session_that_breaks_in_mid_call_is_asked_again_when_it_is_back() {
    let cluster = Cluster::start(1).await;
    let breaks = |asked: &Asked| if asked.before == 0 { Say::Vanish } else { Say::Done };
    let deposit = Agent::start("deposit", &cluster.grpc(), breaks);
    let savings = Agent::start("savings", &cluster.grpc(), done);
    // Long timeouts: what brings the calls back is the end of the session, not a clock.
    let begin = Begin::tcc("g1").options(|options| {
        (options.timeout_ms, options.call_timeout_ms) = (600_000, 600_000);
    });
    cluster.begin(&begin).await;
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    assert_eq!(deposit.ops(), [Op::Try, Op::Try, Op::Confirm, Op::Confirm]);
    assert_eq!(savings.ops(), [Op::Try, Op::Confirm]);
}

#[tokio::test]
async fn calls_wait_for_an_agent_and_are_made_at_once_when_it_comes() {
    let cluster = Cluster::start(1).await;
    let mut savings = Agent::start("savings", &cluster.grpc(), done);
    let begin = Begin::tcc("g1").options(|options| {
        (options.timeout_ms, options.retry.ceiling_ms) = (600_000, 600_000);
        options.retry.attempts_max = 1;
    });
    cluster.begin(&begin).await;
    until("savings is asked", || savings.count(Op::Try) == 1).await;
    let asked = savings.asked();
    savings.leave();
    // Nobody was asked for deposit, so no attempt is used up.
    let deposit = Agent::start("deposit", &cluster.grpc(), done);
    let savings = Agent::start("savings", &cluster.grpc(), done);
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    assert_eq!(deposit.ops(), [Op::Try, Op::Confirm]);
    assert_eq!((asked.len(), savings.ops()), (1, vec![Op::Confirm]));
}

#[tokio::test]
async fn many_transactions_pass_through_a_single_credit() {
    const COUNT: usize = 50;
    let cluster = Cluster::start(1).await;
    let deposit = Agent::with_credit("deposit", &cluster.grpc(), 1, done);
    let names: Vec<&'static str> = (0..COUNT).map(|number| &*format!("g{number}").leak()).collect();
    for name in &names {
        let begin = Begin::of(name, holdfast_txn::Mode::Tcc, &["deposit", "deposit"]);
        cluster.begin(&begin.options(|options| options.timeout_ms = 600_000)).await;
    }
    for name in &names {
        assert_eq!(cluster.end(name).await.status, Status::Committed);
    }
    assert_eq!(deposit.asked().len(), COUNT * 4, "each operation once");
}

#[tokio::test]
async fn a_hello_out_of_order_and_a_second_hello_end_the_session_with_a_reason() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.grpc()[0];
    let (session, _say) = agent::hello(node, "Deposit", 1).await.unwrap();
    let status = end_of(session).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("HF2201"), "{status}");
    let (session, _say) = agent::hello(node, "deposit", 0).await.unwrap();
    assert_eq!(end_of(session).await.code(), Code::InvalidArgument);
    let (session, say) = agent::hello(node, "deposit", 1).await.unwrap();
    say.send(agent::message_of(Inward::Hello(v1::Hello::default()))).await.unwrap();
    assert_eq!(end_of(session).await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn more_answers_in_a_message_than_allowed_end_the_session() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.grpc()[0];
    let answers = |count| {
        let answers = vec![v1::Answer::default(); count];
        agent::message_of(Inward::Answers(v1::Answers { answers }))
    };
    let (session, say) = agent::hello(node, "deposit", 1).await.unwrap();
    say.send(answers(limit::BATCH_PER_MESSAGE_MAX)).await.unwrap();
    say.send(answers(limit::BATCH_PER_MESSAGE_MAX + 1)).await.unwrap();
    let status = end_of(session).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("1025"), "{status}");
}

#[tokio::test]
async fn silence_ends_a_session_and_its_calls_go_to_another() {
    let cluster = Cluster::start(1).await;
    let (session, _say) = agent::hello(&cluster.grpc()[0], "deposit", 1_024).await.unwrap();
    let since = Instant::now();
    let begin = Begin::of("g1", holdfast_txn::Mode::Tcc, &["deposit"]).options(|options| {
        (options.timeout_ms, options.call_timeout_ms) = (600_000, 600_000);
    });
    cluster.begin(&begin).await;
    let status = end_of(session).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(since.elapsed().as_millis() + 100 >= u128::from(limit::SILENCE_MAX_MS));
    let deposit = Agent::start("deposit", &cluster.grpc(), done);
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    assert_eq!(deposit.asked()[0].attempt, 2);
}

#[tokio::test]
async fn an_agent_that_drains_gets_no_further_calls_and_its_answers_count() {
    let cluster = Cluster::start(1).await;
    let (mut drained, say) = agent::hello(&cluster.grpc()[0], "deposit", 1_024).await.unwrap();
    cluster.begin(&Begin::of("g1", holdfast_txn::Mode::Tcc, &["deposit"])).await;
    let mut asked = Vec::new();
    within("the try", async {
        while asked.is_empty() {
            asked.extend(calls_of(drained.message().await.unwrap().unwrap()));
        }
    })
    .await;
    let deposit = Agent::start("deposit", &cluster.grpc(), done);
    // Said in this order: once the answer counts, the drain was heard.
    say.send(agent::message_of(Inward::Drain(v1::Drain {}))).await.unwrap();
    let verdict = v1::Verdict::Done.into();
    let done = v1::Answer { call_id: asked[0].call_id, verdict, ..Default::default() };
    let done = v1::Answers { answers: vec![done] };
    say.send(agent::message_of(Inward::Answers(done))).await.unwrap();
    assert_eq!(cluster.end("g1").await.status, Status::Committed);
    assert_eq!(deposit.ops(), [Op::Confirm]);
    drop(say);
    within("the drained session ends", async {
        while let Ok(Some(message)) = drained.message().await {
            asked.extend(calls_of(message));
        }
    })
    .await;
    assert_eq!(asked.len(), 1, "the try and nothing after it");
}

fn calls_of(message: v1::CoordinatorMessage) -> Vec<v1::Call> {
    match message.message {
        Some(v1::coordinator_message::Message::Calls(calls)) => v1::Calls::read(calls).unwrap(),
        _ => Vec::new(),
    }
}
