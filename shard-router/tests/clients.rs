//! Real clients through the router: what they send is not what a test of ours would think of.

mod fixture;

use std::{path::Path, process::Output};

use fixture::{Running, Server, one_source};
use tokio::{io::AsyncWriteExt as _, process::Command};

struct Place {
    router: Running,
    server: std::sync::Arc<Server>,
    database: String,
}

/// pgbench prepares blocking, a thread for several clients: each of them has to find a server.
async fn place() -> Place {
    place_of(10).await
}

async fn place_of(servers: usize) -> Place {
    let server = Server::shared().await;
    let mut config = one_source(server.source("only"));
    config.limits.pool_size = servers;
    let router = Running::start(config).await;
    let database = server.database().await;
    Place { router, server, database }
}

impl Place {
    /// A program of PostgreSQL's, told to come through the router.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.router.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", &self.database);
        command.env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable");
        command.kill_on_drop(true);
        command
    }

    async fn psql(&self, commands: &str) -> Output {
        let mut psql = self.command("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        psql.stdin(std::process::Stdio::piped());
        psql.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = psql.spawn().expect("psql is installed (make deps)");
        let mut input = child.stdin.take().expect("it was asked for");
        input.write_all(commands.as_bytes()).await.expect("psql reads");
        drop(input);
        child.wait_with_output().await.expect("it ends")
    }
}

