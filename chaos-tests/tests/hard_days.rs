//! What databases, processes, clocks and operators do to a running cluster, under load: nothing acknowledged is lost, nothing happens
//! twice, and when it is over everything goes on.
//!
//! Here a slice; all of it with `HOLDFAST_CHAOS=full`, as `make chaos` says.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{Cluster, Load, SOON, Shape, checker::money, http, until};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;

const CLIENTS: usize = 16;
/// How long each fault lasts.
const HELD: Duration = Duration::from_millis(1_500);
/// Transfers that must be answered behind each.
const AFTERWARDS: usize = 30;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Day {
    PostgresReadOnly,
    PostgresFull,
    PostgresLocked,
    PostgresStopped,
    PostgresKilled,
    LeaderStopped,
    FollowerStopped,
    BankStopped,
    BankKilled,
    ClockJumpsAhead,
    ClockJumpsBack,
    RollingRestart,
    LeaderHandsOver,
    MemberReplaced,
}

const ALL: [Day; 14] = [
    Day::PostgresReadOnly,
    Day::PostgresFull,
    Day::PostgresLocked,
    Day::PostgresStopped,
    Day::PostgresKilled,
    Day::LeaderStopped,
    Day::FollowerStopped,
    Day::BankStopped,
    Day::BankKilled,
    Day::ClockJumpsAhead,
    Day::ClockJumpsBack,
    Day::RollingRestart,
    Day::LeaderHandsOver,
    Day::MemberReplaced,
];
/// Of every run of the tests.
const SLICE: [Day; 5] = [
    Day::PostgresReadOnly,
    Day::PostgresFull,
    Day::PostgresKilled,
    Day::LeaderStopped,
    Day::ClockJumpsAhead,
];

async fn befalls(cluster: &mut Cluster, load: &Load, day: Day) -> anyhow::Result<()> {
    match day {
        Day::PostgresReadOnly => read_only(cluster).await,
        Day::PostgresFull => {
            let postgres = cluster.postgres.as_ref().context("there is one")?;
            postgres.use_up_connections("shard-%", HELD).await
        }
        Day::PostgresLocked => locked(cluster).await,
        Day::PostgresStopped => {
            let postgres = cluster.postgres.as_ref().context("there is one")?;
            ensure!(postgres.signal_all(Signal::SIGSTOP)? > 1, "a server has helpers");
            sleep(HELD).await;
            postgres.signal_all(Signal::SIGCONT).map(drop)
        }
        Day::PostgresKilled => {
            let postgres = cluster.postgres.as_mut().context("there is one")?;
            postgres.crash().await?;
            postgres.start_again().await
        }
        Day::LeaderStopped => {
            let leader = cluster.leader().await?;
            stand_still(&cluster.nodes[leader].process, load, true).await
        }
        Day::FollowerStopped => {
            let follower = cluster.follower().await?;
            stand_still(&cluster.nodes[follower].process, load, true).await
        }
        Day::BankStopped => stand_still(&cluster.banks[0].process, load, false).await,
        Day::BankKilled => {
            cluster.banks[1].process.kill().await?;
            sleep(HELD).await;
            cluster.banks[1].process.start()?;
            cluster.ready().await
        }
        Day::ClockJumpsAhead => clock_jumps(cluster, load, 5_000).await,
        Day::ClockJumpsBack => clock_jumps(cluster, load, -5_000).await,
        Day::RollingRestart => {
            for at in 0..cluster.nodes.len() {
                cluster.nodes[at].process.stop(Signal::SIGTERM, SOON).await?;
                cluster.nodes[at].process.start()?;
                cluster.ready().await?;
            }
            for at in 0..cluster.banks.len() {
                cluster.banks[at].process.stop(Signal::SIGTERM, SOON).await?;
                cluster.banks[at].process.start()?;
                cluster.ready().await?;
            }
            Ok(())
        }
        Day::LeaderHandsOver => {
            let before = cluster.leader().await?;
            cluster.operator().run(&["cluster", "transfer"]).await?;
            let after = cluster.leader().await?;
            ensure!(before != after, "node {} leads still", before + 1);
            Ok(())
        }
        Day::MemberReplaced => replaced(cluster, load).await,
    }
}

