//! What is measured: three coordinator processes and idle participants, by every way in, with their meters.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use holdfast_client::{
    Answer, BranchSpec, Client, ClientError, ClientOptions, Status, Terms, Wait,
    wire::{Outcome, transactions_client::TransactionsClient},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::transport::Channel;

use super::{
    bar_echo::{self, CONNECTIONS},
    figures::{self, Figures},
    load::{self, Shape},
    meters::{counters, cpu_us, resident_bytes},
    submission::{self, Mode},
    worker::Worker,
};
use crate::demo::{
    cluster::{COORDINATORS, Coordinator, status},
    ports,
};

/// From start to a leader and open sessions.
const READY_MAX: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// Between two looks of a caller that waits for nothing.
const LOOK_IN: Duration = Duration::from_millis(2);
/// From the start of nodes with a large state to their service.
const RESTART_MAX: Duration = Duration::from_secs(120);
/// The time that is given to transactions that shall stay open, ms.
const OPEN_FOR_MS: u64 = 24 * 3_600_000;
/// Bytes of an HTTP answer's head.
const HEAD_MAX: usize = 8 * 1024;

/// The processes, and ways into them.
#[derive(Debug)]
pub(crate) struct Nodes {
    coordinators: Vec<Coordinator>,
    participants: Worker,
    client: Client,
    /// Tagged ones that were submitted.
    tagged: Arc<AtomicU64>,
}

/// Who leads, with whom to ask for counters.
struct Processes {
    leader: u32,
    leader_http: String,
    followers: Vec<u32>,
    participants: u32,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    leader_cpu_us: f64,
    followers_cpu_us: f64,
    participants_cpu_us: f64,
    client_cpu_us: f64,
    fsyncs: f64,
    bytes: f64,
    blocking: f64,
    lazy: f64,
}

impl Nodes {
    /// Starts them below `folder` and waits until all know each other.
    pub(crate) async fn start(folder: &Path, groups: u32) -> anyhow::Result<Self> {
        Self::configured(folder, groups, |_| Ok(())).await
    }

    /// The same, with what `change` makes of each node's configuration.
    pub(crate) async fn configured(
        folder: &Path,
        groups: u32,
        change: impl Fn(&mut toml::Table) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding our own program")?;
        let ports = ports::free(COORDINATORS * 3)?;
        let mut coordinators = (0..COORDINATORS)
            .map(|at| Coordinator::configured(at, groups, &ports, (folder, &program), &change))
            .collect::<anyhow::Result<Vec<_>>>()?;
        for coordinator in &mut coordinators {
            coordinator.process.start()?;
        }
        let addresses: Vec<String> =
            coordinators.iter().map(|coordinator| coordinator.grpc.clone()).collect();
        let mut arguments = vec!["participant".to_owned()];
        for address in &addresses {
            arguments.extend(["--coordinator".to_owned(), address.clone()]);
        }
        let mut participants = Worker::start("participants", &arguments, folder)?;
        let until = Instant::now() + READY_MAX;
        while !participants.ask::<bool>("ready").await? {
            for coordinator in &mut coordinators {
                coordinator.process.check()?;
            }
            ensure!(Instant::now() < until, "the participants found no three coordinators");
            sleep(LOOK_AGAIN).await;
        }
        let client = Client::connect(addresses, ClientOptions::default()).await?;
        let tagged = Arc::default();
        let nodes = Self { coordinators, participants, client, tagged };
        nodes.processes().await?;
        Ok(nodes)
    }

    /// Over the client library's stream.
    pub(crate) async fn run_stream(&mut self, mode: Mode, shape: Shape) -> anyhow::Result<Figures> {
        let client = self.client.clone();
        let ask = move |_| {
            let client = client.clone();
            async move { committed(client.submit(submission::of(mode)).await) }
        };
        self.metered(shape, ask).await
    }

