//! A source of a primary and a replica that really follows it: who is written to, who is read from, and what a promotion changes.

mod fixture;

use std::{collections::HashMap, time::Duration};

use fixture::{PATIENCE, Running, Server, one_source};
use holdfast_shard_router::config::{Endpoint, RouterConfig, SourceConfig};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

/// A read that a replica may answer, and that says who did.
const WHO: &str = "SELECT setting FROM pg_settings WHERE name = 'port'";

fn config(servers: &[&Server]) -> RouterConfig {
    let address = |server: &&Server| Endpoint::parse(&format!("127.0.0.1:{}", server.port));
    one_source(SourceConfig {
        addresses: servers.iter().map(address).collect(),
        database: Some("postgres".to_owned()),
        user: Some("postgres".to_owned()),
        ..servers[0].source("main")
    })
}

async fn rows(client: &Client, sql: &str) -> Vec<SimpleQueryRow> {
    let answers = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let rows = answers.into_iter().filter_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.collect()
}

async fn text(client: &Client, sql: &str) -> String {
    let rows = rows(client, sql).await;
    rows.first().and_then(|row| row.get(0)).unwrap_or_default().to_owned()
}

async fn who(client: &Client) -> u16 {
    text(client, WHO).await.parse().expect("a port")
}

/// What the router says of each server: by its port, its role and the age of its rows.
async fn servers(client: &Client) -> HashMap<u16, (String, Option<u64>)> {
    let said = rows(client, "SHOW HOLDFAST SERVERS").await;
    let said = said.iter().map(|row| {
        let address = row.get("address").expect("a server has an address");
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let role = row.get("role").unwrap_or_default().to_owned();
        (port.expect("with a port"), (role, row.get("age_ms").and_then(|age| age.parse().ok())))
    });
    said.collect()
}

