//! Slots move from one source to another while clients write: what would touch them waits, what began before goes on, and no row is lost or
//! seen twice. The part of whoever moves them is played here.

mod fixture;

use std::time::Duration;

use fixture::{
    PATIENCE, Running, Server, one_source,
    raw::{self, Raw},
};
use futures::future::join_all;
use holdfast_shard_router::config::{Endpoint, Limits, RouterConfig, SourceConfig};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

/// Rows of table `t`; one in each slot of their number.
const ROWS: [i32; 6] = [10, 11, 12, 20, 600, 601];

/// Slots 10 to 12, which move from pg-1 to pg-2.
fn rules(moved: bool, moving: &str) -> String {
    let there = if moved { "b" } else { "a" };
    format!(
        "[group.g]\nkey = \"id\"\ntype = \"integer\"\nfunction = \"mod\"\nscatter = \"write\"\nslots = [\n\
         {{ first = 0, last = 9, shard = \"a\" }},\n{{ first = 10, last = 12, shard = \"{there}\" }},\n\
         {{ first = 13, last = 511, shard = \"a\" }},\n{{ first = 512, last = 1023, shard = \"b\" }},\n]\n\
         [table.t]\ngroup = \"g\"\n[shard.a]\nsource = \"pg-1\"\n[shard.b]\nsource = \"pg-2\"\n\
         [source.pg-1]\naddress = \"127.0.0.1:1\"\n[source.pg-2]\naddress = \"127.0.0.1:2\"\n{moving}"
    )
}

struct Place {
    router: Running,
    shards: [Client; 2],
    /// Kept as long as anybody uses it.
    _server: Option<std::sync::Arc<Server>>,
    folder: tempfile::TempDir,
    admin: Client,
    /// Of the step that moves them; databases of one server share the names of what is prepared.
    id: String,
}

impl Place {
    /// One server with a database for each source.
    async fn new(limits: Limits) -> Self {
        let server = Server::shared().await;
        let sources = [server.source("pg-1"), server.source("pg-2")];
        let place = Self::over([&server, &server], sources, limits).await;
        Self { _server: Some(server), ..place }
    }

