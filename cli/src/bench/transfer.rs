//! `holdfast bench transfer`: transfers across shards beside the same transfer in one database, and in two without a coordinator.

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast_banking::{NewAccount, migrate, open_accounts};
use holdfast_client::{Client, ClientOptions};
use holdfast_ledger::Amount;
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    bar_local::OneDatabase,
    bar_postgres::start_servers,
    bar_prepared::TwoDatabases,
    figures::{self, Cells, Figures},
    goal::{Bound, Goal},
    load::{self, Sample, Shape},
    machine::Machine,
    meters::{counters, cpu_us, family_cpu_us},
    show::{self, note},
};
use crate::demo::{
    acts,
    cluster::Cluster,
    layout::Layout,
    payment,
    postgres::{self, DATABASE, Server},
    scratch::Scratch,
    workload::{Bank, Transfer},
};

/// For the second phase of what was decided last.
const QUIET_MAX: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Measures transfers across shards beside one local transaction, and beside PREPARE TRANSACTION without a coordinator
#[derive(Debug, clap::Args)]
pub(crate) struct TransferArgs {
    /// The result on standard output as JSON, progress on standard error
    #[arg(long)]
    pub(super) json: bool,
    /// Seconds that count in one cell of one round
    #[arg(long, value_name = "N", default_value_t = 3.0)]
    seconds: f64,
    /// Transfers under way at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=200))]
    clients: u32,
    /// Rounds, of whose figures the median is told
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Accounts, spread over the four shards
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    accounts: u32,
    /// Leave the folders with data and logs
    #[arg(long)]
    keep: bool,
}

/// Who pays whom: one minor unit each, always between two shards.
#[derive(Clone, Debug)]
pub(crate) struct Payments {
    bank: Arc<Bank>,
    /// Everybody pays this account.
    merchant: Option<usize>,
}

/// What was measured of one side in one round.
#[derive(Debug)]
pub(crate) struct Side {
    /// Rates and waits.
    pub(crate) sample: Sample,
    /// For each transfer.
    pub(crate) cost: Figures,
}

impl Side {
    fn figures(&self) -> Figures {
        let mut figures = figures::of(&self.sample);
        figures.extend(self.cost.clone());
        figures
    }
}

impl Payments {
    /// Payer and payee of that number, by their places.
    fn transfer(&self, number: u64) -> Transfer {
        let accounts = &self.bank.accounts;
        let mut rng = rand::rng();
        let to = self.merchant.unwrap_or_else(|| rng.random_range(0..accounts.len()));
        // In order, so that no payer runs dry before the others.
        let step = usize::try_from(number).unwrap_or(0) % accounts.len();
        let places = (0..accounts.len()).map(|offset| (step * 7 + offset) % accounts.len());
        let from = places.into_iter().find(|at| accounts[*at].shard != accounts[to].shard);
        let amount = Amount::new(1).expect("one is an amount");
        Transfer { from: from.expect("there are other shards"), to, amount }
    }

    /// Their ids.
    pub(crate) fn accounts(&self, number: u64) -> (String, String) {
        let Transfer { from, to, .. } = self.transfer(number);
        let id = |at: usize| self.bank.accounts[at].id.as_str().to_owned();
        (id(from), id(to))
    }
}

/// The meters of everything that a side runs on, this process included.
#[derive(Debug)]
pub(crate) struct Cost {
    servers: Vec<(tokio_postgres::Config, u32)>,
    nodes: Vec<String>,
    processes: Vec<u32>,
}

/// What was used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    database_fsyncs: f64,
    node_fsyncs: f64,
    local_transactions: f64,
    database_cpu_us: f64,
    other_cpu_us: f64,
}

impl Cost {
    /// Of PostgreSQL servers and this process.
    pub(crate) fn of_servers(servers: &[Server]) -> anyhow::Result<Self> {
        let servers = servers.iter().map(|server| {
            let pid = server.pid().context("a PostgreSQL server ended by itself")?;
            anyhow::Ok((server.config(DATABASE), pid))
        });
        Ok(Self {
            servers: servers.collect::<anyhow::Result<_>>()?,
            nodes: Vec::new(),
            processes: vec![std::process::id()],
        })
    }

