//! What other proxies have got wrong, said message by message: named portals, pipelines, row limits, statements by name, large binds.
//! The numbers are those of docs/reference/scenarios.md.

mod fixture;

use fixture::{
    PATIENCE, Running, Server, one_source,
    raw::{
        Raw, bind, close, describe, execute, field, first_column, parse, query, status, sync, tags,
    },
};
use holdfast_shard_router::config::{RouterConfig, SourceConfig};

struct Place {
    router: Running,
    server: std::sync::Arc<Server>,
    database: String,
    /// Behind the router, one for each source.
    behind: Vec<String>,
    _rules: Option<tempfile::TempDir>,
}

impl Place {
    async fn raw(&self) -> Raw {
        Raw::login(self.router.port, &self.database).await
    }
}

async fn one() -> Place {
    let server = Server::shared().await;
    let router = Running::start(one_source(server.source("only"))).await;
    let database = server.database().await;
    Place { router, server, behind: vec![database.clone()], database, _rules: None }
}

/// Two sources; `item` lies by `k` in 0 to 1,023, half and half.
async fn two() -> Place {
    let server = Server::shared().await;
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let file = folder.path().join("rules.toml");
    let mut rules = String::from(
        "[router]\ncollation = \"C\"\n[group.item]\nkey = \"k\"\ntype = \"integer\"\nfunction = \"mod\"\nscatter = \"read\"\n\
         slots = [{ first = 0, last = 511, shard = \"s1\" }, { first = 512, last = 1023, shard = \"s2\" }]\n\
         [table.item]\ngroup = \"item\"\n",
    );
    let (mut sources, mut behind) = (Vec::new(), Vec::new());
    for n in [1, 2] {
        rules += &format!(
            "[shard.s{n}]\nsource = \"p{n}\"\n[source.p{n}]\naddress = \"127.0.0.1:{n}\"\n"
        );
        let database = server.database().await;
        let client = server.connect(&database).await.expect("it runs");
        let (from, to) = if n == 1 { (0, 511) } else { (512, 1023) };
        let sql = format!(
            "CREATE TABLE item (k int PRIMARY KEY, name text);
             INSERT INTO item SELECT k, 'n' || k FROM generate_series({from}, {to}) k"
        );
        client.batch_execute(&sql).await.expect("it is new");
        behind.push(database.clone());
        sources.push(SourceConfig { database: Some(database), ..server.source(&format!("p{n}")) });
    }
    std::fs::write(&file, rules).expect("the folder is ours");
    let config = RouterConfig { rules: Some(file), sources, ..one_source(server.source("x")) };
    let router = Running::start(config).await;
    Place { router, server, database: "any".to_owned(), behind, _rules: Some(folder) }
}

/// Scenario 1.
#[tokio::test(flavor = "multi_thread")]
async fn a_named_portal_lives_as_long_as_its_transaction() {
    let place = one().await;
    let mut raw = place.raw().await;
    raw.ask(&[query("BEGIN")]).await;
    let open = [parse("", "SELECT g FROM generate_series(1, 5) g"), bind("p", "", &[])];
    let first = raw.ask(&[open.concat(), execute("p", 2), sync()]).await;
    assert_eq!((tags(&first), status(&first)), ("12DDsZ".to_owned(), 'T'));
    let between = raw.ask(&[query("SELECT 9")]).await;
    assert_eq!(first_column(&between), ["9"]);
    let second = raw.ask(&[execute("p", 2), sync()]).await;
    assert_eq!(first_column(&second), ["3", "4"]);
    raw.ask(&[query("COMMIT")]).await;
    let gone = raw.ask(&[execute("p", 2), sync()]).await;
    assert_eq!((field(&gone, b'C'), status(&gone)), ("34000".to_owned(), 'I'));
    let outside = raw.ask(&[open.concat(), execute("p", 2), sync()]).await;
    assert_eq!(tags(&outside), "12DDsZ");
    let gone = raw.ask(&[execute("p", 2), sync()]).await;
    assert_eq!(field(&gone, b'C'), "34000", "outside of a transaction it ends with its Sync");
}

