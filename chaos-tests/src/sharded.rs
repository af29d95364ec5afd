//! Three coordinators, a PostgreSQL server with two databases, and routers in front of them.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use holdfast_client::wire::ApplyRulesRequest;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::{
    Cluster, Postgres, Process, Shape, binary, http, ports,
    process::Program,
    until::{SOON, until},
};

/// Routers of a place.
pub const ROUTERS: usize = 2;
const DATABASES: [&str; 2] = ["pg-1", "pg-2"];
/// The file that the routers have beside their coordinators.
pub const RULES: &str = r#"
[router]
collation = "C"

[group.account]
key = "id"
type = "text"
function = "crc32c"
scatter = "write"
slots = [
  { first = 0, last = 511, shard = "shard-1" },
  { first = 512, last = 1023, shard = "shard-2" },
]

[table.account]
group = "account"

[table.currency]
reference = true

[shard.shard-1]
source = "pg-1"

[shard.shard-2]
source = "pg-2"

[source.pg-1]
address = "127.0.0.1:5431"

[source.pg-2]
address = "127.0.0.1:5432"
"#;

/// Everything that runs. Where fields are dropped, processes end before their folder goes.
#[derive(Debug)]
pub struct Sharded {
    /// The routers.
    pub routers: Vec<Process>,
    ports: Vec<u16>,
    doors: Vec<u16>,
    /// Both databases.
    pub postgres: Postgres,
    /// The coordinators.
    pub cluster: Cluster,
}

fn router_config(at: usize) -> String {
    format!("router-{at}.toml")
}

