//! COPY through a router into tables on several sources: each row where its key says, all of them or none, whatever fails on the way.

use std::{io::Write as _, process::Stdio};

use anyhow::ensure;
use bytes::Bytes;
use futures::{SinkExt as _, TryStreamExt as _};
use holdfast_chaos_tests::{SOON, Sharded, until};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio_postgres::{Client, error::SqlState};

async fn copy_in(
    client: &Client,
    sql: &str,
    pieces: &[Bytes],
) -> Result<u64, tokio_postgres::Error> {
    let sink = client.copy_in::<_, Bytes>(sql).await?;
    let mut sink = std::pin::pin!(sink);
    for piece in pieces {
        // It may have failed already; the end says how.
        if sink.send(piece.clone()).await.is_err() {
            break;
        }
    }
    sink.finish().await
}

fn csv(rows: impl Iterator<Item = (String, i64)>) -> Vec<Bytes> {
    rows.map(|(id, balance)| Bytes::from(format!("{balance},{id}\n"))).collect()
}

async fn counts(place: &Sharded) -> anyhow::Result<[i64; 2]> {
    let mut counts = [0; 2];
    for (count, source) in counts.iter_mut().zip(place.sources().await?) {
        *count = source.query_one("SELECT count(*) FROM account", &[]).await?.get(0);
    }
    Ok(counts)
}

async fn nothing_is_left(place: &Sharded) -> anyhow::Result<()> {
    until("no row and nothing prepared is left", SOON, async || {
        let none = place.prepared().await.ok()? == 0 && counts(place).await.ok()? == [0, 0];
        none.then_some(())
    })
    .await
}

const INTO: &str = "COPY account (balance, id) FROM STDIN (FORMAT csv)";

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_copied_into_several_sources_or_into_none() -> anyhow::Result<()> {
    let mut place = Sharded::start().await?;
    let client = place.connect(0).await?;
    client.batch_execute("SET holdfast.read_own_writes = on").await?;
    a_bad_row_a_failure_or_a_client_that_leaves_keep_none(&place, &client).await?;
    a_transaction_has_the_last_word(&place, &client).await?;
    all_rows_lie_where_their_keys_say(&place, &client).await?;
    psql_copies_both_ways(&place).await?;
    reference_tables_get_every_row(&place, &client).await?;
    clear(&place).await?;
    a_router_that_dies_before_the_decision_keeps_none(&mut place).await
}

async fn clear(place: &Sharded) -> anyhow::Result<()> {
    for source in place.sources().await? {
        source.batch_execute("DELETE FROM account").await?;
    }
    Ok(())
}

async fn a_bad_row_a_failure_or_a_client_that_leaves_keep_none(
    place: &Sharded,
    client: &Client,
) -> anyhow::Result<()> {
    let good = |count: i64| (0..count).map(|n| (format!("c-{n}"), n));
    let below = csv(good(400).chain([("c-400".to_owned(), -1)]));
    let error = copy_in(client, INTO, &below).await.expect_err("a check fails");
    ensure!(error.code() == Some(&SqlState::CHECK_VIOLATION), "{error}");
    let twice = csv(good(400).chain([("c-7".to_owned(), 1)]));
    let error = copy_in(client, INTO, &twice).await.expect_err("it is there already");
    ensure!(error.code() == Some(&SqlState::UNIQUE_VIOLATION), "{error}");
    let keyless = csv(good(400).chain([(String::new(), 1)]));
    let error = copy_in(client, INTO, &keyless).await.expect_err("NULL is no key");
    ensure!(error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE), "{error}");
    nothing_is_left(place).await?;
    // A source ends the connection.
    let sink = client.copy_in::<_, Bytes>(INTO).await?;
    let mut sink = std::pin::pin!(sink);
    for piece in csv(good(2_000)) {
        sink.send(piece).await?;
    }
    let [_, second] = place.sources().await?;
    let copying = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND query LIKE 'COPY account%' AND state = 'active'";
    until("a COPY is found and ended", SOON, async || {
        (second.execute(copying, &[]).await.ok()? > 0).then_some(())
    })
    .await?;
    let error = sink.as_mut().finish().await.expect_err("half of it is gone");
    ensure!(error.code() == Some(&SqlState::CONNECTION_FAILURE), "{error}");
    nothing_is_left(place).await?;
    // The client leaves without a word.
    let leaving = place.connect(0).await?;
    let sink = leaving.copy_in::<_, Bytes>(INTO).await?;
    let mut sink = Box::pin(sink);
    for piece in csv(good(2_000)) {
        sink.send(piece).await?;
    }
    drop((sink, leaving));
    nothing_is_left(place).await
}

