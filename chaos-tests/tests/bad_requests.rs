//! Requests past every limit, and amounts that no bank moves: refused in so many words, with nothing begun and nothing held.

use anyhow::ensure;
use holdfast_chaos_tests::{
    Cluster, SOON,
    http::{self, Reply},
    journal, transfer,
};
use holdfast_client::wire::{self, transactions_client::TransactionsClient};
use serde_json::{Value, json};

const ROOT: &str = "/v1/transactions";
const JSON: [(&str, &str); 1] = [("Content-Type", "application/json")];

async fn cluster() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(2).await?;
    for (shard, account) in [(0, "A-1"), (1, "B-1")] {
        cluster.open_accounts(shard, [account.to_owned()], 1_000).await?;
    }
    Ok(cluster)
}

fn good(gid: &str) -> Value {
    transfer(gid, (1, "A-1"), (2, "B-1"), 1)
}

/// The good one with a value changed or added.
fn with(gid: &str, pointer: &str, value: Value) -> Value {
    let mut body = good(gid);
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    let parent = body.pointer_mut(parent).expect("the parent is there");
    parent[field] = value;
    body
}

fn nested(levels: usize) -> String {
    let payload = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    format!(
        r#"{{"gid":"deep","mode":"tcc","branches":[{{"participant":"a","payload":{payload}}}]}}"#
    )
}

/// A problem of RFC 9457 with everything a caller needs.
fn expect(what: &str, reply: &Reply, status: u16, code: &str) -> anyhow::Result<()> {
    let json = reply.json();
    let fits = reply.status == status && reply.text("/code") == code;
    ensure!(fits, "{what}: expected {status} {code}, got {} {json:#}", reply.status);
    ensure!(reply.head.contains("application/problem+json"), "{what}: {}", reply.head);
    ensure!(json["status"] == status && reply.text("/kind") == "refused", "{what}: {json:#}");
    let said =
        ["type", "title", "detail", "instance"].map(|field| reply.text(&format!("/{field}")));
    ensure!(said.iter().all(|text| !text.is_empty()), "{what}: {json:#}");
    ensure!(reply.body.len() < 8 * 1024, "{what}: the answer has {} bytes", reply.body.len());
    Ok(())
}

