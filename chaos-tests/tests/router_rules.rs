//! Routers follow the shard rules in the coordinators' log: no session ends by it, no transaction mixes two layouts, and no router goes by rules
//! that nobody vouches for.

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{RULES, SOON, Sharded, texts, until};
use holdfast_client::wire::RevertRulesRequest;
use tokio_postgres::{Client, error::SqlState};

/// So short that the test sees a router refuse, and so long that a busy machine keeps it.
const AGE_MAX: &str = "rules_age_max_ms = 8000";

fn code(error: &tokio_postgres::Error) -> String {
    let message = error.as_db_error().map_or("", |db| db.message());
    message.split(' ').next().unwrap_or_default().to_owned()
}

async fn set(client: &Client, id: &str, to: i64) -> Result<u64, tokio_postgres::Error> {
    client.execute("UPDATE account SET balance = $2 WHERE id = $1", &[&id, &to]).await
}

async fn balance(client: &Client, id: &str) -> Result<i64, tokio_postgres::Error> {
    let sql = "SELECT balance FROM account WHERE id = $1";
    Ok(client.query_one(sql, &[&id]).await?.get(0))
}

/// The rules with the two shards changed over: every row has another place.
fn changed_over() -> String {
    RULES
        .replace("source = \"pg-1\"", "source = X")
        .replace("source = \"pg-2\"", "source = \"pg-1\"")
        .replace("source = X", "source = \"pg-2\"")
}

/// Waits until a router goes by this epoch.
async fn goes_by(place: &Sharded, at: usize, epoch: u64, from: &str) -> anyhow::Result<()> {
    let client = place.connect(at).await?;
    let what = format!("router {at} goes by epoch {epoch}");
    until(&what, SOON, async || {
        let shown = texts(&client, "SHOW HOLDFAST RULES").await.ok()?;
        (shown[0][0] == epoch.to_string() && shown[0][1] == from).then_some(())
    })
    .await?;
    let slots = texts(&client, "SHOW HOLDFAST SLOTS").await?;
    ensure!(slots.iter().all(|row| row[5] == epoch.to_string()), "{slots:?}");
    let route = texts(&client, "EXPLAIN (ROUTE) SELECT * FROM account WHERE id = 'a-1'").await?;
    ensure!(route.contains(&vec!["epoch".to_owned(), epoch.to_string()]), "{route:?}");
    Ok(())
}

