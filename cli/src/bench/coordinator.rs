//! `holdfast bench coordinator`: three coordinators and participants that do nothing, beside what their parts can do alone.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    bar_echo::EchoBar,
    bar_log::Logs,
    bar_postgres::DatabaseCoordinator,
    bar_raft::BareRaft,
    figures::{self, Cells},
    goal::{Bound, Goal},
    load::Shape,
    machine::Machine,
    nodes::Nodes,
    secure,
    show::{self, note},
    submission::Mode,
};
use crate::demo::scratch::Scratch;

/// Clients of the bars, and of the goals.
const FEW: u32 = 64;
const MANY: u32 = 512;
/// Clients, at most: the participants' credit and the client library's limit are above.
const CLIENTS_MAX: i64 = 2_048;
/// How long a quiet cluster is watched: long enough for the kernel's ticks to tell a hundredth of a core.
const IDLE: Duration = Duration::from_secs(4);
/// Connections, above which clients of bar (c) share them.
const DATABASE_CLIENTS: u32 = MANY;

/// Measures the coordinator beside its own parts: the log store, the bare replicated log, PostgreSQL, and gRPC
#[derive(Debug, clap::Args)]
pub(crate) struct CoordinatorArgs {
    /// The result on standard output as JSON, progress on standard error
    #[arg(long)]
    pub(super) json: bool,
    /// Seconds that count in one cell of one round
    #[arg(long, value_name = "N", default_value_t = 1.25)]
    seconds: f64,
    /// Transactions under way at once, a cell each; bars and goals are at 1, 64 and 512 [with --secure: 64,512]
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,16,64,256,512,1024",
          default_value_if("secure", "true", "64,512"), value_parser = clap::value_parser!(u32).range(1..=CLIENTS_MAX))]
    clients: Vec<u32>,
    /// Rounds, of whose figures the median is told [with --secure: 12, so that its sides take turns in every order, twice]
    #[arg(long, value_name = "N", default_value_t = 3, default_value_if("secure", "true", "12"), value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(super) rounds: u32,
    /// Raft groups of the coordinators. With several, "leader" in the figures is the node that leads group 0
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    groups: u32,
    /// Below a minute: 1, 64 and 512 clients, and half a second a cell
    #[arg(long, conflicts_with_all = ["seconds", "clients"])]
    quick: bool,
    /// Instead of the bars: the same cluster bare, and with mutual TLS, rights and traces
    #[arg(long)]
    secure: bool,
    /// With --secure: one of so many transactions is sampled by its caller, as tracing in production is
    #[arg(long, value_name = "N", default_value_t = 100, requires = "secure", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) sampled: u64,
    /// Leave the folder with data and logs
    #[arg(long)]
    keep: bool,
}

impl CoordinatorArgs {
    pub(super) fn clients(&self) -> Vec<u32> {
        if self.quick { vec![1, FEW, MANY] } else { self.clients.clone() }
    }

    pub(super) fn seconds(&self) -> f64 {
        if self.quick { 0.5 } else { self.seconds }
    }

    pub(super) fn shape(&self, clients: u32) -> Shape {
        let measured = Duration::from_secs_f64(self.seconds());
        Shape { clients, warm_up: measured / 5, measured }
    }
}

/// What is measured, and the bars.
struct Sides {
    nodes: Nodes,
    logs: Logs,
    raft: BareRaft,
    database: DatabaseCoordinator,
    echo: EchoBar,
}

