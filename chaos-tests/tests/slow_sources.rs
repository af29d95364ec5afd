//! Sources that are slow to prepare, or refuse for a while to carry out what is decided: nothing is read past, nothing ends in two ways, and
//! whatever is left prepared is ended by whoever looks.

use anyhow::ensure;
use futures::future::join;
use holdfast_chaos_tests::{SOON, Sharded, until};
use nix::sys::signal::Signal;
use tokio_postgres::{Client, error::SqlState};

const BALANCE: i64 = 1_000;
/// Names that one look at a source takes up.
const NAMES_MAX: usize = 200;

async fn set(client: &Client, id: &str, to: i64) -> Result<u64, tokio_postgres::Error> {
    client.execute("UPDATE account SET balance = $2 WHERE id = $1", &[&id, &to]).await
}

async fn balance(client: &Client, id: &str) -> Result<i64, tokio_postgres::Error> {
    let sql = "SELECT balance FROM account WHERE id = $1";
    Ok(client.query_one(sql, &[&id]).await?.get(0))
}

fn code(error: &tokio_postgres::Error) -> String {
    let message = error.as_db_error().map_or("", |db| db.message());
    message.split(' ').next().unwrap_or_default().to_owned()
}

async fn prepared(place: &Sharded, count: i64) -> anyhow::Result<()> {
    let what = format!("{count} names are prepared");
    until(&what, SOON, async || (place.prepared().await.ok()? == count).then_some(())).await
}

fn signal(place: &Sharded, signal: Signal) -> anyhow::Result<()> {
    place.cluster.nodes.iter().try_for_each(|node| node.process.signal(signal))
}

