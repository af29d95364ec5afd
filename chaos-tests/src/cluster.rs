//! Three coordinators, a PostgreSQL server with a database for each shard, and a bank process for each of those.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use holdfast_banking::{
    NewAccount, audit_all,
    ledger::{AccountId, Currency},
    migrate, open_accounts,
};
use holdfast_client::{Client, ClientOptions, wire::NodeStatusReply};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    Agent, Folder, Postgres, Process, binary, http, journal, ports,
    process::Program,
    proxy::Proxy,
    until::{SOON, until},
};

/// With other ports each time.
const STARTS_MAX: usize = 4;
/// Coordinators of a cluster.
const NODES: usize = 3;

/// Everything that runs. Where fields are dropped, processes end before their folder goes.
#[derive(Debug)]
pub struct Cluster {
    /// By place, from 0.
    pub nodes: Vec<Node>,
    /// One a shard, `shard-1` first.
    pub banks: Vec<Bank>,
    /// The databases, named as the shards.
    pub postgres: Option<Postgres>,
    /// Logs, data, configuration.
    pub folder: Folder,
    shape: Shape,
}

/// How the log of a cluster is kept.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Entries between two snapshots.
    pub snapshot_every: u64,
    /// Peers, agents and banks go through proxies, and each process consents to drills.
    pub proxied: bool,
    /// Where each process sends its spans.
    pub collector: Option<SocketAddr>,
    /// Each process logs all that it can, as JSON.
    pub talkative: bool,
    /// Raft groups.
    pub groups: u32,
    /// How long a leader lets a router go by rules without a word.
    pub router_lease_max_ms: u32,
}

impl Default for Shape {
    /// Small files and frequent snapshots, so that a short story goes through several of them.
    fn default() -> Self {
        Self {
            segment_bytes: 16_777_216,
            snapshot_every: 500,
            proxied: false,
            collector: None,
            talkative: false,
            groups: 1,
            router_lease_max_ms: 300_000,
        }
    }
}

/// Of a node's configuration: twice the default waits before an election. Several stories at once, each of three nodes, banks and a
/// PostgreSQL, share a test machine's few cores, and a follower that is not scheduled for a quarter of a second must not depose a
/// leader that a story watches. How soon another leads with the defaults is for `holdfast drill` to measure.
pub const PATIENT: &str = "[timeouts]\nelection_min_ms = 500\nelection_max_ms = 640\n";

/// One coordinator.
#[derive(Debug)]
pub struct Node {
    /// The HTTP door.
    pub http: String,
    /// The gRPC door.
    pub grpc: String,
    /// The peers' door.
    pub raft: String,
    /// In front of the gRPC door, for agents, banks and forwarding peers.
    pub grpc_proxy: Option<Proxy>,
    /// In front of the peers' door.
    pub raft_proxy: Option<Proxy>,
    /// The drill door, where the process consents.
    pub drill: String,
    /// Log, vote and snapshots.
    pub data: PathBuf,
    /// The program.
    pub process: Process,
}

/// One bank process.
#[derive(Debug)]
pub struct Bank {
    /// `shard-1` and so on.
    pub shard: String,
    /// Health and metrics.
    pub http: String,
    /// The drill door, where the process consents.
    pub drill: String,
    /// Between the bank and its PostgreSQL.
    pub postgres_proxy: Option<Proxy>,
    /// The program.
    pub process: Process,
}

impl Cluster {
    /// Starts coordinators, and so many shards with a bank each; all are ready when this returns.
    /// # Errors
    /// Something does not start; says so with the end of its log.
    pub async fn start(shards: usize) -> anyhow::Result<Self> {
        Self::shaped(shards, Shape::default()).await
    }

    /// The same, in another shape.
    /// # Errors
    /// As [`Self::start`].
    pub async fn shaped(shards: usize, shape: Shape) -> anyhow::Result<Self> {
        for _ in 1..STARTS_MAX {
            match Self::start_once(shards, shape).await {
                // Somebody else on this machine took a port between the choice and the start.
                Err(error) if format!("{error:#}").contains("Address already in use") => {}
                started => return started,
            }
        }
        Self::start_once(shards, shape).await
    }

