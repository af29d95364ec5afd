//! Restore points are taken under load by the real command, and everything is restored to one of them: what is there then is one state.
//!
//! Two PostgreSQL servers archive their logs. On each lies one half of what a router has, and one of two banks. Transfers go from the
//! one to the other all the time, as XA by way of the router and as TCC between the banks. Then everything is lost but a copy of each
//! server from the beginning, its archive, and the files of a restore point from the middle.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use holdfast_banking::{
    NewAccount, audit_all,
    ledger::{AccountId, Currency},
    migrate, open_accounts,
};
use holdfast_chaos_tests::{
    Cluster, Postgres, Process, Program, RULES, SOON, Shape, holdfast, http, journal, ports, until,
};
use holdfast_client::{Client, ClientOptions, Submission};
use serde_json::{Value, json};
use tokio::{process::Command, task::JoinSet};
use tokio_postgres::NoTls;

/// Raft groups, whose leaders are spread over the nodes.
const GROUPS: u32 = 3;
/// Accounts of each kind on each side, and what each has at first.
const ACCOUNTS: u64 = 40;
const BALANCE: i64 = 1_000_000;
/// Who transfers at once, of each kind.
const CLIENTS: u64 = 3;
/// For everything to come to its end once it is restored.
const ENDED_MAX: Duration = Duration::from_secs(60);
const TABLES: &str = "CREATE TABLE account (id text PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE entry (id text NOT NULL, transfer text NOT NULL, amount bigint NOT NULL, PRIMARY KEY (id, transfer))";

/// Accounts and their entries lie together.
fn rules() -> String {
    let entry = "[table.entry]\ngroup = \"account\"";
    RULES.replace("[table.currency]\nreference = true", entry)
}

/// Everything that runs.
struct House {
    /// The router, then the banks.
    roles: Vec<(String, Process)>,
    port: u16,
    servers: [Postgres; 2],
    cluster: Cluster,
}

impl House {
    async fn start() -> anyhow::Result<Self> {
        let shape = Shape { groups: GROUPS, ..Shape::default() };
        let cluster = Cluster::shaped(0, shape).await?;
        let folder = cluster.folder.path();
        let servers =
            [Postgres::archiving("one", folder).await?, Postgres::archiving("two", folder).await?];
        let ports = ports::free(4)?;
        let mut house = Self { roles: Vec::new(), port: ports[0], servers, cluster };
        let rules = house.cluster.folder.write("rules.toml", rules())?;
        let mut sources = String::new();
        for (at, server) in (1..).zip(&house.servers) {
            for database in [format!("pg-{at}"), format!("shard-{at}")] {
                server.create(&database).await?;
            }
            server.connect(&format!("pg-{at}")).await?.batch_execute(TABLES).await?;
            migrate(&mut server.connect(&format!("shard-{at}")).await?).await?;
            let database = server.connection_string(&format!("pg-{at}"));
            sources +=
                &format!("[[sources.source]]\nname = \"pg-{at}\"\ndatabase = \"{database}\"\n");
        }
        let coordinators = house.cluster.addresses();
        let around = |door: u16| {
            format!(
                "http = \"127.0.0.1:{door}\"\n[coordinators]\naddresses = {coordinators:?}\n[security]\nmode = \"dev-plaintext\"\n"
            )
        };
        let router = format!(
            "[router]\nrules = {rules:?}\n{sources}[auth]\nmode = \"trust-loopback\"\n[bind]\npostgres = \"127.0.0.1:{}\"\n{}",
            ports[0],
            around(ports[1])
        );
        house.add("router", &router, ports[1])?;
        for at in 1..=2 {
            let database = house.servers[at - 1].connection_string(&format!("shard-{at}"));
            let door = ports[at + 1];
            let bank = format!(
                "[bank]\nshard = \"shard-{at}\"\ndatabase = \"{database}\"\n[bind]\n{}",
                around(door)
            );
            house.add(&format!("bank-{at}"), &bank, door)?;
        }
        house.ready().await?;
        Ok(house)
    }

