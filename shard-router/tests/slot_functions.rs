//! Slot functions beside PostgreSQL: what it can compute itself, it computes alike.

mod fixture;

use fixture::Server;
use holdfast_route::{Algorithm, Key};
use tokio_postgres::Client;

/// The slot of `$1` in PostgreSQL's own words, for the functions that it has words for.
fn in_sql(algorithm: &Algorithm) -> Option<&'static str> {
    match algorithm {
        // `substr` is a checksum as `crc32c` is, for which PostgreSQL 15 has no function.
        Algorithm::Crc32c | Algorithm::Substr(_) => None,
        Algorithm::Modulo => Some("($1::text)::numeric % 1024"),
        Algorithm::Digits(_) => Some("substr($1::text, 3, 4)::numeric % 1024"),
        Algorithm::PgHashInt8 => Some(
            "(SELECT s FROM generate_series(0, 1023) s WHERE satisfies_hash_partition('by_int8'::regclass, 1024, s, ($1::text)::bigint))",
        ),
        Algorithm::PgHashText => Some(
            "(SELECT s FROM generate_series(0, 1023) s WHERE satisfies_hash_partition('by_text'::regclass, 1024, s, $1::text))",
        ),
        Algorithm::Date(_) => Some(
            "(((extract(year FROM ($1::text)::date) - 1970) * 12 + extract(month FROM ($1::text)::date) - 1) % 1024 + 1024) % 1024",
        ),
        Algorithm::Range(_) => {
            Some("width_bucket(($1::text)::bigint, ARRAY[0, 1000, 50000]::bigint[])")
        }
        Algorithm::List(_) => Some(
            "(SELECT place - 1 FROM unnest(ARRAY['DE,AT', 'FR', 'San Marino,IT']) WITH ORDINALITY AS l(item, place) WHERE $1::text = ANY (string_to_array(item, ',')))",
        ),
    }
}

async fn asked(client: &Client, sql: &str, key: &str) -> String {
    let sql = format!("SELECT ({sql})::int::text");
    let row = client.query_one(&sql, &[&key]).await;
    row.unwrap_or_else(|error| panic!("{sql} of {key:?}: {error:?}")).get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_vector_is_what_postgresql_says() {
    let server = Server::shared().await;
    let client = server.connect(&server.database().await).await.expect("it listens");
    let tables = "CREATE TABLE by_int8 (k bigint) PARTITION BY HASH (k); CREATE TABLE by_text (k text) PARTITION BY HASH (k)";
    client.batch_execute(tables).await.expect("right");
    let mut compared = 0;
    for algorithm in Algorithm::all() {
        let Some(sql) = in_sql(&algorithm) else { continue };
        for (key, slot) in algorithm.test_vectors() {
            let told = asked(&client, sql, key).await;
            assert_eq!(told, slot.to_string(), "{} of {key:?}", algorithm.written());
            compared += 1;
        }
    }
    assert!(compared >= 40, "{compared} vectors were compared");
}

/// Beyond the vectors: keys around every turn, in one statement for each function.
#[tokio::test(flavor = "multi_thread")]
async fn periods_and_ranges_are_counted_as_postgresql_counts_them() {
    let server = Server::shared().await;
    let client = server.connect(&server.database().await).await.expect("it listens");
    let days = "SELECT d::date::text, (((d::date - '1970-01-01'::date) % 1024 + 1024) % 1024)::int::text, ((((date_trunc('week', d)::date - '1969-12-29'::date) / 7) % 1024 + 1024) % 1024)::int::text, (((extract(year FROM d) - 1970)::int % 1024 + 1024) % 1024)::int::text FROM generate_series(timestamp '1890-02-25', timestamp '2110-03-03', interval '37 days') d";
    let rows = client.query(days, &[]).await.expect("right");
    assert!(rows.len() > 2_000);
    let slot = |function: &str, key: &str| {
        let function = Algorithm::named(function).expect("it is one");
        function.slot(Key::parse(key).expect("a key")).expect("it has a slot").to_string()
    };
    for row in rows {
        let day: String = row.get(0);
        for (at, function) in ["date(day)", "date(week)", "date(year)"].into_iter().enumerate() {
            assert_eq!(slot(function, &day), row.get::<_, String>(at + 1), "{function} of {day}");
        }
    }
    let ranges = "SELECT k::text, width_bucket(k, ARRAY[-300, -5, 0, 7, 511])::text FROM generate_series(-400, 600) k";
    for row in client.query(ranges, &[]).await.expect("right") {
        let key: String = row.get(0);
        let told: String = row.get(1);
        assert_eq!(slot("range(-300, -5, 0, 7, 511)", &key), told, "{key}");
    }
}