    fn of_cluster(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut cost = Self::of_servers(&cluster.servers)?;
        cost.nodes = cluster.coordinators.iter().map(|node| node.http.clone()).collect();
        let processes = cluster.coordinators.iter().map(|node| &node.process);
        for process in processes.chain(cluster.banks.iter().map(|bank| &bank.process)) {
            cost.processes.push(process.pid().context("a process ended by itself")?);
        }
        Ok(cost)
    }

    /// Reads them. PostgreSQL's own counts are up to a second behind, as much at the end as at the beginning.
    pub(crate) async fn read(&self) -> anyhow::Result<Used> {
        let mut used = Used::default();
        for (config, pid) in &self.servers {
            let client = postgres::connect(config).await?;
            let row = client
                .query_one(
                    "SELECT (SELECT wal_sync FROM pg_stat_wal)::float8,
                            (SELECT xact_commit FROM pg_stat_database WHERE datname = $1)::float8",
                    &[&DATABASE],
                )
                .await?;
            used.database_fsyncs += row.get::<_, f64>(0);
            used.local_transactions += row.get::<_, f64>(1);
            used.database_cpu_us += family_cpu_us(*pid)?;
        }
        for node in &self.nodes {
            let counted = counters(node).await?;
            used.node_fsyncs += counted.get("holdfast_log_fsyncs_total").copied().unwrap_or(0.0);
        }
        for pid in &self.processes {
            used.other_cpu_us += cpu_us(*pid)?;
        }
        Ok(used)
    }
}

impl Used {
    /// For each of so many transfers.
    pub(crate) fn since(self, before: &Self, transfers: f64) -> Figures {
        let each = |of: fn(&Self) -> f64| (of(&self) - of(before)) / transfers;
        let (database_cpu, other_cpu) =
            (each(|used| used.database_cpu_us), each(|used| used.other_cpu_us));
        Figures::from([
            ("database_fsyncs", each(|used| used.database_fsyncs)),
            ("node_fsyncs", each(|used| used.node_fsyncs)),
            ("local_transactions", each(|used| used.local_transactions)),
            ("database_cpu_us", database_cpu),
            ("all_cpu_us", database_cpu + other_cpu),
        ])
    }
}