    fn add(&mut self, name: &str, config: &str, door: u16) -> anyhow::Result<()> {
        let config = self.cluster.folder.write(&format!("{name}.toml"), config)?;
        let role = name.split('-').next().context("a role")?;
        let arguments = vec![role.into(), "--config".into(), config.into()];
        let mut process = program(name, arguments, &self.cluster)?;
        process.start()?;
        self.roles.push((format!("127.0.0.1:{door}"), process));
        Ok(())
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        for (door, process) in &mut self.roles {
            let ready = until("a process is ready", SOON, async || {
                let asked = http::get(door, "/readyz").await;
                asked.is_ok_and(|reply| reply.status == 200).then_some(())
            });
            ready.await.map_err(|error| error.context(process.complaint("is not ready")))?;
        }
        Ok(())
    }

    async fn router(&self) -> anyhow::Result<tokio_postgres::Client> {
        let string = format!("host=127.0.0.1 port={} user=holdfast dbname=bank", self.port);
        let (client, connection) = tokio_postgres::connect(&string, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// One side of what the router has, and the other; and the banks'.
    async fn databases(&self, kind: &str) -> anyhow::Result<Vec<(String, tokio_postgres::Client)>> {
        let mut databases = Vec::new();
        for (at, server) in (1..).zip(&self.servers) {
            let name = format!("{kind}-{at}");
            let client = server.connect(&name).await?;
            databases.push((name, client));
        }
        Ok(databases)
    }

    /// Runs the command about the coordinators, and gives what it says as JSON.
    async fn holdfast(&self, words: &[&str]) -> anyhow::Result<Value> {
        let mut command = Command::new(holdfast()?);
        command.args(words).args(["--output", "json"]);
        let ended = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let told = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "{words:?}: {told}");
        Ok(serde_json::from_slice(&ended.stdout)?)
    }

    async fn restore_point(&self, name: &str) -> anyhow::Result<(PathBuf, Value)> {
        let folder = self.cluster.folder.path();
        let file = folder.join(format!("{name}.backup"));
        let (to, sources) = (file.display().to_string(), folder.join("router.toml"));
        let sources = sources.display().to_string();
        let at = self.cluster.addresses().join(",");
        let words = [
            "cluster",
            "restore-point",
            name,
            "--to",
            &to,
            "--sources",
            &sources,
            "--coordinator",
            &at,
        ];
        // A leadership that moves costs the attempt, and leaves no file.
        let told =
            until("a restore point is taken", SOON, async || match self.holdfast(&words).await {
                Err(error) if error.to_string().contains("HF1306") => None,
                told => Some(told),
            });
        let told = told.await??;
        let groups = told["restore_point"]["groups"].as_array().map_or(0, Vec::len);
        ensure!(groups == GROUPS as usize, "{told}");
        let manifest = std::fs::read_to_string(folder.join(format!("{name}.backup.points.json")))?;
        ensure!(told["restore_point"] == serde_json::from_str::<Value>(&manifest)?, "{manifest}");
        Ok((file, told["restore_point"].clone()))
    }

    /// Loses everything that runs; then each server from its copy to the point, one coordinator from the file, and the others on them.
    async fn restore(
        &mut self,
        copies: [PathBuf; 2],
        file: &str,
        point: &Value,
    ) -> anyhow::Result<()> {
        for (at, source) in point["sources"].as_array().context("sources")?.iter().enumerate() {
            let wal_file = source["wal_file"].as_str().context("a file of the log")?;
            let archived = self.servers[at].archive().join(wal_file);
            until("the point is archived", SOON, async || archived.exists().then_some(())).await?;
        }
        for (_, process) in &mut self.roles {
            process.kill().await?;
        }
        self.cluster.kill_nodes().await?;
        let target = point["recovery_target_name"].as_str().context("a name")?;
        for (server, copy) in self.servers.iter_mut().zip(copies) {
            server.recover(copy, target).await?;
        }
        let folder = self.cluster.folder.path();
        let config = folder.join("coordinator-1.toml").display().to_string();
        let data = folder.join("restored").display().to_string();
        let words = ["cluster", "restore", file, "--config", &config, "--data-dir", &data];
        self.holdfast(&words).await?;
        let words = ["coordinator", "--config", &config, "--data-dir", &data];
        let arguments = words.map(Into::into).to_vec();
        self.cluster.nodes[0].process = program("coordinator-restored", arguments, &self.cluster)?;
        self.cluster.nodes[0].process.start()?;
        for (_, process) in &mut self.roles {
            process.start()?;
        }
        self.ready().await
    }

    /// Waits until nothing is open at the coordinator, prepared on a server, or held by a bank.
    async fn ended(&self) -> anyhow::Result<()> {
        let banks = self.databases("shard").await?;
        let servers = self.databases("pg").await?;
        let node = self.cluster.nodes[0].grpc.as_str();
        let client = Client::lazy([node], ClientOptions::default())?;
        until("all that was open has ended", ENDED_MAX, async || {
            for (_, server) in &servers {
                let sql = "SELECT count(*) FROM pg_prepared_xacts";
                if server.query_one(sql, &[]).await.ok()?.get::<_, i64>(0) > 0 {
                    return None;
                }
            }
            let mut open = 0;
            for group in 0..GROUPS {
                open += client.node_status_of(node, group).await.ok()?.open_transactions;
            }
            (open == 0 && journal::held_minor(&banks).await.ok()? == 0).then_some(())
        })
        .await
    }
}

fn program(
    name: &str,
    arguments: Vec<std::ffi::OsString>,
    cluster: &Cluster,
) -> anyhow::Result<Process> {
    let program = Program {
        name: name.to_owned(),
        path: holdfast()?.to_owned(),
        arguments,
        environment: Vec::new(),
        run_as: None,
        kill_when_dropped: true,
    };
    Ok(Process::new(program, cluster.folder.path()))
}

/// Transfers that were told to be committed, of both kinds.
#[derive(Default)]
struct Told {
    committed: Mutex<BTreeSet<String>>,
    next: AtomicU64,
    stopped: AtomicBool,
}

impl Told {
    fn so_far(&self) -> BTreeSet<String> {
        self.committed.lock().expect("no holder panics").clone()
    }

