//! Bar (b): the bare replicated log with a state machine that does nothing, three nodes, one command an entry.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use holdfast_raft::{Capture, Config, Log, Member, Position, StateMachine};
use tokio::time::{Instant, sleep};

use super::{
    load::{self, Sample, Shape},
    worker::{Worker, obey},
};
use crate::demo::ports;

/// Of the shipped configuration.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
const NODES: usize = 3;
/// For an election.
const LEADER_MAX: Duration = Duration::from_secs(20);

/// One node of a bare log, told on standard input what to propose.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// This node's number
    #[arg(long)]
    node: u64,
    /// The ports of all nodes, in order
    #[arg(long, value_delimiter = ',')]
    ports: Vec<u16>,
    /// A fresh folder
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
}

/// Nothing to remember.
struct Nothing;

impl StateMachine for Nothing {
    type Response = ();

    fn apply(&mut self, _: Position, _: &Bytes) {}

    fn snapshot(&self) -> Capture {
        Box::new(|_| Vec::new())
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// Serves until standard input ends.
/// # Errors
/// The log cannot be opened.
pub(crate) async fn serve(args: NodeArgs) -> anyhow::Result<ExitCode> {
    let members: Vec<Member> = (1..)
        .zip(&args.ports)
        .map(|(node, port)| {
            let raft = format!("127.0.0.1:{port}");
            Member { node, grpc: raft.clone(), http: raft.clone(), raft }
        })
        .collect();
    let own = members.iter().find(|member| member.node == args.node).context("no such node")?;
    let config = Config {
        node: args.node,
        cluster: "bench".to_owned(),
        credentials: None,
        dir: args.dir,
        bind: own.raft.parse()?,
        members,
        heartbeat_ms: 60,
        election_min_ms: 250,
        election_max_ms: 320,
        segment_bytes: SEGMENT_BYTES,
        snapshot_every: 50_000,
        snapshot_bytes: 128 * 1024 * 1024,
        join: false,
        groups: 1,
        reads_format: 1,
    };
    let log = Log::open(config, Nothing).await?;
    obey(async |line| {
        if line == "leads" {
            return Ok(serde_json::to_value(log.leadership().borrow().leads_here)?);
        }
        let (shape, bytes) = Shape::from_line(line).context("not an order")?;
        let (log, record) = (log.clone(), Bytes::from(vec![0x5a; bytes]));
        let propose = move |_| {
            let (log, record) = (log.clone(), record.clone());
            async move { log.propose(record).await.is_ok() }
        };
        Ok(serde_json::to_value(load::run(shape, load::without_meters, propose).await?.0)?)
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

/// The three nodes.
#[derive(Debug)]
pub(crate) struct BareRaft(Vec<Worker>);

impl BareRaft {
    /// Starts them below `folder`.
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        let ports = ports::free(NODES)?;
        let listed = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let workers = (1..=NODES).map(|node| {
            let name = format!("raft-{node}");
            let dir = folder.join(&name).to_string_lossy().into_owned();
            let arguments =
                ["raft-node", "--node", &node.to_string(), "--ports", &listed, "--dir", &dir];
            Worker::start(&name, &arguments.map(str::to_owned), folder)
        });
        Ok(Self(workers.collect::<anyhow::Result<_>>()?))
    }

    /// The proposers are in the leader's process.
    pub(crate) async fn run(&mut self, shape: Shape, bytes: usize) -> anyhow::Result<Sample> {
        let until = Instant::now() + LEADER_MAX;
        loop {
            for worker in &mut self.0 {
                if worker.ask::<bool>("leads").await? {
                    return worker.ask(&shape.to_line(bytes)).await;
                }
            }
            if Instant::now() > until {
                bail!("no bare node led for {} s", LEADER_MAX.as_secs());
            }
            sleep(Duration::from_millis(25)).await;
        }
    }
}