    /// TCCs with the tags that a bank's would have, the same for every side.
    pub(crate) async fn run_tagged(&mut self, shape: Shape) -> anyhow::Result<Figures> {
        let (client, next) = (self.client.clone(), Arc::clone(&self.tagged));
        let ask = move |_| {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let client = client.clone();
            async move { committed(client.submit(submission::tagged(number)).await) }
        };
        self.metered(shape, ask).await
    }

    /// A client of the cluster, beside those that load it.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Counters of every node.
    pub(crate) async fn counters(&self) -> anyhow::Result<Vec<BTreeMap<String, f64>>> {
        let mut all = Vec::new();
        for coordinator in &self.coordinators {
            all.push(counters(&coordinator.http).await?);
        }
        Ok(all)
    }

    /// Sagas whose caller is told that they are durable, looks in now and then, and waits for nothing.
    pub(crate) async fn run_unwaited(&mut self, shape: Shape) -> anyhow::Result<Figures> {
        let client = self.client.clone();
        self.metered(shape, move |_| Box::pin(unwaited(client.clone()))).await
    }

    /// By unary calls to the leader.
    pub(crate) async fn run_unary(&mut self, shape: Shape) -> anyhow::Result<Figures> {
        let leader = self.leader().await?;
        let clients: Vec<TransactionsClient<Channel>> =
            bar_echo::unary(&self.coordinators[leader].grpc).await?;
        let ask = move |client: u32| {
            let mut unary = clients[client as usize % CONNECTIONS].clone();
            async move {
                let answer = unary.submit(submission::to_wire()).await;
                answer.is_ok_and(|answer| answer.get_ref().outcome() == Outcome::Committed)
            }
        };
        self.metered(shape, ask).await
    }