async fn a_transaction_has_the_last_word(place: &Sharded, client: &Client) -> anyhow::Result<()> {
    let some = |from: i64| csv((from..from + 50).map(|n| (format!("t-{n}"), n)));
    client.batch_execute("BEGIN").await?;
    ensure!(copy_in(client, INTO, &some(0)).await? == 50);
    client.batch_execute("ROLLBACK").await?;
    nothing_is_left(place).await?;
    client.batch_execute("BEGIN").await?;
    client.batch_execute("SAVEPOINT s").await?;
    ensure!(copy_in(client, INTO, &some(0)).await? == 50);
    client.batch_execute("ROLLBACK TO s").await?;
    ensure!(copy_in(client, INTO, &some(100)).await? == 50);
    client.batch_execute("COMMIT").await?;
    ensure!(counts(place).await?.iter().sum::<i64>() == 50);
    clear(place).await
}

async fn all_rows_lie_where_their_keys_say(place: &Sharded, client: &Client) -> anyhow::Result<()> {
    let rows: String = (0..3_000).map(|n| format!("\"a\n{n}\",{n}\n")).collect();
    let stream = format!("id,balance\n{rows}");
    let pieces: Vec<Bytes> = stream.as_bytes().chunks(777).map(Bytes::copy_from_slice).collect();
    let into = "COPY account FROM STDIN WITH CSV HEADER";
    ensure!(copy_in(client, into, &pieces).await? == 3_000);
    let [one, two] = counts(place).await?;
    ensure!(one > 1_000 && two > 1_000 && one + two == 3_000, "{one} and {two}");
    ensure!(place.total().await? == 2_999 * 1_500);
    for n in (0..3_000_i64).step_by(97) {
        let sql = "SELECT balance FROM account WHERE id = $1";
        let row = client.query_one(sql, &[&format!("a\n{n}")]).await?;
        ensure!(row.get::<_, i64>(0) == n, "{n}");
    }
    let out = client.copy_out("COPY account TO STDOUT (FORMAT csv, HEADER)").await?;
    let pieces: Vec<Bytes> = out.try_collect().await?;
    ensure!(pieces.len() == 3_001 && pieces[0] == "id,balance\n", "{:?}", pieces.first());
    clear(place).await
}

async fn psql_copies_both_ways(place: &Sharded) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (from, to) = (folder.path().join("from.csv"), folder.path().join("to.csv"));
    let rows: String = (0..200).map(|n| format!("p-{n},{n}\n")).collect();
    std::fs::write(&from, &rows)?;
    let commands = format!(
        "\\copy account from '{}' csv\n\\copy account to '{}' csv\n\
         copy account (id, balance) from stdin;\np-200\t200\n\\.\n",
        from.display(),
        to.display()
    );
    let port = place.port(0).to_string();
    let psql = tokio::task::spawn_blocking(move || {
        let mut psql = std::process::Command::new("psql");
        psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", &port]);
        psql.args(["-U", "holdfast", "-d", "bank"]);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = psql.spawn()?;
        child.stdin.take().expect("it was asked for").write_all(commands.as_bytes())?;
        child.wait_with_output()
    });
    let told = psql.await??;
    let (said, complained) =
        (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    ensure!(told.status.success() && complained.is_empty(), "{complained}");
    ensure!(said == "COPY 200\nCOPY 200\nCOPY 1\n", "{said}");
    let mut copied: Vec<String> =
        std::fs::read_to_string(&to)?.lines().map(str::to_owned).collect();
    let mut wanted: Vec<&str> = rows.lines().collect();
    copied.sort();
    wanted.sort_unstable();
    ensure!(copied == wanted);
    until("psql's rows are there", SOON, async || {
        (counts(place).await.ok()?.iter().sum::<i64>() == 201).then_some(())
    })
    .await?;
    clear(place).await
}

async fn reference_tables_get_every_row(place: &Sharded, client: &Client) -> anyhow::Result<()> {
    let rows = [Bytes::from("EUR\tEuro\nCHF\tFranken\n")];
    ensure!(copy_in(client, "COPY currency FROM STDIN", &rows).await? == 2);
    let error = copy_in(client, "COPY currency FROM STDIN", &rows).await.expect_err("again");
    ensure!(error.code() == Some(&SqlState::UNIQUE_VIOLATION), "{error}");
    for source in place.sources().await? {
        let sql = "SELECT count(*) FROM currency";
        ensure!(source.query_one(sql, &[]).await?.get::<_, i64>(0) == 2);
    }
    Ok(())
}

async fn a_router_that_dies_before_the_decision_keeps_none(
    place: &mut Sharded,
) -> anyhow::Result<()> {
    let client = place.connect(0).await?;
    place.order(0, "router-prepared")?;
    let rows = csv((0..500).map(|n| (format!("k-{n}"), n)));
    copy_in(&client, INTO, &rows).await.expect_err("nobody decided");
    place.routers[0].ended(SOON).await?;
    nothing_is_left(place).await
}

