//! The demo act by act: set up, load with losses in the middle, quiet, audit.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast_banking::{NewAccount, migrate, open_accounts};
use holdfast_client::{Client, ClientOptions};
use rand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::args::{DemoArgs, TRANSFERS_MAX};
use super::audit::{Findings, Memory, audit};
use super::cluster::{COORDINATORS, Cluster};
use super::dba;
use super::driver::{Load, Record, Tally, Told};
use super::kill::{Plan, Recovery, Tickets};
use super::latency::Figures;
use super::layout::Layout;
use super::postgres::DATABASE;
use super::progress::Progress;
use super::replay::Replay;
use super::report::{Kill, LatencyMs, Report, Sagas, Setup, Transfers, Verdict, amount, grouped};
use super::saga::{self, Ending, Rounds};
use super::ticker::{self, Held};
use super::workload::Bank;

/// For the first commit behind a kill.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// For the second phase of what was decided last, and for what was on its way at a kill.
const QUIET_MAX: Duration = Duration::from_secs(10);
/// Between two looks at what is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Plays all acts below `folder`. Answers the report, and how to get at what is kept.
pub(crate) async fn play(
    args: &DemoArgs,
    replay: Option<Replay>,
    folder: &Path,
    progress: &Progress,
    started: Instant,
) -> anyhow::Result<(Report, String)> {
    let seed = args.seed.unwrap_or_else(|| rand::rng().random());
    progress.now(&format!(
        "Starting 3 coordinators and 4 PostgreSQL servers below {}",
        folder.display()
    ));
    let layout = Layout { groups: args.groups, tls: args.tls, ..Layout::default() };
    let mut cluster = Cluster::start(folder, layout).await?;
    let bank = Arc::new(match replay {
        Some(replay) => Bank::replay(&replay, &cluster.topology)?,
        None => Bank::random(args.accounts, seed, &cluster.topology)?,
    });
    open(&cluster, &bank).await?;
    cluster.start_banks().await?;
    let options = ClientOptions {
        in_flight_max: 4_096.max(args.clients as usize),
        ..cluster.options.clone()
    };
    let client =
        Client::connect(cluster.addresses(), options).await.context("no leader was found")?;
    progress.say(&format!(
        "Ready after {:.1} s: 3 coordinators, 4 shards, {} accounts{}; seed {seed}",
        started.elapsed().as_secs_f64(),
        grouped(bank.accounts.len() as u64),
        if args.tls { ", mutual TLS between them" } else { "" },
    ));

    let load = Arc::new(Load {
        tickets: Tickets::new(args.transfers.or(bank.replay_length()).unwrap_or(TRANSFERS_MAX)),
        bank: Arc::clone(&bank),
        client: client.clone(),
        tally: Arc::new(Tally::new()),
        recovery: Recovery::default(),
        to_the_end: args.serial,
        seed,
    });
    let loaded = run_load(args, &mut cluster, &load, progress).await?;
    let Loaded { memory, kills, load_s, mut problems } = loaded;

    progress.now("Waiting for quiet");
    let open_left = quiet(&mut cluster).await?;
    progress.now("Auditing the four databases");
    let findings = audit(&cluster.servers, &bank, &memory).await?;
    if let Some(path) = &args.balances_out {
        write_balances(path, &bank, &findings.balances)?;
    }
    progress.now("Counting the money through a router");
    let example = &bank.accounts.first().context("a bank has accounts")?.id;
    let router = dba::play(&cluster, folder, example.as_str()).await?;
    if router.money_minor != findings.money.closing_minor {
        problems.push(format!(
            "through the router there are {}, on the shards {}",
            amount(router.money_minor, bank.currency),
            amount(findings.money.closing_minor, bank.currency)
        ));
    }
    problems.extend(of_memory(&memory));
    problems.extend(of_kills(&kills));
    match open_left {
        None => problems.push("no coordinator said how many transactions are open".to_owned()),
        Some(0) => {}
        Some(left) => problems
            .push(format!("{left} transactions were still open after {} s", QUIET_MAX.as_secs())),
    }
    let Findings { money, holds_left, prepared_left, journal_ok, problems: more, .. } = findings;
    problems.extend(more);
    let directions = if args.keep { cluster.directions(folder) } else { String::new() };
    progress.now("Stopping");
    cluster.stop().await?;

    let tally = &load.tally;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let Figures { p50_ms, p99_ms, max_ms } = tally.latency.whole();
    let report = Report {
        coordinators: COORDINATORS,
        shards: bank.shards.len(),
        transfers: Transfers {
            submitted: count(&tally.submitted),
            committed: count(&tally.committed),
            refused: count(&tally.refused),
            unknown_resolved: count(&tally.unknown_resolved),
            cross_shard: count(&tally.cross_shard),
            one_shard: count(&tally.one_shard),
        },
        kills,
        saga: Sagas {
            committed: memory.rounds.count(Ending::Committed),
            compensated: memory.rounds.count(Ending::Compensated),
        },
        latency_ms: LatencyMs { p50: p50_ms, p99: p99_ms, max: max_ms },
        tps: (tally.answered() as f64 / load_s * 10.0).round() / 10.0,
        money,
        holds_left: Some(holds_left),
        open_transactions_left: open_left,
        prepared_left: Some(prepared_left),
        journal_ok,
        router,
        verdict: if problems.is_empty() { Verdict::Good } else { Verdict::Bad },
        problems,
        setup: Setup {
            accounts: bank.accounts.len(),
            clients: clients(args),
            groups: args.groups,
            seed,
            replay: args.replay.as_ref().map(|folder| folder.display().to_string()),
            serial: args.serial,
            load_s: (load_s * 10.0).round() / 10.0,
            whole_s: (started.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            currency: bank.currency,
            version: env!("CARGO_PKG_VERSION"),
        },
    };
    Ok((report, directions))
}

/// Makes the tables and opens each shard's accounts.
pub(crate) async fn open(cluster: &Cluster, bank: &Bank) -> anyhow::Result<()> {
    let opened = cluster.servers.iter().enumerate().map(async |(shard, server)| {
        let mut client = server.connect(DATABASE).await?;
        migrate(&mut client).await?;
        let accounts: Vec<NewAccount> = bank
            .accounts
            .iter()
            .filter(|account| account.shard == shard)
            .map(|account| NewAccount {
                id: account.id.clone(),
                currency: bank.currency,
                balance_minor: account.opening_minor,
            })
            .collect();
        let opened = open_accounts(&client, &accounts).await?;
        ensure!(opened.opened == accounts.len() as u64, "an account was open already");
        anyhow::Ok(())
    });
    try_join_all(opened).await.map(drop)
}

struct Loaded {
    memory: Memory,
    kills: Vec<Kill>,
    load_s: f64,
    problems: Vec<String>,
}

async fn run_load(
    args: &DemoArgs,
    cluster: &mut Cluster,
    load: &Arc<Load>,
    progress: &Progress,
) -> anyhow::Result<Loaded> {
    let started = Instant::now();
    let stop = CancellationToken::new();
    let sagas = args.replay.is_none().then(|| {
        tokio::spawn(saga::play(
            Arc::clone(&load.bank),
            load.client.clone(),
            load.seed,
            stop.clone(),
        ))
    });
    let held = HeldBySql::connect(cluster).await;
    let mut records = Vec::new();
    let mut kills = Vec::new();
    let mut load_s = 0.0;
    let whole = args.transfers.or(load.bank.replay_length());
    let conducted = async {
        let mut tasks = match whole {
            Some(count) => {
                let points = Plan::new(args.kills()).points(count);
                load.tickets.hold_back_from(points.first().map_or(u64::MAX, |(_, at)| *at));
                let tasks = load.start(clients(args));
                for (turn, (target, at)) in points.iter().enumerate() {
                    watch_until(cluster, || load.tickets.taken() > *at).await?;
                    let next = points.get(turn + 1).map_or(u64::MAX, |(_, at)| *at);
                    kills.push(lose(cluster, load, *target, turn, next, started, progress).await?);
                }
                tasks
            }
            None => {
                let tasks = load.start(clients(args));
                let duration_ms =
                    u64::try_from(args.duration.as_millis()).expect("at most an hour");
                for (turn, (target, at_ms)) in
                    Plan::new(args.kills()).points(duration_ms).iter().enumerate()
                {
                    watch_until(cluster, || started.elapsed() >= Duration::from_millis(*at_ms))
                        .await?;
                    kills.push(
                        lose(cluster, load, *target, turn, u64::MAX, started, progress).await?,
                    );
                }
                watch_until(cluster, || started.elapsed() >= args.duration).await?;
                load.tickets.stop();
                tasks
            }
        };
        records = join(cluster, &mut tasks).await?;
        load_s = started.elapsed().as_secs_f64();
        anyhow::Ok(())
    };
    tokio::select! {
        conducted = conducted => conducted?,
        () = ticker::tell(Arc::clone(load), progress, started, held) => {}
    }
    stop.cancel();
    let rounds = match sagas {
        Some(sagas) => sagas.await?,
        None => Rounds::default(),
    };
    records.sort_unstable_by_key(|record| record.number);
    let problems = rounds.problems.clone();
    Ok(Loaded { memory: Memory { seed: load.seed, records, rounds }, kills, load_s, problems })
}

/// Kills, lets numbers up to `next` be handed out, starts again, and waits for the first commit behind it.
async fn lose(
    cluster: &mut Cluster,
    load: &Load,
    target: super::args::KillTarget,
    turn: usize,
    next: u64,
    started: Instant,
    progress: &Progress,
) -> anyhow::Result<Kill> {
    let victim = cluster.choose(target, turn).await?;
    let name = cluster.name(&victim);
    let killed_at = Instant::now();
    cluster.kill(&victim).await?;
    let mut recovered = load.recovery.dead(killed_at, Instant::now(), victim.shard());
    load.tickets.hold_back_from(next);
    progress.say(&format!(
        "{:>4} s  killed {name} ({})",
        started.elapsed().as_secs(),
        target.word()
    ));
    cluster.restart(&victim).await?;
    progress.say(&format!("{:>4} s  started {name} again", started.elapsed().as_secs()));
    let recovered = recovered.within(RECOVERY_MAX).await;
    Ok(Kill {
        what: target.word(),
        at_s: (killed_at.duration_since(started).as_secs_f64() * 10.0).round() / 10.0,
        recovered_ms: recovered.map(|after| u64::try_from(after.as_millis()).expect("seconds")),
        victim: name,
    })
}

async fn watch_until(cluster: &mut Cluster, reached: impl Fn() -> bool) -> anyhow::Result<()> {
    while !reached() {
        cluster.check()?;
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

async fn join(
    cluster: &mut Cluster,
    tasks: &mut JoinSet<Vec<Record>>,
) -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(told) => records.extend(told.context("a client ended before its time")?),
                None => return Ok(records),
            },
            () = sleep(LOOK_AGAIN * 10) => cluster.check()?,
        }
    }
}