/// Scenario 2.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_skips_everything_up_to_sync_and_is_answered_once() {
    for place in [one().await, two().await] {
        let mut raw = place.raw().await;
        let work = [parse("", "SELECT 1"), bind("", "", &[]), execute("", 0)].concat();
        let wrong = [parse("", "SELECT nonsense FROM nowhere"), bind("", "", &[])].concat();
        let answer = raw.ask(&[work.clone(), wrong, execute("", 0), work.clone(), sync()]).await;
        assert_eq!((tags(&answer), status(&answer)), ("12DCEZ".to_owned(), 'I'));
        let after = raw.ask(&[work, sync()]).await;
        assert_eq!(tags(&after), "12DCZ");
    }
}

/// Scenario 3.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_two_shards_is_fetched_by_parts_without_loss_or_repeat() {
    let place = two().await;
    let mut raw = place.raw().await;
    let open = [parse("", "SELECT k FROM item ORDER BY k"), bind("", "", &[])].concat();
    let mut messages = vec![open, describe(b'P', "")];
    messages.extend((0..5).map(|_| execute("", 300)));
    messages.push(sync());
    let answer = raw.ask(&messages).await;
    let keys: Vec<String> = (0..1024).map(|k| k.to_string()).collect();
    assert_eq!(first_column(&answer), keys);
    let told: String = tags(&answer).replace('D', "");
    assert_eq!(told, "12TsssCCZ");
    let done: Vec<_> =
        answer.iter().filter(|(tag, _)| *tag == b'C').map(|(_, body)| body).collect();
    assert_eq!(done[0].as_slice(), b"SELECT 124\0");
}

/// Scenarios 4 and 5.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_free_after_a_failed_parse_and_a_simple_query_takes_the_unnamed_one_only() {
    let place = one().await;
    let mut raw = place.raw().await;
    let failed = raw.ask(&[parse("s", "SELEC 1"), sync()]).await;
    assert_eq!((tags(&failed), field(&failed, b'C')), ("EZ".to_owned(), "42601".to_owned()));
    let again = raw.ask(&[parse("s", "SELECT 1"), parse("", "SELECT 2"), sync()]).await;
    assert_eq!(tags(&again), "11Z");
    assert_eq!(first_column(&raw.ask(&[query("SELECT 3")]).await), ["3"]);
    let named = raw.ask(&[bind("", "s", &[]), execute("", 0), sync()]).await;
    assert_eq!(first_column(&named), ["1"]);
    let unnamed = raw.ask(&[bind("", "", &[]), execute("", 0), sync()]).await;
    assert_eq!(field(&unnamed, b'C'), "26000");
}

/// Scenario 6.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_is_dropped_for_its_own_client_alone() {
    let place = one().await;
    let (mut one, mut other) = (place.raw().await, place.raw().await);
    let use_it = [bind("", "s", &[]), execute("", 0), sync()].concat();
    for drop in [
        query("DISCARD ALL"),
        query("DEALLOCATE ALL"),
        query("DEALLOCATE s"),
        [close(b'S', "s"), sync()].concat(),
    ] {
        for client in [&mut one, &mut other] {
            let known = client.ask(std::slice::from_ref(&use_it)).await;
            if field(&known, b'C') == "26000" {
                assert_eq!(tags(&client.ask(&[parse("s", "SELECT 7"), sync()]).await), "1Z");
            }
        }
        one.ask(&[drop]).await;
        assert_eq!(field(&one.ask(std::slice::from_ref(&use_it)).await, b'C'), "26000");
        assert_eq!(first_column(&other.ask(std::slice::from_ref(&use_it)).await), ["7"]);
    }
}

