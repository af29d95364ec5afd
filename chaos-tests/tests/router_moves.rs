//! Slots move under the eyes of real coordinators: routers tell by how old rules they have work open, end what the mover leaves prepared, and lose
//! no row meanwhile. The mover is played here, and never ends what it has prepared.

use anyhow::{Context as _, ensure};
use futures::SinkExt as _;
use holdfast_chaos_tests::{RULES, SOON, Sharded, until};
use holdfast_client::wire::RouterLease;
use nix::sys::signal::Signal;
use tokio_postgres::{Client, SimpleQueryMessage};

/// The rules where the rows of both shards are on the sources with these numbers, and this is under way.
fn rules(first: &str, second: &str, moving: &str) -> String {
    RULES
        .replace("source = \"pg-1\"\n\n[shard", &format!("source = \"{first}\"\n\n[shard"))
        .replace("source = \"pg-2\"\n\n[source", &format!("source = \"{second}\"\n\n[source"))
        + moving
}

/// The slots of the first shard go between sources.
fn step(id: &str, from: &str, to: &str, state: &str) -> String {
    format!(
        "[moving]\nid = \"{id}\"\ngroup = \"account\"\nslots = [{{ first = 0, last = 511 }}]\nfrom = \"{from}\"\n\
         to = \"{to}\"\nstate = {state}\n"
    )
}

async fn apply(place: &Sharded, text: &str, expected_epoch: u64) -> anyhow::Result<()> {
    let epoch = place.apply_rules(text, expected_epoch).await?;
    ensure!(epoch == expected_epoch + 1, "epoch {epoch}");
    Ok(())
}

/// Waits until the leader knows so many routers and all of them are as wanted.
async fn attended(
    place: &Sharded,
    what: &str,
    count: usize,
    wanted: impl Fn(&RouterLease) -> bool,
) -> anyhow::Result<()> {
    let client = place.cluster.client().await?;
    until(what, SOON, async || {
        let routers = client.routers().await.ok()?.routers;
        (routers.len() == count && routers.iter().all(&wanted)).then_some(())
    })
    .await
}

/// What a router says of its rules, in a column.
async fn shown(client: &Client, column: &str) -> anyhow::Result<String> {
    for said in client.simple_query("SHOW HOLDFAST RULES").await? {
        if let SimpleQueryMessage::Row(row) = said {
            return Ok(row.get(column).unwrap_or_default().to_owned());
        }
    }
    anyhow::bail!("no row")
}

async fn set(client: &Client, id: &str, to: i64) -> Result<u64, tokio_postgres::Error> {
    client.execute("UPDATE account SET balance = $2 WHERE id = $1", &[&id, &to]).await
}