/// Measures, whatever comes out.
/// # Errors
/// Something could not be started, or broke down.
pub(crate) async fn run(args: CoordinatorArgs) -> anyhow::Result<ExitCode> {
    ensure!((0.05..=60.0).contains(&args.seconds()), "--seconds is from 0.05 to 60");
    if args.secure {
        return compare(&args).await;
    }
    let (setup, cells) =
        Scratch::during(args.keep, async |folder| measure(&args, folder).await).await?;
    let goals = goals(&cells);
    let bars = ["log", "raft", "postgres", "echo-unary", "echo-stream"];
    let told = show::Told { setup, cells: &cells, bars: &bars, columns: &COLUMNS, goals: &goals };
    told.show(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// What guards and sight cost.
async fn compare(args: &CoordinatorArgs) -> anyhow::Result<ExitCode> {
    let (setup, cells, goals) =
        Scratch::during(args.keep, async |folder| secure::measure(args, folder).await).await?;
    let columns = &SECURE_COLUMNS;
    let told = show::Told { setup, cells: &cells, bars: &[], columns, goals: &goals };
    told.show(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Of `--secure`.
const SECURE_COLUMNS: [&str; 8] = [
    "per_s",
    "p50_us",
    "p99_us",
    "coordinators_cpu_us",
    "participants_cpu_us",
    "client_cpu_us",
    "all_cpu_us",
    "failed",
];

/// Shown to people; JSON has all.
const COLUMNS: [&str; 12] = [
    "per_s",
    "p50_us",
    "p99_us",
    "p999_us",
    "leader_cpu_us",
    "followers_cpu_us",
    "participants_cpu_us",
    "client_cpu_us",
    "bytes",
    "fsyncs",
    "blocking",
    "lazy",
];

async fn measure(args: &CoordinatorArgs, folder: &Path) -> anyhow::Result<(Value, Cells)> {
    let begun = Instant::now();
    let machine = Machine::look(folder);
    note(&format!("{}\n", machine.to_text()));
    let mut sides = Sides {
        nodes: Nodes::start(folder, args.groups).await.context("starting the coordinators")?,
        logs: Logs::start(folder)?,
        raft: BareRaft::start(folder)?,
        database: DatabaseCoordinator::start(folder, DATABASE_CLIENTS)
            .await
            .context("starting PostgreSQL")?,
        echo: EchoBar::start(folder).await.context("starting the echo")?,
    };
    // The bars append records as large as a command of ours, so that nobody wins by writing less.
    let first = sides.nodes.run_stream(Mode::Tcc, args.shape(FEW)).await?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some hundred")]
    let record_bytes = (first["bytes"] / (first["blocking"] + first["lazy"])).max(1.0) as usize;
    note(&format!(
        "Ready after {:.1} s; {record_bytes} bytes a command in the leader's log\n",
        begun.elapsed().as_secs_f64()
    ));

    let mut cells = Cells::default();
    // What was decided last is finished by then, and the bars wait for orders.
    tokio::time::sleep(Duration::from_secs(1)).await;
    cells.add("idle", 0, sides.nodes.idle(IDLE).await.context("a quiet cluster")?);
    for round in 1..=args.rounds {
        note(&format!("Round {round} of {}\n", args.rounds));
        Box::pin(sides.round(args, record_bytes, &mut cells)).await?;
    }
    let setup = json!({
        "machine": machine,
        "seconds": args.seconds(),
        "warm_up_seconds": args.seconds() / 5.0,
        "rounds": args.rounds,
        "clients": args.clients(),
        "record_bytes": record_bytes,
        "fsync": true,
        "coordinators": 3,
        "groups": args.groups,
        "branches": 2,
        "whole_seconds": figures::rounded(begun.elapsed().as_secs_f64()),
    });
    Ok((setup, cells))
}

impl Sides {
    /// Every cell once; what is compared stands side by side in time.
    async fn round(
        &mut self,
        args: &CoordinatorArgs,
        record_bytes: usize,
        cells: &mut Cells,
    ) -> anyhow::Result<()> {
        for clients in args.clients() {
            let shape = args.shape(clients);
            for mode in [Mode::Tcc, Mode::Saga] {
                let measured = self.nodes.run_stream(mode, shape).await;
                let measured =
                    measured.with_context(|| format!("{} with {clients} clients", mode.word()))?;
                cells.add(mode.word(), clients, measured);
            }
            if clients == FEW {
                cells.add("saga-unwaited", clients, self.nodes.run_unwaited(shape).await?);
                cells.add("tcc-unary", clients, self.nodes.run_unary(shape).await?);
                cells.add("tcc-http", clients, self.nodes.run_http(shape).await?);
            }
            if [1, FEW, MANY].contains(&clients) {
                let log = self.logs.run(shape, record_bytes).await.context("the log stores")?;
                cells.add("log", clients, figures::of(&log));
                let raft = self.raft.run(shape, record_bytes).await.context("the bare log")?;
                cells.add("raft", clients, figures::of(&raft));
            }
            if [FEW, MANY].contains(&clients) {
                let database = self.database.run(shape, record_bytes).await;
                cells.add("postgres", clients, figures::of(&database.context("PostgreSQL")?));
            }
            if [1, FEW].contains(&clients) {
                let (unary, cpu_us) = self.echo.run_unary(shape).await.context("unary echoes")?;
                let mut unary = figures::of(&unary);
                unary.insert("all_cpu_us", cpu_us);
                cells.add("echo-unary", clients, unary);
                let (stream, cpu_us) =
                    self.echo.run_stream(shape).await.context("stream echoes")?;
                let mut stream = figures::of(&stream);
                stream.insert("all_cpu_us", cpu_us);
                cells.add("echo-stream", clients, stream);
            }
        }
        Ok(())
    }
}

fn goals(cells: &Cells) -> Vec<Goal> {
    use Bound::{About, AtLeast, AtMost};
    let rate = |ours, theirs, clients| cells.ratio((ours, "per_s"), (theirs, "per_s"), clients);
    let median = |side, clients, name: &str| cells.median(side, clients, name);
    let mut goals = Vec::new();
    for (clients, log, raft, database) in [(FEW, 0.2, 0.5, 8.0), (MANY, 0.25, 0.65, 15.0)] {
        let at = |what: &str| format!("{what}, {clients} clients");
        goals.push(Goal::new(
            at("TCC / appends of a lone log (a)"),
            rate("tcc", "log", clients),
            AtLeast(log),
        ));
        goals.push(Goal::new(
            at("commands in TCCs / commands of the bare log (b)"),
            cells.ratio(("tcc", "commands_per_s"), ("raft", "per_s"), clients),
            AtLeast(raft),
        ));
        for mode in [Mode::Tcc, Mode::Saga] {
            let name = at(&format!("{} / Sagas of PostgreSQL (c)", mode.word()));
            goals.push(Goal::new(name, rate(mode.word(), "postgres", clients), AtLeast(database)));
        }
        goals.push(Goal::new(
            at("p99 of a Saga / p99 of PostgreSQL (c)"),
            cells.ratio(("saga", "p99_us"), ("postgres", "p99_us"), clients),
            AtMost(0.5),
        ));
    }
    for (side, way) in [("tcc-http", "HTTP"), ("tcc-unary", "unary gRPC")] {
        let name = format!("TCC over {way} / Sagas of PostgreSQL (c), {FEW} clients");
        goals.push(Goal::new(name, rate(side, "postgres", FEW), AtLeast(3.0)));
    }
    goals.push(Goal::new(
        format!("fsyncs of the leader a TCC, {MANY} clients"),
        median("tcc", MANY, "fsyncs"),
        AtMost(0.03),
    ));
    goals.push(Goal::new(
        format!("CPU of the leader a TCC, us, {MANY} clients"),
        median("tcc", MANY, "leader_cpu_us"),
        AtMost(20.0),
    ));
    let echo_cpu = median("echo-unary", FEW, "all_cpu_us");
    goals.push(Goal::new(
        format!("CPU of all processes a TCC / CPU of a unary echo (d), {MANY} clients"),
        median("tcc", MANY, "all_cpu_us").zip(echo_cpu).map(|(ours, echo)| ours / echo),
        AtMost(3.0),
    ));
    let commit = median("raft", 1, "p50_us");
    let round_trip = median("echo-stream", 1, "p50_us");
    let floor = commit.zip(round_trip).map(|(commit, trip)| 2.0 * commit + 3.0 * trip);
    goals.push(Goal::new(
        "p50 of a TCC / (2 commits of (b) + 3 round trips of (d)), 1 client",
        median("tcc", 1, "p50_us").zip(floor).map(|(ours, floor)| ours / floor),
        AtMost(1.3),
    ));
    goals.push(Goal::new(
        format!("p99 / p50 of a TCC, {FEW} clients"),
        median("tcc", FEW, "p99_to_p50"),
        AtMost(4.0),
    ));
    for (what, name, most) in [
        ("CPU of a quiet node, share of a core", "core_share", 0.01),
        ("bytes a second in the log of a quiet leader", "bytes_per_s", 0.0),
    ] {
        goals.push(Goal::new(what, median("idle", 0, name), AtMost(most)));
    }
    // Who waits for a Saga waits for its end, which then is no lazy one.
    for (side, what, blocking, lazy) in [
        ("tcc", "TCC", 2.0, 1.0),
        ("saga-unwaited", "Saga that nobody waits for", 1.0, 1.0),
        ("saga", "Saga whose caller waits", 2.0, 0.0),
    ] {
        let name = |kind| format!("{kind} proposals a {what}, {FEW} clients");
        goals.push(Goal::new(name("blocking"), median(side, FEW, "blocking"), About(blocking)));
        goals.push(Goal::new(name("lazy"), median(side, FEW, "lazy"), About(lazy)));
    }
    goals
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: CoordinatorArgs,
    }

    #[test]
    fn the_secure_sides_meet_in_twelve_rounds_at_the_clients_of_their_goals() {
        let read = |words: &[&str]| {
            let args = Line::parse_from([&["bench"], words].concat()).args;
            (args.rounds, args.clients())
        };
        assert_eq!(read(&[]), (3, vec![1, 16, 64, 256, 512, 1024]));
        assert_eq!(read(&["--secure"]), (12, vec![64, 512]));
        assert_eq!(read(&["--secure", "--rounds", "9", "--clients", "64"]), (9, vec![64]));
    }
}
