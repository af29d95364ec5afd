//! Slots move between sources by the real command, while clients of two routers read and write, and whatever may die does.
//!
//! Each slot that moves has a pair of accounts between which money goes to and fro: whoever adds both up finds the same at every moment, since both
//! are on one source. All accounts together are counted at every moment, too: a row that is at both sources, or at neither, is seen at once.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{ROUTERS, RULES, SOON, Shape, Sharded, holdfast, texts, until};
use holdfast_fault::{Role, Site};
use holdfast_route::{Algorithm, Key, Topology};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{process::Command, task::JoinSet};
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

/// Pairs of accounts of one slot each.
const PAIRS: usize = 48;
/// What each account has at first.
const BALANCE: i64 = 1_000;
/// Writers at each router.
const WRITERS: u64 = 3;
/// How long a router goes by rules that nobody confirms, and a leader does not know of routers that it has not heard of.
const LEASE_MS: u32 = 4_000;
/// How long slots may be frozen, milliseconds.
const PAUSE_MAX: &str = "2500";

/// Everything that runs, and pairs of accounts.
struct Stage {
    place: Sharded,
    pairs: Vec<[String; 2]>,
}

/// What writers have done.
#[derive(Default)]
struct Done {
    transfers: AtomicU64,
    looks: AtomicU64,
}

/// Clients that read and write until they are told to stop.
struct Load {
    stopped: Arc<AtomicBool>,
    done: Arc<Done>,
    clients: JoinSet<anyhow::Result<()>>,
}

/// How a move ended.
struct Ended {
    code: Option<i32>,
    told: Value,
    words: String,
}

/// The rules with the border between both shards behind this slot.
fn rules(last: u16) -> String {
    RULES
        .replace("last = 511", &format!("last = {last}"))
        .replace("first = 512", &format!("first = {}", last + 1))
}

fn slot(id: &str) -> u16 {
    let key = Key::parse(id).expect("a key");
    Algorithm::Crc32c.slot(key).expect("every text has one").number()
}