/// Scenario 7.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_names_for_one_text_are_one_statement_on_each_server() {
    let place = one().await;
    let mut clients = Vec::new();
    for n in 0..100 {
        let mut raw = place.raw().await;
        let name = format!("name-{n}");
        let text = "SELECT count(*)::int FROM pg_prepared_statements";
        let answer =
            raw.ask(&[parse(&name, text), bind("", &name, &[]), execute("", 0), sync()]).await;
        assert_eq!(first_column(&answer), ["1"], "client {n}");
        clients.push(raw);
    }
    let held = place.server.connect("postgres").await.expect("it runs");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
    let servers: i64 = held.query_one(sql, &[&place.database]).await.expect("right").get(0);
    assert!(servers <= 4, "{servers} servers for a pool of 4");
}

/// Scenario 8.
#[tokio::test(flavor = "multi_thread")]
async fn as_many_parameters_as_the_protocol_counts_are_bound_and_one_key_among_them_is_found() {
    let place = one().await;
    let mut raw = place.raw().await;
    let list: Vec<String> = (1..=65_535).map(|n| format!("${n}")).collect();
    let sql = format!("SELECT 700 = ANY (ARRAY[{}]::int[])", list.join(","));
    let values: Vec<String> = (0..65_535_u32).map(|n| (n % 1024).to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let answer = raw.ask(&[parse("", &sql), bind("", "", &values), execute("", 0), sync()]).await;
    assert_eq!(first_column(&answer), ["t"], "{}", field(&answer, b'M'));
    let place = two().await;
    let mut raw = place.raw().await;
    let long = "x".repeat(8 << 20);
    let sql = "SELECT name || length($2) FROM item WHERE k = $1";
    let answer =
        raw.ask(&[parse("", sql), bind("", "", &["700", &long]), execute("", 0), sync()]).await;
    assert_eq!(first_column(&answer), ["n7008388608"], "{}", field(&answer, b'M'));
}

/// Scenario 12.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_a_failed_transaction_says_rollback() {
    let place = two().await;
    let mut raw = place.raw().await;
    raw.ask(&[query("BEGIN")]).await;
    raw.ask(&[query("UPDATE item SET name = 'changed' WHERE k = 1")]).await;
    let failed = raw.ask(&[query("UPDATE item SET k = 1/0 WHERE k = 1")]).await;
    assert_eq!((tags(&failed), status(&failed)), ("EZ".to_owned(), 'E'));
    let ended = raw.ask(&[query("COMMIT")]).await;
    assert_eq!(ended[0].1, b"ROLLBACK\0");
    let seen = raw.ask(&[query("SELECT name FROM item WHERE k = 1")]).await;
    assert_eq!(first_column(&seen), ["n1"]);
}

/// Scenario 13.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_drops_its_connection_leaves_no_open_transaction() {
    let place = one().await;
    let mut raw = place.raw().await;
    raw.ask(&[query("CREATE TABLE t (a int)")]).await;
    raw.ask(&[query("BEGIN")]).await;
    raw.ask(&[query("INSERT INTO t VALUES (1)")]).await;
    drop(raw);
    let direct = place.server.connect(&place.database).await.expect("it runs");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    let end = tokio::time::Instant::now() + fixture::PATIENCE;
    while direct.query_one(sql, &[]).await.expect("right").get::<_, i64>(0) > 0 {
        assert!(tokio::time::Instant::now() < end, "a transaction stays open");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let rows = direct.query_one("SELECT count(*) FROM t", &[]).await.expect("right");
    assert_eq!(rows.get::<_, i64>(0), 0);
}

