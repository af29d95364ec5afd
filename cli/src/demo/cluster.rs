//! The whole house on this machine: three coordinators, four PostgreSQL servers, four bank processes, and their configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::future::{join_all, try_join_all};
use holdfast_client::{Client, ClientOptions, wire::NodeStatusReply};
use holdfast_route::{RuleMistakes, Topology};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::args::KillTarget;
use super::guard::Guard;
use super::layout::Layout;
use super::postgres::{self, Installation, Server};
use super::processes::{EXIT_WITH_PARENT, Recipe, Supervised};
use super::scratch::POSTGRES;

/// Coordinators of a demo.
pub(crate) const COORDINATORS: usize = 3;

/// From a process's start until it serves.
const READY_MAX: Duration = Duration::from_secs(30);
/// For a role to drain when the demo ends.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// How long a killed process stays dead. PostgreSQL is started again at once, as its own supervisor would.
const DEAD_FOR: Duration = Duration::from_millis(1_500);
/// Between two looks at whether something is ready.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// The shapes of the files that the roles read are those that are shipped; the demo changes values only.
const COORDINATOR_TOML: &str = include_str!("../../../config/coordinator.toml");
const BANK_TOML: &str = include_str!("../../../config/bank.toml");
const SHARDS_TOML: &str = include_str!("../../../config/shards.toml");

/// Everything that runs, and where.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Where keys live.
    pub(crate) topology: Topology,
    /// One a shard, in the order of the rules.
    pub(crate) servers: Vec<Server>,
    installation: Installation,
    /// `None`: nothing is encrypted.
    pub(crate) guard: Option<Guard>,
    /// Of a client, as the coordinators' doors want it.
    pub(crate) options: ClientOptions,
    pub(crate) coordinators: Vec<Coordinator>,
    pub(crate) banks: Vec<Bank>,
}

/// One coordinator process.
#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) process: Supervised,
    pub(crate) http: String,
    pub(crate) grpc: String,
    /// Its drill door, if it has one.
    pub(crate) drill: Option<String>,
}

/// One bank process.
#[derive(Debug)]
pub(crate) struct Bank {
    pub(crate) process: Supervised,
    http: String,
    /// Its drill door, if it has one.
    pub(crate) drill: Option<String>,
}

/// What a kill took away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Victim {
    /// By place, from 0.
    Coordinators(Vec<usize>),
    /// The bank process of a shard.
    Bank(usize),
    /// The PostgreSQL server of a shard.
    Server(usize),
}