    /// By HTTP/1.1 with JSON to the leader, a connection a client, kept open.
    pub(crate) async fn run_http(&mut self, shape: Shape) -> anyhow::Result<Figures> {
        let leader = self.leader().await?;
        let http = &self.coordinators[leader].http;
        let body = submission::to_json();
        let request = format!(
            "POST /v1/transactions HTTP/1.1\r\nHost: {http}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let request: Arc<[u8]> = request.into_bytes().into();
        let mut connections = Vec::new();
        for _ in 0..shape.clients {
            let stream = TcpStream::connect(http).await?;
            stream.set_nodelay(true)?;
            connections.push(Mutex::new((stream, Vec::with_capacity(HEAD_MAX))));
        }
        let connections = Arc::new(connections);
        let ask = move |client: u32| {
            let (connections, request) = (Arc::clone(&connections), Arc::clone(&request));
            async move {
                let mut connection = connections[client as usize].lock().await;
                let (stream, answer) = &mut *connection;
                post(stream, &request, answer).await.unwrap_or(false)
            }
        };
        self.metered(shape, ask).await
    }

    /// Opens transactions of two branches that nobody ends.
    pub(crate) async fn open(&self, count: u32, at_once: u32, bytes: usize) -> anyhow::Result<()> {
        let next = Arc::new(AtomicU32::new(0));
        let mut openers = JoinSet::new();
        for _ in 0..at_once {
            let (client, next) = (self.client.clone(), Arc::clone(&next));
            openers.spawn(async move {
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    open_one(&client, bytes).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(opened) = openers.join_next().await {
            opened??;
        }
        Ok(())
    }

    /// The highest term of any node: each election makes it higher.
    pub(crate) async fn term(&self) -> anyhow::Result<u64> {
        let mut term = 0;
        for coordinator in &self.coordinators {
            let status = status(&coordinator.grpc).await.context("a node does not answer")?;
            term = term.max(status.term);
        }
        Ok(term)
    }

    /// Memory of the leader in RAM, bytes.
    pub(crate) async fn memory_bytes(&self) -> anyhow::Result<f64> {
        resident_bytes(self.processes().await?.leader)
    }

    /// Kills all nodes and starts them again: until each has applied what it had before, and until one more transaction
    /// committed.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<(Duration, Duration)> {
        let mut applied = Vec::new();
        let until = Instant::now() + RESTART_MAX;
        for coordinator in &self.coordinators {
            // Just behind a round a node may be busy for longer than a question waits.
            let index = loop {
                if let Some(status) = status(&coordinator.grpc).await {
                    break status.applied_index;
                }
                ensure!(Instant::now() < until, "a node does not answer");
                sleep(LOOK_AGAIN).await;
            };
            applied.push(index);
        }
        for coordinator in &mut self.coordinators {
            coordinator.process.kill().await?;
        }
        let begun = Instant::now();
        for coordinator in &mut self.coordinators {
            coordinator.process.start()?;
        }
        let until = begun + RESTART_MAX;
        for (coordinator, before) in self.coordinators.iter_mut().zip(applied) {
            while status(&coordinator.grpc).await.is_none_or(|now| now.applied_index < before) {
                coordinator.process.check()?;
                ensure!(Instant::now() < until, "no restart within {} s", RESTART_MAX.as_secs());
                sleep(LOOK_AGAIN).await;
            }
        }
        let restarted = begun.elapsed();
        while !committed(self.client.submit(submission::of(Mode::Tcc)).await) {
            ensure!(Instant::now() < until, "nothing commits after the restart");
        }
        Ok((restarted, begun.elapsed()))
    }

    async fn metered<A, F>(&mut self, shape: Shape, ask: A) -> anyhow::Result<Figures>
    where
        A: Fn(u32) -> F + Clone + Send + 'static,
        F: Future<Output = bool> + Send + 'static,
    {
        for coordinator in &mut self.coordinators {
            coordinator.process.check()?;
        }
        let processes = self.processes().await?;
        let (sample, before, after) =
            load::run(shape, async || processes.read().await, ask).await?;
        let led = self.processes().await?.leader == processes.leader;
        let mut figures = figures::of(&sample);
        figures.insert("leader_changed", f64::from(u8::from(!led)));
        let each = |of: fn(&Reading) -> f64| (of(&after) - of(&before)) / sample.between_readings;
        let cpu = [
            ("leader_cpu_us", each(|reading| reading.leader_cpu_us)),
            ("followers_cpu_us", each(|reading| reading.followers_cpu_us)),
            ("participants_cpu_us", each(|reading| reading.participants_cpu_us)),
            ("client_cpu_us", each(|reading| reading.client_cpu_us)),
        ];
        figures.insert("all_cpu_us", cpu.iter().map(|(_, each)| each).sum());
        figures.extend(cpu);
        let (blocking, lazy) = (each(|reading| reading.blocking), each(|reading| reading.lazy));
        figures.extend([
            ("fsyncs", each(|reading| reading.fsyncs)),
            ("bytes", each(|reading| reading.bytes)),
            ("blocking", blocking),
            ("lazy", lazy),
            ("commands_per_s", sample.per_s * (blocking + lazy)),
            ("blocking_per_s", sample.per_s * blocking),
        ]);
        Ok(figures)
    }

    /// The leader's place.
    async fn leader(&self) -> anyhow::Result<usize> {
        let until = Instant::now() + READY_MAX;
        while Instant::now() < until {
            for (at, coordinator) in self.coordinators.iter().enumerate() {
                if status(&coordinator.grpc).await.is_some_and(|status| status.role == "leader") {
                    return Ok(at);
                }
            }
            sleep(LOOK_AGAIN).await;
        }
        bail!("no coordinator led for {} s", READY_MAX.as_secs())
    }

    /// What the nodes use while nobody asks for anything: the share of a core of the busiest kind of node, and the bytes that the
    /// leader's log grows by a second.
    pub(crate) async fn idle(&self, during: Duration) -> anyhow::Result<Figures> {
        let processes = self.processes().await?;
        let (begun, before) = (Instant::now(), processes.read().await?);
        sleep(during).await;
        let (took, after) = (begun.elapsed().as_secs_f64(), processes.read().await?);
        let share = |used_us: f64| used_us / 1e6 / took;
        let leader = share(after.leader_cpu_us - before.leader_cpu_us);
        let followers = share(after.followers_cpu_us - before.followers_cpu_us);
        let follower = followers / processes.followers.len() as f64;
        Ok(Figures::from([
            ("core_share", leader.max(follower)),
            ("bytes_per_s", (after.bytes - before.bytes) / took),
            ("fsyncs_per_s", (after.fsyncs - before.fsyncs) / took),
        ]))
    }

    async fn processes(&self) -> anyhow::Result<Processes> {
        let leads = self.leader().await?;
        let pid = |at: usize| {
            self.coordinators[at].process.pid().context("a coordinator ended by itself")
        };
        Ok(Processes {
            leader: pid(leads)?,
            leader_http: self.coordinators[leads].http.clone(),
            followers: (0..COORDINATORS)
                .filter(|at| *at != leads)
                .map(pid)
                .collect::<anyhow::Result<_>>()?,
            participants: self.participants.pid()?,
        })
    }
}

impl Processes {
    async fn read(&self) -> anyhow::Result<Reading> {
        let counters = counters(&self.leader_http).await?;
        let counter = |name: &str| counters.get(name).copied().unwrap_or(0.0);
        Ok(Reading {
            leader_cpu_us: cpu_us(self.leader)?,
            followers_cpu_us: self
                .followers
                .iter()
                .map(|pid| cpu_us(*pid))
                .sum::<Result<_, _>>()?,
            participants_cpu_us: cpu_us(self.participants)?,
            client_cpu_us: cpu_us(std::process::id())?,
            fsyncs: counter("holdfast_log_fsyncs_total"),
            bytes: counter("holdfast_log_bytes_total"),
            blocking: counter("holdfast_proposals_total{kind=\"blocking\"}"),
            lazy: counter("holdfast_proposals_total{kind=\"lazy\"}"),
        })
    }
}

/// A transaction that waits for its caller, who never comes back.
async fn open_one(client: &Client, bytes: usize) -> anyhow::Result<()> {
    let terms = Terms::tcc().timeout_ms(OPEN_FOR_MS).tried_by_caller();
    let gid = client.begin(terms).await?.gid;
    for (number, service) in (1..).zip(submission::SERVICES) {
        client.add_branch(&gid, number, BranchSpec::new(service, vec![b'x'; bytes])).await?;
    }
    Ok(())
}

/// One Saga; true once it is seen to have committed.
async fn unwaited(client: Client) -> bool {
    let mut answer = client.submit(submission::of(Mode::Saga).wait(Wait::None)).await;
    // No answer, or one about nothing, is a failure.
    while let Ok(Answer { transaction: Some(known), .. }) = answer {
        if known.status.is_some_and(Status::is_final) {
            return known.status == Some(Status::Committed);
        }
        sleep(LOOK_IN).await;
        answer = client.get_stale(&known.gid).await;
    }
    false
}

fn committed(answer: Result<Answer, ClientError>) -> bool {
    answer.is_ok_and(|answer| answer.is_committed())
}

/// Sends a request and reads its answer; true if it says that the transaction committed.
async fn post(
    stream: &mut TcpStream,
    request: &[u8],
    answer: &mut Vec<u8>,
) -> anyhow::Result<bool> {
    stream.write_all(request).await?;
    answer.clear();
    let body_at = loop {
        if let Some(at) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at + 4;
        }
        ensure!(answer.len() < HEAD_MAX, "an endless head");
        ensure!(stream.read_buf(answer).await? > 0, "hung up");
    };
    let head = std::str::from_utf8(&answer[..body_at])?.to_ascii_lowercase();
    let ok = head.starts_with("http/1.1 200") || head.starts_with("http/1.1 201");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.context("no length")?.trim().parse()?;
    while answer.len() < body_at + length {
        ensure!(stream.read_buf(answer).await? > 0, "hung up");
    }
    let said = b"\"outcome\":\"committed\"";
    Ok(ok && answer[body_at..].windows(said.len()).any(|bytes| bytes == said))
}
