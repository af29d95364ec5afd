//! The example in Python takes part in transfers with PostgreSQL accounts, through a sidecar that may die.

use std::{path::Path, time::Duration};

use anyhow::ensure;
use holdfast_chaos_tests::{
    Agent, Cluster, Folder, Process, Program, SOON, Service, http, journal, ports, until,
};
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// The example, beside its agent.
struct Python {
    process: Process,
    agent: Agent,
}

impl Python {
    async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/participant.py");
        let port = ports::free(1)?[0].to_string();
        let program = Program {
            name: "participant".to_owned(),
            path: "python3".into(),
            arguments: vec!["-u".into(), example.into(), port.clone().into()],
            environment: Vec::new(),
            run_as: None,
            kill_when_dropped: true,
        };
        let mut process = Process::new(program, cluster.folder.path());
        process.start()?;
        let app = format!("127.0.0.1:{port}");
        until("the example listens", SOON, async || {
            process.check().ok()?;
            TcpStream::connect(&app).await.ok()
        })
        .await
        .map_err(|error| error.context(process.complaint("does not listen")))?;
        Ok(Self { process, agent: cluster.agent("loyalty", &app).await? })
    }

    /// How often it was asked `op` and did it.
    fn done(&self, op: &str) -> usize {
        let line = format!("\"POST /{op} HTTP/1.1\" 200");
        self.process.log_text().lines().filter(|told| told.contains(&line)).count()
    }
}

/// A purchase: cents from the account, and points of alice.
fn purchase(gid: &str, minor: i64, points: u32, third: Option<Value>) -> Value {
    let debit = json!({"account": "A-1", "amount_minor": minor.to_string(), "currency": "EUR"});
    let mut branches = vec![
        json!({"participant": "deposit@shard-1", "payload": {"debit": debit}}),
        json!({"participant": "loyalty", "payload": {"customer": "alice", "points": points}}),
    ];
    branches.extend(third);
    json!({"gid": gid, "mode": "tcc", "wait": "end", "branches": branches})
}

async fn submit(cluster: &Cluster, body: &Value) -> anyhow::Result<http::Reply> {
    http::post(&cluster.nodes[0].http, "/v1/transactions", body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_participant_in_python_commits_refuses_and_confirms_once_though_its_agent_dies()
-> anyhow::Result<()> {
    let cluster = Cluster::start(1).await?;
    cluster.open_accounts(0, ["A-1".to_owned()], 10_000).await?;
    let mut python = Python::start(&cluster).await?;

    // Both agree. Alice has 500 points.
    let reply = submit(&cluster, &purchase("buy-1", 1_000, 100, None)).await?;
    ensure!(reply.status == 200 && reply.text("/outcome") == "committed", "{:#}", reply.json());
    ensure!(reply.text("/transaction/status") == "committed", "{:#}", reply.json());
    ensure!(cluster.balance_minor(0, "A-1").await? == 9_000);

    // Python refuses: too few points. The account is as before, and nothing is held.
    let reply = submit(&cluster, &purchase("buy-2", 1_000, 401, None)).await?;
    ensure!(reply.text("/outcome") == "rolled_back", "{:#}", reply.json());
    let code = reply.text("/transaction/branches/1/refusal/code");
    ensure!(code == "too_few_points", "{:#}", reply.json());
    cluster.quiet(SOON).await?;
    ensure!(cluster.balance_minor(0, "A-1").await? == 9_000);

    // The bank refuses: the points come back, for the next purchase needs all of them.
    let reply = submit(&cluster, &purchase("buy-3", 9_001, 400, None)).await?;
    ensure!(reply.text("/outcome") == "rolled_back", "{:#}", reply.json());
    let words = reply.text("/transaction/branches/0/refusal/code");
    ensure!(words == "insufficient_funds", "{:#}", reply.json());
    until("the points were given back", SOON, async || {
        let gid = "/v1/transactions/buy-3/wait?for=end";
        let reply = http::get(&cluster.nodes[0].http, gid).await.ok()?;
        (reply.text("/transaction/status") == "rolled_back").then_some(())
    })
    .await?;

    // The agent dies when both have tried and the third has not, and is back only after the decision.
    let mut third = Service::start().await?;
    let _beside = cluster.agent("third", &third.address).await?;
    let branch = json!({"participant": "third", "payload": {}, "after": [1, 2]});
    let mut body = purchase("buy-4", 4_000, 400, Some(branch));
    body["wait"] = "decision".into();
    let http = cluster.nodes[0].http.clone();
    let submitted = tokio::spawn(async move { http::post(&http, "/v1/transactions", &body).await });
    let asked = third.next(SOON).await?;
    ensure!(asked.op == "try", "{asked:?}");
    let confirmed = python.done("confirm");
    python.agent.process.kill().await?;
    asked.answer(200).await?;
    let reply = submitted.await??;
    ensure!(reply.text("/outcome") == "committed", "{:#}", reply.json());
    ensure!(reply.text("/transaction/status") != "committed", "nobody could be told yet");
    python.agent.process.start()?;
    python.agent.ready().await?;
    let calls = third.agree(Duration::from_millis(500)).await?;
    ensure!(calls == ["confirm"], "{calls:?}");
    cluster.quiet(SOON).await?;
    ensure!(python.done("confirm") == confirmed + 1, "{}", python.process.log_text());
    ensure!(cluster.balance_minor(0, "A-1").await? == 5_000);

    // Each effect once, and none of what was rolled back. The points are spent.
    let effects = journal::effects(&cluster.sources().await?).await?;
    let expected = [("buy-1", -1_000), ("buy-4", -4_000)];
    let expected = expected.map(|(gid, minor)| (gid.to_owned(), vec![("A-1".to_owned(), minor)]));
    ensure!(effects == expected.into(), "{effects:?}");
    let reply = submit(&cluster, &purchase("buy-5", 1, 1, None)).await?;
    ensure!(reply.text("/outcome") == "rolled_back", "{:#}", reply.json());
    cluster.quiet(SOON).await
}

#[tokio::test]
async fn an_agent_without_its_service_serves_once_the_service_is_there() -> anyhow::Result<()> {
    let cluster = Cluster::start(0).await?;
    let port = ports::free(1)?[0];
    let folder = Folder::make()?;
    let app = format!("127.0.0.1:{port}");
    let _agent =
        Agent::start(folder.path(), "late", &app, &cluster.addresses()[..1], Vec::new()).await?;
    let body = json!({"gid": "late-1", "mode": "tcc", "wait": "none",
                      "branches": [{"participant": "late", "payload": {}}]});
    let reply = http::post(&cluster.nodes[0].http, "/v1/transactions", &body).await?;
    ensure!(reply.status == 202 && reply.text("/outcome") == "unknown", "{:#}", reply.json());
    // Asked again and again, and refused by nobody: not there is unknown.
    let listener = tokio::net::TcpListener::bind(&app).await?;
    let mut service = Service::listen(listener)?;
    for op in ["try", "confirm"] {
        let asked = service.next(SOON).await?;
        ensure!(asked.op == op, "{asked:?}");
        asked.answer(200).await?;
    }
    cluster.quiet(SOON).await
}
