//! Every route of both doors, asked of a node that does not lead.

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{
    Cluster, SOON,
    http::{self, Reply},
    transfer, until,
};
use holdfast_client::wire::{
    self, admin_client::AdminClient, exchange_reply, exchange_request,
    transactions_client::TransactionsClient,
};
use serde_json::{Value, json};

const ROOT: &str = "/v1/transactions";

async fn cluster() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(2).await?;
    for (shard, account) in [(0, "A-1"), (1, "B-1")] {
        cluster.open_accounts(shard, [account.to_owned()], 10_000).await?;
    }
    Ok(cluster)
}

fn expect(reply: &Reply, status: u16, outcome: &str) -> anyhow::Result<()> {
    let fits = reply.status == status && reply.text("/outcome") == outcome;
    ensure!(fits, "expected {status} {outcome}: {} {:#}", reply.status, reply.json());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_http_route_is_answered_by_a_follower_as_by_the_leader() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let door = cluster.nodes[cluster.follower().await?].http.clone();
    let post = async |path: &str, body: Value| http::post(&door, path, &body).await;
    let get = async |path: &str| http::get(&door, path).await;
    let path = |gid: &str, verb: &str| format!("{ROOT}/{gid}{verb}");

    // Declared.
    let body = transfer("follow-1", (1, "A-1"), (2, "B-1"), 100);
    expect(&post(ROOT, body.clone()).await?, 200, "committed")?;
    let again = post(ROOT, body).await?;
    expect(&again, 200, "committed")?;
    ensure!(again.json()["repeated"] == true, "{:#}", again.json());
    let much = transfer("follow-2", (1, "A-1"), (2, "B-1"), 1_000_000);
    let refused = post(ROOT, much).await?;
    expect(&refused, 200, "rolled_back")?;
    let code = refused.text("/transaction/branches/0/refusal/code");
    ensure!(code == "insufficient_funds", "{:#}", refused.json());

    // By header, without a gid in the body, and with the wait for the end.
    let mut keyed = transfer("", (1, "A-1"), (2, "B-1"), 100);
    keyed["gid"].take();
    keyed["wait"] = "end".into();
    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", "follow-3")];
    let keyed = http::send(&door, "POST", ROOT, &headers, keyed.to_string().as_bytes()).await?;
    expect(&keyed, 200, "committed")?;
    ensure!(keyed.text("/gid") == "follow-3" && keyed.text("/transaction/status") == "committed");

    // Enlisted, one closed and one rolled back.
    for gid in ["follow-4", "follow-5"] {
        let begin = json!({"gid": gid, "mode": "tcc", "enlisted": true});
        expect(&post(ROOT, begin.clone()).await?, 201, "unknown")?;
        expect(&post(ROOT, begin).await?, 200, "unknown")?;
        let whole = transfer(gid, (1, "A-1"), (2, "B-1"), 50);
        for (number, branch) in (1..).zip(whole["branches"].as_array().expect("two branches")) {
            let mut branch = branch.clone();
            branch["branch"] = number.into();
            expect(&post(&path(gid, "/branches"), branch).await?, 200, "unknown")?;
        }
    }
    let end = json!({"wait": "end"});
    expect(&post(&path("follow-4", "/submit"), end.clone()).await?, 200, "committed")?;
    let because = json!({"reason": "the customer left", "wait": "end"});
    expect(&post(&path("follow-5", "/rollback"), because).await?, 200, "rolled_back")?;
    let late = post(&path("follow-4", "/rollback"), json!({})).await?;
    ensure!((late.status, late.text("/code").as_str()) == (409, "HF2004"), "{:#}", late.json());

    // Reads. What was acknowledged is seen at once; the node's own state may lag behind.
    let fates = [("follow-1", "committed"), ("follow-2", "rolled_back"), ("follow-4", "committed")];
    for (gid, outcome) in fates {
        expect(&get(&path(gid, "")).await?, 200, outcome)?;
        expect(&get(&path(gid, "/wait?for=end&timeout_ms=20000")).await?, 200, outcome)?;
        until("the follower has it too", SOON, async || {
            let reply = get(&path(gid, "?stale=true")).await.ok()?;
            (reply.status == 200 && reply.text("/outcome") == outcome).then_some(())
        })
        .await?;
    }
    let listed = get(&format!("{ROOT}?status=committed,rolled_back&limit=1000")).await?;
    let gids = |reply: &Reply| -> Vec<String> {
        let list = reply.json()["transactions"].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|known| Some(known["gid"].as_str()?.to_owned())).collect()
    };
    let all = ["follow-1", "follow-2", "follow-3", "follow-4", "follow-5"];
    ensure!(listed.status == 200 && gids(&listed) == all, "{:#}", listed.json());
    let page = get(&format!("{ROOT}?after=follow-2&limit=1")).await?;
    ensure!(gids(&page) == ["follow-3"] && page.text("/next_after") == "follow-3");
    let unknown = get(&path("nobody-knows-me", "")).await?;
    ensure!((unknown.status, unknown.text("/code").as_str()) == (404, "HF2001"));

    // Of the node itself.
    let status = get("/v1/status").await?;
    ensure!(status.status == 200 && status.text("/role") == "follower", "{:#}", status.json());
    let leader = cluster.leader().await?;
    ensure!(status.text("/leader_grpc") == cluster.nodes[leader].grpc, "{:#}", status.json());
    for (path, word) in [("/livez", "alive"), ("/readyz", "ready"), ("/metrics", "holdfast_")] {
        let reply = get(path).await?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        ensure!(reply.status == 200 && text.contains(word), "{path}: {} {text}", reply.status);
    }
    let nowhere = get("/v2/transactions").await?;
    ensure!((nowhere.status, nowhere.text("/code").as_str()) == (404, "HF2305"));
    let wrong = http::send(&door, "DELETE", ROOT, &[], b"").await?;
    ensure!((wrong.status, wrong.text("/code").as_str()) == (405, "HF2306"));
    cluster.quiet(SOON).await?;
    ensure!(cluster.balance_minor(1, "B-1").await? == 10_250);
    cluster.audit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_grpc_method_is_answered_by_a_follower_as_by_the_leader() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let address = format!("http://{}", cluster.nodes[cluster.follower().await?].grpc);
    let mut door = TransactionsClient::connect(address.clone()).await?;
    let (committed, rolled_back) =
        (wire::Outcome::Committed as i32, wire::Outcome::RolledBack as i32);
    let end = wire::Wait::End as i32;

    let submit = submission("grpc-1", 100);
    let reply = door.submit(submit.clone()).await?.into_inner();
    ensure!(reply.outcome == committed && !reply.repeated, "{reply:?}");
    let reply = door.submit(submit).await?.into_inner();
    ensure!(reply.outcome == committed && reply.repeated, "{reply:?}");
    let taken = door.submit(submission("grpc-1", 101)).await.expect_err("other content");
    ensure!(taken.code() == tonic::Code::AlreadyExists, "{taken:?}");
    ensure!(taken.metadata().get("holdfast-code").is_some_and(|code| code == "HF2002"));

    for gid in ["grpc-2", "grpc-3"] {
        let mode = wire::Mode::Tcc.into();
        door.begin(wire::BeginRequest { gid: gid.into(), mode, options: None }).await?;
        for (branch, spec) in (1..).zip(submission(gid, 10).branches) {
            let gid = gid.to_owned();
            door.add_branch(wire::AddBranchRequest { gid, branch, spec: Some(spec), parent: 0 })
                .await?;
        }
    }
    let close = wire::SubmitBegunRequest {
        gid: "grpc-2".into(),
        wait: end,
        wait_timeout_ms: 20_000,
        captures: Vec::new(),
    };
    ensure!(door.submit_begun(close).await?.into_inner().outcome == committed);
    let back = wire::RollBackRequest {
        gid: "grpc-3".into(),
        reason: "enough".into(),
        wait: end,
        wait_timeout_ms: 20_000,
        abort_if_unknown: false,
    };
    ensure!(door.roll_back(back).await?.into_inner().outcome == rolled_back);

    for (gid, outcome) in [("grpc-1", committed), ("grpc-2", committed), ("grpc-3", rolled_back)] {
        let get = wire::GetRequest { gid: gid.into(), stale: false };
        ensure!(door.get(get).await?.into_inner().outcome == outcome, "{gid}");
        let wait = wire::WaitRequest { gid: gid.into(), wait: end, wait_timeout_ms: 20_000 };
        ensure!(door.wait(wait).await?.into_inner().outcome == outcome, "{gid}");
        until("the follower has it too", SOON, async || {
            let get = wire::GetRequest { gid: gid.into(), stale: true };
            let reply = door.clone().get(get).await.ok()?.into_inner();
            (reply.outcome == outcome).then_some(())
        })
        .await?;
    }
    let listed = door.list(wire::ListRequest::default()).await?.into_inner();
    let gids: Vec<&str> = listed.transactions.iter().map(|known| known.gid.as_str()).collect();
    ensure!(gids == ["grpc-1", "grpc-2", "grpc-3"], "{gids:?}");
    let nobody = wire::GetRequest { gid: "nobody".into(), stale: false };
    let unknown = door.get(nobody).await.expect_err("nobody knows it");
    ensure!(unknown.code() == tonic::Code::NotFound, "{unknown:?}");
    ensure!(unknown.metadata().get("holdfast-code").is_some_and(|code| code == "HF2001"));

    let mut admin = AdminClient::connect(address).await?;
    let status = admin.node_status(wire::NodeStatusRequest::default()).await?.into_inner();
    ensure!(status.role == "follower" && status.members.len() == 3, "{status:?}");

    // The stream: a follower answers, itself or by saying who leads; it never lets a request fall.
    let requests = (1..=20).map(|request_id| wire::ExchangeRequest {
        request_id,
        on_behalf_of: None,
        request: Some(exchange_request::Request::Submit(submission(
            &format!("stream-{request_id}"),
            1,
        ))),
    });
    let (sender, receiver) = tokio::sync::mpsc::channel(32);
    for request in requests {
        sender.send(request).await?;
    }
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut replies = door.exchange(stream).await?.into_inner();
    let mut answered = Vec::new();
    while answered.len() < 20 {
        let reply = tokio::time::timeout(SOON, replies.message()).await??.context("the end")?;
        match reply.reply.context("no reply")? {
            exchange_reply::Reply::Transaction(told) => {
                ensure!(told.outcome == committed, "{told:?}");
                answered.push(reply.request_id);
            }
            exchange_reply::Reply::Error(error) => anyhow::bail!("{error:?}"),
        }
    }
    answered.sort_unstable();
    ensure!(answered == (1..=20).collect::<Vec<u64>>(), "{answered:?}");
    drop(sender);
    cluster.quiet(SOON).await?;
    ensure!(cluster.balance_minor(1, "B-1").await? == 10_130);
    cluster.audit().await
}

/// The same transfer as the JSON one.
fn submission(gid: &str, minor: i64) -> wire::SubmitRequest {
    let body = transfer(gid, (1, "A-1"), (2, "B-1"), minor);
    let branch = |branch: &Value| wire::BranchSpec {
        participant: branch["participant"].as_str().unwrap_or_default().to_owned(),
        payload: branch["payload"].to_string().into(),
        ..wire::BranchSpec::default()
    };
    wire::SubmitRequest {
        gid: gid.to_owned(),
        mode: wire::Mode::Tcc.into(),
        branches: body["branches"].as_array().expect("two branches").iter().map(branch).collect(),
        wait: wire::Wait::Decision.into(),
        wait_timeout_ms: 20_000,
        options: None,
        rules_epoch: None,
    }
}
