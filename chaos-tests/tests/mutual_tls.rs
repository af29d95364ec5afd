//! A running cluster with mutual TLS: it is drilled by somebody who shows a certificate; and bytes that change on the way are never taken.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use holdfast_banking::{
    DepositInstruction, NewAccount,
    ledger::{AccountId, Currency, Money},
    open_accounts,
};
use holdfast_chaos_tests::{
    Folder, SOON, Secure, checker::money, holdfast, journal, proxy::Proxy, until,
};
use holdfast_client::{Client, ClientError, Outcome, Submission};
use serde_json::Value;
use tokio::{
    process::Command,
    task::JoinSet,
    time::{sleep, timeout},
};

/// For one drill of a few seconds, on a machine that is busy with other things.
const DRILL_MAX: Duration = Duration::from_secs(240);
const CLIENTS: usize = 6;
const OPENING_MINOR: i64 = 1_000_000;
/// How long bytes change on each line.
const HELD: Duration = Duration::from_millis(2_000);
/// For the outcome of one transfer to be known.
const KNOWN_MAX: Duration = Duration::from_secs(120);

/// Runs a drill as `who`: the exit code, the report if there is one, and what else was said.
async fn drill(house: &Secure, name: &str, who: &str) -> anyhow::Result<(i32, Value, String)> {
    let folder: &Folder = &house.folder;
    let report = folder.path().join(format!("{name}-{who}.json"));
    let (ca, cert, key) = house.files(&format!("user-{who}"));
    let mut command = Command::new(holdfast()?);
    command.args(["drill", "run", name, "--doors", &house.drills.join(","), "--clients", "4"]);
    command.args(["--limit-ms", "2000", "--budget-ms", "60000", "--report"]).arg(&report);
    command.arg("--tls-ca").arg(ca).arg("--tls-cert").arg(cert).arg("--tls-key").arg(key);
    command.env("TMPDIR", folder.path()).kill_on_drop(true);
    let ended = timeout(DRILL_MAX, command.output()).await.context("it does not end")??;
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    let report = std::fs::read_to_string(&report).unwrap_or_default();
    let report = serde_json::from_str(&report).unwrap_or_default();
    Ok((ended.status.code().context("no signal")?, report, said.into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_mutual_tls_is_drilled_by_who_may_and_by_nobody_else() -> anyhow::Result<()>
{
    let house = Secure::start().await?;
    for name in ["participant-errors", "pause-leader"] {
        let (_, report, said) = drill(&house, name, "dora").await?;
        // How fast it recovers depends on what else this machine does; that it was run to its end does not.
        ensure!(report["drill"] == name && report["aborted"].is_null(), "{said}");
        ensure!(report["recover_ms"]["max"].as_u64().is_some(), "{said}");
        ensure!(report["lost"].is_null() && report["conserved"].is_null(), "{report:#}");
        ensure!(report["steady"]["after"].as_f64().is_some_and(|rate| rate > 0.0), "{said}");
        let alarms = report["alarms"].as_array().context("there is a list")?;
        let known = |alarm: &&Value| {
            ["pending", "firing"].contains(&alarm["state"].as_str().unwrap_or_default())
        };
        ensure!(alarms.iter().filter(known).count() == alarms.len(), "{alarms:?}");
        ensure!(said.contains("alarms raised"), "{said}");
    }
    // An auditor may watch, and begin nothing.
    let (code, report, said) = drill(&house, "participant-errors", "oscar").await?;
    ensure!(code == 1 && report["verdict"] == "fail", "{code}: {said}");
    ensure!(said.contains("HF6103") && said.contains("HF2602"), "{said}");
    Ok(())
}

fn account(client: usize, side: &str) -> String {
    format!("{side}-{client}")
}

/// A cent from one account of the client to the other.
fn transfer(client: usize, number: u64) -> anyhow::Result<Submission> {
    let money = Money::parse("0.01", "EUR")?;
    let debit =
        DepositInstruction::Debit { account: AccountId::parse(&account(client, "from"))?, money };
    let credit =
        DepositInstruction::Credit { account: AccountId::parse(&account(client, "to"))?, money };
    let submission = Submission::tcc().gid(format!("rot-{client}-{number}")).patience_ms(1_000);
    let submission = submission.branch("deposit@shard-1", debit.to_payload());
    Ok(submission.branch("deposit@shard-1", credit.to_payload()))
}

/// One transfer after the other, each asked for until its end is known; how many were committed.
async fn pay(
    client: Client,
    number: usize,
    stopped: Arc<AtomicBool>,
) -> anyhow::Result<(usize, i64)> {
    let mut committed = 0;
    for turn in 0.. {
        if stopped.load(Ordering::SeqCst) {
            break;
        }
        let known = timeout(KNOWN_MAX, async {
            loop {
                match client.submit(transfer(number, turn)?).await {
                    Ok(answer) if answer.outcome == Outcome::Unknown => {}
                    Ok(answer) => return anyhow::Ok(answer.outcome == Outcome::Committed),
                    Err(refused @ ClientError::Refused { .. }) => return Err(refused.into()),
                    Err(_) => {}
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        committed += i64::from(known.await.context("an outcome is never known")??);
    }
    Ok((number, committed))
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_change_on_the_way_end_a_connection_and_are_never_taken() -> anyhow::Result<()> {
    let house = Secure::start().await?;
    let source = house.postgres.connect("shard-1").await?;
    let currency = Currency::parse("EUR")?;
    let accounts = (0..CLIENTS).flat_map(|client| [account(client, "from"), account(client, "to")]);
    let accounts = accounts.map(|id| {
        anyhow::Ok(NewAccount {
            id: AccountId::parse(&id)?,
            currency,
            balance_minor: OPENING_MINOR,
        })
    });
    open_accounts(&source, &accounts.collect::<anyhow::Result<Vec<_>>>()?).await?;
    let stopped = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = house.client("dora", 30_000).await?;
        clients.spawn(pay(client, number, Arc::clone(&stopped)));
    }
    // Peers, and then callers and agents.
    for (line, proxies) in [("peers", &house.raft_proxies), ("callers", &house.grpc_proxies)] {
        let changed = || proxies.iter().map(Proxy::struck).sum::<u64>();
        let before = changed();
        proxies.iter().try_for_each(|proxy| proxy.set("corrupt_ppm=500"))?;
        sleep(HELD).await;
        until("bytes were changed", SOON, async || (changed() > before + 3).then_some(())).await?;
        proxies.iter().for_each(Proxy::clear);
        println!("{line}: {} bytes were changed", changed() - before);
        serves(&house).await?;
    }
    stopped.store(true, Ordering::SeqCst);
    let mut committed = BTreeMap::new();
    while let Some(ended) = clients.join_next().await {
        committed.extend([ended??]);
    }
    println!("{} transfers were committed", committed.values().sum::<i64>());
    // What was told is in the books, and nothing else.
    let mut sources = vec![("shard-1".to_owned(), house.postgres.connect("shard-1").await?)];
    until("nothing is held", 2 * SOON, async || {
        journal::held_minor(&sources).await.ok().filter(|held| *held == 0).map(drop)
    })
    .await?;
    let sql = "SELECT balance_minor FROM bank.account WHERE id = $1";
    for (client, committed) in committed {
        for (side, wanted) in
            [("from", OPENING_MINOR - committed), ("to", OPENING_MINOR + committed)]
        {
            let is: i64 = source.query_one(sql, &[&account(client, side)]).await?.get(0);
            ensure!(is == wanted, "{side}-{client} holds {is}, and {wanted} was told");
        }
    }
    money::check(&mut sources).await.map(drop)
}

/// A transfer commits: the lines are well again.
async fn serves(house: &Secure) -> anyhow::Result<()> {
    until("a new client is served", 2 * SOON, async || {
        let client = house.client("dora", 5_000).await.ok()?;
        client.node_status().await.ok().map(drop)
    })
    .await
}
