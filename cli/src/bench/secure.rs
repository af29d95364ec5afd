//! `holdfast bench coordinator --secure`: the same cluster twice, once bare and once with mutual TLS on every connection, rights judged
//! for every branch, and traces to a collector; loaded in turns, so that the ratio is of the same minutes.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use holdfast_client::{Client, ClientOptions};
use holdfast_security::Credentials;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::{
    coordinator::CoordinatorArgs,
    figures::{self, Cells, Figures},
    goal::{Bound, Goal},
    load::{self, Shape},
    machine::Machine,
    meters,
    show::note,
    submission::{self, Mode},
    worker::Worker,
};
use crate::{
    demo::{
        cluster::{COORDINATORS, coordinator_config, role, set},
        guard::{self, Guard},
        ports,
        processes::Supervised,
    },
    otlp::{Traces, Who},
};

/// From start to open sessions.
const READY_MAX: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// Clients of the goals.
const MANY: [u32; 2] = [64, 512];
/// Of the throughput, that guards and sight together may cost.
const COST_MAX: f64 = 0.15;
const USER: &str = "user/bench?role=app";
/// The service of both participants, as their certificate says it.
const SERVICE: &str = "idle";
const ACCESS: &str = "[[caller]]\nname = \"user/bench\"\nparticipants = [\"idle@1\", \"idle@2\"]\n";

/// What makes a cluster guarded and seen into.
struct Watched {
    guard: Guard,
    collector: SocketAddr,
}

/// A cluster with participants that do nothing, and a client.
struct Side {
    coordinators: Vec<Supervised>,
    participants: Worker,
    client: Client,
}

/// CPU used so far, us. The collector's is the client's: both are in this process.
struct Cpu {
    coordinators: f64,
    participants: f64,
    client: f64,
}

/// Measures both.
/// # Errors
/// Something could not be started, or broke down.
pub(crate) async fn measure(
    args: &CoordinatorArgs,
    folder: &Path,
) -> anyhow::Result<(Value, Cells, Vec<Goal>)> {
    let machine = Machine::look(folder);
    note(&format!("{}\n", machine.to_text()));
    let seen = Arc::new(AtomicU64::new(0));
    let guard = Guard::make(folder, COORDINATORS, &[SERVICE], USER, ACCESS)?;
    let watched = Watched { guard, collector: collect(Arc::clone(&seen)).await? };
    let endpoint = format!("http://{}", watched.collector);
    let who = Who { role: "bench", instance: "client".to_owned() };
    let traces = Traces::start(&endpoint, &who)?;
    let bare = Side::start(&folder.join("bare"), None).await.context("bare")?;
    let secure = Side::start(&folder.join("secure"), Some(&watched)).await;
    let secure = secure.context("with mutual TLS")?;
    let mut cells = Cells::default();
    for round in 1..=args.rounds {
        note(&format!("Round {round} of {}\n", args.rounds));
        for clients in args.clients() {
            for mode in [Mode::Tcc, Mode::Saga] {
                let shape = args.shape(clients);
                let [own, guarded, untraced, again] = names(mode);
                let sampled = Some(args.sampled);
                let mut sides =
                    [(&bare, own, None), (&secure, guarded, sampled), (&secure, untraced, None)];
                take_turns(&mut sides, round);
                // So that both clusters have carried as much: whoever remembers twice as many transactions is slower by that alone.
                let once_more = (&bare, again, None);
                for (side, name, sampled) in sides.into_iter().chain([once_more]) {
                    let measured = side.run(mode, shape, sampled).await.context(name)?;
                    cells.add(name, clients, measured);
                }
            }
        }
    }
    traces.end().await;
    let spans = seen.load(Ordering::Relaxed);
    ensure!(spans > 0, "no span arrived: what was measured was not traced");
    let setup = json!({
        "machine": machine,
        "seconds": args.seconds(),
        "rounds": args.rounds,
        "clients": args.clients(),
        "coordinators": COORDINATORS,
        "branches": 2,
        "security": "mutual-tls",
        "sampled_one_of": args.sampled,
        "spans": spans,
    });
    let goals = goals(&cells);
    Ok((setup, cells, goals))
}

