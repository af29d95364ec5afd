//! The two-shard transfer: a client of the router says BEGIN, two UPDATEs and COMMIT; beside it the same client drives `PREPARE TRANSACTION`
//! and `COMMIT PREPARED` by hand on two connections, and keeps no record of what it decides.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use futures::future::{try_join, try_join_all};
use tokio::{sync::Mutex, time::Instant};
use tokio_postgres::{Client, Error, Statement};

use super::{
    figures::{self, Cells, Figures},
    goal::{Bound, Goal},
    load::{self, Shape},
    meters::{counters, cpu_us, family_cpu_us},
    router_sides::{BRANCHES, Pooler, Sides},
};
use crate::demo::{
    cluster::{COORDINATORS, Coordinator, status},
    ports,
    postgres::{self, DATABASE, USER},
};

/// Clients at once.
const CLIENTS: [u32; 2] = [1, 64];
/// For the coordinators to have a leader.
const READY_MAX: Duration = Duration::from_secs(30);
const WARM_UP: Duration = Duration::from_millis(500);
/// A slow machine answers few of 64 clients in one second.
const MEASURED_MIN: Duration = Duration::from_secs(3);
const CHANGE: &str =
    "UPDATE pgbench_accounts SET abalance = abalance + $3 WHERE bid = $1 AND aid = $2";
const ROUTER: &str = "transfer router";
const HAND: &str = "transfer by hand";

/// What the processes have used so far, us, and what the leader has put into its log.
#[derive(Clone, Copy, Debug)]
struct Reading {
    router: f64,
    leader: f64,
    followers: f64,
    postgres: f64,
    client: f64,
    syncs: f64,
    commands: f64,
}

/// Coordinators, and a router that has them decide.
pub(crate) struct Deciding {
    coordinators: Vec<Coordinator>,
    router: Pooler,
    /// The branches on each of the two shards.
    branches: Arc<[Vec<i32>; 2]>,
}

impl Deciding {
    /// Starts them in front of the two shards.
    /// # Errors
    /// Something does not start.
    pub(crate) async fn start(folder: &Path, sides: &Sides) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding our own program")?;
        let coordinators = start_coordinators(folder, &[]).await?;
        let ports = ports::free(2)?;
        let grpc: Vec<_> = coordinators.iter().map(|node| node.grpc.clone()).collect();
        let config = sides.deciding_config(folder, &grpc, ports[0], ports[1]);
        fs::write(folder.join("router-deciding.toml"), &config)?;
        let router = super::router_sides::start_router(
            folder,
            &program,
            "router-deciding",
            &config,
            ports[0],
        )
        .await?;
        let mut branches = [Vec::new(), Vec::new()];
        for branch in 1..=BRANCHES {
            let located = sides.rules.locate("branch", &branch.to_string())?;
            let shard = usize::from(located.source.as_str() == "pg-2");
            branches[shard].push(i32::try_from(branch)?);
        }
        ensure!(branches.iter().all(|here| !here.is_empty()), "both shards have branches");
        Ok(Self { coordinators, router, branches: Arc::new(branches) })
    }

    /// Both sides, one behind the other; every other round the other way around.
    /// # Errors
    /// A connection cannot be made, or a process has ended.
    pub(crate) async fn measure(
        &mut self,
        sides: &Sides,
        cells: &mut Cells,
        seconds: u32,
        backwards: bool,
    ) -> anyhow::Result<()> {
        for coordinator in &mut self.coordinators {
            coordinator.process.check()?;
        }
        let leads = self.leader().await?;
        for clients in CLIENTS {
            let measured = Duration::from_secs(seconds.into()).max(MEASURED_MIN);
            let shape = Shape { clients, warm_up: WARM_UP, measured };
            let mut order = [ROUTER, HAND];
            if backwards {
                order.reverse();
            }
            for side in order {
                let meters = async || self.read(sides, leads).await;
                let figures = match side {
                    ROUTER => {
                        let opened = (0..clients).map(|_| Routed::open(self.router.port));
                        run(shape, try_join_all(opened).await?, &self.branches, meters).await?
                    }
                    _ => {
                        let opened = (0..clients).map(|_| ByHand::open(sides));
                        run(shape, try_join_all(opened).await?, &self.branches, meters).await?
                    }
                };
                ensure!(figures["failed"] == 0.0, "{side}: transfers failed: {figures:?}");
                cells.add(side, clients, figures);
            }
        }
        Ok(())
    }

    /// The leader's place.
    async fn leader(&self) -> anyhow::Result<usize> {
        for (at, coordinator) in self.coordinators.iter().enumerate() {
            if status(&coordinator.grpc).await.is_some_and(|status| status.role == "leader") {
                return Ok(at);
            }
        }
        anyhow::bail!("no coordinator leads")
    }

    async fn read(&self, sides: &Sides, leads: usize) -> anyhow::Result<Reading> {
        let used = |pid: Option<u32>| cpu_us(pid.context("a process ended by itself")?);
        let mut coordinators = Vec::new();
        for coordinator in &self.coordinators {
            coordinators.push(used(coordinator.process.pid())?);
        }
        let servers = sides.servers[1..].iter();
        let postgres = servers.map(|server| family_cpu_us(server.pid().context("no server")?));
        let log = counters(&self.coordinators[leads].http).await?;
        let counter = |name: &str| log.get(name).copied().unwrap_or(0.0);
        let kinds = ["blocking", "lazy"]
            .map(|kind| counter(&format!("holdfast_proposals_total{{kind=\"{kind}\"}}")));
        Ok(Reading {
            router: used(self.router.pid())?,
            leader: coordinators[leads],
            followers: coordinators.iter().sum::<f64>() - coordinators[leads],
            postgres: postgres.sum::<anyhow::Result<f64>>()?,
            client: cpu_us(std::process::id())?,
            syncs: counter("holdfast_log_fsyncs_total"),
            commands: kinds.iter().sum(),
        })
    }
}

