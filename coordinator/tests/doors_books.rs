//! Shard rules, operators' acts and the audit trail over real sockets, by whatever node.

mod doors;

use std::net::SocketAddr;

use doors::{Cluster, SOON, done, get, http, post, refused};
use holdfast_client::{Client, ClientOptions};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

const RULES: &str = include_str!("../../config/shards.toml");

async fn put(at: SocketAddr, body: &Value) -> doors::Heard {
    let headers = [("content-type", "application/json")];
    http(at, "PUT", "/v1/shards/rules", &headers, body.to_string().as_bytes()).await
}

fn apply(text: &str, expected: u64) -> Value {
    json!({"text": text, "expected_epoch": expected, "reason": "shard-2 is full", "dev_name": "dora"})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_applied_by_any_node_watched_on_each_and_reverted() {
    let cluster = Cluster::of(3).await;
    let (leader, follower) = (cluster.leader().http, cluster.follower().http);
    assert_eq!(get(leader, "/v1/shards/rules").await.problem().1, "HF2409");
    let client = Client::lazy(cluster.addresses(), ClientOptions::default()).unwrap();
    let mut watched = client.watch_rules(0).await.unwrap();

    let mut dry = apply(RULES, 0);
    dry["dry_run"] = json!(true);
    assert_eq!(put(follower, &dry).await.json()["epoch"], 1);
    assert_eq!(get(leader, "/v1/shards/rules").await.problem().1, "HF2409", "nothing was done");

    let applied = put(follower, &apply(RULES, 0)).await;
    assert_eq!((applied.status, &applied.json()["epoch"]), (200, &json!(1)), "{applied:?}");
    let heard = timeout(SOON, watched.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((heard.epoch, heard.text.as_str()), (1, RULES));
    assert_eq!(put(follower, &apply(RULES, 0)).await.json()["repeated"], true);

    let other = format!("{RULES}\n# changed\n");
    let late = put(leader, &apply(&other, 0)).await;
    assert_eq!(late.problem(), (409, "HF2009".into(), "refused".into()));
    let bad = put(leader, &apply("[group.account]\nkey = 5\n", 1)).await;
    assert_eq!(bad.problem(), (400, "HF2408".into(), "refused".into()));
    assert!(bad.json()["detail"].as_str().unwrap().contains(":2:"), "{bad:?}");
    assert_eq!(put(leader, &apply(&other, 1)).await.json()["epoch"], 2);
    let heard = timeout(SOON, watched.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((heard.epoch, heard.text), (2, other));

    let back = json!({"to_epoch": 1, "expected_epoch": 2, "reason": "too slow"});
    let back = post(follower, "/v1/shards/rules/revert", &back).await;
    assert_eq!(back.json()["epoch"], 3, "{back:?}");
    let shown = get(follower, "/v1/shards/rules").await.json();
    assert_eq!((&shown["epoch"], &shown["text"]), (&json!(3), &json!(RULES)));
    let versions = get(follower, "/v1/shards/rules/versions").await.json();
    let by: Vec<_> = versions["versions"].as_array().unwrap().iter().map(|v| &v["by"]).collect();
    assert_eq!(by, ["dev:dora", "dev:dora", "dev"]);
    let place = get(leader, "/v1/shards/locate?group=account&key=A-17").await.json();
    assert_eq!((&place["epoch"], place["shard"].is_string()), (&json!(3), true), "{place}");
    assert_eq!(get(leader, "/v1/shards/locate?group=nobody&key=A").await.problem().1, "HF3020");
    let gone = json!({"to_epoch": 9, "expected_epoch": 3, "reason": "r"});
    assert_eq!(post(leader, "/v1/shards/rules/revert", &gone).await.problem().1, "HF2409");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_would_look_for_rows_where_they_are_not_need_a_word_that_those_were_moved() {
    let cluster = Cluster::of(3).await;
    let (leader, follower) = (cluster.leader().http, cluster.follower().http);
    assert_eq!(put(follower, &apply(RULES, 0)).await.json()["epoch"], 1);
    let other = RULES.replace("function = \"crc32c\"", "function = \"pg_hash_text\"");
    assert_ne!(other, RULES, "the shipped rules are by crc32c");
    for dry_run in [true, false] {
        let mut change = apply(&other, 1);
        change["dry_run"] = json!(dry_run);
        let told = put(follower, &change).await;
        assert_eq!(told.problem(), (409, "HF2413".into(), "refused".into()));
        let detail = told.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("group account was by crc32c"), "{detail}");
    }
    let fewer = RULES.replace("last = 255", "last = 199").replace("first = 256", "first = 200");
    let told = put(follower, &apply(&fewer, 1)).await;
    assert_eq!(told.problem(), (409, "HF2413".into(), "refused".into()));
    let detail = told.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("slots 200 to 255 were on source pg-1, would be on pg-2"), "{detail}");
    let mut moved = apply(&other, 1);
    moved["rows_are_moved"] = json!(true);
    // That rows were moved is no reason by itself, and no room for a longer one.
    for (reason, code) in [("", "HF2301"), (&*"x".repeat(1_024), "HF2301")] {
        let mut unsaid = moved.clone();
        unsaid["reason"] = json!(reason);
        assert_eq!(put(follower, &unsaid).await.problem().1, code, "{} bytes", reason.len());
    }
    assert_eq!(put(follower, &moved).await.json()["epoch"], 2);
    assert_eq!(put(leader, &moved).await.json()["repeated"], true);
    let mut back = json!({"to_epoch": 1, "expected_epoch": 2, "reason": "too slow"});
    let told = post(follower, "/v1/shards/rules/revert", &back).await;
    assert_eq!(told.problem(), (409, "HF2413".into(), "refused".into()));
    back["rows_are_moved"] = json!(true);
    assert_eq!(post(leader, "/v1/shards/rules/revert", &back).await.json()["epoch"], 3);
    let versions = get(leader, "/v1/shards/rules/versions").await.json();
    let reasons: Vec<_> =
        versions["versions"].as_array().unwrap().iter().map(|version| &version["reason"]).collect();
    let wanted =
        ["shard-2 is full", "shard-2 is full (rows are moved)", "too slow (rows are moved)"];
    assert_eq!(reasons, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_lose_money_takes_two_people_and_all_of_it_is_written_down_on_every_node() {
    let cluster = Cluster::of(3).await;
    let (leader, follower) = (cluster.leader().http, cluster.follower().http);
    let _yes = cluster.serve("yes", done).await;
    let _no = cluster.serve("no", refused).await;
    // Forward recovery: a refusal calls people.
    let saga = json!({
        "gid": "stuck", "mode": "saga", "wait": "decision", "wait_timeout_ms": 30_000,
        "options": {"timeout_ms": 60_000, "recovery": "forward"},
        "branches": [{"participant": "yes", "payload": 1}, {"participant": "no", "payload": 1}],
    });
    post(leader, "/v1/transactions", &saga).await;
    let deadline = Instant::now() + SOON;
    loop {
        let now = get(follower, "/v1/transactions/stuck").await.json();
        if now["transaction"]["status"] == "needs_attention" {
            break;
        }
        assert!(Instant::now() < deadline, "{now}");
        sleep(std::time::Duration::from_millis(10)).await;
    }
    let act = async |at, act: &str, name: &str, more: Value| {
        let mut body = json!({"act": act, "reason": "ticket 7311", "dev_name": name});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(at, "/v1/transactions/stuck/operate", &body).await
    };
    let mark = json!({"branch": 2});
    let dry = act(follower, "mark_done", "alice", json!({"branch": 2, "dry_run": true})).await;
    assert_eq!(dry.json()["transaction"]["status"], "needs_attention", "{dry:?}");
    assert_eq!(act(leader, "approve", "bob", json!({})).await.problem().1, "HF2011");
    let proposed = act(follower, "mark_done", "alice", mark.clone()).await;
    assert_eq!(proposed.json()["transaction"]["status"], "needs_attention", "{proposed:?}");
    let alone = act(leader, "approve", "alice", json!({})).await;
    assert_eq!(alone.problem(), (403, "HF2010".into(), "refused".into()));
    let seen = act(follower, "approve", "bob", json!({"dry_run": true})).await;
    assert_eq!(seen.json()["transaction"]["status"], "committed", "{seen:?}");
    let bad = act(leader, "mark_done", "alice smith", mark).await;
    assert_eq!(bad.problem(), (400, "HF2301".into(), "refused".into()));
    let ended = act(follower, "approve", "bob", json!({})).await;
    assert_eq!(ended.json()["outcome"], "committed", "{ended:?}");

    for node in &cluster.nodes {
        let deadline = Instant::now() + SOON;
        let page = loop {
            let page = get(node.http, "/v1/audit").await.json();
            if page["count"] == 2 {
                break page;
            }
            assert!(Instant::now() < deadline, "{page}");
            sleep(std::time::Duration::from_millis(10)).await;
        };
        let acts: Vec<_> = page["records"].as_array().unwrap().iter().collect();
        assert_eq!((&acts[0]["act"], &acts[0]["by"]), (&json!("tx.propose"), &json!("dev:alice")));
        assert_eq!((&acts[1]["act"], &acts[1]["by"]), (&json!("tx.approve"), &json!("dev:bob")));
        assert_eq!(acts[1]["before"], acts[0]["digest"]);
        assert_eq!(page["head"], acts[1]["digest"]);
        let verified = get(node.http, "/v1/audit/verify").await.json();
        assert_eq!((&verified["whole"], &verified["groups"]), (&json!(true), &json!(1)));
        let trail = &verified["trails"][0];
        assert_eq!((&trail["whole"], &trail["count"]), (&json!(true), &json!(2)));
        assert_eq!(get(node.http, "/v1/audit/verify?group=0").await.json(), verified);
    }
    for bad in ["/v1/audit?limit=1001", "/v1/audit?group=1", "/v1/audit/verify?group=1"] {
        assert_eq!(get(leader, bad).await.problem().1, "HF2301", "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_keys_are_located_at_once_as_allowed_and_no_more() {
    let cluster = Cluster::of(1).await;
    assert_eq!(put(cluster.leader().http, &apply(RULES, 0)).await.status, 200);
    let client = Client::lazy(cluster.addresses(), ClientOptions::default()).unwrap();
    let keys = |count: usize| (0..count).map(|key| format!("A-{key}")).collect::<Vec<_>>();
    let located = client.locate("account", &keys(1_000)).await.unwrap();
    assert_eq!((located.places.len(), located.epoch), (1_000, 1));
    for count in [0, 1_001] {
        let refused = client.locate("account", &keys(count)).await.unwrap_err().to_string();
        assert!(refused.contains("HF2301"), "{count} keys: {refused}");
        assert!(refused.contains("allowed are 1 to 1000"), "{refused}");
    }
}
