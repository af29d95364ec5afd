//! A DBA's part: shard rules into the coordinators' log, a router that follows them in front of the four databases, and the money counted once more
//! through it, in one statement.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_security::ServerTls;
use holdfast_tcc_agent::Database;
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use tokio_postgres::SimpleQueryMessage;

use super::cluster::{Cluster, is_ready, role, set, write_private};
use super::guard::Guard;
use super::postgres::{DATABASE, USER};
use super::processes::Supervised;

/// For the router to have new rules; a router that is idle has them in milliseconds.
const FOLLOWS_MAX: Duration = Duration::from_secs(30);
/// For it to end.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const ROUTER_TOML: &str = include_str!("../../../config/router.toml");
/// The first rules, and those under which the money may be counted.
const RULES: [&str; 2] = ["rules.toml", "rules-audit.toml"];
const COUNT: &str = "SELECT sum(balance_minor) FROM bank.account";

/// What a DBA did and saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Routed {
    /// All balances, by one statement through the router.
    pub(crate) money_minor: i64,
    /// The epoch of the shard rules in the end.
    pub(crate) epoch: u64,
    pub(crate) steps: Vec<Step>,
}

/// A line that was typed, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    pub(crate) typed: String,
    pub(crate) said: String,
}

/// Plays it, with `account` as an example of a key.
/// # Errors
/// Something does not start, or does not say what it has to.
pub(crate) async fn play(
    cluster: &Cluster,
    folder: &Path,
    account: &str,
) -> anyhow::Result<Routed> {
    let rules = std::fs::read_to_string(folder.join("shards.toml"))?;
    for (name, scatter) in RULES.iter().zip([None, Some("read")]) {
        std::fs::write(folder.join(name), bank_rules(&rules, scatter)?)?;
    }
    let mut router = Running::start(cluster, folder)?;
    let identity = cluster.guard.as_ref().map(Guard::environment).transpose()?;
    let coordinators = cluster.addresses().join(",");
    let mut desk = Desk { folder, coordinators, identity, steps: Vec::new() };
    let [first, audit] = RULES;
    desk.holdfast(&["rules", "check", first]).await?;
    desk.holdfast(&["rules", "apply", first, "--reason", "the first rules"]).await?;
    router.ready().await?;
    let client = router.connect().await?;
    follow(&client, 1).await?;
    let one = format!("SELECT balance_minor FROM bank.account WHERE id = '{account}'");
    desk.sql(&client, &format!("EXPLAIN (ROUTE) {one}")).await?;
    let refused = desk.sql(&client, COUNT).await?;
    ensure!(refused.is_none(), "the first rules let nothing go to several sources");
    desk.holdfast(&["rules", "plan", first, audit]).await?;
    desk.holdfast(&["rules", "apply", audit, "--reason", "the auditors come"]).await?;
    follow(&client, 2).await?;
    let money = desk.sql(&client, COUNT).await?.context("the money was not counted")?;
    desk.holdfast(&["rules", "revert", "--reason", "the auditors are gone"]).await?;
    follow(&client, 3).await?;
    router.process.stop(Signal::SIGTERM, DRAIN_MAX).await?;
    let money_minor = money.parse().with_context(|| format!("{COUNT} is {money:?}"))?;
    Ok(Routed { money_minor, epoch: 3, steps: desk.steps })
}

/// The rules of the demo, for the tables that the bank really has.
fn bank_rules(shards: &str, scatter: Option<&str>) -> anyhow::Result<String> {
    let mut rules: toml::Table = shards.parse().context("the demo's shards.toml")?;
    let mut tables = toml::Table::new();
    for (table, key) in [("account", "id"), ("journal", "account")] {
        let mut joined = toml::Table::new();
        joined.insert("group".to_owned(), "account".into());
        joined.insert("key".to_owned(), key.into());
        if let Some(scatter) = scatter.filter(|_| table == "account") {
            joined.insert("scatter".to_owned(), scatter.into());
        }
        tables.insert(format!("bank.{table}"), joined.into());
    }
    rules.insert("table".to_owned(), tables.into());
    Ok(rules.to_string())
}

/// A router that waits for its first rules.
struct Running {
    process: Supervised,
    http: String,
    port: u16,
    /// How it is known to be the router, where the demo is guarded.
    tls: Option<ServerTls>,
}