    fn goes_on(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        (!self.stopped.load(Ordering::SeqCst)).then_some(number)
    }

    fn tell(&self, id: String) {
        self.committed.lock().expect("no holder panics").insert(id);
    }

    /// Waits until so many more of each kind are told.
    async fn more(&self, count: usize) -> anyhow::Result<()> {
        let of = |kind| self.so_far().iter().filter(|id| id.starts_with(kind)).count();
        let goals = ["xa", "tcc"].map(|kind| (kind, of(kind) + count));
        until("more transfers commit", SOON, async || {
            goals.iter().all(|(kind, goal)| of(kind) >= *goal).then_some(())
        })
        .await
    }
}

/// From one source to the other, by way of the router.
async fn by_the_router(
    client: &tokio_postgres::Client,
    id: &str,
    from: &str,
    to: &str,
) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    for (account, amount) in [(from, -1_i64), (to, 1)] {
        let sql = "UPDATE account SET balance = balance + $2 WHERE id = $1";
        client.execute(sql, &[&account, &amount]).await?;
        let sql = "INSERT INTO entry (id, transfer, amount) VALUES ($1, $2, $3)";
        client.execute(sql, &[&account, &id, &amount]).await?;
    }
    client.batch_execute("COMMIT").await
}

/// From one bank to the other.
fn by_the_banks(id: &str, from: &str, to: &str) -> Submission {
    let leg = |account: &str| json!({"account": account, "amount_minor": "1", "currency": "EUR"});
    let debit = json!({"debit": leg(from)}).to_string();
    let credit = json!({"credit": leg(to)}).to_string();
    Submission::tcc().gid(id).branch("deposit@shard-1", debit).branch("deposit@shard-2", credit)
}