/// Whoever sets such a balance on the second source takes so many seconds to prepare.
async fn slow(place: &Sharded, seconds: i64) -> anyhow::Result<()> {
    let [_, second] = place.sources().await?;
    let sql = format!(
        "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END $$;
         DROP TRIGGER IF EXISTS slow ON account;
         CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW WHEN (NEW.balance = 77) EXECUTE FUNCTION slow()"
    );
    Ok(second.batch_execute(&sql).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_prepared_beside_those_who_sweep_ends_alike_on_every_source() -> anyhow::Result<()>
{
    // Three seconds to prepare, and an orphan after a third of one.
    let place = Sharded::start_with("commit_timeout_ms = 3000\norphan_age_ms = 300").await?;
    let [here, there] = place.open_accounts(16, BALANCE).await?;
    a_slow_prepare_is_swept_and_never_half_committed(&place, &here, &there).await?;
    a_prepare_that_takes_too_long_is_rolled_back(&place, &here[0], &there[0]).await?;
    a_look_takes_up_as_many_names_as_the_limit_and_the_next_one_the_rest(&place).await
}

async fn a_slow_prepare_is_swept_and_never_half_committed(
    place: &Sharded,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    slow(place, 2).await?;
    let (client, other) = (place.connect(0).await?, place.connect(1).await?);
    client.batch_execute("BEGIN").await?;
    set(&client, &here[0], 77).await?;
    set(&client, &there[0], 77).await?;
    // The first source is prepared long before the second, and both routers look.
    let (committed, live) = join(client.batch_execute("COMMIT"), async {
        for round in 0..10 {
            other.batch_execute("BEGIN").await?;
            set(&other, &here[1], round).await?;
            set(&other, &there[1], round).await?;
            other.batch_execute("COMMIT").await?;
        }
        Ok::<_, tokio_postgres::Error>(())
    })
    .await;
    live.expect("what is prepared for a moment is left to its router");
    let error = committed.expect_err("somebody else has seen to its end");
    ensure!(error.code() == Some(&SqlState::TRANSACTION_ROLLBACK), "{error:?}");
    ensure!(code(&error) == "HF3218", "{error:?}");
    prepared(place, 0).await?;
    ensure!(balance(&other, &here[0]).await? == BALANCE);
    ensure!(balance(&other, &there[0]).await? == BALANCE);
    Ok(())
}

async fn a_prepare_that_takes_too_long_is_rolled_back(
    place: &Sharded,
    here: &str,
    there: &str,
) -> anyhow::Result<()> {
    slow(place, 5).await?;
    let client = place.connect(0).await?;
    client.batch_execute("BEGIN").await?;
    set(&client, here, 77).await?;
    set(&client, there, 77).await?;
    let error = client.batch_execute("COMMIT").await.expect_err("it takes longer than the bound");
    ensure!(code(&error) == "HF3206", "{error:?}");
    ensure!(
        error.as_db_error().is_some_and(|told| told.message().contains("3000 ms")),
        "{error:?}"
    );
    // What the slow source prepares behind the bound nobody waits for any more.
    let [_, second] = place.sources().await?;
    let asleep = "SELECT count(*) FROM pg_stat_activity
         WHERE datname = 'pg-2' AND state = 'active' AND query LIKE '%; PREPARE TRANSACTION %' AND pid <> pg_backend_pid()";
    until("the slow source is done", SOON, async || {
        let row = second.query_one(asleep, &[]).await.ok()?;
        (row.get::<_, i64>(0) == 0).then_some(())
    })
    .await?;
    prepared(place, 0).await?;
    ensure!(balance(&client, here).await? == BALANCE && balance(&client, there).await? == BALANCE);
    Ok(())
}

async fn a_look_takes_up_as_many_names_as_the_limit_and_the_next_one_the_rest(
    place: &Sharded,
) -> anyhow::Result<()> {
    let [first, _] = place.sources().await?;
    let prepare = async |numbers: std::ops::Range<usize>| {
        let one = |n| {
            format!(
                "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'holdfast:01NAME{n:04}:1';"
            )
        };
        first.batch_execute(&numbers.map(one).collect::<String>()).await
    };
    let viewer = place.connect(0).await?;
    let shown = async || {
        let rows = viewer.query("SHOW HOLDFAST IN_DOUBT", &[]).await?;
        let gids: Vec<String> = rows.iter().map(|row| row.get("gid")).collect();
        anyhow::Ok(gids)
    };
    // As long as nobody can be asked, they stay.
    signal(place, Signal::SIGSTOP)?;
    prepare(0..NAMES_MAX).await?;
    ensure!(shown().await?.len() == NAMES_MAX, "at the limit all are taken up");
    prepare(NAMES_MAX..NAMES_MAX + 1).await?;
    let told = shown().await?;
    ensure!(told.len() == NAMES_MAX, "{}", told.len());
    ensure!(!told.contains(&format!("01NAME{NAMES_MAX:04}")), "the oldest first");
    signal(place, Signal::SIGCONT)?;
    prepared(place, 0).await
}

/// Nobody connects to the second source, or everybody does again.
async fn close(place: &Sharded, closed: bool) -> anyhow::Result<()> {
    let admin = place.postgres.connect("postgres").await?;
    let sql = format!("ALTER DATABASE \"pg-2\" WITH ALLOW_CONNECTIONS {}", !closed);
    admin.batch_execute(&sql).await?;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'pg-2'";
    if closed {
        admin.execute(end, &[]).await?;
    }
    Ok(())
}

/// Between the last prepare and the decision the second source goes, and stays away.
async fn commit_without_the_second(
    place: &Sharded,
    client: &Client,
    here: &str,
    there: &str,
    to: i64,
) -> anyhow::Result<()> {
    client.batch_execute("BEGIN").await?;
    set(client, here, to).await?;
    set(client, there, to).await?;
    signal(place, Signal::SIGSTOP)?;
    let (committed, closed) = join(client.batch_execute("COMMIT"), async {
        prepared(place, 2).await?;
        close(place, true).await?;
        signal(place, Signal::SIGCONT)
    })
    .await;
    closed?;
    Ok(committed?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_refuses_to_commit_for_a_while_is_not_read_past() -> anyhow::Result<()> {
    let limits = "commit_timeout_ms = 1000\norphan_age_ms = 60000\ndecision_timeout_ms = 20000";
    let place = Sharded::start_with(limits).await?;
    let [here, there] = place.open_accounts(8, BALANCE).await?;
    let (client, other) = (place.connect(0).await?, place.connect(1).await?);
    commit_without_the_second(&place, &client, &here[0], &there[0], 1).await?;
    // It is decided. Its session is told that it cannot see it yet, whichever source it asks, and never the old value.
    for id in [&there[0], &here[0]] {
        let error = balance(&client, id).await.expect_err("not everywhere yet");
        ensure!(error.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE), "{error:?}");
        ensure!(code(&error) == "HF3220", "{error:?}");
    }
    ensure!(balance(&other, &here[0]).await? == 1, "others see what is there");
    close(&place, false).await?;
    let seen = until("the source has carried it out", SOON, async || {
        balance(&client, &there[0]).await.ok()
    });
    ensure!(seen.await? == 1);
    ensure!(balance(&client, &here[0]).await? == 1);
    prepared(&place, 0).await?;
    a_session_goes_on_before_the_coordinator_has_recorded_the_end(&place, &here[1], &there[1]).await
}

async fn a_session_goes_on_before_the_coordinator_has_recorded_the_end(
    place: &Sharded,
    here: &str,
    there: &str,
) -> anyhow::Result<()> {
    let client = place.connect(0).await?;
    commit_without_the_second(place, &client, here, there, 2).await?;
    // It is decided and on one source only, so its end cannot be recorded yet; and from here on nothing is.
    signal(place, Signal::SIGSTOP)?;
    close(place, false).await?;
    let seen = until("its rows are there", SOON, async || balance(&client, there).await.ok());
    let seen = seen.await;
    signal(place, Signal::SIGCONT)?;
    ensure!(seen? == 2);
    place.cluster.quiet(SOON).await
}