/// Scenario 22.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_key_is_refused_by_name_and_none_equals_null() {
    let place = two().await;
    let mut raw = place.raw().await;
    for sql in
        ["INSERT INTO item (k, name) VALUES (NULL, 'x')", "INSERT INTO item (name) VALUES ('x')"]
    {
        let refused = raw.ask(&[query(sql)]).await;
        let words = field(&refused, b'M');
        assert!(words.starts_with("HF310") && words.contains(" k"), "{sql}: {words}");
    }
    let none = raw.ask(&[query("SELECT name FROM item WHERE k = NULL")]).await;
    assert_eq!(tags(&none), "TCZ");
    let told = raw.ask(&[query("EXPLAIN (ROUTE) SELECT name FROM item WHERE k = NULL")]).await;
    let told: Vec<String> =
        told.iter().map(|(_, body)| String::from_utf8_lossy(body).into_owned()).collect();
    assert!(told.concat().contains("no row can match"), "{told:?}");
}

/// Scenario 9.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_of_a_scattered_read_stops_it_on_every_shard() {
    let place = two().await;
    let mut locks = Vec::new();
    for database in &place.behind {
        let client = place.server.connect(database).await.expect("it runs");
        client.batch_execute("BEGIN; LOCK TABLE item").await.expect("nobody else is here");
        locks.push(client);
    }
    let reader = place.router.connect("any").await;
    let token = reader.cancel_token();
    let admin = place.server.connect("postgres").await.expect("it runs");
    let waiting = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = ANY ($1)";
        admin.query_one(sql, &[&place.behind]).await.expect("right").get::<_, i64>(0)
    };
    let until = async |wanted: i64| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while waiting().await != wanted {
            assert!(tokio::time::Instant::now() < deadline, "not {wanted} of two shards wait");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let (read, ()) = tokio::join!(reader.simple_query("SELECT name FROM item ORDER BY k"), async {
        until(2).await;
        token.cancel_query(tokio_postgres::NoTls).await.expect("it is taken");
    });
    let told = read.expect_err("it was canceled");
    assert_eq!(told.code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED), "{told:?}");
    // The shards were not left to wait for a lock on behalf of nobody, though it is held still.
    until(0).await;
    drop(locks);
    let read = reader.simple_query("SELECT count(*) FROM item").await.expect("the session goes on");
    assert!(!read.is_empty());
}

