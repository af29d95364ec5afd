//! Services, history and watching over real sockets: what operators decide counts while transfers run, and no transfer fails for it.

mod doors;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use axum::{Router, http::StatusCode, routing::post as posted};
use doors::{Cluster, SOON, done, frozen_until, get, http, post, refused, until};
use holdfast_proto::v1;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};

fn saga(gid: &str, service: &str, tag: &str) -> Value {
    json!({
        "gid": gid, "mode": "saga", "wait": "end", "wait_timeout_ms": 30_000,
        "options": {"timeout_ms": 60_000, "tags": {"run": tag, "amount": "50.00 EUR"}},
        "branches": [{"participant": service, "payload": {"n": 1}}],
    })
}

/// Runs `count` transfers, eight at a time; every one must commit.
async fn transfers(at: SocketAddr, service: &'static str, run: &'static str, count: usize) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let next = Arc::clone(&next);
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                let gid = format!("{run}-{number}");
                let answer = post(at, "/v1/transactions", &saga(&gid, service, run)).await;
                assert_eq!(answer.json()["outcome"], "committed", "{answer:?}");
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended.expect("every transfer commits");
    }
}

async fn set(at: SocketAddr, service: &str, policy: Value) -> Value {
    let body = json!({"reason": "a test", "policy": policy}).to_string();
    let headers = [("content-type", "application/json")];
    let path = format!("/v1/services/{service}/policy");
    let answer = http(at, "PUT", &path, &headers, body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Calls that each instance was asked, by its name.
async fn asked(at: SocketAddr, service: &str, instance: &str) -> u64 {
    let state = get(at, &format!("/v1/services/{service}")).await.json();
    let sessions = state["sessions"].as_array().cloned().unwrap_or_default();
    let found = sessions.iter().find(|one| one["instance"] == instance);
    found.and_then(|one| one["asked"].as_u64()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_weighed_drained_throttled_and_killed_fails_no_transfer_and_shares_follow() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let _one = cluster.serve_as("loyalty", "one", done).await;
    let two = cluster.serve_as("loyalty", "two", done).await;
    let (mut ones, mut twos) = (0, 0);
    let mut since = async |run: &'static str, count| {
        transfers(at, "loyalty", run, count).await;
        let now = (asked(at, "loyalty", "one").await, asked(at, "loyalty", "two").await);
        let since = (now.0 - ones, now.1 - twos);
        (ones, twos) = now;
        since
    };
    let (one, other) = since("even", 200).await;
    assert!(one.abs_diff(other) <= 10, "as announced: {one} and {other}");

    let weight = |weight| json!([{"instance": "one", "weight": weight}]);
    set(at, "loyalty", json!({"instances": weight(300)})).await;
    let (one, other) = since("weighed", 200).await;
    assert!((140..=160).contains(&one), "three quarters within 5 %: {one} and {other}");

    set(at, "loyalty", json!({"instances": [{"instance": "one", "drained": true}]})).await;
    assert_eq!(since("drained", 50).await, (0, 50));

    let began = Instant::now();
    set(at, "loyalty", json!({"calls_per_s": 100, "burst": 1})).await;
    since("throttled", 50).await;
    assert!(began.elapsed().as_millis() >= 450, "50 calls at 100 a second");

    set(at, "loyalty", json!({"concurrency_max": 1})).await;
    since("bulkhead", 50).await;
    set(at, "loyalty", json!({})).await;
    let killing = tokio::spawn(async move {
        sleep(std::time::Duration::from_millis(30)).await;
        drop(two);
    });
    transfers(at, "loyalty", "killed", 200).await;
    killing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_on_every_node_whoever_was_asked_and_a_condition_that_fails_changes_nothing() {
    let cluster = Cluster::of(3).await;
    let follower = cluster.follower().http;
    let answer = set(follower, "loyalty", json!({"paused": true})).await;
    assert_eq!((&answer["nodes"], &answer["nodes_all"]), (&json!(3), &json!(3)), "{answer}");
    for node in &cluster.nodes {
        let state = get(node.http, "/v1/services/loyalty?stale=true").await;
        assert_eq!(state.json()["policy"]["paused"], true, "{state:?}");
    }
    let tag = get(follower, "/v1/services/loyalty").await;
    let tag = tag.header("etag").expect("a version").to_owned();
    set(follower, "loyalty", json!({"calls_per_s": 7})).await;
    let body = json!({"reason": "late", "policy": {}}).to_string();
    let headers = [("content-type", "application/json"), ("if-match", tag.as_str())];
    let path = "/v1/services/loyalty/policy";
    let late = http(follower, "PUT", path, &headers, body.as_bytes()).await;
    assert_eq!(late.problem(), (412, "HF2404".into(), "refused".into()));
    for (body, field) in [
        (json!({"policy": {}}), "reason"),
        (json!({"reason": "r", "policy": {"calls_per_s": 1_000_001}}), "calls_per_s"),
        (json!({"reason": "r", "policy": {"endpoint": {"address": "ftp://a:1"}}}), "endpoint"),
    ] {
        let headers = [("content-type", "application/json")];
        let bad = http(follower, "PUT", path, &headers, body.to_string().as_bytes()).await;
        assert_eq!(bad.problem().0, 400, "{bad:?}");
        assert!(bad.json()["detail"].as_str().unwrap().contains(field), "{bad:?}");
    }
    let state = get(follower, "/v1/services/loyalty").await.json();
    assert_eq!(state["policy"]["calls_per_s"], 7);
    assert_eq!(get(follower, "/v1/services/nobody").await.problem().1, "HF2305");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_a_paused_service_wait_and_go_on_at_once_when_it_is_resumed() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let _agent = cluster.serve("loyalty", done).await;
    set(at, "loyalty", json!({"paused": true})).await;
    let transfer = tokio::spawn(async move { transfers(at, "loyalty", "paused", 1).await });
    let deadline = Instant::now() + SOON;
    while get(at, "/v1/services/loyalty").await.json()["parked"] != 1 {
        assert!(Instant::now() < deadline, "the call waits");
        sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(get(at, "/v1/services/loyalty").await.json()["waits_for"], "paused");
    set(at, "loyalty", json!({})).await;
    transfer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_that_waited_beyond_its_deadline_is_not_counted_beside_its_cancel() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let undone = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&undone);
    let answer = move |call: &v1::Call| {
        heard.fetch_or(call.op() == v1::Op::Cancel, Ordering::SeqCst);
        done(call)
    };
    let _agent = cluster.serve("loyalty", answer).await;
    let begin = json!({
        "gid": "late-1", "mode": "tcc", "wait": "decision", "options": {"timeout_ms": 300},
        "branches": [{"participant": "absent", "payload": 1}, {"participant": "loyalty", "payload": 2}],
    });
    let told = post(at, "/v1/transactions", &begin).await.json();
    assert_eq!(told["outcome"], "rolled_back", "its deadline passed: {told}");
    // The calls of a transaction are made in order: behind the second cancel, the first one waits.
    let deadline = Instant::now() + SOON;
    while !undone.load(Ordering::SeqCst) {
        assert!(Instant::now() < deadline, "the other branch is taken back");
        sleep(std::time::Duration::from_millis(5)).await;
    }
    let state = get(at, "/v1/services/absent").await.json();
    assert_eq!((&state["parked"], &state["waits_for"]), (&json!(1), &json!("session")), "{state}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_breaker_is_a_metric_of_its_service_and_what_waits_says_so() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    // It answers, and never says what became of the call.
    let unknown =
        |call: &v1::Call| Some(v1::Answer { call_id: call.call_id, ..v1::Answer::default() });
    let _mute = cluster.serve("mute", unknown).await;
    let breaker = json!({"failures": 2, "open_ms": 3_600_000, "open_ms_max": 3_600_000});
    set(at, "mute", json!({"breaker": breaker})).await;
    for number in 0..3 {
        let mut begin = saga(&format!("mute-{number}"), "mute", "mute");
        begin["wait"] = "none".into();
        assert_eq!(post(at, "/v1/transactions", &begin).await.status / 100, 2);
    }
    let deadline = Instant::now() + SOON;
    loop {
        let state = get(at, "/v1/services/mute").await.json();
        let metrics = get(at, "/metrics").await.body;
        let told = metrics.contains("holdfast_service_breaker{service=\"mute\"} 2")
            && metrics.contains("holdfast_service_instances_broken{service=\"mute\"} 1");
        if state["breaker"] == "open" && state["waits_for"] == "breaker" && told {
            let held = "holdfast_calls_held_total{reason=\"breaker\"} 0";
            assert!(!metrics.contains(held), "{metrics}");
            let opened = "holdfast_breakers_opened_total{of=\"service\"} 1";
            assert!(metrics.contains(opened), "{metrics}");
            return;
        }
        assert!(Instant::now() < deadline, "{state} {metrics}");
        sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_address_is_called_and_its_status_is_the_verdict() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let words = r#"{"code":"no_points","message":"0 of 5"}"#;
    let working = Arc::new(AtomicUsize::new(0));
    let action = move || {
        let before = working.fetch_add(1, Ordering::Relaxed);
        async move { if before == 0 { StatusCode::TOO_EARLY } else { StatusCode::OK } }
    };
    let app = Router::new()
        .route("/yes/action", posted(action))
        .route("/no/action", posted(move || async move { (StatusCode::CONFLICT, words) }));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let endpoint = |path: &str| json!({"endpoint": {"address": format!("http://{address}{path}")}});
    set(at, "points", endpoint("/yes")).await;
    transfers(at, "points", "http", 2).await;
    set(at, "points", endpoint("/no")).await;
    let refused = post(at, "/v1/transactions", &saga("http-refused", "points", "http")).await;
    assert_eq!(refused.json()["outcome"], "rolled_back", "{refused:?}");
    assert_eq!(refused.json()["transaction"]["branches"][0]["refusal"]["code"], "no_points");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_finished_is_found_on_every_node_and_its_calls_are_drawn() {
    let cluster = Cluster::of(3).await;
    let at = cluster.leader().http;
    let _yes = cluster.serve("yes", done).await;
    let _no = cluster.serve("no", refused).await;
    transfers(at, "yes", "found", 5).await;
    let back = post(at, "/v1/transactions", &saga("found-no", "no", "found")).await;
    assert_eq!(back.json()["outcome"], "rolled_back");
    let found = async |at, query: &str| {
        let page = get(at, &format!("/v1/history?{query}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        page.json()["transactions"].as_array().expect("a list").len()
    };
    for node in &cluster.nodes {
        let deadline = Instant::now() + SOON;
        while found(node.http, "tag=run=found").await < 6 {
            assert!(Instant::now() < deadline, "a node's history lags for ever");
            sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(found(node.http, "tag=run=found&status=rolled_back").await, 1);
        assert_eq!(found(node.http, "participant=yes&mode=saga&limit=3").await, 3);
        assert_eq!(found(node.http, "tag=run=nothing").await, 0);
        assert_eq!(found(node.http, "amount_min=49%20EUR&amount_max=51%20EUR").await, 6);
        assert_eq!(found(node.http, "amount_min=51%20EUR&amount_max=52%20EUR").await, 0);
        assert_eq!(
            found(node.http, "from=2020-01-01T00:00:00Z&until=2020-01-02T00:00:00Z").await,
            0
        );
    }
    let first = get(at, "/v1/history?tag=run=found&limit=4").await.json();
    let cursor = first["next_cursor"].as_str().expect("there are more");
    assert_eq!(found(at, &format!("tag=run=found&cursor={cursor}")).await, 2);
    for bad in ["limit=1001", "status=trying", "tag=x", "from=soon", "cursor=x", "colour=blue"] {
        let heard = get(at, &format!("/v1/history?{bad}")).await;
        assert_eq!(heard.problem(), (400, "HF2301".into(), "refused".into()), "{bad}");
    }
    // What was seen of calls is a leader's memory: where it was lost with one, another transaction shows it.
    let deadline = Instant::now() + 3 * SOON;
    let mut gid = "found-no".to_owned();
    for round in 1.. {
        if round % 100 == 0 {
            gid = format!("drawn-{round}");
            let _told = post(at, "/v1/transactions", &saga(&gid, "no", "drawn")).await;
        }
        let path = format!("/v1/transactions/{gid}/timeline");
        let timeline = get(at, &path).await.json();
        let attempts = timeline["attempts"].as_array().cloned().unwrap_or_default();
        if let [only] = attempts.as_slice() {
            assert_eq!((&only["op"], &only["outcome"]), (&json!("action"), &json!("refused")));
            assert_eq!((&only["instance"], &only["attempt"]), (&json!("no-1"), &json!(1)));
            break;
        }
        assert!(Instant::now() < deadline, "{timeline}");
        sleep(std::time::Duration::from_millis(20)).await;
    }
    let unknown = get(at, "/v1/transactions/nobody/timeline").await;
    assert_eq!(unknown.problem(), (404, "HF2001".into(), "refused".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_hears_a_transaction_to_its_end_and_one_who_comes_back_what_finished() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let early = tokio::spawn(get(at, "/v1/transactions/watched-0/events"));
    assert_eq!(early.await.unwrap().problem().0, 404, "unknown so far");
    set(at, "yes", json!({"paused": true})).await;
    let _yes = cluster.serve("yes", done).await;
    let transfer = tokio::spawn(async move { transfers(at, "yes", "watched", 1).await });
    let deadline = Instant::now() + SOON;
    while get(at, "/v1/transactions/watched-0").await.status != 200 {
        assert!(Instant::now() < deadline);
        sleep(std::time::Duration::from_millis(5)).await;
    }
    let watching = tokio::spawn(get(at, "/v1/transactions/watched-0/events"));
    set(at, "yes", json!({})).await;
    transfer.await.unwrap();
    let heard = watching.await.unwrap();
    assert_eq!(heard.header("content-type"), Some("text/event-stream"), "{heard:?}");
    assert!(heard.body.contains("\"status\":\"committed\""), "{heard:?}");
    until("the node is there", || cluster.leader().leads()).await;
}

/// What was told of acts on many transactions.
#[derive(Debug, Default)]
struct Acts {
    done: u64,
    /// Their answers were lost with a leader.
    unknown: u64,
}

impl Acts {
    /// Counts one answer; says how many transactions it tells of.
    fn count(&mut self, told: &Value) -> usize {
        let all = told["retried"].as_array().expect("a list");
        for one in all {
            match one["error"]["kind"].as_str() {
                None => self.done += 1,
                Some("unknown") => self.unknown += 1,
                Some("retry") => {}
                Some(_) => assert_eq!(one["error"]["code"], "HF2004", "{one}"),
            }
        }
        assert_eq!(told["failed"], all.iter().filter(|one| one["error"].is_object()).count());
        all.len()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_need_attention_go_on_and_each_is_told() {
    const MANY: &str = "/v1/needs-attention/retry";
    let cluster = Cluster::of(3).await;
    let (one, other) = (cluster.leader().http, cluster.follower().http);
    let repaired = Arc::new(AtomicBool::new(false));
    let _yes = cluster.serve("yes", done).await;
    let _frozen = cluster.serve("frozen", frozen_until(Arc::clone(&repaired))).await;
    let _closed = cluster.serve("closed", frozen_until(Arc::clone(&repaired))).await;
    for number in 0..12 {
        let stuck = if number < 3 { "frozen" } else { "closed" };
        let branches = ["yes", stuck].map(|name| json!({"participant": name, "payload": {}}));
        let gid = format!("pay-{number:02}");
        let whole = json!({"gid": gid, "mode": "tcc", "branches": branches, "wait": "decision"});
        assert_eq!(post(one, "/v1/transactions", &whole).await.json()["outcome"], "committed");
    }
    let ask = async |at, more: Value| {
        let mut body = json!({"reason": "thawed, ticket 7311"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = post(at, MANY, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    // Seen at a follower too, which may be behind: what would become of each, by the leader's word, and nothing is done.
    let mut told = Value::Null;
    for at in [one, other] {
        let deadline = Instant::now() + SOON;
        while told["went_on"] != 12 {
            assert!(Instant::now() < deadline, "{told}");
            sleep(std::time::Duration::from_millis(20)).await;
            told = ask(at, json!({"dry_run": true})).await;
        }
    }
    assert_eq!((&told["dry_run"], &told["failed"]), (&json!(true), &json!(0)), "{told}");
    assert_eq!(told["retried"][0]["gid"], "pay-00");
    assert_eq!(told["retried"][0]["status"], "committing");
    assert!(told["retried"][0]["waited_because"].as_str().unwrap().contains("frozen by a court"));
    let page = ask(one, json!({"dry_run": true, "limit": 2})).await;
    assert_eq!((&page["went_on"], &page["next_after"]), (&json!(2), &json!("pay-01")));
    let rest = ask(one, json!({"dry_run": true, "after": "pay-01", "participant": "frozen"})).await;
    assert_eq!((&rest["went_on"], &rest["retried"][0]["gid"]), (&json!(1), &json!("pay-02")));
    assert_eq!(get(one, "/v1/audit").await.json()["count"], 0, "a dry run is no act");

    // Those of one participant, while the cause is there: they need attention again, and nobody else was touched.
    let mut acts = Acts::default();
    let early = ask(one, json!({"participant": "frozen"})).await;
    assert_eq!(acts.count(&early), 3, "{early}");
    repaired.store(true, Ordering::SeqCst);
    // Two people at two nodes at once: each transaction goes on once, and who came second is told so, transaction by transaction.
    let deadline = Instant::now() + SOON;
    loop {
        let (a, b) = tokio::join!(ask(one, json!({})), ask(other, json!({"dev_name": "sue"})));
        acts.count(&a);
        acts.count(&b);
        let all = get(one, "/v1/transactions?status=committed").await.json();
        if all["transactions"].as_array().unwrap().len() == 12 {
            break;
        }
        assert!(Instant::now() < deadline, "{all}");
        sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(acts.done + acts.unknown >= 12, "{acts:?}");
    let audit = get(one, "/v1/audit?limit=1000").await.json();
    let count = audit["count"].as_u64().unwrap();
    let most = acts.done + acts.unknown;
    assert!((acts.done..=most).contains(&count), "an act is a record, a refused one none: {audit}");
    for record in audit["records"].as_array().unwrap() {
        assert_eq!(record["act"], "tx.retry");
        assert!(record.to_string().contains("thawed, ticket 7311"), "{record}");
    }

    for (body, word) in [
        (json!({}), "reason: missing"),
        (json!({"reason": "x", "limit": 1_001}), "1001, allowed is 1 to 1000"),
        (json!({"reason": "x", "participant": "NO"}), "participant"),
        (json!({"reason": "x", "after": "no gid"}), "after_gid"),
        (json!({"reason": "x", "dev_name": "a b"}), "the name is"),
    ] {
        let bad = post(one, MANY, &body).await;
        assert_eq!(bad.problem(), (400, "HF2301".into(), "refused".into()), "{body}");
        assert!(bad.body.contains(word), "{bad:?}");
    }
}