    /// A new database for each source, at these servers.
    async fn over(servers: [&Server; 2], sources: [SourceConfig; 2], limits: Limits) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory can be made");
        let file = folder.path().join("rules.toml");
        std::fs::write(&file, rules(false, "")).expect("the folder is ours");
        let (mut known, mut shards) = (Vec::new(), Vec::new());
        for (server, source) in servers.into_iter().zip(sources) {
            let database = server.database().await;
            let client = server.connect(&database).await.expect("it runs");
            let sql = "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)";
            client.batch_execute(sql).await.expect("it is new");
            shards.push(client);
            let (user, database) = (Some("postgres".to_owned()), Some(database));
            known.push(SourceConfig { user, database, ..source });
        }
        let id = format!("m-{}", servers[0].database().await);
        let usual = one_source(servers[0].source("x"));
        let config = RouterConfig { rules: Some(file), sources: known, limits, ..usual };
        let router = Running::start(config).await;
        let admin = router.connect("any").await;
        for id in ROWS {
            let sql = format!("INSERT INTO t (id) VALUES ({id})");
            admin.batch_execute(&sql).await.expect("a row");
        }
        let shards = shards.try_into().expect("two");
        Self { router, shards, _server: None, folder, admin, id }
    }

    /// The step under way, in this state.
    fn step(&self, state: &str) -> String {
        let hold = if state == "frozen" { "hold_ms = 60000\n" } else { "" };
        format!(
            "[moving]\nid = \"{}\"\ngroup = \"g\"\nslots = [{{ first = 10, last = 12 }}]\nfrom = \"pg-1\"\n\
             to = \"pg-2\"\nstate = \"{state}\"\n{hold}",
            self.id
        )
    }

    async fn connect(&self) -> Client {
        self.router.connect("any").await
    }

    /// What `SHOW HOLDFAST RULES` says in a column.
    async fn shown(&self, column: &str) -> String {
        let rows = rows(&self.admin, "SHOW HOLDFAST RULES").await;
        rows[0].get(column).unwrap_or_default().to_owned()
    }

    async fn until_shown(&self, column: &str, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = self.shown(column).await;
            if shown == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{column} is {shown:?}, not {wanted:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Puts rules into force.
    async fn apply(&self, text: &str) {
        let next = self.shown("epoch").await.parse::<u64>().expect("a number") + 1;
        let file = self.folder.path().join("rules.toml");
        std::fs::write(&file, text).expect("the folder is ours");
        self.until_shown("epoch", &next.to_string()).await;
    }

    /// What the mover does while the slots are frozen: both halves of the step are prepared.
    async fn prepare(&self) {
        let halves = ["from", "to"]
            .map(|half| format!("PREPARE TRANSACTION 'holdfast-move:{}:{half}'", self.id));
        let [from, to] = &self.shards;
        from.batch_execute("BEGIN").await.expect("right");
        let taken = "DELETE FROM t WHERE id % 1024 BETWEEN 10 AND 12 RETURNING id, n";
        let taken = from.query(taken, &[]).await.expect("right");
        to.batch_execute("BEGIN").await.expect("right");
        for row in taken {
            let (id, n): (i32, i32) = (row.get(0), row.get(1));
            to.execute("INSERT INTO t VALUES ($1, $2)", &[&id, &n]).await.expect("right");
        }
        from.batch_execute(&halves[0]).await.expect("right");
        to.batch_execute(&halves[1]).await.expect("right");
    }

    /// Names that a move has prepared, at both sources.
    async fn prepared(&self) -> i64 {
        let sql = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()";
        let count = join_all(self.shards.iter().map(|shard| shard.query_one(sql, &[]))).await;
        count.into_iter().map(|row| row.expect("right").get::<_, i64>(0)).sum()
    }

    /// The value of a row at one source, asked of the source itself.
    async fn at(&self, shard: usize, id: i32) -> Option<i32> {
        let sql = "SELECT n FROM t WHERE id = $1";
        self.shards[shard].query_opt(sql, &[&id]).await.expect("right").map(|row| row.get(0))
    }
}

async fn rows(client: &Client, sql: &str) -> Vec<SimpleQueryRow> {
    let answers = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let rows = answers.into_iter().filter_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.collect()
}

async fn set(client: &Client, id: i32, n: i32) -> Result<u64, tokio_postgres::Error> {
    client.execute("UPDATE t SET n = $2 WHERE id = $1", &[&id, &n]).await
}

/// The code of the router, and the SQLSTATE.
fn told(error: &tokio_postgres::Error) -> (String, String) {
    let error = error.as_db_error().expect("an answer");
    let code = error.message().split(' ').next().unwrap_or_default().to_owned();
    (code, error.code().code().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_touch_frozen_slots_waits_and_finds_the_rows_where_they_have_gone() {
    let place =
        Place::new(Limits { frozen_wait: PATIENCE, pool_size: 8, ..Limits::default() }).await;
    place.apply(&rules(false, &place.step("frozen"))).await;
    let clients = join_all((0..5).map(|_| place.connect())).await;
    let [simple, bound, scattered, listed, begun] = &clients[..] else { unreachable!() };
    begun.batch_execute("BEGIN").await.expect("right");
    assert_eq!(set(begun, 20, 1).await.expect("it is not frozen"), 1);
    let ask = async {
        let row = rows(simple, "SELECT n FROM t WHERE id = 10").await;
        row[0].get(0).map(str::to_owned)
    };
    let count = async {
        let row = scattered.query_one("SELECT count(*) FROM t", &[]).await.expect("right");
        row.get::<_, i64>(0)
    };
    let insert = listed.execute("INSERT INTO t (id, n) VALUES (1035, 7), (1036, 7)", &[]);
    let within = async {
        let sql = "SELECT n FROM t WHERE id = $1";
        let row = begun.query_one(sql, &[&11_i32]).await.expect("its transaction goes on");
        begun.batch_execute("COMMIT").await.expect("it goes on to its end");
        row.get::<_, i32>(0)
    };
    let mover = async {
        // The others are not held up, nor who only asks where it would go.
        place.until_shown("waiting", "5").await;
        for id in [20, 600] {
            let sql = "SELECT n FROM t WHERE id = $1";
            place.admin.query_one(sql, &[&id]).await.expect("it is not frozen");
        }
        let route = rows(&place.admin, "EXPLAIN (ROUTE) SELECT * FROM t WHERE id = 10").await;
        assert!(route.iter().any(|row| row.get(0) == Some("waits")), "{route:?}");
        rows(&place.admin, "SELECT holdfast.locate('g', '10')").await;
        let moving = place.shown("moving").await;
        assert_eq!(moving, format!("{} frozen: g 10 to 12 from pg-1 to pg-2", place.id));
        place.prepare().await;
        assert_eq!(place.prepared().await, 2);
        let in_doubt = rows(&place.admin, "SHOW HOLDFAST IN_DOUBT").await;
        let states: Vec<_> = in_doubt.iter().map(|row| row.get("state")).collect();
        assert_eq!(states, [Some("move: frozen"); 2]);
        assert_eq!(place.shown("waiting").await, "5");
        // This decides. That nobody ends what is prepared is the router's to mend.
        place.apply(&rules(true, &place.step("settling"))).await;
    };
    let updated = set(bound, 12, 5);
    let all = tokio::join!(ask, updated, count, within, insert, mover);
    place.until_shown("moving", "").await;
    assert_eq!((all.0.as_deref(), all.1.expect("right")), (Some("0"), 1));
    // What was inserted meanwhile is of slots that moved: all of it is there, or nothing of one statement.
    assert!([6, 8].contains(&all.2), "{} rows: one is seen twice, or missed", all.2);
    assert_eq!((all.3, all.4.expect("right")), (0, 2));
    assert_eq!((place.prepared().await, place.shown("waiting").await.as_str()), (0, "0"));
    assert_eq!((place.at(0, 12).await, place.at(1, 12).await), (None, Some(5)));
    assert_eq!((place.at(1, 1035).await, place.at(1, 1036).await), (Some(7), Some(7)));
    // And then the rules that say no more of it.
    place.apply(&rules(true, "")).await;
    assert_eq!(set(simple, 10, 9).await.expect("right"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_waits_as_a_whole_if_one_row_of_it_would_have_to() {
    let place = Place::new(Limits { frozen_wait: PATIENCE, ..Limits::default() }).await;
    place.apply(&rules(false, &place.step("frozen"))).await;
    let client = place.connect().await;
    // 1044 is of slot 20, which does not move.
    let sql = "INSERT INTO t (id, n) VALUES (1035, 7), (1044, 7)";
    let (inserted, ()) = tokio::join!(client.execute(sql, &[]), async {
        place.until_shown("waiting", "1").await;
        assert_eq!(place.at(0, 1044).await, None);
        place.apply(&rules(false, "")).await;
    });
    assert_eq!(inserted.expect("thawed"), 2);
    assert_eq!((place.at(0, 1035).await, place.at(0, 1044).await), (Some(7), Some(7)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_waits_for_slots_as_long_as_the_limit_and_no_longer() {
    let limit = Duration::from_millis(300);
    let place = Place::new(Limits { frozen_wait: limit, ..Limits::default() }).await;
    place.apply(&rules(false, &place.step("frozen"))).await;
    let refused = ("HF3228".to_owned(), "40001".to_owned());
    let client = place.connect().await;
    for sql in ["UPDATE t SET n = 1 WHERE id = 10", "SELECT count(*) FROM t"] {
        let begun = Instant::now();
        let error = client.simple_query(sql).await.expect_err("nobody lets it go");
        assert!(begun.elapsed() >= limit, "it was refused early");
        assert_eq!(told(&error), refused, "{sql}");
        let begun = Instant::now();
        let error = client.execute(sql, &[]).await.expect_err("nobody lets it go");
        assert!(begun.elapsed() >= limit, "it was refused early");
        assert_eq!(told(&error), refused, "{sql}");
    }
    assert_eq!(set(&client, 20, 1).await.expect("the session goes on"), 1);
    // In a transaction it fails the transaction.
    client.batch_execute("BEGIN").await.expect("right");
    set(&client, 20, 2).await.expect("it is not frozen");
    assert_eq!(told(&set(&client, 11, 2).await.expect_err("frozen")), refused);
    assert_eq!(told(&set(&client, 20, 2).await.expect_err("it has failed")).1, "25P02");
    client.batch_execute("ROLLBACK").await.expect("right");
    assert_eq!((place.at(0, 20).await, place.shown("waiting").await), (Some(1), "0".to_owned()));
    // Within it nothing is refused: who is let go in time never notices.
    place.router.adjust(|live| live.limits.frozen_wait = PATIENCE);
    let (done, ()) = tokio::join!(set(&client, 10, 3), async {
        place.until_shown("waiting", "1").await;
        place.apply(&rules(false, "")).await;
    });
    assert_eq!(done.expect("thawed where it was"), 1);
    assert_eq!(place.at(0, 10).await, Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_began_before_goes_on_where_the_rows_are_and_is_told_as_open() {
    let place = Place::new(Limits::default()).await;
    let [client, late, open] =
        [place.connect().await, place.connect().await, place.connect().await];
    for client in [&client, &open] {
        client.batch_execute("BEGIN").await.expect("right");
    }
    set(&client, 10, 1).await.expect("right");
    set(&open, 20, 1).await.expect("right");
    late.batch_execute("BEGIN").await.expect("nothing is planned by it yet");
    place.until_shown("oldest", "1").await;
    place.apply(&rules(false, &place.step("frozen"))).await;
    let within = timeout(PATIENCE, set(&client, 11, 1)).await.expect("it is not held up");
    assert_eq!(within.expect("where the row is"), 1);
    set(&late, 600, 1).await.expect("right");
    assert_eq!(place.shown("oldest").await, "1");
    client.batch_execute("COMMIT").await.expect("right");
    assert_eq!((place.at(0, 10).await, place.at(0, 11).await), (Some(1), Some(1)));
    assert_eq!(place.shown("oldest").await, "1", "there is another one");
    open.batch_execute("ROLLBACK").await.expect("right");
    place.until_shown("oldest", "2").await;
    // Begun while they are frozen: it goes on when they have moved.
    place.prepare().await;
    place.apply(&rules(true, &place.step("settling"))).await;
    place.until_shown("moving", "").await;
    assert_eq!(place.shown("oldest").await, "2");
    set(&late, 601, 1).await.expect("right");
    late.batch_execute("COMMIT").await.expect("right");
    assert_eq!(place.at(1, 600).await, Some(1));
    place.until_shown("oldest", "3").await;
}

/// A transaction that is not READ COMMITTED has one snapshot at each source. One that was taken before the move has rows where they were, and
/// not where they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_older_than_a_move_is_not_read_from() {
    let place = Place::new(Limits { pool_size: 8, ..Limits::default() }).await;
    place.apply(&rules(false, &place.step("frozen"))).await;
    let begun = async |level: &str, id: i32| {
        let client = place.connect().await;
        client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await.expect("right");
        client.query_one("SELECT n FROM t WHERE id = $1", &[&id]).await.expect("not frozen");
        client
    };
    let [early, at_from, at_to, bystander] = [
        begun("REPEATABLE READ", 20).await,
        begun("REPEATABLE READ", 20).await,
        begun("SERIALIZABLE", 600).await,
        begun("REPEATABLE READ", 600).await,
    ];
    let committed = [begun("READ COMMITTED", 20).await, begun("READ COMMITTED", 600).await];
    // Waiting would not help it.
    let refused = ("HF3223".to_owned(), "40001".to_owned());
    let one = "SELECT n FROM t WHERE id = 10";
    let count = "SELECT count(*) FROM t";
    assert_eq!(told(&early.simple_query(one).await.expect_err("its snapshot")), refused);
    place.prepare().await;
    place.apply(&rules(true, &place.step("settling"))).await;
    place.until_shown("moving", "").await;
    assert_eq!(told(&at_from.simple_query(count).await.expect_err("its snapshot")), refused);
    assert_eq!(told(&at_to.query(one, &[]).await.expect_err("its snapshot")), refused);
    let other = "SELECT n FROM t WHERE id = 601";
    assert_eq!(rows(&bystander, other).await.len(), 1, "these have not moved");
    for client in &committed {
        assert_eq!(rows(client, count).await[0].get(0), Some("6"));
        assert_eq!(client.query(one, &[]).await.expect("each sees what is there").len(), 1);
        client.batch_execute("COMMIT").await.expect("right");
    }
    for client in [&early, &at_from, &at_to, &bystander] {
        client.batch_execute("ROLLBACK").await.expect("right");
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.expect("right");
        assert_eq!(rows(client, count).await[0].get(0), Some("6"), "a new one");
        client.batch_execute("COMMIT").await.expect("right");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_began_before_slots_were_frozen_does_not_outlive_their_move() {
    let place = Place::new(Limits::default()).await;
    let client = place.connect().await;
    client.batch_execute("BEGIN").await.expect("right");
    set(&client, 20, 1).await.expect("right");
    place.apply(&rules(false, &place.step("frozen"))).await;
    // Nobody has waited for it.
    place.prepare().await;
    place.apply(&rules(true, &place.step("settling"))).await;
    let error = client.batch_execute("COMMIT").await.expect_err("it may have touched them");
    assert_eq!(told(&error), ("HF3223".to_owned(), "40001".to_owned()));
    assert_eq!(place.at(0, 20).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_for_slots_that_are_thawed_is_rolled_back() {
    let place = Place::new(Limits { frozen_wait: PATIENCE, ..Limits::default() }).await;
    place.apply(&rules(false, &place.step("frozen"))).await;
    place.prepare().await;
    let client = place.connect().await;
    let (done, ()) = tokio::join!(set(&client, 10, 4), async {
        place.until_shown("waiting", "1").await;
        place.apply(&rules(false, "")).await;
    });
    // PostgreSQL has it wait until the router has rolled back what was prepared.
    assert_eq!(done.expect("right"), 1);
    let deadline = Instant::now() + PATIENCE;
    while place.prepared().await > 0 {
        assert!(Instant::now() < deadline, "it is still prepared");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((place.at(0, 10).await, place.at(1, 10).await), (Some(4), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cancels_or_goes_away_waits_no_more() {
    let place = Place::new(Limits { frozen_wait: PATIENCE * 10, ..Limits::default() }).await;
    place.apply(&rules(false, &place.step("frozen"))).await;
    let client = place.connect().await;
    let cancel = client.cancel_token();
    let (refused, ()) = tokio::join!(set(&client, 10, 1), async {
        place.until_shown("waiting", "1").await;
        cancel.cancel_query(NoTls).await.expect("it is told");
    });
    assert_eq!(told(&refused.expect_err("canceled")), ("HF3228".to_owned(), "57014".to_owned()));
    assert_eq!(set(&client, 20, 1).await.expect("the session goes on"), 1);
    place.until_shown("waiting", "0").await;
    let mut gone = Raw::login(place.router.port, "any").await;
    gone.send(&raw::query("UPDATE t SET n = 1 WHERE id = 10")).await;
    place.until_shown("waiting", "1").await;
    drop(gone);
    place.until_shown("waiting", "0").await;
    place.apply(&rules(false, "")).await;
    assert_eq!(place.at(0, 10).await, Some(0), "nothing was done for either");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_not_read_from_before_it_has_what_has_moved() {
    let (one, two) = tokio::join!(Server::start(), Server::start());
    let replica = two.replica().await;
    let address = |server: &Server| Endpoint::parse(&format!("127.0.0.1:{}", server.port));
    let addresses = vec![address(&two), address(&replica)];
    let sources = [one.source("pg-1"), SourceConfig { addresses, ..two.source("pg-2") }];
    let limits = Limits { pool_size: 8, ..Limits::default() };
    let place = Place::over([&one, &two], sources, limits).await;
    // Whether the replica is read from.
    let used = async || {
        let servers = rows(&place.admin, "SHOW HOLDFAST SERVERS").await;
        let port = replica.port.to_string();
        let of = |row: &&SimpleQueryRow| row.get("address").is_some_and(|it| it.ends_with(&port));
        let row = servers.iter().find(of).expect("it is one of them");
        row.get("age_ms").is_some_and(|age| !age.is_empty())
    };
    let until_used = async || {
        let deadline = Instant::now() + PATIENCE;
        while !used().await {
            assert!(Instant::now() < deadline, "the replica is not used");
            sleep(Duration::from_millis(10)).await;
        }
    };
    until_used().await;
    let client = place.connect().await;
    client.batch_execute("SET holdfast.max_staleness = '600s'").await.expect("a time");
    place.apply(&rules(false, &place.step("frozen"))).await;
    let on_replica = replica.connect("postgres").await.expect("it runs");
    on_replica.batch_execute("SELECT pg_wal_replay_pause()").await.expect("it pauses");
    place.prepare().await;
    place.apply(&rules(true, &place.step("settling"))).await;
    place.until_shown("moving", "").await;
    // Young enough for the session, and without the rows.
    for _ in 0..20 {
        assert_eq!(rows(&client, "SELECT n FROM t WHERE id = 10").await.len(), 1);
        let count = rows(&client, "SELECT count(*) FROM t").await;
        assert_eq!(count[0].get(0), Some("6"));
    }
    assert!(!used().await);
    on_replica.batch_execute("SELECT pg_wal_replay_resume()").await.expect("it goes on");
    until_used().await;
    for _ in 0..20 {
        assert_eq!(rows(&client, "SELECT n FROM t WHERE id = 10").await.len(), 1);
    }
}

/// The entry of a lookup lies by the slot of its value, in the group of its owner.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_by_a_lookup_whose_entry_moves_waits_too() {
    let place = Place::new(Limits { frozen_wait: PATIENCE, ..Limits::default() }).await;
    let lookup = "[lookup.phone]\ntable = \"t\"\ncolumn = \"phone\"\n";
    let known = holdfast_route::Topology::parse(&rules(false, lookup)).expect("good rules");
    let slot = |value: &str| known.entry_place("phone", value).expect("a place").slot.number();
    let values: Vec<String> = (0..100_000).map(|n| n.to_string()).collect();
    let find = |moves: bool| values.iter().find(|value| (10..=12).contains(&slot(value)) == moves);
    let (moving, still) = (find(true).expect("one moves"), find(false).expect("others do not"));
    for shard in &place.shards {
        let column = "ALTER TABLE t ADD COLUMN phone text UNIQUE";
        shard.batch_execute(&format!("{column}; {}", known.lookup_sql())).await.expect("right");
        for value in [moving, still] {
            let sql = "INSERT INTO holdfast.lookup VALUES ('phone', $1, '20')";
            shard.execute(sql, &[value]).await.expect("an entry");
        }
    }
    place.apply(&rules(false, lookup)).await;
    place.apply(&rules(false, &format!("{lookup}{}", place.step("frozen")))).await;
    let client = place.connect().await;
    let ask = |value: &str| format!("SELECT holdfast.locate('phone', '{value}')");
    assert_eq!(rows(&client, &ask(still)).await[0].get("key"), Some("20"));
    let (simple, prepared) = (ask(moving), place.connect().await);
    let (answer, other, ()) =
        tokio::join!(rows(&client, &simple), prepared.query(&simple, &[]), async {
            place.until_shown("waiting", "2").await;
            place.apply(&rules(false, lookup)).await;
        });
    assert_eq!(answer[0].get("key"), Some("20"));
    assert_eq!(other.expect("right").len(), 1);
}

/// A portal over several sources is planned when it is bound, and holds no server before it is executed.
#[tokio::test(flavor = "multi_thread")]
async fn a_portal_that_was_bound_before_rows_moved_is_not_executed() {
    let place = Place::new(Limits::default()).await;
    let mut raw = Raw::login(place.router.port, "any").await;
    raw.ask(&[raw::query("BEGIN")]).await;
    let count = [raw::parse("", "SELECT count(*) FROM t"), raw::bind("p", "", &[]), raw::sync()];
    assert_eq!(raw::status(&raw.ask(&count).await), 'T');
    assert_eq!(place.shown("oldest").await, "1");
    place.apply(&rules(false, &place.step("frozen"))).await;
    assert_eq!(place.shown("oldest").await, "1", "it may be executed any time");
    // Nobody has waited for it.
    place.prepare().await;
    place.apply(&rules(true, &place.step("settling"))).await;
    let told = raw.ask(&[raw::execute("p", 0), raw::sync()]).await;
    assert_eq!(raw::field(&told, b'C'), "40001", "{told:?}");
    raw.ask(&[raw::query("ROLLBACK")]).await;
    place.until_shown("oldest", "3").await;
}