async fn until_servers(
    client: &Client,
    what: &str,
    wanted: impl Fn(&HashMap<u16, (String, Option<u64>)>) -> bool,
) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = servers(client).await;
        if wanted(&said) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {said:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn is(said: &HashMap<u16, (String, Option<u64>)>, port: u16, role: &str) -> bool {
    said.get(&port).is_some_and(|(said, _)| said == role)
}

async fn until_followed(client: &Client, primary: u16, replica: u16) {
    until_servers(client, "a primary and a replica of known age", |said| {
        is(said, primary, "primary") && said.get(&replica).is_some_and(|(_, age)| age.is_some())
    })
    .await;
}

/// Reads until `port` has answered; whoever else may be asked meanwhile.
async fn until_read_from(client: &Client, port: u16) {
    let deadline = Instant::now() + PATIENCE;
    while who(client).await != port {
        assert!(Instant::now() < deadline, "{port} is not read from");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn reads_go_to_a_replica_only_where_the_session_asks_and_it_is_fresh_enough() {
    let primary = Server::start().await;
    let admin = primary.connect("postgres").await.expect("it runs");
    admin.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.expect("a table");
    let replica = primary.replica().await;
    let router = Running::start(config(&[&primary, &replica])).await;
    let client = router.connect("postgres").await;
    until_followed(&client, primary.port, replica.port).await;

    // By default never.
    for _ in 0..5 {
        assert_eq!(who(&client).await, primary.port);
    }
    client.batch_execute("SET holdfast.max_staleness = '1h'").await.expect_err("no such unit");
    client.batch_execute("SET holdfast.max_staleness = '600s'").await.expect("a time");
    until_read_from(&client, replica.port).await;
    let pools = rows(&client, "SHOW HOLDFAST POOLS").await;
    assert!(pools.iter().any(|row| row.get("role") == Some("replica")), "{pools:?}");

    // What writes, locks or might, and what is in a transaction, goes to the primary: a replica would refuse it.
    client.batch_execute("INSERT INTO t VALUES (2)").await.expect("a write");
    client.simple_query("SELECT a FROM t FOR UPDATE").await.expect("locks");
    client.batch_execute("SELECT nextval(pg_get_serial_sequence('t', 'a'))").await.expect("NULL");
    client.batch_execute("BEGIN").await.expect("begin");
    assert_eq!(who(&client).await, primary.port);
    client.batch_execute("INSERT INTO t VALUES (3)").await.expect("a write");
    client.batch_execute("COMMIT").await.expect("commit");

    // Prepared, and in one pipeline with a write between reads.
    let read = client.prepare(WHO).await.expect("it is prepared");
    let write = client.prepare("INSERT INTO t VALUES ($1)").await.expect("it is prepared");
    let (one, done, other) = tokio::join!(
        client.query_one(&read, &[]),
        client.execute(&write, &[&4_i32]),
        client.query_one(&read, &[])
    );
    assert_eq!(done.expect("a write"), 1);
    for row in [one.expect("a read"), other.expect("a read")] {
        let port: String = row.get(0);
        assert!([primary.port, replica.port].contains(&port.parse().expect("a port")), "{port}");
    }

    // A replica that has received all and replayed nothing is as old as it is.
    let on_replica = replica.connect("postgres").await.expect("it runs");
    on_replica.batch_execute("SELECT pg_wal_replay_pause()").await.expect("it pauses");
    client.batch_execute("INSERT INTO t VALUES (5)").await.expect("a write");
    let written = Instant::now();
    let deadline = Instant::now() + PATIENCE;
    loop {
        // It lacks a row that was there at `written`, so whatever is told of its age must not be less than what has passed since.
        let passed = u64::try_from(written.elapsed().as_millis()).expect("seconds");
        let age = servers(&client).await.get(&replica.port).and_then(|(_, age)| *age);
        assert!(age.is_none_or(|age| age >= passed), "{age:?} ms, and {passed} ms have passed");
        if age.is_some_and(|age| age > 1_500) {
            break;
        }
        assert!(Instant::now() < deadline, "a replica that grows old: {age:?}");
        sleep(Duration::from_millis(20)).await;
    }
    client.batch_execute("SET holdfast.max_staleness = '1s'").await.expect("a time");
    for _ in 0..10 {
        let newest = text(&client, "SELECT max(a) FROM t").await;
        assert_eq!(newest, "5", "a replica that is older than a second answered");
    }
    on_replica.batch_execute("SELECT pg_wal_replay_resume()").await.expect("it goes on");
    client.batch_execute("SET holdfast.max_staleness = '600s'").await.expect("a time");
    until_read_from(&client, replica.port).await;

    // Without its replica the source goes on.
    drop(replica);
    for _ in 0..5 {
        let deadline = Instant::now() + PATIENCE;
        // A read that was under way there is told that its connection was lost.
        while client.simple_query(WHO).await.is_err() {
            assert!(Instant::now() < deadline, "the primary is not read from");
        }
        assert_eq!(who(&client).await, primary.port);
    }
}

#[tokio::test]
async fn a_promoted_replica_is_followed_and_the_former_primary_is_never_written_to() {
    let mut primary = Server::start().await;
    let admin = primary.connect("postgres").await.expect("it runs");
    admin.batch_execute("CREATE TABLE t (a int)").await.expect("a table");
    let replica = primary.replica().await;
    let router = Running::start(config(&[&primary, &replica])).await;
    let client = router.connect("postgres").await;
    until_followed(&client, primary.port, replica.port).await;
    client.batch_execute("BEGIN; ROLLBACK").await.expect("a session");
    client.batch_execute("BEGIN").await.expect("begin");
    client.batch_execute("INSERT INTO t VALUES (1)").await.expect("a write");

    // Promoted while the other still runs and takes writes: the worst case.
    let promoted = replica.connect("postgres").await.expect("it runs");
    promoted.batch_execute("SELECT pg_promote()").await.expect("it is promoted");
    let watcher = router.connect("postgres").await;
    let (old, new) = (primary.port, replica.port);
    let turned = |said: &HashMap<_, _>| is(said, new, "primary") && is(said, old, "former primary");
    until_servers(&watcher, "the promoted one is followed", &turned).await;
    let refused = client.batch_execute("COMMIT").await.expect_err("it would be lost");
    let refused = refused.as_db_error().expect("an answer");
    assert_eq!(refused.code().code(), "40001");
    assert!(refused.message().starts_with("HF3226"), "{refused:?}");
    client.batch_execute("INSERT INTO t VALUES (2)").await.expect("the session goes on");
    assert_eq!(who(&client).await, replica.port);

    // It goes away and comes back, and still takes writes; nobody sends it any.
    primary.start_again().await;
    until_servers(&watcher, "the former primary is back", &turned).await;
    for n in 3..20 {
        client.batch_execute(&format!("INSERT INTO t VALUES ({n})")).await.expect("a write");
    }
    // A router that starts now, and is told of the former one first, sees the newer timeline.
    let later = Running::start(config(&[&primary, &replica])).await;
    let fresh = later.connect("postgres").await;
    fresh.batch_execute("INSERT INTO t VALUES (20)").await.expect("a write");
    let admin = primary.connect("postgres").await.expect("it runs again");
    assert_eq!(text(&admin, "SELECT count(*) FROM t").await, "0");
    assert_eq!(text(&promoted, "SELECT count(*) FROM t").await, "19");
}

#[tokio::test]
async fn a_primary_that_dies_is_waited_for_and_its_successor_is_written_to() {
    let primary = Server::start().await;
    let admin = primary.connect("postgres").await.expect("it runs");
    admin.batch_execute("CREATE TABLE t (a int)").await.expect("a table");
    let replica = primary.replica().await;
    // The primary may be any of the hosts.
    let router = Running::start(config(&[&replica, &primary])).await;
    let client = router.connect("postgres").await;
    until_followed(&client, primary.port, replica.port).await;
    client.batch_execute("INSERT INTO t VALUES (1)").await.expect("a write");
    drop(admin);
    drop(primary);
    let promoted = replica.connect("postgres").await.expect("it runs");
    promoted.batch_execute("SELECT pg_promote()").await.expect("it is promoted");
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = client.batch_execute("INSERT INTO t VALUES (2)").await {
        let told = error.as_db_error().expect("the session lives").message().to_owned();
        assert!(told.starts_with("HF320") || told.starts_with("HF3227"), "{told}");
        assert!(Instant::now() < deadline, "{told}");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(who(&client).await, replica.port);
}

#[tokio::test]
async fn a_server_of_another_cluster_is_not_used() {
    let (ours, stranger) = tokio::join!(Server::start(), Server::start());
    let router = Running::start(config(&[&ours, &stranger])).await;
    let client = router.connect("postgres").await;
    until_servers(&client, "a stranger", |said| {
        is(said, ours.port, "primary") && is(said, stranger.port, "of another cluster")
    })
    .await;
    assert_eq!(who(&client).await, ours.port);
}

#[tokio::test]
async fn an_account_without_rights_finds_the_primary_and_reads_from_no_replica() {
    let primary = Server::start().await;
    let admin = primary.connect("postgres").await.expect("it runs");
    admin.batch_execute("CREATE ROLE plain LOGIN").await.expect("a role");
    let replica = primary.replica().await;
    let mut config = config(&[&primary, &replica]);
    config.sources[0].user = Some("plain".to_owned());
    let router = Running::start(config).await;
    let client = router.connect("postgres").await;
    until_servers(&client, "a primary and a replica", |said| {
        is(said, primary.port, "primary") && is(said, replica.port, "replica")
    })
    .await;
    client.batch_execute("SET holdfast.max_staleness = '600s'").await.expect("a time");
    let deadline = Instant::now() + Duration::from_millis(500);
    while Instant::now() < deadline {
        assert_eq!(who(&client).await, primary.port, "the replica's age cannot be known");
    }
    admin.batch_execute("GRANT pg_read_all_stats TO plain").await.expect("it is granted");
    until_read_from(&client, replica.port).await;
}
