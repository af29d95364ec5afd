//! `kill -9` of the router, of the coordinator that leads, and of PostgreSQL, at each step of a transaction on two sources: money is
//! conserved, and ten seconds behind the restart nothing is prepared any more.
//!
//! The router dies at a step by itself. For the others it stands still at the step while they are killed, and goes on when they are
//! dead. Here a slice: each step once, and who dies goes round. With `HOLDFAST_CHAOS=full` everybody dies at each step, as `make chaos`
//! says; `HOLDFAST_TURNS=20` does each twenty times, as `make soak` says.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{SOON, Sharded, until};
use holdfast_fault::{Role, Site};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;

const ACCOUNTS: usize = 16;
const BALANCE: i64 = 1_000;
/// From the restart of what was killed until nothing is prepared any more.
const SWEPT_MAX: Duration = Duration::from_secs(10);
/// For a client whose server, router or decision is gone to be told something.
const TOLD_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Router,
    Leader,
    Postgres,
}

/// The steps: every site of the router, and the second source where a step is taken for each.
fn steps() -> Vec<String> {
    let sites = Site::ALL.iter().filter(|site| site.role() == Role::Router);
    sites
        .flat_map(|site| match site {
            Site::RouterPreparing | Site::RouterCommitting => {
                vec![site.name().to_owned(), format!("{}:2", site.name())]
            }
            _ => vec![site.name().to_owned()],
        })
        .collect()
}

fn turns() -> anyhow::Result<usize> {
    std::env::var("HOLDFAST_TURNS").map_or(Ok(1), |turns| turns.parse().context("HOLDFAST_TURNS"))
}

async fn transfer(client: &Client, from: &str, to: &str) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    let sql = "UPDATE account SET balance = balance + $2 WHERE id = $1";
    client.execute(sql, &[&from, &-1_i64]).await?;
    client.execute(sql, &[&to, &1_i64]).await?;
    client.batch_execute("COMMIT").await
}

/// How much there is on the source that pays.
async fn left(place: &Sharded) -> anyhow::Result<i64> {
    until("the source that pays answers", SOON, async || {
        let [paying, _] = place.sources().await.ok()?;
        let sql = "SELECT sum(balance)::bigint FROM account";
        Some(paying.query_one(sql, &[]).await.ok()?.get(0))
    })
    .await
}

/// Kills at one step, starts again, and answers from when on everything runs.
async fn strike(place: &mut Sharded, victim: Victim, step: &str) -> anyhow::Result<Instant> {
    if victim == Victim::Router {
        place.routers[0].ended(SOON).await?;
        place.routers[0].start()?;
        place.ready(0).await?;
        return Ok(Instant::now());
    }
    let stands = async || place.routers[0].is_stopped().then_some(());
    until(&format!("the router stands still at {step}"), SOON, stands).await?;
    match victim {
        Victim::Leader => {
            let leader = place.cluster.leader().await?;
            place.cluster.nodes[leader].process.kill().await?;
        }
        Victim::Postgres => place.postgres.crash().await?,
        Victim::Router => unreachable!("it is dead"),
    }
    place.routers[0].signal(Signal::SIGCONT)?;
    match victim {
        Victim::Postgres => place.postgres.start_again().await?,
        Victim::Leader | Victim::Router => place.cluster.start_nodes().await?,
    }
    Ok(Instant::now())
}

#[tokio::test(flavor = "multi_thread")]
async fn router_leader_and_postgres_may_each_be_killed_at_every_step_of_a_commit()
-> anyhow::Result<()> {
    let full = std::env::var_os("HOLDFAST_CHAOS").is_some_and(|value| value == "full");
    let (steps, turns) = (steps(), turns()?);
    ensure!(steps.len() == 8, "{steps:?}");
    let mut place = Sharded::start().await?;
    let [here, there] = place.open_accounts(ACCOUNTS, BALANCE).await?;
    let mut hits: BTreeMap<(Victim, &str), usize> = BTreeMap::new();
    for turn in 0..turns {
        for victim in [Victim::Router, Victim::Leader, Victim::Postgres] {
            for (nth, step) in steps.iter().enumerate() {
                if !full && nth % 3 != victim as usize {
                    continue;
                }
                let client = until("the router lets us in", SOON, async || {
                    let client = place.connect(0).await.ok()?;
                    client.simple_query("SELECT count(*) FROM account").await.ok()?;
                    Some(client)
                })
                .await?;
                let words =
                    if victim == Victim::Router { step.clone() } else { format!("stop {step}") };
                let before = left(&place).await?;
                place.order(0, &words)?;
                let (from, to) =
                    (here[turn % here.len()].clone(), there[turn % there.len()].clone());
                let told = tokio::spawn(async move { transfer(&client, &from, &to).await });
                let begun = strike(&mut place, victim, step)
                    .await
                    .with_context(|| format!("{victim:?} at {step}"))?;
                let told = timeout(TOLD_MAX, told).await.context("the client hears nothing")??;
                let swept = until("nothing is prepared", SOON, async || {
                    let swept = begun.elapsed();
                    let none = place.prepared().await.ok()? == 0;
                    // What the dead had sent may still be on its way.
                    sleep(Duration::from_millis(200)).await;
                    (none && place.prepared().await.ok()? == 0).then_some(swept)
                })
                .await
                .with_context(|| format!("{victim:?} at {step}"))?;
                ensure!(swept < SWEPT_MAX, "{victim:?} at {step}: prepared for {swept:?}");
                let total = until("both sources answer", SOON, async || place.total().await.ok());
                let total = total.await?;
                ensure!(total == ACCOUNTS as i64 * BALANCE, "{victim:?} at {step}: {total}");
                let moved = before - left(&place).await?;
                // Told committed, it moved; told anything else, it moved wholly or not at all.
                let moves = if told.is_ok() { 1..=1 } else { 0..=1 };
                ensure!(moves.contains(&moved), "{victim:?} at {step}: {moved} moved, {told:?}");
                let told = told.map_or_else(|error| error.to_string(), |()| "committed".to_owned());
                println!(
                    "{victim:<9?} {step:<24} {:>6} ms  {moved} moved  {told}",
                    swept.as_millis()
                );
                *hits.entry((victim, step)).or_default() += 1;
            }
        }
    }
    let pairs = if full { 3 * steps.len() } else { steps.len() };
    ensure!(hits.len() == pairs && hits.values().all(|&hits| hits == turns), "{hits:?}");
    until("nothing is open at the coordinators", SOON, async || {
        let leader = place.cluster.leader().await.ok()?;
        (place.cluster.status(leader).await?.open_transactions == 0).then_some(())
    })
    .await
}