/// Waits until nothing is open and nothing is held; answers how many transactions the leader says are open then.
async fn quiet(cluster: &mut Cluster) -> anyhow::Result<Option<u64>> {
    let until = Instant::now() + QUIET_MAX;
    let mut held = HeldBySql::connect(cluster).await;
    loop {
        cluster.check()?;
        let open = cluster.leader().await.map(|(_, status)| status.open_transactions);
        if (open == Some(0) && held.held_minor().await == Some(0)) || Instant::now() > until {
            return Ok(open);
        }
        sleep(LOOK_AGAIN * 5).await;
    }
}

/// One transfer at a time where each must see the one before it.
fn clients(args: &DemoArgs) -> u32 {
    if args.serial { 1 } else { args.clients }
}

fn of_memory(memory: &Memory) -> Vec<String> {
    let mut problems = Vec::new();
    let nothing = memory.records.iter().filter(|record| record.told == Told::Nothing).count();
    if nothing > 0 {
        problems.push(format!("the outcome of {nothing} transfers was never known"));
    }
    let turned_away = memory.records.iter().filter_map(|record| match &record.told {
        Told::TurnedAway(words) => Some(words),
        Told::Committed | Told::RolledBack | Told::Nothing => None,
    });
    let turned_away: Vec<&String> = turned_away.collect();
    if let Some(words) = turned_away.first() {
        problems.push(format!(
            "{} transfers were turned away, the first with: {words}",
            turned_away.len()
        ));
    }
    problems
}