/// What the sides are called: bare, with all of it, with all of it for transactions that belong to no trace, and bare once more.
fn names(mode: Mode) -> [&'static str; 4] {
    match mode {
        Mode::Tcc => ["tcc", "tcc-secure", "tcc-untraced", "tcc-again"],
        Mode::Saga => ["saga", "saga-secure", "saga-untraced", "saga-again"],
    }
}

/// The order of a round: within six rounds each of the six there are, so that each side is as often behind each other one, and a machine
/// that gets slower favors nobody.
fn take_turns<T>(sides: &mut [T; 3], round: u32) {
    sides.rotate_left(round as usize % 3);
    if round.is_multiple_of(2) {
        sides.reverse();
    }
}

fn goals(cells: &Cells) -> Vec<Goal> {
    let mut goals = Vec::new();
    for clients in MANY {
        for [own, guarded, ..] in [names(Mode::Tcc), names(Mode::Saga)] {
            let ratio = cells.ratio((guarded, "per_s"), (own, "per_s"), clients);
            goals.push(Goal::new(
                format!(
                    "throughput that mutual TLS, rights and traces cost, {own}, {clients} clients"
                ),
                ratio.map(|ratio| 1.0 - ratio),
                Bound::AtMost(COST_MAX),
            ));
        }
    }
    goals
}

impl Watched {
    /// Guards a coordinator's configuration, and has it traced.
    fn apply(&self, config: &mut toml::Table, node: usize) -> anyhow::Result<()> {
        self.guard.apply(config, &format!("node/{node}"))?;
        set(config, "telemetry", "endpoint", format!("http://{}", self.collector))
    }
}

/// What a participant of a guarded cluster presents.
/// # Errors
/// The certificate was not made.
pub(super) fn participant_credentials(certs: &Path) -> anyhow::Result<Credentials> {
    guard::credentials(certs, &format!("service/{SERVICE}"))
}

impl Side {
    async fn start(folder: &Path, watched: Option<&Watched>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let program = std::env::current_exe().context("finding our own program")?;
        let ports = ports::free(COORDINATORS * 3)?;
        let address = |at: usize, door: usize| format!("127.0.0.1:{}", ports[at * 3 + door]);
        let members: Vec<_> =
            (0..COORDINATORS).map(|at| (at + 1, [0, 1, 2].map(|door| address(at, door)))).collect();
        let mut coordinators = Vec::new();
        for node in 1..=COORDINATORS {
            let data = folder.join(format!("coordinator-{node}"));
            let mut config = coordinator_config(node, &data, &members)?;
            if let Some(watched) = watched {
                watched.apply(&mut config, node)?;
            }
            let name = format!("coordinator-{node}");
            let mut process =
                Supervised::new(role("coordinator", &name, &config, folder, &program)?);
            process.start()?;
            coordinators.push(process);
        }
        let addresses: Vec<String> = (0..COORDINATORS).map(|at| address(at, 1)).collect();
        let mut arguments = vec!["participant".to_owned()];
        for address in &addresses {
            arguments.extend(["--coordinator".to_owned(), address.clone()]);
        }
        let mut options = ClientOptions::default();
        if let Some(Watched { guard, collector }) = watched {
            arguments.extend(["--certs".to_owned(), guard.certs().display().to_string()]);
            arguments.extend(["--collector".to_owned(), format!("http://{collector}")]);
            options = guard.options()?;
        }
        let mut participants = Worker::start("participants", &arguments, folder)?;
        let until = Instant::now() + READY_MAX;
        while !participants.ask::<bool>("ready").await? {
            coordinators.iter_mut().try_for_each(Supervised::check)?;
            ensure!(Instant::now() < until, "the participants found no three coordinators");
            sleep(LOOK_AGAIN).await;
        }
        let client = Client::connect(addresses, options).await?;
        Ok(Self { coordinators, participants, client })
    }