/// Writes are refused in new transactions, also of sessions that are open, as on a hot standby.
async fn read_only(cluster: &Cluster) -> anyhow::Result<()> {
    let postgres = cluster.postgres.as_ref().context("there is one")?;
    let admin = postgres.connect("postgres").await?;
    admin.batch_execute("SET default_transaction_read_only = off").await?;
    let reload = "SELECT pg_reload_conf()";
    admin.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").await?;
    admin.batch_execute(reload).await?;
    let shard = postgres.connect("shard-1").await?;
    until("a write is refused", SOON, async || {
        let write = shard.batch_execute("UPDATE bank.account SET balance_minor = balance_minor");
        let told = write.await.err()?;
        (told.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)).then_some(())
    })
    .await?;
    sleep(HELD).await;
    admin.batch_execute("ALTER SYSTEM RESET default_transaction_read_only").await?;
    Ok(admin.batch_execute(reload).await?)
}

/// Somebody else holds a lock that every transfer of a shard needs.
async fn locked(cluster: &Cluster) -> anyhow::Result<()> {
    let postgres = cluster.postgres.as_ref().context("there is one")?;
    let holder = postgres.connect("shard-1").await?;
    holder.batch_execute("BEGIN; LOCK TABLE bank.account IN ACCESS EXCLUSIVE MODE").await?;
    let viewer = postgres.connect("postgres").await?;
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    until("a transfer waits for the lock", SOON, async || {
        let waiting: i64 = viewer.query_one(waiting, &[]).await.ok()?.get(0);
        (waiting > 0).then_some(())
    })
    .await?;
    sleep(HELD).await;
    Ok(holder.batch_execute("ROLLBACK").await?)
}

/// SIGSTOP, and SIGCONT later; where others take over, transfers are answered before that.
async fn stand_still(
    process: &holdfast_chaos_tests::Process,
    load: &Load,
    others_take_over: bool,
) -> anyhow::Result<()> {
    process.signal(Signal::SIGSTOP)?;
    let stands = async || process.is_stopped().then_some(());
    until("it stands still", SOON, stands).await?;
    let meanwhile = async {
        if others_take_over {
            load.more(AFTERWARDS).await?;
        }
        sleep(HELD).await;
        anyhow::Ok(())
    };
    let meanwhile = meanwhile.await;
    process.signal(Signal::SIGCONT)?;
    meanwhile
}

/// The clock of the node that leads is off by so much for a while, and jumps there and back.
async fn clock_jumps(cluster: &Cluster, load: &Load, by_ms: i64) -> anyhow::Result<()> {
    let leader = cluster.leader().await?;
    let held_ms = HELD.as_millis();
    let order = json!({ "fault": "clock-skew", "measure": by_ms, "limit_ms": held_ms });
    let door = &cluster.nodes[leader].drill;
    let told = http::post(door, "/v1/drill", &order).await?;
    ensure!(told.status == 200, "{:#}", told.json());
    load.more(AFTERWARDS).await?;
    until("the clock is right again", 2 * HELD + SOON, async || {
        let held = http::get(door, "/v1/drill").await.ok()?.json();
        held["held"].as_array()?.is_empty().then_some(())
    })
    .await
}

/// A follower comes back with an empty disk and is replaced, as an operator would.
async fn replaced(cluster: &mut Cluster, load: &Load) -> anyhow::Result<()> {
    let at = cluster.lose_a_disk().await?;
    load.more(AFTERWARDS).await?;
    cluster.operator().replace(at).await?;
    cluster.ready().await
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_processes_clocks_and_operators_may_do_their_worst() -> anyhow::Result<()> {
    let full = std::env::var_os("HOLDFAST_CHAOS").is_some_and(|value| value == "full");
    let days: &[Day] = if full { &ALL } else { &SLICE };
    let shape = Shape { proxied: true, ..Shape::default() };
    let mut cluster = Cluster::shaped(2, shape).await?;
    let load = Load::open(&cluster, "day").await?;
    let running = load.start(CLIENTS, false);
    for &day in days {
        load.more(AFTERWARDS).await.with_context(|| format!("before {day:?}"))?;
        let (before, began) = (load.answered(), Instant::now());
        befalls(&mut cluster, &load, day).await.with_context(|| format!("{day:?}"))?;
        let during = load.answered() - before;
        load.more(AFTERWARDS).await.with_context(|| format!("behind {day:?}"))?;
        money::check(&mut cluster.sources().await?).await?;
        println!("{day:<17?} {:>6} ms, {during} answered meanwhile", began.elapsed().as_millis());
    }
    running.stop().await?;
    load.judge(&cluster, days.len() * AFTERWARDS).await
}
