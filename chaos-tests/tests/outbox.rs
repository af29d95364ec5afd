//! Messages of local transactions while the relay dies: published if and only if committed, in order per key, each effect once.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{
    Cluster, Folder, Postgres, Process, Program, SOON, Service, holdfast, http, ports, until,
};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

const PUBLISHERS: usize = 4;
const KEYS: usize = 5;
/// Effects between two faults.
const SOME: i64 = 15;

/// A relay process.
struct Relay {
    http: String,
    kill: PathBuf,
    process: Process,
}

impl Relay {
    fn new(name: &str, database: &str, cluster: &Cluster) -> anyhow::Result<Self> {
        let http = format!("127.0.0.1:{}", ports::free(1)?[0]);
        let folder = cluster.folder.path();
        let kill = folder.join(format!("{name}.kill"));
        let coordinators = cluster.addresses().join(",");
        let arguments = ["outbox", "relay", "--database", database, "--route", "points=loyalty"];
        let doors = ["--http", http.as_str(), "--coordinator", coordinators.as_str()];
        let program = Program {
            name: name.to_owned(),
            path: holdfast()?.to_owned(),
            arguments: arguments.into_iter().chain(doors).map(Into::into).collect(),
            environment: vec![("HOLDFAST_KILL_FILE".to_owned(), kill.display().to_string())],
            run_as: None,
            kill_when_dropped: true,
        };
        let process = Process::new(program, folder);
        Ok(Self { http, kill, process })
    }

    /// Waits until its door says so.
    async fn says(&mut self, words: &str) -> anyhow::Result<()> {
        let what = format!("a relay says {words}");
        let said = until(&what, SOON, async || {
            if let Err(ended) = self.process.check() {
                return Some(Err(ended));
            }
            let reply = http::get(&self.http, "/readyz").await.ok()?;
            String::from_utf8_lossy(&reply.body).starts_with(words).then_some(Ok(()))
        });
        said.await?
    }

    /// Dies at a kill point, and starts again.
    async fn dies_at(&mut self, site: &str) -> anyhow::Result<()> {
        let (draft, hit) = (self.kill.with_extension("draft"), self.kill.with_extension("hit"));
        std::fs::write(&draft, site)?;
        std::fs::rename(&draft, &self.kill)?;
        until(&format!("{site} is reached"), SOON, async || hit.exists().then_some(())).await?;
        self.process.ended(SOON).await?;
        let said = format!("kill point {site} reached: aborting");
        ensure!(self.process.log_text().contains(&said), self.process.complaint("died otherwise"));
        std::fs::remove_file(&hit)?;
        self.process.start()?;
        self.says("ready").await
    }
}

async fn run(arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let ended = tokio::process::Command::new(holdfast()?).args(arguments).output().await?;
    let words = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{arguments:?}: {words}");
    Ok(ended.stdout)
}

async fn status(database: &str) -> anyhow::Result<Value> {
    let arguments = ["outbox", "status", "--database", database, "--output", "json"];
    Ok(serde_json::from_slice(&run(&arguments).await?)?)
}

