//! One source behind a router that shares its connections: what a client sees is one PostgreSQL.

mod fixture;

use std::time::Duration;

use fixture::{PATIENCE, Running, Server, one_source};
use futures::{SinkExt as _, StreamExt as _, TryStreamExt as _, future::join_all};
use tokio_postgres::{SimpleQueryMessage, error::SqlState};

struct Place {
    server: std::sync::Arc<Server>,
    router: Running,
    database: String,
}

async fn place() -> Place {
    let server = Server::shared().await;
    let router = Running::start(one_source(server.source("only"))).await;
    let database = server.database().await;
    Place { server, router, database }
}

fn first(rows: &[SimpleQueryMessage]) -> String {
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    });
    row.expect("there is a row")
}

/// PostgreSQL gives a timestamp in a text its value when it parses the statement; a statement that another session, or the same one
/// before a change, has prepared on the shared server was read under other settings.
#[tokio::test(flavor = "multi_thread")]
async fn a_shared_prepared_statement_is_read_under_the_settings_of_the_session_that_uses_it() {
    let place = place().await;
    let (one, other) =
        (place.router.connect(&place.database).await, place.router.connect(&place.database).await);
    let sql = "SELECT extract(hour FROM timestamptz '2026-01-17 10:00' AT TIME ZONE 'UTC')::int";
    let hour = async |client: &tokio_postgres::Client| {
        client.query_one(sql, &[]).await.expect("right").get::<_, i32>(0)
    };
    one.batch_execute("SET TimeZone = 'UTC'").await.expect("right");
    other.batch_execute("SET TimeZone = 'Asia/Tokyo'").await.expect("right");
    for _ in 0..3 {
        assert_eq!((hour(&one).await, hour(&other).await), (10, 1));
    }
    one.batch_execute("BEGIN").await.expect("right");
    one.batch_execute("SET LOCAL TimeZone = 'Asia/Tokyo'").await.expect("right");
    assert_eq!(hour(&one).await, 1);
    one.batch_execute("SAVEPOINT s").await.expect("right");
    one.batch_execute("SET TimeZone = 'America/New_York'").await.expect("right");
    assert_eq!(hour(&one).await, 15);
    one.batch_execute("ROLLBACK TO s").await.expect("right");
    assert_eq!(hour(&one).await, 1);
    one.batch_execute("COMMIT").await.expect("right");
    assert_eq!((hour(&one).await, hour(&other).await), (10, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_is_rolled_back_leaves_the_settings_to_their_session() {
    let place = place().await;
    let (one, other) =
        (place.router.connect(&place.database).await, place.router.connect(&place.database).await);
    let zone = async |client: &tokio_postgres::Client| {
        first(&client.simple_query("SHOW TimeZone").await.expect("right"))
    };
    let usual = zone(&other).await;
    one.batch_execute("SET TimeZone = 'Asia/Tokyo'").await.expect("right");
    one.batch_execute("BEGIN").await.expect("right");
    one.simple_query("SELECT 1").await.expect("right");
    one.batch_execute("RESET ALL").await.expect("right");
    assert_eq!(zone(&one).await, usual);
    one.batch_execute("ROLLBACK").await.expect("right");
    assert_eq!((zone(&other).await, zone(&one).await), (usual.clone(), "Asia/Tokyo".to_owned()));
    one.batch_execute("BEGIN").await.expect("right");
    one.simple_query("SELECT 1").await.expect("right");
    one.batch_execute("RESET ALL").await.expect("right");
    one.batch_execute("COMMIT").await.expect("right");
    assert_eq!((zone(&other).await, zone(&one).await), (usual.clone(), usual.clone()));
    // What a session began with is what it goes back to.
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(place.router.port).user("postgres").dbname(&place.database);
    config.options("-c TimeZone=Asia/Tokyo");
    let (began, connection) = config.connect(tokio_postgres::NoTls).await.expect("let in");
    tokio::spawn(connection);
    for back in ["RESET TimeZone", "SET TimeZone TO DEFAULT;"] {
        began.batch_execute("SET TimeZone = 'Europe/Paris'").await.expect("right");
        assert_eq!(zone(&began).await, "Europe/Paris");
        began.batch_execute(back).await.expect("right");
        assert_eq!(zone(&began).await, "Asia/Tokyo", "{back}");
    }
    began.batch_execute("SET TimeZone = 'Europe/Paris'").await.expect("right");
    began.batch_execute("BEGIN").await.expect("right");
    began.simple_query("SELECT 1").await.expect("right");
    began.batch_execute("RESET ALL").await.expect("right");
    assert_eq!(zone(&began).await, "Asia/Tokyo");
    began.batch_execute("COMMIT").await.expect("right");
    assert_eq!((zone(&began).await, zone(&other).await), ("Asia/Tokyo".to_owned(), usual));
}

#[tokio::test(flavor = "multi_thread")]
async fn simple_and_extended_queries_and_transactions() {
    let place = place().await;
    let mut client = place.router.connect(&place.database).await;
    assert_eq!(first(&client.simple_query("SELECT 1 + 1").await.expect("it is right")), "2");
    client.batch_execute("CREATE TABLE t (a int primary key, b text)").await.expect("it is new");
    let n = client.execute("INSERT INTO t VALUES ($1, $2)", &[&1, &"one"]).await.expect("right");
    assert_eq!(n, 1);
    let transaction = client.transaction().await.expect("begin");
    transaction.execute("INSERT INTO t VALUES (2, 'two')", &[]).await.expect("right");
    transaction.rollback().await.expect("rollback");
    let transaction = client.transaction().await.expect("begin");
    let error = transaction.execute("INSERT INTO t VALUES (1, 'again')", &[]).await;
    assert_eq!(error.expect_err("it exists").code(), Some(&SqlState::UNIQUE_VIOLATION));
    let error = transaction.query("SELECT 1", &[]).await.expect_err("it has failed");
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    transaction.rollback().await.expect("rollback");
    let mut transaction = client.transaction().await.expect("begin");
    transaction.execute("INSERT INTO t VALUES (3, 'three')", &[]).await.expect("right");
    let savepoint = transaction.savepoint("s").await.expect("savepoint");
    savepoint.execute("INSERT INTO t VALUES (3, 'again')", &[]).await.expect_err("it exists");
    savepoint.rollback().await.expect("rollback to");
    transaction.execute("INSERT INTO t VALUES (4, 'four')", &[]).await.expect("right");
    transaction.commit().await.expect("commit");
    let rows = client.query("SELECT a, b FROM t ORDER BY a", &[]).await.expect("right");
    let rows: Vec<(i32, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let wanted = [(1, "one"), (3, "three"), (4, "four")].map(|(a, b)| (a, b.to_owned()));
    assert_eq!(rows, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_begin_that_its_server_refuses_runs_nowhere() {
    let Place { router, database, .. } = &place().await;
    let client = router.connect(database).await;
    client.batch_execute("CREATE TABLE t (id int)").await.expect("right");
    let insert = client.prepare("INSERT INTO t VALUES (1)").await.expect("right");
    for extended in [false, true] {
        client.batch_execute("BEGIN ISOLATION LEVEL none").await.expect("it waits for a server");
        let told = match extended {
            true => client.execute(&insert, &[]).await.map(drop),
            false => client.batch_execute("INSERT INTO t VALUES (1)").await,
        };
        let error = told.expect_err("it has not begun");
        assert!(error.as_db_error().is_some_and(|e| e.message().contains("its BEGIN")), "{error}");
        assert!(client.batch_execute("SELECT 1").await.is_err(), "only the end is left");
        client.batch_execute("ROLLBACK").await.expect("it ends");
    }
    let count: i64 = client.query_one("SELECT count(*) FROM t", &[]).await.expect("right").get(0);
    assert_eq!(count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_share_few_connections_and_statements_by_name() {
    let place = place().await;
    let clients = join_all((0..40).map(|_| place.router.connect(&place.database))).await;
    let work = clients.iter().map(|client| async move {
        let statement = client.prepare("SELECT $1::int + 1").await.expect("right");
        for n in 0..30_i32 {
            let row = client.query_one(&statement, &[&n]).await.expect("right");
            assert_eq!(row.get::<_, i32>(0), n + 1);
        }
    });
    join_all(work).await;
    let admin = place.server.connect("postgres").await.expect("it runs");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
    let count: i64 = admin.query_one(sql, &[&place.database]).await.expect("right").get(0);
    assert!((1..=4).contains(&count), "{count} connections for 40 clients");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_is_answered_in_order_and_an_error_skips_its_own_batch_only() {
    let place = place().await;
    let client = place.router.connect(&place.database).await;
    let one = client.prepare("SELECT $1::int").await.expect("right");
    let fails = client.prepare("SELECT 1 / $1::int").await.expect("right");
    let (zero, results) = (0_i32, 500_i32);
    let numbers: Vec<i32> = (0..results).collect();
    let mut answers = Vec::new();
    for n in &numbers {
        let (client, one, fails, zero) = (&client, &one, &fails, &zero);
        answers.push(async move {
            match n % 50 {
                7 => client.query_one(fails, &[zero]).await.map(|row| row.get::<_, i32>(0)),
                _ => client.query_one(one, &[n]).await.map(|row| row.get::<_, i32>(0)),
            }
        });
    }
    for (n, answer) in join_all(answers).await.into_iter().enumerate() {
        match n % 50 {
            7 => {
                let error = answer.expect_err("a division by zero");
                assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO));
            }
            _ => assert_eq!(answer.expect("right"), i32::try_from(n).expect("small")),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_in_and_out_and_large_rows_stream() {
    let place = place().await;
    let client = place.router.connect(&place.database).await;
    client.batch_execute("CREATE TABLE c (a int, b text)").await.expect("it is new");
    let sink = client.copy_in::<_, bytes::Bytes>("COPY c FROM STDIN").await.expect("copy begins");
    let mut sink = std::pin::pin!(sink);
    for n in 0..2_000 {
        let line = format!("{n}\t{}\n", "x".repeat(1_000));
        sink.send(line.into()).await.expect("the server takes it");
    }
    assert_eq!(sink.as_mut().finish().await.expect("right"), 2_000);
    let out = client.copy_out("COPY c TO STDOUT").await.expect("copy begins");
    let bytes: usize =
        out.map_ok(|piece| piece.len()).try_fold(0, async |a, b| Ok(a + b)).await.expect("right");
    assert!(bytes > 2_000_000, "{bytes}");
    let bad = client.copy_in::<_, bytes::Bytes>("COPY c FROM STDIN").await.expect("copy begins");
    let mut bad = std::pin::pin!(bad);
    bad.send("no number\tx\n".into()).await.expect("it is on its way");
    bad.as_mut().finish().await.expect_err("that is no number");
    let row = client.query_one("SELECT repeat('y', 5000000)", &[]).await.expect("right");
    assert_eq!(row.get::<_, &str>(0).len(), 5_000_000);
    let value = "z".repeat(3_000_000);
    let row = client.query_one("SELECT length($1::text)", &[&value]).await.expect("right");
    assert_eq!(row.get::<_, i32>(0), 3_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_stay_with_their_client_and_a_rollback_counts() {
    let place = place().await;
    let setter = place.router.connect(&place.database).await;
    let other = place.router.connect(&place.database).await;
    let show = async |client: &tokio_postgres::Client| {
        first(&client.simple_query("SHOW work_mem").await.expect("right"))
    };
    let default = show(&other).await;
    setter.batch_execute("SET work_mem = '77MB'").await.expect("right");
    for _ in 0..5 {
        assert_eq!(show(&setter).await, "77MB");
        assert_eq!(show(&other).await, default);
    }
    setter.batch_execute("BEGIN").await.expect("right");
    setter.batch_execute("SET work_mem = '11MB'").await.expect("right");
    assert_eq!(show(&setter).await, "11MB");
    setter.batch_execute("ROLLBACK").await.expect("right");
    assert_eq!(show(&setter).await, "77MB");
    setter.batch_execute("BEGIN; SET LOCAL work_mem = '12MB'; COMMIT").await.expect("right");
    assert_eq!(show(&setter).await, "77MB");
    setter.batch_execute("SET my.own = 'it''s; mine'").await.expect("right");
    assert_eq!(show(&other).await, default);
    assert_eq!(first(&setter.simple_query("SHOW my.own").await.expect("right")), "it's; mine");
    let error = setter.batch_execute("SET work_mem = 'plenty'").await.expect_err("no size");
    assert_eq!(error.code(), Some(&SqlState::INVALID_PARAMETER_VALUE));
    setter.batch_execute("RESET ALL").await.expect("right");
    assert_eq!(show(&setter).await, default);
}

/// One more than can be carried from server to server: the session keeps the one that has them, until it discards them.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_changes_as_many_settings_as_can_be_carried_and_one_more_keeps_its_server() {
    let server = Server::shared().await;
    let mut config = one_source(server.source("only"));
    config.limits.pool_size = 1;
    config.limits.wait_timeout = Duration::from_millis(300);
    let router = Running::start(config).await;
    let database = server.database().await;
    let (setter, other) = (router.connect(&database).await, router.connect(&database).await);
    let set = async |count: usize| {
        // Each twice: it is one setting all the same.
        let sets: Vec<String> =
            (0..2 * count).map(|n| format!("SET my.s{} = 'x'", n % count)).collect();
        let sql = format!("BEGIN; {}; COMMIT", sets.join("; "));
        setter.batch_execute(&sql).await.expect("right");
        assert_eq!(first(&setter.simple_query("SHOW my.s0").await.expect("right")), "x");
    };
    // With client_encoding, which the driver sets as it logs in, they are 256.
    set(255).await;
    other.simple_query("SELECT 1").await.expect("the server is free");
    setter.batch_execute("DISCARD ALL").await.expect("right");
    set(256).await;
    let busy = other.simple_query("SELECT 1").await.expect_err("there is one server");
    assert!(busy.as_db_error().expect("a word").message().starts_with("HF3204"));
    setter.batch_execute("DISCARD ALL").await.expect("right");
    other.simple_query("SELECT 1").await.expect("the server is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_listens_keeps_its_server_and_a_temporary_table_goes_with_it() {
    let place = place().await;
    let client = place.router.connect(&place.database).await;
    client.batch_execute("CREATE TEMP TABLE mine (a int)").await.expect("right");
    for _ in 0..5 {
        client.execute("INSERT INTO mine VALUES (1)", &[]).await.expect("it is still there");
    }
    drop(client);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let other = place.router.connect(&place.database).await;
        let sql = "SELECT count(*) FROM pg_class WHERE relname = 'mine'";
        let left: i64 = other.query_one(sql, &[]).await.expect("right").get(0);
        if left == 0 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the table outlives its session");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_request_stops_its_own_statement_and_no_other() {
    let place = place().await;
    let client = place.router.connect(&place.database).await;
    let other = place.router.connect(&place.database).await;
    let token = client.cancel_token();
    let (slept, slept_on, ()) = tokio::join!(
        client.simple_query("SELECT pg_sleep(600)"),
        other.simple_query("SELECT pg_sleep(1)"),
        async {
            let admin = place.server.connect(&place.database).await.expect("it runs");
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while admin.query_one(sql, &[]).await.expect("right").get::<_, i64>(0) == 0 {
                assert!(tokio::time::Instant::now() < deadline, "it does not even begin");
            }
            token.cancel_query(tokio_postgres::NoTls).await.expect("it is taken");
        }
    );
    assert_eq!(slept.expect_err("it was canceled").code(), Some(&SqlState::QUERY_CANCELED));
    slept_on.expect("nobody canceled this one");
    client.simple_query("SELECT 1").await.expect("the session goes on");
}

/// Ends every server connection of the place's database, and waits until they are gone.
async fn end_servers(place: &Place) {
    let admin = place.server.connect("postgres").await.expect("it runs");
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1";
    let ended: i64 = admin.query_one(sql, &[&place.database]).await.expect("right").get(0);
    assert!(ended > 0);
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while admin.query_one(sql, &[&place.database]).await.expect("right").get::<_, i64>(0) > 0 {
        assert!(tokio::time::Instant::now() < deadline, "they do not go");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_behind_a_lost_server_is_an_error_and_never_a_silent_rollback() {
    let place = place().await;
    let client = place.router.connect(&place.database).await;
    client.batch_execute("CREATE TABLE lost (a int)").await.expect("it is new");
    for turn in 0..8 {
        client.batch_execute("BEGIN").await.expect("it begins");
        client.execute("INSERT INTO lost VALUES (1)", &[]).await.expect("right");
        end_servers(&place).await;
        // Nothing was under way when the server went, so this is the first word that the client hears of it.
        let told = match turn % 2 {
            0 => client.batch_execute("COMMIT").await,
            _ => client.execute("COMMIT", &[]).await.map(drop),
        };
        let error = told.expect_err("it was rolled back");
        assert_eq!(error.code(), Some(&SqlState::CONNECTION_FAILURE), "{error}");
        // By the extended protocol it was told at the Parse already, and COMMIT was not heard.
        client.batch_execute("ROLLBACK").await.expect("that ends it, or there is nothing to end");
        let rows = client.query("SELECT * FROM lost", &[]).await.expect("the next one works");
        assert!(rows.is_empty());
    }
    // Who rolls back itself has nothing to hear afterwards.
    client.batch_execute("BEGIN").await.expect("it begins");
    client.execute("INSERT INTO lost VALUES (1)", &[]).await.expect("right");
    end_servers(&place).await;
    // The router may hear of the loss only when it passes this on.
    if let Err(error) = client.batch_execute("ROLLBACK").await {
        assert_eq!(error.code(), Some(&SqlState::CONNECTION_FAILURE), "{error}");
        client.batch_execute("ROLLBACK").await.expect("that ends it");
    }
    client.batch_execute("BEGIN").await.expect("nothing is left to be told");
    client.batch_execute("COMMIT").await.expect("nor here");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_servers_cost_what_they_did_and_no_session() {
    let place = place().await;
    let mut client = place.router.connect(&place.database).await;
    client.batch_execute("CREATE TABLE k (a int)").await.expect("it is new");
    let kill = async || end_servers(&place).await;
    let transaction = client.transaction().await.expect("begin");
    transaction.execute("INSERT INTO k VALUES (1)", &[]).await.expect("right");
    kill().await;
    let error = transaction.execute("INSERT INTO k VALUES (2)", &[]).await.expect_err("it is gone");
    assert_eq!(error.code(), Some(&SqlState::CONNECTION_FAILURE), "{error}");
    // What follows must not run outside of the transaction that it was meant for.
    let error = transaction.execute("INSERT INTO k VALUES (3)", &[]).await.expect_err("failed");
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION), "{error}");
    transaction.commit().await.expect("a commit of a failed transaction rolls back");
    let rows = client.query("SELECT * FROM k", &[]).await.expect("the next one works");
    assert!(rows.is_empty());
    // Idle ones are replaced without anybody noticing.
    kill().await;
    let others = join_all((0..20).map(|_| place.router.connect(&place.database))).await;
    for other in &others {
        other.query("SELECT * FROM k", &[]).await.expect("a new server");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_says_so_and_a_client_that_leaves_frees_its_server() {
    let server = Server::shared().await;
    let mut config = one_source(server.source("only"));
    config.limits.pool_size = 1;
    config.limits.wait_timeout = Duration::from_millis(300);
    let router = Running::start(config).await;
    let database = server.database().await;
    let holder = router.connect(&database).await;
    let waiter = router.connect(&database).await;
    holder.batch_execute("BEGIN; CREATE TABLE h (a int)").await.expect("right");
    let error = waiter.simple_query("SELECT 1").await.expect_err("there is no second server");
    assert_eq!(error.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    assert!(error.as_db_error().expect("a word").message().starts_with("HF3204"));
    drop(holder);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while waiter.simple_query("SELECT 1").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the server does not come back");
    }
    waiter.simple_query("SELECT * FROM h").await.expect_err("it was rolled back");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_lets_a_transaction_end() {
    let mut place = place().await;
    let busy = place.router.connect(&place.database).await;
    let idle = place.router.connect(&place.database).await;
    busy.batch_execute("BEGIN; CREATE TABLE s (a int)").await.expect("right");
    place.router.stop.cancel();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !idle.is_closed() {
        assert!(tokio::time::Instant::now() < deadline, "an idle session is not ended");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    busy.batch_execute("COMMIT").await.expect("it may end");
    let ended = place.router.ended.take().expect("it runs");
    tokio::time::timeout(PATIENCE, ended).await.expect("it stops").expect("in good order");
    let direct = place.server.connect(&place.database).await.expect("it runs");
    direct.batch_execute("SELECT * FROM s").await.expect("it was committed");
}

#[tokio::test(flavor = "multi_thread")]
async fn own_questions_are_answered_by_both_protocols() {
    let place = place().await;
    let client = place.router.connect(&place.database).await;
    let rows = client.simple_query("SHOW HOLDFAST SHARDS").await.expect("right");
    assert_eq!(first(&rows), "-");
    let rows = client.query("SHOW HOLDFAST POOLS", &[]).await.expect("right");
    assert_eq!(rows[0].get::<_, &str>("source"), "only");
    for nothing in ["SHOW HOLDFAST SHIPS", "SHOW HOLDFAST", "SHOW HOLDFAST;"] {
        let error = client.simple_query(nothing).await.expect_err("there is none");
        let told = error.as_db_error().expect("a word");
        assert!(told.message().starts_with("HF3215"), "{told}");
        assert!(told.hint().expect("a remedy").contains("in_doubt"), "{told}");
    }
    let stream = client.query_raw("SELECT generate_series(1, 100000)", Vec::<i32>::new()).await;
    let rows = stream
        .expect("right")
        .map(|row| row.expect("right").get::<_, i32>(0))
        .fold(0_i64, async |sum, n| sum + i64::from(n))
        .await;
    assert_eq!(rows, 5_000_050_000);
}