/// Scenario 28.
#[tokio::test(flavor = "multi_thread")]
async fn a_type_with_another_number_on_each_source_is_read_by_key_and_never_mixed() {
    let place = two().await;
    let mut numbers = std::collections::BTreeSet::new();
    for database in &place.behind {
        let client = place.server.connect(database).await.expect("it runs");
        let sql = "CREATE TYPE mood AS ENUM ('calm', 'cross');
                   ALTER TABLE item ADD COLUMN mood mood NOT NULL DEFAULT 'calm'";
        client.batch_execute(sql).await.expect("it is new");
        let oid = client.query_one("SELECT 'mood'::regtype::oid", &[]).await.expect("a row");
        numbers.insert(oid.get::<_, u32>(0));
    }
    assert_eq!(numbers.len(), 2, "one server gives each type a number of its own");
    let mut raw = place.raw().await;
    for k in [1, 600] {
        let changed =
            raw.ask(&[query(&format!("UPDATE item SET mood = 'cross' WHERE k = {k}"))]).await;
        assert_eq!(tags(&changed), "CZ");
        let read = raw
            .ask(&[query(&format!("SELECT mood FROM item WHERE k = {k} AND mood = 'cross'"))])
            .await;
        assert_eq!(first_column(&read), ["cross"]);
        let text = format!("SELECT mood FROM item WHERE k = {k}");
        let read = raw.ask(&[parse("", &text), bind("", "", &[]), execute("", 0), sync()]).await;
        assert_eq!(first_column(&read), ["cross"]);
    }
    // A client would read the rows of one source by the type's number on the other.
    let mixed = raw.ask(&[query("SELECT mood FROM item WHERE k < 3 OR k > 1020")]).await;
    assert!(field(&mixed, b'M').starts_with("HF3113"), "{}", field(&mixed, b'M'));
    assert_eq!((field(&mixed, b'C'), status(&mixed)), ("0A000".to_owned(), 'I'));
    let counted = raw.ask(&[query("SELECT count(*) FROM item WHERE mood = 'cross'")]).await;
    assert_eq!(first_column(&counted), ["2"]);
    let as_text = raw.ask(&[query("SELECT mood::text FROM item WHERE mood = 'cross'")]).await;
    assert_eq!(first_column(&as_text), ["cross", "cross"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_its_server_would_read_otherwise_is_told_apart_by_nobody() {
    let place = two().await;
    let mut raw = place.raw().await;
    let umlaut = query("SELECT k FROM item WHERE k = 7 AND name <> '\u{fc}'");
    let plain = query("SELECT k FROM item WHERE k = 7 AND name <> 'u'");
    let rows = |answer: &[(u8, Vec<u8>)]| first_column(answer);
    assert_eq!(rows(&raw.ask(std::slice::from_ref(&umlaut)).await), ["7"]);
    raw.ask(&[query("SET client_encoding TO 'latin1'")]).await;
    let refused = raw.ask(std::slice::from_ref(&umlaut)).await;
    assert_eq!(field(&refused, b'C'), "0A000", "{:?}", tags(&refused));
    assert_eq!(rows(&raw.ask(std::slice::from_ref(&plain)).await), ["7"]);
    raw.ask(&[query("SET client_encoding TO 'utf-8'")]).await;
    assert_eq!(rows(&raw.ask(std::slice::from_ref(&umlaut)).await), ["7"]);
    // Within a transaction nobody has asked yet what became of it.
    raw.ask(&[query("BEGIN")]).await;
    raw.ask(&[query("SET client_encoding TO 'latin1'")]).await;
    let refused = raw.ask(std::slice::from_ref(&umlaut)).await;
    assert_eq!(field(&refused, b'C'), "0A000", "{:?}", tags(&refused));
    raw.ask(&[query("ROLLBACK")]).await;
    assert_eq!(rows(&raw.ask(std::slice::from_ref(&umlaut)).await), ["7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_names_no_encoding_writes_utf8_whatever_its_database_begins_with() {
    let place = two().await;
    let admin = place.server.connect("postgres").await.expect("it runs");
    for database in &place.behind {
        let sql = format!("ALTER DATABASE {database} SET client_encoding = 'LATIN1'");
        admin.batch_execute(&sql).await.expect("right");
    }
    let mut raw = place.raw().await;
    assert_eq!(first_column(&raw.ask(&[query("SHOW client_encoding")]).await), ["UTF8"]);
    for k in [7, 600] {
        raw.ask(&[query(&format!("UPDATE item SET name = '\u{fc}' WHERE k = {k}"))]).await;
        let told = raw.ask(&[query(&format!("SELECT length(name) FROM item WHERE k = {k}"))]).await;
        assert_eq!(first_column(&told), ["1"], "{k}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_stores_another_encoding_is_not_one_of_several() {
    let place = two().await;
    let admin = place.server.connect("postgres").await.expect("it runs");
    let latin = &place.behind[1];
    for sql in [
        format!("DROP DATABASE {latin} WITH (FORCE)"),
        format!("CREATE DATABASE {latin} ENCODING 'LATIN1' TEMPLATE template0"),
    ] {
        admin.batch_execute(&sql).await.expect("right");
    }
    let mut raw = place.raw().await;
    let refused = raw.ask(&[query("SELECT name FROM item WHERE k = 600")]).await;
    let words = field(&refused, b'M');
    assert!(words.starts_with("HF3205") && words.contains("LATIN1"), "{words}");
    let told = raw.ask(&[query("SELECT name FROM item WHERE k = 7")]).await;
    assert_eq!(first_column(&told), ["n7"], "the other one is as it was");
    // Where nothing is told apart by keys, bytes are passed on whatever they mean.
    let alone = Running::start(one_source(place.server.source("only"))).await;
    let mut raw = Raw::login(alone.port, latin).await;
    let told = raw.ask(&[query("SHOW server_encoding")]).await;
    assert_eq!(first_column(&told), ["LATIN1"]);
}
