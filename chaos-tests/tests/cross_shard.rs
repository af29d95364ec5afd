//! Transactions that write to several sources through a router: all of it or nothing, by simple and extended protocol, with savepoints.

use anyhow::{bail, ensure};
use futures::StreamExt as _;
use holdfast_chaos_tests::{SOON, Sharded, until};
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

const BALANCE: i64 = 1_000;

fn code(error: &tokio_postgres::Error) -> String {
    let message = error.as_db_error().map_or("", |db| db.message());
    message.split(' ').next().unwrap_or_default().to_owned()
}

async fn balance(client: &Client, id: &str) -> anyhow::Result<i64> {
    let sql = "SELECT balance FROM account WHERE id = $1";
    Ok(client.query_one(sql, &[&id]).await?.get(0))
}

async fn set(client: &Client, id: &str, to: i64) -> Result<u64, tokio_postgres::Error> {
    client.execute("UPDATE account SET balance = $2 WHERE id = $1", &[&id, &to]).await
}

async fn nothing_prepared(place: &Sharded) -> anyhow::Result<()> {
    until("nothing is prepared", SOON, async || (place.prepared().await.ok()? == 0).then_some(()))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn several_sources_are_written_to_as_one() -> anyhow::Result<()> {
    let place = Sharded::start().await?;
    let [here, there] = place.open_accounts(24, BALANCE).await?;
    ensure!(here.len() > 3 && there.len() > 3, "{} and {}", here.len(), there.len());
    let mut client = place.connect(0).await?;
    a_transaction_commits_everywhere_and_its_session_sees_it(&place, &client, &here, &there)
        .await?;
    a_rollback_leaves_nothing_anywhere(&client, &here, &there).await?;
    an_error_on_one_source_fails_the_whole(&client, &here, &there).await?;
    savepoints_are_kept_on_every_source(&mut client, &here, &there).await?;
    settings_go_along_and_stay(&client, &here, &there).await?;
    statements_over_several_sources_are_one(&client, &here, &there).await?;
    statements_of_one_query_are_carried_out_in_turn(&client, &here, &there).await?;
    a_pipeline_goes_from_source_to_source(&mut client, &here, &there).await?;
    what_is_read_alone_is_not_prepared(&place, &client, &here, &there).await?;
    a_prepare_that_fails_rolls_everything_back(&place, &client, &here, &there).await?;
    nothing_prepared(&place).await
}

async fn a_transaction_commits_everywhere_and_its_session_sees_it(
    place: &Sharded,
    client: &Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    for round in 0..20 {
        client.batch_execute("BEGIN").await?;
        set(client, &here[0], round).await?;
        set(client, &there[0], 2 * BALANCE - round).await?;
        set(client, &here[1], round).await?;
        client.batch_execute("COMMIT").await?;
        ensure!(balance(client, &there[0]).await? == 2 * BALANCE - round);
        ensure!(balance(client, &here[0]).await? == round);
    }
    // Whoever hears of it finds it done, if the session asks for that.
    let other = place.connect(1).await?;
    client.batch_execute("SET holdfast.read_own_writes = on").await?;
    for round in 0..20 {
        client.batch_execute("BEGIN").await?;
        set(client, &here[0], round).await?;
        set(client, &there[0], round).await?;
        client.batch_execute("COMMIT").await?;
        let seen = (balance(&other, &here[0]).await?, balance(&other, &there[0]).await?);
        ensure!(seen == (round, round), "{seen:?} in round {round}");
    }
    let wrong = client.batch_execute("SET holdfast.read_own_writes = perhaps").await;
    ensure!(code(&wrong.expect_err("no such value")) == "HF3217");
    client.batch_execute("RESET holdfast.read_own_writes").await?;
    Ok(())
}

async fn a_rollback_leaves_nothing_anywhere(
    client: &Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    client.batch_execute("BEGIN").await?;
    set(client, &here[2], 1).await?;
    set(client, &there[2], 1).await?;
    client.batch_execute("ROLLBACK").await?;
    ensure!(balance(client, &here[2]).await? == BALANCE);
    ensure!(balance(client, &there[2]).await? == BALANCE);
    Ok(())
}

async fn an_error_on_one_source_fails_the_whole(
    client: &Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    client.batch_execute("BEGIN").await?;
    set(client, &here[2], 1).await?;
    let error = set(client, &there[2], -1).await.expect_err("a check fails");
    ensure!(error.code() == Some(&SqlState::CHECK_VIOLATION), "{error}");
    for id in [&here[2], &there[2]] {
        let error = set(client, id, 2).await.expect_err("it has failed");
        ensure!(error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION), "{error}");
    }
    // As one PostgreSQL: COMMIT of what has failed is a rollback, and no error.
    client.batch_execute("COMMIT").await?;
    ensure!(balance(client, &here[2]).await? == BALANCE);
    Ok(())
}

