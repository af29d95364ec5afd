//! A sidecar agent stands still in the middle of a call: its branch waits, nothing is guessed, and it goes on where it stood.

use std::time::Duration;

use anyhow::ensure;
use holdfast_chaos_tests::{Cluster, SOON, Service, http, journal, until};
use nix::sys::signal::Signal;
use serde_json::json;

/// Longer than the calls of the transaction are waited for.
const STOOD: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_stands_still_is_asked_again_and_its_branch_is_done_once()
-> anyhow::Result<()> {
    let mut cluster = Cluster::start(1).await?;
    cluster.open_accounts(0, ["A-1".to_owned()], 1_000).await?;
    let mut service = Service::start().await?;
    let mut agent = cluster.agent("slow", &service.address).await?;
    let debit = json!({"account": "A-1", "amount_minor": "700", "currency": "EUR"});
    let body = json!({
        "gid": "stopped-sidecar",
        "mode": "tcc",
        "wait": "none",
        "options": {"timeout_ms": 120_000, "call_timeout_ms": 500},
        "branches": [
            {"participant": "deposit@shard-1", "payload": {"debit": debit}},
            {"participant": "slow", "payload": {}},
        ],
    });
    let leader = cluster.leader().await?;
    let reply = http::post(&cluster.nodes[leader].http, "/v1/transactions", &body).await?;
    ensure!(reply.status == 202, "{:#}", reply.json());
    let asked = service.next(SOON).await?;
    ensure!(asked.op == "try", "{asked:?}");
    agent.process.signal(Signal::SIGSTOP)?;
    until("the sidecar stands still", SOON, async || agent.process.is_stopped().then_some(()))
        .await?;
    // The service has done it; the sidecar does not hear of it yet.
    asked.answer(200).await?;
    tokio::time::sleep(STOOD).await;
    let path = "/v1/transactions/stopped-sidecar";
    let reply = until("a node answers", SOON, async || {
        let leader = cluster.leader().await.ok()?;
        http::get(&cluster.nodes[leader].http, path).await.ok()
    });
    let reply = reply.await?;
    ensure!(reply.text("/outcome") == "unknown", "guessed: {:#}", reply.json());
    agent.process.signal(Signal::SIGCONT)?;

    // Whatever it is asked again while it catches up, the service says the same.
    let ops = serve_until_committed(&cluster, &mut service, path).await?;
    ensure!(ops.contains(&"confirm".to_owned()) && !ops.contains(&"cancel".to_owned()), "{ops:?}");
    agent.ready().await?;
    cluster.ready().await?;
    ensure!(cluster.balance_minor(0, "A-1").await? == 300);
    let effects = journal::effects(&cluster.sources().await?).await?;
    let once = [("stopped-sidecar".to_owned(), vec![("A-1".to_owned(), -700)])];
    ensure!(effects == once.into(), "{effects:?}");
    Ok(())
}

/// Answers every call with 200 until the transaction at `path` is committed whole; what was asked.
async fn serve_until_committed(
    cluster: &Cluster,
    service: &mut Service,
    path: &str,
) -> anyhow::Result<Vec<String>> {
    let committed = until("it is committed", SOON, async || {
        let leader = cluster.leader().await.ok()?;
        let reply = http::get(&cluster.nodes[leader].http, path).await.ok()?;
        (reply.text("/transaction/status") == "committed").then_some(())
    });
    tokio::pin!(committed);
    let mut ops = Vec::new();
    loop {
        tokio::select! {
            committed = &mut committed => return committed.map(|()| ops),
            asked = service.next(SOON) => {
                let asked = asked?;
                ops.push(asked.op.clone());
                // The agent may have given this call up while it stood still.
                let _sent = asked.answer(200).await;
            }
        }
    }
}