/// Ids of two accounts of the same slot each, of slots all over.
fn pairs() -> Vec<[String; 2]> {
    let mut first: Vec<Option<String>> = vec![None; 1_024];
    let mut pairs = Vec::new();
    for number in 0.. {
        let id = format!("p-{number}");
        match first[usize::from(slot(&id))].take() {
            Some(other) => pairs.push([other, id]),
            None => {
                let at = usize::from(slot(&id));
                first[at] = Some(id);
            }
        }
        if pairs.len() == PAIRS {
            break;
        }
    }
    pairs
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        let shape = Shape { router_lease_max_ms: LEASE_MS, ..Shape::default() };
        let place = Sharded::shaped(&format!("rules_age_max_ms = {LEASE_MS}\n"), shape).await?;
        place.apply_rules(&rules(511), 0).await?;
        for at in 0..ROUTERS {
            let client = place.connect(at).await?;
            until("the router goes by the rules of the log", SOON, async || {
                let shown = texts(&client, "SHOW HOLDFAST RULES").await.ok()?;
                (shown[0][0] == "1").then_some(())
            })
            .await?;
        }
        let pairs = pairs();
        let rows: Vec<String> =
            pairs.iter().flatten().map(|id| format!("('{id}', {BALANCE})")).collect();
        let sql = format!("INSERT INTO account (id, balance) VALUES {}", rows.join(", "));
        let client = place.connect(0).await?;
        client.batch_execute("SET holdfast.read_own_writes = on").await?;
        client.execute(&sql, &[]).await?;
        Ok(Self { place, pairs })
    }

    /// Clients that write and look, at every router.
    async fn load(&self) -> anyhow::Result<Load> {
        let (stopped, done) = (Arc::new(AtomicBool::new(false)), Arc::new(Done::default()));
        let mut clients = JoinSet::new();
        for at in 0..ROUTERS {
            for number in 0..WRITERS {
                let (client, pairs) = (self.place.connect(at).await?, self.pairs.clone());
                let (stopped, done) = (Arc::clone(&stopped), Arc::clone(&done));
                clients.spawn(async move { write(client, &pairs, number, &stopped, &done).await });
            }
            let (client, pairs) = (self.place.connect(at).await?, self.pairs.clone());
            let (stopped, done) = (Arc::clone(&stopped), Arc::clone(&done));
            clients.spawn(async move { look(client, &pairs, &stopped, &done).await });
        }
        Ok(Load { stopped, done, clients })
    }

    /// Has slots move until the border lies behind `last`.
    async fn move_to(
        &self,
        last: u16,
        more: &[&str],
        kill_at: Option<Site>,
    ) -> anyhow::Result<Ended> {
        let file = self.place.cluster.folder.write(&format!("to-{last}.toml"), rules(last))?;
        let mut command = self.command(&file, more)?;
        if let Some(site) = kill_at {
            command.env("HOLDFAST_KILL_AT", site.name());
        }
        let ended = command.output().await?;
        let words = String::from_utf8_lossy(&ended.stderr).into_owned();
        let told = serde_json::from_slice(&ended.stdout).unwrap_or_default();
        Ok(Ended { code: ended.status.code(), told, words })
    }

    fn command(&self, file: &PathBuf, more: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(holdfast()?);
        command.args(["rules", "move"]).arg(file).arg("--sources").arg(self.place.config(0));
        command.args(["--reason", "a test", "--step-rows", "16", "--output", "json"]).args(more);
        if !more.contains(&"--pause-max-ms") {
            command.args(["--pause-max-ms", PAUSE_MAX]);
        }
        command.arg("--coordinator").arg(self.place.cluster.addresses().join(","));
        command.stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    /// Each account is there once, where the rules look for it, with its money; and nothing else is.
    async fn audit(&self, last: u16) -> anyhow::Result<()> {
        let sources = self.place.sources().await?;
        for (at, source) in sources.iter().enumerate() {
            let rows = source.query("SELECT id FROM account ORDER BY id", &[]).await?;
            let here: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            let mut wanted: Vec<String> = self.pairs.iter().flatten().cloned().collect();
            wanted.retain(|id| (slot(id) > last) == (at == 1));
            wanted.sort();
            ensure!(here == wanted, "source {at} with border {last}: {here:?}, not {wanted:?}");
            let left = "SELECT count(*) FROM pg_namespace WHERE nspname = 'holdfast_move'";
            let left: i64 = source.query_one(left, &[]).await?.get(0);
            ensure!(left == 0, "what the move had made is still at source {at}");
        }
        let total = self.place.total().await?;
        ensure!(total == BALANCE * 2 * PAIRS as i64, "{total}");
        ensure!(self.place.prepared().await? == 0);
        Ok(())
    }

    /// The border between both shards by the rules in force, and whether a step is under way.
    async fn border(&self) -> anyhow::Result<(u16, bool)> {
        let version = self.place.cluster.client().await?.rules(0).await?;
        let rules =
            Topology::parse(&version.text).map_err(|mistakes| anyhow::anyhow!("{mistakes:?}"))?;
        let shard = holdfast_route::ShardId::parse("shard-1").context("a name")?;
        let slots = rules.groups()["account"].slots_of(&shard);
        let last = slots.last().context("no slot")?.last.number();
        Ok((last, rules.moving().is_some_and(|moving| moving.is_frozen())))
    }
}