/// Streams that PostgreSQL may or may not take, by one source and by a router: the same rows, or an error or a refusal.
#[tokio::test(flavor = "multi_thread")]
async fn what_postgresql_takes_is_what_the_router_takes() -> anyhow::Result<()> {
    let place = Sharded::start().await?;
    place.postgres.create("whole").await?;
    let whole = place.postgres.connect("whole").await?;
    let table = "(id text PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0))";
    whole.batch_execute(&format!("CREATE TABLE account {table}")).await?;
    let seed = rand::rng().random::<u64>();
    let mut random = StdRng::seed_from_u64(seed);
    let (mut taken, mut refused) = (0, 0);
    for round in 0..240 {
        let csv = random.random_bool(0.5);
        let options = match (csv, random.random_range(0..3)) {
            (false, 0) => "",
            (false, 1) => "(DELIMITER '|', NULL 'x')",
            (false, _) => "NULL AS ''",
            (true, 0) => "CSV",
            (true, 1) => "(FORMAT csv, ESCAPE '\\', HEADER)",
            (true, _) => "CSV QUOTE '''' DELIMITER '|' NULL 'n'",
        };
        let sql = format!("COPY account FROM STDIN {options}");
        let stream = stream(&mut random, options);
        let pieces: Vec<Bytes> = stream.chunks(13).map(Bytes::copy_from_slice).collect();
        // A COPY that fails may leave its driver out of step.
        let router = place.connect(0).await?;
        router.batch_execute("SET holdfast.read_own_writes = on").await?;
        let wanted = copy_in(&whole, &sql, &pieces).await;
        let told = copy_in(&router, &sql, &pieces).await;
        let shown = String::from_utf8_lossy(&stream);
        let why = format!("seed {seed}, round {round}: {sql}\n{shown:?}");
        match (&wanted, &told) {
            (Ok(wanted), Ok(told)) => {
                taken += 1;
                ensure!(wanted == told, "{wanted} and {told}: {why}");
            }
            (Err(_), Ok(_)) => anyhow::bail!("only the router takes it: {why}"),
            (_, Err(error)) => {
                ensure!(error.as_db_error().is_some(), "{error}: {why}");
                refused += usize::from(wanted.is_ok());
            }
        }
        let rows = "SELECT id, balance FROM account ORDER BY id COLLATE \"C\"";
        let read = async |client: &Client| {
            let rows = client.query(rows, &[]).await?;
            let pair = |row: &tokio_postgres::Row| (row.get(0), row.get(1));
            anyhow::Ok(rows.iter().map(pair).collect::<Vec<(String, i64)>>())
        };
        if told.is_ok() {
            let [one, two] = place.sources().await?;
            let mut both = read(&one).await?;
            both.extend(read(&two).await?);
            both.sort();
            let mut wanted = read(&whole).await?;
            wanted.sort();
            ensure!(both == wanted, "{both:?} and {wanted:?}: {why}");
        } else {
            ensure!(counts(&place).await? == [0, 0], "{why}");
        }
        clear(&place).await?;
        whole.batch_execute("DELETE FROM account").await?;
    }
    println!("{taken} of 240 streams taken by both, {refused} by PostgreSQL alone");
    ensure!(taken > 60, "{taken} streams were taken: seed {seed}");
    Ok(())
}

/// A few rows, most of them right, in one of the ways that lines end.
fn stream(random: &mut StdRng, options: &str) -> Vec<u8> {
    let delimiter = match (options.contains('|'), options.to_lowercase().contains("csv")) {
        (true, _) => "|",
        (false, true) => ",",
        (false, false) => "\t",
    };
    let quote = if options.contains("QUOTE") { "'" } else { "\"" };
    let end = ["\n", "\r\n", "\r"][random.random_range(0..3)];
    let mut out =
        if options.contains("HEADER") { format!("id,balance{end}") } else { String::new() };
    for row in 0..random.random_range(1..9) {
        let text = options.to_lowercase().contains("csv");
        let mut key = format!("k{row}");
        if random.random_bool(0.4) {
            let odd =
                ["\\t", "\\\\", "\\101", "\\x42z", " ", "é", "\\N", "\\.", "n", "x", "'", "\""];
            key.push_str(odd[random.random_range(0..odd.len())]);
        }
        if text && random.random_bool(0.5) {
            let inner = ["", ",", "\n", "|", "\r", "''", "\"\"", "\\\""][random.random_range(0..8)];
            key = format!("{quote}{key}{inner}{quote}");
        }
        let wrong = random.random_bool(0.03);
        let balance = if wrong { "many".to_owned() } else { row.to_string() };
        let end = if random.random_bool(0.01) { "\n" } else { end };
        out.push_str(&format!("{key}{delimiter}{balance}{end}"));
    }
    if random.random_bool(0.2) {
        out.push_str(&format!("\\.{end}"));
    }
    if random.random_bool(0.2) {
        out.truncate(out.trim_end_matches(['\r', '\n']).len());
    }
    out.into_bytes()
}