/// No node knows any transaction.
async fn nothing_begun(cluster: &Cluster) -> anyhow::Result<()> {
    for node in &cluster.nodes {
        let listed = http::get(&node.http, &format!("{ROOT}?limit=1000")).await?;
        let list = listed.json()["transactions"].as_array().cloned();
        ensure!(list.is_some_and(|list| list.is_empty()), "begun: {:#}", listed.json());
    }
    let effects = journal::effects(&cluster.sources().await?).await?;
    ensure!(effects.is_empty(), "money moved: {effects:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_past_a_limit_is_refused_with_its_code_and_begins_nothing() -> anyhow::Result<()>
{
    let cluster = cluster().await?;
    let branch = good("x")["branches"][0].clone();
    let long = "g".repeat(36);
    let labels: Value =
        (0..33).map(|at| (format!("k{at}"), json!("v"))).collect::<serde_json::Map<_, _>>().into();
    let bodies = [
        ("129 branches", with("b-1", "/branches", json!(vec![branch; 129])), "HF2301"),
        ("no branch", with("b-2", "/branches", json!([])), "HF2301"),
        // With its quotes, one byte above 64 KiB.
        ("64 KiB + 1", with("b-3", "/branches/0/payload", json!("p".repeat(65_535))), "HF2301"),
        ("36 characters", good(&long), "HF2301"),
        ("a gid with a NUL", good("nul\0gid"), "HF2301"),
        ("a gid with a space", good("two words"), "HF2301"),
        ("a gid not of ASCII", good("überweisung"), "HF2301"),
        (
            "timeout above a day",
            with("b-4", "/options", json!({"timeout_ms": 86_400_001})),
            "HF2301",
        ),
        ("timeout beyond 64 bits", with("b-5", "/options", json!({"timeout_ms": 1e30})), "HF2302"),
        ("timeout below 0", with("b-6", "/options", json!({"timeout_ms": -1})), "HF2302"),
        (
            "a call longer than all",
            with("b-7", "/options", json!({"timeout_ms": 10, "call_timeout_ms": 11})),
            "HF2301",
        ),
        ("wait above a minute", with("b-8", "/wait_timeout_ms", json!(60_001)), "HF2301"),
        ("an unknown field", with("b-9", "/brnaches", json!([])), "HF2302"),
        ("an unknown option", with("b-10", "/options", json!({"timeout": 5})), "HF2302"),
        ("an unknown mode", with("b-11", "/mode", json!("at")), "HF2302"),
        ("no mode", with("b-12", "/mode", Value::Null), "HF2301"),
        (
            "a participant with a NUL",
            with("b-13", "/branches/0/participant", json!("a\0b")),
            "HF2301",
        ),
        ("no participant", with("b-14", "/branches/0/participant", json!("")), "HF2301"),
        ("a branch after itself", with("b-15", "/branches/0/after", json!([1])), "HF2301"),
        ("a branch after none", with("b-16", "/branches/0/after", json!([7])), "HF2301"),
        ("a pivot in a TCC", with("b-17", "/branches/0/pivot", json!(true)), "HF2301"),
        ("33 tags", with("b-18", "/options", json!({"tags": labels})), "HF2301"),
        (
            "a header with a line break",
            with("b-19", "/options", json!({"headers": {"a": "b\r\nc"}})),
            "HF2301",
        ),
        ("two payloads", with("b-20", "/branches/0/payload_base64", json!("AA==")), "HF2301"),
        (
            "no base64",
            json!({"gid": "b-21", "mode": "tcc", "branches": [{"participant": "a", "payload_base64": "%"}]}),
            "HF2301",
        ),
        ("a number as gid", with("b-22", "/gid", json!(7)), "HF2302"),
        ("a list", json!([]), "HF2302"),
    ];
    for (at, (what, body, code)) in bodies.iter().enumerate() {
        let door = &cluster.nodes[at % 3].http;
        expect(what, &http::post(door, ROOT, body).await?, 400, code)?;
    }
    let door = &cluster.nodes[cluster.leader().await?].http;
    let post = async |headers: &[(&str, &str)], body: &[u8]| {
        http::send(door, "POST", ROOT, headers, body).await
    };
    let whole = good("raw").to_string();
    let raw: [(&str, Vec<u8>, u16, &str); 9] = [
        ("more than 2 MiB", vec![b' '; 2 * 1024 * 1024 + 1], 413, "HF2304"),
        ("64 levels and more", nested(65).into_bytes(), 400, "HF2302"),
        ("a million levels", vec![b'['; 1_000_000], 400, "HF2302"),
        ("a NUL behind", format!("{whole}\0").into_bytes(), 400, "HF2302"),
        ("a NUL in a text", whole.replace("raw", "r\0w").into_bytes(), 400, "HF2302"),
        ("half of it", whole.as_bytes()[..whole.len() / 2].to_vec(), 400, "HF2302"),
        (
            "no UTF-8",
            whole.replace("raw", "r~w").bytes().map(|b| if b == b'~' { 0xff } else { b }).collect(),
            400,
            "HF2302",
        ),
        ("nothing", Vec::new(), 400, "HF2302"),
        ("a field twice", whole.replacen("{", r#"{"gid":"other","#, 1).into_bytes(), 400, "HF2302"),
    ];
    for (what, body, status, code) in &raw {
        expect(what, &post(&JSON, body).await?, *status, code)?;
    }
    let text = [("Content-Type", "text/plain")];
    expect("text", &post(&text, whole.as_bytes()).await?, 415, "HF2303")?;
    let keys = [JSON[0], ("Idempotency-Key", "another")];
    expect("two names", &post(&keys, whole.as_bytes()).await?, 400, "HF2307")?;

    // Of what nobody began.
    for (verb, body) in [("submit", json!({})), ("rollback", json!({"reason": "why not"}))] {
        let path = format!("{ROOT}/nobody/{verb}");
        expect(verb, &http::post(door, &path, &body).await?, 404, "HF2001")?;
    }
    let branch = json!({"branch": 1, "participant": "a"});
    expect(
        "a branch",
        &http::post(door, &format!("{ROOT}/nobody/branches"), &branch).await?,
        404,
        "HF2001",
    )?;
    for (path, status, code) in [
        ("/nobody", 404, "HF2001"),
        ("/nobody/wait", 404, "HF2001"),
        ("/a%00b", 400, "HF2301"),
        ("/%ff", 400, "HF2301"),
        (&format!("/{long}"), 400, "HF2301"),
        ("/nobody?fresh=true", 400, "HF2301"),
        ("/nobody/wait?timeout_ms=-1", 400, "HF2301"),
        ("?limit=1001", 400, "HF2301"),
        ("?status=lost", 400, "HF2301"),
        ("/a/b/c", 404, "HF2305"),
    ] {
        expect(path, &http::get(door, &format!("{ROOT}{path}")).await?, status, code)?;
    }
    nothing_begun(&cluster).await?;

    // At the limit it is fine: 35 characters; and 0 is the default timeout.
    let longest = "G".repeat(35);
    let reply =
        http::post(door, ROOT, &with(&longest, "/options", json!({"timeout_ms": 0}))).await?;
    ensure!(reply.text("/outcome") == "committed", "{:#}", reply.json());
    ensure!(!reply.text("/transaction/deadline").is_empty());
    // The same gid with other content is refused, and the first stays as it is.
    let other = with(&longest, "/branches/1/payload/credit/account", json!("B-2"));
    expect("other content", &http::post(door, ROOT, &other).await?, 409, "HF2002")?;
    cluster.quiet(SOON).await?;
    ensure!(cluster.balance_minor(1, "B-1").await? == 1_001);
    cluster.audit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grpc_door_refuses_the_same_and_says_so_in_its_metadata() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let leader = cluster.leader().await?;
    let mut door =
        TransactionsClient::connect(format!("http://{}", cluster.nodes[leader].grpc)).await?;
    let spec = |payload: usize| wire::BranchSpec {
        participant: "deposit@shard-1".to_owned(),
        payload: vec![b'p'; payload].into(),
        ..wire::BranchSpec::default()
    };
    let request = |gid: &str, branches: Vec<wire::BranchSpec>| wire::SubmitRequest {
        gid: gid.to_owned(),
        mode: wire::Mode::Tcc.into(),
        branches,
        ..wire::SubmitRequest::default()
    };
    let timeout = |timeout_ms| wire::SubmitRequest {
        options: Some(wire::Options { timeout_ms, ..wire::Options::default() }),
        ..request("g-1", vec![spec(1)])
    };
    for (what, request) in [
        ("129 branches", request("g-1", vec![spec(1); 129])),
        ("no branch", request("g-1", Vec::new())),
        ("64 KiB + 1", request("g-1", vec![spec(64 * 1024 + 1)])),
        ("more than 1 MiB together", request("g-1", vec![spec(64 * 1024); 17])),
        ("36 characters", request(&"g".repeat(36), vec![spec(1)])),
        ("a NUL", request("g\0", vec![spec(1)])),
        ("a timeout above a day", timeout(86_400_001)),
        ("a timeout of all bits", timeout(u64::MAX)),
        ("mode 77", wire::SubmitRequest { mode: 77, ..request("g-1", vec![spec(1)]) }),
        ("wait 77", wire::SubmitRequest { wait: 77, ..request("g-1", vec![spec(1)]) }),
    ] {
        let status = door.submit(request).await.expect_err(what);
        ensure!(status.code() == tonic::Code::InvalidArgument, "{what}: {status:?}");
        for (name, value) in [("holdfast-code", "HF2301"), ("holdfast-kind", "refused")] {
            let found = status.metadata().get(name);
            ensure!(found.is_some_and(|found| found == value), "{what}: {status:?}");
        }
    }
    // Above what a request may have at all; the connection stays of use.
    let status = door.submit(request("g-1", vec![spec(64 * 1024); 40])).await.expect_err("2.5 MiB");
    ensure!(status.code() != tonic::Code::Ok, "{status:?}");
    nothing_begun(&cluster).await?;
    cluster.serves(leader, "g-fine", "A-1", "B-1").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_bank_would_do_is_rolled_back_with_the_participants_words() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let door = &cluster.nodes[0].http;
    let amount = "/branches/0/payload/debit/amount_minor";
    let account = "/branches/0/payload/debit/account";
    let cases = [
        ("zero", amount, json!("0"), "amount_out_of_range", "0"),
        ("below zero", amount, json!("-1"), "amount_out_of_range", "-1"),
        (
            "2^63",
            amount,
            json!("9223372036854775808"),
            "amount_out_of_range",
            "9223372036854775808",
        ),
        ("a fraction", amount, json!("1.5"), "bad_payload", "1.5"),
        ("a number", amount, json!(1), "bad_payload", "string"),
        ("an exponent", amount, json!("1e3"), "bad_payload", "1e3"),
        ("a leading zero", amount, json!("01"), "bad_payload", "01"),
        ("nothing", amount, Value::Null, "bad_payload", "Write"),
        ("more than there is", amount, json!("1001"), "insufficient_funds", "10"),
        ("nobody's account", account, json!("A-404"), "account_unknown", "A-404"),
        ("another shard's account", account, json!("B-1"), "account_unknown", "B-1"),
        ("an account with a NUL", account, json!("A\0"), "bad_payload", "Write"),
        ("SQL", account, json!("A-1'; DROP TABLE bank.account; --"), "bad_payload", "Write"),
        ("dollars", "/branches/0/payload/debit/currency", json!("USD"), "currency_mismatch", "USD"),
        ("no currency", "/branches/0/payload/debit/currency", json!("XX"), "bad_payload", "XX"),
        ("no instruction", "/branches/0/payload", json!({}), "bad_payload", "Write"),
        ("no JSON object", "/branches/0/payload", json!("debit"), "bad_payload", "Write"),
    ];
    for (number, (what, pointer, value, code, words)) in cases.into_iter().enumerate() {
        let gid = format!("no-{number}");
        let mut body = with(&gid, pointer, value);
        body["wait"] = "end".into();
        let reply = http::post(door, ROOT, &body).await?;
        let json = reply.json();
        ensure!(reply.status == 200 && reply.text("/outcome") == "rolled_back", "{what}: {json:#}");
        ensure!(reply.text("/transaction/status") == "rolled_back", "{what}: {json:#}");
        ensure!(reply.text("/transaction/branches/0/refusal/code") == code, "{what}: {json:#}");
        let message = reply.text("/transaction/branches/0/refusal/message");
        ensure!(message.contains(words), "{what}: {message:?} does not say {words:?}");
        ensure!(reply.text("/transaction/reason").contains(code), "{what}: {json:#}");
    }
    // A Saga within one shard, from an account to itself.
    let same = json!({"gid": "no-same", "mode": "saga", "branches": [{"participant": "deposit@shard-1",
        "payload": {"transfer": {"from": "A-1", "to": "A-1", "amount_minor": "1", "currency": "EUR"}}}]});
    let reply = http::post(door, ROOT, &same).await?;
    let code = reply.text("/transaction/branches/0/refusal/code");
    ensure!(
        reply.text("/outcome") == "rolled_back" && code == "same_account",
        "{:#}",
        reply.json()
    );

    cluster.quiet(SOON).await?;
    let effects = journal::effects(&cluster.sources().await?).await?;
    ensure!(effects.is_empty(), "{effects:?}");
    ensure!(cluster.balance_minor(0, "A-1").await? == 1_000);
    ensure!(cluster.balance_minor(1, "B-1").await? == 1_000);
    cluster.audit().await?;
    cluster.serves(0, "yes", "A-1", "B-1").await
}
