//! The HTTP door over real sockets: every route, every status, and bad input at and past each limit.

mod doors;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use doors::{Cluster, bare, done, frozen_until, get, http, post, refused, throw, until};
use holdfast_coordinator::config;
use serde_json::{Value, json};

fn transfer(gid: &str, participants: [&str; 2]) -> Value {
    let branches = participants.map(|name| json!({"participant": name, "payload": {"n": 1}}));
    json!({"gid": gid, "mode": "tcc", "branches": branches})
}

const ALL: &str = "/v1/transactions";

/// Method, path, headers and body of a request; status and code of its answer.
type Row<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, &'a str, u16, &'a str);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_transaction_is_answered_at_its_decision() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let _yes = cluster.serve("yes", done).await;
    let _no = cluster.serve("no", refused).await;

    let committed = post(at, ALL, &transfer("pay-1", ["yes", "yes"])).await;
    assert_eq!(committed.status, 200, "{committed:?}");
    assert_eq!(committed.header("content-type"), Some("application/json"));
    let answer = committed.json();
    assert_eq!(
        (&answer["gid"], &answer["outcome"], &answer["repeated"]),
        (&json!("pay-1"), &json!("committed"), &json!(false))
    );
    assert_eq!(answer["transaction"]["mode"], "tcc");
    assert!(
        answer["transaction"]["begun_at"]
            .as_str()
            .is_some_and(|at| at.starts_with("20") && at.ends_with('Z'))
    );
    assert_eq!(answer["transaction"]["branches"][1]["participant"], "yes");

    // The same again is the same transaction; the same gid with other content is not.
    let again = post(at, ALL, &transfer("pay-1", ["yes", "yes"])).await;
    assert_eq!((again.status, &again.json()["repeated"]), (200, &json!(true)));
    let taken = post(at, ALL, &transfer("pay-1", ["yes", "no"])).await;
    assert_eq!(taken.problem(), (409, "HF2002".into(), "refused".into()));
    assert_eq!(taken.json()["gid"], "pay-1");

    let refused = post(at, ALL, &transfer("pay-2", ["yes", "no"])).await;
    assert_eq!(refused.status, 200, "{refused:?}");
    let answer = refused.json();
    assert_eq!(answer["outcome"], "rolled_back");
    assert_eq!(answer["transaction"]["branches"][1]["refusal"]["code"], "insufficient_funds");
    assert!(answer["transaction"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()));

    // Until the end, and without a gid: one is made.
    let mut whole = transfer("", ["yes", "yes"]);
    whole["wait"] = json!("end");
    let ended = post(at, ALL, &whole).await;
    assert_eq!((ended.status, &ended.json()["transaction"]["status"]), (200, &json!("committed")));
    assert_eq!(ended.json()["gid"].as_str().map(str::len), Some(26));
    assert!(ended.json()["transaction"]["finished_at"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_from_another_span_is_the_same_transaction() {
    let cluster = Cluster::of(3).await;
    let (leader, follower) = (cluster.leader().http, cluster.follower().http);
    let _yes = cluster.serve("yes", done).await;
    let traced =
        |span: u8| format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902{span:02x}-01");
    let body = transfer("traced", ["yes", "yes"]);
    let ask = async |at, headers: &[(&str, &str)], body: &Value| {
        let json = ("content-type", "application/json");
        let headers: Vec<_> = std::iter::once(json).chain(headers.iter().copied()).collect();
        http(at, "POST", ALL, &headers, body.to_string().as_bytes()).await
    };

    // The transport's context becomes the transaction's, by whatever node, whatever a repeat says, and where it says nothing.
    let first = ask(leader, &[("traceparent", &traced(1))], &body).await;
    assert_eq!((first.status, &first.json()["repeated"]), (200, &json!(false)), "{first:?}");
    for (at, headers) in [
        (leader, vec![("traceparent", traced(2))]),
        (follower, vec![("Traceparent", traced(3))]),
        (follower, vec![]),
    ] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let again = ask(at, &headers, &body).await;
        assert_eq!((again.status, &again.json()["repeated"]), (200, &json!(true)), "{again:?}");
    }
    let mut said_in_the_body = body.clone();
    said_in_the_body["options"] = json!({"headers": {"traceparent": traced(4), "baggage": "k=v"}});
    let again = ask(leader, &[], &said_in_the_body).await;
    assert_eq!((again.status, &again.json()["repeated"]), (200, &json!(true)), "{again:?}");

    // Any other header is content.
    said_in_the_body["options"]["headers"]["channel"] = json!("branch office");
    let taken = ask(leader, &[("traceparent", &traced(1))], &said_in_the_body).await;
    assert_eq!(taken.problem(), (409, "HF2002".into(), "refused".into()));
}

/// As behind a change of the node's defaults: the first time has timeouts that this node would not give it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_that_leaves_its_timeouts_out_is_the_same_transaction() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let _yes = cluster.serve("yes", done).await;
    let silent = transfer("timed", ["yes", "yes"]);
    let mut first = silent.clone();
    first["options"] = json!({"timeout_ms": 77_000, "call_timeout_ms": 999});
    assert_eq!(post(at, ALL, &first).await.status, 200);
    let again = post(at, ALL, &silent).await;
    assert_eq!((again.status, &again.json()["repeated"]), (200, &json!(true)), "{again:?}");

    // What is said is content.
    for other in [json!({"timeout_ms": 78_000}), json!({"call_timeout_ms": 998})] {
        let mut said = silent.clone();
        said["options"] = other;
        let taken = post(at, ALL, &said).await;
        assert_eq!(taken.problem(), (409, "HF2002".into(), "refused".into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_outcome_is_accepted_and_never_an_error() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    // Nobody serves this participant.
    let mut open = transfer("pay-1", ["nobody", "nobody"]);
    open["wait_timeout_ms"] = json!(100);
    let answer = post(at, ALL, &open).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.header("location"), Some("/v1/transactions/pay-1"));
    assert_eq!(answer.json()["outcome"], "unknown");
    assert_eq!(answer.json()["transaction"]["status"], "trying");

    let waited = get(at, "/v1/transactions/pay-1/wait?for=decision&timeout_ms=50").await;
    assert_eq!((waited.status, &waited.json()["outcome"]), (202, &json!("unknown")));
    let mut unwaited = transfer("pay-2", ["nobody", "nobody"]);
    unwaited["wait"] = json!("none");
    assert_eq!(post(at, ALL, &unwaited).await.status, 202);
    // Reading is a success, whatever the outcome.
    let read = get(at, "/v1/transactions/pay-2").await;
    assert_eq!((read.status, &read.json()["outcome"]), (200, &json!("unknown")));

    // Rolled back while it waits for its participants: decided, though not ended.
    let rolled =
        post(at, "/v1/transactions/pay-1/rollback", &json!({"reason": "the customer left"})).await;
    assert_eq!((rolled.status, &rolled.json()["outcome"]), (200, &json!("rolled_back")));
    assert_eq!(rolled.json()["transaction"]["status"], "rolling_back");
    let end = get(at, "/v1/transactions/pay-1/wait?for=end&timeout_ms=50").await;
    assert_eq!((end.status, &end.json()["outcome"]), (200, &json!("rolled_back")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enlisted_transaction_grows_and_is_closed() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let _yes = cluster.serve("yes", done).await;
    let begin = json!({"gid": "pay-1", "mode": "tcc", "enlisted": true, "options": {"tags": {"channel": "teller"}}});
    let begun = post(at, ALL, &begin).await;
    assert_eq!(begun.status, 201, "{begun:?}");
    assert_eq!(begun.header("location"), Some("/v1/transactions/pay-1"));
    assert_eq!(begun.json()["transaction"]["status"], "active");
    assert_eq!(begun.json()["transaction"]["tags"]["channel"], "teller");
    assert_eq!(post(at, ALL, &begin).await.status, 200, "a repeat is no new one");

    let branches = "/v1/transactions/pay-1/branches";
    let added =
        post(at, branches, &json!({"branch": 1, "participant": "yes", "payload_base64": "AAEC"}))
            .await;
    assert_eq!(added.status, 200, "{added:?}");
    let again =
        post(at, branches, &json!({"branch": 1, "participant": "yes", "payload_base64": "AAEC"}))
            .await;
    assert_eq!((again.status, &again.json()["repeated"]), (200, &json!(true)));
    let other =
        post(at, branches, &json!({"branch": 1, "participant": "yes", "payload_base64": "AAED"}))
            .await;
    assert_eq!(other.problem(), (409, "HF2003".into(), "refused".into()));
    assert_eq!(post(at, branches, &json!({"branch": 2, "participant": "yes"})).await.status, 200);

    let closed = http(at, "POST", "/v1/transactions/pay-1/submit", &[], b"").await;
    assert_eq!((closed.status, &closed.json()["outcome"]), (200, &json!("committed")));
    let late = post(at, branches, &json!({"branch": 3, "participant": "yes"})).await;
    assert_eq!(late.problem(), (409, "HF2004".into(), "refused".into()));
    let undone = http(at, "POST", "/v1/transactions/pay-1/rollback", &[], b"").await;
    assert_eq!(undone.problem(), (409, "HF2004".into(), "refused".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_attention_goes_on_when_it_is_retried() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let repaired = Arc::new(AtomicBool::new(false));
    let _yes = cluster.serve("yes", done).await;
    let _frozen = cluster.serve("frozen", frozen_until(Arc::clone(&repaired))).await;
    let mut whole = transfer("pay-1", ["yes", "frozen"]);
    whole["wait"] = json!("end");
    let stuck = post(at, ALL, &whole).await;
    let answer = stuck.json();
    assert_eq!((stuck.status, &answer["outcome"]), (200, &json!("committed")), "{stuck:?}");
    assert_eq!(answer["transaction"]["status"], "needs_attention");
    assert_eq!(answer["transaction"]["branches"][1]["refusal"]["code"], "account_frozen");
    assert_eq!(get(at, "/v1/status").await.json()["needs_attention"], 1);
    let gauge = r#"holdfast_transactions_open{status="needs_attention"}"#;
    assert!(get(at, "/metrics").await.body.contains(gauge));

    // The cause is still there: it needs attention again, and the reason keeps both.
    let retry = "/v1/transactions/pay-1/retry";
    let early = post(at, retry, &json!({"reason": "hoping"})).await;
    assert_eq!(early.json()["transaction"]["status"], "needs_attention", "{early:?}");
    repaired.store(true, Ordering::SeqCst);
    let retried = post(at, retry, &json!({"reason": "thawed, ticket 7311"})).await;
    let answer = retried.json();
    assert_eq!((retried.status, &answer["outcome"]), (200, &json!("committed")), "{retried:?}");
    // Without a word on waiting, the end is waited for.
    assert_eq!(answer["transaction"]["status"], "committed");
    let reason = answer["transaction"]["reason"].as_str().expect("a reason").to_owned();
    let story = ["retried: thawed, ticket 7311", "frozen by a court", "retried: hoping"];
    let at_of = |part: &&str| reason.find(*part).unwrap_or_else(|| panic!("{part}: {reason}"));
    assert!(story.iter().map(at_of).is_sorted(), "newest first: {reason}");

    // It is over; there is nothing to retry.
    let late = post(at, retry, &json!({"reason": "once more"})).await;
    assert_eq!(late.problem(), (409, "HF2004".into(), "refused".into()));
    for (body, word) in [
        (json!({}), "reason: missing"),
        (json!({"reason": " \t"}), "reason: missing"),
        (json!({"reason": "x".repeat(1_025)}), "1025 bytes, allowed is 1 to 1024"),
        (json!({"reason": "two\nlines"}), "control characters"),
        (json!({"reason": "\u{9b}31m"}), "control characters"),
    ] {
        let bad = post(at, retry, &body).await;
        assert_eq!(bad.problem(), (400, "HF2301".into(), "refused".into()), "{body}");
        assert!(bad.body.contains(word), "{bad:?}");
    }
    let longest = post(at, retry, &json!({"reason": "x".repeat(1_024)})).await;
    assert_eq!(longest.problem(), (409, "HF2004".into(), "refused".into()), "it is taken in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_listed_page_by_page() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    for n in 1..=5 {
        let mut open = transfer(&format!("pay-{n}"), ["nobody", "nobody"]);
        open["wait"] = json!("none");
        assert_eq!(post(at, ALL, &open).await.status, 202);
    }
    let mut path = "/v1/transactions?status=trying,rolling_back&limit=2".to_owned();
    let mut gids = Vec::new();
    for _page in 0..5 {
        let page = get(at, &path).await;
        assert_eq!(page.status, 200, "{page:?}");
        let page = page.json();
        let shown = page["transactions"].as_array().expect("a list").clone();
        assert!(shown.len() <= 2);
        gids.extend(shown.iter().map(|one| one["gid"].as_str().expect("a gid").to_owned()));
        let Some(next) = page["next_after"].as_str() else { break };
        path = format!("/v1/transactions?status=trying,rolling_back&limit=2&after={next}");
    }
    assert_eq!(gids, ["pay-1", "pay-2", "pay-3", "pay-4", "pay-5"]);
    let none = get(at, "/v1/transactions?status=committed").await.json();
    assert_eq!(none, json!({"transactions": []}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_its_status_its_health_and_its_numbers() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let mut open = transfer("pay-1", ["nobody", "nobody"]);
    open["wait"] = json!("none");
    assert_eq!(post(at, ALL, &open).await.status, 202);
    let status = get(at, "/v1/status").await;
    assert_eq!(status.status, 200, "{status:?}");
    let status = status.json();
    assert_eq!(
        (&status["role"], &status["node"], &status["leader"]),
        (&json!("leader"), &json!(1), &json!(1))
    );
    assert_eq!(status["open_transactions"], 1);
    assert_eq!(status["by_status"]["trying"], 1);
    assert_eq!(status["state_hash"], Value::Null, "nobody asked for it");
    let hashed = get(at, "/v1/status?state_hash=true").await.json();
    assert_eq!(hashed["state_hash"].as_str().map(str::len), Some(64), "{hashed}");
    assert_eq!(get(at, "/v1/status?hash=true").await.status, 400);
    assert_eq!(status["members"][0]["grpc"], cluster.leader().grpc);
    assert_eq!(get(at, "/livez").await.status, 200);
    assert_eq!(get(at, "/readyz").await.status, 200);
    let metrics = get(at, "/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(
        metrics
            .header("content-type")
            .is_some_and(|media| media.starts_with("text/plain; version=0.0.4"))
    );
    assert!(
        metrics.body.contains(r#"holdfast_requests_total{request="submit",result="ok"}"#),
        "{}",
        metrics.body
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_idempotency_key_is_the_gid() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let _yes = cluster.serve("yes", done).await;
    let mut body = transfer("", ["yes", "yes"]);
    let send = async |key: &str, body: &Value| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        http(at, "POST", ALL, &headers, body.to_string().as_bytes()).await
    };
    let first = send("\"order-7\"", &body).await;
    assert_eq!((first.status, &first.json()["gid"]), (200, &json!("order-7")));
    let again = send("order-7", &body).await;
    assert_eq!((again.status, &again.json()["repeated"]), (200, &json!(true)));
    assert_eq!(send("order 7", &body).await.problem(), (400, "HF2307".into(), "refused".into()));
    body["gid"] = json!("order-8");
    assert_eq!(send("order-7", &body).await.problem(), (400, "HF2307".into(), "refused".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_with_its_code_and_does_nothing() {
    let cluster = Cluster::with(1, |config| config.limits.request_bytes_max = 200_000).await;
    let at = cluster.leader().http;
    let json_type = ("content-type", "application/json");
    let good = transfer("pay-1", ["yes", "yes"]).to_string();
    let deep = format!(
        r#"{{"mode":"tcc","branches":[{{"participant":"a","payload":{}}}]}}"#,
        "[".repeat(50_000)
    );
    let large = format!(
        r#"{{"mode":"tcc","branches":[{{"participant":"a","payload":"{}"}}]}}"#,
        "x".repeat(200_000)
    );
    let p = ALL;
    let rows: Vec<Row> = vec![
        ("POST", p, vec![json_type], "", 400, "HF2302"),
        ("POST", p, vec![json_type], "{", 400, "HF2302"),
        ("POST", p, vec![json_type], r#"{"brnaches":[]}"#, 400, "HF2302"),
        ("POST", p, vec![json_type], &deep, 400, "HF2302"),
        ("POST", p, vec![json_type], &large, 413, "HF2304"),
        ("POST", p, vec![], &good, 415, "HF2303"),
        ("POST", p, vec![("content-type", "text/plain")], &good, 415, "HF2303"),
        ("POST", p, vec![json_type], r#"{"mode":"tcc"}"#, 400, "HF2301"),
        ("POST", p, vec![json_type], r#"{"branches":[{"participant":"a"}]}"#, 400, "HF2301"),
        (
            "POST",
            p,
            vec![json_type],
            r#"{"mode":"tcc","enlisted":true,"branches":[]}"#,
            400,
            "HF2301",
        ),
        (
            "POST",
            p,
            vec![json_type],
            r#"{"mode":"tcc","branches":[{"participant":"a","payload":1,"payload_base64":"AA=="}]}"#,
            400,
            "HF2301",
        ),
        (
            "POST",
            p,
            vec![json_type],
            r#"{"mode":"tcc","branches":[{"participant":"a","payload_base64":"!"}]}"#,
            400,
            "HF2301",
        ),
        ("POST", "/v1/transactions/no%20gid/rollback", vec![], "", 400, "HF2301"),
        ("POST", "/v1/transactions/nothing/rollback", vec![], "", 404, "HF2001"),
        ("POST", "/v1/transactions/nothing/submit", vec![], "", 404, "HF2001"),
        ("POST", "/v1/transactions/nothing/retry", vec![], "", 400, "HF2301"),
        (
            "POST",
            "/v1/transactions/nothing/retry",
            vec![json_type],
            r#"{"reason":"thawed"}"#,
            404,
            "HF2001",
        ),
        (
            "POST",
            "/v1/transactions/nothing/branches",
            vec![json_type],
            r#"{"branch":1,"participant":"a"}"#,
            404,
            "HF2001",
        ),
        ("GET", "/v1/transactions/nothing", vec![], "", 404, "HF2001"),
        ("GET", "/v1/transactions/nothing?stale=true", vec![], "", 404, "HF2001"),
        ("GET", "/v1/transactions/nothing/wait", vec![], "", 404, "HF2001"),
        ("GET", "/v1/transactions/nothing?stail=true", vec![], "", 400, "HF2301"),
        ("GET", "/v1/transactions/x/wait?for=ever", vec![], "", 400, "HF2301"),
        ("GET", "/v1/transactions/x/wait?timeout_ms=60001", vec![], "", 400, "HF2301"),
        ("GET", "/v1/transactions/%ff", vec![], "", 400, "HF2301"),
        ("GET", "/v1/transactions?status=tired", vec![], "", 400, "HF2301"),
        ("GET", "/v1/transactions?limit=1001", vec![], "", 400, "HF2301"),
        ("GET", "/v1/transactions?limit=-1", vec![], "", 400, "HF2301"),
        ("GET", "/v1/transactions?after=a%20b", vec![], "", 400, "HF2301"),
        ("GET", "/v2/transactions", vec![], "", 404, "HF2305"),
        ("GET", "/", vec![], "", 404, "HF2305"),
        ("DELETE", "/v1/transactions/x", vec![], "", 405, "HF2306"),
        ("PUT", p, vec![], "", 405, "HF2306"),
        ("POST", "/v1/status", vec![], "", 405, "HF2306"),
    ];
    for (method, path, headers, body, status, code) in rows {
        let heard = http(at, method, path, &headers, body.as_bytes()).await;
        let shown: String = body.chars().take(80).collect();
        assert_eq!(
            heard.problem(),
            (status, code.into(), "refused".into()),
            "{method} {path} {shown} -> {heard:?}"
        );
        if status == 405 {
            assert!(heard.header("allow").is_some(), "{heard:?}");
        }
    }
    let close = get(at, "/v1/transactions?limit=1000").await;
    assert_eq!(
        (close.status, close.json()),
        (200, json!({"transactions": []})),
        "nothing was begun"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_harms_only_its_own_connection() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let long = [b"GET /".as_slice(), &vec![b'a'; 200_000], b" HTTP/1.1\r\n\r\n"].concat();
    let many: String = (0..1_000).map(|n| format!("h{n}: x\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\n{many}\r\n");
    let bytes: Vec<Vec<u8>> = vec![
        b"\x00\xff\xfe\xfd".repeat(1_000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"POST /v1/transactions HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /v1/transactions HTTP/1.1\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\n1234"
            .to_vec(),
        b"POST /v1/transactions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec(),
        long,
        many.into_bytes(),
    ];
    for garbage in &bytes {
        let heard = bare(at, garbage).await;
        let head = String::from_utf8_lossy(&heard[..heard.len().min(12)]).into_owned();
        assert!(heard.is_empty() || head.starts_with("HTTP/1.1 4"), "{head:?}");
        assert_eq!(get(at, "/livez").await.status, 200, "after {head:?}");
    }
    // The gRPC door is as hard of hearing.
    let grpc = cluster.leader().grpc.parse().expect("an address");
    for garbage in &bytes {
        throw(grpc, garbage).await;
    }
    assert_eq!(get(at, "/readyz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_answers_what_is_under_way_and_closes_its_doors() {
    let mut cluster =
        Cluster::with(1, |config| config.timeouts = config::Timeouts::default()).await;
    let at = cluster.leader().http;
    let mut open = transfer("pay-1", ["nobody", "nobody"]);
    open["wait_timeout_ms"] = json!(1_000);
    let under_way = tokio::spawn(async move { post(at, ALL, &open).await });
    let leader = cluster.take_leader();
    let known = leader.coordinator.clone();
    until("the transaction is open", || known.status().by_status.values().sum::<usize>() == 1)
        .await;
    let stopped = tokio::time::timeout(Duration::from_secs(15), leader.stop());
    let (answer, stopped) = tokio::join!(under_way, stopped);
    stopped.expect("it stops in time");
    let answer = answer.expect("no panic");
    assert_eq!((answer.status, &answer.json()["outcome"]), (202, &json!("unknown")), "{answer:?}");
    assert!(tokio::net::TcpStream::connect(at).await.is_err(), "the door is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_prepared_is_decided_by_its_submit_and_fenced_if_nobody_knows_it() {
    let cluster = Cluster::of(1).await;
    let at = cluster.leader().http;
    let prepared = |gid: &str, grace_ms: u64| {
        let mut body = transfer(gid, ["pg-1", "pg-2"]);
        body["mode"] = json!("xa");
        body["options"] = json!({"second_phase_grace_ms": grace_ms});
        body
    };
    // Nobody serves pg-1: the caller's own word is what ends it.
    let decided = post(at, ALL, &prepared("rt-1", 10_000)).await;
    let answer = decided.json();
    assert_eq!((decided.status, &answer["outcome"]), (200, &json!("committed")));
    let status = &answer["transaction"]["status"];
    assert_eq!((&answer["transaction"]["mode"], status), (&json!("xa"), &json!("committing")));
    let finish = format!("{ALL}/rt-1/finish");
    let part = post(at, &finish, &json!({"outcome": "committed", "branches": [2]})).await;
    assert_eq!(part.json()["transaction"]["branches"][1]["state"], "confirmed");
    let whole = post(at, &finish, &json!({"outcome": "committed"})).await;
    assert_eq!(whole.json()["transaction"]["status"], "committed");
    for (body, code, http) in [
        (json!({"outcome": "rolled_back"}), "HF2004", 409),
        (json!({"outcome": "committed", "branches": [3]}), "HF2006", 400),
        (json!({}), "HF2301", 400),
    ] {
        let refused = post(at, &finish, &body).await;
        assert_eq!(refused.problem(), (http, code.into(), "refused".into()), "{body}");
    }

    let sweep = json!({"reason": "prepared at pg-1 for 60 s", "abort_if_unknown": true});
    let fenced = post(at, &format!("{ALL}/rt-2/rollback"), &sweep).await;
    assert_eq!((fenced.status, &fenced.json()["outcome"]), (200, &json!("rolled_back")));
    let late = post(at, ALL, &prepared("rt-2", 0)).await;
    assert_eq!(late.problem(), (409, "HF2008".into(), "refused".into()));
    let decided = post(at, &format!("{ALL}/rt-1/rollback"), &sweep).await;
    assert_eq!(decided.problem(), (409, "HF2004".into(), "refused".into()));
    let plain = post(at, &format!("{ALL}/rt-3/rollback"), &json!({"reason": "enough"})).await;
    assert_eq!(plain.problem(), (404, "HF2001".into(), "refused".into()));

    // The grace at its limit is taken and one past it is not; other modes have none.
    assert_eq!(post(at, ALL, &prepared("rt-4", 10_001)).await.problem().1, "HF2301");
    let mut tcc = prepared("rt-5", 1);
    tcc["mode"] = json!("tcc");
    assert_eq!(post(at, ALL, &tcc).await.problem().1, "HF2301");
}
