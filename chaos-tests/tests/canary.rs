//! Secrets go where they must and nowhere else: into the log that is replicated and to the participants, and into no log line, metric, span or
//! answer of anybody else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::ensure;
use holdfast_chaos_tests::{
    Cluster, Collector, Process, Program, SOON, Service, Shape, holdfast, http, until,
};
use serde_json::{Value, json};

const PAYLOAD: &str = "canary-payload-5d1e77";
const HEADER: &str = "canary-header-0b62aa";
const TOKEN: &str = "hft_canary-token-91c3e0";
const PASSWORD: &str = "canary-password-f4a801";
const ALL: [&str; 4] = [PAYLOAD, HEADER, TOKEN, PASSWORD];

/// Where a canary was found, of what was `told`.
fn leaks(told: &BTreeMap<String, String>) -> Vec<String> {
    let in_it = |(place, text): (&String, &String)| {
        let found = ALL.into_iter().filter(|canary| text.contains(canary));
        found.map(|canary| format!("{canary} in {place}")).collect::<Vec<_>>()
    };
    told.iter().flat_map(in_it).collect()
}

fn submit(gid: &str, participant: &str) -> Value {
    json!({
        "gid": gid,
        "mode": "tcc",
        "wait": "end",
        "options": {
            "headers": {"x-secret": HEADER, "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
            "tags": {"run": "canary"},
        },
        "branches": [{"participant": participant, "payload": {"memo": PAYLOAD}}],
    })
}

/// A request as a careless caller makes it: with a token where none is asked for.
async fn ask(address: &str, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
    let token = format!("Bearer {TOKEN}");
    let headers = [("Authorization", token.as_str()), ("Content-Type", "application/json")];
    let reply = http::send(address, method, path, &headers, body.as_bytes()).await?;
    Ok(String::from_utf8_lossy(&reply.body).into_owned())
}

/// The canaries in bytes that are no text.
fn held(bytes: &[u8]) -> BTreeSet<&'static str> {
    let holds = |canary: &&str| bytes.windows(canary.len()).any(|part| part == canary.as_bytes());
    ALL.into_iter().filter(holds).collect()
}

/// Every file below `folder` whose name ends in `.log` and that is text; and the canaries that the other files hold.
fn files(
    folder: &Path,
    told: &mut BTreeMap<String, String>,
) -> anyhow::Result<BTreeSet<&'static str>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, told)?);
        } else if path.parent().is_some_and(|dir| dir.join("coordinator-1.toml").exists())
            && path.extension().is_some_and(|extension| extension == "log")
        {
            told.insert(path.display().to_string(), fs::read_to_string(&path)?);
        } else {
            found.extend(held(&fs::read(&path)?));
        }
    }
    Ok(found)
}

/// A snapshot of the state, as a backup has it.
async fn snapshot(cluster: &Cluster) -> anyhow::Result<Vec<u8>> {
    let file = cluster.folder.path().join("state.backup");
    let mut command = tokio::process::Command::new(holdfast()?);
    command.args(["cluster", "backup", "--coordinator", &cluster.nodes[0].grpc, "--to"]).arg(&file);
    let taken = command.output().await?;
    ensure!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    let bytes = fs::read(&file)?;
    fs::remove_file(&file)?;
    Ok(bytes)
}