    async fn start_once(shards: usize, shape: Shape) -> anyhow::Result<Self> {
        let folder = Folder::make()?;
        // Behind the doors, those that others are told of where they go through proxies, and a drill door each.
        let ports = ports::free(NODES * 6)?;
        let nodes = (0..NODES).map(|at| Node::make(at, &ports, shape, &folder));
        let mut nodes = nodes.collect::<anyhow::Result<Vec<_>>>()?;
        if shape.proxied {
            for (at, node) in nodes.iter_mut().enumerate() {
                let told = NODES * 3 + at * 2;
                let seed = at as u64;
                node.grpc_proxy = Some(Proxy::start(ports[told], &node.grpc, seed).await?);
                node.raft_proxy = Some(Proxy::start(ports[told + 1], &node.raft, seed + 10).await?);
            }
        }
        let mut cluster = Self { nodes, banks: Vec::new(), postgres: None, folder, shape };
        for node in &mut cluster.nodes {
            node.process.start()?;
        }
        if shards > 0 {
            cluster.start_banks(shards, shape).await?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    async fn start_banks(&mut self, shards: usize, shape: Shape) -> anyhow::Result<()> {
        let postgres = Postgres::start(self.folder.path()).await?;
        let coordinators: Vec<String> = self.nodes.iter().map(|node| node.told()).collect();
        let doors = ports::free(shards * 2)?;
        for (shard, doors) in (1..).zip(doors.chunks(2)) {
            let shard = format!("shard-{shard}");
            postgres.create(&shard).await?;
            migrate(&mut postgres.connect(&shard).await?).await?;
            let database = postgres.connection_string(&shard);
            let (proxy, database) = match shape.proxied {
                false => (None, database),
                true => {
                    let server = format!("127.0.0.1:{}", postgres.port());
                    let proxy = Proxy::start(0, &server, u64::from(doors[0])).await?;
                    let (behind, before) = (postgres.port().to_string(), proxy.address.port());
                    let database = database.replace(&behind, &before.to_string());
                    (Some(proxy), database)
                }
            };
            let mut bank = Bank::make(shard, doors, &database, &coordinators, shape, &self.folder)?;
            bank.postgres_proxy = proxy;
            bank.process.start()?;
            self.banks.push(bank);
        }
        self.postgres = Some(postgres);
        Ok(())
    }

    /// The coordinators' gRPC addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.grpc.clone()).collect()
    }

    /// Waits until every process runs and says that it is ready.
    /// # Errors
    /// One ended, or does not get ready.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let nodes = self.nodes.iter_mut().map(|node| (&node.http, &mut node.process));
        let banks = self.banks.iter_mut().map(|bank| (&bank.http, &mut bank.process));
        for (address, process) in nodes.chain(banks) {
            let ready = until("a process is ready", SOON, async || {
                let ended = process.check().err();
                let asked = http::get(address, "/readyz").await;
                let ready = asked.is_ok_and(|reply| reply.status == 200);
                ended.map(Err).or(ready.then_some(Ok(())))
            });
            let ready = ready.await;
            ready.map_err(|error| error.context(process.complaint("is not ready")))??;
        }
        Ok(())
    }

