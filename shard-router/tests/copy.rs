//! COPY through a router with two sources: rows are divided by their keys, told one source behind another, and the protocol is that of one
//! PostgreSQL. Without a coordinator rows can be copied into one source only; what several take is in the stories of whole clusters.

mod fixture;

use std::time::Duration;

use fixture::{
    PATIENCE, Running, Server, one_source,
    raw::{
        Message, Raw, bind, copy_data, copy_done, copy_fail, describe, execute, field,
        first_column, flush, parse, query, status, sync, tags,
    },
};
use futures::{SinkExt as _, TryStreamExt as _};
use holdfast_shard_router::config::{RouterConfig, SourceConfig};
use tokio_postgres::{Client, error::SqlState};

/// `item` lies half and half; `shop` is divided too, and all of its slots are on the first source.
const RULES: &str = r#"
[router]
collation = "C"
[group.item]
key = "k"
type = "integer"
function = "mod"
scatter = "write"
slots = [{ first = 0, last = 511, shard = "s1" }, { first = 512, last = 1023, shard = "s2" }]
[group.shop]
key = "id"
type = "text"
function = "crc32c"
slots = [{ first = 0, last = 1023, shard = "s1" }]
[table.item]
group = "item"
[table.shop]
group = "shop"
[shard.s1]
source = "p1"
[shard.s2]
source = "p2"
[source.p1]
address = "127.0.0.1:1"
[source.p2]
address = "127.0.0.1:2"
"#;

struct Place {
    router: Running,
    server: std::sync::Arc<Server>,
    /// Behind the router, one for each source.
    behind: Vec<String>,
    _rules: tempfile::TempDir,
}

impl Place {
    async fn connect(&self) -> Client {
        self.router.connect("any").await
    }

    async fn shops(&self) -> Vec<String> {
        let first = self.server.connect(&self.behind[0]).await.expect("it runs");
        let rows = first.query("SELECT id FROM shop ORDER BY id", &[]).await.expect("right");
        rows.iter().map(|row| row.get(0)).collect()
    }
}

async fn place() -> Place {
    let server = Server::shared().await;
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let file = folder.path().join("rules.toml");
    std::fs::write(&file, RULES).expect("the folder is ours");
    let (mut sources, mut behind) = (Vec::new(), Vec::new());
    for n in [1, 2] {
        let database = server.database().await;
        let client = server.connect(&database).await.expect("it runs");
        let (from, to) = if n == 1 { (0, 511) } else { (512, 1023) };
        let sql = format!(
            "CREATE TABLE item (k int PRIMARY KEY, name text);
             INSERT INTO item SELECT k, 'n' || k FROM generate_series({from}, {to}) k;
             CREATE TABLE shop (note text, id text PRIMARY KEY, size int)"
        );
        client.batch_execute(&sql).await.expect("it is new");
        behind.push(database.clone());
        sources.push(SourceConfig { database: Some(database), ..server.source(&format!("p{n}")) });
    }
    let config = RouterConfig { rules: Some(file), sources, ..one_source(server.source("x")) };
    let router = Running::start(config).await;
    Place { router, server, behind, _rules: folder }
}

/// Copies these pieces in; how many rows that were.
async fn copy_in(
    client: &Client,
    sql: &str,
    pieces: &[&str],
) -> Result<u64, tokio_postgres::Error> {
    let sink = client.copy_in::<_, bytes::Bytes>(sql).await?;
    let mut sink = std::pin::pin!(sink);
    for piece in pieces {
        // It may have failed already; the end says how.
        if sink.send(bytes::Bytes::copy_from_slice(piece.as_bytes())).await.is_err() {
            break;
        }
    }
    sink.finish().await
}

async fn copy_out(client: &Client, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    let pieces: Vec<bytes::Bytes> = client.copy_out(sql).await?.try_collect().await?;
    let text = String::from_utf8(pieces.concat()).expect("rows are UTF-8");
    Ok(text.lines().map(str::to_owned).collect())
}

