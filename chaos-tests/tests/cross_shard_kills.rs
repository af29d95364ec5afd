//! A router dies at each step of a transaction on two sources: nothing is lost or doubled, and nothing stays prepared, though it never comes back.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{SOON, Sharded, until};
use tokio::time::Instant;
use tokio_postgres::{Client, error::SqlState};

const BALANCE: i64 = 1_000;
/// From the death until nothing is prepared any more.
const SWEPT_MAX: Duration = Duration::from_secs(10);
/// Steps, and whether a transaction that dies there was decided to commit.
const POINTS: [(&str, bool); 7] = [
    ("router-before-prepare", false),
    ("router-preparing:2", false),
    ("router-prepared", false),
    ("router-decided", true),
    ("router-committing", true),
    ("router-committing:2", true),
    ("router-committed", true),
];

async fn transfer(client: &Client, from: &str, to: &str) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    let sql = "UPDATE account SET balance = balance + $2 WHERE id = $1";
    client.execute(sql, &[&from, &-10_i64]).await?;
    client.execute(sql, &[&to, &10_i64]).await?;
    client.batch_execute("COMMIT").await
}

async fn balance(client: &Client, id: &str) -> anyhow::Result<i64> {
    let sql = "SELECT balance FROM account WHERE id = $1";
    Ok(client.query_one(sql, &[&id]).await?.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_may_die_at_every_step_and_another_one_ends_what_it_left() -> anyhow::Result<()> {
    let mut place = Sharded::start().await?;
    let [here, there] = place.open_accounts(16, BALANCE).await?;
    let (from, to) = (&here[0], &there[0]);
    let mut moved = 0;
    for (point, committed) in POINTS {
        let client = place.connect(0).await?;
        place.order(0, point)?;
        // Some of these die behind the answer; what counts is that the process does.
        let _told = transfer(&client, from, to).await;
        place.routers[0].ended(SOON).await.with_context(|| format!("{point} was not reached"))?;
        let died = Instant::now();
        moved += if committed { 10 } else { 0 };
        let swept = until(point, SOON, async || {
            let swept = died.elapsed();
            let none = place.prepared().await.ok()? == 0;
            // What the dead router had sent may still be on its way.
            tokio::time::sleep(Duration::from_millis(200)).await;
            (none && place.prepared().await.ok()? == 0).then_some(swept)
        })
        .await?;
        println!("{point:<24} {:>6} ms", swept.as_millis());
        ensure!(swept < SWEPT_MAX, "{point}: prepared for {swept:?}");
        let other = place.connect(1).await?;
        let found = (balance(&other, from).await?, balance(&other, to).await?);
        ensure!(found == (BALANCE - moved, BALANCE + moved), "{point}: {found:?}, {moved} moved");
        ensure!(place.total().await? == 16 * BALANCE, "{point}");
        transfer(&other, from, to).await?;
        moved += 10;
        place.routers[0].start()?;
        place.ready(0).await?;
    }
    // The coordinator has heard the end of each of them.
    until("nothing is open at the coordinators", SOON, async || {
        let leader = place.cluster.leader().await.ok()?;
        (place.cluster.status(leader).await?.open_transactions == 0).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_decide_is_told_as_unknown_and_ends_when_the_coordinators_are_back()
-> anyhow::Result<()> {
    let mut place = Sharded::start().await?;
    let [here, there] = place.open_accounts(16, BALANCE).await?;
    let client = place.connect(0).await?;
    transfer(&client, &here[0], &there[0]).await?;
    place.cluster.kill_nodes().await?;
    let error = transfer(&client, &here[0], &there[0]).await.expect_err("nobody decides");
    // Nothing was sent, or nobody can tell; never that it was committed.
    let told = error.code().cloned();
    let open = SqlState::from_code("40003");
    let rolled_back = SqlState::from_code("40000");
    ensure!(told == Some(open) || told == Some(rolled_back), "{error}");
    // The router that gave up rolls back behind its answer, so the two may differ for a moment.
    let viewer = place.connect(1).await?;
    until("what is shown is what is prepared", SOON, async || {
        let seen = viewer.query("SHOW HOLDFAST IN_DOUBT", &[]).await.ok()?;
        (seen.len() as i64 == place.prepared().await.ok()?).then_some(())
    })
    .await?;
    place.cluster.start_nodes().await?;
    until("it ends", SOON, async || (place.prepared().await.ok()? == 0).then_some(())).await?;
    ensure!(place.total().await? == 16 * BALANCE);
    let other = place.connect(1).await?;
    until("transfers go on", SOON, async || {
        let told = transfer(&other, &here[1], &there[1]).await;
        if told.is_err() {
            other.batch_execute("ROLLBACK").await.ok()?;
        }
        told.ok()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_across_sources_has_one_victim_and_what_is_in_doubt_is_shown()
-> anyhow::Result<()> {
    let place = Sharded::start().await?;
    let [here, there] = place.open_accounts(16, BALANCE).await?;
    let sql = "UPDATE account SET balance = balance + 1 WHERE id = $1";
    // Within one router, then over two of which neither knows the other.
    for turn in 0..2 {
        let (one, two) = (place.connect(0).await?, place.connect(turn).await?);
        one.batch_execute("BEGIN").await?;
        two.batch_execute("BEGIN").await?;
        one.execute(sql, &[&here[1]]).await?;
        one.execute(sql, &[&there[2]]).await?;
        two.execute(sql, &[&there[1]]).await?;
        two.execute(sql, &[&here[2]]).await?;
        let begun = Instant::now();
        let waits = async {
            let told = two.execute(sql, &[&here[1]]).await;
            if told.is_err() {
                two.batch_execute("ROLLBACK").await.expect("it ends");
            }
            told
        };
        let crossing = futures::future::join(async { one.execute(sql, &[&there[1]]).await }, waits);
        let (first, second) = tokio::time::timeout(SOON, crossing).await.context("both wait")?;
        println!("a circle over {} routers: {} ms", turn + 1, begun.elapsed().as_millis());
        let error = second.expect_err("the younger gives way");
        ensure!(error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED), "{error}");
        ensure!(first? == 1, "the elder goes on");
        one.batch_execute("COMMIT").await?;
    }
    // Somebody has prepared something that no coordinator knows; a client waits for it.
    let source = place.postgres.connect("pg-1").await?;
    source.batch_execute(&format!(
        "BEGIN; UPDATE account SET balance = balance - 1 WHERE id = '{}'; PREPARE TRANSACTION 'holdfast:01LOST:1'",
        here[3]
    )).await?;
    let waiter = place.connect(0).await?;
    let waits = tokio::spawn({
        let id = here[3].clone();
        async move {
            waiter.execute("UPDATE account SET balance = balance + 1 WHERE id = $1", &[&id]).await
        }
    });
    let viewer = place.connect(1).await?;
    let row = until("it is shown with who waits for it", SOON, async || {
        let rows = viewer.query("SHOW HOLDFAST IN_DOUBT", &[]).await.ok()?;
        let row = rows.into_iter().next()?;
        (!row.get::<_, String>("blocked").is_empty()).then_some(row)
    })
    .await?;
    ensure!(row.get::<_, String>("gid") == "01LOST" && row.get::<_, String>("source") == "pg-1");
    ensure!(row.get::<_, String>("shard") == "shard-1", "{row:?}");
    ensure!(row.get::<_, String>("state") == "not known", "{row:?}");
    ensure!(row.get::<_, String>("age_ms").parse::<u64>()? < 60_000);
    // Then a router asks for its fate, which nobody can decide any more but as a rollback.
    ensure!(tokio::time::timeout(SOON, waits).await??? == 1);
    ensure!(balance(&viewer, &here[3]).await? == BALANCE + 1);
    let answer = place.cluster.client().await?.get("01LOST").await?;
    ensure!(format!("{:?}", answer.outcome).starts_with("RolledBack"), "{answer:?}");
    // Another program's name is nobody's business.
    source.batch_execute("BEGIN; SELECT 1; PREPARE TRANSACTION 'other:1'").await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(place.prepared().await? == 1, "a router has ended what is not its own");
    source.batch_execute("ROLLBACK PREPARED 'other:1'").await?;
    Ok(())
}