async fn savepoints_are_kept_on_every_source(
    client: &mut Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    let mut transaction = client.transaction().await?;
    let sql = "UPDATE account SET balance = $2 WHERE id = $1";
    transaction.execute(sql, &[&here[2], &11_i64]).await?;
    let savepoint = transaction.savepoint("s").await?;
    // The second source joins behind the savepoint, and goes back to it.
    savepoint.execute(sql, &[&there[2], &12_i64]).await?;
    savepoint.execute(sql, &[&here[2], &13_i64]).await?;
    savepoint.rollback().await?;
    let savepoint = transaction.savepoint("t").await?;
    savepoint.execute(sql, &[&there[3], &14_i64]).await?;
    let error = savepoint.execute(sql, &[&here[3], &-1_i64]).await.expect_err("a check fails");
    ensure!(error.code() == Some(&SqlState::CHECK_VIOLATION), "{error}");
    savepoint.rollback().await?;
    transaction.execute(sql, &[&there[2], &15_i64]).await?;
    let savepoint = transaction.savepoint("u").await?;
    savepoint.execute(sql, &[&here[3], &16_i64]).await?;
    savepoint.commit().await?;
    transaction.commit().await?;
    ensure!(balance(client, &here[2]).await? == 11);
    ensure!(balance(client, &there[2]).await? == 15);
    ensure!(balance(client, &there[3]).await? == BALANCE);
    ensure!(balance(client, &here[3]).await? == 16);
    client.batch_execute("BEGIN").await?;
    set(client, &here[3], 17).await?;
    set(client, &there[3], 17).await?;
    let error = client.batch_execute("ROLLBACK TO nowhere").await.expect_err("no such savepoint");
    ensure!(error.code() == Some(&SqlState::S_E_INVALID_SPECIFICATION), "{error}");
    let error = set(client, &here[3], 18).await.expect_err("it has failed");
    ensure!(error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION), "{error}");
    client.batch_execute("ROLLBACK").await?;
    ensure!(balance(client, &here[3]).await? == 16);
    Ok(())
}

