//! The outbox on a real PostgreSQL: bounds, order of commit, and who may publish.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap is an assertion")]

mod postgres;

use std::time::Duration;

use holdfast_client::ClientOptions;
use holdfast_tcc_agent::{
    Database,
    outbox::{BLOCKED_SHOWN_MAX, Relay, Routes, Standing, install_outbox, standing},
};
use postgres::Postgres;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const PUBLISH: &str = "SELECT holdfast.publish($1, $2, 'kind', $3::text::jsonb)::text";

async fn publish(client: &Client, topic: &str, key: &str, payload: &str) -> Result<String, String> {
    let row = client.query_one(PUBLISH, &[&topic, &key, &payload]).await;
    row.map(|row| row.get(0)).map_err(|error| error.as_db_error().unwrap().message().to_owned())
}

async fn places(client: &Client, key: &str) -> Vec<String> {
    let rows = "SELECT payload::text FROM holdfast.outbox WHERE aggregateid = $1 ORDER BY position";
    client.query(rows, &[&key]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_lives_and_dies_with_its_local_transaction_and_keys_are_in_order_of_commit() {
    let server = Postgres::start();
    let (first, second) = (server.connect().await, server.connect().await);
    install_outbox(&first).await.unwrap();
    install_outbox(&second).await.unwrap();

    first.batch_execute("BEGIN").await.unwrap();
    publish(&first, "points", "k", "1").await.unwrap();
    // The same key waits for the end of the one before; other keys and topics do not.
    second.batch_execute("SET lock_timeout = '200ms'").await.unwrap();
    let waits = publish(&second, "points", "k", "2").await.unwrap_err();
    assert!(waits.contains("lock timeout"), "{waits}");
    publish(&second, "points", "other", "2").await.unwrap();
    publish(&second, "mail", "k", "9").await.unwrap();
    first.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(places(&second, "k").await, ["9"]);

    // A savepoint takes its messages with it.
    first.batch_execute("BEGIN").await.unwrap();
    publish(&first, "points", "k", "3").await.unwrap();
    first.batch_execute("SAVEPOINT s").await.unwrap();
    publish(&first, "points", "k", "4").await.unwrap();
    first.batch_execute("ROLLBACK TO s").await.unwrap();
    publish(&first, "points", "k", "5").await.unwrap();
    first.batch_execute("COMMIT").await.unwrap();
    publish(&second, "points", "k", "6").await.unwrap();
    assert_eq!(places(&second, "k").await, ["9", "3", "5", "6"]);

    // A row written by hand takes its place like any other, whatever it says of itself.
    let by_hand = "INSERT INTO holdfast.outbox (aggregatetype, aggregateid, type, payload, position, stuck) \
                   VALUES ('points', 'k', 'kind', '7', -5, 'x')";
    second.batch_execute(by_hand).await.unwrap();
    assert_eq!(places(&second, "k").await, ["9", "3", "5", "6", "7"]);
    let now = standing(&first).await.unwrap();
    assert_eq!((now.pending, now.blocked.len(), now.relayed), (6, 0, false));
    assert!(now.oldest_age_ms.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_is_refused_with_its_numbers_at_the_limit_and_one_past_it() {
    let server = Postgres::start();
    let client = server.connect().await;
    install_outbox(&client).await.unwrap();
    // A name in front of ours changes nothing.
    let shadow = "CREATE SCHEMA evil; CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE sql AS 'SELECT 1'; \
                  SET search_path = evil, pg_catalog";
    client.batch_execute(shadow).await.unwrap();
    let text = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
    let long = |length: usize| "k".repeat(length);

    publish(&client, &long(64), &long(255), &text(61_440)).await.unwrap();
    let cases = [
        (long(65), "k".to_owned(), text(9), "not a topic"),
        ("a b".to_owned(), "k".to_owned(), text(9), "not a topic"),
        ("t".to_owned(), long(256), text(9), "the key has 256 bytes"),
        ("t".to_owned(), String::new(), text(9), "the key has 0 bytes"),
        ("t".to_owned(), "k".to_owned(), text(61_441), "the payload has 61441 bytes"),
    ];
    for (topic, key, payload, expected) in cases {
        let refused = publish(&client, &topic, &key, &payload).await.unwrap_err();
        assert!(refused.starts_with("HF4123") && refused.contains(expected), "{refused}");
    }
    let kinds = [("''", "the kind has 0 bytes"), ("repeat('k', 256)", "the kind has 256 bytes")];
    for (kind, expected) in kinds {
        let sql = format!("SELECT holdfast.publish('t', 'k', {kind}, '1')");
        let error = client.batch_execute(&sql).await.unwrap_err();
        assert!(error.as_db_error().unwrap().message().contains(expected), "{error}");
    }
    let traced = "SELECT holdfast.publish('t', 'k', 'kind', '1', 'x')";
    let error = client.batch_execute(traced).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("not a traceparent"), "{error}");
    // The table itself lets nothing past them either.
    let by_hand = "INSERT INTO holdfast.outbox (aggregatetype, aggregateid, type, payload) VALUES ('a b', 'k', 'k', '1')";
    let error = client.batch_execute(by_hand).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("hf4123_topic"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_seen_outlives_a_crash_though_its_session_does_not_sync() {
    let server = Postgres::start();
    let client = server.connect().await;
    install_outbox(&client).await.unwrap();
    client.batch_execute("SET synchronous_commit = off; BEGIN").await.unwrap();
    publish(&client, "points", "k", "1").await.unwrap();
    let shown = client.query_one("SHOW synchronous_commit", &[]).await.unwrap();
    assert_eq!(shown.get::<_, &str>(0), "local");
    client.batch_execute("COMMIT").await.unwrap();
    server.crash_and_restart();
    assert_eq!(places(&server.connect().await, "k").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_counts_and_shows_up_to_its_limits_and_not_one_more() {
    let server = Postgres::start();
    let client = server.connect().await;
    install_outbox(&client).await.unwrap();
    let add = |count: i64| {
        format!(
            "INSERT INTO holdfast.outbox (aggregatetype, aggregateid, type, payload) \
             SELECT 't', 'k', 'kind', '1' FROM generate_series(1, {count})"
        )
    };
    let block = "UPDATE holdfast.outbox SET stuck = 'HF4120' WHERE stuck IS NULL";
    client.batch_execute(&add(BLOCKED_SHOWN_MAX)).await.unwrap();
    client.batch_execute(block).await.unwrap();
    let shown = |standing: &Standing| standing.blocked.len();
    let all = usize::try_from(BLOCKED_SHOWN_MAX).unwrap();
    assert_eq!(shown(&standing(&client).await.unwrap()), all);
    client.batch_execute(&add(1)).await.unwrap();
    client.batch_execute(block).await.unwrap();
    let one_past = standing(&client).await.unwrap();
    assert_eq!((shown(&one_past), one_past.pending), (all, 1_001));

    client.batch_execute(&add(100_000 - 1_001)).await.unwrap();
    assert_eq!(standing(&client).await.unwrap().pending, 100_000);
    let one_less =
        "DELETE FROM holdfast.outbox WHERE id = (SELECT id FROM holdfast.outbox LIMIT 1)";
    client.batch_execute(one_less).await.unwrap();
    assert_eq!(standing(&client).await.unwrap().pending, 99_999);
    client.batch_execute(&add(2)).await.unwrap();
    assert_eq!(standing(&client).await.unwrap().pending, 100_000, "one more is not counted");
}

/// A relay without coordinators, which none of these messages needs.
fn relay(server: &Postgres) -> Relay {
    let client = holdfast_client::Client::lazy(["127.0.0.1:1"], ClientOptions::default()).unwrap();
    let routes = Routes::parse(["other=nobody"]).unwrap();
    Relay::new(Database::new(server.config(), None), client, routes)
}

async fn until(reached: impl AsyncFn() -> bool) {
    let looks = async {
        while !reached().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), looks).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_stopped_while_its_row_is_locked_waits_for_five_seconds_and_the_next_one_goes_on()
 {
    let server = Postgres::start();
    let (holder, watcher) = (server.connect().await, server.connect().await);
    install_outbox(&holder).await.unwrap();
    publish(&holder, "points", "k", "1").await.unwrap();
    holder.batch_execute("BEGIN; SELECT FROM holdfast.outbox FOR UPDATE").await.unwrap();

    // The topic has no route, and the relay waits to write that down.
    let stop = CancellationToken::new();
    let stopped = tokio::spawn(relay(&server).run(stop.clone()));
    until(async || {
        let waits = "SELECT FROM pg_catalog.pg_stat_activity \
                     WHERE application_name = 'holdfast outbox relay' AND wait_event_type = 'Lock'";
        !watcher.query(waits, &[]).await.unwrap().is_empty()
    })
    .await;
    stop.cancel();
    let begun = Instant::now();
    timeout(Duration::from_secs(15), stopped).await.unwrap().unwrap().unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(places(&watcher, "k").await, ["1"]);

    let stop = CancellationToken::new();
    let next = tokio::spawn(relay(&server).run(stop.clone()));
    holder.batch_execute("ROLLBACK").await.unwrap();
    until(async || {
        let now = standing(&watcher).await.unwrap();
        now.relayed && now.blocked.len() == 1
    })
    .await;
    stop.cancel();
    timeout(Duration::from_secs(15), next).await.unwrap().unwrap().unwrap();
}