impl Cluster {
    /// Makes PostgreSQL servers and starts coordinators below `folder`. Both are ready when this returns; bank
    /// processes follow with [`Self::start_banks`], once the databases have their tables.
    pub(crate) async fn start(folder: &Path, layout: Layout) -> anyhow::Result<Self> {
        let Layout { groups, doors, .. } = layout;
        let guard = layout.guard(folder)?;
        let options = guard.as_ref().map(Guard::options).transpose()?.unwrap_or_default();
        let installation = Installation::find()?;
        let shards = parse_rules(SHARDS_TOML)?.shards().len();
        let ports = super::ports::free(COORDINATORS * 3 + shards * 2)?;
        let (coordinator_ports, ports) = ports.split_at(COORDINATORS * 3);
        let (server_ports, bank_ports) = ports.split_at(shards);

        let rules = shard_rules(server_ports)?;
        std::fs::write(folder.join("shards.toml"), &rules)?;
        let topology = parse_rules(&rules)?;
        let program = std::env::current_exe().context("finding our own program")?;

        let mut coordinators = (0..COORDINATORS)
            .map(|at| {
                let guarded = |config: &mut toml::Table| match &guard {
                    Some(guard) => guard.apply(config, &format!("node/{}", at + 1)),
                    None => Ok(()),
                };
                let here = (folder, program.as_path());
                Coordinator::configured(at, groups, coordinator_ports, here, guarded)
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        for coordinator in &mut coordinators {
            coordinator.drill = doors.open(&mut coordinator.process)?;
            coordinator.process.start()?;
        }
        let servers = start_servers(&installation, server_ports, folder).await?;
        let grpc: Vec<String> =
            coordinators.iter().map(|coordinator| coordinator.grpc.clone()).collect();
        let banks = topology
            .shards()
            .keys()
            .zip(servers.iter().zip(bank_ports))
            .map(|(shard, (server, http))| {
                let here = (folder, program.as_path());
                let mut bank =
                    Bank::new(shard.as_str(), server, *http, &grpc, here, guard.as_ref())?;
                bank.drill = doors.open(&mut bank.process)?;
                Ok(bank)
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut cluster =
            Self { topology, servers, installation, guard, options, coordinators, banks };
        cluster.coordinators_ready().await?;
        Ok(cluster)
    }

    /// Starts a bank process for each shard and waits until each is ready.
    pub(crate) async fn start_banks(&mut self) -> anyhow::Result<()> {
        for bank in &mut self.banks {
            bank.process.start()?;
        }
        self.banks_ready().await
    }

    /// The coordinators' gRPC addresses.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.coordinators.iter().map(|coordinator| coordinator.grpc.clone()).collect()
    }

    /// Fails, with the end of its log, if a process ended that nobody killed.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for process in self.roles() {
            process.check()?;
        }
        for server in &mut self.servers {
            server.check()?;
        }
        Ok(())
    }

    /// What each coordinator says of itself; `None` where one does not answer.
    pub(crate) async fn statuses(&self) -> Vec<Option<NodeStatusReply>> {
        let addresses = self.coordinators.iter().map(|coordinator| &coordinator.grpc);
        join_all(addresses.map(|grpc| status_as(grpc, self.options.clone()))).await
    }

    /// What the leader says of itself, if there is one.
    pub(crate) async fn leader(&self) -> Option<(usize, NodeStatusReply)> {
        let statuses = self.statuses().await;
        let leaders =
            statuses.into_iter().enumerate().filter_map(|(at, status)| Some((at, status?)));
        leaders.filter(|(_, status)| status.role == "leader").max_by_key(|(_, status)| status.term)
    }

    /// Decides who dies; `turn` counts the kills before this one, so that shards take turns.
    pub(crate) async fn choose(&self, target: KillTarget, turn: usize) -> anyhow::Result<Victim> {
        let shard = turn % self.servers.len();
        Ok(match target {
            KillTarget::Agent => Victim::Bank(shard),
            KillTarget::Postgres => Victim::Server(shard),
            KillTarget::AllCoordinators => Victim::Coordinators((0..COORDINATORS).collect()),
            KillTarget::Leader => Victim::Coordinators(vec![self.await_leader().await?]),
            KillTarget::Follower => {
                let leader = self.await_leader().await?;
                Victim::Coordinators(vec![(leader + 1 + turn % (COORDINATORS - 1)) % COORDINATORS])
            }
            KillTarget::None => bail!("nothing is killed for {}", target.word()),
        })
    }

    /// Kills it, without a warning.
    pub(crate) async fn kill(&mut self, victim: &Victim) -> anyhow::Result<()> {
        match victim {
            Victim::Coordinators(places) => {
                for at in places {
                    self.coordinators[*at].process.kill().await?;
                }
                Ok(())
            }
            Victim::Bank(shard) => self.banks[*shard].process.kill().await,
            Victim::Server(shard) => self.servers[*shard].crash().await,
        }
    }

    /// Starts it again after the time that it is to be dead, and waits until it serves.
    pub(crate) async fn restart(&mut self, victim: &Victim) -> anyhow::Result<()> {
        match victim {
            Victim::Coordinators(places) => {
                sleep(DEAD_FOR).await;
                for at in places {
                    self.coordinators[*at].process.start()?;
                }
                self.coordinators_ready().await
            }
            Victim::Bank(shard) => {
                sleep(DEAD_FOR).await;
                self.banks[*shard].process.start()?;
                self.banks_ready().await
            }
            Victim::Server(shard) => self.servers[*shard].start().await,
        }
    }

    /// The victim's name, for people.
    pub(crate) fn name(&self, victim: &Victim) -> String {
        match victim {
            Victim::Coordinators(places) if places.len() == COORDINATORS => {
                "all coordinators".to_owned()
            }
            Victim::Coordinators(places) => {
                let names = places.iter().map(|at| self.coordinators[*at].process.name());
                names.collect::<Vec<_>>().join(", ")
            }
            Victim::Bank(shard) => self.banks[*shard].process.name().to_owned(),
            Victim::Server(shard) => self.servers[*shard].name().to_owned(),
        }
    }

    /// Ends all of it in good order.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        let stopped =
            join_all(self.roles().map(|process| process.stop(Signal::SIGTERM, DRAIN_MAX))).await;
        stopped.into_iter().collect::<anyhow::Result<Vec<bool>>>()?;
        try_join_all(self.servers.iter_mut().map(Server::stop)).await?;
        Ok(())
    }