    /// A client that knows every node.
    /// # Errors
    /// No leader is found.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.addresses(), ClientOptions::default()).await?)
    }

    /// What the node at that place says of itself; `None` if it does not answer.
    pub async fn status(&self, at: usize) -> Option<NodeStatusReply> {
        let options = ClientOptions { patience_ms: 1_000, ..ClientOptions::default() };
        Client::lazy([self.nodes[at].grpc.as_str()], options).ok()?.node_status().await.ok()
    }

    /// The place of the node that leads, by the word of the highest term.
    /// # Errors
    /// None leads for a while.
    pub async fn leader(&self) -> anyhow::Result<usize> {
        Ok(self.leads().await?.0)
    }

    /// The place of the node that leads, and its term, by the word of the highest term. On a loaded machine another may lead a moment
    /// later, or lead already and not have said so in time.
    /// # Errors
    /// None leads for a while.
    pub async fn leads(&self) -> anyhow::Result<(usize, u64)> {
        until("a node leads", SOON, async || {
            let statuses = join_all((0..NODES).map(|at| self.status(at))).await;
            let leaders = statuses.into_iter().enumerate();
            let leaders = leaders.filter_map(|(at, status)| Some((status?, at)));
            let leaders = leaders.filter(|(status, _)| status.role == "leader");
            leaders.max_by_key(|(status, _)| status.term).map(|(status, at)| (at, status.term))
        })
        .await
    }

    /// The place of a node that follows.
    /// # Errors
    /// None leads for a while.
    pub async fn follower(&self) -> anyhow::Result<usize> {
        Ok((self.leader().await? + 1) % NODES)
    }

    /// Starts a sidecar that knows every node.
    /// # Errors
    /// It does not get ready.
    pub async fn agent(&self, service: &str, app: &str) -> anyhow::Result<Agent> {
        let environment = sight(self.shape);
        Agent::start(self.folder.path(), service, app, &self.addresses(), environment).await
    }

    /// A connection to each shard's database, with the shard's name.
    /// # Errors
    /// What PostgreSQL says.
    pub async fn sources(&self) -> anyhow::Result<Vec<(String, tokio_postgres::Client)>> {
        let postgres = self.postgres.as_ref().context("the cluster has no shards")?;
        let mut sources = Vec::new();
        for bank in &self.banks {
            sources.push((bank.shard.clone(), postgres.connect(&bank.shard).await?));
        }
        Ok(sources)
    }

    /// Opens accounts on the shard at that place, each with so many minor units of EUR.
    /// # Errors
    /// What PostgreSQL says.
    pub async fn open_accounts(
        &self,
        shard: usize,
        ids: impl IntoIterator<Item = String>,
        balance_minor: i64,
    ) -> anyhow::Result<()> {
        let currency = Currency::parse("EUR")?;
        let account = |id: String| {
            anyhow::Ok(NewAccount { id: AccountId::parse(&id)?, currency, balance_minor })
        };
        let accounts = ids.into_iter().map(account).collect::<anyhow::Result<Vec<_>>>()?;
        let (_, client) = &self.sources().await?[shard];
        open_accounts(client, &accounts).await?;
        Ok(())
    }

    /// The balance of an account of the shard at that place, minor units.
    /// # Errors
    /// There is no such account.
    pub async fn balance_minor(&self, shard: usize, account: &str) -> anyhow::Result<i64> {
        let (_, client) = &self.sources().await?[shard];
        let balance = "SELECT balance_minor FROM bank.account WHERE id = $1";
        Ok(client.query_one(balance, &[&account]).await?.get(0))
    }

    /// `kill -9` of every coordinator, as near to at once as can be.
    /// # Errors
    /// One had ended before.
    pub async fn kill_nodes(&mut self) -> anyhow::Result<()> {
        for node in &self.nodes {
            node.process.signal(Signal::SIGKILL)?;
        }
        for node in &mut self.nodes {
            node.process.ended(SOON).await?;
        }
        Ok(())
    }

    /// Starts every coordinator that does not run and waits until all are ready.
    /// # Errors
    /// One does not get ready.
    pub async fn start_nodes(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if node.process.pid().is_err() {
                node.process.start()?;
            }
        }
        self.ready().await
    }

    /// Kills a follower, takes its disk away and starts it without one; it is no member until it is replaced. Says which, by place.
    /// # Errors
    /// There is no follower, or it does not start.
    pub async fn lose_a_disk(&mut self) -> anyhow::Result<usize> {
        let at = self.follower().await?;
        let node = &mut self.nodes[at];
        node.process.kill().await?;
        let lost = (1..).map(|nth| node.data.with_extension(format!("lost-{nth}")));
        let lost = lost.into_iter().find(|place| !place.exists()).context("a name is free")?;
        std::fs::rename(&node.data, lost)?;
        node.process.set("HOLDFAST_CLUSTER_JOIN", "true");
        node.process.start()?;
        Ok(at)
    }

    /// Who gives commands to it, also while something is done to it.
    #[must_use]
    pub fn operator(&self) -> Operator {
        let peers = self.nodes.iter().map(|node| match &node.raft_proxy {
            Some(proxy) => proxy.address.to_string(),
            None => node.raft.clone(),
        });
        Operator { coordinators: self.addresses().join(","), peers: peers.collect() }
    }

    /// Waits until nothing is open at the coordinators and nothing is held at the banks.
    /// # Errors
    /// Something still is.
    pub async fn quiet(&self, within: Duration) -> anyhow::Result<()> {
        let sources = if self.banks.is_empty() { Vec::new() } else { self.sources().await? };
        until("nothing open, nothing held", within, async || {
            let leader = self.leader().await.ok()?;
            let open = self.status(leader).await?.open_transactions;
            let held = journal::held_minor(&sources).await.ok()?;
            (open == 0 && held == 0).then_some(())
        })
        .await
    }

    /// Fails with every finding of the audit, or if a hold is open.
    /// # Errors
    /// What is wrong with the books.
    pub async fn audit(&self) -> anyhow::Result<()> {
        let books = audit_all(&mut self.sources().await?, |_| {}).await?;
        ensure!(books.is_right(), "the audit found: {:?}", books.findings());
        for (shard, source) in &books.sources {
            ensure!(source.holds_open == 0, "{} holds are open on {shard}", source.holds_open);
        }
        for (currency, sums) in books.totals() {
            ensure!(sums.opening == sums.balance, "{currency} is not conserved: {sums:?}");
        }
        Ok(())
    }

    /// Waits until every node has applied the same, and compares their states: equal log prefix, equal state hash.
    /// # Errors
    /// They differ, or never stand at the same place.
    pub async fn agree(&self) -> anyhow::Result<()> {
        let hashes = until("all nodes have applied the same", SOON, async || {
            let client = Client::lazy(self.addresses(), ClientOptions::default()).ok()?;
            let asked = self.nodes.iter().map(|node| client.hashed_status_of(&node.grpc, 0));
            let statuses: Vec<_> =
                join_all(asked).await.into_iter().collect::<Result<_, _>>().ok()?;
            let index = statuses.first()?.applied_index;
            let same = statuses.iter().all(|status| status.applied_index == index);
            same.then(|| statuses.into_iter().map(|status| status.state_hash).collect::<Vec<_>>())
        })
        .await?;
        let first = hashes.first().context("a cluster has nodes")?;
        ensure!(!first.is_empty() && hashes.iter().all(|hash| hash == first), "{hashes:?}");
        Ok(())
    }

    /// Moves one cent between the first accounts of the first two shards by the node at that place: it serves.
    /// # Errors
    /// It does not commit.
    pub async fn serves(&self, at: usize, gid: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let transfer = transfer(gid, (1, from), (2, to), 1);
        let served = until("a transaction is served", SOON, async || {
            let reply =
                http::post(&self.nodes[at].http, "/v1/transactions", &transfer).await.ok()?;
            (reply.text("/outcome") == "committed").then_some(())
        });
        served.await
    }
}