fn code(error: &tokio_postgres::Error) -> String {
    let message = error.as_db_error().unwrap_or_else(|| panic!("no answer: {error:?}")).message();
    message.split(' ').next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_by_the_column_that_is_the_key_wherever_it_stands() {
    let place = place().await;
    let client = place.connect().await;
    // The columns' order is asked of the source.
    let rows = copy_in(&client, "COPY shop FROM STDIN", &["x\\ty\ta", "bc\t1\n\\N\tb\t", "\\N\n"]);
    assert_eq!(rows.await.expect("right"), 2);
    let csv = "COPY public.shop (id, note) FROM STDIN WITH (FORMAT csv, HEADER)";
    let rows = copy_in(&client, csv, &["id,note\n\"c\nd\",\"x,\n", "y\"\ne,\n"]).await;
    assert_eq!(rows.expect("right"), 2);
    let kept =
        copy_in(&client, "COPY shop (id, size) FROM STDIN WHERE size > 5", &["f\t5\ng\t6\n"]);
    assert_eq!(kept.await.expect("right"), 1);
    assert_eq!(place.shops().await, ["abc", "b", "c\nd", "e", "g"]);
    let sql = "SELECT note, size FROM shop WHERE id = 'c\nd'";
    let row = client.query_one(sql, &[]).await.expect("it is found by its key");
    assert_eq!((row.get::<_, &str>(0), row.get::<_, Option<i32>>(1)), ("x,\ny", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_copied_rightly_leaves_nothing() {
    let place = place().await;
    // tokio-postgres takes the answer to its next question for another's behind a COPY that did not begin, so each has a connection.
    for (sql, pieces, wanted) in [
        ("COPY shop FROM STDIN", "x\ta\t1\nx\t\\N\t1\n", "HF3105"),
        ("COPY shop FROM STDIN", "x\ta\t1\nx\n", "HF3114"),
        ("COPY shop FROM STDIN CSV", "x,a,1\n\"x\n", "HF3114"),
        ("COPY shop (note) FROM STDIN", "x\n", "HF3104"),
        ("COPY shop FROM STDIN (FORMAT binary)", "", "HF3111"),
        ("COPY shop FROM STDIN (ON_ERROR ignore)", "", "HF3111"),
        ("COPY item FROM STDIN", "", "HF3210"),
    ] {
        let error = copy_in(&place.connect().await, sql, &[pieces]).await.expect_err(sql);
        assert_eq!(code(&error), wanted, "{sql}: {error}");
    }
    let client = place.connect().await;
    let error = copy_in(&client, "COPY shop FROM STDIN", &["x\ta\t1\nx\tb\tmany\n"]).await;
    let error = error.expect_err("no number");
    assert_eq!(error.code(), Some(&SqlState::INVALID_TEXT_REPRESENTATION));
    let context = error.as_db_error().and_then(|error| error.where_()).unwrap_or_default();
    assert!(context.ends_with("(of the rows for source p1)"), "{context}");
    let error = copy_in(&client, "COPY shop (nothing, id) FROM STDIN", &["1\t2\n"]).await;
    let client = place.connect().await;
    assert_eq!(error.expect_err("no column").code(), Some(&SqlState::UNDEFINED_COLUMN));
    client.batch_execute("SET client_encoding TO 'LATIN1'").await.expect("right");
    let error = copy_in(&client, "COPY shop FROM STDIN", &["x\ta\t1\n"]).await;
    assert_eq!(code(&error.expect_err("bytes that mean another key")), "HF3211");
    let client = place.connect().await;
    // In a transaction it fails the whole, and goes back to a savepoint.
    client.batch_execute("BEGIN").await.expect("right");
    assert_eq!(copy_in(&client, "COPY shop FROM STDIN", &["x\ta\t1\n"]).await.expect("right"), 1);
    client.batch_execute("SAVEPOINT s").await.expect("right");
    copy_in(&client, "COPY shop FROM STDIN", &["x\t\\N\t1\n"]).await.expect_err("no key");
    let error = client.batch_execute("SELECT 1").await.expect_err("it has failed");
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    client.batch_execute("ROLLBACK TO s").await.expect("right");
    assert_eq!(copy_in(&client, "COPY shop FROM STDIN", &["x\tb\t1\n"]).await.expect("right"), 1);
    client.batch_execute("COMMIT").await.expect("right");
    assert_eq!(place.shops().await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_both_sources_are_told_with_one_line_of_names() {
    let place = place().await;
    let client = place.connect().await;
    let all = copy_out(&client, "COPY item TO STDOUT").await.expect("right");
    assert_eq!((all.len(), all[0].as_str(), all[1_023].as_str()), (1_024, "0\tn0", "1023\tn1023"));
    let csv = "COPY (SELECT k, name FROM item WHERE k BETWEEN 500 AND 520) TO STDOUT (FORMAT csv, HEADER)";
    let named = copy_out(&client, csv).await.expect("right");
    assert_eq!((named.len(), named[0].as_str(), named[21].as_str()), (22, "k,name", "520,n520"));
    let one = "COPY (SELECT name FROM item WHERE k = 600) TO STDOUT";
    assert_eq!(copy_out(&client, one).await.expect("right"), ["n600"]);
    // What a transaction has written it also tells.
    client.batch_execute("BEGIN").await.expect("right");
    client.batch_execute("DELETE FROM item WHERE k = 7").await.expect("right");
    let left = copy_out(&client, "COPY item (k) TO STDOUT").await.expect("right");
    assert_eq!((left.len(), left[7].as_str()), (1_023, "8"));
    client.batch_execute("ROLLBACK").await.expect("right");
    for (sql, wanted) in [
        ("COPY item TO STDOUT (FORMAT binary)", "HF3111"),
        ("COPY (SELECT k FROM item ORDER BY k) TO STDOUT CSV CSV", "HF3107"),
        ("COPY item TO '/tmp/nowhere'", "HF3111"),
    ] {
        let error = client.simple_query(sql).await.expect_err(sql);
        assert_eq!(code(&error), wanted, "{sql}");
    }
    let error = copy_out(&client, "COPY (SELECT 1 / (k - 600) FROM item) TO STDOUT").await;
    assert_eq!(error.expect_err("by zero").code(), Some(&SqlState::DIVISION_BY_ZERO));
    assert_eq!(copy_out(&client, "COPY item TO STDOUT").await.expect("it goes on").len(), 1_024);
    let mut raw = Raw::login(place.router.port, "any").await;
    let told = raw.ask(&[query("COPY item TO STDOUT")]).await;
    assert!(tags(&told).starts_with("Hd") && tags(&told).ends_with("dcCZ"));
    let told = raw.ask(&[query("EXPLAIN (ROUTE) COPY shop FROM STDIN")]).await;
    assert_eq!(first_column(&told)[..2], ["access", "group"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn merged_rows_are_copied_as_one_postgresql_would_write_them() {
    let place = place().await;
    let client = place.connect().await;
    let csv = "COPY (SELECT k, name || ',' AS \"the name\", NULL FROM item ORDER BY k DESC LIMIT 2 OFFSET 510) TO STDOUT CSV HEADER NULL 'none'";
    let wanted = ["k,the name,?column?", "513,\"n513,\",none", "512,\"n512,\",none"];
    assert_eq!(copy_out(&client, csv).await.expect("right"), wanted);
    let counted = "COPY (SELECT count(*), max(k) FROM item) TO STDOUT (DELIMITER '|')";
    assert_eq!(copy_out(&client, counted).await.expect("right"), ["1024|1023"]);
    // What a transaction has written is among them.
    client.batch_execute("BEGIN; DELETE FROM item WHERE k = 1023").await.expect("right");
    assert_eq!(copy_out(&client, counted).await.expect("right"), ["1023|1022"]);
    client.batch_execute("ROLLBACK").await.expect("right");
    let mut raw = Raw::login(place.router.port, "any").await;
    let told = raw.ask(&[query("COPY (SELECT k FROM item ORDER BY k) TO STDOUT")]).await;
    assert!(tags(&told).starts_with("Hd") && tags(&told).ends_with("dcCZ"), "{}", tags(&told));
    // Signs of other encodings may hold bytes that mean something in a line.
    raw.ask(&[query("SET client_encoding TO 'SJIS'")]).await;
    let told = raw.ask(&[query("COPY (SELECT k FROM item ORDER BY k) TO STDOUT")]).await;
    assert!(field(&told, b'M').starts_with("HF3211"), "{}", field(&told, b'M'));
}

/// Everything that is said, up to the end that is asked for last.
async fn converse(raw: &mut Raw, messages: &[Vec<u8>]) -> (String, String) {
    raw.send(&messages.concat()).await;
    raw.send(&[sync(), query("SELECT 'end'")].concat()).await;
    let mut said: Vec<Message> = Vec::new();
    loop {
        let turn = raw.until_ready().await;
        assert!(!turn.is_empty(), "the connection is closed");
        let last = first_column(&turn).first().is_some_and(|text| text == "end");
        said.extend(turn);
        if last {
            return (tags(&said), field(&said, b'C'));
        }
    }
}

/// Scenario 16.
#[tokio::test(flavor = "multi_thread")]
async fn copy_with_flush_and_sync_in_every_order_is_that_of_one_postgresql() {
    let place = place().await;
    let mut direct = Raw::login(place.server.port, &place.behind[1]).await;
    let mut router = Raw::login(place.router.port, "any").await;
    let into = |sql: &str, end: Vec<u8>| {
        let rows = [copy_data(b"x\ta\t1\nx\t"), copy_data(b"b\t2\n")];
        [parse("", sql), bind("", "", &[]), describe(b'P', ""), execute("", 0)]
            .into_iter()
            .chain(rows)
            .chain([end])
            .collect::<Vec<_>>()
    };
    let copies = [
        into("COPY shop FROM STDIN", copy_done()),
        into("COPY shop FROM STDIN", copy_fail("no more")),
        into("COPY shop (id, nothing) FROM STDIN", copy_done()),
    ];
    let clear = query("DELETE FROM shop WHERE id IN ('a', 'b') RETURNING id");
    for copy in &copies {
        for first in 0..copy.len() {
            for second in first..copy.len() {
                for between in [[flush(), sync()], [sync(), flush()], [sync(), sync()]] {
                    let mut messages = copy.clone();
                    let [one, other] = between;
                    messages.insert(second, other);
                    messages.insert(first, one);
                    let wanted = converse(&mut direct, &messages).await;
                    let told = converse(&mut router, &messages).await;
                    assert_eq!(told, wanted, "{first} and {second}");
                    let mut kept = Vec::new();
                    for raw in [&mut direct, &mut router] {
                        let mut ids = first_column(&raw.ask(std::slice::from_ref(&clear)).await);
                        ids.sort();
                        kept.push(ids);
                    }
                    assert_eq!(kept[0], kept[1], "{first} and {second}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_by_a_simple_query_ends_as_postgresql_ends_it() {
    let place = place().await;
    let mut direct = Raw::login(place.server.port, &place.behind[1]).await;
    let mut router = Raw::login(place.router.port, "any").await;
    let begin = query("COPY shop FROM STDIN");
    let bad = copy_data(b"x\ta\tmany\n");
    for (messages, failed) in [
        (vec![begin.clone(), copy_data(b"x\ta\t1\n"), copy_fail("enough")], true),
        (vec![begin.clone(), bad.clone(), copy_data(b"x\tb\t1\n"), copy_done()], true),
        (vec![begin.clone(), copy_done()], false),
        // Late ones, behind an error that ended the COPY.
        (vec![query("COPY shop (id, none) FROM STDIN"), copy_data(b"x\n"), copy_done()], true),
    ] {
        let wanted = converse(&mut direct, &messages).await;
        let told = converse(&mut router, &messages).await;
        assert_eq!(told, wanted);
        assert_eq!(wanted.0.contains('E'), failed);
    }
    // PostgreSQL closes the connection at what has no place among rows; the router says so and goes on.
    let told = router.ask(&[begin, execute("", 0), copy_data(b"x\n"), copy_done()]).await;
    assert_eq!((field(&told, b'C').as_str(), status(&told)), ("08P01", 'I'));
    let told = router.ask(&[query("COPY shop FROM STDIN"), copy_fail("enough")]).await;
    assert!(field(&told, b'M').contains("enough"), "{}", field(&told, b'M'));
    assert_eq!((field(&told, b'C').as_str(), status(&told)), ("57014", 'I'));
    assert!(place.shops().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_and_a_client_that_leaves_in_the_midst_leave_nothing() {
    let place = place().await;
    let admin = place.server.connect(&place.behind[0]).await.expect("it runs");
    let copying = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY shop%' AND state = 'active'";
    let found = async |wanted: bool| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let row = admin.query_opt(copying, &[]).await.expect("right");
            if row.is_some() == wanted {
                return row.map_or(0, |row| row.get::<_, i32>(0));
            }
            assert!(tokio::time::Instant::now() < deadline, "it should be {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut raw = Raw::login(place.router.port, "any").await;
    raw.send(&[query("COPY shop FROM STDIN"), copy_data(b"x\ta\t1\n")].concat()).await;
    let pid = found(true).await;
    admin.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await.expect("right");
    // It is told although it says nothing.
    let told = raw.until_ready().await;
    assert_eq!((field(&told, b'C').as_str(), status(&told)), ("08006", 'I'), "{told:?}");
    let told = raw.ask(&[copy_data(b"x\tb\t1\n"), copy_done(), query("SELECT 1")]).await;
    assert_eq!(first_column(&told), ["1"]);
    let mut leaves = Raw::login(place.router.port, "any").await;
    leaves.send(&[query("COPY shop FROM STDIN"), copy_data(b"x\tc\t1\n")].concat()).await;
    found(true).await;
    drop(leaves);
    found(false).await;
    assert!(place.shops().await.is_empty());
}

/// The server takes nothing, so the router stops taking as well: what it holds is bounded, whatever the client would send.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_faster_than_its_server_waits() {
    let place = place().await;
    let admin = place.server.connect(&place.behind[0]).await.expect("it runs");
    let slow = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
                  $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NEW; END $$;
                CREATE TRIGGER wait BEFORE INSERT ON shop FOR EACH ROW EXECUTE FUNCTION wait();
                SELECT pg_advisory_lock(4711)";
    admin.batch_execute(slow).await.expect("right");
    let mut raw = Raw::login(place.router.port, "any").await;
    raw.send(&query("COPY shop FROM STDIN")).await;
    let piece = |n: usize| copy_data(format!("{}\tk{n}\t1\n", "x".repeat(65_000)).as_bytes());
    // Sockets on the way hold some MiB each; without a bound all of these would be taken.
    let (mut sent, most) = (0, 4_000);
    while sent < most {
        let piece = piece(sent);
        let send = raw.send(&piece);
        if tokio::time::timeout(Duration::from_secs(3), send).await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!(sent < most, "{sent} pieces of 65 kB were taken by nobody");
    // The piece that was cut off cannot be finished: the connection goes, and its rows with it.
    drop(raw);
    admin.batch_execute("SELECT pg_advisory_unlock(4711)").await.expect("right");
    let client = place.connect().await;
    let rows = copy_in(&client, "COPY shop FROM STDIN", &["x\tz\t1\n"]).await;
    assert_eq!(rows.expect("right"), 1);
    assert_eq!(place.shops().await, ["z"]);
}