    /// How a person gets at what was kept.
    pub(crate) fn directions(&self, folder: &Path) -> String {
        let mut lines = vec![
            format!("Kept: {} (logs below logs/, configuration beside it).", folder.display()),
            "Start a database again and look into it:".to_owned(),
        ];
        for server in &self.servers {
            lines.push(format!("  {}", self.installation.start_command(server)));
            lines.push(format!(
                "  PGPASSFILE={} psql -h 127.0.0.1 -p {} -U {} {}",
                folder.join("pgpass").display(),
                server.port(),
                postgres::USER,
                postgres::DATABASE
            ));
        }
        lines.join("\n")
    }

    fn roles(&mut self) -> impl Iterator<Item = &mut Supervised> {
        let coordinators = self.coordinators.iter_mut().map(|coordinator| &mut coordinator.process);
        coordinators.chain(self.banks.iter_mut().map(|bank| &mut bank.process))
    }

    async fn await_leader(&self) -> anyhow::Result<usize> {
        let until = Instant::now() + READY_MAX;
        while Instant::now() < until {
            if let Some((at, _)) = self.leader().await {
                return Ok(at);
            }
            sleep(LOOK_AGAIN).await;
        }
        bail!("no coordinator led for {} s; see the logs of all three", READY_MAX.as_secs())
    }

