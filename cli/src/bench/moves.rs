//! `holdfast bench move`: slots move from one source to another under load, and back: how long each step keeps statements waiting, and what clients feel
//! of all of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use holdfast_client::{Client as Coordinators, ClientOptions, wire::ApplyRulesRequest};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_postgres::Client;

use super::{
    bar_postgres::start_servers,
    figures::{self, Cells, Figures},
    goal::{Bound, Goal},
    machine::Machine,
    router_sides::{Pooler, start_router},
    router_transfer::start_coordinators,
    show::{self, note},
};
use crate::demo::{
    cluster::Coordinator,
    ports,
    postgres::{self, DATABASE, Server, USER},
    scratch::Scratch,
};

/// A leader that is new waits as long until it knows every router; a real cluster has led for longer.
const LEASE_MS: u32 = 3_000;
/// Load before the first move, between the two, and behind.
const ALONE: Duration = Duration::from_secs(5);
/// For the router to have the rules.
const READY_MAX: Duration = Duration::from_secs(30);
const SLOTS: u32 = 1_024;

/// Moves half of a source's slots to another and back under load, and measures what it costs those who read and write
#[derive(Debug, clap::Args)]
pub(crate) struct MoveArgs {
    /// The result on standard output as JSON, progress on standard error
    #[arg(long)]
    pub(super) json: bool,
    /// Rows of the table, one half on each of two sources; a quarter moves
    #[arg(long, value_name = "N", default_value_t = 800_000, value_parser = clap::value_parser!(u32).range(1_024..=100_000_000))]
    rows: u32,
    /// Clients that read and write rows by their keys
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=200))]
    clients: u32,
    /// Rows of a step
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    step_rows: u32,
    /// Leave the folders with data and logs
    #[arg(long)]
    keep: bool,
}

/// One statement of a client.
struct Asked {
    at: Instant,
    took: Duration,
    well: bool,
}

