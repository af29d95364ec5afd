//! A leader is stopped in the middle of a call and comes back when another leads: what it heard changes nothing.

use std::time::Duration;

use anyhow::ensure;
use holdfast_chaos_tests::{Cluster, SOON, Service, http, journal, until};
use holdfast_client::{
    ClientOptions, Link,
    wire::{GetRequest, exchange_reply::Reply, exchange_request::Request},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn body(gid: &str) -> Value {
    let debit = json!({"account": "A-1", "amount_minor": "700", "currency": "EUR"});
    json!({
        "gid": gid,
        "mode": "tcc",
        "wait": "none",
        "options": {"timeout_ms": 120_000, "call_timeout_ms": 60_000},
        "branches": [
            {"participant": "deposit@shard-1", "payload": {"debit": debit}},
            {"participant": "slow", "payload": {}, "after": [1]},
        ],
    })
}

/// The place of the node that leads, when it is not the one at `not`.
async fn another_leader(cluster: &Cluster, not: usize) -> anyhow::Result<usize> {
    until("another node leads", SOON, async || {
        for at in (0..cluster.nodes.len()).filter(|at| *at != not) {
            if cluster.status(at).await.is_some_and(|status| status.role == "leader") {
                return Some(at);
            }
        }
        None
    })
    .await
}

/// Whether the node at this place has led since it said so of this term. Its word alone is not enough: one that a busy machine has kept from
/// hearing of its successor says so too. So a majority is asked, by a read that the node answers only if it leads.
async fn has_led_since(cluster: &Cluster, (at, term): (usize, u64)) -> anyhow::Result<bool> {
    let options = ClientOptions::default();
    let Ok(link) = Link::open(&cluster.nodes[at].grpc, false, &options).await else {
        return Ok(false);
    };
    let request = Request::Get(GetRequest { gid: "nobody".to_owned(), stale: false });
    let answer = tokio::time::timeout(SOON, link.call(request)).await?;
    let unknown_here = matches!(answer, Ok(Reply::Error(error)) if error.code == "HF2001");
    let now = cluster.status(at).await;
    Ok(unknown_here && now.is_some_and(|now| now.role == "leader" && now.term == term))
}

/// Brings a transaction to where the leader waits for the answer to the second try, and stops that leader. `late` is what the
/// service answers to the old leader, `fresh` what it answers to the new one.
async fn deposed(gid: &str, late: u16, fresh: u16) -> anyhow::Result<(Cluster, Vec<String>)> {
    let mut cluster = Cluster::start(1).await?;
    cluster.open_accounts(0, ["A-1".to_owned()], 1_000).await?;
    let mut service = Service::start().await?;
    let agent = cluster.agent("slow", &service.address).await?;
    let mut led = cluster.leads().await?;
    let reply = http::post(&cluster.nodes[led.0].http, "/v1/transactions", &body(gid)).await?;
    ensure!(reply.status == 202, "{:#}", reply.json());
    // Should leadership move before the leader is stopped, the call is left without an answer, and whoever leads asks again.
    let (old, to_old) = loop {
        let asked = service.next(SOON).await?;
        ensure!(asked.op == "try", "{asked:?}");
        if has_led_since(&cluster, led).await? {
            break (led.0, asked);
        }
        led = cluster.leads().await?;
    };

    let process = &cluster.nodes[old].process;
    process.signal(Signal::SIGSTOP)?;
    until("the old leader stands still", SOON, async || process.is_stopped().then_some(())).await?;
    // This answer lies in the stopped leader's socket until it wakes up.
    to_old.answer(late).await?;
    let new = another_leader(&cluster, old).await?;
    let mut ops = Vec::new();
    let to_new = service.next(SOON).await?;
    ensure!((to_new.op.as_str(), to_new.gid.as_str()) == ("try", gid), "{to_new:?}");
    ops.push("try".to_owned());
    // The old one wakes up while the new one still waits, and has all the time to say what it heard.
    cluster.nodes[old].process.signal(Signal::SIGCONT)?;
    until("the old leader follows", SOON, async || {
        let status = cluster.status(old).await?;
        (status.role == "follower" && status.leader != 0).then_some(())
    })
    .await?;
    let reply = http::get(&cluster.nodes[new].http, &format!("/v1/transactions/{gid}")).await?;
    ensure!(reply.text("/outcome") == "unknown", "decided by a late report: {:#}", reply.json());
    to_new.answer(fresh).await?;
    let decided = if fresh == 200 { "committed" } else { "rolled_back" };
    let path = format!("/v1/transactions/{gid}/wait?for=decision");
    let asking = async {
        for node in &cluster.nodes {
            let reply = http::get(&node.http, &path).await?;
            ensure!(reply.text("/outcome") == decided, "{:#}", reply.json());
        }
        Ok(())
    };
    // Should leadership move once more, the try is asked again and has the same answer.
    let judge = |op: &str| if op == "try" { fresh } else { 200 };
    let (asked, answered) =
        tokio::join!(asking, service.answer_with(Duration::from_secs(2), judge));
    asked?;
    ops.extend(answered?);
    cluster.ready().await?;
    cluster.quiet(SOON).await?;
    drop(agent);
    Ok((cluster, ops))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_yes_to_a_deposed_leader_commits_nothing_that_the_new_leader_rolls_back()
-> anyhow::Result<()> {
    let (cluster, ops) = deposed("late-yes", 200, 409).await?;
    ensure!(!ops.contains(&"confirm".to_owned()), "both ways: {ops:?}");
    let effects = journal::effects(&cluster.sources().await?).await?;
    ensure!(effects.is_empty(), "{effects:?}");
    ensure!(cluster.balance_minor(0, "A-1").await? == 1_000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_no_to_a_deposed_leader_rolls_back_nothing_that_the_new_leader_commits()
-> anyhow::Result<()> {
    let (cluster, ops) = deposed("late-no", 409, 200).await?;
    ensure!(!ops.contains(&"cancel".to_owned()), "both ways: {ops:?}");
    ensure!(ops.last().is_some_and(|op| op == "confirm"), "{ops:?}");
    let effects = journal::effects(&cluster.sources().await?).await?;
    let expected = [("late-no".to_owned(), vec![("A-1".to_owned(), -700)])];
    ensure!(effects == expected.into(), "{effects:?}");
    ensure!(cluster.balance_minor(0, "A-1").await? == 300);
    Ok(())
}
