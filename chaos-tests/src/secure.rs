//! Three coordinators and a bank that speak mutual TLS, with certificates of an authority of their own; every process consents to drills.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use holdfast_banking::migrate;
use holdfast_client::{Client, ClientOptions, Credentials, Files};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    Folder, Postgres, Process, binary, http, ports,
    process::Program,
    proxy::Proxy,
    until::{SOON, until},
};

const NODES: usize = 3;
/// Doors of a node: for HTTP callers, gRPC callers, peers and drills.
const DOORS: usize = 4;
/// Who may do what beside their roles: the person who drills transfers as well.
const ACCESS: &str =
    "[[caller]]\nname = \"user/dora\"\ntenant = \"drills\"\nparticipants = [\"*\"]\n";

/// Everything that runs. Where fields are dropped, processes end before their folder goes.
#[derive(Debug)]
pub struct Secure {
    /// Coordinators by place, then the bank.
    pub processes: Vec<Process>,
    /// The database of the bank, `shard-1`.
    pub postgres: Postgres,
    /// In front of each node's door for callers and agents.
    pub grpc_proxies: Vec<Proxy>,
    /// In front of each node's door for peers.
    pub raft_proxies: Vec<Proxy>,
    /// The drill doors, in the order of the processes.
    pub drills: Vec<String>,
    /// Certificates and configuration.
    pub folder: Folder,
}

impl Secure {
    /// Starts everything; the bank is ready when this returns. `dora` is app and sre, `oscar` an auditor.
    /// # Errors
    /// Something does not start.
    pub async fn start() -> anyhow::Result<Self> {
        let folder = Folder::make()?;
        issue(&folder).await?;
        let postgres = Postgres::start(folder.path()).await?;
        postgres.create("shard-1").await?;
        migrate(&mut postgres.connect("shard-1").await?).await?;
        let ports = ports::free(NODES * DOORS + 2)?;
        let doors: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let (nodes, bank) = doors.split_at(NODES * DOORS);
        let nodes: Vec<&[String]> = nodes.chunks(DOORS).collect();
        let (mut grpc_proxies, mut raft_proxies) = (Vec::new(), Vec::new());
        for (seed, node) in (0..).zip(&nodes) {
            grpc_proxies.push(Proxy::start(0, &node[1], seed).await?);
            raft_proxies.push(Proxy::start(0, &node[2], seed + 10).await?);
        }
        let drills = nodes.iter().map(|node| node[3].clone()).chain([bank[1].clone()]).collect();
        let processes = Vec::new();
        let mut house = Self { processes, postgres, grpc_proxies, raft_proxies, drills, folder };
        house.start_nodes(&nodes)?;
        house.start_bank(&bank[0]).await?;
        Ok(house)
    }

    fn start_nodes(&mut self, nodes: &[&[String]]) -> anyhow::Result<()> {
        let told = self.grpc_proxies.iter().zip(&self.raft_proxies);
        let members: String = (1..)
            .zip(nodes.iter().zip(told))
            .map(|(id, (node, (grpc, raft)))| {
                let (http, grpc, raft) = (&node[0], grpc.address, raft.address);
                format!(
                    "[[cluster.member]]\nid = {id}\nhttp = {http:?}\ngrpc = \"{grpc}\"\nraft = \"{raft}\"\n"
                )
            })
            .collect();
        let access = self.folder.write("access.toml", ACCESS)?;
        for (id, node) in (1..).zip(nodes) {
            let name = format!("node-{id}");
            let data = self.folder.path().join(&name);
            let config = format!(
                "[node]\nid = {id}\ndata_dir = {data:?}\n[cluster]\nname = \"chaos\"\n{members}\
                 [bind]\nhttp = {:?}\ngrpc = {:?}\nraft = {:?}\n[access]\nfile = {access:?}\n",
                node[0], node[1], node[2]
            );
            self.run("coordinator", &name, &name, &config)?;
        }
        Ok(())
    }

    async fn start_bank(&mut self, health: &str) -> anyhow::Result<()> {
        let coordinators = self.addresses();
        let database = self.postgres.connection_string("shard-1");
        let config = format!(
            "[bank]\nshard = \"shard-1\"\ndatabase = {database:?}\n\
             [coordinators]\naddresses = {coordinators:?}\n[bind]\nhttp = {health:?}\n"
        );
        self.run("bank", "bank", "service-deposit", &config)?;
        // A coordinator has welcomed it, over TLS.
        let bank = self.processes.last_mut().context("it was started")?;
        let ready = until("the bank is ready", 2 * SOON, async || {
            let ended = bank.check().err();
            let asked = http::get(health, "/readyz").await;
            ended.map(Err).or(asked.is_ok_and(|reply| reply.status == 200).then_some(Ok(())))
        });
        let ready = ready.await;
        ready.map_err(|error| error.context(bank.complaint("is not ready")))?
    }

    fn run(&mut self, role: &str, name: &str, shows: &str, config: &str) -> anyhow::Result<()> {
        let drill = &self.drills[self.processes.len()];
        let (ca, cert, key) = self.files(shows);
        let config = format!(
            "{config}[security]\nmode = \"mutual-tls\"\n[tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n\
             [drill]\nallowed = true\nbind = {drill:?}\n",
        );
        let config = self.folder.write(&format!("{name}.toml"), config)?;
        let program = Program {
            name: name.to_owned(),
            path: binary::holdfast()?.to_owned(),
            arguments: vec![role.into(), "--config".into(), config.into()],
            environment: Vec::new(),
            run_as: None,
            kill_when_dropped: true,
        };
        let mut process = Process::new(program, self.folder.path());
        process.start()?;
        self.processes.push(process);
        Ok(())
    }

    /// The authority's certificate; that of `who`, and its key.
    #[must_use]
    pub fn files(&self, who: &str) -> (PathBuf, PathBuf, PathBuf) {
        let certs = self.folder.path().join("certs");
        let own = |ending: &str| certs.join(format!("{who}.{ending}"));
        (certs.join("ca.pem"), own("pem"), own("key"))
    }

    /// Where callers are told to reach the coordinators: the proxies.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.grpc_proxies.iter().map(|proxy| proxy.address.to_string()).collect()
    }

    /// A client that knows every node, and shows the certificate of `user`.
    /// # Errors
    /// No leader is found.
    pub async fn client(&self, user: &str, patience_ms: u64) -> anyhow::Result<Client> {
        let (ca, cert, key) = self.files(&format!("user-{user}"));
        let credentials = Credentials::open(Files { ca, identity: Some((cert, key)) })?;
        let credentials = Some(credentials);
        let options = ClientOptions { credentials, patience_ms, ..ClientOptions::default() };
        Ok(Client::connect(self.addresses(), options).await?)
    }

    /// What a drill door says.
    pub async fn said(&self, at: usize) -> Option<Value> {
        Some(http::get(self.drills.get(at)?, "/v1/drill").await.ok()?.json())
    }
}

async fn issue(folder: &Folder) -> anyhow::Result<()> {
    let dir = folder.path().join("certs");
    let mut command = Command::new(binary::holdfast()?);
    command.args(["certs", "dev", "--cluster", "chaos", "--service", "deposit"]);
    command.args(["--user", "dora:app,sre", "--user", "oscar:auditor", "--dir"]).arg(dir);
    let made = command.output().await?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}