    /// Of the transactions one of `sampled` is sampled; `None`: none carries a context at all.
    async fn run(&self, mode: Mode, shape: Shape, sampled: Option<u64>) -> anyhow::Result<Figures> {
        let client = self.client.clone();
        let count = Arc::new(AtomicU64::new(0));
        let trace = rand::random::<u64>();
        let ask = move |_| {
            let number = count.fetch_add(1, Ordering::Relaxed);
            // The caller's own tracing made it, whether or not it is handed on.
            let made = context(trace, number, sampled.unwrap_or(u64::MAX));
            let context = sampled.map(|_| made);
            let client = client.clone();
            async move {
                let submission = submission::traced(mode, context);
                client.submit(submission).await.is_ok_and(|answer| answer.is_committed())
            }
        };
        let (sample, before, after) = load::run(shape, async || self.cpu(), ask).await?;
        let mut figures = figures::of(&sample);
        let each = |of: fn(&Cpu) -> f64| (of(&after) - of(&before)) / sample.between_readings;
        let cpu = [
            ("coordinators_cpu_us", each(|cpu| cpu.coordinators)),
            ("participants_cpu_us", each(|cpu| cpu.participants)),
            ("client_cpu_us", each(|cpu| cpu.client)),
        ];
        figures.insert("all_cpu_us", cpu.iter().map(|(_, each)| each).sum());
        figures.extend(cpu);
        Ok(figures)
    }

    fn cpu(&self) -> anyhow::Result<Cpu> {
        let nodes = self
            .coordinators
            .iter()
            .map(|process| meters::cpu_us(process.pid().context("a coordinator ended by itself")?));
        Ok(Cpu {
            coordinators: nodes.sum::<anyhow::Result<f64>>()?,
            participants: meters::cpu_us(self.participants.pid()?)?,
            client: meters::cpu_us(std::process::id())?,
        })
    }
}

/// A caller's context, as its own tracing would make one: every transaction has a trace of its own, one of `one_of` is sampled.
fn context(trace: u64, number: u64, one_of: u64) -> String {
    let (span, sampled) = (number + 1, u8::from(number.is_multiple_of(one_of)));
    format!("00-{trace:016x}{span:016x}-{span:016x}-{sampled:02x}")
}

/// A collector that counts.
struct Counted(Arc<AtomicU64>);

#[tonic::async_trait]
impl TraceService for Counted {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.get_ref().resource_spans.iter().flat_map(|of| &of.scope_spans);
        let spans: usize = scopes.map(|scope| scope.spans.len()).sum();
        self.0.fetch_add(spans as u64, Ordering::Relaxed);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collect(seen: Arc<AtomicU64>) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = Server::builder()
        .add_service(TraceServiceServer::new(Counted(seen)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(async move {
        if let Err(fault) = serving.await {
            tracing::error!(%fault, "the collector broke");
        }
    });
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_so_many_transactions_is_sampled_and_each_has_a_trace_of_its_own() {
        let contexts: Vec<String> = (0..10).map(|number| context(7, number, 5)).collect();
        let sampled = contexts.iter().filter(|one| holdfast_trace::Context::parse(one).is_some());
        assert_eq!(sampled.count(), 2, "{contexts:?}");
        assert_ne!(contexts[0][..35], contexts[5][..35]);
    }

    #[test]
    fn six_rounds_have_every_order_once() {
        let order = |round| {
            let mut sides = [0, 1, 2];
            take_turns(&mut sides, round);
            sides
        };
        let mut orders: Vec<[u8; 3]> = (1..=6).map(order).collect();
        orders.sort_unstable();
        orders.dedup();
        assert_eq!(orders.len(), 6, "{orders:?}");
    }
}
