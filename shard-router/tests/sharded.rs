//! Two sources behind one router: a statement reaches the rows that it means, or is refused.

mod fixture;

use fixture::{Running, Server, one_source};
use futures::{StreamExt as _, future::join_all};
use holdfast_shard_router::config::{RouterConfig, SourceConfig};
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

const RULES: &str = r#"
[router]
collation = "C"

[group.account]
key = "account"
type = "text"
function = "crc32c"
scatter = "read"
slots = [
  { first = 0, last = 511, shard = "shard-1" },
  { first = 512, last = 1023, shard = "shard-2" },
]

[group.branch]
key = "id"
type = "integer"
function = "mod"
slots = [
  { first = 0, last = 511, shard = "shard-1" },
  { first = 512, last = 1023, shard = "shard-2" },
]

[table.account]
group = "account"

[table.branch]
group = "branch"

[shard.shard-1]
source = "pg-1"

[shard.shard-2]
source = "pg-2"

[source.pg-1]
address = "127.0.0.1:5431"

[source.pg-2]
address = "127.0.0.1:5432"
"#;

struct Place {
    router: Running,
    shards: [Client; 2],
    _server: std::sync::Arc<Server>,
    rules: tempfile::TempDir,
}

impl Place {
    async fn connect(&self) -> Client {
        self.router.connect("any").await
    }

    /// Accounts of each shard, asked of the servers themselves.
    async fn accounts(&self) -> [i64; 2] {
        let count = async |client: &Client| {
            let sql = "SELECT count(*) FROM account";
            client.query_one(sql, &[]).await.expect("right").get::<_, i64>(0)
        };
        [count(&self.shards[0]).await, count(&self.shards[1]).await]
    }
}

/// One server with a database for each source.
async fn place() -> Place {
    let server = Server::shared().await;
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let file = folder.path().join("rules.toml");
    std::fs::write(&file, RULES).expect("the folder is ours");
    let mut sources = Vec::new();
    let mut shards = Vec::new();
    for name in ["pg-1", "pg-2"] {
        let database = server.database().await;
        let client = server.connect(&database).await.expect("it runs");
        let sql = "CREATE TABLE account (account text PRIMARY KEY, balance bigint NOT NULL);
                   CREATE TABLE branch (id int PRIMARY KEY, name text)";
        client.batch_execute(sql).await.expect("it is new");
        shards.push(client);
        sources.push(SourceConfig { database: Some(database), ..server.source(name) });
    }
    let config = RouterConfig { rules: Some(file), sources, ..one_source(server.source("x")) };
    let router = Running::start(config).await;
    let shards = shards.try_into().expect("two");
    Place { router, shards, _server: server, rules: folder }
}

fn code(error: &tokio_postgres::Error) -> String {
    let message = error.as_db_error().expect("an answer").message();
    message.split(' ').next().unwrap_or_default().to_owned()
}

fn rows(messages: &[SimpleQueryMessage]) -> Vec<String> {
    let text = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    };
    messages.iter().filter_map(text).collect()
}