/// What a process lets be seen.
fn sight(shape: Shape) -> Vec<(String, String)> {
    let mut said = Vec::new();
    if let Some(address) = shape.collector {
        said.push(("ENDPOINT", format!("http://{address}")));
    }
    if shape.talkative {
        said.extend([("LEVEL", "trace".to_owned()), ("FORMAT", "json".to_owned())]);
    }
    said.into_iter().map(|(key, value)| (format!("HOLDFAST_TELEMETRY_{key}"), value)).collect()
}

/// Consents to drills that are asked for at that door.
fn consents(door: &str) -> [(String, String); 2] {
    let said = [("ALLOWED", "true"), ("BIND", door)];
    said.map(|(key, value)| (format!("HOLDFAST_DRILL_{key}"), value.to_owned()))
}

/// Where each process looks for a kill point that it is told to die at.
fn kill_file(folder: &Folder, name: &str) -> (String, String) {
    let path = folder.path().join(format!("{name}.kill"));
    ("HOLDFAST_KILL_FILE".to_owned(), path.to_string_lossy().into_owned())
}

/// Gives commands to a cluster, by the program and to every node's address.
#[derive(Clone, Debug)]
pub struct Operator {
    coordinators: String,
    /// Where peers reach each node, by place.
    peers: Vec<String>,
}

