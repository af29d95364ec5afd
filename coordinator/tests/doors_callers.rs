//! What operators decide about callers, over real sockets: who asks more than it may is told so at every door, and nobody else is.

mod doors;
mod house;

use std::time::Duration;

use doors::{Cluster, get, http};
use holdfast_client::{Client, Terms, wire::SetCallerPolicyRequest};
use holdfast_proto::v1::{
    self, CallerPolicy, CallerState, exchange_reply::Reply, exchange_request::Request as Asked,
    transactions_client::TransactionsClient,
};
use house::{House, SOON, code};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

const ALICE: &str = "user/alice?role=app";
const BOB: &str = "user/bob?role=app";
const SAM: &str = "user/sam?role=sre";

async fn decide(sam: &Client, policy: CallerPolicy) {
    let request = SetCallerPolicyRequest {
        policy: Some(CallerPolicy { caller: "user/alice".into(), ..policy }),
        reason: "a test".into(),
        ..Default::default()
    };
    sam.set_caller_policy(request).await.expect("an sre may");
}

/// How it goes with alice, as the node sees her; `None`: nothing is decided about her.
async fn seen(sam: &Client) -> Option<CallerState> {
    sam.services("-").await.expect("an sre may look").callers.pop()
}

async fn until(sam: &Client, what: &str, holds: impl Fn(&CallerState) -> bool) {
    let deadline = Instant::now() + SOON;
    loop {
        let state = seen(sam).await.expect("she has a policy");
        if holds(&state) {
            return;
        }
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}: {state:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_as_much_under_way_as_allowed_is_told_at_every_door_and_others_are_not() {
    let house = House::of(1).await;
    let (alice, bob) = (house.client(ALICE).await, house.client(BOB).await);
    let sam = house.client(SAM).await;
    alice.begin(Terms::tcc().gid("c-1")).await.expect("it is begun");
    bob.begin(Terms::tcc().gid("c-2")).await.expect("it is begun");
    decide(&sam, CallerPolicy { concurrency_max: 1, ..Default::default() }).await;

    let channel = house.channel(&house.cluster.leader().grpc, &house.credentials(ALICE)).await;
    let mut unary = TransactionsClient::new(channel);
    let mut waiting = unary.clone();
    let under_way = tokio::spawn(async move {
        let wait = v1::WaitRequest {
            gid: "c-1".into(),
            wait: v1::Wait::End.into(),
            wait_timeout_ms: 60_000,
        };
        let _ended_by_the_test = waiting.wait(wait).await;
    });
    until(&sam, "her wait is under way", |alice| alice.in_flight == 1).await;

    let credentials = house.credentials(ALICE);
    let heard = house.http(&credentials, "GET", "/v1/transactions/c-1", "").await;
    assert_eq!(heard.problem(), (429, "HF2607".into(), "retry".into()));
    assert_eq!(heard.header("retry-after"), Some("1"), "{heard:?}");
    assert!(heard.json()["detail"].as_str().is_some_and(|text| text.contains("user/alice")));
    let get = v1::GetRequest { gid: "c-1".into(), stale: false };
    let status = unary.get(get.clone()).await.expect_err("it is one too many");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.metadata().get("holdfast-code").unwrap(), "HF2607");
    assert!(status.metadata().get("holdfast-retry-after-ms").is_some(), "{status:?}");
    let asked =
        v1::ExchangeRequest { request_id: 7, request: Some(Asked::Get(get)), on_behalf_of: None };
    let stream = unary.exchange(tokio_stream::iter([asked])).await.expect("a stream is no request");
    let reply = timeout(SOON, stream.into_inner().message()).await.expect("in time");
    let Some(Reply::Error(error)) = reply.expect("a reply").expect("one").reply else {
        panic!("it is one too many")
    };
    assert_eq!((error.code.as_str(), error.kind()), ("HF2607", v1::ErrorKind::Retry));
    bob.get("c-2").await.expect("nothing is decided about him");

    under_way.abort();
    until(&sam, "her wait is over", |alice| alice.in_flight == 0).await;
    alice.get("c-1").await.expect("there is room again");
    let state = seen(&sam).await.expect("she has a policy");
    assert_eq!((state.by_concurrency, state.turned_away), (3, 3), "{state:?}");
    decide(&sam, CallerPolicy::default()).await;
    assert_eq!(seen(&sam).await, None, "a policy that says nothing is none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_taken_and_what_comes_faster_than_the_rate_is_told_when_to_come_again() {
    let house = House::of(1).await;
    let sam = house.client(SAM).await;
    let credentials = house.credentials(ALICE);
    decide(&sam, CallerPolicy { requests_per_s: 1, burst: 5, ..Default::default() }).await;
    let mut taken = 0;
    let refused = loop {
        let heard = house.http(&credentials, "GET", "/v1/transactions?limit=1", "").await;
        if heard.status == 429 {
            break heard;
        }
        assert_eq!(heard.status, 200, "{heard:?}");
        taken += 1;
        assert!(taken < 5_000, "a thousand times as many as the rate allows");
    };
    assert!(taken >= 5, "the burst alone is 5, {taken} were taken");
    let after_ms = refused.json()["retry_after_ms"].as_u64().expect("a time");
    assert!((1..=1_000).contains(&after_ms), "one comes in a second: {after_ms}");
    // Members, probes and other callers go on, and a client waits for its turn by itself.
    assert_eq!(house.http(&credentials, "GET", "/livez", "").await.status, 200);
    let alice = house.client(ALICE).await;
    assert_eq!(code(alice.get("nothing-1").await), "HF2001", "it was answered in the end");
    assert!(seen(&sam).await.expect("she has a policy").by_rate >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistaken_requests_in_a_row_shut_a_caller_out_until_its_policy_is_changed() {
    let house = House::of(1).await;
    let sam = house.client(SAM).await;
    let credentials = house.credentials(ALICE);
    let breaker = v1::BreakerPolicy { failures: 3, open_ms: 3_600_000, open_ms_max: 3_600_000 };
    decide(&sam, CallerPolicy { breaker: Some(breaker), ..Default::default() }).await;
    let ask = async |path: &str| house.http(&credentials, "GET", path, "").await.status;
    // Two mistakes, a sound question, and three mistakes, one of which is that she may not.
    for (path, status) in [
        ("/v1/transactions?limit=x", 400),
        ("/v1/transactions?limit=x", 400),
        ("/v1/transactions/nothing-1", 404),
        ("/v1/transactions?limit=x", 400),
        ("/v1/history", 403),
        ("/v1/transactions?limit=x", 400),
    ] {
        assert_eq!(ask(path).await, status, "{path}");
    }
    assert_eq!(ask("/v1/transactions?limit=1").await, 429);
    let state = seen(&sam).await.expect("she has a policy");
    assert_eq!((state.breaker.as_str(), state.by_breaker), ("open", 1), "{state:?}");
    decide(&sam, CallerPolicy { concurrency_max: 9, ..Default::default() }).await;
    assert_eq!(ask("/v1/transactions?limit=1").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_policy_is_on_every_node_whoever_was_asked() {
    let cluster = Cluster::of(3).await;
    let follower = cluster.nodes[2].http;
    let path = "/v1/callers/user%2Falice/policy";
    let put = async |body: Value, condition: Option<&str>| {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(condition.map(|tag| ("if-match", tag)));
        http(follower, "PUT", path, &headers, body.to_string().as_bytes()).await
    };
    let policy = json!({"requests_per_s": 50, "burst": 100, "concurrency_max": 8,
        "breaker": {"failures": 20, "open_ms": 1_000, "open_ms_max": 30_000}});
    let deadline = Instant::now() + SOON;
    let body = json!({"reason": "a runaway script", "policy": policy});
    while put(body.clone(), None).await.status != 200 {
        assert!(Instant::now() < deadline, "nobody leads");
        sleep(Duration::from_millis(50)).await;
    }
    for node in &cluster.nodes {
        loop {
            let seen = get(node.http, "/v1/callers?stale=true").await.json();
            let alice = &seen["callers"][0];
            if (&alice["caller"], &alice["policy"]) == (&json!("user/alice"), &policy) {
                break;
            }
            assert!(Instant::now() < deadline, "node {}: {seen}", node.http);
            sleep(Duration::from_millis(10)).await;
        }
    }
    for (policy, field) in [
        (json!({"requests_per_s": 1_000_001}), "requests_per_s"),
        (json!({"concurrency_max": 1_000_001}), "concurrency_max"),
        (json!({"breaker": {"failures": 1_001, "open_ms": 1, "open_ms_max": 1}}), "failures"),
        (json!({"breaker": {"failures": 1, "open_ms": 2, "open_ms_max": 1}}), "open_ms_max"),
    ] {
        let bad = put(json!({"reason": "r", "policy": policy}), None).await;
        assert_eq!(bad.problem().0, 400, "{bad:?}");
        assert!(bad.json()["detail"].as_str().unwrap().contains(field), "{bad:?}");
    }
    // The version is far above it, whoever leads.
    let late = put(json!({"reason": "late", "policy": {}}), Some("\"0.7\"")).await;
    assert_eq!(late.problem(), (412, "HF2404".into(), "refused".into()));
}