async fn fill(client: &Client, count: i64) {
    for n in 0..count {
        let sql = "INSERT INTO account (account, balance) VALUES ($1, $2)";
        client.execute(sql, &[&format!("A-{n}"), &n]).await.expect("right");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_leads_to_its_shard_by_every_protocol() {
    let place = place().await;
    let client = place.connect().await;
    fill(&client, 40).await;
    let [one, two] = place.accounts().await;
    assert!(one > 5 && two > 5 && one + two == 40, "{one} and {two}");
    let by_name =
        client.prepare("SELECT balance FROM account WHERE account = $1").await.expect("right");
    for n in 0..40_i64 {
        let key = format!("A-{n}");
        let row = client.query_one(&by_name, &[&key]).await.expect("right");
        assert_eq!(row.get::<_, i64>(0), n);
        let sql = format!("SELECT balance FROM account WHERE account = '{key}'");
        assert_eq!(rows(&client.simple_query(&sql).await.expect("right")), [n.to_string()]);
        let sql = format!("INSERT INTO branch (id, name) VALUES ({}, 'x')", n * 30);
        client.simple_query(&sql).await.expect("right");
        let sql = "SELECT name FROM branch WHERE id = $1";
        let id = i32::try_from(n * 30).expect("small");
        assert_eq!(client.query(sql, &[&id]).await.expect("right").len(), 1);
    }
    let at = "SELECT count(*) FROM branch WHERE id % 1024 >= 512";
    let wrong: i64 = place.shards[0].query_one(at, &[]).await.expect("right").get(0);
    assert_eq!(wrong, 0);
}

/// Whoever hears that the last statement of a query is complete takes its transaction for committed.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_router_answers_last_in_a_query_is_complete_behind_its_commit() {
    let place = place().await;
    let client = place.connect().await;
    let sql = "ALTER TABLE branch ADD parent int REFERENCES branch DEFERRABLE INITIALLY DEFERRED";
    for shard in &place.shards {
        shard.batch_execute(sql).await.expect("right");
    }
    for (parent, complete) in [("9", 2), ("NULL", 3)] {
        let sql = format!(
            "INSERT INTO branch (id, parent) VALUES (1, {parent}); SELECT 1 FROM branch WHERE id = 600; DEALLOCATE ALL"
        );
        let told = client.simple_query_raw(&sql).await.expect("sent");
        let (mut completed, mut failed) = (0, None);
        for message in told.collect::<Vec<_>>().await {
            match message {
                Ok(SimpleQueryMessage::CommandComplete(_)) => completed += 1,
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        assert_eq!(completed, complete, "{sql}: {failed:?}");
        let code = failed.as_ref().and_then(tokio_postgres::Error::code);
        let fails = parent != "NULL";
        assert_eq!(code, fails.then_some(&SqlState::FOREIGN_KEY_VIOLATION), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_belongs_to_the_shard_of_its_first_key_and_a_second_one_is_refused() {
    let place = place().await;
    let mut client = place.connect().await;
    fill(&client, 20).await;
    let mut keys = [None, None];
    for n in 0..20 {
        let key = format!("A-{n}");
        let sql = "SELECT 1 FROM account WHERE account = $1";
        let first = place.shards[0].query_opt(sql, &[&key]).await.expect("right").is_some();
        keys[usize::from(!first)] = Some(key);
    }
    let [Some(here), Some(there)] = keys else { panic!("both shards have accounts") };
    let add = "UPDATE account SET balance = balance + 1000 WHERE account = $1";
    let transaction = client.transaction().await.expect("begin");
    assert_eq!(transaction.execute(add, &[&there]).await.expect("right"), 1);
    let error = transaction.execute(add, &[&here]).await.expect_err("another shard");
    assert_eq!(code(&error), "HF3210");
    let error = transaction.execute(add, &[&there]).await.expect_err("it has failed");
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    transaction.rollback().await.expect("rollback");
    for (key, sql) in [(&there, "simple"), (&here, "simple")] {
        let text = format!("SELECT balance < 1000 FROM account WHERE account = '{key}'");
        assert_eq!(rows(&client.simple_query(&text).await.expect("right")), ["t"], "{sql}");
    }
    client.batch_execute("BEGIN").await.expect("right");
    let sql = format!("UPDATE account SET balance = 5000 WHERE account = '{here}'");
    client.batch_execute(&sql).await.expect("right");
    client.batch_execute("SAVEPOINT s").await.expect("right");
    let sql = format!("UPDATE account SET balance = 5000 WHERE account = '{there}'");
    assert_eq!(code(&client.batch_execute(&sql).await.expect_err("another shard")), "HF3210");
    // The server knows that the statement failed, so its savepoint is what it is for.
    client.batch_execute("ROLLBACK TO s").await.expect("right");
    client.batch_execute("COMMIT").await.expect("right");
    let sql = format!("SELECT balance FROM account WHERE account = '{here}'");
    assert_eq!(rows(&client.simple_query(&sql).await.expect("right")), ["5000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_before_the_first_shard_takes_no_more_with_it_than_its_savepoint() {
    let place = place().await;
    let client = place.connect().await;
    fill(&client, 20).await;
    client.batch_execute("BEGIN; ").await.expect("right");
    client.batch_execute("SAVEPOINT s").await.expect("right");
    let all = "UPDATE account SET balance = 0";
    assert_eq!(code(&client.batch_execute(all).await.expect_err("no key")), "HF3104");
    let one = "UPDATE account SET balance = 7 WHERE account = 'A-3'";
    let error = client.batch_execute(one).await.expect_err("it has failed");
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    let error = client.batch_execute("ROLLBACK TO other").await.expect_err("there is none");
    assert_eq!(error.code(), Some(&SqlState::S_E_INVALID_SPECIFICATION));
    client.execute("ROLLBACK TO SAVEPOINT S", &[]).await.expect("it stands");
    client.batch_execute(one).await.expect("right");
    client.batch_execute("COMMIT").await.expect("right");
    let sql = "SELECT balance FROM account WHERE account = 'A-3'";
    assert_eq!(rows(&client.simple_query(sql).await.expect("right")), ["7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_before_the_first_shard_never_leaves_the_transaction_unseen() {
    let place = place().await;
    let client = place.connect().await;
    fill(&client, 20).await;
    let one = "UPDATE account SET balance = 7 WHERE account = 'A-3'";
    let text = "SELECT balance FROM account WHERE account = 'A-3'";
    for end in ["COMMIT AND CHAIN", "ROLLBACK AND CHAIN"] {
        client.batch_execute("BEGIN").await.expect("right");
        client.batch_execute(end).await.expect("nothing was done, and the next one has begun");
        client.batch_execute(one).await.expect("within it");
        client.batch_execute("ROLLBACK").await.expect("it is still open");
        assert_eq!(rows(&client.simple_query(text).await.expect("right")), ["3"], "{end}");
    }
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.expect("right");
    client.batch_execute(one).await.expect("right");
    client.batch_execute("COMMIT AND CHAIN").await.expect("on its only shard");
    client.batch_execute("UPDATE account SET balance = 9 WHERE account = 'A-3'").await.expect("y");
    let level =
        "SELECT current_setting('transaction_isolation') FROM account WHERE account = 'A-3'";
    assert_eq!(rows(&client.simple_query(level).await.expect("right")), ["repeatable read"]);
    client.batch_execute("ROLLBACK AND CHAIN").await.expect("right");
    client.batch_execute("ROLLBACK").await.expect("right");
    assert_eq!(rows(&client.simple_query(text).await.expect("right")), ["7"]);
    client.batch_execute("UPDATE account SET balance = 3 WHERE account = 'A-3'").await.expect("y");
    client.batch_execute("BEGIN; SELECT 1").await.expect("right");
    client.batch_execute("ROLLBACK").await.expect("right");
    client.batch_execute("BEGIN").await.expect("right");
    client.batch_execute("SET DateStyle = 'German'").await.expect("right");
    client.batch_execute("COMMIT").await.expect("right");
    let shown = rows(&client.simple_query("SHOW DateStyle").await.expect("right"));
    assert_eq!(shown, ["German, DMY"], "what was set is kept, though no shard was asked");
    assert_eq!(rows(&client.simple_query(text).await.expect("right")), ["3"]);
    client.batch_execute("BEGIN").await.expect("right");
    client.batch_execute("COMMIT AND NO CHAIN").await.expect("right");
    client.batch_execute(one).await.expect("by itself");
    assert_eq!(rows(&client.simple_query(text).await.expect("right")), ["7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_all_shards_are_merged_as_one_postgresql_would_answer() {
    let place = place().await;
    let client = place.connect().await;
    fill(&client, 60).await;
    let sum = client.query_one("SELECT count(*), sum(balance) FROM account", &[]).await;
    assert_eq!(sum.expect("right").get::<_, i64>(0), 60);
    let simple = client.simple_query("SELECT sum(balance) FROM account").await.expect("right");
    assert_eq!(rows(&simple), ["1770"]);
    let sql = "SELECT balance FROM account ORDER BY balance DESC LIMIT 5 OFFSET 2";
    let top = client.query(sql, &[]).await.expect("right");
    let top: Vec<i64> = top.iter().map(|row| row.get(0)).collect();
    assert_eq!(top, [57, 56, 55, 54, 53]);
    let many = (0..8).map(|_| client.query("SELECT account FROM account ORDER BY account", &[]));
    for answer in join_all(many).await {
        let names: Vec<String> = answer.expect("right").iter().map(|row| row.get(0)).collect();
        assert!(names.len() == 60 && names.is_sorted());
    }
    let fails = "SELECT 1 / (balance - 7) FROM account";
    let error = client.query(fails, &[]).await.expect_err("a division by zero");
    assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO));
    client.query("SELECT balance FROM account", &[]).await.expect("the session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_rightly_is_refused() {
    let place = place().await;
    let client = place.connect().await;
    fill(&client, 10).await;
    for (sql, wanted) in [
        ("UPDATE account SET balance = 0", "HF3104"),
        ("SELECT name FROM branch", "HF3104"),
        ("SELECT * FROM nowhere", "HF3103"),
        ("LISTEN a", "HF3211"),
        ("PREPARE TRANSACTION 'x'", "HF3211"),
        ("COPY account FROM STDIN", "HF3106"),
        ("COPY branch TO STDOUT", "HF3104"),
        ("DECLARE c CURSOR FOR SELECT account FROM account", "HF3111"),
        ("EXPLAIN ANALYZE DELETE FROM account", "HF3111"),
        ("TRUNCATE account", "HF3111"),
        ("ALTER TABLE account ADD COLUMN note text", "HF3111"),
        ("LOCK TABLE account", "HF3111"),
        (
            "DELETE FROM account WHERE account = 'A-1'; DELETE FROM account WHERE account = 'A-2'; DELETE FROM account WHERE account = 'A-3'",
            "HF3210",
        ),
    ] {
        let error = client.simple_query(sql).await.expect_err(sql);
        assert_eq!(code(&error), wanted, "{sql}");
        client.simple_query("SELECT 1").await.expect("the session goes on");
    }
    let in_turn = "SELECT * FROM account WHERE account = 'A-1'; SELECT * FROM account WHERE account = 'A-2'; SELECT * FROM account WHERE account = 'A-3'";
    let told = client.simple_query(in_turn).await.expect("one behind the other");
    assert_eq!(rows(&told), ["A-1", "A-2", "A-3"]);
    let error = client.query("SELECT name FROM branch", &[]).await.expect_err("no key");
    assert_eq!(code(&error), "HF3104");
    let error = client.execute("TRUNCATE account", &[]).await.expect_err("one source alone");
    assert_eq!(code(&error), "HF3111");
    let sink = client.copy_in::<_, bytes::Bytes>("COPY account FROM STDIN").await;
    assert_eq!(code(&sink.err().expect("rows of several sources")), "HF3106");
    let [one, two] = place.accounts().await;
    assert_eq!(one + two, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_told_and_not_executed() {
    let place = place().await;
    let client = place.connect().await;
    let sql = "EXPLAIN (ROUTE) INSERT INTO account (account, balance) VALUES ('A-1', 1)";
    let told = client.query(sql, &[]).await.expect("right");
    let told: Vec<(String, String)> = told.iter().map(|row| (row.get(0), row.get(1))).collect();
    let value = |what: &str| told.iter().find(|(name, _)| name == what).map(|(_, v)| v.as_str());
    assert_eq!((value("slot"), value("source")), (Some("638"), Some("pg-2")), "{told:?}");
    assert_eq!(place.accounts().await, [0, 0]);
    let located = client.simple_query("SELECT holdfast.locate('account', 'A-1')").await;
    assert_eq!(rows(&located.expect("right")), ["account"]);
    let slots = client.simple_query("SHOW HOLDFAST SLOTS").await.expect("right");
    assert_eq!(rows(&slots).len(), 4);
    let error = client.simple_query("EXPLAIN (ROUTE) SELECT name FROM branch").await;
    assert_eq!(code(&error.expect_err("it would be refused")), "HF3104");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_rules_are_taken_without_a_session_ending_and_wrong_ones_are_not() {
    let place = place().await;
    let client = place.connect().await;
    let source = async || {
        let told = client.simple_query("SHOW HOLDFAST SLOTS").await.expect("right");
        let row = told.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(format!("{:?} {:?}", row.get(4), row.get(5))),
            _ => None,
        });
        row.expect("there are slots")
    };
    assert_eq!(source().await, "Some(\"pg-1\") Some(\"1\")");
    let file = place.rules.path().join("rules.toml");
    std::fs::write(&file, "[group.wrong]").expect("the folder is ours");
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(source().await, "Some(\"pg-1\") Some(\"1\")");
    let swapped = RULES.replace("source = \"pg-1\"", "source = \"pg-9\"");
    let swapped = swapped.replace("source = \"pg-2\"", "source = \"pg-1\"");
    let swapped = swapped.replace("source = \"pg-9\"", "source = \"pg-2\"");
    std::fs::write(&file, swapped).expect("the folder is ours");
    let deadline = tokio::time::Instant::now() + fixture::PATIENCE;
    while source().await != "Some(\"pg-2\") Some(\"2\")" {
        assert!(tokio::time::Instant::now() < deadline, "{}", source().await);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let told = client.simple_query("EXPLAIN (ROUTE) SELECT * FROM account WHERE account = 'A-1'");
    assert!(!rows(&told.await.expect("right")).is_empty());
}