impl Operator {
    /// Carries out a command of `holdfast`.
    /// # Errors
    /// It fails; with its own words.
    pub async fn run(&self, words: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(binary::holdfast()?);
        command.args(words).args(["--coordinator", &self.coordinators]);
        let ended = command.kill_on_drop(true).output().await?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "{words:?}: {said}");
        Ok(())
    }

    /// Replaces the node at a place, which lost its disk, however often the change is broken off on the way.
    /// # Errors
    /// It is never done.
    pub async fn replace(&self, at: usize) -> anyhow::Result<()> {
        let node = (at + 1).to_string();
        // The address is told each time: behind its first half the change has made the node nobody.
        let words = ["cluster", "replace", &node, "--raft", &self.peers[at]];
        let deadline = Instant::now() + 4 * SOON;
        loop {
            match self.run(&words).await {
                Ok(()) => return Ok(()),
                // It has its vote: a change that was broken off came to its end.
                Err(told) if told.to_string().contains("is a member already") => return Ok(()),
                Err(told) => ensure!(Instant::now() < deadline, "never replaced: {told:#}"),
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A TCC transfer of `minor` EUR cents between two shards, as JSON.
#[must_use]
pub fn transfer(gid: &str, from: (usize, &str), to: (usize, &str), minor: i64) -> Value {
    let leg = |account: &str| json!({"account": account, "amount_minor": minor.to_string(), "currency": "EUR"});
    json!({
        "gid": gid,
        "mode": "tcc",
        "branches": [
            {"participant": format!("deposit@shard-{}", from.0), "payload": {"debit": leg(from.1)}},
            {"participant": format!("deposit@shard-{}", to.0), "payload": {"credit": leg(to.1)}},
        ],
    })
}

impl Node {
    /// The gRPC address that others are told: of the proxy, where there is one.
    fn told(&self) -> String {
        let proxy = self.grpc_proxy.as_ref();
        proxy.map_or_else(|| self.grpc.clone(), |proxy| proxy.address.to_string())
    }

    fn make(at: usize, ports: &[u16], shape: Shape, folder: &Folder) -> anyhow::Result<Self> {
        let name = format!("coordinator-{}", at + 1);
        let data = folder.path().join(&name);
        let [http, grpc, raft] =
            [0, 1, 2].map(|door| format!("127.0.0.1:{}", ports[at * 3 + door]));
        let mut config = format!(
            "[node]\nid = {}\ndata_dir = {data:?}\n\n[cluster]\nname = \"chaos\"\ngroups = {}\n",
            at + 1,
            shape.groups
        );
        for (id, doors) in (1..).zip(ports[..NODES * 3].chunks(3)) {
            let told = NODES * 3 + (id - 1) * 2;
            let (grpc, raft) =
                if shape.proxied { (ports[told], ports[told + 1]) } else { (doors[1], doors[2]) };
            config.push_str(&format!(
                "\n[[cluster.member]]\nid = {id}\nhttp = \"127.0.0.1:{}\"\ngrpc = \"127.0.0.1:{}\"\nraft = \"127.0.0.1:{}\"\n",
                doors[0], grpc, raft
            ));
        }
        let Shape { segment_bytes, snapshot_every, proxied, router_lease_max_ms, .. } = shape;
        config.push_str(&format!(
            "\n[bind]\nhttp = \"{http}\"\ngrpc = \"{grpc}\"\nraft = \"{raft}\"\n
[security]\nmode = \"dev-plaintext\"\n
[log]\nsegment_bytes = {segment_bytes}\nsnapshot_every = {snapshot_every}\n
[limits]\nrouter_lease_max_ms = {router_lease_max_ms}\n\n{PATIENT}"
        ));
        let config = folder.write(&format!("{name}.toml"), config)?;
        let drill = format!("127.0.0.1:{}", ports[NODES * 5 + at]);
        let mut environment = vec![kill_file(folder, &name)];
        environment.extend(sight(shape));
        if proxied {
            environment.extend(consents(&drill));
        }
        let program = Program {
            name,
            path: binary::holdfast()?.to_owned(),
            arguments: vec!["coordinator".into(), "--config".into(), config.into()],
            environment,
            run_as: None,
            kill_when_dropped: true,
        };
        let (grpc_proxy, raft_proxy) = (None, None);
        Ok(Self {
            http,
            grpc,
            raft,
            grpc_proxy,
            raft_proxy,
            drill,
            data,
            process: Process::new(program, folder.path()),
        })
    }
}

impl Bank {
    fn make(
        shard: String,
        doors: &[u16],
        database: &str,
        coordinators: &[String],
        shape: Shape,
        folder: &Folder,
    ) -> anyhow::Result<Self> {
        let (http, drill) = (format!("127.0.0.1:{}", doors[0]), format!("127.0.0.1:{}", doors[1]));
        let config = format!(
            "[bank]\nshard = \"{shard}\"\ndatabase = \"{database}\"\n\n[coordinators]\naddresses = {coordinators:?}\n
[bind]\nhttp = \"{http}\"\n\n[security]\nmode = \"dev-plaintext\"\n"
        );
        let config = folder.write(&format!("bank-{shard}.toml"), config)?;
        let mut environment = vec![kill_file(folder, &format!("bank-{shard}"))];
        environment.extend(sight(shape));
        if shape.proxied {
            environment.extend(consents(&drill));
        }
        let program = Program {
            name: format!("bank-{shard}"),
            path: binary::holdfast()?.to_owned(),
            arguments: vec!["bank".into(), "--config".into(), config.into()],
            environment,
            run_as: None,
            kill_when_dropped: true,
        };
        Ok(Self {
            shard,
            http,
            drill,
            postgres_proxy: None,
            process: Process::new(program, folder.path()),
        })
    }
}