/// Coordinators that have a leader, with these variables of their environment.
/// # Errors
/// One does not start.
pub(crate) async fn start_coordinators(
    folder: &Path,
    environment: &[(&str, String)],
) -> anyhow::Result<Vec<Coordinator>> {
    let program = std::env::current_exe().context("finding our own program")?;
    let ports = ports::free(COORDINATORS * 3)?;
    let mut coordinators = (0..COORDINATORS)
        .map(|at| Coordinator::new(at, 1, &ports, folder, &program))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for coordinator in &mut coordinators {
        for (name, value) in environment {
            coordinator.process.set(name, value);
        }
        coordinator.process.start()?;
    }
    let until = Instant::now() + READY_MAX;
    for coordinator in &mut coordinators {
        while status(&coordinator.grpc).await.is_none_or(|status| status.leader == 0) {
            coordinator.process.check()?;
            ensure!(Instant::now() < until, coordinator.process.complaint("knows no leader"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(coordinators)
}

/// What is asked of the figures.
pub(crate) fn goals(cells: &Cells) -> Vec<Goal> {
    let ratio = |figure| cells.ratio((ROUTER, figure), (HAND, figure), 64);
    vec![
        Goal::new(
            "two-shard transfer, 64 clients, of the rate by hand",
            ratio("per_s"),
            Bound::AtLeast(0.9),
        ),
        Goal::new(
            "two-shard transfer, 64 clients, of the p50 by hand",
            ratio("p50_us"),
            Bound::AtMost(1.25),
        ),
    ]
}

/// A way to move money between two branches.
trait Way: Send + 'static {
    /// `from` is on the first shard and `to` on the second: all take locks in this order.
    fn transfer(
        &self,
        number: u64,
        from: (i32, i32),
        to: (i32, i32),
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

async fn run<W: Way>(
    shape: Shape,
    ways: Vec<W>,
    branches: &Arc<[Vec<i32>; 2]>,
    meters: impl AsyncFnMut() -> anyhow::Result<Reading>,
) -> anyhow::Result<Figures> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let ways: Arc<Vec<Mutex<W>>> = Arc::new(ways.into_iter().map(Mutex::new).collect());
    let branches = Arc::clone(branches);
    let ask = move |client: u32| {
        let (ways, branches) = (Arc::clone(&ways), Arc::clone(&branches));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        async move {
            let account = |shard: usize| {
                let here = &branches[shard];
                let branch = here[rand::random_range(0..here.len())];
                (branch, (branch - 1) * 100_000 + rand::random_range(1..=100_000))
            };
            let (from, to) = (account(0), account(1));
            let way = ways[client as usize].lock().await;
            match way.transfer(number, from, to).await {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(%error, "a transfer failed");
                    false
                }
            }
        }
    };
    let (sample, before, after) = load::run(shape, meters, ask).await?;
    let each = |of: fn(&Reading) -> f64| (of(&after) - of(&before)) / sample.between_readings;
    let mut figures = figures::of(&sample);
    figures.extend([
        ("cpu_us", each(|reading| reading.router)),
        ("leader_cpu_us", each(|reading| reading.leader)),
        ("followers_cpu_us", each(|reading| reading.followers)),
        ("postgres_cpu_us", each(|reading| reading.postgres)),
        ("client_cpu_us", each(|reading| reading.client)),
        ("log_syncs", each(|reading| reading.syncs)),
        ("log_commands", each(|reading| reading.commands)),
    ]);
    Ok(figures)
}

/// By way of the router: one connection, and nothing to know about shards.
struct Routed {
    client: Client,
    change: Statement,
}

impl Routed {
    async fn open(port: u16) -> anyhow::Result<Self> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(port).user(USER).dbname(DATABASE);
        let client = postgres::connect(&config).await?;
        let change = client.prepare(CHANGE).await?;
        Ok(Self { client, change })
    }
}

impl Way for Routed {
    async fn transfer(&self, _: u64, from: (i32, i32), to: (i32, i32)) -> Result<(), Error> {
        self.client.batch_execute("BEGIN").await?;
        self.client.execute(&self.change, &[&from.0, &from.1, &-1]).await?;
        self.client.execute(&self.change, &[&to.0, &to.1, &1]).await?;
        self.client.batch_execute("COMMIT").await
    }
}

/// Two connections, and the phases by hand.
struct ByHand([(Client, Statement); 2]);

impl ByHand {
    async fn open(sides: &Sides) -> anyhow::Result<Self> {
        let open = async |shard: usize| {
            let client = sides.servers[shard].connect(DATABASE).await?;
            let change = client.prepare(CHANGE).await?;
            anyhow::Ok((client, change))
        };
        let (one, two) = try_join(open(1), open(2)).await?;
        Ok(Self([one, two]))
    }

    async fn both(&self, verb: &str, gid: &str) -> Result<(), Error> {
        let sql = format!("{verb} '{gid}'");
        let [one, two] = &self.0;
        try_join(one.0.batch_execute(&sql), two.0.batch_execute(&sql)).await?;
        Ok(())
    }
}

impl Way for ByHand {
    async fn transfer(&self, number: u64, from: (i32, i32), to: (i32, i32)) -> Result<(), Error> {
        for ((client, change), (account, minor)) in self.0.iter().zip([(from, -1), (to, 1)]) {
            client.batch_execute("BEGIN").await?;
            client.execute(change, &[&account.0, &account.1, &minor]).await?;
        }
        let gid = format!("by-hand-{number}");
        self.both("PREPARE TRANSACTION", &gid).await?;
        self.both("COMMIT PREPARED", &gid).await
    }
}