impl Load {
    /// Waits until so much more was done.
    async fn goes_on(&self) -> anyhow::Result<()> {
        let now = || {
            (self.done.transfers.load(Ordering::Relaxed), self.done.looks.load(Ordering::Relaxed))
        };
        let (transfers, looks) = now();
        until("clients go on", SOON, async || {
            let (more, seen) = now();
            (more >= transfers + 50 && seen >= looks + 10).then_some(())
        })
        .await
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.stopped.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// Money goes to and fro: within pairs, whose transactions are of one source, and between pairs, mostly of two.
async fn write(
    client: Client,
    pairs: &[[String; 2]],
    number: u64,
    stopped: &AtomicBool,
    done: &Done,
) -> anyhow::Result<()> {
    for turn in number.. {
        if stopped.load(Ordering::Relaxed) {
            break;
        }
        let at = usize::try_from(turn * 7 % PAIRS as u64)?;
        let [one, two] = &pairs[at];
        let other = &pairs[(at * 5 + 11) % PAIRS];
        let mut ids = match turn % 3 {
            // Both of one pair go to both of the other, so that no pair is ever seen with more or less than it has.
            0 => vec![(one, -1), (two, 1), (&other[0], 1), (&other[1], -1)],
            _ if turn % 2 == 0 => vec![(one, -1), (two, 1)],
            _ => vec![(one, 1), (two, -1)],
        };
        ids.sort();
        let moved = async {
            client.batch_execute("BEGIN").await?;
            for (id, by) in &ids {
                let sql = format!("UPDATE account SET balance = balance + {by} WHERE id = '{id}'");
                let SimpleQueryMessage::CommandComplete(1) =
                    client.simple_query(&sql).await?.into_iter().last().context("no answer")?
                else {
                    anyhow::bail!("account {id} was not found");
                };
            }
            client.batch_execute("COMMIT").await?;
            Ok(())
        };
        match moved.await {
            Ok(()) => drop(done.transfers.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                let code =
                    error.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.code());
                let code = code.with_context(|| format!("{error:#}"))?;
                // Nothing was done, or (40003) nobody can say yet: each is right whatever became of it.
                let may = *code == SqlState::T_R_SERIALIZATION_FAILURE
                    || *code == SqlState::TRANSACTION_ROLLBACK
                    || *code == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
                    || *code == SqlState::T_R_DEADLOCK_DETECTED
                    || *code == SqlState::CANNOT_CONNECT_NOW;
                ensure!(may, "{error:#}");
                client.batch_execute("ROLLBACK").await?;
            }
        }
    }
    Ok(())
}

/// Every row is there once, and every pair has what it has, at each moment.
async fn look(
    client: Client,
    pairs: &[[String; 2]],
    stopped: &AtomicBool,
    done: &Done,
) -> anyhow::Result<()> {
    let all = (PAIRS * 2).to_string();
    let count = "SELECT count(*), count(DISTINCT id) FROM account".to_owned();
    for [one, two] in pairs.iter().cycle() {
        if stopped.load(Ordering::Relaxed) {
            break;
        }
        let sum =
            format!("SELECT count(*), sum(balance) FROM account WHERE id IN ('{one}', '{two}')");
        let pair = ["2".to_owned(), (2 * BALANCE).to_string()];
        for (sql, wanted) in [(&count, &[all.clone(), all.clone()]), (&sum, &pair)] {
            match texts(&client, sql).await {
                Ok(rows) => ensure!(rows == [wanted.as_slice()], "{sql}: {rows:?}"),
                Err(error) => {
                    let may = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::CANNOT_CONNECT_NOW];
                    ensure!(error.code().is_some_and(|code| may.contains(code)), "{error:?}");
                }
            }
        }
        done.looks.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_under_load_while_the_leader_dies_and_every_look_finds_every_row_once()
-> anyhow::Result<()> {
    let mut stage = Stage::set().await?;
    let load = stage.load().await?;
    load.goes_on().await?;
    let ended = stage.move_to(255, &[], None).await?;
    ensure!(ended.code == Some(0), "{}", ended.words);
    ensure!(ended.told["done"] == true && ended.told["rows"].as_u64() > Some(0), "{}", ended.told);
    load.goes_on().await?;
    // Back again; the leader dies while a step is under way, and another when that is over.
    let file = stage.place.cluster.folder.write("back.toml", rules(511))?;
    let moving = stage
        .command(&file, &["--tries", "100"])?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    for _ in 0..2 {
        until("slots are frozen", 2 * SOON, async || {
            let (last, frozen) = stage.border().await.ok()?;
            (frozen || last == 511).then_some(())
        })
        .await?;
        let leader = stage.place.cluster.leader().await?;
        stage.place.cluster.nodes[leader].process.kill().await?;
        stage.place.cluster.start_nodes().await?;
    }
    let ended = moving.wait_with_output().await?;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    load.goes_on().await?;
    load.stop().await?;
    stage.audit(511).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_dies_at_any_stage_is_done_by_the_next_and_no_row_is_lost_or_doubled()
-> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let load = stage.load().await?;
    let sites = Site::ALL.iter().filter(|site| site.role() == Role::Mover);
    let mut last = 511;
    for site in sites {
        last = if last == 511 { 255 } else { 511 };
        load.goes_on().await?;
        let ended = stage.move_to(last, &[], Some(*site)).await?;
        ensure!(ended.code.is_none(), "{}: it did not die: {}", site.name(), ended.words);
        // Slots thaw, and what is decided is carried out, though nobody begins the move again.
        load.goes_on().await?;
        until("nothing is prepared, and nothing is frozen", SOON, async || {
            let frozen = stage.border().await.ok()?.1;
            (!frozen && stage.place.prepared().await.ok()? == 0).then_some(())
        })
        .await?;
        let ended = stage.move_to(last, &[], None).await?;
        ensure!(ended.code == Some(0), "{}: {}", site.name(), ended.words);
        ensure!(stage.border().await? == (last, false), "{}", site.name());
    }
    load.stop().await?;
    stage.audit(last).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_moves_past_a_router_that_does_not_answer_until_its_lease_is_over()
-> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let router = &stage.place.routers[1];
    router.signal(Signal::SIGSTOP)?;
    let ended = stage.move_to(255, &["--tries", "1", "--pause-max-ms", "500"], None).await?;
    ensure!(ended.code == Some(1) && ended.words.contains("HF1032"), "{}", ended.words);
    let address = format!("127.0.0.1:{}", stage.place.port(1));
    ensure!(ended.words.contains(&address), "{}", ended.words);
    ensure!(stage.border().await? == (511, false), "the slots lie where they lay");
    // Tried again and again, it is done when nobody can go by the older rules any more.
    let ended = stage.move_to(255, &["--tries", "1000"], None).await?;
    ensure!(ended.code == Some(0), "{}", ended.words);
    router.signal(Signal::SIGCONT)?;
    let client = stage.place.connect(1).await?;
    let moved = stage.pairs.iter().flatten().find(|id| (256..512).contains(&slot(id)));
    let moved = moved.context("no account has moved")?;
    let sql = format!("UPDATE account SET balance = balance WHERE id = '{moved}'");
    // It wakes with rules that are too old to go by, and says so, or has the new ones already; it never goes by the old ones.
    let found = until("the router goes by the new rules", SOON, async || {
        match client.simple_query(&sql).await {
            Ok(said) => Some(matches!(said.last(), Some(SimpleQueryMessage::CommandComplete(1)))),
            Err(error) => (error.code() != Some(&SqlState::CANNOT_CONNECT_NOW)).then_some(false),
        }
    })
    .await?;
    ensure!(found, "the row was looked for where it lay");
    stage.audit(255).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_moved_is_told_and_nothing_is_changed() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let told = |ended: &Ended, words: &str| -> anyhow::Result<()> {
        ensure!(ended.code != Some(0) && ended.words.contains(words), "{}", ended.words);
        Ok(())
    };
    told(
        &stage.move_to(511, &[], None).await?,
        "HF1029 nothing was done: no slot has another place",
    )?;
    let [one, two] = stage.place.sources().await?;
    one.batch_execute("ALTER TABLE account ADD note text; ALTER TABLE account ADD more int")
        .await?;
    two.batch_execute("ALTER TABLE account ADD more int; ALTER TABLE account ADD note text")
        .await?;
    told(&stage.move_to(255, &[], None).await?, "Make them alike, in their order too")?;
    for source in [&one, &two] {
        source.batch_execute("ALTER TABLE account DROP note, DROP more").await?;
    }
    one.batch_execute("CREATE TABLE other (id text REFERENCES account)").await?;
    told(&stage.move_to(255, &[], None).await?, "only one of them moves")?;
    one.batch_execute("DROP TABLE other").await?;
    // A session at the source itself that holds its lock.
    one.batch_execute("BEGIN; UPDATE account SET balance = balance").await?;
    let dry = stage.move_to(255, &["--dry-run"], None).await?;
    ensure!(
        dry.code == Some(0) && dry.told["legs"][0]["slots"] == 256,
        "{} {}",
        dry.words,
        dry.told
    );
    one.batch_execute("ROLLBACK").await?;
    ensure!(stage.border().await? == (511, false));
    stage.audit(511).await?;
    let ended = stage.move_to(255, &[], None).await?;
    ensure!(ended.code == Some(0), "{}", ended.words);
    ensure!(stage.place.cluster.client().await?.rules(0).await?.text == rules(255));
    stage.audit(255).await
}

/// Rows of every kind of column go as they are, with those that belong to them, and the triggers of their tables are not asked again.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_any_kind_go_as_they_are() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let tables = "CREATE TABLE entry (
            id text NOT NULL REFERENCES account, number bigint GENERATED ALWAYS AS IDENTITY, amount numeric(20, 4) NOT NULL,
            doubled numeric GENERATED ALWAYS AS (amount * 2) STORED, at timestamptz, day date, span interval, ratio double precision, raw bytea,
            doc jsonb, words text[], \"Odd name, with \"\"quotes\"\"\" text, PRIMARY KEY (id, number));
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'entries stay'; END $$;
        CREATE TRIGGER stay BEFORE DELETE ON entry FOR EACH ROW EXECUTE FUNCTION refuse()";
    let [one, two] = stage.place.sources().await?;
    for source in [&one, &two] {
        source.batch_execute(tables).await?;
    }
    let entries = "INSERT INTO entry (id, amount, at, day, span, ratio, raw, doc, words, \"Odd name, with \"\"quotes\"\"\")
        SELECT id, 1.5, '2026-11-28 12:00:00.123456+05', '0044-03-15 BC', '1 mon -2 days 00:00:03.5', 0.1::float8 / 3, '\\x00ff27', '{\"a\": [1, null]}',
            ARRAY['a,b', NULL, '\"', '\\'], E'tab\\tnew\\nline, \"quote\" (paren) \\\\' FROM account";
    for source in [&one, &two] {
        source.batch_execute(entries).await?;
    }
    let with_entries = |last| {
        rules(last)
            .replace("[table.currency]", "[table.entry]\ngroup = \"account\"\n\n[table.currency]")
    };
    stage.place.apply_rules(&with_entries(511), 1).await?;
    let all = "SELECT (e.id, e.amount, e.doubled, e.at, e.day, e.span, e.ratio, e.raw, e.doc, e.words, e.\"Odd name, with \"\"quotes\"\"\")::text FROM entry e";
    let read = async || -> anyhow::Result<Vec<String>> {
        let mut rows = Vec::new();
        for source in [&one, &two] {
            rows.extend(source.query(all, &[]).await?.iter().map(|row| row.get::<_, String>(0)));
        }
        rows.sort();
        Ok(rows)
    };
    let before = read().await?;
    ensure!(before.len() == PAIRS * 2, "{}", before.len());
    let file = stage.place.cluster.folder.write("entries.toml", with_entries(255))?;
    let ended = stage.command(&file, &[])?.output().await?;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    ensure!(read().await? == before, "rows are not what they were");
    let astray = two.query("SELECT id FROM entry EXCEPT SELECT id FROM account", &[]).await?;
    ensure!(astray.is_empty(), "entries without their accounts");
    stage.audit(255).await
}

/// Entries lie by the slots of their values, not of their owners, and both go where their own slots go.
#[tokio::test(flavor = "multi_thread")]
async fn entries_of_lookups_go_with_the_slots_of_their_values() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let with_lookup = |last| {
        format!("{}\n[lookup.phone]\ntable = \"account\"\ncolumn = \"phone\"\n", rules(last))
    };
    let read = Topology::parse(&with_lookup(511));
    let sql = read.map_err(|mistakes| anyhow::anyhow!("{mistakes:?}"))?.lookup_sql();
    for source in stage.place.sources().await? {
        source.batch_execute("ALTER TABLE account ADD COLUMN phone text").await?;
        source.batch_execute(&sql).await?;
    }
    stage.place.apply_rules(&with_lookup(511), 1).await?;
    let client = stage.place.connect(1).await?;
    until("the router has the lookup", SOON, async || {
        texts(&client, "SELECT holdfast.locate('phone', 'nobody')").await.ok()
    })
    .await?;
    client.batch_execute("SET holdfast.read_own_writes = on").await?;
    let owners: Vec<&String> = stage.pairs.iter().flatten().collect();
    for id in &owners {
        let sql = format!("UPDATE account SET phone = '+49-30-{id}' WHERE id = '{id}'");
        client.batch_execute(&sql).await?;
    }
    let count = "SELECT count(*) FROM holdfast.lookup";
    let [one, two] = stage.place.sources().await?;
    let before: i64 = two.query_one(count, &[]).await?.get(0);
    let file = stage.place.cluster.folder.write("lookups.toml", with_lookup(255))?;
    let ended = stage.command(&file, &[])?.output().await?;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let behind: i64 = two.query_one(count, &[]).await?.get(0);
    let left: i64 = one.query_one(count, &[]).await?.get(0);
    ensure!(behind > before && left + behind == owners.len() as i64, "{before} {behind} {left}");
    for id in owners {
        let found =
            texts(&client, &format!("SELECT holdfast.locate('phone', '+49-30-{id}')")).await?;
        ensure!(found.len() == 1 && found[0].contains(id), "{id}: {found:?}");
    }
    let mut check = Command::new(holdfast()?);
    check.args(["rules", "check"]).arg(&file).arg("--sources").arg(stage.place.config(0));
    let checked = check.output().await?;
    ensure!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    stage.audit(255).await
}