/// Measures, whatever comes out.
/// # Errors
/// Something could not be started, or broke down.
pub(crate) async fn run(args: TransferArgs) -> anyhow::Result<ExitCode> {
    ensure!((0.05..=60.0).contains(&args.seconds), "--seconds is from 0.05 to 60");
    let keep = args.keep;
    let scratches = tokio::task::spawn_blocking(move || {
        anyhow::Ok((Scratch::create(keep)?, Scratch::create(keep)?))
    });
    let (ours, bars) = scratches.await??;
    let measured = Box::pin(measure(&args, ours.path(), bars.path())).await;
    let cleaned = tokio::task::spawn_blocking(|| ours.clean_up().and(bars.clean_up())).await?;
    let (setup, cells) = measured?;
    cleaned?;
    let goals = goals(&cells, args.clients);
    let bars = ["local", "prepared", "local-hot"];
    let told = show::Told { setup, cells: &cells, bars: &bars, columns: &COLUMNS, goals: &goals };
    told.show(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Shown to people; JSON has all.
const COLUMNS: [&str; 9] = [
    "per_s",
    "p50_us",
    "p99_us",
    "database_fsyncs",
    "node_fsyncs",
    "local_transactions",
    "database_cpu_us",
    "all_cpu_us",
    "quiet_ms",
];

async fn measure(
    args: &TransferArgs,
    folder: &Path,
    bars: &Path,
) -> anyhow::Result<(Value, Cells)> {
    let begun = Instant::now();
    let machine = Machine::look(folder);
    note(&format!("{}\n", machine.to_text()));
    let mut cluster = Cluster::start(folder, Layout::default()).await?;
    let bank = Arc::new(Bank::random(args.accounts, 1, &cluster.topology)?);
    acts::open(&cluster, &bank).await?;
    cluster.start_banks().await?;
    let client = Client::connect(cluster.addresses(), ClientOptions::default()).await?;
    let servers = start_servers(bars, 3).await?;
    try_join_all(servers.iter().map(|server| open_all(server, &bank))).await?;
    let [local, first, second] = <[Server; 3]>::try_from(servers).expect("three were asked for");
    let local = OneDatabase::connect(local, args.clients).await?;
    let prepared = TwoDatabases::connect([first, second], args.clients).await?;
    note(&format!("Ready after {:.1} s\n", begun.elapsed().as_secs_f64()));

    let measured = Duration::from_secs_f64(args.seconds);
    let shape = Shape { clients: args.clients, warm_up: measured / 6, measured };
    let spread = Payments { bank: Arc::clone(&bank), merchant: None };
    let hot = Payments { bank: Arc::clone(&bank), merchant: Some(0) };
    let mut cells = Cells::default();
    for (payments, ours, theirs) in [(&spread, "tcc", "local"), (&hot, "tcc-hot", "local-hot")] {
        for round in 1..=args.rounds {
            note(&format!("Round {round} of {}, {ours} and bars\n", args.rounds));
            let measured = Box::pin(run_ours(&mut cluster, &client, shape, payments)).await;
            cells.add(ours, args.clients, measured.context("transfers across shards")?);
            let measured = local.run(shape, payments).await.context("one database")?;
            cells.add(theirs, args.clients, measured.figures());
            if payments.merchant.is_none() {
                let measured = prepared.run(shape, payments).await.context("two databases")?;
                cells.add("prepared", args.clients, measured.figures());
            }
        }
    }
    cluster.stop().await?;
    let setup = json!({
        "machine": machine,
        "seconds": args.seconds,
        "rounds": args.rounds,
        "clients": args.clients,
        "accounts": args.accounts,
        "shards": bank.shards.len(),
        "coordinators": 3,
        "fsync": true,
        "whole_seconds": figures::rounded(begun.elapsed().as_secs_f64()),
    });
    Ok((setup, cells))
}

/// The bank's tables with all accounts in one database.
async fn open_all(server: &Server, bank: &Bank) -> anyhow::Result<()> {
    let mut client = server.connect(DATABASE).await?;
    migrate(&mut client).await?;
    let account = |account: &crate::demo::workload::Account| NewAccount {
        id: account.id.clone(),
        currency: bank.currency,
        balance_minor: account.opening_minor,
    };
    let accounts: Vec<NewAccount> = bank.accounts.iter().map(account).collect();
    open_accounts(&client, &accounts).await?;
    Ok(())
}

/// One transfer after the other in every client, answered at the decision; then waits for what still confirms, and tells
/// how long that took: if the second phase fell behind, the rate would be borrowed.
async fn run_ours(
    cluster: &mut Cluster,
    client: &Client,
    shape: Shape,
    payments: &Payments,
) -> anyhow::Result<Figures> {
    cluster.check()?;
    let cost = Cost::of_cluster(cluster)?;
    let next = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (submitter, paid) = (client.clone(), payments.clone());
    let ask = move |_| {
        let (client, payments) = (submitter.clone(), paid.clone());
        let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move {
            let submission = payment::transfer(&payments.bank, payments.transfer(number));
            client.submit(submission).await.is_ok_and(|answer| answer.is_committed())
        }
    };
    let (sample, before, after) = load::run(shape, async || cost.read().await, ask).await?;
    let over = Instant::now();
    loop {
        let (_, leader) = cluster.leader().await.context("nobody leads")?;
        if leader.open_transactions == 0 {
            break;
        }
        let open = leader.open_transactions;
        ensure!(over.elapsed() < QUIET_MAX, "{open} transactions are still open");
        sleep(LOOK_AGAIN).await;
    }
    let mut figures =
        Side { sample, cost: after.since(&before, sample.between_readings) }.figures();
    figures.insert("quiet_ms", over.elapsed().as_secs_f64() * 1_000.0);
    Ok(figures)
}

fn goals(cells: &Cells, clients: u32) -> Vec<Goal> {
    let rate = |ours, theirs| cells.ratio((ours, "per_s"), (theirs, "per_s"), clients);
    let at = |what: &str| format!("{what}, {clients} clients");
    vec![
        Goal::new(
            at("across shards / PREPARE TRANSACTION without a coordinator (f)"),
            rate("tcc", "prepared"),
            Bound::AtLeast(2.0),
        ),
        Goal::new(
            at("across shards / one local transaction (e)"),
            rate("tcc", "local"),
            Bound::AtLeast(1.0),
        ),
        Goal::new(
            at("p99 across shards / p99 of one local transaction (e)"),
            cells.ratio(("tcc", "p99_us"), ("local", "p99_us"), clients),
            Bound::AtMost(3.0),
        ),
        Goal::new(
            at("into one account, across shards / one local transaction (e)"),
            rate("tcc-hot", "local-hot"),
            Bound::AtLeast(5.0),
        ),
    ]
}