fn of_kills(kills: &[Kill]) -> Vec<String> {
    let never = kills.iter().filter(|kill| kill.recovered_ms.is_none());
    never
        .map(|kill| {
            format!("no transfer was submitted and committed after {} was killed", kill.victim)
        })
        .collect()
}

fn write_balances(path: &Path, bank: &Bank, balances: &[i64]) -> anyhow::Result<()> {
    let written = || -> anyhow::Result<()> {
        let mut writer = csv::Writer::from_path(path)?;
        writer.write_record(["nodeid", "balance_minor"])?;
        for (account, balance) in bank.accounts.iter().zip(balances) {
            writer.write_record([account.id.as_str(), &balance.to_string()])?;
        }
        Ok(writer.flush()?)
    };
    written().with_context(|| format!("writing {}", path.display()))
}

/// Asks each shard by a connection of its own, made again when it breaks.
struct HeldBySql {
    shards: Vec<(tokio_postgres::Config, Option<tokio_postgres::Client>)>,
}

impl HeldBySql {
    async fn connect(cluster: &Cluster) -> Self {
        let mut held = Self {
            shards: cluster.servers.iter().map(|server| (server.config(DATABASE), None)).collect(),
        };
        held.held_minor().await;
        held
    }
}

impl Held for HeldBySql {
    async fn held_minor(&mut self) -> Option<i64> {
        let mut sum = 0_i64;
        for (config, slot) in &mut self.shards {
            if slot.as_ref().is_none_or(tokio_postgres::Client::is_closed) {
                *slot = super::postgres::connect(config).await.ok();
            }
            let row = slot.as_ref()?.query_one(HELD, &[]).await.ok()?;
            sum = sum.checked_add(row.try_get(0).ok()?)?;
        }
        Some(sum)
    }
}

const HELD: &str =
    "SELECT coalesce(sum(held_out_minor + held_in_minor), 0)::bigint FROM bank.account";