/// A bank whose database cannot be reached: it says so, and says no password.
async fn homeless_bank(cluster: &Cluster) -> anyhow::Result<Process> {
    let database = format!("host=127.0.0.1 port=1 user=bank password={PASSWORD} dbname=nowhere");
    let program = Program {
        name: "bank-homeless".to_owned(),
        path: holdfast()?.to_owned(),
        arguments: [
            "bank",
            "--shard",
            "homeless",
            "--coordinator",
            &cluster.nodes[0].grpc,
            "--http",
            "127.0.0.1:0",
            "--dev-plaintext",
        ]
        .map(Into::into)
        .to_vec(),
        environment: vec![
            ("HOLDFAST_BANK_DATABASE".to_owned(), database),
            ("HOLDFAST_TELEMETRY_LEVEL".to_owned(), "trace".to_owned()),
            ("HOLDFAST_TELEMETRY_FORMAT".to_owned(), "json".to_owned()),
        ],
        run_as: None,
        kill_when_dropped: true,
    };
    let mut process = Process::new(program, cluster.folder.path());
    process.start()?;
    let log = cluster.folder.path().join("bank-homeless.log");
    until("the bank says that its database is not there", SOON, async || {
        let text = fs::read_to_string(&log).ok()?;
        (text.contains("bank starts") && text.lines().count() > 1).then_some(())
    })
    .await?;
    Ok(process)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_in_no_log_line_metric_span_or_answer() -> anyhow::Result<()> {
    let collector = Collector::start().await?;
    let shape = Shape {
        collector: Some(collector.address),
        talkative: true,
        snapshot_every: 10,
        ..Shape::default()
    };
    let cluster = Cluster::shaped(0, shape).await?;
    let mut service = Service::start().await?;
    let agent = cluster.agent("loyalty", &service.address).await?;
    let bank = homeless_bank(&cluster).await?;
    let node = cluster.nodes[0].http.clone();

    let mut told = BTreeMap::new();
    let answers = async {
        let mut told = BTreeMap::new();
        for (gid, body) in [
            ("canary-1", submit("canary-1", "loyalty").to_string()),
            ("canary-2", submit("canary-2", "loyalty").to_string()),
            // Refused: other content, and a participant that is none.
            ("taken", submit("canary-1", "others").to_string()),
            ("no participant", submit("canary-3", "NO SUCH").to_string()),
        ] {
            told.insert(gid.to_owned(), ask(&node, "POST", "/v1/transactions", &body).await?);
        }
        for path in ["/v1/transactions/canary-1", "/v1/history?tag=run=canary", "/v1/transactions"]
        {
            told.insert(path.to_owned(), ask(&node, "GET", path, "").await?);
        }
        anyhow::Ok(told)
    };
    tokio::pin!(answers);
    let mut refused_one = false;
    loop {
        tokio::select! {
            answered = &mut answers => { told.extend(answered?); break }
            asked = service.next(SOON) => {
                let asked = asked?;
                let refuse = asked.gid == "canary-2" && asked.op == "try";
                refused_one |= refuse;
                asked.answer(if refuse { 409 } else { 200 }).await?;
            }
        }
    }
    ensure!(refused_one && told["canary-1"].contains("committed"), "{told:#?}");
    ensure!(told["taken"].contains("HF2002"), "{}", told["taken"]);
    ensure!(told["/v1/transactions/canary-1"].contains("loyalty"), "{told:#?}");

    for address in cluster.nodes.iter().map(|node| &node.http).chain([&agent.http]) {
        let page = http::get(address, "/metrics").await?;
        told.insert(
            format!("metrics of {address}"),
            String::from_utf8_lossy(&page.body).into_owned(),
        );
    }
    until("spans arrive", SOON, async || {
        let seen = collector.seen();
        seen.iter().any(|span| span.name == "try loyalty").then_some(())
    })
    .await?;
    told.insert("spans".to_owned(), format!("{:?}", collector.seen()));
    // Once a transaction is over, nobody needs its payload.
    let snapshot = snapshot(&cluster).await?;
    ensure!(snapshot.windows(8).any(|part| part == b"canary-1"), "it is no snapshot of that");
    ensure!(held(&snapshot).is_subset(&BTreeSet::from([HEADER])), "{:?}", held(&snapshot));
    let on_disk = files(cluster.folder.path(), &mut told)?;
    // What is not there to be found proves nothing: the payload did travel, and the logs do tell of its transaction.
    ensure!(on_disk == BTreeSet::from([PAYLOAD, HEADER]), "on disk in the end: {on_disk:?}");
    let logs: Vec<&String> = told.keys().filter(|place| place.ends_with(".log")).collect();
    ensure!(logs.len() >= 5, "logs of three nodes, an agent and a bank: {logs:?}");
    for place in logs {
        for line in told[place].lines() {
            let parsed = serde_json::from_str::<Value>(line);
            ensure!(parsed.is_ok(), "{place}: a line is no JSON: {line}");
        }
    }
    let leaks = leaks(&told);
    ensure!(leaks.is_empty(), "{leaks:#?}");
    drop((agent, bank));
    Ok(())
}