/// Measures, whatever comes out.
/// # Errors
/// Something could not be started, or broke down.
pub(crate) async fn run(args: MoveArgs) -> anyhow::Result<ExitCode> {
    let (setup, cells) =
        Scratch::during(args.keep, async |folder| measure(&args, folder).await).await?;
    let clients = args.clients;
    let of_move = |figure| cells.median("steps", 1, figure);
    let failed = cells.median("moving", clients, "failed");
    let goals = [
        Goal::new("pause of a step, ms, p50", of_move("pause_ms_p50"), Bound::AtMost(300.0)),
        Goal::new("statements that failed while slots moved", failed, Bound::AtMost(0.0)),
        Goal::new(
            "rows lost or doubled",
            cells.median("steps", 1, "rows_wrong"),
            Bound::AtMost(0.0),
        ),
    ];
    let columns = [
        "per_s",
        "p50_us",
        "p99_us",
        "max_us",
        "failed",
        "pause_ms_p50",
        "pause_ms_max",
        "rows_per_s",
    ];
    let told = show::Told { setup, cells: &cells, bars: &[], columns: &columns, goals: &goals };
    told.show(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Everything that runs.
struct House {
    servers: Vec<Server>,
    _coordinators: Vec<Coordinator>,
    grpc: Vec<String>,
    router: Pooler,
    config: PathBuf,
}

impl House {
    async fn start(folder: &Path, args: &MoveArgs) -> anyhow::Result<Self> {
        let servers = start_servers(folder, 2).await?;
        for (at, server) in servers.iter().enumerate() {
            let client = server.connect(DATABASE).await?;
            let halves = if at == 0 { "< 512" } else { ">= 512" };
            client
                .batch_execute(&format!(
                    "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL, owner text NOT NULL);
                     INSERT INTO account SELECT id, 1000, repeat('x', 60) FROM generate_series(0, {} - 1) AS id WHERE id % {SLOTS} {halves}",
                    args.rows
                ))
                .await?;
            client.batch_execute("VACUUM ANALYZE account").await?;
        }
        let ports = ports::free(2)?;
        let lease = [("HOLDFAST_LIMITS_ROUTER_LEASE_MAX_MS", LEASE_MS.to_string())];
        let coordinators = start_coordinators(folder, &lease).await?;
        let grpc: Vec<String> = coordinators.iter().map(|node| node.grpc.clone()).collect();
        let request = ApplyRulesRequest {
            text: rules(&servers, 511),
            reason: "the bench begins".to_owned(),
            ..ApplyRulesRequest::default()
        };
        let client = Coordinators::lazy(grpc.iter().cloned(), ClientOptions::default())?;
        client.apply_rules(request).await?;
        let mut config = "[router]\nrules = \"\"\n".to_owned();
        for (n, server) in (1..).zip(&servers) {
            let database = server.connection_string();
            config +=
                &format!("[[sources.source]]\nname = \"pg-{n}\"\ndatabase = \"{database}\"\n");
        }
        config += &format!(
            "[coordinators]\naddresses = {grpc:?}\n[auth]\nmode = \"trust-loopback\"\n[bind]\npostgres = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\n\
             [limits]\npool_size = 32\nrules_age_max_ms = {LEASE_MS}\n[security]\nmode = \"dev-plaintext\"\n",
            ports[0], ports[1]
        );
        let program = std::env::current_exe().context("finding our own program")?;
        let router = start_router(folder, &program, "router", &config, ports[0]).await?;
        let house = Self {
            servers,
            _coordinators: coordinators,
            grpc,
            router,
            config: folder.join("router.toml"),
        };
        let until = Instant::now() + READY_MAX;
        while house.count().await.is_err() {
            ensure!(Instant::now() < until, "the router has no rules");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(house)
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.router.port).user(USER).dbname(DATABASE);
        Ok(postgres::connect(&config).await?)
    }

    /// Rows, and those of different keys, through the router.
    async fn count(&self) -> anyhow::Result<(i64, i64)> {
        let sql = "SELECT count(*), count(DISTINCT id) FROM account";
        let row = self.connect().await?.query_one(sql, &[]).await?;
        Ok((row.get(0), row.get(1)))
    }

    /// Has slots move until the first source has those up to `last`; what the command told.
    async fn move_to(&self, folder: &Path, last: u16, step_rows: u32) -> anyhow::Result<Value> {
        let file = folder.join(format!("to-{last}.toml"));
        fs::write(&file, rules(&self.servers, last))?;
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        command.args(["rules", "move"]).arg(&file).arg("--sources").arg(&self.config);
        command.args(["--reason", "a bench", "--output", "json", "--rows-max", "0"]);
        command.args(["--step-rows", &step_rows.to_string()]);
        command.args(["--coordinator", &self.grpc.join(",")]).kill_on_drop(true);
        let ended = command.output().await?;
        ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        serde_json::from_slice(&ended.stdout).context("what the move told")
    }
}

fn rules(servers: &[Server], last: u16) -> String {
    let mut text = format!(
        "[group.account]\nkey = \"id\"\ntype = \"integer\"\nfunction = \"mod\"\nscatter = \"read\"\nslots = [\n\
         {{ first = 0, last = {last}, shard = \"shard-1\" }},\n{{ first = {}, last = 1023, shard = \"shard-2\" }},\n]\n[table.account]\ngroup = \"account\"\n",
        last + 1
    );
    for (n, server) in (1..).zip(servers) {
        text += &format!(
            "[shard.shard-{n}]\nsource = \"pg-{n}\"\n[source.pg-{n}]\naddress = \"127.0.0.1:{}\"\n",
            server.port()
        );
    }
    text
}

async fn measure(args: &MoveArgs, folder: &Path) -> anyhow::Result<(Value, Cells)> {
    let begun = Instant::now();
    let machine = Machine::look(folder);
    note(&format!("{}\n", machine.to_text()));
    let house = House::start(folder, args).await?;
    let stopped = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..args.clients {
        let client = house.connect().await?;
        clients.spawn(ask(client, args.rows, Arc::clone(&stopped)));
    }
    let mut spans: Vec<(&'static str, Instant, Instant)> = Vec::new();
    let mut moves = Vec::new();
    for last in [Some(255), Some(511), None] {
        let from = Instant::now();
        sleep(ALONE).await;
        spans.push(("alone", from, Instant::now()));
        let Some(last) = last else { break };
        let from = Instant::now();
        let told = house.move_to(folder, last, args.step_rows).await?;
        spans.push(("moving", from, Instant::now()));
        note(&format!("{} rows in {} ms\n", told["rows"], from.elapsed().as_millis()));
        moves.push((told, from.elapsed()));
    }
    stopped.store(true, Ordering::Relaxed);
    let asked: Vec<Asked> = clients.join_all().await.into_iter().flatten().collect();
    let (all, distinct) = house.count().await?;
    let wrong = (all - i64::from(args.rows)).abs() + (all - distinct);
    let mut cells = Cells::default();
    for (side, from, until) in spans {
        let within = asked.iter().filter(|one| one.at >= from && one.at + one.took <= until);
        cells.add(side, args.clients, of(within, until - from));
    }
    for (told, took) in moves {
        cells.add("steps", 1, of_steps(&told, took, wrong as f64));
    }
    let setup = json!({
        "machine": machine,
        "rows": args.rows,
        "clients": args.clients,
        "step_rows": args.step_rows,
        "statements": "half SELECT, half UPDATE, each of one row by its key, prepared",
        "coordinators": 3,
        "routers": 1,
        "sources": 2,
        "fsync": true,
        "whole_seconds": figures::rounded(begun.elapsed().as_secs_f64()),
    });
    Ok((setup, cells))
}

/// Reads and writes rows by their keys until it is told to stop.
async fn ask(client: Client, rows: u32, stopped: Arc<AtomicBool>) -> Vec<Asked> {
    let mut asked = Vec::new();
    let read = client.prepare("SELECT balance FROM account WHERE id = $1").await;
    let write = client.prepare("UPDATE account SET balance = balance + 1 WHERE id = $1").await;
    let (Ok(read), Ok(write)) = (read, write) else { return asked };
    let mut writes = false;
    while !stopped.load(Ordering::Relaxed) {
        let id = i64::from(rand::random_range(0..rows));
        let at = Instant::now();
        let done = match writes {
            true => client.execute(&write, &[&id]).await,
            false => client.query(&read, &[&id]).await.map(|rows| rows.len() as u64),
        };
        let well = matches!(done, Ok(1));
        if !well {
            let words = done.map_or_else(
                |error| error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string),
                |rows| format!("{rows} rows"),
            );
            note(&format!("key {id}: {words}\n"));
        }
        asked.push(Asked { at, took: at.elapsed(), well });
        writes = !writes;
    }
    asked
}

/// What clients felt in a span of time.
fn of<'a>(asked: impl Iterator<Item = &'a Asked>, span: Duration) -> Figures {
    let (mut waits, mut failed) = (Vec::new(), 0_u32);
    for one in asked {
        match one.well {
            true => waits.push(one.took.as_secs_f64() * 1e6),
            false => failed += 1,
        }
    }
    Figures::from([
        ("per_s", waits.len() as f64 / span.as_secs_f64()),
        ("p50_us", figures::share(&mut waits, 0.5)),
        ("p99_us", figures::share(&mut waits, 0.99)),
        ("max_us", figures::share(&mut waits, 1.0)),
        ("failed", failed.into()),
    ])
}

/// What the command told of its steps.
fn of_steps(told: &Value, took: Duration, rows_wrong: f64) -> Figures {
    let steps = told["steps"].as_array().map_or(&[][..], Vec::as_slice);
    let mut pauses: Vec<f64> = steps.iter().filter_map(|step| step["pause_ms"].as_f64()).collect();
    let rows = told["rows"].as_f64().unwrap_or_default();
    Figures::from([
        ("steps", steps.len() as f64),
        ("pause_ms_p50", figures::share(&mut pauses, 0.5)),
        ("pause_ms_max", figures::share(&mut pauses, 1.0)),
        ("rows_per_s", rows / took.as_secs_f64()),
        ("rows_wrong", rows_wrong),
    ])
}