/// Local transactions, three of four committed: a counter of the key goes up, and a message says to what.
async fn publish_until(database: Client, seed: usize, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let mut turn = seed;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let key = format!("k{}", turn % KEYS);
        let keep = !turn.is_multiple_of(4);
        database.batch_execute("BEGIN").await?;
        let count = "UPDATE counters SET n = n + 1 WHERE key = $1 RETURNING n";
        let number: i64 = database.query_one(count, &[&key]).await?.get(0);
        let payload = serde_json::json!({"number": number, "kept": keep}).to_string();
        let publish = "SELECT holdfast.publish('points', $1, 'counted.v1', $2::text::jsonb)";
        database.query_one(publish, &[&key, &payload]).await?;
        database.batch_execute(if keep { "COMMIT" } else { "ROLLBACK" }).await?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// The service beside the agent: an effect for each action that its barrier lets through.
async fn serve(mut service: Service, mut database: Client) -> anyhow::Result<()> {
    loop {
        let asked = service.next(Duration::from_secs(600)).await?;
        let event: Value = serde_json::from_slice(&asked.body)?;
        let local = database.transaction().await?;
        let branch = i32::try_from(asked.branch)?;
        let enter = "SELECT holdfast.enter($1, $2, $3)";
        let verdict = local.query_one(enter, &[&asked.gid, &branch, &asked.op]).await?;
        if verdict.get::<_, &str>(0) == "proceed" {
            let effect = "INSERT INTO effects (key, number, kept) VALUES ($1, $2, $3)";
            let key = event["subject"].as_str().context("a key")?;
            let number = event["data"]["number"].as_i64().context("a number")?;
            let kept = event["data"]["kept"].as_bool().context("kept or not")?;
            local.execute(effect, &[&key, &number, &kept]).await?;
        }
        local.commit().await?;
        // An agent that has gone meanwhile asks again.
        let _sent = asked.answer(200).await;
    }
}

async fn number(database: &Client, sql: &str) -> anyhow::Result<i64> {
    Ok(database.query_one(sql, &[]).await?.get(0))
}

async fn some_more(database: &Client) -> anyhow::Result<()> {
    let count = "SELECT count(*) FROM effects";
    let from = number(database, count).await?;
    until("messages take effect", SOON, async || {
        (number(database, count).await.ok()? >= from + SOME).then_some(())
    })
    .await
}

struct Stage {
    cluster: Cluster,
    shop: String,
    postgres: Postgres,
    _folder: Folder,
}

async fn stage() -> anyhow::Result<Stage> {
    let cluster = Cluster::start(0).await?;
    let folder = Folder::make()?;
    let postgres = databases(folder.path()).await?;
    let (shop, points) = (postgres.connection_string("shop"), postgres.connection_string("points"));
    run(&["outbox", "install", "--database", &shop]).await?;
    run(&["barrier", "install", "--database", &points]).await?;
    let database = postgres.connect("shop").await?;
    database
        .batch_execute("CREATE TABLE counters (key text PRIMARY KEY, n bigint NOT NULL)")
        .await?;
    for key in 0..KEYS {
        let insert = format!("INSERT INTO counters VALUES ('k{key}', 0)");
        database.batch_execute(&insert).await?;
    }
    let table =
        "CREATE TABLE effects (at bigserial PRIMARY KEY, key text, number bigint, kept boolean)";
    postgres.connect("points").await?.batch_execute(table).await?;
    Ok(Stage { cluster, shop, postgres, _folder: folder })
}

async fn databases(folder: &Path) -> anyhow::Result<Postgres> {
    let postgres = Postgres::start(folder).await?;
    postgres.create("shop").await?;
    postgres.create("points").await?;
    Ok(postgres)
}

/// Each key's effects are 1, 2, 3, ... to what its counter says, and none is of a transaction that was rolled back.
async fn judge(shop: &Client, points: &Client) -> anyhow::Result<()> {
    let rows = points.query("SELECT key, number, kept FROM effects ORDER BY at", &[]).await?;
    let mut effects: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for row in rows {
        ensure!(row.get::<_, bool>(2), "an effect of what was rolled back: {row:?}");
        effects.entry(row.get(0)).or_default().push(row.get(1));
    }
    let mut sum = 0;
    for row in shop.query("SELECT key, n FROM counters ORDER BY key", &[]).await? {
        let (key, n): (String, i64) = (row.get(0), row.get(1));
        let seen = effects.remove(&key).unwrap_or_default();
        ensure!(seen == (1..=n).collect::<Vec<_>>(), "{key}: {n} committed, effects {seen:?}");
        sum += n;
    }
    ensure!(effects.is_empty(), "effects of nothing: {effects:?}");
    ensure!(sum >= 4 * SOME, "only {sum} messages");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_takes_effect_once_and_in_order_if_and_only_if_it_was_committed_while_relays_die()
-> anyhow::Result<()> {
    let Stage { cluster, shop, postgres, _folder } = stage().await?;
    let service = Service::start().await?;
    let _agent = cluster.agent("loyalty", &service.address).await?;
    let (out, points) = (postgres.connect("shop").await?, postgres.connect("points").await?);
    let serving: JoinHandle<anyhow::Result<()>> =
        tokio::spawn(serve(service, postgres.connect("points").await?));

    // A topic that leads nowhere holds up nobody else.
    let lost = "SELECT holdfast.publish('nowhere', 'k0', 'counted.v1', '{}')";
    out.query_one(lost, &[]).await?;
    let mut first = Relay::new("relay-1", &shop, &cluster)?;
    first.process.start()?;
    first.says("ready").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut publishers = Vec::new();
    for seed in 0..PUBLISHERS {
        let database = postgres.connect("shop").await?;
        publishers.push(tokio::spawn(publish_until(database, seed, Arc::clone(&stop))));
    }
    some_more(&points).await?;
    for site in ["relay-before-submit", "relay-before-delete"] {
        first.dies_at(site).await?;
        some_more(&points).await?;
    }
    let mut second = Relay::new("relay-2", &shop, &cluster)?;
    second.process.start()?;
    second.says("not ready: standing by").await?;
    first.process.kill().await?;
    second.says("ready").await?;
    some_more(&points).await?;

    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await??;
    }
    let blocked = until("only what leads nowhere is left", 2 * SOON, async || {
        let now = status(&shop).await.ok()?;
        (now["pending"] == 1 && now["blocked"][0]["topic"] == "nowhere").then_some(now)
    })
    .await?;
    let why = blocked["blocked"][0]["why"].as_str().unwrap_or_default();
    ensure!(why.starts_with("HF4120") && blocked["relayed"] == true, "{blocked:#}");
    judge(&out, &points).await?;
    out.batch_execute("DELETE FROM holdfast.outbox WHERE aggregatetype = 'nowhere'").await?;
    ensure!(status(&shop).await?["pending"] == 0);
    ensure!(!serving.is_finished(), "the service broke: {:?}", serving.await);
    Ok(())
}