/// Has the rows change over, as their rules do: what an operator does who moves them.
async fn move_rows(place: &Sharded) -> anyhow::Result<()> {
    let [one, two] = place.sources().await?;
    let take = async |from: &Client| {
        let rows = from.query("DELETE FROM account RETURNING id, balance", &[]).await?;
        let rows = rows.iter().map(|row| (row.get(0), row.get(1)));
        anyhow::Ok(rows.collect::<Vec<(String, i64)>>())
    };
    let (here, there) = (take(&one).await?, take(&two).await?);
    for (to, rows) in [(&one, there), (&two, here)] {
        for (id, balance) in rows {
            to.execute("INSERT INTO account (id, balance) VALUES ($1, $2)", &[&id, &balance])
                .await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn routers_follow_the_rules_in_the_log() -> anyhow::Result<()> {
    let mut place = Sharded::start_with(AGE_MAX).await?;
    for at in 0..2 {
        goes_by(&place, at, 0, "file").await?;
    }
    let [here, there] = place.open_accounts(16, 1_000).await?;
    let client = place.connect(0).await?;
    a_new_epoch_ends_no_session_and_no_transaction(&place, &client, &here, &there).await?;
    a_layout_that_changes_fails_what_is_open(&place, &client, &here, &there).await?;
    what_older_rules_have_placed_is_not_committed(&place).await?;
    rules_are_reverted_and_a_router_that_restarts_has_them(&mut place, &here).await?;
    rules_that_a_router_cannot_take_hold_it(&place).await?;
    a_router_that_nobody_vouches_for_refuses(&mut place, &here).await
}

async fn a_new_epoch_ends_no_session_and_no_transaction(
    place: &Sharded,
    client: &Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    client.batch_execute("BEGIN").await?;
    set(client, &here[0], 1).await?;
    set(client, &there[0], 1_999).await?;
    // The same places in other words: a transaction that is open goes on.
    ensure!(place.apply_rules(&format!("# the same\n{RULES}"), 0).await? == 1);
    for at in 0..2 {
        goes_by(place, at, 1, "log").await?;
    }
    set(client, &here[0], 2).await?;
    set(client, &there[0], 1_998).await?;
    client.batch_execute("COMMIT").await?;
    ensure!(balance(client, &here[0]).await? == 2 && balance(client, &there[0]).await? == 1_998);
    Ok(())
}

async fn a_layout_that_changes_fails_what_is_open(
    place: &Sharded,
    client: &Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    let others = [place.connect(0).await?, place.connect(0).await?, place.connect(0).await?];
    let [reader, writer, idle] = &others;
    client.batch_execute("BEGIN").await?;
    set(client, &here[1], 7).await?;
    writer.batch_execute("BEGIN").await?;
    set(writer, &here[2], 7).await?;
    reader.batch_execute("BEGIN").await?;
    balance(reader, &here[3]).await?;
    // Not begun anywhere yet, so it is for the rules to come.
    idle.batch_execute("BEGIN").await?;
    ensure!(place.apply_rules(&changed_over(), 1).await? == 2);
    for at in 0..2 {
        goes_by(place, at, 2, "log").await?;
    }
    let error = set(client, &there[1], 7).await.expect_err("its rows have other places");
    ensure!(code(&error) == "HF3223", "{error:?}");
    ensure!(error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{error:?}");
    client.batch_execute("ROLLBACK").await?;
    let error =
        writer.batch_execute("COMMIT").await.expect_err("what it wrote is in the wrong place");
    ensure!(code(&error) == "HF3223", "{error:?}");
    reader.batch_execute("COMMIT").await.context("it has written nothing")?;
    move_rows(place).await?;
    balance(idle, &here[3]).await.context("it had not begun")?;
    idle.batch_execute("COMMIT").await?;
    for id in [&here[1], &here[2], &there[1]] {
        ensure!(balance(client, id).await? == 1_000, "{id}");
        ensure!(balance(writer, id).await? == 1_000, "{id}: the session goes on");
    }
    Ok(())
}

/// The coordinator's side of it: whatever a router believes, newer rules win.
async fn what_older_rules_have_placed_is_not_committed(place: &Sharded) -> anyhow::Result<()> {
    use holdfast_client::{Outcome, Submission, Terms};
    let client = place.cluster.client().await?;
    let submit = |epoch| {
        let terms = Terms::saga().gid(format!("epoch-{epoch}")).timeout_ms(1_000);
        Submission::new(terms).branch("nobody@here", "{}").rules_epoch(epoch)
    };
    for old in [0, 1] {
        let refused = client.submit(submit(old)).await.expect_err("epoch 2 is in force");
        ensure!(refused.code() == Some("HF2410"), "{refused}");
        let unknown = client.get(&format!("epoch-{old}")).await.expect_err("nothing was done");
        ensure!(unknown.code() == Some("HF2001"), "{unknown}");
    }
    // Those in force, and newer ones, of which this node may not know yet.
    for new in [2, 3] {
        let answer = client.submit(submit(new)).await?;
        ensure!(answer.outcome != Outcome::Committed, "{answer:?}");
    }
    Ok(())
}

async fn rules_are_reverted_and_a_router_that_restarts_has_them(
    place: &mut Sharded,
    here: &[String],
) -> anyhow::Result<()> {
    let request = RevertRulesRequest {
        to_epoch: 1,
        expected_epoch: 2,
        reason: "a test".to_owned(),
        rows_are_moved: true,
        ..RevertRulesRequest::default()
    };
    ensure!(place.cluster.client().await?.revert_rules(request).await?.epoch == 3);
    for at in 0..2 {
        goes_by(place, at, 3, "log").await?;
    }
    move_rows(place).await?;
    place.routers[1].kill().await?;
    place.routers[1].start()?;
    place.ready(1).await?;
    goes_by(place, 1, 3, "log").await?;
    ensure!(balance(&place.connect(1).await?, &here[3]).await? == 1_000);
    Ok(())
}

async fn rules_that_a_router_cannot_take_hold_it(place: &Sharded) -> anyhow::Result<()> {
    let client = place.connect(0).await?;
    let third = "\n[source.pg-3]\naddress = \"127.0.0.1:5433\"\n";
    // A source that keeps nothing yet changes no place: the router goes on, and shows why it is behind.
    ensure!(
        place.apply_rules(&RULES.replace("[table.currency]\nreference = true\n", third), 3).await?
            == 4
    );
    until("epoch 4 is known and not taken", SOON, async || {
        (texts(&client, "SHOW HOLDFAST RULES").await.ok()?[0][3] == "4").then_some(())
    })
    .await?;
    balance(&client, "a-1").await?;
    let moved = RULES.replace("source = \"pg-2\"", "source = \"pg-3\"") + third;
    ensure!(place.apply_rules(&moved, 4).await? == 5);
    let held =
        until("epoch 5 holds the router", SOON, async || balance(&client, "a-1").await.err());
    ensure!(code(&held.await?) == "HF3224");
    let ready = place.readiness(0).await?;
    ensure!(ready.status == 503, "{ready:?}");
    ensure!(place.apply_rules(RULES, 5).await? == 6);
    for at in 0..2 {
        goes_by(place, at, 6, "log").await?;
    }
    balance(&client, "a-1").await?;
    Ok(())
}

async fn a_router_that_nobody_vouches_for_refuses(
    place: &mut Sharded,
    here: &[String],
) -> anyhow::Result<()> {
    let client = place.connect(0).await?;
    place.cluster.kill_nodes().await?;
    // The last word is good for a while.
    ensure!(balance(&client, &here[3]).await? == 1_000);
    let refused = until("nobody vouches for the rules", SOON, async || {
        balance(&client, &here[3]).await.err()
    });
    ensure!(code(&refused.await?) == "HF3222");
    texts(&client, "SHOW HOLDFAST RULES").await.context("it still says why")?;
    place.cluster.start_nodes().await?;
    until("somebody vouches for them again", SOON, async || {
        (balance(&client, &here[3]).await.ok()? == 1_000).then_some(())
    })
    .await?;
    goes_by(place, 0, 6, "log").await
}