impl Running {
    fn start(cluster: &Cluster, folder: &Path) -> anyhow::Result<Self> {
        let ports = super::ports::free(2)?;
        let http = format!("127.0.0.1:{}", ports[1]);
        let mut config: toml::Table = ROUTER_TOML.parse().context("the shipped router.toml")?;
        set(&mut config, "router", "rules", "")?;
        set(&mut config, "coordinators", "addresses", cluster.addresses())?;
        set(&mut config, "bind", "postgres", format!("127.0.0.1:{}", ports[0]))?;
        set(&mut config, "bind", "http", http.clone())?;
        let sources = cluster.topology.sources().keys().zip(&cluster.servers);
        let sources = sources.map(|(name, server)| {
            let mut source = toml::Table::new();
            source.insert("name".to_owned(), name.to_string().into());
            // The router dials by its own clock.
            let database = server.connection_string().replace(" connect_timeout=5", "");
            source.insert("database".to_owned(), database.into());
            toml::Value::Table(source)
        });
        set(&mut config, "sources", "source", sources.collect::<Vec<_>>())?;
        if let Some(guard) = &cluster.guard {
            guard.apply(&mut config, "service/source")?;
            guard.towards_clients(&mut config)?;
        }
        // It holds the servers' password, so the file is ours before it is written.
        write_private(&folder.join("router.toml"), "")?;
        let program = std::env::current_exe().context("finding our own program")?;
        let mut process = Supervised::new(role("router", "router", &config, folder, &program)?);
        process.start()?;
        let tls = cluster.guard.as_ref().map(Guard::towards_router).transpose()?;
        Ok(Self { process, http, port: ports[0], tls })
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + FOLLOWS_MAX;
        while !is_ready(&self.http).await.unwrap_or(false) {
            self.process.check()?;
            ensure!(Instant::now() < until, self.process.complaint("is not ready"));
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    async fn connect(&self) -> anyhow::Result<tokio_postgres::Client> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(USER).dbname(DATABASE);
        let connected = Database::new(config, self.tls.clone()).connect().await;
        connected.map(|(client, _ends_by_itself)| client).context("connecting to the router")
    }
}

/// Waits until the router goes by the rules of `epoch`.
async fn follow(client: &tokio_postgres::Client, epoch: u64) -> anyhow::Result<()> {
    let until = Instant::now() + FOLLOWS_MAX;
    loop {
        let shown = rows(&client.simple_query("SHOW HOLDFAST RULES").await?);
        if shown.first().and_then(|row| row.first()) == Some(&epoch.to_string()) {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("the router does not go by the rules of epoch {epoch}, but {shown:?}");
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Where the DBA types.
struct Desk<'d> {
    folder: &'d Path,
    coordinators: String,
    identity: Option<[(&'static str, PathBuf); 3]>,
    steps: Vec<Step>,
}

impl Desk<'_> {
    /// A command of our own program.
    async fn holdfast(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("finding our own program")?;
        let output = tokio::process::Command::new(program)
            .args(arguments)
            .current_dir(self.folder)
            .env("HOLDFAST_COORDINATOR", &self.coordinators)
            .envs(self.identity.clone().into_iter().flatten())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let quoted = |argument: &&str| match argument.contains(' ') {
            true => format!("\"{argument}\""),
            false => (*argument).to_owned(),
        };
        let typed = arguments.iter().map(quoted).collect::<Vec<_>>().join(" ");
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        let said = said.trim_end().to_owned();
        ensure!(output.status.success(), "holdfast {typed}: {said}");
        self.steps.push(Step { typed: format!("holdfast {typed}"), said });
        Ok(())
    }

    /// A statement through the router. Its first value; none if it was refused.
    async fn sql(
        &mut self,
        client: &tokio_postgres::Client,
        sql: &str,
    ) -> anyhow::Result<Option<String>> {
        let asked = client.simple_query(sql).await;
        let (said, value) = match asked {
            Ok(messages) => {
                let rows = rows(&messages);
                let lines = rows.iter().map(|row| match row.as_slice() {
                    [what, value] => format!("{what:<8} {value}"),
                    row => row.join("  "),
                });
                (lines.collect::<Vec<_>>().join("\n"), rows.into_iter().flatten().next())
            }
            Err(error) => {
                let told = error.as_db_error().with_context(|| format!("{sql}: {error}"))?;
                (format!("ERROR:  {}\nHINT:  {}", told.message(), told.hint().unwrap_or("-")), None)
            }
        };
        self.steps.push(Step { typed: format!("{DATABASE}=> {sql};"), said });
        Ok(value)
    }
}

fn rows(messages: &[SimpleQueryMessage]) -> Vec<Vec<String>> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let values = (0..row.len()).map(|at| row.get(at).unwrap_or_default().to_owned());
            Some(values.collect())
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_right_and_only_one_lets_the_money_be_counted() {
        let shipped = include_str!("../../../config/shards.toml");
        for (scatter, counts) in [(None, false), (Some("read"), true)] {
            let text = bank_rules(shipped, scatter).unwrap();
            let rules = holdfast_route::Topology::parse(&text).unwrap();
            let holdfast_route::Placement::Sharded(account) = &rules.tables()["bank.account"]
            else {
                panic!("accounts are sharded")
            };
            assert_eq!(account.scatter == holdfast_route::Scatter::Read, counts);
            assert_eq!(&*account.columns[0].name, "id");
            assert_eq!(rules.tables().len(), 2);
        }
    }
}
