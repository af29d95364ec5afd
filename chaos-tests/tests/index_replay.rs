//! A live cluster under kills of its leader: the log on the disks explains every answer that was ever given, in the order of real time.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{
    Cluster, Load, SOON, Shape,
    checker::{
        linear::{self, Verdict},
        replay::{self, Entry, Exchange, Finding, Replayed},
    },
};
use holdfast_coordinator::read_written;
use holdfast_txn::{Decision, Status};
use tokio::task::JoinSet;

const CLIENTS: usize = 12;
/// Transfers answered before each kill, and at the end.
const LOAD: usize = 150;
const KILLS: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn the_log_explains_every_answer_that_was_given_while_leaders_died() -> anyhow::Result<()> {
    // No snapshot, so the log is whole.
    let shape = Shape { snapshot_every: 10_000_000, ..Shape::default() };
    let mut cluster = Cluster::shaped(2, shape).await?;
    let load = Load::open(&cluster, "replay").await?;
    let running = load.start(CLIENTS, false);
    let lookers = look_around(&cluster, &load);
    for _ in 0..KILLS {
        load.more(LOAD).await?;
        let leader = cluster.leader().await?;
        cluster.nodes[leader].process.kill().await?;
        load.more(LOAD / 3).await?;
        cluster.start_nodes().await?;
    }
    load.more(LOAD).await?;
    running.stop().await?;
    stop(lookers).await?;
    cluster.quiet(SOON).await?;
    cluster.kill_nodes().await?;

    let log = log_of(&cluster).await?;
    let exchanges = load.exchanges();
    let replayed = Replayed::of(&log);
    ensure!(replayed.begun() >= load.answered(), "{} begun", replayed.begun());
    let found = replayed.judge(&exchanges);
    ensure!(found.is_empty(), "the log does not explain: {found:#?}");
    for (gid, history) in linear::histories(&exchanges) {
        let verdict = linear::judge(&history);
        ensure!(verdict == Verdict::Linearizable, "{gid} is {verdict:?}: {history:#?}");
    }
    let looks = exchanges.iter().filter(|one| one.asked == replay::Asked::Look).count();
    ensure!(looks > 20, "only {looks} looks were answered");
    every_planted_bug_is_found(&replayed, &exchanges)
}

/// Asks each door, again and again, for what others have just begun.
fn look_around(cluster: &Cluster, load: &Arc<Load>) -> JoinSet<anyhow::Result<()>> {
    let mut lookers = JoinSet::new();
    for node in &cluster.nodes {
        let (address, load) = (node.http.clone(), Arc::clone(load));
        lookers.spawn(async move {
            loop {
                load.look(&address).await?;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
    }
    lookers
}

async fn stop(mut lookers: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    lookers.abort_all();
    while let Some(ended) = lookers.join_next().await {
        match ended {
            Err(aborted) if aborted.is_cancelled() => {}
            ended => ended??,
        }
    }
    Ok(())
}

/// What most of the nodes have on their disks.
async fn log_of(cluster: &Cluster) -> anyhow::Result<Vec<Entry>> {
    let mut logs = Vec::new();
    for node in &cluster.nodes {
        let data = node.data.clone();
        let read = tokio::task::spawn_blocking(move || read_written(&data, 0, 1)).await?;
        let written = read.map_err(anyhow::Error::msg).context(node.data.display().to_string())?;
        let entry = |one: holdfast_coordinator::Written| Entry {
            index: one.index,
            at: one.at,
            commands: one.commands,
        };
        logs.push(written.into_iter().map(entry).collect());
    }
    replay::agreed(&logs).map_err(|differ| anyhow::anyhow!("{differ:?}"))
}

/// The same history, with one answer changed in it: the replay of this very log must not explain it.
fn every_planted_bug_is_found(replayed: &Replayed, exchanges: &[Exchange]) -> anyhow::Result<()> {
    let committed = replay::Told::Decided(Decision::Commit);
    let at = exchanges.iter().position(|one| one.told == committed).context("one committed")?;
    let told = &exchanges[at];
    let end = exchanges.iter().map(|one| one.told_at).max().unwrap_or(0);
    let other = replay::Told::Decided(Decision::RollBack);
    let look = |gid: &holdfast_txn::Gid, told| Exchange {
        gid: gid.clone(),
        asked_at: end + 1,
        told_at: end + 2,
        asked: replay::Asked::Look,
        told,
    };
    for (bug, planted) in [
        ("another decision", Exchange { told: other, ..told.clone() }),
        ("a fate that was forgotten", look(&told.gid, replay::Told::Absent)),
        ("a stale look", look(&told.gid, replay::Told::Status(Status::Trying))),
    ] {
        let mut history = exchanges.to_vec();
        history.push(planted);
        let found = replayed.judge(&history);
        let is_it =
            |finding: &Finding| matches!(finding, Finding::NeverTrue(_) | Finding::NoLonger { .. });
        ensure!(found.iter().any(is_it), "{bug} is not found: {found:?}");
    }
    Ok(())
}