async fn settings_go_along_and_stay(
    client: &Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    let shown = async |id: &str| {
        let sql =
            format!("SELECT current_setting('statement_timeout') FROM account WHERE id = '{id}'");
        let rows = client.simple_query(&sql).await?;
        let text = rows.iter().find_map(|row| match row {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        anyhow::Ok(text.unwrap_or_default())
    };
    client.batch_execute("BEGIN").await?;
    set(client, &here[2], 21).await?;
    client.batch_execute("SET statement_timeout = '41s'").await?;
    set(client, &there[2], 21).await?;
    ensure!(shown(&there[2]).await? == "41s" && shown(&here[2]).await? == "41s");
    client.batch_execute("SET statement_timeout = '42s'; ").await?;
    ensure!(shown(&there[2]).await? == "42s" && shown(&here[2]).await? == "42s");
    client.batch_execute("COMMIT").await?;
    ensure!(shown(&there[2]).await? == "42s" && shown(&here[2]).await? == "42s");
    client.batch_execute("BEGIN").await?;
    set(client, &here[2], 22).await?;
    set(client, &there[2], 22).await?;
    client.batch_execute("SET statement_timeout = '43s'").await?;
    client.batch_execute("ROLLBACK").await?;
    ensure!(shown(&there[2]).await? == "42s" && shown(&here[2]).await? == "42s");
    client.batch_execute("RESET statement_timeout").await?;
    Ok(())
}

async fn statements_over_several_sources_are_one(
    client: &Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    let ids = vec![here[2].clone(), there[2].clone()];
    let sql = "UPDATE account SET balance = balance + 5 WHERE id = ANY($1) RETURNING id";
    let rows = client.query(sql, &[&ids]).await?;
    ensure!(rows.len() == 2, "{} rows", rows.len());
    ensure!(balance(client, &here[2]).await? == 26 && balance(client, &there[2]).await? == 26);
    let sql = format!("UPDATE account SET balance = 27 WHERE id IN ('{}', '{}')", ids[0], ids[1]);
    ensure!(client.execute(&sql, &[]).await? == 2);
    // One of them fails, so none is written.
    let sql = format!(
        "UPDATE account SET balance = balance - CASE id WHEN '{}' THEN 100 ELSE 0 END WHERE id IN ('{}', '{}')",
        ids[1], ids[0], ids[1]
    );
    let error = client.execute(&sql, &[]).await.expect_err("a check fails");
    ensure!(error.code() == Some(&SqlState::CHECK_VIOLATION), "{error}");
    ensure!(balance(client, &here[2]).await? == 27 && balance(client, &there[2]).await? == 27);
    // Rows that are divided come back in their order.
    let rows: Vec<String> = (0..12).map(|n| format!("('n-{n}', {n})")).collect();
    let sql = format!("INSERT INTO account (id, balance) VALUES {} RETURNING id", rows.join(", "));
    let names: Vec<String> = client.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect();
    let wanted: Vec<String> = (0..12).map(|n| format!("n-{n}")).collect();
    ensure!(names == wanted, "{names:?}");
    let simple = client.simple_query(&sql.replace("n-", "m-")).await?;
    ensure!(matches!(simple.last(), Some(SimpleQueryMessage::CommandComplete(12))), "{simple:?}");
    // Within a transaction they belong to it.
    client.batch_execute("BEGIN").await?;
    ensure!(client.execute("DELETE FROM account WHERE id = ANY($1)", &[&wanted]).await? == 12);
    let count = "SELECT count(*) FROM account";
    ensure!(client.query_one(count, &[]).await?.get::<_, i64>(0) == 36);
    client.batch_execute("ROLLBACK").await?;
    ensure!(client.query_one(count, &[]).await?.get::<_, i64>(0) == 48);
    // A table of which every source has a copy.
    let sql = "INSERT INTO currency (code, name) VALUES ('EUR', 'Euro') RETURNING code";
    ensure!(client.query(sql, &[]).await?.len() == 1);
    ensure!(client.query("SELECT * FROM currency", &[]).await?.len() == 1);
    Ok(())
}

async fn statements_of_one_query_are_carried_out_in_turn(
    client: &Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    let (here, there) = (&here[4], &there[4]);
    let set = |id: &String, to: i64| format!("UPDATE account SET balance = {to} WHERE id = '{id}'");
    let both = async || anyhow::Ok((balance(client, here).await?, balance(client, there).await?));
    let state = async |sql: String| {
        let error = client.batch_execute(&sql).await.expect_err("it is refused");
        error.code().cloned()
    };
    // In a transaction of their own, or in one that stands among them.
    client.batch_execute(&format!("{}; {};", set(here, 21), set(there, 22))).await?;
    ensure!(both().await? == (21, 22));
    let sql = format!(
        "BEGIN; {}; SELECT balance FROM account WHERE id = '{there}'; {}; COMMIT",
        set(here, 23),
        set(there, 24)
    );
    let told = client.simple_query(&sql).await?;
    let tags = told.iter().filter(|told| matches!(told, SimpleQueryMessage::CommandComplete(_)));
    ensure!(tags.count() == 5, "{told:?}");
    ensure!(both().await? == (23, 24));
    // An error drops the rest, and takes back what came before it within the same transaction.
    let sql = format!("{}; {}; {}", set(here, 31), set(there, -1), set(here, 32));
    ensure!(state(sql).await == Some(SqlState::CHECK_VIOLATION));
    ensure!(both().await? == (23, 24));
    let sql = format!("{}; COMMIT; {}; {}", set(here, 41), set(there, 42), set(there, -1));
    ensure!(state(sql).await == Some(SqlState::CHECK_VIOLATION));
    ensure!(both().await? == (41, 24));
    let sql = format!("BEGIN; {}; {}; COMMIT", set(here, 51), set(there, -1));
    ensure!(state(sql).await == Some(SqlState::CHECK_VIOLATION));
    let sql = format!("SELECT balance FROM account WHERE id = '{here}'");
    ensure!(state(sql).await == Some(SqlState::IN_FAILED_SQL_TRANSACTION), "it is open");
    client.batch_execute("ROLLBACK").await?;
    // What is left open goes on, to any source.
    client
        .batch_execute(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {}", set(here, 61)))
        .await?;
    let level = client.query_one("SELECT current_setting('transaction_isolation')", &[]).await?;
    ensure!(level.get::<_, &str>(0) == "repeatable read");
    client.batch_execute(&format!("{}; {}", set(there, 62), set(here, 63))).await?;
    ensure!(both().await? == (63, 62));
    client.batch_execute("ROLLBACK").await?;
    ensure!(both().await? == (41, 24));
    // A setting among them is the session's; a BEGIN behind others takes them in.
    let sql = format!("SET TimeZone = 'Asia/Tokyo'; {}; BEGIN; {}", set(here, 71), set(there, 72));
    client.batch_execute(&sql).await?;
    client.batch_execute("ROLLBACK").await?;
    ensure!(both().await? == (41, 24));
    let sql = format!("SET TimeZone = 'Asia/Tokyo'; {}; {}", set(here, 71), set(there, 72));
    client.batch_execute(&sql).await?;
    let zone = client.query_one("SELECT current_setting('TimeZone')", &[]).await?;
    ensure!(zone.get::<_, &str>(0) == "Asia/Tokyo" && both().await? == (71, 72));
    client.batch_execute("RESET TimeZone").await?;
    // What the router answers itself is the end of a query as well: a refusal drops what follows, and a COMMIT may need no server.
    let sql = format!("BEGIN; LISTEN a; {}; COMMIT", set(there, 82));
    ensure!(state(sql).await == Some(SqlState::FEATURE_NOT_SUPPORTED));
    client.batch_execute("ROLLBACK").await?;
    client.batch_execute("BEGIN; COMMIT; BEGIN; ROLLBACK; BEGIN").await?;
    client.batch_execute("ROLLBACK").await?;
    // As PostgreSQL has it, and what only the router cannot do.
    let sql = format!("{}; SAVEPOINT s; {}", set(here, 81), set(there, 82));
    ensure!(state(sql).await == Some(SqlState::NO_ACTIVE_SQL_TRANSACTION));
    let sql = format!("{}; COPY account FROM STDIN; {}", set(here, 81), set(there, 82));
    ensure!(state(sql).await == Some(SqlState::FEATURE_NOT_SUPPORTED));
    ensure!(both().await? == (71, 72));
    Ok(())
}

async fn a_pipeline_goes_from_source_to_source(
    client: &mut Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    let statement = client.prepare("UPDATE account SET balance = $2 WHERE id = $1").await?;
    let transaction = client.transaction().await?;
    let changes = here[4..].iter().zip(&there[4..]).flat_map(|(one, two)| [one, two]);
    let changes: Vec<String> = changes.cloned().collect();
    let changed =
        changes.iter().map(async |id| transaction.execute(&statement, &[id, &31_i64]).await);
    for count in futures::future::join_all(changed).await {
        ensure!(count? == 1);
    }
    transaction.commit().await?;
    for id in &changes {
        ensure!(balance(client, id).await? == 31, "{id}");
    }
    Ok(())
}

async fn what_is_read_alone_is_not_prepared(
    place: &Sharded,
    client: &Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    let begun = async || {
        let leader = place.cluster.leader().await?;
        let status = place.cluster.status(leader).await;
        anyhow::Ok(status.map(|status| status.applied_index).unwrap_or_default())
    };
    until("the log is quiet", SOON, async || {
        let before = begun().await.ok()?;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        (begun().await.ok()? == before).then_some(())
    })
    .await?;
    let before = begun().await?;
    client.batch_execute("BEGIN").await?;
    let read = balance(client, &here[0]).await?;
    set(client, &there[0], read + 1).await?;
    client.batch_execute("COMMIT").await?;
    ensure!(balance(client, &there[0]).await? == read + 1);
    client.batch_execute("BEGIN").await?;
    let both = balance(client, &here[0]).await? + balance(client, &there[0]).await?;
    client.batch_execute("COMMIT").await?;
    ensure!(both == 2 * read + 1);
    ensure!(begun().await? == before, "the coordinator was asked about one writer");
    Ok(())
}

async fn a_prepare_that_fails_rolls_everything_back(
    place: &Sharded,
    client: &Client,
    here: &[String],
    there: &[String],
) -> anyhow::Result<()> {
    for source in place.sources().await? {
        let deferred = "CREATE TABLE IF NOT EXISTS pledge (id text REFERENCES account DEFERRABLE INITIALLY DEFERRED);
             CREATE OR REPLACE FUNCTION pledge() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN INSERT INTO pledge VALUES ('nobody'); RETURN NEW; END $$;
             CREATE TRIGGER pledge AFTER UPDATE ON account FOR EACH ROW WHEN (NEW.balance = 4711) EXECUTE FUNCTION pledge()";
        source.batch_execute(deferred).await?;
    }
    let before = balance(client, &here[5]).await?;
    client.batch_execute("BEGIN").await?;
    set(client, &here[5], before + 1).await?;
    set(client, &there[5], 4711).await?;
    let error = client.batch_execute("COMMIT").await.expect_err("a deferred constraint fails");
    ensure!(error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION), "{error}");
    ensure!(balance(client, &here[5]).await? == before);
    ensure!(balance(client, &there[5]).await? != 4711);
    // The transaction of one query meets it behind its last statement, which is then never told to be complete.
    let set = |id: &String, to: i64| format!("UPDATE account SET balance = {to} WHERE id = '{id}'");
    let sql = format!("{}; {}", set(&here[5], before + 1), set(&there[5], 4711));
    let told: Vec<_> = client.simple_query_raw(&sql).await?.collect().await;
    let [Ok(SimpleQueryMessage::CommandComplete(1)), Err(error)] = &told[..] else {
        bail!("{told:?}")
    };
    ensure!(error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION), "{error}");
    ensure!(balance(client, &here[5]).await? == before);
    Ok(())
}
