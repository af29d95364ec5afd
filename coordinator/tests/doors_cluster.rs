//! The doors of three real nodes: requests reach the leader once, from wherever they come, and unknown stays unknown.

mod doors;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use doors::{Cluster, SOON, done, frozen_until, get, post};
use holdfast_client::{
    Client, ClientOptions, ErrorKind, FORWARD_HEADER, FORWARD_NEVER, Outcome, Submission, Wait,
};
use holdfast_proto::v1::{
    BranchSpec, GetRequest, Mode, Outcome as Told, SubmitRequest,
    transactions_client::TransactionsClient,
};
use serde_json::json;
use tokio::time::{Instant, timeout};
use tonic::{Code, Request};

fn transfer(gid: &str) -> SubmitRequest {
    let branch = BranchSpec { participant: "yes".into(), ..BranchSpec::default() };
    SubmitRequest {
        gid: gid.into(),
        mode: Mode::Tcc.into(),
        branches: vec![branch.clone(), branch],
        ..SubmitRequest::default()
    }
}

fn submission() -> Submission {
    Submission::tcc().branch("yes", "1").branch("yes", "2")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_hands_requests_to_the_leader_once() {
    let cluster = Cluster::of(3).await;
    let _yes = cluster.serve("yes", done).await;
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let mut client =
        TransactionsClient::connect(format!("http://{}", follower.grpc)).await.unwrap();

    let reply = client.submit(transfer("pay-1")).await.unwrap().into_inner();
    assert_eq!(reply.outcome(), Told::Committed);
    let read = GetRequest { gid: "pay-1".into(), stale: false };
    assert_eq!(client.get(read).await.unwrap().into_inner().outcome(), Told::Committed);
    // A refusal comes back as it was said.
    let mut other = transfer("pay-1");
    other.branches.pop();
    assert_eq!(client.submit(other).await.unwrap_err().code(), Code::AlreadyExists);

    // The same by HTTP, and the gid that the follower made is the transaction's.
    let branch = json!({"participant": "yes"});
    let body = json!({"mode": "saga", "branches": [branch, branch], "wait": "end"});
    let answer = post(follower.http, "/v1/transactions", &body).await;
    assert_eq!(
        (answer.status, &answer.json()["outcome"]),
        (200, &json!("committed")),
        "{answer:?}"
    );
    let gid = answer.json()["gid"].as_str().expect("a gid").to_owned();
    let there = get(leader.http, &format!("/v1/transactions/{gid}")).await;
    assert_eq!(there.json()["transaction"]["mode"], "saga");
    let path = format!("/v1/transactions/{gid}/wait?for=end");
    assert_eq!(get(follower.http, &path).await.status, 200);

    // A stale read is answered here, as soon as it is known here.
    let deadline = Instant::now() + SOON;
    loop {
        let stale = get(follower.http, &format!("/v1/transactions/{gid}?stale=true")).await;
        if stale.status == 200 {
            break;
        }
        assert!(Instant::now() < deadline, "a follower learns what was decided: {stale:?}");
    }

    // Who asks not to be handed on is told where the leader is, and nothing happens.
    let mut request = Request::new(transfer("pay-2"));
    request.metadata_mut().insert(FORWARD_HEADER, FORWARD_NEVER.parse().unwrap());
    let status = client.submit(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.metadata().get("holdfast-code").unwrap(), "HF2101");
    assert_eq!(status.metadata().get("holdfast-kind").unwrap(), "retry");
    assert_eq!(status.metadata().get("holdfast-leader").unwrap(), leader.grpc.as_str());
    assert_eq!(get(leader.http, "/v1/transactions/pay-2").await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_follows_the_leader_when_the_leader_stops() {
    let mut cluster = Cluster::of(3).await;
    let _yes = cluster.serve("yes", done).await;
    // It is told of one follower only; it learns the rest.
    let told = [cluster.follower().grpc.clone()];
    let client = Client::connect(told, ClientOptions::default()).await.unwrap();
    assert!(client.submit(submission()).await.unwrap().is_committed());
    assert_eq!(client.addresses().len(), 3);

    let asking: Vec<_> = (0..200)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(n * 10)).await;
                client.submit(submission().gid(format!("pay-{n}"))).await
            })
        })
        .collect();
    let stopped = cluster.take_leader();
    tokio::time::sleep(Duration::from_millis(300)).await;
    timeout(SOON, stopped.stop()).await.expect("it stops");
    for (n, answer) in asking.into_iter().enumerate() {
        let answer = timeout(Duration::from_secs(60), answer).await.expect("in time").unwrap();
        let answer = answer.unwrap_or_else(|error| panic!("pay-{n}: {error}"));
        assert_eq!((answer.gid, answer.outcome), (format!("pay-{n}"), Outcome::Committed));
    }
    cluster.ready().await;
    for n in 0..200 {
        let gid = format!("pay-{n}");
        let end = client.wait(&gid, Wait::End, Duration::from_secs(30)).await.unwrap();
        assert_eq!(end.status(), Some(holdfast_client::Status::Committed), "{gid}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_reaches_the_leader_from_a_follower_and_from_a_client() {
    let cluster = Cluster::of(3).await;
    let repaired = Arc::new(AtomicBool::new(false));
    let _yes = cluster.serve("yes", done).await;
    let _frozen = cluster.serve("frozen", frozen_until(Arc::clone(&repaired))).await;
    let client = Client::connect(cluster.addresses(), ClientOptions::default()).await.unwrap();
    for gid in ["pay-1", "pay-2"] {
        let submission = Submission::tcc().gid(gid).branch("yes", "1").branch("frozen", "2");
        let stuck = client.submit(submission.wait(Wait::End)).await.unwrap();
        assert!(stuck.is_committed());
        assert_eq!(stuck.status(), Some(holdfast_client::Status::NeedsAttention));
    }
    repaired.store(true, Ordering::SeqCst);
    let body = json!({"reason": "thawed"});
    let answer = post(cluster.follower().http, "/v1/transactions/pay-1/retry", &body).await;
    assert_eq!(
        (answer.status, &answer.json()["transaction"]["status"]),
        (200, &json!("committed")),
        "{answer:?}"
    );
    let answer = client.retry("pay-2", "thawed", Wait::End).await.unwrap();
    assert_eq!(answer.status(), Some(holdfast_client::Status::Committed));
    let late = client.retry("pay-2", "thawed", Wait::End).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Refused, "{late}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_told_to_stop_together_wait_for_nobody() {
    let cluster = Cluster::of(3).await;
    let began = Instant::now();
    let stopping = cluster.nodes.into_iter().map(|node| node.stop());
    futures::future::join_all(stopping).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let alone = Cluster::of(1).await;
    let began = Instant::now();
    alone.nodes.into_iter().next().expect("one").stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_called_failed() {
    let mut cluster = Cluster::of(3).await;
    let _yes = cluster.serve("yes", done).await;
    let options = ClientOptions { patience_ms: 3_000, ..ClientOptions::default() };
    let client = Client::connect(cluster.addresses(), options).await.unwrap();
    assert!(client.submit(submission()).await.unwrap().is_committed());
    let follower = cluster.nodes.iter().position(|node| !node.leads()).expect("one follows");
    cluster.nodes.remove(follower).stop().await;
    let follower = cluster.nodes.iter().position(|node| !node.leads()).expect("one follows");
    cluster.nodes.remove(follower).stop().await;

    // Either nothing happened, or it is unknown; never a refusal, never a fate.
    let mut unknown = Vec::new();
    for n in 0..5 {
        match client.submit(submission().gid(format!("pay-{n}"))).await {
            Ok(answer) => {
                assert_eq!(answer.outcome, Outcome::Unknown);
                unknown.push(answer.gid);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Retry, "{error}"),
        }
    }
    let alone = &cluster.nodes[0];
    let branch = json!({"participant": "yes"});
    let body = json!({"gid": "pay-9", "mode": "tcc", "branches": [branch], "wait_timeout_ms": 500});
    let answer = post(alone.http, "/v1/transactions", &body).await;
    let (status, code, kind) = answer.problem();
    match kind.as_str() {
        "retry" => assert_eq!((status, answer.header("retry-after")), (503, Some("1")), "{code}"),
        "unknown" => assert_eq!((status, &answer.json()["gid"]), (504, &json!("pay-9")), "{code}"),
        other => panic!("{other}: {answer:?}"),
    }
    // What this node knows itself it still tells to who accepts that it may be old.
    assert_eq!(get(alone.http, "/v1/transactions?limit=5").await.status, 200);
    assert_eq!(get(alone.http, "/livez").await.status, 200);
}