/// What the mover does while the slots are frozen: all rows of these accounts go over, and both halves are prepared.
async fn prepare(from: &Client, to: &Client, id: &str, accounts: &[String]) -> anyhow::Result<()> {
    from.batch_execute("BEGIN").await?;
    let sql = "DELETE FROM account WHERE id = ANY($1) RETURNING id, balance";
    let rows = from.query(sql, &[&accounts]).await?;
    ensure!(rows.len() == accounts.len(), "{} rows", rows.len());
    to.batch_execute("BEGIN").await?;
    for row in rows {
        let (id, balance): (String, i64) = (row.get(0), row.get(1));
        to.execute("INSERT INTO account VALUES ($1, $2)", &[&id, &balance]).await?;
    }
    from.batch_execute(&format!("PREPARE TRANSACTION 'holdfast-move:{id}:from'")).await?;
    to.batch_execute(&format!("PREPARE TRANSACTION 'holdfast-move:{id}:to'")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn routers_attend_wait_and_settle_a_move_whose_mover_is_gone() -> anyhow::Result<()> {
    let mut place = Sharded::start_with("frozen_wait_ms = 60000").await?;
    apply(&place, RULES, 0).await?;
    let [here, there] = place.open_accounts(16, 1_000).await?;
    attended(&place, "both routers attend", 2, |it| it.epoch == 1 && it.oldest_epoch == 1).await?;
    a_step_is_decided(&place, &here, &there).await?;
    a_step_is_thawed(&place, &here).await?;
    ensure!(place.total().await? == 16_000 + 4 * 500, "{}", place.total().await?);
    // Who stops says so: nobody waits for the end of its lease.
    place.routers[1].stop(Signal::SIGTERM, SOON).await?;
    attended(&place, "the router has left", 1, |_| true).await
}

async fn a_step_is_decided(
    place: &Sharded,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    let [one, two] = place.sources().await?;
    let (old, young) = (place.connect(0).await?, place.connect(1).await?);
    old.batch_execute("BEGIN").await?;
    set(&old, &here[0], 1_000).await?;
    let frozen = step("m-1", "pg-1", "pg-2", "\"frozen\"\nhold_ms = 60000");
    apply(place, &rules("pg-1", "pg-2", &frozen), 1).await?;
    attended(place, "one has older work", 2, |it| it.epoch == 2).await?;
    let oldest = async || {
        let routers = place.cluster.client().await?.routers().await?.routers;
        let mut oldest: Vec<u64> = routers.iter().map(|router| router.oldest_epoch).collect();
        oldest.sort_unstable();
        anyhow::Ok(oldest)
    };
    ensure!(oldest().await? == [1, 2], "{:?}", oldest().await?);
    // Work that began before writes to both sources, while the slots are frozen, and commits.
    set(&old, &here[0], 1_500).await?;
    set(&old, &there[0], 1_500).await?;
    old.batch_execute("COMMIT").await.context("it is older than the freeze")?;
    attended(place, "no older work is left", 2, |it| it.oldest_epoch == 2).await?;

    young.batch_execute("BEGIN").await?;
    set(&young, &there[1], 1_000).await?;
    let counting = place.connect(0).await?;
    let copying = place.connect(0).await?;
    let mover = async {
        until("two wait at the first router", SOON, async || {
            (shown(&old, "waiting").await.ok()? == "2").then_some(())
        })
        .await?;
        prepare(&one, &two, "m-1", here).await?;
        // A look at each source leaves it alone: nothing is decided.
        ensure!(place.prepared().await? == 2);
        let settling = step("m-1", "pg-1", "pg-2", "\"settling\"");
        apply(place, &rules("pg-2", "pg-2", &settling), 2).await
    };
    let count = async {
        let sql = "SELECT count(*) FROM account WHERE balance >= 1000";
        anyhow::Ok(counting.query_one(sql, &[]).await?.get::<_, i64>(0))
    };
    let copy = async {
        let sink = copying.copy_in("COPY account (id, balance) FROM STDIN").await?;
        let mut sink = std::pin::pin!(sink);
        sink.send(bytes::Bytes::from_static(b"new-1\t500\n")).await?;
        anyhow::Ok(sink.finish().await?)
    };
    let within = set(&young, &here[1], 1_000);
    let (mover, count, copied, within) = tokio::join!(mover, count, copy, within);
    mover?;
    ensure!(count? == 16 && copied? == 1 && within? == 1, "no row is seen twice or missed");
    young.batch_execute("COMMIT").await.context("what was planned while they were frozen")?;
    ensure!(place.prepared().await? == 0, "both routers have seen it settled");
    let left = one.query_one("SELECT count(*) FROM account", &[]).await?;
    ensure!(left.get::<_, i64>(0) == 0, "all rows are on pg-2");
    apply(place, &rules("pg-2", "pg-2", ""), 3).await?;
    attended(place, "the move is over", 2, |it| it.epoch == 4 && it.oldest_epoch == 4).await
}

/// The mover prepares its halves and dies before it decides: the leader thaws the slots, and routers roll back what is prepared.
async fn a_step_is_thawed(place: &Sharded, here: &[String]) -> anyhow::Result<()> {
    let [one, two] = place.sources().await?;
    let client = place.connect(0).await?;
    let frozen = step("m-2", "pg-2", "pg-1", "\"frozen\"\nhold_ms = 1000");
    apply(place, &rules("pg-2", "pg-2", &frozen), 4).await?;
    prepare(&two, &one, "m-2", here).await?;
    attended(place, "it is thawed", 2, |it| it.epoch == 6).await?;
    // PostgreSQL has it wait for the half that is prepared.
    set(&client, &here[2], 1_500).await?;
    until("nothing is prepared", SOON, async || (place.prepared().await.ok()? == 0).then_some(()))
        .await?;
    let moved = one.query_one("SELECT count(*) FROM account", &[]).await?;
    ensure!(moved.get::<_, i64>(0) == 0, "nothing has moved");
    Ok(())
}