impl Sharded {
    /// Starts everything, with empty tables.
    /// # Errors
    /// Something does not start.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with("").await
    }

    /// Starts everything, with these lines more below `[limits]` of the routers.
    /// # Errors
    /// Something does not start.
    pub async fn start_with(limits: &str) -> anyhow::Result<Self> {
        Self::shaped(limits, Shape::default()).await
    }

    /// The same, with coordinators in another shape.
    /// # Errors
    /// Something does not start.
    pub async fn shaped(limits: &str, shape: Shape) -> anyhow::Result<Self> {
        let cluster = Cluster::shaped(0, shape).await?;
        let postgres = Postgres::start(cluster.folder.path()).await?;
        let rules = cluster.folder.write("rules.toml", RULES)?;
        for database in DATABASES {
            postgres.create(database).await?;
            let client = postgres.connect(database).await?;
            let tables = "CREATE TABLE account (id text PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0));
                          CREATE TABLE currency (code text PRIMARY KEY, name text)";
            client.batch_execute(tables).await?;
        }
        let addresses = cluster.addresses();
        let mut free = ports::free(ROUTERS * 2)?;
        let doors = free.split_off(ROUTERS);
        let mut place = Self { routers: Vec::new(), ports: free, doors, postgres, cluster };
        for at in 0..ROUTERS {
            let router = place.router(at, &rules, &addresses, limits)?;
            place.routers.push(router);
            place.routers[at].start()?;
        }
        for at in 0..ROUTERS {
            place.ready(at).await?;
        }
        Ok(place)
    }

    fn router(
        &self,
        at: usize,
        rules: &PathBuf,
        coordinators: &[String],
        limits: &str,
    ) -> anyhow::Result<Process> {
        let name = format!("router-{at}");
        let folder = &self.cluster.folder;
        let sources: String = DATABASES
            .iter()
            .map(|name| {
                let database = self.postgres.connection_string(name);
                format!("[[sources.source]]\nname = \"{name}\"\ndatabase = \"{database}\"\n")
            })
            .collect();
        let decision = match limits.contains("decision_timeout_ms") {
            true => "",
            false => "decision_timeout_ms = 3000\n",
        };
        let config = format!(
            "[router]\nrules = {rules:?}\n[coordinators]\naddresses = {coordinators:?}\n{sources}\
             [auth]\nmode = \"trust-loopback\"\n\
             [bind]\npostgres = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\n\
             [limits]\npool_size = 20\n{decision}{limits}\n[security]\nmode = \"dev-plaintext\"\n",
            self.ports[at], self.doors[at]
        );
        let config = folder.write(&router_config(at), config)?;
        let kill = folder.path().join(format!("{name}.kill"));
        let program = Program {
            name,
            path: binary::holdfast()?.to_owned(),
            arguments: vec!["router".into(), "--config".into(), config.into()],
            environment: vec![("HOLDFAST_KILL_FILE".into(), kill.display().to_string())],
            run_as: None,
            kill_when_dropped: true,
        };
        Ok(Process::new(program, folder.path()))
    }

    /// The configuration of a router, as commands take it.
    #[must_use]
    pub fn config(&self, at: usize) -> PathBuf {
        self.cluster.folder.path().join(router_config(at))
    }

    /// Waits until a router is ready.
    /// # Errors
    /// It ended, or does not get ready.
    pub async fn ready(&mut self, at: usize) -> anyhow::Result<()> {
        let address = format!("127.0.0.1:{}", self.doors[at]);
        let process = &mut self.routers[at];
        let ready = until("a router is ready", SOON, async || {
            let ended = process.check().err();
            let asked = http::get(&address, "/readyz").await;
            ended.map(Err).or(asked.is_ok_and(|reply| reply.status == 200).then_some(Ok(())))
        });
        let ready = ready.await;
        ready.map_err(|error| error.context(process.complaint("is not ready")))?
    }

    /// What a router's `/readyz` says.
    /// # Errors
    /// It does not answer.
    pub async fn readiness(&self, at: usize) -> anyhow::Result<http::Reply> {
        http::get(&format!("127.0.0.1:{}", self.doors[at]), "/readyz").await
    }

    /// Where a router listens for PostgreSQL clients.
    #[must_use]
    pub fn port(&self, at: usize) -> u16 {
        self.ports[at]
    }

    /// A client of a router.
    /// # Errors
    /// It does not let us in.
    pub async fn connect(&self, at: usize) -> anyhow::Result<Client> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.ports[at]).user("holdfast").dbname("bank");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The databases themselves.
    /// # Errors
    /// One cannot be reached.
    pub async fn sources(&self) -> anyhow::Result<[Client; 2]> {
        let [one, two] = DATABASES;
        Ok([self.postgres.connect(one).await?, self.postgres.connect(two).await?])
    }

    /// Has a router die at `words` (a kill point, or `point:n`).
    /// # Errors
    /// The order cannot be written.
    pub fn order(&self, at: usize, words: &str) -> anyhow::Result<()> {
        let file = self.cluster.folder.path().join(format!("router-{at}.kill"));
        let draft = file.with_extension("draft");
        fs::write(&draft, words)?;
        fs::rename(&draft, &file).context("naming the order")
    }

    /// Accounts `a-0`, `a-1` and so on, each with so much, put in through the first router; and which of them lie on which source.
    /// # Errors
    /// What PostgreSQL says.
    pub async fn open_accounts(
        &self,
        count: usize,
        balance: i64,
    ) -> anyhow::Result<[Vec<String>; 2]> {
        let rows: Vec<String> = (0..count).map(|n| format!("('a-{n}', {balance})")).collect();
        let sql = format!("INSERT INTO account (id, balance) VALUES {}", rows.join(", "));
        let client = self.connect(0).await?;
        // The sources are asked next, and not by way of this session.
        client.batch_execute("SET holdfast.read_own_writes = on").await?;
        let put = client.execute(&sql, &[]).await?;
        anyhow::ensure!(put == count as u64, "{put} of {count} accounts");
        let mut here = Vec::new();
        for source in self.sources().await? {
            let rows = source.query("SELECT id FROM account ORDER BY id", &[]).await?;
            here.push(rows.iter().map(|row| row.get(0)).collect());
        }
        here.try_into().map_err(|_| anyhow::anyhow!("two databases"))
    }

    /// How much there is on both sources, asked of them and not of the router.
    /// # Errors
    /// What PostgreSQL says.
    pub async fn total(&self) -> anyhow::Result<i64> {
        let mut total = 0;
        for source in self.sources().await? {
            let sql = "SELECT coalesce(sum(balance), 0)::bigint FROM account";
            total += source.query_one(sql, &[]).await?.get::<_, i64>(0);
        }
        Ok(total)
    }

    /// Puts rules into force that follow those of an epoch, wherever rows lie; gives their own.
    /// # Errors
    /// The coordinators refuse.
    pub async fn apply_rules(&self, text: &str, expected_epoch: u64) -> anyhow::Result<u64> {
        let request = ApplyRulesRequest {
            text: text.to_owned(),
            expected_epoch,
            reason: "a test".to_owned(),
            rows_are_moved: true,
            ..ApplyRulesRequest::default()
        };
        Ok(self.cluster.client().await?.apply_rules(request).await?.epoch)
    }

    /// How many names are prepared on the server.
    /// # Errors
    /// What PostgreSQL says.
    pub async fn prepared(&self) -> anyhow::Result<i64> {
        let sql = "SELECT count(*) FROM pg_prepared_xacts";
        Ok(self.postgres.connect("postgres").await?.query_one(sql, &[]).await?.get(0))
    }
}

/// Each row of an answer, as text; NULL is empty.
/// # Errors
/// What PostgreSQL says.
pub async fn texts(client: &Client, sql: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let said = client.simple_query(sql).await?;
    let row = |said| match said {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    };
    Ok(said.into_iter().filter_map(row).collect())
}