fn out(output: &Output) -> String {
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complained}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_describes_copies_and_keeps_its_transactions() {
    let place = place().await;
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let file = folder.path().join("rows.csv");
    std::fs::write(&file, "1,one\n2,two\n3,\"th,ree\"\n").expect("the folder is ours");
    let file = file.display();
    let copied = folder.path().join("copied.csv");
    let commands = format!(
        "CREATE TABLE p (a int PRIMARY KEY, b text);\n\\copy p FROM '{file}' CSV\n\\d p\n\
         \\copy p TO '{}' CSV\nBEGIN;\nDELETE FROM p;\nROLLBACK;\nSELECT count(*) FROM p;\n\
         \\set x 2\nSELECT b FROM p WHERE a = :x;\n\\dt\n",
        copied.display()
    );
    let said = out(&place.psql(&commands).await);
    assert!(said.contains("a|integer||not null|"), "{said}");
    assert!(said.contains("\n3\n") && said.contains("\ntwo\n"), "{said}");
    assert!(said.contains("public|p|table|postgres"), "{said}");
    let copied = std::fs::read_to_string(copied).expect("it was written");
    assert_eq!(copied.lines().count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_is_interrupted_by_a_signal_and_goes_on() {
    let place = place().await;
    let mut psql = place.command("psql");
    psql.args(["-X", "-q", "-A", "-t"]).stdin(std::process::Stdio::piped());
    psql.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = psql.spawn().expect("psql is installed (make deps)");
    let pid = i32::try_from(child.id().expect("it runs")).expect("a process id");
    let mut input = child.stdin.take().expect("it was asked for");
    input.write_all(b"SELECT pg_sleep(600);\nSELECT 'goes on';\n").await.expect("psql reads");
    let admin = place.server.connect(&place.database).await.expect("it runs");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600);'";
    let deadline = tokio::time::Instant::now() + fixture::PATIENCE;
    while admin.query_one(sql, &[]).await.expect("right").get::<_, i64>(0) == 0 {
        assert!(tokio::time::Instant::now() < deadline, "it does not even begin");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
    drop(input);
    let ended = child.wait_with_output().await.expect("it ends");
    let complained = String::from_utf8_lossy(&ended.stderr);
    assert!(complained.contains("canceling statement due to user request"), "{complained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_speaks_all_three_protocols() {
    let place = place().await;
    let made = place.command("pgbench").args(["-i", "-q", "-s", "1"]).output().await;
    out(&made.expect("pgbench is installed (make deps)"));
    for protocol in ["simple", "extended", "prepared"] {
        let mut bench = place.command("pgbench");
        bench.args(["-n", "-M", protocol, "-c", "10", "-j", "2", "-t", "40"]);
        let said = out(&bench.output().await.expect("it is installed"));
        assert!(said.contains("number of transactions actually processed: 400/400"), "{said}");
    }
    let admin = place.server.connect(&place.database).await.expect("it runs");
    let sql =
        "SELECT count(*), (SELECT sum(bbalance) FROM pgbench_branches) = coalesce(sum(delta), 0)
               FROM pgbench_history";
    let row = admin.query_one(sql, &[]).await.expect("right");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), (1_200, true));
}

/// What `make clients` has installed, or the program of that name.
fn python() -> String {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/clients/python/bin/python");
    if own.is_file() { own.display().to_string() } else { "python3".to_owned() }
}

/// Where Node finds what `make clients` has installed.
fn node_path() -> String {
    format!("{}/../target/clients/node_modules", env!("CARGO_MANIFEST_DIR"))
}

/// A script of another language; says so where that language's driver is not there.
async fn script(place: &Place, driver: &str, probe: &[&str], run: &[&str], text: &str) {
    let there = Command::new(probe[0]).args(&probe[1..]).env("NODE_PATH", node_path()).output();
    let there = there.await;
    if !there.is_ok_and(|output| output.status.success()) {
        // Kept by the test harness unless it is told to show what tests say.
        eprintln!("not run: {driver} is not installed (make clients)");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let file: &Path = &folder.path().join("Probe.java");
    std::fs::write(file, text).expect("the folder is ours");
    let mut command = place.command(run[0]);
    command.env("NODE_PATH", node_path());
    let output = command.args(&run[1..]).arg(file).output().await.expect("it was there");
    assert!(out(&output).contains("all right"), "{}", out(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_prepares_pipelines_and_copies() {
    let text = r#"
import os, psycopg
with psycopg.connect(f"dbname={os.environ['PGDATABASE']}", prepare_threshold=1) as c:
    c.execute("CREATE TABLE y (a int primary key, b text)")
    c.commit()
    for n in range(20):
        c.execute("INSERT INTO y VALUES (%s, %s)", (n, "x" * n))
    c.commit()
    with c.pipeline():
        curs = [c.execute("SELECT b FROM y WHERE a = %s", (n,)) for n in range(20)]
    assert [len(cur.fetchone()[0]) for cur in curs] == list(range(20))
    c.commit()
    with c.cursor().copy("COPY y FROM STDIN") as copy:
        for n in range(100, 200):
            copy.write_row((n, "copied"))
    c.commit()
    cur = c.cursor("named")
    cur.execute("SELECT a FROM y ORDER BY a")
    assert len(cur.fetchmany(7)) == 7
    c.rollback()
    try:
        c.execute("SELECT 1/0")
        raise SystemExit("no error")
    except psycopg.errors.DivisionByZero:
        c.rollback()
    assert c.execute("SELECT count(*) FROM y").fetchone()[0] == 120
print("all right")
"#;
    let place = place().await;
    let python = python();
    let probe = [python.as_str(), "-c", "import psycopg"];
    script(&place, "psycopg", &probe, &[&python], text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpg_prepares_and_resets_its_sessions() {
    let text = r#"
import asyncio, os, asyncpg
async def main():
    pool = await asyncpg.create_pool(database=os.environ["PGDATABASE"], min_size=3, max_size=3)
    async with pool.acquire() as c:
        await c.execute("CREATE TABLE z (a int primary key, b jsonb)")
    async def work(n):
        async with pool.acquire() as c:
            async with c.transaction():
                await c.execute("INSERT INTO z VALUES ($1, $2)", n, '{"n": %d}' % n)
            assert await c.fetchval("SELECT (b->>'n')::int FROM z WHERE a = $1", n) == n
    await asyncio.gather(*(work(n) for n in range(60)))
    async with pool.acquire() as c:
        await c.copy_records_to_table("z", records=[(n, None) for n in range(100, 160)])
        async with c.transaction():
            rows = [r["a"] async for r in c.cursor("SELECT a FROM z ORDER BY a", prefetch=7)]
        assert len(rows) == 120
    await pool.close()
asyncio.run(main())
print("all right")
"#;
    let place = place().await;
    let python = python();
    let probe = [python.as_str(), "-c", "import asyncpg"];
    script(&place, "asyncpg", &probe, &[&python], text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_postgres_prepares_by_name() {
    let text = r#"
const { Client } = require("pg");
(async () => {
  const c = new Client({ database: process.env.PGDATABASE, host: process.env.PGHOST, port: +process.env.PGPORT, user: process.env.PGUSER });
  await c.connect();
  await c.query("CREATE TABLE n (a int primary key, b text)");
  for (let i = 0; i < 20; i++)
    await c.query({ name: "in", text: "INSERT INTO n VALUES ($1, $2)", values: [i, "x" + i] });
  await c.query("BEGIN"); await c.query("DELETE FROM n"); await c.query("ROLLBACK");
  const r = await c.query({ name: "out", text: "SELECT b FROM n WHERE a = $1", values: [7] });
  if (r.rows[0].b !== "x7") throw new Error(JSON.stringify(r.rows));
  await c.end();
  console.log("all right");
})();
"#;
    let place = place().await;
    let probe = ["node", "-e", "require('pg')"];
    script(&place, "node-postgres", &probe, &["node"], text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc_prepares_batches_fetches_and_saves() {
    let text = r#"
import java.sql.*;
import java.util.Properties;

public class Probe {
    static void check(boolean right, String what) {
        if (!right) throw new RuntimeException(what);
    }

    public static void main(String[] arguments) throws Exception {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("sslmode", "disable");
        // The driver names a statement, and asks for binary, when it is executed for the second time.
        properties.setProperty("prepareThreshold", "2");
        try (Connection c = DriverManager.getConnection(url, properties)) {
            try (Statement s = c.createStatement()) {
                s.execute("CREATE TABLE j (a int PRIMARY KEY, b text, at timestamptz DEFAULT now())");
            }
            c.setAutoCommit(false);
            try (PreparedStatement p = c.prepareStatement("INSERT INTO j (a, b) VALUES (?, ?)")) {
                for (int n = 0; n < 100; n++) {
                    p.setInt(1, n);
                    p.setString(2, "x" + n);
                    p.addBatch();
                }
                check(p.executeBatch().length == 100, "the batch");
            }
            c.commit();
            for (int n = 0; n < 10; n++) {
                try (PreparedStatement p = c.prepareStatement("SELECT b, at FROM j WHERE a = ?")) {
                    p.setInt(1, n);
                    ResultSet r = p.executeQuery();
                    check(r.next() && r.getString(1).equals("x" + n) && r.getTimestamp(2) != null, "row " + n);
                }
            }
            try (PreparedStatement p = c.prepareStatement("SELECT a FROM j ORDER BY a")) {
                p.setFetchSize(7);
                ResultSet r = p.executeQuery();
                for (int n = 0; n < 100; n++) check(r.next() && r.getInt(1) == n, "fetched " + n);
            }
            Savepoint saved = c.setSavepoint();
            try (Statement s = c.createStatement()) {
                s.executeUpdate("INSERT INTO j (a) VALUES (1)");
                throw new RuntimeException("a key twice");
            } catch (SQLException e) {
                check(e.getSQLState().equals("23505"), e.getSQLState());
            }
            c.rollback(saved);
            try (Statement s = c.createStatement()) {
                check(s.executeUpdate("UPDATE j SET b = 'changed' WHERE a < 5") == 5, "after the savepoint");
            }
            c.rollback();
            c.setAutoCommit(true);
            ResultSet tables = c.getMetaData().getColumns(null, "public", "j", null);
            int columns = 0;
            while (tables.next()) columns++;
            check(columns == 3, "columns " + columns);
            try (Statement s = c.createStatement()) {
                ResultSet r = s.executeQuery("SELECT count(*) FILTER (WHERE b = 'changed'), count(*) FROM j");
                check(r.next() && r.getInt(1) == 0 && r.getInt(2) == 100, "rolled back");
            }
        }
        System.out.println("all right");
    }
}
"#;
    let place = place().await;
    let jar = "/usr/share/java/postgresql.jar";
    let probe =
        ["sh", "-c", "test -f /usr/share/java/postgresql.jar && command -v javac && java -version"];
    script(&place, "JDBC", &probe, &["java", "-cp", jar], text).await;
}

/// A type that sqlx knows by its name alone, so that it has to look it up.
struct Mood(&'static str);

impl sqlx::Type<sqlx::Postgres> for Mood {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        sqlx::postgres::PgTypeInfo::with_name("mood")
    }
}

impl sqlx::Encode<'_, sqlx::Postgres> for Mood {
    fn encode_by_ref(
        &self,
        out: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(sqlx::encode::IsNull::No)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlx_names_its_statements_and_looks_types_up() {
    use sqlx::{Row as _, postgres};
    // Fewer servers than connections: names and looked-up types have to be right whichever server comes.
    let place = place_of(2).await;
    let options = postgres::PgConnectOptions::new()
        .host("127.0.0.1")
        .port(place.router.port)
        .username("postgres")
        .database(&place.database)
        .ssl_mode(postgres::PgSslMode::Disable);
    let pool = postgres::PgPoolOptions::new().max_connections(6).connect_with(options).await;
    let pool = pool.expect("it logs in");
    let made = "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TABLE q (a int PRIMARY KEY, b text, c mood)";
    sqlx::raw_sql(made).execute(&pool).await.expect("it is right");
    let work = |n: i32| {
        let pool = pool.clone();
        async move {
            let insert = sqlx::query("INSERT INTO q VALUES ($1, $2, $3)").bind(n).bind("x");
            insert.bind(Mood(["glad", "sad"][n as usize % 2])).execute(&pool).await?;
            let read = sqlx::query("SELECT b, c FROM q WHERE a = $1").bind(n);
            let row = read.fetch_one(&pool).await?;
            let (b, c): (String, String) = (row.try_get(0)?, row.try_get_unchecked(1)?);
            Ok::<_, sqlx::Error>((b, c))
        }
    };
    for (n, told) in futures::future::join_all((0..60).map(work)).await.into_iter().enumerate() {
        let mood = if n % 2 == 0 { "glad" } else { "sad" };
        assert_eq!(told.expect("it is answered"), ("x".to_owned(), mood.to_owned()));
    }
    let mut transaction = pool.begin().await.expect("it begins");
    let gone = sqlx::query("DELETE FROM q").execute(&mut *transaction).await.expect("right");
    assert_eq!(gone.rows_affected(), 60);
    transaction.rollback().await.expect("it ends");
    let twice = sqlx::query("INSERT INTO q (a) VALUES (1)").execute(&pool).await;
    let error = twice.expect_err("a key twice");
    assert!(error.as_database_error().is_some_and(|told| told.is_unique_violation()), "{error}");
    let rows = sqlx::query("SELECT a, c FROM q ORDER BY a").fetch_all(&pool).await;
    let numbers: Vec<i32> = rows.expect("right").iter().map(|row| row.get(0)).collect();
    assert_eq!(numbers, (0..60).collect::<Vec<_>>());
    pool.close().await;
}