/// Opens the accounts, and has clients transfer between them until they are stopped.
async fn load(house: &House, told: &Arc<Told>) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let rows: Vec<String> = (0..4 * ACCOUNTS).map(|n| format!("('a-{n}', {BALANCE})")).collect();
    let router = house.router().await?;
    router.batch_execute("SET holdfast.read_own_writes = on").await?;
    let sql = format!("INSERT INTO account (id, balance) VALUES {}", rows.join(", "));
    router.batch_execute(&sql).await?;
    let mut sides = Vec::new();
    for (_, source) in house.databases("pg").await? {
        let rows = source.query("SELECT id FROM account ORDER BY id", &[]).await?;
        let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        ensure!(ids.len() as u64 >= ACCOUNTS, "{ids:?}");
        sides.push(ids);
    }
    for (at, (_, bank)) in house.databases("shard").await?.iter().enumerate() {
        let currency = Currency::parse("EUR")?;
        let accounts = (0..ACCOUNTS).map(|n| {
            let id = AccountId::parse(&format!("B{at}-{n}"))?;
            anyhow::Ok(NewAccount { id, currency, balance_minor: BALANCE })
        });
        open_accounts(bank, &accounts.collect::<anyhow::Result<Vec<_>>>()?).await?;
    }
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let [mine, also] = [Arc::clone(told), Arc::clone(told)];
        let (client, sides) = (house.router().await?, sides.clone());
        clients.spawn(async move {
            while let Some(number) = mine.goes_on() {
                let id = format!("xa-{number}");
                let account = (number % ACCOUNTS) as usize;
                match by_the_router(&client, &id, &sides[0][account], &sides[1][account]).await {
                    Ok(()) => mine.tell(id),
                    // It may be committed, or not: the books say it.
                    Err(_) => client.batch_execute("ROLLBACK").await?,
                }
            }
            Ok(())
        });
        let client = house.cluster.client().await?;
        clients.spawn(async move {
            while let Some(number) = also.goes_on() {
                let id = format!("tcc-{number}");
                let account = number % ACCOUNTS;
                let (from, to) = (format!("B0-{account}"), format!("B1-{account}"));
                if client.submit(by_the_banks(&id, &from, &to)).await?.is_committed() {
                    also.tell(id);
                }
            }
            Ok(())
        });
    }
    Ok(clients)
}

/// Which transfers there are. Every one is on both sides, and the money is what it was.
async fn books(house: &House) -> anyhow::Result<BTreeSet<String>> {
    let mut effects = journal::effects(&house.databases("shard").await?).await?;
    let mut balances = 0;
    for (_, source) in house.databases("pg").await? {
        let sum = "SELECT sum(balance)::bigint FROM account";
        balances += source.query_one(sum, &[]).await?.get::<_, i64>(0);
        for row in source.query("SELECT transfer, id, amount FROM entry", &[]).await? {
            effects.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
        }
    }
    let torn: BTreeMap<_, _> = effects
        .iter()
        .filter(|(_, legs)| {
            legs.len() != 2 || legs.iter().map(|(_, amount)| amount).sum::<i64>() != 0
        })
        .collect();
    ensure!(torn.is_empty(), "on one side alone: {torn:?}");
    ensure!(balances == 4 * ACCOUNTS as i64 * BALANCE, "{balances} on the sources");
    let books = audit_all(&mut house.databases("shard").await?, |_| {}).await?;
    ensure!(books.is_right(), "the audit found: {:?}", books.findings());
    for (currency, sums) in books.totals() {
        ensure!(sums.opening == sums.balance, "{currency} is not conserved: {sums:?}");
    }
    Ok(effects.into_keys().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_restored_from_a_restore_point_under_load_is_one_state() -> anyhow::Result<()> {
    let mut house = House::start().await?;
    let copies = [house.servers[0].base_backup().await?, house.servers[1].base_backup().await?];
    let told = Arc::new(Told::default());
    let mut clients = load(&house, &told).await?;
    told.more(20).await?;
    let (first, _) = house.restore_point("first").await?;
    told.more(20).await?;

    let before = told.so_far();
    let (file, point) = house.restore_point("second").await?;
    let behind = told.next.load(Ordering::SeqCst);
    println!("commits were held for {} ms", point["held_ms"]);
    told.more(20).await?;
    let again = house.restore_point("second").await.expect_err("a file is replaced");
    ensure!(again.to_string().contains("HF1302"), "{again:#}");
    house.restore_point("third").await?;
    told.more(20).await?;
    told.stopped.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    let lost = told.so_far();

    house.restore(copies, &file.display().to_string(), &point).await?;
    house.ended().await?;
    let there = books(&house).await?;
    let missing: Vec<_> = before.difference(&there).collect();
    ensure!(missing.is_empty(), "told to be committed before the restore point: {missing:?}");
    let number = |id: &str| id.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
    let later = there.iter().find(|id| number(id).is_none_or(|number| number >= behind));
    ensure!(later.is_none(), "begun behind the restore point: {later:?}");
    ensure!(there.len() < lost.len(), "nothing was begun behind the restore point");
    println!("{} of {} transfers are in it", there.len(), lost.len());

    // It goes on.
    let options = ClientOptions::default();
    let client = Client::connect([house.cluster.nodes[0].grpc.clone()], options).await?;
    ensure!(client.submit(by_the_banks("tcc-anew", "B0-0", "B1-0")).await?.is_committed());
    ensure!(first.exists() && !first.with_extension("backup.part").exists());
    Ok(())
}