    /// Waits until every coordinator answers and knows a leader.
    async fn coordinators_ready(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + READY_MAX;
        for coordinator in &mut self.coordinators {
            loop {
                coordinator.process.check()?;
                let status = status_as(&coordinator.grpc, self.options.clone()).await;
                if status.is_some_and(|status| status.leader != 0) {
                    break;
                }
                ensure!(Instant::now() < until, coordinator.process.complaint("knows no leader"));
                sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    async fn banks_ready(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + READY_MAX;
        for bank in &mut self.banks {
            loop {
                bank.process.check()?;
                if is_ready(&bank.http).await.unwrap_or(false) {
                    break;
                }
                ensure!(Instant::now() < until, bank.process.complaint("is not ready"));
                sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }
}

impl Victim {
    /// The one shard that it serves, if it serves one.
    pub(crate) fn shard(&self) -> Option<usize> {
        match self {
            Self::Coordinators(_) => None,
            Self::Bank(shard) | Self::Server(shard) => Some(*shard),
        }
    }
}

impl Coordinator {
    /// The one at this place, from 0, with its configuration written below `folder`; three `ports` for each of all. The cluster has so many
    /// Raft `groups`.
    pub(crate) fn new(
        at: usize,
        groups: u32,
        ports: &[u16],
        folder: &Path,
        program: &Path,
    ) -> anyhow::Result<Self> {
        Self::configured(at, groups, ports, (folder, program), |_| Ok(()))
    }

    /// The same, with what `change` makes of its configuration.
    pub(crate) fn configured(
        at: usize,
        groups: u32,
        ports: &[u16],
        (folder, program): (&Path, &Path),
        change: impl Fn(&mut toml::Table) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let node = at + 1;
        let address = |at: usize, door: usize| format!("127.0.0.1:{}", ports[at * 3 + door]);
        let members: Vec<_> =
            (0..COORDINATORS).map(|at| (at + 1, [0, 1, 2].map(|door| address(at, door)))).collect();
        let data = folder.join(format!("coordinator-{node}"));
        let mut config = coordinator_config(node, &data, &members)?;
        set(&mut config, "cluster", "groups", i64::from(groups))?;
        change(&mut config)?;
        let name = format!("coordinator-{node}");
        let recipe = role("coordinator", &name, &config, folder, program)?;
        let process = Supervised::new(recipe);
        Ok(Self { process, http: address(at, 0), grpc: address(at, 1), drill: None })
    }
}

impl Bank {
    fn new(
        shard: &str,
        server: &Server,
        http: u16,
        coordinators: &[String],
        (folder, program): (&Path, &Path),
        guard: Option<&Guard>,
    ) -> anyhow::Result<Self> {
        let http = format!("127.0.0.1:{http}");
        let mut config: toml::Table = BANK_TOML.parse().context("the shipped bank.toml")?;
        set(&mut config, "bank", "shard", shard)?;
        set(&mut config, "bank", "database", "given by environment")?;
        set(&mut config, "coordinators", "addresses", coordinators.to_vec())?;
        set(&mut config, "bind", "http", http.clone())?;
        if let Some(guard) = guard {
            guard.apply(&mut config, "service/deposit")?;
        }
        let mut recipe = role("bank", &format!("bank-{shard}"), &config, folder, program)?;
        recipe.environment.push(("HOLDFAST_BANK_DATABASE".to_owned(), server.connection_string()));
        Ok(Self { process: Supervised::new(recipe), http, drill: None })
    }
}

/// The shipped configuration of a coordinator with these values: its number, its folder, and the cluster's members with their
/// HTTP, gRPC and Raft addresses, where it listens too.
pub(crate) fn coordinator_config(
    node: usize,
    data: &Path,
    members: &[(usize, [String; 3])],
) -> anyhow::Result<toml::Table> {
    let doors = ["http", "grpc", "raft"];
    let mut config: toml::Table =
        COORDINATOR_TOML.parse().context("the shipped coordinator.toml")?;
    set(&mut config, "node", "id", i64::try_from(node)?)?;
    let data = data.to_str().context("the folder's name is not UTF-8")?;
    set(&mut config, "node", "data_dir", data)?;
    let own = members.iter().find(|(id, _)| *id == node).context("the node is a member")?;
    for (name, address) in doors.iter().zip(&own.1) {
        set(&mut config, "bind", name, address.clone())?;
    }
    let tables = members.iter().map(|(id, addresses)| {
        let mut member = toml::Table::new();
        member.insert("id".to_owned(), i64::try_from(*id)?.into());
        for (name, address) in doors.iter().zip(addresses) {
            member.insert((*name).to_owned(), address.clone().into());
        }
        anyhow::Ok(toml::Value::Table(member))
    });
    set(&mut config, "cluster", "member", tables.collect::<anyhow::Result<Vec<_>>>()?)?;
    Ok(config)
}

/// A recipe for `holdfast <role> --config <file>`, with the file written.
pub(crate) fn role(
    role: &str,
    name: &str,
    config: &toml::Table,
    folder: &Path,
    program: &Path,
) -> anyhow::Result<Recipe> {
    let file = folder.join(format!("{name}.toml"));
    std::fs::write(&file, config.to_string())
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(Recipe {
        name: name.to_owned(),
        program: program.to_path_buf(),
        arguments: vec![role.into(), "--config".into(), file.into()],
        environment: vec![(EXIT_WITH_PARENT.to_owned(), "1".to_owned())],
        log: logs(folder)?.join(format!("{name}.log")),
        run_as: None,
        kill_when_dropped: true,
    })
}

/// Changes a value of a shipped file. A key that the file does not have is a mistake of ours: the file has changed shape.
pub(crate) fn set(
    config: &mut toml::Table,
    section: &str,
    key: &str,
    value: impl Into<toml::Value>,
) -> anyhow::Result<()> {
    let section_table = config.get_mut(section).and_then(toml::Value::as_table_mut);
    let slot = section_table.and_then(|table| table.get_mut(key));
    *slot.with_context(|| format!("the shipped configuration has no {section}.{key}"))? =
        value.into();
    Ok(())
}

/// The shipped rules, with the addresses of our servers.
fn shard_rules(ports: &[u16]) -> anyhow::Result<String> {
    let mut rules: toml::Table = SHARDS_TOML.parse().context("the shipped shards.toml")?;
    let sources = rules.get_mut("source").and_then(toml::Value::as_table_mut);
    let sources = sources.context("the shipped shards.toml has no sources")?;
    ensure!(sources.len() == ports.len(), "the shipped shards.toml has {} sources", sources.len());
    for ((_, source), port) in sources.iter_mut().zip(ports) {
        let mut address = toml::Table::new();
        address.insert("address".to_owned(), format!("127.0.0.1:{port}").into());
        *source = address.into();
    }
    Ok(rules.to_string())
}

async fn start_servers(
    installation: &Installation,
    ports: &[u16],
    folder: &Path,
) -> anyhow::Result<Vec<Server>> {
    let data = folder.join(POSTGRES);
    std::fs::create_dir(&data)?;
    let password = postgres::new_password();
    let template = installation.make_template(&data, &password).await?;
    write_private(
        &folder.join("pgpass"),
        &format!("127.0.0.1:*:*:{}:{password}\n", postgres::USER),
    )?;
    let logs = logs(folder)?;
    let names: Vec<String> = (1..=ports.len()).map(|number| format!("pg-{number}")).collect();
    try_join_all(names.iter().zip(ports).map(|(name, port)| template.start(name, *port, &logs)))
        .await
}

fn logs(folder: &Path) -> anyhow::Result<PathBuf> {
    let logs = folder.join("logs");
    std::fs::create_dir_all(&logs)?;
    Ok(logs)
}

pub(super) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

fn parse_rules(text: &str) -> anyhow::Result<Topology> {
    let parsed = Topology::parse(text);
    Ok(parsed.map_err(|mistakes| RuleMistakes { file: "shards.toml".to_owned(), mistakes })?)
}

/// What the node at `grpc` says of itself; `None` if it does not answer within a moment.
pub(crate) async fn status(grpc: &str) -> Option<NodeStatusReply> {
    status_as(grpc, ClientOptions::default()).await
}

/// The same, asked by whoever these options show.
pub(crate) async fn status_as(grpc: &str, options: ClientOptions) -> Option<NodeStatusReply> {
    let options = ClientOptions { patience_ms: 1_000, ..options };
    Client::lazy([grpc], options).ok()?.node_status().await.ok()
}

/// Whether `GET /readyz` is answered with 200.
pub(crate) async fn is_ready(http: &str) -> anyhow::Result<bool> {
    let asked = async {
        let mut stream = TcpStream::connect(http).await?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        anyhow::Ok(status == *b"HTTP/1.1 200")
    };
    timeout(Duration::from_secs(1), asked).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_name_our_servers_in_order_and_are_right() {
        let rules = shard_rules(&[7001, 7002, 7003, 7004]).unwrap();
        let topology = Topology::parse(&rules).unwrap();
        let addresses: Vec<&str> =
            topology.sources().values().map(|source| source.address()).collect();
        assert_eq!(
            addresses,
            ["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003", "127.0.0.1:7004"]
        );
        let shards: Vec<&str> =
            topology.shards().values().map(|shard| shard.source().as_str()).collect();
        assert_eq!(shards, ["pg-1", "pg-2", "pg-3", "pg-4"]);
    }

    #[test]
    fn each_coordinator_knows_all_three_and_itself() {
        let folder = tempfile::tempdir().unwrap();
        let ports: Vec<u16> = (8001..=8009).collect();
        let second = Coordinator::new(1, 1, &ports, folder.path(), Path::new("/holdfast")).unwrap();
        assert_eq!(second.grpc, "127.0.0.1:8005");
        let config: toml::Table = std::fs::read_to_string(folder.path().join("coordinator-2.toml"))
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(config["node"]["id"].as_integer(), Some(2));
        assert_eq!(config["bind"]["raft"].as_str(), Some("127.0.0.1:8006"));
        let members = config["cluster"]["member"].as_array().unwrap();
        assert_eq!(members.len(), 3);
        assert_eq!(members[2]["http"].as_str(), Some("127.0.0.1:8007"));
    }

    #[test]
    fn a_value_that_no_shipped_file_has_is_a_mistake() {
        let mut config: toml::Table = BANK_TOML.parse().unwrap();
        assert!(set(&mut config, "bank", "shard", "shard-9").is_ok());
        assert!(set(&mut config, "bank", "shart", "shard-9").is_err());
        assert!(set(&mut config, "tank", "shard", "shard-9").is_err());
    }
}
